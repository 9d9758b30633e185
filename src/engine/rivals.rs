//! The writes of other replicas, and what they mean for the lease, the keys and patience.

use std::{hash::Hash, time::Duration};

use super::{
    Engine, backoff::seconds, contest::Role, incumbent::Incumbent, queue::Cleared, roster::Turn,
    shard::Shard, time::Timestamp,
};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Takes in evidence: another replica's write did what our job for this key would have done.
    /// Extends the other's lease; clears and returns the job. `revision` is the position of the
    /// write in the store's order of writes, if the store has one.
    ///
    /// The caller must have looked at the current value: an event about an older state must not
    /// clear a newer job.
    pub fn handle_extend(&mut self, now: Timestamp, key: &K, revision: Option<u64>) -> Option<J> {
        let now = self.advance(now);
        let number = self.touch(key);
        self.last_success = now;
        let shard = &self.shards[usize::from(number)];
        if shard.contest.is_old_news(revision) {
            return self.clear(key).job;
        }
        // What comes during a hand-over they had begun before. If it is another's turn, it may be the
        // first write of that one.
        let is_handed_over = now < shard.hand_over_until;
        let is_ours = is_handed_over && shard.turn == Turn::Us;
        let by = if is_ours { Incumbent::Nobody } else { Incumbent::Other };
        let cleared = self.queue.clear_written(now, number, key, by);
        self.was_cleared(&cleared);
        let Cleared { job, since, attempted, before, .. } = cleared;
        let is_wanted_in_turn =
            since.is_some() && !is_handed_over && self.shards[usize::from(number)].turn == Turn::Us;
        self.counters.evidence += 1;
        self.decided = true;
        if let Some(roster) = &mut self.roster {
            let patience = &self.shards[usize::from(number)].patience;
            if is_wanted_in_turn {
                roster.is_displaced();
            } else if !since.is_some_and(|since| patience.is_late(now - since)) {
                roster.sign_of_life(now, number);
            }
        }
        if is_handed_over {
            let shard = &mut self.shards[usize::from(number)];
            if !is_ours {
                shard.contest.sign_of_life(now, shard.patience.unspread());
            }
            return job;
        }
        self.forget_idle(now);
        let burst = self.echoes(self.config.tuning.election_echoes);
        let shard = &mut self.shards[usize::from(number)];
        // A request of unknown age may be as young as this moment.
        let asked = since.map_or(now, |since| since.min(now));
        let is_late = before == Incumbent::Nobody && shard.patience.is_late(now - asked);
        shard.contest.reaches(now, asked, burst, is_late);
        if self.authority.is_by_work() {
            let is_nothing_new = before == Incumbent::Other
                // The roster says who leads, and the other one may only have wanted this key.
                || shard.turn == Turn::Us
                || since.is_some_and(|since| is_slow(shard, now, since));
            if is_nothing_new && shard.contest.role() == Role::Leader {
                shard.contest.sign_of_life(now, shard.patience.unspread());
            } else {
                self.lose(now, number, true);
            }
        }
        // Three kinds of keys say nothing about the pace of a leader: those that we attempted (Karn),
        // those that had to wait for the store, and those that an impatient replica may have written.
        let patience = &mut self.shards[usize::from(number)].patience;
        if let Some(since) = since.filter(|since| !attempted && !self.outage.was_since(*since))
            && !patience.is_late(now - since)
        {
            patience.sample(now - since, &self.config);
        }
        job
    }

    /// Takes in another write of our group: extends the writer's lease; our pending jobs stay.
    /// `revision` is as in [`handle_extend`](Self::handle_extend).
    pub fn handle_observe(&mut self, now: Timestamp, key: &K, revision: Option<u64>) {
        let now = self.advance(now);
        let number = self.touch(key);
        let burst = self.echoes(self.config.tuning.election_echoes);
        let shard = &mut self.shards[usize::from(number)];
        if !self.authority.is_by_work() || shard.contest.is_old_news(revision) || now < shard.hand_over_until
        {
            return;
        }
        shard.contest.reaches(now, now, burst, false);
        if shard.turn == Turn::Us && shard.contest.role() == Role::Leader {
            shard.contest.sign_of_life(now, shard.patience.unspread());
        } else {
            self.lose(now, number, true);
        }
    }

    /// The store was listed anew. It may have been restored to smaller revisions, so evidence counts
    /// whatever its revision, until we win the lease again.
    pub fn handle_relisting(&mut self, now: Timestamp) {
        self.advance(now);
        for shard in &mut self.shards {
            shard.contest.forget_revision();
        }
    }

    /// Another process deleted the object: its last writer is no longer the one to write it.
    pub fn handle_deleted(&mut self, now: Timestamp, key: &K) {
        let now = self.advance(now);
        let shard = self.touch(key);
        self.queue.set_incumbent(now, shard, key, Incumbent::Nobody);
    }

    pub(super) fn lose(&mut self, now: Timestamp, number: u16, evidence: bool) {
        let floor = self.slowest_news();
        let rival_echoes = self.echoes(self.config.tuning.rival_echoes).as_secs_f64();
        let shard = &mut self.shards[usize::from(number)];
        let led = shard.contest.role() == Role::Leader;
        // Evidence that deposes a leader means that two replicas led. Both see it and both step
        // down, so an even draw keeps them apart (rule 5).
        let is_rival = evidence && led && shard.turn != Turn::Other;
        let rival_delay = if is_rival { seconds(rival_echoes * self.rng.uniform()) } else { Duration::ZERO };
        let silence = shard.patience.unspread();
        // Whose turn it is has the shard for a term after each write: nobody needs to learn who leads.
        let term = (shard.turn == Turn::Other).then_some(self.config.term);
        let (backoff, rng) = (&self.backoff, &mut self.rng);
        let changed = shard.contest.lose(now, evidence, rival_delay, silence, |losses| {
            term.unwrap_or_else(|| backoff.delay(losses, floor, rng))
        });
        shard.window.close();
        if changed {
            self.counters.lost += 1;
            self.role_generation += 1;
            self.decided = true;
        }
        if led {
            self.lead_ended();
        }
    }
}

/// Returns whether we lead, are at work, and have left a key pending for so long that another
/// replica may have lost patience.
fn is_slow(shard: &Shard, now: Timestamp, since: Timestamp) -> bool {
    let is_late = |at: Timestamp| shard.patience.is_late(now - at);
    is_late(since.max(shard.contest.role_since())) && !is_late(shard.contest.last_write())
}

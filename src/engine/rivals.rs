//! The writes of other replicas, and what they mean for the lease, the keys and patience.

use std::{hash::Hash, time::Duration};

use super::{Engine, backoff::seconds, contest::Role, incumbent::Incumbent, queue::Cleared, time::Timestamp};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Takes in evidence: another replica's write did what our job for this key would have done.
    /// Extends the other's lease; clears and returns the job. `revision` is the position of the
    /// write in the store's order of writes, if the store has one.
    ///
    /// The caller must have looked at the current value: an event about an older state must not
    /// clear a newer job.
    pub fn handle_extend(&mut self, now: Timestamp, key: &K, revision: Option<u64>) -> Option<J> {
        let now = self.advance(now);
        let Cleared { job, since, attempted, .. } = self.clear(key);
        self.last_success = now;
        if self.contest.is_old_news(revision) {
            return job;
        }
        self.counters.evidence += 1;
        self.decided = true;
        // A request of unknown age may be as young as this moment.
        self.contest.reaches(since.map_or(now, |since| since.min(now)));
        self.forget_idle(now);
        let before = self.queue.set_incumbent(now, key, Incumbent::Other);
        if self.authority.is_by_work() {
            let is_nothing_new =
                before == Incumbent::Other || since.is_some_and(|since| self.is_slow(now, since));
            if is_nothing_new && self.contest.role() == Role::Leader {
                self.contest.sign_of_life(now, self.patience.unspread());
            } else {
                self.lose(now, true);
            }
        }
        // Three kinds of keys say nothing about the pace of a leader: those that we attempted (Karn),
        // those that had to wait for the store, and those that an impatient replica may have written.
        if let Some(since) = since.filter(|since| !attempted && !self.outage.was_since(*since))
            && !self.patience.is_late(now - since)
        {
            self.patience.sample(now - since);
        }
        job
    }

    /// Takes in another write of our group: extends the writer's lease; our pending jobs stay.
    /// `revision` is as in [`handle_extend`](Self::handle_extend).
    pub fn handle_observe(&mut self, now: Timestamp, revision: Option<u64>) {
        let now = self.advance(now);
        if self.authority.is_by_work() && !self.contest.is_old_news(revision) {
            self.contest.reaches(now);
            self.lose(now, true);
        }
    }

    /// The store was listed anew. It may have been restored to smaller revisions, so evidence counts
    /// whatever its revision, until we win the lease again.
    pub fn handle_relisting(&mut self, now: Timestamp) {
        self.advance(now);
        self.contest.forget_revision();
    }

    /// Another process deleted the object: its last writer is no longer the one to write it.
    pub fn handle_deleted(&mut self, now: Timestamp, key: &K) {
        let now = self.advance(now);
        self.queue.set_incumbent(now, key, Incumbent::Nobody);
    }

    pub(super) fn lose(&mut self, now: Timestamp, evidence: bool) {
        let floor = self.slowest_news();
        // Evidence that deposes a leader means that two replicas led. Both see it and both step
        // down, so an even draw keeps them apart (rule 5).
        let rival_delay = if evidence && self.contest.role() == Role::Leader {
            seconds(self.echoes(self.config.tuning.rival_echoes).as_secs_f64() * self.rng.uniform())
        } else {
            Duration::ZERO
        };
        let silence = self.patience.unspread();
        let (backoff, rng) = (&self.backoff, &mut self.rng);
        if self.contest.lose(now, evidence, rival_delay, silence, |losses| backoff.delay(losses, floor, rng))
        {
            self.counters.lost += 1;
            self.decided = true;
        }
        self.window.close();
    }

    /// Returns whether we lead, are at work, and have left a key pending for so long that another
    /// replica may have lost patience.
    fn is_slow(&self, now: Timestamp, since: Timestamp) -> bool {
        let is_late = |at: Timestamp| self.patience.is_late(now - at);
        is_late(since.max(self.contest.won_since())) && !is_late(self.contest.last_write())
    }
}

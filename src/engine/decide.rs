//! The decision: which attempt may start now, or when that may change.

use std::hash::Hash;

use super::{Engine, Timestamp, backoff::seconds, in_flight::Kind, queue::Ready, role::Role, step::Step};

impl<K: Hash + Eq + Clone, W> Engine<K, W> {
    /// What may happen next, at the current time; the heart of the matter.
    pub(super) fn step(&self) -> Step {
        let now = self.clock;
        let Some(oldest) = self.queue.oldest() else { return Step::Idle };
        if let Some(barred) = self.authority.blocks(now) {
            return barred;
        }
        if now < self.outage.until() {
            return Step::Wait(self.outage.until());
        }
        let out = self.in_flight.counted();
        if self.outage.lasts() && out.all > 0 {
            return self.when_a_slot_is_free();
        }
        match self.contest.role() {
            Role::Election if now < self.election => Step::Wait(self.election),
            Role::Election if out.all > 0 => self.when_a_slot_is_free(),
            Role::Election => Step::Run(oldest, Kind::Probe { suspicion: false }),
            Role::Leader => {
                let leads = self.contest.leads(now);
                let kind = if leads { Kind::Lead } else { Kind::Probe { suspicion: false } };
                let slots = if leads { self.window.size() } else { 1 };
                if out.all < slots { Step::Run(oldest, kind) } else { self.when_a_slot_is_free() }
            }
            Role::Follower => self.step_as_follower(now),
        }
    }

    fn step_as_follower(&self, now: Timestamp) -> Step {
        if self.in_flight.counted().all >= self.config.concurrency {
            return self.when_a_slot_is_free();
        }
        let common = match self.queue.oldest_common() {
            Some(oldest) => self.step_with_common(now, oldest),
            None => Step::Idle,
        };
        match (self.queue.oldest_adopted(), common) {
            // Whichever is older, so that a stream of work for our own keys starves no other.
            (Some(own), Step::Run(other, kind)) if other < own => Step::Run(other, kind),
            // Nobody holds the lease: a key of our own wins it as well as any.
            (Some(own), _) if self.contest.lease_end() <= now && self.in_flight.counted().all == 0 => {
                Step::Run(own, Kind::Probe { suspicion: false })
            }
            (Some(own), _) => Step::Run(own, Kind::Adopted),
            (None, common) => common,
        }
    }

    /// What a follower may do with its oldest key that is not its own.
    fn step_with_common(&self, now: Timestamp, oldest: Ready) -> Step {
        let out = self.in_flight.counted();
        if out.all > out.own {
            return self.when_a_slot_is_free();
        }
        let patience = self.patience.current();
        let probe = self.may_probe(oldest).min(oldest.since.max(self.contest.last_sign()) + patience);
        if probe <= now {
            return Step::Run(oldest, Kind::Probe { suspicion: now < self.contest.lease_end() });
        }
        // The leader did what was wanted a whole patience after this key: it lives, and passed this one over. What it did for
        // older wants says nothing of the kind: it may be slow, and a write beside it would depose it; or that was the last
        // it did, and a write beside the dead would look like its sign of life. Nor does the age of a key from before it led, or
        // was heard again: it gets its time.
        let patience = if self.queue.was_adopted(oldest.slot) {
            self.patience.yielding()
        } else if self.queue.holds_adopted() {
            self.patience.unspread()
        } else {
            patience
        };
        if oldest.since.max(self.contest.signs_since()) + patience <= self.contest.reached() {
            Step::Run(oldest, Kind::Overdue)
        } else {
            Step::Wait(probe)
        }
    }

    /// When a follower may compete for the lease with its oldest key, if nothing is wrong with the leader: when the lease
    /// has ended, and fresh work had the time to be done by the incumbent.
    fn may_probe(&self, oldest: Ready) -> Timestamp {
        if self.contest.expired_by_caller() {
            return self.contest.lease_end();
        }
        let echoes = self.echoes(self.config.tuning.head_start_echoes).as_secs_f64();
        let head_start = seconds(echoes * (1.0 + self.config.jitter * self.patience.place()));
        self.contest.lease_end().max(oldest.since + head_start)
    }

    fn when_a_slot_is_free(&self) -> Step {
        self.in_flight.next_deadline().map_or(Step::Idle, Step::Wait)
    }
}

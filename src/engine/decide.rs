//! The decision: which attempt may start now, or when that may change.

use std::hash::Hash;

use super::{
    Engine, backoff::seconds, contest::Role, in_flight::Kind, queue::Ready, step::Step, time::Timestamp,
};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Returns what may happen next at the current time. All rules meet here.
    pub(super) fn step(&self) -> Step {
        let now = self.clock;
        let Some(oldest) = self.queue.oldest() else { return Step::Idle };
        // An election comes first: without a leadership of ours, no rule below permits an attempt.
        if let Some(blocked) = self.authority.blocks(now) {
            return blocked;
        }
        if now < self.outage.until() {
            return Step::Wait(self.outage.until());
        }
        let out = self.in_flight.counted();
        // After the pause of an outage, one attempt tests whether the store is back; the others
        // wait for its answer, or they would all time out together.
        if self.outage.lasts() && out.all > 0 {
            return self.when_a_slot_is_free();
        }
        match self.contest.role() {
            Role::Election if now < self.election => Step::Wait(self.election),
            // A replica that competes has one attempt in flight at a time (rule 1).
            Role::Election if out.all > 0 => self.when_a_slot_is_free(),
            Role::Election => Step::Run(oldest, Kind::Probe { suspicion: false }),
            Role::Leader => {
                // A leader whose lease has run out is the incumbent: it competes like the others,
                // but needs no delay.
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
            // The older key goes first, so that a stream of jobs for adopted keys starves no other
            // key.
            (Some(own), Step::Run(other, kind)) if other < own => Step::Run(other, kind),
            // Nobody holds the lease: an adopted key wins it as well as any other.
            (Some(own), _) if self.contest.lease_end() <= now && self.in_flight.counted().all == 0 => {
                Step::Run(own, Kind::Probe { suspicion: false })
            }
            (Some(own), _) => Step::Run(own, Kind::Adopted),
            (None, common) => common,
        }
    }

    /// Returns what a follower may do with its oldest key that it has not adopted.
    fn step_with_common(&self, now: Timestamp, oldest: Ready) -> Step {
        let out = self.in_flight.counted();
        // Attempts of adopted keys are no probes, so they do not hold one up.
        if out.all > out.own {
            return self.when_a_slot_is_free();
        }
        let patience = self.patience.current();
        // A sign of life restarts the wait: the leader may be busy with other keys.
        let probe = self.may_probe(oldest).min(oldest.since.max(self.contest.last_sign()) + patience);
        if probe <= now {
            return Step::Run(oldest, Kind::Probe { suspicion: now < self.contest.lease_end() });
        }
        // The leader served a request that is younger than this key's by a whole patience: it is
        // alive and skips this key. Service of older requests proves nothing. The leader may be
        // slow, and a write beside it would depose it; or it may have died just after, and a write
        // beside the dead would look like its sign of life. A key from before the leader took over,
        // or was heard again, gets its time from that moment on.
        //
        // A key whose adoption expired waits longest, so that a replica that wants it takes it over
        // first. A replica with adopted keys waits shortest, so that skipped keys gather in few
        // hands.
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

    /// Returns when a follower may compete for the lease with its oldest key, if the leader is
    /// healthy: the lease has ended, and the incumbent had a head start with the job.
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

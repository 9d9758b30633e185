//! The decision: which attempt may start now, or when that may change.

use std::hash::Hash;

use super::{
    Engine,
    backoff::seconds,
    contest::Role,
    in_flight::Kind,
    queue::{Class, Ready},
    step::Step,
    time::Timestamp,
};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Returns what may happen next at the current time. All rules meet here.
    pub(super) fn step(&self) -> Step {
        if !self.queue.is_any_ready() {
            return Step::Idle;
        }
        // An election comes first: without a leadership of ours, no rule below permits an attempt.
        if let Some(blocked) = self.authority.blocks(self.clock) {
            return blocked;
        }
        // Keys that failed last stand behind the others, however old they are (rule 2).
        match self.step_of(Class::Clean) {
            Step::Run(ready, kind) => Step::Run(ready, kind),
            clean => clean.or(self.step_of(Class::Failed)),
        }
    }

    /// Returns what the ready keys of a class may do.
    fn step_of(&self, class: Class) -> Step {
        let now = self.clock;
        let Some(first) = self.queue.first(class) else { return Step::Idle };
        if now < self.outage.until(class) {
            return Step::Wait(self.outage.until(class));
        }
        // After the pause of an outage, one attempt tests whether the store is back; the others
        // wait for its answer, or they would all time out together.
        if self.outage.lasts() && !self.has_slot(class, 1) {
            return self.when_a_slot_is_free();
        }
        let (slots, kind) = match self.contest.role() {
            Role::Election if now < self.election => return Step::Wait(self.election),
            // A leader whose lease has run out is the incumbent: it competes like the others,
            // but needs no delay.
            Role::Leader if self.contest.leads(now) => (self.window.size(), Kind::Lead),
            // A replica that competes has one attempt in flight at a time (rule 1).
            Role::Election | Role::Leader => (1, Kind::Probe { suspicion: false }),
            Role::Follower => return self.step_as_follower(class),
        };
        if !self.has_slot(class, slots) {
            return self.when_a_slot_is_free();
        }
        Step::Run(self.youngest(class).unwrap_or(first), kind)
    }

    /// Returns the youngest key, if it goes before the oldest.
    fn youngest(&self, class: Class) -> Option<Ready> {
        let takes_youngest =
            class == Class::Clean && self.outage.takes_youngest(self.clock, self.config.retry_interval);
        takes_youngest.then(|| self.queue.youngest_fresh()).flatten()
    }

    /// Returns whether a key of this class may have one of so many slots. Keys that failed last hold
    /// up to a quarter of them, and hold up no other key: they count for themselves only.
    fn has_slot(&self, class: Class, slots: usize) -> bool {
        let out = self.in_flight.counted();
        let in_class = match class {
            Class::Clean => out.clean() < slots,
            Class::Failed => out.all < slots && out.failed < (slots / 4).max(1),
        };
        in_class && out.all < self.config.concurrency
    }

    fn step_as_follower(&self, class: Class) -> Step {
        if !self.has_slot(class, self.config.concurrency) {
            return self.when_a_slot_is_free();
        }
        let common = match self.queue.first_common(class) {
            Some(first) => self.step_with_common(class, first),
            None => Step::Idle,
        };
        let common = match (common, self.youngest(class)) {
            (Step::Run(first, kind), Some(youngest)) => match self.step_with_common(class, youngest) {
                Step::Run(youngest, kind) => Step::Run(youngest, kind),
                _ => Step::Run(first, kind),
            },
            (common, _) => common,
        };
        match (self.queue.first_adopted(class), common) {
            // The older key goes first, so that a stream of jobs for adopted keys starves no other
            // key.
            (Some(own), Step::Run(other, kind)) if other < own => Step::Run(other, kind),
            // Nobody holds the lease: an adopted key wins it as well as any other.
            (Some(own), _) if self.contest.lease_end() <= self.clock && self.has_slot(class, 1) => {
                Step::Run(own, Kind::Probe { suspicion: false })
            }
            (Some(own), _) => Step::Run(own, Kind::Adopted),
            (None, common) => common,
        }
    }

    /// Returns what a follower may do with the first key of a class that it has not adopted.
    fn step_with_common(&self, class: Class, oldest: Ready) -> Step {
        let now = self.clock;
        let out = self.in_flight.counted();
        // Attempts of adopted keys are no probes, so they do not hold one up.
        let probes = match class {
            Class::Clean => out.clean_probes(),
            Class::Failed => out.all - out.own,
        };
        if probes > 0 {
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

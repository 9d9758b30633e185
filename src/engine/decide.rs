//! The decision: which attempt may start now, or when that may change.

use std::{hash::Hash, time::Duration};

use super::{
    Engine,
    backoff::seconds,
    contest::Role,
    in_flight::Kind,
    incumbent::Incumbent,
    queue::{Class, Ready},
    step::{Obstacle, Step},
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
        let steps = Incumbent::ALL.map(|incumbent| self.step_in(incumbent, class));
        steps.into_iter().fold(Step::Idle, Step::or)
    }

    /// Returns what the ready keys of an incumbent and a class may do. The oldest decides, because
    /// no younger one may do more.
    fn step_in(&self, incumbent: Incumbent, class: Class) -> Step {
        let Some(first) = self.queue.first(incumbent, class) else { return Step::Idle };
        if let Some(paused) = self.outage_step(class) {
            return paused;
        }
        match (self.step_with(incumbent, class, first), self.youngest(incumbent, class)) {
            (Step::Run(first, kind), Some(youngest)) => match self.step_with(incumbent, class, youngest) {
                Step::Run(youngest, kind) => Step::Run(youngest, kind),
                _ => Step::Run(first, kind),
            },
            (step, _) => step,
        }
    }

    /// Returns what may be done with one ready key, in its turn.
    pub(super) fn step_of_key(&self, incumbent: Incumbent, class: Class, key: Ready) -> Step {
        let own = self.outage_step(class).unwrap_or_else(|| self.step_with(incumbent, class, key));
        match (own, self.step_in(incumbent, class)) {
            // Of keys that failed, the first is not always the oldest.
            (Step::Run(..), Step::Wait(until, obstacle)) => Step::Wait(until, obstacle),
            (own, _) => own,
        }
    }

    /// Returns the step that an outage imposes, if it forbids attempts.
    fn outage_step(&self, class: Class) -> Option<Step> {
        if self.clock < self.outage.until(class) {
            return Some(Step::Wait(self.outage.until(class), Obstacle::Outage));
        }
        // After the pause of an outage, one attempt tests whether the store is back; the others
        // wait for its answer, or they would all time out together.
        let out = self.in_flight.counted();
        let tests = if class == Class::Clean { out.total_clean() } else { out.total() };
        (self.outage.lasts() && tests > 0).then(|| self.when_an_attempt_ends(Obstacle::Outage))
    }

    /// Returns the youngest key, if it goes before the oldest.
    fn youngest(&self, incumbent: Incumbent, class: Class) -> Option<Ready> {
        let takes_youngest =
            class == Class::Clean && self.outage.takes_youngest(self.clock, self.config.retry_interval);
        takes_youngest.then(|| self.queue.youngest_fresh(incumbent)).flatten()
    }

    /// Returns what may be done with one key.
    fn step_with(&self, incumbent: Incumbent, class: Class, key: Ready) -> Step {
        let now = self.clock;
        let leads = self.contest.leads(now);
        // In an election that is held elsewhere, keys have no incumbents.
        let incumbent = if self.authority.is_by_work() { incumbent } else { Incumbent::Nobody };
        match (incumbent, self.contest.role()) {
            // Nobody holds the lease: our work wins it.
            (Incumbent::Us, Role::Election | Role::Follower) if self.contest.lease_end() <= now => self
                .run(class, key, Kind::Probe { silent: false, suspicion: false }, 1)
                .or(self.run(class, key, Kind::Own, self.config.concurrency)),
            (Incumbent::Us, _) => self.run(class, key, Kind::Own, self.config.concurrency),
            (Incumbent::Nobody, _) if leads => self.run(class, key, Kind::Lead, self.window.size()),
            (Incumbent::Nobody, Role::Election) if now < self.election => {
                Step::Wait(self.election, Obstacle::ElectionDelay)
            }
            // A leader whose lease has run out is the incumbent of the lease: it competes like the
            // others, but needs no delay.
            (Incumbent::Nobody, Role::Election | Role::Leader) => {
                self.run(class, key, Kind::Probe { silent: false, suspicion: false }, 1)
            }
            (Incumbent::Nobody, Role::Follower) => {
                // The leader served a request that is younger than this key's by a whole patience: it
                // skips this key, and so we need a leader of our own. Service of older requests proves
                // nothing, because a slow leader may be working through a long queue.
                let is_skipped = self.left_at(key, self.patience.current()) <= self.contest.reached();
                self.probe(class, key, if is_skipped { now } else { self.may_probe(key) }, Obstacle::Leader)
            }
            (Incumbent::Other, _) => {
                let silent_at = if leads { Timestamp::MAX } else { self.silent_at(key) };
                let left_at = self.left_at(key, self.patience.for_one_key());
                // If nobody was heard of lately, we shall soon know whether they live.
                let heard_until = self.contest.last_sign() + self.patience.unspread();
                if now.max(left_at) > heard_until && !leads || silent_at <= now {
                    self.probe(class, key, silent_at, Obstacle::Incumbent)
                } else if left_at <= now {
                    self.run(class, key, Kind::Takeover, self.takeovers.size())
                } else {
                    Step::Wait(left_at.min(silent_at), Obstacle::Incumbent)
                }
            }
        }
    }

    /// Returns the step of a key with which we may probe for the lease from a time on, because of an
    /// obstacle until then.
    fn probe(&self, class: Class, key: Ready, from: Timestamp, until_then: Obstacle) -> Step {
        if self.clock < from {
            return Step::Wait(from, until_then);
        }
        let silent = self.silent_at(key) <= self.clock;
        let suspicion = self.clock < self.contest.lease_end();
        self.run(class, key, Kind::Probe { silent, suspicion }, 1)
    }

    /// Returns when others have left a key pending for so long, or twice that if we have keys of our
    /// own to write: we leave those of others to replicas that have none.
    ///
    /// After a silence, another replica may do the work of one that died. It gets our whole patience,
    /// but not for ever.
    fn left_at(&self, key: Ready, patience: Duration) -> Timestamp {
        let is_busy = self.queue.first(Incumbent::Us, Class::Clean).is_some();
        let patiences = if is_busy { self.config.tuning.busy_patiences } else { 1 };
        let whole = self.patience.current().saturating_mul(patiences);
        (key.since + patience.saturating_mul(patiences))
            .max(self.contest.signs_since() + whole)
            .min(key.since + whole.saturating_mul(2))
    }

    /// Runs an attempt if one of so many slots is free.
    ///
    /// Keys that failed last hold up to a quarter of them, and hold up no other key: they count for
    /// themselves only.
    fn run(&self, class: Class, key: Ready, kind: Kind, slots: usize) -> Step {
        let out = self.in_flight.counted();
        let (group, concurrency) = (kind.group(), self.config.concurrency);
        let is_free = match class {
            Class::Clean => out.clean(group) < slots,
            Class::Failed => {
                out.all(group) < slots
                    && out.failed(group) < (slots / 4).max(1)
                    && out.total_failed() < (concurrency / 4).max(1)
            }
        };
        if is_free && out.total() < concurrency {
            Step::Run(key, kind)
        } else {
            self.when_an_attempt_ends(Obstacle::Slot)
        }
    }

    /// Returns when a key has waited for our patience without a sign of another replica's life. That
    /// restarts the wait: the other may be busy with other keys.
    fn silent_at(&self, key: Ready) -> Timestamp {
        key.since.max(self.contest.last_sign()) + self.patience.current()
    }

    /// Returns when a follower may compete for the lease with a key that is nobody's: the leader is
    /// silent, or the lease has ended and its last holder had a head start with the job.
    fn may_probe(&self, key: Ready) -> Timestamp {
        if self.contest.expired_by_caller() {
            return self.contest.lease_end();
        }
        let echoes = self.echoes(self.config.tuning.head_start_echoes).as_secs_f64();
        let head_start = seconds(echoes * (1.0 + self.config.jitter * self.patience.place()));
        self.contest.lease_end().max(key.since + head_start).min(self.silent_at(key))
    }

    fn when_an_attempt_ends(&self, until_then: Obstacle) -> Step {
        self.in_flight.next_deadline().map_or(Step::Idle, |deadline| Step::Wait(deadline, until_then))
    }
}

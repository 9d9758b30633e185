//! The decision: which attempt may start now, or when that may change.

use std::{hash::Hash, time::Duration};

use super::{
    Engine,
    agenda::{Look, Run},
    backoff::seconds,
    contest::Role,
    earliest,
    in_flight::Kind,
    incumbent::Incumbent,
    queue::{Class, Ready},
    roster::Turn,
    shard::Shard,
    step::{Obstacle, Step},
    time::Timestamp,
};

impl<K: Hash + Eq + Clone, J> Engine<K, J> {
    /// Returns what may start at the current time. All rules meet here.
    pub(super) fn next_attempt(&mut self) -> Option<(Ready, Kind)> {
        self.look_at_due();
        // Keys that failed last stand behind the others, however old they are (rule 2).
        self.next_of(Class::Clean).or_else(|| self.next_of(Class::Failed))
    }

    fn next_of(&mut self, class: Class) -> Option<(Ready, Kind)> {
        while let Some(first) = self.agenda.first(class)
            && self.obstacle(class).is_none()
        {
            let takes_youngest =
                class == Class::Clean && self.outage.takes_youngest(self.clock, self.config.retry_interval);
            let last = takes_youngest.then(|| self.agenda.last(class)).flatten();
            let shard = last.unwrap_or(first);
            if let Step::Run(ready, kind) = self.step_of(shard, class, takes_youngest) {
                return Some((ready, kind));
            }
            // It could run when it was looked at, and time has passed since.
            self.look_at(shard);
        }
        None
    }

    /// Returns when something may start without an event; a time that has come if it may now.
    pub(super) fn next_step(&self) -> Option<Timestamp> {
        let runs = Class::ALL.map(|class| {
            self.agenda.first(class)?;
            self.obstacle(class).map_or(Some(self.clock), |obstacle| obstacle.time())
        });
        earliest([runs[0], runs[1], self.agenda.next_time()])
    }

    /// Looks at all shards that an event touched, or whose time has come.
    pub(super) fn look_at_due(&mut self) {
        while let Some(shard) = self.agenda.next_look(self.clock) {
            self.look_at(shard);
        }
    }

    fn look_at(&mut self, shard: u16) {
        // An election comes first: without a leadership of ours, no rule below permits an attempt.
        let is_blocked = self.authority.blocks(self.clock);
        let step = |class| if is_blocked { Step::Idle } else { self.step_of(shard, class, false) };
        let steps = Class::ALL.map(step);
        let led_until = self.shards[usize::from(shard)].led_until(self.clock);
        let look = Look {
            until: earliest([steps[0].time(), steps[1].time(), led_until]),
            is_led: led_until.is_some(),
            runs: steps.map(|step| match step {
                Step::Run(ready, _) => Run::Some(ready),
                Step::Wait(..) | Step::Idle => Run::None,
            }),
        };
        self.agenda.note(shard, look);
    }

    /// Returns what the ready keys of a shard and a class may do, all other shards left aside.
    fn step_of(&self, shard: u16, class: Class, takes_youngest: bool) -> Step {
        let steps = Incumbent::ALL.map(|incumbent| self.step_in(shard, incumbent, class, takes_youngest));
        steps.into_iter().fold(Step::Idle, Step::or)
    }

    /// Returns what the ready keys of a shard, an incumbent and a class may do. The oldest decides,
    /// because no younger one may do more.
    fn step_in(&self, shard: u16, incumbent: Incumbent, class: Class, takes_youngest: bool) -> Step {
        let Some(first) = self.queue.first(shard, incumbent, class) else { return Step::Idle };
        let youngest = takes_youngest.then(|| self.queue.youngest_fresh(shard, incumbent)).flatten();
        match (self.step_with(shard, incumbent, class, first), youngest) {
            (Step::Run(first, kind), Some(youngest)) => {
                match self.step_with(shard, incumbent, class, youngest) {
                    Step::Run(youngest, kind) => Step::Run(youngest, kind),
                    _ => Step::Run(first, kind),
                }
            }
            (step, _) => step,
        }
    }

    /// Returns what may be done with one ready key, in its turn.
    pub(super) fn step_of_key(&self, shard: u16, incumbent: Incumbent, class: Class, key: Ready) -> Step {
        if let Some(obstacle) = self.obstacle(class) {
            return obstacle;
        }
        let own = self.step_with(shard, incumbent, class, key);
        match (own, self.step_in(shard, incumbent, class, false)) {
            // Of keys that failed, the first is not always the oldest.
            (Step::Run(..), Step::Wait(until, obstacle)) => Step::Wait(until, obstacle),
            (own, _) => own,
        }
    }

    /// Returns the step that something imposes on all keys of a class, if it forbids attempts: an
    /// outage, or attempts that hold all slots.
    fn obstacle(&self, class: Class) -> Option<Step> {
        self.outage_step(class).or_else(|| {
            let (out, concurrency) = (self.in_flight.counted(), self.config.concurrency);
            let is_full = out.total() >= concurrency
                || class == Class::Failed && out.total_failed() >= (concurrency / 4).max(1);
            is_full.then(|| self.when_an_attempt_ends(Obstacle::Slot))
        })
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

    /// Returns what may be done with one key.
    fn step_with(&self, number: u16, incumbent: Incumbent, class: Class, key: Ready) -> Step {
        let now = self.clock;
        let shard = &self.shards[usize::from(number)];
        let leads = shard.contest.leads(now);
        // In an election that is held elsewhere, keys have no incumbents.
        let incumbent = if self.authority.is_by_work() { incumbent } else { Incumbent::Nobody };
        match (incumbent, shard.contest.role()) {
            // Nobody holds the lease: our work wins it.
            (Incumbent::Us, Role::Election | Role::Follower) if shard.contest.lease_end() <= now => self
                .run(shard, class, key, Kind::Probe { silent: false, suspicion: false }, 1)
                .or(self.run(shard, class, key, Kind::Own, self.config.concurrency)),
            (Incumbent::Us, _) => self.run(shard, class, key, Kind::Own, self.config.concurrency),
            (Incumbent::Nobody, _) if leads => self.run(shard, class, key, Kind::Lead, shard.window.size()),
            (Incumbent::Nobody, Role::Election) if now < shard.election => {
                Step::Wait(shard.election, Obstacle::ElectionDelay)
            }
            // A leader whose lease has run out is the incumbent of the lease: it competes like the
            // others, but needs no delay, unless it is another's turn.
            (Incumbent::Nobody, Role::Election | Role::Leader) if shard.turn != Turn::Other => {
                self.run(shard, class, key, Kind::Probe { silent: false, suspicion: false }, 1)
            }
            (Incumbent::Nobody, _) => {
                // The leader served a request that is younger than this key's by a whole patience: it
                // skips this key, and so we need a leader of our own. Service of older requests proves
                // nothing, because a slow leader may be working through a long queue.
                let patience = shard.patience.current();
                let is_skipped = self.left_at(number, key, patience) <= shard.contest.reached();
                let from = if is_skipped { self.may_rescue(shard, key) } else { self.may_probe(shard, key) };
                self.probe(shard, class, key, from, Obstacle::Leader)
            }
            (Incumbent::Other, _) => {
                let silent_at = if leads { Timestamp::MAX } else { Self::silent_at(shard, key) };
                let left_at = self.left_at(number, key, shard.patience.for_one_key());
                // If nobody was heard of lately, we shall soon know whether they live.
                let heard_until = shard.contest.last_sign() + shard.patience.unspread();
                if now.max(left_at) > heard_until && !leads || silent_at <= now {
                    self.probe(shard, class, key, silent_at, Obstacle::Incumbent)
                } else if left_at <= now {
                    self.run(shard, class, key, Kind::Takeover, shard.takeovers.size())
                } else {
                    Step::Wait(left_at.min(silent_at), Obstacle::Incumbent)
                }
            }
        }
    }

    /// Returns the step of a key with which we may probe for the lease from a time on, because of an
    /// obstacle until then.
    fn probe(&self, shard: &Shard, class: Class, key: Ready, from: Timestamp, until_then: Obstacle) -> Step {
        if self.clock < from {
            return Step::Wait(from, until_then);
        }
        let silent = Self::silent_at(shard, key) <= self.clock;
        let suspicion = self.clock < shard.contest.lease_end();
        self.run(shard, class, key, Kind::Probe { silent, suspicion }, 1)
    }

    /// Returns when others have left a key pending for so long, or twice that if we have keys of our
    /// own to write: we leave those of others to replicas that have none.
    ///
    /// After a silence, another replica may do the work of one that died. It gets our whole patience,
    /// but not for ever.
    fn left_at(&self, number: u16, key: Ready, patience: Duration) -> Timestamp {
        let shard = &self.shards[usize::from(number)];
        let is_busy = self.queue.first(number, Incumbent::Us, Class::Clean).is_some();
        let patiences = if is_busy { self.config.tuning.busy_patiences } else { 1 };
        let whole = shard.patience.current().saturating_mul(patiences);
        (key.since + patience.saturating_mul(patiences))
            .max(shard.contest.signs_since() + whole)
            .min(key.since + whole.saturating_mul(2))
    }

    /// Runs an attempt if one of so many slots is free.
    ///
    /// Keys that failed last hold up to a quarter of them, and hold up no other key: they count for
    /// themselves only.
    fn run(&self, shard: &Shard, class: Class, key: Ready, kind: Kind, slots: usize) -> Step {
        let (out, group) = (&shard.counted, kind.group());
        let is_free = match class {
            Class::Clean => out.clean(group) < slots,
            Class::Failed => out.all(group) < slots && out.failed(group) < (slots / 4).max(1),
        };
        if is_free { Step::Run(key, kind) } else { self.when_an_attempt_ends(Obstacle::Slot) }
    }

    /// Returns when a key has waited for our patience without a sign of another replica's life. That
    /// restarts the wait: the other may be busy with other keys.
    fn silent_at(shard: &Shard, key: Ready) -> Timestamp {
        key.since.max(shard.contest.last_sign()) + shard.patience.current()
    }

    /// Returns when a follower may compete for the lease with a key that is nobody's: the leader is
    /// silent, or the lease has ended and its last holder had a head start with the job.
    fn may_probe(&self, shard: &Shard, key: Ready) -> Timestamp {
        if shard.contest.expired_by_caller() || shard.turn == Turn::Us {
            return shard.contest.lease_end().min(Self::silent_at(shard, key));
        }
        let echoes = self.echoes(self.config.tuning.head_start_echoes).as_secs_f64();
        let head_start = seconds(echoes * (1.0 + self.config.jitter * shard.patience.place()));
        shard.contest.lease_end().max(key.since + head_start).min(Self::silent_at(shard, key))
    }

    /// Returns when a follower may compete for the lease with a key that is skipped. One write shows
    /// that to all, so each leaves the others a time of its own to be first (rule 5), and again after
    /// each skipped key that one of them writes; but not for ever.
    fn may_rescue(&self, shard: &Shard, key: Ready) -> Timestamp {
        let delay = self.echoes(self.config.tuning.election_echoes).as_secs_f64();
        let latest =
            key.since + shard.patience.current().saturating_mul(2 * self.config.tuning.busy_patiences);
        (shard.contest.skips_seen() + seconds(delay * shard.patience.place())).min(latest)
    }

    fn when_an_attempt_ends(&self, until_then: Obstacle) -> Step {
        self.in_flight.next_deadline().map_or(Step::Idle, |deadline| Step::Wait(deadline, until_then))
    }
}

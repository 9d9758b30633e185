//! The reference for random runs. It knows nothing of leases, only where each job is.
//!
//! The property tests and the fuzzer run it. It checks after every step that each job is in one
//! place, and that role and lease moved only where the event may move them.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

pub(crate) type Key = u8;
type Job = u32;

/// One step of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Try(Key),
    /// One of the attempts in flight finishes. The number selects it, modulo their count.
    Outcome(usize, Verdict),
    /// One of the attempts in flight panics.
    Panic(usize),
    /// The attempt that ended last reports once more.
    OutcomeAgain(Verdict),
    Extend(Key, Option<u64>),
    Observe(Option<u64>),
    Remove(Key),
    Expire,
    /// Reported by a clock that reads `now / divisor`. Above 1 it went backwards.
    Echo {
        divisor: u64,
        echo: Duration,
    },
    /// Reported by a clock as in `Echo`.
    EchoHint {
        divisor: u64,
        round_trip: Duration,
    },
    /// From now on the election decides. We are elected for this long.
    Elected(Duration),
    NotElected,
    /// Time passes. Attempts in flight hang.
    Pass(Duration),
    /// Time passes until the next deadline of the engine.
    Wake,
    Drain,
}

/// The part of an engine's state that events move, apart from the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Standing {
    pub(super) role: Role,
    pub(super) role_generation: u64,
    pub(super) epoch: u64,
    pub(super) losses: u32,
    pub(super) lease_end: Timestamp,
    pub(super) window: usize,
    pub(super) patience: Duration,
}

impl Standing {
    pub(super) fn of<K: Hash + Eq + Clone, W>(engine: &Engine<K, W>) -> Self {
        Self {
            role: engine.role(),
            role_generation: engine.role_generation(),
            epoch: engine.epoch(),
            losses: engine.losses(),
            lease_end: engine.lease_end(),
            window: engine.window(),
            patience: engine.patience(),
        }
    }
}

/// An attempt in flight.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) id: AttemptId,
    pub(super) key: Key,
    pub(super) job: Job,
    since: Timestamp,
    role_generation: u64,
    deadline: Timestamp,
    /// Its key was cleared meanwhile.
    cleared: bool,
}

/// An engine and the reference beside it.
#[derive(Debug)]
pub(crate) struct Run {
    pub(super) engine: Engine<Key, Job>,
    pub(super) now: Timestamp,
    /// The engine is polled after every event, as the driver does, and not on waking only.
    eager: bool,
    jobs: Job,
    /// The time since which each pending key is unfulfilled, and its job.
    pub(super) pending: BTreeMap<Key, (Timestamp, Job)>,
    pub(super) out: Vec<Out>,
    returned: BTreeSet<Job>,
    attempts: BTreeMap<Job, u32>,
    /// Keys with a deadline of their own, because an attempt of theirs is to be repeated.
    repeating: BTreeSet<Key>,
    /// The keys that failed since the last answer.
    unanswered: BTreeSet<Key>,
    /// The attempt that ended last.
    ended: Option<AttemptId>,
    /// Once an election decides: the end of the time for which we are elected.
    elected: Option<Timestamp>,
}

impl Run {
    pub(crate) fn new(config: LeaseConfig, eager: bool) -> Self {
        Self {
            engine: Engine::new(config),
            now: Timestamp::ZERO,
            eager,
            jobs: 0,
            pending: BTreeMap::new(),
            out: Vec::new(),
            returned: BTreeSet::new(),
            attempts: BTreeMap::new(),
            repeating: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            ended: None,
            elected: None,
        }
    }

    /// Returns whether [`Event::OutcomeAgain`] does anything.
    pub(crate) fn has_ended_attempt(&self) -> bool {
        self.ended.is_some()
    }

    pub(crate) fn take(&mut self, event: Event) {
        let before = self.standing();
        match event {
            Event::Try(key) => self.request(key),
            Event::Outcome(which, verdict) => {
                if let Some(out) = self.select(which) {
                    self.end(out, verdict);
                }
            }
            Event::Panic(which) => {
                if let Some(out) = self.select(which) {
                    let returned = self.engine.handle_panic(self.now, out.id, out.job);
                    self.settle(out, true, None, returned);
                }
            }
            Event::OutcomeAgain(verdict) => {
                if let Some(id) = self.ended {
                    self.jobs += 1;
                    let returned = self.engine.handle_outcome(self.now, id, verdict, self.jobs);
                    assert_eq!(returned, Some(self.jobs), "an attempt ends once");
                    self.give_back(returned);
                }
            }
            Event::Extend(key, order) => {
                let job = self.engine.handle_extend(self.now, &key, order);
                self.clear(key, job);
            }
            Event::Observe(order) => self.engine.handle_observe(self.now, &0, order),
            Event::Remove(key) => {
                let job = self.engine.handle_remove(self.now, &key);
                self.clear(key, job);
            }
            Event::Expire => self.engine.handle_expire(self.now),
            Event::Echo { divisor, echo } => self.engine.handle_echo(self.reading(divisor), echo),
            Event::EchoHint { divisor, round_trip } => {
                self.engine.handle_echo_hint(self.reading(divisor), round_trip);
            }
            Event::Elected(time) => {
                let until = self.now + time;
                self.elected = Some(until);
                self.engine.handle_elected(self.now, until);
                assert_eq!(self.engine.is_leader(self.now), until > self.now);
            }
            Event::NotElected => {
                self.elected = Some(Timestamp::ZERO);
                self.engine.handle_not_elected(self.now);
                assert!(!self.engine.is_leader(self.now));
            }
            Event::Pass(time) => self.now = self.now + time,
            Event::Wake => self.now = self.engine.poll_timeout().map_or(self.now, |at| at.max(self.now)),
            Event::Drain => self.drain(),
        }
        self.check_movement(event, before);
        if self.eager || matches!(event, Event::Wake) {
            self.poll();
        }
        self.check();
    }

    pub(super) fn standing(&self) -> Standing {
        Standing::of(&self.engine)
    }

    fn reading(&self, divisor: u64) -> Timestamp {
        Timestamp::from_nanos(self.now.as_nanos() / divisor)
    }

    fn select(&mut self, which: usize) -> Option<Out> {
        let out = (!self.out.is_empty()).then(|| self.out.swap_remove(which % self.out.len()))?;
        self.ended = Some(out.id);
        Some(out)
    }

    pub(super) fn request(&mut self, key: Key) {
        self.jobs += 1;
        let setback = self.engine.explain(self.now, &key).and_then(|explanation| explanation.last_setback);
        let replaced = self.engine.handle_try(self.now, key, self.jobs);
        // A denial has answered the older jobs.
        let older = self.pending.get(&key).filter(|_| setback != Some(Setback::Denied));
        let since = older.map_or(self.now, |&(since, _)| since.min(self.now));
        let known = self.pending.insert(key, (since, self.jobs));
        assert_eq!(replaced, known.map(|(_, job)| job));
        self.give_back(replaced);
    }

    pub(super) fn end(&mut self, out: Out, verdict: Verdict) {
        let before = self.standing();
        let pause = self.engine.outage.until(Class::Failed);
        let failed = verdict.outcome == Outcome::Failed;
        let returned = self.engine.handle_outcome(self.now, out.id, verdict, out.job);
        if out.role_generation != before.role_generation {
            assert_eq!(self.standing(), before, "old news moved something");
            assert!(self.engine.outage.until(Class::Failed) <= pause, "old news started an outage");
        }
        let done = matches!(verdict.outcome, Outcome::Written | Outcome::Unchanged | Outcome::WrittenByOther);
        let anew = match verdict.next {
            Next::RetryAfter(delay) => self.now + delay,
            _ => self.now + self.engine.config().retry_interval(),
        };
        self.note(out.key, failed);
        let newer = self.pending.get(&out.key).copied().filter(|_| verdict.outcome == Outcome::Denied);
        let key = out.key;
        self.settle(out, verdict.next != Next::Done, done.then_some(anew), returned);
        if let Some(newer) = newer {
            self.pending.insert(key, newer);
        }
    }

    /// Notes whether the last attempt of a key failed, and which keys failed since the last answer.
    fn note(&mut self, key: Key, failed: bool) {
        if failed {
            self.unanswered.insert(key);
        } else {
            self.unanswered.clear();
        }
        assert!(!self.engine.outage.lasts() || self.unanswered.len() > 1, "an outage of one key");
    }

    /// Checks where the job of an attempt went that has ended. `anew`: the attempt fulfilled the
    /// request, which counts as a new one from then on.
    fn settle(&mut self, out: Out, again: bool, anew: Option<Timestamp>, returned: Option<Job>) {
        let again = again && !out.cleared;
        if again
            && anew.is_none()
            && let Some((since, _)) = self.pending.get_mut(&out.key)
        {
            *since = out.since;
        }
        if again {
            self.repeating.insert(out.key);
        }
        if again && !self.pending.contains_key(&out.key) {
            assert_eq!(returned, None);
            self.pending.insert(out.key, (anew.unwrap_or(out.since), out.job));
        } else {
            assert_eq!(returned, Some(out.job));
            self.give_back(returned);
        }
    }

    pub(super) fn clear(&mut self, key: Key, job: Option<Job>) {
        assert_eq!(job, self.pending.remove(&key).map(|(_, job)| job));
        self.give_back(job);
        self.out.iter_mut().filter(|out| out.key == key).for_each(|out| out.cleared = true);
        self.repeating.remove(&key);
    }

    fn drain(&mut self) {
        let drained = self.engine.drain();
        let ages: Vec<Timestamp> = drained.iter().map(|(key, _)| self.pending[key].0).collect();
        assert!(ages.is_sorted(), "oldest first");
        for (key, job) in drained {
            assert_eq!(self.pending.remove(&key).map(|(_, job)| job), Some(job));
            self.give_back(Some(job));
        }
        assert!(self.pending.is_empty());
        self.repeating.clear();
    }

    fn give_back(&mut self, job: Option<Job>) {
        if let Some(job) = job {
            assert!(self.returned.insert(job), "job {job} was handed back twice");
        }
    }

    pub(super) fn poll(&mut self) {
        // A probe closes the window.
        let lease = |standing: Standing| Standing { window: 1, ..standing };
        let before = lease(self.standing());
        loop {
            let announced = self.engine.poll_timeout().is_some_and(|at| at <= self.now);
            self.engine.advance(self.now);
            let Some(start) = self.engine.poll_attempt(self.now) else { break };
            assert!(announced, "an attempt that no deadline announced");
            self.start(start);
        }
        assert_eq!(lease(self.standing()), before, "polling moved the lease");
        let timeout = self.engine.poll_timeout();
        assert!(
            timeout.is_none_or(|at| at > self.now) || self.now == Timestamp::MAX,
            "a deadline in the past after polling"
        );
        let barred = |key: &Key| self.out.iter().any(|out| out.key == *key);
        assert!(
            timeout.is_some() || !self.may_work() || self.pending.keys().all(barred),
            "a key that nothing will wake"
        );
        for key in self.pending.keys() {
            let explanation = self.engine.explain(self.now, key).expect("the key is pending");
            assert!(explanation.obstacle.is_some() || self.now == Timestamp::MAX, "{explanation}");
        }
    }

    /// Returns whether no election forbids attempts.
    fn may_work(&self) -> bool {
        self.elected.is_none_or(|until| self.now < until)
    }

    fn start(&mut self, start: Start<Key, Job>) {
        assert!(self.out.iter().all(|out| out.key != start.key), "two attempts of key {}", start.key);
        let (since, job) = self.pending.remove(&start.key).expect("an attempt of a pending job");
        assert_eq!(start.job, job);
        let attempts = self.attempts.entry(job).or_default();
        *attempts += 1;
        assert_eq!(start.number, *attempts);
        assert_eq!(start.epoch, self.engine.epoch());
        assert_eq!(start.deadline, self.now + self.engine.config().attempt_timeout());
        assert!(self.may_work(), "an attempt that the election forbids");
        self.repeating.remove(&start.key);

        let counted = self.engine.in_flight.counted();
        let concurrency = self.engine.config().concurrency();
        assert_eq!(counted.total(), self.in_time().count() + 1);
        assert!(counted.total() <= concurrency && counted.total_failed() <= (concurrency / 4).max(1));
        let flight = self.engine.in_flight.newest().expect("an attempt that has just started");
        let group = flight.kind.group();
        let most = match flight.kind {
            Kind::Lead => self.engine.window(),
            Kind::Probe { .. } => 1,
            Kind::Takeover => self.engine.shards[0].takeovers.size(),
            Kind::Own => concurrency,
        };
        assert!(flight.kind != Kind::Lead || self.engine.is_leader(self.now));
        // An attempt of a key that failed last takes its place in the window, and holds none.
        let (class, counts, all) = match flight.failed_before {
            false => (Class::Clean, counted.clean(group), counted.total_clean()),
            true => (Class::Failed, counted.all(group), counted.total()),
        };
        assert!(counts <= most, "{counted:?} in flight, {most} allowed");
        let outage = &self.engine.outage;
        assert!(self.now >= outage.until(class), "an attempt during the pause of an outage");
        assert!(!outage.lasts() || all == 1, "one attempt probes a store that was down");
        self.out.push(Out {
            id: start.id,
            key: start.key,
            job,
            since,
            role_generation: self.engine.role_generation(),
            deadline: start.deadline,
            cleared: false,
        });
    }

    /// The attempts in flight before their deadline.
    fn in_time(&self) -> impl Iterator<Item = &Out> {
        self.out.iter().filter(|out| out.deadline > self.now)
    }

    /// Only some events move role, losses and lease, and only in their direction.
    fn check_movement(&self, event: Event, before: Standing) {
        let after = self.standing();
        assert!(after.losses <= before.losses.saturating_add(1), "one loss is one step");
        assert!(after.role_generation >= before.role_generation && after.epoch - before.epoch <= 1);
        match event {
            Event::Elected(_) | Event::NotElected => {}
            Event::Outcome(_, verdict) if verdict.outcome == Outcome::Written => {
                assert!(after.role == before.role || after.role == Role::Leader);
                if before.role == Role::Leader {
                    assert!(after.lease_end >= before.lease_end && after.epoch == before.epoch);
                }
                assert_eq!(after.epoch - before.epoch, u64::from(after.role != before.role));
            }
            Event::Outcome(_, Verdict { outcome: Outcome::WrittenByOther, .. })
            | Event::Extend(..)
            | Event::Observe(_) => {
                assert!(after.role == before.role || after.role == Role::Follower);
                assert_eq!(after.epoch, before.epoch);
            }
            Event::Expire if self.elected.is_none() => {
                let lease_end = before.lease_end.min(self.now);
                assert_eq!(after, Standing { lease_end, ..before });
            }
            _ => {
                let Standing { window, patience, .. } = after;
                assert_eq!(after, Standing { window, patience, ..before }, "{event:?} moved the lease");
                assert!(window <= before.window);
            }
        }
    }

    pub(super) fn check(&self) {
        let engine = &self.engine;
        let config = engine.config();
        assert_eq!((engine.len(), engine.in_flight()), (self.pending.len(), self.out.len()));
        assert_eq!(
            self.pending.len() + self.out.len() + self.returned.len(),
            self.jobs as usize,
            "a job was lost"
        );
        assert!(
            self.pending.values().all(|(_, job)| !self.returned.contains(job))
                && self.out.iter().all(|out| !self.returned.contains(&out.job)),
            "a job is in two places"
        );

        assert!(self.in_time().count() <= config.concurrency());
        assert!((1..=config.concurrency()).contains(&engine.window()));
        assert!(engine.patience() <= config.term());

        assert!(!engine.is_leader(engine.lease_end()));
        let leads = engine.role() == Role::Leader && self.now < engine.lease_end();
        assert_eq!(engine.is_leader(self.now), leads);
        if self.elected.is_none() {
            // The backoff ends a tenth past the term at most, that of a deposed leader half a term
            // later.
            let longest = config.term().saturating_mul(17) / 10;
            assert!(engine.lease_end() <= self.now + longest + Duration::from_micros(1));
        }
        let counters = engine.counters();
        assert_eq!((counters.won, counters.won + counters.lost), (engine.epoch(), engine.role_generation()));
        assert_eq!(counters.attempts, self.attempts.values().map(|&n| u64::from(n)).sum::<u64>());

        let mut since: BTreeMap<Key, Timestamp> =
            self.pending.iter().map(|(key, job)| (*key, job.0)).collect();
        since.extend(self.out.iter().filter(|out| !out.cleared).map(|out| (out.key, out.since)));
        for (key, since) in &since {
            let explanation = engine.explain(self.now, key).expect("the key is pending");
            assert_eq!(explanation.pending_for, self.now - *since);
            assert_eq!(explanation.running_for.is_some(), self.out.iter().any(|out| out.key == *key));
        }
        for out in self.out.iter().filter(|out| out.cleared && !since.contains_key(&out.key)) {
            assert_eq!(engine.explain(self.now, &out.key), None);
        }
        assert_eq!(engine.oldest_pending().map(|(_, since)| since), since.values().min().copied());

        if self.repeating.is_empty() {
            assert_eq!(engine.queue.next_due(), None, "keys that wait for the lease share its deadline");
        }
    }

    /// Ends the run from any state: hung attempts return, we are elected if elections decide, and
    /// every attempt succeeds. All jobs must come back within `most_wakes` deadlines.
    pub(crate) fn finish(&mut self, most_wakes: usize) {
        while let Some(out) = self.out.pop() {
            self.end(out, Outcome::Unchanged.done());
        }
        if self.elected.is_some() {
            self.elected = Some(Timestamp::MAX);
            self.engine.handle_elected(self.now, Timestamp::MAX);
        }
        let mut wakes = 0;
        // A leadership ends with time itself.
        while !self.pending.is_empty() && (self.elected.is_none() || self.now < Timestamp::MAX) {
            self.poll();
            if self.out.is_empty() {
                wakes += 1;
                assert!(wakes <= most_wakes, "deadlines that lead nowhere");
                let next = self.engine.poll_timeout().expect("pending work has a deadline");
                assert!(next > self.now || self.now == Timestamp::MAX);
                self.now = next.max(self.now);
            }
            while let Some(out) = self.out.pop() {
                self.end(out, Outcome::Written.done());
            }
            self.check();
        }
        assert_eq!(self.returned.len() + self.pending.len(), self.jobs as usize, "every job comes back");
    }
}

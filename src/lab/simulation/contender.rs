//! The algorithm that decides when a replica writes: the engine, or one that it is compared with.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::plan::Algorithm;
use crate::engine::{
    AttemptId, Engine, Timestamp,
    config::LeaseConfig,
    outcome::{Outcome, Verdict},
};

/// client-go's `RetryOnConflict` and a controller's requeue, as in `lab::Strategy::Retry`.
const STEPS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(10);
const JITTER: f64 = 0.1;
const REQUEUE: Duration = Duration::from_millis(5);

pub(super) enum Contender {
    Lease(Box<Engine<usize, u64>>),
    Go(GoLease),
    Retry(Retrier),
}

/// An attempt that starts.
pub(super) struct Start {
    /// `None` if no engine started it.
    pub id: Option<AttemptId>,
    pub key: usize,
    /// The number of the newest request when the job was queued.
    pub job: u64,
}

impl Contender {
    pub fn new(algorithm: Algorithm, config: LeaseConfig) -> Self {
        match algorithm {
            Algorithm::Lease => Self::Lease(Box::new(Engine::new(config))),
            Algorithm::Go => Self::Go(GoLease::new(&config)),
            Algorithm::Retry => Self::Retry(Retrier::new(&config)),
        }
    }

    pub fn engine(&self) -> Option<&Engine<usize, u64>> {
        match self {
            Self::Lease(engine) => Some(engine),
            _ => None,
        }
    }

    pub fn engine_mut(&mut self) -> Option<&mut Engine<usize, u64>> {
        match self {
            Self::Lease(engine) => Some(engine),
            _ => None,
        }
    }

    pub fn is_leader(&self, now: Timestamp) -> bool {
        match self {
            Self::Lease(engine) => engine.is_leader(now),
            Self::Go(go) => go.state == GoState::Leader,
            Self::Retry(_) => false,
        }
    }

    pub fn try_work(&mut self, now: Timestamp, key: usize, job: u64) {
        match self {
            Self::Lease(engine) => drop(engine.handle_try(now, key, job)),
            Self::Go(go) => go.try_work(now, key, job),
            Self::Retry(retrier) => retrier.try_work(now, key, job),
        }
    }

    /// A rival did what was wanted.
    pub fn extend(&mut self, now: Timestamp, key: usize, revision: Option<u64>) {
        match self {
            Self::Lease(engine) => drop(engine.handle_extend(now, &key, revision)),
            Self::Go(go) => go.extend(now, key),
            Self::Retry(retrier) => retrier.queue.remove(key),
        }
    }

    /// The key is as it should be, whoever made it so.
    pub fn satisfied(&mut self, now: Timestamp, key: usize) {
        match self {
            Self::Lease(engine) => drop(engine.handle_satisfied(now, &key)),
            Self::Go(_) | Self::Retry(_) => self.remove(now, key),
        }
    }

    pub fn remove(&mut self, now: Timestamp, key: usize) {
        match self {
            Self::Lease(engine) => drop(engine.handle_remove(now, &key)),
            Self::Go(go) => go.queue.remove(key),
            Self::Retry(retrier) => retrier.queue.remove(key),
        }
    }

    pub fn start(&mut self, now: Timestamp) -> Option<Start> {
        match self {
            Self::Lease(engine) => {
                let start = engine.poll_attempt(now)?;
                Some(Start { id: Some(start.id), key: start.key, job: start.job })
            }
            Self::Go(go) => go.start(now),
            Self::Retry(retrier) => retrier.start(now),
        }
    }

    pub fn wake_at(&mut self) -> Option<Timestamp> {
        match self {
            Self::Lease(engine) => engine.poll_timeout(),
            Self::Go(go) => go.queue.next().filter(|_| go.working.is_none()),
            Self::Retry(retrier) => retrier.queue.next().filter(|_| retrier.in_flight < retrier.workers),
        }
    }

    pub fn end(&mut self, now: Timestamp, start: Start, verdict: Verdict) {
        match self {
            Self::Lease(engine) => {
                if let Some(id) = start.id {
                    engine.handle_outcome(now, id, verdict, start.job);
                }
            }
            Self::Go(go) => go.end(now, &start, verdict.outcome),
            Self::Retry(retrier) => retrier.end(now, &start, verdict.outcome),
        }
    }
}

/// Keys with jobs, and when it is their turn: client-go's delaying queue. A key may have its turn
/// while an attempt of it is in flight.
#[derive(Default)]
struct Queue {
    jobs: BTreeMap<usize, u64>,
    /// Turns of one moment are in the order in which they were added.
    turns: BTreeSet<(Timestamp, u64, usize)>,
    turn: BTreeMap<usize, (Timestamp, u64)>,
    serial: u64,
}

impl Queue {
    /// Gives a key its turn at this time, or at the earlier of two times if it has one already.
    fn add(&mut self, key: usize, at: Timestamp) {
        if let Some(&(before, serial)) = self.turn.get(&key) {
            if before <= at {
                return;
            }
            self.turns.remove(&(before, serial, key));
        }
        self.serial += 1;
        self.turns.insert((at, self.serial, key));
        self.turn.insert(key, (at, self.serial));
    }

    fn remove(&mut self, key: usize) {
        self.jobs.remove(&key);
    }

    fn next(&self) -> Option<Timestamp> {
        self.turns.first().map(|&(at, ..)| at)
    }

    /// Takes the next key whose turn it is and that has a job.
    fn pop(&mut self, now: Timestamp) -> Option<(usize, u64)> {
        while let Some(&(at, _, key)) = self.turns.first()
            && at <= now
        {
            self.turns.pop_first();
            self.turn.remove(&key);
            if let Some(&job) = self.jobs.get(&key) {
                return Some((key, job));
            }
        }
        None
    }

    fn finish(&mut self, start: &Start) {
        if self.jobs.get(&start.key) == Some(&start.job) {
            self.jobs.remove(&start.key);
        }
    }
}

/// The algorithm of openshift/router's `writerlease` with one worker, as its router uses it: a
/// conflict gives the lease up.
pub(super) struct GoLease {
    queue: Queue,
    working: Option<usize>,
    state: GoState,
    expires: Timestamp,
    tick: u32,
    term: Duration,
    retry: Duration,
    rng: SmallRng,
}

#[derive(PartialEq)]
enum GoState {
    Election,
    Leader,
    Follower,
}

/// Its backoff: 20 ms, times 4, jittered by half, in 5 steps.
const GO_BASE: Duration = Duration::from_millis(20);
const GO_FACTOR: f64 = 4.0;
const GO_JITTER: f64 = 0.5;
const GO_STEPS: u32 = 5;

impl GoLease {
    fn new(config: &LeaseConfig) -> Self {
        Self {
            queue: Queue::default(),
            working: None,
            state: GoState::Election,
            expires: Timestamp::ZERO,
            tick: 0,
            term: config.term,
            retry: config.retry_interval,
            rng: SmallRng::seed_from_u64(config.seed),
        }
    }

    fn try_work(&mut self, now: Timestamp, key: usize, job: u64) {
        self.queue.jobs.insert(key, job);
        let follows = self.state == GoState::Follower;
        let at = if follows { self.expires.max(now + 2 * GO_BASE) } else { now };
        self.queue.add(key, at);
    }

    fn extend(&mut self, now: Timestamp, key: usize) {
        if self.queue.jobs.remove(&key).is_some() && self.state == GoState::Follower {
            self.tick += 1;
            self.expires = now + self.backoff();
        }
    }

    fn start(&mut self, now: Timestamp) -> Option<Start> {
        if self.working.is_some() {
            return None;
        }
        while let Some((key, job)) = self.queue.pop(now) {
            if self.state == GoState::Follower && now < self.expires {
                self.queue.add(key, self.expires);
                continue;
            }
            self.working = Some(key);
            return Some(Start { id: None, key, job });
        }
        None
    }

    fn end(&mut self, now: Timestamp, start: &Start, outcome: Outcome) {
        self.working = None;
        match outcome {
            Outcome::Written => {
                self.state = GoState::Leader;
                self.tick = 0;
                self.expires = now + self.term;
            }
            Outcome::WrittenByOther | Outcome::Conflict => {
                self.tick = if self.state == GoState::Follower { self.tick + 1 } else { 0 };
                self.state = GoState::Follower;
                self.expires = now + self.backoff();
            }
            Outcome::Unchanged | Outcome::Failed | Outcome::Denied => {}
        }
        match outcome {
            Outcome::Written | Outcome::Unchanged => self.queue.finish(start),
            _ => self.queue.add(start.key, now + self.retry),
        }
    }

    fn backoff(&mut self) -> Duration {
        let mut backoff = GO_BASE;
        for _ in 0..self.tick.min(GO_STEPS + 1) {
            let jitter: f64 = self.rng.random();
            backoff = backoff.mul_f64((1.0 + GO_JITTER * jitter) * GO_FACTOR);
        }
        if self.tick > GO_STEPS { self.term } else { backoff.min(self.term) }
    }
}

/// A controller without a lease: it writes, and retries on a conflict with client-go's
/// `RetryOnConflict` and `DefaultRetry`. Around that is the backoff of its work queue.
pub(super) struct Retrier {
    queue: Queue,
    in_flight: usize,
    workers: usize,
    /// How many conflicts a key has had in a row.
    conflicts: BTreeMap<usize, u32>,
    rng: SmallRng,
}

impl Retrier {
    fn new(config: &LeaseConfig) -> Self {
        let rng = SmallRng::seed_from_u64(config.seed);
        let workers = config.concurrency;
        Self { queue: Queue::default(), in_flight: 0, workers, conflicts: BTreeMap::new(), rng }
    }

    fn try_work(&mut self, now: Timestamp, key: usize, job: u64) {
        self.queue.jobs.insert(key, job);
        self.queue.add(key, now);
    }

    fn start(&mut self, now: Timestamp) -> Option<Start> {
        if self.in_flight >= self.workers {
            return None;
        }
        let (key, job) = self.queue.pop(now)?;
        self.in_flight += 1;
        Some(Start { id: None, key, job })
    }

    fn end(&mut self, now: Timestamp, start: &Start, outcome: Outcome) {
        self.in_flight -= 1;
        if matches!(outcome, Outcome::Written | Outcome::Unchanged) {
            self.conflicts.remove(&start.key);
            return self.queue.finish(start);
        }
        let conflicts = self.conflicts.entry(start.key).or_default();
        *conflicts += 1;
        let jitter: f64 = self.rng.random();
        let pause = match *conflicts {
            conflicts if conflicts % STEPS > 0 => PAUSE.mul_f64(1.0 + JITTER * jitter),
            conflicts => REQUEUE * (1 << (conflicts / STEPS - 1).min(20)),
        };
        self.queue.add(start.key, now + pause);
    }
}

//! Who decides when a replica writes: the engine, or what it is compared with.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::Algorithm;
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

/// An attempt that begins.
pub(super) struct Start {
    pub id: Option<AttemptId>,
    pub key: usize,
    pub work: u64,
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

    pub fn tries(&mut self, now: Timestamp, key: usize, work: u64) {
        match self {
            Self::Lease(engine) => drop(engine.handle_try(now, key, work)),
            Self::Go(go) => go.tries(now, key, work),
            Self::Retry(retrier) => retrier.tries(now, key, work),
        }
    }

    /// Somebody else did it.
    pub fn extends(&mut self, now: Timestamp, key: usize, order: u64) {
        match self {
            Self::Lease(engine) => drop(engine.handle_extend(now, &key, Some(order))),
            Self::Go(go) => go.extends(now, key),
            Self::Retry(retrier) => retrier.queue.remove(key),
        }
    }

    pub fn removes(&mut self, now: Timestamp, key: usize) {
        match self {
            Self::Lease(engine) => drop(engine.handle_remove(now, &key)),
            Self::Go(go) => go.queue.remove(key),
            Self::Retry(retrier) => retrier.queue.remove(key),
        }
    }

    pub fn starts(&mut self, now: Timestamp) -> Option<Start> {
        match self {
            Self::Lease(engine) => {
                let start = engine.poll_attempt(now)?;
                Some(Start { id: Some(start.id), key: start.key, work: start.job })
            }
            Self::Go(go) => go.starts(now),
            Self::Retry(retrier) => retrier.starts(now),
        }
    }

    pub fn wakes(&self) -> Option<Timestamp> {
        match self {
            Self::Lease(engine) => engine.poll_timeout(),
            Self::Go(go) => go.queue.next().filter(|_| go.working.is_none()),
            Self::Retry(retrier) => retrier.queue.next().filter(|_| retrier.out < retrier.workers),
        }
    }

    pub fn ends(&mut self, now: Timestamp, start: Start, verdict: Verdict) {
        match self {
            Self::Lease(engine) => {
                if let Some(id) = start.id {
                    engine.handle_outcome(now, id, verdict, start.work);
                }
            }
            Self::Go(go) => go.ends(now, &start, verdict.outcome),
            Self::Retry(retrier) => retrier.ends(now, &start, verdict.outcome),
        }
    }
}

/// Keys with work, and when it is their turn: client-go's delaying queue. A key may be in work and have its turn all the same.
#[derive(Default)]
struct Queue {
    works: BTreeMap<usize, u64>,
    /// Those of one moment in the order in which they came.
    turns: BTreeSet<(Timestamp, u64, usize)>,
    turn: BTreeMap<usize, (Timestamp, u64)>,
    serial: u64,
}

impl Queue {
    /// At the earlier of two times, if it has one already.
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
        self.works.remove(&key);
    }

    fn next(&self) -> Option<Timestamp> {
        self.turns.first().map(|&(at, ..)| at)
    }

    /// The next key whose turn it is and that has work.
    fn pop(&mut self, now: Timestamp) -> Option<(usize, u64)> {
        while let Some(&(at, _, key)) = self.turns.first()
            && at <= now
        {
            self.turns.pop_first();
            self.turn.remove(&key);
            if let Some(&work) = self.works.get(&key) {
                return Some((key, work));
            }
        }
        None
    }

    fn finish(&mut self, start: &Start) {
        if self.works.get(&start.key) == Some(&start.work) {
            self.works.remove(&start.key);
        }
    }
}

/// What openshift/router's `writerlease` does, with one worker, as its router uses it: a conflict gives the lease up.
pub(super) struct GoLease {
    queue: Queue,
    working: Option<usize>,
    state: GoState,
    expires: Timestamp,
    tick: u32,
    term: Duration,
    retry: Duration,
    dice: SmallRng,
}

#[derive(PartialEq)]
enum GoState {
    Election,
    Leader,
    Follower,
}

/// Its backoff: 20 ms, times 4, jittered by half, 5 steps.
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
            dice: SmallRng::seed_from_u64(config.seed),
        }
    }

    fn tries(&mut self, now: Timestamp, key: usize, work: u64) {
        self.queue.works.insert(key, work);
        let follows = self.state == GoState::Follower;
        let at = if follows { self.expires.max(now + 2 * GO_BASE) } else { now };
        self.queue.add(key, at);
    }

    fn extends(&mut self, now: Timestamp, key: usize) {
        if self.queue.works.remove(&key).is_some() && self.state == GoState::Follower {
            self.tick += 1;
            self.expires = now + self.backoff();
        }
    }

    fn starts(&mut self, now: Timestamp) -> Option<Start> {
        if self.working.is_some() {
            return None;
        }
        while let Some((key, work)) = self.queue.pop(now) {
            if self.state == GoState::Follower && now < self.expires {
                self.queue.add(key, self.expires);
                continue;
            }
            self.working = Some(key);
            return Some(Start { id: None, key, work });
        }
        None
    }

    fn ends(&mut self, now: Timestamp, start: &Start, outcome: Outcome) {
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
            Outcome::Unchanged | Outcome::Failed => {}
        }
        match outcome {
            Outcome::Written | Outcome::Unchanged => self.queue.finish(start),
            _ => self.queue.add(start.key, now + self.retry),
        }
    }

    fn backoff(&mut self) -> Duration {
        let mut backoff = GO_BASE;
        for _ in 0..self.tick.min(GO_STEPS + 1) {
            let jitter: f64 = self.dice.random();
            backoff = backoff.mul_f64((1.0 + GO_JITTER * jitter) * GO_FACTOR);
        }
        if self.tick > GO_STEPS { self.term } else { backoff.min(self.term) }
    }
}

/// What a controller does without us: it writes, and retries on a conflict with client-go's `RetryOnConflict` and
/// `DefaultRetry`; around it the backoff of the work queue.
pub(super) struct Retrier {
    queue: Queue,
    out: usize,
    workers: usize,
    /// How many conflicts a key has had in a row.
    conflicts: BTreeMap<usize, u32>,
    dice: SmallRng,
}

impl Retrier {
    fn new(config: &LeaseConfig) -> Self {
        let dice = SmallRng::seed_from_u64(config.seed);
        let workers = config.concurrency;
        Self { queue: Queue::default(), out: 0, workers, conflicts: BTreeMap::new(), dice }
    }

    fn tries(&mut self, now: Timestamp, key: usize, work: u64) {
        self.queue.works.insert(key, work);
        self.queue.add(key, now);
    }

    fn starts(&mut self, now: Timestamp) -> Option<Start> {
        if self.out >= self.workers {
            return None;
        }
        let (key, work) = self.queue.pop(now)?;
        self.out += 1;
        Some(Start { id: None, key, work })
    }

    fn ends(&mut self, now: Timestamp, start: &Start, outcome: Outcome) {
        self.out -= 1;
        if matches!(outcome, Outcome::Written | Outcome::Unchanged) {
            self.conflicts.remove(&start.key);
            return self.queue.finish(start);
        }
        let conflicts = self.conflicts.entry(start.key).or_default();
        *conflicts += 1;
        let jitter: f64 = self.dice.random();
        let pause = match *conflicts {
            conflicts if conflicts % STEPS > 0 => PAUSE.mul_f64(1.0 + JITTER * jitter),
            conflicts => REQUEUE * (1 << (conflicts / STEPS - 1).min(20)),
        };
        self.queue.add(start.key, now + pause);
    }
}

//! The engine's table, its ten rules and its invariants, on virtual time.
//!
//! `table` has a test per cell of the table, `rules` the rules behind it, `go_package` what the package it grew out of
//! promises, and `properties` random runs against a reference.

mod go_package;
mod properties;
mod rules;
mod table;

use std::{ops::RangeInclusive, time::Duration};

use super::*;
use crate::{LeaseBuilder, Next, Outcome, Verdict};

/// Where a draw is involved, a rule must hold for all of these.
const SEEDS: std::ops::Range<u64> = 0..200;

const TERM: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(3);
const ECHO: Duration = Duration::from_millis(6);

/// An engine with its clock; works are numbered in the order in which they are handed in, from 1.
#[derive(Debug)]
struct World {
    engine: Engine<String, u32>,
    now: Timestamp,
    works: u32,
}

/// An attempt that is out.
type Running = Start<String, u32>;

/// All that an event can move, apart from the queue.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Standing {
    role: Role,
    reign: u64,
    epoch: u64,
    tick: u32,
    lease_end: Timestamp,
    window: usize,
    patience: Duration,
}

impl Standing {
    fn of<K: Hash + Eq + Clone, W>(engine: &Engine<K, W>) -> Self {
        Self {
            role: engine.role(),
            reign: engine.role_generation(),
            epoch: engine.epoch(),
            tick: engine.losses(),
            lease_end: engine.lease_end(),
            window: engine.window(),
            patience: engine.patience(),
        }
    }
}

fn settings(seed: u64) -> LeaseBuilder {
    LeaseBuilder::new("test").seed(seed)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// The keys of attempts, in order.
fn keys(running: &[Running]) -> Vec<&str> {
    running.iter().map(|attempt| attempt.key.as_str()).collect()
}

/// Where `backoff(tick)` must lie with the default settings.
fn backoff(tick: u32) -> RangeInclusive<Duration> {
    match tick {
        0 => ms(20)..=ms(30),
        1 => ms(80)..=ms(132),
        2 => ms(320)..=ms(792),
        3 => ms(1_280)..=ms(4_752),
        4 => ms(5_120)..=ms(28_512),
        5 => ms(20_480)..=secs(66),
        _ => secs(60)..=secs(66),
    }
}

/// Where the lease of those who deposed a leader must lie: the first backoff and up to 16 echoes.
fn deposed() -> RangeInclusive<Duration> {
    *backoff(0).start()..=*backoff(0).end() + 16 * ECHO
}

impl World {
    fn new(seed: u64) -> Self {
        Self::with(settings(seed))
    }

    fn with(settings: LeaseBuilder) -> Self {
        // Not at the origin, so that a forgotten time shows.
        Self { engine: Engine::new(settings.build().unwrap()), now: Timestamp::ZERO + secs(1_000), works: 0 }
    }

    /// A leader with nothing pending that won with the first write after the election delay.
    fn leading(seed: u64) -> Self {
        Self::leading_with(settings(seed))
    }

    fn leading_with(settings: LeaseBuilder) -> Self {
        let mut world = Self::with(settings);
        world.wins();
        world
    }

    /// A leader whose window is `window`.
    fn leading_wide(seed: u64, window: usize) -> Self {
        let mut world = Self::leading(seed);
        while world.engine.window() < window {
            world.lands("warm up");
        }
        world
    }

    /// A follower with nothing pending, by evidence in the election: tick 0.
    fn following(seed: u64) -> Self {
        Self::following_with(settings(seed))
    }

    fn following_with(settings: LeaseBuilder) -> Self {
        let mut world = Self::with(settings);
        world.evidence("theirs");
        world
    }

    /// A follower whose leader is so far ahead that its lease lasts at least a term.
    fn long_following(seed: u64) -> Self {
        Self::long_following_with(settings(seed))
    }

    fn long_following_with(settings: LeaseBuilder) -> Self {
        let mut world = Self::following_with(settings);
        while world.engine.losses() <= 5 {
            world.evidence("theirs");
        }
        world
    }

    fn standing(&self) -> Standing {
        Standing::of(&self.engine)
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Hands in work; returns its number and what it replaced.
    fn wants(&mut self, key: &str) -> (u32, Option<u32>) {
        self.works += 1;
        (self.works, self.engine.handle_try(self.now, key.to_owned(), self.works))
    }

    fn wants_all<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) {
        for key in keys {
            self.wants(key);
        }
    }

    /// Hands in work for `count` keys, named "0", "1" and so on.
    fn wants_many(&mut self, count: usize) {
        for i in 0..count {
            self.wants(&i.to_string());
        }
    }

    fn evidence(&mut self, key: &str) -> Option<u32> {
        self.engine.handle_extend(self.now, &key.to_owned(), None)
    }

    fn removes(&mut self, key: &str) -> Option<u32> {
        self.engine.handle_remove(self.now, &key.to_owned())
    }

    /// All attempts that may run now. Polling leaves no deadline behind, and something to wait for if work is pending.
    fn polls(&mut self) -> Vec<Running> {
        let all = std::iter::from_fn(|| self.engine.poll_attempt(self.now)).collect();
        let timeout = self.engine.poll_timeout();
        assert!(
            timeout.is_none_or(|at| at > self.now),
            "asks to be polled at {timeout:?}, at {:?}",
            self.now
        );
        let barred = self.engine.authority.blocks(self.now).is_some();
        assert!(timeout.is_some() || barred || self.engine.is_empty() || self.engine.in_flight() > 0);
        all
    }

    /// The one attempt that may run now.
    fn one(&mut self) -> Running {
        let mut all = self.polls();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Sleeps as a driver does until attempts may run, and returns them.
    fn sleeps(&mut self) -> Vec<Running> {
        for _ in 0..100 {
            let all = self.polls();
            if !all.is_empty() {
                return all;
            }
            self.now = self.engine.poll_timeout().expect("something to wait for");
        }
        panic!("a hundred deadlines without an attempt")
    }

    /// Sleeps until an attempt may run, which must be just one.
    fn sleeps_for_one(&mut self) -> Running {
        let mut all = self.sleeps();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn ends(&mut self, attempt: Running, verdict: impl Into<Verdict>) -> Option<u32> {
        self.engine.handle_outcome(self.now, attempt.id, verdict.into(), attempt.job)
    }

    fn panics(&mut self, attempt: Running) -> Option<u32> {
        self.engine.handle_panic(self.now, attempt.id, attempt.job)
    }

    /// Wants a key and writes it as soon as that is allowed; the attempt takes a millisecond.
    fn lands(&mut self, key: &str) {
        self.wants(key);
        let attempt = self.sleeps_for_one();
        self.pass(ms(1));
        self.ends(attempt, Outcome::Written);
    }

    fn wins(&mut self) {
        self.lands("won");
        assert_eq!(self.engine.role(), Role::Leader);
    }

    fn leads(&self) -> bool {
        self.engine.is_leader(self.now)
    }

    /// Where the lease ends, seen from now.
    fn lease(&self) -> Duration {
        self.engine.lease_end() - self.now
    }

    /// When the engine wants to be polled, seen from now.
    fn timeout(&self) -> Option<Duration> {
        self.engine.poll_timeout().map(|at| at - self.now)
    }

    /// Patience without this replica's place in its spread of two seconds.
    fn unspread(&self) -> Duration {
        self.engine.patience.unspread()
    }

    /// The attempt of a key that the leader doesn't do while it does others.
    fn writes_overdue(&mut self, key: &str) -> Running {
        self.wants(key);
        self.outlasts_patience_under_evidence()
    }

    /// Evidence on other keys keeps coming until an attempt starts.
    fn outlasts_patience_under_evidence(&mut self) -> Running {
        for _ in 0..1_000 {
            let mut all = self.polls();
            if !all.is_empty() {
                assert_eq!(all.len(), 1, "{all:?}");
                return all.remove(0);
            }
            let step = ms(50).min(self.timeout().unwrap());
            self.pass(step);
            if step == ms(50) {
                self.evidence("theirs");
            }
        }
        panic!("a starved key")
    }
}

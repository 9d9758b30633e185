//! The world of the engine's tests: an engine on virtual time, and the events that it meets.

use std::ops::RangeInclusive;

use super::*;
use crate::LeaseBuilder;

/// The seeds for which a rule must hold where it involves a draw.
pub(super) const SEEDS: std::ops::Range<u64> = 0..200;

pub(super) const TERM: Duration = Duration::from_secs(60);
pub(super) const RETRY: Duration = Duration::from_secs(3);
pub(super) const ECHO: Duration = Duration::from_millis(6);

/// An engine with its clock. Jobs are numbered in the order in which they are handed in, from 1.
#[derive(Debug)]
pub(super) struct World {
    pub(super) engine: Engine<String, u32>,
    pub(super) now: Timestamp,
    pub(super) jobs: u32,
}

/// An attempt that is out.
pub(super) type Running = Start<String, u32>;

pub(super) fn settings(seed: u64) -> LeaseBuilder {
    LeaseBuilder::new("test").seed(seed)
}

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub(super) fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) fn member(name: &str) -> Member {
    Member::new(name, 1)
}

/// The keys of attempts, in order.
pub(super) fn keys(running: &[Running]) -> Vec<&str> {
    running.iter().map(|attempt| attempt.key.as_str()).collect()
}

/// The range of `backoff(losses)` with the default settings.
pub(super) fn backoff(losses: u32) -> RangeInclusive<Duration> {
    match losses {
        0 => ms(20)..=ms(30),
        1 => ms(80)..=ms(132),
        2 => ms(320)..=ms(792),
        3 => ms(1_280)..=ms(4_752),
        4 => ms(5_120)..=ms(28_512),
        5 => ms(20_480)..=secs(66),
        _ => secs(60)..=secs(66),
    }
}

/// The range of the lease of a leader that was just deposed: the first backoff and up to 16 echoes.
pub(super) fn deposed() -> RangeInclusive<Duration> {
    *backoff(0).start()..=*backoff(0).end() + 16 * ECHO
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self::with(settings(seed))
    }

    pub(super) fn with(settings: LeaseBuilder) -> Self {
        // Starts away from the origin, so that a forgotten time shows.
        Self { engine: Engine::new(settings.build().unwrap()), now: Timestamp::ZERO + secs(1_000), jobs: 0 }
    }

    /// A leader without pending work that won with its first write after the election delay.
    pub(super) fn leading(seed: u64) -> Self {
        Self::leading_with(settings(seed))
    }

    pub(super) fn leading_with(settings: LeaseBuilder) -> Self {
        let mut world = Self::with(settings);
        world.wins();
        world
    }

    /// A leader whose window is `window`.
    pub(super) fn leading_wide(seed: u64, window: usize) -> Self {
        let mut world = Self::leading(seed);
        for _ in world.engine.window()..window {
            world.lands("warm up");
        }
        assert_eq!(world.engine.window(), window);
        world
    }

    /// A follower without pending work, by evidence in the election: losses 0.
    pub(super) fn following(seed: u64) -> Self {
        Self::following_with(settings(seed))
    }

    pub(super) fn following_with(settings: LeaseBuilder) -> Self {
        let mut world = Self::with(settings);
        world.evidence("theirs");
        world
    }

    /// A follower whose leader is so far ahead that its lease lasts at least a term.
    pub(super) fn long_following(seed: u64) -> Self {
        Self::long_following_with(settings(seed))
    }

    pub(super) fn long_following_with(settings: LeaseBuilder) -> Self {
        let mut world = Self::following_with(settings);
        world.falls_far_behind(Duration::ZERO);
        world
    }

    /// Reads a roster with these on it. The first call joins it as "us".
    pub(super) fn sees(&mut self, names: &[&str]) {
        if !self.engine.has_roster() {
            self.engine.handle_join(self.now, member("us"));
        }
        self.engine.handle_members(self.now, names.iter().map(|name| member(name)).collect());
    }

    /// Delivers evidence at intervals until the backoff is past its steps.
    pub(super) fn falls_far_behind(&mut self, interval: Duration) {
        for _ in self.engine.losses()..=5 {
            self.pass(interval);
            self.evidence("theirs");
        }
        assert_eq!(self.engine.losses(), 6);
    }

    pub(super) fn standing(&self) -> Standing {
        Standing::of(&self.engine)
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// Hands in a job. Returns its number and the job it replaced.
    pub(super) fn wants(&mut self, key: &str) -> (u32, Option<u32>) {
        self.jobs += 1;
        (self.jobs, self.engine.handle_try(self.now, key.to_owned(), self.jobs))
    }

    pub(super) fn wants_all<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) {
        for key in keys {
            self.wants(key);
        }
    }

    /// Hands in a job for each of `count` keys, named "0", "1" and so on.
    pub(super) fn wants_many(&mut self, count: usize) {
        for i in 0..count {
            self.wants(&i.to_string());
        }
    }

    pub(super) fn evidence(&mut self, key: &str) -> Option<u32> {
        self.engine.handle_extend(self.now, &key.to_owned(), None)
    }

    pub(super) fn removes(&mut self, key: &str) -> Option<u32> {
        self.engine.handle_remove(self.now, &key.to_owned())
    }

    /// Starts all attempts that may run now. Checks that no deadline has passed afterwards, and
    /// that pending work has something to wait for.
    pub(super) fn polls(&mut self) -> Vec<Running> {
        let all = std::iter::from_fn(|| self.engine.poll_attempt(self.now)).collect();
        let timeout = self.engine.poll_timeout();
        assert!(
            timeout.is_none_or(|at| at > self.now),
            "asks to be polled at {timeout:?}, at {:?}",
            self.now
        );
        let barred = self.engine.authority.blocks(self.now);
        assert!(timeout.is_some() || barred || self.engine.is_empty() || self.engine.in_flight() > 0);
        all
    }

    /// Starts the only attempt that may run now.
    pub(super) fn one(&mut self) -> Running {
        let mut all = self.polls();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Sleeps as a driver does until attempts may run, and returns them.
    pub(super) fn sleeps(&mut self) -> Vec<Running> {
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
    pub(super) fn sleeps_for_one(&mut self) -> Running {
        let mut all = self.sleeps();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    pub(super) fn ends(&mut self, attempt: Running, verdict: impl Into<Verdict>) -> Option<u32> {
        self.engine.handle_outcome(self.now, attempt.id, verdict.into(), attempt.job)
    }

    pub(super) fn end_all(&mut self, attempts: impl IntoIterator<Item = Running>, outcome: Outcome) {
        for attempt in attempts {
            self.ends(attempt, outcome);
        }
    }

    pub(super) fn panics(&mut self, attempt: Running) -> Option<u32> {
        self.engine.handle_panic(self.now, attempt.id, attempt.job)
    }

    /// Requests a key and writes it as soon as that is allowed. The attempt takes a millisecond.
    pub(super) fn lands(&mut self, key: &str) {
        self.wants(key);
        let attempt = self.sleeps_for_one();
        self.pass(ms(1));
        self.ends(attempt, Outcome::Written);
    }

    pub(super) fn wins(&mut self) {
        self.lands("won");
        assert_eq!(self.engine.role(), Role::Leader);
    }

    pub(super) fn leads(&self) -> bool {
        self.engine.is_leader(self.now)
    }

    /// The time until the lease ends.
    pub(super) fn lease(&self) -> Duration {
        self.engine.lease_end() - self.now
    }

    /// The time until the engine's next deadline.
    pub(super) fn timeout(&mut self) -> Option<Duration> {
        self.engine.poll_timeout().map(|at| at - self.now)
    }

    /// Patience without this replica's place in its spread of two seconds.
    pub(super) fn unspread(&self) -> Duration {
        self.engine.shards[0].patience.unspread()
    }

    /// The attempt of a key that others leave pending while they write other keys.
    pub(super) fn takes_over(&mut self, key: &str) -> Running {
        self.wants(key);
        self.outlasts_patience_under_evidence()
    }

    /// Takes over `count` keys, named "0", "1" and so on, while others write other keys.
    pub(super) fn takes_over_many(&mut self, count: usize) {
        for i in 0..count {
            self.evidence(&i.to_string());
        }
        self.wants_many(count);
        while !self.engine.is_empty() {
            let first = self.outlasts_patience_under_evidence();
            self.ends(first, Outcome::Written);
            let more = self.polls();
            self.end_all(more, Outcome::Written);
        }
    }

    /// Delivers evidence on other keys until an attempt starts.
    pub(super) fn outlasts_patience_under_evidence(&mut self) -> Running {
        for _ in 0..1_000 {
            let mut all = self.polls();
            if !all.is_empty() {
                return all.remove(0);
            }
            let step = ms(50).min(self.timeout().unwrap());
            self.pass(step);
            if step == ms(50) {
                self.evidence("theirs");
            }
        }
        panic!("the key starved")
    }
}

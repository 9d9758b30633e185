//! The results of a run.

use std::{fmt, ops::Add, time::Duration};

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Violation {
    /// The promise.
    pub promise: &'static str,
    /// When it was broken, since the beginning of the run.
    pub at: Duration,
    /// The replica that broke it, and with which figures.
    pub detail: String,
}

/// One round of a run: everybody wants all keys to change once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RoundStats {
    /// When the round began.
    pub began: Duration,
    /// The time until its first write succeeded.
    pub first_write: Option<Duration>,
    /// The time until all keys were right, `None` if the next round began before.
    pub right: Option<Duration>,
    /// Writes that succeeded.
    pub written: u64,
    /// Writes that were refused as stale.
    pub refused: u64,
}

/// The figures of a run in which all promises held.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct RunStats {
    /// The length of the run, in simulated time.
    pub time: Duration,
    /// Rounds in which something was wanted.
    pub rounds: u64,
    /// Writes that succeeded.
    pub written: u64,
    /// Writes that were refused as stale.
    pub refused: u64,
    /// Writes that were refused because another replica was elected.
    pub fenced: u64,
    /// Writes of replicas to the roster that succeeded.
    pub roster_writes: u64,
    /// The longest time that a key was pending while all was well.
    pub oldest: Duration,
    /// The longest time after the last fault until all agreed on whose turn each shard is.
    pub balanced: Duration,
    /// How many times a replica became leader, counted since its last start.
    pub won: u64,
    /// How many times a replica suspected the leader, counted since its last start.
    pub suspicions: u64,
}

impl Add for RunStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            time: self.time + other.time,
            rounds: self.rounds + other.rounds,
            written: self.written + other.written,
            refused: self.refused + other.refused,
            oldest: self.oldest.max(other.oldest),
            fenced: self.fenced + other.fenced,
            balanced: self.balanced.max(other.balanced),
            roster_writes: self.roster_writes + other.roster_writes,
            won: self.won + other.won,
            suspicions: self.suspicions + other.suspicions,
        }
    }
}

impl std::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:?}: {}: {}", self.at, self.promise, self.detail)
    }
}

//! Many engines, one store and one virtual clock: years of contention in seconds, and each seed one run.
//!
//! The engines are the real ones; what is around them is a model: a store that compares and writes, messages that take their
//! time or get lost, watches that repeat, reorder and leave out, processes that stop, die and start anew, clocks that run at
//! their own rates, people who edit and delete the same objects, elections. Each replica does with reads, writes and changes what the [guard](crate::Guard) does. A [`Plan`] says what
//! happens; it is drawn from a seed, and [`Plan::run`] always does the same with it. What must hold is checked all along; a
//! [`Violation`] says what did not. [`Plan::shrink`] looks for a smaller plan that still shows it.
//!
//! # What must hold
//!
//! All along: no write is undone by one that knew less; no key has two attempts at once in one replica; the window, patience
//! and the lease stay within their bounds, and a leader's lease counts from the start of its attempts; news older than the
//! write that won depose nobody; no replica hurries, and while the store gives no answer it makes one attempt at a time, after
//! a pause; an election lets no two lead.
//!
//! Once all has been well for a term and half a minute: no key is pending for longer than that, whoever else is alive (seconds
//! are usual); but 150 s, if groups want different values of it more often than once in eight round trips, because then it is
//! luck who writes. Once it has been for 60 s: no two of the replicas that want the same lead at once. Where work comes no
//! faster than once in eight round trips, nobody leads for two minutes at most; seconds are usual. (Groups that fight over keys
//! like that may have two leaders each.) At the end: nothing is pending, and all is as it should be.
//!
//! ```
//! use writerlease::lab::simulation::Plan;
//!
//! for seed in 0..10 {
//!     let plan = Plan::drawn(seed);
//!     if let Err(violation) = plan.run() {
//!         panic!("{violation}\n{:#?}", plan.shrink());
//!     }
//! }
//! ```

mod contender;
mod election;
mod event;
mod faults;
mod plan;
mod post;
mod promises;
mod replica;
mod witness;
mod world;

use std::{fmt, ops::Add, time::Duration};

pub use plan::{Algorithm, Fault, FaultKind, Member, Plan};

pub use crate::engine::Tuning;

/// What must not happen, and did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Violation {
    /// Which promise was broken.
    pub promise: &'static str,
    /// When, since the beginning.
    pub at: Duration,
    /// By whom, and with what.
    pub detail: String,
}

/// A round of a run: everybody wants all keys to change once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Lap {
    /// When it began.
    pub began: Duration,
    /// After how long the first of its writes landed.
    pub first_write: Option<Duration>,
    /// After how long all keys were right; none, if the next one began before.
    pub right: Option<Duration>,
    /// The writes that landed in it.
    pub landed: u64,
    /// The writes that were refused in it as stale.
    pub refused: u64,
}

/// What came of a run in which all promises held.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Tally {
    /// How long it was, in the time of the simulation.
    pub time: Duration,
    /// Rounds in which something was wanted.
    pub rounds: u64,
    /// Writes that landed.
    pub landed: u64,
    /// Writes that were refused as stale.
    pub refused: u64,
    /// Writes that were refused because another one was elected.
    pub fenced: u64,
    /// The longest that a key was pending, of the time in which all was well.
    pub oldest: Duration,
    /// Times that a replica became leader, in the last of its lives.
    pub won: u64,
    /// Times that a replica suspected the leader, in the last of its lives.
    pub suspicions: u64,
    /// The longest that nobody led, of the time in which all was well.
    pub leaderless: Duration,
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            time: self.time + other.time,
            rounds: self.rounds + other.rounds,
            landed: self.landed + other.landed,
            refused: self.refused + other.refused,
            oldest: self.oldest.max(other.oldest),
            fenced: self.fenced + other.fenced,
            won: self.won + other.won,
            suspicions: self.suspicions + other.suspicions,
            leaderless: self.leaderless.max(other.leaderless),
        }
    }
}

impl std::error::Error for Violation {}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {:?}: {}: {}", self.at, self.promise, self.detail)
    }
}

//! What is run.

use std::{fmt, ops::Range, time::Duration};

use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use crate::{
    engine::config::ConfigError,
    lab::network::{Network, Remote},
    status::SpawnError,
    store::{Store, StoreError},
};

/// Replicas that want the same objects to change, round after round, in one store.
///
/// Each round wants every key to be at the round's number; the first is 1. Every replica learns of that, and the strategy
/// decides who writes it. An observer that watches the store itself, without the replicas' network, tells when all keys
/// are right.
///
/// Under tokio's paused time, with a [`MemoryStore`](crate::store::MemoryStore), one scenario is one report, to the last
/// write; its seed is all the randomness there is.
///
/// ```
/// use std::time::Duration;
/// use writerlease::{lab::{Network, Scenario}, store::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), writerlease::lab::LabError> {
/// let scenario = Scenario {
///     replicas: 5,
///     keys: 20,
///     rounds: 4,
///     network: Network { write: Duration::from_millis(2), watch: Duration::from_millis(4), ..Network::default() },
///     ..Scenario::default()
/// };
/// let report = scenario.run(MemoryStore::new()).await?;
/// assert_eq!((report.writes_needed, report.updates_lost), (80, 0));
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
///
/// The store of a benchmark is yours: `bencher.to_async(&runtime).iter(async || scenario.run(store.clone()).await.unwrap())`
/// in criterion, with its feature `async_tokio`. Each run holds an election and lets its replicas learn of a round at
/// different times within the [`skew`](Self::skew); for the time of the rounds alone, look at [`Report::rounds`].
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// How the replicas write. Default: [`Strategy::Lease`].
    pub strategy: Strategy,
    /// How many replicas. Default: 3.
    pub replicas: usize,
    /// How many keys. Default: 100.
    pub keys: usize,
    /// How many rounds. Default: 10.
    pub rounds: usize,
    /// Which keys each replica wants; replicas beyond the end of the list want all. Default: empty.
    pub wants: Vec<Range<usize>>,
    /// How many keys, drawn at random, a round wants. Default: `None`, all of them.
    pub keys_per_round: Option<usize>,
    /// When the next round starts. Default: [`Pace::WhenRight`].
    pub pace: Pace,
    /// The time between the starts of two rounds; with [`Pace::WhenRight`], the least time. Default: zero.
    pub gap: Duration,
    /// Each replica learns of a round at a random time within this. Default: 20 ms.
    pub skew: Duration,
    /// How often somebody else edits another field of an object, per object and second. The replicas want the object
    /// again after each edit, as a controller does. Default: 0.
    pub edits: f64,
    /// The leader is killed in this round, counted from 1, once half of the round's keys are right. Default: `None`.
    pub kill_leader_at: Option<usize>,
    /// Between each replica and the store. Default: no delay.
    pub network: Network,
    /// The term of the leases. Default: 60 s.
    pub term: Duration,
    /// How many attempts each replica may have in flight. Default: 16.
    pub concurrency: usize,
    /// What the keys start with in the store. Nothing may be there before a run, and nothing is afterwards. Default:
    /// `lab/`.
    pub prefix: String,
    /// The seed of all randomness. Default: 0.
    pub seed: u64,
}

/// How replicas write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Lease by work: the [`Guard`](crate::Guard) decides.
    #[default]
    Lease,
    /// Every replica writes and retries on conflict with backoff, as client-go's `RetryOnConflict` does.
    Retry,
}

/// When rounds start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// When the round before is right.
    #[default]
    WhenRight,
    /// At their time, whether or not the rounds before are right.
    Steady,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The round that has just started, counted from 1; after the last one, their number plus 1.
    pub round: usize,
    /// How many rounds there are.
    pub rounds: usize,
}

/// Why a run has no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The scenario cannot be run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Outside of a tokio runtime.
    #[error(transparent)]
    Spawn(SpawnError),
    /// The store did not do what the observer asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is something under the prefix already.
    #[error("{key} exists already; a run needs a prefix of its own")]
    InUse {
        /// The key.
        key: String,
    },
    /// A round was not right in time. The bound is generous: two terms and half a minute.
    #[error("round {round} was not right after {after:?}: {wrong} of {wanted} keys were missing")]
    Stuck {
        /// The round.
        round: u64,
        /// How long it was waited for.
        after: Duration,
        /// How many of its keys were not right.
        wrong: usize,
        /// How many keys it wants.
        wanted: usize,
    },
    /// The replicas can't go on, for a reason of their own.
    #[error("{0}")]
    Fleet(String),
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            strategy: Strategy::Lease,
            replicas: 3,
            keys: 100,
            rounds: 10,
            wants: Vec::new(),
            keys_per_round: None,
            pace: Pace::WhenRight,
            gap: Duration::ZERO,
            skew: Duration::from_millis(20),
            edits: 0.0,
            kill_leader_at: None,
            network: Network::default(),
            term: Duration::from_secs(60),
            concurrency: 16,
            prefix: "lab/".into(),
            seed: 0,
        }
    }
}

impl Scenario {
    /// The connection of replica number `index`, through the scenario's network.
    pub fn connect<S: Store>(&self, index: usize, store: S) -> Remote<S> {
        Remote::new(store, self.network.clone(), self.seed_of(Dice::Network(index)))
    }

    /// Whether the scenario can be run.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the field, its value and the rule.
    pub fn check(&self) -> Result<(), ConfigError> {
        let at_least_one = |field, value| match value {
            0 => Err(ConfigError::new(field, value, "at least 1")),
            _ => Ok(()),
        };
        at_least_one("replicas", self.replicas)?;
        at_least_one("keys", self.keys)?;
        at_least_one("rounds", self.rounds)?;
        self.lease(0).build()?;
        if let Some(keys) = self.keys_per_round
            && !(1..=self.keys).contains(&keys)
        {
            return Err(ConfigError::new(
                "keys_per_round",
                keys,
                format!("from 1 to the keys ({})", self.keys),
            ));
        }
        if let Some(range) = self.wants.iter().find(|range| range.is_empty() || range.end > self.keys) {
            return Err(ConfigError::new("wants", range, format!("within the keys (0..{})", self.keys)));
        }
        if !self.edits.is_finite() || self.edits < 0.0 {
            return Err(ConfigError::new("edits", self.edits, "a number of at least 0"));
        }
        if let Some(round) = self.kill_leader_at {
            if !(1..=self.rounds).contains(&round) {
                let rule = format!("from 1 to the rounds ({})", self.rounds);
                return Err(ConfigError::new("kill_leader_at", round, rule));
            }
            if self.replicas == 1 {
                return Err(ConfigError::new("replicas", 1, "at least 2, if the leader is killed"));
            }
        }
        Ok(())
    }

    /// After this a round is given up.
    pub(super) fn bound(&self) -> Duration {
        self.term.saturating_mul(2).saturating_add(Duration::from_secs(30))
    }

    /// How long the last news takes to reach everybody.
    pub(super) fn settling(&self) -> Duration {
        let Network { read, write, watch, late, late_by } = self.network;
        let latest = if late > 0.0 { late_by * 8 } else { Duration::ZERO };
        self.skew + (read + write + watch) * 20 + latest + Duration::from_millis(100)
    }

    pub(super) fn dice(&self, which: Dice) -> Xoshiro256PlusPlus {
        Xoshiro256PlusPlus::seed_from_u64(self.seed_of(which))
    }

    pub(super) fn seed_of(&self, which: Dice) -> u64 {
        let number = match which {
            Dice::Rounds => 0,
            Dice::Edits => 1,
            Dice::Lease(index) => 2 + 4 * index as u64,
            Dice::Network(index) => 3 + 4 * index as u64,
            Dice::Skew(index) => 4 + 4 * index as u64,
            Dice::Retry(index) => 5 + 4 * index as u64,
        };
        // Neighbouring seeds must not share what they derive. (The multiplier is SplitMix64's.)
        self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number)
    }
}

/// What in a run draws at random. Each has a generator of its own, so that one more draw here changes nothing there.
#[derive(Clone, Copy)]
pub(super) enum Dice {
    Rounds,
    Edits,
    Lease(usize),
    Network(usize),
    Skew(usize),
    Retry(usize),
}

/// How long attempts that are under way at the end may take.
pub(super) const GRACE: Duration = Duration::from_secs(5);

impl From<SpawnError> for LabError {
    fn from(error: SpawnError) -> Self {
        match error {
            SpawnError::Config(error) => Self::Config(error),
            error => Self::Spawn(error),
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "lease",
            Self::Retry => "retry",
        })
    }
}

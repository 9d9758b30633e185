//! The settings of a scenario.

use std::{fmt, ops::Range, time::Duration};

use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::faults::{ReplicaFault, RollingRestart};
use crate::{
    engine::config::ConfigError,
    lab::network::{Network, RemoteStore},
    status::SpawnError,
    store::{Store, StoreError},
};

/// A benchmark in which several replicas update the same objects of one store, round after round.
///
/// Each round asks every replica to bring all keys to the round's number; the first is 1. The
/// [strategy](Strategy) decides which replica writes. An observer watches the store directly,
/// without the replicas' [network](Network), and measures when all keys are up to date.
///
/// Under tokio's paused time and with a [`MemoryStore`](crate::store::MemoryStore), equal scenarios
/// give equal reports: the seed determines all randomness.
///
/// # Errors
///
/// [`check`](Self::check) rejects invalid settings, and so does each run. A run also fails if its
/// keys exist already, if the store fails for the observer, and if a round is not complete in time;
/// see [`LabError`].
///
/// ```
/// use std::time::Duration;
/// use writerlease::{lab::{Network, Scenario}, store::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), writerlease::lab::LabError> {
/// let (write, watch) = (Duration::from_millis(2), Duration::from_millis(4));
/// let network = Network { write, watch, ..Network::default() };
/// let scenario = Scenario { replicas: 5, keys: 20, rounds: 4, network, ..Scenario::default() };
/// let report = scenario.run(MemoryStore::new()).await?;
/// assert_eq!((report.writes_needed, report.updates_lost), (80, 0));
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
///
/// To benchmark your own store with criterion (feature `async_tokio`), write
/// `bencher.to_async(&runtime).iter(async || scenario.run(store.clone()).await.unwrap())`. That
/// measures whole runs, each with an election and the [`skew`](Self::skew) of every round;
/// [`Report::rounds`](super::Report::rounds) has the durations of the rounds alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// Strategy of the replicas. Default: [`Strategy::Lease`].
    pub strategy: Strategy,
    /// Number of replicas, at least 1. Default: 3.
    pub replicas: usize,
    /// Number of keys, at least 1. Default: 100.
    pub keys: usize,
    /// Number of rounds, at least 1. Default: 10.
    pub rounds: usize,
    /// Keys that each replica wants, by replica. Replicas beyond the end of the list want all keys.
    /// Default: empty.
    pub wants: Vec<Range<usize>>,
    /// Number of keys, drawn at random, that a round requests. Default: `None`, all keys.
    pub keys_per_round: Option<usize>,
    /// Condition for the start of the next round. Default: [`Pace::WhenRight`].
    pub pace: Pace,
    /// Time between the starts of two rounds; under [`Pace::WhenRight`] the minimum. Default: zero.
    pub gap: Duration,
    /// Time within which each replica receives the request of a round, at random. Default: 20 ms.
    pub skew: Duration,
    /// Rate at which users edit another field of an object, per object and second. After each edit
    /// the replicas are asked for the object again, as a controller would be. Default: 0.
    pub edits: f64,
    /// Round, counted from 1, in which a leader is killed, as soon as half of the round's keys are
    /// up to date. Default: `None`.
    pub kill_leader_at: Option<usize>,
    /// Whether each replica in turn shuts down and starts anew under its name. The first leaves in
    /// round 3, the next three rounds later, and each returns two rounds after it left, as soon as
    /// half of the round's keys are up to date. Default: `false`.
    pub rolling_restart: bool,
    /// Faults of single replicas, such as restarts and pauses. Default: none.
    pub faults: Vec<ReplicaFault>,
    /// Network between each replica and the store. Default: no delay.
    pub network: Network,
    /// Networks of single replicas, by replica, for one whose watch lags or that is far away.
    /// Replicas beyond the end of the list have [`network`](Self::network). Default: empty.
    pub networks: Vec<Network>,
    /// Number of shards of the lease; see [`LeaseBuilder::shards`](crate::LeaseBuilder::shards). Default: 1.
    pub shards: u16,
    /// Whether the replicas share a [roster](crate::Roster), behind the same networks. Its entries are
    /// `replica-0` and so on, under `roster/` and the [prefix](Self::prefix). A replica that shuts
    /// down leaves it; one that is killed does not. Default: `false`.
    pub roster: bool,
    /// Term of the leases. Default: 60 s.
    pub term: Duration,
    /// Number of attempts that each replica may have in flight. Default: 16.
    pub concurrency: usize,
    /// Prefix of the keys in the store. No key may have it before a run, and none has it
    /// afterwards; the same holds for the entries of the [roster](Self::roster). Default: `lab/`.
    pub prefix: String,
    /// Seed of all randomness. Default: 0.
    pub seed: u64,
}

/// A way in which replicas write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Replicas share a lease held by work, through a [`Guard`](crate::Guard).
    #[default]
    Lease,
    /// Every replica writes, and retries on conflict with backoff, like client-go's
    /// `RetryOnConflict`.
    Retry,
}

/// A condition for the start of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// The round before is complete.
    #[default]
    WhenRight,
    /// The [gap](Scenario::gap) is over, even if earlier rounds are incomplete.
    Steady,
}

/// The progress of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Round that has just started, counted from 1; `rounds + 1` after the last.
    pub round: usize,
    /// Number of rounds.
    pub rounds: usize,
}

/// An error that ends a run without a report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A setting of the scenario is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The lease of a replica could not start, for example outside a tokio runtime.
    #[error(transparent)]
    Spawn(SpawnError),
    /// The store failed for the observer, or while a replica started.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key with the prefix, or an entry of the roster, exists already.
    #[error("key {key} exists already; a run needs a prefix of its own")]
    InUse {
        /// The name of the key.
        key: String,
    },
    /// A round was not complete within two terms and 30 s.
    #[error("round {round} was incomplete after {after:?}: {wrong} of {wanted} keys were not up to date")]
    Stuck {
        /// The number of the round.
        round: u64,
        /// The time since the start of the round.
        after: Duration,
        /// The number of keys that were not up to date.
        wrong: usize,
        /// The number of keys that the round requests.
        wanted: usize,
    },
    /// The [`Fleet`](super::Fleet) failed.
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
            rolling_restart: false,
            faults: Vec::new(),
            network: Network::default(),
            networks: Vec::new(),
            shards: 1,
            roster: false,
            term: Duration::from_secs(60),
            concurrency: 16,
            prefix: "lab/".into(),
            seed: 0,
        }
    }
}

impl Scenario {
    /// Connects replica number `index` to `store` through the scenario's network.
    pub fn connect<S: Store>(&self, index: usize, store: S) -> RemoteStore<S> {
        let network = self.networks.get(index).unwrap_or(&self.network);
        RemoteStore::new(store, network.clone(), self.seed_of(SeedStream::Network(index)))
    }

    /// Checks the settings, as each run does.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the invalid field, its value and the rule.
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
                format!("from 1 to the number of keys ({})", self.keys),
            ));
        }
        if let Some(range) = self.wants.iter().find(|range| range.is_empty() || range.end > self.keys) {
            return Err(ConfigError::new(
                "wants",
                range,
                format!("a non-empty range within the keys (0..{})", self.keys),
            ));
        }
        if let Some(fault) = self.faults.iter().find(|fault| fault.replica >= self.replicas) {
            let rule = format!("below the number of replicas ({})", self.replicas);
            return Err(ConfigError::new("faults", fault.replica, rule));
        }
        if !self.edits.is_finite() || self.edits < 0.0 {
            return Err(ConfigError::new("edits", self.edits, "a number of at least 0"));
        }
        if let Some(round) = self.kill_leader_at {
            if !(1..=self.rounds).contains(&round) {
                let rule = format!("from 1 to the number of rounds ({})", self.rounds);
                return Err(ConfigError::new("kill_leader_at", round, rule));
            }
            if self.replicas == 1 {
                return Err(ConfigError::new("replicas", 1, "at least 2, if the leader is killed"));
            }
        }
        if self.rolling_restart {
            if self.replicas == 1 {
                return Err(ConfigError::new("replicas", 1, "at least 2 for a rolling restart"));
            }
            let last = RollingRestart::last_round(self.replicas);
            if self.rounds < last {
                let rule = format!("at least {last} for a rolling restart of {} replicas", self.replicas);
                return Err(ConfigError::new("rounds", self.rounds, rule));
            }
        }
        Ok(())
    }

    /// Returns the prefix of the roster's entries.
    pub(super) fn roster_prefix(&self) -> String {
        format!("roster/{}/", self.prefix.trim_end_matches('/'))
    }

    /// Returns the time after which the run gives up a round.
    pub(super) fn bound(&self) -> Duration {
        self.term.saturating_mul(2).saturating_add(Duration::from_secs(30))
    }

    /// Returns the time within which the last events reach every replica.
    pub(super) fn settling(&self) -> Duration {
        let slowest = |network: &Network| {
            let Network { read, write, watch, late, late_by, .. } = *network;
            let latest = if late > 0.0 { late_by * 8 } else { Duration::ZERO };
            (read + write + watch) * 20 + latest
        };
        let networks = self.networks.iter().chain([&self.network]);
        self.skew + networks.map(slowest).max().unwrap_or_default() + Duration::from_millis(100)
    }

    pub(super) fn rng(&self, stream: SeedStream) -> Xoshiro256PlusPlus {
        Xoshiro256PlusPlus::seed_from_u64(self.seed_of(stream))
    }

    pub(super) fn seed_of(&self, stream: SeedStream) -> u64 {
        let number = match stream {
            SeedStream::Rounds => 0,
            SeedStream::Edits => 1,
            SeedStream::Lease(index) => 2 + 4 * index as u64,
            SeedStream::Network(index) => 3 + 4 * index as u64,
            SeedStream::Skew(index) => 4 + 4 * index as u64,
            SeedStream::Retry(index) => 5 + 4 * index as u64,
        };
        // The multiplier, that of SplitMix64, keeps the streams of neighbouring seeds apart.
        self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number)
    }
}

/// A source of random numbers in a run. Each has its own generator, so that an additional draw from
/// one leaves the others unchanged.
#[derive(Clone, Copy)]
pub(super) enum SeedStream {
    Rounds,
    Edits,
    Lease(usize),
    Network(usize),
    Skew(usize),
    Retry(usize),
}

/// The time that attempts in flight at the end of a run may still take.
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

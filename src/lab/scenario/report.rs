//! The result of a run.

use std::{fmt, time::Duration};

use super::settings::Strategy;

/// The result of a run; [`Display`](fmt::Display) prints it as a few lines of text.
///
/// ```
/// use writerlease::{lab::Scenario, store::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), writerlease::lab::LabError> {
/// let scenario = Scenario { keys: 10, rounds: 3, ..Scenario::default() };
/// let report = scenario.run(MemoryStore::new()).await?;
/// assert_eq!((report.writes_needed, report.updates_lost), (30, 0));
/// assert!(report.writes_attempted >= report.writes_needed);
/// println!("{report}\nmedian round: {:?}", report.round_p50());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Strategy of the replicas.
    pub strategy: Strategy,
    /// Number of replicas at the start.
    pub replicas: usize,
    /// Number of keys.
    pub keys: usize,
    /// Duration of each round, from its start until the observer saw every requested key up to date
    /// in the store.
    pub rounds: Vec<Duration>,
    /// Number of requests, one per round and key: the least number of writes if none is superseded.
    pub writes_needed: u64,
    /// Number of writes sent.
    pub writes_attempted: u64,
    /// Number of writes that the store refused because of a conflict.
    pub writes_refused: u64,
    /// Number of refused writes since the leader was killed; 0 if it never was.
    pub refused_after_kill: u64,
    /// Number of requests that the store does not hold at the end, plus that of acknowledged writes
    /// that are missing in it.
    pub updates_lost: u64,
    /// Number of times that a replica became leader, except for the first.
    pub leader_changes: u64,
    /// Time from the kill of the leader until every key of that round was up to date; `None`
    /// without a kill.
    pub failover: Option<Duration>,
    /// Number of replicas that considered themselves leader at the end.
    pub leaders_at_end: usize,
}

impl Report {
    /// Returns the median duration of a round; zero without rounds.
    pub fn round_p50(&self) -> Duration {
        self.round_percentile(50)
    }

    /// Returns the 99th percentile of the durations of rounds; zero without rounds.
    pub fn round_p99(&self) -> Duration {
        self.round_percentile(99)
    }

    /// Returns the duration of the slowest round; zero without rounds.
    pub fn slowest_round(&self) -> Duration {
        self.round_percentile(100)
    }

    /// Returns a percentile of the durations by the nearest-rank method.
    fn round_percentile(&self, percent: usize) -> Duration {
        let mut times = self.rounds.clone();
        times.sort_unstable();
        let rank = (times.len() * percent).div_ceil(100);
        times.get(rank.max(1) - 1).copied().unwrap_or_default()
    }
}

/// Prints a table of the figures.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} replicas, {} keys, {} rounds, {}",
            self.replicas,
            self.keys,
            self.rounds.len(),
            self.strategy
        )?;
        writeln!(
            f,
            "writes       {} needed, {} attempted, {} refused",
            self.writes_needed, self.writes_attempted, self.writes_refused
        )?;
        writeln!(f, "updates      {} lost", self.updates_lost)?;
        writeln!(f, "round        p50 {:.1?}, p99 {:.1?}", self.round_p50(), self.round_p99())?;
        write!(f, "leadership   {} changes, {} lead at the end", self.leader_changes, self.leaders_at_end)?;
        match self.failover {
            Some(failover) => write!(f, ", failover {failover:.1?}"),
            None => Ok(()),
        }
    }
}

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
    /// Number of shards of the lease.
    pub shards: u16,
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
    /// Number of keys that each replica wrote, by round and replica, as the observer saw them. It
    /// misses writes that a later round superseded before the observer's watch read them.
    pub written: Vec<Vec<u64>>,
    /// Number of times that a key changed hands: another replica wrote it than the one that wrote it
    /// before.
    pub moved: u64,
    /// Number of those since the leader was killed, except for the keys that the dead replica had
    /// written; 0 if none was killed.
    pub moved_after_kill: u64,
    /// Number of writes and deletions of the roster's entries that the replicas sent before the end
    /// of the last round.
    pub roster_writes: u64,
    /// Number of requests that the store does not hold at the end, plus that of acknowledged writes
    /// that are missing in it.
    pub updates_lost: u64,
    /// Number of times that a replica became leader, except for the first; with shards, of all of
    /// them together, except for the first in each.
    pub leader_changes: u64,
    /// Time from the kill of the leader until every key of that round was up to date; `None`
    /// without a kill.
    pub failover: Option<Duration>,
    /// Number of replicas that considered themselves leader at the end, of any shard.
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

    /// Returns the number of keys that each replica wrote in all rounds.
    pub fn written_by_each(&self) -> Vec<u64> {
        let all = |replica| self.written.iter().map(|round| round[replica]).sum();
        (0..self.replicas).map(all).collect()
    }

    /// Returns the number of keys that the busiest replica wrote in all rounds, divided by the mean of
    /// all replicas: 1 if each wrote the same, the number of replicas if one wrote everything.
    pub fn busiest_over_mean(&self) -> f64 {
        let written = self.written_by_each();
        let (all, most) = (written.iter().sum::<u64>(), written.iter().max().copied().unwrap_or(0));
        most as f64 * written.len() as f64 / all as f64
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
            "{} replicas, {} keys, {} rounds, {}, {} {}",
            self.replicas,
            self.keys,
            self.rounds.len(),
            self.strategy,
            self.shards,
            if self.shards == 1 { "shard" } else { "shards" }
        )?;
        writeln!(
            f,
            "writes       {} needed, {} attempted, {} refused",
            self.writes_needed, self.writes_attempted, self.writes_refused
        )?;
        writeln!(f, "updates      {} lost", self.updates_lost)?;
        writeln!(
            f,
            "replicas     the busiest wrote {:.2} x the mean, {} keys changed hands",
            self.busiest_over_mean(),
            self.moved
        )?;
        writeln!(f, "round        p50 {:.1?}, p99 {:.1?}", self.round_p50(), self.round_p99())?;
        write!(f, "leadership   {} changes, {} lead at the end", self.leader_changes, self.leaders_at_end)?;
        match self.failover {
            Some(failover) => write!(f, ", failover {failover:.1?}"),
            None => Ok(()),
        }
    }
}

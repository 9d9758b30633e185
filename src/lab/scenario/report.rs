//! What a run found.

use std::{fmt, time::Duration};

use super::settings::Strategy;

/// What a run found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// How the replicas wrote.
    pub strategy: Strategy,
    /// How many replicas there were at the start.
    pub replicas: usize,
    /// How many keys.
    pub keys: usize,
    /// How long each round took, from its start until every key that it wants was right in the store.
    pub rounds: Vec<Duration>,
    /// Pairs of a key and a round that wants it: as many writes would do.
    pub writes_needed: u64,
    /// Writes sent.
    pub writes_attempted: u64,
    /// Writes refused as stale.
    pub writes_refused: u64,
    /// Writes of those that were refused after the leader was killed.
    pub refused_after_kill: u64,
    /// Rounds missing in keys at the end, and writes that were acknowledged and are not in the store.
    pub updates_lost: u64,
    /// How many times leadership was won, the first one not counted.
    pub leader_changes: u64,
    /// From the kill of the leader until every key of that round was right.
    pub failover: Option<Duration>,
    /// How many replicas thought that they led, when all was done.
    pub leaders_at_end: usize,
}

impl Report {
    /// The median time of a round.
    pub fn round_p50(&self) -> Duration {
        self.round_percentile(50)
    }

    /// The time that 99 of 100 rounds did not exceed.
    pub fn round_p99(&self) -> Duration {
        self.round_percentile(99)
    }

    /// The slowest round; zero if there was none.
    pub fn slowest_round(&self) -> Duration {
        self.round_percentile(100)
    }

    /// The time that this share of the rounds did not exceed (nearest rank).
    fn round_percentile(&self, percent: usize) -> Duration {
        let mut times = self.rounds.clone();
        times.sort_unstable();
        let rank = (times.len() * percent).div_ceil(100);
        times.get(rank.max(1) - 1).copied().unwrap_or_default()
    }
}

/// One line per figure.
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

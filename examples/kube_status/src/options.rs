//! The command line.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use writerlease::lab::Strategy;
use writerlease_example_support::duration;
use writerlease_kube_status::replica::Settings;

/// Replicas of a Kubernetes controller write the same statuses, with leases held by work and without.
///
/// The cluster is that of KUBECONFIG. The run creates a custom resource definition and namespaces,
/// and deletes them at the end.
///
/// Exit code 0: every status is right. 1: some are wrong, or the run failed. 2: the run could not
/// start.
#[derive(Clone, Debug, Parser)]
#[command(name = "kube_status", after_help = FIGURES)]
pub struct Options {
    /// Number of replicas: tasks, or processes with --processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub replicas: u16,
    /// Number of objects whose status every replica writes
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    pub objects: u16,
    /// Number of rounds; each changes all objects
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// Number of shards that the replicas share out among them, by a roster of Lease objects. With 1
    /// there is one lease and no roster, so that one replica writes [default: 16 for each replica]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=MOST_SHARDS))]
    pub shards: Option<u16>,
    /// Kill a replica that leads in the middle of this round, counted from 1
    #[arg(long, value_name = "ROUND")]
    pub kill_leader_at: Option<u16>,
    /// Restart each replica in turn, one every three rounds: it shuts down in the middle of a round,
    /// and starts anew under its name two rounds later
    #[arg(long, conflicts_with = "kill_leader_at")]
    pub rolling_restart: bool,
    /// Time that a successful write holds the lease
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub term: Duration,
    /// Start a process per replica; one that is killed gets SIGKILL
    #[arg(long)]
    pub processes: bool,
    /// `lease`: a lease held by work for each shard. `retry`: every replica writes and retries on conflict. `all`:
    /// both, one after the other
    #[arg(long, default_value = "all")]
    pub strategy: Choice,
    /// Print one JSON object on stdout instead of the table
    #[arg(long)]
    pub json: bool,
    /// Run as replica with this number, started by `--processes`
    #[arg(long, hide = true)]
    pub child: Option<usize>,
    #[arg(long, hide = true, default_value = "")]
    pub namespace: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    Lease,
    Retry,
    All,
}

/// The meaning of the figures that do not explain themselves.
const FIGURES: &str = "\
Figures, with their names in the JSON object of a strategy:
  written by N        `written`: by replica, how many statuses it wrote
  busiest / mean      `busiest_over_mean`: what the busiest replica wrote, divided by the mean of all
  inspections         `inspections`: how many times a replica did the expensive part of a reconcile, which
                      with the lease is left to the one that leads the object
  failover            `failover_ms`: from the kill until all statuses of that round were right
  departure           `departure_ms`: the same from a shutdown; the longest of a rolling restart";

/// The number of shards for each replica, unless the command line says otherwise.
const SHARDS: u16 = 16;
/// The most shards that a lease can have.
const MOST_SHARDS: i64 = 4096;
/// The rounds from one replica's departure to the next one's, and to its own return.
const APART: u64 = 3;
const AWAY: u64 = 2;

impl Options {
    /// Checks the rules that involve more than one option.
    pub fn check(&self) -> Result<(), String> {
        match self.kill_leader_at {
            Some(_) if self.replicas < 2 => {
                Err("--kill-leader-at needs at least 2 --replicas: another one has to take over".into())
            }
            Some(round) if !(1..=self.rounds).contains(&round) => {
                Err(format!("--kill-leader-at is {round}, but must be between 1 and {}", self.rounds))
            }
            _ => Ok(()),
        }?;
        let last = APART * u64::from(self.replicas) + AWAY;
        match self.rolling_restart {
            true if self.replicas < 2 => {
                Err("--rolling-restart needs at least 2 --replicas: another one has to take over".into())
            }
            true if u64::from(self.rounds) < last => {
                Err(format!("--rolling-restart of {} replicas needs at least {last} --rounds", self.replicas))
            }
            _ => Ok(()),
        }
    }

    /// Returns the replica that shuts down in this round.
    pub fn leaves_in(&self, round: u64) -> Option<usize> {
        let turn = round / APART;
        let is_one = self.rolling_restart && round.is_multiple_of(APART);
        (is_one && (1..=self.replicas.into()).contains(&turn)).then_some(turn as usize - 1)
    }

    /// Returns the replica that starts anew in this round.
    pub fn returns_in(&self, round: u64) -> Option<usize> {
        self.leaves_in(round.checked_sub(AWAY)?)
    }

    pub fn strategies(&self) -> &'static [Strategy] {
        match self.strategy {
            Choice::Lease => &[Strategy::Lease],
            Choice::Retry => &[Strategy::Retry],
            Choice::All => &[Strategy::Lease, Strategy::Retry],
        }
    }

    pub fn settings(&self, strategy: Strategy, namespace: &str) -> Settings {
        let most = MOST_SHARDS as u16;
        let shards = self.shards.unwrap_or(SHARDS.saturating_mul(self.replicas).min(most));
        Settings { strategy, namespace: namespace.into(), shards, term: self.term, phase: |_| "ready" }
    }

    /// Returns the arguments of a replica's process.
    pub fn of_child(&self, number: usize, settings: &Settings) -> Vec<String> {
        let pairs = [
            ("--child", number.to_string()),
            ("--strategy", settings.strategy.to_string()),
            ("--namespace", settings.namespace.clone()),
            ("--shards", settings.shards.to_string()),
            ("--term", format!("{}us", settings.term.as_micros())),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

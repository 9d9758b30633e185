//! The command line.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use writerlease::lab::Strategy;
use writerlease_example_support::duration;
use writerlease_kube_status::replica::Settings;

/// Replicas of a Kubernetes controller write the same statuses, with a lease held by work and
/// without.
///
/// The cluster is that of KUBECONFIG. The run creates a custom resource definition and namespaces,
/// and deletes them at the end.
///
/// Exit code 0: every status is right. 1: some are wrong, or the run failed. 2: the run could not
/// start.
#[derive(Clone, Debug, Parser)]
#[command(name = "kube_status")]
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
    /// Kill the leader in the middle of this round, counted from 1
    #[arg(long, value_name = "ROUND")]
    pub kill_leader_at: Option<u16>,
    /// Time that a successful write holds the lease
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub term: Duration,
    /// Start a process per replica; the leader is killed with SIGKILL
    #[arg(long)]
    pub processes: bool,
    /// `lease`: a lease held by work. `retry`: every replica writes and retries on conflict. `all`:
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
        }
    }

    pub fn strategies(&self) -> &'static [Strategy] {
        match self.strategy {
            Choice::Lease => &[Strategy::Lease],
            Choice::Retry => &[Strategy::Retry],
            Choice::All => &[Strategy::Lease, Strategy::Retry],
        }
    }

    pub fn settings(&self, strategy: Strategy, namespace: &str) -> Settings {
        Settings { strategy, namespace: namespace.into(), term: self.term, phase: |_| "ready" }
    }

    /// Returns the arguments of a replica's process.
    pub fn of_child(&self, number: usize, settings: &Settings) -> Vec<String> {
        let pairs = [
            ("--child", number.to_string()),
            ("--strategy", settings.strategy.to_string()),
            ("--namespace", settings.namespace.clone()),
            ("--term", format!("{}us", settings.term.as_micros())),
        ];
        pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    }
}

//! What the command line says.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use writerlease::lab::Strategy;
use writerlease_example_support::duration;
use writerlease_kube_status::replica::Settings;

/// Replicas of a Kubernetes controller that all want to write the same status: with a lease held by work, and without.
///
/// The cluster is that of KUBECONFIG, as usual. A kind of its own and a namespace are made and taken away again.
///
/// Exit code 0: every status is right. 1: some are not, or the run failed. 2: it could not begin.
#[derive(Clone, Debug, Parser)]
#[command(name = "kube_status")]
pub struct Options {
    /// How many replicas the controller has: tasks, or with --processes processes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    pub replicas: u16,
    /// Objects whose status is to be written
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    pub objects: u16,
    /// How often each of them changes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub rounds: u16,
    /// Kill the leader in the middle of this round
    #[arg(long, value_name = "ROUND")]
    pub kill_leader_at: Option<u16>,
    /// How long a write holds the lease
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub term: Duration,
    /// Each replica is an operating system process; the leader is killed with SIGKILL
    #[arg(long)]
    pub processes: bool,
    /// `lease`: by work. `retry`: every replica writes and retries on conflict. `all`: one after the other
    #[arg(long, default_value = "all")]
    pub strategy: Choice,
    /// One JSON object on stdout, and nothing else there
    #[arg(long)]
    pub json: bool,
    /// A replica of `--processes` is this program, too; this is its number
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
    /// What is wrong with it beyond what is said of each option.
    pub fn check(&self) -> Result<(), String> {
        match self.kill_leader_at {
            Some(_) if self.replicas < 2 => {
                Err("--kill-leader-at needs at least 2 --replicas: somebody has to go on".into())
            }
            Some(round) if !(1..=self.rounds).contains(&round) => {
                Err(format!("--kill-leader-at is {round}, and the rounds are 1 to {}", self.rounds))
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

    /// The command line of a replica.
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

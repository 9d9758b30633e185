//! The command line.

use std::{fmt, process::ExitCode, str::FromStr, time::Duration};

use clap::{Parser, ValueEnum};
use writerlease::lab::{Network, Scenario, Strategy};
use writerlease_example_support::{complain, duration, run_number};

/// Several replicas update the same objects: each leads its part of them, one leads all of them, or
/// all write and retry.
///
/// Exit code 0: no update was lost. 1: updates were lost, or the run failed. 2: the run could not
/// start.
#[derive(Clone, Debug, Parser)]
#[command(name = "contended_updates", after_help = FIGURES)]
pub struct Options {
    /// Store: `memory`, or `etcd://`, `redis://` (several nodes: a cluster) or `zookeeper://`
    /// followed by `host:port[,host:port...]`; each needs the cargo feature of its name
    #[arg(long, default_value = "memory")]
    pub backend: Backend,
    /// Number of replicas: tasks, or processes with --processes
    #[arg(long, default_value_t = 3)]
    pub replicas: usize,
    /// Number of objects that every replica updates
    #[arg(long, default_value_t = 200)]
    pub keys: usize,
    /// Number of rounds; each changes all objects
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// Simulated latency of a write and of a watch event; a read takes half [default: 2ms, with a
    /// server 0ms]
    #[arg(long, value_parser = duration)]
    pub latency: Option<Duration>,
    /// Time that a successful write holds the lease
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub term: Duration,
    /// Number of shards that the replicas share out among them [default: 16 for each replica]
    #[arg(long)]
    pub shards: Option<u16>,
    /// Kill a replica that leads in the middle of this round, counted from 1
    #[arg(long, value_name = "ROUND")]
    pub kill_leader_at: Option<usize>,
    /// Restart each replica in turn, one every three rounds: it shuts down in the middle of a round,
    /// and starts anew under its name two rounds later
    #[arg(long)]
    pub rolling_restart: bool,
    /// Start a process per replica; one that is killed gets SIGKILL
    #[arg(long)]
    pub processes: bool,
    /// Number of writes that each replica may have in flight
    #[arg(long, default_value_t = 16)]
    pub concurrency: usize,
    /// Seed of all randomness
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print one JSON object on stdout instead of the table
    #[arg(long)]
    pub json: bool,
    /// Strategies to run one after the other, separated by commas. `shards`: leases held by work, one
    /// for each shard, so that each replica writes a part of the objects. `lease`: one lease held by
    /// work, so that one replica writes. `retry`: every replica writes and retries on conflict
    #[arg(long, value_name = "NAMES", value_delimiter = ',', hide_possible_values = true)]
    #[arg(default_value = "shards,lease,retry")]
    pub strategy: Vec<Choice>,
    /// Run as replica with this number, started by `--processes`
    #[arg(long, hide = true)]
    pub child: Option<usize>,
    #[arg(long, hide = true, default_value_t = unique_prefix())]
    pub prefix: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    Memory,
    /// `host:port`, separated by commas, as for the other servers.
    Etcd(String),
    Redis(String),
    Zookeeper(String),
}

/// A strategy, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Choice {
    Shards,
    Lease,
    Retry,
}

/// The meaning of the figures that do not explain themselves.
const FIGURES: &str = "\
Figures, with their names in the JSON object of a strategy:
  keys written by N   `written`: by replica, how many keys it wrote in all rounds
  busiest / mean      `busiest_over_mean`: what the busiest replica wrote, divided by the mean of all.
                      It is 1 if each wrote the same, and the number of replicas if one wrote everything
  keys that moved     `moved`: how many times a key was written by another replica than the time before
  leader changes      `leader_changes`: how many times a replica became leader, except for the first; with
                      shards, of all of them together, except for the first in each
  leaders at the end  `leaders_at_end`: how many replicas lead at the end, at least one shard each
  failover            `failover_ms`: from the kill until all keys of that round were right";

/// The number of shards for each replica, unless the command line says otherwise.
const SHARDS: usize = 16;
/// The most shards that a lease can have.
const MOST_SHARDS: usize = 4096;

/// Parses the command line, or returns the exit code if there is nothing to run.
pub fn read() -> Result<Options, ExitCode> {
    let mut options: Options = writerlease_example_support::read()?;
    options.strategy.sort_unstable();
    options.strategy.dedup();
    if options.processes && options.backend == Backend::Memory {
        return Err(complain(
            "--processes needs a server (processes share no memory): add --backend etcd://host:port or similar",
        ));
    }
    Ok(options)
}

impl Options {
    pub fn scenario(&self, choice: Choice) -> Scenario {
        let strategy = match choice {
            Choice::Shards | Choice::Lease => Strategy::Lease,
            Choice::Retry => Strategy::Retry,
        };
        let roster = choice == Choice::Shards;
        let shards = self.shards.unwrap_or(SHARDS.saturating_mul(self.replicas).min(MOST_SHARDS) as u16);
        let latency = self.latency.unwrap_or(match self.backend {
            Backend::Memory => Duration::from_millis(2),
            _ => Duration::ZERO,
        });
        Scenario {
            strategy,
            replicas: self.replicas,
            keys: self.keys,
            rounds: self.rounds,
            kill_leader_at: self.kill_leader_at,
            rolling_restart: self.rolling_restart,
            network: Network { read: latency / 2, write: latency, watch: latency, ..Network::default() },
            shards: if roster { shards } else { 1 },
            roster,
            term: self.term,
            concurrency: self.concurrency,
            prefix: self.prefix.clone(),
            seed: self.seed,
            ..Scenario::default()
        }
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            None if text == "memory" => return Ok(Self::Memory),
            Some((name, hosts)) if hosts.split(',').all(|host| host.contains(':')) => {
                let of = [Self::Etcd, Self::Redis, Self::Zookeeper].map(|backend| backend(hosts.to_owned()));
                of.into_iter().find(|backend| backend.name() == name)
            }
            _ => None,
        }
        .ok_or_else(|| "expected `memory`, or `etcd://`, `redis://` or `zookeeper://` and `host:port`".into())
    }
}

impl Backend {
    /// Returns the name of the scheme, which is that of the cargo feature.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Etcd(_) => "etcd",
            Self::Redis(_) => "redis",
            Self::Zookeeper(_) => "zookeeper",
        }
    }
}

/// Prints the backend as the command line has it.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Etcd(hosts) | Self::Redis(hosts) | Self::Zookeeper(hosts) => {
                write!(f, "{}://{hosts}", self.name())
            }
        }
    }
}

/// Prints the strategy as the command line has it.
impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shards => "shards",
            Self::Lease => "lease",
            Self::Retry => "retry",
        })
    }
}

/// Returns a prefix that no other run uses.
fn unique_prefix() -> String {
    format!("contended-updates/{:016x}/", run_number())
}

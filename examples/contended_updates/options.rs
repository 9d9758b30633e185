//! What the command line says.

use std::{fmt, process::ExitCode, str::FromStr, time::Duration};

use clap::{Parser, ValueEnum};
use writerlease::lab::{Network, Scenario, Strategy};
use writerlease_example_support::{complain, duration, run_number};

use crate::STRATEGIES;

/// Replicas that all want the same objects to be the same: with a lease held by work, and without.
///
/// Exit code 0: no update was lost. 1: some were, or the run failed. 2: it could not begin.
#[derive(Clone, Debug, Parser)]
#[command(name = "contended_updates")]
pub struct Options {
    /// `memory`, or with the feature of that name `etcd://`, `redis://` (several nodes: a cluster) or `zookeeper://`,
    /// followed by `host:port[,host:port...]`
    #[arg(long, default_value = "memory")]
    pub backend: Backend,
    /// How many want to write: tasks, or with --processes processes
    #[arg(long, default_value_t = 3)]
    pub replicas: usize,
    /// Objects that they want to write
    #[arg(long, default_value_t = 200)]
    pub keys: usize,
    /// How often all objects change
    #[arg(long, default_value_t = 20)]
    pub rounds: usize,
    /// What a write and a watch event take in addition; a read takes half of it [default: 2ms, with a server 0ms]
    #[arg(long, value_parser = duration)]
    pub latency: Option<Duration>,
    /// How long a write holds the lease
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub term: Duration,
    /// Kill the leader in the middle of this round
    #[arg(long, value_name = "ROUND")]
    pub kill_leader_at: Option<usize>,
    /// Each replica is an operating system process; the leader is killed with SIGKILL
    #[arg(long)]
    pub processes: bool,
    /// How many writes each of them may have under way
    #[arg(long, default_value_t = 16)]
    pub concurrency: usize,
    /// The seed of all randomness
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// One JSON object on stdout, and nothing else there
    #[arg(long)]
    pub json: bool,
    /// `lease`: by work. `retry`: every replica writes and retries on conflict. `all`: one after the other
    #[arg(long, default_value = "all")]
    pub strategy: Choice,
    /// A replica of `--processes` is this program, too; this is its number
    #[arg(long, hide = true)]
    pub child: Option<usize>,
    #[arg(long, hide = true, default_value_t = unique_prefix())]
    pub prefix: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    Memory,
    /// `host:port`, one or several with commas, as for the others.
    Etcd(String),
    Redis(String),
    Zookeeper(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    Lease,
    Retry,
    All,
}

/// Reads the command line. If there is nothing to run, returns how to exit.
pub fn read() -> Result<Options, ExitCode> {
    let options: Options = writerlease_example_support::read()?;
    if options.processes && options.backend == Backend::Memory {
        return Err(complain(
            "--processes needs a server, such as --backend etcd://host:port: processes share no memory",
        ));
    }
    Ok(options)
}

impl Options {
    pub fn strategies(&self) -> impl Iterator<Item = Strategy> {
        let choice = self.strategy;
        STRATEGIES.into_iter().filter(move |strategy| match choice {
            Choice::All => true,
            Choice::Lease => *strategy == Strategy::Lease,
            Choice::Retry => *strategy == Strategy::Retry,
        })
    }

    pub fn scenario(&self, strategy: Strategy) -> Scenario {
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
            network: Network { read: latency / 2, write: latency, watch: latency, ..Network::default() },
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
        .ok_or_else(|| "it is `memory`, or `etcd://`, `redis://` or `zookeeper://` and `host:port`".into())
    }
}

impl Backend {
    /// That of the scheme and of the feature.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Etcd(_) => "etcd",
            Self::Redis(_) => "redis",
            Self::Zookeeper(_) => "zookeeper",
        }
    }
}

/// As it was given.
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

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "lease",
            Self::Retry => "retry",
            Self::All => "all",
        })
    }
}

/// Nobody else's keys.
fn unique_prefix() -> String {
    format!("contended-updates/{:016x}/", run_number())
}

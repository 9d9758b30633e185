//! The command line.

use std::{fmt, process::ExitCode, str::FromStr, time::Duration};

use clap::Parser;
use writerlease_example_support::{complain, duration, run_number};

/// An election between processes: the leader resigns, is killed or paused, and another takes over.
///
/// Exit code 0: never two leaders at the same time, and no stale write. 1: this was violated, or
/// the run failed. 2: the run could not start.
#[derive(Clone, Debug, Parser)]
#[command(name = "elected")]
pub struct Options {
    /// Server: `etcd://`, `etcd+key://` (the candidate that creates the key leads), `redis://` or
    /// `zookeeper://`, followed by `host:port[,host:port...]`
    #[arg(long)]
    pub backend: Backend,
    /// Number of processes that compete
    #[arg(long, default_value_t = 3)]
    pub candidates: usize,
    /// Number of leader changes
    #[arg(long, default_value_t = 9)]
    pub takeovers: usize,
    /// Time after which the others replace a silent leader
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub ttl: Duration,
    /// Let leaders resign
    #[arg(long)]
    pub resign: bool,
    /// Kill leaders with SIGKILL
    #[arg(long)]
    pub kill: bool,
    /// Pause leaders with SIGSTOP until another candidate leads
    #[arg(long)]
    pub pause: bool,
    /// Print one JSON object on stdout instead of the table
    #[arg(long)]
    pub json: bool,
    /// Run as candidate with this name, started by the parent
    #[arg(long, hide = true, default_value = "")]
    pub name: String,
    #[arg(long, hide = true, default_value_t = unique_prefix())]
    pub prefix: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    Etcd(String),
    EtcdKey(String),
    Redis(String),
    Zookeeper(String),
}

/// The way in which a leadership ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Resigns,
    Killed,
    Paused,
}

/// Parses the command line, or returns the exit code if there is nothing to run.
pub fn read() -> Result<Options, ExitCode> {
    let options: Options = writerlease_example_support::read()?;
    if options.takeovers == 0 {
        return Err(complain("--takeovers is 0, but must be at least 1"));
    }
    if options.candidates < 2 {
        return Err(complain("--candidates is less than 2: no other candidate could take over"));
    }
    Ok(options)
}

impl Options {
    pub fn is_candidate(&self) -> bool {
        !self.name.is_empty()
    }

    /// Returns an endless sequence of the chosen ways to end a leadership; of all ways if none is
    /// chosen.
    pub fn ends(&self) -> impl Iterator<Item = End> + use<> {
        let chosen = [(self.resign, End::Resigns), (self.kill, End::Killed), (self.pause, End::Paused)];
        let all = chosen.iter().all(|(chosen, _)| !chosen);
        let ends: Vec<_> =
            chosen.into_iter().filter(|(chosen, _)| all || *chosen).map(|(_, end)| end).collect();
        ends.into_iter().cycle()
    }
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let of = match text.split_once("://") {
            Some((name, hosts)) if hosts.split(',').all(|host| host.contains(':')) => {
                let all = [Self::Etcd, Self::EtcdKey, Self::Redis, Self::Zookeeper];
                all.map(|backend| backend(hosts.to_owned()))
                    .into_iter()
                    .find(|backend| backend.name() == name)
            }
            _ => None,
        };
        of.ok_or_else(|| "expected etcd://, etcd+key://, redis:// or zookeeper://, and host:port".into())
    }
}

impl Backend {
    fn name(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::EtcdKey(_) => "etcd+key",
            Self::Redis(_) => "redis",
            Self::Zookeeper(_) => "zookeeper",
        }
    }

    #[cfg(not(all(feature = "etcd", feature = "redis", feature = "zookeeper")))]
    pub fn feature(&self) -> &'static str {
        self.name().trim_end_matches("+key")
    }
}

/// Prints the backend as the command line has it.
impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Etcd(hosts) | Self::EtcdKey(hosts) | Self::Redis(hosts) | Self::Zookeeper(hosts)) = self;
        write!(f, "{}://{hosts}", self.name())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Resigns => "resigns",
            Self::Killed => "killed",
            Self::Paused => "paused",
        })
    }
}

/// Returns a prefix that no other run uses.
fn unique_prefix() -> String {
    format!("elected/{:016x}/", run_number())
}

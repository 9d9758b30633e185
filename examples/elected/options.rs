//! What the command line says.

use std::{fmt, process::ExitCode, str::FromStr, time::Duration};

use clap::Parser;
use writerlease_example_support::{complain, duration, run_number};

/// Candidates that are processes: the leader resigns, is killed or paused, and another takes over.
///
/// Exit code 0: never two leaders at a time, no stale write. 1: there were, or the run failed. 2: it could not begin.
#[derive(Clone, Debug, Parser)]
#[command(name = "elected")]
pub struct Options {
    /// `etcd://`, `etcd+key://` (who creates the key leads), `redis://` or `zookeeper://`, followed by
    /// `host:port[,host:port...]`
    #[arg(long)]
    pub backend: Backend,
    /// How many processes compete
    #[arg(long, default_value_t = 3)]
    pub candidates: usize,
    /// How often the leader changes
    #[arg(long, default_value_t = 9)]
    pub takeovers: usize,
    /// How long others wait for a leader that is silent
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub ttl: Duration,
    /// Leaders resign
    #[arg(long)]
    pub resign: bool,
    /// Leaders are killed with SIGKILL
    #[arg(long)]
    pub kill: bool,
    /// Leaders are paused with SIGSTOP until another leads
    #[arg(long)]
    pub pause: bool,
    /// One JSON object on stdout, and nothing else there
    #[arg(long)]
    pub json: bool,
    /// A candidate is this program, too; this is its name
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

/// How a reign is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Resigns,
    Killed,
    Paused,
}

/// Reads the command line. If there is nothing to run, returns how to exit.
pub fn read() -> Result<Options, ExitCode> {
    let options: Options = writerlease_example_support::read()?;
    if options.takeovers == 0 {
        return Err(complain("--takeovers is 0: there would be nothing to see"));
    }
    if options.candidates < 2 {
        return Err(complain("--candidates is less than 2: there would be nobody to take over"));
    }
    Ok(options)
}

impl Options {
    pub fn is_candidate(&self) -> bool {
        !self.name.is_empty()
    }

    /// How reigns end, one after the other: all ways, unless some are chosen.
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
        of.ok_or_else(|| "it is etcd://, etcd+key://, redis:// or zookeeper://, and host:port".into())
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

/// As it was given.
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

/// Nobody else's keys.
fn unique_prefix() -> String {
    format!("elected/{:016x}/", run_number())
}

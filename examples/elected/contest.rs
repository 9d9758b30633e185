//! The candidates' parent, which ends one leadership after the other and watches the store.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use writerlease::store::{Event, Store};

use crate::{
    leaderships::{Leaderships, clock},
    options::{End, Options},
};

/// All leaderships, as the candidates report them.
type Shared = Arc<Mutex<Leaderships>>;

struct Candidate {
    process: Child,
    stdin: ChildStdin,
    listener: JoinHandle<()>,
    /// Turns true once the candidate has joined the election.
    joined: watch::Receiver<bool>,
    name: String,
}

/// The reason why a run has no result.
pub enum Failure {
    /// The run could not start.
    Usage(String),
    /// The run failed.
    Run(String),
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Run(reason)
    }
}

pub async fn run<S: Store>(options: &Options, store: S) -> Result<Leaderships, Failure> {
    let shared = Shared::default();
    let stale =
        tokio::spawn(stale_writes(store.watch(&format!("{}writes/", options.prefix)), shared.clone()));
    let mut candidates = Vec::new();
    for number in 0..options.candidates {
        candidates.push(Candidate::start(options, number, &shared)?);
    }
    for candidate in &mut candidates {
        if !candidate.joined().await? {
            // The candidate has printed the reason.
            return Err(Failure::Usage(format!("{} did not join", candidate.name)));
        }
    }
    let mut started = options.candidates;
    for (number, end) in options.ends().take(options.takeovers).enumerate() {
        eprintln!("{number} of {} takeovers", options.takeovers);
        for candidate in &mut candidates {
            // The result is ignored: a candidate that has exited is replaced below.
            candidate.joined().await?;
        }
        let token = leader(&shared, 0).await?;
        // Spreads the takeovers over the interval between two renewals.
        sleep(options.ttl.mul_f64((number * 7 % 10) as f64 / 10.0)).await;
        let name = lock(&shared).by_token[&token].leader.clone();
        let position = candidates
            .iter()
            .position(|candidate| candidate.name == name)
            .ok_or_else(|| "the leader has exited".to_owned())?;
        lock(&shared).by_token.entry(token).or_default().end = Some((end, clock()));
        match end {
            End::Resigns => {
                let sent = candidates[position].stdin.write_all(b"resign\n").await;
                sent.map_err(|error| format!("{name}: {error}"))?;
                leader(&shared, token).await?;
            }
            End::Killed => {
                candidates.remove(position).end(Signal::KILL).await?;
                leader(&shared, token).await?;
            }
            End::Paused => {
                candidates[position].signal(Signal::STOP)?;
                leader(&shared, token).await?;
                // Gives the successor time to write before the paused leader wakes.
                sleep(Duration::from_millis(50)).await;
                candidates[position].signal(Signal::CONT)?;
            }
        }
        // An elector fails when its session ends, and its process exits with it.
        let mut index = 0;
        while index < candidates.len() {
            if candidates[index].listener.is_finished() {
                candidates.remove(index).end(Signal::KILL).await?;
            } else {
                index += 1;
            }
        }
        while candidates.len() < options.candidates {
            candidates.push(Candidate::start(options, started, &shared)?);
            started += 1;
        }
    }
    // The candidate paused last may still try a stale write.
    sleep(options.ttl).await;
    // Leaderships that start while the candidates close are left out.
    let tokens: Vec<u64> = lock(&shared).by_token.keys().copied().collect();
    for candidate in candidates {
        candidate.finish().await?;
    }
    stale.abort();
    clear(options, &store, started).await;
    let mut leaderships = std::mem::take(&mut *lock(&shared));
    leaderships.by_token.retain(|token, _| tokens.contains(token));
    Ok(leaderships)
}

/// Deletes the candidates' keys and ignores errors.
async fn clear(options: &Options, store: &impl Store, started: usize) {
    let written = (0..started).map(|number| format!("writes/candidate-{number}"));
    for name in written.chain(["leader".to_owned()]) {
        let key = format!("{}{name}", options.prefix);
        if let Ok(Some(entry)) = store.get(&key).await {
            let _ = store.delete(&key, &entry.version, None).await;
        }
    }
}

/// Counts writes that succeeded after one with a greater token.
async fn stale_writes(
    changes: impl futures_util::Stream<Item = Result<Event, writerlease::store::StoreError>>,
    shared: Shared,
) {
    let mut changes = std::pin::pin!(changes);
    // The token and the revision of the newest write over all keys: each candidate has its own key.
    let mut newest: Option<(u64, u64)> = None;
    while let Some(change) = changes.next().await {
        let Ok(Event::Put(entry) | Event::InitEntry(entry)) = change else { continue };
        let token: Option<u64> = std::str::from_utf8(&entry.value).ok().and_then(|token| token.parse().ok());
        let (Some(token), Some(order)) = (token, entry.version.key_revision()) else { continue };
        match newest {
            Some((seen, at)) if token < seen && order > at => lock(&shared).stale += 1,
            Some((seen, _)) if token <= seen => {}
            _ => newest = Some((token, order)),
        }
    }
}

/// Waits for a leader that acts and has a token greater than this; returns the token.
async fn leader(shared: &Shared, after: u64) -> Result<u64, String> {
    let found = async {
        loop {
            let newest = lock(shared)
                .by_token
                .iter()
                .next_back()
                .filter(|(token, leadership)| {
                    **token > after && leadership.acted.is_some() && leadership.end.is_none()
                })
                .map(|(token, _)| *token);
            if let Some(token) = newest {
                return token;
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, found).await.map_err(|_| format!("no leader after {PATIENCE:?}"))
}

impl Candidate {
    fn start(options: &Options, number: usize, shared: &Shared) -> Result<Self, String> {
        let name = format!("candidate-{number}");
        let failed = |error: std::io::Error| format!("{name}: {error}");
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        let (backend, ttl) = (options.backend.to_string(), format!("{}ms", options.ttl.as_millis()));
        command.args(["--name", &name, "--backend", &backend, "--ttl", &ttl, "--prefix", &options.prefix]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().map_err(failed)?;
        let (stdin, stdout) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let (joins, joined) = watch::channel(false);
        let listener = tokio::spawn(listen(name.clone(), stdout, shared.clone(), joins));
        Ok(Self { process, stdin, listener, joined, name })
    }

    /// Waits until the candidate has joined; returns `false` if it has exited.
    async fn joined(&mut self) -> Result<bool, String> {
        let joined = timeout(PATIENCE, self.joined.wait_for(|joined| *joined)).await;
        let joined = joined.map_err(|_| format!("{} did not join within {PATIENCE:?}", self.name))?;
        Ok(joined.is_ok())
    }

    fn signal(&self, signal: Signal) -> Result<(), String> {
        let id = self.process.id().and_then(|id| Pid::from_raw(id as i32)).ok_or("the process has exited")?;
        kill_process(id, signal).map_err(|error| format!("{}: {error}", self.name))
    }

    async fn end(mut self, signal: Signal) -> Result<(), String> {
        // Fails if the process has exited already.
        let _ = self.signal(signal);
        self.process.wait().await.map_err(|error| error.to_string())?;
        self.listener.await.map_err(|error| error.to_string())
    }

    /// Asks the candidate to close and waits for its exit.
    async fn finish(self) -> Result<(), String> {
        let Self { mut process, stdin, listener, name, .. } = self;
        drop(stdin);
        let ended = timeout(PATIENCE, process.wait()).await;
        ended
            .map_err(|_| format!("{name} did not exit within {PATIENCE:?}"))?
            .map_err(|error| error.to_string())?;
        listener.await.map_err(|error| error.to_string())
    }
}

/// Reads the output of a candidate until it closes.
async fn listen(name: String, stdout: ChildStdout, shared: Shared, joins: watch::Sender<bool>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        match what {
            "joined" => drop(joins.send_replace(true)),
            "failed" => eprintln!("{name} is replaced: {}", line.trim_start_matches("failed ")),
            _ => {}
        }
        let mut numbers = words.filter_map(|word| word.parse::<u64>().ok());
        let (Some(token), time) = (numbers.next(), numbers.next()) else { continue };
        let mut leaderships = lock(&shared);
        leaderships.fenced += u64::from(what == "fenced");
        let leadership = leaderships.by_token.entry(token).or_default();
        leadership.leader.clone_from(&name);
        match (what, time) {
            ("elected", Some(time)) if leadership.elected == 0 => leadership.elected = time,
            ("acts", Some(time)) => {
                let first = leadership.acted.map_or(time, |(first, _)| first);
                leadership.acted = Some((first, time));
            }
            ("wrote", _) => leadership.writes += 1,
            _ => {}
        }
    }
}

fn lock(leaderships: &Mutex<Leaderships>) -> MutexGuard<'_, Leaderships> {
    leaderships.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The longest time to wait for an expected event.
const PATIENCE: Duration = Duration::from_secs(30);

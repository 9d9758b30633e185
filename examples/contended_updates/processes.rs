//! Replicas in processes of their own.
//!
//! ```text
//! parent ── "want ROUND KEY..." ──> stdin of each child; a child exits when stdin closes
//!        <── "ready", "sent KEY", "succeeded KEY", "refused KEY", ── stdout
//!            "leads 0|1 WINS", "error REASON"
//! ```
//!
//! A child flushes each line before it continues, so that the parent knows all writes of a killed
//! child.

use std::{
    io::Write,
    process::{Stdio, exit},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, stdin},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use writerlease::{
    lab::{Fleet, LabError, Replica, Scenario, Strategy, WriteEvent, WriteLog},
    store::Store,
};

use crate::options::Options;

/// The parent's side.
pub struct Processes {
    strategy: Strategy,
    members: Vec<Member>,
    write_log: Arc<Mutex<WriteLog>>,
}

struct Member {
    process: Child,
    /// `None` once the child was killed or asked to exit.
    stdin: Option<ChildStdin>,
    heard: watch::Receiver<Heard>,
    listener: JoinHandle<()>,
}

/// The state of a child as its output shows it.
#[derive(Debug, Default)]
struct Heard {
    ready: bool,
    leads: bool,
    wins: u64,
    error: Option<String>,
    /// Its stdout has closed.
    gone: bool,
}

/// The longest time that a child may take to start or to exit.
const PATIENCE: Duration = Duration::from_secs(40);

impl Processes {
    /// Starts a process per replica and waits until the watch of each is live.
    pub async fn start(options: &Options, scenario: &Scenario) -> Result<Self, LabError> {
        let program = std::env::current_exe().map_err(|error| failed(0, error))?;
        let mut fleet = Self { strategy: scenario.strategy, members: Vec::new(), write_log: Arc::default() };
        for index in 0..scenario.replicas {
            let mut command = Command::new(&program);
            command.args(arguments(options, scenario, index));
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
            let mut process = command.spawn().map_err(|error| failed(index, error))?;
            let (stdin, stdout) = (process.stdin.take(), process.stdout.take().expect("piped"));
            let (said, heard) = watch::channel(Heard::default());
            let listener = tokio::spawn(listen(stdout, said, fleet.write_log.clone()));
            fleet.members.push(Member { process, stdin, heard, listener });
        }
        for index in 0..fleet.members.len() {
            let heard = &mut fleet.members[index].heard;
            let ready = timeout(PATIENCE, heard.wait_for(|heard| heard.ready || heard.gone)).await.is_ok();
            let reason = (!ready).then(|| "did not start in time".to_owned());
            if let Some(reason) = reason.or_else(|| fleet.members[index].died()) {
                fleet.stop().await;
                return Err(failed(index, reason));
            }
        }
        Ok(fleet)
    }

    /// Kills the remaining processes and waits for their exit.
    pub async fn stop(&mut self) {
        for member in &mut self.members {
            member.stdin = None;
            // Fails if the process has exited already.
            let _ = member.process.kill().await;
        }
    }
}

impl Fleet for Processes {
    async fn want(&mut self, round: u64, keys: &[usize]) -> Result<(), LabError> {
        let mut line = format!("want {round}");
        for key in keys {
            line += &format!(" {key}");
        }
        line.push('\n');
        for (index, member) in self.members.iter_mut().enumerate() {
            if let Some(stdin) = &mut member.stdin {
                let sent = stdin.write_all(line.as_bytes()).await;
                if let Some(reason) = member.died().or_else(|| Some(sent.err()?.to_string())) {
                    return Err(failed(index, reason));
                }
            }
        }
        Ok(())
    }

    fn kill_leader(&mut self) -> bool {
        let any = self.strategy == Strategy::Retry;
        let leader = self.members.iter_mut().find(|member| member.stdin.is_some() && (any || member.leads()));
        let Some(leader) = leader else { return false };
        leader.stdin = None;
        leader.process.start_kill().is_ok()
    }

    fn leaders(&self) -> usize {
        self.members.iter().filter(|member| member.stdin.is_some() && member.leads()).count()
    }

    fn wins(&self) -> u64 {
        self.members.iter().map(|member| member.heard.borrow().wins).sum()
    }

    fn write_log(&self) -> WriteLog {
        lock(&self.write_log).clone()
    }

    async fn finish(&mut self) -> Result<(), LabError> {
        for member in &mut self.members {
            member.stdin = None;
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            let ended = async { tokio::join!(member.process.wait(), &mut member.listener) };
            timeout(PATIENCE, ended)
                .await
                .map_err(|_| failed(index, "did not exit in time"))?
                .0
                .map_err(|error| failed(index, error))?;
        }
        Ok(())
    }
}

impl Member {
    fn leads(&self) -> bool {
        self.heard.borrow().leads
    }

    /// Returns the reason for the child's exit if the parent did not kill it.
    fn died(&self) -> Option<String> {
        let heard = self.heard.borrow();
        heard.gone.then(|| heard.error.clone().unwrap_or_else(|| "exited unexpectedly".into()))
    }
}

/// Reads the output of a child until it closes.
async fn listen(stdout: ChildStdout, said: watch::Sender<Heard>, write_log: Arc<Mutex<WriteLog>>) {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let (kind, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let record = |event: fn(usize) -> WriteEvent| {
            if let Ok(key) = rest.parse() {
                lock(&write_log).record(event(key));
            }
        };
        match kind {
            "sent" => record(WriteEvent::Sent),
            "succeeded" => record(WriteEvent::Succeeded),
            "refused" => record(WriteEvent::Refused),
            "ready" => said.send_modify(|heard| heard.ready = true),
            "error" => said.send_modify(|heard| heard.error = Some(rest.into())),
            "leads" => {
                let (leads, wins) = rest.split_once(' ').unwrap_or_default();
                said.send_modify(|heard| {
                    heard.leads = leads == "1";
                    heard.wins = wins.parse().unwrap_or(heard.wins);
                });
            }
            _ => {}
        }
    }
    said.send_modify(|heard| heard.gone = true);
}

fn arguments(options: &Options, scenario: &Scenario, index: usize) -> Vec<String> {
    let mut arguments = vec!["--processes".to_owned()];
    let mut add = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    add("child", index.to_string());
    add("backend", options.backend.to_string());
    add("prefix", scenario.prefix.clone());
    add("strategy", scenario.strategy.to_string());
    add("replicas", scenario.replicas.to_string());
    add("keys", scenario.keys.to_string());
    add("rounds", scenario.rounds.to_string());
    add("latency", format!("{}us", scenario.network.write.as_micros()));
    add("term", format!("{}us", scenario.term.as_micros()));
    add("seed", scenario.seed.to_string());
    arguments
}

fn lock(write_log: &Mutex<WriteLog>) -> MutexGuard<'_, WriteLog> {
    write_log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failed(index: usize, reason: impl ToString) -> LabError {
    LabError::Fleet(format!("replica {index}: {}", reason.to_string()))
}

/// The child's side: runs one replica until stdin closes.
pub async fn replica(options: &Options, index: usize, store: impl Store) -> ! {
    let strategy = options.strategies().next().expect("there is always one");
    let scenario = options.scenario(strategy);
    let record = |event| match event {
        WriteEvent::Sent(key) => say(format!("sent {key}")),
        WriteEvent::Succeeded(key) => say(format!("succeeded {key}")),
        WriteEvent::Refused(key) => say(format!("refused {key}")),
    };
    let replica = match Replica::start(&scenario, index, scenario.connect(index, store), record).await {
        Ok(replica) => replica,
        Err(error) => {
            say(format!("error {error}"));
            exit(1)
        }
    };
    if let Some(mut statuses) = replica.statuses() {
        tokio::spawn(async move {
            loop {
                let status = *statuses.borrow_and_update();
                say(format!("leads {} {}", u8::from(status.is_leader), status.epoch));
                if statuses.changed().await.is_err() {
                    return;
                }
            }
        });
    }
    say("ready".into());
    let mut lines = BufReader::new(stdin()).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut words = line.split(' ').skip(1).filter_map(|word| word.parse().ok());
        let round = words.next().unwrap_or(0);
        let keys: Vec<usize> = words.map(|key: u64| key as usize).collect();
        replica.want(round, &keys);
    }
    replica.finish(Duration::from_secs(5)).await;
    exit(0)
}

/// Prints one line immediately. Exits if the parent has closed the pipe.
fn say(line: String) {
    if std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).is_err() {
        exit(1);
    }
}

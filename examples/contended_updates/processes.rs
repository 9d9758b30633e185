//! Replicas in processes of their own.
//!
//! ```text
//! parent ── "want ROUND KEY..." ──> stdin of each child; a child exits when stdin closes
//!        <── "ready", "sent KEY", "succeeded KEY", "refused KEY", ── stdout
//!            "roster", "leads 0|1 WINS", "error REASON"
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
    lab::{Fleet, LabError, Replica, ReplicaFaultKind, WriteEvent, WriteLog},
    store::Store,
};

use crate::options::{Choice, Options};

/// The parent's side.
pub struct Processes {
    options: Options,
    choice: Choice,
    members: Vec<Member>,
    /// The last request. It has all keys, as each round of this example has.
    wanted: String,
    write_log: Arc<Mutex<WriteLog>>,
    /// The wins of processes that others have replaced.
    wins_before: u64,
}

struct Member {
    process: Child,
    /// Counts the processes of this replica.
    starts: u64,
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
    pub async fn start(options: &Options, choice: Choice) -> Result<Self, LabError> {
        let mut fleet = Self {
            options: options.clone(),
            choice,
            members: Vec::new(),
            wanted: String::new(),
            write_log: Arc::default(),
            wins_before: 0,
        };
        for index in 0..options.replicas {
            fleet.members.push(fleet.spawn(index, 1)?);
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

    fn spawn(&self, index: usize, starts: u64) -> Result<Member, LabError> {
        let failed = |error| failed(index, error);
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(arguments(&self.options, self.choice, index, starts));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn().map_err(failed)?;
        let (stdin, stdout) = (process.stdin.take(), process.stdout.take().expect("piped"));
        let (said, heard) = watch::channel(Heard::default());
        let listener = tokio::spawn(listen(stdout, said, self.write_log.clone()));
        Ok(Member { process, starts, stdin, heard, listener })
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
        self.wanted = line;
        for (index, member) in self.members.iter_mut().enumerate() {
            if let Some(stdin) = &mut member.stdin {
                let sent = stdin.write_all(self.wanted.as_bytes()).await;
                if let Some(reason) = member.died().or_else(|| Some(sent.err()?.to_string())) {
                    return Err(failed(index, reason));
                }
            }
        }
        Ok(())
    }

    fn kill_leader(&mut self) -> Option<usize> {
        let any = self.choice == Choice::Retry;
        let leader =
            self.members.iter().position(|member| member.stdin.is_some() && (any || member.leads()))?;
        self.members[leader].stdin = None;
        self.members[leader].process.start_kill().ok().map(|()| leader)
    }

    async fn begin_fault(&mut self, replica: usize, kind: ReplicaFaultKind) -> Result<(), LabError> {
        only_restarts(replica, kind)?;
        self.members[replica].stdin = None;
        Ok(())
    }

    /// Starts the process, and does not wait until it is ready, because the observer waits meanwhile.
    async fn end_fault(&mut self, replica: usize, kind: ReplicaFaultKind) -> Result<(), LabError> {
        only_restarts(replica, kind)?;
        let member = &mut self.members[replica];
        // The old process would delete the entry of the new one from the roster.
        member.exit(replica).await?;
        self.wins_before += member.heard.borrow().wins;
        let starts = member.starts + 1;
        let mut member = self.spawn(replica, starts)?;
        if let Some(stdin) = &mut member.stdin {
            stdin.write_all(self.wanted.as_bytes()).await.map_err(|error| failed(replica, error))?;
        }
        self.members[replica] = member;
        Ok(())
    }

    fn leaders(&self) -> usize {
        self.members.iter().filter(|member| member.stdin.is_some() && member.leads()).count()
    }

    fn wins(&self) -> u64 {
        self.wins_before + self.members.iter().map(|member| member.heard.borrow().wins).sum::<u64>()
    }

    fn write_log(&self) -> WriteLog {
        lock(&self.write_log).clone()
    }

    async fn finish(&mut self) -> Result<(), LabError> {
        for member in &mut self.members {
            member.stdin = None;
        }
        for (index, member) in self.members.iter_mut().enumerate() {
            member.exit(index).await?;
        }
        Ok(())
    }
}

impl Member {
    fn leads(&self) -> bool {
        self.heard.borrow().leads
    }

    /// Waits until the child has exited, and all that it said was heard.
    async fn exit(&mut self, index: usize) -> Result<(), LabError> {
        let ended = async { tokio::join!(self.process.wait(), &mut self.listener) };
        let ended = timeout(PATIENCE, ended).await.map_err(|_| failed(index, "did not exit in time"))?;
        ended.0.map_err(|error| failed(index, error)).map(drop)
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
            "roster" => lock(&write_log).record(WriteEvent::SentToRoster),
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

fn arguments(options: &Options, choice: Choice, index: usize, starts: u64) -> Vec<String> {
    let scenario = options.scenario(choice);
    let mut arguments = vec!["--processes".to_owned()];
    let mut add = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
    add("child", index.to_string());
    add("backend", options.backend.to_string());
    add("prefix", scenario.prefix.clone());
    add("strategy", choice.to_string());
    add("shards", scenario.shards.to_string());
    add("replicas", scenario.replicas.to_string());
    add("keys", scenario.keys.to_string());
    add("rounds", scenario.rounds.to_string());
    add("latency", format!("{}us", scenario.network.write.as_micros()));
    add("term", format!("{}us", scenario.term.as_micros()));
    add("concurrency", scenario.concurrency.to_string());
    // Each start draws anew.
    add("seed", scenario.seed.wrapping_add((starts - 1).wrapping_mul(0x5eed_0001)).to_string());
    arguments
}

fn lock(write_log: &Mutex<WriteLog>) -> MutexGuard<'_, WriteLog> {
    write_log.lock().unwrap_or_else(PoisonError::into_inner)
}

fn only_restarts(replica: usize, kind: ReplicaFaultKind) -> Result<(), LabError> {
    match kind {
        ReplicaFaultKind::Restart => Ok(()),
        kind => Err(failed(replica, format!("{kind:?} is no fault of this example"))),
    }
}

fn failed(index: usize, reason: impl ToString) -> LabError {
    LabError::Fleet(format!("replica {index}: {}", reason.to_string()))
}

/// The child's side: runs one replica until stdin closes.
pub async fn replica(options: &Options, index: usize, store: impl Store) -> ! {
    let scenario = options.scenario(options.strategy[0]);
    let record = |event| match event {
        WriteEvent::Sent(key) => say(format!("sent {key}")),
        WriteEvent::Succeeded(key) => say(format!("succeeded {key}")),
        WriteEvent::Refused(key) => say(format!("refused {key}")),
        WriteEvent::SentToRoster => say("roster".into()),
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

//! The replicas: tasks of this process, or processes of their own.
//!
//! A process prints "succeeded", "refused", "failed" and "leads 0|1" on stdout. It flushes each
//! line immediately, so that the parent knows the results of a killed process. It exits when stdin
//! closes.

use std::{
    error::Error,
    io::Write,
    process::{Stdio, exit},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use kube::Config;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader, stdin},
    process::{Child, Command},
    sync::broadcast::error::RecvError,
    task::JoinHandle,
};
use writerlease_kube_status::replica::{Replica, Settings};

use crate::{
    counted::{self, UpdateResult},
    options::Options,
};

pub struct Fleet {
    members: Vec<Member>,
    pub counts: Arc<UpdateCounts>,
}

/// The number of updates by result. Updates in flight in a killed process are not counted.
#[derive(Debug, Default)]
pub struct UpdateCounts {
    pub succeeded: AtomicU64,
    pub refused: AtomicU64,
    pub failed: AtomicU64,
}

struct Member {
    leads: Arc<AtomicBool>,
    /// Updates `leads`. For a process, also reads its output.
    listener: JoinHandle<()>,
    body: Body,
}

enum Body {
    Tasks(Replica),
    Process(Child),
}

type Failure = Box<dyn Error>;

impl Fleet {
    pub async fn start(options: &Options, settings: &Settings) -> Result<Self, Failure> {
        let mut fleet = Self { members: Vec::new(), counts: Arc::default() };
        for number in 0..options.replicas.into() {
            let member = match options.processes {
                false => Member::tasks(number, settings, fleet.counts.clone()).await?,
                true => Member::process(options, number, settings, fleet.counts.clone())?,
            };
            fleet.members.push(member);
        }
        Ok(fleet)
    }

    pub fn leaders(&self) -> usize {
        self.members.iter().filter(|member| member.leads.load(Relaxed)).count()
    }

    /// Kills the leader, or the first replica if there is no leader.
    pub async fn kill_leader(&mut self) -> Result<(), Failure> {
        let leader = self.members.iter().position(|member| member.leads.load(Relaxed)).unwrap_or(0);
        let member = self.members.swap_remove(leader);
        match member.body {
            Body::Tasks(replica) => replica.kill().await,
            Body::Process(mut process) => {
                process.kill().await?;
                // Waits until its remaining output has been read.
                member.listener.await?;
            }
        }
        Ok(())
    }

    /// Shuts all replicas down.
    pub async fn stop(self) -> Result<(), Failure> {
        for member in self.members {
            match member.body {
                Body::Tasks(replica) => drop(replica.leave().await),
                Body::Process(mut process) => {
                    drop(process.stdin.take());
                    process.wait().await?;
                    member.listener.await?;
                }
            }
        }
        Ok(())
    }
}

impl UpdateCounts {
    fn count(&self, result: UpdateResult) {
        let count = match result {
            UpdateResult::Succeeded => &self.succeeded,
            UpdateResult::Refused => &self.refused,
            UpdateResult::Failed => &self.failed,
        };
        count.fetch_add(1, Relaxed);
    }
}

impl Member {
    async fn tasks(number: usize, settings: &Settings, counts: Arc<UpdateCounts>) -> Result<Self, Failure> {
        let client = counted::client(Config::infer().await?, Arc::new(move |result| counts.count(result)))?;
        let replica = Replica::start(client, number, settings.clone())?;
        let leads = Arc::<AtomicBool>::default();
        let observed = leads.clone();
        let listener = listen(&replica, move |is_leader| observed.store(is_leader, Relaxed));
        Ok(Self { leads, listener, body: Body::Tasks(replica) })
    }

    fn process(
        options: &Options,
        number: usize,
        settings: &Settings,
        counts: Arc<UpdateCounts>,
    ) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(options.of_child(number, settings));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let mut lines = BufReader::new(process.stdout.take().ok_or("stdout is not piped")?).lines();
        let leads = Arc::<AtomicBool>::default();
        let observed = leads.clone();
        let listener = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                match line.as_str() {
                    "succeeded" => counts.count(UpdateResult::Succeeded),
                    "refused" => counts.count(UpdateResult::Refused),
                    "failed" => counts.count(UpdateResult::Failed),
                    line => observed.store(line == "leads 1", Relaxed),
                }
            }
        });
        Ok(Self { leads, listener, body: Body::Process(process) })
    }
}

/// Passes each change of leadership to `report` and prints the guard's notices on stderr.
fn listen(replica: &Replica, report: impl Fn(bool) + Send + 'static) -> JoinHandle<()> {
    let mut statuses = replica.lease.subscribe();
    let mut notices = replica.guard.guard().notices();
    tokio::spawn(async move {
        loop {
            report(statuses.borrow_and_update().is_leader);
            tokio::select! {
                changed = statuses.changed() => if changed.is_err() { return },
                notice = notices.recv() => match notice {
                    Ok(notice) => eprintln!("{notice:?}"),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return,
                },
            }
        }
    })
}

/// The child's side: runs one replica until stdin closes.
pub async fn child(number: usize, settings: Settings) -> Result<(), Failure> {
    let on_update = |result| {
        say(match result {
            UpdateResult::Succeeded => "succeeded",
            UpdateResult::Refused => "refused",
            UpdateResult::Failed => "failed",
        });
    };
    let client = counted::client(Config::infer().await?, Arc::new(on_update))?;
    let replica = Replica::start(client, number, settings)?;
    listen(&replica, |is_leader| say(if is_leader { "leads 1" } else { "leads 0" }));
    stdin().read_to_end(&mut Vec::new()).await?;
    replica.leave().await;
    Ok(())
}

/// Prints one line immediately. Exits if the parent has closed the pipe.
fn say(line: &str) {
    if std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).is_err() {
        exit(1);
    }
}

//! The replicas: tasks of this process, or processes of their own.
//!
//! A process says "landed", "refused", "failed" and "leads 0|1" on stdout, each in a line and at once, so that what a
//! killed one did is known; it ends when its stdin does.

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
    counted::{self, Note},
    options::Options,
};

pub struct Fleet {
    members: Vec<Member>,
    pub tally: Arc<Tally>,
}

/// What the replicas did, but for the writes that a killed process was not told the end of.
#[derive(Debug, Default)]
pub struct Tally {
    pub landed: AtomicU64,
    pub refused: AtomicU64,
    pub failed: AtomicU64,
}

struct Member {
    leads: Arc<AtomicBool>,
    /// It tells who leads, and of a process what it says.
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
        let mut fleet = Self { members: Vec::new(), tally: Arc::default() };
        for number in 0..options.replicas.into() {
            let member = match options.processes {
                false => Member::tasks(number, settings, fleet.tally.clone()).await?,
                true => Member::process(options, number, settings, fleet.tally.clone())?,
            };
            fleet.members.push(member);
        }
        Ok(fleet)
    }

    pub fn leaders(&self) -> usize {
        self.members.iter().filter(|member| member.leads.load(Relaxed)).count()
    }

    /// Kills the leader, or anybody if nobody leads.
    pub async fn kill_leader(&mut self) -> Result<(), Failure> {
        let leader = self.members.iter().position(|member| member.leads.load(Relaxed)).unwrap_or(0);
        let member = self.members.swap_remove(leader);
        match member.body {
            Body::Tasks(replica) => replica.kill().await,
            Body::Process(mut process) => {
                process.kill().await?;
                // What it said before that counts.
                member.listener.await?;
            }
        }
        Ok(())
    }

    /// All leave in peace.
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

impl Tally {
    fn note(&self, note: Note) {
        let count = match note {
            Note::Landed => &self.landed,
            Note::Refused => &self.refused,
            Note::Failed => &self.failed,
        };
        count.fetch_add(1, Relaxed);
    }
}

impl Member {
    async fn tasks(number: usize, settings: &Settings, tally: Arc<Tally>) -> Result<Self, Failure> {
        let client = counted::client(Config::infer().await?, Arc::new(move |note| tally.note(note)))?;
        let replica = Replica::start(client, number, settings.clone())?;
        let leads = Arc::<AtomicBool>::default();
        let told = leads.clone();
        let listener = listen(&replica, move |is_leader| told.store(is_leader, Relaxed));
        Ok(Self { leads, listener, body: Body::Tasks(replica) })
    }

    fn process(
        options: &Options,
        number: usize,
        settings: &Settings,
        tally: Arc<Tally>,
    ) -> Result<Self, Failure> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(options.of_child(number, settings));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let mut lines = BufReader::new(process.stdout.take().ok_or("it is piped")?).lines();
        let leads = Arc::<AtomicBool>::default();
        let told = leads.clone();
        let listener = tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                match line.as_str() {
                    "landed" => tally.note(Note::Landed),
                    "refused" => tally.note(Note::Refused),
                    "failed" => tally.note(Note::Failed),
                    line => told.store(line == "leads 1", Relaxed),
                }
            }
        });
        Ok(Self { leads, listener, body: Body::Process(process) })
    }
}

/// Whether a replica leads, and, on stderr, what goes wrong.
fn listen(replica: &Replica, tell: impl Fn(bool) + Send + 'static) -> JoinHandle<()> {
    let mut statuses = replica.lease.subscribe();
    let mut notices = replica.guard.guard().notices();
    tokio::spawn(async move {
        loop {
            tell(statuses.borrow_and_update().is_leader);
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

/// The child's side: one replica, until stdin ends.
pub async fn child(number: usize, settings: Settings) -> Result<(), Failure> {
    let pen = |note| {
        say(match note {
            Note::Landed => "landed",
            Note::Refused => "refused",
            Note::Failed => "failed",
        });
    };
    let client = counted::client(Config::infer().await?, Arc::new(pen))?;
    let replica = Replica::start(client, number, settings)?;
    listen(&replica, |is_leader| say(if is_leader { "leads 1" } else { "leads 0" }));
    stdin().read_to_end(&mut Vec::new()).await?;
    replica.leave().await;
    Ok(())
}

/// One line, at once. Without a parent to hear it there is nothing left to do.
fn say(line: &str) {
    if std::io::stdout().lock().write_all(format!("{line}\n").as_bytes()).is_err() {
        exit(1);
    }
}

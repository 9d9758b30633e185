//! The replicas: tasks of this process, or processes of their own.
//!
//! A process prints its events ("succeeded" and so on) and "leads 0|1" on stdout. It flushes each
//! line immediately, so that the parent knows the results of a killed process. It exits when stdin
//! closes.

use std::{
    error::Error,
    io::Write,
    process::{Stdio, exit},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
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
    counted,
    counts::{Counts, Event, OnEvent},
    options::Options,
};

pub struct Fleet {
    options: Options,
    settings: Settings,
    /// The replicas by number; `None` for one that was killed or is away.
    members: Vec<Option<Member>>,
    /// The shutdown of the last replica that left.
    leaving: Option<JoinHandle<Result<(), Failure>>>,
    /// What each replica did, by number.
    pub counts: Vec<Arc<Counts>>,
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

pub type Failure = Box<dyn Error + Send + Sync>;

impl Fleet {
    pub async fn start(options: &Options, settings: Settings) -> Result<Self, Failure> {
        let replicas = usize::from(options.replicas);
        let mut fleet = Self {
            options: options.clone(),
            settings,
            members: (0..replicas).map(|_| None).collect(),
            leaving: None,
            counts: (0..replicas).map(|_| Arc::default()).collect(),
        };
        for number in 0..replicas {
            fleet.start_one(number).await?;
        }
        Ok(fleet)
    }

    /// Starts this replica, after the one that left before is gone.
    pub async fn start_one(&mut self, number: usize) -> Result<(), Failure> {
        // An old replica would delete the entry of the new one from the roster.
        if let Some(leaving) = self.leaving.take() {
            leaving.await??;
        }
        let counts = self.counts[number].clone();
        let member = match self.options.processes {
            false => Member::tasks(number, &self.settings, counts).await?,
            true => Member::process(&self.options, number, &self.settings, counts)?,
        };
        self.members[number] = Some(member);
        Ok(())
    }

    /// Shuts this replica down, and does not wait until it is gone.
    pub fn shut_down(&mut self, number: usize) {
        self.leaving = self.members[number].take().map(|member| tokio::spawn(member.leave()));
    }

    pub fn leaders(&self) -> usize {
        self.members.iter().flatten().filter(|member| member.leads.load(Relaxed)).count()
    }

    /// Kills a replica that leads, or the first if none does.
    pub async fn kill_leader(&mut self) -> Result<(), Failure> {
        let leads =
            |member: &Option<Member>| member.as_ref().is_some_and(|member| member.leads.load(Relaxed));
        let leader = self.members.iter().position(leads).unwrap_or(0);
        let Some(member) = self.members[leader].take() else { return Ok(()) };
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
        if let Some(leaving) = self.leaving {
            leaving.await??;
        }
        for member in self.members.into_iter().flatten() {
            member.leave().await?;
        }
        Ok(())
    }
}

impl Member {
    async fn tasks(number: usize, settings: &Settings, counts: Arc<Counts>) -> Result<Self, Failure> {
        let replica = start(number, settings.clone(), Arc::new(move |event| counts.add(event))).await?;
        let leads = Arc::<AtomicBool>::default();
        let observed = leads.clone();
        let listener = listen(&replica, move |is_leader| observed.store(is_leader, Relaxed));
        Ok(Self { leads, listener, body: Body::Tasks(replica) })
    }

    fn process(
        options: &Options,
        number: usize,
        settings: &Settings,
        counts: Arc<Counts>,
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
                match Event::ALL.into_iter().find(|event| event.name() == line) {
                    Some(event) => counts.add(event),
                    None => observed.store(line == "leads 1", Relaxed),
                }
            }
        });
        Ok(Self { leads, listener, body: Body::Process(process) })
    }

    /// Shuts the replica down and waits until it is gone.
    async fn leave(self) -> Result<(), Failure> {
        match self.body {
            Body::Tasks(replica) => drop(replica.leave().await),
            Body::Process(mut process) => {
                drop(process.stdin.take());
                process.wait().await?;
                self.listener.await?;
            }
        }
        Ok(())
    }
}

/// Starts a replica of this process.
async fn start(number: usize, settings: Settings, on_event: OnEvent) -> Result<Replica, Failure> {
    let mut config = Config::infer().await?;
    // The roster is in the client's default namespace: that of the run, which deletes it.
    config.default_namespace.clone_from(&settings.namespace);
    let client = counted::client(config, on_event.clone())?;
    Ok(Replica::start(client, number, settings, move || on_event(Event::Inspected))?)
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
    let replica = start(number, settings, Arc::new(|event: Event| say(event.name()))).await?;
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

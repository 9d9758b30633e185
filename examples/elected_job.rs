//! A job that only an elected leader runs (`cargo run --example elected_job`).

use std::{error::Error, time::Duration};

use tokio::sync::mpsc;
use writerlease::{Outcome, WriterLease, election::Elector, lab::MemoryElection, store::MemoryStore};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The electors for etcd, Redis and ZooKeeper compete on a server instead.
    let election = MemoryElection::new(MemoryStore::new(), "jobs", Duration::from_secs(10))?;
    let (report, mut reports) = mpsc::unbounded_channel();
    let mut replicas = Vec::new();
    for name in ["first", "second"] {
        let elector = election.candidate(name);
        let lease = WriterLease::builder(name).spawn()?;
        // From now on the lease runs jobs only while its elector leads. Until then they stay
        // pending.
        lease.follow(&elector)?;
        let report = report.clone();
        lease.try_work("nightly report", move |attempt| {
            let sent = report.send(format!("{name} ran the job by {:?}", attempt.fence()));
            async move { if sent.is_ok() { Outcome::Written } else { Outcome::Failed } }
        })?;
        replicas.push((elector, lease));
    }
    for (elector, _) in &replicas {
        println!("{:?}", reports.recv().await);
        elector.resign().await?;
    }
    Ok(())
}

//! A job that only an elected leader runs (`cargo run --example elected_job`).

use std::{error::Error, time::Duration};

use tokio::sync::{mpsc, watch};
use writerlease::{
    Moment, Outcome, WriterLease,
    election::{ElectionError, Elector, Events, Leadership},
    store::Fence,
};

/// A candidate that leads when it is appointed. The electors for etcd, Redis and ZooKeeper compete
/// on a server instead.
struct Appointed(&'static str, watch::Sender<Leadership>);

impl Elector for Appointed {
    fn identity(&self) -> &str {
        self.0
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.1.subscribe()
    }

    fn events(&self) -> Events {
        mpsc::unbounded_channel().1.into()
    }

    async fn resign(&self) -> Result<(), ElectionError> {
        self.1.send_replace(Leadership::Follower { leader: None });
        Ok(())
    }

    async fn close(&self) {}
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (report, mut reports) = mpsc::unbounded_channel();
    let mut replicas = Vec::new();
    for name in ["first", "second"] {
        let elector = Appointed(name, watch::Sender::new(Leadership::Unknown));
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
    for (token, (elector, _)) in (1..).zip(&replicas) {
        let (fence, until) = (Fence::new("example", "jobs", token), Moment::now() + Duration::from_secs(10));
        elector.1.send_replace(Leadership::Leader { fence, until });
        println!("{:?}", reports.recv().await);
        elector.resign().await?;
    }
    Ok(())
}

//! One replica of a scenario, under either strategy.

use std::{
    ops::Range,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use rand::{RngExt, rngs::Xoshiro256PlusPlus};
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep_until, timeout},
};

use super::{
    retry::Retrier,
    settings::{LabError, Scenario, SeedStream, Strategy},
    value::Value,
    write_log::{self, RecordingStore, WriteEvent},
};
use crate::{
    clock,
    engine::config::LeaseBuilder,
    guard::Guard,
    roster::Roster,
    status::{Status, WatchState},
    store::{Store, StoreError},
};

/// One replica of a scenario. One process can run several; the example `contended_updates` starts a
/// process for each.
pub struct Replica<S: Store> {
    requester: Arc<Requester<S>>,
    keys: Range<usize>,
    skew: Duration,
    rng: Mutex<Xoshiro256PlusPlus>,
}

/// The requests that reached a replica, and the writer that fulfils them.
struct Requester<S: Store> {
    index: usize,
    writer: Writer<S>,
    /// The latest round requested of this replica, by key. A request for an older round can arrive
    /// after it and is ignored.
    wanted: Mutex<Vec<u64>>,
}

/// The way a replica writes, by strategy.
enum Writer<S: Store> {
    Lease(Guard<RecordingStore<S>>),
    Retry(Arc<Retrier<RecordingStore<S>>>),
}

/// The longest time that the watch may take to become live.
const START: Duration = Duration::from_secs(30);
/// The share of the skew over which a replica receives the requests of one round.
const SPREAD: f64 = 0.2;

impl<S: Store> Replica<S> {
    /// Starts replica number `index` and waits until its watch is live.
    ///
    /// The replica calls `record` immediately before it sends a write and immediately after the
    /// answer, on the thread of that write.
    ///
    /// # Errors
    ///
    /// [`LabError::Config`] if the scenario is invalid, [`LabError::Spawn`] outside a tokio
    /// runtime, [`LabError::Store`] if the watch is not live within 30 s.
    pub async fn start(
        scenario: &Scenario,
        index: usize,
        store: S,
        record: impl Fn(WriteEvent) + Send + Sync + 'static,
    ) -> Result<Self, LabError> {
        let prefix: Arc<str> = scenario.prefix.as_str().into();
        let store = RecordingStore { store, prefix: prefix.clone(), record: Arc::new(record) };
        let writer = match scenario.strategy {
            Strategy::Lease => {
                let lease = scenario.lease(index).spawn()?;
                let guard = Guard::new(store, lease, &*scenario.prefix)?;
                if scenario.roster {
                    let roster = Roster::new(scenario.roster_prefix()).name(name_of(index));
                    guard.join(roster)?;
                }
                let mut statuses = guard.lease().subscribe();
                let live = statuses.wait_for(|status| status.watch == Some(WatchState::Live));
                if !matches!(timeout(START, live).await, Ok(Ok(_))) {
                    let reason = "the watch did not start".into();
                    return Err(StoreError::Unavailable { reason, source: None }.into());
                }
                Writer::Lease(guard)
            }
            Strategy::Retry => Writer::Retry(Arc::new(Retrier {
                store,
                prefix,
                replica: index,
                workers: Semaphore::new(scenario.concurrency),
                rng: Mutex::new(scenario.rng(SeedStream::Retry(index))),
                wanted: Mutex::default(),
            })),
        };
        Ok(Self {
            requester: Arc::new(Requester { index, writer, wanted: Mutex::new(vec![0; scenario.keys]) }),
            keys: scenario.wants.get(index).cloned().unwrap_or(0..scenario.keys),
            skew: scenario.skew,
            rng: Mutex::new(scenario.rng(SeedStream::Skew(index))),
        })
    }

    /// Asks this replica to bring to `round` those of the keys that are its own.
    ///
    /// Returns immediately. The replica receives the request for each key at a random time within
    /// the [skew](Scenario::skew), unless it is dropped before.
    pub fn want(&self, round: u64, keys: &[usize]) {
        let ours = keys.iter().copied().filter(|key| self.keys.contains(key));
        if self.skew.is_zero() {
            ours.for_each(|key| self.requester.want(key, round));
            return;
        }
        let mut rng = self.rng.lock();
        let first = (1.0 - SPREAD) * rng.random::<f64>();
        let now = clock::now();
        let mut requests: Vec<_> =
            ours.map(|key| (now + self.skew.mul_f64(first + SPREAD * rng.random::<f64>()), key)).collect();
        requests.sort_unstable();
        // A dropped replica counts as killed and receives no more requests.
        let requester = Arc::downgrade(&self.requester);
        tokio::spawn(async move {
            for (at, key) in requests {
                sleep_until(at).await;
                let Some(requester) = Weak::upgrade(&requester) else { return };
                requester.want(key, round);
            }
        });
    }

    /// Returns whether this replica holds the lease, of any shard. Under [`Strategy::Retry`] the result is always
    /// `false`.
    pub fn leads(&self) -> bool {
        match &self.requester.writer {
            Writer::Lease(guard) => guard.lease().is_leader(),
            Writer::Retry(_) => false,
        }
    }

    /// Returns how many times this replica became leader, of any shard.
    pub fn wins(&self) -> u64 {
        match &self.requester.writer {
            Writer::Lease(guard) => guard.lease().status().epoch,
            Writer::Retry(_) => 0,
        }
    }

    /// Returns a receiver of this replica's status; `None` under [`Strategy::Retry`].
    pub fn statuses(&self) -> Option<watch::Receiver<Status>> {
        match &self.requester.writer {
            Writer::Lease(guard) => Some(guard.lease().subscribe()),
            Writer::Retry(_) => None,
        }
    }

    /// Waits for the attempts in flight, at most for `grace`, so that every answer is recorded, and
    /// leaves the roster.
    /// Under [`Strategy::Retry`] it returns immediately.
    pub async fn finish(self, grace: Duration) {
        if let Writer::Lease(guard) = &self.requester.writer {
            guard.lease().shutdown(grace).await;
        }
    }
}

impl<S: Store> Requester<S> {
    fn want(&self, key: usize, round: u64) {
        let round = {
            let mut wanted = self.wanted.lock();
            wanted[key] = wanted[key].max(round);
            wanted[key]
        };
        match &self.writer {
            Writer::Lease(guard) => {
                let by = self.index;
                guard.ensure(&write_log::short_name(key), move |current| {
                    current.map(Value::read).unwrap_or_default().wanted(round, by)
                });
            }
            Writer::Retry(retrier) => retrier.want(key, round),
        }
    }
}

/// Returns the name of a replica's lease, and of its entry on the roster.
pub(super) fn name_of(index: usize) -> String {
    format!("replica-{index}")
}

impl Scenario {
    /// Returns the settings of a replica's lease.
    pub(super) fn lease(&self, index: usize) -> LeaseBuilder {
        LeaseBuilder::new(name_of(index))
            .shards(self.shards)
            .term(self.term)
            .concurrency(self.concurrency)
            .seed(self.seed_of(SeedStream::Lease(index)))
    }
}

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
    settings::{Dice, LabError, Scenario, Strategy},
    value::Value,
    write_log::{self, Note, Noted},
};
use crate::{
    clock,
    engine::config::LeaseBuilder,
    guard::Guard,
    status::{Status, WatchState},
    store::{Store, StoreError},
};

/// A process that wants what all others want. In one process there may be many; `contended_updates` makes each one a
/// process of its own.
pub struct Replica<S: Store> {
    writer: Arc<Writer<S>>,
    keys: Range<usize>,
    skew: Duration,
    dice: Mutex<Xoshiro256PlusPlus>,
}

struct Writer<S: Store> {
    index: usize,
    strategy: Means<S>,
    /// The latest round that this replica has learnt to be wanted, by key: late news of an older one is none.
    wanted: Mutex<Vec<u64>>,
}

enum Means<S: Store> {
    Lease(Guard<Noted<S>>),
    Retry(Arc<Retrier<Noted<S>>>),
}

/// How long the watch may take to be live.
const START: Duration = Duration::from_secs(30);
/// The share of the skew over which one replica's news of one round is spread.
const SPREAD: f64 = 0.2;

impl<S: Store> Replica<S> {
    /// Starts replica number `index`; `pen` is told of each write, before it is sent and when it is answered. Returns when
    /// the replica sees what others write.
    ///
    /// # Errors
    ///
    /// [`LabError`] if the scenario can't be run or the store doesn't answer.
    pub async fn start(
        scenario: &Scenario,
        index: usize,
        store: S,
        pen: impl Fn(Note) + Send + Sync + 'static,
    ) -> Result<Self, LabError> {
        let prefix: Arc<str> = scenario.prefix.as_str().into();
        let store = Noted { store, prefix: prefix.clone(), pen: Arc::new(pen) };
        let strategy = match scenario.strategy {
            Strategy::Lease => {
                let lease = scenario.lease(index).spawn()?;
                let guard = Guard::new(store, lease, &*scenario.prefix)?;
                let mut statuses = guard.lease().subscribe();
                let live = statuses.wait_for(|status| status.watch == Some(WatchState::Live));
                if !matches!(timeout(START, live).await, Ok(Ok(_))) {
                    let reason = "the watch did not start".into();
                    return Err(StoreError::Unavailable { reason, source: None }.into());
                }
                Means::Lease(guard)
            }
            Strategy::Retry => Means::Retry(Arc::new(Retrier {
                store,
                prefix,
                replica: index,
                workers: Semaphore::new(scenario.concurrency),
                dice: Mutex::new(scenario.dice(Dice::Retry(index))),
                wanted: Mutex::default(),
            })),
        };
        Ok(Self {
            writer: Arc::new(Writer { index, strategy, wanted: Mutex::new(vec![0; scenario.keys]) }),
            keys: scenario.wants.get(index).cloned().unwrap_or(0..scenario.keys),
            skew: scenario.skew,
            dice: Mutex::new(scenario.dice(Dice::Skew(index))),
        })
    }

    /// Those of the keys that are this replica's to write should be at `round` now. It learns of each within the skew.
    pub fn want(&self, round: u64, keys: &[usize]) {
        let ours = keys.iter().copied().filter(|key| self.keys.contains(key));
        if self.skew.is_zero() {
            ours.for_each(|key| self.writer.want(key, round));
            return;
        }
        let mut dice = self.dice.lock();
        let first = (1.0 - SPREAD) * dice.random::<f64>();
        let now = clock::now();
        let mut news: Vec<_> =
            ours.map(|key| (now + self.skew.mul_f64(first + SPREAD * dice.random::<f64>()), key)).collect();
        news.sort_unstable();
        // The dead learn nothing.
        let writer = Arc::downgrade(&self.writer);
        tokio::spawn(async move {
            for (at, key) in news {
                sleep_until(at).await;
                let Some(writer) = Weak::upgrade(&writer) else { return };
                writer.want(key, round);
            }
        });
    }

    /// Whether this replica's work holds the lease. Those that retry don't lead.
    pub fn leads(&self) -> bool {
        match &self.writer.strategy {
            Means::Lease(guard) => guard.lease().is_leader(),
            Means::Retry(_) => false,
        }
    }

    /// How many times it became leader.
    pub fn wins(&self) -> u64 {
        match &self.writer.strategy {
            Means::Lease(guard) => guard.lease().status().epoch,
            Means::Retry(_) => 0,
        }
    }

    /// Tells of each change of leadership, under [`Strategy::Lease`].
    pub fn statuses(&self) -> Option<watch::Receiver<Status>> {
        match &self.writer.strategy {
            Means::Lease(guard) => Some(guard.lease().subscribe()),
            Means::Retry(_) => None,
        }
    }

    /// Waits for what is under way, for at most `grace`, so that its notes are complete.
    pub async fn finish(self, grace: Duration) {
        if let Means::Lease(guard) = &self.writer.strategy {
            guard.lease().shutdown(grace).await;
        }
    }
}

impl<S: Store> Writer<S> {
    fn want(&self, key: usize, round: u64) {
        let round = {
            let mut wanted = self.wanted.lock();
            wanted[key] = wanted[key].max(round);
            wanted[key]
        };
        match &self.strategy {
            Means::Lease(guard) => {
                let by = self.index;
                guard.ensure(&write_log::short_name(key), move |current| {
                    current.map(Value::read).unwrap_or_default().wanted(round, by)
                });
            }
            Means::Retry(retrier) => retrier.want(key, round),
        }
    }
}

impl Scenario {
    /// The settings of a replica's lease.
    pub(super) fn lease(&self, index: usize) -> LeaseBuilder {
        LeaseBuilder::new(format!("replica-{index}"))
            .term(self.term)
            .concurrency(self.concurrency)
            .seed(self.seed_of(Dice::Lease(index)))
    }
}

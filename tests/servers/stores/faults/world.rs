//! Three replicas, their requests, and what must be true at the end.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::Stream;
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{sleep, timeout},
};
use writerlease::{
    Guard, Notice, WatchState, WriterLease,
    engine::Counters,
    lab::Value,
    store::{Entry, Event, Expected, Fence, Store, StoreError, Version},
};

use writerlease_test_support::proxy::Proxy;

use super::engines::Engine;

const REPLICAS: usize = 3;
const KEYS: usize = 8;
const PREFIX: &str = "counters/";
/// The interval at which all counters are to be incremented.
const ROUND: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(2);
/// The longest wait, only against hanging. It is shorter than the term of a lease, 60 s, so that a
/// wait that ends in time did not end because of the term.
const LONG: Duration = Duration::from_secs(30);

pub struct World<E: Engine> {
    pub engine: E,
    pub replicas: Vec<Replica<E::Store>>,
    direct: E::Store,
    round: Arc<AtomicU64>,
    tallies: Arc<Mutex<Tallies>>,
}

pub struct Replica<S: Store> {
    pub proxy: Proxy,
    guard: Guard<Counted<S>>,
}

/// The writes of all keys.
#[derive(Debug, Default)]
struct Tallies {
    keys: HashMap<String, Tally>,
    /// The number of times that the server has lost its data.
    losses: u64,
}

/// The writes of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: u64,
    acknowledged: u64,
    refused: u64,
    /// Writes acknowledged before a loss began: the server has lost them.
    lost: u64,
    /// Writes sent after the last loss was over, and acknowledged: the server has them. A write
    /// that was sent before and acknowledged later is neither lost nor kept: the server may have
    /// executed it on either side of the loss.
    kept: u64,
}

/// A store whose writes are counted.
#[derive(Clone)]
struct Counted<S> {
    store: S,
    tallies: Arc<Mutex<Tallies>>,
}

/// Runs three replicas, causes the fault, and checks every promise afterwards.
pub async fn show<E: Engine>(fault: impl AsyncFnOnce(&mut World<E>)) {
    let tasks_before = Handle::current().metrics().num_alive_tasks();
    let engine = E::start().await;
    let direct = E::connect(engine.address()).await;
    let tallies = Arc::<Mutex<Tallies>>::default();
    let mut replicas = Vec::new();
    for index in 0..REPLICAS {
        let proxy = Proxy::start(engine.address()).await;
        let store = Counted { store: E::connect(proxy.address()).await, tallies: tallies.clone() };
        let lease = WriterLease::builder(format!("replica-{index}")).retry_interval(RETRY).seed(index as u64);
        let guard = Guard::new(store, lease.spawn().expect("valid settings"), PREFIX).expect("a runtime");
        replicas.push(Replica { proxy, guard });
    }
    let round = Arc::<AtomicU64>::default();
    let mut world = World { engine, replicas, direct, round, tallies };
    for replica in 0..REPLICAS {
        world.sees(replica).await;
    }
    let load = world.load();
    for _ in 0..5 {
        world.progress().await;
    }

    let before: Vec<Counters> = world.counters();
    let accepted: Vec<u64> = world.replicas.iter().map(|replica| replica.proxy.accepted()).collect();
    let began = Instant::now();
    fault(&mut world).await;
    let ended = Instant::now();

    // Everything pending is written before a term has passed; on an idle machine within two retry
    // intervals.
    let round = world.round.load(SeqCst);
    world.reach(round).await;
    println!(
        "everything pending was written {:?} after the fault; retry interval {RETRY:?}",
        ended.elapsed()
    );
    // Every replica sees what the others write.
    for replica in 0..REPLICAS {
        world.sees(replica).await;
        world.observes(replica).await;
    }
    world.settles().await;
    load.abort();
    let _ = load.await;
    world.reach(world.round.load(SeqCst)).await;

    // No replica retried or reconnected in a tight loop. The limits grow with the time, which a
    // busy machine prolongs.
    let seconds = began.elapsed().as_secs_f64();
    for (index, (before, after)) in before.iter().zip(world.counters()).enumerate() {
        let vain = |counters: &Counters| counters.failures + counters.conflicts + counters.unchanged;
        let vain = vain(&after) - vain(before);
        println!(
            "replica {index}: {vain} attempts in vain in {seconds:.1} s, {} succeeded",
            after.written - before.written
        );
        assert!(
            vain as f64 <= 20.0 + 15.0 * seconds,
            "replica {index}: {vain} attempts in vain in {seconds:.1} s: {after:?}"
        );
        let replica = &world.replicas[index];
        let connects = replica.proxy.accepted() - accepted[index];
        assert!(
            connects as f64 <= 20.0 + 2.0 * seconds,
            "replica {index} opened {connects} connections in {seconds:.1} s"
        );
        until("no connection is left over", || replica.proxy.open() <= E::CONNECTIONS).await;
        replica.guard.lease().shutdown(LONG).await;
    }

    // Each acknowledged write is in the store once; besides, only writes without an answer may be
    // there.
    let tallies = world.tallies().keys.clone();
    let (mut acknowledged, mut unanswered) = (0, 0);
    for (key, tally) in &tallies {
        let writes = world.value(key).await.writes;
        let (least, most) = (tally.kept, tally.sent - tally.refused - tally.lost);
        assert!(
            (least..=most).contains(&writes),
            "{key} has {writes} writes, expected {least} to {most}: {tally:?}"
        );
        acknowledged += tally.acknowledged;
        unanswered += tally.sent - tally.refused - tally.acknowledged;
    }
    assert_eq!(tallies.len(), KEYS);
    println!("{acknowledged} writes acknowledged, {unanswered} without an answer");

    // Neither a connection nor a task is left over.
    let World { engine, replicas, direct, .. } = world;
    for Replica { proxy, guard } in replicas {
        drop(guard);
        until("all connections are closed", || proxy.open() == 0).await;
    }
    drop(direct);
    until("all tasks have ended", || Handle::current().metrics().num_alive_tasks() <= tasks_before).await;
    drop(engine);
}

impl<E: Engine> World<E> {
    /// Requests the next round of all keys again and again.
    fn load(&self) -> JoinHandle<()> {
        let guards: Vec<_> = self.replicas.iter().map(|replica| replica.guard.clone()).collect();
        let round = self.round.clone();
        tokio::spawn(async move {
            loop {
                let round = round.fetch_add(1, SeqCst) + 1;
                for (index, guard) in guards.iter().enumerate() {
                    for key in 0..KEYS {
                        guard.ensure(&key.to_string(), move |current| {
                            current.map(Value::read).unwrap_or_default().wanted(round, index)
                        });
                    }
                }
                sleep(ROUND).await;
            }
        })
    }

    fn counters(&self) -> Vec<Counters> {
        self.replicas.iter().map(|replica| replica.guard.lease().snapshot().counters).collect()
    }

    /// Returns the replica that writes most: the leader, unless the keys are split among several.
    pub async fn busiest(&self) -> usize {
        let before = self.counters();
        for _ in 0..2 {
            self.progress().await;
        }
        let after = self.counters();
        let wrote = |replica: &usize| after[*replica].written - before[*replica].written;
        (0..REPLICAS).max_by_key(wrote).expect("there are replicas")
    }

    /// Waits until a round later than the current one is written.
    pub async fn progress(&self) {
        self.reach(self.round.load(SeqCst) + 1).await;
    }

    /// Waits until every counter is at this round or a later one.
    async fn reach(&self, round: u64) {
        let reached = async {
            for key in 0..KEYS {
                while self.value(&format!("{PREFIX}{key}")).await.round < round {
                    sleep(Duration::from_millis(10)).await;
                }
            }
        };
        let reached = timeout(LONG, reached).await;
        reached.unwrap_or_else(|_| panic!("not at round {round} after {LONG:?}: {:#?}", self.counters()));
    }

    async fn value(&self, key: &str) -> Value {
        loop {
            match self.direct.get(key).await {
                Ok(entry) => return entry.map(|entry| Value::read(&entry.value)).unwrap_or_default(),
                Err(StoreError::Unavailable { .. }) => sleep(Duration::from_millis(10)).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Makes the existing connections of a replica half open. Returns when its watch was
    /// interrupted and is live again.
    pub async fn half_open(&self, replica: usize) {
        // A notice, and not the state of the watch, which a busy machine may find live again before
        // it was looked at.
        let mut notices = self.replicas[replica].guard.notices();
        self.replicas[replica].proxy.half_open();
        let interrupted =
            async { while !matches!(notices.recv().await, Ok(Notice::WatchInterrupted { .. })) {} };
        timeout(LONG, interrupted).await.expect("the watch is interrupted");
        self.sees(replica).await;
    }

    /// Causes a fault in the middle of a write of the replica that writes most.
    pub async fn strike_the_busiest(&self, arm: impl Fn(&Proxy)) {
        let began = Instant::now();
        while began.elapsed() < LONG {
            let replica = &self.replicas[self.busiest().await];
            arm(&replica.proxy);
            // Its keys may pass to another replica before it writes.
            for _ in 0..200 {
                if replica.proxy.has_struck() {
                    return;
                }
                sleep(Duration::from_millis(5)).await;
            }
            replica.proxy.heal();
        }
        panic!("no replica writes");
    }

    /// Waits until the replica sees what others write.
    pub async fn sees(&self, replica: usize) {
        let mut statuses = self.replicas[replica].guard.lease().subscribe();
        let live = statuses.wait_for(|status| status.watch == Some(WatchState::Live));
        let live = timeout(LONG, live).await.map(|live| live.map(drop));
        assert!(
            matches!(live, Ok(Ok(()))),
            "the watch of replica {replica} is {:?}",
            self.replicas[replica].guard.watch_state()
        );
    }

    /// Waits until the replica gets evidence of others' writes, or is the one whose writes the
    /// others see.
    async fn observes(&self, replica: usize) {
        let signs = || {
            let counters = self.replicas[replica].guard.lease().snapshot().counters;
            counters.evidence + counters.written
        };
        let before = signs();
        until("it hears of others, or writes", || signs() > before).await;
    }

    /// Waits until the replicas keep out of each other's way: ten rounds without a conflict.
    /// One may write all keys, or each its own.
    async fn settles(&self) {
        let conflicts = || self.counters().iter().map(|counters| counters.conflicts).sum::<u64>();
        let began = Instant::now();
        loop {
            let before = conflicts();
            self.reach(self.round.load(SeqCst) + 10).await;
            if conflicts() == before {
                return;
            }
            assert!(began.elapsed() < LONG, "writes are still refused: {:#?}", self.counters());
        }
    }

    /// Counts each write acknowledged so far as lost: to be called before the server loses its
    /// data.
    pub fn before_loss(&self) {
        for tally in self.tallies().keys.values_mut() {
            tally.lost = tally.acknowledged;
        }
    }

    /// Counts writes anew as kept: to be called after the server has lost its data.
    pub fn after_loss(&self) {
        let mut tallies = self.tallies();
        tallies.losses += 1;
        for tally in tallies.keys.values_mut() {
            tally.kept = 0;
        }
    }

    fn tallies(&self) -> MutexGuard<'_, Tallies> {
        self.tallies.lock().expect("no task panicked")
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LONG, "waited {LONG:?} until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

impl<S> Counted<S> {
    /// Counts a write of this key. Returns how often the server had lost its data by then.
    fn count(&self, key: &str, count: impl FnOnce(&mut Tally, u64)) -> u64 {
        let mut tallies = self.tallies.lock().expect("no task panicked");
        let losses = tallies.losses;
        count(tallies.keys.entry(key.to_owned()).or_default(), losses);
        losses
    }
}

impl<S: Store> Store for Counted<S> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let sent_after = self.count(key, |tally, _| tally.sent += 1);
        let result = self.store.put(key, value, expected, fence).await;
        self.count(key, |tally, losses| match result {
            Ok(_) => {
                tally.acknowledged += 1;
                tally.kept += u64::from(sent_after == losses);
            }
            Err(StoreError::Conflict { .. }) => tally.refused += 1,
            // The write may or may not be in the store.
            Err(_) => {}
        });
        result
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.store.delete(key, expected, fence).await
    }

    fn competes(&self, before: Option<&[u8]>, after: &[u8], version: &Version) -> bool {
        self.store.competes(before, after, version)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        self.store.watch(prefix)
    }
}

//! Three replicas, what they are told to do, and what must be true at the end.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
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
    Guard, WatchState, WriterLease,
    engine::Counters,
    lab::Value,
    store::{Entry, Event, Expected, Fence, Store, StoreError, Version},
};

use writerlease_test_support::proxy::Proxy;

use super::engines::Engine;

const REPLICAS: usize = 3;
const KEYS: usize = 8;
const PREFIX: &str = "counters/";
/// How often all counters are wanted to be one higher.
const ROUND: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(2);
/// Only against hanging.
const LONG: Duration = Duration::from_secs(30);

pub struct World<E: Engine> {
    pub engine: E,
    pub replicas: Vec<Replica<E::Store>>,
    direct: E::Store,
    round: Arc<AtomicU64>,
    /// What had landed before and after the server forgot everything.
    forgotten: [Option<HashMap<String, Tally>>; 2],
}

pub struct Replica<S: Store> {
    pub proxy: Proxy,
    guard: Guard<Counted<S>>,
}

/// The writes of a key.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    sent: u64,
    landed: u64,
    refused: u64,
}

/// A store whose writes are counted.
#[derive(Clone)]
struct Counted<S> {
    store: S,
    tallies: Arc<Mutex<HashMap<String, Tally>>>,
}

/// Runs three replicas, lets the fault happen, and holds everybody to what they promise.
pub async fn show<E: Engine>(fault: impl AsyncFnOnce(&mut World<E>)) {
    let tasks_before = Handle::current().metrics().num_alive_tasks();
    let engine = E::start().await;
    let direct = E::connect(engine.address()).await;
    let tallies = Arc::<Mutex<HashMap<String, Tally>>>::default();
    let mut replicas = Vec::new();
    for index in 0..REPLICAS {
        let proxy = Proxy::start(engine.address()).await;
        let store = Counted { store: E::connect(proxy.address()).await, tallies: tallies.clone() };
        let lease = WriterLease::builder(format!("replica-{index}")).retry_interval(RETRY).seed(index as u64);
        let guard = Guard::new(store, lease.spawn().expect("valid settings"), PREFIX).expect("a runtime");
        replicas.push(Replica { proxy, guard });
    }
    let round = Arc::<AtomicU64>::default();
    let mut world = World { engine, replicas, direct, round, forgotten: [None, None] };
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

    // All that is pending is written within two retry intervals, and not a term later.
    let round = world.round.load(SeqCst);
    world.reach(round).await;
    assert!(ended.elapsed() <= 2 * RETRY, "all was written only {:?} after the fault", ended.elapsed());
    // Everybody sees what others write.
    for replica in 0..REPLICAS {
        world.sees(replica).await;
        world.observes(replica).await;
    }
    let leaders = || world.replicas.iter().filter(|replica| replica.guard.lease().is_leader()).count();
    until("exactly one replica leads", || leaders() == 1).await;
    load.abort();
    let _ = load.await;
    world.reach(world.round.load(SeqCst)).await;

    // Nobody hurried, neither to write nor to connect.
    let seconds = began.elapsed().as_secs_f64();
    for (index, (before, after)) in before.iter().zip(world.counters()).enumerate() {
        let vain = |counters: &Counters| counters.failures + counters.conflicts + counters.unchanged;
        let vain = vain(&after) - vain(before);
        println!(
            "replica {index}: {vain} attempts in vain in {seconds:.1} s, {} landed",
            after.written - before.written
        );
        assert!(vain as f64 <= 20.0 + 15.0 * seconds, "{vain} in {seconds} s: {after:?}");
        let replica = &world.replicas[index];
        let connects = replica.proxy.accepted() - accepted[index];
        assert!(connects as f64 <= 10.0 + 5.0 * seconds, "{connects} connections made in {seconds} s");
        until("no connection is left over", || replica.proxy.open() <= E::CONNECTIONS).await;
        replica.guard.lease().shutdown(LONG).await;
    }

    // What was acknowledged is there, once, and besides only what had no answer.
    let tallies = tallies.lock().expect("nobody panicked").clone();
    let of = |forgotten: &Option<HashMap<String, Tally>>, key: &str| {
        forgotten.as_ref().and_then(|tallies| tallies.get(key)).copied().unwrap_or_default()
    };
    let (mut landed, mut unknown) = (0, 0);
    for (key, tally) in &tallies {
        let writes = world.value(key).await.writes;
        let [earlier, later] = [0, 1].map(|side| of(&world.forgotten[side], key));
        let (least, most) = (tally.landed - later.landed, tally.sent - tally.refused - earlier.landed);
        assert!(
            (least..=most).contains(&writes),
            "{key} has {writes} writes, expected {least} to {most}: {tally:?}"
        );
        (landed, unknown) = (landed + tally.landed, unknown + tally.sent - tally.refused - tally.landed);
    }
    assert_eq!(tallies.len(), KEYS);
    println!("{landed} writes landed, {unknown} without an answer");

    // Nothing stays behind.
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
    /// Wants a next round every now and then.
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

    /// The number of the replica that leads.
    pub async fn leader(&self) -> usize {
        let leads = |replica: &Replica<E::Store>| replica.guard.lease().is_leader();
        until("somebody leads", || self.replicas.iter().any(leads)).await;
        self.replicas.iter().position(leads).expect("somebody leads")
    }

    /// What is wanted now is written.
    pub async fn progress(&self) {
        self.reach(self.round.load(SeqCst) + 1).await;
    }

    /// Every counter is at this round, or a later one.
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

    /// The replica knows that it sees nothing.
    pub async fn blind(&self, replica: usize) {
        self.feed(replica, |feed| matches!(feed, WatchState::Resuming { .. })).await;
    }

    /// The replica sees what others write.
    pub async fn sees(&self, replica: usize) {
        self.feed(replica, |feed| matches!(feed, WatchState::Live)).await;
    }

    async fn feed(&self, replica: usize, state: fn(&WatchState) -> bool) {
        let mut statuses = self.replicas[replica].guard.lease().subscribe();
        let changed = statuses.wait_for(|status| status.watch.as_ref().is_some_and(state));
        let changed = timeout(LONG, changed).await.map(|changed| changed.map(drop));
        assert!(
            matches!(changed, Ok(Ok(()))),
            "the feed of replica {replica} is {:?}",
            self.replicas[replica].guard.watch_state()
        );
    }

    /// The replica gets evidence of others' work, or is the one whose work the others see.
    async fn observes(&self, replica: usize) {
        let lease = self.replicas[replica].guard.lease();
        let evidence = || lease.snapshot().counters.evidence;
        let before = evidence();
        until("it hears of others, or leads", || evidence() > before || lease.is_leader()).await;
    }

    /// To be called right before the server forgets what it acknowledged.
    pub fn forget_before(&mut self) {
        self.forgotten[0] = Some(self.tallies());
    }

    /// To be called right after that.
    pub fn forget_after(&mut self) {
        self.forgotten[1] = Some(self.tallies());
    }

    fn tallies(&self) -> HashMap<String, Tally> {
        self.replicas[0].guard.store().tallies.lock().expect("nobody panicked").clone()
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LONG, "waited {LONG:?} until {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

impl<S> Counted<S> {
    fn count(&self, key: &str, count: impl FnOnce(&mut Tally)) {
        count(self.tallies.lock().expect("nobody panicked").entry(key.to_owned()).or_default());
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
        self.count(key, |tally| tally.sent += 1);
        let result = self.store.put(key, value, expected, fence).await;
        match result {
            Ok(_) => self.count(key, |tally| tally.landed += 1),
            Err(StoreError::Conflict { .. }) => self.count(key, |tally| tally.refused += 1),
            // Nothing is known of it.
            Err(_) => {}
        }
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

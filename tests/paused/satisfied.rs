//! A value that the watch has shown to be right costs neither the store nor the lease anything,
//! whoever leads.
#![allow(clippy::disallowed_methods, reason = "tests look at the clock that they pause")]

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::time::{Instant, sleep, timeout};
use writerlease::{
    EnsureOutcome, Guard, WatchState, WriterLease,
    engine::Role,
    lab::{Network, RemoteStore},
    store::{Expected, MemoryStore, Store},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// A replica whose reads, writes and events take 5 ms each.
struct Replica {
    remote: RemoteStore<MemoryStore>,
    guard: Guard<RemoteStore<MemoryStore>>,
}

impl Replica {
    async fn new(store: &MemoryStore, seed: u64) -> Self {
        let network = Network { read: 5 * MS, write: 5 * MS, watch: 5 * MS, ..Network::default() };
        let remote = RemoteStore::new(store.clone(), network, seed);
        let lease = WriterLease::builder("test").seed(seed).spawn().unwrap();
        let guard = Guard::new(remote.clone(), lease, "guarded/").unwrap();
        let mut statuses = guard.lease().subscribe();
        statuses.wait_for(|status| status.watch == Some(WatchState::Live)).await.unwrap();
        Self { remote, guard }
    }

    /// Requests that these keys have this value, as a controller's resync does.
    fn want_all(&self, keys: usize, value: &'static str) {
        for i in 0..keys {
            drop(self.guard.ensure(&i.to_string(), want(value)));
        }
    }

    /// Requests right keys, then one that is wrong. Returns how long that one takes.
    async fn resync(&self, keys: usize) -> Duration {
        let started = Instant::now();
        self.want_all(keys, "right");
        let ending = timeout(10 * HOUR, self.guard.ensure("wrong", want("right"))).await.unwrap();
        assert!(matches!(ending, EnsureOutcome::Written(_)), "{ending:?}");
        started.elapsed()
    }
}

fn want(value: &'static str) -> impl Fn(Option<&[u8]>) -> Option<&'static str> + Send + Sync + 'static {
    move |current| (current != Some(value.as_bytes())).then_some(value)
}

async fn put(store: &MemoryStore, key: &str, value: &'static str) {
    let expected = match store.get(key).await.unwrap() {
        Some(entry) => Expected::Version(entry.version),
        None => Expected::Absent,
    };
    store.put(key, value.into(), expected, None).await.unwrap();
}

async fn store_with(keys: usize) -> MemoryStore {
    let store = MemoryStore::new();
    for i in 0..keys {
        put(&store, &format!("guarded/{i}"), "right").await;
    }
    store
}

#[tokio::test(start_paused = true)]
async fn known_right_value_is_satisfied_immediately() {
    let replica = Replica::new(&store_with(1).await, 1).await;
    let reads = replica.remote.counts().reads;
    let ending = replica.guard.ensure("0", want("right")).now_or_never();
    assert!(matches!(ending, Some(EnsureOutcome::Satisfied)), "{ending:?}");
    assert_eq!(replica.remote.counts().reads, reads);
    assert_eq!(replica.guard.lease().snapshot().counters.attempts, 0);
    assert_eq!(replica.guard.lease().status().role, Role::Election, "it says nothing of who leads");
    assert_eq!(replica.guard.lease().wait().now_or_never(), Some(Ok(false)), "nothing is left to decide");
}

#[tokio::test(start_paused = true)]
async fn a_takeover_takes_seconds_however_many_keys_are_right() {
    for keys in [0, 100, 1_000, 10_000] {
        let replica = Replica::new(&store_with(keys).await, 1).await;
        // The leader is dead from now on.
        let elsewhere: Arc<str> = "elsewhere".into();
        (0..8).for_each(|_| replica.guard.lease().extend(&elsewhere));
        assert_eq!(replica.guard.lease().status().role, Role::Follower);
        let took = replica.resync(keys).await;
        println!("{keys} right keys: the wrong one is written after {took:?}");
        assert!(took < 5 * SECOND, "{took:?}");
        assert_eq!(replica.remote.counts().reads, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_replica_starts_and_resumes_in_seconds() {
    for keys in [0, 1_000, 10_000] {
        let store = store_with(keys).await;
        let replica = Replica::new(&store, 1).await;
        let started = replica.resync(keys).await;
        sleep(61 * SECOND).await;
        assert!(!replica.guard.lease().is_leader(), "idle for a term");
        put(&store, "guarded/wrong", "broken").await;
        sleep(100 * MS).await;
        let resumed = replica.resync(keys).await;
        println!(
            "{keys} right keys: the wrong one is written after {started:?}, and again after {resumed:?}"
        );
        assert!(started < SECOND && resumed < SECOND, "{started:?}, {resumed:?}");
        assert_eq!(replica.remote.counts().reads, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn replicas_that_do_not_lead_read_nothing() {
    let store = MemoryStore::new();
    let mut replicas = Vec::new();
    for seed in 0..3 {
        replicas.push(Replica::new(&store, seed).await);
    }
    replicas.iter().for_each(|replica| replica.want_all(500, "right"));
    sleep(60 * SECOND).await;
    let counts = || -> Vec<_> {
        let suspicions = |replica: &Replica| replica.guard.lease().snapshot().counters.suspicions;
        replicas.iter().map(|replica| (replica.remote.counts().reads, suspicions(replica))).collect()
    };
    let before = counts();
    println!("500 writes: (reads, suspicions) {before:?}");
    replicas.iter().for_each(|replica| replica.want_all(500, "right"));
    assert!(replicas.iter().all(|replica| replica.guard.lease().is_empty()));
    sleep(60 * SECOND).await;
    assert_eq!(counts(), before, "a resync of what is right");
}

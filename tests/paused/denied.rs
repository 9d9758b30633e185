//! Replicas that may not write all keys, or none: they hold up neither other keys nor other replicas.
#![allow(clippy::disallowed_methods, reason = "tests look at the clock that they pause")]

use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, future::join_all};
use tokio::time::{Instant, sleep, timeout};
use writerlease::{
    Ensure, EnsureOutcome, Guard, Notice, WatchState, WriterLease,
    lab::{Network, NetworkFault, RemoteStore},
    store::{Entry, Event, Expected, Fence, MemoryStore, Store, StoreError, Version},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A store that denies writes of some keys.
#[derive(Clone)]
struct Partly {
    remote: RemoteStore<MemoryStore>,
    denied: &'static str,
}

impl Store for Partly {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.remote.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        if key.starts_with(self.denied) {
            sleep(MS).await;
            return Err(StoreError::Denied { reason: "no rights".into(), source: None });
        }
        self.remote.put(key, value, expected, fence).await
    }

    async fn delete(&self, key: &str, version: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.remote.delete(key, version, fence).await
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        self.remote.watch(prefix)
    }
}

struct Replica {
    remote: RemoteStore<MemoryStore>,
    guard: Guard<Partly>,
}

impl Replica {
    /// A replica that may not write keys that start with `denied`.
    async fn new(store: &MemoryStore, seed: u64, denied: &'static str) -> Self {
        let network = Network { read: MS, write: MS, watch: MS, ..Network::default() };
        let remote = RemoteStore::new(store.clone(), network, seed);
        let lease = WriterLease::builder("test").seed(seed).spawn().unwrap();
        let store = Partly { remote: remote.clone(), denied };
        let guard = Guard::new(store, lease, "guarded/").unwrap();
        let mut statuses = guard.lease().subscribe();
        statuses.wait_for(|status| status.watch == Some(WatchState::Live)).await.unwrap();
        Self { remote, guard }
    }

    fn want(&self, keys: impl Iterator<Item = usize>, prefix: &str, value: &'static str) -> Vec<Ensure> {
        keys.map(|key| self.guard.ensure(&format!("{prefix}{key}"), want(value))).collect()
    }

    /// Has seen the leader write for long.
    fn follow(&self) {
        (0..8).for_each(|_| self.guard.lease().observe(&"key".into()));
    }

    fn counters(&self) -> writerlease::engine::Counters {
        self.guard.lease().snapshot().counters
    }
}

const ALL: &str = "";
const SOME: &str = "guarded/denied";
const NONE: &str = "nothing";

fn want(value: &'static str) -> impl Fn(Option<&[u8]>) -> Option<&'static str> + Send + Sync + 'static {
    move |current| (current != Some(value.as_bytes())).then_some(value)
}

async fn text(store: &MemoryStore, key: &str) -> Option<Bytes> {
    store.get(key).await.unwrap().map(|entry| entry.value)
}

#[tokio::test(start_paused = true)]
async fn granted_rights_are_used_within_a_minute() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, 1, NONE).await;
    let mut notices = replica.guard.notices();
    replica.remote.set_fault(NetworkFault::Denied);
    assert!(matches!(replica.guard.ensure("key", want("value")).await, EnsureOutcome::Denied(_)));
    sleep(10 * MINUTE).await;
    let attempts = replica.counters().attempts;
    assert!((10..=11).contains(&attempts), "{attempts}");
    assert!(matches!(notices.try_recv(), Ok(Notice::Refused { .. })));
    assert!(matches!(notices.try_recv(), Ok(Notice::Stuck { .. })), "nothing else was wanted");
    assert!(notices.try_recv().is_err(), "once");
    replica.remote.set_fault(NetworkFault::None);
    sleep(MINUTE).await;
    assert_eq!(text(&store, "guarded/key").await.unwrap(), "value", "nobody called again");
    assert!(replica.guard.lease().is_empty());
}

#[tokio::test(start_paused = true)]
async fn denied_request_ends_with_its_need() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, 1, ALL).await;
    let attempts = || replica.counters().attempts;
    for key in ["removed", "satisfied", "superseded"] {
        assert!(matches!(replica.guard.ensure(key, want("value")).await, EnsureOutcome::Denied(_)));
    }
    assert_eq!(attempts(), 3);
    replica.guard.remove("removed");
    store.put("guarded/satisfied", "value".into(), Expected::Absent, None).await.unwrap();
    assert!(
        matches!(replica.guard.ensure("superseded", want("other")).await, EnsureOutcome::Denied(_)),
        "a new call is tried immediately"
    );
    assert_eq!(replica.guard.lease().len(), 1);
    sleep(MINUTE + SECOND).await;
    assert_eq!(attempts(), 5, "the last one only");
}

#[tokio::test(start_paused = true)]
async fn replica_without_rights_gives_way_to_others() {
    for had_rights in [false, true] {
        let store = MemoryStore::new();
        let mut replicas = vec![Replica::new(&store, 0, if had_rights { NONE } else { ALL }).await];
        if had_rights {
            let first = replicas[0].guard.ensure("first", want("value")).await;
            assert!(matches!(first, EnsureOutcome::Written(_)));
        }
        for seed in 1..3 {
            replicas.push(Replica::new(&store, seed, NONE).await);
        }
        if had_rights {
            replicas[1..].iter().for_each(Replica::follow);
            assert!(replicas[0].guard.lease().is_leader());
            replicas[0].remote.set_fault(NetworkFault::Denied);
        }
        let started = Instant::now();
        let endings: Vec<_> =
            replicas.iter().flat_map(|replica| replica.want(0..20, "key", "value")).collect();
        let endings = timeout(MINUTE, join_all(endings)).await.unwrap();
        let took = started.elapsed();
        println!("the first replica had rights before: {had_rights}; the others take {took:?}");
        // Patience at its start is 1 s, spread over 2 s.
        assert!(took < 4 * SECOND, "{took:?}");
        let fulfilled = |ending: &EnsureOutcome| {
            matches!(ending, EnsureOutcome::Written(_) | EnsureOutcome::ByOther | EnsureOutcome::Satisfied)
        };
        assert!(endings[20..].iter().all(fulfilled), "{endings:?}");
        sleep(SECOND).await;
        assert!(!replicas[0].guard.lease().is_leader());
        assert_eq!(replicas.iter().filter(|replica| replica.guard.lease().is_leader()).count(), 1);
        assert!(replicas.iter().all(|replica| replica.guard.lease().is_empty()));
    }
}

#[tokio::test(start_paused = true)]
async fn denied_keys_hold_up_no_others() {
    for denied in [60, 500] {
        let store = MemoryStore::new();
        let replica = Replica::new(&store, 1, SOME).await;
        let first = Instant::now();
        drop(replica.want(0..denied, "denied", "value"));
        for (minute, value) in ["one", "two", "three"].into_iter().enumerate() {
            // From the second round on, the denied ones are about to be tried again.
            sleep(first + minute as u32 * MINUTE - Instant::now()).await;
            let started = Instant::now();
            for ending in join_all(replica.want(0..10, "allowed", value)).await {
                assert!(matches!(ending, EnsureOutcome::Written(_)), "{ending:?}");
            }
            let took = started.elapsed();
            println!("{denied} denied keys: 10 allowed ones are written after {took:?}");
            assert!(took < 2 * SECOND, "{took:?}");
        }
        assert_eq!(replica.guard.lease().len(), denied);
    }
}

#[tokio::test(start_paused = true)]
async fn denied_retries_of_a_follower_depose_no_leader() {
    let store = MemoryStore::new();
    let (leader, follower) = (Replica::new(&store, 1, NONE).await, Replica::new(&store, 2, SOME).await);
    assert!(matches!(leader.guard.ensure("first", want("value")).await, EnsureOutcome::Written(_)));
    follower.follow();
    // The leader does not want these.
    let denied = follower.want(0..100, "denied", "value");
    for value in ["1", "2"].into_iter().cycle().take(600) {
        let written = leader.guard.ensure("shared", want(value));
        let seen = follower.guard.ensure("shared", want(value));
        assert!(matches!(written.await, EnsureOutcome::Written(_)));
        assert!(matches!(seen.await, EnsureOutcome::ByOther));
        sleep(SECOND).await;
    }
    for ending in join_all(denied).await {
        assert!(matches!(ending, EnsureOutcome::Denied(_)), "{ending:?}");
    }
    assert_eq!((leader.counters().lost, follower.counters().won), (0, 0));
    println!("10 minutes of 100 denied keys: {} attempts", follower.counters().attempts);
    assert!(follower.counters().attempts <= 1_000);
}

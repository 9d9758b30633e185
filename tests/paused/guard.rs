//! The guard's promises, under paused time, over the in-memory store behind a network that the
//! tests control.
#![allow(clippy::disallowed_methods, reason = "tests look at the clock that they pause")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use tokio::{
    sync::{Mutex, mpsc},
    time::{Instant, sleep, timeout},
};
use writerlease::{
    ContentionTracker, Ensure, EnsureOutcome, Guard, LeaseClosed, Notice, Outcome, SpawnError, WatchState,
    WriterLease,
    engine::Role,
    lab::{Network, NetworkFault, RemoteStore},
    store::{Entry, Event, Expected, Fence, MemoryStore, Store, StoreError, Version},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const KEY: &str = "guarded/key";

/// Waits until the state of the guard's watch, as the lease reports it, satisfies `state`.
async fn wait_for_watch<S: Store>(guard: &Guard<S>, state: impl Fn(&WatchState) -> bool) {
    let mut statuses = guard.lease().subscribe();
    statuses.wait_for(|status| status.watch.as_ref().is_some_and(&state)).await.unwrap();
    assert_eq!(guard.lease().status().watch, Some(guard.watch_state()));
}

/// A process that guards keys of a store.
struct Replica<S: Store = RemoteStore<MemoryStore>> {
    remote: RemoteStore<MemoryStore>,
    guard: Guard<S>,
}

impl Replica {
    async fn new(store: &MemoryStore, network: Network) -> Self {
        let remote = RemoteStore::new(store.clone(), network, 1);
        let guard = Guard::new(remote.clone(), lease(1), "guarded/").unwrap();
        wait_for_watch(&guard, |watch| *watch == WatchState::Live).await;
        Self { remote, guard }
    }

    fn counters(&self) -> writerlease::engine::Counters {
        self.guard.lease().snapshot().counters
    }

    /// Makes the replica a follower by foreign writes of another key.
    async fn follow(&self) {
        for _ in 0..8 {
            self.guard.lease().extend(&"elsewhere".into());
        }
        assert_eq!(self.guard.lease().status().role, Role::Follower);
    }

    /// Waits until the replica has sent this number of writes.
    async fn has_sent(&self, writes: u64) {
        while self.remote.counts().attempted < writes {
            sleep(MS).await;
        }
    }

    /// Makes the replica the leader, by a first write.
    async fn lead(&self) {
        let ending = self.guard.ensure("first", want("first")).await;
        assert!(matches!(ending, EnsureOutcome::Written(_)), "{ending:?}");
        assert!(self.guard.lease().is_leader());
    }
}

fn lease(seed: u64) -> WriterLease<Arc<str>> {
    WriterLease::builder("test").seed(seed).spawn().unwrap()
}

/// Requests exactly this value.
fn want(value: &'static str) -> impl Fn(Option<&[u8]>) -> Option<&'static str> + Send + Sync + 'static {
    move |current| (current != Some(value.as_bytes())).then_some(value)
}

/// Requests a text that contains this word.
fn want_word(word: &'static str) -> impl Fn(Option<&[u8]>) -> Option<String> + Send + Sync + 'static {
    move |current| {
        let text = String::from_utf8(current.unwrap_or_default().to_vec()).unwrap();
        (!text.contains(word)).then(|| format!("{text} {word}").trim().to_owned())
    }
}

/// Writes directly to the store, as another process would.
async fn put(store: &MemoryStore, key: &str, value: &'static str) -> Version {
    let expected = match store.get(key).await.unwrap() {
        Some(entry) => Expected::Version(entry.version),
        None => Expected::Absent,
    };
    store.put(key, value.into(), expected, None).await.unwrap()
}

async fn text(store: &MemoryStore, key: &str) -> String {
    let entry = store.get(key).await.unwrap().expect("the key exists");
    String::from_utf8(entry.value.to_vec()).unwrap()
}

/// Returns the outcome, and panics after a time that only a hanging call exceeds.
async fn end(ensured: Ensure) -> EnsureOutcome {
    timeout(300 * SECOND, ensured).await.expect("it ends")
}

// --- outcomes of a put ---

#[tokio::test(start_paused = true)]
async fn a_written_value_makes_us_leader() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    let ending = end(replica.guard.ensure("key", want("value"))).await;
    let version = store.get(KEY).await.unwrap().unwrap().version;
    assert!(matches!(ending, EnsureOutcome::Written(written) if written == version));
    assert_eq!(text(&store, KEY).await, "value");
    assert!(replica.guard.lease().is_leader());
}

#[tokio::test(start_paused = true)]
async fn refused_write_is_retried_after_a_new_read() {
    let store = MemoryStore::new();
    let network = Network { write: 100 * MS, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    put(&store, KEY, "person").await;
    let ensured = replica.guard.ensure("key", want_word("ours"));
    replica.has_sent(1).await;
    put(&store, KEY, "person again").await;
    assert!(matches!(end(ensured).await, EnsureOutcome::Written(_)));
    assert_eq!(text(&store, KEY).await, "person again ours");
    assert_eq!(replica.remote.counts().refused, 1);
    let counters = replica.counters();
    assert_eq!((counters.conflicts, counters.written, counters.lost), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn retry_that_finds_a_peers_write_counts_evidence() {
    let store = MemoryStore::new();
    // The watch is slower than the test, so only a read sees the write.
    let network = Network { write: 100 * MS, watch: 1000 * SECOND, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    let ensured = replica.guard.ensure("key", want("value"));
    replica.has_sent(1).await;
    put(&store, KEY, "value").await;
    assert!(matches!(end(ensured).await, EnsureOutcome::ByOther));
    let counters = replica.counters();
    assert_eq!((counters.conflicts, counters.unchanged, counters.evidence), (1, 1, 1));
    assert_eq!(replica.guard.lease().status().role, Role::Follower);
}

#[tokio::test(start_paused = true)]
async fn read_of_unsatisfied_object_counts_as_observation() {
    let store = MemoryStore::new();
    let network = Network { write: 100 * MS, watch: 1000 * SECOND, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    assert!(matches!(replica.guard.ensure("key", want("value")).await, EnsureOutcome::Written(_)));
    put(&store, KEY, "other").await; // its event is still on the way, and so is that of our write
    let ensured = replica.guard.ensure("key", want("value"));
    replica.has_sent(2).await;
    put(&store, KEY, "value").await;
    assert!(matches!(end(ensured).await, EnsureOutcome::ByOther));
    assert_eq!(replica.counters().evidence, 1);
}

#[tokio::test(start_paused = true)]
async fn satisfied_object_at_first_read_changes_no_role() {
    let store = MemoryStore::new();
    put(&store, KEY, "value").await;
    let (_silent, events) = mpsc::unbounded_channel();
    let guard = Guard::new(Scripted::new(store, events), lease(1), "guarded/").unwrap();
    assert!(matches!(end(guard.ensure("key", want("value"))).await, EnsureOutcome::Satisfied));
    let counters = guard.lease().snapshot().counters;
    assert_eq!((counters.unchanged, counters.evidence, counters.written), (1, 0, 0));
    assert_eq!(guard.lease().status().role, Role::Election);
}

#[tokio::test(start_paused = true)]
async fn satisfied_object_before_first_event_is_no_evidence() {
    let store = MemoryStore::new();
    put(&store, KEY, "value").await;
    let (_silent, events) = mpsc::unbounded_channel();
    let store = Scripted::new(store, events);
    let guard = Guard::new(store, lease(1), "guarded/").unwrap();
    assert!(matches!(end(guard.ensure("key", want("value"))).await, EnsureOutcome::Satisfied));
    assert_eq!(guard.lease().snapshot().counters.evidence, 0);
}

#[tokio::test(start_paused = true)]
async fn object_satisfied_since_last_event_is_no_evidence() {
    let store = MemoryStore::new();
    // The watch is slower than the test, so only a read sees the edit.
    let network = Network { watch: 1000 * SECOND, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    assert!(matches!(end(replica.guard.ensure("key", want("ours"))).await, EnsureOutcome::Written(_)));
    put(&store, KEY, "ours, edited").await;
    assert!(matches!(end(replica.guard.ensure("key", want_word("ours"))).await, EnsureOutcome::Satisfied));
    assert_eq!((replica.counters().evidence, replica.remote.counts().reads), (0, 2));
    assert_eq!(replica.guard.lease().status().role, Role::Leader);
}

#[tokio::test(start_paused = true)]
async fn ensure_existing_never_creates_the_object() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    let ensured = replica.guard.ensure_existing("key", |_| Some("value"));
    assert!(matches!(end(ensured).await, EnsureOutcome::Gone));
    assert_eq!(store.get(KEY).await.unwrap(), None);
    assert_eq!(replica.counters().unchanged, 1);
    put(&store, KEY, "old").await;
    assert!(matches!(
        end(replica.guard.ensure_existing("key", |_| Some("value"))).await,
        EnsureOutcome::Written(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn deletion_before_our_write_is_no_evidence() {
    let store = MemoryStore::new();
    let network = Network { write: 100 * MS, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    replica.lead().await;
    let doomed = put(&store, KEY, "doomed").await;
    let ensured = replica.guard.ensure_existing("key", |current| (current != b"value").then_some("value"));
    replica.has_sent(2).await;
    store.delete(KEY, &doomed, None).await.unwrap();
    assert!(matches!(end(ensured).await, EnsureOutcome::Gone));
    let counters = replica.counters();
    assert_eq!((counters.conflicts, counters.lost), (1, 0));
    assert!(replica.guard.lease().is_leader());
}

#[tokio::test(start_paused = true)]
async fn a_person_who_deletes_deposes_nobody() {
    // The deletion is seen by the watch, or by the retry of a refused write.
    for watch in [Duration::ZERO, 1000 * SECOND] {
        let store = MemoryStore::new();
        let doomed = put(&store, KEY, "wrong").await;
        let network = Network { read: 100 * MS, write: 100 * MS, watch, ..Network::default() };
        let replica = Replica::new(&store, network).await;
        replica.lead().await;
        let existing_is_right =
            |current: Option<&[u8]>| current.filter(|current| *current != b"right").map(|_| "right");
        let ensured = replica.guard.ensure("key", existing_is_right);
        sleep(10 * MS).await;
        store.delete(KEY, &doomed, None).await.unwrap();
        let ending = end(ensured).await;
        assert!(matches!(ending, EnsureOutcome::Satisfied), "{ending:?}");
        let counters = replica.counters();
        assert_eq!((counters.evidence, counters.lost), (0, 0));
        assert!(replica.guard.lease().is_leader());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_key_is_nobodys() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    replica.follow().await;
    let lease = replica.guard.lease().clone();
    // The other replica writes keys that were nobody's: one that it wrote before is no news.
    tokio::spawn(async move {
        for number in 0.. {
            lease.extend(&format!("elsewhere/{number}").into());
            sleep(50 * MS).await;
        }
    });
    let took = async |value| {
        let since = Instant::now();
        let ending = end(replica.guard.ensure("key", want(value))).await;
        assert!(matches!(ending, EnsureOutcome::Written(_)), "{ending:?}");
        since.elapsed()
    };
    assert!(took("one").await > 100 * MS, "another replica leads");
    sleep(100 * MS).await;
    assert_eq!(replica.guard.lease().status().role, Role::Follower);
    assert!(took("two").await < 100 * MS, "this replica wrote the key last");
    let version = store.get(KEY).await.unwrap().unwrap().version;
    store.delete(KEY, &version, None).await.unwrap();
    sleep(MS).await;
    assert!(took("three").await > 100 * MS, "a new object is the leader's to write");
}

#[tokio::test(start_paused = true)]
async fn job_resumes_seconds_after_a_store_outage() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    replica.lead().await;
    replica.remote.set_fault(NetworkFault::Down);
    let ensured = replica.guard.ensure("key", want("value"));
    sleep(30 * SECOND).await;
    let attempts = replica.counters().attempts;
    assert!((5..40).contains(&attempts), "number of attempts in 30 s: {attempts}");
    assert!(replica.guard.lease().is_leader(), "an outage changes no role");
    replica.remote.set_fault(NetworkFault::None);
    let back = Instant::now();
    assert!(matches!(end(ensured).await, EnsureOutcome::Written(_)));
    assert!(Instant::now() - back < 7 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn permitted_replica_takes_over_from_a_denied_one() {
    let store = MemoryStore::new();
    let denied = Replica::new(&store, Network::default()).await;
    let allowed = Replica::new(&store, Network::default()).await;
    denied.lead().await;
    denied.remote.set_fault(NetworkFault::Denied);
    let mut notices = denied.guard.notices();
    let ours = denied.guard.ensure("key", want("value"));
    let theirs = allowed.guard.ensure("key", want("value"));
    match end(ours).await {
        EnsureOutcome::Denied(error) => assert!(matches!(*error, StoreError::Denied { .. })),
        other => panic!("{other:?}"),
    }
    match notices.recv().await.unwrap() {
        Notice::Refused { key, error } => {
            assert_eq!(&*key, KEY);
            assert!(matches!(*error, StoreError::Denied { .. }));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(end(theirs).await, EnsureOutcome::Written(_)));
    sleep(30 * SECOND).await;
    let counters = denied.counters();
    assert_eq!((counters.failures, counters.attempts), (0, 2), "a denied write is not retried soon");
    assert!(denied.guard.lease().is_empty(), "another did it");
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_denied_hold_up_no_others() {
    for denied in [60, 500] {
        let (guard, _events) = scripted(MemoryStore::new()).await;
        let started = Instant::now();
        let denied: Vec<_> = (0..denied).map(|i| guard.ensure(&format!("{i}"), want("denied"))).collect();
        let allowed: Vec<_> = (0..10).map(|i| guard.ensure(&format!("allowed {i}"), want("fine"))).collect();
        for ensured in allowed {
            assert!(matches!(end(ensured).await, EnsureOutcome::Written(_)));
        }
        let took = started.elapsed();
        println!("{} denied keys first: the allowed ones are written after {took:?}", denied.len());
        assert!(took < 2 * SECOND, "{took:?}");
        let count = denied.len();
        for ensured in denied {
            assert!(matches!(end(ensured).await, EnsureOutcome::Denied(_)));
        }
        assert_eq!(guard.lease().len(), count, "they are tried again");
        for round in 1..4 {
            // Just when all of them are due again.
            sleep(started + round * 60 * SECOND - Instant::now()).await;
            let again = Instant::now();
            assert!(matches!(
                end(guard.ensure("allowed 0", want(["", "one", "two", "three"][round as usize]))).await,
                EnsureOutcome::Written(_)
            ));
            assert!(again.elapsed() < 2 * SECOND, "round {round}: {:?}", again.elapsed());
        }
        assert_eq!(guard.lease().len(), count);
    }
}

#[tokio::test(start_paused = true)]
async fn unstorable_value_is_reported_and_given_up() {
    let (guard, _events) = scripted(MemoryStore::new()).await;
    let mut notices = guard.notices();
    let long = end(guard.ensure("key", want("a value that is longer than this store takes"))).await;
    assert!(matches!(long, EnsureOutcome::TooLarge(_)), "{long:?}");
    assert!(matches!(notices.recv().await.unwrap(), Notice::Refused { .. }));
    let invalid = end(guard.ensure("key", want("invalid"))).await;
    assert!(matches!(invalid, EnsureOutcome::Invalid(_)), "{invalid:?}");
    assert!(guard.lease().is_empty());
    assert_eq!(guard.lease().snapshot().counters.failures, 0);
    assert!(matches!(end(guard.ensure("key", want("fine"))).await, EnsureOutcome::Written(_)));
}

// --- the watch: effects of foreign writes ---

#[tokio::test(start_paused = true)]
async fn foreign_write_of_our_value_is_evidence() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    replica.follow().await;
    let before = replica.counters().evidence;
    let ensured = replica.guard.ensure("key", want("value"));
    sleep(50 * MS).await;
    put(&store, KEY, "value").await;
    assert!(matches!(end(ensured).await, EnsureOutcome::ByOther));
    assert_eq!(replica.counters().evidence, before + 1);
    assert!(replica.guard.lease().is_empty());
    assert_eq!(replica.remote.counts().attempted, 0);
}

#[tokio::test(start_paused = true)]
async fn satisfying_edit_clears_the_job_without_evidence() {
    let store = MemoryStore::new();
    put(&store, KEY, "ours").await;
    let replica = Replica::new(&store, Network::default()).await;
    replica.follow().await;
    let before = replica.counters().evidence;
    let ensured = replica.guard.ensure("key", want_word("ours"));
    put(&store, KEY, "ours and theirs").await;
    assert!(matches!(end(ensured).await, EnsureOutcome::Satisfied));
    assert_eq!(replica.counters().evidence, before);
    assert!(replica.guard.lease().is_empty());
}

#[tokio::test(start_paused = true)]
async fn unsatisfying_edit_keeps_the_job() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    replica.follow().await;
    let before = replica.counters().evidence;
    let mut ensured = replica.guard.ensure("key", want_word("ours"));
    for _ in 0..5 {
        put(&store, KEY, "theirs").await;
        sleep(10 * MS).await;
    }
    assert_eq!(replica.counters().evidence, before);
    assert_eq!(replica.guard.lease().len(), 1);
    assert!((&mut ensured).now_or_never().is_none());
    assert!(
        matches!(end(ensured).await, EnsureOutcome::Written(_)),
        "the follower writes once its patience ends"
    );
    assert_eq!(text(&store, KEY).await, "theirs ours");
}

#[tokio::test(start_paused = true)]
async fn foreign_write_of_superseded_value_is_evidence() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    replica.follow().await;
    let patience = replica.guard.lease().snapshot().patience;
    let before = replica.counters().evidence;
    let first = replica.guard.ensure("key", want("first"));
    sleep(patience / 2).await;
    let second = replica.guard.ensure("key", want("second"));
    assert!(matches!(end(first).await, EnsureOutcome::Superseded));
    put(&store, KEY, "first").await;
    sleep(MS).await;
    assert_eq!((replica.counters().evidence, replica.guard.lease().len()), (before + 1, 1));
    let since = Instant::now();
    assert!(matches!(end(second).await, EnsureOutcome::Written(_)));
    assert!(
        Instant::now() - since >= Duration::from_millis(500),
        "the patience of the newer request starts afresh"
    );
    put(&store, KEY, "first").await; // no request is pending
    sleep(MS).await;
    assert_eq!(replica.counters().evidence, before + 1);
}

#[tokio::test(start_paused = true)]
async fn peer_repeating_our_write_is_no_evidence() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network { write: SECOND, ..Network::default() }).await;
    let first = replica.guard.ensure("key", want("first"));
    replica.has_sent(1).await;
    let second = replica.guard.ensure("key", want("second"));
    assert!(matches!(end(first).await, EnsureOutcome::Superseded));
    replica.has_sent(2).await; // the first write has succeeded, the second is in flight
    put(&store, KEY, "first").await;
    assert!(matches!(end(second).await, EnsureOutcome::Written(_)));
    assert_eq!(text(&store, KEY).await, "second");
    let counters = replica.counters();
    assert_eq!((counters.conflicts, counters.evidence, counters.lost), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn unsatisfying_deletion_keeps_the_job() {
    let store = MemoryStore::new();
    let version = put(&store, KEY, "value").await;
    let replica = Replica::new(&store, Network::default()).await;
    replica.follow().await;
    let ensured = replica.guard.ensure("key", want("other"));
    store.delete(KEY, &version, None).await.unwrap();
    sleep(10 * MS).await;
    assert_eq!(replica.guard.lease().len(), 1);
    put(&store, KEY, "other").await;
    assert!(matches!(end(ensured).await, EnsureOutcome::ByOther));
}

#[tokio::test(start_paused = true)]
async fn event_before_its_answer_is_our_own() {
    let store = MemoryStore::new();
    let network = Network { write: SECOND, watch: MS, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    assert!(matches!(end(replica.guard.ensure("key", want("value"))).await, EnsureOutcome::Written(_)));
    sleep(SECOND).await;
    let snapshot = replica.guard.lease().snapshot();
    assert_eq!((snapshot.counters.evidence, snapshot.counters.lost), (0, 0));
    assert!(replica.guard.lease().is_leader());
    assert!(snapshot.echo >= 250 * MS, "measured until the event arrives: {:?}", snapshot.echo);
    assert!(snapshot.echo <= 10 * SECOND, "{:?}", snapshot.echo);
}

#[tokio::test(start_paused = true)]
async fn own_events_measure_the_echo_only() {
    let store = MemoryStore::new();
    let network = Network { watch: 200 * MS, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    for value in ["a", "b", "c"] {
        assert!(matches!(end(replica.guard.ensure("key", want(value))).await, EnsureOutcome::Written(_)));
        sleep(5 * SECOND).await;
    }
    let snapshot = replica.guard.lease().snapshot();
    assert!(snapshot.echo >= 100 * MS && snapshot.echo <= 2 * SECOND, "{:?}", snapshot.echo);
    assert_eq!((snapshot.counters.evidence, snapshot.counters.lost), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn event_confirms_a_write_without_answer() {
    let store = MemoryStore::new();
    let network = Network { watch: 10 * MS, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    replica.lead().await;
    replica.remote.set_fault(NetworkFault::AnswersLost);
    let ensured = replica.guard.ensure("key", want("value"));
    sleep(2 * MS).await;
    replica.remote.set_fault(NetworkFault::Down); // the retry fails to read
    let version = store.get(KEY).await.unwrap().expect("the write succeeded").version;
    assert!(matches!(end(ensured).await, EnsureOutcome::Written(written) if written == version));
    assert_eq!((replica.counters().evidence, replica.counters().failures), (0, 1));
    assert!(replica.guard.lease().is_leader() && replica.guard.lease().is_empty());
}

#[tokio::test(start_paused = true)]
async fn retry_confirms_a_write_without_answer() {
    let store = MemoryStore::new();
    let network = Network { watch: 1000 * SECOND, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    replica.lead().await;
    replica.remote.set_fault(NetworkFault::AnswersLost);
    let ensured = replica.guard.ensure("key", want("value"));
    sleep(2 * MS).await;
    replica.remote.set_fault(NetworkFault::None);
    let version = store.get(KEY).await.unwrap().expect("the write succeeded").version;
    assert!(matches!(end(ensured).await, EnsureOutcome::Written(written) if written == version));
    assert_eq!((replica.counters().evidence, replica.remote.counts().attempted), (0, 2));
}

#[tokio::test(start_paused = true)]
async fn cache_behind_the_watch_hides_no_edit() {
    let store = MemoryStore::new();
    put(&store, KEY, "right").await;
    let cache = Arc::new(Mutex::new(store.get(KEY).await.unwrap()));
    let guard = Guard::new(Cached { store: store.clone(), cache }, lease(1), "guarded/").unwrap();
    wait_for_watch(&guard, |watch| *watch == WatchState::Live).await;
    put(&store, KEY, "broken").await;
    sleep(MS).await;
    let ending = end(guard.ensure("key", want("right"))).await;
    assert!(matches!(ending, EnsureOutcome::Written(_)), "{ending:?}");
    assert_eq!(text(&store, KEY).await, "right");
    assert_eq!(guard.lease().snapshot().counters.evidence, 0);
}

#[tokio::test(start_paused = true)]
async fn write_that_the_store_changed_is_no_evidence() {
    // The next read sees the write, or the watch does.
    for (watch, next) in [(1000 * SECOND, NetworkFault::None), (10 * MS, NetworkFault::Down)] {
        let network = Network { watch, ..Network::default() };
        let remote = RemoteStore::new(Changing(MemoryStore::new()), network, 1);
        let guard = Guard::new(remote.clone(), lease(1), "guarded/").unwrap();
        wait_for_watch(&guard, |watch| *watch == WatchState::Live).await;
        assert!(matches!(end(guard.ensure("first", want_word("first"))).await, EnsureOutcome::Written(_)));
        remote.set_fault(NetworkFault::AnswersLost);
        let ensured = guard.ensure("key", want_word("value"));
        sleep(2 * MS).await;
        remote.set_fault(next);
        let ending = end(ensured).await;
        assert!(matches!(ending, EnsureOutcome::Satisfied), "nobody can tell whose it is: {ending:?}");
        let counters = guard.lease().snapshot().counters;
        assert_eq!((counters.evidence, counters.lost), (0, 0));
        assert!(guard.lease().is_leader());
    }
}

#[tokio::test(start_paused = true)]
async fn write_before_an_older_listing_is_no_evidence() {
    let store = MemoryStore::new();
    let (script, events) = mpsc::unbounded_channel();
    let guard = Guard::new(Scripted::new(store.clone(), events), lease(1), "guarded/").unwrap();
    assert!(matches!(end(guard.ensure("key", want("value"))).await, EnsureOutcome::Written(_)));
    // The listing began before the write.
    for event in [Event::Init, Event::InitDone] {
        script.send(Ok(event)).unwrap();
    }
    wait_for_watch(&guard, |watch| *watch == WatchState::Live).await;
    put(&store, KEY, "value, edited").await;
    assert!(matches!(end(guard.ensure("key", want_word("value"))).await, EnsureOutcome::Satisfied));
    assert_eq!(guard.lease().snapshot().counters.evidence, 0);
    assert!(guard.lease().is_leader());
}

#[tokio::test(start_paused = true)]
async fn lost_answer_claims_no_later_equal_write() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network { watch: 10 * MS, ..Network::default() }).await;
    replica.lead().await;
    let before = replica.counters().evidence;
    replica.remote.set_network(Network { write: 100 * MS, watch: 10 * MS, ..Network::default() });
    let ensured = replica.guard.ensure("key", want("value"));
    replica.has_sent(2).await;
    replica.remote.set_fault(NetworkFault::Down); // before the write in flight takes effect
    while replica.counters().failures == 0 {
        sleep(MS).await;
    }
    put(&store, KEY, "other").await; // conflicts with our write
    sleep(SECOND).await;
    put(&store, KEY, "value").await;
    assert!(matches!(end(ensured).await, EnsureOutcome::ByOther));
    assert_eq!(replica.counters().evidence, before + 1);
}

#[tokio::test(start_paused = true)]
async fn late_event_clears_no_newer_job() {
    let store = MemoryStore::new();
    let network = Network { write: 4 * SECOND, watch: 3 * SECOND, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    replica.lead().await;
    sleep(100 * SECOND).await; // until the echo returns
    let led = replica.counters();
    put(&store, KEY, "value").await; // equals the later request, until the next write
    put(&store, KEY, "other").await;
    let ensured = replica.guard.ensure("key", want("value"));
    replica.has_sent(2).await;
    put(&store, KEY, "yet another").await; // a conflict keeps the job pending
    assert!(matches!(end(ensured).await, EnsureOutcome::Written(_)));
    assert_eq!(text(&store, KEY).await, "value");
    assert_eq!(replica.counters().evidence, led.evidence);
}

#[tokio::test(start_paused = true)]
async fn late_event_from_before_a_deletion_clears_nothing() {
    let store = MemoryStore::new();
    put(&store, KEY, "old").await;
    let network = Network { write: 30 * SECOND, watch: 3 * SECOND, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    let past = put(&store, KEY, "value").await; // equals the later request
    store.delete(KEY, &past, None).await.unwrap();
    let ensured = replica.guard.ensure("key", want("value"));
    replica.has_sent(1).await; // its read found no object
    put(&store, KEY, "other").await; // a conflict keeps the job pending
    assert!(matches!(end(ensured).await, EnsureOutcome::Written(_)));
    assert_eq!((replica.counters().evidence, replica.remote.counts().refused), (0, 1));
    assert_eq!(text(&store, KEY).await, "value");
}

#[tokio::test(start_paused = true)]
async fn evidence_from_before_leadership_deposes_no_leader() {
    let store = MemoryStore::new();
    let slow = |write| Network { write, watch: 4 * SECOND, ..Network::default() };
    let replica = Replica::new(&store, slow(100 * MS)).await;
    let first = replica.guard.ensure("first", want("value"));
    let _hung = replica.guard.ensure("hung", want("value"));
    let last = replica.guard.ensure("last", want("value"));
    put(&store, "guarded/last", "value").await;
    assert!(matches!(end(first).await, EnsureOutcome::Written(_)));
    // A slow write occupies the leader's only slot until the event arrives.
    replica.remote.set_network(slow(1000 * SECOND));
    let reads = replica.remote.counts().reads;
    assert!(matches!(end(last).await, EnsureOutcome::ByOther));
    assert!(replica.remote.counts().reads <= reads + 1, "it was not attempted");
    assert!(replica.guard.lease().is_leader());
    assert_eq!(replica.counters().lost, 0);
}

#[tokio::test(start_paused = true)]
async fn listing_clears_done_jobs_without_evidence() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    replica.follow().await;
    let before = replica.counters().evidence;
    let done = replica.guard.ensure("key", want("value"));
    let open = replica.guard.ensure("open", want("value"));
    put(&store, KEY, "value").await;
    for _ in 0..2000 {
        put(&store, "guarded/noise", "x").await; // overflow forces a new listing
    }
    sleep(10 * MS).await;
    assert!(matches!(end(done).await, EnsureOutcome::Satisfied));
    assert_eq!(replica.counters().evidence, before);
    assert_eq!(replica.guard.lease().len(), 1);
    assert!(matches!(end(open).await, EnsureOutcome::Written(_)));
}

#[tokio::test(start_paused = true)]
async fn listing_reveals_missed_deletions() {
    let (guard, events) = scripted(MemoryStore::new()).await;
    follow(&guard);
    let entry = Entry { key: KEY.into(), value: "value".into(), version: Version::ordered(1) };
    events.send(Ok(Event::Put(entry))).unwrap();
    sleep(MS).await;
    for event in [Event::Init, Event::InitDone] {
        events.send(Ok(event)).unwrap();
    }
    sleep(MS).await;
    let before = guard.lease().snapshot().counters.evidence;
    let ensured = guard.ensure("key", want("value"));
    let entry = Entry { key: KEY.into(), value: "value".into(), version: Version::ordered(9) };
    events.send(Ok(Event::Put(entry))).unwrap();
    assert!(
        matches!(end(ensured).await, EnsureOutcome::ByOther),
        "the listing showed that the key did not exist"
    );
    assert_eq!(guard.lease().snapshot().counters.evidence, before + 1);
}

#[tokio::test(start_paused = true)]
async fn unordered_watch_behind_our_write_clears_nothing() {
    let store = MemoryStore::new();
    let (guard, events) = scripted(store.clone()).await;
    let event = |value: &'static str, version: &'static str| {
        Ok(Event::Put(Entry { key: KEY.into(), value: value.into(), version: Version::opaque(version) }))
    };
    // The watch has not delivered our own write yet.
    assert!(matches!(end(guard.ensure("key", want("ours"))).await, EnsureOutcome::Written(_)));
    follow(&guard);
    guard.lease().extend(&KEY.into());
    let mut ensured = guard.ensure("key", want("value"));
    events.send(event("value", "before ours")).unwrap();
    sleep(10 * MS).await;
    assert!((&mut ensured).now_or_never().is_none(), "the event may be older than our write");
    let ours = store.get(KEY).await.unwrap().unwrap();
    let back = Entry { version: Version::opaque(format!("{:?}", ours.version)), ..ours };
    events.send(Ok(Event::Put(back))).unwrap();
    events.send(event("value", "after ours")).unwrap();
    assert!(matches!(end(ensured).await, EnsureOutcome::ByOther));
}

#[tokio::test(start_paused = true)]
async fn unordered_watch_behind_our_read_clears_nothing() {
    let store = MemoryStore::new();
    put(&store, KEY, "now").await;
    let (guard, events) = scripted(store.clone()).await;
    // The listing lacked the object, so our read is ahead of the watch.
    assert!(matches!(end(guard.ensure("key", want("now"))).await, EnsureOutcome::ByOther));
    follow(&guard);
    let mut ensured = guard.ensure("key", want("value"));
    let past = Entry { key: KEY.into(), value: "value".into(), version: Version::opaque("past") };
    events.send(Ok(Event::Put(past))).unwrap();
    sleep(10 * MS).await;
    assert!((&mut ensured).now_or_never().is_none());
    assert!(matches!(end(ensured).await, EnsureOutcome::Written(_)));
}

#[tokio::test(start_paused = true)]
async fn news_after_an_interruption_measures_no_echo() {
    for is_listed in [false, true] {
        let (guard, events) = scripted(MemoryStore::new()).await;
        let EnsureOutcome::Written(version) = end(guard.ensure("key", want("value"))).await else { panic!() };
        let before = guard.lease().snapshot().echo;
        events.send(Err(StoreError::Unavailable { reason: "cut".into(), source: None })).unwrap();
        sleep(30 * SECOND).await;
        let entry = Entry { key: KEY.into(), value: "value".into(), version };
        if is_listed {
            for event in [Event::Init, Event::InitEntry(entry), Event::InitDone] {
                events.send(Ok(event)).unwrap();
            }
        } else {
            events.send(Ok(Event::Put(entry))).unwrap();
        }
        wait_for_watch(&guard, |watch| *watch == WatchState::Live).await;
        sleep(SECOND).await;
        assert_eq!(guard.lease().snapshot().echo, before);
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_restore_the_guard_sees_again() {
    let (guard, events) = scripted(MemoryStore::new()).await;
    events.send(Ok(put_event("key", "old", Version::ordered(1_000)))).unwrap();
    sleep(SECOND).await;
    events.send(Err(StoreError::Unavailable { reason: "restored".into(), source: None })).unwrap();
    let older = Entry { key: KEY.into(), value: "older".into(), version: Version::ordered(500) };
    for event in [Event::Init, Event::InitEntry(older), Event::InitDone] {
        events.send(Ok(event)).unwrap();
    }
    sleep(SECOND).await;
    assert_eq!(guard.watch_state(), WatchState::Live);
    follow(&guard);
    let before = guard.lease().snapshot().counters.evidence;
    let ensured = guard.ensure("key", want("value"));
    sleep(10 * MS).await;
    events.send(Ok(put_event("key", "value", Version::ordered(501)))).unwrap();
    assert!(matches!(end(ensured).await, EnsureOutcome::ByOther));
    assert_eq!(guard.lease().snapshot().counters.evidence, before + 1);
}

#[tokio::test(start_paused = true)]
async fn after_a_restore_the_leader_hears_again() {
    for is_restored in [false, true] {
        let (guard, events) = scripted(MemoryStore::new()).await;
        let won = async || Outcome::Written.done().at_revision(Some(1_000));
        guard.lease().try_work("first".into(), move |_| won()).unwrap();
        sleep(SECOND).await;
        assert!(guard.lease().is_leader());
        if is_restored {
            for event in [Event::Init, Event::InitDone] {
                events.send(Ok(event)).unwrap();
            }
        }
        sleep(SECOND).await;
        guard.lease().extend_at(&"elsewhere".into(), Some(501));
        let role = if is_restored { Role::Follower } else { Role::Leader };
        assert_eq!(guard.lease().status().role, role);
    }
}

#[tokio::test(start_paused = true)]
async fn watch_that_is_not_live_satisfies_nothing() {
    let entry = |version| Event::InitEntry(Entry { key: KEY.into(), value: "right".into(), version });
    let cut = || Err(StoreError::Unavailable { reason: "cut".into(), source: None });
    for case in 0..6 {
        let store = MemoryStore::new();
        let version = Version::opaque(format!("{:?}", put(&store, KEY, "right").await));
        let (guard, events) = scripted(store.clone()).await;
        let known = [Ok(Event::Init), Ok(entry(version.clone())), Ok(Event::InitDone)];
        let news = match case {
            0 => vec![],
            1 => vec![cut()],
            2 => vec![Ok(Event::Init)],
            3 => vec![cut(), Ok(Event::Init), Ok(entry(version))],
            4 => vec![Ok(Event::Init), cut()],
            _ => vec![cut(), Ok(Event::Resumed), cut()],
        };
        known.into_iter().chain(news).for_each(|event| events.send(event).unwrap());
        sleep(MS).await;
        put(&store, KEY, "wrong").await; // the watch does not show it
        let ending = end(guard.ensure("key", want("right"))).await;
        match case {
            0 => assert!(matches!(ending, EnsureOutcome::Satisfied), "a live watch: {ending:?}"),
            _ => assert!(matches!(ending, EnsureOutcome::Written(_)), "case {case}: {ending:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn listing_after_an_interruption_satisfies_without_a_read() {
    let store = MemoryStore::new();
    let version = Version::opaque(format!("{:?}", put(&store, KEY, "right").await));
    let entry =
        || Event::InitEntry(Entry { key: KEY.into(), value: "right".into(), version: version.clone() });
    let (guard, events) = scripted(store).await;
    let send = |event| events.send(event).unwrap();
    [Event::Init, entry(), Event::InitDone].into_iter().for_each(|event| send(Ok(event)));
    send(Err(StoreError::Unavailable { reason: "cut".into(), source: None }));
    sleep(MS).await;
    follow(&guard);
    let mut during = guard.ensure("key", want("right"));
    sleep(MS).await;
    assert!((&mut during).now_or_never().is_none(), "nobody knows");
    [Event::Init, entry(), Event::InitDone].into_iter().for_each(|event| send(Ok(event)));
    assert!(matches!(end(during).await, EnsureOutcome::Satisfied));
    assert_eq!(guard.lease().snapshot().counters.attempts, 0);
    assert!(guard.lease().is_empty());
}

#[tokio::test(start_paused = true)]
async fn watch_state_reports_interruption_and_end() {
    let (guard, events) = scripted(MemoryStore::new()).await;
    let mut notices = guard.notices();
    sleep(SECOND).await;
    let cut = tokio::time::Instant::now();
    events.send(Err(StoreError::Unavailable { reason: "cut".into(), source: None })).unwrap();
    wait_for_watch(&guard, |watch| matches!(watch, WatchState::Resuming { .. })).await;
    sleep(SECOND).await;
    assert_eq!(guard.watch_state(), WatchState::Resuming { since: cut });
    assert!(matches!(notices.recv().await.unwrap(), Notice::WatchInterrupted { .. }));
    // Writes continue without a watch.
    assert!(matches!(end(guard.ensure("key", want("value"))).await, EnsureOutcome::Written(_)));
    events.send(Ok(Event::Resumed)).unwrap();
    wait_for_watch(&guard, |watch| *watch == WatchState::Live).await;
    assert!(matches!(notices.recv().await.unwrap(), Notice::WatchRestored));
    drop(events);
    wait_for_watch(&guard, |watch| matches!(watch, WatchState::Ended { .. })).await;
    assert!(matches!(notices.recv().await.unwrap(), Notice::WatchEnded));
    assert!(matches!(end(guard.ensure("key", want("more"))).await, EnsureOutcome::Written(_)));
    let lease = guard.lease().clone();
    drop(guard);
    let mut statuses = lease.subscribe();
    statuses.wait_for(|status| status.watch.is_none()).await.expect("the guard and its watch have ended");
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_requests_after_the_watch_ended() {
    let (guard, events) = scripted(MemoryStore::new()).await;
    follow(&guard);
    let pending = guard.ensure("key", want("value"));
    drop(events);
    wait_for_watch(&guard, |watch| matches!(watch, WatchState::Ended { .. })).await;
    guard.lease().shutdown(SECOND).await;
    assert!(matches!(end(pending).await, EnsureOutcome::LeaseClosed(LeaseClosed::ShutDown)));
}

#[tokio::test(start_paused = true)]
async fn panic_in_the_watch_ends_it_visibly() {
    let (guard, events) = scripted(MemoryStore::new()).await;
    let mut notices = guard.notices();
    follow(&guard);
    let pending = guard.ensure("key", want("value"));
    events.send(Ok(put_event("key", PANIC, Version::opaque("1")))).unwrap();
    wait_for_watch(&guard, |watch| matches!(watch, WatchState::Ended { .. })).await;
    assert!(matches!(notices.recv().await.unwrap(), Notice::WatchEnded));
    guard.lease().shutdown(SECOND).await;
    assert!(matches!(end(pending).await, EnsureOutcome::LeaseClosed(LeaseClosed::ShutDown)));
}

#[test]
fn death_of_the_runtime_ends_watch_and_requests() {
    let build =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let runtime = build();
    let (guard, pending, _events) = runtime.block_on(async {
        let (guard, events) = scripted(MemoryStore::new()).await;
        follow(&guard);
        let pending = guard.ensure("key", want("value"));
        (guard, pending, events)
    });
    drop(runtime);
    assert!(matches!(guard.watch_state(), WatchState::Ended { .. }));
    let ending = build().block_on(end(pending));
    assert!(matches!(ending, EnsureOutcome::LeaseClosed(LeaseClosed::DriverDied)), "{ending:?}");
}

// --- parts ---

#[tokio::test(start_paused = true)]
async fn pending_parts_of_an_object_share_one_write() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    let ready = replica.guard.ensure_part("key", "ready", want_word("ready"));
    let admitted = replica.guard.ensure_part("key", "admitted", want_word("admitted"));
    assert!(matches!(end(ready).await, EnsureOutcome::Written(_)));
    assert!(matches!(end(admitted).await, EnsureOutcome::Written(_)));
    assert_eq!(text(&store, KEY).await, "ready admitted");
    assert_eq!(replica.remote.counts().attempted, 1);
}

#[tokio::test(start_paused = true)]
async fn part_added_during_a_write_is_written_next() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network { write: SECOND, ..Network::default() }).await;
    let ready = replica.guard.ensure_part("key", "ready", want_word("ready"));
    replica.has_sent(1).await;
    let admitted = replica.guard.ensure_part("key", "admitted", want_word("admitted"));
    assert!(matches!(end(ready).await, EnsureOutcome::Written(_)));
    assert!(matches!(end(admitted).await, EnsureOutcome::Written(_)));
    assert_eq!(text(&store, KEY).await, "ready admitted");
    assert_eq!((replica.remote.counts().attempted, replica.remote.counts().refused), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn part_added_during_a_retry_is_written() {
    let store = MemoryStore::new();
    let network = Network { read: SECOND, write: SECOND, watch: 1000 * SECOND, ..Network::default() };
    let replica = Replica::new(&store, network).await;
    let ready = replica.guard.ensure_part("key", "ready", want_word("ready"));
    replica.has_sent(1).await;
    put(&store, KEY, "ready").await;
    while replica.remote.counts().reads < 2 {
        sleep(MS).await; // until the retry reads
    }
    let admitted = replica.guard.ensure_part("key", "admitted", want_word("admitted"));
    assert!(matches!(end(ready).await, EnsureOutcome::ByOther));
    assert!(matches!(end(admitted).await, EnsureOutcome::Written(_)));
    assert_eq!(text(&store, KEY).await, "ready admitted");
}

#[tokio::test(start_paused = true)]
async fn satisfied_part_ends_as_satisfied_beside_a_write() {
    let store = MemoryStore::new();
    put(&store, KEY, "ready").await;
    let replica = Replica::new(&store, Network::default()).await;
    let ready = replica.guard.ensure_part("key", "ready", want_word("ready"));
    let admitted = replica.guard.ensure_part("key", "admitted", want_word("admitted"));
    assert!(matches!(end(ready).await, EnsureOutcome::Satisfied));
    assert!(matches!(end(admitted).await, EnsureOutcome::Written(_)));
}

#[tokio::test(start_paused = true)]
async fn opposite_parts_write_nothing() {
    let store = MemoryStore::new();
    put(&store, KEY, "off").await;
    let replica = Replica::new(&store, Network::default()).await;
    let on = replica.guard.ensure_part("key", "a", want("on"));
    let off = replica.guard.ensure_part("key", "b", want("off"));
    assert!(matches!(end(on).await, EnsureOutcome::Satisfied));
    assert!(matches!(end(off).await, EnsureOutcome::Satisfied));
    assert_eq!(replica.remote.counts().attempted, 0);
}

// --- absence ---

#[tokio::test(start_paused = true)]
async fn unwanted_key_is_deleted_by_one_replica() {
    let store = MemoryStore::new();
    put(&store, KEY, "value").await;
    let network = Network { read: MS, write: 2 * MS, watch: 2 * MS, ..Network::default() };
    let leader = Replica::new(&store, network.clone()).await;
    let follower = Replica::new(&store, network).await;
    leader.lead().await;
    sleep(SECOND).await;
    follower.follow().await;
    let evidence = follower.counters().evidence;
    let theirs = follower.guard.ensure_absent("key");
    let ours = leader.guard.ensure_absent("key");
    let ending = end(ours).await;
    assert!(matches!(ending, EnsureOutcome::Deleted), "{ending:?}");
    assert!(matches!(end(theirs).await, EnsureOutcome::ByOther));
    assert_eq!(store.get(KEY).await.unwrap(), None);
    assert_eq!((leader.counters().written, leader.counters().lost), (2, 0));
    assert_eq!(follower.counters().evidence, evidence + 1);
    assert!(matches!(end(leader.guard.ensure_absent("key")).await, EnsureOutcome::Satisfied));
    assert!(leader.guard.lease().is_empty() && follower.guard.lease().is_empty());
}

#[tokio::test(start_paused = true)]
async fn refused_deletion_is_retried_after_a_new_read() {
    let store = MemoryStore::new();
    put(&store, KEY, "person").await;
    let replica = Replica::new(&store, Network { write: 100 * MS, ..Network::default() }).await;
    let ensured = replica.guard.ensure_absent("key");
    replica.has_sent(1).await;
    put(&store, KEY, "person again").await;
    assert!(matches!(end(ensured).await, EnsureOutcome::Deleted));
    assert_eq!((store.get(KEY).await.unwrap(), replica.remote.counts().refused), (None, 1));
    let counters = replica.counters();
    assert_eq!((counters.conflicts, counters.written, counters.evidence), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn deletion_without_an_answer_is_no_evidence() {
    // The next read sees the deletion, or the watch does.
    for (watch, next) in [(1000 * SECOND, NetworkFault::None), (10 * MS, NetworkFault::Down)] {
        let store = MemoryStore::new();
        put(&store, KEY, "value").await;
        let replica = Replica::new(&store, Network { watch, ..Network::default() }).await;
        replica.lead().await;
        replica.remote.set_fault(NetworkFault::AnswersLost);
        let ensured = replica.guard.ensure_absent("key");
        sleep(2 * MS).await;
        replica.remote.set_fault(next);
        assert!(matches!(end(ensured).await, EnsureOutcome::Deleted));
        assert_eq!((replica.counters().evidence, replica.counters().lost), (0, 0));
        assert!(replica.guard.lease().is_leader());
    }
}

#[tokio::test(start_paused = true)]
async fn last_call_decides_whether_a_key_exists() {
    let store = MemoryStore::new();
    put(&store, KEY, "old").await;
    let replica = Replica::new(&store, Network::default()).await;
    let value = replica.guard.ensure_part("key", "a", want("value"));
    let absent = replica.guard.ensure_absent("key");
    let part = replica.guard.ensure_part("key", "b", want("part"));
    assert!(matches!(end(value).await, EnsureOutcome::Superseded));
    assert!(matches!(end(absent).await, EnsureOutcome::Superseded));
    assert!(matches!(end(part).await, EnsureOutcome::Written(_)));
    let withdrawn = replica.guard.ensure_absent("key");
    replica.guard.remove("key");
    assert!(matches!(end(withdrawn).await, EnsureOutcome::Removed));
    sleep(200 * SECOND).await;
    assert_eq!(text(&store, KEY).await, "part");
}

#[tokio::test(start_paused = true)]
async fn denied_deletion_is_reported_and_stays_pending() {
    let store = MemoryStore::new();
    put(&store, KEY, "value").await;
    let replica = Replica::new(&store, Network::default()).await;
    let mut notices = replica.guard.notices();
    replica.remote.set_fault(NetworkFault::Denied);
    assert!(matches!(end(replica.guard.ensure_absent("key")).await, EnsureOutcome::Denied(_)));
    assert!(matches!(notices.recv().await.unwrap(), Notice::Refused { .. }));
    replica.remote.set_fault(NetworkFault::None);
    sleep(70 * SECOND).await;
    assert_eq!(store.get(KEY).await.unwrap(), None, "it is tried again");
}

// --- handles ---

#[tokio::test(start_paused = true)]
async fn newer_call_supersedes_an_older_one() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    let older = replica.guard.ensure("key", want("older"));
    let newer = replica.guard.ensure("key", want("newer"));
    assert!(matches!(end(older).await, EnsureOutcome::Superseded));
    assert!(matches!(end(newer).await, EnsureOutcome::Written(_)));
    assert_eq!((&*text(&store, KEY).await, replica.remote.counts().attempted), ("newer", 1));
}

#[tokio::test(start_paused = true)]
async fn a_removed_key_is_not_written() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    let ensured = replica.guard.ensure("key", want("value"));
    replica.guard.remove("key");
    assert!(matches!(end(ensured).await, EnsureOutcome::Removed));
    sleep(200 * SECOND).await;
    assert_eq!(store.get(KEY).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn dropped_handle_leaves_the_job_running() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    drop(replica.guard.ensure("key", want("value")));
    sleep(5 * SECOND).await;
    assert_eq!(text(&store, KEY).await, "value");
}

#[tokio::test(start_paused = true)]
async fn every_handle_reports_shutdown() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    replica.follow().await;
    let pending = replica.guard.ensure("key", want("value"));
    let keys = replica.guard.lease().shutdown(SECOND).await;
    assert_eq!(keys, [Arc::from(KEY)]);
    assert!(matches!(end(pending).await, EnsureOutcome::LeaseClosed(LeaseClosed::ShutDown)));
    let late = replica.guard.ensure("key", want("value"));
    assert!(matches!(end(late).await, EnsureOutcome::LeaseClosed(LeaseClosed::ShutDown)));
}

#[tokio::test(start_paused = true)]
async fn dropped_guard_releases_lease_and_waiters() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    replica.follow().await;
    let mut statuses = replica.guard.lease().subscribe();
    let pending = replica.guard.ensure("key", want("value"));
    drop(replica);
    assert!(matches!(end(pending).await, EnsureOutcome::Dropped));
    statuses.wait_for(|status| status.closed.is_some()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn panicking_closure_is_retried_and_stops_nothing_else() {
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let bad = replica.guard.ensure("key", move |current| {
        if counted.fetch_add(1, SeqCst) < 3 {
            panic!("not yet");
        }
        want("value")(current)
    });
    let good = replica.guard.ensure("good", want("value"));
    put(&store, KEY, "also evaluated by the watch").await;
    assert!(matches!(end(good).await, EnsureOutcome::Written(_)));
    assert!(matches!(end(bad).await, EnsureOutcome::Written(_)));
    assert_eq!(text(&store, KEY).await, "value");
}

#[tokio::test(start_paused = true)]
async fn closure_may_call_the_guard_even_when_dropped() {
    struct Caller(Guard<RemoteStore<MemoryStore>>);
    impl Drop for Caller {
        fn drop(&mut self) {
            self.0.remove("elsewhere");
        }
    }
    let store = MemoryStore::new();
    let replica = Replica::new(&store, Network::default()).await;
    let calls = |value: &'static str| {
        let caller = Caller(replica.guard.clone());
        replica.guard.ensure("key", move |current| {
            drop(caller.0.ensure("other", |_| Some("x")));
            want(value)(current)
        })
    };
    let superseded = calls("a");
    let removed = calls("b");
    replica.guard.remove("key");
    assert!(matches!(end(superseded).await, EnsureOutcome::Superseded));
    assert!(matches!(end(removed).await, EnsureOutcome::Removed));
    assert!(matches!(end(calls("c")).await, EnsureOutcome::Written(_)));
    let pending = calls("d");
    replica.guard.lease().shutdown(SECOND).await;
    assert!(matches!(end(pending).await, EnsureOutcome::LeaseClosed(_)));
    assert!(matches!(end(calls("e")).await, EnsureOutcome::LeaseClosed(_)));
}

/// Runs a test on a thread of its own, because a deadlock would block the test's thread for ever.
fn ends<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(test());
        let _ = done.send(());
    });
    ended.recv_timeout(20 * SECOND).expect("the test succeeds, and nothing blocks it");
}

#[test]
fn a_dropped_closure_may_call_the_guard() {
    struct Caller(Guard<Scripted>);
    impl Drop for Caller {
        fn drop(&mut self) {
            self.0.remove("elsewhere");
        }
    }
    // Without a listing nothing is known when the first request comes.
    for is_listed in [false, true] {
        ends(move || async move {
            let (script, events) = mpsc::unbounded_channel();
            if is_listed {
                script.send(Ok(Event::Init)).unwrap();
                script.send(Ok(Event::InitDone)).unwrap();
            }
            let slow = Duration::from_millis(500);
            let store = Scripted { slow, ..Scripted::new(MemoryStore::new(), events) };
            let guard = Guard::new(store, lease(1), "guarded/").unwrap();
            sleep(MS).await;
            let first = guard.ensure_part("key", "a", want("x"));
            sleep(slow).await; // the attempt reads
            let caller = Caller(guard.clone());
            let second = guard.ensure_part("key", "b", move |current| {
                let _ = &caller;
                want("x")(current)
            });
            sleep(slow).await; // the attempt writes
            let third = guard.ensure_part("key", "b", want("x"));
            assert!(matches!(end(first).await, EnsureOutcome::Written(_)));
            assert!(matches!(end(second).await, EnsureOutcome::Superseded));
            assert!(matches!(end(third).await, EnsureOutcome::Satisfied));
        });
    }
}

#[test]
fn comparison_of_the_tracker_may_call_the_guard() {
    ends(|| async {
        let store = MemoryStore::new();
        let cell: Arc<std::sync::OnceLock<Guard<MemoryStore>>> = Arc::default();
        let compares = cell.clone();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = asked.clone();
        let tracker = ContentionTracker::comparing(move |one: &Bytes, other| {
            compares.get().unwrap().remove("elsewhere");
            counted.fetch_add(1, SeqCst);
            one == other
        });
        let guard = Guard::with_contention(store.clone(), lease(1), "guarded/", Arc::new(tracker)).unwrap();
        assert!(cell.set(guard.clone()).is_ok());
        for _ in 0..3 {
            drop(end(guard.ensure("key", want("ours"))).await);
            put(&store, KEY, "theirs").await;
            sleep(SECOND).await;
        }
        assert!(asked.load(SeqCst) > 0);
    });
}

#[tokio::test(start_paused = true)]
async fn overlapping_prefixes_on_one_lease_are_refused() {
    let shared = lease(1);
    let new = |prefix: &str| Guard::new(MemoryStore::new(), shared.clone(), prefix);
    let first = new("a/b/").unwrap();
    let _beside = new("a/c/").unwrap();
    for prefix in ["a/b/", "a/b/c/", "a/", "a", ""] {
        let refused = new(prefix).unwrap_err();
        assert!(matches!(refused, SpawnError::OverlappingPrefixes { .. }), "{refused:?}");
    }
    assert_eq!(
        new("a/b/c/").unwrap_err().to_string(),
        r#"the prefix "a/b/c/" overlaps with "a/b/" of another guard on the same lease"#
    );
    drop(first);
    new("a/b/").expect("a dropped guard frees its prefix");
    let other = Guard::new(MemoryStore::new(), lease(2), "a/c/");
    assert!(other.is_ok(), "another lease has its own prefixes");
}

#[tokio::test(start_paused = true)]
async fn only_keys_under_the_prefix_are_touched() {
    let store = MemoryStore::new();
    put(&store, "guardedbutnot/key", "theirs").await;
    let replica = Replica::new(&store, Network::default()).await;
    assert!(matches!(end(replica.guard.ensure("key", want("ours"))).await, EnsureOutcome::Written(_)));
    assert_eq!(text(&store, "guardedbutnot/key").await, "theirs");
    assert_eq!(text(&store, KEY).await, "ours");
}

// --- several replicas ---

#[tokio::test(start_paused = true)]
async fn one_of_several_replicas_writes_for_all() {
    let store = MemoryStore::new();
    let network = Network { read: MS, write: 2 * MS, watch: 2 * MS, ..Network::default() };
    let mut replicas = Vec::new();
    for seed in 0..5 {
        let remote = RemoteStore::new(store.clone(), network.clone(), seed);
        let guard = Guard::new(remote.clone(), lease(seed), "guarded/").unwrap();
        wait_for_watch(&guard, |watch| *watch == WatchState::Live).await;
        replicas.push(Replica { remote, guard });
    }
    for round in ["one", "two", "three"] {
        let mut handles = Vec::new();
        for replica in &replicas {
            for key in ["a", "b", "c", "d"] {
                handles.push(replica.guard.ensure(key, want(round)));
            }
        }
        for handle in handles {
            let ending = end(handle).await;
            assert!(
                matches!(
                    ending,
                    EnsureOutcome::Written(_) | EnsureOutcome::ByOther | EnsureOutcome::Satisfied
                ),
                "{ending:?}"
            );
        }
        sleep(SECOND).await;
    }
    let written: u64 = replicas.iter().map(|replica| replica.remote.counts().succeeded).sum();
    let refused: u64 = replicas.iter().map(|replica| replica.remote.counts().refused).sum();
    assert_eq!((written, refused), (12, 0));
    let leaders = replicas.iter().filter(|replica| replica.guard.lease().is_leader()).count();
    assert_eq!(leaders, 1);
}

// --- a store whose events the test supplies ---

struct Scripted {
    store: MemoryStore,
    events: Arc<Mutex<mpsc::UnboundedReceiver<Result<Event, StoreError>>>>,
    /// The time of a read and of a write.
    slow: Duration,
}

impl Scripted {
    fn new(store: MemoryStore, events: mpsc::UnboundedReceiver<Result<Event, StoreError>>) -> Self {
        Self { store, events: Arc::new(Mutex::new(events)), slow: Duration::ZERO }
    }
}

/// A store that adds to what is written, as an API server fills in defaults.
#[derive(Clone)]
struct Changing(MemoryStore);

impl Store for Changing {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.0.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let value = [&*value, b" and defaults"].concat();
        self.0.put(key, value.into(), expected, fence).await
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.0.delete(key, expected, fence).await
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        self.0.watch(prefix)
    }
}

/// A store that reads from a cache.
struct Cached {
    store: MemoryStore,
    cache: Arc<Mutex<Option<Entry>>>,
}

impl Store for Cached {
    async fn get(&self, _: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.cache.lock().await.clone())
    }

    async fn get_uncached(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        self.store.put(key, value, expected, fence).await
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.store.delete(key, expected, fence).await
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        self.store.watch(prefix)
    }
}

type Script = mpsc::UnboundedSender<Result<Event, StoreError>>;

/// Returns a guard over a store with unordered versions, values of at most 16 bytes and the test's
/// events.
async fn scripted(store: MemoryStore) -> (Guard<Scripted>, Script) {
    let (script, events) = mpsc::unbounded_channel();
    script.send(Ok(Event::Init)).unwrap();
    script.send(Ok(Event::InitDone)).unwrap();
    let store = Scripted::new(store, events);
    let guard = Guard::new(store, lease(1), "guarded/").unwrap();
    wait_for_watch(&guard, |watch| *watch == WatchState::Live).await;
    (guard, script)
}

/// [`Scripted::competes`] panics if it is asked about this value.
const PANIC: &str = "panic";

/// A write of a key under the guard's prefix, as the watch reports it.
fn put_event(key: &str, value: &'static str, version: Version) -> Event {
    Event::Put(Entry { key: format!("guarded/{key}").into(), value: value.into(), version })
}

fn follow(guard: &Guard<Scripted>) {
    (0..8).for_each(|_| guard.lease().extend(&"elsewhere".into()));
}

impl Store for Scripted {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        sleep(self.slow).await;
        let entry = self.store.get(key).await?;
        Ok(entry.map(|entry| Entry { version: Version::opaque(format!("{:?}", entry.version)), ..entry }))
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        sleep(self.slow).await;
        if value.len() > 16 {
            return Err(StoreError::TooLarge { reason: "over 16 bytes".into(), source: None });
        }
        if value == "denied" {
            return Err(StoreError::Denied { reason: "read only".into(), source: None });
        }
        if value == "invalid" {
            return Err(StoreError::Invalid { reason: "not this".into(), source: None });
        }
        let current = self.store.get(key).await?;
        let version = current.as_ref().map(|entry| Version::opaque(format!("{:?}", entry.version)));
        let real = match (expected, current) {
            (Expected::Absent, None) => Expected::Absent,
            (Expected::Version(expected), Some(entry)) if Some(expected.clone()) == version => {
                Expected::Version(entry.version)
            }
            _ => return Err(StoreError::Conflict { current: writerlease::store::Current::Unknown }),
        };
        let written = self.store.put(key, value, real, fence).await?;
        Ok(Version::opaque(format!("{written:?}")))
    }

    async fn delete(&self, key: &str, _: &Version, _: Option<&Fence>) -> Result<(), StoreError> {
        panic!("{key} is never deleted")
    }

    fn competes(&self, _: Option<&[u8]>, after: &[u8], _: &Version) -> bool {
        assert_ne!(after, PANIC.as_bytes());
        true
    }

    fn watch(&self, _: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let events = self.events.clone();
        futures_util::stream::unfold(events, |events| async move {
            let event = events.lock().await.recv().await?;
            Some((event, events))
        })
        .boxed()
    }
}

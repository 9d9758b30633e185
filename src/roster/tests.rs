//! The roster on a store in memory, on paused time.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::*;
use crate::{
    LeaseClosed, Outcome,
    guard::Guard,
    store::{Entry, Event, Expected, Fence, MemoryStore, StoreError, Version},
};

type Lease = WriterLease<Arc<str>>;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn lease() -> Lease {
    WriterLease::builder("test").seed(1).spawn().unwrap()
}

/// A lease that has joined a roster under this name.
fn joined(store: &Faulty, name: &str) -> Lease {
    let lease = lease();
    lease.join(store.clone(), Roster::new("roster").name(name)).unwrap();
    lease
}

/// Gives a lease something to do.
fn work(lease: &Lease) {
    lease.try_work("key".into(), |_| async { Outcome::Written }).unwrap();
}

/// How a store fails.
#[derive(Clone, Copy, Default, PartialEq)]
enum Fault {
    #[default]
    None,
    /// It answers nothing.
    Down,
    /// It denies writes.
    ReadOnly,
    /// It denies everything.
    Denying,
}

/// A store that can fail, and counts its calls.
#[derive(Clone, Default)]
struct Faulty {
    memory: MemoryStore,
    fault: Arc<Mutex<Fault>>,
    calls: Arc<AtomicUsize>,
    watches: Arc<AtomicUsize>,
}

impl Faulty {
    fn fail(&self, fault: Fault) {
        *self.fault.lock() = fault;
    }

    fn check(&self, is_write: bool) -> Result<(), StoreError> {
        let (reason, source) = (String::from("test"), None);
        match *self.fault.lock() {
            Fault::Down => Err(StoreError::Unavailable { reason, source }),
            Fault::Denying => Err(StoreError::Denied { reason, source }),
            Fault::ReadOnly if is_write => Err(StoreError::Denied { reason, source }),
            _ => Ok(()),
        }
    }

    fn call(&self, is_write: bool) -> Result<(), StoreError> {
        self.calls.fetch_add(1, SeqCst);
        self.check(is_write)
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    /// The names on the roster.
    async fn names(&self) -> Vec<String> {
        let listing = self.memory.watch("roster/").take_while(|event| {
            let more = !matches!(event, Ok(Event::InitDone));
            async move { more }
        });
        let name = |event: Result<Event, StoreError>| async move {
            event.ok()?.key().map(|key| key.trim_start_matches("roster/").to_owned())
        };
        listing.filter_map(name).collect().await
    }

    async fn write(&self, key: &str, value: impl Into<Bytes>) {
        let expected = match self.memory.get(key).await.unwrap() {
            Some(entry) => Expected::Version(entry.version),
            None => Expected::Absent,
        };
        self.memory.put(key, value.into(), expected, None).await.unwrap();
    }

    async fn erase(&self, key: &str) {
        let entry = self.memory.get(key).await.unwrap().unwrap();
        self.memory.delete(key, &entry.version, None).await.unwrap();
    }
}

impl Store for Faulty {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.call(false)?;
        self.memory.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        self.call(true)?;
        self.memory.put(key, value, expected, fence).await
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.call(true)?;
        self.memory.delete(key, expected, fence).await
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        self.watches.fetch_add(1, SeqCst);
        let denied = self.check(false).err();
        let is_denied = denied.is_some();
        let changes = self.memory.watch(prefix);
        stream::iter(denied.map(Err)).chain(changes.take_while(move |_| async move { !is_denied }))
    }
}

/// Counts the warnings.
#[derive(Clone, Default)]
struct Log(Arc<AtomicUsize>);

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, SeqCst);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn first_job_joins_and_shutdown_leaves() {
    let store = Faulty::default();
    let lease = joined(&store, "one");
    sleep(ms(5_000)).await;
    assert_eq!((store.names().await.len(), store.calls()), (0, 0), "an idle replica is not on the roster");
    work(&lease);
    sleep(ms(100)).await;
    assert_eq!(store.names().await, ["one"]);
    assert_eq!(store.memory.get("roster/one").await.unwrap().unwrap().value, "v1 weight=1");
    lease.shutdown(ms(1_000)).await;
    assert!(store.names().await.is_empty(), "shutdown waits until the entry is gone");
}

#[tokio::test(start_paused = true)]
async fn idle_group_sends_nothing() {
    let store = Faulty::default();
    let leases = ["one", "two", "three"].map(|name| joined(&store, name));
    leases.iter().for_each(work);
    sleep(ms(400)).await;
    // Nobody observes the writes here, so who waits would take the silence for a death.
    leases.iter().for_each(|lease| lease.remove(&"key".into()));
    sleep(ms(600)).await;
    assert_eq!(store.names().await, ["one", "three", "two"]);
    let (calls, watches) = (store.calls(), store.watches.load(SeqCst));
    assert_eq!(calls, 3, "one write each");
    sleep(Duration::from_secs(3600)).await;
    assert_eq!((store.calls(), store.watches.load(SeqCst)), (calls, watches));
}

#[tokio::test(start_paused = true)]
async fn many_replicas_join_with_a_write_each() {
    let store = Faulty::default();
    let leases: Vec<Lease> = (0..50).map(|i| joined(&store, &format!("replica-{i:02}"))).collect();
    leases.iter().for_each(work);
    sleep(ms(1_000)).await;
    assert_eq!((store.names().await.len(), store.calls()), (50, 50));
    for lease in &leases {
        lease.shutdown(ms(1_000)).await;
    }
    assert!(store.names().await.is_empty());
    assert_eq!(store.calls(), 50 + 2 * 50, "a read and a deletion each");
}

#[tokio::test(start_paused = true)]
async fn restart_takes_its_entry_over() {
    let store = Faulty::default();
    store.write("roster/one", "v1 weight=1").await;
    let before = store.memory.get("roster/one").await.unwrap().unwrap();
    let lease = joined(&store, "one");
    work(&lease);
    sleep(ms(1_000)).await;
    assert_eq!(store.memory.get("roster/one").await.unwrap(), Some(before), "an equal value is not written");

    let heavier = self::lease();
    heavier.join(store.clone(), Roster::new("roster/").name("one").weight(2)).unwrap();
    work(&heavier);
    sleep(ms(1_000)).await;
    assert_eq!(store.memory.get("roster/one").await.unwrap().unwrap().value, "v1 weight=2");
}

#[tokio::test(start_paused = true)]
async fn dead_member_is_struck_off() {
    let store = Faulty::default();
    store.write("roster/dead", "v1 weight=100").await;
    let lease = joined(&store, "one");
    work(&lease);
    sleep(ms(400)).await;
    assert_eq!(
        (store.names().await.len(), lease.is_empty()),
        (2, false),
        "there is one shard, and the dead has it"
    );
    sleep(ms(5_000)).await;
    assert_eq!((store.names().await, lease.is_empty()), (vec!["one".to_owned()], true));
}

#[tokio::test(start_paused = true)]
async fn silent_member_that_lives_answers() {
    let store = Faulty::default();
    // There is one shard, and one of the two has the turn. The other one sees nothing of its writes.
    let leases = ["one", "other"].map(|name| joined(&store, name));
    leases.iter().for_each(work);
    sleep(ms(400)).await;
    assert_eq!(store.names().await, ["one", "other"]);
    assert_eq!(leases.iter().filter(|lease| lease.is_leader()).count(), 1);
    let before = store.calls();
    sleep(ms(5_000)).await;
    assert_eq!((store.names().await.len(), store.calls() - before), (2, 2), "a question and an answer");
    assert!(leases.iter().all(|lease| lease.is_empty()));
    let is_suspected = |lease: &Lease| lease.snapshot().members.iter().any(|member| member.is_suspected);
    assert!(!leases.iter().any(is_suspected));
}

#[tokio::test(start_paused = true)]
async fn struck_off_alive_joins_again_with_its_next_job() {
    let store = Faulty::default();
    let lease = joined(&store, "one");
    work(&lease);
    sleep(ms(100)).await;
    for pause in [500, 1_000, 2_000] {
        store.erase("roster/one").await;
        sleep(ms(10)).await;
        work(&lease);
        sleep(ms(pause - 50)).await;
        assert!(store.names().await.is_empty(), "not within {pause} ms");
        sleep(ms(50)).await;
        assert_eq!(store.names().await, ["one"]);
    }
    store.erase("roster/one").await;
    sleep(Duration::from_secs(600)).await;
    assert!(store.names().await.is_empty(), "without a job it stays away");
}

#[tokio::test(start_paused = true)]
async fn store_that_is_down_is_joined_when_it_is_back() {
    let store = Faulty::default();
    let lease = joined(&store, "one");
    sleep(ms(1)).await;
    store.fail(Fault::Down);
    work(&lease);
    sleep(ms(3_000)).await;
    assert!(store.names().await.is_empty() && (2..=4).contains(&store.calls()), "{}", store.calls());
    store.fail(Fault::None);
    sleep(ms(2_000)).await;
    assert_eq!(store.names().await, ["one"]);
    assert!(lease.wait().await.unwrap(), "its work went on meanwhile");
}

#[tokio::test(start_paused = true)]
async fn denied_entry_is_rarely_tried_again() {
    let store = Faulty::default();
    store.fail(Fault::ReadOnly);
    let lease = joined(&store, "one");
    for _ in 0..300 {
        work(&lease);
        sleep(ms(1_000)).await;
    }
    assert!(lease.is_leader(), "it goes on without");
    assert!((8..=11).contains(&store.calls()), "{} tries in 300 s", store.calls());
    store.fail(Fault::None);
    work(&lease);
    sleep(ms(35_000)).await;
    assert_eq!(store.names().await, ["one"]);
}

#[tokio::test(start_paused = true)]
async fn roster_that_cannot_be_read_is_rarely_tried_again() {
    let store = Faulty::default();
    store.fail(Fault::Denying);
    let lease = joined(&store, "one");
    work(&lease);
    sleep(ms(150)).await;
    assert!(lease.is_leader(), "it does not wait for a roster");
    sleep(Duration::from_secs(300)).await;
    assert_eq!((store.calls(), store.watches.load(SeqCst)), (0, 6));
    store.fail(Fault::None);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(store.names().await, ["one"]);
}

#[tokio::test(start_paused = true)]
async fn foreign_things_are_skipped() {
    let store = Faulty::default();
    for i in 0..1_000 {
        store.write(&format!("roster/x{i}"), Bytes::from(vec![i as u8; 3])).await;
    }
    store.write("roster/", "v1 weight=1").await;
    store.write("roster/a/b", "v1 weight=1").await;
    store.write("roster/a\u{7}", "v1 weight=1").await;
    store.write("roster/heavy", "v1 weight=65535").await;
    store.write("roster/one", "not ours").await;
    store.write("rosters", "v1 weight=1").await;
    let log = Log::default();
    let _logs = tracing::subscriber::set_default(log.clone());
    let lease = joined(&store, "one");
    work(&lease);
    sleep(ms(1_000)).await;
    assert!(lease.is_leader());
    store.write("roster/x0", "still none").await;
    sleep(ms(1_000)).await;
    assert_eq!(log.0.load(SeqCst), 1_005, "a warning each");
    assert_eq!(store.memory.get("roster/one").await.unwrap().unwrap().value, "v1 weight=1");
    assert_eq!(store.calls(), 1, "it touches its own entry only");
    store.write("roster/one", "gone mad").await;
    sleep(ms(1_000)).await;
    work(&lease);
    sleep(ms(1_000)).await;
    assert_eq!(store.memory.get("roster/one").await.unwrap().unwrap().value, "v1 weight=1");
}

#[tokio::test(start_paused = true)]
async fn deleted_roster_is_joined_again() {
    let store = Faulty::default();
    let leases = ["one", "two"].map(|name| joined(&store, name));
    leases.iter().for_each(work);
    sleep(ms(1_000)).await;
    for name in store.names().await {
        store.erase(&format!("roster/{name}")).await;
    }
    sleep(ms(1_000)).await;
    assert!(store.names().await.is_empty());
    leases.iter().for_each(work);
    sleep(ms(1_000)).await;
    assert_eq!(store.names().await, ["one", "two"]);
}

#[tokio::test(start_paused = true)]
async fn leaves_after_its_attempts_have_finished() {
    let store = Faulty::default();
    let lease = joined(&store, "one");
    lease
        .try_work("key".into(), |_| async {
            sleep(ms(2_000)).await;
            Outcome::Written
        })
        .unwrap();
    sleep(ms(1_000)).await;
    let look = store.clone();
    let early = tokio::spawn(async move {
        sleep(ms(500)).await;
        look.names().await
    });
    assert!(lease.shutdown(ms(10_000)).await.is_empty());
    assert_eq!(early.await.unwrap(), ["one"], "while the attempt was in flight");
    assert!(store.names().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_a_store_within_its_grace() {
    let store = Faulty::default();
    let lease = joined(&store, "one");
    work(&lease);
    sleep(ms(1_000)).await;
    store.fail(Fault::Down);
    let start = crate::clock::now();
    lease.shutdown(ms(1_000)).await;
    assert_eq!(crate::clock::now() - start, ms(1_000));
    assert_eq!(store.names().await, ["one"]);
    store.fail(Fault::None);
    sleep(ms(10_000)).await;
    assert!(store.names().await.is_empty(), "it tries on for a while");
}

#[tokio::test(start_paused = true)]
async fn last_handle_leaves() {
    let store = Faulty::default();
    let lease = joined(&store, "one");
    work(&lease);
    sleep(ms(1_000)).await;
    drop(lease);
    sleep(ms(1)).await;
    assert!(store.names().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn replica_that_never_joined_leaves_nothing() {
    let store = Faulty::default();
    let lease = joined(&store, "one");
    sleep(ms(1_000)).await;
    lease.shutdown(ms(1_000)).await;
    assert_eq!(store.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn another_value_in_its_place_is_not_deleted() {
    let store = Faulty::default();
    let lease = joined(&store, "one");
    work(&lease);
    sleep(ms(1_000)).await;
    store.write("roster/one", "v1 weight=5").await;
    lease.shutdown(ms(1_000)).await;
    assert_eq!(store.names().await, ["one"], "a successor of another weight has taken it over");
}

#[tokio::test(start_paused = true)]
async fn bad_settings_are_refused() {
    let store = MemoryStore::new();
    let refused = |roster: Roster| lease().join(store.clone(), roster).unwrap_err().to_string();
    assert_eq!(refused(Roster::new("")), r#"prefix is "", but must be more than slashes"#);
    assert_eq!(refused(Roster::new("//")), r#"prefix is "//", but must be more than slashes"#);
    let rule = "but must be 1 to 253 bytes without a slash or control characters";
    assert_eq!(refused(Roster::new("r").name("a/b")), format!(r#"name is "a/b", {rule}"#));
    assert_eq!(refused(Roster::new("r").name("")), format!(r#"name is "", {rule}"#));
    assert_eq!(refused(Roster::new("r").weight(0)), "weight is 0, but must be from 1 to 100");
    assert_eq!(refused(Roster::new("r").weight(101)), "weight is 101, but must be from 1 to 100");

    let twice = lease();
    twice.join(store.clone(), Roster::new("r")).unwrap();
    assert_eq!(twice.join(store.clone(), Roster::new("s")), Err(SpawnError::AlreadyJoined));

    let guarded = lease();
    let guard = Guard::new(store.clone(), guarded, "r").unwrap();
    for overlapping in ["r", "r/", "roster"] {
        let refused = guard.join(Roster::new(overlapping)).unwrap_err().to_string();
        let rule = r#"but must be outside of the guard's prefix "r""#;
        assert_eq!(refused, format!("prefix is {overlapping:?}, {rule}"));
    }
    guard.join(Roster::new("s")).unwrap();

    let closed = lease();
    closed.shutdown(ms(1)).await;
    let late = closed.join(store, Roster::new("r"));
    assert_eq!(late, Err(SpawnError::Closed(LeaseClosed::ShutDown)));
}

#[test]
fn without_a_runtime_nobody_joins() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lease = runtime.block_on(async { lease() });
    assert_eq!(lease.join(MemoryStore::new(), Roster::new("r")), Err(SpawnError::NoRuntime));
}

#[test]
fn default_name_is_that_of_the_pod() {
    let name = |set: &'static [(&str, &str)]| {
        default_name(move |variable| {
            set.iter().find(|(name, _)| *name == variable).map(|set| set.1.to_owned())
        })
    };
    assert_eq!(name(&[("POD_NAME", "app-1"), ("HOSTNAME", "host")]), "app-1");
    assert_eq!(name(&[("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("HOSTNAME", "app-2")]), "app-2");
    for random in [name(&[("HOSTNAME", "laptop")]), name(&[]), name(&[("POD_NAME", "")])] {
        assert_eq!(random.len(), 16, "{random}");
    }
    assert_ne!(name(&[]), name(&[]));
}

//! Two groups that want different values of the same keys stop writing these, and go on with all
//! others.
#![allow(clippy::disallowed_methods, reason = "tests look at the clock that they pause")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use writerlease::{
    ContentionTracker, EnsureOutcome, Guard, Notice, WriterLease,
    lab::{Network, RemoteStore},
    store::{Event, Expected, MemoryStore, Store},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_secs(30);

type Tracker = ContentionTracker<Arc<str>, Bytes>;

/// A replica of a controller, which ensures its values again and again.
struct Controller {
    guard: Guard<RemoteStore<MemoryStore>>,
    remote: RemoteStore<MemoryStore>,
    tasks: JoinSet<()>,
}

impl Controller {
    fn new(store: &MemoryStore, seed: u64, tracker: Tracker) -> Self {
        let network = Network { read: MS, write: 2 * MS, ..Network::default() };
        let remote = RemoteStore::new(store.clone(), network, seed);
        let lease = WriterLease::builder("test").seed(seed).spawn().unwrap();
        let guard = Guard::with_contention(remote.clone(), lease, "objects/", Arc::new(tracker)).unwrap();
        Self { guard, remote, tasks: JoinSet::new() }
    }

    /// Ensures `value` for these keys, every 100 ms and after each contention has passed.
    fn wants(&mut self, keys: &[&str], value: &'static str) {
        for key in keys {
            let (guard, key) = (self.guard.clone(), (*key).to_owned());
            self.tasks.spawn(async move {
                loop {
                    let desire = move |current: Option<&[u8]>| match current {
                        Some(current) if current.starts_with(value.as_bytes()) => None,
                        _ => Some(value),
                    };
                    if let EnsureOutcome::Contended { until } = guard.ensure(&key, desire).await {
                        until.passed().await;
                    }
                    sleep(100 * MS).await;
                }
            });
        }
    }
}

/// Returns a counter of the writes of a key.
async fn writes(store: &MemoryStore, key: &str) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    let mut events = std::pin::pin!(store.watch(key));
    // The listing ends before this returns, so the counter misses no write.
    while !matches!(events.next().await, Some(Ok(Event::InitDone))) {}
    let (counted, store, key) = (count.clone(), store.clone(), key.to_owned());
    tokio::spawn(async move {
        let mut events = std::pin::pin!(store.watch(&key));
        while let Some(Ok(event)) = events.next().await {
            counted.fetch_add(u64::from(matches!(event, Event::Put(_))), SeqCst);
        }
    });
    count
}

async fn value(store: &MemoryStore, key: &str) -> Option<Bytes> {
    store.get(key).await.unwrap().map(|entry| entry.value)
}

#[tokio::test(start_paused = true)]
async fn contended_key_is_written_rarely_and_others_immediately() {
    let store = MemoryStore::new();
    let fought = writes(&store, "objects/fought").await;
    let tracker = || Tracker::new().interval(INTERVAL);
    let mut old: Vec<_> = (1..=3).map(|seed| Controller::new(&store, seed, tracker())).collect();
    let mut new: Vec<_> = (4..=6).map(|seed| Controller::new(&store, seed, tracker())).collect();
    old.iter_mut().for_each(|controller| controller.wants(&["fought", "theirs"], "old"));
    new.iter_mut().for_each(|controller| controller.wants(&["fought", "ours"], "new"));
    sleep(INTERVAL / 2).await;
    let before = fought.load(SeqCst);
    let innocent = Instant::now();
    for round in ["old 1", "old 2", "old 3"] {
        // A user's edit of an uncontended key is corrected immediately.
        let entry = store.get("objects/theirs").await.unwrap().unwrap();
        store.put(&entry.key, round[4..].into(), Expected::Version(entry.version), None).await.unwrap();
        while value(&store, "objects/theirs").await.as_deref() != Some(b"old") {
            sleep(MS).await;
        }
        // Losses further apart than the interval are no contention.
        sleep(INTERVAL + SECOND).await;
    }
    assert!(innocent.elapsed() < 3 * (INTERVAL + 3 * SECOND), "{:?}", innocent.elapsed());
    let later = fought.load(SeqCst);
    // Each group writes once, once more after the first loss, and again for each replica that takes
    // over before its own second loss.
    assert!((2..=12).contains(&before), "{before}");
    assert!(later > before, "both groups try again after the interval");
    assert!(later - before <= 4 * 12, "{later} - {before}");
    let counters: Vec<_> =
        old.iter().chain(&new).map(|controller| controller.guard.contention().counters()).collect();
    println!("{before} writes, then {} in three intervals: {counters:?}", later - before);
    assert!(counters.iter().any(|counters| counters.contended > 0));
    assert!(counters.iter().all(|counters| counters.untracked == 0));
    let asked: u64 = old.iter().chain(&new).map(|controller| controller.remote.counts().attempted).sum();
    assert!(asked < 100, "{asked} writes were sent");
}

#[tokio::test(start_paused = true)]
async fn contended_key_recovers_after_the_rivals_leave() {
    let store = MemoryStore::new();
    let tracker = || Tracker::new().interval(INTERVAL);
    let mut old = Controller::new(&store, 1, tracker());
    let mut new = Controller::new(&store, 2, tracker());
    let mut notices = new.guard.notices();
    old.wants(&["fought"], "old");
    new.wants(&["fought"], "new");
    let until = loop {
        if let Notice::Contended { key, until } = notices.recv().await.unwrap() {
            assert_eq!(&*key, "objects/fought");
            break until;
        }
    };
    assert!(until.remaining() <= INTERVAL);
    // The upgrade has replaced the old group.
    drop(old);
    sleep(INTERVAL + 5 * SECOND).await;
    assert_eq!(value(&store, "objects/fought").await.as_deref(), Some(&b"new"[..]));
    assert!(new.guard.contention().contended().is_empty());
}

#[tokio::test(start_paused = true)]
async fn first_loss_and_new_values_are_written_immediately() {
    let store = MemoryStore::new();
    let controller = Controller::new(&store, 1, Tracker::new());
    let want = |value: &'static str| {
        let desire = move |current: Option<&[u8]>| (current != Some(value.as_bytes())).then_some(value);
        controller.guard.ensure("key", desire)
    };
    let spoil = || async {
        let entry = store.get("objects/key").await.unwrap().unwrap();
        store.put(&entry.key, "theirs".into(), Expected::Version(entry.version), None).await.unwrap();
        sleep(MS).await; // the watch shows it
    };
    assert!(matches!(want("ours").await, EnsureOutcome::Written(_)));
    spoil().await;
    assert!(matches!(want("ours").await, EnsureOutcome::Written(_)), "one loss can be a user's mistake");
    spoil().await;
    let EnsureOutcome::Contended { until } = want("ours").await else { panic!("not contended") };
    assert!(until.remaining() > Duration::from_secs(50));
    assert!(matches!(want("something else").await, EnsureOutcome::Written(_)));
    assert!(
        matches!(want("ours").await, EnsureOutcome::Written(_)),
        "a change of the desired value resets the losses"
    );
    assert_eq!(controller.guard.contention().counters().contended, 1);
}

#[tokio::test(start_paused = true)]
async fn alternating_values_are_no_contention_for_observers() {
    let store = MemoryStore::new();
    let controllers: Vec<_> = (1..=3).map(|seed| Controller::new(&store, seed, Tracker::new())).collect();
    for round in 0..20 {
        let value = ["ready", "not ready"][round % 2];
        let desire = move |current: Option<&[u8]>| (current != Some(value.as_bytes())).then_some(value);
        let endings = controllers.iter().map(|controller| controller.guard.ensure("key", desire));
        for ending in futures_util::future::join_all(endings).await {
            assert!(!matches!(ending, EnsureOutcome::Contended { .. }), "round {round}: {ending:?}");
        }
        sleep(SECOND).await;
    }
    for controller in &controllers {
        assert_eq!(controller.guard.contention().counters().contended, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn recreated_object_starts_without_losses() {
    let store = MemoryStore::new();
    let controller = Controller::new(&store, 1, Tracker::new());
    for _ in 0..5 {
        let desire = |current: Option<&[u8]>| (current != Some(b"ours")).then_some("ours");
        assert!(matches!(controller.guard.ensure("key", desire).await, EnsureOutcome::Written(_)));
        let entry = store.get("objects/key").await.unwrap().unwrap();
        store.delete(&entry.key, &entry.version, None).await.unwrap();
        sleep(SECOND).await;
    }
}

/// The watch reports both changes before the answer to our write arrives.
#[tokio::test(start_paused = true)]
async fn object_recreated_before_the_answer_counts_no_loss() {
    for (made_anew, losses) in [(true, 0), (false, 1)] {
        let store = MemoryStore::new();
        let controller = Controller::new(&store, 1, Tracker::new());
        controller.remote.set_network(Network { write: SECOND, ..Network::default() });
        let ensure = || {
            let guard = controller.guard.clone();
            async move {
                guard.ensure("key", |current| (current != Some(b"ours".as_slice())).then_some("ours")).await
            }
        };
        let first = tokio::spawn(ensure());
        let ours = loop {
            match store.get("objects/key").await.unwrap() {
                Some(entry) => break entry.version,
                None => sleep(MS).await,
            }
        };
        let mut expected = Expected::Version(ours.clone());
        if made_anew {
            store.delete("objects/key", &ours, None).await.unwrap();
            expected = Expected::Absent;
        }
        store.put("objects/key", "theirs".into(), expected, None).await.unwrap();
        sleep(MS).await;
        assert!(!first.is_finished(), "the answer has not arrived");
        assert!(matches!(first.await.unwrap(), EnsureOutcome::Written(_)));
        assert!(matches!(ensure().await, EnsureOutcome::Written(_)));
        assert_eq!(controller.guard.contention().counters().losses, losses);
    }
}

#[tokio::test(start_paused = true)]
async fn custom_comparison_ignores_differences_between_writes() {
    let store = MemoryStore::new();
    // The part before the blank.
    let name = |value: &Bytes| value.split(|byte| *byte == b' ').next().unwrap_or_default().to_vec();
    let tracker = Tracker::comparing(move |a, b| name(a) == name(b));
    let controller = Controller::new(&store, 1, tracker);
    let mut contended = 0;
    for time in 0..3 {
        let desire = move |current: Option<&[u8]>| match current {
            Some(current) if current.starts_with(b"ours") => None,
            _ => Some(format!("ours {time}")),
        };
        match controller.guard.ensure("key", desire).await {
            EnsureOutcome::Written(version) => {
                store.put("objects/key", "theirs".into(), Expected::Version(version), None).await.unwrap();
            }
            EnsureOutcome::Contended { .. } => contended += 1,
            other => panic!("{other:?}"),
        }
        sleep(SECOND).await;
    }
    assert_eq!(contended, 1);
}

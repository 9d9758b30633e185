//! Closures that want to change what they wrote themselves, such as those that write the time.
#![allow(clippy::disallowed_methods, reason = "the time is paused")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::StreamExt;
use tokio::time::sleep;
use writerlease::{
    ContentionTracker, EnsureOutcome, Guard, Notice, WatchState, WriterLease,
    lab::{Network, RemoteStore},
    store::{Event, MemoryStore, Store},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const KEYS: usize = 20;

type Remote = RemoteStore<MemoryStore>;

async fn replica(store: &MemoryStore, seed: u64) -> (Remote, Guard<Remote>) {
    let network = Network { read: 2 * MS, write: 2 * MS, watch: 2 * MS, ..Network::default() };
    let remote = RemoteStore::new(store.clone(), network, seed);
    let lease = WriterLease::builder("test").seed(seed).spawn().unwrap();
    let tracker = ContentionTracker::new().interval(30 * SECOND);
    let guard = Guard::with_contention(remote.clone(), lease, "guarded/", Arc::new(tracker)).unwrap();
    let mut statuses = guard.lease().subscribe();
    statuses.wait_for(|status| status.watch == Some(WatchState::Live)).await.unwrap();
    (remote, guard)
}

/// Returns a closure that wants another value whenever it is asked.
fn counts() -> impl Fn(Option<&[u8]>) -> Option<String> + Send + Sync + 'static {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    move |_| Some(format!("at {}", COUNT.fetch_add(1, SeqCst)))
}

fn want(value: &'static str) -> impl Fn(Option<&[u8]>) -> Option<&'static str> + Send + Sync + 'static {
    move |current| (current != Some(value.as_bytes())).then_some(value)
}

/// Returns how often replicas write within a minute that ensure each key at the start and at each of
/// its changes.
async fn writes(replicas: u64, is_content: bool) -> u64 {
    let store = MemoryStore::new();
    let mut all = Vec::new();
    for seed in 0..replicas {
        let (remote, guard) = replica(&store, seed).await;
        let count = Arc::new(AtomicU64::new(0));
        let ensure = {
            let guard = guard.clone();
            move |key: &str| {
                let count = count.clone();
                drop(guard.ensure(key, move |current: Option<&[u8]>| match current {
                    Some(current) if is_content && current.starts_with(b"right") => None,
                    _ => Some(format!("right at {seed}-{}", count.fetch_add(1, SeqCst))),
                }));
            }
        };
        (0..KEYS).for_each(|key| ensure(&key.to_string()));
        let watch = remote.watch("guarded/");
        tokio::spawn(async move {
            let mut watch = std::pin::pin!(watch);
            while let Some(event) = watch.next().await {
                if let Ok(Event::Put(entry)) = event {
                    ensure(entry.key.strip_prefix("guarded/").unwrap());
                }
            }
        });
        all.push((remote, guard));
    }
    sleep(60 * SECOND).await;
    all.iter().map(|(remote, _)| remote.counts().succeeded).sum()
}

#[tokio::test(start_paused = true)]
async fn closures_that_are_never_content_write_once() {
    for replicas in [1, 3] {
        let content = writes(replicas, true).await;
        let never = writes(replicas, false).await;
        println!(
            "{replicas} replicas, {KEYS} keys, 60 s: {never} writes, with closures that are content {content}"
        );
        assert_eq!(content, KEYS as u64);
        assert!(
            never <= replicas * KEYS as u64,
            "each replica once, because no later event asks it: {never}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn rest_is_reported_and_ends() {
    let (remote, guard) = replica(&MemoryStore::new(), 1).await;
    let mut notices = guard.notices();
    let writes = || remote.counts().succeeded;
    assert!(matches!(guard.ensure("key", counts()).await, EnsureOutcome::Written(_)));
    let Ok(Notice::NeverContent { key, until }) = notices.try_recv() else { panic!("no notice") };
    assert_eq!((&*key, until.remaining()), ("guarded/key", 30 * SECOND));
    sleep(SECOND).await;
    for _ in 0..10 {
        let ending = guard.ensure("key", counts()).await;
        assert!(matches!(ending, EnsureOutcome::NeverContent { until: same } if same == until), "{ending:?}");
    }
    assert_eq!(writes(), 1);
    assert!(
        matches!(guard.ensure("other", counts()).await, EnsureOutcome::Written(_)),
        "keys rest by themselves"
    );
    until.passed().await;
    assert!(matches!(guard.ensure("key", counts()).await, EnsureOutcome::Written(_)));
    let reported: Vec<_> = std::iter::from_fn(|| notices.try_recv().ok()).collect();
    assert_eq!(reported.len(), 2, "once per rest: {reported:?}");
    assert!(guard.lease().is_empty());
}

#[tokio::test(start_paused = true)]
async fn resting_key_takes_new_values_of_content_closures() {
    let (remote, guard) = replica(&MemoryStore::new(), 1).await;
    assert!(matches!(guard.ensure("key", counts()).await, EnsureOutcome::Written(_)));
    for value in ["ready", "not ready", "ready", "not ready"] {
        assert!(matches!(guard.ensure("key", want(value)).await, EnsureOutcome::Written(_)), "{value}");
        sleep(SECOND).await;
    }
    assert!(matches!(guard.ensure("key", counts()).await, EnsureOutcome::NeverContent { .. }));
    assert_eq!(remote.counts().succeeded, 5);
}

#[tokio::test(start_paused = true)]
async fn part_that_is_never_content_holds_up_no_other() {
    let (remote, guard) = replica(&MemoryStore::new(), 1).await;
    let word = |word: &'static str| {
        move |current: Option<&[u8]>| {
            let text = String::from_utf8_lossy(current.unwrap_or_default());
            (!text.split(' ').any(|other| other == word)).then(|| format!("{text} {word}"))
        }
    };
    let more = |current: Option<&[u8]>| {
        Some(format!("{} again", String::from_utf8_lossy(current.unwrap_or_default())))
    };
    let (left, time) =
        (guard.ensure_part("key", "left", word("left")), guard.ensure_part("key", "time", more));
    assert!(matches!((left.await, time.await), (EnsureOutcome::Written(_), EnsureOutcome::Written(_))));
    sleep(SECOND).await;
    let (time, right) =
        (guard.ensure_part("key", "time", more), guard.ensure_part("key", "right", word("right")));
    assert!(matches!(time.await, EnsureOutcome::NeverContent { .. }));
    assert!(matches!(right.await, EnsureOutcome::Written(_)));
    let (time, right) =
        (guard.ensure_part("key", "time", more), guard.ensure_part("key", "right", word("right")));
    assert!(matches!(time.await, EnsureOutcome::NeverContent { .. }));
    assert!(matches!(right.await, EnsureOutcome::Satisfied));
    assert_eq!(remote.counts().succeeded, 2);
    let entry = remote.get("guarded/key").await.unwrap().unwrap();
    assert_eq!(entry.value, " left again right");
}

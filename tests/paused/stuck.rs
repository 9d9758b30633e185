//! Keys that cannot be written say so, once, and why.

use std::{
    fmt::{Debug, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::broadcast::Receiver, time::sleep};
use tracing::{Event, Level, Metadata, Subscriber, field::Field, span};
use writerlease::{
    EnsureOutcome, Guard, Notice, Outcome, WatchState, WriterLease,
    engine::{Obstacle, Setback},
    lab::{Network, NetworkFault, RemoteStore},
    store::{MemoryStore, StoreError},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

struct Replica {
    remote: RemoteStore<MemoryStore>,
    guard: Guard<RemoteStore<MemoryStore>>,
    notices: Receiver<Notice>,
}

impl Replica {
    async fn new(store: &MemoryStore, seed: u64, fixed_patience: bool) -> Self {
        let network = Network { read: MS, write: MS, watch: MS, ..Network::default() };
        let remote = RemoteStore::new(store.clone(), network, seed);
        let settings = WriterLease::builder("test").seed(seed);
        let settings = if fixed_patience { settings.fixed_patience() } else { settings };
        let guard = Guard::new(remote.clone(), settings.spawn().unwrap(), "guarded/").unwrap();
        let mut statuses = guard.lease().subscribe();
        statuses.wait_for(|status| status.watch == Some(WatchState::Live)).await.unwrap();
        let notices = guard.notices();
        Self { remote, guard, notices }
    }

    fn want(&self, key: &str, value: &'static str) {
        drop(self.guard.ensure(key, move |current| (current != Some(value.as_bytes())).then_some(value)));
    }

    /// Returns the texts of the notices since the last call.
    fn notices(&mut self) -> Vec<String> {
        let notices = std::iter::from_fn(|| self.notices.try_recv().ok());
        notices
            .map(|notice| match notice {
                Notice::Stuck { key, explanation } => format!("stuck {key}: {explanation}"),
                Notice::Failing { key, error } => format!("failing {key}: {error}"),
                Notice::Panicked { key, message } => format!("panicked {key}: {message}"),
                Notice::Refused { key, .. } => format!("refused {key}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    fn is_stuck(&self) -> bool {
        self.guard.lease().status().is_stuck
    }
}

#[tokio::test(start_paused = true)]
async fn store_that_is_down_is_told_once_per_outage() {
    let mut replica = Replica::new(&MemoryStore::new(), 1, false).await;
    for value in ["one", "two"] {
        replica.remote.set_fault(NetworkFault::Down);
        replica.want("a", value);
        replica.want("b", value);
        sleep(9 * SECOND).await;
        let early = replica.notices();
        assert!(!replica.is_stuck() && early.iter().all(|notice| notice.starts_with("failing")), "{early:?}");
        sleep(5 * MINUTE).await;
        let notices = [early, replica.notices()].concat();
        let of = |kind: &str| notices.iter().filter(|notice| notice.starts_with(kind)).collect::<Vec<_>>();
        assert!(replica.is_stuck());
        assert_eq!((of("stuck").len(), of("failing").len()), (1, 2), "{notices:?}");
        assert!(of("stuck")[0].contains("the last error: "), "{notices:?}");
        let explanation = replica.guard.explain("a").unwrap();
        assert!(explanation.failures >= 3);
        assert!(matches!(explanation.error.as_deref(), Some(StoreError::Unavailable { .. })));
        let job = explanation.job.unwrap();
        assert_eq!((job.obstacle, job.last_setback), (Some(Obstacle::Outage), Some(Setback::Failed)));
        let snapshot = replica.guard.lease().snapshot();
        assert_eq!((snapshot.failing, snapshot.pending + snapshot.in_flight), (2, 2));
        assert!(snapshot.oldest_pending.unwrap() >= 5 * MINUTE);
        replica.remote.set_fault(NetworkFault::None);
        sleep(10 * SECOND).await;
        assert!(!replica.is_stuck() && replica.guard.lease().is_empty());
        assert!(replica.guard.explain("a").is_none() && replica.notices().is_empty());
        assert_eq!(replica.guard.lease().snapshot().oldest_pending, None);
    }
}

#[tokio::test(start_paused = true)]
async fn replicas_that_are_all_denied_say_so() {
    let store = MemoryStore::new();
    let mut replicas = [Replica::new(&store, 1, false).await, Replica::new(&store, 2, false).await];
    for replica in &replicas {
        replica.remote.set_fault(NetworkFault::Denied);
        replica.want("key", "value");
    }
    sleep(10 * MINUTE).await;
    for replica in &mut replicas {
        let notices = replica.notices();
        assert_eq!((notices.len(), notices[0].as_str()), (2, "refused guarded/key"), "{notices:?}");
        assert!(notices[1].starts_with("stuck guarded/key: pending for 10.0"), "{notices:?}");
        assert!(notices[1].contains("denied"), "{notices:?}");
        let explanation = replica.guard.explain("key").unwrap();
        assert!(matches!(explanation.error.as_deref(), Some(StoreError::Denied { .. })));
        assert!(explanation.job.unwrap().pending_for >= 10 * MINUTE - SECOND);
    }
    // One gets its rights, and the other sees that the key is done.
    replicas[0].remote.set_fault(NetworkFault::None);
    sleep(2 * MINUTE).await;
    assert!(replicas.iter().all(|replica| !replica.is_stuck() && replica.guard.explain("key").is_none()));
}

#[tokio::test(start_paused = true)]
async fn follower_of_a_dead_leader_names_it() {
    let mut replica = Replica::new(&MemoryStore::new(), 1, true).await;
    (0..8).for_each(|_| replica.guard.lease().observe(&"key".into()));
    replica.want("key", "value");
    sleep(11 * SECOND).await;
    let explanation = replica.guard.explain("key").unwrap();
    let job = explanation.job.unwrap();
    assert_eq!((job.attempts, job.obstacle), (0, Some(Obstacle::Leader)));
    let left = job.time_left.unwrap();
    assert!(left > 40 * SECOND, "{left:?}");
    let notices = replica.notices();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert!(notices[0].contains("waits for the replica that holds the lease, for "), "{notices:?}");
    sleep(left + SECOND).await;
    assert!(replica.guard.explain("key").is_none() && !replica.is_stuck());
}

#[tokio::test(start_paused = true)]
async fn healthy_replicas_are_silent() {
    let store = MemoryStore::new();
    let mut replicas = Vec::new();
    for seed in 0..3 {
        replicas.push(Replica::new(&store, seed, false).await);
    }
    for round in 0..300 {
        let value = if round % 2 == 0 { "even" } else { "odd" };
        // A key that is denied on one replica, or slow, is no matter of the others.
        replicas[0].remote.set_fault(if round == 10 { NetworkFault::Denied } else { NetworkFault::None });
        for replica in &replicas {
            (0..5).for_each(|key| replica.want(&key.to_string(), value));
        }
        sleep(if round % 20 == 0 { MINUTE } else { SECOND }).await;
        assert!(replicas.iter().all(|replica| !replica.is_stuck()));
    }
    for replica in &mut replicas {
        let notices = replica.notices();
        assert!(notices.iter().all(|notice| notice.starts_with("refused")), "{notices:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hung_attempt_is_named() {
    let mut replica = Replica::new(&MemoryStore::new(), 1, false).await;
    replica.remote.set_fault(NetworkFault::Dead);
    replica.want("key", "value");
    sleep(11 * SECOND).await;
    let notices = replica.notices();
    assert!(
        notices.len() == 1 && notices[0].contains("waits for the attempt in flight, since "),
        "{notices:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn panicking_closure_is_told_once() {
    let mut replica = Replica::new(&MemoryStore::new(), 1, false).await;
    let ensure = replica.guard.ensure("key", |_| -> Option<&str> { panic!("no value") });
    sleep(9 * SECOND).await;
    assert_eq!(replica.notices(), ["panicked guarded/key: no value"]);
    assert_eq!(replica.guard.explain("key").unwrap().panic.as_deref(), Some("no value"));
    sleep(2 * SECOND).await;
    let notices = replica.notices();
    assert!(notices.len() == 1 && notices[0].contains("; the closure panicked: no value"), "{notices:?}");
    let other = replica.guard.ensure("key", |_| Some("value"));
    assert!(matches!(ensure.await, EnsureOutcome::Superseded));
    assert!(matches!(other.await, EnsureOutcome::Written(_)));
}

#[tokio::test(start_paused = true)]
async fn contended_and_resting_keys_are_explained() {
    let replica = Replica::new(&MemoryStore::new(), 1, false).await;
    let never = |current: Option<&[u8]>| Some(format!("{}.", current.map_or(0, <[u8]>::len)));
    assert!(matches!(replica.guard.ensure("key", never).await, EnsureOutcome::Written(_)));
    let explanation = replica.guard.explain("key").unwrap();
    assert!(explanation.job.is_none() && explanation.rests_until.is_some());
    assert!(explanation.to_string().starts_with("not pending; rests for "), "{explanation}");
    replica.guard.contention().lost("guarded/fought", "ours".into());
    assert!(replica.guard.explain("fought").is_none());
    replica.guard.contention().lost("guarded/fought", "ours".into());
    assert!(replica.guard.explain("fought").unwrap().contended_until.is_some());
    sleep(MINUTE).await;
    assert!(replica.guard.explain("key").is_none() && replica.guard.explain("fought").is_none());
}

#[tokio::test(start_paused = true)]
async fn status_of_a_lease_without_a_guard_tells_it() {
    let lease: WriterLease<u32> = WriterLease::builder("test").spawn().unwrap();
    let mut statuses = lease.subscribe();
    lease.try_work(1, |_| async { Outcome::Failed }).unwrap();
    statuses.wait_for(|status| status.is_stuck).await.unwrap();
    let job = lease.explain(&1).unwrap();
    assert!(job.pending_for >= 10 * SECOND && job.pending_for < 11 * SECOND, "{job}");
    assert_eq!(lease.snapshot().counters.kept_failing, 1);
    // A key that is given up is no success, and one that is done is.
    lease.remove(&1);
    assert!(lease.status().is_stuck && lease.explain(&1).is_none());
    lease.try_work(2, |_| async { Outcome::Written }).unwrap();
    statuses.wait_for(|status| !status.is_stuck).await.unwrap();
    // A job that repeats itself on purpose is not stuck while it waits.
    lease.try_work(2, |_| async { Outcome::Unchanged.retry_after(MINUTE) }).unwrap();
    sleep(10 * MINUTE).await;
    assert!(!lease.status().is_stuck);
}

/// Collects the warnings of the thread.
#[derive(Clone, Default)]
struct Warnings(Arc<Mutex<Vec<String>>>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = String::new();
        event.record(&mut |field: &Field, value: &dyn Debug| write!(text, "{field}={value:?} ").unwrap());
        self.0.lock().unwrap().push(text);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn lease_warns_once_per_streak() {
    let warnings = Warnings::default();
    let _collects = tracing::subscriber::set_default(warnings.clone());
    let lease: WriterLease<u32> = WriterLease::builder("test").spawn().unwrap();
    lease.try_work(1, |_| async { Outcome::Failed }).unwrap();
    sleep(5 * MINUTE).await;
    let warnings = warnings.0.lock().unwrap();
    let of = |text: &str| warnings.iter().filter(|warning| warning.contains(text)).count();
    assert_eq!((of("keeps failing"), of("nothing succeeds"), warnings.len()), (1, 1, 2), "{warnings:?}");
    assert!(
        warnings[1].contains("lease=test ") && warnings[1].contains("oldest=pending for 10.0"),
        "{warnings:?}"
    );
    assert!(warnings[1].contains("and the store did not answer"), "{warnings:?}");
}

//! A lease that follows an election: jobs run only while it is won, and their writes carry the
//! fence.
#![allow(clippy::disallowed_methods, reason = "the time is paused")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use writerlease::{
    EnsureOutcome, Guard, Moment, Outcome, SpawnError, WatchState, WriterLease,
    election::{ElectionError, Elector, Events, Leadership},
    engine::Role,
    store::{Expected, Fence, MemoryStore, Store},
};

/// An elector whose state the test sets.
struct Said(watch::Sender<Leadership>);

impl Said {
    fn new() -> Self {
        Self(watch::Sender::new(Leadership::Unknown))
    }

    fn leads(&self, token: u64, seconds: u64) {
        let until = Moment::now() + Duration::from_secs(seconds);
        self.0.send_replace(Leadership::Leader { fence: fence(token), until });
    }

    fn follows(&self) {
        self.0.send_replace(Leadership::Follower { leader: Some("other".into()) });
    }
}

impl Elector for Said {
    fn identity(&self) -> &str {
        "we"
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.0.subscribe()
    }

    fn events(&self) -> Events {
        mpsc::unbounded_channel().1.into()
    }

    async fn resign(&self) -> Result<(), ElectionError> {
        self.follows();
        Ok(())
    }

    async fn close(&self) {}
}

fn fence(token: u64) -> Fence {
    Fence::new("test", "election", token)
}

/// Lets all ready tasks run.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn counting(lease: &WriterLease<u32>, key: u32, outcome: Outcome) -> Arc<AtomicUsize> {
    let runs = Arc::<AtomicUsize>::default();
    let count = runs.clone();
    lease
        .try_work(key, move |_| {
            count.fetch_add(1, SeqCst);
            async move { outcome }
        })
        .expect("the lease accepts jobs");
    runs
}

#[tokio::test(start_paused = true)]
async fn jobs_run_only_while_elected() {
    let elector = Said::new();
    let lease: WriterLease<u32> = WriterLease::builder("test").spawn().expect("valid");
    lease.follow(&elector).expect("a runtime");
    let runs = counting(&lease, 1, Outcome::Written);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!((runs.load(SeqCst), lease.status().role), (0, Role::Follower));

    elector.leads(1, 10);
    settle().await;
    assert_eq!(runs.load(SeqCst), 1);
    assert!(lease.is_leader());

    // One renewal, then none.
    sleep(Duration::from_secs(8)).await;
    elector.leads(1, 10);
    sleep(Duration::from_secs(9)).await;
    assert!(lease.is_leader());
    let late = counting(&lease, 2, Outcome::Written);
    settle().await;
    assert_eq!(late.load(SeqCst), 1);
    sleep(Duration::from_secs(1)).await;
    assert!(!lease.is_leader());
    let too_late = counting(&lease, 3, Outcome::Written);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(too_late.load(SeqCst), 0);

    elector.leads(2, 10);
    settle().await;
    assert_eq!(too_late.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn writes_neither_extend_nor_end_an_elected_lease() {
    let elector = Said::new();
    let lease: WriterLease<u32> = WriterLease::builder("test").spawn().expect("valid");
    lease.follow(&elector).expect("a runtime");
    elector.leads(1, 10);
    settle().await;
    let epoch = lease.status().epoch;
    counting(&lease, 1, Outcome::Written);
    counting(&lease, 2, Outcome::WrittenByOther);
    counting(&lease, 3, Outcome::Conflict);
    settle().await;
    lease.extend(&4);
    lease.observe(&4);
    lease.expire();
    settle().await;
    assert!(lease.is_leader());
    assert!(lease.snapshot().lease_remaining <= Duration::from_secs(10), "writes do not prolong it");
    sleep(Duration::from_secs(10)).await;
    assert!(!lease.is_leader());
    assert_eq!(lease.status().epoch, epoch);
    // A foreign write still clears our job.
    let runs = counting(&lease, 6, Outcome::Written);
    lease.extend(&6);
    elector.leads(2, 10);
    settle().await;
    assert_eq!((runs.load(SeqCst), lease.len()), (0, 1), "only the job with the conflict remains");
}

#[tokio::test(start_paused = true)]
async fn attempt_carries_its_fence_and_is_cancelled_afterwards() {
    let elector = Said::new();
    let lease: WriterLease<u32> = WriterLease::builder("test").spawn().expect("valid");
    lease.follow(&elector).expect("a runtime");
    elector.leads(7, 10);
    let (sender, mut seen) = mpsc::unbounded_channel();
    let work = move |attempt: writerlease::Attempt<u32>| {
        let sender = sender.clone();
        async move {
            sender.send(attempt.fence().cloned()).expect("the test waits");
            attempt.cancelled().await;
            Outcome::Failed
        }
    };
    lease.try_work(1, work).expect("the lease accepts jobs");
    assert_eq!(seen.recv().await, Some(Some(fence(7))));
    elector.resign().await.expect("it can");
    settle().await;
    assert_eq!(lease.snapshot().in_flight, 0, "it was cancelled");
    elector.leads(8, 1000);
    assert_eq!(seen.recv().await, Some(Some(fence(8))), "the next leadership retries it");
}

/// Leads once, lets `next` say what comes next without a look in between, and returns whether an
/// attempt of the first leadership was cancelled.
async fn is_cancelled(lease: &WriterLease<u32>, elector: &Said, next: impl FnOnce(&Said)) -> bool {
    elector.leads(1, 1000);
    let (sender, mut ends) = mpsc::unbounded_channel();
    let work = move |attempt: writerlease::Attempt<u32>| {
        let sender = sender.clone();
        async move {
            sender.send(None).expect("the test waits");
            let cancelled = tokio::time::timeout(Duration::from_secs(3), attempt.cancelled()).await;
            sender.send(Some(cancelled.is_ok())).expect("the test waits");
            Outcome::Written
        }
    };
    lease.try_work(1, work).expect("the lease accepts jobs");
    assert_eq!(ends.recv().await, Some(None));
    next(elector);
    ends.recv().await.flatten().expect("it ends")
}

#[tokio::test(start_paused = true)]
async fn each_reign_is_noticed_although_the_channel_skipped_what_was_between() {
    for fenced in [true, false] {
        let elector = Said::new();
        let lease: WriterLease<u32> = WriterLease::builder("test").spawn().expect("valid");
        let follow = |elector| if fenced { lease.follow(elector) } else { lease.follow_unfenced(elector) };
        follow(&elector).expect("a runtime");
        let again = is_cancelled(&lease, &elector, |elector| {
            elector.follows();
            elector.leads(2, 1000);
        });
        assert!(again.await, "another led in between");
        assert!(lease.is_leader());
        let renewed = is_cancelled(&lease, &elector, |elector| elector.leads(1, 2000));
        assert!(!renewed.await, "a renewal is no new reign");
        // Elections count for themselves: another one has the same token.
        let other = Said::new();
        other.0.send_replace(Leadership::Leader {
            fence: Fence::new("test", "another election", 1),
            until: Moment::now() + Duration::from_secs(1000),
        });
        assert!(is_cancelled(&lease, &elector, |_| follow(&other).expect("a runtime")).await);
        assert!(lease.is_leader());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn elector_that_was_followed_before_decides_nothing() {
    for _ in 0..3000 {
        let (old, new) = (Arc::new(Said::new()), Said::new());
        let lease: WriterLease<u32> = WriterLease::builder("test").spawn().expect("valid");
        lease.follow(&*old).expect("a runtime");
        let sender = old.clone();
        let said = tokio::spawn(async move { sender.leads(1, 1000) });
        tokio::task::yield_now().await;
        lease.follow(&new).expect("a runtime");
        said.await.expect("it is said");
        tokio::task::yield_now().await;
        assert!(!lease.is_leader(), "it leads by an elector that it follows no more");
    }
}

#[tokio::test(start_paused = true)]
async fn unfenced_lease_follows_without_a_fence() {
    let elector = Said::new();
    let lease: WriterLease<u32> = WriterLease::builder("test").spawn().expect("valid");
    lease.follow_unfenced(&elector).expect("a runtime");
    elector.leads(7, 10);
    let (sender, mut seen) = mpsc::unbounded_channel();
    let work = move |attempt: writerlease::Attempt<u32>| {
        sender.send(attempt.fence().cloned()).expect("the test waits");
        async { Outcome::Written }
    };
    lease.try_work(1, work).expect("the lease accepts jobs");
    assert_eq!(seen.recv().await, Some(None));
}

#[tokio::test(start_paused = true)]
async fn dropped_elector_ends_leadership_and_can_be_replaced() {
    let elector = Said::new();
    let lease: WriterLease<u32> = WriterLease::builder("test").spawn().expect("valid");
    lease.follow(&elector).expect("a runtime");
    elector.leads(1, 1000);
    settle().await;
    assert!(lease.is_leader());
    drop(elector);
    settle().await;
    assert!(!lease.is_leader());
    let (first, second) = (Said::new(), Said::new());
    lease.follow(&first).expect("a runtime");
    lease.follow(&second).expect("a runtime");
    first.leads(2, 10);
    settle().await;
    assert!(!lease.is_leader(), "the lease follows only the last elector");
    second.leads(2, 10);
    settle().await;
    assert!(lease.is_leader());
}

#[tokio::test(start_paused = true)]
async fn dropped_following_lease_leaves_no_task() {
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let elector = Said::new();
    let lease: WriterLease<u32> = WriterLease::builder("test").spawn().expect("valid");
    lease.follow(&elector).expect("a runtime");
    settle().await;
    drop(lease);
    settle().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), tasks);
}

#[tokio::test(start_paused = true)]
async fn elected_guard_writes_and_the_other_observes() {
    let store = MemoryStore::new();
    let electors = [Said::new(), Said::new()];
    let guards = electors.each_ref().map(|elector| {
        let lease = WriterLease::builder("test").spawn().expect("valid");
        lease.follow(elector).expect("a runtime");
        Guard::new(store.clone(), lease, "").expect("a runtime")
    });
    for round in 1..=4_u64 {
        let (leader, other) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        electors[other].follows();
        electors[leader].leads(round, 10);
        let want = move |current: Option<&[u8]>| {
            (current != Some(format!("{round}").as_bytes())).then(|| format!("{round}"))
        };
        let waits = guards[other].ensure("key", want);
        settle().await;
        assert!(matches!(guards[leader].ensure("key", want).await, EnsureOutcome::Written(_)));
        assert!(matches!(waits.await, EnsureOutcome::ByOther));
    }
}

#[tokio::test(start_paused = true)]
async fn fence_refuses_every_write_of_a_stale_leader() {
    let store = MemoryStore::new();
    let (old, new) = (Said::new(), Said::new());
    let guard = |elector: &Said| {
        let lease = WriterLease::builder("test").spawn().expect("valid");
        lease.follow(elector).expect("a runtime");
        Guard::new(store.clone(), lease, "").expect("a runtime")
    };
    let (stale, fresh) = (guard(&old), guard(&new));
    old.leads(1, 3600);
    assert!(matches!(stale.ensure("key", |_| Some("1")).await, EnsureOutcome::Written(_)));
    new.leads(2, 3600);
    assert!(matches!(fresh.ensure("other", |_| Some("2")).await, EnsureOutcome::Written(_)));
    let never = stale.ensure("key", |_| Some("stale"));
    assert!(tokio::time::timeout(Duration::from_secs(60), never).await.is_err());
    let never = stale.ensure_absent("key");
    assert!(tokio::time::timeout(Duration::from_secs(60), never).await.is_err());
    assert_eq!(store.get("key").await.unwrap().unwrap().value, "1");
    assert!(
        stale.lease().snapshot().counters.written_by_others >= 2,
        "refused, and retried from time to time"
    );
    // The same write with the current fence succeeds, so the version was not the reason.
    let version = store.get("key").await.unwrap().unwrap().version;
    let written = store.put("key", "3".into(), Expected::Version(version), Some(&fence(2))).await;
    assert!(written.is_ok());
}

#[test]
fn following_outside_of_a_runtime_is_an_error() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let lease: WriterLease<u32> =
        runtime.block_on(async { WriterLease::builder("test").spawn() }).expect("valid");
    let elector = Said::new();
    assert_eq!(lease.follow(&elector), Err(SpawnError::NoRuntime));
    assert_eq!(lease.follow_unfenced(&elector), Err(SpawnError::NoRuntime));
}

#[tokio::test(start_paused = true)]
async fn what_is_right_is_satisfied_whoever_is_elected() {
    let store = MemoryStore::new();
    store.put("guarded/key", "right".into(), Expected::Absent, None).await.unwrap();
    let lease = WriterLease::builder("test").spawn().unwrap();
    let said = Said::new();
    said.follows();
    lease.follow(&said).unwrap();
    let guard = Guard::new(store, lease.clone(), "guarded/").unwrap();
    lease.subscribe().wait_for(|status| status.watch == Some(WatchState::Live)).await.unwrap();
    let ending = guard.ensure("key", |current| (current != Some(b"right")).then_some("right")).now_or_never();
    assert!(matches!(ending, Some(EnsureOutcome::Satisfied)), "{ending:?}");
    assert_eq!(lease.wait().now_or_never(), Some(Ok(false)));
}

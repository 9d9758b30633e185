//! Suspensions of the machine. tokio's time is paused, so that only `suspend` and `sleep` move it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    Attempt, Moment, Outcome, WriterLease,
    clock::{now, tests::suspend},
    election::{ElectionError, Elector, Events, Leadership},
    store::Fence,
};

type Lease = WriterLease<&'static str>;

const TERM: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);
/// The resolution of tokio's timers.
const TIMER: Duration = Duration::from_millis(1);

fn lease() -> Lease {
    WriterLease::builder("test").seed(7).term(TERM).spawn().unwrap()
}

async fn leader() -> Lease {
    let lease = lease();
    run(&lease, "first").await;
    assert!(lease.is_leader());
    // By now its timer has fired and was set again.
    sleep(10 * SECOND).await;
    lease
}

/// Returns a lease that another replica holds for a term.
async fn follower() -> Lease {
    let lease = WriterLease::builder("test").seed(7).term(TERM).backoff_steps(0).spawn().unwrap();
    lease.extend(&"other");
    sleep(SECOND).await;
    lease.extend(&"other");
    assert!(lease.snapshot().lease_remaining >= TERM);
    lease
}

/// Runs a job. Returns how long it took, awake, until it ran.
async fn run(lease: &Lease, key: &'static str) -> Duration {
    let start = now();
    let (attempt, _) = out(lease, key, Outcome::Written).await;
    drop(attempt);
    tokio::task::yield_now().await;
    now() - start
}

/// Returns an attempt in flight. It finishes when the sender is used or dropped.
async fn out(
    lease: &Lease,
    key: &'static str,
    outcome: Outcome,
) -> (Attempt<&'static str>, tokio::sync::oneshot::Sender<()>) {
    let (starts, mut started) = mpsc::unbounded_channel();
    let (end, ended) = tokio::sync::oneshot::channel();
    let ended = Arc::new(Mutex::new(Some(ended)));
    let job = move |attempt| {
        starts.send(attempt).unwrap();
        let ended = ended.lock().unwrap().take();
        async move {
            if let Some(ended) = ended {
                let _ = ended.await;
            }
            outcome
        }
    };
    lease.try_work(key, job).unwrap();
    (started.recv().await.unwrap(), end)
}

#[tokio::test(start_paused = true)]
async fn suspended_leader_loses_lease_and_publishes_within_1s() {
    let lease = leader().await;
    let mut statuses = lease.subscribe();
    suspend(TERM / 2);
    assert!(lease.is_leader() && statuses.borrow_and_update().is_leader);
    assert!(lease.snapshot().lease_remaining <= TERM / 2);
    suspend(TERM / 2 - 10 * SECOND);
    assert!(!lease.is_leader());
    assert_eq!(lease.snapshot().lease_remaining, Duration::ZERO);
    let resumed = now();
    statuses.wait_for(|status| !status.is_leader).await.unwrap();
    assert!(now() - resumed <= SECOND + TIMER);
}

#[tokio::test(start_paused = true)]
async fn resumed_leader_writes_immediately_and_leads_again() {
    let lease = leader().await;
    suspend(2 * TERM);
    assert_eq!(run(&lease, "key").await, Duration::ZERO, "the job woke the driver, whose timer is late");
    assert!(lease.is_leader());
    assert_eq!(lease.status().epoch, 1, "no other replica was seen");
}

#[tokio::test(start_paused = true)]
async fn write_from_before_suspension_extends_nothing() {
    let lease = leader().await;
    let (attempt, end) = out(&lease, "slow", Outcome::Written).await;
    suspend(TERM);
    drop((attempt, end));
    sleep(TIMER).await;
    assert_eq!(lease.snapshot().counters.written, 2);
    assert!(!lease.is_leader());
}

#[tokio::test(start_paused = true)]
async fn suspension_counts_towards_attempt_deadline() {
    let lease = leader().await;
    let (attempt, _end) = out(&lease, "slow", Outcome::Written).await;
    let left = attempt.deadline().remaining();
    suspend(left - TIMER);
    assert!(!attempt.is_cancelled());
    suspend(TIMER);
    assert!(attempt.is_cancelled() && attempt.deadline().has_passed());
    timeout(TIMER, attempt.cancelled()).await.unwrap();
    assert_eq!(run(&lease, "other").await, Duration::ZERO, "its slot is free");
}

#[tokio::test(start_paused = true)]
async fn passed_returns_within_1s_of_a_suspension() {
    let until = Moment::now() + TERM;
    let waits = tokio::spawn(until.passed());
    sleep(SECOND / 2).await;
    let resumed = now();
    suspend(TERM);
    waits.await.unwrap();
    assert!(until.has_passed());
    assert!(now() - resumed <= SECOND + TIMER);
}

#[tokio::test(start_paused = true)]
async fn waiting_is_exact_after_a_suspension() {
    suspend(TERM);
    let start = now();
    (Moment::now() + SECOND / 2).passed().await;
    assert_eq!(now() - start, SECOND / 2);
    let lease = lease();
    lease.try_work("key", |_| async { Outcome::Written }).unwrap();
    assert_eq!(lease.wait().await, Ok(true));
    assert!(now() - start < SECOND, "the election delay is at most 16 echoes of 6 ms");
}

#[tokio::test(start_paused = true)]
async fn follower_probes_within_1s_of_a_suspension() {
    let lease = follower().await;
    let (starts, mut started) = mpsc::unbounded_channel();
    lease
        .try_work("key", move |_| {
            starts.send(now()).unwrap();
            async { Outcome::Written }
        })
        .unwrap();
    sleep(SECOND / 2).await;
    assert!(started.is_empty());
    let resumed = now();
    suspend(2 * TERM);
    assert!(started.recv().await.unwrap() - resumed <= SECOND + TIMER);
    tokio::task::yield_now().await;
    assert!(lease.is_leader(), "the other replica's lease was over");
}

#[tokio::test(start_paused = true)]
async fn short_suspension_leaves_the_lease_to_the_leader() {
    let lease = follower().await;
    let remaining = lease.snapshot().lease_remaining;
    suspend(remaining / 2);
    let left = lease.snapshot().lease_remaining;
    assert!(left <= remaining / 2 && left >= remaining / 2 - TIMER);
}

/// An elector whose leadership the test sets.
struct Said(watch::Sender<Leadership>);

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
        Ok(())
    }

    async fn close(&self) {}
}

#[tokio::test(start_paused = true)]
async fn elected_lease_runs_nothing_after_leadership_was_slept_through() {
    let until = Moment::now() + 10 * SECOND;
    let elector =
        Said(watch::Sender::new(Leadership::Leader { fence: Fence::new("test", "election", 1), until }));
    let lease = lease();
    lease.follow(&elector).expect("a runtime");
    assert_eq!(run(&lease, "key").await, Duration::ZERO);
    assert!(lease.is_leader() && elector.is_leader() && elector.fence().is_some());
    suspend(10 * SECOND);
    assert!(!lease.is_leader() && !elector.is_leader() && elector.fence().is_none());
    assert!(timeout(TERM, run(&lease, "key")).await.is_err());
}

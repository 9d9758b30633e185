//! The lease's handle and driver, under paused time.
#![cfg(feature = "tokio")]
#![allow(clippy::disallowed_methods, reason = "tests look at the clock that they pause")]

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use writerlease::{
    Attempt, LeaseBuilder, LeaseClosed, Outcome, SpawnError, Verdict, WriterLease, engine::Role,
    limit_retries,
};

type Lease = WriterLease<&'static str>;

const SECOND: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(3);
const TERM: Duration = Duration::from_secs(60);

fn builder() -> LeaseBuilder {
    WriterLease::builder("test").seed(7).term(TERM).retry_interval(RETRY)
}

fn lease() -> Lease {
    builder().spawn().unwrap()
}

/// Makes `lease` the leader by a first write.
async fn lead(lease: &Lease) {
    lease.try_work("first", |_| async { Outcome::Written }).unwrap();
    assert_eq!(lease.wait().await, Ok(true));
}

/// Grows the window to `size` by successful writes.
async fn open_window(lease: &Lease, size: usize) {
    lead(lease).await;
    while lease.snapshot().window < size {
        run(lease, "grow", Outcome::Written).await;
    }
}

/// Runs one job until it finishes.
async fn run(lease: &Lease, key: &'static str, outcome: Outcome) {
    let (done, ended) = oneshot::channel::<()>();
    let mut done = Some(done);
    lease
        .try_work(key, move |_| {
            let done = done.take();
            async move {
                drop(done);
                outcome
            }
        })
        .unwrap();
    let _ = ended.await;
    tokio::task::yield_now().await;
}

/// Returns a job that reports its start and finishes with the outcome that the test sends.
fn held(
    started: mpsc::UnboundedSender<Attempt<&'static str>>,
) -> (impl FnMut(Attempt<&'static str>) -> Held + Send + 'static, mpsc::UnboundedSender<Outcome>) {
    let (end, ends) = mpsc::unbounded_channel();
    let ends = Arc::new(tokio::sync::Mutex::new(ends));
    let work = move |attempt: Attempt<&'static str>| -> Held {
        let (started, ends) = (started.clone(), ends.clone());
        Box::pin(async move {
            started.send(attempt).unwrap();
            ends.lock().await.recv().await.unwrap_or(Outcome::Unchanged)
        })
    };
    (work, end)
}

type Held = std::pin::Pin<Box<dyn Future<Output = Outcome> + Send>>;

// --- the five behaviours of the Go package ---

#[tokio::test(start_paused = true)]
async fn elected_after_the_first_success() {
    let lease = lease();
    assert_eq!(lease.status().role, Role::Election);
    lease.try_work("key", |_| async { Outcome::Written }).unwrap();
    assert_eq!(lease.wait().await, Ok(true));
    assert_eq!((lease.status().role, lease.status().epoch), (Role::Leader, 1));
}

#[tokio::test(start_paused = true)]
async fn leader_after_five_retries_with_exactly_five_calls() {
    let lease = lease();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    lease
        .try_work("key", move |attempt| {
            assert_eq!(counted.fetch_add(1, SeqCst) + 1, attempt.number() as usize);
            let outcome = Outcome::Written;
            let verdict = if attempt.number() < 5 { outcome.retry() } else { outcome.done() };
            async move { verdict }
        })
        .unwrap();
    sleep(10 * RETRY).await;
    assert_eq!(calls.load(SeqCst), 5);
    assert!(lease.is_leader() && lease.is_empty());
}

#[tokio::test(start_paused = true)]
async fn follower_after_five_releases_with_exactly_five_calls() {
    let lease = lease();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    lease
        .try_work("key", move |attempt| {
            counted.fetch_add(1, SeqCst);
            let outcome = Outcome::WrittenByOther;
            let verdict = if attempt.number() < 5 { outcome.retry() } else { outcome.done() };
            async move { verdict }
        })
        .unwrap();
    sleep(10 * TERM).await;
    assert_eq!(calls.load(SeqCst), 5);
    assert_eq!(lease.status().role, Role::Follower);
    assert_eq!(lease.snapshot().losses, 4);
    assert!(lease.is_empty());
}

#[tokio::test(start_paused = true)]
async fn job_added_during_an_attempt_runs_after_it() {
    let lease = lease();
    let (started, mut starts) = mpsc::unbounded_channel();
    let (first, end_first) = held(started.clone());
    let (second, end_second) = held(started);
    lease.try_work("key", first).unwrap();
    starts.recv().await.unwrap();
    lease.try_work("key", second).unwrap();
    assert!(timeout(SECOND, starts.recv()).await.is_err(), "one attempt per key at a time");
    end_first.send(Outcome::Written).unwrap();
    assert_eq!(starts.recv().await.unwrap().number(), 1);
    end_second.send(Outcome::Written).unwrap();
    sleep(SECOND).await;
    assert!(lease.is_empty() && lease.snapshot().in_flight == 0);
}

#[tokio::test(start_paused = true)]
async fn extend_clears_a_released_job_and_prolongs_lease() {
    let lease: Lease = builder().backoff_steps(0).spawn().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    for key in ["one", "two"] {
        let calls = calls.clone();
        lease
            .try_work(key, move |_| {
                calls.fetch_add(1, SeqCst);
                async { Outcome::WrittenByOther.retry() }
            })
            .unwrap();
    }
    while calls.load(SeqCst) == 0 {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(lease.status().role, Role::Follower);
    assert_eq!(lease.len(), 2);
    lease.extend(&"two");
    assert_eq!(lease.len(), 1);
    let remaining = lease.snapshot().lease_remaining;
    assert!(remaining >= TERM && remaining <= TERM.mul_f64(1.1), "{remaining:?}");
}

// --- the queue, seen from outside ---

#[tokio::test(start_paused = true)]
async fn only_the_newest_pending_job_per_key_runs() {
    let lease = lease();
    let ran = Arc::new(Mutex::new(Vec::new()));
    for i in 0..100 {
        let ran = ran.clone();
        lease
            .try_work("key", move |_| {
                ran.lock().unwrap().push(i);
                async { Outcome::Written }
            })
            .unwrap();
        assert_eq!(lease.len(), 1);
    }
    sleep(SECOND).await;
    assert_eq!(*ran.lock().unwrap(), [99]);
}

#[tokio::test(start_paused = true)]
async fn newest_job_added_during_an_attempt_runs() {
    let lease = lease();
    let (started, mut starts) = mpsc::unbounded_channel();
    let (first, end) = held(started);
    lease.try_work("key", first).unwrap();
    starts.recv().await.unwrap();
    let ran = Arc::new(Mutex::new(Vec::new()));
    for i in 0..10 {
        let ran = ran.clone();
        lease
            .try_work("key", move |_| {
                ran.lock().unwrap().push(i);
                async { Outcome::Written }
            })
            .unwrap();
    }
    end.send(Outcome::Conflict).unwrap();
    sleep(SECOND).await;
    assert_eq!(*ran.lock().unwrap(), [9]);
}

#[tokio::test(start_paused = true)]
async fn slow_job_delays_no_other_key() {
    let lease = lease();
    open_window(&lease, 4).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let (slow, end) = held(started);
    lease.try_work("slow", slow).unwrap();
    starts.recv().await.unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    for key in ["a", "b", "c", "d", "e"] {
        let done = done.clone();
        lease
            .try_work(key, move |_| {
                done.fetch_add(1, SeqCst);
                async { Outcome::Written }
            })
            .unwrap();
    }
    lease.extend(&"elsewhere"); // a foreign write leaves the slow attempt running
    assert_eq!(lease.status().role, Role::Follower);
    sleep(SECOND).await;
    assert_eq!(lease.snapshot().in_flight, 1);
    sleep(10 * SECOND).await; // after its deadline the slow attempt no longer fills the window
    assert_eq!(done.load(SeqCst), 5);
    end.send(Outcome::Unchanged).unwrap();
    sleep(SECOND).await;
    assert_eq!(lease.snapshot().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn ready_jobs_do_not_delay_a_finished_attempt() {
    const LONG: usize = 100_000;
    let lease = lease();
    open_window(&lease, 4).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let (slow, end) = held(started);
    lease.try_work("slow", slow).unwrap();
    starts.recv().await.unwrap();
    /// Adds a job that adds the next one, until the slow job has finished.
    fn next(lease: &Lease, count: Arc<AtomicUsize>) {
        let inner = lease.clone();
        let key = if count.load(SeqCst).is_multiple_of(2) { "even" } else { "odd" };
        let work = move |_| {
            let ended = inner.snapshot().counters.unchanged == 1;
            if !ended && count.fetch_add(1, SeqCst) < LONG {
                next(&inner, count.clone());
            }
            async { Outcome::Written }
        };
        lease.try_work(key, work).unwrap();
    }
    let count = Arc::new(AtomicUsize::new(0));
    next(&lease, count.clone());
    end.send(Outcome::Unchanged).unwrap();
    sleep(SECOND).await;
    assert_eq!(lease.snapshot().counters.unchanged, 1);
    assert!(count.load(SeqCst) < LONG, "it finished before the stream of jobs");
}

#[tokio::test(start_paused = true)]
async fn leader_runs_as_many_attempts_as_window_allows() {
    let lease: Lease = builder().concurrency(4).spawn().unwrap();
    open_window(&lease, 4).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let mut ends = Vec::new();
    for key in ["a", "b", "c", "d", "e"] {
        let (work, end) = held(started.clone());
        lease.try_work(key, work).unwrap();
        ends.push(end);
    }
    for _ in 0..4 {
        starts.recv().await.unwrap();
    }
    assert!(timeout(SECOND, starts.recv()).await.is_err());
    ends[0].send(Outcome::Written).unwrap();
    assert_eq!(*starts.recv().await.unwrap().key(), "e");
}

#[tokio::test(start_paused = true)]
async fn a_removed_key_is_not_attempted() {
    let lease = lease();
    lead(&lease).await;
    lease.extend(&"other"); // a follower, so that jobs wait
    lease.try_work("key", |_| async { Outcome::Written }).unwrap();
    lease.remove(&"key");
    assert!(lease.is_empty());
    sleep(2 * TERM).await;
    assert_eq!(lease.snapshot().counters.attempts, 1);
}

#[tokio::test(start_paused = true)]
async fn retries_can_be_limited() {
    let lease = lease();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let work = limit_retries(2, move |_| {
        counted.fetch_add(1, SeqCst);
        async { Outcome::Failed }
    });
    lease.try_work("key", work).unwrap();
    sleep(10 * TERM).await;
    assert_eq!(calls.load(SeqCst), 3);
    assert!(lease.is_empty());
}

#[tokio::test(start_paused = true)]
async fn job_may_call_its_own_lease() {
    let lease = lease();
    let inner = lease.clone();
    let (done, ended) = oneshot::channel();
    let done = Arc::new(Mutex::new(Some(done)));
    lease
        .try_work("outer", move |_| {
            let (inner, done) = (inner.clone(), done.clone());
            async move {
                assert_eq!(inner.len(), 0);
                inner.observe(&"outer");
                inner
                    .try_work("inner", move |_| {
                        let done = done.lock().unwrap().take();
                        async move {
                            done.map(|done| done.send(()));
                            Outcome::Written
                        }
                    })
                    .unwrap();
                Outcome::Written
            }
        })
        .unwrap();
    ended.await.unwrap();
}

// --- panics ---

#[tokio::test(start_paused = true)]
async fn panicking_job_is_retried_and_stops_nothing_else() {
    let lease = lease();
    open_window(&lease, 2).await;
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    lease
        .try_work("bad", move |attempt| {
            seen.lock().unwrap().push(Instant::now());
            if attempt.number() == 1 {
                panic!("while making the attempt");
            }
            async move {
                if attempt.number() == 2 {
                    panic!("while polled");
                }
                sleep(Duration::from_millis(1)).await;
                if attempt.number() == 3 {
                    panic!("in its own task");
                }
                Outcome::Written
            }
        })
        .unwrap();
    let start = Instant::now();
    run(&lease, "good", Outcome::Written).await;
    assert_eq!(Instant::now(), start, "the other key ran immediately");
    sleep(4 * RETRY).await;
    let calls = calls.lock().unwrap();
    assert_eq!(calls.len(), 4);
    assert!(calls.windows(2).all(|pair| pair[1] - pair[0] >= RETRY));
    assert_eq!(lease.snapshot().counters.panics, 3);
    assert!(lease.is_leader());
    assert_eq!(lease.status().closed, None);
}

/// Panics when it is dropped, as a blocking client does inside of a runtime.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("a destructor");
        }
    }
}

/// Returns a job that finishes immediately and whose destructor panics.
fn explosive() -> impl FnMut(Attempt<&'static str>) -> std::future::Ready<Outcome> + Send + 'static {
    let bomb = Bomb;
    move |_| {
        let _ = &bomb;
        std::future::ready(Outcome::Written)
    }
}

#[tokio::test(start_paused = true)]
async fn panicking_destructor_of_a_job_harms_nothing() {
    let lease = lease();
    lease.try_work("replaced", explosive()).unwrap();
    for key in ["replaced", "finished", "also finished"] {
        lease.try_work(key, explosive()).unwrap();
    }
    lease.try_work("removed", explosive()).unwrap();
    lease.remove(&"removed");
    sleep(SECOND).await;
    assert_eq!(lease.status().closed, None);
    assert_eq!((lease.len(), lease.snapshot().counters.written), (0, 3));
    run(&lease, "good", Outcome::Written).await;
    assert_eq!(lease.snapshot().counters.panics, 0, "each attempt succeeded");
}

#[tokio::test(start_paused = true)]
async fn panicking_destructors_stop_no_shutdown() {
    let (ended, dropped) = (lease(), lease());
    for key in ["a", "b", "c"] {
        ended.try_work(key, explosive()).unwrap();
        dropped.try_work(key, explosive()).unwrap();
    }
    let mut statuses = dropped.subscribe();
    drop(dropped);
    assert_eq!(ended.shutdown(SECOND).await, ["a", "b", "c"]);
    assert!(ended.try_work("d", explosive()).is_err());
    statuses.wait_for(|status| status.closed == Some(LeaseClosed::ShutDown)).await.unwrap();
}

/// A future that is ready at its third poll, and then panics when it is dropped.
struct ExplosiveRun {
    polls: u32,
    bomb: Option<Bomb>,
}

impl Future for ExplosiveRun {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        self.polls += 1;
        if self.polls < 3 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.bomb = Some(Bomb);
        Poll::Ready(Outcome::Written)
    }
}

#[tokio::test(start_paused = true)]
async fn panicking_destructor_of_a_run_delays_its_key() {
    let lease = lease();
    // The first is ready when the driver polls it, the second on a task of its own.
    for (key, polls) in [("driver", 2), ("task", 0)] {
        lease.try_work(key, move |_| ExplosiveRun { polls, bomb: None }).unwrap();
    }
    sleep(SECOND).await;
    assert_eq!(lease.snapshot().counters.panics, 2);
    for key in ["driver", "task"] {
        lease.try_work(key, |_| async { Outcome::Written }).unwrap();
    }
    run(&lease, "good", Outcome::Written).await;
    assert_eq!(lease.len(), 2, "a panic delays its key for the retry interval");
    sleep(2 * RETRY).await;
    assert_eq!((lease.len(), lease.snapshot().counters.written), (0, 3));
    assert_eq!(lease.status().closed, None);
}

#[tokio::test(start_paused = true)]
async fn panic_whose_payload_panics_delays_its_key() {
    let lease = lease();
    lease
        .try_work("bad", |attempt| async move {
            if attempt.number() == 1 {
                std::panic::panic_any(Bomb);
            }
            Outcome::Written
        })
        .unwrap();
    run(&lease, "good", Outcome::Written).await;
    sleep(2 * RETRY).await;
    assert_eq!((lease.len(), lease.snapshot().counters.written), (0, 2));
    assert_eq!((lease.status().closed, lease.snapshot().counters.panics), (None, 1));
}

// --- tokio's cooperative budget ---

/// Returns a job that passes a free lock of tokio's, as a pool of connections has one. That costs a
/// unit of the budget of the task that polls it.
fn budgeted(
    ran: &Arc<AtomicUsize>,
    outcome: impl Into<Verdict>,
) -> impl FnMut(Attempt<usize>) -> BoxFuture<'static, Verdict> + Send + 'static {
    let (ran, verdict) = (ran.clone(), outcome.into());
    let lock = Arc::new(tokio::sync::Mutex::new(()));
    move |_| {
        let (ran, lock) = (ran.clone(), lock.clone());
        Box::pin(async move {
            drop(lock.lock().await);
            ran.fetch_add(1, SeqCst);
            verdict
        })
    }
}

#[tokio::test(start_paused = true)]
async fn periodic_jobs_survive_a_spent_budget() {
    const KEYS: usize = 1000;
    let lease: WriterLease<usize> = builder().spawn().unwrap();
    let ran = Arc::new(AtomicUsize::new(0));
    for key in 0..KEYS {
        lease.try_work(key, budgeted(&ran, Outcome::Written.retry_after(5 * SECOND))).unwrap();
    }
    sleep(100 * SECOND).await;
    assert!(ran.load(SeqCst) >= KEYS * 15, "{ran:?}");
    assert!(lease.is_leader());
}

#[tokio::test(start_paused = true)]
async fn lease_expires_after_a_spent_budget() {
    for keys in [100, 126, 127, 128, 129, 130, 300] {
        let lease: WriterLease<usize> = builder().spawn().unwrap();
        let ran = Arc::new(AtomicUsize::new(0));
        for key in 0..keys {
            lease.try_work(key, budgeted(&ran, Outcome::Written)).unwrap();
        }
        sleep(SECOND).await;
        assert_eq!(ran.load(SeqCst), keys);
        assert!(lease.status().is_leader);
        sleep(TERM).await;
        assert!(!lease.status().is_leader, "{keys} keys: the timer of the term is lost");
    }
}

// --- cancellation ---

#[tokio::test(start_paused = true)]
async fn losing_the_role_cancels_the_attempt() {
    let lease = lease();
    lead(&lease).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let (work, _end) = held(started);
    lease.try_work("key", work).unwrap();
    let attempt = starts.recv().await.unwrap();
    assert_eq!((*attempt.key(), attempt.epoch()), ("key", 1));
    assert!(timeout(SECOND, attempt.cancelled()).await.is_err());
    assert!(!attempt.is_cancelled());
    lease.extend(&"other");
    assert!(attempt.is_cancelled());
    timeout(SECOND, attempt.cancelled()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn passed_deadline_cancels_the_attempt() {
    let lease: Lease = builder().attempt_timeout(5 * SECOND).spawn().unwrap();
    lead(&lease).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let (work, _end) = held(started);
    lease.try_work("key", work).unwrap();
    let attempt = starts.recv().await.unwrap();
    let start = Instant::now();
    attempt.cancelled().await;
    assert!(attempt.is_cancelled());
    assert!(Instant::now() - start >= 5 * SECOND);
    assert!(Instant::now() - start < 6 * SECOND);
}

// --- the lease over time ---

#[tokio::test(start_paused = true)]
async fn idle_lease_expires_after_the_term() {
    let lease = lease();
    let mut statuses = lease.subscribe();
    lead(&lease).await;
    statuses.wait_for(|status| status.is_leader).await.unwrap();
    let start = Instant::now();
    statuses.wait_for(|status| !status.is_leader).await.unwrap();
    assert!(Instant::now() - start <= TERM + SECOND);
    assert!(!lease.is_leader());
    assert_eq!(lease.status().role, Role::Leader, "still the incumbent");
    run(&lease, "key", Outcome::Written).await;
    assert!(lease.is_leader());
    assert_eq!(lease.status().epoch, 1);
}

#[tokio::test(start_paused = true)]
async fn expire_ends_the_lease_until_the_next_success() {
    let lease = lease();
    lead(&lease).await;
    lease.expire();
    assert!(!lease.is_leader());
    run(&lease, "key", Outcome::Written).await;
    assert!(lease.is_leader());
}

#[tokio::test(start_paused = true)]
async fn subscribers_see_each_change_of_role() {
    let lease = lease();
    let mut statuses = lease.subscribe();
    lead(&lease).await;
    assert_eq!(statuses.borrow_and_update().role, Role::Leader);
    lease.extend(&"other");
    statuses.changed().await.unwrap();
    assert_eq!(statuses.borrow_and_update().role, Role::Follower);
    run(&lease, "key", Outcome::Written).await;
    statuses.wait_for(|status| status.role == Role::Leader && status.epoch == 2).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_follower_takes_over_when_the_lease_ends() {
    let lease = lease();
    lease.extend(&"theirs");
    assert_eq!(lease.status().role, Role::Follower);
    let start = Instant::now();
    run(&lease, "key", Outcome::Written).await;
    assert!(lease.is_leader());
    assert!(Instant::now() - start < SECOND);
}

// --- wait ---

#[tokio::test(start_paused = true)]
async fn wait_resolves_when_nothing_needed_writing() {
    let lease = lease();
    lease.try_work("key", |_| async { Outcome::Unchanged }).unwrap();
    assert_eq!(lease.wait().await, Ok(false));
    assert_eq!(lease.status().role, Role::Election);
}

#[tokio::test(start_paused = true)]
async fn wait_resolves_after_a_foreign_write() {
    let lease = lease();
    lease.extend(&"key");
    assert_eq!(lease.wait().await, Ok(false));
}

#[tokio::test(start_paused = true)]
async fn wait_timeout_returns_none_while_undecided() {
    let lease = lease();
    assert_eq!(lease.wait_timeout(5 * SECOND).await, Ok(None));
    lease.try_work("key", |_| async { Outcome::Conflict }).unwrap();
    assert_eq!(lease.wait_timeout(5 * SECOND).await, Ok(None), "a conflict leaves the role undecided");
    lease.try_work("key", |_| async { Outcome::Written }).unwrap();
    assert_eq!(lease.wait_timeout(5 * SECOND).await, Ok(Some(true)));
}

#[tokio::test(start_paused = true)]
async fn wait_fails_once_the_lease_is_shut_down() {
    let lease = lease();
    let waiting = tokio::spawn({
        let lease = lease.clone();
        async move { lease.wait().await }
    });
    sleep(SECOND).await;
    lease.shutdown(SECOND).await;
    assert_eq!(waiting.await.unwrap(), Err(LeaseClosed::ShutDown));
    assert_eq!(lease.wait_timeout(SECOND).await, Err(LeaseClosed::ShutDown));
}

// --- the end ---

#[tokio::test(start_paused = true)]
async fn shutdown_returns_pending_keys() {
    let lease = lease();
    lead(&lease).await;
    lease.extend(&"other"); // a follower, so that jobs wait
    for key in ["a", "b", "c"] {
        lease.try_work(key, |_| async { Outcome::Written }).unwrap();
    }
    let start = Instant::now();
    assert_eq!(lease.shutdown(SECOND).await, ["a", "b", "c"]);
    assert_eq!(Instant::now(), start, "no attempt was in flight, so shutdown returns immediately");
    assert_eq!(lease.status().closed, Some(LeaseClosed::ShutDown));
    assert!(!lease.is_leader());
    assert_eq!(lease.try_work("d", |_| async { Outcome::Written }), Err(LeaseClosed::ShutDown));
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_attempts_in_flight() {
    let lease = lease();
    lead(&lease).await;
    let finished = Arc::new(AtomicUsize::new(0));
    let counted = finished.clone();
    lease
        .try_work("slow", move |_| {
            let counted = counted.clone();
            async move {
                sleep(SECOND).await;
                counted.fetch_add(1, SeqCst);
                Outcome::Written
            }
        })
        .unwrap();
    sleep(Duration::from_millis(1)).await;
    assert!(lease.shutdown(2 * SECOND).await.is_empty());
    assert_eq!(finished.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn grace_period_ends_with_cancellation_and_returned_keys() {
    let lease = lease();
    lead(&lease).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let (work, end) = held(started);
    lease.try_work("hung", work).unwrap();
    let attempt = starts.recv().await.unwrap();
    let start = Instant::now();
    assert_eq!(lease.shutdown(2 * SECOND).await, ["hung"]);
    assert!(Instant::now() - start < 3 * SECOND);
    assert!(attempt.is_cancelled());
    // The future still runs: cancellation is a signal only.
    end.send(Outcome::Written).expect("the attempt is still there");
}

#[tokio::test(start_paused = true)]
async fn shutdown_twice_is_harmless() {
    let lease = lease();
    lease.extend(&"x");
    lease.try_work("a", |_| async { Outcome::Written }).unwrap();
    assert_eq!(lease.shutdown(SECOND).await, ["a"]);
    assert!(lease.shutdown(SECOND).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn dropped_shutdown_still_stops_the_lease() {
    let lease = lease();
    lead(&lease).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let (work, end) = held(started);
    lease.try_work("slow", work).unwrap();
    starts.recv().await.unwrap();
    assert!(timeout(SECOND, lease.shutdown(TERM)).await.is_err());
    assert_eq!(lease.try_work("b", |_| async { Outcome::Written }), Err(LeaseClosed::ShutDown));
    end.send(Outcome::Written).unwrap();
    lease.subscribe().wait_for(|status| status.closed.is_some()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropped_lease_starts_nothing_and_frees_jobs() {
    let lease = lease();
    lead(&lease).await;
    let mut statuses = lease.subscribe();
    let held_by_work = Arc::new(());
    lease.extend(&"other");
    let pinned = held_by_work.clone();
    lease
        .try_work("key", move |_| {
            let _pinned = &pinned;
            async { Outcome::Written }
        })
        .unwrap();
    let other_handle = lease.clone();
    drop(lease);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(statuses.borrow().closed, None, "another handle remains");
    drop(other_handle);
    statuses.wait_for(|status| status.closed == Some(LeaseClosed::ShutDown)).await.unwrap();
    assert!(statuses.changed().await.is_err(), "the channel is closed");
    assert_eq!(Arc::strong_count(&held_by_work), 1);
}

#[tokio::test(start_paused = true)]
async fn attempt_in_flight_outlives_its_dropped_lease() {
    let lease = lease();
    let (started, mut starts) = mpsc::unbounded_channel();
    let (work, end) = held(started);
    lease.try_work("key", work).unwrap();
    let attempt = starts.recv().await.unwrap();
    drop(lease);
    sleep(SECOND).await;
    assert!(attempt.is_cancelled());
    end.send(Outcome::Written).expect("the attempt is still there");
}

#[test]
fn the_death_of_the_driver_is_visible() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let lease: Lease = runtime.block_on(async { lease() });
    runtime.block_on(async { lead(&lease).await });
    let statuses = lease.subscribe();
    drop(runtime);
    assert_eq!(lease.status().closed, Some(LeaseClosed::DriverDied));
    assert!(!statuses.borrow().is_leader && !lease.is_leader());
    assert_eq!(lease.try_work("key", |_| async { Outcome::Written }), Err(LeaseClosed::DriverDied));
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(other.block_on(lease.wait()), Err(LeaseClosed::DriverDied));
    assert!(other.block_on(lease.shutdown(SECOND)).is_empty());
}

#[test]
fn a_lease_needs_a_runtime_and_says_so() {
    let spawned = builder().spawn::<&str>();
    assert_eq!(spawned.err(), Some(SpawnError::NoRuntime));
}

#[tokio::test]
async fn invalid_setting_is_named_in_the_error() {
    let error = builder().term(Duration::ZERO).spawn::<&str>().err().unwrap();
    assert_eq!(error.to_string(), "term is 0ns, but must be longer than zero");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_on_many_threads_lose_no_key() {
    let lease: WriterLease<u32> = builder().spawn().unwrap();
    let done = Arc::new(AtomicUsize::new(0));
    let producers: Vec<_> = (0..4)
        .map(|p| {
            let (lease, done) = (lease.clone(), done.clone());
            tokio::spawn(async move {
                for i in 0..1000 {
                    let done = done.clone();
                    let work = move |_| {
                        done.fetch_add(1, SeqCst);
                        async { Outcome::Written }
                    };
                    lease.try_work(p * 1000 + i, work).unwrap();
                    if i % 100 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    for producer in producers {
        producer.await.unwrap();
    }
    timeout(20 * SECOND, async {
        while done.load(SeqCst) < 4000 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("every key runs");
    assert_eq!(done.load(SeqCst), 4000);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_the_status_may_use_the_lease() {
    let lease = builder().spawn().unwrap();
    lead(&lease).await;
    let (used, statuses) = (lease.clone(), lease.subscribe());
    let uses = tokio::task::spawn_blocking(move || {
        let seen = statuses.borrow();
        // The driver, too, has a change to publish, and waits for the borrow to end.
        used.try_work("key", |_| async { Outcome::WrittenByOther }).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        used.expire();
        let reporter = used.watch_reporter();
        drop((used.subscribe(), used.snapshot(), used.explain(&"key"), used.subscribe_roster()));
        drop((used.is_leader(), used.leads(&"key"), used.len(), format!("{used:?}")));
        used.extend(&"key");
        used.remove(&"key");
        used.echo(SECOND);
        let status = used.status();
        drop((reporter, used));
        assert!(seen.is_leader && !status.is_leader);
    });
    timeout(20 * SECOND, uses).await.expect("nobody waits for another").unwrap();
    let status = *lease.subscribe().wait_for(|status| !status.is_leader).await.unwrap();
    assert_eq!(status, lease.status());
}

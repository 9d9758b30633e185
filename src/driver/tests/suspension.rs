//! What a suspended machine finds when it is resumed. tokio's time is paused, so that only `suspend` and `sleep` move it.

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
/// tokio's timers are no finer.
const TICK: Duration = Duration::from_millis(1);

fn lease() -> Lease {
    WriterLease::builder("test").seed(7).term(TERM).spawn().unwrap()
}

async fn leader() -> Lease {
    let lease = lease();
    run(&lease, "first").await;
    assert!(lease.is_leader());
    // Its timer has rung and was set again.
    sleep(10 * SECOND).await;
    lease
}

/// Somebody else's lease lasts for a term.
async fn follower() -> Lease {
    let lease = WriterLease::builder("test").seed(7).term(TERM).backoff_steps(0).spawn().unwrap();
    lease.extend(&"other");
    sleep(SECOND).await;
    lease.extend(&"other");
    assert!(lease.snapshot().lease_remaining >= TERM);
    lease
}

/// How long it took, awake, until the work ran.
async fn run(lease: &Lease, key: &'static str) -> Duration {
    let start = now();
    let (attempt, _) = out(lease, key, Outcome::Written).await;
    drop(attempt);
    tokio::task::yield_now().await;
    now() - start
}

/// An attempt that is out, until the sender is used or dropped.
async fn out(
    lease: &Lease,
    key: &'static str,
    outcome: Outcome,
) -> (Attempt<&'static str>, tokio::sync::oneshot::Sender<()>) {
    let (starts, mut started) = mpsc::unbounded_channel();
    let (end, ended) = tokio::sync::oneshot::channel();
    let ended = Arc::new(Mutex::new(Some(ended)));
    let work = move |attempt| {
        starts.send(attempt).unwrap();
        let ended = ended.lock().unwrap().take();
        async move {
            if let Some(ended) = ended {
                let _ = ended.await;
            }
            outcome
        }
    };
    lease.try_work(key, work).unwrap();
    (started.recv().await.unwrap(), end)
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_slept_through_its_term_is_none_at_once_and_says_so_within_a_second() {
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
    assert!(now() - resumed <= SECOND + TICK);
}

#[tokio::test(start_paused = true)]
async fn a_resumed_leader_writes_without_delay_and_then_leads_again() {
    let lease = leader().await;
    suspend(2 * TERM);
    assert_eq!(run(&lease, "key").await, Duration::ZERO, "its driver was woken although its timer is late");
    assert!(lease.is_leader());
    assert_eq!(lease.status().epoch, 1, "nobody else was heard of");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_was_sent_before_the_suspension_extends_nothing_after_it() {
    let lease = leader().await;
    let (attempt, end) = out(&lease, "slow", Outcome::Written).await;
    suspend(TERM);
    drop((attempt, end));
    sleep(TICK).await;
    assert_eq!(lease.snapshot().counters.written, 2);
    assert!(!lease.is_leader());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_is_past_its_deadline_when_the_machine_has_slept_that_long() {
    let lease = leader().await;
    let (attempt, _end) = out(&lease, "slow", Outcome::Written).await;
    let left = attempt.deadline().remaining();
    suspend(left - TICK);
    assert!(!attempt.is_cancelled());
    suspend(TICK);
    assert!(attempt.is_cancelled() && attempt.deadline().has_passed());
    timeout(TICK, attempt.cancelled()).await.unwrap();
    assert_eq!(run(&lease, "other").await, Duration::ZERO, "its slot is free");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_deadline_hears_of_it_within_a_second_of_a_suspension() {
    let until = Moment::now() + TERM;
    let waits = tokio::spawn(until.passed());
    sleep(SECOND / 2).await;
    let resumed = now();
    suspend(TERM);
    waits.await.unwrap();
    assert!(until.has_passed());
    assert!(now() - resumed <= SECOND + TICK);
}

#[tokio::test(start_paused = true)]
async fn after_a_suspension_waiting_is_as_exact_as_before() {
    suspend(TERM);
    let start = now();
    (Moment::now() + SECOND / 2).passed().await;
    assert_eq!(now() - start, SECOND / 2);
    let lease = lease();
    lease.try_work("key", |_| async { Outcome::Written }).unwrap();
    assert_eq!(lease.wait().await, Ok(true));
    assert!(now() - start < SECOND, "the delay of an election is 16 echoes of 6 ms at most");
}

#[tokio::test(start_paused = true)]
async fn what_a_follower_left_to_a_leader_is_tried_within_a_second_of_a_suspension() {
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
    assert!(started.recv().await.unwrap() - resumed <= SECOND + TICK);
    tokio::task::yield_now().await;
    assert!(lease.is_leader(), "the other one's lease was over");
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_slept_less_than_the_lease_lets_the_leader_go_on() {
    let lease = follower().await;
    let remaining = lease.snapshot().lease_remaining;
    suspend(remaining / 2);
    let left = lease.snapshot().lease_remaining;
    assert!(left <= remaining / 2 && left >= remaining / 2 - TICK);
}

/// An elector that says what it is told to.
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
async fn a_lease_that_follows_an_election_runs_nothing_after_the_leadership_was_slept_through() {
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

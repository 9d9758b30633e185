//! Handles on several threads, and the driver on another, in orders that
//! [shuttle](https://docs.rs/shuttle) draws.
//!
//! The threads share only the state behind one lock, so a run is determined by the order in which
//! they take it; before each time, shuttle decides which thread runs next. Its threads take turns
//! on one thread of the system, and none is switched while it holds the lock. The real driver can
//! therefore run here, with its real lock, on a runtime of tokio whose time stands still unless a
//! test moves it. So everything must happen because somebody woke the driver, and not because a
//! timer fired.
//!
//! No weaker memory order needs to be explored, because the driver has no atomics of its own. (Nor
//! is there `unsafe` that `cargo miri test` could find fault with, here or in the engine; it needs
//! a nightly toolchain, so no script runs it.)
//!
//! A failure prints its schedule, which `shuttle::replay` repeats. `INTERLEAVINGS=20000` sets the
//! number of orders per test.
//!
//! ```sh
//! RUSTFLAGS="--cfg shuttle" INTERLEAVINGS=20000 cargo test --release --lib --target-dir target/shuttle interleavings
//! ```

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use parking_lot::Mutex;
use shuttle::{
    Config, Runner,
    rand::Rng,
    scheduler::{PctScheduler, RandomScheduler, Scheduler},
    thread::{self, JoinHandle},
};
use tokio::runtime::Runtime;

use crate::{Attempt, LeaseBuilder, LeaseClosed, Outcome, WriterLease, clock::now, engine::Role};

type Lease = WriterLease<usize>;

const TERM: Duration = Duration::from_secs(60);
/// How often the runtime may turn before a test gives up.
const TURNS: usize = 2000;

thread_local! {
    static EXPLORED: Cell<bool> = const { Cell::new(false) };
}

/// Lets another thread go first, if shuttle runs this one.
pub(in crate::driver) fn switch() {
    // A thread that unwinds cannot be switched.
    if EXPLORED.get() && !std::thread::panicking() {
        thread::sleep(Duration::ZERO);
    }
}

fn explore(run: impl Fn(Runtime) + Copy + Send + Sync + 'static) {
    let count = std::env::var("INTERLEAVINGS").map_or(300, |count| count.parse().expect("a number"));
    explore_by(RandomScheduler::new(count), run);
    // Few switches, but at any place: this finds faults that need just two of them sooner.
    explore_by(PctScheduler::new(3, count), run);
}

fn explore_by(scheduler: impl Scheduler + 'static, run: impl Fn(Runtime) + Send + Sync + 'static) {
    let mut config = Config::new();
    // tokio's own frames are large without optimization.
    config.stack_size = 1 << 20;
    EXPLORED.set(true);
    Runner::new(scheduler, config).run(move || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        // The other threads read its clock.
        let handle = runtime.handle().clone();
        let _context = handle.enter();
        run(runtime);
    });
    EXPLORED.set(false);
}

fn builder() -> LeaseBuilder {
    WriterLease::builder("test").seed(7).term(TERM).fixed_patience().backoff_steps(0)
}

/// Returns a lease that leads and whose driver sleeps.
fn leader(runtime: &Runtime) -> Lease {
    let lease: Lease = runtime.block_on(async { builder().spawn().unwrap() });
    lease.expire();
    lease.try_work(usize::MAX, |_| async { Outcome::Written }).unwrap();
    turn_until(runtime, || lease.is_leader());
    settle(runtime);
    lease
}

/// Returns a lease that another replica holds, and whose driver sleeps until its end.
fn follower(runtime: &Runtime) -> Lease {
    let lease: Lease = runtime.block_on(async { builder().spawn().unwrap() });
    lease.extend(&usize::MAX);
    runtime.block_on(tokio::time::sleep(Duration::from_secs(1)));
    lease.extend(&usize::MAX);
    settle(runtime);
    assert!(lease.snapshot().lease_remaining > TERM / 2);
    lease
}

fn settle(runtime: &Runtime) {
    runtime.block_on(async {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    });
}

/// Turns the runtime until `done`. Its time stands still, because it is never idle.
fn turn_until(runtime: &Runtime, mut done: impl FnMut() -> bool) {
    runtime.block_on(async {
        let before = now();
        for _ in 0..TURNS {
            if done() {
                return assert_eq!(now(), before);
            }
            tokio::task::yield_now().await;
            thread::yield_now();
        }
        panic!("no progress");
    });
}

/// Threads that use handles.
#[derive(Default)]
struct Threads {
    all: Vec<JoinHandle<()>>,
    over: Arc<AtomicUsize>,
}

impl Threads {
    fn start(&mut self, run: impl FnOnce() + Send + 'static) {
        let over = self.over.clone();
        self.all.push(thread::spawn(move || {
            run();
            over.fetch_add(1, SeqCst);
        }));
    }

    fn are_over(&self) -> bool {
        self.over.load(SeqCst) == self.all.len()
    }

    fn join(self) {
        for thread in self.all {
            thread.join().unwrap();
        }
    }
}

/// The counts of jobs that ran and of jobs that were refused.
#[derive(Default)]
struct Count {
    ran: AtomicUsize,
    refused: AtomicUsize,
}

impl Count {
    /// Hands in jobs for these keys. Every other job takes two polls, and so a task of its own.
    fn try_all(self: &Arc<Self>, lease: &Lease, keys: std::ops::Range<usize>) {
        for key in keys {
            let count = self.clone();
            let tried = lease.try_work(key, move |_| {
                let count = count.clone();
                async move {
                    if key % 2 == 1 {
                        tokio::task::yield_now().await;
                    }
                    count.ran.fetch_add(1, SeqCst);
                    Outcome::Written
                }
            });
            if tried.is_err() {
                self.refused.fetch_add(1, SeqCst);
            }
        }
    }

    fn ran(&self) -> usize {
        self.ran.load(SeqCst)
    }

    fn refused(&self) -> usize {
        self.refused.load(SeqCst)
    }
}

#[test]
fn leader_runs_new_jobs_immediately() {
    explore(|runtime| {
        let (lease, count, mut threads) = (leader(&runtime), Arc::<Count>::default(), Threads::default());
        for thread in 0..3 {
            let (lease, count) = (lease.clone(), count.clone());
            threads.start(move || count.try_all(&lease, 3 * thread..3 * thread + 3));
        }
        turn_until(&runtime, || count.ran() == 9);
        threads.join();
        assert!(lease.is_empty());
    });
}

#[test]
fn lease_expired_while_jobs_arrive_is_probed_immediately() {
    explore(|runtime| {
        let (lease, count, mut threads) = (follower(&runtime), Arc::<Count>::default(), Threads::default());
        let tries = (lease.clone(), count.clone());
        threads.start(move || tries.1.try_all(&tries.0, 0..2));
        let ends = lease.clone();
        threads.start(move || ends.expire());
        turn_until(&runtime, || count.ran() == 2);
        threads.join();
        assert!(lease.is_leader());
    });
}

#[test]
fn job_for_an_idle_driver_sets_its_timer() {
    explore(|runtime| {
        let (count, mut threads) = (Arc::<Count>::default(), Threads::default());
        let lease: Lease = runtime.block_on(async { builder().spawn().unwrap() });
        settle(&runtime);
        for thread in 0..2 {
            let (lease, count) = (lease.clone(), count.clone());
            threads.start(move || count.try_all(&lease, thread..thread + 1));
        }
        turn_until(&runtime, || threads.are_over());
        threads.join();
        assert_eq!(count.ran(), 0, "the election delay comes first: at most 16 echoes of 6 ms");
        runtime.block_on(tokio::time::sleep(Duration::from_millis(100)));
        assert_eq!(count.ran(), 2);
    });
}

#[test]
fn one_attempt_per_key_and_newest_job_wins() {
    explore(|runtime| {
        let (lease, mut threads) = (leader(&runtime), Threads::default());
        let (out, ran) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Vec<usize>>>::default());
        for thread in 0..2 {
            let (lease, out, ran) = (lease.clone(), out.clone(), ran.clone());
            threads.start(move || {
                for job in 0..3 {
                    let (out, ran) = (out.clone(), ran.clone());
                    let number = 10 * thread + job;
                    let job = move |_| {
                        let (out, ran) = (out.clone(), ran.clone());
                        assert!(!out.swap(true, SeqCst), "two at the same time");
                        ran.lock().push(number);
                        async move {
                            tokio::task::yield_now().await;
                            out.store(false, SeqCst);
                            Outcome::Written
                        }
                    };
                    lease.try_work(0, job).unwrap();
                }
            });
        }
        let idle = || lease.is_empty() && lease.snapshot().in_flight == 0;
        turn_until(&runtime, || threads.are_over() && idle());
        threads.join();
        let ran = ran.lock();
        assert!(matches!(ran.last(), Some(2 | 12)), "a newer one was forgotten: {ran:?}");
        for thread in 0..2 {
            let own: Vec<_> = ran.iter().filter(|job| **job / 10 == thread).collect();
            assert!(own.is_sorted_by(|one, next| one < next), "an older one came back: {ran:?}");
        }
    });
}

#[test]
fn shutdown_leaves_no_job_in_doubt() {
    explore(|runtime| {
        let (lease, count, mut threads) = (leader(&runtime), Arc::<Count>::default(), Threads::default());
        for thread in 0..2 {
            let (lease, count) = (lease.clone(), count.clone());
            threads.start(move || count.try_all(&lease, 3 * thread..3 * thread + 3));
        }
        let returned = {
            let lease = lease.clone();
            let after = shuttle::rand::thread_rng().gen_range(0..10);
            runtime.spawn(async move {
                for _ in 0..after {
                    tokio::task::yield_now().await;
                }
                lease.shutdown(TERM).await
            })
        };
        turn_until(&runtime, || threads.are_over() && returned.is_finished());
        threads.join();
        // A job whose key was handed back must not run later.
        settle(&runtime);
        let returned = runtime.block_on(returned).unwrap().len();
        assert_eq!(count.ran() + count.refused() + returned, 6, "done, refused or handed back");
        assert_eq!(lease.try_work(0, |_| async { Outcome::Written }), Err(LeaseClosed::ShutDown));
        assert_eq!(lease.status().closed, Some(LeaseClosed::ShutDown));
        assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    });
}

#[test]
fn last_handle_ends_the_driver_on_any_thread() {
    explore(|runtime| {
        let (lease, count, mut threads) = (leader(&runtime), Arc::<Count>::default(), Threads::default());
        let statuses = lease.subscribe();
        for thread in 0..2 {
            let (lease, count) = (lease.clone(), count.clone());
            threads.start(move || count.try_all(&lease, 2 * thread..2 * thread + 2));
        }
        drop(lease);
        let jobs = || Arc::strong_count(&count) - 1;
        turn_until(&runtime, || {
            threads.are_over() && jobs() == 0 && runtime.metrics().num_alive_tasks() == 0
        });
        threads.join();
        assert_eq!(statuses.borrow().closed, Some(LeaseClosed::ShutDown));
    });
}

#[test]
fn death_of_the_runtime_is_reported_afterwards() {
    explore(|runtime| {
        let (lease, count, mut threads) = (leader(&runtime), Arc::<Count>::default(), Threads::default());
        for thread in 0..2 {
            let (lease, count) = (lease.clone(), count.clone());
            threads.start(move || count.try_all(&lease, 2 * thread..2 * thread + 2));
        }
        for _ in 0..2 {
            settle(&runtime);
            thread::yield_now();
        }
        drop(runtime);
        assert_eq!(lease.status().closed, Some(LeaseClosed::DriverDied));
        assert_eq!(lease.try_work(0, |_| async { Outcome::Written }), Err(LeaseClosed::DriverDied));
        threads.join();
        let snapshot = lease.snapshot();
        let left = snapshot.pending + snapshot.in_flight;
        assert_eq!(count.ran() + count.refused() + left, 4);
    });
}

#[test]
fn statuses_come_in_order_and_last_is_true() {
    explore(|runtime| {
        let (lease, count, mut threads) = (leader(&runtime), Arc::<Count>::default(), Threads::default());
        for thread in 0..2 {
            let (lease, count) = (lease.clone(), count.clone());
            threads.start(move || {
                lease.extend(&7);
                count.try_all(&lease, thread..thread + 1);
                lease.expire();
            });
        }
        let mut before = lease.status();
        turn_until(&runtime, || {
            let status = lease.status();
            assert!(status.role_generation >= before.role_generation && status.epoch >= before.epoch);
            before = status;
            threads.are_over() && count.ran() == 2
        });
        settle(&runtime);
        threads.join();
        let (status, snapshot) = (lease.status(), lease.snapshot());
        assert_eq!(status.is_leader, lease.is_leader());
        assert_eq!(status.role == Role::Leader, snapshot.counters.won > snapshot.counters.lost);
        assert_eq!(status.epoch, snapshot.counters.won);
        let ended = runtime.spawn(async move { lease.shutdown(TERM).await });
        turn_until(&runtime, || ended.is_finished());
    });
}

#[test]
fn attempt_always_learns_that_its_role_was_lost() {
    explore(|runtime| {
        let (lease, mut threads) = (leader(&runtime), Threads::default());
        let (ended, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (tries, is_ended, finishes) = (lease.clone(), ended.clone(), done.clone());
        threads.start(move || {
            let job = move |attempt: Attempt<usize>| {
                let (led, done) = (!is_ended.load(SeqCst), finishes.clone());
                async move {
                    if led {
                        attempt.cancelled().await;
                    }
                    done.store(true, SeqCst);
                    Outcome::Unchanged
                }
            };
            tries.try_work(0, job).unwrap();
        });
        let deposes = lease.clone();
        threads.start(move || {
            deposes.observe(&0);
            switch();
            // Only from now on may an attempt start that is not a leader's.
            ended.store(true, SeqCst);
            deposes.expire();
        });
        turn_until(&runtime, || threads.are_over() && done.load(SeqCst));
        threads.join();
    });
}

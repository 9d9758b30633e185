//! The one tokio task that drives a lease: it reads the [`clock`](crate::clock), sleeps, runs
//! attempts and feeds their outcomes back.
//!
//! ```text
//!    handles (any thread) ──lock──> State { engine, ... } <──lock── driver ──first poll──> finished immediately (most
//!          │                                                           │                   writes to a cache or channel)
//!          └──────────── wake, if the deadline moved nearer ──────────>└──still pending──> a task of its own
//! ```
//!
//! An attempt is polled once in place, and only one that is not ready then costs a task. Jobs must
//! therefore not block the thread, as everywhere in tokio.

mod attempt;
mod election;
mod following;
mod panic;
mod roles;
mod shared;
mod stall;

use std::{
    future::{pending, poll_fn},
    hash::Hash,
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use tokio::{
    task::{JoinSet, unconstrained},
    time::{Sleep, sleep},
};
use tokio_util::sync::CancellationToken;

pub use self::attempt::{Attempt, limit_retries};
use self::{
    panic::catch,
    shared::{Phase, Run},
};
pub(crate) use self::{
    panic::{Contained, message as panic_message},
    shared::{BoxedJob, RosterLink, Shared},
};
use crate::{
    clock::MAX_SLEEP,
    engine::{AttemptId, Start, Timestamp, config::LeaseConfig, outcome::Verdict},
    status::LeaseClosed,
    store::Fence,
};

/// How many attempts the driver takes under one lock.
const BATCH: usize = 64;

/// How many times the driver looks at the engine before it lets other tasks run.
const POLLS_PER_WAKE: usize = 16;

/// Starts a driver on a runtime.
pub(crate) fn spawn<K>(config: LeaseConfig, runtime: &tokio::runtime::Handle) -> Arc<Shared<K>>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    let shared = Arc::new(Shared::new(config));
    runtime.spawn(Driver::new(shared.clone()).run());
    shared
}

type Ready<K> = (Start<K, BoxedJob<K>>, Arc<CancellationToken>);

struct Driver<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
    tasks: JoinSet<Finished<K>>,
    /// Attempts to start, each with the token of the role in which it does, and the fence that they
    /// carry.
    ready: Vec<Ready<K>>,
    fence: Option<Arc<Fence>>,
    /// Where the next attempt is polled first.
    run: Run,
    finished: Vec<Finished<K>>,
    /// Jobs that are no longer needed. They are users' closures, so they are dropped outside of the
    /// lock.
    finished_jobs: Vec<BoxedJob<K>>,
    /// When the timer fires; [`Timestamp::MAX`] if it is not set.
    timer_at: Timestamp,
    closed: LeaseClosed,
}

/// The next step of the driver.
enum Next {
    /// Start the attempts that are ready.
    Run,
    /// Sleep, after setting the timer to this time if there is one.
    Sleep(Option<Timestamp>),
    /// Wait for the attempts in flight.
    Drain,
    Stop,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Driver<K> {
    fn new(shared: Arc<Shared<K>>) -> Self {
        Self {
            shared,
            tasks: JoinSet::new(),
            ready: Vec::with_capacity(BATCH),
            fence: None,
            run: empty_run(),
            finished: Vec::with_capacity(BATCH),
            finished_jobs: Vec::with_capacity(BATCH),
            timer_at: Timestamp::MAX,
            closed: LeaseClosed::DriverDied,
        }
    }

    /// Runs the task. Every event that may need the driver wakes it, and each time it looks at
    /// everything.
    async fn run(mut self) {
        let mut timer = pin!(sleep(MAX_SLEEP));
        poll_fn(|cx| self.poll(cx, timer.as_mut())).await;
        // A write that was sent is never cut off: it may succeed all the same, and then nobody
        // would know.
        self.tasks.detach_all();
        self.closed = LeaseClosed::ShutDown;
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<()> {
        // One clock reading per wake. An attempt that completes immediately is dated slightly
        // early, which shortens its lease: the safe direction.
        let now = self.shared.now();
        for _ in 0..POLLS_PER_WAKE {
            let next = self.visit_engine(now, cx.waker());
            self.finished_jobs.clear();
            match next {
                Next::Run => {
                    self.start_attempts(cx);
                    // Tasks are polled here too: a finished attempt must not wait until nothing is
                    // left to start.
                    let _ = self.poll_tasks(cx);
                }
                Next::Sleep(set) => {
                    if let Some(until) = set {
                        timer.as_mut().reset(self.shared.moment(until).alarm());
                    }
                    // A timer that was not set anew still knows the waker. It must have seen it, so
                    // the poll is outside of tokio's cooperative budget: the first polls of
                    // attempts may have spent that, and then a timer returns without a look at the
                    // waker.
                    if set.is_some() && Pin::new(&mut unconstrained(timer.as_mut())).poll(cx).is_ready() {
                        self.timer_at = Timestamp::MAX;
                    } else if self.poll_tasks(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Next::Drain => ready!(self.poll_tasks(cx)),
                Next::Stop => return Poll::Ready(()),
            }
        }
        // A stream of jobs that finish immediately must not keep the runtime's other tasks waiting.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Collects the attempts that have finished on tasks of their own; ready if there are any.
    fn poll_tasks(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Without budget the set returns early, but wakes the driver to poll it again.
        while !self.tasks.is_empty()
            && let Poll::Ready(Some(joined)) = self.tasks.poll_join_next(cx)
        {
            // No join fails, and so no key waits for one: `Running::poll` catches every panic and
            // leaves nothing to drop, and nobody aborts these tasks.
            self.finished.extend(joined.ok());
        }
        if self.finished.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Visits the engine under one lock: feeds outcomes in, takes attempts out, and decides the
    /// next step.
    fn visit_engine(&mut self, now: Timestamp, waker: &Waker) -> Next {
        let shared = &*self.shared;
        let mut guard = shared.lock();
        let state = &mut *guard;
        // A task keeps its waker as a rule, and a clone costs more than the comparison.
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        for Finished { id, job, result } in self.finished.drain(..) {
            let job = match result {
                Ok(verdict) => {
                    tracing::trace!(
                        lease = %shared.name, attempt = ?id, outcome = ?verdict.outcome, next = ?verdict.next,
                        "an attempt finished",
                    );
                    let kept_failing = state.engine.counters().kept_failing;
                    let job = state.engine.handle_outcome(now, id, verdict, job);
                    if state.engine.counters().kept_failing > kept_failing {
                        tracing::warn!(
                            lease = %shared.name, attempt = ?id,
                            "a job keeps failing; it is tried again at the retry interval",
                        );
                    }
                    job
                }
                Err(panic) => {
                    tracing::error!(
                        lease = %shared.name, attempt = ?id, panic,
                        "a job panicked; it runs again after the retry interval",
                    );
                    state.engine.handle_panic(now, id, job)
                }
            };
            self.finished_jobs.extend(job);
        }
        if state.phase == Phase::Running && state.stall.look(now, &state.engine) {
            let engine = &state.engine;
            let oldest = engine.oldest_pending().and_then(|(key, _)| engine.explain(now, key));
            tracing::warn!(
                lease = %shared.name,
                pending = engine.len(),
                in_flight = engine.in_flight(),
                failing = engine.failing(),
                oldest = oldest.map(tracing::field::display),
                "nothing succeeds although something is wanted",
            );
        }
        let lost = shared.take_status(state, now);
        let status = state.poll_status();
        let next = match state.phase {
            Phase::Running => {
                state.poll_roster(now);
                // The batch is bounded so that handles on other threads do not wait long for the
                // lock.
                while self.ready.len() < BATCH
                    && let Some(start) = state.engine.poll_attempt(now)
                {
                    tracing::trace!(
                        lease = %shared.name, attempt = ?start.id, number = start.number, epoch = start.epoch,
                        "an attempt starts",
                    );
                    // Read under the same lock.
                    let role_token = state.roles.token(start.shard).clone();
                    self.ready.push((start, role_token));
                }
                if self.ready.is_empty() {
                    let timeout = state.timeout(now).unwrap_or(Timestamp::MAX);
                    // The timer is set only if it would fire too late. Each write moves the end of
                    // the lease, and it is cheaper to wake once too often per term than to set the
                    // timer each time. After a suspension the timer has not fired yet although its
                    // time has come, so it is set anew.
                    if self.timer_at <= now {
                        self.timer_at = Timestamp::MAX;
                    }
                    let set = (timeout < self.timer_at).then(|| timeout.min(now + MAX_SLEEP));
                    self.timer_at = set.unwrap_or(self.timer_at);
                    state.wake_at = self.timer_at;
                    Next::Sleep(set)
                } else {
                    // The driver is awake: it looks at the engine again after these attempts.
                    state.wake_at = Timestamp::ZERO;
                    self.fence.clone_from(&state.fence);
                    Next::Run
                }
            }
            Phase::Draining if self.tasks.is_empty() => Next::Stop,
            Phase::Draining => Next::Drain,
            Phase::Abandoned | Phase::Closed(_) => Next::Stop,
        };
        drop(guard);
        shared.publish(status);
        // A cancellation wakes tasks of users, so it comes after the lock is released.
        lost.iter().for_each(|token| token.cancel());
        next
    }

    fn start_attempts(&mut self, cx: &mut Context<'_>) {
        for (Start { id, key, mut job, number, epoch, deadline, .. }, role_token) in self.ready.drain(..) {
            let (deadline, fence) = (self.shared.moment(deadline), self.fence.clone());
            let attempt = Attempt::new(key, number, epoch, deadline, role_token, fence);
            let first_poll = |run: &mut Run| {
                job(attempt, run);
                run.poll(cx)
            };
            match poll_run(&mut self.run, first_poll) {
                Poll::Ready(result) => self.finished.push(Finished { id, job, result }),
                Poll::Pending => {
                    let run = mem::replace(&mut self.run, empty_run());
                    self.tasks.spawn(Running { id, job: Some(job), run });
                }
            }
        }
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for Driver<K> {
    /// Publishes the end however it comes, also when the runtime drops the task.
    fn drop(&mut self) {
        if self.closed == LeaseClosed::DriverDied {
            tracing::warn!(lease = %self.shared.name, "the driver's task was dropped; the lease runs no more jobs");
        }
        self.shared.close(self.closed);
    }
}

/// An attempt in flight. It owns its job, which comes back with the outcome.
struct Running<K> {
    id: AttemptId,
    job: Option<BoxedJob<K>>,
    run: Run,
}

struct Finished<K> {
    id: AttemptId,
    job: BoxedJob<K>,
    /// The verdict, or the message of a panic.
    result: Result<Verdict, String>,
}

impl<K> Future for Running<K> {
    type Output = Finished<K>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Finished<K>> {
        let result = ready!(poll_run(&mut self.run, |run| run.poll(cx)));
        let job = self.job.take().expect("a future is not polled after it is ready");
        Poll::Ready(Finished { id: self.id, job, result })
    }
}

/// Polls a run. One that is ready has dropped all that was the user's, and only its memory is left.
fn poll_run(run: &mut Run, poll: impl FnOnce(&mut Run) -> Poll<Verdict>) -> Poll<Result<Verdict, String>> {
    match catch(|| poll(run)) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => {
            // A destructor may panic as well, so it runs after the first panic has ended.
            let _ = catch(|| *run = empty_run());
            Poll::Ready(Err(panic))
        }
    }
}

/// Returns a run without memory of its own.
fn empty_run() -> Run {
    Run::new(pending())
}

#[cfg(test)]
mod tests;

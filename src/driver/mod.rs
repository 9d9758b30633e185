//! The one tokio task that moves a lease: it reads the [`clock`](crate::clock), sleeps, runs attempts and feeds their outcomes back.
//!
//! ```text
//!    handles (any thread) ──lock──> State { engine, ... } <──lock── driver ──first poll──> done at once (most writes to a
//!          │                                                           │                   cache or a channel are)
//!          └──────────── wake, if the deadline moved nearer ──────────>└──still pending──> a task of its own
//! ```
//!
//! An attempt is polled once in place; only one that is not ready then costs a task. Works therefore must not block the
//! thread, as nowhere in tokio.

mod attempt;
mod shared;

use std::{
    any::Any,
    future::poll_fn,
    hash::Hash,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use futures_util::future::BoxFuture;
use tokio::{
    task::JoinSet,
    time::{Sleep, sleep},
};
use tokio_util::sync::CancellationToken;

pub use self::attempt::{Attempt, limit_retries};
use self::shared::Phase;
pub(crate) use self::shared::{BoxedWork, Shared};
use crate::{
    clock::MAX_SLEEP,
    engine::{AttemptId, Start, Timestamp, config::LeaseConfig, outcome::Verdict},
    status::LeaseClosed,
    store::Fence,
};

/// How many attempts are taken under one lock.
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

/// The task.
struct Driver<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
    tasks: JoinSet<Finished<K>>,
    /// Attempts to start, and the token of the role_token that they belong to.
    ready: Vec<Start<K, BoxedWork<K>>>,
    role_token: Arc<CancellationToken>,
    fence: Option<Arc<Fence>>,
    finished: Vec<Finished<K>>,
    /// Works that are not needed any more: dropped outside of the lock, because they are the user's.
    finished_jobs: Vec<BoxedWork<K>>,
    /// When the timer timer_at; never, if it is not set.
    timer_at: Timestamp,
    ended: LeaseClosed,
}

/// What the driver does next.
enum Next {
    Run,
    /// Until the timer timer_at, which may be to be set.
    Sleep(Option<Timestamp>),
    Drain,
    Stop,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Driver<K> {
    fn new(shared: Arc<Shared<K>>) -> Self {
        Self {
            shared,
            tasks: JoinSet::new(),
            ready: Vec::with_capacity(BATCH),
            role_token: Arc::default(),
            fence: None,
            finished: Vec::with_capacity(BATCH),
            finished_jobs: Vec::with_capacity(BATCH),
            timer_at: Timestamp::MAX,
            ended: LeaseClosed::DriverDied,
        }
    }

    /// The task. Everything that may need the driver wakes it, and each time it looks at everything.
    async fn run(mut self) {
        let mut timer = pin!(sleep(MAX_SLEEP));
        poll_fn(|cx| self.poll(cx, timer.as_mut())).await;
        // A write that was sent is never cut off: that would only turn a landed write into an unknown one.
        self.tasks.detach_all();
        self.ended = LeaseClosed::ShutDown;
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<()> {
        // Once per wake. Attempts that end at once count from here, too; that is the pessimistic side of their lease.
        let now = self.shared.now();
        for _ in 0..POLLS_PER_WAKE {
            let next = self.visit_engine(now, cx.waker());
            self.finished_jobs.clear();
            match next {
                Next::Run => {
                    self.start_attempts(cx);
                    // Also while there is always something to run: an attempt that has ended must not wait for a pause.
                    let _ = self.poll_tasks(cx);
                }
                Next::Sleep(set) => {
                    if let Some(until) = set {
                        timer.as_mut().reset(self.shared.moment(until).alarm());
                    }
                    // It knows whom to wake already, unless it was set.
                    if set.is_some() && timer.as_mut().poll(cx).is_ready() {
                        self.timer_at = Timestamp::MAX;
                    } else if self.poll_tasks(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Next::Drain => ready!(self.poll_tasks(cx)),
                Next::Stop => return Poll::Ready(()),
            }
        }
        // A stream of works that are ready at once must not keep the other tasks of the runtime waiting.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes in the attempts that have ended on tasks of their own; ready if there were any.
    fn poll_tasks(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.tasks.is_empty()
            && let Poll::Ready(Some(joined)) = self.tasks.poll_join_next(cx)
        {
            // Panics were caught, and nobody aborts them.
            self.finished.extend(joined.ok());
        }
        if self.finished.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// One visit to the engine: outcomes in, attempts out.
    fn visit_engine(&mut self, now: Timestamp, waker: &Waker) -> Next {
        let shared = &*self.shared;
        let mut guard = shared.lock();
        let state = &mut *guard;
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        for Finished { id, work, result } in self.finished.drain(..) {
            let finished_jobs = match result {
                Ok(verdict) => {
                    tracing::trace!(
                        lease = %shared.name, attempt = ?id, outcome = ?verdict.outcome, next = ?verdict.next,
                        "an attempt ended",
                    );
                    state.engine.handle_outcome(now, id, verdict, work)
                }
                Err(panic) => {
                    tracing::error!(
                        lease = %shared.name, attempt = ?id, panic = message(&*panic),
                        "a work panicked; it is tried again at the retry interval",
                    );
                    state.engine.handle_panic(now, id, work)
                }
            };
            self.finished_jobs.extend(finished_jobs);
        }
        let lost = shared.publish(state, now);
        let next = match state.phase {
            Phase::Running => {
                while self.ready.len() < BATCH
                    && let Some(start) = state.engine.poll_attempt(now)
                {
                    tracing::trace!(
                        lease = %shared.name, attempt = ?start.id, number = start.number, epoch = start.epoch,
                        "an attempt ready",
                    );
                    self.ready.push(start);
                }
                if self.ready.is_empty() {
                    let timeout = state.engine.poll_timeout().unwrap_or(Timestamp::MAX);
                    // Set the timer only if it would ring too late: at each write the lease ends later, and it is cheaper
                    // to wake once too often per term than to set it each time. After a suspension it has not rung yet, though
                    // its time has come.
                    if self.timer_at <= now {
                        self.timer_at = Timestamp::MAX;
                    }
                    let set = (timeout < self.timer_at).then(|| timeout.min(now + MAX_SLEEP));
                    self.timer_at = set.unwrap_or(self.timer_at);
                    state.wake_at = self.timer_at;
                    Next::Sleep(set)
                } else {
                    state.wake_at = Timestamp::ZERO;
                    self.role_token.clone_from(&state.role_token);
                    self.fence.clone_from(&state.fence);
                    Next::Run
                }
            }
            Phase::Draining if self.tasks.is_empty() => Next::Stop,
            Phase::Draining => Next::Drain,
            Phase::Abandoned | Phase::Closed(_) => Next::Stop,
        };
        drop(guard);
        if let Some(lost) = lost {
            lost.cancel();
        }
        next
    }

    fn start_attempts(&mut self, cx: &mut Context<'_>) {
        for start in self.ready.drain(..) {
            let deadline = self.shared.moment(start.deadline);
            let (role_token, fence) = (self.role_token.clone(), self.fence.clone());
            let attempt = Attempt::new(start.key, start.number, start.epoch, deadline, role_token, fence);
            match Running::start(start.id, start.work, attempt) {
                Err(finished) => self.finished.push(finished),
                Ok(mut running) => match Pin::new(&mut running).poll(cx) {
                    Poll::Ready(finished) => self.finished.push(finished),
                    Poll::Pending => drop(self.tasks.spawn(running)),
                },
            }
        }
    }
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Drop for Driver<K> {
    /// However the task ends, also with its runtime, those who wait for it learn it.
    fn drop(&mut self) {
        if self.ended == LeaseClosed::DriverDied {
            tracing::warn!(lease = %self.shared.name, "the driver's task is gone; the lease does no more work");
        }
        self.shared.end(self.ended);
    }
}

/// An attempt on its way; owns its work, which comes back with the outcome.
struct Running<K> {
    id: AttemptId,
    work: Option<BoxedWork<K>>,
    future: BoxFuture<'static, Verdict>,
}

struct Finished<K> {
    id: AttemptId,
    work: BoxedWork<K>,
    result: Result<Verdict, Box<dyn Any + Send>>,
}

impl<K> Running<K> {
    fn start(id: AttemptId, mut work: BoxedWork<K>, attempt: Attempt<K>) -> Result<Self, Finished<K>> {
        match catch_unwind(AssertUnwindSafe(|| work(attempt))) {
            Ok(future) => Ok(Self { id, work: Some(work), future }),
            Err(panic) => Err(Finished { id, work, result: Err(panic) }),
        }
    }
}

impl<K> Future for Running<K> {
    type Output = Finished<K>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Finished<K>> {
        let result = match catch_unwind(AssertUnwindSafe(|| self.future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(verdict)) => Ok(verdict),
            Err(panic) => Err(panic),
        };
        let work = self.work.take().expect("polled after it was ready");
        Poll::Ready(Finished { id: self.id, work, result })
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(not a text)")
}

#[cfg(test)]
mod tests;

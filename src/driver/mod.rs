//! The one tokio task that moves a lease: it reads the [`clock`], sleeps, runs attempts and feeds their outcomes back.
//!
//! ```text
//!    handles (any thread) ──lock──> State { engine, ... } <──lock── driver ──first poll──> done at once (most writes to a
//!          │                                                           │                   cache or a channel are)
//!          └──────────── wake, if the deadline moved nearer ──────────>└──still pending──> a task of its own
//! ```
//!
//! An attempt is polled once in place; only one that is not ready then costs a task. Works therefore must not block the
//! thread, as nowhere in tokio.

mod clock;

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
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::{Sleep, sleep},
};
use tokio_util::sync::CancellationToken;

use clock::NAP;

use crate::{
    config::Config,
    election::Leadership,
    engine::{AttemptId, Engine, Role, Start, Timestamp},
    error::Ended,
    feed::{Feed, Feeds},
    lease::Status,
    store::Fence,
    work::{Attempt, Verdict},
};

pub(crate) use clock::now;
#[cfg(test)]
pub(crate) use clock::tests::suspend;

pub use clock::Moment;

/// A work as the queue holds it.
pub(crate) type BoxedWork<K> = Box<dyn FnMut(Attempt<K>) -> BoxFuture<'static, Verdict> + Send>;

/// How many attempts are taken under one lock.
const BATCH: usize = 64;

/// How many times the driver looks at the engine before it lets other tasks run.
const TURNS: usize = 16;

/// What the handles and the driver share.
pub(crate) struct Shared<K> {
    name: String,
    origin: Moment,
    state: Mutex<State<K>>,
    status: watch::Sender<Status>,
}

pub(crate) struct State<K> {
    pub engine: Engine<K, BoxedWork<K>>,
    /// Fires when the current role is lost.
    reign: Arc<CancellationToken>,
    /// The driver looks again at this time by itself; zero while it is awake.
    armed: Timestamp,
    /// Wakes the driver. Called under the lock: it is the runtime's, and no code of users.
    waker: Option<Waker>,
    published: Status,
    feeds: Feeds,
    /// What attempts carry; and the task that follows the election.
    fence: Option<Arc<Fence>>,
    follower: Option<AbortHandle>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Running,
    /// No new attempts; those in flight may end.
    Draining,
    /// The driver doesn't wait for attempts any more.
    Abandoned,
    /// The driver is gone.
    Ended(Ended),
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Shared<K> {
    /// Starts a driver on the current runtime.
    pub fn spawn(config: Config, runtime: &tokio::runtime::Handle) -> Arc<Self> {
        let status = Status::default();
        let shared = Arc::new(Self {
            name: config.name.clone(),
            origin: Moment::now(),
            state: Mutex::new(State {
                engine: Engine::new(config),
                reign: Arc::default(),
                armed: Timestamp::ZERO,
                waker: None,
                published: status,
                feeds: Feeds::default(),
                fence: None,
                follower: None,
                phase: Phase::Running,
            }),
            status: watch::Sender::new(status),
        });
        runtime.spawn(Driver::new(shared.clone()).run());
        shared
    }

    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// All that threads share is behind this lock, so here is where their order can make a difference.
    pub fn lock(&self) -> MutexGuard<'_, State<K>> {
        #[cfg(test)]
        tests::switch();
        self.state.lock()
    }

    fn now(&self) -> Timestamp {
        self.timestamp(Moment::now())
    }

    fn timestamp(&self, at: Moment) -> Timestamp {
        Timestamp::ZERO + (at - self.origin)
    }

    fn moment(&self, at: Timestamp) -> Moment {
        self.origin + (at - Timestamp::ZERO)
    }

    /// Queues work. What it replaced is dropped outside of the lock: it is a user's closure.
    pub fn try_work(&self, key: K, work: BoxedWork<K>) -> Result<(), Ended> {
        let mut state = self.lock();
        if let Some(ended) = state.closed() {
            return Err(ended);
        }
        let mut asked = None;
        let now = || *asked.insert(self.now());
        let replaced = state.engine.handle_try_at(now, key, work);
        // Whatever may run earlier by this needed the time.
        if let Some(now) = asked {
            state.wake_if_needed(now);
        }
        drop(state);
        drop(replaced);
        Ok(())
    }

    /// Lets `event` change the engine, and does what follows from the change: tells subscribers, cancels attempts whose
    /// role was lost, and wakes the driver if it would sleep too long.
    ///
    /// What `event` returns is dropped by the caller, outside of the lock: it may be a user's closure.
    pub fn handle<R>(
        &self,
        event: impl FnOnce(&mut Engine<K, BoxedWork<K>>, Timestamp) -> R,
    ) -> Result<R, Ended> {
        let mut state = self.lock();
        if let Some(ended) = state.closed() {
            return Err(ended);
        }
        // Read under the lock, so that the engine sees time in order.
        let now = self.now();
        let result = event(&mut state.engine, now);
        let lost = self.publish(&mut state, now);
        state.wake_if_needed(now);
        drop(state);
        if let Some(lost) = lost {
            lost.cancel();
        }
        Ok(result)
    }

    /// Whether our work holds the lease right now.
    pub fn is_leader(&self) -> bool {
        let state = self.lock();
        !matches!(state.phase, Phase::Ended(_)) && state.engine.is_leader(self.now())
    }

    /// How long the lease still lasts, whoever holds it.
    pub fn lease_remaining(&self, state: &State<K>) -> std::time::Duration {
        state.engine.lease_end() - self.now()
    }

    /// No new attempts from now on; the driver ends when those in flight have.
    pub fn drain(&self) {
        self.enter(Phase::Draining);
    }

    /// The driver ends now; attempts in flight are told to stop and left to themselves.
    pub fn abandon(&self) {
        self.enter(Phase::Abandoned);
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        match (state.phase, phase) {
            (Phase::Running, _) | (Phase::Draining, Phase::Abandoned) => state.phase = phase,
            _ => return,
        }
        state.wake();
    }

    /// Tells subscribers what changed. Returns the token to cancel if a role was lost.
    fn publish(&self, state: &mut State<K>, now: Timestamp) -> Option<Arc<CancellationToken>> {
        let before = state.published;
        let reign = state.engine.reign();
        let (is_leader, decided) = (state.engine.is_leader(now), state.engine.decided());
        if (reign, is_leader, decided) == (before.reign, before.is_leader, before.decided) {
            return None;
        }
        let (role, epoch) = (state.engine.role(), state.engine.epoch());
        let status = Status { role, is_leader, epoch, decided, reign, ..before };
        state.published = status;
        self.status.send_replace(status);
        if reign == before.reign {
            return None;
        }
        tracing::info!(
            lease = %self.name,
            role = ?status.role,
            epoch = status.epoch,
            tick = state.engine.tick(),
            lease_ms = (state.engine.lease_end() - now).as_millis() as u64,
            "the role changed",
        );
        (status.role == Role::Follower).then(|| std::mem::take(&mut state.reign))
    }

    /// What an election says now. With `fenced` attempts carry its fence.
    pub fn handle_leadership(&self, leadership: &Leadership, fenced: bool) -> Result<(), Ended> {
        let led = match leadership {
            Leadership::Leader { fence, until } => Some((fence, self.timestamp(*until))),
            _ => None,
        };
        // Before works run that need it. Without a leadership none does.
        if let Some((fence, _)) = led {
            self.lock().fence = fenced.then(|| Arc::new(fence.clone()));
        }
        self.handle(|engine, now| match led {
            Some((_, until)) => engine.handle_elected(now, until),
            None => engine.handle_not_elected(now),
        })
    }

    /// The task that follows an election, in the place of any other.
    pub fn set_follower(&self, follower: AbortHandle) {
        let mut state = self.lock();
        let before = match state.phase {
            Phase::Ended(_) => Some(follower),
            _ => state.follower.replace(follower),
        };
        drop(state);
        if let Some(before) = before {
            before.abort();
        }
    }

    pub fn add_feed(&self) -> u64 {
        let mut state = self.lock();
        let id = state.feeds.add();
        self.publish_feed(&mut state);
        id
    }

    pub fn set_feed(&self, id: u64, feed: Option<Feed>) {
        let mut state = self.lock();
        state.feeds.set(id, feed);
        self.publish_feed(&mut state);
    }

    fn publish_feed(&self, state: &mut State<K>) {
        let feed = state.feeds.worst();
        if feed != state.published.feed && !matches!(state.phase, Phase::Ended(_)) {
            state.published.feed = feed;
            self.status.send_replace(state.published);
        }
    }

    /// The driver's last words.
    fn end(&self, ended: Ended) {
        let mut state = self.lock();
        state.phase = Phase::Ended(ended);
        state.published = Status { is_leader: false, ended: Some(ended), ..state.published };
        let reign = state.reign.clone();
        let follower = state.follower.take();
        self.status.send_replace(state.published);
        drop(state);
        reign.cancel();
        if let Some(follower) = follower {
            follower.abort();
        }
    }
}

impl<K: Hash + Eq + Clone> State<K> {
    /// Wakes the driver if it would sleep too long; or sleeps too long already, because the machine was suspended.
    fn wake_if_needed(&mut self, now: Timestamp) {
        let too_late = |timeout| timeout < self.armed || self.armed <= now;
        if self.armed != Timestamp::ZERO && self.engine.poll_timeout().is_some_and(too_late) {
            self.wake();
        }
    }

    fn wake(&mut self) {
        self.armed = Timestamp::ZERO;
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Why no more work is taken, if so.
    fn closed(&self) -> Option<Ended> {
        match self.phase {
            Phase::Running => None,
            Phase::Draining | Phase::Abandoned => Some(Ended::ShutDown),
            Phase::Ended(ended) => Some(ended),
        }
    }
}

/// The task.
struct Driver<K: Hash + Eq + Clone + Send + Sync + 'static> {
    shared: Arc<Shared<K>>,
    tasks: JoinSet<Finished<K>>,
    /// Attempts to start, and the token of the reign that they belong to.
    starts: Vec<Start<K, BoxedWork<K>>>,
    reign: Arc<CancellationToken>,
    fence: Option<Arc<Fence>>,
    finished: Vec<Finished<K>>,
    /// Works that are not needed any more: dropped outside of the lock, because they are the user's.
    spent: Vec<BoxedWork<K>>,
    /// When the timer rings; never, if it is not set.
    rings: Timestamp,
    ended: Ended,
}

/// What the driver does next.
enum Turn {
    Run,
    /// Until the timer rings, which may be to be set.
    Sleep(Option<Timestamp>),
    Drain,
    Stop,
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Driver<K> {
    fn new(shared: Arc<Shared<K>>) -> Self {
        Self {
            shared,
            tasks: JoinSet::new(),
            starts: Vec::with_capacity(BATCH),
            reign: Arc::default(),
            fence: None,
            finished: Vec::with_capacity(BATCH),
            spent: Vec::with_capacity(BATCH),
            rings: Timestamp::MAX,
            ended: Ended::DriverDied,
        }
    }

    /// The task. Everything that may need the driver wakes it, and each time it looks at everything.
    async fn run(mut self) {
        let mut timer = pin!(sleep(NAP));
        poll_fn(|cx| self.poll(cx, timer.as_mut())).await;
        // A write that was sent is never cut off: that would only turn a landed write into an unknown one.
        self.tasks.detach_all();
        self.ended = Ended::ShutDown;
    }

    fn poll(&mut self, cx: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<()> {
        // Once per wake. Attempts that end at once count from here, too; that is the pessimistic side of their lease.
        let now = self.shared.now();
        for _ in 0..TURNS {
            let turn = self.turn(now, cx.waker());
            self.spent.clear();
            match turn {
                Turn::Run => {
                    self.start_attempts(cx);
                    // Also while there is always something to run: an attempt that has ended must not wait for a pause.
                    let _ = self.poll_tasks(cx);
                }
                Turn::Sleep(set) => {
                    if let Some(until) = set {
                        timer.as_mut().reset(self.shared.moment(until).alarm());
                    }
                    // It knows whom to wake already, unless it was set.
                    if set.is_some() && timer.as_mut().poll(cx).is_ready() {
                        self.rings = Timestamp::MAX;
                    } else if self.poll_tasks(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                Turn::Drain => ready!(self.poll_tasks(cx)),
                Turn::Stop => return Poll::Ready(()),
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
    fn turn(&mut self, now: Timestamp, waker: &Waker) -> Turn {
        let shared = &*self.shared;
        let mut guard = shared.lock();
        let state = &mut *guard;
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        for Finished { id, work, result } in self.finished.drain(..) {
            let spent = match result {
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
            self.spent.extend(spent);
        }
        let lost = shared.publish(state, now);
        let turn = match state.phase {
            Phase::Running => {
                while self.starts.len() < BATCH
                    && let Some(start) = state.engine.poll_attempt(now)
                {
                    tracing::trace!(
                        lease = %shared.name, attempt = ?start.id, number = start.number, epoch = start.epoch,
                        "an attempt starts",
                    );
                    self.starts.push(start);
                }
                if self.starts.is_empty() {
                    let timeout = state.engine.poll_timeout().unwrap_or(Timestamp::MAX);
                    // Set the timer only if it would ring too late: at each write the lease ends later, and it is cheaper
                    // to wake once too often per term than to set it each time. After a suspension it has not rung yet, though
                    // its time has come.
                    if self.rings <= now {
                        self.rings = Timestamp::MAX;
                    }
                    let set = (timeout < self.rings).then(|| timeout.min(now + NAP));
                    self.rings = set.unwrap_or(self.rings);
                    state.armed = self.rings;
                    Turn::Sleep(set)
                } else {
                    state.armed = Timestamp::ZERO;
                    self.reign.clone_from(&state.reign);
                    self.fence.clone_from(&state.fence);
                    Turn::Run
                }
            }
            Phase::Draining if self.tasks.is_empty() => Turn::Stop,
            Phase::Draining => Turn::Drain,
            Phase::Abandoned | Phase::Ended(_) => Turn::Stop,
        };
        drop(guard);
        if let Some(lost) = lost {
            lost.cancel();
        }
        turn
    }

    fn start_attempts(&mut self, cx: &mut Context<'_>) {
        for start in self.starts.drain(..) {
            let deadline = self.shared.moment(start.deadline);
            let (reign, fence) = (self.reign.clone(), self.fence.clone());
            let attempt = Attempt::new(start.key, start.number, start.epoch, deadline, reign, fence);
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
        if self.ended == Ended::DriverDied {
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

//! What the handles and the driver share, behind one lock.

use std::{hash::Hash, sync::Arc, task::Waker, time::Duration};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use super::attempt::Attempt;
use crate::{
    clock::Moment,
    engine::{Engine, Role, Timestamp, config::Config, outcome::Verdict},
    status::{Ended, Feed, Feeds, Status},
    store::Fence,
};

/// A work as the queue holds it.
pub(crate) type BoxedWork<K> = Box<dyn FnMut(Attempt<K>) -> BoxFuture<'static, Verdict> + Send>;

/// What the handles and the driver share.
pub(crate) struct Shared<K> {
    pub name: String,
    origin: Moment,
    state: Mutex<State<K>>,
    status: watch::Sender<Status>,
}

pub(crate) struct State<K> {
    pub engine: Engine<K, BoxedWork<K>>,
    /// Fires when the current role is lost.
    pub reign: Arc<CancellationToken>,
    /// The driver looks again at this time by itself; zero while it is awake.
    pub armed: Timestamp,
    /// Wakes the driver. Called under the lock: it is the runtime's, and no code of users.
    pub waker: Option<Waker>,
    pub published: Status,
    feeds: Feeds,
    /// What attempts carry; and the task that follows the election.
    pub fence: Option<Arc<Fence>>,
    follower: Option<AbortHandle>,
    pub(super) phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Running,
    /// No new attempts; those in flight may end.
    Draining,
    /// The driver doesn't wait for attempts any more.
    Abandoned,
    /// The driver is gone.
    Ended(Ended),
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Shared<K> {
    pub fn new(config: Config) -> Self {
        let status = Status::default();
        Self {
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
        }
    }

    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// All that threads share is behind this lock, so here is where their order can make a difference.
    pub fn lock(&self) -> MutexGuard<'_, State<K>> {
        #[cfg(test)]
        super::tests::switch();
        self.state.lock()
    }

    pub fn now(&self) -> Timestamp {
        self.timestamp(Moment::now())
    }

    pub fn timestamp(&self, at: Moment) -> Timestamp {
        Timestamp::ZERO + (at - self.origin)
    }

    pub fn moment(&self, at: Timestamp) -> Moment {
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
    pub fn lease_remaining(&self, state: &State<K>) -> Duration {
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
    pub fn publish(&self, state: &mut State<K>, now: Timestamp) -> Option<Arc<CancellationToken>> {
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

    /// Until when an election made this replica leader, and the fence of attempts; `None` if it did not.
    pub fn handle_election(&self, led: Option<(Moment, Option<Fence>)>) -> Result<(), Ended> {
        let Some((until, fence)) = led else {
            return self.handle(|engine, now| engine.handle_not_elected(now));
        };
        // Before any attempt runs that needs it.
        self.lock().fence = fence.map(Arc::new);
        let until = self.timestamp(until);
        self.handle(|engine, now| engine.handle_elected(now, until))
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
    pub fn end(&self, ended: Ended) {
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

//! What the handles and the driver share, behind one lock.

use std::{hash::Hash, sync::Arc, task::Waker, time::Duration};

use futures_util::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::watch, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use super::attempt::Attempt;
use crate::{
    clock::Moment,
    engine::{Engine, Role, Timestamp, config::LeaseConfig, outcome::Verdict},
    status::{LeaseClosed, Status, WatchState, WatchStates},
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
    pub role_token: Arc<CancellationToken>,
    /// The driver looks again at this time by itself; zero while it is awake.
    pub wake_at: Timestamp,
    /// Wakes the driver. Called under the lock: it is the runtime's, and no code of users.
    pub waker: Option<Waker>,
    pub published: Status,
    watches: WatchStates,
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
    Closed(LeaseClosed),
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Shared<K> {
    pub fn new(config: LeaseConfig) -> Self {
        let status = Status::default();
        Self {
            name: config.name.clone(),
            origin: Moment::now(),
            state: Mutex::new(State {
                engine: Engine::new(config),
                role_token: Arc::default(),
                wake_at: Timestamp::ZERO,
                waker: None,
                published: status,
                watches: WatchStates::default(),
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
    pub fn try_work(&self, key: K, work: BoxedWork<K>) -> Result<(), LeaseClosed> {
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
    ) -> Result<R, LeaseClosed> {
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
        !matches!(state.phase, Phase::Closed(_)) && state.engine.is_leader(self.now())
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
        let role_generation = state.engine.role_generation();
        let (is_leader, decided) = (state.engine.is_leader(now), state.engine.decided());
        if (role_generation, is_leader, decided) == (before.role_generation, before.is_leader, before.decided)
        {
            return None;
        }
        let (role, epoch) = (state.engine.role(), state.engine.epoch());
        let status = Status { role, is_leader, epoch, decided, role_generation, ..before };
        state.published = status;
        self.status.send_replace(status);
        if role_generation == before.role_generation {
            return None;
        }
        tracing::info!(
            lease = %self.name,
            role = ?status.role,
            epoch = status.epoch,
            tick = state.engine.losses(),
            lease_ms = (state.engine.lease_end() - now).as_millis() as u64,
            "the role changed",
        );
        (status.role == Role::Follower).then(|| std::mem::take(&mut state.role_token))
    }

    /// Until when an election made this replica leader, and the fence of attempts; `None` if it did not.
    pub fn handle_election(&self, led: Option<(Moment, Option<Fence>)>) -> Result<(), LeaseClosed> {
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
            Phase::Closed(_) => Some(follower),
            _ => state.follower.replace(follower),
        };
        drop(state);
        if let Some(before) = before {
            before.abort();
        }
    }

    pub fn add_watch(&self) -> u64 {
        let mut state = self.lock();
        let id = state.watches.add();
        self.publish_watch(&mut state);
        id
    }

    pub fn set_watch(&self, id: u64, watch: Option<WatchState>) {
        let mut state = self.lock();
        state.watches.set(id, watch);
        self.publish_watch(&mut state);
    }

    fn publish_watch(&self, state: &mut State<K>) {
        let watch = state.watches.worst();
        if watch != state.published.watch && !matches!(state.phase, Phase::Closed(_)) {
            state.published.watch = watch;
            self.status.send_replace(state.published);
        }
    }

    /// The driver's last words.
    pub fn end(&self, ended: LeaseClosed) {
        let mut state = self.lock();
        state.phase = Phase::Closed(ended);
        state.published = Status { is_leader: false, closed: Some(ended), ..state.published };
        let role_token = state.role_token.clone();
        let follower = state.follower.take();
        self.status.send_replace(state.published);
        drop(state);
        role_token.cancel();
        if let Some(follower) = follower {
            follower.abort();
        }
    }
}

impl<K: Hash + Eq + Clone> State<K> {
    /// Wakes the driver if it would sleep too long; or sleeps too long already, because the machine was suspended.
    fn wake_if_needed(&mut self, now: Timestamp) {
        let too_late = |timeout| timeout < self.wake_at || self.wake_at <= now;
        if self.wake_at != Timestamp::ZERO && self.engine.poll_timeout().is_some_and(too_late) {
            self.wake();
        }
    }

    fn wake(&mut self) {
        self.wake_at = Timestamp::ZERO;
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Why no more work is taken, if so.
    fn closed(&self) -> Option<LeaseClosed> {
        match self.phase {
            Phase::Running => None,
            Phase::Draining | Phase::Abandoned => Some(LeaseClosed::ShutDown),
            Phase::Closed(ended) => Some(ended),
        }
    }
}

//! The part of a lease that its handles and its driver share, behind one lock.

use std::{hash::Hash, sync::Arc, task::Waker};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{broadcast, mpsc, watch};
use tokio_util::sync::{CancellationToken, ReusableBoxFuture};

use super::{attempt::Attempt, following::Following, roles::Roles, stall::Stall};
use crate::{
    clock::Moment,
    engine::{Engine, Member, RosterChange, RosterRequest, Timestamp, config::LeaseConfig, outcome::Verdict},
    status::{LeaseClosed, Prefixes, SpawnError, Status, WatchState, WatchStates},
    store::Fence,
};

/// A job as the queue holds it. It places each attempt's run where the driver says.
pub(crate) type BoxedJob<K> = Box<dyn FnMut(Attempt<K>, &mut Run) + Send>;

/// The future of an attempt. One attempt after another uses the same memory if their futures are of
/// one size.
pub(crate) type Run = ReusableBoxFuture<'static, Verdict>;

pub(crate) struct Shared<K> {
    pub(super) name: String,
    /// The origin of the engine's timestamps.
    origin: Moment,
    state: Mutex<State<K>>,
    status: watch::Sender<Status>,
    roster_changes: broadcast::Sender<Arc<RosterChange>>,
}

pub(crate) struct State<K> {
    pub(crate) engine: Engine<K, BoxedJob<K>>,
    pub(super) roles: Roles,
    /// When the driver looks at the engine again by itself; zero while it is awake.
    pub(super) wake_at: Timestamp,
    /// Wakes the driver. It may be called under the lock, because it is code of the runtime, not of
    /// users.
    pub(super) waker: Option<Waker>,
    pub(super) stall: Stall,
    /// The status of now. Only the driver writes it into the channel: a caller that looks at the
    /// channel would wait for itself.
    current: Status,
    /// The channel has another status.
    unpublished: bool,
    watches: WatchStates,
    prefixes: Prefixes,
    /// The fence that attempts carry.
    pub(super) fence: Option<Arc<Fence>>,
    /// The task that keeps the roster, if there is one.
    roster: Option<RosterLink>,
    /// The election that is followed.
    pub(super) following: Following,
    /// Called once when the lease is closed, outside of the lock.
    when_closed: Vec<OnClose>,
    pub(super) phase: Phase,
}

/// The number of changes of the roster that a slow listener may fall behind.
const ROSTER_CHANGES: usize = 64;

/// The link to the task that keeps the roster.
pub(crate) struct RosterLink {
    pub(crate) requests: mpsc::UnboundedSender<RosterRequest>,
    /// Closed when the task has ended.
    pub(crate) ended: watch::Receiver<()>,
}

type OnClose = Box<dyn FnOnce(LeaseClosed) + Send>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phase {
    Running,
    /// No attempt starts any more; those in flight may finish.
    Draining,
    /// The driver no longer waits for attempts.
    Abandoned,
    /// The driver has ended.
    Closed(LeaseClosed),
}

impl<K: Hash + Eq + Clone + Send + Sync + 'static> Shared<K> {
    pub(super) fn new(config: LeaseConfig) -> Self {
        let status = Status::default();
        let shards = config.shards();
        Self {
            name: config.name.clone(),
            origin: Moment::now(),
            state: Mutex::new(State {
                engine: Engine::new(config),
                roles: Roles::new(shards),
                wake_at: Timestamp::ZERO,
                waker: None,
                stall: Stall::none(),
                current: status,
                unpublished: false,
                watches: WatchStates::default(),
                prefixes: Prefixes::default(),
                fence: None,
                roster: None,
                following: Following::default(),
                when_closed: Vec::new(),
                phase: Phase::Running,
            }),
            status: watch::Sender::new(status),
            roster_changes: broadcast::Sender::new(ROSTER_CHANGES),
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.lock().current
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Locks the state. Threads share nothing else, so only here does their order make a
    /// difference.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<K>> {
        #[cfg(test)]
        super::tests::switch();
        self.state.lock()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.timestamp(Moment::now())
    }

    pub(super) fn timestamp(&self, at: Moment) -> Timestamp {
        Timestamp::ZERO + (at - self.origin)
    }

    pub(super) fn moment(&self, at: Timestamp) -> Moment {
        self.origin + (at - Timestamp::ZERO)
    }

    /// Queues a job. The job that it replaces is a user's closure, so it is dropped outside of the
    /// lock.
    pub(crate) fn try_work(&self, key: K, job: BoxedJob<K>) -> Result<(), LeaseClosed> {
        let mut state = self.lock();
        if let Some(closed) = state.closed() {
            return Err(closed);
        }
        let now = self.now();
        let replaced = state.engine.handle_try(now, key, job);
        // A new job changes neither the role nor the status, so there is nothing to publish.
        state.wake_if_needed(now);
        drop(state);
        drop(replaced);
        Ok(())
    }

    /// Applies an event to the engine and does what follows: takes in the status, cancels the attempts
    /// of a lost role, and wakes the driver if it would sleep too long or has to publish the status.
    ///
    /// The caller drops the event's result outside of the lock, because it may be a user's closure.
    pub(crate) fn handle<R>(
        &self,
        event: impl FnOnce(&mut Engine<K, BoxedJob<K>>, Timestamp) -> R,
    ) -> Result<R, LeaseClosed> {
        self.update(|state, now| event(&mut state.engine, now))
    }

    /// Like [`handle`](Self::handle), for an event that also changes the state around the engine.
    pub(super) fn update<R>(
        &self,
        event: impl FnOnce(&mut State<K>, Timestamp) -> R,
    ) -> Result<R, LeaseClosed> {
        let mut state = self.lock();
        if let Some(closed) = state.closed() {
            return Err(closed);
        }
        // The clock is read under the lock, so that the engine sees times in order.
        let now = self.now();
        let result = event(&mut state, now);
        let lost = self.take_status(&mut state, now);
        state.wake_if_needed(now);
        drop(state);
        // A cancellation wakes tasks of users, so it comes after the lock is released.
        lost.iter().for_each(|token| token.cancel());
        Ok(result)
    }

    pub(crate) fn is_leader(&self) -> bool {
        let state = self.lock();
        !matches!(state.phase, Phase::Closed(_)) && state.engine.is_leader(self.now())
    }

    pub(crate) fn leads(&self, key: &K) -> bool {
        let state = self.lock();
        !matches!(state.phase, Phase::Closed(_)) && state.engine.leads(self.now(), key)
    }

    pub(crate) fn subscribe_roster(&self) -> broadcast::Receiver<Arc<RosterChange>> {
        self.roster_changes.subscribe()
    }

    /// Applies a change of the roster, and tells what it moved.
    pub(crate) fn change_roster(
        &self,
        event: impl FnOnce(&mut Engine<K, BoxedJob<K>>, Timestamp) -> RosterChange,
    ) {
        let Ok(change) = self.handle(event) else { return };
        if change != RosterChange::default() {
            let RosterChange { joined, left, gained, given_up, moved } = &change;
            tracing::info!(lease = %self.name, ?joined, ?left, ?gained, ?given_up, moved, "the roster changed");
            // Nobody has to listen.
            let _ = self.roster_changes.send(Arc::new(change));
        }
    }

    /// Stops new attempts. The driver ends when those in flight have finished.
    pub(crate) fn drain(&self) {
        self.enter(Phase::Draining);
    }

    /// Ends the driver now. Attempts in flight are cancelled and left to themselves.
    pub(crate) fn abandon(&self) {
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

    /// Takes in the status if it changed. Returns the tokens to cancel of the roles that were lost.
    pub(super) fn take_status(&self, state: &mut State<K>, now: Timestamp) -> Vec<Arc<CancellationToken>> {
        let before = state.current;
        let role_generation = state.engine.role_generation();
        let (is_leader, decided) = (state.engine.is_leader(now), state.engine.decided());
        let is_stuck = state.stall.lasts(&state.engine);
        // This runs with every event, and most change nothing here.
        let (shards_led, members) = (state.engine.shards_led(now), state.engine.members_len());
        if (role_generation, is_leader, decided, is_stuck, shards_led, members)
            == (
                before.role_generation,
                before.is_leader,
                before.decided,
                before.is_stuck,
                before.shards_led,
                before.members,
            )
        {
            return Vec::new();
        }
        let (role, epoch) = (state.engine.role(), state.engine.epoch());
        let status = Status {
            role,
            is_leader,
            shards_led,
            members,
            epoch,
            decided,
            is_stuck,
            role_generation,
            ..before
        };
        state.current = status;
        state.unpublished = true;
        if role_generation == before.role_generation {
            return Vec::new();
        }
        // With many shards, the role in single ones changes often.
        if status.role == before.role && shards_led > 1 {
            tracing::debug!(lease = %self.name, epoch = status.epoch, shards_led, "the role in a shard changed");
        } else {
            tracing::info!(
                lease = %self.name,
                role = ?status.role,
                epoch = status.epoch,
                shards_led,
                losses = state.engine.losses(),
                lease_ms = (state.engine.lease_end() - now).as_millis() as u64,
                "the role changed",
            );
        }
        state.roles.take_lost(&state.engine)
    }

    /// Starts a roster, which lasts as long as the lease.
    ///
    /// # Errors
    ///
    /// [`SpawnError::Closed`], [`SpawnError::AlreadyJoined`].
    pub(crate) fn join(&self, own: Member, link: RosterLink) -> Result<(), SpawnError> {
        self.update(|state, now| {
            if state.roster.is_some() {
                return Err(SpawnError::AlreadyJoined);
            }
            state.roster = Some(link);
            state.engine.handle_join(now, own);
            Ok(())
        })?
    }

    /// Waits until the roster was left; returns immediately if there is none. Cancel safe.
    pub(crate) async fn left_roster(&self) {
        let ended = self.lock().roster.as_ref().map(|roster| roster.ended.clone());
        if let Some(mut ended) = ended {
            while ended.changed().await.is_ok() {}
        }
    }

    /// Adds a watch to the status. Returns its identifier.
    pub(crate) fn add_watch(&self) -> u64 {
        let mut state = self.lock();
        let id = state.watches.add();
        state.take_watch();
        id
    }

    /// Sets the state of a watch; `None` removes it.
    pub(crate) fn set_watch(&self, id: u64, watch: Option<WatchState>) {
        let mut state = self.lock();
        state.watches.set(id, watch);
        state.take_watch();
    }

    /// Reserves a prefix for one guard.
    pub(crate) fn add_prefix(&self, prefix: &str) -> Result<(), SpawnError> {
        self.lock().prefixes.add(prefix)
    }

    pub(crate) fn remove_prefix(&self, prefix: &str) {
        self.lock().prefixes.remove(prefix);
    }

    /// Publishes a status that the driver took.
    pub(super) fn publish(&self, status: Option<Status>) {
        if let Some(status) = status {
            self.status.send_replace(status);
        }
    }

    /// Records that the driver has ended, and publishes the last status.
    pub(super) fn close(&self, closed: LeaseClosed) {
        let mut state = self.lock();
        state.phase = Phase::Closed(closed);
        state.current = Status { is_leader: false, shards_led: 0, closed: Some(closed), ..state.current };
        let last = state.current;
        let roles = state.roles.take_all();
        let follower = state.following.task.take();
        let when_closed = std::mem::take(&mut state.when_closed);
        drop(state);
        self.publish(Some(last));
        roles.iter().for_each(|token| token.cancel());
        if let Some(follower) = follower {
            follower.abort();
        }
        for call in when_closed {
            call(closed);
        }
    }

    /// Calls back once the lease is closed; immediately if it is closed already. A task that dies
    /// with its runtime, perhaps before the driver does, learns of the end in this way only.
    pub(crate) fn when_closed(&self, call: OnClose) {
        let mut state = self.lock();
        match state.phase {
            Phase::Closed(closed) => {
                drop(state);
                call(closed);
            }
            _ => state.when_closed.push(call),
        }
    }
}

impl<K: Hash + Eq + Clone> State<K> {
    /// Wakes the driver if it would sleep too long, or if it slept too long already because the
    /// machine was suspended.
    fn wake_if_needed(&mut self, now: Timestamp) {
        let wake_at = self.wake_at;
        let too_late = |timeout| timeout < wake_at || wake_at <= now;
        if wake_at != Timestamp::ZERO && (self.unpublished || self.timeout(now).is_some_and(too_late)) {
            self.wake();
        }
    }

    /// Takes in the state of the watches, unless the last status is out.
    fn take_watch(&mut self) {
        let watch = self.watches.worst();
        if watch != self.current.watch && !matches!(self.phase, Phase::Closed(_)) {
            self.current.watch = watch;
            self.unpublished = true;
            if self.wake_at != Timestamp::ZERO {
                self.wake();
            }
        }
    }

    /// Takes the status if the channel has another one.
    pub(super) fn poll_status(&mut self) -> Option<Status> {
        std::mem::take(&mut self.unpublished).then_some(self.current)
    }

    /// Returns when the driver must look at the engine again without an event.
    pub(super) fn timeout(&mut self, now: Timestamp) -> Option<Timestamp> {
        let stall = self.stall.due(now, &self.engine);
        let stall = (stall != Timestamp::MAX).then_some(stall);
        self.engine.poll_timeout().into_iter().chain(stall).min()
    }

    /// Passes on what is to be written to the roster.
    pub(super) fn poll_roster(&mut self, now: Timestamp) {
        let Some(roster) = &self.roster else { return };
        while let Some(request) = self.engine.poll_roster(now) {
            // It fails once the task has ended, with the runtime.
            let _ = roster.requests.send(request);
        }
    }

    fn wake(&mut self) {
        self.wake_at = Timestamp::ZERO;
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Returns why the lease takes no more jobs, if it takes none.
    fn closed(&self) -> Option<LeaseClosed> {
        match self.phase {
            Phase::Running => None,
            Phase::Draining | Phase::Abandoned => Some(LeaseClosed::ShutDown),
            Phase::Closed(closed) => Some(closed),
        }
    }
}

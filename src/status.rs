//! The state of a lease, as its subscribers and its handles see it.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::engine::{Counters, MemberView, Role, ShardView, Timestamp, config::ConfigError};

/// The part of a lease's state that others wait for.
///
/// [`WriterLease::status`](crate::WriterLease::status) returns it, and
/// [`WriterLease::subscribe`](crate::WriterLease::subscribe) sends each change of it.
///
/// ```
/// use writerlease::{Status, WatchState};
///
/// /// Returns whether a replica should be reported as ready.
/// fn is_ready(status: &Status) -> bool {
///     status.closed.is_none() && matches!(status.watch, None | Some(WatchState::Live))
/// }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The position of this process in the contest for the lease.
    pub role: Role,
    /// True while this process's work holds the lease. An idle lease belongs to nobody: this turns
    /// false a term after the last write, or within a second of a suspension that outlasted the
    /// term. [`WriterLease::is_leader`](crate::WriterLease::is_leader) knows that immediately.
    pub is_leader: bool,
    /// How many shards' leases this process's work holds; with one shard, 0 or 1.
    pub shards_led: u16,
    /// How many replicas are on the [roster](crate::Roster); 0 without one.
    pub members: usize,
    /// Times that this process became leader, of any shard.
    pub epoch: u64,
    /// True once some job was finished, by any replica.
    pub decided: bool,
    /// The state of the watch: are the writes of others observed? If several guards share the
    /// lease, this is the watch that is worst off; `None` if no watch was reported. A lease whose
    /// watch is not live goes on working, blindly.
    pub watch: Option<WatchState>,
    /// True if no job was done for 10 s, by any replica, although a key was pending all that time;
    /// false from the next one on that is. [`Snapshot`] and
    /// [`WriterLease::explain`](crate::WriterLease::explain) show more, and a
    /// [`Guard`](crate::Guard) has a [notice](crate::Notice::Stuck).
    pub is_stuck: bool,
    /// Why the lease takes no more jobs, once that is so. The last status has it set.
    pub closed: Option<LeaseClosed>,
    pub(crate) role_generation: u64,
}

/// A detailed look at a lease, for logs, metrics and debugging.
///
/// [`WriterLease::snapshot`](crate::WriterLease::snapshot) takes it under one lock, so its fields
/// are of one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// Keys with a pending job, attempts in flight not counted.
    pub pending: usize,
    /// The time for which the oldest key has been pending, its attempt in flight included. `None` if
    /// none is pending; zero for keys that are only to be tried again later, on purpose.
    pub oldest_pending: Option<Duration>,
    /// Keys whose last attempt failed: the store did not answer, or the job panicked.
    pub failing: usize,
    /// Attempts in flight, those past their deadline included.
    pub in_flight: usize,
    /// Attempts that may be in flight at the same time while this process leads.
    pub window: usize,
    /// Times in a row that this process backed off behind another writer.
    pub losses: u32,
    /// The time left of the lease, whoever holds it.
    pub lease_remaining: Duration,
    /// The time that a pending key waits before this process stops trusting the leader to write it.
    pub patience: Duration,
    /// The time that this process's own writes take to come back through the watch, smoothed.
    pub echo: Duration,
    /// The counts since the lease was spawned.
    pub counters: Counters,
    /// All shards, by number; one if the lease has no [shards](crate::LeaseBuilder::shards).
    pub shards: Vec<ShardSnapshot>,
    /// The replicas on the [roster](crate::Roster), by name; none without one.
    pub members: Vec<MemberSnapshot>,
}

/// A shard in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardSnapshot {
    /// The number of the shard, from 0.
    pub number: u16,
    /// Our position in the contest for its lease.
    pub role: Role,
    /// The time for which we have had this role.
    pub role_for: Duration,
    /// Whether our work holds its lease.
    pub is_leader: bool,
    /// The time left of its lease, whoever holds it.
    pub lease_remaining: Duration,
    /// The member of the roster whose turn it is: the replica that is believed to lead it.
    pub member: Option<Arc<str>>,
}

/// A replica on the roster, in a [`Snapshot`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemberSnapshot {
    /// The name of the replica.
    pub name: Arc<str>,
    /// Its share of the shards, against the other weights.
    pub weight: u16,
    /// The number of shards whose turn it has.
    pub shards: u16,
    /// Whether it is this replica.
    pub is_us: bool,
    /// Another replica took its work over and asks whether it lives. Without an answer, it is struck off.
    pub is_suspected: bool,
}

impl ShardSnapshot {
    pub(crate) fn new(shard: ShardView, now: Timestamp) -> Self {
        Self {
            number: shard.number,
            role: shard.role,
            role_for: now - shard.role_since,
            is_leader: shard.role == Role::Leader && now < shard.lease_end,
            lease_remaining: shard.lease_end - now,
            member: shard.member,
        }
    }
}

impl MemberSnapshot {
    pub(crate) fn new(member: MemberView) -> Self {
        let MemberView { name, weight, shards, is_us, is_suspected } = member;
        Self { name, weight, shards, is_us, is_suspected }
    }
}

/// The state of a watch of foreign writes.
///
/// A lease whose watch is not live goes on working. It is merely blind, and learns of the writes of
/// others when its own are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchState {
    /// Foreign writes are observed as they happen.
    Live,
    /// The first listing is not complete yet.
    Starting,
    /// The watch was interrupted at this time and is being resumed.
    Resuming {
        /// When it was interrupted.
        since: Instant,
    },
    /// The watch has ended and will not be resumed.
    Ended {
        /// When it ended.
        since: Instant,
    },
}

/// The reason for which a lease, a guard or the following of an election could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The call was made outside of a tokio runtime.
    #[error("the call was made outside of a tokio runtime")]
    NoRuntime,
    /// Another guard on the same lease has a prefix of which this one is the beginning, or the
    /// other way round. The two would replace each other's jobs in the lease.
    #[error("the prefix {prefix:?} overlaps with {existing:?} of another guard on the same lease")]
    OverlappingPrefixes {
        /// The prefix of the guard that was refused.
        prefix: String,
        /// The prefix of the guard that exists.
        existing: String,
    },
    /// The lease has a roster already.
    #[error("the lease has joined a roster already")]
    AlreadyJoined,
    /// The lease takes no more jobs.
    #[error(transparent)]
    Closed(#[from] LeaseClosed),
}

/// The reason for which a lease takes no more jobs: it was shut down, or its driver died with the
/// runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseClosed {
    /// [`shutdown`](crate::WriterLease::shutdown) was called, or the last handle was dropped.
    #[error("the lease was shut down")]
    ShutDown,
    /// The driver's task was dropped: its runtime was shut down, or has no timers.
    #[error("the lease's driver died with its runtime")]
    DriverDied,
}

/// The prefixes of the guards on one lease.
#[derive(Debug, Default)]
pub(crate) struct Prefixes(Vec<Box<str>>);

impl Prefixes {
    /// Adds a prefix.
    ///
    /// # Errors
    ///
    /// [`SpawnError::OverlappingPrefixes`] if keys may have both this prefix and an existing one.
    pub(crate) fn add(&mut self, prefix: &str) -> Result<(), SpawnError> {
        let overlaps = |existing: &&str| existing.starts_with(prefix) || prefix.starts_with(existing);
        if let Some(existing) = self.0.iter().map(|existing| &**existing).find(overlaps) {
            let (prefix, existing) = (prefix.to_owned(), existing.to_owned());
            return Err(SpawnError::OverlappingPrefixes { prefix, existing });
        }
        self.0.push(prefix.into());
        Ok(())
    }

    pub(crate) fn remove(&mut self, prefix: &str) {
        self.0.retain(|existing| **existing != *prefix);
    }
}

/// The watches of one lease.
#[derive(Debug, Default)]
pub(crate) struct WatchStates {
    next: u64,
    states: Vec<(u64, WatchState)>,
}

impl WatchStates {
    /// Adds a watch. Returns its identifier.
    pub(crate) fn add(&mut self) -> u64 {
        self.next += 1;
        self.states.push((self.next, WatchState::Starting));
        self.next
    }

    /// Sets the state of a watch; `None` removes it.
    pub(crate) fn set(&mut self, id: u64, watch: Option<WatchState>) {
        self.states.retain_mut(|(known, state)| {
            if *known != id {
                return true;
            }
            watch.map(|watch| *state = watch).is_some()
        });
    }

    /// Returns the state of the watch that is worst off; of equals, the one that has been so for
    /// longest.
    pub(crate) fn worst(&self) -> Option<WatchState> {
        let badness = |watch: &WatchState| match *watch {
            WatchState::Live => (0, None),
            WatchState::Starting => (1, None),
            WatchState::Resuming { since } => (2, Some(std::cmp::Reverse(since))),
            WatchState::Ended { since } => (3, Some(std::cmp::Reverse(since))),
        };
        self.states.iter().map(|(_, watch)| *watch).max_by_key(badness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn lease_is_as_blind_as_its_blindest_watch() {
        let mut watches = WatchStates::default();
        assert_eq!(watches.worst(), None);
        let (first, second) = (watches.add(), watches.add());
        watches.set(first, Some(WatchState::Live));
        assert_eq!(watches.worst(), Some(WatchState::Starting));
        watches.set(second, Some(WatchState::Live));
        assert_eq!(watches.worst(), Some(WatchState::Live));
        let since = clock::now();
        let later = since + std::time::Duration::from_secs(1);
        watches.set(second, Some(WatchState::Resuming { since: later }));
        watches.set(first, Some(WatchState::Resuming { since }));
        assert_eq!(watches.worst(), Some(WatchState::Resuming { since }));
        watches.set(second, Some(WatchState::Ended { since: later }));
        assert_eq!(watches.worst(), Some(WatchState::Ended { since: later }));
        watches.set(second, None);
        assert_eq!(watches.worst(), Some(WatchState::Resuming { since }));
    }
}

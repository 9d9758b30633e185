//! The state of a lease, as its subscribers and its handles see it.

use std::time::Duration;

use tokio::time::Instant;

use crate::engine::{Counters, Role, config::ConfigError};

/// The part of a lease's state that others wait for; see [`WriterLease::subscribe`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// What this process is in the contest for the lease.
    pub role: Role,
    /// Whether its work holds the lease. An idle lease is nobody's: this turns false a term after the last write, or within
    /// a second of a suspension that outlasted the term; [`WriterLease::is_leader`] knows that at once.
    pub is_leader: bool,
    /// How many times this process became leader.
    pub epoch: u64,
    /// Whether some work was finished yet, by anybody.
    pub decided: bool,
    /// Whether the writes of others are observed: the state of the watch that is worst off, if several guards share the lease,
    /// and none if nobody told of a watch. A lease whose watch is not live goes on working, blindly.
    pub watch: Option<WatchState>,
    /// Set once the lease takes no more work, and why. The last status of all has it set.
    pub closed: Option<LeaseClosed>,
    pub(crate) role_generation: u64,
}

/// A look into a lease, for logs, metrics and debugging.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// Keys with work pending that no attempt is out with.
    pub pending: usize,
    /// Attempts that are out.
    pub in_flight: usize,
    /// How many attempts may be out at once while we lead.
    pub window: usize,
    /// How many times in a row we backed off.
    pub losses: u32,
    /// How long the lease lasts, whoever holds it.
    pub lease_remaining: Duration,
    /// How long a pending key waits before we stop trusting the leader to do it.
    pub patience: Duration,
    /// How long our own writes take to come back through the watch.
    pub echo: Duration,
    /// What has happened so far.
    pub counters: Counters,
}

/// Whether foreign writes are observed.
///
/// A lease whose watch is not live goes on working: it is merely blind, and learns of the writes of others when its own are
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WatchState {
    /// They are observed as they happen.
    Live,
    /// The first listing is not complete yet.
    Starting,
    /// The watch was interrupted at this time and is being resumed.
    Resuming {
        /// When it was interrupted.
        since: Instant,
    },
    /// The watch is over for good.
    Ended {
        /// When it ended.
        since: Instant,
    },
}

/// Why a lease could not be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A setting cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Not within a tokio runtime.
    #[error("there is no tokio runtime here to run on")]
    NoRuntime,
}

/// The lease takes no more work: it was shut down, or its driver died with the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseClosed {
    /// [`shutdown`](crate::WriterLease::shutdown) was called, or the last handle was dropped.
    #[error("the lease was shut down")]
    ShutDown,
    /// The driver's task is gone: its runtime was shut down, or has no timers.
    #[error("the lease's driver died")]
    DriverDied,
}

/// The watches of one lease.
#[derive(Debug, Default)]
pub(crate) struct WatchStates {
    next: u64,
    states: Vec<(u64, WatchState)>,
}

impl WatchStates {
    pub fn add(&mut self) -> u64 {
        self.next += 1;
        self.states.push((self.next, WatchState::Starting));
        self.next
    }

    pub fn set(&mut self, id: u64, watch: Option<WatchState>) {
        self.states.retain_mut(|(known, state)| {
            if *known != id {
                return true;
            }
            watch.map(|watch| *state = watch).is_some()
        });
    }

    /// The state of the watch that is worst off, for longest.
    pub fn worst(&self) -> Option<WatchState> {
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
    fn a_lease_is_as_blind_as_its_blindest_feed() {
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

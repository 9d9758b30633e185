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
    /// Whether the writes of others are observed: the state of the feed that is worst off, if several guards share the lease,
    /// and none if nobody told of a feed. A lease whose feed is not live goes on working, blindly.
    pub feed: Option<Feed>,
    /// Set once the lease takes no more work, and why. The last status of all has it set.
    pub ended: Option<Ended>,
    pub(crate) reign: u64,
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
    pub tick: u32,
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
/// A lease whose feed is not live goes on working: it is merely blind, and learns of the writes of others when its own are
/// refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Feed {
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
    Gone {
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
pub enum Ended {
    /// [`shutdown`](crate::WriterLease::shutdown) was called, or the last handle was dropped.
    #[error("the lease was shut down")]
    ShutDown,
    /// The driver's task is gone: its runtime was shut down, or has no timers.
    #[error("the lease's driver died")]
    DriverDied,
}

/// The feeds of one lease.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    next: u64,
    states: Vec<(u64, Feed)>,
}

impl Feeds {
    pub fn add(&mut self) -> u64 {
        self.next += 1;
        self.states.push((self.next, Feed::Starting));
        self.next
    }

    pub fn set(&mut self, id: u64, feed: Option<Feed>) {
        self.states.retain_mut(|(known, state)| {
            if *known != id {
                return true;
            }
            feed.map(|feed| *state = feed).is_some()
        });
    }

    /// The state of the feed that is worst off, for longest.
    pub fn worst(&self) -> Option<Feed> {
        let badness = |feed: &Feed| match *feed {
            Feed::Live => (0, None),
            Feed::Starting => (1, None),
            Feed::Resuming { since } => (2, Some(std::cmp::Reverse(since))),
            Feed::Gone { since } => (3, Some(std::cmp::Reverse(since))),
        };
        self.states.iter().map(|(_, feed)| *feed).max_by_key(badness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_lease_is_as_blind_as_its_blindest_feed() {
        let mut feeds = Feeds::default();
        assert_eq!(feeds.worst(), None);
        let (first, second) = (feeds.add(), feeds.add());
        feeds.set(first, Some(Feed::Live));
        assert_eq!(feeds.worst(), Some(Feed::Starting));
        feeds.set(second, Some(Feed::Live));
        assert_eq!(feeds.worst(), Some(Feed::Live));
        let since = clock::now();
        let later = since + std::time::Duration::from_secs(1);
        feeds.set(second, Some(Feed::Resuming { since: later }));
        feeds.set(first, Some(Feed::Resuming { since }));
        assert_eq!(feeds.worst(), Some(Feed::Resuming { since }));
        feeds.set(second, Some(Feed::Gone { since: later }));
        assert_eq!(feeds.worst(), Some(Feed::Gone { since: later }));
        feeds.set(second, None);
        assert_eq!(feeds.worst(), Some(Feed::Resuming { since }));
    }
}

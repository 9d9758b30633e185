//! The result of a decision.

use super::{in_flight::Kind, queue::Ready, time::Timestamp};

/// The next thing that may happen.
pub(super) enum Step {
    /// This attempt may start now.
    Run(Ready, Kind),
    /// Nothing before this time, because of an obstacle.
    Wait(Timestamp, Obstacle),
    /// Nothing before the next event.
    Idle,
}

/// The obstacle in the way of a key's next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Obstacle {
    /// An attempt of the key is in flight.
    Attempt,
    /// The key waits for its own next try: after a refusal, a failure or a denial, or because its
    /// job chose to.
    Backoff,
    /// The store is down, by the last news: all attempts pause, and one at a time tests it.
    Outage,
    /// This replica knows of no other yet, and leaves others the time to be first.
    ElectionDelay,
    /// Another replica holds the lease: it has the time until its lease ends, or until this
    /// replica's patience does.
    Leader,
    /// Another replica wrote the key last: it has the time until this replica's patience ends.
    Incumbent,
    /// Other attempts hold all slots. A replica that does not lead has one.
    Slot,
    /// The lease follows an election that this replica has not won.
    NotElected,
}

impl Step {
    /// Returns when something may happen, if nothing may now.
    pub(super) fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Wait(until, _) => Some(*until),
            Self::Run(..) | Self::Idle => None,
        }
    }

    /// Returns what happens first if both are possible. The older key goes first, so that a stream of
    /// jobs for some keys starves no other.
    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Run(one, kind), Self::Run(another, _)) if one <= another => Self::Run(one, kind),
            (_, Self::Run(ready, kind)) | (Self::Run(ready, kind), _) => Self::Run(ready, kind),
            (Self::Wait(one, obstacle), Self::Wait(another, _)) if one <= another => {
                Self::Wait(one, obstacle)
            }
            (_, Self::Wait(another, obstacle)) | (Self::Wait(another, obstacle), _) => {
                Self::Wait(another, obstacle)
            }
            (Self::Idle, Self::Idle) => Self::Idle,
        }
    }
}

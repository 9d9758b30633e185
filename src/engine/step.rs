//! The result of a decision.

use super::{in_flight::Kind, queue::Ready, time::Timestamp};

/// The next thing that may happen.
pub(super) enum Step {
    /// This attempt may start now.
    Run(Ready, Kind),
    /// Nothing before this time.
    Wait(Timestamp),
    /// Nothing before the next event.
    Idle,
}

impl Step {
    /// Returns when something may happen, if nothing may now.
    pub(super) fn time(&self) -> Option<Timestamp> {
        match self {
            Self::Wait(until) => Some(*until),
            Self::Run(..) | Self::Idle => None,
        }
    }

    /// Returns what happens first if both are possible. The older key goes first, so that a stream of
    /// jobs for some keys starves no other.
    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Run(one, kind), Self::Run(another, _)) if one <= another => Self::Run(one, kind),
            (_, Self::Run(ready, kind)) | (Self::Run(ready, kind), _) => Self::Run(ready, kind),
            (Self::Wait(one), Self::Wait(another)) => Self::Wait(one.min(another)),
            (Self::Idle, other) | (other, Self::Idle) => other,
        }
    }
}

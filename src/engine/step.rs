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

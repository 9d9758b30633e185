use super::{in_flight::Kind, queue::Ready, time::Timestamp};

/// What may happen next.
pub(super) enum Step {
    Run(Ready, Kind),
    /// Not before then.
    Wait(Timestamp),
    /// Not before something else happens.
    Idle,
}

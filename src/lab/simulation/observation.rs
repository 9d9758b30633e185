//! Events of the world that a promise is about.

use super::message::{Content, Stored};

#[derive(Clone, Copy, Debug)]
pub(super) enum Observation {
    /// A process was polled and started this number of attempts.
    Polled { replica: usize, started: usize },
    /// A process started a second attempt of a key.
    SecondAttempt { replica: usize, key: usize },
    /// A write succeeded.
    Written { replica: usize, key: usize, before: Stored, after: Content },
    /// A process learnt whether it is elected.
    Elected,
    /// The time of a regular check has come.
    Check,
}

//! The attempt that an object has in flight, and the refusal that ended the last one.

use std::collections::VecDeque;

use super::{effect::Change, opaque::Types, wish::RequestId};
use crate::engine::Timestamp;

pub(super) struct Attempt<T: Types> {
    /// The requests that it tries to fulfil. Those that come later wait for the next attempt.
    pub requests: Vec<RequestId>,
    /// They are for the object's absence.
    pub wants_absence: bool,
    /// The write that waits for its answer.
    pub sent: Option<Sent<T>>,
    /// The changes that wait for the end of the attempt.
    pub deferred: VecDeque<Change<T>>,
}

pub(super) struct Sent<T: Types> {
    /// `None` for a deletion.
    pub value: Option<T::Value>,
    /// The version that the object must have, `None` if it must not exist.
    pub expected: Option<T::Version>,
    /// The requests that changed the value.
    pub changed: Vec<RequestId>,
    pub started: Timestamp,
}

/// The last attempt was denied, or refused for good. This holds until the object's version changes.
pub(super) struct Refusal<T: Types> {
    /// The version that we knew at that time.
    pub version: Option<T::Version>,
    pub reason: T::Reason,
}

impl<T: Types> Attempt<T> {
    pub fn new(requests: Vec<RequestId>, wants_absence: bool) -> Self {
        Self { requests, wants_absence, sent: None, deferred: VecDeque::new() }
    }
}

//! The attempt that an object has in flight.

use std::collections::VecDeque;

use super::{effect::Change, opaque::Types, wish::RequestId};
use crate::engine::Timestamp;

pub(super) struct Attempt<T: Types> {
    /// The requests that it tries to fulfil. Those that come later wait for the next attempt.
    pub requests: Vec<RequestId>,
    /// The write that waits for its answer.
    pub sent: Option<Sent<T>>,
    /// The changes that wait for the end of the attempt.
    pub deferred: VecDeque<Change<T>>,
}

pub(super) struct Sent<T: Types> {
    pub value: T::Value,
    /// The requests that changed the value.
    pub changed: Vec<RequestId>,
    pub started: Timestamp,
}

impl<T: Types> Attempt<T> {
    pub fn new(requests: Vec<RequestId>) -> Self {
        Self { requests, sent: None, deferred: VecDeque::new() }
    }
}

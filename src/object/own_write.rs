//! Recognition of our own writes when they come back.

use std::time::Duration;

use super::{effect::Change, opaque::Types};
use crate::engine::Timestamp;

pub(super) struct OwnWrite<T: Types> {
    /// The version of our last write and when it started, until the watch reports it.
    echo: Option<(T::Version, Timestamp)>,
    /// The value of a write without an answer. The next value that equals it is ours.
    unacknowledged: Option<T::Value>,
}

impl<T: Types> OwnWrite<T> {
    pub fn none() -> Self {
        Self { echo: None, unacknowledged: None }
    }

    pub fn succeeded(&mut self, version: T::Version, started: Timestamp) {
        // Its change may be among the deferred ones already.
        self.echo = Some((version, started));
        self.unacknowledged = None;
    }

    /// An attempt got no answer, after it had sent this value or before it sent any.
    pub fn unanswered(&mut self, sent: Option<T::Value>) {
        if sent.is_some() {
            self.unacknowledged = sent;
        }
    }

    pub fn awaits_echo(&self) -> bool {
        self.echo.is_some()
    }

    /// If this change is our last write, returns how long that took to come back. A write from
    /// before the watch was live, or one in a listing, says nothing of how fast news travels.
    pub fn take_echo(&mut self, change: &Change<T>) -> Option<Duration> {
        let is_echo = |(version, _): &mut (T::Version, Timestamp)| change.version.as_ref() == Some(version);
        let (_, started) = self.echo.take_if(is_echo)?;
        let is_sample = !change.listing && started >= change.live_since;
        is_sample.then(|| change.arrived - started)
    }

    /// The value is another one by now: our write will not come back.
    pub fn forget_echo(&mut self) {
        self.echo = None;
    }

    /// Returns whether a value is that of our write without an answer.
    pub fn is(&self, value: Option<&T::Value>) -> bool {
        self.unacknowledged.is_some() && self.unacknowledged.as_ref() == value
    }

    /// Like [`is`](Self::is), and forgets that write: a later value that equals it is somebody
    /// else's.
    pub fn take(&mut self, value: Option<&T::Value>) -> bool {
        let is_ours = self.is(value);
        self.unacknowledged = None;
        is_ours
    }
}

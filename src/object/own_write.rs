//! Recognition of our own writes when they come back.

use std::time::Duration;

use super::{effect::Change, opaque::Types};
use crate::engine::Timestamp;

pub(super) struct OwnWrite<T: Types> {
    /// Our last write, until the watch reports it.
    echo: Option<Echo<T::Version>>,
    /// The value of a write without an answer. The next value that equals it is ours.
    unacknowledged: Option<T::Value>,
}

struct Echo<V> {
    version: V,
    started: Timestamp,
    /// A listing has begun since.
    listed: bool,
}

impl<T: Types> OwnWrite<T> {
    pub fn none() -> Self {
        Self { echo: None, unacknowledged: None }
    }

    pub fn succeeded(&mut self, version: T::Version, started: Timestamp) {
        // Its change may be among the deferred ones already.
        self.echo = Some(Echo { version, started, listed: false });
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

    /// Returns whether a write without an answer may still come back.
    pub fn is_unacknowledged(&self) -> bool {
        self.unacknowledged.is_some()
    }

    /// If this change is our last write, returns how long that took to come back. A write from
    /// before the watch was live, or one in a listing, says nothing of how fast news travels.
    pub fn take_echo(&mut self, change: &Change<T>) -> Option<Duration> {
        if !self.has_version(change.version.as_ref()) {
            return None;
        }
        let Echo { started, .. } = self.echo.take()?;
        let is_sample = !change.listing && started >= change.live_since;
        is_sample.then(|| change.arrived - started)
    }

    /// The value is another one by now: our write will not come back.
    pub fn forget_echo(&mut self) {
        self.echo = None;
    }

    /// A listing begins. Our last write may be newer than the listing and come back after it, but
    /// not after the next one.
    pub fn handle_listing(&mut self) {
        self.echo = self.echo.take().filter(|echo| !echo.listed).map(|echo| Echo { listed: true, ..echo });
    }

    /// Returns whether a value is that of our write without an answer.
    pub fn is(&self, value: Option<&T::Value>) -> bool {
        self.unacknowledged.is_some() && self.unacknowledged.as_ref() == value
    }

    /// Returns whether a version is that of our last write, which has not come back yet.
    pub fn has_version(&self, version: Option<&T::Version>) -> bool {
        self.echo.as_ref().is_some_and(|echo| Some(&echo.version) == version)
    }

    /// Like [`is`](Self::is), and forgets that write: a later value that equals it is somebody
    /// else's.
    pub fn take(&mut self, value: Option<&T::Value>) -> bool {
        let is_ours = self.is(value);
        self.unacknowledged = None;
        is_ours
    }
}

//! Recognition of our own writes when they come back.

use std::time::Duration;

use super::{
    attempt::Sent,
    effect::Change,
    known::Known,
    opaque::{Types, Version},
};
use crate::engine::Timestamp;

pub(super) struct OwnWrite<T: Types> {
    /// Our last write, until the watch reports it.
    echo: Option<Echo<T::Version>>,
    /// A write without an answer. The next state may be that write.
    unacknowledged: Option<Sent<T>>,
}

struct Echo<V> {
    /// The version of the write, or the one that a deletion replaced.
    version: V,
    is_deletion: bool,
    /// `None` if the write got no answer, so that it may be somebody else's, or was a deletion.
    started: Option<Timestamp>,
    /// A listing has begun since.
    listed: bool,
}

impl<T: Types> OwnWrite<T> {
    pub fn none() -> Self {
        Self { echo: None, unacknowledged: None }
    }

    pub fn succeeded(&mut self, version: T::Version, started: Timestamp) {
        // Its change may be among the deferred ones already.
        self.echo = Some(Echo { version, is_deletion: false, started: Some(started), listed: false });
        self.unacknowledged = None;
    }

    /// We deleted this version. The watch has yet to report that.
    pub fn deleted(&mut self, version: T::Version) {
        self.echo = Some(Echo { version, is_deletion: true, started: None, listed: false });
        self.unacknowledged = None;
    }

    /// An attempt got no answer, after it had sent this write or before it sent any.
    pub fn unanswered(&mut self, sent: Option<Sent<T>>) {
        if sent.is_some() {
            self.unacknowledged = sent;
        }
    }

    /// Returns whether a state that we wrote, or may have written, has yet to be seen.
    pub fn is_pending(&self) -> bool {
        self.echo.is_some() || self.unacknowledged.is_some()
    }

    /// Returns whether a state that an attempt read may be our write without an answer, whatever its
    /// value.
    pub fn may_be_read(&self, version: &T::Version) -> bool {
        self.unacknowledged.as_ref().is_some_and(|sent| sent.expected.as_ref() != Some(version))
    }

    /// Returns whether a change may be our write without an answer, whatever its value.
    pub fn may_be_change(&self, known: &Known<T>, change: &Change<T>) -> bool {
        self.unacknowledged.as_ref().is_some_and(|sent| match &sent.expected {
            None => known.value().is_none(),
            Some(expected) if Some(expected) == known.version() => true,
            // The watch may omit what a newer write has replaced.
            expected => {
                let version = change.version.as_ref();
                is_newer(expected.as_ref(), known.version()) && is_newer(version, expected.as_ref())
            }
        })
    }

    /// Returns whether a listing has begun since our last write, which it may lack.
    pub fn is_older_than_a_listing(&self) -> bool {
        self.echo.as_ref().is_some_and(|echo| echo.listed)
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
        let started = self.echo.take()?.started?;
        let is_sample = !change.listing && started >= change.live_since;
        is_sample.then(|| change.arrived - started)
    }

    /// The watch has reported a change. A write does not come back after a newer one, and it cannot
    /// succeed once the version that it expected has been replaced. A creation can, because the
    /// object may be absent again.
    pub fn pass(&mut self, known: &Known<T>, change: &Change<T>) {
        let version = change.version.as_ref();
        let is_gone = change.value.is_none() && !change.listing;
        self.echo = self.echo.take().filter(|echo| {
            let was_deleted = is_gone && Some(&echo.version) == known.version();
            !was_deleted && !is_newer(version, Some(&echo.version))
        });
        self.unacknowledged = self.unacknowledged.take().filter(|sent| {
            let expected = sent.expected.as_ref();
            // A listing may be older than our write.
            let is_replaced = expected == known.version() && !change.listing;
            expected.is_none() || !is_replaced && !is_newer(version, expected)
        });
    }

    /// A listing begins. Our last write may be newer than the listing and come back after it, but
    /// not after the next one.
    pub fn handle_listing(&mut self) {
        self.echo = self.echo.take().filter(|echo| !echo.listed).map(|echo| Echo { listed: true, ..echo });
    }

    /// Returns whether a value is that of our write without an answer.
    pub fn is(&self, value: Option<&T::Value>) -> bool {
        self.unacknowledged.as_ref().is_some_and(|sent| sent.value.as_ref() == value)
    }

    /// An attempt reads this state. Returns whether it has the value of our write without an answer.
    /// Unless that write expected the state that was read, it is over: it was this one, or failed.
    pub fn read(&mut self, value: &T::Value, version: &T::Version) -> bool {
        if !self.may_be_read(version) {
            return false;
        }
        self.echo = Some(Echo { version: version.clone(), is_deletion: false, started: None, listed: false });
        let sent = self.unacknowledged.take();
        sent.is_some_and(|sent| sent.value.as_ref() == Some(value))
    }

    /// An attempt reads that the object does not exist. Returns whether that may be our deletion
    /// without an answer.
    pub fn read_absent(&mut self) -> bool {
        let deletion = self.unacknowledged.take_if(|sent| sent.value.is_none());
        match deletion.and_then(|sent| sent.expected) {
            Some(version) => {
                self.deleted(version);
                true
            }
            None => false,
        }
    }

    /// Returns whether a version is that of our last write, which has not come back yet.
    pub fn has_version(&self, version: Option<&T::Version>) -> bool {
        self.echo.as_ref().is_some_and(|echo| !echo.is_deletion && Some(&echo.version) == version)
    }
}

/// Returns whether one version is known to come after another.
fn is_newer<V: Version>(version: Option<&V>, than: Option<&V>) -> bool {
    let revision = |version: Option<&V>| version.and_then(Version::key_revision);
    revision(version).zip(revision(than)).is_some_and(|(version, than)| version > than)
}

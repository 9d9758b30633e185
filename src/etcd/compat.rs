//! The calls of the Go packages that the electors replace, beside [`Elector::events`]: notices for
//! readers that may be slow, watches of keys with callbacks, and pauses without end.

use std::{
    future::ready,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc::{self, Receiver, Sender, error::SendTimeoutError};

use super::{
    candidate::{LeaderInfo, prefix},
    client::single,
    elector::{EtcdElector, EtcdElectorBuilder},
    session::{Etcd, Holder},
    voters::EtcdVoters,
};
use crate::{
    election::{ElectionError, Elector, Event, Events, publisher::LeadershipPublisher},
    engine::config::ConfigError,
    store::{Event as Change, Version, reconnect::Pauses},
};

/// A change of the leadership; see [`EtcdElector::leader_notices`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaderNotice {
    /// This candidate became leader.
    BecameLeader,
    /// This candidate leads no more.
    Retired,
    /// Another candidate became leader.
    NewLeader(LeaderInfo),
}

/// Exponential pauses for retries without end: jittered, and capped by a longest one.
///
/// ```
/// use std::time::Duration;
/// use writerlease::etcd::UnlimitedBackoff;
///
/// let longest = Duration::from_secs(5);
/// let pauses: Vec<_> = UnlimitedBackoff::new(Duration::from_millis(50), longest).take(100).collect();
/// assert!(pauses[0] < Duration::from_millis(100) && pauses.iter().all(|pause| *pause <= longest));
/// ```
#[derive(Debug)]
pub struct UnlimitedBackoff(Pauses);

impl EtcdElector {
    /// Subscribes to the changes of the leader.
    ///
    /// A notice that nobody takes within the [`block_time`](EtcdElectorBuilder::block_time) is
    /// dropped, which is published as an error. [`Elector::events`] drops nothing.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn leader_notices(&self) -> Receiver<LeaderNotice> {
        let (sender, notices) = mpsc::channel(1);
        let (publisher, events) = (self.candidate.publisher().clone(), self.events());
        let (etcd, prefix) = (self.etcd.clone(), prefix(&self.election));
        tokio::spawn(send_leaders(publisher, events, etcd, prefix, self.block_time, sender));
        notices
    }

    /// Subscribes to the errors. The elector retries after each but the last one, which says that
    /// the elector has ended. An error that nobody takes within the
    /// [`block_time`](EtcdElectorBuilder::block_time) is dropped.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn error_notices(&self) -> Receiver<Arc<ElectionError>> {
        let (sender, notices) = mpsc::channel(1);
        tokio::spawn(send_errors(self.events(), self.block_time, sender));
        notices
    }
}

impl EtcdElectorBuilder {
    /// How long a notice waits for its reader. Default: 10 s.
    pub fn block_time(mut self, block_time: Duration) -> Self {
        self.block_time = block_time;
        self
    }
}

impl EtcdVoters {
    /// Sends the current value of a key, and each later one, until the receiver is dropped or the
    /// voters are closed. A key that expires or is deleted sends the empty text: it has no leader. The
    /// same value is sent again if it was elected again. A full receiver delays only its own watch.
    ///
    /// A watch goes on after each interruption, also if it may not read the key for a while. If etcd
    /// no longer has the changes that it missed, only the last one is sent.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if the key is empty, [`ElectionError::Closed`] after
    /// [`close`](Self::close).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn add_watch(&self, key: &str, values: Sender<String>) -> Result<(), ElectionError> {
        let mut changes = Box::pin(self.changes(key)?);
        self.spawn(async move {
            loop {
                let change = tokio::select! {
                    () = values.closed() => return,
                    change = changes.next() => change,
                };
                let Some((_, current)) = change else { return };
                if values.send(current).await.is_err() {
                    return;
                }
            }
        })
    }

    /// Calls back with the key, its previous value and its current value, as
    /// [`add_watch`](Self::add_watch) sends them: the empty text stands for no leader. The first call
    /// has the current value twice; the others follow the changes.
    ///
    /// The callback runs on a thread of its own, one call after the other, so it may block and may
    /// close the voters. A panic of it is logged, and the next change calls it again.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if the key is empty, [`ElectionError::Closed`] after
    /// [`close`](Self::close).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn add_watch_callback(
        &self,
        key: &str,
        mut callback: impl FnMut(&str, &str, &str) + Send + 'static,
    ) -> Result<(), ElectionError> {
        let mut changes = Box::pin(self.changes(key)?);
        let key: Arc<str> = key.into();
        self.spawn(async move {
            while let Some((previous, current)) = changes.next().await {
                let key = key.clone();
                let call = move || {
                    let called = catch_unwind(AssertUnwindSafe(|| callback(&key, &previous, &current)));
                    if called.is_err() {
                        tracing::error!(%key, current, "a callback panicked");
                    }
                    callback
                };
                // It fails only if the runtime ends.
                let Ok(called) = tokio::task::spawn_blocking(call).await else { return };
                callback = called;
            }
        })
    }

    /// Returns the values of a key, each with the one before.
    fn changes(
        &self,
        key: &str,
    ) -> Result<impl Stream<Item = (String, String)> + Send + use<>, ElectionError> {
        ConfigError::not_empty("key", key)?;
        let mut seen = Seen::default();
        let changes = self.shared.etcd.store.watch_range(single(key));
        Ok(changes.filter_map(move |change| ready(change.ok().and_then(|change| seen.handle(change)))))
    }

    /// Runs a watch until the voters are closed.
    fn spawn(&self, watch: impl Future<Output = ()> + Send + 'static) -> Result<(), ElectionError> {
        // Held, so that they are not closed before the watch is among those that end with them.
        let voters = self.shared.voters.lock();
        if voters.is_none() {
            return Err(ElectionError::Closed);
        }
        let mut watches = self.shared.watches.lock();
        while watches.try_join_next().is_some() {}
        watches.spawn(watch);
        Ok(())
    }
}

/// The values that a watch has reported.
#[derive(Default)]
struct Seen {
    /// The last value, empty without a leader, and its version.
    last: Option<(String, Version)>,
    /// The current listing has the key.
    listed: bool,
}

impl Seen {
    /// Returns the last value and the next one, if the change is one of the leader. The first value
    /// takes the place of the one before it.
    fn handle(&mut self, change: Change) -> Option<(String, String)> {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let is_last = |value: &str| self.last.as_ref().is_some_and(|(last, _)| last == value);
        let next = match change {
            Change::Init => {
                self.listed = false;
                return None;
            }
            Change::InitEntry(entry) => {
                self.listed = true;
                (text(&entry.value), entry.version)
            }
            // The key was deleted while the watch was interrupted.
            Change::InitDone if !self.listed && self.last.is_some() && !is_last("") => {
                (String::new(), self.last.as_ref()?.1.clone())
            }
            Change::Put(entry) => {
                let value = text(&entry.value);
                // The same leader: the key was not deleted.
                if is_last(&value) {
                    self.last = Some((value, entry.version));
                    return None;
                }
                (value, entry.version)
            }
            Change::Delete { version, .. } => (String::new(), version),
            Change::InitDone | Change::Resumed => return None,
        };
        // A fresh listing repeats what is known.
        if self.last.as_ref() == Some(&next) {
            return None;
        }
        let current = next.0.clone();
        let previous = self.last.replace(next).map_or_else(|| current.clone(), |(previous, _)| previous);
        Some((previous, current))
    }
}

impl UnlimitedBackoff {
    /// Pauses from `first`, before its jitter, to `longest`, after it.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self(Pauses::new(first, longest))
    }

    /// Starts again from the first pause.
    pub fn reset(&mut self) {
        self.0.reset();
    }
}

impl Iterator for UnlimitedBackoff {
    type Item = Duration;

    /// Returns the next pause. There always is one.
    fn next(&mut self) -> Option<Duration> {
        Some(self.0.next())
    }
}

async fn send_leaders(
    publisher: LeadershipPublisher,
    mut events: Events,
    etcd: Etcd,
    prefix: String,
    block_time: Duration,
    notices: Sender<LeaderNotice>,
) {
    while let Some(event) = next(&mut events, &notices).await {
        let notice = match event {
            Event::Elected { .. } => LeaderNotice::BecameLeader,
            Event::Retired { .. } => LeaderNotice::Retired,
            Event::NewLeader { leader } => {
                let candidates = etcd.list(&prefix).await.unwrap_or_default();
                let mut candidates = candidates.iter().map(Holder::info);
                let known = candidates.find(|candidate| *candidate.identity == *leader);
                // The leader may have gone since; the event still has its identity.
                let gone = || LeaderInfo {
                    key: String::new(),
                    identity: leader.to_string(),
                    address: String::new(),
                };
                LeaderNotice::NewLeader(known.unwrap_or_else(gone))
            }
            Event::Interrupted(_) | Event::Failed(_) => continue,
        };
        if let Err(SendTimeoutError::Timeout(_)) = notices.send_timeout(notice, block_time).await {
            publisher.report(ElectionError::Blocked(block_time));
        }
    }
}

async fn send_errors(mut events: Events, block_time: Duration, notices: Sender<Arc<ElectionError>>) {
    while let Some(event) = next(&mut events, &notices).await {
        if let Event::Interrupted(error) | Event::Failed(error) = event {
            // An error that nobody takes must not hold up the next ones.
            let _ = notices.send_timeout(error, block_time).await;
        }
    }
}

/// Returns the next event, or `None` once the notices have no reader.
async fn next<T>(events: &mut (impl Stream<Item = Event> + Unpin), notices: &Sender<T>) -> Option<Event> {
    tokio::select! {
        () = notices.closed() => None,
        event = events.next() => event,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Entry;

    fn entry(value: &'static str, revision: u64) -> Entry {
        Entry { key: "key".into(), value: value.into(), version: Version::ordered(revision) }
    }

    #[test]
    fn watches_report_each_election_once() {
        let put = |value, revision| Change::Put(entry(value, revision));
        let listed = |value, revision| Change::InitEntry(entry(value, revision));
        let gone = |revision| Change::Delete { key: "key".into(), version: Version::ordered(revision) };
        let mut seen = Seen::default();
        let mut report = |change, expected: Option<[&str; 2]>| {
            let found = seen.handle(change);
            let expected = expected.map(|[previous, current]| (previous.to_owned(), current.to_owned()));
            assert_eq!(found, expected);
        };
        report(Change::Init, None);
        report(Change::InitDone, None);
        report(put("a", 1), Some(["a", "a"]));
        report(put("a", 2), None);
        report(Change::Resumed, None);
        report(gone(3), Some(["a", ""]));
        report(put("a", 4), Some(["", "a"]));
        // A listing of what is known, of another election of the same value, and of none.
        for (change, expected) in
            [(listed("a", 4), None), (listed("a", 6), Some(["a", "a"])), (listed("b", 7), Some(["a", "b"]))]
        {
            report(Change::Init, None);
            report(change, expected);
            report(Change::InitDone, None);
        }
        report(Change::Init, None);
        report(Change::InitDone, Some(["b", ""]));
        report(Change::Init, None);
        report(Change::InitDone, None);
        report(put("b", 8), Some(["", "b"]));
    }
}

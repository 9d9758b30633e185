//! The calls of the Go packages that the electors replace, beside [`Elector::events`]: notices for
//! readers that may be slow, watches of keys with callbacks, and pauses without end.

use std::{
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
    pub fn add_watch(&self, key: &str, values: Sender<String>) -> Result<(), ElectionError> {
        self.watch(key, move |_, _, current| {
            let (values, current) = (values.clone(), current.to_owned());
            async move { values.send(current).await.is_ok() }
        })
    }

    /// Calls back with the key, its previous value and its current value, as
    /// [`add_watch`](Self::add_watch) sends them: the empty text stands for no leader. The first call
    /// has the current value twice; the others follow the changes. The callback must not block its
    /// thread. A panic of it is logged, and the next change calls it again.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if the key is empty, [`ElectionError::Closed`] after
    /// [`close`](Self::close).
    pub fn add_watch_callback(
        &self,
        key: &str,
        mut callback: impl FnMut(&str, &str, &str) + Send + 'static,
    ) -> Result<(), ElectionError> {
        self.watch(key, move |key, previous, current| {
            let called = catch_unwind(AssertUnwindSafe(|| callback(key, previous, current)));
            if called.is_err() {
                tracing::error!(key, current, "a callback panicked");
            }
            std::future::ready(true)
        })
    }

    /// Calls `report` with the key, its previous and its current value, until it returns false.
    fn watch<F: Future<Output = bool> + Send>(
        &self,
        key: &str,
        mut report: impl FnMut(&str, &str, &str) -> F + Send + 'static,
    ) -> Result<(), ElectionError> {
        ConfigError::not_empty("key", key)?;
        if self.shared.voters.lock().is_none() {
            return Err(ElectionError::Closed);
        }
        let mut changes = Box::pin(self.shared.etcd.store.watch_range(single(key)));
        let key = key.to_owned();
        let watch = async move {
            // The value of the key, empty without a leader, and its version.
            let mut known: Option<(String, Version)> = None;
            let mut listed = false;
            while let Some(change) = changes.next().await {
                let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                let (current, version) = match change {
                    Ok(Change::InitEntry(entry)) => {
                        listed = true;
                        (text(&entry.value), entry.version)
                    }
                    // No other leader, because the key was not deleted.
                    Ok(Change::Put(entry))
                        if known.as_ref().is_some_and(|known| known.0.as_bytes() == entry.value) =>
                    {
                        continue;
                    }
                    Ok(Change::Put(entry)) => (text(&entry.value), entry.version),
                    Ok(Change::Delete { version, .. }) => (String::new(), version),
                    Ok(Change::InitDone) if !listed => match &known {
                        // The key was deleted while the watch was interrupted.
                        Some((value, version)) if !value.is_empty() => (String::new(), version.clone()),
                        _ => continue,
                    },
                    Ok(Change::Init) => {
                        listed = false;
                        continue;
                    }
                    _ => continue,
                };
                // A fresh listing repeats what is known.
                if known.as_ref().is_some_and(|known| (&known.0, &known.1) == (&current, &version)) {
                    continue;
                }
                let previous = known.as_ref().map_or(&current, |(value, _)| value);
                if !report(&key, previous, &current).await {
                    return;
                }
                known = Some((current, version));
            }
        };
        let mut watches = self.shared.watches.lock();
        while watches.try_join_next().is_some() {}
        watches.spawn(watch);
        Ok(())
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

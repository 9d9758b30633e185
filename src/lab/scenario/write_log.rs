//! The log of the replicas' writes, as the replicas themselves know them.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use crate::store::{Entry, Event, Expected, Fence, Store, StoreError, Version};

/// An event in the life of a replica's write. A write of a key is sent first, then succeeds, is
/// refused, or fails without an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteEvent {
    /// The replica is about to send a write of this key.
    Sent(usize),
    /// The store acknowledged a write of this key.
    Succeeded(usize),
    /// The store refused a write of this key because of a conflict.
    Refused(usize),
    /// The replica is about to write or delete an entry of the roster.
    SentToRoster,
}

/// The write events of all replicas, added up.
///
/// ```
/// use writerlease::lab::{WriteEvent, WriteLog};
///
/// let mut log = WriteLog::default();
/// [WriteEvent::Sent(1), WriteEvent::Succeeded(1), WriteEvent::Sent(0), WriteEvent::Refused(0)]
///     .into_iter()
///     .for_each(|event| log.record(event));
/// assert_eq!((log.attempted, log.refused, log.succeeded), (2, 1, vec![0, 1]));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteLog {
    /// Number of writes sent.
    pub attempted: u64,
    /// Number of writes refused because of a conflict.
    pub refused: u64,
    /// Number of writes acknowledged, by key. Keys beyond the end have none.
    pub succeeded: Vec<u64>,
    /// Number of writes and deletions of the roster's entries sent.
    pub sent_to_roster: u64,
}

/// A store that records its writes.
#[derive(Clone)]
pub(super) struct RecordingStore<S> {
    pub store: S,
    pub prefix: Arc<str>,
    pub record: Recorder,
}

/// A receiver of write events, called before and after each write on the thread of that write.
pub(super) type Recorder = Arc<dyn Fn(WriteEvent) + Send + Sync>;

impl WriteLog {
    /// Adds an event.
    pub fn record(&mut self, event: WriteEvent) {
        match event {
            WriteEvent::Sent(_) => self.attempted += 1,
            WriteEvent::Refused(_) => self.refused += 1,
            WriteEvent::SentToRoster => self.sent_to_roster += 1,
            WriteEvent::Succeeded(key) => {
                if self.succeeded.len() <= key {
                    self.succeeded.resize(key + 1, 0);
                }
                self.succeeded[key] += 1;
            }
        }
    }
}

/// Returns the name of a key in the store.
pub(super) fn name(prefix: &str, key: usize) -> String {
    format!("{prefix}{}", short_name(key))
}

/// Returns the name of a key without the prefix, as a guard expects it.
pub(super) fn short_name(key: usize) -> String {
    format!("key-{key:05}")
}

/// Returns the number of a key from its [`name`].
pub(super) fn number(prefix: &str, name: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.strip_prefix("key-")?.parse().ok()
}

impl<S: Store> Store for RecordingStore<S> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn get_uncached(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get_uncached(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let Some(number) = number(&self.prefix, key) else {
            (self.record)(WriteEvent::SentToRoster);
            return self.store.put(key, value, expected, fence).await;
        };
        (self.record)(WriteEvent::Sent(number));
        let result = self.store.put(key, value, expected, fence).await;
        match result {
            Ok(_) => (self.record)(WriteEvent::Succeeded(number)),
            Err(StoreError::Conflict { .. }) => (self.record)(WriteEvent::Refused(number)),
            // The outcome of the write is unknown.
            Err(_) => {}
        }
        result
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        // A replica deletes nothing else.
        (self.record)(WriteEvent::SentToRoster);
        self.store.delete(key, expected, fence).await
    }

    fn competes(&self, before: Option<&[u8]>, after: &[u8], version: &Version) -> bool {
        self.store.competes(before, after, version)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        self.store.watch(prefix)
    }
}

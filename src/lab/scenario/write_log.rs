//! Who wrote what: the writes of the replicas, as they themselves know them.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use crate::store::{Entry, Event, Expected, Fence, Store, StoreError, Version};

/// What a replica notes of one of its writes, in the order in which it learns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A write of this key is about to be sent.
    Sent(usize),
    /// It was acknowledged.
    Landed(usize),
    /// It was refused as stale.
    Refused(usize),
}

/// The notes of all replicas, added up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Writes sent.
    pub attempted: u64,
    /// Writes refused as stale.
    pub refused: u64,
    /// Writes acknowledged, by key.
    pub landed: Vec<u64>,
}

/// A store whose writes are noted.
#[derive(Clone)]
pub(super) struct Noted<S> {
    pub store: S,
    pub prefix: Arc<str>,
    pub pen: Pen,
}

/// Takes a note. It is called before and after each write, on whatever thread that is on.
pub(super) type Pen = Arc<dyn Fn(Note) + Send + Sync>;

impl Ledger {
    /// Adds a note.
    pub fn enter(&mut self, note: Note) {
        match note {
            Note::Sent(_) => self.attempted += 1,
            Note::Refused(_) => self.refused += 1,
            Note::Landed(key) => {
                if self.landed.len() <= key {
                    self.landed.resize(key + 1, 0);
                }
                self.landed[key] += 1;
            }
        }
    }
}

/// The name of a key in the store.
pub(super) fn name(prefix: &str, key: usize) -> String {
    format!("{prefix}{}", short_name(key))
}

/// The same without the prefix, as a guard wants it.
pub(super) fn short_name(key: usize) -> String {
    format!("key-{key:05}")
}

/// The number of a key, given its [`name`].
pub(super) fn number(prefix: &str, name: &str) -> Option<usize> {
    name.strip_prefix(prefix)?.strip_prefix("key-")?.parse().ok()
}

impl<S: Store> Store for Noted<S> {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.store.get(key).await
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let Some(number) = number(&self.prefix, key) else {
            return self.store.put(key, value, expected, fence).await;
        };
        (self.pen)(Note::Sent(number));
        let result = self.store.put(key, value, expected, fence).await;
        match result {
            Ok(_) => (self.pen)(Note::Landed(number)),
            Err(StoreError::Conflict { .. }) => (self.pen)(Note::Refused(number)),
            // Nothing is known of it.
            Err(_) => {}
        }
        result
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.store.delete(key, expected, fence).await
    }

    fn competes(&self, before: Option<&[u8]>, after: &[u8], version: &Version) -> bool {
        self.store.competes(before, after, version)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        self.store.watch(prefix)
    }
}

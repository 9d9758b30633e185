//! The store in memory.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use dashmap::DashMap;
use futures_util::{Stream, stream};
use parking_lot::Mutex;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty};

/// A concurrent store in memory. Clones are handles to the same store.
///
/// # Versions
///
/// One counter orders all writes of the store. Only memory limits the size of a value.
///
/// # Calls
///
/// A call completes when it is first polled, so it needs no timeout. It takes effect even if its
/// future is dropped afterwards. Reads take no global lock. The errors are
/// [`Conflict`](StoreError::Conflict), [`Fenced`](StoreError::Fenced) and, for the empty key,
/// [`Invalid`](StoreError::Invalid).
///
/// # Watches
///
/// A watch runs on any runtime and needs no timer. It holds at most 1024 events of the whole store
/// for a slow reader. A reader that falls further behind receives a fresh listing, which bounds the
/// backlog and makes the gap visible.
///
/// # Examples
///
/// ```
/// # use writerlease::store::{Expected, MemoryStore, Store, StoreError};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), StoreError> {
/// let store = MemoryStore::new();
/// let first = store.put("greeting", "hello".into(), Expected::Absent, None).await?;
/// let second = store.put("greeting", "good day".into(), Expected::Version(first.clone()), None).await?;
///
/// // A writer that read the first version is too late.
/// let late = store.put("greeting", "hi".into(), Expected::Version(first), None).await;
/// assert!(matches!(late, Err(StoreError::Conflict { .. })));
///
/// let entry = store.get("greeting").await?.expect("the key exists");
/// assert_eq!((&entry.value[..], entry.version), (&b"good day"[..], second));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes that the term of leadership with this token has ended: its fence holds no more.
    #[cfg(feature = "lab")]
    pub(crate) fn end_term(&self, engine: &'static str, election: &str, token: u64) {
        let mut commit = self.shared.commit.lock();
        let newest = commit.tokens.entry((engine, election.into())).or_default();
        *newest = (*newest).max(token + 1);
    }

    /// Applies one write if the fence holds and `key` is in the expected state: `Some` puts a
    /// value, `None` deletes.
    fn commit(
        &self,
        key: &str,
        value: Option<Bytes>,
        expected: &Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let key = non_empty(key)?;
        let mut commit = self.shared.commit.lock();
        if let Some(fence) = fence {
            commit.check(fence)?;
        }
        let current = self.shared.entries.get(key).map(|entry| entry.version.clone());
        match (expected, &current) {
            (Expected::Absent, None) => {}
            (Expected::Version(expected), Some(current)) if expected == current => {}
            _ => {
                let current = current.map_or(Current::Absent, Current::Version);
                return Err(StoreError::Conflict { current });
            }
        }

        commit.revision += 1;
        let (key, version) = (Arc::<str>::from(key), Version::ordered(commit.revision));
        let event = match value {
            Some(value) => {
                let entry = Entry { key: key.clone(), value, version: version.clone() };
                self.shared.entries.insert(key, entry.clone());
                Event::Put(entry)
            }
            None => {
                self.shared.entries.remove(&key);
                Event::Delete { key, version: version.clone() }
            }
        };
        // Still under the lock, so that every watch receives the events in the order of their
        // revisions. Sending fails if there is no watch; the event then has no reader to miss it.
        let _ = commit.events.send(event);
        Ok(version)
    }
}

impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.shared.entries.get(non_empty(key)?).map(|entry| entry.clone()))
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        self.commit(key, Some(value), &expected, fence)
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.commit(key, None, &Expected::Version(expected.clone()), fence).map(drop)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let watch = Watch {
            shared: self.shared.clone(),
            prefix: prefix.to_owned(),
            events: None,
            listing: VecDeque::new(),
        };
        stream::unfold(watch, |mut watch| async move { Some((Ok(watch.next().await), watch)) })
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Written only under the commit lock, read without it.
    entries: DashMap<Arc<str>, Entry>,
    commit: Mutex<Commit>,
}

#[derive(Debug)]
struct Commit {
    /// The revision of the last write; 0 before the first.
    revision: u64,
    events: broadcast::Sender<Event>,
    /// The greatest token seen of each election, by engine and name.
    tokens: HashMap<(&'static str, Box<str>), u64>,
}

impl Commit {
    /// Accepts a fence unless a greater token of its election was seen. This store runs no
    /// elections, so the fences are all that it knows of their leaders.
    fn check(&mut self, fence: &Fence) -> Result<(), StoreError> {
        let newest = self.tokens.entry((fence.engine(), fence.election().into())).or_default();
        if fence.token() < *newest {
            return Err(fence.refused());
        }
        *newest = fence.token();
        Ok(())
    }
}

impl Default for Commit {
    fn default() -> Self {
        Self { revision: 0, events: broadcast::Sender::new(BACKLOG), tokens: HashMap::new() }
    }
}

#[derive(Debug)]
struct Watch {
    shared: Arc<Shared>,
    prefix: String,
    /// `None` before the first listing and whenever a fresh listing is due.
    events: Option<broadcast::Receiver<Event>>,
    listing: VecDeque<Event>,
}

impl Watch {
    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.listing.pop_front() {
                return event;
            }
            let Some(events) = &mut self.events else {
                self.list();
                continue;
            };
            match events.recv().await {
                Ok(event) if event.key().is_some_and(|key| key.starts_with(&self.prefix)) => return event,
                Ok(_) => {}
                // Only `Lagged` happens: `self.shared` keeps the sender alive.
                Err(RecvError::Lagged(_) | RecvError::Closed) => self.events = None,
            }
        }
    }

    /// Takes the listing and subscribes to the events under one lock, that is, at one revision. No
    /// write falls between the two, and none is reported by both.
    fn list(&mut self) {
        let mut entries: Vec<Entry> = {
            let commit = self.shared.commit.lock();
            self.events = Some(commit.events.subscribe());
            let entries = self.shared.entries.iter();
            entries.filter(|entry| entry.key().starts_with(&self.prefix)).map(|entry| entry.clone()).collect()
        };
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        self.listing.push_back(Event::Init);
        self.listing.extend(entries.into_iter().map(Event::InitEntry));
        self.listing.push_back(Event::InitDone);
    }
}

/// The number of events, of the whole store, that a watch may lag before it lists again.
const BACKLOG: usize = 1024;

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{FutureExt, StreamExt};

    use super::*;

    #[tokio::test]
    async fn a_watch_that_falls_behind_lists_again() {
        let store = MemoryStore::new();
        let mut watch = pin!(store.watch("a/").map(Result::unwrap));
        assert_eq!(watch.next().await, Some(Event::Init));
        assert_eq!(watch.next().await, Some(Event::InitDone));

        let mut last = store.put("a/key", "0".into(), Expected::Absent, None).await.unwrap();
        for i in 1..=BACKLOG {
            last = store.put("a/key", i.to_string().into(), Expected::Version(last), None).await.unwrap();
        }
        assert_eq!(watch.next().await, Some(Event::Init));
        let value = Bytes::from(BACKLOG.to_string());
        let entry = Entry { key: "a/key".into(), value, version: last };
        assert_eq!(watch.next().await, Some(Event::InitEntry(entry)));
        assert_eq!(watch.next().await, Some(Event::InitDone));
        assert_eq!(watch.next().now_or_never(), None);
    }

    #[tokio::test]
    async fn a_watch_within_its_backlog_loses_nothing() {
        let store = MemoryStore::new();
        let mut watch = pin!(store.watch("").map(Result::unwrap));
        assert_eq!(watch.next().await, Some(Event::Init));
        assert_eq!(watch.next().await, Some(Event::InitDone));
        for i in 0..BACKLOG {
            store.put(&format!("{i:04}"), Bytes::new(), Expected::Absent, None).await.unwrap();
        }
        for i in 0..BACKLOG {
            let event = watch.next().await.unwrap();
            assert_eq!(**event.key().unwrap(), *format!("{i:04}"));
        }
        assert_eq!(watch.next().now_or_never(), None);
    }

    #[tokio::test]
    async fn a_dropped_watch_frees_its_resources() {
        let store = MemoryStore::new();
        let mut watch = Box::pin(store.watch(""));
        watch.next().await;
        assert_eq!(store.shared.commit.lock().events.receiver_count(), 1);
        let value = Bytes::from(vec![0; 100]);
        store.put("key", value.clone(), Expected::Absent, None).await.unwrap();
        drop(watch);
        assert_eq!(store.shared.commit.lock().events.receiver_count(), 0);
        assert_eq!(Arc::strong_count(&store.shared), 1);
    }

    #[tokio::test]
    async fn a_listing_is_sorted_by_key() {
        let store = MemoryStore::new();
        for key in ["b", "a", "d", "c"] {
            store.put(key, Bytes::new(), Expected::Absent, None).await.unwrap();
        }
        let events: Vec<_> = store.watch("").map(Result::unwrap).take(6).collect().await;
        let keys: Vec<_> = events.iter().filter_map(Event::key).map(|key| key.as_ref()).collect();
        assert_eq!(keys, ["a", "b", "c", "d"]);
    }
}

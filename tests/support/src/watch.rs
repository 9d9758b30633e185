//! A reader of a store's watch.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt};
use tokio::time::timeout;
use writerlease::store::{Entry, Event, Store, StoreError};

/// The longest wait, only against hanging.
const LONG: Duration = Duration::from_secs(20);

/// A watch, read item by item with a time limit.
pub struct Watch(Pin<Box<dyn Stream<Item = Result<Event, StoreError>> + Send>>);

impl Watch {
    /// Watches the keys with a prefix.
    pub fn of(store: &impl Store, prefix: &str) -> Self {
        Self(Box::pin(store.watch(prefix)))
    }

    /// Waits for the next item, or for the end.
    pub async fn next(&mut self) -> Option<Result<Event, StoreError>> {
        timeout(LONG, self.0.next()).await.expect("the watch yields an item")
    }

    /// Waits for the next event, which must come.
    pub async fn event(&mut self) -> Event {
        self.next().await.expect("the watch goes on").expect("the watch is not interrupted")
    }

    /// Waits for an interruption, which must come next.
    pub async fn interrupted(&mut self) {
        let item = self.next().await;
        assert!(matches!(item, Some(Err(StoreError::Unavailable { .. }))), "{item:?}");
    }

    /// Waits for a whole listing, which must begin next.
    pub async fn listing(&mut self) -> Vec<Entry> {
        assert_eq!(self.event().await, Event::Init);
        self.entries().await
    }

    /// Waits for the rest of a listing that has begun.
    pub async fn entries(&mut self) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            match self.event().await {
                Event::InitEntry(entry) => entries.push(entry),
                Event::InitDone => return entries,
                other => panic!("{other:?} within a listing"),
            }
        }
    }
}

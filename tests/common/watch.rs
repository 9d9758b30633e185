//! A store's watch, as a test reads it.

use std::{pin::Pin, time::Duration};

use futures_util::{Stream, StreamExt};
use tokio::time::timeout;
use writerlease::store::{Entry, Event, Store, StoreError};

/// Only against hanging: nothing takes nearly as long.
const LONG: Duration = Duration::from_secs(20);

pub struct Watch(Pin<Box<dyn Stream<Item = Result<Event, StoreError>> + Send>>);

impl Watch {
    pub fn of(store: &impl Store, prefix: &str) -> Self {
        Self(Box::pin(store.watch(prefix)))
    }

    pub async fn next(&mut self) -> Option<Result<Event, StoreError>> {
        timeout(LONG, self.0.next()).await.expect("the watch says something")
    }

    pub async fn event(&mut self) -> Event {
        self.next().await.expect("the watch goes on").expect("the watch is not interrupted")
    }

    pub async fn interrupted(&mut self) {
        let item = self.next().await;
        assert!(matches!(item, Some(Err(StoreError::Unavailable { .. }))), "{item:?}");
    }

    pub async fn listing(&mut self) -> Vec<Entry> {
        assert_eq!(self.event().await, Event::Init);
        self.entries().await
    }

    /// The listing whose start was seen.
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

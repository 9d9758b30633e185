//! A store of one's own: a type that compares and swaps, and that says what changed (`cargo run
//! --example own_store`).

use std::{collections::BTreeMap, error::Error};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use writerlease::store::{Current, Entry, Event, Expected, Fence, Store, StoreError, Version};
use writerlease::{Guard, WriterLease};

/// The number of writes so far, which becomes the version of the next, and the rows.
#[derive(Default)]
struct Table(watch::Sender<(u64, BTreeMap<String, Entry>)>);

impl Table {
    fn swap(&self, key: &str, value: Option<Bytes>, was: Option<&Version>, by: Option<&Fence>) -> Swapped {
        // No election takes place in this table, so it can check no fence.
        by.map(|fence| fence.of("table")).transpose()?;
        let mut swapped = Err(StoreError::Conflict { current: Current::Unknown });
        self.0.send_if_modified(|(writes, rows)| {
            if rows.get(key).map(|row| &row.version) == was {
                let version = Version::ordered(*writes + 1);
                let row = value.map(|value| Entry { key: key.into(), value, version: version.clone() });
                (*writes, swapped) = (*writes + 1, Ok(version));
                rows.remove(key);
                rows.extend(row.map(|row| (key.to_owned(), row)));
            }
            swapped.is_ok()
        });
        swapped
    }
}

impl Store for Table {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.0.borrow().1.get(key).cloned())
    }

    async fn put(&self, key: &str, value: Bytes, was: Expected, by: Option<&Fence>) -> Swapped {
        let was = if let Expected::Version(version) = &was { Some(version) } else { None };
        self.swap(key, Some(value), was, by)
    }

    async fn delete(&self, key: &str, was: &Version, by: Option<&Fence>) -> Result<(), StoreError> {
        self.swap(key, None, Some(was), by).map(drop)
    }

    /// Lists the rows after each change. A larger store would send the change only.
    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let (prefix, mut table) = (prefix.to_owned(), self.0.subscribe());
        table.mark_changed();
        let listings = stream::unfold((prefix, table), async |(prefix, mut table)| {
            table.changed().await.ok()?;
            let rows = table.borrow_and_update().1.clone().into_values();
            let rows = rows.filter(|row| row.key.starts_with(&prefix)).map(Event::InitEntry);
            let listing: Vec<_> = [Event::Init].into_iter().chain(rows).chain([Event::InitDone]).collect();
            Some((stream::iter(listing), (prefix, table)))
        });
        listings.flatten().map(Ok)
    }
}

type Swapped = Result<Version, StoreError>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let guard = Guard::new(Table::default(), WriterLease::builder("own-store").spawn()?, "status/")?;
    let ensured = guard.ensure("my-route", |current| (current != Some(b"admitted")).then_some("admitted"));
    println!("{:?}: {:?}", ensured.await, guard.store().get("status/my-route").await?);
    Ok(())
}

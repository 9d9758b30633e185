//! A store of one's own: a table in memory (`cargo run --example own_store`).
use std::{collections::BTreeMap, error::Error};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;
use writerlease::{Guard, WriterLease, store::*};

/// The number of writes so far, which is the version of the last one, and the rows.
#[derive(Default)]
struct Table(watch::Sender<(u64, BTreeMap<String, Entry>)>);
type Swapped = Result<Version, StoreError>;

impl Table {
    fn swap(&self, key: &str, value: Option<Bytes>, was: Expected, by: Option<&Fence>) -> Swapped {
        by.map(|fence| fence.of("table")).transpose()?; // refuses all fences: no election is held here
        let mut swapped = Err(StoreError::Conflict { current: Current::Unknown });
        self.0.send_if_modified(|(writes, rows)| {
            let is = rows.get(key).map_or(Expected::Absent, |row| Expected::Version(row.version.clone()));
            if is == was {
                *writes += 1;
                let version = Version::ordered(*writes);
                swapped = Ok(version.clone());
                match value {
                    Some(value) => rows.insert(key.into(), Entry { key: key.into(), value, version }),
                    None => rows.remove(key),
                };
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
        self.swap(key, Some(value), was, by)
    }
    async fn delete(&self, key: &str, was: &Version, by: Option<&Fence>) -> Result<(), StoreError> {
        self.swap(key, None, Expected::Version(was.clone()), by).map(drop)
    }
    /// Lists the rows after each change. A larger store would send the change only.
    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let mut table = self.0.subscribe();
        table.mark_changed();
        stream::unfold((prefix.to_owned(), table), async |(prefix, mut table)| {
            table.changed().await.ok()?;
            let mut rows: Vec<_> = table.borrow_and_update().1.values().cloned().collect();
            rows.retain(|row| row.key.starts_with(&prefix));
            let rows = rows.into_iter().map(Event::InitEntry);
            let listing = stream::iter([Event::Init].into_iter().chain(rows).chain([Event::InitDone]));
            Some((listing.map(Ok), (prefix, table)))
        })
        .flatten()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let guard = Guard::new(Table::default(), WriterLease::builder("own-store").spawn()?, "status/")?;
    let ensure = guard.ensure("my-route", |now| (now != Some(b"admitted")).then_some("admitted"));
    println!("{:?}: {:?}", ensure.await, guard.store().get("status/my-route").await?);
    Ok(())
}

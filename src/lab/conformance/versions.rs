//! Cases about versions: they are unique, and ordered if the store claims an order.

use std::collections::HashSet;

use super::{Bench, Harness, Suite, Write};
use crate::store::{Current, Expected, Store, StoreError};

pub(super) async fn run<H: Harness>(suite: &mut Suite<'_, H>) {
    suite.case("no two writes of a key have the same version", never_twice).await;
    suite.case("writing the same bytes again gives a new version", same_bytes).await;
    suite
        .case("versions are unordered, or grow with every write, or with every write of one key", order)
        .await;
    suite.case("a conflict reports the current version correctly, or not at all", truthful).await;
}

/// Creates, updates and deletes some keys in turn, and returns all puts.
async fn history<H: Harness>(bench: &Bench<'_, H>) -> Vec<Write> {
    let keys: Vec<String> = (0..3).map(|i| bench.key(i)).collect();
    let mut writes = Vec::new();
    for _ in 0..5 {
        let mut last = Vec::new();
        for key in &keys {
            last.push(bench.create(key, "created").await);
        }
        writes.extend(last.clone());
        for write in &mut last {
            *write = bench.update(write, "updated").await;
        }
        writes.extend(last.clone());
        for write in &last {
            bench.delete(write).await;
        }
    }
    writes
}

async fn never_twice<H: Harness>(bench: &Bench<'_, H>) {
    let writes = history(bench).await;
    let distinct: HashSet<_> = writes.iter().map(|write| (&write.key, &write.version)).collect();
    assert_eq!(distinct.len(), writes.len(), "{writes:?}");
}

async fn same_bytes<H: Harness>(bench: &Bench<'_, H>) {
    let first = bench.create(&bench.key("key"), "value").await;
    let second = bench.update(&first, "value").await;
    assert_ne!(first.version, second.version);
    let late = bench.store.put(&first.key, "late".into(), Expected::Version(first.version), None).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
}

async fn order<H: Harness>(bench: &Bench<'_, H>) {
    let writes = history(bench).await;
    let revisions: Vec<_> = writes.iter().map(|write| write.version.revision()).collect();
    let none = revisions.iter().all(Option::is_none);
    let grows = revisions.iter().all(Option::is_some) && revisions.is_sorted_by(|a, b| a < b);
    assert!(none || grows, "{writes:?}");
    for key in writes.iter().map(|write| &write.key) {
        let of_key = writes.iter().filter(|write| write.key == *key);
        let revisions: Vec<_> = of_key.map(|write| write.version.key_revision()).collect();
        let none = revisions.iter().all(Option::is_none);
        let grows = revisions.iter().all(Option::is_some) && revisions.is_sorted_by(|a, b| a < b);
        assert!(none || grows, "{writes:?}");
    }
}

async fn truthful<H: Harness>(bench: &Bench<'_, H>) {
    let mut stale = bench.create(&bench.key("key"), "0").await;
    for i in 1..10 {
        let current = bench.update(&stale, i.to_string()).await;
        match bench.other.put(&stale.key, "late".into(), Expected::Version(stale.version), None).await {
            Err(StoreError::Conflict { current: Current::Version(version) }) => {
                // The next round writes with this version, without another read.
                assert_eq!(version, current.version);
                stale = Write { version, ..current };
            }
            Err(StoreError::Conflict { current: Current::Unknown }) => stale = current,
            other => panic!("{other:?} instead of a conflict with {current:?}"),
        }
    }
}

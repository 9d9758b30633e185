//! Cases about compare-and-write, alone and with concurrent writers.

use std::{fmt::Debug, sync::Arc};

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Bench, Harness, Suite, Write};
use crate::store::{Current, Expected, Fence, Store, StoreError, Version};

pub(super) async fn run<H: Harness>(suite: &mut Suite<'_, H>) {
    suite.case("creating a key that exists conflicts and changes nothing", create_existing).await;
    suite.case("updating a key that does not exist conflicts and creates nothing", update_absent).await;
    suite.case("an update with the current version succeeds", update_current).await;
    suite.case("an update with a stale version conflicts and changes nothing", update_stale).await;
    suite.case("a version from elsewhere matches no key", foreign_version).await;
    suite.case("a delete with the current version removes the key", delete_current).await;
    suite.case("a delete with a stale version conflicts and removes nothing", delete_stale).await;
    suite.case("deleting a key that does not exist conflicts", delete_absent).await;
    suite.case("a writer from before a delete and create loses", stale_after_create).await;
    suite.case("a writer that read the key before its deletion loses", stale_after_delete).await;
    suite.case("exactly one of several concurrent creators wins", concurrent_creators).await;
    suite.case("exactly one of several concurrent updates wins", concurrent_updates).await;
    suite.case("exactly one of several concurrent deletes wins", concurrent_deletes).await;
    suite.case("exactly one of a concurrent update and delete wins", concurrent_update_and_delete).await;
    suite.case("16 tasks with 100 increments each count to 1600", concurrent_increments).await;
    suite.case("a fence is checked or rejected, never ignored", fences).await;
    suite.case("a write whose future is dropped succeeds whole or not at all", dropped_writes).await;
}

/// Asserts that the write was refused, and that the state which the conflict reports, if any, is
/// true.
fn assert_conflict<T: Debug>(refused: Result<T, StoreError>, truth: &Current) {
    match refused {
        Err(StoreError::Conflict { current: Current::Unknown }) => {}
        Err(StoreError::Conflict { current }) => {
            assert_eq!(current, *truth, "the state that the conflict reports")
        }
        other => panic!("{other:?} instead of a conflict"),
    }
}

fn at(write: &Write) -> (Expected, Current) {
    (Expected::Version(write.version.clone()), Current::Version(write.version.clone()))
}

async fn create_existing<H: Harness>(bench: &Bench<'_, H>) {
    let written = bench.create(&bench.key("key"), "first").await;
    let refused = bench.other.put(&written.key, "second".into(), Expected::Absent, None).await;
    assert_conflict(refused, &at(&written).1);
    bench.assert_current(&written).await;
}

/// A store either checks tokens itself or rejects this fence, whose backend it cannot know. It must
/// not write as if the fence were absent.
async fn fences<H: Harness>(bench: &Bench<'_, H>) {
    let fence = |token| Fence::new("conformance", bench.key("election"), token);
    let (first, second) = (bench.key("first"), bench.key("second"));
    match bench.store.put(&first, "new".into(), Expected::Absent, Some(&fence(2))).await {
        Err(StoreError::Invalid { .. }) => bench.assert_absent(&first).await,
        Ok(version) => {
            let refused = bench.other.put(&second, "old".into(), Expected::Absent, Some(&fence(1))).await;
            assert!(matches!(refused, Err(StoreError::Fenced { token: 1 })), "{refused:?}");
            bench.assert_absent(&second).await;
            let refused = bench.other.delete(&first, &version, Some(&fence(1))).await;
            assert!(matches!(refused, Err(StoreError::Fenced { token: 1 })), "{refused:?}");
            let deleted = bench.store.delete(&first, &version, Some(&fence(2))).await;
            assert!(deleted.is_ok(), "{deleted:?}");
        }
        other => panic!("{other:?} for a fence of a backend that the store cannot know"),
    }
}

async fn update_absent<H: Harness>(bench: &Bench<'_, H>) {
    let (key, sibling) = (bench.key("key"), bench.create(&bench.key("sibling"), "").await);
    let refused = bench.store.put(&key, "value".into(), at(&sibling).0, None).await;
    assert_conflict(refused, &Current::Absent);
    bench.assert_absent(&key).await;
}

async fn update_current<H: Harness>(bench: &Bench<'_, H>) {
    let first = bench.create(&bench.key("key"), "first").await;
    let read = bench.read(&first.key).await.expect("the key exists");
    let version = bench.other.put(&first.key, "second".into(), Expected::Version(read.version), None).await;
    let second =
        Write { value: Some("second".into()), version: version.expect("the version is current"), ..first };
    bench.assert_current(&second).await;
}

async fn update_stale<H: Harness>(bench: &Bench<'_, H>) {
    let first = bench.create(&bench.key("key"), "first").await;
    let second = bench.update(&first, "second").await;
    assert_conflict(bench.other.put(&first.key, "late".into(), at(&first).0, None).await, &at(&second).1);
    bench.assert_current(&second).await;
}

async fn foreign_version<H: Harness>(bench: &Bench<'_, H>) {
    let (absent, written) = (bench.key("absent"), bench.create(&bench.key("key"), "value").await);
    // 0 is the version of an absent key in some servers.
    let foreign = [Version::ordered(0), Version::ordered(u64::MAX), Version::opaque("from another store")];
    for version in foreign {
        let expected = Expected::Version(version.clone());
        assert_conflict(
            bench.store.put(&absent, "late".into(), expected.clone(), None).await,
            &Current::Absent,
        );
        assert_conflict(bench.store.delete(&absent, &version, None).await, &Current::Absent);
        assert_conflict(bench.store.put(&written.key, "late".into(), expected, None).await, &at(&written).1);
        assert_conflict(bench.store.delete(&written.key, &version, None).await, &at(&written).1);
    }
    bench.assert_absent(&absent).await;
    bench.assert_current(&written).await;
}

async fn delete_current<H: Harness>(bench: &Bench<'_, H>) {
    let written = bench.create(&bench.key("key"), "value").await;
    let sibling = bench.create(&bench.key("key2"), "value").await;
    bench.delete(&written).await;
    bench.assert_absent(&written.key).await;
    bench.assert_current(&sibling).await;
    let again = bench.create(&written.key, "again").await;
    bench.assert_current(&again).await;
}

async fn delete_stale<H: Harness>(bench: &Bench<'_, H>) {
    let first = bench.create(&bench.key("key"), "first").await;
    let second = bench.update(&first, "second").await;
    assert_conflict(bench.other.delete(&first.key, &first.version, None).await, &at(&second).1);
    bench.assert_current(&second).await;
}

async fn delete_absent<H: Harness>(bench: &Bench<'_, H>) {
    let (key, sibling) = (bench.key("key"), bench.create(&bench.key("sibling"), "").await);
    assert_conflict(bench.store.delete(&key, &sibling.version, None).await, &Current::Absent);
    bench.delete(&sibling).await;
    assert_conflict(bench.store.delete(&sibling.key, &sibling.version, None).await, &Current::Absent);
}

async fn stale_after_create<H: Harness>(bench: &Bench<'_, H>) {
    let key = bench.key("key");
    let mut stale = Vec::new();
    for _ in 0..3 {
        let written = bench.create(&key, "same bytes").await;
        bench.delete(&written).await;
        stale.push(written);
    }
    // The value and the number of writes equal those of the others; only the version differs.
    let current = bench.create(&key, "same bytes").await;
    for stale in stale {
        assert_conflict(bench.other.put(&key, "late".into(), at(&stale).0, None).await, &at(&current).1);
        assert_conflict(bench.other.delete(&key, &stale.version, None).await, &at(&current).1);
    }
    bench.assert_current(&current).await;
}

async fn stale_after_delete<H: Harness>(bench: &Bench<'_, H>) {
    let written = bench.create(&bench.key("key"), "value").await;
    bench.delete(&written).await;
    assert_conflict(
        bench.other.put(&written.key, "late".into(), at(&written).0, None).await,
        &Current::Absent,
    );
    bench.assert_absent(&written.key).await;
}

/// Runs the writes at the same time and returns the one that won. Asserts that all others
/// conflicted.
async fn only_winner<S: Store>(
    stores: [&Arc<S>; 2],
    key: &str,
    writes: Vec<(Option<Bytes>, Expected)>,
) -> Write {
    let mut tasks = JoinSet::new();
    for (i, (value, expected)) in writes.into_iter().enumerate() {
        let (store, key) = (stores[i % 2].clone(), key.to_owned());
        tasks.spawn(async move {
            let version = match (value.clone(), &expected) {
                (Some(value), _) => store.put(&key, value, expected, None).await,
                (None, Expected::Version(version)) => {
                    store.delete(&key, version, None).await.map(|()| version.clone())
                }
                (None, Expected::Absent) => panic!("a delete needs a version"),
            };
            version.map(|version| Write { key: key.into(), value, version })
        });
    }
    let mut winners = Vec::new();
    for result in tasks.join_all().await {
        match result {
            Ok(write) => winners.push(write),
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error:?} instead of a conflict"),
        }
    }
    let [winner] = &winners[..] else { panic!("{winners:?} won") };
    winner.clone()
}

fn values(count: usize, expected: &Expected) -> Vec<(Option<Bytes>, Expected)> {
    (0..count).map(|i| (Some(i.to_string().into()), expected.clone())).collect()
}

async fn concurrent_creators<H: Harness>(bench: &Bench<'_, H>) {
    for round in 0..10 {
        let stores = [&bench.store, &bench.other];
        let winner = only_winner(stores, &bench.key(round), values(8, &Expected::Absent)).await;
        bench.assert_current(&winner).await;
    }
}

async fn concurrent_updates<H: Harness>(bench: &Bench<'_, H>) {
    let mut last = bench.create(&bench.key("key"), "value").await;
    for _ in 0..10 {
        last = only_winner([&bench.store, &bench.other], &last.key, values(8, &at(&last).0)).await;
        bench.assert_current(&last).await;
    }
}

async fn concurrent_deletes<H: Harness>(bench: &Bench<'_, H>) {
    for round in 0..10 {
        let written = bench.create(&bench.key(round), "value").await;
        only_winner([&bench.store, &bench.other], &written.key, vec![(None, at(&written).0); 8]).await;
        bench.assert_absent(&written.key).await;
    }
}

async fn concurrent_update_and_delete<H: Harness>(bench: &Bench<'_, H>) {
    for round in 0..10 {
        let written = bench.create(&bench.key(round), "value").await;
        let expected = at(&written).0;
        let writes = vec![(Some("update".into()), expected.clone()), (None, expected)];
        let winner = only_winner([&bench.store, &bench.other], &written.key, writes).await;
        match winner.value {
            Some(_) => bench.assert_current(&winner).await,
            None => bench.assert_absent(&written.key).await,
        }
    }
}

async fn concurrent_increments<H: Harness>(bench: &Bench<'_, H>) {
    let key = bench.create(&bench.key("counter"), "0").await.key;
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let store = if task % 2 == 0 { bench.store.clone() } else { bench.other.clone() };
        let key = key.clone();
        tasks.spawn(async move {
            for _ in 0..100 {
                increment(&*store, &key).await;
            }
            100
        });
    }
    let acknowledged: u32 = tasks.join_all().await.into_iter().sum();
    assert_eq!((acknowledged, count(&*bench.store, &key).await.0), (1600, 1600));
}

/// Reads and writes until a write succeeds.
async fn increment(store: &impl Store, key: &str) {
    loop {
        let (count, version) = count(store, key).await;
        match store.put(key, (count + 1).to_string().into(), Expected::Version(version), None).await {
            Ok(_) => return,
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error:?} instead of a conflict"),
        }
    }
}

async fn count(store: &impl Store, key: &str) -> (u32, Version) {
    let entry = store.get(key).await.expect("a read").expect("the counter exists");
    let count = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok());
    (count.expect("the counter is a number"), entry.version)
}

async fn dropped_writes<H: Harness>(bench: &Bench<'_, H>) {
    let mut last = bench.create(&bench.key("key"), "0").await;
    for i in 1..=20 {
        // Polled once, which on most stores sends the request, and then dropped.
        let write = bench.store.put(&last.key, i.to_string().into(), at(&last).0, None);
        let _ = futures_util::FutureExt::now_or_never(write);
        // The dropped write may still succeed between the read and the next write. The next write
        // then conflicts and reads again.
        last = loop {
            let current = Write::from(bench.read(&last.key).await.expect("the key exists"));
            assert!(
                current == last || current.value == Some(i.to_string().into()),
                "{current:?} after {last:?}"
            );
            match bench.store.put(&last.key, "settled".into(), at(&current).0, None).await {
                Ok(version) => break Write { value: Some("settled".into()), version, ..current },
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => panic!("{error:?} instead of a conflict"),
            }
        };
        bench.assert_current(&last).await;
    }
}

//! Cases about watches: a listing, and then every change in order.

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Bench, Harness, Suite, Watched, Write, put};
use crate::store::{Event, Expected, Store, StoreError, Version};

pub(super) async fn run<H: Harness>(suite: &mut Suite<'_, H>) {
    suite.case("a watch without keys starts with an empty listing", empty_listing).await;
    suite.case("a watch starts with a listing of the existing keys", listing).await;
    suite.case("a listing of many keys contains each key once", long_listing).await;
    suite.case("a watch reports a write with its writer's version", own_write).await;
    suite.case("a watch reports a deletion and its place among the writes", own_deletion).await;
    suite.case("a watch reports the writes of a key in order", order).await;
    suite.case("two watches report the same changes", two_watches).await;
    suite.case("a watch of a prefix omits keys outside the prefix", siblings).await;
    suite.case("a prefix is plain text, not a pattern", pattern).await;
    suite.case("a watch of the empty prefix covers all keys", empty_prefix).await;
    suite.case("a watch omits refused writes", refused_writes).await;
    suite.case("a watch that starts among concurrent writes reports each change once", concurrent).await;
    suite.case("a late reader of a watch misses no change", late_reader).await;
    suite.case("a watch reports large values whole", large_values).await;
    suite.case("dropping a watch leaves other watches intact", dropped_watch).await;
    suite.case("after a gap a watch lists again and continues", gap).await;
    let name = "a watch that is denied continues once it is allowed again";
    if suite.harness.denies() {
        suite.case(name, denied).await;
    } else {
        suite.not_applicable(name, "the store knows no permissions");
    }
}

fn sorted(mut writes: Vec<Write>) -> Vec<Write> {
    writes.sort_by(|a, b| a.key.cmp(&b.key));
    writes
}

async fn empty_listing<H: Harness>(bench: &Bench<'_, H>) {
    assert_eq!(bench.watch().listing().await, []);
    let written = bench.create(&bench.key("key"), "value").await;
    bench.delete(&written).await;
    assert_eq!(bench.watch().listing().await, [], "the key was deleted");
}

async fn listing<H: Harness>(bench: &Bench<'_, H>) {
    let first = bench.create(&bench.key("a"), "first").await;
    let second = bench.create(&bench.key("b"), "second").await;
    let second = bench.update(&second, "newer").await;
    let gone = bench.create(&bench.key("c"), "gone").await;
    bench.delete(&gone).await;
    assert_eq!(sorted(bench.watch().listing().await), [first, second]);
}

async fn long_listing<H: Harness>(bench: &Bench<'_, H>) {
    let mut tasks = JoinSet::new();
    for task in 0..10 {
        let (store, prefix) = (bench.store.clone(), bench.prefix.clone());
        tasks.spawn(async move {
            let mut written = Vec::new();
            for i in 0..60 {
                written.push(put(&*store, &format!("{prefix}{task}/{i}"), "value", Expected::Absent).await);
            }
            written
        });
    }
    let written = tasks.join_all().await.concat();
    let mut watch = bench.watch();
    assert_eq!(sorted(watch.listing().await), sorted(written.clone()));
    let next = bench.update(&written[0], "newer").await;
    assert_eq!(watch.change().await, next);
}

async fn own_write<H: Harness>(bench: &Bench<'_, H>) {
    let mut watch = bench.watch();
    watch.listing().await;
    let created = bench.create(&bench.key("key"), "value").await;
    assert_eq!(watch.change().await, created);
    let updated = bench.update(&created, "newer").await;
    assert_eq!(watch.change().await, updated);
    let empty = bench.update(&updated, "").await;
    assert_eq!(watch.change().await, empty);
}

async fn own_deletion<H: Harness>(bench: &Bench<'_, H>) {
    let created = bench.create(&bench.key("key"), "value").await;
    let mut watch = bench.watch();
    assert_eq!(watch.listing().await, std::slice::from_ref(&created));
    let deleted = bench.delete(&created).await;
    let reported = watch.change().await;
    assert_eq!(reported, deleted);
    let again = bench.create(&created.key, "value").await;
    assert_eq!(watch.change().await, again);
    let versions = [created.version, reported.version, again.version];
    assert!(versions[0] != versions[1] && versions[1] != versions[2], "{versions:?}");
    let grows = |revision: fn(&Version) -> Option<u64>| {
        let revisions: Vec<_> = versions.iter().map(revision).collect();
        revisions.iter().all(Option::is_none)
            || revisions.iter().all(Option::is_some) && revisions.is_sorted_by(|a, b| a < b)
    };
    assert!(grows(Version::revision) && grows(Version::key_revision), "{versions:?}");
}

/// Writes some keys many times, with deletions in between, and ends with a put of each. Returns all
/// writes.
async fn rounds(store: &impl Store, keys: &[String]) -> Vec<Write> {
    let mut writes: Vec<Write> = Vec::new();
    for round in 0..20 {
        for key in keys {
            let last = writes.iter().rfind(|write| *write.key == **key);
            let expected = match last {
                Some(Write { value: Some(_), version, .. }) => Expected::Version(version.clone()),
                _ => Expected::Absent,
            };
            let write = match (round % 5, expected) {
                (3, Expected::Version(expected)) => {
                    store.delete(key, &expected, None).await.expect("a delete of the current version");
                    Write { key: (**key).into(), value: None, version: expected }
                }
                (_, expected) => put(store, key, round.to_string(), expected).await,
            };
            writes.push(write);
        }
    }
    writes
}

async fn order<H: Harness>(bench: &Bench<'_, H>) {
    let mut watch = bench.watch();
    watch.listing().await;
    let written = rounds(&*bench.store, &[bench.key("a"), bench.key("b")]).await;
    watch.follow(&[], &written, bench.harness.coalesces()).await;
    let last = written.last().expect("the list is not empty");
    let next = bench.update(last, "the next write").await;
    assert_eq!(watch.change().await, next);
}

async fn two_watches<H: Harness>(bench: &Bench<'_, H>) {
    let (mut first, mut second) = (bench.watch(), Watched::new(&*bench.store, &bench.prefix));
    first.listing().await;
    second.listing().await;
    let written = rounds(&*bench.store, &[bench.key("a"), bench.key("b")]).await;
    let coalesces = bench.harness.coalesces();
    let first = first.follow(&[], &written, coalesces).await;
    let second = second.follow(&[], &written, coalesces).await;
    let ordered = written.iter().all(|write| write.version.revision().is_some());
    if ordered && !coalesces {
        assert_eq!(first, second, "the order across keys");
    }
}

async fn siblings<H: Harness>(bench: &Bench<'_, H>) {
    let names = ["a", "a.", "a0", "aa/x", "ab", "b", "A/x", "a /x"];
    let names = names.map(|name| bench.key(name)).into_iter().filter(|key| bench.harness.takes_key(key));
    let mut siblings = Vec::new();
    for key in names {
        siblings.push(bench.create(&key, "sibling").await);
    }
    let inside = bench.create(&bench.key("a/x"), "inside").await;
    let mut watch = Watched::new(&*bench.other, &bench.key("a/"));
    assert_eq!(watch.listing().await, std::slice::from_ref(&inside));
    for sibling in &siblings {
        bench.update(sibling, "newer").await;
    }
    let inside = bench.update(&inside, "newer").await;
    assert_eq!(watch.change().await, inside);

    // A prefix may end in the middle of a name.
    let mut watch = Watched::new(&*bench.other, &bench.key("a"));
    let listed = watch.listing().await;
    assert!(listed.iter().all(|write| write.key.starts_with(&bench.key("a"))), "{listed:?}");
    let expected = siblings.iter().filter(|write| write.key.starts_with(&bench.key("a"))).count() + 1;
    assert_eq!(listed.len(), expected, "{listed:?}");
}

async fn pattern<H: Harness>(bench: &Bench<'_, H>) {
    let prefixes = ["*", "?", "[x]", ".*", "%", "_", "x|y", "\\"].map(|prefix| bench.key(prefix));
    for prefix in prefixes.iter().filter(|prefix| bench.harness.takes_key(prefix)) {
        let x = bench.key(format_args!("x{}", prefix.len()));
        if bench.read(&x).await.is_none() {
            bench.create(&x, "only a pattern would match this key").await;
        }
        let inside = bench.create(&format!("{prefix}x"), "inside").await;
        let mut watch = Watched::new(&*bench.other, prefix);
        assert_eq!(watch.listing().await, std::slice::from_ref(&inside), "prefix {prefix:?}");
        let inside = bench.update(&inside, "newer").await;
        assert_eq!(watch.change().await, inside, "prefix {prefix:?}");
    }
}

async fn empty_prefix<H: Harness>(bench: &Bench<'_, H>) {
    let there = bench.create(&bench.key("there"), "value").await;
    let mut watch = Watched::new(&*bench.other, "");
    let listed = watch.listing().await;
    assert!(listed.contains(&there), "{listed:?}");
    let written = bench.create(&bench.key("key"), "value").await;
    assert_eq!(watch.change().await, written);
}

async fn refused_writes<H: Harness>(bench: &Bench<'_, H>) {
    let first = bench.create(&bench.key("key"), "first").await;
    let second = bench.update(&first, "second").await;
    let mut watch = bench.watch();
    watch.listing().await;
    let stale = Expected::Version(first.version.clone());
    assert!(bench.store.put(&first.key, "late".into(), Expected::Absent, None).await.is_err());
    assert!(bench.store.put(&first.key, "late".into(), stale.clone(), None).await.is_err());
    assert!(bench.store.put(&bench.key("other"), "late".into(), stale, None).await.is_err());
    assert!(bench.store.delete(&first.key, &first.version, None).await.is_err());
    let third = bench.update(&second, "third").await;
    assert_eq!(watch.change().await, third);
}

async fn concurrent<H: Harness>(bench: &Bench<'_, H>) {
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let (store, key) = (bench.store.clone(), bench.key(writer));
        writers.spawn(async move { rounds(&*store, &[key]).await });
    }
    // Each watch starts at a different point of the writers' work.
    let mut watches = Vec::new();
    for _ in 0..8 {
        let mut watch = bench.watch();
        let listed = watch.listing().await;
        watches.push((watch, listed));
    }
    let written = writers.join_all().await.concat();
    for (mut watch, listed) in watches {
        watch.follow(&listed, &written, bench.harness.coalesces()).await;
    }
}

async fn late_reader<H: Harness>(bench: &Bench<'_, H>) {
    let mut watch = bench.watch();
    watch.listing().await;
    let mut written = Vec::new();
    for i in 0..10 {
        written.extend(rounds(&*bench.store, &[bench.key(i)]).await);
    }
    watch.follow(&[], &written, bench.harness.coalesces()).await;
}

async fn large_values<H: Harness>(bench: &Bench<'_, H>) {
    let mut watch = bench.watch();
    watch.listing().await;
    // Together the values exceed the message size limit of some protocols.
    let mut written = Vec::new();
    for i in 0..8 {
        let value = Bytes::from(vec![i; bench.harness.largest_value()]);
        written.push(bench.create(&bench.key(i), value).await);
    }
    watch.follow(&[], &written, bench.harness.coalesces()).await;
    assert_eq!(sorted(bench.watch().listing().await), sorted(written));
}

async fn dropped_watch<H: Harness>(bench: &Bench<'_, H>) {
    let mut stays = bench.watch();
    stays.listing().await;
    // Drop a watch before it starts, within its listing, after that, and while it awaits an event.
    drop(bench.watch());
    let written = bench.create(&bench.key("key"), "value").await;
    let mut dropped = bench.watch();
    assert_eq!(dropped.event().await, Event::Init);
    drop(dropped);
    let mut dropped = bench.watch();
    dropped.listing().await;
    let waiting = futures_util::FutureExt::now_or_never(dropped.event());
    assert_eq!(waiting, None);
    drop(dropped);

    assert_eq!(stays.change().await, written);
    let newer = bench.update(&written, "newer").await;
    assert_eq!(stays.change().await, newer);
}

async fn gap<H: Harness>(bench: &Bench<'_, H>) {
    let gone = bench.create(&bench.key("gone"), "before the gap").await;
    let changed = bench.create(&bench.key("changed"), "before the gap").await;
    let same = bench.create(&bench.key("same"), "before the gap").await;
    let mut watch = bench.watch();
    assert_eq!(watch.listing().await.len(), 3);

    bench.delete(&gone).await;
    let changed = bench.update(&changed, "in the gap").await;
    let new = bench.create(&bench.key("new"), "in the gap").await;
    bench.harness.gap().await;

    // Events that had already arrived may come first, and an error may report the interruption.
    loop {
        match watch.item().await {
            Ok(Event::Init) => break,
            Ok(Event::Put(_) | Event::Delete { .. }) | Err(StoreError::Unavailable { .. }) => {}
            other => panic!("{other:?} instead of a fresh listing"),
        }
    }
    assert_eq!(sorted(watch.entries().await), sorted(vec![changed.clone(), new, same]));
    // The older handles may have lost their connections in the gap, so write through a new one.
    let store = bench.harness.store().await;
    let expected = Expected::Version(changed.version.clone());
    let next = put(&store, &changed.key, "after the gap", expected).await;
    assert_eq!(watch.change().await, next);
}

async fn denied<H: Harness>(bench: &Bench<'_, H>) {
    let first = bench.create(&bench.key("first"), "before the denial").await;
    let mut watch = bench.watch();
    assert_eq!(watch.listing().await, std::slice::from_ref(&first));
    bench.harness.deny(true).await;
    // The connection breaks first, and a listing may begin that cannot be completed.
    loop {
        match watch.item().await {
            Err(StoreError::Denied { .. }) => break,
            Ok(Event::Init) | Err(StoreError::Unavailable { .. }) => {}
            other => panic!("{other:?} instead of a denial"),
        }
    }
    bench.harness.deny(false).await;
    let entries = loop {
        match watch.item().await {
            Ok(Event::Init) => break watch.entries().await,
            Ok(Event::Resumed) => break vec![first.clone()],
            Err(StoreError::Denied { .. } | StoreError::Unavailable { .. }) => {}
            other => panic!("{other:?} instead of a fresh listing"),
        }
    };
    assert_eq!(entries, std::slice::from_ref(&first));
    let store = bench.harness.store().await;
    let next = put(&store, &first.key, "afterwards", Expected::Version(first.version.clone())).await;
    assert_eq!(watch.change().await, next);
}

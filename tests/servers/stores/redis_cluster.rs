//! Redis clusters that change while a store and its watch are in use.

use std::{
    collections::HashMap,
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use writerlease::{
    redis::RedisStore,
    store::{Event, Expected, Store, StoreError, Version},
};
use writerlease_test_support::{
    server::{RedisCluster, RedisServer},
    watch::Watch,
};

/// The longest wait, only against hanging.
const LONG: Duration = Duration::from_secs(20);
const REQUEST: Duration = Duration::from_secs(2);

fn connect(cluster: &RedisCluster) -> RedisStore {
    RedisStore::cluster(cluster.endpoints()).expect("valid URLs").request_timeout(REQUEST)
}

/// Writes a key, whatever its state, again and again while the store is unavailable.
async fn write(store: &RedisStore, key: &str) -> Version {
    let started = Instant::now();
    loop {
        match overwrite(store, key).await {
            Ok(version) => return version,
            Err(StoreError::Unavailable { .. }) if started.elapsed() < LONG => {
                sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{key}: {error:?}"),
        }
    }
}

async fn overwrite(store: &RedisStore, key: &str) -> Result<Version, StoreError> {
    let entry = store.get(key).await?;
    let expected = entry.map_or(Expected::Absent, |entry| Expected::Version(entry.version));
    store.put(key, "value".into(), expected, None).await
}

/// Waits until the watch reports this write, or a listing with it.
async fn reported(watch: &mut Watch, key: &str, version: &Version) {
    let waited = timeout(LONG, async {
        loop {
            match watch.event().await {
                Event::Put(entry) | Event::InitEntry(entry)
                    if *entry.key == *key && entry.version == *version =>
                {
                    break;
                }
                _ => {}
            }
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{key} is not reported"));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_follows_a_slot_to_a_new_node() {
    let mut cluster = RedisCluster::start().await;
    let store = connect(&cluster);
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    let new = cluster.grow().await;
    let slot = cluster.slot("k/moved").await;
    // Without keys, no server has anything to report.
    cluster.begin_move(slot, new).await;
    cluster.end_move(slot, new).await;
    let written = Instant::now();
    let version = write(&store, "k/moved").await;
    reported(&mut watch, "k/moved", &version).await;
    println!("reported after {:?}", written.elapsed());
    for key in ["k/moved", "k/stays"] {
        let version = write(&store, key).await;
        reported(&mut watch, key, &version).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_in_migration_to_a_new_node_is_used_and_watched() {
    let mut cluster = RedisCluster::start().await;
    let store = connect(&cluster);
    let keys: Vec<_> = (0..20).map(|number| format!("k/{{slot}}/{number}")).collect();
    for key in &keys {
        write(&store, key).await;
    }
    let elsewhere: Vec<_> = (0..10).map(|number| format!("k/{number}")).collect();
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), keys.len());
    let new = cluster.grow().await;
    let slot = cluster.slot(&keys[0]).await;
    cluster.begin_move(slot, new).await;
    assert_eq!(cluster.move_keys(slot, new, 10).await, 10);
    // The migration stands still from here on, and no node knows a script.
    for node in &cluster.nodes {
        node.ask("SCRIPT FLUSH").await;
    }
    let created: Vec<_> = (0..3).map(|number| format!("k/{{slot}}/created/{number}")).collect();
    for key in keys.iter().chain(&created).chain(&elsewhere) {
        for store in [&store, &connect(&cluster)] {
            let version = overwrite(store, key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
            reported(&mut watch, key, &version).await;
        }
    }
    let mut late = Watch::of(&connect(&cluster), "k/");
    assert_eq!(late.listing().await.len(), keys.len() + created.len() + elsewhere.len());
    for key in keys.iter().chain(&created) {
        let version = store.get(key).await.expect("it is readable").expect("it exists").version;
        store.delete(key, &version, None).await.expect("it can be deleted");
        for watch in [&mut watch, &mut late] {
            while !matches!(watch.event().await, Event::Delete { key: deleted, .. } if *deleted == **key) {}
        }
    }
    while cluster.move_keys(slot, new, 100).await > 0 {}
    cluster.end_move(slot, new).await;
    for watch in [&mut watch, &mut late] {
        let version = write(&store, &keys[0]).await;
        reported(watch, &keys[0], &version).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_tell_no_address_are_listed_and_watched() {
    let cluster = RedisCluster::start().await;
    for node in &cluster.nodes {
        node.ask("CONFIG SET cluster-preferred-endpoint-type unknown-endpoint").await;
    }
    // One node is known, and redirects without a host.
    let store = RedisStore::cluster([cluster.nodes[0].endpoint()]).expect("a valid URL");
    let keys: Vec<_> = (0..20).map(|number| format!("k/{number}")).collect();
    for key in &keys {
        write(&store, key).await;
    }
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), keys.len());
    for key in &keys {
        let version = write(&store, key).await;
        reported(&mut watch, key, &version).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_without_a_cluster_are_not_believed() {
    let cluster = RedisCluster::start().await;
    let store = connect(&cluster);
    write(&store, "k/1").await;
    // It knows neither slots nor other nodes.
    let lone = RedisServer::start_with(["--cluster-enabled", "yes"]).await;
    let alone = RedisStore::cluster([lone.endpoint()]).expect("a valid URL").request_timeout(REQUEST);
    Watch::of(&alone, "k/").interrupted().await;
    let get = alone.get("k/1").await;
    assert!(matches!(get, Err(StoreError::Unavailable { .. })), "{get:?}");
    let seeds = [lone.endpoint(), cluster.nodes[0].endpoint()];
    for _ in 0..4 {
        let store = RedisStore::cluster(seeds.clone()).expect("valid URLs").request_timeout(REQUEST);
        assert_eq!(Watch::of(&store, "k/").listing().await.len(), 1);
        assert!(store.get("k/1").await.expect("it is readable").is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_others_are_written_while_a_node_is_dead() {
    let mut cluster = RedisCluster::start_with(["--cluster-require-full-coverage", "no"]).await;
    for silent in [true, false] {
        let store = connect(&cluster);
        let key = "k/1";
        write(&store, key).await;
        let owner = cluster.owner(key).await;
        let dead = (owner + 1) % 3;
        if silent {
            cluster.nodes[dead].pause();
        } else {
            cluster.nodes[dead].kill();
        }
        for store in [&store, &connect(&cluster)] {
            for flushed in [false, true] {
                if flushed {
                    cluster.nodes[owner].ask("SCRIPT FLUSH").await;
                }
                let written = overwrite(store, key).await;
                assert!(written.is_ok(), "silent {silent}, flushed {flushed}: {written:?}");
            }
        }
        if silent {
            cluster.nodes[dead].resume();
        } else {
            cluster.nodes[dead].restart().await;
        }
        cluster.complete().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_counted_where_the_key_is() {
    let mut cluster = RedisCluster::start().await;
    cluster.add_replica(0).await;
    let store = connect(&cluster).replicas(1);
    for number in 0..10 {
        let key = format!("k/{number}");
        let written = store.put(&key, "value".into(), Expected::Absent, None).await;
        match cluster.owner(&key).await {
            0 => assert!(written.is_ok(), "{written:?}"),
            _ => assert!(matches!(written, Err(StoreError::Unavailable { .. })), "{written:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn promoted_replicas_are_used_and_watched() {
    let mut cluster = RedisCluster::start().await;
    cluster.add_replica(0).await;
    let store = connect(&cluster);
    let mut watch = Box::pin(store.watch("k/"));
    let mut numbers = 0..;
    let key = loop {
        let key = format!("k/{}", numbers.next().expect("there is always a next one"));
        if cluster.owner(&key).await == 0 {
            break key;
        }
    };
    write(&store.clone().replicas(1), &key).await;
    cluster.nodes[0].kill();
    let killed = Instant::now();
    let version = write(&store, &key).await;
    println!("written {:?} after the master was killed", killed.elapsed());
    let waited = timeout(LONG, async {
        loop {
            match watch.next().await.expect("it goes on") {
                Ok(Event::Put(entry) | Event::InitEntry(entry)) if entry.version == version => break,
                _ => {}
            }
        }
    });
    waited.await.expect("the write is reported");
    println!("reported {:?} after the master was killed", killed.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn users_who_may_ask_only_for_slots_are_served() {
    let cluster = RedisCluster::start().await;
    for node in &cluster.nodes {
        node.ask("ACL SETUSER app on >secret ~* +@all -cluster|shards").await;
    }
    let url = cluster.nodes[0].endpoint().replace("redis://", "redis://app:secret@");
    let store = RedisStore::cluster([url]).expect("a valid URL").request_timeout(REQUEST);
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    for number in 0..10 {
        let key = format!("k/{number}");
        let version = write(&store, &key).await;
        reported(&mut watch, &key, &version).await;
    }
}

/// The writes that the watch has not reported yet: when each was acknowledged.
type Awaited = Arc<Mutex<HashMap<String, (u64, Instant)>>>;

/// Writes keys in turn until it is told to stop. Returns how many writes succeeded, and the longest
/// time that a write of one key did not succeed, with its last error.
async fn load(
    store: RedisStore,
    stop: Arc<AtomicBool>,
    awaited: Awaited,
    keys: Vec<String>,
) -> (u64, Duration) {
    let (mut written, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        for key in &keys {
            let started = Instant::now();
            let version = loop {
                match overwrite(&store, key).await {
                    Ok(version) => break version,
                    Err(StoreError::Unavailable { .. } | StoreError::Conflict { .. }) => {
                        assert!(started.elapsed() < LONG, "{key}: fails for good");
                    }
                    Err(error) => panic!("{key}: {error:?}"),
                }
            };
            written += 1;
            longest = longest.max(started.elapsed());
            let revision = version.key_revision().expect("it is counted");
            awaited.lock().entry(key.clone()).or_insert((revision, Instant::now()));
            sleep(Duration::from_millis(1)).await;
        }
    }
    (written, longest)
}

/// Reads the watch until it is told to stop. Returns the longest time between the acknowledgement of
/// a write and its report, how many listings there were, and how many interruptions.
async fn look_on(store: RedisStore, stop: Arc<AtomicBool>, awaited: Awaited) -> (Duration, u64, u64) {
    let mut watch = Box::pin(store.watch("load/"));
    let (mut blind, mut listings, mut interruptions) = (Duration::ZERO, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok(item) = timeout(Duration::from_millis(100), watch.next()).await else { continue };
        match item.expect("it goes on") {
            Ok(Event::Put(entry) | Event::InitEntry(entry)) => {
                let mut awaited = awaited.lock();
                let seen = awaited.get(&*entry.key).filter(|(revision, _)| {
                    // A newer write replaces those before it.
                    entry.version.key_revision().is_some_and(|seen| seen >= *revision)
                });
                if let Some((_, since)) = seen {
                    blind = blind.max(since.elapsed());
                    awaited.remove(&*entry.key);
                }
            }
            Ok(Event::InitDone) => listings += 1,
            Ok(_) => {}
            Err(error) => {
                println!("interrupted: {error}");
                interruptions += 1;
            }
        }
    }
    let unseen = awaited.lock().values().map(|(_, since)| since.elapsed()).max();
    (blind.max(unseen.unwrap_or_default()), listings, interruptions)
}

/// `SECONDS=120` for the figure.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_grows_and_shrinks_under_load() {
    let seconds = env::var("SECONDS").map_or(20, |seconds| seconds.parse().expect("a number"));
    let mut cluster = RedisCluster::start().await;
    // A client of an application that was started before all changes.
    let endpoints = cluster.endpoints();
    let store = || RedisStore::cluster(endpoints.clone()).expect("valid URLs").request_timeout(REQUEST);
    let stop: Arc<AtomicBool> = Arc::default();
    let awaited = Awaited::default();
    let watcher = tokio::spawn(look_on(store(), stop.clone(), awaited.clone()));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            // Some slots have many keys, and most have one.
            let keys = (0..50).map(|key| match key % 5 {
                0 => format!("load/{{{writer}}}/{key}"),
                _ => format!("load/{writer}/{key}"),
            });
            tokio::spawn(load(store(), stop.clone(), awaited.clone(), keys.collect()))
        })
        .collect();
    let (started, mut moved, mut rounds) = (Instant::now(), 0, 0);
    while started.elapsed() < Duration::from_secs(seconds) {
        let new = cluster.grow().await;
        let mut slots = Vec::new();
        for writer in 0..4 {
            for key in [format!("{{{writer}}}"), format!("load/{writer}/1"), format!("load/{writer}/2")] {
                slots.push(cluster.slot(&key).await);
            }
        }
        for slot in &slots {
            cluster.begin_move(*slot, new).await;
            cluster.move_keys(*slot, new, 5).await;
        }
        // All of them stand still for a while.
        sleep(Duration::from_millis(500)).await;
        for slot in &slots {
            while cluster.move_keys(*slot, new, 100).await > 0 {}
            cluster.end_move(*slot, new).await;
        }
        moved += slots.len();
        for slot in cluster.slots(new) {
            cluster.move_slot(slot, slot % 3).await;
            moved += 1;
        }
        cluster.remove(new).await;
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    let (mut written, mut longest) = (0, Duration::ZERO);
    for writer in writers {
        let (count, time) = writer.await.expect("no write fails for good");
        written += count;
        longest = longest.max(time);
    }
    let (blind, listings, interruptions) = watcher.await.expect("the watch goes on");
    println!(
        "{seconds} s, {rounds} nodes came and went, {moved} slots moved: {written} writes, none failed for good; \
         the slowest took {longest:?}; the watch was blind for at most {blind:?}, with {listings} listings \
         and {interruptions} interruptions"
    );
    // Only against a watch that is deaf to a node.
    assert!(blind < LONG / 2, "{blind:?}");
}

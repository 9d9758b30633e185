//! Failovers of Redis: by Sentinel, and behind one address.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use writerlease::{
    redis::RedisStore,
    store::{Event, Expected, Store, StoreError, Version},
};
use writerlease_test_support::{
    proxy::Proxy,
    server::{RedisSentinel, RedisServer},
    watch::Watch,
};

/// The longest wait, only against hanging. On a busy machine sentinels pause for half a minute at a
/// time, and an election that fails is repeated after twice their timeout.
const LONG: Duration = Duration::from_secs(120);
const REQUEST: Duration = Duration::from_secs(1);

async fn overwrite(store: &RedisStore, key: &str, value: &str) -> Result<Version, StoreError> {
    let entry = store.get(key).await?;
    let expected = entry.map_or(Expected::Absent, |entry| Expected::Version(entry.version));
    store.put(key, value.to_owned().into(), expected, None).await
}

/// Writes again and again while the store is unavailable.
async fn write(store: &RedisStore, key: &str, value: &str) -> Version {
    let started = Instant::now();
    loop {
        match overwrite(store, key, value).await {
            Ok(version) => return version,
            Err(StoreError::Unavailable { .. } | StoreError::Conflict { .. }) if started.elapsed() < LONG => {
                sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// Waits until the watch reports this write, whatever interrupts it.
async fn reported(watch: &mut Watch, version: &Version) {
    let waited = timeout(LONG, async {
        loop {
            match watch.next().await.expect("it goes on") {
                Ok(Event::Put(entry) | Event::InitEntry(entry)) if entry.version == *version => break,
                _ => {}
            }
        }
    });
    waited.await.expect("the write is reported");
}

#[tokio::test(flavor = "multi_thread")]
async fn store_follows_the_sentinels_to_the_new_master() {
    let mut first = RedisServer::start().await;
    let second = RedisServer::start_replica_of(&first).await;
    let sentinels = RedisSentinel::start_three(&first).await;
    let endpoints = sentinels.each_ref().map(RedisSentinel::endpoint);
    let store = RedisStore::sentinel(endpoints.clone(), "redis://mymaster").expect("valid URLs");
    let store = store.request_timeout(REQUEST);
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    let version = write(&store.clone().replicas(1), "k/1", "1").await;
    reported(&mut watch, &version).await;

    first.kill();
    let killed = Instant::now();
    let version = write(&store, "k/1", "2").await;
    println!("written {:?} after the master was killed", killed.elapsed());
    assert!(second.ask_again("HGET k/1 value").await.ends_with("2\r\n"));
    reported(&mut watch, &version).await;

    // The former master takes itself for one until the sentinels tell it otherwise.
    first.restart().await;
    let later = RedisStore::sentinel(endpoints, "redis://mymaster").expect("valid URLs");
    for (store, value) in [(&store, "3"), (&later, "4")] {
        let version = write(store, "k/1", value).await;
        assert!(second.ask_again("HGET k/1 value").await.ends_with(&format!("{value}\r\n")));
        reported(&mut watch, &version).await;
    }

    let restarted = Instant::now();
    leads_and_is_followed(&sentinels[0], &second, &first).await;
    println!("the former master follows {:?} after it was restarted", restarted.elapsed());
    let asked = Instant::now();
    leads_and_is_followed(&sentinels[0], &first, &second).await;
    println!("it is the master again, and followed, after {:?}", asked.elapsed());
    for (store, value) in [(&store, "5"), (&later, "6")] {
        let version = write(store, "k/1", value).await;
        assert!(first.ask_again("HGET k/1 value").await.ends_with(&format!("{value}\r\n")));
        reported(&mut watch, &version).await;
    }
}

/// Waits until one server is the master, and the other its replica. For about ten seconds after a
/// failover both are masters, because Sentinel leaves a former one alone for that long.
async fn leads_and_is_followed(sentinel: &RedisSentinel, master: &RedisServer, replica: &RedisServer) {
    let started = Instant::now();
    loop {
        // On a busy machine the sentinels may change the master by themselves.
        sentinel.make_master(master).await;
        let roles = [master.ask_again("ROLE").await, replica.ask_again("ROLE").await];
        if roles[0].contains("master") && roles[1].contains("slave") {
            return;
        }
        assert!(started.elapsed() < LONG, "{roles:?}\n{}", sentinel.log());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_that_are_silent_or_dead_do_not_matter() {
    let first = RedisServer::start().await;
    let _second = RedisServer::start_replica_of(&first).await;
    let mut sentinels = RedisSentinel::start_three(&first).await;
    let endpoints = sentinels.each_ref().map(RedisSentinel::endpoint);
    sentinels[0].pause();
    sentinels[1].kill();
    let store = RedisStore::sentinel(endpoints.clone(), "redis://mymaster/0").expect("valid URLs");
    write(&store, "k/1", "1").await;
    let unknown = RedisStore::sentinel([sentinels[2].endpoint()], "redis://theirs").expect("valid URLs");
    let get = unknown.get("k/1").await;
    assert!(
        matches!(&get, Err(StoreError::Unavailable { reason, .. }) if reason.contains("theirs")),
        "{get:?}"
    );
}

#[tokio::test]
async fn malformed_sentinels_are_invalid() {
    let nobody = RedisStore::sentinel::<&str>([], "redis://mymaster");
    assert!(matches!(nobody, Err(StoreError::Invalid { .. })), "{nobody:?}");
    for (sentinel, master) in [("nonsense", "redis://mymaster"), ("redis://localhost", "unix:///socket")] {
        let store = RedisStore::sentinel([sentinel], master);
        assert!(matches!(store, Err(StoreError::Invalid { .. })), "{store:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn demoted_master_behind_one_address_is_left() {
    let first = RedisServer::start().await;
    let second = RedisServer::start_replica_of(&first).await;
    let proxy = Proxy::start(first.address()).await;
    let store = RedisStore::new(format!("redis://{}", proxy.address())).expect("a valid URL");
    let store = store.request_timeout(REQUEST);
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    write(&store.clone().replicas(1), "k/1", "1").await;
    assert!(matches!(watch.event().await, Event::Put(_)));

    second.ask("REPLICAOF NO ONE").await;
    // It is a replica that hears of nothing, and no connection to it breaks.
    first.ask("REPLICAOF 127.0.0.1 1").await;
    proxy.lead_to(second.address());
    let direct = RedisStore::new(second.endpoint()).expect("a valid URL");
    let version = write(&direct, "k/1", "2").await;
    for _ in 0..20 {
        match store.get("k/1").await {
            Ok(entry) => assert_eq!(entry.map(|entry| entry.version), Some(version.clone()), "a stale read"),
            Err(StoreError::Unavailable { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    reported(&mut watch, &version).await;
    let version = write(&store, "k/1", "3").await;
    reported(&mut watch, &version).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_unavailable_until_they_are_promoted() {
    let master = RedisServer::start().await;
    let replica = RedisServer::start_replica_of(&master).await;
    let store = RedisStore::new(replica.endpoint()).expect("a valid URL").request_timeout(REQUEST);
    let mut watch = Watch::of(&store, "k/");
    watch.interrupted().await;
    for error in [store.get("k/1").await.map(drop), overwrite(&store, "k/1", "1").await.map(drop)] {
        assert!(
            matches!(&error, Err(StoreError::Unavailable { reason, .. }) if reason.contains("replica")),
            "{error:?}"
        );
    }
    replica.ask("REPLICAOF NO ONE").await;
    let version = write(&store, "k/1", "1").await;
    reported(&mut watch, &version).await;
}

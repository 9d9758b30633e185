//! Tests of Redis that the conformance suite cannot make of every store: outages, access control,
//! keys of other programs.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use writerlease::{
    redis::RedisStore,
    store::{Entry, Event, Expected, Fence, Store, StoreError, Version},
};
use writerlease_test_support::{
    proxy::Proxy,
    server::{RedisCluster, RedisServer},
    watch::Watch,
};

/// The longest wait, only against hanging: nothing below takes nearly as long.
const LONG: Duration = Duration::from_secs(20);
/// The request timeout where a request is to fail. A request that is to succeed gets [`LONG`], or
/// is repeated.
const SHORT: Duration = Duration::from_secs(1);

fn connect(server: &RedisServer) -> RedisStore {
    RedisStore::new(server.endpoint()).expect("a valid URL").request_timeout(LONG)
}

/// Reads the key, again and again while the store is unavailable.
async fn read(store: &RedisStore, key: &str) -> Option<Entry> {
    let deadline = Instant::now() + LONG;
    loop {
        match store.get(key).await {
            Ok(entry) => return entry,
            Err(StoreError::Unavailable { .. }) if Instant::now() < deadline => sleep(SHORT / 100).await,
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn create(store: &RedisStore, key: &str) -> Version {
    store.put(key, "value".into(), Expected::Absent, None).await.expect("the key is new")
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_and_calls_recover_after_a_kill() {
    let mut server = RedisServer::start().await;
    let store = connect(&server);
    let first = create(&store, "k/1").await;
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 1);

    server.kill();
    watch.interrupted().await;
    for _ in 0..2 {
        let put = store.put("k/1", "late".into(), Expected::Version(first.clone()), None).await;
        assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
    }
    server.restart().await;
    let second =
        store.put("k/1", "2".into(), Expected::Version(first), None).await.expect("the first call succeeds");
    assert_eq!(
        watch.listing().await,
        [Entry { key: "k/1".into(), value: "2".into(), version: second.clone() }]
    );
    store.delete("k/1", &second, None).await.unwrap();
    assert!(matches!(watch.event().await, Event::Delete { key, .. } if *key == *"k/1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_tracks_again_after_its_connection_is_killed() {
    let server = RedisServer::start().await;
    let store = connect(&server);
    let mut watch = Watch::of(&store, "k/");
    watch.listing().await;
    for round in 0..3 {
        server.ask("CLIENT KILL TYPE normal").await;
        watch.interrupted().await;
        assert_eq!(watch.listing().await.len(), round);
        let key = format!("k/{round}");
        // The store's own connection was also killed.
        let version = loop {
            match store.put(&key, "value".into(), Expected::Absent, None).await {
                Ok(version) => break version,
                Err(StoreError::Unavailable { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        };
        let entry = Entry { key: key.into(), value: "value".into(), version };
        assert_eq!(watch.event().await, Event::Put(entry));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connection_is_noticed_and_replaced() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let store = RedisStore::new(format!("redis://{}", proxy.address())).expect("a valid URL");
    let (store, direct) = (store.request_timeout(SHORT), connect(&server));
    let version = create(&direct, "k/1").await;
    // The store's own connection has to exist before it becomes half open.
    read(&store, "k/1").await.expect("it exists");
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 1);

    proxy.half_open();
    let put = store.put("k/1", "late".into(), Expected::Version(version.clone()), None).await;
    assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
    assert_eq!(read(&store, "k/1").await.map(|entry| entry.version), Some(version), "on a new connection");
    watch.interrupted().await;
    assert_eq!(watch.listing().await.len(), 1);
    create(&direct, "k/2").await;
    assert!(matches!(watch.event().await, Event::Put(entry) if *entry.key == *"k/2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn flush_is_a_listing_that_fails_stale_writers() {
    let server = RedisServer::start().await;
    let store = connect(&server);
    let stale = create(&store, "k/1").await;
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 1);
    server.ask("FLUSHALL").await;
    assert_eq!(watch.listing().await, []);
    let current = create(&store, "k/1").await;
    assert!(current.key_revision() > stale.key_revision());
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == current));
    let late = store.put("k/1", "late".into(), Expected::Version(stale), None).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_grow_after_the_clock_was_set_back() {
    let server = RedisServer::start().await;
    // As a master wrote it whose clock was a minute ahead.
    let now = server.ask("TIME").await;
    let seconds: u64 = now.lines().nth(2).and_then(|line| line.parse().ok()).expect("the time");
    let ahead = (seconds + 60) * 1_000_000;
    let deleted = async |store: &RedisStore, watch: &mut Watch| {
        let entry = read(store, "k/1").await.expect("it exists");
        store.delete("k/1", &entry.version, None).await.expect("nobody else writes");
        let Event::Delete { version, .. } = watch.event().await else { panic!("no deletion") };
        assert!(version.key_revision() > entry.version.key_revision());
        version
    };
    server.ask(&format!("HSET k/1 value old version {ahead}-00")).await;
    let store = connect(&server);
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 1);
    let version = deleted(&store, &mut watch).await;
    let created = create(&store, "k/1").await;
    assert!(created.key_revision() > version.key_revision());
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == created));
    // A writer who has seen nothing cannot know it, and the watch lists again.
    let version = deleted(&store, &mut watch).await;
    let created = create(&connect(&server), "k/1").await;
    assert!(created.key_revision() < version.key_revision());
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == created));
    assert!(matches!(&watch.listing().await[..], [entry] if entry.version == created));
    // A number that another program made up does not spread.
    server.ask(&format!("HSET k/2 value theirs version {}-00", 2 * ahead)).await;
    assert!(matches!(watch.event().await, Event::Put(_)));
    assert!(create(&store, "k/3").await.key_revision() < Some(ahead));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_lost_its_data_repeats_no_version() {
    let mut server = RedisServer::start().await;
    let store = connect(&server);
    let stale = create(&store, "k/1").await;
    server.forget();
    server.restart().await;
    let current = create(&connect(&server), "k/1").await;
    assert_ne!(current, stale);
    let late = connect(&server).put("k/1", "late".into(), Expected::Version(stale), None).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_reports_writes_of_other_programs() {
    let server = RedisServer::start().await;
    let store = connect(&server);
    let version = create(&store, "k/1").await;
    create(&store, "k/2").await;
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 2);

    server.ask("HSET k/1 value theirs version mine-1").await;
    let Event::Put(entry) = watch.event().await else { panic!("no put") };
    assert_eq!((&entry.value[..], entry.version.token()), (&b"theirs"[..], &b"mine-1"[..]));
    let late = store.put("k/1", "late".into(), Expected::Version(version), None).await;
    assert!(matches!(late, Err(StoreError::Conflict { .. })), "{late:?}");
    let ours = store.put("k/1", "ours".into(), Expected::Version(entry.version), None).await.unwrap();
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == ours));

    server.ask("DEL k/1").await;
    let Event::Delete { version, .. } = watch.event().await else { panic!("no delete") };
    assert!(version.key_revision() > ours.key_revision());
    server.ask("PEXPIRE k/2 1").await;
    // Redis reports the expiry when it is set, while the key still exists, and again when the key
    // is gone.
    assert!(matches!(watch.event().await, Event::Delete { key, .. } if *key == *"k/2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_other_programs_are_left_alone() {
    let server = RedisServer::start().await;
    let store = connect(&server);
    server.ask("SET k/text theirs").await;
    server.ask("HSET k/hash field theirs").await;
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    server.ask("SET k/text newer").await;
    for key in ["k/text", "k/hash"] {
        let put = store.put(key, "ours".into(), Expected::Absent, None).await;
        assert!(matches!(put, Err(StoreError::Invalid { .. })), "{put:?}");
    }
    let get = store.get("k/text").await;
    assert!(matches!(get, Err(StoreError::Invalid { .. })), "{get:?}");
    assert!(server.ask("GET k/text").await.contains("newer"));
    let ours = create(&store, "k/ours").await;
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == ours));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_or_missing_permission_is_denied() {
    let server = RedisServer::start_with(["--requirepass", "secret"]).await;
    let address = server.address();
    server.ask("ACL SETUSER reader on >secret ~k/* +@read +hello +ping +client +time").await;
    let urls = [format!("redis://{address}"), format!("redis://:wrong@{address}")];
    for url in &urls {
        let store = RedisStore::new(url.as_str()).unwrap();
        let get = store.get("k/1").await;
        assert!(matches!(get, Err(StoreError::Denied { .. })), "{url}: {get:?}");
        let mut watch = Watch::of(&store, "k/");
        let item = watch.next().await;
        assert!(matches!(item, Some(Err(StoreError::Denied { .. }))), "{url}: {item:?}");
        let next = timeout(SHORT, watch.next()).await;
        assert!(next.is_err(), "the watch goes on trying, after a pause: {next:?}");
    }
    let reader = RedisStore::new(format!("redis://reader:secret@{address}")).unwrap();
    assert!(matches!(reader.get("k/1").await, Ok(None)));
    let put = reader.put("k/1", "value".into(), Expected::Absent, None).await;
    assert!(matches!(put, Err(StoreError::Denied { .. })), "{put:?}");
    let owner = RedisStore::new(format!("redis://:secret@{address}")).unwrap();
    create(&owner, "k/1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn write_on_too_few_replicas_is_unknown() {
    let server = RedisServer::start().await;
    let store = connect(&server).request_timeout(SHORT).replicas(1);
    let deadline = Instant::now() + LONG;
    // On a busy machine a request may also time out before it was sent.
    let entry = loop {
        let put = store.put("key", "value".into(), Expected::Absent, None).await;
        match put {
            Err(StoreError::Unavailable { .. }) => {}
            Err(StoreError::Conflict { .. }) => {}
            _ => panic!("{put:?}"),
        }
        if let Some(entry) = read(&connect(&server), "key").await {
            break entry;
        }
        assert!(Instant::now() < deadline, "no write reached the master");
    };

    let _replica = RedisServer::start_replica_of(&server).await;
    let store = connect(&server).replicas(1);
    store
        .put("key", "newer".into(), Expected::Version(entry.version), None)
        .await
        .expect("the replica has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_recovers_when_a_killed_node_returns() {
    let mut cluster = RedisCluster::start().await;
    let store = RedisStore::cluster(cluster.endpoints()).unwrap().request_timeout(LONG / 4);
    let keys: Vec<String> = (0..20).map(|i| format!("k/{i}")).collect();
    for key in &keys {
        create(&store, key).await;
    }
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), keys.len());
    cluster.nodes[0].kill();
    watch.interrupted().await;
    cluster.nodes[0].restart().await;
    cluster.complete().await;
    assert_eq!(watch.listing().await.len(), keys.len());
    for key in &keys {
        let written = timeout(LONG, async {
            loop {
                let entry = match store.get(key).await {
                    Ok(entry) => entry.expect("it was kept"),
                    Err(StoreError::Unavailable { .. }) => continue,
                    Err(error) => panic!("{error:?}"),
                };
                match store.put(key, "newer".into(), Expected::Version(entry.version), None).await {
                    Ok(version) => break version,
                    Err(StoreError::Unavailable { .. } | StoreError::Conflict { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        });
        let version = written.await.expect("the cluster is back");
        loop {
            match watch.event().await {
                Event::Put(entry) if entry.version == version => break,
                // A write without an answer may have succeeded before.
                Event::Put(entry) if *entry.key == **key => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_or_missing_server_is_unavailable_in_time() {
    let mut server = RedisServer::start().await;
    let version = create(&connect(&server), "key").await;
    let store = connect(&server).request_timeout(SHORT);
    read(&store, "key").await.expect("it exists");
    server.pause();
    for _ in 0..2 {
        all_unavailable(&store, &version).await;
    }
    server.resume();
    server.kill();
    all_unavailable(&store, &version).await;
    server.restart().await;
    assert!(read(&store, "key").await.is_some());
}

async fn all_unavailable(store: &RedisStore, version: &Version) {
    let since = Instant::now();
    let expected = Expected::Version(version.clone());
    let get = store.get("key").await;
    assert!(matches!(get, Err(StoreError::Unavailable { .. })), "{get:?}");
    let put = store.put("key", "late".into(), expected, None).await;
    assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
    let delete = store.delete("key", &Version::opaque("0-other"), None).await;
    assert!(matches!(delete, Err(StoreError::Unavailable { .. })), "{delete:?}");
    // Three request timeouts are promised; the limit is only against hanging, because a busy
    // machine adds to them.
    println!("three calls failed after {:?}; request timeout {SHORT:?}", since.elapsed());
    assert!(since.elapsed() < LONG, "after {:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_leaves_neither_connections_nor_tasks() {
    let server = RedisServer::start().await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = (server.connections().await, metrics.num_alive_tasks());
    let store = connect(&server);
    let mut watch = Watch::of(&store, "k/");
    watch.listing().await;
    create(&store, "k/1").await;
    assert_eq!(server.connections().await, before.0 + 2);
    drop((watch, store));
    let deadline = Instant::now() + LONG;
    while (server.connections().await, metrics.num_alive_tasks()) != before {
        assert!(Instant::now() < deadline, "{} tasks", metrics.num_alive_tasks());
        sleep(Duration::from_millis(10)).await;
    }
}

/// `KEYS=20000000` for the figure.
#[tokio::test(flavor = "multi_thread")]
async fn listing_ends_by_silence_and_not_by_size() {
    let keys = std::env::var("KEYS").map_or(100_000, |keys| keys.parse::<u64>().expect("a number"));
    let server = RedisServer::start_with(["--enable-debug-command", "yes", "--appendonly", "no"]).await;
    server.ask(&format!("DEBUG POPULATE {keys} theirs 10")).await;
    let store = connect(&server);
    let ours = 100;
    for number in 0..ours {
        create(&store, &format!("k/{number}")).await;
    }
    let before = (server.calls("scan").await, server.calls("hmget").await, server.calls("time").await);
    let started = Instant::now();
    assert_eq!(Watch::of(&store, "k/").listing().await.len(), ours);
    println!("a listing among {keys} other keys took {:?}", started.elapsed());
    let pages = server.calls("scan").await - before.0;
    assert!(pages <= keys / 1000, "{pages} pages");
    assert_eq!(server.calls("hmget").await - before.1, ours as u64, "only these keys are read");
    assert!(server.calls("time").await - before.2 <= ours as u64, "other pages cost no second request");

    // Each answer is in time, and all of them together are not.
    let proxy = Proxy::start(server.address()).await;
    let limit = 4 * SHORT;
    proxy.delay(limit / 12);
    let slow =
        RedisStore::new(format!("redis://{}", proxy.address())).expect("a valid URL").request_timeout(SHORT);
    let started = Instant::now();
    if keys <= 100_000 {
        assert_eq!(Watch::of(&slow, "k/").listing().await.len(), ours);
        assert!(started.elapsed() > limit);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn longest_request_timeout_works() {
    let server = RedisServer::start().await;
    let store = RedisStore::new(server.endpoint()).unwrap().request_timeout(Duration::MAX);
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    let version = create(&store, "k/1").await;
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == version));
    let _replica = RedisServer::start_replica_of(&server).await;
    create(&store.clone().replicas(1), "k/2").await;
    assert!(matches!(watch.event().await, Event::Put(entry) if *entry.key == *"k/2"));
    let never = store.request_timeout(SHORT).replicas(usize::MAX);
    let put = never.put("k/3", "value".into(), Expected::Absent, None).await;
    assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
}

#[tokio::test]
async fn malformed_address_is_invalid() {
    let nonsense = RedisStore::new("http://localhost");
    assert!(matches!(nonsense, Err(StoreError::Invalid { .. })), "{nonsense:?}");
    let nothing = RedisStore::cluster::<&str>([]);
    assert!(matches!(nothing, Err(StoreError::Invalid { .. })), "{nothing:?}");
}

#[tokio::test]
async fn cluster_checks_fences_in_the_keys_slot_only() {
    let cluster = RedisCluster::start().await;
    let store = RedisStore::cluster(cluster.endpoints()).unwrap();
    let fence = Fence::new("redis", "{job}/election", 1).with_proof("us");
    // No candidate holds that lock.
    let refused = store.put("{job}/state", "1".into(), Expected::Absent, Some(&fence)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { token: 1 })), "{refused:?}");
    let mut invalid = 0;
    for key in 0..8 {
        let refused = store.put(&format!("{key}"), "1".into(), Expected::Absent, Some(&fence)).await;
        match refused {
            Err(StoreError::Invalid { .. }) => invalid += 1,
            // This key happens to be in the same slot.
            Err(StoreError::Fenced { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(invalid >= 7, "{invalid}");
}

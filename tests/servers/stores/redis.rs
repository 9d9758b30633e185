//! What the conformance suite cannot ask of every store: outages of Redis, access control, other programs' keys.

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

/// Only against hanging: nothing below takes nearly as long.
const LONG: Duration = Duration::from_secs(20);

fn connect(server: &RedisServer) -> RedisStore {
    RedisStore::new(server.endpoint()).expect("a valid URL").request_timeout(Duration::from_secs(1))
}

fn through(proxy: &Proxy) -> RedisStore {
    let store = RedisStore::new(format!("redis://{}", proxy.address())).expect("a valid URL");
    store.request_timeout(Duration::from_millis(300))
}

async fn create(store: &RedisStore, key: &str) -> Version {
    store.put(key, "value".into(), Expected::Absent, None).await.expect("the key is new")
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_the_watch_lists_again_and_calls_work_again() {
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
        store.put("k/1", "2".into(), Expected::Version(first), None).await.expect("the first call works");
    assert_eq!(
        watch.listing().await,
        [Entry { key: "k/1".into(), value: "2".into(), version: second.clone() }]
    );
    store.delete("k/1", &second, None).await.unwrap();
    assert!(matches!(watch.event().await, Event::Delete { key, .. } if *key == *"k/1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tracks_again_after_its_connection_was_killed() {
    let server = RedisServer::start().await;
    let store = connect(&server);
    let mut watch = Watch::of(&store, "k/");
    watch.listing().await;
    for round in 0..3 {
        server.ask("CLIENT KILL TYPE normal").await;
        watch.interrupted().await;
        assert_eq!(watch.listing().await.len(), round);
        let key = format!("k/{round}");
        // The store's own connection was killed, too.
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
async fn a_half_open_connection_is_noticed_and_replaced() {
    let server = RedisServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let (store, direct) = (through(&proxy), connect(&server));
    let version = create(&store, "k/1").await;
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 1);

    proxy.half_open();
    let put = store.put("k/1", "late".into(), Expected::Version(version.clone()), None).await;
    assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
    assert_eq!(store.get("k/1").await.expect("a new connection").map(|entry| entry.version), Some(version));
    watch.interrupted().await;
    assert_eq!(watch.listing().await.len(), 1);
    create(&direct, "k/2").await;
    assert!(matches!(watch.event().await, Event::Put(entry) if *entry.key == *"k/2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn flushing_the_database_is_told_as_a_fresh_listing_and_stale_writers_still_lose() {
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
async fn a_server_that_lost_its_data_gives_no_version_twice() {
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
async fn what_other_programs_do_to_our_keys_is_told() {
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
    // The expiry is a change of the key, which is still there, and then it is gone.
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
async fn a_wrong_password_or_a_missing_permission_is_denied() {
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
        assert!(watch.next().await.is_none(), "reconnecting cannot mend it");
    }
    let reader = RedisStore::new(format!("redis://reader:secret@{address}")).unwrap();
    assert!(matches!(reader.get("k/1").await, Ok(None)));
    let put = reader.put("k/1", "value".into(), Expected::Absent, None).await;
    assert!(matches!(put, Err(StoreError::Denied { .. })), "{put:?}");
    let owner = RedisStore::new(format!("redis://:secret@{address}")).unwrap();
    create(&owner, "k/1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_too_few_replicas_have_is_unknown() {
    let server = RedisServer::start().await;
    let store = connect(&server).replicas(1);
    let put = store.put("key", "value".into(), Expected::Absent, None).await;
    assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
    let entry = store.get("key").await.unwrap().expect("it landed all the same");

    let _replica = RedisServer::start_replica_of(&server).await;
    // It may take a while to acknowledge, where there is much else to do.
    let store = RedisStore::new(server.endpoint()).unwrap().request_timeout(LONG).replicas(1);
    store
        .put("key", "newer".into(), Expected::Version(entry.version), None)
        .await
        .expect("the replica has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_whose_node_was_killed_works_on_when_it_is_back() {
    let mut cluster = RedisCluster::start().await;
    let store = RedisStore::cluster(cluster.endpoints()).unwrap().request_timeout(Duration::from_secs(1));
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
        let told = watch.event().await;
        assert!(matches!(&told, Event::Put(entry) if entry.version == version), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_the_address_or_nobody_who_answers_is_unavailable_within_the_timeout() {
    let mut server = RedisServer::start().await;
    let store = connect(&server);
    let version = create(&store, "key").await;
    server.pause();
    for _ in 0..2 {
        all_unavailable(&store, &version).await;
    }
    server.resume();
    server.kill();
    all_unavailable(&store, &version).await;
    server.restart().await;
    assert!(store.get("key").await.expect("the server is back").is_some());
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
    // Generous: it is about hanging, not about precision.
    assert!(since.elapsed() < Duration::from_secs(3 + 5), "after {:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_leaves_neither_connections_nor_tasks_behind() {
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

#[tokio::test]
async fn an_address_that_is_none_is_invalid() {
    let nonsense = RedisStore::new("http://localhost");
    assert!(matches!(nonsense, Err(StoreError::Invalid { .. })), "{nonsense:?}");
    let nothing = RedisStore::cluster::<&str>([]);
    assert!(matches!(nothing, Err(StoreError::Invalid { .. })), "{nothing:?}");
}

#[tokio::test]
async fn in_a_cluster_a_fence_is_checked_where_the_key_is_or_else_invalid() {
    let cluster = RedisCluster::start().await;
    let store = RedisStore::cluster(cluster.endpoints()).unwrap();
    let fence = Fence::new("redis", "{job}/election", 1).with_proof("us");
    // Nobody holds that lock.
    let refused = store.put("{job}/state", "1".into(), Expected::Absent, Some(&fence)).await;
    assert!(matches!(refused, Err(StoreError::Fenced { token: 1 })), "{refused:?}");
    let mut invalid = 0;
    for key in 0..8 {
        let refused = store.put(&format!("{key}"), "1".into(), Expected::Absent, Some(&fence)).await;
        match refused {
            Err(StoreError::Invalid { .. }) => invalid += 1,
            // This one happens to be in the same slot.
            Err(StoreError::Fenced { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(invalid >= 7, "{invalid}");
}

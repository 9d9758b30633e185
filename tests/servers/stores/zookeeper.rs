//! Tests of ZooKeeper that the conformance suite cannot make of every store: sessions, access
//! control, names, data versions.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};
use writerlease::{
    store::{Entry, Event, Expected, Store, StoreError, Version},
    zookeeper::{ZookeeperAccess, ZookeeperStore},
};
use writerlease_test_support::{proxy::Proxy, server::ZookeeperServer, watch::Watch};
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Permission};

/// The longest wait, only against hanging: nothing below takes nearly as long.
const LONG: Duration = Duration::from_secs(20);
/// The request timeout where a request is to fail. A request that is to succeed gets [`LONG`], or
/// is repeated.
const SHORT: Duration = Duration::from_secs(1);
pub const BASE: &str = "/tests/store";

pub fn with_access(server: &ZookeeperServer, access: ZookeeperAccess) -> ZookeeperStore {
    let store = ZookeeperStore::new(&server.endpoint(), BASE, access).expect("a valid address");
    // A session that outlasts every pause of a busy machine, and the restart of a server.
    store.session_timeout(LONG).request_timeout(LONG)
}

pub fn connect(server: &ZookeeperServer) -> ZookeeperStore {
    with_access(server, ZookeeperAccess::open())
}

pub async fn create(store: &ZookeeperStore, key: &str) -> Version {
    store.put(key, "value".into(), Expected::Absent, None).await.expect("the key is new")
}

pub async fn update(store: &ZookeeperStore, key: &str, version: &Version) -> Result<Version, StoreError> {
    store.put(key, "newer".into(), Expected::Version(version.clone()), None).await
}

#[track_caller]
pub fn assert_conflict<T: std::fmt::Debug>(refused: Result<T, StoreError>) {
    assert!(matches!(refused, Err(StoreError::Conflict { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_writer_loses_despite_an_equal_data_version() {
    let server = ZookeeperServer::start().await;
    let (store, other) = (connect(&server), connect(&server));
    for round in 0..4 {
        let key = format!("k/{round}");
        let stale = update(&store, &key, &create(&store, &key).await).await.unwrap();
        // In half of the rounds the stale writer's store has seen the newest deletion, in the
        // others it has not.
        let deleter = if round % 2 == 0 { &store } else { &other };
        deleter.delete(&key, &stale, None).await.unwrap();
        let current = update(&other, &key, &create(&other, &key).await).await.unwrap();
        assert_eq!(stale.token(), current.token(), "both are the second write of a node");
        assert_conflict(update(&store, &key, &stale).await);
        assert_conflict(store.delete(&key, &stale, None).await);
        // A store without any history is refused as well.
        assert_conflict(update(&connect(&server), &key, &stale).await);
        update(&store, &key, &current).await.expect("no other client wrote since");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_of_other_keys_refuse_no_write() {
    let server = ZookeeperServer::start().await;
    let store = connect(&server);
    let mut version = create(&store, "key").await;
    let deleting = {
        let store = connect(&server);
        tokio::spawn(async move {
            for i in 0..100 {
                let key = format!("other/{i}");
                store.delete(&key, &create(&store, &key).await, None).await.unwrap();
            }
        })
    };
    for _ in 0..100 {
        version = update(&store, "key", &version).await.expect("no other client writes this key");
    }
    deleting.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn session_that_expired_unnoticed_is_replaced() {
    let server = ZookeeperServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let through = format!("{}", proxy.address());
    let store = ZookeeperStore::new(&through, BASE, ZookeeperAccess::open()).unwrap();
    let store = store.session_timeout(2 * SHORT).request_timeout(SHORT);
    let direct = connect(&server);
    let version = create(&direct, "k/1").await;
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 1);
    let before = server.sessions().await;

    proxy.stall();
    watch.interrupted().await;
    let put = update(&store, "k/1", &version).await;
    assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
    let deadline = Instant::now() + LONG;
    while server.sessions().await >= before {
        assert!(Instant::now() < deadline, "the session does not expire");
        sleep(Duration::from_millis(50)).await;
    }
    create(&direct, "k/2").await;
    proxy.heal();
    assert_eq!(watch.listing().await.len(), 2, "in a new session");
    create(&direct, "k/3").await;
    loop {
        match watch.event().await {
            Event::Put(entry) if *entry.key == *"k/3" => break,
            // The write without an answer may have succeeded.
            Event::Put(entry) if *entry.key == *"k/1" => {}
            other => panic!("{other:?}"),
        }
    }
    loop {
        let Ok(entry) = store.get("k/1").await else { continue };
        let updated = update(&store, "k/1", &entry.expect("it exists").version).await;
        match updated {
            Ok(_) => break,
            // A busy machine takes longer than the request timeout; such a write may have
            // succeeded.
            Err(StoreError::Unavailable { .. } | StoreError::Conflict { .. })
                if Instant::now() < deadline + LONG => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_and_calls_recover_after_a_kill() {
    let mut server = ZookeeperServer::start().await;
    let store = connect(&server);
    let first = create(&store, "k/1").await;
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 1);
    server.restart().await;
    watch.interrupted().await;
    assert_eq!(watch.listing().await.len(), 1);
    let second = update(&store, "k/1", &first).await.expect("the session goes on");
    let entry = Entry { key: "k/1".into(), value: "newer".into(), version: second };
    assert_eq!(watch.event().await, Event::Put(entry));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_creator_has_access_unless_open() {
    let server = ZookeeperServer::start().await;
    let owner = with_access(&server, ZookeeperAccess::digest("owner", "secret"));
    let version = create(&owner, "k/1").await;
    update(&with_access(&server, ZookeeperAccess::digest("owner", "secret")), "k/1", &version).await.unwrap();
    let others = [
        ZookeeperAccess::open(),
        ZookeeperAccess::digest("owner", "wrong"),
        ZookeeperAccess::digest("other", "secret"),
    ];
    for access in others {
        let other = with_access(&server, access.clone());
        let get = other.get("k/1").await;
        assert!(matches!(get, Err(StoreError::Denied { .. })), "{access:?}: {get:?}");
        let put = create_refused(&other, "k/2").await;
        assert!(matches!(put, Err(StoreError::Denied { .. })), "{access:?}: {put:?}");
        let put = update(&other, "k/1", &version).await;
        assert!(matches!(put, Err(StoreError::Denied { .. } | StoreError::Conflict { .. })), "{put:?}");
        let mut watch = Watch::of(&other, "k/");
        let item = watch.next().await;
        assert!(matches!(item, Some(Err(StoreError::Denied { .. }))), "{access:?}: {item:?}");
        let next = timeout(SHORT, watch.next()).await;
        assert!(next.is_err(), "the watch goes on trying, after a pause: {next:?}");
    }
    assert_eq!(owner.get("k/1").await.unwrap().expect("it exists").value, "newer");
}

async fn create_refused(store: &ZookeeperStore, key: &str) -> Result<Version, StoreError> {
    store.put(key, "value".into(), Expected::Absent, None).await
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_unfit_for_node_names_work() {
    let server = ZookeeperServer::start().await;
    let store = connect(&server);
    let mut watch = Watch::of(&store, "");
    assert_eq!(watch.listing().await, []);
    let keys = ["/", "a/b", "//", ".", "..", "a/../b", "%", "%2F", "%deletions", "\u{0}\u{1}", "ä€😀", " "];
    for key in keys {
        let version = create(&store, key).await;
        let entry = Entry { key: key.into(), value: "value".into(), version };
        assert_eq!(store.get(key).await.unwrap().as_ref(), Some(&entry), "{key:?}");
        assert_eq!(watch.event().await, Event::Put(entry), "{key:?}");
    }
    let mut again = Watch::of(&connect(&server), "");
    assert_eq!(again.listing().await.len(), keys.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_others_are_left_alone() {
    let server = ZookeeperServer::start().await;
    let store = connect(&server);
    create(&store, "ours").await;
    let client = Client::connect(&server.endpoint()).await.unwrap();
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.create(&format!("{BASE}/%theirs"), b"", &options).await.unwrap();
    client.create(&format!("{BASE}/ours/child"), b"", &options).await.unwrap();
    let mut watch = Watch::of(&store, "");
    let listed = watch.listing().await;
    assert_eq!(listed.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), ["ours"]);
    client.set_data(&format!("{BASE}/%theirs"), b"newer", None).await.unwrap();
    client.set_data(&format!("{BASE}/ours/child"), b"newer", None).await.unwrap();
    create(&store, "next").await;
    assert!(matches!(watch.event().await, Event::Put(entry) if *entry.key == *"next"));
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_or_missing_server_is_unavailable_in_time() {
    let mut server = ZookeeperServer::start().await;
    let version = create(&connect(&server), "key").await;
    let store = connect(&server).request_timeout(SHORT);
    while let Err(error) = store.get("key").await {
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error:?}");
    }
    server.pause();
    all_unavailable(&store, &version).await;
    server.resume();
    server.kill();
    all_unavailable(&store, &version).await;
    all_unavailable(&connect(&server).request_timeout(SHORT), &version).await;
    server.restart().await;
    assert!(connect(&server).get("key").await.expect("the server is back").is_some());
}

async fn all_unavailable(store: &ZookeeperStore, version: &Version) {
    let since = Instant::now();
    let get = store.get("key").await;
    assert!(matches!(get, Err(StoreError::Unavailable { .. })), "{get:?}");
    let put = update(store, "key", version).await;
    assert!(matches!(put, Err(StoreError::Unavailable { .. })), "{put:?}");
    let delete = store.delete("key", version, None).await;
    assert!(matches!(delete, Err(StoreError::Unavailable { .. })), "{delete:?}");
    // Three request timeouts are promised; the limit is only against hanging, because a busy
    // machine adds to them.
    println!("three calls failed after {:?}; request timeout {SHORT:?}", since.elapsed());
    assert!(since.elapsed() < LONG, "after {:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn drop_leaves_neither_sessions_nor_tasks() {
    let server = ZookeeperServer::start().await;
    let metrics = tokio::runtime::Handle::current().metrics();
    let before = (server.sessions().await, metrics.num_alive_tasks());
    let store = connect(&server);
    let mut watch = Watch::of(&store, "k/");
    watch.listing().await;
    create(&store, "k/1").await;
    assert_eq!(server.sessions().await, before.0 + 1, "watch and calls share one");
    drop((watch, store));
    let deadline = Instant::now() + LONG;
    while (server.sessions().await, metrics.num_alive_tasks()) != before {
        assert!(Instant::now() < deadline, "{} tasks", metrics.num_alive_tasks());
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn inexpressible_session_timeouts_become_the_nearest() {
    let server = ZookeeperServer::start().await;
    for timeout in [Duration::ZERO, Duration::from_secs(26 * 24 * 3600), Duration::MAX] {
        let store = ZookeeperStore::new(&server.endpoint(), "/timeouts", ZookeeperAccess::open());
        let store = store.unwrap().session_timeout(timeout);
        let deadline = Instant::now() + LONG;
        loop {
            match store.get("key").await {
                Ok(None) => break,
                // The server grants 200 ms at least; on a busy machine such a session expires now
                // and then.
                Err(StoreError::Unavailable { .. }) if timeout.is_zero() && Instant::now() < deadline => {
                    sleep(Duration::from_millis(10)).await;
                }
                other => panic!("{timeout:?}: {other:?}"),
            }
        }
    }
}

/// Creates a base below a node in which nobody may create. The user `app` has these rights on it.
async fn locked_base(server: &ZookeeperServer, rights: Permission) -> Client {
    let administrator = Client::connect(&server.endpoint()).await.expect("it serves");
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    administrator.mkdir(BASE, &open).await.expect("it serves");
    let parent = BASE.rsplit_once('/').expect("a path").0;
    let locked = [Acl::new(Permission::READ, AuthId::anyone())];
    administrator.set_acl(parent, &locked, None).await.expect("it serves");
    grant(&administrator, rights).await;
    administrator
}

async fn grant(administrator: &Client, rights: Permission) {
    // The SHA-1 digest of `app:secret`.
    let app = AuthId::new("digest", "app:F6Y+U5gIoCbNNoLQExmvxRFeatA=");
    let acl = [Acl::new(rights, app), Acl::new(Permission::ADMIN, AuthId::anyone())];
    administrator.set_acl(BASE, &acl, None).await.expect("it serves");
}

fn app(server: &ZookeeperServer) -> ZookeeperStore {
    with_access(server, ZookeeperAccess::digest("app", "secret"))
}

#[track_caller]
fn assert_denied<T: std::fmt::Debug>(denied: Result<T, StoreError>) {
    assert!(matches!(denied, Err(StoreError::Denied { .. })), "{denied:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_rights_on_the_base_are_enough() {
    let server = ZookeeperServer::start().await;
    locked_base(&server, Permission::READ | Permission::CREATE | Permission::DELETE).await;
    let store = app(&server);
    let mut watch = Watch::of(&store, "");
    assert_eq!(watch.listing().await, []);
    let version = create(&store, "key").await;
    assert!(matches!(watch.event().await, Event::Put(_)));
    let version = update(&app(&server), "key", &version).await.expect("the first update of all");
    app(&server).delete("key", &version, None).await.expect("the first deletion of all");
    assert!(store.get("key").await.expect("it serves").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_right_on_the_base_allows_its_part() {
    let server = ZookeeperServer::start().await;
    let administrator = locked_base(&server, Permission::READ | Permission::CREATE).await;
    let version = update(&app(&server), "key", &create(&app(&server), "key").await).await;
    let version = version.expect("without DELETE");
    assert_denied(app(&server).delete("key", &version, None).await);
    grant(&administrator, Permission::READ).await;
    assert_denied(create_refused(&app(&server), "other").await);
    update(&app(&server), "key", &version).await.expect("without CREATE");
    assert_eq!(Watch::of(&app(&server), "").listing().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_too_long_for_zookeeper_harm_nobody() {
    let server = ZookeeperServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let store = ZookeeperStore::new(&proxy.address().to_string(), BASE, ZookeeperAccess::open()).unwrap();
    let store = store.session_timeout(LONG).request_timeout(LONG);
    let version = create(&store, "key").await;
    let mut watch = Watch::of(&store, "");
    assert_eq!(watch.listing().await.len(), 1);
    // The first two fit into the buffer of a server only without what surrounds them.
    for length in [1_048_500, 1_048_575, 2_000_000, 20_000_000] {
        let key = "x".repeat(length);
        for refused in [
            store.get(&key).await.map(drop),
            create_refused(&store, &key).await.map(drop),
            update(&store, &key, &version).await.map(drop),
            store.delete(&key, &version, None).await,
        ] {
            let Err(StoreError::Invalid { reason, .. }) = &refused else {
                panic!("{length}: {refused:.200?}")
            };
            assert!(reason.contains("key is too long"), "{reason}");
        }
    }
    // Percent-encoding triples these.
    let key = "/".repeat(400_000);
    assert!(matches!(store.get(&key).await, Err(StoreError::Invalid { .. })));
    // A key of half the size can be read, deleted and updated, if somebody else created it, but
    // stands in a creation's transaction twice.
    let key = "x".repeat(600_000);
    assert!(store.get(&key).await.expect("it fits").is_none());
    assert!(store.get(&"x".repeat(1_047_900)).await.expect("it fits").is_none());
    assert_conflict(store.delete(&key, &version, None).await);
    assert!(matches!(create_refused(&store, &key).await, Err(StoreError::Invalid { .. })));
    let version = update(&store, "key", &version).await.expect("no other client writes");
    let entry = Entry { key: "key".into(), value: "newer".into(), version };
    assert_eq!(watch.event().await, Event::Put(entry), "the watch was never interrupted");
    assert_eq!(proxy.accepted(), 1);
}

#[test]
fn credentials_too_large_for_zookeeper_are_named() {
    let access = ZookeeperAccess::digest("user", &"x".repeat(2_000_000));
    let store = ZookeeperStore::new("localhost:1", BASE, access);
    let Err(StoreError::Invalid { reason, .. }) = &store else { panic!("{store:?}") };
    assert!(reason.contains("access"), "{reason}");
}

//! The ways into a Redis server: users, passwords that change, databases, sockets, TLS, and what a
//! user may not do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{Client, ConnectionInfo, IntoConnectionInfo, TlsCertificates};
use tokio::time::{sleep, timeout};
use writerlease::{
    redis::{Credentials, RedisStore},
    store::{Event, Expected, Fence, Store, StoreError, Version},
};
use writerlease_test_support::{
    server::{RedisCluster, RedisServer},
    watch::Watch,
};

/// The longest wait, only against hanging.
const LONG: Duration = Duration::from_secs(20);

async fn create(store: &RedisStore, key: &str) -> Version {
    store.put(key, "value".into(), Expected::Absent, None).await.expect("the key is new")
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

/// Shows that a store reads, writes and watches.
async fn works(server: impl IntoConnectionInfo) {
    let store = RedisStore::new(server).expect("a valid address");
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    let version = create(&store, "k/1").await;
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == version));
    store.delete("k/1", &version, None).await.expect("it is there");
    assert!(matches!(watch.event().await, Event::Delete { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn users_need_only_the_documented_permissions() {
    let server = RedisServer::start().await;
    let _replica = RedisServer::start_replica_of(&server).await;
    let permissions =
        "+evalsha +script|load +time +get +hget +hset +exists +del +hmget +scan +client|tracking +wait";
    server.ask(&format!("ACL SETUSER app on >secret ~k/* resetchannels {permissions}")).await;
    let url = format!("redis://app:secret@{}", server.address());
    works(url.as_str()).await;
    create(&RedisStore::new(url).expect("a valid URL").replicas(1), "k/2").await;

    let cluster = RedisCluster::start().await;
    for node in &cluster.nodes {
        let asking = "+cluster|shards +asking";
        node.ask(&format!("ACL SETUSER app on >secret ~k/* resetchannels {permissions} {asking}")).await;
    }
    let url = format!("redis://app:secret@{}", cluster.nodes[0].address());
    let store = RedisStore::cluster([url]).expect("a valid URL");
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    for number in 0..10 {
        let version = create(&store, &format!("k/{number}")).await;
        reported(&mut watch, &version).await;
    }
}

#[tokio::test]
async fn each_missing_permission_is_a_denial() {
    let server = RedisServer::start().await;
    let url = format!("redis://app:secret@{}", server.address());
    let permissions = ["evalsha", "script|load", "time", "get", "hget", "hset", "exists", "del", "hmget"];
    let all = permissions.map(|permission| format!("+{permission}")).join(" ");
    for missing in permissions {
        server.ask("SCRIPT FLUSH").await;
        server.ask("DEL k/1 lock").await;
        server.ask("SET lock mine").await;
        let denied = format!("ACL SETUSER app reset on >secret ~* resetchannels {all} -{missing}");
        assert!(server.ask(&denied).await.starts_with("+OK"), "{denied}");
        let store = RedisStore::new(url.as_str()).expect("a valid URL");
        let calls = async {
            let fence = Fence::new("redis", "lock", 1).with_proof("mine");
            store.get("k/1").await?;
            let version = store.put("k/1", "1".into(), Expected::Absent, Some(&fence)).await?;
            store.delete("k/1", &version, None).await
        };
        let result = calls.await;
        assert!(matches!(result, Err(StoreError::Denied { .. })), "without {missing}: {result:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_are_separate() {
    let server = RedisServer::start().await;
    create(&RedisStore::new(server.endpoint()).expect("a valid URL"), "k/1").await;
    works(format!("{}/3", server.endpoint())).await;
    let missing = RedisStore::new(format!("{}/99", server.endpoint())).expect("a valid URL");
    let get = missing.get("k/1").await;
    assert!(
        matches!(&get, Err(StoreError::Unavailable { reason, .. }) if reason.contains("99") || reason.contains("DB")),
        "{get:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets_serve() {
    let server = RedisServer::start_with(["--unixsocket", "redis.sock"]).await;
    let socket = server.file("redis.sock");
    works(format!("redis+unix://{}?db=2", socket.display())).await;
    server.ask("ACL SETUSER app on >secret ~k/* +@all").await;
    works(format!("redis+unix://{}?user=app&pass=secret", socket.display())).await;
}

fn over_tls(server: &RedisServer, url: &str) -> ConnectionInfo {
    // The client library needs to know which of the providers it shall use.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let authority = std::fs::read(server.file("ca.crt")).expect("it was made");
    let certificates = TlsCertificates { client_tls: None, root_cert: Some(authority) };
    Client::build_with_tls(url, certificates).expect("a valid URL").get_connection_info().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_serves_and_checks_the_certificate() {
    let server = RedisServer::start_with_tls().await;
    let url = format!("rediss://localhost:{}/1", server.tls_port());
    works(over_tls(&server, &url)).await;
    // The system's authorities do not know it.
    let stranger = RedisStore::new(url.as_str()).expect("a valid URL");
    let get = stranger.get("k/1").await;
    assert!(
        matches!(&get, Err(StoreError::Unavailable { reason, .. }) if reason.contains("certificate")),
        "{get:?}"
    );
    let plain = RedisStore::new(format!("redis://localhost:{}", server.tls_port())).expect("a valid URL");
    let get = plain.request_timeout(Duration::from_secs(1)).get("k/1").await;
    assert!(matches!(get, Err(StoreError::Unavailable { .. })), "{get:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_passwords_are_asked_for() {
    let server = RedisServer::start().await;
    server.ask("ACL SETUSER app on >old ~* +@all").await;
    let (password, asked) = (Arc::new(Mutex::new("old")), Arc::new(AtomicUsize::new(0)));
    let store = {
        let (password, asked) = (password.clone(), asked.clone());
        RedisStore::new(server.endpoint()).expect("a valid URL").credentials(move || {
            asked.fetch_add(1, Ordering::SeqCst);
            let password = *password.lock();
            async move {
                match password {
                    "" => Err("there is no token"),
                    password => Ok(Credentials::new("app", password)),
                }
            }
        })
    };
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    reported(&mut watch, &create(&store, "k/1").await).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2, "once for each connection");
    for (number, new) in ["new", "newer"].into_iter().enumerate() {
        server.ask(&format!("ACL SETUSER app resetpass >{new}")).await;
        *password.lock() = new;
        server.ask("CLIENT KILL USER app").await;
        let started = Instant::now();
        let version = loop {
            match store.put(&format!("k/new/{number}"), "value".into(), Expected::Absent, None).await {
                Ok(version) => break version,
                Err(StoreError::Unavailable { .. }) if started.elapsed() < LONG => sleep(LONG / 1000).await,
                Err(error) => panic!("{error:?}"),
            }
        };
        reported(&mut watch, &version).await;
    }
    // A provider that fails is asked again.
    *password.lock() = "";
    server.ask("CLIENT KILL USER app").await;
    let failed = async || {
        let get = store.get("k/1").await;
        matches!(&get, Err(StoreError::Unavailable { reason, .. }) if reason.contains("there is no token"))
    };
    assert!(failed().await || failed().await);
    *password.lock() = "newer";
    assert!(store.get("k/1").await.expect("it is readable").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_named() {
    let server = RedisServer::start().await;
    server.ask("ACL SETUSER app on >secret ~* +@all").await;
    let address = server.address();
    for (url, user) in [
        (format!("redis://app:wrong@{address}"), None),
        (format!("redis://nobody:secret@{address}"), None),
        (format!("redis://{address}"), Some(Credentials::new("app", "wrong"))),
    ] {
        let mut store = RedisStore::new(url.as_str()).expect("a valid URL");
        if let Some(user) = user {
            store = store.credentials(move || std::future::ready(Ok::<_, StoreError>(user.clone())));
        }
        let get = store.get("k/1").await;
        let named = matches!(&get, Err(StoreError::Denied { reason, .. }) if reason.contains("WRONGPASS"));
        assert!(named, "{url}: {get:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_polls_where_tracking_is_forbidden() {
    let server = RedisServer::start().await;
    server.ask("ACL SETUSER app on >secret ~* +@all -client|tracking").await;
    let store = RedisStore::new(format!("redis://app:secret@{}", server.address())).expect("a valid URL");
    let first = create(&store, "k/1").await;
    let second = create(&store, "k/2").await;
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 2);
    let changed = store.put("k/1", "2".into(), Expected::Version(first), None).await.expect("it is there");
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == changed));
    store.delete("k/2", &second, None).await.expect("it is there");
    let Event::Delete { key, version } = watch.event().await else { panic!("no deletion") };
    assert!(*key == *"k/2" && version.key_revision() > second.key_revision());
    let created = create(&store, "k/2").await;
    assert!(created.key_revision() > version.key_revision());
    assert!(matches!(watch.event().await, Event::Put(entry) if entry.version == created));
    let listings = server.calls("scan").await;
    let quiet = timeout(Duration::from_secs(5), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    let listings = server.calls("scan").await - listings;
    assert!((1..=10).contains(&listings), "{listings} listings in 5 s");
    server.ask("FLUSHALL").await;
    for _ in 0..2 {
        assert!(matches!(watch.event().await, Event::Delete { .. }));
    }
}

//! Hostile values in the keys of a guard: each `ensure` ends, and the lease survives.

use std::{sync::Arc, time::Duration};

use etcd_client::Client as EtcdClient;
use tokio::time::{sleep, timeout};
use writerlease::{
    ContentionTracker, EnsureOutcome, Guard, WatchState, WriterLease,
    etcd::EtcdStore,
    redis::RedisStore,
    store::Store,
    zookeeper::{ZookeeperAccess, ZookeeperStore},
};
use zookeeper_client::{Acl, Acls, AuthId, Client as ZookeeperClient, CreateMode, Permission};

use writerlease_test_support::server::{EtcdServer, RedisServer, ZookeeperServer};

/// The longest wait, only against hanging.
const LONG: Duration = Duration::from_secs(20);
const HUGE: usize = 1_000_000;

fn values() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        vec![b'x'; HUGE],
        b"\xff\xfe\x00\xc3\x28".to_vec(),
        br#"{"status":"#.to_vec(),
        b"[".repeat(100_000),
        b"-9223372036854775809".to_vec(),
    ]
}

async fn guard<S: Store>(store: S) -> Guard<S> {
    let lease: WriterLease<Arc<str>> = WriterLease::builder("hostile").spawn().expect("valid settings");
    // The values are hostile here. Tests of repeated foreign writes are in
    // `tests/paused/contention.rs`.
    let patient = ContentionTracker::new().interval(Duration::ZERO);
    let guard = Guard::with_contention(store, lease, "k/", Arc::new(patient)).expect("a runtime");
    let mut statuses = guard.lease().subscribe();
    let live = statuses.wait_for(|status| status.watch == Some(WatchState::Live));
    timeout(LONG, live).await.expect("in time").expect("the lease lives");
    guard
}

/// Requests the text `ours`, with a closure that reads any other value as text.
async fn ensure<S: Store>(guard: &Guard<S>, key: &str) -> EnsureOutcome {
    let ours = |current: Option<&[u8]>| {
        (current.map(String::from_utf8_lossy).as_deref() != Some("ours")).then_some("ours")
    };
    timeout(LONG, guard.ensure(key, ours)).await.unwrap_or_else(|_| panic!("{key}: `ensure` does not end"))
}

/// Requests `ours` until the guard writes it: it is satisfied as long as its watch has not shown what
/// somebody else has written meanwhile.
async fn writes<S: Store>(guard: &Guard<S>, key: &str) {
    let written = async {
        loop {
            match ensure(guard, key).await {
                EnsureOutcome::Satisfied => sleep(Duration::from_millis(5)).await,
                ending => return ending,
            }
        }
    };
    let ending = timeout(LONG, written).await.unwrap_or_else(|_| panic!("{key}: it is not written"));
    assert!(matches!(ending, EnsureOutcome::Written(_)), "{key}: {ending:?}");
    let entry = guard.store().get(&format!("k/{key}")).await.expect("it serves").expect("it is there");
    assert_eq!(&entry.value[..], b"ours");
}

/// Waits until this guard has seen the write of another guard. A watch that reported it only after
/// the next request would make it look like the fulfilment of that request.
async fn finds_done<S: Store>(guard: &Guard<S>, key: &str) {
    let ending = ensure(guard, key).await;
    assert!(matches!(ending, EnsureOutcome::ByOther | EnsureOutcome::Satisfied), "{key}: {ending:?}");
}

/// Checks that the guard still writes, and that its watch is live.
async fn lives_on<S: Store>(guard: &Guard<S>, key: &str) {
    writes(guard, key).await;
    assert_eq!(guard.lease().status().closed, None);
    assert_eq!(guard.watch_state(), WatchState::Live);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_values_in_etcd_are_replaced() {
    let server = EtcdServer::start().await;
    let mut client = EtcdClient::connect([server.endpoint()], None).await.expect("a valid endpoint");
    // Keys that no store writes.
    for key in [&b"k/\xff\xfe"[..], b"k/", b"k//", b"k/\0"] {
        client.put(key, "x", None).await.expect("it serves");
    }
    let store = EtcdStore::new(client.clone());
    for (index, value) in values().into_iter().enumerate() {
        client.put(format!("k/{index}"), value.clone(), None).await.expect("it serves");
        let guard = guard(store.clone()).await;
        writes(&guard, &index.to_string()).await;
        // The watch reports them as well.
        client.put(format!("k/{index}"), value, None).await.expect("it serves");
        client.put(&b"k/\xfe"[..], "x", None).await.expect("it serves");
        writes(&guard, &index.to_string()).await;
        lives_on(&guard, &format!("next to {index}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_hashes_in_redis_are_replaced_or_refused() {
    let server = RedisServer::start().await;
    let store = RedisStore::new(server.endpoint()).expect("a valid URL");
    let versions = [
        "-1",
        "0",
        "x",
        "\\xff\\xfe",
        "9007199254740991-x",
        "9007199254740992-x",
        "18446744073709551615-x",
        "99999999999999999999999999999999-x",
        "1e300",
        "nan",
    ];
    let watching = guard(store.clone()).await;
    for (index, version) in versions.into_iter().enumerate() {
        let set = format!("HSET k/{index} version \"{version}\" value \"\\xff\\x00\" other x");
        server.ask(&set).await;
        let fresh = guard(store.clone()).await;
        writes(&fresh, &index.to_string()).await;
        finds_done(&watching, &index.to_string()).await;
        for _ in 0..2 {
            server.ask(&set).await;
            writes(&watching, &index.to_string()).await;
        }
        server.ask(&set).await;
        server.ask(&format!("DEL k/{index}")).await;
        writes(&watching, &index.to_string()).await;
    }
    server.ask(&format!("SETRANGE k/text {HUGE} x")).await;
    let refused = [
        "SET k/string x",
        "RPUSH k/list x",
        "SADD k/set x",
        "ZADD k/sorted 1 x",
        "XADD k/stream * x y",
        "HSET k/foreign field x",
        "HSET k/valueless value x",
        "HSET k/versionless version \"\" value x",
    ];
    for command in refused {
        server.ask(command).await;
        let key = command.split([' ', '/']).nth(2).expect("a key");
        let fresh = guard(store.clone()).await;
        for guard in [&fresh, &watching] {
            let ending = ensure(guard, key).await;
            assert!(matches!(ending, EnsureOutcome::Invalid(_)), "{command}: {ending:?}");
            lives_on(guard, &format!("next to {key} {:p}", guard)).await;
        }
        server.ask(&format!("DEL k/{key}")).await;
        writes(&watching, key).await;
    }
    server.ask("HSET k/no-value version 5").await;
    writes(&watching, "no-value").await;
    lives_on(&watching, "last").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_nodes_in_zookeeper_are_replaced_or_kept() {
    let server = ZookeeperServer::start().await;
    let client = ZookeeperClient::connect(&server.endpoint()).await.expect("it serves");
    let open = CreateMode::Persistent.with_acls(Acls::anyone_all());
    let base = "/tests/store";
    client.mkdir(base, &open).await.expect("it serves");
    for name in ["%", "%2f", "%zz", "k%2Fx y", "k%2F%ff", "ä", "k%2F", "%deletions-copy"] {
        client.create(&format!("{base}/{name}"), &[0xff; 100], &open).await.expect("it serves");
    }
    // An unreadable node must not hide the others.
    let unreadable = [Acl::new(Permission::WRITE | Permission::DELETE, AuthId::anyone())];
    let unreadable = CreateMode::Persistent.with_acls(Acls::new(&unreadable));
    client.create(&format!("{base}/k%2Funreadable"), b"", &unreadable).await.expect("it serves");
    let store =
        ZookeeperStore::new(&server.endpoint(), base, ZookeeperAccess::open()).expect("a valid address");
    let watching = guard(store.clone()).await;
    for (index, value) in values().into_iter().enumerate() {
        let path = format!("{base}/k%2F{index}");
        client.create(&path, &value, &open).await.expect("it serves");
        client.create(&format!("{path}/child"), b"x", &open).await.expect("it serves");
        let fresh = guard(store.clone()).await;
        writes(&fresh, &index.to_string()).await;
        finds_done(&watching, &index.to_string()).await;
        client.set_data(&path, &value, None).await.expect("it serves");
        let names = client.list_children(base).await.expect("it serves");
        let counts: Vec<_> = names.into_iter().filter(|name| name.starts_with("%deletions-")).collect();
        assert!(counts.len() >= 2, "{counts:?}");
        for name in &counts {
            client.set_data(&format!("{base}/{name}"), &value, None).await.expect("it serves");
        }
        writes(&watching, &index.to_string()).await;
        for name in &counts {
            client.delete(&format!("{base}/{name}"), None).await.expect("it serves");
        }
        // A copy of another program, of which the store must not make use.
        client.create(&format!("{base}/%deletions-copy"), &value, &open).await.expect("it serves");
        client.set_data(&path, &value, None).await.expect("it serves");
        writes(&watching, &index.to_string()).await;
    }
    let ending = ensure(&watching, "unreadable").await;
    assert!(matches!(ending, EnsureOutcome::Denied(_)), "{ending:?}");
    client.set_data(&format!("{base}/k%2Funreadable"), b"x", None).await.expect("it serves");
    lives_on(&watching, "last").await;
}

//! Tests of etcd that the conformance suite cannot make of every store: outages, compaction, access
//! control.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use etcd_client::{Client, CompactionOptions, ConnectOptions, Permission, PermissionType, PutOptions};
use tokio::time::{sleep, timeout};
use writerlease::{
    EnsureOutcome, Guard, WatchState, WriterLease,
    election::{Elector, Leadership},
    etcd::{EtcdElector, EtcdStore},
    store::{Entry, Event, Expected, Fence, Store, StoreError, Version},
};
use writerlease_test_support::{
    server::{EtcdGrpcProxy, EtcdServer},
    watch::Watch,
};

/// The longest wait, only against hanging: nothing below takes nearly as long.
const LONG: Duration = Duration::from_secs(20);

async fn connect(server: &EtcdServer) -> EtcdStore {
    EtcdStore::connect([server.endpoint()]).await.expect("a valid endpoint")
}

/// Checks the answer of a call that no server answers.
fn assert_unavailable<T: std::fmt::Debug>(answer: Result<T, StoreError>, since: Instant, limit: Duration) {
    assert!(matches!(answer, Err(StoreError::Unavailable { .. })), "{answer:?}");
    // One request timeout is promised; the assertion is only against hanging, because a busy
    // machine adds to it.
    println!("the call failed after {:?}; request timeout {limit:?}", since.elapsed());
    assert!(since.elapsed() < LONG, "after {:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_and_writers_survive_a_killed_server() {
    let mut server = EtcdServer::start().await;
    // With a shorter timeout a busy machine might interrupt the watch a second time.
    let store = connect(&server).await.request_timeout(LONG);
    let mut watch = Watch::of(&store, "k/");
    watch.listing().await;

    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (store, stop) = (store.clone(), stop.clone());
            tokio::spawn(async move { write_until(&store, &format!("k/{writer}"), &stop).await })
        })
        .collect();
    sleep(Duration::from_millis(300)).await;
    server.kill();
    sleep(Duration::from_millis(500)).await;
    server.restart().await;
    sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);

    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(timeout(LONG, writer).await.expect("the writer ends").expect("the writer lives"));
    }
    let mut last: HashMap<String, Version> = acknowledged.iter().cloned().collect();
    assert_eq!(last.len(), 4);

    // The history was kept, so the watch must go on without a listing and report each acknowledged
    // write.
    let (mut seen, mut interruptions, mut resumptions) = (Vec::new(), 0, 0);
    while !last.is_empty() {
        match watch.next().await {
            Some(Ok(Event::Put(entry))) => {
                if last.get(&*entry.key) == Some(&entry.version) {
                    last.remove(&*entry.key);
                }
                seen.push((entry.key.to_string(), entry.version));
            }
            Some(Err(StoreError::Unavailable { .. })) => interruptions += 1,
            Some(Ok(Event::Resumed)) => resumptions += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((interruptions, resumptions), (1, 1), "each is reported once");
    assert!(seen.is_sorted_by(|a, b| a.1.revision() < b.1.revision()), "in order and without repetition");
    for write in acknowledged {
        assert!(seen.contains(&write), "{write:?} is missing");
    }
}

/// Writes the key again and again, through every outage, until `stop` is set; then once more.
/// Returns the acknowledged writes.
async fn write_until(store: &EtcdStore, key: &str, stop: &AtomicBool) -> Vec<(String, Version)> {
    let mut acknowledged = Vec::new();
    let mut done = false;
    while !done {
        done = stop.load(Ordering::Relaxed);
        loop {
            let expected = match store.get(key).await {
                Ok(Some(entry)) => Expected::Version(entry.version),
                Ok(None) => Expected::Absent,
                Err(StoreError::Unavailable { .. }) => continue,
                Err(error) => panic!("{error:?}"),
            };
            match store.put(key, "value".into(), expected, None).await {
                Ok(version) => break acknowledged.push((key.to_owned(), version)),
                Err(StoreError::Unavailable { .. } | StoreError::Conflict { .. }) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        sleep(Duration::from_millis(5)).await;
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_lists_again_after_a_compaction() {
    let mut server = EtcdServer::start().await;
    let store = connect(&server).await;
    let gone = store.put("k/gone", "1".into(), Expected::Absent, None).await.unwrap();
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 1);

    server.kill();
    watch.interrupted().await;
    server.restart().await;
    let mut client = Client::connect([server.endpoint()], None).await.unwrap();
    let other = EtcdStore::new(client.clone());
    other.delete("k/gone", &gone, None).await.unwrap();
    let new = other.put("k/new", "2".into(), Expected::Absent, None).await.unwrap();
    let last = client.put("elsewhere", "", None).await.unwrap().header().unwrap().revision();
    client.compact(last, Some(CompactionOptions::new().with_physical())).await.unwrap();

    assert_eq!(watch.event().await, Event::Init);
    let listed = watch.entries().await;
    assert_eq!(listed, [Entry { key: "k/new".into(), value: "2".into(), version: new.clone() }]);
    other.delete("k/new", &new, None).await.unwrap();
    assert!(matches!(watch.event().await, Event::Delete { key, .. } if *key == *"k/new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn watch_of_an_emptied_server_lists_again() {
    let mut server = EtcdServer::start().await;
    let store = connect(&server).await;
    for i in 0..10 {
        store.put(&format!("k/{i}"), "old".into(), Expected::Absent, None).await.unwrap();
    }
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await.len(), 10);
    server.kill();
    watch.interrupted().await;
    server.forget();
    server.restart().await;
    assert_eq!(watch.listing().await, [], "its revisions began at 1 again");
}

#[tokio::test(flavor = "multi_thread")]
async fn user_without_permission_is_denied() {
    let server = EtcdServer::start().await;
    let mut root = Client::connect([server.endpoint()], None).await.unwrap();
    root.user_add("root", "secret", None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("reader", "secret", None).await.unwrap();
    root.role_add("reader").await.unwrap();
    let own = Permission::new(PermissionType::Read, "own/").with_prefix();
    root.role_grant_permission("reader", own).await.unwrap();
    root.user_grant_role("reader", "reader").await.unwrap();
    root.auth_enable().await.unwrap();

    let user = ConnectOptions::new().with_user("reader", "secret");
    let reader = EtcdStore::new(Client::connect([server.endpoint()], Some(user)).await.unwrap());
    assert!(matches!(reader.get("own/key").await, Ok(None)));
    let mut watch = Watch::of(&reader, "own/");
    assert_eq!(watch.listing().await, []);

    let nobody = connect(&server).await;
    for (store, key) in [(&reader, "foreign/key"), (&nobody, "own/key")] {
        let get = store.get(key).await;
        assert!(matches!(get, Err(StoreError::Denied { .. })), "{get:?}");
        let put = store.put(key, "value".into(), Expected::Absent, None).await;
        assert!(matches!(put, Err(StoreError::Denied { .. })), "{put:?}");
        let delete = store.delete(key, &Version::ordered(1), None).await;
        assert!(matches!(delete, Err(StoreError::Denied { .. })), "{delete:?}");
        let mut watch = Watch::of(store, key);
        let item = watch.next().await;
        assert!(matches!(item, Some(Err(StoreError::Denied { .. }))), "{item:?}");
        let next = timeout(Duration::from_secs(1), watch.next()).await;
        assert!(next.is_err(), "the watch goes on trying, after a pause: {next:?}");
    }
    // The user may read this key, but not write it.
    let put = reader.put("own/key", "value".into(), Expected::Absent, None).await;
    assert!(matches!(put, Err(StoreError::Denied { .. })), "{put:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_with_token_refresh_survives_a_restart() {
    let mut server = EtcdServer::start().await;
    let mut root = Client::connect([server.endpoint()], None).await.unwrap();
    root.user_add("root", "secret", None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.auth_enable().await.unwrap();

    let options = ConnectOptions::new().with_user("root", "secret").with_auto_token_refresh(true);
    let store = EtcdStore::new(Client::connect([server.endpoint()], Some(options)).await.unwrap());
    let mut watch = Watch::of(&store, "k/");
    assert_eq!(watch.listing().await, []);
    // A restarted server has forgotten the tokens that it issued.
    server.restart().await;
    watch.interrupted().await;

    let version = timeout(LONG, async {
        loop {
            match store.put("k/key", "value".into(), Expected::Absent, None).await {
                Ok(version) => break version,
                Err(StoreError::Unavailable { .. }) => sleep(Duration::from_millis(50)).await,
                Err(error) => panic!("{error:?}"),
            }
        }
    });
    let version = version.await.expect("the store is back");
    let entry = Entry { key: "k/key".into(), value: "value".into(), version };
    // If the store's calls renew the token first, the watch resumes; otherwise it lists again.
    loop {
        match watch.next().await {
            Some(Ok(Event::Put(seen) | Event::InitEntry(seen))) => break assert_eq!(seen, entry),
            Some(Ok(Event::Init | Event::InitDone | Event::Resumed)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_server_is_unavailable_in_time() {
    let mut server = EtcdServer::start().await;
    server.kill();
    let limit = Duration::from_secs(1);
    let store = connect(&server).await.request_timeout(limit);
    let since = Instant::now();
    assert_unavailable(store.get("key").await, since, limit);
    let since = Instant::now();
    assert_unavailable(store.put("key", "value".into(), Expected::Absent, None).await, since, limit);
    let since = Instant::now();
    assert_unavailable(store.delete("key", &Version::ordered(1), None).await, since, limit);

    let mut watch = Watch::of(&store, "");
    watch.interrupted().await;
    server.restart().await;
    assert_eq!(watch.listing().await, [], "it reported the outage once and waited for the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_server_is_unavailable_in_time() {
    let server = EtcdServer::start().await;
    let limit = Duration::from_secs(2);
    let version = connect(&server).await.put("key", "value".into(), Expected::Absent, None).await.unwrap();
    let store = connect(&server).await.request_timeout(limit);
    let mut watch = Watch::of(&store, "");
    assert_eq!(watch.listing().await.len(), 1);

    server.pause();
    let since = Instant::now();
    assert_unavailable(store.get("key").await, since, limit);
    let since = Instant::now();
    assert_unavailable(
        store.put("key", "1".into(), Expected::Version(version.clone()), None).await,
        since,
        limit,
    );
    let since = Instant::now();
    assert_unavailable(store.delete("key", &version, None).await, since, limit);
    // The connection is open and silent; the watch notices nevertheless.
    watch.interrupted().await;

    server.resume();
    let deadline = Instant::now() + LONG;
    while let Err(error) = store.get("key").await {
        assert!(Instant::now() < deadline, "{error:?}");
    }
    let written =
        timeout(LONG, write_until(&store, "key", &AtomicBool::new(true))).await.expect("the store is back");
    assert_eq!(watch.event().await, Event::Resumed);
    loop {
        match watch.event().await {
            Event::Put(entry) if entry.version == written[0].1 => break,
            // A write sent to the stopped server may have succeeded.
            Event::Put(_) | Event::Delete { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn malformed_endpoint_is_invalid() {
    let nothing = EtcdStore::connect::<&str>([]).await;
    assert!(matches!(nothing, Err(StoreError::Invalid { .. })), "{nothing:?}");
    let nonsense = EtcdStore::connect(["http://"]).await;
    assert!(matches!(nonsense, Err(StoreError::Invalid { .. })), "{nonsense:?}");
}

#[tokio::test]
async fn too_many_endpoints_are_refused_immediately() {
    let endpoints: Vec<_> = (0..65).map(|host| format!("http://etcd-{host}:1")).collect();
    let connect = |count: usize| timeout(Duration::from_secs(20), EtcdStore::connect(&endpoints[..count]));
    assert!(connect(64).await.expect("it does not wait").is_ok());
    let refused = connect(65).await.expect("it does not wait");
    assert!(matches!(refused, Err(StoreError::Invalid { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unwanted_keys_are_deleted_by_one_guard() {
    let server = EtcdServer::start().await;
    let store = connect(&server).await;
    let keys = ["a", "b", "c"];
    for key in keys {
        store.put(&format!("k/{key}"), "value".into(), Expected::Absent, None).await.unwrap();
    }
    let mut guards = Vec::new();
    for seed in 0..2 {
        let lease = WriterLease::builder("test").seed(seed).spawn().unwrap();
        let guard = Guard::new(connect(&server).await, lease, "k/").unwrap();
        let mut statuses = guard.lease().subscribe();
        statuses.wait_for(|status| status.watch == Some(WatchState::Live)).await.unwrap();
        guards.push(guard);
    }
    let mut deleted = 0;
    for key in keys {
        let ensured: Vec<_> = guards.iter().map(|guard| guard.ensure_absent(key)).collect();
        for ensure in ensured {
            match timeout(LONG, ensure).await.expect("it ends") {
                EnsureOutcome::Deleted => deleted += 1,
                EnsureOutcome::ByOther | EnsureOutcome::Satisfied => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(store.get(&format!("k/{key}")).await.unwrap(), None);
    }
    assert_eq!(deleted, keys.len(), "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_keep_the_lease_of_a_key() {
    let server = EtcdServer::start().await;
    let mut client = Client::connect([server.endpoint()], None).await.unwrap();
    let lease = client.lease_grant(600, None).await.unwrap().id();
    client.put("k", "1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let store = connect(&server).await;
    let lease_of = async |key: &str| client.clone().get(key, None).await.unwrap().kvs()[0].lease();
    let mut version = store.get("k").await.unwrap().unwrap().version;
    for fence in [None, Some(leader(&server).await)] {
        let expected = Expected::Version(version);
        version = store.put("k", "2".into(), expected, fence.as_ref()).await.unwrap();
        assert_eq!(lease_of("k").await, lease);
    }
    // A new key has none, and neither has one that was deleted and created again.
    store.put("new", "1".into(), Expected::Absent, None).await.unwrap();
    store.delete("k", &version, None).await.unwrap();
    store.put("k", "3".into(), Expected::Absent, None).await.unwrap();
    assert_eq!((lease_of("new").await, lease_of("k").await), (0, 0));
    client.clone().lease_revoke(lease).await.unwrap();
    assert!(store.get("k").await.unwrap().is_some());
}

/// Returns a leader's fence.
async fn leader(server: &EtcdServer) -> Fence {
    let client = Client::connect([server.endpoint()], None).await.unwrap();
    let elector = EtcdElector::builder(client, "election").identity("one").start().await.unwrap();
    let fence = elector.leadership().wait_for(Leadership::is_leader).await.unwrap().fence().cloned();
    // It is left to expire.
    std::mem::forget(elector);
    fence.expect("it leads")
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_end_with_the_lease_of_their_store() {
    let server = EtcdServer::start().await;
    let mut client = Client::connect([server.endpoint()], None).await.unwrap();
    let lease = client.lease_grant(600, None).await.unwrap().id();
    let store = connect(&server).await.lease(lease);
    let other = connect(&server).await;
    let written = other.put("old", "1".into(), Expected::Absent, None).await.unwrap();
    store.put("old", "2".into(), Expected::Version(written), None).await.unwrap();
    store.put("new", "1".into(), Expected::Absent, None).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    assert_eq!((other.get("old").await.unwrap(), other.get("new").await.unwrap()), (None, None));
    let late = store.put("new", "1".into(), Expected::Absent, None).await;
    assert!(matches!(late, Err(StoreError::Invalid { .. })), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_behind_a_grpc_proxy_stays_live() {
    let server = EtcdServer::start().await;
    let mut proxy = EtcdGrpcProxy::start(&server).await;
    let limit = Duration::from_secs(1);
    let connect = async |endpoint: String| {
        let store = EtcdStore::connect([endpoint]).await.expect("a valid endpoint");
        store.request_timeout(limit)
    };
    let endpoint = format!("http://{}", proxy.address());
    let lease = WriterLease::builder("test").spawn().unwrap();
    let guard = Guard::new(connect(endpoint.clone()).await, lease, "k/").unwrap();
    let mut statuses = guard.lease().subscribe();
    let mut live = async || {
        let live = statuses.wait_for(|status| status.watch == Some(WatchState::Live));
        timeout(LONG, live).await.expect("the watch is live").expect("the lease lives");
    };
    live().await;
    let store = connect(endpoint).await;
    let mut watch = Watch::of(&store, "k/");
    watch.listing().await;
    // Longer than any silence that is taken for a sign of an interruption.
    let quiet = timeout(Duration::from_secs(14), watch.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    assert_eq!(guard.watch_state(), WatchState::Live);

    proxy.restart().await;
    watch.interrupted().await;
    loop {
        match watch.next().await {
            Some(Ok(Event::Resumed | Event::InitDone)) => break,
            Some(Ok(Event::Init)) => {}
            other => panic!("{other:?}"),
        }
    }
    live().await;
    let direct = EtcdStore::connect([server.endpoint()]).await.unwrap();
    let version = direct.put("k/1", "value".into(), Expected::Absent, None).await.unwrap();
    assert_eq!(watch.event().await, Event::Put(Entry { key: "k/1".into(), value: "value".into(), version }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_among_the_endpoints_refuses_no_request_for_good() {
    let server = EtcdServer::start().await;
    let learner = server.start_learner().await;
    let since = Instant::now();
    let store = EtcdStore::connect([server.endpoint(), learner.endpoint()]).await.unwrap();
    for round in 0..200 {
        let key = format!("k/{round}");
        let version = store.put(&key, "1".into(), Expected::Absent, None).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap().unwrap().version, version);
        store.delete(&key, &version, None).await.unwrap();
    }
    println!("600 requests with a learner took {:?}", since.elapsed());
    for _ in 0..20 {
        let mut watch = Watch::of(&store, "k/");
        assert_eq!(watch.listing().await, []);
    }
    let alone = EtcdStore::connect([learner.endpoint()]).await.unwrap();
    let refused = alone.get("k").await;
    assert!(
        matches!(&refused, Err(StoreError::Unavailable { reason, .. }) if reason.contains("learner")),
        "{refused:?}"
    );
}

//! Stale writers in ZooKeeper, after an administrator changed what the store relies on.

use std::time::Duration;

use tokio::time::sleep;
use writerlease::{
    store::{Store, StoreError, Version},
    zookeeper::ZookeeperStore,
};
use writerlease_test_support::server::ZookeeperServer;
use zookeeper_client::{Acls, Client, CreateMode};

use super::zookeeper::{BASE, assert_conflict, connect, create, update};

async fn administrator(server: &ZookeeperServer) -> Client {
    Client::connect(&server.endpoint()).await.expect("it serves")
}

async fn delete_and_create(store: &ZookeeperStore, key: &str) {
    store.delete(key, &create(store, key).await, None).await.expect("no other client writes this key");
}

/// Returns the names of the nodes that count deletions.
async fn counters(administrator: &Client) -> Vec<String> {
    let names = administrator.list_children(BASE).await.expect("it serves");
    names.into_iter().filter(|name| name.starts_with("%deletions")).collect()
}

async fn wipe(administrator: &Client) -> Vec<(String, Vec<u8>)> {
    let mut nodes = Vec::new();
    for name in administrator.list_children(BASE).await.expect("it serves") {
        let path = format!("{BASE}/{name}");
        nodes.push((path.clone(), administrator.get_data(&path).await.expect("it serves").0));
        administrator.delete(&path, None).await.expect("it serves");
    }
    administrator.delete(BASE, None).await.expect("it serves");
    nodes
}

/// A store that has deleted a key, and a version of another key.
async fn stale_writer(server: &ZookeeperServer, deletions: usize) -> (ZookeeperStore, Version) {
    let store = connect(server);
    for _ in 0..deletions {
        delete_and_create(&store, "other").await;
    }
    let version = create(&store, "key").await;
    let version = update(&store, "key", &version).await.expect("no other client writes");
    (store, version)
}

/// The stale writer loses, and so does a store that knows nothing.
async fn assert_stale(server: &ZookeeperServer, store: &ZookeeperStore, stale: &Version) {
    let before = connect(server).get("key").await.expect("it serves");
    assert_conflict(update(store, "key", stale).await);
    assert_conflict(store.delete("key", stale, None).await);
    assert_conflict(update(&connect(server), "key", stale).await);
    assert_eq!(connect(server).get("key").await.expect("it serves"), before);
    if let Some(entry) = before {
        update(store, "key", &entry.version).await.expect("no other client wrote since");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_writers_lose_after_the_base_was_wiped() {
    let server = ZookeeperServer::start().await;
    let administrator = administrator(&server).await;
    for deletions in 0..3 {
        let (store, stale) = stale_writer(&server, deletions).await;
        wipe(&administrator).await;
        assert_stale(&server, &store, &stale).await;
        // The counts of deletions and of writes are the same as before.
        let (_, current) = stale_writer(&server, deletions).await;
        assert_eq!(current.token(), stale.token());
        assert_stale(&server, &store, &stale).await;
        wipe(&administrator).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_writers_lose_after_the_count_was_deleted() {
    let server = ZookeeperServer::start().await;
    let administrator = administrator(&server).await;
    let (store, stale) = stale_writer(&server, 1).await;
    let other = connect(&server);
    for node in counters(&administrator).await {
        administrator.delete(&format!("{BASE}/{node}"), None).await.expect("it serves");
    }
    other.delete("key", &stale, None).await.expect("it is the current version");
    let current = update(&other, "key", &create(&other, "key").await).await.expect("it is the newest");
    assert_eq!(current.token(), stale.token());
    assert_eq!(counters(&administrator).await.len(), 1);
    assert_stale(&server, &store, &stale).await;
    delete_and_create(&other, "another").await;
    assert_stale(&server, &store, &stale).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_writers_lose_after_nodes_were_copied_back() {
    let server = ZookeeperServer::start().await;
    let administrator = administrator(&server).await;
    for deletions in 0..3 {
        let (store, stale) = stale_writer(&server, deletions).await;
        let nodes = wipe(&administrator).await;
        let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
        administrator.mkdir(BASE, &options).await.expect("it serves");
        for (path, value) in nodes {
            administrator.create(&path, &value, &options).await.expect("it serves");
        }
        let other = connect(&server);
        let restored = other.get("key").await.expect("it serves").expect("it was copied");
        let current = update(&other, "key", &restored.version).await.expect("it is the newest");
        assert_eq!(current.token(), stale.token());
        for _ in 0..deletions {
            delete_and_create(&other, "other").await;
        }
        assert_stale(&server, &store, &stale).await;
        wipe(&administrator).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_writers_lose_after_a_backup_was_restored() {
    let mut server = ZookeeperServer::start().await;
    let (store, backed_up) = stale_writer(&server, 1).await;
    server.back_up().await;
    let lost = loop {
        match update(&store, "key", &backed_up).await {
            Err(StoreError::Unavailable { .. }) => sleep(Duration::from_millis(50)).await,
            updated => break updated.expect("no other client writes"),
        }
    };
    server.restore().await;
    let other = connect(&server);
    let restored = other.get("key").await.expect("it serves").expect("it was restored");
    assert_eq!(restored.version, backed_up);
    // The servers use the zxids of the lost writes again.
    for _ in 0..10 {
        let first = create(&other, "other").await;
        let second = update(&other, "other", &first).await.expect("no other client writes");
        other.delete("other", &second, None).await.expect("no other client writes");
    }
    let current = update(&other, "key", &restored.version).await.expect("no other client writes");
    assert_eq!(current.token(), lost.token());
    let late = loop {
        match update(&store, "key", &lost).await {
            Err(StoreError::Unavailable { .. }) => sleep(Duration::from_millis(50)).await,
            late => break late,
        }
    };
    assert_conflict(late);
    assert_stale(&server, &store, &lost).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_begin_together_share_one_count() {
    let server = ZookeeperServer::start().await;
    let administrator = administrator(&server).await;
    for round in 0..5 {
        let stores: Vec<_> = (0..8).map(|_| connect(&server)).collect();
        let delete = stores.iter().enumerate().map(async |(index, store)| {
            delete_and_create(store, &format!("{round}/{index}")).await;
        });
        futures_util::future::join_all(delete).await;
        let (one, other) = (&stores[0], &stores[7]);
        let stale = create(one, "key").await;
        other.delete("key", &stale, None).await.expect("it is the current version");
        let current = create(other, "key").await;
        assert_eq!(current.token(), stale.token());
        assert_conflict(update(one, "key", &stale).await);
        wipe(&administrator).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_cost_one_request_each() {
    let server = ZookeeperServer::start().await;
    let store = connect(&server);
    let mut version = create(&store, "key").await;
    version = update(&store, "key", &version).await.expect("no other client writes");
    let before = server.requests().await;
    for _ in 0..100 {
        version = update(&store, "key", &version).await.expect("no other client writes");
    }
    let requests = server.requests().await - before;
    // Pings count, and the look at the figure.
    assert!(requests < 150, "{requests} requests for 100 updates");
}

//! How often the ZooKeeper elector and store connect while something is wrong.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all};
use tokio::time::sleep;
use writerlease::{
    store::Store,
    zookeeper::{ZookeeperAccess, ZookeeperElector, ZookeeperStore},
};
use writerlease_test_support::{proxy::Proxy, server::ZookeeperServer};

use super::zookeeper::{BASE, REQUEST};
use crate::states::{follows, leads, until};

const TTL: Duration = Duration::from_secs(4);

async fn candidate(address: SocketAddr, identity: &str) -> ZookeeperElector {
    let builder = ZookeeperElector::builder(address.to_string(), BASE).identity(identity);
    builder.ttl(TTL).request_timeout(REQUEST).start().await.expect("a session")
}

/// A store with a watch that somebody reads.
fn watching(address: SocketAddr) -> ZookeeperStore {
    let store = ZookeeperStore::new(&address.to_string(), "/tests/store", ZookeeperAccess::open());
    let store = store.expect("valid settings").session_timeout(TTL).request_timeout(REQUEST);
    tokio::spawn({
        let store = store.clone();
        async move {
            let mut watch = std::pin::pin!(store.watch(""));
            while watch.next().await.is_some() {}
        }
    });
    store
}

async fn connections(proxy: &Proxy, what: &str) -> u64 {
    let before = proxy.accepted();
    sleep(Duration::from_secs(10)).await;
    let connections = proxy.accepted() - before;
    println!("{what}: {connections} connections in 10 s");
    connections
}

#[tokio::test(flavor = "multi_thread")]
async fn former_leaders_and_watches_back_off() {
    let server = ZookeeperServer::start().await;
    let proxies = [
        Proxy::start(server.address()).await,
        Proxy::start(server.address()).await,
        Proxy::start(server.address()).await,
    ];
    let first = candidate(proxies[0].address(), "first").await;
    leads(&first).await;
    let second = candidate(proxies[1].address(), "second").await;
    follows(&second, "first").await;
    let _store = watching(proxies[2].address());
    until("it watches", async || proxies[2].open() == 1).await;
    for proxy in &proxies {
        proxy.refuse(true);
        proxy.cut();
    }
    let what = ["leader", "follower", "watch"];
    for wait in [0, 15] {
        sleep(Duration::from_secs(wait)).await;
        let counts = proxies.iter().zip(what).map(|(proxy, what)| connections(proxy, what));
        for count in join_all(counts).await {
            assert!(count <= 20, "{count} connections in 10 s");
        }
    }
}

/// Cuts each connection a moment after it was used.
async fn cut_each(proxy: &Proxy, duration: Duration) {
    let started = Instant::now();
    while started.elapsed() < duration {
        if proxy.open() > 0 {
            sleep(Duration::from_millis(20)).await;
            proxy.cut();
        }
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_cut_after_each_success_back_off() {
    let server = ZookeeperServer::start().await;
    let proxies = [Proxy::start(server.address()).await, Proxy::start(server.address()).await];
    let elector = candidate(proxies[0].address(), "first").await;
    leads(&elector).await;
    let store = watching(proxies[1].address());
    until("it watches", async || proxies[1].open() == 1).await;
    let cut = proxies.iter().map(|proxy| cut_each(proxy, Duration::from_secs(10)));
    let counts = proxies.iter().zip(["elector", "watch"]).map(|(proxy, what)| connections(proxy, what));
    let (_, counts) = tokio::join!(join_all(cut), join_all(counts));
    assert!(counts.iter().all(|count| *count <= 20), "{counts:?} connections in 10 s");
    leads(&elector).await;
    until("the store works", async || store.get("key").await.is_ok()).await;
}

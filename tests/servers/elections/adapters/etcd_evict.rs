//! Eviction: a candidate of the etcd elector that keeps out of the election.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::time::sleep;
use writerlease::{
    election::{ElectionError, Elector, Event},
    etcd::EtcdElector,
};

use writerlease_test_support::server::EtcdServer;

use crate::{
    adapters::etcd::{SHORT_TTL, builder, candidate, keys},
    states::{follows, leads, soon, until},
};

async fn ids(server: &EtcdServer) -> Vec<String> {
    let id = |value: &str| value.split('"').nth(3).expect("an id").to_owned();
    keys(server).await.iter().map(|(_, value, _)| id(value)).collect()
}

/// Long enough for every competitor to win.
async fn assert_keeps_out(elector: &EtcdElector) {
    sleep(Duration::from_millis(500)).await;
    assert!(!elector.is_leader());
}

#[tokio::test]
async fn evicted_leaders_follow_until_the_eviction_ends() {
    let server = EtcdServer::start().await;
    let first = candidate(server.address(), "first").await;
    leads(&first).await;
    let second = candidate(server.address(), "second").await;
    follows(&second, "first").await;
    for _ in 0..2 {
        first.evict_leader().await.expect("it serves");
        assert!(!first.is_leader());
        assert_eq!(ids(&server).await, ["second"]);
    }
    leads(&second).await;
    follows(&first, "second").await;
    second.resign().await.expect("it serves");
    leads(&second).await;
    assert_keeps_out(&first).await;
    follows(&first, "second").await;
    for _ in 0..2 {
        first.cancel_evict_leader().await.expect("it exists");
    }
    until("it competes again", async || ids(&server).await == ["second", "first"]).await;
    second.close().await;
    leads(&first).await;
}

#[tokio::test]
async fn evicted_followers_do_not_win() {
    let server = EtcdServer::start().await;
    let first = candidate(server.address(), "first").await;
    leads(&first).await;
    let second = candidate(server.address(), "second").await;
    follows(&second, "first").await;
    second.evict_leader().await.expect("it serves");
    assert_eq!(ids(&server).await, ["first"]);
    follows(&second, "first").await;
    first.close().await;
    assert_keeps_out(&second).await;
    assert!(second.leader_info().await.is_err_and(|error| error.is_not_found()));
    second.cancel_evict_leader().await.expect("it exists");
    leads(&second).await;
}

#[tokio::test]
async fn candidate_can_be_evicted_before_its_first_election() {
    let server = EtcdServer::start().await;
    // Each time at another moment of the campaign's start.
    for micros in [0, 500, 1000, 2000, 5000] {
        let elector = candidate(server.address(), "one").await;
        sleep(Duration::from_micros(micros)).await;
        elector.evict_leader().await.expect("it serves");
        assert_eq!(ids(&server).await, [""; 0]);
        assert_keeps_out(&elector).await;
        assert_eq!(ids(&server).await, [""; 0]);
        elector.cancel_evict_leader().await.expect("it exists");
        leads(&elector).await;
        elector.close().await;
    }
}

#[tokio::test]
async fn evictions_hold_across_a_server_outage() {
    let mut server = EtcdServer::start().await;
    let elector = builder(server.address(), "one").await.ttl(SHORT_TTL).start().await.expect("a session");
    leads(&elector).await;
    server.kill();
    let refused = soon(elector.evict_leader()).await;
    assert!(matches!(refused, Err(ElectionError::Store(_))), "the key could not be deleted: {refused:?}");
    assert!(!elector.is_leader());
    // There are no further events.
    soon(elector.evict_leader()).await.expect("it holds nothing");
    server.restart().await;
    until("the old session has ended", async || ids(&server).await.is_empty()).await;
    assert_keeps_out(&elector).await;
    server.kill();
    soon(elector.cancel_evict_leader()).await.expect("it exists");
    server.restart().await;
    leads(&elector).await;
}

#[tokio::test]
async fn eviction_fails_after_close() {
    let server = EtcdServer::start().await;
    let elector = candidate(server.address(), "one").await;
    elector.evict_leader().await.expect("it serves");
    elector.close().await;
    for ended in [elector.evict_leader().await, elector.cancel_evict_leader().await] {
        assert!(matches!(ended, Err(ElectionError::Closed)), "{ended:?}");
    }
}

#[tokio::test]
async fn ending_no_eviction_leaves_the_leader_alone() {
    let server = EtcdServer::start().await;
    let elector = builder(server.address(), "one").await.ttl(SHORT_TTL).start().await.expect("a session");
    leads(&elector).await;
    let mut events = elector.events();
    let started = Instant::now();
    // It also goes on to renew.
    while started.elapsed() < 3 * SHORT_TTL {
        elector.cancel_evict_leader().await.expect("it exists");
        sleep(SHORT_TTL / 10).await;
    }
    elector.close().await;
    let mut told = Vec::new();
    while let Some(event) = soon(events.next()).await {
        told.push(event);
    }
    let kinds: Vec<_> = told.iter().map(|event| format!("{event:?}")).collect();
    assert!(
        matches!(told[..], [Event::Elected { .. }, Event::Retired { .. }, Event::Failed(_)]),
        "{kinds:?}"
    );
}

//! The ZooKeeper elector's sessions: how they end, and how they go on.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use writerlease::{
    Moment,
    election::{ElectionError, Elector, Event, Leadership},
    store::StoreError,
    zookeeper::{ZookeeperElector, ZookeeperElectorBuilder},
};
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Permission};

use writerlease_test_support::{proxy::Proxy, server::ZookeeperServer};

use super::zookeeper::{BASE, LONG_TIMEOUT, REQUEST, builder, candidate, nodes};
use crate::{
    engines::zookeeper_client,
    states::{event, follows, interrupted, leads, reaches, soon, token, until},
};

/// Creates a base whose nodes nobody may delete.
async fn locked_base(client: &Client) {
    let parent = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir("/tests", &parent).await.expect("it serves");
    let rights = [Acl::new(Permission::CREATE | Permission::READ, AuthId::anyone())];
    let base = CreateMode::Persistent.with_acls(Acls::new(&rights));
    client.create(BASE, b"", &base).await.expect("it serves");
}

#[tokio::test]
async fn ended_candidates_leave_without_the_right_to_delete() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    locked_base(&client).await;
    let before = server.sessions().await;
    let first = candidate(server.address(), "first").await;
    leads(&first).await;
    let second = candidate(server.address(), "second").await;
    follows(&second, "first").await;
    let third = candidate(server.address(), "third").await;
    follows(&third, "first").await;
    soon(first.close()).await;
    assert_eq!(nodes(&client).await.len(), 2, "close returns when the node is gone");
    leads(&second).await;
    drop(second);
    leads(&third).await;
    assert_eq!(nodes(&client).await.len(), 1);
    until("their sessions have ended", async || server.sessions().await == before + 1).await;
}

#[tokio::test]
async fn resigned_candidates_need_no_right_to_delete() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    locked_base(&client).await;
    let first = candidate(server.address(), "first").await;
    leads(&first).await;
    let second = candidate(server.address(), "second").await;
    follows(&second, "first").await;
    let before = server.sessions().await;
    for _ in 0..3 {
        soon(first.resign()).await.expect("a session of its own can always end");
        leads(&second).await;
        follows(&first, "second").await;
        assert_eq!(first.leader_ident().await.expect("a candidate leads"), "second");
        soon(second.resign()).await.expect("a session of its own can always end");
        leads(&first).await;
        follows(&second, "first").await;
    }
    assert_eq!(nodes(&client).await.len(), 2);
    assert_eq!(server.sessions().await, before);
}

#[tokio::test]
async fn denied_resignations_on_users_clients_keep_the_leader() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    locked_base(&client).await;
    let users = zookeeper_client(server.address()).await;
    let first = on_client(users.clone(), "first").start().await.expect("a session");
    leads(&first).await;
    let second = candidate(server.address(), "second").await;
    follows(&second, "first").await;
    let old_token = token(&first);
    let resigned = soon(first.resign()).await;
    let denied = |error: &ElectionError| matches!(error, ElectionError::Store(StoreError::Denied { .. }));
    assert!(resigned.as_ref().is_err_and(denied), "{resigned:?}");
    leads(&first).await;
    assert_eq!(token(&first), old_token, "it is the same node");
    soon(first.close()).await;
    assert_eq!(nodes(&client).await.len(), 2, "the user's session goes on");
    drop(users);
    leads(&second).await;
}

fn on_client(client: Client, identity: &str) -> ZookeeperElectorBuilder {
    ZookeeperElector::on_client(client, BASE).identity(identity).ttl(LONG_TIMEOUT).request_timeout(REQUEST)
}

#[tokio::test]
async fn unanswered_resignations_remove_the_node_later() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    let candidate_at =
        async |address: SocketAddr, identity| builder(address, identity).start().await.expect("a session");
    for own in [true, false] {
        let proxy = Proxy::start(server.address()).await;
        let first = match own {
            true => candidate_at(proxy.address(), "first").await,
            false => {
                let connector = Client::connector().with_session_timeout(LONG_TIMEOUT / 6);
                let users = connector.connect(&proxy.address().to_string()).await.expect("it serves");
                on_client(users, "first").start().await.expect("a session")
            }
        };
        leads(&first).await;
        let second = candidate_at(server.address(), "second").await;
        follows(&second, "first").await;
        proxy.stall();
        let resigned = soon(first.resign()).await;
        let unavailable =
            |error: &ElectionError| matches!(error, ElectionError::Store(StoreError::Unavailable { .. }));
        assert!(resigned.as_ref().is_err_and(unavailable), "{resigned:?}");
        proxy.heal();
        proxy.cut();
        leads(&second).await;
        let follows = |state: &Leadership| matches!(state, Leadership::Follower { .. });
        reaches(&first, "it competes on", follows).await;
        soon(first.close()).await;
        soon(second.close()).await;
        assert_eq!(nodes(&client).await, [""; 0]);
    }
}

/// Polls two electors until the second leads and the first does not; returns how long both led.
async fn overlap(first: &ZookeeperElector, second: &ZookeeperElector) -> Duration {
    let mut overlap = Duration::ZERO;
    let mut looked = Instant::now();
    until("another takes over", async || {
        let (both, now) = (first.is_leader() && second.is_leader(), Instant::now());
        overlap += if both { now - looked } else { Duration::ZERO };
        looked = now;
        second.is_leader() && !first.is_leader()
    })
    .await;
    overlap
}

#[tokio::test]
async fn leaders_notice_that_servers_grant_less_time() {
    for own in [true, false] {
        let mut server = ZookeeperServer::start().await;
        let proxy = Proxy::start(server.address()).await;
        let (long, short) = (Duration::from_secs(10), Duration::from_secs(2));
        let first = match own {
            true => builder(proxy.address(), "first").ttl(long),
            false => {
                let connector = Client::connector().with_session_timeout(long);
                let users = connector.connect(&proxy.address().to_string()).await.expect("it serves");
                // The least that the servers ever grant.
                ZookeeperElector::on_client(users, BASE).identity("first").ttl(short)
            }
        };
        let first = first.start().await.expect("a session");
        leads(&first).await;
        let (old_token, mut events) = (token(&first), first.events());
        server.restart_with(format!("maxSessionTimeout={}", short.as_millis())).await;
        event(&mut events, |event| matches!(event, Event::Retired { .. }).then_some(())).await;
        leads(&first).await;
        assert_eq!(token(&first), old_token, "its session goes on");
        let Leadership::Leader { until, .. } = *first.leadership().borrow() else { panic!("it leads") };
        assert!(until - Moment::now() <= short * 2 / 3, "it leads for as long as is sure");
        let second = builder(server.address(), "second").ttl(short).start().await.expect("a session");
        follows(&second, "first").await;
        proxy.stall();
        let overlap = overlap(&first, &second).await;
        assert_eq!(overlap, Duration::ZERO, "own client: {own}");
    }
}

#[tokio::test]
async fn leaders_without_a_connection_lead_no_more() {
    let server = ZookeeperServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let first = candidate(proxy.address(), "first").await;
    leads(&first).await;
    let (old_token, mut events) = (token(&first), first.events());
    proxy.refuse(true);
    proxy.cut();
    // The servers may grant the session less time in an answer that is lost.
    reaches(&first, "its connection is lost", |state| matches!(state, Leadership::Unknown)).await;
    let unavailable =
        |error: &ElectionError| matches!(error, ElectionError::Store(StoreError::Unavailable { .. }));
    interrupted(&mut events, unavailable).await;
    proxy.heal();
    leads(&first).await;
    assert_eq!(token(&first), old_token);
}

#[tokio::test]
async fn leaders_that_get_no_other_session_begin_anew() {
    // All connections of one address.
    let server = ZookeeperServer::start_with("maxClientCnxns=1", &[]).await;
    let proxy = Proxy::start(server.address()).await;
    let ttl = Duration::from_secs(2);
    until("the server counts no other connection", async || {
        let elector = builder(proxy.address(), "first").ttl(ttl).start().await;
        let Ok(elector) = elector else { return false };
        leads(&elector).await;
        let old_token = token(&elector);
        proxy.cut();
        reaches(&elector, "it leads again", |state| {
            state.fence().is_some_and(|fence| fence.token() > old_token)
        })
        .await;
        true
    })
    .await;
}

//! The ZooKeeper elector, compared with dcos-go's `elector`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::time::sleep;
use writerlease::{
    election::{ElectionError, Elector, Event, Leadership},
    store::StoreError,
    zookeeper::{ZookeeperAccess, ZookeeperElector, ZookeeperElectorBuilder},
};
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Error, Permission};

use writerlease_test_support::{proxy::Proxy, server::ZookeeperServer};

use crate::{
    engines::zookeeper_client,
    states::{
        LONG, assert_config, at_best, ensure, follows, interrupted, leads, nowhere, reaches, soon, token,
        until,
    },
};

pub const BASE: &str = "/tests/election";
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longer than a test waits, so that no effect in time comes from an expiry.
pub const LONG_TIMEOUT: Duration = Duration::from_secs(60);
pub const REQUEST: Duration = Duration::from_secs(1);

pub fn builder(address: SocketAddr, identity: &str) -> ZookeeperElectorBuilder {
    let builder = ZookeeperElector::builder(address.to_string(), BASE).identity(identity);
    builder.ttl(LONG_TIMEOUT).request_timeout(REQUEST)
}

pub async fn candidate(address: SocketAddr, identity: &str) -> ZookeeperElector {
    builder(address, identity).start().await.expect("a session")
}

/// Lists the names of the candidates' nodes, the leader first.
pub async fn nodes(client: &Client) -> Vec<String> {
    let mut names = client.list_children(BASE).await.unwrap_or_default();
    names.sort_by_key(|name| name.rsplit('-').next().map(str::to_owned));
    names
}

async fn create(client: &Client, name: &str, identity: &str) {
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir(BASE, &options).await.expect("it serves");
    client.create(&format!("{BASE}/{name}"), identity.as_bytes(), &options).await.expect("it serves");
}

async fn delete(client: &Client, name: &str) {
    client.delete(&format!("{BASE}/{name}"), None).await.expect("it serves");
}

/// Counts the watched paths and the watches.
async fn watches(server: &ZookeeperServer) -> (usize, usize) {
    let answer = server.ask("wchs").await;
    let number = |word: Option<&str>| word.and_then(|word| word.parse().ok());
    let numbers = number(answer.split_whitespace().nth(3)).zip(number(answer.trim().rsplit(':').next()));
    numbers.unwrap_or_else(|| panic!("{answer}"))
}

#[tokio::test]
async fn invalid_settings_are_named_with_their_rule() {
    for identity in ["", " \n"] {
        let blank = builder(nowhere(), identity).start().await;
        assert_config(blank, "identity", &format!("{identity:?}"), "not blank");
    }
    for base in ["", "/", "relative", "/a/", "/a//b", "/a/../b", "/zookeeper"] {
        let bad = ZookeeperElector::builder("localhost:1", base).identity("one").start().await;
        assert_config(bad, "base", &format!("{base:?}"), "path");
    }
    for base in ["/zookeeper/config", "/a/\u{e000}", "/a/\u{fff5}", "/a/😀", "/a\u{7f}"] {
        let refused = ZookeeperElector::builder("localhost:1", base).identity("one").start().await;
        assert_config(refused, "base", &format!("{base:?}"), "path");
    }
    let long = "x".repeat(2_000_000);
    let huge = builder(nowhere(), &long).start().await;
    assert_config(huge, "identity", "2000032 bytes", "small enough");
    let huge = builder(nowhere(), "one").access(ZookeeperAccess::digest("one", &long)).start().await;
    assert_config(huge, "access", "2000010 bytes", "small enough");
    for servers in [
        "",
        "localhost:1/path,localhost:2",
        "localhost:1/a//b",
        "localhost:nonsense",
        "localhost:0",
        ":2181",
        "a:1,,b:2",
    ] {
        let bad = ZookeeperElector::builder(servers, BASE).identity("one").start().await;
        assert_config(bad, "servers", &format!("{servers:?}"), "host:port");
    }
    // Times that the client would misread.
    for (timeout, rule) in
        [(Duration::ZERO, "at least 100ms"), (Duration::from_secs(25 * 24 * 3600), "at most 2147483.647s")]
    {
        let bad = builder(nowhere(), "one").ttl(timeout).start().await;
        assert_config(bad, "ttl", &format!("{timeout:?}"), rule);
    }
    let never = builder(nowhere(), "one").connect_timeout(Duration::ZERO).start().await;
    assert_config(never, "connect_timeout", "0ns", "longer than zero");
    let never = builder(nowhere(), "one").request_timeout(Duration::ZERO).start().await;
    assert_config(never, "request_timeout", "0ns", "longer than zero");
    for pattern in ["", "a/b", "\n"] {
        let bad = builder(nowhere(), "one").lock_pattern(pattern).start().await;
        assert_config(bad, "lock_pattern", &format!("{pattern:?}"), "part of a node's name");
    }
    let blank = builder(nowhere(), "one").extra_lock_pattern("").start().await;
    assert_config(blank, "extra_lock_pattern", "\"\"", "not empty");
}

#[tokio::test]
async fn start_fails_within_the_connect_timeout() {
    let mut server = ZookeeperServer::start().await;
    let fails = async |address: SocketAddr| {
        let started = Instant::now();
        let timeout = Duration::from_millis(500);
        let result = soon(builder(address, "one").connect_timeout(timeout).start()).await;
        assert!(matches!(result, Err(ElectionError::Store(StoreError::Unavailable { .. }))), "{result:?}");
        println!("failed after {:?}; connect timeout {timeout:?}", started.elapsed());
    };
    server.pause();
    fails(server.address()).await;
    server.resume();
    server.kill();
    fails(server.address()).await;
}

#[tokio::test]
async fn start_waits_for_a_server_that_starts() {
    let mut server = ZookeeperServer::start().await;
    server.kill();
    let address = server.address();
    let start = builder(address, "one").connect_timeout(LONG).start();
    let (_, started) = tokio::join!(server.restart(), start);
    leads(&started.expect("a session")).await;
}

#[tokio::test]
async fn only_own_clients_are_closed() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    let on_client =
        ZookeeperElector::on_client(client.clone(), BASE).identity("one").start().await.expect("a session");
    leads(&on_client).await;
    let before = server.sessions().await;
    let own = candidate(server.address(), "two").await;
    follows(&own, "one").await;
    assert_eq!(nodes(&client).await.len(), 2);
    assert_eq!(server.sessions().await, before + 1);
    on_client.close().await;
    assert_eq!(nodes(&client).await.len(), 1);
    create(&client, "its-session-goes-on", "").await;
    leads(&own).await;
    own.close().await;
    assert_eq!(nodes(&client).await, ["its-session-goes-on"]);
    until("its session has ended", async || server.sessions().await == before).await;
}

#[tokio::test]
async fn confined_clients_elect_in_their_subtree() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
    client.mkdir("/part", &options).await.expect("it serves");
    let confined = zookeeper_client(server.address()).await.chroot("/part").expect("a valid path");
    let elector = ZookeeperElector::on_client(confined, "/election").identity("one");
    let elector = elector.start().await.expect("a session");
    leads(&elector).await;
    assert_eq!(client.list_children("/part/election").await.expect("it is there").len(), 1);
    assert_eq!(elector.leader_ident().await.expect("it leads"), "one");
}

#[tokio::test]
pub async fn nodes_match_the_go_package() {
    let server = ZookeeperServer::start().await;
    let elector = candidate(server.address(), "pod-1 ünïcödé").await;
    leads(&elector).await;
    let client = zookeeper_client(server.address()).await;
    let names = nodes(&client).await;
    let [name] = &names[..] else { panic!("{names:?}") };
    let (guid, number) = name.strip_prefix("_c_").and_then(|rest| rest.split_once("-lock-")).expect("both");
    assert!(guid.len() == 32 && guid.bytes().all(|byte| b"0123456789abcdef".contains(&byte)), "{name}");
    assert!(number.len() == 10 && number.bytes().all(|byte| byte.is_ascii_digit()), "{name}");
    let (data, stat) = client.get_data(&format!("{BASE}/{name}")).await.expect("it is there");
    assert_eq!(data, elector.identity().as_bytes());
    assert_ne!(stat.ephemeral_owner, 0, "it ends with the session");
}

#[tokio::test]
pub async fn nodes_belong_to_their_creator_only() {
    let server = ZookeeperServer::start().await;
    let access = |password| ZookeeperAccess::digest("owner", password);
    let owner = builder(server.address(), "one").access(access("secret")).start().await.expect("a session");
    leads(&owner).await;
    let client = zookeeper_client(server.address()).await;
    assert_eq!(client.list_children(BASE).await, Err(Error::NoAuth));
    // A wrong password makes another user for ZooKeeper.
    let other = builder(server.address(), "other").access(access("wrong")).start().await.expect("a session");
    let denied = |error: &ElectionError| matches!(error, ElectionError::Store(StoreError::Denied { .. }));
    interrupted(&mut other.events(), denied).await;
    assert!(other.leader_ident().await.is_err_and(|error| denied(&error)));
    client.auth("digest", b"owner:secret").await.expect("it serves");
    let names = nodes(&client).await;
    let (acl, _) = client.get_acl(&format!("{BASE}/{}", names[0])).await.expect("it is ours");
    assert!(acl.iter().all(|acl| acl.scheme() == "digest" && acl.permission() == Permission::ALL), "{acl:?}");
    assert_eq!(names.len(), 1);
}

#[tokio::test]
async fn refused_credentials_fail_the_elector() {
    let server = ZookeeperServer::start().await;
    let access = ZookeeperAccess::auth("nonsense", "x");
    let refused = soon(builder(server.address(), "one").access(access).start()).await;
    assert!(matches!(refused, Err(ElectionError::Store(StoreError::Denied { .. }))), "{refused:?}");
}

#[tokio::test]
async fn unanswered_nodes_are_found_or_undone() {
    let server = ZookeeperServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let client = zookeeper_client(server.address()).await;
    proxy.lose_answer("_c_");
    let elector = candidate(proxy.address(), "one").await;
    proxy.struck().await;
    leads(&elector).await;
    let names = nodes(&client).await;
    assert_eq!(names.len(), 1, "{names:?}");
    // The connection, lost with the answer, stays away until the proxy heals.
    proxy.refuse(true);
    proxy.lose_answer("_c_");
    delete(&client, &names[0]).await;
    proxy.struck().await;
    assert_eq!(nodes(&client).await.len(), 1);
    proxy.heal();
    soon(elector.close()).await;
    assert_eq!(nodes(&client).await, [""; 0]);
}

#[tokio::test]
async fn the_first_candidate_creates_the_base_path() {
    let server = ZookeeperServer::start().await;
    let first = candidate(server.address(), "first").await;
    let mut events = first.events();
    let event = soon(events.next()).await;
    assert!(matches!(event, Some(Event::Elected { .. })), "{event:?}");
}

#[tokio::test]
async fn each_candidate_watches_only_its_predecessor() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    let (mut proxies, mut candidates) = (Vec::new(), Vec::new());
    for index in 0..6 {
        let proxy = Proxy::start(server.address()).await;
        let elector = candidate(proxy.address(), &format!("candidate-{index}")).await;
        match index {
            0 => leads(&elector).await,
            _ => follows(&elector, "candidate-0").await,
        }
        proxies.push(proxy);
        candidates.push(elector);
    }
    // Both the leader and its successor watch the leader's node.
    until("all watch", async || watches(&server).await == (5, 6)).await;
    let old_token = token(&candidates[0]);
    let names = nodes(&client).await;
    let before: Vec<_> = proxies.iter().map(Proxy::to_server).collect();
    delete(&client, &names[2]).await;
    until("its successor has another place", async || watches(&server).await == (4, 6)).await;
    let asked = proxies.iter().zip(before).map(|(proxy, before)| proxy.to_server() > before);
    let asked: Vec<_> = asked.collect();
    assert_eq!(asked, [false, false, false, true, false, false], "only the successor has to look");
    assert_eq!(token(&candidates[0]), old_token);

    // The leader's exit also wakes one candidate.
    candidates[0].close().await;
    leads(&candidates[1]).await;
    assert_eq!(candidates.iter().filter(|candidate| candidate.is_leader()).count(), 1);
    // A candidate whose node was deleted notices at its next look and queues up again.
    candidates[1].close().await;
    leads(&candidates[3]).await;
    follows(&candidates[2], "candidate-3").await;
    assert_eq!(nodes(&client).await.len(), 4);
}

#[tokio::test]
async fn candidates_far_back_notice_changes_ahead() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    let mut candidates = Vec::new();
    for name in ["first", "second", "third", "fourth"] {
        let builder = builder(server.address(), name).ttl(SHORT_TIMEOUT);
        let candidate = builder.start().await.expect("a session");
        reaches(&candidate, "it takes part", |state| !matches!(state, Leadership::Unknown)).await;
        candidates.push(candidate);
    }
    candidates[0].close().await;
    leads(&candidates[1]).await;
    follows(&candidates[3], "second").await;
    let last = nodes(&client).await.pop().expect("there are three");
    delete(&client, &last).await;
    until("it competes again", async || nodes(&client).await.len() == 3).await;
}

#[tokio::test]
async fn all_know_the_leader_until_close() {
    let server = ZookeeperServer::start().await;
    let first = candidate(server.address(), "first").await;
    leads(&first).await;
    let second = candidate(server.address(), "second").await;
    follows(&second, "first").await;
    for elector in [&first, &second] {
        assert_eq!(elector.leader_ident().await.expect("a candidate leads"), "first");
    }
    first.close().await;
    assert!(matches!(first.leader_ident().await, Err(ElectionError::Closed)));
    leads(&second).await;
    assert_eq!(second.leader_ident().await.expect("it leads"), "second");
}

#[tokio::test]
async fn without_any_candidate_there_is_no_leader() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    create(&client, "garbage", "").await;
    // Without the permission to create nodes there is no candidate.
    let reading = [Acl::new(Permission::READ, AuthId::anyone())];
    client.set_acl(BASE, &reading, None).await.expect("it serves");
    let elector = candidate(server.address(), "one").await;
    let error = elector.leader_ident().await.expect_err("no candidate competes");
    assert!(matches!(&error, ElectionError::NoLeader { election } if election == BASE), "{error:?}");
    assert!(error.is_not_found());
}

#[tokio::test]
pub async fn nodes_of_other_kinds_are_ignored() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    let others =
        ["lock-", "-lock-", "-lock", "x-lock-12a", "x-lock-+1", "x-lock-1 ", "0", "garbage", "x-lock--"];
    for name in others {
        create(&client, name, "somebody").await;
    }
    let elector = candidate(server.address(), "one").await;
    leads(&elector).await;
    assert_eq!(elector.leader_ident().await.expect("it leads"), "one");
    assert_eq!(nodes(&client).await.len(), others.len() + 1);
}

#[tokio::test]
async fn leaders_without_identity_are_followed() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    create(&client, "x-lock-0000000000", "").await;
    let elector = candidate(server.address(), "one").await;
    reaches(&elector, "it follows", |state| matches!(state, Leadership::Follower { leader: None })).await;
    assert_eq!(elector.leader_ident().await.expect("a candidate leads"), "");
    delete(&client, "x-lock-0000000000").await;
    leads(&elector).await;
}

#[tokio::test]
async fn candidates_of_other_programs_take_part() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    for (name, identity) in [("_c_0-lock-0000000000", "curator"), ("0__lock__0000000001", "kazoo")] {
        create(&client, name, identity).await;
    }
    let elector = builder(server.address(), "one").extra_lock_pattern("__lock__").start().await;
    let elector = elector.expect("a session");
    follows(&elector, "curator").await;
    delete(&client, "_c_0-lock-0000000000").await;
    // It watches only its predecessor and has not noticed.
    assert_eq!(elector.leader_ident().await.expect("a candidate leads"), "kazoo");
    delete(&client, "0__lock__0000000001").await;
    leads(&elector).await;
}

#[tokio::test]
async fn expired_sessions_fail_the_elector() {
    let server = ZookeeperServer::start().await;
    let proxy = Proxy::start(server.address()).await;
    let builder = |address| builder(address, "one").ttl(SHORT_TIMEOUT);
    let elector = builder(proxy.address()).start().await.expect("a session");
    leads(&elector).await;
    let old_token = token(&elector);
    let client = zookeeper_client(server.address()).await;
    let mut events = elector.events();
    proxy.stall();
    until("the session has expired", async || nodes(&client).await.is_empty()).await;
    assert!(!elector.is_leader());
    proxy.heal();
    let mut told = Vec::new();
    while let Some(event) = soon(events.next()).await {
        told.push(event);
    }
    let expired = |error: &ElectionError| matches!(error, ElectionError::SessionExpired);
    assert!(matches!(told.last(), Some(Event::Failed(error)) if expired(error)), "{told:?}");
    let retired = |event: &Event| matches!(event, Event::Retired { token } if *token == old_token);
    assert!(told.iter().any(retired), "{told:?}");
    assert!(matches!(&*elector.leadership().borrow(), Leadership::Failed(error) if expired(error)));
    assert!(matches!(elector.resign().await, Err(ElectionError::Closed)));
    assert!(matches!(elector.leader_ident().await, Err(ElectionError::Store(_))));
    assert_eq!(nodes(&client).await, [""; 0]);
    soon(elector.close()).await;

    let new = builder(proxy.address()).start().await.expect("a session");
    leads(&new).await;
    assert!(token(&new) > old_token);
}

#[tokio::test]
async fn electors_survive_interruptions_within_the_session() {
    let server = ZookeeperServer::start().await;
    at_best("the leader goes on by the same token", async || {
        let proxy = Proxy::start(server.address()).await;
        let elector = builder(proxy.address(), "one").ttl(2 * SHORT_TIMEOUT);
        let elector = elector.start().await.expect("a session");
        leads(&elector).await;
        let token = elector.fence().map(|fence| fence.token());
        let mut events = elector.events();
        proxy.stall();
        sleep(SHORT_TIMEOUT / 2).await;
        proxy.heal();
        proxy.cut();
        sleep(3 * SHORT_TIMEOUT).await;
        let now = elector.fence().map(|fence| fence.token());
        elector.close().await;
        let mut failure = None;
        while let Some(event) = soon(events.next()).await {
            if matches!(&event, Event::Failed(error) if !error.is_cancelled()) {
                failure = Some(event);
            }
        }
        ensure(now.is_some() && now == token && failure.is_none(), || {
            format!("{token:?}, {now:?}: {failure:?}")
        })
    })
    .await;
}

#[tokio::test]
async fn close_removes_the_node_immediately() {
    let server = ZookeeperServer::start().await;
    let client = zookeeper_client(server.address()).await;
    let first = candidate(server.address(), "first").await;
    leads(&first).await;
    let second = candidate(server.address(), "second").await;
    follows(&second, "first").await;
    let closed = Instant::now();
    first.close().await;
    assert_eq!(nodes(&client).await.len(), 1);
    leads(&second).await;
    second.close().await;
    assert_eq!(nodes(&client).await, [""; 0]);
    println!("closed and replaced after {:?}", closed.elapsed());
}

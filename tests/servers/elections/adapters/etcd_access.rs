//! Candidates on etcd with access control: the least permissions, missing ones, and expired tokens.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use etcd_client::{Client, ConnectOptions, Permission, RoleRevokePermissionOptions};
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::sleep};
use writerlease::{
    election::{ElectionError, Elector, Event, Leadership},
    etcd::{EtcdElector, EtcdStore, EtcdVoters},
    store::{Event as Change, Expected, Store, StoreError},
};

use writerlease_test_support::{proxy::Proxy, server::EtcdServer, watch::Watch};

use crate::{
    engines::etcd_client,
    log::Log,
    states::{LONG, follows, interrupted, leads, reaches, soon, until},
};

const REQUEST: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(2);

/// Enables access control with a user "u" of this permission. Returns the administrator's client.
async fn with_access(server: &EtcdServer, permission: Permission) -> Client {
    let mut root = etcd_client(server.address()).await;
    root.user_add("root", "secret", None).await.expect("it serves");
    root.role_add("root").await.expect("it serves");
    root.user_grant_role("root", "root").await.expect("it serves");
    root.role_add("r").await.expect("it serves");
    root.role_grant_permission("r", permission).await.expect("it serves");
    root.user_add("u", "pw", None).await.expect("it serves");
    root.user_grant_role("u", "r").await.expect("it serves");
    root.auth_enable().await.expect("it serves");
    client(server.address(), "root", "secret").await
}

async fn client(address: SocketAddr, name: &str, password: &str) -> Client {
    let options = ConnectOptions::new()
        .with_user(name, password)
        .with_auto_token_refresh(true)
        .with_keep_alive(REQUEST / 2, REQUEST)
        .with_keep_alive_while_idle(false);
    Client::connect([format!("http://{address}")], Some(options)).await.expect("the password is right")
}

async fn user(address: SocketAddr) -> Client {
    client(address, "u", "pw").await
}

async fn voters(client: Client) -> EtcdVoters {
    EtcdVoters::builder(client).request_timeout(REQUEST).build().expect("valid settings")
}

async fn candidate(client: Client, election: &str, identity: &str) -> EtcdElector {
    let builder = EtcdElector::builder(client, election).identity(identity);
    builder.ttl(TTL).request_timeout(REQUEST).start().await.expect("a session")
}

#[tokio::test]
async fn voters_need_permission_for_their_key_only() {
    let server = EtcdServer::start().await;
    let root = with_access(&server, Permission::read_write("masters/1")).await;
    let ours = voters(user(server.address()).await).await;
    let (sender, mut values) = mpsc::channel(10);
    ours.add_watch("masters/1", sender).expect("a valid key");
    let voter = ours.add_voter("masters/1", "one", TTL).expect("valid settings");
    leads(&voter).await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some("one"));
    let other = voters(root).await.add_voter("masters/1", "other", TTL).expect("valid settings");
    follows(&other, "one").await;
    voter.resign().await.expect("it serves");
    leads(&other).await;
    follows(&voter, "other").await;
    other.close().await;
    leads(&voter).await;
    voter.close().await;
    let mut root = client(server.address(), "root", "secret").await;
    assert_eq!(root.leases().await.expect("it serves").leases().len(), 0);
}

#[tokio::test]
async fn candidates_need_permission_for_their_prefix_only() {
    let server = EtcdServer::start().await;
    let mut root = with_access(&server, Permission::read_write("e/").with_prefix()).await;
    let elector = candidate(user(server.address()).await, "e", "one").await;
    leads(&elector).await;
    elector.evict_leader().await.expect("it serves");
    let mut events = elector.events();
    // One that holds no key renews its session all the same.
    sleep(3 * TTL).await;
    assert_eq!(root.leases().await.expect("it serves").leases().len(), 1);
    elector.cancel_evict_leader().await.expect("it exists");
    leads(&elector).await;
    elector.close().await;
    while let Some(event) = soon(events.next()).await {
        assert!(!matches!(event, Event::Interrupted(_)), "{event:?}");
    }
    // A key that outlived another candidate is passed over with these permissions, too.
    root.put("e/1234567890abcdef", "theirs", None).await.expect("it serves");
    leads(&candidate(user(server.address()).await, "e", "two").await).await;
}

#[tokio::test]
async fn candidates_without_permission_wait_quietly_for_it() {
    let server = EtcdServer::start().await;
    let mut root = with_access(&server, Permission::read_write("elsewhere")).await;
    let log = Log::default();
    let _log = tracing::subscriber::set_default(log.clone());
    let proxy = Proxy::start(server.address()).await;
    let voters = voters(user(proxy.address()).await).await;
    let voter = voters.add_voter("evoter", "one", TTL).expect("valid settings");
    let of_voter = voter.events();
    let elector = candidate(user(proxy.address()).await, "e", "one").await;
    for mut events in [elector.events(), of_voter] {
        let denied = |error: &ElectionError| matches!(error, ElectionError::Store(StoreError::Denied { .. }));
        interrupted(&mut events, denied).await;
    }
    let (bytes, lines) = (proxy.to_server(), log.lines());
    sleep(Duration::from_secs(10)).await;
    let (bytes, lines) = (proxy.to_server() - bytes, log.lines() - lines);
    println!("{bytes} bytes to the server, {lines} log lines");
    assert!(lines <= 20 && bytes <= 20_000, "{bytes} bytes to the server and {lines} log lines in 10 s");
    root.role_grant_permission("r", Permission::read_write("e").with_prefix()).await.expect("it serves");
    // The pauses are long by now.
    let started = Instant::now();
    while !(voter.is_leader() && elector.is_leader()) {
        assert!(started.elapsed() < 4 * LONG, "{:?}, {:?}", voter.state(), elector.state());
        sleep(REQUEST / 10).await;
    }
    println!("both lead {:?} after the permission is there", started.elapsed());
}

#[tokio::test]
async fn watches_of_voters_go_on_when_they_are_allowed_again() {
    let server = EtcdServer::start().await;
    let mut root = with_access(&server, Permission::read_write("m/").with_prefix()).await;
    let proxy = Proxy::start(server.address()).await;
    let voters = voters(user(proxy.address()).await).await;
    let (sender, mut values) = mpsc::channel(10);
    voters.add_watch("m/1", sender).expect("a valid key");
    let calls = Arc::new(Mutex::new(Vec::new()));
    let called = calls.clone();
    let call_back = move |_: &str, _: &str, current: &str| called.lock().push(current.to_owned());
    voters.add_watch_callback("m/1", call_back).expect("a valid key");
    root.put("m/1", "1", None).await.expect("it serves");
    assert_eq!(soon(values.recv()).await.as_deref(), Some("1"));
    // The two watches are apart: the later one would see only the second value.
    until("the callback is told", async || *calls.lock() == ["1"]).await;
    let all = RoleRevokePermissionOptions::new().with_prefix();
    root.role_revoke_permission("r", "m/", Some(all)).await.expect("it serves");
    proxy.cut();
    sleep(REQUEST).await;
    root.put("m/1", "2", None).await.expect("it serves");
    let again = Permission::read_write("m/").with_prefix();
    root.role_grant_permission("r", again).await.expect("it serves");
    assert_eq!(soon(values.recv()).await.as_deref(), Some("2"));
    until("the callback follows", async || *calls.lock() == ["1", "2"]).await;
}

#[tokio::test]
async fn all_go_on_with_another_token() {
    let mut server = EtcdServer::start().await;
    let _root = with_access(&server, Permission::read_write("e").with_prefix()).await;
    let elector = candidate(user(server.address()).await, "e", "one").await;
    let voters = voters(user(server.address()).await).await;
    let voter = voters.add_voter("evoter", "one", TTL).expect("valid settings");
    let (sender, mut values) = mpsc::channel(10);
    voters.add_watch("evoter", sender).expect("a valid key");
    let store = EtcdStore::new(user(server.address()).await).request_timeout(REQUEST);
    let mut watch = Watch::of(&store, "ek/");
    watch.listing().await;
    assert_eq!(soon(values.recv()).await.as_deref(), Some("one"));
    for round in 0..2 {
        leads(&elector).await;
        leads(&voter).await;
        // A server that was restarted has forgotten the tokens that it issued.
        server.restart().await;
        reaches(&elector, "it has noticed or renewed", |state| !matches!(state, Leadership::Failed(_))).await;
        sleep(2 * TTL).await;
        leads(&elector).await;
        leads(&voter).await;
        let key = format!("ek/{round}");
        until("it is written", async || {
            store.put(&key, "v".into(), Expected::Absent, None).await.is_ok()
                || store.get(&key).await.is_ok_and(|entry| entry.is_some())
        })
        .await;
        loop {
            match soon(watch.next()).await {
                Some(Ok(Change::Put(entry) | Change::InitEntry(entry))) if *entry.key == *key => break,
                Some(_) => {}
                None => panic!("the watch has ended"),
            }
        }
    }
}

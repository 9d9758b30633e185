//! The Redis elector on servers as they are run: behind Sentinel, in a cluster, with passwords that
//! change, and without notifications.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::time::sleep;
use writerlease::{
    election::{ElectionError, Elector, Leadership},
    redis::{Credentials, RedisElector, RedisStore},
    store::{Expected, Store, StoreError},
};
use writerlease_test_support::server::{RedisCluster, RedisSentinel, RedisServer};

use super::redis::Log;
use crate::states::{assert_config, follows, interrupted, leads, reaches, soon, token, until};

const KEY: &str = "tests/election";
const TTL: Duration = Duration::from_secs(2);

/// Starts a second candidate behind a leader, and shows that both know it and that it takes over.
async fn one_after_the_other(start: impl AsyncFn(&str) -> RedisElector) {
    let first = start("first").await;
    leads(&first).await;
    let second = start("second").await;
    follows(&second, "first").await;
    let old = token(&first);
    soon(first.close()).await;
    leads(&second).await;
    assert!(token(&second) > old);
    soon(second.close()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_elects_one_with_any_key() {
    let cluster = RedisCluster::start().await;
    for key in [KEY, "{tests}/election", "tests/{election", "other"] {
        one_after_the_other(async |identity| {
            let builder = RedisElector::cluster(cluster.endpoints(), key).identity(identity).ttl(TTL);
            builder.start().await.expect("valid settings")
        })
        .await;
    }
    let bad = RedisElector::cluster(cluster.endpoints(), "a}b").start().await;
    assert_config(bad, "key", "\"a}b\"", "hash tag");
    let nothing = RedisElector::cluster::<&str>([], KEY).start().await;
    assert!(matches!(nothing, Err(ElectionError::Store(StoreError::Invalid { .. }))), "{nothing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_stay_while_their_slot_is_moved() {
    let mut cluster = RedisCluster::start().await;
    let start = async |identity: &str| {
        let builder = RedisElector::cluster(cluster.endpoints(), KEY).identity(identity).ttl(TTL);
        builder.start().await.expect("valid settings")
    };
    let (first, second) = (start("first").await, start("second").await);
    until("one leads", async || first.is_leader() || second.is_leader()).await;
    let (leader, other) = if first.is_leader() { (first, second) } else { (second, first) };
    follows(&other, leader.identity()).await;
    let old = token(&leader);
    let (slot, from) = (cluster.slot(KEY).await, cluster.owner(KEY).await);
    let to = cluster.grow().await;
    cluster.begin_move(slot, to).await;
    // The key and its counter are apart for longer than the leadership lasts without a renewal.
    assert_eq!(cluster.move_keys(slot, to, 1).await, 1);
    sleep(2 * TTL).await;
    assert!(leader.is_leader() && token(&leader) == old, "{:?}", leader.leadership().borrow().clone());
    while cluster.move_keys(slot, to, 10).await > 0 {}
    cluster.end_move(slot, to).await;
    cluster.nodes[from].ask("SCRIPT FLUSH").await;
    sleep(TTL).await;
    assert!(leader.is_leader() && token(&leader) == old);
    // The fence holds for keys of the slot.
    let store = RedisStore::cluster(cluster.endpoints()).expect("valid URLs");
    let fence = leader.fence().expect("it leads");
    let key = format!("{{{KEY}}}/state");
    store.put(&key, "1".into(), Expected::Absent, Some(&fence)).await.expect("the fence holds");
    soon(leader.close()).await;
    leads(&other).await;
    assert!(token(&other) > old);
}

#[tokio::test(flavor = "multi_thread")]
async fn sentinels_lead_electors_to_the_new_master() {
    let mut master = RedisServer::start().await;
    let replica = RedisServer::start_replica_of(&master).await;
    let sentinels = RedisSentinel::start_three(&master).await;
    let start = async |identity: &str| {
        let endpoints = sentinels.each_ref().map(RedisSentinel::endpoint);
        let builder = RedisElector::sentinel(endpoints, "redis://mymaster", KEY).identity(identity).ttl(TTL);
        builder.start().await.expect("valid settings")
    };
    let first = start("first").await;
    leads(&first).await;
    let second = start("second").await;
    follows(&second, "first").await;
    let old = token(&first);
    master.kill();
    let killed = Instant::now();
    until("somebody leads on the other server", async || {
        let value = replica.ask_again(&format!("GET {KEY}")).await;
        let holds = |elector: &RedisElector| {
            elector.fence().is_some_and(|fence| value.contains(&*String::from_utf8_lossy(fence.proof())))
        };
        (holds(&first) || holds(&second)) && replica.ask_again("ROLE").await.contains("master")
    })
    .await;
    println!("somebody leads {:?} after the master was killed", killed.elapsed());
    let leader = if first.is_leader() { &first } else { &second };
    assert!(token(leader) >= old);
}

/// A server with a user whose password can change.
async fn with_user(password: &str) -> RedisServer {
    let server = RedisServer::start().await;
    server.ask(&format!("ACL SETUSER app on >{password} ~* &* +@all")).await;
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn electors_ask_for_the_password_of_now() {
    let server = with_user("old").await;
    let password = Arc::new(Mutex::new("old"));
    let asked = password.clone();
    let elector = RedisElector::builder(server.endpoint(), KEY)
        .credentials(move || {
            let credentials = Credentials::new("app", *asked.lock());
            async { Ok::<_, std::io::Error>(credentials) }
        })
        .ttl(TTL)
        .start()
        .await
        .expect("valid settings");
    leads(&elector).await;
    let old = token(&elector);
    server.ask("ACL SETUSER app resetpass >new").await;
    *password.lock() = "new";
    server.ask("CLIENT KILL USER app").await;
    sleep(2 * TTL).await;
    leads(&elector).await;
    assert_eq!(token(&elector), old, "it leads on");
}

#[tokio::test(flavor = "multi_thread")]
async fn electors_need_only_the_documented_permissions() {
    let permissions = "+evalsha +script|load +time +get +set +del +pexpire +pttl +client|tracking";
    let server = RedisServer::start().await;
    let keys = format!("~{KEY} ~{KEY}:token");
    server.ask(&format!("ACL SETUSER app on >secret {keys} resetchannels {permissions}")).await;
    let url = format!("redis://app:secret@{}", server.address());
    one_after_the_other(async |identity| {
        let builder = RedisElector::builder(url.as_str(), KEY).identity(identity).ttl(TTL);
        builder.start().await.expect("valid settings")
    })
    .await;

    let cluster = RedisCluster::start().await;
    let keys = format!("~{KEY} ~{{{KEY}}}:token");
    for node in &cluster.nodes {
        let asking = "+asking +cluster|shards";
        node.ask(&format!("ACL SETUSER app on >secret {keys} resetchannels {permissions} {asking}")).await;
    }
    let url = format!("redis://app:secret@{}", cluster.nodes[0].address());
    one_after_the_other(async |identity| {
        let builder = RedisElector::cluster([url.as_str()], KEY).identity(identity).ttl(TTL);
        builder.start().await.expect("valid settings")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_are_named() {
    let server = with_user("secret").await;
    let url = format!("redis://app:wrong@{}", server.address());
    let elector = RedisElector::builder(url, KEY).start().await.expect("valid settings");
    let denied = |error: &ElectionError| matches!(error, ElectionError::Store(StoreError::Denied { .. }));
    let error = interrupted(&mut elector.events(), denied).await;
    assert!(error.to_string().contains("WRONGPASS"), "{error}");
}

#[tokio::test]
async fn elections_go_on_without_notifications() {
    let server = with_user("secret").await;
    server.ask("ACL SETUSER app -client|tracking").await;
    let url = format!("redis://app:secret@{}", server.address());
    one_after_the_other(async |identity| {
        let builder = RedisElector::builder(url.as_str(), KEY).identity(identity).ttl(TTL);
        builder.start().await.expect("valid settings")
    })
    .await;
    let log = Log::default();
    // All tasks of this test run on this thread, and no other test does.
    let _log = tracing::subscriber::set_default(log.clone());
    let elector = RedisElector::builder(url.as_str(), KEY).ttl(TTL).start().await.expect("valid settings");
    for _ in 0..3 {
        leads(&elector).await;
        server.ask(&format!("SET {KEY} foreign PX 2000")).await;
        follows(&elector, "foreign").await;
        server.ask("CLIENT KILL USER app").await;
        reaches(&elector, "it leads again", Leadership::is_leader).await;
    }
    let lines = log.0.lock().clone();
    let said = lines.iter().filter(|line| line.contains("CLIENT TRACKING")).count();
    assert_eq!(said, 1, "{lines:#?}");
}

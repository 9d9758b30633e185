//! Elections with candidates of other implementations: etcdctl, kazoo, Curator and redis-py.

mod programs;

use std::time::{Duration, Instant};

use writerlease::{
    election::{Elector, Leadership},
    etcd::{EtcdElector, LeaderInfo},
    redis::RedisElector,
    zookeeper::ZookeeperElector,
};

use crate::engines::{ELECTION, etcd_client, zookeeper_client};
use crate::states::{LONG, follows, leads, reaches};
use programs::Program;
use writerlease_test_support::server::{EtcdServer, RedisServer, ZookeeperServer};

/// Longer than a test waits: a candidate that leads in time noticed that its predecessor left.
const TTL: Duration = Duration::from_secs(120);
const _: () = assert!(TTL.as_secs() / 3 > LONG.as_secs());

mod etcd {
    use super::*;

    #[tokio::test]
    async fn we_follow_etcdctl_until_it_resigns() {
        let server = EtcdServer::start().await;
        let (theirs, key) = leader(&server).await;
        let ours = candidate(&server, "ours").await;
        follows(&ours, "theirs").await;
        let info = LeaderInfo { key, identity: "theirs".to_owned(), address: String::new() };
        assert_eq!(ours.leader_info().await.expect("it serves"), info);
        theirs.interrupt().await;
        leads(&ours).await;
    }

    #[tokio::test]
    async fn we_replace_a_killed_etcdctl() {
        let server = EtcdServer::start().await;
        let (theirs, key) = leader(&server).await;
        let ours = candidate(&server, "ours").await;
        follows(&ours, "theirs").await;
        theirs.kill().await;
        assert_eq!(ours.leader_info().await.expect("it serves").key, key);
        assert!(!ours.is_leader());
        // Its lease is a minute long. etcd expires a lease in the same way as it revokes one.
        let lease = key.rsplit('/').next().and_then(|lease| i64::from_str_radix(lease, 16).ok());
        let mut client = etcd_client(server.address()).await;
        client.lease_revoke(lease.expect("a number")).await.expect("it lives");
        leads(&ours).await;
    }

    #[tokio::test]
    async fn keys_of_a_killed_etcdctl_can_be_cleared() {
        let server = EtcdServer::start().await;
        let (theirs, _) = leader(&server).await;
        let ours = candidate(&server, "ours").await;
        follows(&ours, "theirs").await;
        theirs.kill().await;
        assert!(ours.clear_session_if_needed("theirs").await.expect("it serves"));
        leads(&ours).await;
    }

    #[tokio::test]
    async fn etcdctl_waits_for_us_and_we_for_it() {
        let server = EtcdServer::start().await;
        let ours = candidate(&server, "ours").await;
        leads(&ours).await;
        let mut theirs = Program::elect(&server, "theirs");
        theirs.reaches("both wait for changes", async || server.watches().await == 2).await;
        theirs.is_silent().await;
        ours.resign().await.expect("it serves");
        let key = theirs.says().await;
        assert!(!ours.is_leader());
        assert_eq!(theirs.says().await, "theirs");
        follows(&ours, "theirs").await;
        assert_eq!(ours.leader_info().await.expect("it serves").key, key);
        theirs.interrupt().await;
        leads(&ours).await;
    }

    #[tokio::test]
    async fn etcdctl_waits_until_ours_closes() {
        let server = EtcdServer::start().await;
        let ours = candidate(&server, "ours").await;
        leads(&ours).await;
        let mut theirs = Program::elect(&server, "theirs");
        theirs.reaches("both wait for changes", async || server.watches().await == 2).await;
        theirs.is_silent().await;
        ours.close().await;
        assert!(theirs.says().await.starts_with(&format!("{ELECTION}/")));
        assert_eq!(theirs.says().await, "theirs");
    }

    #[tokio::test]
    async fn listening_etcdctl_sees_our_identity_and_address() {
        let server = EtcdServer::start().await;
        let ours = candidate(&server, "ours").await;
        leads(&ours).await;
        let mut listener = Program::listen(&server);
        assert_eq!(listener.says().await, ours.leader_info().await.expect("it serves").key);
        assert_eq!(listener.says().await, r#"{"id":"ours","addr":"ours:80"}"#);
        let mut theirs = Program::elect(&server, "theirs");
        theirs.reaches("all wait for changes", async || server.watches().await == 3).await;
        listener.is_silent().await;
        ours.close().await;
        assert_eq!(listener.says().await, theirs.says().await);
        assert_eq!(listener.says().await, "theirs");
    }

    #[tokio::test]
    async fn etcdctl_and_we_lead_in_order_of_arrival() {
        let server = EtcdServer::start().await;
        let first = candidate(&server, "first").await;
        leads(&first).await;
        let mut theirs = Program::elect(&server, "theirs");
        theirs.reaches("both wait for changes", async || server.watches().await == 2).await;
        let last = candidate(&server, "last").await;
        follows(&last, "first").await;
        theirs.is_silent().await;
        // It is the last in the queue from now on.
        first.resign().await.expect("it serves");
        theirs.says().await;
        assert!(!first.is_leader() && !last.is_leader());
        follows(&last, "theirs").await;
        follows(&first, "theirs").await;
        theirs.interrupt().await;
        leads(&last).await;
        follows(&first, "last").await;
        last.close().await;
        leads(&first).await;
    }

    async fn candidate(server: &EtcdServer, id: &str) -> EtcdElector {
        let builder = EtcdElector::builder(etcd_client(server.address()).await, ELECTION).identity(id);
        builder.address(format!("{id}:80")).ttl(TTL).start().await.expect("a session")
    }

    /// Starts an etcdctl that leads. Returns its key as well.
    async fn leader(server: &EtcdServer) -> (Program, String) {
        let mut theirs = Program::elect(server, "theirs");
        let key = theirs.says().await;
        assert_eq!(theirs.says().await, "theirs");
        (theirs, key)
    }
}

mod zookeeper {
    use super::*;

    #[tokio::test]
    async fn we_follow_kazoo_until_it_releases() {
        let server = ZookeeperServer::start().await;
        let mut theirs = holder(&server, "theirs").await;
        let ours = candidate(&server, "ours").await;
        follows(&ours, "theirs").await;
        assert_eq!(ours.leader_ident().await.expect("it serves"), "theirs");
        assert_eq!(theirs.ask("contenders").await, "theirs ours");
        assert_eq!(theirs.ask("release").await, "True");
        leads(&ours).await;
        assert_eq!(theirs.ask("contenders").await, "ours");
    }

    #[tokio::test]
    async fn we_replace_a_killed_kazoo() {
        let server = ZookeeperServer::start().await;
        let theirs = holder(&server, "theirs").await;
        let ours = candidate(&server, "ours").await;
        follows(&ours, "theirs").await;
        theirs.kill().await;
        leads(&ours).await;
    }

    #[tokio::test]
    async fn we_follow_a_kazoo_without_identity() {
        let server = ZookeeperServer::start().await;
        let mut theirs = holder(&server, "").await;
        let ours = candidate(&server, "ours").await;
        let nameless = |state: &Leadership| matches!(state, Leadership::Follower { leader: None });
        reaches(&ours, "it follows a candidate without a name", nameless).await;
        assert_eq!(theirs.ask("release").await, "True");
        leads(&ours).await;
    }

    #[tokio::test]
    async fn kazoo_waits_for_us_and_we_for_it() {
        let server = ZookeeperServer::start().await;
        let ours = candidate(&server, "ours").await;
        leads(&ours).await;
        let mut theirs = Program::kazoo(&server, "theirs");
        assert_eq!(theirs.ask("try").await, "False");
        theirs.tell("acquire").await;
        theirs.reaches("kazoo waits, too", async || server.watches().await == 2).await;
        theirs.is_silent().await;
        ours.resign().await.expect("it serves");
        assert_eq!(theirs.says().await, "True");
        assert!(!ours.is_leader());
        follows(&ours, "theirs").await;
        assert_eq!(theirs.ask("release").await, "True");
        leads(&ours).await;
    }

    #[tokio::test]
    async fn kazoo_waits_until_ours_closes() {
        let server = ZookeeperServer::start().await;
        let ours = candidate(&server, "ours").await;
        leads(&ours).await;
        let mut theirs = Program::kazoo(&server, "theirs");
        theirs.tell("acquire").await;
        theirs.reaches("kazoo waits, too", async || server.watches().await == 2).await;
        theirs.is_silent().await;
        ours.close().await;
        assert_eq!(theirs.says().await, "True");
        assert_eq!(theirs.ask("contenders").await, "theirs");
    }

    #[tokio::test]
    async fn kazoo_and_we_lead_in_order_of_arrival() {
        let server = ZookeeperServer::start().await;
        let first = candidate(&server, "first").await;
        leads(&first).await;
        let mut theirs = Program::kazoo(&server, "theirs");
        theirs.tell("acquire").await;
        theirs.reaches("kazoo waits, too", async || server.watches().await == 2).await;
        let last = candidate(&server, "last").await;
        follows(&last, "first").await;
        theirs.is_silent().await;
        // It is the last in the queue from now on.
        first.resign().await.expect("it serves");
        assert_eq!(theirs.says().await, "True");
        assert!(!first.is_leader() && !last.is_leader());
        follows(&first, "theirs").await;
        assert_eq!(theirs.ask("contenders").await, "theirs last first");
        assert_eq!(theirs.ask("release").await, "True");
        leads(&last).await;
        // Only its predecessor's exit wakes it, so the test asks.
        assert_eq!(first.leader_ident().await.expect("it serves"), "last");
        last.close().await;
        leads(&first).await;
    }

    #[tokio::test]
    async fn curators_latch_and_we_take_turns() {
        let server = ZookeeperServer::start().await;
        let latch = async |identity| {
            let builder = ZookeeperElector::builder(server.endpoint(), ELECTION).identity(identity);
            builder.lock_pattern("-latch-").ttl(TTL).start().await.expect("a session")
        };
        let first = latch("first").await;
        leads(&first).await;
        let mut theirs = Program::curator(&server, "theirs");
        let client = zookeeper_client(server.address()).await;
        let candidates = async || client.list_children(ELECTION).await.map_or(0, |names| names.len());
        theirs.reaches("Curator waits, too", async || candidates().await == 2).await;
        assert_eq!(theirs.ask("leader").await, "first");
        let last = latch("last").await;
        follows(&last, "first").await;
        theirs.is_silent().await;

        // It is the last in the queue from now on.
        first.resign().await.expect("it serves");
        assert_eq!(theirs.says().await, "leads");
        assert!(!first.is_leader() && !last.is_leader());
        assert_eq!(theirs.ask("leader").await, "theirs");
        follows(&first, "theirs").await;
        assert_eq!(last.leader_ident().await.expect("it serves"), "theirs");

        theirs.tell("close").await;
        leads(&last).await;
        // Only its predecessor's exit wakes it, so the test asks.
        assert_eq!(first.leader_ident().await.expect("it serves"), "last");
        assert_eq!(theirs.says().await, "closed");
        let mut again = Program::curator(&server, "again");
        again.reaches("Curator waits, too", async || candidates().await == 3).await;
        assert_eq!(again.ask("leader").await, "last");
        last.close().await;
        leads(&first).await;
        again.is_silent().await;
        first.close().await;
        assert_eq!(again.says().await, "leads");
    }

    async fn candidate(server: &ZookeeperServer, identity: &str) -> ZookeeperElector {
        let builder = ZookeeperElector::builder(server.endpoint(), ELECTION).identity(identity);
        let builder = builder.ttl(TTL).extra_lock_pattern("__lock__");
        builder.start().await.expect("a session")
    }

    async fn holder(server: &ZookeeperServer, identifier: &str) -> Program {
        let mut theirs = Program::kazoo(server, identifier);
        assert_eq!(theirs.ask("acquire").await, "True");
        theirs
    }
}

mod redis {
    use super::*;

    #[tokio::test]
    async fn we_follow_redis_py_until_it_releases() {
        let server = RedisServer::start().await;
        let (mut theirs, token) = holder(&server, None).await;
        let ours = candidate(&server).await;
        follows(&ours, &token).await;
        assert_eq!(theirs.ask("release").await, "None");
        leads(&ours).await;
    }

    #[tokio::test]
    async fn we_replace_a_killed_redis_py() {
        let server = RedisServer::start().await;
        let started = Instant::now();
        let (theirs, token) = holder(&server, Some(2)).await;
        let ours = candidate(&server).await;
        follows(&ours, &token).await;
        theirs.kill().await;
        leads(&ours).await;
        assert!(started.elapsed() >= Duration::from_secs(2), "elected after {:?}", started.elapsed());
    }

    #[tokio::test]
    async fn an_expired_redis_py_cannot_touch_our_key() {
        let server = RedisServer::start().await;
        let (mut theirs, token) = holder(&server, Some(2)).await;
        let ours = candidate(&server).await;
        follows(&ours, &token).await;
        leads(&ours).await;
        let held = server.ask(&format!("GET {ELECTION}")).await;
        assert_eq!(theirs.ask("owned").await, "False");
        assert_eq!(theirs.ask("extend").await, "LockNotOwnedError");
        assert_eq!(theirs.ask("release").await, "LockNotOwnedError");
        assert_eq!(server.ask(&format!("GET {ELECTION}")).await, held);
        assert!(ours.is_leader());
    }

    #[tokio::test]
    async fn waiting_we_leave_redis_py_its_key() {
        let server = RedisServer::start().await;
        let (mut theirs, token) = holder(&server, None).await;
        let ours = candidate(&server).await;
        follows(&ours, &token).await;
        ours.resign().await.expect("it serves");
        assert_eq!(theirs.ask("owned").await, "True");
        ours.close().await;
        assert_eq!(theirs.ask("owned").await, "True");
        assert_eq!(theirs.ask("release").await, "None");
    }

    #[tokio::test]
    async fn redis_py_waits_until_we_resign() {
        let server = RedisServer::start().await;
        let ours = candidate(&server).await;
        leads(&ours).await;
        let mut theirs = Program::redis_py(&server, None);
        is_refused(&server, &mut theirs).await;
        ours.resign().await.expect("it serves");
        assert_eq!(theirs.says().await, "True");
        assert!(!ours.is_leader());
        let token = theirs.ask("token").await;
        follows(&ours, &token).await;
    }

    #[tokio::test]
    async fn redis_py_waits_until_ours_closes() {
        let server = RedisServer::start().await;
        let ours = candidate(&server).await;
        leads(&ours).await;
        let mut theirs = Program::redis_py(&server, None);
        is_refused(&server, &mut theirs).await;
        ours.close().await;
        assert_eq!(theirs.says().await, "True");
        assert_eq!(theirs.ask("owned").await, "True");
    }

    async fn candidate(server: &RedisServer) -> RedisElector {
        let builder = RedisElector::builder(server.endpoint(), ELECTION).identity("ours");
        builder.ttl(TTL).start().await.expect("valid settings")
    }

    /// Starts a redis-py that holds the key. Returns its token as well.
    async fn holder(server: &RedisServer, seconds: Option<u64>) -> (Program, String) {
        let mut theirs = Program::redis_py(server, seconds);
        assert_eq!(theirs.ask("acquire").await, "True");
        let token = theirs.ask("token").await;
        (theirs, token)
    }

    /// Checks that it fails to get the key and retries.
    async fn is_refused(server: &RedisServer, theirs: &mut Program) {
        assert_eq!(theirs.ask("try").await, "False");
        let before = server.calls("set").await;
        theirs.tell("acquire").await;
        theirs.reaches("it tried again", async || server.calls("set").await > before + 1).await;
        theirs.is_silent().await;
    }
}

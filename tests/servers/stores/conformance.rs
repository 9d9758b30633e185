//! The conformance suite of `Store`, run on each store.

use std::time::Duration;

use writerlease::{
    EnsureOutcome, Guard, Notice, WatchState, WriterLease,
    lab::conformance::{self, Harness},
    store::{Expected, MemoryStore, Store, StoreError},
};

struct Memory(MemoryStore);

impl Harness for Memory {
    type Store = MemoryStore;

    async fn store(&self) -> MemoryStore {
        self.0.clone()
    }

    async fn gap(&self) {
        for i in 0..1025 {
            self.0.put(&format!("gap/{i}"), "".into(), Expected::Absent, None).await.expect("the key is new");
        }
    }
}

fn check(report: &conformance::Report) {
    assert!(report.results.len() >= 40, "{} cases", report.results.len());
    assert!(report.passed(), "\n{report}");
    println!("{report}");
}

/// Takes the permissions away and gives them back.
async fn guard_sees_again(harness: &impl Harness) {
    let lease = WriterLease::builder("test").spawn().unwrap();
    let guard = Guard::new(harness.store().await, lease, "conformance/guarded/").unwrap();
    let mut statuses = guard.lease().subscribe();
    let mut reach = async |state: fn(Option<WatchState>) -> bool| {
        let reached = statuses.wait_for(|status| state(status.watch));
        let reached = tokio::time::timeout(Duration::from_secs(90), reached).await;
        println!("the watch is {:?}", reached.expect("the state is reached").unwrap().watch);
    };
    reach(|watch| watch == Some(WatchState::Live)).await;
    let ensured = guard.ensure("key", |current| current.is_none().then_some("value")).await;
    assert!(matches!(ensured, EnsureOutcome::Written(_)), "{ensured:?}");
    let mut notices = guard.notices();
    harness.deny(true).await;
    reach(|watch| matches!(watch, Some(WatchState::Resuming { .. }))).await;
    loop {
        if let Notice::WatchInterrupted { error } = notices.recv().await.unwrap()
            && matches!(*error, StoreError::Denied { .. })
        {
            break;
        }
    }
    harness.deny(false).await;
    reach(|watch| watch == Some(WatchState::Live)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms_on_many_threads() {
    check(&conformance::run(&Memory(MemoryStore::new())).await);
}

#[tokio::test(start_paused = true)]
async fn memory_conforms_under_paused_time() {
    check(&conformance::run(&Memory(MemoryStore::new())).await);
}

mod etcd {
    use etcd_client::{Client, CompactionOptions, ConnectOptions};
    use tokio::sync::Mutex;
    use writerlease::etcd::EtcdStore;

    use writerlease_test_support::server::EtcdServer;

    use super::{Harness, check, conformance, guard_sees_again};

    struct Etcd(Mutex<EtcdServer>);

    impl Harness for Etcd {
        type Store = EtcdStore;

        async fn store(&self) -> EtcdStore {
            EtcdStore::connect([self.0.lock().await.endpoint()]).await.expect("a valid endpoint")
        }

        /// Cuts the connections and compacts the history that the watches would need to resume.
        async fn gap(&self) {
            let mut server = self.0.lock().await;
            server.restart().await;
            let mut client = Client::connect([server.endpoint()], None).await.expect("a valid endpoint");
            client.put("gap", "later than everything", None).await.expect("a put");
            let put = client.put("gap", "and later", None).await.expect("a put");
            let revision = put.header().expect("a header").revision();
            let physical = CompactionOptions::new().with_physical();
            client.compact(revision, Some(physical)).await.expect("a compaction");
        }

        fn denies(&self) -> bool {
            true
        }

        /// Demands a user, of which the stores have none. Watches that are open go on, so it restarts the
        /// server.
        async fn deny(&self, denied: bool) {
            let mut server = self.0.lock().await;
            if denied {
                let mut client = Client::connect([server.endpoint()], None).await.expect("a valid endpoint");
                // It may exist, from the time before.
                let _ = client.user_add("root", "secret", None).await;
                let _ = client.role_add("root").await;
                client.user_grant_role("root", "root").await.expect("the user exists");
                client.auth_enable().await.expect("there is a root user");
                server.restart().await;
            } else {
                let root = Some(ConnectOptions::new().with_user("root", "secret"));
                let mut client = Client::connect([server.endpoint()], root).await.expect("a valid password");
                client.auth_disable().await.expect("root may do so");
            }
        }

        /// One above etcd's limit, one above that of its gRPC server, and one far above both.
        fn too_large_values(&self) -> Vec<usize> {
            vec![3 << 19, 3 << 20, 20 << 20]
        }

        /// Leaves room for the key and the rest of the request.
        fn largest_value(&self) -> usize {
            (3 << 19) - 1024
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn etcd_guard_sees_again_when_it_is_allowed() {
        guard_sees_again(&Etcd(Mutex::new(EtcdServer::start().await))).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn etcd_conforms() {
        let server = EtcdServer::start().await;
        check(&conformance::run(&Etcd(Mutex::new(server))).await);
    }
}

mod redis {
    use tokio::sync::Mutex;
    use writerlease::redis::RedisStore;

    use writerlease_test_support::server::{RedisCluster, RedisServer};

    use super::{Harness, check, conformance, guard_sees_again};

    /// One byte more than the largest value of Redis.
    const TOO_LARGE: usize = (512 << 20) + 1;

    /// Takes all keys from the user, or gives them back.
    async fn deny_keys(server: &RedisServer, user: &str, denied: bool) {
        server.ask(&format!("ACL SETUSER {user} {}", if denied { "resetkeys" } else { "allkeys" })).await;
        if denied {
            server.ask("CLIENT KILL TYPE normal").await;
        }
    }

    /// The server, and the user of it.
    struct Redis(Mutex<RedisServer>, &'static str);

    impl Harness for Redis {
        type Store = RedisStore;

        async fn store(&self) -> RedisStore {
            let url = format!("redis://{}{}", self.1, self.0.lock().await.address());
            RedisStore::new(url).expect("a valid URL")
        }

        /// The server keeps no history of the changes that its clients missed.
        async fn gap(&self) {
            self.0.lock().await.restart().await;
        }

        fn denies(&self) -> bool {
            true
        }

        async fn deny(&self, denied: bool) {
            let user = self.1.split(':').next().filter(|user| !user.is_empty());
            deny_keys(&*self.0.lock().await, user.unwrap_or("default"), denied).await;
        }

        fn too_large_values(&self) -> Vec<usize> {
            vec![TOO_LARGE]
        }

        fn coalesces(&self) -> bool {
            true
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_guard_sees_again_when_it_is_allowed() {
        guard_sees_again(&Redis(Mutex::new(RedisServer::start().await), "")).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_conforms() {
        let server = RedisServer::start().await;
        check(&conformance::run(&Redis(Mutex::new(server), "")).await);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_without_tracking_conforms() {
        let user = ["--user", "app", "on", ">secret", "~*", "&*", "+@all", "-client|tracking"];
        let server = RedisServer::start_with(user).await;
        check(&conformance::run(&Redis(Mutex::new(server), "app:secret@")).await);
    }

    struct Cluster(Mutex<RedisCluster>);

    impl Harness for Cluster {
        type Store = RedisStore;

        async fn store(&self) -> RedisStore {
            RedisStore::cluster(self.0.lock().await.endpoints()).expect("valid URLs")
        }

        async fn gap(&self) {
            let mut cluster = self.0.lock().await;
            cluster.nodes[1].restart().await;
            cluster.complete().await;
        }

        fn denies(&self) -> bool {
            true
        }

        async fn deny(&self, denied: bool) {
            for node in &self.0.lock().await.nodes {
                deny_keys(node, "default", denied).await;
            }
        }

        fn too_large_values(&self) -> Vec<usize> {
            vec![TOO_LARGE]
        }

        fn coalesces(&self) -> bool {
            true
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_cluster_conforms() {
        let cluster = RedisCluster::start().await;
        check(&conformance::run(&Cluster(Mutex::new(cluster))).await);
    }
}

mod zookeeper {
    use std::time::Duration;

    use tokio::sync::Mutex;
    use writerlease::zookeeper::{ZookeeperAccess, ZookeeperStore};
    use zookeeper_client::{Acl, AuthId, Client, Permission};

    use writerlease_test_support::server::ZookeeperServer;

    use super::{Harness, check, conformance, guard_sees_again};

    const BASE: &str = "/writerlease/conformance";

    struct Zookeeper(Mutex<ZookeeperServer>);

    impl Harness for Zookeeper {
        type Store = ZookeeperStore;

        async fn store(&self) -> ZookeeperStore {
            let servers = self.0.lock().await.endpoint();
            let store = ZookeeperStore::new(&servers, BASE, ZookeeperAccess::open());
            store.expect("a valid address").session_timeout(Duration::from_secs(10))
        }

        /// The server keeps no history of the changes that its clients missed.
        async fn gap(&self) {
            self.0.lock().await.restart().await;
        }

        fn denies(&self) -> bool {
            true
        }

        /// Changes who may read the base path. Watches that are open go on, so it restarts the server.
        async fn deny(&self, denied: bool) {
            let mut server = self.0.lock().await;
            let client = Client::connect(&server.endpoint()).await.expect("a valid address");
            let rights = if denied { Permission::ADMIN | Permission::CREATE } else { Permission::ALL };
            client.set_acl(BASE, &[Acl::new(rights, AuthId::anyone())], None).await.expect("it exists");
            if denied {
                server.restart().await;
            }
        }

        fn largest_value(&self) -> usize {
            (1 << 20) - 2048
        }

        fn too_large_values(&self) -> Vec<usize> {
            vec![(1 << 20) - 1, 1 << 20, 20 << 20]
        }

        fn coalesces(&self) -> bool {
            true
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn zookeeper_guard_sees_again_when_it_is_allowed() {
        guard_sees_again(&Zookeeper(Mutex::new(ZookeeperServer::start().await))).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn zookeeper_conforms() {
        let server = ZookeeperServer::start().await;
        check(&conformance::run(&Zookeeper(Mutex::new(server))).await);
    }
}

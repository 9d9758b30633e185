//! The conformance suite of `Store`, run on each store.

use writerlease::{
    lab::conformance::{self, Harness},
    store::{Expected, MemoryStore, Store},
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

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms_on_many_threads() {
    check(&conformance::run(&Memory(MemoryStore::new())).await);
}

#[tokio::test(start_paused = true)]
async fn memory_conforms_under_paused_time() {
    check(&conformance::run(&Memory(MemoryStore::new())).await);
}

mod etcd {
    use etcd_client::{Client, CompactionOptions};
    use tokio::sync::Mutex;
    use writerlease::etcd::EtcdStore;

    use writerlease_test_support::server::EtcdServer;

    use super::{Harness, check, conformance};

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
    async fn etcd_conforms() {
        let server = EtcdServer::start().await;
        check(&conformance::run(&Etcd(Mutex::new(server))).await);
    }
}

mod redis {
    use tokio::sync::Mutex;
    use writerlease::redis::RedisStore;

    use writerlease_test_support::server::{RedisCluster, RedisServer};

    use super::{Harness, check, conformance};

    /// One byte more than the largest value of Redis.
    const TOO_LARGE: usize = (512 << 20) + 1;

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

        fn too_large_values(&self) -> Vec<usize> {
            vec![TOO_LARGE]
        }

        fn coalesces(&self) -> bool {
            true
        }
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

    use writerlease_test_support::server::ZookeeperServer;

    use super::{Harness, check, conformance};

    struct Zookeeper(Mutex<ZookeeperServer>);

    impl Harness for Zookeeper {
        type Store = ZookeeperStore;

        async fn store(&self) -> ZookeeperStore {
            let servers = self.0.lock().await.endpoint();
            let store = ZookeeperStore::new(&servers, "/writerlease/conformance", ZookeeperAccess::open());
            store.expect("a valid address").session_timeout(Duration::from_secs(10))
        }

        /// The server keeps no history of the changes that its clients missed.
        async fn gap(&self) {
            self.0.lock().await.restart().await;
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
    async fn zookeeper_conforms() {
        let server = ZookeeperServer::start().await;
        check(&conformance::run(&Zookeeper(Mutex::new(server))).await);
    }
}

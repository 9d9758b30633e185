//! The servers, and stores on them with short timeouts, so that they notice a fault soon.

use std::{net::SocketAddr, time::Duration};

use etcd_client::{Client, CompactionOptions, ConnectOptions};
use writerlease::{
    etcd::EtcdStore,
    redis::RedisStore,
    store::Store,
    zookeeper::{ZookeeperAccess, ZookeeperStore},
};

use writerlease_test_support::server::{EtcdServer, RedisServer, ZookeeperServer};

const REQUEST: Duration = Duration::from_secs(1);

pub trait Engine: Sized {
    type Store: Store + Clone;
    /// The most connections that a store and its watch need.
    const CONNECTIONS: usize;

    async fn start() -> Self;
    fn address(&self) -> SocketAddr;
    /// Returns a store that reaches the server at this address.
    async fn connect(address: SocketAddr) -> Self::Store;
    fn kill(&mut self);
    /// Starts the server again with the same data.
    async fn restart(&mut self);
}

pub struct Etcd {
    pub server: EtcdServer,
}

impl Etcd {
    /// Compacts the whole history.
    pub async fn compact(&self) {
        let mut client = Client::connect([self.server.endpoint()], None).await.expect("a valid endpoint");
        let put = client.put("elsewhere", "", None).await.expect("a put");
        let revision = put.header().expect("a header").revision();
        let physical = CompactionOptions::new().with_physical();
        client.compact(revision, Some(physical)).await.expect("a compaction");
    }
}

impl Engine for Etcd {
    type Store = EtcdStore;
    const CONNECTIONS: usize = 1;

    async fn start() -> Self {
        Self { server: EtcdServer::start().await }
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    async fn connect(address: SocketAddr) -> EtcdStore {
        let options = ConnectOptions::new()
            .with_connect_timeout(REQUEST)
            .with_keep_alive(REQUEST / 2, REQUEST)
            .with_keep_alive_while_idle(false);
        let client = Client::connect([format!("http://{address}")], Some(options)).await;
        EtcdStore::new(client.expect("a valid endpoint")).request_timeout(REQUEST)
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    async fn restart(&mut self) {
        self.server.restart().await;
    }
}

pub struct Redis {
    pub server: RedisServer,
}

impl Engine for Redis {
    type Store = RedisStore;
    /// The watch has a connection of its own.
    const CONNECTIONS: usize = 2;

    async fn start() -> Self {
        Self { server: RedisServer::start().await }
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    async fn connect(address: SocketAddr) -> RedisStore {
        RedisStore::new(format!("redis://{address}")).expect("a valid URL").request_timeout(REQUEST)
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    async fn restart(&mut self) {
        self.server.restart().await;
    }
}

pub struct Zookeeper {
    pub server: ZookeeperServer,
}

impl Engine for Zookeeper {
    type Store = ZookeeperStore;
    const CONNECTIONS: usize = 1;

    async fn start() -> Self {
        Self { server: ZookeeperServer::start().await }
    }

    fn address(&self) -> SocketAddr {
        self.server.address()
    }

    async fn connect(address: SocketAddr) -> ZookeeperStore {
        let store = ZookeeperStore::new(&address.to_string(), "/faults", ZookeeperAccess::open());
        // A client waits two fifths of this for a sign of life, which the tests delay by half a
        // second.
        store.expect("a valid address").session_timeout(5 * REQUEST / 2).request_timeout(REQUEST)
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    async fn restart(&mut self) {
        self.server.restart().await;
    }
}

//! The servers, and candidates on them. Each test uses another part of this.

use std::{net::SocketAddr, time::Duration};

use etcd_client::{Client, ConnectOptions, GetOptions, PutOptions};
use writerlease::{
    election::Elector,
    etcd::{EtcdElector, EtcdStore, EtcdVoter, EtcdVoters},
    redis::{RedisElector, RedisStore},
    store::Store,
    zookeeper::{ZookeeperAccess, ZookeeperElector, ZookeeperStore},
};
use zookeeper_client::{Acl, AuthId, Client as ZookeeperClient, Error, Permission};

use writerlease_test_support::server::{EtcdServer, RedisServer, ZookeeperServer};

/// The name of the election, in the form of each server.
pub const ELECTION: &str = "/test/election";
const REQUEST: Duration = Duration::from_secs(1);

pub trait Engine: Sized {
    type Elector: Elector;
    type Store: Store + Clone;
    /// How long others wait for a silent leader.
    const TTL: Duration;

    async fn start() -> Self;
    fn address(&self) -> SocketAddr;
    async fn candidate_with(&self, address: SocketAddr, identity: &str, ttl: Duration) -> Self::Elector;
    async fn candidate_at(&self, address: SocketAddr, identity: &str) -> Self::Elector {
        self.candidate_with(address, identity, Self::TTL).await
    }
    async fn candidate(&self, identity: &str) -> Self::Elector {
        self.candidate_at(self.address(), identity).await
    }
    /// A store that can check the fences of this election, by way of this address.
    async fn store_at(&self, address: SocketAddr) -> Self::Store;
    async fn store(&self) -> Self::Store {
        self.store_at(self.address()).await
    }
    /// Takes away the permission to read. Connections go on.
    async fn deny(&self);
    /// Lists all that the server holds of the election.
    async fn traces(&self) -> Vec<String>;
    /// Counts the writes of all clients.
    async fn writes(&self) -> u64;
    /// Deletes the leader's key or node, as another program would.
    async fn depose(&self);
    /// Writes over the leader's key, as another program would, with a value that expires after the TTL.
    /// Returns false if the server has no such key.
    async fn overwrite(&self) -> bool {
        false
    }
    fn kill(&mut self);
    /// Starts the server again with the same data.
    async fn restart(&mut self);
}

pub struct Etcd(pub EtcdServer);
pub struct Voter(pub EtcdServer);
pub struct Zookeeper(pub ZookeeperServer);
pub struct Redis(pub RedisServer);

pub async fn etcd_client(address: SocketAddr) -> Client {
    let options = ConnectOptions::new()
        .with_connect_timeout(REQUEST)
        .with_keep_alive(REQUEST / 2, REQUEST)
        .with_keep_alive_while_idle(false);
    Client::connect([format!("http://{address}")], Some(options)).await.expect("a valid endpoint")
}

pub async fn zookeeper_client(address: SocketAddr) -> ZookeeperClient {
    let connector = ZookeeperClient::connector().with_session_timeout(Duration::from_secs(5));
    connector.connect(&address.to_string()).await.expect("it serves")
}

/// Lists the nodes below the election's name as `key=value`.
async fn etcd_keys(address: SocketAddr) -> Vec<(Vec<u8>, String)> {
    let mut client = etcd_client(address).await;
    let options = GetOptions::new().with_prefix();
    let answer = client.get(ELECTION, Some(options)).await.expect("it serves");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    answer
        .kvs()
        .iter()
        .map(|kv| (kv.key().to_vec(), format!("{}={}", text(kv.key()), text(kv.value()))))
        .collect()
}

async fn oldest_etcd_key(address: SocketAddr) -> Option<Vec<u8>> {
    let options = GetOptions::new()
        .with_prefix()
        .with_sort(etcd_client::SortTarget::Create, etcd_client::SortOrder::Ascend)
        .with_limit(1);
    let oldest = etcd_client(address).await.get(ELECTION, Some(options)).await.expect("it serves");
    oldest.kvs().first().map(|kv| kv.key().to_vec())
}

async fn overwrite_etcd_key(address: SocketAddr, ttl: Duration) -> bool {
    let mut client = etcd_client(address).await;
    let lease = client.lease_grant(ttl.as_secs() as i64, None).await.expect("it serves").id();
    let Some(key) = oldest_etcd_key(address).await else { return false };
    let theirs = PutOptions::new().with_lease(lease);
    client.put(key, "theirs", Some(theirs)).await.expect("it serves");
    true
}

/// Returns etcd's revision, which counts its writes.
async fn etcd_revision(address: SocketAddr) -> u64 {
    let status = etcd_client(address).await.status().await.expect("it serves");
    status.header().expect("a header").revision().unsigned_abs()
}

async fn etcd_leases(address: SocketAddr) -> usize {
    let leases = etcd_client(address).await.leases().await.expect("it serves");
    leases.leases().len()
}

/// Demands a user, of which the clients here have none.
async fn etcd_deny(address: SocketAddr) {
    let mut client = etcd_client(address).await;
    // It may have been denied before.
    if client.user_add("root", "secret", None).await.is_ok() {
        client.role_add("root").await.expect("it serves");
        client.user_grant_role("root", "root").await.expect("it serves");
        client.auth_enable().await.expect("there is a root user");
    }
}

async fn etcd_traces(address: SocketAddr) -> Vec<String> {
    let mut traces: Vec<_> = etcd_keys(address).await.into_iter().map(|(_, text)| text).collect();
    traces.extend((0..etcd_leases(address).await).map(|_| "a lease".to_owned()));
    traces
}

impl Engine for Etcd {
    type Elector = EtcdElector;
    type Store = EtcdStore;
    const TTL: Duration = Duration::from_secs(1);

    async fn start() -> Self {
        Self(EtcdServer::start().await)
    }

    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    async fn candidate_with(&self, address: SocketAddr, identity: &str, ttl: Duration) -> EtcdElector {
        let builder = EtcdElector::builder(etcd_client(address).await, ELECTION).identity(identity);
        builder.ttl(ttl).request_timeout(REQUEST).start().await.expect("a session")
    }

    async fn store_at(&self, address: SocketAddr) -> EtcdStore {
        EtcdStore::new(etcd_client(address).await)
    }

    async fn deny(&self) {
        etcd_deny(self.address()).await;
    }

    async fn traces(&self) -> Vec<String> {
        etcd_traces(self.address()).await
    }

    async fn writes(&self) -> u64 {
        etcd_revision(self.address()).await
    }

    async fn depose(&self) {
        let key = oldest_etcd_key(self.address()).await.expect("a candidate leads");
        etcd_client(self.address()).await.delete(key, None).await.expect("it serves");
    }

    async fn overwrite(&self) -> bool {
        overwrite_etcd_key(self.address(), Self::TTL).await
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    async fn restart(&mut self) {
        self.0.restart().await;
    }
}

impl Engine for Voter {
    type Elector = EtcdVoter;
    type Store = EtcdStore;
    const TTL: Duration = Duration::from_secs(1);

    async fn start() -> Self {
        Self(EtcdServer::start().await)
    }

    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    async fn candidate_with(&self, address: SocketAddr, identity: &str, ttl: Duration) -> EtcdVoter {
        let voters = EtcdVoters::builder(etcd_client(address).await).request_timeout(REQUEST).build();
        let voters = voters.expect("valid settings");
        voters.add_voter(ELECTION, identity, ttl).expect("valid settings")
    }

    async fn store_at(&self, address: SocketAddr) -> EtcdStore {
        EtcdStore::new(etcd_client(address).await)
    }

    async fn deny(&self) {
        etcd_deny(self.address()).await;
    }

    async fn traces(&self) -> Vec<String> {
        etcd_traces(self.address()).await
    }

    async fn writes(&self) -> u64 {
        etcd_revision(self.address()).await
    }

    async fn depose(&self) {
        etcd_client(self.address()).await.delete(ELECTION, None).await.expect("it serves");
    }

    async fn overwrite(&self) -> bool {
        overwrite_etcd_key(self.address(), Self::TTL).await
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    async fn restart(&mut self) {
        self.0.restart().await;
    }
}

impl Engine for Zookeeper {
    type Elector = ZookeeperElector;
    type Store = ZookeeperStore;
    const TTL: Duration = Duration::from_secs(1);

    async fn start() -> Self {
        Self(ZookeeperServer::start().await)
    }

    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    async fn candidate_with(&self, address: SocketAddr, identity: &str, ttl: Duration) -> ZookeeperElector {
        let builder = ZookeeperElector::builder(address.to_string(), ELECTION).identity(identity);
        builder.ttl(ttl).request_timeout(REQUEST).start().await.expect("a session")
    }

    async fn store_at(&self, address: SocketAddr) -> ZookeeperStore {
        let store = ZookeeperStore::new(&address.to_string(), "/test/store", ZookeeperAccess::open());
        store.expect("a valid address")
    }

    async fn deny(&self) {
        let client = zookeeper_client(self.address()).await;
        let acl = [Acl::new(Permission::ADMIN, AuthId::anyone())];
        for path in [ELECTION, "/test/store"] {
            // The store makes its path with the first write.
            let set = client.set_acl(path, &acl, None).await;
            assert!(matches!(set, Ok(_) | Err(Error::NoNode)), "{set:?}");
        }
    }

    async fn traces(&self) -> Vec<String> {
        let client = zookeeper_client(self.address()).await;
        client.list_children(ELECTION).await.unwrap_or_default()
    }

    async fn writes(&self) -> u64 {
        let zxid = self.0.ask("srvr").await;
        let zxid = zxid.lines().find_map(|line| line.strip_prefix("Zxid: 0x")).expect("it tells").to_owned();
        // A session begins and ends with a write; the session of this client does not count.
        u64::from_str_radix(&zxid, 16).expect("a number")
    }

    async fn depose(&self) {
        let client = zookeeper_client(self.address()).await;
        let names = client.list_children(ELECTION).await.expect("it serves");
        let first = names.iter().min_by_key(|name| name.rsplit('-').next()).expect("a candidate leads");
        client.delete(&format!("{ELECTION}/{first}"), None).await.expect("it serves");
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    async fn restart(&mut self) {
        self.0.restart().await;
    }
}

impl Engine for Redis {
    type Elector = RedisElector;
    type Store = RedisStore;
    const TTL: Duration = Duration::from_secs(1);

    async fn start() -> Self {
        Self(RedisServer::start().await)
    }

    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    async fn candidate_with(&self, address: SocketAddr, identity: &str, ttl: Duration) -> RedisElector {
        let builder = RedisElector::builder(format!("redis://{address}"), ELECTION).identity(identity);
        builder.ttl(ttl).request_timeout(REQUEST).start().await.expect("valid settings")
    }

    async fn store_at(&self, address: SocketAddr) -> RedisStore {
        RedisStore::new(format!("redis://{address}")).expect("a valid URL")
    }

    async fn deny(&self) {
        self.0.ask("ACL SETUSER default resetkeys").await;
    }

    async fn traces(&self) -> Vec<String> {
        let keys = self.0.ask("KEYS *").await;
        let keys = keys.lines().filter(|line| line.starts_with('/')).map(str::to_owned);
        let counter = format!("{ELECTION}:token");
        let expires = self.0.ask(&format!("TTL {counter}")).await.trim() != ":-1";
        // The counter outlives the candidates until it expires.
        keys.filter(|key| *key != counter || !expires).collect()
    }

    async fn writes(&self) -> u64 {
        let mut writes = 0;
        for command in ["set", "pexpire", "del"] {
            writes += self.0.calls(command).await;
        }
        writes
    }

    async fn depose(&self) {
        self.0.ask(&format!("DEL {ELECTION}")).await;
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    async fn restart(&mut self) {
        self.0.restart().await;
    }
}

//! Connections to a server or to the nodes of a cluster.

use std::{future::Future, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    Pipeline, ProtocolVersion, PushInfo, RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    cmd,
};
use tokio::sync::{Mutex, mpsc::UnboundedSender};

use super::codec::store_error;
use crate::store::{StoreError, resume};

/// The addresses of the servers, and the connection that all calls share.
pub(crate) struct SharedConnection {
    servers: Vec<ConnectionInfo>,
    is_cluster: bool,
    /// The number of the current connection, and the connection itself: `None` before the first
    /// call and after a failed one.
    current: Mutex<(u64, Option<Connection>)>,
}

#[derive(Clone)]
pub(crate) enum Connection {
    Server(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl SharedConnection {
    pub fn server(server: impl IntoConnectionInfo) -> RedisResult<Self> {
        Ok(Self { servers: vec![speaking_resp3(server)?], is_cluster: false, current: Mutex::default() })
    }

    pub fn cluster<N: IntoConnectionInfo>(nodes: impl IntoIterator<Item = N>) -> RedisResult<Self> {
        let servers: Vec<_> = nodes.into_iter().map(speaking_resp3).collect::<RedisResult<_>>()?;
        if servers.is_empty() {
            return Err((ErrorKind::InvalidClientConfig, "a cluster needs at least one node").into());
        }
        Ok(Self { servers, is_cluster: true, current: Mutex::default() })
    }

    /// Makes a request over the shared connection. Drops the connection if no answer comes within
    /// `limit`; the next request makes a new one.
    pub async fn request<T, F: Future<Output = RedisResult<T>>>(
        &self,
        limit: Duration,
        request: impl FnOnce(Connection) -> F,
    ) -> Result<T, StoreError> {
        let mut used = None;
        let answer = async {
            let (number, connection) = self.connection(limit).await?;
            used = Some(number);
            request(connection).await
        };
        let answer = resume::bounded(limit, answer, store_error).await;
        // Some of these errors leave the connection intact, but they are rare, and connecting again
        // is cheap. The number guards against dropping the successor that another caller already
        // made.
        if matches!(answer, Err(StoreError::Unavailable { .. }))
            && let Some(number) = used
        {
            let mut current = self.current.lock().await;
            if current.0 == number {
                current.1 = None;
            }
        }
        answer
    }

    /// Returns the current connection. The first caller makes it while the others wait.
    async fn connection(&self, limit: Duration) -> RedisResult<(u64, Connection)> {
        let mut current = self.current.lock().await;
        if let (number, Some(connection)) = &*current {
            return Ok((*number, connection.clone()));
        }
        let connection = if self.is_cluster {
            let client = ClusterClient::builder(self.servers.iter().cloned())
                .use_protocol(ProtocolVersion::RESP3)
                .connection_timeout(limit)
                .response_timeout(limit)
                // The client would repeat writes of unknown outcome. Only the caller may do that.
                .retries(0)
                .build()?;
            Connection::Cluster(client.get_async_connection().await?)
        } else {
            let config = AsyncConnectionConfig::new().set_connection_timeout(Some(limit));
            Connection::Server(connect(&self.servers[0], config.set_response_timeout(Some(limit))).await?)
        };
        *current = (current.0 + 1, Some(connection.clone()));
        Ok((current.0, connection))
    }

    /// Opens a separate connection to each server that holds keys. Forwards the push messages of
    /// the server at index `n` to `pushes` as `(n, message)`.
    pub async fn listen(
        &self,
        limit: Duration,
        pushes: &UnboundedSender<(usize, PushInfo)>,
    ) -> RedisResult<Vec<MultiplexedConnection>> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(limit));
        let servers = if self.is_cluster { self.masters(&config).await? } else { self.servers.clone() };
        let mut connections = Vec::new();
        for (number, server) in servers.iter().enumerate() {
            let pushes = pushes.clone();
            let push = move |message| pushes.send((number, message)).map_err(|_| redis::aio::SendError);
            connections.push(connect(server, config.clone().set_push_sender(push)).await?);
        }
        Ok(connections)
    }

    /// Returns the masters of the cluster, as the first node that answers reports them.
    async fn masters(&self, config: &AsyncConnectionConfig) -> RedisResult<Vec<ConnectionInfo>> {
        let mut last = None;
        for server in &self.servers {
            let masters: RedisResult<Vec<(String, u16)>> = async {
                let mut connection = connect(server, config.clone()).await?;
                let slots: Vec<Vec<Value>> = cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await?;
                Ok(slots.into_iter().filter_map(master).collect())
            }
            .await;
            match masters {
                Ok(mut masters) => {
                    masters.sort_unstable();
                    masters.dedup();
                    return Ok(masters.into_iter().map(|(host, port)| at(server, host, port)).collect());
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| (ErrorKind::InvalidClientConfig, "no node is configured").into()))
    }
}

/// Sets the protocol to RESP3, because earlier versions have no push messages.
fn speaking_resp3(server: impl IntoConnectionInfo) -> RedisResult<ConnectionInfo> {
    let server = server.into_connection_info()?;
    let settings = server.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(server.set_redis_settings(settings))
}

async fn connect(
    server: &ConnectionInfo,
    config: AsyncConnectionConfig,
) -> RedisResult<MultiplexedConnection> {
    Client::open(server.clone())?.get_multiplexed_async_connection_with_config(&config).await
}

/// Returns the address of the master from one item of `CLUSTER SLOTS`. The item is the first slot,
/// the last slot, and the nodes, master first; a node starts with host and port.
pub(crate) fn master(range: Vec<Value>) -> Option<(String, u16)> {
    let Value::Array(mut master) = range.into_iter().nth(2)? else { return None };
    master.truncate(2);
    redis::from_redis_value(Value::Array(master)).ok()
}

/// Returns the settings for another node, based on those of `known`. A node that does not know its
/// own host name reports an empty one; the host of `known` replaces it.
fn at(known: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let addr = match known.addr().clone() {
        ConnectionAddr::Tcp(same, _) if host.is_empty() => ConnectionAddr::Tcp(same, port),
        ConnectionAddr::TcpTls { host: same, insecure, tls_params, .. } => {
            let host = if host.is_empty() { same } else { host };
            ConnectionAddr::TcpTls { host, port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    known.clone().set_addr(addr)
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(connection) => connection.req_packed_commands(commands, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

//! The way to the servers: addresses, credentials, and new connections.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    ProtocolVersion, PushInfo, RedisResult, ServerErrorKind, Value, aio::MultiplexedConnection, cmd, pipe,
};
use tokio::sync::mpsc::UnboundedSender;

use super::credentials::{Credentials, Provider};
use crate::store::{BoxError, Version};

/// The addresses of the servers, and how to log in.
#[derive(Clone)]
pub(super) struct Access {
    pub layout: Layout,
    provider: Option<Provider>,
    /// The log has the refusal of `CLIENT TRACKING`.
    refusal_logged: Arc<AtomicBool>,
    /// The greatest number of a version that a store and its watches have seen.
    latest: Arc<AtomicU64>,
}

#[derive(Clone)]
pub(super) enum Layout {
    Server(ConnectionInfo),
    /// The sentinels know the address of the master with that name; the rest of its settings is
    /// here.
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        name: String,
        master: ConnectionInfo,
    },
    /// Some nodes of a cluster, which know the others.
    Cluster(Vec<ConnectionInfo>),
}

/// A subscription to the changes of keys, for each new connection.
pub(super) struct Listening {
    pub prefix: String,
    pub pushes: UnboundedSender<Push>,
    /// A server refused `CLIENT TRACKING`, so that its changes are not announced.
    pub refused: AtomicBool,
}

/// A message of a server, or the end of its connection.
pub(super) struct Push {
    /// The node's name.
    pub node: Arc<str>,
    /// The number of the connection.
    pub number: u64,
    pub info: PushInfo,
}

impl Access {
    pub fn server(server: impl IntoConnectionInfo) -> RedisResult<Self> {
        Ok(Self::to(Layout::Server(speaking_resp3(server)?)))
    }

    pub fn sentinel<S: IntoConnectionInfo>(
        sentinels: impl IntoIterator<Item = S>,
        master: impl IntoConnectionInfo,
    ) -> RedisResult<Self> {
        let sentinels = all(sentinels, "Sentinel needs at least one address")?;
        let master = speaking_resp3(master)?;
        let name = match master.addr() {
            ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. } => name.clone(),
            _ => {
                return Err(
                    (ErrorKind::InvalidClientConfig, "the master's URL has no host as its name").into()
                );
            }
        };
        Ok(Self::to(Layout::Sentinel { sentinels, name, master }))
    }

    pub fn cluster<N: IntoConnectionInfo>(nodes: impl IntoIterator<Item = N>) -> RedisResult<Self> {
        Ok(Self::to(Layout::Cluster(all(nodes, "a cluster needs at least one node")?)))
    }

    fn to(layout: Layout) -> Self {
        Self { layout, provider: None, refusal_logged: Arc::default(), latest: Arc::default() }
    }

    pub fn ask<F, E>(&mut self, provider: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        self.provider = Some(Arc::new(move || {
            let asked = provider();
            Box::pin(async move { asked.await.map_err(Into::into) }) as BoxFuture<_>
        }));
    }

    /// Notes a version. Later ones are greater, also of a key that was deleted meanwhile.
    pub fn saw(&self, version: &Version) {
        self.latest.fetch_max(version.key_revision().unwrap_or(0), Ordering::Relaxed);
    }

    pub fn latest(&self) -> u64 {
        self.latest.load(Ordering::Relaxed)
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self.layout, Layout::Cluster(_))
    }

    /// Connects to a server and subscribes to its changes. `number` and `node` come back with each
    /// of its messages.
    pub async fn connect(
        &self,
        server: &ConnectionInfo,
        (node, number): (&Arc<str>, u64),
        listening: Option<&Listening>,
    ) -> RedisResult<MultiplexedConnection> {
        let mut server = server.clone();
        if let Some(provider) = &self.provider {
            let Credentials { username, password } = provider().await.map_err(io::Error::other)?;
            let settings = server.redis_settings().clone().set_username(username).set_password(password);
            server = server.set_redis_settings(settings);
        }
        // All callers have a time limit for the whole.
        let mut config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        if let Some(Listening { pushes, .. }) = listening {
            let (pushes, node) = (pushes.clone(), node.clone());
            config = config.set_push_sender(move |info| {
                let push = Push { node: node.clone(), number, info };
                pushes.send(push).map_err(|_| redis::aio::SendError)
            });
        }
        let mut connection =
            Client::open(server)?.get_multiplexed_async_connection_with_config(&config).await?;
        // Behind one address, and by a sentinel that is behind, it may be a replica. Readers ask
        // each time, and writers are refused.
        let checked =
            matches!(self.layout, Layout::Sentinel { .. }) || (!self.is_cluster() && listening.is_some());
        let mut pipe = pipe();
        pipe.ignore_errors();
        if checked {
            pipe.cmd("HELLO").arg(3);
        }
        if let Some(listening) = listening {
            pipe.cmd("CLIENT").arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(&listening.prefix);
        }
        if pipe.is_empty() {
            return Ok(connection);
        }
        let answers: Vec<RedisResult<Value>> = pipe.query_async(&mut connection).await?;
        let mut answers = answers.into_iter();
        if let (true, Some(hello)) = (checked, answers.next()) {
            check_master(hello?)?;
        }
        if let (Some(listening), Some(tracked)) = (listening, answers.next()) {
            self.handle_tracked(tracked, listening)?;
        }
        Ok(connection)
    }

    fn handle_tracked(&self, tracked: RedisResult<Value>, listening: &Listening) -> RedisResult<()> {
        let Err(error) = tracked else { return Ok(()) };
        let refused = [ServerErrorKind::NoPerm, ServerErrorKind::ResponseError].map(ErrorKind::Server);
        if !refused.contains(&error.kind()) {
            return Err(error);
        }
        listening.refused.store(true, Ordering::Relaxed);
        if !self.refusal_logged.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "the server refuses CLIENT TRACKING, so changes are polled");
        }
        Ok(())
    }

    /// Asks all sentinels, and connects to the first master that one of them knows and that says
    /// itself that it is the master.
    pub async fn connect_to_master(
        &self,
        (node, number): (&Arc<str>, u64),
        listening: Option<&Listening>,
    ) -> RedisResult<MultiplexedConnection> {
        let Layout::Sentinel { sentinels, name, master } = &self.layout else {
            return Err((ErrorKind::InvalidClientConfig, "there are no sentinels").into());
        };
        let mut answers: FuturesUnordered<_> = sentinels
            .iter()
            .map(|sentinel| async move { (sentinel, master_by(sentinel, name).await) })
            .collect();
        let mut last = None;
        while let Some((sentinel, answer)) = answers.next().await {
            let connected = match answer {
                Ok((host, port)) => {
                    self.connect(&at(master, sentinel, &host, port), (node, number), listening).await
                }
                Err(error) => Err(error),
            };
            match connected {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| (ErrorKind::InvalidClientConfig, "there are no sentinels").into()))
    }
}

/// Returns the address of the master as a sentinel knows it.
async fn master_by(sentinel: &ConnectionInfo, name: &str) -> RedisResult<(String, u16)> {
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let client = Client::open(sentinel.clone())?;
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let mut question = cmd("SENTINEL");
    question.arg("GET-MASTER-ADDR-BY-NAME").arg(name);
    let master: Option<(String, u16)> = question.query_async(&mut connection).await?;
    master.ok_or_else(|| {
        (ErrorKind::MasterNameNotFoundBySentinel, "the sentinels know no such master", name.to_owned()).into()
    })
}

/// Checks the answer to `HELLO`: only a master has all acknowledged writes.
pub(super) fn check_master(hello: Value) -> RedisResult<()> {
    let fields: std::collections::HashMap<String, Value> = redis::from_redis_value(hello)?;
    match fields.get("role") {
        Some(Value::BulkString(role)) if role != b"master" => {
            Err((ErrorKind::Server(ServerErrorKind::ReadOnly), "the server is a replica").into())
        }
        _ => Ok(()),
    }
}

/// Returns the settings of `like` with another address. A node that does not know its own host, or
/// may not tell it, is on the host of `known`, which told of it.
pub(super) fn at(like: &ConnectionInfo, known: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let host = match (host, known.addr()) {
        ("" | "?", ConnectionAddr::Tcp(same, _) | ConnectionAddr::TcpTls { host: same, .. }) => same,
        _ => host,
    };
    let addr = match like.addr().clone() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure, tls_params }
        }
        _ => ConnectionAddr::Tcp(host.to_owned(), port),
    };
    like.clone().set_addr(addr)
}

fn all<N: IntoConnectionInfo>(
    servers: impl IntoIterator<Item = N>,
    at_least_one: &'static str,
) -> RedisResult<Vec<ConnectionInfo>> {
    let servers: Vec<_> = servers.into_iter().map(speaking_resp3).collect::<RedisResult<_>>()?;
    if servers.is_empty() {
        return Err((ErrorKind::InvalidClientConfig, at_least_one).into());
    }
    Ok(servers)
}

/// Sets the protocol to RESP3, because earlier versions have no push messages.
fn speaking_resp3(server: impl IntoConnectionInfo) -> RedisResult<ConnectionInfo> {
    let server = server.into_connection_info()?;
    let settings = server.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(server.set_redis_settings(settings))
}

//! Requests to the server that has the key.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{
    StreamExt, future,
    stream::{self, FuturesUnordered},
};
use parking_lot::Mutex;
use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, Script, ServerErrorKind, Value,
    aio::MultiplexedConnection, cmd, pipe,
};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::{sleep, timeout},
};

use super::{
    access::{Access, Layout, Listening, Push, at, check_master},
    cluster::{self, Topology},
    codec::{Fields, bounded, read, store_error},
    node::Node,
};
use crate::store::{StoreError, unavailable};

/// The servers, with one connection to each that is in use.
pub(super) struct Servers {
    pub access: Access,
    listening: Option<Listening>,
    /// The nodes that are known, by their names.
    nodes: Mutex<HashMap<Arc<str>, Arc<Node>>>,
    /// `None` before the first request to a cluster, and when it may have changed.
    topology: Mutex<Option<Arc<Topology>>>,
    /// Locked while somebody asks for the topology, so that the others wait.
    refreshing: tokio::sync::Mutex<()>,
    /// A redirection led to a node that was unknown.
    discovered: AtomicBool,
    /// Whom to ask first the next time: a node may be cut off from the others, or removed.
    turn: AtomicUsize,
}

/// One command about one key.
pub(super) struct Request<'a> {
    key: &'a str,
    command: Cmd,
    /// The script that the command runs by its hash.
    script: Option<&'a Script>,
    reads: bool,
    timed: bool,
}

/// The answer to a request.
pub(super) struct Answer {
    value: Value,
    used: Used,
}

/// The connection that a request uses: the node, and the number of the connection unless the node
/// could not be reached.
type Used = Option<(Arc<Node>, Option<u64>)>;

impl<'a> Request<'a> {
    /// A read. Only a master answers it, because a replica may be behind.
    pub fn read(key: &'a str, command: Cmd) -> Self {
        Self { key, command, script: None, reads: true, timed: false }
    }

    /// A script that writes. Its keys have one hash slot.
    pub fn script(key: &'a str, script: &'a Script, further_keys: &[&str]) -> Self {
        let mut command = cmd("EVALSHA");
        command.arg(script.get_hash()).arg(1 + further_keys.len()).arg(key).arg(further_keys);
        Self { key, command, script: Some(script), reads: false, timed: false }
    }

    /// Adds an argument of the script.
    pub fn arg(mut self, argument: impl redis::ToRedisArgs) -> Self {
        self.command.arg(argument);
        self
    }

    /// Also asks for the server's time.
    pub fn timed(mut self) -> Self {
        self.timed = true;
        self
    }

    async fn send(
        &self,
        mut connection: MultiplexedConnection,
        asking: bool,
        is_cluster: bool,
    ) -> RedisResult<(u64, Value)> {
        match self.send_once(&mut connection, asking, is_cluster).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                let Some(script) = self.script else { return Err(error) };
                script.load_async(&mut connection).await?;
                self.send_once(&mut connection, asking, is_cluster).await
            }
            answer => answer,
        }
    }

    async fn send_once(
        &self,
        connection: &mut MultiplexedConnection,
        asking: bool,
        is_cluster: bool,
    ) -> RedisResult<(u64, Value)> {
        let mut pipe = pipe();
        pipe.ignore_errors();
        // A node of a cluster sends readers to the master by itself.
        let checked = self.reads && !is_cluster;
        if checked {
            pipe.cmd("HELLO").arg(3);
        }
        if self.timed {
            pipe.cmd("TIME");
        }
        // It concerns only the next command on the connection, so they must go together.
        if asking {
            pipe.cmd("ASKING");
        }
        pipe.add_command(self.command.clone());
        let answers: Vec<RedisResult<Value>> = pipe.query_async(connection).await?;
        let mut answers = answers.into_iter();
        let mut next = || answers.next().unwrap_or_else(|| Err(missing()));
        if checked {
            check_master(next()?)?;
        }
        let time = if self.timed {
            let (seconds, micros): (u64, u64) = redis::from_redis_value(next()?)?;
            seconds * 1_000_000 + micros
        } else {
            0
        };
        if asking {
            next()?;
        }
        Ok((time, next()?))
    }
}

impl Answer {
    pub fn parse<T: FromRedisValue>(&self) -> Result<T, StoreError> {
        redis::from_redis_value_ref(&self.value).map_err(|error| store_error(error.into()))
    }
}

impl Servers {
    pub fn new(access: Access) -> Self {
        Self::with(access, None)
    }

    /// Servers that announce the changes of the keys with a prefix, over connections of their own.
    pub fn listening(access: Access, prefix: &str) -> (Self, UnboundedReceiver<Push>) {
        let (pushes, receiver) = mpsc::unbounded_channel();
        let listening = Listening { prefix: prefix.to_owned(), pushes, refused: AtomicBool::new(false) };
        (Self::with(access, Some(listening)), receiver)
    }

    fn with(access: Access, listening: Option<Listening>) -> Self {
        let single = match &access.layout {
            Layout::Server(server) => Some(Node::at(server.clone())),
            Layout::Sentinel { .. } => Some(Node::master()),
            Layout::Cluster(_) => None,
        };
        let single = single.map(Arc::new);
        Self {
            access,
            listening,
            nodes: Mutex::new(single.iter().map(|node| (node.name.clone(), node.clone())).collect()),
            topology: Mutex::new(single.map(|node| Arc::new(Topology::single(node)))),
            refreshing: tokio::sync::Mutex::default(),
            discovered: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        }
    }

    /// Returns whether a server does not announce its changes.
    pub fn is_polled(&self) -> bool {
        self.listening.as_ref().is_some_and(|listening| listening.refused.load(Ordering::Relaxed))
    }

    /// Makes a request. Drops the connection if no answer comes within `limit`; the next request
    /// makes a new one.
    pub async fn request(&self, limit: Duration, request: &Request<'_>) -> Result<Answer, StoreError> {
        let mut used = None;
        let answer = bounded(limit, self.attempt(request, &mut used)).await;
        let (_, value) = self.after(&used, answer)?;
        Ok(Answer { value, used })
    }

    /// Sends a command over the connection of an earlier answer.
    pub async fn follow_up<T: FromRedisValue>(
        &self,
        limit: Duration,
        answer: &Answer,
        command: Cmd,
    ) -> Result<T, StoreError> {
        let Some((node, number)) = &answer.used else { return Err(unavailable("no server answered")) };
        let followed = async {
            let (current, mut connection) = node.connection(&self.access, self.listening.as_ref()).await?;
            if Some(current) != *number {
                return Err((ErrorKind::Io, "the connection was lost").into());
            }
            command.query_async(&mut connection).await
        };
        let followed = bounded(limit, followed).await;
        self.after(&answer.used, followed)
    }

    /// Reads keys in their order, each with the server's time, which is not later than a write that
    /// the read misses. A key of another type is absent, because no store wrote it. Gives up when
    /// there is no further answer for `limit`.
    pub async fn read_all(
        &self,
        limit: Duration,
        keys: &[Arc<str>],
    ) -> Result<Vec<(u64, Fields)>, StoreError> {
        let mut fields = Vec::with_capacity(keys.len());
        let mut answers = stream::iter(keys.to_vec())
            .map(|key| async move { self.attempt(&Request::read(&key, read(&key)).timed(), &mut None).await })
            .buffered(AT_A_TIME);
        while let Some(answer) = bounded(limit, async { Ok(answers.next().await) }).await? {
            fields.push(match answer {
                Ok((time, value)) => {
                    (time, redis::from_redis_value(value).map_err(|error| store_error(error.into()))?)
                }
                Err(error) if error.code() == Some("WRONGTYPE") => (0, (None, None)),
                Err(error) => return Err(store_error(error)),
            });
        }
        Ok(fields)
    }

    fn after<T>(&self, used: &Used, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        // Some of these errors leave the connection intact, but they are rare, and connecting again
        // is cheap.
        if matches!(answer, Err(StoreError::Unavailable { .. })) {
            self.give_up(used);
        }
        answer
    }

    fn give_up(&self, used: &Used) {
        if let Some((node, Some(number))) = used {
            node.forget(*number);
        }
        self.doubt_topology();
    }

    /// Follows redirections: a node that redirects has done nothing, so nothing is done twice. A
    /// node of a cluster that cannot be reached, or breaks off in a read, may have been removed.
    async fn attempt(&self, request: &Request<'_>, used: &mut Used) -> RedisResult<(u64, Value)> {
        let (mut node, mut asking) = (self.owner(request.key).await?, false);
        let (mut redirections, mut lost) = (0, false);
        loop {
            *used = Some((node.clone(), None));
            let error = match node.connection(&self.access, self.listening.as_ref()).await {
                Ok((number, connection)) => {
                    *used = Some((node.clone(), Some(number)));
                    match request.send(connection, asking, self.access.is_cluster()).await {
                        Ok(answer) => return Ok(answer),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if !self.access.is_cluster() {
                return Err(error);
            }
            (node, asking) = match (error.kind(), error.redirect_node()) {
                (ErrorKind::Server(ServerErrorKind::Moved), Some((to, _))) => {
                    self.doubt_topology();
                    (self.redirected(&node, to)?, false)
                }
                (ErrorKind::Server(ServerErrorKind::Ask), Some((to, _))) => {
                    (self.redirected(&node, to)?, true)
                }
                // The slot is in migration, and the keys of this request are apart.
                (ErrorKind::Server(ServerErrorKind::TryAgain), _) => (self.owner(request.key).await?, false),
                (ErrorKind::Io, _) if !lost && (request.reads || matches!(used, Some((_, None)))) => {
                    lost = true;
                    self.give_up(used);
                    (self.owner(request.key).await?, false)
                }
                _ => return Err(error),
            };
            redirections += 1;
            // Nodes that learn of a change at different times send requests in circles.
            if redirections > 2 {
                sleep(PAUSE).await;
            }
        }
    }

    async fn owner(&self, key: &str) -> RedisResult<Arc<Node>> {
        let topology = self.topology().await?;
        let owner = topology.owner(key).cloned();
        owner.ok_or_else(|| {
            self.doubt_topology();
            (ErrorKind::ClusterConnectionNotFound, "no node of the cluster serves the key").into()
        })
    }

    fn redirected(&self, from: &Node, to: &str) -> RedisResult<Arc<Node>> {
        let nonsense =
            || RedisError::from((ErrorKind::Parse, "a redirection without an address", to.to_owned()));
        let (host, port) = to.rsplit_once(':').ok_or_else(nonsense)?;
        let port = port.parse().map_err(|_| nonsense())?;
        let from = from.address.as_ref().ok_or_else(nonsense)?;
        let address = at(from, from, host, port);
        if !self.nodes.lock().contains_key(&*address.addr().to_string()) {
            self.discovered.store(true, Ordering::Relaxed);
        }
        Ok(self.node(address))
    }

    /// Returns whether a redirection led to an unknown node since the last call.
    pub fn take_discovered(&self) -> bool {
        self.discovered.swap(false, Ordering::Relaxed)
    }

    /// Returns the node at an address, the same one for each call.
    fn node(&self, address: redis::ConnectionInfo) -> Arc<Node> {
        let node = Node::at(address);
        self.nodes.lock().entry(node.name.clone()).or_insert_with(|| Arc::new(node)).clone()
    }

    fn doubt_topology(&self) {
        if self.access.is_cluster() {
            *self.topology.lock() = None;
        }
    }

    async fn topology(&self) -> RedisResult<Arc<Topology>> {
        let known = || self.topology.lock().clone();
        if let Some(topology) = known() {
            return Ok(topology);
        }
        let _refreshing = self.refreshing.lock().await;
        match known() {
            Some(topology) => Ok(topology),
            None => self.refresh().await,
        }
    }

    /// Asks the nodes for the masters: one node, and after a short silence one more. The first node
    /// that knows an owner of each slot is believed: one that was removed knows none.
    async fn refresh(&self) -> RedisResult<Arc<Topology>> {
        let Layout::Cluster(seeds) = &self.access.layout else { return self.topology_of_one() };
        for seed in seeds {
            self.node(seed.clone());
        }
        let mut nodes: Vec<_> = self.nodes.lock().values().cloned().collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % nodes.len();
        nodes.rotate_left(turn);
        nodes.sort_by_key(|node| !node.is_connected());
        let (mut nodes, mut asked) = (nodes.into_iter(), FuturesUnordered::new());
        let (mut best, mut last): (Option<Topology>, Option<RedisError>) = (None, None);
        loop {
            let next = nodes.next();
            let all_asked = next.is_none();
            asked.extend(next.map(|node| self.topology_by(node)));
            match timeout(HEDGE, asked.next()).await {
                Ok(Some(Ok(topology))) if topology.is_complete() => {
                    best = Some(topology);
                    break;
                }
                Ok(Some(Ok(topology))) => {
                    if best.as_ref().is_none_or(|best| best.covered() < topology.covered()) {
                        best = Some(topology);
                    }
                }
                Ok(Some(Err(error))) => last = Some(error),
                Ok(None) => break,
                // A cluster may serve some slots only, while some nodes never answer.
                Err(_) if all_asked && best.is_some() => break,
                Err(_) => {}
            }
        }
        let Some(topology) = best else {
            return Err(last.unwrap_or_else(missing));
        };
        let topology = Arc::new(topology);
        let seeds: Vec<_> = seeds.iter().map(|seed| seed.addr().to_string()).collect();
        self.nodes.lock().retain(|name, node| {
            topology.masters.iter().any(|master| Arc::ptr_eq(master, node))
                || seeds.iter().any(|seed| **seed == **name)
        });
        *self.topology.lock() = Some(topology.clone());
        Ok(topology)
    }

    fn topology_of_one(&self) -> RedisResult<Arc<Topology>> {
        self.topology.lock().clone().ok_or_else(missing)
    }

    /// Asks one node for the masters.
    async fn topology_by(&self, node: Arc<Node>) -> RedisResult<Topology> {
        let (number, mut connection) = node.connection(&self.access, self.listening.as_ref()).await?;
        let shards = cmd("CLUSTER").arg("SHARDS").query_async(&mut connection).await;
        let address = node.address.as_ref().ok_or_else(missing)?;
        let masters = match shards {
            Ok(shards) => {
                cluster::shards(shards, matches!(address.addr(), redis::ConnectionAddr::TcpTls { .. }))
            }
            // Servers older than 7 have only this, and so may users.
            Err(error) if matches!(error.kind(), ErrorKind::Server(_)) => {
                cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await.and_then(cluster::slots)
            }
            Err(error) => Err(error),
        };
        let masters = masters.inspect_err(|error| {
            if error.is_io_error() {
                node.forget(number);
            }
        })?;
        let masters = masters
            .into_iter()
            .map(|master| (self.node(at(address, address, &master.host, master.port)), master.slots));
        Ok(Topology::new(masters))
    }

    /// Returns the masters of now. Those of them that are in `known` must answer as such.
    pub async fn look(&self, known: &[Arc<Node>]) -> RedisResult<Vec<Arc<Node>>> {
        let confirmed = |node: Arc<Node>| async move {
            if !known.iter().any(|known| Arc::ptr_eq(known, &node)) {
                return Ok(Some(node));
            }
            match check_master(self.request_of(&node, cmd("HELLO").arg(3).to_owned()).await?) {
                // The node that told of it does not know yet.
                Err(_) if self.access.is_cluster() => Ok(None),
                checked => checked.map(|()| Some(node)),
            }
        };
        let now = self.refresh().await?.masters.clone();
        let confirmed: Vec<_> = future::try_join_all(now.into_iter().map(confirmed)).await?;
        Ok(confirmed.into_iter().flatten().collect())
    }

    /// Connects to a node, unless it is connected.
    pub async fn connect(&self, node: &Node) -> RedisResult<()> {
        node.connection(&self.access, self.listening.as_ref()).await.map(drop)
    }

    /// Makes a request to a node, whichever keys it has.
    pub async fn request_of<T: FromRedisValue>(&self, node: &Node, command: Cmd) -> RedisResult<T> {
        let (_, mut connection) = node.connection(&self.access, self.listening.as_ref()).await?;
        command.query_async(&mut connection).await
    }

    /// Drops the connection that a message came by, or that ended with it. Returns whether it was
    /// in use.
    pub fn forget(&self, push: &Push) -> bool {
        let node = self.nodes.lock().get(&push.node).cloned();
        node.is_some_and(|node| node.forget(push.number))
    }
}

fn missing() -> RedisError {
    (ErrorKind::ClusterConnectionNotFound, "no server answered").into()
}

/// The number of keys that are read at the same time.
const AT_A_TIME: usize = 64;
/// The silence after which one more node is asked for the topology.
const HEDGE: Duration = Duration::from_millis(100);
/// The pause between redirections in a circle.
const PAUSE: Duration = Duration::from_millis(20);

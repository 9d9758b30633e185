//! Elections on ZooKeeper: the candidate whose node has the lowest number leads.

use std::{fmt, time::Duration};

use parking_lot::Mutex;
use tokio::sync::watch;
use zookeeper_client::Client;

use super::{
    access::{SESSION_TIMEOUTS, ZookeeperAccess, are_servers, is_base, store_error},
    campaign::Campaign,
    candidates::Candidates,
};
use crate::{
    election::{
        ElectionError, Elector, Events, Leadership,
        candidate::{CandidateHandle, Resign},
        publisher::LeadershipPublisher,
    },
    engine::config::ConfigError,
    store::{StoreError, resume},
};

/// A candidate in an election on ZooKeeper.
///
/// Candidates create ephemeral, sequential nodes under a base path, `_c_<guid>-lock-<number>`, that
/// hold their identity. The lowest number leads. Each candidate watches only its predecessor, so
/// that one exit wakes one candidate. Once per session timeout, each also checks who leads. This is
/// the recipe of ZooKeeper's documentation; Curator, dcos-go and kazoo (with `extra_lock_patterns`)
/// can take part. The random `guid` guards against a lost answer: the candidate finds its node by
/// it.
///
/// The elector fails for good when its session has expired or its credential is refused; start a
/// new one then. It survives any shorter loss of its connection.
///
/// Users of dcos/dcos-go's `elector`: each of its calls is listed in
/// [docs/migrating.md](https://docs.rs/crate/writerlease/latest/source/docs/migrating.md).
///
/// # How long a leader trusts an answer
///
/// Six times per session timeout, a leader asks through ZooKeeper's own leader (`sync`) whether its
/// node exists. It trusts the answer for two thirds of the session timeout. A server reports the
/// sessions that it heard from at the next ping of ZooKeeper's leader, half a tick later; if it
/// dies before, the last sign of life is lost. A tick is at most half of a session timeout, unless
/// `minSessionTimeout` was set lower.
///
/// ```no_run
/// # async fn example() -> Result<(), writerlease::election::ElectionError> {
/// use std::time::Duration;
/// use writerlease::{election::Elector, zookeeper::{ZookeeperAccess, ZookeeperElector}};
///
/// let elector = ZookeeperElector::builder("zk-0:2181,zk-1:2181", "/controllers/routes/election")
///     .identity("pod-1")
///     .access(ZookeeperAccess::digest("controller", "secret"))
///     .ttl(Duration::from_secs(6))
///     .start()
///     .await?;
/// println!("{:?} leads", elector.leader_ident().await);
/// elector.close().await;
/// # Ok(())
/// # }
/// ```
pub struct ZookeeperElector {
    candidate: CandidateHandle<Resign>,
    base: String,
    /// `None` once it is closed, so that its connection is closed, too.
    candidates: Mutex<Option<Candidates>>,
}

/// The settings of a [`ZookeeperElector`].
#[derive(Clone)]
#[must_use]
pub struct ZookeeperElectorBuilder {
    connection: Connection,
    base: String,
    identity: String,
    access: ZookeeperAccess,
    connect_timeout: Duration,
    ttl: Duration,
    request_timeout: Duration,
    patterns: Vec<String>,
}

#[derive(Clone)]
enum Connection {
    Servers(String),
    /// The user's own client, which outlives the candidate.
    Client(Client),
}

impl ZookeeperElector {
    /// Settings for a candidate with a connection of its own. `servers` are `host:port`, separated
    /// by commas. The candidates are nodes under the path `base`, which is created if it is
    /// missing.
    pub fn builder(servers: impl Into<String>, base: impl Into<String>) -> ZookeeperElectorBuilder {
        ZookeeperElectorBuilder {
            connection: Connection::Servers(servers.into()),
            base: base.into(),
            identity: String::new(),
            access: ZookeeperAccess::open(),
            connect_timeout: Duration::from_secs(5),
            ttl: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
            patterns: vec!["-lock-".to_owned()],
        }
    }

    /// Settings for a candidate on an existing client, which stays open when the candidate is
    /// closed.
    pub fn on_client(client: Client, base: impl Into<String>) -> ZookeeperElectorBuilder {
        ZookeeperElectorBuilder { connection: Connection::Client(client), ..Self::builder("", base) }
    }

    /// Reads the leader's identity from ZooKeeper. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`ElectionError::NoLeader`] if the election has no candidate, [`ElectionError::Store`] if
    /// ZooKeeper refuses or does not answer, [`ElectionError::Closed`] after
    /// [`close`](Elector::close).
    pub async fn leader_ident(&self) -> Result<String, ElectionError> {
        let candidates = self.candidates.lock().clone().ok_or(ElectionError::Closed)?;
        let leader = candidates.bounded(candidates.leader()).await?;
        leader.ok_or_else(|| ElectionError::NoLeader { election: self.base.clone() })
    }
}

impl ZookeeperElectorBuilder {
    /// The name of this candidate, unlike those of all others. It must be set.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = identity.into();
        self
    }

    /// How long others wait for a silent leader: the session timeout, from 100 ms to 24 days. The
    /// servers may grant more or less (2 to 20 of their ticks). On an existing client its own
    /// session timeout counts. Default: 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The longest time of each request, longer than zero. A leader gives up earlier if the TTL
    /// requires it. Default: 5 s.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// The credential of the connection, and the ACL of the node. On an existing client only the
    /// ACL counts. Default: [open](ZookeeperAccess::open).
    pub fn access(mut self, access: ZookeeperAccess) -> Self {
        self.access = access;
        self
    }

    /// How long [`start`](Self::start) waits for a session, longer than zero. Default: 5 s.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// Adds a text that marks candidates' nodes: it stands in the name before the number.
    /// `__lock__` is kazoo's. Default: only `-lock-`.
    pub fn extra_lock_pattern(mut self, pattern: impl Into<String>) -> Self {
        self.patterns.push(pattern.into());
        self
    }

    /// Connects, and takes part in the election.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if a setting cannot be used, [`ElectionError::Store`] if no
    /// session begins within the connect timeout.
    pub async fn start(self) -> Result<ZookeeperElector, ElectionError> {
        ConfigError::not_blank("identity", &self.identity)?;
        let path = "a path such as \"/controllers/election\"";
        ConfigError::require(is_base(&self.base), "base", &self.base, path)?;
        ConfigError::within("ttl", self.ttl, SESSION_TIMEOUTS)?;
        ConfigError::positive("connect_timeout", self.connect_timeout)?;
        ConfigError::positive("request_timeout", self.request_timeout)?;
        for pattern in &self.patterns {
            ConfigError::not_empty("extra_lock_pattern", pattern)?;
        }
        let client = match self.connection {
            Connection::Client(client) => client,
            Connection::Servers(servers) => {
                let invalid = || ConfigError::new("servers", &servers, "host:port, separated by commas");
                if !are_servers(&servers) {
                    return Err(invalid().into());
                }
                let connect = self.access.connector(self.ttl).connect(&servers);
                match resume::bounded(self.connect_timeout, connect, store_error).await {
                    Err(StoreError::Invalid { .. }) => return Err(invalid().into()),
                    connected => connected?,
                }
            }
        };
        let publisher =
            LeadershipPublisher::new(format!("{} in zookeeper election {}", self.identity, self.base));
        let session_timeout = client.session_timeout();
        let candidates = Candidates {
            root: client.path().trim_end_matches('/').to_owned(),
            client,
            base: self.base.clone(),
            patterns: self.patterns.into(),
            limit: self.request_timeout,
        };
        let campaign = Campaign {
            candidates: candidates.clone(),
            publisher: publisher.clone(),
            identity: self.identity.clone(),
            access: self.access,
            session_timeout,
            candidacy: None,
        };
        let candidate = CandidateHandle::start(self.identity, publisher, campaign);
        Ok(ZookeeperElector { candidate, base: self.base, candidates: Mutex::new(Some(candidates)) })
    }
}

impl Elector for ZookeeperElector {
    fn identity(&self) -> &str {
        self.candidate.identity()
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.candidate.leadership()
    }

    fn state(&self) -> Leadership {
        self.candidate.state()
    }

    fn events(&self) -> Events {
        self.candidate.events()
    }

    async fn resign(&self) -> Result<(), ElectionError> {
        self.candidate.resign().await
    }

    /// Also closes the connection, unless it is one of an existing client.
    async fn close(&self) {
        self.candidate.close().await;
        drop(self.candidates.lock().take());
    }
}

impl fmt::Debug for ZookeeperElector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperElector")
            .field("base", &self.base)
            .field("identity", &self.identity())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ZookeeperElectorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperElectorBuilder")
            .field("base", &self.base)
            .field("identity", &self.identity)
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

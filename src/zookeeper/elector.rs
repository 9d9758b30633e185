//! Elections on ZooKeeper: the candidate whose node has the lowest number leads.

use std::{fmt, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use zookeeper_client::Client;

use super::{
    access::{SESSION_TIMEOUTS, ZookeeperAccess, fits, is_base},
    breaks::Breaks,
    campaign::{Campaign, OwnSessions, Seat},
    candidates::Election,
};
use crate::{
    election::{
        ElectionError, Elector, Events, Leadership,
        candidate::{CandidateHandle, Resign},
        publisher::LeadershipPublisher,
    },
    engine::config::ConfigError,
    store::{StoreError, reconnect::Pauses, unavailable},
};

/// A candidate in an election on ZooKeeper.
///
/// Candidates create ephemeral, sequential nodes under a base path, `_c_<guid>-lock-<number>`, that
/// hold their identity. The lowest number leads. Each candidate watches only its predecessor, so
/// that one exit wakes one candidate. Once per session timeout, each also checks who leads. This is
/// the recipe of ZooKeeper's documentation; Curator, dcos-go and kazoo (with `extra_lock_patterns`)
/// can take part, Curator's `LeaderLatch` with another
/// [`lock_pattern`](ZookeeperElectorBuilder::lock_pattern). The random `guid` guards against a lost
/// answer: the candidate finds its node by it.
///
/// The elector fails for good when its session has expired, or the user's client is refused; start
/// a new one then. It survives any shorter loss of its connection. If its connection breaks again and
/// again, each time soon after it was made, the candidate ends its own session, pauses for 1 s to
/// 6 s, and goes on behind the others.
///
/// # Permissions
///
/// A candidate needs CREATE and READ on the base path. It creates the base, unless it exists, and
/// needs CREATE on the parent for that. A leader whose node it may not read has no name for it.
/// [`close`](Elector::close) ends the candidate's own session, and the node with it, so it needs no
/// more. [`resign`](Elector::resign) deletes the node; without DELETE on the base it ends the
/// session as well and goes on in a new one.
///
/// A session of the user's own client goes on after `close`, so there a candidate needs DELETE as
/// well. Without it `resign` fails with [`StoreError::Denied`] and the candidate leads on, and the
/// node of a closed candidate remains, and leads, until you drop the client.
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
/// A leader that loses its connection leads no more until it is connected and confirmed again, by
/// the same token if nobody took over. The servers may grant the session less time than before when
/// the client connects again, for example after a restart with a lower `maxSessionTimeout`. The
/// client does not report that time, so the candidate asks for it by another session, which ends
/// immediately. All servers must grant the same.
///
/// A candidate on the user's own client cannot ask. There a leader trusts an answer for two thirds of
/// [`ttl`](ZookeeperElectorBuilder::ttl) at most.
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
    seat: Seat,
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
    lock_pattern: String,
    extra_lock_patterns: Vec<String>,
}

#[derive(Clone)]
enum Connection {
    Servers(String),
    /// The user's own client, which outlives the candidate.
    Client(Client),
}

impl ZookeeperElector {
    /// Settings for a candidate with a connection of its own. `servers` are `host:port`, separated
    /// by commas; behind the last one may stand a root path, which must exist. The candidates are
    /// nodes under the path `base`, which is created if it is missing.
    pub fn builder(servers: impl Into<String>, base: impl Into<String>) -> ZookeeperElectorBuilder {
        ZookeeperElectorBuilder {
            connection: Connection::Servers(servers.into()),
            base: base.into(),
            identity: String::new(),
            access: ZookeeperAccess::open(),
            connect_timeout: Duration::from_secs(5),
            ttl: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
            lock_pattern: "-lock-".to_owned(),
            extra_lock_patterns: Vec::new(),
        }
    }

    /// Settings for a candidate on an existing client, which stays open when the candidate is
    /// closed. The user of the client needs DELETE on the base; see
    /// [Permissions](Self#permissions).
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
        let seat = self.seat.lock().clone();
        let candidates = seat.ok_or_else(|| match *self.leadership().borrow() {
            Leadership::Failed(_) => ElectionError::Closed,
            _ => unavailable("a new session has not begun yet").into(),
        })?;
        let leader = candidates.bounded(candidates.leader()).await?;
        leader.ok_or_else(|| ElectionError::NoLeader { election: self.base.clone() })
    }
}

impl ZookeeperElectorBuilder {
    /// The name of this candidate, unlike those of all others, of at most about 1 MB. It must be
    /// set.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = identity.into();
        self
    }

    /// How long others wait for a silent leader: the session timeout, from 100 ms to 24 days. The
    /// servers may grant more or less (2 to 20 of their ticks). On an existing client the shorter one
    /// of this and its own session timeout counts: set it to the least that the servers grant the
    /// client. Default: 10 s.
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

    /// Sets the text before the number in the name of this candidate's node. Candidates of one
    /// election must agree on it. `-latch-` is that of Curator's `LeaderLatch`. Default: `-lock-`,
    /// as in dcos-go, and in Curator's `InterProcessMutex` and `LeaderSelector`.
    pub fn lock_pattern(mut self, pattern: impl Into<String>) -> Self {
        self.lock_pattern = pattern.into();
        self
    }

    /// Adds a text that marks candidates' nodes: it stands in the name before the number.
    /// `__lock__` is kazoo's. Default: only the [`lock_pattern`](Self::lock_pattern).
    pub fn extra_lock_pattern(mut self, pattern: impl Into<String>) -> Self {
        self.extra_lock_patterns.push(pattern.into());
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
        let fits = |field, size: usize| {
            let rule = "small enough for a request, of about 1 MB (jute.maxbuffer)";
            ConfigError::require(fits(size).is_ok(), field, format_args!("{size} bytes"), rule)
        };
        fits("access", self.access.size())?;
        let root = match &self.connection {
            Connection::Servers(servers) => servers.len(),
            Connection::Client(client) => client.path().len(),
        };
        let path = root + self.base.len() + self.lock_pattern.len();
        fits("identity", self.identity.len() + path + self.access.size())?;
        ConfigError::within("ttl", self.ttl, SESSION_TIMEOUTS)?;
        ConfigError::positive("connect_timeout", self.connect_timeout)?;
        ConfigError::positive("request_timeout", self.request_timeout)?;
        let is_name = !self.lock_pattern.contains('/') && is_base(&format!("/{}", self.lock_pattern));
        ConfigError::require(is_name, "lock_pattern", &self.lock_pattern, "a part of a node's name")?;
        for pattern in &self.extra_lock_patterns {
            ConfigError::not_empty("extra_lock_pattern", pattern)?;
        }
        let (client, own) = match self.connection.clone() {
            Connection::Client(client) => (client, None),
            Connection::Servers(servers) => {
                if let Some(rule) = self.access.broken_rule(&servers) {
                    return Err(ConfigError::new("servers", &servers, rule).into());
                }
                match self.connect(&servers).await {
                    Err(StoreError::Invalid { .. }) => {
                        let rule = "host:port, separated by commas";
                        return Err(ConfigError::new("servers", &servers, rule).into());
                    }
                    connected => (connected?, Some(OwnSessions { servers, ttl: self.ttl })),
                }
            }
        };
        let publisher =
            LeadershipPublisher::new(format!("{} in zookeeper election {}", self.identity, self.base));
        let states = client.state_watcher();
        let session_timeout = match own {
            Some(_) => client.session_timeout(),
            None => client.session_timeout().min(self.ttl),
        };
        let patterns = [vec![self.lock_pattern.clone()], self.extra_lock_patterns].concat().into();
        let election = Election { base: self.base.clone(), patterns, limit: self.request_timeout };
        let seat = Seat::new(Mutex::new(Some(election.on(client))));
        let campaign = Campaign {
            seat: seat.clone(),
            own,
            states,
            publisher: publisher.clone(),
            identity: self.identity.clone(),
            access: self.access,
            lock_pattern: self.lock_pattern,
            election,
            session_timeout,
            is_timeout_known: true,
            candidacy: None,
            breaks: Breaks::new(),
        };
        let candidate = CandidateHandle::start(self.identity, publisher, campaign);
        Ok(ZookeeperElector { candidate, base: self.base, seat })
    }

    /// Begins a session. A server that is slow or starts just now gets all of the time.
    async fn connect(&self, servers: &str) -> Result<Client, StoreError> {
        let mut pauses = Pauses::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut last = unavailable(format!("no answer within {:?}", self.connect_timeout));
        let connect = async {
            loop {
                match self.access.connect(servers, self.ttl).await {
                    Err(error @ StoreError::Unavailable { .. }) => last = error,
                    connected => return connected,
                }
                sleep(pauses.next()).await;
            }
        };
        timeout(self.connect_timeout, connect).await.unwrap_or(Err(last))
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
        drop(self.seat.lock().take());
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

/// The first pause between two tries to begin the first session.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between them.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

//! Elections on ZooKeeper: the candidate whose node has the lowest number leads.

use std::{fmt, future::Future, pin::pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::RngExt;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};
use zookeeper_client::{Client, CreateMode, Error, EventType, OneshotWatcher, SessionState};

use super::access::{ENGINE, SESSION_TIMEOUTS, ZookeeperAccess, are_servers, is_base, store_error};
use crate::{
    clock::Moment,
    election::{
        ElectionError, Elector, Events, Leadership,
        candidate::{Desk, Order, Orders},
        publisher::{Office, check_time, check_timeout, deadline},
    },
    engine::config::ConfigError,
    reconnect::Reconnect,
    store::{Fence, StoreError, resume},
};

/// A candidate in an election on ZooKeeper.
///
/// Candidates create ephemeral, sequential nodes under a base path, `_c_<guid>-lock-<number>`, with their identity; the lowest
/// number leads. Each watches only the one before it, so that the end of one wakes one; whether the leader is still the same
/// the others look once per session timeout. This is the recipe of ZooKeeper's
/// documentation; Curator, dcos-go and kazoo (with `extra_lock_patterns`) take part. The random `guid` protects from a lost
/// answer: a candidate that doesn't know whether its node was created finds it again by that.
///
/// What dcos/dcos-go's `elector` offers, and what it is here:
///
/// | dcos-go | here | shown by |
/// |---|---|---|
/// | [`Start`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#Start) | [`identity`](ZookeeperElectorBuilder::identity), [`access`](ZookeeperElectorBuilder::access), [`start`](ZookeeperElectorBuilder::start) | `settings_that_cannot_be_used_are_told_with_their_rule` |
/// | [`Start`, its ACL`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#Start) | [`access`](ZookeeperElectorBuilder::access), open unless set | `the_base_path_and_the_node_are_only_for_the_user_who_created_them` |
/// | [`NewConnection`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#NewConnection) | [`ZookeeperElector::builder`] | `an_existing_client_stays_usable_and_one_of_our_own_is_closed` |
/// | [`ConnectionOpts`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#ConnectionOpts) | [`connect_timeout`](ZookeeperElectorBuilder::connect_timeout), which bounds both of theirs | `without_a_server_or_an_answer_start_fails_within_the_connect_timeout` |
/// | [`ConnectionOpts.Auth`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#ConnectionOpts) | [`ZookeeperAccess::auth`], [`digest`](ZookeeperAccess::digest) | `a_credential_that_the_servers_refuse_is_told` |
/// | [`ExistingConnection`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#ExistingConnection) | [`ZookeeperElector::on_client`] | `an_existing_client_stays_usable_and_one_of_our_own_is_closed` |
/// | [`LeaderIdent`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#Elector.LeaderIdent) | [`leader_ident`](Self::leader_ident); [`Leadership::Follower`], as of the last look | `all_know_who_leads_and_none_after_close` |
/// | [`Events`, `Event.Leader`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#Event) | [`Elector::events`]: the first is sent as soon as it is known | `a_late_reader_is_told_the_state_of_now_first` |
/// | [`Event.Err`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#Event) | [`Event::Failed`](crate::election::Event::Failed), the last one | `when_its_session_has_expired_an_elector_has_failed_for_good` |
/// | [`Close`](https://pkg.go.dev/github.com/dcos/dcos-go/elector#Elector.Close) | [`Elector::close`] | `close_removes_the_node_at_once` |
///
/// When the session has expired, or the credential is refused, the elector has failed for good; start a new one. A connection
/// that is lost for less than that is none of its business.
///
/// # How long a leader may believe in itself
///
/// A leader asks six times per session timeout, through ZooKeeper's own leader (`sync`), whether its node exists, and believes
/// in the answer for two thirds of the session timeout. Not for all of it: a server passes on that it heard from a session
/// only at the next ping of ZooKeeper's leader, half a tick later, and is not missed if it dies before; a tick is at most
/// half of a session timeout, unless `minSessionTimeout` was set lower.
///
/// ```no_run
/// # async fn example() -> Result<(), writerlease::election::ElectionError> {
/// use std::time::Duration;
/// use writerlease::{election::Elector, zookeeper::{ZookeeperAccess, ZookeeperElector}};
///
/// let elector = ZookeeperElector::builder("zk-0:2181,zk-1:2181", "/controllers/routes/election")
///     .identity("pod-1")
///     .access(ZookeeperAccess::digest("controller", "secret"))
///     .session_timeout(Duration::from_secs(6))
///     .start()
///     .await?;
/// println!("{:?} leads", elector.leader_ident().await);
/// elector.close().await;
/// # Ok(())
/// # }
/// ```
pub struct ZookeeperElector {
    desk: Desk<Command>,
    base: String,
    /// None once it is closed, so that its connection is closed, too.
    election: Mutex<Option<Election>>,
}

/// Settings of a [`ZookeeperElector`].
#[derive(Clone)]
#[must_use]
pub struct ZookeeperElectorBuilder {
    connection: Connection,
    base: String,
    identity: String,
    access: ZookeeperAccess,
    connect_timeout: Duration,
    session_timeout: Duration,
    request_timeout: Duration,
    patterns: Vec<String>,
}

#[derive(Clone)]
enum Connection {
    Servers(String),
    /// Somebody else's; it stays open after us.
    Client(Client),
}

enum Command {
    Resign(oneshot::Sender<Result<(), ElectionError>>),
}

impl ZookeeperElector {
    /// Settings for a candidate with a connection of its own. `servers` are `host:port`, separated by commas; the candidates
    /// are nodes under the path `base`, which is created if it is missing.
    pub fn builder(servers: impl Into<String>, base: impl Into<String>) -> ZookeeperElectorBuilder {
        ZookeeperElectorBuilder {
            connection: Connection::Servers(servers.into()),
            base: base.into(),
            identity: String::new(),
            access: ZookeeperAccess::open(),
            connect_timeout: Duration::from_secs(5),
            session_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(5),
            patterns: vec!["-lock-".to_owned()],
        }
    }

    /// The same with a client that exists, and goes on to when this candidate is closed.
    pub fn on_client(client: Client, base: impl Into<String>) -> ZookeeperElectorBuilder {
        ZookeeperElectorBuilder { connection: Connection::Client(client), ..Self::builder("", base) }
    }

    /// Asks ZooKeeper who leads. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`ElectionError::NoLeader`] if nobody does, [`ElectionError::Store`] if ZooKeeper does not tell,
    /// [`ElectionError::Closed`] after [`close`](Elector::close).
    pub async fn leader_ident(&self) -> Result<String, ElectionError> {
        let election = self.election.lock().clone().ok_or(ElectionError::Closed)?;
        let leader = election.bounded(async {
            election.client.sync(&election.base).await.map_err(store_error)?;
            loop {
                let candidates = election.candidates().await?;
                let Some(first) = candidates.first() else { return Ok(None) };
                if let Some(identity) = election.identity_of(first).await? {
                    return Ok(Some(identity));
                }
            }
        });
        leader.await?.ok_or_else(|| ElectionError::NoLeader { election: election.base.clone() })
    }
}

impl ZookeeperElectorBuilder {
    /// Who this candidate is; it must be set.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = identity.into();
        self
    }

    /// Who we are to ZooKeeper, and who may read and delete our node. [Open](ZookeeperAccess::open) unless set. On a client
    /// that exists only the ACL counts.
    pub fn access(mut self, access: ZookeeperAccess) -> Self {
        self.access = access;
        self
    }

    /// How long [`start`](Self::start) waits for a session; 5 s unless set.
    pub fn connect_timeout(mut self, connect_timeout: Duration) -> Self {
        self.connect_timeout = connect_timeout;
        self
    }

    /// How long others wait for a leader that is silent; 10 s unless set. The servers may insist on more or less (2 to 20 of
    /// their ticks).
    pub fn session_timeout(mut self, session_timeout: Duration) -> Self {
        self.session_timeout = session_timeout;
        self
    }

    /// How long each request may take; 5 s unless set. A leader gives up earlier, if the session timeout demands it.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Nodes are candidates whose names have this before the number, too, besides `-lock-`: `__lock__` is kazoo's.
    pub fn extra_lock_pattern(mut self, pattern: impl Into<String>) -> Self {
        self.patterns.push(pattern.into());
        self
    }

    /// Connects, and takes part in the election.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if a setting cannot be used, [`ElectionError::Store`] if there is no session in time.
    pub async fn start(self) -> Result<ZookeeperElector, ElectionError> {
        if self.identity.trim().is_empty() {
            return Err(ConfigError::new("identity", &self.identity, "not blank").into());
        }
        if !is_base(&self.base) {
            let rule = "a path such as \"/controllers/election\"";
            return Err(ConfigError::new("base", &self.base, rule).into());
        }
        check_time("session_timeout", self.session_timeout, SESSION_TIMEOUTS)?;
        check_timeout("connect_timeout", self.connect_timeout)?;
        check_timeout("request_timeout", self.request_timeout)?;
        if self.patterns.iter().any(String::is_empty) {
            return Err(ConfigError::new("extra_lock_pattern", "", "not empty").into());
        }
        let client = match self.connection {
            Connection::Client(client) => client,
            Connection::Servers(servers) => {
                let invalid = || ConfigError::new("servers", &servers, "host:port, separated by commas");
                if !are_servers(&servers) {
                    return Err(invalid().into());
                }
                let connect = self.access.connector(self.session_timeout).connect(&servers);
                match resume::bounded(self.connect_timeout, connect, store_error).await {
                    Err(StoreError::Invalid { .. }) => return Err(invalid().into()),
                    connected => connected?,
                }
            }
        };
        let office = Office::new(format!("{} in zookeeper election {}", self.identity, self.base));
        let session_timeout = client.session_timeout();
        let election = Election {
            root: client.path().trim_end_matches('/').to_owned(),
            client,
            base: self.base,
            patterns: self.patterns.into(),
            limit: self.request_timeout,
        };
        let campaign = Campaign {
            election: election.clone(),
            office: office.clone(),
            identity: self.identity.clone(),
            access: self.access,
            session_timeout,
            candidacy: None,
        };
        let (desk, orders) = Desk::new(self.identity.into(), office);
        tokio::spawn(campaign.run(orders));
        Ok(ZookeeperElector { desk, base: election.base.clone(), election: Mutex::new(Some(election)) })
    }
}

impl Elector for ZookeeperElector {
    fn identity(&self) -> &str {
        &self.desk.identity
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.desk.office.leadership()
    }

    fn events(&self) -> Events {
        self.desk.office.events()
    }

    async fn resign(&self) -> Result<(), ElectionError> {
        self.desk.ask(Command::Resign).await
    }

    async fn close(&self) {
        self.desk.close().await;
        drop(self.election.lock().take());
    }
}

impl fmt::Debug for ZookeeperElector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZookeeperElector")
            .field("base", &self.base)
            .field("identity", &self.desk.identity)
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

/// The nodes of the candidates.
#[derive(Clone)]
struct Election {
    client: Client,
    /// What the client sees as the root; empty unless it is confined to a part of the tree.
    root: String,
    base: String,
    /// What comes before the number in a candidate's name.
    patterns: Arc<[String]>,
    /// Of each request.
    limit: Duration,
}

impl Election {
    /// The candidates' names, the leader first.
    async fn candidates(&self) -> Result<Vec<String>, StoreError> {
        let names = match self.client.list_children(&self.base).await {
            Ok(names) => names,
            // It is created with the first candidate.
            Err(Error::NoNode) => Vec::new(),
            Err(error) => return Err(store_error(error)),
        };
        let numbered = names.into_iter().filter_map(|name| Some((number(&self.patterns, &name)?, name)));
        let mut candidates: Vec<_> = numbered.collect();
        candidates.sort_unstable();
        Ok(candidates.into_iter().map(|(_, name)| name).collect())
    }

    /// Who a candidate is; `None` if it is gone.
    async fn identity_of(&self, name: &str) -> Result<Option<String>, StoreError> {
        match self.client.get_data(&self.path(name)).await {
            Ok((identity, _)) => Ok(Some(String::from_utf8_lossy(&identity).into_owned())),
            Err(Error::NoNode) => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Whether two candidates are still there.
    async fn have_both(&self, one: &str, other: &str) -> Result<bool, StoreError> {
        let (one, other) = (self.path(one), self.path(other));
        let (one, other) = (self.client.check_stat(&one), self.client.check_stat(&other));
        Ok(one.await.map_err(store_error)?.is_some() && other.await.map_err(store_error)?.is_some())
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    async fn bounded<T>(
        &self,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        resume::bounded(self.limit, request, |error| error).await
    }
}

/// The task.
struct Campaign {
    election: Election,
    office: Office,
    identity: String,
    access: ZookeeperAccess,
    /// As the servers granted it.
    session_timeout: Duration,
    candidacy: Option<Candidacy>,
}

/// What is known of our node.
#[derive(Clone)]
struct Candidacy {
    /// What its name begins with.
    prefix: String,
    /// None until we know that it was created.
    node: Option<Node>,
}

#[derive(Clone)]
struct Node {
    name: String,
    czxid: i64,
}

/// Why we take part no more.
enum Lost {
    /// Our node was deleted.
    Node,
    Session(ElectionError),
}

impl Campaign {
    async fn run(mut self, mut orders: Orders<Command>) {
        let failure = loop {
            let order = tokio::select! {
                biased;
                order = orders.next() => Ok(order),
                lost = self.serve() => Err(lost),
            };
            // Before anything is told to ZooKeeper.
            self.office.set(Leadership::Unknown);
            match order {
                Ok(Order::Command(Command::Resign(answer))) => {
                    // Nobody has to wait for it.
                    let _ = answer.send(self.withdraw().await.map_err(Into::into));
                }
                Ok(Order::Stop) => break ElectionError::Closed,
                Err(Lost::Node) => self.candidacy = None,
                Err(Lost::Session(error)) => break error,
            }
        };
        if let Err(error) = self.withdraw().await {
            tracing::warn!(base = %self.election.base, %error, "the candidate's node is left behind for now");
        }
        self.office.set(Leadership::Failed(Arc::new(failure)));
    }

    /// Deletes our node. If that cannot be done now, it goes on in the background until the session ends.
    async fn withdraw(&mut self) -> Result<(), StoreError> {
        let Some(candidacy) = self.candidacy.take() else { return Ok(()) };
        let election = self.election.clone();
        let deleted = election.bounded(delete(&election, &candidacy)).await;
        if deleted.is_err() && !election.client.state().is_terminated() {
            let office = self.office.clone();
            tokio::spawn(async move {
                let mut reconnect = Reconnect::new(format!("zookeeper election {}", election.base));
                let gone = office.insist(&mut reconnect, || election.bounded(delete(&election, &candidacy)));
                tokio::select! {
                    () = gone => {}
                    _ = terminated(&election.client) => {}
                }
            });
        }
        deleted
    }

    /// Takes part until the node or the session is lost.
    async fn serve(&mut self) -> Lost {
        let client = self.election.client.clone();
        tokio::select! {
            biased;
            state = terminated(&client) => Lost::Session(match state {
                SessionState::AuthFailed => store_error(Error::AuthFailed).into(),
                _ => ElectionError::SessionExpired,
            }),
            lost = self.queue() => lost,
        }
    }

    async fn queue(&mut self) -> Lost {
        let office = self.office.clone();
        let mut reconnect = Reconnect::new(format!("zookeeper election {}", self.election.base));
        let node = self.join(&mut reconnect).await;
        loop {
            let election = &self.election;
            let look = || election.bounded(async { self.look(&node).await });
            match office.insist(&mut reconnect, look).await {
                Turn::Gone => return Lost::Node,
                Turn::Again => {}
                Turn::Ours => return self.lead(&node, &mut reconnect).await,
                Turn::After { leader, identity, watcher } => {
                    let identity = Some(identity).filter(|identity| !identity.is_empty()).map(Arc::from);
                    office.set(Leadership::Follower { leader: identity });
                    let mut changed = pin!(watcher.changed());
                    // Nobody wakes us for the sake of any other than the candidate before us; so we look now and then.
                    while timeout(self.session_timeout, &mut changed).await.is_err() {
                        let same = || election.bounded(election.have_both(&leader, &node.name));
                        if !office.insist(&mut reconnect, same).await {
                            break;
                        }
                    }
                }
            }
        }
    }

    /// Creates our node, or finds it.
    async fn join(&mut self, reconnect: &mut Reconnect) -> Node {
        let candidacy = self
            .candidacy
            .get_or_insert_with(|| Candidacy { prefix: format!("_c_{}-lock-", guid()), node: None });
        if let Some(node) = &candidacy.node {
            return node.clone();
        }
        let (election, access, identity) = (&self.election, &self.access, self.identity.as_bytes());
        let prefix = &candidacy.prefix.clone();
        let mut sent = false;
        let join = || {
            let found = std::mem::replace(&mut sent, true);
            election.bounded(async move {
                // The answer to the request before may have been lost.
                let known = if found { find(election, prefix).await? } else { None };
                if let Some(node) = known {
                    return Ok(node);
                }
                let path = election.path(prefix);
                let options = access.options(CreateMode::EphemeralSequential);
                loop {
                    match election.client.create(&path, identity, &options).await {
                        Ok((stat, number)) => {
                            return Ok(Node { name: format!("{prefix}{number}"), czxid: stat.czxid });
                        }
                        Err(Error::NoNode) => {
                            let options = access.options(CreateMode::Persistent);
                            election.client.mkdir(&election.base, &options).await.map_err(store_error)?;
                        }
                        Err(error) => return Err(store_error(error)),
                    }
                }
            })
        };
        let node = self.office.insist(reconnect, join).await;
        candidacy.node = Some(node.clone());
        node
    }

    /// Looks whose turn it is.
    async fn look(&self, node: &Node) -> Result<Turn, StoreError> {
        let election = &self.election;
        let candidates = election.candidates().await?;
        let Some(place) = candidates.iter().position(|name| *name == node.name) else {
            return Ok(Turn::Gone);
        };
        let Some(before) = place.checked_sub(1) else { return Ok(Turn::Ours) };
        let leader = candidates[0].clone();
        let Some(identity) = election.identity_of(&leader).await? else { return Ok(Turn::Again) };
        let watched = election.client.check_and_watch_stat(&election.path(&candidates[before])).await;
        match watched.map_err(store_error)? {
            (Some(_), watcher) => Ok(Turn::After { leader, identity, watcher }),
            (None, _) => Ok(Turn::Again),
        }
    }

    /// Leads until the node is gone.
    async fn lead(&self, node: &Node, reconnect: &mut Reconnect) -> Lost {
        let (election, path) = (&self.election, self.election.path(&node.name));
        let limit = election.limit.min(self.session_timeout / RENEWALS);
        let fence =
            Fence::new(ENGINE, format!("{}{}", election.root, election.base), node.czxid.unsigned_abs())
                .with_proof(format!("{}{path}", election.root));
        loop {
            let watch = || {
                election
                    .bounded(async { election.client.check_and_watch_stat(&path).await.map_err(store_error) })
            };
            let (Some(_), watcher) = self.office.insist(reconnect, watch).await else { return Lost::Node };
            let mut changed = pin!(watcher.changed());
            loop {
                // The time counts from before the requests, which a session's server answers in their order.
                let sent = Moment::now();
                let (sync, stat) = (election.client.sync(&path), election.client.check_stat(&path));
                let renewed = resume::bounded(limit, async { sync.await.and(stat.await) }, store_error).await;
                let pause = match renewed {
                    Ok(None) => return Lost::Node,
                    Ok(Some(_)) => {
                        reconnect.connected();
                        self.office.lead(fence.clone(), self.believe(sent));
                        self.session_timeout / RENEWALS
                    }
                    Err(error) => {
                        let pause = reconnect.next_delay(&error);
                        self.office.interrupted(error);
                        pause.min(self.session_timeout / (2 * RENEWALS))
                    }
                };
                match timeout(pause, &mut changed).await {
                    Ok(event) if event.event_type == EventType::NodeDeleted => return Lost::Node,
                    // Somebody wrote something there, which is nothing to us.
                    Ok(_) => break,
                    Err(_) => {}
                }
            }
        }
    }

    /// Until when we may believe in what was asked at `sent`.
    fn believe(&self, sent: Moment) -> Moment {
        deadline(sent, self.session_timeout * 2 / 3)
    }
}

enum Turn {
    /// Our node doesn't exist.
    Gone,
    /// Something changed while we looked.
    Again,
    /// We lead.
    Ours,
    /// Somebody else leads.
    After {
        /// The leader's node.
        leader: String,
        identity: String,
        /// Of the candidate before us.
        watcher: OneshotWatcher,
    },
}

/// The number of a candidate, whose name has it after one of the patterns; `None` for the name of any other node.
pub(crate) fn number(patterns: &[String], name: &str) -> Option<i32> {
    let after = |pattern: &String| name.rsplit_once(pattern.as_str()).map(|(_, number)| number);
    // Beyond the largest number ZooKeeper goes on with the least, which has a sign.
    let mut numbers = patterns.iter().filter_map(after).filter(|number| !number.starts_with('+'));
    numbers.find_map(|number| number.parse().ok())
}

/// Our node, if it exists.
async fn find(election: &Election, prefix: &str) -> Result<Option<Node>, StoreError> {
    // The server that we are connected to now may not have heard of it yet.
    election.client.sync(&election.base).await.map_err(store_error)?;
    let session = election.client.session_id().0;
    for name in election.candidates().await?.into_iter().filter(|name| name.starts_with(prefix)) {
        let stat = election.client.check_stat(&election.path(&name)).await.map_err(store_error)?;
        // Everybody can read the prefix, and name a node like that.
        if let Some(stat) = stat.filter(|stat| stat.ephemeral_owner == session) {
            return Ok(Some(Node { name, czxid: stat.czxid }));
        }
    }
    Ok(None)
}

/// Deletes a candidate's node, also if we don't know its name.
async fn delete(election: &Election, candidacy: &Candidacy) -> Result<(), StoreError> {
    let node = match &candidacy.node {
        Some(node) => Some(node.clone()),
        None => find(election, &candidacy.prefix).await?,
    };
    let Some(node) = node else { return Ok(()) };
    match election.client.delete(&election.path(&node.name), None).await {
        Ok(()) | Err(Error::NoNode) => Ok(()),
        Err(error) => Err(store_error(error)),
    }
}

/// Returns when the session has ended.
async fn terminated(client: &Client) -> SessionState {
    let mut states = client.state_watcher();
    let mut state = states.state();
    while !state.is_terminated() {
        state = states.changed().await;
    }
    state
}

/// Another one for each candidacy.
#[expect(
    clippy::disallowed_methods,
    reason = "it must differ between processes, which a seed would not make it"
)]
fn guid() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

/// How often a leader asks per session timeout.
const RENEWALS: u32 = 6;

//! Elections on Redis: the candidate that sets the key leads.

use std::{fmt, future::Future, time::Duration};

use redis::{IntoConnectionInfo, RedisResult};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    access::Access,
    campaign::Campaign,
    cluster::hash_tag,
    codec::{invalid, nonce},
    compat::{self, Callbacks},
    credentials::Credentials,
};
use crate::{
    election::{
        ElectionError, Elector, Events, Leadership,
        candidate::{CandidateHandle, LONGEST_TTL, Resign},
        publisher::LeadershipPublisher,
    },
    engine::config::ConfigError,
    store::BoxError,
};

/// A candidate in an election on one Redis server, on the master that Sentinel names, or on the
/// node of a cluster that has the key; also on Valkey.
///
/// The candidate that sets the key leads until the key expires. The value is its identity with a
/// random part. Programs that use `SET NX PX` with a value of their own, such as redsync or
/// redis-py's `Lock`, can take part.
///
/// The token is a counter in Redis, `<key>:token`, or the server's time in microseconds if that is
/// greater, so that tokens grow even if the counter is lost. The counter outlives the last
/// candidate by a day; nothing else does. In a cluster the counter is in the hash slot of the key:
/// `{<key>}:token`, unless the key has a `{hash tag}` of its own. While that slot is in migration
/// and key and counter are apart, a leader leads on, and nobody else is elected.
///
/// The user needs `EVALSHA`, `SCRIPT|LOAD`, `TIME`, `GET`, `SET`, `DEL`, `PEXPIRE`, `PTTL`, and
/// both keys; in a cluster also `ASKING`, and `CLUSTER|SHARDS` or `CLUSTER|SLOTS`. With
/// `CLIENT|TRACKING` candidates learn of a change immediately. Where it is forbidden or unknown,
/// the log says so once, and they look at each renewal interval. The server must speak RESP3, as
/// Redis 6 does.
///
/// Users of ethpandaops' `leaderelection`: each of its calls is listed in
/// [docs/migrating.md](https://docs.rs/crate/writerlease/latest/source/docs/migrating.md).
///
/// # What Redis does not promise
///
/// Redis acknowledges before it replicates, so a failover may forget the key. A second leader is
/// then elected while the first still has time. Where the old master lives on, the first one renews
/// there until Sentinel demotes that master, some ten seconds later. A restart without persistence
/// does the same: the first candidate to ask gets the key, and an old leader that asks first leads
/// again, with a new token. A key that is evicted, by `maxmemory` with an eviction policy, or that
/// expires early because the server's clock was set forward, has the same effect. Redlock, over
/// several servers, would make this rarer at the price of slower renewals, and could not exclude
/// it; so it is left out. A [fence](Elector::fence) makes it harmless for data in the same Redis,
/// which refuses the writes of the forgotten leader. Data elsewhere that must not see two leaders
/// needs a server with a quorum.
///
/// ```no_run
/// # async fn example() -> Result<(), writerlease::election::ElectionError> {
/// use std::time::Duration;
/// use writerlease::{election::Elector, redis::RedisElector};
///
/// let elector = RedisElector::builder("redis://redis-0:6379/0", "controllers/routes")
///     .identity("pod-1")
///     .ttl(Duration::from_secs(10))
///     .on_leadership_change(|leads| println!("leader: {leads}"))
///     .start()
///     .await?;
/// elector.close().await;
/// # Ok(())
/// # }
/// ```
pub struct RedisElector {
    candidate: CandidateHandle<Resign>,
    key: String,
    /// Cancelled when the last callback has returned.
    called_back: CancellationToken,
}

/// The settings of a [`RedisElector`].
#[must_use]
pub struct RedisElectorBuilder {
    access: RedisResult<Access>,
    key: String,
    identity: String,
    ttl: Duration,
    renewal_interval: Option<Duration>,
    request_timeout: Duration,
    callbacks: Callbacks,
}

impl RedisElector {
    /// Settings for a candidate: the server, one of the
    /// [addresses](crate::redis::RedisStore#addresses) of a store, and the key of the election.
    pub fn builder(server: impl IntoConnectionInfo, key: impl Into<String>) -> RedisElectorBuilder {
        RedisElectorBuilder::new(Access::server(server), key)
    }

    /// Settings for a candidate on the master that Sentinel names, as in
    /// [`RedisStore::sentinel`](crate::redis::RedisStore::sentinel), and the key of the election.
    pub fn sentinel<S: IntoConnectionInfo>(
        sentinels: impl IntoIterator<Item = S>,
        master: impl IntoConnectionInfo,
        key: impl Into<String>,
    ) -> RedisElectorBuilder {
        RedisElectorBuilder::new(Access::sentinel(sentinels, master), key)
    }

    /// Settings for a candidate on the cluster's node that has the key, given some of the nodes,
    /// and the key of the election.
    pub fn cluster<N: IntoConnectionInfo>(
        nodes: impl IntoIterator<Item = N>,
        key: impl Into<String>,
    ) -> RedisElectorBuilder {
        RedisElectorBuilder::new(Access::cluster(nodes), key)
    }
}

impl RedisElectorBuilder {
    fn new(access: RedisResult<Access>, key: impl Into<String>) -> Self {
        Self {
            access,
            key: key.into(),
            identity: String::new(),
            ttl: Duration::from_secs(10),
            renewal_interval: None,
            request_timeout: Duration::from_secs(5),
            callbacks: Callbacks::default(),
        }
    }

    /// Sets a function that is asked for the user and the password of each new connection, as in
    /// [`RedisStore::credentials`](crate::redis::RedisStore::credentials).
    pub fn credentials<F, E>(mut self, provider: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        if let Ok(access) = &mut self.access {
            access.ask(provider);
        }
        self
    }

    /// The name of this candidate, unlike those of all others. Default, also for an empty one:
    /// random.
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = identity.into();
        self
    }

    /// How long others wait for a silent leader, from 30 ms to a year. Default: 10 s.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The time between two renewals of the leader: from 10 ms to half of the TTL, so that one renewal
    /// may fail. Other candidates look for a free key as often, unless a notification wakes them
    /// earlier. Default: a third of the TTL.
    pub fn renewal_interval(mut self, renewal_interval: Duration) -> Self {
        self.renewal_interval = Some(renewal_interval);
        self
    }

    /// The longest time of each request, longer than zero. A renewal gives up earlier if the TTL
    /// requires it. Default: 5 s.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Adds a callback for each change of whether this candidate leads.
    ///
    /// Callbacks run one after the other, in the order in which they were added, on a thread that
    /// they may block. The election continues meanwhile: a slow callback delays neither a renewal
    /// nor the end of the leadership, and may itself be late: another candidate may lead before the
    /// callback with `false` has returned. One that takes more than 100 ms is logged.
    ///
    /// A callback may [close](Elector::close) its elector on its own thread, with the runtime's
    /// `block_on`: within a callback, `close` does not wait for callbacks. One that waits for
    /// another thread or task that closes the elector waits forever.
    pub fn on_leadership_change(mut self, callback: impl Fn(bool) + Send + Sync + 'static) -> Self {
        self.callbacks.add(callback);
        self
    }

    /// Takes part in the election. Does not wait for a connection: if there is none,
    /// [`Event::Interrupted`](crate::election::Event::Interrupted) says so.
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if a setting cannot be used, [`ElectionError::Store`] if the
    /// server's address is invalid.
    pub async fn start(self) -> Result<RedisElector, ElectionError> {
        ConfigError::not_empty("key", &self.key)?;
        ConfigError::within("ttl", self.ttl, SHORTEST_TTL..=LONGEST_TTL)?;
        ConfigError::positive("request_timeout", self.request_timeout)?;
        // Redis counts whole milliseconds.
        let ttl = Duration::from_millis(self.ttl.as_millis() as u64);
        let renewal_interval = self.renewal_interval.unwrap_or(ttl / 3);
        let longest = ttl / 2;
        let rule = format!("at least {SHORTEST_INTERVAL:?} and at most half of the ttl, {longest:?}");
        let fits = (SHORTEST_INTERVAL..=longest).contains(&renewal_interval);
        ConfigError::require(fits, "renewal_interval", renewal_interval, rule)?;
        let access = self.access.map_err(invalid)?;
        let counter = counter(&self.key, access.is_cluster())?;
        let identity = if self.identity.is_empty() { nonce() } else { self.identity };
        let publisher = LeadershipPublisher::new(format!("{identity} for redis key {}", self.key));
        let called_back = self.callbacks.start(publisher.events());
        let limit = self.request_timeout.min(ttl / 3);
        let (key, candidate) = (self.key.clone(), identity.clone());
        let campaign =
            Campaign::new(access, publisher.clone(), (key, counter), candidate, ttl, renewal_interval, limit);
        let candidate = CandidateHandle::start(identity, publisher, campaign);
        Ok(RedisElector { candidate, key: self.key, called_back })
    }
}

impl Elector for RedisElector {
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

    /// The candidate takes part again after a renewal interval, so that another wins meanwhile.
    async fn resign(&self) -> Result<(), ElectionError> {
        self.candidate.resign().await
    }

    /// Also waits until the last callback has returned, unless a callback calls it.
    async fn close(&self) {
        self.candidate.close().await;
        if !compat::is_callback() {
            self.called_back.cancelled().await;
        }
    }
}

impl fmt::Debug for RedisElector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisElector")
            .field("key", &self.key)
            .field("identity", &self.identity())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RedisElectorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisElectorBuilder").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Returns the key of the counter. In a cluster it has the hash slot of the key.
fn counter(key: &str, is_cluster: bool) -> Result<String, ConfigError> {
    if !is_cluster || hash_tag(key.as_bytes()).is_some() {
        return Ok(format!("{key}:token"));
    }
    let rule = "without a closing brace in a cluster, or with a {hash tag}";
    ConfigError::require(!key.contains('}'), "key", key, rule.to_owned())?;
    Ok(format!("{{{key}}}:token"))
}

/// The shortest pause between two renewals, or between two looks of another candidate.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// The shortest TTL. A third of it must be enough for a request.
const SHORTEST_TTL: Duration = Duration::from_millis(30);

//! Elections on Redis: who sets the key leads.

use std::{fmt, sync::Arc, time::Duration};

use futures_util::StreamExt;
use redis::{
    ErrorKind, IntoConnectionInfo, PushInfo, PushKind, RedisError, Script, ScriptInvocation, Value,
    aio::MultiplexedConnection, cmd,
};
use tokio::{
    sync::{
        mpsc::{self, UnboundedReceiver},
        oneshot, watch,
    },
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    codec::{ENGINE, bounded, nonce},
    connection::SharedConnection,
};
use crate::{
    clock::{self, Moment},
    election::{
        ElectionError, Elector, Event, Events, Leadership,
        candidate::{Desk, Order, Orders},
        publisher::{LONGEST, Office, check_time, check_timeout, deadline},
    },
    engine::config::ConfigError,
    reconnect::Reconnect,
    store::{Fence, StoreError, unavailable},
};

/// A candidate in an election on one Redis server, or on the primary of one with replicas; also on Valkey.
///
/// Who sets the key leads, until the key expires. The value is the node's id with a random part; whoever uses `SET NX PX` with
/// a value of its own, such as redsync or redis-py's `Lock`, takes part.
///
/// What ethpandaops' `leaderelection` offers, and what it is here:
///
/// | leaderelection | here | shown by |
/// |---|---|---|
/// | [`NewRedisElector`](https://pkg.go.dev/github.com/ethpandaops/execution-processor/pkg/leaderelection#NewRedisElector) | [`RedisElector::builder`] | `settings_that_cannot_be_used_are_told_with_their_rule` |
/// | [`Config`](https://pkg.go.dev/github.com/ethpandaops/execution-processor/pkg/leaderelection#Config) | [`ttl`](RedisElectorBuilder::ttl), [`renewal_interval`](RedisElectorBuilder::renewal_interval), [`node_id`](RedisElectorBuilder::node_id) | `the_leader_renews_as_often_as_it_is_told` |
/// | [`DefaultConfig`](https://pkg.go.dev/github.com/ethpandaops/execution-processor/pkg/leaderelection#DefaultConfig) | what is used unless set | `settings_that_are_not_given_are_ten_seconds_a_third_of_them_and_a_random_id` |
/// | [`Start`](https://pkg.go.dev/github.com/ethpandaops/execution-processor/pkg/leaderelection#Elector) | [`start`](RedisElectorBuilder::start) | `start_waits_for_nobody_and_the_election_begins_when_there_is_a_server` |
/// | [`Stop`](https://pkg.go.dev/github.com/ethpandaops/execution-processor/pkg/leaderelection#Elector) | [`Elector::close`] | `a_slow_callback_does_not_let_the_leadership_lapse_and_close_waits_for_it` |
/// | [`IsLeader`](https://pkg.go.dev/github.com/ethpandaops/execution-processor/pkg/leaderelection#Elector) | [`Elector::is_leader`] | `one_of_many_is_elected_and_all_know_who` |
/// | [`OnLeadershipChange`](https://pkg.go.dev/github.com/ethpandaops/execution-processor/pkg/leaderelection#Elector) | [`on_leadership_change`](RedisElectorBuilder::on_leadership_change) | `callbacks_are_told_each_change_in_the_order_in_which_they_were_added` |
/// | [`LeadershipCallback`](https://pkg.go.dev/github.com/ethpandaops/execution-processor/pkg/leaderelection#LeadershipCallback) | a closure | `a_callback_that_panics_stops_no_others` |
///
/// The token is a counter in Redis, `<key>:token`, or the server's time in microseconds if that is more: tokens grow even if
/// the counter is lost. The counter is all that is left behind after the last candidate, for a day. The key and the counter
/// are used in one script, so a cluster is not for this; a key with a `{hash tag}` would do, but a cluster's failover loses
/// locks as any other does.
///
/// # What Redis does not promise
///
/// Redis acknowledges before it replicates, so a failover may forget the key: a second leader is elected while the first
/// still has time. So may a restart without persistence; then whoever asks first gets the key, and an old leader that
/// asks first is leader again, by a new token. Redlock, over several servers, would make this rarer and not impossible, and
/// every renewal dearer; that is why it is left out. A [fence](Elector::fence) makes it harmless for what is kept in the same
/// Redis: writes of the leader that was forgotten are refused. What lives elsewhere and must not see two leaders needs an
/// engine with a quorum.
///
/// ```no_run
/// # async fn example() -> Result<(), writerlease::election::ElectionError> {
/// use std::time::Duration;
/// use writerlease::{election::Elector, redis::RedisElector};
///
/// let elector = RedisElector::builder("redis://redis-0:6379/0", "controllers/routes")
///     .node_id("pod-1")
///     .ttl(Duration::from_secs(10))
///     .on_leadership_change(|leads| println!("do we lead? {leads}"))
///     .start()
///     .await?;
/// elector.close().await;
/// # Ok(())
/// # }
/// ```
pub struct RedisElector {
    desk: Desk<Command>,
    key: String,
    /// Cancelled when the last callback has returned.
    called_back: CancellationToken,
}

/// Settings of a [`RedisElector`].
#[must_use]
pub struct RedisElectorBuilder {
    link: Result<SharedConnection, RedisError>,
    key: String,
    ttl: Duration,
    renewal_interval: Option<Duration>,
    node_id: String,
    request_timeout: Duration,
    callbacks: Vec<Callback>,
}

type Callback = Arc<dyn Fn(bool) + Send + Sync>;

enum Command {
    Resign(oneshot::Sender<Result<(), ElectionError>>),
}

impl RedisElector {
    /// Settings for a candidate: where Redis is, as of [`RedisStore::new`](crate::redis::RedisStore::new) (a client's
    /// connection info will do), and the key.
    pub fn builder(server: impl IntoConnectionInfo, key: impl Into<String>) -> RedisElectorBuilder {
        RedisElectorBuilder {
            link: SharedConnection::server(server),
            key: key.into(),
            ttl: Duration::from_secs(10),
            renewal_interval: None,
            node_id: String::new(),
            request_timeout: Duration::from_secs(5),
            callbacks: Vec::new(),
        }
    }
}

impl RedisElectorBuilder {
    /// How long others wait for a leader that is silent; 10 s unless set.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// How often the leader renews; a third of the TTL unless set. It must be shorter than the TTL. Candidates look as
    /// often whether the key is free, if nothing tells them earlier.
    pub fn renewal_interval(mut self, renewal_interval: Duration) -> Self {
        self.renewal_interval = Some(renewal_interval);
        self
    }

    /// Who this candidate is; random if it is empty or not set.
    pub fn node_id(mut self, node_id: impl Into<String>) -> Self {
        self.node_id = node_id.into();
        self
    }

    /// How long each request may take; 5 s unless set. A renewal gives up earlier, if the TTL demands it.
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Calls back with whether we lead, when that changes. Callbacks run one after the other, in the order in which they were
    /// added, for each change in turn, on a thread where they may block. The election goes on meanwhile: a slow callback
    /// delays neither a renewal nor the end of our time, so it may come to be late; one that takes more than 100 ms is logged.
    pub fn on_leadership_change(mut self, callback: impl Fn(bool) + Send + Sync + 'static) -> Self {
        self.callbacks.push(Arc::new(callback));
        self
    }

    /// Takes part in the election. Does not wait for a connection: if there is none, that is told as
    /// [`Event::Interrupted`].
    ///
    /// # Errors
    ///
    /// [`ElectionError::Config`] if a setting cannot be used, [`ElectionError::Store`] if the server is no valid address.
    pub async fn start(self) -> Result<RedisElector, ElectionError> {
        if self.key.is_empty() {
            return Err(ConfigError::new("key", &self.key, "not empty").into());
        }
        check_time("ttl", self.ttl, SHORTEST..=LONGEST)?;
        check_timeout("request_timeout", self.request_timeout)?;
        let renewal_interval = self.renewal_interval.unwrap_or(self.ttl / 3);
        if renewal_interval.is_zero() || renewal_interval >= self.ttl {
            let rule = format!("longer than zero and shorter than the ttl, {:?}", self.ttl);
            return Err(ConfigError::new("renewal_interval", renewal_interval, rule).into());
        }
        let link = self
            .link
            .map_err(|error| StoreError::Invalid { reason: error.to_string(), source: Some(error.into()) })?;
        let node_id = if self.node_id.is_empty() { nonce() } else { self.node_id };
        let office = Office::new(format!("{node_id} for redis key {}", self.key));
        let called_back = CancellationToken::new();
        tokio::spawn(call_back(office.events(), self.callbacks, called_back.clone().drop_guard()));
        let campaign = Campaign {
            link,
            office: office.clone(),
            ttl: self.ttl,
            renewal_interval,
            limit: self.request_timeout.min(self.ttl / 3),
            held: None,
            next: value(&node_id),
            node_id: node_id.clone(),
            rest: None,
            connection: None,
            reconnect: Reconnect::new(format!("redis election {}", self.key)),
            key: self.key.clone(),
        };
        let (desk, orders) = Desk::new(node_id.into(), office);
        tokio::spawn(campaign.run(orders));
        Ok(RedisElector { desk, key: self.key, called_back })
    }
}

impl Elector for RedisElector {
    fn identity(&self) -> &str {
        &self.desk.identity
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.desk.office.leadership()
    }

    fn events(&self) -> Events {
        self.desk.office.events()
    }

    /// Takes part again after a renewal interval, so that another wins meanwhile.
    async fn resign(&self) -> Result<(), ElectionError> {
        self.desk.ask(Command::Resign).await
    }

    /// Also waits until the last callback has returned.
    async fn close(&self) {
        self.desk.close().await;
        self.called_back.cancelled().await;
    }
}

impl fmt::Debug for RedisElector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisElector")
            .field("key", &self.key)
            .field("node_id", &self.desk.identity)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RedisElectorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisElectorBuilder").field("key", &self.key).finish_non_exhaustive()
    }
}

async fn call_back(mut events: Events, callbacks: Vec<Callback>, _done: DropGuard) {
    while let Some(event) = events.next().await {
        let leads = match event {
            Event::Elected { .. } => true,
            Event::Retired { .. } => false,
            _ => continue,
        };
        for (number, callback) in callbacks.iter().enumerate() {
            let callback = callback.clone();
            let started = clock::now();
            if tokio::task::spawn_blocking(move || callback(leads)).await.is_err() {
                tracing::error!(number, leads, "a callback panicked");
            }
            let took = clock::now() - started;
            if took > SLOW {
                tracing::warn!(
                    number,
                    leads,
                    ?took,
                    "a callback is slow; the state may have changed meanwhile"
                );
            }
        }
    }
}

/// The task.
struct Campaign {
    link: SharedConnection,
    office: Office,
    key: String,
    node_id: String,
    ttl: Duration,
    renewal_interval: Duration,
    /// Of each request.
    limit: Duration,
    held: Option<Held>,
    /// The value that we set next, or may have set already without knowing.
    next: String,
    /// We resigned, and keep out until then.
    rest: Option<Moment>,
    connection: Option<Listening>,
    reconnect: Reconnect,
}

struct Held {
    value: String,
    token: u64,
}

/// A connection that also hears of changes of the key.
struct Listening {
    connection: MultiplexedConnection,
    pushes: UnboundedReceiver<(usize, PushInfo)>,
}

impl Campaign {
    async fn run(mut self, mut orders: Orders<Command>) {
        loop {
            let order = tokio::select! {
                biased;
                order = orders.next() => order,
                never = self.serve() => never,
            };
            // Before anything is told to Redis.
            self.office.set(Leadership::Unknown);
            match order {
                Order::Command(Command::Resign(answer)) => {
                    self.rest = Some(Moment::now() + self.renewal_interval);
                    // Nobody has to wait for it.
                    let _ = answer.send(self.release().await);
                }
                Order::Stop => break,
            }
        }
        if let Err(error) = self.release().await {
            tracing::warn!(key = %self.key, %error, "the key is left to expire");
        }
        self.office.set(Leadership::Failed(Arc::new(ElectionError::Closed)));
    }

    /// Holds the key, or tries to get it, for ever.
    async fn serve(&mut self) -> Order<Command> {
        loop {
            let pause = match self.turn().await {
                Ok(pause) => {
                    self.reconnect.connected();
                    pause
                }
                Err(error) => {
                    self.connection = None;
                    let pause = self.reconnect.next_delay(&error);
                    self.office.interrupted(error);
                    // A leader's time is short.
                    pause.min(if self.held.is_some() { self.ttl / 10 } else { pause })
                }
            };
            // Nothing happened if it takes longer than that.
            let _ = timeout(pause, self.news()).await;
        }
    }

    /// Returns when it is worth a look who has the key now.
    async fn news(&mut self) {
        let Some(listening) = &mut self.connection else { return std::future::pending().await };
        while listening.changed(&self.key).await {
            // We are also told of what our own scripts do: a leader that renewed at each change would never stop.
            let Some(held) = &self.held else { return };
            let read = cmd("GET").arg(&self.key).to_owned();
            let value: Result<Option<String>, _> =
                bounded(self.limit, read.query_async(&mut listening.connection)).await;
            if !matches!(value, Ok(Some(value)) if value == held.value) {
                return;
            }
        }
        self.connection = None;
    }

    /// Renews or tries to get the key. Returns when to do that again, if nothing changes.
    async fn turn(&mut self) -> Result<Duration, StoreError> {
        if let Some(rest) = self.rest {
            let left = rest.remaining();
            if !left.is_zero() {
                let mut connection = self.connection().await?;
                let read = cmd("GET").arg(&self.key).to_owned();
                let leader: Option<Vec<u8>> = bounded(self.limit, read.query_async(&mut connection)).await?;
                self.office.set(Leadership::Follower { leader: leader.map(|value| node_id(&value)) });
                return Ok(left);
            }
            self.rest = None;
        }
        let mut connection = self.connection().await?;
        // The time counts from before the request.
        let sent = Moment::now();
        let script = Script::new(HOLD);
        let mut call = self.call(&script);
        call.arg(self.ttl.as_millis() as u64).arg(COUNTER_TTL.as_millis() as u64);
        let (state, token, current, left): Answer =
            bounded(self.limit, call.invoke_async(&mut connection)).await?;
        match state {
            OTHER => {
                self.held = None;
                self.next = value(&self.node_id);
                self.office.set(Leadership::Follower { leader: Some(node_id(&current)) });
                // One millisecond more, because Redis rounds. Who sets a key without expiry is asked after again and again.
                let free =
                    u64::try_from(left).map_or(self.renewal_interval, |left| Duration::from_millis(left + 1));
                return Ok(free.min(self.renewal_interval));
            }
            TAKEN => {
                let value = std::mem::replace(&mut self.next, value(&self.node_id));
                self.held = Some(Held { value, token });
            }
            _ => {}
        }
        let held = self.held.as_ref().ok_or_else(|| unavailable("the script's answer makes no sense"))?;
        let fence = Fence::new(ENGINE, self.key.as_str(), held.token).with_proof(held.value.clone());
        self.office.lead(fence, deadline(sent, self.ttl));
        Ok(self.renewal_interval.saturating_sub(Moment::now() - sent))
    }

    /// Deletes the key if it is ours, also if we don't know that it is.
    async fn release(&mut self) -> Result<(), ElectionError> {
        let released = async {
            let mut connection = self.connection().await?;
            let script = Script::new(RELEASE);
            let _: u64 = bounded(self.limit, self.call(&script).invoke_async(&mut connection)).await?;
            Ok(())
        };
        let released: Result<(), StoreError> = released.await;
        self.held = None;
        self.next = value(&self.node_id);
        if released.is_err() {
            self.connection = None;
        }
        Ok(released?)
    }

    fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.key(&self.key);
        call.key(format!("{}:token", self.key));
        // Who holds none must not take somebody's empty value for its own.
        call.arg(self.held.as_ref().map_or(&self.next, |held| &held.value)).arg(&self.next);
        call
    }

    async fn connection(&mut self) -> Result<MultiplexedConnection, StoreError> {
        if let Some(listening) = &self.connection {
            return Ok(listening.connection.clone());
        }
        let (sender, pushes) = mpsc::unbounded_channel();
        let listening = async {
            let mut connections = self.link.listen(self.limit, &sender).await?;
            let mut connection =
                connections.pop().ok_or((ErrorKind::InvalidClientConfig, "there is no server"))?;
            let mut tracking = cmd("CLIENT");
            tracking.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(&self.key);
            let _: Value = tracking.query_async(&mut connection).await?;
            Ok(Listening { connection, pushes })
        };
        let listening = bounded(self.limit, listening).await?;
        Ok(self.connection.insert(listening).connection.clone())
    }
}

impl Listening {
    /// Waits until somebody else has changed the key. False if the connection is lost.
    async fn changed(&mut self, key: &str) -> bool {
        while let Some((_, push)) = self.pushes.recv().await {
            match (push.kind, push.data.into_iter().next()) {
                (PushKind::Disconnection, _) => return false,
                // Keys that ours is a prefix of.
                (PushKind::Invalidate, Some(Value::Array(keys)))
                    if !keys.contains(&Value::BulkString(key.as_bytes().to_owned())) => {}
                // Ours, or everything: somebody flushed the database.
                (PushKind::Invalidate, _) => return true,
                _ => {}
            }
        }
        false
    }
}

/// Another one for each reign, so that a fence tells them apart.
pub(crate) fn value(node_id: &str) -> String {
    format!("{node_id}/{}", nonce())
}

/// Whose value it is. Those of other programs have no such form, and are told as they are.
pub(crate) fn node_id(value: &[u8]) -> Arc<str> {
    let value = String::from_utf8_lossy(value);
    match value.rsplit_once('/') {
        Some((node_id, nonce)) if nonce.len() == 16 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            node_id.into()
        }
        _ => value.into(),
    }
}

/// What the script found, the token, the value and the time to live.
pub(crate) type Answer = (u8, u64, Vec<u8>, i64);
/// What it may have found; any other means that the key was ours and still is.
const OTHER: u8 = 0;
const TAKEN: u8 = 2;
/// Renews the key if its value is the one we hold (`ARGV[1]`), and takes it if it is free, by the next value (`ARGV[2]`), which
/// it may also have already: then the answer was lost. A counter that is none, or too large to be counted on, was written by
/// somebody else, and counts for nothing.
const HOLD: &str = r"
local current = redis.call('GET', KEYS[1])
if current and current ~= ARGV[2] then
    if current ~= ARGV[1] then
        return {0, 0, current, redis.call('PTTL', KEYS[1])}
    end
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    return {1, 0, current, 0}
end
local now = redis.call('TIME')
local last = tonumber(redis.call('GET', KEYS[2])) or 0
if not (last < 2 ^ 53) then
    last = 0
end
local token = math.max(now[1] * 1000000 + now[2], last + 1)
redis.call('SET', KEYS[2], string.format('%.0f', token), 'PX', ARGV[4])
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return {2, token, ARGV[2], 0}
";
/// Deletes the key if it is ours.
const RELEASE: &str = r"
local current = redis.call('GET', KEYS[1])
if current and (current == ARGV[1] or current == ARGV[2]) then
    return redis.call('DEL', KEYS[1])
end
return 0
";

/// A third of it must be time for a request.
const SHORTEST: Duration = Duration::from_millis(30);
/// How long the counter outlives the last election.
const COUNTER_TTL: Duration = Duration::from_secs(24 * 3600);
/// A callback that takes longer is worth a line in the log.
const SLOW: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_tells_whose_it_is_and_a_foreign_one_is_told_as_it_is() {
        for id in ["pod-1", "a/b", ""] {
            let (first, second) = (value(id), value(id));
            assert_ne!(first, second);
            assert_eq!(&*node_id(first.as_bytes()), id);
        }
        for foreign in ["0123456789abcdef0123456789abcdef", "a/b", "a/0123456789abcdeg", ""] {
            assert_eq!(&*node_id(foreign.as_bytes()), foreign);
        }
    }
}

//! The store in Redis or Valkey.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use redis::{IntoConnectionInfo, RedisResult, Script, cmd};

use super::{
    access::Access,
    codec::{ENGINE, Fields, entry, invalid, nonce, read, token, version},
    credentials::Credentials,
    servers::{Request, Servers},
    watch::Watch,
};
use crate::{
    clock,
    election::candidate::LONGEST_TTL,
    store::{
        BoxError, Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty, resume,
        unavailable,
    },
};

/// A store in Redis 6 or newer, or in Valkey: one server with or without replicas, the master that
/// Sentinel names, or a cluster.
///
/// Clones share the connection to each server.
///
/// # Addresses
///
/// An address is a URL or a client's connection info: `redis://user:secret@host:6379/0` with the
/// number of the database, `redis+unix:///run/redis.sock?db=0&user=app&pass=secret`, or `rediss://`
/// for TLS. TLS needs the feature `tokio-rustls-comp` of the crate `redis`, which a program
/// switches on for itself, and a provider of `rustls`. The connection info of
/// `redis::Client::build_with_tls` has certificates. [`credentials`](Self::credentials) is for
/// passwords that change.
///
/// # Layout
///
/// Each key is a hash of that name with the fields `value` and `version`. Any other program that
/// writes the key must change both fields in one command or script. Reading or writing a key of
/// another type returns [`StoreError::Invalid`]; a watch omits such a key.
///
/// A value over 512 MB returns [`StoreError::TooLarge`]. A server with a lower `proto-max-bulk-len`
/// closes the connection that a larger value arrives on, so the write is
/// [`StoreError::Unavailable`], and so is each other call that waits on that connection.
///
/// # Versions
///
/// A version consists of a number and a random part. The number is the server's time in
/// microseconds, or one more than the number of the previous version, or than the greatest that
/// this store and its watches have seen, whichever is greatest; it orders the writes of one key.
/// Together the two parts keep every version unique, even after a delete and a create, `FLUSHALL`,
/// or a failover. Numbers fall only if a key was deleted, the server's clock was set back, and a
/// writer that has not seen the deletion creates the key. A watch lists again then.
///
/// # Permissions
///
/// A write is one script. The user needs `EVALSHA`, `SCRIPT|LOAD`, and the commands that the script
/// and the watch call: `TIME`, `GET`, `HGET`, `HSET`, `EXISTS`, `DEL`, `HMGET`, `SCAN`, and
/// `CLIENT|TRACKING` unless changes are to be polled; also `SELECT` for a database, `WAIT` with
/// [`replicas`](Self::replicas), and in a cluster `ASKING`, and `CLUSTER|SHARDS` or
/// `CLUSTER|SLOTS`. A write with a [`Fence`] also reads the lock.
///
/// # Failover
///
/// **A failover can lose acknowledged writes**, because Redis replicates asynchronously. A crash of
/// the machine can lose them, too, unless `appendfsync always` is set, and so can `maxmemory` with
/// an eviction policy. The lease survives such a loss, because a process that still wants a lost
/// value writes it again. Data that must never be lost needs another store.
/// [`replicas`](Self::replicas) makes a loss less likely, and so does `min-replicas-to-write`.
///
/// Only a master serves. Each read asks in the same round trip whether the server still is one, and
/// a watch asks twice a second, so that neither stays with a demoted master, also behind an address
/// that leads to another server. A replica is [`StoreError::Unavailable`], and the next call
/// connects anew. With [`sentinel`](Self::sentinel) each new connection asks the sentinels first. A
/// master that lives on after a failover takes itself for the master until Sentinel demotes it, some
/// ten seconds later: existing connections stay with it until then, and lose what they write to it.
///
/// # Clusters
///
/// A call goes to the node that has the key, and follows its redirections: keys of a slot in
/// migration can be read and written, however long that takes. An exception is a write with a fence
/// whose key and lock are apart meanwhile. The lock must be in the same slot as the key (`{hash
/// tags}`). A node that tells no address is on the host of the node that told of it.
///
/// A watch listens to all masters, also to those without slots, looks twice a second for new ones,
/// and lists again when there is one. While a master that has slots cannot be reached, the watch is
/// interrupted, because its listing would lack keys; reads and writes of the other nodes' keys go
/// on. In Redis 6 it does not hear of keys that migrate to a node without slots before that node
/// has one.
///
/// # Timeouts and retries
///
/// A call without an answer within the [request timeout](Self::request_timeout), 5 s by default,
/// returns [`StoreError::Unavailable`] and drops its connection. The next call makes a new one.
/// Each request is sent once, except a script that the server did not know, a request that a node
/// of a cluster refused with a redirection, and a read that a node of a cluster broke off.
///
/// # Watches
///
/// A watch uses client-side tracking in broadcast mode, over a separate connection to each server.
/// The server needs no configuration. It reports the changed keys, and the watch reads them, so the
/// watch may omit a write that a newer one has already replaced. A server that does not answer the
/// watch's look within the request timeout interrupts it.
///
/// After each interruption the watch lists all keys again, with `SCAN`. **A listing visits every
/// key of the database,** whatever the prefix: one request per 5000 keys, and one per key with the
/// prefix; a second or two of the server's time per million keys. It may take as long as it needs,
/// while each answer comes within the request timeout. Many keys of other programs belong in a
/// database or server of their own.
///
/// Where `CLIENT TRACKING` is forbidden or unknown, the log says so once, and the watch polls: it
/// lists again after a second, or after nine times as long as a listing takes if that is longer,
/// and reports the differences.
///
/// # Examples
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use writerlease::redis::RedisStore;
///
/// let store = RedisStore::new("redis://user:secret@redis-0:6379/0")?
///     .request_timeout(Duration::from_secs(3))
///     .replicas(1);
/// let cluster = RedisStore::cluster(["redis://redis-0:6379", "redis://redis-1:6379"])?;
/// let sentinels = ["redis://sentinel-0:26379", "redis://sentinel-1:26379"];
/// let watched = RedisStore::sentinel(sentinels, "redis://user:secret@mymaster/0")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    servers: Arc<Servers>,
    request_timeout: Duration,
    replicas: usize,
}

impl RedisStore {
    /// Creates a store in one server, or in a primary with replicas. Connects with the first call.
    ///
    /// `server` is one of the [addresses](Self#addresses).
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if the address is invalid.
    pub fn new(server: impl IntoConnectionInfo) -> Result<Self, StoreError> {
        Self::with_access(Access::server(server))
    }

    /// Creates a store in the master that Sentinel names, given some of the sentinels. Connects
    /// with the first call, and asks the sentinels before each new connection.
    ///
    /// `master` is a URL or a client's connection info with the name of the master in place of the
    /// host; the rest holds for the server: `redis://user:secret@mymaster/0`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if there is no sentinel, or if an address is invalid.
    pub fn sentinel<S: IntoConnectionInfo>(
        sentinels: impl IntoIterator<Item = S>,
        master: impl IntoConnectionInfo,
    ) -> Result<Self, StoreError> {
        Self::with_access(Access::sentinel(sentinels, master))
    }

    /// Creates a store in a cluster, given some of its nodes. Connects with the first call.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if there is no node, or if an address is invalid.
    pub fn cluster<N: IntoConnectionInfo>(nodes: impl IntoIterator<Item = N>) -> Result<Self, StoreError> {
        Self::with_access(Access::cluster(nodes))
    }

    fn with_access(access: RedisResult<Access>) -> Result<Self, StoreError> {
        let servers = Arc::new(Servers::new(access.map_err(invalid)?));
        Ok(Self { servers, request_timeout: Duration::from_secs(5), replicas: 0 })
    }

    /// Sets a function that is asked for the user and the password of each new connection, in place
    /// of those in the URLs. The sentinels' own credentials stay those of their URLs.
    ///
    /// It is for passwords that live shorter than the program, such as tokens of a cloud's IAM. An
    /// error of the function is [`StoreError::Unavailable`]; its time counts as the request's.
    ///
    /// ```no_run
    /// # async fn token() -> std::io::Result<String> { Ok("secret".into()) }
    /// # fn example() -> Result<(), writerlease::store::StoreError> {
    /// use writerlease::redis::{Credentials, RedisStore};
    ///
    /// let store = RedisStore::new("rediss://redis-0:6379")?
    ///     .credentials(async || token().await.map(|token| Credentials::new("app", token)));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn credentials<F, E>(self, provider: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Credentials, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let mut access = self.servers.access.clone();
        access.ask(provider);
        Self { servers: Arc::new(Servers::new(access)), ..self }
    }

    /// Sets the time limit of each request, connecting included. Default: 5 s.
    #[must_use]
    pub fn request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Sets the number of replicas that must have a write before it returns (`WAIT`). Default: 0.
    ///
    /// In a cluster these are replicas of the node that has the key.
    ///
    /// A write waits for at most half of the request timeout that is left. If it reached fewer
    /// replicas by then, it returns [`StoreError::Unavailable`], because a failover may still lose
    /// it. Other calls of this store wait in the meantime, because they share the connection.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    fn seen(&self, version: Version) -> Version {
        self.servers.access.saw(&version);
        version
    }

    /// Runs the script: `Some` puts a value, `None` deletes the key.
    async fn write(
        &self,
        key: &str,
        expected: &[u8],
        value: Option<Bytes>,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        if value.as_ref().is_some_and(|value| value.len() > LARGEST) {
            let reason = format!("the value is larger than {LARGEST} bytes (proto-max-bulk-len)");
            return Err(StoreError::TooLarge { reason, source: None });
        }
        let script = Script::new(WRITE);
        let lock = fence.map(|fence| fence.of(ENGINE)).transpose()?.map(Fence::election);
        let mut request = Request::script(key, &script, lock.as_slice());
        request = request.arg(expected).arg(nonce()).arg(fence.map_or(&b""[..], Fence::proof));
        request = request.arg(self.servers.access.latest());
        if let Some(value) = &value {
            request = request.arg(&value[..]);
        }
        let started = clock::now();
        let answer = self.servers.request(self.request_timeout, &request).await?;
        let (outcome, token): (i64, Bytes) = answer.parse()?;
        let mut replicated = true;
        if outcome == WRITTEN && self.replicas > 0 {
            let left = self.request_timeout.saturating_sub(clock::now() - started);
            // Half of the time that is left, so that the answer arrives before the request is given
            // up. `WAIT 0` would wait forever, and the server adds the number to its clock.
            let limit = (left / 2).clamp(Duration::from_millis(1), LONGEST_TTL);
            let mut wait = cmd("WAIT");
            wait.arg(self.replicas.min(u32::MAX as usize)).arg(limit.as_millis() as u64);
            let reached: usize = self.servers.follow_up(left, &answer, wait).await?;
            replicated = reached >= self.replicas;
        }
        match (((outcome, token), replicated), fence) {
            (((WRITTEN, _), false), _) => {
                Err(unavailable(format!("fewer than {} replicas have the write", self.replicas)))
            }
            (((WRITTEN, token), true), _) => Ok(self.seen(version(token))),
            (((FENCED, _), _), Some(fence)) => Err(fence.refused()),
            (((_, token), _), _) if token.is_empty() => {
                Err(StoreError::Conflict { current: Current::Absent })
            }
            (((_, token), _), _) => {
                Err(StoreError::Conflict { current: Current::Version(self.seen(version(token))) })
            }
        }
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("request_timeout", &self.request_timeout)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}

impl Store for RedisStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let read = Request::read(key, read(non_empty(key)?));
        let (token, value): Fields = self.servers.request(self.request_timeout, &read).await?.parse()?;
        let entry = entry(key.into(), token, value);
        Ok(entry.inspect(|entry| self.servers.access.saw(&entry.version)))
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        let key = non_empty(key)?;
        match &expected {
            Expected::Absent => self.write(key, b"", Some(value), fence).await,
            Expected::Version(version) => self.write(key, token(version)?, Some(value), fence).await,
        }
    }

    async fn delete(&self, key: &str, expected: &Version, fence: Option<&Fence>) -> Result<(), StoreError> {
        self.write(non_empty(key)?, token(expected)?, None, fence).await.map(drop)
    }

    fn watch(&self, prefix: &str) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let watch = Watch::new(self.servers.access.clone(), self.request_timeout, prefix);
        resume::watch(format!("redis watch of {prefix:?}"), watch)
    }
}

/// The script's answers. Any other answer is a conflict.
const WRITTEN: i64 = 1;
const FENCED: i64 = 2;
/// Puts or deletes if the fence holds and the key has the expected version; the empty version
/// stands for an absent key. Answers with one of the codes above, and with the new version of a put
/// or the current version of a conflict.
///
/// - `KEYS`: the key; the lock, if there is a fence.
/// - `ARGV`: the expected version, the random part of the new one, the value that the lock must
///   have, the greatest number that the writer has seen, and the value to put. Without the last one
///   the script deletes.
///
/// The writer's number counts where the server's clock was set back after a deletion. A number that
/// is more than a day ahead was made up by another program, and must not spread to all keys.
const WRITE: &str = r"
if KEYS[2] and redis.call('GET', KEYS[2]) ~= ARGV[3] then
    return {2, ''}
end
local now = redis.call('TIME')
local current = redis.call('HGET', KEYS[1], 'version')
if (current or '') == '' and redis.call('EXISTS', KEYS[1]) == 1 then
    return redis.error_reply('WRONGTYPE the hash has no version')
end
if (current or '') ~= ARGV[1] then
    return {0, current or ''}
end
if not ARGV[5] then
    redis.call('DEL', KEYS[1])
    return {1, ''}
end
local last = tonumber(string.match(current or '', '^%d+')) or 0
if last >= 2 ^ 53 then
    last = 0
end
local time = now[1] * 1000000 + now[2]
local seen = tonumber(ARGV[4])
if seen > time + 86400000000 then
    seen = 0
end
local version = string.format('%.0f-%s', math.max(time, last + 1, seen + 1), ARGV[2])
redis.call('HSET', KEYS[1], 'version', version, 'value', ARGV[5])
return {1, version}
";

/// The largest value in bytes: the default of the server's `proto-max-bulk-len`.
const LARGEST: usize = 512 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_number_orders_versions() {
        for (token, key_revision) in [
            ("17-ab", Some(17)),
            ("17", Some(17)),
            ("x17", None),
            ("", None),
            ("9007199254740991-ab", Some((1 << 53) - 1)),
            ("9007199254740992-ab", None),
            ("99999999999999999999-ab", None),
        ] {
            assert_eq!(version(token.into()).key_revision(), key_revision, "{token}");
        }
    }

    #[test]
    fn versions_of_other_stores_match_no_key() {
        assert!(matches!(token(&Version::opaque("17-ab")), Ok(b"17-ab")));
        assert!(matches!(
            token(&Version::ordered(17)),
            Err(StoreError::Conflict { current: Current::Unknown })
        ));
    }
}

//! Redis and Valkey, as a store.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use redis::{IntoConnectionInfo, RedisError, Script, cmd};

use super::{
    codec::{ENGINE, Fields, entry, nonce, read, token, version},
    connection::{Connection, Link},
    watch::Watch,
};
use crate::store::{
    Current, Entry, Event, Expected, Fence, Store, StoreError, Version, non_empty, resume, unavailable,
};

/// A store in Redis 6 or newer, or in Valkey: one server with or without replicas, or a cluster.
///
/// Each key is a hash of that name with the fields `value` and `version`; whoever else writes it must change both in one
/// command or script. A key that holds anything else is [`StoreError::Invalid`] to read or write, and a watch doesn't
/// tell of it. A version is the server's time in microseconds, or one more than the version before if that is later, and
/// a random part: no version comes twice, also not after the key was deleted and created, `FLUSHALL` or a failover. The
/// first part orders the writes of one key. A write is one script; the user needs `EVALSHA`, `SCRIPT|LOAD`, and what the
/// script and the watch call: `TIME`, `GET`, `HGET`, `HSET`, `EXISTS`, `DEL`, `HMGET`, `SCAN`, `CLIENT|TRACKING`, `PING`.
/// A write with a [`Fence`] also reads the lock; in a cluster it must be in the same slot as the key (`{hash tags}`).
///
/// **A failover can lose writes that were acknowledged**, because Redis replicates them afterwards. So can a crash of the
/// machine unless `appendfsync always` is set, and `maxmemory` with an eviction policy. The lease survives that, because
/// what is gone is wanted again; what must never be lost doesn't belong here.
/// [`with_replicas`](Self::with_replicas) makes a loss less likely.
///
/// A watch uses client-side tracking in broadcast mode, on a connection of its own to each server, and needs no
/// configuration of the server. It is told which keys changed and reads them, so it may leave out what was already
/// replaced. After each interruption it lists all keys again, by `SCAN`.
///
/// A call that gets no answer within the request timeout (5 s unless [set](Self::with_request_timeout)) returns
/// [`StoreError::Unavailable`] and gives its connection up; the next call makes a new one. Nothing is sent twice, except
/// a script that the server did not know. A watch that hears nothing for twice as long asks for a sign of life.
///
/// Clones share the connection.
///
/// ```no_run
/// # fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// use writerlease::redis::RedisStore;
///
/// let store = RedisStore::new("redis://user:secret@redis-0:6379/0")?
///     .with_request_timeout(Duration::from_secs(3))
///     .with_replicas(1);
/// let cluster = RedisStore::cluster(["redis://redis-0:6379", "redis://redis-1:6379"])?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    link: Arc<Link>,
    request_timeout: Duration,
    replicas: usize,
}

impl RedisStore {
    /// One server, or the primary of one with replicas: a URL (`redis://`, or `rediss://` where the features of `redis`
    /// provide TLS) or a client's connection info. Connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if it is no valid address.
    pub fn new(server: impl IntoConnectionInfo) -> Result<Self, StoreError> {
        Self::with_link(Link::server(server))
    }

    /// A cluster, by some of its nodes. Connects when it is first used.
    ///
    /// # Errors
    ///
    /// [`StoreError::Invalid`] if there is no node or one is no valid address.
    pub fn cluster<N: IntoConnectionInfo>(nodes: impl IntoIterator<Item = N>) -> Result<Self, StoreError> {
        Self::with_link(Link::cluster(nodes))
    }

    fn with_link(link: Result<Link, RedisError>) -> Result<Self, StoreError> {
        let invalid =
            |error: RedisError| StoreError::Invalid { reason: error.to_string(), source: Some(error.into()) };
        let link = Arc::new(link.map_err(invalid)?);
        Ok(Self { link, request_timeout: Duration::from_secs(5), replicas: 0 })
    }

    /// How long each request may take, connecting included; 5 s unless set.
    #[must_use]
    pub fn with_request_timeout(mut self, request_timeout: Duration) -> Self {
        self.request_timeout = request_timeout;
        self
    }

    /// Waits after each write until so many replicas have it (`WAIT`), for at most half the request timeout; none unless
    /// set. A write that has landed on fewer returns [`StoreError::Unavailable`]: it may be lost or not.
    ///
    /// Meanwhile other calls of this store wait, too, because they share the connection.
    #[must_use]
    pub fn with_replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Runs the script, with a value to put or without one to delete.
    async fn write(
        &self,
        key: &str,
        expected: &[u8],
        value: Option<Bytes>,
        fence: Option<&Fence>,
    ) -> Result<Version, StoreError> {
        if value.as_ref().is_some_and(|value| value.len() > LARGEST) {
            let reason = format!("a value of Redis has at most {LARGEST} bytes");
            return Err(StoreError::TooLarge { reason, source: None });
        }
        let script = Script::new(WRITE);
        let mut call = script.key(key);
        if let Some(fence) = fence {
            call.key(fence.of(ENGINE)?.election());
        }
        call.arg(expected).arg(nonce()).arg(fence.map_or(&b""[..], Fence::proof));
        if let Some(value) = &value {
            call.arg(&value[..]);
        }
        let request = async |mut connection: Connection| {
            let answer: (i64, Bytes) = call.invoke_async(&mut connection).await?;
            if answer.0 != WRITTEN || self.replicas == 0 {
                return Ok((answer, true));
            }
            let limit = self.request_timeout.as_millis() as u64 / 2;
            let mut wait = cmd("WAIT");
            let reached: usize =
                wait.arg(self.replicas).arg(limit.max(1)).query_async(&mut connection).await?;
            Ok((answer, reached >= self.replicas))
        };
        match (self.link.request(self.request_timeout, request).await?, fence) {
            (((WRITTEN, _), false), _) => {
                Err(unavailable(format!("fewer than {} replicas have it", self.replicas)))
            }
            (((WRITTEN, token), true), _) => Ok(version(token)),
            (((FENCED, _), _), Some(fence)) => Err(fence.refused()),
            (((_, token), _), _) if token.is_empty() => {
                Err(StoreError::Conflict { current: Current::Absent })
            }
            (((_, token), _), _) => Err(StoreError::Conflict { current: Current::Version(version(token)) }),
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
        let read = read(non_empty(key)?);
        let request = async |mut connection: Connection| read.query_async(&mut connection).await;
        let (token, value): Fields = self.link.request(self.request_timeout, request).await?;
        Ok(entry(key.into(), token, value))
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
        let watch = Watch::new(self.link.clone(), self.request_timeout, prefix);
        resume::watch(format!("redis watch of {prefix:?}"), watch)
    }
}

/// The script's answers; any other is a conflict.
const WRITTEN: i64 = 1;
const FENCED: i64 = 2;
/// Puts or deletes if the fence holds and the version is as expected (empty: the key does not exist). Answers whether it did,
/// and with the new version or else the current one.
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
if not ARGV[4] then
    redis.call('DEL', KEYS[1])
    return {1, ''}
end
local last = tonumber(string.match(current or '', '^%d+')) or 0
if last >= 2 ^ 53 then
    last = 0
end
local version = string.format('%.0f-%s', math.max(now[1] * 1000000 + now[2], last + 1), ARGV[2])
redis.call('HSET', KEYS[1], 'version', version, 'value', ARGV[4])
return {1, version}
";

/// `proto-max-bulk-len`, unless the server is configured otherwise.
const LARGEST: usize = 512 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_in_order_by_its_number_alone() {
        for (token, sequence) in [
            ("17-ab", Some(17)),
            ("17", Some(17)),
            ("x17", None),
            ("", None),
            ("9007199254740991-ab", Some((1 << 53) - 1)),
            ("9007199254740992-ab", None),
            ("99999999999999999999-ab", None),
        ] {
            assert_eq!(version(token.into()).key_revision(), sequence, "{token}");
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

//! A candidate's task on Redis, and its scripts.

use std::{sync::Arc, time::Duration};

use redis::{
    ErrorKind, PushInfo, PushKind, Script, ScriptInvocation, Value, aio::MultiplexedConnection, cmd,
};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::timeout,
};

use super::{
    codec::{ENGINE, bounded, nonce},
    connection::SharedConnection,
};
use crate::{
    clock::Moment,
    election::{
        ElectionError, Leadership,
        candidate::{Candidate, Resign},
        publisher::{LeadershipPublisher, believed_until},
        retries::Retries,
    },
    store::{Fence, StoreError, unavailable},
};

pub(super) struct Campaign {
    link: SharedConnection,
    publisher: LeadershipPublisher,
    key: String,
    identity: String,
    ttl: Duration,
    renewal_interval: Duration,
    /// The longest time of each request.
    limit: Duration,
    held: Option<Held>,
    /// The value that the candidate sets next. Redis may have it already if an answer was lost.
    next: String,
    /// The candidate keeps out of the election until then.
    rest: Option<Moment>,
    connection: Option<Listening>,
    retries: Retries,
}

struct Held {
    value: String,
    token: u64,
    /// The end of the leadership by this candidate's own clock.
    until: Moment,
}

/// A connection on which Redis also announces changes of the key.
struct Listening {
    connection: MultiplexedConnection,
    pushes: UnboundedReceiver<(usize, PushInfo)>,
}

impl Candidate for Campaign {
    type Command = Resign;

    /// Never returns: a candidate that loses the key competes on.
    async fn serve(&mut self) -> Result<(), ElectionError> {
        loop {
            let failed = match self.compete().await {
                Ok(pause) => {
                    self.retries.succeeded();
                    // If the time is up, the key has not changed.
                    timeout(pause, self.change()).await.unwrap_or(Ok(()))
                }
                Err(error) => Err(error),
            };
            if let Err(error) = failed {
                self.connection = None;
                let pause = self.retries.failed(error);
                tokio::time::sleep(self.shortened(pause)).await;
            }
        }
    }

    fn obey(&mut self, Resign: Resign) -> bool {
        self.rest = Some(Moment::now() + self.renewal_interval);
        true
    }

    /// Deletes the key if it has this candidate's value, known or unknown to be there.
    async fn withdraw(&mut self) -> Result<(), ElectionError> {
        let released = async {
            let mut connection = self.connection().await?;
            let script = Script::new(RELEASE);
            let _: u64 = bounded(self.limit, self.call(&script).invoke_async(&mut connection)).await?;
            Ok(())
        };
        let released: Result<(), StoreError> = released.await;
        self.held = None;
        self.next = value(&self.identity);
        if released.is_err() {
            self.connection = None;
        }
        Ok(released?)
    }
}

impl Campaign {
    pub fn new(
        link: SharedConnection,
        publisher: LeadershipPublisher,
        key: String,
        identity: String,
        ttl: Duration,
        renewal_interval: Duration,
        limit: Duration,
    ) -> Self {
        Self {
            link,
            retries: Retries::new(format!("redis election {key}"), publisher.clone()),
            publisher,
            key,
            next: value(&identity),
            identity,
            ttl,
            renewal_interval,
            limit,
            held: None,
            rest: None,
            connection: None,
        }
    }

    /// Shortens the pause before a retry as long as there is a leadership to save. A former leader
    /// waits as long as everybody else.
    fn shortened(&self, pause: Duration) -> Duration {
        match self.held.as_ref().map(|held| held.until.remaining()) {
            Some(left) if !left.is_zero() => pause.min((left / 4).max(self.ttl / 10)),
            _ => pause,
        }
    }

    /// Waits until the key may have another value. Fails if the connection is lost.
    async fn change(&mut self) -> Result<(), StoreError> {
        let Some(listening) = &mut self.connection else { return std::future::pending().await };
        while listening.changed(&self.key).await {
            // Redis also announces the leader's own renewals. A renewal for each would never stop.
            let Some(held) = &self.held else { return Ok(()) };
            let read = cmd("GET").arg(&self.key).to_owned();
            let value: Result<Option<String>, _> =
                bounded(self.limit, read.query_async(&mut listening.connection)).await;
            if !matches!(value, Ok(Some(value)) if value == held.value) {
                return Ok(());
            }
        }
        Err(unavailable("the connection was lost"))
    }

    /// Renews the key, or takes it if it is free. Returns the time until the next try, unless the
    /// key changes earlier.
    async fn compete(&mut self) -> Result<Duration, StoreError> {
        if let Some(rest) = self.rest {
            let left = rest.remaining();
            if !left.is_zero() {
                let mut connection = self.connection().await?;
                let read = cmd("GET").arg(&self.key).to_owned();
                let leader: Option<Vec<u8>> = bounded(self.limit, read.query_async(&mut connection)).await?;
                self.publisher.set(Leadership::Follower { leader: leader.map(|value| identity_of(&value)) });
                return Ok(left);
            }
            self.rest = None;
        }
        let mut connection = self.connection().await?;
        // The leadership counts from before the request.
        let sent = Moment::now();
        let until = believed_until(sent, self.ttl);
        let script = Script::new(HOLD);
        let mut call = self.call(&script);
        call.arg(self.ttl.as_millis() as u64).arg(COUNTER_TTL.as_millis() as u64);
        let (state, token, current, left): Answer =
            bounded(self.limit, call.invoke_async(&mut connection)).await?;
        match state {
            OTHER => {
                self.held = None;
                self.next = value(&self.identity);
                self.publisher.set(Leadership::Follower { leader: Some(identity_of(&current)) });
                // Add 1 ms because Redis rounds. A key without expiry is polled at the renewal
                // interval.
                let free =
                    u64::try_from(left).map_or(self.renewal_interval, |left| Duration::from_millis(left + 1));
                return Ok(free.min(self.renewal_interval));
            }
            TAKEN => {
                let value = std::mem::replace(&mut self.next, value(&self.identity));
                self.held = Some(Held { value, token, until });
            }
            _ => {}
        }
        let held = self.held.as_mut().ok_or_else(|| unavailable("the script's answer makes no sense"))?;
        held.until = until;
        let fence = Fence::new(ENGINE, self.key.as_str(), held.token).with_proof(held.value.clone());
        self.publisher.lead(fence, until);
        Ok(self.renewal_interval.saturating_sub(Moment::now() - sent))
    }

    fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.key(&self.key);
        call.key(format!("{}:token", self.key));
        // A candidate without the key must not take another's empty value for its own.
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
    /// Waits for an announced change of the key. Returns false if the connection is lost.
    async fn changed(&mut self, key: &str) -> bool {
        while let Some((_, push)) = self.pushes.recv().await {
            match (push.kind, push.data.into_iter().next()) {
                (PushKind::Disconnection, _) => return false,
                // Other keys, of which this one is a prefix.
                (PushKind::Invalidate, Some(Value::Array(keys)))
                    if !keys.contains(&Value::BulkString(key.as_bytes().to_owned())) => {}
                // This key, or all keys: the database was flushed.
                (PushKind::Invalidate, _) => return true,
                _ => {}
            }
        }
        false
    }
}

/// A value for the next term of leadership. No two are equal, so that a fence tells terms apart.
pub(crate) fn value(identity: &str) -> String {
    format!("{identity}/{}", nonce())
}

/// Reads the identity from a value. A value of another form is an identity as it stands.
pub(crate) fn identity_of(value: &[u8]) -> Arc<str> {
    let value = String::from_utf8_lossy(value);
    match value.rsplit_once('/') {
        Some((identity, nonce))
            if nonce.len() == 16 && nonce.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
        {
            identity.into()
        }
        _ => value.into(),
    }
}

/// The answer of [`HOLD`]: what it found, the token, the value, and the value's time to live.
pub(crate) type Answer = (u8, u64, Vec<u8>, i64);
/// Another candidate holds the key.
const OTHER: u8 = 0;
/// The key was free, and this candidate holds it now. (Any other number: it held the key before.)
const TAKEN: u8 = 2;
/// Renews the key if it has the held value (`ARGV[1]`). Takes it with the next value (`ARGV[2]`) if
/// it is free, or if it has that value already because an answer was lost. A counter that is no
/// number, or too large to count on, was written by another program and is ignored.
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
/// Deletes the key if it has the held value or the next one.
const RELEASE: &str = r"
local current = redis.call('GET', KEYS[1])
if current and (current == ARGV[1] or current == ARGV[2]) then
    return redis.call('DEL', KEYS[1])
end
return 0
";

/// How long the counter outlives the last term of leadership.
const COUNTER_TTL: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_tell_their_identity() {
        for identity in ["pod-1", "a/b", ""] {
            let (first, second) = (value(identity), value(identity));
            assert_ne!(first, second);
            assert_eq!(&*identity_of(first.as_bytes()), identity);
        }
        for foreign in ["0123456789abcdef0123456789abcdef", "a/b", "a/0123456789abcdeg", ""] {
            assert_eq!(&*identity_of(foreign.as_bytes()), foreign);
        }
    }
}

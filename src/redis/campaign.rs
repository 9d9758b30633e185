//! A candidate's task on Redis, and its scripts.

use std::{sync::Arc, time::Duration};

use redis::{PushKind, Script, Value, cmd};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

use super::{
    access::{Access, Push},
    codec::{ENGINE, nonce},
    servers::{Request, Servers},
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
    servers: Servers,
    /// Announcements of changes of the key.
    pushes: UnboundedReceiver<Push>,
    publisher: LeadershipPublisher,
    key: String,
    /// The key of the counter of tokens.
    counter: String,
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
    retries: Retries,
}

struct Held {
    value: String,
    token: u64,
    /// The end of the leadership by this candidate's own clock.
    until: Moment,
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
        let script = Script::new(RELEASE);
        let released = self.servers.request(self.limit, &self.call(&script, &[])).await;
        self.held = None;
        self.next = value(&self.identity);
        released?;
        Ok(())
    }
}

impl Campaign {
    pub fn new(
        access: Access,
        publisher: LeadershipPublisher,
        (key, counter): (String, String),
        identity: String,
        ttl: Duration,
        renewal_interval: Duration,
        limit: Duration,
    ) -> Self {
        let (servers, pushes) = Servers::listening(access, &key);
        Self {
            servers,
            pushes,
            retries: Retries::new(format!("redis election {key}"), publisher.clone()),
            publisher,
            key,
            counter,
            next: value(&identity),
            identity,
            ttl,
            renewal_interval,
            limit,
            held: None,
            rest: None,
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
        loop {
            self.announced().await?;
            // Redis also announces the leader's own renewals. A renewal for each would never stop.
            let Some(held) = &self.held else { return Ok(()) };
            if self.value().await?.is_none_or(|value| value != held.value.as_bytes()) {
                return Ok(());
            }
        }
    }

    /// Waits for an announced change of the key.
    async fn announced(&mut self) -> Result<(), StoreError> {
        loop {
            // The sender lives as long as the servers here.
            let Some(push) = self.pushes.recv().await else { return std::future::pending().await };
            match (&push.info.kind, push.info.data.first()) {
                (PushKind::Disconnection, _) if self.servers.forget(&push) => {
                    return Err(unavailable("the connection was lost"));
                }
                // Other keys, of which this one is a prefix.
                (PushKind::Invalidate, Some(Value::Array(keys)))
                    if !keys.contains(&Value::BulkString(self.key.as_bytes().to_owned())) => {}
                // This key, or all keys: the database was flushed.
                (PushKind::Invalidate, _) => return Ok(()),
                _ => {}
            }
        }
    }

    async fn value(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let read = Request::read(&self.key, cmd("GET").arg(&self.key).to_owned());
        self.servers.request(self.limit, &read).await?.parse()
    }

    /// Renews the key, or takes it if it is free. Returns the time until the next try, unless the
    /// key changes earlier.
    async fn compete(&mut self) -> Result<Duration, StoreError> {
        if let Some(rest) = self.rest {
            let left = rest.remaining();
            if !left.is_zero() {
                let leader = self.value().await?.map(|value| identity_of(&value));
                self.publisher.set(Leadership::Follower { leader });
                return Ok(left);
            }
            self.rest = None;
        }
        // The leadership counts from before the request.
        let sent = Moment::now();
        let until = believed_until(sent, self.ttl);
        let ttl = self.ttl.as_millis() as u64;
        if let Some(held) = &mut self.held {
            // It uses no other key, so that a leader stays when its slot is in migration.
            let script = Script::new(RENEW);
            let renewal = Request::script(&self.key, &script, &[]).arg(&held.value).arg(ttl);
            if self.servers.request(self.limit, &renewal).await?.parse()? {
                held.until = until;
                return Ok(self.lead(sent));
            }
        }
        let script = Script::new(HOLD);
        let call = self.call(&script, &[&self.counter]).arg(ttl).arg(COUNTER_TTL.as_millis() as u64);
        let (state, token, current, left): Answer = self.servers.request(self.limit, &call).await?.parse()?;
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
            _ => {
                let held = self.held.as_mut();
                held.ok_or_else(|| unavailable("the script's answer makes no sense"))?.until = until;
            }
        }
        Ok(self.lead(sent))
    }

    /// Publishes the leadership, and returns the time until the renewal.
    fn lead(&self, sent: Moment) -> Duration {
        if let Some(held) = &self.held {
            let fence = Fence::new(ENGINE, self.key.as_str(), held.token).with_proof(held.value.clone());
            self.publisher.lead(fence, held.until);
        }
        self.renewal_interval.saturating_sub(Moment::now() - sent)
    }

    fn call<'a>(&'a self, script: &'a Script, further_keys: &[&str]) -> Request<'a> {
        // A candidate without the key must not take another's empty value for its own.
        let held = self.held.as_ref().map_or(&self.next, |held| &held.value);
        Request::script(&self.key, script, further_keys).arg(held).arg(&self.next)
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
/// Renews the key if it has the held value.
const RENEW: &str = r"
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
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

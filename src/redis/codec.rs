//! Translation between Redis and a store: entries, versions, errors.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use rand::RngExt;
use redis::{ErrorKind, RedisError, ServerErrorKind, cmd};

use crate::store::{Current, Entry, StoreError, Version, resume};

/// The fields of a key, as [`read`] requests them: version and value.
pub(crate) type Fields = (Option<Bytes>, Option<Bytes>);

/// Returns the command that reads the [`Fields`] of a key.
pub(super) fn read(key: &str) -> redis::Cmd {
    let mut read = cmd("HMGET");
    read.arg(key).arg("version").arg("value");
    read
}

pub(crate) fn entry(key: Arc<str>, token: Option<Bytes>, value: Option<Bytes>) -> Option<Entry> {
    // The script takes the empty version for an absent key, so no entry may carry it.
    let token = token.filter(|token| !token.is_empty())?;
    Some(Entry { key, value: value.unwrap_or_default(), version: version(token) })
}

pub(super) fn version(token: Bytes) -> Version {
    match number(&token) {
        Some(number) => Version::opaque(token).with_key_revision(number),
        None => Version::opaque(token),
    }
}

/// Returns the part of a version that orders the writes of a key; `None` if another program wrote a
/// version of its own format.
pub(super) fn number(token: &[u8]) -> Option<u64> {
    let digits = token.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|number| *number < UNCOUNTABLE)
}

/// Returns the random part of a version, which differs from that of any other process. Two
/// generators with the same seed would collide.
#[expect(
    clippy::disallowed_methods,
    reason = "no decision depends on it, so runs with one seed stay the same"
)]
pub(crate) fn nonce() -> String {
    format!("{:016x}", rand::rng().random::<u64>())
}

/// Returns a version in Redis's form. A version of another store matches no key, so it is a
/// conflict; its empty token must not reach the script, where it stands for an absent key.
pub(crate) fn token(version: &Version) -> Result<&[u8], StoreError> {
    match version.token() {
        [] => Err(StoreError::Conflict { current: Current::Unknown }),
        token => Ok(token),
    }
}

/// Awaits a request and gives up on it after `limit`.
pub(crate) async fn bounded<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, StoreError> {
    resume::bounded(limit, request, store_error).await
}

/// Translates an error of settings.
pub(super) fn invalid(error: RedisError) -> StoreError {
    StoreError::Invalid { reason: error.to_string(), source: Some(error.into()) }
}

/// Translates an error of the client, by its kind, or by the server's error code or message.
pub(crate) fn store_error(error: RedisError) -> StoreError {
    let reason = error.to_string();
    let (kind, code) = (error.kind(), error.code().map(str::to_owned));
    // A command within a script: as servers since Redis 7.2 say it, and as older ones do.
    let denied = ["ACL failure in script", "The user executing the script can't"];
    let denied = denied.iter().any(|denied| reason.contains(denied));
    let source = Some(error.into());
    match (kind, code.as_deref()) {
        (ErrorKind::Server(_), _) if denied => StoreError::Denied { reason, source },
        (ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm), _)
        | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => StoreError::Denied { reason, source },
        (_, Some("WRONGTYPE" | "CROSSSLOT"))
        | (ErrorKind::RESP3NotSupported | ErrorKind::InvalidClientConfig, _) => {
            StoreError::Invalid { reason, source }
        }
        _ => StoreError::Unavailable { reason, source },
    }
}

/// The backend's name in the fences of Redis's elector.
pub(crate) const ENGINE: &str = "redis";
/// The first number that the script cannot count from: Lua's numbers are doubles, and here `n + 1`
/// may equal `n`. A clock in microseconds needs 285 years from 1970 to reach it.
const UNCOUNTABLE: u64 = 1 << 53;

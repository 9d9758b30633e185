//! Keys, values and errors of Redis as those of a store.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use rand::RngExt;
use redis::{ErrorKind, RedisError, ServerErrorKind, cmd};

use crate::store::{Current, Entry, StoreError, Version, resume};

/// The fields of a key, as `read` returns them.
pub(crate) type Fields = (Option<Bytes>, Option<Bytes>);

pub(super) fn read(key: &str) -> redis::Cmd {
    let mut read = cmd("HMGET");
    read.arg(key).arg("version").arg("value");
    read
}

pub(crate) fn entry(key: Arc<str>, token: Option<Bytes>, value: Option<Bytes>) -> Option<Entry> {
    // The empty one would mean an absent key.
    let token = token.filter(|token| !token.is_empty())?;
    Some(Entry { key, value: value.unwrap_or_default(), version: version(token) })
}

pub(super) fn version(token: Bytes) -> Version {
    match number(&token) {
        Some(number) => Version::opaque(token).with_key_revision(number),
        None => Version::opaque(token),
    }
}

/// The part of a version that orders the writes of a key; none, if somebody else made up the version.
pub(super) fn number(token: &[u8]) -> Option<u64> {
    let digits = token.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|number| *number < UNCOUNTABLE)
}

/// What makes a version unlike those of all other processes, which a seeded generator could not promise.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing is decided by it, so runs with one seed are still the same"
)]
pub(crate) fn nonce() -> String {
    format!("{:016x}", rand::rng().random::<u64>())
}

/// What a version is to Redis. One of another store belongs to no key, and the empty one would even mean an absent key.
pub(crate) fn token(version: &Version) -> Result<&[u8], StoreError> {
    match version.token() {
        [] => Err(StoreError::Conflict { current: Current::Unknown }),
        token => Ok(token),
    }
}

pub(crate) async fn bounded<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, StoreError> {
    resume::bounded(limit, request, store_error).await
}

pub(crate) fn store_error(error: RedisError) -> StoreError {
    let reason = error.to_string();
    let (kind, code) = (error.kind(), error.code().map(str::to_owned));
    let source = Some(error.into());
    match (kind, code.as_deref()) {
        (ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm), _)
        | (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM")) => StoreError::Denied { reason, source },
        (_, Some("WRONGTYPE" | "CROSSSLOT"))
        | (ErrorKind::RESP3NotSupported | ErrorKind::InvalidClientConfig, _) => {
            StoreError::Invalid { reason, source }
        }
        _ => StoreError::Unavailable { reason, source },
    }
}

/// Of the fences that can be checked here.
pub(crate) const ENGINE: &str = "redis";
/// From here on the script's numbers have gaps: one more might be the same. No clock gets there.
const UNCOUNTABLE: u64 = 1 << 53;

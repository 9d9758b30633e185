//! Requests to etcd: their time limit, the translation of errors, entries and key ranges.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use etcd_client::{Error, GetOptions, GetResponse, KeyValue, KvClient, Txn, TxnResponse};
use tokio::time::sleep;

use crate::store::{Entry, StoreError, Version, resume};

pub(super) async fn get(
    limit: Duration,
    kv: &KvClient,
    key: impl Into<Vec<u8>>,
    options: GetOptions,
) -> Result<GetResponse, StoreError> {
    let key = key.into();
    let request = || {
        let (mut kv, key, options) = (kv.clone(), key.clone(), options.clone());
        async move { kv.get(key, Some(options)).await }
    };
    bounded(limit, request).await
}

pub(super) async fn transact(limit: Duration, kv: &KvClient, txn: Txn) -> Result<TxnResponse, StoreError> {
    let request = || {
        let (mut kv, txn) = (kv.clone(), txn.clone());
        async move { kv.txn(txn).await }
    };
    bounded(limit, request).await
}

/// Sends a request within `limit`.
///
/// The client sends each to any endpoint. A learner refuses nearly all, to no effect, so that the
/// request is sent again and reaches another member.
pub(super) async fn bounded<T, F: Future<Output = Result<T, Error>>>(
    limit: Duration,
    mut request: impl FnMut() -> F,
) -> Result<T, StoreError> {
    let answered = async {
        let mut pause = Duration::from_millis(1);
        for _ in 1..TRIES {
            match request().await {
                Err(error) if error.to_string().contains("not supported for learner") => {}
                answer => return answer,
            }
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
        request().await
    };
    resume::bounded(limit, answered, store_error).await
}

/// How often a request is sent that learners refuse. If every other endpoint is one, one of a
/// million requests fails.
const TRIES: u32 = 20;
/// The longest pause before such a request is sent again.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Translates an error of etcd. etcd uses one gRPC code for several causes, so the message decides
/// where the code is ambiguous.
pub(super) fn store_error(error: Error) -> StoreError {
    // Numbers instead of `tonic::Code`, because this crate does not depend on `tonic`.
    const INVALID_ARGUMENT: i32 = 3;
    const NOT_FOUND: i32 = 5;
    const PERMISSION_DENIED: i32 = 7;
    const RESOURCE_EXHAUSTED: i32 = 8;
    const OUT_OF_RANGE: i32 = 11;
    const UNAUTHENTICATED: i32 = 16;

    let reason = error.to_string();
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    let code = match &error {
        Error::GRpcStatus(status) => i32::from(status.code()),
        _ => 0,
    };
    let source = Some(error.into());
    match code {
        PERMISSION_DENIED | UNAUTHENTICATED => StoreError::Denied { reason, source },
        INVALID_ARGUMENT if says(&["user name is empty", "authentication failed"]) => {
            StoreError::Denied { reason, source }
        }
        // The permissions changed while the request was in transit; the same request may succeed
        // next.
        INVALID_ARGUMENT if says(&["revision of auth store is old"]) => {
            StoreError::Unavailable { reason, source }
        }
        // The last two codes also mean a full disk, too many requests, or a compacted revision.
        INVALID_ARGUMENT | RESOURCE_EXHAUSTED | OUT_OF_RANGE
            if says(&["request is too large", "larger than max", "length too large"]) =>
        {
            StoreError::TooLarge { reason, source }
        }
        INVALID_ARGUMENT => StoreError::Invalid { reason, source },
        NOT_FOUND if says(&[NO_LEASE]) => StoreError::Invalid { reason, source },
        _ => StoreError::Unavailable { reason, source },
    }
}

/// Returns whether a request was refused because its lease has ended.
pub(super) fn has_lost_its_lease(error: &StoreError) -> bool {
    matches!(error, StoreError::Invalid { reason, .. } if reason.contains(NO_LEASE))
}

/// etcd's message about a lease that it does not have.
const NO_LEASE: &str = "requested lease not found";

/// Returns the key; `None` unless it is UTF-8, as all keys that a [`Store`] writes are.
pub(super) fn key(kv: &KeyValue) -> Option<Arc<str>> {
    kv.key_str().ok().map(Arc::from)
}

pub(super) fn entry(kv: &KeyValue) -> Option<Entry> {
    let value = Bytes::copy_from_slice(kv.value());
    Some(Entry { key: key(kv)?, value, version: version(kv.mod_revision()) })
}

pub(super) fn version(revision: i64) -> Version {
    Version::ordered(revision.unsigned_abs())
}

/// Returns etcd's range for the keys with a prefix: the first key, and the first key after the
/// range.
pub(crate) fn range(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let (mut from, mut end) = (prefix.as_bytes().to_vec(), prefix.as_bytes().to_vec());
    match end.last_mut() {
        // This cannot overflow: UTF-8 has no byte 0xff.
        Some(last) => *last += 1,
        None => (from, end) = (vec![0], vec![0]),
    }
    (from, end)
}

/// Returns etcd's range for one key, for which the permission of that key suffices.
pub(crate) fn single(key: &str) -> (Vec<u8>, Vec<u8>) {
    (key.into(), Vec::new())
}

/// The backend's name in the fences of etcd's electors.
pub(crate) const ENGINE: &str = "etcd";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_covers_exactly_the_keys_of_its_prefix() {
        for (prefix, end) in
            [("a/", &b"a0"[..]), ("a", b"b"), ("\u{7f}", b"\x80"), ("\u{10ffff}", b"\xf4\x8f\xbf\xc0")]
        {
            assert_eq!(range(prefix), (prefix.as_bytes().to_vec(), end.to_vec()));
        }
        // etcd's notation for all keys: the zero byte at both ends.
        assert_eq!(range(""), (vec![0], vec![0]));
    }
}

//! Requests to etcd: their time limit, the translation of errors, and key ranges.

use std::{future::Future, time::Duration};

use etcd_client::Error;

use crate::store::{StoreError, resume};

pub(crate) async fn bounded<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    resume::bounded(limit, request, store_error).await
}

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

//! Requests to etcd, and the meaning of its errors.

use std::{future::Future, time::Duration};

use etcd_client::Error;

use crate::store::{StoreError, resume};

pub(crate) async fn bounded<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, StoreError> {
    resume::bounded(limit, request, store_error).await
}

/// etcd uses the codes loosely, so the message decides where one code stands for several things.
pub(super) fn store_error(error: Error) -> StoreError {
    // Not named in code, because `tonic`, whose type it is, is no dependency of ours.
    const INVALID_ARGUMENT: i32 = 3;
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
        // The permissions were changed while the request was on its way.
        INVALID_ARGUMENT if says(&["revision of auth store is old"]) => {
            StoreError::Unavailable { reason, source }
        }
        // The last two codes also stand for a full disk, too many requests, and a compacted revision.
        INVALID_ARGUMENT | RESOURCE_EXHAUSTED | OUT_OF_RANGE
            if says(&["request is too large", "larger than max", "length too large"]) =>
        {
            StoreError::TooLarge { reason, source }
        }
        INVALID_ARGUMENT => StoreError::Invalid { reason, source },
        _ => StoreError::Unavailable { reason, source },
    }
}

/// The keys with a prefix, as the range that etcd takes: from, and up to without.
pub(crate) fn range(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    let (mut from, mut end) = (prefix.as_bytes().to_vec(), prefix.as_bytes().to_vec());
    match end.last_mut() {
        // UTF-8 has no byte 0xff.
        Some(last) => *last += 1,
        None => (from, end) = (vec![0], vec![0]),
    }
    (from, end)
}

/// Of the fences that can be checked here.
pub(crate) const ENGINE: &str = "etcd";

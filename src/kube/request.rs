//! Sends requests to the API server and interprets its refusals.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use kube::{Client, Error, core::Status};
use tokio::time::timeout;

use crate::store::{Current, StoreError, unavailable};

/// Sends a write and waits at most `limit` for the answer.
///
/// kube's client repeats a request by itself, up to 15 times, when the server is overloaded or a
/// proxy gives up on it. If such a write ends in a conflict, the conflict may be with its own
/// earlier try. The result is then [`StoreError::Unavailable`], as if the answer had been lost, and
/// the guard recognises its own bytes.
pub(super) async fn write(
    client: &Client,
    mut request: http::Request<Vec<u8>>,
    limit: Duration,
) -> Result<String, StoreError> {
    let tries = Tries::default();
    request.extensions_mut().insert(Tries(tries.0.clone()));
    match send(client, request, limit).await?.map_err(refusal) {
        Err(StoreError::Conflict { .. }) if tries.were_many() => {
            Err(unavailable("the client's retry conflicted; its earlier try may have succeeded"))
        }
        answer => answer,
    }
}

/// Sends a read and waits at most `limit` for the answer. Returns `None` if the object does not
/// exist.
pub(super) async fn read(
    client: &Client,
    request: http::Request<Vec<u8>>,
    limit: Duration,
) -> Result<Option<String>, StoreError> {
    match send(client, request, limit).await? {
        Ok(answer) => Ok(Some(answer)),
        Err(Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(refusal(error)),
    }
}

/// Translates an error of kube's client.
pub(super) fn refusal(error: Error) -> StoreError {
    let Error::Api(status) = &error else {
        let reason = "the request to the API server failed".into();
        return StoreError::Unavailable { reason, source: Some(error.into()) };
    };
    let Status { code, reason, message, .. } = &**status;
    let reason = match message.as_str() {
        "" => format!("{code} {reason}"),
        message => message.to_owned(),
    };
    match code {
        409 => StoreError::Conflict { current: Current::Unknown },
        // A caller writes only what it has read, so the object has gone since.
        404 | 410 => StoreError::Conflict { current: Current::Absent },
        401 | 403 => StoreError::Denied { reason, source: Some(error.into()) },
        413 => StoreError::TooLarge { reason, source: Some(error.into()) },
        // The limits of etcd and of the server's etcd client surface as internal errors.
        500 if reason.contains("request is too large") || reason.contains("message larger than max") => {
            StoreError::TooLarge { reason, source: Some(error.into()) }
        }
        408 | 429 | 500.. => StoreError::Unavailable { reason, source: Some(error.into()) },
        _ => StoreError::Invalid { reason, source: Some(error.into()) },
    }
}

async fn send(
    client: &Client,
    request: http::Request<Vec<u8>>,
    limit: Duration,
) -> Result<Result<String, Error>, StoreError> {
    timeout(limit, client.request_text(request))
        .await
        .map_err(|_| unavailable(format!("no answer within {limit:?}")))
}

/// Counts how often kube's client copies the request that carries this: once to be able to repeat
/// it, and once more for each repetition.
#[derive(Debug, Default)]
struct Tries(Arc<AtomicU32>);

impl Tries {
    fn were_many(&self) -> bool {
        self.0.load(Relaxed) > 1
    }
}

impl Clone for Tries {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Relaxed);
        Self(self.0.clone())
    }
}

//! Requests to the API server, and what its refusals mean.

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

/// Sends a write and waits for the answer, at most so long.
///
/// kube's client repeats requests by itself, up to 15 times when the server is overloaded or a proxy gives up on it. Of such
/// a write nobody knows whether an earlier try has landed: a conflict may be with ourselves. So that is
/// [`StoreError::Unavailable`], as if the answer had been lost, and the guard recognises its own bytes.
pub(super) async fn write(
    client: &Client,
    mut request: http::Request<Vec<u8>>,
    limit: Duration,
) -> Result<String, StoreError> {
    let tries = Tries::default();
    request.extensions_mut().insert(Tries(tries.0.clone()));
    let error = match timeout(limit, client.request_text(request)).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => refusal(error),
        Err(_) => return Err(unavailable(format!("no answer within {limit:?}"))),
    };
    Err(match error {
        StoreError::Conflict { .. } if tries.were_many() => {
            unavailable("refused as stale when the client tried again; an earlier try may have landed")
        }
        other => other,
    })
}

/// Reads, waiting for the answer at most so long; `None` if there is nothing to read.
pub(super) async fn read(
    client: &Client,
    request: http::Request<Vec<u8>>,
    limit: Duration,
) -> Result<Option<String>, StoreError> {
    match timeout(limit, client.request_text(request)).await {
        Ok(Ok(answer)) => Ok(Some(answer)),
        Ok(Err(Error::Api(status))) if status.code == 404 => Ok(None),
        Ok(Err(error)) => Err(refusal(error)),
        Err(_) => Err(unavailable(format!("no answer within {limit:?}"))),
    }
}

/// What a client's error says of a request.
pub(super) fn refusal(error: Error) -> StoreError {
    let Error::Api(status) = &error else {
        let reason = "no answer of the API server".into();
        return StoreError::Unavailable { reason, source: Some(error.into()) };
    };
    let Status { code, reason, message, .. } = &**status;
    let reason = match message.as_str() {
        "" => format!("{code} {reason}"),
        message => message.to_owned(),
    };
    match code {
        409 => StoreError::Conflict { current: Current::Unknown },
        // Who wants to write it has read it.
        404 | 410 => StoreError::Conflict { current: Current::Absent },
        401 | 403 => StoreError::Denied { reason, source: Some(error.into()) },
        413 => StoreError::TooLarge { reason, source: Some(error.into()) },
        // etcd's own limit, and that of the server's client, come through as internal errors.
        500 if reason.contains("request is too large") || reason.contains("message larger than max") => {
            StoreError::TooLarge { reason, source: Some(error.into()) }
        }
        408 | 429 | 500.. => StoreError::Unavailable { reason, source: Some(error.into()) },
        _ => StoreError::Invalid { reason, source: Some(error.into()) },
    }
}

/// Counts how often a client copies a request that carries this: once, in order to be able to repeat it, and once more each
/// time that it does.
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

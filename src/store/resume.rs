//! Watches of servers that resume after an interruption: connect, report the interruption once, and
//! connect again.

use std::{collections::VecDeque, future::Future, time::Duration};

use futures_util::{Stream, stream};
use tokio::time::{sleep, timeout};

use super::{Event, StoreError, reconnect::Reconnect, unavailable};

/// One server's watch, over a connection that can be lost and made again.
pub(crate) trait Resumable: Send + 'static {
    /// Connects if there is no connection; otherwise waits for news. Appends the events to `ready`.
    /// After an error the connection is unusable.
    fn advance(&mut self, ready: &mut VecDeque<Event>)
    -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Drops the connection after an error.
    fn disconnect(&mut self);
}

/// Returns the stream of a [`Store::watch`](super::Store::watch). `name` identifies it in the log.
pub(crate) fn watch(
    name: String,
    server: impl Resumable,
) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
    let watch = Resuming {
        server,
        reconnect: Reconnect::new(name),
        pause: None,
        ended: false,
        ready: VecDeque::new(),
    };
    stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) })
}

struct Resuming<W> {
    server: W,
    reconnect: Reconnect,
    /// The pause before the next connection attempt.
    pause: Option<Duration>,
    ended: bool,
    ready: VecDeque<Event>,
}

impl<W: Resumable> Resuming<W> {
    async fn next(&mut self) -> Option<Result<Event, StoreError>> {
        while !self.ended {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if let Some(pause) = self.pause {
                sleep(pause).await;
                self.pause = None;
            }
            let advanced = self.server.advance(&mut self.ready).await;
            let Err(error) = advanced else {
                // A connection without an event may still be half-open, so only an event counts.
                if !self.ready.is_empty() {
                    self.reconnect.connected();
                }
                continue;
            };
            self.server.disconnect();
            // Permissions are given back, but an invalid request stays invalid.
            self.ended = matches!(error, StoreError::Invalid { .. });
            let interruption = self.reconnect.interrupted(&error);
            self.pause = Some(interruption.pause);
            if interruption.is_news || self.ended {
                return Some(Err(error));
            }
        }
        None
    }
}

/// Awaits a request and gives up on it after `limit`.
pub(crate) async fn bounded<T, E>(
    limit: Duration,
    request: impl Future<Output = Result<T, E>>,
    store_error: impl FnOnce(E) -> StoreError,
) -> Result<T, StoreError> {
    match timeout(limit, request).await {
        Ok(answer) => answer.map_err(store_error),
        Err(_) => Err(unavailable(format!("no answer within {limit:?}"))),
    }
}

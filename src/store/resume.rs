//! What the watches of all servers have in common: they connect, report an interruption once, and connect again.

use std::{collections::VecDeque, future::Future, time::Duration};

use futures_util::{Stream, stream};
use tokio::time::{sleep, timeout};

use super::{Event, StoreError, unavailable};
use crate::reconnect::Reconnect;

/// A server's side of a watch.
pub(crate) trait Source: Send + 'static {
    /// Connects if there is no connection, and otherwise waits for news; what there is to tell is added to `ready`. An error
    /// means that the connection is gone.
    fn advance(&mut self, ready: &mut VecDeque<Event>)
    -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Forgets the connection, after an error.
    fn disconnect(&mut self);
}

/// The stream of a [`Store::watch`](super::Store::watch). `what` names it in the log.
pub(crate) fn watch(
    what: String,
    source: impl Source,
) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
    let watch = Watch {
        source,
        reconnect: Reconnect::new(what),
        pause: None,
        reported: false,
        ended: false,
        ready: VecDeque::new(),
    };
    stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) })
}

struct Watch<S> {
    source: S,
    reconnect: Reconnect,
    pause: Option<Duration>,
    /// The reader was told of the interruption and has seen nothing good since.
    reported: bool,
    ended: bool,
    ready: VecDeque<Event>,
}

impl<S: Source> Watch<S> {
    async fn next(&mut self) -> Option<Result<Event, StoreError>> {
        while !self.ended {
            if let Some(event) = self.ready.pop_front() {
                self.reported = false;
                return Some(Ok(event));
            }
            if let Some(pause) = self.pause {
                sleep(pause).await;
                self.pause = None;
            }
            let advanced = self.source.advance(&mut self.ready).await;
            let Err(error) = advanced else {
                if !self.ready.is_empty() {
                    self.reconnect.connected();
                }
                continue;
            };
            self.source.disconnect();
            self.ended = matches!(error, StoreError::Denied { .. } | StoreError::Invalid { .. });
            self.pause = Some(self.reconnect.next_delay(&error));
            if !self.reported || self.ended {
                self.reported = true;
                return Some(Err(error));
            }
        }
        None
    }
}

/// Gives up on a request after `limit`.
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

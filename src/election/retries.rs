//! Requests of a candidate that are repeated, and the interruptions that its readers learn of.

#[cfg(any(feature = "etcd", feature = "zookeeper"))]
use std::future::Future;
use std::time::Duration;

use super::publisher::LeadershipPublisher;
use crate::store::{StoreError, reconnect::Reconnect};

/// The retries of one connection. There is no last one.
pub(crate) struct Retries {
    reconnect: Reconnect,
    publisher: LeadershipPublisher,
}

impl Retries {
    /// `connection` names the connection in the log.
    pub fn new(connection: impl Into<String>, publisher: LeadershipPublisher) -> Self {
        Self { reconnect: Reconnect::new(connection), publisher }
    }

    /// Publishes an interruption, and returns the pause before the next try. Pauses grow.
    pub fn failed(&mut self, error: StoreError) -> Duration {
        let pause = self.reconnect.interrupted(&error).pause;
        self.publisher.interrupted(error);
        pause
    }

    /// Notes that the server answered.
    pub fn succeeded(&mut self) {
        self.reconnect.connected();
    }

    /// Repeats a request until it is answered.
    #[cfg(any(feature = "etcd", feature = "zookeeper"))]
    pub async fn insist<T, F: Future<Output = Result<T, StoreError>>>(
        &mut self,
        mut request: impl FnMut() -> F,
    ) -> T {
        loop {
            match request().await {
                Ok(answer) => {
                    self.succeeded();
                    return answer;
                }
                Err(error) => tokio::time::sleep(self.failed(error)).await,
            }
        }
    }
}

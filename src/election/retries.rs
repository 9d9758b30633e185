//! Requests of a candidate that are repeated, and the interruptions that its readers learn of.

#[cfg(any(feature = "etcd", feature = "zookeeper"))]
use std::future::Future;
use std::time::Duration;

use super::publisher::LeadershipPublisher;
#[cfg(any(feature = "etcd", feature = "zookeeper"))]
use crate::clock::Moment;
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

    /// Like [`failed`](Self::failed), for a request that renews something which lasts until then. As
    /// long as it can still be saved, the pause is at most `longest`; a former leader waits as long as
    /// everybody.
    #[cfg(any(feature = "etcd", feature = "zookeeper"))]
    pub fn renewal_failed(&mut self, error: StoreError, until: Moment, longest: Duration) -> Duration {
        let pause = self.failed(error);
        if until.has_passed() { pause } else { pause.min(longest) }
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

#[cfg(all(test, any(feature = "etcd", feature = "zookeeper")))]
mod tests {
    use super::*;
    use crate::store::unavailable;

    #[tokio::test(start_paused = true)]
    async fn only_what_can_be_saved_is_renewed_in_haste() {
        let mut retries = Retries::new("test", LeadershipPublisher::new("test"));
        let (second, started) = (Duration::from_secs(1), Moment::now());
        let until = started + 10 * second;
        let mut tries = 0;
        while !until.has_passed() {
            tokio::time::sleep(retries.renewal_failed(unavailable("gone"), until, second / 2)).await;
            tries += 1;
        }
        assert!(tries >= 20, "{tries} in the ten seconds of the leadership");
        let over = Moment::now();
        let mut tries = 0;
        while Moment::now() - over < 60 * second {
            tokio::time::sleep(retries.renewal_failed(unavailable("gone"), until, second / 2)).await;
            tries += 1;
        }
        assert!(tries <= 40, "{tries} in the minute after it");
    }
}

//! The pauses between the tries to reconnect.
//!
//! Only this module knows the crate `backoff`, which is no longer maintained: a successor replaces
//! it here.

use std::time::Duration;

use backoff::{Clock, backoff::Backoff, exponential::ExponentialBackoff};
use tokio::time::Instant;

use super::{StoreError, causes::Causes};
use crate::clock;

/// A connection that is made again after each interruption, without a last try.
#[derive(Debug)]
pub(crate) struct Reconnect {
    connection: String,
    pauses: Pauses,
    /// The pauses after denials: permissions are given back, but seldom soon.
    pauses_if_denied: Pauses,
    causes: Causes,
    /// The causes that were logged since the connection lasted for a while: one that breaks soon each time
    /// is logged once a minute.
    logged: Causes,
    /// The log says that the connection is interrupted.
    is_logged: bool,
    /// When the connection began to work; kept until the next interruption.
    connected: Option<Instant>,
}

/// A try to connect that failed.
pub(crate) struct Interruption {
    /// The pause before the next try.
    pub pause: Duration,
    /// The readers do not know the cause yet.
    pub is_news: bool,
}

impl Reconnect {
    /// `connection` is its name in the log.
    pub(crate) fn new(connection: impl Into<String>) -> Self {
        Self {
            connection: connection.into(),
            pauses: Pauses::new(FIRST, LONGEST),
            pauses_if_denied: Pauses::new(FIRST_IF_DENIED, LONGEST_IF_DENIED),
            causes: Causes::default(),
            logged: Causes::default(),
            is_logged: false,
            connected: None,
        }
    }

    /// Takes in that a try failed, or that the connection broke. Logs the cause if it is news.
    pub(crate) fn interrupted(&mut self, cause: &StoreError) -> Interruption {
        // A connection that breaks soon after each success must not be made again in haste.
        if self.connected.take().is_some_and(|since| clock::now() - since >= LONGEST) {
            self.pauses.reset();
            self.pauses_if_denied.reset();
            self.logged.end();
        }
        let is_news = self.causes.is_news(cause);
        if is_news && self.logged.is_new(cause) {
            self.is_logged = true;
            tracing::warn!(connection = self.connection, %cause, "interrupted, reconnecting");
        }
        let pauses = match cause {
            StoreError::Denied { .. } => &mut self.pauses_if_denied,
            _ => &mut self.pauses,
        };
        Interruption { pause: pauses.next(), is_news }
    }

    /// Notes that the connection works. When it has worked for a while, the next interruption
    /// starts from the shortest pause.
    pub(crate) fn connected(&mut self) {
        if self.connected.is_none() {
            self.connected = Some(clock::now());
        }
        self.causes.end();
        if std::mem::take(&mut self.is_logged) {
            tracing::info!(connection = self.connection, "reconnected");
        }
    }
}

/// Pauses between tries of which none is the last: exponential, jittered, capped.
#[derive(Debug)]
pub(crate) struct Pauses(ExponentialBackoff<TokioClock>);

impl Pauses {
    /// The first pause before jitter, and the longest after it.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        let clock = TokioClock;
        // The jitter comes on top of the last interval. A cut at the cap would bring half of all
        // clients back at the same instant, and that after long outages.
        let max_interval = longest.div_f64(1.0 + JITTER);
        let first = first.min(max_interval);
        Self(ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            randomization_factor: JITTER,
            multiplier: 2.0,
            max_interval,
            start_time: clock.now(),
            max_elapsed_time: None,
            clock,
        })
    }

    pub(crate) fn next(&mut self) -> Duration {
        // `None` means to give up, and comes only with a `max_elapsed_time`.
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    pub(crate) fn reset(&mut self) {
        self.0.reset();
    }
}

/// tokio's clock, paused time included, in the form that `backoff` asks for.
#[derive(Clone, Copy, Debug)]
struct TokioClock;

impl Clock for TokioClock {
    fn now(&self) -> std::time::Instant {
        clock::now().into_std()
    }
}

/// The first pause, before jitter.
const FIRST: Duration = Duration::from_millis(50);
/// The longest pause, jitter included.
const LONGEST: Duration = Duration::from_secs(5);
/// The first pause after a denial, before jitter.
const FIRST_IF_DENIED: Duration = Duration::from_secs(5);
/// The longest pause after a denial, jitter included.
const LONGEST_IF_DENIED: Duration = Duration::from_secs(60);
/// The part of its nominal length by which a pause may be shorter or longer.
const JITTER: f64 = 0.5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::unavailable;

    impl Reconnect {
        fn next_pause(&mut self) -> Duration {
            self.interrupted(&unavailable("gone")).pause
        }
    }

    #[test]
    fn pauses_grow_to_the_cap_and_never_end() {
        let mut reconnect = Reconnect::new("test");
        let mut nominal = FIRST;
        for _ in 0..1000 {
            let delay = reconnect.next_pause();
            assert!(delay >= nominal.mul_f64(1.0 - JITTER), "{delay:?} of {nominal:?}");
            assert!(
                delay <= nominal.mul_f64(1.0 + JITTER) + Duration::from_nanos(1),
                "{delay:?} of {nominal:?}"
            );
            nominal = (nominal * 2).min(LONGEST.div_f64(1.0 + JITTER));
        }
    }

    #[test]
    fn clients_do_not_retry_in_step() {
        let delays = || {
            let mut reconnect = Reconnect::new("test");
            (0..10).map(|_| reconnect.next_pause()).collect::<Vec<_>>()
        };
        assert_ne!(delays(), delays());
    }

    #[tokio::test(start_paused = true)]
    async fn only_lasting_connections_restore_the_shortest_pause() {
        let mut reconnect = Reconnect::new("test");
        for _ in 0..20 {
            reconnect.connected();
            tokio::time::advance(LONGEST / 2).await;
            reconnect.next_pause();
        }
        reconnect.connected();
        let long = reconnect.next_pause();
        assert!(long >= LONGEST.mul_f64((1.0 - JITTER) / (1.0 + JITTER)), "{long:?}");
        for _ in 0..2 {
            reconnect.connected();
            tokio::time::advance(LONGEST / 2).await;
        }
        let short = reconnect.next_pause();
        assert!(short <= FIRST.mul_f64(1.0 + JITTER) + Duration::from_nanos(1), "{short:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn month_long_outages_change_nothing() {
        let mut reconnect = Reconnect::new("test");
        reconnect.next_pause();
        tokio::time::advance(Duration::from_secs(30 * 24 * 3600)).await;
        assert!(reconnect.next_pause() <= LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn denials_make_the_pauses_long() {
        let denied = || StoreError::Denied { reason: "no rights".into(), source: None };
        let mut reconnect = Reconnect::new("test");
        let pauses: Vec<_> = (0..100).map(|_| reconnect.interrupted(&denied()).pause).collect();
        assert!(pauses[0] <= FIRST_IF_DENIED.mul_f64(1.0 + JITTER) + Duration::from_nanos(1), "{pauses:?}");
        assert!(pauses.iter().all(|pause| (FIRST_IF_DENIED / 2..=LONGEST_IF_DENIED).contains(pause)));
        assert!(pauses[50..].iter().all(|pause| *pause >= LONGEST_IF_DENIED / 4), "{pauses:?}");
        // The server was restarted meanwhile, and is soon found again.
        assert!(reconnect.next_pause() <= 2 * FIRST);
        assert!(reconnect.interrupted(&denied()).pause >= LONGEST_IF_DENIED / 4);
        reconnect.connected();
        tokio::time::advance(LONGEST).await;
        assert!(reconnect.interrupted(&denied()).pause <= 2 * FIRST_IF_DENIED);
    }

    #[tokio::test(start_paused = true)]
    async fn interruptions_are_logged_once() {
        use tracing::Level;

        let log = Log::default();
        let _logs = tracing::subscriber::set_default(log.clone());
        let mut reconnect = Reconnect::new("test");
        reconnect.connected();
        for _ in 0..3 {
            reconnect.next_pause();
        }
        reconnect.connected();
        reconnect.connected();
        tokio::time::advance(LONGEST).await;
        reconnect.next_pause();
        assert_eq!(std::mem::take(&mut *log.0.lock()), [Level::WARN, Level::INFO, Level::WARN]);

        // One that breaks soon each time: a pair of lines a minute.
        for _ in 0..120 {
            reconnect.connected();
            tokio::time::advance(Duration::from_secs(1)).await;
            reconnect.next_pause();
        }
        reconnect.connected();
        let lines = std::mem::take(&mut *log.0.lock());
        assert_eq!(lines, [Level::INFO, Level::WARN, Level::INFO, Level::WARN, Level::INFO]);
    }

    /// Collects the level of each log line.
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<parking_lot::Mutex<Vec<tracing::Level>>>);

    impl tracing::Subscriber for Log {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn event(&self, event: &tracing::Event<'_>) {
            self.0.lock().push(*event.metadata().level());
        }

        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }

        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }
}

//! The speed of news: the smoothed time from the start of our own write to its return through the
//! watch.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct Echo {
    smoothed: Duration,
    measured: bool,
    /// The cap of a sample. A stopped process or a broken watch says nothing about the speed of
    /// news, and every delay that is measured in echoes must stay well below the term.
    longest: Duration,
}

impl Echo {
    /// Creates an echo that is `hint` until the first one is measured.
    pub(super) fn hinted(hint: Duration, longest: Duration) -> Self {
        Self { smoothed: hint.min(longest), measured: false, longest }
    }

    pub(super) fn current(&self) -> Duration {
        self.smoothed
    }

    /// Raises the hint: news cannot be faster than this. Ignored after the first echo.
    pub(super) fn at_least(&mut self, hint: Duration) {
        if !self.measured {
            self.smoothed = self.smoothed.max(hint.min(self.longest));
        }
    }

    /// Learns an echo, smoothed by 1/8 like a round trip time (RFC 6298).
    pub(super) fn measure(&mut self, echo: Duration) {
        let echo = echo.min(self.longest);
        self.smoothed =
            if self.measured { self.smoothed.saturating_mul(7).saturating_add(echo) / 8 } else { echo };
        self.measured = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_echo_replaces_hint_later_ones_are_smoothed() {
        let ms = Duration::from_millis;
        let mut echo = Echo::hinted(ms(6), ms(10_000));
        assert_eq!(echo.current(), ms(6));
        echo.at_least(ms(100));
        echo.at_least(ms(10));
        assert_eq!(echo.current(), ms(100));
        echo.measure(ms(80));
        echo.at_least(ms(1000));
        assert_eq!(echo.current(), ms(80));
        echo.measure(ms(160));
        assert_eq!(echo.current(), ms(90));
    }

    #[test]
    fn long_echo_is_capped() {
        let ms = Duration::from_millis;
        let mut echo = Echo::hinted(ms(50), ms(20));
        assert_eq!(echo.current(), ms(20));
        echo.at_least(ms(30));
        assert_eq!(echo.current(), ms(20));
        echo.measure(ms(100_000));
        assert_eq!(echo.current(), ms(20));
        echo.measure(ms(4));
        assert_eq!(echo.current(), ms(18));
    }
}

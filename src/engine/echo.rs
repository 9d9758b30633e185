//! How fast news travels here: the smoothed time from the start of our own write to its return through the watch.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct Echo {
    smoothed: Duration,
    measured: bool,
    /// A process that was stopped, or a watch that was cut off, says nothing of how fast news travels; and the longest of
    /// all delays that are measured in echoes must stay well below the term.
    longest: Duration,
}

impl Echo {
    /// Before the first echo a hint serves.
    pub fn hinted(hint: Duration, longest: Duration) -> Self {
        Self { smoothed: hint.min(longest), measured: false, longest }
    }

    pub fn current(&self) -> Duration {
        self.smoothed
    }

    /// News can't be faster than this, as far as we can tell without an echo.
    pub fn at_least(&mut self, hint: Duration) {
        if !self.measured {
            self.smoothed = self.smoothed.max(hint.min(self.longest));
        }
    }

    /// Smoothed by 1/8, like a round trip time (RFC 6298).
    pub fn measure(&mut self, echo: Duration) {
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
    fn the_first_echo_replaces_the_hint_and_later_ones_are_smoothed() {
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
    fn what_took_a_pause_counts_for_no_more_than_the_longest() {
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

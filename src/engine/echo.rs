//! How fast news travels here: the smoothed time from the start of our own write to its return through the watch.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct Echo {
    smoothed: Duration,
    measured: bool,
}

impl Echo {
    /// Before the first echo a hint serves.
    pub fn hinted(hint: Duration) -> Self {
        Self { smoothed: hint, measured: false }
    }

    pub fn current(&self) -> Duration {
        self.smoothed
    }

    /// News can't be faster than this, as far as we can tell without an echo.
    pub fn at_least(&mut self, hint: Duration) {
        if !self.measured {
            self.smoothed = self.smoothed.max(hint);
        }
    }

    /// Smoothed by 1/8, like a round trip time (RFC 6298).
    pub fn measure(&mut self, echo: Duration) {
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
        let mut echo = Echo::hinted(ms(6));
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
}

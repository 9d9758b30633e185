//! Connections that break again and again. The client makes each anew immediately if the one before
//! worked, however shortly; only the end of its session stops that.

use std::time::Duration;

use tokio::time::Instant;

use crate::{clock, store::reconnect::Pauses};

/// The breaks of the connections of one store or candidate.
pub(super) struct Breaks {
    last: Option<Instant>,
    /// How many in a row came soon after the one before.
    soon: u32,
    pauses: Pauses,
}

impl Breaks {
    pub fn new() -> Self {
        Self { last: None, soon: 0, pauses: Pauses::new(FIRST, LASTING) }
    }

    /// Notes a break. After too many of them it returns a pause: the session should end, and the
    /// next one begin after the pause.
    pub fn next_pause(&mut self) -> Option<Duration> {
        let now = clock::now();
        if self.last.replace(now).is_some_and(|last| now - last < LASTING) {
            self.soon += 1;
        } else {
            self.soon = 0;
            self.pauses.reset();
        }
        (self.soon >= SOON).then(|| self.pauses.next())
    }
}

/// A connection that works for this long is no short one. It is longer than all pauses.
const LASTING: Duration = Duration::from_secs(6);
/// How many short connections in a row are no accident.
const SOON: u32 = 3;
/// The first pause.
const FIRST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_breaks_in_a_row_end_sessions() {
        let mut breaks = Breaks::new();
        for _ in 0..100 {
            assert_eq!(breaks.next_pause(), None);
            tokio::time::advance(LASTING).await;
        }
        for _ in 0..SOON {
            assert_eq!(breaks.next_pause(), None);
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        for _ in 0..100 {
            let pause = breaks.next_pause().expect("it breaks each time");
            assert!(pause >= FIRST / 2 && pause <= LASTING, "{pause:?}");
            tokio::time::advance(pause.min(LASTING - Duration::from_millis(1))).await;
        }
        tokio::time::advance(LASTING).await;
        assert_eq!(breaks.next_pause(), None);
    }
}

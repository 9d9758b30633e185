//! The causes of an interruption, and which of them are news.

use std::{
    mem::{Discriminant, discriminant},
    time::Duration,
};

use tokio::time::Instant;

use super::StoreError;
use crate::clock;

/// The causes of one interruption, as far as they were told.
#[derive(Debug, Default)]
pub(crate) struct Causes {
    /// Each kind once, and when it was told; the last one is the cause that readers know.
    told: Vec<(Discriminant<StoreError>, Instant)>,
}

impl Causes {
    /// Returns whether readers should be told of this cause: of the first one, and whenever another
    /// kind of error takes its place. Kinds that take turns are told once each, then once a minute.
    pub fn is_news(&mut self, cause: &StoreError) -> bool {
        let is_known = self.told.last().is_some_and(|(kind, _)| *kind == discriminant(cause));
        !is_known && self.is_new(cause)
    }

    /// Returns whether this kind of cause was not told in the last minute.
    pub fn is_new(&mut self, cause: &StoreError) -> bool {
        let (kind, now) = (discriminant(cause), clock::now());
        if self.told.iter().any(|(known, told)| *known == kind && now - *told < AGAIN) {
            return false;
        }
        self.told.retain(|(known, _)| *known != kind);
        self.told.push((kind, now));
        true
    }

    /// Notes that the interruption is over. Returns whether there was one.
    pub fn end(&mut self) -> bool {
        !std::mem::take(&mut self.told).is_empty()
    }
}

/// How long a cause that was told before is no news.
const AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable() -> StoreError {
        StoreError::Unavailable { reason: "gone".into(), source: None }
    }

    fn denied() -> StoreError {
        StoreError::Denied { reason: "wrong password".into(), source: None }
    }

    #[tokio::test(start_paused = true)]
    async fn second_cause_is_told() {
        let mut causes = Causes::default();
        let told = [unavailable(), unavailable(), denied(), denied()].map(|cause| causes.is_news(&cause));
        assert_eq!(told, [true, false, true, false]);
        assert!(causes.end());
        assert!(!causes.end());
        assert!(causes.is_news(&denied()));
    }

    #[tokio::test(start_paused = true)]
    async fn causes_that_take_turns_are_told_once_a_minute() {
        let mut causes = Causes::default();
        let mut told = 0;
        for _ in 0..600 {
            told += u32::from(causes.is_news(&unavailable())) + u32::from(causes.is_news(&denied()));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!((18..=20).contains(&told), "{told} in ten minutes");
    }
}

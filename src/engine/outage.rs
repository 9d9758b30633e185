//! Outages of the store: all attempts pause, then one tests whether the store is back.

use std::time::Duration;

use super::time::Timestamp;

#[derive(Clone, Debug, Default)]
pub(super) struct Outage {
    streak: u32,
    began: Timestamp,
    until: Timestamp,
    last_answer: Timestamp,
    /// When the last outage was over.
    ended: Timestamp,
}

impl Outage {
    /// Returns when the next attempt may start.
    pub(super) fn until(&self) -> Timestamp {
        self.until
    }

    /// Returns whether the store is down, by our last news. One attempt runs at a time then.
    pub(super) fn lasts(&self) -> bool {
        self.streak > 0
    }

    /// Returns whether the store was down, for us, at any time since `since`.
    pub(super) fn was_since(&self, since: Timestamp) -> bool {
        self.lasts() || since < self.ended
    }

    /// Records that the store answered an attempt, whatever the answer.
    pub(super) fn answered(&mut self, now: Timestamp) {
        let ended = if self.lasts() { now } else { self.ended };
        *self = Self { last_answer: now, ended, ..Self::default() };
    }

    /// Records that an attempt that started at `started` learnt nothing. Returns whether this is
    /// news; if so, all attempts pause for `pause(streak)`, with the number of failures in a row.
    ///
    /// It is old news if the store answered since the attempt started, or if the attempt belongs to
    /// a burst for which we pause already.
    pub(super) fn failed(
        &mut self,
        now: Timestamp,
        started: Timestamp,
        pause: impl FnOnce(u32) -> Duration,
    ) -> bool {
        if started < self.last_answer || (self.lasts() && started <= self.began) {
            return false;
        }
        self.streak = self.streak.saturating_add(1);
        self.began = now;
        self.until = now + pause(self.streak);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_nanos(ms * 1_000_000)
    }

    fn ten_times(streak: u32) -> Duration {
        Duration::from_millis(10 * u64::from(streak))
    }

    #[test]
    fn a_burst_of_failures_pauses_once() {
        let mut outage = Outage::default();
        assert!(outage.failed(at(5), at(0), ten_times));
        assert!(!outage.failed(at(6), at(1), ten_times));
        assert!(!outage.failed(at(6), at(5), ten_times), "it started at the moment of the first failure");
        assert_eq!(outage.until(), at(15));
        assert!(outage.failed(at(20), at(15), ten_times));
        assert_eq!(outage.until(), at(40));
    }

    #[test]
    fn answer_ends_outage_and_makes_failures_old_news() {
        let mut outage = Outage::default();
        outage.failed(at(5), at(0), ten_times);
        outage.answered(at(7));
        assert!(!outage.lasts() && outage.until() <= at(7));
        assert!(!outage.failed(at(9), at(6), ten_times));
        assert!(outage.failed(at(9), at(8), ten_times));
    }
}

//! While the store is down nobody writes: everything pauses, then one attempt finds out whether it is back.

use std::time::Duration;

use super::time::Timestamp;

#[derive(Clone, Debug, Default)]
pub(super) struct Outage {
    streak: u32,
    began: Timestamp,
    until: Timestamp,
    last_answer: Timestamp,
    /// When the last one was over.
    ended: Timestamp,
}

impl Outage {
    /// When the next attempt may start.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// The last thing we know is that the store is down: one attempt at a time.
    pub fn lasts(&self) -> bool {
        self.streak > 0
    }

    /// Whether the store has been down, for us, at any time since then.
    pub fn was_since(&self, since: Timestamp) -> bool {
        self.lasts() || since < self.ended
    }

    /// The store answered an attempt, whatever it said.
    pub fn answered(&mut self, now: Timestamp) {
        let ended = if self.lasts() { now } else { self.ended };
        *self = Self { last_answer: now, ended, ..Self::default() };
    }

    /// An attempt that began at `started` learnt nothing. Returns whether that is news; if so, `pause` tells how long to
    /// wait after so many failures in a row.
    ///
    /// It is none if the store answered since the attempt began, or if the attempt belongs to a burst that we paused for
    /// already.
    pub fn failed(
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
    fn an_answer_ends_it_and_makes_older_failures_old_news() {
        let mut outage = Outage::default();
        outage.failed(at(5), at(0), ten_times);
        outage.answered(at(7));
        assert!(!outage.lasts() && outage.until() <= at(7));
        assert!(!outage.failed(at(9), at(6), ten_times));
        assert!(outage.failed(at(9), at(8), ten_times));
    }
}

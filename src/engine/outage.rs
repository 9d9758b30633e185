//! Outages of the store: all attempts pause, then one tests whether the store is back.
//!
//! The failure of a key concerns that key. If another key fails for the first time, too, and the
//! store answered no attempt in between, the store is down. A key that had failed before says
//! nothing new: it starts no outage, and its failures lengthen only the pause of keys like it. So
//! keys that always fail hold up no other key.

use std::time::Duration;

use super::{queue::Class, time::Timestamp};

#[derive(Clone, Debug, Default)]
pub(super) struct Outage {
    /// The key that was the first to fail since the last answer.
    suspect: Option<u64>,
    /// Failures in a row since the store is down.
    streak: u32,
    /// Those of keys that had not failed before.
    clean_streak: u32,
    /// The other end of the queue goes first.
    from_end: bool,
    began: Timestamp,
    until: Timestamp,
    clean_until: Timestamp,
    last_answer: Timestamp,
    /// When the last outage was over.
    ended: Timestamp,
}

/// A key that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed {
    pub(super) key: u64,
    /// Its attempt before that had failed, too.
    pub(super) before: bool,
}

impl Outage {
    /// Returns when the next attempt of a key of this class may start.
    pub(super) fn until(&self, class: Class) -> Timestamp {
        match class {
            Class::Clean => self.clean_until,
            Class::Failed => self.until,
        }
    }

    /// Returns whether the store is down, by our last news. One attempt runs at a time then.
    pub(super) fn lasts(&self) -> bool {
        self.streak > 0
    }

    /// Returns whether the youngest key goes first: keys that fail arrive together, and from the
    /// other end of the queue we are sooner past them. The end changes with each failure in an
    /// outage, and counts for `memory` after it.
    pub(super) fn takes_youngest(&self, now: Timestamp, memory: Duration) -> bool {
        self.from_end && (self.lasts() || now < self.ended + memory)
    }

    /// Returns whether the store was down, for us, at any time since `since`.
    pub(super) fn was_since(&self, since: Timestamp) -> bool {
        self.lasts() || since < self.ended
    }

    /// Records that the store answered an attempt, whatever the answer.
    pub(super) fn answered(&mut self, now: Timestamp) {
        let ended = if self.lasts() { now } else { self.ended };
        *self = Self { last_answer: now, ended, from_end: self.from_end, ..Self::default() };
    }

    /// Records that an attempt that started at `started` learnt nothing. Returns whether this is
    /// news of an outage; if so, all attempts pause for `pause(streak)`, with the number of failures
    /// in a row. `memory` is as in [`takes_youngest`](Self::takes_youngest).
    ///
    /// It is no news if the store answered since the attempt started, if the attempt belongs to a
    /// burst for which we pause already, or if no other key fails.
    pub(super) fn failed(
        &mut self,
        now: Timestamp,
        started: Timestamp,
        failed: Failed,
        memory: Duration,
        pause: impl FnOnce(u32) -> Duration,
    ) -> bool {
        if started < self.last_answer || (self.lasts() && started <= self.began) {
            return false;
        }
        if !self.lasts() {
            if failed.before {
                return false;
            }
            if *self.suspect.get_or_insert(failed.key) == failed.key {
                return false;
            }
        }
        if !failed.before {
            self.from_end = !self.takes_youngest(now, memory);
        }
        self.began = now;
        self.streak = self.streak.saturating_add(1);
        if failed.before {
            self.until = now + pause(self.streak);
        } else {
            self.clean_streak = self.clean_streak.saturating_add(1);
            self.clean_until = now + pause(self.clean_streak);
            self.until = self.until.max(self.clean_until);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_nanos(ms * 1_000_000)
    }

    const MEMORY: Duration = Duration::from_millis(100);

    fn ten_times(streak: u32) -> Duration {
        Duration::from_millis(10 * u64::from(streak))
    }

    fn first(key: u64) -> Failed {
        Failed { key, before: false }
    }

    fn again(key: u64) -> Failed {
        Failed { key, before: true }
    }

    #[test]
    fn a_burst_of_failures_pauses_once() {
        let mut outage = Outage::default();
        assert!(!outage.failed(at(4), at(0), first(0), MEMORY, ten_times));
        assert!(outage.failed(at(5), at(0), first(1), MEMORY, ten_times));
        assert!(!outage.failed(at(6), at(1), first(2), MEMORY, ten_times));
        assert!(
            !outage.failed(at(6), at(5), first(3), MEMORY, ten_times),
            "it started at the moment of the outage"
        );
        assert_eq!(outage.until(Class::Clean), at(15));
        assert!(outage.failed(at(20), at(15), first(4), MEMORY, ten_times));
        assert_eq!(outage.until(Class::Clean), at(40));
        assert_eq!(outage.until(Class::Failed), at(40));
    }

    #[test]
    fn one_key_that_fails_is_no_outage() {
        let mut outage = Outage::default();
        for i in 0..10 {
            assert!(!outage.failed(at(i), at(i), first(7), MEMORY, ten_times));
            assert!(!outage.failed(at(i), at(i), again(8), MEMORY, ten_times), "it says nothing new");
        }
        assert!(!outage.lasts() && outage.until(Class::Clean) == at(0));
    }

    #[test]
    fn keys_that_failed_before_pause_only_their_like() {
        let mut outage = Outage::default();
        outage.failed(at(1), at(1), first(1), MEMORY, ten_times);
        outage.failed(at(1), at(1), first(2), MEMORY, ten_times);
        assert!(outage.failed(at(100), at(50), again(1), MEMORY, ten_times));
        assert_eq!((outage.until(Class::Clean), outage.until(Class::Failed)), (at(11), at(120)));
    }

    #[test]
    fn each_failure_changes_the_end_for_a_while() {
        let mut outage = Outage::default();
        outage.failed(at(1), at(1), first(1), MEMORY, ten_times);
        assert!(!outage.takes_youngest(at(1), MEMORY));
        outage.failed(at(1), at(1), first(2), MEMORY, ten_times);
        assert!(outage.takes_youngest(at(1), MEMORY));
        outage.answered(at(20));
        assert!(outage.takes_youngest(at(119), MEMORY));
        assert!(!outage.takes_youngest(at(120), MEMORY));
        outage.failed(at(30), at(30), first(3), MEMORY, ten_times);
        outage.failed(at(30), at(30), first(4), MEMORY, ten_times);
        assert!(!outage.takes_youngest(at(30), MEMORY));
    }

    #[test]
    fn answer_ends_outage_and_makes_failures_old_news() {
        let mut outage = Outage::default();
        outage.failed(at(5), at(0), first(1), MEMORY, ten_times);
        outage.failed(at(5), at(0), first(2), MEMORY, ten_times);
        outage.answered(at(7));
        assert!(!outage.lasts() && outage.until(Class::Failed) <= at(7));
        assert!(!outage.failed(at(9), at(6), first(1), MEMORY, ten_times));
        assert!(!outage.failed(at(9), at(8), first(1), MEMORY, ten_times), "it is the first");
        assert!(outage.failed(at(9), at(8), first(2), MEMORY, ten_times));
    }
}

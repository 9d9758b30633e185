//! Notices that nothing of a lease succeeds although something is wanted.

use std::{hash::Hash, time::Duration};

use crate::engine::{Engine, Timestamp};

/// How long nothing may succeed, while a key is pending, before somebody should look.
const PATIENCE: Duration = Duration::from_secs(10);

/// The look at whether a lease is stuck. It is due only while something is pending, and whatever
/// succeeds costs it nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stall {
    /// When to look; [`Timestamp::MAX`] if nothing is pending, or if it was reported.
    due: Timestamp,
    /// When the lease was last found stuck.
    reported: Option<Timestamp>,
}

impl Stall {
    pub(super) fn none() -> Self {
        Self { due: Timestamp::MAX, reported: None }
    }

    /// Returns whether the lease was found stuck and nothing has succeeded since.
    pub(super) fn lasts<K: Hash + Eq + Clone, J>(&self, engine: &Engine<K, J>) -> bool {
        self.reported.is_some_and(|at| engine.last_success() < at)
    }

    /// Returns when to [look](Self::look) next; [`Timestamp::MAX`] if no look is needed.
    pub(super) fn due<K: Hash + Eq + Clone, J>(
        &mut self,
        now: Timestamp,
        engine: &Engine<K, J>,
    ) -> Timestamp {
        if engine.is_empty() && engine.in_flight() == 0 || self.lasts(engine) {
            self.due = Timestamp::MAX;
        } else if self.due == Timestamp::MAX {
            self.due = now + PATIENCE;
        }
        self.due
    }

    /// Looks, if that is due: returns true, once, if nothing has succeeded and the oldest key has
    /// been pending for long. Otherwise this is looked at again when it may be so.
    pub(super) fn look<K: Hash + Eq + Clone, J>(&mut self, now: Timestamp, engine: &Engine<K, J>) -> bool {
        if now < self.due {
            return false;
        }
        if now - self.due > PATIENCE {
            // The machine was suspended: nothing could succeed.
            self.due = now + PATIENCE;
            return false;
        }
        let Some((_, since)) = engine.oldest_pending() else {
            self.due = Timestamp::MAX;
            return false;
        };
        self.due = since.max(engine.last_success()) + PATIENCE;
        let is_stuck = self.due <= now;
        if is_stuck {
            self.due = Timestamp::MAX;
            self.reported = Some(now);
        }
        is_stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LeaseBuilder, Outcome};

    fn at(secs: u64) -> Timestamp {
        Timestamp::from_nanos(secs * 1_000_000_000)
    }

    /// A lease that was given a key at 100 s.
    fn pending() -> (Stall, Engine<&'static str, ()>) {
        let mut engine = Engine::new(LeaseBuilder::new("test").build().unwrap());
        engine.handle_try(at(100), "key", ());
        (Stall::none(), engine)
    }

    #[test]
    fn idle_lease_has_no_timer() {
        let (mut stall, mut engine) = pending();
        assert_eq!(stall.due(at(100), &engine), at(110));
        engine.handle_remove(at(101), &"key");
        assert_eq!(stall.due(at(101), &engine), Timestamp::MAX);
        assert!(!stall.look(at(110), &engine) && !stall.lasts(&engine));
    }

    #[test]
    fn stuck_lease_is_found_once_until_something_succeeds() {
        let (mut stall, mut engine) = pending();
        stall.due(at(100), &engine);
        assert!(!stall.look(at(109), &engine));
        assert!(stall.look(at(110), &engine));
        assert!(stall.lasts(&engine) && stall.due(at(110), &engine) == Timestamp::MAX);
        let attempt = engine.poll_attempt(at(111)).unwrap();
        engine.handle_outcome(at(112), attempt.id, Outcome::Written.into(), ());
        assert!(!stall.lasts(&engine));
        engine.handle_try(at(200), "key", ());
        assert_eq!(stall.due(at(200), &engine), at(210));
        assert!(stall.look(at(210), &engine));
    }

    #[test]
    fn success_and_younger_keys_postpone_the_look() {
        let (mut stall, mut engine) = pending();
        stall.due(at(100), &engine);
        engine.handle_extend(at(104), &"other", None);
        assert!(!stall.look(at(110), &engine));
        assert_eq!(stall.due(at(110), &engine), at(114));
        engine.handle_remove(at(111), &"key");
        engine.handle_try(at(112), "younger", ());
        assert!(!stall.look(at(114), &engine));
        assert_eq!(stall.due(at(114), &engine), at(122));
    }

    #[test]
    fn suspended_machine_is_not_stuck() {
        let (mut stall, engine) = pending();
        stall.due(at(100), &engine);
        assert!(!stall.look(at(3_600), &engine));
        assert_eq!(stall.due(at(3_600), &engine), at(3_610));
        assert!(stall.look(at(3_610), &engine));
    }
}

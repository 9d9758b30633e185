//! When a follower takes the lease, and when it does a single key beside a leader that lives: in virtual time.

use std::time::Duration;

use writerlease::{
    Builder, Outcome,
    engine::{Engine, Role, Timestamp},
};

type Key = &'static str;

fn at(ms: u64) -> Timestamp {
    Timestamp::ZERO + Duration::from_millis(ms)
}

/// A follower that wants two keys at 0, of which the leader does the first at 20 ms.
fn follower(seed: u64) -> Engine<Key, ()> {
    let mut engine = Engine::new(Builder::new("follower").seed(seed).build().unwrap());
    engine.handle_extend(at(0), &"elsewhere", None);
    engine.handle_try(at(0), "done", ());
    engine.handle_try(at(0), "pending", ());
    engine.handle_extend(at(20), &"done", None);
    // A second loss in a row is a backoff that only patience cuts short.
    for _ in 0..4 {
        engine.handle_extend(at(20), &"elsewhere", None);
    }
    assert!(engine.lease_end() > at(0) + Duration::from_secs(4), "{:?}", engine.lease_end());
    engine
}

/// When the next attempt starts, if nothing happens before `until`, and its outcome is that it landed.
fn next_write(engine: &mut Engine<Key, ()>, until: Timestamp) -> Option<(Timestamp, Key)> {
    let now = engine.poll_timeout().filter(|now| *now < until)?;
    let start = engine.poll_attempt(now)?;
    engine.handle_outcome(now + Duration::from_millis(2), start.id, Outcome::Extend.into(), start.work);
    Some((now, start.key))
}

#[test]
fn a_leader_that_dies_in_the_middle_of_a_round_is_replaced_not_worked_around() {
    for seed in 0..20 {
        let mut engine = follower(seed);
        let suspicion = at(20) + engine.patience();
        assert_eq!(next_write(&mut engine, Timestamp::MAX), Some((suspicion, "pending")));
        assert_eq!(engine.role(), Role::Leader, "it was silent for as long as its followers are patient");
    }
}

#[test]
fn a_new_leader_gets_the_time_to_do_what_its_predecessor_left() {
    for seed in 0..20 {
        let mut engine = follower(seed);
        // Somebody else was the first to suspect, just before we would have.
        let takeover = at(10) + engine.patience();
        engine.handle_extend(takeover, &"elsewhere", None);
        assert!(next_write(&mut engine, takeover + Duration::from_millis(500)).is_none());
        engine.handle_extend(takeover + Duration::from_millis(50), &"pending", None);
        assert!(engine.is_empty());
    }
}

#[test]
fn a_key_that_a_living_leader_does_not_do_is_written_beside_it() {
    for seed in 0..20 {
        let mut engine = follower(seed);
        let longest = engine.patience() * 3 + Duration::from_millis(400);
        let mut written = None;
        for sign in 1.. {
            let now = at(20 + 400 * sign);
            written = next_write(&mut engine, now);
            if written.is_some() {
                break;
            }
            engine.handle_extend(now, &"elsewhere", None);
        }
        let (time, key) = written.unwrap();
        assert_eq!((key, engine.role()), ("pending", Role::Follower));
        assert!(time <= at(0) + longest, "seed {seed}: {time:?}");
    }
}

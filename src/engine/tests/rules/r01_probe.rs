//! Rule 1: probe when competing, fan out when leading.

use super::*;

#[test]
fn election_allows_exactly_one_attempt_in_flight() {
    let mut world = World::new(1);
    world.wants_many(20);
    for i in 0..20 {
        let probe = world.sleeps_for_one();
        assert_eq!(probe.key, i.to_string());
        world.pass(ms(1));
        assert!(world.polls().is_empty());
        world.ends(probe, Outcome::Unchanged);
    }
}

#[test]
fn expired_leader_has_one_attempt_until_it_succeeds() {
    let mut world = World::leading_wide(1, 16);
    world.wants_many(40);
    world.now = world.engine.lease_end();
    for _ in 0..3 {
        let probe = world.one();
        world.ends(probe, Outcome::Unchanged);
    }
    let probe = world.one();
    world.ends(probe, Outcome::Written);
    assert_eq!(world.engine.window(), 2, "slow start again, whatever the window was");
    assert_eq!(world.polls().len(), 2);
}

#[test]
fn expired_leader_first_waits_for_its_earlier_attempts() {
    let mut world = World::leading_wide(1, 2);
    world.now = Timestamp::from_nanos(world.engine.lease_end().as_nanos() - 1);
    world.wants_many(3);
    let mut running = world.polls();
    assert_eq!(running.len(), 2);
    world.pass(ms(1));
    assert!(!world.leads());
    let (second, first) = (running.pop().unwrap(), running.pop().unwrap());
    world.ends(first, Outcome::Unchanged);
    assert!(world.polls().is_empty());
    world.ends(second, Outcome::Unchanged);
    assert_eq!(world.one().key, "2");
}

#[test]
fn expired_follower_has_exactly_one_attempt_in_flight() {
    let mut world = World::following(1);
    world.wants_many(20);
    for i in 0..20 {
        let probe = world.sleeps_for_one();
        assert_eq!(probe.key, i.to_string());
        world.pass(ms(1));
        assert!(world.polls().is_empty());
        world.ends(probe, Outcome::Unchanged);
    }
}

#[test]
fn window_grows_by_one_per_success_to_concurrency() {
    let mut world = World::new(1);
    world.wants_many(200);
    let probe = world.sleeps_for_one();
    world.ends(probe, Outcome::Written);
    let mut running = std::collections::VecDeque::from(world.polls());
    for successes in 1..100 {
        let window = successes.min(16);
        assert_eq!((world.engine.window(), running.len()), (window, window));
        let attempt = running.pop_front().unwrap();
        world.ends(attempt, Outcome::Written);
        running.extend(world.polls());
    }
}

#[test]
fn window_never_falls_below_one() {
    let mut world = World::leading_wide(1, 3);
    world.wants_many(3);
    for window in [1, 1, 1] {
        let running = world.sleeps();
        for attempt in running {
            world.ends(attempt, Outcome::Conflict);
        }
        assert_eq!(world.engine.window(), window);
    }
}

#[test]
fn attempts_before_the_halving_belong_to_the_burst() {
    let mut world = World::leading_wide(1, 8);
    world.wants_many(20);
    let mut burst = world.polls();
    world.ends(burst.remove(0), Outcome::Conflict);
    assert_eq!(world.engine.window(), 4);
    for attempt in burst.drain(..4) {
        world.ends(attempt, Outcome::Unchanged);
    }
    let after = world.one();
    for attempt in burst {
        world.ends(attempt, Outcome::Conflict);
    }
    assert_eq!(world.engine.window(), 4, "the same burst");
    world.ends(after, Outcome::Conflict);
    assert_eq!(world.engine.window(), 2, "the next one");
}

#[test]
fn hung_attempt_frees_slot_but_bars_key() {
    for mut world in [World::new(1), World::leading(1), World::following(1)] {
        let (first, _) = world.wants("hung");
        world.wants("other");
        let hung = world.sleeps_for_one();
        assert_eq!(hung.deadline, world.now + secs(10));
        let (newer, _) = world.wants("hung");
        assert!(world.polls().is_empty());
        world.now = Timestamp::from_nanos(hung.deadline.as_nanos() - 1);
        assert!(world.polls().is_empty());
        world.now = hung.deadline;
        let other = world.one();
        assert_eq!(other.key, "other");
        assert_eq!(world.engine.in_flight(), 2);
        world.ends(other, Outcome::Unchanged);
        world.pass(TERM);
        assert!(world.polls().is_empty(), "its key is barred");
        assert_eq!(world.ends(hung, Outcome::Unchanged), Some(first));
        assert_eq!(world.sleeps_for_one().job, newer);
    }
}

#[test]
fn hung_attempts_take_no_room_in_the_window() {
    let mut world = World::leading_wide(1, 4);
    world.wants_many(12);
    let hung = world.polls();
    world.pass(secs(10));
    assert_eq!(world.polls().len(), 4);
    assert_eq!(world.engine.in_flight(), 8);
    for attempt in hung {
        world.ends(attempt, Outcome::Unchanged);
    }
    assert_eq!(world.engine.in_flight(), 4);
    assert!(world.polls().is_empty());
}

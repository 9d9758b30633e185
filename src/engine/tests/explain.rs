//! The obstacles that pending keys wait for.

use super::*;

fn explain(world: &World, key: &str) -> Explanation {
    world.engine.explain(world.now, &key.to_owned()).expect("the key is pending")
}

/// The obstacle of a key, and until when it lasts.
fn waits(world: &World, key: &str) -> (Option<Obstacle>, Option<Timestamp>) {
    let explanation = explain(world, key);
    (explanation.obstacle, explanation.time_left.map(|left| world.now + left))
}

#[test]
fn only_pending_keys_are_explained() {
    let mut world = World::leading(1);
    let explained = |world: &World| world.engine.explain(world.now, &"key".to_owned()).is_some();
    assert!(!explained(&world));
    world.wants("key");
    assert_eq!(waits(&world, "key"), (None, Some(world.now)), "it may start now");
    let attempt = world.one();
    world.removes("key");
    assert!(!explained(&world), "the attempt in flight is not repeated");
    world.pass(secs(1));
    world.wants("key");
    assert_eq!(explain(&world, "key").pending_for, Duration::ZERO);
    assert_eq!(explain(&world, "key").running_for, Some(secs(1)), "the newer job waits for the attempt");
    world.ends(attempt, Outcome::Written);
    let attempt = world.one();
    world.ends(attempt, Outcome::Written);
    assert!(!explained(&world), "it is done");
}

#[test]
fn attempt_in_flight_is_the_obstacle() {
    let mut world = World::leading(1);
    world.wants("key");
    let attempt = world.one();
    world.pass(secs(12));
    assert_eq!(waits(&world, "key"), (Some(Obstacle::Attempt), None));
    let Explanation { pending_for, attempts, running_for, .. } = explain(&world, "key");
    assert_eq!((pending_for, attempts, running_for), (secs(12), 1, Some(secs(12))));
    world.ends(attempt, Outcome::Written);
}

#[test]
fn setbacks_are_told_apart() {
    for (outcome, setback, setbacks) in [
        (Outcome::Conflict, Setback::Conflict, 1),
        (Outcome::Failed, Setback::Failed, 1),
        (Outcome::Denied, Setback::Denied, 0),
    ] {
        let mut world = World::leading(1);
        world.wants("key");
        let attempt = world.one();
        world.ends(attempt, outcome);
        let explanation = explain(&world, "key");
        assert_eq!((explanation.last_setback, explanation.setbacks), (Some(setback), setbacks));
        assert_eq!(waits(&world, "key"), (Some(Obstacle::Backoff), world.engine.queue.next_due()));
    }
}

#[test]
fn denied_key_keeps_its_age_and_is_tried_each_minute() {
    let mut world = World::leading(1);
    world.wants("key");
    let start = world.now;
    for minute in 1..=3 {
        let attempt = world.sleeps_for_one();
        world.ends(attempt, Outcome::Denied);
        let explanation = explain(&world, "key");
        assert_eq!(explanation.time_left, Some(secs(60)));
        assert_eq!((explanation.attempts, explanation.pending_for), (minute, world.now - start));
        assert_eq!(world.engine.oldest_pending(), Some((&"key".to_owned(), start)));
        world.now = world.engine.queue.next_due().unwrap();
    }
    assert_eq!(world.engine.counters().denied, 3);
}

#[test]
fn outage_is_the_obstacle_of_ready_and_failed_keys() {
    let mut world = World::leading_wide(1, 2);
    world.wants_all(["a", "b", "fresh"]);
    let out = world.polls();
    world.end_all(out, Outcome::Failed);
    for key in ["a", "b", "fresh"] {
        let (obstacle, until) = waits(&world, key);
        assert_eq!(obstacle, Some(Obstacle::Outage));
        assert!(until.unwrap() >= world.engine.outage.until(Class::Clean));
    }
    let test = world.sleeps_for_one();
    for key in ["a", "b", "fresh"].into_iter().filter(|key| *key != test.key) {
        assert_eq!(explain(&world, key).obstacle, Some(Obstacle::Outage), "one attempt tests the store");
    }
}

#[test]
fn election_delay_is_the_obstacle_of_a_first_key() {
    let mut world = World::new(1);
    world.wants("key");
    assert_eq!(waits(&world, "key"), (Some(Obstacle::ElectionDelay), world.engine.poll_timeout()));
}

#[test]
fn living_leader_is_the_obstacle_of_a_follower() {
    let mut world = World::long_following(1);
    world.wants_all(["theirs", "nobody's"]);
    assert_eq!(explain(&world, "theirs").incumbent, Incumbent::Other);
    assert_eq!(explain(&world, "theirs").obstacle, Some(Obstacle::Incumbent));
    assert_eq!(explain(&world, "nobody's").incumbent, Incumbent::Nobody);
    let (obstacle, until) = waits(&world, "nobody's");
    assert_eq!(obstacle, Some(Obstacle::Leader));
    world.removes("theirs");
    let _ = world.sleeps_for_one();
    assert_eq!(Some(world.now), until);
}

#[test]
fn keys_beyond_the_window_wait_for_a_slot() {
    let mut world = World::leading(1);
    world.wants_all(["a", "b"]);
    let a = world.one();
    assert_eq!(waits(&world, "b"), (Some(Obstacle::Slot), Some(a.deadline)));
}

#[test]
fn lost_election_is_the_obstacle_of_all_keys() {
    let mut world = World::new(1);
    world.engine.handle_not_elected(world.now);
    world.wants("key");
    assert_eq!(waits(&world, "key"), (Some(Obstacle::NotElected), None));
}

#[test]
fn planned_repetition_has_no_age() {
    let mut world = World::leading(1);
    world.wants("key");
    let attempt = world.one();
    world.ends(attempt, Outcome::Written.retry_after(secs(30)));
    let explanation = explain(&world, "key");
    assert_eq!((explanation.pending_for, explanation.time_left), (Duration::ZERO, Some(secs(30))));
    assert_eq!((explanation.obstacle, explanation.last_setback), (Some(Obstacle::Backoff), None));
}

#[test]
fn oldest_key_is_found_wherever_it_is() {
    let mut world = World::leading_wide(1, 2);
    assert_eq!(world.engine.oldest_pending(), None);
    let oldest = |world: &World| world.engine.oldest_pending().map(|(key, _)| key.clone());
    for key in ["a", "b", "c"] {
        world.wants(key);
        world.pass(ms(1));
    }
    let mut out = world.polls();
    assert_eq!(oldest(&world).unwrap(), "a", "in flight");
    let (b, a) = (out.pop().unwrap(), out.pop().unwrap());
    world.ends(a, Outcome::Failed);
    assert_eq!(oldest(&world).unwrap(), "a", "in its backoff");
    assert_eq!(world.engine.failing(), 1);
    world.ends(b, Outcome::Failed);
    world.removes("a");
    world.now = world.engine.queue.next_due().unwrap();
    world.engine.queue.release_due(world.now, |_| ());
    assert_eq!(oldest(&world).unwrap(), "b", "ready after a failure");
    world.removes("b");
    assert_eq!(oldest(&world).unwrap(), "c", "never attempted");
}

#[test]
fn success_is_whatever_does_a_job() {
    let mut world = World::leading(1);
    for (outcome, succeeds) in [
        (Outcome::Written, true),
        (Outcome::WrittenByOther, true),
        (Outcome::Unchanged, true),
        (Outcome::Conflict, false),
        (Outcome::Failed, false),
        (Outcome::Denied, false),
    ] {
        world.pass(ms(1));
        world.wants("key");
        let attempt = world.sleeps_for_one();
        world.pass(ms(1));
        world.ends(attempt, outcome.done());
        assert_eq!(world.engine.last_success() == world.now, succeeds, "{outcome:?}");
    }
    world.pass(ms(1));
    world.evidence("key");
    assert_eq!(world.engine.last_success(), world.now);
}

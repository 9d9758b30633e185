//! The hand-over of shards, after a change of the roster.

use super::*;
use crate::engine::roster::RosterRequest;

#[test]
fn key_in_flight_is_given_up_with_its_shard() {
    let mut world = World::leading(1);
    world.sees(&["us"]);
    world.wants_all(["given", "kept"]);
    let given = world.one();
    world.pass(ms(1));
    world.sees(&["them"]);
    world.pass(ms(1));
    world.ends(given, Outcome::Written);
    assert_eq!(world.engine.incumbent(&"given".into()), Incumbent::Other);
    world.sees(&["us"]);
    let kept = world.sleeps_for_one();
    world.pass(ms(1));
    world.ends(kept, Outcome::Written);
    assert_eq!(world.engine.incumbent(&"kept".into()), Incumbent::Us);
}

#[test]
fn last_writes_of_a_predecessor_shorten_no_lease() {
    let mut world = World::following(1);
    world.sees(&["them"]);
    world.pass(19 * ECHO);
    world.evidence("last");
    assert_eq!(world.lease(), TERM - 19 * ECHO);
    assert_eq!(world.engine.incumbent(&"last".into()), Incumbent::Other);
    world.pass(ECHO);
    world.evidence("first");
    assert_eq!(world.lease(), TERM, "from here on it is the new one that writes");
}

#[test]
fn predecessor_that_skipped_a_key_is_forgotten() {
    let mut world = World::following(1);
    world.sees(&["them"]);
    world.wants("left");
    for _ in 0..100 {
        world.pass(ms(100));
        world.evidence("theirs");
    }
    world.sees(&["others"]);
    world.wants("young");
    world.engine.poll_roster(world.now);
    assert!(world.polls().is_empty(), "the new one gets our patience");
}

#[test]
fn leader_strikes_off_who_is_silent_for_a_term() {
    let mut world = World::following(1);
    world.sees(&["them"]);
    // Nobody had anything to do until the lease ran out.
    world.pass(TERM + ms(1));
    for struck in [false, false, true] {
        world.wants("key");
        let mut requests: Vec<_> = std::iter::from_fn(|| world.engine.poll_roster(world.now)).collect();
        let attempt = world.sleeps_for_one();
        world.pass(ms(1));
        world.ends(attempt, Outcome::Written);
        requests.extend(std::iter::from_fn(|| world.engine.poll_roster(world.now)));
        let strike = |request: &RosterRequest| matches!(request, RosterRequest::StrikeOff(_));
        assert_eq!(requests.iter().any(strike), struck);
        world.pass(TERM * 2 / 3);
    }
}

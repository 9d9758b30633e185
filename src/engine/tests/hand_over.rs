//! The hand-over of shards, after a change of the roster.

use super::world::member;
use super::*;
use crate::engine::roster::{Member, RosterChange, RosterRequest};

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
fn leader_of_another_s_shard_asks_after_a_term() {
    let mut world = World::following(1);
    world.sees(&["them"]);
    // Nobody had anything to do until the lease ran out.
    world.pass(TERM + ms(1));
    for asked in [false, false, true] {
        world.wants("key");
        let mut requests: Vec<_> = std::iter::from_fn(|| world.engine.poll_roster(world.now)).collect();
        let attempt = world.sleeps_for_one();
        world.pass(ms(1));
        world.ends(attempt, Outcome::Written);
        world.pass(16 * ECHO);
        requests.extend(std::iter::from_fn(|| world.engine.poll_roster(world.now)));
        let asks = |request: &RosterRequest| matches!(request, RosterRequest::Suspect(_));
        assert_eq!(requests.iter().any(asks), asked);
        world.pass(TERM * 2 / 3);
    }
}

/// A member that stood still gets back what others took over meanwhile.
#[test]
fn member_that_claims_its_work_gets_it_back() {
    let mut world = World::following(1);
    world.sees(&["them"]);
    world.pass(secs(1));
    world.engine.handle_join_denied(world.now);
    world.wants("key");
    let attempt = world.sleeps_for_one();
    world.ends(attempt, Outcome::Written);
    let claims = Member { claims: 1, ..member("them") };
    assert_eq!(
        world.engine.handle_members(world.now, vec![claims]),
        RosterChange::default(),
        "no turn moved"
    );
    let (incumbent, role) = (world.engine.incumbent(&"key".into()), world.engine.role());
    assert_eq!((incumbent, role), (Incumbent::Other, Role::Follower));
}

#[test]
fn member_whose_work_others_do_claims_it_back_when_it_is_asked() {
    let mut world = World::following(1);
    world.sees(&["us"]);
    world.pass(secs(1));
    for wanted in [false, true] {
        if wanted {
            world.wants("key");
        }
        world.evidence("key");
        let asked = Member { is_suspected: true, ..member("us") };
        world.engine.handle_members(world.now, vec![asked]);
        let request = world.engine.poll_roster(world.now).unwrap();
        let claims = u32::from(wanted);
        assert_eq!(request, RosterRequest::Join(Member { claims, ..member("us") }));
        world.engine.handle_members(world.now, vec![member("us")]);
    }
    world.engine.handle_members(world.now, vec![Member { claims: 1, ..member("us") }]);
    assert_eq!(world.engine.incumbent(&"key".into()), Incumbent::Nobody);
    world.wants("key");
    assert!(world.engine.poll_attempt(world.now).is_none(), "what others have in flight ends first");
    world.pass(2 * ECHO);
    assert!(world.engine.poll_attempt(world.now).is_some());
}

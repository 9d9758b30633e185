//! Rule 9: the lease is counted from the start of the attempt.

use super::*;

#[test]
fn lease_counts_from_the_start_of_the_attempt() {
    for mut world in [World::new(1), World::leading(1), World::following(1)] {
        world.wants("a");
        let attempt = world.sleeps_for_one();
        let started = world.now;
        world.pass(secs(9));
        world.ends(attempt, Outcome::Written);
        assert_eq!(world.engine.lease_end(), started + TERM);
    }
}

#[test]
fn earlier_attempt_does_not_shorten_the_lease() {
    let mut world = World::leading_wide(1, 2);
    world.wants("slow");
    let slow = world.one();
    world.pass(secs(5));
    world.lands("quick");
    let before = world.standing();
    world.ends(slow, Outcome::Written);
    assert_eq!(world.standing(), Standing { window: before.window + 1, ..before });
}

#[test]
fn attempt_longer_than_the_term_extends_nothing() {
    for late in [ms(0), ms(1)] {
        for mut world in [World::new(1), World::leading(1), World::following(1)] {
            let (work, _) = world.wants("a");
            let attempt = world.sleeps_for_one();
            let before = world.standing();
            world.pass(TERM + late);
            assert_eq!(world.ends(attempt, Outcome::Written), Some(work), "its work is done all the same");
            assert_eq!(world.standing(), before);
            assert!(!world.leads());
        }
    }
}

#[test]
fn attempt_past_its_deadline_can_still_win() {
    for mut world in [World::new(1), World::following(1)] {
        world.wants("a");
        let attempt = world.sleeps_for_one();
        let started = world.now;
        world.pass(secs(59));
        world.polls();
        world.ends(attempt, Outcome::Written);
        assert!(world.leads());
        assert_eq!(world.engine.lease_end(), started + TERM);
    }
}

//! Rule 6: patience, per key.

use super::*;

/// Lets the leader write a key `age` after we requested it.
fn sample(world: &mut World, key: &str, age: Duration) {
    world.wants(key);
    world.pass(age);
    world.evidence(key);
}

#[test]
fn patience_starts_at_one_second_and_is_learnt() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        assert_eq!(world.unspread(), secs(1));
        sample(&mut world, "a", ms(400));
        assert_eq!(world.unspread().as_micros(), 400_000 + 4 * 200_000);
        sample(&mut world, "a", ms(400));
        assert_eq!(world.unspread().as_micros(), 400_000 + 4 * 150_000);
        sample(&mut world, "a", ms(800));
        assert_eq!(world.unspread().as_micros(), 450_000 + 4 * 212_500);
    }
}

#[test]
fn samples_run_from_the_first_unfulfilled_try() {
    let mut world = World::long_following(1);
    world.wants("a");
    world.pass(ms(300));
    world.wants("a");
    world.pass(ms(100));
    world.evidence("a");
    assert_eq!(world.unspread(), ms(400) * 3);
    world.wants("b");
    world.pass(ms(300));
    world.removes("b");
    sample(&mut world, "b", ms(400));
    assert_eq!(world.unspread(), ms(400) + ms(150) * 4, "a removed request is no longer unfulfilled");
}

#[test]
fn evidence_without_pending_work_gives_no_sample() {
    let mut world = World::long_following(1);
    let patience = world.engine.patience();
    world.pass(ms(100));
    world.evidence("never wanted");
    assert_eq!(world.engine.patience(), patience);
}

#[test]
fn keys_that_we_attempted_give_no_sample() {
    for returned in [false, true] {
        let mut world = World::following(1);
        let patience = world.engine.patience();
        world.wants("a");
        let attempt = world.sleeps_for_one();
        world.pass(ms(5));
        if returned {
            world.ends(attempt, Outcome::Conflict);
        }
        world.wants("a");
        world.pass(ms(5));
        world.evidence("a");
        assert_eq!(world.engine.patience(), patience);
    }
}

/// A replica that is cut off for a minute sees writes that are late because of the outage. They say
/// nothing about the pace of the leader.
#[test]
fn waits_through_an_outage_give_no_sample() {
    let mut world = World::following(1);
    world.wants_all(["waits", "other"]);
    let attempt = world.sleeps_for_one();
    assert_eq!(attempt.key, "waits");
    world.ends(attempt, Outcome::Failed);
    let attempt = world.sleeps_for_one();
    assert_eq!(attempt.key, "other");
    world.wants("later");
    world.ends(attempt, Outcome::Failed);
    let patience = world.engine.patience();
    // Another replica can still write, or can again.
    world.pass(secs(40));
    world.evidence("later");
    assert_eq!(world.engine.patience(), patience);
    let attempt = world.sleeps_for_one();
    world.ends(attempt, Outcome::Conflict);
    world.pass(secs(1));
    world.evidence("waits");
    world.evidence("other");
    sample(&mut world, "a", ms(400));
    assert_eq!(world.unspread(), ms(400) * 3, "the store is back: this is the first sample");
}

#[test]
fn requests_from_during_an_outage_give_no_sample() {
    let mut world = World::following(1);
    world.wants_all(["first", "second", "waits", "third"]);
    for _ in 0..2 {
        let attempt = world.sleeps_for_one();
        world.ends(attempt, Outcome::Failed);
    }
    let attempt = world.sleeps_for_one();
    assert_eq!(attempt.key, "third");
    world.ends(attempt, Outcome::Conflict);
    world.wants("after");
    let patience = world.engine.patience();
    world.pass(ms(400));
    world.evidence("waits");
    assert_eq!(world.engine.patience(), patience, "the store was down while it waited");
    world.evidence("after");
    assert_eq!(world.unspread(), ms(400) * 3, "the store was back when it was requested");
}

/// Otherwise a group in which keys are taken over one by one would learn from that, and wait ever
/// longer.
#[test]
fn what_an_impatient_replica_may_have_written_is_no_sample() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        let patience = world.engine.patience();
        let least = world.unspread();
        sample(&mut world, "a", least);
        sample(&mut world, "b", least * 3);
        assert_eq!(world.engine.patience(), patience);
        sample(&mut world, "c", least - ms(1));
        assert_ne!(world.engine.patience(), patience);
    }
}

#[test]
fn newer_work_during_an_attempt_gives_a_sample() {
    let mut world = World::leading(1);
    world.wants("a");
    let attempt = world.one();
    world.pass(secs(5));
    world.wants("a");
    world.pass(ms(100));
    world.ends(attempt, Outcome::Written);
    world.pass(ms(300));
    world.evidence("a");
    assert_eq!(world.unspread(), ms(400) * 3);
}

#[test]
fn patience_stays_between_minimum_and_term() {
    let mut world = World::long_following_with(settings(1).min_patience(ms(700)));
    for _ in 0..30 {
        sample(&mut world, "a", ms(1));
    }
    assert_eq!(world.unspread(), ms(700));

    let mut world = World::long_following_with(settings(1).term(secs(5)));
    for _ in 0..30 {
        let least = world.unspread();
        sample(&mut world, "a", least - ms(1));
        assert!(world.engine.patience() <= secs(5));
    }

    let world = World::long_following_with(settings(1).term(secs(1)).min_patience(secs(2)));
    assert_eq!(world.engine.patience(), secs(1));
}

#[test]
fn silent_leader_is_suspected_by_one_probe() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        world.pass(ms(100));
        let since = world.now;
        world.wants_all(["a", "b"]);
        let probe = world.sleeps_for_one();
        assert_eq!((probe.key.as_str(), world.now), ("a", since + world.engine.patience()));
        let counters = world.engine.counters();
        assert_eq!((counters.suspicions, counters.takeovers), (1, 0));
        world.pass(ms(2));
        assert!(world.polls().is_empty(), "one at a time");
        world.ends(probe, Outcome::Written);
        assert!(world.leads(), "it probed for the lease");
        assert_eq!(world.one().key, "b");
    }
}

#[test]
fn silence_counts_from_the_last_evidence() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        world.wants("a");
        let since = world.now;
        world.pass(ms(600));
        world.evidence("theirs");
        let last_sign = world.now;
        let patience = world.engine.patience();
        assert!(since < last_sign);
        let _probe = world.sleeps_for_one();
        assert_eq!(world.now, last_sign + patience);
        assert_eq!(world.engine.counters().suspicions, 1);
    }
}

#[test]
fn refused_suspicion_doubles_patience_until_a_sample() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        for doublings in 1..=3 {
            world.wants("a");
            let probe = world.sleeps_for_one();
            world.ends(probe, Outcome::Conflict);
            assert_eq!(world.engine.counters().suspicions, doublings);
            assert_eq!(world.unspread(), secs(1) * 2_u32.pow(doublings as u32));
            world.removes("a");
        }
        sample(&mut world, "b", ms(400));
        assert_eq!(world.unspread(), ms(1_200));
    }
}

#[test]
fn doubling_ends_at_the_term() {
    let mut world = World::long_following(1);
    for doublings in 1..=10 {
        // Their lease must outlast our patience for a probe to be a suspicion.
        world.evidence("theirs");
        world.wants("a");
        let probe = world.sleeps_for_one();
        let suspicions = world.engine.counters().suspicions;
        world.ends(probe, Outcome::Conflict);
        world.removes("a");
        assert!(suspicions == doublings || world.engine.patience() == TERM);
    }
    assert_eq!(world.engine.patience(), TERM);
}

#[test]
fn refused_probe_is_a_sign_of_life() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        world.wants_all(["a", "b"]);
        let probe = world.sleeps_for_one();
        world.ends(probe, Outcome::Conflict);
        world.wants("c");
        let refused = world.now;
        let patience = world.engine.patience();
        // The leader writes the old keys, or we take them over. The next suspicion needs another
        // patience.
        while world.now < refused + patience {
            for attempt in world.sleeps() {
                if world.now < refused + patience {
                    assert_eq!(world.engine.counters().suspicions, 1, "at {:?}", world.now - refused);
                }
                world.ends(attempt, Outcome::Unchanged);
            }
        }
    }
}

#[test]
fn only_a_refusal_doubles_patience() {
    for outcome in [Outcome::Unchanged, Outcome::Failed, Outcome::WrittenByOther] {
        let mut world = World::long_following(1);
        let patience = world.engine.patience();
        world.wants("a");
        let probe = world.sleeps_for_one();
        world.ends(probe, outcome);
        assert_eq!(world.engine.counters().suspicions, 1);
        assert_eq!(world.engine.patience(), patience, "{outcome:?}");
    }
}

#[test]
fn fixed_patience_is_the_term() {
    let mut world = World::following_with(settings(1).fixed_patience());
    assert_eq!(world.engine.patience(), TERM);
    sample(&mut world, "a", ms(10));
    assert_eq!(world.engine.patience(), TERM);
}

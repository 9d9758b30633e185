//! The behaviours that the tests of OpenShift's `writerlease` package show, on the engine alone.

use super::*;

#[test]
fn first_success_elects_a_leader() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants("test");
        let attempt = world.sleeps_for_one();
        assert!(!world.engine.decided());
        assert_eq!(world.ends(attempt, Outcome::Written), Some(1));
        assert!(world.leads() && world.engine.decided());
        assert_eq!(world.engine.counters().attempts, 1);
    }
}

#[test]
fn success_at_the_fifth_try_takes_five_calls() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants("test");
        for call in 1..=5 {
            let attempt = world.sleeps_for_one();
            assert_eq!(attempt.number, call);
            assert!(!world.leads());
            let verdict = if call < 5 { Outcome::Unchanged.retry() } else { Outcome::Written.done() };
            let ended = world.now;
            world.ends(attempt, verdict);
            if call < 5 {
                assert_eq!(world.engine.poll_timeout(), Some(ended + RETRY));
            }
        }
        assert!(world.leads() && world.engine.is_empty());
        world.pass(TERM * 10);
        assert!(world.polls().is_empty());
        assert_eq!(world.engine.counters().attempts, 5);
    }
}

#[test]
fn five_times_written_by_other_takes_five_calls() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants("test");
        for call in 1..=5 {
            let attempt = world.sleeps_for_one();
            assert_eq!(attempt.number, call);
            let verdict =
                if call < 5 { Outcome::WrittenByOther.retry() } else { Outcome::WrittenByOther.done() };
            world.ends(attempt, verdict);
            assert_eq!((world.engine.role(), world.engine.losses()), (Role::Follower, call - 1));
        }
        assert!(!world.leads() && world.engine.decided() && world.engine.is_empty());
        world.pass(TERM * 10);
        assert!(world.polls().is_empty());
        assert_eq!(world.engine.counters().written_by_others, 5);
    }
}

#[test]
fn newer_work_of_a_running_key_runs_afterwards() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants("test");
        let first = world.sleeps_for_one();
        assert_eq!(world.wants("test"), (2, None));
        assert!(world.polls().is_empty(), "never two attempts of one key");
        assert_eq!(world.ends(first, Outcome::Written), Some(1));
        let second = world.one();
        assert_eq!((second.key.as_str(), second.job, second.number), ("test", 2, 1));
        assert_eq!(world.ends(second, Outcome::Written), Some(2));
        assert!(world.engine.is_empty() && world.engine.in_flight() == 0);
    }
}

#[test]
fn evidence_clears_its_key_and_caps_the_backoff() {
    for seed in SEEDS {
        let mut world = World::with(settings(seed).jitter(0.0).backoff_steps(1));
        world.wants_all(["one", "two"]);
        let one = world.sleeps_for_one();
        world.ends(one, Outcome::WrittenByOther.retry());
        assert_eq!((world.engine.losses(), world.lease()), (0, ms(20)));
        let two = world.sleeps_for_one();
        assert_eq!(two.key, "two");
        world.ends(two, Outcome::WrittenByOther.retry());
        assert_eq!(world.engine.losses(), 1);
        assert!((ms(80)..=ms(88)).contains(&world.lease()), "{:?}", world.lease());

        assert_eq!(world.evidence("two"), Some(2));
        assert_eq!((world.engine.losses(), world.engine.len()), (2, 1));
        assert!((TERM..=TERM.mul_f64(1.1)).contains(&world.lease()), "{:?}", world.lease());
    }
}

//! Rule 2: a conflict moves nothing, an outage moves nothing.

use super::*;

#[test]
fn conflicts_never_depose_a_lone_leader() {
    for seed in SEEDS {
        let mut world = World::leading(seed);
        let before = world.standing();
        world.wants_many(10);
        for _ in 0..100 {
            let running = world.sleeps();
            for attempt in running {
                world.ends(attempt, Outcome::Conflict);
            }
        }
        assert_eq!(world.standing(), before);
        assert!(world.leads());
        assert_eq!(world.engine.len(), 10);
    }
}

#[test]
fn outage_pause_grows_up_to_the_retry_interval() {
    for seed in SEEDS {
        for mut world in [World::new(seed), World::leading_wide(seed, 8), World::following(seed)] {
            let before = Standing { window: 1, ..world.standing() };
            world.wants_many(30);
            for attempt in world.sleeps() {
                world.ends(attempt, Outcome::Failed);
            }
            for n in 0..10 {
                let paused = world.now;
                let attempt = world.sleeps_for_one();
                let (pause, expected) = (world.now - paused, RETRY.min(ms(20) * 4_u32.pow(n)));
                assert!(pause >= expected && pause <= expected.mul_f64(1.1), "{n} {pause:?}");
                world.pass(ms(1));
                assert!(world.polls().is_empty(), "one finds out");
                world.ends(attempt, Outcome::Failed);
            }
            assert_eq!(world.standing(), before);
        }
    }
}

#[test]
fn work_resumes_soon_after_the_store_returns() {
    for seed in 0..20 {
        for mut world in [World::new(seed), World::leading_wide(seed, 8), World::following(seed)] {
            world.wants_many(30);
            let back = world.now + TERM * 2;
            let mut resumed = None;
            while !world.engine.is_empty() {
                let running = world.sleeps();
                world.pass(ms(1));
                for attempt in running {
                    let up = world.now >= back;
                    if up {
                        resumed.get_or_insert(world.now);
                    }
                    world.ends(attempt, if up { Outcome::Written } else { Outcome::Failed });
                }
            }
            // Jitter lengthens the pause by up to a tenth.
            assert!(resumed.unwrap() - back <= RETRY.mul_f64(1.1) + ms(2));
            assert!(
                world.now - back <= RETRY.mul_f64(2.2) + ms(50),
                "not a term later: {:?}",
                world.now - back
            );
            assert!(world.leads());
        }
    }
}

#[test]
fn any_answer_ends_an_outage() {
    for answer in [Outcome::Written, Outcome::WrittenByOther, Outcome::Conflict, Outcome::Unchanged] {
        let mut world = World::leading_wide(1, 4);
        world.wants_many(10);
        let mut running = world.polls();
        let failed = running.remove(0);
        world.ends(failed, Outcome::Failed);
        world.pass(ms(1));
        assert!(world.polls().is_empty());
        world.ends(running.remove(0), answer);
        assert!(world.engine.outage.until() <= world.now, "{answer:?}");
        let before = world.standing();
        for attempt in running {
            world.ends(attempt, Outcome::Failed);
        }
        assert_eq!(world.standing(), before, "failures from before the answer are old");
        assert!(world.engine.outage.until() <= world.now, "{answer:?}");
    }
}

#[test]
fn hung_attempt_prolongs_a_pause_to_its_deadline() {
    let mut world = World::leading(1);
    world.wants_many(3);
    let first = world.one();
    world.ends(first, Outcome::Failed);
    let hung = world.sleeps_for_one();
    let next = world.sleeps_for_one();
    assert_eq!((next.key.as_str(), world.now), ("0", hung.deadline));
}

#[test]
fn after_an_outage_adopted_keys_resume_singly() {
    let mut world = World::long_following(1);
    world.wants_many(3);
    for _ in 0..3 {
        let attempt = world.outlasts_patience_under_evidence();
        world.ends(attempt, Outcome::Written);
    }
    world.wants("0");
    let attempt = world.one();
    world.ends(attempt, Outcome::Failed);
    world.wants_many(3);
    let attempt = world.sleeps_for_one();
    world.pass(ms(1));
    assert!(world.polls().is_empty(), "one finds out");
    world.ends(attempt, Outcome::Written);
    assert_eq!(world.sleeps().len(), 1, "the first key waits for its retry");
}

#[test]
fn panic_concerns_its_key_only() {
    for seed in SEEDS {
        for mut world in [World::new(seed), World::leading_wide(seed, 4), World::following(seed)] {
            let (bad, _) = world.wants("bad");
            world.wants("good");
            let mut running = world.sleeps();
            let before = world.standing();
            let panicked = world.now;
            assert_eq!(world.panics(running.remove(0)), None);
            assert_eq!(world.standing(), before);
            if running.is_empty() {
                running = world.polls();
            }
            assert_eq!(keys(&running), ["good"]);
            world.ends(running.remove(0), Outcome::Unchanged);
            let again = world.sleeps_for_one();
            assert_eq!((again.key.as_str(), again.job, again.number), ("bad", bad, 2));
            assert_eq!(world.now, panicked + RETRY);
            assert_eq!(world.engine.counters().panics, 1);
        }
    }
}

#[test]
fn panic_neither_starts_nor_ends_an_outage() {
    let mut world = World::leading_wide(1, 2);
    world.wants_many(3);
    let mut running = world.polls();
    let panicking = running.pop().unwrap();
    world.ends(running.pop().unwrap(), Outcome::Failed);
    let until = world.engine.outage.until();
    world.panics(panicking);
    assert_eq!(world.engine.outage.until(), until);
    assert!(world.polls().is_empty());
}

#[test]
fn key_that_always_fails_starves_no_other() {
    for verdict in [Outcome::Failed.retry(), Outcome::Failed.retry_after(Duration::ZERO)] {
        for seed in 0..20 {
            for mut world in [World::new(seed), World::leading_wide(seed, 4), World::long_following(seed)] {
                world.wants("poisoned");
                world.wants_many(50);
                let began = world.now;
                while world.engine.len() + world.engine.in_flight() > 1 {
                    for attempt in world.sleeps() {
                        let poisoned = attempt.key == "poisoned";
                        world.pass(ms(1));
                        world.ends(attempt, if poisoned { verdict } else { Outcome::Written.done() });
                    }
                    assert!(world.now - began < secs(10), "{seed} {verdict:?}: {} left", world.engine.len());
                }
            }
        }
    }
}

#[test]
fn conflict_delays_only_its_own_key() {
    let mut world = World::new(1);
    world.wants("edited");
    world.wants_many(10);
    let began = world.sleeps_for_one();
    world.ends(began, Outcome::Conflict);
    let refused = world.now;
    for i in 0..10 {
        let probe = world.one();
        assert_eq!(probe.key, i.to_string());
        world.ends(probe, Outcome::Unchanged);
    }
    assert_eq!(world.now, refused);
}

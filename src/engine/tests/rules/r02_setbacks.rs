//! Rule 2: a conflict moves nothing, an outage moves nothing, and one key's failure is no outage.

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
            while !world.engine.outage.lasts() {
                for attempt in world.sleeps() {
                    world.ends(attempt, Outcome::Failed);
                }
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
        let mut world = World::leading_wide(1, 6);
        world.wants_many(10);
        let mut running = world.polls();
        for failed in running.drain(..2) {
            world.ends(failed, Outcome::Failed);
        }
        world.pass(ms(1));
        assert!(world.polls().is_empty());
        world.ends(running.remove(0), answer);
        assert!(world.engine.outage.until(Class::Failed) <= world.now, "{answer:?}");
        let before = world.standing();
        for attempt in running {
            world.ends(attempt, Outcome::Failed);
        }
        assert_eq!(world.standing(), before, "failures from before the answer are old");
        assert!(world.engine.outage.until(Class::Failed) <= world.now, "{answer:?}");
    }
}

#[test]
fn hung_attempt_prolongs_a_pause_to_its_deadline() {
    let mut world = World::leading(1);
    world.wants_many(3);
    for _ in 0..2 {
        let first = world.one();
        world.ends(first, Outcome::Failed);
    }
    let hung = world.sleeps_for_one();
    let next = world.sleeps_for_one();
    assert_eq!((next.key.as_str(), world.now), ("0", hung.deadline));
}

#[test]
fn after_an_outage_own_keys_resume_singly() {
    let mut world = World::long_following(1);
    world.takes_over_many(3);
    world.wants_many(2);
    for attempt in world.polls() {
        world.ends(attempt, Outcome::Failed);
    }
    world.wants_many(3);
    let attempt = world.sleeps_for_one();
    world.pass(ms(1));
    assert!(world.polls().is_empty(), "one finds out");
    world.ends(attempt, Outcome::Written);
    assert_eq!(world.sleeps().len(), 1, "the first keys wait for their retries");
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
    let mut world = World::leading_wide(1, 4);
    world.wants_many(5);
    let mut running = world.polls();
    world.ends(running.pop().unwrap(), Outcome::Failed);
    world.panics(running.pop().unwrap());
    assert!(!world.engine.outage.lasts(), "only one key failed");
    world.ends(running.pop().unwrap(), Outcome::Failed);
    let until = world.engine.outage.until(Class::Clean);
    world.panics(running.pop().unwrap());
    assert_eq!(world.engine.outage.until(Class::Clean), until);
    assert!(world.engine.outage.lasts() && world.polls().is_empty());
}

#[test]
fn keys_that_always_fail_starve_no_other() {
    for verdict in [Outcome::Failed.retry(), Outcome::Failed.retry_after(Duration::ZERO)] {
        for (bad, seeds) in [(1, 0..20), (2, 0..20), (3, 0..20), (50, 0..5)] {
            for seed in seeds {
                for mut world in [World::new(seed), World::leading_wide(seed, 4), World::long_following(seed)]
                {
                    for i in 0..bad {
                        world.wants(&format!("poisoned {i}"));
                    }
                    world.wants_many(50);
                    let began = world.now;
                    while world.engine.len() + world.engine.in_flight() > bad {
                        for attempt in world.sleeps() {
                            let poisoned = attempt.key.starts_with("poisoned");
                            world.pass(ms(1));
                            world.ends(attempt, if poisoned { verdict } else { Outcome::Written.done() });
                        }
                        let left = world.engine.len();
                        assert!(world.now - began < secs(10), "{seed} {bad} {verdict:?}: {left} left");
                    }
                }
            }
        }
    }
}

#[test]
fn key_that_fails_alone_pauses_no_other() {
    for seed in SEEDS {
        for mut world in [World::new(seed), World::leading_wide(seed, 4), World::following(seed)] {
            world.wants("bad");
            for n in 0..8 {
                let bad = world.sleeps_for_one();
                let before = world.standing();
                world.ends(bad, Outcome::Failed);
                assert_eq!(world.standing(), before);
                assert!(!world.engine.outage.lasts());
                let (wait, backoff) = (world.timeout().unwrap(), RETRY.min(ms(20) * 4_u32.pow(n)));
                assert!(wait >= backoff.min(before.lease_end - world.now), "{n}: {wait:?}");
            }
            // A replica that competes writes without delay, if its own delay is over.
            if world.engine.role() != Role::Follower {
                world.wants("good");
                assert_eq!(world.one().key, "good");
            }
        }
    }
}

#[test]
fn keys_that_failed_stand_behind_younger_ones() {
    let mut world = World::leading(1);
    world.wants("bad");
    let bad = world.one();
    world.ends(bad, Outcome::Failed);
    world.pass(secs(1));
    world.wants_many(3);
    for i in 0..3 {
        let good = world.polls().remove(0);
        assert_eq!(good.key, i.to_string());
        world.ends(good, Outcome::Unchanged);
    }
}

#[test]
fn keys_that_failed_hold_a_quarter_of_slots() {
    for (window, quarter) in [(2, 1), (7, 1), (8, 2), (16, 4)] {
        let mut world = World::leading_wide(1, window);
        for key in 0..6 {
            world.wants(&format!("bad {key}"));
            let bad = world.one();
            world.ends(bad, Outcome::Failed);
            world.lands("good");
        }
        let window = world.engine.window();
        world.pass(RETRY);
        assert_eq!(world.polls().len(), quarter.max(window / 4).min(6));
        world.wants_many(20);
        let beside = world.polls().len();
        assert_eq!(beside, window.min(16 - quarter.max(window / 4)), "they hold up no other");
    }
}

#[test]
fn failing_attempt_holds_up_no_probe() {
    for mut world in [World::new(1), World::following(1)] {
        world.wants("bad");
        let bad = world.sleeps_for_one();
        world.ends(bad, Outcome::Failed);
        let hung = world.sleeps_for_one();
        assert_eq!(hung.key, "bad");
        world.wants("good");
        let good = world.sleeps_for_one();
        assert_eq!(good.key, "good");
        assert!(world.now < hung.deadline);
        assert_eq!(world.engine.in_flight(), 2);
    }
}

#[test]
fn failing_key_is_suspected_behind_younger_keys() {
    // The leader writes all keys but one, and dies. Younger keys arrive all the time.
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        world.wants("bad");
        let bad = world.outlasts_patience_under_evidence();
        world.ends(bad, Outcome::Failed);
        let failed = world.now;
        let patience = world.engine.patience();
        'waits: loop {
            world.wants("theirs");
            world.pass(ms(50));
            world.evidence("theirs");
            for attempt in world.polls() {
                if attempt.key == "bad" {
                    break 'waits;
                }
                world.ends(attempt, Outcome::Conflict);
            }
            assert!(world.now - failed <= patience + RETRY * 2, "{seed}");
        }
    }
}

#[test]
fn keys_that_failed_before_start_no_outage() {
    let mut world = World::leading_wide(1, 4);
    for key in ["a", "b"] {
        world.wants(key);
        let attempt = world.one();
        world.ends(attempt, Outcome::Failed);
        world.lands("good");
    }
    let window = world.engine.window();
    for _ in 0..20 {
        for attempt in world.sleeps() {
            world.ends(attempt, Outcome::Failed);
        }
    }
    assert!(!world.engine.outage.lasts());
    assert_eq!(world.engine.window(), window);
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

//! Rule 8: never two attempts of one key at the same time, never a lost key.

use super::*;

#[test]
fn newer_work_keeps_the_older_age_and_place() {
    let mut world = World::following(1);
    world.wants_all(["a", "b"]);
    world.pass(ms(5));
    assert_eq!(world.wants("a"), (3, Some(1)));
    assert_eq!(world.engine.len(), 2);
    let first = world.sleeps_for_one();
    assert_eq!((first.key.as_str(), first.job), ("a", 3));

    let mut world = World::long_following(1);
    let since = world.now;
    world.wants("a");
    world.pass(ms(900));
    world.wants("a");
    assert_eq!(world.sleeps_for_one().key, "a");
    assert_eq!(world.now, since + world.engine.patience(), "the age of the first unfulfilled one");
}

#[test]
fn newer_work_runs_after_the_attempt_in_flight() {
    for outcome in [
        Outcome::Written.done(),
        Outcome::Written.retry(),
        Outcome::Unchanged.done(),
        Outcome::Unchanged.retry_after(secs(3_600)),
        Outcome::Conflict.retry(),
        Outcome::Failed.retry(),
        Outcome::Failed.done(),
    ] {
        let mut world = World::leading_wide(1, 4);
        let (old, _) = world.wants("a");
        let attempt = world.one();
        world.pass(ms(1));
        let (newer, replaced) = world.wants("a");
        assert_eq!(replaced, None);
        let (newest, replaced) = world.wants("a");
        assert_eq!(replaced, Some(newer));
        assert!(world.polls().is_empty(), "never two attempts of one key");
        assert_eq!(world.ends(attempt, outcome), Some(old), "{outcome:?}");
        let ended = world.now;
        let next = world.sleeps_for_one();
        assert_eq!((next.job, next.number), (newest, 1));
        let most = match outcome.outcome {
            Outcome::Conflict => ms(30),
            Outcome::Failed => ms(42),
            _ => ms(0),
        };
        assert!(world.now - ended <= most, "{outcome:?}: {:?}", world.now - ended);
    }
}

#[test]
fn newer_work_inherits_age_only_after_a_refusal() {
    for (outcome, first) in [(Outcome::Conflict, "a"), (Outcome::Written, "b"), (Outcome::Denied, "b")] {
        let mut world = World::leading(1);
        world.wants("a");
        let attempt = world.one();
        for key in ["b", "a"] {
            world.pass(ms(1));
            world.wants(key);
        }
        world.ends(attempt, outcome);
        world.pass(TERM * 2);
        assert_eq!(world.polls()[0].key, first);
    }
}

/// A replica that competes makes one attempt at a time, and two denied keys that are wanted faster
/// than that would take all of them.
#[test]
fn denied_keys_wanted_often_starve_no_other() {
    let mut world = World::new(1);
    world.wants_all(["denied", "denied too", "key"]);
    for attempts in 1..=3 {
        let attempt = world.sleeps_for_one();
        world.pass(ms(1));
        world.wants_all(["denied", "denied too"]);
        if attempt.key == "key" {
            return;
        }
        assert!(attempts < 3, "{} is attempted again before the other", attempt.key);
        world.ends(attempt, Outcome::Denied);
    }
}

#[test]
fn newer_work_ends_chosen_waits_but_not_backoffs() {
    for (verdict, at_once) in [
        (Outcome::Unchanged.retry_after(secs(10)), true),
        (Outcome::Written.retry(), true),
        (Outcome::Conflict.retry(), false),
    ] {
        let mut world = World::leading(1);
        world.wants("a");
        let attempt = world.one();
        world.ends(attempt, verdict);
        assert!(world.polls().is_empty());
        world.wants("a");
        assert_eq!(world.polls().len(), usize::from(at_once), "{verdict:?}");
    }
}

#[test]
fn newer_work_after_panic_waits_the_retry_interval() {
    let mut world = World::leading(1);
    world.wants("a");
    let attempt = world.one();
    world.panics(attempt);
    let panicked = world.now;
    world.pass(secs(1));
    let (newer, _) = world.wants("a");
    assert_eq!(world.sleeps_for_one().job, newer);
    assert_eq!(world.now, panicked + RETRY);
}

#[test]
fn success_ends_the_row_of_refusals() {
    for seed in SEEDS {
        let mut world = World::leading(seed);
        world.wants("a");
        for _ in 0..5 {
            let attempt = world.sleeps_for_one();
            world.ends(attempt, Outcome::Conflict);
        }
        let attempt = world.sleeps_for_one();
        world.wants("a");
        world.ends(attempt, Outcome::Written);
        let newer = world.one();
        world.ends(newer, Outcome::Conflict);
        let wait = world.timeout().unwrap();
        assert!((ms(20)..=ms(30)).contains(&wait), "{wait:?}");
    }
}

#[test]
fn retry_comes_when_it_was_asked_for() {
    for (verdict, after) in [
        (Outcome::Written.retry(), RETRY),
        (Outcome::Unchanged.retry(), RETRY),
        (Outcome::Unchanged.retry_after(ms(1_234)), ms(1_234)),
        (Outcome::Written.retry_after(Duration::ZERO), ms(0)),
        (Outcome::Conflict.retry_after(secs(7)), secs(7)),
        (Outcome::Failed.retry_after(secs(7)), secs(7)),
    ] {
        let mut world = World::leading(1);
        let (work, _) = world.wants("a");
        let attempt = world.one();
        assert_eq!(world.ends(attempt, verdict), None);
        let ended = world.now;
        let again = world.sleeps_for_one();
        assert_eq!((again.job, again.number, world.now - ended), (work, 2, after), "{verdict:?}");
    }
}

#[test]
fn done_means_done_whatever_the_outcome() {
    for outcome in
        [Outcome::Written, Outcome::WrittenByOther, Outcome::Conflict, Outcome::Unchanged, Outcome::Failed]
    {
        let mut world = World::leading(1);
        let (work, _) = world.wants("a");
        let attempt = world.one();
        assert_eq!(world.ends(attempt, outcome.done()), Some(work));
        assert!(world.engine.is_empty() && world.engine.in_flight() == 0);
    }
}

#[test]
fn key_cleared_in_flight_is_not_retried() {
    for evidence in [true, false] {
        for how in 0..4 {
            let mut world = World::leading(1);
            let (old, _) = world.wants("a");
            let attempt = world.one();
            let (newer, _) = world.wants("a");
            let cleared = if evidence { world.evidence("a") } else { world.removes("a") };
            assert_eq!(cleared, Some(newer));
            let returned = match how {
                0 => world.ends(attempt, Outcome::Conflict),
                1 => world.ends(attempt, Outcome::Failed),
                2 => world.ends(attempt, Outcome::Unchanged.retry()),
                _ => world.panics(attempt),
            };
            assert_eq!(returned, Some(old));
            assert!(world.engine.is_empty() && world.engine.in_flight() == 0);
            world.pass(TERM);
            assert!(world.polls().is_empty());
        }
    }
}

#[test]
fn work_after_clearing_in_flight_still_runs() {
    for outcome in [Outcome::Conflict, Outcome::Written] {
        let mut world = World::leading(1);
        world.wants("a");
        let attempt = world.one();
        world.evidence("a");
        let (newer, _) = world.wants("a");
        world.ends(attempt, outcome);
        assert_eq!(world.sleeps_for_one().job, newer);
    }
}

#[test]
fn draining_returns_pending_work_oldest_first_once() {
    let mut world = World::leading_wide(1, 2);
    let (refused, _) = world.wants("refused");
    let (out, _) = world.wants("out");
    let mut running = world.polls();
    assert_eq!(world.ends(running.remove(0), Outcome::Conflict), None);
    world.pass(ms(1));
    let (newer, _) = world.wants("out");
    world.pass(ms(1));
    let (fresh, _) = world.wants("fresh");
    let pending: Vec<u32> = world.engine.drain().into_iter().map(|(_, work)| work).collect();
    assert_eq!(pending, [refused, newer, fresh]);
    assert!(world.engine.is_empty() && world.engine.in_flight() == 1);
    // The attempt in flight returns its job too.
    assert_eq!(world.ends(running.remove(0), Outcome::Conflict), None);
    assert_eq!(world.engine.drain(), [("out".to_owned(), out)]);
    assert_eq!(world.engine.drain(), []);
    world.pass(TERM);
    assert!(world.polls().is_empty());
}

#[test]
fn outcome_of_an_unknown_attempt_returns_its_work() {
    let mut world = World::leading(1);
    world.wants("a");
    let attempt = world.one();
    let id = attempt.id;
    world.ends(attempt, Outcome::Unchanged);
    let before = world.standing();
    assert_eq!(world.engine.handle_outcome(world.now, id, Outcome::WrittenByOther.into(), 77), Some(77));
    assert_eq!(world.engine.handle_panic(world.now, id, 78), Some(78));
    assert_eq!(world.standing(), before);
}

#[test]
fn repeated_work_counts_as_a_new_request() {
    for outcome in [Outcome::WrittenByOther, Outcome::Unchanged] {
        let mut world = World::following(1);
        world.pass(2 * TERM);
        world.wants("periodic");
        let attempt = world.sleeps_for_one();
        world.ends(attempt, outcome.retry_after(secs(10)));
        // Another replica leads for good.
        world.falls_far_behind(ms(50));
        world.pass(secs(10));
        world.evidence("theirs");
        assert!(world.polls().is_empty(), "{outcome:?}: due, but not pending for long");
    }
}

/// Otherwise a caller would wait for ever for the result of an election in which there is nothing to
/// write, or no right to.
#[test]
fn answers_decide_also_if_the_job_looks_again_later() {
    for (outcome, decides) in
        [(Outcome::Unchanged, true), (Outcome::Denied, true), (Outcome::Conflict, false)]
    {
        let mut world = World::new(1);
        world.wants("a");
        let attempt = world.sleeps_for_one();
        world.ends(attempt, outcome.retry_after(secs(10)));
        assert_eq!(world.engine.decided(), decides, "{outcome:?}");
    }
}

#[test]
fn newer_work_ignores_a_delay_chosen_by_older() {
    for outcome in [Outcome::Written, Outcome::Conflict, Outcome::Unchanged] {
        let mut world = World::leading(1);
        world.wants("a");
        let attempt = world.one();
        world.ends(attempt, outcome.retry_after(secs(3600)));
        world.pass(ms(1));
        world.wants("a");
        assert_eq!(world.one().key, "a", "{outcome:?}");
    }
}

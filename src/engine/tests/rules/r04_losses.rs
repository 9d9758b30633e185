//! Rule 4: one loss is one step, old news is no news.

use super::*;

/// A leader of epoch 1 with attempts "0", "1", ... in flight, that evidence made a follower.
fn deposed_in_flight(seed: u64, attempts: usize) -> (World, Vec<Running>) {
    let mut world = World::leading_wide(seed, attempts);
    world.wants_many(attempts);
    let running = world.polls();
    assert_eq!(running.len(), attempts);
    world.pass(ms(1));
    world.evidence("theirs");
    (world, running)
}

#[test]
fn outcomes_from_an_earlier_role_move_nothing() {
    for seed in SEEDS {
        let (mut world, mut running) = deposed_in_flight(seed, 5);
        let before = world.standing();
        world.pass(ms(1));
        for outcome in [
            Outcome::Written,
            Outcome::WrittenByOther,
            Outcome::Conflict,
            Outcome::Failed,
            Outcome::Unchanged,
        ] {
            world.ends(running.remove(0), outcome);
            assert_eq!(world.standing(), before, "{outcome:?}");
            assert_eq!(world.engine.outage.until(Class::Failed), Timestamp::ZERO, "{outcome:?}");
        }
        assert_eq!(world.engine.len(), 2, "their jobs are finished all the same");
    }
}

#[test]
fn old_success_does_not_renew_a_later_lease() {
    let (mut world, mut running) = deposed_in_flight(1, 1);
    world.lands("again");
    let before = world.standing();
    assert_eq!((before.role, before.epoch), (Role::Leader, 2));
    world.ends(running.remove(0), Outcome::Written);
    assert_eq!(world.standing(), before);
}

#[test]
fn evidence_within_the_first_backoff_is_one_loss() {
    for seed in SEEDS {
        let mut world = World::leading(seed);
        world.evidence("theirs");
        let burst_end = world.engine.shards[0].contest.burst_end();
        assert!(backoff(0).contains(&(burst_end - world.now)));
        for _ in 0..4 {
            world.pass(ms(4));
            let lease = world.engine.lease_end();
            world.evidence("theirs");
            assert_eq!(world.engine.losses(), 0);
            assert!(world.engine.lease_end() >= lease && world.lease() >= *backoff(0).start());
            assert!(deposed().contains(&world.lease()), "their lease counts from the last of it");
            world.engine.handle_observe(world.now, &"key".to_owned(), None);
            assert_eq!(world.engine.losses(), 0);
        }
        world.now = Timestamp::from_nanos(burst_end.as_nanos() - 1);
        world.evidence("theirs");
        assert_eq!(world.engine.losses(), 0);
        world.now = burst_end;
        world.evidence("theirs");
        assert_eq!(world.engine.losses(), 1);
        world.evidence("theirs");
        assert_eq!(world.engine.losses(), 2, "from then on each is a step");
    }
}

#[test]
fn rival_leaders_spread_over_sixteen_echoes() {
    let leases: Vec<Duration> = SEEDS
        .map(|seed| {
            let mut world = World::leading(seed);
            world.evidence("theirs");
            world.lease()
        })
        .collect();
    let within = |from: u32, to: u32| {
        let share = ms(20) + from * ECHO..ms(30) + to * ECHO;
        leases.iter().filter(|lease| share.contains(lease)).count()
    };
    // Evenly, because they are few: each quarter holds about a quarter of the draws, plus the
    // jitter of the backoff.
    for quarter in 0..4 {
        assert!(within(4 * quarter, 4 * quarter + 4) > leases.len() / 6, "quarter {quarter}");
    }
    let mut world = World::leading(1);
    world.wants("a");
    let attempt = world.one();
    world.ends(attempt, Outcome::WrittenByOther);
    assert!(backoff(0).contains(&world.lease()), "a writer that our own job names is not a rival leader");
}

/// A process that is stopped for half a minute measures a long echo. Its next demotion must still
/// be short.
#[test]
fn delays_in_echoes_stay_well_below_a_term() {
    for seed in SEEDS {
        let mut world = World::leading(seed);
        world.engine.handle_echo(world.now, secs(1000));
        world.evidence("theirs");
        assert!(world.lease() <= TERM * 2 / 3, "{:?}", world.lease());
        let mut world = World::new(seed);
        world.engine.handle_echo(world.now, secs(1000));
        world.wants("a");
        assert!(world.timeout() <= Some(TERM / 2));
    }
}

#[test]
fn written_by_other_counts_even_within_a_burst() {
    let mut world = World::leading(1);
    world.evidence("theirs");
    world.engine.handle_expire(world.now);
    world.wants("a");
    let probe = world.one();
    world.ends(probe, Outcome::WrittenByOther);
    assert_eq!(world.engine.losses(), 1);
}

#[test]
fn evidence_counts_for_replicas_that_never_led() {
    let mut world = World::following(1);
    world.evidence("theirs");
    assert_eq!(world.engine.losses(), 1);
}

#[test]
fn evidence_older_than_our_win_moves_nothing() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants("a");
        let probe = world.sleeps_for_one();
        world.ends(probe, Outcome::Written.done().at_revision(Some(100)));
        let before = world.standing();
        let (work, _) = world.wants("b");
        world.pass(ms(700));
        assert_eq!(world.engine.handle_extend(world.now, &"b".to_owned(), Some(99)), Some(work));
        world.engine.handle_observe(world.now, &"key".to_owned(), Some(1));
        assert_eq!(world.standing(), before, "neither role nor patience");
        assert_eq!(world.engine.counters().evidence, 0);
        world.engine.handle_observe(world.now, &"key".to_owned(), Some(101));
        assert_eq!(world.engine.role(), Role::Follower);
    }
}

#[test]
fn evidence_after_a_relisting_counts_at_any_revision() {
    let mut world = World::new(1);
    world.wants("a");
    let probe = world.sleeps_for_one();
    world.ends(probe, Outcome::Written.done().at_revision(Some(100)));
    world.engine.handle_relisting(world.now);
    assert_eq!(world.engine.role(), Role::Leader);
    world.engine.handle_observe(world.now, &"key".to_owned(), Some(51));
    assert_eq!(world.engine.role(), Role::Follower);
}

#[test]
fn evidence_at_the_winning_revision_counts() {
    let mut world = World::new(1);
    world.wants("a");
    let probe = world.sleeps_for_one();
    world.ends(probe, Outcome::Written.done().at_revision(Some(100)));
    world.engine.handle_extend(world.now, &"b".to_owned(), Some(100));
    assert_eq!(world.engine.role(), Role::Follower);
}

#[test]
fn winning_write_dates_evidence_later_ones_do_not() {
    let mut world = World::new(1);
    for order in [100, 200] {
        world.wants("a");
        let attempt = world.sleeps_for_one();
        world.ends(attempt, Outcome::Written.done().at_revision(Some(order)));
    }
    world.engine.handle_extend(world.now, &"b".to_owned(), Some(150));
    assert_eq!(world.engine.role(), Role::Follower);
}

#[test]
fn evidence_without_a_revision_always_counts() {
    for (won, seen) in [(None, Some(1)), (Some(100), None), (None, None)] {
        let mut world = World::new(1);
        world.wants("a");
        let probe = world.sleeps_for_one();
        world.ends(probe, Outcome::Written.done().at_revision(won));
        world.engine.handle_extend(world.now, &"b".to_owned(), seen);
        assert_eq!(world.engine.role(), Role::Follower);
    }
}

//! One or more tests for each cell of the table: thirteen events, three roles.

use std::collections::HashSet;

use super::*;

// try

/// A lone replica on a slow network must still get to its first probe.
#[test]
fn short_lived_work_does_not_postpone_the_probe() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants("a");
        let start = world.engine.poll_timeout().unwrap();
        world.removes("a");
        world.now = world.now + (start - world.now) / 2;
        world.wants("b");
        assert_eq!(world.engine.poll_timeout(), Some(start));
        world.removes("b");
        world.now = start + ms(1);
        world.wants("c");
        assert!(world.polls().is_empty(), "idle replicas that get work together are spread again");
    }
}

#[test]
fn first_try_in_election_starts_delay_then_probe() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        assert_eq!(world.engine.poll_timeout(), None);
        world.wants("a");
        let start = world.engine.poll_timeout().unwrap();
        assert!(start - world.now <= ECHO * 16);
        world.now = world.now + (start - world.now) / 2;
        world.wants_all(["b", "c"]);
        assert_eq!(world.engine.poll_timeout(), Some(start), "only the first one starts the delay");
        world.now = start;
        let probe = world.one();
        assert_eq!((probe.key.as_str(), probe.epoch, probe.number), ("a", 0, 1));
        assert_eq!(world.engine.poll_timeout(), Some(probe.deadline));
    }
}

#[test]
fn leader_runs_tries_up_to_its_window() {
    let mut world = World::leading_wide(1, 3);
    world.wants_many(10);
    let running = world.polls();
    assert_eq!(keys(&running), ["0", "1", "2"]);
    assert_eq!(world.engine.len(), 7);
}

#[test]
fn follower_runs_a_try_when_the_lease_ends() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        world.wants("a");
        world.wants("b");
        let (since, lease_end) = (world.now, world.engine.lease_end());
        let probe = world.sleeps_for_one();
        assert_eq!(probe.key, "a");
        // A little later at most, because the incumbent has a head start.
        assert!(world.now >= lease_end && world.now <= lease_end.max(since + ECHO * 6));
        assert_eq!(world.engine.counters().suspicions, 0);
    }
}

#[test]
fn follower_runs_a_try_when_patience_ends() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        let since = world.now;
        world.wants("a");
        world.pass(ms(100));
        world.wants("b");
        let probe = world.sleeps_for_one();
        assert_eq!(probe.key, "a");
        assert_eq!(world.now, since + world.engine.patience());
        assert!(!world.lease().is_zero());
    }
}

// Written: our write succeeded

#[test]
fn success_in_election_makes_a_leader() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants("a");
        let probe = world.sleeps_for_one();
        let started = world.now;
        world.pass(ms(7));
        assert_eq!(world.ends(probe, Outcome::Written), Some(1));
        let standing = world.standing();
        assert_eq!((standing.role, standing.losses, standing.epoch), (Role::Leader, 0, 1));
        assert_eq!((standing.window, standing.lease_end), (1, started + TERM));
        assert!(world.leads());
        assert_eq!(world.engine.counters().won, 1);
    }
}

#[test]
fn success_of_a_leader_renews_and_widens() {
    let mut world = World::leading(1);
    let before = world.standing();
    world.pass(secs(30));
    world.wants("a");
    let attempt = world.one();
    let started = world.now;
    world.pass(secs(2));
    world.ends(attempt, Outcome::Written);
    assert_eq!(world.standing(), Standing { lease_end: started + TERM, window: 2, ..before });
}

#[test]
fn success_of_a_followers_probe_makes_a_leader() {
    for seed in SEEDS {
        let mut world = World::leading(seed);
        world.evidence("theirs");
        world.pass(secs(1));
        world.evidence("theirs");
        assert_eq!((world.engine.losses(), world.engine.epoch()), (1, 1));
        world.wants("a");
        let probe = world.sleeps_for_one();
        let started = world.now;
        world.pass(ms(3));
        world.ends(probe, Outcome::Written);
        let standing = world.standing();
        assert_eq!((standing.role, standing.losses, standing.epoch), (Role::Leader, 0, 2));
        assert_eq!((standing.window, standing.lease_end), (1, started + TERM));
    }
}

#[test]
fn success_of_a_takeover_moves_the_key_only() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        world.evidence("a");
        let takeover = world.takes_over("a");
        let before = world.standing();
        assert_eq!(world.ends(takeover, Outcome::Written), Some(1));
        assert_eq!(world.standing(), before);
        assert_eq!(before.role, Role::Follower);
        world.wants_all(["b", "a"]);
        assert_eq!(world.one().key, "a", "its own key needs no patience");
    }
}

// WrittenByOther: the job found that another replica is the writer

#[test]
fn written_by_other_in_election_makes_a_follower() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants("a");
        let probe = world.sleeps_for_one();
        world.pass(ms(5));
        assert_eq!(world.ends(probe, Outcome::WrittenByOther), Some(1));
        assert_eq!((world.engine.role(), world.engine.losses()), (Role::Follower, 0));
        assert!(backoff(0).contains(&world.lease()), "{:?}", world.lease());
    }
}

#[test]
fn written_by_other_makes_a_leader_a_follower() {
    for seed in SEEDS {
        let mut world = World::leading_wide(seed, 4);
        world.wants("a");
        let attempt = world.one();
        world.pass(ms(5));
        world.ends(attempt, Outcome::WrittenByOther);
        assert_eq!((world.engine.role(), world.engine.losses()), (Role::Follower, 0));
        assert_eq!((world.engine.window(), world.engine.epoch()), (1, 1));
        assert!(!world.leads());
        assert!(backoff(0).contains(&world.lease()), "{:?}", world.lease());
    }
}

#[test]
fn each_written_by_other_lengthens_a_followers_backoff() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        for losses in 1..10 {
            world.wants("a");
            let probe = world.sleeps_for_one();
            world.pass(ms(5));
            world.ends(probe, Outcome::WrittenByOther);
            assert_eq!((world.engine.role(), world.engine.losses()), (Role::Follower, losses));
            assert!(backoff(losses).contains(&world.lease()), "{losses} {:?}", world.lease());
        }
    }
}

// extend(key): evidence

#[test]
fn evidence_in_election_makes_a_follower() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants_all(["a", "b"]);
        assert_eq!(world.evidence("a"), Some(1));
        assert_eq!((world.engine.role(), world.engine.losses(), world.engine.len()), (Role::Follower, 0, 1));
        assert!(backoff(0).contains(&world.lease()));
        assert_eq!(world.sleeps_for_one().key, "b");
    }
}

#[test]
fn evidence_makes_a_leader_a_follower() {
    for seed in SEEDS {
        let mut world = World::leading_wide(seed, 4);
        world.wants_all(["a", "b"]);
        assert_eq!(world.evidence("a"), Some(world.jobs - 1));
        assert_eq!((world.engine.role(), world.engine.losses(), world.engine.len()), (Role::Follower, 0, 1));
        assert_eq!(world.engine.window(), 1);
        assert!(deposed().contains(&world.lease()), "{:?}", world.lease());
        assert_eq!(world.engine.counters().lost, 1);
        assert_eq!(world.sleeps_for_one().key, "b");
    }
}

#[test]
fn evidence_lengthens_a_followers_backoff() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        for losses in 1..10 {
            let (work, _) = world.wants("a");
            assert_eq!(world.evidence("a"), Some(work));
            assert_eq!((world.engine.losses(), world.engine.len()), (losses, 0));
            assert!(backoff(losses).contains(&world.lease()), "{losses} {:?}", world.lease());
        }
    }
}

#[test]
fn evidence_counts_without_pending_work() {
    let mut world = World::leading(1);
    assert_eq!(world.evidence("never wanted"), None);
    assert_eq!(world.engine.role(), Role::Follower);
}

// observe: one of our group wrote something else

#[test]
fn observed_write_moves_lease_but_keeps_the_work() {
    for seed in SEEDS {
        for (mut world, losses, lease) in [
            (World::new(seed), 0, backoff(0)),
            (World::leading_wide(seed, 4), 0, deposed()),
            (World::following(seed), 1, backoff(1)),
        ] {
            world.wants("a");
            world.engine.handle_observe(world.now, &"key".to_owned(), None);
            assert_eq!((world.engine.role(), world.engine.losses()), (Role::Follower, losses));
            assert_eq!((world.engine.window(), world.engine.len()), (1, 1));
            assert!(lease.contains(&world.lease()), "{losses} {:?}", world.lease());
            assert_eq!(world.sleeps_for_one().key, "a");
        }
    }
}

// Conflict: refused as stale

#[test]
fn conflict_in_election_delays_its_key_only() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants_all(["a", "b"]);
        let a = world.sleeps_for_one();
        let before = world.standing();
        assert_eq!(world.ends(a, Outcome::Conflict), None);
        assert_eq!(world.standing(), before);
        let refused = world.now;
        let b = world.one();
        assert_eq!(b.key, "b", "the other key need not wait");
        world.ends(b, Outcome::Unchanged);
        let a = world.sleeps_for_one();
        assert_eq!((a.key.as_str(), a.number, a.job), ("a", 2, 1));
        assert!((ms(20)..=ms(30)).contains(&(world.now - refused)), "{:?}", world.now - refused);
    }
}

#[test]
fn each_conflict_doubles_the_wait_of_its_key() {
    for seed in SEEDS {
        let mut world = World::leading(seed);
        world.wants("a");
        for n in 0..12 {
            let attempt = world.sleeps_for_one();
            world.ends(attempt, Outcome::Conflict);
            let low = RETRY.min(ms(20) * 2_u32.pow(n));
            let wait = world.timeout().unwrap();
            let high = RETRY.mul_f64(1.1).min(low.mul_f64(1.5));
            assert!(wait >= low && wait <= high, "{n} {wait:?}");
        }
    }
}

/// Another group may write the key at even intervals. Retries at even intervals would be refused
/// each time.
#[test]
fn long_refused_key_is_not_retried_in_step() {
    let mut world = World::leading(1);
    world.wants("a");
    let waits: HashSet<_> = (0..40)
        .map(|_| {
            let attempt = world.sleeps_for_one();
            world.ends(attempt, Outcome::Conflict);
            world.timeout().unwrap()
        })
        .filter(|wait| *wait >= RETRY)
        .collect();
    assert!(waits.len() > 25, "{waits:?}");
    assert!(waits.iter().max().unwrap().abs_diff(*waits.iter().min().unwrap()) > RETRY / 20);
}

#[test]
fn conflicts_halve_a_leaders_window_once_per_burst() {
    let mut world = World::leading_wide(1, 16);
    world.wants_many(16);
    let running = world.polls();
    assert_eq!(running.len(), 16);
    let before = world.standing();
    for attempt in running {
        world.ends(attempt, Outcome::Conflict);
        assert_eq!(world.standing(), Standing { window: 8, ..before });
    }
    let burst = world.sleeps();
    for attempt in burst {
        world.ends(attempt, Outcome::Conflict);
    }
    assert_eq!(world.standing(), Standing { window: 4, ..before });
}

#[test]
fn conflict_of_an_expired_follower_moves_nothing() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        world.wants_all(["a", "b"]);
        let probe = world.sleeps_for_one();
        let before = world.standing();
        world.pass(ms(2));
        assert_eq!(world.ends(probe, Outcome::Conflict), None);
        assert_eq!(world.standing(), before);
        assert_eq!(world.sleeps_for_one().key, "b");
    }
}

#[test]
fn conflict_of_a_suspicion_only_doubles_patience() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        world.wants("a");
        let probe = world.sleeps_for_one();
        assert_eq!(world.engine.counters().suspicions, 1);
        let before = world.standing();
        assert_eq!(world.ends(probe, Outcome::Conflict), None);
        let after = world.standing();
        assert_eq!(world.unspread(), secs(2));
        assert_eq!(after, Standing { patience: after.patience, ..before });
    }
}

// Failed: nothing learnt

#[test]
fn failures_of_two_keys_pause_all_attempts() {
    for seed in SEEDS {
        for mut world in [World::new(seed), World::leading_wide(seed, 4), World::following(seed)] {
            world.wants_many(10);
            let mut running = world.sleeps();
            let before = world.standing();
            let first = running.remove(0);
            assert_eq!(world.ends(first, Outcome::Failed), None);
            assert_eq!(world.standing(), before, "one key's failure is no outage");
            if running.is_empty() {
                running = world.polls();
            }
            assert_eq!(world.ends(running.remove(0), Outcome::Failed), None);
            let window = if before.role == Role::Leader { 1 } else { before.window };
            assert_eq!(world.standing(), Standing { window, ..before });
            for other in running {
                world.ends(other, Outcome::Failed);
            }
            let paused = world.now;
            let again = world.sleeps_for_one();
            assert!((ms(20)..=ms(22)).contains(&(world.now - paused)), "{:?}", world.now - paused);
            assert!(!["0", "1"].contains(&&*again.key), "another key finds out whether the store is back");
        }
    }
}

#[test]
fn lease_runs_out_while_the_store_is_down() {
    let mut world = World::leading(1);
    let lease_end = world.engine.lease_end();
    world.wants("a");
    while world.now < lease_end {
        for attempt in world.polls() {
            world.ends(attempt, Outcome::Failed);
        }
        assert!(world.leads());
        assert_eq!(world.engine.lease_end(), lease_end);
        world.now = world.engine.poll_timeout().unwrap().min(lease_end);
    }
    assert!(!world.leads());
    assert_eq!(world.engine.role(), Role::Leader);
}

// Unchanged: nothing to write

#[test]
fn unchanged_moves_nothing_in_any_role() {
    for seed in SEEDS {
        for mut world in [World::new(seed), World::leading_wide(seed, 4), World::following(seed)] {
            let (work, _) = world.wants("a");
            let attempt = world.sleeps_for_one();
            let before = world.standing();
            world.pass(ms(2));
            assert_eq!(world.ends(attempt, Outcome::Unchanged), Some(work));
            assert_eq!(world.standing(), before);
            assert!(world.engine.is_empty() && world.engine.decided());
        }
    }
}

// remove(key)

#[test]
fn removal_clears_the_work_and_moves_nothing() {
    for seed in SEEDS {
        for mut world in [World::new(seed), World::leading(seed), World::following(seed)] {
            let (a, _) = world.wants("a");
            let before = world.standing();
            assert_eq!(world.removes("a"), Some(a));
            assert_eq!(world.removes("a"), None);
            assert_eq!(world.standing(), before);
            assert!(world.engine.is_empty());
            world.pass(TERM * 2);
            assert!(world.polls().is_empty());
        }
    }
}

// expire()

#[test]
fn expiry_in_election_probes_now() {
    for seed in SEEDS {
        let mut world = World::new(seed);
        world.wants_all(["a", "b"]);
        world.engine.handle_expire(world.now);
        assert_eq!(world.one().key, "a");
    }
}

#[test]
fn expiry_spares_the_first_try_its_election_delay() {
    let mut world = World::new(1);
    world.engine.handle_expire(world.now);
    world.wants("a");
    assert_eq!(world.one().key, "a");
}

#[test]
fn expired_leader_leads_again_only_by_success() {
    let mut world = World::leading_wide(1, 4);
    let before = world.standing();
    world.pass(secs(1));
    world.engine.handle_expire(world.now);
    assert!(!world.leads());
    assert_eq!(world.standing(), Standing { lease_end: world.now, ..before });
    world.wants_all(["a", "b"]);
    let a = world.one();
    let started = world.now;
    world.ends(a, Outcome::Unchanged);
    assert!(!world.leads(), "nothing to write is no success");
    let b = world.one();
    world.ends(b, Outcome::Written);
    assert!(world.leads());
    assert_eq!((world.engine.lease_end(), world.engine.epoch()), (started + TERM, 1));
}

#[test]
fn expiry_as_a_follower_probes_now() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        world.wants_all(["a", "b"]);
        assert!(world.polls().is_empty());
        world.engine.handle_expire(world.now);
        assert_eq!(world.engine.role(), Role::Follower);
        let probe = world.one();
        assert_eq!(probe.key, "a");
        world.ends(probe, Outcome::Written);
        assert!(world.leads());
        assert_eq!(world.engine.counters().suspicions, 0);
    }
}

#[test]
fn expiry_spares_a_follower_the_head_start() {
    let mut world = World::long_following(1);
    world.engine.handle_expire(world.now);
    world.pass(secs(1));
    world.wants("a");
    assert_eq!(world.one().key, "a");
}

#[test]
fn evidence_revokes_an_expiry() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        world.engine.handle_expire(world.now);
        world.evidence("theirs");
        assert!(!world.lease().is_zero());
        world.now = world.engine.lease_end();
        world.wants("a");
        assert!(world.timeout().unwrap() >= ECHO * 4, "the head start is the incumbent's again");
    }
}

// The lease ends

#[test]
fn election_has_no_lease_to_end() {
    let mut world = World::new(1);
    assert_eq!((world.engine.lease_end(), world.engine.poll_timeout()), (Timestamp::ZERO, None));
    world.pass(TERM * 100);
    assert!(!world.leads() && world.polls().is_empty());
    assert_eq!(world.engine.role(), Role::Election);
}

#[test]
fn idle_leaders_lease_ends_but_it_stays_incumbent() {
    let mut world = World::leading(1);
    let lease_end = world.engine.lease_end();
    assert_eq!(world.engine.poll_timeout(), Some(lease_end));
    assert!(world.engine.is_leader(Timestamp::from_nanos(lease_end.as_nanos() - 1)));
    assert!(!world.engine.is_leader(lease_end));
    let before = world.standing();
    world.now = lease_end;
    assert!(world.polls().is_empty());
    assert_eq!(world.standing(), before);
    assert_eq!(world.engine.poll_timeout(), None);
    // The incumbent's next attempt needs no delay.
    world.wants("a");
    assert_eq!(world.one().key, "a");
}

#[test]
fn follower_may_probe_once_the_lease_ends() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        world.wants_many(10);
        assert_eq!(world.sleeps_for_one().key, "0");
        assert_eq!(world.engine.role(), Role::Follower);
        assert!(world.lease().is_zero());
    }
}

// an election decides

#[test]
fn elected_replica_leads_until_the_given_time() {
    for mut world in [World::new(1), World::following(1), World::leading(1)] {
        let epoch = world.engine.epoch() + u64::from(world.engine.role() != Role::Leader);
        world.engine.handle_elected(world.now, world.now + secs(100));
        let before = world.standing();
        assert_eq!((before.role, before.epoch), (Role::Leader, epoch));
        assert_eq!(world.engine.counters().won, epoch);
        assert!(world.leads());
        world.pass(secs(10));
        world.engine.handle_elected(world.now, world.now + secs(100));
        assert_eq!(world.standing(), Standing { lease_end: world.now + secs(100), ..before });
        world.pass(secs(100));
        assert!(!world.leads());
    }
}

#[test]
fn replica_that_is_not_elected_runs_nothing() {
    for mut world in [World::new(1), World::following(1), World::leading(1)] {
        world.engine.handle_not_elected(world.now);
        assert_eq!((world.engine.role(), world.leads()), (Role::Follower, false));
        let counters = world.engine.counters();
        assert_eq!(counters.won + counters.lost, world.engine.role_generation());
        world.wants_many(3);
        assert!(world.polls().is_empty());
        assert_eq!(world.engine.poll_timeout(), None);
        let role_generation = world.engine.role_generation();
        world.pass(secs(3600));
        world.engine.handle_not_elected(world.now);
        assert_eq!(world.engine.role_generation(), role_generation);
        assert!(world.polls().is_empty());
    }
}

#[test]
fn elected_replica_runs_nothing_past_its_time() {
    let mut world = World::new(1);
    world.engine.handle_elected(world.now, world.now + secs(100));
    world.wants("a");
    let attempt = world.one();
    world.ends(attempt, Outcome::Conflict);
    world.pass(secs(100));
    world.wants("b");
    assert!(world.polls().is_empty(), "not even a probe: the election has not ended officially");
    world.engine.handle_elected(world.now, world.now + secs(100));
    assert_eq!(keys(&world.polls()), ["a"], "slowly, as after any pause");
}

#[test]
fn past_time_elects_nobody() {
    let mut world = World::new(1);
    world.engine.handle_elected(world.now, world.now);
    assert_eq!((world.engine.role(), world.engine.epoch()), (Role::Follower, 0));
}

#[test]
fn under_an_election_no_write_moves_the_lease() {
    let mut world = World::new(1);
    let until = world.now + secs(100);
    world.engine.handle_elected(world.now, until);
    world.wants_all(["a", "b", "c"]);
    for window in [2, 3] {
        let attempt = world.polls().remove(0);
        world.ends(attempt, Outcome::Written);
        assert_eq!((world.engine.window(), world.engine.lease_end()), (window, until));
    }
    let before = world.standing();
    world.wants("d");
    for attempt in world.polls() {
        world.ends(attempt, Outcome::WrittenByOther.done());
    }
    world.wants("e");
    assert!(world.evidence("e").is_some(), "another replica did it");
    world.engine.handle_observe(world.now, &"key".to_owned(), None);
    world.engine.handle_expire(world.now);
    // Patience still learns from the evidence.
    let patience = world.engine.patience();
    assert_eq!(world.standing(), Standing { patience, ..before });
    assert!(world.leads() && world.engine.is_empty());
}

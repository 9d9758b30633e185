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

/// In each round the first sample makes patience shorter than the round, and the later ones make it
/// longer again. If the pause between rounds then counted as a silence, no key would ever be
/// overdue.
#[test]
fn shorter_patience_creates_no_silence_in_hindsight() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        sample(&mut world, "a", ms(2000));
        world.wants("mine");
        let began = world.now;
        let overdue = (0..4).any(|_| {
            // A steady pace makes patience shorter, because the deviation falls.
            world.pass(world.engine.patience() - ms(2002));
            sample(&mut world, "a", ms(2000));
            world.polls().iter().any(|attempt| attempt.key == "mine")
        });
        assert!(
            overdue,
            "not after {:?}, with a patience of {:?}",
            world.now - began,
            world.engine.patience()
        );
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
    world.engine.handle_try(world.now, "a".to_owned(), 0);
    world.pass(TERM);
    world.evidence("a");
    assert_eq!(world.engine.patience(), secs(5));

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
        assert_eq!((counters.suspicions, counters.overdue), (1, 0));
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
        // The leader writes the old keys, or they become overdue. The next suspicion needs another
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
fn key_skipped_by_a_living_leader_is_written() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        let since = world.now;
        let attempt = world.writes_overdue("a");
        assert_eq!(attempt.key, "a");
        let overdue = since + world.engine.patience();
        assert!(overdue <= world.now && world.now <= overdue + ms(50), "there is a sign every 50 ms");
        let counters = world.engine.counters();
        assert_eq!((counters.suspicions, counters.overdue), (0, 1));
    }
}

#[test]
fn overdue_keys_run_one_by_one_oldest_first() {
    let mut world = World::long_following(1);
    world.wants_many(5);
    for i in 0..5 {
        let attempt = world.outlasts_patience_under_evidence();
        assert_eq!(attempt.key, i.to_string());
        for _ in 0..10 {
            world.pass(ms(100));
            world.evidence("theirs");
            assert!(world.polls().is_empty());
        }
        let before = world.standing();
        world.ends(attempt, Outcome::Written);
        assert_eq!(world.standing(), before, "role and lease stay");
    }
    assert_eq!(world.engine.counters().overdue, 5);
    assert_eq!(world.engine.role(), Role::Follower);
}

#[test]
fn leader_that_dies_amid_its_work_is_replaced() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        world.wants_all(["done", "left"]);
        world.pass(ms(20));
        world.evidence("done");
        let last_sign = world.now;
        let attempt = world.sleeps_for_one();
        // The key has been overdue for 20 ms, but the leader has not been seen since.
        assert_eq!(world.now, last_sign + world.engine.patience());
        world.ends(attempt, Outcome::Written);
        assert_eq!(world.engine.role(), Role::Leader);
    }
}

#[test]
fn leader_seen_past_patience_makes_keys_overdue() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        world.wants("left");
        let patience = world.engine.patience();
        world.pass(patience - ms(1));
        world.evidence("theirs");
        assert!(world.polls().is_empty());
        world.pass(ms(1));
        assert!(world.polls().is_empty(), "that may have been its last sign of life");
        world.evidence("theirs");
        let attempt = world.one();
        let before = world.standing();
        world.ends(attempt, Outcome::Written);
        assert_eq!(world.standing(), before);
    }
}

#[test]
fn new_or_returning_leader_gets_its_time() {
    for seed in SEEDS {
        for deposed in [true, false] {
            let mut world = if deposed { World::leading(seed) } else { World::long_following(seed) };
            world.wants("old");
            // An outage: no replica writes, and all our attempts fail.
            while world.now - Timestamp::ZERO < secs(1_030) {
                for attempt in world.polls() {
                    world.ends(attempt, Outcome::Failed);
                }
                world.pass(ms(10));
            }
            let heard = world.now;
            world.evidence("theirs");
            // The first backoff is shorter than the gaps between the evidence below.
            if deposed {
                world.falls_far_behind(ms(150));
            }
            let patience = world.engine.patience();
            let attempt = world.outlasts_patience_under_evidence();
            assert!(world.now - heard >= patience, "{deposed}: {:?} of {patience:?}", world.now - heard);
            let before = world.standing();
            world.ends(attempt, Outcome::Written);
            assert_eq!(world.standing(), before, "overdue");
        }
    }
}

#[test]
fn adopted_key_runs_immediately_until_evidence_on_it() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        let attempt = world.writes_overdue("a");
        world.ends(attempt, Outcome::Written);
        for outcome in [Outcome::Written, Outcome::Unchanged, Outcome::Conflict, Outcome::Failed] {
            world.wants("a");
            let attempt = world.sleeps_for_one();
            assert_eq!(attempt.key, "a");
            world.ends(attempt, outcome);
            world.evidence("theirs");
            let before = world.standing();
            if !world.engine.is_empty() {
                let attempt = world.sleeps_for_one();
                world.ends(attempt, Outcome::Written);
            }
            assert_eq!(world.standing(), before, "neither role nor lease");
        }
        world.evidence("a");
        world.wants("a");
        assert!(world.polls().is_empty(), "it is the leader's again");
    }
}

#[test]
fn adopted_key_wins_a_lease_that_ended() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        let attempt = world.writes_overdue("a");
        world.ends(attempt, Outcome::Written);
        world.pass(2 * TERM);
        world.wants("a");
        world.wants("b");
        let attempt = world.one();
        assert_eq!(attempt.key, "a", "a leader that skips the key gets no head start");
        world.ends(attempt, Outcome::Written);
        assert_eq!(world.engine.role(), Role::Leader);
    }
}

#[test]
fn written_by_other_and_removal_end_an_adoption() {
    for released in [true, false] {
        let mut world = World::long_following(1);
        let attempt = world.writes_overdue("a");
        world.ends(attempt, Outcome::Written);
        if released {
            world.wants("a");
            let attempt = world.one();
            world.ends(attempt, Outcome::WrittenByOther);
        } else {
            world.removes("a");
        }
        world.wants("a");
        assert!(world.polls().is_empty());
    }
}

#[test]
fn key_cleared_in_flight_is_not_adopted() {
    for evidence in [true, false] {
        let mut world = World::long_following(1);
        let attempt = world.writes_overdue("a");
        if evidence {
            world.evidence("a")
        } else {
            world.removes("a")
        };
        world.ends(attempt, Outcome::Written);
        world.wants("a");
        assert!(world.polls().is_empty(), "by evidence: {evidence}");
    }
}

#[test]
fn follower_stays_within_concurrency_and_starves_no_key() {
    for concurrency in [1, 2, 4] {
        let mut world = World::long_following_with(settings(1).concurrency(concurrency));
        world.wants_many(6);
        for _ in 0..6 {
            let attempt = world.outlasts_patience_under_evidence();
            world.ends(attempt, Outcome::Written);
        }
        // Adopted keys return all the time; another key becomes overdue among them.
        world.wants("other");
        let began = world.now;
        let mut running: Vec<Running> = Vec::new();
        loop {
            for i in 0..6 {
                world.wants(&i.to_string());
            }
            running.extend(world.polls());
            assert!(running.len() <= concurrency, "{concurrency}: {:?}", keys(&running));
            if keys(&running).contains(&"other") {
                break;
            }
            world.pass(ms(50));
            world.evidence("theirs");
            for attempt in std::mem::take(&mut running) {
                world.ends(attempt, Outcome::Written);
            }
            assert!(world.now - began < world.engine.patience() + secs(1), "{concurrency}: starved");
        }
    }
}

/// Lets all replicas request the same keys in rounds. Each sees the writes of the others.
fn society(worlds: &mut [World], keys: &[&str], time: Duration, mut each_round: impl FnMut(&[World])) {
    let end = worlds[0].now + time;
    while worlds[0].now < end {
        let mut missing: Vec<&str> = keys.to_vec();
        worlds.iter_mut().for_each(|world| world.wants_all(keys.iter().copied()));
        for _ in 0..5 {
            for one in 0..worlds.len() {
                for attempt in worlds[one].polls() {
                    let key = attempt.key.clone();
                    let Some(place) = missing.iter().position(|missing| *missing == key) else {
                        worlds[one].ends(attempt, Outcome::Unchanged);
                        continue;
                    };
                    missing.remove(place);
                    worlds[one].ends(attempt, Outcome::Written);
                    for (other, world) in worlds.iter_mut().enumerate() {
                        if other != one {
                            world.evidence(&key);
                        }
                    }
                }
            }
            worlds.iter_mut().for_each(|world| world.pass(ms(10)));
        }
        each_round(worlds);
    }
}

#[test]
fn followers_with_adopted_keys_settle_on_one_leader() {
    for seed in SEEDS.step_by(4) {
        let mut worlds = [0, 1, 2].map(|replica| World::long_following(3 * seed + replica));
        // Each believes that another replica leads. Two of them have adopted half of the keys each.
        let keys = ["0", "1", "2", "3", "4", "5", "6", "7"];
        for (world, own) in worlds.iter_mut().zip(keys.chunks(4)) {
            for key in own {
                let attempt = world.writes_overdue(key);
                world.ends(attempt, Outcome::Written);
            }
        }
        let latest = worlds.iter().map(|world| world.now).max().unwrap();
        worlds.iter_mut().for_each(|world| world.now = latest);
        let leaders = |worlds: &[World]| worlds.iter().filter(|world| world.leads()).count();
        society(&mut worlds, &keys, secs(45), |_| {});
        let mut rounds = Vec::new();
        society(&mut worlds, &keys, secs(10), |worlds| rounds.push(leaders(worlds)));
        assert!(rounds.iter().all(|leaders| *leaders == 1), "seed {seed}: {rounds:?}");
    }
}

#[test]
fn unclaimed_adopted_key_waits_ever_more_rarely() {
    for seed in SEEDS.step_by(10) {
        let mut world = World::long_following(seed);
        let patience = world.engine.patience();
        let attempt = world.writes_overdue("a");
        world.ends(attempt, Outcome::Written);
        let (began, mut adopted, mut adoptions) = (world.now, world.now, Vec::new());
        while world.now - began < 100 * patience {
            let wanted = world.now;
            let attempt = world.writes_overdue("a");
            world.ends(attempt, Outcome::Written);
            if world.now - wanted >= ms(100) {
                // Longer than any other replica would wait, so that one that wants the key gets it
                // first.
                let most = patience * 5 / 4 + Tuning::default().patience_spread + ms(100);
                assert!(world.now - wanted <= most, "{:?}", world.now - wanted);
                adoptions.push((wanted - adopted).div_duration_f64(patience).round());
                adopted = world.now;
            }
            world.pass(ms(50));
            world.evidence("theirs");
        }
        assert_eq!(adoptions[..4], [2.0, 4.0, 8.0, 16.0], "in patiences");
    }
}

/// A write of an adopted key may be in flight when the adoption expires. Its success must not start
/// the next adoption, or no other replica gets to the key.
#[test]
fn late_write_does_not_renew_an_expired_adoption() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        let attempt = world.writes_overdue("a");
        world.ends(attempt, Outcome::Written);
        let adoption = world.engine.patience() * 2;
        world.pass(adoption - ms(1));
        world.wants("a");
        let ours = world.one();
        world.pass(ms(2));
        world.polls();
        world.ends(ours, Outcome::Written);
        world.wants("a");
        assert!(world.polls().is_empty(), "{seed}");
    }
}

/// Otherwise followers pass overdue keys around among themselves for minutes, without a leader.
#[test]
fn holder_of_adopted_keys_takes_the_next_first() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        let patience = world.engine.patience();
        let attempt = world.writes_overdue("a");
        world.ends(attempt, Outcome::Written);
        let since = world.now;
        let attempt = world.writes_overdue("b");
        let waited = world.now - since;
        assert!(waited >= world.unspread() && waited <= world.unspread() + ms(100), "{seed}: {waited:?}");
        world.ends(attempt, Outcome::Written);
        // Once the adoptions have expired, the full patience counts again.
        world.pass(patience * 4);
        world.evidence("theirs");
        world.polls();
        let since = world.now;
        let _attempt = world.writes_overdue("c");
        assert!(world.now - since >= world.engine.patience(), "{seed}");
    }
}

#[test]
fn takeover_elsewhere_ends_adoptions_past_half_time() {
    for seed in SEEDS {
        let mut world = World::long_following(seed);
        let attempt = world.writes_overdue("ours");
        world.ends(attempt, Outcome::Written);
        let half = world.engine.patience();
        let is_ours = |world: &mut World| {
            world.wants("ours");
            let attempt = world.polls().pop();
            let is_ours = attempt.is_some();
            if let Some(attempt) = attempt {
                world.ends(attempt, Outcome::Written);
            }
            is_ours
        };
        // No replica would have lost patience by then.
        let in_time = world.unspread() - ms(1);
        world.pass(half - in_time);
        sample(&mut world, "theirs", in_time);
        assert!(is_ours(&mut world), "{seed}");
        let late = world.unspread();
        sample(&mut world, "theirs", late);
        assert!(!is_ours(&mut world), "{seed}");
        // It is adopted again, for longer.
        let attempt = world.outlasts_patience_under_evidence();
        world.ends(attempt, Outcome::Written);
        let late = world.unspread();
        sample(&mut world, "theirs", late);
        assert!(is_ours(&mut world), "{seed}: too early");
    }
}

#[test]
fn fixed_patience_is_the_term() {
    let mut world = World::following_with(settings(1).fixed_patience());
    assert_eq!(world.engine.patience(), TERM);
    sample(&mut world, "a", ms(10));
    assert_eq!(world.engine.patience(), TERM);
}

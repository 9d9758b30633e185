//! Rule 6: a key belongs to whoever wrote it last.

use super::*;

/// Another replica is known to have written the keys, and to live.
fn following_incumbent_of(seed: u64, keys: &[&str]) -> World {
    let mut world = World::long_following(seed);
    for key in keys {
        world.evidence(key);
    }
    world
}

/// A follower that took a key over.
fn owning(seed: u64, key: &str) -> World {
    let mut world = following_incumbent_of(seed, &[key]);
    let attempt = world.takes_over(key);
    world.ends(attempt, Outcome::Written);
    world
}

fn runs(world: &mut World, key: &str) -> bool {
    world.wants(key);
    let attempts = world.polls();
    world.removes(key);
    let runs = keys(&attempts).contains(&key);
    world.end_all(attempts, Outcome::Unchanged);
    runs
}

#[test]
fn our_keys_are_attempted_at_once_whatever_our_role() {
    for seed in SEEDS {
        let mut world = owning(seed, "a");
        assert_eq!(world.engine.role(), Role::Follower);
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
        assert!(!runs(&mut world, "a"), "another wrote it last");

        let mut world = World::leading_wide(seed, 3);
        world.lands("a");
        world.evidence("b");
        assert_eq!(world.engine.role(), Role::Follower);
        assert!(runs(&mut world, "a"), "a deposed leader's keys stay its own");
    }
}

#[test]
fn key_that_others_leave_is_taken_after_one_patience() {
    for seed in SEEDS {
        for key in ["theirs", "nobody's"] {
            let mut world = following_incumbent_of(seed, &["theirs", "other"]);
            for _ in 0..100 {
                world.pass(ms(50));
                world.evidence("other");
            }
            let since = world.now;
            world.wants(key);
            let attempt = loop {
                if let Some(attempt) = world.polls().pop() {
                    break attempt;
                }
                world.pass(ms(10));
                world.evidence("other");
            };
            let waited = world.now - since;
            let due = match key {
                "theirs" => world.engine.shards[0].patience.for_one_key(),
                _ => world.engine.patience(),
            };
            assert!(due <= waited && waited <= due + ms(10), "{key}: {waited:?}, not {due:?}");
            let before = world.standing();
            world.ends(attempt, Outcome::Written);
            let counters = world.engine.counters();
            if key == "theirs" {
                assert_eq!((counters.suspicions, counters.takeovers), (0, 1));
                assert_eq!(world.standing(), before, "role and lease stay");
            } else {
                assert_eq!((counters.suspicions, counters.takeovers), (1, 0));
                assert!(world.leads(), "nobody else does what is nobody's");
                assert!(runs(&mut world, "new"), "so that this happens once");
            }
            assert!(runs(&mut world, key), "it is ours now");
        }
    }
}

/// A slow leader may be working through a long queue.
#[test]
fn service_of_older_requests_shows_no_skipping() {
    for seed in SEEDS {
        // Patience that learns would follow the leader.
        let mut world = World::long_following_with(settings(seed).term(secs(3)).fixed_patience());
        world.wants_many(20);
        world.wants("left");
        for i in 0..20 {
            world.pass(ms(400));
            world.evidence(&i.to_string());
            assert!(world.polls().is_empty(), "at {i}");
        }
        let attempts = (0..100).find_map(|i| {
            let younger = format!("younger {i}");
            world.wants(&younger);
            world.pass(ms(300));
            world.evidence(&younger);
            Some(world.polls()).filter(|attempts| !attempts.is_empty())
        });
        assert_eq!(keys(&attempts.expect("the leader skips it")), ["left"]);
    }
}

/// A follower, with a patience of 3 s, that has just seen others skip its keys, named "0", "1" and so on.
fn seeing_keys_skipped(seed: u64, count: usize) -> World {
    let mut world = World::long_following_with(settings(seed).term(secs(3)).fixed_patience());
    world.wants_many(count);
    for _ in 0..4 {
        world.evidence("other");
        world.pass(ms(700));
    }
    world.pass(ms(300));
    world.wants("younger");
    world.evidence("younger");
    world
}

/// When a replica that sees a skip leaves no more time to others.
fn own_time(world: &World) -> Timestamp {
    world.now + (16 * ECHO).mul_f64(world.engine.shards[0].patience.place())
}

#[test]
fn those_who_see_a_skip_probe_one_by_one() {
    let mut early = 0;
    for seed in SEEDS {
        let mut world = seeing_keys_skipped(seed, 1);
        let (seen, due) = (world.now, own_time(&world));
        let attempt = world.sleeps_for_one();
        assert_eq!((attempt.key.as_str(), world.now), ("0", due));
        early += usize::from(world.now < seen + 8 * ECHO);
    }
    assert!(early < 10, "{early} of 200 in the first half: the first one silences the rest");
}

#[test]
fn first_to_write_skipped_keys_gets_time_for_the_rest() {
    for seed in SEEDS {
        let mut world = seeing_keys_skipped(seed, 500);
        let seen = world.now;
        let mut rest = 0..500;
        while world.polls().is_empty() {
            world.evidence(&rest.next().expect("there are more keys").to_string());
            world.pass(ms(40));
        }
        let waited = world.now - seen;
        assert!(waited < secs(10), "nobody waits for ever: {waited:?}");
        if world.engine.shards[0].patience.place() > 0.5 {
            assert!(waited > secs(7), "{waited:?}");
        }
    }
}

/// A replica that has more to do than it can leaves what is another's to those that have not.
#[test]
fn busy_replica_takes_over_later() {
    for seed in SEEDS {
        let mut world = World::long_following_with(settings(seed).concurrency(1));
        for key in ["mine", "too"] {
            world.evidence(key);
            let attempt = world.takes_over(key);
            world.ends(attempt, Outcome::Written);
        }
        world.evidence("theirs");
        world.pass(ms(1));
        world.wants("theirs");
        let since = world.now;
        let waited = loop {
            world.wants_all(["mine", "too"]);
            let attempt = world.one();
            if attempt.key == "theirs" {
                break world.now - since;
            }
            world.pass(ms(5));
            world.ends(attempt, Outcome::Written);
            world.evidence("other");
        };
        let due = world.engine.shards[0].patience.for_one_key() * 2;
        assert!(due <= waited && waited <= due + ms(20), "{waited:?}, not {due:?}");
    }
}

#[test]
fn takeovers_start_with_one_and_grow() {
    let all: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut world = following_incumbent_of(1, &all);
    world.wants_many(20);
    let mut attempts = vec![world.outlasts_patience_under_evidence()];
    for most in [2, 4] {
        world.end_all(attempts.drain(..), Outcome::Written);
        attempts = world.polls();
        assert_eq!(attempts.len(), most);
    }
    world.ends(attempts.pop().unwrap(), Outcome::Conflict);
    world.end_all(attempts.drain(..), Outcome::Unchanged);
    world.evidence("theirs");
    assert_eq!(world.polls().len(), 2, "a conflict halves them");
    // Much later the load is another one.
    let mut world = following_incumbent_of(2, &all);
    for round in 0..2 {
        for key in &all {
            world.evidence(key);
        }
        world.pass(secs(1));
        world.wants_many(3);
        let attempt = world.outlasts_patience_under_evidence();
        world.ends(attempt, Outcome::Written);
        let attempts = world.polls();
        assert_eq!(attempts.len(), 2, "round {round}: one, then more");
        world.end_all(attempts, Outcome::Written);
    }
}

#[test]
fn leader_takes_over_what_another_leaves() {
    for seed in SEEDS {
        let mut world = World::leading_wide(seed, 4);
        world.evidence("theirs");
        assert_eq!(world.engine.role(), Role::Follower);
        world.pass(secs(1));
        world.wins();
        world.wants_all(["theirs", "new"]);
        let attempt = world.one();
        assert_eq!(attempt.key, "new", "the other has its time");
        world.ends(attempt, Outcome::Written);
        let patience = world.engine.shards[0].patience.for_one_key();
        let since = world.now;
        let attempt = world.sleeps_for_one();
        assert_eq!((attempt.key.as_str(), world.now), ("theirs", since + patience));
        world.ends(attempt, Outcome::Written);
        assert!(world.leads());
        assert_eq!(world.engine.lease_end(), world.now + TERM);
        assert!(runs(&mut world, "theirs"));
    }
}

#[test]
fn evidence_on_anothers_key_deposes_no_leader() {
    for seed in SEEDS {
        let mut world = World::leading(seed);
        world.evidence("theirs");
        world.pass(secs(1));
        world.wins();
        world.wants("theirs");
        world.evidence("theirs");
        assert!(world.leads(), "that is nothing new");
        world.wants("nobody's");
        world.evidence("nobody's");
        assert_eq!(world.engine.role(), Role::Follower);
    }
}

/// The others lose patience with a slow leader, and take single keys over. It stays the leader, if it
/// is at work.
#[test]
fn leader_that_is_slow_is_not_deposed_but_one_that_stood_still_is() {
    for seed in SEEDS {
        for stands_still in [false, true] {
            let mut world = World::leading_wide(seed, 4);
            world.wants_all(["slow", "at work"]);
            let attempts = world.polls();
            world.pass(secs(2));
            if !stands_still {
                for attempt in attempts {
                    if attempt.key == "at work" {
                        world.ends(attempt, Outcome::Written);
                    }
                }
            }
            world.evidence("slow");
            assert_eq!(world.leads(), !stands_still);
        }
    }
}

#[test]
fn rival_that_wins_at_the_same_time_deposes_us() {
    for seed in SEEDS {
        let mut world = following_incumbent_of(seed, &["a", "b", "c"]);
        world.wants_all(["a", "b", "c"]);
        let probe = world.sleeps_for_one();
        world.ends(probe, Outcome::Written);
        let attempt = world.one();
        world.ends(attempt, Outcome::Written);
        // The key is older than our patience, but our leadership is not.
        world.evidence("c");
        assert_eq!(world.engine.role(), Role::Follower);
    }
}

#[test]
fn whoever_wins_by_silence_inherits_all_keys() {
    for seed in SEEDS {
        let mut world = following_incumbent_of(seed, &["0", "1", "2", "3"]);
        world.wants_many(4);
        let probe = world.sleeps_for_one();
        world.pass(ms(1));
        world.ends(probe, Outcome::Written);
        assert!(world.leads());
        for count in [1, 2] {
            let attempts = world.polls();
            assert_eq!(attempts.len(), count, "the dead leader's keys need no patience each");
            world.end_all(attempts, Outcome::Written);
        }
        assert_eq!(world.engine.counters().takeovers, 0);
    }
}

#[test]
fn whoever_wins_otherwise_does_not() {
    for seed in SEEDS {
        let mut world = World::following(seed);
        world.evidence("theirs");
        world.pass(secs(1));
        world.wants("nobody's");
        let probe = world.sleeps_for_one();
        assert_eq!(probe.key, "nobody's");
        world.ends(probe, Outcome::Written);
        assert!(world.leads());
        assert!(!runs(&mut world, "theirs"), "its writer may live");
    }
}

/// One replica does the work of a dead one: the others let it, although their keys are old.
#[test]
fn new_writer_after_a_silence_gets_its_time() {
    for seed in SEEDS {
        let mut world = following_incumbent_of(seed, &["0", "1", "2", "theirs"]);
        world.wants_many(3);
        world.pass(world.unspread() + ms(1));
        let began = world.now;
        world.evidence("theirs");
        let attempt = world.outlasts_patience_under_evidence();
        let patience = world.engine.patience();
        assert!(world.now - began >= patience.min(patience * 2 - (began - Timestamp::ZERO - secs(1_000))));
        world.ends(attempt, Outcome::Written);
        assert_eq!(world.engine.role(), Role::Follower);
    }
}

/// Whatever the others do, a key of theirs waits for three patiences at most.
#[test]
fn no_key_waits_for_long() {
    for seed in SEEDS {
        for gap in [ms(10), ms(700), ms(1_100), ms(1_900), ms(2_500)] {
            let mut world = following_incumbent_of(seed, &["left"]);
            let since = world.now;
            world.wants("left");
            let mut last = world.now;
            while world.polls().is_empty() {
                let next = world.engine.poll_timeout().unwrap().min(last + gap);
                world.now = next;
                if next == last + gap {
                    world.evidence("theirs");
                    last = next;
                }
                let waited = world.now - since;
                assert!(waited <= world.engine.patience() * 3, "{gap:?}: {waited:?}");
            }
        }
    }
}

#[test]
fn deleted_keys_are_nobodys() {
    for seed in SEEDS {
        let mut world = owning(seed, "a");
        world.engine.handle_deleted(world.now, &"a".to_owned());
        assert!(!runs(&mut world, "a"));
        // Also while it is pending.
        let mut world = following_incumbent_of(seed, &["a", "other"]);
        world.wants("a");
        world.engine.handle_deleted(world.now, &"a".to_owned());
        let _attempt = world.outlasts_patience_under_evidence();
        assert_eq!(world.engine.counters().takeovers, 0, "it probed for the lease");
    }
}

#[test]
fn incumbents_are_remembered_for_two_terms() {
    let mut world = owning(1, "a");
    world.pass(2 * TERM - secs(1));
    assert!(runs(&mut world, "a"), "wanting it counts, too");
    world.pass(2 * TERM + secs(1));
    world.evidence("theirs");
    assert!(!runs(&mut world, "a"));
    for i in 0..1_000 {
        world.evidence(&format!("once {i}"));
    }
    world.pass(2 * TERM);
    for _ in 0..1_000 {
        world.evidence("theirs");
    }
    assert!(world.engine.queue.remembered() <= 2, "nothing is remembered for ever");
}

#[test]
fn expiring_the_lease_frees_the_keys_of_others() {
    for seed in SEEDS {
        let mut world = following_incumbent_of(seed, &["theirs"]);
        world.engine.handle_expire(world.now);
        assert!(runs(&mut world, "theirs"));
    }
}

#[test]
fn key_that_another_wrote_meanwhile_is_not_ours() {
    for (verdict, evidence) in [(Outcome::Written, true), (Outcome::WrittenByOther, false)] {
        let mut world = following_incumbent_of(1, &["a"]);
        let attempt = world.takes_over("a");
        if evidence {
            world.evidence("a");
        }
        world.ends(attempt, verdict);
        assert!(!runs(&mut world, "a"), "{verdict:?}");
    }
}

#[test]
fn key_that_our_job_found_written_by_another_is_not_ours() {
    let mut world = owning(1, "a");
    world.wants("a");
    let attempt = world.one();
    world.ends(attempt, Outcome::WrittenByOther);
    assert!(!runs(&mut world, "a"));
}

/// All the keys of a dead replica are late at once. Who takes them over one by one leaves the group
/// without a leader, and meets the others.
#[test]
fn keys_are_taken_over_only_while_others_are_heard_of() {
    for seed in SEEDS {
        let mut world = following_incumbent_of(seed, &["late", "other"]);
        for _ in 0..100 {
            world.pass(ms(50));
            world.evidence("other");
        }
        world.wants("late");
        world.pass(ms(20));
        world.evidence("other");
        let last_sign = world.now;
        let attempt = world.sleeps_for_one();
        assert_eq!(world.now, last_sign + world.engine.patience());
        let counters = world.engine.counters();
        assert_eq!((counters.suspicions, counters.takeovers), (1, 0));
        world.ends(attempt, Outcome::Written);
        assert!(world.leads());
    }
}

#[test]
fn removed_key_stays_its_writers() {
    let mut world = owning(1, "a");
    world.wants("a");
    world.removes("a");
    assert!(runs(&mut world, "a"));
    // But what we gave up during the attempt is not ours by it.
    let mut world = following_incumbent_of(1, &["a"]);
    let attempt = world.takes_over("a");
    world.removes("a");
    world.ends(attempt, Outcome::Written);
    assert!(!runs(&mut world, "a"));
}

#[test]
fn own_key_wins_a_lease_that_ended() {
    for seed in SEEDS {
        let mut world = owning(seed, "a");
        world.pass(2 * TERM - secs(1));
        world.wants_all(["a", "b"]);
        let attempt = world.one();
        assert_eq!(attempt.key, "a", "a leader that skips the key gets no head start");
        world.ends(attempt, Outcome::Written);
        assert_eq!(world.engine.role(), Role::Leader);
    }
}

#[test]
fn follower_stays_within_concurrency_and_starves_no_key() {
    for concurrency in [1, 2, 4] {
        let mut world = World::long_following_with(settings(1).concurrency(concurrency));
        world.takes_over_many(6);
        // Keys of our own return all the time; another is nobody's.
        world.wants("other");
        let began = world.now;
        let mut running: Vec<Running> = Vec::new();
        loop {
            world.wants_many(6);
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
            assert!(world.now - began < world.engine.patience() * 4 + secs(1), "{concurrency}: starved");
        }
    }
}

/// Three replicas want keys that overlap in part. After a while each key has a writer, and no key
/// waits.
#[test]
fn wishes_that_overlap_in_part_settle() {
    for seed in SEEDS.step_by(4) {
        let mut worlds = [0, 1, 2].map(|replica| World::new(3 * seed + replica));
        let wants = [0..20_usize, 10..30, 0..5];
        let mut slowest = Vec::new();
        for round in 0..30 {
            let began = worlds[0].now;
            for (world, wants) in worlds.iter_mut().zip(&wants) {
                for key in wants.clone() {
                    world.wants(&key.to_string());
                }
            }
            let mut missing: Vec<String> = (0..30).map(|key| key.to_string()).collect();
            while !missing.is_empty() {
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
                            if other != one && wants[other].contains(&key.parse().unwrap()) {
                                world.evidence(&key);
                            }
                        }
                    }
                }
                worlds.iter_mut().for_each(|world| world.pass(ms(10)));
                assert!(worlds[0].now - began < secs(10), "round {round}, seed {seed}: {missing:?}");
            }
            slowest.push(worlds[0].now - began);
            let rest = began + secs(1).max(worlds[0].now - began);
            worlds.iter_mut().for_each(|world| world.now = rest);
        }
        let settled = slowest[15..].iter().max().unwrap();
        assert!(*settled <= ms(300), "seed {seed}: {slowest:?}");
    }
}

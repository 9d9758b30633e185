//! Rule 11: each shard has a lease of its own, and the roster says whose turn it is.

use super::*;
use crate::engine::Turn;

const SHARDS: u16 = 8;

fn sharded(seed: u64) -> World {
    World::with(settings(seed).shards(SHARDS))
}

/// A replica that has read a roster with these on it.
fn on_roster(seed: u64, names: &[&str]) -> World {
    let mut world = sharded(seed);
    world.sees(names);
    world
}

impl World {
    /// Keys of one shard.
    fn keys_of(&self, shard: u16) -> impl Iterator<Item = String> {
        (0..).map(|i| format!("key-{i}")).filter(move |key| self.engine.shard_of(key) == shard)
    }

    fn key_of(&self, shard: u16) -> String {
        self.keys_of(shard).next().unwrap()
    }

    /// A key in a shard with this turn.
    fn key_in_turn(&self, turn: Turn) -> String {
        let shard = self.engine.shards().find(|shard| shard.turn == turn).unwrap();
        self.key_of(shard.number)
    }

    /// Writes a key, which makes us the leader of its shard.
    fn wins_shard_of(&mut self, key: &str) {
        self.wants(key);
        let attempt = self.sleeps_for_one();
        assert_eq!(attempt.key, key);
        self.ends(attempt, Outcome::Written);
        assert!(self.engine.leads(self.now, &key.to_owned()));
    }
}

#[test]
fn a_shard_costs_at_most_512_bytes() {
    let agenda = crate::engine::agenda::Agenda::SIZE_PER_SHARD;
    let lanes = crate::engine::queue::LANES_SIZE;
    let shard = size_of::<crate::engine::shard::Shard>() + lanes + agenda;
    assert!(shard <= 512, "{shard}: {} + {lanes} + {agenda}", size_of::<crate::engine::shard::Shard>());
}

#[test]
fn evidence_in_one_shard_moves_no_other() {
    let mut world = sharded(1);
    let (ours, theirs) = (world.key_of(1), world.key_of(2));
    world.wins_shard_of(&ours);
    world.evidence(&theirs);
    let roles: Vec<Role> = world.engine.shards().map(|shard| shard.role).collect();
    assert_eq!((roles[1], roles[2], roles[3]), (Role::Leader, Role::Follower, Role::Election));
    assert!(world.engine.is_leader(world.now) && world.engine.leads(world.now, &ours));
    assert!(!world.engine.leads(world.now, &theirs));
    assert_eq!(world.engine.shards_led(world.now), 1);
    world.pass(TERM);
    assert_eq!((world.engine.is_leader(world.now), world.engine.shards_led(world.now)), (false, 0));
}

#[test]
fn each_shard_has_its_own_probe_and_all_share_the_slots() {
    let mut world = World::with(settings(1).shards(SHARDS).concurrency(5));
    for shard in 0..SHARDS {
        let keys: Vec<String> = world.keys_of(shard).take(3).collect();
        world.wants_all(keys.iter().map(String::as_str));
    }
    world.pass(16 * ECHO);
    let running = world.polls();
    assert_eq!(running.len(), 5, "all slots");
    let shards: std::collections::BTreeSet<u16> = running.iter().map(|attempt| attempt.shard).collect();
    assert_eq!(shards.len(), 5, "one for each shard");
}

#[test]
fn outage_is_common_to_all_shards() {
    let mut world = sharded(1);
    for shard in 0..3 {
        let key = world.key_of(shard);
        world.wins_shard_of(&key);
    }
    let keys: Vec<String> = (0..3).map(|shard| world.key_of(shard)).collect();
    world.wants_all(keys[..2].iter().map(String::as_str));
    for attempt in world.polls() {
        world.ends(attempt, Outcome::Failed);
    }
    world.wants(&keys[2]);
    assert!(world.polls().is_empty(), "the store is down, whichever shard a key is in");
}

#[test]
fn our_turn_needs_no_election_and_takes_back_keys() {
    let mut world = on_roster(1, &["other"]);
    let key = world.key_in_turn(Turn::Other);
    world.evidence(&key);
    assert_eq!(world.engine.incumbent(&key), Incumbent::Other);
    world.pass(secs(1));
    world.sees(&["us"]);
    assert_eq!(world.engine.incumbent(&key), Incumbent::Nobody);
    // A group that gathers waits for a few echoes, once.
    world.pass(16 * ECHO);
    world.wants(&key);
    let attempt = world.polls().remove(0);
    world.ends(attempt, Outcome::Written);
    assert!(world.engine.leads(world.now, &key));
}

#[test]
fn writes_during_a_hand_over_were_begun_before() {
    for (echoes, incumbent) in [(19, Incumbent::Nobody), (21, Incumbent::Other)] {
        let mut world = on_roster(1, &["other"]);
        let key = world.key_in_turn(Turn::Other);
        let shard = world.engine.shard_of(&key);
        let other = world.keys_of(shard).nth(1).unwrap();
        world.pass(secs(100));
        world.sees(&["us"]);
        let handed_over = world.now;
        world.pass(16 * ECHO);
        world.wins_shard_of(&key);
        world.now = handed_over + ECHO * echoes;
        world.evidence(&other);
        assert_eq!(world.engine.incumbent(&other), incumbent, "{echoes} echoes");
        assert!(world.engine.leads(world.now, &key), "while it is our turn, others only take single keys");
    }
}

#[test]
fn turn_that_is_given_up_leaves_our_keys_to_the_next() {
    let mut world = on_roster(1, &["us"]);
    world.pass(16 * ECHO);
    let keys: Vec<String> = (0..SHARDS).map(|shard| world.key_of(shard)).collect();
    for key in &keys {
        world.wins_shard_of(key);
    }
    world.sees(&["other", "us"]);
    let given_up = world.engine.shards().find(|shard| shard.turn == Turn::Other).unwrap();
    assert_eq!((given_up.role, given_up.member.as_deref()), (Role::Follower, Some("other")));
    assert!(world.engine.shards_led(world.now) < SHARDS);
    let key = &keys[usize::from(given_up.number)];
    assert_eq!(world.engine.incumbent(key), Incumbent::Other);
    let since = world.now;
    world.wants(key);
    let attempt = world.sleeps_for_one();
    assert!(world.now >= since + secs(1), "not before our patience has ended");
    world.ends(attempt, Outcome::Written);
}

#[test]
fn write_that_ends_after_its_shard_was_given_up_leaves_the_key_to_the_next() {
    let mut world = on_roster(1, &["us"]);
    world.pass(16 * ECHO);
    let keys: Vec<String> = (0..SHARDS).map(|shard| world.key_of(shard)).collect();
    world.wants_all(keys.iter().map(String::as_str));
    let running = world.polls();
    world.pass(ms(5));
    world.sees(&["other", "us"]);
    for attempt in running {
        let (key, shard) = (attempt.key.clone(), attempt.shard);
        world.ends(attempt, Outcome::Written);
        let turn = world.engine.shards().nth(shard.into()).unwrap().turn;
        let expected = if turn == Turn::Us { Incumbent::Us } else { Incumbent::Other };
        assert_eq!(world.engine.incumbent(&key), expected);
    }
}

#[test]
fn who_left_writes_no_more_in_our_shards() {
    let mut world = on_roster(1, &["other", "us"]);
    let key = world.key_in_turn(Turn::Us);
    world.pass(secs(1));
    world.evidence(&key);
    assert_eq!(world.engine.incumbent(&key), Incumbent::Other);
    world.sees(&["us"]);
    assert_eq!(world.engine.incumbent(&key), Incumbent::Nobody);
}

#[test]
fn member_whose_shard_was_won_by_silence_is_asked_whether_it_lives() {
    let mut world = on_roster(1, &["dead", "us"]);
    let key = world.key_in_turn(Turn::Other);
    world.wants(&key);
    let attempt = world.sleeps_for_one();
    assert_eq!(world.engine.poll_roster(world.now), None, "its write decides");
    world.ends(attempt, Outcome::Written);
    let at = world.engine.poll_timeout().unwrap();
    let request = world.engine.poll_roster(world.now.max(at));
    assert_eq!(request, Some(crate::engine::RosterRequest::Suspect("dead".into())));
}

#[test]
fn without_a_roster_shards_race_as_a_lease_does() {
    let mut world = sharded(1);
    world.engine.handle_join(world.now, member("us"));
    let key = world.key_of(0);
    world.wants(&key);
    assert!(world.polls().is_empty(), "the roster is being read");
    world.engine.handle_roster_unreadable(world.now);
    world.pass(16 * ECHO);
    assert_eq!(keys(&world.polls()), [key]);
}

#[test]
fn explanation_names_the_member_in_turn() {
    let mut world = on_roster(1, &["other", "us"]);
    let key = world.key_in_turn(Turn::Other);
    world.wants(&key);
    let explanation = world.engine.explain(world.now, &key).unwrap();
    assert_eq!(
        (explanation.shard, explanation.member.as_deref()),
        (world.engine.shard_of(&key), Some("other"))
    );
    assert!(explanation.to_string().ends_with("the turn of other"), "{explanation}");
}

/// Each shard is looked at only when an event concerns it. That must find what a look at all finds.
#[test]
fn looks_at_single_shards_find_what_a_look_at_all_finds() {
    for seed in 0..60 {
        let mut draws = Rng::seeded(seed);
        let mut below = |n: usize| (draws.uniform() * n as f64) as usize;
        let mut worlds = [seed, seed].map(sharded);
        let mut running: Vec<[Running; 2]> = Vec::new();
        for step in 0..400 {
            let (event, key, time) = (below(12), format!("key-{}", below(40)), ms(below(40) as u64));
            let outcome = [
                Outcome::Written,
                Outcome::Written,
                Outcome::Conflict,
                Outcome::Failed,
                Outcome::Denied,
                Outcome::WrittenByOther,
            ][below(6)];
            let ends = (event < 5 && !running.is_empty()).then(|| running.swap_remove(below(running.len())));
            for world in &mut worlds {
                world.pass(time);
            }
            match (ends, event) {
                (Some(ends), _) => {
                    for (world, attempt) in worlds.iter_mut().zip(ends) {
                        world.ends(attempt, outcome);
                    }
                }
                (None, 5) => drop(worlds.each_mut().map(|world| world.evidence(&key))),
                (None, 6) => drop(worlds.each_mut().map(|world| world.removes(&key))),
                (None, 7) => worlds.iter_mut().for_each(|world| world.pass(secs(1))),
                (None, 8) if step % 50 == 0 => worlds.iter_mut().for_each(|world| {
                    world.engine.handle_expire(world.now);
                }),
                _ => drop(worlds.each_mut().map(|world| world.wants(&key))),
            }
            let [lazy, thorough] = &mut worlds;
            thorough.engine.agenda.touch_all();
            loop {
                thorough.engine.agenda.touch_all();
                let next = [lazy.engine.poll_attempt(lazy.now), thorough.engine.poll_attempt(thorough.now)];
                match next {
                    [Some(one), Some(other)] => {
                        assert_eq!(one.key, other.key, "seed {seed}, step {step}");
                        running.push([one, other]);
                    }
                    [None, None] => break,
                    [one, other] => panic!("seed {seed}, step {step}: {one:?} is not {other:?}"),
                }
            }
            // They may differ about the time: one knows of a slot that became free, the other of a wait
            // that means nothing while all slots are taken.
            let [one, other] = [lazy, thorough].map(|world| world.engine.poll_timeout());
            assert_eq!(one.is_some(), other.is_some(), "seed {seed}, step {step}");
        }
    }
}

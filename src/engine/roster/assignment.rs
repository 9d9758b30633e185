//! The assignment of shards to members: a pure function of the roster.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{Member, hash};

/// Returns for each shard the index of the member whose turn it is. `members` must be sorted by
/// name, without duplicates, and not empty.
///
/// This is rendezvous hashing (Thaler and Ravishankar 1998) with bounded load: each member has a
/// claim to each shard, the strongest claims are met first, and no member gets more than its
/// [`capacity`]. A member of weight w has the greatest of w hashes as its claim, and so wins w times
/// as many shards as one of weight 1. All arithmetic is on integers, so every machine and every
/// version gets the same result:
///
/// | members (weight) | 8 shards |
/// |---|---|
/// | `a` | `a a a a a a a a` |
/// | `a`, `b` | `b b a a b b a a` |
/// | `a`, `b`, `c` | `b b a c c b a c` |
/// | `a`, `b` (3) | `b a b b b b b b` |
/// | `replica-0` to `replica-4` | `4 0 3 4 2 0 2 3` |
pub(in crate::engine) fn assign(shards: u16, members: &[Member]) -> Vec<u16> {
    let total = members.iter().map(|member| u64::from(member.weight)).sum();
    let names = name_hashes(members);
    // To sort all claims takes five times as long with fifty members. Each shard asks its strongest
    // claimant instead, which keeps the strongest that it has room for; a shard that it gives up asks
    // the next one (Gale and Shapley 1962). The result is the same, because both sides go by the same
    // order of claims.
    let mut kept = vec![BinaryHeap::new(); members.len()];
    let mut turns = vec![0; usize::from(shards)];
    for first in 0..shards {
        let mut asking = Some((first, None));
        while let Some((shard, refused)) = asking.take() {
            let not_refused = |claim: &Claim| refused.is_none_or(|refused| *claim < refused);
            let strongest = claims(members, &names, shard).filter(not_refused).max();
            // The capacities add up to more than the shards, so nobody is refused by all.
            let Some((strength, Reverse(index))) = strongest else { break };
            let kept = &mut kept[usize::from(index)];
            kept.push(Reverse((strength, Reverse(shard))));
            turns[usize::from(shard)] = index;
            if kept.len() as u64 > capacity(shards, members[usize::from(index)].weight, total) {
                asking = kept
                    .pop()
                    .map(|Reverse((strength, Reverse(shard)))| (shard, Some((strength, Reverse(index)))));
            }
        }
    }
    turns
}

/// Returns for each shard the member with the strongest claim but the one whose turn it is. If that
/// one falls silent, this one goes first. `None` if there is no other.
pub(super) fn heirs(members: &[Member], turns: &[u16]) -> Vec<Option<u16>> {
    let names = name_hashes(members);
    let heir = |(shard, turn): (u16, &u16)| {
        let others = claims(members, &names, shard).filter(|(_, Reverse(index))| index != turn);
        others.max().map(|(_, Reverse(index))| index)
    };
    (0..).zip(turns).map(heir).collect()
}

/// The strength of a member's claim to a shard, and its index.
type Claim = (u64, Reverse<u16>);

fn name_hashes(members: &[Member]) -> Vec<u64> {
    members.iter().map(|member| hash::stable_hash(&*member.name)).collect()
}

fn claims(members: &[Member], names: &[u64], shard: u16) -> impl Iterator<Item = Claim> {
    let claimants = (0_u16..).zip(members).zip(names);
    claimants.map(move |((index, member), name)| (claim(*name, member.weight, shard), Reverse(index)))
}

/// Returns the most shards that a member may get: a tenth more than its share, rounded up, but at
/// most one more than its share, rounded up.
///
/// A member that is full hands its weaker claims to others, and gets them back when its capacity
/// grows. So the closer the bound, the better the balance, and the more moves beside those of the
/// member that came or went:
///
/// | bound, at 10 members and 200 shards | of 20 | 21 (this one) | 22 | 25 |
/// |---|---|---|---|---|
/// | moved beside, at a departure | 4.7 % of all shards | 3.3 % | 2.2 % | 0.7 % |
/// | keys of the busiest, of 20 a shard, over the mean | 1.08 | 1.12 | 1.16 | 1.27 |
fn capacity(shards: u16, weight: u16, total: u64) -> u64 {
    let share = u64::from(shards) * u64::from(weight);
    (share * 11).div_ceil(total * 10).min(share.div_ceil(total) + 1)
}

/// Returns the strength of a member's claim to a shard.
fn claim(name: u64, weight: u16, shard: u16) -> u64 {
    let draw = |draw: u16| hash::mix(name ^ hash::mix((u64::from(shard) << 16 | u64::from(draw)) + 1));
    (0..weight).map(draw).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proptest::{
        collection::btree_map,
        prelude::{Just, ProptestConfig, Strategy, prop_assert, prop_assert_eq, proptest},
    };

    use super::*;

    fn member(name: &str, weight: u16) -> Member {
        Member::new(name, weight)
    }

    /// Returns the name of each shard's member.
    fn turns(shards: u16, members: &[Member]) -> Vec<Arc<str>> {
        assign(shards, members).into_iter().map(|index| members[usize::from(index)].name.clone()).collect()
    }

    fn loads(shards: u16, members: &[Member]) -> Vec<u64> {
        let mut loads = vec![0; members.len()];
        assign(shards, members).into_iter().for_each(|index| loads[usize::from(index)] += 1);
        loads
    }

    #[test]
    fn published_vector_holds() {
        let replicas: Vec<Member> = (0..5).map(|i| member(&format!("replica-{i}"), 1)).collect();
        for (members, expected) in [
            (vec![member("a", 1)], "a a a a a a a a"),
            (vec![member("a", 1), member("b", 1)], "b b a a b b a a"),
            (vec![member("a", 1), member("b", 1), member("c", 1)], "b b a c c b a c"),
            (vec![member("a", 1), member("b", 3)], "b a b b b b b b"),
            (replicas, "4 0 3 4 2 0 2 3"),
        ] {
            let got = turns(8, &members)
                .iter()
                .map(|name| name.trim_start_matches("replica-"))
                .collect::<Vec<_>>()
                .join(" ");
            assert_eq!(got, expected, "{members:?}");
        }
    }

    /// The rule itself: the strongest claims first, as long as there is room.
    fn by_the_rule(shards: u16, members: &[Member]) -> Vec<u16> {
        let total = members.iter().map(|member| u64::from(member.weight)).sum();
        let mut room: Vec<u64> =
            members.iter().map(|member| capacity(shards, member.weight, total)).collect();
        let mut claims: Vec<(u64, Reverse<u16>, Reverse<u16>)> = (0_u16..)
            .zip(members)
            .flat_map(|(index, member)| {
                let name = hash::stable_hash(&*member.name);
                (0..shards)
                    .map(move |shard| (claim(name, member.weight, shard), Reverse(shard), Reverse(index)))
            })
            .collect();
        claims.sort_unstable_by_key(|claim| Reverse(*claim));
        let mut turns = vec![None; usize::from(shards)];
        for (_, Reverse(shard), Reverse(index)) in claims {
            let (turn, room) = (&mut turns[usize::from(shard)], &mut room[usize::from(index)]);
            if turn.is_none() && *room > 0 {
                *turn = Some(index);
                *room -= 1;
            }
        }
        turns.into_iter().map(Option::unwrap).collect()
    }

    fn weights() -> impl Strategy<Value = Vec<Member>> {
        let sorted = |members: BTreeMap<String, u16>| {
            members.iter().map(|(name, weight)| member(name, *weight)).collect()
        };
        btree_map("[a-z0-9-]{1,12}", 1..=100_u16, 1..12).prop_map(sorted)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn strongest_claims_are_met_first(shards in 1..300_u16, members in weights()) {
            prop_assert_eq!(assign(shards, &members), by_the_rule(shards, &members));
        }

        #[test]
        fn every_shard_has_a_member_within_its_bound(shards in 1..300_u16, members in weights()) {
            let turns = assign(shards, &members);
            prop_assert_eq!(turns.len(), usize::from(shards));
            prop_assert!(turns.iter().all(|index| usize::from(*index) < members.len()));
            let total: u64 = members.iter().map(|member| u64::from(member.weight)).sum();
            for (load, member) in loads(shards, &members).iter().zip(&members) {
                let share = f64::from(shards) * f64::from(member.weight) / total as f64;
                prop_assert!((*load as f64) < 1.1 * share + 1.0, "{} of {}", load, share);
            }
        }

        #[test]
        fn order_of_members_does_not_matter(
            shards in 1..100_u16,
            (sorted, shuffled) in weights().prop_flat_map(|sorted| (Just(sorted.clone()), Just(sorted).prop_shuffle())),
        ) {
            prop_assert_eq!(turns(shards, &sorted), turns(shards, &shuffled));
        }

        #[test]
        fn departure_moves_few_other_shards(size in 2..=20_usize, start in 0..10_000_usize, leaver in 0..50_usize) {
            let before = group(start, size);
            let mut after = before.clone();
            let gone = after.remove(leaver % size).name;
            prop_assert!(moved_beside(20 * size as u16, &before, &after, &gone) <= 0.15);
        }

        #[test]
        fn join_moves_few_other_shards(size in 1..=20_usize, start in 0..10_000_usize, joiner in 0..50_usize) {
            let after = group(start, size + 1);
            let mut before = after.clone();
            let new = before.remove(joiner % (size + 1)).name;
            prop_assert!(moved_beside(20 * (size + 1) as u16, &after, &before, &new) <= 0.15);
        }
    }

    /// Returns a group with names as a deployment's pods have them, sorted.
    fn group(first: usize, size: usize) -> Vec<Member> {
        let name = |i: usize| format!("app-7d4b9c-{:05x}", hash::mix(i as u64) & 0xf_ffff);
        let mut members: Vec<Member> = (first..first + size).map(|i| member(&name(i), 1)).collect();
        members.sort();
        members
    }

    /// Returns the part of all shards that are in the hands of others than `one`, and that the
    /// presence of `one` moves.
    fn moved_beside(shards: u16, with: &[Member], without: &[Member], one: &Arc<str>) -> f64 {
        let (with, without) = (turns(shards, with), turns(shards, without));
        let moved = with.iter().zip(&without).filter(|(with, without)| *with != one && with != without);
        moved.count() as f64 / f64::from(shards)
    }

    /// Prints the figures of the docs: run it with `--nocapture`.
    #[test]
    fn groups_are_balanced_and_changes_move_little() {
        for (size, shards) in [(3, 64), (3, 60), (10, 64), (10, 200), (50, 64), (50, 1000)] {
            let groups = if size == 50 { 2 } else { 20 };
            let (mut beside, mut most_beside, mut joins, mut most_joins) = (0.0, 0.0_f64, 0.0, 0.0_f64);
            let mut departures = 0.0;
            let (mut busiest, mut keys_of_busiest, mut worst_keys) = (0.0_f64, 0.0, 0.0_f64);
            for first in (0..groups).map(|i| i * 100) {
                let members = group(first, size);
                let mean = f64::from(shards) / size as f64;
                busiest = busiest.max(*loads(shards, &members).iter().max().unwrap() as f64 / mean);
                let turns = assign(shards, &members);
                let mut keys = vec![0; size];
                for key in 0..20 * u32::from(shards) {
                    let shard = hash::shard_of(&format!("ns-{first}/obj-{key:04}"), shards);
                    keys[usize::from(turns[usize::from(shard)])] += 1;
                }
                let over_mean = f64::from(*keys.iter().max().unwrap()) / (20.0 * mean);
                keys_of_busiest += over_mean / groups as f64;
                worst_keys = worst_keys.max(over_mean);
                for gone in members.iter().step_by(size / 5 + 1) {
                    let rest: Vec<Member> = members.iter().filter(|other| *other != gone).cloned().collect();
                    let moved = moved_beside(shards, &members, &rest, &gone.name);
                    departures += 1.0;
                    beside += moved;
                    most_beside = most_beside.max(moved);
                }
                let larger = group(first, size + 1);
                let new = larger.iter().find(|new| !members.contains(new)).unwrap();
                let moved = moved_beside(shards, &larger, &members, &new.name);
                joins += moved / groups as f64;
                most_joins = most_joins.max(moved);
            }
            beside /= departures;
            println!(
                "{size:2} members, {shards:4} shards: busiest / mean {busiest:.2} in shards, in keys {keys_of_busiest:.2} \
                 (most {worst_keys:.2}); moved beside at a departure {:.1} % (most {:.1}), at a join {:.1} % (most {:.1})",
                100.0 * beside,
                100.0 * most_beside,
                100.0 * joins,
                100.0 * most_joins,
            );
            assert!(beside < 0.05 && joins < 0.05, "{size} members: {beside} {joins}");
            if f64::from(shards) >= 20.0 * size as f64 {
                assert!(busiest <= 1.15 && worst_keys <= 1.3, "{size} members: {busiest} {worst_keys}");
            }
        }
    }

    #[test]
    fn weights_are_shares() {
        let members = [member("a", 1), member("b", 2), member("c", 5)];
        let loads = loads(800, &members);
        assert!(
            (80..=110).contains(&loads[0]) && (160..=220).contains(&loads[1]) && loads[2] >= 470,
            "{loads:?}"
        );
    }
}

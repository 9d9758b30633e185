//! Plans that are drawn from seeds.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use super::plan::{Ailment, Algorithm, FaultKind, Member, Plan, PlannedFault, SLOTS, Sickness, Versions};
use crate::engine::Tuning;

impl Plan {
    /// Returns the plan of a seed.
    pub fn drawn(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let is_large = rng.random_ratio(1, LARGE);
        let (keys, count) = match is_large {
            false => (rng.random_range(1..=12), rng.random_range(1..=7)),
            true => {
                let count = rng.random_range(1..=50);
                (rng.random_range(20..=(20_000 / count).min(2000)), count)
            }
        };
        let (overlapping, groups) = (rng.random_bool(0.25), 1 + u8::from(rng.random_bool(0.15)));
        // The contract of stores: a watch without any order repeats nothing and keeps it.
        let versions = match rng.random_range(0..4) {
            0 => Versions::OrderedPerKey,
            1 => Versions::Unordered,
            _ => Versions::Ordered,
        };
        let disorder = [0, 0, 100, 10][rng.random_range(0..4)];
        let storm = Duration::from_secs(rng.random_range(20..=if is_large { 40 } else { 120 }));
        let mut plan = Self {
            seed,
            members: members(&mut rng, count, keys, overlapping, groups),
            keys,
            term: Duration::from_secs(rng.random_range(5..=60)),
            latency: Duration::from_micros(1 << rng.random_range(9..=17)),
            commit: match rng.random_bool(0.25) {
                true => Duration::from_millis(rng.random_range(1..=200)),
                false => Duration::ZERO,
            },
            tail: [0, 0, 1000, 100][rng.random_range(0..4)],
            disorder: if versions == Versions::Unordered { 0 } else { disorder },
            late: [0, 0, 1000, 100][rng.random_range(0..4)],
            late_by: Duration::from_millis(1 << rng.random_range(7..=12)),
            versions,
            restless: match rng.random_bool(0.04) {
                true => rng.random_range(1..=keys.min(3)),
                false => 0,
            },
            // Short ones are rarer, because they take the most time.
            cadence: Duration::from_millis(1 << rng.random_range(7..=12).max(rng.random_range(7..=12))),
            churn: [0, 0, 0, 10][rng.random_range(0..4)],
            // The elected replica does the keys that it wants, and nobody does the others.
            election: (rng.random_bool(0.2) && !overlapping && groups == 1)
                .then(|| Duration::from_millis(1 << rng.random_range(10..=14))),
            faults: Vec::new(),
            storm,
            // Some are long enough to show that somebody leads in the end.
            calm: Duration::from_secs(if rng.random_bool(0.25) && !is_large { 240 } else { 100 }),
            tuning: Tuning::default(),
            algorithm: Algorithm::Lease,
        };
        if is_large {
            // One replica alone keeps up with half of the requests.
            let round = plan.attempt() * keys.div_ceil(SLOTS) as u32;
            plan.cadence = plan.cadence.max(Duration::from_secs(1)).max(2 * round);
        }
        // In some plans nothing happens at first, so that it shows how things were before.
        let lead = if rng.random_bool(0.5) { (plan.cadence * 12).min(storm / 2) } else { Duration::ZERO };
        for _ in 0..rng.random_range(0..=5) {
            let from = lead + (storm - lead).mul_f64(rng.random_range(0.0..0.9));
            let until = (from + Duration::from_millis(1 << rng.random_range(5..=16))).min(storm);
            fault(&mut rng, &mut plan, from, until);
        }
        plan
    }
}

fn members(rng: &mut SmallRng, count: usize, keys: usize, overlapping: bool, groups: u8) -> Vec<Member> {
    let lagging = rng.random_bool(0.08).then(|| rng.random_range(0..count));
    let member = |replica| {
        let (first_key, of) = match overlapping {
            false => (0, keys),
            true => {
                let first = rng.random_range(0..keys);
                (first, rng.random_range(1..=keys - first))
            }
        };
        let group = rng.random_range(0..groups);
        let rate = rng.random_range(0.98..=1.02);
        let lag = match lagging == Some(replica) {
            true => Duration::from_millis(rng.random_range(500..=8000)),
            false => Duration::ZERO,
        };
        Member { first_key, keys: of, group, rate, lag }
    };
    (0..count).map(member).collect()
}

/// Draws a fault, or several that belong together.
fn fault(rng: &mut SmallRng, plan: &mut Plan, from: Duration, until: Duration) {
    let (count, storm) = (plan.members.len(), plan.storm);
    let one = rng.random_range(0..count);
    let kind = match rng.random_range(0..20) {
        0 | 1 => FaultKind::Pause(one),
        2 => FaultKind::Crash(one),
        3 => FaultKind::Partition(one),
        4 => FaultKind::Blind(one),
        5 => FaultKind::Outage,
        6 => FaultKind::LostAnswers,
        7 => FaultKind::Edits,
        8 => FaultKind::Deletes,
        9 => FaultKind::Burst,
        10 => FaultKind::Deaf(one),
        11 => FaultKind::Slow(one),
        12 => FaultKind::Brownout,
        13 => FaultKind::Restore,
        14 | 15 => {
            let ailment = [Ailment::Fails, Ailment::Hangs, Ailment::Denied][rng.random_range(0..3)];
            let first_key = rng.random_range(0..plan.keys);
            // One or two keys, or all from some key on.
            let left = plan.keys - first_key;
            let keys = if rng.random_bool(0.7) { rng.random_range(1..=left.min(2)) } else { left };
            // An elected replica is the only one to write.
            let replica = (rng.random_bool(0.5) && plan.election.is_none()).then_some(one);
            let until = if rng.random_bool(0.5) { Duration::MAX } else { until };
            let sickness = Sickness { ailment, first_key, keys, replica };
            plan.faults.push(PlannedFault::new(FaultKind::Sick(sickness), from, until));
            return;
        }
        16 => {
            // A rolling restart: each is down for a tenth of its turn, or turns overlap a little.
            let turn = (until - from) / count as u32;
            let down = turn.mul_f64(rng.random_range(0.1..1.3));
            for replica in 0..count {
                let from = from + turn * replica as u32;
                let until = (from + down).min(storm);
                plan.faults.push(PlannedFault::new(FaultKind::Crash(replica), from, until));
            }
            return;
        }
        17 => {
            // All go down, and come back at the same time or one after the other.
            let stagger = Duration::from_millis([0, 0, 100, 1000][rng.random_range(0..4)]);
            for replica in 0..count {
                let until = (until + stagger * replica as u32).min(storm.max(until));
                plan.faults.push(PlannedFault::new(FaultKind::Crash(replica), from, until));
            }
            return;
        }
        18 => {
            // A watch that breaks again and again.
            let gap = Duration::from_millis(1 << rng.random_range(8..=12));
            for turn in 0..6 {
                let from = from + gap * turn;
                if from < storm {
                    let until = (from + gap.mul_f64(rng.random_range(0.1..0.9))).min(storm);
                    plan.faults.push(PlannedFault::new(FaultKind::Blind(one), from, until));
                }
            }
            return;
        }
        _ => {
            // Some do not come back.
            let until = if count > 2 && rng.random_bool(0.2) { Duration::MAX } else { until };
            plan.faults.push(PlannedFault::new(FaultKind::CrashLeader, from, until));
            return;
        }
    };
    plan.faults.push(PlannedFault::new(kind, from, until));
}

/// One plan in this many is large.
const LARGE: u32 = 1000;

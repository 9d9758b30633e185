//! The course of a run, before it happens.

use std::{ops::Range, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::engine::{
    Tuning,
    config::{LeaseBuilder, LeaseConfig},
};

/// The replicas, the network and the faults of one run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// Seeds all draws of the run: latencies, lost messages, and the engines' own draws.
    pub seed: u64,
    /// The replicas.
    pub members: Vec<Member>,
    /// The number of keys.
    pub keys: usize,
    /// How long a write holds the lease.
    pub term: Duration,
    /// The time that a request takes, there and back. News take half of it.
    pub latency: Duration,
    /// One message in `tail` takes ten to a hundred times as long; none if it is zero.
    pub tail: u32,
    /// One change in `disorder` is delivered twice, and as many are delivered out of order; none if
    /// it is zero.
    pub disorder: u32,
    /// The order that the store's versions show.
    pub versions: Versions,
    /// The time between two rounds, in each of which all keys are to change.
    pub cadence: Duration,
    /// One key in `churn` is not wanted in a round; all are wanted if it is zero.
    pub churn: u32,
    /// With a time to live, elections decide who leads, and writes carry a fence.
    pub election: Option<Duration>,
    /// The faults.
    pub faults: Vec<PlannedFault>,
    /// The time in which faults may occur.
    pub storm: Duration,
    /// The time afterwards, in which all is well.
    pub calm: Duration,
    /// The figures of the rules.
    pub tuning: Tuning,
    /// The algorithm that decides when replicas write.
    pub algorithm: Algorithm,
}

/// The algorithm that decides when replicas write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// The engine of this crate.
    #[default]
    Lease,
    /// openshift/router's `writerlease`, as in Go.
    Go,
    /// No lease: each replica writes immediately and retries when refused, as client-go's
    /// `RetryOnConflict` does.
    Retry,
}

/// The order that a store's versions show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Versions {
    /// All writes are in order, as etcd's and ZooKeeper's are.
    #[default]
    Ordered,
    /// The writes of each key are in order.
    OrderedPerKey,
    /// Versions can only be compared for equality.
    Unordered,
}

/// One replica, in all its lives.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Member {
    /// The first key that it wants.
    pub first_key: usize,
    /// The number of keys that it wants, counted from the first one.
    pub keys: usize,
    /// Its group. Replicas of one group want the same values.
    pub group: u8,
    /// The rate of its clock; 1 is the world's.
    pub rate: f64,
}

impl Member {
    pub(super) fn range(&self) -> Range<usize> {
        self.first_key..self.first_key + self.keys
    }
}

/// A fault that lasts for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct PlannedFault {
    /// The kind.
    pub kind: FaultKind,
    /// The time at which it begins.
    pub from: Duration,
    /// The time at which it ends.
    pub until: Duration,
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The replica's process is stopped. Its messages wait.
    Pause(usize),
    /// The replica is killed. It starts again when the fault ends.
    Crash(usize),
    /// The leader at that time, if there is one, is killed. It starts again when the fault ends.
    CrashLeader,
    /// The replica and the store do not reach each other. The watch lists anew when the fault ends.
    Partition(usize),
    /// The replica receives no news. The watch lists anew when the fault ends.
    Blind(usize),
    /// The store answers no requests.
    Outage,
    /// Writes succeed, but half of the answers get lost.
    LostAnswers,
    /// Somebody else edits the same objects, one for each latency.
    Edits,
    /// Somebody else deletes the objects, one each half second.
    Deletes,
    /// A new round begins after each latency.
    Burst,
}

impl Plan {
    /// Returns the plan of a seed.
    pub fn drawn(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let keys = rng.random_range(1..=12);
        let count = rng.random_range(1..=7);
        let (overlapping, groups) = (rng.random_bool(0.25), 1 + u8::from(rng.random_bool(0.15)));
        let members = (0..count).map(|_| {
            let (first_key, of) = match overlapping {
                false => (0, keys),
                true => {
                    let first = rng.random_range(0..keys);
                    (first, rng.random_range(1..=keys - first))
                }
            };
            let group = rng.random_range(0..groups);
            Member { first_key, keys: of, group, rate: rng.random_range(0.98..=1.02) }
        });
        let members: Vec<_> = members.collect();
        let storm = Duration::from_secs(rng.random_range(20..=120));
        let pick = |rng: &mut SmallRng| rng.random_range(0..count);
        let faults = (0..rng.random_range(0..=6)).map(|_| {
            let kind = match rng.random_range(0..11) {
                0 | 1 => FaultKind::Pause(pick(&mut rng)),
                2 => FaultKind::Crash(pick(&mut rng)),
                3 => FaultKind::Partition(pick(&mut rng)),
                4 => FaultKind::Blind(pick(&mut rng)),
                5 => FaultKind::Outage,
                6 => FaultKind::LostAnswers,
                7 => FaultKind::Edits,
                8 => FaultKind::Deletes,
                9 => FaultKind::Burst,
                _ => FaultKind::CrashLeader,
            };
            let from = storm.mul_f64(rng.random_range(0.0..0.9));
            let until = (from + Duration::from_millis(1 << rng.random_range(5..=16))).min(storm);
            PlannedFault { kind, from, until }
        });
        let faults = faults.collect();
        let tail = *[0, 0, 1000, 100].get(rng.random_range(0..4)).unwrap_or(&0);
        let disorder = *[0, 0, 100, 10].get(rng.random_range(0..4)).unwrap_or(&0);
        let mut plan = Self {
            seed,
            members,
            keys,
            term: Duration::from_secs(rng.random_range(5..=60)),
            latency: Duration::from_micros(1 << rng.random_range(9..=17)),
            tail,
            disorder,
            versions: Versions::Ordered,
            cadence: Duration::from_millis(1 << rng.random_range(7..=12)),
            churn: *[0, 0, 0, 10].get(rng.random_range(0..4)).unwrap_or(&0),
            // The elected replica does the keys that it wants, and nobody does the others.
            election: (rng.random_bool(0.2) && !overlapping && groups == 1)
                .then(|| Duration::from_millis(1 << rng.random_range(10..=14))),
            faults,
            storm,
            // Some are long enough to show that somebody leads in the end.
            calm: Duration::from_secs(if rng.random_bool(0.25) { 240 } else { 100 }),
            tuning: Tuning::default(),
            algorithm: Algorithm::Lease,
        };
        match rng.random_range(0..4) {
            0 => plan.versions = Versions::OrderedPerKey,
            1 => {
                plan.versions = Versions::Unordered;
                // The contract of stores: a watch without any order repeats nothing and keeps it.
                plan.disorder = 0;
            }
            _ => {}
        }
        plan
    }

    /// Returns a plan without faults: replicas that want the same keys, one round a second, five
    /// milliseconds from the store. Change the fields that are to differ.
    pub fn steady(seed: u64, replicas: usize, keys: usize, rounds: u32) -> Self {
        let cadence = Duration::from_secs(1);
        Self {
            seed,
            members: vec![Member { first_key: 0, keys, group: 0, rate: 1.0 }; replicas],
            keys,
            term: Duration::from_secs(60),
            latency: Duration::from_millis(5),
            tail: 0,
            disorder: 0,
            versions: Versions::Ordered,
            cadence,
            churn: 0,
            election: None,
            faults: Vec::new(),
            storm: Duration::ZERO,
            calm: cadence * rounds + QUIET,
            tuning: Tuning::default(),
            algorithm: Algorithm::Lease,
        }
    }

    /// Returns whether a key is wanted in this round.
    pub(super) fn is_wanted(&self, key: usize, round: u64) -> bool {
        let place =
            (self.seed ^ round).wrapping_mul(31).wrapping_add(key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                >> 32;
        self.churn == 0 || !place.is_multiple_of(u64::from(self.churn))
    }

    /// Returns the settings of a replica's lease, with other draws for each incarnation.
    pub(super) fn config(&self, replica: usize, incarnation: u32) -> LeaseConfig {
        let number = (replica as u64) << 16 | u64::from(incarnation);
        let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(number);
        let builder = LeaseBuilder::new(format!("replica-{replica}")).term(self.term).seed(seed);
        LeaseConfig { tuning: self.tuning, ..builder.build().expect("plans are valid") }
    }

    /// Returns whether a fault of this kind lasts.
    pub(super) fn has_fault(&self, now: Duration, kind: FaultKind) -> bool {
        self.faults.iter().any(|fault| fault.kind == kind && fault.from <= now && now < fault.until)
    }

    pub(super) fn end(&self) -> Duration {
        self.storm + self.calm
    }

    /// The time after which no round begins.
    pub(super) fn last_want(&self) -> Duration {
        self.end().saturating_sub(QUIET)
    }

    /// Returns plans that are smaller in one respect, the smallest first.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut plans = Vec::new();
        for index in 0..self.faults.len() {
            let mut plan = self.clone();
            plan.faults.remove(index);
            plans.push(plan);
        }
        if self.members.len() > 1 {
            for index in 0..self.members.len() {
                let mut plan = self.clone();
                plan.members.remove(index);
                plan.faults.retain(|fault| fault.kind.concerns() != Some(index));
                for fault in &mut plan.faults {
                    fault.kind = fault.kind.renumbered(index);
                }
                plans.push(plan);
            }
        }
        if self.keys > 1 {
            let mut plan = self.clone();
            plan.keys = self.keys / 2;
            for member in &mut plan.members {
                member.first_key = member.first_key.min(plan.keys - 1);
                member.keys = member.keys.min(plan.keys - member.first_key);
            }
            plans.push(plan);
        }
        if self.tail > 0 {
            plans.push(Self { tail: 0, ..self.clone() });
        }
        if self.disorder > 0 {
            plans.push(Self { disorder: 0, ..self.clone() });
        }
        if self.churn > 0 {
            plans.push(Self { churn: 0, ..self.clone() });
        }
        if self.versions != Versions::Ordered {
            plans.push(Self { versions: Versions::Ordered, ..self.clone() });
        }
        if self.election.is_some() {
            plans.push(Self { election: None, ..self.clone() });
        }
        if self.members.iter().any(|member| member.rate != 1.0) {
            let mut plan = self.clone();
            plan.members.iter_mut().for_each(|member| member.rate = 1.0);
            plans.push(plan);
        }
        plans
    }
}

impl PlannedFault {
    /// Returns a fault of this kind that lasts from one time until another.
    pub fn new(kind: FaultKind, from: Duration, until: Duration) -> Self {
        Self { kind, from, until }
    }
}

impl FaultKind {
    /// The replica that the fault concerns, if it concerns one.
    fn concerns(self) -> Option<usize> {
        match self {
            Self::Pause(one) | Self::Crash(one) | Self::Partition(one) | Self::Blind(one) => Some(one),
            _ => None,
        }
    }

    /// The same fault in a plan without the replica `gone`.
    fn renumbered(self, gone: usize) -> Self {
        let new = |one: usize| if one > gone { one - 1 } else { one };
        match self {
            Self::Pause(one) => Self::Pause(new(one)),
            Self::Crash(one) => Self::Crash(new(one)),
            Self::Partition(one) => Self::Partition(new(one)),
            Self::Blind(one) => Self::Blind(new(one)),
            other => other,
        }
    }
}

/// The time at the end in which no round begins.
const QUIET: Duration = Duration::from_secs(30);

//! What happens in a run.

use std::{ops::Range, time::Duration};

use rand::{RngExt, SeedableRng, rngs::SmallRng};

use crate::engine::Tuning;

/// A run, before it happens.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Plan {
    /// Draws what the plan does not say: latencies, what is lost, and the engines' own draws.
    pub seed: u64,
    /// The replicas.
    pub members: Vec<Member>,
    /// How many keys there are.
    pub keys: usize,
    /// How long a write holds the lease.
    pub term: Duration,
    /// How long a request takes, there and back; news take as long.
    pub latency: Duration,
    /// One in so many messages takes ten to a hundred times as long; none, if it is zero.
    pub tail: u32,
    /// One in so many changes is told twice, and as many out of their order; none, if it is zero.
    pub disorder: u32,
    /// How often all keys change.
    pub cadence: Duration,
    /// One in so many keys is not wanted in a round, until the next one; all are, if it is zero.
    pub churn: u32,
    /// Elections decide who leads, with a time to live of so long, and writes carry a fence; none, if there are none.
    pub election: Option<Duration>,
    /// What goes wrong meanwhile.
    pub faults: Vec<PlannedFault>,
    /// How long that may go on.
    pub storm: Duration,
    /// How long all is well afterwards.
    pub calm: Duration,
    /// The figures of the rules.
    pub tuning: Tuning,
    /// What the replicas go by.
    pub algorithm: Algorithm,
}

/// What replicas go by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Algorithm {
    /// The engine of this crate.
    #[default]
    Lease,
    /// openshift/router's `writerlease`, as it is in Go.
    Go,
    /// No lease: everybody writes, and retries when refused, as client-go's `RetryOnConflict` does.
    Retry,
}

/// A replica.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Member {
    /// It wants the keys from here ...
    pub first_key: usize,
    /// ... and so many of them.
    pub keys: usize,
    /// What it wants of them: each group wants something else.
    pub group: u8,
    /// How fast its clock runs.
    pub rate: f64,
}

impl Member {
    pub(super) fn range(&self) -> Range<usize> {
        self.first_key..self.first_key + self.keys
    }
}

/// Something that goes wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct PlannedFault {
    /// What.
    pub kind: FaultKind,
    /// From then on.
    pub from: Duration,
    /// Until then.
    pub until: Duration,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// The replica's process is stopped; all that comes in waits.
    Pause(usize),
    /// The replica is killed, and starts anew at the end.
    Crash(usize),
    /// So is the one that leads then, if one does.
    CrashLeader,
    /// The replica's requests get no answer, and no news reaches it; the watch lists anew at the end.
    Partition(usize),
    /// The replica gets no news; the watch lists anew at the end.
    Blind(usize),
    /// Nobody's requests get an answer.
    Outage,
    /// Writes land, but half of the answers get lost.
    LostAnswers,
    /// Somebody else edits the same objects, one each time that a write would take.
    Edits,
    /// Somebody else deletes them, one each half second.
    Deletes,
    /// All keys change again as soon as a write could be done.
    Burst,
}

impl Plan {
    /// The plan of a seed.
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
        Self {
            seed,
            members,
            keys,
            term: Duration::from_secs(rng.random_range(5..=60)),
            latency: Duration::from_micros(1 << rng.random_range(9..=17)),
            tail,
            disorder,
            cadence: Duration::from_millis(1 << rng.random_range(7..=12)),
            churn: *[0, 0, 0, 10].get(rng.random_range(0..4)).unwrap_or(&0),
            // Whoever is elected does what it wants, and nobody anything else.
            election: (rng.random_bool(0.2) && !overlapping && groups == 1)
                .then(|| Duration::from_millis(1 << rng.random_range(10..=14))),
            faults,
            storm,
            // Long enough to see that somebody leads in the end, for some.
            calm: Duration::from_secs(if rng.random_bool(0.25) { 240 } else { 100 }),
            tuning: Tuning::default(),
            algorithm: Algorithm::Lease,
        }
    }

    /// Replicas that want the same, once a second, five milliseconds from the store; so many rounds in which nothing goes
    /// wrong. For figures: change what is to be different.
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

    /// Whether a key is to be at this round.
    pub(super) fn is_wanted(&self, key: usize, round: u64) -> bool {
        let place =
            (self.seed ^ round).wrapping_mul(31).wrapping_add(key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                >> 32;
        self.churn == 0 || !place.is_multiple_of(u64::from(self.churn))
    }

    pub(super) fn end(&self) -> Duration {
        self.storm + self.calm
    }

    /// After this nothing new is wanted.
    pub(super) fn last_want(&self) -> Duration {
        self.end().saturating_sub(QUIET)
    }

    /// Plans that are smaller in one respect, the smallest first.
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
    /// What goes wrong, and when.
    pub fn new(kind: FaultKind, from: Duration, until: Duration) -> Self {
        Self { kind, from, until }
    }
}

impl FaultKind {
    /// The replica that it is about, if it is about one.
    fn concerns(self) -> Option<usize> {
        match self {
            Self::Pause(one) | Self::Crash(one) | Self::Partition(one) | Self::Blind(one) => Some(one),
            _ => None,
        }
    }

    /// The same, once the replica `gone` is left out.
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

/// At the end nothing new is wanted for so long.
const QUIET: Duration = Duration::from_secs(30);

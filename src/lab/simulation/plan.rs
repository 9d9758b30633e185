//! The course of a run, before it happens.

use std::{ops::Range, time::Duration};

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
    /// The time that the store takes for a write, beyond that.
    pub commit: Duration,
    /// One message in `tail` takes ten to a hundred times as long; none if it is zero.
    pub tail: u32,
    /// One change in `disorder` is delivered twice, and as many are delivered out of order; none if
    /// it is zero.
    pub disorder: u32,
    /// One piece of news in `late` takes up to `late_by` longer, and holds up all that follow; none
    /// if it is zero.
    pub late: u32,
    /// The longest time that late news take longer.
    pub late_by: Duration,
    /// The order that the store's versions show.
    pub versions: Versions,
    /// The number of keys, from the first one on, over which nobody is ever content: each request
    /// writes, whatever is there.
    pub restless: usize,
    /// The time between two rounds, in each of which all keys are to change.
    pub cadence: Duration,
    /// One key in `churn` is not wanted in a round; all are wanted if it is zero.
    pub churn: u32,
    /// With a time to live, elections decide who leads, and writes carry a fence.
    pub election: Option<Duration>,
    /// The number of shards into which the keys hash.
    pub shards: u16,
    /// The roster that the replicas keep, if they keep one.
    pub roster: Option<PlannedRoster>,
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

/// The roster of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedRoster {
    /// The number of entries at the start of replicas that never live.
    pub ghosts: usize,
    /// A replica has a new name in each of its lives. Otherwise it keeps its own.
    pub new_names: bool,
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
    /// How much later than others it receives news.
    pub lag: Duration,
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
    /// The replica's requests reach the store, but no answer comes back. Its watch goes on.
    Deaf(usize),
    /// Messages to and from the replica take twenty times as long.
    Slow(usize),
    /// All messages take twenty times as long.
    Brownout,
    /// The store is set back to what it was when the fault began, as it ends. All watches list anew.
    Restore,
    /// Some keys cannot be written.
    Sick(Sickness),
    /// The replica leaves in peace. It starts again when the fault ends.
    Leave(usize),
    /// Nobody receives news of the roster. The watches list anew when the fault ends.
    RosterStale,
    /// The replica receives no news of the roster. Its watch lists anew when the fault ends.
    RosterBlind(usize),
    /// All entries of the roster are deleted, when the fault begins.
    RosterDeleted,
    /// The store denies all writes to the roster.
    RosterReadOnly,
    /// Nobody may read the roster.
    RosterHidden,
}

/// Keys that cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sickness {
    /// The way in which writes of them end.
    pub ailment: Ailment,
    /// The first of the keys.
    pub first_key: usize,
    /// The number of keys, counted from the first one.
    pub keys: usize,
    /// The replica that cannot write them; `None` if no replica can.
    pub replica: Option<usize>,
}

/// A way in which a write fails for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ailment {
    /// The answer is an error, as if the store were not there.
    Fails,
    /// There is no answer.
    Hangs,
    /// The store denies it.
    Denied,
}

impl Sickness {
    /// Returns whether a replica cannot write a key.
    pub(super) fn affects(&self, replica: usize, key: usize) -> bool {
        (self.first_key..self.first_key + self.keys).contains(&key)
            && self.replica.is_none_or(|only| only == replica)
    }
}

impl Plan {
    /// Returns whether who writes and who leads may move about for ever: some keys cannot be written,
    /// nobody is ever content with some, or one replica learns late what others do.
    pub fn is_uneasy(&self) -> bool {
        self.restless > 0
            || self.chronic().next().is_some()
            || self.members.iter().any(|member| !member.lag.is_zero())
    }

    /// Returns whether all replicas want the same values of the same keys.
    pub fn wants_same(&self) -> bool {
        let first = &self.members[0];
        self.members.iter().all(|member| (member.range(), member.group) == (first.range(), first.group))
    }

    /// Returns a plan without faults: replicas that want the same keys, one round a second, five
    /// milliseconds from the store. Change the fields that are to differ.
    pub fn steady(seed: u64, replicas: usize, keys: usize, rounds: u32) -> Self {
        let cadence = Duration::from_secs(1);
        let member = Member { first_key: 0, keys, group: 0, rate: 1.0, lag: Duration::ZERO };
        Self {
            seed,
            members: vec![member; replicas],
            keys,
            term: Duration::from_secs(60),
            latency: Duration::from_millis(5),
            commit: Duration::ZERO,
            tail: 0,
            disorder: 0,
            late: 0,
            late_by: Duration::ZERO,
            versions: Versions::Ordered,
            restless: 0,
            cadence,
            churn: 0,
            election: None,
            shards: 1,
            roster: None,
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
        let builder =
            LeaseBuilder::new(format!("replica-{replica}")).term(self.term).shards(self.shards).seed(seed);
        LeaseConfig { tuning: self.tuning, ..builder.build().expect("plans are valid") }
    }

    /// Returns whether a fault of this kind lasts.
    pub(super) fn has_fault(&self, now: Duration, kind: FaultKind) -> bool {
        self.faults.iter().any(|fault| fault.kind == kind && fault.from <= now && now < fault.until)
    }

    /// Returns the sicknesses that nobody heals.
    pub(super) fn chronic(&self) -> impl Iterator<Item = Sickness> {
        let chronic = |fault: &PlannedFault| match fault.kind {
            FaultKind::Sick(sickness) if fault.until > self.storm => Some(sickness),
            _ => None,
        };
        self.faults.iter().filter_map(chronic)
    }

    /// Returns whether a replica can never write a key once the storm is over.
    pub(super) fn cannot_write(&self, replica: usize, key: usize) -> bool {
        self.chronic().any(|sickness| sickness.affects(replica, key))
    }

    /// Returns how long a read and a write take together.
    pub(super) fn attempt(&self) -> Duration {
        2 * self.latency + self.commit
    }

    /// Returns whether one replica alone keeps up with the requests of each key.
    pub(super) fn is_easy(&self) -> bool {
        self.cadence >= 4 * self.attempt()
    }

    /// Returns whether one replica alone keeps up, and nobody takes a part of its keys over: those that
    /// wait for a slot do so for less than the least patience.
    pub(super) fn has_room(&self) -> bool {
        let waits = self.attempt() * (self.keys.div_ceil(SLOTS) - 1) as u32;
        self.is_easy() && waits < LEAST_PATIENCE
    }

    /// Returns whether a key whose attempt was late is soon in time again: it saves what attempts take
    /// less than a round, and is late by at most one attempt. Messages take up to a fifth longer than
    /// usual.
    pub(super) fn catches_up(&self, rounds: u32) -> bool {
        let attempt = 2 * self.latency.mul_f64(1.2) + self.commit;
        rounds * self.cadence.saturating_sub(attempt) >= attempt
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
            plan.restless = plan.restless.min(plan.keys);
            plans.push(plan);
        }
        if self.tail > 0 {
            plans.push(Self { tail: 0, ..self.clone() });
        }
        if self.disorder > 0 {
            plans.push(Self { disorder: 0, ..self.clone() });
        }
        if self.late > 0 {
            plans.push(Self { late: 0, ..self.clone() });
        }
        if self.restless > 0 {
            plans.push(Self { restless: 0, ..self.clone() });
        }
        if !self.commit.is_zero() {
            plans.push(Self { commit: Duration::ZERO, ..self.clone() });
        }
        if self.members.iter().any(|member| !member.lag.is_zero()) {
            let mut plan = self.clone();
            plan.members.iter_mut().for_each(|member| member.lag = Duration::ZERO);
            plans.push(plan);
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
        if let Some(roster) = self.roster {
            plans.push(Self { roster: None, ..self.clone() });
            if roster.ghosts > 0 {
                let roster = PlannedRoster { ghosts: roster.ghosts / 2, ..roster };
                plans.push(Self { roster: Some(roster), ..self.clone() });
            }
            if roster.new_names {
                let roster = PlannedRoster { new_names: false, ..roster };
                plans.push(Self { roster: Some(roster), ..self.clone() });
            }
        }
        if self.shards > 1 {
            plans.push(Self { shards: 1, ..self.clone() });
            plans.push(Self { shards: self.shards / 2, ..self.clone() });
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
            Self::Pause(one)
            | Self::Crash(one)
            | Self::Partition(one)
            | Self::Blind(one)
            | Self::Deaf(one)
            | Self::Slow(one)
            | Self::Leave(one)
            | Self::RosterBlind(one) => Some(one),
            Self::Sick(sickness) => sickness.replica,
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
            Self::Deaf(one) => Self::Deaf(new(one)),
            Self::Slow(one) => Self::Slow(new(one)),
            Self::Leave(one) => Self::Leave(new(one)),
            Self::RosterBlind(one) => Self::RosterBlind(new(one)),
            Self::Sick(sickness) => Self::Sick(Sickness { replica: sickness.replica.map(new), ..sickness }),
            other => other,
        }
    }
}

/// How many attempts a leader has in flight at most.
pub(super) const SLOTS: usize = 16;
/// The least time that a replica waits before it takes over what another leaves pending.
const LEAST_PATIENCE: Duration = Duration::from_millis(500);
/// The time at the end in which no round begins.
const QUIET: Duration = Duration::from_secs(30);

//! The promises, checked against a world after each of its events.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{
    ages::{check_ages, is_deceived, is_excused, is_shared, old},
    finding::{standing, violation},
    message::{Content, Stored},
    observation::Observation,
    plan::{Algorithm, Plan},
    recovery::{Recovery, most_refused},
    report::{RunStats, Violation},
    turns::{check_roster_writes, check_turns, roster_heard},
    world::World,
};
use crate::engine::{Counters, Role, ShardView};

pub(super) struct Promises {
    /// Promises about time, and about who leads, are checked, too.
    in_time: bool,
    /// For each replica, when its last attempts started.
    started: Vec<VecDeque<Duration>>,
    /// The counters once a leader had settled.
    settled: Option<Settled>,
    /// How many writes to the roster there have been, and since when.
    roster_writes: (u64, Duration),
    /// How long after the last fault the turns of the shards were not settled.
    balanced: Duration,
    oldest: Duration,
}

/// Counters that stand still once a leader has settled.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Settled {
    won: u64,
    suspicions: u64,
    refused: u64,
}

impl Promises {
    pub fn new(plan: &Plan, in_time: bool) -> Self {
        Self {
            in_time,
            started: vec![VecDeque::new(); plan.members.len()],
            settled: None,
            roster_writes: (0, Duration::ZERO),
            balanced: Duration::ZERO,
            oldest: Duration::ZERO,
        }
    }

    /// Returns the time between two checks of everything; longer if such a check takes long.
    pub fn check_every(&self, plan: &Plan) -> Option<Duration> {
        self.in_time.then(|| CHECK * (1 + plan.members.len() * plan.keys / 2000) as u32)
    }

    /// Returns whether a run may go on after its end: the last request gets as much time as any
    /// other.
    pub fn allow_more(&self, world: &World, at: Duration) -> bool {
        let last = world.plan.last_want() + old(world.plan);
        let mut processes = world.hosts.iter().filter_map(|host| host.process.as_ref());
        self.in_time && at <= last && processes.any(|process| process.pending().next().is_some())
    }

    pub fn check(&mut self, world: &World, observation: Observation) -> Result<(), Violation> {
        match observation {
            Observation::Polled { replica, started } => {
                check_engine(world, replica)?;
                self.started[replica].extend((0..started).map(|_| world.now));
                check_started(world, replica, started)
            }
            Observation::SecondAttempt { replica, key } => {
                Err(violation(world, "no key has two attempts at the same time", replica, key))
            }
            Observation::Written { replica, key, before, after } => {
                check_write(world, replica, key, before, after)
            }
            Observation::Elected => Self::check_leaders(world),
            Observation::Check => self.check_all(world),
        }
    }

    fn check_all(&mut self, world: &World) -> Result<(), Violation> {
        let mut oldest = Duration::ZERO;
        for replica in 0..world.hosts.len() {
            let started = &mut self.started[replica];
            while started.front().is_some_and(|started| world.now - *started > SPAN) {
                started.pop_front();
            }
            check_bounds(world, replica)?;
            let rounds =
                world.rounds.iter().rev().take_while(|round| world.now - round.began <= SPAN).count();
            let most = (rounds + 2) * world.plan.members[replica].keys * 3 + 200;
            if started.len() > most {
                let detail = format!("{} attempts in {SPAN:?}, {most} allowed", started.len());
                return Err(violation(world, "no replica exceeds its attempt rate", replica, detail));
            }
            oldest = oldest.max(check_ages(world, replica)?);
        }
        self.oldest = self.oldest.max(oldest);
        self.balanced = check_turns(world)?.unwrap_or(self.balanced);
        check_roster_writes(world)?;
        Self::check_leaders(world)?;
        self.check_stability(world)
    }

    /// An election never lets two lead.
    fn check_leaders(world: &World) -> Result<(), Violation> {
        let plan = world.plan;
        if plan.algorithm != Algorithm::Lease || plan.election.is_none() {
            return Ok(());
        }
        for (group, leaders) in leaders(world) {
            if leaders > 1 {
                let detail = format!("{leaders} lead group {group}:\n{}", standing(world));
                return Err(violation(world, "no two replicas lead", 0, detail));
            }
        }
        Ok(())
    }

    /// In one group that wants the same, a leader that has settled and keeps up stays, and nothing
    /// moves any more.
    fn check_stability(&mut self, world: &World) -> Result<(), Violation> {
        let plan = world.plan;
        let RunStats { refused, roster_writes, .. } = world.stats;
        // A member is asked whether it lives when it does not its work, however long after that began, and
        // may claim its work back.
        if roster_writes != self.roster_writes.0 {
            (self.roster_writes, self.settled) = ((roster_writes, world.now), None);
        }
        if world.now < roster_heard(world).max(self.roster_writes.1) + SETTLED
            || !is_steady(world)
            || !plan.has_room()
            || plan.is_uneasy()
            || may_idle(plan)
            || !plan.wants_same()
            || plan.election.is_some()
        {
            return Ok(());
        }
        let engines = || world.hosts.iter().filter_map(|host| host.process.as_ref()?.contender.engine());
        let sum = |of: fn(&Counters) -> u64| engines().map(|engine| of(&engine.counters())).sum::<u64>();
        let (won, suspicions) = (sum(|c| c.won), sum(|c| c.suspicions));
        let now = Settled { won, suspicions, refused };
        let is_led = |key: &usize| world.hosts.iter().any(|host| host.leads_key(world.now, *key));
        if !plan.members[0].range().all(|key| is_led(&key)) {
            return Ok(());
        }
        let Some(before) = self.settled else {
            self.settled = Some(now);
            return Ok(());
        };
        if now != before {
            let detail = format!("{before:?} became {now:?}:\n{}", standing(world));
            return Err(violation(world, "a leader that has settled stays, unchallenged", 0, detail));
        }
        Ok(())
    }

    /// Nothing that a fault left behind lasts.
    fn check_recovery(&self, world: &World) -> Result<(), Violation> {
        let plan = world.plan;
        if !self.in_time || plan.algorithm != Algorithm::Lease {
            return Ok(());
        }
        let refused = world.stats.refused;
        if most_refused(plan, world.late_messages()).is_some_and(|most| refused > most) {
            let detail = format!("{refused} for {} faults:\n{}", plan.faults.len(), standing(world));
            return Err(violation(world, "each fault costs few refused writes", 0, detail));
        }
        match Recovery::of(world).filter(|recovery| !recovery.is_complete(plan)) {
            Some(recovery) => {
                let promise = match plan.chronic().next() {
                    None => "nothing is metastable",
                    Some(_) => "a failing key holds up no other",
                };
                Err(violation(world, promise, 0, format!("{recovery:?}:\n{}", standing(world))))
            }
            None => Ok(()),
        }
    }

    /// At the end nothing is pending, and every key is as it should be. Returns the figures of the
    /// run.
    pub fn check_end(self, world: &World) -> Result<RunStats, Violation> {
        self.check_recovery(world)?;
        let mut stats = RunStats {
            time: world.plan.end(),
            rounds: world.round,
            oldest: self.oldest,
            balanced: self.balanced,
            ..world.stats
        };
        for (replica, host) in world.hosts.iter().enumerate() {
            let Some(process) = &host.process else { continue };
            let Some(engine) = process.contender.engine() else { continue };
            stats.won += engine.counters().won;
            stats.suspicions += engine.counters().suspicions;
            if !self.in_time || is_deceived(world, replica) {
                continue;
            }
            let judged = |pending: &(Duration, usize)| !is_excused(world, replica, pending.1);
            if let Some((since, key)) = process.pending().filter(judged).min() {
                let detail = format!("key {key}, since {since:?}:\n{}", standing(world));
                return Err(violation(world, "nothing is pending at the end", replica, detail));
            }
            for (key, stored) in world.store.iter().enumerate() {
                let Some(goal) = process.goal(key) else { continue };
                let group = world.plan.members[replica].group;
                if !world.is_within_reach(Some(group), key) {
                    continue;
                }
                let is_ours = stored.content.is_some_and(|content| content.group == group);
                if stored.round() < goal || !(is_ours || is_shared(world.plan, replica, key)) {
                    let detail = format!("key {key} is at {stored:?}, round {goal} is wanted");
                    return Err(violation(world, "every key is as it should be at the end", replica, detail));
                }
            }
        }
        Ok(stats)
    }
}

/// The settings of an engine, and its lease, stay within their bounds.
fn check_bounds(world: &World, replica: usize) -> Result<(), Violation> {
    let (plan, host) = (world.plan, &world.hosts[replica]);
    let Some(process) = &host.process else { return Ok(()) };
    // The algorithms that the engine is compared with promise nothing.
    let Some(engine) = process.contender.engine() else { return Ok(()) };
    if !(1..=16).contains(&engine.window()) {
        return Err(violation(world, "the window is within its bounds", replica, engine.window()));
    }
    if engine.patience() > plan.term {
        let detail = format!("{:?}", engine.patience());
        return Err(violation(world, "patience is never above the term", replica, detail));
    }
    let now = process.local(world.now);
    for (number, shard) in (0..).zip(engine.shards()) {
        let latest = process.checker.latest_end(engine, number);
        let leads = shard.role == Role::Leader && now < shard.lease_end;
        if plan.election.is_none() && leads && shard.lease_end > latest {
            let detail = format!("shard {number}: {:?}, not {latest:?}", shard.lease_end);
            let promise = "a leader's lease counts from the start of its attempts";
            return Err(violation(world, promise, replica, detail));
        }
    }
    // A tenth more than the term, and the delay that rivals draw.
    let by_work = plan.term.mul_f64(1.1) + engine.echo() * plan.tuning.rival_echoes;
    let most = plan.election.unwrap_or(by_work);
    let lease = engine.lease_end() - process.local(world.now);
    if !host.paused && lease > most {
        let detail = format!("{lease:?}, {most:?} allowed");
        return Err(violation(world, "a lease ends within its bounds", replica, detail));
    }
    Ok(())
}

/// Each event moved the engine as it should.
fn check_engine(world: &World, replica: usize) -> Result<(), Violation> {
    let process = world.hosts[replica].process.as_ref();
    let broken = process.and_then(|process| process.checker.broken());
    broken.map_or(Ok(()), |(promise, detail)| Err(violation(world, promise, replica, detail)))
}

/// A replica that competes for a shard's lease has one attempt of nobody's keys of the shard in flight
/// at a time; one that is not elected has none.
/// `count` attempts have just started.
fn check_started(world: &World, replica: usize, count: usize) -> Result<(), Violation> {
    // Most polls start nothing.
    if count == 0 {
        return Ok(());
    }
    let Some(process) = &world.hosts[replica].process else { return Ok(()) };
    let Some(engine) = process.contender.engine() else { return Ok(()) };
    let leads = process.is_leader(world.now);
    let now = process.local(world.now);
    let competes = |shard: ShardView| match shard.role {
        Role::Election => true,
        Role::Leader => now >= shard.lease_end,
        Role::Follower => false,
    };
    // An attempt of a key that failed before holds up no other, so one may run beside it.
    let slots = world.now.saturating_sub(SLOT);
    let (in_flight, failed_before) = process.attempts_since(slots);
    let is_contested = |shard: u16| {
        engine.shards().nth(shard.into()).is_some_and(competes) && process.contested_since(slots, shard) > 1
    };
    if process.shards_in_flight().any(is_contested) {
        let promise = "a replica that competes makes one attempt at a time";
        return Err(violation(world, promise, replica, in_flight));
    }
    // Attempts of failing keys that began before this was known go on.
    if let Some(since) = process.checker.silent_since()
        && (in_flight - failed_before > 1 || process.repeats_since(slots, since) > 1)
    {
        let promise = "one attempt at a time finds out whether the store is back";
        return Err(violation(world, promise, replica, in_flight));
    }
    if world.plan.election.is_some() && !leads {
        return Err(violation(world, "a replica that is not elected starts nothing", replica, count));
    }
    Ok(())
}

/// No write that succeeded is undone by a replica that knew less.
fn check_write(
    world: &World,
    replica: usize,
    key: usize,
    before: Stored,
    after: Content,
) -> Result<(), Violation> {
    let is_undone = |before: Content| before.group == after.group && before.round > after.round;
    if before.content.is_some_and(is_undone) {
        let detail = format!("key {key} was at {before:?}, and is at round {}", after.round);
        return Err(violation(world, "no write is lost", replica, detail));
    }
    Ok(())
}

/// Returns whether new rounds still begin.
fn is_steady(world: &World) -> bool {
    world.now < world.plan.last_want()
}

/// Returns whether a lease may end because so few rounds want anything. A shard has but few keys.
fn may_idle(plan: &Plan) -> bool {
    let rounds = if plan.shards == 1 { 4 } else { 8 };
    plan.churn > 0 && plan.term < rounds * plan.cadence
}

/// Returns how many replicas lead, by group.
fn leaders(world: &World) -> HashMap<u8, usize> {
    let mut leaders = HashMap::new();
    for (host, member) in world.hosts.iter().zip(&world.plan.members) {
        *leaders.entry(member.group).or_default() += usize::from(host.leads(world.now));
    }
    leaders
}

/// How long an attempt holds its slot, by any clock.
const SLOT: Duration = Duration::from_secs(4);
/// The time between two checks of everything.
const CHECK: Duration = Duration::from_millis(250);
/// The time over which attempts are counted.
const SPAN: Duration = Duration::from_secs(10);
/// Once the last message of the storm has arrived, the roster was last written, and this time has passed,
/// nothing moves any more.
const SETTLED: Duration = Duration::from_secs(60);

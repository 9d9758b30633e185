//! The promises about the roster: it settles on the living, and is written seldom.

use std::{collections::BTreeSet, time::Duration};

use super::{
    finding::{standing, violation},
    plan::{Algorithm, FaultKind, Plan},
    report::Violation,
    world::World,
};
use crate::engine::{Tuning, Turn};

/// Some time after the last fault, and a patience for each dead member, all replicas that serve agree
/// that each shard with keys is the turn of one of them. Returns how long after the last fault they do
/// not agree, if they do not now.
pub(super) fn check_turns(world: &World) -> Result<Option<Duration>, Violation> {
    let plan = world.plan;
    let since = world.now.saturating_sub(roster_heard(world));
    if since.is_zero() || !turns_settle(plan) {
        return Ok(None);
    }
    let Some(shard) = unsettled_turn(world) else { return Ok(None) };
    let longest = longest_settling(world);
    if since > longest {
        let detail = format!("shard {shard}, {since:?} of {longest:?}:\n{}", standing(world));
        return Err(violation(world, "the turns settle on the living", 0, detail));
    }
    Ok(Some(since))
}

/// Each fault costs few writes to the roster.
pub(super) fn check_roster_writes(world: &World) -> Result<(), Violation> {
    let (plan, written) = (world.plan, world.stats.roster_writes);
    let most = most_written(plan, world.now, world.late_messages());
    if plan.algorithm == Algorithm::Lease && written > most {
        let detail = format!("{written} of {most}:\n{}", standing(world));
        return Err(violation(world, "each fault costs few writes to the roster", 0, detail));
    }
    Ok(())
}

/// Returns until when faults may show that concern the roster.
pub(super) fn roster_heard(world: &World) -> Duration {
    let is_hidden = world.plan.roster.is_some() && has(world.plan, FaultKind::RosterHidden);
    world.storm_heard() + if is_hidden { UNREADABLE } else { Duration::ZERO }
}

/// Returns how many members of the roster may be dead in the end: those that never lived, and those
/// that were killed and do not come back under the same name.
pub(super) fn most_dead(plan: &Plan) -> u32 {
    let Some(roster) = plan.roster else { return 0 };
    let is_death = |kind| matches!(kind, FaultKind::Crash(_) | FaultKind::CrashLeader | FaultKind::Leave(_));
    let deaths = plan.faults.iter().filter(|fault| is_death(fault.kind));
    (roster.ghosts + deaths.filter(|fault| roster.new_names || fault.until > plan.storm).count()) as u32
}

/// Returns the first shard with keys of which the replicas that serve do not agree that it is the turn
/// of one of them.
fn unsettled_turn(world: &World) -> Option<u16> {
    let serving = || world.hosts.iter().filter(|host| host.serves());
    let engines = || serving().filter_map(|host| host.process.as_ref()?.contender.engine());
    let engine = engines().next()?;
    let keys = (0..world.plan.keys).filter(|key| world.is_within_reach(None, *key));
    let shards: BTreeSet<u16> = keys.map(|key| engine.shard_of(&key)).collect();
    let turns =
        |shard: u16| engines().filter_map(move |engine| Some(engine.shards().nth(shard.into())?.turn));
    shards.into_iter().find(|shard| {
        turns(*shard).any(|turn| turn == Turn::Open)
            || turns(*shard).filter(|turn| *turn == Turn::Us).count() != 1
    })
}

/// Returns whether the turns must settle. In an election nobody takes a shard over. A roster that
/// cannot be written keeps the dead, until another replica takes a shard of theirs over. A member
/// counts as dead that lives and does not write in its shards; one that others take for alive because
/// several share its work may stay for as long as they do.
fn turns_settle(plan: &Plan) -> bool {
    plan.roster.is_some()
        && plan.election.is_none()
        && plan.algorithm == Algorithm::Lease
        && plan.wants_same()
        && !plan.is_uneasy()
        && plan.has_room()
        && !(most_dead(plan) > 0 && has(plan, FaultKind::RosterReadOnly))
}

/// Returns how long the turns may be unsettled.
fn longest_settling(world: &World) -> Duration {
    let engines = world.hosts.iter().filter_map(|host| host.process.as_ref()?.contender.engine());
    let patience = engines.map(|engine| engine.patience()).max().unwrap_or_default();
    // A strike-off waits for a request that is younger than the member's last write, and then for the
    // patience of the last replica in the spread, and for one to be first.
    let strike = world.plan.cadence + Tuning::default().patience_spread;
    let step = patience + strike + world.plan.cadence + 10 * world.plan.attempt();
    // A member whose shard was won while others were heard of there has a term to show itself.
    let term = if most_dead(world.plan) > 0 { world.plan.term } else { Duration::ZERO };
    LONGEST_PAUSE + term + step * (2 + most_dead(world.plan))
}

/// Returns how many writes to the roster may succeed until now: two for each entry of a replica that
/// never lived, two for each replica for its start and for each fault, and one for each message that
/// takes long. A replica that does not write in its shards, because it wants other keys, learns late or
/// cannot, is struck off and joins again, after pauses that grow.
fn most_written(plan: &Plan, now: Duration, late_messages: u64) -> u64 {
    let Some(roster) = plan.roster else { return 0 };
    let usual = 2 * roster.ghosts as u64 + late_messages;
    // A member that lives and is doubted for long is asked in times that double.
    let questions = (1 + now.as_secs() / TRUST.as_secs()).ilog2() + 1;
    let mut each = 2 * (1 + plan.faults.len() as u64 + u64::from(questions));
    if !plan.wants_same() || plan.is_uneasy() || !plan.has_room() {
        each += 2 * (QUICK_JOINS + now.as_secs() / LONGEST_PAUSE.as_secs());
    }
    usual + each * plan.members.len() as u64
}

fn has(plan: &Plan, kind: FaultKind) -> bool {
    plan.faults.iter().any(|fault| fault.kind == kind)
}

/// How long a replica waits before it tries again to read a roster that it could not, by a clock that
/// may be slow.
const UNREADABLE: Duration = Duration::from_secs(62);
/// The longest pause before a replica joins again, by a clock that may be slow.
const LONGEST_PAUSE: Duration = Duration::from_secs(33);
/// How many times a replica joins again before that pause is reached.
const QUICK_JOINS: u64 = 8;
/// How long a member is not asked again after its first answer, by a clock that may be fast.
const TRUST: Duration = Duration::from_secs(59);

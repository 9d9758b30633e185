//! The promises about how long a key is pending.

use std::time::Duration;

use super::{
    finding::{standing, violation},
    plan::{Ailment, Plan, SLOTS},
    process::Process,
    report::Violation,
    turns::most_dead,
    world::{TIMEOUT, World},
};

/// No key is pending for too long. Returns the age of the oldest one that no two groups fight over.
pub(super) fn check_ages(world: &World, replica: usize) -> Result<Duration, Violation> {
    let plan = world.plan;
    let Some(process) = &world.hosts[replica].process else { return Ok(Duration::ZERO) };
    if process.contender.engine().is_none() || process.pending().next().is_none() {
        return Ok(Duration::ZERO);
    }
    let (from, trials) = judged_from(world, replica);
    let mut oldest = Duration::ZERO;
    for (since, key) in process.pending() {
        if is_excused(world, replica, key) {
            continue;
        }
        // A key that changes faster than it can be written belongs to the luckier group.
        let is_disputed = !plan.is_easy() && is_shared(plan, replica, key);
        let longest = trials + if is_disputed { DISPUTED } else { old(plan) };
        let age = world.now.saturating_sub(since.max(from));
        let soon = patient(plan, process, key) + trials;
        if !is_shared(plan, replica, key) && age > soon {
            let detail = format!("key {key} is pending for {age:?} of {soon:?}:\n{}", standing(world));
            return Err(violation(
                world,
                "no key waits for longer than patience and attempts",
                replica,
                detail,
            ));
        }
        if age > longest {
            let detail = format!("key {key} is pending for {age:?}:\n{}", standing(world));
            return Err(violation(world, "every pending key is done in time", replica, detail));
        }
        if !is_disputed {
            oldest = oldest.max(age);
        }
    }
    Ok(oldest)
}

/// Returns whether a key may be pending for ever: nobody can write it, or this replica cannot, and is
/// never content with what others write, or may never see it. It may not if another group overwrites
/// that: who reads the key once that has happened takes no older news of it in.
pub(super) fn is_excused(world: &World, replica: usize, key: usize) -> bool {
    let plan = world.plan;
    let is_unseen = key < plan.restless || is_shared(plan, replica, key);
    plan.cannot_write(replica, key) && is_unseen
        || !world.is_within_reach(Some(plan.members[replica].group), key)
}

/// Returns how long a key may be pending.
pub(super) fn old(plan: &Plan) -> Duration {
    plan.term + OLD
}

/// Returns whether another group wants something else of a key.
pub(super) fn is_shared(plan: &Plan, replica: usize, key: usize) -> bool {
    let ours = plan.members[replica].group;
    let mut others = plan.members.iter().filter(|other| other.group != ours);
    others.any(|other| other.range().contains(&key))
}

/// Returns how long a key may be pending whose incumbent is dead: for patience and its spread, attempts
/// that fail first, and those that stand before it in the queue. After a silence a replica waits for
/// a whole patience more, once; and so for each dead member to whom the roster gives the shard next.
///
/// An election knows no patience. A leader that died with the storm leads for its time to live, and
/// the others ask three times in that time.
fn patient(plan: &Plan, process: &Process, key: usize) -> Duration {
    let patience = process.patience(key).unwrap_or(plan.term);
    let hand_over = plan.election.map_or((2 + most_dead(plan)) * patience + SPREAD, |ttl| ttl + ttl / 3);
    hand_over + LOST + plan.attempt() * (10 + plan.keys.div_ceil(SLOTS) as u32)
}

/// Returns whether a replica has good reason to think that the store is down: it tries one key after
/// the other that fails for good.
pub(super) fn is_deceived(world: &World, replica: usize) -> bool {
    !judged_from(world, replica).1.is_zero()
}

/// Returns from when on the ages of a replica's keys count, and how much longer they may be meanwhile
/// because of keys that fail for good.
///
/// All is well once the storm is over. A replica that was not elected makes no attempts, so it also
/// needs the news, which arrive behind those of the storm.
///
/// A replica that thinks that the store is down makes one attempt at a time, after a pause. As long as
/// each one takes a key that fails for good, nothing shows that the store is back. Such a key stands
/// before the others until it has failed more often than the one of them that failed least. The
/// first answer ends that, and from there ages count.
fn judged_from(world: &World, replica: usize) -> (Duration, Duration) {
    let plan = world.plan;
    let is_elected = plan.election.is_some();
    let mut from = if is_elected { world.storm_heard() } else { plan.storm };
    let mut trials = Duration::ZERO;
    let trial: Duration = plan.members[replica].range().filter_map(|key| trial(plan, replica, key)).sum();
    if trial.is_zero() {
        return (from, trials);
    }
    for (writer, host) in world.hosts.iter().enumerate() {
        let Some(process) = host.process.as_ref().filter(|_| writer == replica || is_elected) else {
            continue;
        };
        let Some((_, until)) = process.silences().last() else { continue };
        from = from.max(until.unwrap_or_default());
        if until.is_none() && (!is_elected || host.leads(world.now)) {
            let can_write = |key| !plan.cannot_write(writer, key);
            trials = trials.max(trial * (1 + process.fewest_setbacks(world.now, can_write)));
        }
    }
    (from, trials)
}

/// Returns how long an attempt of a key takes that fails for good, with the pause after it.
fn trial(plan: &Plan, replica: usize, key: usize) -> Option<Duration> {
    let ailments = plan.chronic().filter(|sickness| sickness.affects(replica, key));
    let times = ailments.filter_map(|sickness| match sickness.ailment {
        Ailment::Fails => Some(plan.attempt() + PAUSE),
        Ailment::Hangs => Some(plan.attempt() + TIMEOUT + PAUSE),
        // That is an answer.
        Ailment::Denied => None,
    });
    times.max()
}

/// The time over which the ends of patience are spread.
const SPREAD: Duration = Duration::from_secs(2);
/// How long it takes to notice that a message got lost, and to try again: a call waits for 5 s and the
/// next attempt for 3.4 s. Another may have been in its way.
const LOST: Duration = Duration::from_secs(12);
/// The longest pause between attempts while the store gives no answer: 3 s and a tenth, by a clock
/// that may be slow.
const PAUSE: Duration = Duration::from_millis(3400);
/// How much longer than the term, which is the most that patience can be, a key may be pending once
/// all is well: attempts take their time, too, and may be refused.
const OLD: Duration = Duration::from_secs(30);
/// How long a key may be pending over which two groups fight.
const DISPUTED: Duration = Duration::from_secs(150);

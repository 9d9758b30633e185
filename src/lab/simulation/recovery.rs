//! The promises about what a fault leaves behind: nothing is metastable, and a failing key holds up no
//! other.

use std::time::Duration;

use super::{
    ages::is_deceived,
    plan::{FaultKind, Plan},
    report::RoundStats,
    turns::roster_heard,
    world::{SLOWNESS, World},
};

/// The median rounds before the first fault and long after the last, `None` for rounds that did not
/// end before the next one began.
#[derive(Debug)]
pub(super) struct Recovery {
    before: Option<Duration>,
    after: Option<Duration>,
}

impl Recovery {
    /// Returns `None` if the run has too few rounds before the first fault or after the last, or if
    /// two groups want different values.
    ///
    /// So it does if keys that fail for good keep a replica from learning that the store is back, and if
    /// rounds begin as fast as attempts end. A key has one attempt at a time, so that one which a fault
    /// has delayed stays late for ever: at the start all keys are in step with the rounds, and
    /// afterwards none.
    pub fn of(world: &World) -> Option<Self> {
        let plan = world.plan;
        let first = plan.faults.iter().map(|fault| fault.from).min()?;
        let of_one_group = plan.members.iter().all(|member| member.group == plan.members[0].group);
        // Those that keys deceive later, when all is well, are judged.
        let deceived = |replica: usize| {
            let silences = world.hosts[replica].process.as_ref()?.silences();
            let (_, until) = silences.take_while(|(since, _)| *since < plan.storm + SETTLES).last()?;
            Some(until.unwrap_or(if is_deceived(world, replica) { Duration::MAX } else { plan.storm }))
        };
        let heard = roster_heard(world).saturating_sub(world.storm_heard()) + plan.storm;
        let silent = (0..plan.members.len()).filter_map(deceived).fold(heard, Duration::max);
        let settled = silent.saturating_add((ROUNDS * plan.cadence).max(SETTLES));
        // A round that wants nothing is right from the start, and says nothing about any other.
        let median = |rounds: &mut dyn Iterator<Item = &RoundStats>| {
            let times = rounds.map(|round| round.right.unwrap_or(Duration::MAX));
            let mut times: Vec<_> = times.filter(|time| !time.is_zero()).collect();
            times.sort_unstable();
            (times.len() >= ENOUGH).then(|| Some(times[times.len() / 2]).filter(|time| *time < Duration::MAX))
        };
        let is_before = |round: &&RoundStats| round.began + plan.cadence <= first;
        let before = median(&mut world.rounds.iter().skip(STARTS).filter(is_before))?;
        // The last round may still go on.
        let known = world.rounds.len().saturating_sub(1);
        let is_after = |round: &&RoundStats| round.began >= settled;
        let after = median(&mut world.rounds[..known].iter().filter(is_after))?;
        (of_one_group && plan.catches_up(ROUNDS)).then_some(Self { before, after })
    }

    /// Returns whether rounds take as long as before the first fault.
    pub fn is_complete(&self, plan: &Plan) -> bool {
        let Some(before) = self.before else { return true };
        self.after.is_some_and(|after| after <= before.mul_f64(MOST) + plan.attempt())
    }
}

/// Returns how many writes may be refused in a run: some for the start and for each fault, one for each
/// replica and each further race at the start, and one for each message that takes long. `None` if others change the keys, too, if requests come
/// faster than they are served, slow messages included, or than one replica serves them before others
/// lose patience, or if some replica learns late or is never content.
pub(super) fn most_refused(plan: &Plan, late_messages: u64) -> Option<u64> {
    let interferes =
        |kind| matches!(kind, FaultKind::Edits | FaultKind::Deletes | FaultKind::Restore | FaultKind::Burst);
    let slows = |kind| matches!(kind, FaultKind::Brownout | FaultKind::Slow(_));
    let may_pile_up = plan.cadence < SLOWNESS * plan.attempt();
    let are_alone = plan.restless == 0
        && plan.has_room()
        && plan.members.iter().all(|member| member.group == plan.members[0].group && member.lag.is_zero())
        && !plan.faults.iter().any(|fault| interferes(fault.kind) || slows(fault.kind) && may_pile_up);
    // Without a roster, each shard has a race of its own at the start.
    let races = if plan.roster.is_some() { 1 } else { plan.keys.min(usize::from(plan.shards)) };
    are_alone.then(|| {
        REFUSED * (1 + plan.faults.len() as u64) + (plan.members.len() * (races - 1)) as u64 + late_messages
    })
}

/// How many writes may be refused for each fault.
const REFUSED: u64 = 20;
/// How many rounds after the last fault a round takes no longer than before.
const ROUNDS: u32 = 10;
/// The time after which nothing waits any more for messages that got lost.
const SETTLES: Duration = Duration::from_secs(40);
/// How much longer a round may take.
const MOST: f64 = 1.5;
/// The fewest rounds that have a median.
const ENOUGH: usize = 5;
/// The first rounds, in which replicas start.
const STARTS: usize = 3;

//! Faults of single replicas in the course of a run.

use std::time::Duration;

/// A fault of one replica that lasts for a while.
///
/// A rolling restart at given times is a list of them;
/// [`Scenario::rolling_restart`](super::Scenario::rolling_restart) goes by rounds instead.
///
/// ```
/// use std::time::Duration;
/// use writerlease::lab::{ReplicaFault, ReplicaFaultKind, Scenario};
///
/// let second = Duration::from_secs(1);
/// let restart = |replica| ReplicaFault {
///     kind: ReplicaFaultKind::Restart,
///     replica,
///     at: second * (10 + 8 * replica as u32),
///     lasts: 3 * second,
/// };
/// let scenario = Scenario { faults: (0..3).map(restart).collect(), ..Scenario::default() };
/// assert!(scenario.check().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaFault {
    /// Kind of the fault.
    pub kind: ReplicaFaultKind,
    /// Number of the replica, counted from 0.
    pub replica: usize,
    /// Time at which the fault begins, since the start of the first round.
    pub at: Duration,
    /// Time after which it ends.
    pub lasts: Duration,
}

/// A kind of fault of one replica. When it ends, the replica receives what was requested last of
/// each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReplicaFaultKind {
    /// The replica shuts down, and starts anew at the end.
    Restart,
    /// The replica is killed, and starts anew at the end.
    Kill,
    /// Requests to and from the replica wait until the end, as do its events: this is how a stopped
    /// process looks to its peers.
    Pause,
}

/// The beginnings and ends of all faults, in order of time.
pub(super) struct FaultPlan {
    /// The next one last.
    steps: Vec<FaultStep>,
}

#[derive(Clone, Copy)]
pub(super) struct FaultStep {
    pub after: Duration,
    pub replica: usize,
    pub kind: ReplicaFaultKind,
    pub begins: bool,
}

impl FaultPlan {
    pub fn new(faults: &[ReplicaFault]) -> Self {
        let step = |fault: &ReplicaFault, begins| FaultStep {
            after: fault.at + if begins { Duration::ZERO } else { fault.lasts },
            replica: fault.replica,
            kind: fault.kind,
            begins,
        };
        let mut steps: Vec<_> =
            faults.iter().flat_map(|fault| [step(fault, true), step(fault, false)]).collect();
        steps.sort_by_key(|step| step.after);
        steps.reverse();
        Self { steps }
    }

    /// Returns when the next step is due, since the start of the first round.
    pub fn next(&self) -> Option<Duration> {
        self.steps.last().map(|step| step.after)
    }

    pub fn pop(&mut self) -> Option<FaultStep> {
        self.steps.pop()
    }
}

/// The steps of a rolling restart, in the order of their rounds: each replica leaves, then returns.
#[derive(Default)]
pub(super) struct RollingRestart {
    done: usize,
}

pub(super) struct RestartStep {
    pub replica: usize,
    pub round: u64,
    pub begins: bool,
}

/// The rounds from one replica's departure to the next one's, and to its own return.
const APART: usize = 3;
const AWAY: usize = 2;

impl RollingRestart {
    /// Returns the round in which the last replica returns.
    pub fn last_round(replicas: usize) -> usize {
        replicas * APART + AWAY
    }

    /// Returns the next step of a restart of so many replicas.
    pub fn next(&self, replicas: usize) -> Option<RestartStep> {
        let (replica, begins) = (self.done / 2, self.done.is_multiple_of(2));
        let round = (replica + 1) * APART + if begins { 0 } else { AWAY };
        (replica < replicas).then_some(RestartStep { replica, round: round as u64, begins })
    }

    pub fn pop(&mut self) {
        self.done += 1;
    }
}

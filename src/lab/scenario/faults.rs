//! Faults of single replicas in the course of a run.

use std::time::Duration;

/// A fault of one replica that lasts for a while.
///
/// A rolling restart is a list of them:
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

//! The authority that decides when this replica may write: the work itself, or an election that is
//! held elsewhere.

use super::{step::Step, time::Timestamp};

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Authority {
    /// The engine follows no election: rules 1 to 10 decide.
    #[default]
    ByWork,
    /// We are elected until then, and nobody else is.
    Elected { until: Timestamp },
    /// Another replica is elected, or none is.
    NotElected,
}

impl Authority {
    pub(super) fn is_by_work(self) -> bool {
        matches!(self, Self::ByWork)
    }

    /// Returns the step that the election imposes, if it forbids attempts.
    pub(super) fn blocks(self, now: Timestamp) -> Option<Step> {
        match self {
            Self::ByWork => None,
            Self::Elected { until } if now < until => None,
            Self::Elected { .. } | Self::NotElected => Some(Step::Idle),
        }
    }
}

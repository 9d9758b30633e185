//! The authority that decides when this replica may write: the work itself, or an election that is
//! held elsewhere.

use super::time::Timestamp;

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

    /// Returns whether the election forbids attempts.
    pub(super) fn blocks(self, now: Timestamp) -> bool {
        match self {
            Self::ByWork => false,
            Self::Elected { until } => until <= now,
            Self::NotElected => true,
        }
    }
}

//! Who decides when this replica may write: the work, or an election that is held elsewhere.

use super::{step::Step, time::Timestamp};

/// What an election says; nothing, as long as the engine follows none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Authority {
    /// The work decides: rules 1 to 10.
    #[default]
    Free,
    /// We work until then, and nobody else does.
    Elected { until: Timestamp },
    /// Somebody else works, or nobody does.
    NotElected,
}

impl Authority {
    pub fn is_by_work(self) -> bool {
        matches!(self, Self::Free)
    }

    /// What may happen at most, whatever there is to do.
    pub fn blocks(self, now: Timestamp) -> Option<Step> {
        match self {
            Self::Free => None,
            Self::Elected { until } if now < until => None,
            Self::Elected { .. } | Self::NotElected => Some(Step::Idle),
        }
    }
}

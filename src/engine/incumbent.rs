//! The incumbent of a key: whoever wrote it last.

/// The writer of the last value of a key, as far as this replica knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Incumbent {
    /// Nobody is known to have written it, or its last writer is silent: the lease decides.
    #[default]
    Nobody,
    /// This replica.
    Us,
    /// Another replica.
    Other,
}

impl Incumbent {
    pub(super) const ALL: [Self; 3] = [Self::Nobody, Self::Us, Self::Other];
}

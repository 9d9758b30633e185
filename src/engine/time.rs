use std::{
    ops::{Add, Sub},
    time::Duration,
};

/// A point in time: nanoseconds since an origin that the caller chose.
///
/// The engine never asks what time it is. A driver counts from its own start on a monotonic clock, a simulator from
/// zero. Arithmetic saturates, so that absurd settings end in the far future and not in a panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The origin.
    pub const ZERO: Self = Self(0);
    /// Never.
    pub const MAX: Self = Self(u64::MAX);

    /// The point `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time since the origin.
    pub const fn elapsed_since_origin(self) -> Duration {
        Duration::from_nanos(self.0)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        // In 64 bits, because this is on the hot path.
        let nanos = by.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(by.subsec_nanos()));
        Self(self.0.saturating_add(nanos))
    }
}

impl Sub for Timestamp {
    type Output = Duration;

    /// The time from `earlier` to here; zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

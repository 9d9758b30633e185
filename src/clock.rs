//! The one place that reads clocks.
//!
//! tokio's clock is the one that tests pause and that tokio's timers follow. On Linux it stands
//! still while the machine is suspended, and the other replicas do not wait meanwhile. Everything
//! that is believed for a limited time is therefore measured by tokio's time *plus* the time that
//! the machine slept: the time by which `CLOCK_BOOTTIME` has run ahead since the process first read
//! it. Only sleep moves the two apart, because the kernel disciplines both alike. So the second
//! clock is read once a millisecond at most, and every other reading is one of tokio's clock alone.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// A point in time on a clock that also runs while the machine is suspended.
///
/// It says until when a leader may believe that it leads
/// ([`Leadership::Leader`](crate::election::Leadership::Leader)), or until when an attempt holds
/// its slot ([`Attempt::deadline`](crate::Attempt::deadline)). Other replicas go on while this
/// machine sleeps, and tokio's `Instant` stops on some systems, so it cannot measure these times.
///
/// | system | while the machine is suspended |
/// |---|---|
/// | Linux, Android | `CLOCK_BOOTTIME`, which is read beside tokio's clock, continues |
/// | Windows | the performance counter, which std and tokio read, continues |
/// | macOS, iOS | **it stands still**: std and tokio read `CLOCK_UPTIME_RAW`, and this crate nothing else |
/// | others | as std's [`Instant`](std::time::Instant) does, mostly `CLOCK_MONOTONIC` |
///
/// Where it stands still, a leader that was suspended believes in its leadership for longer, by the
/// length of the suspension. Its writes are refused all the same, by their versions and their
/// [`Fence`](crate::store::Fence). A stopped *process* makes no difference, because all clocks
/// continue. The clocks of a virtual machine that is stopped from outside are up to its host. Where
/// a test has paused tokio's time, this clock is paused too.
///
/// ```
/// use std::time::Duration;
/// use writerlease::Moment;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// // For an elector of your own: a leadership counts from before the request that confirmed it.
/// let until = Moment::now() + Duration::from_secs(10);
/// assert!(!until.has_passed() && until.remaining() <= Duration::from_secs(10));
/// until.passed().await;
/// assert!(until.has_passed() && until.remaining().is_zero());
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(
    /// The time that tokio's clock would show if it had never stopped.
    Instant,
);

impl Moment {
    /// Returns the present moment.
    pub fn now() -> Self {
        let (awake, slept) = look();
        Self(awake + slept)
    }

    /// Returns whether this moment is now or in the past.
    pub fn has_passed(self) -> bool {
        Self::now() >= self
    }

    /// Returns the time left until this moment; zero if it has passed.
    pub fn remaining(self) -> Duration {
        self - Self::now()
    }

    /// Waits until this moment, on a tokio runtime with timers. After a suspension during the wait
    /// it returns at most a second late. Cancel safe.
    pub async fn passed(self) {
        while !self.has_passed() {
            sleep_until(self.alarm()).await;
        }
    }

    /// Returns the time to which a timer of tokio must be set in order to wait for this moment. The
    /// timer counts only while the machine is awake, so it fires early, after [`MAX_SLEEP`] at
    /// most, and the caller then looks again.
    pub(crate) fn alarm(self) -> Instant {
        let (awake, slept) = look();
        self.0.checked_sub(slept).map_or(awake, |at| at.min(awake + MAX_SLEEP))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// Returns the moment that much later, or in a year if no clock can show it: as good as never.
    fn add(self, by: Duration) -> Self {
        Self(self.0.checked_add(by).unwrap_or_else(|| self.0 + YEAR))
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// Returns the time from `earlier` to here; zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

/// Returns tokio's time, for times that are measured while the machine is awake, such as the speed
/// of news.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The longest sleep of a timer. It bounds how long after a suspension an ended lease is still
/// published, and costs an idle lease one look per second.
pub(crate) const MAX_SLEEP: Duration = Duration::from_secs(1);

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// Returns tokio's time, and how long the machine slept before it.
fn look() -> (Instant, Duration) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let (awake, slept) = sleep::look();
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let (awake, slept) = (now(), Duration::ZERO);
    #[cfg(test)]
    let slept = slept + tests::PRETENDED.get();
    (awake, slept)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod sleep {
    use std::{
        sync::{
            LazyLock,
            atomic::{
                AtomicU64,
                Ordering::{Acquire, Relaxed, Release},
            },
        },
        time::{Duration, Instant},
    };

    use rustix::time::{ClockId, clock_gettime};

    use crate::engine::nanos;

    /// How long the machine slept since the first reading, in nanoseconds, as far as any reading
    /// showed.
    static SLEPT: AtomicU64 = AtomicU64::new(0);

    /// Two readings of the same moment; sleep before it does not count. The reading of the boot
    /// clock may be a little late, which makes sleep look a little shorter. The best of some
    /// readings is kept.
    static ORIGIN: LazyLock<(u64, Instant)> = LazyLock::new(|| {
        let first = awake();
        let read = |_| {
            let since = nanos(awake() - first);
            booted() - since
        };
        let booted = (0..4).map(read).min().unwrap_or_else(booted);
        (booted, first)
    });

    /// When the boot clock was read last, in nanoseconds of tokio's time since [`ORIGIN`].
    static READ_AT: AtomicU64 = AtomicU64::new(0);

    pub(super) fn look() -> (tokio::time::Instant, Duration) {
        let now = super::now();
        let at = nanos(now.into_std().saturating_duration_since(ORIGIN.1));
        // Wrapping, because a paused clock may have been ahead of this one. The order makes a sleep
        // that another thread has seen visible here.
        if at.wrapping_sub(READ_AT.load(Acquire)) < FRESH {
            return (now, Duration::from_nanos(SLEPT.load(Relaxed)));
        }
        // The order matters, here as below: time that passes between the two readings makes sleep
        // look shorter, never longer.
        let booted_before = booted();
        let now = super::now();
        let mut slept = SLEPT.load(Relaxed);
        if gap(booted_before, now.into_std()) > slept + NOTICEABLE {
            // Either the machine slept, or tokio's clock is paused. The machine's own clock
            // decides.
            let booted_before = booted();
            let gap = gap(booted_before, awake());
            slept = SLEPT.fetch_max(gap, Relaxed).max(gap);
        }
        READ_AT.store(at, Release);
        (now, Duration::from_nanos(slept))
    }

    /// Returns by how many nanoseconds the boot clock has run ahead.
    fn gap(booted: u64, awake: Instant) -> u64 {
        let origin = *ORIGIN;
        booted.saturating_sub(origin.0).saturating_sub(nanos(awake.saturating_duration_since(origin.1)))
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    fn awake() -> Instant {
        Instant::now()
    }

    fn booted() -> u64 {
        let time = clock_gettime(ClockId::Boottime);
        // Since boot, neither is negative.
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    /// For how long a reading of the boot clock counts as present: one millisecond, in nanoseconds. It
    /// spares every other reading half its cost. A sleep is noticed that much later at most, and no
    /// caller can rely on less: it may itself be interrupted for as long after any reading. Mostly
    /// the kernel needs longer to stop and start its devices, while processes stand still.
    const FRESH: u64 = 1_000_000;

    /// One millisecond, in nanoseconds. The two clocks are rounded apart, and no suspension is
    /// shorter.
    const NOTICEABLE: u64 = 1_000_000;

    #[cfg(test)]
    pub(super) fn slept() -> Duration {
        look().1
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        pub(super) static PRETENDED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    /// Makes this thread believe that the machine slept now. No test can suspend the machine.
    pub(crate) fn suspend(time: Duration) {
        PRETENDED.set(PRETENDED.get() + time);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn awake_machine_never_seems_to_have_slept() {
        // More threads than cores, so that threads are also interrupted between the two readings.
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || {
                    let paused = thread % 2 == 1;
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .start_paused(paused)
                        .build()
                        .unwrap();
                    let _context = runtime.enter();
                    let first = Moment::now();
                    let mut last = first;
                    for _ in 0..200_000 {
                        let now = Moment::now();
                        assert!(now >= last);
                        last = now;
                    }
                    assert_eq!(first == last, paused);
                });
            }
        });
        assert_eq!(sleep::slept(), Duration::ZERO);
    }
}

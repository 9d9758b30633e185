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
    sync::LazyLock,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::engine::nanos;

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
    /// The time that tokio's clock would show if it had never stopped, in nanoseconds: [`START`] at
    /// the process's first reading.
    u64,
);

impl Moment {
    /// Returns the present moment.
    pub fn now() -> Self {
        look().1
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
        let (awake, now) = look();
        awake + (self - now).min(MAX_SLEEP)
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// Returns the moment that much later, or in centuries if none is as late: as good as never.
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(nanos(by)))
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// Returns the time from `earlier` to here; zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
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

/// The [`Moment`] of the first reading. Far from zero, because tokio's clock may have been paused
/// before.
const START: u64 = 1 << 62;

/// The first reading.
static FIRST: LazyLock<std::time::Instant> = LazyLock::new(awake);

/// Returns the present time of tokio's clock and of ours.
fn look() -> (Instant, Moment) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let (awake, at, slept) = sleep::look();
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let (awake, at, slept) = {
        let awake = now();
        (awake, nanos_of(awake.into_std()), 0)
    };
    #[cfg(test)]
    let slept = slept + nanos(tests::PRETENDED.get());
    (awake, Moment(at + slept))
}

/// Returns a time of tokio's clock, or of the machine's, in nanoseconds: [`START`] at the first
/// reading.
fn nanos_of(awake: std::time::Instant) -> u64 {
    match awake.checked_duration_since(*FIRST) {
        Some(since) => START.saturating_add(nanos(since)),
        None => START.saturating_sub(nanos(*FIRST - awake)),
    }
}

/// Returns the time of the machine's own clock, which no test pauses.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
fn awake() -> std::time::Instant {
    std::time::Instant::now()
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod sleep {
    use std::sync::{
        LazyLock,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    };

    use rustix::time::{ClockId, clock_gettime};

    use super::{Instant, START, awake, nanos_of};

    /// How long the machine slept since the first reading, in nanoseconds, as far as any reading
    /// showed.
    static SLEPT: AtomicU64 = AtomicU64::new(0);

    /// The boot clock at the first reading: sleep before it does not count. The reading of the boot
    /// clock may be a little late, which makes sleep look a little shorter. The best of some
    /// readings is kept.
    static ORIGIN: LazyLock<u64> = LazyLock::new(|| {
        let read = |_| {
            let since = nanos_of(awake()).saturating_sub(START);
            booted() - since
        };
        (0..4).map(read).min().unwrap_or_else(booted)
    });

    /// When the boot clock was read last, by tokio's clock.
    static READ_AT: AtomicU64 = AtomicU64::new(0);

    /// Returns tokio's time, the same in nanoseconds, and how long the machine slept before it.
    pub(super) fn look() -> (Instant, u64, u64) {
        let now = super::now();
        let at = nanos_of(now.into_std());
        // Wrapping, because a paused clock may have been ahead of this one. The order makes a sleep
        // that another thread has seen visible here.
        if at.wrapping_sub(READ_AT.load(Acquire)) < FRESH {
            return (now, at, SLEPT.load(Relaxed));
        }
        // The order matters, here as below: time that passes between the two readings makes sleep
        // look shorter, never longer.
        let booted_before = booted();
        let now = super::now();
        let then = nanos_of(now.into_std());
        let mut slept = SLEPT.load(Relaxed);
        if gap(booted_before, then) > slept + NOTICEABLE {
            // Either the machine slept, or tokio's clock is paused. The machine's own clock
            // decides.
            let booted_before = booted();
            let gap = gap(booted_before, nanos_of(awake()));
            slept = SLEPT.fetch_max(gap, Relaxed).max(gap);
        }
        READ_AT.store(at, Release);
        (now, then, slept)
    }

    /// Returns by how many nanoseconds the boot clock has run ahead.
    fn gap(booted: u64, awake: u64) -> u64 {
        booted.saturating_sub(*ORIGIN).saturating_sub(awake.saturating_sub(START))
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
    pub(super) fn slept() -> u64 {
        look().2
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

    #[test]
    fn clock_paused_before_the_first_reading_runs() {
        let second = Duration::from_secs(1);
        let (earlier, later) = (nanos_of(*FIRST - 2 * second), nanos_of(*FIRST - second));
        assert_eq!(Moment(later) - Moment(earlier), second);
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
        assert_eq!(sleep::slept(), 0);
    }
}

//! The one place that reads clocks.
//!
//! tokio's clock is the one that tests pause, and that its timers go by. On Linux it stands still while the machine is
//! suspended, and nobody else waits for us meanwhile. So whatever is believed for a time only is measured by tokio's time
//! *and* what the machine slept: by how much `CLOCK_BOOTTIME` has run ahead since the process first asked. Nothing but
//! sleep moves the two apart, because the kernel disciplines both alike.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// A point in time on a clock that also runs while the machine is suspended.
///
/// Until when we may believe that we lead ([`Leadership::Leader`](crate::election::Leadership::Leader)), or that an attempt
/// holds its slot ([`Attempt::deadline`](crate::Attempt::deadline)): others go on while we sleep. tokio's `Instant` is no
/// measure for that, because on some systems it stops.
///
/// | system | while the machine is suspended |
/// |---|---|
/// | Linux, Android | `CLOCK_BOOTTIME`, read beside tokio's clock, goes on |
/// | Windows | so does the performance counter, which is what std and tokio read |
/// | macOS, iOS | **it stands still**: std and tokio read `CLOCK_UPTIME_RAW`, and we nothing else |
/// | others | as std's [`Instant`](std::time::Instant) does, mostly `CLOCK_MONOTONIC` |
///
/// Where it stands still a leader that was suspended believes in its leadership for as much longer; its writes are refused
/// all the same, by their versions and their [`Fence`](crate::store::Fence). A stopped *process* is no matter: all clocks go
/// on. What becomes of the clocks of a virtual machine that is stopped from outside is up to its host. Where tests have
/// paused tokio's time it is that time.
///
/// ```
/// use std::time::Duration;
/// use writerlease::Moment;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// // For an elector of one's own: what the engine confirms counts from before it was asked.
/// let until = Moment::now() + Duration::from_secs(10);
/// assert!(!until.has_passed() && until.remaining() <= Duration::from_secs(10));
/// until.passed().await;
/// assert!(until.has_passed() && until.remaining().is_zero());
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(
    /// What tokio's clock would show if it had not stopped.
    Instant,
);

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        let (awake, slept) = look();
        Self(awake + slept)
    }

    /// Whether it is over.
    pub fn has_passed(self) -> bool {
        Self::now() >= self
    }

    /// The time left until then; zero if it has passed.
    pub fn remaining(self) -> Duration {
        self - Self::now()
    }

    /// Waits until then, on a tokio runtime with timers. After a suspension that it has slept through it returns a second
    /// late at most. Cancel safe.
    pub async fn passed(self) {
        while !self.has_passed() {
            sleep_until(self.alarm()).await;
        }
    }

    /// What to set one of tokio's timers to in order to wait for this: it counts only while the machine is awake, so it
    /// timer_at soon, and then it is time to look again.
    pub(crate) fn alarm(self) -> Instant {
        let (awake, slept) = look();
        self.0.checked_sub(slept).map_or(awake, |at| at.min(awake + MAX_SLEEP))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    /// That much later; or in a year, if no clock can show it: that is as good as never.
    fn add(self, by: Duration) -> Self {
        Self(self.0.checked_add(by).unwrap_or_else(|| self.0 + YEAR))
    }
}

impl Sub for Moment {
    type Output = Duration;

    /// The time from `earlier` to here; zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

/// tokio's time, for what is measured while the machine is awake, such as how fast news travels.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// For how long a timer sleeps at most. It bounds for how long after a suspension what has ended meanwhile is still
/// published, and costs a look at an idle lease per second.
pub(crate) const MAX_SLEEP: Duration = Duration::from_secs(1);

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// tokio's time, and how long the machine slept before it.
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
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        time::{Duration, Instant},
    };

    use rustix::time::{ClockId, clock_gettime};

    use crate::engine::nanos;

    /// How long the machine slept since the first look, as far as anybody noticed.
    static SLEPT: AtomicU64 = AtomicU64::new(0);

    /// Two readings of the same moment, before which no sleep counts. The one of the boot clock may be a little late, so that
    /// we think that we slept a little less; of some readings the best is taken.
    static ORIGIN: LazyLock<(u64, Instant)> = LazyLock::new(|| {
        let first = awake();
        let read = |_| {
            let since = nanos(awake() - first);
            booted() - since
        };
        let booted = (0..4).map(read).min().unwrap_or_else(booted);
        (booted, first)
    });

    pub fn look() -> (tokio::time::Instant, Duration) {
        // In this order, here as below: what passes between the two readings makes sleep look shorter, never longer.
        let booted_before = booted();
        let now = super::now();
        let mut slept = SLEPT.load(Relaxed);
        if gap(booted_before, now.into_std()) > slept + NOTICEABLE {
            // Or tokio's clock is paused; the machine's is not.
            let booted_before = booted();
            let gap = gap(booted_before, awake());
            slept = SLEPT.fetch_max(gap, Relaxed).max(gap);
        }
        (now, Duration::from_nanos(slept))
    }

    /// By how much the boot clock has run ahead.
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
        // Neither is negative since boot.
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    /// The two clocks are rounded apart, and no suspension is shorter.
    const NOTICEABLE: u64 = 1_000_000;

    #[cfg(test)]
    pub fn slept() -> Duration {
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

    /// As if the machine slept now, as far as this thread can tell: no test can suspend it.
    pub(crate) fn suspend(time: Duration) {
        PRETENDED.set(PRETENDED.get() + time);
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    #[test]
    fn a_machine_that_is_awake_never_seems_to_have_slept() {
        // More threads than cores, so that they are interrupted between the readings, too.
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

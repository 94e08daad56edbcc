//! Clocks whose readings are single numbers: an exact one, and a cheap one that lags.

use std::{ops::Add, time::Duration};

#[cfg(any(target_os = "linux", target_os = "android"))]
use rustix::time::{ClockId, clock_gettime};

/// A reading of the monotonic clock, exact. One word: what is done with an
/// [`Instant`](std::time::Instant) is done with seconds and nanoseconds apart, and costs ten times as
/// much. Only differences mean anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MonotonicNanos(u64);

impl MonotonicNanos {
    pub(crate) fn now() -> Self {
        Self(exact_nanos())
    }

    /// Nanoseconds from `earlier` to here, 0 if it is not earlier.
    #[inline]
    pub(crate) const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// As a number, for storage in an atomic.
    #[inline]
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// The inverse of [`Self::bits`].
    #[inline]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl Add<Duration> for MonotonicNanos {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0.saturating_add(nanos(time)))
    }
}

/// A time in nanoseconds, 584 years at most.
pub(crate) const fn nanos(time: Duration) -> u64 {
    let nanos = time.as_nanos();
    if nanos > u64::MAX as u128 {
        u64::MAX
    } else {
        nanos as u64
    }
}

/// Milliseconds of the monotonic clock as of the system's last tick: as a rule up to 10 ms behind, more
/// where a hypervisor delays the tick, and several times cheaper than [`Instant::now`](std::time::Instant::now). Never goes back. Only
/// differences mean anything.
///
/// `CLOCK_MONOTONIC_COARSE` of `clock_gettime(2)` on Linux; elsewhere the exact clock.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[inline]
pub fn coarse_millis() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// Nanoseconds of the clock behind `Instant`.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn exact_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn coarse_millis() -> u64 {
    exact_nanos() / 1_000_000
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn exact_nanos() -> u64 {
    use std::{sync::OnceLock, time::Instant};
    static BASE: OnceLock<Instant> = OnceLock::new();
    nanos(BASE.get_or_init(Instant::now).elapsed())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{MonotonicNanos, coarse_millis, exact_nanos, nanos};
    use std::time::{Duration, Instant};

    #[test]
    fn moments_pass_as_instants_do() {
        let outside = Instant::now();
        let first = MonotonicNanos::now();
        let inside = Instant::now();
        let mut last = first;
        while last.since(first) < 3_000_000 {
            let now = MonotonicNanos::now();
            assert!(now >= last, "it went back");
            last = now;
            assert!(
                outside.elapsed() < Duration::from_secs(60),
                "it stands still"
            );
        }
        let least = nanos(inside.elapsed());
        last = MonotonicNanos::now();
        assert!(last.since(first) >= least);
        assert!(last.since(first) <= nanos(outside.elapsed()));
        assert_eq!(first.since(last), 0, "nothing is before itself");
        assert_eq!((first + Duration::from_micros(7)).since(first), 7000);
        assert_eq!(MonotonicNanos::from_bits(first.bits()), first);
        assert_eq!(nanos(Duration::MAX), u64::MAX);
    }

    #[test]
    fn the_coarse_clock_moves_behind_the_exact_one() {
        let (begin, first) = (Instant::now(), coarse_millis());
        let mut last = first;
        while last < first + 50 {
            let now = coarse_millis();
            assert!(now >= last, "it went back");
            assert!(
                now <= exact_nanos() / 1_000_000,
                "it is ahead of the exact clock"
            );
            last = now;
            assert!(begin.elapsed() < Duration::from_secs(60), "it stands still");
        }
    }
}

//! The cheap clock.
//!
//! Invariant for the `unsafe` block: `clock_gettime(2)` writes one `timespec`, to a place on the
//! caller's stack.

/// Milliseconds of the monotonic clock as of the system's last tick: up to 10 ms behind, and
/// several times cheaper than [`Instant::now`](std::time::Instant::now). Never goes back. Only
/// differences mean anything.
///
/// `CLOCK_MONOTONIC_COARSE` of `clock_gettime(2)` on Linux; elsewhere the exact clock.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[allow(unsafe_code)]
#[inline]
pub fn coarse_millis() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is a `timespec` that lives for the call. The call fails only for a clock that
    // is not there or a bad address; a clock that is not there leaves zeros, which is a time too.
    unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now);
    }
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn coarse_millis() -> u64 {
    use std::{sync::OnceLock, time::Instant};
    static BASE: OnceLock<Instant> = OnceLock::new();
    u64::try_from(BASE.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::coarse_millis;
    use std::time::{Duration, Instant};

    #[test]
    fn follows_the_exact_clock_and_is_not_ahead() {
        let (begin, coarse) = (Instant::now(), coarse_millis());
        let mut last = coarse;
        while last < coarse + 50 {
            let now = coarse_millis();
            assert!(now >= last, "it went back");
            last = now;
            assert!(begin.elapsed() < Duration::from_secs(60), "it stands still");
        }
        // It may have been a tick behind at the begin, never ahead of what has passed since.
        let passed = begin.elapsed() + Duration::from_millis(11);
        assert!(Duration::from_millis(last - coarse) <= passed);
    }
}

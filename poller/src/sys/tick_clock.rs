//! The clock of the timer wheel: ticks of 2^20 ns.

use std::time::{Duration, Instant};

use super::clock::MonotonicNanos;

/// A tick is 2^20 ns (1.05 ms).
const TICK_SHIFT: u32 = 20;

/// Ticks since a fixed instant, and what a moment is to those who reckon with instants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TickClock {
    base: Instant,
    /// The same, read second: what is reckoned from it is never ahead.
    began: MonotonicNanos,
}

impl TickClock {
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
            began: MonotonicNanos::now(),
        }
    }

    /// The moment as an instant.
    pub(crate) fn instant(&self, now: MonotonicNanos) -> Instant {
        self.base + Duration::from_nanos(now.since(self.began))
    }

    /// The first tick that is not before `deadline`.
    pub(crate) fn tick_after(&self, deadline: Instant) -> u64 {
        let nanos = deadline.saturating_duration_since(self.base).as_nanos();
        // The largest value is taken by "never".
        u64::try_from((nanos + (1 << TICK_SHIFT) - 1) >> TICK_SHIFT)
            .unwrap_or(u64::MAX)
            .min(u64::MAX - 1)
    }

    /// The last tick that is not after `now`.
    pub(crate) fn tick_before(&self, now: MonotonicNanos) -> u64 {
        now.since(self.began) >> TICK_SHIFT
    }

    /// How long from `now` until `tick` begins; zero if it did.
    pub(crate) fn until(&self, tick: u64, now: MonotonicNanos) -> Duration {
        let at = tick.min(u64::MAX >> TICK_SHIFT) << TICK_SHIFT;
        Duration::from_nanos(at.saturating_sub(now.since(self.began)))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn deadlines_round_up_and_the_clock_rounds_down() {
        let clock = TickClock::new();
        let tick = Duration::from_nanos(1 << TICK_SHIFT);
        assert_eq!(clock.tick_after(clock.base), 0);
        assert_eq!(clock.tick_before(clock.began), 0);
        let one = Duration::from_nanos(1);
        assert_eq!(clock.tick_after(clock.base + one), 1);
        assert_eq!(clock.tick_before(clock.began + one), 0);
        assert_eq!(clock.tick_before(clock.began + (tick - one)), 0);
        assert_eq!(clock.tick_after(clock.base + tick), 1);
        assert_eq!(clock.tick_before(clock.began + tick), 1);
        assert_eq!(clock.instant(clock.began + tick), clock.base + tick);
        assert!(
            clock.instant(MonotonicNanos::now()) <= Instant::now(),
            "ahead"
        );
        assert_eq!(clock.until(5, clock.began + 2 * tick), 3 * tick);
        assert_eq!(clock.until(5, clock.began + 20 * tick), Duration::ZERO);
        // Before the clock began, and as late as can be said.
        assert_eq!(clock.tick_after(clock.base - Duration::from_secs(1)), 0);
        let far = clock.base + Duration::from_secs(10_u64.pow(10));
        assert!(clock.tick_after(far) < u64::MAX);
        assert!(clock.until(u64::MAX - 1, clock.began) > Duration::from_secs(10_u64.pow(9)));
        for millis in 0..2000 {
            let at = clock.base + Duration::from_micros(millis * 977);
            assert!(
                clock.base + tick * clock.tick_after(at) as u32 >= at,
                "never early"
            );
        }
    }
}

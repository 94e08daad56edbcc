//! Runs that wait one after the other: how far threads are sent ahead of them.
//!
//! A run that waits without a word is found by the monitor, which takes a tick. A batch of hundreds of such
//! runs would take hundreds. So once one is found, the releases behind it are
//! [covered](crate::leadership) in advance, and the thread that takes the reactor of a run asks the system at once
//! whether that run waits. Each run that waits raises the level. Each run that computes, or comes back to its
//! reactor soon, lowers it. So a single run that waits costs one thread sent in vain, and a batch of which a part
//! waits keeps its level. After [a pause](LASTS) nothing is expected any more.
//!
//! A run that has not come back is no proof of a wait: where other processes keep the processors busy, a run
//! that computes is often still there when another thread takes its reactor.

use std::time::Duration;

use crate::sys::{MonotonicNanos, nanos};

/// How many runs that come back it takes, at most, until the burst is over.
const HIGHEST: u32 = 64;
/// A run that waits raises the level by the level, and by this at most: as much as this many runs that come
/// back lower it.
const STEP: u32 = 4;
/// One thread is on its way for each so many levels,
const LEVELS: u32 = 4;
/// and this many at most: a thread that is started sees to the next one.
const MOST_HELPERS: usize = 4;

/// A burst without a release for so many ticks of the monitor is over.
const LASTS: u32 = 10;

/// The level of a burst, 0 for none.
#[derive(Debug)]
pub(crate) struct Burst {
    level: u32,
    /// When a run was found waiting, or the latest release since was made.
    latest: MonotonicNanos,
    lasts: Duration,
}

impl Burst {
    /// No burst yet; the monitor looks once per `tick`.
    pub(crate) fn new(tick: Duration) -> Self {
        Self {
            level: 0,
            latest: MonotonicNanos::now(),
            lasts: tick * LASTS,
        }
    }

    /// A run was found waiting.
    pub(crate) fn found(&mut self, now: MonotonicNanos) {
        self.level = self.level.max(STEP);
        self.latest = now;
    }

    /// A release is made; whether it belongs to a burst.
    pub(crate) fn goes_on(&mut self, now: MonotonicNanos) -> bool {
        if self.level > 0 && now.since(self.latest) > nanos(self.lasts) {
            self.level = 0;
        }
        self.latest = now;
        self.is_on()
    }

    /// The system says that a run waits whose reactor was taken.
    pub(crate) fn waits(&mut self) {
        self.level = HIGHEST.min(self.level + self.level.min(STEP));
    }

    /// A run has come back and has not waited, or the system says that it computes.
    pub(crate) fn came_back(&mut self) {
        self.level = self.level.saturating_sub(1);
    }

    /// Whether there is one.
    pub(crate) fn is_on(&self) -> bool {
        self.level > 0
    }

    /// How many threads should be on their way, or look for the reactor, with so much to do behind a run.
    pub(crate) fn helpers(&self, backlog: usize) -> usize {
        let helpers = self.level.div_ceil(LEVELS) as usize;
        helpers.min(MOST_HELPERS).min(backlog + 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(1);

    #[test]
    fn one_run_that_waits_is_soon_forgotten() {
        let mut burst = Burst::new(TICK);
        burst.waits();
        assert!(!burst.is_on(), "the monitor begins it");
        burst.found(MonotonicNanos::now());
        assert_eq!(burst.helpers(100), 1);
        (0..STEP).for_each(|_| burst.came_back());
        assert!(!burst.is_on());
        burst.came_back();
        assert_eq!(burst.helpers(100), 0);
    }

    #[test]
    fn many_have_several_threads_on_their_way_as_long_as_there_is_work() {
        let mut burst = Burst::new(TICK);
        burst.found(MonotonicNanos::now());
        for _ in 0..400 {
            burst.waits();
        }
        assert_eq!(burst.helpers(100), MOST_HELPERS);
        assert_eq!(burst.helpers(1), 2);
        assert_eq!(burst.helpers(0), 1, "others poll");
        (0..HIGHEST).for_each(|_| burst.came_back());
        assert!(!burst.is_on());
    }

    #[test]
    fn a_batch_of_which_every_third_waits_keeps_its_level() {
        let mut burst = Burst::new(TICK);
        burst.found(MonotonicNanos::now());
        (0..3).for_each(|_| burst.waits());
        for _ in 0..100 {
            burst.came_back();
            burst.came_back();
            burst.waits();
            assert!(burst.is_on());
        }
        assert_eq!(burst.helpers(100), MOST_HELPERS);
    }

    #[test]
    fn after_a_pause_nothing_is_expected() {
        let lasts = TICK * LASTS;
        let mut now = MonotonicNanos::now();
        let mut burst = Burst::new(TICK);
        burst.found(now);
        (0..400).for_each(|_| burst.waits());
        for _ in 0..10 {
            now = now + lasts;
            assert!(burst.goes_on(now));
        }
        assert!(!burst.goes_on(now + lasts + TICK));
    }
}

//! When to share the role: what a poller learns from its runs.
//!
//! Running inline costs nothing as long as runs are short; the monitor deals with the odd one that
//! waits, at the price of a stall of a tick or two. Two situations want more than one thread on a
//! batch:
//!
//! * **Runs often wait** without saying so: the stalls add up. From [`WAITS_TO_SHARE`] such runs
//!   per [`WINDOW`] on, batches are shared until they have become rare.
//! * **A long batch of long runs**: a backlog worth more than [`HELP_FROM`] of runs that take
//!   [`LONG_RUN`] or more each is worth waking another processor for. Short runs are not, however
//!   many: sharing costs them more than it gains.

use std::time::{Duration, Instant};

/// Over which waits are counted.
const WINDOW: Duration = Duration::from_millis(100);
/// Waits per window that make batches shared.
const WAITS_TO_SHARE: u64 = 12;
/// Waits per window below which they are not any more.
const WAITS_TO_STOP: u64 = 4;
/// Windows in a row with few waits before sharing ends.
const CALM_WINDOWS: u32 = 5;
/// A backlog below this is shared with nobody.
const MIN_BACKLOG: usize = 2;
/// Typical time of a run from which help pays.
const LONG_RUN: Duration = Duration::from_micros(25);
/// A batch's estimated time from which help pays.
const HELP_FROM: Duration = Duration::from_micros(500);
/// A single run counts with at most this: a thread may have been off the processor.
const CLIP: Duration = Duration::from_micros(200);

/// What one poller has learned.
#[derive(Debug)]
pub(crate) struct Learner {
    /// Nanoseconds of a run, averaged over the last few dozen.
    typical: u64,
    window_ends: Instant,
    /// Waits seen up to the start of the window.
    waits_before: u64,
    calm: u32,
    waiting_often: bool,
    can_help: bool,
}

impl Learner {
    pub(crate) fn new(now: Instant, processors: usize) -> Self {
        Self {
            typical: 0,
            window_ends: now + WINDOW,
            waits_before: 0,
            calm: 0,
            waiting_often: false,
            can_help: processors > 1,
        }
    }

    /// A run took this long (only of runs that kept the role).
    pub(crate) fn ran(&mut self, took: Duration) {
        let took = took.min(CLIP).as_nanos() as u64;
        self.typical = (self.typical * 31 + took) / 32;
    }

    /// A turn begins; `waits` is the number of runs found waiting so far. `true`: batches are
    /// shared from now on because of them, and were not before.
    pub(crate) fn turn(&mut self, now: Instant, waits: u64) -> bool {
        if now < self.window_ends {
            return false;
        }
        let seen = waits - self.waits_before;
        self.waits_before = waits;
        self.window_ends = now + WINDOW;
        if seen >= WAITS_TO_SHARE {
            self.calm = 0;
            return !std::mem::replace(&mut self.waiting_often, true);
        }
        self.calm = if seen < WAITS_TO_STOP {
            self.calm + 1
        } else {
            0
        };
        if self.calm >= CALM_WINDOWS {
            self.waiting_often = false;
        }
        false
    }

    /// Whether runs often wait.
    pub(crate) fn waiting_often(&self) -> bool {
        self.waiting_often
    }

    /// Whether the next run's deposit is shared, with `backlog` more things to do behind it.
    pub(crate) fn share(&self, backlog: usize) -> bool {
        if backlog < MIN_BACKLOG {
            return false;
        }
        self.waiting_often
            || (self.can_help
                && self.typical >= LONG_RUN.as_nanos() as u64
                && self.typical.saturating_mul(backlog as u64) >= HELP_FROM.as_nanos() as u64)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn taught(run: Duration) -> Learner {
        let mut learner = Learner::new(Instant::now(), 2);
        for _ in 0..200 {
            learner.ran(run);
        }
        learner
    }

    #[test]
    fn help_is_for_long_batches_of_long_runs() {
        let long = taught(Duration::from_micros(50));
        assert!(long.share(20));
        assert!(!long.share(5), "a short batch");
        let short = taught(Duration::from_micros(8));
        assert!(!short.share(1000), "short runs");
        let mut preempted = short;
        preempted.ran(Duration::from_millis(5));
        assert!(!preempted.share(100), "a thread off its processor once");
        let mut single = Learner::new(Instant::now(), 1);
        (0..200).for_each(|_| single.ran(Duration::from_micros(50)));
        assert!(!single.share(1000), "nobody there to help");
    }

    #[test]
    fn waits_make_batches_shared_until_they_are_rare() {
        let mut now = Instant::now();
        let mut learner = Learner::new(now, 1);
        let mut waits = 0;
        let mut window = |learner: &mut Learner, more| {
            waits += more;
            now += WINDOW;
            learner.turn(now, waits)
        };
        for _ in 0..20 {
            assert!(!window(&mut learner, WAITS_TO_SHARE - 1));
            assert!(!learner.share(100), "now and then is no reason");
        }
        assert!(window(&mut learner, WAITS_TO_SHARE));
        assert!(learner.share(MIN_BACKLOG) && !learner.share(MIN_BACKLOG - 1));
        assert!(!window(&mut learner, 100), "no news");
        for _ in 1..CALM_WINDOWS {
            window(&mut learner, 0);
        }
        assert!(learner.waiting_often());
        window(&mut learner, WAITS_TO_STOP);
        for _ in 0..CALM_WINDOWS {
            assert!(learner.waiting_often());
            window(&mut learner, WAITS_TO_STOP - 1);
        }
        assert!(!learner.waiting_often());
    }
}

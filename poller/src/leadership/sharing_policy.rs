//! When to share the role: what a poller learns from its runs.
//!
//! Running inline costs nothing as long as runs are short; the monitor deals with the odd one that
//! waits, at the price of a stall of about a tick. Two situations want more than one thread:
//!
//! * **Runs often wait** without saying so: the stalls add up. From [`WAITS_TO_SHARE`] such runs
//!   in a [`WINDOW`] on, until they have become rare, deposits are open to whoever is free, the last
//!   of a batch too: nobody polls while it waits. There are to be [`HANDS_FOR_WAITS`] others, not
//!   one: a run of the only other may be waiting as well, and until that is
//!   [noticed](crate::leadership::detached_runs::SUSPECT_AFTER) nobody would poll. On a single processor, where others at
//!   work are in each other's way, one has to do.
//! * **Runs are long**, [`LONG_RUN`] or more each: deposits are open to whoever is free, down to
//!   the last of a batch, so that nobody leaves in the middle. Help is called for when the backlog
//!   is worth more than [`HELP_FROM`], one thread for each such amount up to [`MOST_HANDS`]. Short
//!   runs are not shared, however many: it costs them more than it gains.

use std::time::Duration;

use crate::{
    leadership::Terms,
    sys::{Moment, nanos},
};

/// Over which waits are counted.
const WINDOW: Duration = Duration::from_millis(100);
/// Waits per window that make batches shared.
const WAITS_TO_SHARE: u64 = 12;
/// Waits per window below which they are not any more.
const WAITS_TO_STOP: u64 = 4;
/// Windows in a row with few waits before sharing ends.
const CALM_WINDOWS: u32 = 5;
/// One without any counts as so many: sharing costs runs that compute some of their time, and should
/// waits come back it takes [`WAITS_TO_SHARE`] of them to begin anew.
const SILENCE: u32 = 3;
/// Others that should be there then.
const HANDS_FOR_WAITS: usize = 2;
/// Typical time of a run up to which several are timed together, and how many: a look at the clock was
/// measured at 40 ns, four times an uncontended lock, where a request takes 5 us.
const SHORT_RUN: Duration = Duration::from_micros(10);
const TOGETHER: u32 = 8;
/// Typical time of a run from which help pays.
const LONG_RUN: Duration = Duration::from_micros(25);
/// Another thread is called for each such amount of estimated work: some times what it costs to
/// wake one.
const HELP_FROM: Duration = Duration::from_micros(500);
/// Others that help at most. By default a group has one poller per four processors.
const MOST_HANDS: usize = 3;
/// A single run counts with at most this: a thread may have been off the processor.
const CLIP: Duration = Duration::from_micros(200);

/// What one poller has learned.
#[derive(Debug)]
pub(crate) struct Learner {
    /// Nanoseconds of a run, averaged over the last few dozen.
    typical: u64,
    window_ends: Moment,
    /// Waits seen up to the start of the window.
    waits_before: u64,
    calm: u32,
    waiting_often: bool,
    /// Others that can help with long runs.
    helpers: usize,
    /// Others that should be there where runs often wait.
    stand_by: usize,
    /// What follows from the rest, so that a run has to look at little: deposits are shared,
    shared: bool,
    /// and so many runs are timed together.
    together: u32,
}

impl Learner {
    pub(crate) fn new(now: Moment, processors: usize) -> Self {
        Self {
            typical: 0,
            window_ends: now + WINDOW,
            waits_before: 0,
            calm: 0,
            waiting_often: false,
            helpers: processors.saturating_sub(1).min(MOST_HANDS),
            stand_by: processors.clamp(1, HANDS_FOR_WAITS),
            shared: false,
            together: TOGETHER,
        }
    }

    /// The conclusions, after a change of what they rest on.
    fn conclude(&mut self) {
        self.shared = self.waiting_often || self.are_long();
        // Nothing depends on how long a short run takes, and looking at the clock takes time as well.
        let short = self.typical < nanos(SHORT_RUN) && !self.waiting_often;
        self.together = if short { TOGETHER } else { 1 };
    }

    /// Runs are long, and there is somebody to help.
    fn are_long(&self) -> bool {
        self.helpers > 0 && self.typical >= nanos(LONG_RUN)
    }

    /// So many runs, at most [`TOGETHER`], that kept the role took so many nanoseconds together.
    pub(crate) fn ran(&mut self, took: u64, runs: u32) {
        let together = u64::from(runs);
        let took = took.min(nanos(CLIP) * together);
        self.typical = (self.typical * (32 - together) + took) / 32;
        self.conclude();
    }

    /// How many runs may be timed together.
    #[inline]
    pub(crate) fn together(&self) -> u32 {
        self.together
    }

    /// A run whose deposit was taken by somebody took so many nanoseconds. Those that waited say
    /// nothing about what there is to compute.
    pub(crate) fn shared(&mut self, took: u64) {
        if took < nanos(CLIP) {
            self.ran(took, 1);
        }
    }

    /// A turn begins; `waits` is the number of runs found waiting so far. `true`: deposits are
    /// shared from now on because of them, and were not before.
    pub(crate) fn turn(&mut self, now: Moment, waits: u64) -> bool {
        let seen = waits - self.waits_before;
        // So many are reason enough, however much of the window is left.
        let often = seen >= WAITS_TO_SHARE;
        if !often && now < self.window_ends {
            return false;
        }
        self.waits_before = waits;
        self.window_ends = now + WINDOW;
        self.calm = match seen {
            _ if often => 0,
            0 => self.calm + SILENCE,
            1..WAITS_TO_STOP => self.calm + 1,
            _ => 0,
        };
        let before = self.waiting_often;
        self.waiting_often = often || (before && self.calm < CALM_WINDOWS);
        self.conclude();
        self.waiting_often && !before
    }

    /// Whether runs often wait.
    pub(crate) fn waiting_often(&self) -> bool {
        self.waiting_often
    }

    /// The terms of the next run's deposit, with `backlog` more things to do behind it.
    #[inline]
    pub(crate) fn terms(&self, backlog: usize) -> Terms {
        if self.shared {
            self.sharing(backlog)
        } else {
            Terms::ALONE
        }
    }

    #[inline(never)]
    fn sharing(&self, backlog: usize) -> Terms {
        let mut terms = Terms::shared(0);
        if self.are_long() {
            let work = self.typical.saturating_mul(backlog as u64);
            terms.hands = ((work / nanos(HELP_FROM)) as usize).min(self.helpers);
        }
        if self.waiting_often {
            terms.hands = terms.hands.max(self.stand_by);
        }
        terms
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn taught(run: Duration) -> Learner {
        let mut learner = Learner::new(Moment::now(), 2);
        for _ in 0..200 {
            learner.ran(nanos(run), 1);
        }
        learner
    }

    #[test]
    fn help_is_for_long_batches_of_long_runs() {
        let long = taught(Duration::from_micros(50));
        assert_eq!(long.terms(20), Terms::shared(1));
        assert_eq!(long.terms(5), Terms::shared(0), "those who are there go on");
        let short = taught(Duration::from_micros(8));
        assert_eq!(short.terms(1000), Terms::ALONE, "short runs");
        let mut preempted = short;
        preempted.ran(5_000_000, 1);
        assert_eq!(
            preempted.terms(100),
            Terms::ALONE,
            "a thread off its processor once"
        );
        let mut single = Learner::new(Moment::now(), 1);
        (0..200).for_each(|_| single.ran(50_000, 1));
        assert_eq!(single.terms(1000), Terms::ALONE, "nobody there to help");
        let mut several = Learner::new(Moment::now(), 64);
        (0..200).for_each(|_| several.ran(100_000, 1));
        assert_eq!(several.terms(11), Terms::shared(2));
        assert_eq!(several.terms(1000), Terms::shared(MOST_HANDS));
    }

    #[test]
    fn short_runs_are_timed_together_until_they_are_not_short() {
        let mut learner = taught(Duration::from_micros(2));
        assert_eq!(learner.together(), TOGETHER);
        // Each of them counts.
        learner.ran(60_000 * u64::from(TOGETHER), TOGETHER);
        assert!(learner.together() == 1 && learner.typical > 15_000);
        let mut one_by_one = taught(Duration::from_micros(2));
        (0..TOGETHER).for_each(|_| one_by_one.ran(60_000, 1));
        assert!(learner.typical.abs_diff(one_by_one.typical) < 4000);
        let mut waiting = taught(Duration::from_micros(2));
        assert!(waiting.turn(Moment::now() + WINDOW, WAITS_TO_SHARE));
        assert_eq!(waiting.together(), 1);
    }

    #[test]
    fn sharing_long_runs_ends_when_they_become_short() {
        let mut learner = taught(Duration::from_micros(50));
        (0..100).for_each(|_| learner.shared(10_000_000));
        assert!(learner.terms(20).shared, "waits tell nothing");
        (0..100).for_each(|_| learner.shared(8000));
        assert_eq!(learner.terms(20), Terms::ALONE);
    }

    #[test]
    fn waits_make_batches_shared_until_they_are_rare() {
        let mut now = Moment::now();
        let mut single = Learner::new(now, 1);
        assert!(single.turn(now + WINDOW, WAITS_TO_SHARE));
        assert_eq!(single.terms(0), Terms::shared(1));
        let mut early = Learner::new(now, 2);
        assert!(!early.turn(now, WAITS_TO_SHARE - 1));
        assert!(early.turn(now, WAITS_TO_SHARE), "the window need not end");
        let mut learner = Learner::new(now, 2);
        let mut waits = 0;
        let mut window = |learner: &mut Learner, more| {
            waits += more;
            now = now + WINDOW;
            learner.turn(now, waits)
        };
        for _ in 0..20 {
            assert!(!window(&mut learner, WAITS_TO_SHARE - 1));
            assert_eq!(
                learner.terms(100),
                Terms::ALONE,
                "now and then is no reason"
            );
        }
        assert!(window(&mut learner, WAITS_TO_SHARE));
        assert_eq!(learner.terms(0), Terms::shared(HANDS_FOR_WAITS));
        assert!(!window(&mut learner, 100), "no news");
        for _ in 1..CALM_WINDOWS {
            window(&mut learner, 1);
        }
        assert!(learner.waiting_often());
        window(&mut learner, WAITS_TO_STOP);
        for _ in 0..CALM_WINDOWS {
            assert!(learner.waiting_often());
            window(&mut learner, WAITS_TO_STOP - 1);
        }
        assert!(!learner.waiting_often());
        assert!(window(&mut learner, WAITS_TO_SHARE), "again");
        window(&mut learner, 0);
        assert!(learner.waiting_often(), "a pause");
        window(&mut learner, 0);
        assert!(!learner.waiting_often());
        assert_eq!(learner.terms(100), Terms::ALONE);
    }
}

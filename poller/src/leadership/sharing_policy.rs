//! When releases are shared: a policy learned from the runs of one poller.
//!
//! Running inline costs nothing while runs are short. The monitor finds the rare run that blocks, at the price
//! of a stall of about a tick. Two situations need more than one thread:
//!
//! * **Runs often block** without a call of `before_blocking`: the stalls add up. Sharing begins with
//!   [`WAITS_TO_SHARE`] such runs in a [`WINDOW`], and ends when they have become rare. The last release of a
//!   batch is shared too, because its run may block as well. Two helpers are kept ([`HELPERS_FOR_WAITS`]), not
//!   one: a single helper may block too, and no thread would poll until that is
//!   [noticed](crate::leadership::detached_runs::SUSPECT_AFTER). On one processor one helper is used.
//! * **Runs are long**, [`LONG_RUN`] or more each: every release of a batch is shared. One helper is woken for
//!   each [`HELP_FROM`] of estimated backlog, up to [`MOST_HELPERS`]. Short runs are not shared: the handoff
//!   costs more than it gains.

use std::time::Duration;

use crate::{
    leadership::ShareTerms,
    sys::{MonotonicNanos, nanos},
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
const HELPERS_FOR_WAITS: usize = 2;
/// Typical time of a run up to which several are timed together, and how many: a look at the clock was
/// measured at 40 ns, four times an uncontended lock, where a request takes 5 us.
const SHORT_RUN: Duration = Duration::from_micros(10);
const TIMING_BATCH: u32 = 8;
/// Typical time of a run from which help pays.
const LONG_RUN: Duration = Duration::from_micros(25);
/// Another thread is called for each such amount of estimated work: some times what it costs to
/// wake one.
const HELP_FROM: Duration = Duration::from_micros(500);
/// Others that help at most. By default a group has one poller per four processors.
const MOST_HELPERS: usize = 3;
/// A single run counts with at most this: a thread may have been off the processor.
const CLIP: Duration = Duration::from_micros(200);

/// What one poller has learned.
#[derive(Debug)]
pub(crate) struct SharingPolicy {
    /// Nanoseconds of a run, averaged over the last few dozen.
    typical: u64,
    window_ends: MonotonicNanos,
    /// Waits seen up to the start of the window.
    waits_before: u64,
    calm: u32,
    waiting_often: bool,
    /// Others that can help with long runs.
    helpers: usize,
    /// Others that should be there where runs often wait.
    standby: usize,
    /// What follows from the rest, so that a run has to look at little: releases are shared,
    shared: bool,
    /// and so many runs are timed together.
    timing_batch: u32,
}

impl SharingPolicy {
    pub(crate) fn new(now: MonotonicNanos, processors: usize) -> Self {
        Self {
            typical: 0,
            window_ends: now + WINDOW,
            waits_before: 0,
            calm: 0,
            waiting_often: false,
            helpers: processors.saturating_sub(1).min(MOST_HELPERS),
            standby: processors.clamp(1, HELPERS_FOR_WAITS),
            shared: false,
            timing_batch: TIMING_BATCH,
        }
    }

    /// The conclusions, after a change of what they rest on.
    fn update(&mut self) {
        self.shared = self.waiting_often || self.runs_are_long();
        // Nothing depends on how long a short run takes, and looking at the clock takes time as well.
        let short = self.typical < nanos(SHORT_RUN) && !self.waiting_often;
        self.timing_batch = if short { TIMING_BATCH } else { 1 };
    }

    /// Runs are long, and there is a processor for a helper.
    fn runs_are_long(&self) -> bool {
        self.helpers > 0 && self.typical >= nanos(LONG_RUN)
    }

    /// So many runs, at most [`TIMING_BATCH`], that kept the leadership took so many nanoseconds together.
    pub(crate) fn record_runs(&mut self, took: u64, runs: u32) {
        let timing_batch = u64::from(runs);
        let took = took.min(nanos(CLIP) * timing_batch);
        self.typical = (self.typical * (32 - timing_batch) + took) / 32;
        self.update();
    }

    /// How many runs may be timed together.
    #[inline]
    pub(crate) fn timing_batch(&self) -> u32 {
        self.timing_batch
    }

    /// A run whose release another thread took lasted so many nanoseconds. Those that waited say
    /// nothing about what there is to compute.
    pub(crate) fn record_shared_run(&mut self, took: u64) {
        if took < nanos(CLIP) {
            self.record_runs(took, 1);
        }
    }

    /// A poll cycle begins; `waits` is the number of runs found waiting so far. `true`: releases are
    /// shared from now on because of them, and were not before.
    pub(crate) fn begin_cycle(&mut self, now: MonotonicNanos, waits: u64) -> bool {
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
        self.update();
        self.waiting_often && !before
    }

    /// Whether runs often wait.
    pub(crate) fn waiting_often(&self) -> bool {
        self.waiting_often
    }

    /// The terms of the next run's release, with `backlog` more things to do behind it.
    #[inline]
    pub(crate) fn share_terms(&self, backlog: usize) -> ShareTerms {
        if self.shared {
            self.terms_of_sharing(backlog)
        } else {
            ShareTerms::EXCLUSIVE
        }
    }

    #[inline(never)]
    fn terms_of_sharing(&self, backlog: usize) -> ShareTerms {
        let mut terms = ShareTerms::shared(0);
        if self.runs_are_long() {
            let work = self.typical.saturating_mul(backlog as u64);
            terms.helpers = ((work / nanos(HELP_FROM)) as usize).min(self.helpers);
        }
        if self.waiting_often {
            terms.helpers = terms.helpers.max(self.standby);
        }
        terms
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn taught(run: Duration) -> SharingPolicy {
        let mut sharing = SharingPolicy::new(MonotonicNanos::now(), 2);
        for _ in 0..200 {
            sharing.record_runs(nanos(run), 1);
        }
        sharing
    }

    #[test]
    fn help_is_for_long_batches_of_long_runs() {
        let long = taught(Duration::from_micros(50));
        assert_eq!(long.share_terms(20), ShareTerms::shared(1));
        assert_eq!(
            long.share_terms(5),
            ShareTerms::shared(0),
            "those who are there go on"
        );
        let short = taught(Duration::from_micros(8));
        assert_eq!(short.share_terms(1000), ShareTerms::EXCLUSIVE, "short runs");
        let mut preempted = short;
        preempted.record_runs(5_000_000, 1);
        assert_eq!(
            preempted.share_terms(100),
            ShareTerms::EXCLUSIVE,
            "a thread off its processor once"
        );
        let mut single = SharingPolicy::new(MonotonicNanos::now(), 1);
        (0..200).for_each(|_| single.record_runs(50_000, 1));
        assert_eq!(
            single.share_terms(1000),
            ShareTerms::EXCLUSIVE,
            "nobody there to help"
        );
        let mut several = SharingPolicy::new(MonotonicNanos::now(), 64);
        (0..200).for_each(|_| several.record_runs(100_000, 1));
        assert_eq!(several.share_terms(11), ShareTerms::shared(2));
        assert_eq!(several.share_terms(1000), ShareTerms::shared(MOST_HELPERS));
    }

    #[test]
    fn short_runs_are_timed_together_until_they_are_not_short() {
        let mut sharing = taught(Duration::from_micros(2));
        assert_eq!(sharing.timing_batch(), TIMING_BATCH);
        // Each of them counts.
        sharing.record_runs(60_000 * u64::from(TIMING_BATCH), TIMING_BATCH);
        assert!(sharing.timing_batch() == 1 && sharing.typical > 15_000);
        let mut one_by_one = taught(Duration::from_micros(2));
        (0..TIMING_BATCH).for_each(|_| one_by_one.record_runs(60_000, 1));
        assert!(sharing.typical.abs_diff(one_by_one.typical) < 4000);
        let mut waiting = taught(Duration::from_micros(2));
        assert!(waiting.begin_cycle(MonotonicNanos::now() + WINDOW, WAITS_TO_SHARE));
        assert_eq!(waiting.timing_batch(), 1);
    }

    #[test]
    fn sharing_long_runs_ends_when_they_become_short() {
        let mut sharing = taught(Duration::from_micros(50));
        (0..100).for_each(|_| sharing.record_shared_run(10_000_000));
        assert!(sharing.share_terms(20).shared, "waits tell nothing");
        (0..100).for_each(|_| sharing.record_shared_run(8000));
        assert_eq!(sharing.share_terms(20), ShareTerms::EXCLUSIVE);
    }

    #[test]
    fn waits_make_batches_shared_until_they_are_rare() {
        let mut now = MonotonicNanos::now();
        let mut single = SharingPolicy::new(now, 1);
        assert!(single.begin_cycle(now + WINDOW, WAITS_TO_SHARE));
        assert_eq!(single.share_terms(0), ShareTerms::shared(1));
        let mut early = SharingPolicy::new(now, 2);
        assert!(!early.begin_cycle(now, WAITS_TO_SHARE - 1));
        assert!(
            early.begin_cycle(now, WAITS_TO_SHARE),
            "the window need not end"
        );
        let mut sharing = SharingPolicy::new(now, 2);
        let mut waits = 0;
        let mut window = |sharing: &mut SharingPolicy, more| {
            waits += more;
            now = now + WINDOW;
            sharing.begin_cycle(now, waits)
        };
        for _ in 0..20 {
            assert!(!window(&mut sharing, WAITS_TO_SHARE - 1));
            assert_eq!(
                sharing.share_terms(100),
                ShareTerms::EXCLUSIVE,
                "now and then is no reason"
            );
        }
        assert!(window(&mut sharing, WAITS_TO_SHARE));
        assert_eq!(
            sharing.share_terms(0),
            ShareTerms::shared(HELPERS_FOR_WAITS)
        );
        assert!(!window(&mut sharing, 100), "no news");
        for _ in 1..CALM_WINDOWS {
            window(&mut sharing, 1);
        }
        assert!(sharing.waiting_often());
        window(&mut sharing, WAITS_TO_STOP);
        for _ in 0..CALM_WINDOWS {
            assert!(sharing.waiting_often());
            window(&mut sharing, WAITS_TO_STOP - 1);
        }
        assert!(!sharing.waiting_often());
        assert!(window(&mut sharing, WAITS_TO_SHARE), "again");
        window(&mut sharing, 0);
        assert!(sharing.waiting_often(), "a pause");
        window(&mut sharing, 0);
        assert!(!sharing.waiting_often());
        assert_eq!(sharing.share_terms(100), ShareTerms::EXCLUSIVE);
    }
}

//! Runs whose reactor was taken by another thread, and what is known about each: does it compute, or wait?
//!
//! A run that computes will be back soon and go on with the batch, so it *covers* a shared release: no
//! thread need be sent. One that waits covers nothing. Only the system can tell which of the two a run
//! does, and asking it costs about as much as a short run. So a run is trusted for a moment
//! ([`SUSPECT_AFTER`]), asked about after that, and if it was found computing trusted twice as long as
//! before.

use std::time::Duration;

use crate::sys::{MonotonicNanos, nanos};

/// A run detached for longer than this is suspected to wait: it covers nothing until the system has
/// said that it computes.
pub(crate) const SUSPECT_AFTER: Duration = Duration::from_micros(150);
/// A handler that begins with a wait is in it after this time.
const SETTLED_AFTER: Duration = Duration::from_micros(20);
/// How often [`SUSPECT_AFTER`] is doubled at most.
const MOST_DOUBLINGS: u8 = 5;

/// What is run if it is no operator of the same poller, by its [id](crate::Operator::id). No token has the
/// highest bit set.
pub(crate) const fn named(id: u64) -> u64 {
    id | NAMED
}

/// A closure.
pub(crate) const UNNAMED: u64 = named(0);
const NAMED: u64 = 1 << 63;

/// The system's number of a thread, 0 if unknown.
pub(crate) type ThreadId = u32;

/// A run of user code with the leadership released.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DetachedRun {
    /// The number of its release.
    pub(crate) number: u64,
    /// Who runs it.
    pub(crate) thread: ThreadId,
    /// What it runs: the token of an operator, or [`named`] for others.
    pub(crate) what: u64,
    pub(crate) begun: MonotonicNanos,
    /// When it began, or was last found computing.
    pub(crate) since: MonotonicNanos,
    /// How often it was found computing.
    computing: u8,
    /// It is known to wait.
    pub(crate) waiting: bool,
}

/// The runs detached.
#[derive(Debug, Default)]
pub(crate) struct DetachedRuns {
    runs: Vec<DetachedRun>,
}

impl DetachedRun {
    /// A run that begins.
    #[inline]
    pub(crate) fn new(number: u64, thread: ThreadId, since: MonotonicNanos) -> Self {
        Self {
            number,
            thread,
            what: UNNAMED,
            begun: since,
            since,
            computing: 0,
            waiting: false,
        }
    }

    /// What there is before the first run: number 1, and not to be looked after.
    pub(crate) fn none(now: MonotonicNanos) -> Self {
        Self {
            waiting: true,
            ..Self::new(1, 0, now)
        }
    }

    /// The id of what it runs, if that says so by itself.
    pub(crate) fn named(&self) -> Option<u64> {
        (self.what & NAMED != 0).then_some(self.what & !NAMED)
    }

    fn is_suspect(&self, now: MonotonicNanos, in_burst: bool) -> bool {
        let trusted_for = if in_burst && self.computing == 0 {
            nanos(SETTLED_AFTER)
        } else {
            nanos(SUSPECT_AFTER) << self.computing
        };
        !self.waiting && now.since(self.since) > trusted_for
    }
}

impl DetachedRuns {
    /// The reactor of this run was taken.
    pub(crate) fn enter(&mut self, run: DetachedRun) {
        self.runs.push(run);
    }

    /// The run has returned.
    pub(crate) fn leave(&mut self, number: u64) {
        if let Some(place) = self.runs.iter().position(|run| run.number == number) {
            self.runs.swap_remove(place);
        }
    }

    /// The run, if it is detached, waits.
    pub(crate) fn waits(&mut self, number: u64) {
        if let Some(run) = self.find(number) {
            run.waiting = true;
        }
    }

    /// The run, if it is detached, was computing at `now`.
    pub(crate) fn computes(&mut self, number: u64, now: MonotonicNanos) {
        if let Some(run) = self.find(number) {
            run.since = now;
            run.computing = MOST_DOUBLINGS.min(run.computing + 1);
        }
    }

    /// A run that is suspected to wait, if any, judged at `now`. In a burst each run is, from the time at which
    /// it has had [time](SETTLED_AFTER) to begin a wait until it was found computing.
    pub(crate) fn next_to_probe(&self, now: MonotonicNanos, in_burst: bool) -> Option<DetachedRun> {
        let suspect = |run: &&DetachedRun| run.is_suspect(now, in_burst);
        self.runs.iter().find(suspect).copied()
    }

    pub(crate) fn runs(&self) -> &[DetachedRun] {
        &self.runs
    }

    /// How many are trusted to compute at `now`.
    pub(crate) fn running_count(&self, now: MonotonicNanos) -> usize {
        let running_count = |run: &&DetachedRun| !run.waiting && !run.is_suspect(now, false);
        self.runs.iter().filter(running_count).count()
    }

    fn find(&mut self, number: u64) -> Option<&mut DetachedRun> {
        self.runs.iter_mut().find(|run| run.number == number)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_computes_is_asked_about_ever_less_often() {
        let mut detached_runs = DetachedRuns::default();
        let mut now = MonotonicNanos::now();
        detached_runs.enter(DetachedRun::new(7, 1, now));
        let step = SUSPECT_AFTER / 10;
        let mut asked_after = Vec::new();
        for _ in 0..8 {
            let trusted = now;
            while detached_runs.next_to_probe(now, false).is_none() {
                assert_eq!(detached_runs.running_count(now), 1);
                now = now + step;
            }
            assert_eq!(
                detached_runs.running_count(now),
                0,
                "a suspect covers nothing"
            );
            asked_after.push(now.since(trusted) / nanos(SUSPECT_AFTER));
            detached_runs.computes(7, now);
        }
        assert_eq!(asked_after, [1, 2, 4, 8, 16, 32, 32, 32]);
        detached_runs.waits(7);
        assert_eq!(detached_runs.running_count(now), 0);
        assert!(
            detached_runs
                .next_to_probe(now + 100 * SUSPECT_AFTER, false)
                .is_none()
        );
        detached_runs.leave(7);
        detached_runs.leave(7);
    }
}

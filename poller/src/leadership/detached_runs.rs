//! Runs whose core was taken by somebody else, and what is known about each: does it compute, or wait?
//!
//! A run that computes will be back soon and go on with the batch, so it *covers* a shared deposit: no
//! thread need be sent. One that waits covers nothing. Only the system can tell which of the two a run
//! does, and asking it costs about as much as a short run. So a run is trusted for a moment
//! ([`SUSPECT_AFTER`]), asked about after that, and if it was found computing trusted twice as long as
//! before.

use std::time::Duration;

use crate::sys::{Moment, nanos};

/// A run abroad for longer than this is suspected to wait: it covers nothing until the system has
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

/// A run of foreign code with the role released.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The number of its deposit.
    pub(crate) number: u64,
    /// Who runs it.
    pub(crate) thread: ThreadId,
    /// What it runs: the token of an operator, or [`named`] for others.
    pub(crate) what: u64,
    pub(crate) begun: Moment,
    /// When it began, or was last found computing.
    pub(crate) since: Moment,
    /// How often it was found computing.
    computing: u8,
    /// It is known to wait.
    pub(crate) waiting: bool,
    /// The system was asked what its thread does.
    asked: bool,
}

/// The runs abroad.
#[derive(Debug, Default)]
pub(crate) struct Abroad {
    runs: Vec<Run>,
}

impl Run {
    /// A run that begins.
    #[inline]
    pub(crate) fn new(number: u64, thread: ThreadId, since: Moment) -> Self {
        Self {
            number,
            thread,
            what: UNNAMED,
            begun: since,
            since,
            computing: 0,
            waiting: false,
            asked: false,
        }
    }

    /// What there is before the first run: number 1, and not to be looked after.
    pub(crate) fn none(now: Moment) -> Self {
        Self {
            waiting: true,
            ..Self::new(1, 0, now)
        }
    }

    /// The id of what it runs, if that says so by itself.
    pub(crate) fn named(&self) -> Option<u64> {
        (self.what & NAMED != 0).then_some(self.what & !NAMED)
    }

    fn is_suspect(&self, now: Moment) -> bool {
        let trusted_for = nanos(SUSPECT_AFTER) << self.computing;
        !self.waiting && now.since(self.since) > trusted_for
    }
}

impl Abroad {
    /// The core of this run was taken.
    pub(crate) fn enter(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// The run has returned.
    pub(crate) fn leave(&mut self, number: u64) {
        if let Some(place) = self.runs.iter().position(|run| run.number == number) {
            self.runs.swap_remove(place);
        }
    }

    /// The run, if it is abroad, waits.
    pub(crate) fn waits(&mut self, number: u64) {
        if let Some(run) = self.find(number) {
            run.waiting = true;
        }
    }

    /// The run, if it is abroad, was computing at `now`.
    pub(crate) fn computes(&mut self, number: u64, now: Moment) {
        if let Some(run) = self.find(number) {
            run.asked = true;
            run.since = now;
            run.computing = MOST_DOUBLINGS.min(run.computing + 1);
        }
    }

    /// A run that is suspected to wait, if any, judged at `now`.
    pub(crate) fn suspect(&self, now: Moment) -> Option<Run> {
        self.runs.iter().find(|run| run.is_suspect(now)).copied()
    }

    /// A run about which the system was not asked yet, and which has had [time](SETTLED_AFTER) to begin a wait.
    pub(crate) fn unasked(&self, now: Moment) -> Option<Run> {
        let unasked =
            |run: &&Run| !run.waiting && !run.asked && now.since(run.since) > nanos(SETTLED_AFTER);
        self.runs.iter().find(unasked).copied()
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// How many are trusted to compute at `now`.
    pub(crate) fn at_work(&self, now: Moment) -> usize {
        let at_work = |run: &&Run| !run.waiting && !run.is_suspect(now);
        self.runs.iter().filter(at_work).count()
    }

    fn find(&mut self, number: u64) -> Option<&mut Run> {
        self.runs.iter_mut().find(|run| run.number == number)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_computes_is_asked_about_ever_less_often() {
        let mut abroad = Abroad::default();
        let mut now = Moment::now();
        abroad.enter(Run::new(7, 1, now));
        let step = SUSPECT_AFTER / 10;
        let mut asked_after = Vec::new();
        for _ in 0..8 {
            let trusted = now;
            while abroad.suspect(now).is_none() {
                assert_eq!(abroad.at_work(now), 1);
                now = now + step;
            }
            assert_eq!(abroad.at_work(now), 0, "a suspect covers nothing");
            asked_after.push(now.since(trusted) / nanos(SUSPECT_AFTER));
            abroad.computes(7, now);
        }
        assert_eq!(asked_after, [1, 2, 4, 8, 16, 32, 32, 32]);
        abroad.waits(7);
        assert_eq!(abroad.at_work(now), 0);
        assert!(abroad.suspect(now + 100 * SUSPECT_AFTER).is_none());
        abroad.leave(7);
        abroad.leave(7);
    }
}

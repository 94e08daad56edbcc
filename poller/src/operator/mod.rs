//! What the owner of a descriptor implements.

pub(crate) mod readiness;

use std::{fmt, os::fd::BorrowedFd, sync::Arc, time::Instant};

use crate::sys::{MonotonicNanos, TickClock};
use readiness::Readiness;

/// The owner of a descriptor: the poller tells it what became ready.
///
/// A poller holds an `Arc<dyn Operator>` from [`register`](crate::PollerGroup::register) until
/// [`on_detached`](Self::on_detached) returned, so the descriptor must stay open that long;
/// owning it in the operator guarantees that.
///
/// # Threads
///
/// [`on_ready`](Self::on_ready) and [`on_detached`](Self::on_detached) are called by the thread
/// that holds the poller's leadership, never two at once for one operator. [`run`](Self::run) is called
/// with the leadership released: while it is under way, `on_ready` of the *same* operator may be called
/// on another thread, and if that requests another run, two runs may overlap. Operators that must
/// not overlap keep a flag of their own.
///
/// A panic in any of the methods is caught: the operator is detached, counted in
/// [`PollerStats::panics`](crate::PollerStats::panics), and the poller goes on.
pub trait Operator: Send + Sync + 'static {
    /// The descriptor to watch. Must be the same one as long as the operator is registered, and must
    /// neither block nor panic: it is called with a lock held.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Something happened. Called with the leadership held: must not block.
    ///
    /// May be called before [`register`](crate::PollerGroup::register) has returned.
    fn on_ready(&self, readiness: Readiness, budget: &mut Budget<'_>) -> Progress;

    /// Called after an [`on_ready`](Self::on_ready) that used [`Budget::request_run`].
    ///
    /// The leadership is released: this may block as long as it likes, another thread goes on polling.
    /// Call [`before_blocking`](crate::before_blocking) right before a wait to pass the leadership on
    /// at once; a run that waits without it is noticed by the group's monitor. On
    /// [`Progress::Yield`] it is called again after the others of the round.
    ///
    /// A run that was asked for and has not begun when the poller ends is made all the same, after
    /// [`on_detached`](Self::on_detached) and with the leadership held: what it would wait for does not come.
    fn run(&self) -> Progress {
        Progress::Drained
    }

    /// Whether a run that is due now is brief: it hardly waits, and runs that wait may depend on it. Where
    /// every thread of the group is taken such a run does not wait for one of them: it is made by a small
    /// reserve. Asked before such a run, with the leadership held: must not block.
    fn is_brief(&self) -> bool {
        false
    }

    /// Whether a run that is due now only ends what the operator stands for. Where every thread of the group is
    /// taken such runs are made by two threads of the reserve, one after the other: they may wait after all.
    /// Asked before such a run, with the leadership held: must not block.
    fn is_ending(&self) -> bool {
        false
    }

    /// A number by which statistics name it ([`BusyThread::id`](crate::BusyThread::id)); 0 for none.
    fn id(&self) -> u64 {
        0
    }

    /// Called exactly once, after deregistration and after the batch of events that may mention
    /// the operator; also when the poller is closed or dies. Called with the leadership held: must not
    /// block. (If the poller is gone already, the detaching thread makes the call.)
    fn on_detached(&self) {}
}

impl<O: Operator + ?Sized> Operator for Arc<O> {
    fn fd(&self) -> BorrowedFd<'_> {
        (**self).fd()
    }

    fn on_ready(&self, readiness: Readiness, budget: &mut Budget<'_>) -> Progress {
        (**self).on_ready(readiness, budget)
    }

    fn run(&self) -> Progress {
        (**self).run()
    }

    fn is_brief(&self) -> bool {
        (**self).is_brief()
    }

    fn is_ending(&self) -> bool {
        (**self).is_ending()
    }

    fn id(&self) -> u64 {
        (**self).id()
    }

    fn on_detached(&self) {
        (**self).on_detached();
    }
}

/// The result of a callback: what the poller does next with the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the poller acts on it"]
#[non_exhaustive]
pub enum Progress {
    /// Everything was taken: wait for the next edge.
    Drained,
    /// The budget is used up: call again with the same readiness after the others of this round.
    Yield,
    /// Deliver nothing until [`Registration::resume`](crate::Registration::resume). Readiness that
    /// arrives meanwhile is remembered, including the one just delivered.
    Pause,
    /// Take the operator out.
    Detach,
}

/// The bytes an operator may move in one round.
pub(crate) const ROUND_BYTES: usize = 256 * 1024;
/// The reads or writes an operator may do in one round.
pub(crate) const ROUND_STEPS: u32 = 16;

/// An operator's share of one round, and its way to ask for more than an event.
pub struct Budget<'a> {
    clock: &'a TickClock,
    now: MonotonicNanos,
    bytes: usize,
    steps: u32,
    requests: Requests,
}

/// What a callback asked for.
#[derive(Debug)]
pub(crate) struct Requests {
    pub(crate) run: bool,
    pub(crate) timer: Option<Option<Instant>>,
}

impl<'a> Budget<'a> {
    #[inline]
    pub(crate) fn new(clock: &'a TickClock, now: MonotonicNanos) -> Self {
        Self {
            clock,
            now,
            bytes: ROUND_BYTES,
            steps: ROUND_STEPS,
            requests: Requests {
                run: false,
                timer: None,
            },
        }
    }

    /// What the callback asked for.
    #[inline]
    pub(crate) fn requests(&self) -> &Requests {
        &self.requests
    }

    /// The time, read once per poll cycle.
    pub fn now(&self) -> Instant {
        self.clock.instant(self.now)
    }

    /// How many bytes may still be moved in this round; 0 once 16 reads or writes were made.
    /// At 0 the operator should return [`Progress::Yield`].
    pub fn bytes_left(&self) -> usize {
        if self.steps == 0 { 0 } else { self.bytes }
    }

    /// Charges one read or write of `bytes` bytes.
    pub fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.steps = self.steps.saturating_sub(1);
    }

    /// Asks for [`Operator::run`] to be called once this call returned.
    pub fn request_run(&mut self) {
        self.requests.run = true;
    }

    /// Sets (or clears) the operator's timer, which is delivered as [`Readiness::TIMER`] once:
    /// never before `deadline`. There is one timer per operator; the last call counts.
    pub fn set_timer(&mut self, deadline: Option<Instant>) {
        self.requests.timer = Some(deadline);
    }
}

impl fmt::Debug for Budget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("now", &self.now())
            .field("bytes_left", &self.bytes_left())
            .field("requests", &self.requests)
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn budget_ends_by_bytes_or_by_steps() {
        let clock = TickClock::new();
        let mut budget = Budget::new(&clock, MonotonicNanos::now());
        budget.spend(1000);
        assert_eq!(budget.bytes_left(), ROUND_BYTES - 1000);
        budget.spend(usize::MAX);
        assert_eq!(budget.bytes_left(), 0);

        let mut budget = Budget::new(&clock, MonotonicNanos::now());
        for _ in 0..ROUND_STEPS {
            assert!(budget.bytes_left() > 0);
            budget.spend(1);
        }
        assert_eq!(budget.bytes_left(), 0);
    }

    #[test]
    fn requests_are_handed_back() {
        let clock = TickClock::new();
        let moment = MonotonicNanos::now();
        let mut budget = Budget::new(&clock, moment);
        assert!(!budget.requests().run && budget.requests().timer.is_none());
        budget.request_run();
        budget.set_timer(None);
        let now = budget.now();
        assert_eq!(now, clock.instant(moment));
        budget.set_timer(Some(now));
        assert!(budget.requests().run);
        assert_eq!(budget.requests().timer, Some(Some(now)));
    }
}

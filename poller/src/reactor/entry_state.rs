//! The poller's state of one operator, in the same memory: reached without a lock.

use crate::{
    operator::readiness::Readiness,
    reactor::token::Token,
    sync::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
};

/// The poller's part of a [`Entry`](crate::Entry).
#[derive(Debug)]
pub(crate) struct EntryState {
    /// [`UNNAMED`] until it is registered.
    token: AtomicUsize,
    pub(crate) timer: TimerState,
    pub(crate) wake: PendingFlag,
    /// `resume` was called since the present run began.
    resumed: AtomicBool,
    /// Out of the registry: deliver nothing any more.
    detached: AtomicBool,
    /// `on_detached` was called or is about to be.
    notified: AtomicBool,
    /// Paused: remember instead of delivering. Written by the leadership's holder only.
    paused: AtomicBool,
    /// Readiness bits that arrived while paused. Written by the leadership's holder only.
    remembered: AtomicU8,
}

/// No token has its highest bit set.
const UNNAMED: usize = usize::MAX;

impl EntryState {
    pub(crate) fn new() -> Self {
        Self {
            token: AtomicUsize::new(UNNAMED),
            timer: TimerState::new(),
            wake: PendingFlag::new(),
            resumed: AtomicBool::new(false),
            detached: AtomicBool::new(false),
            notified: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            remembered: AtomicU8::new(0),
        }
    }

    /// The registration's name. It names nothing before there is one.
    #[inline]
    pub(crate) fn token(&self) -> Token {
        // Relaxed: the caller learned of the registration through a lock or a queue.
        Token::from_raw(self.token.load(Ordering::Relaxed))
    }

    /// Names the registration; `false` if it has a name already.
    pub(crate) fn set_token(&self, token: Token) -> bool {
        self.token
            .compare_exchange(UNNAMED, token.raw(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// The registration failed: it has no name after all.
    pub(crate) fn clear_token(&self) {
        self.token.store(UNNAMED, Ordering::Release);
    }

    pub(crate) fn detach(&self) {
        self.detached.store(true, Ordering::Release);
    }

    pub(crate) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Acquire)
    }

    /// Whether the caller is the one to call `on_detached`.
    pub(crate) fn notify_detached(&self) -> bool {
        !self.notified.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Delivers nothing from now on; `readiness` counts as not delivered.
    pub(crate) fn pause(&self, readiness: Readiness) {
        self.remember(readiness);
        self.paused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn remember(&self, readiness: Readiness) {
        self.remembered
            .fetch_or(readiness.bits(), Ordering::Relaxed);
    }

    /// Ends the pause and hands out what was remembered.
    pub(crate) fn unpause(&self) -> Readiness {
        self.paused.store(false, Ordering::Relaxed);
        Readiness::from_bits(self.remembered.swap(0, Ordering::Relaxed))
    }

    /// A run begins: only a `resume` from here on counts for a pause that it asks for.
    pub(crate) fn run_begins(&self) {
        self.resumed.store(false, Ordering::Relaxed);
    }

    /// Requests the end of a pause.
    pub(crate) fn resume(&self) {
        self.resumed.store(true, Ordering::Release);
    }

    /// Whether a pause that a run asked for was over before it began.
    pub(crate) fn take_resumed(&self) -> bool {
        self.resumed.swap(false, Ordering::AcqRel)
    }
}

/// A request that is queued at most once.
#[derive(Debug)]
pub(crate) struct PendingFlag {
    queued: AtomicBool,
}

impl PendingFlag {
    pub(crate) fn new() -> Self {
        Self {
            queued: AtomicBool::new(false),
        }
    }

    /// `true`: the caller has to queue the request; `false`: it is queued, and the poller
    /// will see everything the caller did before.
    pub(crate) fn try_set(&self) -> bool {
        !self.queued.swap(true, Ordering::AcqRel)
    }

    /// The request is about to be served; one from here on is another one.
    pub(crate) fn clear(&self) {
        self.queued.swap(false, Ordering::AcqRel);
    }
}

/// No deadline; nothing armed.
const NEVER: u64 = u64::MAX;

/// An operator's timer. Any thread may change the deadline at any time. The wheel is armed only if it would
/// fire too late, so a later deadline costs two atomic operations.
///
/// 1. Setter: writes `deadline`, reads `armed`.
/// 2. Poller: writes `armed`, reads `deadline`.
///
/// Invariant: all four are read-modify-writes except the poller's read, which follows its exchange. At least
/// one side sees the other's write (Dekker).
#[derive(Debug)]
pub(crate) struct TimerState {
    /// The tick at which the timer is due.
    deadline: AtomicU64,
    /// The tick at which the wheel will look. Written by the poller only.
    armed: AtomicU64,
}

/// What [`TimerState::fire`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fired {
    /// The timer is due, and is cleared with this.
    Due,
    /// It is not (any more). The wheel is to look again at the tick, if there is one.
    NotYet(Option<u64>),
}

impl TimerState {
    pub(crate) fn new() -> Self {
        Self {
            deadline: AtomicU64::new(NEVER),
            armed: AtomicU64::new(NEVER),
        }
    }

    /// Sets the deadline. `true`: the poller has to [`arm`](Self::arm) the wheel.
    pub(crate) fn set(&self, deadline: Option<u64>) -> bool {
        let deadline = deadline.unwrap_or(NEVER);
        self.deadline.swap(deadline, Ordering::AcqRel);
        deadline < self.armed.fetch_or(0, Ordering::AcqRel)
    }

    /// The poller: the tick to put into the wheel, if it would look too late otherwise.
    pub(crate) fn arm(&self) -> Option<u64> {
        let deadline = self.deadline.load(Ordering::Acquire);
        if deadline >= self.armed.load(Ordering::Relaxed) {
            return None;
        }
        self.armed.swap(deadline, Ordering::AcqRel);
        Some(deadline)
    }

    /// The poller: whether an item of the wheel that waited for `tick` is the one that counts.
    pub(crate) fn is_armed_at(&self, tick: u64) -> bool {
        self.armed.load(Ordering::Relaxed) == tick
    }

    /// The poller: the wheel has looked; is the timer due, judged by `now`?
    pub(crate) fn fire(&self, now: u64) -> Fired {
        self.armed.swap(NEVER, Ordering::AcqRel);
        let deadline = self.deadline.load(Ordering::Acquire);
        // A deadline set in between is not this one's business.
        let cleared = deadline <= now
            && self
                .deadline
                .compare_exchange(deadline, NEVER, Ordering::AcqRel, Ordering::Acquire)
                .is_ok();
        if cleared {
            Fired::Due
        } else {
            Fired::NotYet(self.arm())
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_wheel_is_bothered_only_when_it_would_look_too_late() {
        let timer = TimerState::new();
        assert!(!timer.set(None));
        assert!(timer.set(Some(50)));
        assert_eq!(timer.arm(), Some(50));
        assert_eq!(timer.arm(), None);
        assert!(!timer.set(Some(80)), "it looks at 50 anyway");
        assert_eq!(timer.fire(50), Fired::NotYet(Some(80)));
        assert!(timer.set(Some(60)));
        assert_eq!(timer.arm(), Some(60));
        assert!(
            timer.is_armed_at(60) && !timer.is_armed_at(80),
            "the item at 80 is void"
        );
        assert_eq!(timer.fire(61), Fired::Due);
        assert_eq!(timer.fire(80), Fired::NotYet(None), "once only");
    }

    #[test]
    fn a_cleared_timer_does_not_fire() {
        let timer = TimerState::new();
        assert!(timer.set(Some(5)));
        assert_eq!(timer.arm(), Some(5));
        assert!(!timer.set(None));
        assert_eq!(timer.fire(5), Fired::NotYet(None));
        assert!(!timer.is_armed_at(5));
    }
}

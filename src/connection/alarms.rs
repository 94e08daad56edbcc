//! The deadlines of a connection, which share its one timer at the poller.
//!
//! There are six: output that found the kernel without memory is tried again, a close stops
//! waiting (for queued output, then for the peer's FIN), the kernel has taken nothing of the output
//! that a handler waits for, a message that keeps a draining connection open is not complete in time,
//! nor is one that a handler has a deadline for, and a connection has been idle for too long. Each is kept apart and judged by itself; the timer is set
//! to the nearest under a lock, so that none is forgotten because another was set at the same moment.
//!
//! A connection is idle when no byte moved in either direction: none arrived, and the kernel took none of
//! its output. A handler that runs is activity, unless it waits for its own peer.
//!
//! Deadlines are milliseconds since the context's epoch, rounded up, and the clock is rounded
//! down: nothing is early. The idle deadline moves with every byte, so that only stores a number,
//! the time by the coarse clock; the timer looks at it when it fires and is set anew. That is what
//! idle checking costs: these numbers, and one entry in the poller's wheel.

use super::{
    aside::Aside,
    shared::Shared,
    state::{
        CLOSE, FLUSHING, GATED, HELD, OWNED, QUEUED, READ_WAIT, READABLE, RUNNING, WRITE_WAIT,
    },
};
use crate::{net::Socket, sync::Ordering};
use poller::internal::coarse_millis;
use std::time::{Duration, Instant};

/// The pause after the kernel had no memory for our output, in milliseconds.
const STARVED: u64 = 10;

/// How long nothing moves on a connection whose peer has ended its side before its owner counts as idle,
/// in milliseconds.
const QUIET: u64 = 1000;
/// The same of a connection that was taken from a server's handler and has received something: its owner may be
/// making an answer.
const QUIET_OF_TAKEN: u64 = 3000;

/// The longest pause between two looks at what a peer has acknowledged, in milliseconds.
const LONGEST_PAUSE: u64 = 50;

/// Milliseconds of one step of an idle timeout: four bytes reach far enough that way.
const IDLE_STEP: u64 = 10;

/// How far the coarse clock may be behind, in milliseconds.
pub(crate) const COARSE: u64 = 10;

/// A deadline that is further away than time goes.
const NEVER: u64 = u64::MAX;
/// A deadline that has passed, as found by the timer: no alarm any more.
const LATE: u64 = u64::MAX - 1;

/// In the place of a message's begin, for a deadline that was set for whatever comes.
const ANY: u64 = u64::MAX;

/// When a message is late.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    /// At this moment.
    Deadline(Instant),
    /// So long after its begin was seen.
    Timeout(Duration),
}

/// What [`Shared::judge_alarms`] found to be due.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Due {
    /// Output may be tried again.
    pub(crate) retry: bool,
    /// The close has waited long enough.
    pub(crate) close: bool,
    /// The kernel has taken no output for the write timeout, as far as is known.
    pub(crate) stall: bool,
    /// The owner has to look whether a message is complete.
    pub(crate) rest: bool,
    /// The same.
    pub(crate) message: bool,
    /// No byte is known to have moved for the idle timeout.
    pub(crate) idle: bool,
}

impl Shared {
    /// Bytes moved.
    #[inline]
    pub(crate) fn touch(&self) {
        self.last_active.store(coarse_millis(), Ordering::Relaxed);
    }

    /// When bytes last moved, in milliseconds of the coarse clock.
    pub(crate) fn last_active(&self) -> u64 {
        self.last_active.load(Ordering::Relaxed)
    }

    pub(crate) fn last_activity(&self) -> Option<Instant> {
        let last = self.last_active.load(Ordering::Relaxed);
        let ago = coarse_millis().saturating_sub(last);
        Instant::now().checked_sub(Duration::from_millis(ago))
    }

    /// Milliseconds, 0 for none.
    fn idle_timeout(&self) -> u64 {
        u64::from(self.idle_timeout.load(Ordering::Relaxed)) * IDLE_STEP
    }

    /// Milliseconds until the connection has surely been idle for its timeout.
    fn idle_left(&self, timeout: u64) -> u64 {
        let due = self.last_active.load(Ordering::Relaxed) + timeout + COARSE;
        due.saturating_sub(coarse_millis())
    }

    /// The idle clock starts anew.
    pub(crate) fn set_idle_timeout(&self, timeout: Option<Duration>) {
        self.idle_timeout.store(steps(timeout), Ordering::Relaxed);
        self.touch();
        self.arm();
    }

    /// The idle timeout is that of the loop or dialer again.
    pub(super) fn reset_idle_timeout(&self) {
        let usual = self.context.limits.idle_timeout;
        if self.idle_timeout.load(Ordering::Relaxed) != steps(usual) {
            self.set_idle_timeout(usual);
        }
    }

    /// Has output tried again after a short pause: the kernel announces room, never memory.
    pub(crate) fn retry_output(&self) {
        let at = self.milliseconds(Instant::now()) + 1 + STARVED;
        let mut aside = self.aside.lock();
        aside.deadlines_mut().retry_at = at;
        self.arm_for(&aside);
    }

    /// Whether a close has waited long enough. `None`: it begins to wait now. As long as the peer takes
    /// output the time begins anew: one that reads slowly gets everything.
    pub(crate) fn close_is_due(&self, socket: &Socket) -> Option<bool> {
        let now = Instant::now();
        let before = self.aside.lock().deadlines();
        let waiting = before.close_at != 0;
        if waiting && before.close_at > self.milliseconds(now) {
            return Some(false);
        }
        // How much the peer has got, or, where the system does not tell, how much was sent.
        let unacknowledged = socket.unacknowledged().unwrap_or(0) as u64;
        let taken = self.outbox.bytes_sent().wrapping_sub(unacknowledged);
        if waiting && before.taken == taken {
            return Some(true);
        }
        let deadline = now.checked_add(self.context.limits.linger);
        let mut aside = self.aside.lock();
        let set = aside.deadlines_mut();
        set.close_at = deadline.map_or(NEVER, |at| {
            rounded_up(at.saturating_duration_since(self.context.epoch))
        });
        set.taken = taken;
        self.arm_for(&aside);
        waiting.then_some(false)
    }

    /// The output is sent, its acknowledgement has as much time again.
    pub(super) fn begin_to_linger(&self) {
        let mut aside = self.aside.lock();
        if aside.deadlines().close_at != 0 {
            aside.deadlines_mut().close_at = 0;
        }
    }

    /// Sets the timer of a connection that lingers: `soon`, after a pause that grows, or when its time
    /// is up. `fired`: it has just fired.
    pub(super) fn look_again(&self, soon: bool, fired: bool) {
        let mut aside = self.aside.lock();
        let set = aside.deadlines_mut();
        if !soon {
            set.retry_at = 0;
        } else if fired || set.retry_at == 0 {
            set.pause = (set.pause * 2).clamp(1, LONGEST_PAUSE);
            set.retry_at = self.milliseconds(Instant::now()) + 1 + set.pause;
        }
        self.arm_for(&aside);
    }

    /// Whether the rest of the message that begins at `start` is late; asked for the first time it sets
    /// when it will be.
    pub(super) fn rest_is_late(&self, start: u64, until: impl FnOnce() -> Option<Instant>) -> bool {
        let mut aside = self.aside.lock();
        let set = aside.deadlines();
        if set.rest_at != 0 && set.rest_of == start {
            return set.rest_at == LATE;
        }
        let set = aside.deadlines_mut();
        set.rest_of = start;
        set.rest_at = until().map_or(NEVER, |at| {
            rounded_up(at.saturating_duration_since(self.context.epoch))
        });
        self.arm_for(&aside);
        false
    }

    /// Whether the message that begins at `start`, and is not complete, is late. Unless it is, the timer is
    /// set to when it will be.
    pub(super) fn message_is_late(&self, start: u64, by: By) -> bool {
        let now = Instant::now();
        let mut aside = self.aside.lock();
        let set = aside.deadlines();
        let after = |at: Instant| rounded_up(at.saturating_duration_since(self.context.epoch));
        let (at, of) = match by {
            By::Deadline(at) => (after(at), ANY),
            By::Timeout(_) if set.message_at != 0 && set.message_of == start => {
                (set.message_at, start)
            }
            By::Timeout(time) => (now.checked_add(time).map_or(NEVER, after), start),
        };
        if at == LATE || at <= self.milliseconds(now) {
            return true;
        }
        if (set.message_at, set.message_of) != (at, of) {
            let set = aside.deadlines_mut();
            (set.message_at, set.message_of) = (at, of);
            self.arm_for(&aside);
        }
        false
    }

    /// Whether no byte has moved for a while on a connection whose peer has ended its side; otherwise
    /// that is looked at again when it may be so.
    pub(super) fn is_quiet(&self) -> bool {
        let since = coarse_millis().saturating_sub(self.last_active());
        if since > self.quiet_time() {
            return true;
        }
        self.look_at_end_again();
        false
    }

    fn quiet_time(&self) -> u64 {
        if !self.context.is_client && self.bytes_in.load(Ordering::Relaxed) > 0 {
            QUIET_OF_TAKEN
        } else {
            QUIET
        }
    }

    /// Has the poller look again whether the end of a connection in its owner's hands is due.
    pub(super) fn look_at_end_again(&self) {
        let since = coarse_millis().saturating_sub(self.last_active());
        let left = self.quiet_time().saturating_sub(since).max(QUIET / 4) + COARSE;
        let at = self.milliseconds(Instant::now()) + left;
        let mut aside = self.aside.lock();
        aside.deadlines_mut().rest_at = at;
        self.arm_for(&aside);
    }

    /// Sets when the connection ends unless the kernel takes output before.
    pub(super) fn stalls_at(&self, until: Instant) {
        let now = Instant::now();
        let mut aside = self.aside.lock();
        let set = aside.deadlines_mut();
        set.stall_at = rounded_up(until.saturating_duration_since(self.context.epoch));
        set.stall_after = rounded_up(until.saturating_duration_since(now));
        set.stall_sent = self.outbox.bytes_sent();
        self.arm_for(&aside);
    }

    /// The stall alarm is due: whether the kernel has taken nothing since it was set. Progress sets
    /// it anew.
    pub(super) fn has_stalled(&self) -> bool {
        let mut aside = self.aside.lock();
        let set = aside.deadlines_mut();
        if set.stall_at == 0 || !self.word.has(GATED) {
            return false;
        }
        let sent = self.outbox.bytes_sent();
        if set.stall_sent == sent {
            return true;
        }
        set.stall_sent = sent;
        set.stall_at = self
            .milliseconds(Instant::now())
            .saturating_add(set.stall_after);
        false
    }

    /// The timer fired: what is due now. [`Self::arm`] must follow.
    pub(crate) fn judge_alarms(&self, now: Instant) -> Due {
        let present = self.milliseconds(now);
        let mut aside = self.aside.lock();
        let set = aside.deadlines();
        let is_due = |at: u64| at != 0 && at <= present;
        let mut due = Due {
            retry: is_due(set.retry_at),
            close: is_due(set.close_at),
            stall: is_due(set.stall_at),
            rest: is_due(set.rest_at),
            message: is_due(set.message_at),
            idle: false,
        };
        if due.rest {
            aside.deadlines_mut().rest_at = LATE;
        }
        if due.message {
            aside.deadlines_mut().message_at = LATE;
        }
        if due.retry {
            aside.deadlines_mut().retry_at = 0;
        }
        if due.stall && !self.word.has(GATED) {
            aside.deadlines_mut().stall_at = 0;
            due.stall = false;
        }
        drop(aside);
        let bits = self.word.load();
        let waits = bits & READ_WAIT != 0 || bits & (WRITE_WAIT | QUEUED) == WRITE_WAIT | QUEUED;
        let busy = bits & READABLE != 0
            || (bits & (RUNNING | OWNED) == RUNNING && !waits)
            || bits & (FLUSHING | HELD) == FLUSHING;
        if busy && self.idle_timeout() != 0 {
            // A handler computes, or will see what has arrived, or a thread hands output over.
            self.touch();
        }
        due.idle = self.is_idle();
        due
    }

    /// Whether no byte has moved for the idle timeout.
    pub(super) fn is_idle(&self) -> bool {
        let timeout = self.idle_timeout();
        timeout != 0 && !self.word.has(CLOSE) && self.idle_left(timeout) == 0
    }

    /// Sets the timer to the nearest deadline.
    pub(crate) fn arm(&self) {
        self.arm_for(&self.aside.lock());
    }

    /// The caller holds the lock, so the last one to set the timer knows all deadlines.
    fn arm_for(&self, aside: &Aside) {
        let Some(registration) = self.registration() else {
            return;
        };
        let set = aside.deadlines();
        let set_ones = [
            set.retry_at,
            set.close_at,
            set.stall_at,
            set.rest_at,
            set.message_at,
        ]
        .into_iter()
        .filter(|&at| at != 0);
        let mut nearest = set_ones
            .min()
            .and_then(|at| self.context.epoch.checked_add(Duration::from_millis(at)));
        let timeout = self.idle_timeout();
        if timeout != 0 && !self.word.has(CLOSE) {
            let left = Duration::from_millis(self.idle_left(timeout));
            let idle = Instant::now().checked_add(left);
            nearest = match (nearest, idle) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        registration.set_timer(nearest);
    }

    /// The present, rounded down.
    fn milliseconds(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.context.epoch);
        since.as_secs() * 1000 + u64::from(since.subsec_millis())
    }
}

/// Whole steps, rounded up; 0 (never) for more than there are, which is over a year.
pub(super) fn steps(timeout: Option<Duration>) -> u32 {
    timeout.map_or(0, |timeout| {
        let steps = timeout
            .as_nanos()
            .div_ceil(u128::from(IDLE_STEP) * 1_000_000);
        u32::try_from(steps.max(1)).unwrap_or(0)
    })
}

/// Whole milliseconds, later and never earlier.
#[inline]
fn rounded_up(time: Duration) -> u64 {
    time.as_secs()
        .saturating_mul(1000)
        .saturating_add(u64::from(time.subsec_millis()) + 1)
}

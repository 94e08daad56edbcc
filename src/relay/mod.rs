//! Joins two connections: what one receives the other sends, both ways, without threads of its
//! own.
//!
//! Each side is driven by its poller. Input of one side is linked into the output of the other;
//! when more than the limit waits there the first side stops receiving until it has drained, so
//! a slow reader slows its writer down through the kernel. The end of one side's input is passed
//! on once everything before it was sent; a reset is passed on as a reset, once everything before it
//! has arrived, see `parting`.
//!
//! A side whose event loop drains is kept open by a hold of ours until nothing is under way, see
//! `drain`.

mod drain;
mod idle;
#[cfg(target_os = "linux")]
mod kernel;
mod parting;
mod session;
mod side;

pub use side::{RelaySide, RelayVerdict};

use crate::{
    connection::{ABORT, COARSE, Connection},
    error::{CloseReason, Error},
    event_loop::Pending,
    foreign::Foreign,
    sync::{AtomicBool, AtomicU32, AtomicU64, Condvar, Mutex, Ordering},
};
use poller::{Waiter, internal::coarse_millis};
use session::RelaySession;
use side::{Lane, Returned};
use std::{
    fmt, io,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

/// Copies both directions of `a` and `b` until both have ended; see [`RelayBuilder`] for options.
///
/// Returns at once. Either side may be a [`Connection`] of the caller's or a
/// [`Pooled`](crate::Pooled) one, which goes back to its pool if it is still sound at the end. In
/// a handler, [`Connection::hijack`] gives the connection.
///
/// ```no_run
/// use netpoll::{Address, Connection, Pool, relay};
/// use std::io;
///
/// fn proxy(client: &mut Connection, pool: &Pool, backend: &Address) -> io::Result<()> {
///     let backend = pool.get(backend)?;
///     relay(client.hijack()?, backend)?;
///     Ok(())
/// }
/// ```
///
/// When the event loop of a side [drains](crate::EventLoop::shutdown), the relay ends in order as
/// soon as nothing is under way ([`RelayEnd::Drained`]): nothing waits to be passed on, nothing
/// moved for 100 ms, neither side has ended its output alone, and the last bytes did not come from
/// the draining side, which then waits for the answer. What is under way is passed on up to the
/// deadline of the shutdown, which returns when what was given to [`Relay::on_end`] has returned.
///
/// # Errors
///
/// [`Error::Closed`] if a side has ended already, or what the system reports; both sides are
/// closed then.
pub fn relay(a: impl Into<RelaySide>, b: impl Into<RelaySide>) -> io::Result<Relay> {
    RelayBuilder::default().start(a, b)
}

/// Options of a relay.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing before `start`"]
pub struct RelayBuilder {
    in_flight: usize,
    idle_timeout: Option<Duration>,
    keep_b: bool,
}

impl Default for RelayBuilder {
    fn default() -> Self {
        Self {
            in_flight: 256 << 10,
            idle_timeout: None,
            keep_b: false,
        }
    }
}

impl RelayBuilder {
    /// How many bytes may wait in each direction before its source is not read any more (default
    /// 256 KiB). One receive, at most 64 KiB, may come on top.
    pub fn in_flight(mut self, bytes: usize) -> Self {
        self.in_flight = bytes.max(1);
        self
    }

    /// Ends the relay with [`RelayEnd::IdleTimeout`] when nothing moved in either direction for
    /// this long. What a kernel has taken for a peer that reads slowly moves as long as the peer
    /// acknowledges some of it (TCP) or reads it (unix), on Linux. Default: never.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// Ends the relay with [`RelayEnd::Released`] when `a` ends or fails, instead of passing
    /// that on: `b` stays open and comes back like after an interrupt. What had come from `b` until
    /// then is passed on first. For backends that serve one client after the other and keep nothing of
    /// it. If the last bytes came from `a`, an answer may be under way: `b` is
    /// [not sound](RelayVerdict::OwesAnswer) then.
    pub fn keep_b(mut self, on: bool) -> Self {
        self.keep_b = on;
        self
    }

    /// Starts the relay.
    ///
    /// # Errors
    ///
    /// As [`relay`].
    pub fn start(self, a: impl Into<RelaySide>, b: impl Into<RelaySide>) -> io::Result<Relay> {
        let (a, lease_a) = a.into().into_parts();
        let (b, lease_b) = b.into().into_parts();
        let core = Arc::new(Core {
            lanes: [Lane::new(&a), Lane::new(&b)],
            in_flight: self.in_flight,
            idle_timeout: self.idle_timeout,
            keep_b: self.keep_b,
            leaving: AtomicBool::new(false),
            epoch: Instant::now(),
            coarse_epoch: coarse_millis(),
            moved_at: AtomicU64::new(0),
            last: AtomicU32::new(0),
            progress: Mutex::new(Progress {
                end: None,
                returned: [None, None],
                leases: [lease_a, lease_b],
                first: None,
                outcome: None,
                callbacks: Vec::new(),
                settled: false,
            }),
            stopped: AtomicBool::new(false),
            changed: Condvar::new(),
            this: OnceLock::new(),
        });
        let _ = core.this.set(Arc::downgrade(&core));
        let relay = Relay {
            core: Arc::clone(&core),
        };
        // What an earlier relay has left counts.
        core.pause_if_full(0);
        core.pause_if_full(1);
        for (index, conn) in [a, b].into_iter().enumerate() {
            if let Err(error) = conn.attach_session(Box::new(RelaySession::new(&core, index))) {
                core.lanes[1 - index].shared.abort_with(CloseReason::Local);
                return Err(error);
            }
        }
        core.watch_idleness();
        Ok(relay)
    }
}

/// A relay at work. Clones are the same relay; dropping them leaves it running.
#[derive(Clone)]
pub struct Relay {
    core: Arc<Core>,
}

impl Relay {
    /// Options first.
    pub fn builder() -> RelayBuilder {
        RelayBuilder::default()
    }

    /// Stops both directions now, without closing anything: the sides come back in the
    /// [`RelayOutcome`]. Idempotent, returns at once, callable from any thread and any callback.
    pub fn interrupt(&self) {
        self.core.stop(RelayEnd::Interrupted);
    }

    /// Waits for the end. The sides are in the outcome of whoever asks first.
    ///
    /// # Errors
    ///
    /// [`Error::WouldDeadlock`] on a poller's thread that must not wait; [`Error::Overloaded`] if the
    /// calling handler's thread was needed by others.
    pub fn wait(&self) -> io::Result<RelayOutcome> {
        loop {
            if let Some(outcome) = self.core.wait(None)? {
                return Ok(outcome);
            }
        }
    }

    /// Waits for the end, at most `timeout`; `None` if the relay still runs then.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> io::Result<Option<RelayOutcome>> {
        self.core.wait(Instant::now().checked_add(timeout))
    }

    /// Calls `callback` with the outcome at the end, at once if that has come; on the thread
    /// that ended the relay.
    pub fn on_end(&self, callback: impl FnOnce(RelayOutcome) + Send + 'static) {
        self.core.on_end(Foreign::new(Box::new(callback)));
    }

    /// Bytes moved so far: from `a` to `b`, and from `b` to `a`.
    pub fn moved(&self) -> (u64, u64) {
        (self.core.lanes[0].moved(), self.core.lanes[1].moved())
    }
}

/// Why a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelayEnd {
    /// Both sides ended their output and everything was passed on. A peer that is gone by then, as a unix
    /// socket tells, is no failure if the other side ends within its linger time and sends no more.
    Finished,
    /// [`Relay::interrupt`] was called.
    Interrupted,
    /// Nothing moved for the idle timeout.
    IdleTimeout,
    /// `a` ended and `b` was to be kept, see [`RelayBuilder::keep_b`].
    Released,
    /// The event loop of a side drained and nothing was under way; both sides were closed, except
    /// for `b` with [`RelayBuilder::keep_b`].
    Drained,
    /// A side failed or was closed. The other was reset when it had everything that came from the first
    /// one, or had taken nothing for its linger time; at once if the first one was aborted.
    Failed(CloseReason),
}

/// How a relay ended, and what is left.
///
/// A side that is given back and has not got everything that the other one had sent is reset when it is
/// closed or dropped: an end in order would make a stream look complete that is not. It ends in order again
/// after something was sent on it, or after another relay.
#[derive(Debug)]
pub struct RelayOutcome {
    /// Why it ended.
    pub end: RelayEnd,
    /// The first side, open only after an interrupt or a timeout.
    pub a: Option<Connection>,
    /// Whether the first side may be used again.
    pub a_verdict: RelayVerdict,
    /// The second side.
    pub b: Option<Connection>,
    /// Whether the second side may be used again.
    pub b_verdict: RelayVerdict,
    /// Bytes moved from `a` to `b`.
    pub a_to_b: u64,
    /// Bytes moved from `b` to `a`.
    pub b_to_a: u64,
}

type Callback = Foreign<Box<dyn FnOnce(RelayOutcome) + Send>>;

pub(crate) struct Core {
    pub(crate) lanes: [Lane; 2],
    pub(crate) in_flight: usize,
    idle_timeout: Option<Duration>,
    pub(crate) keep_b: bool,
    /// With `keep_b`: `a` has ended its output.
    leaving: AtomicBool,
    epoch: Instant,
    /// The same moment by the coarse clock, which is looked at for every message.
    coarse_epoch: u64,
    /// When something last moved, in milliseconds since `epoch`.
    moved_at: AtomicU64,
    /// Which side sent last.
    last: AtomicU32,
    progress: Mutex<Progress>,
    /// The relay has an end; spares each message the lock.
    stopped: AtomicBool,
    changed: Condvar,
    this: OnceLock<Weak<Self>>,
}

struct Progress {
    end: Option<RelayEnd>,
    returned: [Option<Returned>; 2],
    leases: [Option<crate::client::Lease>; 2],
    /// The side that closed first: a shutdown of its event loop waits for the other one and for
    /// what is called at the end.
    first: Option<Pending>,
    outcome: Option<RelayOutcome>,
    callbacks: Vec<Callback>,
    settled: bool,
}

impl Core {
    /// Ends the relay for a reason; the first one counts. Of a failed side the session has been told.
    pub(crate) fn stop(&self, end: RelayEnd) {
        {
            let mut progress = self.progress.lock();
            if progress.end.is_some() {
                return;
            }
            progress.end = Some(end);
            self.stopped.store(true, Ordering::Release);
        }
        // A side that was aborted takes the other one with it at once.
        let cut = self.lanes.iter().any(|lane| lane.shared.word.has(ABORT));
        for (index, lane) in self.lanes.iter().enumerate() {
            match end {
                RelayEnd::Failed(reason) if cut => lane.shared.abort_with(reason),
                RelayEnd::Failed(reason) => self.part(index, reason),
                RelayEnd::Finished => lane.shared.close_with(CloseReason::Local),
                RelayEnd::Drained if !self.keeps(index) => {
                    lane.shared.close_with(CloseReason::Shutdown);
                }
                // The sides give themselves back in their own turn.
                _ => lane.poke(),
            }
        }
    }

    /// Whether side `index` is to be given back instead of served.
    pub(crate) fn gives_back(&self, index: usize) -> bool {
        if !self.stopped.load(Ordering::Acquire) {
            return false;
        }
        match self.progress.lock().end {
            Some(RelayEnd::Interrupted | RelayEnd::IdleTimeout | RelayEnd::Released) => true,
            Some(RelayEnd::Drained) => self.keeps(index),
            _ => false,
        }
    }

    /// Whether side `index` stays open when the other one is gone.
    fn keeps(&self, index: usize) -> bool {
        self.keep_b && index == 1
    }

    /// Side `index` received something: it is the one that sent last. To be called before any of
    /// it is passed on, for what comes back is passed on by another thread, whose word must be the
    /// later one.
    pub(crate) fn received(&self, index: usize) {
        self.last.store(index as u32, Ordering::Release);
        self.hold_again(index);
    }

    /// The relay is not idle.
    pub(crate) fn renew(&self) {
        self.renew_at(coarse_millis());
    }

    /// Something was passed on at that time of the coarse clock.
    fn renew_at(&self, at: u64) {
        // As late as the coarse clock may mean.
        let at = at.saturating_sub(self.coarse_epoch) + COARSE;
        self.moved_at.store(at, Ordering::Relaxed);
    }

    /// Milliseconds since `epoch`.
    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Both directions have been passed on to their end.
    pub(crate) fn finish_if_done(&self) {
        if self.lanes.iter().all(Lane::is_done) {
            self.stop(RelayEnd::Finished);
        }
    }

    /// Whether both directions came to an end in order, with all that there was.
    fn is_complete(&self) -> bool {
        let [a, b] = &self.lanes;
        a.is_done() && b.is_done() && !a.has_lost(b) && !b.has_lost(a)
    }

    /// A side is out of the relay: given back, or closed.
    pub(crate) fn settle(&self, index: usize, returned: Returned) {
        if let Returned::Closed(reason) = &returned {
            // Without a reason of our own it failed, and the other side must hear of it.
            let released = index == 0 && self.keep_b;
            let let_go = self.lanes[index].is_let_go() && *reason == CloseReason::Shutdown;
            self.stop(if let_go {
                RelayEnd::Drained
            } else if released {
                RelayEnd::Released
            } else {
                RelayEnd::Failed(*reason)
            });
        }
        let complete = self.is_complete();
        let (end, sides, first) = {
            let mut progress = self.progress.lock();
            if progress.returned[index].is_some() {
                return;
            }
            let closed = matches!(returned, Returned::Closed(_));
            progress.returned[index] = Some(returned);
            if progress.returned.iter().any(Option::is_none) {
                if closed {
                    progress.first = Pending::new(&self.lanes[index].shared);
                }
                return;
            }
            let returned = std::mem::replace(&mut progress.returned, [const { None }; 2]);
            // Nobody settles twice: both places stay taken.
            progress.returned = [0, 1].map(|_| Some(Returned::Closed(CloseReason::Local)));
            let [lease_a, lease_b] = std::mem::take(&mut progress.leases);
            let [a, b] = returned.map(|side| side.unwrap_or(Returned::Closed(CloseReason::Local)));
            let end = match progress.end {
                // A side closed after both ends had been passed on, before the relay had seen to that.
                Some(RelayEnd::Failed(CloseReason::Peer)) if complete => RelayEnd::Finished,
                end => end.unwrap_or(RelayEnd::Interrupted),
            };
            (end, [(a, lease_a), (b, lease_b)], progress.first.take())
        };
        // Who took over from `a` would get the answer to its last question.
        let owes = matches!(end, RelayEnd::Released | RelayEnd::Drained)
            && self.lanes[0].moved() > 0
            && self.last.load(Ordering::Acquire) == 0;
        let judged = side::judge(end, sides, owes);
        // Giving back to a pool or closing runs user code: no lock is held.
        let [(a, a_verdict), (b, b_verdict)] = judged.map(side::Judged::settle);
        let (a_to_b, b_to_a) = (self.lanes[0].moved(), self.lanes[1].moved());
        self.publish(
            index,
            RelayOutcome {
                end,
                a,
                a_verdict,
                b,
                b_verdict,
                a_to_b,
                b_to_a,
            },
        );
        drop(first);
    }

    /// Hands the outcome out: with the sides to whoever asked first.
    fn publish(&self, index: usize, mut outcome: RelayOutcome) {
        let (first, callbacks) = {
            let mut progress = self.progress.lock();
            let mut callbacks = std::mem::take(&mut progress.callbacks).into_iter();
            let first = callbacks.next();
            progress.outcome = Some(match first {
                Some(_) => outcome.without_sides(),
                None => RelayOutcome {
                    a: outcome.a.take(),
                    b: outcome.b.take(),
                    ..outcome
                },
            });
            progress.settled = true;
            (first, callbacks)
        };
        self.changed.notify_all();
        let lane = &self.lanes[index];
        let rest = outcome.without_sides();
        if let Some(first) = first {
            lane.call_back(first, outcome);
        }
        for callback in callbacks {
            lane.call_back(callback, rest.without_sides());
        }
    }

    fn wait(self: &Arc<Self>, deadline: Option<Instant>) -> io::Result<Option<RelayOutcome>> {
        let mut progress = self.progress.lock();
        if progress.settled {
            return Ok(Some(progress.take_outcome()));
        }
        drop(progress);
        if poller::is_polling_thread() {
            return Err(Error::WouldDeadlock.into());
        }
        let wait = poller::begin_wait(Arc::clone(self) as Arc<dyn Waiter>);
        progress = self.progress.lock();
        while !progress.settled {
            if wait.was_ended() {
                return Err(Error::Overloaded.into());
            }
            match deadline {
                None => self.changed.wait(&mut progress),
                Some(deadline) => {
                    let late = self.changed.wait_until(&mut progress, deadline).timed_out();
                    if late && !progress.settled {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(progress.take_outcome()))
    }

    fn on_end(&self, callback: Callback) {
        let outcome = {
            let mut progress = self.progress.lock();
            if !progress.settled {
                progress.callbacks.push(callback);
                return;
            }
            progress.take_outcome()
        };
        self.lanes[0].call_back(callback, outcome);
    }
}

impl Waiter for Core {
    fn wake(&self) {
        let progress = self.progress.lock();
        self.changed.notify_all();
        drop(progress);
    }
}

impl Progress {
    fn take_outcome(&mut self) -> RelayOutcome {
        let outcome = self.outcome.take().expect("a settled relay has an outcome");
        self.outcome = Some(outcome.without_sides());
        outcome
    }
}

impl RelayOutcome {
    fn without_sides(&self) -> Self {
        Self {
            a: None,
            b: None,
            ..*self
        }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a_to_b, b_to_a) = self.moved();
        f.debug_struct("Relay")
            .field("a", &self.core.lanes[0].shared.id)
            .field("b", &self.core.lanes[1].shared.id)
            .field("a_to_b", &a_to_b)
            .field("b_to_a", &b_to_a)
            .finish_non_exhaustive()
    }
}

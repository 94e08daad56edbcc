//! One side of a relay: what goes through it, and what is left of it.

use super::{Callback, RelayEnd, RelayOutcome};
use crate::{
    client::{Lease, Pooled},
    connection::{
        BROKEN, Connection, ConnectionHandle, FLUSHING, For, HUNG_UP, PIPED, PendingReply,
        READABLE, RUNNING, Shared, WROTE, Wire,
    },
    error::CloseReason,
    net::{Peek, Socket},
    sync::{AtomicBool, AtomicU64, Mutex, Ordering},
};
use poller::{Interest, Readiness};
use std::{fmt, io, os::fd::AsFd, sync::Arc, time::Instant};

/// A connection that may take part in a relay.
pub struct RelaySide {
    conn: Connection,
    lease: Option<Lease>,
}

impl RelaySide {
    pub(super) fn into_parts(self) -> (Connection, Option<Lease>) {
        (self.conn, self.lease)
    }
}

impl From<Connection> for RelaySide {
    fn from(conn: Connection) -> Self {
        Self { conn, lease: None }
    }
}

impl From<Pooled> for RelaySide {
    fn from(pooled: Pooled) -> Self {
        let (conn, lease) = pooled.into_parts();
        Self {
            conn,
            lease: Some(lease),
        }
    }
}

impl fmt::Debug for RelaySide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelaySide")
            .field("conn", &self.conn)
            .field("pooled", &self.lease.is_some())
            .finish()
    }
}

/// Whether a side of an ended relay may be used again, and why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RelayVerdict {
    /// Nothing is under way on it: it may go back to a pool (a pooled one has).
    Sound,
    /// It is closed, for this reason.
    Closed(CloseReason),
    /// The peer has ended its side, or we ours.
    HalfClosed,
    /// Input arrived that was not passed on.
    UnreadInput,
    /// Output was not handed to the kernel completely, or after an idle timeout is still there.
    UnsentOutput,
    /// The other side ended without an answer to what it sent last: only the kept side of
    /// [`RelayBuilder::keep_b`](crate::RelayBuilder::keep_b).
    OwesAnswer,
}

/// Output of a side: as long as this changes something moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outgoing {
    sent: u64,
    unacknowledged: Option<usize>,
}

impl Outgoing {
    /// Whether a kernel has something that its peer has not got.
    pub(super) fn is_under_way(self) -> bool {
        self.unacknowledged.is_some_and(|n| n > 0)
    }
}

/// The direction that starts at one side.
pub(crate) struct Lane {
    pub(crate) shared: Arc<Shared>,
    moved: AtomicU64,
    /// The other side has too much to send: do not receive.
    pub(super) paused: AtomicBool,
    /// The end of input was received.
    pub(super) ended: AtomicBool,
    /// The end was passed on to the other side.
    pub(super) passed_on: AtomicBool,
    /// Nothing of this side's input is wanted any more: the other side is gone.
    deaf: AtomicBool,
    /// Some of this side's input was dropped.
    pub(super) dropped: AtomicBool,
    /// What the idle timeout has seen of this side's output.
    pub(super) seen: Mutex<Outgoing>,
    /// A kernel pipe is being emptied into the other side.
    pub(super) piping: AtomicBool,
    /// A timer looks at the kernel pipe.
    #[cfg(target_os = "linux")]
    pub(super) watched: AtomicBool,
    /// Nothing has moved for as long as a pipe is kept.
    #[cfg(target_os = "linux")]
    pub(super) still: AtomicBool,
    /// Keeps the connection open while it is half closed, or while its loop drains.
    hold: Mutex<Option<PendingReply>>,
    /// Its loop drains.
    pub(super) draining: AtomicBool,
    /// The drain may end it: nothing was under way.
    let_go: AtomicBool,
}

impl Lane {
    pub(super) fn new(conn: &Connection) -> Self {
        let handle: ConnectionHandle = conn.handle();
        Self {
            shared: Arc::clone(conn.shared()),
            moved: AtomicU64::new(0),
            paused: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            passed_on: AtomicBool::new(false),
            deaf: AtomicBool::new(false),
            dropped: AtomicBool::new(false),
            seen: Mutex::default(),
            piping: AtomicBool::new(false),
            #[cfg(target_os = "linux")]
            watched: AtomicBool::new(false),
            #[cfg(target_os = "linux")]
            still: AtomicBool::new(false),
            hold: Mutex::new(Some(handle.hold())),
            draining: AtomicBool::new(false),
            let_go: AtomicBool::new(false),
        }
    }

    pub(super) fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, n: usize) {
        self.moved.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(super) fn is_done(&self) -> bool {
        self.passed_on.load(Ordering::Acquire)
    }

    pub(super) fn has_news(&self) -> bool {
        self.shared.word.has(READABLE)
    }

    /// No more of this side's input is wanted.
    pub(super) fn deafen(&self) {
        self.deaf.store(true, Ordering::Release);
    }

    /// Drops what was received from this side.
    pub(super) fn drop_input(&self, conn: &mut Connection) {
        if conn.available() > 0 {
            self.dropped.store(true, Ordering::Release);
        }
        drop(conn.rx.take());
    }

    /// Whether some of this side's input did not get to the other one's kernel, as far as is known.
    pub(super) fn has_lost(&self, other: &Self) -> bool {
        let outbox = &other.shared.outbox;
        self.dropped.load(Ordering::Acquire) || outbox.queued() > 0 || outbox.lost().bytes > 0
    }

    pub(super) fn is_deaf(&self) -> bool {
        self.deaf.load(Ordering::Acquire)
    }

    /// Whether the side can end by itself: its socket has failed.
    pub(super) fn is_broken(&self) -> bool {
        self.shared.word.has(BROKEN | HUNG_UP)
    }

    /// Whether the connection was reset. The send that learns of that takes the error away, so the next
    /// receive finds an end instead; only after an end that was one a send finds a broken pipe.
    pub(super) fn was_reset(&self) -> bool {
        match self.shared.aside.lock().reason() {
            Some(CloseReason::Error(kind)) => kind != io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }

    /// Whether the system says that both directions are over.
    pub(super) fn is_gone(&self) -> bool {
        let gone = |socket: Arc<Wire>| {
            let ready = poller::wait_ready(socket.as_fd(), Interest::HANGUP, Some(Instant::now()));
            ready.is_ok_and(|ready| ready.intersects(Readiness::WRITE_CLOSED | Readiness::ERROR))
        };
        self.shared.socket().is_some_and(gone)
    }

    /// What became of this side's output so far.
    pub(super) fn outgoing(&self, socket: &Socket) -> Outgoing {
        Outgoing {
            sent: self.shared.outbox.bytes_sent(),
            unacknowledged: socket.unacknowledged(),
        }
    }

    /// Has the side look at the relay's state in its own turn.
    pub(super) fn poke(&self) {
        self.shared.attend(WROTE);
    }

    pub(super) fn is_let_go(&self) -> bool {
        self.let_go.load(Ordering::Acquire)
    }

    /// The drain may end the side, after a last look for input.
    pub(super) fn let_go(&self) {
        let hold = self.hold.lock().take();
        if hold.is_some() {
            self.let_go.store(true, Ordering::Release);
        }
        drop(hold);
    }

    /// The last look found something. `false`: it was not let go. Only in the side's own turn.
    pub(super) fn hold_again(&self) -> bool {
        if !self.is_let_go() {
            return false;
        }
        self.let_go.store(false, Ordering::Release);
        let handle = ConnectionHandle::new(Arc::clone(&self.shared));
        *self.hold.lock() = Some(handle.hold());
        true
    }

    /// Whether something is under way: in the kernel's hands, in ours or queued.
    pub(super) fn is_busy(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
            || self.shared.outbox.queued() > 0
            || self.shared.word.has(FLUSHING | PIPED | READABLE | RUNNING)
    }

    /// Calls what was to be called at the end.
    pub(super) fn call_back(&self, mut callback: Callback, outcome: RelayOutcome) {
        self.shared.contain("relay callback", || {
            if let Some(callback) = callback.take() {
                callback(outcome);
            }
        });
    }

    /// The relay is over for this side.
    pub(super) fn release(&self) {
        let hold = self.hold.lock().take();
        drop(hold);
        self.shared.notify(For::Output);
    }
}

/// What became of a side.
pub(crate) enum Returned {
    /// It is open and the caller's again.
    Open(Box<Connection>),
    /// It is closed.
    Closed(CloseReason),
}

impl Returned {
    /// Whether this side holds what its peer has not got. What the kernel has is on its way, except where
    /// an idle timeout has passed.
    fn is_unsent(&self, end: RelayEnd) -> bool {
        let Self::Open(conn) = self else { return false };
        let stats = conn.stats();
        let stuck = || {
            end == RelayEnd::IdleTimeout && conn.unacknowledged().is_some_and(|unsent| unsent > 0)
        };
        stats.queued > 0 || stats.lost_bytes > 0 || stuck()
    }

    /// Whether this side has input that the other one has not got.
    fn is_unread(&self) -> bool {
        match self {
            Self::Open(conn) => conn.available() > 0 || conn.peek_state() == Peek::Data,
            Self::Closed(_) => false,
        }
    }

    fn verdict(&self, unsent: bool) -> RelayVerdict {
        let conn = match self {
            Self::Closed(reason) => return RelayVerdict::Closed(*reason),
            Self::Open(conn) => conn,
        };
        if unsent || conn.malloc_len() > 0 {
            RelayVerdict::UnsentOutput
        } else if conn.available() > 0 {
            RelayVerdict::UnreadInput
        } else if conn.is_read_closed() || !conn.is_active() {
            RelayVerdict::HalfClosed
        } else {
            match conn.peek_state() {
                Peek::Empty if conn.is_sound() => RelayVerdict::Sound,
                Peek::Empty | Peek::Eof => RelayVerdict::HalfClosed,
                Peek::Data => RelayVerdict::UnreadInput,
                Peek::Err(kind) => RelayVerdict::Closed(CloseReason::Error(kind)),
            }
        }
    }
}

/// A side, what it is leased from, and its verdict.
pub(super) struct Judged(Returned, Option<Lease>, RelayVerdict);

/// Judges the sides of a relay that has ended. `owes`: the second one's last question has no answer.
pub(super) fn judge(
    end: RelayEnd,
    sides: [(Returned, Option<Lease>); 2],
    owes: bool,
) -> [Judged; 2] {
    let [(a, lease_a), (b, lease_b)] = sides;
    let (a_unsent, b_unsent) = (a.is_unsent(end), b.is_unsent(end));
    let (a_unread, b_unread) = (a.is_unread(), b.is_unread());
    let a_verdict = a.verdict(a_unsent);
    let b_verdict = match b.verdict(b_unsent) {
        RelayVerdict::Sound if owes => RelayVerdict::OwesAnswer,
        verdict => verdict,
    };
    let stopped = matches!(end, RelayEnd::Interrupted | RelayEnd::IdleTimeout);
    // The end of `a` is not passed on, but a failure of it must not look like an end.
    let failed = end == RelayEnd::Released && matches!(a, Returned::Closed(_));
    let short = [
        (&a, (stopped && a_unsent) || b_unread),
        (
            &b,
            stopped && (b_unsent || a_unread) || (failed && b_verdict != RelayVerdict::Sound),
        ),
    ];
    for (side, short) in short {
        if let Returned::Open(conn) = side {
            conn.shared().set_short(short);
        }
    }
    [Judged(a, lease_a, a_verdict), Judged(b, lease_b, b_verdict)]
}

impl Judged {
    /// Gives a sound side back to its pool and closes one that is not. A side without a pool is for the
    /// caller.
    pub(super) fn settle(self) -> (Option<Connection>, RelayVerdict) {
        let Self(side, lease, verdict) = self;
        match (side, lease) {
            (Returned::Closed(_), _) => (None, verdict),
            (Returned::Open(conn), Some(lease)) => {
                if verdict == RelayVerdict::Sound {
                    lease.restore(conn);
                } else {
                    lease.discard(conn);
                }
                (None, verdict)
            }
            (Returned::Open(conn), None) => (Some(*conn), verdict),
        }
    }
}

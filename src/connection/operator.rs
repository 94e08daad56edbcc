//! What the poller calls: readiness becomes news for the owner, room for output is used at
//! once, timers are judged.

use super::{
    output::Sent,
    process,
    shared::{For, Shared},
    state::{
        ABORT, ATTEND, BRIEF, BROKEN, CLOSE, CLOSED, CONNECTED, DRAIN, HUNG_UP, LINGER, OWNED,
        PEER_CLOSED, PIPED, QUEUED, READ_WAIT, READABLE, SEALED, URGENT, WRITABLE, WRITE_SHUT,
    },
};
use crate::{
    dispatch::Placed,
    error::CloseReason,
    net::{Peek, Socket},
    sync::AtomicU32,
};
use poller::{Budget, Entry, Interest, Operator, Progress, Readiness};
use std::{
    io,
    ops::Deref,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Instant,
};

/// A connection as its poller sees it: the socket, which dereferences to itself, and what it
/// belongs to. Whoever may use the socket holds this, and the poller's books are in the same piece of
/// memory.
#[derive(Debug)]
pub(crate) struct ConnectionOperator {
    pub(crate) shared: Arc<Shared>,
    socket: Socket,
    /// Unwanted input read since the close; no more than fits is counted.
    pub(super) drained: AtomicU32,
}

/// A socket and its operator.
pub(crate) type Wire = Entry<ConnectionOperator>;

impl ConnectionOperator {
    pub(crate) fn new(shared: Arc<Shared>, socket: Socket) -> Self {
        Self {
            shared,
            socket,
            drained: AtomicU32::new(0),
        }
    }

    /// Uses room in the socket. `true`: the share is used up and more is queued.
    fn drive(&self) -> bool {
        let shared = &self.shared;
        let sent = shared
            .outbox
            .drive(&shared.word, &shared.line(&self.socket));
        shared.after_send(sent);
        if sent == Sent::All {
            process::write_complete(shared);
        }
        sent == Sent::Share
    }

    /// The timer fired: what that is news of.
    fn alarms(&self, budget: &Budget<'_>) -> u32 {
        let shared = &self.shared;
        let due = shared.judge_alarms(budget.now());
        let mut news = 0;
        if due.retry {
            news |= WRITABLE;
        }
        if due.close {
            // The kernel announces room late, and takes output before that: then it moves.
            news |= ATTEND | WRITABLE;
        }
        let queued = (due.stall || due.idle) && shared.word.has(QUEUED);
        if queued {
            // The kernel announces room late: what it takes now is progress.
            self.drive();
            news |= WRITABLE;
        }
        if due.rest || due.message {
            news |= ATTEND;
        }
        if due.stall && shared.has_stalled() {
            shared.aside.lock().decide(CloseReason::WriteTimeout);
            news |= ABORT | ATTEND;
        }
        if due.idle && shared.word.has(OWNED) && self.peek_state() == Peek::Data {
            // Its owner has not seen yet what came.
            shared.touch();
        }
        if due.idle && shared.is_idle() {
            if queued {
                // It has stood still for so long that no close waits for it.
                shared.abort_with(CloseReason::IdleTimeout);
            } else {
                shared.close_with(CloseReason::IdleTimeout);
            }
        }
        news
    }

    /// The news of input, with room for output or without, and of nothing else.
    #[inline]
    fn request(readiness: Readiness) -> Option<u32> {
        if readiness == Readiness::READABLE | Readiness::WRITABLE {
            Some(READABLE | WRITABLE)
        } else {
            (readiness == Readiness::READABLE).then_some(READABLE)
        }
    }

    /// Readiness of all kinds, of a connection in any state.
    #[inline(never)]
    fn look_closer(&self, bits: u32, readiness: Readiness, budget: &mut Budget<'_>) -> Progress {
        let hangup = Readiness::READ_CLOSED | Readiness::WRITE_CLOSED | Readiness::ERROR;
        let shared = &self.shared;
        if bits & LINGER != 0 {
            return self.linger(bits, readiness);
        }
        if bits & CLOSED != 0 {
            return Progress::Drained;
        }
        let readiness = if bits & OWNED != 0 {
            self.with_end(readiness)
        } else {
            readiness
        };
        let mut news = 0;
        if readiness.intersects(Readiness::READABLE | hangup) && bits & OWNED == 0 {
            news |= READABLE;
            if readiness.contains(Readiness::PRIORITY) {
                news |= URGENT;
            }
            shared.touch();
        }
        if readiness.intersects(hangup) {
            news |= PEER_CLOSED;
        }
        if Self::is_gone(bits, readiness) {
            news |= HUNG_UP;
        }
        if readiness.contains(Readiness::WRITABLE) {
            news |= WRITABLE;
        }
        if readiness.contains(Readiness::TIMER) {
            news |= self.alarms(budget);
        }
        let (before, taken) = if bits & OWNED != 0 {
            (shared.word.set(news), false)
        } else {
            shared.word.post(news)
        };
        let more = self.tell(before, news);
        if readiness.contains(Readiness::TIMER) {
            shared.arm();
        }
        let taken = taken || (bits & OWNED != 0 && self.take_if_due(before | news));
        let progress = if taken {
            if before & DRAIN != 0 {
                self.part_if_idle();
            }
            if shared.context.runner.is_exhausted() && self.is_ending() {
                // The end does not wait for a thread that handlers may hold.
                budget.request_run();
                Progress::Drained
            } else {
                self.place(budget)
            }
        } else {
            Progress::Drained
        };
        if more { Progress::Yield } else { progress }
    }

    /// Adds the peer's end to what is reported of a connection in its owner's hands. `mio` shows
    /// `EPOLLRDHUP` only beside `EPOLLIN`, which is not asked for there, so an event that comes with room for
    /// output hides it: the system is asked.
    #[cold]
    fn with_end(&self, readiness: Readiness) -> Readiness {
        let end = Readiness::READ_CLOSED | Readiness::WRITE_CLOSED | Readiness::ERROR;
        if !readiness.contains(Readiness::WRITABLE) || readiness.intersects(end) {
            return readiness;
        }
        let end = poller::wait_ready(self.fd(), Interest::HANGUP, Some(Instant::now()));
        readiness | end.unwrap_or(Readiness::EMPTY)
    }

    /// Takes a connection whose end is due out of its owner's hands. `true`: the owner's role is ours.
    #[cold]
    fn take_if_due(&self, bits: u32) -> bool {
        let shared = &self.shared;
        if bits & (PEER_CLOSED | BROKEN | ABORT | CLOSE) == 0 {
            return false;
        }
        if shared.tell_keeper() {
            // A pool lets go by itself of what it keeps, and has this looked at again if that is on loan.
            return false;
        }
        if bits & (ABORT | CLOSE) != 0 {
            return shared.take_over();
        }
        let Some(reason) = self.end_due(bits) else {
            return false;
        };
        // Not before: a new handler that gets the connection meanwhile sees the end by itself.
        let taken = shared.take_over();
        if taken {
            shared.close_with(reason);
        }
        taken
    }

    /// Why a connection in its owner's hands ends now, if it does. What the peer sent before its end is
    /// read first. After a FIN the owner may still send: it has a while to begin, and more as long as it
    /// goes on.
    fn end_due(&self, bits: u32) -> Option<CloseReason> {
        let shared = &self.shared;
        let kind = match self.peek_state() {
            Peek::Data => {
                shared.look_at_end_again();
                return None;
            }
            Peek::Err(kind) => kind,
            _ if bits & BROKEN != 0 => io::ErrorKind::BrokenPipe,
            _ if bits & HUNG_UP != 0 => match self.take_error() {
                Ok(Some(error)) => error.kind(),
                _ => return Some(CloseReason::Peer),
            },
            _ if shared.may_still_send() || !shared.is_quiet() => return None,
            _ => return Some(CloseReason::Peer),
        };
        let reason = CloseReason::Error(kind);
        shared.aside.lock().decide(reason);
        shared.word.set(BROKEN);
        Some(reason)
    }

    /// Tells whoever waits for the news. `true`: more is queued than one turn sends.
    fn tell(&self, before: u32, news: u32) -> bool {
        let shared = &self.shared;
        if before & READ_WAIT != 0 {
            shared.notify(For::Input);
        }
        if before & PIPED != 0 && news & WRITABLE != 0 {
            shared.word.clear(PIPED);
            process::write_complete(shared);
        }
        before & QUEUED != 0 && news & WRITABLE != 0 && self.drive()
    }

    /// Has the owner run, whose role was taken for it.
    #[inline]
    fn place(&self, budget: &mut Budget<'_>) -> Progress {
        let shared = &self.shared;
        if shared.context.runner.place(shared, budget) == Placed::Elsewhere {
            return Progress::Drained;
        }
        let progress = process::run(shared);
        if progress == Progress::Yield {
            // The next round takes the role anew.
            shared.word.set(READABLE);
            shared.word.release();
        }
        progress
    }

    /// The loop drains, and the owner's role is ours: the output of an idle connection ends now. So its
    /// peer need not wait for a thread that calls its callbacks.
    #[cold]
    fn part_if_idle(&self) {
        let shared = &self.shared;
        let Some(owner) = shared.owner.take() else {
            return;
        };
        if owner.is_idle() && self.peek_state() == Peek::Empty {
            shared.end_output(CloseReason::Shutdown, self);
        }
        shared.owner.put(owner);
    }

    /// Whether the peer is gone in both directions: reset, or closed. After the end of input no
    /// receive would tell.
    fn is_gone(bits: u32, readiness: Readiness) -> bool {
        readiness.contains(Readiness::ERROR)
            // Not if it was this side that ended the output.
            || (readiness.contains(Readiness::WRITE_CLOSED) && bits & (WRITE_SHUT | SEALED) == 0)
    }
}

impl Deref for ConnectionOperator {
    type Target = Socket;

    #[inline]
    fn deref(&self) -> &Socket {
        &self.socket
    }
}

impl Operator for ConnectionOperator {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    #[inline]
    fn on_ready(&self, readiness: Readiness, budget: &mut Budget<'_>) -> Progress {
        let shared = &self.shared;
        let bits = shared.word.load();
        // What is reported of a connection at rest, for whom nobody waits, is a turn of its owner.
        if let Some(news) = Self::request(readiness) {
            if shared.word.begin_turn(bits, news) {
                shared.touch();
                return self.place(budget);
            }
        }
        self.look_closer(bits, readiness, budget)
    }

    fn id(&self) -> u64 {
        self.shared.id
    }

    fn is_brief(&self) -> bool {
        self.shared.word.has(BRIEF)
    }

    fn is_ending(&self) -> bool {
        let shared = &self.shared;
        let bits = shared.word.load();
        if bits & CONNECTED == 0 || bits & OWNED != 0 {
            return false;
        }
        let half_open = shared.context.limits.half_open;
        let due = ABORT | CLOSE | BROKEN | if half_open { 0 } else { PEER_CLOSED };
        // What came before the end is for the handler.
        bits & ABORT != 0 || (bits & due != 0 && self.peek_state() != Peek::Data)
    }

    fn run(&self) -> Progress {
        process::take_turn(&self.shared);
        Progress::Drained
    }

    fn on_detached(&self) {
        let shared = &self.shared;
        if !shared.word.has(CLOSED) {
            // The poller goes away under a live connection.
            shared.fail(CloseReason::Poller);
            if shared.take_over() || shared.word.acquire() {
                process::take_turn(shared);
            }
        }
        shared.context.connections.remove(shared);
    }
}

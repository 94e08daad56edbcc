//! The way in: the owner reads its own socket.
//!
//! The poller reports that there is something, the thread that runs the connection receives it
//! straight into the connection's private buffer. So nothing is locked or handed over between
//! the kernel and the handler, a slow handler reads nothing (the TCP window closes behind it),
//! and blocking clients need no other thread.

mod receive;

use super::{
    operator::Wire,
    output::add,
    patience::Patience,
    shared::{For, Shared, Waited},
    spare,
    state::{BROKEN, OWNED, PEER_CLOSED, READABLE, URGENT},
};
use crate::{
    error::{CloseReason, Error},
    memory::Charge,
    sync::Ordering,
};
use linkbuffer::{LinkBuffer, netpoll_only::NetpollBuffer as _};
use std::{io, sync::Arc, time::Instant};

/// What small messages are received into.
const SCRATCH: usize = spare::ROOM;
/// From this many missing bytes on a message gets a chunk of its own.
const LANDING: usize = 16 << 10;
/// So few bytes of a message are moved out of the room made for it while the rest is not there.
const LITTLE: usize = 4096;
/// Receives per turn, so that one busy connection does not starve the others.
const TURN_READS: u32 = 16;

/// The receiving side of a connection.
#[derive(Debug)]
pub(crate) struct Rx {
    pub(crate) shared: Arc<Shared>,
    pub(crate) socket: Arc<Wire>,
    buffer: Option<Box<LinkBuffer>>,
    /// The kernel may hold input that was not received yet.
    pub(crate) readable: bool,
    /// There may be urgent data among that: a receive that it cut says nothing about what is behind it.
    pub(crate) urgent: bool,
    /// The last receive ended below its room, and nothing but that count says that the queue is empty.
    unproven: bool,
    /// So many receives of that kind are followed by one more. The first of a connection is.
    checks: u8,
    /// Nothing more will come.
    pub(crate) end: Option<End>,
    /// The handler is not run again before this many bytes are here.
    pub(crate) mark: usize,
    /// What was missing when that was asked for is a large part, so the mark is where a message ends. A few
    /// bytes more may be a guess: whoever asks does not know how long the message is.
    exact: bool,
    /// Bytes arrived since the handler last returned.
    pub(crate) fresh: bool,
    /// A wait for input was given up and nothing has come since: an answer may be on its way.
    pub(crate) owed: bool,
    /// A full chunk may be the begin of a large message: the handler is asked before more is
    /// received, so that the rest lands behind it.
    large: bool,
    /// The next receive may wait a little, in the place of a poll.
    patient: bool,
    /// More than zero: many small messages come at once. Counts down while they do not.
    bulk: u8,
    /// Receives of this turn.
    reads: u8,
    pub(crate) patience: Patience,
    charge: Charge,
    /// Up to this stream offset there is no such byte.
    scan_upto: u64,
    scan_for: u8,
}

/// How input ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer sent FIN.
    Eof,
    /// The socket failed.
    Failed(io::ErrorKind),
}

impl Rx {
    pub(crate) fn new(socket: &Arc<Wire>) -> Self {
        let shared = Arc::clone(&socket.shared);
        Self {
            shared,
            socket: Arc::clone(socket),
            buffer: None,
            readable: false,
            urgent: false,
            unproven: false,
            checks: 1,
            end: None,
            mark: 0,
            exact: false,
            fresh: false,
            owed: false,
            large: true,
            patient: false,
            bulk: 0,
            reads: 0,
            patience: Patience::default(),
            charge: Charge::default(),
            scan_upto: 0,
            scan_for: 0,
        }
    }

    #[inline]
    pub(crate) fn buffer(&mut self) -> &mut LinkBuffer {
        self.buffer.get_or_insert_with(spare::plain)
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.buffer.as_ref().map_or(0, |buffer| buffer.len())
    }

    /// The buffer as output, if these `n` bytes are all that is in it and lie in one piece.
    #[inline]
    pub(crate) fn give_up(&mut self, n: usize) -> Option<Box<LinkBuffer>> {
        let buffer = self.buffer.as_mut()?;
        if buffer.len() == n && buffer.make_unflushed() {
            self.buffer.take()
        } else {
            None
        }
    }

    /// What arrived and was not consumed.
    pub(crate) fn take(&mut self) -> LinkBuffer {
        self.buffer
            .take()
            .map_or_else(LinkBuffer::new, |mut buffer| buffer.take_filled())
    }

    /// Gives back what an idle connection does not need: the buffer if it is empty, otherwise
    /// the part of its chunks that a small rest would keep.
    #[inline]
    pub(crate) fn settle(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            if buffer.is_empty() {
                spare::put_input(buffer);
            } else {
                self.buffer = Some(self.settled(buffer));
            }
        }
        self.weigh();
    }

    /// Charges the connection for what is here.
    #[inline]
    fn weigh(&mut self) {
        let kept = self.buffer.as_ref().filter(|buffer| !buffer.is_empty());
        let delta = self.charge.follow(kept.map_or(0, |buffer| buffer.pinned()));
        self.shared.weigh(delta);
    }

    #[inline(never)]
    fn settled(&self, mut buffer: Box<LinkBuffer>) -> Box<LinkBuffer> {
        let missing = self.mark.saturating_sub(buffer.len());
        // A large message goes on where its room is, which may be made in steps.
        let large = missing > LANDING || (missing > 0 && buffer.len() > LANDING);
        let (room, scratch) = (buffer.spare_capacity(), is_scratch(&buffer));
        let landing = large && (room >= missing || (room > 0 && !scratch));
        if landing && buffer.len() > LITTLE {
            return buffer;
        }
        if scratch && !landing {
            // The thread goes on with the room behind it.
            let mut rest = spare::plain();
            *rest = buffer.take_filled();
            spare::put_input(std::mem::replace(&mut buffer, rest));
        }
        buffer.compact();
        buffer
    }

    /// Nothing can be read through this value any more.
    pub(crate) fn spend(&mut self) {
        self.readable = false;
        self.end = Some(End::Failed(io::ErrorKind::NotConnected));
    }

    /// A turn begins: takes over what the poller learned.
    pub(crate) fn note(&mut self, bits: u32) {
        self.reads = 0;
        if bits & READABLE != 0 {
            self.readable = true;
            // What comes now may be new.
            self.unproven = false;
        }
        self.urgent |= bits & URGENT != 0;
    }

    /// When a call that begins to wait now gives up.
    fn until(&self) -> Option<Instant> {
        self.patience.until(self.shared.context.limits.read_timeout)
    }

    /// Waits until `n` bytes are here.
    #[inline]
    pub(crate) fn fill(&mut self, n: usize) -> io::Result<()> {
        if self.len() >= n {
            return Ok(());
        }
        self.fill_by(n, &mut None)
    }

    /// As [`Self::fill`], for a call that may wait more than once: the first wait notes in `until`
    /// when all of them end.
    #[inline(never)]
    pub(crate) fn fill_by(
        &mut self,
        n: usize,
        until: &mut Option<Option<Instant>>,
    ) -> io::Result<()> {
        self.wanted(n)?;
        let filled = self.wait_filled(n, until);
        // Fulfilled or given up: this call's wish says nothing about when to run the handler.
        self.mark = 0;
        filled
    }

    fn wait_filled(&mut self, n: usize, until: &mut Option<Option<Instant>>) -> io::Result<()> {
        let mut last_look = false;
        loop {
            self.check_open()?;
            self.refresh();
            self.receive(n);
            if self.len() >= n {
                return Ok(());
            }
            self.check_end(n)?;
            if !self.readable || self.shared.is_heavy() {
                if last_look {
                    return Err(self.shared.closed_error());
                }
                if self.shared.word.has(BROKEN) {
                    // What came before the failure is read first.
                    last_look = true;
                    self.readable = true;
                    continue;
                }
                let deadline = *until.get_or_insert_with(|| self.until());
                self.wait_input(deadline)?;
            }
        }
    }

    /// As [`Self::fill`] without waiting: `false` remembers `n` as the wake-up mark.
    #[inline]
    pub(crate) fn try_fill(&mut self, n: usize) -> io::Result<bool> {
        if self.len() >= n {
            return Ok(true);
        }
        self.try_fill_up(n)
    }

    #[inline(never)]
    fn try_fill_up(&mut self, n: usize) -> io::Result<bool> {
        self.wanted(n)?;
        self.check_open()?;
        self.refresh();
        // The poller does not tell the user's own connection that there is more: it has to look.
        let looks = self.shared.word.has(OWNED);
        if !looks && self.turn_is_over() {
            self.check_end(n)?;
            return Ok(false);
        }
        loop {
            self.readable |= looks;
            let before = self.len();
            self.receive(n);
            if self.len() >= n {
                self.mark = 0;
                return Ok(true);
            }
            // Nor does it tell what ended this receive, see `Received`.
            if !looks || self.len() == before {
                break;
            }
        }
        if self.len() == 0 && self.end == Some(End::Eof) && self.check_open().is_ok() {
            // The end between two messages: nothing is missing, and nothing more will come.
            return Ok(false);
        }
        self.check_end(n)?;
        Ok(false)
    }

    /// Whether others have their turn before more is received: a handler that goes on as long as
    /// something comes would keep its thread. `readable` brings it back. Said once, so that one that
    /// asks nevertheless gets the next share.
    fn turn_is_over(&mut self) -> bool {
        let over = self.readable && self.end.is_none() && u32::from(self.reads) >= TURN_READS;
        if over {
            self.reads = 0;
        }
        over
    }

    /// How much of what is here is known not to hold `delim`.
    pub(crate) fn scanned(&self, delim: u8) -> usize {
        if self.scan_for == delim {
            self.scan_upto.saturating_sub(self.consumed()) as usize
        } else {
            0
        }
    }

    /// Remembers that the first `scanned` bytes do not hold `delim`.
    pub(crate) fn remember(&mut self, delim: u8, scanned: usize) {
        self.scan_for = delim;
        self.scan_upto = self.consumed() + scanned as u64;
    }

    /// The stream offset of the next byte to be read.
    pub(super) fn consumed(&self) -> u64 {
        self.shared.bytes_in.load(Ordering::Relaxed) - self.len() as u64
    }

    /// Records the wish for `n` bytes: it is the wake-up mark and sizes the next chunk.
    fn wanted(&mut self, n: usize) -> io::Result<()> {
        let limit = self.shared.context.limits.max_input;
        if n > limit {
            return Err(Error::InputLimit { wanted: n, limit }.into());
        }
        self.mark = n;
        self.exact = n - self.len() > LANDING;
        self.large |= n > SCRATCH;
        Ok(())
    }

    /// Waits until more is here than now.
    pub(crate) fn fill_more(&mut self) -> io::Result<()> {
        self.fill_by(self.len().saturating_add(1), &mut None)
    }

    /// As [`Self::fill_more`] without waiting.
    pub(crate) fn try_fill_more(&mut self) -> io::Result<bool> {
        self.try_fill_up(self.len().saturating_add(1))
    }

    fn refresh(&mut self) {
        let word = &self.shared.word;
        if word.has(READABLE) {
            let news = word.clear(READABLE | URGENT);
            self.readable = true;
            self.unproven = false;
            self.urgent |= news & URGENT != 0;
        }
    }

    /// Nothing more is received on a connection that we have closed, however much there is: a peer
    /// that never pauses would keep its reader for ever.
    fn check_open(&mut self) -> io::Result<()> {
        if self.shared.word.ended() {
            if !self.is_over_by_peer() {
                return Err(self.shared.closed_error());
            }
            // The poller ended it when all was received.
            self.end.get_or_insert(End::Eof);
        }
        Ok(())
    }

    /// Whether the poller closed the connection because its peer has ended: to the owner that is the
    /// end of input. The poller decides the reason first and takes the owner's role afterwards.
    fn is_over_by_peer(&self) -> bool {
        self.shared.aside.lock().reason() == Some(CloseReason::Peer)
    }

    fn check_end(&mut self, wanted: usize) -> io::Result<()> {
        self.check_open()?;
        match self.end {
            None => Ok(()),
            Some(End::Eof) => Err(Error::PeerClosed {
                wanted,
                available: self.len(),
            }
            .into()),
            Some(End::Failed(kind)) => Err(Error::Closed(CloseReason::Error(kind)).into()),
        }
    }

    fn wait_input(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        if poller::is_polling_thread() || self.shared.is_unwatched() {
            return Err(Error::WouldDeadlock.into());
        }
        self.weigh();
        let shared = &self.shared;
        let owned = shared.word.has(OWNED);
        let waited = if owned && !shared.is_heavy() {
            // Our own descriptor: no other thread takes part. Room for a large message is made when its
            // begin is here, so that is polled for.
            let left = || deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let missing = self.mark.saturating_sub(self.len());
            if !self.lands(missing) && self.socket.may_wait(left()) {
                poller::before_blocking();
                self.patient = true;
                self.readable = true;
                return Ok(());
            }
            shared.wait_descriptor(&self.socket, deadline)?
        } else {
            let look = owned || self.readable;
            shared.wait(For::Input, deadline, || {
                let readable = look || shared.word.has(READABLE);
                (readable && !shared.is_heavy()) || shared.word.has(BROKEN) || shared.word.ended()
            })
        };
        match waited {
            Waited::Ready => {
                self.readable = true;
                Ok(())
            }
            Waited::Ended => {
                shared.close_with(CloseReason::Overload);
                Err(Error::Overloaded.into())
            }
            given_up => {
                self.owed = true;
                Err(given_up.read_error().into())
            }
        }
    }

    /// Counts input that was moved past the buffer.
    pub(crate) fn count(&self, n: usize) {
        add(&self.shared.bytes_in, n);
    }

    pub(crate) fn finish(&mut self, end: End) {
        self.readable = false;
        self.end = Some(end);
        if self.shared.word.set(PEER_CLOSED) & OWNED != 0 {
            if let End::Failed(kind) = end {
                // To its owner this was the end of all.
                self.shared.fail(CloseReason::Error(kind));
            }
        }
    }
}

/// Whether what is here lies in a chunk for small messages that has room for more of them.
fn is_scratch(buffer: &LinkBuffer) -> bool {
    buffer.spare_capacity() >= SCRATCH / 4 && buffer.memory_size() <= SCRATCH
}

impl Drop for Rx {
    fn drop(&mut self) {
        if let Some(mut buffer) = self.buffer.take() {
            if !buffer.is_empty() {
                buffer.take_all();
            }
            spare::put_input(buffer);
        }
        self.weigh();
    }
}

//! Receives: how many, and into which memory.
//!
//! A message that comes as a whole is received into the chunk of the buffer that the thread lends
//! (`spare`), and leaves with that chunk when it is passed on: nothing is copied, cut off or counted.
//! What stays longer than the turn is cut off, and the thread keeps the rest of the chunk.
//! Connections in the user's own hands keep their buffers; they receive into the thread's scratch
//! chunk, of which only the filled part is handed out.
//!
//! A connection that fills such a chunk, with many messages at once, gets a larger one: one receive
//! instead of several, and no message across the end of a chunk. A message of known size is received
//! into one chunk of its own, to its end and no further. Where a chunk was filled and the connection's
//! messages are large, the handler is asked first how long this one is, so that what follows lands
//! behind the part that is moved for it. A handler that does not know the length asks for a little more each
//! time: then the receive takes as much as comes, and not that little.

use std::{cell::RefCell, io, thread::LocalKey};

use bytes::BytesMut;
use linkbuffer::ChunkPool;

use super::{
    super::{
        output::add,
        spare,
        state::{OWNED, PEER_CLOSED},
    },
    End, LANDING, Rx, SCRATCH, TURN_READS, is_scratch,
};
use crate::net::Received;

/// The same for a connection on which many of them come at once.
const BULK: usize = 256 << 10;
/// Receives in a row that would have fitted into the small chunk before that one is used again.
const BULK_ENDS: u8 = 8;
/// The largest room made for a message before any of it has arrived.
const TRUST: usize = 1 << 20;
/// How often a receive below its room is followed by another one, after one that was cut for no reason that
/// the kernel tells.
const CHECKS: u8 = 16;

thread_local! {
    static CHUNK: RefCell<BytesMut> = RefCell::new(BytesMut::new());
    static BULK_CHUNK: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

impl Rx {
    /// Receives until `target` bytes are here, the kernel has no more, or the turn's share is
    /// used up; in the last case `readable` stays set.
    pub(crate) fn receive(&mut self, target: usize) {
        if !self.readable || self.end.is_some() || self.shared.is_heavy() {
            return;
        }
        // Buffers of the user's own connections are kept, those of others wait for another round when
        // the peer is gone: they need not keep a chunk meanwhile.
        let empty = match &self.buffer {
            None => target > 0,
            Some(buffer) => buffer.is_empty() && target > 0,
        };
        let usual = empty
            && self.mark <= LANDING
            && self.bulk == 0
            && !self.patient
            && !self.shared.word.has(OWNED | PEER_CLOSED);
        if usual {
            self.receive_usual(target);
        } else {
            self.receive_more(target, 0);
        }
    }

    /// A message that comes as a whole, while nothing else is here: into the chunk that the thread's
    /// buffer has for this, where it stays until it is gone.
    #[inline(always)]
    fn receive_usual(&mut self, target: usize) {
        self.reads = self.reads.saturating_add(1);
        let socket = &self.socket;
        if let Some(buffer) = &mut self.buffer {
            spare::refit(buffer);
        }
        let buffer = self.buffer.get_or_insert_with(spare::input);
        match buffer.recv_with(SCRATCH, |chunk| socket.recv_into(chunk)) {
            Ok(Received { n, filled, more }) if n > 0 => {
                self.fresh = true;
                self.owed = false;
                add(&self.shared.bytes_in, n);
                self.note_doubt();
                if self.has_emptied(more) {
                    self.readable = false;
                } else if self.mark > 0 || !self.asks_first(n, filled) {
                    self.receive_more(target, 1);
                }
            }
            nothing => self.receive_failed(nothing),
        }
    }

    /// As [`Self::receive`] behind input that was not consumed; this turn has made `reads` receives.
    #[inline(never)]
    fn receive_more(&mut self, target: usize, mut reads: u32) {
        while self.readable
            && self.end.is_none()
            && self.len() < target
            && reads < TURN_READS
            && !self.shared.is_heavy()
        {
            reads += 1;
            self.reads = self.reads.saturating_add(1);
            let missing = self.mark.saturating_sub(self.len());
            let received = if self.lands(missing) {
                self.receive_landing(missing)
            } else if self.bulk > 0 && target.saturating_sub(self.len()) >= BULK {
                self.receive_scratch(BULK)
            } else {
                self.receive_scratch(SCRATCH)
            };
            if let Some(Received { n, filled, more }) = self.note_received(received) {
                if missing == 0 && self.asks_first(n, filled) {
                    return;
                }
                if self.has_emptied(more) {
                    self.readable = false;
                }
            }
        }
    }

    /// Whether the kernel has nothing after a receive that says so or not: a hang-up may hide behind it,
    /// and what is behind urgent data.
    #[inline]
    fn has_emptied(&mut self, more: bool) -> bool {
        let bits = self.shared.word.load();
        self.unproven = !more && !self.urgent && bits & PEER_CLOSED == 0;
        // A call of the owner's looks at the queue before it waits, and whenever it is made.
        self.unproven && (self.checks == 0 || bits & OWNED != 0)
    }

    /// Bytes came. If the count of the receive before said that there were none, the next ones are not
    /// believed either.
    #[inline]
    fn note_doubt(&mut self) {
        if std::mem::take(&mut self.unproven) {
            self.checks = CHECKS;
        }
    }

    /// Whether a part of a message is here and one more receive is due: what cut the message may be a receive
    /// that was cut, as a tracer of the process can do, and no event tells of the rest.
    pub(crate) fn doubts(&mut self, pause_at: usize) -> bool {
        let part = 1..pause_at.max(self.mark);
        let doubts =
            self.unproven && !self.readable && self.end.is_none() && part.contains(&self.len());
        self.readable |= doubts;
        doubts
    }

    /// Whether what is missing gets a chunk of its own, or belongs into one.
    pub(super) fn lands(&self, missing: usize) -> bool {
        (missing > LANDING && self.may_grow()) || self.is_landing(missing)
    }

    /// Whether the loop's memory has room for a chunk of twice what is here, which counts as held although it
    /// is not filled.
    fn may_grow(&self) -> bool {
        self.shared.context.memory.room() / 4 >= TRUST.max(self.len())
    }

    /// Whether what is missing of a large message belongs into the chunk made for it. If that is a guess
    /// there is room for a good deal more, or it is not worth a receive.
    fn is_landing(&self, missing: usize) -> bool {
        let room = if self.exact { missing } else { LANDING };
        let landed = self.buffer.as_ref().filter(|input| input.len() > LANDING);
        missing > 0 && landed.is_some_and(|input| input.spare_capacity() >= room)
    }

    fn receive_landing(&mut self, missing: usize) -> io::Result<Received> {
        let landed = self.len();
        let most = if self.may_grow() {
            TRUST.max(landed)
        } else {
            LANDING
        };
        let room = missing.min(most);
        let buffer = self.buffer.get_or_insert_with(spare::plain);
        let mut chunk = buffer.try_reserve_recv(room)?;
        let spare = chunk.capacity() - chunk.len();
        // No part of the message behind a large one: it would have to be moved.
        let offered = if self.mark > SCRATCH && self.exact {
            missing.min(spare)
        } else {
            let limit = self.shared.context.limits.max_input;
            spare
                .min(TRUST)
                .min(limit.saturating_sub(landed).max(missing))
        };
        let received = self.socket.recv_at_most(&mut chunk, offered);
        buffer.commit_recv(chunk);
        received
    }

    /// Nothing came, so the buffer is not needed.
    #[inline(never)]
    fn receive_failed(&mut self, received: io::Result<Received>) {
        self.note_received(received);
        self.settle();
    }

    /// Takes down what a receive brought, if it brought something.
    fn note_received(&mut self, received: io::Result<Received>) -> Option<Received> {
        match received {
            Ok(Received { n: 0, .. }) => self.finish(End::Eof),
            Ok(received) => {
                self.fresh = true;
                self.owed = false;
                add(&self.shared.bytes_in, received.n);
                self.note_doubt();
                if self
                    .charge
                    .is_behind(self.len(), &self.shared.context.memory)
                {
                    self.weigh();
                }
                if self.shared.word.has(OWNED) {
                    // Of others the poller knows.
                    self.shared.touch();
                }
                return Some(received);
            }
            // At urgent data the kernel says so too if a signal is pending: then it is asked again.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.readable = std::mem::take(&mut self.urgent);
                if std::mem::take(&mut self.unproven) {
                    self.checks = self.checks.saturating_sub(1);
                }
            }
            Err(e) => self.finish(End::Failed(e.kind())),
        }
        None
    }

    /// A receive of messages of unknown size brought `n` bytes. `true`: the handler is to say first
    /// whether it is the begin of a large one.
    fn asks_first(&mut self, n: usize, filled: bool) -> bool {
        if filled && std::mem::take(&mut self.large) {
            return true;
        }
        if filled || n > SCRATCH {
            self.bulk = BULK_ENDS;
        } else if self.bulk > 0 {
            self.bulk -= 1;
        }
        false
    }

    /// Receives into the thread's scratch chunk, which has that size, or behind what is in such a chunk.
    fn receive_scratch(&mut self, size: usize) -> io::Result<Received> {
        if let Some(buffer) = &mut self.buffer {
            if buffer.is_empty() {
                // What was consumed to the end holds the chunk no longer than necessary.
                buffer.release();
            } else if !self.patient && size == SCRATCH && is_scratch(buffer) {
                let socket = &self.socket;
                return buffer.recv_with(SCRATCH / 4, |chunk| socket.recv_into(chunk));
            }
        }
        if size == SCRATCH {
            self.receive_pooled(&CHUNK, SCRATCH)
        } else {
            self.receive_bulk()
        }
    }

    #[inline(never)]
    fn receive_bulk(&mut self) -> io::Result<Received> {
        self.receive_pooled(&BULK_CHUNK, BULK)
    }

    /// Receives into the thread's chunk. A thread that ends may have none any more.
    #[inline(always)]
    fn receive_pooled(
        &mut self,
        of: &'static LocalKey<RefCell<BytesMut>>,
        size: usize,
    ) -> io::Result<Received> {
        of.try_with(|chunk| self.receive_piece(&mut chunk.borrow_mut(), size))
            .unwrap_or_else(|_| self.receive_piece(&mut BytesMut::new(), size))
    }

    #[inline(always)]
    fn receive_piece(&mut self, chunk: &mut BytesMut, size: usize) -> io::Result<Received> {
        // A chunk without views goes back to its start, which keeps it in the cache.
        if !chunk.try_reclaim(size) {
            ChunkPool::global().reserve(chunk, size / 4, size);
        }
        let received = if std::mem::take(&mut self.patient) {
            self.socket.recv_waiting(chunk)?
        } else {
            self.socket.recv_into(chunk)?
        };
        if received.n > 0 {
            self.buffer
                .get_or_insert_with(spare::plain)
                .push_filled(chunk);
        }
        Ok(received)
    }
}

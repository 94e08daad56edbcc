//! Output that goes out without a flush: what was written through `io::Write`.
//!
//! Users of that trait expect that what they write is sent soon, and much of what uses it, `io::copy` for
//! one, never flushes. So a write that finds the write buffer full sends it first, and what is in it goes
//! out at the latest when the callback returns, when a reading call of the same connection has to wait, and
//! when the connection is dropped or closed in order.
//!
//! The writing operations of [`Writer`] promise the opposite: nothing is sent before a flush. The two meet
//! in the order of the bytes. What goes out ends with the last write through `io::Write`
//! ([`Tx::streamed`]): what was written before it goes with it, what was written behind it waits for its
//! flush. Room that was lent, a slot or a `malloc`, may still be filled or cut, so nothing that is written
//! behind it goes out by itself before the next flush.

use super::{
    Connection,
    input::Rx,
    limits::Manner,
    state::{ABORT, BROKEN, CLOSE, CLOSED, POISONED, SEALED, WRITE_SHUT},
    tx::Tx,
};
use crate::{error::Error, trace};
use linkbuffer::{LinkBuffer, Writer, netpoll_only::NetpollBuffer as _};
use std::{cell::Cell, io};

thread_local! {
    /// The connection of which this thread has read all that is here, through `io::Read`, since it last
    /// wrote through `io::Write`.
    static DRY: Cell<u64> = const { Cell::new(NONE) };
}

const NONE: u64 = 0;
/// A half was read: the other one may be written on the same thread.
const HALF: u64 = u64::MAX;

impl Rx {
    /// Notes for the next write of this thread whether it has read all there is, so that `io::copy` from
    /// one connection to another, or from half to half, passes on what comes before it waits for more.
    pub(super) fn note_read(&self, half: bool) {
        let id = match self.len() {
            0 if half => HALF,
            0 => self.shared.id,
            _ => NONE,
        };
        let _ = DRY.try_with(|dry| dry.set(id));
    }
}

impl Tx {
    /// [`io::Write::write`]. `half`: this is one of two values for a connection.
    pub(super) fn stream(&mut self, data: &[u8], half: bool) -> io::Result<usize> {
        let dry = DRY.try_with(|dry| dry.replace(NONE)).unwrap_or(NONE);
        // The thread is about to wait for input.
        let now = !self.reserved && dry != NONE && (half || dry != self.shared.id);
        let bound = self.shared.output_limits().write_buffer;
        let pending = self.pending();
        let full = !self.reserved && pending > 0 && pending >= bound;
        // What fails, fails before anything is taken.
        if full || (now && self.shared.outbox.queued() > bound) || !self.has_room(data.len()) {
            self.flush()?;
        }
        let data = &data[..data.len().min(self.limit())];
        Writer::write_slice(self.room(data.len())?, data)?;
        if self.reserved {
            return Ok(data.len());
        }
        self.streamed = self.pending();
        if now {
            match self.try_flush() {
                // It is taken, and sent when there is room.
                Err(e) if matches!(Error::from_io(&e), Some(Error::OutputFull { .. })) => {}
                sent => drop(sent?),
            }
        }
        Ok(data.len())
    }

    /// Cuts unflushed output off.
    pub(super) fn cut(&mut self, n: usize) -> io::Result<()> {
        Writer::malloc_ack(self.buffer()?, n)?;
        self.streamed = self.streamed.min(self.pending());
        Ok(())
    }

    /// Inserts before the last `remain` unflushed bytes.
    pub(super) fn insert(&mut self, data: bytes::Bytes, remain: usize) -> io::Result<()> {
        let n = data.len();
        let before = self.pending().saturating_sub(remain);
        Writer::write_direct(self.room_for_link(n)?, data, remain)?;
        if before < self.streamed {
            self.streamed += n;
        }
        Ok(())
    }

    /// Whether something is to go out without a flush.
    #[inline]
    pub(super) fn has_streamed(&self) -> bool {
        self.streamed > 0
    }

    /// Submits what was written through `io::Write`, as a flush does.
    #[cold]
    pub(super) fn send_streamed(&mut self) -> io::Result<()> {
        if self.streamed == 0 {
            return Ok(());
        }
        if self.streamed >= self.pending() {
            return self.flush();
        }
        self.check()?;
        let Some(mut first) = self.take_streamed() else {
            return Ok(());
        };
        let sent = self.shared.submit(
            &self.socket,
            &mut first,
            &self.patience,
            Manner::WithWait,
            self.sender(),
        );
        if sent.is_err() {
            self.streamed = first.len();
            self.raw_buffer().push_front(first);
        }
        sent?;
        self.wait_or_gate()
    }

    /// A callback returned. Whether it did so in order decides what a close that was asked for meanwhile
    /// means: the end behind what was written, or in the middle of it.
    #[cold]
    pub(super) fn end_callback(&mut self, result: io::Result<()>) -> io::Result<()> {
        let closing = self.shared.word.has(CLOSE);
        match result {
            Ok(()) if !closing => self.send_streamed(),
            Err(_) if closing => result,
            _ => {
                self.send_last();
                result
            }
        }
    }

    /// Hands over what was written through `io::Write` on a connection that ends, and never waits. What the
    /// kernel does not take is sent while the connection lingers.
    pub(super) fn send_last(&mut self) {
        let over = ABORT | BROKEN | CLOSED | POISONED | WRITE_SHUT | SEALED;
        if self.streamed == 0 || self.spent || self.shared.word.has(over) {
            return;
        }
        if self.shared.context.group.is_inherited() {
            // The connection is another process's.
            return;
        }
        let Some(mut last) = self.take_streamed() else {
            return;
        };
        if let Err(error) = self.shared.push_last(&self.socket, &mut last) {
            trace::debug!("connection {}: last words: {error}", self.shared.id);
        }
    }

    /// What was written through `io::Write`, out of the buffer.
    fn take_streamed(&mut self) -> Option<LinkBuffer> {
        let n = std::mem::take(&mut self.streamed);
        let buffer = self.buffer.as_mut()?;
        buffer.flush_first(n.saturating_sub(buffer.len()));
        // A flush that was refused left more, which waits for another.
        buffer.slice(n.min(buffer.len())).ok()
    }
}

impl Connection {
    /// Before a reading call that may have to wait: the peer may wait for what was written.
    #[inline]
    pub(super) fn before(&mut self, here: impl FnOnce(&mut Rx) -> bool) -> io::Result<()> {
        if self.tx.has_streamed() && !here(&mut self.rx) {
            self.tx.send_streamed()?;
        }
        Ok(())
    }

    /// A reading call that never waits found too little: its owner asks again, and the peer may wait. A
    /// callback sends when it returns.
    #[inline]
    pub(super) fn unfulfilled(&mut self) {
        if self.tx.has_streamed() && self.tx.is_owned() && !self.tx.shared.word.has(CLOSE) {
            self.tx.send_last();
        }
    }
}

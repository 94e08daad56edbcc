//! Writing operations, once for a connection and for its write halves.

use super::{output::Sent, shared::For, tx::Tx};
use crate::error::Error;
use linkbuffer::Writer;
use std::io::{self, IoSlice};

impl Tx {
    /// One vectored send of foreign slices, in order behind what was written before.
    pub(crate) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        let len: usize = slices.iter().map(|slice| slice.len()).sum();
        if len == 0 || self.direct(slices)? {
            return Ok(len);
        }
        let buffer = self.buffer()?;
        let before = buffer.malloc_len();
        for slice in slices {
            if let Err(error) = Writer::write_slice(buffer, slice) {
                // A part of it must not go out with what is written next.
                buffer.malloc_ack(before);
                return Err(error);
            }
        }
        let flushed = self.flush();
        self.done(flushed)?;
        Ok(len)
    }

    /// Sends straight from the caller's memory if nothing is before it; a connection of the caller's
    /// own waits until the kernel has all of it. `false`: something is before it.
    fn direct(&mut self, slices: &[IoSlice<'_>]) -> io::Result<bool> {
        if self.pending() > 0 {
            return Ok(false);
        }
        let shared = &self.shared;
        let line = shared.line(&self.socket);
        let Some((_, sent)) = shared.outbox.send_slices(&shared.word, &line, slices) else {
            return Ok(false);
        };
        if let Sent::Failed(_) = shared.settle_send(&self.socket, sent) {
            return Err(shared.closed_error());
        }
        let waited = self.wait_or_gate();
        self.done(waited)?;
        Ok(true)
    }

    /// The end of a write whose bytes are all taken: it must not fail because its wait was interrupted, or
    /// its caller would write them again. The next wait is interrupted instead.
    pub(super) fn done(&self, waited: io::Result<()>) -> io::Result<()> {
        match waited {
            Err(error) if Error::from_io(&error) == Some(Error::Interrupted) => {
                self.shared.keep_interrupt(For::Output);
                Ok(())
            }
            waited => waited,
        }
    }
}

/// The writing operations of a type with a field `tx`.
macro_rules! writing {
    () => {
        /// Room for `n` bytes behind what was written, zeroed and contiguous.
        ///
        /// # Errors
        ///
        /// As [`Self::write_slice`].
        pub fn malloc(&mut self, n: usize) -> io::Result<&mut [u8]> {
            Writer::malloc(self.tx.lend(n)?, n)
        }

        /// Keeps the first `n` unflushed bytes and drops the rest.
        ///
        /// # Errors
        ///
        /// `InvalidInput` if fewer than `n` bytes are unflushed; otherwise as
        /// [`Self::write_slice`].
        pub fn malloc_ack(&mut self, n: usize) -> io::Result<()> {
            self.tx.cut(n)
        }

        /// Bytes written and not flushed.
        pub fn malloc_len(&self) -> usize {
            self.tx.pending()
        }

        /// Writes a copy of `data`; nothing is sent before [`Self::flush`].
        ///
        /// # Errors
        ///
        /// [`Error::Closed`](crate::Error::Closed) on an ended connection,
        /// [`Error::Poisoned`](crate::Error::Poisoned) after a message was cut, `BrokenPipe`
        /// after the sending side was shut down, `OutOfMemory` if the allocator has no room for more
        /// than 1 MiB.
        pub fn write_slice(&mut self, data: &[u8]) -> io::Result<()> {
            Writer::write_slice(self.tx.room(data.len())?, data)
        }

        /// Writes `data`, linked without a copy from 4 KiB up.
        ///
        /// # Errors
        ///
        /// As [`Self::write_slice`].
        pub fn write_bytes(&mut self, data: Bytes) -> io::Result<()> {
            self.tx.room_for_link(data.len())?.write_bytes(data);
            Ok(())
        }

        /// Writes one byte.
        ///
        /// # Errors
        ///
        /// As [`Self::write_slice`].
        pub fn write_u8(&mut self, byte: u8) -> io::Result<()> {
            self.tx.room(1)?.write_u8(byte);
            Ok(())
        }

        /// Writes a copy of `text`.
        ///
        /// # Errors
        ///
        /// As [`Self::write_slice`].
        pub fn write_str(&mut self, text: &str) -> io::Result<()> {
            Writer::write_str(self.tx.room(text.len())?, text)
        }

        /// Links `data` in before the last `remain` unflushed bytes.
        ///
        /// # Errors
        ///
        /// `InvalidInput` if fewer than `remain` bytes are unflushed; otherwise as
        /// [`Self::write_slice`].
        pub fn write_direct(&mut self, data: Bytes, remain: usize) -> io::Result<()> {
            self.tx.insert(data, remain)
        }

        /// Links everything in `other`, flushed or not, behind what was written.
        ///
        /// # Errors
        ///
        /// As [`Self::write_slice`].
        pub fn append(&mut self, other: LinkBuffer) -> io::Result<()> {
            self.tx.room_for_link(other.total_len())?.append(other);
            Ok(())
        }

        /// Leaves room for `N` bytes that are known later, such as a length prefix.
        ///
        /// # Errors
        ///
        /// As [`Self::write_slice`].
        pub fn reserve_slot<const N: usize>(&mut self) -> io::Result<LengthSlot<N>> {
            Writer::reserve_slot(self.tx.lend(N)?)
        }

        /// Fills a slot of this connection's unflushed output.
        ///
        /// # Errors
        ///
        /// `InvalidInput` if the slot's place was flushed or cut away, or is in the output of another connection.
        /// Nothing is written then.
        pub fn fill_slot<const N: usize>(
            &mut self,
            slot: LengthSlot<N>,
            value: [u8; N],
        ) -> io::Result<()> {
            Writer::fill_slot(self.tx.raw_buffer(), slot, value)
        }

        /// Submits everything written: this thread sends what the socket takes, the rest is queued and
        /// the poller sends it when the socket has room.
        ///
        /// In a callback of a handler this returns as soon as the rest is queued. While more than the
        /// low mark is queued (64 KiB, or a fourth of the output limit if that is less) the connection
        /// is not read and its handler not called, so a peer that does not read its answers costs no
        /// thread. The call waits only where an earlier flush of the same callback has left more than
        /// the low mark in the queue and the rest does not fit the output limit, at most the write
        /// timeout. Use [`flush_and_wait`](Self::flush_and_wait) to know that the kernel has all of it.
        ///
        /// On a connection of the caller's own (dialled, pooled, or taken out of its handler) this is
        /// [`flush_and_wait`](Self::flush_and_wait).
        ///
        /// # Errors
        ///
        /// [`Error::Closed`](crate::Error::Closed) on an ended connection, and where the queue is full
        /// and the policy is [`OnFull::Close`](crate::OnFull::Close);
        /// [`Error::Poisoned`](crate::Error::Poisoned); the errors of
        /// [`flush_and_wait`](Self::flush_and_wait) where it has to wait. What did not fit the queue
        /// stays unflushed then.
        pub fn flush(&mut self) -> io::Result<()> {
            self.tx.flush()
        }

        /// Submits everything written and waits until the kernel has all that is queued, at most the
        /// write timeout. It does not wait if the socket takes everything at once.
        ///
        /// # Errors
        ///
        /// [`Error::WriteTimeout`](crate::Error::WriteTimeout) with how much was sent (the
        /// connection is poisoned then), [`Error::Closed`](crate::Error::Closed),
        /// [`Error::Interrupted`](crate::Error::Interrupted) (the rest is still sent),
        /// [`Error::WouldDeadlock`](crate::Error::WouldDeadlock) if it had to wait on a poller's
        /// thread that must not (inline dispatch; the rest is still sent).
        pub fn flush_and_wait(&mut self) -> io::Result<()> {
            self.tx.flush_and_wait()
        }

        /// Submits everything written and never waits. `true`: the kernel has all of it and nothing
        /// is queued.
        ///
        /// # Errors
        ///
        /// [`Error::OutputFull`](crate::Error::OutputFull) if the rest does not fit the output limit
        /// (the output stays unflushed), or the end of the connection where the policy is
        /// [`OnFull::Close`](crate::OnFull::Close); [`Error::Closed`](crate::Error::Closed),
        /// [`Error::Poisoned`](crate::Error::Poisoned).
        pub fn try_flush(&mut self) -> io::Result<bool> {
            self.tx.try_flush()
        }

        /// Sends several slices in one system call without joining them; what the socket does
        /// not take is copied and queued, and waited for where [`Self::flush`] waits. Returns their
        /// total length.
        ///
        /// # Errors
        ///
        /// As [`Self::flush`].
        pub fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
            self.tx.write_vectored(slices)
        }

        /// From how many unflushed bytes on [`std::io::Write::write`] sends them before it takes more, from
        /// now on and in the place of the loop's [`write_buffer`](crate::EventLoopBuilder::write_buffer) or the
        /// dialer's.
        pub fn set_write_buffer(&mut self, bytes: usize) {
            self.tx
                .shared
                .set_output_limits(|limits| limits.write_buffer = bytes);
        }

        /// Limits how long one call waits for output to be taken; `None` waits for ever.
        pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
            self.tx.patience.set_timeout(timeout);
        }

        /// Ends every wait for output at this instant; it takes the place of the timeout until
        /// the next call of either.
        pub fn set_write_deadline(&mut self, deadline: Option<Instant>) {
            self.tx.patience.set_deadline(deadline);
        }
    };
}

/// `Writer` and `std::io::Write` for a type with a field `tx`; whether it is one of two halves.
macro_rules! writing_traits {
    ($half:literal, $($name:tt)+) => {
        impl linkbuffer::Writer for $($name)+ {
            fn malloc(&mut self, n: usize) -> io::Result<&mut [u8]> {
                Writer::malloc(self.tx.lend(n)?, n)
            }

            fn malloc_ack(&mut self, n: usize) -> io::Result<()> {
                self.tx.cut(n)
            }

            fn malloc_len(&self) -> usize {
                self.tx.pending()
            }

            fn write_slice(&mut self, data: &[u8]) -> io::Result<()> {
                Writer::write_slice(self.tx.room(data.len())?, data)
            }

            fn write_bytes(&mut self, data: Bytes) -> io::Result<()> {
                Writer::write_bytes(self.tx.room_for_link(data.len())?, data)
            }

            fn write_direct(&mut self, data: Bytes, remain: usize) -> io::Result<()> {
                self.tx.insert(data, remain)
            }

            fn append(&mut self, other: LinkBuffer) -> io::Result<()> {
                Writer::append(self.tx.room_for_link(other.total_len())?, other)
            }

            fn reserve_raw(&mut self, len: usize) -> io::Result<RawLengthSlot> {
                Writer::reserve_raw(self.tx.lend(len)?, len)
            }

            fn fill_raw(&mut self, slot: RawLengthSlot, data: &[u8]) -> io::Result<()> {
                Writer::fill_raw(self.tx.raw_buffer(), slot, data)
            }

            fn flush(&mut self) -> io::Result<()> {
                self.tx.flush()
            }
        }

        /// `write` copies into the unflushed output, no more than the output limit at once, and sends that
        /// first if it has reached the [write buffer](crate::EventLoopBuilder::write_buffer)'s size: see
        /// [`Connection`](crate::Connection#what-was-written-through-iowrite). It waits, and fails, as `flush`
        /// does. Behind room that was lent (`malloc`, a slot) it flushes where it would exceed the output
        /// limit, and not before; slots end then.
        impl io::Write for $($name)+ {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                self.tx.stream(data, $half)
            }

            fn flush(&mut self) -> io::Result<()> {
                self.tx.flush()
            }
        }
    };
}

pub(super) use {writing, writing_traits};

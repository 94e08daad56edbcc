//! The two directions of a connection as separate values.

use super::{
    Connection, Guard,
    handle::{ConnectionHandle, PendingReply},
    input::Rx,
    reader::{TextLine, reading, reading_traits},
    tx::Tx,
    writer::{writing, writing_traits},
};
use crate::sync::Ordering;
use bytes::Bytes;
use linkbuffer::{LengthSlot, LinkBuffer, RawLengthSlot, Writer};
use std::{
    fmt,
    io::{self, IoSlice},
    net::Shutdown,
    sync::Arc,
    time::{Duration, Instant},
};

/// The reading side of a borrowed connection: see [`Connection::split`].
pub struct ReadHalf<'a> {
    pub(super) rx: &'a mut Rx,
}

/// The writing side of a borrowed connection: see [`Connection::split`].
pub struct WriteHalf<'a> {
    pub(super) tx: &'a mut Tx,
}

/// The reading side of a connection: see [`Connection::into_split`].
pub struct OwnedReadHalf {
    rx: Rx,
    _guard: Arc<Both>,
}

/// The writing side of a connection: see [`Connection::into_split`].
pub struct OwnedWriteHalf {
    tx: Tx,
    _guard: Arc<Both>,
}

/// What the halves have in common.
struct Both {
    /// The end of one direction is not that of the other: the connection ends with the halves.
    _open: PendingReply,
    _guard: Guard,
}

pub(super) fn into_split(conn: Connection) -> (OwnedReadHalf, OwnedWriteHalf) {
    let Connection { rx, tx, guard, .. } = conn;
    let guard = Arc::new(Both {
        _open: ConnectionHandle::new(Arc::clone(&rx.shared)).hold(),
        _guard: guard,
    });
    (
        OwnedReadHalf {
            rx,
            _guard: Arc::clone(&guard),
        },
        OwnedWriteHalf { tx, _guard: guard },
    )
}

impl ReadHalf<'_> {
    reading!();

    // The output is the other half's.
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "as that of a connection"
    )]
    #[inline]
    fn before(&mut self, _: impl FnOnce(&mut Rx) -> bool) -> io::Result<()> {
        Ok(())
    }

    #[expect(
        clippy::unused_self,
        clippy::needless_pass_by_ref_mut,
        reason = "as that of a connection"
    )]
    #[inline]
    fn unfulfilled(&mut self) {}
}

impl WriteHalf<'_> {
    writing!();
}

impl OwnedReadHalf {
    reading!();

    // The output is the other half's.
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "as that of a connection"
    )]
    #[inline]
    fn before(&mut self, _: impl FnOnce(&mut Rx) -> bool) -> io::Result<()> {
        Ok(())
    }

    #[expect(
        clippy::unused_self,
        clippy::needless_pass_by_ref_mut,
        reason = "as that of a connection"
    )]
    #[inline]
    fn unfulfilled(&mut self) {}

    /// A handle for other threads.
    pub fn handle(&self) -> ConnectionHandle {
        ConnectionHandle::new(Arc::clone(&self.rx.shared))
    }
}

impl OwnedWriteHalf {
    writing!();

    /// A handle for other threads.
    pub fn handle(&self) -> ConnectionHandle {
        ConnectionHandle::new(Arc::clone(&self.tx.shared))
    }

    /// Ends our output: the peer sees the end after everything flushed before. Waits for queued
    /// output, at most the write timeout.
    ///
    /// # Errors
    ///
    /// As [`Self::flush`], or what `shutdown(2)` reports.
    pub fn finish(mut self) -> io::Result<()> {
        self.tx.flush()?;
        ConnectionHandle::new(Arc::clone(&self.tx.shared)).flush()?;
        self.tx.shared.word.set(super::state::WRITE_SHUT);
        self.tx.socket.shutdown(Shutdown::Write)
    }
}

reading_traits!(true, ReadHalf<'_>);
reading_traits!(true, OwnedReadHalf);
writing_traits!(true, WriteHalf<'_>);
writing_traits!(true, OwnedWriteHalf);

impl fmt::Debug for ReadHalf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_read(f, "ReadHalf", self.rx)
    }
}

impl fmt::Debug for OwnedReadHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_read(f, "OwnedReadHalf", &self.rx)
    }
}

impl fmt::Debug for WriteHalf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_write(f, "WriteHalf", self.tx)
    }
}

impl fmt::Debug for OwnedWriteHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug_write(f, "OwnedWriteHalf", &self.tx)
    }
}

fn debug_read(f: &mut fmt::Formatter<'_>, name: &str, rx: &Rx) -> fmt::Result {
    let received = rx.shared.bytes_in.load(Ordering::Relaxed);
    f.debug_struct(name)
        .field("id", &rx.shared.id)
        .field("available", &rx.len())
        .field("received", &received)
        .finish()
}

fn debug_write(f: &mut fmt::Formatter<'_>, name: &str, tx: &Tx) -> fmt::Result {
    f.debug_struct(name)
        .field("id", &tx.shared.id)
        .field("unflushed", &tx.pending())
        .finish()
}

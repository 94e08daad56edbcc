//! Readers and writers out of anything that implements the standard traits.

use std::io::{self, IoSlice, Read, Write};

use bytes::Bytes;

use crate::buffer::LinkBuffer;
use crate::error::ShortRead;
use crate::slot::RawLengthSlot;
use crate::traits::{Reader, Writer};

/// Makes a [`Reader`] of anything that is [`std::io::Read`].
///
/// It never reads more than it has room for and never less than one call's worth, so bytes behind
/// those asked for may already be buffered; [`into_parts`](Self::into_parts) gives them back.
/// `try_` methods wait as long as the inner reader does: they are immediate if it is non-blocking.
///
/// # Examples
///
/// ```
/// use linkbuffer::{IoReader, Reader};
///
/// let mut r = IoReader::new(&b"first line\nrest"[..]);
/// assert_eq!(r.read_line_string(80)?, "first line");
/// assert_eq!(r.next(4)?, b"rest");
/// assert_eq!(r.peek(1).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct IoReader<R> {
    inner: R,
    buf: LinkBuffer,
}

impl<R: Read> IoReader<R> {
    /// Wraps `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            buf: LinkBuffer::new(),
        }
    }

    /// The inner reader. Reading from it directly skips the buffered bytes.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    /// The inner reader; see [`get_ref`](Self::get_ref).
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The inner reader and the bytes that were read from it and not consumed.
    pub fn into_parts(self) -> (R, LinkBuffer) {
        (self.inner, self.buf)
    }

    /// One successful read, of 0 bytes at the end.
    fn read_some(&mut self, want: usize) -> io::Result<usize> {
        let mut room = self.buf.try_reserve_recv(want.max(MIN_READ))?;
        // Safe code reads into initialised memory only.
        let size = room.capacity().min(MAX_READ);
        room.resize(size, 0);
        let result = loop {
            match self.inner.read(&mut room) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        room.truncate(*result.as_ref().unwrap_or(&0));
        self.buf.commit_recv(room);
        result
    }
}

impl<R: Read> Reader for IoReader<R> {
    fn available(&self) -> usize {
        self.buf.len()
    }

    fn fill(&mut self, n: usize) -> io::Result<()> {
        while self.buf.len() < n {
            if self.read_some(n - self.buf.len())? == 0 {
                return Err(ShortRead::new(n, self.buf.len()).into());
            }
        }
        Ok(())
    }

    fn try_fill(&mut self, n: usize) -> io::Result<bool> {
        match self.fill(n) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn buffer_mut(&mut self) -> &mut LinkBuffer {
        &mut self.buf
    }
}

/// Makes a [`Writer`] of anything that is [`std::io::Write`].
///
/// Bytes are collected and go out, vectored, with [`flush`](Writer::flush), which also flushes the
/// inner writer. If that fails, the bytes that were not taken stay first in the queue, and the next
/// `flush` goes on with them.
///
/// # Examples
///
/// ```
/// use linkbuffer::{IoWriter, Writer};
///
/// let mut w = IoWriter::new(Vec::new());
/// w.write_str("hello")?;
/// assert!(w.get_ref().is_empty());
/// w.flush()?;
/// assert_eq!(w.get_ref(), b"hello");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct IoWriter<W> {
    inner: W,
    buf: LinkBuffer,
}

impl<W: Write> IoWriter<W> {
    /// Wraps `inner`.
    pub fn new(inner: W) -> Self {
        Self {
            inner,
            buf: LinkBuffer::new(),
        }
    }

    /// The inner writer. Writing to it directly overtakes the queued bytes.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// The inner writer; see [`get_ref`](Self::get_ref).
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Flushed bytes that the inner writer has not taken yet, after a failed flush.
    pub fn queued(&self) -> usize {
        self.buf.len()
    }

    /// The inner writer, and everything it has not taken.
    pub fn into_parts(self) -> (W, LinkBuffer) {
        (self.inner, self.buf)
    }
}

impl<W: Write> Writer for IoWriter<W> {
    fn malloc(&mut self, n: usize) -> io::Result<&mut [u8]> {
        Writer::malloc(&mut self.buf, n)
    }

    fn malloc_ack(&mut self, n: usize) -> io::Result<()> {
        Writer::malloc_ack(&mut self.buf, n)
    }

    fn write_slice(&mut self, data: &[u8]) -> io::Result<()> {
        Writer::write_slice(&mut self.buf, data)
    }

    fn write_bytes(&mut self, data: Bytes) -> io::Result<()> {
        Writer::write_bytes(&mut self.buf, data)
    }

    fn write_direct(&mut self, data: Bytes, remain: usize) -> io::Result<()> {
        Writer::write_direct(&mut self.buf, data, remain)
    }

    fn append(&mut self, other: LinkBuffer) -> io::Result<()> {
        Writer::append(&mut self.buf, other)
    }

    fn reserve_raw(&mut self, len: usize) -> io::Result<RawLengthSlot> {
        Writer::reserve_raw(&mut self.buf, len)
    }

    fn fill_raw(&mut self, slot: RawLengthSlot, data: &[u8]) -> io::Result<()> {
        Writer::fill_raw(&mut self.buf, slot, data)
    }

    fn malloc_len(&self) -> usize {
        self.buf.malloc_len()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.buf.flush();
        while !self.buf.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let used = self.buf.io_slices(&mut slices);
            match self.inner.write_vectored(&slices[..used]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.buf.consume(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.inner.flush()
    }
}

/// Bytes one read of [`IoReader`] has room for, at least and at most.
const MIN_READ: usize = 4096;
const MAX_READ: usize = 256 << 10;
/// Slices one vectored write is given.
const MAX_SLICES: usize = 64;

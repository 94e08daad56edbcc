//! The standard traits, and adapters to anything that implements them.

use std::io::{self, BufRead, IoSlice, Read, Write};

use bytes::{Buf, Bytes, BytesMut};

use crate::buffer::LinkBuffer;
use crate::error::ShortRead;
use crate::node::Node;
use crate::slot::RawSlot;
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
/// assert_eq!(r.read_line(80)?, "first line");
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

    /// The inner reader. Reading from it directly skips what is buffered.
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
        let mut room = self.buf.landing(want.max(MIN_READ));
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
        self.buf.landed(room);
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

    fn chain(&mut self) -> &mut LinkBuffer {
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

    /// The inner writer. Writing to it directly overtakes what is queued.
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

    fn reserve_raw(&mut self, len: usize) -> io::Result<RawSlot> {
        Writer::reserve_raw(&mut self.buf, len)
    }

    fn fill_raw(&mut self, slot: RawSlot, data: &[u8]) -> io::Result<()> {
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

impl Read for LinkBuffer {
    /// Reads what is there. `Ok(0)` means that nothing is readable now.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = out.len().min(self.len);
        self.copy_out(&mut out[..n]);
        Ok(n)
    }

    fn read_exact(&mut self, out: &mut [u8]) -> io::Result<()> {
        self.check(out.len())?;
        self.copy_out(out);
        Ok(())
    }

    fn read_to_end(&mut self, out: &mut Vec<u8>) -> io::Result<usize> {
        let n = self.len;
        out.reserve(n);
        self.chunks().for_each(|chunk| out.extend_from_slice(chunk));
        self.advance_by(n);
        Ok(n)
    }
}

impl BufRead for LinkBuffer {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(Buf::chunk(&*self))
    }

    fn consume(&mut self, n: usize) {
        Self::consume(self, n);
    }
}

impl Write for LinkBuffer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.write_slice(data);
        Ok(data.len())
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        data.iter().for_each(|d| self.write_slice(d));
        Ok(data.iter().map(|d| d.len()).sum())
    }

    fn write_all(&mut self, data: &[u8]) -> io::Result<()> {
        self.write_slice(data);
        Ok(())
    }

    /// Makes everything written readable.
    fn flush(&mut self) -> io::Result<()> {
        Self::flush(self);
        Ok(())
    }
}

impl Buf for LinkBuffer {
    #[inline]
    fn remaining(&self) -> usize {
        self.len
    }

    #[inline]
    fn chunk(&self) -> &[u8] {
        self.chunks().next().unwrap_or(&[])
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        self.io_slices(out)
    }

    #[inline]
    fn advance(&mut self, n: usize) {
        self.consume(n);
    }

    fn copy_to_bytes(&mut self, n: usize) -> Bytes {
        match self.next_bytes(n) {
            Ok(bytes) => bytes,
            Err(e) => panic!("copy_to_bytes: {e}"),
        }
    }
}

impl LinkBuffer {
    /// Copies and consumes; that many bytes must be there.
    fn copy_out(&mut self, out: &mut [u8]) {
        let mut at = 0;
        for chunk in self.chunks() {
            let n = chunk.len().min(out.len() - at);
            out[at..at + n].copy_from_slice(&chunk[..n]);
            at += n;
            if at == out.len() {
                break;
            }
        }
        self.advance_by(at);
    }

    fn of(node: Node) -> Self {
        let mut buf = Self::new();
        buf.len = node.len();
        buf.written = buf.len as u64;
        buf.front = node;
        buf
    }
}

/// Readable at once, shared, not copied.
impl From<Bytes> for LinkBuffer {
    fn from(data: Bytes) -> Self {
        Self::of(Node::Shared(data))
    }
}

/// Readable at once, not copied.
impl From<BytesMut> for LinkBuffer {
    fn from(data: BytesMut) -> Self {
        Self::of(Node::Piece(data))
    }
}

/// Readable at once, not copied.
impl From<Vec<u8>> for LinkBuffer {
    fn from(data: Vec<u8>) -> Self {
        Self::from(Bytes::from(data))
    }
}

/// Readable at once, not copied.
impl From<String> for LinkBuffer {
    fn from(text: String) -> Self {
        Self::from(Bytes::from(text))
    }
}

/// Readable at once, a copy.
impl From<&[u8]> for LinkBuffer {
    fn from(data: &[u8]) -> Self {
        let mut buf = Self::new();
        buf.write_slice(data);
        buf.flush();
        buf
    }
}

/// Readable at once, a copy.
impl From<&str> for LinkBuffer {
    fn from(text: &str) -> Self {
        Self::from(text.as_bytes())
    }
}

/// Appends unflushed bytes.
impl Extend<u8> for LinkBuffer {
    fn extend<I: IntoIterator<Item = u8>>(&mut self, bytes: I) {
        let bytes = bytes.into_iter();
        self.write_with(bytes.size_hint().0, |out| out.extend(bytes));
    }
}

/// Appends unflushed bytes.
impl<'a> Extend<&'a u8> for LinkBuffer {
    fn extend<I: IntoIterator<Item = &'a u8>>(&mut self, bytes: I) {
        self.extend(bytes.into_iter().copied());
    }
}

/// Appends unflushed bytes as [`LinkBuffer::write_bytes`] does.
impl Extend<Bytes> for LinkBuffer {
    fn extend<I: IntoIterator<Item = Bytes>>(&mut self, parts: I) {
        parts.into_iter().for_each(|part| self.write_bytes(part));
    }
}

/// Compares the readable bytes.
impl PartialEq<[u8]> for LinkBuffer {
    fn eq(&self, other: &[u8]) -> bool {
        let mut rest = other;
        self.len == other.len()
            && self.chunks().all(|chunk| {
                let (head, tail) = rest.split_at(chunk.len());
                rest = tail;
                chunk == head
            })
    }
}

macro_rules! equal_to_bytes {
    ($($ty:ty $(, $param:ident)?;)*) => {$(
        /// Compares the readable bytes.
        impl$(<const $param: usize>)? PartialEq<$ty> for LinkBuffer {
            fn eq(&self, other: &$ty) -> bool {
                let bytes: &[u8] = other.as_ref();
                *self == *bytes
            }
        }
    )*};
}

equal_to_bytes! {
    &[u8];
    [u8; N], N;
    &[u8; N], N;
    Vec<u8>;
    Bytes;
    BytesMut;
    str;
    &str;
}

/// Compares the readable bytes; how they are divided into chunks does not matter.
impl PartialEq for LinkBuffer {
    fn eq(&self, other: &Self) -> bool {
        let (mut a, mut b) = (&[][..], &[][..]);
        let (mut left, mut right) = (self.chunks(), other.chunks());
        if self.len != other.len {
            return false;
        }
        loop {
            if a.is_empty() {
                a = left.next().unwrap_or(&[]);
            }
            if b.is_empty() {
                b = right.next().unwrap_or(&[]);
            }
            let n = a.len().min(b.len());
            if n == 0 || a[..n] != b[..n] {
                return n == 0;
            }
            (a, b) = (&a[n..], &b[n..]);
        }
    }
}

impl Eq for LinkBuffer {}

/// Bytes one read of [`IoReader`] has room for, at least and at most.
const MIN_READ: usize = 4096;
const MAX_READ: usize = 256 << 10;
/// Slices one vectored write is given.
const MAX_SLICES: usize = 64;

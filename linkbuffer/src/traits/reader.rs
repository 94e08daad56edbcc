//! Reading, from whatever the bytes come from.

use std::io;

use bytes::Bytes;

use crate::buffer::LinkBuffer;

/// A source of bytes: a [`LinkBuffer`], a connection, an [`IoReader`](crate::IoReader).
///
/// Methods without prefix may wait for the bytes they need, up to the source's timeout; `try_`
/// methods never wait: they return `None` if the bytes are not there yet, and the source takes the
/// number asked for as the mark below which it need not try again. A failed or `None` read
/// consumes nothing.
///
/// The trait is object-safe, so one codec serves a socket, a test and a file.
///
/// # Examples
///
/// ```
/// use linkbuffer::bytes::Bytes;
/// use linkbuffer::{LinkBuffer, Reader};
///
/// /// A length of four bytes and a body.
/// fn decode(r: &mut dyn Reader) -> std::io::Result<Option<Bytes>> {
///     let Some(head) = r.try_peek(4)? else { return Ok(None) };
///     let len = u32::from_be_bytes(head.try_into().unwrap()) as usize;
///     let Some(mut frame) = r.try_next_bytes(4 + len)? else { return Ok(None) };
///     Ok(Some(frame.split_off(4)))
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let mut buf = LinkBuffer::from(&b"\0\0\0\x02hi\0\0\0\x09half"[..]);
/// assert_eq!(decode(&mut buf)?.unwrap(), "hi");
/// assert!(decode(&mut buf)?.is_none());
/// # Ok(())
/// # }
/// ```
///
/// # Implementing
///
/// A source keeps its bytes in a [`LinkBuffer`] and implements four methods; for a source that is a
/// [`std::io::Read`], [`IoReader`](crate::IoReader) does. This one decodes the bytes of another source:
///
/// ```
/// use linkbuffer::{LinkBuffer, Reader};
/// use std::io;
///
/// struct Plain<R> {
///     source: R,
///     plain: LinkBuffer,
/// }
///
/// impl<R: Reader> Plain<R> {
///     /// Takes the available bytes of the source.
///     fn take(&mut self) -> io::Result<()> {
///         let mut bytes = self.source.read_vec(self.source.available())?;
///         bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
///         self.plain.write_bytes(bytes.into());
///         self.plain.flush();
///         Ok(())
///     }
/// }
///
/// impl<R: Reader> Reader for Plain<R> {
///     fn available(&self) -> usize {
///         self.plain.available()
///     }
///
///     fn fill(&mut self, n: usize) -> io::Result<()> {
///         while self.plain.available() < n {
///             self.source.fill(n - self.plain.available())?;
///             self.take()?;
///         }
///         Ok(())
///     }
///
///     fn try_fill(&mut self, n: usize) -> io::Result<bool> {
///         let missing = n.saturating_sub(self.plain.available());
///         if missing > 0 && self.source.try_fill(missing)? {
///             self.take()?;
///         }
///         Ok(self.plain.available() >= n)
///     }
///
///     fn buffer_mut(&mut self) -> &mut LinkBuffer {
///         &mut self.plain
///     }
/// }
///
/// let source = LinkBuffer::from(&b"=099:_"[..]);
/// let mut plain = Plain { source, plain: LinkBuffer::new() };
/// assert_eq!(Reader::read_line_string(&mut plain, 80)?, "hello");
/// # Ok::<(), io::Error>(())
/// ```
pub trait Reader {
    /// Bytes that can be read without waiting.
    fn available(&self) -> usize;

    /// Waits until `n` bytes are available.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the source ends first; received bytes stay readable. Other errors are those of
    /// the source, such as `TimedOut`.
    fn fill(&mut self, n: usize) -> io::Result<()>;

    /// Whether `n` bytes are available, without waiting. If not, the source remembers `n` as its
    /// wake-up mark.
    ///
    /// # Errors
    ///
    /// As [`fill`](Self::fill), if it is known that `n` bytes will never be there.
    fn try_fill(&mut self, n: usize) -> io::Result<bool>;

    /// Waits until more is available than now, however much: for messages of unknown length.
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill) of one byte more than is available.
    fn fill_more(&mut self) -> io::Result<()> {
        self.fill(self.available().saturating_add(1))
    }

    /// Whether more is available than was before the call, without waiting.
    ///
    /// # Errors
    ///
    /// Those of [`try_fill`](Self::try_fill) of one byte more than is available.
    fn try_fill_more(&mut self) -> io::Result<bool> {
        self.try_fill(self.available().saturating_add(1))
    }

    /// The buffer that holds the bytes that are [`available`](Self::available), and only these. A
    /// byte consumed from it is consumed from the source.
    ///
    /// For implementations of the trait: the methods below read from this buffer once
    /// [`fill`](Self::fill) or [`try_fill`](Self::try_fill) says that it has enough. A codec uses them
    /// instead.
    fn buffer_mut(&mut self) -> &mut LinkBuffer;

    /// The next `n` bytes, contiguous, not consumed; see [`LinkBuffer::peek`].
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill).
    fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        self.fill(n)?;
        Reader::buffer_mut(self).peek(n)
    }

    /// The next `n` bytes, contiguous, consumed; see [`LinkBuffer::next`].
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill).
    fn next(&mut self, n: usize) -> io::Result<&[u8]> {
        self.fill(n)?;
        Reader::buffer_mut(self).next(n)
    }

    /// Consumes `n` bytes.
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill).
    fn skip(&mut self, n: usize) -> io::Result<()> {
        self.fill(n)?;
        Reader::buffer_mut(self).skip(n)
    }

    /// The bytes up to and including the first `delim`, consumed. The source's own bounds limit
    /// how much it collects on the way.
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill).
    fn until(&mut self, delim: u8) -> io::Result<&[u8]> {
        let mut seen = 0;
        loop {
            if let Some(i) = Reader::buffer_mut(self).index_of(delim, seen) {
                return Reader::buffer_mut(self).next(i + 1);
            }
            seen = Reader::buffer_mut(self).len();
            self.fill(seen + 1)?;
        }
    }

    /// The next `n` bytes as an owned view; see [`LinkBuffer::next_bytes`].
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill).
    fn next_bytes(&mut self, n: usize) -> io::Result<Bytes> {
        self.fill(n)?;
        Reader::buffer_mut(self).next_bytes(n)
    }

    /// The next `n` bytes as a buffer of its own, never copied; see [`LinkBuffer::slice`].
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill).
    fn slice(&mut self, n: usize) -> io::Result<LinkBuffer> {
        self.fill(n)?;
        Reader::buffer_mut(self).slice(n)
    }

    /// One byte, consumed.
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill).
    fn read_u8(&mut self) -> io::Result<u8> {
        self.fill(1)?;
        Reader::buffer_mut(self).read_u8()
    }

    /// The next `n` bytes as text; see [`LinkBuffer::read_string`].
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill), and `InvalidData` if the bytes are not UTF-8.
    fn read_string(&mut self, n: usize) -> io::Result<String> {
        self.fill(n)?;
        Reader::buffer_mut(self).read_string(n)
    }

    /// The next `n` bytes, copied.
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill).
    fn read_vec(&mut self, n: usize) -> io::Result<Vec<u8>> {
        self.fill(n)?;
        Reader::buffer_mut(self).read_vec(n)
    }

    /// One line of at most `max` bytes, without its `\n` or `\r\n`; see [`LinkBuffer::read_line_string`].
    ///
    /// # Errors
    ///
    /// Those of [`fill`](Self::fill), and `InvalidData` if the line is longer or not UTF-8.
    fn read_line_string(&mut self, max: usize) -> io::Result<String> {
        let mut seen = 0;
        loop {
            if let Some(line) = Reader::buffer_mut(self).line_end(seen, max)? {
                return Reader::buffer_mut(self).take_line(line);
            }
            seen = Reader::buffer_mut(self).len();
            self.fill(seen + 1)?;
        }
    }

    /// [`peek`](Self::peek) without waiting.
    ///
    /// # Errors
    ///
    /// Those of [`try_fill`](Self::try_fill).
    fn try_peek(&mut self, n: usize) -> io::Result<Option<&[u8]>> {
        if self.try_fill(n)? {
            Reader::buffer_mut(self).peek(n).map(Some)
        } else {
            Ok(None)
        }
    }

    /// [`next`](Self::next) without waiting.
    ///
    /// # Errors
    ///
    /// Those of [`try_fill`](Self::try_fill).
    fn try_next(&mut self, n: usize) -> io::Result<Option<&[u8]>> {
        if self.try_fill(n)? {
            Reader::buffer_mut(self).next(n).map(Some)
        } else {
            Ok(None)
        }
    }

    /// [`skip`](Self::skip) without waiting.
    ///
    /// # Errors
    ///
    /// Those of [`try_fill`](Self::try_fill).
    fn try_skip(&mut self, n: usize) -> io::Result<Option<()>> {
        if self.try_fill(n)? {
            Reader::buffer_mut(self).skip(n).map(Some)
        } else {
            Ok(None)
        }
    }

    /// [`until`](Self::until) without waiting.
    ///
    /// # Errors
    ///
    /// Those of [`try_fill`](Self::try_fill).
    fn try_until(&mut self, delim: u8) -> io::Result<Option<&[u8]>> {
        let mut seen = 0;
        loop {
            if let Some(i) = Reader::buffer_mut(self).index_of(delim, seen) {
                return Reader::buffer_mut(self).next(i + 1).map(Some);
            }
            seen = Reader::buffer_mut(self).len();
            if !self.try_fill(seen + 1)? {
                return Ok(None);
            }
        }
    }

    /// [`next_bytes`](Self::next_bytes) without waiting.
    ///
    /// # Errors
    ///
    /// Those of [`try_fill`](Self::try_fill).
    fn try_next_bytes(&mut self, n: usize) -> io::Result<Option<Bytes>> {
        if self.try_fill(n)? {
            Reader::buffer_mut(self).next_bytes(n).map(Some)
        } else {
            Ok(None)
        }
    }

    /// [`slice`](Self::slice) without waiting.
    ///
    /// # Errors
    ///
    /// Those of [`try_fill`](Self::try_fill).
    fn try_slice(&mut self, n: usize) -> io::Result<Option<LinkBuffer>> {
        if self.try_fill(n)? {
            Reader::buffer_mut(self).slice(n).map(Some)
        } else {
            Ok(None)
        }
    }

    /// [`read_line_string`](Self::read_line_string) without waiting.
    ///
    /// # Errors
    ///
    /// Those of [`try_fill`](Self::try_fill), and `InvalidData` if the line is longer than `max`
    /// or not UTF-8.
    fn try_read_line_string(&mut self, max: usize) -> io::Result<Option<String>> {
        let mut seen = 0;
        loop {
            if let Some(line) = Reader::buffer_mut(self).line_end(seen, max)? {
                return Reader::buffer_mut(self).take_line(line).map(Some);
            }
            seen = Reader::buffer_mut(self).len();
            if !self.try_fill(seen + 1)? {
                return Ok(None);
            }
        }
    }
}

impl Reader for LinkBuffer {
    #[inline]
    fn available(&self) -> usize {
        self.len
    }

    #[inline]
    fn fill(&mut self, n: usize) -> io::Result<()> {
        self.check(n)
    }

    #[inline]
    fn try_fill(&mut self, n: usize) -> io::Result<bool> {
        Ok(n <= self.len)
    }

    #[inline]
    fn buffer_mut(&mut self) -> &mut LinkBuffer {
        self
    }
}

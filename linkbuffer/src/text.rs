//! Reading text, lines and delimited fields.

use std::io;

use crate::allocation::out_of_memory;
use crate::buffer::LinkBuffer;
use crate::error::ShortRead;

impl LinkBuffer {
    /// The bytes up to and including the first `delim`, consumed.
    ///
    /// # Errors
    ///
    /// [`ShortRead`] as `UnexpectedEof` if no readable byte is `delim`; nothing is consumed then.
    /// [`try_until`](Self::try_until) returns `None` instead.
    pub fn until(&mut self, delim: u8) -> io::Result<&[u8]> {
        match self.index_of(delim, 0) {
            Some(i) => self.next(i + 1),
            None => Err(ShortRead::new(self.len.saturating_add(1), self.len).into()),
        }
    }

    /// The bytes up to and including the first `delim`, consumed. `None` if no readable byte is `delim`.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` if the bytes lie in several chunks and no chunk of that length can be allocated.
    pub fn try_until(&mut self, delim: u8) -> io::Result<Option<&[u8]>> {
        match self.index_of(delim, 0) {
            Some(i) => self.next(i + 1).map(Some),
            None => Ok(None),
        }
    }

    /// The next `n` bytes as text, consumed and copied.
    ///
    /// # Errors
    ///
    /// [`ShortRead`] as `UnexpectedEof` if fewer than `n` bytes are readable, `InvalidData` if they
    /// are not UTF-8. Nothing is consumed then.
    pub fn read_string(&mut self, n: usize) -> io::Result<String> {
        let text = match std::str::from_utf8(self.peek(n)?) {
            Ok(text) => {
                let mut copy = String::new();
                copy.try_reserve_exact(n)
                    .map_err(|e| out_of_memory(n, &e))?;
                copy.push_str(text);
                copy
            }
            Err(e) => return Err(io::Error::new(io::ErrorKind::InvalidData, e)),
        };
        self.advance_by(n);
        Ok(text)
    }

    /// One line of text without its end, consumed and copied. The end is `\n` or `\r\n`; a lone
    /// `\r` is text.
    ///
    /// # Errors
    ///
    /// Nothing is consumed if there is an error:
    /// * [`ShortRead`] as `UnexpectedEof` if there is no line end yet,
    /// * `InvalidData` if the line is longer than `max` bytes, its end not counted. This is known
    ///   as soon as more than that has arrived, so a peer cannot fill the memory with one line,
    /// * `InvalidData` if it is not UTF-8.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// let mut buf = LinkBuffer::from(&b"GET / HTTP/1.1\r\nHost: here\r\n"[..]);
    /// assert_eq!(buf.read_line_string(100)?, "GET / HTTP/1.1");
    /// assert!(buf.read_line_string(5).unwrap_err().to_string().contains("longer than 5"));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn read_line_string(&mut self, max: usize) -> io::Result<String> {
        match self.line_end(0, max)? {
            Some(line) => self.take_line(line),
            None => Err(ShortRead::new(self.len.saturating_add(1), self.len).into()),
        }
    }

    /// Offset of the first `byte` at or behind `from`, counted from the next byte to be read.
    /// Consumes nothing.
    pub fn index_of(&self, byte: u8, from: usize) -> Option<usize> {
        let mut at = 0;
        for chunk in self.chunks() {
            let start = from.saturating_sub(at);
            if start < chunk.len() {
                if let Some(i) = memchr::memchr(byte, &chunk[start..]) {
                    return Some(at + start + i);
                }
            }
            at += chunk.len();
        }
        None
    }

    /// Finds the end of the first line. Its first `from` bytes are known to have none.
    pub(crate) fn line_end(&self, from: usize, max: usize) -> io::Result<Option<LineSpan>> {
        let Some(at) = self.index_of(b'\n', from) else {
            // The text, its `\r`, and still no `\n`.
            if self.len > max.saturating_add(1) {
                return Err(line_too_long(max, self.len));
            }
            return Ok(None);
        };
        let text = match at.checked_sub(1) {
            Some(last) if self.byte_at(last) == Some(b'\r') => last,
            _ => at,
        };
        if text > max {
            return Err(line_too_long(max, text));
        }
        Ok(Some(LineSpan {
            text,
            whole: at + 1,
        }))
    }

    pub(crate) fn take_line(&mut self, line: LineSpan) -> io::Result<String> {
        let text = self.read_string(line.text)?;
        self.advance_by(line.whole - line.text);
        Ok(text)
    }

    fn byte_at(&self, mut at: usize) -> Option<u8> {
        for chunk in self.chunks() {
            if at < chunk.len() {
                return Some(chunk[at]);
            }
            at -= chunk.len();
        }
        None
    }
}

/// A line: bytes of its text and bytes with its end.
#[derive(Clone, Copy)]
pub(crate) struct LineSpan {
    text: usize,
    whole: usize,
}

#[cold]
fn line_too_long(max: usize, len: usize) -> io::Error {
    let text = format!("line of at least {len} bytes is longer than {max}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

//! Reading operations, once for a connection and for its read halves.

use super::input::Rx;
use linkbuffer::LinkBuffer;
use std::io;

impl Rx {
    /// Waits for `delim`, returns how many bytes end with it.
    pub(crate) fn find(&mut self, delim: u8) -> io::Result<usize> {
        let (mut scanned, mut until) = (self.scanned(delim), None);
        loop {
            if let Some(n) = self.find_here(delim, &mut scanned) {
                return Ok(n);
            }
            self.remember(delim, scanned);
            self.fill_by(scanned + 1, &mut until)?;
        }
    }

    /// As [`Self::find`] without waiting; what is here plus one byte becomes the wake-up mark.
    pub(crate) fn try_find(&mut self, delim: u8) -> io::Result<Option<usize>> {
        let mut scanned = self.scanned(delim);
        loop {
            if let Some(n) = self.find_here(delim, &mut scanned) {
                return Ok(Some(n));
            }
            self.remember(delim, scanned);
            if !self.try_fill(scanned + 1)? {
                return Ok(None);
            }
        }
    }

    /// Whether `delim` is here.
    pub(super) fn has(&mut self, delim: u8) -> bool {
        let mut scanned = self.scanned(delim);
        self.find_here(delim, &mut scanned).is_some()
    }

    fn find_here(&mut self, delim: u8, scanned: &mut usize) -> Option<usize> {
        let mut start = 0;
        for chunk in self.buffer().chunks() {
            let skip = scanned.saturating_sub(start).min(chunk.len());
            if let Some(at) = memchr::memchr(delim, &chunk[skip..]) {
                return Some(start + skip + at + 1);
            }
            start += chunk.len();
        }
        *scanned = start;
        None
    }

    /// Waits for at least one byte, then copies what is here; 0 only at the end of input or for
    /// an empty `dst`.
    pub(crate) fn read(&mut self, dst: &mut [u8]) -> io::Result<usize> {
        if dst.is_empty() {
            return Ok(0);
        }
        self.read_at_least(dst, 1)
    }

    /// The first contiguous input; waits for it, and is empty only at the end of input.
    #[inline]
    pub(crate) fn first(&mut self) -> io::Result<&[u8]> {
        if self.len() == 0 {
            match self.fill(1) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(&[]),
                Err(e) => return Err(e),
            }
        }
        io::BufRead::fill_buf(self.buffer())
    }

    /// Waits for `min` bytes, copies as many as are here and fit.
    pub(crate) fn read_at_least(&mut self, dst: &mut [u8], min: usize) -> io::Result<usize> {
        if min > dst.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "read_at_least({min}) into {} bytes: ask for no more than fits",
                    dst.len()
                ),
            ));
        }
        match self.fill(min) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && self.len() == 0 => return Ok(0),
            Err(e) => return Err(e),
        }
        io::Read::read(self.buffer(), dst)
    }

    /// A line without its end, and whether only its first part fitted into `max` bytes.
    pub(crate) fn read_line(&mut self, max: usize) -> io::Result<TextLine> {
        let (mut scanned, mut until) = (0, None);
        loop {
            if let Some(n) = self.find_here(b'\n', &mut scanned) {
                let text = self.line_text(n)?;
                if text > max {
                    return self.prefix(max);
                }
                return self.line(text, n - text, false);
            }
            // One byte more may be the begin of the line's end, whether or not that came in one piece.
            let may_end =
                scanned == max.saturating_add(1) && self.buffer().index_of(b'\r', max) == Some(max);
            if scanned > max && !may_end {
                return self.prefix(max);
            }
            match self.fill_by(scanned + 1, &mut until) {
                Ok(()) => {}
                // The last line may lack its end.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && scanned > 0 => {
                    if scanned > max {
                        return self.prefix(max);
                    }
                    return self.line(scanned, 0, false);
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Takes the first part of a line that is longer.
    fn prefix(&mut self, max: usize) -> io::Result<TextLine> {
        if max == 0 {
            // An empty part would be followed by empty parts for ever.
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "read_line(0), and the line is not empty: ask for at least one byte",
            ));
        }
        self.line(max, 0, true)
    }

    /// Takes a line's text, and drops its end.
    fn line(&mut self, text: usize, end: usize, is_prefix: bool) -> io::Result<TextLine> {
        let mut data = self.buffer().slice(text)?;
        self.buffer().skip(end)?;
        if data.pinned() / 16 > text {
            data.compact();
        }
        Ok(TextLine { data, is_prefix })
    }

    /// Length of a line of `n` bytes without `\n` or `\r\n`.
    fn line_text(&mut self, n: usize) -> io::Result<usize> {
        if n < 2 {
            return Ok(n - 1);
        }
        let line = self.buffer().peek(n)?;
        Ok(if line[n - 2] == b'\r' { n - 2 } else { n - 1 })
    }
}

/// What [`Connection::read_line`](crate::Connection::read_line) returns.
#[derive(Debug)]
pub struct TextLine {
    /// The line's bytes without its end: a copy if they are less than a sixteenth of the chunks they lie
    /// in, so a kept line holds at most 16 times itself; else not copied.
    pub data: LinkBuffer,
    /// The line is longer than the limit and this is its first part; the next call returns the
    /// part behind it.
    pub is_prefix: bool,
}

/// The reading operations of a type with a field `rx`.
macro_rules! reading {
    () => {
        /// Bytes that can be read without waiting and without a system call.
        #[inline]
        pub fn available(&self) -> usize {
            self.rx.len()
        }

        /// Waits until `n` bytes are here, at most the read timeout.
        ///
        /// # Errors
        ///
        /// [`Error::PeerClosed`](crate::Error::PeerClosed) if input ends before (what is here
        /// stays readable), [`Error::ReadTimeout`](crate::Error::ReadTimeout) with nothing
        /// consumed, [`Error::Interrupted`](crate::Error::Interrupted) likewise,
        /// [`Error::InputLimit`](crate::Error::InputLimit) if `n` is above the input
        /// limit, [`Error::Closed`](crate::Error::Closed) when this side closed,
        /// [`Error::WouldDeadlock`](crate::Error::WouldDeadlock) on a poller's thread that must
        /// not wait (inline dispatch).
        #[inline]
        pub fn fill(&mut self, n: usize) -> io::Result<()> {
            self.before(|rx| rx.len() >= n)?;
            self.rx.fill(n)
        }

        /// Whether `n` bytes are here; never waits. `false` also makes `n` the wake-up mark:
        /// the handler is not run again before that many bytes, or the end of input. After a
        /// clean end, with no byte left, it is `false` too: there is no message then.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`], without the timeout; input that ended inside the `n` bytes is
        /// [`Error::PeerClosed`](crate::Error::PeerClosed).
        #[inline]
        pub fn try_fill(&mut self, n: usize) -> io::Result<bool> {
            let here = self.rx.try_fill(n)?;
            if !here {
                self.unfulfilled();
            }
            Ok(here)
        }

        /// Waits until more is [`available`](Self::available) than now, however much: for messages of
        /// unknown length. What comes at once is received at once, so a message takes as many calls as it
        /// has receives. Only the input limit bounds how much may come together.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`] of one byte more than is available.
        pub fn fill_more(&mut self) -> io::Result<()> {
            self.before(|_| false)?;
            self.rx.fill_more()
        }

        /// Whether more is available than was before the call; never waits. `false` makes one byte more
        /// the wake-up mark. See [`Self::fill_more`].
        ///
        /// # Errors
        ///
        /// As [`Self::try_fill`] of one byte more than is available.
        ///
        /// # Examples
        ///
        /// ```
        /// use netpoll::{Connection, handler_fn};
        ///
        /// // A message ends with an empty line, however long it is.
        /// let handler = handler_fn(|conn: &mut Connection| {
        ///     loop {
        ///         let here = conn.available();
        ///         let text = conn.peek(here)?;
        ///         if let Some(end) = text.windows(4).position(|end| end == b"\r\n\r\n") {
        ///             conn.skip(end + 4)?;
        ///             conn.write_str("got it")?;
        ///             return conn.flush();
        ///         }
        ///         if !conn.try_fill_more()? {
        ///             return Ok(());
        ///         }
        ///     }
        /// });
        /// # drop(handler);
        /// ```
        pub fn try_fill_more(&mut self) -> io::Result<bool> {
            let more = self.rx.try_fill_more()?;
            if !more {
                self.unfulfilled();
            }
            Ok(more)
        }

        /// The next `n` bytes without consuming them; waits for them.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`].
        #[inline]
        pub fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
            self.before(|rx| rx.len() >= n)?;
            self.rx.fill(n)?;
            self.rx.buffer().peek(n)
        }

        /// The next `n` bytes, consumed; waits for them. Copied only if they lie in several
        /// chunks.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`].
        #[inline]
        pub fn next(&mut self, n: usize) -> io::Result<&[u8]> {
            self.before(|rx| rx.len() >= n)?;
            self.rx.fill(n)?;
            self.rx.buffer().next(n)
        }

        /// Drops the next `n` bytes; waits for them.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`].
        #[inline]
        pub fn skip(&mut self, n: usize) -> io::Result<()> {
            self.before(|rx| rx.len() >= n)?;
            self.rx.fill(n)?;
            self.rx.buffer().skip(n)
        }

        /// Everything through the next `delim`, consumed; waits for it, at most the read timeout
        /// however it arrives. Each byte is looked at once.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`]; a line above the input limit is
        /// [`Error::InputLimit`](crate::Error::InputLimit).
        pub fn until(&mut self, delim: u8) -> io::Result<&[u8]> {
            self.before(|rx| rx.has(delim))?;
            let n = self.rx.find(delim)?;
            self.rx.buffer().next(n)
        }

        /// The next `n` bytes as an owned view that outlives the connection; waits for them. A view of
        /// less than a sixteenth of its chunk is a copy, so a kept one holds at most 16 times itself.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`].
        pub fn next_bytes(&mut self, n: usize) -> io::Result<Bytes> {
            self.before(|rx| rx.len() >= n)?;
            self.rx.fill(n)?;
            self.rx.buffer().next_bytes(n)
        }

        /// The next `n` bytes as a buffer of their own, never copied; waits for them.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`].
        pub fn slice(&mut self, n: usize) -> io::Result<LinkBuffer> {
            self.before(|rx| rx.len() >= n)?;
            self.rx.fill(n)?;
            self.rx.buffer().slice(n)
        }

        /// The next byte; waits for it.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`].
        pub fn read_u8(&mut self) -> io::Result<u8> {
            self.before(|rx| rx.len() > 0)?;
            self.rx.fill(1)?;
            self.rx.buffer().read_u8()
        }

        /// The next `n` bytes copied into a string; waits for them.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`]; `InvalidData` if they are not UTF-8.
        pub fn read_string(&mut self, n: usize) -> io::Result<String> {
            self.before(|rx| rx.len() >= n)?;
            self.rx.fill(n)?;
            self.rx.buffer().read_string(n)
        }

        /// The next `n` bytes copied; waits for them.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`].
        pub fn read_vec(&mut self, n: usize) -> io::Result<Vec<u8>> {
            self.before(|rx| rx.len() >= n)?;
            self.rx.fill(n)?;
            self.rx.buffer().read_vec(n)
        }

        /// The next line without its `\n` or `\r\n`; waits for it as [`Self::until`] does. Of a line
        /// longer than `max` bytes the first `max` are returned with [`TextLine::is_prefix`] set. The
        /// last line may lack its end.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`]; `InvalidInput`, with nothing consumed, if `max` is 0 and the line is not
        /// empty.
        pub fn read_line(&mut self, max: usize) -> io::Result<TextLine> {
            self.before(|rx| rx.has(b'\n'))?;
            self.rx.read_line(max)
        }

        /// Waits for at least `min` bytes and copies as many as are here and fit; 0 only when
        /// `min` is 0 or input has ended.
        ///
        /// # Errors
        ///
        /// As [`Self::fill`]; `InvalidInput` if `min` is more than `dst` holds.
        pub fn read_at_least(&mut self, dst: &mut [u8], min: usize) -> io::Result<usize> {
            self.before(|rx| rx.len() >= min)?;
            self.rx.read_at_least(dst, min)
        }

        /// [`Self::peek`] that never waits; see [`Self::try_fill`].
        ///
        /// # Errors
        ///
        /// As [`Self::try_fill`].
        #[inline]
        pub fn try_peek(&mut self, n: usize) -> io::Result<Option<&[u8]>> {
            if self.rx.try_fill(n)? {
                self.rx.buffer().peek(n).map(Some)
            } else {
                self.unfulfilled();
                Ok(None)
            }
        }

        /// [`Self::next`] that never waits; see [`Self::try_fill`].
        ///
        /// # Errors
        ///
        /// As [`Self::try_fill`].
        #[inline]
        pub fn try_next(&mut self, n: usize) -> io::Result<Option<&[u8]>> {
            if self.rx.try_fill(n)? {
                self.rx.buffer().next(n).map(Some)
            } else {
                self.unfulfilled();
                Ok(None)
            }
        }

        /// [`Self::until`] that never waits; one byte more than is here becomes the wake-up mark.
        ///
        /// # Errors
        ///
        /// As [`Self::try_fill`].
        pub fn try_until(&mut self, delim: u8) -> io::Result<Option<&[u8]>> {
            match self.rx.try_find(delim)? {
                Some(n) => self.rx.buffer().next(n).map(Some),
                None => {
                    self.unfulfilled();
                    Ok(None)
                }
            }
        }

        /// [`Self::next_bytes`] that never waits; see [`Self::try_fill`].
        ///
        /// # Errors
        ///
        /// As [`Self::try_fill`].
        pub fn try_next_bytes(&mut self, n: usize) -> io::Result<Option<Bytes>> {
            if self.rx.try_fill(n)? {
                self.rx.buffer().next_bytes(n).map(Some)
            } else {
                self.unfulfilled();
                Ok(None)
            }
        }

        /// [`Self::slice`] that never waits; see [`Self::try_fill`].
        ///
        /// # Errors
        ///
        /// As [`Self::try_fill`].
        pub fn try_slice(&mut self, n: usize) -> io::Result<Option<LinkBuffer>> {
            if self.rx.try_fill(n)? {
                self.rx.buffer().slice(n).map(Some)
            } else {
                self.unfulfilled();
                Ok(None)
            }
        }

        /// Limits how long one call waits for input from now on; `None` waits for ever.
        pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
            self.rx.patience.set_timeout(timeout);
        }

        /// Ends every wait for input at this instant; it takes the place of the timeout until
        /// the next call of either. An expired deadline fails only calls that have to wait.
        ///
        /// A handler that returns waits too: if it has left a part of a message, or consumed nothing since
        /// the deadline was set, the connection ends with
        /// [`CloseReason::ReadTimeout`](crate::CloseReason::ReadTimeout) at the deadline, however many bytes
        /// have trickled in. Once it has consumed everything and returned, the deadline has been met: the
        /// next message has none until one is set. A time for every message, without a call for each, is
        /// [`EventLoopBuilder::message_timeout`](crate::EventLoopBuilder::message_timeout).
        pub fn set_read_deadline(&mut self, deadline: Option<Instant>) {
            self.rx.set_deadline(deadline);
        }

        /// Whether the peer closed its side and everything it sent has been received. What is
        /// [`available`](Self::available) can still be read.
        pub fn is_read_closed(&self) -> bool {
            self.rx.end.is_some()
        }
    };
}

/// `Reader`, `std::io::Read` and `BufRead` for a type with a field `rx`; whether it is one of two halves.
macro_rules! reading_traits {
    ($half:literal, $($name:tt)+) => {
        impl linkbuffer::Reader for $($name)+ {
            fn available(&self) -> usize {
                self.rx.len()
            }

            fn fill(&mut self, n: usize) -> io::Result<()> {
                self.fill(n)
            }

            fn try_fill(&mut self, n: usize) -> io::Result<bool> {
                self.try_fill(n)
            }

            fn buffer_mut(&mut self) -> &mut LinkBuffer {
                self.rx.buffer()
            }

            fn fill_more(&mut self) -> io::Result<()> {
                self.fill_more()
            }

            fn try_fill_more(&mut self) -> io::Result<bool> {
                self.try_fill_more()
            }

            // However many pieces it comes in, one call waits no longer than one timeout.
            fn until(&mut self, delim: u8) -> io::Result<&[u8]> {
                self.until(delim)
            }
        }

        /// Waits for at least one byte; `Ok(0)` is the end of input.
        impl io::Read for $($name)+ {
            fn read(&mut self, dst: &mut [u8]) -> io::Result<usize> {
                self.before(|rx| rx.len() > 0)?;
                let n = self.rx.read(dst)?;
                self.rx.note_read($half);
                Ok(n)
            }
        }

        /// The input as it lies in memory: `fill_buf` lends the first contiguous part without
        /// copying, and waits only if there is none. So a handler looks at all messages of a
        /// receive at once.
        ///
        /// Where this trait is imported its `split` shadows the one of the connection.
        impl io::BufRead for $($name)+ {
            #[inline]
            fn fill_buf(&mut self) -> io::Result<&[u8]> {
                self.before(|rx| rx.len() > 0)?;
                self.rx.first()
            }

            #[inline]
            fn consume(&mut self, n: usize) {
                io::BufRead::consume(self.rx.buffer(), n);
            }
        }
    };
}

pub(super) use {reading, reading_traits};

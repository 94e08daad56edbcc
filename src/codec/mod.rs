//! Framing: where one message of a byte stream ends and the next begins.
//!
//! A [`Decoder`] cuts frames off the front of a [`Reader`], an [`Encoder`] puts them into a
//! [`Writer`]. Neither knows sockets, so both are used alike on a connection, a file and a buffer
//! in a test. [`framed`] makes a handler of a decoder and a closure.

mod delimited;
mod error;
mod fixed;
mod framed;
mod length_field;
mod search;
mod view;

pub use delimited::Delimited;
pub use error::FrameError;
pub use fixed::FixedLength;
pub use framed::{Framed, framed};
pub use length_field::LengthField;
pub use view::FrameView;

use linkbuffer::{LinkBuffer, Reader, Writer};
use std::io;

use bytes::Bytes;

/// Cuts frames off a source of bytes.
///
/// Bytes may arrive in pieces of any size: the same bytes always give the same frames. Functions
/// and closures of the shape of [`decode`](Self::decode) are decoders too.
///
/// # Examples
///
/// ```
/// use netpoll::{Decoder, LengthField, LinkBuffer};
///
/// # fn main() -> std::io::Result<()> {
/// let mut decoder = LengthField::new(2);
/// let mut input = LinkBuffer::from(&b"\0\x05hello\0\x05wor"[..]);
/// assert_eq!(decoder.decode(&mut input)?.unwrap(), "hello");
/// assert!(decoder.decode(&mut input)?.is_none());
/// # Ok(())
/// # }
/// ```
pub trait Decoder {
    /// The type of a decoded frame.
    type Frame;

    /// The next frame if all of it is here. Never waits.
    ///
    /// `None` means more input is needed, and how much is left with `r` as the wake-up mark: a
    /// connection's handler is not run before that many bytes are here. After input that ended
    /// between two frames it is `None` for good.
    ///
    /// Nothing but whole frames is consumed, so an error comes again with the next call.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if the bytes are no frame, or one that is longer than allowed; the errors
    /// of `r`, and `UnexpectedEof` if its input ended inside a frame.
    fn decode(&mut self, r: &mut dyn Reader) -> io::Result<Option<Self::Frame>>;

    /// Discards the state kept about bytes that are not consumed yet. To be called when the
    /// source was read by other means, or is another one, after `decode` returned `None`.
    fn reset(&mut self) {}

    /// The next frame; waits on the calling thread until all of it is here. `None` if input ended
    /// between two frames.
    ///
    /// A timeout of `r` holds for each wait: of a frame that comes in pieces every piece may take
    /// that long, where the decoder cannot tell how long the frame is. A deadline
    /// ([`Connection::set_read_deadline`](crate::Connection::set_read_deadline)) bounds the whole.
    ///
    /// # Errors
    ///
    /// Those of [`decode`](Self::decode), and those of a wait of `r`, such as `TimedOut`.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use netpoll::{Address, Decoder, Delimited, Dialer};
    /// # fn main() -> std::io::Result<()> {
    /// let mut conn = Dialer::new().dial_connection("localhost:6379".parse::<Address>()?)?;
    /// conn.write_str("PING\r\n")?;
    /// conn.flush()?;
    /// let mut lines = Delimited::lines(1024);
    /// assert_eq!(lines.read_frame(&mut conn)?.unwrap(), "+PONG");
    /// # Ok(())
    /// # }
    /// ```
    fn read_frame(&mut self, r: &mut dyn Reader) -> io::Result<Option<Self::Frame>> {
        let mut waiting = Waiting {
            inner: r,
            ended: false,
        };
        loop {
            if let Some(frame) = self.decode(&mut waiting)? {
                return Ok(Some(frame));
            }
            if waiting.ended {
                return Ok(None);
            }
            // The decoder looked at the available bytes and did not ask for more.
            let more = waiting.available().saturating_add(1);
            if !waiting.try_fill(more)? {
                return Ok(None);
            }
        }
    }
}

impl<F, T> Decoder for F
where
    F: FnMut(&mut dyn Reader) -> io::Result<Option<T>>,
{
    type Frame = T;

    fn decode(&mut self, r: &mut dyn Reader) -> io::Result<Option<T>> {
        self(r)
    }
}

/// Puts frames into a sink of bytes.
///
/// A frame is written whole or not at all: after an error the unflushed output is as it was
/// before. Nothing is sent before the sink is flushed.
///
/// # Examples
///
/// ```
/// use netpoll::{Encoder, LengthField, LinkBuffer};
///
/// # fn main() -> std::io::Result<()> {
/// let frames = LengthField::new(4);
/// let mut out = LinkBuffer::new();
/// frames.encode_slice(&mut out, b"known")?;
/// frames.encode_with(&mut out, &mut |w| w.write_str("length known later"))?;
/// out.flush();
/// assert_eq!(out, *b"\0\0\0\x05known\0\0\0\x12length known later");
/// # Ok(())
/// # }
/// ```
///
/// One of your own:
///
/// ```
/// use netpoll::{Encoder, LinkBuffer, Writer};
/// use std::io;
///
/// struct Quoted;
///
/// impl Encoder for Quoted {
///     fn encode_with(
///         &self,
///         w: &mut dyn Writer,
///         body: &mut dyn FnMut(&mut dyn Writer) -> io::Result<()>,
///     ) -> io::Result<()> {
///         w.write_u8(b'"')?;
///         body(w)?;
///         w.write_u8(b'"')
///     }
/// }
///
/// # fn main() -> io::Result<()> {
/// let mut out = LinkBuffer::new();
/// Quoted.encode_slice(&mut out, b"text")?;
/// out.flush();
/// assert_eq!(out, *b"\"text\"");
/// # Ok(())
/// # }
/// ```
pub trait Encoder {
    /// Writes one frame around the bytes that `body` writes. `body` is called once and must not
    /// flush.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if the body does not fit the frame, and the errors of `body` and `w`.
    fn encode_with(
        &self,
        w: &mut dyn Writer,
        body: &mut dyn FnMut(&mut dyn Writer) -> io::Result<()>,
    ) -> io::Result<()>;

    /// Writes `body` as one frame; long ones are linked, not copied.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if the body does not fit the frame, and the errors of `w`.
    fn encode(&self, w: &mut dyn Writer, body: Bytes) -> io::Result<()> {
        self.encode_with(w, &mut |w| w.write_bytes(body.clone()))
    }

    /// Writes a copy of `body` as one frame.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if the body does not fit the frame, and the errors of `w`.
    fn encode_slice(&self, w: &mut dyn Writer, body: &[u8]) -> io::Result<()> {
        self.encode_with(w, &mut |w| w.write_slice(body))
    }
}

/// Whether `n` bytes are here. The end of input in front of a frame is no error.
fn ready(r: &mut dyn Reader, n: usize) -> io::Result<bool> {
    match r.try_fill(n) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && r.available() == 0 => Ok(false),
        other => other,
    }
}

/// Runs `write`; its output is cut off if it fails.
fn whole(
    w: &mut dyn Writer,
    write: impl FnOnce(&mut dyn Writer) -> io::Result<()>,
) -> io::Result<()> {
    let before = w.malloc_len();
    let result = write(w);
    if result.is_err() && w.malloc_len() > before {
        w.malloc_ack(before)?;
    }
    result
}

/// Runs `body`, returns how many bytes it wrote.
fn written(
    w: &mut dyn Writer,
    body: &mut dyn FnMut(&mut dyn Writer) -> io::Result<()>,
) -> io::Result<usize> {
    let before = w.malloc_len();
    body(w)?;
    w.malloc_len()
        .checked_sub(before)
        .ok_or_else(|| FrameError::Flushed.into())
}

/// A source with `try_` calls that wait.
struct Waiting<'a> {
    inner: &'a mut dyn Reader,
    ended: bool,
}

impl Reader for Waiting<'_> {
    fn available(&self) -> usize {
        self.inner.available()
    }

    fn fill(&mut self, n: usize) -> io::Result<()> {
        self.inner.fill(n)
    }

    fn try_fill(&mut self, n: usize) -> io::Result<bool> {
        match self.inner.fill(n) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && self.available() == 0 => {
                self.ended = true;
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    fn buffer_mut(&mut self) -> &mut LinkBuffer {
        self.inner.buffer_mut()
    }
}

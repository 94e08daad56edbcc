//! Frames that all have the same length.

use super::{Decoder, Encoder, FrameError, FrameView, ready, whole, written};
use bytes::Bytes;
use linkbuffer::{Reader, Writer};
use std::{fmt, io, marker::PhantomData};

/// Frames of a fixed number of bytes.
///
/// # Examples
///
/// ```
/// use netpoll::{Decoder, FixedLength, LinkBuffer};
///
/// # fn main() -> std::io::Result<()> {
/// let mut blocks = FixedLength::new(4);
/// let mut input = LinkBuffer::from(&b"abcdef"[..]);
/// assert_eq!(blocks.decode(&mut input)?.unwrap(), "abcd");
/// assert!(blocks.decode(&mut input)?.is_none());
/// # Ok(())
/// # }
/// ```
pub struct FixedLength<V = Bytes> {
    len: usize,
    view: PhantomData<fn() -> V>,
}

impl FixedLength {
    /// Frames of `len` bytes each.
    ///
    /// # Panics
    ///
    /// If `len` is 0: such frames would never end.
    pub const fn new(len: usize) -> Self {
        assert!(len > 0, "a fixed-length frame has at least 1 byte");
        Self {
            len,
            view: PhantomData,
        }
    }
}

impl<V> FixedLength<V> {
    /// Gives frames as another type: see [`FrameView`].
    pub fn frames_as<W: FrameView>(self) -> FixedLength<W> {
        FixedLength {
            len: self.len,
            view: PhantomData,
        }
    }

    fn check(&self, len: usize) -> Result<(), FrameError> {
        if len == self.len {
            Ok(())
        } else {
            Err(FrameError::BodySize {
                len,
                expected: self.len,
            })
        }
    }
}

impl<V: FrameView> Decoder for FixedLength<V> {
    type Frame = V;

    #[inline]
    fn decode(&mut self, r: &mut dyn Reader) -> io::Result<Option<V>> {
        if r.buffer_mut().len() < self.len && !ready(r, self.len)? {
            return Ok(None);
        }
        V::cut(r.buffer_mut(), 0, self.len, 0)
    }
}

/// Every body must have the length of the frames: [`FrameError::BodySize`] otherwise.
impl<V> Encoder for FixedLength<V> {
    fn encode_with(
        &self,
        w: &mut dyn Writer,
        body: &mut dyn FnMut(&mut dyn Writer) -> io::Result<()>,
    ) -> io::Result<()> {
        whole(w, |w| Ok(self.check(written(w, body)?)?))
    }

    fn encode(&self, w: &mut dyn Writer, body: Bytes) -> io::Result<()> {
        self.check(body.len())?;
        w.write_bytes(body)
    }

    fn encode_slice(&self, w: &mut dyn Writer, body: &[u8]) -> io::Result<()> {
        self.check(body.len())?;
        w.write_slice(body)
    }
}

impl<V> Clone for FixedLength<V> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<V> fmt::Debug for FixedLength<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FixedLength")
            .field("len", &self.len)
            .finish()
    }
}

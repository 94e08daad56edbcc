//! Frames that say how long they are.

use super::{Decoder, Encoder, FrameError, FrameView, ready, whole, written};
use bytes::Bytes;
use linkbuffer::{Reader, Writer};
use std::{fmt, io, marker::PhantomData};

/// Frames with a length field in their header.
///
/// ```text
///      offset        width              length + adjustment
/// |-------------|-------------|------------------------------------|
///  before field  length field   behind the field
/// ```
///
/// By default the field is the first thing in a frame, big-endian, counts the bytes behind it,
/// and everything through it is stripped: the frame is the body. A whole frame, from its first
/// byte on, has at most 8 MiB. No combination of lengths and options overflows.
///
/// # Examples
///
/// A message of `type: u8, flags: u8, length: u16, body`, whose length counts the whole message:
///
/// ```
/// use netpoll::{Decoder, LengthField, LinkBuffer};
///
/// # fn main() -> std::io::Result<()> {
/// let mut messages = LengthField::new(2).offset(2).adjustment(-4).strip(0).max_frame(1 << 20);
/// let mut input = LinkBuffer::from(&b"\x01\xff\0\x06hi"[..]);
/// assert_eq!(messages.decode(&mut input)?.unwrap(), &b"\x01\xff\0\x06hi"[..]);
///
/// let mut out = LinkBuffer::new();
/// messages.encode_with_head(&mut out, b"\x01\xff", &mut |w| w.write_str("hi"))?;
/// out.flush();
/// assert_eq!(out, *b"\x01\xff\0\x06hi");
/// # Ok(())
/// # }
/// ```
pub struct LengthField<V = Bytes> {
    format: Format,
    view: PhantomData<fn() -> V>,
}

#[derive(Clone, Copy, Debug)]
struct Format {
    offset: usize,
    width: usize,
    little_endian: bool,
    adjustment: i64,
    /// `None`: everything through the field.
    strip: Option<usize>,
    max: usize,
}

impl LengthField {
    /// Frames with a length field of `width` bytes.
    ///
    /// # Panics
    ///
    /// If `width` is not 1 to 8.
    pub const fn new(width: usize) -> Self {
        assert!(width >= 1 && width <= 8, "a length field has 1 to 8 bytes");
        let format = Format {
            offset: 0,
            width,
            little_endian: false,
            adjustment: 0,
            strip: None,
            max: 8 << 20,
        };
        Self {
            format,
            view: PhantomData,
        }
    }
}

impl<V> LengthField<V> {
    /// Bytes in front of the length field. Default: 0.
    pub const fn offset(mut self, bytes: usize) -> Self {
        self.format.offset = bytes;
        self
    }

    /// The field has its lowest byte first. Default: its highest.
    pub const fn little_endian(mut self) -> Self {
        self.format.little_endian = true;
        self
    }

    /// The number added to the field's value to get the number of bytes behind the field: minus the
    /// length of the header if the field counts that too. Default: 0.
    pub const fn adjustment(mut self, bytes: i64) -> Self {
        self.format.adjustment = bytes;
        self
    }

    /// Bytes dropped from the front of each frame; 0 gives frames with their headers. Default:
    /// everything through the length field.
    pub const fn strip(mut self, bytes: usize) -> Self {
        self.format.strip = Some(bytes);
        self
    }

    /// The most bytes of a whole frame as it is sent, its header included. Default: 8 MiB. A
    /// connection's own input limit holds besides.
    pub const fn max_frame(mut self, bytes: usize) -> Self {
        self.format.max = bytes;
        self
    }

    /// Gives frames as another type: see [`FrameView`].
    pub fn frames_as<W: FrameView>(self) -> LengthField<W> {
        LengthField {
            format: self.format,
            view: PhantomData,
        }
    }

    /// Writes one frame with the bytes `head` in front of its length field and the output of
    /// `body` behind it. `head` is as long as the [`offset`](Self::offset); `body` is called
    /// once and must not flush.
    ///
    /// # Errors
    ///
    /// [`FrameError::HeadSize`], [`FrameError::BodyTooLong`] if the body's length fits neither
    /// the maximum nor the field, [`FrameError::BodySize`] if it is below the adjustment, and
    /// the errors of `body` and `w`.
    pub fn encode_with_head(
        &self,
        w: &mut dyn Writer,
        head: &[u8],
        body: &mut dyn FnMut(&mut dyn Writer) -> io::Result<()>,
    ) -> io::Result<()> {
        let format = &self.format;
        format.check_head(head)?;
        whole(w, |w| {
            w.write_slice(head)?;
            let field = w.reserve_raw(format.width)?;
            let len = written(w, body)?;
            let value = format.value(len)?;
            w.fill_raw(field, format.bytes(&mut value.to_le_bytes()))
        })
    }

    /// Writes a frame of known length.
    fn put(
        &self,
        w: &mut dyn Writer,
        len: usize,
        write: impl FnOnce(&mut dyn Writer) -> io::Result<()>,
    ) -> io::Result<()> {
        let format = &self.format;
        format.check_head(&[])?;
        let value = format.value(len)?;
        whole(w, |w| {
            w.write_slice(format.bytes(&mut value.to_le_bytes()))?;
            write(w)
        })
    }
}

impl<V: FrameView> Decoder for LengthField<V> {
    type Frame = V;

    fn decode(&mut self, r: &mut dyn Reader) -> io::Result<Option<V>> {
        let format = &self.format;
        let head = format.head()?;
        let mut total = head;
        loop {
            // The usual case is found here by one call through the trait object.
            let chain = r.buffer_mut();
            if total == head && chain.len() >= head {
                total = format.total(&chain.peek(head)?[format.offset..])?;
            }
            if chain.len() >= total {
                let strip = format.strip.unwrap_or(head);
                return V::cut(chain, strip, total - strip, 0);
            }
            if !ready(r, total)? {
                return Ok(None);
            }
        }
    }
}

/// For fields at the front of the frame; with an [`offset`](LengthField::offset) the bytes in
/// front of the field have to be given: [`encode_with_head`](LengthField::encode_with_head).
impl<V> Encoder for LengthField<V> {
    fn encode_with(
        &self,
        w: &mut dyn Writer,
        body: &mut dyn FnMut(&mut dyn Writer) -> io::Result<()>,
    ) -> io::Result<()> {
        self.encode_with_head(w, &[], body)
    }

    fn encode(&self, w: &mut dyn Writer, body: Bytes) -> io::Result<()> {
        self.put(w, body.len(), |w| w.write_bytes(body))
    }

    fn encode_slice(&self, w: &mut dyn Writer, body: &[u8]) -> io::Result<()> {
        self.put(w, body.len(), |w| w.write_slice(body))
    }
}

impl Format {
    /// Bytes through the length field.
    #[inline]
    fn head(&self) -> Result<usize, FrameError> {
        match self.offset.checked_add(self.width) {
            Some(head) if head <= self.max => Ok(head),
            head => Err(FrameError::TooLong {
                len: head.map_or(u64::MAX, |head| head as u64),
                max: self.max,
            }),
        }
    }

    /// Bytes of the whole frame with these bytes in its length field.
    #[inline]
    fn total(&self, field: &[u8]) -> Result<usize, FrameError> {
        let value = if self.little_endian {
            little_endian(field)
        } else {
            big_endian(field)
        };
        let head = self.offset + self.width;
        let least = head.max(self.strip.unwrap_or(0));
        let total = value
            .checked_add_signed(self.adjustment)
            .and_then(|rest| usize::try_from(rest).ok()?.checked_add(head));
        match total {
            Some(total) if total >= least && total <= self.max => Ok(total),
            _ => Err(self.reject(value)),
        }
    }

    /// The error for the value of a length field.
    #[cold]
    fn reject(&self, value: u64) -> FrameError {
        // Three terms of at most 64 bits each: no overflow in 128.
        let head = self.offset as i128 + self.width as i128;
        let total = i128::from(value) + i128::from(self.adjustment) + head;
        let least = head.max(self.strip.unwrap_or(0) as i128);
        if total < least {
            let limit = if total < 0 { i64::MIN } else { i64::MAX };
            return FrameError::TooShort {
                len: i64::try_from(total).unwrap_or(limit),
                least: usize::try_from(least).unwrap_or(usize::MAX),
            };
        }
        FrameError::TooLong {
            len: u64::try_from(total).unwrap_or(u64::MAX),
            max: self.max,
        }
    }

    /// The value of the length field for a body of `len` bytes.
    fn value(&self, len: usize) -> Result<u64, FrameError> {
        let value = len as i128 - i128::from(self.adjustment);
        if value < 0 {
            let expected = usize::try_from(self.adjustment).unwrap_or(usize::MAX);
            return Err(FrameError::BodySize { len, expected });
        }
        let head = self.offset as i128 + self.width as i128;
        let stripped = self.strip.unwrap_or(0) as i128 - head;
        if (len as i128) < stripped {
            return Err(FrameError::BodySize {
                len,
                expected: stripped as usize,
            });
        }
        let largest = i128::from(u64::MAX >> (64 - 8 * self.width));
        let fits = (largest + i128::from(self.adjustment)).min(self.max as i128 - head);
        if len as i128 > fits {
            let max = u64::try_from(fits).unwrap_or(0);
            return Err(FrameError::BodyTooLong { len, max });
        }
        Ok(value as u64)
    }

    fn check_head(&self, head: &[u8]) -> Result<(), FrameError> {
        if head.len() == self.offset {
            Ok(())
        } else {
            Err(FrameError::HeadSize {
                len: head.len(),
                expected: self.offset,
            })
        }
    }

    /// The field's bytes, from those of its value with the lowest first.
    fn bytes<'a>(&self, value: &'a mut [u8; 8]) -> &'a [u8] {
        let field = &mut value[..self.width];
        if !self.little_endian {
            field.reverse();
        }
        field
    }
}

/// The value of up to 8 bytes, the highest first.
#[inline]
fn big_endian(field: &[u8]) -> u64 {
    // The usual widths are single loads.
    match *field {
        [a] => a.into(),
        [a, b] => u16::from_be_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_be_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        _ => field
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)),
    }
}

/// The value of up to 8 bytes, the lowest first.
#[inline]
fn little_endian(field: &[u8]) -> u64 {
    match *field {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => field
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)),
    }
}

impl<V> Clone for LengthField<V> {
    fn clone(&self) -> Self {
        Self { ..*self }
    }
}

impl<V> fmt::Debug for LengthField<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LengthField").field(&self.format).finish()
    }
}

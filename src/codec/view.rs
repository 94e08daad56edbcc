//! The types that a decoded frame can have.

use bytes::{Buf as _, Bytes};
use linkbuffer::LinkBuffer;
use std::io;

/// How a decoder of this crate hands out a frame; chosen with its `frames_as`.
///
/// | type | copies | keeps alive |
/// |---|---|---|
/// | [`Bytes`] (default) | below 512 bytes or a sixteenth of the chunk, and frames that lie in several chunks | the chunk |
/// | [`LinkBuffer`] | never | all chunks the frame lies in |
/// | `Vec<u8>` | always | nothing |
/// | `String` | always; a frame that is not UTF-8 is an `InvalidData` error | nothing |
///
/// [`Bytes`] and [`LinkBuffer`] frames are owned views: they stay valid and unchanged until they
/// are dropped, on any thread. This trait is sealed.
pub trait FrameView: sealed::Cut {}

impl<T: sealed::Cut> FrameView for T {}

/// The result of a decoder, by reference so that frames are not moved.
type Cutting<T> = io::Result<Option<T>>;

pub(super) mod sealed {
    use super::{Cutting, LinkBuffer};

    /// Consumes a frame of `skip + len + tail` bytes, which are there, and returns the `len`
    /// bytes in the middle, as a decoder returns them. Consumes nothing if it fails.
    #[expect(unnameable_types, reason = "seals `FrameView`")]
    pub trait Cut: Sized {
        fn cut(chain: &mut LinkBuffer, skip: usize, len: usize, tail: usize) -> Cutting<Self>;
    }
}

impl sealed::Cut for Bytes {
    #[inline]
    fn cut(chain: &mut LinkBuffer, skip: usize, len: usize, tail: usize) -> Cutting<Self> {
        if len < COPY_BELOW {
            let frame = Self::copy_from_slice(&chain.peek(skip + len)?[skip..]);
            chain.skip(skip + len + tail)?;
            return Ok(Some(frame));
        }
        // The skipped bytes cost nothing in the view, and skipping them in the buffer would.
        let mut frame = chain.next_bytes(skip + len)?;
        frame.advance(skip);
        if tail > 0 {
            chain.skip(tail)?;
        }
        Ok(Some(frame))
    }
}

impl sealed::Cut for LinkBuffer {
    #[inline]
    fn cut(chain: &mut LinkBuffer, skip: usize, len: usize, tail: usize) -> Cutting<Self> {
        around(chain, skip, tail, |chain| chain.slice(len))
    }
}

impl sealed::Cut for Vec<u8> {
    #[inline]
    fn cut(chain: &mut LinkBuffer, skip: usize, len: usize, tail: usize) -> Cutting<Self> {
        around(chain, skip, tail, |chain| chain.read_vec(len))
    }
}

impl sealed::Cut for String {
    #[inline]
    fn cut(chain: &mut LinkBuffer, skip: usize, len: usize, tail: usize) -> Cutting<Self> {
        // The copy begins at an aligned address, which looking it over is faster for.
        let copy = chain.peek(skip + len)?[skip..].to_vec();
        let text = Self::from_utf8(copy)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))?;
        chain.skip(skip + len + tail)?;
        Ok(Some(text))
    }
}

/// Shorter frames are copied: it costs as little as sharing a chunk, and keeps none alive.
const COPY_BELOW: usize = 512;

#[inline]
fn around<T>(
    chain: &mut LinkBuffer,
    skip: usize,
    tail: usize,
    take: impl FnOnce(&mut LinkBuffer) -> io::Result<T>,
) -> Cutting<T> {
    if skip > 0 {
        chain.skip(skip)?;
    }
    let frame = take(chain)?;
    if tail > 0 {
        chain.skip(tail)?;
    }
    Ok(Some(frame))
}

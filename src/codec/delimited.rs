//! Frames that end with a delimiter.

use super::{
    Decoder, Encoder, FrameError, FrameView, ready,
    search::{Delimiter, Progress},
    whole,
};
use bytes::Bytes;
use linkbuffer::{LinkBuffer, Reader, Writer};
use std::{fmt, io, marker::PhantomData};

/// Frames that end with a byte or a sequence of bytes.
///
/// Each byte is looked at once, however the input arrives. A frame that is too long is an error
/// as soon as that many bytes are there, so no more than that is ever collected.
///
/// # Examples
///
/// ```
/// use netpoll::{Decoder, Delimited, LinkBuffer};
///
/// # fn main() -> std::io::Result<()> {
/// let mut records = Delimited::new("--", 80);
/// let mut input = LinkBuffer::from(&b"one--two--thr"[..]);
/// assert_eq!(records.decode(&mut input)?.unwrap(), "one");
/// assert_eq!(records.decode(&mut input)?.unwrap(), "two");
/// assert!(records.decode(&mut input)?.is_none());
/// # Ok(())
/// # }
/// ```
pub struct Delimited<V = Bytes> {
    delimiter: Delimiter,
    max: usize,
    keep: bool,
    /// A `\r` before the delimiter belongs to it.
    carriage_return: bool,
    last: bool,
    progress: Progress,
    view: PhantomData<fn() -> V>,
}

impl Delimited {
    /// Frames of at most `max` bytes, delimiter not counted, each followed by `delimiter`.
    ///
    /// # Panics
    ///
    /// If `delimiter` is empty.
    pub fn new(delimiter: impl AsRef<[u8]>, max: usize) -> Self {
        let Some(delimiter) = Delimiter::new(delimiter.as_ref()) else {
            panic!("a delimiter has at least 1 byte");
        };
        Self {
            delimiter,
            max,
            keep: false,
            carriage_return: false,
            last: false,
            progress: Progress::default(),
            view: PhantomData,
        }
    }

    /// Lines of at most `max` bytes, each followed by `\n` or `\r\n`. They are written with `\n`.
    pub fn lines(max: usize) -> Self {
        Self {
            carriage_return: true,
            ..Self::new("\n", max)
        }
    }
}

impl<V> Delimited<V> {
    /// Whether frames are given with their delimiter. Default: without.
    pub fn keep_delimiter(mut self, keep: bool) -> Self {
        self.keep = keep;
        self
    }

    /// Whether unconsumed bytes at the end of input are a last frame without delimiter.
    /// Default: it is an `UnexpectedEof` error.
    pub fn open_end(mut self, open: bool) -> Self {
        self.last = open;
        self
    }

    /// Gives frames as another type: see [`FrameView`].
    pub fn frames_as<W: FrameView>(self) -> Delimited<W> {
        Delimited {
            delimiter: self.delimiter,
            max: self.max,
            keep: self.keep,
            carriage_return: self.carriage_return,
            last: self.last,
            progress: self.progress,
            view: PhantomData,
        }
    }

    /// The most bytes that may come before the delimiter.
    fn limit(&self) -> usize {
        self.max.saturating_add(usize::from(self.carriage_return))
    }

    #[cold]
    fn too_long(&self) -> FrameError {
        FrameError::TooLong {
            len: (self.max as u64).saturating_add(1),
            max: self.max,
        }
    }
}

impl<V: FrameView> Delimited<V> {
    /// Searches the first piece, where a delimiter usually is: where the text ends, and where the
    /// frame does.
    #[inline]
    fn find_at_once(&mut self, chain: &LinkBuffer, window: usize) -> Option<(usize, usize)> {
        let first = chain.chunks().next()?;
        let first = &first[..first.len().min(window)];
        let Some(end) = self.delimiter.search(first, &mut self.progress.matched) else {
            self.progress.scanned = first.len();
            return None;
        };
        let text = end - self.delimiter.len();
        let cut = self.carriage_return && text > 0 && first[text - 1] == b'\r';
        Some((text - usize::from(cut), end))
    }

    /// Searches on in all pieces.
    fn find(&mut self, chain: &mut LinkBuffer, window: usize) -> Option<(usize, usize)> {
        let end = self.delimiter.find(chain, &mut self.progress, window)?;
        let text = end - self.delimiter.len();
        let cut = self.carriage_return && text > 0 && byte_at(chain, text - 1) == Some(b'\r');
        Some((text - usize::from(cut), end))
    }

    /// Consumes a frame of `end` bytes, of which `text` are before the delimiter.
    #[inline]
    fn cut(&mut self, chain: &mut LinkBuffer, text: usize, end: usize) -> io::Result<Option<V>> {
        self.progress = Progress::default();
        if text > self.max {
            return Err(self.too_long().into());
        }
        if self.keep {
            V::cut(chain, 0, end, 0)
        } else {
            V::cut(chain, 0, text, end - text)
        }
    }

    /// Consumes the remaining bytes at the end of input.
    fn cut_last(&mut self, chain: &mut LinkBuffer) -> io::Result<Option<V>> {
        self.progress = Progress::default();
        let len = chain.len();
        if len > self.max {
            return Err(self.too_long().into());
        }
        V::cut(chain, 0, len, 0)
    }
}

impl<V: FrameView> Decoder for Delimited<V> {
    type Frame = V;

    fn decode(&mut self, r: &mut dyn Reader) -> io::Result<Option<V>> {
        let limit = self.limit();
        let window = limit.saturating_add(self.delimiter.len());
        loop {
            let chain = r.buffer_mut();
            let here = chain.len().min(window);
            if here < self.progress.scanned {
                // The searched bytes were consumed elsewhere.
                self.progress = Progress::default();
            }
            if self.progress.scanned == 0 {
                if let Some((text, end)) = self.find_at_once(chain, window) {
                    return self.cut(chain, text, end);
                }
            }
            if here > self.progress.scanned {
                if let Some((text, end)) = self.find(chain, window) {
                    return self.cut(chain, text, end);
                }
            }
            let Progress { scanned, matched } = self.progress;
            if scanned - matched > limit {
                return Err(self.too_long().into());
            }
            // The delimiter needs so many more bytes, but a frame too long is known before.
            let needed = scanned.saturating_add(self.delimiter.len() - matched);
            let wanted = needed
                .min(limit.saturating_add(1))
                .max(scanned.saturating_add(1));
            match ready(r, wanted) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(e) if self.last && e.kind() == io::ErrorKind::UnexpectedEof => {
                    return self.cut_last(r.buffer_mut());
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn reset(&mut self) {
        self.progress = Progress::default();
    }
}

/// The delimiter is written behind the body. A body that holds it would arrive as two frames:
/// that is [`FrameError::HoldsDelimiter`], except with
/// [`encode_with`](Encoder::encode_with), where the body is not looked at.
impl<V> Encoder for Delimited<V> {
    fn encode_with(
        &self,
        w: &mut dyn Writer,
        body: &mut dyn FnMut(&mut dyn Writer) -> io::Result<()>,
    ) -> io::Result<()> {
        whole(w, |w| {
            self.check_len(super::written(w, body)?)?;
            w.write_slice(self.delimiter.as_slice())
        })
    }

    fn encode(&self, w: &mut dyn Writer, body: Bytes) -> io::Result<()> {
        self.check(&body)?;
        whole(w, |w| {
            w.write_bytes(body)?;
            w.write_slice(self.delimiter.as_slice())
        })
    }

    fn encode_slice(&self, w: &mut dyn Writer, body: &[u8]) -> io::Result<()> {
        self.check(body)?;
        whole(w, |w| {
            w.write_slice(body)?;
            w.write_slice(self.delimiter.as_slice())
        })
    }
}

impl<V> Delimited<V> {
    fn check(&self, body: &[u8]) -> Result<(), FrameError> {
        self.check_len(body.len())?;
        if let Some(at) = self.delimiter.within(body) {
            return Err(FrameError::HoldsDelimiter { at });
        }
        match body.last() {
            Some(b'\r') if self.carriage_return => {
                Err(FrameError::HoldsDelimiter { at: body.len() - 1 })
            }
            _ => Ok(()),
        }
    }

    fn check_len(&self, len: usize) -> Result<(), FrameError> {
        if len > self.max {
            return Err(FrameError::BodyTooLong {
                len,
                max: self.max as u64,
            });
        }
        Ok(())
    }
}

fn byte_at(chain: &LinkBuffer, mut at: usize) -> Option<u8> {
    for chunk in chain.chunks() {
        if let Some(&byte) = chunk.get(at) {
            return Some(byte);
        }
        at -= chunk.len();
    }
    None
}

/// The copy starts anew, it has searched nothing yet.
impl<V> Clone for Delimited<V> {
    fn clone(&self) -> Self {
        Self {
            delimiter: self.delimiter.clone(),
            progress: Progress::default(),
            ..*self
        }
    }
}

impl<V> fmt::Debug for Delimited<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delimited")
            .field(
                "delimiter",
                &self.delimiter.as_slice().escape_ascii().to_string(),
            )
            .field("max", &self.max)
            .field("keep_delimiter", &self.keep)
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

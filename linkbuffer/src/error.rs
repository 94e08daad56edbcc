//! The errors of this crate.

use std::error::Error;
use std::{fmt, io};

/// More bytes were asked for than there are.
///
/// Becomes an [`io::Error`] of kind [`UnexpectedEof`](io::ErrorKind::UnexpectedEof), from which it
/// can be had back with `downcast_ref`.
///
/// # Examples
///
/// ```
/// use linkbuffer::{LinkBuffer, ShortRead};
///
/// let mut buf = LinkBuffer::from(&b"abc"[..]);
/// let err = buf.peek(10).unwrap_err();
/// assert_eq!(err.kind(), std::io::ErrorKind::UnexpectedEof);
/// let short = err.get_ref().unwrap().downcast_ref::<ShortRead>().unwrap();
/// assert_eq!((short.wanted(), short.available()), (10, 3));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortRead {
    wanted: usize,
    available: usize,
}

impl ShortRead {
    /// An error for `wanted` bytes where only `available` are there.
    pub const fn new(wanted: usize, available: usize) -> Self {
        Self { wanted, available }
    }

    /// Bytes asked for.
    pub const fn wanted(&self) -> usize {
        self.wanted
    }

    /// Bytes that were there, and still are: a failed read consumes nothing.
    pub const fn available(&self) -> usize {
        self.available
    }
}

impl fmt::Display for ShortRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, available } = self;
        write!(f, "{wanted} bytes wanted, {available} available")
    }
}

impl Error for ShortRead {}

impl From<ShortRead> for io::Error {
    fn from(e: ShortRead) -> Self {
        Self::new(io::ErrorKind::UnexpectedEof, e)
    }
}

/// An operation on unflushed bytes that cannot be done.
///
/// Becomes an [`io::Error`] of kind [`InvalidInput`](io::ErrorKind::InvalidInput).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// More bytes were to be kept or to be left behind than are unflushed.
    #[non_exhaustive]
    BeyondMalloc {
        /// Bytes named by the caller.
        wanted: usize,
        /// Bytes written and not flushed.
        malloc_len: usize,
    },
    /// The slot's bytes were cut away, torn apart or flushed before they were filled, or are those of another
    /// buffer.
    #[non_exhaustive]
    SlotGone {
        /// Bytes of the slot.
        len: usize,
    },
    /// The data is not as long as the slot.
    #[non_exhaustive]
    SlotSize {
        /// Bytes given.
        given: usize,
        /// Bytes of the slot.
        len: usize,
    },
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondMalloc { wanted, malloc_len } => {
                write!(
                    f,
                    "{wanted} bytes named, but only {malloc_len} are unflushed"
                )
            }
            Self::SlotGone { len } => write!(
                f,
                "the slot of {len} bytes is gone: it was cut away, torn or flushed before it was \
                 filled, or it is another buffer's"
            ),
            Self::SlotSize { given, len } => {
                write!(f, "{given} bytes given for a slot of {len}")
            }
        }
    }
}

impl Error for WriteError {}

impl From<WriteError> for io::Error {
    fn from(e: WriteError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, e)
    }
}

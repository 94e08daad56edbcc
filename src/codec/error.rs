//! Frames that are none.

use std::{fmt, io};

/// Why bytes are no frame, or a body cannot be made one.
///
/// Turns into an [`io::Error`] of the kind named at each variant;
/// [`from_io`](Self::from_io) takes it out again.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FrameError {
    /// A frame in the input is longer than the decoder's maximum. Kind: `InvalidData`.
    TooLong {
        /// Bytes of the frame. For a frame whose end was searched and not found this is one
        /// more than `max`.
        len: u64,
        /// Bytes allowed.
        max: usize,
    },
    /// A length in the input is less than the minimum of every frame. Kind: `InvalidData`.
    TooShort {
        /// Bytes of the frame as its length says, which may be negative after the adjustment.
        len: i64,
        /// Bytes of the header, or those to be stripped if they are more.
        least: usize,
    },
    /// A body cannot be encoded because the frame would be too long. Kind: `InvalidInput`.
    BodyTooLong {
        /// Bytes of the body.
        len: usize,
        /// Bytes that fit.
        max: u64,
    },
    /// A body cannot be encoded because it is not as long as every frame is, or is too short
    /// for the adjustment of its length. Kind: `InvalidInput`.
    BodySize {
        /// Bytes of the body.
        len: usize,
        /// Bytes it must have, or at least have.
        expected: usize,
    },
    /// A body cannot be encoded because it holds the delimiter, or makes one together with the
    /// delimiter behind it. Kind: `InvalidInput`.
    HoldsDelimiter {
        /// Offset in the body.
        at: usize,
    },
    /// A frame cannot be encoded because the bytes in front of its length field are missing or
    /// too many. Kind: `InvalidInput`.
    HeadSize {
        /// Bytes given.
        len: usize,
        /// Bytes in front of the length field.
        expected: usize,
    },
    /// The output was flushed while a frame was being written. Kind: `InvalidInput`.
    Flushed,
}

impl FrameError {
    /// The frame error that `error` carries, if it carries one.
    pub fn from_io(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref::<Self>().copied()
    }

    /// The kind of the [`io::Error`] this turns into.
    pub const fn kind(&self) -> io::ErrorKind {
        match self {
            Self::TooLong { .. } | Self::TooShort { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::InvalidInput,
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { len, max } => write!(
                f,
                "a frame of at least {len} bytes came but {max} are allowed: raise the maximum of \
                 the decoder or close the connection"
            ),
            Self::TooShort { len, least } => write!(
                f,
                "a frame of {len} bytes came but every frame has at least {least}: check the \
                 adjustment of the decoder or close the connection"
            ),
            Self::BodyTooLong { len, max } => write!(
                f,
                "a body of {len} bytes was to be sent but {max} fit: split it, or raise the \
                 maximum or the width of the length field"
            ),
            Self::BodySize { len, expected } => {
                write!(
                    f,
                    "a body of {len} bytes was to be sent but a frame takes {expected}"
                )
            }
            Self::HoldsDelimiter { at } => write!(
                f,
                "a body with the delimiter at byte {at} was to be sent, it would arrive as two \
                 frames: escape it"
            ),
            Self::HeadSize { len, expected } => write!(
                f,
                "{len} bytes were given for the front of the frame but {expected} come before \
                 the length field: use encode_with_head"
            ),
            Self::Flushed => f.write_str(
                "output was flushed while a frame was being written: flush behind the frame, and \
                 close the connection now",
            ),
        }
    }
}

impl std::error::Error for FrameError {}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        Self::new(error.kind(), error)
    }
}

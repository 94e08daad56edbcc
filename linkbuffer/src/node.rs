//! One link of the chain.

use bytes::{Buf, Bytes, BytesMut};

use crate::chunk::Class;

/// A run of contiguous bytes.
///
/// A chunk has at most one [`Node::Own`] handle, and that handle is the one that goes back to the
/// pool. Every other handle on the same memory is a `Piece` or a `Shared`, which is simply dropped.
pub(crate) enum Node {
    /// Taken from the pool (or the allocator) by this buffer: it may grow into its spare room.
    Own(BytesMut, Class),
    /// Exclusive part of a chunk that somebody else looks after.
    Piece(BytesMut),
    /// Read-only memory shared with others.
    Shared(Bytes),
}

impl Node {
    /// Holds nothing at all.
    pub(crate) const VACANT: Self = Self::Shared(Bytes::new());

    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Own(b, _) | Self::Piece(b) => b,
            Self::Shared(b) => b,
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Own(b, _) | Self::Piece(b) => b.len(),
            Self::Shared(b) => b.len(),
        }
    }

    /// Bytes that can be appended in place.
    #[inline]
    pub(crate) fn spare(&self) -> usize {
        match self {
            Self::Own(b, _) | Self::Piece(b) => b.capacity() - b.len(),
            Self::Shared(_) => 0,
        }
    }

    /// Bytes of memory this handle covers.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::Own(b, _) | Self::Piece(b) => b.capacity(),
            Self::Shared(b) => b.len(),
        }
    }

    #[inline]
    pub(crate) fn is_own(&self) -> bool {
        matches!(self, Self::Own(..))
    }

    /// The growable handle, if the memory is not shared.
    #[inline]
    pub(crate) fn as_mut(&mut self) -> Option<&mut BytesMut> {
        match self {
            Self::Own(b, _) | Self::Piece(b) => Some(b),
            Self::Shared(_) => None,
        }
    }

    #[inline]
    pub(crate) fn advance(&mut self, n: usize) {
        match self {
            Self::Own(b, _) | Self::Piece(b) => b.advance(n),
            Self::Shared(b) => b.advance(n),
        }
    }

    pub(crate) fn truncate(&mut self, n: usize) {
        match self {
            Self::Own(b, _) | Self::Piece(b) => b.truncate(n),
            Self::Shared(b) => b.truncate(n),
        }
    }

    /// Cuts off everything from `n` on, spare room included. If the node owns its chunk, the
    /// ownership goes with the cut-off part: that is the part which can still grow.
    pub(crate) fn split_off(&mut self, n: usize) -> Self {
        match self {
            Self::Own(b, class) => {
                let right = Self::Own(b.split_off(n), *class);
                let left = std::mem::take(b);
                *self = Self::Piece(left);
                right
            }
            Self::Piece(b) => Self::Piece(b.split_off(n)),
            Self::Shared(b) => Self::Shared(b.split_off(n)),
        }
    }
}

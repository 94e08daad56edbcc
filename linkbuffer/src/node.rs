//! One link of the chain.

use bytes::{Buf, Bytes, BytesMut};

use crate::chunk_table;
use crate::size_class::Class;

/// A run of contiguous bytes.
///
/// A chunk has at most one [`Node::Owned`] handle, and that handle is the one that goes back to the
/// pool. Every other handle on the same memory is a `Piece` or a `Shared`, which is simply dropped.
pub(crate) enum Node {
    /// Holds nothing at all.
    Empty,
    /// Taken from the pool (or the allocator) by this buffer: it may grow into its spare capacity.
    Owned(BytesMut, Class),
    /// Exclusive part of a chunk whose `Owned` handle is elsewhere.
    Exclusive(BytesMut),
    /// Read-only shared memory.
    Shared(Bytes),
    /// The first bytes of such memory; the ones behind may become part of it, see
    /// [`extend_shared`](Self::extend_shared).
    Extendable(Bytes, u32),
}

impl Node {
    #[inline]
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(b, _) | Self::Exclusive(b) => b,
            Self::Shared(b) => b,
            Self::Extendable(b, n) => &b[..*n as usize],
            Self::Empty => &[],
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Owned(b, _) | Self::Exclusive(b) => b.len(),
            Self::Shared(b) => b.len(),
            Self::Extendable(_, n) => *n as usize,
            Self::Empty => 0,
        }
    }

    /// Bytes that can be appended in place.
    #[inline]
    pub(crate) fn spare(&self) -> usize {
        match self {
            Self::Owned(b, _) | Self::Exclusive(b) => b.capacity() - b.len(),
            Self::Shared(_) | Self::Extendable(..) | Self::Empty => 0,
        }
    }

    /// Bytes of memory this handle covers.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Self::Owned(b, _) | Self::Exclusive(b) => b.capacity(),
            Self::Shared(b) => b.len(),
            Self::Extendable(_, n) => *n as usize,
            Self::Empty => 0,
        }
    }

    /// The size of the chunk that this handle keeps alive, if it is known to be one.
    #[inline]
    pub(crate) fn chunk(&self) -> Option<usize> {
        match self {
            Self::Owned(_, class) if *class != Class::UNPOOLED => Some(class.size()),
            Self::Empty => None,
            node => chunk_table::chunk_of(node.as_slice()),
        }
    }

    /// Whether such a view of this node would keep more than sixteen times itself alive.
    #[inline]
    pub(crate) fn is_large_for(&self, view: &[u8]) -> bool {
        let chunk = match self {
            Self::Owned(_, class) if *class != Class::UNPOOLED => class.size(),
            _ => chunk_table::chunk_of(view).unwrap_or(0),
        };
        view.len() < chunk / 16
    }

    /// Bytes of memory that this handle keeps alive, as far as is known.
    #[inline]
    pub(crate) fn pins(&self) -> usize {
        let least = match self {
            Self::Extendable(b, _) => b.len(),
            node => node.capacity(),
        };
        self.chunk().unwrap_or(0).max(least)
    }

    #[inline]
    pub(crate) fn is_owned(&self) -> bool {
        matches!(self, Self::Owned(..))
    }

    /// The growable handle, if the memory is not shared.
    #[inline]
    pub(crate) fn as_mut(&mut self) -> Option<&mut BytesMut> {
        match self {
            Self::Owned(b, _) | Self::Exclusive(b) => Some(b),
            Self::Shared(_) | Self::Extendable(..) | Self::Empty => None,
        }
    }

    #[inline]
    pub(crate) fn advance(&mut self, n: usize) {
        match self {
            Self::Owned(b, _) | Self::Exclusive(b) => b.advance(n),
            Self::Shared(b) => b.advance(n),
            Self::Extendable(b, len) => {
                b.advance(n);
                *len -= n as u32;
            }
            Self::Empty => {}
        }
    }

    pub(crate) fn truncate(&mut self, n: usize) {
        match self {
            Self::Owned(b, _) | Self::Exclusive(b) => b.truncate(n),
            Self::Shared(b) => b.truncate(n),
            Self::Extendable(_, len) => *len = (*len).min(u32::try_from(n).unwrap_or(u32::MAX)),
            Self::Empty => {}
        }
    }

    /// Cuts off everything from `n` on, spare capacity included. If the node owns its chunk, the
    /// ownership goes with the cut-off part: that is the part which can still grow.
    pub(crate) fn split_off(&mut self, n: usize) -> Self {
        match self {
            Self::Owned(b, class) => {
                let right = Self::Owned(b.split_off(n), *class);
                let left = std::mem::take(b);
                *self = Self::Exclusive(left);
                right
            }
            Self::Exclusive(b) => Self::Exclusive(b.split_off(n)),
            Self::Shared(b) => Self::Shared(b.split_off(n)),
            Self::Extendable(b, len) => {
                let right = Self::Extendable(b.split_off(n), *len - n as u32);
                *len = n as u32;
                right
            }
            Self::Empty => Self::Empty,
        }
    }

    /// Cuts off the first `n` bytes, which are there; for nodes that are read-only.
    pub(crate) fn split_shared(&mut self, n: usize) -> Bytes {
        match self {
            Self::Owned(b, _) | Self::Exclusive(b) => b.split_to(n).freeze(),
            Self::Shared(b) => b.split_to(n),
            Self::Extendable(b, len) => {
                *len -= n as u32;
                b.split_to(n)
            }
            Self::Empty => Bytes::new(),
        }
    }

    /// As [`split_shared`](Self::split_shared), but the cut-off node can be extended by the bytes behind it.
    pub(crate) fn split_extendable(&mut self, n: usize) -> Self {
        match self {
            Self::Shared(b) if b.len() <= u32::MAX as usize => {
                let run = Self::Extendable(b.clone(), n as u32);
                b.advance(n);
                run
            }
            other => Self::Shared(other.split_shared(n)),
        }
    }

    /// Makes a run that ends where `next` begins, in the same memory, longer by `next`. `false`:
    /// it is something else.
    #[inline]
    pub(crate) fn extend_shared(&mut self, next: &[u8]) -> bool {
        if let Self::Extendable(all, len) = self {
            let end = *len as usize;
            // Both are alive, so the same address is the same memory.
            if all.len() - end >= next.len() && all[end..].as_ptr() == next.as_ptr() {
                *len += next.len() as u32;
                return true;
            }
        }
        false
    }
}

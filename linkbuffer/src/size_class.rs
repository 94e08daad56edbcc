//! Size classes of pooled chunks.

/// Size class of a chunk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class(pub(crate) u8);

impl Class {
    pub(crate) const SMALLEST: Self = Self(0);
    pub(crate) const LARGEST: Self = Self(CLASSES as u8 - 1);
    /// Allocated to measure and freed after use.
    pub(crate) const UNPOOLED: Self = Self(u8::MAX);

    /// The smallest class with room for `size` bytes.
    #[inline]
    pub(crate) const fn of(size: usize) -> Self {
        if size <= Self::SMALLEST.size() {
            Self::SMALLEST
        } else if size > Self::LARGEST.size() {
            Self::UNPOOLED
        } else {
            Self((usize::BITS - (size - 1).leading_zeros()) as u8 - SMALLEST_SHIFT)
        }
    }

    /// Whether an empty buffer keeps such a chunk for the next write. A larger one goes back, so
    /// that one long message is not paid for with memory for ever.
    #[inline]
    pub(crate) const fn is_kept(self) -> bool {
        self.0 <= Self::of(MAX_KEPT_CHUNK).0
    }

    /// Bytes of one chunk; meaningless for [`Class::UNPOOLED`].
    #[inline]
    pub(crate) const fn size(self) -> usize {
        1 << (self.0 + SMALLEST_SHIFT)
    }
}

/// Number of size classes.
pub(crate) const CLASSES: usize = 9;
/// The smallest class is `1 << SMALLEST_SHIFT` bytes.
const SMALLEST_SHIFT: u8 = 12;
/// Largest chunk that an empty buffer keeps.
const MAX_KEPT_CHUNK: usize = 64 << 10;

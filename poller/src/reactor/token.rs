//! The token of a registration, which the kernel returns with each event.

/// Names one registration for ever: index and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token(usize);

/// Bits of the index; the rest of a `usize` but for the highest bit is the generation.
const INDEX_BITS: u32 = if usize::BITS == 64 { 32 } else { 20 };
pub(super) const INDEX_MASK: usize = (1 << INDEX_BITS) - 1;
pub(super) const GENERATION_MASK: usize = usize::MAX >> (INDEX_BITS + 1);

impl Token {
    pub(super) fn new(index: usize, generation: usize) -> Self {
        Self((generation & GENERATION_MASK) << INDEX_BITS | index)
    }

    pub(super) fn index(self) -> usize {
        self.0 & INDEX_MASK
    }

    pub(super) fn generation(self) -> usize {
        self.0 >> INDEX_BITS
    }

    pub(crate) fn raw(self) -> usize {
        self.0
    }

    pub(crate) fn from_raw(raw: usize) -> Self {
        Self(raw)
    }
}

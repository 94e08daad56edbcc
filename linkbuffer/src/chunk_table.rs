//! Addresses of chunks, to find how much memory a view keeps alive.
//!
//! `Bytes` does not say how large the allocation behind it is. So [`insert`] enters each new chunk in a
//! table by its address, and [`chunk_of`] finds the chunk that a slice is part of: a load or two, no
//! lock.
//!
//! The table is an estimate in two ways. Of two chunks with the same place in it the later one is
//! known. And a chunk that is freed with its last view, and not by the pool, stays until its place is
//! used again: memory that was allocated there since counts as part of it. The first makes a view seem
//! to keep its own length only, the second makes a copy where a link would have done. Nothing is ever
//! read through such an address.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;

/// Enters a new chunk, without content.
pub(crate) fn insert(chunk: &BytesMut) {
    CHUNKS.insert(chunk.as_ptr().addr(), chunk.capacity());
}

/// Takes out a chunk that is about to be freed.
pub(crate) fn remove(chunk: &BytesMut) {
    CHUNKS.remove(chunk.as_ptr().addr(), chunk.capacity());
}

/// Removes the entries that overlap memory that is no part of a chunk.
pub(crate) fn remove_overlapping(bytes: &[u8]) {
    let start = bytes.as_ptr().addr();
    CHUNKS.clear(start, start + bytes.len());
}

/// The size of the chunk that `bytes` are part of, if it is known.
#[inline]
pub(crate) fn chunk_of(bytes: &[u8]) -> Option<usize> {
    let start = bytes.as_ptr().addr();
    CHUNKS.find(start, start + bytes.len())
}

/// Large chunks have a table of their own, with fewer entries for each.
struct ChunkTable {
    /// Covers 4 GiB of addresses. Unused pages of a table are never touched.
    small: Table<12, 6, { 1 << 20 }>,
    /// Covers 8 GiB of addresses.
    large: Table<16, 12, { 1 << 17 }>,
}

impl ChunkTable {
    const fn new() -> Self {
        Self {
            small: Table::new(),
            large: Table::new(),
        }
    }

    fn insert(&self, start: usize, size: usize) {
        // Chunks that lay there were freed.
        if size >= LARGE {
            self.small.store(start, size, 0);
            self.large.insert(start, size);
        } else if size >= LEAST {
            self.large.clear(start, start + size);
            self.small.insert(start, size);
        } else {
            self.clear(start, start + size);
        }
    }

    fn remove(&self, start: usize, size: usize) {
        if size >= LEAST {
            self.small.store(start, size, 0);
        }
        if size >= LARGE {
            self.large.store(start, size, 0);
        }
    }

    fn clear(&self, start: usize, end: usize) {
        if self.find(start, end).is_some() {
            self.small.clear(start, end);
            self.large.clear(start, end);
        }
    }

    #[inline]
    fn find(&self, start: usize, end: usize) -> Option<usize> {
        let found = self.small.find(start, end);
        found.or_else(|| self.large.find(start, end))
    }
}

/// One entry for each stretch of `1 << SHIFT` bytes: of the chunk that begins there, or that covers all
/// of it. Sizes are counted in units of `1 << UNIT` bytes. No chunk is shorter than a stretch, so two of
/// them never begin in the same one.
struct Table<const SHIFT: u32, const UNIT: u32, const CELLS: usize>([AtomicU64; CELLS]);

impl<const SHIFT: u32, const UNIT: u32, const CELLS: usize> Table<SHIFT, UNIT, CELLS> {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; CELLS])
    }

    /// The areas of one allocator's threads begin at multiples of 64 MiB, and chunks lie at the same places in
    /// each. So an area's stretches are moved by a number of its own.
    #[inline]
    fn cell(&self, stretch: usize) -> &AtomicU64 {
        let area = stretch >> (AREA_SHIFT - SHIFT);
        &self.0[stretch.wrapping_add(area.wrapping_mul(AREA_STEP)) % CELLS]
    }

    /// An entry is 44 bits of the start and 20 bits of the size.
    fn insert(&self, start: usize, size: usize) {
        let units = size.div_ceil(1 << UNIT).min((1 << SIZE_BITS) - 1) as u64;
        self.store(
            start,
            size,
            ((start as u64) >> START_SHIFT) << SIZE_BITS | units,
        );
    }

    fn store(&self, start: usize, size: usize, entry: u64) {
        let (first, behind) = (start >> SHIFT, (start + size) >> SHIFT);
        for stretch in first..behind.min(first + CELLS) {
            self.cell(stretch).store(entry, Ordering::Relaxed);
        }
    }

    /// Takes out every entry that covers some of these bytes, as far as they would be found there.
    fn clear(&self, start: usize, end: usize) {
        let (first, last) = ((start >> SHIFT).saturating_sub(1), (end - 1) >> SHIFT);
        for stretch in first..=last.min(first + CELLS) {
            let cell = self.cell(stretch);
            let (at, size) = Self::parts(cell.load(Ordering::Relaxed));
            if at < end && start < at + size {
                cell.store(0, Ordering::Relaxed);
            }
        }
    }

    #[inline]
    fn parts(entry: u64) -> (usize, usize) {
        let start = (entry >> SIZE_BITS) << START_SHIFT;
        let units = entry & ((1 << SIZE_BITS) - 1);
        (start as usize, (units as usize) << UNIT)
    }

    #[inline]
    fn find(&self, start: usize, end: usize) -> Option<usize> {
        let covers = |stretch: usize| {
            let (at, size) = Self::parts(self.cell(stretch).load(Ordering::Relaxed));
            (at <= start && end <= at + size).then_some(size)
        };
        let stretch = start >> SHIFT;
        // Where a chunk ends in the middle of a stretch, the one before tells.
        covers(stretch).or_else(|| covers(stretch.wrapping_sub(1)))
    }
}

/// glibc gives each thread areas of 64 MiB (`HEAP_MAX_SIZE`).
const AREA_SHIFT: u32 = 26;
/// Odd, and far from a simple fraction of the number of cells.
const AREA_STEP: usize = 0x9e37;
/// Allocations begin at a multiple of 16 bytes.
const START_SHIFT: u32 = 4;
const SIZE_BITS: u32 = 20;
/// Smaller chunks keep too little alive to be noted.
const LEAST: usize = 4096;
const LARGE: usize = 128 << 10;

static CHUNKS: ChunkTable = ChunkTable::new();

#[cfg(test)]
mod tests {
    use super::*;

    /// Where allocations are made in these tests: off the page limits.
    const BASE: usize = 0x7f12_3456_7890;

    #[test]
    fn each_part_of_a_chunk_is_known() {
        static CHUNKS: ChunkTable = ChunkTable::new();
        for size in [4 << 10, 20 << 10, 64 << 10, 128 << 10, 1 << 20, 3 << 20] {
            CHUNKS.insert(BASE, size);
            for at in [0, 1, 600, 4095, size / 2, size - 600, size - 1] {
                let start = BASE + at;
                assert_eq!(CHUNKS.find(start, start + 1), Some(size), "{at} of {size}");
                assert_eq!(
                    CHUNKS.find(start, BASE + size),
                    Some(size),
                    "{at} of {size}"
                );
            }
            assert_eq!(CHUNKS.find(BASE + size, BASE + size + 1), None);
            assert_eq!(CHUNKS.find(BASE - 1, BASE), None);
            assert_eq!(CHUNKS.find(BASE - 1, BASE + 1), None);
        }
        let chunk = {
            let chunk = BytesMut::with_capacity(8192);
            insert(&chunk);
            chunk
        };
        assert_eq!(chunk_of(&chunk), Some(8192));
        remove(&chunk);
    }

    /// As threads have them, each in an area of its own.
    #[test]
    fn chunks_at_the_same_place_of_areas_are_all_known() {
        static CHUNKS: ChunkTable = ChunkTable::new();
        let place = |area: usize| (0x7f12 << 32) + (area << AREA_SHIFT) + 0x8c0;
        for size in [64 << 10, 1 << 20] {
            (0..16).for_each(|area| CHUNKS.insert(place(area), size));
            for area in 0..16 {
                let at = place(area) + 600;
                assert_eq!(CHUNKS.find(at, at + 600), Some(size), "{area}");
            }
            (0..16).for_each(|area| CHUNKS.remove(place(area), size));
        }
    }

    #[test]
    fn what_is_no_chunk_is_unknown() {
        static CHUNKS: ChunkTable = ChunkTable::new();
        assert_eq!(CHUNKS.find(BASE, BASE + 1), None);
        CHUNKS.insert(BASE, 8192);
        // Too small for the table, and no part of the earlier chunk.
        CHUNKS.insert(BASE + 1024, 2048);
        assert_eq!(CHUNKS.find(BASE + 1024, BASE + 1025), None);
    }

    #[test]
    fn neighbours_are_told_apart() {
        static CHUNKS: ChunkTable = ChunkTable::new();
        let sizes = [4096 + 64, 8192, 128 << 10, 4096 + 128];
        let mut starts = [BASE; 4];
        for i in 1..4 {
            starts[i] = starts[i - 1] + sizes[i - 1];
        }
        for i in [0, 1, 2, 3, 2, 1, 0, 2, 3] {
            CHUNKS.insert(starts[i], sizes[i]);
        }
        for (start, size) in starts.into_iter().zip(sizes) {
            for at in (start..start + size - 600).step_by(16) {
                assert_eq!(CHUNKS.find(at, at + 600), Some(size));
            }
        }
        assert_eq!(CHUNKS.find(starts[1] - 1, starts[1] + 1), None, "in two");
    }

    #[test]
    fn what_is_freed_is_forgotten_and_its_neighbours_are_not() {
        static CHUNKS: ChunkTable = ChunkTable::new();
        for size in [4096, 64 << 10, 1 << 20] {
            let other = BASE + size;
            CHUNKS.insert(BASE, size);
            CHUNKS.insert(other, size);
            CHUNKS.remove(BASE, size);
            for at in (0..size - 100).step_by(4000) {
                let found = |start| CHUNKS.find(start + at, start + at + 100);
                assert_eq!((found(BASE), found(other)), (None, Some(size)));
            }
            CHUNKS.remove(other, size);
        }
    }

    #[test]
    fn memory_that_is_used_for_something_else_is_no_chunk() {
        static CHUNKS: ChunkTable = ChunkTable::new();
        for (size, next) in [(64 << 10, 5056), (1 << 20, 5056), (5056, 1 << 20)] {
            CHUNKS.insert(BASE, size);
            CHUNKS.insert(BASE, next);
            assert_eq!(CHUNKS.find(BASE + 100, BASE + 200), Some(next));
            CHUNKS.insert(BASE, size);
            let (start, end) = (BASE + 1000, BASE + 4000);
            CHUNKS.clear(start, end);
            for at in start..end.min(BASE + size) {
                assert_eq!(CHUNKS.find(at, at + 1), None, "{at} of {size}");
            }
            CHUNKS.clear(start, end);
        }
    }
}

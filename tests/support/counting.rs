//! A global allocator that counts and can refuse, for the program that installs it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// Counts calls and live bytes of all threads; refuses large allocations when it is told to.
pub(crate) struct Counting;

static CALLS: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: what is not refused goes to the system's allocator unchanged; null tells of a refusal, and the
// counters touch no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        grown(layout.size());
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if refuses(layout.size()) {
            return std::ptr::null_mut();
        }
        grown(layout.size());
        // SAFETY: the caller keeps `GlobalAlloc::alloc_zeroed`'s contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if refuses(size) {
            return std::ptr::null_mut();
        }
        grown(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::realloc`'s contract.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps `GlobalAlloc::dealloc`'s contract.
        unsafe { System.dealloc(old, layout) }
    }
}

fn refuses(size: usize) -> bool {
    let refuses = size > MOST.load(Relaxed);
    if refuses {
        REFUSED.fetch_add(1, Relaxed);
    }
    refuses
}

fn grown(size: usize) {
    CALLS.fetch_add(1, Relaxed);
    TOTAL.fetch_add(size as u64, Relaxed);
    LIVE.fetch_add(size, Relaxed);
}

/// Allocations and reallocations so far.
pub(crate) fn calls() -> u64 {
    CALLS.load(Relaxed)
}

/// Bytes allocated so far, freed ones included.
pub(crate) fn total() -> u64 {
    TOTAL.load(Relaxed)
}

/// Bytes that are allocated now.
pub(crate) fn live() -> usize {
    LIVE.load(Relaxed)
}

/// Allocations of more bytes than this fail from now on.
pub(crate) fn refuse_above(most: usize) {
    MOST.store(most, Relaxed);
}

/// How many allocations have failed.
pub(crate) fn refused() -> usize {
    REFUSED.load(Relaxed)
}

//! Large chunks that the allocator does not have: errors, where the caller can be told.

#![cfg(not(netpoll_leaks))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::sync::Once;

use linkbuffer::{ChunkPool, LinkBuffer, Writer};

/// Has no block larger than the thread's limit.
struct Limited;

thread_local! {
    static LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn refused(size: usize) -> bool {
    size > LIMIT.with(Cell::get)
}

// SAFETY: a call is passed on to the system allocator unchanged or answered with null, which says
// that there is no memory; the limit is a plain thread-local without destructor.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refused(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises about `layout` hold here too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` or `realloc` above, which are the system's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if refused(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;

fn with_limit<T>(limit: usize, f: impl FnOnce() -> T) -> T {
    LIMIT.with(|l| l.set(limit));
    let result = f();
    LIMIT.with(|l| l.set(usize::MAX));
    result
}

const MIB: usize = 1 << 20;

/// A buffer of its own pool, with so much to be read and so much unflushed.
fn filled(readable: usize, unflushed: usize) -> LinkBuffer {
    let mut buf = LinkBuffer::with_pool(&ChunkPool::new());
    buf.write_slice(&vec![1; readable]);
    buf.flush();
    buf.write_slice(&vec![2; unflushed]);
    buf
}

#[track_caller]
fn refuses(limit: usize, buf: &mut LinkBuffer, want: usize) {
    let before = (buf.len(), buf.malloc_len(), buf.memory_size());
    let e = with_limit(limit, || buf.try_reserve_recv(want)).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::OutOfMemory, "{e}");
    assert_eq!((buf.len(), buf.malloc_len(), buf.memory_size()), before);
}

#[track_caller]
fn lends(limit: usize, buf: &mut LinkBuffer, want: usize) {
    let room = with_limit(limit, || buf.try_reserve_recv(want)).unwrap();
    assert!(room.capacity() >= want, "{} of {want}", room.capacity());
}

#[test]
fn a_large_landing_that_cannot_be_had_is_an_error() {
    let mut buf = LinkBuffer::new();
    refuses(MIB, &mut buf, 2 * MIB);
    lends(2 * MIB, &mut buf, 2 * MIB);
}

#[test]
fn a_landing_counts_what_is_moved_into_it() {
    // All of it goes into one chunk, together with what is to come.
    refuses(3 * MIB / 2, &mut filled(MIB, 0), MIB);
    refuses(3 * MIB / 2, &mut filled(0, MIB), MIB);
    refuses(3 * MIB / 2, &mut filled(MIB / 2, MIB / 2), MIB);
    lends(100 * MIB, &mut filled(MIB, 0), MIB);
    lends(100 * MIB, &mut filled(MIB / 2, MIB / 2), MIB);
}

#[test]
fn room_that_is_there_needs_no_allocation() {
    let mut buf = LinkBuffer::with_capacity(2 * MIB);
    lends(1000, &mut buf, 2 * MIB);
}

#[test]
fn a_large_malloc_that_cannot_be_had_is_an_error() {
    let mut buf = LinkBuffer::new();
    for n in [2 * MIB, usize::MAX] {
        let e = with_limit(MIB, || Writer::malloc(&mut buf, n).map(|_| ())).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::OutOfMemory, "{e}");
        let e = with_limit(MIB, || Writer::reserve_raw(&mut buf, n).map(|_| ())).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::OutOfMemory, "{e}");
    }
    assert_eq!((buf.malloc_len(), buf.memory_size()), (0, 0));

    let mut buf = LinkBuffer::with_capacity(2 * MIB);
    let n = with_limit(1000, || Writer::malloc(&mut buf, 2 * MIB).map(|m| m.len())).unwrap();
    assert_eq!(n, 2 * MIB);
}

/// What a panic says.
fn panic_text(f: impl FnOnce()) -> String {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        // A report of the panic takes memory.
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            LIMIT.with(|limit| limit.set(usize::MAX));
            report(info);
        }));
    });
    let f = std::panic::AssertUnwindSafe(f);
    let payload = std::panic::catch_unwind(f).expect_err("it panics");
    payload.downcast_ref::<String>().expect("a text").clone()
}

#[test]
fn what_has_no_error_panics_and_leaves_the_process_alone() {
    let data = vec![1; 3 * MIB];
    type Way<'a> = (&'a str, &'a dyn Fn(&mut LinkBuffer));
    let ways: [Way<'_>; 5] = [
        ("malloc", &|buf| buf.malloc(1 << 50).fill(1)),
        ("write_slice", &|buf| buf.write_slice(&data)),
        ("reserve_raw", &|buf| drop(buf.reserve_raw(2 * MIB))),
        ("write_with", &|buf| buf.write_with(2 * MIB, |_| ())),
        ("with_capacity", &|_| {
            drop(LinkBuffer::with_capacity(2 * MIB))
        }),
    ];
    for (what, way) in ways {
        let mut buf = filled(10, 10);
        let text = panic_text(|| with_limit(MIB, || way(&mut buf)));
        assert!(text.starts_with("no room for"), "{what}: {text}");
        // The buffer is as before.
        buf.write_slice(&[3; 10]);
        buf.flush();
        assert_eq!(buf.next(30).unwrap(), [[1; 10], [2; 10], [3; 10]].concat());
    }
    let e = with_limit(MIB, || {
        Writer::write_slice(&mut LinkBuffer::new(), &data).unwrap_err()
    });
    assert_eq!(e.kind(), io::ErrorKind::OutOfMemory, "{e}");
}

/// Three chunks of 1 MiB.
fn chained() -> LinkBuffer {
    let mut buf = LinkBuffer::with_pool(&ChunkPool::new());
    for i in 0..3 {
        buf.write_bytes(vec![i; MIB].into());
    }
    buf.flush();
    buf
}

#[test]
fn bytes_that_cannot_be_joined_or_copied_stay_where_they_are() {
    let mut buf = chained();
    let kinds = with_limit(MIB, || {
        [
            buf.peek(3 * MIB).map(drop),
            buf.next(2 * MIB).map(drop),
            buf.next_bytes(3 * MIB).map(drop),
            buf.read_vec(3 * MIB).map(drop),
            buf.read_string(2 * MIB).map(drop),
        ]
        .map(|result| result.unwrap_err().kind())
    });
    assert_eq!(kinds, [io::ErrorKind::OutOfMemory; 5]);
    assert_eq!(buf.len(), 3 * MIB);
    // Not enough for a power of two, but for these.
    let last = with_limit(3 * MIB, || {
        buf.peek(3 * MIB).map(|bytes| bytes[3 * MIB - 1])
    });
    assert_eq!(last.unwrap(), 2);
}

//! What is reported with `--cfg netpoll_leaks`. The list is the process's, so the tests take turns.

#![cfg(netpoll_leaks)]

use bytes::{Bytes, BytesMut};
use linkbuffer::{
    ChunkPool, LinkBuffer,
    leak::{self, Kind},
};
use parking_lot::{Mutex, MutexGuard};
use std::{thread, time::Duration};

static TURN: Mutex<()> = Mutex::new(());

/// Nothing is recorded before a test, and nothing is left after it.
struct Turn(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Turn {
    #[track_caller]
    fn begin() -> Self {
        let turn = TURN.lock();
        assert_eq!(leak::report().len(), 0);
        Self(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !thread::panicking() {
            assert_eq!(leak::report().len(), 0, "{:?}", leak::report());
        }
    }
}

fn filled(n: usize) -> LinkBuffer {
    let mut buf = LinkBuffer::new();
    buf.write_slice(&vec![7; n]);
    buf.flush();
    buf
}

#[track_caller]
fn only() -> leak::Leak {
    let mut leaks = leak::report();
    assert_eq!(leaks.len(), 1, "{leaks:?}");
    leaks.remove(0)
}

#[inline(never)]
fn keeps_a_view(buf: &mut LinkBuffer) -> Bytes {
    buf.next_bytes(600).unwrap()
}

#[inline(never)]
fn keeps_a_slice(buf: &mut LinkBuffer) -> LinkBuffer {
    buf.slice(600).unwrap()
}

#[test]
fn a_kept_view_is_reported_with_the_place_where_it_was_made() {
    let _turn = Turn::begin();
    let mut buf = filled(1000);
    let view = keeps_a_view(&mut buf);
    drop(buf);
    let found = only();
    assert_eq!(
        (found.kind(), found.bytes(), found.pinned()),
        (Kind::View, 600, 4096)
    );
    while found.made().elapsed().is_zero() {}
    assert!(!found.age().is_zero() && found.age() < Duration::from_secs(3600));
    assert_eq!(found.thread(), thread::current().name());
    let text = found.to_string();
    assert!(text.contains("View of 600 bytes, keeps 4096"), "{text}");
    assert!(text.contains("keeps_a_view"), "{text}");
    assert!(
        found.backtrace().to_string().contains("keeps_a_view")
            && !format!("{found:?}").contains("keeps_a_view"),
        "Debug is short"
    );

    // Clones and parts are the same view, on whatever thread they are.
    let part = view.slice(10..20);
    drop(view);
    let part = thread::spawn(move || {
        assert_eq!(only().bytes(), 600);
        part
    })
    .join()
    .unwrap();
    assert_eq!(part, [7; 10][..]);
}

#[test]
fn a_kept_slice_is_reported_until_it_is_dropped_or_appended() {
    let _turn = Turn::begin();
    let mut buf = filled(5000);
    let mut slice = keeps_a_slice(&mut buf);
    let found = only();
    assert_eq!(
        (found.kind(), found.bytes(), found.pinned()),
        (Kind::Slice, 600, 8192)
    );
    assert!(found.backtrace().to_string().contains("keeps_a_slice"));

    let moved = LinkBuffer::take_all(&mut slice);
    drop(slice);
    assert_eq!(only().bytes(), 600);
    let mut out = LinkBuffer::new();
    out.append(moved);
    assert_eq!(leak::report().len(), 0);

    // A slice of what was appended is one of the same chunk.
    out.flush();
    let again = out.slice(600).unwrap();
    assert_eq!((only().bytes(), only().pinned()), (600, 8192));
    drop(again);
}

#[test]
fn what_pins_no_chunk_is_not_reported() {
    let _turn = Turn::begin();
    let mut buf = filled(3000);
    let kept = (buf.next_bytes(511).unwrap(), buf.read_vec(1000).unwrap());
    let linked = Bytes::from(vec![1; 10_000]);
    let mut other = LinkBuffer::from(linked.clone());
    let of_linked = (other.next_bytes(5000).unwrap(), other.slice(5000).unwrap());
    assert_eq!(leak::report().len(), 0);
    drop((kept, of_linked, buf, linked));
}

#[test]
fn a_view_of_what_was_received_knows_the_chunk() {
    let _turn = Turn::begin();
    let pool = ChunkPool::new();
    let mut chunk = pool.take(64 << 10);
    let mut buf = LinkBuffer::with_pool(&pool);
    chunk.extend_from_slice(&[1; 7000]);
    buf.push_chunk(chunk.split());
    chunk.extend_from_slice(&[2; 7000]);
    let second = chunk.split();
    let first = buf.next_bytes(7000).unwrap();
    buf.push_chunk(second);
    let second = buf.next_bytes(6000).unwrap();
    let sizes: Vec<_> = leak::report()
        .iter()
        .map(|leak| (leak.bytes(), leak.pinned()))
        .collect();
    assert_eq!(sizes, [(7000, 64 << 10), (6000, 64 << 10)], "oldest first");
    drop((first, second));

    // A chunk from elsewhere: what is known is what is seen.
    buf.push_chunk(BytesMut::from(&[3; 2000][..]));
    buf.skip(1000).unwrap();
    let view = buf.next_bytes(1500).unwrap();
    assert_eq!((only().bytes(), only().pinned()), (1500, 1500));
    drop(view);
}

#[test]
fn memory_is_shared_and_comes_back_as_without_the_feature() {
    let _turn = Turn::begin();
    let pool = ChunkPool::new();
    for _ in 0..10 {
        let mut buf = LinkBuffer::with_pool(&pool);
        buf.write_slice(&[5; 4000]);
        buf.flush();
        let at = buf.peek(4000).unwrap().as_ptr();
        let view = buf.next_bytes(2000).unwrap();
        assert_eq!(view.as_ptr(), at, "not copied");
        let slice = buf.slice(2000).unwrap();
        drop(buf);
        assert_eq!((&view[..], slice.len()), (&[5; 2000][..], 2000));
    }
    assert_eq!(pool.stats().allocated, 1);
}

static OTHERS: linkbuffer::netpoll_only::LeakRegistry<Kind> =
    linkbuffer::netpoll_only::LeakRegistry::new();

#[test]
fn another_library_may_keep_a_list_of_its_own() {
    let guard = OTHERS.track(Kind::View, 0, 0, "of nobody yet".to_owned());
    let shown = format!("{:?}", OTHERS.report());
    assert!(shown.starts_with("[View of nobody yet, made "), "{shown}");
    assert_eq!(OTHERS.report()[0].note(), "of nobody yet");
    guard.describe(String::new());
    let shown = format!("{:?}", OTHERS.report());
    assert!(shown.starts_with("[View, made "), "{shown}");
    assert_eq!(OTHERS.report()[0].note(), "");
    assert!(format!("{guard:?}").starts_with("LeakGuard("), "{guard:?}");
    drop(guard);
    assert_eq!(OTHERS.report().len(), 0);
}

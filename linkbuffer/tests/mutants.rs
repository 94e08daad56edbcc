//! Thresholds and upkeep that mutation testing found to be unobserved by the other tests.

use bytes::{Bytes, BytesMut};
use linkbuffer::{ChunkPool, LinkBuffer};

#[test]
fn a_single_chunk_is_one() {
    let mut buf = LinkBuffer::from(Bytes::from(vec![1; 5000]));
    assert!(buf.is_single_chunk());
    buf.append(LinkBuffer::from(Bytes::from(vec![2; 5000])));
    buf.flush();
    assert!(!buf.is_single_chunk());
    buf.skip(5000).unwrap();
    assert!(buf.is_single_chunk());
}

#[test]
fn no_capacity_is_no_chunk() {
    assert_eq!(LinkBuffer::with_capacity(0).held(), 0);
    assert!(LinkBuffer::with_capacity(1).held() > 0);
}

#[test]
fn what_compaction_copies_ends_at_4_kib() {
    const CHUNK: usize = 64 << 10;
    for (n, copied) in [(4096, true), (4097, false)] {
        let mut chunk = BytesMut::with_capacity(CHUNK);
        let mut buf = LinkBuffer::new();
        chunk.resize(n, 7);
        buf.push_chunk(chunk.split());
        buf.compact();
        assert_eq!(chunk.try_reclaim(CHUNK), copied, "{n} bytes");
        assert_eq!(buf, vec![7; n][..]);
    }
}

#[test]
fn debug_counts_the_nodes_that_hold_something() {
    let nodes = |buf: &LinkBuffer| {
        let text = format!("{buf:?}");
        let at = text.find("nodes: ").unwrap() + "nodes: ".len();
        text[at..].split([',', ' ']).next().unwrap().to_owned()
    };
    let mut buf = LinkBuffer::new();
    assert_eq!(nodes(&buf), "0");
    buf.write_bytes(Bytes::from(vec![1; 5000]));
    assert_eq!(nodes(&buf), "1");
    buf.write_bytes(Bytes::from(vec![1; 5000]));
    assert_eq!(nodes(&buf), "2");
}

#[test]
fn there_is_one_global_pool() {
    assert!(std::ptr::eq(ChunkPool::global(), ChunkPool::global()));
}

#[test]
fn the_largest_chunk_that_is_kept_has_one_mib() {
    let pool = ChunkPool::with_retain(8 << 20);
    pool.put(BytesMut::with_capacity(1 << 20));
    assert_eq!((pool.stats().returned, pool.stats().discarded), (1, 0));
    pool.put(BytesMut::with_capacity((1 << 20) + 1));
    assert_eq!((pool.stats().returned, pool.stats().discarded), (1, 1));
}

#[test]
fn a_chunk_with_exactly_the_spare_room_is_used_on() {
    const SIZE: usize = 16 << 10;
    let pool = ChunkPool::new();
    let mut chunk = pool.take(SIZE);
    chunk.resize(SIZE - 1000, 1);
    let view = chunk.split();
    let room = chunk.capacity();
    pool.renew(&mut chunk, room, SIZE);
    assert_eq!((chunk.capacity(), pool.stats().allocated), (room, 1));
    pool.renew(&mut chunk, room + 1, SIZE);
    assert!(chunk.capacity() > room);
    assert_eq!(pool.stats().allocated, 2);
    drop(view);
}

#[test]
fn views_are_shared_from_512_bytes_on() {
    for (n, shared) in [(511, false), (512, true)] {
        let mut buf = LinkBuffer::from(Bytes::from(vec![3; 2000]));
        let at = buf.peek(n).unwrap().as_ptr();
        let view = buf.next_bytes(n).unwrap();
        assert_eq!(view.as_ptr() == at, shared, "{n} bytes");
    }
}

#[test]
fn insertions_are_copied_up_to_4_kib_where_there_is_room() {
    for (n, copied) in [(10, true), (4091, true), (4092, false)] {
        let mut buf = LinkBuffer::with_capacity(32 << 10);
        buf.malloc(8).copy_from_slice(b"headtail");
        buf.write_direct(Bytes::from(vec![b'-'; n]), 4);
        buf.flush();
        assert_eq!(buf.is_single_chunk(), copied, "{n} bytes before 4");
        assert_eq!(buf.next(4).unwrap(), b"head");
        assert!(buf.next(n).unwrap().iter().all(|&b| b == b'-'));
        assert_eq!(buf.next(4).unwrap(), b"tail");
    }
}

#[test]
fn a_cut_through_own_chunks_gives_all_of_them_back() {
    let pool = ChunkPool::with_retain(1 << 20);
    let mut buf = LinkBuffer::with_pool(&pool);
    for _ in 0..4 {
        buf.malloc(5000);
        buf.write_bytes(Bytes::from(vec![1; 5000]));
        buf.malloc(60_000);
    }
    buf.malloc_ack(1);
    drop(buf);
    let stats = pool.stats();
    assert_eq!(stats.returned, stats.allocated + stats.reused);
    assert_eq!(stats.discarded, 0);
}

#[test]
fn a_view_of_the_next_chunk_is_shared_although_the_one_before_is_just_used_up() {
    let (first, second) = (Bytes::from(vec![1; 5000]), Bytes::from(vec![2; 5000]));
    let mut buf = LinkBuffer::from(first);
    buf.append(LinkBuffer::from(second.clone()));
    buf.flush();
    buf.skip(4900).unwrap();
    // Copied, being short; what it was copied from is consumed to its end.
    assert_eq!(buf.next_bytes(100).unwrap(), vec![1; 100]);
    let view = buf.next_bytes(1000).unwrap();
    assert_eq!(view.as_ptr(), second.as_ptr());
    assert_eq!((view.len(), buf.len()), (1000, 4000));
    assert_eq!(
        buf.next_bytes(512).unwrap().as_ptr(),
        second[1000..].as_ptr()
    );
}

#[test]
fn a_raw_slot_knows_whether_it_is_empty() {
    let mut buf = LinkBuffer::new();
    assert!(buf.reserve_raw(0).is_empty());
    assert!(!buf.reserve_raw(1).is_empty());
}

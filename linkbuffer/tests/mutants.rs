//! Thresholds and upkeep that mutation testing found to be unobserved by the other tests.

use std::io::{IoSlice, Write};

use bytes::{Buf, Bytes, BytesMut};
use linkbuffer::netpoll_only::NetpollBuffer as _;
use linkbuffer::{ChunkPool, LengthSlot, LinkBuffer, ShortRead, WriteError};

/// A pool of its own, and a buffer of it with `n` readable bytes.
fn pooled(n: usize) -> (ChunkPool, LinkBuffer) {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_slice(&vec![1; n]);
    buf.flush();
    (pool, buf)
}

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
    assert_eq!(LinkBuffer::with_capacity(0).memory_size(), 0);
    assert!(LinkBuffer::with_capacity(1).memory_size() > 0);
}

#[test]
fn what_compaction_copies_ends_at_eight_ninths_of_a_chunk() {
    const CHUNK: usize = 64 << 10;
    for (n, copied) in [(4096, true), (57_000, true), (60_000, false)] {
        let pool = ChunkPool::new();
        let mut chunk = pool.take(CHUNK);
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
    pool.reserve(&mut chunk, room, SIZE);
    assert_eq!((chunk.capacity(), pool.stats().allocated), (room, 1));
    pool.reserve(&mut chunk, room + 1, SIZE);
    assert!(chunk.capacity() > room);
    assert_eq!(pool.stats().allocated, 2);
    drop(view);
}

#[test]
fn views_are_shared_from_512_bytes_on() {
    for (n, shared) in [(511, false), (512, true)] {
        // Memory that never was a chunk.
        let mut buf = LinkBuffer::from(Bytes::from_static(&[3; 2000]));
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
    // Memory that never was a chunk.
    let first = Bytes::from_static(&[1; 5000]);
    let second = Bytes::from_static(&[2; 5000]);
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
fn a_view_of_the_next_chunk_is_shared_from_512_bytes_to_all_of_it() {
    for (n, shared) in [(511, false), (512, true), (5000, true)] {
        // Memory that never was a chunk.
        let first = Bytes::from_static(&[1; 5000]);
        let second = Bytes::from_static(&[2; 5000]);
        let mut buf = LinkBuffer::from(first);
        buf.append(LinkBuffer::from(second.clone()));
        buf.flush();
        buf.next(5000).unwrap();
        let view = buf.next_bytes(n).unwrap();
        assert_eq!(view, second[..n]);
        assert_eq!(view.as_ptr() == second.as_ptr(), shared, "{n} bytes");
    }
}

#[test]
fn a_received_piece_that_was_handed_out_is_not_kept() {
    let pool = ChunkPool::new();
    for sliced in [false, true] {
        let mut chunk = pool.take(4096);
        chunk.resize(2000, 1);
        let mut buf = LinkBuffer::with_pool(&pool);
        buf.push_chunk(chunk.split());
        if sliced {
            drop(buf.slice(2000).unwrap());
        } else {
            drop(buf.next_bytes(2000).unwrap());
        }
        assert!(
            chunk.try_reclaim(4096),
            "the buffer is empty, and there is no view"
        );
        drop(buf);
    }
}

#[test]
fn the_rest_of_a_chunk_whose_bytes_were_handed_out_is_kept_from_512_bytes_on() {
    for (n, kept) in [(3000, true), (3584, true), (3585, false), (4096, false)] {
        let (pool, mut buf) = pooled(n);
        let view = buf.next_bytes(n).unwrap();
        let held = if kept { 4096 - n } else { 0 };
        assert_eq!(buf.memory_size(), held, "{n} bytes");
        // What is not kept waits in the pool for its views.
        assert_eq!(pool.stats().retained, if kept { 0 } else { 4096 });
        assert_eq!(view.len(), n);
    }
}

#[test]
fn a_raw_slot_knows_whether_it_is_empty() {
    let mut buf = LinkBuffer::new();
    assert!(buf.reserve_raw(0).is_empty());
    assert!(!buf.reserve_raw(1).is_empty());
}

#[test]
fn a_short_read_tells_both_numbers() {
    let e = ShortRead::new(10, 3);
    assert_eq!((e.wanted(), e.available()), (10, 3));
}

#[test]
fn the_traits_of_others_return_what_was_done() {
    let mut buf = LinkBuffer::new();
    assert_eq!(buf.write(b"abc").unwrap(), 3);
    assert_eq!((buf.len(), buf.malloc_len()), (0, 3));
    Write::flush(&mut buf).unwrap();
    assert_eq!((buf.len(), buf.malloc_len()), (3, 0));
    buf.append(LinkBuffer::from(Bytes::from(vec![1; 5000])));
    buf.flush();
    let mut slices = [IoSlice::new(&[]); 4];
    assert_eq!(buf.chunks_vectored(&mut slices), 2);
    assert_eq!((slices[0].len(), slices[1].len()), (3, 5000));
}

// ---- slots

#[track_caller]
fn assert_gone(filled: Result<(), WriteError>) {
    assert!(
        matches!(filled, Err(WriteError::SlotGone { .. })),
        "{filled:?}"
    );
}

#[test]
fn a_slot_made_after_an_insertion_ends_with_the_flush() {
    let mut buf = LinkBuffer::new();
    let first: LengthSlot<4> = buf.reserve_slot();
    buf.write_direct(Bytes::from_static(b"x"), 4);
    let second: LengthSlot<4> = buf.reserve_slot();
    buf.fill_slot(first, *b"1111").unwrap();
    buf.flush();
    assert_gone(buf.fill_raw(second.into_raw(), b"2222"));
    assert_eq!(buf, "x1111\0\0\0\0");
}

#[test]
fn an_insertion_between_two_slots_tears_neither() {
    for between in [0, 3] {
        let mut buf = LinkBuffer::new();
        let first: LengthSlot<4> = buf.reserve_slot();
        buf.write_slice(&b"---"[..between]);
        let second: LengthSlot<4> = buf.reserve_slot();
        buf.write_direct(Bytes::from_static(b"inserted"), 4);
        buf.fill_slot(first, *b"1111").unwrap();
        buf.fill_slot(second, *b"2222").unwrap();
        buf.flush();
        let dashes = &"---"[..between];
        assert_eq!(buf, format!("1111{dashes}inserted2222").as_bytes());
    }
}

#[test]
fn a_slot_that_was_moved_and_then_cut_stays_gone() {
    let mut buf = LinkBuffer::new();
    let slot: LengthSlot<4> = buf.reserve_slot();
    buf.write_direct(Bytes::from_static(b"x"), 4);
    buf.malloc_ack(4);
    buf.write_str("others");
    assert_gone(buf.fill_raw(slot.into_raw(), b"1111"));
    buf.flush();
    assert_eq!(buf, "x\0\0\0others");
}

#[test]
fn slots_are_moved_in_message_after_message() {
    let mut buf = LinkBuffer::new();
    for _ in 0..100 {
        let slot: LengthSlot<4> = buf.reserve_slot();
        buf.write_direct(Bytes::from_static(b"0123456789"), 4);
        buf.fill_slot(slot, *b"slot").unwrap();
        buf.flush();
        assert_eq!(buf.next(14).unwrap(), b"0123456789slot");
    }
}

#[test]
fn a_slot_of_any_length_ends_with_the_flush() {
    for len in [0, 1] {
        let mut buf = LinkBuffer::new();
        buf.write_str("before");
        let slot = buf.reserve_raw(len);
        buf.flush();
        buf.write_str("after");
        assert_gone(buf.fill_raw(slot, &b"!"[..len]));
        buf.flush();
        assert_eq!(
            buf,
            ["before", "\0", "after"]
                .concat()
                .replace('\0', &"\0"[..len])
                .as_str()
        );
    }
}

#[test]
fn a_slot_without_bytes_goes_with_the_buffer_that_is_taken() {
    let mut buf = LinkBuffer::new();
    buf.write_str("x");
    let slot = buf.reserve_raw(0);
    let _taken = LinkBuffer::take_all(&mut buf);
    buf.write_str("y");
    assert_gone(buf.fill_raw(slot, b""));
}

#[test]
fn a_slot_that_was_cut_stays_gone_when_the_buffer_is_released() {
    let mut buf = LinkBuffer::new();
    let slot: LengthSlot<4> = buf.reserve_slot();
    buf.malloc_ack(0);
    buf.release();
    buf.write_str("data");
    assert_gone(buf.fill_raw(slot.into_raw(), b"slot"));
}

// ---- received pieces

/// A piece of `n` bytes with room for `spare` more.
fn piece(n: usize, spare: usize) -> BytesMut {
    let mut piece = BytesMut::with_capacity(n + spare);
    piece.resize(n, 1);
    piece
}

#[test]
fn what_finds_no_room_in_the_last_chunk_goes_to_another_one() {
    let (pool, mut buf) = pooled(4000);
    let mut chunk = piece(400, 0);
    buf.push_filled(&mut chunk);
    assert_eq!((buf.len(), buf.is_single_chunk()), (4400, false));
    assert_eq!(pool.stats().allocated, 2);
}

#[test]
fn positions_count_what_was_received() {
    let mut buf = LinkBuffer::with_capacity(64 << 10);
    buf.write_str("x");
    buf.flush();
    for _ in 0..20 {
        buf.push_filled(&mut piece(400, 0));
    }
    assert_eq!(buf.len(), 8001);
}

#[test]
fn a_short_piece_goes_into_the_room_of_the_last_one_if_it_fits() {
    // Bytes of the second piece, room behind the first: whether it is copied there.
    for (n, room, copied) in [
        (511, 600, true),
        (511, 511, true),
        (511, 510, false),
        (100, 0, false),
        (512, 600, false),
    ] {
        let mut buf = LinkBuffer::new();
        buf.push_chunk(piece(700, room));
        buf.push_chunk(piece(n, 0));
        assert_eq!(buf.len(), 700 + n);
        assert_eq!(buf.is_single_chunk(), copied, "{n} bytes, room for {room}");
    }
}

#[test]
fn a_piece_of_512_bytes_is_linked_and_a_shorter_one_copied() {
    for (n, linked) in [(511, false), (512, true)] {
        let mut buf = LinkBuffer::from(Bytes::from(vec![1; 5000]));
        let second = piece(n, 0);
        let at = second.as_ptr();
        buf.push_chunk(second);
        buf.skip(5000).unwrap();
        assert_eq!(buf.peek(n).unwrap().as_ptr() == at, linked, "{n} bytes");
    }
}

#[test]
fn the_only_piece_is_linked_however_short_it_is() {
    let mut buf = LinkBuffer::new();
    let only = piece(100, 0);
    let at = only.as_ptr();
    buf.commit_recv(only);
    assert_eq!(buf.peek(100).unwrap().as_ptr(), at);
}

#[test]
fn room_that_comes_back_empty_publishes_nothing() {
    let mut buf = LinkBuffer::new();
    let room = buf.reserve_recv(100);
    buf.write_str("x");
    buf.commit_recv(room);
    assert_eq!((buf.len(), buf.malloc_len()), (0, 1));
}

/// Two chunks: a received piece of 600 bytes, and 100 bytes with room for more.
fn two_chunks() -> LinkBuffer {
    let mut buf = LinkBuffer::from(piece(600, 0));
    buf.push_chunk(piece(100, 0));
    assert_eq!(
        buf.chunks().map(<[u8]>::len).collect::<Vec<_>>(),
        [600, 100]
    );
    buf
}

#[test]
fn a_landing_joins_what_came_in_another_chunk() {
    let mut buf = two_chunks();
    let mut room = buf.reserve_recv(1000);
    room.resize(1000, 1);
    buf.commit_recv(room);
    assert_eq!((buf.len(), buf.is_single_chunk()), (1700, true));
}

#[test]
fn a_landing_moves_nothing_if_all_is_in_the_last_chunk() {
    let mut buf = two_chunks();
    let at = buf.chunks().nth(1).unwrap().as_ptr();
    buf.next(600).unwrap();
    let mut room = buf.reserve_recv(1000);
    room.resize(1000, 1);
    buf.commit_recv(room);
    assert_eq!(buf.peek(1100).unwrap().as_ptr(), at);
}

#[test]
fn a_few_bytes_to_come_are_no_reason_to_move_many() {
    for (want, moved) in [(999, false), (1000, true)] {
        let mut buf = LinkBuffer::from(piece(4000, 0));
        let mut room = buf.reserve_recv(want);
        room.resize(want, 1);
        buf.commit_recv(room);
        assert_eq!(buf.len(), 4000 + want);
        assert_eq!(buf.is_single_chunk(), moved, "{want} bytes to come");
    }
}

#[test]
fn a_chunk_that_was_read_to_its_end_is_landed_in_again() {
    let (pool, mut buf) = pooled(3000);
    buf.next(3000).unwrap();
    assert_eq!(buf.reserve_recv(2000).capacity(), 4096);
    assert_eq!((pool.stats().allocated, pool.stats().reused), (1, 0));
}

#[test]
fn up_to_8_mib_are_lent_at_once() {
    const MOST: usize = 8 << 20;
    for (want, least, most) in [(MOST, MOST, MOST), (MOST + 1, 64 << 10, 1 << 20)] {
        let room = LinkBuffer::with_capacity(1 << 20)
            .reserve_recv(want)
            .capacity();
        assert!((least..=most).contains(&room), "{room} for {want}");
    }
}

#[test]
fn a_buffer_of_many_chunks_goes_in_front_of_an_empty_one() {
    let mut buf = LinkBuffer::new();
    let mut other = LinkBuffer::from(Bytes::from(vec![1; 5000]));
    other.append(LinkBuffer::from(Bytes::from(vec![2; 5000])));
    buf.push_front(other);
    let bytes = buf.read_vec(10_000).unwrap();
    assert_eq!(bytes, [vec![1; 5000], vec![2; 5000]].concat());
}

#[test]
fn releasing_loses_nothing_of_a_received_piece() {
    let mut buf = LinkBuffer::from(piece(700, 0));
    buf.release();
    assert_eq!(buf.read_vec(700).unwrap(), [1; 700]);
}

#[test]
fn a_plain_buffer_is_one_chunk_that_nobody_else_owns() {
    let mut buf = LinkBuffer::new();
    buf.write_str("x");
    assert!(buf.owns_all_memory());
    buf.write_bytes(Bytes::from(vec![1; 5000]));
    assert!(!buf.owns_all_memory());
    assert!(LinkBuffer::from(piece(1, 0)).owns_all_memory());
    assert!(!LinkBuffer::from(Bytes::from_static(b"x")).owns_all_memory());
}

// ---- room for what is written

#[test]
fn appended_buffers_are_linked_from_512_bytes_on() {
    for (n, linked) in [(100, false), (511, false), (512, true)] {
        let data = Bytes::from(vec![1; n]);
        let mut buf = LinkBuffer::new();
        buf.append(LinkBuffer::from(data.clone()));
        buf.flush();
        assert_eq!(
            buf.peek(n).unwrap().as_ptr() == data.as_ptr(),
            linked,
            "{n} bytes"
        );
    }
}

#[test]
fn a_chunk_is_filled_to_its_last_byte() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_slice(&[1; 1000]);
    buf.write_slice(&[1; 3096]);
    assert_eq!((buf.memory_size(), pool.stats().allocated), (4096, 1));

    // Behind a linked payload too, down to 64 bytes.
    for (rest, chunks) in [(64, 1), (63, 2)] {
        let pool = ChunkPool::new();
        let mut buf = LinkBuffer::with_pool(&pool);
        buf.write_slice(&vec![1; 4096 - rest]);
        buf.write_bytes(Bytes::from(vec![2; 5000]));
        buf.write_slice(&vec![3; rest]);
        assert_eq!(pool.stats().allocated, chunks, "{rest} bytes left");
    }
}

#[test]
fn a_large_batch_has_few_chunks_before_and_after_its_flush() {
    for flushed in [false, true] {
        let mut buf = LinkBuffer::new();
        for _ in 0..256 {
            buf.write_slice(&[1; 1000]);
            if flushed {
                buf.flush();
            }
        }
        buf.flush();
        let chunks = buf.chunks().count();
        assert!(chunks <= 10, "{chunks}");
    }
}

#[test]
fn an_empty_chunk_is_used_again_if_it_is_large_enough() {
    // A pool that keeps nothing: what is given back has to be allocated anew.
    let pool = ChunkPool::with_retain(0);
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_slice(&[1; 3000]);
    buf.flush();
    drop(buf.next_bytes(3000).unwrap());
    buf.write_slice(&[2; 2000]);
    assert_eq!((pool.stats().allocated, buf.memory_size()), (1, 4096));
    buf.flush();
    buf.next(2000).unwrap();
    buf.write_slice(&[3; 10_000]);
    assert_eq!((pool.stats().allocated, buf.memory_size()), (2, 16 << 10));
    // One that is too large for the pool has no size that it could be reclaimed to.
    buf.write_slice(&vec![4; 2 << 20]);
    buf.flush();
    let n = buf.len();
    buf.next(n).unwrap();
    buf.write_slice(&vec![5; 3 << 20]);
    assert_eq!(buf.malloc_len(), 3 << 20);
}

#[test]
fn chunks_that_were_read_are_given_back_but_for_the_room_of_the_next_write() {
    // There is room behind the last bytes: nothing else is kept.
    let mut buf = LinkBuffer::with_pool(&ChunkPool::new());
    for _ in 0..20 {
        buf.write_slice(&[1; 3000]);
    }
    buf.flush();
    let all = buf.memory_size();
    while buf.len() > 1000 {
        buf.skip(1000).unwrap();
    }
    assert!(
        buf.memory_size() <= all / 2,
        "{} of {all}",
        buf.memory_size()
    );

    // There is none behind linked or received bytes: the first chunk becomes it.
    let pool = ChunkPool::with_retain(0);
    for received in [false, true] {
        let mut buf = LinkBuffer::with_pool(&pool);
        buf.write_slice(&[1; 3000]);
        if received {
            buf.push_chunk(piece(5000, 1000));
        } else {
            buf.write_bytes(Bytes::from(vec![1; 5000]));
        }
        buf.flush();
        let before = pool.stats().allocated;
        buf.skip(4000).unwrap();
        buf.write_slice(&[1; 4000]);
        assert_eq!(pool.stats().allocated, before);
    }
}

#[test]
fn a_cut_keeps_the_room_it_makes() {
    let pool = ChunkPool::with_retain(0);
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_slice(&[1; 4096]);
    buf.write_bytes(Bytes::from(vec![2; 5000]));
    buf.write_slice(&[3; 60_000]);
    buf.malloc_ack(4096);
    buf.write_slice(&[4; 60_000]);
    assert_eq!(pool.stats().allocated, 2);

    // Exactly the linked payload is cut: what comes next continues the chunk before it.
    let mut buf = LinkBuffer::new();
    buf.write_slice(&[1; 100]);
    buf.write_bytes(Bytes::from(vec![2; 5000]));
    buf.malloc_ack(100);
    buf.write_slice(&[3; 100]);
    buf.flush();
    assert!(buf.is_single_chunk());
}

#[test]
fn inserting_nothing_divides_nothing() {
    let mut buf = LinkBuffer::new();
    buf.malloc(8000);
    buf.write_direct(Bytes::new(), 5000);
    buf.flush();
    assert_eq!((buf.len(), buf.is_single_chunk()), (8000, true));
}

#[test]
fn a_pool_may_keep_everything() {
    let pool = ChunkPool::with_retain(usize::MAX);
    pool.put(pool.take(1 << 20));
    assert_eq!(pool.stats().retained, 1 << 20);
}

#[test]
fn joined_bytes_go_to_a_chunk_of_the_pool() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_slice(&[1; 4000]);
    buf.write_bytes(Bytes::from(vec![2; 5000]));
    buf.flush();
    assert_eq!(buf.peek(5000).unwrap()[3999..4001], [1, 2]);
    drop(buf);
    assert_eq!(pool.stats().retained, 4096 + 8192);

    // No more than was asked for, and nothing of the rest.
    let mut buf = LinkBuffer::from(Bytes::from(vec![1; 5000]));
    buf.append(LinkBuffer::from(Bytes::from(vec![2; 20_000])));
    buf.flush();
    buf.peek(6000).unwrap();
    let sizes: Vec<_> = buf.chunks().map(<[u8]>::len).collect();
    assert_eq!(sizes, [6000, 19_000]);
}

#[test]
fn an_empty_buffer_keeps_a_chunk_of_up_to_64_kib() {
    const MOST: usize = 64 << 10;
    for (n, held) in [(5000, 8192), (MOST, MOST), (MOST + 1, 0)] {
        let mut buf = LinkBuffer::with_pool(&ChunkPool::new());
        buf.write_slice(&vec![1; n]);
        buf.flush();
        buf.skip(n).unwrap();
        assert_eq!(buf.memory_size(), held, "{n} bytes");
    }
}

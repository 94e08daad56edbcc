//! What a buffer holds, what it gives back, and to whom.

use bytes::{Bytes, BytesMut};
use linkbuffer::netpoll_only::NetpollBuffer as _;
use linkbuffer::{ChunkPool, ChunkStats, Chunks, IoReader, IoWriter, LinkBuffer, RawLengthSlot};
use linkbuffer::{LengthSlot, ShortRead, WriteError};

#[test]
fn the_types_can_be_sent_and_shared() {
    fn check<T: Send + Sync + Unpin + 'static>() {}
    check::<LinkBuffer>();
    check::<ChunkPool>();
    check::<ChunkStats>();
    check::<Chunks<'static>>();
    check::<LengthSlot<4>>();
    check::<RawLengthSlot>();
    check::<ShortRead>();
    check::<WriteError>();
    check::<IoReader<std::net::TcpStream>>();
    check::<IoWriter<std::net::TcpStream>>();
}

#[cfg(not(netpoll_leaks))]
#[test]
fn a_buffer_is_small() {
    assert!(
        size_of::<LinkBuffer>() <= 104,
        "{} bytes",
        size_of::<LinkBuffer>()
    );
}

#[test]
fn a_new_or_released_buffer_holds_nothing() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    assert_eq!((buf.memory_size(), pool.stats().allocated), (0, 0));
    buf.write_slice(&[1; 100]);
    buf.write_bytes(Bytes::from(vec![2; 10_000]));
    buf.write_slice(&[3; 100]);
    buf.flush();
    buf.release();
    assert_eq!(buf.len(), 10_200, "nothing unread is lost");
    buf.consume(10_200);
    assert!(buf.memory_size() > 0, "the tail is kept for the next write");
    buf.release();
    assert_eq!(buf.memory_size(), 0);
    assert_eq!(pool.stats().retained, 4096, "{:?}", pool.stats());
}

#[test]
fn a_landing_is_released_too() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    let mut room = buf.reserve_recv(10_000);
    room.extend_from_slice(&[1; 9000]);
    buf.commit_recv(room);
    buf.consume(9000);
    buf.release();
    assert_eq!((buf.memory_size(), pool.stats().retained), (0, 16 << 10));
    // lent while released: it is dropped, and the chunk comes back all the same
    let room = buf.reserve_recv(10_000);
    buf.release();
    buf.commit_recv(room);
    assert_eq!(buf.memory_size(), 0);
    assert_eq!(buf.reserve_recv(10_000).capacity(), 16 << 10);
    assert_eq!(pool.stats().allocated, 1);
}

#[test]
fn room_for_the_next_write_stays_behind_what_is_appended() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_str("first");
    buf.flush();
    buf.consume(5);
    let held = buf.memory_size();
    buf.append(LinkBuffer::from(vec![1; 5000]));
    assert_eq!(buf.memory_size(), held + 5000);
    buf.push_front(LinkBuffer::from(vec![2; 600]));
    buf.write_str("next");
    assert_eq!(buf.memory_size(), held + 5600);
    assert_eq!((pool.stats().allocated, pool.stats().reused), (1, 0));
}

#[test]
fn a_cut_through_many_chunks_loses_none_of_them() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    for _ in 0..100 {
        buf.write_slice(&[1; 100]);
        buf.write_bytes(Bytes::from(vec![2; 5000]));
        buf.write_slice(&[3; 100]);
        buf.malloc_ack(50);
        buf.flush();
        buf.consume(50);
    }
    // A second one when the first is used up in the middle of a message.
    assert!(pool.stats().allocated <= 2, "{:?}", pool.stats());
}

#[test]
fn dropping_gives_every_chunk_back() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    for _ in 0..20 {
        buf.malloc(3000);
    }
    let chunks = pool.stats().allocated;
    drop(buf);
    assert_eq!(pool.stats().returned, chunks);
    let mut buf = LinkBuffer::with_pool(&pool);
    for _ in 0..20 {
        buf.malloc(3000);
    }
    assert_eq!(pool.stats().allocated, chunks, "all of them were reused");
}

#[test]
fn a_chunk_whose_views_die_on_another_thread_is_used_again() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    for _ in 0..100 {
        buf.write_slice(&[1; 4096]);
        buf.flush();
        let view = buf.next_bytes(4096).unwrap();
        buf.release();
        std::thread::spawn(move || assert_eq!(view, vec![1; 4096]))
            .join()
            .unwrap();
    }
    assert_eq!(pool.stats().allocated, 1);
}

#[test]
fn a_small_rest_does_not_pin_a_large_chunk() {
    let pool = ChunkPool::new();
    let mut chunk = pool.take(64 << 10);
    let mut buf = LinkBuffer::with_pool(&pool);
    chunk.extend_from_slice(&[7; 64 << 10]);
    buf.push_chunk(chunk.split());
    buf.consume((64 << 10) - 100);
    buf.write_slice(b"unflushed");
    let slot: LengthSlot<2> = buf.reserve_slot();
    assert!(!chunk.try_reclaim(64 << 10), "pinned");
    buf.compact();
    assert!(chunk.try_reclaim(64 << 10));
    assert!(buf.memory_size() <= 192, "{}", buf.memory_size());
    assert_eq!((buf.len(), buf.malloc_len()), (100, 11));
    buf.fill_slot(slot, *b"ok").unwrap();
    let at = buf.peek(100).unwrap().as_ptr();
    buf.compact();
    assert_eq!(
        buf.peek(100).unwrap().as_ptr(),
        at,
        "it is not copied again"
    );
    buf.flush();
    assert_eq!(buf.next(100).unwrap(), [7; 100]);
    assert_eq!(buf, "unflushedok");
    buf.consume(11);
    buf.compact();
    assert_eq!(buf.memory_size(), 0);
}

#[test]
fn a_large_content_is_not_copied_for_compactness() {
    // Memory that never was a chunk.
    let body = Bytes::from_static(&[1; 10_000]);
    let mut buf = LinkBuffer::from(body.clone());
    buf.compact();
    assert_eq!(buf.peek(10_000).unwrap().as_ptr(), body.as_ptr());
}

#[test]
fn a_small_rest_in_a_lent_chunk_is_moved_even_after_compaction() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.push_chunk(BytesMut::from(&b"head"[..]));
    buf.compact();
    let room = buf.reserve_recv(100_000);
    buf.commit_recv(room);
    assert!(buf.memory_size() > 100_000);
    buf.compact();
    assert!(buf.memory_size() < 200, "{}", buf.memory_size());
    assert_eq!(buf, "head");
}

#[test]
fn a_trickle_of_tiny_packets_neither_pins_nor_chains() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    for i in 0..1000u32 {
        // each from another chunk, as if other connections were served in between
        buf.push_chunk(BytesMut::from(&[i as u8][..]));
    }
    assert!(buf.chunks().count() <= 3, "{:?}", buf);
    assert!(buf.memory_size() <= 8 << 10, "{:?}", buf);
    let all: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    assert_eq!(buf.next(1000).unwrap(), all);
}

#[test]
fn pieces_of_one_chunk_become_one_again() {
    let mut chunk = ChunkPool::new().take(8192);
    let mut buf = LinkBuffer::new();
    let at = chunk.as_ptr();
    for i in 0..5u8 {
        chunk.extend_from_slice(&[i; 200]);
        buf.push_chunk(chunk.split());
    }
    assert!(buf.is_single_chunk());
    assert_eq!(buf.next_bytes(1000).unwrap().as_ptr(), at);
}

#[test]
fn pieces_rejoin_although_the_buffer_had_room_of_its_own() {
    let mut buf = LinkBuffer::new();
    let mut room = buf.reserve_recv(5000);
    room.extend_from_slice(&[0; 5000]);
    buf.commit_recv(room);
    buf.consume(5000);
    let mut chunk = BytesMut::with_capacity(16 << 10);
    for _ in 0..10 {
        chunk.extend_from_slice(&[1; 1448]);
        buf.push_chunk(chunk.split());
    }
    assert!(buf.is_single_chunk(), "{buf:?}");
}

#[test]
fn short_pieces_go_into_room_of_the_buffer_and_pin_nothing() {
    let mut chunk = BytesMut::with_capacity(16 << 10);
    let mut buf = LinkBuffer::with_capacity(4096);
    let own = buf.memory_size();
    for _ in 0..100 {
        for n in [1, 511, 100] {
            chunk.extend_from_slice(&vec![n as u8; n]);
            buf.push_filled(&mut chunk);
        }
        assert_eq!(chunk.capacity(), 16 << 10, "nothing was cut off it");
        assert_eq!(buf.memory_size(), own);
        assert!(buf.is_single_chunk());
        buf.next(612).unwrap();
    }
    chunk.extend_from_slice(&[1; 512]);
    buf.push_filled(&mut chunk);
    assert_eq!(chunk.capacity(), (16 << 10) - 512, "long ones are linked");
    chunk.extend_from_slice(&[2; 1000]);
    buf.push_filled(&mut chunk);
    assert!(buf.is_single_chunk(), "and joined with what they continue");
    buf.consume(1512);
    chunk.extend_from_slice(&[3; 10]);
    buf.push_filled(&mut chunk);
    assert_eq!(
        chunk.capacity(),
        (16 << 10) - 1512,
        "the room is still there"
    );
    assert_eq!(buf, [3; 10]);
    let mut without = LinkBuffer::new();
    chunk.extend_from_slice(&[4; 10]);
    without.push_filled(&mut chunk);
    assert_eq!(chunk.capacity(), (16 << 10) - 1522);
    assert_eq!(without, [4; 10]);
}

#[test]
fn one_long_message_is_not_remembered_for_ever() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    for n in [200_000, 5 << 20] {
        let mut room = buf.reserve_recv(n);
        room.resize(n, 1);
        buf.commit_recv(room);
        assert!(buf.memory_size() >= n);
        buf.consume(n);
        assert_eq!(buf.memory_size(), 0);
    }
    assert_eq!(pool.stats().retained, 256 << 10);
}

#[test]
fn a_large_message_lands_in_one_chunk() {
    for (already, total) in [
        (0, 100_000),
        (40, 70_000),
        (20_000, 1 << 20),
        (60_000, 100_000),
    ] {
        let mut buf = LinkBuffer::new();
        let mut chunk = BytesMut::from(&vec![1; already + 10][..]);
        buf.push_chunk(chunk.split());
        buf.consume(10);
        let mut moved = None;
        while buf.len() < total {
            let mut room = buf.reserve_recv(total - buf.len());
            assert!(room.capacity() >= total - buf.len());
            let n = (total - buf.len()).min(17_000);
            room.resize(n, 2);
            buf.commit_recv(room);
            let at = buf.peek(buf.len()).unwrap().as_ptr();
            assert_eq!(*moved.get_or_insert(at), at, "it stays where it landed");
        }
        assert!(buf.is_single_chunk());
        let view = buf.next_bytes(total).unwrap();
        assert!(view[..already].iter().all(|&b| b == 1));
        assert!(view[already..].iter().all(|&b| b == 2));
    }
}

#[test]
fn a_huge_message_lands_in_one_chunk_that_grows_with_it() {
    let total = 40 << 20;
    let mut buf = LinkBuffer::new();
    let mut moves = 0;
    let mut last = std::ptr::null();
    while buf.len() < total {
        let mut room = buf.reserve_recv(total - buf.len());
        let n = room.capacity().min(total - buf.len()).min(1 << 20);
        assert!(n >= 64 << 10 || n == total - buf.len());
        room.resize(n, 3);
        buf.commit_recv(room);
        assert!(
            buf.memory_size() <= 2 * buf.len() + (16 << 20),
            "what is claimed is not allocated"
        );
        let at = buf.peek(1).unwrap().as_ptr();
        moves += usize::from(at != last);
        last = at;
    }
    assert!(buf.is_single_chunk());
    assert!(moves <= 5, "{moves} moves");
}

#[test]
fn a_landing_may_be_returned_late_or_never() {
    let mut buf = LinkBuffer::from("abc");
    let mut room = buf.reserve_recv(100);
    room.extend_from_slice(b"def");
    assert_eq!(
        buf.next(3).unwrap(),
        b"abc",
        "the buffer is usable meanwhile"
    );
    buf.push_chunk(BytesMut::from(&b"between"[..]));
    buf.commit_recv(room);
    assert_eq!(buf, "betweendef");
    drop(buf.reserve_recv(100));
    let room = std::thread::spawn({
        let mut room = buf.reserve_recv(100);
        move || {
            room.extend_from_slice(b"!");
            room
        }
    });
    buf.commit_recv(room.join().unwrap());
    buf.commit_recv(BytesMut::new());
    assert_eq!(buf, "betweendef!");
}

#[test]
fn what_could_not_be_sent_goes_back_in_front() {
    let mut buf = LinkBuffer::new();
    buf.write_bytes(Bytes::from(vec![b'b'; 5000]));
    buf.write_str("c");
    buf.flush();
    let mut sending = LinkBuffer::take_all(&mut buf);
    buf.write_str("d");
    sending.consume(4999);
    let at = sending.peek(1).unwrap().as_ptr();
    buf.push_front(sending);
    assert_eq!((buf.len(), buf.malloc_len()), (2, 1));
    assert_eq!(buf.peek(1).unwrap().as_ptr(), at, "not copied");
    buf.push_front(LinkBuffer::from("a"));
    buf.flush();
    assert_eq!(buf, "abcd");
}

#[test]
fn take_keeps_the_pool() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_str("x");
    drop(LinkBuffer::take_all(&mut buf));
    buf.write_str("y");
    assert_eq!((pool.stats().allocated, pool.stats().reused), (1, 1));
}

#[test]
fn one_chunk_is_received_into_again_and_again() {
    const SIZE: usize = 64 << 10;
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    assert!(!buf.has_recv_chunk(SIZE));
    let receive = |buf: &mut LinkBuffer, n: usize| {
        buf.recv_with(SIZE, |room| {
            room.extend_from_slice(&vec![7; n]);
            (room.as_ptr().addr(), room.capacity())
        })
    };
    let (first, room) = receive(&mut buf, 3000);
    assert_eq!((room, buf.len(), buf.is_single_chunk()), (SIZE, 3000, true));
    assert!(!buf.has_recv_chunk(SIZE), "not empty");
    // Read in place, or passed on as a whole: to its start.
    buf.next(3000).unwrap();
    assert!(buf.has_recv_chunk(SIZE));
    assert_eq!(receive(&mut buf, 3000), (first, SIZE));
    let mut out = LinkBuffer::with_pool(&pool);
    buf.forward(3000, &mut out).unwrap();
    assert!(!buf.has_recv_chunk(SIZE), "the chunk went along");
    out.flush();
    assert_eq!(out.peek(1).unwrap().as_ptr().addr(), first, "not copied");
    out.consume(3000);
    assert!(out.has_recv_chunk(SIZE));
    assert_eq!(receive(&mut out, 5000), (first, SIZE));
    // A view is alive: behind it, and to the start again when it is gone.
    let view = out.next_bytes(5000).unwrap();
    assert_eq!(receive(&mut out, 600), (first + 5000, SIZE - 5000));
    out.skip(600).unwrap();
    drop(view);
    assert_eq!(receive(&mut out, 10), (first, SIZE));
    // Less than a quarter would be left.
    out.skip(10).unwrap();
    receive(&mut out, SIZE / 4 * 3);
    let view = out.next_bytes(SIZE / 4 * 3 - 10).unwrap();
    out.skip(10).unwrap();
    assert_eq!(receive(&mut out, 1000).1, SIZE / 4 + 10);
    let more = out.slice(1000).unwrap();
    assert_eq!(receive(&mut out, 10).1, SIZE, "another one");
    assert_eq!((view.len(), more.len()), (SIZE / 4 * 3 - 10, 1000));
    assert_eq!(pool.stats().allocated, 2);
    drop((buf, out, view, more));
    assert_eq!(pool.stats().retained, 2 * SIZE);
}

#[test]
fn what_is_received_behind_something_continues_it() {
    let mut buf = LinkBuffer::new();
    let receive = |buf: &mut LinkBuffer, data: &[u8]| {
        buf.recv_with(64 << 10, |room| room.extend_from_slice(data));
    };
    receive(&mut buf, b"begin, ");
    assert!(buf.spare_capacity() > 60 << 10);
    buf.recv_with(16 << 10, |room| room.extend_from_slice(b"end"));
    assert!(buf.is_single_chunk());
    assert_eq!(buf, "begin, end");
}

#[test]
fn a_receive_that_panics_loses_nothing() {
    let mut buf = LinkBuffer::new();
    let cut = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        buf.recv_with(100, |room| {
            room.extend_from_slice(b"came");
            panic!("while receiving");
        });
    }));
    assert!(cut.is_err());
    buf.write_slice(b" and more");
    buf.flush();
    assert_eq!(buf, "came and more");
}

#[test]
fn what_was_received_goes_out_from_where_it_is() {
    let mut buf = LinkBuffer::new();
    let slot = buf.reserve_raw(4);
    buf.flush();
    buf.skip(4).unwrap();
    buf.recv_with(4096, |room| room.extend_from_slice(b"head, body"));
    buf.skip(6).unwrap();
    let at = buf.peek(4).unwrap().as_ptr();
    assert!(buf.make_unflushed());
    assert_eq!((buf.len(), buf.malloc_len()), (0, 4));
    assert!(buf.fill_raw(slot, b"....").is_err(), "not one of its bytes");
    buf.write_str(", tail");
    buf.flush();
    assert_eq!(buf, "body, tail");
    assert_eq!(buf.peek(1).unwrap().as_ptr(), at);

    buf.write_str("more");
    assert!(!buf.make_unflushed(), "something is unflushed");
    buf.flush();
    buf.write_bytes(Bytes::from(vec![0; 10_000]));
    buf.flush();
    assert!(!buf.make_unflushed(), "more than one piece");
    assert!(!LinkBuffer::from(Bytes::from_static(b"shared")).make_unflushed());
    assert!(!LinkBuffer::new().make_unflushed());
}

#[test]
fn content_goes_its_way_and_room_stays() {
    const SIZE: usize = 64 << 10;
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    let mut kept = Vec::new();
    for i in 0..20 {
        buf.recv_with(SIZE, |room| room.extend_from_slice(&[i; 1000]));
        buf.skip(100).unwrap();
        kept.push(buf.take_filled());
        assert!(buf.is_empty());
    }
    for (i, part) in kept.iter().enumerate() {
        assert_eq!(*part, vec![i as u8; 900]);
        assert_eq!(part.memory_size(), 1000, "and no room");
    }
    assert_eq!(pool.stats().allocated, 1, "all of them share a chunk");
    drop(kept);
    // Behind a linked payload, and with nothing to keep.
    buf.write_bytes(Bytes::from(vec![1; 10_000]));
    buf.write_slice(b"tail");
    buf.flush();
    let both = buf.take_filled();
    assert_eq!((both.len(), both.spare_capacity()), (10_004, 0));
    assert!(buf.spare_capacity() > 3000);
    assert_eq!(both.pool().stats().retained, 0);
    let room = buf.take_chunk();
    assert!(room.is_empty() && room.capacity() > 3000);
    drop((room, both));
    assert_eq!(
        (buf.memory_size(), pool.stats().retained),
        (0, 0),
        "not pooled"
    );
    assert_eq!(buf.take_chunk().capacity(), 0);
    let mut full = LinkBuffer::from(vec![1; 5000]);
    assert_eq!(full.take_chunk().capacity(), 0, "not empty");
    assert_eq!(full.take_filled().len(), 5000);
    assert_eq!(full.memory_size(), 0);
}

#[test]
fn debug_shows_sizes_and_never_contents() {
    let mut buf = LinkBuffer::from("top secret");
    buf.write_str("password");
    let shown = format!("{buf:?}");
    assert!(
        shown.contains("len: 10") && shown.contains("malloc_len: 8"),
        "{shown}"
    );
    assert!(
        !shown.contains("secret") && !shown.contains("password"),
        "{shown}"
    );
    let shown = format!("{:?}", IoReader::new(&b""[..])) + &format!("{:?}", ChunkPool::new());
    assert!(shown.contains("retain"), "{shown}");
}

#[test]
fn many_threads_share_a_pool() {
    let pool = ChunkPool::with_retain(1 << 20);
    let threads: Vec<_> = (0..4u8)
        .map(|i| {
            let pool = pool.clone();
            std::thread::spawn(move || {
                let mut kept = Vec::new();
                for round in 0..2000usize {
                    let mut buf = LinkBuffer::with_pool(&pool);
                    let n = 600 + round * 37 % 9000;
                    assert!(buf.malloc(n).iter().all(|&b| b == 0));
                    buf.malloc_ack(0);
                    buf.write_slice(&vec![i; n]);
                    buf.flush();
                    kept.push(buf.next_bytes(n).unwrap());
                    if kept.len() > 8 {
                        let view = kept.remove(round % 8);
                        assert!(view.iter().all(|&b| b == i));
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    let stats = pool.stats();
    assert!(stats.retained <= 1 << 20, "{stats:?}");
    assert!(stats.reused > stats.allocated, "{stats:?}");
}

/// A piece of `n` bytes of a chunk of 64 KiB, and the rest of the chunk.
fn piece_of_a_chunk(pool: &ChunkPool, n: usize) -> (LinkBuffer, BytesMut) {
    let mut chunk = pool.take(64 << 10);
    chunk.resize(64 << 10, 7);
    let mut buf = LinkBuffer::with_pool(pool);
    buf.push_chunk(chunk.split_to(n));
    (buf, chunk)
}

#[test]
fn a_piece_is_known_to_keep_its_chunk_alive() {
    let pool = ChunkPool::new();
    let (mut buf, rest) = piece_of_a_chunk(&pool, 10_000);
    assert_eq!(buf.pinned(), 64 << 10);
    assert_eq!(linkbuffer::pinned(&rest.freeze()), 64 << 10);
    let view = buf.next_bytes(9000).unwrap();
    assert_eq!(linkbuffer::pinned(&view[100..]), 64 << 10, "in other hands");
    let mut back = LinkBuffer::from(view.slice(1000..7000));
    back.append(LinkBuffer::from(view.slice(7500..9000)));
    assert_eq!(back.pinned(), 64 << 10, "one chunk counts once");
    back.append(LinkBuffer::from(vec![1; 5000]));
    assert_eq!(back.pinned(), (64 << 10) + 5000);
    assert_eq!(linkbuffer::pinned(&[1, 2, 3]), 3);
}

#[test]
fn compact_lets_go_of_every_chunk_that_is_not_used() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    let mut all = Vec::new();
    for i in 0..20 {
        let n = 3000 + 1000 * i;
        let (mut piece, _) = piece_of_a_chunk(&pool, n);
        buf.append(piece.slice(n).unwrap());
        all.extend(vec![7; n]);
        if i % 3 == 0 {
            buf.write_bytes(Bytes::from(vec![9; 5000]));
            all.extend(vec![9; 5000]);
        }
    }
    buf.flush();
    let slot: LengthSlot<2> = buf.reserve_slot();
    assert!(buf.pinned() > 20 * (64 << 10));
    buf.compact();
    assert!(
        buf.pinned() <= all.len() + all.len() / 8,
        "{} for {}",
        buf.pinned(),
        all.len()
    );
    assert_eq!((buf.len(), buf.total_len()), (all.len(), all.len() + 2));
    buf.fill_slot(slot, *b"ok").unwrap();
    buf.flush();
    all.extend_from_slice(b"ok");
    assert_eq!(buf, all);
}

#[test]
fn what_is_compact_is_not_copied_again() {
    let pool = ChunkPool::new();
    let (piece, _) = piece_of_a_chunk(&pool, 10_000);
    let mut buf = piece.into_owned();
    let at = buf.peek(1).unwrap().as_ptr();
    for _ in 0..3 {
        let (piece, _) = piece_of_a_chunk(&pool, 5000);
        buf.append(piece);
        buf.flush();
        buf.compact();
        assert!(buf.pinned() <= buf.len() + buf.len() / 4);
        assert_eq!(buf.peek(1).unwrap().as_ptr(), at);
    }
    let (mut whole, _) = piece_of_a_chunk(&pool, 60_000);
    whole.append(LinkBuffer::from(
        Bytes::from_static(&[2; 6000]).slice(..600),
    ));
    whole.flush();
    let places: Vec<_> = whole.chunks().map(<[u8]>::as_ptr).collect();
    whole.compact();
    assert!(whole.chunks().map(<[u8]>::as_ptr).eq(places));
}

#[test]
fn a_chunk_that_is_half_consumed_is_let_go() {
    let mut buf = LinkBuffer::new();
    let mut room = buf.reserve_recv(1 << 20);
    room.resize(1 << 20, 3);
    buf.commit_recv(room);
    buf.compact();
    let at = buf.peek(1).unwrap().as_ptr();
    buf.skip(1 << 19).unwrap();
    buf.compact();
    assert_eq!(buf.peek(1).unwrap().as_ptr(), at.wrapping_add(1 << 19));
    assert_eq!(buf.excess(), 1 << 19);
    buf.skip(1).unwrap();
    buf.compact();
    assert!(buf.excess() <= 64, "{}", buf.excess());
    assert!(buf.pinned() < 1 << 20);
    assert_eq!(buf, vec![3; (1 << 19) - 1]);
}

#[test]
fn a_view_is_detached_from_its_chunk() {
    let pool = ChunkPool::new();
    let (mut buf, _) = piece_of_a_chunk(&pool, 20_000);
    let view = buf.next_bytes(10_000).unwrap();
    let own = linkbuffer::compact(view.clone());
    assert_eq!((own.len(), linkbuffer::pinned(&own)), (10_000, 10_000));
    assert_eq!(own, view);
    assert_ne!(own.as_ptr(), view.as_ptr());
    let again = linkbuffer::compact(own.clone());
    assert_eq!(again.as_ptr(), own.as_ptr(), "it keeps nothing else");
    let foreign = Bytes::from_static(&[0; 10_000]).slice(..10);
    assert_eq!(
        linkbuffer::compact(foreign.clone()).as_ptr(),
        foreign.as_ptr()
    );
}

#[test]
fn copies_are_collected_without_waste() {
    let mut buf = LinkBuffer::new();
    let (mut most, mut all) = (0, Vec::new());
    for i in 0..1000_usize {
        let n = 1 + (i * 37) % 2000;
        let mut other = LinkBuffer::from(vec![i as u8; n]);
        other.write_slice(b"unflushed");
        other.skip(n / 2).unwrap();
        buf.append_copy(&other);
        assert_eq!(other.total_len(), n - n / 2 + 9);
        all.extend(vec![i as u8; n - n / 2]);
        all.extend_from_slice(b"unflushed");
        let spare = buf.pinned() - buf.total_len();
        assert!(
            spare <= 4096.max(buf.total_len() / 4),
            "{spare} at {}",
            all.len()
        );
        most = most.max(spare);
    }
    assert!(most > 4096, "chunks grow with what is there");
    buf.flush();
    assert_eq!(buf, all);
}

#[test]
fn what_goes_back_counts_with_what_was_consumed_of_it() {
    for behind in ["", "abc"] {
        let mut buf = LinkBuffer::from(behind);
        let mut sent = LinkBuffer::from(Bytes::from_static(&[5; 10_000]));
        sent.skip(9000).unwrap();
        buf.push_front(sent);
        assert_eq!((buf.len(), buf.excess()), (1000 + behind.len(), 9000));
        buf.compact();
        let mut all = vec![5; 1000];
        all.extend_from_slice(behind.as_bytes());
        assert_eq!(buf, all);
        buf.skip(400).unwrap();
        assert_eq!(buf.next_bytes(600).unwrap(), [5; 600][..]);
        assert_eq!(buf, behind);
    }
}

#[test]
fn what_was_put_in_front_is_compacted_too() {
    let pool = ChunkPool::new();
    let (piece, _) = piece_of_a_chunk(&pool, 40_000);
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.push_front(piece);
    assert!(buf.pinned() > buf.len() * 3 / 2);
    buf.compact();
    assert!(buf.pinned() <= buf.len() * 9 / 8 + 64, "{buf:?}");
    buf.write_slice(&[1; 5000]);
    buf.compact();
    buf.flush();
    assert_eq!((buf.len(), buf.next(40_000).unwrap()[39_999]), (45_000, 7));
}

#[test]
fn what_was_not_needed_is_trimmed() {
    const SIZE: usize = 64 << 10;
    let pool = ChunkPool::new();
    let many: Vec<_> = (0..20).map(|_| pool.take(SIZE)).collect();
    for chunk in many {
        pool.put(chunk);
    }
    pool.trim();
    assert_eq!(pool.stats().retained, 20 * SIZE, "all were needed");
    let three: Vec<_> = (0..3).map(|_| pool.take(SIZE)).collect();
    for chunk in three {
        pool.put(chunk);
    }
    for _ in 0..100 {
        let one = pool.take(SIZE);
        pool.put(one);
    }
    pool.trim();
    assert_eq!(pool.stats().retained, 3 * SIZE, "three at once were needed");
    // In use meanwhile: what comes back was not there all the time.
    let one = pool.take(SIZE);
    pool.trim();
    pool.put(one);
    assert_eq!(pool.stats().retained, SIZE, "two were not needed");
    pool.trim();
    assert_eq!(pool.stats().retained, SIZE);
    pool.trim();
    assert_eq!(pool.stats().retained, 0);
    assert_eq!(pool.stats().allocated, 20);
}

#[test]
fn a_trim_lets_go_of_what_is_viewed_for_long() {
    let pool = ChunkPool::new();
    let park = || {
        let mut buf = LinkBuffer::with_pool(&pool);
        buf.write_slice(&[7; 8192]);
        buf.flush();
        buf.next_bytes(8192).unwrap()
    };
    let views = [park(), park()];
    assert_eq!(pool.stats().retained, 2 * 8192);
    pool.trim();
    assert_eq!(pool.stats().retained, 2 * 8192, "just parked");
    let late = park();
    pool.trim();
    assert_eq!(pool.stats().retained, 8192, "the late one");
    assert!(views.iter().all(|view| view == &vec![7; 8192]));
    // Its chunk is free, and gone with the next trim.
    drop(late);
    pool.trim();
    assert_eq!(pool.stats().retained, 0);
    assert_eq!(views[1], vec![7; 8192]);
}

#[test]
fn a_watcher_is_told_once_in_a_period() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let pool = ChunkPool::new();
    let told = std::sync::Arc::new(AtomicUsize::new(0));
    let count = told.clone();
    assert!(pool.watch(move || {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    assert!(!pool.watch(|| panic!("it has one")));
    let told = || told.load(Ordering::Relaxed);
    let chunks: Vec<_> = (0..8).map(|_| pool.take(64 << 10)).collect();
    for (i, chunk) in chunks.into_iter().enumerate() {
        pool.put(chunk);
        assert_eq!(told(), usize::from(i >= 4), "{i}: 256 KiB are little");
    }
    pool.trim();
    assert_eq!(told(), 2, "there is something for the next time");
    pool.trim();
    assert_eq!((told(), pool.stats().retained), (2, 0), "there is not");
    pool.put(pool.take(1 << 20));
    assert_eq!(told(), 3, "again");
}

#[test]
fn a_view_keeps_at_most_16_times_itself() {
    let pool = ChunkPool::new();
    for (n, shares) in [(512, false), (4095, false), (4096, true), (20_000, true)] {
        let (mut buf, rest) = piece_of_a_chunk(&pool, 30_000);
        let at = buf.peek(n).unwrap().as_ptr();
        let view = buf.next_bytes(n).unwrap();
        assert_eq!(view.as_ptr() == at, shares, "{n} bytes");
        assert_eq!((view.len(), buf.len()), (n, 30_000 - n));
        assert!(view.iter().all(|&byte| byte == 7));
        // Of a buffer's own chunk too, and across the first one.
        let mut own = LinkBuffer::with_pool(&pool);
        own.write_slice(&[1; 4096]);
        own.flush();
        own.append(buf);
        own.flush();
        own.skip(4096).unwrap();
        let at = own.peek(n.min(own.len())).unwrap().as_ptr();
        let view = own.next_bytes(n.min(own.len())).unwrap();
        assert_eq!(view.as_ptr() == at, view.len() >= 4096, "{n} bytes");
        drop(rest);
    }
    let mut foreign = LinkBuffer::from(Bytes::from_static(&[5; 100_000]));
    let at = foreign.peek(600).unwrap().as_ptr();
    assert_eq!(foreign.next_bytes(600).unwrap().as_ptr(), at, "as it was");
}

//! What is moved from one buffer to another: copied, linked, or part of a run.

use bytes::{Bytes, BytesMut};
use linkbuffer::LinkBuffer;

/// A receive chunk of 8 KiB whose first `n` bytes are in a buffer.
fn received(n: usize) -> (BytesMut, LinkBuffer) {
    let mut chunk = BytesMut::with_capacity(8192);
    chunk.extend((0..n).map(|i| (i * 31) as u8));
    let mut input = LinkBuffer::new();
    input.push_chunk(chunk.split());
    (chunk, input)
}

fn shared(n: usize) -> Bytes {
    (0..n).map(|i| (i * 31) as u8).collect()
}

#[test]
fn short_messages_pin_nothing_unless_much_lies_behind_them() {
    // Received, skipped and forwarded bytes; whether they are linked.
    for (all, skipped, n, linked) in [
        (600, 0, 511, false),
        (600, 0, 512, true),
        (2000, 0, 64, true),
        (2000, 1500, 64, false),
    ] {
        let (mut chunk, mut input) = received(all);
        let mut out = LinkBuffer::new();
        input.skip(skipped).unwrap();
        input.forward(n, &mut out).unwrap();
        drop(input);
        assert_eq!(out.malloc_len(), n);
        assert_eq!(!chunk.try_reclaim(8192), linked, "{n} of {all}");
    }
}

#[test]
fn across_chunks_short_messages_are_copied_and_long_ones_linked() {
    for (n, pieces) in [(101, 1), (511, 1), (512, 2)] {
        let mut input = LinkBuffer::from(shared(5000));
        input.append(LinkBuffer::from(shared(5000)));
        input.flush();
        input.skip(4900).unwrap();
        let mut out = LinkBuffer::new();
        input.forward(n, &mut out).unwrap();
        out.flush();
        assert_eq!((out.len(), out.chunks().count()), (n, pieces));
    }
}

#[test]
fn who_passes_everything_on_keeps_nothing_of_it() {
    for skipped in [0, 100] {
        let (mut chunk, mut input) = received(2000);
        let mut out = LinkBuffer::new();
        input.skip(skipped).unwrap();
        input.forward(2000 - skipped, &mut out).unwrap();
        drop(out);
        assert!(chunk.try_reclaim(8192), "{skipped} skipped");
        assert!(input.is_empty());
    }
}

#[test]
fn what_is_appended_follows_the_rest_although_the_front_is_used_up() {
    let mut out = LinkBuffer::from(Bytes::from(vec![1; 5000]));
    out.append(LinkBuffer::from(Bytes::from(vec![2; 5000])));
    out.flush();
    out.next(5000).unwrap();
    out.append(LinkBuffer::from(Bytes::from(vec![3; 5000])));
    out.flush();
    let bytes = out.read_vec(10_000).unwrap();
    assert_eq!(bytes, [vec![2; 5000], vec![3; 5000]].concat());
}

#[test]
fn appended_pieces_of_one_chunk_are_one_piece() {
    let mut chunk = BytesMut::with_capacity(8192);
    let mut out = LinkBuffer::new();
    for _ in 0..3 {
        chunk.resize(1000, 1);
        out.append(LinkBuffer::from(chunk.split()));
    }
    out.flush();
    assert_eq!((out.len(), out.is_single_chunk()), (3000, true));
}

#[test]
fn a_run_that_was_cut_does_not_grow_beyond_its_memory() {
    let data = shared(5000);
    let mut out = LinkBuffer::new();
    LinkBuffer::from(data.clone())
        .forward(1000, &mut out)
        .unwrap();
    out.write_direct(Bytes::from_static(b"inserted"), 400);
    out.malloc_ack(600);
    // The bytes that were cut, from another buffer that has them too.
    let mut again = LinkBuffer::from(data.clone());
    again.skip(600).unwrap();
    again.forward(400, &mut out).unwrap();
    out.flush();
    assert_eq!(out.read_vec(1000).unwrap(), data[..1000]);
}

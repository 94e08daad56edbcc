//! Writing: malloc, cuts, insertions, linked payloads, slots.

use std::io::{self, Write};

use bytes::{BufMut, Bytes, BytesMut};
use linkbuffer::{ChunkPool, LengthSlot, LinkBuffer, WriteError, Writer};

fn text(buf: &mut LinkBuffer) -> String {
    buf.flush();
    let n = buf.len();
    buf.read_string(n).unwrap()
}

#[test]
fn a_malloc_is_contiguous_and_zero() {
    let pool = ChunkPool::new();
    for n in [1, 15, 4096, 5000, 70_000, 3 << 20] {
        let mut buf = LinkBuffer::with_pool(&pool);
        buf.malloc(7).fill(0xAA);
        let room = buf.malloc(n);
        assert_eq!(room.len(), n);
        assert!(room.iter().all(|&b| b == 0));
        room.fill(0xBB);
        assert_eq!(buf.malloc_len(), n + 7);
        drop(buf);
    }
    let mut buf = LinkBuffer::with_pool(&pool);
    assert!(
        buf.malloc(70_000).iter().all(|&b| b == 0),
        "nothing of the one before is left in it"
    );
}

#[test]
fn flushing_again_changes_nothing() {
    let mut buf = LinkBuffer::new();
    buf.write_str("abc");
    buf.flush();
    buf.flush();
    assert_eq!(buf.len(), 3);
    buf.skip(2).unwrap();
    buf.malloc(2).copy_from_slice(b"de");
    buf.flush();
    buf.flush();
    assert_eq!(text(&mut buf), "cde");
}

#[test]
fn appended_buffers_in_their_order() {
    let mut buf = LinkBuffer::new();
    for part in ["two", "three"] {
        let mut other = LinkBuffer::new();
        other.write_str(part);
        other.flush();
        buf.append(other);
        assert_eq!(
            buf.len(),
            0,
            "not readable before the flush, whatever it was before"
        );
    }
    assert_eq!(buf.malloc_len(), 8);
    assert_eq!(text(&mut buf), "twothree");
}

#[test]
fn appending_takes_readable_and_unflushed_bytes() {
    for n in [10, 1000, 10_000] {
        let mut other = LinkBuffer::new();
        other.write_slice(&vec![b'x'; n + 1]);
        other.flush();
        other.skip(1).unwrap();
        other.write_slice(&vec![b'y'; n]);
        let mut buf = LinkBuffer::new();
        buf.write_str("<");
        buf.append(other);
        buf.write_str(">");
        assert_eq!(buf.malloc_len(), 2 * n + 2);
        assert_eq!(
            text(&mut buf),
            format!("<{}{}>", "x".repeat(n), "y".repeat(n))
        );
    }
}

#[test]
fn a_linked_payload_is_never_written_to() {
    let owner = Bytes::from(vec![1; 16 << 10]);
    let mut buf = LinkBuffer::new();
    buf.write_bytes(owner.slice(..9 << 10));
    buf.write_slice(&[2; 5000]);
    buf.malloc(100).fill(3);
    buf.malloc_ack((9 << 10) - 1);
    buf.write_slice(&[4; 100]);
    buf.flush();
    assert_eq!(buf.peek(1).unwrap().as_ptr(), owner.as_ptr(), "linked");
    assert!(owner.iter().all(|&b| b == 1));
    buf.skip((9 << 10) - 1).unwrap();
    assert_eq!(buf, [4; 100]);
}

#[test]
fn short_payloads_are_copied_and_long_ones_linked() {
    for (n, linked) in [(1, false), (4095, false), (4096, true), (1 << 20, true)] {
        let body = Bytes::from(vec![1; n]);
        let mut buf = LinkBuffer::new();
        buf.write_bytes(body.clone());
        buf.flush();
        assert_eq!(
            buf.peek(n).unwrap().as_ptr() == body.as_ptr(),
            linked,
            "{n}"
        );
    }
}

#[test]
fn header_body_trailer_use_one_chunk_beside_the_body() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    for _ in 0..3 {
        buf.write_slice(&[1; 100]);
        buf.write_bytes(Bytes::from(vec![2; 8000]));
    }
    buf.write_slice(&[3; 100]);
    buf.flush();
    assert_eq!(pool.stats().allocated, 1);
    assert_eq!(buf.chunks().count(), 7);
}

#[test]
fn insertions_in_every_place() {
    let mut buf = LinkBuffer::new();
    buf.malloc(32)
        .copy_from_slice(b"abcdefghijklmnopqrstuvwxyz012345");
    for (data, remain) in [("AB", 30), ("C", 29), ("DEF", 28), ("GHIJ", 27), ("end", 0)] {
        buf.write_direct(Bytes::from_static(data.as_bytes()), remain);
    }
    assert_eq!(
        text(&mut buf),
        "abABcCdDEFeGHIJfghijklmnopqrstuvwxyz012345end"
    );
}

#[test]
fn insertions_of_large_data_in_every_place() {
    let part = |c: &str| c.repeat(5000);
    let mut buf = LinkBuffer::new();
    buf.malloc(4).copy_from_slice(b"abcd");
    for (c, remain) in [("1", 4), ("2", 0), ("3", 5002), ("4", 2)] {
        buf.write_direct(Bytes::from(part(c)), remain);
    }
    // 1111abcd2222 -> 3 before the last 5002: 1111ab3333cd2222 -> 4 before the last 2
    let expect = format!(
        "{}ab{}cd{}{}22",
        part("1"),
        part("3"),
        &part("2")[..4998],
        part("4")
    );
    assert_eq!(text(&mut buf), expect);
}

#[test]
fn a_cut_behind_an_insertion_leaves_the_next_message_alone() {
    let mut buf = LinkBuffer::new();
    let body = 7168;
    let room = buf.malloc(4 + body);
    room[..4].copy_from_slice(b"head");
    room[4..].fill(b'r');
    buf.write_direct(Bytes::from(vec![b'd'; body]), body);
    buf.malloc_ack(4 + body);
    assert_eq!(buf.malloc_len(), 4 + body);
    buf.flush();
    buf.malloc(4).copy_from_slice(b"next");
    buf.flush();
    assert_eq!(buf.next(4).unwrap(), b"head");
    assert_eq!(buf.next(body).unwrap(), vec![b'd'; body]);
    assert_eq!(buf.next(4).unwrap(), b"next");
    assert!(buf.is_empty());
}

#[test]
fn cuts_of_every_length_through_all_kinds_of_chunks() {
    let whole: Vec<u8> = [
        vec![1; 100],
        vec![2; 5000],
        vec![3; 50],
        vec![4; 6000],
        vec![5; 10],
    ]
    .concat();
    for keep in (0..whole.len())
        .step_by(97)
        .chain([0, 99, 100, 5100, 5150, 11_150, 11_160])
    {
        let mut buf = LinkBuffer::from(&b"before"[..]);
        buf.skip(3).unwrap();
        buf.write_slice(&[1; 100]);
        buf.write_bytes(Bytes::from(vec![2; 5000]));
        buf.write_slice(&[3; 50]);
        buf.write_bytes(Bytes::from(vec![4; 6000]));
        buf.write_slice(&[5; 10]);
        buf.malloc_ack(keep);
        assert_eq!((buf.len(), buf.malloc_len()), (3, keep));
        buf.write_slice(b"after");
        buf.flush();
        let expect = [&b"ore"[..], &whole[..keep], b"after"].concat();
        assert_eq!(buf, expect);
    }
}

#[test]
#[should_panic(expected = "malloc_ack: 5 bytes named, but only 4 are unflushed")]
fn keeping_more_than_was_written() {
    let mut buf = LinkBuffer::new();
    buf.malloc(4);
    buf.malloc_ack(5);
}

#[test]
#[should_panic(expected = "write_direct: 9 bytes named, but only 4 are unflushed")]
fn inserting_before_flushed_bytes() {
    let mut buf = LinkBuffer::from(&b"flushed"[..]);
    buf.malloc(4);
    buf.write_direct(Bytes::from_static(b"x"), 9);
}

#[test]
fn the_trait_returns_errors_where_the_methods_panic() {
    let mut buf = LinkBuffer::new();
    let w: &mut dyn Writer = &mut buf;
    w.malloc(4).unwrap();
    let error = |e: io::Error| {
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
        *e.get_ref()
            .and_then(|e| e.downcast_ref::<WriteError>())
            .unwrap()
    };
    let beyond = error(w.malloc_ack(5).unwrap_err());
    assert!(matches!(
        beyond,
        WriteError::BeyondMalloc {
            wanted: 5,
            malloc_len: 4,
            ..
        }
    ));
    error(w.write_direct(Bytes::from_static(b"x"), 5).unwrap_err());
    let slot = LengthSlot::<2>::reserve(w).unwrap();
    w.malloc_ack(5).unwrap();
    let gone = error(slot.fill(w, [1, 2]).unwrap_err());
    assert!(matches!(gone, WriteError::SlotGone { len: 2, .. }));
    let slot = w.reserve_raw(3).unwrap();
    let size = error(w.fill_raw(slot, b"four").unwrap_err());
    assert!(matches!(
        size,
        WriteError::SlotSize {
            given: 4,
            len: 3,
            ..
        }
    ));
    for n in [isize::MAX as usize, usize::MAX, 1 << 60] {
        assert_eq!(w.malloc(n).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
        assert_eq!(
            w.reserve_raw(n).unwrap_err().kind(),
            io::ErrorKind::OutOfMemory
        );
    }
    assert_eq!(w.malloc_len(), 8);
}

// ---- slots

#[test]
fn a_slot_is_filled_where_it_was_reserved() {
    let mut buf = LinkBuffer::new();
    buf.write_str("a");
    let one: LengthSlot<2> = buf.reserve_slot();
    buf.write_str("b");
    let two: LengthSlot<1> = buf.reserve_slot();
    buf.write_bytes(Bytes::from("c".repeat(5000)));
    let three: LengthSlot<3> = buf.reserve_slot();
    buf.fill_slot(three, *b"333").unwrap();
    buf.fill_slot(one, *b"11").unwrap();
    buf.fill_slot(two, *b"2").unwrap();
    assert_eq!(text(&mut buf), format!("a11b2{}333", "c".repeat(5000)));
}

#[test]
fn an_unfilled_slot_is_zero() {
    let mut buf = LinkBuffer::new();
    let _ = buf.reserve_slot::<4>();
    assert_eq!(text(&mut buf), "\0\0\0\0");
}

#[test]
fn a_slot_keeps_its_place_when_things_move() {
    let large = || Bytes::from("L".repeat(5000));
    let mut buf = LinkBuffer::from(&b"readable"[..]);
    buf.write_str("[");
    let slot: LengthSlot<4> = buf.reserve_slot();
    buf.write_str("]");
    buf.write_direct(Bytes::from_static(b"small"), 5);
    buf.write_direct(large(), 5);
    buf.append(LinkBuffer::from(large()));
    buf.push_front(LinkBuffer::from("front"));
    buf.push_front(LinkBuffer::from(large()));
    buf.write_direct(Bytes::from_static(b"behind"), 5000);
    buf.malloc_ack(buf.malloc_len() - 4999);
    buf.skip(5000).unwrap();
    buf = LinkBuffer::take_all(&mut buf);
    buf.fill_slot(slot, *b"SLOT").unwrap();
    let l = "L".repeat(5000);
    assert_eq!(
        text(&mut buf),
        format!("frontreadable[small{l}SLOT]behindL")
    );
}

#[test]
fn a_slot_of_another_buffer_is_gone() {
    // However much either has written, and whether it has slots of its own.
    for before in [0, 1, 4, 100] {
        for behind in [4, 100, 5000] {
            for slots in [false, true] {
                let mut right = LinkBuffer::new();
                right.write_slice(&vec![b'r'; before]);
                let slot: LengthSlot<4> = right.reserve_slot();
                let mut wrong = LinkBuffer::new();
                if slots {
                    let _ = wrong.reserve_slot::<4>();
                }
                wrong.write_slice(&vec![b'w'; behind]);
                let error = slot.fill(&mut wrong, *b"SLOT").unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
                wrong.flush();
                assert_eq!(wrong.index_of(b'S', 0), None);
            }
        }
    }
}

#[test]
fn slots_go_with_the_bytes_that_are_taken() {
    let mut buf = LinkBuffer::new();
    let first: LengthSlot<4> = buf.reserve_slot();
    let second: LengthSlot<4> = buf.reserve_slot();
    let mut taken = buf.take_all();
    buf.write_slice(&[0; 100]);
    let third: LengthSlot<4> = buf.reserve_slot();
    assert!(second.fill(&mut buf, *b"nope").is_err());
    assert!(third.fill(&mut taken, *b"nope").is_err());
    taken.fill_slot(first, *b"here").unwrap();
    taken.flush();
    assert_eq!(taken, *b"here\0\0\0\0");
    buf.flush();
    assert_eq!(buf, [0; 104][..]);
}

#[test]
fn no_two_of_many_buffers_share_their_slots() {
    let mut buffers: Vec<_> = (0..200).map(|_| LinkBuffer::new()).collect();
    for maker in 0..buffers.len() {
        let slot = buffers[maker].reserve_raw(1);
        buffers[maker].write_slice(&[0; 1000]);
        let other = (maker * 7 + 1) % buffers.len();
        assert!(buffers[other].fill_raw(slot, b"x").is_err());
    }
}

#[test]
fn a_slot_between_two_cuts() {
    let mut buf = LinkBuffer::new();
    let first: LengthSlot<2> = buf.reserve_slot();
    let lost: LengthSlot<2> = buf.reserve_slot();
    buf.malloc_ack(3);
    buf.malloc_ack(2);
    let second: LengthSlot<2> = buf.reserve_slot();
    buf.write_str("xyz");
    buf.malloc_ack(5);
    let third: LengthSlot<2> = buf.reserve_slot();
    buf.fill_slot(third, *b"33").unwrap();
    buf.fill_slot(second, *b"22").unwrap();
    buf.fill_slot(first, *b"11").unwrap();
    assert!(buf.fill_raw(lost.into_raw(), b"00").is_err());
    assert_eq!(text(&mut buf), "1122x33");
}

#[test]
fn filling_a_slot_that_was_cut_away() {
    let mut buf = LinkBuffer::new();
    let slot: LengthSlot<4> = buf.reserve_slot();
    buf.malloc_ack(0);
    buf.write_str("others are there now");
    let error = buf.fill_slot(slot, [1; 4]).unwrap_err();
    assert!(error.to_string().starts_with("the slot of 4 bytes is gone"));
    buf.flush();
    assert_eq!(buf, "others are there now");
}

#[test]
fn a_slot_ends_with_its_bytes() {
    // torn by an insertion, small and large
    for n in [1, 5000] {
        let mut buf = LinkBuffer::new();
        let slot = buf.reserve_raw(4);
        buf.write_direct(Bytes::from(vec![b'x'; n]), 2);
        assert!(buf.fill_raw(slot, b"1234").is_err());
    }
    // flushed, and new bytes in its place
    let mut buf = LinkBuffer::new();
    let slot = buf.reserve_raw(4);
    buf.flush();
    buf.skip(4).unwrap();
    buf.write_slice(&[0; 20]);
    assert!(buf.fill_raw(slot, b"1234").is_err());
    // cut, flushed, and new bytes in its place; also with the buffer released in between
    for release in [false, true] {
        let mut buf = LinkBuffer::new();
        buf.write_slice(&[0; 100]);
        let slot = buf.reserve_raw(4);
        buf.malloc_ack(50);
        buf.flush();
        buf.skip(50).unwrap();
        if release {
            buf.release();
        }
        buf.write_slice(&[0; 200]);
        assert!(buf.fill_raw(slot, b"1234").is_err());
        buf.flush();
        assert_eq!(buf, [0; 200]);
    }
    // gone with the content that was taken
    let mut buf = LinkBuffer::new();
    buf.write_slice(&[0; 10]);
    let slot = buf.reserve_raw(4);
    buf.malloc_ack(0);
    drop(LinkBuffer::take_all(&mut buf));
    buf.write_slice(&[0; 100]);
    assert!(buf.fill_raw(slot, b"1234").is_err());
    // published by something received
    let mut buf = LinkBuffer::new();
    let slot = buf.reserve_raw(4);
    buf.push_chunk((&b"received"[..]).into());
    assert!(buf.fill_raw(slot, b"1234").is_err());
    assert_eq!(buf, "\0\0\0\0received");
}

#[test]
fn a_slot_through_a_trait_object() {
    fn encode(w: &mut dyn Writer, body: &[u8]) -> io::Result<()> {
        let prefix = LengthSlot::<4>::reserve(w)?;
        w.write_slice(body)?;
        prefix.fill(w, (body.len() as u32).to_le_bytes())?;
        w.write_u8(b';')?;
        w.write_str("end")?;
        w.flush()
    }
    fn generic<W: Writer>(w: &mut W) -> io::Result<()> {
        let slot = w.reserve_slot::<1>()?;
        w.fill_slot(slot, *b"!")?;
        w.flush()
    }
    let mut buf = LinkBuffer::new();
    encode(&mut buf, b"abc").unwrap();
    generic(&mut buf).unwrap();
    assert_eq!(buf, "\x03\0\0\0abc;end!");
}

// ---- other ways in

#[test]
fn encoders_write_into_the_tail() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_str("a");
    let n = buf.write_with(10, |out| {
        out.put_slice(b"bcd");
        out.len()
    });
    assert_eq!(n, 3);
    buf.write_with(0, |_| ());
    buf.write_with(10, |out| out.put_slice(&[b'e'; 9000]));
    buf.write_with(10, |out| *out = (&b"swapped"[..]).into());
    buf.write_str("f");
    assert_eq!(buf.malloc_len(), 1 + 3 + 9000 + 7 + 1);
    assert_eq!(text(&mut buf), format!("abcd{}swappedf", "e".repeat(9000)));
}

#[test]
fn an_encoder_that_panics_leaves_the_buffer_as_it_was() {
    let mut buf = LinkBuffer::new();
    buf.write_str("before");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        buf.write_with(100, |out| {
            out.put_slice(b"half of it");
            panic!("the encoder's own");
        });
    }));
    assert!(panicked.is_err());
    assert_eq!(buf.malloc_len(), 6);
    buf.write_str(" after");
    assert_eq!(text(&mut buf), "before after");
}

#[test]
fn std_write_and_extend() {
    let mut buf = LinkBuffer::new();
    write!(buf, "{}-{}", 1, 2).unwrap();
    buf.write_all(b"-3").unwrap();
    assert!(buf.is_empty());
    Write::flush(&mut buf).unwrap();
    buf.extend([b'-', b'4']);
    buf.extend(b"-5");
    buf.extend([Bytes::from_static(b"-6"), Bytes::from(vec![b'7'; 5000])]);
    assert_eq!(text(&mut buf), format!("1-2-3-4-5-6{}", "7".repeat(5000)));
}

#[test]
fn conversions_are_readable_at_once() {
    let body = Bytes::from(vec![1; 600]);
    let at = body.as_ptr();
    for mut buf in [
        LinkBuffer::from(body.clone()),
        LinkBuffer::from(vec![1; 600]),
        LinkBuffer::from(BytesMut::from(&body[..])),
        LinkBuffer::from(&body[..]),
        LinkBuffer::from("\x01".repeat(600)),
        LinkBuffer::from(&*"\x01".repeat(600)),
    ] {
        assert_eq!(buf.len(), 600);
        assert_eq!(buf, body);
        assert_eq!(buf.next_bytes(600).unwrap(), body);
    }
    assert_eq!(LinkBuffer::from(body).peek(1).unwrap().as_ptr(), at);
}

#[test]
fn equality_is_about_bytes_and_not_about_chunks() {
    let mut a = LinkBuffer::new();
    a.append(LinkBuffer::from(vec![1; 5000]));
    a.append(LinkBuffer::from(vec![2; 600]));
    a.flush();
    let mut b = LinkBuffer::from(vec![1; 400]);
    b.append(LinkBuffer::from([vec![1; 4600], vec![2; 600]].concat()));
    assert_ne!(a, b, "unflushed bytes do not count");
    b.flush();
    assert_eq!(a, b);
    let last = b.len() - 1;
    let shorter = b.slice(last).unwrap();
    assert_ne!(a, shorter);
    assert_ne!(LinkBuffer::from("ab"), LinkBuffer::from("ac"));
    assert_eq!(LinkBuffer::new(), LinkBuffer::new());
    assert_eq!(LinkBuffer::from("ab"), b"ab");
    assert_eq!(LinkBuffer::from("ab"), &b"ab"[..]);
    assert_ne!(LinkBuffer::from("ab"), b"abc"[..]);
}

#[test]
fn messages_of_one_receive_are_sent_from_one_piece() {
    let mut chunk = BytesMut::with_capacity(8000);
    let mut received = LinkBuffer::new();
    chunk.extend_from_slice(&[1; 4000]);
    received.push_chunk(chunk.split());

    let mut forwarded = LinkBuffer::new();
    received.forward(1000, &mut forwarded).unwrap();
    received.forward(1000, &mut forwarded).unwrap();
    forwarded.flush();
    assert_eq!(forwarded.chunks().count(), 1, "neighbours");

    let mut appended = LinkBuffer::new();
    appended.append(received.slice(600).unwrap());
    appended.append(received.slice(600).unwrap());
    received.skip(1).unwrap();
    appended.append(received.slice(600).unwrap());
    appended.flush();
    let sizes: Vec<_> = appended.chunks().map(<[u8]>::len).collect();
    assert_eq!(sizes, [1200, 600], "a gap");

    // What is short is copied, and keeps the chunk no longer.
    let mut copied = LinkBuffer::new();
    received.forward(199, &mut copied).unwrap();
    assert_eq!((received.len(), copied.malloc_len()), (0, 199));
    drop((forwarded, appended));
    received.release();
    assert!(chunk.try_reclaim(8000), "nothing points into it");
}

#[test]
fn spare_is_the_room_behind_the_last_byte() {
    let mut buf = LinkBuffer::new();
    assert_eq!(buf.spare_capacity(), 0);
    buf.write_slice(&[1; 100]);
    let spare = buf.spare_capacity();
    assert!(spare >= 100, "{spare}");
    buf.write_slice(&vec![2; spare]);
    assert_eq!((buf.spare_capacity(), buf.malloc_len()), (0, 100 + spare));
    buf.flush();
    assert!(buf.is_single_chunk(), "as much as was said");
    // Memory of others is not written to.
    buf.write_bytes(Bytes::from(vec![3; 5000]));
    buf.flush();
    assert_eq!(buf.spare_capacity(), 0);
}

//! Reading: what is lent, what is shared, what is copied, and what it costs.

use std::io::{self, BufRead, Read};

use bytes::{Buf, Bytes, BytesMut};
use linkbuffer::{ChunkPool, LinkBuffer, ShortRead};

/// A buffer whose readable bytes lie in chunks of the given sizes: 0, 1, 2, ...
fn chunked(sizes: &[usize]) -> (LinkBuffer, Vec<u8>) {
    let mut buf = LinkBuffer::new();
    let mut all = Vec::new();
    for &n in sizes {
        let data: Vec<u8> = (all.len()..all.len() + n)
            .map(|i| (i % 251) as u8)
            .collect();
        buf.append(LinkBuffer::from(Bytes::from(data.clone())));
        all.extend(data);
    }
    buf.flush();
    (buf, all)
}

fn short(e: &io::Error) -> ShortRead {
    assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
    *e.get_ref()
        .and_then(|e| e.downcast_ref())
        .expect("a ShortRead")
}

#[test]
fn an_empty_buffer_has_nothing_to_read() {
    let mut buf = LinkBuffer::new();
    assert!(buf.is_empty() && buf.is_single_chunk());
    assert_eq!(short(&buf.next(10).unwrap_err()), ShortRead::new(10, 0));
    assert_eq!(short(&buf.peek(10).unwrap_err()), ShortRead::new(10, 0));
    assert_eq!(buf.try_until(b'x').unwrap(), None);
    assert_eq!(buf.io_slices(&mut [io::IoSlice::new(&[])]), 0);
    assert_eq!(buf.memory_size(), 0);
}

#[test]
fn writing_and_reading_in_turns() {
    let mut buf = LinkBuffer::new();
    buf.malloc(128).fill(7);
    assert_eq!(
        (buf.len(), buf.malloc_len()),
        (0, 128),
        "not readable before the flush"
    );
    assert!(buf.peek(1).is_err());
    buf.flush();
    assert_eq!((buf.len(), buf.malloc_len()), (128, 0));
    assert_eq!(buf.next(28).unwrap(), [7; 28]);
    assert_eq!(buf.len(), 100);
    assert_eq!(buf.peek(90).unwrap(), [7; 90]);
    assert_eq!(buf.len(), 100, "peeking consumes nothing");
    buf.malloc(2048);
    buf.malloc_ack(1024);
    assert_eq!((buf.len(), buf.malloc_len()), (100, 1024));
    buf.flush();
    assert_eq!(buf.len(), 100 + 1024);
    buf.skip(1024).unwrap();
    assert_eq!(buf.next(100).unwrap(), [0; 100]);
    buf.release();
    assert_eq!(buf.memory_size(), 0);
}

#[test]
fn a_count_of_zero_is_an_empty_result() {
    for mut buf in [
        LinkBuffer::new(),
        LinkBuffer::from(&b"abc"[..]),
        chunked(&[5000, 5000]).0,
    ] {
        let len = buf.len();
        assert_eq!(buf.peek(0).unwrap(), b"");
        assert_eq!(buf.next(0).unwrap(), b"");
        assert_eq!(buf.next_bytes(0).unwrap(), "");
        assert_eq!(buf.read_vec(0).unwrap(), b"");
        assert_eq!(buf.read_string(0).unwrap(), "");
        assert!(buf.slice(0).unwrap().is_empty());
        buf.skip(0).unwrap();
        buf.consume(0);
        assert!(buf.malloc(0).is_empty());
        buf.malloc_ack(0);
        buf.write_slice(&[]);
        buf.write_bytes(Bytes::new());
        buf.write_direct(Bytes::new(), 0);
        buf.append(LinkBuffer::new());
        buf.push_chunk(BytesMut::new());
        buf.push_front(LinkBuffer::new());
        assert_eq!((buf.len(), buf.malloc_len()), (len, 0));
    }
}

#[test]
fn a_failed_read_consumes_nothing_and_says_what_was_missing() {
    let (mut buf, all) = chunked(&[600, 700]);
    for n in [1301, u32::MAX as usize, usize::MAX] {
        let expect = ShortRead::new(n, 1300);
        assert_eq!(short(&buf.peek(n).map(drop).unwrap_err()), expect);
        assert_eq!(short(&buf.next(n).map(drop).unwrap_err()), expect);
        assert_eq!(short(&buf.skip(n).unwrap_err()), expect);
        assert_eq!(short(&buf.next_bytes(n).map(drop).unwrap_err()), expect);
        assert_eq!(short(&buf.slice(n).map(drop).unwrap_err()), expect);
        assert_eq!(short(&buf.read_vec(n).map(drop).unwrap_err()), expect);
        assert_eq!(short(&buf.read_string(n).map(drop).unwrap_err()), expect);
    }
    assert_eq!(
        buf.read_exact(&mut [0; 1301]).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    let text = buf.peek(1301).unwrap_err().to_string();
    assert!(text.contains("1301") && text.contains("1300"), "{text}");
    assert_eq!(buf, all);
}

#[test]
fn all_chunks_are_there_for_a_vectored_write() {
    let mut buf = LinkBuffer::new();
    let mut all = 0;
    for exponent in 0..8 {
        let n = 10usize.pow(exponent);
        buf.malloc(n);
        all += n;
        buf.flush();
        assert_eq!(buf.chunks().map(<[u8]>::len).sum::<usize>(), all);
        let mut slices = [io::IoSlice::new(&[]); 64];
        let used = buf.io_slices(&mut slices);
        assert_eq!(slices[..used].iter().map(|s| s.len()).sum::<usize>(), all);
    }
    let (buf, all) = chunked(&[4096; 10]);
    let mut slices = [io::IoSlice::new(&[]); 3];
    assert_eq!(buf.io_slices(&mut slices), 3);
    assert_eq!(
        slices.iter().flat_map(|s| s.to_vec()).collect::<Vec<_>>(),
        all[..3 * 4096]
    );
}

#[test]
fn peeks_of_any_size_across_chunks() {
    let (mut buf, all) = chunked(&[600, 8000, 700, 5000]);
    for n in [400, 300, 601, 500, 9000, 8999, 14_300, 1] {
        assert_eq!(buf.peek(n).unwrap(), &all[..n]);
        assert_eq!(buf.len(), all.len());
    }
    assert_eq!(buf.next(800).unwrap(), &all[..800]);
    buf.skip(8000).unwrap();
    assert_eq!(buf.next(5500).unwrap(), &all[8800..]);
}

#[test]
fn a_peek_within_one_chunk_does_not_copy() {
    // Memory that never was a chunk.
    let body = Bytes::from_static(&[1; 10_000]);
    let mut buf = LinkBuffer::from(body.clone());
    assert_eq!(buf.peek(10_000).unwrap().as_ptr(), body.as_ptr());
    assert_eq!(buf.next(100).unwrap().as_ptr(), body.as_ptr());
    assert_eq!(buf.next(100).unwrap().as_ptr(), body[100..].as_ptr());
    assert_eq!(buf.next_bytes(5000).unwrap().as_ptr(), body[200..].as_ptr());
    assert_eq!(
        buf.slice(100).unwrap().peek(100).unwrap().as_ptr(),
        body[5200..].as_ptr()
    );
}

#[test]
fn memory_is_constant_over_a_thousand_peeks() {
    let (mut buf, all) = chunked(&[8192; 100]);
    for _ in 0..10 {
        buf.peek(8192).unwrap();
    }
    assert_eq!(
        buf.memory_size(),
        100 * 8192,
        "within a chunk nothing is copied"
    );
    buf.peek(8193).unwrap();
    let held = buf.memory_size();
    assert!(held <= 102 * 8192 + 8192, "{held}");
    for _ in 0..1024 {
        assert_eq!(buf.peek(8193).unwrap(), &all[..8193]);
    }
    assert_eq!(buf.memory_size(), held);
}

#[test]
fn ever_longer_peeks_copy_each_byte_a_few_times_only() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    let part = Bytes::from(vec![3; 4096]);
    (0..100).for_each(|_| buf.write_bytes(part.clone()));
    buf.flush();
    for n in 1..=100 * 4096 / 64 {
        buf.peek(n * 64).unwrap();
    }
    // 8 KiB, 16 KiB .. 512 KiB: each doubling moved to a new chunk once.
    assert!(pool.stats().allocated <= 8, "{:?}", pool.stats());
}

#[test]
fn ever_longer_peeks_beyond_the_largest_pooled_chunk() {
    let mut buf = LinkBuffer::new();
    let part = Bytes::from(vec![3; 64 << 10]);
    (0..64).for_each(|_| buf.write_bytes(part.clone()));
    buf.flush();
    let mut moves = 0;
    let mut last = std::ptr::null();
    for n in (1 << 20..=4 << 20).step_by(32 << 10) {
        let at = buf.peek(n).unwrap().as_ptr();
        moves += usize::from(at != last);
        last = at;
    }
    assert!(moves <= 3, "{moves} chunks for 1, 2 and 4 MiB");
}

#[test]
fn a_slice_and_its_parent_go_separate_ways() {
    let (big, all) = chunked(&[8192 + 7]);
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_slice(b"0123456");
    buf.append(big);
    buf.flush();
    assert_eq!(buf.len(), 8192 + 14);
    assert_eq!(buf.next(5).unwrap(), b"01234");
    let mut part = buf.slice(4).unwrap();
    assert_eq!((part.len(), buf.len()), (4, 8192 + 5));
    assert_eq!(part, [b'5', b'6', 0, 1]);
    part.skip(4).unwrap();
    part.release();
    drop(part);
    assert_eq!(buf.next(8192 + 5).unwrap(), &all[2..]);
}

#[test]
fn a_slice_of_many_chunks_copies_nothing() {
    let parts: Vec<_> = (0..5).map(|i| Bytes::from(vec![i; 5000])).collect();
    let mut buf = LinkBuffer::new();
    parts.iter().for_each(|p| buf.write_bytes(p.clone()));
    buf.flush();
    buf.skip(100).unwrap();
    let rope = buf.slice(20_000).unwrap();
    let at: Vec<_> = rope.chunks().map(<[u8]>::as_ptr).collect();
    let expect: Vec<_> = parts
        .iter()
        .zip([100, 0, 0, 0, 0])
        .map(|(p, from)| p[from..].as_ptr())
        .collect();
    assert_eq!(at, expect);
    assert_eq!(
        rope.chunks().map(<[u8]>::len).collect::<Vec<_>>(),
        [4900, 5000, 5000, 5000, 100]
    );
    assert_eq!(buf.peek(1).unwrap().as_ptr(), parts[4][100..].as_ptr());
}

#[test]
fn views_are_unchanged_while_their_chunk_is_used_on() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    let mut views = Vec::new();
    for i in 0..200u8 {
        buf.write_slice(&[i; 600]);
        buf.flush();
        views.push((i, buf.next_bytes(600).unwrap()));
        buf.write_slice(&[i; 10]);
        buf.flush();
        let rope = buf.slice(10).unwrap();
        assert_eq!(rope, [i; 10]);
    }
    buf.release();
    drop(buf);
    pool.clear();
    let checked = std::thread::spawn(move || {
        views
            .iter()
            .for_each(|(i, view)| assert_eq!(view, &[*i; 600][..]));
        views.len()
    });
    assert_eq!(checked.join().unwrap(), 200);
}

#[test]
fn a_view_survives_an_insertion_and_the_reuse_of_the_rest() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.malloc(2000).fill(b'a');
    buf.write_direct(Bytes::from(vec![b'-'; 5000]), 1000);
    buf.flush();
    let view = buf.next_bytes(1000).unwrap();
    let rope = buf.slice(5500).unwrap();
    buf.skip(500).unwrap();
    buf.release();
    for _ in 0..10 {
        let mut other = LinkBuffer::with_pool(&pool);
        other.malloc(4096).fill(b'Z');
    }
    assert_eq!(view, vec![b'a'; 1000]);
    assert_eq!(rope.chunks().next().unwrap(), [b'-'; 5000]);
    assert_eq!(rope.chunks().nth(1).unwrap(), [b'a'; 500]);
}

#[test]
fn small_views_do_not_pin_their_chunk() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    buf.write_slice(&[1; 4096]);
    buf.flush();
    let views: Vec<_> = (0..8).map(|_| buf.next_bytes(511).unwrap()).collect();
    drop(buf);
    assert_eq!(pool.stats().retained, 4096);
    drop(pool.take(4096));
    assert_eq!(pool.stats().reused, 1, "nothing points into it");
    assert!(views.iter().all(|v| v == &[1; 511][..]));
}

#[test]
fn until_and_index_of_across_chunks() {
    const LINE: usize = 1002;
    let mut buf = LinkBuffer::new();
    for _ in 0..1000 {
        let line = buf.malloc(LINE);
        line[500] = b'\n';
        buf.flush();
    }
    assert_eq!(buf.index_of(b'\n', 0), Some(500));
    assert_eq!(buf.index_of(b'\n', 500), Some(500));
    assert_eq!(buf.index_of(b'\n', 501), Some(500 + LINE));
    assert_eq!(buf.index_of(b'\n', 999 * LINE + 501), None);
    assert_eq!(buf.index_of(b'\n', usize::MAX), None);
    assert_eq!(buf.index_of(b'x', 0), None);
    for left in (0..1000).rev() {
        let line = buf.until(b'\n').unwrap();
        assert_eq!((line.len(), line[500]), (501, b'\n'));
        buf.skip(LINE - 501).unwrap();
        assert_eq!(buf.len(), left * LINE);
    }
    assert_eq!(buf.try_until(b'\n').unwrap(), None);
    assert_eq!(short(&buf.until(b'\n').unwrap_err()), ShortRead::new(1, 0));
}

#[test]
fn unflushed_bytes_are_never_found() {
    let mut buf = LinkBuffer::from(&b"abc"[..]);
    buf.write_slice(b"\n");
    assert_eq!(buf.index_of(b'\n', 0), None);
    assert_eq!(buf.chunks().collect::<Vec<_>>(), [b"abc"]);
    assert!(buf.peek(4).is_err());
    buf.flush();
    assert_eq!(buf.until(b'\n').unwrap(), b"abc\n");
}

#[test]
fn lines() {
    let mut buf = LinkBuffer::from("one\ntwo\r\n\r\n\n\rthree\rx\r\n");
    for line in ["one", "two", "", "", "\rthree\rx"] {
        assert_eq!(buf.read_line_string(8).unwrap(), line);
    }
    assert_eq!(
        short(&buf.read_line_string(8).unwrap_err()),
        ShortRead::new(1, 0)
    );

    let mut buf = LinkBuffer::from("12345678\r\n123456789\n");
    assert_eq!(buf.read_line_string(8).unwrap(), "12345678");
    let e = buf.read_line_string(8).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::InvalidData);
    assert!(
        e.to_string().contains('8') && e.to_string().contains('9'),
        "{e}"
    );
    assert_eq!(
        buf.read_line_string(9).unwrap(),
        "123456789",
        "an error consumes nothing"
    );
}

#[test]
fn a_line_that_can_only_get_too_long_is_refused_before_its_end() {
    let mut buf = LinkBuffer::from("123456789");
    assert_eq!(
        short(&buf.read_line_string(8).unwrap_err()),
        ShortRead::new(10, 9),
        "could end in \\r\\n"
    );
    buf.write_str("0");
    buf.flush();
    assert_eq!(
        buf.read_line_string(8).unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    assert_eq!(
        buf.read_line_string(usize::MAX).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
}

#[test]
fn a_line_whose_end_straddles_chunks() {
    let mut buf = LinkBuffer::new();
    for part in [vec![b'a'; 5000], b"\r".to_vec(), b"\nrest".to_vec()] {
        buf.push_chunk(BytesMut::from(&part[..]));
    }
    assert_eq!(buf.read_line_string(5000).unwrap(), "a".repeat(5000));
    assert_eq!(buf, "rest");
}

#[test]
fn text_must_be_utf8() {
    let mut buf = LinkBuffer::from(&b"ok\xffno\n"[..]);
    assert_eq!(buf.read_string(2).unwrap(), "ok");
    assert_eq!(
        buf.read_string(2).unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    assert_eq!(
        buf.read_line_string(10).unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    assert_eq!(buf.len(), 4, "nothing consumed");
    assert_eq!(buf.read_u8().unwrap(), 0xff);
    let (mut buf, _) = chunked(&[]);
    buf.push_chunk(BytesMut::from(&"ä".repeat(300).as_bytes()[..599]));
    buf.push_chunk(BytesMut::from(&"ä".as_bytes()[1..]));
    assert_eq!(
        buf.read_string(600).unwrap(),
        "ä".repeat(300),
        "a character across chunks"
    );
}

#[test]
fn std_read_copies_what_is_there() {
    let (mut buf, all) = chunked(&[8, 8, 600, 4096]);
    let mut out = [0; 10];
    assert_eq!(buf.read(&mut out).unwrap(), 10);
    assert_eq!(out, all[..10]);
    let mut out = vec![0; 10_000];
    let left = all.len() - 10;
    assert_eq!(buf.read(&mut out).unwrap(), left, "a partial read");
    assert_eq!(out[..left], all[10..]);
    assert_eq!(buf.read(&mut out).unwrap(), 0);

    let (mut buf, all) = chunked(&[700, 700]);
    let mut out = vec![9];
    assert_eq!(buf.read_to_end(&mut out).unwrap(), 1400);
    assert_eq!(out[1..], all);

    let mut lines = LinkBuffer::from("a\nb\n");
    assert_eq!(
        BufRead::lines(&mut lines)
            .map(Result::unwrap)
            .collect::<Vec<_>>(),
        ["a", "b"]
    );
    assert!(lines.fill_buf().unwrap().is_empty());
}

#[test]
fn bytes_buf_over_all_chunks() {
    let (mut buf, all) = chunked(&[3, 1000, 600]);
    assert_eq!(buf.remaining(), 1603);
    assert_eq!(
        buf.get_u32(),
        u32::from_be_bytes(all[..4].try_into().unwrap())
    );
    let rest = buf.copy_to_bytes(1599);
    assert_eq!(rest, all[4..]);
    assert!(!buf.has_remaining());
    assert!(Buf::chunk(&buf).is_empty());
}

#[test]
#[should_panic(expected = "consume: 4 bytes wanted, 3 available")]
fn consuming_more_than_there_is() {
    LinkBuffer::from(&b"abc"[..]).consume(4);
}

#[test]
fn more_than_four_gibibytes() {
    let block = Bytes::from(vec![5; 1 << 20]);
    let mut buf = LinkBuffer::new();
    (0..5000).for_each(|_| buf.write_bytes(block.clone()));
    buf.write_slice(b"end");
    buf.flush();
    assert_eq!(buf.len(), 5000 * (1 << 20) + 3);
    let mut rope = buf.slice((3 << 30) + 5).unwrap();
    assert_eq!(
        (rope.len(), buf.len()),
        ((3 << 30) + 5, 5000 * (1 << 20) - (3 << 30) - 2)
    );
    rope.skip(3 << 30).unwrap();
    assert_eq!(rope, [5; 5]);
    buf.skip(buf.len() - 3).unwrap();
    assert_eq!(buf, "end");
}

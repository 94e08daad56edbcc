//! Codecs against the traits, and the adapters to std::io.

use std::cell::Cell;
use std::io::{self, Read, Write};

use bytes::Bytes;
use linkbuffer::{IoReader, IoWriter, LengthSlot, LinkBuffer, Reader, Writer};

fn encode(w: &mut dyn Writer, body: Bytes) -> io::Result<()> {
    let prefix = LengthSlot::<4>::reserve(w)?;
    let len = body.len() as u32;
    w.write_bytes(body)?;
    prefix.fill(w, len.to_be_bytes())
}

fn decode(r: &mut dyn Reader) -> io::Result<Option<Bytes>> {
    let Some(head) = r.try_peek(4)? else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(head.try_into().unwrap()) as usize;
    let Some(mut frame) = r.try_next_bytes(4 + len)? else {
        return Ok(None);
    };
    Ok(Some(frame.split_off(4)))
}

/// Gives the bytes in pieces of given sizes; a size of 0 is `WouldBlock`, and so is the end.
struct Pieces<'a> {
    data: &'a [u8],
    sizes: Vec<usize>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = if self.sizes.is_empty() {
            0
        } else {
            self.sizes.remove(0)
        };
        if n == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = n.min(out.len()).min(self.data.len());
        let (now, later) = self.data.split_at(n);
        out[..n].copy_from_slice(now);
        self.data = later;
        Ok(n)
    }
}

#[test]
fn one_codec_for_buffers_and_streams() {
    let bodies: Vec<Bytes> = [0, 1, 500, 4096, 70_000]
        .map(|n| Bytes::from(vec![n as u8; n]))
        .into();
    let mut buf = LinkBuffer::new();
    let mut out = IoWriter::new(Vec::new());
    for body in &bodies {
        encode(&mut buf, body.clone()).unwrap();
        encode(&mut out, body.clone()).unwrap();
    }
    Writer::flush(&mut buf).unwrap();
    out.flush().unwrap();
    let (wire, rest) = out.into_parts();
    assert!(rest.is_empty());
    assert_eq!(buf, wire);
    let mut input = IoReader::new(&wire[..]);
    for body in &bodies {
        assert_eq!(decode(&mut buf).unwrap().unwrap(), body);
        assert_eq!(decode(&mut input).unwrap().unwrap(), body);
    }
    assert!(decode(&mut buf).unwrap().is_none(), "more may come");
    assert_eq!(
        decode(&mut input).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
}

#[test]
fn reading_from_a_stream() {
    let data: Vec<u8> = (0..16_384u32).map(|i| i as u8).collect();
    let mut r = IoReader::new(&data[..]);
    assert_eq!(Reader::next(&mut r, 8192).unwrap(), &data[..8192]);
    assert_eq!(r.peek(4096).unwrap(), &data[8192..12_288]);
    assert!(r.available() >= 4096);
    r.skip(8192).unwrap();
    assert_eq!(r.available(), 0);
    let e = r.read_u8().unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(e.to_string(), "1 bytes wanted, 0 available");
}

#[test]
fn what_came_before_the_end_stays_readable() {
    let mut r = IoReader::new(&b"abc"[..]);
    assert_eq!(r.fill(10).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(r.available(), 3);
    assert_eq!(
        r.until(b'x').unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    assert_eq!(r.until(b'b').unwrap(), b"ab");
    let (inner, rest) = r.into_parts();
    assert!(inner.is_empty());
    assert_eq!(rest, "c");
}

#[test]
fn reads_that_wait_get_their_bytes_from_many_pieces() {
    let data = b"head line\r\nkey: value\n\x00\x01binary";
    let sizes = vec![1; data.len()];
    let mut r = IoReader::new(Pieces { data, sizes });
    let r: &mut dyn Reader = &mut r;
    assert_eq!(r.read_line_string(20).unwrap(), "head line");
    assert_eq!(r.until(b':').unwrap(), b"key:");
    assert_eq!(r.read_line_string(20).unwrap(), " value");
    assert_eq!(r.read_u8().unwrap(), 0);
    assert_eq!(r.read_vec(1).unwrap(), [1]);
    assert_eq!(r.slice(3).unwrap(), "bin");
    assert_eq!(r.next_bytes(2).unwrap(), "ar");
    assert_eq!(r.read_string(1).unwrap(), "y");
    assert_eq!(r.fill(1).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn tries_return_none_until_the_bytes_are_there() {
    let data = b"abcd\nefgh";
    let sizes = vec![2, 0, 2, 0, 1, 0, 2, 0, 2];
    let mut r = IoReader::new(Pieces { data, sizes });
    assert_eq!(r.try_peek(3).unwrap(), None);
    assert_eq!(r.available(), 2);
    assert_eq!(r.try_until(b'\n').unwrap(), None);
    assert_eq!(r.available(), 4);
    assert_eq!(r.try_read_line_string(10).unwrap().unwrap(), "abcd");
    assert!(r.try_slice(1).unwrap().is_none());
    assert_eq!(r.try_next(2).unwrap().unwrap(), b"ef");
    assert!(r.try_skip(2).unwrap().is_none());
    r.try_skip(1).unwrap().unwrap();
    assert_eq!(r.try_slice(1).unwrap().unwrap(), "h");
    assert!(r.try_next_bytes(1).unwrap().is_none());
    assert!(r.try_read_line_string(1).unwrap().is_none());
}

#[test]
fn a_line_over_the_limit_ends_the_reading() {
    let mut r = IoReader::new(io::repeat(b'x'));
    let e = r.read_line_string(10_000).unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::InvalidData);
    assert!(r.available() < 30_000, "{}", r.available());
    assert_eq!(
        r.try_read_line_string(100).unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
}

#[test]
fn the_traits_serve_plain_buffers() {
    let mut buf = LinkBuffer::from("ab\ncd");
    let r: &mut dyn Reader = &mut buf;
    assert_eq!(r.available(), 5);
    assert_eq!(r.peek(2).unwrap(), b"ab");
    assert_eq!(r.until(b'\n').unwrap(), b"ab\n");
    assert_eq!(
        r.until(b'\n').unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    assert_eq!(
        r.read_line_string(5).unwrap_err().kind(),
        io::ErrorKind::UnexpectedEof
    );
    assert!(r.try_until(b'\n').unwrap().is_none());
    assert!(!r.try_fill(usize::MAX).unwrap());
    assert_eq!(
        r.fill(3).unwrap_err().to_string(),
        "3 bytes wanted, 2 available"
    );
    let w: &mut dyn Writer = &mut buf;
    w.append(LinkBuffer::from("ef")).unwrap();
    w.write_direct(Bytes::from_static(b"-"), 1).unwrap();
    assert_eq!(w.malloc_len(), 3);
    w.flush().unwrap();
    assert_eq!(buf, "cde-f");
}

/// Takes at most `max` bytes at a time, and refuses every other call.
struct Slow {
    got: Vec<u8>,
    max: usize,
    calls: usize,
    refusal: io::ErrorKind,
    flushed: Cell<bool>,
}

impl Write for Slow {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[io::IoSlice::new(data)])
    }

    fn write_vectored(&mut self, data: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.calls += 1;
        if self.calls % 2 == 0 {
            return Err(self.refusal.into());
        }
        let all: Vec<u8> = data.iter().flat_map(|d| d.to_vec()).collect();
        let n = all.len().min(self.max);
        self.got.extend_from_slice(&all[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushed.set(true);
        Ok(())
    }
}

fn slow(max: usize, refusal: io::ErrorKind) -> Slow {
    Slow {
        got: Vec::new(),
        max,
        calls: 0,
        refusal,
        flushed: Cell::new(false),
    }
}

fn message() -> (Vec<u8>, [Bytes; 3]) {
    let parts = [1, 2, 3].map(|i| Bytes::from(vec![i; 3000 * i as usize]));
    (parts.concat(), parts)
}

#[test]
fn short_and_interrupted_writes_are_continued() {
    let (all, parts) = message();
    let mut w = IoWriter::new(slow(1000, io::ErrorKind::Interrupted));
    parts.into_iter().for_each(|p| w.write_bytes(p).unwrap());
    w.flush().unwrap();
    assert_eq!(w.get_ref().got, all);
    assert!(w.get_ref().flushed.get());
    assert_eq!(w.queued(), 0);
}

#[test]
fn what_an_error_left_over_goes_out_with_the_next_flush() {
    let (all, parts) = message();
    let mut w = IoWriter::new(slow(1000, io::ErrorKind::TimedOut));
    parts.into_iter().for_each(|p| w.write_bytes(p).unwrap());
    let mut failures = 0;
    while let Err(e) = w.flush() {
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        failures += 1;
        assert_eq!(w.queued(), all.len() - 1000 * failures);
        assert!(!w.get_ref().flushed.get());
    }
    assert_eq!(failures, 17);
    assert_eq!(w.into_parts().0.got, all);
}

#[test]
fn a_writer_that_takes_nothing_is_an_error() {
    let mut w = IoWriter::new(slow(0, io::ErrorKind::Interrupted));
    w.write_str("abc").unwrap();
    assert_eq!(w.flush().unwrap_err().kind(), io::ErrorKind::WriteZero);
    assert_eq!(w.into_parts().1, "abc");
}

#[test]
fn more_chunks_than_one_vectored_write_takes() {
    let mut w = IoWriter::new(Vec::new());
    let part = Bytes::from(vec![1; 4096]);
    (0..200).for_each(|_| w.write_bytes(part.clone()).unwrap());
    w.flush().unwrap();
    assert_eq!(w.get_ref().len(), 200 * 4096);
}

#[test]
fn a_whole_stream_through_both_adapters() {
    let data: Vec<u8> = (0..300_000u32).map(|i| (i % 249) as u8).collect();
    let mut r = IoReader::new(&data[..]);
    let mut w = IoWriter::new(Vec::new());
    let mut size = 1;
    loop {
        let n = match r.try_fill(size) {
            Ok(true) => size,
            Ok(false) => unreachable!("a slice never blocks"),
            Err(_) => r.available(),
        };
        if n == 0 {
            break;
        }
        w.append(r.slice(n).unwrap()).unwrap();
        w.flush().unwrap();
        size = size * 3 / 2 + 1;
    }
    assert_eq!(w.get_ref(), &data);
}

/// Everything a writer can do, some of it only to be undone.
fn write_in_every_way(w: &mut dyn Writer) -> io::Result<()> {
    w.malloc(8)?.copy_from_slice(b"headtail");
    assert_eq!(w.malloc_len(), 8);
    w.write_direct(Bytes::from_static(b"-middle-"), 4)?;
    w.write_str("undone")?;
    assert_eq!(w.malloc_len(), 22);
    w.malloc_ack(16)?;
    let slot = LengthSlot::<2>::reserve(w)?;
    w.write_u8(b'!')?;
    w.append(LinkBuffer::from("appended"))?;
    slot.fill(w, *b"42")?;
    assert_eq!(w.malloc_len(), 27);
    w.flush()?;
    assert_eq!(w.malloc_len(), 0);
    Ok(())
}

#[test]
fn every_way_to_write_leads_to_the_inner_writer() {
    let mut buf = LinkBuffer::new();
    write_in_every_way(&mut buf).unwrap();
    assert_eq!(buf, "head-middle-tail42!appended");
    let mut out = IoWriter::new(Vec::new());
    write_in_every_way(&mut out).unwrap();
    assert_eq!(buf, *out.get_ref());
    assert_eq!(
        Writer::malloc_ack(&mut out, 1).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}

/// A source that is interrupted before every read and remembers the largest room it was given.
struct Interrupted<'a> {
    data: &'a [u8],
    interrupt: bool,
    room: usize,
}

impl Read for Interrupted<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(io::ErrorKind::Interrupted.into());
        }
        self.room = self.room.max(out.len());
        self.data.read(out)
    }
}

#[test]
fn an_interrupted_read_is_tried_again() {
    let mut r = IoReader::new(Interrupted {
        data: b"abc",
        interrupt: false,
        room: 0,
    });
    assert_eq!(Reader::next(&mut r, 3).unwrap(), b"abc");
}

#[test]
fn room_is_made_for_what_is_missing_only() {
    const HAVE: usize = 100_000;
    let data = vec![1; HAVE + 10];
    let mut r = IoReader::new(Interrupted {
        data: &data[..HAVE],
        interrupt: false,
        room: 0,
    });
    r.fill(HAVE).unwrap();
    r.get_mut().data = &data[HAVE..];
    r.get_mut().room = 0;
    r.fill(HAVE + 1).unwrap();
    let room = r.get_ref().room;
    assert!(room < HAVE, "room for {room} bytes, wanted was one");
}

/// Bytes that are all there already; it notes what it was asked for.
struct Marks(LinkBuffer, Vec<usize>);

impl Reader for Marks {
    fn available(&self) -> usize {
        self.0.len()
    }

    fn fill(&mut self, n: usize) -> io::Result<()> {
        self.0.fill(n)
    }

    fn try_fill(&mut self, n: usize) -> io::Result<bool> {
        self.1.push(n);
        self.0.try_fill(n)
    }

    fn buffer_mut(&mut self) -> &mut LinkBuffer {
        &mut self.0
    }
}

#[test]
fn a_mark_that_is_not_there_yet_asks_for_one_byte_more() {
    let mut r = Marks(LinkBuffer::from("no end yet"), Vec::new());
    assert_eq!(r.try_until(b'\n').unwrap(), None);
    assert_eq!(r.try_read_line_string(100).unwrap(), None);
    assert_eq!(r.1, [11, 11]);
    r.0.write_str("\n");
    r.0.flush();
    assert_eq!(r.try_until(b'\n').unwrap().unwrap(), b"no end yet\n");
}

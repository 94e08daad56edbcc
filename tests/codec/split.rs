//! Decoders give the same frames however the bytes are cut on their way.
//!
//! Every stream is fed in two pieces, for every cut, in three for every pair of cuts where it is
//! short, and byte by byte; what comes out is compared with a simple reading of the whole.

use bytes::{Bytes, BytesMut};
use netpoll::{Decoder, Delimited, FixedLength, FrameError, LengthField, LinkBuffer, Reader};
use std::io;

use crate::support::in_child;

/// A source that remembers what it was asked for last and did not have.
struct Source {
    buffer: LinkBuffer,
    mark: usize,
    ended: bool,
}

impl Source {
    fn new() -> Self {
        Self {
            buffer: LinkBuffer::new(),
            mark: 0,
            ended: false,
        }
    }

    /// Adds a piece in a chunk of its own.
    fn feed(&mut self, piece: &[u8]) {
        self.buffer
            .append(LinkBuffer::from(Bytes::copy_from_slice(piece)));
        self.buffer.flush();
    }
}

impl Reader for Source {
    fn available(&self) -> usize {
        self.buffer.len()
    }

    fn fill(&mut self, n: usize) -> io::Result<()> {
        match self.try_fill(n)? {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    fn try_fill(&mut self, n: usize) -> io::Result<bool> {
        if self.buffer.len() >= n {
            return Ok(true);
        }
        if self.ended {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.mark = n;
        Ok(false)
    }

    fn buffer_mut(&mut self) -> &mut LinkBuffer {
        &mut self.buffer
    }
}

/// What a stream is: frames, and perhaps an error behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    frames: Vec<Vec<u8>>,
    error: Option<FrameError>,
}

/// Bytes of a frame of any kind.
trait Contents {
    fn contents(self) -> Vec<u8>;
}

impl Contents for Bytes {
    fn contents(self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Contents for LinkBuffer {
    fn contents(self) -> Vec<u8> {
        self.chunks().flatten().copied().collect()
    }
}

impl Contents for Vec<u8> {
    fn contents(self) -> Vec<u8> {
        self
    }
}

impl Contents for String {
    fn contents(self) -> Vec<u8> {
        self.into_bytes()
    }
}

/// Decodes until nothing more comes out of `source`.
fn drain<D>(decoder: &mut D, source: &mut Source, out: &mut Expected)
where
    D: Decoder<Frame: Contents>,
{
    loop {
        let before = source.buffer.len();
        source.mark = 0;
        match decoder.decode(source) {
            Ok(Some(frame)) => out.frames.push(frame.contents()),
            Ok(None) => {
                assert_eq!(
                    source.buffer.len(),
                    before,
                    "only whole frames are consumed"
                );
                assert!(
                    source.mark > before,
                    "the mark {} asks for no more",
                    source.mark
                );
                return;
            }
            Err(error) => {
                assert_eq!(source.buffer.len(), before, "an error consumes nothing");
                let error = FrameError::from_io(&error).expect("a frame error");
                let again = decoder
                    .decode(source)
                    .map(|_| ())
                    .expect_err("it comes again");
                assert_eq!(FrameError::from_io(&again), Some(error));
                out.error = Some(error);
                return;
            }
        }
    }
}

/// Feeds `pieces` one after the other. No frame may be withheld: whatever a stream gives after
/// its first `n` bytes it gives when the last of them arrives. And the wake-up mark may not be
/// above what the next frame or error needs.
fn run<D>(make: impl Fn() -> D, pieces: &[&[u8]]) -> Expected
where
    D: Decoder<Frame: Contents>,
{
    let (mut decoder, mut source) = (make(), Source::new());
    let mut out = Expected {
        frames: Vec::new(),
        error: None,
    };
    let mut mark = 0;
    for &piece in pieces {
        source.feed(piece);
        let known = out.frames.len();
        if out.error.is_none() {
            let available = source.buffer.len();
            drain(&mut decoder, &mut source, &mut out);
            if out.frames.len() > known || out.error.is_some() {
                assert!(
                    mark <= available,
                    "woken at {mark}, but {available} were enough"
                );
            }
            mark = source.mark;
        }
    }
    out
}

/// All cuts of `stream`.
#[track_caller]
fn check<D>(what: &str, make: impl Fn() -> D, stream: &[u8], expected: &Expected)
where
    D: Decoder<Frame: Contents>,
{
    let whole = run(&make, &[stream]);
    assert_eq!(whole, *expected, "{what}: in one piece");
    for first in 0..=stream.len() {
        let pieces = [&stream[..first], &stream[first..]];
        assert_eq!(run(&make, &pieces), *expected, "{what}: cut at {first}");
    }
    assert_eq!(
        run(&make, &stream.chunks(1).collect::<Vec<_>>()),
        *expected,
        "{what}: byte by byte"
    );
    if stream.len() <= 80 {
        for first in 0..=stream.len() {
            for second in first..=stream.len() {
                let pieces = [&stream[..first], &stream[first..second], &stream[second..]];
                assert_eq!(
                    run(&make, &pieces),
                    *expected,
                    "{what}: cut at {first} and {second}"
                );
            }
        }
    }
}

fn frames<const N: usize>(frames: [&[u8]; N]) -> Expected {
    Expected {
        frames: frames.map(<[u8]>::to_vec).into(),
        error: None,
    }
}

fn too_long(mut before: Expected, len: u64, max: usize) -> Expected {
    before.error = Some(FrameError::TooLong { len, max });
    before
}

/// `check` for every way to hand a frame out.
macro_rules! check_views {
    ($what:expr, $decoder:expr, $stream:expr, $expected:expr) => {{
        let (decoder, stream, expected) = ($decoder, &$stream[..], $expected);
        check(
            concat!($what, " as Bytes"),
            || decoder.clone(),
            stream,
            &expected,
        );
        let chains = decoder.clone().frames_as::<LinkBuffer>();
        check(
            concat!($what, " as LinkBuffer"),
            || chains.clone(),
            stream,
            &expected,
        );
        let vecs = decoder.clone().frames_as::<Vec<u8>>();
        check(
            concat!($what, " as Vec"),
            || vecs.clone(),
            stream,
            &expected,
        );
        let strings = decoder.clone().frames_as::<String>();
        check(
            concat!($what, " as String"),
            || strings.clone(),
            stream,
            &expected,
        );
    }};
}

#[test]
fn fixed_length() {
    check_views!("1", FixedLength::new(1), b"abc", frames([b"a", b"b", b"c"]));
    check_views!(
        "4",
        FixedLength::new(4),
        b"abcdefghij",
        frames([b"abcd", b"efgh"])
    );
    check_views!("more than comes", FixedLength::new(40), b"abc", frames([]));
}

#[test]
fn one_byte_delimiter() {
    let lines = Delimited::new("\n", 5);
    let stream = b"one\n\ntwo\nexact\nrest";
    check_views!(
        "byte",
        lines,
        stream,
        frames([b"one", b"", b"two", b"exact"])
    );
    let lines = Delimited::new("\n", 5).keep_delimiter(true);
    check_views!(
        "kept",
        lines,
        stream,
        frames([b"one\n", b"\n", b"two\n", b"exact\n"])
    );
    let lines = Delimited::new("\n", 0);
    check_views!(
        "empty frames only",
        lines,
        b"\n\n\n",
        frames([b"", b"", b""])
    );
}

#[test]
fn sequence_delimiter() {
    let records = Delimited::new("\r\n", 6);
    let stream = b"ab\r\n\r\n\r\r\na\rb\nc\r\n\n\rlast\r\nleft\r";
    let expected = frames([b"ab", b"", b"\r", b"a\rb\nc", b"\n\rlast"]);
    check_views!("CRLF", records, stream, expected);
    let records = Delimited::new("\r\n", 6).keep_delimiter(true);
    check_views!(
        "kept",
        records,
        b"ab\r\n\r\nx",
        frames([b"ab\r\n", b"\r\n"])
    );

    // Delimiters that begin anew inside themselves.
    let records = Delimited::new("aab", 10);
    check_views!(
        "aab",
        records,
        b"aaabxaabaaaab..",
        frames([b"a", b"x", b"aa"])
    );
    let records = Delimited::new("abab", 10);
    check_views!(
        "abab",
        records,
        b"aabababab abab",
        frames([b"a", b"", b" "])
    );
    let records = Delimited::new("--", 10);
    check_views!("dashes", records, b"a---b----", frames([b"a", b"-b", b""]));
}

#[test]
fn lines() {
    let lines = Delimited::lines(5);
    let stream = b"one\r\ntwo\n\r\n\na\rb\nexact\nfives\r\nrest\r";
    let expected = frames([b"one", b"two", b"", b"", b"a\rb", b"exact", b"fives"]);
    check_views!("lines", lines, stream, expected);
    let lines = Delimited::lines(5).keep_delimiter(true);
    check_views!(
        "kept",
        lines,
        b"one\r\ntwo\nx",
        frames([b"one\r\n", b"two\n"])
    );
}

#[test]
fn a_delimited_frame_that_is_too_long() {
    for stream in [&b"ok\nsixsix\nmore\n"[..], b"ok\nsixsixsixsix"] {
        let expected = too_long(frames([b"ok"]), 6, 5);
        check_views!("byte", Delimited::new("\n", 5), stream, expected);
    }
    for stream in [&b"ok\r\nsixsix\r\nmore\r\n"[..], b"ok\r\nfive\r\r\rrrrrrr"] {
        let expected = too_long(frames([b"ok"]), 6, 5);
        check_views!("sequence", Delimited::new("\r\n", 5), stream, expected);
    }
    for stream in [
        &b"ok\nsixsix\nmore"[..],
        b"ok\r\nsixsix\r\nmore",
        b"ok\nsixsixsix",
        b"ok\nsix\r\r\r\r",
    ] {
        let expected = too_long(frames([b"ok"]), 6, 5);
        check_views!("line", Delimited::lines(5), stream, expected);
    }
    check_views!(
        "none allowed",
        Delimited::new("\n", 0),
        b"x",
        too_long(frames([]), 1, 0)
    );
}

#[test]
fn a_frame_too_long_is_known_before_its_end() {
    let mut source = Source::new();
    source.feed(b"123456");
    let error = Delimited::new("\n", 5).decode(&mut source).unwrap_err();
    assert_eq!(
        FrameError::from_io(&error),
        Some(FrameError::TooLong { len: 6, max: 5 })
    );

    let mut source = Source::new();
    source.feed(&[0, 0, 1, 0]);
    let error = LengthField::new(4)
        .max_frame(259)
        .decode(&mut source)
        .unwrap_err();
    assert_eq!(
        FrameError::from_io(&error),
        Some(FrameError::TooLong { len: 260, max: 259 })
    );
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let text = error.to_string();
    assert!(text.contains("260") && text.contains("259"), "{text}");
}

/// The bytes of `value` in a field.
fn field(value: u64, width: usize, little: bool) -> Vec<u8> {
    if little {
        value.to_le_bytes()[..width].to_vec()
    } else {
        value.to_be_bytes()[8 - width..].to_vec()
    }
}

#[test]
fn length_field_of_every_width_and_order() {
    for width in 1..=8 {
        for little in [false, true] {
            let mut decoder = LengthField::new(width);
            if little {
                decoder = decoder.little_endian();
            }
            let body = [b'x'; 200];
            let bodies: [&[u8]; 4] = [b"", b"a", b"hello", &body];
            let stream: Vec<u8> = bodies
                .iter()
                .flat_map(|b| [&field(b.len() as u64, width, little), *b].concat())
                .collect();
            check_views!("width", decoder.clone(), stream, frames(bodies));
            // Another frame, of which the last byte is missing.
            let cut = [&field(9, width, little)[..], b"12345678"].concat();
            check_views!(
                "cut",
                LengthField::new(width),
                &field(9, width, false),
                frames([])
            );
            check_views!("cut body", decoder, cut, frames([]));
        }
    }
}

#[test]
fn length_field_with_every_option() {
    // What the header looks like, and what a length in it means, all for the body "hello".
    for offset in [0, 1, 5] {
        for width in [1, 2, 3, 8] {
            for adjustment in [-13, -3, 0, 2] {
                for strip in [
                    None,
                    Some(0),
                    Some(1),
                    Some(offset + width),
                    Some(offset + width + 2),
                ] {
                    let value = 5 - adjustment;
                    let mut decoder = LengthField::new(width)
                        .offset(offset)
                        .adjustment(adjustment);
                    if let Some(strip) = strip {
                        decoder = decoder.strip(strip);
                    }
                    let frame = [
                        &vec![b'#'; offset][..],
                        &field(value as u64, width, false),
                        b"hello",
                    ]
                    .concat();
                    let stripped = &frame[strip.unwrap_or(offset + width)..];
                    let stream = [&frame[..], &frame, &frame[..frame.len() - 1]].concat();
                    let what = format!("{decoder:?}");
                    let expected = frames([stripped, stripped]);
                    check(&what, || decoder.clone(), &stream, &expected);
                }
            }
        }
    }
}

#[test]
fn length_field_above_the_maximum() {
    // The maximum counts the whole frame.
    let decoder = LengthField::new(2).max_frame(7);
    let stream = b"\0\x05fives\0\x06sixsix";
    check_views!(
        "just above",
        decoder,
        stream,
        too_long(frames([b"fives"]), 8, 7)
    );
    for width in 1..=8 {
        let largest = u64::MAX >> (64 - 8 * width as u32);
        let decoder = LengthField::new(width).max_frame(100);
        let len = largest.saturating_add(width as u64);
        check_views!(
            "largest",
            decoder,
            vec![0xff; width],
            too_long(frames([]), len, 100)
        );
    }
}

#[test]
fn length_field_below_what_every_frame_has() {
    let decoder = LengthField::new(2).adjustment(-2).strip(0);
    let expected = Expected {
        frames: vec![b"\0\x02".to_vec()],
        error: Some(FrameError::TooShort { len: 1, least: 2 }),
    };
    check(
        "includes itself",
        || decoder.clone(),
        b"\0\x02\0\x01abc",
        &expected,
    );
    let decoder = LengthField::new(1).strip(4);
    let expected = Expected {
        frames: vec![b"d".to_vec()],
        error: Some(FrameError::TooShort { len: 3, least: 4 }),
    };
    check(
        "shorter than stripped",
        || decoder.clone(),
        b"\x04abcd\x02ab",
        &expected,
    );
    let decoder = LengthField::new(8).adjustment(i64::MIN);
    let expected = Expected {
        frames: vec![],
        error: Some(FrameError::TooShort {
            len: i64::MIN + 8,
            least: 8,
        }),
    };
    check("far below", || decoder.clone(), &[0; 8], &expected);
}

#[test]
fn large_frames() {
    let bodies = [511, 512, 4096, 70_000].map(|n| vec![b'z'; n]);
    let stream: Vec<u8> = bodies
        .iter()
        .flat_map(|b| [&(b.len() as u32).to_be_bytes()[..], b].concat())
        .collect();
    let lines: Vec<u8> = bodies
        .iter()
        .flat_map(|b| [b, &b"\r\n"[..]].concat())
        .collect();
    let expected = Expected {
        frames: bodies.to_vec(),
        error: None,
    };
    for size in [1, 7, 100, 511, 512, 1460, 4096, 65_536] {
        let pieces: Vec<_> = stream.chunks(size).collect();
        let decoder = LengthField::new(4);
        assert_eq!(run(|| decoder.clone(), &pieces), expected);
        let decoder = LengthField::new(4).frames_as::<LinkBuffer>();
        assert_eq!(run(|| decoder.clone(), &pieces), expected);
        let pieces: Vec<_> = lines.chunks(size).collect();
        let decoder = Delimited::new("\r\n", 70_000);
        assert_eq!(run(|| decoder.clone(), &pieces), expected);
        let decoder = Delimited::lines(70_000).frames_as::<LinkBuffer>();
        assert_eq!(run(|| decoder.clone(), &pieces), expected);
    }
}

#[test]
fn frames_are_views_of_the_received_bytes() {
    // Alone: memory where a chunk of another test was looks like a part of it, and small views of it are copied.
    in_child("frames_are_views_of_the_received_bytes", || {
        let mut chunk = BytesMut::from(&[7; 3000][..]);
        let (start, end) = (chunk.as_ptr(), chunk.as_ptr().wrapping_add(3000));
        let mut buffer = LinkBuffer::new();
        buffer.push_chunk(chunk.split());
        let frame = FixedLength::new(1000).decode(&mut buffer).unwrap().unwrap();
        assert!((start..end).contains(&frame.as_ptr()), "no copy");
        let frame = FixedLength::new(1000)
            .frames_as::<LinkBuffer>()
            .decode(&mut buffer)
            .unwrap()
            .unwrap();
        assert!(
            (start..end).contains(&frame.chunks().next().unwrap().as_ptr()),
            "no copy"
        );
        drop(buffer);
        assert_eq!(frame.contents(), [7; 1000], "a view outlives its buffer");
    });
}

#[test]
fn text_that_is_not_utf8_is_an_error_and_stays() {
    let mut source = Source::new();
    source.feed(b"\x02hi\x02\xff\xfe");
    let mut decoder = LengthField::new(1).frames_as::<String>();
    assert_eq!(decoder.decode(&mut source).unwrap().unwrap(), "hi");
    for _ in 0..2 {
        let error = decoder.decode(&mut source).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(source.buffer.len(), 3);
    }
}

#[test]
fn the_end_between_frames_is_none_and_inside_a_frame_an_error() {
    fn ends<D: Decoder<Frame: Contents>>(make: impl Fn() -> D, frame: &[u8]) {
        let (mut decoder, mut source) = (make(), Source::new());
        source.feed(frame);
        source.ended = true;
        decoder.decode(&mut source).unwrap().expect("a frame");
        for _ in 0..2 {
            assert!(decoder.decode(&mut source).unwrap().is_none());
        }
        for cut in 1..frame.len() {
            let (mut decoder, mut source) = (make(), Source::new());
            source.feed(&frame[..cut]);
            assert!(decoder.decode(&mut source).unwrap().is_none());
            source.ended = true;
            let error = decoder.decode(&mut source).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "cut at {cut}");
        }
    }
    ends(|| FixedLength::new(3), b"abc");
    ends(|| LengthField::new(2), b"\0\x03abc");
    ends(|| Delimited::new("\n", 10), b"abc\n");
    ends(|| Delimited::new("\r\n", 10), b"abc\r\n");
    ends(|| Delimited::lines(10), b"abc\r\n");
}

#[test]
fn an_open_end_is_a_last_frame() {
    let stream = b"one\ntwo";
    for cut in 0..=stream.len() {
        let mut lines = Delimited::lines(3).open_end(true);
        let mut source = Source::new();
        let mut out = Expected {
            frames: Vec::new(),
            error: None,
        };
        for piece in [&stream[..cut], &stream[cut..]] {
            source.feed(piece);
            drain(&mut lines, &mut source, &mut out);
        }
        source.ended = true;
        assert_eq!(lines.decode(&mut source).unwrap().unwrap(), "two");
        assert!(lines.decode(&mut source).unwrap().is_none());
        assert_eq!(out.frames, [b"one"]);
    }
}

#[test]
fn a_search_starts_over_after_a_reset() {
    let mut source = Source::new();
    let mut lines = Delimited::new("\n", 100);
    source.feed(b"123456");
    assert!(lines.decode(&mut source).unwrap().is_none());
    // Somebody else reads, and the same number of bytes is there again.
    source.buffer.skip(6).unwrap();
    source.feed(b"ab\ncde");
    lines.reset();
    assert_eq!(lines.decode(&mut source).unwrap().unwrap(), "ab");
    // Fewer bytes than were searched show by themselves that somebody read.
    assert!(lines.decode(&mut source).unwrap().is_none());
    source.buffer.skip(3).unwrap();
    source.feed(b"\n");
    assert_eq!(lines.decode(&mut source).unwrap().unwrap(), "");
    source.feed(b"cde");
    // A copy knows nothing of the source of the original.
    assert!(lines.decode(&mut source).unwrap().is_none());
    let mut copy = lines.clone();
    let mut other = Source::new();
    other.feed(b"x\nyz");
    assert_eq!(copy.decode(&mut other).unwrap().unwrap(), "x");
}

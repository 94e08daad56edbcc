//! Decoders on arbitrary bytes with arbitrary options, in arbitrary pieces: they agree with a
//! simple reading of the whole, never panic, and what encoders write they read back.

use bytes::Bytes;
use netpoll::{
    Decoder, Delimited, Encoder, FixedLength, FrameError, FrameView, LengthField, LinkBuffer,
    Writer,
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::io;

/// Frames, and what is behind them: an error, or how many bytes are left.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decoded {
    frames: Vec<Vec<u8>>,
    end: Result<usize, FrameError>,
}

/// What the decoder makes of `bytes` cut at `cuts`.
fn decode<D: Decoder<Frame = Bytes>>(mut decoder: D, bytes: &[u8], cuts: &[usize]) -> Decoded {
    let mut buffer = LinkBuffer::new();
    let mut frames = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    for piece in cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]) {
        buffer.append(LinkBuffer::from(Bytes::copy_from_slice(piece)));
        buffer.flush();
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame.to_vec()),
                Ok(None) => break,
                Err(error) => {
                    let error = FrameError::from_io(&error).expect("a buffer itself never fails");
                    return Decoded {
                        frames,
                        end: Err(error),
                    };
                }
            }
        }
    }
    Decoded {
        frames,
        end: Ok(buffer.len()),
    }
}

/// The frames of `bytes`, where `next` gives the front of a frame that is dropped, the frame and
/// what is dropped behind it.
fn model(
    mut bytes: &[u8],
    next: impl Fn(&[u8]) -> Result<Option<(usize, usize, usize)>, FrameError>,
) -> Decoded {
    let mut frames = Vec::new();
    loop {
        match next(bytes) {
            Err(error) => {
                return Decoded {
                    frames,
                    end: Err(error),
                };
            }
            Ok(None) => {
                return Decoded {
                    frames,
                    end: Ok(bytes.len()),
                };
            }
            Ok(Some((skip, len, tail))) => {
                frames.push(bytes[skip..skip + len].to_vec());
                bytes = &bytes[skip + len + tail..];
            }
        }
    }
}

/// Options of a length field.
#[derive(Clone, Copy, Debug)]
struct Options {
    width: usize,
    little: bool,
    offset: usize,
    adjustment: i64,
    strip: Option<usize>,
    max: usize,
}

impl Options {
    fn decoder(self) -> LengthField {
        let mut decoder = LengthField::new(self.width)
            .offset(self.offset)
            .adjustment(self.adjustment)
            .max_frame(self.max);
        if self.little {
            decoder = decoder.little_endian();
        }
        if let Some(strip) = self.strip {
            decoder = decoder.strip(strip);
        }
        decoder
    }

    /// The same in arithmetic without limits.
    fn model(self, bytes: &[u8]) -> Decoded {
        let head = self.offset as i128 + self.width as i128;
        let too_long = |len: i128| FrameError::TooLong {
            len: u64::try_from(len).unwrap_or(u64::MAX),
            max: self.max,
        };
        model(bytes, |bytes| {
            if head > self.max as i128 {
                let len = if head > usize::MAX as i128 {
                    i128::MAX
                } else {
                    head
                };
                return Err(too_long(len));
            }
            if (bytes.len() as i128) < head {
                return Ok(None);
            }
            let mut field = bytes[self.offset..self.offset + self.width].to_vec();
            if self.little {
                field.reverse();
            }
            let value = field
                .iter()
                .fold(0, |value: i128, byte| value * 256 + i128::from(*byte));
            let total = head + value + i128::from(self.adjustment);
            let least = head.max(self.strip.unwrap_or(0) as i128);
            if total < least {
                let len = total.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
                return Err(FrameError::TooShort {
                    len,
                    least: least as usize,
                });
            }
            if total > self.max as i128 {
                return Err(too_long(total));
            }
            if (bytes.len() as i128) < total {
                return Ok(None);
            }
            let strip = self.strip.map_or(head as usize, |strip| strip);
            Ok(Some((strip, total as usize - strip, 0)))
        })
    }
}

/// Mostly small, sometimes at the edge of what there is.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..40usize, 1 => Just(usize::MAX), 1 => any::<usize>()]
}

fn options() -> impl Strategy<Value = Options> {
    let adjustment = prop_oneof![
        8 => -20..20i64,
        1 => select(vec![i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX]),
        1 => any::<i64>(),
    ];
    let max = prop_oneof![4 => 0..300usize, 1 => Just(usize::MAX), 1 => any::<usize>()];
    (
        1..=8usize,
        any::<bool>(),
        size(),
        adjustment,
        option::of(size()),
        max,
    )
        .prop_map(|(width, little, offset, adjustment, strip, max)| Options {
            width,
            little,
            offset,
            adjustment,
            strip,
            max,
        })
}

/// Bytes in which small lengths are frequent.
fn lengths() -> impl Strategy<Value = Vec<u8>> {
    vec(
        prop_oneof![6 => Just(0u8), 3 => 0..12u8, 1 => any::<u8>()],
        0..200,
    )
}

/// Bytes in which short sequences are frequent.
fn text() -> impl Strategy<Value = Vec<u8>> {
    vec(select(b"ab\r\n".to_vec()), 0..120)
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    vec(any::<usize>(), 0..12)
}

/// The first place of `needle`.
fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

fn delimited(bytes: &[u8], delimiter: &[u8], max: usize, keep: bool) -> Decoded {
    let too_long = FrameError::TooLong {
        len: max as u64 + 1,
        max,
    };
    model(bytes, |bytes| match find(bytes, delimiter) {
        Some(at) if at > max => Err(too_long),
        Some(at) if keep => Ok(Some((0, at + delimiter.len(), 0))),
        Some(at) => Ok(Some((0, at, delimiter.len()))),
        None => {
            // How much of the delimiter may have come already.
            let begun = (0..delimiter.len())
                .rev()
                .find(|&n| bytes.ends_with(&delimiter[..n]));
            if bytes.len() - begun.unwrap_or(0) > max {
                Err(too_long)
            } else {
                Ok(None)
            }
        }
    })
}

fn lines(bytes: &[u8], max: usize, keep: bool) -> Decoded {
    let too_long = FrameError::TooLong {
        len: max as u64 + 1,
        max,
    };
    model(bytes, |bytes| match find(bytes, b"\n") {
        Some(at) => {
            let text = at - usize::from(at > 0 && bytes[at - 1] == b'\r');
            match (text > max, keep) {
                (true, _) => Err(too_long),
                (false, true) => Ok(Some((0, at + 1, 0))),
                (false, false) => Ok(Some((0, text, at + 1 - text))),
            }
        }
        None if bytes.len() > max + 1 => Err(too_long),
        None => Ok(None),
    })
}

/// Writes the bodies as frames, then reads them back.
fn round_trip<C>(codec: C, bodies: &[Vec<u8>], cuts: &[usize]) -> io::Result<()>
where
    C: Encoder + Decoder<Frame = Bytes>,
{
    let mut out = LinkBuffer::new();
    for (i, body) in bodies.iter().enumerate() {
        match i % 3 {
            0 => codec.encode_slice(&mut out, body)?,
            1 => codec.encode(&mut out, body.clone().into())?,
            _ => codec.encode_with(&mut out, &mut |w| {
                for piece in body.chunks(7) {
                    w.write_slice(piece)?;
                }
                Ok(())
            })?,
        }
    }
    out.flush();
    let bytes = out.read_vec(out.len())?;
    let decoded = decode(codec, &bytes, cuts);
    assert_eq!(
        decoded,
        Decoded {
            frames: bodies.to_vec(),
            end: Ok(0)
        }
    );
    Ok(())
}

/// A body that fails, or does not fit, leaves the output as it was.
fn refused(codec: &impl Encoder, body: &[u8]) {
    let mut out = LinkBuffer::new();
    out.write_str("before");
    codec.encode_slice(&mut out, body).unwrap_err();
    codec
        .encode(&mut out, Bytes::copy_from_slice(body))
        .unwrap_err();
    let error = codec.encode_with(&mut out, &mut |w| {
        w.write_slice(body)?;
        Err(io::Error::other("the body fails"))
    });
    error.unwrap_err();
    Writer::flush(&mut out).unwrap();
    assert_eq!(out, *b"before");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn length_fields(options in options(), bytes in lengths(), cuts in cuts()) {
        prop_assert_eq!(decode(options.decoder(), &bytes, &cuts), options.model(&bytes));
    }

    #[test]
    fn length_fields_on_noise(options in options(), bytes in vec(any::<u8>(), 0..100), cuts in cuts()) {
        prop_assert_eq!(decode(options.decoder(), &bytes, &cuts), options.model(&bytes));
    }

    #[test]
    fn delimiters(
        bytes in text(),
        delimiter in vec(select(b"ab\r\n".to_vec()), 1..5),
        max in 0..30usize,
        keep in any::<bool>(),
        cuts in cuts(),
    ) {
        let decoder = Delimited::new(&delimiter, max).keep_delimiter(keep);
        let expected = delimited(&bytes, &delimiter, max, keep);
        prop_assert_eq!(decode(decoder, &bytes, &cuts), expected);
    }

    #[test]
    fn any_line(bytes in text(), max in 0..30usize, keep in any::<bool>(), cuts in cuts()) {
        let decoder = Delimited::lines(max).keep_delimiter(keep);
        prop_assert_eq!(decode(decoder, &bytes, &cuts), lines(&bytes, max, keep));
    }

    #[test]
    fn fixed_lengths(bytes in vec(any::<u8>(), 0..100), len in 1..20usize, cuts in cuts()) {
        let expected = Decoded {
            frames: bytes.chunks_exact(len).map(<[u8]>::to_vec).collect(),
            end: Ok(bytes.len() % len),
        };
        prop_assert_eq!(decode(FixedLength::new(len), &bytes, &cuts), expected);
    }

    #[test]
    fn every_view_has_the_same_bytes(bytes in lengths(), cut in any::<usize>(), strip in 0..4usize) {
        fn all<V: FrameView>(strip: usize, bytes: &[u8], cut: usize, contents: fn(V) -> Vec<u8>) -> Vec<Vec<u8>> {
            let mut decoder = LengthField::new(1).strip(strip).frames_as::<V>();
            let mut buffer = LinkBuffer::new();
            let (front, back) = bytes.split_at(cut % (bytes.len() + 1));
            for piece in [front, back] {
                buffer.append(LinkBuffer::from(Bytes::copy_from_slice(piece)));
            }
            buffer.flush();
            let mut frames = Vec::new();
            while let Ok(Some(frame)) = decoder.decode(&mut buffer) {
                frames.push(contents(frame));
            }
            frames
        }
        let expected = all::<Bytes>(strip, &bytes, cut, |frame| frame.to_vec());
        prop_assert_eq!(&all::<Vec<u8>>(strip, &bytes, cut, |frame| frame), &expected);
        let chain = |mut frame: LinkBuffer| { let n = frame.len(); frame.read_vec(n).unwrap() };
        prop_assert_eq!(&all::<LinkBuffer>(strip, &bytes, cut, chain), &expected);
        if expected.iter().all(|frame| frame.is_ascii()) {
            prop_assert_eq!(&all::<String>(strip, &bytes, cut, String::into_bytes), &expected);
        }
    }

    #[test]
    fn length_fields_round_trip(
        options in options(),
        bodies in vec(vec(any::<u8>(), 0..60), 1..6),
        cuts in cuts(),
    ) {
        let options = Options { offset: 0, strip: None, ..options };
        let codec = options.decoder();
        let fits = |len: usize| {
            let value = len as i128 - i128::from(options.adjustment);
            value >= 0
                && value < 1i128 << (8 * options.width)
                && len as i128 + options.width as i128 <= options.max as i128
        };
        if bodies.iter().all(|body| fits(body.len())) {
            round_trip(codec, &bodies, &cuts).unwrap();
        } else {
            let body = bodies.iter().find(|body| !fits(body.len())).unwrap();
            refused(&codec, body);
        }
    }

    #[test]
    fn heads_round_trip(
        head in vec(any::<u8>(), 0..20),
        body in vec(any::<u8>(), 0..60),
        width in 1..=8usize,
        little in any::<bool>(),
    ) {
        let mut codec = LengthField::new(width).offset(head.len()).strip(0);
        if little {
            codec = codec.little_endian();
        }
        let mut out = LinkBuffer::new();
        codec.encode_with_head(&mut out, &head, &mut |w| w.write_slice(&body)).unwrap();
        out.flush();
        let frame = codec.decode(&mut out).unwrap().unwrap();
        prop_assert!(out.is_empty());
        prop_assert_eq!(&frame[..head.len()], &head[..]);
        prop_assert_eq!(&frame[head.len() + width..], &body[..]);
        let wrong = [&head[..], b"x"].concat();
        let error = codec.encode_with_head(&mut out, &wrong, &mut |_| Ok(())).unwrap_err();
        let expected = FrameError::HeadSize { len: head.len() + 1, expected: head.len() };
        prop_assert_eq!(FrameError::from_io(&error), Some(expected));
    }

    #[test]
    fn delimiters_round_trip(
        bodies in vec(vec(select(b"ab\r\n".to_vec()), 0..12), 0..6),
        delimiter in vec(select(b"ab\r\n".to_vec()), 1..4),
        cuts in cuts(),
    ) {
        let codec = Delimited::new(&delimiter, 11);
        let clean = |body: &Vec<u8>| find(&[&body[..], &delimiter].concat(), &delimiter) == Some(body.len());
        if bodies.iter().all(clean) {
            round_trip(codec, &bodies, &cuts).unwrap();
        } else {
            refused(&codec, bodies.iter().find(|body| !clean(body)).unwrap());
        }
    }

    #[test]
    fn lines_round_trip(bodies in vec(text(), 0..6), cuts in cuts()) {
        let codec = Delimited::lines(120);
        let clean = |body: &Vec<u8>| !body.contains(&b'\n') && !body.ends_with(b"\r");
        if bodies.iter().all(clean) {
            round_trip(codec, &bodies, &cuts).unwrap();
        } else {
            refused(&codec, bodies.iter().find(|body| !clean(body)).unwrap());
        }
    }

    #[test]
    fn fixed_lengths_round_trip(bodies in vec(vec(any::<u8>(), 5), 0..6), other in vec(any::<u8>(), 0..20), cuts in cuts()) {
        round_trip(FixedLength::new(5), &bodies, &cuts).unwrap();
        if other.len() != 5 {
            refused(&FixedLength::new(5), &other);
        }
    }
}

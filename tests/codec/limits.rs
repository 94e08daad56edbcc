//! What just fits a frame and what just does not, in both directions.

use netpoll::{
    Bytes, Decoder, Delimited, Encoder, FixedLength, FrameError, LengthField, LinkBuffer,
};

/// The frames of a stream that comes in two pieces, cut anywhere, and byte by byte: always these.
fn gives<D: Decoder<Frame = Bytes>>(make: impl Fn() -> D, stream: &[u8], expected: &[&[u8]]) {
    let cuts = (0..=stream.len()).map(|cut| vec![&stream[..cut], &stream[cut..]]);
    for pieces in cuts.chain([stream.chunks(1).collect()]) {
        let (mut decoder, mut input, mut got) = (make(), LinkBuffer::new(), Vec::new());
        for piece in &pieces {
            input.append(LinkBuffer::from(Bytes::copy_from_slice(piece)));
            input.flush();
            while let Some(frame) = decoder.decode(&mut input).unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got, expected, "{pieces:?}");
        assert!(input.is_empty());
    }
}

/// The error of a stream that comes in two pieces, cut anywhere, and byte by byte: always this one,
/// as soon as so many bytes are there.
fn refuses<D: Decoder<Frame = Bytes>>(
    make: impl Fn() -> D,
    stream: &[u8],
    known: usize,
    expected: FrameError,
) {
    let cuts = (0..=stream.len()).map(|cut| vec![&stream[..cut], &stream[cut..]]);
    for pieces in cuts.chain([stream.chunks(1).collect()]) {
        let (mut decoder, mut input, mut came) = (make(), LinkBuffer::new(), 0);
        for piece in &pieces {
            input.append(LinkBuffer::from(Bytes::copy_from_slice(piece)));
            input.flush();
            came += piece.len();
            match decoder.decode(&mut input) {
                Ok(frame) => assert!(came < known && frame.is_none(), "{pieces:?}"),
                Err(error) => {
                    assert!(came >= known, "{pieces:?}");
                    assert_eq!(FrameError::from_io(&error), Some(expected));
                }
            }
        }
        assert_eq!(input.len(), stream.len(), "nothing of it is consumed");
    }
}

/// Every way to write the body is refused so, and writes nothing.
#[track_caller]
fn refused(encoder: &impl Encoder, body: &[u8], expected: FrameError) {
    let mut out = LinkBuffer::new();
    out.write_str("before");
    let owned = encoder.encode(&mut out, Bytes::copy_from_slice(body));
    let lent = encoder.encode_slice(&mut out, body);
    for result in [owned, lent] {
        assert_eq!(FrameError::from_io(&result.unwrap_err()), Some(expected));
    }
    if !matches!(expected, FrameError::HoldsDelimiter { .. }) {
        let error = encoder
            .encode_with(&mut out, &mut |w| w.write_slice(body))
            .unwrap_err();
        assert_eq!(FrameError::from_io(&error), Some(expected));
    }
    out.flush();
    assert_eq!(out, *b"before");
}

#[test]
fn delimited_frames_of_exactly_the_maximum() {
    gives(
        || Delimited::new("\n", 3),
        b"abc\n\nabc\n",
        &[b"abc", b"", b"abc"],
    );
    gives(|| Delimited::new("--", 3), b"abc--a-c--", &[b"abc", b"a-c"]);
    gives(|| Delimited::new("-+-", 0), b"-+--+-", &[b"", b""]);
    gives(
        || Delimited::lines(3),
        b"abc\nabc\r\n\r\n\na\rc\n",
        &[b"abc", b"abc", b"", b"", b"a\rc"],
    );
    let too_long = FrameError::TooLong { len: 4, max: 3 };
    refuses(|| Delimited::new("\n", 3), b"abcd\n", 4, too_long);
    refuses(|| Delimited::new("--", 3), b"abcd--", 4, too_long);
    refuses(|| Delimited::new("--", 3), b"abc-d-", 5, too_long);
    // The fourth byte may be the `\r` of the end.
    refuses(|| Delimited::lines(3), b"abc\rd", 5, too_long);
}

#[test]
fn frames_with_a_length_of_exactly_the_maximum() {
    let make = || LengthField::new(1).max_frame(4);
    gives(make, b"\x03abc\x00\x03abc", &[b"abc", b"", b"abc"]);
    refuses(make, b"\x04abcd", 1, FrameError::TooLong { len: 5, max: 4 });
    // The length counts itself.
    let make = || LengthField::new(1).adjustment(-1);
    gives(make, b"\x04abc\x01", &[b"abc", b""]);
    refuses(make, b"\x00", 1, FrameError::TooShort { len: 0, least: 1 });
    // More is stripped than the header has.
    let make = || LengthField::new(1).strip(2);
    gives(make, b"\x03abc\x01a", &[b"bc", b""]);
    refuses(make, b"\x00", 1, FrameError::TooShort { len: 1, least: 2 });
    // Whatever is stripped must fit too.
    let make = || LengthField::new(1).strip(5).max_frame(4);
    refuses(make, b"\x04abcd", 1, FrameError::TooLong { len: 5, max: 4 });
}

#[test]
fn bodies_that_fit_no_delimited_frame() {
    let long = FrameError::BodyTooLong { len: 4, max: 3 };
    refused(&Delimited::new("\n", 3), b"abcd", long);
    refused(&Delimited::lines(3), b"abcd", long);
    let holds = |at| FrameError::HoldsDelimiter { at };
    refused(&Delimited::new("--", 9), b"a--b", holds(1));
    refused(&Delimited::new("--", 9), b"ab-", holds(2));
    refused(&Delimited::lines(9), b"a\nb", holds(1));
    refused(&Delimited::lines(9), b"ab\r", holds(2));
    refused(&Delimited::lines(9), b"\r", holds(0));

    let mut out = LinkBuffer::new();
    for body in [&b"abc"[..], b"", b"a\rb"] {
        Delimited::lines(3).encode_slice(&mut out, body).unwrap();
    }
    // Where `\r` is no part of the end it is a byte like any other.
    Delimited::new("\n", 3)
        .encode_slice(&mut out, b"\r")
        .unwrap();
    out.flush();
    assert_eq!(out, *b"abc\n\na\rb\n\r\n");
}

#[test]
fn bodies_that_fit_no_frame_with_a_length() {
    let frames = LengthField::new(1).max_frame(4);
    refused(&frames, b"abcd", FrameError::BodyTooLong { len: 4, max: 3 });
    let long = FrameError::BodyTooLong { len: 256, max: 255 };
    refused(&LengthField::new(1), &[0; 256], long);
    // The field counts 3 bytes more than there are behind it.
    let frames = LengthField::new(1).adjustment(-3);
    let long = FrameError::BodyTooLong { len: 253, max: 252 };
    refused(&frames, &[0; 253], long);
    // And 3 fewer.
    let frames = LengthField::new(1).adjustment(3);
    let size = |len, expected| FrameError::BodySize { len, expected };
    refused(&frames, b"ab", size(2, 3));
    let frames = LengthField::new(1).strip(3);
    refused(&frames, b"a", size(1, 2));
    let mut out = LinkBuffer::new();
    frames.encode_slice(&mut out, b"ab").unwrap();
    out.flush();
    assert_eq!(out, *b"\x02ab");
    refused(&FixedLength::new(3), b"ab", size(2, 3));
    refused(&FixedLength::new(3), b"abcd", size(4, 3));
    let frames = LengthField::new(1).offset(2);
    let head = FrameError::HeadSize {
        len: 0,
        expected: 2,
    };
    refused(&frames, b"a", head);
    let error = frames
        .encode_with_head(&mut LinkBuffer::new(), b"abc", &mut |w| w.write_u8(0))
        .unwrap_err();
    let head = FrameError::HeadSize {
        len: 3,
        expected: 2,
    };
    assert_eq!(FrameError::from_io(&error), Some(head));

    let mut out = LinkBuffer::new();
    let most = vec![7; 255];
    LengthField::new(1).encode_slice(&mut out, &most).unwrap();
    LengthField::new(1)
        .adjustment(3)
        .encode_slice(&mut out, b"abc")
        .unwrap();
    out.flush();
    assert_eq!(out.next(256).unwrap()[..2], [255, 7]);
    assert_eq!(out, *b"\0abc");
}

#[test]
fn what_codecs_are_is_shown() {
    let shown = format!(
        "{:?} {:?} {:?}",
        Delimited::new("\n", 17),
        FixedLength::new(23),
        LengthField::new(4).max_frame(29)
    );
    for part in [
        "Delimited",
        "\\n",
        "17",
        "FixedLength",
        "23",
        "LengthField",
        "29",
    ] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

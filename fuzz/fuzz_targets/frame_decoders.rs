//! Every decoder with any options on any bytes: whatever the pieces are in which they arrive, the
//! frames and the error are the same; nothing panics; no frame is longer than allowed; nobody
//! allocates for bytes that are only announced.
#![no_main]

use arbitrary::Arbitrary;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use linkbuffer::LinkBuffer;
use netpoll::{Decoder, Delimited, FixedLength, FrameError, LengthField};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    codec: Codec,
    /// Where the bytes are cut, modulo their number.
    cuts: Vec<u16>,
    bytes: &'a [u8],
}

#[derive(Arbitrary, Debug)]
enum Codec {
    Fixed(u16),
    Delimited {
        delimiter: Vec<u8>,
        max: u16,
        keep: bool,
    },
    Lines {
        max: u16,
        keep: bool,
    },
    LengthField {
        width: u8,
        little: bool,
        offset: Edge,
        adjustment: Edge,
        strip: Option<Edge>,
        max: Edge,
    },
}

/// A number that is small or near a limit.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Edge {
    Small(u8),
    Below(u8),
    Any(u64),
}

impl Edge {
    fn size(self) -> usize {
        match self {
            Self::Small(n) => n.into(),
            Self::Below(n) => usize::MAX - usize::from(n),
            Self::Any(n) => n as usize,
        }
    }

    fn signed(self) -> i64 {
        match self {
            Self::Small(n) => i64::from(n as i8),
            Self::Below(n) if n < 128 => i64::MAX - i64::from(n),
            Self::Below(n) => i64::MIN + i64::from(255 - n),
            Self::Any(n) => n as i64,
        }
    }
}

#[derive(Debug, PartialEq)]
struct Outcome {
    frames: Vec<Bytes>,
    /// What is left, or why it ended.
    end: Result<usize, FrameError>,
}

fn decode<D: Decoder<Frame = Bytes>>(mut decoder: D, pieces: &[&[u8]]) -> Outcome {
    let mut buffer = LinkBuffer::new();
    let mut frames = Vec::new();
    let mut arrived = 0;
    for piece in pieces {
        buffer.append(LinkBuffer::from(Bytes::copy_from_slice(piece)));
        buffer.flush();
        arrived += piece.len();
        loop {
            let before = buffer.len();
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => {
                    assert!(buffer.len() <= before);
                    frames.push(frame);
                }
                Ok(None) => {
                    assert_eq!(buffer.len(), before, "only whole frames are consumed");
                    break;
                }
                Err(error) => {
                    assert_eq!(buffer.len(), before, "only whole frames are consumed");
                    let kind = FrameError::from_io(&error).expect("a frame error");
                    let again = decoder
                        .decode(&mut buffer)
                        .expect_err("an error comes again");
                    assert_eq!(FrameError::from_io(&again), Some(kind));
                    return Outcome {
                        frames,
                        end: Err(kind),
                    };
                }
            }
        }
        // What is held is what arrived, and at most one chunk more per piece of it.
        assert!(buffer.memory_size() <= 2 * arrived + (32 << 10) * (pieces.len() + 1));
    }
    Outcome {
        frames,
        end: Ok(buffer.len()),
    }
}

fn check<D: Decoder<Frame = Bytes> + Clone>(decoder: &D, input: &Input<'_>, max: usize) {
    let bytes = input.bytes;
    let whole = decode(decoder.clone(), &[bytes]);
    for frame in &whole.frames {
        assert!(frame.len() <= max, "{} > {max}", frame.len());
    }
    let mut cuts: Vec<usize> = input
        .cuts
        .iter()
        .take(64)
        .map(|&cut| usize::from(cut) % (bytes.len() + 1))
        .collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let pieces: Vec<&[u8]> = cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
    assert_eq!(decode(decoder.clone(), &pieces), whole, "cut at {cuts:?}");
    if (1..=256).contains(&bytes.len()) {
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(decode(decoder.clone(), &single), whole, "byte by byte");
    }
}

fuzz_target!(|input: Input<'_>| {
    match &input.codec {
        Codec::Fixed(len) => {
            let len = usize::from(*len).max(1);
            // An empty source gives no frame and no error.
            check(&FixedLength::new(len), &input, len);
        }
        Codec::Delimited {
            delimiter,
            max,
            keep,
        } => {
            if delimiter.is_empty() || delimiter.len() > 64 {
                return;
            }
            let decoder = Delimited::new(delimiter, (*max).into()).keep_delimiter(*keep);
            check(&decoder, &input, usize::from(*max) + delimiter.len());
        }
        Codec::Lines { max, keep } => {
            let decoder = Delimited::lines((*max).into()).keep_delimiter(*keep);
            check(&decoder, &input, usize::from(*max) + 2);
        }
        Codec::LengthField {
            width,
            little,
            offset,
            adjustment,
            strip,
            max,
        } => {
            let mut decoder = LengthField::new(usize::from(width % 8) + 1)
                .offset(offset.size())
                .adjustment(adjustment.signed())
                .max_frame(max.size());
            if *little {
                decoder = decoder.little_endian();
            }
            if let Some(strip) = strip {
                decoder = decoder.strip(strip.size());
            }
            check(&decoder, &input, max.size());
        }
    }
});

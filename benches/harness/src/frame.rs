//! The frame every server here answers, and the scanner they share.
//!
//! A frame is a 4-byte big-endian payload length and the payload. The first byte of the payload says
//! what the handler has to do before the frame is sent back; every frame is received whole before it
//! is answered.
//!
//! | first byte | handler | answer |
//! |---|---|---|
//! | 1 | sleeps 10 ms | the frame |
//! | 2 | computes for about 50 us | the frame |
//! | 3 | nothing | an empty frame: the bytes went one way |
//! | 4 | sleeps 1 s | the frame |
//! | other, or no payload | nothing | the frame |

/// Length of the header in bytes.
pub(crate) const HEADER: usize = 4;
/// Longest payload in bytes a server accepts; a longer one ends the connection.
pub(crate) const MAX_PAYLOAD: usize = 64 << 20;
/// The answer to a one-way frame.
pub(crate) const ACK: [u8; HEADER] = [0; HEADER];

/// What a frame asks of the handler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Send it back.
    #[default]
    Echo,
    /// Sleep 10 ms, then send it back.
    Sleep,
    /// Compute for about 50 us, then send it back.
    Compute,
    /// Take it, answer with [`ACK`].
    Sink,
    /// Sleep 1 s, then send it back.
    Rest,
}

impl Kind {
    /// The kind named by the first payload byte.
    pub(crate) fn of(first: u8) -> Self {
        match first {
            1 => Self::Sleep,
            2 => Self::Compute,
            3 => Self::Sink,
            4 => Self::Rest,
            _ => Self::Echo,
        }
    }

    /// The first payload byte that names this kind.
    fn byte(self) -> u8 {
        match self {
            Self::Echo => 0,
            Self::Sleep => 1,
            Self::Compute => 2,
            Self::Sink => 3,
            Self::Rest => 4,
        }
    }
}

/// What stands at the front of some received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// So many bytes are whole frames to be sent back as they are.
    Echo(usize),
    /// So many bytes are one whole frame of another kind.
    Special(Kind, usize),
    /// The first frame is not complete: so many bytes it has, header included, as far as is known.
    Partial(usize),
    /// The length exceeds [`MAX_PAYLOAD`].
    TooLong,
}

/// Looks at the front of `data`: the longest run of plain frames, or one other frame.
#[inline]
pub(crate) fn front(data: &[u8]) -> Front {
    let mut at = 0;
    loop {
        let rest = &data[at..];
        let Some((header, payload)) = rest.split_first_chunk::<HEADER>() else {
            return if at > 0 {
                Front::Echo(at)
            } else {
                Front::Partial(HEADER)
            };
        };
        let length = u32::from_be_bytes(*header) as usize;
        if length > MAX_PAYLOAD {
            return if at > 0 {
                Front::Echo(at)
            } else {
                Front::TooLong
            };
        }
        if payload.len() < length {
            return if at > 0 {
                Front::Echo(at)
            } else {
                Front::Partial(HEADER + length)
            };
        }
        let kind = if length == 0 {
            Kind::Echo
        } else {
            Kind::of(payload[0])
        };
        if kind != Kind::Echo {
            return if at > 0 {
                Front::Echo(at)
            } else {
                Front::Special(kind, HEADER + length)
            };
        }
        at += HEADER + length;
    }
}

/// Builds a frame of `kind` whose payload has `size` bytes of a recognisable pattern.
///
/// A kind other than echo needs a payload to be named in.
pub(crate) fn build(kind: Kind, size: usize) -> Vec<u8> {
    assert!(
        size > 0 || kind == Kind::Echo,
        "an empty frame can only be an echo"
    );
    assert!(
        size <= MAX_PAYLOAD,
        "{size} bytes exceed the longest payload, {MAX_PAYLOAD}"
    );
    let mut frame = Vec::with_capacity(HEADER + size);
    frame.extend_from_slice(&(size as u32).to_be_bytes());
    frame.extend((0..size).map(|at| (at % 251) as u8));
    if size > 0 {
        frame[HEADER] = kind.byte();
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frames_join_into_one_run() {
        let mut data = build(Kind::Echo, 5);
        data.extend(build(Kind::Echo, 0));
        data.extend(build(Kind::Echo, 1));
        let whole = data.len();
        data.extend(&build(Kind::Echo, 9)[..6]);
        assert_eq!(front(&data), Front::Echo(whole));
        assert_eq!(front(&data[whole..]), Front::Partial(13));
    }

    #[test]
    fn another_kind_ends_the_run_and_stands_alone() {
        let mut data = build(Kind::Echo, 5);
        data.extend(build(Kind::Sleep, 7));
        data.extend(build(Kind::Sink, 2));
        assert_eq!(front(&data), Front::Echo(9));
        assert_eq!(front(&data[9..]), Front::Special(Kind::Sleep, 11));
        assert_eq!(front(&data[20..]), Front::Special(Kind::Sink, 6));
        assert_eq!(
            front(&build(Kind::Compute, 1)),
            Front::Special(Kind::Compute, 5)
        );
    }

    #[test]
    fn every_cut_of_a_stream_scans_to_the_same_frames() {
        let mut data = Vec::new();
        for size in [3, 0, 200, 1, 64] {
            data.extend(build(Kind::Echo, size));
        }
        for cut in 0..data.len() {
            let whole = match front(&data[..cut]) {
                Front::Echo(whole) => whole,
                Front::Partial(need) => {
                    assert!(need > cut);
                    0
                }
                other => panic!("{other:?} at {cut}"),
            };
            assert_eq!(front(&data[whole..]), Front::Echo(data.len() - whole));
        }
    }

    #[test]
    fn an_overlong_length_is_refused_after_the_frames_before_it() {
        let mut data = build(Kind::Echo, 2);
        data.extend_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(front(&data), Front::Echo(6));
        assert_eq!(front(&data[6..]), Front::TooLong);
    }

    #[test]
    fn nothing_is_a_partial_header() {
        assert_eq!(front(&[]), Front::Partial(HEADER));
        assert_eq!(front(&[0, 0, 0]), Front::Partial(HEADER));
    }
}

//! The frames of a soak: every byte of them can be told in advance.
//!
//! | bytes | |
//! |---|---|
//! | 4 | bytes that follow, big-endian |
//! | 1 | the order |
//! | 1 | zero |
//! | 2 | the order's argument, in milliseconds |
//! | 4 | the tag of the connection; 0: its frames are not numbered |
//! | 4 | the number of the frame on its connection, from 0 |
//! | any | content, made from tag and number |

/// Bytes before the content.
pub(super) const HEAD: usize = 16;
/// Longest content in bytes.
pub(super) const MAX_CONTENT: usize = 4 << 20;

/// What the handler is to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Order {
    /// Send it back, cut out of the input without a copy.
    Echo,
    /// Send it back, copied.
    Copy,
    /// Send it back as bytes that were taken out of the input.
    Take,
    /// Sleep first.
    Sleep,
    /// Let another thread send it back, later.
    Late,
    /// Wait inside the handler until the frame is whole, then send it back.
    Wait,
    /// Send it back and close.
    Close,
    /// Abort the connection.
    Abort,
    /// Return an error.
    Fail,
    /// Panic.
    Panic,
}

impl Order {
    const ALL: [Self; 10] = [
        Self::Echo,
        Self::Copy,
        Self::Take,
        Self::Sleep,
        Self::Late,
        Self::Wait,
        Self::Close,
        Self::Abort,
        Self::Fail,
        Self::Panic,
    ];
}

/// What stands at the front of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) order: Order,
    /// Milliseconds, for the orders that take a time.
    pub(super) argument: u16,
    pub(super) tag: u32,
    pub(super) number: u32,
    /// Bytes of content.
    pub(super) content: usize,
}

impl Head {
    /// Bytes of the whole frame.
    pub(super) fn whole(&self) -> usize {
        HEAD + self.content
    }

    /// The head as bytes.
    pub(super) fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..4].copy_from_slice(&((self.whole() - 4) as u32).to_be_bytes());
        bytes[4] = self.order as u8;
        bytes[6..8].copy_from_slice(&self.argument.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.tag.to_be_bytes());
        bytes[12..].copy_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// Reads the first [`HEAD`] bytes of a frame; `None` if nobody sends such a frame.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| {
            let four = bytes.get(at..)?.first_chunk()?;
            Some(u32::from_be_bytes(*four))
        };
        let length = number(0)? as usize;
        let content = length.checked_sub(HEAD - 4)?;
        if content > MAX_CONTENT || *bytes.get(5)? != 0 {
            return None;
        }
        Some(Self {
            order: *Order::ALL.get(usize::from(bytes[4]))?,
            argument: u16::from_be_bytes([bytes[6], bytes[7]]),
            tag: number(8)?,
            number: number(12)?,
            content,
        })
    }

    /// The whole frame.
    pub(super) fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::with_capacity(self.whole());
        frame.extend_from_slice(&self.encode());
        let mut at = 0;
        while at < self.content {
            let word = self.word(at / WORD);
            let taken = WORD.min(self.content - at);
            frame.extend_from_slice(&word[..taken]);
            at += taken;
        }
        frame
    }

    /// How many of `bytes`, which lie at `at` of the content, are not what they should be.
    pub(super) fn wrong(&self, at: usize, bytes: &[u8]) -> u64 {
        let mut wrong = 0;
        let mut done = 0;
        while done < bytes.len() {
            let place = at + done;
            let word = self.word(place / WORD);
            let expected = &word[place % WORD..];
            let taken = expected.len().min(bytes.len() - done);
            let seen = &bytes[done..done + taken];
            if seen != &expected[..taken] {
                wrong += seen.iter().zip(expected).filter(|(a, b)| a != b).count() as u64;
            }
            done += taken;
        }
        wrong
    }

    /// Eight bytes of content; neighbouring tags, numbers and places have nothing in common.
    fn word(&self, at: usize) -> [u8; WORD] {
        let seed = u64::from(self.tag) << 32 | u64::from(self.number);
        mix(mix(seed).wrapping_add(at as u64)).to_be_bytes()
    }
}

const WORD: usize = 8;

fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// A small generator: the same seed, the same story.
#[derive(Clone, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    /// Dice number `number` of a run with this seed.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        Self(mix(seed ^ mix(number)))
    }

    /// A number below `sides`.
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mix(self.0) % sides
    }

    /// Whether one chance in so many has come true.
    pub(super) fn once_in(&mut self, times: u64) -> bool {
        self.roll(times) == 0
    }

    /// A length in bytes: mostly small, seldom up to `most`.
    pub(super) fn length(&mut self, most: usize) -> usize {
        let bits = u64::from(usize::BITS - most.leading_zeros()) + 1;
        let below = 1 << self.roll(bits);
        (self.roll(below) as usize).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(content: usize) -> Head {
        Head {
            order: Order::Late,
            argument: 513,
            tag: 7,
            number: 9,
            content,
        }
    }

    #[test]
    fn a_head_is_read_as_it_was_written() {
        for order in Order::ALL {
            let written = Head { order, ..head(77) };
            let frame = written.frame();
            assert_eq!(frame.len(), written.whole());
            assert_eq!(Head::decode(&frame[..HEAD]), Some(written));
        }
    }

    #[test]
    fn what_nobody_sends_is_no_head() {
        let good = head(5).encode();
        for (at, byte) in [(0, 0xff), (3, 3), (4, 10), (5, 1)] {
            let mut bad = good;
            bad[at] = byte;
            assert_eq!(Head::decode(&bad), None, "{at}");
        }
        assert_eq!(Head::decode(&good[..HEAD - 1]), None);
    }

    #[test]
    fn every_wrong_byte_of_the_content_is_counted() {
        let head = head(100);
        let frame = head.frame();
        for from in 0..20 {
            for to in [from, from + 1, from + 9, 100] {
                assert_eq!(head.wrong(from, &frame[HEAD + from..HEAD + to]), 0);
            }
        }
        let mut spoilt = frame.clone();
        spoilt[HEAD + 13] ^= 1;
        spoilt[HEAD + 99] ^= 0x80;
        assert_eq!(head.wrong(0, &spoilt[HEAD..]), 2);
        assert_eq!(head.wrong(50, &spoilt[HEAD + 50..]), 1);
        // The content of another frame, and the right content at another place.
        let other = Head { number: 10, ..head }.frame();
        assert!(head.wrong(0, &other[HEAD..]) > 90);
        assert!(head.wrong(8, &frame[HEAD..HEAD + 90]) > 80);
    }

    #[test]
    fn the_same_seed_rolls_the_same() {
        let rolls = |seed, number| {
            let mut dice = Dice::new(seed, number);
            (0..50).map(|_| dice.roll(1000)).collect::<Vec<_>>()
        };
        assert_eq!(rolls(1, 2), rolls(1, 2));
        assert_ne!(rolls(1, 2), rolls(1, 3));
        assert_ne!(rolls(1, 2), rolls(2, 2));
        let mut dice = Dice::new(3, 4);
        let lengths: Vec<_> = (0..1000).map(|_| dice.length(4096)).collect();
        assert!(lengths.iter().all(|length| *length <= 4096));
        assert!(lengths.iter().any(|length| *length > 1000));
        assert!(lengths.iter().filter(|length| **length < 100).count() > 300);
    }
}

//! Finding a delimiter in bytes that arrive in pieces, looking at each byte once.

use linkbuffer::LinkBuffer;
use memchr::{memchr, memmem};
use std::sync::Arc;

/// Chunks that were searched before and may be walked over each time; with more of them they are
/// joined, which costs less than walking over them for every piece that arrives.
const WALK: usize = 16;

/// The searched bytes.
#[derive(Clone, Debug)]
pub(super) enum Delimiter {
    Byte(u8),
    Sequence(Arc<Sequence>),
}

/// Two bytes or more.
#[derive(Debug)]
pub(super) struct Sequence {
    bytes: Box<[u8]>,
    /// For each prefix: how long the longest proper prefix of it is that it also ends with.
    borders: Box<[usize]>,
    finder: memmem::Finder<'static>,
}

/// How far a search has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Bytes that were looked at; no delimiter ends among them.
    pub(super) scanned: usize,
    /// The longest beginning of the delimiter that these bytes end with.
    pub(super) matched: usize,
}

impl Delimiter {
    /// `None` for an empty delimiter.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        match *bytes {
            [] => None,
            [byte] => Some(Self::Byte(byte)),
            _ => Some(Self::Sequence(Arc::new(Sequence::new(bytes)))),
        }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Byte(byte) => std::slice::from_ref(byte),
            Self::Sequence(sequence) => &sequence.bytes,
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Searches on within the first `window` bytes. Returns how many bytes end with the
    /// delimiter; otherwise `progress` tells how far the search came.
    #[inline]
    pub(super) fn find(
        &self,
        chain: &mut LinkBuffer,
        progress: &mut Progress,
        window: usize,
    ) -> Option<usize> {
        let mut at = 0;
        let mut walked = 0;
        for chunk in chain.chunks() {
            let known = progress.scanned - at;
            if known >= chunk.len() {
                walked += 1;
                at += chunk.len();
                continue;
            }
            let fresh = &chunk[known..chunk.len().min(window - at)];
            if let Some(n) = self.search(fresh, &mut progress.matched) {
                return Some(progress.scanned + n);
            }
            progress.scanned += fresh.len();
            if progress.scanned == window {
                break;
            }
            at += chunk.len();
        }
        if walked > WALK {
            join(chain, progress.scanned);
        }
        None
    }

    /// Whether `body` with the delimiter behind it has one before: where.
    pub(super) fn within(&self, body: &[u8]) -> Option<usize> {
        let mut matched = 0;
        if let Some(end) = self.search(body, &mut matched) {
            return Some(end - self.len());
        }
        let end = self.search(self.as_slice(), &mut matched)?;
        (end < self.len()).then(|| body.len() + end - self.len())
    }

    /// How many bytes of `bytes` end with the delimiter, of which `matched` bytes came before.
    #[inline]
    pub(super) fn search(&self, bytes: &[u8], matched: &mut usize) -> Option<usize> {
        match self {
            Self::Byte(byte) => memchr(*byte, bytes).map(|i| i + 1),
            Self::Sequence(sequence) => sequence.search(bytes, matched),
        }
    }
}

impl Sequence {
    fn new(bytes: &[u8]) -> Self {
        let mut borders = vec![0; bytes.len()];
        let mut border = 0;
        for i in 1..bytes.len() {
            while border > 0 && bytes[i] != bytes[border] {
                border = borders[border - 1];
            }
            border += usize::from(bytes[i] == bytes[border]);
            borders[i] = border;
        }
        Self {
            finder: memmem::Finder::new(bytes).into_owned(),
            borders: borders.into(),
            bytes: bytes.into(),
        }
    }

    fn search(&self, bytes: &[u8], matched: &mut usize) -> Option<usize> {
        let len = self.bytes.len();
        let mut at = 0;
        // A delimiter may have begun in an earlier piece.
        while *matched > 0 {
            let &byte = bytes.get(at)?;
            at += 1;
            if self.step(matched, byte) {
                return Some(at);
            }
        }
        if let Some(i) = self.finder.find(&bytes[at..]) {
            return Some(at + i + len);
        }
        // And one may begin in this one.
        let tail = at.max(bytes.len().saturating_sub(len - 1));
        for &byte in &bytes[tail..] {
            self.step(matched, byte);
        }
        None
    }

    /// Takes one more byte; `true` if it completes the delimiter.
    fn step(&self, matched: &mut usize, byte: u8) -> bool {
        while *matched > 0 && byte != self.bytes[*matched] {
            *matched = self.borders[*matched - 1];
        }
        *matched += usize::from(byte == self.bytes[*matched]);
        *matched == self.bytes.len()
    }
}

/// Makes the first `n` bytes contiguous. Room for as many more is left behind them, so a series
/// of joins copies each byte a bounded number of times.
#[cold]
fn join(chain: &mut LinkBuffer, n: usize) {
    let joined = chain.peek(n);
    debug_assert!(joined.is_ok(), "only bytes that are there were searched");
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// The first end of `delimiter` in `text`, byte by byte.
    fn naive(text: &[u8], delimiter: &[u8]) -> Option<usize> {
        (delimiter.len()..=text.len()).find(|&end| text[..end].ends_with(delimiter))
    }

    /// All texts of up to `max` letters of a two-letter alphabet.
    fn texts(max: u32) -> impl Iterator<Item = Vec<u8>> {
        (0..=max).flat_map(|len| {
            (0..1u32 << len).map(move |bits| {
                (0..len)
                    .map(|i| if bits >> i & 1 == 0 { b'a' } else { b'b' })
                    .collect()
            })
        })
    }

    #[test]
    fn every_short_sequence_is_found_in_every_short_text_cut_anywhere() {
        for needle in texts(4).filter(|n| !n.is_empty()) {
            let delimiter = Delimiter::new(&needle).unwrap();
            for text in texts(9) {
                let expected = naive(&text, &needle);
                for cut in 0..=text.len() {
                    let mut chain = LinkBuffer::new();
                    let mut progress = Progress::default();
                    let mut found = None;
                    for piece in [&text[..cut], &text[cut..]] {
                        if found.is_none() {
                            chain.append(LinkBuffer::from(Bytes::copy_from_slice(piece)));
                            chain.flush();
                            found = delimiter.find(&mut chain, &mut progress, usize::MAX);
                        }
                    }
                    assert_eq!(found, expected, "{needle:?} in {text:?} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn a_delimiter_is_seen_in_a_body_and_across_its_end() {
        for needle in texts(4).filter(|n| !n.is_empty()) {
            let delimiter = Delimiter::new(&needle).unwrap();
            for body in texts(7) {
                let all = [&body[..], &needle].concat();
                let first = naive(&all, &needle).unwrap();
                let expected = (first < all.len()).then(|| first - needle.len());
                assert_eq!(delimiter.within(&body), expected, "{needle:?} in {body:?}");
            }
        }
    }

    #[test]
    fn many_short_pieces_are_joined() {
        let delimiter = Delimiter::new(b"\r\n").unwrap();
        let mut progress = Progress::default();
        let mut chain = LinkBuffer::new();
        // Pieces too long to be copied together by the buffer itself.
        for _ in 0..1000 {
            chain.append(LinkBuffer::from(Bytes::from(vec![b'x'; 5000])));
            chain.flush();
            assert_eq!(delimiter.find(&mut chain, &mut progress, usize::MAX), None);
            assert!(chain.chunks().count() <= WALK + 3);
        }
        assert_eq!(progress.scanned, 5_000_000);
    }
}

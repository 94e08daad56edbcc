//! Bytes that are known by their position: byte `i` is `i * 31 + i / 256`, modulo 256.

use netpoll::{Bytes, Writer};
use std::{io, sync::OnceLock};

/// The pattern repeats after this many bytes.
const PERIOD: usize = 1 << 16;

/// Byte `i` of the pattern.
pub(crate) const fn byte(i: u64) -> u8 {
    (i.wrapping_mul(31).wrapping_add(i / 256) % 256) as u8
}

/// The first `n` bytes.
pub(crate) fn bytes(n: usize) -> Bytes {
    if n <= PERIOD {
        block().slice(..n)
    } else {
        (0..n as u64).map(byte).collect()
    }
}

/// Writes `n` bytes of the pattern from position `from` on; large parts are linked, not copied.
pub(crate) fn write(out: &mut dyn Writer, from: u64, n: u64) -> io::Result<()> {
    let (mut at, end) = (from, from + n);
    while at < end {
        let start = (at % PERIOD as u64) as usize;
        let part = (end - at).min((PERIOD - start) as u64) as usize;
        out.write_bytes(block().slice(start..start + part))?;
        at += part as u64;
    }
    Ok(())
}

/// How many bytes of `data` are not the pattern from position `from` on.
pub(crate) fn mismatches(data: &[u8], from: u64) -> u64 {
    let mut at = from;
    let mut wrong = 0;
    let mut rest = data;
    while !rest.is_empty() {
        let start = (at % PERIOD as u64) as usize;
        let (part, behind) = rest.split_at(rest.len().min(PERIOD - start));
        let expected = &block()[start..start + part.len()];
        if part != expected {
            wrong += part.iter().zip(expected).filter(|(a, b)| a != b).count() as u64;
        }
        at += part.len() as u64;
        rest = behind;
    }
    wrong
}

fn block() -> &'static Bytes {
    static BLOCK: OnceLock<Bytes> = OnceLock::new();
    BLOCK.get_or_init(|| (0..PERIOD as u64).map(byte).collect())
}

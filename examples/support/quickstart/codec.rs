//! The frame: a u32 length of the body, a u32 id, the body; numbers are big-endian.
//!
//! Written against the traits, so it works on connections, buffers, files and in tests alike.

use netpoll::{Bytes, Reader, Writer};
use std::io;

/// Bytes before the body.
pub(crate) const HEAD: usize = 8;

/// Length of the body and id.
pub(crate) fn head(head: &[u8]) -> (usize, u32) {
    let (len, id) = head.split_at(4);
    let number = |bytes: &[u8]| bytes.iter().fold(0, |n, &byte| n << 8 | u32::from(byte));
    (number(len) as usize, number(&id[..4]))
}

/// Bytes of the next frame in all; `None` until its head is here.
pub(crate) fn frame_len(from: &mut dyn Reader) -> io::Result<Option<usize>> {
    Ok(from.try_peek(HEAD)?.map(|bytes| HEAD + head(bytes).0))
}

/// Writes one frame; large bodies are linked and not copied.
pub(crate) fn encode(to: &mut dyn Writer, id: u32, body: &Bytes) -> io::Result<()> {
    to.write_slice(&(body.len() as u32).to_be_bytes())?;
    to.write_slice(&id.to_be_bytes())?;
    to.write_bytes(body.clone())
}

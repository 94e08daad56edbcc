//! Frames of a big-endian `u32` length and a body, and servers that echo.

use super::Peer;
use netpoll::{Connection, Handler, LinkBuffer, Reader, handler_fn};
use std::io::{self, Read};

/// A frame around `body`.
pub(crate) fn frame(body: &[u8]) -> Vec<u8> {
    let mut out = (u32::try_from(body.len()).unwrap()).to_be_bytes().to_vec();
    out.extend_from_slice(body);
    out
}

/// The body of the next frame.
#[track_caller]
pub(crate) fn read_frame(peer: &mut Peer) -> io::Result<Vec<u8>> {
    let mut head = [0; 4];
    peer.read_exact(&mut head)?;
    let mut body = vec![0; u32::from_be_bytes(head) as usize];
    peer.read_exact(&mut body)?;
    Ok(body)
}

/// `len` bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    // A length that divides nothing else; every repetition gets its number.
    let mut block = vec![0; len.min(65_537)];
    for part in block.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        part.copy_from_slice(&state.to_le_bytes()[..part.len()]);
    }
    let mut out = Vec::with_capacity(len);
    while out.len() < len {
        let start = out.len();
        let n = block.len().min(len - start);
        out.extend_from_slice(&block[..n]);
        if n >= 8 && start > 0 {
            out[start..start + 8].copy_from_slice(&(start as u64 ^ state).to_le_bytes());
        }
    }
    out
}

/// A whole frame, its length included, without a copy; `None` until it is here.
pub(crate) fn decode(r: &mut dyn Reader) -> io::Result<Option<LinkBuffer>> {
    let Some(head) = r.try_peek(4)? else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    r.try_slice(4 + len)
}

/// The callback of a server that echoes whole frames.
pub(crate) fn echo_frames(conn: &mut Connection) -> io::Result<()> {
    while let Some(frame) = decode(conn)? {
        conn.append(frame)?;
    }
    conn.flush()
}

/// A server that echoes whole frames.
pub(crate) fn echo() -> impl Handler {
    handler_fn(echo_frames)
}

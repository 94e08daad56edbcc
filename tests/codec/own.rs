//! Decoders and encoders that users write: what the traits make of the one method they need.

use crate::support::pair;
use netpoll::{Bytes, Decoder, Encoder, Error, FrameError, LinkBuffer, Reader, Writer};
use std::{io, io::Write as _, thread};

/// Frames in brackets.
struct Brackets;

impl Encoder for Brackets {
    fn encode_with(
        &self,
        w: &mut dyn Writer,
        body: &mut dyn FnMut(&mut dyn Writer) -> io::Result<()>,
    ) -> io::Result<()> {
        w.write_u8(b'[')?;
        body(w)?;
        w.write_u8(b']')
    }
}

/// Two bytes, if as many are available. Asks for nothing.
fn look(r: &mut dyn Reader) -> io::Result<Option<u16>> {
    if r.available() < 2 {
        return Ok(None);
    }
    Ok(r.try_next(2)?.map(|b| u16::from_be_bytes([b[0], b[1]])))
}

#[test]
fn an_encoder_needs_one_method() {
    let mut out = LinkBuffer::new();
    Brackets
        .encode(&mut out, Bytes::from_static(b"owned"))
        .unwrap();
    Brackets
        .encode(&mut out, Bytes::from(vec![b'x'; 5000]))
        .unwrap();
    Brackets.encode_slice(&mut out, b"lent").unwrap();
    Brackets
        .encode_with(&mut out, &mut |w| w.write_str("made"))
        .unwrap();
    out.flush();
    assert_eq!(out.next(7).unwrap(), b"[owned]");
    assert_eq!(out.next(5002).unwrap()[..3], *b"[xx");
    assert_eq!(out, *b"[lent][made]");
}

#[test]
fn functions_are_decoders() {
    fn decode(r: &mut dyn Reader) -> io::Result<Option<u16>> {
        Ok(r.try_next(2)?.map(|b| u16::from_be_bytes([b[0], b[1]])))
    }
    let mut input = LinkBuffer::from(&[1, 2, 3][..]);
    assert_eq!(
        Decoder::decode(&mut decode, &mut input).unwrap(),
        Some(0x102)
    );
    assert_eq!(Decoder::decode(&mut decode, &mut input).unwrap(), None);
}

#[test]
fn a_frame_is_waited_for_whether_the_decoder_asks_or_looks() {
    let (mut conn, mut peer) = pair();
    let sending = thread::spawn(move || {
        // Each piece is alone: the next one is sent when the answer has come.
        for piece in [&[1][..], &[2, 3], &[4], &[5, 6], &[7]] {
            peer.write_all(piece).unwrap();
            let mut answer = [0];
            io::Read::read_exact(&mut peer, &mut answer).unwrap();
        }
        peer.shutdown_write();
        peer
    });
    let mut waiting = |r: &mut dyn Reader| {
        // It may, where it is known to be read by `read_frame`.
        r.fill(2)?;
        look(r)
    };
    let answer = |conn: &mut netpoll::Connection| {
        conn.write_u8(1).unwrap();
        conn.flush().unwrap();
    };
    answer(&mut conn);
    assert_eq!(
        Decoder::read_frame(&mut look, &mut conn).unwrap(),
        Some(0x102)
    );
    answer(&mut conn);
    assert_eq!(
        Decoder::read_frame(&mut waiting, &mut conn).unwrap(),
        Some(0x304)
    );
    answer(&mut conn);
    assert_eq!(
        Decoder::read_frame(&mut look, &mut conn).unwrap(),
        Some(0x506)
    );
    answer(&mut conn);
    answer(&mut conn);
    // Input ends inside a frame: an error for who asked for it, and the end for who only looked.
    let error = Decoder::read_frame(&mut waiting, &mut conn).unwrap_err();
    assert_eq!(
        Error::from_io(&error),
        Some(Error::PeerClosed {
            wanted: 2,
            available: 1
        })
    );
    let error = Decoder::read_frame(&mut look, &mut conn).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(FrameError::from_io(&error), None);
    conn.skip(1).unwrap();
    assert_eq!(Decoder::read_frame(&mut look, &mut conn).unwrap(), None);
    drop(sending.join().unwrap());
}

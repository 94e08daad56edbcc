//! A check that a server speaks the frame, before it is measured.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::frame::{self, Kind};

/// Asks for frames of many sizes, alone, several at once, in pieces, and of every kind, and compares
/// every byte of the answers.
///
/// # Errors
///
/// When the server closes, takes more than 10 s, or answers anything else.
pub(crate) fn verify(addr: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    for size in [0, 1, 3, 64, 1024, 4096, 16_384, 65_532, 65_537, 300_000] {
        ask(&mut stream, &[frame::build(Kind::Echo, size)])?;
    }
    let several: Vec<_> = [5, 0, 1500, 64, 9000, 1]
        .map(|size| frame::build(Kind::Echo, size))
        .into();
    ask(&mut stream, &several)?;
    for byte in frame::build(Kind::Echo, 20) {
        stream.write_all(&[byte])?;
    }
    expect(&mut stream, &frame::build(Kind::Echo, 20))?;
    for kind in [Kind::Sleep, Kind::Compute] {
        ask(
            &mut stream,
            &[frame::build(kind, 100), frame::build(Kind::Echo, 30)],
        )?;
    }
    stream.write_all(&frame::build(Kind::Sink, 100_000))?;
    expect(&mut stream, &frame::ACK)?;
    large(&mut stream)
}

/// A frame that fits in no buffer between: it is received while it is still being sent.
fn large(stream: &mut TcpStream) -> io::Result<()> {
    let frame = frame::build(Kind::Echo, 1 << 20);
    let mut writer = stream.try_clone()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| writer.write_all(&frame));
        expect(stream, &frame)?;
        sending
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the sender panicked")))
    })
}

fn ask(stream: &mut TcpStream, frames: &[Vec<u8>]) -> io::Result<()> {
    let bytes = frames.concat();
    stream.write_all(&bytes)?;
    expect(stream, &bytes)
}

fn expect(stream: &mut TcpStream, expected: &[u8]) -> io::Result<()> {
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer)?;
    if answer != expected {
        let at = answer
            .iter()
            .zip(expected)
            .take_while(|(a, b)| a == b)
            .count();
        let text = format!(
            "{} bytes were asked back, byte {at} differs",
            expected.len()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(())
}

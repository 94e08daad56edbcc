//! monoio: one thread, a task per connection, an owned buffer of 64 KiB each, on either driver.

use std::io;
use std::net::TcpListener as StdListener;

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::frame::{self, Front, Kind};
use crate::work;

/// Bytes of each connection's buffer; it grows for larger frames.
const BUFFER: usize = 64 << 10;
/// Entries of the submission queue.
const ENTRIES: u32 = 4096;

/// On io_uring.
pub(crate) fn uring(listener: StdListener) -> io::Result<()> {
    let builder = RuntimeBuilder::<IoUringDriver>::new()
        .with_entries(ENTRIES)
        .enable_timer();
    builder.build()?.block_on(accept(listener))
}

/// On epoll.
pub(crate) fn legacy(listener: StdListener) -> io::Result<()> {
    let builder = RuntimeBuilder::<LegacyDriver>::new().enable_timer();
    builder.build()?.block_on(accept(listener))
}

async fn accept(listener: StdListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            monoio::spawn(echo(stream));
        }
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        let mut used = 0;
        let need = loop {
            let rest = &buffer[used..];
            let (kind, length) = match frame::front(rest) {
                Front::Echo(length) => (Kind::Echo, length),
                Front::Special(kind, length) => (kind, length),
                Front::Partial(need) => break need,
                Front::TooLong => return Err(io::ErrorKind::InvalidData.into()),
            };
            match kind {
                Kind::Sleep => monoio::time::sleep(work::NAP).await,
                Kind::Rest => monoio::time::sleep(work::REST).await,
                Kind::Compute => work::compute(),
                Kind::Echo | Kind::Sink => {}
            }
            if kind == Kind::Sink {
                stream.write_all(&frame::ACK[..]).await.0?;
            } else {
                let (sent, slice) = stream.write_all(buffer.slice(used..used + length)).await;
                buffer = slice.into_inner();
                sent?;
            }
            used += length;
        };
        buffer.drain(..used);
        let filled = buffer.len();
        buffer.reserve(need - filled);
        let (received, slice) = stream.read(buffer.slice_mut(filled..)).await;
        buffer = slice.into_inner();
        if received? == 0 {
            return Ok(());
        }
    }
}

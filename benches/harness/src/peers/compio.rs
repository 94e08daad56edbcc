//! compio: one thread on io_uring, a task per connection, an owned buffer of 64 KiB each.

use std::io;
use std::net::TcpListener as StdListener;

use compio::BufResult;
use compio::buf::{IntoInner, IoBuf};
use compio::driver::ProactorBuilder;
use compio::io::{AsyncReadExt, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::Runtime;

use crate::frame::{self, Front, Kind};
use crate::work;

/// Bytes of each connection's buffer; it grows for larger frames.
const BUFFER: usize = 64 << 10;
/// Entries of the submission queue.
const ENTRIES: u32 = 4096;

/// Serves `listener` for ever.
pub(crate) fn serve(listener: StdListener) -> io::Result<()> {
    let mut proactor = ProactorBuilder::new();
    proactor
        .capacity(ENTRIES)
        .coop_taskrun(true)
        .taskrun_flag(true);
    let runtime = Runtime::builder().with_proactor(proactor).build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                compio::runtime::spawn(echo(stream)).detach();
            }
        }
    })
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer: Vec<u8> = Vec::with_capacity(BUFFER);
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
                Kind::Sleep => compio::time::sleep(work::NAP).await,
                Kind::Rest => compio::time::sleep(work::REST).await,
                Kind::Compute => work::compute(),
                Kind::Echo | Kind::Sink => {}
            }
            if kind == Kind::Sink {
                stream.write_all(&frame::ACK[..]).await.0?;
            } else {
                let BufResult(sent, slice) =
                    stream.write_all(buffer.slice(used..used + length)).await;
                buffer = slice.into_inner();
                sent?;
            }
            used += length;
        };
        buffer.drain(..used);
        buffer.reserve(need - buffer.len());
        let BufResult(received, filled) = stream.append(buffer).await;
        buffer = filled;
        if received? == 0 {
            return Ok(());
        }
    }
}

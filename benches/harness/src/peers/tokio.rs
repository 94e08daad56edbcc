//! tokio: a task per connection, a `BytesMut` of 64 KiB each.

use std::io;
use std::net::TcpListener as StdListener;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use crate::frame::{self, Front, Kind};
use crate::work;

/// Bytes of each connection's buffer, and the least that is made room for once it is used up.
const BUFFER: usize = 64 << 10;
/// Room in bytes below which the buffer is given new room before a receive.
const LOW: usize = 4 << 10;
/// Workers where handlers block them.
const WORKERS: usize = 16;

/// The multi-thread runtime, as many workers as cores; sleeping handlers use tokio's timer.
pub(crate) fn multi_thread(listener: StdListener) -> io::Result<()> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { accept(listener, Handlers::Async).await })
}

/// The same runtime; sleeping and computing handlers are blocking code in `spawn_blocking`.
pub(crate) fn multi_thread_blocking(listener: StdListener) -> io::Result<()> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { accept(listener, Handlers::Blocking).await })
}

/// The multi-thread runtime with [`WORKERS`] workers; handlers are blocking code in the task.
pub(crate) fn sixteen(listener: StdListener) -> io::Result<()> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    runtime.block_on(async { accept(listener, Handlers::InTask).await })
}

/// The same; a worker that waited for events passes that on before it runs a task.
#[cfg(tokio_unstable)]
pub(crate) fn sixteen_eager(listener: StdListener) -> io::Result<()> {
    let runtime = Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .enable_eager_driver_handoff()
        .build()?;
    runtime.block_on(async { accept(listener, Handlers::InTask).await })
}

/// The current-thread runtime; sleeping handlers use tokio's timer.
pub(crate) fn current_thread(listener: StdListener) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { accept(listener, Handlers::Async).await })
}

#[derive(Clone, Copy)]
enum Handlers {
    Async,
    Blocking,
    /// Blocking code, on the worker that runs the task.
    InTask,
}

impl Handlers {
    async fn run(self, kind: Kind) -> io::Result<()> {
        match (self, kind) {
            (_, Kind::Echo | Kind::Sink) => {}
            (Self::Async, Kind::Sleep) => tokio::time::sleep(work::NAP).await,
            (Self::Async, Kind::Rest) => tokio::time::sleep(work::REST).await,
            (Self::Async, Kind::Compute) => work::compute(),
            (Self::InTask, _) => work::block_for(kind),
            (Self::Blocking, _) => {
                tokio::task::spawn_blocking(move || work::block_for(kind)).await?;
            }
        }
        Ok(())
    }
}

async fn accept(listener: StdListener, handlers: Handlers) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    // Accepting in a task of its own lets the runtime's workers do it, not the thread that waits.
    let accepting = tokio::spawn(async move {
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(echo(stream, handlers));
            }
        }
    });
    accepting.await?
}

async fn echo(mut stream: TcpStream, handlers: Handlers) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    loop {
        let mut used = 0;
        let need = loop {
            let rest = &buffer[used..];
            match frame::front(rest) {
                Front::Echo(length) => {
                    stream.write_all(&rest[..length]).await?;
                    used += length;
                }
                Front::Special(kind, length) => {
                    handlers.run(kind).await?;
                    let reply = if kind == Kind::Sink {
                        &frame::ACK
                    } else {
                        &rest[..length]
                    };
                    stream.write_all(reply).await?;
                    used += length;
                }
                Front::Partial(need) => break need,
                Front::TooLong => return Err(io::ErrorKind::InvalidData.into()),
            }
        };
        buffer.advance(used);
        let room = buffer.capacity() - buffer.len();
        let missing = need - buffer.len();
        if room < LOW.max(missing) {
            buffer.reserve(missing.max(BUFFER - buffer.len().min(BUFFER)));
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

//! tokio: a task per client that copies both ways.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

/// Bytes of each direction's buffer: as much as the echo servers have.
const BUFFER: usize = 64 << 10;

/// The current-thread runtime.
pub(crate) fn current_thread(listener: StdListener, backend: SocketAddr) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(accept(listener, backend))
}

/// The multi-thread runtime, as many workers as cores.
pub(crate) fn multi_thread(listener: StdListener, backend: SocketAddr) -> io::Result<()> {
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(accept(listener, backend))
}

async fn accept(listener: StdListener, backend: SocketAddr) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    // Accepting in a task of its own lets the runtime's workers do it, not the thread that waits.
    let accepting = tokio::spawn(async move {
        loop {
            if let Ok((client, _)) = listener.accept().await {
                tokio::spawn(join(client, backend));
            }
        }
    });
    accepting.await?
}

async fn join(mut client: TcpStream, backend: SocketAddr) -> io::Result<()> {
    let mut backend = TcpStream::connect(backend).await?;
    backend.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER, BUFFER).await?;
    Ok(())
}

//! Sockets set up alike for every peer.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};

use socket2::{Domain, SockRef, Socket, Type};

/// Connections the kernel may hold before they are accepted.
const BACKLOG: i32 = 4096;

/// A listening socket. Accepted sockets inherit TCP_NODELAY and the congestion control from it, so
/// no peer spends a call per connection on either.
pub(crate) fn listen(addr: SocketAddr, congestion: Option<&str>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    set_congestion(&socket, congestion)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A connected, non-blocking socket of the load generator.
///
/// `receive_buffer` fixes the room for unread answers; without it the kernel sizes the buffer.
pub(crate) fn connect(
    addr: SocketAddr,
    congestion: Option<&str>,
    receive_buffer: Option<usize>,
) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    set_congestion(&socket, congestion)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.connect(&addr.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Starts to connect without waiting: the socket becomes writable when it is done.
pub(crate) fn start_connect(addr: SocketAddr, congestion: Option<&str>) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    set_congestion(&socket, congestion)?;
    match socket.connect(&addr.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Makes closing `stream` reset it, which leaves no state behind in the kernel.
pub(crate) fn reset_on_close(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO))
}

fn set_congestion(socket: &Socket, name: Option<&str>) -> io::Result<()> {
    let Some(name) = name else { return Ok(()) };
    socket.set_tcp_congestion(name.as_bytes()).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("congestion control {name:?} cannot be set: {error}"),
        )
    })
}

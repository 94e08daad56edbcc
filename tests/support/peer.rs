//! The other end of a connection: a plain blocking socket.

use super::{LIMIT, frame, read_frame};
use netpoll::{Address, Dialer};
use socket2::{Domain, SockRef, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// A connected TCP or unix socket that fails instead of waiting for ever.
#[derive(Debug)]
pub(crate) enum Peer {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Peer {
    pub(crate) fn connect(address: &Address) -> io::Result<Self> {
        let peer = match (address.as_socket_addr(), address.as_path()) {
            (Some(ip), _) => {
                let stream = TcpStream::connect(ip)?;
                stream.set_nodelay(true)?;
                Self::Tcp(stream)
            }
            (None, Some(path)) => Self::Unix(UnixStream::connect(path)?),
            _ => unreachable!("tests listen at addresses and paths: {address}"),
        };
        peer.set_limit(Some(LIMIT));
        Ok(peer)
    }

    /// Connects with small buffers on this side.
    pub(crate) fn connect_small(address: &Address) -> io::Result<Self> {
        let Some(ip) = address.as_socket_addr() else {
            let peer = Self::connect(address)?;
            SockRef::from(&peer).set_send_buffer_size(4096)?;
            return Ok(peer);
        };
        let socket = Socket::new(Domain::for_address(ip), Type::STREAM, None)?;
        socket.set_recv_buffer_size(4096)?;
        socket.set_send_buffer_size(4096)?;
        socket.connect(&ip.into())?;
        let peer = Self::Tcp(socket.into());
        peer.set_limit(Some(LIMIT));
        Ok(peer)
    }

    pub(crate) fn set_limit(&self, limit: Option<Duration>) {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(limit).unwrap();
                stream.set_write_timeout(limit).unwrap();
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(limit).unwrap();
                stream.set_write_timeout(limit).unwrap();
            }
        }
    }

    pub(crate) fn try_clone(&self) -> Self {
        match self {
            Self::Tcp(stream) => Self::Tcp(stream.try_clone().unwrap()),
            Self::Unix(stream) => Self::Unix(stream.try_clone().unwrap()),
        }
    }

    pub(crate) fn shutdown_write(&self) {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write).unwrap(),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write).unwrap(),
        }
    }

    /// Bytes that were written and the other side's kernel has not got yet.
    pub(crate) fn unsent(&self) -> i32 {
        let Self::Tcp(stream) = self else { return 0 };
        let mut left = 0;
        // SAFETY: the call stores one int at the address, which is that of `left`.
        let result = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
        assert_eq!(result, 0);
        left
    }

    /// Closes with a reset (TCP only).
    pub(crate) fn reset(self) {
        SockRef::from(&self)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }

    /// Sends a frame and waits for the next one.
    #[track_caller]
    pub(crate) fn call(&mut self, body: &[u8]) -> io::Result<Vec<u8>> {
        self.write_all(&frame(body))?;
        read_frame(self)
    }

    /// Sends a frame and checks that it comes back.
    #[track_caller]
    pub(crate) fn ping(&mut self, body: &[u8]) {
        match self.call(body) {
            Ok(reply) => assert!(reply == body, "the echo of {} bytes differs", body.len()),
            Err(error) => panic!("no echo of {} bytes: {error}", body.len()),
        }
    }

    /// Reads what comes until the end.
    #[track_caller]
    pub(crate) fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read_to_end(&mut out)?;
        Ok(out)
    }

    /// Waits for the end of the stream, with nothing before it.
    #[track_caller]
    pub(crate) fn expect_end(&mut self) {
        let rest = self.rest().expect("an orderly end");
        assert!(rest.is_empty(), "{} bytes before the end", rest.len());
    }

    /// Waits for the end, orderly or by reset.
    #[track_caller]
    pub(crate) fn expect_gone(&mut self) {
        let mut out = Vec::new();
        match self.read_to_end(&mut out) {
            Ok(_) => {}
            Err(e) => assert!(
                matches!(
                    e.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
                ),
                "the connection is still there: {e}"
            ),
        }
    }

    /// Writes zeros without waiting until the sockets are full for a while; how many went.
    pub(crate) fn flood(&mut self, most: usize) -> usize {
        let chunk = vec![0; 64 << 10];
        let mut total = 0;
        self.set_limit(Some(Duration::from_millis(300)));
        while total < most {
            match self.write(&chunk[..chunk.len().min(most - total)]) {
                Ok(n) => total += n,
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    break;
                }
                Err(e) => panic!("flood after {total} bytes: {e}"),
            }
        }
        self.set_limit(Some(LIMIT));
        total
    }
}

impl Read for Peer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Peer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// A listener whose backlog is full, so that further dials get no answer.
pub(crate) struct Mute {
    pub(crate) address: SocketAddr,
    _listener: Socket,
    _waiting: Vec<Socket>,
}

impl Mute {
    pub(crate) fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let waiting = (0..4)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
                let _ = socket.connect(&address.into());
                socket
            })
            .collect();
        Self {
            address,
            _listener: listener,
            _waiting: waiting,
        }
    }
}

/// A connection dialled with default options, and its peer.
pub(crate) fn pair() -> (netpoll::Connection, Peer) {
    socket_pair(|to| Dialer::new().dial_connection(to))
}

/// As [`pair`], of a connection whose calls fail instead of waiting for ever.
pub(crate) fn limited_pair() -> (netpoll::Connection, Peer) {
    let dialer = Dialer::new().read_timeout(LIMIT).write_timeout(LIMIT);
    socket_pair(|to| dialer.dial_connection(to))
}

/// A loopback address that no other test uses. What has been closed there refuses until the end of the test:
/// a port of 127.0.0.1 is given to the next who asks for a free one, in any process.
pub(crate) fn loopback() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    if !cfg!(target_os = "linux") {
        return Ipv4Addr::LOCALHOST;
    }
    // Neighbouring numbers of processes and of calls lie far apart.
    let nth = NEXT.fetch_add(1, Ordering::Relaxed);
    let [a, b, c, _] = (std::process::id().wrapping_mul(0x9E37_79B1))
        .wrapping_add(nth.wrapping_mul(0x85EB_CA6B))
        .to_be_bytes();
    Ipv4Addr::new(127, 1 + a % 254, b, 1 + c % 254)
}

/// An address that refuses for as long as the socket is kept: it is bound and does not listen.
pub(crate) fn closed_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::from((loopback(), 0)).into())
        .unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

/// A plain listener and its address, for tests of the client side.
pub(crate) fn socket_pair(
    dial: impl FnOnce(Address) -> io::Result<netpoll::Connection>,
) -> (netpoll::Connection, Peer) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::from(listener.local_addr().unwrap());
    let conn = dial(address).unwrap();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nodelay(true).unwrap();
    let peer = Peer::Tcp(stream);
    peer.set_limit(Some(LIMIT));
    (conn, peer)
}

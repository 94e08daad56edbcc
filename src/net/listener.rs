//! A socket that connections arrive at.

use std::{
    fmt, io,
    net::TcpListener,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
};

use socket2::{SockRef, Socket as RawSocket};

use super::{
    address::Address,
    bind::ListenOptions,
    options::SocketOptions,
    stream::{Socket, prepare, stream_family},
    syscall::{Call, accept_prepared, call},
    unix_path::OwnedPath,
};
use crate::{
    error::with_context,
    sync::{AtomicBool, Ordering},
};

/// A listening TCP or unix socket, ready to be served.
///
/// Made by [`Listener::bind`], with options by [`Listener::builder`], or from a listener of `std`
/// or a descriptor that was handed over. It is always close-on-exec and non-blocking. Dropping it
/// closes it, and removes the file of a unix socket that it made itself, unless somebody has
/// replaced the file.
///
/// Connections that are waiting to be accepted when a listener closes are reset by the system. One whose
/// handshake ends in just that moment can be dropped without a reset; its peer gets one when it sends.
///
/// # Examples
///
/// ```
/// use netpoll::{Address, Listener};
///
/// let listener = Listener::bind(([127, 0, 0, 1], 0))?;
/// assert_ne!(listener.local_addr()?.port(), Some(0));
///
/// let path = std::env::temp_dir().join(format!("doc-listener-{}", std::process::id()));
/// let listener = Listener::bind(path.as_path())?;
/// assert_eq!(listener.local_addr()?, Address::from(path.as_path()));
/// drop(listener);
/// assert!(!path.exists());
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Listener {
    // Removed before the descriptor is closed, so that nobody is refused at a path that is there.
    path: Option<OwnedPath>,
    fd: OwnedFd,
    tcp: bool,
    /// Whether the descriptor is known to be non-blocking and close-on-exec.
    prepared: bool,
    /// Others have had the descriptor, or made it: connections inherit what they set.
    seen: AtomicBool,
}

impl Listener {
    /// Listens at `address` with the default options. A host name is resolved, and the first of
    /// its addresses that can be bound is used. Port 0 takes a free one, see
    /// [`local_addr`](Self::local_addr).
    ///
    /// May block: to resolve a name, and for about 20 ms at the path of an existing unix socket.
    ///
    /// # Errors
    ///
    /// What the system reports, `AddrInUse` for example, with the address in the text;
    /// [`Error::InvalidAddress`](crate::Error::InvalidAddress).
    pub fn bind(address: impl Into<Address>) -> io::Result<Self> {
        ListenOptions::new().bind(address)
    }

    /// Options for a listener, the defaults so far.
    pub fn builder() -> ListenOptions {
        ListenOptions::new()
    }

    /// Where it listens.
    ///
    /// # Errors
    ///
    /// What the system reports.
    pub fn local_addr(&self) -> io::Result<Address> {
        let address = call(Call::Name, || SockRef::from(&self.fd).local_addr())?;
        Ok(Address::from_system(&address))
    }

    /// Takes a connection that is waiting. The peer's address comes with it and costs no further
    /// call.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when none is waiting; what the system reports, bare, for
    /// [`classify`](super::classify).
    pub(crate) fn accept(&self) -> io::Result<(Socket, Address)> {
        if !self.prepared {
            prepare(self.fd.as_fd())?;
        }
        let (socket, peer) = call(Call::Accept, || accept_prepared(&SockRef::from(&self.fd)))?;
        let socket = Socket::from_prepared(socket.into(), self.tcp)?;
        if self.seen.load(Ordering::Relaxed) {
            socket.show();
        }
        Ok((socket, Address::from_system(&peer)))
    }

    /// The descriptor, for a poller.
    pub(crate) fn watched(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Sets options on the listening socket for its connections to inherit; `false` where they
    /// have to be set on each, see [`SocketOptions::apply`].
    pub(crate) fn inherit(&self, options: &SocketOptions) -> io::Result<bool> {
        options.apply_inherited(&SockRef::from(&self.fd), self.tcp)
    }

    /// What a bind made: a listening socket from [`new_socket`](super::syscall::new_socket).
    pub(super) fn bound(socket: RawSocket, tcp: bool, path: Option<OwnedPath>) -> Self {
        Self {
            path,
            fd: socket.into(),
            tcp,
            prepared: true,
            seen: AtomicBool::new(false),
        }
    }

    /// Takes over a descriptor that is known to be a listening stream socket.
    fn adopt(fd: OwnedFd, tcp: bool) -> Self {
        let prepared = prepare(fd.as_fd()).is_ok();
        Self {
            path: None,
            fd,
            tcp,
            prepared,
            seen: AtomicBool::new(true),
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("fd", &self.fd.as_raw_fd())
            .field("local_addr", &self.local_addr().ok())
            .finish()
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::adopt(listener.into(), true)
    }
}

impl From<UnixListener> for Listener {
    /// The socket file stays when the listener is dropped, as with [`UnixListener`] itself.
    fn from(listener: UnixListener) -> Self {
        Self::adopt(listener.into(), false)
    }
}

impl TryFrom<OwnedFd> for Listener {
    type Error = io::Error;

    /// Takes over a listening socket, one that was passed on by a supervisor for example. The
    /// file of a unix socket stays when the listener is dropped.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is no TCP or unix stream socket, or does not listen; what the system
    /// reports.
    fn try_from(fd: OwnedFd) -> io::Result<Self> {
        let tcp = stream_family(fd.as_fd())?;
        prepare(fd.as_fd())?;
        check_listens(&SockRef::from(&fd))?;
        Ok(Self {
            path: None,
            fd,
            tcp,
            prepared: true,
            seen: AtomicBool::new(true),
        })
    }
}

impl From<Listener> for OwnedFd {
    /// The descriptor, non-blocking. The file of a unix socket is the new owner's to remove.
    fn from(listener: Listener) -> Self {
        if let Some(path) = listener.path {
            path.leave();
        }
        listener.fd
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.seen.store(true, Ordering::Relaxed);
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.seen.store(true, Ordering::Relaxed);
        self.fd.as_raw_fd()
    }
}

/// Where the system can say so.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn check_listens(socket: &SockRef<'_>) -> io::Result<()> {
    if call(Call::GetOption, || socket.is_listener())? {
        return Ok(());
    }
    Err(with_context(
        "the socket does not listen, call listen(2) first",
        io::ErrorKind::InvalidInput.into(),
    ))
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
#[allow(clippy::unnecessary_wraps)]
fn check_listens(_: &SockRef<'_>) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpStream, UdpSocket},
        os::unix::net::UnixStream,
    };

    use super::super::testing::{TempDir, failure, is_prepared, wait_readable};
    use super::*;

    fn local() -> Address {
        Address::from(([127, 0, 0, 1], 0))
    }

    fn connect(listener: &Listener) -> TcpStream {
        let address = listener.local_addr().unwrap().as_socket_addr().unwrap();
        TcpStream::connect(address).unwrap()
    }

    /// Exchanges a byte in each direction.
    fn works(socket: &Socket, theirs: &mut (impl Read + Write)) {
        theirs.write_all(b"q").unwrap();
        wait_readable(socket);
        assert_eq!(socket.recv(&mut [0; 4]).unwrap(), 1);
        assert_eq!(socket.send(b"a").unwrap(), 1);
        assert_eq!(theirs.read(&mut [0; 4]).unwrap(), 1);
    }

    #[test]
    fn accepts_with_the_peers_address_and_never_waits() {
        let listener = Listener::bind(local()).unwrap();
        assert!(is_prepared(&listener));
        let error = failure(listener.accept());
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut theirs = connect(&listener);
        let (socket, peer) = listener.accept().unwrap();
        assert!(is_prepared(&socket) && socket.is_tcp());
        assert_eq!(peer, Address::Ip(theirs.local_addr().unwrap()));
        works(&socket, &mut theirs);
    }

    #[test]
    fn accepts_on_unix_sockets() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let listener = Listener::bind(path.as_path()).unwrap();
        let mut theirs = UnixStream::connect(&path).unwrap();
        let (socket, peer) = listener.accept().unwrap();
        assert!(is_prepared(&socket) && !socket.is_tcp());
        assert_eq!(peer, Address::Unnamed);
        works(&socket, &mut theirs);
    }

    #[test]
    fn a_listener_of_std_becomes_non_blocking() {
        let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Ip(theirs.local_addr().unwrap());
        let listener = Listener::from(theirs);
        assert!(is_prepared(&listener));
        assert_eq!(listener.local_addr().unwrap(), address);
        assert_eq!(failure(listener.accept()).kind(), io::ErrorKind::WouldBlock);
        let mut theirs = connect(&listener);
        works(&listener.accept().unwrap().0, &mut theirs);
    }

    #[test]
    fn a_unix_listener_of_std_keeps_its_file() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let listener = Listener::from(UnixListener::bind(&path).unwrap());
        assert!(is_prepared(&listener));
        let mut theirs = UnixStream::connect(&path).unwrap();
        works(&listener.accept().unwrap().0, &mut theirs);
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_descriptor_is_taken_and_given() {
        let listener = Listener::bind(local()).unwrap();
        let address = listener.local_addr().unwrap();
        let fd = OwnedFd::from(listener);
        let listener = Listener::try_from(fd).unwrap();
        assert_eq!(listener.local_addr().unwrap(), address);
        let mut theirs = connect(&listener);
        works(&listener.accept().unwrap().0, &mut theirs);
    }

    #[test]
    fn a_unix_descriptor_goes_without_its_file() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let fd = OwnedFd::from(Listener::bind(path.as_path()).unwrap());
        let listener = Listener::try_from(fd).unwrap();
        let mut theirs = UnixStream::connect(&path).unwrap();
        works(&listener.accept().unwrap().0, &mut theirs);
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        for fd in [OwnedFd::from(udp), stream.into()] {
            let error = failure(Listener::try_from(fd));
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
    }

    #[test]
    fn debug_shows_where_it_listens() {
        let listener = Listener::bind(local()).unwrap();
        let port = listener.local_addr().unwrap().port().unwrap();
        assert!(format!("{listener:?}").contains(&port.to_string()));
    }

    #[cfg(netpoll_faults)]
    mod faults {
        use super::super::super::accept_error::{AcceptAction, classify};
        use super::*;
        use crate::fault::{Fault, Plan};

        #[test]
        fn signals_do_not_end_an_accept() {
            let listener = Listener::bind(local()).unwrap();
            let _theirs = connect(&listener);
            let plan = Plan::new(0)
                .from(Call::Accept, 1, 3, Fault::Errno(libc::EINTR))
                .this_thread()
                .install();
            listener.accept().unwrap();
            assert_eq!((plan.calls(Call::Accept), plan.hits(Call::Accept)), (4, 3));
        }

        #[test]
        fn errors_come_bare_so_that_they_can_be_looked_up() {
            let listener = Listener::bind(local()).unwrap();
            let mut theirs = connect(&listener);
            let plan = Plan::new(0)
                .from(Call::Accept, 1, 1, Fault::Errno(libc::EMFILE))
                .from(Call::Accept, 2, 1, Fault::Errno(libc::ECONNABORTED))
                .this_thread()
                .install();
            let action = classify(&failure(listener.accept()));
            assert!(matches!(action, AcceptAction::Pause(_)));
            assert_eq!(classify(&failure(listener.accept())), AcceptAction::Skip);
            let (socket, _) = listener.accept().unwrap();
            // One call per connection: nothing is asked and nothing is set.
            assert_eq!(plan.calls(Call::Accept), 3);
            assert_eq!(plan.calls(Call::Name) + plan.calls(Call::SetOption), 0);
            drop(plan);
            works(&socket, &mut theirs);
        }

        #[test]
        fn a_listener_that_could_not_be_prepared_is_so_later() {
            let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
            let plan = Plan::new(0)
                .from(Call::SetOption, 1, 2, Fault::Errno(libc::EIO))
                .this_thread()
                .install();
            let listener = Listener::from(theirs);
            assert_eq!(failure(listener.accept()).raw_os_error(), Some(libc::EIO));
            drop(plan);
            assert_eq!(failure(listener.accept()).kind(), io::ErrorKind::WouldBlock);
        }
    }
}

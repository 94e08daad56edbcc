//! A socket that connections arrive at.

use std::{
    fmt, fs, io,
    net::TcpListener,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    path::Path,
};

use socket2::{Domain, SockAddr, SockRef, Socket as RawSocket, Type};

use super::{
    address::Address,
    options::{SocketOptions, set},
    resolve::resolve,
    stream::{Socket, prepare, stream_family},
    syscall::{Call, call},
    unix_path::{OwnedPath, remove_stale},
};
use crate::error::with_context;

/// A listening TCP or unix socket, ready to be served.
///
/// Made by [`Listener::bind`], with options by [`Listener::builder`], or from a listener of `std`
/// or a descriptor that was handed over. It is always close-on-exec and non-blocking. Dropping it
/// closes it, and removes the file of a unix socket that it made itself, unless somebody has
/// replaced the file.
///
/// Connections that are waiting to be accepted when a listener closes are reset by the system.
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
        Ok((socket, Address::from_system(&peer)))
    }

    /// Sets options on the listening socket for its connections to inherit; `false` where they
    /// have to be set on each, see [`SocketOptions::apply`].
    pub(crate) fn inherit(&self, options: &SocketOptions) -> io::Result<bool> {
        options.apply_inherited(&SockRef::from(&self.fd), self.tcp)
    }

    /// Takes over a descriptor that is known to be a listening stream socket.
    fn adopt(fd: OwnedFd, tcp: bool) -> Self {
        let prepared = prepare(fd.as_fd()).is_ok();
        Self {
            path: None,
            fd,
            tcp,
            prepared,
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
        self.fd.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// How to listen. Made by [`Listener::builder`], used up by [`bind`](Self::bind).
///
/// # Examples
///
/// ```
/// use netpoll::Listener;
///
/// let listener = Listener::builder().backlog(64).reuse_port(true).bind(([127, 0, 0, 1], 0))?;
/// # drop(listener);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ListenOptions {
    backlog: u32,
    reuse_address: bool,
    reuse_port: bool,
    v6_only: Option<bool>,
    replace_stale: bool,
    mode: Option<u32>,
    socket: Option<SocketOptions>,
}

impl ListenOptions {
    fn new() -> Self {
        Self {
            backlog: 4096,
            reuse_address: true,
            reuse_port: false,
            v6_only: None,
            replace_stale: true,
            mode: None,
            socket: None,
        }
    }

    /// How many connections may wait to be accepted; 4096 by default. The system lowers it to its
    /// own limit (`net.core.somaxconn` on Linux).
    pub fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Whether to listen on a port that closed connections still occupy (`SO_REUSEADDR`); on by
    /// default, so that a server can be restarted. TCP only.
    pub fn reuse_address(mut self, on: bool) -> Self {
        self.reuse_address = on;
        self
    }

    /// Whether other sockets may listen on the same port and share its connections
    /// (`SO_REUSEPORT`); off by default. TCP only.
    ///
    /// When one of the listeners closes, the connections that wait for it are reset, even if the
    /// others would take them. To hand a port over without loss, pass the descriptor on instead.
    pub fn reuse_port(mut self, on: bool) -> Self {
        self.reuse_port = on;
        self
    }

    /// Whether an IPv6 listener refuses IPv4 connections (`IPV6_V6ONLY`); as the system has it by
    /// default.
    pub fn v6_only(mut self, on: bool) -> Self {
        self.v6_only = Some(on);
        self
    }

    /// Whether the file of a unix socket that nobody listens on any more is replaced; on by
    /// default.
    ///
    /// A bind is tried first. If the path is in use, the socket there is connected to, and only
    /// if that is refused (twice, 20 ms apart) the file is removed and the bind is tried once
    /// more. What is no socket, or may not be connected to, is never removed.
    pub fn replace_stale(mut self, on: bool) -> Self {
        self.replace_stale = on;
        self
    }

    /// Permissions of the file of a unix socket, `0o660` for example; by default what the umask
    /// leaves. They are set before the first connection can be made.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Options to set on the listening socket, for the connections of TCP to inherit. Buffer
    /// sizes have to be set here to be in force from a connection's first packet on.
    pub fn socket(mut self, options: SocketOptions) -> Self {
        self.socket = Some(options);
        self
    }

    /// Listens at `address`, see [`Listener::bind`].
    ///
    /// # Errors
    ///
    /// As [`Listener::bind`]; also if an option cannot be set.
    pub fn bind(self, address: impl Into<Address>) -> io::Result<Listener> {
        let address = address.into();
        self.bind_any(&address)
            .map_err(|error| with_context(format!("listen at {address}"), error))
    }

    /// Binds the first of the addresses a host has, or the one address there is.
    fn bind_any(&self, address: &Address) -> io::Result<Listener> {
        match address {
            Address::Host(host, port) => {
                let mut first = None;
                for address in resolve(host, *port, None)? {
                    match self.bind_tcp(&address.into()) {
                        Ok(listener) => return Ok(listener),
                        Err(error) => {
                            let error = with_context(address.to_string(), error);
                            first.get_or_insert(error);
                        }
                    }
                }
                Err(first.unwrap_or_else(|| io::ErrorKind::AddrNotAvailable.into()))
            }
            Address::Ip(ip) => self.bind_tcp(&(*ip).into()),
            Address::Unix(path) => {
                let system = address.to_system()?;
                let system = system.ok_or(io::ErrorKind::InvalidInput)?;
                self.bind_path(path, &system)
            }
            Address::Abstract(_) | Address::Unnamed => {
                let system = address.to_system()?;
                let system = system.ok_or(io::ErrorKind::InvalidInput)?;
                let socket = new_socket(Domain::UNIX)?;
                call(Call::Bind, || socket.bind(&system))?;
                self.listen(socket, false, None)
            }
        }
    }

    fn bind_tcp(&self, address: &SockAddr) -> io::Result<Listener> {
        let socket = new_socket(address.domain())?;
        if self.reuse_address {
            set("SO_REUSEADDR", || socket.set_reuse_address(true))?;
        }
        if self.reuse_port {
            set("SO_REUSEPORT", || socket.set_reuse_port(true))?;
        }
        if let (Some(on), true) = (self.v6_only, address.is_ipv6()) {
            set("IPV6_V6ONLY", || socket.set_only_v6(on))?;
        }
        call(Call::Bind, || socket.bind(address))?;
        self.listen(socket, true, None)
    }

    fn bind_path(&self, path: &Path, address: &SockAddr) -> io::Result<Listener> {
        let socket = new_socket(Domain::UNIX)?;
        match call(Call::Bind, || socket.bind(address)) {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && self.replace_stale
                    && remove_stale(path)? =>
            {
                call(Call::Bind, || socket.bind(address))?;
            }
            result => result?,
        }
        let owned = OwnedPath::claim(path)?;
        if let Some(mode) = self.mode {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        self.listen(socket, false, Some(owned))
    }

    fn listen(&self, socket: RawSocket, tcp: bool, path: Option<OwnedPath>) -> io::Result<Listener> {
        if let Some(options) = &self.socket {
            options.apply_to(&SockRef::from(&socket), tcp)?;
        }
        let backlog = i32::try_from(self.backlog).unwrap_or(i32::MAX);
        call(Call::Listen, || socket.listen(backlog))?;
        Ok(Listener {
            path,
            fd: socket.into(),
            tcp,
            prepared: true,
        })
    }
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// A stream socket that is close-on-exec and non-blocking, both from birth where the system can.
pub(super) fn new_socket(domain: Domain) -> io::Result<RawSocket> {
    #[cfg(any(
        target_os = "linux",
        target_os = "android",
        target_os = "freebsd",
        target_os = "dragonfly",
        target_os = "netbsd",
        target_os = "openbsd",
    ))]
    {
        call(Call::Socket, || {
            RawSocket::new(domain, Type::STREAM.nonblocking(), None)
        })
    }
    #[cfg(not(any(
        target_os = "linux",
        target_os = "android",
        target_os = "freebsd",
        target_os = "dragonfly",
        target_os = "netbsd",
        target_os = "openbsd",
    )))]
    {
        let socket = call(Call::Socket, || RawSocket::new(domain, Type::STREAM, None))?;
        call(Call::SetOption, || socket.set_nonblocking(true))?;
        Ok(socket)
    }
}

/// One call on systems that have `accept4`.
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "dragonfly",
    target_os = "netbsd",
    target_os = "openbsd",
))]
fn accept_prepared(listener: &SockRef<'_>) -> io::Result<(RawSocket, SockAddr)> {
    listener.accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)
}

#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "dragonfly",
    target_os = "netbsd",
    target_os = "openbsd",
)))]
fn accept_prepared(listener: &SockRef<'_>) -> io::Result<(RawSocket, SockAddr)> {
    let (socket, peer) = listener.accept()?;
    socket.set_nonblocking(true)?;
    Ok((socket, peer))
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

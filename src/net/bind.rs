//! How a listener comes to its address.

use std::{fs, io, os::unix::fs::PermissionsExt, path::Path};

use socket2::{Domain, SockAddr, SockRef, Socket as RawSocket};

use super::{
    address::Address,
    listener::Listener,
    options::{SocketOptions, set},
    resolve::resolve,
    syscall::{Call, call, new_socket},
    unix_path::{OwnedPath, remove_stale},
};
use crate::error::with_context;

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
    pub(super) fn new() -> Self {
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

    fn listen(
        &self,
        socket: RawSocket,
        tcp: bool,
        path: Option<OwnedPath>,
    ) -> io::Result<Listener> {
        if let Some(options) = &self.socket {
            options.apply_to(&SockRef::from(&socket), tcp)?;
        }
        let backlog = i32::try_from(self.backlog).unwrap_or(i32::MAX);
        call(Call::Listen, || socket.listen(backlog))?;
        Ok(Listener::bound(socket, tcp, path))
    }
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self::new()
    }
}

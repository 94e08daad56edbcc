//! How a listener comes to its address.

#[cfg(target_os = "linux")]
use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
};
use std::{io, path::Path};

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

    /// Permissions of the file of a unix socket, `0o660` for example, whatever the umask is; by default
    /// what the umask leaves.
    ///
    /// On Linux the file never has more permissions than these, and what takes its place during the bind, a
    /// symbolic link or another socket, does not get them: the bind fails then. Elsewhere the file has what
    /// the umask leaves until the end of the bind, and only links are seen. No connection can be made before.
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
        if let Some(mode) = self.mode {
            prepare_mode(&socket, mode)?;
        }
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
            owned.set_mode(mode)?;
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

/// Gives the socket the mode from which the kernel takes that of the file, less the umask.
#[cfg(target_os = "linux")]
fn prepare_mode(socket: &RawSocket, mode: u32) -> io::Result<()> {
    fs::File::from(OwnedFd::from(socket.try_clone()?))
        .set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(target_os = "linux"))]
fn prepare_mode(_: &RawSocket, _: u32) -> io::Result<()> {
    Ok(())
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{SocketAddr, TcpListener, TcpStream},
        os::unix::{
            fs::{PermissionsExt, symlink},
            net::{UnixListener, UnixStream},
        },
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::super::testing::{TempDir, failure, has_ipv6};
    use super::*;
    use crate::error::{Error, InvalidAddress};

    fn tcp(listener: &Listener) -> SocketAddr {
        listener.local_addr().unwrap().as_socket_addr().unwrap()
    }

    fn local() -> Address {
        Address::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn a_port_in_use_is_an_error_with_the_address() {
        let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = theirs.local_addr().unwrap();
        let error = failure(Listener::bind(address));
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn an_address_of_another_host_is_an_error_with_the_address() {
        // From the range for documentation: nobody's.
        let error = failure(Listener::bind(([192, 0, 2, 1], 80)));
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.to_string().contains("192.0.2.1:80"), "{error}");
    }

    #[test]
    fn a_host_name_is_resolved() {
        let listener = Listener::bind("localhost:0".parse::<Address>().unwrap()).unwrap();
        let address = tcp(&listener);
        assert!(address.ip().is_loopback());
        TcpStream::connect(address).unwrap();

        let name = Address::Host("localhost".into(), address.port());
        // Each address of the name may be tried, but the one in use is not to be had.
        if let Ok(other) = Listener::bind(&name) {
            assert_ne!(tcp(&other), address);
        }
    }

    #[test]
    fn a_host_of_which_no_address_can_be_had_is_an_error() {
        let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = theirs.local_addr().unwrap().port();
        let error = failure(Listener::bind(Address::Host("127.0.0.1".into(), port)));
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(
            error.to_string().contains(&format!("127.0.0.1:{port}")),
            "{error}"
        );
    }

    #[test]
    fn the_port_of_closed_connections_can_be_listened_on() {
        let listener = Listener::bind(local()).unwrap();
        let address = tcp(&listener);
        let theirs = TcpStream::connect(address).unwrap();
        let (socket, _) = listener.accept().unwrap();
        // This side closes first, so the port stays occupied for a minute.
        drop((listener, socket));
        drop(theirs);
        let error = failure(Listener::builder().reuse_address(false).bind(address));
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        Listener::bind(address).unwrap();
    }

    #[test]
    fn a_port_is_shared_if_all_listeners_say_so() {
        let one = Listener::builder().reuse_port(true).bind(local()).unwrap();
        let two = Listener::builder()
            .reuse_port(true)
            .bind(tcp(&one))
            .unwrap();
        assert_eq!(tcp(&one), tcp(&two));
        let error = failure(Listener::bind(tcp(&one)));
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn ipv6_can_leave_ipv4_alone() {
        if !has_ipv6() {
            return;
        }
        let any6: SocketAddr = "[::]:0".parse().unwrap();
        let six = Listener::builder().v6_only(true).bind(any6).unwrap();
        let port = tcp(&six).port();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        let both = Listener::builder().v6_only(false).bind(any6).unwrap();
        TcpStream::connect(("127.0.0.1", tcp(&both).port())).unwrap();
        let (_, peer) = both.accept().unwrap();
        assert!(matches!(peer, Address::Ip(SocketAddr::V6(_))), "{peer}");
    }

    #[test]
    fn any_backlog_is_taken() {
        for backlog in [0, 1, u32::MAX] {
            let listener = Listener::builder().backlog(backlog).bind(local()).unwrap();
            let _theirs = TcpStream::connect(tcp(&listener)).unwrap();
            listener.accept().unwrap();
        }
    }

    #[test]
    fn options_for_connections_are_set_before_they_come() {
        let options = SocketOptions::new().recv_buffer(50_000);
        let listener = Listener::builder().socket(options).bind(local()).unwrap();
        let _theirs = TcpStream::connect(tcp(&listener)).unwrap();
        let (socket, _) = listener.accept().unwrap();
        assert!(SockRef::from(&socket).recv_buffer_size().unwrap() >= 50_000);
    }

    #[test]
    fn a_unix_path_gets_its_mode_and_goes_with_the_listener() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let listener = Listener::builder()
            .mode(0o600)
            .bind(path.as_path())
            .unwrap();
        assert_eq!(
            listener.local_addr().unwrap(),
            Address::from(path.as_path())
        );
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_mode_is_that_of_the_file_whatever_the_umask() {
        let dir = TempDir::new();
        for mode in [0o000, 0o600, 0o660, 0o666, 0o777] {
            let path = dir.join("s");
            let _listener = Listener::builder().mode(mode).bind(path.as_path()).unwrap();
            let set = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(set & 0o7777, mode);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_link_that_takes_the_place_of_the_file_is_not_followed() {
        let dir = TempDir::new();
        let (path, link) = (dir.join("s"), dir.join("link"));
        let foreign = dir.join("foreign");
        fs::write(&foreign, "").unwrap();
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&foreign, private).unwrap();
        let (over, mut followed) = (AtomicBool::new(false), 0);
        thread::scope(|scope| {
            // Puts a link into the place of each file that appears, as early as it can.
            let replacing = scope.spawn(|| {
                let mut replaced = 0;
                while !over.load(Ordering::Relaxed) {
                    let _ = symlink(&foreign, &link);
                    if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_symlink()) {
                        replaced += u32::from(fs::rename(&link, &path).is_ok());
                    }
                }
                replaced
            });
            for _ in 0..1000 {
                // One that is followed gets a mode that the umask never leaves.
                drop(Listener::builder().mode(0o777).bind(path.as_path()));
                let mode = fs::metadata(&foreign).unwrap().permissions().mode();
                followed += u32::from(mode & 0o777 != 0o600);
                let _ = fs::remove_file(&path);
            }
            over.store(true, Ordering::Relaxed);
            println!("{} replaced", replacing.join().unwrap());
        });
        assert_eq!(followed, 0);
    }

    #[test]
    fn a_live_server_keeps_its_path() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let live = UnixListener::bind(&path).unwrap();
        let error = failure(Listener::bind(path.as_path()));
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        // The probe is in the queue first.
        UnixStream::connect(&path).unwrap();
        live.accept().unwrap();
    }

    #[test]
    fn a_live_server_with_a_full_queue_keeps_its_path() {
        let dir = TempDir::new();
        let path = dir.join("s");
        let live = Listener::builder().backlog(0).bind(path.as_path()).unwrap();
        let address = SockAddr::unix(&path).unwrap();
        let mut waiting = Vec::new();
        loop {
            let socket = new_socket(Domain::UNIX).unwrap();
            match socket.connect(&address) {
                Ok(()) => waiting.push(socket),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        let error = failure(Listener::bind(path.as_path()));
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        for _ in waiting {
            live.accept().unwrap();
        }
    }

    #[test]
    fn a_path_left_behind_is_taken_over_unless_that_is_off() {
        let dir = TempDir::new();
        let path = dir.join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let keep = Listener::builder().replace_stale(false);
        let error = failure(keep.bind(path.as_path()));
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        let listener = Listener::bind(path.as_path()).unwrap();
        UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(listener);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_socket_is_never_removed() {
        let dir = TempDir::new();
        let file = dir.join("file");
        fs::write(&file, "precious").unwrap();
        let sub = dir.join("dir");
        fs::create_dir(&sub).unwrap();
        let link = dir.join("link");
        let stale = dir.join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        symlink(&stale, &link).unwrap();
        for path in [&file, &sub, &link] {
            let error = failure(Listener::bind(path.as_path()));
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
        assert!(sub.is_dir() && stale.exists());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_path_that_cannot_be_made_is_an_error() {
        let dir = TempDir::new();
        let path = dir.join("missing").join("s");
        let error = failure(Listener::bind(path));
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let long = dir.join(&"x".repeat(120));
        let error = failure(Listener::bind(long));
        assert!(matches!(
            Error::from_io(&error),
            Some(Error::InvalidAddress(InvalidAddress::PathTooLong { .. }))
        ));
        let error = failure(Listener::bind(Address::Unnamed));
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_abstract_name_is_free_once_its_listener_is_gone() {
        let name = format!("netpoll-test-{}", std::process::id());
        let address = Address::Abstract(name.into_bytes().into());
        let listener = Listener::bind(&address).unwrap();
        assert_eq!(listener.local_addr().unwrap(), address);
        let error = failure(Listener::bind(&address));
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        Listener::bind(&address).unwrap();
    }

    #[cfg(netpoll_faults)]
    mod faults {
        use super::*;
        use crate::fault::{Fault, Plan};

        #[test]
        fn no_step_that_fails_leaves_a_file_behind() {
            let dir = TempDir::new();
            let path = dir.join("s");
            for call in [Call::Socket, Call::Bind, Call::SetOption, Call::Listen] {
                let plan = Plan::new(0)
                    .every(call, 1, Fault::Errno(libc::ENOMEM))
                    .this_thread()
                    .install();
                let options = SocketOptions::new().send_buffer(1 << 16);
                let error = failure(Listener::builder().socket(options).bind(path.as_path()));
                assert_eq!(error.kind(), io::ErrorKind::OutOfMemory, "{call:?}");
                assert_eq!(plan.hits(call), 1);
                assert!(!path.exists(), "{call:?}");
            }
        }

        #[test]
        fn a_probe_that_fails_for_another_reason_removes_nothing() {
            let dir = TempDir::new();
            let path = dir.join("s");
            drop(UnixListener::bind(&path).unwrap());
            for errno in [libc::EACCES, libc::EAGAIN, libc::ENOMEM] {
                let _plan = Plan::new(0)
                    .every(Call::Connect, 1, Fault::Errno(errno))
                    .this_thread()
                    .install();
                let error = failure(Listener::bind(path.as_path()));
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
                assert!(path.exists());
            }
        }

        #[test]
        fn a_server_that_starts_between_the_probes_keeps_its_path() {
            let dir = TempDir::new();
            let path = dir.join("s");
            let _live = UnixListener::bind(&path).unwrap();
            // As between `bind` and `listen`.
            let plan = Plan::new(0)
                .from(Call::Connect, 1, 1, Fault::Errno(libc::ECONNREFUSED))
                .this_thread()
                .install();
            let error = failure(Listener::bind(path.as_path()));
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            assert_eq!(plan.calls(Call::Connect), 2);
            assert!(path.exists());
        }
    }
}

//! Making a connection: the caller's thread waits for it, no poller is involved.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use poller::{Interest, wait_ready};
use socket2::{Domain, SockAddr, SockRef};

use super::{
    address::Address,
    options::SocketOptions,
    resolve::resolve,
    stream::Socket,
    syscall::{Call, call, new_socket},
};
use crate::error::{Error, InvalidAddress, with_context};

/// What a connection attempt is made with.
#[derive(Clone, Copy, Default)]
pub(crate) struct Dial<'a> {
    /// Set on the socket before it connects.
    pub(crate) options: Option<&'a SocketOptions>,
    /// The local address to connect from. The file of a unix path is the caller's to remove.
    pub(crate) local: Option<&'a Address>,
    /// When to give up; `None` leaves that to the system.
    pub(crate) deadline: Option<Instant>,
    /// Looked at every [`CANCEL_PERIOD`] of a wait; `true` gives up with
    /// [`Error::ShuttingDown`].
    pub(crate) cancelled: Option<&'a dyn Fn() -> bool>,
}

/// Connects to `address`. All addresses of a host are tried in turn, each with a share of the
/// time that is left.
///
/// Blocks until there is a result, at most until the deadline.
///
/// # Errors
///
/// [`Error::DialTimeout`] at the deadline, [`Error::SelfConnect`], [`Error::InvalidAddress`],
/// [`Error::ShuttingDown`] when cancelled, or what the system reports; all with the address in
/// the text. No descriptor is left behind.
pub(crate) fn connect(address: &Address, dial: Dial<'_>) -> io::Result<Socket> {
    let result = match address {
        _ if dial.is_late() => Err(Error::DialTimeout.into()),
        Address::Ip(ip) => dial.connect_tcp(*ip, dial.deadline),
        Address::Host(host, port) => {
            resolve(host, *port, dial.deadline).and_then(|addresses| dial.connect_any(&addresses))
        }
        Address::Unix(_) | Address::Abstract(_) | Address::Unnamed => dial.connect_unix(address),
    };
    result.map_err(|error| with_context(format!("connect to {address}"), error))
}

impl Dial<'_> {
    fn connect_any(&self, addresses: &[SocketAddr]) -> io::Result<Socket> {
        let mut best: Option<io::Error> = None;
        for (index, address) in addresses.iter().enumerate() {
            let deadline = self
                .deadline
                .map(|end| share(Instant::now(), end, addresses.len() - index));
            let error = match self.connect_tcp(*address, deadline) {
                Ok(socket) => return Ok(socket),
                Err(error) => error,
            };
            if Error::from_io(&error) == Some(Error::ShuttingDown) {
                return Err(error);
            }
            // The first address is the preferred one, but that this host has no way to a family
            // says less than what an address that was reached has to say.
            let replaces = best
                .as_ref()
                .is_none_or(|best| unreachable(best) && !unreachable(&error));
            if replaces {
                best = Some(with_context(address.to_string(), error));
            }
        }
        Err(best.unwrap_or_else(|| Error::InvalidAddress(InvalidAddress::NoSuchHost).into()))
    }

    fn connect_tcp(&self, peer: SocketAddr, deadline: Option<Instant>) -> io::Result<Socket> {
        let local = self.local_tcp(peer)?;
        let peer = SockAddr::from(peer);
        for _ in 0..SELF_CONNECT_TRIES {
            let socket = self.open(peer.domain(), local.as_ref(), true)?;
            match call(Call::Connect, || SockRef::from(&socket).connect(&peer)) {
                Ok(()) => {}
                Err(error) if in_progress(&error) => self.wait_connected(&socket, deadline)?,
                Err(error) => return Err(error),
            }
            // A dial to a free port of this host may get that very port for its own end. (Asking
            // for the peer also fails if there is none, whatever was said before.)
            if socket.raw_peer()?.as_socket() != socket.raw_local()?.as_socket() {
                return Ok(socket);
            }
            socket.set_linger_zero()?;
        }
        Err(Error::SelfConnect.into())
    }

    /// The local address to bind to for this peer, which must be of its family.
    fn local_tcp(&self, peer: SocketAddr) -> io::Result<Option<SockAddr>> {
        match self.local {
            None => Ok(None),
            Some(Address::Ip(local)) if local.is_ipv4() == peer.is_ipv4() => {
                Ok(Some(SockAddr::from(*local)))
            }
            Some(other) => Err(other.unusable(InvalidAddress::FamilyMismatch)),
        }
    }

    /// Unix sockets connect at once or not at all. A listener that has no room for the connection
    /// says so by `EAGAIN`, and nothing tells when it has; so this tries again now and then.
    fn connect_unix(&self, address: &Address) -> io::Result<Socket> {
        let local = match self.local {
            None => None,
            Some(local) if local.is_unix() => local.to_system()?,
            Some(local) => return Err(local.unusable(InvalidAddress::FamilyMismatch)),
        };
        let peer = address.to_system()?.ok_or(io::ErrorKind::InvalidInput)?;
        let socket = self.open(Domain::UNIX, local.as_ref(), false)?;
        let mut pause = FIRST_PAUSE;
        loop {
            match call(Call::Connect, || SockRef::from(&socket).connect(&peer)) {
                Ok(()) => return Ok(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            self.check_cancelled()?;
            let now = Instant::now();
            let left = self.deadline.map(|end| end.saturating_duration_since(now));
            if left == Some(Duration::ZERO) {
                return Err(Error::DialTimeout.into());
            }
            poller::before_blocking();
            thread::sleep(left.map_or(pause, |left| left.min(pause)));
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// A socket that is ready to connect.
    fn open(&self, domain: Domain, local: Option<&SockAddr>, tcp: bool) -> io::Result<Socket> {
        let raw = new_socket(domain)?;
        if let Some(options) = self.options {
            options.apply_to(&SockRef::from(&raw), tcp)?;
            if local.is_some() {
                options.apply_before_bind(&SockRef::from(&raw), tcp)?;
            }
        }
        if let Some(local) = local {
            call(Call::Bind, || raw.bind(local)).map_err(|error| {
                with_context(format!("from {}", Address::from_system(local)), error)
            })?;
        }
        Socket::from_own(raw.into(), tcp)
    }

    /// Waits until the pending connection is made or has failed.
    fn wait_connected(&self, socket: &Socket, deadline: Option<Instant>) -> io::Result<()> {
        poller::before_blocking();
        loop {
            self.check_cancelled()?;
            let now = Instant::now();
            let slice = match self.cancelled {
                // So far in the future that it does not matter is as good as never.
                Some(_) => now.checked_add(CANCEL_PERIOD),
                None => None,
            };
            let until = match (slice, deadline) {
                (Some(slice), Some(deadline)) => Some(slice.min(deadline)),
                (slice, deadline) => slice.or(deadline),
            };
            let ready = wait_ready(socket.as_fd(), Interest::WRITE, until)?;
            if !ready.is_empty() {
                // Writable, hung up and failed come in any mixture; this decides.
                return socket.take_error()?.map_or(Ok(()), Err);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Error::DialTimeout.into());
            }
        }
    }

    fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn check_cancelled(&self) -> io::Result<()> {
        if self.cancelled.is_some_and(|cancelled| cancelled()) {
            return Err(Error::ShuttingDown.into());
        }
        Ok(())
    }
}

/// When an attempt has to end that has `attempts - 1` others after it: after an equal share of
/// what is left, or [`MIN_SHARE`] if that is longer, but never after the deadline.
fn share(now: Instant, deadline: Instant, attempts: usize) -> Instant {
    let left = deadline.saturating_duration_since(now);
    let attempts = u32::try_from(attempts).unwrap_or(u32::MAX).max(1);
    let share = (left / attempts).max(MIN_SHARE).min(left);
    now + share
}

/// Whether an error means that the peer's network or family cannot be used from here at all.
fn unreachable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::AddrNotAvailable
            | io::ErrorKind::InvalidInput
    ) || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Whether the connection is being made. `EALREADY` comes if a signal made us ask twice.
fn in_progress(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINPROGRESS | libc::EALREADY)
    )
}

/// How often a dial is made that ends at itself.
const SELF_CONNECT_TRIES: u32 = 3;
/// The least time an address of several gets.
const MIN_SHARE: Duration = Duration::from_secs(2);
/// How often a wait looks whether it was cancelled.
const CANCEL_PERIOD: Duration = Duration::from_millis(25);
/// Pauses between tries at a unix listener without room.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::unix::net::UnixListener,
        sync::mpsc,
    };

    use super::super::listener::Listener;
    use super::super::testing::{TempDir, failure, far, has_ipv6, is_prepared};
    use super::*;

    fn in_time<'a>() -> Dial<'a> {
        Dial {
            deadline: far(),
            ..Dial::default()
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(30)
    }

    /// An address nobody listens at: of a socket that is bound and does not listen.
    fn closed_port() -> (socket2::Socket, SocketAddr) {
        let socket = new_socket(Domain::IPV4).unwrap();
        socket
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    /// A listener that answers no further connection, and those that fill it up.
    fn black_hole() -> (Listener, Vec<Socket>, Address) {
        let listener = Listener::builder()
            .backlog(0)
            .bind(([127, 0, 0, 1], 0))
            .unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..16 {
            let dial = Dial {
                deadline: Some(Instant::now() + Duration::from_millis(100)),
                ..Dial::default()
            };
            match connect(&address, dial) {
                Ok(socket) => waiting.push(socket),
                Err(error) => {
                    assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
                    return (listener, waiting, address);
                }
            }
        }
        panic!("16 connections in a backlog of 0");
    }

    #[test]
    fn connects_over_every_kind_of_address() {
        let dir = TempDir::new();
        let mut addresses = vec![
            Address::from(([127, 0, 0, 1], 0)),
            Address::Host("localhost".into(), 0),
            Address::Unix(dir.join("s")),
        ];
        if has_ipv6() {
            addresses.push("[::1]:0".parse().unwrap());
        }
        if cfg!(target_os = "linux") {
            let name = format!("netpoll-connect-{}", std::process::id());
            addresses.push(Address::Abstract(name.into_bytes().into()));
        }
        for address in addresses {
            let listener = Listener::bind(&address).unwrap();
            let bound = listener.local_addr().unwrap();
            let target = match (&address, bound.port()) {
                (Address::Host(host, _), Some(port)) => Address::Host(host.clone(), port),
                _ => bound.clone(),
            };
            for dial in [Dial::default(), in_time()] {
                let socket = connect(&target, dial).unwrap();
                assert!(is_prepared(&socket), "{address}");
                assert_eq!(socket.is_tcp(), !address.is_unix());
                assert_eq!(socket.peer_address().unwrap(), bound);
                let (_, peer) = listener.accept().unwrap();
                assert_eq!(socket.local_address().unwrap(), peer);
            }
        }
    }

    #[test]
    fn refused_is_an_error_with_the_address() {
        let (_bound, address) = closed_port();
        let error = failure(connect(&address.into(), in_time()));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert_eq!(Error::from_io(&error), None);

        let dir = TempDir::new();
        let path = dir.join("s");
        let error = failure(connect(&path.as_path().into(), in_time()));
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(&path).unwrap());
        let error = failure(connect(&path.as_path().into(), in_time()));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }

    #[test]
    fn no_answer_is_a_timeout_and_never_an_early_one() {
        let (_listener, _waiting, address) = black_hole();
        let deadline = soon();
        let dial = Dial {
            deadline: Some(deadline),
            ..Dial::default()
        };
        let error = failure(connect(&address, dial));
        assert!(Instant::now() >= deadline);
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn a_deadline_in_the_past_is_a_timeout_without_an_attempt() {
        let listener = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
        let dial = Dial {
            deadline: Some(Instant::now()),
            ..Dial::default()
        };
        let error = failure(connect(&listener.local_addr().unwrap(), dial));
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        assert_eq!(failure(listener.accept()).kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_wait_can_be_cancelled() {
        let (_listener, _waiting, address) = black_hole();
        let asked = std::cell::Cell::new(0);
        let third_time = || {
            asked.set(asked.get() + 1);
            asked.get() == 3
        };
        let dial = Dial {
            cancelled: Some(&third_time),
            ..in_time()
        };
        let error = failure(connect(&address, dial));
        assert_eq!(Error::from_io(&error), Some(Error::ShuttingDown));
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn a_connection_to_itself_is_an_error() {
        // Another process may take the port between the two steps; then another one will do.
        for _ in 0..20 {
            let (bound, address) = closed_port();
            drop(bound);
            let local = Address::from(address);
            let dial = Dial {
                local: Some(&local),
                ..in_time()
            };
            let error = failure(connect(&local, dial));
            if error.kind() == io::ErrorKind::AddrInUse {
                continue;
            }
            assert_eq!(Error::from_io(&error), Some(Error::SelfConnect), "{error}");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
            // It was reset, so nothing occupies the port.
            TcpListener::bind(address).unwrap();
            return;
        }
        panic!("no port was free twice in a row");
    }

    #[test]
    fn the_local_address_is_bound() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Address::from(listener.local_addr().unwrap());
        let local = Address::from(([127, 0, 0, 2], 0));
        let dial = Dial {
            local: Some(&local),
            ..in_time()
        };
        let socket = connect(&target, dial).unwrap();
        let from = socket.local_address().unwrap().as_socket_addr().unwrap();
        assert_eq!(from.ip().to_string(), "127.0.0.2");

        let dir = TempDir::new();
        let server = UnixListener::bind(dir.join("s")).unwrap();
        let local = Address::Unix(dir.join("c"));
        let dial = Dial {
            local: Some(&local),
            ..in_time()
        };
        let _socket = connect(&Address::Unix(dir.join("s")), dial).unwrap();
        let (_, peer) = server.accept().unwrap();
        assert_eq!(peer.as_pathname(), Some(dir.join("c").as_path()));
    }

    #[test]
    fn a_local_address_that_is_not_ours_is_an_error_that_names_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Address::from(listener.local_addr().unwrap());
        let local = Address::from(([192, 0, 2, 1], 0));
        let dial = Dial {
            local: Some(&local),
            ..in_time()
        };
        let error = failure(connect(&target, dial));
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
        assert!(error.to_string().contains("192.0.2.1"), "{error}");
    }

    #[test]
    fn families_do_not_mix() {
        let v4 = Address::from(([127, 0, 0, 1], 1));
        let v6 = "[::1]:1".parse().unwrap();
        let unix = Address::Unix("/nonexistent/s".into());
        for (target, local) in [(&v4, &v6), (&v6, &v4), (&v4, &unix), (&unix, &v4)] {
            let dial = Dial {
                local: Some(local),
                ..in_time()
            };
            let error = failure(connect(target, dial));
            assert_eq!(
                Error::from_io(&error),
                Some(Error::InvalidAddress(InvalidAddress::FamilyMismatch)),
                "{target} from {local}"
            );
        }
        let error = failure(connect(&Address::Unnamed, in_time()));
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn options_are_set_before_connecting() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let options = SocketOptions::new().recv_buffer(60_000);
        let dial = Dial {
            options: Some(&options),
            ..in_time()
        };
        let target = Address::from(listener.local_addr().unwrap());
        let socket = connect(&target, dial).unwrap();
        let system = SockRef::from(&socket);
        assert!(system.tcp_nodelay().unwrap());
        assert!(system.recv_buffer_size().unwrap() >= 60_000);
    }

    #[test]
    fn all_addresses_are_tried_and_the_best_error_returned() {
        let (_bound, dead) = closed_port();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let live = listener.local_addr().unwrap();
        let socket = in_time().connect_any(&[dead, live]).unwrap();
        assert_eq!(socket.peer_address().unwrap(), live.into());

        let (_other, second) = closed_port();
        let error = failure(in_time().connect_any(&[dead, second]));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&dead.to_string()), "{error}");
        assert_eq!(
            failure(in_time().connect_any(&[])).kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn time_is_shared_among_addresses() {
        let now = Instant::now();
        let secs = Duration::from_secs;
        assert_eq!(share(now, now + secs(30), 3), now + secs(10));
        assert_eq!(share(now, now + secs(30), 1), now + secs(30));
        // A share that is too short to be of use is made longer, but not beyond the deadline.
        assert_eq!(share(now, now + secs(4), 4), now + secs(2));
        assert_eq!(share(now, now + secs(1), 4), now + secs(1));
        assert_eq!(share(now, now - secs(1), 2), now);
        assert_eq!(share(now, now + secs(9), usize::MAX), now + secs(2));
        assert_eq!(share(now, now + secs(9), 0), now + secs(9));
    }

    /// A unix listener without room, those that fill it up, and its address.
    fn full(dir: &TempDir) -> (Listener, Vec<Socket>, Address) {
        let address = Address::Unix(dir.join("s"));
        let listener = Listener::builder().backlog(0).bind(&address).unwrap();
        let mut waiting = Vec::new();
        loop {
            let dial = Dial {
                deadline: Some(soon()),
                ..Dial::default()
            };
            match connect(&address, dial) {
                Ok(socket) => waiting.push(socket),
                Err(error) => {
                    assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
                    return (listener, waiting, address);
                }
            }
        }
    }

    #[test]
    fn a_full_unix_listener_is_a_timeout() {
        let dir = TempDir::new();
        let (_listener, waiting, address) = full(&dir);
        assert!(!waiting.is_empty());
        let deadline = soon();
        let dial = Dial {
            deadline: Some(deadline),
            ..Dial::default()
        };
        let error = failure(connect(&address, dial));
        assert!(Instant::now() >= deadline);
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
    }

    #[test]
    fn a_unix_listener_that_gets_room_is_connected_to() {
        let dir = TempDir::new();
        let (listener, waiting, address) = full(&dir);
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            let connector = scope.spawn(|| {
                // Asked each time there was no room.
                let no_room = move || tell.send(()).is_err();
                let dial = Dial {
                    cancelled: Some(&no_room),
                    ..in_time()
                };
                connect(&address, dial)
            });
            told.recv().unwrap();
            for _ in 0..=waiting.len() {
                while listener.accept().is_err() {
                    thread::yield_now();
                }
            }
            // Keeps answering until the connector is done.
            while told.recv().is_ok() {}
            connector.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_full_unix_listener_can_be_given_up_on() {
        let dir = TempDir::new();
        let (_listener, _waiting, address) = full(&dir);
        let dial = Dial {
            cancelled: Some(&|| true),
            ..in_time()
        };
        let error = failure(connect(&address, dial));
        assert_eq!(Error::from_io(&error), Some(Error::ShuttingDown));
    }

    #[test]
    fn an_ended_listener_resets_those_who_wait() {
        let (listener, waiting, _) = black_hole();
        drop(listener);
        for socket in waiting {
            super::super::testing::wait_readable(&socket);
            assert_ne!(socket.peek_state(), super::super::stream::Peek::Data);
        }
    }

    #[test]
    fn many_connections_go_to_one_listener() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Address::from(listener.local_addr().unwrap());
        for _ in 0..500 {
            let socket = connect(&target, in_time()).unwrap();
            let (theirs, peer): (TcpStream, _) = listener.accept().unwrap();
            assert_eq!(socket.local_address().unwrap(), peer.into());
            // No port stays occupied.
            socket.set_linger_zero().unwrap();
            drop((socket, theirs));
        }
    }

    #[cfg(netpoll_faults)]
    mod faults {
        use super::*;
        use crate::fault::{Fault, Plan};

        fn target() -> (TcpListener, Address) {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = Address::from(listener.local_addr().unwrap());
            (listener, address)
        }

        #[test]
        fn no_free_port_is_an_error_at_once() {
            let (_listener, address) = target();
            let plan = Plan::new(0)
                .every(Call::Connect, 1, Fault::Errno(libc::EADDRNOTAVAIL))
                .this_thread()
                .install();
            let error = failure(connect(&address, in_time()));
            assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
            assert_eq!(plan.calls(Call::Connect), 1);
        }

        #[test]
        fn signals_do_not_end_an_attempt() {
            let (_listener, address) = target();
            let _plan = Plan::new(0)
                .from(Call::Connect, 1, 3, Fault::Errno(libc::EINTR))
                .from(Call::Socket, 1, 2, Fault::Errno(libc::EINTR))
                .from(Call::Name, 1, 2, Fault::Errno(libc::EINTR))
                .this_thread()
                .install();
            connect(&address, in_time()).unwrap();
        }

        #[test]
        fn the_pending_error_decides() {
            let (_listener, _waiting, address) = black_hole();
            let _plan = Plan::new(0)
                .from(Call::Connect, 1, 1, Fault::Errno(libc::EINPROGRESS))
                .every(Call::GetOption, 1, Fault::Errno(libc::ECONNREFUSED))
                .this_thread()
                .install();
            // A socket that never connected polls as writable and hung up.
            let error = failure(connect(&address, in_time()));
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }

        #[test]
        fn a_false_alarm_is_no_connection() {
            let (_listener, address) = target();
            let _plan = Plan::new(0)
                .from(Call::Connect, 1, 1, Fault::Errno(libc::EINPROGRESS))
                .this_thread()
                .install();
            let error = failure(connect(&address, in_time()));
            assert_eq!(error.kind(), io::ErrorKind::NotConnected);
        }

        #[test]
        fn no_descriptor_is_an_error_with_the_address() {
            let (_listener, address) = target();
            let _plan = Plan::new(0)
                .every(Call::Socket, 1, Fault::Errno(libc::EMFILE))
                .this_thread()
                .install();
            let error = failure(connect(&address, in_time()));
            assert!(error.to_string().contains(&address.to_string()), "{error}");
        }

        #[test]
        fn a_way_that_is_closed_says_less_than_a_refusal() {
            let (_one, first) = closed_port();
            let (_two, second) = closed_port();
            let _plan = Plan::new(0)
                .from(Call::Connect, 1, 1, Fault::Errno(libc::ENETUNREACH))
                .this_thread()
                .install();
            let error = failure(in_time().connect_any(&[first, second]));
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}

//! Making a connection. The caller's thread waits for it; [`connecting`](super::connecting) does the same in
//! steps that do not wait.
//!
//! A host name may stand for several addresses, of which some may not answer. So attempts are staggered, as
//! RFC 8305 has it: a further address is tried as soon as an attempt has failed, and when none has come to
//! an end for [`ATTEMPT_DELAY`]. All go on until one succeeds; the others are closed then.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use poller::{Interest, Readiness, wait_any};
use socket2::{Domain, SockAddr, SockRef};

use super::{
    address::Address,
    endable::{Endable, LooksUp},
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

/// Connects to `address`: to the first address of a host that answers.
///
/// Blocks until there is a result, at most until the deadline.
///
/// # Errors
///
/// [`Error::DialTimeout`] at the deadline, [`Error::SelfConnect`], [`Error::InvalidAddress`],
/// [`Error::ShuttingDown`] when cancelled, [`Error::Overloaded`] if the calling handler's thread was needed by
/// others, or what the system reports; all with the address in
/// the text. No descriptor is left behind.
pub(crate) fn connect(address: &Address, dial: Dial<'_>) -> io::Result<Socket> {
    let result = match address {
        _ if dial.is_late() => Err(Error::DialTimeout.into()),
        Address::Ip(ip) => dial.connect_any(&[*ip]),
        Address::Host(host, port) => {
            resolve(host, *port, dial.deadline).and_then(|addresses| dial.connect_any(&addresses))
        }
        Address::Unix(_) | Address::Abstract(_) | Address::Unnamed => dial.connect_unix(address),
    };
    result.map_err(|error| with_context(format!("connect to {address}"), error))
}

impl Dial<'_> {
    fn connect_any(&self, addresses: &[SocketAddr]) -> io::Result<Socket> {
        Race::new(addresses).run(self)
    }

    /// Begins to connect. Whether that was done at once.
    fn begin(&self, peer: SocketAddr) -> io::Result<(Socket, bool)> {
        let local = self.local_tcp(peer)?;
        let peer = SockAddr::from(peer);
        let socket = self.open(peer.domain(), local.as_ref(), true)?;
        match call(Call::Connect, || SockRef::from(&socket).connect(&peer)) {
            Ok(()) => Ok((socket, true)),
            Err(error) if in_progress(&error) => Ok((socket, false)),
            Err(error) => Err(error),
        }
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

    fn connect_unix(&self, address: &Address) -> io::Result<Socket> {
        let mut knock = Knock::new(self, address)?;
        let mut waiting = None;
        loop {
            if knock.has_connected(self)? {
                return Ok(knock.socket);
            }
            self.check_cancelled()?;
            let waiting = waiting.get_or_insert_with(|| poller::begin_wait(Arc::new(LooksUp)));
            if waiting.was_ended() {
                return Err(Error::Overloaded.into());
            }
            thread::sleep(knock.next_at.saturating_duration_since(Instant::now()));
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

    /// When a wait has to look up: at the deadline, or to see whether it was cancelled.
    fn look_up_at(&self) -> Option<Instant> {
        let slice = self
            .cancelled
            // So far in the future that it does not matter is as good as never.
            .and_then(|_| Instant::now().checked_add(CANCEL_PERIOD));
        [slice, self.deadline].into_iter().flatten().min()
    }

    pub(super) fn is_late(&self) -> bool {
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

/// Attempts at a unix socket, which connects at once or not at all. A listener that has no room for the
/// connection says so by `EAGAIN`, and nothing tells when it has; so this tries again now and then.
pub(super) struct Knock {
    socket: Socket,
    peer: SockAddr,
    pause: Duration,
    /// When to try again.
    pub(super) next_at: Instant,
}

impl Knock {
    pub(super) fn new(dial: &Dial<'_>, address: &Address) -> io::Result<Self> {
        let local = match dial.local {
            None => None,
            Some(local) if local.is_unix() => local.to_system()?,
            Some(local) => return Err(local.unusable(InvalidAddress::FamilyMismatch)),
        };
        Ok(Self {
            peer: address.to_system()?.ok_or(io::ErrorKind::InvalidInput)?,
            socket: dial.open(Domain::UNIX, local.as_ref(), false)?,
            pause: FIRST_PAUSE,
            next_at: Instant::now(),
        })
    }

    /// Tries. `false`: try again at `next_at`.
    pub(super) fn has_connected(&mut self, dial: &Dial<'_>) -> io::Result<bool> {
        let (socket, peer) = (SockRef::from(&self.socket), &self.peer);
        match call(Call::Connect, || socket.connect(peer)) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if dial.is_late() {
            return Err(Error::DialTimeout.into());
        }
        let next_at = Instant::now() + self.pause;
        self.next_at = dial.deadline.map_or(next_at, |end| end.min(next_at));
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        Ok(false)
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }
}

/// Attempts at the addresses of a host.
pub(super) struct Race {
    /// Not tried yet, in the order of preference.
    waiting: VecDeque<SocketAddr>,
    pub(super) pending: Vec<Attempt>,
    failed: Vec<(SocketAddr, io::Error)>,
    /// When the next address is tried.
    next_at: Instant,
}

pub(super) struct Attempt {
    peer: SocketAddr,
    /// Shared with the poller that watches it, if one does.
    pub(super) socket: Arc<Socket>,
    /// Earlier attempts at this address that ended at themselves.
    selves: u32,
}

impl Race {
    pub(super) fn new(addresses: &[SocketAddr]) -> Self {
        Self {
            waiting: interleaved(addresses),
            pending: Vec::new(),
            failed: Vec::new(),
            next_at: Instant::now(),
        }
    }

    fn run(mut self, dial: &Dial<'_>) -> io::Result<Socket> {
        let mut endable = None;
        loop {
            if let Some(socket) = self.begin(dial)? {
                return into_own(socket);
            }
            dial.check_cancelled()?;
            let until = [self.next_at(), dial.look_up_at()];
            let until = until.into_iter().flatten().min();
            let endable = endable.get_or_insert_with(Endable::begin);
            if let Err(error) = endable.check() {
                return Err(self.judge(Some(error.into())));
            }
            let wait = |fds: &[BorrowedFd<'_>]| endable.wait_any(fds, Interest::WRITE, until);
            if let Some(socket) = self.wait(dial, wait)?.1 {
                return into_own(socket);
            }
        }
    }

    /// What can be done without waiting. `None`: again when an attempt's socket is writable, or at
    /// [`next_at`](Self::next_at).
    pub(super) fn step(&mut self, dial: &Dial<'_>) -> io::Result<Option<Arc<Socket>>> {
        loop {
            if let Some(socket) = self.begin(dial)? {
                return Ok(Some(socket));
            }
            let look =
                |fds: &[BorrowedFd<'_>]| wait_any(fds, Interest::WRITE, Some(Instant::now()));
            match self.wait(dial, look)? {
                (false, _) => return Ok(None),
                (true, Some(socket)) => return Ok(Some(socket)),
                (true, None) => {}
            }
        }
    }

    /// When the next address is due, if there is one.
    pub(super) fn next_at(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.next_at)
    }

    /// Begins with what is due, unless it is too late or all have failed.
    fn begin(&mut self, dial: &Dial<'_>) -> io::Result<Option<Arc<Socket>>> {
        if let Some(socket) = self.start_due(dial) {
            return Ok(Some(socket));
        }
        if self.pending.is_empty() {
            return Err(self.judge(None));
        }
        if dial.is_late() {
            return Err(self.judge(Some(Error::DialTimeout.into())));
        }
        Ok(None)
    }

    /// Waits for results. Whether there were any, and a connection if one was made.
    fn wait(
        &mut self,
        dial: &Dial<'_>,
        wait: impl FnOnce(&[BorrowedFd<'_>]) -> io::Result<Vec<Readiness>>,
    ) -> io::Result<(bool, Option<Arc<Socket>>)> {
        let fds: Vec<_> = self.pending.iter().map(|a| a.socket.as_fd()).collect();
        let ready = wait(&fds)?;
        let some = ready.iter().any(|ready| !ready.is_empty());
        Ok((some, self.take_results(dial, &ready)))
    }

    /// Tries the next addresses, if it is time. A connection if one was made at once.
    fn start_due(&mut self, dial: &Dial<'_>) -> Option<Arc<Socket>> {
        while self.pending.is_empty() || Instant::now() >= self.next_at {
            let peer = self.waiting.pop_front()?;
            if let Some(socket) = self.start(dial, peer, 0) {
                return Some(socket);
            }
        }
        None
    }

    fn start(&mut self, dial: &Dial<'_>, peer: SocketAddr, selves: u32) -> Option<Arc<Socket>> {
        self.next_at = Instant::now() + ATTEMPT_DELAY;
        let (socket, done) = match dial.begin(peer) {
            Ok(begun) => begun,
            Err(error) => return self.fail(peer, error),
        };
        let attempt = Attempt {
            peer,
            socket: Arc::new(socket),
            selves,
        };
        if done {
            return self.finish(dial, attempt);
        }
        self.pending.push(attempt);
        None
    }

    /// What became of the pending attempts.
    fn take_results(&mut self, dial: &Dial<'_>, ready: &[Readiness]) -> Option<Arc<Socket>> {
        let pending = std::mem::take(&mut self.pending);
        let mut winner = None;
        for (attempt, ready) in pending.into_iter().zip(ready) {
            if ready.is_empty() || winner.is_some() {
                self.pending.push(attempt);
                continue;
            }
            // Writable, hung up and failed come in any mixture; this decides.
            winner = match attempt.socket.take_error() {
                Ok(None) => self.finish(dial, attempt),
                Ok(Some(error)) | Err(error) => self.fail(attempt.peer, error),
            };
        }
        winner
    }

    /// The system says that an attempt has succeeded.
    fn finish(&mut self, dial: &Dial<'_>, attempt: Attempt) -> Option<Arc<Socket>> {
        let Attempt {
            peer,
            socket,
            selves,
        } = attempt;
        // A dial to a free port of this host may get that very port for its own end. (Asking for the
        // peer also fails if there is none, whatever was said before.)
        let is_self = socket.raw_peer().and_then(|to| {
            let from = socket.raw_local()?;
            Ok(to.as_socket() == from.as_socket())
        });
        match is_self {
            Ok(false) => return Some(socket),
            Ok(true) => {}
            Err(error) => return self.fail(peer, error),
        }
        if let Err(error) = socket.set_linger_zero() {
            return self.fail(peer, error);
        }
        drop(socket);
        if selves + 1 < SELF_CONNECT_TRIES {
            self.start(dial, peer, selves + 1)
        } else {
            self.fail(peer, Error::SelfConnect.into())
        }
    }

    fn fail(&mut self, peer: SocketAddr, error: io::Error) -> Option<Arc<Socket>> {
        self.failed.push((peer, error));
        self.next_at = Instant::now();
        None
    }

    /// The error of the dial, with what became of each attempt: the given one, or the one that says
    /// most. The first address is the preferred one, but that this host has no way to a family says less
    /// than what an address that was reached has to say.
    fn judge(&mut self, error: Option<io::Error>) -> io::Error {
        let single = self.failed.len() + self.pending.len() + self.waiting.len() == 1;
        if single {
            let alone = self.failed.pop().map(|(_, failed)| failed);
            return error.or(alone).unwrap_or_else(no_such_host);
        }
        let mut tried: Vec<_> = self
            .failed
            .iter()
            .map(|(peer, error)| format!("{peer} ({error})"))
            .collect();
        tried.extend(
            self.pending
                .iter()
                .map(|a| format!("{} (no answer)", a.peer)),
        );
        tried.extend(
            self.waiting
                .iter()
                .map(|peer| format!("{peer} (not tried)")),
        );
        let best = self
            .failed
            .iter()
            .position(|(_, error)| !unreachable(error));
        let best = error.or_else(|| {
            let best = best.unwrap_or(0);
            (!self.failed.is_empty()).then(|| self.failed.swap_remove(best).1)
        });
        match best {
            Some(best) => with_context(tried.join(", "), best),
            None => no_such_host(),
        }
    }
}

/// The socket by itself. One that a poller still looks at lets go of its own descriptor later.
pub(super) fn into_own(socket: Arc<Socket>) -> io::Result<Socket> {
    Arc::try_unwrap(socket).or_else(|shared| {
        let fd = shared.as_fd().try_clone_to_owned()?;
        Socket::from_own(fd, shared.is_tcp())
    })
}

fn no_such_host() -> io::Error {
    Error::InvalidAddress(InvalidAddress::NoSuchHost).into()
}

/// The addresses in their order, but with the families in turn, so that one that does not work holds up no
/// more than every other attempt.
fn interleaved(addresses: &[SocketAddr]) -> VecDeque<SocketAddr> {
    let Some(first) = addresses.first() else {
        return VecDeque::new();
    };
    let (same, other): (Vec<_>, Vec<_>) = addresses
        .iter()
        .copied()
        .partition(|address: &SocketAddr| address.is_ipv4() == first.is_ipv4());
    let mut all = VecDeque::with_capacity(addresses.len());
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    loop {
        let (a, b) = (same.next(), other.next());
        if a.is_none() && b.is_none() {
            return all;
        }
        all.extend(a.into_iter().chain(b));
    }
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
/// How long an attempt may take before the next address is tried as well: the "Connection Attempt Delay" of
/// RFC 8305.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How often a wait looks whether it was cancelled.
const CANCEL_PERIOD: Duration = Duration::from_millis(25);
/// Pauses between tries at a unix listener without room.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
pub(super) mod tests {
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
    pub(in super::super) fn closed_port() -> (socket2::Socket, SocketAddr) {
        let socket = new_socket(Domain::IPV4).unwrap();
        socket
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    /// A listener that answers no further connection, and those that fill it up.
    pub(in super::super) fn black_hole() -> (Listener, Vec<Socket>, Address) {
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
    fn the_families_take_turns() {
        let v4 = |n| SocketAddr::from(([127, 0, 0, n], 80));
        let v6 = |n| SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, n], 80));
        let all = [v6(1), v6(2), v6(3), v4(1), v4(2)];
        assert_eq!(interleaved(&all), [v6(1), v4(1), v6(2), v4(2), v6(3)]);
        assert_eq!(interleaved(&[v4(1), v4(2), v6(1)]), [v4(1), v6(1), v4(2)]);
        assert!(interleaved(&[]).is_empty());
    }

    #[test]
    fn an_address_that_does_not_answer_does_not_hold_up_the_next() {
        let (_listener, _waiting, hole) = black_hole();
        let hole = hole.as_socket_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let live = listener.local_addr().unwrap();
        // Without a deadline too.
        for dial in [Dial::default(), in_time()] {
            let start = Instant::now();
            let socket = dial.connect_any(&[hole, live]).unwrap();
            assert_eq!(socket.peer_address().unwrap(), live.into());
            assert!(start.elapsed() >= ATTEMPT_DELAY);
        }
    }

    #[test]
    fn an_address_that_fails_is_followed_by_the_next_at_once() {
        let (_bound, dead) = closed_port();
        let (_listener, _waiting, hole) = black_hole();
        let hole = hole.as_socket_addr().unwrap();
        // The second is tried when the first has failed: both are told of at the end.
        let dial = Dial {
            deadline: Some(Instant::now() + ATTEMPT_DELAY / 2),
            ..Dial::default()
        };
        let error = failure(dial.connect_any(&[dead, hole, dead]));
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        let text = error.to_string();
        for part in [
            format!("{dead} (Connection refused"),
            format!("{hole} (no answer)"),
            format!("{dead} (not tried)"),
        ] {
            assert!(text.contains(&part), "{part} in {text}");
        }
    }

    #[test]
    fn the_attempts_that_lose_are_closed() {
        let (listener, waiting, hole) = black_hole();
        let live = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [hole.as_socket_addr().unwrap(), live.local_addr().unwrap()];
        let socket = in_time().connect_any(&addresses).unwrap();
        let from = socket.local_address().unwrap();
        // When there is room again, none of the attempts comes.
        for _ in 0..waiting.len() {
            while listener.accept().is_err() {
                thread::yield_now();
            }
        }
        let (mut theirs, peer) = live.accept().unwrap();
        assert_eq!(Address::from(peer), from);
        drop(socket);
        assert_eq!(io::Read::read(&mut theirs, &mut [0]).unwrap(), 0);
        assert_eq!(failure(listener.accept()).kind(), io::ErrorKind::WouldBlock);
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

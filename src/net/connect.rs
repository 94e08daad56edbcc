//! Making a connection: the caller's thread waits for it, no poller is involved.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
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
use crate::{
    error::{Error, InvalidAddress, with_context},
    sync::thread,
};

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
            // A dial to a free port of this host may get that very port for its own end.
            if socket.raw_local()?.as_socket() != socket.raw_peer()?.as_socket() {
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
        Socket::from_prepared(raw.into(), tcp)
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
                if let Some(error) = socket.take_error()? {
                    return Err(error);
                }
                match socket.raw_peer() {
                    Ok(_) => return Ok(()),
                    // Not yet: a false alarm.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                    Err(error) => return Err(error),
                }
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

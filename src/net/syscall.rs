//! The one layer between this crate and the system: signals are retried, faults are injected.

use std::{io, os::fd::BorrowedFd};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

#[cfg(netpoll_faults)]
use crate::fault::pass;

/// A kind of system call, the key of a fault plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
// Only `--cfg netpoll_faults` exports it.
#[allow(unreachable_pub)]
#[allow(clippy::exhaustive_enums)]
pub enum Call {
    /// `accept4(2)`.
    Accept,
    /// `bind(2)`.
    Bind,
    /// `connect(2)`.
    Connect,
    /// `getsockopt(2)`, the pending error of a socket included.
    GetOption,
    /// `listen(2)`.
    Listen,
    /// `getsockname(2)` and `getpeername(2)`.
    Name,
    /// `recv(2)` that leaves the bytes where they are.
    Peek,
    /// `recv(2)`.
    Receive,
    /// `send(2)` and `sendmsg(2)`.
    Send,
    /// `setsockopt(2)` and the `fcntl(2)` flags.
    SetOption,
    /// `shutdown(2)`.
    Shutdown,
    /// `socket(2)`.
    Socket,
}

/// Makes a call, again after each signal.
#[inline]
pub(super) fn call<T>(kind: Call, mut op: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match pass(kind, None, |_| op()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Makes a call that moves up to `len` bytes on `fd`, again after each signal.
///
/// `op` gets the count it may move: `len`, or less if a fault cuts it short.
#[inline]
pub(super) fn transfer(
    kind: Call,
    fd: BorrowedFd<'_>,
    len: usize,
    mut op: impl FnMut(usize) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match transfer_once(kind, fd, len, &mut op) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// As [`transfer`], but a signal is an error: for calls that wait.
#[inline]
pub(super) fn transfer_once(
    kind: Call,
    fd: BorrowedFd<'_>,
    len: usize,
    op: impl FnOnce(usize) -> io::Result<usize>,
) -> io::Result<usize> {
    pass(
        kind,
        Some(fd),
        |cut| op(cut.map_or(len, |cut| cut.min(len))),
    )
}

/// A stream socket that is close-on-exec and non-blocking, both from birth where the system can.
pub(super) fn new_socket(domain: Domain) -> io::Result<Socket> {
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
            Socket::new(domain, Type::STREAM.nonblocking(), None)
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
        let socket = call(Call::Socket, || Socket::new(domain, Type::STREAM, None))?;
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
pub(super) fn accept_prepared(listener: &SockRef<'_>) -> io::Result<(Socket, SockAddr)> {
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
pub(super) fn accept_prepared(listener: &SockRef<'_>) -> io::Result<(Socket, SockAddr)> {
    let (socket, peer) = listener.accept()?;
    socket.set_nonblocking(true)?;
    Ok((socket, peer))
}

/// Makes one call. `op` gets the count that a fault cuts it to: there are none here.
#[cfg(not(netpoll_faults))]
#[inline(always)]
fn pass<T>(
    _: Call,
    _: Option<BorrowedFd<'_>>,
    op: impl FnOnce(Option<usize>) -> io::Result<T>,
) -> io::Result<T> {
    op(None)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, os::fd::AsFd};

    use super::*;

    #[test]
    fn signals_are_retried() {
        let left = Cell::new(3);
        let interrupted_thrice = || {
            if left.replace(left.get() - 1) > 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            Ok(7)
        };
        assert_eq!(call(Call::Name, interrupted_thrice).unwrap(), 7);
        left.set(2);
        let fd = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(
            transfer(Call::Send, fd.as_fd(), 9, |_| interrupted_thrice()).unwrap(),
            7
        );
    }

    #[test]
    fn other_errors_are_returned_at_once() {
        let calls = Cell::new(0);
        let result: io::Result<()> = call(Call::Accept, || {
            calls.set(calls.get() + 1);
            Err(io::Error::from_raw_os_error(libc::EMFILE))
        });
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EMFILE));
        assert_eq!(calls.get(), 1);
    }

    #[test]
    fn a_transfer_offers_the_whole_length() {
        let fd = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(transfer(Call::Receive, fd.as_fd(), 12, Ok).unwrap(), 12);
    }
}

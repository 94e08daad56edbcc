//! A connected stream socket and the calls that move its bytes.
//!
//! Invariant for the one `unsafe` block: `recv(2)` initialises the first `n` bytes of the room it
//! is given, where `n` is the count it returns; the count is checked against the room before the
//! buffer is told about it.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use socket2::{SockAddr, SockRef, Type};

use super::{
    address::Address,
    syscall::{Call, call, transfer},
};
use crate::{error::with_context, sync::thread};

/// A connected TCP or unix stream socket that never blocks.
///
/// Every call may be made from any thread. `WouldBlock` is the only error after which a call may
/// be tried again; signals are retried inside.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    tcp: bool,
}

/// What a look at the receive queue found, see [`Socket::peek_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    /// Nothing, and the peer may still send.
    Empty,
    /// At least one byte.
    Data,
    /// The peer ended its stream and everything was read.
    Eof,
    /// The connection is broken.
    Err(io::ErrorKind),
}

impl Socket {
    /// Takes over a connected stream socket from elsewhere: makes it non-blocking and
    /// close-on-exec.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if it is no TCP or unix stream socket, or what the system reports.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let tcp = stream_family(fd.as_fd())?;
        prepare(fd.as_fd())?;
        let socket = Self { fd, tcp };
        socket.silence()?;
        Ok(socket)
    }

    /// As [`Self::from_fd`] for a descriptor that is known to be non-blocking and close-on-exec.
    pub(super) fn from_prepared(fd: OwnedFd, tcp: bool) -> io::Result<Self> {
        let socket = Self { fd, tcp };
        socket.silence()?;
        Ok(socket)
    }

    /// Receives into the spare capacity of `buf` and returns how many bytes came; 0 means that
    /// the peer ended its stream.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing is there, `InvalidInput` when `buf` has no spare capacity (so
    /// that a full buffer is never taken for an end of stream), or what the system reports.
    pub(crate) fn recv_into(&self, buf: &mut BytesMut) -> io::Result<usize> {
        let room = buf.spare_capacity_mut();
        let n = self.receive(room)?;
        assert!(
            n <= room.len(),
            "the system received more than there is room for"
        );
        // SAFETY: the first `n` bytes of the spare capacity were initialised by `recv(2)`, and `n`
        // was checked to be within it.
        #[allow(unsafe_code)]
        unsafe {
            buf.advance_mut(n);
        }
        Ok(n)
    }

    /// Receives into `buf`, as [`Self::recv_into`].
    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Err(no_room());
        }
        transfer(Call::Receive, buf.len(), |len| {
            // `Read` goes to `recv(2)` too, without flags: the socket is non-blocking anyway.
            io::Read::read(&mut &*SockRef::from(&self.fd), &mut buf[..len])
        })
    }

    /// Whether a receive of `n` bytes into room for `offered` shows that nothing is left, so
    /// that the next edge may be waited for.
    #[inline]
    pub(crate) fn emptied(n: usize, offered: usize) -> bool {
        #[cfg(feature = "fault-injection")]
        if crate::fault::receive_was_cut() {
            return false;
        }
        n < offered
    }

    /// Looks at the receive queue and leaves it as it is.
    pub(crate) fn peek_state(&self) -> Peek {
        let mut byte = [MaybeUninit::uninit()];
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let peeked = call(Call::Peek, || {
            SockRef::from(&self.fd).recv_with_flags(&mut byte, flags)
        });
        match peeked {
            Ok(0) => Peek::Eof,
            Ok(_) => Peek::Data,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Peek::Empty,
            Err(e) => Peek::Err(e.kind()),
        }
    }

    /// Sends from `bufs` in order, as much as the socket takes of the first [`MAX_SLICES`]
    /// pieces and [`MAX_BYTES`] bytes, and returns how many bytes that was. Never raises
    /// `SIGPIPE`.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the socket is full, or when the system is short of memory
    /// ([`is_shortage`] tells the two apart); else what the system reports.
    pub(crate) fn send_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let bufs = &bufs[..bufs.len().min(MAX_SLICES)];
        let total = bufs
            .iter()
            .fold(0_usize, |sum, buf| sum.saturating_add(buf.len()));
        if total == 0 {
            return Ok(0);
        }
        self.transmit(total.min(MAX_BYTES), |socket, len| {
            if len == total {
                socket.send_vectored_with_flags(bufs, SEND_FLAGS)
            } else {
                socket.send_vectored_with_flags(&prefix(bufs, len), SEND_FLAGS)
            }
        })
    }

    /// Sends from `buf`, as [`Self::send_vectored`].
    pub(crate) fn send(&self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.transmit(buf.len().min(MAX_BYTES), |socket, len| {
            socket.send_with_flags(&buf[..len], SEND_FLAGS)
        })
    }

    /// Ends one or both directions. A connection that is gone already is no error.
    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match call(Call::Shutdown, || SockRef::from(&self.fd).shutdown(how)) {
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    /// Makes closing the descriptor drop what is unsent and reset the connection
    /// (`SO_LINGER` with zero seconds). Unix sockets have no reset; they just close.
    pub(crate) fn set_linger_zero(&self) -> io::Result<()> {
        call(Call::SetOption, || {
            SockRef::from(&self.fd).set_linger(Some(Duration::ZERO))
        })
    }

    /// Takes the pending error of the socket (`SO_ERROR`).
    pub(crate) fn take_error(&self) -> io::Result<Option<io::Error>> {
        call(Call::GetOption, || SockRef::from(&self.fd).take_error())
    }

    /// Where the peer is: one `getpeername(2)`.
    pub(crate) fn peer_address(&self) -> io::Result<Address> {
        let address = call(Call::Name, || SockRef::from(&self.fd).peer_addr())?;
        Ok(Address::from_system(&address))
    }

    /// Where this end is: one `getsockname(2)`.
    pub(crate) fn local_address(&self) -> io::Result<Address> {
        let address = call(Call::Name, || SockRef::from(&self.fd).local_addr())?;
        Ok(Address::from_system(&address))
    }

    /// Whether this is a TCP socket; else it is a unix one.
    pub(crate) const fn is_tcp(&self) -> bool {
        self.tcp
    }

    /// Gives the descriptor away; it stays non-blocking.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    pub(super) fn raw_peer(&self) -> io::Result<SockAddr> {
        call(Call::Name, || SockRef::from(&self.fd).peer_addr())
    }

    pub(super) fn raw_local(&self) -> io::Result<SockAddr> {
        call(Call::Name, || SockRef::from(&self.fd).local_addr())
    }

    fn receive(&self, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if room.is_empty() {
            return Err(no_room());
        }
        transfer(Call::Receive, room.len(), |len| {
            SockRef::from(&self.fd).recv_with_flags(&mut room[..len], libc::MSG_DONTWAIT)
        })
    }

    /// Sends, and outlasts a short lack of memory.
    fn transmit(
        &self,
        len: usize,
        mut op: impl FnMut(&SockRef<'_>, usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let socket = SockRef::from(&self.fd);
        let mut tries = SHORTAGE_TRIES;
        loop {
            match transfer(Call::Send, len, |len| op(&socket, len)) {
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) => {
                    tries -= 1;
                    if tries == 0 {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    thread::yield_now();
                }
                result => return result,
            }
        }
    }

    /// Where sending has no flag against `SIGPIPE` the socket has an option.
    #[cfg(target_vendor = "apple")]
    fn silence(&self) -> io::Result<()> {
        call(Call::SetOption, || {
            SockRef::from(&self.fd).set_nosigpipe(true)
        })
    }

    #[cfg(not(target_vendor = "apple"))]
    #[allow(clippy::unnecessary_wraps, clippy::unused_self)]
    const fn silence(&self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether a `WouldBlock` of a send means that the system had no memory for it.
///
/// The socket has room then and no edge will announce memory: try again after a pause, about
/// 10 ms. (Errors of the system carry their number; this one was made here and has none.)
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock && error.raw_os_error().is_none()
}

/// Whether `fd` is a TCP stream (`true`) or a unix one (`false`).
pub(super) fn stream_family(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let socket = SockRef::from(&fd);
    let kind = call(Call::GetOption, || socket.r#type())?;
    let local = call(Call::Name, || socket.local_addr())?;
    let tcp = local.is_ipv4() || local.is_ipv6();
    if kind == Type::STREAM && (tcp || local.is_unix()) {
        return Ok(tcp);
    }
    Err(with_context(
        "a TCP or unix stream socket is needed",
        io::ErrorKind::InvalidInput.into(),
    ))
}

/// Makes a descriptor from elsewhere non-blocking and close-on-exec.
pub(super) fn prepare(fd: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    call(Call::SetOption, || socket.set_nonblocking(true))?;
    call(Call::SetOption, || socket.set_cloexec(true))
}

/// The first `len` bytes of `bufs`.
fn prefix<'a>(bufs: &'a [IoSlice<'_>], mut len: usize) -> Vec<IoSlice<'a>> {
    let mut cut = Vec::with_capacity(bufs.len());
    for buf in bufs {
        if len == 0 {
            break;
        }
        let part = &buf[..buf.len().min(len)];
        len -= part.len();
        cut.push(IoSlice::new(part));
    }
    cut
}

fn no_room() -> io::Error {
    with_context(
        "receive into a buffer without room",
        io::ErrorKind::InvalidInput.into(),
    )
}

/// As many pieces as every supported system takes in one call (`IOV_MAX`).
pub(crate) const MAX_SLICES: usize = 1024;
/// As many bytes as every supported system takes in one call, rounded down to whole pages.
pub(crate) const MAX_BYTES: usize = 0x7fff_f000;
/// How often a send is tried when the system is short of memory.
const SHORTAGE_TRIES: u32 = 4;

#[cfg(not(target_vendor = "apple"))]
const SEND_FLAGS: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
#[cfg(target_vendor = "apple")]
const SEND_FLAGS: libc::c_int = libc::MSG_DONTWAIT;

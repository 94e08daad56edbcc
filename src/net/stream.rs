//! A connected stream socket and the calls that move its bytes.
//!
//! Invariants for the `unsafe` blocks: `recv(2)` initialises the first `n` bytes of the room it is
//! given, where `n` is the count it returns; the count is checked against the room before the buffer
//! is told about it. It writes nothing else. `recvmsg(2)` does the same with the room that the one entry of
//! its list points to, and writes flags and lengths into the message header, which is a local variable.
//! `setsockopt(2)` reads as many bytes as it is told from a value that lives longer than the call, on a
//! descriptor that is borrowed and so open.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::Shutdown,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    thread,
    time::Duration,
};

use bytes::{BufMut, BytesMut};
use socket2::{SockAddr, SockRef, Type};

use super::{
    address::Address,
    syscall::{Call, call, transfer_once},
    waiting::Waits,
};
use crate::error::with_context;

/// A connected TCP or unix stream socket.
///
/// No call waits but [`recv_waiting`](Self::recv_waiting), whatever the mode of the descriptor. Every call
/// may be made from any thread. `WouldBlock` is the only error after which a call may be tried again;
/// signals are retried inside.
#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    tcp: bool,
    waits: Waits,
    #[cfg(netpoll_leaks)]
    pub(crate) leak: crate::leak::Tracked,
}

/// What a receive brought.
///
/// # When the kernel has no more
///
/// A receive on a stream socket goes on until its room is full or the queue is empty, so a count below the
/// room says that the next edge may be waited for, without another call that finds nothing. There are
/// exceptions, and the kernel tells each of them in its own way:
///
/// * urgent data ends a receive: epoll says that there is some ([`Readiness::PRIORITY`](poller::Readiness)),
///   and the one who asks keeps it in mind;
/// * on a unix socket what comes along with the bytes ends a receive, descriptors or the credentials of
///   another writer: `recvmsg(2)` says that it had to drop that.
///
/// A tracer of the process that shortens the call is not told of: the first receive of a connection is followed
/// by another one whatever its count, and so is one that leaves a part of a message ([`Rx`]).
///
/// Elsewhere than on Linux nothing is concluded from a count.
///
/// [`Rx`]: crate::connection::Connection
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Bytes; none is the end of the stream.
    pub(crate) n: usize,
    /// As many as there was room for.
    pub(crate) filled: bool,
    /// The kernel may have more, whatever the count.
    pub(crate) more: bool,
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
        let socket = Self::from_prepared(fd, tcp)?;
        socket.waits.set_seen(true);
        Ok(socket)
    }

    /// As [`Self::from_fd`] for a descriptor that is known to be non-blocking and close-on-exec.
    pub(super) fn from_prepared(fd: OwnedFd, tcp: bool) -> io::Result<Self> {
        Self::with_waits(fd, tcp, Waits::never())
    }

    /// As [`Self::from_prepared`] for a descriptor that was made here and that nobody else knows: its
    /// mode may change.
    pub(super) fn from_own(fd: OwnedFd, tcp: bool) -> io::Result<Self> {
        Self::with_waits(fd, tcp, Waits::soon())
    }

    fn with_waits(fd: OwnedFd, tcp: bool, waits: Waits) -> io::Result<Self> {
        let socket = Self {
            fd,
            tcp,
            waits,
            #[cfg(netpoll_leaks)]
            leak: crate::leak::Tracked::descriptor(),
        };
        socket.silence()?;
        Ok(socket)
    }

    /// Receives into the spare capacity of `buf`; no byte means that the peer ended its stream.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when nothing is there, `InvalidInput` when `buf` has no spare capacity (so
    /// that a full buffer is never taken for an end of stream), or what the system reports.
    #[inline]
    pub(crate) fn recv_into(&self, buf: &mut BytesMut) -> io::Result<Received> {
        Self::append(buf, usize::MAX, |room| self.receive(room))
    }

    /// As [`Self::recv_into`], but no more than `most` bytes.
    pub(crate) fn recv_at_most(&self, buf: &mut BytesMut, most: usize) -> io::Result<Received> {
        Self::append(buf, most, |room| self.receive(room))
    }

    /// As [`Self::recv_into`], as long as the descriptor's mode says and until a signal comes.
    pub(super) fn recv_once(&self, buf: &mut BytesMut) -> io::Result<Received> {
        Self::append(buf, usize::MAX, |room| {
            if room.is_empty() {
                return Err(no_room());
            }
            let n = transfer_once(Call::Receive, self.as_fd(), room.len(), |len| {
                SockRef::from(&self.fd).recv(&mut room[..len])
            })?;
            // Who waits looks at the queue before the next wait.
            Ok((n, false))
        })
    }

    /// Receives into the first `most` bytes of the spare capacity.
    #[inline]
    fn append(
        buf: &mut BytesMut,
        most: usize,
        receive: impl FnOnce(&mut [MaybeUninit<u8>]) -> io::Result<(usize, bool)>,
    ) -> io::Result<Received> {
        let room = buf.spare_capacity_mut();
        let most = most.min(room.len());
        let room = &mut room[..most];
        let (n, cut) = receive(room)?;
        assert!(
            n <= room.len(),
            "the system received more than there is room for"
        );
        let filled = n == room.len();
        // SAFETY: the first `n` bytes of the spare capacity were initialised by `recv(2)`, and `n`
        // was checked to be within it.
        #[allow(unsafe_code)]
        unsafe {
            buf.advance_mut(n);
        }
        Ok(Received {
            n,
            filled,
            more: filled || cut,
        })
    }

    /// Receives into `buf`, as [`Self::recv_into`].
    pub(crate) fn recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        let room: *mut [u8] = buf;
        // SAFETY: bytes and bytes that need not be initialised are laid out alike, the exclusive borrow
        // goes on, and `recv(2)` only ever writes initialised ones.
        #[allow(unsafe_code)]
        let room = unsafe { &mut *(room as *mut [MaybeUninit<u8>]) };
        self.receive(room).map(|(n, _)| n)
    }

    /// Looks at the receive queue and leaves it as it is.
    pub(crate) fn peek_state(&self) -> Peek {
        match call(Call::Peek, || direct::peek(self.as_fd())) {
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
        if let [buf] = bufs {
            // `send(2)` has no list of pieces to copy and check.
            return self.send(buf);
        }
        let bufs = &bufs[..bufs.len().min(MAX_SLICES)];
        let total = bufs
            .iter()
            .fold(0_usize, |sum, buf| sum.saturating_add(buf.len()));
        if total == 0 {
            return Ok(0);
        }
        let socket = SockRef::from(&self.fd);
        self.transmit(total.min(MAX_BYTES), |len| {
            if len == total {
                socket.send_vectored_with_flags(bufs, SEND_FLAGS)
            } else {
                socket.send_vectored_with_flags(&prefix(bufs, len), SEND_FLAGS)
            }
        })
    }

    /// Sends from `buf`, as [`Self::send_vectored`].
    #[inline]
    pub(crate) fn send(&self, buf: &[u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.transmit(buf.len().min(MAX_BYTES), |len| {
            direct::send(self.as_fd(), &buf[..len])
        })
    }

    /// Ends one or both directions. A connection that is gone already is no error.
    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match call(Call::Shutdown, || SockRef::from(&self.fd).shutdown(how)) {
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    /// Resets the connection: what is unsent is dropped. On Linux the peer sees it at once, also while
    /// others have the descriptor; elsewhere when the descriptor is closed. Unix sockets have no reset;
    /// both directions end.
    pub(crate) fn reset(&self) -> io::Result<()> {
        if !self.tcp {
            return self.shutdown(Shutdown::Both);
        }
        #[cfg(target_os = "linux")]
        {
            // Some systems refuse while a thread waits in a receive.
            let disconnect = || rustix::net::connect_unspec(&self.fd).map_err(io::Error::from);
            if call(Call::Shutdown, disconnect).is_ok() {
                return Ok(());
            }
        }
        self.set_linger_zero()
    }

    /// Makes closing the descriptor drop what is unsent and reset the connection
    /// (`SO_LINGER` with zero seconds). Unix sockets have no reset; they just close.
    pub(crate) fn set_linger_zero(&self) -> io::Result<()> {
        call(Call::SetOption, || {
            SockRef::from(&self.fd).set_linger(Some(Duration::ZERO))
        })
    }

    /// Others get to see the descriptor, and may set options that the close has to be careful about.
    pub(crate) fn show(&self) {
        self.waits.set_seen(true);
    }

    /// The descriptor was duplicated for good: its options are the new owner's.
    pub(crate) fn hand_out(&self) {
        self.waits.set_seen(false);
    }

    /// With `SO_LINGER` a close would wait until the peer has everything, on a thread that must not. The
    /// system delivers it all the same. With a time of zero the close is a reset, which does not wait.
    fn close_without_waiting(&self) {
        let socket = SockRef::from(&self.fd);
        if matches!(socket.linger(), Ok(Some(time)) if !time.is_zero()) {
            // An error leaves no other way than to close.
            let _ = call(Call::SetOption, || socket.set_linger(None));
        }
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

    pub(super) const fn waits(&self) -> &Waits {
        &self.waits
    }

    pub(super) fn raw_peer(&self) -> io::Result<SockAddr> {
        call(Call::Name, || SockRef::from(&self.fd).peer_addr())
    }

    pub(super) fn raw_local(&self) -> io::Result<SockAddr> {
        call(Call::Name, || SockRef::from(&self.fd).local_addr())
    }

    /// How many bytes came, and whether something other than an empty queue ended the receive.
    #[inline]
    fn receive(&self, room: &mut [MaybeUninit<u8>]) -> io::Result<(usize, bool)> {
        if room.is_empty() {
            return Err(no_room());
        }
        match self.receive_once(room) {
            Err(error) => self.receive_again(room, error),
            received => received,
        }
    }

    #[inline]
    fn receive_once(&self, room: &mut [MaybeUninit<u8>]) -> io::Result<(usize, bool)> {
        let fd = self.as_fd();
        let mut cut = !COUNTS_TELL;
        let n = transfer_once(Call::Receive, fd, room.len(), |len| {
            let room = &mut room[..len];
            if self.tcp {
                return direct::receive(fd, room);
            }
            let (n, dropped) = receive_bare(fd, room)?;
            cut |= dropped;
            Ok(n)
        })?;
        #[cfg(netpoll_faults)]
        {
            cut |= crate::fault::receive_was_cut();
        }
        Ok((n, cut))
    }

    /// What a failed receive means: it is made again after a signal.
    #[inline(never)]
    fn receive_again(
        &self,
        room: &mut [MaybeUninit<u8>],
        mut error: io::Error,
    ) -> io::Result<(usize, bool)> {
        while error.kind() == io::ErrorKind::Interrupted {
            match self.receive_once(room) {
                Err(e) => error = e,
                received => return received,
            }
        }
        Err(error)
    }

    /// Sends, and outlasts signals and a short lack of memory.
    #[inline]
    fn transmit(
        &self,
        len: usize,
        mut op: impl FnMut(usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        match transfer_once(Call::Send, self.as_fd(), len, &mut op) {
            Err(error) => self.transmit_again(len, op, error),
            sent => sent,
        }
    }

    #[inline(never)]
    fn transmit_again(
        &self,
        len: usize,
        mut op: impl FnMut(usize) -> io::Result<usize>,
        mut error: io::Error,
    ) -> io::Result<usize> {
        let mut tries = SHORTAGE_TRIES;
        loop {
            if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM)) {
                tries -= 1;
                if tries == 0 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                thread::yield_now();
            } else if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
            match transfer_once(Call::Send, self.as_fd(), len, &mut op) {
                Err(e) => error = e,
                sent => return sent,
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

impl Drop for Socket {
    fn drop(&mut self) {
        if self.tcp && self.waits.is_seen() {
            self.close_without_waiting();
        }
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

/// Has those told anew who wait for input on a TCP socket that has some: setting the low-water mark
/// wakes them, whatever it is set to. It is left at its default.
#[cfg(all(netpoll_faults, target_os = "linux"))]
pub(crate) fn announce_input(fd: BorrowedFd<'_>) -> io::Result<()> {
    let least: libc::c_int = 1;
    // SAFETY: `fd` is open and `least` is an integer of the size that is passed.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const least).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
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

#[cold]
#[inline(never)]
fn no_room() -> io::Error {
    with_context(
        "receive into a buffer without room",
        io::ErrorKind::InvalidInput.into(),
    )
}

/// Receives the bytes alone, without waiting. Whether the kernel had to drop what came along with them.
fn receive_bare(fd: BorrowedFd<'_>, room: &mut [MaybeUninit<u8>]) -> io::Result<(usize, bool)> {
    let mut piece = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: null pointers, zero lengths and no flags are a message header without anything in it.
    #[allow(unsafe_code)]
    let mut message = unsafe { MaybeUninit::<libc::msghdr>::zeroed().assume_init() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    // SAFETY: `fd` is open, and the header points to one entry, which points to the exclusively borrowed
    // room.
    #[allow(unsafe_code)]
    let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    Ok((n, message.msg_flags & libc::MSG_CTRUNC != 0))
}

/// Whether a count below the room means anything, see [`Received`].
const COUNTS_TELL: bool = cfg!(any(target_os = "linux", target_os = "android"));

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

/// The calls of nearly every request, made without the C library: its `recv` and `send` are points
/// at which `pthread_cancel(3)` may end the thread, which is prepared for and undone in each call, and which
/// nobody wants of a thread that runs Rust.
#[cfg(target_os = "linux")]
mod direct {
    use super::{BorrowedFd, MaybeUninit, io};
    use rustix::net::{RecvFlags, SendFlags};

    /// `recv(2)` that does not wait.
    #[inline]
    pub(super) fn receive(fd: BorrowedFd<'_>, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        match rustix::net::recv(fd, room, RecvFlags::DONTWAIT) {
            Ok((_, n)) => Ok(n),
            Err(error) => Err(error.into()),
        }
    }

    /// `recv(2)` that does not wait, of one byte that stays where it is.
    #[inline]
    pub(super) fn peek(fd: BorrowedFd<'_>) -> io::Result<usize> {
        let flags = RecvFlags::DONTWAIT.union(RecvFlags::PEEK);
        match rustix::net::recv(fd, &mut [MaybeUninit::uninit()], flags) {
            Ok((_, n)) => Ok(n),
            Err(error) => Err(error.into()),
        }
    }

    /// `send(2)` that does not wait and raises no signal.
    #[inline]
    pub(super) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);
        rustix::net::send(fd, bytes, flags).map_err(io::Error::from)
    }
}

/// The same through the C library.
#[cfg(not(target_os = "linux"))]
mod direct {
    use super::{BorrowedFd, MaybeUninit, SEND_FLAGS, SockRef, io};

    pub(super) fn receive(fd: BorrowedFd<'_>, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        SockRef::from(&fd).recv_with_flags(room, libc::MSG_DONTWAIT)
    }

    pub(super) fn peek(fd: BorrowedFd<'_>) -> io::Result<usize> {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        SockRef::from(&fd).recv_with_flags(&mut [MaybeUninit::uninit()], flags)
    }

    pub(super) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
        SockRef::from(&fd).send_with_flags(bytes, SEND_FLAGS)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, UdpSocket},
        os::unix::net::{UnixDatagram, UnixStream},
        process::Command,
    };

    use super::super::testing::{failure, far, is_prepared, tcp_pair, unix_pair, wait_readable};
    use super::*;

    #[test]
    fn sockets_go_between_threads() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<Socket>();
    }

    #[test]
    fn a_foreign_descriptor_becomes_non_blocking_and_close_on_exec() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let fd: OwnedFd = ours.into();
        assert!(!is_prepared(&fd));
        let socket = Socket::from_fd(fd).unwrap();
        assert!(is_prepared(&socket) && !socket.is_tcp());
        let (socket, _theirs) = tcp_pair();
        assert!(is_prepared(&socket) && socket.is_tcp());
    }

    #[test]
    fn only_stream_sockets_are_taken() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let datagram = UnixDatagram::unbound().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for fd in [OwnedFd::from(udp), datagram.into()] {
            let error = failure(Socket::from_fd(fd));
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        }
        let error = failure(Socket::from_fd(file.into()));
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
    }

    #[test]
    fn recv_into_appends_and_tells_empty_end_and_no_room_apart() {
        let (socket, mut theirs) = unix_pair();
        let mut buf = BytesMut::with_capacity(64);
        buf.extend_from_slice(b"kept ");
        assert_eq!(
            failure(socket.recv_into(&mut buf)).kind(),
            io::ErrorKind::WouldBlock
        );
        theirs.write_all(b"hello").unwrap();
        assert_eq!(socket.recv_into(&mut buf).unwrap().n, 5);
        assert_eq!(&buf[..], b"kept hello");
        drop(theirs);
        let mut full = BytesMut::new();
        for _ in 0..2 {
            let error = failure(socket.recv_into(&mut full));
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(socket.recv_into(&mut buf).unwrap().n, 0);
        assert_eq!(&buf[..], b"kept hello");
    }

    #[test]
    fn recv_into_takes_no_more_than_there_is_room_for() {
        let (socket, mut theirs) = unix_pair();
        theirs.write_all(&[7; 300]).unwrap();
        let mut buf = BytesMut::with_capacity(100);
        let room = buf.capacity();
        assert_eq!(socket.recv_into(&mut buf).unwrap().n, room);
        assert_eq!(buf.len(), buf.capacity());
        buf.reserve(300);
        let half = (300 - room) / 2;
        assert_eq!(socket.recv_at_most(&mut buf, half).unwrap().n, half);
        assert_eq!(buf.len(), room + half);
        let error = failure(socket.recv_at_most(&mut buf, 0));
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(socket.recv_into(&mut buf).unwrap().n, 300 - room - half);
        assert_eq!(&buf[..], [7; 300]);
    }

    #[test]
    fn recv_reads_into_a_slice() {
        let (socket, mut theirs) = tcp_pair();
        let mut buf = [0; 4];
        assert_eq!(
            failure(socket.recv(&mut buf)).kind(),
            io::ErrorKind::WouldBlock
        );
        assert_eq!(
            failure(socket.recv(&mut [])).kind(),
            io::ErrorKind::InvalidInput
        );
        theirs.write_all(b"abcdef").unwrap();
        wait_readable(&socket);
        assert_eq!(socket.recv(&mut buf).unwrap(), 4);
        assert_eq!(&buf, b"abcd");
        assert_eq!(socket.recv(&mut buf).unwrap(), 2);
        drop(theirs);
        wait_readable(&socket);
        assert_eq!(socket.recv(&mut buf).unwrap(), 0);
    }

    #[test]
    fn peek_tells_the_four_states_and_takes_nothing() {
        let (socket, mut theirs) = tcp_pair();
        assert_eq!(socket.peek_state(), Peek::Empty);
        theirs.write_all(b"x").unwrap();
        wait_readable(&socket);
        assert_eq!(socket.peek_state(), Peek::Data);
        assert_eq!(socket.peek_state(), Peek::Data);
        let mut buf = [0; 8];
        assert_eq!(socket.recv(&mut buf).unwrap(), 1);
        assert_eq!(socket.peek_state(), Peek::Empty);
        drop(theirs);
        wait_readable(&socket);
        assert_eq!(socket.peek_state(), Peek::Eof);

        let (socket, theirs) = tcp_pair();
        SockRef::from(&theirs)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(theirs);
        wait_readable(&socket);
        assert_eq!(
            socket.peek_state(),
            Peek::Err(io::ErrorKind::ConnectionReset)
        );
    }

    #[test]
    fn data_before_a_reset_is_still_received() {
        let (socket, mut theirs) = tcp_pair();
        theirs.write_all(b"last words").unwrap();
        wait_readable(&socket);
        SockRef::from(&theirs)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(theirs);
        let error = poller::wait_ready(socket.as_fd(), poller::Interest::HANGUP, far()).unwrap();
        assert!(!error.is_empty());
        let mut buf = BytesMut::with_capacity(64);
        assert_eq!(socket.recv_into(&mut buf).unwrap().n, 10);
        assert_eq!(
            failure(socket.recv_into(&mut buf)).kind(),
            io::ErrorKind::ConnectionReset
        );
    }

    #[test]
    fn five_thousand_slices_go_out_in_order() {
        let (socket, mut theirs) = unix_pair();
        let bytes: Vec<u8> = (0..5000_u32).map(|i| (i % 251) as u8).collect();
        let mut sent = 0;
        let mut calls = 0;
        let mut received = vec![0; bytes.len()];
        while sent < bytes.len() {
            let slices: Vec<_> = bytes[sent..].chunks(1).map(IoSlice::new).collect();
            let n = socket.send_vectored(&slices).unwrap();
            assert!((1..=MAX_SLICES).contains(&n), "{n}");
            theirs.read_exact(&mut received[sent..sent + n]).unwrap();
            sent += n;
            calls += 1;
        }
        assert_eq!(received, bytes);
        assert_eq!(calls, 5);
    }

    #[test]
    fn more_than_two_gigabytes_are_cut_and_no_error() {
        let (socket, theirs) = unix_pair();
        let block = vec![1; 4 << 20];
        let slices: Vec<_> = (0..MAX_SLICES).map(|_| IoSlice::new(&block)).collect();
        let total: u64 = slices.iter().map(|slice| slice.len() as u64).sum();
        assert!(total > MAX_BYTES as u64);
        assert!(socket.send_vectored(&slices).unwrap() > 0);
        drop(theirs);
    }

    #[test]
    fn a_prefix_ends_inside_a_slice() {
        let slices = [
            IoSlice::new(b"ab"),
            IoSlice::new(b""),
            IoSlice::new(b"cdef"),
        ];
        for len in 0..=6 {
            let cut = prefix(&slices, len);
            let joined: Vec<u8> = cut.iter().flat_map(|slice| slice.iter().copied()).collect();
            assert_eq!(joined, b"abcdef"[..len]);
        }
    }

    #[test]
    fn nothing_to_send_is_no_call() {
        let (socket, theirs) = unix_pair();
        drop(theirs);
        assert_eq!(socket.send(b"").unwrap(), 0);
        assert_eq!(socket.send_vectored(&[]).unwrap(), 0);
        assert_eq!(socket.send_vectored(&[IoSlice::new(b"")]).unwrap(), 0);
    }

    #[test]
    fn a_full_socket_would_block_and_is_no_shortage() {
        let (socket, _theirs) = unix_pair();
        let block = [0; 4096];
        let error = loop {
            if let Err(error) = socket.send(&block) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(!is_shortage(&error));
    }

    #[test]
    fn sending_to_a_closed_peer_is_an_error() {
        let (socket, theirs) = unix_pair();
        drop(theirs);
        for _ in 0..2 {
            let error = failure(socket.send(b"x"));
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            let error = failure(socket.send_vectored(&[IoSlice::new(b"x")]));
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
    }

    /// In a process of its own, as the disposition of signals is one for all threads.
    #[test]
    fn sending_to_a_closed_peer_raises_no_signal() {
        const CHILD: &str = "NETPOLL_TEST_SIGPIPE_CHILD";
        if std::env::var_os(CHILD).is_some() {
            // SAFETY: the default disposition runs no code of ours.
            #[allow(unsafe_code)]
            unsafe {
                libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            }
            let (socket, theirs) = unix_pair();
            drop(theirs);
            assert!(socket.send(b"x").is_err());
            assert!(socket.send_vectored(&[IoSlice::new(b"x")]).is_err());
            return;
        }
        let name = "net::stream::tests::sending_to_a_closed_peer_raises_no_signal";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--test-threads=1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{:?}: {text}", output.status);
        assert!(text.contains("1 passed"), "{text}");
    }

    #[test]
    fn shutdown_ends_one_direction() {
        let (socket, mut theirs) = tcp_pair();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        assert_eq!(theirs.read_to_end(&mut rest).unwrap(), 0);
        theirs.write_all(b"late").unwrap();
        wait_readable(&socket);
        assert_eq!(socket.recv(&mut [0; 8]).unwrap(), 4);
        assert_eq!(failure(socket.send(b"x")).kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn shutdown_of_what_is_gone_is_no_error() {
        let (socket, theirs) = tcp_pair();
        SockRef::from(&theirs)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(theirs);
        wait_readable(&socket);
        socket.shutdown(Shutdown::Write).unwrap();
        socket.shutdown(Shutdown::Both).unwrap();
    }

    #[test]
    fn linger_zero_resets_the_peer() {
        let (socket, mut theirs) = tcp_pair();
        socket.set_linger_zero().unwrap();
        drop(socket);
        let error = failure(theirs.read(&mut [0; 1]));
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn the_pending_error_is_taken_once() {
        let (socket, theirs) = tcp_pair();
        assert!(socket.take_error().unwrap().is_none());
        SockRef::from(&theirs)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(theirs);
        wait_readable(&socket);
        let error = socket.take_error().unwrap().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(socket.take_error().unwrap().is_none());
    }

    #[test]
    fn addresses_are_those_of_the_other_side() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let theirs = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, peer) = listener.accept().unwrap();
        let socket = Socket::from_fd(ours.into()).unwrap();
        assert_eq!(socket.peer_address().unwrap(), Address::Ip(peer));
        assert_eq!(
            socket.local_address().unwrap(),
            Address::Ip(theirs.peer_addr().unwrap())
        );
        let (socket, _theirs) = unix_pair();
        assert_eq!(socket.peer_address().unwrap(), Address::Unnamed);
        assert_eq!(socket.local_address().unwrap(), Address::Unnamed);
    }

    #[cfg(netpoll_faults)]
    mod faults {
        use super::*;
        use crate::fault::{Fault, Plan};

        #[test]
        fn signals_lose_nothing() {
            let (socket, mut theirs) = unix_pair();
            let plan = Plan::new(0)
                .every(Call::Send, 2, Fault::Errno(libc::EINTR))
                .every(Call::Receive, 2, Fault::Errno(libc::EINTR))
                .every(Call::Peek, 2, Fault::Errno(libc::EINTR))
                .this_thread()
                .install();
            for round in 0..50_u8 {
                assert_eq!(socket.send(&[round, 1]).unwrap(), 2);
                let mut got = [0; 2];
                theirs.read_exact(&mut got).unwrap();
                assert_eq!(got, [round, 1]);
                theirs.write_all(&got).unwrap();
                assert_eq!(socket.peek_state(), Peek::Data);
                assert_eq!(socket.recv(&mut got).unwrap(), 2);
                assert_eq!(got, [round, 1]);
            }
            assert!(plan.hits(Call::Send) >= 49 && plan.hits(Call::Receive) >= 49);
        }

        #[test]
        fn short_counts_keep_the_stream_exact() {
            for cap in [1, 7, 4097] {
                let (socket, mut theirs) = unix_pair();
                let _plan = Plan::new(0)
                    .every(Call::Send, 1, Fault::Short(cap))
                    .every(Call::Receive, 1, Fault::Short(cap))
                    .this_thread()
                    .install();
                let bytes: Vec<u8> = (0..20_000_u32).map(|i| (i % 253) as u8).collect();
                let mut sent = 0;
                while sent < bytes.len() {
                    let slices: Vec<_> = bytes[sent..].chunks(13).map(IoSlice::new).collect();
                    let n = socket.send_vectored(&slices).unwrap();
                    assert!((1..=cap).contains(&n));
                    let mut got = vec![0; n];
                    theirs.read_exact(&mut got).unwrap();
                    assert_eq!(got, bytes[sent..sent + n]);
                    theirs.write_all(&got).unwrap();
                    let mut back = BytesMut::with_capacity(n + 1);
                    while back.len() < n {
                        let got = socket.recv_into(&mut back).unwrap();
                        assert!((1..=cap).contains(&got.n));
                        assert!(got.more, "a count that was cut short tells nothing");
                    }
                    assert_eq!(&back[..], &bytes[sent..sent + n]);
                    sent += n;
                }
            }
        }

        #[test]
        fn a_short_lack_of_memory_is_outlasted_and_a_long_one_reported() {
            for errno in [libc::ENOBUFS, libc::ENOMEM] {
                let (socket, _theirs) = unix_pair();
                let plan = Plan::new(0)
                    .from(Call::Send, 1, 3, Fault::Errno(errno))
                    .this_thread()
                    .install();
                assert_eq!(socket.send(b"x").unwrap(), 1);
                assert_eq!(plan.hits(Call::Send), 3);
                drop(plan);
                let plan = Plan::new(0)
                    .every(Call::Send, 1, Fault::Errno(errno))
                    .this_thread()
                    .install();
                let error = failure(socket.send_vectored(&[IoSlice::new(b"x")]));
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                assert!(is_shortage(&error));
                assert_eq!(plan.calls(Call::Send), u64::from(SHORTAGE_TRIES));
            }
        }

        #[test]
        fn other_errors_come_through() {
            let (socket, _theirs) = unix_pair();
            let _plan = Plan::new(0)
                .every(Call::Send, 1, Fault::Errno(libc::ECONNRESET))
                .every(Call::Receive, 1, Fault::Errno(libc::ETIMEDOUT))
                .every(Call::Peek, 1, Fault::Errno(libc::EHOSTUNREACH))
                .every(Call::Shutdown, 1, Fault::Errno(libc::ENOTCONN))
                .this_thread()
                .install();
            let error = failure(socket.send(b"x"));
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            let error = failure(socket.recv(&mut [0]));
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(
                socket.peek_state(),
                Peek::Err(io::ErrorKind::HostUnreachable)
            );
            socket.shutdown(Shutdown::Both).unwrap();
        }

        #[test]
        fn a_descriptor_that_cannot_be_prepared_is_an_error() {
            for call in [Call::GetOption, Call::Name, Call::SetOption] {
                let (ours, _theirs) = UnixStream::pair().unwrap();
                let _plan = Plan::new(0)
                    .every(call, 1, Fault::Errno(libc::EINVAL))
                    .this_thread()
                    .install();
                assert_eq!(
                    failure(Socket::from_fd(ours.into())).raw_os_error(),
                    Some(libc::EINVAL),
                    "{call:?}"
                );
            }
        }
    }
}

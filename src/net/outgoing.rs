//! What became of output that the kernel has taken.
//!
//! A kernel takes megabytes for a peer that reads slowly, and reports room late: Linux when a third of
//! the send buffer is free. Until then nothing else shows whether the peer still reads.
//!
//! Invariants of the unsafe blocks: the descriptor is borrowed and so open for the length of the call; the
//! request of `ioctl(2)` writes one `c_int` into the integer that is passed, and `getsockopt(2)` no more
//! bytes than it is told of into a structure of plain numbers that was zeroed before.

use super::stream::Socket;
#[cfg(target_os = "linux")]
use super::syscall::{Call, call};
use std::time::Duration;
#[cfg(target_os = "linux")]
use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

impl Socket {
    /// Bytes the kernel took that the peer has not acknowledged (TCP, a FIN counts as one) or not read
    /// (unix, where the kernel's own overhead counts and a piece counts until all of it was read). `None`
    /// where the system does not tell.
    ///
    /// Zero means that no reset of ours destroys anything on its way. A change of this figure or of what
    /// was handed to the kernel is progress. A socket that is reset already may keep any figure.
    #[cfg(target_os = "linux")]
    pub(crate) fn unacknowledged(&self) -> Option<usize> {
        let mut unsent: libc::c_int = 0;
        let asked = call(Call::GetOption, || {
            // SAFETY: the descriptor is open and `unsent` is the integer that this request writes.
            #[allow(unsafe_code)]
            let result =
                unsafe { libc::ioctl(self.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut unsent) };
            if result < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
        asked.ok().and_then(|()| usize::try_from(unsent).ok())
    }

    /// How long ago the peer acknowledged something the last time, a probe of a full window included.
    /// `None` for a unix socket, and where the system does not tell.
    #[cfg(target_os = "linux")]
    pub(crate) fn since_acknowledged(&self) -> Option<Duration> {
        if !self.is_tcp() {
            return None;
        }
        // SAFETY: all fields are numbers, for which zero is a value.
        #[allow(unsafe_code)]
        let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
        let mut size = size_of::<libc::tcp_info>() as libc::socklen_t;
        let asked = call(Call::GetOption, || {
            // SAFETY: the descriptor is open, and `size` is that of `info`.
            #[allow(unsafe_code)]
            let result = unsafe {
                libc::getsockopt(
                    self.as_fd().as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_INFO,
                    (&raw mut info).cast(),
                    &raw mut size,
                )
            };
            if result < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
        asked.ok()?;
        Some(Duration::from_millis(u64::from(info.tcpi_last_ack_recv)))
    }

    /// As on Linux, where no system call is known that tells.
    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self)]
    pub(crate) const fn since_acknowledged(&self) -> Option<Duration> {
        None
    }

    /// As on Linux, where no system call is known that tells.
    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self)]
    pub(crate) const fn unacknowledged(&self) -> Option<usize> {
        None
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::super::testing::{tcp_pair, unix_pair, wait_readable};
    use super::*;
    use socket2::SockRef;
    use std::{io::Read, thread};

    /// Hands over what fits; the peer reads nothing.
    fn stuff(socket: &Socket) -> usize {
        let mut sent = 0;
        loop {
            match socket.send(&[7; 10_000]) {
                Ok(n) => sent += n,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return sent;
                }
            }
        }
    }

    fn falls_as_the_peer_reads(socket: &Socket, peer: &mut (impl Read + AsFd)) {
        assert_eq!(socket.unacknowledged(), Some(0));
        let mut left = stuff(socket);
        let full = socket.unacknowledged().unwrap();
        assert!(full > 0);
        let mut piece = vec![0; 200_000];
        let mut moved = false;
        while left > 0 {
            left -= peer.read(&mut piece).unwrap();
            moved |= socket.unacknowledged().is_some_and(|now| now < full);
        }
        assert!(moved);
        while socket.unacknowledged() != Some(0) {
            thread::yield_now();
        }
    }

    #[test]
    fn a_tcp_peer_acknowledges() {
        let (socket, mut peer) = tcp_pair();
        SockRef::from(&peer).set_recv_buffer_size(16 << 10).unwrap();
        falls_as_the_peer_reads(&socket, &mut peer);
        assert!(socket.since_acknowledged().unwrap() < Duration::from_secs(60));
        // An end counts until the peer's system has it.
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        while socket.unacknowledged() != Some(0) {
            thread::yield_now();
        }
    }

    #[test]
    fn a_unix_peer_reads() {
        let (socket, mut peer) = unix_pair();
        falls_as_the_peer_reads(&socket, &mut peer);
        stuff(&socket);
        drop(peer);
        wait_readable(&socket);
        assert_eq!(socket.unacknowledged(), Some(0));
    }
}

//! Moving bytes from socket to socket inside the kernel (Linux, `splice(2)` through a `pipe(7)`).
//!
//! Invariants the unsafe blocks rest on: every descriptor passed to the system comes from a
//! `BorrowedFd`, so it is open for the length of the call; `pipe2` fills exactly two `c_int`s;
//! `splice` is given null offsets, which sockets and pipes require, and touches no memory of
//! ours.

#![allow(unsafe_code)]

use super::{
    stream::Socket,
    syscall::{Call, transfer},
};
use std::{
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

/// What a pipe is asked to hold; the system may grant less.
const CAPACITY: usize = 1 << 20;

/// A kernel buffer between two sockets.
#[derive(Debug)]
pub(crate) struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
    capacity: usize,
    filled: usize,
}

impl Pipe {
    /// An empty pipe, non-blocking and close-on-exec.
    pub(crate) fn new() -> io::Result<Self> {
        let mut ends = [-1; 2];
        // SAFETY: `ends` is room for the two descriptors `pipe2` writes.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_NONBLOCK | libc::O_CLOEXEC) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `pipe2` succeeded, so this is an open descriptor that nobody else owns.
        let reader = unsafe { OwnedFd::from_raw_fd(ends[0]) };
        // SAFETY: as above, for the other end.
        let writer = unsafe { OwnedFd::from_raw_fd(ends[1]) };
        // SAFETY: a plain call on an open descriptor that takes an integer.
        let granted = unsafe {
            libc::fcntl(
                writer.as_raw_fd(),
                libc::F_SETPIPE_SZ,
                CAPACITY as libc::c_int,
            )
        };
        // Refused above a per-user limit: the default of 64 KiB does too.
        let capacity = usize::try_from(granted).unwrap_or(64 << 10);
        Ok(Self {
            reader,
            writer,
            capacity,
            filled: 0,
        })
    }

    /// Bytes in the pipe.
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    /// Moves what `from` has received into the empty pipe, `most` bytes at most. `Ok(0)` is the end of
    /// input.
    pub(crate) fn fill(&mut self, from: &Socket, most: usize) -> io::Result<usize> {
        let room = (self.capacity - self.filled).min(most);
        let n = transfer(Call::Receive, from.as_fd(), room, |len| {
            splice(from.as_fd(), self.writer.as_fd(), len)
        })?;
        self.filled += n;
        Ok(n)
    }

    /// Moves what the pipe holds into `to`, as much as it takes.
    pub(crate) fn drain(&mut self, to: &Socket) -> io::Result<usize> {
        let n = transfer(Call::Send, to.as_fd(), self.filled, |len| {
            splice(self.reader.as_fd(), to.as_fd(), len)
        })?;
        self.filled -= n;
        Ok(n)
    }

    /// Reads what the pipe holds into memory.
    pub(crate) fn into_bytes(self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.filled];
        // Needs no descriptor of its own.
        std::fs::File::from(self.reader).read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Whether a broken connection is an error here and not a signal: `splice` has no
/// `MSG_NOSIGNAL`, so it is only used where the process ignores `SIGPIPE`, as Rust programs do.
pub(crate) fn is_safe() -> bool {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a null new action makes this a query, and `current` is room for the answer.
    let asked = unsafe { libc::sigaction(libc::SIGPIPE, ptr::null(), current.as_mut_ptr()) };
    if asked != 0 {
        return false;
    }
    // SAFETY: the call succeeded, so the action was written.
    let current = unsafe { current.assume_init() };
    current.sa_sigaction == libc::SIG_IGN
}

fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    // SAFETY: both descriptors are borrowed for the call and the offsets are null.
    let n = unsafe {
        libc::splice(
            from.as_raw_fd(),
            ptr::null_mut(),
            to.as_raw_fd(),
            ptr::null_mut(),
            len,
            flags,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

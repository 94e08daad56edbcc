//! kqueue (macOS, the BSDs): `mio` registers read and write filters with `EV_CLEAR`, which is the
//! same contract as an edge-triggered epoll.
//!
//! Differences that are smoothed out here: the two filters of a descriptor report separately, so
//! one operator may get two events per wait; `EV_EOF` of either filter is the hang-up; there is no
//! filter for a hang-up alone, so that interest falls back to the read filter.

use super::Flags;
use crate::Readiness;

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) use registration::{add, modify, remove};

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod registration {
    use std::{
        io,
        os::fd::{AsRawFd, BorrowedFd},
    };

    use mio::{Token, event::Source, unix::SourceFd};

    use crate::Interest;

    pub(crate) fn add(
        registry: &mio::Registry,
        fd: BorrowedFd<'_>,
        token: usize,
        interest: Interest,
    ) -> io::Result<()> {
        SourceFd(&fd.as_raw_fd()).register(registry, Token(token), filters(interest))
    }

    pub(crate) fn modify(
        registry: &mio::Registry,
        fd: BorrowedFd<'_>,
        token: usize,
        interest: Interest,
    ) -> io::Result<()> {
        SourceFd(&fd.as_raw_fd()).reregister(registry, Token(token), filters(interest))
    }

    pub(crate) fn remove(registry: &mio::Registry, fd: BorrowedFd<'_>) -> io::Result<()> {
        SourceFd(&fd.as_raw_fd()).deregister(registry)
    }

    fn filters(interest: Interest) -> mio::Interest {
        let read = interest.contains(Interest::READ) || interest.contains(Interest::HANGUP);
        match (read, interest.contains(Interest::WRITE)) {
            (true, true) => mio::Interest::READABLE | mio::Interest::WRITABLE,
            (false, true) => mio::Interest::WRITABLE,
            _ => mio::Interest::READABLE,
        }
    }
}

/// What an event says: the filter is the direction, `EV_EOF` its end, `fflags` an error.
pub(super) fn readiness(event: &impl Flags) -> Readiness {
    let mut readiness = Readiness::EMPTY;
    for (set, flag) in [
        (event.readable(), Readiness::READABLE),
        (event.writable(), Readiness::WRITABLE),
        (event.read_closed(), Readiness::READ_CLOSED),
        (event.write_closed(), Readiness::WRITE_CLOSED),
        (event.error(), Readiness::ERROR),
    ] {
        if set {
            readiness |= flag;
        }
    }
    readiness
}

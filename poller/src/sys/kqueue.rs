//! kqueue (macOS, the BSDs): `mio` registers read and write filters with `EV_CLEAR`, which is the
//! same contract as an edge-triggered epoll.
//!
//! Differences that are smoothed out here: the two filters of a descriptor report separately, so
//! one operator may get two events per wait; `EV_EOF` of either filter is the hang-up; there is no
//! filter for a hang-up alone, so that interest falls back to the read filter.
//!
//! All of this is said in `mio`'s terms, so it also compiles, and is tested, where there is no
//! kqueue.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use mio::{Token, event::Source, unix::SourceFd};

use super::flags::{Flags, collect};
use crate::{Interest, Readiness};

pub(super) fn add(
    registry: &mio::Registry,
    fd: BorrowedFd<'_>,
    token: usize,
    interest: Interest,
) -> io::Result<()> {
    SourceFd(&fd.as_raw_fd()).register(registry, Token(token), filters(interest))
}

pub(super) fn modify(
    registry: &mio::Registry,
    fd: BorrowedFd<'_>,
    token: usize,
    interest: Interest,
) -> io::Result<()> {
    SourceFd(&fd.as_raw_fd()).reregister(registry, Token(token), filters(interest))
}

pub(super) fn remove(registry: &mio::Registry, fd: BorrowedFd<'_>) -> io::Result<()> {
    SourceFd(&fd.as_raw_fd()).deregister(registry)
}

/// What an event says: the filter is the direction, `EV_EOF` its end, `fflags` an error.
pub(super) fn readiness(event: &impl Flags) -> Readiness {
    collect(event)
}

fn filters(interest: Interest) -> mio::Interest {
    let read = interest.contains(Interest::READ) || interest.contains(Interest::HANGUP);
    match (read, interest.contains(Interest::WRITE)) {
        (true, true) => mio::Interest::READABLE | mio::Interest::WRITABLE,
        (false, true) => mio::Interest::WRITABLE,
        _ => mio::Interest::READABLE,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::{
        io::Write,
        os::{fd::AsFd, unix::net::UnixStream},
        time::Duration,
    };

    /// A `struct kevent` as the kernel fills it in, read the way `mio` reads it.
    #[derive(Clone, Copy)]
    struct Kevent {
        filter: Filter,
        eof: bool,
        fflags: u32,
    }

    #[derive(Clone, Copy, PartialEq)]
    enum Filter {
        Read,
        Write,
    }

    impl Flags for Kevent {
        fn readable(&self) -> bool {
            self.filter == Filter::Read
        }
        fn writable(&self) -> bool {
            self.filter == Filter::Write
        }
        fn read_closed(&self) -> bool {
            self.filter == Filter::Read && self.eof
        }
        fn write_closed(&self) -> bool {
            self.filter == Filter::Write && self.eof
        }
        fn error(&self) -> bool {
            self.eof && self.fflags != 0
        }
        fn priority(&self) -> bool {
            false
        }
    }

    const DATA: Kevent = Kevent {
        filter: Filter::Read,
        eof: false,
        fflags: 0,
    };
    const ROOM: Kevent = Kevent {
        filter: Filter::Write,
        eof: false,
        fflags: 0,
    };
    const FIN: Kevent = Kevent {
        filter: Filter::Read,
        eof: true,
        fflags: 0,
    };
    const BROKEN: Kevent = Kevent {
        filter: Filter::Write,
        eof: true,
        fflags: 0,
    };
    const RESET_READ: Kevent = Kevent {
        filter: Filter::Read,
        eof: true,
        fflags: 54,
    };
    const RESET_WRITE: Kevent = Kevent {
        filter: Filter::Write,
        eof: true,
        fflags: 54,
    };

    /// What a socket's life looks like from a kqueue: all that happened by then, together.
    #[test]
    fn scripted_sockets_say_the_same_as_on_epoll() {
        let cases: [(&str, &[Kevent], Readiness); 6] = [
            ("idle, room to write", &[ROOM], Readiness::WRITABLE),
            (
                "data",
                &[DATA, ROOM],
                Readiness::READABLE | Readiness::WRITABLE,
            ),
            (
                "half-closed: still writable, not a hang-up of both",
                &[FIN, ROOM],
                Readiness::READABLE | Readiness::READ_CLOSED | Readiness::WRITABLE,
            ),
            (
                "closed by both",
                &[FIN, BROKEN],
                Readiness::READABLE
                    | Readiness::READ_CLOSED
                    | Readiness::WRITABLE
                    | Readiness::WRITE_CLOSED,
            ),
            (
                "reset, or a refused connect",
                &[RESET_READ, RESET_WRITE],
                Readiness::READABLE
                    | Readiness::READ_CLOSED
                    | Readiness::WRITABLE
                    | Readiness::WRITE_CLOSED
                    | Readiness::ERROR,
            ),
            (
                "the reading end of a pipe is gone",
                &[BROKEN],
                Readiness::WRITABLE | Readiness::WRITE_CLOSED,
            ),
        ];
        for (name, script, expected) in cases {
            let all = script
                .iter()
                .fold(Readiness::EMPTY, |all, event| all | readiness(event));
            assert_eq!(all, expected, "{name}");
        }
    }

    #[test]
    fn hangup_alone_falls_back_to_the_read_filter() {
        assert_eq!(filters(Interest::HANGUP), mio::Interest::READABLE);
        assert_eq!(filters(Interest::WRITE), mio::Interest::WRITABLE);
        let both = mio::Interest::READABLE | mio::Interest::WRITABLE;
        assert_eq!(filters(Interest::HANGUP | Interest::WRITE), both);
        assert_eq!(filters(Interest::READ | Interest::WRITE), both);
    }

    /// The registering half against whatever selector this platform has.
    #[test]
    fn registrations_are_added_changed_and_removed() {
        let mut poll = mio::Poll::new().unwrap();
        let mut events = mio::Events::with_capacity(8);
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let mut seen = |poll: &mut mio::Poll| {
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            events
                .iter()
                .map(|event| (event.token().0, readiness(event)))
                .fold((0, Readiness::EMPTY), |(_, all), (token, one)| {
                    (token, all | one)
                })
        };
        add(poll.registry(), ours.as_fd(), 7, Interest::READ).unwrap();
        assert_eq!(seen(&mut poll), (0, Readiness::EMPTY));
        peer.write_all(b"x").unwrap();
        assert_eq!(seen(&mut poll), (7, Readiness::READABLE));
        assert_eq!(
            seen(&mut poll),
            (0, Readiness::EMPTY),
            "an edge, not a level"
        );
        modify(
            poll.registry(),
            ours.as_fd(),
            8,
            Interest::READ | Interest::WRITE,
        )
        .unwrap();
        assert_eq!(
            seen(&mut poll),
            (8, Readiness::READABLE | Readiness::WRITABLE)
        );
        drop(peer);
        assert!(seen(&mut poll).1.contains(Readiness::READ_CLOSED));
        remove(poll.registry(), ours.as_fd()).unwrap();
        assert_eq!(seen(&mut poll), (0, Readiness::EMPTY));
    }
}

//! A thin epoll: the reference server and the load generator stand on nothing else.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::{check, raw};

/// Interest in reading, level-triggered.
pub(crate) const READ: u32 = (libc::EPOLLIN | libc::EPOLLRDHUP) as u32;
/// Interest in writing alone, level-triggered: the peer is not heard until it has read.
pub(crate) const WRITE: u32 = libc::EPOLLOUT as u32;
/// Interest in both, edge-triggered, so that no further call is needed for a registration.
pub(crate) const READ_WRITE_EDGE: u32 =
    (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET) as u32;

/// One readiness report.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Readiness {
    /// The token the descriptor was registered with.
    pub(crate) token: u64,
    /// There may be something to read, an end of stream or an error.
    pub(crate) readable: bool,
    /// There may be room to write, or an error.
    pub(crate) writable: bool,
    /// The peer has ended its side, or the connection failed.
    pub(crate) ended: bool,
}

/// Room for the reports of one wait.
pub(crate) struct Events {
    entries: Vec<libc::epoll_event>,
    filled: usize,
}

impl Events {
    /// Room for `capacity` reports.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self {
            entries: vec![libc::epoll_event { events: 0, u64: 0 }; capacity],
            filled: 0,
        }
    }

    /// The reports of the last wait.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Readiness> {
        const FAILED: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        self.entries[..self.filled].iter().map(|entry| {
            let (events, token) = (entry.events, entry.u64);
            Readiness {
                token,
                readable: events & (READ | FAILED) != 0,
                writable: events & (WRITE | FAILED) != 0,
                ended: events & (libc::EPOLLRDHUP as u32 | FAILED) != 0,
            }
        })
    }
}

/// An epoll instance.
pub(crate) struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    /// Opens an instance.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: the call takes an integer.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the kernel has just opened `fd` for us; nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd })
    }

    /// Registers `source` under `token`.
    pub(crate) fn add(&self, source: &impl AsFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, source, token, interest)
    }

    /// Changes the interest in `source`.
    pub(crate) fn modify(&self, source: &impl AsFd, token: u64, interest: u32) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, source, token, interest)
    }

    fn control(&self, op: i32, source: &impl AsFd, token: u64, interest: u32) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: interest,
            u64: token,
        };
        let (epoll, source) = (raw(&self.fd), raw(source));
        // SAFETY: both descriptors are open for the length of the call; `event` is initialised.
        check(unsafe { libc::epoll_ctl(epoll, op, source, &raw mut event) }).map(drop)
    }

    /// Waits for reports, at most `timeout` (rounded up to a millisecond) or without limit.
    pub(crate) fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
        let millis = timeout.map_or(-1, |limit| limit.as_micros().div_ceil(1000) as i32);
        let room = events.entries.as_mut_ptr();
        let capacity = events.entries.len() as i32;
        events.filled = 0;
        // SAFETY: `room` points to `capacity` entries that the kernel may write to.
        let result = check(unsafe { libc::epoll_wait(raw(&self.fd), room, capacity, millis) });
        match result {
            Ok(filled) => events.filled = filled as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn reports_what_is_readable() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let epoll = Epoll::new().unwrap();
        epoll.add(&b, 7, READ).unwrap();
        let mut events = Events::with_capacity(4);
        epoll.wait(&mut events, Some(Duration::ZERO)).unwrap();
        assert_eq!(events.iter().count(), 0);
        a.write_all(b"x").unwrap();
        epoll.wait(&mut events, None).unwrap();
        let report = events.iter().next().unwrap();
        assert!(report.token == 7 && report.readable && !report.writable);
        epoll.modify(&b, 8, WRITE).unwrap();
        epoll.wait(&mut events, None).unwrap();
        let report = events.iter().next().unwrap();
        assert!(report.token == 8 && report.writable && !report.readable);
    }
}

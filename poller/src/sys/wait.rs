//! Waiting for some descriptors on the caller's own thread.
//!
//! Invariants for the `unsafe` block: the descriptors are borrowed for the call; the entries are
//! an array of the caller's whose length is the count.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Instant,
};

use crate::{Interest, Readiness};

/// Waits until `fd` is ready for `interest`, is closed or broken by its peer, or `deadline` passed.
///
/// Blocks the calling thread (`None`: for ever) and needs no poller. Signals do not end the wait.
/// It does not call [`before_blocking`](crate::before_blocking); callers inside
/// [`Operator::run`](crate::Operator::run) should do so first. The deadline is kept to the
/// millisecond, never early.
///
/// Returns what is ready; [`Readiness::EMPTY`] means that the deadline passed.
///
/// # Errors
///
/// What `poll(2)` reports, `ENOMEM` or `EINVAL`.
///
/// # Examples
///
/// ```
/// use std::{io::Write, os::fd::AsFd, os::unix::net::UnixStream, time::{Duration, Instant}};
/// use poller::{Interest, Readiness, wait_ready};
///
/// let (mut a, b) = UnixStream::pair()?;
/// let soon = Instant::now() + Duration::from_millis(5);
/// assert!(wait_ready(b.as_fd(), Interest::READ, Some(soon))?.is_empty());
/// a.write_all(b"x")?;
/// assert!(wait_ready(b.as_fd(), Interest::READ, None)?.contains(Readiness::READABLE));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn wait_ready(
    fd: BorrowedFd<'_>,
    interest: Interest,
    deadline: Option<Instant>,
) -> io::Result<Readiness> {
    poll(&mut [entry(fd, interest)], deadline).map(|[ready]| ready)
}

/// As [`wait_ready`], and until `other` is readable: a way for other threads to end the wait.
///
/// Returns what `fd` is ready for and whether `other` was readable; nothing of both when the
/// deadline passed.
///
/// # Errors
///
/// As [`wait_ready`].
pub fn wait_ready_or(
    fd: BorrowedFd<'_>,
    interest: Interest,
    other: BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> io::Result<(Readiness, bool)> {
    let mut both = [entry(fd, interest), entry(other, Interest::READ)];
    poll(&mut both, deadline).map(|[ready, other]| (ready, !other.is_empty()))
}

/// As [`wait_ready`] for any number of descriptors: waits until one of them is ready.
///
/// Returns what each is ready for, in the order of `fds`; nothing of all when the deadline passed.
///
/// # Errors
///
/// As [`wait_ready`].
pub fn wait_any(
    fds: &[BorrowedFd<'_>],
    interest: Interest,
    deadline: Option<Instant>,
) -> io::Result<Vec<Readiness>> {
    let mut entries: Vec<_> = fds.iter().map(|fd| entry(*fd, interest)).collect();
    poll_all(&mut entries, deadline)?;
    let ready = entries.iter().map(|entry| readiness(entry.revents));
    Ok(ready.collect())
}

/// As [`wait_any`], and until `other` is readable: a way for other threads to end the wait.
///
/// Returns what each is ready for, in the order of `fds`, and whether `other` was readable.
///
/// # Errors
///
/// As [`wait_ready`].
pub fn wait_any_or(
    fds: &[BorrowedFd<'_>],
    interest: Interest,
    other: BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> io::Result<(Vec<Readiness>, bool)> {
    let mut entries: Vec<_> = fds.iter().map(|fd| entry(*fd, interest)).collect();
    entries.push(entry(other, Interest::READ));
    poll_all(&mut entries, deadline)?;
    let mut ready: Vec<_> = entries
        .iter()
        .map(|entry| readiness(entry.revents))
        .collect();
    let rung = ready.pop().is_some_and(|ready| !ready.is_empty());
    Ok((ready, rung))
}

fn entry(fd: BorrowedFd<'_>, interest: Interest) -> libc::pollfd {
    libc::pollfd {
        fd: fd.as_raw_fd(),
        events: mask(interest),
        revents: 0,
    }
}

fn poll<const N: usize>(
    entries: &mut [libc::pollfd; N],
    deadline: Option<Instant>,
) -> io::Result<[Readiness; N]> {
    poll_all(entries, deadline)?;
    Ok(entries.map(|entry| readiness(entry.revents)))
}

fn poll_all(entries: &mut [libc::pollfd], deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(-1, |left| {
            // Rounded up, so that the wait is never short by a fraction.
            libc::c_int::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX)
        });
        let count = entries.len() as libc::nfds_t;
        // SAFETY: `entries` is a live array of as many entries as the count says.
        let result = unsafe { libc::poll(entries.as_mut_ptr(), count, timeout) };
        match result {
            1.. => return Ok(()),
            // A time-out beyond what one call can take goes round again.
            0 if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
            // Nothing is ready, so the entries say so.
            0 => return Ok(()),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
const READ_HANGUP: libc::c_short = libc::POLLRDHUP;
/// Elsewhere the end of a stream shows as readable.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const READ_HANGUP: libc::c_short = libc::POLLIN;

fn mask(interest: Interest) -> libc::c_short {
    let mut mask = 0;
    if interest.contains(Interest::READ) {
        mask |= libc::POLLIN;
    }
    if interest.contains(Interest::WRITE) {
        mask |= libc::POLLOUT;
    }
    if interest.contains(Interest::HANGUP) {
        mask |= READ_HANGUP;
    }
    mask
}

fn readiness(events: libc::c_short) -> Readiness {
    let mut readiness = Readiness::EMPTY;
    if events & libc::POLLIN != 0 {
        readiness |= Readiness::READABLE;
    }
    if events & libc::POLLOUT != 0 {
        readiness |= Readiness::WRITABLE;
    }
    if READ_HANGUP != libc::POLLIN && events & READ_HANGUP != 0 {
        readiness |= Readiness::READ_CLOSED;
    }
    if events & libc::POLLHUP != 0 {
        readiness |= Readiness::READ_CLOSED | Readiness::WRITE_CLOSED;
    }
    if events & (libc::POLLERR | libc::POLLNVAL) != 0 {
        readiness |= Readiness::ERROR;
    }
    readiness
}

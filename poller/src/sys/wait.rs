//! Waiting for some descriptors on the caller's own thread.

use std::{io, os::fd::BorrowedFd, time::Instant};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
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
    let ready = entries.iter().map(|entry| readiness(entry.revents()));
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
        .map(|entry| readiness(entry.revents()))
        .collect();
    let rung = ready.pop().is_some_and(|ready| !ready.is_empty());
    Ok((ready, rung))
}

fn entry(fd: BorrowedFd<'_>, interest: Interest) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, mask(interest))
}

fn poll<const N: usize>(
    entries: &mut [PollFd<'_>; N],
    deadline: Option<Instant>,
) -> io::Result<[Readiness; N]> {
    poll_all(entries, deadline)?;
    Ok(entries.each_ref().map(|entry| readiness(entry.revents())))
}

fn poll_all(entries: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up to what every system can take, so that the wait is never short by a fraction.
            let millis = left.as_nanos().div_ceil(1_000_000).min(LONGEST_MILLIS) as i64;
            Timespec {
                tv_sec: millis / 1000,
                tv_nsec: (millis % 1000) * 1_000_000,
            }
        });
        match rustix::event::poll(entries, timeout.as_ref()) {
            Ok(1..) => return Ok(()),
            // A time-out beyond what one call can take goes round again.
            Ok(0) if deadline.is_none_or(|deadline| Instant::now() < deadline) => {}
            // Nothing is ready, so the entries say so.
            Ok(0) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// `poll(2)` takes its time-out as an `int`.
const LONGEST_MILLIS: u128 = i32::MAX as u128;

#[cfg(any(target_os = "linux", target_os = "android"))]
const READ_HANGUP: PollFlags = PollFlags::RDHUP;
/// Elsewhere the end of a stream shows as readable.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const READ_HANGUP: PollFlags = PollFlags::IN;

fn mask(interest: Interest) -> PollFlags {
    let mut mask = PollFlags::empty();
    if interest.contains(Interest::READ) {
        mask |= PollFlags::IN;
    }
    if interest.contains(Interest::WRITE) {
        mask |= PollFlags::OUT;
    }
    if interest.contains(Interest::HANGUP) {
        mask |= READ_HANGUP;
    }
    mask
}

fn readiness(events: PollFlags) -> Readiness {
    let mut readiness = Readiness::EMPTY;
    if events.contains(PollFlags::IN) {
        readiness |= Readiness::READABLE;
    }
    if events.contains(PollFlags::OUT) {
        readiness |= Readiness::WRITABLE;
    }
    if READ_HANGUP != PollFlags::IN && events.contains(READ_HANGUP) {
        readiness |= Readiness::READ_CLOSED;
    }
    if events.contains(PollFlags::HUP) {
        readiness |= Readiness::READ_CLOSED | Readiness::WRITE_CLOSED;
    }
    if events.intersects(PollFlags::ERR | PollFlags::NVAL) {
        readiness |= Readiness::ERROR;
    }
    readiness
}

//! Linux: `epoll_ctl` with exactly the flags wanted, hang-up alone included, which `mio` cannot
//! register.
//!
//! Invariants for the `unsafe` block: the epoll descriptor belongs to the `mio::Registry` that is
//! borrowed for the call; the watched descriptor is borrowed likewise; the event is a local
//! variable that the kernel only reads.

#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use super::flags::{Flags, collect};
use crate::{Interest, Readiness};

pub(super) fn add(
    registry: &mio::Registry,
    fd: BorrowedFd<'_>,
    token: usize,
    interest: Interest,
) -> io::Result<()> {
    control(registry, libc::EPOLL_CTL_ADD, fd, token, mask(interest))
}

pub(super) fn modify(
    registry: &mio::Registry,
    fd: BorrowedFd<'_>,
    token: usize,
    interest: Interest,
) -> io::Result<()> {
    control(registry, libc::EPOLL_CTL_MOD, fd, token, mask(interest))
}

pub(super) fn remove(registry: &mio::Registry, fd: BorrowedFd<'_>) -> io::Result<()> {
    control(registry, libc::EPOLL_CTL_DEL, fd, 0, 0)
}

/// What an event says. `mio` shows `EPOLLRDHUP` only next to `EPOLLIN`. An event that shows nothing at all is
/// a bare `EPOLLRDHUP`, because nothing else is ever asked for; next to `EPOLLOUT` it stays hidden, which
/// [`Interest::HANGUP`] documents.
pub(super) fn readiness(event: &impl Flags) -> Readiness {
    let readiness = collect(event);
    if readiness.is_empty() {
        Readiness::READ_CLOSED
    } else {
        readiness
    }
}

/// The kernel's mask. Errors and hang-ups of both directions are always reported.
fn mask(interest: Interest) -> libc::c_int {
    let mut mask = libc::EPOLLET;
    if interest.contains(Interest::READ) {
        mask |= libc::EPOLLIN | libc::EPOLLPRI | libc::EPOLLRDHUP;
    }
    if interest.contains(Interest::WRITE) {
        mask |= libc::EPOLLOUT;
    }
    if interest.contains(Interest::HANGUP) {
        mask |= libc::EPOLLRDHUP;
    }
    mask
}

fn control(
    registry: &mio::Registry,
    operation: libc::c_int,
    fd: BorrowedFd<'_>,
    token: usize,
    mask: libc::c_int,
) -> io::Result<()> {
    // The mask is a set of bits; EPOLLET is the sign bit.
    let mut event = libc::epoll_event {
        events: mask as u32,
        u64: token as u64,
    };
    // SAFETY: both descriptors are borrowed, hence open, and `event` is a live local variable.
    let result =
        unsafe { libc::epoll_ctl(registry.as_raw_fd(), operation, fd.as_raw_fd(), &mut event) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

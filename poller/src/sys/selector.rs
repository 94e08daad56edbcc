//! Waiting and waking through `mio`.

use std::{io, os::fd::BorrowedFd, time::Duration};

use super::platform;
use crate::{Interest, Readiness, command::Wake};

/// Events taken per wait at first, and at least.
const MIN_EVENTS: usize = 256;
/// Events taken per wait at most.
const MAX_EVENTS: usize = 16 * 1024;
/// Waits in a row that must leave three quarters of the array empty before it shrinks.
const SHRINK_AFTER: u32 = 1024;
/// The waker's token; no registry hands it out, because it never reaches the last slot.
const WAKER: mio::Token = mio::Token(usize::MAX);

/// One event: the token it was registered with, and what happened.
pub(crate) type Event = (usize, Readiness);

/// The waiting end.
#[derive(Debug)]
pub(crate) struct Selector {
    poll: mio::Poll,
    events: mio::Events,
    roomy: u32,
}

/// The registering end.
#[derive(Debug)]
pub(crate) struct Control {
    registry: mio::Registry,
}

/// The waking end.
#[derive(Debug)]
pub(crate) struct Waker {
    waker: mio::Waker,
}

/// A new selector, its two descriptors closed on exec.
pub(crate) fn open() -> io::Result<(Selector, Control, Waker)> {
    let poll = mio::Poll::new()?;
    let registry = poll.registry().try_clone()?;
    let waker = mio::Waker::new(&registry, WAKER)?;
    let selector = Selector {
        poll,
        events: mio::Events::with_capacity(MIN_EVENTS),
        roomy: 0,
    };
    Ok((selector, Control { registry }, Waker { waker }))
}

impl Selector {
    /// Waits for events, a wake-up or the time-out (`None`: for ever) and appends the events.
    /// `Ok(true)`: the array was full, there may be more. Interrupted waits return early.
    pub(crate) fn wait(
        &mut self,
        timeout: Option<Duration>,
        into: &mut Vec<Event>,
    ) -> io::Result<bool> {
        if let Err(error) = self.poll.poll(&mut self.events, timeout) {
            if error.kind() == io::ErrorKind::Interrupted {
                return Ok(false);
            }
            return Err(error);
        }
        let mut count = 0;
        for event in &self.events {
            count += 1;
            if event.token() != WAKER {
                into.push((event.token().0, platform::readiness(event)));
            }
        }
        let capacity = self.events.capacity();
        let full = count == capacity;
        if full {
            self.roomy = 0;
            self.resize((capacity * 2).min(MAX_EVENTS));
        } else if capacity > MIN_EVENTS && count <= capacity / 4 {
            self.roomy += 1;
            if self.roomy == SHRINK_AFTER {
                self.roomy = 0;
                self.resize((capacity / 2).max(MIN_EVENTS));
            }
        } else {
            self.roomy = 0;
        }
        Ok(full)
    }

    fn resize(&mut self, capacity: usize) {
        if capacity != self.events.capacity() {
            self.events = mio::Events::with_capacity(capacity);
        }
    }
}

impl Control {
    /// Starts to watch a descriptor.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: usize, what: Interest) -> io::Result<()> {
        platform::add(&self.registry, fd, token, what)
    }

    /// Changes what is watched and re-arms the edges.
    pub(crate) fn modify(
        &self,
        fd: BorrowedFd<'_>,
        token: usize,
        what: Interest,
    ) -> io::Result<()> {
        platform::modify(&self.registry, fd, token, what)
    }

    /// Stops watching. A descriptor that is not watched (any more) is no error: there is nothing
    /// left to undo.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        let _ = platform::remove(&self.registry, fd);
    }
}

impl Wake for Waker {
    fn wake(&self) {
        // A counter that is full counts as awake, and mio deals with it; nothing else can happen
        // to a descriptor of our own.
        let _ = self.waker.wake();
    }
}

//! Waiting and waking through `mio`.

use std::{io, mem, os::fd::BorrowedFd, time::Duration};

use super::platform;
use crate::{Interest, Readiness};

/// Events taken per wait at first, and at least.
const MIN_EVENTS: usize = 256;
/// Events taken per wait at most.
const MAX_EVENTS: usize = 16 * 1024;
/// Waits in a row that must leave three quarters of the array empty before it shrinks.
const SHRINK_AFTER: u32 = 1024;
/// The waker's token; no registry hands it out, because it never reaches the last slot.
const WAKER: mio::Token = mio::Token(usize::MAX);

/// The waiting end.
#[derive(Debug)]
pub(crate) struct Selector {
    poll: mio::Poll,
    events: mio::Events,
    roomy: u32,
    shrunk: bool,
}

/// The registering end.
#[derive(Debug)]
pub(crate) struct Control {
    registry: mio::Registry,
}

/// Wakes the poller out of its wait.
pub(crate) trait Wake {
    /// Makes the current or the next wait return at once.
    fn wake(&self);
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
        shrunk: false,
    };
    Ok((selector, Control { registry }, Waker { waker }))
}

impl Selector {
    /// Waits for events, a wake-up or the time-out (`None`: for ever). `Ok(true)`: the array is full,
    /// there may be more. Interrupted waits return early. What is there is to be [read](Self::events) and
    /// [cleared](Self::clear) before the next wait.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        if let Err(error) = self.poll.poll(&mut self.events, timeout) {
            self.events.clear();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        Ok(self.events.iter().count() == self.events.capacity())
    }

    /// Whether the last wait has found nothing, not even a wake-up.
    pub(crate) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The events of the last wait: the token each was registered with, and what happened.
    pub(crate) fn events(&self) -> impl Iterator<Item = (usize, Readiness)> {
        self.events
            .iter()
            .filter(|event| event.token() != WAKER)
            .map(|event| (event.token().0, platform::readiness(event)))
    }

    /// The events have been dealt with. Fits the array to their number.
    pub(crate) fn clear(&mut self) {
        let count = self.events.iter().count();
        self.events.clear();
        let capacity = self.events.capacity();
        if count == capacity {
            self.roomy = 0;
            self.resize((capacity * 2).min(MAX_EVENTS));
        } else if capacity > MIN_EVENTS && count <= capacity / 4 {
            self.roomy += 1;
            if self.roomy == SHRINK_AFTER {
                self.roomy = 0;
                self.resize((capacity / 2).max(MIN_EVENTS));
                self.shrunk = true;
            }
        } else {
            self.roomy = 0;
        }
    }

    /// The size of the array, if it has become smaller since the last call.
    pub(crate) fn shrunk(&mut self) -> Option<usize> {
        mem::take(&mut self.shrunk).then(|| self.events.capacity())
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::os::{fd::AsFd, unix::net::UnixStream};

    /// The array grows with a burst, and gives its memory back after many waits that did not
    /// need it.
    #[test]
    fn the_array_follows_the_load() {
        let (mut selector, control, _waker) = open().unwrap();
        let pairs: Vec<_> = (0..3 * MIN_EVENTS)
            .map(|_| UnixStream::pair().unwrap())
            .collect();
        for (token, (ours, _)) in pairs.iter().enumerate() {
            control.add(ours.as_fd(), token, Interest::WRITE).unwrap();
        }
        let mut all = Vec::new();
        let mut waits = 0;
        let wait = |selector: &mut Selector, all: &mut Vec<(usize, Readiness)>| {
            let full = selector.wait(Some(Duration::ZERO)).unwrap();
            all.extend(selector.events());
            selector.clear();
            assert!(selector.is_empty());
            full
        };
        while all.len() < pairs.len() {
            let before = all.len();
            let full = wait(&mut selector, &mut all);
            assert_eq!(full, all.len() - before == MIN_EVENTS << waits);
            waits += 1;
        }
        assert_eq!(waits, 2, "256 and 512");
        all.sort_unstable_by_key(|(token, _)| *token);
        assert!(
            all.iter().map(|(token, _)| *token).eq(0..pairs.len()),
            "each once"
        );
        let grown = selector.events.capacity();
        assert!(grown > MIN_EVENTS);
        assert_eq!(selector.shrunk(), None);
        for _ in 0..4 * SHRINK_AFTER {
            wait(&mut selector, &mut all);
        }
        assert_eq!(selector.shrunk(), Some(MIN_EVENTS));
        assert_eq!(selector.shrunk(), None);
        assert_eq!(selector.events.capacity(), MIN_EVENTS);
        assert_eq!(all.len(), pairs.len());
    }

    #[test]
    fn a_wake_is_no_event_and_ends_a_wait() {
        let (mut selector, _control, waker) = open().unwrap();
        waker.wake();
        waker.wake();
        assert!(!selector.wait(None).unwrap());
        assert!(!selector.is_empty());
        assert_eq!(selector.events().count(), 0);
        selector.clear();
        assert!(!selector.wait(Some(Duration::ZERO)).unwrap());
        assert!(selector.is_empty());
    }
}

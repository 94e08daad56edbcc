//! Where callers that share a connection wait, each for the answer that bears its number.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::Thread;

use crate::frame::{self, HEADER, Kind};

const WAITING: u8 = 0;
const ANSWERED: u8 = 1;
const FAILED: u8 = 2;

/// Bytes at the front of a frame, header included, that [`number`] looks at.
pub(super) const NUMBERED: usize = HEADER + 1 + size_of::<u32>();

/// A request of `size` bytes of payload, at least 5, that bears `number`.
pub(super) fn request(size: usize, number: usize) -> Vec<u8> {
    let mut request = frame::build(Kind::Echo, size.max(NUMBERED - HEADER));
    request[HEADER + 1..NUMBERED].copy_from_slice(&(number as u32).to_be_bytes());
    request
}

/// The number the frame that begins with `front` bears.
pub(super) fn number(front: &[u8]) -> Option<usize> {
    let number = front.get(HEADER + 1..NUMBERED)?.first_chunk()?;
    Some(u32::from_be_bytes(*number) as usize)
}

/// A place per caller.
pub(super) struct Waiters(Vec<Waiter>);

struct Waiter {
    state: AtomicU8,
    thread: OnceLock<Thread>,
}

impl Waiters {
    pub(super) fn new(callers: usize) -> Self {
        let waiter = |_| Waiter {
            state: AtomicU8::new(WAITING),
            thread: OnceLock::new(),
        };
        Self((0..callers).map(waiter).collect())
    }

    /// This thread is about to ask, under `number`, which is its own for good.
    pub(super) fn prepare(&self, number: usize) {
        let waiter = &self.0[number];
        waiter.thread.get_or_init(std::thread::current);
        // A failure stays: it was of the connection.
        let (from, to) = (ANSWERED, WAITING);
        let _ = waiter
            .state
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Waits until the answer to `number` is there.
    pub(super) fn wait(&self, number: usize) -> io::Result<()> {
        loop {
            match self.0[number].state.load(Ordering::Acquire) {
                WAITING => std::thread::park(),
                ANSWERED => return Ok(()),
                _ => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
    }

    /// The answer to `number` is there.
    pub(super) fn answer(&self, number: usize) -> io::Result<()> {
        let waiter = self.0.get(number).ok_or(io::ErrorKind::InvalidData)?;
        waiter.wake(ANSWERED);
        Ok(())
    }

    /// There will be no more answers.
    pub(super) fn fail(&self) {
        for waiter in &self.0 {
            waiter.wake(FAILED);
        }
    }
}

impl Waiter {
    fn wake(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_bears_its_number() {
        for (size, number_of) in [(0, 3), (5, 70_000), (1024, 0)] {
            let request = request(size, number_of);
            assert_eq!(number(&request), Some(number_of));
            assert_eq!(frame::front(&request), frame::Front::Echo(request.len()));
        }
        assert_eq!(number(&[0; NUMBERED - 1]), None);
    }

    #[test]
    fn answers_and_failures_end_the_wait() {
        let waiters = Waiters::new(2);
        std::thread::scope(|scope| {
            let caller = scope.spawn(|| {
                waiters.prepare(1);
                waiters.wait(1)?;
                waiters.prepare(1);
                waiters.wait(1)
            });
            waiters.answer(1).unwrap();
            while waiters.0[1].state.load(Ordering::Relaxed) != WAITING {
                std::thread::yield_now();
            }
            waiters.fail();
            assert!(caller.join().unwrap().is_err());
        });
        assert!(waiters.answer(2).is_err());
        waiters.prepare(0);
        assert!(waiters.wait(0).is_err());
    }
}

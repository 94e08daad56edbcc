//! Waits of dials: a handler's thread that others need is given back.

use crate::{connection::Bell, error::Error};
use poller::{Interest, Readiness, Waiter, Waiting};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

/// The waits of one dial. On a thread of a pool they may be ended for others.
pub(super) struct Endable {
    waiting: Waiting,
    /// `None` where no descriptor could be had for it: waits look up now and then.
    bell: Option<Arc<Bell>>,
}

impl Endable {
    /// The calling thread is about to wait.
    pub(super) fn begin() -> Self {
        let bell = Bell::mine();
        let waiting = match &bell {
            Some(bell) => poller::begin_wait(Arc::clone(bell) as Arc<dyn Waiter>),
            None => poller::begin_wait(Arc::new(LooksUp)),
        };
        Self { waiting, bell }
    }

    /// # Errors
    ///
    /// [`Error::Overloaded`] if others need the thread.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.waiting.was_ended() {
            return Err(Error::Overloaded);
        }
        Ok(())
    }

    /// Waits until one of the descriptors is ready, the deadline passes, or it is time for another
    /// [`check`](Self::check). What each is ready for.
    pub(super) fn wait_any(
        &self,
        fds: &[BorrowedFd<'_>],
        interest: Interest,
        deadline: Option<Instant>,
    ) -> io::Result<Vec<Readiness>> {
        let Some(bell) = &self.bell else {
            let slice = Instant::now() + SLICE;
            let until = deadline.map_or(slice, |deadline| deadline.min(slice));
            return poller::wait_any(fds, interest, Some(until));
        };
        let (ready, rung) = poller::wait_any_or(fds, interest, bell.as_fd(), deadline)?;
        if rung {
            bell.hush();
        }
        Ok(ready)
    }
}

/// A thread that looks by itself, soon enough.
pub(super) struct LooksUp;

impl Waiter for LooksUp {
    fn wake(&self) {}
}

/// How long a wait without a bell goes on before it looks up.
const SLICE: Duration = Duration::from_millis(25);

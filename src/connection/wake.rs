//! Ends a thread's wait on a descriptor from another thread.
//!
//! A user's own connection is waited for on the descriptor itself, without the poller (but for the
//! short waits inside the receive, which nobody can end: see `net/waiting.rs`). A close
//! from elsewhere has to end that wait, and must not touch the socket for it: shutting down the
//! receiving side would stop the kernel from opening the window again, so a peer that is sending
//! would never learn of the end. So a thread that waits also watches a socket pair of its own.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
    sync::Arc,
};

/// One thread's bell.
#[derive(Debug)]
pub(crate) struct Bell {
    rings: UnixDatagram,
    rope: UnixDatagram,
}

thread_local! {
    static BELL: Option<Arc<Bell>> = Bell::new().ok().map(Arc::new);
}

impl Bell {
    fn new() -> io::Result<Self> {
        let (rings, rope) = UnixDatagram::pair()?;
        rings.set_nonblocking(true)?;
        rope.set_nonblocking(true)?;
        Ok(Self { rings, rope })
    }

    /// This thread's bell; `None` when no descriptor could be had for it.
    pub(crate) fn mine() -> Option<Arc<Self>> {
        BELL.try_with(Option::clone).ok().flatten()
    }

    /// Ends the wait of the bell's thread, now or the next one that watches it.
    pub(crate) fn ring(&self) {
        // A full queue means that it has been rung already.
        let _ = self.rope.send(&[1]);
    }

    /// Forgets earlier rings.
    pub(crate) fn hush(&self) {
        while self.rings.recv(&mut [0; 8]).is_ok() {}
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rings.as_fd()
    }
}

//! Ends a thread's wait on a descriptor from another thread.
//!
//! A user's own connection is waited for on the descriptor itself, without the poller (but for the
//! short waits inside the receive, which nobody can end: see `net/waiting.rs`). A close
//! from elsewhere has to end that wait, and must not touch the socket for it: shutting down the
//! receiving side would stop the kernel from opening the window again, so a peer that is sending
//! would never learn of the end. So a thread that waits also watches a descriptor of its own: an eventfd on
//! Linux, elsewhere a socket pair, made by its first wait and closed with the thread.

use poller::Waiter;
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

/// One thread's bell.
#[derive(Debug)]
pub(crate) struct Bell(imp::Bell);

thread_local! {
    static BELL: Option<Arc<Bell>> = imp::Bell::new().ok().map(|bell| Arc::new(Bell(bell)));
}

impl Bell {
    /// This thread's bell; `None` when no descriptor could be had for it.
    pub(crate) fn mine() -> Option<Arc<Self>> {
        BELL.try_with(Option::clone).ok().flatten()
    }

    /// Ends the wait of the bell's thread, now or the next one that watches it.
    pub(crate) fn ring(&self) {
        // It fails if it has been rung already.
        let _ = self.0.ring();
    }

    /// Forgets earlier rings.
    pub(crate) fn hush(&self) {
        self.0.hush();
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Waiter for Bell {
    fn wake(&self) {
        self.ring();
    }
}

#[cfg(target_os = "linux")]
mod imp {
    use super::{AsFd, BorrowedFd, io};
    use rustix::event::{EventfdFlags, eventfd};
    use std::os::fd::OwnedFd;

    #[derive(Debug)]
    pub(super) struct Bell(OwnedFd);

    impl Bell {
        pub(super) fn new() -> io::Result<Self> {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            Ok(Self(eventfd(0, flags)?))
        }

        pub(super) fn ring(&self) -> io::Result<usize> {
            Ok(rustix::io::write(&self.0, &1_u64.to_ne_bytes())?)
        }

        /// One read takes all rings.
        pub(super) fn hush(&self) {
            let _ = rustix::io::read(&self.0, &mut [0; 8]);
        }
    }

    impl AsFd for Bell {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use super::{AsFd, BorrowedFd, io};
    use std::os::unix::net::UnixDatagram;

    #[derive(Debug)]
    pub(super) struct Bell {
        rings: UnixDatagram,
        rope: UnixDatagram,
    }

    impl Bell {
        pub(super) fn new() -> io::Result<Self> {
            let (rings, rope) = UnixDatagram::pair()?;
            rings.set_nonblocking(true)?;
            rope.set_nonblocking(true)?;
            Ok(Self { rings, rope })
        }

        pub(super) fn ring(&self) -> io::Result<usize> {
            self.rope.send(&[1])
        }

        pub(super) fn hush(&self) {
            while self.rings.recv(&mut [0; 8]).is_ok() {}
        }
    }

    impl AsFd for Bell {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.rings.as_fd()
        }
    }
}

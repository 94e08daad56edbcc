//! Epoll and kqueue pollers whose polling leadership moves to another thread when a callback blocks.
//!
//! An [`Operator`] owns a descriptor (a socket, a pipe, an eventfd, a timerfd, ...). Registered with
//! a [`PollerGroup`], it is told what became ready, edge-triggered, on the thread that polled. It
//! may do its work there and then, in [`Operator::run`], at the speed of an event loop without any
//! hand-off; and should that work block, polling goes on in another thread.
//!
//! # How the leadership moves
//!
//! The selector, what is left of the present batch of events and the timers form one value, the
//! *reactor* of a poller. The thread that holds it leads. Around each call of [`Operator::run`] the
//! reactor lies in a slot where another thread may take it:
//!
//! * at once, if the run calls [`before_blocking`] before it waits;
//! * half a tick to one and a half later (1 ms each by default, [`PollerGroupBuilder::slow_after`]; twice
//!   as long if no run was found to wait for a second, four times after ten, sixteen times if none ever
//!   was) if the group's monitor finds the run waiting without a word, or having computed for more than 5 ms;
//! * right away, where runs have often waited lately, or where runs are long and there is another
//!   processor: then several threads share the batch.
//!
//! If no thread took it, the run's thread continues to lead: the usual case, which costs
//! two exchanges of one word.
//!
//! # When (not) to use it
//!
//! For servers and clients whose handlers are ordinary blocking code, and for any set of
//! descriptors that should be watched by few threads. It is not an async runtime, and it has no
//! buffers, connections or protocols; the crate `netpoll` puts those on top.
//!
//! # Example
//!
//! ```
//! use std::{
//!     io::{Read, Write},
//!     os::{fd::{AsFd, BorrowedFd}, unix::net::UnixStream},
//!     sync::Arc,
//! };
//! use poller::{Balance, Budget, Interest, Operator, PollerGroup, Progress, Readiness};
//!
//! struct Echo(UnixStream);
//!
//! impl Operator for Echo {
//!     fn fd(&self) -> BorrowedFd<'_> {
//!         self.0.as_fd()
//!     }
//!
//!     fn on_ready(&self, readiness: Readiness, budget: &mut Budget<'_>) -> Progress {
//!         if readiness.contains(Readiness::READABLE) {
//!             budget.request_run();
//!         }
//!         Progress::Drained
//!     }
//!
//!     fn run(&self) -> Progress {
//!         let mut bytes = [0; 1024];
//!         loop {
//!             match (&self.0).read(&mut bytes) {
//!                 Ok(0) => return Progress::Detach,
//!                 Ok(n) => (&self.0).write_all(&bytes[..n]).unwrap(),
//!                 Err(_) => return Progress::Drained, // nothing more for now
//!             }
//!         }
//!     }
//! }
//!
//! let group = PollerGroup::new(1, Balance::RoundRobin)?;
//! let (ours, mut peer) = UnixStream::pair()?;
//! ours.set_nonblocking(true)?;
//! let registration = group.register(Arc::new(Echo(ours)), Interest::READ)?;
//! peer.write_all(b"hello")?;
//! let mut back = [0; 5];
//! peer.read_exact(&mut back)?;
//! assert_eq!(&back, b"hello");
//! drop(registration);
//! group.close();
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Promises
//!
//! * An event reaches only the registration it belongs to, however fast descriptor numbers are
//!   reused. After [`Registration::detach`] no event is delivered.
//! * [`Operator::on_detached`] is called exactly once per registration, also when the group is
//!   closed, a callback panics or the system's selector fails ([`PollerGroup::health`]).
//! * No wake-up is lost: what is asked of a poller from another thread is done without delay,
//!   asleep or not.
//! * Timers run on the monotonic clock, are never early, and are judged after the events that had
//!   arrived before them.
//! * An operator gets a bounded share of a round ([`Budget`]); one that always has more to do
//!   comes again after the others.
//! * Closing a group ends its threads and frees its descriptors, even while handles exist.
//!
//! # Platforms
//!
//! Linux (epoll) and the systems with kqueue (macOS, the BSDs). Whether a silent run waits is read
//! from `/proc`; without it every run that outlasts two ticks loses the leadership. `unsafe` code is
//! one system call on Linux (`epoll_ctl`). Minimum Rust version 1.85.

#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod contain;
mod group;
mod leadership;
#[cfg(all(test, loom))]
mod models;
mod operator;
mod poller;
mod reactor;
mod sync;
mod sys;
mod thread_pool;

pub use group::{
    PollerGroup, PollerGroupBuilder, balance::Balance, handle::PollerHandle,
    registration::Registration,
};
pub use leadership::thread_context::{before_blocking, is_polling_thread};
pub use operator::{
    Budget, Operator, Progress,
    readiness::{Interest, Readiness},
};
pub use poller::overload::Overload;
pub use reactor::{
    entry::Entry,
    scheduled_calls::TimerKey,
    stats::{GroupStats, PollerStats},
};
pub use sys::{wait_any, wait_any_or, wait_ready, wait_ready_or};
pub use thread_pool::{
    BusyThread, Job, WorkerPool, WorkerPoolBuilder, WorkerStats,
    executor_threads::{ExecutorQueue, ExecutorThreads, Ticket},
    waits::{Waiter, Waiting, begin_wait},
};

/// Items that the crate `netpoll` needs. They are no part of the promises and may change in any release.
#[doc(hidden)]
pub mod internal {
    pub use crate::{
        contain::{Panicked, contained},
        sys::coarse_millis,
    };

    /// Locks, atomics and threads, which the model checkers replace.
    pub mod sync {
        pub use crate::sync::*;
    }
}

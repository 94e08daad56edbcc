//! What the platform has to supply, one contract:
//!
//! * [`Selector`]: waits; owned by the poller's reactor, moves with the leadership.
//! * [`Control`]: adds, changes and removes descriptors, from any thread.
//! * [`Waker`]: makes a wait return, from any thread.
//! * [`wait_ready`]: waits for one descriptor without a poller.
//! * [`coarse_millis`]: a clock that is cheap enough to look at for every message; [`MonotonicNanos`]: an exact
//!   one whose readings are cheap to work with.
//! * [`thread_id`], [`thread_activity`], [`thread_waits`]: how the monitor tells a waiting thread from a busy one.
//!
//! `mio` does the waiting and waking everywhere. What it leaves out is here: registering for the
//! peer's hang-up alone (`epoll.rs`), and the meaning of each platform's flags (`epoll.rs`,
//! `kqueue.rs`).
//!
//! Everything else on Linux goes through `rustix`. `epoll.rs` holds the crate's only `unsafe` block: mio
//! lends its epoll descriptor as a number.

mod clock;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod epoll;
mod flags;
#[cfg(any(
    all(test, not(loom)),
    not(any(target_os = "linux", target_os = "android"))
))]
mod kqueue;
mod selector;
mod thread;
mod tick_clock;
mod wait;

#[cfg(any(target_os = "linux", target_os = "android"))]
use epoll as platform;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use kqueue as platform;

pub use clock::coarse_millis;
pub(crate) use clock::{MonotonicNanos, nanos};
pub(crate) use selector::{Control, Selector, Wake, Waker, open};
pub(crate) use thread::{Activity, thread_activity, thread_id, thread_waits};
pub(crate) use tick_clock::TickClock;
pub use wait::{wait_any, wait_any_or, wait_ready, wait_ready_or};

//! Loom models of the real role, command queue, list of waits and worker pool: every interleaving within the
//! preemption bound. A lost wake-up shows as a deadlock, which loom reports.
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 \
//!     cargo test -p netpoll-poller --release --lib loom_
//! ```

mod command;
mod control;
mod role;
mod waits;
mod workers;

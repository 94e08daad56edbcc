//! Loom models of the real leadership, command queue, list of waits, worker pool and count of foreign jobs: every interleaving within the
//! preemption bound. A lost wake-up shows as a deadlock, which loom reports.
//!
//! ```sh
//! RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 \
//!     cargo test -p netpoll-poller --release --lib loom_
//! ```

mod command;
mod entry_state;
mod executor_threads;
mod leadership;
mod thread_pool;
mod waits;

//! Epoll and kqueue pollers whose polling role moves to another thread when a callback blocks.

#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod balance;
mod command;
mod context;

mod group;
mod handle;
mod leader;
mod learn;
#[cfg(all(test, loom))]
mod models;
mod monitor;
mod operator;
mod poller;
mod readiness;
mod registration;
mod registry;
mod role;
mod schedule;
mod stats;
#[doc(hidden)]
pub mod sync;
mod sys;
mod timer;
mod turn;
mod workers;

pub use balance::Balance;
pub use context::{before_blocking, must_not_block};
pub use group::{GroupBuilder, PollerGroup};
pub use handle::PollerHandle;
pub use operator::{Budget, Operator, Progress};
pub use readiness::{Interest, Readiness};
pub use registration::Registration;
pub use schedule::TimerKey;
pub use stats::{GroupStats, PollerStats};
pub use sys::wait_ready;
pub use workers::{Job, WorkerPool, WorkerPoolBuilder, WorkerStats};

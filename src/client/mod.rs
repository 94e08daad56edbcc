//! Clients: dialling, and keeping connections for the next call.

mod builder;
mod dialer;
#[cfg(all(test, any(loom, shuttle)))]
mod models;
mod pool;
mod queue;
mod shelf;
mod starting;

pub use builder::PoolBuilder;
pub use dialer::Dialer;
pub(crate) use pool::Lease;
pub use pool::{Pool, PoolStats, Pooled};

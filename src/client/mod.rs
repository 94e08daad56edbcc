//! Clients: dialling, and keeping connections for the next call.

mod dialer;
#[cfg(all(test, any(loom, shuttle)))]
mod models;
mod pool;
mod shelf;

pub use dialer::Dialer;
pub(crate) use pool::Lease;
pub use pool::{Pool, PoolStats, Pooled};

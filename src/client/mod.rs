//! Clients: dialling, and keeping connections for the next call.

mod dialer;
mod pool;

pub use dialer::Dialer;
pub(crate) use pool::Lease;
pub use pool::{Pool, PoolStats, Pooled};

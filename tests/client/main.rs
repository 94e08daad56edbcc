//! Dialling, calls and the pool.

mod dial;
mod pool;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod waits;

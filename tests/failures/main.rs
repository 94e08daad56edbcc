//! Rows of `docs/reliability.md` that need no flag.

mod client;
mod dispatch;
mod drops;
#[cfg(target_os = "linux")]
mod poller;
mod shutdown;
#[path = "../support/mod.rs"]
mod support;
mod time;
mod unix;

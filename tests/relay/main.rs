//! Relays between two connections.

mod drain;
mod ends;
mod idle;
mod matrix;
#[cfg(target_os = "linux")]
mod pipes;
mod sockets;
#[path = "../support/mod.rs"]
mod support;
mod verdicts;

//! Frames: decoders, encoders, and handlers made of them.

mod fuzz;
mod handler;
mod limits;
mod own;
mod split;
#[path = "../support/mod.rs"]
mod support;

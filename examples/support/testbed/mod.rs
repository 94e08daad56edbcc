//! The server of the test bed: what each opcode does, and the books that are kept.
//!
//! A frame is a u32 length, big-endian as all numbers, then one opcode byte and a body; the
//! length counts both. A reply is a u32 length and a body.

mod book;
mod handler;
mod keeper;

pub(crate) use book::Book;
pub(crate) use handler::{Testbed, Waiting};

//! What several examples share: flags, serving until a signal comes, known bytes.

// Each example uses a part of it.
#![allow(dead_code)]

pub(crate) mod args;
pub(crate) mod crc;
pub(crate) mod pattern;
pub(crate) mod serve;

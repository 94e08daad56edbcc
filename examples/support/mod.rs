//! What several examples share: flags, signals, the frame of the test bed.

// Each example uses a part of it.
#![allow(dead_code)]

pub(crate) mod args;
pub(crate) mod pattern;
pub(crate) mod serve;

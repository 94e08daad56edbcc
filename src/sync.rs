//! Synchronisation primitives, all from one shim, so that loom checks the real code.

pub(crate) use poller::sync::*;

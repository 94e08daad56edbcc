//! Synchronisation primitives, all from one shim, so that loom and shuttle check the real code.

pub(crate) use poller::internal::sync::*;

//! What the server tells about itself: one JSON object per look.

use serde::{Deserialize, Serialize};

/// The server's own counts, and those of its event loop. All but `active` and
/// `heap` only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Calls of `on_prepare`.
    pub(super) prepared: u64,
    /// Calls of `on_connect`.
    pub(super) connected: u64,
    /// Calls of `on_disconnect`.
    pub(super) disconnected: u64,
    /// Calls of close callbacks; every connection has one.
    pub(super) closed: u64,
    /// Frames that were whole.
    pub(super) requests: u64,
    /// Bytes of those frames.
    pub(super) bytes: u64,
    /// Panics that were asked for.
    pub(super) panics_ordered: u64,
    /// Callbacks that came when they must not, or two at once.
    pub(super) order_violations: u64,
    /// Frames that were lost, doubled, out of order, or of another connection.
    pub(super) misplaced: u64,
    /// Bytes that nobody sent.
    pub(super) wrong_bytes: u64,
    /// Bytes allocated and not freed; 0 where the allocator does not tell.
    pub(super) heap: u64,
    /// Panics that nobody asked for, in whatever thread.
    pub(super) panics_unexpected: u64,

    /// Of the event loop: connections open now.
    pub(super) active: u64,
    /// Of the event loop.
    pub(super) accepted: u64,
    /// Of the event loop.
    pub(super) loop_connected: u64,
    /// Of the event loop.
    pub(super) loop_disconnected: u64,
    /// Of the event loop.
    pub(super) loop_closed: u64,
    /// Of the event loop: contained panics.
    pub(super) loop_panics: u64,
    /// Of the event loop: accepts that failed because there were no descriptors.
    pub(super) emfile: u64,
    /// Of the event loop: accepts that failed for other reasons.
    pub(super) accept_errors: u64,
}

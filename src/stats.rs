//! Figures: snapshots for users, counters inside.

use crate::sync::{AtomicU64, Ordering};
use poller::BusyThread;
use std::time::Instant;

/// What one connection has done so far. All figures count from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Bytes received from the kernel.
    pub bytes_in: u64,
    /// Bytes the kernel accepted.
    pub bytes_out: u64,
    /// Bytes that were accepted for sending and wait for room in the socket.
    pub queued: usize,
    /// Messages (flushes and sends) accepted.
    pub messages_out: u64,
    /// Accepted bytes that will never be sent because the connection ended.
    pub lost_bytes: u64,
    /// Messages, whole or in part, among the lost bytes.
    pub lost_messages: u64,
    /// When bytes last came or went, to the millisecond; before that, when the connection began.
    /// Setting an idle timeout counts as activity.
    pub last_activity: Option<Instant>,
}

/// What an event loop or a dialer has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Connections that are open now, those that still linger after their close included.
    pub active: usize,
    /// Connections accepted or dialled.
    pub accepted: u64,
    /// Connections refused by `on_prepare`.
    pub refused: u64,
    /// `on_connect` calls that returned Ok.
    pub connected: u64,
    /// `on_disconnect` calls.
    pub disconnected: u64,
    /// Connections whose callbacks have all run.
    pub closed: u64,
    /// Connections that ended with [`CloseReason::Overload`](crate::CloseReason::Overload).
    pub overloaded: u64,
    /// Connections that were closed before their peers had everything that was flushed, because they
    /// took it too slowly: nothing of it for the linger time or the write timeout, for example.
    pub cut: u64,
    /// Bytes of input and output that connections keep beyond their turns, within an eighth. 0 where
    /// there is no [`memory_limit`](crate::EventLoopBuilder::memory_limit).
    pub held: usize,
    /// Panics in handlers and callbacks, all contained.
    pub panics: u64,
    /// Failed accepts by error number, most frequent first.
    pub accept_errors: Vec<(i32, u64)>,
    /// Connections whose callbacks have a thread now and for how long, the longest first: with
    /// [`Dispatch::Workers`](crate::Dispatch::Workers) all of them; otherwise those whose callback waits or
    /// takes long, of all loops that use the same pollers. With
    /// [`Dispatch::Custom`](crate::Dispatch::Custom) none.
    pub holding: Vec<BusyThread>,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) accepted: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) connected: AtomicU64,
    pub(crate) disconnected: AtomicU64,
    pub(crate) closed: AtomicU64,
    pub(crate) overloaded: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) panics: AtomicU64,
    pub(crate) accept_errors: crate::sync::Mutex<std::collections::BTreeMap<i32, u64>>,
}

impl Counters {
    /// But for what they do not count.
    pub(crate) fn snapshot(&self) -> Stats {
        let mut accept_errors: Vec<_> = self
            .accept_errors
            .lock()
            .iter()
            .map(|(&errno, &count)| (errno, count))
            .collect();
        accept_errors.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        Stats {
            active: 0,
            holding: Vec::new(),
            accepted: self.accepted.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            connected: self.connected.load(Ordering::Relaxed),
            disconnected: self.disconnected.load(Ordering::Relaxed),
            closed: self.closed.load(Ordering::Relaxed),
            held: 0,
            overloaded: self.overloaded.load(Ordering::Relaxed),
            cut: self.cut.load(Ordering::Relaxed),
            panics: self.panics.load(Ordering::Relaxed),
            accept_errors,
        }
    }
}

//! The contract between pools of threads and the monitor that watches them for overload.

use std::{sync::Arc, time::Duration};

use crate::{
    sync::{AtomicU64, Ordering},
    sys::{MonotonicNanos, coarse_millis},
};

/// Work that has a thread, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusyThread {
    /// What it is: `Job::id` or [`Operator::id`](crate::Operator::id), 0 if that does not say.
    pub id: u64,
    /// Since when, to some milliseconds.
    pub time: Duration,
}

/// The time after which work is overdue, divided by this, is how old a wait must be to be ended for it, and
/// what a thread has to take the work up.
pub(crate) const PAUSES: u32 = 10;

/// Threads for which work may have to wait.
pub(crate) trait WatchedPool: Send + Sync {
    /// What waits for a thread.
    fn backlog(&self, now: MonotonicNanos) -> Backlog;

    /// Ends waits of the threads for so much overdue work; how many those were.
    fn end_waits(&self, overdue: usize, now: MonotonicNanos) -> usize;

    /// What has a thread, the longest first.
    fn holding(&self) -> Vec<BusyThread>;

    /// The monitor is about to rest: work that waits calls it from here on. `false`: some waits already.
    fn rest(&self) -> bool;
}

/// Work that waits for a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// How much has waited for too long.
    pub(crate) overdue: usize,
    /// There is some, and no thread on its way to it as far as that is known.
    pub(crate) waits: bool,
    /// All threads are known to be taken, or seem to be.
    pub(crate) stuck: bool,
}

/// The monitor, as pools know it.
pub(crate) trait PoolMonitor: Send + Sync {
    /// Starts the monitor, or ends its rest. `false`: it has no thread.
    fn request(self: Arc<Self>) -> bool;
}

/// What a thread does: only the thread writes it.
#[derive(Default)]
pub(crate) struct Doing {
    /// The present job's number, 0 for none, and when it began by the coarse clock.
    job: AtomicU64,
    since: AtomicU64,
}

impl Doing {
    pub(crate) fn begin(&self, id: u64) {
        self.since.store(coarse_millis(), Ordering::Relaxed);
        self.job.store(id, Ordering::Release);
    }

    pub(crate) fn end(&self) {
        self.job.store(0, Ordering::Relaxed);
    }

    pub(crate) fn holding(&self, now: u64) -> Option<BusyThread> {
        let id = self.job.load(Ordering::Acquire);
        let since = self.since.load(Ordering::Relaxed);
        (id != 0).then(|| BusyThread {
            id,
            time: Duration::from_millis(now.saturating_sub(since)),
        })
    }
}

/// All of these, in the order in which they are told.
pub(crate) fn longest_first(all: impl Iterator<Item = BusyThread>) -> Vec<BusyThread> {
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|holding| std::cmp::Reverse(holding.time));
    all
}

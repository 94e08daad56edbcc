//! Counters of a poller, and their snapshots.

use crate::{
    sync::{AtomicU64, Ordering},
    thread_pool::{BusyThread, WorkerStats},
};

/// Declares the counters and their snapshot with one list.
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What one poller has done so far.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct PollerStats {
            /// Operators registered now.
            pub registered: usize,
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn new() -> Self {
                Self { $($name: Counter(AtomicU64::new(0)),)* }
            }

            pub(crate) fn snapshot(&self, registered: usize) -> PollerStats {
                PollerStats { registered, $($name: self.$name.value(),)* }
            }
        }

        impl std::ops::AddAssign for PollerStats {
            fn add_assign(&mut self, other: Self) {
                self.registered += other.registered;
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Events delivered by the kernel.
    events,
    /// Poll cycles: waits and what followed from each.
    turns,
    /// Writes to the poller's waker.
    wakeups,
    /// Calls of `Operator::run` and of scheduled closures that kept the leadership (as of the last cycle).
    runs,
    /// Runs whose leadership went to another thread before they returned.
    slow_runs,
    /// Runs that passed the leadership on before they waited.
    handovers,
    /// Runs found waiting that had not said so.
    waits,
    /// Threads sent by the monitor to take the leadership from a run that waits.
    promotions,
    /// Threads sent by the monitor to take the leadership from a run that computes for long.
    computing_promotions,
    /// Times the poller began to share its batches among threads because runs often waited.
    sharings,
    /// Threads sent to share a batch.
    helpers,
    /// Times a leadership could not be passed on because the thread cap was reached.
    cap_hits,
    /// Times the monitor polled because every thread was in a run that waits.
    stand_ins,
    /// Runs and closures left to the reserve because every other thread was in a run.
    brief_runs,
    /// Panics caught in callbacks.
    panics,
    /// Timers delivered, scheduled closures included.
    timers,
}

impl Counters {
    /// Counts what tells the monitor that it is needed.
    pub(crate) fn of_interest(&self) -> u64 {
        self.waits.value() + self.computing_promotions.value() + self.cap_hits.value()
    }
}

/// One counter.
#[derive(Debug)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a group has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStats {
    /// One entry per poller, by index.
    pub pollers: Vec<PollerStats>,
    /// The threads that lead, run and stand by.
    pub workers: WorkerStats,
    /// The threads that do brief work while all those are taken.
    pub reserve: WorkerStats,
    /// The runs that others poll for because they wait or take long, the longest first.
    pub holding: Vec<BusyThread>,
}

impl GroupStats {
    /// The sum over all pollers.
    pub fn total(&self) -> PollerStats {
        let mut total = PollerStats::default();
        for poller in &self.pollers {
            total += *poller;
        }
        total
    }
}

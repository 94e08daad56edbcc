//! What is done when work has waited for a thread for too long.
//!
//! The [monitor](crate::poller::blocking_monitor) finds out; here it has waits ended, and tells who has the threads.

use std::{fmt, sync::OnceLock, time::Duration};

use crate::{
    contain::contained,
    sync::Mutex,
    sys::MonotonicNanos,
    thread_pool::watched::{BusyThread, WatchedPool},
};

/// Reports come no faster than this.
const REPORT_AGAIN: Duration = Duration::from_secs(10);

/// Work has waited for a thread for too long, because all are taken.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Overload {
    /// Runs or jobs that have waited for longer than
    /// [`overload_after`](crate::PollerGroupBuilder::overload_after) now.
    pub waiting: usize,
    /// Waits that were ended for such work since the last report.
    pub ended_waits: u64,
    /// What the threads are taken by, the longest first.
    pub holding: Vec<BusyThread>,
}

/// Called with an [`Overload`]: see [`PollerGroup::report_overload`](crate::PollerGroup::report_overload).
pub(crate) type Report = fn(&Overload);

/// The monitor's part of it.
#[derive(Default)]
pub(crate) struct Relief {
    report: OnceLock<Report>,
    reported: Mutex<Reported>,
}

#[derive(Default)]
struct Reported {
    at: Option<MonotonicNanos>,
    /// Since then.
    ended: u64,
}

impl Relief {
    /// The first one counts.
    pub(crate) fn report_to(&self, report: Report) {
        let _ = self.report.set(report);
    }

    /// Has waits of the pool ended for so much work, and says so from time to time.
    pub(crate) fn relieve(
        &self,
        pool: &dyn WatchedPool,
        overdue: usize,
        now: MonotonicNanos,
        holding: impl FnOnce() -> Vec<BusyThread>,
    ) {
        let ended = pool.end_waits(overdue, now) as u64;
        let Some(report) = self.report.get() else {
            return;
        };
        let ended_waits = {
            let mut reported = self.reported.lock();
            reported.ended += ended;
            if reported.at.is_some_and(|at| at + REPORT_AGAIN > now) {
                return;
            }
            reported.at = Some(now);
            std::mem::take(&mut reported.ended)
        };
        let overload = Overload {
            waiting: overdue,
            ended_waits,
            holding: holding(),
        };
        // It is user code.
        let _ = contained(|| report(&overload));
    }
}

impl fmt::Debug for Relief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relief")
            .field("reports", &self.report.get().is_some())
            .finish_non_exhaustive()
    }
}

//! A pool of threads that grows on demand: runs jobs, lends pollers their leaders.

pub(crate) mod executor_threads;
pub(crate) mod waits;
pub(crate) mod watched;
mod worker;

use std::{
    fmt, io,
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{
    sync::{Ordering, thread},
    sys::MonotonicNanos,
};

pub use watched::BusyThread;
pub use worker::{Job, WorkerStats};

use watched::{PoolMonitor, WatchedPool};
use worker::{Config, Queued, Shared};

/// A pool of threads. Clones share it.
#[derive(Clone)]
pub struct WorkerPool {
    shared: Arc<Shared>,
}

/// Builds a [`WorkerPool`].
#[derive(Clone, Debug, Default)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct WorkerPoolBuilder {
    config: Config,
}

impl WorkerPoolBuilder {
    /// The most threads at once, at least 1; 512 by default.
    pub fn max_threads(mut self, threads: usize) -> Self {
        self.config.max_threads = threads.max(1);
        self
    }

    /// How long a thread without a job stays; 10 s by default.
    pub fn keep_alive(mut self, time: Duration) -> Self {
        self.config.keep_alive = time;
        self
    }

    /// The most jobs that may wait; unbounded by default.
    pub fn max_queued(mut self, jobs: usize) -> Self {
        self.config.max_queued = jobs;
        self
    }

    /// How long jobs wait for a thread, when all are taken, before [waits](crate::begin_wait) of these threads
    /// are ended for them, the longest first; `None` for never. 100 ms by default. For a pool that a group
    /// [looks after](crate::PollerGroup::look_after).
    pub fn overload_after(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.config.overload_after = time.into();
        self
    }

    /// The prefix of the threads' names; `worker` by default. Zero bytes, which the system does not
    /// allow there, are left out.
    pub fn name(mut self, name: &str) -> Self {
        self.config.name = name.replace('\0', "");
        self
    }

    /// The pool. Threads are started by the first jobs.
    pub fn build(self) -> WorkerPool {
        WorkerPool {
            shared: Arc::new(Shared::new(self.config)),
        }
    }
}

impl WorkerPool {
    /// A pool with other than the default limits.
    pub fn builder() -> WorkerPoolBuilder {
        WorkerPoolBuilder::default()
    }

    /// Queues a job. Does not block, but may start a thread.
    ///
    /// # Errors
    ///
    /// Gives the job back if the pool is closed or the queue is at its bound.
    pub fn submit(&self, job: Arc<dyn Job>) -> Result<(), Arc<dyn Job>> {
        self.shared.submit(Queued::new(job, false))
    }

    /// Queues the job of leading a poller: before all others, whatever the bound.
    pub(crate) fn submit_leader(&self, job: Arc<dyn Job>) -> Result<(), Arc<dyn Job>> {
        self.shared.submit(Queued::new(job, true))
    }

    /// Queues a job only if a thread is there for it, or can be started; whether it did.
    pub(crate) fn submit_if_served(&self, job: Arc<dyn Job>) -> bool {
        if self.shared.submit(Queued::new(job, false)).is_err() {
            return false;
        }
        let mut state = self.shared.state.lock();
        // The thread that was to be started for it was refused.
        let manned = state.threads > 0;
        if !manned {
            state.queue.clear();
            self.shared.pending.store(0, Ordering::Release);
        }
        manned
    }

    /// Refuses new jobs, runs those queued, and waits for the threads to end; a call on one of the
    /// pool's own threads does not wait. May be called again.
    pub fn close(&self) {
        self.shared.close();
        self.shared.join();
    }

    /// As [`close`](Self::close), but waits for nothing.
    pub(crate) fn close_later(&self) {
        self.shared.close();
    }

    /// The error of a thread that could not be started, once.
    pub(crate) fn start_error(&self) -> io::Result<()> {
        self.shared
            .state
            .lock()
            .start_error
            .take()
            .map_or(Ok(()), Err)
    }

    /// Closes and drops the queued jobs.
    pub(crate) fn abandon(&self) {
        self.shared.close();
        let jobs = std::mem::take(&mut self.shared.state.lock().queue);
        drop(jobs);
    }

    /// Waits for the threads to end; another sees to the closing. `false` without waiting if the caller
    /// is one of them.
    pub(crate) fn join_after_close(&self) -> bool {
        self.shared.join()
    }

    /// Whether the calling thread is one of the pool's.
    pub(crate) fn is_here(&self) -> bool {
        self.shared.state.lock().is_member(thread::current().id())
    }

    /// From now on `monitor` looks after the pool.
    pub(crate) fn look_after_by(&self, monitor: Weak<dyn PoolMonitor>) -> Weak<dyn WatchedPool> {
        let _ = self.shared.monitor.set(monitor);
        let pool: Weak<Shared> = Arc::downgrade(&self.shared);
        pool
    }

    /// Whether this work has waited for too long at `now`.
    pub(crate) fn is_overdue(&self, since: MonotonicNanos, now: MonotonicNanos) -> bool {
        let time = self.shared.config.overload_after;
        time.is_some_and(|time| since + time <= now)
    }

    /// Jobs that have a thread, the longest first.
    pub fn holding(&self) -> Vec<BusyThread> {
        self.shared.holding()
    }

    /// Whether every thread allowed is there and busy.
    pub fn is_exhausted(&self) -> bool {
        let state = self.shared.state.lock();
        state.parked.len() + state.looking == 0 && state.threads >= self.shared.config.max_threads
    }

    /// Whether jobs wait and no thread is free, or on its way, to take them.
    pub(crate) fn is_stuck(&self) -> bool {
        if self.shared.pending.load(Ordering::Acquire) == 0 {
            return false;
        }
        self.shared.state.lock().is_stuck()
    }

    /// Counts.
    pub fn stats(&self) -> WorkerStats {
        let state = self.shared.state.lock();
        WorkerStats {
            threads: state.threads,
            idle: state.parked.len(),
            queued: state.queue.len(),
            ended_waits: self.shared.waits.ended(),
            ..state.stats
        }
    }
}

impl fmt::Debug for WorkerPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerPool")
            .field("config", &self.shared.config)
            .field("stats", &self.stats())
            .finish()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::sync::Mutex;
    use std::{sync::mpsc, time::Instant};

    /// Tells that it was run.
    struct Tell(Mutex<mpsc::Sender<()>>);

    impl Job for Tell {
        fn run(self: Arc<Self>) {
            self.0.lock().send(()).unwrap();
        }
    }

    #[test]
    fn who_has_led_parks_at_once_and_others_look_around_before() {
        let pool = WorkerPool::builder().max_threads(1).build();
        let (tell, told) = mpsc::channel();
        let job = Arc::new(Tell(Mutex::new(tell)));
        let looks_after = |leads: bool| {
            let submitted = if leads {
                pool.submit_leader(job.clone())
            } else {
                pool.submit(job.clone())
            };
            assert!(submitted.is_ok());
            told.recv().unwrap();
            // It parks in the end.
            let begin = Instant::now();
            while pool.stats().idle == 0 {
                assert!(begin.elapsed() < Duration::from_secs(60));
                thread::yield_now();
            }
            std::mem::take(&mut pool.shared.state.lock().spins)
        };
        assert_eq!(looks_after(true), 0);
        assert_eq!(looks_after(false), 1);
        assert_eq!(looks_after(true), 0);
        assert_eq!(looks_after(true), 0);
        assert_eq!(looks_after(false), 1);
        pool.close();
    }
}

//! Jobs of an executor that is not ours, and the threads that run them.
//!
//! An [`ExecutorQueue`] is told before a job is submitted to the executor, and runs the job on the executor's
//! thread. From that it knows how long jobs wait for a thread, which waits of these threads may be ended, and
//! which jobs occupy them: the same [monitor](crate::poller::blocking_monitor) and
//! [list of waits](crate::thread_pool::waits) as for a pool.
//!
//! Jobs may start in any order, so a queue of submission times would not do. Jobs are counted in cohorts:
//!
//! 1. Submitter: increments the count of the open cohort.
//! 2. Executor's thread: decrements the count of that cohort when the job starts.
//! 3. Monitor: closes the open cohort from time to time and opens an empty one. The jobs of a closed cohort
//!    have waited at least since it was closed. If no cohort is empty, the open one stays open.
//!
//! While the monitor rests each cohort has the flag [`CALLS`]. Count and flag share one word, and the monitor
//! sets the flag only where the count is zero. So the monitor sees a job, or the job sees the flag and calls
//! the monitor.

use std::{
    cell::RefCell,
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use crate::{
    sync::{AtomicU32, AtomicUsize, Mutex, Ordering},
    sys::{MonotonicNanos, coarse_millis},
    thread_pool::{
        waits::{self, Waits},
        watched::{Backlog, BusyThread, Doing, PAUSES, PoolMonitor, WatchedPool, longest_first},
    },
};

/// Cohorts of jobs, of a tenth of the time after which these are overdue each: enough for three times that.
const COHORTS: usize = if cfg!(loom) { 2 } else { 32 };
/// In the word of a cohort: who adds a job has to call the monitor. The rest is how many jobs wait.
const CALLS: u32 = 1 << 31;

/// Threads that belong to an executor from elsewhere. Clones stand for the same threads.
///
/// [Waits](crate::begin_wait) of jobs that any [`ExecutorQueue`] of these threads runs are ended, the longest
/// first, when jobs of any such queue have waited for a thread for too long.
#[derive(Clone, Default)]
pub struct ExecutorThreads {
    shared: Arc<Threads>,
}

struct Threads {
    waits: Arc<Waits>,
    /// What those that have run jobs do. A thread that ends lets go of its own.
    doing: Mutex<Vec<Weak<Doing>>>,
}

/// The jobs of one user that wait for [`ExecutorThreads`]. Clones share the queue, which holds no job: it
/// counts them.
#[derive(Clone)]
pub struct ExecutorQueue {
    shared: Arc<Queue>,
}

struct Queue {
    threads: ExecutorThreads,
    overload_after: Option<Duration>,
    /// How many jobs of each cohort have not started.
    cohorts: [AtomicU32; COHORTS],
    /// The cohort of jobs that are handed over now.
    open: AtomicUsize,
    ages: Mutex<Ages>,
    monitor: OnceLock<Weak<dyn PoolMonitor>>,
}

/// What the monitor knows of the cohorts.
struct Ages {
    /// Since when none is added to; `None` for those that are empty, and for the open one.
    closed: [Option<MonotonicNanos>; COHORTS],
    /// When the latest was closed.
    latest: Option<MonotonicNanos>,
    /// The marks are set, or some of them.
    rested: bool,
}

/// A job that was counted by a [`ExecutorQueue`], which is to learn that it starts, or never will.
#[derive(Clone, Copy, Debug)]
#[must_use = "the job counts as one that waits until it is run or withdrawn"]
pub struct Ticket(usize);

/// What a thread has to do with some threads, as one of which it runs jobs.
struct ThreadSlot {
    threads: Arc<Threads>,
    doing: Arc<Doing>,
    /// Lies with the thread's waits while a job runs.
    waits: Option<Arc<Waits>>,
}

thread_local! {
    /// The slots of this thread that no job uses now.
    static THREAD_SLOTS: RefCell<Vec<ThreadSlot>> = const { RefCell::new(Vec::new()) };
}

impl Default for Threads {
    fn default() -> Self {
        Self {
            waits: Arc::new(Waits::new()),
            doing: Mutex::new(Vec::new()),
        }
    }
}

impl ExecutorThreads {
    /// Jobs that have one of these threads, the longest first.
    pub fn holding(&self) -> Vec<BusyThread> {
        let now = coarse_millis();
        let doing = self.shared.doing.lock();
        let doing = doing.iter().filter_map(Weak::upgrade);
        longest_first(doing.filter_map(|doing| doing.holding(now)))
    }

    /// A slot of the calling thread.
    fn slot(&self) -> Option<ThreadSlot> {
        let threads = &self.shared;
        THREAD_SLOTS
            .try_with(|slots| {
                let mut slots = slots.borrow_mut();
                let own = |slot: &ThreadSlot| Arc::ptr_eq(&slot.threads, threads);
                match slots.iter().position(own) {
                    Some(place) => slots.swap_remove(place),
                    None => {
                        slots.retain(|slot| Arc::strong_count(&slot.threads) > 1);
                        drop(slots);
                        ThreadSlot::new(threads)
                    }
                }
            })
            .ok()
    }
}

impl ThreadSlot {
    #[cold]
    fn new(threads: &Arc<Threads>) -> Self {
        let doing = Arc::new(Doing::default());
        let mut all = threads.doing.lock();
        all.retain(|doing| doing.strong_count() > 0);
        all.push(Arc::downgrade(&doing));
        drop(all);
        Self {
            threads: threads.clone(),
            doing,
            waits: Some(threads.waits.clone()),
        }
    }
}

/// A job runs; it does no more when this is dropped.
struct Running {
    slot: Option<ThreadSlot>,
    /// Whose waits this thread's were before: a job may run inside of another.
    before: Option<Arc<Waits>>,
}

impl Running {
    fn begin(mut slot: ThreadSlot, id: u64) -> Self {
        slot.doing.begin(id);
        let before = waits::set_current(slot.waits.take());
        Self {
            slot: Some(slot),
            before,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let own = waits::set_current(self.before.take());
        if let Some(mut slot) = self.slot.take() {
            slot.doing.end();
            slot.waits = own;
            let _ = THREAD_SLOTS.try_with(|slots| slots.borrow_mut().push(slot));
        }
    }
}

impl ExecutorQueue {
    /// A queue of jobs for these threads, which count as overdue when they have waited for one for so long.
    /// That counts for queues that a group [looks after](crate::PollerGroup::look_after_executor).
    pub fn new(threads: &ExecutorThreads, overload_after: Option<Duration>) -> Self {
        let mark = if overload_after.is_some() { CALLS } else { 0 };
        Self {
            shared: Arc::new(Queue {
                threads: threads.clone(),
                overload_after,
                cohorts: std::array::from_fn(|_| AtomicU32::new(mark)),
                open: AtomicUsize::new(0),
                ages: Mutex::new(Ages {
                    closed: [None; COHORTS],
                    latest: None,
                    rested: true,
                }),
                monitor: OnceLock::new(),
            }),
        }
    }

    /// A job is about to be handed over. Does not block.
    pub fn submit(&self) -> Ticket {
        let (ticket, calls) = self.count();
        if calls {
            self.call_monitor(ticket);
        }
        ticket
    }

    /// Counts a job; whether the monitor has to be called for it.
    #[inline]
    pub(crate) fn count(&self) -> (Ticket, bool) {
        // The monitor may close the cohort meanwhile: the job counts as a little older.
        let ticket = Ticket(self.shared.open.load(Ordering::Relaxed));
        let before = self.cohort(ticket).fetch_add(1, Ordering::AcqRel);
        (ticket, before & CALLS != 0)
    }

    /// The job starts, on this thread: runs it.
    pub fn run<T>(&self, ticket: Ticket, id: u64, job: impl FnOnce() -> T) -> T {
        self.withdraw(ticket);
        let running = self.shared.threads.slot();
        let running = running.map(|slot| Running::begin(slot, id));
        let returned = job();
        drop(running);
        returned
    }

    /// The job waits for no thread any more.
    pub fn withdraw(&self, ticket: Ticket) {
        self.cohort(ticket).fetch_sub(1, Ordering::AcqRel);
    }

    /// The threads that it waits for.
    pub fn threads(&self) -> &ExecutorThreads {
        &self.shared.threads
    }

    /// From now on `monitor` looks after the queue.
    pub(crate) fn look_after_by(&self, monitor: Weak<dyn PoolMonitor>) -> Weak<dyn WatchedPool> {
        let _ = self.shared.monitor.set(monitor);
        let queue: Weak<Queue> = Arc::downgrade(&self.shared);
        queue
    }

    /// The queue as the monitor sees it.
    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn watched(&self) -> &dyn WatchedPool {
        &*self.shared
    }

    fn cohort(&self, ticket: Ticket) -> &AtomicU32 {
        &self.shared.cohorts[ticket.0]
    }

    #[cold]
    fn call_monitor(&self, ticket: Ticket) {
        self.cohort(ticket).fetch_and(!CALLS, Ordering::AcqRel);
        let monitor = self.shared.monitor.get().and_then(Weak::upgrade);
        if monitor.is_some_and(|monitor| !monitor.request()) {
            // The next job tries again.
            self.cohort(ticket).fetch_or(CALLS, Ordering::AcqRel);
        }
    }
}

impl Queue {
    /// How many jobs wait, by cohort.
    fn counts(&self) -> [usize; COHORTS] {
        let count = |cohort: &AtomicU32| (cohort.load(Ordering::Acquire) & !CALLS) as usize;
        std::array::from_fn(|place| count(&self.cohorts[place]))
    }

    /// Notes the ages of the cohorts; how many jobs have waited for longer than `time`.
    fn judge(
        &self,
        ages: &mut Ages,
        counts: &[usize; COHORTS],
        now: MonotonicNanos,
        time: Duration,
    ) -> usize {
        let open = self.open.load(Ordering::Relaxed);
        let mut overdue = 0;
        for (place, &count) in counts
            .iter()
            .enumerate()
            .filter(|&(place, _)| place != open)
        {
            let closed = &mut ages.closed[place];
            // A job that was late to be counted is as old as this look.
            *closed = (count > 0).then(|| closed.unwrap_or(now));
            if closed.is_some_and(|closed| closed + time <= now) {
                overdue += count;
            }
        }
        let due = ages
            .latest
            .is_none_or(|latest| latest + time / PAUSES <= now);
        if counts[open] > 0 && due {
            let empty = |&place: &usize| place != open && counts[place] == 0;
            if let Some(next) = (0..COHORTS).find(empty) {
                ages.closed[open] = Some(now);
                ages.latest = Some(now);
                self.open.store(next, Ordering::Relaxed);
            }
        }
        overdue
    }
}

impl WatchedPool for Queue {
    fn backlog(&self, now: MonotonicNanos) -> Backlog {
        let Some(time) = self.overload_after else {
            return Backlog::default();
        };
        let mut ages = self.ages.lock();
        if std::mem::take(&mut ages.rested) {
            for cohort in &self.cohorts {
                cohort.fetch_and(!CALLS, Ordering::AcqRel);
            }
        }
        let counts = self.counts();
        let overdue = self.judge(&mut ages, &counts, now, time);
        Backlog {
            overdue,
            waits: counts.iter().any(|&count| count > 0),
            stuck: overdue > 0,
        }
    }

    fn end_waits(&self, overdue: usize, now: MonotonicNanos) -> usize {
        let time = self.overload_after.unwrap_or_default();
        let waits = &self.threads.shared.waits;
        waits.end(overdue, now, time / PAUSES)
    }

    fn holding(&self) -> Vec<BusyThread> {
        self.threads.holding()
    }

    fn rest(&self) -> bool {
        if self.overload_after.is_none() {
            return true;
        }
        let mut ages = self.ages.lock();
        // The next look takes all marks away, also where not all could be set.
        ages.rested = true;
        let set = |cohort: &AtomicU32| {
            let set = cohort.compare_exchange(0, CALLS, Ordering::AcqRel, Ordering::Acquire);
            set.is_ok() || set == Err(CALLS)
        };
        let all = self.cohorts.iter().all(set);
        if all {
            ages.closed = [None; COHORTS];
        }
        all
    }
}

impl fmt::Debug for ExecutorThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorThreads")
            .field("holding", &self.holding())
            .finish()
    }
}

impl fmt::Debug for ExecutorQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecutorQueue")
            .field("waiting", &self.shared.counts().iter().sum::<usize>())
            .field("overload_after", &self.shared.overload_after)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::{Waiter, begin_wait};

    const TIME: Duration = Duration::from_millis(100);
    const STEP: Duration = Duration::from_millis(10);

    fn queue() -> ExecutorQueue {
        ExecutorQueue::new(&ExecutorThreads::default(), Some(TIME))
    }

    fn overdue(queue: &ExecutorQueue, now: MonotonicNanos) -> usize {
        queue.watched().backlog(now).overdue
    }

    #[test]
    fn jobs_are_overdue_whatever_others_do() {
        let queue = queue();
        let begin = MonotonicNanos::now();
        let old = [queue.submit(), queue.submit()];
        // Others come and start all the time.
        for n in 0..10 {
            assert_eq!(overdue(&queue, begin + STEP * n), 0, "{n}");
            queue.run(queue.submit(), 1, || ());
        }
        let now = begin + TIME;
        assert_eq!(overdue(&queue, now), 2);
        queue.run(old[0], 1, || ());
        assert_eq!(overdue(&queue, now), 1);
        queue.withdraw(old[1]);
        let backlog = queue.watched().backlog(now + TIME * 9);
        assert_eq!(backlog, Backlog::default());
    }

    #[test]
    fn jobs_of_more_cohorts_than_there_are_wait_for_the_older_ones() {
        let queue = queue();
        let begin = MonotonicNanos::now();
        let mut now = begin;
        let mut tickets = Vec::new();
        for _ in 0..2 * COHORTS {
            tickets.push(queue.submit());
            now = now + STEP;
            overdue(&queue, now);
        }
        now = now + TIME;
        let seen = overdue(&queue, now);
        assert_eq!(seen, COHORTS - 1);
        for ticket in tickets.drain(..seen) {
            queue.withdraw(ticket);
        }
        assert_eq!(overdue(&queue, now), 0);
        assert_eq!(overdue(&queue, now + TIME), tickets.len());
    }

    #[test]
    fn without_a_time_nothing_is_overdue_and_the_monitor_is_not_called() {
        let queue = ExecutorQueue::new(&ExecutorThreads::default(), None);
        assert!(!queue.count().1);
        let later = MonotonicNanos::now() + TIME * 99;
        assert_eq!(queue.watched().backlog(later), Backlog::default());
        assert!(queue.watched().rest());
        assert!(!queue.count().1);
    }

    #[test]
    fn the_first_job_after_a_rest_calls() {
        let queue = queue();
        let (first, calls) = queue.count();
        assert!(calls, "the monitor has not begun");
        assert!(queue.watched().backlog(MonotonicNanos::now()).waits);
        assert!(!queue.watched().rest(), "a job waits");
        queue.withdraw(first);
        overdue(&queue, MonotonicNanos::now());
        let (second, calls) = queue.count();
        assert!(!calls, "it looks anyway");
        queue.withdraw(second);
        assert!(queue.watched().rest());
        assert!(queue.count().1);
    }

    struct Nothing;

    impl Waiter for Nothing {
        fn wake(&self) {}
    }

    #[test]
    fn waits_of_jobs_are_those_of_their_threads() {
        let (outer, inner) = (queue(), queue());
        let other_user = ExecutorQueue::new(outer.threads(), Some(TIME));
        let later = MonotonicNanos::now() + TIME;
        assert!(!begin_wait(Arc::new(Nothing)).may_be_ended());
        outer.run(outer.submit(), 7, || {
            inner.run(inner.submit(), 8, || {
                let waiting = begin_wait(Arc::new(Nothing));
                assert_eq!(outer.watched().end_waits(1, later), 0);
                assert_eq!(inner.watched().end_waits(1, later), 1);
                assert!(waiting.finish());
                assert_eq!(inner.threads().holding()[0].id, 8);
            });
            let waiting = begin_wait(Arc::new(Nothing));
            assert_eq!(other_user.watched().end_waits(1, later), 1);
            assert!(waiting.finish());
            assert_eq!(other_user.threads().holding()[0].id, 7);
            assert!(inner.threads().holding().is_empty());
        });
        let unwound =
            crate::contain::contained(|| outer.run(outer.submit(), 9, || panic!("as asked")));
        assert!(unwound.is_err());
        assert!(outer.threads().holding().is_empty());
        assert!(!begin_wait(Arc::new(Nothing)).may_be_ended());
    }

    #[test]
    fn a_thread_keeps_one_seat_and_lets_go_of_it() {
        let queue = queue();
        let doing = || queue.shared.threads.shared.doing.lock().clone();
        for _ in 0..10 {
            queue.run(queue.submit(), 1, || ());
        }
        assert_eq!(doing().len(), 1);
        let thread = std::thread::spawn({
            let queue = queue.clone();
            move || queue.run(queue.submit(), 1, || ())
        });
        thread.join().unwrap();
        let there = doing()
            .iter()
            .filter(|doing| doing.strong_count() > 0)
            .count();
        assert_eq!(there, 1);
    }
}

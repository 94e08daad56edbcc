//! Several pollers with their threads.

pub(crate) mod balance;
pub(crate) mod handle;
pub(crate) mod registration;

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use crate::{
    Entry, Interest, Operator, Overload, PollerHandle, Registration,
    group::balance::{Balance, Picker},
    poller::{
        Poller,
        blocking_monitor::Monitor,
        ending_runs::EndingRuns,
        reserve::{MOST_IN_RESERVE, MOST_WAITING},
    },
    reactor::stats::GroupStats,
    sync::{AtomicUsize, Ordering},
    thread_pool::{WorkerPool, executor_threads::ExecutorQueue},
};

/// More than any machine has processors for.
const MOST_POLLERS: usize = 8192;

/// A number of pollers that share a pool of threads. Clones share the group; when the last one is
/// dropped, the group is closed without waiting for it.
///
/// # Examples
///
/// ```
/// use poller::{Balance, PollerGroup};
///
/// let group = PollerGroup::new(2, Balance::LeastRegistered)?;
/// assert_eq!(group.len(), 2);
/// group.close();
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PollerGroup {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    handles: Vec<PollerHandle>,
    picker: Picker,
    workers: WorkerPool,
    reserve: WorkerPool,
    monitor: Arc<Monitor>,
}

/// Builds a [`PollerGroup`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct PollerGroupBuilder {
    pollers: usize,
    balance: Balance,
    max_threads: usize,
    keep_alive: Duration,
    slow_after: Duration,
    overload_after: Option<Duration>,
    busy_poll: Option<Duration>,
    name: String,
}

impl PollerGroup {
    /// A group of `threads` pollers with the default limits.
    ///
    /// # Errors
    ///
    /// As [`PollerGroupBuilder::build`].
    pub fn new(threads: usize, balance: Balance) -> io::Result<Self> {
        Self::builder().pollers(threads).balance(balance).build()
    }

    /// A group with other than the default limits.
    pub fn builder() -> PollerGroupBuilder {
        PollerGroupBuilder::default()
    }

    /// The process-wide group: started by the first call, never closed, one poller per four
    /// processors.
    ///
    /// # Errors
    ///
    /// As [`PollerGroupBuilder::build`], if this call is the one that starts it.
    pub fn global() -> io::Result<&'static Self> {
        static GLOBAL: OnceLock<PollerGroup> = OnceLock::new();
        if let Some(group) = GLOBAL.get() {
            return Ok(group);
        }
        let group = Self::builder().build()?;
        // A group that lost the race is dropped, hence closed.
        Ok(GLOBAL.get_or_init(|| group))
    }

    /// Registers an operator with the poller the balance picks; see [`PollerHandle::register`].
    ///
    /// # Errors
    ///
    /// As [`PollerHandle::register`].
    pub fn register(
        &self,
        operator: Arc<dyn Operator>,
        interest: Interest,
    ) -> io::Result<Registration> {
        self.pick().register(operator, interest)
    }

    /// Registers an entry with the poller the balance picks; see
    /// [`PollerHandle::register_entry`].
    ///
    /// # Errors
    ///
    /// As [`PollerHandle::register_entry`].
    pub fn register_entry(
        &self,
        entry: Arc<Entry>,
        interest: Interest,
    ) -> io::Result<Registration> {
        self.pick().register_entry(entry, interest)
    }

    /// The poller the balance picks next. One that has died is left out as long as another lives.
    pub fn pick(&self) -> PollerHandle {
        let handles = &self.shared.handles;
        let index = self.shared.picker.pick(handles.len(), |index| {
            let poller = handles[index].inner();
            if poller.is_alive() {
                poller.registry.len()
            } else {
                usize::MAX
            }
        });
        let from_there = (index..handles.len()).chain(0..index);
        let alive = from_there
            .into_iter()
            .find(|&index| handles[index].inner().is_alive());
        handles[alive.unwrap_or(index)].clone()
    }

    /// All pollers, by index.
    pub fn handles(&self) -> &[PollerHandle] {
        &self.shared.handles
    }

    /// The number of pollers, at least 1.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.shared.handles.len()
    }

    /// Closes the group: every operator is detached and told so, then all threads end.
    ///
    /// Blocks until callbacks under way have returned and every thread has ended; called on one of
    /// the group's own threads (in a callback) it only starts this and returns. May be called
    /// again. Scheduled closures that still wait are dropped.
    pub fn close(&self) {
        if self.is_inherited() {
            return;
        }
        let shared = &self.shared;
        shared.close();
        if !shared.workers.is_here() && !shared.reserve.is_here() {
            shared.workers.join_after_close();
            shared.reserve.join_after_close();
            shared.monitor.join();
        }
    }

    /// Whether this process was forked from the one that made the group. It has none of the group's threads
    /// then, and what the group watches is the other process's: closing and detaching only let go of what
    /// is held here, and nothing can be registered.
    pub fn is_inherited(&self) -> bool {
        let first = self.shared.handles.first();
        first.is_some_and(|handle| handle.inner().is_inherited())
    }

    /// Whether [`close`](Self::close) was called.
    pub fn is_closed(&self) -> bool {
        self.shared
            .handles
            .iter()
            .all(|handle| handle.inner().is_closing())
    }

    /// Counts of all pollers and of the threads.
    pub fn stats(&self) -> GroupStats {
        GroupStats {
            pollers: self
                .shared
                .handles
                .iter()
                .map(PollerHandle::stats)
                .collect(),
            workers: self.shared.workers.stats(),
            reserve: self.shared.reserve.stats(),
            holding: self.shared.monitor.holding(),
        }
    }

    /// Has the group's monitor look after another pool, whose jobs may have to wait for a thread: see
    /// [`WorkerPoolBuilder::overload_after`](crate::WorkerPoolBuilder::overload_after).
    pub fn look_after(&self, pool: &WorkerPool) {
        let monitor = &self.shared.monitor;
        monitor.look_after(pool.look_after_by(monitor.weak()));
    }

    /// As [`look_after`](Self::look_after), of jobs for threads that are not the crate's.
    pub fn look_after_executor(&self, queue: &ExecutorQueue) {
        let monitor = &self.shared.monitor;
        monitor.look_after(queue.look_after_by(monitor.weak()));
    }

    /// Has `report` called, on the monitor's thread, when runs, or jobs of a pool that the group
    /// [looks after](Self::look_after), have waited for a thread for too long; no more than once in ten
    /// seconds. The first call of this counts.
    pub fn report_overload(&self, report: fn(&Overload)) {
        self.shared.monitor.relief.report_to(report);
    }

    /// Whether all pollers work.
    ///
    /// # Errors
    ///
    /// The error that ended a poller: its operators were detached and told so, and new ones go to
    /// the others.
    pub fn health(&self) -> io::Result<()> {
        self.shared
            .handles
            .iter()
            .try_for_each(|handle| handle.inner().health())
    }
}

impl Shared {
    fn close(&self) {
        for handle in &self.handles {
            if handle.inner().is_inherited() {
                return;
            }
            handle.inner().close();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

impl PollerGroupBuilder {
    /// The number of pollers, from 1 to 8192; by default one per four processors.
    pub fn pollers(mut self, pollers: usize) -> Self {
        self.pollers = pollers;
        self
    }

    /// How operators are spread; [`Balance::RoundRobin`] by default.
    pub fn balance(mut self, balance: Balance) -> Self {
        self.balance = balance;
        self
    }

    /// The most threads at once, leaders included; 512 by default and never fewer than pollers.
    /// Once as many callbacks wait as there are threads, further ones wait for one to return;
    /// the monitor polls meanwhile, at each tick ([`slow_after`](Self::slow_after)), and a reserve of up to
    /// four more threads makes the runs that [are brief](Operator::is_brief) or [only end](Operator::is_ending)
    /// something, and calls the scheduled closures.
    pub fn max_threads(mut self, threads: usize) -> Self {
        self.max_threads = threads;
        self
    }

    /// How long a thread without work stays; 10 s by default.
    pub fn keep_alive(mut self, time: Duration) -> Self {
        self.keep_alive = time;
        self
    }

    /// How often callbacks are checked, and so (half to one and a half times) how long one may
    /// wait without a call of [`before_blocking`](crate::before_blocking) before the leadership goes to
    /// another thread; 1 ms by default, at least 100 us and at most a minute. Where no callback was
    /// found to wait for a second looks are half as often, after ten seconds, and before the first, a quarter.
    pub fn slow_after(mut self, time: Duration) -> Self {
        self.slow_after = time.clamp(Duration::from_micros(100), Duration::from_secs(60));
        self
    }

    /// How long runs wait for a thread, when all are taken, before [waits](crate::begin_wait) of these
    /// threads are ended for them, the longest first; `None` for never. 100 ms by default. Waits that are not
    /// announced cannot be ended, nor are those that began within the last tenth of this time.
    pub fn overload_after(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.overload_after = time.into();
        self
    }

    /// How long a poller looks for events again and again before it sleeps. Off by default: it
    /// trades a processor for latency.
    pub fn busy_poll(mut self, time: Option<Duration>) -> Self {
        self.busy_poll = time;
        self
    }

    /// The prefix of the threads' names; `poller` by default. Zero bytes, which the system does not
    /// allow there, are left out.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.replace('\0', "");
        self
    }

    /// Starts the group: two descriptors and a thread per poller.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for 0 pollers and for more than 8192; otherwise what the system reports for a
    /// new epoll, eventfd or thread.
    pub fn build(self) -> io::Result<PollerGroup> {
        if self.pollers == 0 || self.pollers > MOST_POLLERS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a group of {} pollers was asked for; ask for at least 1 and at most \
                     {MOST_POLLERS}, one per four processors is the default",
                    self.pollers
                ),
            ));
        }
        let workers = WorkerPool::builder()
            .max_threads(self.max_threads.max(self.pollers))
            .keep_alive(self.keep_alive)
            .overload_after(self.overload_after)
            .name(&self.name)
            .build();
        let reserve = WorkerPool::builder()
            .max_threads(MOST_IN_RESERVE)
            .max_queued(MOST_WAITING)
            .keep_alive(self.keep_alive)
            .overload_after(self.overload_after)
            .name(&format!("{}-reserve", self.name))
            .build();
        let monitor = Arc::new(Monitor::new(self.slow_after, &self.name));
        for pool in [&workers, &reserve] {
            monitor.look_after(pool.look_after_by(monitor.weak()));
        }
        let left = Arc::new(AtomicUsize::new(self.pollers));
        let ends = Arc::new(EndingRuns::default());
        let mut handles = Vec::new();
        for index in 0..self.pollers {
            let (workers, reserve) = (workers.clone(), reserve.clone());
            let (monitor, left) = (monitor.clone(), left.clone());
            let (end_workers, end_reserve) = (workers.clone(), reserve.clone());
            let end_monitor = monitor.clone();
            let on_end = Box::new(move || {
                // The last one out puts out the light.
                if left.fetch_sub(1, Ordering::AcqRel) == 1 {
                    end_workers.close_later();
                    end_reserve.close_later();
                    end_monitor.stop();
                }
            });
            let reserve = (reserve, ends.clone());
            let poller = Poller::new(
                index,
                workers,
                reserve,
                monitor,
                self.slow_after,
                self.busy_poll,
                on_end,
            )?;
            handles.push(PollerHandle::new(poller));
        }
        monitor.pollers(
            handles
                .iter()
                .map(|handle| Arc::downgrade(handle.inner()))
                .collect(),
        );
        let group = PollerGroup {
            shared: Arc::new(Shared {
                handles,
                picker: Picker::new(self.balance),
                workers,
                reserve,
                monitor,
            }),
        };
        match group
            .handles()
            .iter()
            .try_for_each(|handle| handle.inner().start())
        {
            Ok(()) => Ok(group),
            Err(error) => {
                group.shared.close();
                group.shared.workers.abandon();
                group.shared.reserve.abandon();
                group.shared.monitor.stop();
                Err(error)
            }
        }
    }
}

impl Default for PollerGroupBuilder {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self {
            pollers: (processors / 4).max(1),
            balance: Balance::default(),
            max_threads: 512,
            keep_alive: Duration::from_secs(10),
            slow_after: Duration::from_millis(1),
            overload_after: Some(Duration::from_millis(100)),
            busy_poll: None,
            name: "poller".to_owned(),
        }
    }
}

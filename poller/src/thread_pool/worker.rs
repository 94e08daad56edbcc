//! The threads of a pool and the queue that they serve.
//!
//! The queue, the counts and the wake-up rules share one lock. The rules:
//!
//! * A worker without a job yields a few times before it parks, so a steady stream of jobs costs no
//!   wake-ups. A worker whose last job was to lead a poller parks at once: such jobs come when a run blocks,
//!   not in a stream.
//! * The worker that parked last is woken first: its stack and its share of the caches are warm, and
//!   those that are not needed any more stay parked until they leave.
//! * At most one wake-up is in flight, or one for each leader that is called for. It ends when the woken worker
//!   looks at the queue.
//! * A worker that takes a job and leaves more in the queue wakes the next worker, unless one is spinning.
//! * If no worker is parked, a thread is started, up to the cap. If the system refuses one, the existing
//!   threads serve the queue.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use crate::{
    contain::contained,
    sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, thread},
    sys::{MonotonicNanos, coarse_millis},
    thread_pool::{
        waits::{self, Waits},
        watched::{Backlog, BusyThread, Doing, PAUSES, PoolMonitor, WatchedPool, longest_first},
    },
};

/// How often a worker looks around before it parks.
const SPINS: u32 = if cfg!(loom) { 1 } else { 6 };

/// Something a [`WorkerPool`](crate::WorkerPool) runs.
pub trait Job: Send + Sync + 'static {
    /// Called once per submission, on a thread of the pool. May block.
    fn run(self: Arc<Self>);

    /// A number by which [`BusyThread`] names it; 0 for none.
    fn id(&self) -> u64 {
        0
    }
}

/// A snapshot of a [`WorkerPool`](crate::WorkerPool).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Threads alive.
    pub threads: usize,
    /// Threads parked, waiting for a job.
    pub idle: usize,
    /// Jobs waiting for a thread.
    pub queued: usize,
    /// The most threads that were alive at once.
    pub peak_threads: usize,
    /// Jobs ever accepted.
    pub submitted: u64,
    /// Parked threads woken.
    pub wakes: u64,
    /// Jobs that panicked.
    pub panics: u64,
    /// Submissions that found every thread busy and the cap reached.
    pub cap_hits: u64,
    /// Threads the system refused to start.
    pub spawn_failures: u64,
    /// Waits that were ended because jobs had waited for a thread for too long.
    pub ended_waits: u64,
}

/// The limits of a pool: see [`WorkerPoolBuilder`](crate::WorkerPoolBuilder).
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) max_threads: usize,
    pub(super) keep_alive: Duration,
    pub(super) max_queued: usize,
    pub(super) overload_after: Option<Duration>,
    pub(super) name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_threads: 512,
            keep_alive: Duration::from_secs(10),
            max_queued: usize::MAX,
            overload_after: Some(Duration::from_millis(100)),
            name: "worker".to_owned(),
        }
    }
}

pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// A thread has left, was started or was joined: for those that join.
    pub(super) ended: Condvar,
    /// Length of the queue, for looking around without the lock.
    pub(super) pending: AtomicUsize,
    pub(super) waits: Arc<Waits>,
    /// Who finds out that jobs wait for too long.
    pub(super) monitor: OnceLock<Weak<dyn PoolMonitor>>,
    pub(super) config: Config,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) queue: VecDeque<Queued>,
    pub(super) threads: usize,
    /// Parked threads, the latest last. The thread that wakes one removes it.
    pub(super) parked: Vec<Arc<Parker>>,
    /// Threads looking around before they park.
    pub(super) looking: usize,
    /// Parked threads that were notified, and threads that are being started.
    pub(super) waking: usize,
    /// Threads being started, whose handles are not in the list yet.
    pub(super) starting: usize,
    /// Callers of `close` inside a join.
    pub(super) joining: usize,
    pub(super) closed: bool,
    /// The monitor has been called because jobs wait.
    pub(super) watched: bool,
    pub(super) next_id: u64,
    pub(super) handles: Vec<(u64, thread::JoinHandle<()>)>,
    /// The threads that are running.
    pub(super) members: Vec<Arc<Parker>>,
    /// Threads that have left and wait to be joined.
    pub(super) left: Vec<u64>,
    pub(super) stats: WorkerStats,
    /// How often a thread has looked around.
    #[cfg(test)]
    pub(super) spins: u64,
    /// Why the latest thread could not be started.
    pub(super) start_error: Option<io::Error>,
}

/// A job that waits for a thread.
pub(super) struct Queued {
    pub(super) job: Arc<dyn Job>,
    /// It is to lead a poller.
    pub(super) leads: bool,
    /// When the monitor first saw it wait.
    pub(super) seen: Option<MonotonicNanos>,
}

impl Queued {
    pub(super) fn new(job: Arc<dyn Job>, leads: bool) -> Self {
        Self {
            job,
            leads,
            seen: None,
        }
    }
}

/// Where a thread parks, and how other threads know it.
pub(super) struct Parker {
    id: u64,
    thread: thread::ThreadId,
    wake: Condvar,
    doing: Doing,
}

impl State {
    pub(super) fn is_member(&self, thread: thread::ThreadId) -> bool {
        self.members.iter().any(|parker| parker.thread == thread)
    }

    /// How many wake-ups may be in flight: leaders that were called for together come together.
    fn wakes_at_once(&self) -> usize {
        self.queue
            .iter()
            .take_while(|queued| queued.leads)
            .count()
            .max(1)
    }

    /// Whether jobs wait and no thread is free, or on its way, to take them.
    pub(super) fn is_stuck(&self) -> bool {
        !self.queue.is_empty() && self.parked.is_empty() && self.looking == 0 && self.waking == 0
    }
}

impl WatchedPool for Shared {
    /// Those that lead pollers are not counted.
    fn backlog(&self, now: MonotonicNanos) -> Backlog {
        let mut state = self.state.lock();
        let time = self.config.overload_after;
        state.watched = state.is_stuck() && time.is_some();
        let Some(time) = time.filter(|_| state.watched) else {
            return Backlog::default();
        };
        let unseen = |queued: &&mut Queued| queued.seen.is_none();
        for queued in state.queue.iter_mut().rev().take_while(unseen) {
            queued.seen = Some(now);
        }
        let overdue = |queued: &&Queued| queued.seen.is_some_and(|seen| seen + time <= now);
        let jobs = state.queue.iter().filter(|queued| !queued.leads);
        Backlog {
            overdue: jobs.take_while(overdue).count(),
            waits: true,
            stuck: true,
        }
    }

    fn end_waits(&self, overdue: usize, now: MonotonicNanos) -> usize {
        let Some(time) = self.config.overload_after else {
            return 0;
        };
        self.waits.end(overdue, now, time / PAUSES)
    }

    fn holding(&self) -> Vec<BusyThread> {
        let now = coarse_millis();
        let state = self.state.lock();
        longest_first(
            state
                .members
                .iter()
                .filter_map(|parker| parker.doing.holding(now)),
        )
    }

    fn rest(&self) -> bool {
        !self.state.lock().watched
    }
}

impl Shared {
    pub(super) fn new(config: Config) -> Self {
        Self {
            state: Mutex::new(State::default()),
            ended: Condvar::new(),
            pending: AtomicUsize::new(0),
            waits: Arc::new(Waits::new()),
            monitor: OnceLock::new(),
            config,
        }
    }

    pub(super) fn submit(self: &Arc<Self>, queued: Queued) -> Result<(), Arc<dyn Job>> {
        let mut state = self.state.lock();
        if state.closed || (!queued.leads && state.queue.len() >= self.config.max_queued) {
            return Err(queued.job);
        }
        if queued.leads {
            state.queue.push_front(queued);
        } else {
            state.queue.push_back(queued);
        }
        state.stats.submitted += 1;
        self.wake_worker(state);
        Ok(())
    }

    /// Wakes or starts a worker if the queue is not empty and none is on its way.
    fn wake_worker(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        self.pending.store(state.queue.len(), Ordering::Release);
        if state.queue.is_empty() || state.looking > 0 || state.waking >= state.wakes_at_once() {
            return;
        }
        if let Some(parker) = state.parked.pop() {
            state.waking += 1;
            state.stats.wakes += 1;
            drop(state);
            parker.wake.notify_one();
        } else if state.threads < self.config.max_threads {
            self.start_thread(state);
        } else {
            state.stats.cap_hits += 1;
            self.call_monitor(state);
        }
    }

    /// Jobs wait and no thread can be sent: the monitor looks how long they do.
    #[cold]
    fn call_monitor(&self, mut state: MutexGuard<'_, State>) {
        if self.config.overload_after.is_none() || std::mem::replace(&mut state.watched, true) {
            return;
        }
        drop(state);
        if let Some(monitor) = self.monitor.get().and_then(Weak::upgrade) {
            monitor.request();
        }
    }

    /// Starts a thread; the wake-up is in flight until it takes its first job.
    fn start_thread(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        state.waking += 1;
        state.threads += 1;
        state.starting += 1;
        state.stats.peak_threads = state.stats.peak_threads.max(state.threads);
        let id = state.next_id;
        state.next_id += 1;
        drop(state);
        let shared = self.clone();
        let started = thread::Builder::new()
            .name(format!("{}-{id}", self.config.name))
            .spawn(move || shared.work(id));
        let mut state = self.state.lock();
        state.starting -= 1;
        let refused = started.is_err();
        match started {
            Ok(handle) => state.handles.push((id, handle)),
            Err(error) => {
                state.waking = state.waking.saturating_sub(1);
                state.threads -= 1;
                state.stats.spawn_failures += 1;
                state.start_error = Some(error);
            }
        }
        if state.closed {
            self.ended.notify_all();
        }
        if refused {
            self.call_monitor(state);
        }
    }

    /// A thread's life.
    fn work(self: Arc<Self>, id: u64) {
        let parker = Arc::new(Parker {
            id,
            thread: thread::current().id(),
            wake: Condvar::new(),
            doing: Doing::default(),
        });
        waits::set_current(Some(self.waits.clone()));
        let mut state = self.state.lock();
        // This thread is what the wake-up in flight was about.
        state.waking = state.waking.saturating_sub(1);
        state.members.push(parker.clone());
        // When this thread ends unless it gets a job before; set when it first parks after one.
        let mut leave_at = None;
        let mut has_led = false;
        loop {
            if let Some(Queued { job, leads, .. }) = state.queue.pop_front() {
                leave_at = None;
                has_led = leads;
                self.wake_worker(state);
                if !leads {
                    parker.doing.begin(job.id());
                }
                let outcome = contained(|| job.run());
                parker.doing.end();
                state = self.state.lock();
                if let Err(thrown) = outcome {
                    state.stats.panics += 1;
                    drop(state);
                    drop(thrown);
                    state = self.state.lock();
                }
                continue;
            }
            if state.closed {
                break;
            }
            if !has_led {
                state = self.spin_for_job(state);
                if !state.queue.is_empty() || state.closed {
                    continue;
                }
            }
            // Woken when another has taken the job already, it does not stay any longer.
            let until =
                *leave_at.get_or_insert_with(|| Instant::now().checked_add(self.config.keep_alive));
            if !self.park(&mut state, &parker, until) {
                break;
            }
        }
        self.leave(state, id);
    }

    /// A few yields, until there is a job.
    fn spin_for_job<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.looking += 1;
        #[cfg(test)]
        {
            state.spins += 1;
        }
        drop(state);
        for _ in 0..SPINS {
            thread::yield_now();
            if self.pending.load(Ordering::Acquire) > 0 {
                break;
            }
        }
        state = self.state.lock();
        state.looking -= 1;
        state
    }

    /// Parks until another thread wakes this one; `false` if the time passed before that, and there
    /// is nothing to do.
    fn park(
        &self,
        state: &mut MutexGuard<'_, State>,
        parker: &Arc<Parker>,
        until: Option<Instant>,
    ) -> bool {
        state.parked.push(Arc::clone(parker));
        loop {
            let late = match until {
                Some(until) => parker.wake.wait_until(state, until).timed_out(),
                None => {
                    parker.wake.wait(state);
                    false
                }
            };
            let Some(place) = state.parked.iter().position(|other| other.id == parker.id) else {
                // Woken, if only just before the time was up: this is what the wake-up was about.
                state.waking = state.waking.saturating_sub(1);
                return true;
            };
            if late {
                state.parked.remove(place);
                return !state.queue.is_empty();
            }
        }
    }

    /// The thread ends; it joins those that left before it.
    fn leave(&self, mut state: MutexGuard<'_, State>, id: u64) {
        state.threads -= 1;
        let before = std::mem::take(&mut state.left);
        let (gone, kept) = std::mem::take(&mut state.handles)
            .into_iter()
            .partition::<Vec<_>, _>(|(id, _)| before.contains(id));
        state.handles = kept;
        state.left.push(id);
        state.members.retain(|member| member.id != id);
        drop(state);
        waits::set_current(None);
        self.ended.notify_all();
        for (_, handle) in gone {
            let _ = handle.join();
        }
    }

    pub(super) fn close(&self) {
        let parked = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.parked)
        };
        for parker in parked {
            parker.wake.notify_one();
        }
        self.ended.notify_all();
    }

    pub(super) fn join(&self) -> bool {
        let own = thread::current().id();
        let mut state = self.state.lock();
        if state.is_member(own) {
            return false;
        }
        loop {
            if let Some((_, handle)) = state.handles.pop() {
                state.joining += 1;
                drop(state);
                let _ = handle.join();
                state = self.state.lock();
                state.joining -= 1;
                self.ended.notify_all();
            } else if state.starting + state.joining > 0 {
                self.ended.wait(&mut state);
            } else {
                return true;
            }
        }
    }
}

//! A pool of threads that grows on demand: runs jobs, lends pollers their leaders.
//!
//! The queue, the counts and the wake-up rules share one lock. The rules:
//!
//! * A worker that runs out of jobs looks around for a moment (a few yields) before it parks; it
//!   stays with the queue, so a steady stream of jobs costs no wake-ups. One whose last job was to lead
//!   a poller parks at once: such jobs come when somebody waits, not in a stream, and a worker that looks
//!   around while another process has its processor keeps one that could run at once from being woken.
//! * The worker that parked last is woken first: its stack and its share of the caches are warm, and
//!   those that are not needed any more stay parked until they leave.
//! * At most one wake-up is in flight, or one for each leader that is called for. It ends when the woken worker
//!   looks at the queue.
//! * Whoever takes a job and leaves others behind passes the wake-up on, unless somebody is
//!   looking around already.
//! * With nobody to wake, a thread is started, up to the cap. If the system refuses one, the
//!   threads there are serve the queue.

pub(crate) mod executor_threads;
pub(crate) mod waits;

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use crate::{
    contain::contained,
    poller::blocking_monitor::{Backlog, Monitor, Watched},
    sync::{AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, thread},
    sys::{Moment, coarse_millis},
    thread_pool::waits::Waits,
};

/// Something a [`WorkerPool`] runs.
pub trait Job: Send + Sync + 'static {
    /// Called once per submission, on a thread of the pool. May block.
    fn run(self: Arc<Self>);

    /// A number by which [`BusyThread`] names it; 0 for none.
    fn id(&self) -> u64 {
        0
    }
}

/// Work that has a thread, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BusyThread {
    /// What it is: [`Job::id`] or [`Operator::id`](crate::Operator::id), 0 if that does not say.
    pub id: u64,
    /// Since when, to some milliseconds.
    pub time: Duration,
}

/// The time after which work is overdue, divided by this, is how old a wait must be to be ended for it, and
/// what a thread has to take the work up.
pub(crate) const PAUSES: u32 = 10;

/// How often a worker looks around before it parks.
const LOOKS: u32 = if cfg!(loom) { 1 } else { 6 };

/// A pool of threads. Clones share it.
#[derive(Clone)]
pub struct WorkerPool {
    shared: Arc<Shared>,
}

/// Builds a [`WorkerPool`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct WorkerPoolBuilder {
    max_threads: usize,
    keep_alive: Duration,
    max_queued: usize,
    overload_after: Option<Duration>,
    name: String,
}

/// A snapshot of a [`WorkerPool`].
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

impl WorkerPoolBuilder {
    /// The most threads at once, at least 1; 512 by default.
    pub fn max_threads(mut self, threads: usize) -> Self {
        self.max_threads = threads.max(1);
        self
    }

    /// How long a thread without a job stays; 10 s by default.
    pub fn keep_alive(mut self, time: Duration) -> Self {
        self.keep_alive = time;
        self
    }

    /// The most jobs that may wait; unbounded by default.
    pub fn max_queued(mut self, jobs: usize) -> Self {
        self.max_queued = jobs;
        self
    }

    /// How long jobs wait for a thread, when all are taken, before [waits](crate::begin_wait) of these threads
    /// are ended for them, the longest first; `None` for never. 100 ms by default. For a pool that a group
    /// [looks after](crate::PollerGroup::look_after).
    pub fn overload_after(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.overload_after = time.into();
        self
    }

    /// The prefix of the threads' names; `worker` by default. Zero bytes, which the system does not
    /// allow there, are left out.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.replace('\0', "");
        self
    }

    /// The pool. Threads are started by the first jobs.
    pub fn build(self) -> WorkerPool {
        WorkerPool {
            shared: Arc::new(Shared {
                state: Mutex::new(State::default()),
                ended: Condvar::new(),
                pending: AtomicUsize::new(0),
                waits: Arc::new(Waits::new()),
                monitor: OnceLock::new(),
                config: self,
            }),
        }
    }
}

impl Default for WorkerPoolBuilder {
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
    pub(crate) fn submit_if_manned(&self, job: Arc<dyn Job>) -> bool {
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

    /// Closes and drops the jobs that nobody has taken.
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
    pub(crate) fn look_after_by(&self, monitor: &Arc<Monitor>) -> Weak<dyn Watched> {
        let _ = self.shared.monitor.set(Arc::downgrade(monitor));
        let pool: Weak<Shared> = Arc::downgrade(&self.shared);
        pool
    }

    /// Whether this work has waited for too long at `now`.
    pub(crate) fn is_overdue(&self, since: Moment, now: Moment) -> bool {
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

    /// Whether jobs wait and nobody is free, or on the way, to take them.
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

struct Shared {
    state: Mutex<State>,
    /// A thread has left, was started or was joined: for those that join.
    ended: Condvar,
    /// Length of the queue, for looking around without the lock.
    pending: AtomicUsize,
    waits: Arc<Waits>,
    /// Who finds out that jobs wait for too long.
    monitor: OnceLock<Weak<Monitor>>,
    config: WorkerPoolBuilder,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    threads: usize,
    /// Parked threads, the latest last. Whoever wakes one takes it out.
    parked: Vec<Arc<Bed>>,
    /// Threads looking around before they park.
    looking: usize,
    /// Parked threads that were notified, and threads that are being started.
    waking: usize,
    /// Threads being started, whose handles are not in the list yet.
    starting: usize,
    /// Callers of `close` inside a join.
    joining: usize,
    closed: bool,
    /// The monitor has been called because jobs wait.
    watched: bool,
    next_id: u64,
    handles: Vec<(u64, thread::JoinHandle<()>)>,
    /// The threads that are running.
    members: Vec<Arc<Bed>>,
    /// Threads that have left and wait to be joined.
    left: Vec<u64>,
    stats: WorkerStats,
    /// How often a thread has looked around.
    #[cfg(test)]
    looks: u64,
    /// Why the latest thread could not be started.
    start_error: Option<io::Error>,
}

/// A job that waits for a thread.
struct Queued {
    job: Arc<dyn Job>,
    /// It is to lead a poller.
    leads: bool,
    /// When the monitor first saw it wait.
    seen: Option<Moment>,
}

impl Queued {
    fn new(job: Arc<dyn Job>, leads: bool) -> Self {
        Self {
            job,
            leads,
            seen: None,
        }
    }
}

/// A thread, as others know it; where it parks.
struct Bed {
    id: u64,
    thread: thread::ThreadId,
    wake: Condvar,
    doing: Doing,
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

impl State {
    fn is_member(&self, thread: thread::ThreadId) -> bool {
        self.members.iter().any(|bed| bed.thread == thread)
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
    fn is_stuck(&self) -> bool {
        !self.queue.is_empty() && self.parked.is_empty() && self.looking == 0 && self.waking == 0
    }
}

impl Watched for Shared {
    /// Those that lead pollers are not counted.
    fn backlog(&self, now: Moment) -> Backlog {
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

    fn end_waits(&self, overdue: usize, now: Moment) -> usize {
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
                .filter_map(|bed| bed.doing.holding(now)),
        )
    }

    fn rest(&self) -> bool {
        !self.state.lock().watched
    }
}

impl Shared {
    fn submit(self: &Arc<Self>, queued: Queued) -> Result<(), Arc<dyn Job>> {
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
        self.call_for_help(state);
        Ok(())
    }

    /// Sees to it that somebody will look at a queue that is not empty.
    fn call_for_help(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        self.pending.store(state.queue.len(), Ordering::Release);
        if state.queue.is_empty() || state.looking > 0 || state.waking >= state.wakes_at_once() {
            return;
        }
        if let Some(bed) = state.parked.pop() {
            state.waking += 1;
            state.stats.wakes += 1;
            drop(state);
            bed.wake.notify_one();
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
            monitor.watch();
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
        let bed = Arc::new(Bed {
            id,
            thread: thread::current().id(),
            wake: Condvar::new(),
            doing: Doing::default(),
        });
        waits::belong_to(Some(self.waits.clone()));
        let mut state = self.state.lock();
        // This thread is what the wake-up in flight was about.
        state.waking = state.waking.saturating_sub(1);
        state.members.push(bed.clone());
        // When this thread ends unless it gets a job before; set when it first parks after one.
        let mut leave_at = None;
        let mut has_led = false;
        loop {
            if let Some(Queued { job, leads, .. }) = state.queue.pop_front() {
                leave_at = None;
                has_led = leads;
                self.call_for_help(state);
                if !leads {
                    bed.doing.begin(job.id());
                }
                let outcome = contained(|| job.run());
                bed.doing.end();
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
                state = self.look_around(state);
                if !state.queue.is_empty() || state.closed {
                    continue;
                }
            }
            // Woken when another has taken the job already, it does not stay any longer.
            let until =
                *leave_at.get_or_insert_with(|| Instant::now().checked_add(self.config.keep_alive));
            if !self.park(&mut state, &bed, until) {
                break;
            }
        }
        self.leave(state, id);
    }

    /// A few yields, until there is a job.
    fn look_around<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state.looking += 1;
        #[cfg(test)]
        {
            state.looks += 1;
        }
        drop(state);
        for _ in 0..LOOKS {
            thread::yield_now();
            if self.pending.load(Ordering::Acquire) > 0 {
                break;
            }
        }
        state = self.state.lock();
        state.looking -= 1;
        state
    }

    /// Sleeps until somebody wakes this thread; `false` if nobody has when the time was up, and there
    /// is nothing to do.
    fn park(
        &self,
        state: &mut MutexGuard<'_, State>,
        bed: &Arc<Bed>,
        until: Option<Instant>,
    ) -> bool {
        state.parked.push(Arc::clone(bed));
        loop {
            let late = match until {
                Some(until) => bed.wake.wait_until(state, until).timed_out(),
                None => {
                    bed.wake.wait(state);
                    false
                }
            };
            let Some(place) = state.parked.iter().position(|other| other.id == bed.id) else {
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
        waits::belong_to(None);
        self.ended.notify_all();
        for (_, handle) in gone {
            let _ = handle.join();
        }
    }

    fn close(&self) {
        let parked = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.parked)
        };
        for bed in parked {
            bed.wake.notify_one();
        }
        self.ended.notify_all();
    }

    fn join(&self) -> bool {
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

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use std::sync::mpsc;

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
            std::mem::take(&mut pool.shared.state.lock().looks)
        };
        assert_eq!(looks_after(true), 0);
        assert_eq!(looks_after(false), 1);
        assert_eq!(looks_after(true), 0);
        assert_eq!(looks_after(true), 0);
        assert_eq!(looks_after(false), 1);
        pool.close();
    }
}

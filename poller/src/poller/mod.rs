//! One poller: the state that its threads share.

pub(crate) mod blocking_monitor;
pub(crate) mod ending_runs;
pub(crate) mod leader;
pub(crate) mod overload;
pub(crate) mod reserve;
pub(crate) mod runs;

use std::{
    io,
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    Interest,
    contain::{Panicked, contained},
    leadership::{Leadership, detached_runs::DetachedRun, thread_context::Handoff},
    poller::ending_runs::EndingRuns,
    reactor::{
        Reactor, Shared,
        command::Command,
        entry::Entry,
        entry_state::EntryState,
        registry::{closed, inherited},
        token::Token,
    },
    sync::{AtomicBool, Mutex, Ordering},
    sys::{self, MonotonicNanos},
    thread_pool::{BusyThread, WorkerPool, watched::PoolMonitor},
};

/// A poller, shared by the threads that lead it and those that talk to it.
pub(crate) struct Poller {
    pub(crate) index: usize,
    shared: Shared,
    pub(crate) leadership: Leadership<Reactor>,
    pub(crate) workers: WorkerPool,
    /// For brief work while all of those are taken.
    pub(crate) reserve: WorkerPool,
    pub(crate) ends: Arc<EndingRuns>,
    pub(crate) monitor: Arc<dyn PoolMonitor>,
    /// Processors there are for its threads.
    pub(crate) processors: usize,
    /// Of the process that made it.
    process: u32,
    closing: AtomicBool,
    /// The error that ended the poller, if one did.
    end_error: Mutex<Option<EndError>>,
    /// Called once the reactor is gone.
    on_end: Box<dyn Fn() + Send + Sync>,
}

/// An `io::Error` that can be handed out more than once.
#[derive(Clone, Debug)]
struct EndError {
    kind: io::ErrorKind,
    text: String,
}

impl Poller {
    pub(crate) fn new(
        index: usize,
        workers: WorkerPool,
        (reserve, ends): (WorkerPool, Arc<EndingRuns>),
        monitor: Arc<dyn PoolMonitor>,
        tick: Duration,
        busy_poll: Option<Duration>,
        on_end: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Arc<Self>> {
        let (selector, control, waker) = sys::open()?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Arc::new(Self {
            index,
            shared: Shared::new(control, waker),
            leadership: Leadership::new(
                Box::new(Reactor::new(selector, busy_poll, processors)),
                tick,
            ),
            workers,
            reserve,
            ends,
            monitor,
            processors,
            process: std::process::id(),
            closing: AtomicBool::new(false),
            end_error: Mutex::new(None),
            on_end,
        }))
    }

    /// Sends the first leader.
    pub(crate) fn start(self: &Arc<Self>) -> io::Result<()> {
        if cfg!(shuttle) {
            // Waiting for the system would stop all of shuttle's threads: models play the leader.
            return Ok(());
        }
        match self.workers.submit_leader(self.clone()) {
            Ok(()) => self.workers.start_error(),
            Err(_) => Err(closed()),
        }
    }

    pub(crate) fn register(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        interest: Interest,
    ) -> io::Result<()> {
        if self.is_closing() {
            return Err(closed());
        }
        if self.is_inherited() {
            return Err(inherited());
        }
        self.registry.insert(entry, interest)
    }

    /// Takes an operator out; the leader tells it so after the present batch.
    pub(crate) fn detach(&self, token: Token) {
        if self.is_inherited() {
            return drop(self.registry.abandon(token));
        }
        if let Some(entry) = self.registry.remove(token) {
            self.push_or(Command::Detached(entry), |command| {
                if let Command::Detached(entry) = command {
                    self.notify_detached(entry);
                }
            });
        }
    }

    /// As [`detach`](Self::detach), on the calling thread.
    pub(crate) fn detach_here(&self, token: Token) {
        if self.is_inherited() {
            return drop(self.registry.abandon(token));
        }
        if let Some(entry) = self.registry.remove(token) {
            self.notify_detached(entry);
        }
    }

    pub(crate) fn wake(&self, state: &EntryState) {
        if state.wake.try_set() {
            self.push(Command::Wake(state.token()));
        }
    }

    /// Sets an operator's timer. The wheel is bothered only if it would look too late.
    pub(crate) fn set_timer(&self, state: &EntryState, deadline: Option<Instant>) {
        if state
            .timer
            .set(deadline.map(|deadline| self.clock.tick_after(deadline)))
        {
            self.push(Command::Arm(state.token()));
        }
    }

    /// Queues a command; one for a poller that is gone has no meaning any more.
    pub(crate) fn push(&self, command: Command) {
        self.push_or(command, drop);
    }

    /// As [`push`](Self::push); `refused` gets the command back.
    pub(crate) fn push_or(&self, command: Command, refused: impl FnOnce(Command)) {
        match self.commands.push(command) {
            Ok(true) => self.counters.wakeups.add(1),
            Ok(false) => {}
            Err(command) => refused(command),
        }
    }

    /// A thread is wanted for the released leadership.
    pub(crate) fn spawn_leader(self: &Arc<Self>) {
        if self.workers.is_exhausted() {
            self.counters.cap_hits.add(1);
        }
        if self.workers.submit_leader(self.clone()).is_err() {
            self.leadership.cancel_handoff();
        }
    }

    /// Begins to close: detaches everything and ends, without waiting for it.
    pub(crate) fn close(self: &Arc<Self>) {
        self.reject_new(None);
        self.push(Command::Wakeup);
        if self.leadership.request_any_handoff() {
            self.spawn_leader();
        }
    }

    /// Whether this is a process that was forked from the one that made the poller. It has none of the
    /// threads, and what the system watches is the other process's.
    pub(crate) fn is_inherited(&self) -> bool {
        std::process::id() != self.process
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Takes no more operators; `error` is why, if it is one.
    pub(crate) fn reject_new(&self, error: Option<io::Error>) {
        if let Some(error) = error {
            *self.end_error.lock() = Some(EndError {
                kind: error.kind(),
                text: format!(
                    "poller {} ended, its operators were detached: {error}",
                    self.index
                ),
            });
        }
        self.closing.store(true, Ordering::Release);
    }

    /// What the operator calls itself.
    pub(crate) fn id_of(&self, entry: &Entry) -> u64 {
        self.contain(|| entry.operator.id()).unwrap_or(0)
    }

    /// The runs that go on while others poll.
    pub(crate) fn holding(&self) -> Vec<BusyThread> {
        let now = MonotonicNanos::now();
        let id = |run: &DetachedRun| match run.named() {
            Some(id) => id,
            None => {
                let entry = self.registry.find(Token::from_raw(run.what as usize));
                entry.map_or(0, |entry| self.id_of(&entry))
            }
        };
        let holding = |run: DetachedRun| BusyThread {
            id: id(&run),
            time: Duration::from_nanos(now.since(run.begun)),
        };
        self.leadership.holding().into_iter().map(holding).collect()
    }

    /// The reactor is gone, and all operators have been notified.
    pub(crate) fn ended(&self) {
        (self.on_end)();
    }

    /// The fatal error that ended this poller, if one did.
    pub(crate) fn health(&self) -> io::Result<()> {
        match &*self.end_error.lock() {
            Some(end_error) => Err(io::Error::new(end_error.kind, end_error.text.clone())),
            None => Ok(()),
        }
    }

    /// Whether the poller can take operators.
    pub(crate) fn is_alive(&self) -> bool {
        // One that has ended, for whatever reason, refuses too.
        !self.is_closing()
    }

    /// Notifies an operator that it is detached, once, and lets go of it, which may be its drop.
    pub(crate) fn notify_detached(&self, entry: Arc<Entry>) {
        if entry.state.notify_detached() {
            self.contain(|| entry.operator.on_detached());
        }
        self.contain(|| drop(entry));
    }

    /// Runs user code; `None` if it panicked.
    pub(crate) fn contain<T>(&self, foreign: impl FnOnce() -> T) -> Option<T> {
        contained(foreign)
            .map_err(|panicked| self.panicked(panicked))
            .ok()
    }

    /// User code panicked.
    #[cold]
    pub(crate) fn panicked(&self, thrown: Panicked) {
        self.counters.panics.add(1);
        drop(thrown);
    }
}

impl Deref for Poller {
    type Target = Shared;

    #[inline]
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Handoff for Poller {
    fn begin_handoff(self: Arc<Self>, release: u64) {
        if self.leadership.request_handoff(release) {
            self.counters.handovers.add(1);
            self.spawn_leader();
        }
    }
}

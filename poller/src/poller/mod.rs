//! One poller: what all its threads share, and the leader's loop.

pub(crate) mod blocking_monitor;
pub(crate) mod leader;
pub(crate) mod overload;
pub(crate) mod reserve;
pub(crate) mod stats;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    Interest,
    contain::{Panicked, contained},
    leadership::{Role, detached_runs::Run, thread_context::Handoff},
    poller::{blocking_monitor::Monitor, reserve::Ends, stats::Counters},
    reactor::{
        Core,
        command::{Command, CommandQueue},
        entry::Entry,
        entry_state::Control,
        registry::{Registry, Token, closed, inherited},
        scheduled_calls::Schedule,
        timer_wheel::Clock,
    },
    sync::{AtomicBool, Mutex, Ordering},
    sys::{self, Moment},
    thread_pool::{BusyThread, WorkerPool},
};

/// A poller, shared by the threads that lead it and those that talk to it.
pub(crate) struct Poller {
    pub(crate) index: usize,
    pub(crate) clock: Clock,
    pub(crate) registry: Registry,
    pub(crate) commands: CommandQueue<Command, sys::Waker>,
    pub(crate) role: Role<Core>,
    pub(crate) schedule: Schedule,
    pub(crate) counters: Counters,
    pub(crate) workers: WorkerPool,
    /// For brief work while all of those are taken.
    pub(crate) reserve: WorkerPool,
    pub(crate) ends: Arc<Ends>,
    pub(crate) monitor: Arc<Monitor>,
    /// Processors there are for its threads.
    pub(crate) processors: usize,
    /// Runs often wait: the monitor looks more often.
    pub(crate) waiting_often: AtomicBool,
    /// Of the process that made it.
    process: u32,
    closing: AtomicBool,
    /// The error that ended the poller, if one did.
    fatal: Mutex<Option<Fatal>>,
    /// Called once the core is gone.
    on_end: Box<dyn Fn() + Send + Sync>,
}

/// An `io::Error` that can be handed out more than once.
#[derive(Clone, Debug)]
struct Fatal {
    kind: io::ErrorKind,
    text: String,
}

impl Poller {
    pub(crate) fn new(
        index: usize,
        workers: WorkerPool,
        (reserve, ends): (WorkerPool, Arc<Ends>),
        monitor: Arc<Monitor>,
        busy_poll: Option<Duration>,
        on_end: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Arc<Self>> {
        let (selector, control, waker) = sys::open()?;
        let clock = Clock::new();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Arc::new(Self {
            index,
            clock,
            registry: Registry::new(control),
            commands: CommandQueue::new(waker),
            role: Role::new(
                Box::new(Core::new(selector, busy_poll, processors)),
                monitor.tick,
            ),
            schedule: Schedule::new(),
            counters: Counters::new(),
            workers,
            reserve,
            ends,
            monitor,
            processors,
            waiting_often: AtomicBool::new(false),
            process: std::process::id(),
            closing: AtomicBool::new(false),
            fatal: Mutex::new(None),
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
        member: &Arc<Entry>,
        interest: Interest,
    ) -> io::Result<()> {
        if self.is_closing() {
            return Err(closed());
        }
        if self.is_inherited() {
            return Err(inherited());
        }
        self.registry.insert(member, interest)
    }

    /// Takes an operator out; the leader tells it so after the present batch.
    pub(crate) fn detach(&self, token: Token) {
        if self.is_inherited() {
            return drop(self.registry.abandon(token));
        }
        if let Some(entry) = self.registry.remove(token) {
            self.push_or(Command::Detached(entry), |command| {
                if let Command::Detached(entry) = command {
                    self.announce(entry);
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
            self.announce(entry);
        }
    }

    pub(crate) fn wake(&self, control: &Control) {
        if control.wake.ask() {
            self.push(Command::Wake(control.token()));
        }
    }

    /// Sets an operator's timer. The wheel is bothered only if it would look too late.
    pub(crate) fn set_timer(&self, control: &Control, deadline: Option<Instant>) {
        if control
            .alarm
            .set(deadline.map(|deadline| self.clock.tick_after(deadline)))
        {
            self.push(Command::Arm(control.token()));
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

    /// A thread is wanted for the deposited role.
    pub(crate) fn send_leader(self: &Arc<Self>) {
        if self.workers.is_exhausted() {
            self.counters.cap_hits.add(1);
        }
        if self.workers.submit_leader(self.clone()).is_err() {
            self.role.give_up();
        }
    }

    /// Begins to close: detaches everything and ends, without waiting for it.
    pub(crate) fn close(self: &Arc<Self>) {
        self.refuse(None);
        self.push(Command::Nudge);
        if self.role.want_any() {
            self.send_leader();
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
    pub(crate) fn refuse(&self, error: Option<io::Error>) {
        if let Some(error) = error {
            *self.fatal.lock() = Some(Fatal {
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
        let now = Moment::now();
        let id = |run: &Run| match run.named() {
            Some(id) => id,
            None => {
                let entry = self.registry.find(Token::from_raw(run.what as usize));
                entry.map_or(0, |entry| self.id_of(&entry))
            }
        };
        let holding = |run: Run| BusyThread {
            id: id(&run),
            time: Duration::from_nanos(now.since(run.begun)),
        };
        self.role.holding().into_iter().map(holding).collect()
    }

    /// The core is gone, and everybody has been told.
    pub(crate) fn ended(&self) {
        (self.on_end)();
    }

    /// The fatal error that ended this poller, if one did.
    pub(crate) fn health(&self) -> io::Result<()> {
        match &*self.fatal.lock() {
            Some(fatal) => Err(io::Error::new(fatal.kind, fatal.text.clone())),
            None => Ok(()),
        }
    }

    /// Whether the poller can take operators.
    pub(crate) fn is_alive(&self) -> bool {
        // One that has ended, for whatever reason, refuses too.
        !self.is_closing()
    }

    /// Tells an operator that it is out, once, and lets go of it, which may be its drop.
    pub(crate) fn announce(&self, entry: Arc<Entry>) {
        if entry.control.announce() {
            self.contain(|| entry.operator.on_detached());
        }
        self.contain(|| drop(entry));
    }

    /// Runs foreign code; `None` if it panicked.
    pub(crate) fn contain<T>(&self, foreign: impl FnOnce() -> T) -> Option<T> {
        contained(foreign)
            .map_err(|panicked| self.panicked(panicked))
            .ok()
    }

    /// Foreign code panicked.
    #[cold]
    pub(crate) fn panicked(&self, thrown: Panicked) {
        self.counters.panics.add(1);
        drop(thrown);
    }
}

impl Handoff for Poller {
    fn begin_handoff(self: Arc<Self>, release: u64) {
        if self.role.want(release) {
            self.counters.handovers.add(1);
            self.send_leader();
        }
    }
}

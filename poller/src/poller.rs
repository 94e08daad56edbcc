//! One poller: what all its threads share, and the leader's loop.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use crate::{
    Interest, Operator,
    command::{Command, CommandQueue},
    context,
    monitor::Monitor,
    operator::{Budget, Progress, Requests},
    readiness::Readiness,
    registry::{Control, Entry, NEVER, Registry, Token, closed},
    role::Role,
    schedule::Schedule,
    stats::Counters,
    sync::{AtomicBool, Mutex, Ordering},
    sys,
    timer::Clock,
    turn::{Core, Work},
    workers::{Job, WorkerPool},
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
    pub(crate) monitor: Arc<Monitor>,
    closing: AtomicBool,
    /// Set once the core is gone: the fatal error, if that was why.
    end: Mutex<Option<Option<Fatal>>>,
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
        monitor: Arc<Monitor>,
        busy_poll: Option<std::time::Duration>,
        on_end: Box<dyn Fn() + Send + Sync>,
    ) -> io::Result<Arc<Self>> {
        let (selector, control, waker) = sys::open()?;
        let clock = Clock::new();
        Ok(Arc::new(Self {
            index,
            clock,
            registry: Registry::new(control),
            commands: CommandQueue::new(waker),
            role: Role::new(Box::new(Core::new(selector, busy_poll))),
            schedule: Schedule::new(),
            counters: Counters::new(),
            workers,
            monitor,
            closing: AtomicBool::new(false),
            end: Mutex::new(None),
            on_end,
        }))
    }

    /// Sends the first leader.
    pub(crate) fn start(self: &Arc<Self>) -> io::Result<()> {
        match self.workers.submit_first(self.clone()) {
            Ok(()) => self.workers.start_error(),
            Err(_) => Err(closed()),
        }
    }

    pub(crate) fn register(
        self: &Arc<Self>,
        operator: Arc<dyn Operator>,
        interest: Interest,
    ) -> io::Result<Arc<Control>> {
        if self.is_closing() {
            return Err(closed());
        }
        self.registry.insert(operator, interest)
    }

    /// Takes an operator out; the leader tells it so after the present batch.
    pub(crate) fn detach(&self, token: Token) {
        if let Some(entry) = self.registry.remove(token) {
            self.push_or(Command::Detached(entry), |command| {
                if let Command::Detached(entry) = command {
                    self.announce(&entry);
                }
            });
        }
    }

    pub(crate) fn wake(&self, control: &Control) {
        if !control.wake_queued.swap(true, Ordering::AcqRel) {
            self.push(Command::Wake(control.token));
        }
    }

    /// Sets an operator's timer. The wheel is bothered only if it would look too late.
    pub(crate) fn set_timer(&self, control: &Control, deadline: Option<Instant>) {
        let tick = deadline.map_or(NEVER, |deadline| self.clock.tick_after(deadline));
        control.deadline.store(tick, Ordering::SeqCst);
        if tick < control.armed.load(Ordering::SeqCst) {
            self.push(Command::Arm(control.token));
        }
    }

    /// Queues a command; one for a poller that is gone has no meaning any more.
    pub(crate) fn push(&self, command: Command) {
        self.push_or(command, drop);
    }

    fn push_or(&self, command: Command, refused: impl FnOnce(Command)) {
        match self.commands.push(command) {
            Ok(true) => self.counters.wakeups.add(1),
            Ok(false) => {}
            Err(command) => refused(command),
        }
    }

    /// A run is about to wait: passes the role on.
    pub(crate) fn hand_over(self: &Arc<Self>, deposit: u64) {
        if self.role.want(deposit) {
            self.counters.handovers.add(1);
            self.send_leader();
        }
    }

    /// A thread is wanted for the deposited role.
    pub(crate) fn send_leader(self: &Arc<Self>) {
        if self.workers.is_exhausted() {
            self.counters.cap_hits.add(1);
        }
        if self.workers.submit_first(self.clone()).is_err() {
            self.role.give_up();
        }
    }

    /// Begins to close: detaches everything and ends, without waiting for it.
    pub(crate) fn close(self: &Arc<Self>) {
        self.closing.store(true, Ordering::Release);
        self.push(Command::Nudge);
        if self.role.want_any() {
            self.send_leader();
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// The fatal error that ended this poller, if one did.
    pub(crate) fn health(&self) -> io::Result<()> {
        match &*self.end.lock() {
            Some(Some(fatal)) => Err(io::Error::new(fatal.kind, fatal.text.clone())),
            _ => Ok(()),
        }
    }

    /// Whether the poller can take operators.
    pub(crate) fn is_alive(&self) -> bool {
        self.end.lock().is_none() && !self.is_closing()
    }

    /// Tells an operator that it is out, once.
    fn announce(&self, entry: &Entry) {
        if entry.announce() {
            self.contain(|| entry.operator.on_detached());
        }
    }

    /// Runs foreign code; `None` if it panicked.
    fn contain<T>(&self, foreign: impl FnOnce() -> T) -> Option<T> {
        match catch_unwind(AssertUnwindSafe(foreign)) {
            Ok(value) => Some(value),
            Err(payload) => {
                self.counters.panics.add(1);
                // A payload may panic on being dropped.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
                None
            }
        }
    }
}

/// A thread of the pool takes the role, if it is still to be had.
impl Job for Poller {
    fn run(self: Arc<Self>) {
        if let Some(core) = self.role.accept() {
            Leader {
                context: context::lead(self.clone()),
                thread: sys::thread_id(),
                poller: &self,
            }
            .lead(core);
        }
    }
}

/// A thread while it leads.
struct Leader<'a> {
    poller: &'a Arc<Poller>,
    context: context::Leading,
    thread: u32,
}

impl Leader<'_> {
    /// Polls until the poller closes or the role is gone.
    fn lead(&self, mut core: Box<Core>) {
        loop {
            while !self.poller.is_closing() {
                let Some(work) = core.work.pop_front() else {
                    break;
                };
                core = match self.perform(core, work) {
                    Some(core) => core,
                    None => return,
                };
            }
            for entry in std::mem::take(&mut core.detached) {
                self.poller.announce(&entry);
            }
            if self.poller.is_closing() {
                return self.end(core, None);
            }
            if let Err(error) = core.turn(self.poller) {
                return self.end(core, Some(error));
            }
        }
    }

    /// Does one piece of work. `None`: the role went to another thread meanwhile.
    fn perform(&self, mut core: Box<Core>, work: Work) -> Option<Box<Core>> {
        match work {
            Work::Ready(entry, readiness) => self.deliver(core, entry, readiness),
            Work::Run(entry) => {
                if entry.is_detached() {
                    Some(core)
                } else {
                    self.run_operator(core, entry)
                }
            }
            Work::Timer(entry, judged) => {
                if core.timer_is_due(self.poller, &entry, judged) {
                    self.poller.counters.timers.add(1);
                    self.deliver(core, entry, Readiness::TIMER)
                } else {
                    Some(core)
                }
            }
            Work::Call(call) => {
                self.poller.counters.timers.add(1);
                self.run_closure(core, call)
            }
        }
    }

    fn deliver(
        &self,
        mut core: Box<Core>,
        entry: Arc<Entry>,
        readiness: Readiness,
    ) -> Option<Box<Core>> {
        if readiness.contains(Readiness::WAKE) {
            // A wake from here on is another one.
            entry.control.wake_queued.store(false, Ordering::SeqCst);
        }
        if entry.is_detached() {
            return Some(core);
        }
        if entry.is_paused() {
            entry.remember(readiness);
            return Some(core);
        }
        let mut requests = Requests::default();
        let mut budget = Budget::new(core.now, &mut requests);
        let progress = self
            .poller
            .contain(|| entry.operator.on_ready(readiness, &mut budget));
        if let Some(deadline) = requests.timer {
            core.set_timer(self.poller, &entry, deadline);
        }
        match progress {
            Some(Progress::Drained) => {}
            Some(Progress::Yield) => core
                .yielded
                .push_back(Work::Ready(entry.clone(), readiness)),
            Some(Progress::Pause) => entry.pause(readiness),
            Some(Progress::Detach) => self.poller.detach(entry.control.token),
            None => {
                self.poller.detach(entry.control.token);
                return Some(core);
            }
        }
        if requests.run {
            self.run_operator(core, entry)
        } else {
            Some(core)
        }
    }

    fn run_operator(&self, core: Box<Core>, entry: Arc<Entry>) -> Option<Box<Core>> {
        entry.control.resumed.store(false, Ordering::Relaxed);
        let (core, progress) = self.released(core, || entry.operator.run());
        match core {
            Some(mut core) => {
                match progress {
                    Some(Progress::Drained) => {}
                    Some(Progress::Yield) => core.yielded.push_back(Work::Run(entry)),
                    Some(Progress::Pause) => core.pause_after_run(&entry),
                    Some(Progress::Detach) | None => self.poller.detach(entry.control.token),
                }
                Some(core)
            }
            None => {
                finish_run(self.poller, entry, progress);
                None
            }
        }
    }

    fn run_closure(&self, core: Box<Core>, call: Box<dyn FnOnce() + Send>) -> Option<Box<Core>> {
        self.released(core, call).0
    }

    /// Runs foreign code with the role released.
    fn released<T>(
        &self,
        core: Box<Core>,
        foreign: impl FnOnce() -> T,
    ) -> (Option<Box<Core>>, Option<T>) {
        let (deposit, unwatched) = self.poller.role.deposit(core, self.thread);
        if unwatched {
            self.poller.monitor.watch();
        }
        self.context.running(deposit);
        let value = self.poller.contain(foreign);
        let core = self.poller.role.reclaim(deposit);
        self.context.returned(core.is_some());
        if core.is_none() {
            self.poller.counters.slow_runs.add(1);
        }
        (core, value)
    }

    /// The poller ends: everything is detached and told so.
    fn end(&self, mut core: Box<Core>, error: Option<io::Error>) {
        let poller = self.poller;
        poller.closing.store(true, Ordering::Release);
        for entry in poller.registry.close() {
            poller.announce(&entry);
        }
        for entry in core.detached.drain(..) {
            poller.announce(&entry);
        }
        for command in poller.commands.close() {
            if let Command::Detached(entry) = command {
                poller.announce(&entry);
            }
        }
        poller.schedule.close();
        drop(core);
        let fatal = error.map(|error| Fatal {
            kind: error.kind(),
            text: format!(
                "poller {} ended, its operators were detached: {error}",
                poller.index
            ),
        });
        *poller.end.lock() = Some(fatal);
        (poller.on_end)();
    }
}

/// What follows from a run on a thread that does not hold the role.
pub(crate) fn finish_run(poller: &Poller, entry: Arc<Entry>, progress: Option<Progress>) {
    match progress {
        Some(Progress::Drained) => {}
        Some(Progress::Yield) => poller.push(Command::Rerun(entry)),
        Some(Progress::Pause) => poller.push(Command::Pause(entry)),
        Some(Progress::Detach) | None => poller.detach(entry.control.token),
    }
}

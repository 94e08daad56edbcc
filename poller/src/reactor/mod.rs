//! The reactor, owned by the leader: the selector, the work of the present poll cycle, the timers.
//!
//! All of it moves with the leadership. The work of a poll cycle is one list, so that a new leader goes on
//! exactly where the old one left: events first, then what other threads asked for, then the
//! operators that yielded in the last cycle, then timers, which are judged only against events that had
//! arrived before.

pub(crate) mod command;
pub(crate) mod entry;
pub(crate) mod entry_state;
pub(crate) mod registry;
pub(crate) mod run_queue;
pub(crate) mod scheduled_calls;
pub(crate) mod stats;
pub(crate) mod timer_wheel;
pub(crate) mod token;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    leadership::sharing_policy::SharingPolicy,
    operator::readiness::Readiness,
    reactor::{
        command::{Command, CommandQueue, Guest},
        entry::Entry,
        entry_state::Fired,
        registry::Registry,
        run_queue::Queue,
        scheduled_calls::{Call, Schedule},
        stats::Counters,
        timer_wheel::Wheel,
        token::Token,
    },
    sync::{AtomicBool, Ordering},
    sys::{self, MonotonicNanos, TickClock, nanos},
};

/// Timers that fire in one cycle at most, before descriptors are polled again.
const TIMERS: usize = 256;

/// What the reactor shares with other threads.
pub(crate) struct Shared {
    pub(crate) clock: TickClock,
    pub(crate) registry: Registry,
    pub(crate) commands: CommandQueue<Command, sys::Waker>,
    pub(crate) schedule: Schedule,
    pub(crate) counters: Counters,
    /// Runs often wait: the monitor looks more often.
    pub(crate) waiting_often: AtomicBool,
}

impl Shared {
    pub(crate) fn new(selector: sys::Control, waker: sys::Waker) -> Self {
        Self {
            clock: TickClock::new(),
            registry: Registry::new(selector),
            commands: CommandQueue::new(waker),
            schedule: Schedule::new(),
            counters: Counters::new(),
            waiting_often: AtomicBool::new(false),
        }
    }
}

/// A poller's reactor.
pub(crate) struct Reactor {
    selector: sys::Selector,
    busy_poll: Option<Duration>,
    wheel: Wheel<WheelKey>,
    commands: Vec<Command>,
    /// Taken out of the wheel; empty but for its memory.
    due: Vec<(u64, WheelKey)>,
    /// What is left to do in this cycle.
    pub(crate) work: Queue<Work>,
    /// Goes on after the next wait.
    pub(crate) yielded: Queue<Work>,
    /// To be told that they are out, after this cycle's work.
    pub(crate) detached: Vec<Arc<Entry>>,
    /// The time: read once per poll cycle, and after runs as often as the sharing policy wants to know.
    pub(crate) now: MonotonicNanos,
    /// Runs since then.
    untimed: u32,
    pub(crate) sharing: SharingPolicy,
    /// Timed runs since the counter was last brought up to date.
    runs: u64,
}

/// What is still to be done for operators when a poller ends.
#[derive(Default)]
pub(crate) struct Remains {
    /// Those that wait to be told that they are out.
    pub(crate) detached: Vec<Arc<Entry>>,
    /// Those whose run was asked for and has not begun.
    pub(crate) runs: Vec<Arc<Entry>>,
    pub(crate) guests: Vec<Guest>,
}

/// One thing to do.
pub(crate) enum Work {
    /// Deliver readiness.
    Ready(Arc<Entry>, Readiness),
    /// Call `run`, which was asked for at that time.
    Run(Arc<Entry>, MonotonicNanos),
    /// Call `run` of another poller's operator.
    Guest(Box<Guest>),
    /// Deliver the timer if it is due at this tick.
    Timer(Arc<Entry>, u64),
    /// Call a scheduled closure.
    Call(Call),
}

/// What waits in the wheel: an operator's timer by its token, or a scheduled closure by its key.
/// One word, because ten thousand idle connections have one each; a token uses all bits but the
/// highest.
#[derive(Clone, Copy, Debug)]
struct WheelKey(u64);

const CALL: u64 = 1 << 63;

impl WheelKey {
    fn operator(token: Token) -> Self {
        Self(token.raw() as u64)
    }

    fn call(key: u64) -> Self {
        Self(key | CALL)
    }
}

impl Reactor {
    pub(crate) fn new(
        selector: sys::Selector,
        busy_poll: Option<Duration>,
        processors: usize,
    ) -> Self {
        Self {
            selector,
            busy_poll,
            wheel: Wheel::new(),
            commands: Vec::new(),
            due: Vec::new(),
            work: Queue::default(),
            yielded: Queue::default(),
            detached: Vec::new(),
            now: MonotonicNanos::now(),
            untimed: 0,
            sharing: SharingPolicy::new(MonotonicNanos::now(), processors),
            runs: 0,
        }
    }

    /// The poller ends: what still has to be done then.
    pub(crate) fn close(mut self) -> Remains {
        let mut remains = Remains {
            detached: self.detached,
            runs: Vec::new(),
            guests: Vec::new(),
        };
        while let Some(work) = self.work.pop() {
            match work {
                Work::Run(entry, _) => remains.runs.push(entry),
                Work::Guest(guest) => remains.guests.push(*guest),
                Work::Ready(..) | Work::Timer(..) | Work::Call(_) => {}
            }
        }
        remains
    }

    /// A run has returned to the reactor.
    #[inline]
    pub(crate) fn record_run(&mut self) {
        self.untimed += 1;
        if self.untimed >= self.sharing.timing_batch() || self.work.is_empty() {
            self.flush_timing();
        }
    }

    #[inline(never)]
    fn flush_timing(&mut self) {
        let (begin, runs) = (self.now, self.untimed);
        self.read_clock();
        self.sharing.record_runs(self.now.since(begin), runs);
    }

    /// A run that began at `begin` has returned, and found the reactor elsewhere first.
    pub(crate) fn record_shared_run(&mut self, begin: MonotonicNanos) {
        self.read_clock();
        self.sharing.record_shared_run(self.now.since(begin));
    }

    pub(crate) fn read_clock(&mut self) {
        self.now = MonotonicNanos::now();
        self.runs += u64::from(std::mem::take(&mut self.untimed));
    }

    /// Waits if there is nothing left to do, and gathers the work of the next cycle.
    pub(crate) fn poll_cycle(&mut self, shared: &Shared) -> io::Result<()> {
        let full = self.wait(shared)?;
        self.collect_cycle(shared, full)
    }

    /// Adds what there is to do now to what is left, without a wait.
    pub(crate) fn poll_nonblocking(&mut self, shared: &Shared) -> io::Result<()> {
        let full = self.selector.wait(Some(Duration::ZERO))?;
        self.collect_cycle(shared, full)
    }

    fn collect_cycle(&mut self, shared: &Shared, mut full: bool) -> io::Result<()> {
        shared.commands.drain(&mut self.commands);
        self.read_clock();
        let tick = shared.clock.tick_before(self.now);
        if !full && self.wheel.next().is_some_and(|next| next <= tick) {
            // Whatever arrived before this moment is handled before timers are judged by it.
            self.collect_events(shared);
            full = self.selector.wait(Some(Duration::ZERO))?;
        }
        self.collect_events(shared);
        if self
            .sharing
            .begin_cycle(self.now, shared.counters.waits.value())
        {
            shared.counters.sharings.add(1);
        }
        shared
            .waiting_often
            .store(self.sharing.waiting_often(), Ordering::Relaxed);
        shared.counters.turns.add(1);
        shared.counters.runs.add(std::mem::take(&mut self.runs));
        self.drain_commands(shared);
        self.work.append(&mut self.yielded);
        if !full {
            self.expire(shared, tick);
        }
        if let Some(events) = self.selector.shrunk() {
            // A burst is over: so is the need for its memory.
            self.work.shrink_to(events);
            self.yielded.shrink_to(events);
        }
        Ok(())
    }

    /// Turns the events of the last wait into work.
    fn collect_events(&mut self, shared: &Shared) {
        if !self.selector.is_empty() {
            let work = &mut self.work;
            let events = self
                .selector
                .events()
                .map(|(raw, what)| (Token::from_raw(raw), what));
            let count = shared.registry.resolve(events, |entry, readiness| {
                work.push(Work::Ready(entry.clone(), readiness));
            });
            shared.counters.events.add(count);
        }
        self.selector.clear();
    }

    /// Waits; `true` if there may be more events than were taken.
    fn wait(&mut self, shared: &Shared) -> io::Result<bool> {
        if !self.yielded.is_empty() {
            return self.selector.wait(Some(Duration::ZERO));
        }
        if let Some(spin) = self.busy_poll {
            let begin = MonotonicNanos::now();
            loop {
                let full = self.selector.wait(Some(Duration::ZERO))?;
                if full || self.selector.events().next().is_some() {
                    return Ok(full);
                }
                let now = MonotonicNanos::now();
                let timer = self.wheel.next().map(|tick| shared.clock.until(tick, now));
                if now.since(begin) >= nanos(spin) || timer.is_some_and(|left| left.is_zero()) {
                    break;
                }
                if !shared.commands.is_empty() {
                    return Ok(false);
                }
            }
        }
        let timeout = if shared.commands.fall_asleep() {
            let now = if self.wheel.is_empty() {
                self.now
            } else {
                MonotonicNanos::now()
            };
            self.wheel.next().map(|tick| shared.clock.until(tick, now))
        } else {
            Some(Duration::ZERO)
        };
        self.selector.wait(timeout)
    }

    /// Turns commands into work.
    fn drain_commands(&mut self, shared: &Shared) {
        let mut commands = std::mem::take(&mut self.commands);
        for command in commands.drain(..) {
            match command {
                Command::Wake(token) => {
                    if let Some(entry) = shared.registry.find(token) {
                        self.work.push(Work::Ready(entry, Readiness::WAKE));
                    }
                }
                Command::Arm(token) => {
                    if let Some(entry) = shared.registry.find(token) {
                        self.arm_wheel(&entry, entry.state.timer.arm());
                    }
                }
                Command::Resume(token) => {
                    if let Some(entry) = shared.registry.find(token) {
                        resume(&mut self.work, entry);
                    }
                }
                Command::Pause(entry) => {
                    pause_after_run(&mut self.work, &entry);
                }
                Command::Rerun(entry) => self.work.push(Work::Run(entry, self.now)),
                Command::Guest(guest) => self.work.push(Work::Guest(guest)),
                Command::Detached(entry) => self.detached.push(entry),
                Command::Schedule(key, tick) => self.wheel.insert(tick, WheelKey::call(key)),
                Command::Wakeup => {}
            }
        }
        // Its memory serves again.
        self.commands = commands;
    }

    /// Takes out of the wheel what is due.
    fn expire(&mut self, shared: &Shared, tick: u64) {
        if self.wheel.is_empty() {
            // Nothing to do, but the wheel's position must not fall behind.
            self.wheel.advance(tick, TIMERS, |_, _| {});
            return;
        }
        let mut due = std::mem::take(&mut self.due);
        // What is left then is due in the next cycle, which does not wait.
        self.wheel
            .advance(tick, TIMERS, |at, timer| due.push((at, timer)));
        for (at, timer) in due.drain(..) {
            if timer.0 & CALL != 0 {
                if let Some(call) = shared.schedule.take(timer.0 & !CALL) {
                    self.work.push(Work::Call(call));
                }
                continue;
            }
            let Some(entry) = shared.registry.find(Token::from_raw(timer.0 as usize)) else {
                continue;
            };
            // An item of an earlier setting is of no interest.
            if entry.state.timer.is_armed_at(at) {
                self.work.push(Work::Timer(entry, tick));
            }
        }
        self.due = due;
    }

    /// The moment to deliver a timer: is it (still) due, judged by `tick`? If not, the wheel is
    /// told to look again later.
    pub(crate) fn timer_is_due(&mut self, entry: &Entry, tick: u64) -> bool {
        match entry.state.timer.fire(tick) {
            Fired::Due => true,
            Fired::NotYet(next) => {
                self.arm_wheel(entry, next);
                false
            }
        }
    }

    /// As [`Poller::set_timer`](crate::poller::Poller::set_timer), for the holder of the leadership.
    pub(crate) fn set_timer(&mut self, shared: &Shared, entry: &Entry, deadline: Option<Instant>) {
        let tick = deadline.map(|deadline| shared.clock.tick_after(deadline));
        if entry.state.timer.set(tick) {
            self.arm_wheel(entry, entry.state.timer.arm());
        }
    }

    fn arm_wheel(&mut self, entry: &Entry, tick: Option<u64>) {
        if let Some(tick) = tick {
            self.wheel
                .insert(tick, WheelKey::operator(entry.state.token()));
        }
    }

    /// A run asks for a pause.
    pub(crate) fn pause_after_run(&mut self, entry: &Arc<Entry>) {
        pause_after_run(&mut self.work, entry);
    }
}

/// A run may have been overtaken by the `resume` it waits for.
fn pause_after_run(work: &mut Queue<Work>, entry: &Arc<Entry>) {
    entry.state.pause(Readiness::EMPTY);
    if entry.state.take_resumed() {
        resume(work, entry.clone());
    }
}

fn resume(work: &mut Queue<Work>, entry: Arc<Entry>) {
    if entry.state.is_paused() {
        let remembered = entry.state.unpause();
        if !remembered.is_empty() {
            work.push(Work::Ready(entry, remembered));
        }
    }
}

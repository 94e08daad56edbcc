//! The leader's loop: a thread of the pool while it holds, or has just released, the role.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    command::Command,
    context::{self, must_not_block},
    member::Entry,
    operator::{Budget, Progress},
    poller::Poller,
    readiness::Readiness,
    role::Seat,
    schedule::Call,
    sync::thread,
    sys::{self, Moment},
    turn::{Core, Work},
    workers::Job,
};

/// How long a thread without the core looks for a shared deposit before it goes back to the pool:
/// about what it costs to sleep and to be woken, so that the choice is never wrong by much. With one
/// processor looking keeps others from what is looked for: a few times, and others first.
const LOOK_FOR: Duration = Duration::from_micros(50);
const LOOKS: u32 = 8;

/// A thread of the pool takes the role, if it is still to be had.
impl Job for Poller {
    fn run(self: Arc<Self>) {
        if let Some(core) = self.role.accept().or_else(|| find_shared(&self)) {
            Leader::run(&self, |leader| leader.lead(core));
        }
    }
}

/// Polls once for a poller whose runs all wait, on a thread that is not of the pool, because the
/// pool has nobody to send: those who wait for input, room, timers or the end of a connection are
/// told. Runs and closures are left to the first thread that is free.
pub(crate) fn stand_in(poller: &Arc<Poller>) {
    if let Some(core) = poller.role.lend() {
        Leader::run(poller, |leader| leader.stand_in(core));
    }
}

/// A shared deposit, looked for a while.
fn find_shared(poller: &Poller) -> Option<Box<Core>> {
    if !poller.role.look() {
        return None;
    }
    let begin = Instant::now();
    let mut looks = 0;
    while looks < LOOKS || (poller.processors > 1 && begin.elapsed() < LOOK_FOR) {
        if let Some(core) = poller.role.find(false) {
            return Some(core);
        }
        thread::yield_now();
        looks += 1;
    }
    poller.role.find(true)
}

/// A run with the role released.
struct Released {
    /// The number of its deposit.
    number: u64,
    begin: Moment,
}

/// A thread while it leads.
struct Leader<'a> {
    poller: &'a Arc<Poller>,
    context: context::Leading,
    seat: Seat<Core>,
}

impl<'a> Leader<'a> {
    /// Makes the calling thread a leader for a while.
    fn run(poller: &'a Arc<Poller>, lead: impl FnOnce(&Self)) {
        let leader = Self {
            context: context::lead(poller.clone()),
            seat: Seat::new(sys::thread_id()),
            poller,
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| lead(&leader)));
        if outcome.is_err() && must_not_block() {
            // Callbacks are contained; this was an operator's `fd`, or a mistake of our own. The
            // core is lost, which must not go unnoticed.
            leader.end(
                Vec::new(),
                Some(io::Error::other("a panic outside of callbacks")),
            );
        }
    }

    /// Polls until the poller closes or the role is gone.
    fn lead(&self, mut core: Box<Core>) {
        loop {
            while !self.poller.is_closing() {
                let Some(work) = core.work.pop_front() else {
                    break;
                };
                core = match self.perform(core, work).or_else(|| self.rejoin()) {
                    Some(core) => core,
                    None => return,
                };
            }
            for entry in std::mem::take(&mut core.detached) {
                self.poller.announce(&entry);
            }
            if self.poller.is_closing() {
                return self.end(core.close(), None);
            }
            if let Err(error) = core.turn(self.poller) {
                return self.end(core.close(), Some(error));
            }
        }
    }

    /// Does what can be done without calling anything that may block.
    fn stand_in(&self, mut core: Box<Core>) {
        let poller = self.poller;
        let mut left = VecDeque::new();
        // An end, and an error that will come again, are for a leader.
        let looked = !poller.is_closing() && core.look(poller).is_ok();
        if looked {
            poller.counters.stand_ins.add(1);
        } else {
            left.append(&mut core.work);
        }
        while let Some(work) = core.work.pop_front() {
            match work {
                Work::Ready(entry, readiness) => {
                    if self.attend(&mut core, &entry, readiness) {
                        left.push_back(Work::Run(entry));
                    }
                }
                Work::Timer(entry, judged) => {
                    if core.timer_is_due(&entry, judged) {
                        poller.counters.timers.add(1);
                        if self.attend(&mut core, &entry, Readiness::TIMER) {
                            left.push_back(Work::Run(entry));
                        }
                    }
                }
                work @ (Work::Run(_) | Work::Call(_)) => left.push_back(work),
            }
        }
        core.work = left;
        if looked {
            for entry in std::mem::take(&mut core.detached) {
                poller.announce(&entry);
            }
        }
        if poller.role.put_back(core) {
            poller.send_leader();
        }
    }

    /// The role is gone; where it is shared, this thread may go on with the others.
    fn rejoin(&self) -> Option<Box<Core>> {
        let core = find_shared(self.poller)?;
        self.context.returned(true);
        Some(core)
    }

    /// Does one piece of work. `None`: the role went to another thread meanwhile.
    fn perform(&self, mut core: Box<Core>, work: Work) -> Option<Box<Core>> {
        match work {
            Work::Ready(entry, readiness) => self.deliver(core, entry, readiness),
            Work::Run(entry) => {
                if entry.control.is_detached() {
                    Some(core)
                } else {
                    self.run_operator(core, entry)
                }
            }
            Work::Timer(entry, judged) => {
                if core.timer_is_due(&entry, judged) {
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
        if self.attend(&mut core, &entry, readiness) {
            self.run_operator(core, entry)
        } else {
            Some(core)
        }
    }

    /// Tells an operator; whether it is to be run.
    #[inline(always)]
    fn attend(&self, core: &mut Core, entry: &Arc<Entry>, readiness: Readiness) -> bool {
        if readiness.contains(Readiness::WAKE) {
            // A wake from here on is another one.
            entry.control.wake.serve();
        }
        if entry.control.is_detached() {
            return false;
        }
        if entry.control.is_paused() {
            entry.control.remember(readiness);
            return false;
        }
        let mut budget = Budget::new(&self.poller.clock, core.now);
        let progress = self
            .poller
            .contain(|| entry.operator.on_ready(readiness, &mut budget));
        if let Some(deadline) = budget.requests().timer {
            core.set_timer(self.poller, entry, deadline);
        }
        match progress {
            Some(Progress::Drained) => {}
            Some(Progress::Yield) => core
                .yielded
                .push_back(Work::Ready(entry.clone(), readiness)),
            Some(Progress::Pause) => entry.control.pause(readiness),
            Some(Progress::Detach) => self.poller.detach(entry.control.token()),
            None => {
                self.poller.detach(entry.control.token());
                return false;
            }
        }
        budget.requests().run
    }

    #[inline(always)]
    fn run_operator(&self, core: Box<Core>, entry: Arc<Entry>) -> Option<Box<Core>> {
        entry.control.run_begins();
        let run = self.release(core);
        let progress = self.poller.contain(|| entry.operator.run());
        let Some(mut core) = self.take_back(run) else {
            finish_run(self.poller, entry, progress);
            return None;
        };
        match progress {
            Some(Progress::Drained) => {}
            Some(Progress::Yield) => core.yielded.push_back(Work::Run(entry)),
            Some(Progress::Pause) => core.pause_after_run(&entry),
            Some(Progress::Detach) | None => self.poller.detach(entry.control.token()),
        }
        Some(core)
    }

    fn run_closure(&self, core: Box<Core>, call: Call) -> Option<Box<Core>> {
        let run = self.release(core);
        self.poller.contain(call);
        self.take_back(run)
    }

    /// Foreign code is about to run: the role is released.
    #[inline(always)]
    fn release(&self, core: Box<Core>) -> Released {
        let poller = self.poller;
        let (begin, terms) = (core.now, core.learner.terms(core.work.len()));
        let deposit = poller.role.deposit(&self.seat, core, terms, begin);
        if deposit.unwatched {
            poller.monitor.watch();
        }
        if deposit.uncovered {
            self.cover(deposit.number, begin);
        }
        self.context.running(deposit.number);
        Released {
            number: deposit.number,
            begin,
        }
    }

    /// Foreign code has returned. `None`: the role went to another thread meanwhile.
    #[inline(always)]
    fn take_back(&self, run: Released) -> Option<Box<Core>> {
        let core = match self.poller.role.reclaim(&self.seat, run.number) {
            Some(mut core) => {
                core.ran();
                Some(core)
            }
            None => self.returned(run.number, run.begin),
        };
        self.context.returned(core.is_some());
        core
    }

    /// A run that began at `begin` has returned and its deposit is gone: the core, if this thread is
    /// to lead nevertheless.
    #[inline(never)]
    fn returned(&self, number: u64, begin: Moment) -> Option<Box<Core>> {
        let poller = self.poller;
        poller.counters.slow_runs.add(1);
        let mut core = poller.role.rejoin(number)?;
        core.rejoined(begin);
        Some(core)
    }

    /// Sees to it that enough others are there to take shared deposits.
    #[inline(never)]
    fn cover(&self, number: u64, now: Moment) {
        let poller = self.poller;
        if let Some(run) = poller.role.suspect(now) {
            let waits = sys::thread_waits(run.thread);
            poller.role.judge(run.number, waits, now);
            if waits {
                poller.counters.waits.add(1);
            }
        }
        if poller.role.want_help(number, now) {
            poller.counters.helpers.add(1);
            poller.send_leader();
        }
    }

    /// The poller ends: everything is detached and told so.
    fn end(&self, detached: Vec<Arc<Entry>>, error: Option<io::Error>) {
        let poller = self.poller;
        poller.refuse(error);
        for entry in poller.registry.close() {
            poller.announce(&entry);
        }
        for entry in detached {
            poller.announce(&entry);
        }
        for command in poller.commands.close() {
            if let Command::Detached(entry) = command {
                poller.announce(&entry);
            }
        }
        poller.schedule.close();
        poller.ended();
    }
}

/// What follows from a run on a thread that does not hold the role.
pub(crate) fn finish_run(poller: &Poller, entry: Arc<Entry>, progress: Option<Progress>) {
    match progress {
        Some(Progress::Drained) => {}
        Some(Progress::Yield) => poller.push(Command::Rerun(entry)),
        Some(Progress::Pause) => poller.push(Command::Pause(entry)),
        Some(Progress::Detach) | None => poller.detach(entry.control.token()),
    }
}

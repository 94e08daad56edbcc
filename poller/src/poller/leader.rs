//! The leader's loop: a thread of the pool while it holds, or has just released, the role.

use std::{
    cell::Cell,
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use crate::{
    contain::contained,
    leadership::{
        Seat,
        detached_runs::{UNNAMED, named},
        thread_context::{self, is_polling_thread},
    },
    operator::{Budget, Progress, Requests, readiness::Readiness},
    poller::{Poller, reserve},
    reactor::{
        Core, Remains, Work,
        command::{Command, Guest},
        entry::Entry,
        run_queue::Queue,
        scheduled_calls::Call,
    },
    sync::thread,
    sys::{self, Moment},
    thread_pool::Job,
};

/// How long a thread without the core looks for a shared deposit before it goes back to the pool:
/// about what it costs to sleep and to be woken, so that the choice is never wrong by much. With one
/// processor looking keeps others from what is looked for: a few times, and others first.
const LOOK_FOR: Duration = Duration::from_micros(50);
const LOOKS: u32 = 8;
/// A run that comes back within this time has not waited.
const SOON: Duration = Duration::from_millis(1);

/// A thread of the pool takes the role, if it is still to be had.
impl Job for Poller {
    fn run(self: Arc<Self>) {
        if let Some(mut core) = self.role.accept().or_else(|| find_shared(&self)) {
            core.read_clock();
            Leader::run(&self, |leader| leader.lead(core));
        }
    }
}

/// Polls once for a poller whose runs all wait, on a thread that is not of the pool, because the
/// pool has no thread to send: those who wait for input, room, timers or the end of a connection are
/// told. Closures and brief runs go to the reserve, other runs to threads that lead one of the `others`
/// and sleep; what is left, to the first thread that is free.
///
/// Returns how many of those have waited for too long.
pub(crate) fn stand_in(poller: &Arc<Poller>, others: &[Weak<Poller>]) -> usize {
    let mut overdue = 0;
    if let Some(core) = poller.role.lend() {
        Leader::run(poller, |leader| overdue = leader.stand_in(core, others));
    }
    overdue
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
    context: thread_context::Leading,
    seat: Seat<Core>,
    /// What the latest panic has left.
    broken: Cell<Option<Broken>>,
}

/// A call of an operator that panicked, and what was in the leader's hands.
enum Broken {
    OnReady(Box<Core>, Arc<Entry>),
    Run(Released, Arc<Entry>),
}

/// Keeps things that a panic would drop; to be forgotten where nobody panics.
struct Keep<'a, T, F: Fn(T) -> Broken> {
    things: &'a mut Option<T>,
    as_broken: F,
    broken: &'a Cell<Option<Broken>>,
}

impl<'a> Leader<'a> {
    /// Makes the calling thread a leader for a while.
    fn run(poller: &'a Arc<Poller>, lead: impl FnOnce(&Self)) {
        let leader = Self {
            context: thread_context::lead(poller.clone()),
            seat: Seat::new(sys::thread_id()),
            broken: Cell::new(None),
            poller,
        };
        let mut outcome = contained(|| lead(&leader));
        while let Err(thrown) = outcome {
            let Some(broken) = leader.broken.take() else {
                if is_polling_thread() {
                    // Not in a callback; this was an operator's `fd`, or a mistake of our own. The
                    // core is lost, which must not go unnoticed.
                    leader.end(
                        Remains::default(),
                        Some(io::Error::other("a panic outside of callbacks")),
                    );
                }
                return;
            };
            outcome = contained(|| {
                poller.panicked(thrown);
                if let Some(core) = leader.mend(broken) {
                    leader.lead(core);
                }
            });
        }
    }

    /// Calls foreign code with things in hand, which are what is broken if it panics. Unlike
    /// `catch_unwind` around the call this costs next to nothing while nobody panics; the one around the
    /// leader's loop finds what was kept.
    #[inline(always)]
    fn keep<T, R>(
        &self,
        things: T,
        as_broken: impl Fn(T) -> Broken,
        call: impl FnOnce(&T) -> R,
    ) -> (T, R) {
        let mut things = Some(things);
        let keep = Keep {
            things: &mut things,
            as_broken,
            broken: &self.broken,
        };
        let result = call(keep.things.as_ref().expect("they were put there"));
        std::mem::forget(keep);
        (things.expect("nobody took them"), result)
    }

    /// An operator panicked: it is taken out. The core, if this thread leads on.
    fn mend(&self, broken: Broken) -> Option<Box<Core>> {
        match broken {
            Broken::OnReady(core, entry) => {
                self.poller.detach(entry.control.token());
                Some(core)
            }
            Broken::Run(run, entry) => self.end_run(run, entry, None).or_else(|| self.rejoin()),
        }
    }

    /// Polls until the poller closes or the role is gone.
    fn lead(&self, mut core: Box<Core>) {
        loop {
            while !self.poller.is_closing() {
                let Some(work) = core.work.pop() else {
                    break;
                };
                core = match self.perform(core, work).or_else(|| self.rejoin()) {
                    Some(core) => core,
                    None => return,
                };
            }
            for entry in std::mem::take(&mut core.detached) {
                self.poller.announce(entry);
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
    fn stand_in(&self, mut core: Box<Core>, others: &[Weak<Poller>]) -> usize {
        let poller = self.poller;
        let mut left = Queue::default();
        // An end, and an error that will come again, are for a leader.
        let looked = !poller.is_closing() && core.look(poller).is_ok();
        if looked {
            poller.counters.stand_ins.add(1);
        } else {
            left.append(&mut core.work);
        }
        while let Some(work) = core.work.pop() {
            match work {
                Work::Ready(entry, readiness) => {
                    if self.tell(&mut core, &entry, readiness) {
                        left.push(Work::Run(entry, core.now));
                    }
                }
                Work::Timer(entry, judged) => {
                    if core.timer_is_due(&entry, judged) {
                        poller.counters.timers.add(1);
                        if self.tell(&mut core, &entry, Readiness::TIMER) {
                            left.push(Work::Run(entry, core.now));
                        }
                    }
                }
                work @ (Work::Run(..) | Work::Guest(_) | Work::Call(_)) => left.push(work),
            }
        }
        let mut overdue = 0;
        let mut others = others.iter().filter_map(Weak::upgrade);
        while let Some(work) = left.pop() {
            let Err(work) = reserve::hand_to(&poller.reserve, poller, work) else {
                continue;
            };
            let guest = match work {
                Work::Run(entry, since) => Guest {
                    home: poller.clone(),
                    entry,
                    since,
                },
                Work::Guest(guest) => *guest,
                other => {
                    core.work.push(other);
                    continue;
                }
            };
            let idle = others.find(|other| other.commands.is_asleep());
            let Some(guest) = offer(guest, idle.as_deref()) else {
                continue;
            };
            overdue += usize::from(poller.workers.is_overdue(guest.since, core.now));
            core.work.push(if Arc::ptr_eq(&guest.home, poller) {
                Work::Run(guest.entry, guest.since)
            } else {
                Work::Guest(Box::new(guest))
            });
        }
        if looked {
            for entry in std::mem::take(&mut core.detached) {
                poller.announce(entry);
            }
        }
        if poller.role.put_back(core) {
            poller.send_leader();
        }
        overdue
    }

    /// The role is gone; where it is shared, this thread may go on with the others.
    fn rejoin(&self) -> Option<Box<Core>> {
        let mut core = find_shared(self.poller)?;
        core.read_clock();
        self.context.returned(true);
        Some(core)
    }

    /// Does one piece of work. `None`: the role went to another thread meanwhile.
    #[inline(always)]
    fn perform(&self, mut core: Box<Core>, work: Work) -> Option<Box<Core>> {
        let (entry, readiness) = match work {
            Work::Ready(entry, readiness) => (entry, readiness),
            Work::Timer(entry, judged) => {
                if !core.timer_is_due(&entry, judged) {
                    return Some(core);
                }
                self.poller.counters.timers.add(1);
                (entry, Readiness::TIMER)
            }
            Work::Run(entry, _) => return self.run_again(core, entry),
            Work::Guest(guest) => return self.run_for(core, *guest),
            Work::Call(call) => return self.run_closure(core, call),
        };
        if !self.may_tell(&entry, readiness) {
            return Some(core);
        }
        let mut budget = Budget::new(&self.poller.clock, core.now);
        let ((mut core, entry), progress) = self.keep(
            (core, entry),
            |(core, entry)| Broken::OnReady(core, entry),
            |(_, entry)| entry.operator.on_ready(readiness, &mut budget),
        );
        let runs = self.told(&mut core, &entry, readiness, progress, budget.requests());
        if runs {
            self.run_operator(core, entry)
        } else {
            Some(core)
        }
    }

    /// Whether to tell an operator now.
    #[inline(always)]
    fn may_tell(&self, entry: &Entry, readiness: Readiness) -> bool {
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
        true
    }

    /// An operator was told, and asks for something; whether it is to be run.
    #[inline(always)]
    fn told(
        &self,
        core: &mut Core,
        entry: &Arc<Entry>,
        readiness: Readiness,
        progress: Progress,
        requests: &Requests,
    ) -> bool {
        if let Some(deadline) = requests.timer {
            core.set_timer(self.poller, entry, deadline);
        }
        if progress != Progress::Drained {
            self.waits_otherwise(core, entry, readiness, progress);
        }
        requests.run
    }

    /// An operator was told, and does not wait for its next event.
    #[inline(never)]
    fn waits_otherwise(
        &self,
        core: &mut Core,
        entry: &Arc<Entry>,
        readiness: Readiness,
        progress: Progress,
    ) {
        match progress {
            Progress::Drained => {}
            Progress::Yield => core.yielded.push(Work::Ready(entry.clone(), readiness)),
            Progress::Pause => entry.control.pause(readiness),
            Progress::Detach => self.poller.detach(entry.control.token()),
        }
    }

    /// All of it for a loan, where nothing is run; whether the operator is to be.
    fn tell(&self, core: &mut Core, entry: &Arc<Entry>, readiness: Readiness) -> bool {
        if !self.may_tell(entry, readiness) {
            return false;
        }
        let mut budget = Budget::new(&self.poller.clock, core.now);
        let progress = self
            .poller
            .contain(|| entry.operator.on_ready(readiness, &mut budget));
        let Some(progress) = progress else {
            self.poller.detach(entry.control.token());
            return false;
        };
        self.told(core, entry, readiness, progress, budget.requests())
    }

    #[inline(always)]
    fn run_operator(&self, core: Box<Core>, entry: Arc<Entry>) -> Option<Box<Core>> {
        entry.control.run_begins();
        self.seat.runs(entry.control.token().raw() as u64);
        let run = self.release(core);
        let ((run, entry), progress) = self.keep(
            (run, entry),
            |(run, entry)| Broken::Run(run, entry),
            |(_, entry)| entry.operator.run(),
        );
        self.end_run(run, entry, Some(progress))
    }

    /// A run has returned; without progress, if it panicked.
    #[inline(always)]
    fn end_run(
        &self,
        run: Released,
        entry: Arc<Entry>,
        progress: Option<Progress>,
    ) -> Option<Box<Core>> {
        let Some(mut core) = self.take_back(run) else {
            finish_run(self.poller, entry, progress);
            return None;
        };
        if progress != Some(Progress::Drained) {
            self.has_run(&mut core, entry, progress);
        }
        Some(core)
    }

    /// What follows from a run that did not leave its operator to wait for the next event.
    #[inline(never)]
    fn has_run(&self, core: &mut Core, entry: Arc<Entry>, progress: Option<Progress>) {
        match progress {
            Some(Progress::Drained) => {}
            Some(Progress::Yield) => core.yielded.push(Work::Run(entry, core.now)),
            Some(Progress::Pause) => core.pause_after_run(&entry),
            Some(Progress::Detach) | None => self.poller.detach(entry.control.token()),
        }
    }

    #[inline(never)]
    fn run_again(&self, core: Box<Core>, entry: Arc<Entry>) -> Option<Box<Core>> {
        if entry.control.is_detached() {
            Some(core)
        } else {
            self.run_operator(core, entry)
        }
    }

    /// Lends this thread to another poller, which has none for a run.
    #[inline(never)]
    fn run_for(&self, core: Box<Core>, guest: Guest) -> Option<Box<Core>> {
        self.seat.runs(named(guest.home.id_of(&guest.entry)));
        let run = self.release(core);
        run_guest(guest);
        self.take_back(run)
    }

    #[inline(never)]
    fn run_closure(&self, core: Box<Core>, call: Call) -> Option<Box<Core>> {
        self.poller.counters.timers.add(1);
        self.seat.runs(UNNAMED);
        let run = self.release(core);
        self.poller.contain(call);
        self.take_back(run)
    }

    /// Foreign code is about to run: the role is released.
    #[inline(always)]
    fn release(&self, core: Box<Core>) -> Released {
        let poller = self.poller;
        let (begin, backlog) = (core.now, core.work.len());
        let terms = core.learner.terms(backlog);
        let deposit = poller.role.deposit(&self.seat, core, terms, backlog, begin);
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
        let took = Duration::from_nanos(Moment::now().since(begin));
        let mut core = poller.role.rejoin(number, took < SOON)?;
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
        for _ in 0..poller.role.want_help(number, now) {
            poller.counters.helpers.add(1);
            poller.send_leader();
        }
    }

    /// The poller ends: everything is detached and told so, then the runs that are due are made.
    fn end(&self, mut remains: Remains, error: Option<io::Error>) {
        let poller = self.poller;
        poller.refuse(error);
        for entry in poller.registry.close() {
            poller.announce(entry);
        }
        for command in poller.commands.close() {
            match command {
                Command::Detached(entry) => remains.detached.push(entry),
                Command::Guest(guest) => remains.guests.push(*guest),
                _ => {}
            }
        }
        for entry in remains.detached {
            poller.announce(entry);
        }
        for entry in remains.runs {
            poller.contain(move || {
                entry.operator.run();
                drop(entry);
            });
        }
        for guest in remains.guests {
            run_guest(guest);
        }
        for call in poller.schedule.close() {
            poller.contain(|| drop(call));
        }
        poller.ended();
    }
}

impl<T, F: Fn(T) -> Broken> Drop for Keep<'_, T, F> {
    fn drop(&mut self) {
        if let Some(things) = self.things.take() {
            self.broken.set(Some((self.as_broken)(things)));
        }
    }
}

/// Has a poller whose thread sleeps make a run of another; gives it back if it does not.
fn offer(guest: Guest, to: Option<&Poller>) -> Option<Guest> {
    let Some(poller) = to else {
        return Some(guest);
    };
    let mut refused = None;
    poller.push_or(Command::Guest(Box::new(guest)), |command| {
        if let Command::Guest(guest) = command {
            refused = Some(*guest);
        }
    });
    refused
}

/// Makes a run for another poller.
fn run_guest(guest: Guest) {
    let Guest { home, entry, .. } = guest;
    run_apart(&home, entry);
}

/// Makes a run on a thread that does not hold the role of its poller.
pub(crate) fn run_apart(poller: &Poller, entry: Arc<Entry>) {
    entry.control.run_begins();
    let progress = poller.contain(|| entry.operator.run());
    poller.contain(|| finish_run(poller, entry, progress));
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

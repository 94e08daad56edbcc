//! The leader's loop: a thread of the pool while it holds, or has just released, the leadership.

use std::{
    cell::Cell,
    io,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use crate::{
    contain::contained,
    leadership::{
        LocalSlot,
        detached_runs::{UNNAMED, named},
        thread_context::{self, is_polling_thread},
    },
    operator::{Budget, Progress, Requests, readiness::Readiness},
    poller::{Poller, reserve, runs::finish_run},
    reactor::{
        Reactor, Remains, Work,
        command::{Command, Guest, GuestHome},
        entry::Entry,
        run_queue::Queue,
        scheduled_calls::Call,
    },
    sync::thread,
    sys::{self, MonotonicNanos},
    thread_pool::Job,
};

/// How long a thread without the reactor looks for a shared release before it goes back to the pool:
/// about what it costs to sleep and to be woken, so that the choice is never wrong by much. With one
/// processor looking keeps others from what is looked for: a few times, and others first.
const SPIN_FOR: Duration = Duration::from_micros(50);
const SPINS: u32 = 8;
/// A run that comes back within this time has not waited.
const TOO_SHORT_TO_WAIT: Duration = Duration::from_millis(1);

/// A thread of the pool takes the leadership, if it is still to be had.
impl Job for Poller {
    fn run(self: Arc<Self>) {
        if let Some(mut reactor) = self.leadership.claim().or_else(|| steal_shared(&self)) {
            reactor.read_clock();
            Leader::run(&self, |leader| leader.lead(reactor));
        }
    }
}

/// Polls once for a poller whose runs all wait, on a thread that is not of the pool, because the
/// pool has no thread to send: those who wait for input, room, timers or the end of a connection are
/// told. Closures and brief runs go to the reserve, other runs to threads that lead one of the `others`
/// and sleep; what is left, to the first thread that is free.
///
/// Returns how many of those have waited for too long.
pub(crate) fn poll_once_for_blocked_pool(poller: &Arc<Poller>, others: &[Weak<Poller>]) -> usize {
    let mut overdue = 0;
    if let Some(reactor) = poller.leadership.borrow() {
        Leader::run(poller, |leader| {
            overdue = leader.poll_once_for_blocked_pool(reactor, others)
        });
    }
    overdue
}

/// A shared release, looked for a while.
fn steal_shared(poller: &Poller) -> Option<Box<Reactor>> {
    if !poller.leadership.begin_steal() {
        return None;
    }
    let begin = Instant::now();
    let mut spins = 0;
    while spins < SPINS || (poller.processors > 1 && begin.elapsed() < SPIN_FOR) {
        if let Some(reactor) = poller.leadership.try_steal(false) {
            return Some(reactor);
        }
        thread::yield_now();
        spins += 1;
    }
    poller.leadership.try_steal(true)
}

/// A run with the leadership released.
struct ReleasedRun {
    /// The number of its release.
    number: u64,
    begin: MonotonicNanos,
}

/// A thread while it leads.
struct Leader<'a> {
    poller: &'a Arc<Poller>,
    context: thread_context::LeaderGuard,
    local_slot: LocalSlot<Reactor>,
    /// What the latest panic has left.
    interrupted: Cell<Option<Interrupted>>,
}

/// A call of an operator that panicked, and what the leader held.
enum Interrupted {
    OnReady(Box<Reactor>, Arc<Entry>),
    Run(ReleasedRun, Arc<Entry>),
}

/// Saves things that a panic would drop; forgotten when the callback returns.
struct PanicGuard<'a, T, F: Fn(T) -> Interrupted> {
    things: &'a mut Option<T>,
    as_broken: F,
    interrupted: &'a Cell<Option<Interrupted>>,
}

impl<'a> Leader<'a> {
    /// Makes the calling thread a leader for a while.
    fn run(poller: &'a Arc<Poller>, lead: impl FnOnce(&Self)) {
        let leader = Self {
            context: thread_context::lead(poller.clone()),
            local_slot: LocalSlot::new(sys::thread_id()),
            interrupted: Cell::new(None),
            poller,
        };
        let mut outcome = contained(|| lead(&leader));
        while let Err(thrown) = outcome {
            let Some(interrupted) = leader.interrupted.take() else {
                if is_polling_thread() {
                    // Not in a callback; this was an operator's `fd`, or a mistake of our own. The
                    // reactor is lost, which must not go unnoticed.
                    leader.shut_down(
                        Remains::default(),
                        Some(io::Error::other("a panic outside of callbacks")),
                    );
                }
                return;
            };
            outcome = contained(|| {
                poller.panicked(thrown);
                if let Some(reactor) = leader.recover_after_panic(interrupted) {
                    leader.lead(reactor);
                }
            });
        }
    }

    /// Runs a callback. If it panics, `things` is saved in `self.interrupted` instead of dropped, and the
    /// `catch_unwind` in [`run`](Self::run) recovers it. Cheaper than a `catch_unwind` for each call.
    #[inline(always)]
    fn with_panic_guard<T, R>(
        &self,
        things: T,
        as_broken: impl Fn(T) -> Interrupted,
        call: impl FnOnce(&T) -> R,
    ) -> (T, R) {
        let mut things = Some(things);
        let guard = PanicGuard {
            things: &mut things,
            as_broken,
            interrupted: &self.interrupted,
        };
        let result = call(guard.things.as_ref().expect("they were put there"));
        std::mem::forget(guard);
        (things.expect("nobody took them"), result)
    }

    /// An operator panicked: it is taken out. The reactor, if this thread leads on.
    fn recover_after_panic(&self, interrupted: Interrupted) -> Option<Box<Reactor>> {
        match interrupted {
            Interrupted::OnReady(reactor, entry) => {
                self.poller.detach(entry.state.token());
                Some(reactor)
            }
            Interrupted::Run(run, entry) => self
                .end_run(run, entry, None)
                .or_else(|| self.try_resume_leading()),
        }
    }

    /// Polls until the poller closes or the leadership is gone.
    fn lead(&self, mut reactor: Box<Reactor>) {
        loop {
            while !self.poller.is_closing() {
                let Some(work) = reactor.work.pop() else {
                    break;
                };
                reactor = match self
                    .process(reactor, work)
                    .or_else(|| self.try_resume_leading())
                {
                    Some(reactor) => reactor,
                    None => return,
                };
            }
            for entry in std::mem::take(&mut reactor.detached) {
                self.poller.notify_detached(entry);
            }
            if self.poller.is_closing() {
                return self.shut_down(reactor.close(), None);
            }
            if let Err(error) = reactor.poll_cycle(self.poller) {
                return self.shut_down(reactor.close(), Some(error));
            }
        }
    }

    /// Does what can be done without calling anything that may block.
    fn poll_once_for_blocked_pool(
        &self,
        mut reactor: Box<Reactor>,
        others: &[Weak<Poller>],
    ) -> usize {
        let poller = self.poller;
        let mut left = Queue::default();
        // An end, and an error that will come again, are for a leader.
        let looked = !poller.is_closing() && reactor.poll_nonblocking(poller).is_ok();
        if looked {
            poller.counters.stand_ins.add(1);
        } else {
            left.append(&mut reactor.work);
        }
        while let Some(work) = reactor.work.pop() {
            match work {
                Work::Ready(entry, readiness) => {
                    if self.deliver(&mut reactor, &entry, readiness) {
                        left.push(Work::Run(entry, reactor.now));
                    }
                }
                Work::Timer(entry, judged) => {
                    if reactor.timer_is_due(&entry, judged) {
                        poller.counters.timers.add(1);
                        if self.deliver(&mut reactor, &entry, Readiness::TIMER) {
                            left.push(Work::Run(entry, reactor.now));
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
                    home: poller.clone() as Arc<dyn GuestHome>,
                    entry,
                    since,
                },
                Work::Guest(guest) => *guest,
                other => {
                    reactor.work.push(other);
                    continue;
                }
            };
            let idle = others.find(|other| other.commands.is_asleep());
            let Some(guest) = offer(guest, idle.as_deref()) else {
                continue;
            };
            overdue += usize::from(poller.workers.is_overdue(guest.since, reactor.now));
            reactor.work.push(if guest.home.index() == poller.index {
                Work::Run(guest.entry, guest.since)
            } else {
                Work::Guest(Box::new(guest))
            });
        }
        if looked {
            for entry in std::mem::take(&mut reactor.detached) {
                poller.notify_detached(entry);
            }
        }
        if poller.leadership.return_borrowed(reactor) {
            poller.spawn_leader();
        }
        overdue
    }

    /// The leadership is gone; where it is shared, this thread may go on with the others.
    fn try_resume_leading(&self) -> Option<Box<Reactor>> {
        let mut reactor = steal_shared(self.poller)?;
        reactor.read_clock();
        self.context.returned(true);
        Some(reactor)
    }

    /// Does one piece of work. `None`: the leadership went to another thread meanwhile.
    #[inline(always)]
    fn process(&self, mut reactor: Box<Reactor>, work: Work) -> Option<Box<Reactor>> {
        let (entry, readiness) = match work {
            Work::Ready(entry, readiness) => (entry, readiness),
            Work::Timer(entry, judged) => {
                if !reactor.timer_is_due(&entry, judged) {
                    return Some(reactor);
                }
                self.poller.counters.timers.add(1);
                (entry, Readiness::TIMER)
            }
            Work::Run(entry, _) => return self.run_again(reactor, entry),
            Work::Guest(guest) => return self.run_for(reactor, *guest),
            Work::Call(call) => return self.run_closure(reactor, call),
        };
        if !self.should_deliver(&entry, readiness) {
            return Some(reactor);
        }
        let mut budget = Budget::new(&self.poller.clock, reactor.now);
        let ((mut reactor, entry), progress) = self.with_panic_guard(
            (reactor, entry),
            |(reactor, entry)| Interrupted::OnReady(reactor, entry),
            |(_, entry)| entry.operator.on_ready(readiness, &mut budget),
        );
        let runs =
            self.after_delivery(&mut reactor, &entry, readiness, progress, budget.requests());
        if runs {
            self.run_operator(reactor, entry)
        } else {
            Some(reactor)
        }
    }

    /// Whether to tell an operator now.
    #[inline(always)]
    fn should_deliver(&self, entry: &Entry, readiness: Readiness) -> bool {
        if readiness.contains(Readiness::WAKE) {
            // A wake from here on is another one.
            entry.state.wake.clear();
        }
        if entry.state.is_detached() {
            return false;
        }
        if entry.state.is_paused() {
            entry.state.remember(readiness);
            return false;
        }
        true
    }

    /// An operator was told, and asks for something; whether it is to be run.
    #[inline(always)]
    fn after_delivery(
        &self,
        reactor: &mut Reactor,
        entry: &Arc<Entry>,
        readiness: Readiness,
        progress: Progress,
        requests: &Requests,
    ) -> bool {
        if let Some(deadline) = requests.timer {
            reactor.set_timer(self.poller, entry, deadline);
        }
        if progress != Progress::Drained {
            self.apply_progress(reactor, entry, readiness, progress);
        }
        requests.run
    }

    /// An operator was told, and does not wait for its next event.
    #[inline(never)]
    fn apply_progress(
        &self,
        reactor: &mut Reactor,
        entry: &Arc<Entry>,
        readiness: Readiness,
        progress: Progress,
    ) {
        match progress {
            Progress::Drained => {}
            Progress::Yield => reactor.yielded.push(Work::Ready(entry.clone(), readiness)),
            Progress::Pause => entry.state.pause(readiness),
            Progress::Detach => self.poller.detach(entry.state.token()),
        }
    }

    /// All of it for a loan, where nothing is run; whether the operator is to be.
    fn deliver(&self, reactor: &mut Reactor, entry: &Arc<Entry>, readiness: Readiness) -> bool {
        if !self.should_deliver(entry, readiness) {
            return false;
        }
        let mut budget = Budget::new(&self.poller.clock, reactor.now);
        let progress = self
            .poller
            .contain(|| entry.operator.on_ready(readiness, &mut budget));
        let Some(progress) = progress else {
            self.poller.detach(entry.state.token());
            return false;
        };
        self.after_delivery(reactor, entry, readiness, progress, budget.requests())
    }

    #[inline(always)]
    fn run_operator(&self, reactor: Box<Reactor>, entry: Arc<Entry>) -> Option<Box<Reactor>> {
        entry.state.run_begins();
        self.local_slot.runs(entry.state.token().raw() as u64);
        let run = self.release(reactor);
        let ((run, entry), progress) = self.with_panic_guard(
            (run, entry),
            |(run, entry)| Interrupted::Run(run, entry),
            |(_, entry)| entry.operator.run(),
        );
        self.end_run(run, entry, Some(progress))
    }

    /// A run has returned; without progress, if it panicked.
    #[inline(always)]
    fn end_run(
        &self,
        run: ReleasedRun,
        entry: Arc<Entry>,
        progress: Option<Progress>,
    ) -> Option<Box<Reactor>> {
        let Some(mut reactor) = self.reacquire(run) else {
            finish_run(self.poller, entry, progress);
            return None;
        };
        if progress != Some(Progress::Drained) {
            self.after_run(&mut reactor, entry, progress);
        }
        Some(reactor)
    }

    /// What follows from a run that did not leave its operator to wait for the next event.
    #[inline(never)]
    fn after_run(&self, reactor: &mut Reactor, entry: Arc<Entry>, progress: Option<Progress>) {
        match progress {
            Some(Progress::Drained) => {}
            Some(Progress::Yield) => reactor.yielded.push(Work::Run(entry, reactor.now)),
            Some(Progress::Pause) => reactor.pause_after_run(&entry),
            Some(Progress::Detach) | None => self.poller.detach(entry.state.token()),
        }
    }

    #[inline(never)]
    fn run_again(&self, reactor: Box<Reactor>, entry: Arc<Entry>) -> Option<Box<Reactor>> {
        if entry.state.is_detached() {
            Some(reactor)
        } else {
            self.run_operator(reactor, entry)
        }
    }

    /// Lends this thread to another poller, which has none for a run.
    #[inline(never)]
    fn run_for(&self, reactor: Box<Reactor>, guest: Guest) -> Option<Box<Reactor>> {
        self.local_slot.runs(named(guest.home.id_of(&guest.entry)));
        let run = self.release(reactor);
        run_guest(guest);
        self.reacquire(run)
    }

    #[inline(never)]
    fn run_closure(&self, reactor: Box<Reactor>, call: Call) -> Option<Box<Reactor>> {
        self.poller.counters.timers.add(1);
        self.local_slot.runs(UNNAMED);
        let run = self.release(reactor);
        self.poller.contain(call);
        self.reacquire(run)
    }

    /// User code is about to run: the leadership is released.
    #[inline(always)]
    fn release(&self, reactor: Box<Reactor>) -> ReleasedRun {
        let poller = self.poller;
        let (begin, backlog) = (reactor.now, reactor.work.len());
        let terms = reactor.sharing.share_terms(backlog);
        let release = poller
            .leadership
            .release(&self.local_slot, reactor, terms, backlog, begin);
        if release.needs_monitor {
            Arc::clone(&poller.monitor).request();
        }
        if release.needs_helpers {
            self.ensure_helpers(release.number, begin);
        }
        self.context.running(release.number);
        ReleasedRun {
            number: release.number,
            begin,
        }
    }

    /// User code has returned. `None`: the leadership went to another thread meanwhile.
    #[inline(always)]
    fn reacquire(&self, run: ReleasedRun) -> Option<Box<Reactor>> {
        let reactor = match self
            .poller
            .leadership
            .reacquire(&self.local_slot, run.number)
        {
            Some(mut reactor) => {
                reactor.record_run();
                Some(reactor)
            }
            None => self.returned(run.number, run.begin),
        };
        self.context.returned(reactor.is_some());
        reactor
    }

    /// A run that began at `begin` has returned and its release is gone: the reactor, if this thread is
    /// to lead nevertheless.
    #[inline(never)]
    fn returned(&self, number: u64, begin: MonotonicNanos) -> Option<Box<Reactor>> {
        let poller = self.poller;
        poller.counters.slow_runs.add(1);
        let took = Duration::from_nanos(MonotonicNanos::now().since(begin));
        let mut reactor = poller
            .leadership
            .try_resume_leading(number, took < TOO_SHORT_TO_WAIT)?;
        reactor.record_shared_run(begin);
        Some(reactor)
    }

    /// Sees to it that enough others are there to take shared releases.
    #[inline(never)]
    fn ensure_helpers(&self, number: u64, now: MonotonicNanos) {
        let poller = self.poller;
        if let Some(run) = poller.leadership.next_to_probe(now) {
            let waits = sys::thread_waits(run.thread);
            poller.leadership.record_probe(run.number, waits, now);
            if waits {
                poller.counters.waits.add(1);
            }
        }
        for _ in 0..poller.leadership.request_helpers(number, now) {
            poller.counters.helpers.add(1);
            poller.spawn_leader();
        }
    }

    /// The poller ends: everything is detached and told so, then the runs that are due are made.
    fn shut_down(&self, mut remains: Remains, error: Option<io::Error>) {
        let poller = self.poller;
        poller.reject_new(error);
        for entry in poller.registry.close() {
            poller.notify_detached(entry);
        }
        for command in poller.commands.close() {
            match command {
                Command::Detached(entry) => remains.detached.push(entry),
                Command::Guest(guest) => remains.guests.push(*guest),
                _ => {}
            }
        }
        for entry in remains.detached {
            poller.notify_detached(entry);
        }
        for entry in remains.runs {
            poller.contain(move || {
                let _ = entry.operator.run();
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

impl<T, F: Fn(T) -> Interrupted> Drop for PanicGuard<'_, T, F> {
    fn drop(&mut self) {
        if let Some(things) = self.things.take() {
            self.interrupted.set(Some((self.as_broken)(things)));
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
    home.run(entry);
}

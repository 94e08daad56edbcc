//! The poller's role: the right, and the means, to poll.
//!
//! The role *is* the poller's core, owned by value. The leader holds it in a local variable; before
//! it calls code that may block it deposits the core here, and takes it back afterwards if nobody
//! else did. Two leaders are impossible by construction, and what is left of a batch of events
//! travels with the core.
//!
//! A deposit has a number. Whoever finds that the depositor of number *n* waits asks for a
//! promotion of *n*: one thread is sent to accept the core. At most one such thread is under way;
//! a later request while it is only renews the number, and if the thread finds another deposit
//! than the one asked for, it leaves it alone.
//!
//! A run whose core was taken by somebody else is *abroad*; it is kept in a [list](Abroad) until it
//! returns.
//!
//! **Seats.** What others need to know of a deposit is behind a lock, but nearly every deposit is of no
//! concern to others: its run is short, and the next deposit is made by the same thread. So a leader has
//! a [seat](Seat), one word in which the core lies after its first deposit, and exchanges that word
//! alone. All others hold the lock, under which they [fetch](Slot::fetch) the core out of the seat of
//! whoever made the latest deposit, and leave it in the locked slot if they do not want it. A leader that
//! finds its seat empty looks there. Only its owner puts anything into a seat, and nobody else's core can
//! ever lie there: what a leader finds in its seat is what it has put there last.
//!
//! **Lending.** The promoted thread may not come: no more threads are allowed, or the system has
//! none. Whoever finds that out [borrows](Role::lend) the core, polls once without calling anything
//! that may block, and [puts it back](Role::put_back). What lies in the slot then belongs to no run:
//! the first thread that is free takes it.
//!
//! **Sharing.** A leader that expects runs to wait, or to keep more than one processor busy, marks
//! its deposits as shared, on [`Terms`]. A shared deposit may be taken by anybody: threads that
//! return from abroad take it and go on with the batch, and so does a promoted thread. The terms say by
//! how many others a deposit has to be *covered*: threads at work (abroad and not known to wait),
//! looking for the core, or on their way. If there are fewer, the depositor sends one before it runs.
//!
//! **Bursts.** While runs wait one after the other ([`Burst`]) every deposit is shared, and covered by
//! threads on their way or looking alone: those abroad are expected to wait.

pub(crate) mod burst;
pub(crate) mod detached_runs;
pub(crate) mod sharing_policy;
pub(crate) mod thread_context;

use std::{
    cell::{Cell, OnceCell},
    sync::Arc,
    time::Duration,
};

use crate::{
    leadership::{
        burst::Burst,
        detached_runs::{Abroad, Run, ThreadId, UNNAMED},
    },
    sync::{self, AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering},
    sys::Moment,
};

/// What others may do with a deposit, and how many of them should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Anybody may take it unasked.
    pub(crate) shared: bool,
    /// How many others should be at work, looking, or on their way.
    pub(crate) hands: usize,
}

impl Terms {
    /// Nobody takes it unasked.
    pub(crate) const ALONE: Self = Self {
        shared: false,
        hands: 0,
    };

    /// Taken by whoever is free, of whom there should be so many.
    pub(crate) const fn shared(hands: usize) -> Self {
        Self {
            shared: true,
            hands,
        }
    }
}

/// Where the core is while its leader runs foreign code.
pub(crate) struct Role<C> {
    slot: Mutex<Slot<C>>,
    /// The monitor does not look: the next deposit has to start it.
    unwatched: AtomicBool,
}

/// What is behind the lock. [`fetch`](Self::fetch) brings it up to date.
struct Slot<C> {
    core: Option<Box<C>>,
    /// Where the core may lie instead: the place of the latest deposit that nobody else was to take.
    place: Option<Arc<Place<C>>>,
    /// The latest deposit; its run is under way if the core is here.
    latest: Run,
    /// The core here is nobody's deposit: it is the first leader's, or was put back.
    ownerless: bool,
    /// Those of the latest deposit.
    terms: Terms,
    /// The number of the deposit that should be taken over.
    wanted: u64,
    /// Promoted threads under way (or queued until a thread is free).
    promoting: usize,
    /// Threads looking for a shared deposit.
    looking: usize,
    /// Runs whose core has been taken by somebody else.
    abroad: Abroad,
    burst: Burst,
    /// What was left to do when the latest deposit was made with the lock.
    backlog: usize,
}

/// A thread's own means to deposit, as long as it leads.
pub(crate) struct Seat<C> {
    thread: ThreadId,
    /// What the next deposit is made for.
    what: Cell<u64>,
    /// Made by the first deposit that can use it.
    place: OnceCell<Arc<Place<C>>>,
    /// The slot has this place, its terms are [`Terms::ALONE`], and this thread has had the core, but for
    /// its deposits, ever since.
    known: Cell<bool>,
}

struct Place<C> {
    core: sync::Slot<C>,
    /// Of the deposit that lies here, or lay here last. All are written before the core is put here.
    number: AtomicU64,
    since: AtomicU64,
    what: AtomicU64,
    thread: ThreadId,
}

/// What a deposit leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deposit {
    /// Its number.
    pub(crate) number: u64,
    /// The monitor has to be started.
    pub(crate) unwatched: bool,
    /// It is shared and nobody covers it.
    pub(crate) uncovered: bool,
}

/// A deposit seen by the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    /// The number of the latest deposit.
    pub(crate) number: u64,
    /// When it was made.
    pub(crate) since: Moment,
    /// Who made it, if the core still lies in the slot and nobody was asked to take it.
    pub(crate) runner: Option<ThreadId>,
}

impl<C> Role<C> {
    /// A role whose core waits for its first leader; the monitor looks once per `tick`.
    pub(crate) fn new(core: Box<C>, tick: Duration) -> Self {
        Self {
            slot: Mutex::new(Slot {
                core: Some(core),
                place: None,
                latest: Run::none(Moment::now()),
                ownerless: true,
                terms: Terms::ALONE,
                wanted: 1,
                promoting: 1,
                looking: 0,
                abroad: Abroad::default(),
                burst: Burst::new(tick),
                backlog: 0,
            }),
            unwatched: AtomicBool::new(true),
        }
    }

    /// Leaves the core for others to take, with a `backlog` of things to do, at the time `now`.
    #[inline]
    pub(crate) fn deposit(
        &self,
        seat: &Seat<C>,
        core: Box<C>,
        terms: Terms,
        backlog: usize,
        now: Moment,
    ) -> Deposit {
        match seat.known() {
            Some(place) if !terms.shared => Deposit {
                number: place.put(core, now, seat.what.get()),
                // After the seat's word was exchanged: see `unwatch`.
                unwatched: self.is_unwatched(),
                uncovered: false,
            },
            _ => self.deposit_with_lock(seat, core, terms, backlog, now),
        }
    }

    #[inline(never)]
    fn deposit_with_lock(
        &self,
        seat: &Seat<C>,
        core: Box<C>,
        mut terms: Terms,
        backlog: usize,
        now: Moment,
    ) -> Deposit {
        let mut slot = self.lock();
        debug_assert!(slot.core.is_none());
        terms.shared |= slot.burst.goes_on(now);
        slot.backlog = backlog;
        let number = slot.latest.number + 1;
        slot.core = Some(core);
        slot.latest = Run::new(number, seat.thread, now);
        slot.latest.what = seat.what.get();
        slot.ownerless = false;
        slot.terms = terms;
        seat.known.set(!terms.shared);
        if !terms.shared {
            slot.place = Some(seat.place(number));
        }
        Deposit {
            number,
            unwatched: self.is_unwatched(),
            uncovered: !slot.is_covered(now),
        }
    }

    /// After the foreign code returned: the caller's deposit, if it is untouched.
    #[inline]
    pub(crate) fn reclaim(&self, seat: &Seat<C>, number: u64) -> Option<Box<C>> {
        match seat.known().and_then(|place| place.core.take()) {
            Some(core) => Some(core),
            None => self.reclaim_with_lock(seat, number),
        }
    }

    #[inline(never)]
    fn reclaim_with_lock(&self, seat: &Seat<C>, number: u64) -> Option<Box<C>> {
        let mut slot = self.lock();
        if slot.latest.number == number {
            if let Some(core) = slot.core.take() {
                slot.burst.came_back();
                return Some(core);
            }
        }
        seat.known.set(false);
        None
    }

    /// The slot, up to date.
    fn lock(&self) -> MutexGuard<'_, Slot<C>> {
        let mut slot = self.slot.lock();
        slot.fetch();
        slot
    }

    /// Whether the caller's deposit is to start the monitor.
    #[inline]
    fn is_unwatched(&self) -> bool {
        self.unwatched.load(Ordering::Relaxed) && self.unwatched.swap(false, Ordering::Relaxed)
    }

    /// After a deposit that could not be reclaimed: the core, if the caller is to lead nevertheless. A run
    /// that came back `soon` has not waited.
    ///
    /// That is the case if a later deposit waits for a promotion that has not arrived, because the
    /// caller is here already; and if a later deposit is shared.
    pub(crate) fn rejoin(&self, number: u64, soon: bool) -> Option<Box<C>> {
        let mut slot = self.lock();
        slot.abroad.leave(number);
        if soon {
            slot.burst.came_back();
        }
        let wanted = slot.promoting > 0 && slot.is_wanted();
        if slot.terms.shared || wanted {
            slot.take_over()
        } else {
            None
        }
    }

    /// Asks for the deposit of this number to be taken over, because its run waits. `true`: the
    /// caller has to send a thread to [`accept`](Self::accept), or to call
    /// [`give_up`](Self::give_up).
    pub(crate) fn want(&self, number: u64) -> bool {
        self.lock().want(number)
    }

    /// As [`want`](Self::want), for a run that has not said that it waits: others behind it may do the same.
    pub(crate) fn found_waiting(&self, number: u64) -> bool {
        let mut slot = self.lock();
        slot.burst.found(Moment::now());
        slot.want(number)
    }

    /// As [`want`](Self::want) for whatever is deposited now.
    pub(crate) fn want_any(&self) -> bool {
        let mut slot = self.lock();
        slot.core.is_some() && slot.ask()
    }

    /// As [`want`](Self::want), but the run is not known to wait: more hands are wanted, if they
    /// (still) are at the time `now`. The caller has to send so many threads.
    pub(crate) fn want_help(&self, number: u64, now: Moment) -> usize {
        let mut slot = self.lock();
        if slot.core.is_none() || slot.latest.number != number {
            return 0;
        }
        let missing = slot.missing(now);
        slot.promoting += missing;
        missing
    }

    /// The promoted thread is here: the core, if it is still wanted.
    pub(crate) fn accept(&self) -> Option<Box<C>> {
        let mut slot = self.lock();
        slot.promoting = slot.promoting.saturating_sub(1);
        if slot.terms.shared || slot.is_wanted() {
            slot.take_over()
        } else {
            None
        }
    }

    /// A thread could not be sent.
    pub(crate) fn give_up(&self) {
        let mut slot = self.slot.lock();
        slot.promoting = slot.promoting.saturating_sub(1);
    }

    /// The core of a deposit that waits for a promoted thread, for a caller who knows that none
    /// will come soon; to be [put back](Self::put_back) after a moment.
    pub(crate) fn lend(&self) -> Option<Box<C>> {
        let mut slot = self.lock();
        if slot.promoting > 0 && slot.is_wanted() {
            slot.take_over()
        } else {
            None
        }
    }

    /// The end of a [loan](Self::lend). `true`: as for [`want`](Self::want), a thread has to be
    /// sent, since the one that was under way has come in vain.
    pub(crate) fn put_back(&self, core: Box<C>) -> bool {
        let mut slot = self.lock();
        debug_assert!(slot.core.is_none());
        slot.core = Some(core);
        slot.latest.number += 1;
        slot.latest.waiting = true;
        slot.ownerless = true;
        slot.ask()
    }

    /// A thread without the core begins to look for a shared deposit. `false`: there is no point.
    pub(crate) fn look(&self) -> bool {
        let mut slot = self.slot.lock();
        if slot.terms.shared {
            slot.looking += 1;
        }
        slot.terms.shared
    }

    /// Looks once. After a core or, with `last`, a final look the thread is not looking any more.
    pub(crate) fn find(&self, last: bool) -> Option<Box<C>> {
        let mut slot = self.lock();
        let core = if slot.terms.shared {
            slot.take_over()
        } else {
            None
        };
        if last || core.is_some() {
            slot.looking -= 1;
        }
        core
    }

    /// A run abroad that is suspected to wait, if any, judged at `now`. In a burst every run is asked about.
    pub(crate) fn suspect(&self, now: Moment) -> Option<Run> {
        let slot = self.slot.lock();
        if slot.burst.is_on() {
            slot.abroad
                .unasked(now)
                .or_else(|| slot.abroad.suspect(now))
        } else {
            slot.abroad.suspect(now)
        }
    }

    /// What the system says about a suspect: it waits, or it was computing at `now`.
    pub(crate) fn judge(&self, number: u64, waits: bool, now: Moment) {
        let mut slot = self.slot.lock();
        if waits {
            slot.abroad.waits(number);
            slot.burst.waits();
        } else {
            slot.abroad.computes(number, now);
            slot.burst.came_back();
        }
    }

    /// The runs that are known to go on while others poll.
    pub(crate) fn holding(&self) -> Vec<Run> {
        let slot = self.lock();
        let latest = (slot.core.is_some() && !slot.ownerless).then_some(slot.latest);
        slot.abroad.runs().iter().copied().chain(latest).collect()
    }

    /// What the monitor sees; `None` if somebody is changing it just now.
    pub(crate) fn observe(&self) -> Option<Sight> {
        let mut slot = self.slot.try_lock()?;
        slot.fetch();
        // A run that is known to wait has been dealt with.
        let alone = slot.core.is_some() && !slot.latest.waiting;
        let runner = alone.then_some(slot.latest.thread);
        Some(Sight {
            number: slot.latest.number,
            since: slot.latest.since,
            runner,
        })
    }

    /// The monitor wants to rest: `false` if there was a deposit since number `seen`.
    pub(crate) fn unwatch(&self, seen: u64) -> bool {
        let mut slot = self.slot.lock();
        // A deposit in the seat exchanges the seat's word and then looks at the flag; here it is the
        // other way round. One of the two exchanges comes second, and its side sees what the other did.
        self.unwatched.store(true, Ordering::Relaxed);
        slot.fetch();
        let idle = slot.core.is_none() && slot.latest.number == seen;
        if !idle {
            self.unwatched.store(false, Ordering::Relaxed);
        }
        idle
    }

    /// Nobody watches: the next deposit is to start the monitor.
    pub(crate) fn ask_for_watch(&self) {
        self.unwatched.store(true, Ordering::Relaxed);
    }

    /// The monitor goes on looking, though nobody asked.
    pub(crate) fn watch(&self) {
        self.unwatched.store(false, Ordering::Relaxed);
    }
}

impl<C> Seat<C> {
    /// The seat of the calling thread, which the system calls `thread`.
    pub(crate) fn new(thread: ThreadId) -> Self {
        Self {
            thread,
            what: Cell::new(UNNAMED),
            place: OnceCell::new(),
            known: Cell::new(false),
        }
    }

    /// What the next deposit is made for: see [`Run::what`].
    #[inline]
    pub(crate) fn runs(&self, what: u64) {
        self.what.set(what);
    }

    /// The place, if the core can be put and found there without a look at the slot.
    #[inline]
    fn known(&self) -> Option<&Place<C>> {
        if self.known.get() {
            self.place.get().map(|place| &**place)
        } else {
            None
        }
    }

    /// The place, for the slot to know. Deposit `number` is the latest.
    fn place(&self, number: u64) -> Arc<Place<C>> {
        let place = self.place.get_or_init(|| {
            Arc::new(Place {
                core: sync::Slot::empty(),
                number: AtomicU64::new(number),
                since: AtomicU64::new(0),
                what: AtomicU64::new(UNNAMED),
                thread: self.thread,
            })
        });
        place.number.store(number, Ordering::Relaxed);
        place.clone()
    }
}

impl<C> Place<C> {
    /// Makes the next deposit; its number.
    #[inline]
    fn put(&self, core: Box<C>, now: Moment, what: u64) -> u64 {
        // Nobody else writes these. Exchanging the core publishes them.
        let number = self.number.load(Ordering::Relaxed) + 1;
        self.number.store(number, Ordering::Relaxed);
        self.since.store(now.bits(), Ordering::Relaxed);
        self.what.store(what, Ordering::Relaxed);
        self.core.put(core);
        number
    }
}

impl<C> Slot<C> {
    /// Takes the core out of the seat it may lie in, and learns of the deposits made there.
    fn fetch(&mut self) {
        let Some(place) = &self.place else {
            return;
        };
        let core = place.core.take();
        // As of the deposit that was there, which is the latest, or else of the last one that was there;
        // or of one that is just being made: nobody knows that number yet.
        let number = place.number.load(Ordering::Relaxed);
        if core.is_some() {
            let since = Moment::from_bits(place.since.load(Ordering::Relaxed));
            self.latest = Run::new(number, place.thread, since);
            self.latest.what = place.what.load(Ordering::Relaxed);
            self.ownerless = false;
            self.core = core;
        } else {
            self.latest.number = self.latest.number.max(number);
        }
    }

    /// Takes somebody else's deposit, whose run is abroad from then on.
    fn take_over(&mut self) -> Option<Box<C>> {
        let core = self.core.take()?;
        if !self.ownerless {
            self.abroad.enter(self.latest);
        }
        Some(core)
    }

    fn want(&mut self, number: u64) -> bool {
        if self.latest.number != number || self.core.is_none() {
            self.abroad.waits(number);
            return false;
        }
        self.latest.waiting = true;
        self.ask()
    }

    fn ask(&mut self) -> bool {
        self.wanted = self.latest.number;
        let first = self.promoting == 0;
        self.promoting += usize::from(first);
        first
    }

    fn is_wanted(&self) -> bool {
        self.wanted == self.latest.number
    }

    fn is_covered(&self, now: Moment) -> bool {
        let coming = self.promoting + self.looking;
        if self.burst.is_on() {
            return coming >= self.burst.hands(self.backlog);
        }
        self.terms.hands <= coming || self.terms.hands <= coming + self.abroad.at_work(now)
    }

    /// How many threads are to be sent for the latest deposit at the time `now`.
    fn missing(&self, now: Moment) -> usize {
        if self.is_covered(now) {
            0
        } else if self.burst.is_on() {
            self.burst.hands(self.backlog) - self.promoting - self.looking
        } else {
            usize::from(self.promoting == 0)
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::leadership::detached_runs::SUSPECT_AFTER;

    /// A role, its first leader's core, and the seats of some threads.
    fn led() -> (Role<i32>, Box<i32>, [Seat<i32>; 4]) {
        let role = Role::new(Box::new(7), Duration::from_millis(1));
        let core = role.accept().unwrap();
        (role, core, [0, 1, 2, 3].map(Seat::new))
    }

    /// What a thread does when its run returned.
    fn back(role: &Role<i32>, seat: &Seat<i32>, number: u64) -> Option<Box<i32>> {
        role.reclaim(seat, number)
            .or_else(|| role.rejoin(number, false))
    }

    fn alone(role: &Role<i32>, seat: &Seat<i32>, core: Box<i32>) -> Deposit {
        role.deposit(seat, core, Terms::ALONE, 0, Moment::now())
    }

    fn sighted(role: &Role<i32>) -> (u64, Option<ThreadId>) {
        let sight = role.observe().expect("nobody holds the lock");
        (sight.number, sight.runner)
    }

    #[test]
    fn the_depositor_gets_its_core_back() {
        let (role, core, seats) = led();
        assert!(role.accept().is_none());
        let deposit = alone(&role, &seats[1], core);
        assert!(deposit.unwatched, "the first deposit starts the monitor");
        assert!(!deposit.uncovered, "nobody else is to take it");
        let Deposit { number, .. } = deposit;
        assert_eq!(sighted(&role), (number, Some(1)));
        let core = back(&role, &seats[1], number).unwrap();
        assert_eq!(sighted(&role), (number, None));
        assert!(!alone(&role, &seats[1], core).unwatched);
    }

    #[test]
    fn a_runner_that_comes_back_leaves_a_later_deposit_alone_unless_it_is_wanted() {
        let (role, core, seats) = led();
        let first = alone(&role, &seats[1], core).number;
        assert!(role.want(first));
        assert!(!role.want(first), "one promotion at a time");
        let core = role.accept().unwrap();
        let second = alone(&role, &seats[2], core).number;
        assert!(back(&role, &seats[1], first).is_none());
        // The second runner waits, but the thread sent for it does not arrive: the pool is full.
        assert!(role.want(second));
        assert!(back(&role, &seats[1], first).is_some());
        assert!(role.accept().is_none());
        assert!(back(&role, &seats[2], second).is_none());
    }

    #[test]
    fn a_promotion_that_cannot_be_sent_can_be_asked_for_again() {
        let (role, core, seats) = led();
        assert!(!role.want_any());
        let number = alone(&role, &seats[1], core).number;
        assert!(!role.want(number + 1));
        assert!(role.want_any());
        role.give_up();
        assert!(role.want(number));
    }

    #[test]
    fn a_core_that_nobody_comes_for_is_lent_and_put_back() {
        let (role, core, seats) = led();
        let first = alone(&role, &seats[1], core).number;
        assert!(role.lend().is_none(), "nobody is waited for");
        assert!(role.want(first));
        let core = role.lend().expect("the promoted thread is not here");
        assert!(role.lend().is_none());
        assert!(!role.put_back(core), "it is still to come");
        // Lent once more, while it comes in vain.
        let core = role.lend().unwrap();
        assert!(role.accept().is_none());
        assert!(role.put_back(core), "another has to be sent");
        assert!(role.observe().unwrap().runner.is_none());
        // The first run returns before that one: it leads.
        let core = back(&role, &seats[1], first).unwrap();
        assert!(role.accept().is_none());
        assert!(back(&role, &seats[1], first).is_none());
        let second = alone(&role, &seats[1], core).number;
        assert!(back(&role, &seats[1], second).is_some());
    }

    #[test]
    fn a_run_that_returns_during_a_loan_leaves_nothing_behind() {
        let (role, core, seats) = led();
        let first = alone(&role, &seats[1], core).number;
        assert!(role.want(first));
        let core = role.lend().unwrap();
        assert!(back(&role, &seats[1], first).is_none());
        assert!(!role.put_back(core));
        let core = role.accept().expect("the thread that was under way");
        // No run is abroad that could cover this.
        assert!(
            role.deposit(&seats[1], core, Terms::shared(1), 0, Moment::now())
                .uncovered
        );
    }

    #[test]
    fn the_monitor_rests_only_if_nothing_lies_in_the_slot() {
        let (role, core, seats) = led();
        let number = alone(&role, &seats[1], core).number;
        assert!(!role.unwatch(number));
        let core = back(&role, &seats[1], number).unwrap();
        assert!(!role.unwatch(number - 1));
        assert!(role.unwatch(number));
        assert!(alone(&role, &seats[1], core).unwatched);
        role.ask_for_watch();
        role.watch();
        let core = back(&role, &seats[1], number + 1).unwrap();
        assert!(!alone(&role, &seats[1], core).unwatched);
    }

    #[test]
    fn shared_deposits_are_covered_by_those_at_work() {
        let (role, core, seats) = led();
        let start = Moment::now();
        let share =
            |core, thread, now| role.deposit(&seats[thread], core, Terms::shared(1), 0, now);
        let first = share(core, 1, start);
        assert!(first.uncovered);
        assert!(role.want_help(first.number, start) > 0);
        assert!(
            (role.want_help(first.number, start) == 0),
            "one is on its way"
        );
        let core = role
            .accept()
            .expect("a promoted thread takes a shared deposit");
        // The first run is at work: the second is covered, until the first is late.
        let second = share(core, 2, start);
        assert!(!second.uncovered);
        let core = back(&role, &seats[2], second.number).unwrap();
        let late = start + 2 * SUSPECT_AFTER;
        assert_eq!(role.suspect(start).map(|run| run.number), None);
        assert_eq!(
            role.suspect(late).map(|run| (run.number, run.thread)),
            Some((first.number, 1))
        );
        let second = share(core, 2, late);
        assert!(second.uncovered);
        // It turns out to compute, later to wait.
        role.judge(first.number, false, late);
        assert!(role.suspect(late).is_none());
        let core = back(&role, &seats[2], second.number).unwrap();
        let second = share(core, 2, late);
        assert!(!second.uncovered);
        role.judge(first.number, true, late);
        assert!(
            role.suspect(late + 2 * SUSPECT_AFTER).is_none(),
            "no suspect, but certain"
        );
        let core = back(&role, &seats[2], second.number).unwrap();
        let third = share(core, 2, late);
        assert!(third.uncovered);
        // The first comes back and joins in, and takes the deposit over.
        let core = back(&role, &seats[1], first.number).unwrap();
        assert!(!share(core, 1, late).uncovered);
        assert!(back(&role, &seats[2], third.number).is_some());
    }

    #[test]
    fn as_many_are_asked_for_as_the_terms_say() {
        let (role, core, seats) = led();
        let now = Moment::now();
        let share = |core, thread| role.deposit(&seats[thread], core, Terms::shared(2), 0, now);
        let first = share(core, 1);
        assert!(first.uncovered && role.want_help(first.number, now) > 0);
        let core = role.accept().unwrap();
        let second = share(core, 2);
        assert!(second.uncovered, "one of two is there");
        assert!(role.want_help(second.number, now) > 0);
        let core = role.accept().unwrap();
        let third = share(core, 3);
        assert!(!third.uncovered);
        assert!(role.want_help(third.number, now) == 0, "enough are there");
        // Without a demand those who are there go on all the same.
        let core = back(&role, &seats[3], third.number).unwrap();
        let fourth = role.deposit(&seats[3], core, Terms::shared(0), 0, now);
        assert!(!fourth.uncovered);
        assert!(back(&role, &seats[1], first.number).is_some());
    }

    #[test]
    fn a_run_that_says_it_waits_covers_nothing() {
        let (role, core, seats) = led();
        let now = Moment::now();
        let first = role.deposit(&seats[1], core, Terms::shared(1), 0, now);
        assert!(role.want_help(first.number, now) > 0);
        let core = role.accept().unwrap();
        assert!(!role.want(first.number), "its core is in good hands");
        assert!(
            role.deposit(&seats[2], core, Terms::shared(1), 0, now)
                .uncovered
        );
    }

    #[test]
    fn threads_that_look_cover_a_deposit_and_find_it() {
        let (role, core, seats) = led();
        assert!(!role.look(), "nothing is shared");
        let now = Moment::now();
        let number = role
            .deposit(&seats[1], core, Terms::shared(1), 0, now)
            .number;
        let core = back(&role, &seats[1], number).unwrap();
        assert!(role.look());
        assert!(role.find(false).is_none());
        assert!(
            !role
                .deposit(&seats[1], core, Terms::shared(1), 0, now)
                .uncovered
        );
        let core = role.find(false).unwrap();
        assert!(back(&role, &seats[1], number + 1).is_none());
        assert!(
            role.deposit(&seats[1], core, Terms::shared(1), 0, now)
                .uncovered
        );
        assert!(role.look());
        assert!(role.find(true).is_some());
    }

    /// Deposits of a leader that is left alone touch its seat only, and others see them all the same.
    #[test]
    fn a_deposit_in_the_seat_is_one_like_any_other() {
        let (role, core, seats) = led();
        let first = alone(&role, &seats[1], core).number;
        let mut core = back(&role, &seats[1], first).unwrap();
        for more in 1..5 {
            let deposit = alone(&role, &seats[1], core);
            assert_eq!(deposit.number, first + more);
            assert!(role.slot.lock().core.is_none(), "it lies in the seat");
            core = back(&role, &seats[1], deposit.number).unwrap();
        }
        let fifth = alone(&role, &seats[1], core).number;
        // Looked at, it has moved, which its depositor does not notice.
        assert_eq!(sighted(&role), (fifth, Some(1)));
        assert!(role.slot.lock().core.is_some());
        let core = back(&role, &seats[1], fifth).unwrap();
        let sixth = alone(&role, &seats[1], core).number;
        assert_eq!(sixth, fifth + 1);
        assert!(role.slot.lock().core.is_none(), "the seat again");
        // Taken over, and another seat is the one that counts.
        assert!(!role.want(fifth), "that one is over");
        assert!(role.want(sixth));
        let core = role.accept().unwrap();
        let seventh = alone(&role, &seats[2], core).number;
        let core = back(&role, &seats[2], seventh).unwrap();
        let eighth = alone(&role, &seats[2], core).number;
        assert_eq!((seventh, eighth), (sixth + 1, sixth + 2));
        assert!(back(&role, &seats[1], sixth).is_none());
        assert_eq!(sighted(&role), (eighth, Some(2)));
        let core = back(&role, &seats[2], eighth).unwrap();
        // What is shared does not lie in a seat, nor does what follows it at once.
        let now = Moment::now();
        let ninth = role
            .deposit(&seats[2], core, Terms::shared(0), 0, now)
            .number;
        assert!(role.slot.lock().core.is_some());
        let core = back(&role, &seats[2], ninth).unwrap();
        let tenth = alone(&role, &seats[2], core).number;
        assert!(!role.look(), "nothing is shared any more");
        assert!(back(&role, &seats[2], tenth).is_some());
        assert_eq!(tenth, eighth + 2);
    }

    #[test]
    fn the_monitor_learns_of_deposits_in_a_seat() {
        let (role, core, seats) = led();
        let first = alone(&role, &seats[1], core).number;
        let core = back(&role, &seats[1], first).unwrap();
        let second = alone(&role, &seats[1], core).number;
        assert!(!role.unwatch(second), "it lies there");
        let core = back(&role, &seats[1], second).unwrap();
        let third = alone(&role, &seats[1], core).number;
        let core = back(&role, &seats[1], third).unwrap();
        assert!(!role.unwatch(second), "there was another");
        assert!(role.unwatch(third));
        let fourth = alone(&role, &seats[1], core);
        assert!(fourth.unwatched);
        let core = back(&role, &seats[1], fourth.number).unwrap();
        assert!(!alone(&role, &seats[1], core).unwatched, "once");
    }
}

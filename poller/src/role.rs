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

use std::time::Instant;

use crate::{
    abroad::{Abroad, Run, ThreadId},
    sync::Mutex,
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
}

struct Slot<C> {
    core: Option<Box<C>>,
    /// The latest deposit; its run is under way if the core is here.
    latest: Run,
    /// The core here is nobody's deposit: it is the first leader's, or was put back.
    ownerless: bool,
    /// Those of the latest deposit.
    terms: Terms,
    /// The number of the deposit that should be taken over.
    wanted: u64,
    /// A promoted thread is under way (or queued until a thread is free).
    promoting: bool,
    /// Threads looking for a shared deposit.
    looking: usize,
    /// Runs whose core has been taken by somebody else.
    abroad: Abroad,
    /// The monitor does not look: the next deposit has to start it.
    unwatched: bool,
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
    pub(crate) since: Instant,
    /// Who made it, if the core still lies in the slot and nobody was asked to take it.
    pub(crate) runner: Option<ThreadId>,
}

impl<C> Role<C> {
    /// A role whose core waits for its first leader.
    pub(crate) fn new(core: Box<C>) -> Self {
        Self {
            slot: Mutex::new(Slot {
                core: Some(core),
                latest: Run::none(Instant::now()),
                ownerless: true,
                terms: Terms::ALONE,
                wanted: 1,
                promoting: true,
                looking: 0,
                abroad: Abroad::default(),
                unwatched: true,
            }),
        }
    }

    /// Leaves the core for others to take, at the time `now`.
    #[inline]
    pub(crate) fn deposit(
        &self,
        core: Box<C>,
        thread: ThreadId,
        terms: Terms,
        now: Instant,
    ) -> Deposit {
        let mut slot = self.slot.lock();
        debug_assert!(slot.core.is_none());
        slot.core = Some(core);
        slot.latest = Run::new(slot.latest.number + 1, thread, now);
        slot.ownerless = false;
        slot.terms = terms;
        let unwatched = slot.unwatched;
        slot.unwatched = false;
        Deposit {
            number: slot.latest.number,
            unwatched,
            uncovered: terms.hands > 0 && !slot.is_covered(now),
        }
    }

    /// After the foreign code returned: the caller's deposit, if it is untouched.
    #[inline]
    pub(crate) fn reclaim(&self, number: u64) -> Option<Box<C>> {
        let mut slot = self.slot.lock();
        if slot.latest.number == number {
            slot.core.take()
        } else {
            None
        }
    }

    /// After a deposit that could not be reclaimed: the core, if the caller is to lead nevertheless.
    ///
    /// That is the case if a later deposit waits for a promotion that has not arrived, because the
    /// caller is here already; and if a later deposit is shared.
    pub(crate) fn rejoin(&self, number: u64) -> Option<Box<C>> {
        let mut slot = self.slot.lock();
        slot.abroad.leave(number);
        let wanted = slot.promoting && slot.is_wanted();
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
        let mut slot = self.slot.lock();
        if slot.latest.number != number || slot.core.is_none() {
            slot.abroad.waits(number);
            return false;
        }
        slot.latest.waiting = true;
        slot.ask()
    }

    /// As [`want`](Self::want) for whatever is deposited now.
    pub(crate) fn want_any(&self) -> bool {
        let mut slot = self.slot.lock();
        slot.core.is_some() && slot.ask()
    }

    /// As [`want`](Self::want), but the run is not known to wait: more hands are wanted, if they
    /// (still) are at the time `now`.
    pub(crate) fn want_help(&self, number: u64, now: Instant) -> bool {
        let mut slot = self.slot.lock();
        slot.core.is_some()
            && slot.latest.number == number
            && !slot.is_covered(now)
            && !std::mem::replace(&mut slot.promoting, true)
    }

    /// The promoted thread is here: the core, if it is still wanted.
    pub(crate) fn accept(&self) -> Option<Box<C>> {
        let mut slot = self.slot.lock();
        slot.promoting = false;
        if slot.terms.shared || slot.is_wanted() {
            slot.take_over()
        } else {
            None
        }
    }

    /// No thread could be sent.
    pub(crate) fn give_up(&self) {
        self.slot.lock().promoting = false;
    }

    /// The core of a deposit that waits for a promoted thread, for a caller who knows that none
    /// will come soon; to be [put back](Self::put_back) after a moment.
    pub(crate) fn lend(&self) -> Option<Box<C>> {
        let mut slot = self.slot.lock();
        if slot.promoting && slot.is_wanted() {
            slot.take_over()
        } else {
            None
        }
    }

    /// The end of a [loan](Self::lend). `true`: as for [`want`](Self::want), a thread has to be
    /// sent, since the one that was under way has come in vain.
    pub(crate) fn put_back(&self, core: Box<C>) -> bool {
        let mut slot = self.slot.lock();
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
        let mut slot = self.slot.lock();
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

    /// A run abroad that is suspected to wait, if any, judged at `now`.
    pub(crate) fn suspect(&self, now: Instant) -> Option<Run> {
        self.slot.lock().abroad.suspect(now)
    }

    /// What the system says about a suspect: it waits, or it was computing at `now`.
    pub(crate) fn judge(&self, number: u64, waits: bool, now: Instant) {
        let mut slot = self.slot.lock();
        if waits {
            slot.abroad.waits(number);
        } else {
            slot.abroad.computes(number, now);
        }
    }

    /// What the monitor sees; `None` if somebody is changing it just now.
    pub(crate) fn observe(&self) -> Option<Sight> {
        let slot = self.slot.try_lock()?;
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
        slot.unwatched = slot.core.is_none() && slot.latest.number == seen;
        slot.unwatched
    }

    /// Nobody watches: the next deposit is to start the monitor.
    pub(crate) fn ask_for_watch(&self) {
        self.slot.lock().unwatched = true;
    }

    /// The monitor goes on looking, though nobody asked.
    pub(crate) fn watch(&self) {
        self.slot.lock().unwatched = false;
    }
}

impl<C> Slot<C> {
    /// Takes somebody else's deposit, whose run is abroad from then on.
    fn take_over(&mut self) -> Option<Box<C>> {
        let core = self.core.take()?;
        if !self.ownerless {
            self.abroad.enter(self.latest);
        }
        Some(core)
    }

    fn ask(&mut self) -> bool {
        self.wanted = self.latest.number;
        !std::mem::replace(&mut self.promoting, true)
    }

    fn is_wanted(&self) -> bool {
        self.wanted == self.latest.number
    }

    fn is_covered(&self, now: Instant) -> bool {
        let there = usize::from(self.promoting) + self.looking + self.abroad.at_work(now);
        there >= self.terms.hands
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::abroad::SUSPECT_AFTER;

    fn led() -> (Role<i32>, Box<i32>) {
        let role = Role::new(Box::new(7));
        let core = role.accept().unwrap();
        (role, core)
    }

    /// What a thread does when its run returned.
    fn back(role: &Role<i32>, number: u64) -> Option<Box<i32>> {
        role.reclaim(number).or_else(|| role.rejoin(number))
    }

    fn alone(role: &Role<i32>, core: Box<i32>) -> Deposit {
        role.deposit(core, 1, Terms::ALONE, Instant::now())
    }

    #[test]
    fn the_depositor_gets_its_core_back() {
        let (role, core) = led();
        assert!(role.accept().is_none());
        let deposit = alone(&role, core);
        assert!(deposit.unwatched, "the first deposit starts the monitor");
        assert!(!deposit.uncovered, "nobody else is to take it");
        let Deposit { number, .. } = deposit;
        assert_eq!(
            role.observe().map(|sight| (sight.number, sight.runner)),
            Some((number, Some(1)))
        );
        let core = back(&role, number).unwrap();
        assert_eq!(
            role.observe().map(|sight| (sight.number, sight.runner)),
            Some((number, None))
        );
        assert!(!alone(&role, core).unwatched);
    }

    #[test]
    fn a_runner_that_comes_back_leaves_a_later_deposit_alone_unless_it_is_wanted() {
        let (role, core) = led();
        let first = alone(&role, core).number;
        assert!(role.want(first));
        assert!(!role.want(first), "one promotion at a time");
        let core = role.accept().unwrap();
        let second = alone(&role, core).number;
        assert!(back(&role, first).is_none());
        // The second runner waits, but the thread sent for it does not arrive: the pool is full.
        assert!(role.want(second));
        assert!(back(&role, first).is_some());
        assert!(role.accept().is_none());
        assert!(back(&role, second).is_none());
    }

    #[test]
    fn a_promotion_that_cannot_be_sent_can_be_asked_for_again() {
        let (role, core) = led();
        assert!(!role.want_any());
        let number = alone(&role, core).number;
        assert!(!role.want(number + 1));
        assert!(role.want_any());
        role.give_up();
        assert!(role.want(number));
    }

    #[test]
    fn a_core_that_nobody_comes_for_is_lent_and_put_back() {
        let (role, core) = led();
        let first = alone(&role, core).number;
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
        let core = back(&role, first).unwrap();
        assert!(role.accept().is_none());
        assert!(back(&role, first).is_none());
        let second = alone(&role, core).number;
        assert!(back(&role, second).is_some());
    }

    #[test]
    fn a_run_that_returns_during_a_loan_leaves_nothing_behind() {
        let (role, core) = led();
        let first = alone(&role, core).number;
        assert!(role.want(first));
        let core = role.lend().unwrap();
        assert!(back(&role, first).is_none());
        assert!(!role.put_back(core));
        let core = role.accept().expect("the thread that was under way");
        // No run is abroad that could cover this.
        assert!(
            role.deposit(core, 1, Terms::shared(1), Instant::now())
                .uncovered
        );
    }

    #[test]
    fn the_monitor_rests_only_if_nothing_lies_in_the_slot() {
        let (role, core) = led();
        let number = alone(&role, core).number;
        assert!(!role.unwatch(number));
        let core = back(&role, number).unwrap();
        assert!(!role.unwatch(number - 1));
        assert!(role.unwatch(number));
        assert!(alone(&role, core).unwatched);
        role.ask_for_watch();
        role.watch();
        let core = back(&role, number + 1).unwrap();
        assert!(!alone(&role, core).unwatched);
    }

    #[test]
    fn shared_deposits_are_covered_by_those_at_work() {
        let (role, core) = led();
        let start = Instant::now();
        let share = |core, thread, now| role.deposit(core, thread, Terms::shared(1), now);
        let first = share(core, 1, start);
        assert!(first.uncovered);
        assert!(role.want_help(first.number, start));
        assert!(!role.want_help(first.number, start), "one is on its way");
        let core = role
            .accept()
            .expect("a promoted thread takes a shared deposit");
        // The first run is at work: the second is covered, until the first is late.
        let second = share(core, 2, start);
        assert!(!second.uncovered);
        let core = back(&role, second.number).unwrap();
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
        let core = back(&role, second.number).unwrap();
        let second = share(core, 2, late);
        assert!(!second.uncovered);
        role.judge(first.number, true, late);
        assert!(
            role.suspect(late + 2 * SUSPECT_AFTER).is_none(),
            "no suspect, but certain"
        );
        let core = back(&role, second.number).unwrap();
        let third = share(core, 2, late);
        assert!(third.uncovered);
        // The first comes back and joins in, and takes the deposit over.
        let core = back(&role, first.number).unwrap();
        assert!(!share(core, 1, late).uncovered);
        assert!(back(&role, third.number).is_some());
    }

    #[test]
    fn as_many_are_asked_for_as_the_terms_say() {
        let (role, core) = led();
        let now = Instant::now();
        let share = |core, thread| role.deposit(core, thread, Terms::shared(2), now);
        let first = share(core, 1);
        assert!(first.uncovered && role.want_help(first.number, now));
        let core = role.accept().unwrap();
        let second = share(core, 2);
        assert!(second.uncovered, "one of two is there");
        assert!(role.want_help(second.number, now));
        let core = role.accept().unwrap();
        let third = share(core, 3);
        assert!(!third.uncovered);
        assert!(!role.want_help(third.number, now), "enough are there");
        // Without a demand those who are there go on all the same.
        let core = back(&role, third.number).unwrap();
        let fourth = role.deposit(core, 3, Terms::shared(0), now);
        assert!(!fourth.uncovered);
        assert!(back(&role, first.number).is_some());
    }

    #[test]
    fn a_run_that_says_it_waits_covers_nothing() {
        let (role, core) = led();
        let now = Instant::now();
        let first = role.deposit(core, 1, Terms::shared(1), now);
        assert!(role.want_help(first.number, now));
        let core = role.accept().unwrap();
        assert!(!role.want(first.number), "its core is in good hands");
        assert!(role.deposit(core, 2, Terms::shared(1), now).uncovered);
    }

    #[test]
    fn threads_that_look_cover_a_deposit_and_find_it() {
        let (role, core) = led();
        assert!(!role.look(), "nothing is shared");
        let now = Instant::now();
        let number = role.deposit(core, 1, Terms::shared(1), now).number;
        let core = back(&role, number).unwrap();
        assert!(role.look());
        assert!(role.find(false).is_none());
        assert!(!role.deposit(core, 1, Terms::shared(1), now).uncovered);
        let core = role.find(false).unwrap();
        assert!(back(&role, number + 1).is_none());
        assert!(role.deposit(core, 1, Terms::shared(1), now).uncovered);
        assert!(role.look());
        assert!(role.find(true).is_some());
    }
}

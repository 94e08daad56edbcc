//! Leadership of a poller: the right, and the means, to poll (leader/followers pattern).
//!
//! Leadership *is* the poller's reactor, owned by value. The leader holds the reactor in a local variable.
//!
//! 1. Leader: before a callback that may block, [releases](Leadership::release) the reactor here.
//! 2. Leader: after the callback, [reacquires](Leadership::reacquire) it, unless another thread took it.
//!
//! Two leaders cannot exist, because there is one value. The rest of a batch of events moves with it.
//!
//! **Handoff.** Releases are numbered.
//!
//! 1. A thread that finds that the run of release *n* blocks [requests a handoff](Leadership::request_handoff)
//!    of *n*, and sends one thread of the pool.
//! 2. The sent thread [claims](Leadership::claim) the reactor if *n* is still the latest release.
//!
//! At most one requested thread is under way. A later request meanwhile only replaces the number.
//!
//! **Detached runs.** A run whose reactor another thread took is *detached*. It stays in a
//! [list](DetachedRuns) until it returns.
//!
//! **Fast path.** Most releases are never claimed: the run is short and the same thread releases again. The
//! leader therefore stores the reactor in its own atomic cell ([`LocalSlot`]), and takes it back with one
//! exchange. Any other thread first locks the state and then
//! [moves the reactor](Locked::sync_from_local_slot) from the latest leader's cell into the locked state. Only
//! the owning thread stores into its cell. A reactor found there is always the one stored there last.
//!
//! **Borrowing.** The requested thread may not come: the pool is at its cap, or the system refuses a thread.
//! The monitor then [borrows](Leadership::borrow) the reactor, polls once without a call that may block, and
//! [returns](Leadership::return_borrowed) it. The returned reactor belongs to no run: the first free thread
//! claims it.
//!
//! **Sharing.** A leader that expects runs to block, or to keep several processors busy, marks its releases
//! as shared ([`ShareTerms`]). Any thread may [steal](Leadership::try_steal) a shared release.
//! `ShareTerms::helpers` is the number of other threads required: running detached callbacks not known to
//! block, spinning for the reactor, or being woken. If fewer exist, the leader wakes one before it runs.
//!
//! **Bursts.** While runs block one after the other ([`Burst`]) every release is shared. Detached runs are
//! expected to block then, and do not count as helpers.

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
        detached_runs::{DetachedRun, DetachedRuns, ThreadId, UNNAMED},
    },
    sync::{self, AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering},
    sys::MonotonicNanos,
};

/// Which threads may take a release, and how many helpers it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShareTerms {
    /// Any thread may steal it without a request.
    pub(crate) shared: bool,
    /// Other threads that should be running, spinning for it, or being woken.
    pub(crate) helpers: usize,
}

impl ShareTerms {
    /// Taken after a request only.
    pub(crate) const EXCLUSIVE: Self = Self {
        shared: false,
        helpers: 0,
    };

    /// Taken by any free thread, with so many helpers required.
    pub(crate) const fn shared(helpers: usize) -> Self {
        Self {
            shared: true,
            helpers,
        }
    }
}

/// Where the reactor is while its leader runs user code.
pub(crate) struct Leadership<C> {
    locked: Mutex<Locked<C>>,
    /// The monitor rests: the next release has to start it.
    needs_monitor: AtomicBool,
}

/// The state behind the lock. [`sync_from_local_slot`](Self::sync_from_local_slot) brings it up to date.
struct Locked<C> {
    reactor: Option<Box<C>>,
    /// The cell that may hold the reactor instead: that of the latest exclusive release.
    place: Option<Arc<SharedCell<C>>>,
    /// The latest release; its run is under way if the reactor is here.
    latest: DetachedRun,
    /// The reactor belongs to no run: it waits for the first leader, or was returned after a loan.
    ownerless: bool,
    /// The terms of the latest release.
    terms: ShareTerms,
    /// The release for which a handoff is requested.
    wanted: u64,
    /// Requested threads under way, or queued until a thread is free.
    promoting: usize,
    /// Threads spinning for a shared release.
    looking: usize,
    /// Runs whose reactor another thread took.
    detached_runs: DetachedRuns,
    burst: Burst,
    /// Length of the work queue at the latest release with the lock.
    backlog: usize,
}

/// The fast slot of a leader's thread.
pub(crate) struct LocalSlot<C> {
    thread: ThreadId,
    /// Names the callback of the next release: see [`DetachedRun::what`].
    what: Cell<u64>,
    /// Allocated by the first exclusive release.
    place: OnceCell<Arc<SharedCell<C>>>,
    /// The slot has this place, its terms are [`ShareTerms::EXCLUSIVE`], and this thread has had the reactor, but for
    /// its releases, ever since.
    known: Cell<bool>,
}

struct SharedCell<C> {
    reactor: sync::AtomicBox<C>,
    /// Of the release that lies here, or lay here last. All are written before the reactor is put here.
    number: AtomicU64,
    since: AtomicU64,
    what: AtomicU64,
    thread: ThreadId,
}

/// What a release leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Released {
    /// Its number.
    pub(crate) number: u64,
    /// The monitor has to be started.
    pub(crate) needs_monitor: bool,
    /// It is shared and has too few helpers.
    pub(crate) needs_helpers: bool,
}

/// A release seen by the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Observation {
    /// The number of the latest release.
    pub(crate) number: u64,
    /// When it was made.
    pub(crate) since: MonotonicNanos,
    /// The thread that released, if the reactor is still here and no handoff was requested.
    pub(crate) runner: Option<ThreadId>,
}

impl<C> Leadership<C> {
    /// A leadership whose reactor waits for its first leader; the monitor looks once per `tick`.
    pub(crate) fn new(reactor: Box<C>, tick: Duration) -> Self {
        Self {
            locked: Mutex::new(Locked {
                reactor: Some(reactor),
                place: None,
                latest: DetachedRun::none(MonotonicNanos::now()),
                ownerless: true,
                terms: ShareTerms::EXCLUSIVE,
                wanted: 1,
                promoting: 1,
                looking: 0,
                detached_runs: DetachedRuns::default(),
                burst: Burst::new(tick),
                backlog: 0,
            }),
            needs_monitor: AtomicBool::new(true),
        }
    }

    /// Leaves the reactor for others to take, with a `backlog` of things to do, at the time `now`.
    #[inline]
    pub(crate) fn release(
        &self,
        local_slot: &LocalSlot<C>,
        reactor: Box<C>,
        terms: ShareTerms,
        backlog: usize,
        now: MonotonicNanos,
    ) -> Released {
        match local_slot.known() {
            Some(place) if !terms.shared => Released {
                number: place.put(reactor, now, local_slot.what.get()),
                // After the word of the slot was exchanged: see `try_stop_monitor`.
                needs_monitor: self.take_monitor_request(),
                needs_helpers: false,
            },
            _ => self.release_with_lock(local_slot, reactor, terms, backlog, now),
        }
    }

    #[inline(never)]
    fn release_with_lock(
        &self,
        local_slot: &LocalSlot<C>,
        reactor: Box<C>,
        mut terms: ShareTerms,
        backlog: usize,
        now: MonotonicNanos,
    ) -> Released {
        let mut slot = self.lock();
        debug_assert!(slot.reactor.is_none());
        terms.shared |= slot.burst.goes_on(now);
        slot.backlog = backlog;
        let number = slot.latest.number + 1;
        slot.reactor = Some(reactor);
        slot.latest = DetachedRun::new(number, local_slot.thread, now);
        slot.latest.what = local_slot.what.get();
        slot.ownerless = false;
        slot.terms = terms;
        local_slot.known.set(!terms.shared);
        if !terms.shared {
            slot.place = Some(local_slot.place(number));
        }
        Released {
            number,
            needs_monitor: self.take_monitor_request(),
            needs_helpers: !slot.has_enough_helpers(now),
        }
    }

    /// After the user code returned: the caller's release, if it is untouched.
    #[inline]
    pub(crate) fn reacquire(&self, local_slot: &LocalSlot<C>, number: u64) -> Option<Box<C>> {
        match local_slot.known().and_then(|place| place.reactor.take()) {
            Some(reactor) => Some(reactor),
            None => self.reacquire_with_lock(local_slot, number),
        }
    }

    #[inline(never)]
    fn reacquire_with_lock(&self, local_slot: &LocalSlot<C>, number: u64) -> Option<Box<C>> {
        let mut slot = self.lock();
        if slot.latest.number == number {
            if let Some(reactor) = slot.reactor.take() {
                slot.burst.came_back();
                return Some(reactor);
            }
        }
        local_slot.known.set(false);
        None
    }

    /// The slot, up to date.
    fn lock(&self) -> MutexGuard<'_, Locked<C>> {
        let mut slot = self.locked.lock();
        slot.sync_from_local_slot();
        slot
    }

    /// Whether the caller's release is to start the monitor.
    #[inline]
    fn take_monitor_request(&self) -> bool {
        self.needs_monitor.load(Ordering::Relaxed)
            && self.needs_monitor.swap(false, Ordering::Relaxed)
    }

    /// After a release that could not be reacquired: the reactor, if the caller is to lead nevertheless. A run
    /// that came back `soon` has not waited.
    ///
    /// That is the case if a later release waits for a promotion that has not arrived, because the
    /// caller is here already; and if a later release is shared.
    pub(crate) fn try_resume_leading(&self, number: u64, soon: bool) -> Option<Box<C>> {
        let mut slot = self.lock();
        slot.detached_runs.leave(number);
        if soon {
            slot.burst.came_back();
        }
        let wanted = slot.promoting > 0 && slot.is_wanted();
        if slot.terms.shared || wanted {
            slot.steal()
        } else {
            None
        }
    }

    /// Asks for the release of this number to be taken over, because its run waits. `true`: the
    /// caller has to send a thread to [`claim`](Self::claim), or to call
    /// [`cancel_handoff`](Self::cancel_handoff).
    pub(crate) fn request_handoff(&self, number: u64) -> bool {
        self.lock().request_handoff(number)
    }

    /// As [`request_handoff`](Self::request_handoff), for a run that has not said that it waits: others behind it may do the same.
    pub(crate) fn request_handoff_of_blocked(&self, number: u64) -> bool {
        let mut slot = self.lock();
        slot.burst.found(MonotonicNanos::now());
        slot.request_handoff(number)
    }

    /// As [`request_handoff`](Self::request_handoff) for whatever is released now.
    pub(crate) fn request_any_handoff(&self) -> bool {
        let mut slot = self.lock();
        slot.reactor.is_some() && slot.set_wanted()
    }

    /// As [`request_handoff`](Self::request_handoff), but the run is not known to wait: more helpers are wanted, if they
    /// (still) are at the time `now`. The caller has to send so many threads.
    pub(crate) fn request_helpers(&self, number: u64, now: MonotonicNanos) -> usize {
        let mut slot = self.lock();
        if slot.reactor.is_none() || slot.latest.number != number {
            return 0;
        }
        let missing_helpers = slot.missing_helpers(now);
        slot.promoting += missing_helpers;
        missing_helpers
    }

    /// The promoted thread is here: the reactor, if it is still wanted.
    pub(crate) fn claim(&self) -> Option<Box<C>> {
        let mut slot = self.lock();
        slot.promoting = slot.promoting.saturating_sub(1);
        if slot.terms.shared || slot.is_wanted() {
            slot.steal()
        } else {
            None
        }
    }

    /// A thread could not be sent.
    pub(crate) fn cancel_handoff(&self) {
        let mut slot = self.locked.lock();
        slot.promoting = slot.promoting.saturating_sub(1);
    }

    /// The reactor of a release that waits for a promoted thread, for a caller who knows that none
    /// will come soon; to be [put back](Self::return_borrowed) after a moment.
    pub(crate) fn borrow(&self) -> Option<Box<C>> {
        let mut slot = self.lock();
        if slot.promoting > 0 && slot.is_wanted() {
            slot.steal()
        } else {
            None
        }
    }

    /// The end of a [loan](Self::borrow). `true`: as for [`request_handoff`](Self::request_handoff), a thread has to be
    /// sent, since the one that was under way has come in vain.
    pub(crate) fn return_borrowed(&self, reactor: Box<C>) -> bool {
        let mut slot = self.lock();
        debug_assert!(slot.reactor.is_none());
        slot.reactor = Some(reactor);
        slot.latest.number += 1;
        slot.latest.waiting = true;
        slot.ownerless = true;
        slot.set_wanted()
    }

    /// A thread without the reactor begins to look for a shared release. `false`: there is no point.
    pub(crate) fn begin_steal(&self) -> bool {
        let mut slot = self.locked.lock();
        if slot.terms.shared {
            slot.looking += 1;
        }
        slot.terms.shared
    }

    /// Looks once. After a reactor or, with `last`, a final look the thread is not looking any more.
    pub(crate) fn try_steal(&self, last: bool) -> Option<Box<C>> {
        let mut slot = self.lock();
        let reactor = if slot.terms.shared {
            slot.steal()
        } else {
            None
        };
        if last || reactor.is_some() {
            slot.looking -= 1;
        }
        reactor
    }

    /// A run detached that is suspected to wait, if any, judged at `now`. In a burst every run is asked about.
    pub(crate) fn next_to_probe(&self, now: MonotonicNanos) -> Option<DetachedRun> {
        let slot = self.locked.lock();
        slot.detached_runs.next_to_probe(now, slot.burst.is_on())
    }

    /// What the system says about a suspect: it waits, or it was computing at `now`.
    pub(crate) fn record_probe(&self, number: u64, waits: bool, now: MonotonicNanos) {
        let mut slot = self.locked.lock();
        if waits {
            slot.detached_runs.waits(number);
            slot.burst.waits();
        } else {
            slot.detached_runs.computes(number, now);
            slot.burst.came_back();
        }
    }

    /// The runs that are known to go on while others poll.
    pub(crate) fn holding(&self) -> Vec<DetachedRun> {
        let slot = self.lock();
        let latest = (slot.reactor.is_some() && !slot.ownerless).then_some(slot.latest);
        slot.detached_runs
            .runs()
            .iter()
            .copied()
            .chain(latest)
            .collect()
    }

    /// What the monitor sees; `None` if the lock is taken.
    pub(crate) fn snapshot(&self) -> Option<Observation> {
        let mut slot = self.locked.try_lock()?;
        slot.sync_from_local_slot();
        // A run that is known to wait has been dealt with.
        let alone = slot.reactor.is_some() && !slot.latest.waiting;
        let runner = alone.then_some(slot.latest.thread);
        Some(Observation {
            number: slot.latest.number,
            since: slot.latest.since,
            runner,
        })
    }

    /// The monitor wants to rest: `false` if there was a release since number `seen`.
    pub(crate) fn try_stop_monitor(&self, seen: u64) -> bool {
        let mut slot = self.locked.lock();
        // A release in the local slot exchanges the word of the slot and then looks at the flag; here it is the
        // other way round. One of the two exchanges comes second, and its side sees what the other did.
        self.needs_monitor.store(true, Ordering::Relaxed);
        slot.sync_from_local_slot();
        let idle = slot.reactor.is_none() && slot.latest.number == seen;
        if !idle {
            self.needs_monitor.store(false, Ordering::Relaxed);
        }
        idle
    }

    /// The monitor has no thread: the next release tries to start it.
    pub(crate) fn request_monitor(&self) {
        self.needs_monitor.store(true, Ordering::Relaxed);
    }

    /// The monitor continues without a request.
    pub(crate) fn resume_monitor(&self) {
        self.needs_monitor.store(false, Ordering::Relaxed);
    }
}

impl<C> LocalSlot<C> {
    /// The local slot of the calling thread, which the system calls `thread`.
    pub(crate) fn new(thread: ThreadId) -> Self {
        Self {
            thread,
            what: Cell::new(UNNAMED),
            place: OnceCell::new(),
            known: Cell::new(false),
        }
    }

    /// What the next release is made for: see [`DetachedRun::what`].
    #[inline]
    pub(crate) fn runs(&self, what: u64) {
        self.what.set(what);
    }

    /// The place, if the reactor can be put and found there without a look at the slot.
    #[inline]
    fn known(&self) -> Option<&SharedCell<C>> {
        if self.known.get() {
            self.place.get().map(|place| &**place)
        } else {
            None
        }
    }

    /// The place, for the slot to know. Released `number` is the latest.
    fn place(&self, number: u64) -> Arc<SharedCell<C>> {
        let place = self.place.get_or_init(|| {
            Arc::new(SharedCell {
                reactor: sync::AtomicBox::empty(),
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

impl<C> SharedCell<C> {
    /// Makes the next release; its number.
    #[inline]
    fn put(&self, reactor: Box<C>, now: MonotonicNanos, what: u64) -> u64 {
        // Only this thread writes these. The exchange of the reactor publishes them.
        let number = self.number.load(Ordering::Relaxed) + 1;
        self.number.store(number, Ordering::Relaxed);
        self.since.store(now.bits(), Ordering::Relaxed);
        self.what.store(what, Ordering::Relaxed);
        self.reactor.put(reactor);
        number
    }
}

impl<C> Locked<C> {
    /// Takes the reactor out of the local slot it may lie in, and learns of the releases made there.
    fn sync_from_local_slot(&mut self) {
        let Some(place) = &self.place else {
            return;
        };
        let reactor = place.reactor.take();
        // As of the release that was there, which is the latest, or else of the last one that was there;
        // or of one that is just being made: no thread has read that number yet.
        let number = place.number.load(Ordering::Relaxed);
        if reactor.is_some() {
            let since = MonotonicNanos::from_bits(place.since.load(Ordering::Relaxed));
            self.latest = DetachedRun::new(number, place.thread, since);
            self.latest.what = place.what.load(Ordering::Relaxed);
            self.ownerless = false;
            self.reactor = reactor;
        } else {
            self.latest.number = self.latest.number.max(number);
        }
    }

    /// Takes another thread's release, whose run is detached from then on.
    fn steal(&mut self) -> Option<Box<C>> {
        let reactor = self.reactor.take()?;
        if !self.ownerless {
            self.detached_runs.enter(self.latest);
        }
        Some(reactor)
    }

    fn request_handoff(&mut self, number: u64) -> bool {
        if self.latest.number != number || self.reactor.is_none() {
            self.detached_runs.waits(number);
            return false;
        }
        self.latest.waiting = true;
        self.set_wanted()
    }

    fn set_wanted(&mut self) -> bool {
        self.wanted = self.latest.number;
        let first = self.promoting == 0;
        self.promoting += usize::from(first);
        first
    }

    fn is_wanted(&self) -> bool {
        self.wanted == self.latest.number
    }

    fn has_enough_helpers(&self, now: MonotonicNanos) -> bool {
        let coming = self.promoting + self.looking;
        if self.burst.is_on() {
            return coming >= self.burst.helpers(self.backlog);
        }
        self.terms.helpers <= coming
            || self.terms.helpers <= coming + self.detached_runs.running_count(now)
    }

    /// How many threads are to be sent for the latest release at the time `now`.
    fn missing_helpers(&self, now: MonotonicNanos) -> usize {
        if self.has_enough_helpers(now) {
            0
        } else if self.burst.is_on() {
            self.burst.helpers(self.backlog) - self.promoting - self.looking
        } else {
            usize::from(self.promoting == 0)
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::leadership::detached_runs::SUSPECT_AFTER;

    /// A leadership, its first leader's reactor, and the local slots of some threads.
    fn led() -> (Leadership<i32>, Box<i32>, [LocalSlot<i32>; 4]) {
        let leadership = Leadership::new(Box::new(7), Duration::from_millis(1));
        let reactor = leadership.claim().unwrap();
        (leadership, reactor, [0, 1, 2, 3].map(LocalSlot::new))
    }

    /// What a thread does when its run returned.
    fn back(
        leadership: &Leadership<i32>,
        local_slot: &LocalSlot<i32>,
        number: u64,
    ) -> Option<Box<i32>> {
        leadership
            .reacquire(local_slot, number)
            .or_else(|| leadership.try_resume_leading(number, false))
    }

    fn alone(
        leadership: &Leadership<i32>,
        local_slot: &LocalSlot<i32>,
        reactor: Box<i32>,
    ) -> Released {
        leadership.release(
            local_slot,
            reactor,
            ShareTerms::EXCLUSIVE,
            0,
            MonotonicNanos::now(),
        )
    }

    fn sighted(leadership: &Leadership<i32>) -> (u64, Option<ThreadId>) {
        let observation = leadership.snapshot().expect("nobody holds the lock");
        (observation.number, observation.runner)
    }

    #[test]
    fn the_depositor_gets_its_core_back() {
        let (leadership, reactor, slots) = led();
        assert!(leadership.claim().is_none());
        let release = alone(&leadership, &slots[1], reactor);
        assert!(
            release.needs_monitor,
            "the first release starts the monitor"
        );
        assert!(!release.needs_helpers, "nobody else is to take it");
        let Released { number, .. } = release;
        assert_eq!(sighted(&leadership), (number, Some(1)));
        let reactor = back(&leadership, &slots[1], number).unwrap();
        assert_eq!(sighted(&leadership), (number, None));
        assert!(!alone(&leadership, &slots[1], reactor).needs_monitor);
    }

    #[test]
    fn a_runner_that_comes_back_leaves_a_later_deposit_alone_unless_it_is_wanted() {
        let (leadership, reactor, slots) = led();
        let first = alone(&leadership, &slots[1], reactor).number;
        assert!(leadership.request_handoff(first));
        assert!(
            !leadership.request_handoff(first),
            "one promotion at a time"
        );
        let reactor = leadership.claim().unwrap();
        let second = alone(&leadership, &slots[2], reactor).number;
        assert!(back(&leadership, &slots[1], first).is_none());
        // The second runner waits, but the thread sent for it does not arrive: the pool is full.
        assert!(leadership.request_handoff(second));
        assert!(back(&leadership, &slots[1], first).is_some());
        assert!(leadership.claim().is_none());
        assert!(back(&leadership, &slots[2], second).is_none());
    }

    #[test]
    fn a_promotion_that_cannot_be_sent_can_be_asked_for_again() {
        let (leadership, reactor, slots) = led();
        assert!(!leadership.request_any_handoff());
        let number = alone(&leadership, &slots[1], reactor).number;
        assert!(!leadership.request_handoff(number + 1));
        assert!(leadership.request_any_handoff());
        leadership.cancel_handoff();
        assert!(leadership.request_handoff(number));
    }

    #[test]
    fn a_core_that_nobody_comes_for_is_lent_and_put_back() {
        let (leadership, reactor, slots) = led();
        let first = alone(&leadership, &slots[1], reactor).number;
        assert!(leadership.borrow().is_none(), "nobody is waited for");
        assert!(leadership.request_handoff(first));
        let reactor = leadership
            .borrow()
            .expect("the promoted thread is not here");
        assert!(leadership.borrow().is_none());
        assert!(!leadership.return_borrowed(reactor), "it is still to come");
        // Lent once more, while it comes in vain.
        let reactor = leadership.borrow().unwrap();
        assert!(leadership.claim().is_none());
        assert!(
            leadership.return_borrowed(reactor),
            "another has to be sent"
        );
        assert!(leadership.snapshot().unwrap().runner.is_none());
        // The first run returns before that one: it leads.
        let reactor = back(&leadership, &slots[1], first).unwrap();
        assert!(leadership.claim().is_none());
        assert!(back(&leadership, &slots[1], first).is_none());
        let second = alone(&leadership, &slots[1], reactor).number;
        assert!(back(&leadership, &slots[1], second).is_some());
    }

    #[test]
    fn a_run_that_returns_during_a_loan_leaves_nothing_behind() {
        let (leadership, reactor, slots) = led();
        let first = alone(&leadership, &slots[1], reactor).number;
        assert!(leadership.request_handoff(first));
        let reactor = leadership.borrow().unwrap();
        assert!(back(&leadership, &slots[1], first).is_none());
        assert!(!leadership.return_borrowed(reactor));
        let reactor = leadership.claim().expect("the thread that was under way");
        // No run is detached that could cover this.
        assert!(
            leadership
                .release(
                    &slots[1],
                    reactor,
                    ShareTerms::shared(1),
                    0,
                    MonotonicNanos::now()
                )
                .needs_helpers
        );
    }

    #[test]
    fn the_monitor_rests_only_if_nothing_lies_in_the_slot() {
        let (leadership, reactor, slots) = led();
        let number = alone(&leadership, &slots[1], reactor).number;
        assert!(!leadership.try_stop_monitor(number));
        let reactor = back(&leadership, &slots[1], number).unwrap();
        assert!(!leadership.try_stop_monitor(number - 1));
        assert!(leadership.try_stop_monitor(number));
        assert!(alone(&leadership, &slots[1], reactor).needs_monitor);
        leadership.request_monitor();
        leadership.resume_monitor();
        let reactor = back(&leadership, &slots[1], number + 1).unwrap();
        assert!(!alone(&leadership, &slots[1], reactor).needs_monitor);
    }

    #[test]
    fn shared_deposits_are_covered_by_those_at_work() {
        let (leadership, reactor, slots) = led();
        let start = MonotonicNanos::now();
        let share = |reactor, thread, now| {
            leadership.release(&slots[thread], reactor, ShareTerms::shared(1), 0, now)
        };
        let first = share(reactor, 1, start);
        assert!(first.needs_helpers);
        assert!(leadership.request_helpers(first.number, start) > 0);
        assert!(
            (leadership.request_helpers(first.number, start) == 0),
            "one is on its way"
        );
        let reactor = leadership
            .claim()
            .expect("a promoted thread takes a shared release");
        // The first run is at work: the second is covered, until the first is late.
        let second = share(reactor, 2, start);
        assert!(!second.needs_helpers);
        let reactor = back(&leadership, &slots[2], second.number).unwrap();
        let late = start + 2 * SUSPECT_AFTER;
        assert_eq!(leadership.next_to_probe(start).map(|run| run.number), None);
        assert_eq!(
            leadership
                .next_to_probe(late)
                .map(|run| (run.number, run.thread)),
            Some((first.number, 1))
        );
        let second = share(reactor, 2, late);
        assert!(second.needs_helpers);
        // It turns out to compute, later to wait.
        leadership.record_probe(first.number, false, late);
        assert!(leadership.next_to_probe(late).is_none());
        let reactor = back(&leadership, &slots[2], second.number).unwrap();
        let second = share(reactor, 2, late);
        assert!(!second.needs_helpers);
        leadership.record_probe(first.number, true, late);
        assert!(
            leadership.next_to_probe(late + 2 * SUSPECT_AFTER).is_none(),
            "no suspect, but certain"
        );
        let reactor = back(&leadership, &slots[2], second.number).unwrap();
        let third = share(reactor, 2, late);
        assert!(third.needs_helpers);
        // The first comes back and joins in, and takes the release over.
        let reactor = back(&leadership, &slots[1], first.number).unwrap();
        assert!(!share(reactor, 1, late).needs_helpers);
        assert!(back(&leadership, &slots[2], third.number).is_some());
    }

    #[test]
    fn as_many_are_asked_for_as_the_terms_say() {
        let (leadership, reactor, slots) = led();
        let now = MonotonicNanos::now();
        let share = |reactor, thread| {
            leadership.release(&slots[thread], reactor, ShareTerms::shared(2), 0, now)
        };
        let first = share(reactor, 1);
        assert!(first.needs_helpers && leadership.request_helpers(first.number, now) > 0);
        let reactor = leadership.claim().unwrap();
        let second = share(reactor, 2);
        assert!(second.needs_helpers, "one of two is there");
        assert!(leadership.request_helpers(second.number, now) > 0);
        let reactor = leadership.claim().unwrap();
        let third = share(reactor, 3);
        assert!(!third.needs_helpers);
        assert!(
            leadership.request_helpers(third.number, now) == 0,
            "enough are there"
        );
        // Without a demand those who are there go on all the same.
        let reactor = back(&leadership, &slots[3], third.number).unwrap();
        let fourth = leadership.release(&slots[3], reactor, ShareTerms::shared(0), 0, now);
        assert!(!fourth.needs_helpers);
        assert!(back(&leadership, &slots[1], first.number).is_some());
    }

    #[test]
    fn a_run_that_says_it_waits_covers_nothing() {
        let (leadership, reactor, slots) = led();
        let now = MonotonicNanos::now();
        let first = leadership.release(&slots[1], reactor, ShareTerms::shared(1), 0, now);
        assert!(leadership.request_helpers(first.number, now) > 0);
        let reactor = leadership.claim().unwrap();
        assert!(
            !leadership.request_handoff(first.number),
            "its core is in good hands"
        );
        assert!(
            leadership
                .release(&slots[2], reactor, ShareTerms::shared(1), 0, now)
                .needs_helpers
        );
    }

    #[test]
    fn threads_that_look_cover_a_deposit_and_find_it() {
        let (leadership, reactor, slots) = led();
        assert!(!leadership.begin_steal(), "nothing is shared");
        let now = MonotonicNanos::now();
        let number = leadership
            .release(&slots[1], reactor, ShareTerms::shared(1), 0, now)
            .number;
        let reactor = back(&leadership, &slots[1], number).unwrap();
        assert!(leadership.begin_steal());
        assert!(leadership.try_steal(false).is_none());
        assert!(
            !leadership
                .release(&slots[1], reactor, ShareTerms::shared(1), 0, now)
                .needs_helpers
        );
        let reactor = leadership.try_steal(false).unwrap();
        assert!(back(&leadership, &slots[1], number + 1).is_none());
        assert!(
            leadership
                .release(&slots[1], reactor, ShareTerms::shared(1), 0, now)
                .needs_helpers
        );
        assert!(leadership.begin_steal());
        assert!(leadership.try_steal(true).is_some());
    }

    /// Releases of a leader that is left alone touch its local slot only, and others see them all the same.
    #[test]
    fn a_deposit_in_the_seat_is_one_like_any_other() {
        let (leadership, reactor, slots) = led();
        let first = alone(&leadership, &slots[1], reactor).number;
        let mut reactor = back(&leadership, &slots[1], first).unwrap();
        for more in 1..5 {
            let release = alone(&leadership, &slots[1], reactor);
            assert_eq!(release.number, first + more);
            assert!(
                leadership.locked.lock().reactor.is_none(),
                "it lies in the local slot"
            );
            reactor = back(&leadership, &slots[1], release.number).unwrap();
        }
        let fifth = alone(&leadership, &slots[1], reactor).number;
        // Looked at, it has moved, which its releasing leader does not notice.
        assert_eq!(sighted(&leadership), (fifth, Some(1)));
        assert!(leadership.locked.lock().reactor.is_some());
        let reactor = back(&leadership, &slots[1], fifth).unwrap();
        let sixth = alone(&leadership, &slots[1], reactor).number;
        assert_eq!(sixth, fifth + 1);
        assert!(
            leadership.locked.lock().reactor.is_none(),
            "the local slot again"
        );
        // Taken over, and another local slot is the one that counts.
        assert!(!leadership.request_handoff(fifth), "that one is over");
        assert!(leadership.request_handoff(sixth));
        let reactor = leadership.claim().unwrap();
        let seventh = alone(&leadership, &slots[2], reactor).number;
        let reactor = back(&leadership, &slots[2], seventh).unwrap();
        let eighth = alone(&leadership, &slots[2], reactor).number;
        assert_eq!((seventh, eighth), (sixth + 1, sixth + 2));
        assert!(back(&leadership, &slots[1], sixth).is_none());
        assert_eq!(sighted(&leadership), (eighth, Some(2)));
        let reactor = back(&leadership, &slots[2], eighth).unwrap();
        // What is shared does not lie in a local slot, nor does what follows it at once.
        let now = MonotonicNanos::now();
        let ninth = leadership
            .release(&slots[2], reactor, ShareTerms::shared(0), 0, now)
            .number;
        assert!(leadership.locked.lock().reactor.is_some());
        let reactor = back(&leadership, &slots[2], ninth).unwrap();
        let tenth = alone(&leadership, &slots[2], reactor).number;
        assert!(!leadership.begin_steal(), "nothing is shared any more");
        assert!(back(&leadership, &slots[2], tenth).is_some());
        assert_eq!(tenth, eighth + 2);
    }

    #[test]
    fn the_monitor_learns_of_deposits_in_a_seat() {
        let (leadership, reactor, slots) = led();
        let first = alone(&leadership, &slots[1], reactor).number;
        let reactor = back(&leadership, &slots[1], first).unwrap();
        let second = alone(&leadership, &slots[1], reactor).number;
        assert!(!leadership.try_stop_monitor(second), "it lies there");
        let reactor = back(&leadership, &slots[1], second).unwrap();
        let third = alone(&leadership, &slots[1], reactor).number;
        let reactor = back(&leadership, &slots[1], third).unwrap();
        assert!(!leadership.try_stop_monitor(second), "there was another");
        assert!(leadership.try_stop_monitor(third));
        let fourth = alone(&leadership, &slots[1], reactor);
        assert!(fourth.needs_monitor);
        let reactor = back(&leadership, &slots[1], fourth.number).unwrap();
        assert!(
            !alone(&leadership, &slots[1], reactor).needs_monitor,
            "once"
        );
    }
}

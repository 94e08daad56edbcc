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

use crate::sync::Mutex;

/// Where the core is while its leader runs foreign code.
pub(crate) struct Role<C> {
    slot: Mutex<Slot<C>>,
}

struct Slot<C> {
    core: Option<Box<C>>,
    /// The number of the latest deposit.
    deposit: u64,
    /// The deposit that should be taken over.
    wanted: u64,
    /// A promoted thread is under way (or queued until a thread is free).
    promoting: bool,
    /// The depositor of `deposit`.
    runner: ThreadId,
    /// The monitor does not look: the next deposit has to start it.
    unwatched: bool,
}

/// The system's number of a thread, 0 if unknown.
pub(crate) type ThreadId = u32;

/// A deposit seen by the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sight {
    /// The number of the latest deposit.
    pub(crate) deposit: u64,
    /// Who made it, if the core still lies in the slot.
    pub(crate) runner: Option<ThreadId>,
}

impl<C> Role<C> {
    /// A role whose core waits for its first leader.
    pub(crate) fn new(core: Box<C>) -> Self {
        Self {
            slot: Mutex::new(Slot {
                core: Some(core),
                deposit: 1,
                wanted: 1,
                promoting: true,
                runner: 0,
                unwatched: true,
            }),
        }
    }

    /// Leaves the core for others to take. Returns the deposit's number and whether the monitor
    /// has to be started.
    pub(crate) fn deposit(&self, core: Box<C>, runner: ThreadId) -> (u64, bool) {
        let mut slot = self.slot.lock();
        debug_assert!(slot.core.is_none());
        slot.core = Some(core);
        slot.deposit += 1;
        slot.runner = runner;
        let unwatched = slot.unwatched;
        slot.unwatched = false;
        (slot.deposit, unwatched)
    }

    /// After the foreign code returned: the core, if the caller is to lead (on).
    ///
    /// That is the case if its own deposit is untouched, and also if a later leader's deposit waits
    /// for a promotion that has not arrived: the caller is here already.
    pub(crate) fn reclaim(&self, deposit: u64) -> Option<Box<C>> {
        let mut slot = self.slot.lock();
        if slot.deposit == deposit || (slot.promoting && slot.wanted == slot.deposit) {
            slot.core.take()
        } else {
            None
        }
    }

    /// Asks for `deposit` to be taken over. `true`: the caller has to send a thread to
    /// [`accept`](Self::accept), or to call [`give_up`](Self::give_up).
    pub(crate) fn want(&self, deposit: u64) -> bool {
        let mut slot = self.slot.lock();
        if slot.core.is_none() || slot.deposit != deposit {
            return false;
        }
        slot.wanted = deposit;
        !std::mem::replace(&mut slot.promoting, true)
    }

    /// As [`want`](Self::want) for whatever is deposited now.
    pub(crate) fn want_any(&self) -> bool {
        let mut slot = self.slot.lock();
        if slot.core.is_none() {
            return false;
        }
        slot.wanted = slot.deposit;
        !std::mem::replace(&mut slot.promoting, true)
    }

    /// The promoted thread is here: the core, if it is still wanted.
    pub(crate) fn accept(&self) -> Option<Box<C>> {
        let mut slot = self.slot.lock();
        slot.promoting = false;
        if slot.wanted == slot.deposit {
            slot.core.take()
        } else {
            None
        }
    }

    /// No thread could be sent.
    pub(crate) fn give_up(&self) {
        self.slot.lock().promoting = false;
    }

    /// What the monitor sees; `None` if somebody is changing it just now.
    pub(crate) fn observe(&self) -> Option<Sight> {
        let slot = self.slot.try_lock()?;
        let runner = slot.core.is_some().then_some(slot.runner);
        Some(Sight {
            deposit: slot.deposit,
            runner,
        })
    }

    /// The monitor wants to rest: `false` if there was a deposit since number `seen`.
    pub(crate) fn unwatch(&self, seen: u64) -> bool {
        let mut slot = self.slot.lock();
        slot.unwatched = slot.core.is_none() && slot.deposit == seen;
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_depositor_gets_its_core_back() {
        let role = Role::new(Box::new(7));
        let core = role.accept().unwrap();
        assert!(role.accept().is_none());
        let (number, unwatched) = role.deposit(core, 1);
        assert!(unwatched, "the first deposit starts the monitor");
        assert_eq!(
            role.observe(),
            Some(Sight {
                deposit: number,
                runner: Some(1)
            })
        );
        let core = role.reclaim(number).unwrap();
        assert_eq!(
            role.observe(),
            Some(Sight {
                deposit: number,
                runner: None
            })
        );
        assert!(!role.deposit(core, 1).1);
    }

    #[test]
    fn a_runner_that_comes_back_leaves_a_later_deposit_alone_unless_it_is_wanted() {
        let role = Role::new(Box::new(7));
        let core = role.accept().unwrap();
        let first = role.deposit(core, 1).0;
        assert!(role.want(first));
        assert!(!role.want(first), "one promotion at a time");
        let core = role.accept().unwrap();
        let second = role.deposit(core, 2).0;
        assert!(role.reclaim(first).is_none());
        // The second runner waits, but the thread sent for it does not arrive: the pool is full.
        assert!(role.want(second));
        assert!(role.reclaim(first).is_some());
        assert!(role.accept().is_none());
        assert!(role.reclaim(second).is_none());
    }

    #[test]
    fn a_promotion_that_cannot_be_sent_can_be_asked_for_again() {
        let role = Role::new(Box::new(7));
        let core = role.accept().unwrap();
        assert!(!role.want_any());
        let number = role.deposit(core, 1).0;
        assert!(!role.want(number + 1));
        assert!(role.want_any());
        role.give_up();
        assert!(role.want(number));
    }

    #[test]
    fn the_monitor_rests_only_if_nothing_lies_in_the_slot() {
        let role = Role::new(Box::new(7));
        let core = role.accept().unwrap();
        let number = role.deposit(core, 1).0;
        assert!(!role.unwatch(number));
        let core = role.reclaim(number).unwrap();
        assert!(!role.unwatch(number - 1));
        assert!(role.unwatch(number));
        assert!(role.deposit(core, 1).1);
        role.ask_for_watch();
        role.watch();
        let core = role.reclaim(number + 1).unwrap();
        assert!(!role.deposit(core, 1).1);
    }
}

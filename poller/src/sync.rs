//! The one place synchronisation primitives come from, so that loom and shuttle check the real
//! code.
//!
//! Normal builds use `std` atomics and `parking_lot` locks (both visible to ThreadSanitizer);
//! under `--cfg loom` the same names are loom's (small models, all interleavings and orderings up
//! to a bound), under `--cfg shuttle` shuttle's (larger scenarios, random interleavings,
//! sequentially consistent). The lock API follows `parking_lot`: `lock` returns a guard, a
//! condition variable waits on `&mut guard`, nothing is poisoned.
//!
//! `std::sync::Arc` is used everywhere, also in models, because operators are trait objects.

pub use imp::*;

use imp::One;

/// An atomic cell for one box that threads take and put back: the taker owns it alone.
pub struct AtomicBox<T>(One<T>);

impl<T> std::fmt::Debug for AtomicBox<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtomicBox")
    }
}

impl<T> AtomicBox<T> {
    /// Nothing is there.
    pub fn empty() -> Self {
        Self(One::default())
    }

    /// Takes what is there.
    ///
    /// As every exchange of the slot's word this, whether it finds anything or not, comes after all
    /// exchanges before it, with all that was done before those.
    #[inline]
    pub fn take(&self) -> Option<Box<T>> {
        self.0.take()
    }

    /// Puts something there. What was there before is dropped.
    #[inline]
    pub fn put(&self, thing: Box<T>) {
        self.0.put(thing);
    }
}

#[cfg(not(any(loom, shuttle)))]
mod imp {
    use crossbeam_utils::atomic::AtomicCell;
    pub use parking_lot::{Condvar, Mutex, MutexGuard};
    pub use std::sync::atomic::{
        AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub use std::thread;

    /// One word, exchanged: half the atomic operations of a lock.
    pub(super) struct One<T>(AtomicCell<Option<Box<T>>>);

    impl<T> One<T> {
        #[inline]
        pub(super) fn take(&self) -> Option<Box<T>> {
            self.0.take()
        }

        #[inline]
        pub(super) fn put(&self, thing: Box<T>) {
            // Not stored: an exchange continues what earlier ones have published.
            drop(self.0.swap(Some(thing)));
        }
    }

    impl<T> Default for One<T> {
        fn default() -> Self {
            const {
                assert!(AtomicCell::<Option<Box<T>>>::is_lock_free());
            }
            Self(AtomicCell::new(None))
        }
    }
}

#[cfg(any(loom, shuttle))]
mod imp {
    #[cfg(loom)]
    use loom as checker;
    #[cfg(shuttle)]
    use shuttle as checker;

    pub use checker::sync::atomic::{
        AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
    };
    pub use checker::thread;

    /// Runs a scenario under shuttle: random schedules, then schedules with few preemptions at
    /// well-chosen places. A failure prints its schedule. `SHUTTLE_SCHEDULES` says how many of
    /// either kind; 2000 by default.
    #[cfg(shuttle)]
    pub fn check_schedules(scenario: impl Fn() + Clone + Send + Sync + 'static) {
        let schedules = std::env::var("SHUTTLE_SCHEDULES")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(2000);
        shuttle::check_random(scenario.clone(), schedules);
        shuttle::check_pct(scenario, schedules, 3);
    }

    use std::{
        fmt,
        ops::{Deref, DerefMut},
        time::Instant,
    };

    pub(super) struct One<T>(Mutex<Option<Box<T>>>);

    impl<T> One<T> {
        pub(super) fn take(&self) -> Option<Box<T>> {
            self.0.lock().take()
        }

        pub(super) fn put(&self, thing: Box<T>) {
            *self.0.lock() = Some(thing);
        }
    }

    impl<T> Default for One<T> {
        fn default() -> Self {
            Self(Mutex::new(None))
        }
    }

    /// `parking_lot::Mutex` in shape, the checker's in substance.
    pub struct Mutex<T>(checker::sync::Mutex<T>);

    impl<T> Mutex<T> {
        /// A new, unlocked mutex.
        pub fn new(value: T) -> Self {
            Self(checker::sync::Mutex::new(value))
        }

        /// Waits for the lock.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(|e| e.into_inner())))
        }

        /// The lock, if it is free.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
        }
    }

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self::new(T::default())
        }
    }

    impl<T> fmt::Debug for Mutex<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Mutex")
        }
    }

    /// Holds the lock; the inner guard is absent only inside a wait.
    pub struct MutexGuard<'a, T>(Option<checker::sync::MutexGuard<'a, T>>);

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;
        fn deref(&self) -> &T {
            self.0.as_deref().expect("guard is held outside of waits")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0
                .as_deref_mut()
                .expect("guard is held outside of waits")
        }
    }

    impl<T> fmt::Debug for MutexGuard<'_, T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("MutexGuard")
        }
    }

    /// `parking_lot::Condvar` in shape, the checker's in substance.
    #[derive(Debug)]
    pub struct Condvar(checker::sync::Condvar);

    impl Condvar {
        /// A condition variable without waiters.
        pub fn new() -> Self {
            Self(checker::sync::Condvar::new())
        }

        /// Releases the lock, waits for a notification, takes the lock again.
        pub fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
            let inner = guard.0.take().expect("guard is held outside of waits");
            guard.0 = Some(self.0.wait(inner).unwrap_or_else(|e| e.into_inner()));
        }

        /// As [`Self::wait`]: the checkers have no clock, so the deadline never passes.
        pub fn wait_until<T>(
            &self,
            guard: &mut MutexGuard<'_, T>,
            _: Instant,
        ) -> WaitTimeoutResult {
            self.wait(guard);
            WaitTimeoutResult(false)
        }

        /// Wakes one waiter.
        pub fn notify_one(&self) -> bool {
            self.0.notify_one();
            true
        }

        /// Wakes all waiters.
        pub fn notify_all(&self) -> usize {
            self.0.notify_all();
            1
        }
    }

    impl Default for Condvar {
        fn default() -> Self {
            Self::new()
        }
    }

    /// Whether a wait ended by its deadline.
    #[derive(Clone, Copy, Debug)]
    pub struct WaitTimeoutResult(bool);

    impl WaitTimeoutResult {
        /// Whether the deadline passed.
        pub fn timed_out(&self) -> bool {
            self.0
        }
    }
}

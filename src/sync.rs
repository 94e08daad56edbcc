//! Synchronisation primitives, all from one shim, so that loom and shuttle check the real code.

pub(crate) use poller::sync::*;

/// A place for one thing that threads take and put back: whoever finds it there has it alone.
pub(crate) struct Slot<T>(imp::Slot<T>);

impl<T> Slot<T> {
    /// Nothing is there.
    pub(crate) fn empty() -> Self {
        Self(imp::Slot::default())
    }

    /// Takes what is there.
    #[inline]
    pub(crate) fn take(&self) -> Option<Box<T>> {
        self.0.take()
    }

    /// Puts something there. What was there before is dropped.
    #[inline]
    pub(crate) fn put(&self, thing: Box<T>) {
        self.0.put(thing);
    }
}

#[cfg(not(any(loom, shuttle)))]
mod imp {
    use crossbeam_utils::atomic::AtomicCell;

    /// One word, exchanged: half the atomic operations of a lock.
    pub(super) struct Slot<T>(AtomicCell<Option<Box<T>>>);

    impl<T> Slot<T> {
        #[inline]
        pub(super) fn take(&self) -> Option<Box<T>> {
            self.0.take()
        }

        #[inline]
        pub(super) fn put(&self, thing: Box<T>) {
            self.0.store(Some(thing));
        }
    }

    impl<T> Default for Slot<T> {
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
    use super::Mutex;

    pub(super) struct Slot<T>(Mutex<Option<Box<T>>>);

    impl<T> Slot<T> {
        pub(super) fn take(&self) -> Option<Box<T>> {
            self.0.lock().take()
        }

        pub(super) fn put(&self, thing: Box<T>) {
            *self.0.lock() = Some(thing);
        }
    }

    impl<T> Default for Slot<T> {
        fn default() -> Self {
            Self(Mutex::new(None))
        }
    }
}

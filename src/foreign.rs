//! Values of the user's, whose drop is the user's code.
//!
//! A panic of a drop must not unwind through ours: others of the user's values may be dropped on the way,
//! and a second panic there ends the process. So every such value is kept in a [`Foreign`], by itself: of
//! two in one structure each is dropped whatever the other does. (Two values in one of the user's own
//! structures are not ours to keep apart.)

use crate::trace;
use std::{
    cell::Cell,
    mem,
    ops::{Deref, DerefMut},
};

thread_local! {
    /// Panics of drops on this thread.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Drops that have panicked on this thread and that nobody has counted.
pub(crate) fn panics() -> u64 {
    PANICS.try_with(Cell::get).unwrap_or(0)
}

/// As [`panics`], of those since there were `before`. The caller counts them.
pub(crate) fn panics_since(before: u64) -> u64 {
    PANICS
        .try_with(|panics| panics.replace(before))
        .map_or(0, |now| now - before)
}

/// Drops a value of the user's. A panic of that is logged and goes no further.
pub(crate) fn drop_foreign<T>(value: T) {
    if !mem::needs_drop::<T>() {
        return;
    }
    if let Err(thrown) = poller::internal::contained(|| drop(value)) {
        let _ = PANICS.try_with(|panics| panics.set(panics.get() + 1));
        trace::error!("panic in the drop of a value: {}", thrown.text());
    }
}

/// A value of the user's whose drop never panics; possibly none.
#[derive(Clone)]
pub(crate) struct Foreign<T>(Option<T>);

impl<T> Foreign<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Some(value))
    }

    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// Whoever gets the value drops it.
    pub(crate) fn take(&mut self) -> Option<T> {
        self.0.take()
    }

    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        self.0.as_mut()
    }

    /// Whether there is a value.
    pub(crate) const fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// The value, which is made if there is none.
    pub(crate) fn get_or_insert_with(&mut self, make: impl FnOnce() -> T) -> &mut T {
        self.0.get_or_insert_with(make)
    }
}

impl<T> Default for Foreign<T> {
    fn default() -> Self {
        Self::none()
    }
}

impl<T> Deref for Foreign<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0.as_ref().expect(TAKEN)
    }
}

impl<T> DerefMut for Foreign<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect(TAKEN)
    }
}

impl<T> Drop for Foreign<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(value) = self.0.take() {
            drop_foreign(value);
        }
    }
}

const TAKEN: &str = "looked at only before it is taken";

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    struct Fragile;

    impl Drop for Fragile {
        fn drop(&mut self) {
            panic!("fragile");
        }
    }

    #[test]
    fn each_value_is_dropped_whatever_the_others_do() {
        let before = panics();
        let values: Vec<_> = (0..3).map(|_| Foreign::new(Fragile)).collect();
        drop((values, Foreign::new(Fragile), Foreign::<Fragile>::none()));
        assert_eq!(panics() - before, 4);
    }

    #[test]
    fn a_value_is_dropped_while_its_thread_unwinds() {
        let unwound = std::panic::catch_unwind(|| {
            let _first = Foreign::new(Fragile);
            let _second = Foreign::new(Fragile);
            panic!("on the way");
        });
        let text = unwound.unwrap_err();
        assert_eq!(text.downcast_ref::<&str>(), Some(&"on the way"));
    }
}

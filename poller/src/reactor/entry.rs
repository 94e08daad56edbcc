//! An operator with the poller's books about it, in one piece of memory.

use std::{fmt, ops::Deref};

use crate::{Operator, reactor::entry_state::EntryState};

/// An operator that can be registered, with what a poller keeps about it.
///
/// [`PollerHandle::register`](crate::PollerHandle::register) makes one around the `Arc` it is given.
/// A caller with many operators that wants each to be one piece of memory makes the entries and hands them
/// to [`PollerHandle::register_entry`](crate::PollerHandle::register_entry). A entry is registered
/// once in its life.
///
/// It dereferences to its operator.
pub struct Entry<O: ?Sized = dyn Operator> {
    pub(crate) state: EntryState,
    pub(crate) operator: O,
}

impl<O: Operator> Entry<O> {
    /// A entry that is not registered yet.
    pub fn new(operator: O) -> Self {
        Self {
            state: EntryState::new(),
            operator,
        }
    }
}

impl<O: ?Sized> Deref for Entry<O> {
    type Target = O;

    #[inline]
    fn deref(&self) -> &O {
        &self.operator
    }
}

impl<O: fmt::Debug + ?Sized> fmt::Debug for Entry<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("token", &self.state.token())
            .field("operator", &&self.operator)
            .finish()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::{Balance, Budget, Interest, PollerGroup, Progress, Readiness};
    use std::{
        io,
        os::{
            fd::{AsFd, BorrowedFd},
            unix::net::UnixStream,
        },
        sync::Arc,
    };

    struct Idle(UnixStream);

    impl Operator for Idle {
        fn fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn on_ready(&self, _: Readiness, _: &mut Budget<'_>) -> Progress {
            Progress::Drained
        }
    }

    #[test]
    fn a_member_is_registered_once_and_not_kept_by_its_registration() {
        let group = PollerGroup::new(2, Balance::RoundRobin).unwrap();
        let (ours, _peer) = UnixStream::pair().unwrap();
        let entry = Arc::new(Entry::new(Idle(ours)));
        let [first, second] = group.handles() else {
            panic!("two pollers were asked for");
        };
        let registration = first.register_entry(entry.clone(), Interest::READ).unwrap();
        let again = second.register_entry(entry.clone(), Interest::READ);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        registration.detach();
        // `close` waits for the threads, which drop their references.
        group.close();
        assert_eq!(Arc::strong_count(&entry), 1);
        drop(entry);
        registration.wake();
        registration.resume();
        registration.set_timer(None);
        let error = registration.set_interest(Interest::READ).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn a_failed_registration_leaves_the_member_as_it_was() {
        let closed = PollerGroup::new(1, Balance::RoundRobin).unwrap();
        closed.close();
        let group = PollerGroup::new(1, Balance::RoundRobin).unwrap();
        let (ours, _peer) = UnixStream::pair().unwrap();
        // The same descriptor a second time is refused by the system.
        let twin = Entry::new(Idle(ours.try_clone().unwrap()));
        let entry = Arc::new(Entry::new(Arc::new(Idle(ours))));
        let held = group.register(entry.operator.clone(), Interest::READ);
        assert!(
            closed
                .register_entry(entry.clone(), Interest::READ)
                .is_err()
        );
        let error = group.register_entry(entry.clone(), Interest::READ);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(held);
        drop(group.register_entry(entry, Interest::READ).unwrap());
        drop(
            group
                .register_entry(Arc::new(twin), Interest::READ)
                .unwrap(),
        );
        group.close();
    }
}

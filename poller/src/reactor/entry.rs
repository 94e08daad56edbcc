//! An operator with the poller's books about it, in one piece of memory.

use std::{fmt, ops::Deref};

use crate::{Operator, reactor::entry_state::Control};

/// An operator that can be registered, with what a poller keeps about it.
///
/// [`PollerHandle::register`](crate::PollerHandle::register) makes one around the `Arc` it is given.
/// Who has many operators, and wants each to be one piece of memory, makes the members and hands them
/// to [`PollerHandle::register_member`](crate::PollerHandle::register_member). A member is registered
/// once in its life.
///
/// It dereferences to its operator.
pub struct Member<O: ?Sized = dyn Operator> {
    pub(crate) control: Control,
    pub(crate) operator: O,
}

/// What a poller holds.
pub(crate) type Entry = Member<dyn Operator>;

impl<O: Operator> Member<O> {
    /// A member that is not registered yet.
    pub fn new(operator: O) -> Self {
        Self {
            control: Control::new(),
            operator,
        }
    }
}

impl<O: ?Sized> Deref for Member<O> {
    type Target = O;

    #[inline]
    fn deref(&self) -> &O {
        &self.operator
    }
}

impl<O: fmt::Debug + ?Sized> fmt::Debug for Member<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member")
            .field("token", &self.control.token())
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
        let member = Arc::new(Member::new(Idle(ours)));
        let [first, second] = group.handles() else {
            panic!("two pollers were asked for");
        };
        let registration = first
            .register_member(member.clone(), Interest::READ)
            .unwrap();
        let again = second.register_member(member.clone(), Interest::READ);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        registration.detach();
        // Whoever closes the group waits for its threads, which drop what they hold.
        group.close();
        assert_eq!(Arc::strong_count(&member), 1);
        drop(member);
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
        let twin = Member::new(Idle(ours.try_clone().unwrap()));
        let member = Arc::new(Member::new(Arc::new(Idle(ours))));
        let held = group.register(member.operator.clone(), Interest::READ);
        assert!(
            closed
                .register_member(member.clone(), Interest::READ)
                .is_err()
        );
        let error = group.register_member(member.clone(), Interest::READ);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(held);
        drop(group.register_member(member, Interest::READ).unwrap());
        drop(
            group
                .register_member(Arc::new(twin), Interest::READ)
                .unwrap(),
        );
        group.close();
    }
}

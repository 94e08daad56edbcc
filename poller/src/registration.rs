//! The user's end of a registration.

use std::{fmt, io, sync::Arc, time::Instant};

use crate::{Interest, PollerHandle, command::Command, control::Control};

/// A registered operator, as seen by its owner. Dropping it detaches the operator.
///
/// All methods may be called from any thread and from inside any callback; none of them blocks.
/// After the operator is detached they do nothing (or, where they can, return an error).
#[must_use = "dropping a registration detaches the operator"]
pub struct Registration {
    poller: PollerHandle,
    control: Arc<Control>,
}

impl Registration {
    pub(crate) fn new(poller: PollerHandle, control: Arc<Control>) -> Self {
        Self { poller, control }
    }

    /// Has [`Operator::on_ready`](crate::Operator::on_ready) called with
    /// [`Readiness::WAKE`](crate::Readiness::WAKE) soon. Many calls before that are one delivery; a
    /// call during the delivery is another one.
    pub fn wake(&self) {
        self.poller.inner().wake(&self.control);
    }

    /// Ends a pause ([`Progress::Pause`](crate::Progress::Pause)) and delivers what was remembered.
    pub fn resume(&self) {
        self.control.resume();
        self.poller
            .inner()
            .push(Command::Resume(self.control.token));
    }

    /// Changes what is listened for, at once. Edges are re-armed: what is ready already is
    /// reported again.
    ///
    /// # Errors
    ///
    /// `NotConnected` if the operator is detached; otherwise what the system reports
    /// (`epoll_ctl(2)`, `kevent(2)`), in which case the previous interest stays.
    pub fn set_interest(&self, interest: Interest) -> io::Result<()> {
        self.poller
            .inner()
            .registry
            .modify(self.control.token, interest)
    }

    /// Sets (or clears) the operator's timer; see
    /// [`Budget::set_timer`](crate::Budget::set_timer). Moving a deadline further away, the common
    /// case, costs two atomic operations.
    pub fn set_timer(&self, deadline: Option<Instant>) {
        self.poller.inner().set_timer(&self.control, deadline);
    }

    /// Takes the operator out: the system stops watching at once, no event is delivered any more
    /// (a call of `on_ready` under way on another thread finishes), and the poller calls
    /// [`Operator::on_detached`](crate::Operator::on_detached) and drops the operator after the
    /// present batch. May be called again.
    pub fn detach(&self) {
        self.poller.inner().detach(self.control.token);
    }

    /// The poller the operator is registered with.
    pub fn poller(&self) -> &PollerHandle {
        &self.poller
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.detach();
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("poller", &self.poller)
            .field("token", &self.control.token)
            .finish()
    }
}

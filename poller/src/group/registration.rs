//! The user's end of a registration.

use std::{
    fmt, io,
    sync::{Arc, Weak},
    time::Instant,
};

use crate::{
    Interest, PollerHandle,
    reactor::{
        command::Command,
        entry::Entry,
        registry::{detached, inherited},
    },
};

/// A registered operator, as seen by its owner. Dropping it detaches the operator.
///
/// All methods may be called from any thread and from inside any callback; none of them blocks.
/// After the operator is detached they do nothing (or, where they can, return an error). It does not
/// keep the operator: where a call meets the operator's end, it is the caller's thread that drops it.
#[must_use = "dropping a registration detaches the operator"]
pub struct Registration {
    poller: PollerHandle,
    entry: Weak<Entry>,
}

impl Registration {
    pub(crate) fn new(poller: PollerHandle, entry: &Arc<Entry>) -> Self {
        let entry = Arc::downgrade(entry);
        Self { poller, entry }
    }

    /// Has [`Operator::on_ready`](crate::Operator::on_ready) called with
    /// [`Readiness::WAKE`](crate::Readiness::WAKE) soon. Many calls before that are one delivery; a
    /// call during the delivery is another one.
    pub fn wake(&self) {
        if let Some(entry) = self.entry.upgrade() {
            self.poller.inner().wake(&entry.state);
        }
    }

    /// Ends a pause ([`Progress::Pause`](crate::Progress::Pause)) and delivers what was remembered.
    pub fn resume(&self) {
        if let Some(entry) = self.entry.upgrade() {
            entry.state.resume();
            self.poller
                .inner()
                .push(Command::Resume(entry.state.token()));
        }
    }

    /// Changes what is listened for, at once. Edges are re-armed: what is ready already is
    /// reported again.
    ///
    /// # Errors
    ///
    /// `NotConnected` if the operator is detached; otherwise what the system reports
    /// (`epoll_ctl(2)`, `kevent(2)`), in which case the previous interest stays.
    pub fn set_interest(&self, interest: Interest) -> io::Result<()> {
        let entry = self.entry.upgrade().ok_or_else(detached)?;
        if self.poller.inner().is_inherited() {
            return Err(inherited());
        }
        self.poller
            .inner()
            .registry
            .modify(entry.state.token(), interest)
    }

    /// Sets (or clears) the operator's timer; see
    /// [`Budget::set_timer`](crate::Budget::set_timer). Moving a deadline further away, the common
    /// case, costs a few atomic operations.
    pub fn set_timer(&self, deadline: Option<Instant>) {
        if let Some(entry) = self.entry.upgrade() {
            self.poller.inner().set_timer(&entry.state, deadline);
        }
    }

    /// Takes the operator out: the system stops watching at once, no event is delivered any more
    /// (a call of `on_ready` under way on another thread finishes), and the poller calls
    /// [`Operator::on_detached`](crate::Operator::on_detached) and drops the operator after the
    /// present batch. May be called again.
    pub fn detach(&self) {
        if let Some(entry) = self.entry.upgrade() {
            self.poller.inner().detach(entry.state.token());
        }
    }

    /// As [`detach`](Self::detach), but it is this thread that calls
    /// [`Operator::on_detached`](crate::Operator::on_detached) and drops what the poller holds of the
    /// operator, before this returns. A thread of the poller's may be in a call of the operator at that
    /// moment, or about to look at it; it holds the operator until then.
    pub fn detach_here(&self) {
        if let Some(entry) = self.entry.upgrade() {
            self.poller.inner().detach_here(entry.state.token());
        }
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
        let token = self.entry.upgrade().map(|entry| entry.state.token());
        f.debug_struct("Registration")
            .field("poller", &self.poller)
            .field("token", &token)
            .finish()
    }
}

//! One poller, as seen from outside.

use std::{fmt, io, sync::Arc, time::Instant};

use crate::{
    Entry, Interest, Operator, PollerStats, Registration, TimerKey, poller::Poller,
    reactor::command::Command,
};

/// One poller of a group. Clones name the same poller; holding one does not keep it running.
#[derive(Clone)]
pub struct PollerHandle {
    poller: Arc<Poller>,
}

impl PollerHandle {
    pub(crate) fn new(poller: Arc<Poller>) -> Self {
        Self { poller }
    }

    pub(crate) fn inner(&self) -> &Arc<Poller> {
        &self.poller
    }

    /// Registers an operator with this very poller. Does not block.
    ///
    /// [`Operator::on_ready`] may be called before this returns.
    ///
    /// # Errors
    ///
    /// `NotConnected` if the poller is closed; otherwise what the system reports (`EEXIST` for a
    /// descriptor that is registered already, `EPERM` for one that cannot be polled such as a
    /// regular file, `ENOSPC`, `ENOMEM`). Nothing stays behind, and `on_detached` is not called.
    pub fn register(
        &self,
        operator: Arc<dyn Operator>,
        interest: Interest,
    ) -> io::Result<Registration> {
        self.register_entry(Arc::new(Entry::new(operator)), interest)
    }

    /// As [`Self::register`], for an operator that brings along the memory for the poller's books:
    /// one allocation instead of two.
    ///
    /// # Errors
    ///
    /// As [`Self::register`], and `InvalidInput` if the entry was registered before, with whatever
    /// poller. After a failure it may be registered again.
    pub fn register_entry(
        &self,
        entry: Arc<Entry>,
        interest: Interest,
    ) -> io::Result<Registration> {
        self.poller.register(&entry, interest)?;
        Ok(Registration::new(self.clone(), &entry))
    }

    /// Has `call` called once at `deadline`, never before, by a thread of the group with the leadership
    /// released: it may block. Closures still waiting when the poller closes are dropped uncalled.
    /// A panic of a closure, or of what it holds when it is dropped, is contained and counted.
    pub fn schedule(&self, deadline: Instant, call: impl FnOnce() + Send + 'static) -> TimerKey {
        match self.poller.schedule.add(Box::new(call)) {
            Ok(key) => {
                let tick = self.poller.clock.tick_after(deadline);
                self.poller.push(Command::Schedule(key.0, tick));
                key
            }
            Err((key, call)) => {
                self.poller.contain(|| drop(call));
                key
            }
        }
    }

    /// Drops a scheduled closure. `false` if it has run, is running or is about to.
    pub fn cancel(&self, key: TimerKey) -> bool {
        let Some(call) = self.poller.schedule.take(key.0) else {
            return false;
        };
        self.poller.contain(|| drop(call));
        true
    }

    /// Counts of this poller.
    pub fn stats(&self) -> PollerStats {
        self.poller.counters.snapshot(self.poller.registry.len())
    }

    /// Whether this process has it from its parent, by `fork`: then nothing polls here.
    pub fn is_inherited(&self) -> bool {
        self.poller.is_inherited()
    }

    /// The poller's place in its group, from 0.
    pub fn index(&self) -> usize {
        self.poller.index
    }
}

impl fmt::Debug for PollerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollerHandle")
            .field("index", &self.index())
            .field("registered", &self.poller.registry.len())
            .finish()
    }
}

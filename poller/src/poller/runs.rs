//! Runs on threads that do not hold the leadership of the operator's poller.

use std::sync::Arc;

use crate::{
    operator::Progress,
    poller::Poller,
    reactor::{
        command::{Command, GuestHome},
        entry::Entry,
    },
};

/// Makes a run on a thread that does not hold the leadership of its poller.
pub(crate) fn run_apart(poller: &Poller, entry: Arc<Entry>) {
    entry.state.run_begins();
    let progress = poller.contain(|| entry.operator.run());
    poller.contain(|| finish_run(poller, entry, progress));
}

/// What follows from a run on a thread that does not hold the leadership.
pub(crate) fn finish_run(poller: &Poller, entry: Arc<Entry>, progress: Option<Progress>) {
    match progress {
        Some(Progress::Drained) => {}
        Some(Progress::Yield) => poller.push(Command::Rerun(entry)),
        Some(Progress::Pause) => poller.push(Command::Pause(entry)),
        Some(Progress::Detach) | None => poller.detach(entry.state.token()),
    }
}

impl GuestHome for Poller {
    fn index(&self) -> usize {
        self.index
    }

    fn id_of(&self, entry: &Entry) -> u64 {
        Self::id_of(self, entry)
    }

    fn run(&self, entry: Arc<Entry>) {
        run_apart(self, entry);
    }
}

//! How long the calls of one direction wait.

use std::time::{Duration, Instant};

/// A timeout for each call, or one moment for all of them. Two words, because every connection
/// has it twice.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    /// Nanoseconds, [`FOR_EVER`] for none.
    timeout: u64,
    /// Used by few.
    deadline: Option<Box<Instant>>,
}

const FOR_EVER: u64 = u64::MAX;

impl Patience {
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        let timeout = timeout.map_or(FOR_EVER, |timeout| {
            u64::try_from(timeout.as_nanos()).unwrap_or(FOR_EVER)
        });
        Self {
            timeout,
            deadline: None,
        }
    }

    /// Each call waits until then, and no longer for a time of its own.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline.map(Box::new);
    }

    /// When a call that begins to wait now gives up.
    pub(crate) fn until(&self) -> Option<Instant> {
        match &self.deadline {
            Some(deadline) => Some(**deadline),
            None if self.timeout == FOR_EVER => None,
            None => Instant::now().checked_add(Duration::from_nanos(self.timeout)),
        }
    }
}

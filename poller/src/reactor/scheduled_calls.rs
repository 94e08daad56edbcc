//! Closures that wait for their time.

use std::collections::HashMap;

use crate::sync::Mutex;

/// Names one scheduled closure; see [`PollerHandle::schedule`](crate::PollerHandle::schedule).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerKey(pub(crate) u64);

/// A closure to call.
pub(crate) type Call = Box<dyn FnOnce() + Send>;

/// The closures of one poller. The wheel or a cancellation takes one out, and owns it: a
/// closure runs once or never.
pub(crate) struct Schedule {
    calls: Mutex<Calls>,
}

struct Calls {
    waiting: HashMap<u64, Call>,
    next: u64,
    closed: bool,
}

impl Schedule {
    pub(crate) fn new() -> Self {
        Self {
            calls: Mutex::new(Calls {
                waiting: HashMap::new(),
                next: 0,
                closed: false,
            }),
        }
    }

    /// Keeps a closure; gives it back if the poller is gone.
    pub(crate) fn add(&self, call: Call) -> Result<TimerKey, (TimerKey, Call)> {
        let mut calls = self.calls.lock();
        let key = calls.next;
        calls.next += 1;
        if calls.closed {
            return Err((TimerKey(key), call));
        }
        calls.waiting.insert(key, call);
        Ok(TimerKey(key))
    }

    /// The closure, if it still waits.
    pub(crate) fn take(&self, key: u64) -> Option<Call> {
        self.calls.lock().waiting.remove(&key)
    }

    /// Hands out the closures that wait, to be dropped one by one, and takes none from now on.
    pub(crate) fn close(&self) -> impl Iterator<Item = Call> + use<> {
        let mut calls = self.calls.lock();
        calls.closed = true;
        std::mem::take(&mut calls.waiting).into_values()
    }
}

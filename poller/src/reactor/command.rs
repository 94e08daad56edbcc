//! The way from other threads to the poller: a queue whose pushers wake a sleeping poller.
//!
//! "Asleep" is a flag under the queue's own lock, so there is no moment between the poller's last
//! look at the queue and its wait in which a push could go unnoticed; and a push to a poller that
//! is awake costs no system call.

use std::{mem, sync::Arc};

use crate::{
    reactor::{entry::Entry, token::Token},
    sync::Mutex,
    sys::{self, MonotonicNanos},
};

/// What other threads ask of a poller.
pub(crate) enum Command {
    /// Deliver `WAKE`.
    Wake(Token),
    /// Arm the wheel for the operator's deadline.
    Arm(Token),
    /// End a pause.
    Resume(Token),
    /// A run that lost the leadership asks to be paused.
    Pause(Arc<Entry>),
    /// A run that lost the leadership wants to be run again.
    Rerun(Arc<Entry>),
    /// A run that another poller has no thread for.
    Guest(Box<Guest>),
    /// The operator is out of the registry: say so to it, then drop it.
    Detached(Arc<Entry>),
    /// A closure with this key waits for this tick.
    Schedule(u64, u64),
    /// Nothing: only look around.
    Wakeup,
}

/// The poller of a [`Guest`].
pub(crate) trait GuestHome: Send + Sync {
    /// Its index in the group.
    fn index(&self) -> usize;

    /// How the operator names itself.
    fn id_of(&self, entry: &Entry) -> u64;

    /// Runs the operator on the calling thread, which does not hold this poller's leadership.
    fn run(&self, entry: Arc<Entry>);
}

/// A run of another poller's operator, which was asked for at that time.
pub(crate) struct Guest {
    pub(crate) home: Arc<dyn GuestHome>,
    pub(crate) entry: Arc<Entry>,
    pub(crate) since: MonotonicNanos,
}

/// Commands for one poller.
pub(crate) struct CommandQueue<T, W> {
    state: Mutex<State<T, W>>,
}

struct State<T, W> {
    items: Vec<T>,
    /// The poller found the queue empty and waits, or is about to.
    asleep: bool,
    /// Absent once closed.
    waker: Option<Arc<W>>,
}

impl<T, W: sys::Wake> CommandQueue<T, W> {
    pub(crate) fn new(waker: W) -> Self {
        Self {
            state: Mutex::new(State {
                items: Vec::new(),
                asleep: false,
                waker: Some(Arc::new(waker)),
            }),
        }
    }

    /// Queues a command. `Ok(true)`: the poller slept and was woken. `Err`: the queue is closed.
    pub(crate) fn push(&self, item: T) -> Result<bool, T> {
        let mut state = self.state.lock();
        let Some(waker) = &state.waker else {
            return Err(item);
        };
        // The waker is called outside of the lock; close may drop its handle meanwhile.
        let waker = if state.asleep {
            Some(waker.clone())
        } else {
            None
        };
        state.items.push(item);
        state.asleep = false;
        drop(state);
        if let Some(waker) = &waker {
            waker.wake();
        }
        Ok(waker.is_some())
    }

    /// Whether the poller sleeps: its thread has nothing to do.
    pub(crate) fn is_asleep(&self) -> bool {
        self.state.lock().asleep
    }

    /// Before a wait: `true` if the poller may sleep; from then on a push wakes it.
    pub(crate) fn fall_asleep(&self) -> bool {
        let mut state = self.state.lock();
        state.asleep = state.items.is_empty() && state.waker.is_some();
        state.asleep
    }

    /// After a wait: takes everything; `into` must be empty and lends its memory to the queue.
    pub(crate) fn drain(&self, into: &mut Vec<T>) {
        debug_assert!(into.is_empty());
        let mut state = self.state.lock();
        state.asleep = false;
        mem::swap(&mut state.items, into);
    }

    /// Whether there is nothing to drain.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().items.is_empty()
    }

    /// Refuses commands from now on and hands out those left.
    pub(crate) fn close(&self) -> Vec<T> {
        let mut state = self.state.lock();
        state.waker = None;
        mem::take(&mut state.items)
    }
}

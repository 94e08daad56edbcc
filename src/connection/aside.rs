//! What a connection seldom looks at: its end, its callbacks for other threads, its socket for them,
//! whoever waits. All of it is behind one lock, because every lock of its own costs a connection eight
//! bytes, and what most connections never need is made when it is needed.
//!
//! The lock is held for a look or an exchange, never across a system call that may wait, user code or
//! the drop of anything of the user's.

use super::{interrupt::Interrupts, opening::Attempt, operator::Wire, wake::Bell};
use crate::{
    config::OutputLimits,
    error::CloseReason,
    foreign::Foreign,
    handler::{Hooks, Session},
    sync::{Condvar, Mutex},
};
use std::{collections::VecDeque, fmt, sync::Arc};

pub(super) type Callback = Foreign<Box<dyn FnOnce(CloseReason) + Send>>;

/// Locked by [`Shared::aside`](super::shared::Shared).
#[derive(Default)]
pub(crate) struct Aside {
    /// Taken out when the connection is over, so that handles do not keep the descriptor.
    pub(super) wire: Option<Arc<Wire>>,
    pub(super) hooks: Foreign<Arc<dyn Hooks>>,
    pub(super) waiting: Option<Arc<Waiting>>,
    rare: Option<Box<Rare>>,
    reason: Option<CloseReason>,
    /// The close callbacks are being called, or have been; later ones are called at once.
    pub(super) over: bool,
    /// Over, and nobody is counting output any more.
    pub(super) settled: bool,
    /// An executor dropped a turn: it gets no other one of this connection.
    pub(crate) dropped: bool,
}

/// What few connections have before they end.
#[derive(Default)]
struct Rare {
    /// In the order in which they were added, which is that of their numbers.
    callbacks: VecDeque<(u64, Callback)>,
    /// Sessions of a connection that its handler gave away; they hear of the end. Boxed because still
    /// fewer connections have any.
    #[expect(clippy::box_collection, reason = "one word instead of three")]
    parked: Option<Box<Vec<Box<dyn Session>>>>,
    deadlines: Deadlines,
    rarest: Option<Box<Rarest>>,
}

/// What hardly any connection has.
#[derive(Default)]
struct Rarest {
    /// The peer lacks something that was to be sent before what follows this many messages: as long as
    /// nothing follows, the connection ends with a reset.
    short_after: Option<u64>,
    /// In the place of those of the loop or dialer.
    output_limits: Option<OutputLimits>,
    /// What makes the socket, until it is there.
    attempt: Option<Arc<dyn Attempt>>,
}

/// Deadlines that are set, 0 for none: see [`alarms`](super::alarms).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deadlines {
    pub(super) retry_at: u64,
    pub(super) close_at: u64,
    /// How much the peer had taken when `close_at` was set.
    pub(super) taken: u64,
    /// The pause before `retry_at` of a connection that lingers, in milliseconds.
    pub(super) pause: u64,
    /// When a connection whose handler waits for its output has made no progress for too long.
    pub(super) stall_at: u64,
    /// How long the rest of a message may take that keeps a draining connection open.
    pub(super) rest_at: u64,
    /// Where in the input that message begins.
    pub(super) rest_of: u64,
    /// When a message is late that a handler waits for between its calls.
    pub(super) message_at: u64,
    /// Where in the input that message begins.
    pub(super) message_of: u64,
    /// From when `stall_at` was set until then.
    pub(super) stall_after: u64,
    /// How much had been sent when `stall_at` was set.
    pub(super) stall_sent: u64,
}

/// Made by the first thread that waits.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) waiters: Mutex<Waiters>,
    pub(super) changed: Condvar,
}

/// How many threads wait on `changed`, and for what; the last one clears the wait bits.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    pub(super) reading: u32,
    pub(super) writing: u32,
    /// Threads that wait for the end of the connection.
    pub(super) ending: u32,
    /// A thread waits for input on the descriptor itself.
    pub(super) polling: bool,
    /// What ends that wait, if there was a descriptor for it.
    pub(super) bell: Option<Arc<Bell>>,
    pub(super) interrupts: Interrupts,
}

impl Aside {
    /// Sets the reason unless there is one.
    pub(crate) fn decide(&mut self, reason: CloseReason) -> CloseReason {
        *self.reason.get_or_insert(reason)
    }

    pub(crate) fn reason(&self) -> Option<CloseReason> {
        self.reason
    }

    pub(super) fn add_callback(&mut self, number: u64, callback: Callback) {
        self.rare().callbacks.push_back((number, callback));
    }

    /// Takes out a callback that has not been called.
    pub(super) fn remove_callback(&mut self, number: u64) -> Option<Callback> {
        let callbacks = &mut self.rare.as_mut()?.callbacks;
        let place = callbacks.binary_search_by_key(&number, |&(other, _)| other);
        callbacks.remove(place.ok()?).map(|(_, callback)| callback)
    }

    /// The next close callback to call. Callbacks that are added from here on are called at once.
    pub(super) fn next_callback(&mut self) -> Option<Callback> {
        self.over = true;
        let rare = self.rare.as_mut()?;
        rare.callbacks.pop_front().map(|(_, callback)| callback)
    }

    /// All of them, which are not to be called.
    pub(super) fn take_callbacks(&mut self) -> VecDeque<(u64, Callback)> {
        self.rare
            .as_mut()
            .map_or_else(VecDeque::new, |rare| std::mem::take(&mut rare.callbacks))
    }

    pub(crate) fn park(&mut self, sessions: Vec<Box<dyn Session>>) {
        if !sessions.is_empty() {
            let parked = &mut self.rare().parked;
            parked.get_or_insert_default().extend(sessions);
        }
    }

    pub(crate) fn unpark(&mut self) -> Vec<Box<dyn Session>> {
        let parked = self.rare.as_mut().and_then(|rare| rare.parked.take());
        parked.map_or_else(Vec::new, |parked| *parked)
    }

    pub(super) fn short_after(&self) -> Option<u64> {
        self.rare.as_ref()?.rarest.as_ref()?.short_after
    }

    pub(super) fn set_short_after(&mut self, messages: Option<u64>) {
        if messages.is_some() || self.short_after().is_some() {
            self.rarest().short_after = messages;
        }
    }

    pub(super) fn output_limits(&self) -> Option<OutputLimits> {
        self.rare.as_ref()?.rarest.as_ref()?.output_limits
    }

    pub(super) fn set_output_limits(&mut self, limits: Option<OutputLimits>) {
        if limits.is_some() || self.output_limits().is_some() {
            self.rarest().output_limits = limits;
        }
    }

    pub(super) fn attempt(&self) -> Option<Arc<dyn Attempt>> {
        self.rare.as_ref()?.rarest.as_ref()?.attempt.clone()
    }

    /// Returns the one before, which is to be dropped without the lock.
    pub(super) fn set_attempt(
        &mut self,
        attempt: Option<Arc<dyn Attempt>>,
    ) -> Option<Arc<dyn Attempt>> {
        if attempt.is_none() && self.attempt().is_none() {
            return None;
        }
        std::mem::replace(&mut self.rarest().attempt, attempt)
    }

    fn rarest(&mut self) -> &mut Rarest {
        self.rare().rarest.get_or_insert_default()
    }

    pub(super) fn deadlines(&self) -> Deadlines {
        self.rare
            .as_ref()
            .map_or_else(Deadlines::default, |rare| rare.deadlines)
    }

    pub(super) fn deadlines_mut(&mut self) -> &mut Deadlines {
        &mut self.rare().deadlines
    }

    pub(super) fn waiting(&mut self) -> Arc<Waiting> {
        Arc::clone(self.waiting.get_or_insert_default())
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

impl fmt::Debug for Aside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let callbacks = self.rare.as_ref().map_or(0, |rare| rare.callbacks.len());
        f.debug_struct("Aside")
            .field("reason", &self.reason)
            .field("callbacks", &callbacks)
            .finish_non_exhaustive()
    }
}

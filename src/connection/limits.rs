//! What one connection may queue: what its loop or dialer allows, unless it was given limits of its own.

use super::{
    output::Bounds,
    queue::Bound,
    shared::{For, Shared},
    state::TAILORED,
};
use crate::config::{OnFull, OutputLimits};

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A callback of the connection, which runs while the queue is at its low mark: the first message of
    /// such a run is accepted at once.
    Callback,
    /// Anybody else.
    Other,
}

/// What a call does if there is no room, given the connection's policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// What the policy says.
    AsSet,
    /// The same, but an error instead of a wait.
    WithoutWait,
    /// The same, but a wait instead of an error.
    WithWait,
    /// It waits.
    Waits,
}

impl Manner {
    pub(super) fn on_full(self, policy: OnFull) -> OnFull {
        match (self, policy) {
            (Self::Waits, _) | (Self::WithWait, OnFull::Error) => OnFull::Block,
            (Self::WithoutWait, OnFull::Block) => OnFull::Error,
            (_, policy) => policy,
        }
    }
}

/// The bounds for messages of that sender.
pub(super) struct Allowance<'a>(pub(super) &'a Shared, pub(super) Sender);

impl Bounds for Allowance<'_> {
    fn bound(&self) -> Bound {
        let limits = self.0.output_limits();
        Bound {
            bytes: limits.bytes,
            messages: limits.messages,
            low: match self.1 {
                Sender::Callback => limits.low_mark(),
                Sender::Other => 0,
            },
        }
    }
}

impl Shared {
    pub(super) fn output_limits(&self) -> OutputLimits {
        let own = || self.aside.lock().output_limits();
        let own = self.word.has(TAILORED).then(own).flatten();
        own.unwrap_or(self.context.limits.output)
    }

    /// Gives the connection limits of its own. Whoever waits for room looks again.
    pub(super) fn set_output_limits(&self, change: impl FnOnce(&mut OutputLimits)) {
        {
            let mut aside = self.aside.lock();
            let mut limits = aside.output_limits().unwrap_or(self.context.limits.output);
            change(&mut limits);
            aside.set_output_limits(Some(limits));
            self.word.set(TAILORED);
        }
        self.open_gate();
        self.notify(For::Output);
    }
}

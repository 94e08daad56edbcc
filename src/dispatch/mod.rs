//! Where callbacks run.

mod custom;
mod workers;

pub use custom::{DispatchTask, Executor};

use crate::connection::{BRIEF, Shared};
use custom::Custom;
use poller::{Budget, BusyThread, PollerGroup, WorkerPool};
use std::{fmt, io, sync::Arc, time::Duration};

/// Where an event loop runs the callbacks of its connections.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Dispatch {
    /// At once on the thread that polled the connection, which gives its poller to another
    /// thread if the callback waits. Handlers may block; those that do not pay for no hand-over.
    #[default]
    Adaptive,
    /// On a pool of threads that grows to `max` while all are busy and shrinks after
    /// `keep_alive`. Handlers may block.
    Workers {
        /// The most threads.
        max: usize,
        /// How long a thread without work stays.
        keep_alive: Duration,
    },
    /// On the poller's thread. Handlers must not block; calls that would have to wait fail with
    /// [`Error::WouldDeadlock`](crate::Error::WouldDeadlock).
    Inline,
    /// Wherever this executor runs them. Loops and dialers that are given clones of one `Arc` share its threads:
    /// when turns of one of them have waited for a thread for too long
    /// ([`overload_after`](crate::EventLoopBuilder::overload_after)), waits of handlers of any of them end.
    Custom(Arc<dyn Executor>),
}

impl fmt::Debug for Dispatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adaptive => f.write_str("Adaptive"),
            Self::Workers { max, keep_alive } => f
                .debug_struct("Workers")
                .field("max", max)
                .field("keep_alive", keep_alive)
                .finish(),
            Self::Inline => f.write_str("Inline"),
            Self::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// Where a turn was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// The caller runs it now, on the poller's thread.
    Here,
    /// Somebody else does.
    Elsewhere,
}

/// A dispatch at work.
#[derive(Clone)]
pub(crate) enum Runner {
    Adaptive,
    Inline,
    Workers(WorkerPool),
    Custom(Custom),
}

impl Runner {
    pub(crate) fn new(dispatch: Dispatch, overload_after: Option<Duration>) -> io::Result<Self> {
        Ok(match dispatch {
            Dispatch::Adaptive => Self::Adaptive,
            Dispatch::Inline => Self::Inline,
            Dispatch::Custom(executor) => Self::Custom(Custom::new(executor, overload_after)),
            Dispatch::Workers { max, keep_alive } => {
                Self::Workers(workers::pool(max, keep_alive, overload_after)?)
            }
        })
    }

    /// Has the group's monitor look how long turns wait for threads that are not the group's.
    pub(crate) fn looked_after_by(&self, group: &PollerGroup) {
        match self {
            Self::Adaptive | Self::Inline => {}
            Self::Workers(pool) => group.look_after(pool),
            Self::Custom(custom) => custom.looked_after_by(group),
        }
    }

    /// Places a turn of a connection whose owner's role the caller has.
    #[inline]
    pub(crate) fn place(&self, shared: &Arc<Shared>, budget: &mut Budget<'_>) -> Placed {
        match self {
            Self::Inline => return Placed::Here,
            Self::Adaptive => budget.request_run(),
            Self::Workers(_) | Self::Custom(_) => {
                if !self.submit(shared) {
                    budget.request_run();
                }
            }
        }
        Placed::Elsewhere
    }

    /// Gives the turn to other threads. `false`: they do not take it.
    #[inline(never)]
    fn submit(&self, shared: &Arc<Shared>) -> bool {
        match self {
            Self::Inline | Self::Adaptive => false,
            // It does not wait for threads that handlers may hold.
            Self::Workers(_) if shared.word.has(BRIEF) => false,
            Self::Workers(pool) => pool.submit(Arc::<Shared>::clone(shared)).is_ok(),
            Self::Custom(custom) => custom.submit(shared),
        }
    }

    /// Whether every thread that a turn could have is taken, as far as that is known.
    pub(crate) fn is_exhausted(&self) -> bool {
        match self {
            Self::Workers(pool) => pool.is_exhausted(),
            Self::Adaptive | Self::Inline | Self::Custom(_) => false,
        }
    }

    /// What has its threads, the longest first; `None` if they are those of the pollers.
    pub(crate) fn holding(&self) -> Option<Vec<BusyThread>> {
        match self {
            Self::Adaptive | Self::Inline => None,
            Self::Workers(pool) => Some(pool.holding()),
            Self::Custom(custom) => Some(custom.holding()),
        }
    }

    /// Ends the threads that belong to this runner; from one of them it only asks them to end.
    pub(crate) fn close(&self) {
        if let Self::Workers(pool) = self {
            pool.close();
        }
    }
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Adaptive => "Adaptive",
            Self::Inline => "Inline",
            Self::Workers(_) => "Workers",
            Self::Custom(_) => "Custom",
        })
    }
}

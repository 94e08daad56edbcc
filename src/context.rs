//! What the connections of one event loop or one dialer have in common.

use crate::{
    config::Limits,
    dispatch::Runner,
    event_loop::Connections,
    stats::{Counters, Stats},
    sync::{AtomicBool, Ordering},
};
use poller::PollerGroup;
use std::time::Instant;

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) limits: Limits,
    pub(crate) runner: Runner,
    pub(crate) group: PollerGroup,
    pub(crate) connections: Connections,
    pub(crate) counters: Counters,
    /// Where the millisecond clocks of the connections start.
    pub(crate) epoch: Instant,
    draining: AtomicBool,
}

impl Context {
    pub(crate) fn new(limits: Limits, runner: Runner, group: PollerGroup) -> Self {
        Self {
            limits,
            runner,
            group,
            connections: Connections::default(),
            counters: Counters::default(),
            epoch: Instant::now(),
            draining: AtomicBool::new(false),
        }
    }

    /// From now on every new connection is closed as soon as nothing is in flight.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    pub(crate) fn stats(&self) -> Stats {
        self.counters.snapshot(self.connections.len())
    }
}

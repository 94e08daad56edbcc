//! What the connections of one event loop or one dialer have in common.

use crate::{
    config::Limits,
    dispatch::Runner,
    event_loop::Connections,
    memory::Memory,
    stats::{Counters, Stats},
    sync::{AtomicBool, Ordering},
    trace,
};
use poller::{BusyThread, Overload, PollerGroup};
use std::{fmt, time::Instant};

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) limits: Limits,
    pub(crate) runner: Runner,
    pub(crate) group: PollerGroup,
    pub(crate) connections: Connections,
    pub(crate) counters: Counters,
    pub(crate) memory: Memory,
    /// Where the millisecond clocks of the connections start.
    pub(crate) epoch: Instant,
    /// A dialer's, whose connections have asked and answer nothing.
    pub(crate) is_client: bool,
    draining: AtomicBool,
    /// The pool is trimmed while this exists.
    #[cfg(not(any(loom, shuttle)))]
    _trimming: crate::memory::Trimming,
}

impl Context {
    pub(crate) fn new(limits: Limits, runner: Runner, group: PollerGroup) -> Self {
        group.report_overload(log_overload);
        runner.looked_after_by(&group);
        let memory_limit = limits.memory;
        #[cfg(not(any(loom, shuttle)))]
        let trimming = crate::memory::Trimming::by(&group);
        Self {
            limits,
            runner,
            group,
            connections: Connections::default(),
            counters: Counters::default(),
            memory: Memory::new(memory_limit),
            epoch: Instant::now(),
            is_client: false,
            draining: AtomicBool::new(false),
            #[cfg(not(any(loom, shuttle)))]
            _trimming: trimming,
        }
    }

    /// That of a dialer.
    pub(crate) fn of_client(mut self) -> Self {
        self.is_client = true;
        self
    }

    /// From now on every new connection is closed as soon as nothing is in flight.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    pub(crate) fn stats(&self) -> Stats {
        let holding = self.runner.holding();
        Stats {
            active: self.connections.len(),
            held: self.memory.held(),
            holding: holding.unwrap_or_else(|| self.group.stats().holding),
            ..self.counters.snapshot()
        }
    }
}

/// How many of those that have a thread a line of the log names.
const NAMED: usize = 8;

/// Says that turns wait for threads, and what these are taken by. Called by the pollers, which see to it
/// that this is not too often.
fn log_overload(overload: &Overload) {
    let named: Vec<_> = overload.holding.iter().take(NAMED).map(Named).collect();
    let more = overload.holding.len() - named.len();
    trace::warn!(
        "all threads are taken, {} turns have waited for one for too long; {} waits were ended for such \
         turns since the last line like this; the threads are held by {named:?} and {more} more",
        overload.waiting,
        overload.ended_waits,
    );
}

struct Named<'a>(&'a BusyThread);

impl fmt::Debug for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BusyThread { id, time, .. } = self.0;
        match id {
            0 => write!(f, "a timer or on_prepare for {time:?}"),
            id => write!(f, "connection {id} for {time:?}"),
        }
    }
}

//! Connections as jobs of a worker pool.

use crate::{
    connection::{self, Shared},
    error::Error,
};
use poller::{Job, Progress, WorkerPool};
use std::{io, sync::Arc, time::Duration};

/// The pool behind `Dispatch::Workers`.
pub(super) fn pool(
    max: usize,
    keep_alive: Duration,
    overload_after: Option<Duration>,
) -> io::Result<WorkerPool> {
    if max == 0 {
        let text = "Dispatch::Workers needs max >= 1: without a thread no handler could run";
        return Err(Error::Unsupported(text).into());
    }
    Ok(WorkerPool::builder()
        .max_threads(max)
        .keep_alive(keep_alive)
        .overload_after(overload_after)
        .name("netpoll-worker")
        .build())
}

impl Job for Shared {
    fn run(self: Arc<Self>) {
        while connection::run(&self) == Progress::Yield {
            // Others first: behind them in the queue, or on with it if the queue is closed.
            let super::Runner::Workers(pool) = &self.context.runner else {
                continue;
            };
            if pool.submit(Arc::<Self>::clone(&self)).is_ok() {
                return;
            }
        }
    }

    fn id(&self) -> u64 {
        self.id
    }
}

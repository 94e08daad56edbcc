//! Runs that only end something: at most two threads of the reserve serve them, from a queue of their own.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    sync::Mutex,
    thread_pool::{Job, WorkerPool},
};

/// Threads of the reserve that serve this queue at most.
const MOST_THREADS: usize = 2;

/// The ending runs of all pollers of a group.
#[derive(Default)]
pub(crate) struct EndingRuns {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Box<dyn FnOnce() + Send>>,
    /// Threads that serve the queue, and will look at it again.
    threads: usize,
}

impl EndingRuns {
    /// Queues a run. Starts a thread of the reserve for it if fewer than [`MOST_THREADS`] serve the queue.
    pub(crate) fn push(self: &Arc<Self>, reserve: &WorkerPool, run: Box<dyn FnOnce() + Send>) {
        {
            let mut state = self.state.lock();
            state.queue.push_back(run);
            if state.threads == MOST_THREADS {
                return;
            }
            state.threads += 1;
        }
        if !reserve.submit_if_served(self.clone()) {
            // The next push tries again.
            self.state.lock().threads -= 1;
        }
    }
}

impl Job for EndingRuns {
    fn run(self: Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.queue.pop_front();
                state.threads -= usize::from(next.is_none());
                next
            };
            let Some(run) = next else {
                return;
            };
            run();
        }
    }
}

//! Connections as tasks of an executor.
//!
//! The executor is the user's; of its threads is known what the tasks tell. Each task counts as one that waits
//! until it is run or dropped ([`ExecutorQueue`]). Which threads these are is a matter of the executor alone:
//! whatever has the same executor shares one [`ExecutorThreads`].

use crate::{
    connection::{ABORT, Shared, pass_on_turn, take_turn},
    foreign::Foreign,
    sync::Mutex,
};
use poller::{BusyThread, ExecutorQueue, ExecutorThreads, PollerGroup, Ticket};
use std::{
    fmt,
    sync::{Arc, LazyLock, Weak},
    time::Duration,
};

/// Runs tasks for [`Dispatch::Custom`](crate::Dispatch::Custom).
pub trait Executor: Send + Sync + 'static {
    /// Takes a task to be [run](DispatchTask::run) exactly once, soon, on a thread that may block.
    /// Called on a poller's thread: must not block.
    ///
    /// A task ends when its connection has had its share of the thread. A connection that has more to do
    /// comes again as another task, behind those that wait already.
    ///
    /// A task that has been kept for longer than [`overload_after`](crate::EventLoopBuilder::overload_after) without
    /// being run counts as one for which there is no thread: calls of handlers that wait inside of other tasks
    /// of the same executor (of the same `Arc`, that is) end with
    /// [`Error::Overloaded`](crate::Error::Overloaded), the longest wait first. So an executor that delays tasks
    /// on purpose needs a longer `overload_after`, or `None`.
    ///
    /// # Errors
    ///
    /// The task itself if it cannot be taken; it is then run as with
    /// [`Dispatch::Adaptive`](crate::Dispatch::Adaptive).
    fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask>;
}

/// One turn of one connection's callbacks. Dropping it without running it closes the
/// connection.
#[must_use = "a task that is dropped closes its connection"]
pub struct DispatchTask {
    shared: Option<Arc<Shared>>,
    ticket: Ticket,
}

impl DispatchTask {
    /// Runs the callbacks that are due.
    pub fn run(mut self) {
        if let Some(shared) = self.shared.take() {
            run(&shared, self.ticket);
        }
    }
}

impl Drop for DispatchTask {
    fn drop(&mut self) {
        let Some(shared) = self.shared.take() else {
            return;
        };
        shared.abort_with(crate::CloseReason::HandlerError);
        if !poller::is_polling_thread() {
            return run(&shared, self.ticket);
        }
        // This thread polls, inside of `execute`, and may unwind: the callbacks are called elsewhere.
        if let super::Runner::Custom(custom) = &shared.context.runner {
            custom.queue.withdraw(self.ticket);
        }
        pass_on_turn(&shared);
    }
}

impl fmt::Debug for DispatchTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DispatchTask")
            .field(&self.shared.as_ref().map(|shared| shared.id))
            .finish()
    }
}

/// The turn of a task, on whatever thread this is.
fn run(shared: &Arc<Shared>, ticket: Ticket) {
    if let super::Runner::Custom(custom) = &shared.context.runner {
        custom.queue.run(ticket, shared.id, || take_turn(shared));
    }
}

/// An executor, and what is known of its tasks and threads.
#[derive(Clone)]
pub(crate) struct Custom {
    executor: Foreign<Arc<dyn Executor>>,
    queue: ExecutorQueue,
}

impl Custom {
    pub(super) fn new(executor: Arc<dyn Executor>, overload_after: Option<Duration>) -> Self {
        let queue = ExecutorQueue::new(&threads_of(&executor), overload_after);
        Self {
            executor: Foreign::new(executor),
            queue,
        }
    }

    /// Gives a turn to the executor. `false`: it does not take it.
    pub(super) fn submit(&self, shared: &Arc<Shared>) -> bool {
        if shared.word.has(ABORT) && shared.aside.lock().dropped {
            return false;
        }
        let task = DispatchTask {
            shared: Some(Arc::clone(shared)),
            ticket: self.queue.submit(),
        };
        // Whatever becomes of the task when it panics: it is run, or dropped, and that ends the connection.
        let outcome = shared.caught("execute", || self.executor.execute(task));
        let Some(Err(mut refused)) = outcome else {
            return true;
        };
        let is_it = |other: &Arc<Shared>| Arc::ptr_eq(other, shared);
        if !refused.shared.as_ref().is_some_and(is_it) {
            // It has taken the task, and let go of another one.
            return true;
        }
        refused.shared = None;
        self.queue.withdraw(refused.ticket);
        false
    }

    pub(super) fn holding(&self) -> Vec<BusyThread> {
        self.queue.threads().holding()
    }

    pub(super) fn looked_after_by(&self, group: &PollerGroup) {
        group.look_after_executor(&self.queue);
    }
}

/// Executors in use, by address, and their threads.
type Known = Vec<(Weak<dyn Executor>, ExecutorThreads)>;

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// The threads of an executor: always the same.
fn threads_of(executor: &Arc<dyn Executor>) -> ExecutorThreads {
    let mut known = KNOWN.lock();
    // An address is not used again as long as it is known.
    known.retain(|(known, _)| known.strong_count() > 0);
    let address = |known: &Weak<dyn Executor>| known.as_ptr().cast::<()>();
    let same =
        |(known, _): &&(Weak<dyn Executor>, _)| address(known) == Arc::as_ptr(executor).cast();
    if let Some((_, threads)) = known.iter().find(same) {
        return threads.clone();
    }
    let threads = ExecutorThreads::default();
    known.push((Arc::downgrade(executor), threads.clone()));
    threads
}

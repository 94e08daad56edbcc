//! The reserve: a few threads that do brief work while all others are taken.
//!
//! An operator that says that its run [is brief](crate::Operator::is_brief), and a scheduled closure, do not
//! have to wait until some other operator's run returns. Where every thread is inside of a run, the monitor
//! hands such work to the reserve, whose threads are started then and leave when nothing more comes.
//!
//! Runs that [only end](crate::Operator::is_ending) something may wait after all, and would hold up what brief runs
//! are there for: they have two of these threads at most, and a queue.
//!
//! They hold no reactor. A brief run ends as one does whose leadership went to another thread meanwhile.

use std::sync::Arc;

use crate::{
    poller::{Poller, runs::run_apart},
    reactor::Work,
    sync::Mutex,
    thread_pool::{Job, WorkerPool},
};

/// Threads in reserve at most: brief work may run into code that waits after all.
pub(crate) const MOST_IN_RESERVE: usize = 4;
/// Work that may wait for them. What is above that waits where it was.
pub(crate) const MOST_WAITING: usize = 1024;

/// A run or a closure, to be done once.
struct Brief {
    poller: Arc<Poller>,
    work: Mutex<Option<Work>>,
}

impl Job for Brief {
    fn run(self: Arc<Self>) {
        let work = self.work.lock().take();
        self.poller.counters.brief_runs.add(1);
        match work {
            Some(Work::Run(entry, _)) => run_apart(&self.poller, entry),
            Some(Work::Call(call)) => {
                self.poller.counters.timers.add(1);
                self.poller.contain(call);
            }
            _ => {}
        }
    }
}

/// Gives work to the reserve; returns it if it is not brief, or no thread can be had for it.
pub(crate) fn hand_to(reserve: &WorkerPool, poller: &Arc<Poller>, work: Work) -> Result<(), Work> {
    let work = match work {
        Work::Run(entry, _) if poller.contain(|| entry.operator.is_ending()) == Some(true) => {
            let home = Arc::clone(poller);
            let run = Box::new(move || {
                home.counters.brief_runs.add(1);
                run_apart(&home, entry);
            });
            poller.ends.push(reserve, run);
            return Ok(());
        }
        work => work,
    };
    let brief = match &work {
        Work::Run(entry, _) => poller.contain(|| entry.operator.is_brief()) == Some(true),
        Work::Call(_) => true,
        // A guest that is brief was handed over at home.
        Work::Guest(_) | Work::Ready(..) | Work::Timer(..) => false,
    };
    if !brief {
        return Err(work);
    }
    let job = Arc::new(Brief {
        poller: poller.clone(),
        work: Mutex::new(Some(work)),
    });
    if reserve.submit_if_served(job.clone()) {
        return Ok(());
    }
    match job.work.lock().take() {
        Some(work) => Err(work),
        None => Ok(()),
    }
}

//! The worker pool: every accepted job runs, whichever threads park, wake or start meanwhile.

use std::sync::Arc;

use crate::{
    WorkerPool,
    sync::{AtomicUsize, Condvar, Mutex, Ordering, thread},
    thread_pool::Job,
};

/// Counts its runs; optionally waits for another job to have run first.
#[derive(Default)]
struct Count {
    runs: AtomicUsize,
    ran: Mutex<usize>,
    changed: Condvar,
}

impl Count {
    fn wait_for(&self, runs: usize) {
        let mut ran = self.ran.lock();
        while *ran < runs {
            self.changed.wait(&mut ran);
        }
    }
}

impl Job for Count {
    fn run(self: Arc<Self>) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        *self.ran.lock() += 1;
        self.changed.notify_all();
    }
}

/// Blocks until the other job has run: needs a second thread.
struct Needs(Arc<Count>, Arc<Count>);

impl Job for Needs {
    fn run(self: Arc<Self>) {
        self.0.wait_for(1);
        self.1.clone().run();
    }
}

#[test]
fn loom_jobs_submitted_while_a_worker_parks_are_run() {
    loom::model(|| {
        let pool = WorkerPool::builder().max_threads(1).build();
        let job = Arc::new(Count::default());
        assert!(pool.submit(job.clone()).is_ok());
        job.wait_for(1);
        // The worker is somewhere between its job and its sleep, each time.
        for runs in 2..=3 {
            assert!(pool.submit(job.clone()).is_ok());
            job.wait_for(runs);
        }
        pool.close();
        assert_eq!(job.runs.load(Ordering::Relaxed), 3);
        assert!(pool.submit(job).is_err());
    });
}

#[test]
fn loom_a_blocking_job_does_not_hold_up_the_next() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(model.preemption_bound.unwrap_or(2).min(2));
    model.check(|| {
        let pool = WorkerPool::builder().max_threads(2).build();
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        assert!(
            pool.submit(Arc::new(Needs(first.clone(), second.clone())))
                .is_ok()
        );
        assert!(pool.submit(first.clone()).is_ok());
        second.wait_for(1);
        pool.close();
    });
}

#[test]
fn loom_a_closing_pool_runs_what_it_accepted() {
    loom::model(|| {
        let pool = WorkerPool::builder().max_threads(1).build();
        let job = Arc::new(Count::default());
        let submitter = thread::spawn({
            let (pool, job) = (pool.clone(), job.clone());
            move || (0..2).filter(|_| pool.submit(job.clone()).is_ok()).count()
        });
        pool.close();
        let accepted = submitter.join().unwrap();
        // The submitter may have started the thread after the close looked for threads.
        pool.close();
        assert_eq!(job.runs.load(Ordering::Relaxed), accepted);
    });
}

//! The worker pool on its own.
#![cfg(not(loom))]

mod support;

use std::{
    panic,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use poller::{Job, WorkerPool};
use support::{LIMIT, until};

/// A job made of a closure.
struct Do<F>(F);

impl<F: Fn() + Send + Sync + 'static> Job for Do<F> {
    fn run(self: Arc<Self>) {
        (self.0)();
    }
}

fn job(f: impl Fn() + Send + Sync + 'static) -> Arc<dyn Job> {
    Arc::new(Do(f))
}

#[test]
fn every_job_runs_once_whatever_the_number_of_submitters() {
    let pool = WorkerPool::builder().max_threads(4).name("test").build();
    let ran = Arc::new(AtomicUsize::new(0));
    let counting = job({
        let ran = ran.clone();
        move || {
            ran.fetch_add(1, Ordering::SeqCst);
        }
    });
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..5000 {
                    assert!(pool.submit(counting.clone()).is_ok());
                    if round % 64 == 0 {
                        // Lets the workers run dry and park now and then.
                        until("an empty queue", || pool.stats().queued == 0);
                    }
                }
            });
        }
    });
    until("all jobs", || ran.load(Ordering::SeqCst) == 20_000);
    let stats = pool.stats();
    assert_eq!((stats.submitted, stats.queued), (20_000, 0));
    assert!(stats.peak_threads <= 4);
    pool.close();
    assert_eq!(pool.stats().threads, 0);
}

#[test]
fn waiting_jobs_make_the_pool_grow_to_its_cap_and_no_further() {
    let pool = WorkerPool::builder().max_threads(8).build();
    let (barrier, all_there) = (Barrier::new(8), Arc::new(Barrier::new(9)));
    let (begun, submitted) = (AtomicUsize::new(0), all_there.clone());
    let together = job(move || {
        if begun.fetch_add(1, Ordering::SeqCst) < 8 {
            submitted.wait();
        }
        barrier.wait();
    });
    // Eight runs that need each other, twice; none ends before all are submitted.
    for _ in 0..16 {
        assert!(pool.submit(together.clone()).is_ok());
    }
    all_there.wait();
    pool.close();
    let stats = pool.stats();
    assert_eq!(stats.peak_threads, 8);
    assert!(stats.cap_hits > 0);
}

#[test]
fn idle_threads_leave_and_new_ones_come() {
    let pool = WorkerPool::builder()
        .keep_alive(Duration::from_millis(1))
        .build();
    for _ in 0..5 {
        let (tell, told) = mpsc::channel();
        let tell = Mutex::new(tell);
        assert!(
            pool.submit(job(move || tell.lock().unwrap().send(()).unwrap()))
                .is_ok()
        );
        told.recv_timeout(LIMIT).unwrap();
        until("an empty pool", || pool.stats().threads == 0);
    }
    pool.close();
}

#[test]
fn threads_that_fall_idle_one_by_one_do_not_keep_each_other() {
    const THREADS: usize = 200;
    let pool = WorkerPool::builder()
        .max_threads(THREADS)
        .keep_alive(Duration::from_millis(500))
        .build();
    // All at work at once, done a little apart.
    let barrier = Barrier::new(THREADS);
    let nth = AtomicUsize::new(0);
    let run = job(move || {
        barrier.wait();
        let nth = nth.fetch_add(1, Ordering::SeqCst) as u64;
        std::thread::sleep(Duration::from_millis(3 * nth));
    });
    for _ in 0..THREADS {
        assert!(pool.submit(run.clone()).is_ok());
    }
    until("all at work", || pool.stats().threads == THREADS);
    // If each one that leaves made the others begin anew this would take 100 seconds.
    until("an empty pool", || pool.stats().threads == 0);
    pool.close();
}

#[test]
fn a_bounded_queue_gives_jobs_back() {
    let pool = WorkerPool::builder().max_threads(1).max_queued(2).build();
    let gate = Arc::new(Barrier::new(2));
    let blocked = job({
        let gate = gate.clone();
        move || {
            gate.wait();
            gate.wait();
        }
    });
    assert!(pool.submit(blocked).is_ok());
    gate.wait();
    let nothing = job(|| {});
    assert!(pool.submit(nothing.clone()).is_ok());
    assert!(pool.submit(nothing.clone()).is_ok());
    assert!(Arc::ptr_eq(
        &pool.submit(nothing.clone()).unwrap_err(),
        &nothing
    ));
    gate.wait();
    until("room", || pool.stats().queued == 0);
    assert!(pool.submit(nothing.clone()).is_ok());
    pool.close();
    assert!(pool.submit(nothing).is_err());
}

#[test]
fn a_panic_is_contained_and_counted() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let pool = WorkerPool::builder().max_threads(1).build();
    for _ in 0..3 {
        assert!(pool.submit(job(|| panic!("on purpose"))).is_ok());
    }
    until("three panics", || pool.stats().panics == 3);
    panic::set_hook(usual);
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    assert!(
        pool.submit(job(move || tell.lock().unwrap().send(()).unwrap()))
            .is_ok()
    );
    told.recv_timeout(LIMIT).unwrap();
    assert_eq!(pool.stats().peak_threads, 1);
    pool.close();
}

#[test]
fn closing_runs_what_is_queued_and_may_come_from_a_job() {
    let pool = WorkerPool::builder().max_threads(2).build();
    let ran = Arc::new(AtomicUsize::new(0));
    let counting = job({
        let ran = ran.clone();
        move || {
            ran.fetch_add(1, Ordering::SeqCst);
        }
    });
    let closing = job({
        let pool = pool.clone();
        move || pool.close()
    });
    for _ in 0..100 {
        assert!(pool.submit(counting.clone()).is_ok());
    }
    assert!(pool.submit(closing).is_ok());
    until("the close", || pool.submit(counting.clone()).is_err());
    pool.close();
    assert_eq!(
        ran.load(Ordering::SeqCst) as u64,
        pool.stats().submitted - 1
    );
    assert_eq!(pool.stats().threads, 0);
}

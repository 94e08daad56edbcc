//! The system refuses threads: said where it matters, survived elsewhere. One test, because it
//! limits the whole process.
#![cfg(all(not(loom), target_os = "linux"))]

mod support;

use std::{
    fs, mem,
    sync::{Arc, Barrier},
};

use poller::{Job, PollerGroup, WorkerPool};
use support::until;

/// Sets the limit of the process's address space; gives the one before.
fn limit(bytes: libc::rlim_t) -> libc::rlim_t {
    // SAFETY: all-zero is a valid `rlimit`.
    let mut now: libc::rlimit = unsafe { mem::zeroed() };
    // SAFETY: the structure lives for the call.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut now) }, 0);
    let before = now.rlim_cur;
    now.rlim_cur = bytes;
    // SAFETY: the structure lives for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &now) }, 0);
    before
}

struct Meet(Barrier);

impl Job for Meet {
    fn run(self: Arc<Self>) {
        self.0.wait();
    }
}

#[test]
fn threads_refused_by_the_system() {
    let pool = WorkerPool::builder().build();
    let first = Arc::new(Meet(Barrier::new(2)));
    assert!(pool.submit(first.clone()).is_ok());
    until("the first job to run", || pool.stats().queued == 0);

    let pages: u64 = fs::read_to_string("/proc/self/statm")
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // Less than the stack of one more thread.
    let before = limit(pages * 4096 + 512 * 1024);
    let second = Arc::new(Meet(Barrier::new(1)));
    assert!(
        pool.submit(second.clone()).is_ok(),
        "accepted: the thread there will run it"
    );
    assert_eq!(pool.stats().spawn_failures, 1);
    let group = PollerGroup::builder().pollers(2).build();
    limit(before);

    let error = group.unwrap_err();
    assert!(error.raw_os_error().is_some(), "{error}");
    assert_eq!(pool.stats().queued, 1);
    first.0.wait();
    until("the job that waited for a thread", || {
        pool.stats().queued == 0
    });
    pool.close();
    assert_eq!(Arc::strong_count(&second), 1);
    PollerGroup::builder().pollers(2).build().unwrap().close();
}

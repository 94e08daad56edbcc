//! Groups come and go without a trace. One test, because it counts what the whole process has.
#![cfg(all(not(loom), target_os = "linux"))]

mod support;

use std::{
    fs,
    io::Write,
    time::{Duration, Instant},
};

use poller::{Balance, Interest, PollerGroup, Progress, before_blocking};
use support::{pair, probe, until};

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn cycle(pollers: usize) {
    let group = PollerGroup::builder()
        .pollers(pollers)
        .balance(Balance::LeastRegistered)
        .keep_alive(Duration::from_millis(if pollers % 2 == 0 {
            0
        } else {
            1000
        }))
        .build()
        .unwrap();
    let probes: Vec<_> = (0..10)
        .map(|_| {
            let (ours, mut peer) = pair();
            let probe = probe(ours)
                .on_ready(|_, _, budget| {
                    budget.set_timer(Some(budget.now() + Duration::from_secs(100)));
                    budget.request_run();
                    Progress::Drained
                })
                .on_run(|_| {
                    before_blocking();
                    std::thread::yield_now();
                    Progress::Drained
                })
                .register(&group.pick(), Interest::READ);
            peer.write_all(b"x").unwrap();
            (probe, peer)
        })
        .collect();
    group
        .pick()
        .schedule(Instant::now() + Duration::from_secs(100), || {});
    for (probe, _) in &probes {
        until("the run", || probe.runs() == 1);
    }
    group.close();
    for (probe, _) in &probes {
        assert_eq!(probe.detached(), 1);
    }
    // The registrations are still there: they hold neither descriptors nor threads.
    assert_eq!(group.stats().workers.threads, 0);
}

#[test]
fn a_hundred_cycles_leave_descriptors_and_threads_as_before() {
    let alone = threads();
    cycle(1);
    // A thread that was joined is gone from the list a moment later.
    until("the first threads' end", || threads() == alone);
    let before = (descriptors(), alone);
    for round in 0..100 {
        cycle(round % 3 + 1);
        assert_eq!(descriptors(), before.0, "after cycle {round}");
        until("the threads' end", || threads() == before.1);
    }
    // What stays open is not held by those who only keep a handle.
    let group = PollerGroup::new(2, Balance::RoundRobin).unwrap();
    let handle = group.pick();
    group.close();
    assert_eq!(descriptors(), before.0);
    until("the threads' end", || threads() == before.1);
    drop(handle);
}

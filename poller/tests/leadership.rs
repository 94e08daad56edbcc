//! The role goes to another thread when a run waits, however that is found out.
#![cfg(not(loom))]

mod support;

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use poller::{
    Budget, Interest, Operator, PollerGroup, PollerHandle, Progress, Readiness, before_blocking,
    is_polling_thread, wait_ready,
};
use support::{Probe, group, pair, probe, until};

/// An operator that echoes from `on_ready`, and the peer to try it with.
fn echo(handle: &PollerHandle) -> (Arc<Probe>, UnixStream) {
    let (ours, peer) = pair();
    let io = ours.try_clone().unwrap();
    let probe = probe(ours)
        .on_ready(move |_, _, _| {
            let mut bytes = [0; 64];
            while let Ok(n @ 1..) = (&io).read(&mut bytes) {
                (&io).write_all(&bytes[..n]).unwrap();
            }
            Progress::Drained
        })
        .register(handle, Interest::READ);
    (probe, peer)
}

/// The poller of `peer` answers.
fn ping(mut peer: &UnixStream) {
    peer.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    peer.read_exact(&mut back).unwrap();
}

/// An operator whose run does `wait` each time it is woken.
fn blocker(
    handle: &PollerHandle,
    wait: impl Fn() + Send + Sync + 'static,
) -> (Arc<Probe>, UnixStream) {
    let (ours, peer) = pair();
    let probe = probe(ours)
        .on_ready(|_, readiness, budget| {
            if readiness.contains(Readiness::WAKE) {
                budget.request_run();
            }
            Progress::Drained
        })
        .on_run(move |_| {
            assert!(!is_polling_thread());
            wait();
            assert!(!is_polling_thread());
            Progress::Drained
        })
        .register(handle, Interest::READ);
    (probe, peer)
}

#[test]
fn before_blocking_passes_the_role_on_at_once() {
    // The monitor would take a minute.
    let group = PollerGroup::builder()
        .pollers(1)
        .slow_after(Duration::from_secs(60))
        .build()
        .unwrap();
    let handle = group.pick();
    let (_echo, peer) = echo(&handle);
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (slow, _slow_peer) = blocker(&handle, move || {
        before_blocking();
        before_blocking();
        let _ = released.lock().unwrap().recv();
        before_blocking();
    });
    for round in 1..=20 {
        slow.registration().wake();
        until("the run", || slow.runs() == round);
        ping(&peer);
        release.send(()).unwrap();
        until("its end", || {
            group.stats().total().slow_runs == round as u64
        });
    }
    let stats = group.stats();
    assert_eq!(stats.total().handovers, 20);
    assert_eq!(stats.total().promotions, 0);
    assert!(
        stats.workers.peak_threads < 10,
        "threads are used again: {stats:?}"
    );
    group.close();
}

#[test]
fn before_blocking_without_a_wait_changes_nothing_for_the_others() {
    let group = group(1);
    let handle = group.pick();
    let (_echo, peer) = echo(&handle);
    let (slow, _slow_peer) = blocker(&handle, before_blocking);
    for _ in 0..500 {
        slow.registration().wake();
        ping(&peer);
    }
    until("the last run", || slow.runs() > 0);
    before_blocking(); // and nothing at all out here
    assert!(!is_polling_thread());
    group.close();
}

#[test]
fn runs_of_many_operators_may_all_wait_at_once() {
    let group = group(1);
    let handle = group.pick();
    let (_echo, peer) = echo(&handle);
    let count = 20;
    // Each run waits for all the others.
    let barrier = Arc::new(Barrier::new(count));
    let blockers: Vec<_> = (0..count)
        .map(|index| {
            let barrier = barrier.clone();
            blocker(&handle, move || {
                if index % 2 == 0 {
                    before_blocking();
                }
                barrier.wait();
            })
        })
        .collect();
    for round in 1..=3 {
        for (blocker, _) in &blockers {
            blocker.registration().wake();
        }
        ping(&peer);
        for (blocker, _) in &blockers {
            until("all runs", || blocker.runs() == round);
        }
    }
    group.close();
    assert_eq!(group.stats().workers.threads, 0);
}

#[test]
fn a_run_may_wait_for_another_operator_of_the_same_poller() {
    let group = group(1);
    let handle = group.pick();
    let (_echo, peer) = echo(&handle);
    let done = Arc::new(AtomicUsize::new(0));
    let count = done.clone();
    let (waiting, _peer) = blocker(&handle, move || {
        (&peer).write_all(b"ping").unwrap();
        before_blocking();
        let deadline = Instant::now() + support::LIMIT;
        let ready = wait_ready(peer.as_fd(), Interest::READ, Some(deadline)).unwrap();
        assert!(ready.contains(Readiness::READABLE));
        let mut back = [0; 4];
        (&peer).read_exact(&mut back).unwrap();
        count.fetch_add(1, Ordering::SeqCst);
    });
    for round in 1..=50 {
        waiting.registration().wake();
        until("the run's end", || done.load(Ordering::SeqCst) == round);
    }
    group.close();
    assert_eq!(group.stats().total().panics, 0);
}

#[test]
fn a_run_that_computes_for_long_loses_the_role_too() {
    let group = group(1);
    let handle = group.pick();
    let (_echo, peer) = echo(&handle);
    let stop = Arc::new(AtomicBool::new(false));
    let (busy, _busy_peer) = blocker(&handle, {
        let stop = stop.clone();
        move || {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        }
    });
    busy.registration().wake();
    until("the run", || busy.runs() == 1);
    ping(&peer);
    stop.store(true, Ordering::Relaxed);
    group.close();
    let total = group.stats().total();
    assert_eq!((total.handovers, total.slow_runs), (0, 1), "{total:?}");
    assert!(
        total.computing_promotions + total.promotions == 1,
        "{total:?}"
    );
}

#[test]
fn scheduled_closures_may_wait() {
    let group = group(1);
    let handle = group.pick();
    let (_echo, peer) = echo(&handle);
    let (release, released) = mpsc::channel::<()>();
    let (tell, told) = mpsc::channel();
    handle.schedule(Instant::now(), move || {
        tell.send(()).unwrap();
        before_blocking();
        let _ = released.recv();
        tell.send(()).unwrap();
    });
    told.recv_timeout(support::LIMIT).unwrap();
    ping(&peer);
    release.send(()).unwrap();
    told.recv_timeout(support::LIMIT).unwrap();
    group.close();
}

#[test]
fn at_the_thread_cap_runs_wait_for_a_thread_and_polling_goes_on() {
    let group = PollerGroup::builder()
        .pollers(1)
        .max_threads(2)
        .build()
        .unwrap();
    let handle = group.pick();
    let (echo, peer) = echo(&handle);
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (slow, _slow_peer) = blocker(&handle, move || {
        before_blocking();
        let _ = released.lock().unwrap().recv();
    });
    slow.registration().wake();
    until("the first run", || slow.runs() == 1);
    slow.registration().wake();
    until("the second run", || slow.runs() == 2);
    until("the cap", || group.stats().total().cap_hits == 1);
    // Both threads are inside runs: the monitor polls, and delivers timers.
    let before = echo.calls();
    ping(&peer);
    assert!(echo.calls() > before);
    echo.registration().set_timer(Some(Instant::now()));
    until("the timer", || group.stats().total().timers == 1);
    assert!(group.stats().total().stand_ins > 0);
    // A third run has to wait, also beyond some looks of the monitor.
    slow.registration().wake();
    let looks = group.stats().total().stand_ins;
    until("more looks", || group.stats().total().stand_ins > looks + 3);
    assert_eq!(slow.runs(), 2);
    release.send(()).unwrap();
    until("the third run", || slow.runs() == 3);
    release.send(()).unwrap();
    release.send(()).unwrap();
    until("both runs' end", || group.stats().total().slow_runs >= 1);
    ping(&peer);
    group.close();
    assert!(group.stats().workers.peak_threads <= 2);
}

/// An operator whose runs are brief.
struct Brief(Arc<Probe>);

impl Operator for Brief {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn on_ready(&self, readiness: Readiness, budget: &mut Budget<'_>) -> Progress {
        self.0.on_ready(readiness, budget)
    }

    fn is_brief(&self) -> bool {
        true
    }

    fn run(&self) -> Progress {
        self.0.run()
    }

    fn on_detached(&self) {
        self.0.on_detached();
    }
}

/// A group of one thread, which is in a run until the sender is dropped.
fn taken() -> (PollerGroup, PollerHandle, mpsc::Sender<()>, Arc<Probe>) {
    let group = PollerGroup::builder()
        .pollers(1)
        .max_threads(1)
        .build()
        .unwrap();
    let handle = group.pick();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (slow, _) = blocker(&handle, move || {
        before_blocking();
        let _ = released.lock().unwrap().recv();
    });
    slow.registration().wake();
    until("the run", || slow.runs() == 1);
    (group, handle, release, slow)
}

#[test]
fn brief_runs_and_closures_do_not_wait_for_a_thread() {
    let (group, handle, release, slow) = taken();
    let (ours, mut peer) = pair();
    let io = ours.try_clone().unwrap();
    let left = AtomicUsize::new(0);
    let brief = probe(ours)
        .on_ready(|_, _, budget| {
            budget.request_run();
            Progress::Drained
        })
        .on_run(move |_| {
            assert!(!is_polling_thread());
            let mut bytes = [0; 64];
            while let Ok(n @ 1..) = (&io).read(&mut bytes) {
                left.fetch_add(n, Ordering::SeqCst);
            }
            match left.load(Ordering::SeqCst) {
                0 => Progress::Drained,
                // Once more for each.
                _ if left.fetch_sub(1, Ordering::SeqCst) > 1 => Progress::Yield,
                _ => Progress::Drained,
            }
        })
        .build();
    let registration = handle
        .register(Arc::new(Brief(brief.clone())), Interest::READ)
        .unwrap();
    peer.write_all(&[0; 5]).unwrap();
    until("its runs", || brief.runs() >= 5);
    // An ordinary run waits, closures do not.
    slow.registration().wake();
    let (tell, told) = mpsc::channel();
    for _ in 0..10 {
        let tell = tell.clone();
        handle.schedule(Instant::now(), move || tell.send(()).unwrap());
        told.recv_timeout(support::LIMIT).unwrap();
    }
    assert_eq!(slow.runs(), 1);
    let stats = group.stats();
    assert!(stats.total().brief_runs >= 15);
    assert_eq!(stats.workers.peak_threads, 1);
    assert!((1..=4).contains(&stats.reserve.peak_threads));
    drop(release);
    until("the second run", || slow.runs() == 2);
    drop(registration);
    group.close();
    let stats = group.stats();
    assert_eq!((stats.workers.threads, stats.reserve.threads), (0, 0));
}

#[test]
fn brief_runs_that_wait_after_all_hold_up_no_more_than_the_reserve() {
    let (group, handle, release, slow) = taken();
    let (stop, stopped) = mpsc::channel::<()>();
    let stopped = Arc::new(Mutex::new(stopped));
    let begun = Arc::new(AtomicUsize::new(0));
    for _ in 0..2000 {
        let (stopped, begun) = (stopped.clone(), begun.clone());
        handle.schedule(Instant::now(), move || {
            begun.fetch_add(1, Ordering::SeqCst);
            let _ = stopped.lock().unwrap().recv();
        });
    }
    until("the reserve", || begun.load(Ordering::SeqCst) == 4);
    let looks = group.stats().total().stand_ins;
    until("more looks", || group.stats().total().stand_ins > looks + 3);
    // Descriptors are still looked after.
    let (_echo, peer) = echo(&handle);
    ping(&peer);
    drop(stop);
    until("all of them", || begun.load(Ordering::SeqCst) == 2000);
    assert_eq!(group.stats().reserve.peak_threads, 4);
    assert_eq!(slow.runs(), 1);
    drop(release);
    group.close();
}

#[test]
fn a_group_may_be_closed_by_its_reserve() {
    let (group, handle, release, slow) = taken();
    let (tell, told) = mpsc::channel();
    let own = group.clone();
    handle.schedule(Instant::now(), move || {
        // Only begins it here, while the one thread is taken.
        own.close();
        tell.send(own.is_closed()).unwrap();
    });
    assert_eq!(told.recv_timeout(support::LIMIT), Ok(true));
    drop(release);
    group.close();
    assert_eq!(slow.detached(), 1);
    let stats = group.stats();
    assert_eq!((stats.workers.threads, stats.reserve.threads), (0, 0));
}

#[test]
fn runs_yield_to_the_others_and_come_again() {
    let group = group(1);
    let handle = group.pick();
    let left = Arc::new(AtomicUsize::new(100));
    let (ours, _peer) = pair();
    let probe = probe(ours)
        .on_ready(|_, _, budget| {
            budget.request_run();
            Progress::Drained
        })
        .on_run({
            let left = left.clone();
            move |_| {
                if left.load(Ordering::SeqCst) % 10 == 0 {
                    // Comes back without the role.
                    before_blocking();
                    thread::yield_now();
                }
                match left.fetch_sub(1, Ordering::SeqCst) {
                    1 => Progress::Detach,
                    _ => Progress::Yield,
                }
            }
        })
        .register(&handle, Interest::WRITE);
    until("all runs", || probe.detached() == 1);
    assert_eq!(probe.runs(), 100);
    assert_eq!(left.load(Ordering::SeqCst), 0);
    group.close();
}

#[test]
fn a_pause_asked_for_by_a_run_is_not_lost_to_an_early_resume() {
    let group = group(1);
    let handle = group.pick();
    let (ours, mut peer) = pair();
    let overtaken = probe(ours)
        .on_ready(|probe, _, budget| {
            if probe.runs() == 0 {
                budget.request_run();
            }
            Progress::Drained
        })
        .on_run(|probe| {
            before_blocking();
            // Somebody else was quicker than this run's wish to pause.
            probe.registration().resume();
            Progress::Pause
        })
        .register(&handle, Interest::READ);
    peer.write_all(b"x").unwrap();
    until("the run", || overtaken.runs() == 1);
    let calls = overtaken.calls();
    overtaken.registration().wake();
    until("delivery after the pause", || overtaken.calls() > calls);
    group.close();
}

#[test]
fn the_monitor_rests_and_is_called_back() {
    let group = group(1);
    let handle = group.pick();
    let (_echo, peer) = echo(&handle);
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (slow, _slow_peer) = blocker(&handle, move || {
        let _ = released.lock().unwrap().recv();
    });
    for round in 1..=5 {
        slow.registration().wake();
        until("the run", || slow.runs() == round);
        ping(&peer);
        release.send(()).unwrap();
        until("its end", || {
            group.stats().total().slow_runs == round as u64
        });
        // Many times the monitor's ticks until it rests; whether it does is not visible here, that
        // it comes back is.
        thread::sleep(Duration::from_millis(25));
    }
    assert_eq!(group.stats().total().promotions, 5);
    group.close();
}

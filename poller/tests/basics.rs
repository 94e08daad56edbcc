//! Registering, readiness, wakes, pauses, timers, detaching: one poller, real descriptors.
#![cfg(not(loom))]

mod support;

use std::{
    io::{Read, Write},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use poller::{Interest, PollerGroup, Progress, Readiness, is_polling_thread};
use support::{group, pair, probe, until};

const BOTH: fn() -> Interest = || Interest::READ | Interest::WRITE;

#[test]
fn echo_through_on_ready_and_run() {
    let group = group(1);
    let (ours, mut peer) = pair();
    let reader = ours.try_clone().unwrap();
    let probe = probe(ours)
        .on_ready(|_, readiness, budget| {
            assert!(is_polling_thread());
            if readiness.contains(Readiness::READABLE) {
                budget.request_run();
            }
            Progress::Drained
        })
        .on_run(move |_| {
            assert!(!is_polling_thread());
            let mut bytes = [0; 64];
            while let Ok(n) = (&reader).read(&mut bytes) {
                if n == 0 {
                    return Progress::Detach;
                }
                (&reader).write_all(&bytes[..n]).unwrap();
            }
            Progress::Drained
        })
        .register(&group.pick(), BOTH());
    for round in 0..100u8 {
        peer.write_all(&[round; 7]).unwrap();
        let mut back = [0; 7];
        peer.read_exact(&mut back).unwrap();
        assert_eq!(back, [round; 7]);
    }
    drop(peer);
    until("detach at end of stream", || probe.detached() == 1);
    assert!(!is_polling_thread());
    group.close();
    assert_eq!(probe.detached(), 1);
}

#[test]
fn wakes_are_coalesced_and_none_is_lost() {
    let group = group(1);
    let (ours, _peer) = pair();
    let probe = probe(ours).register(&group.pick(), Interest::READ);
    for round in 1..=1000 {
        let before = probe.calls();
        for _ in 0..round % 7 + 1 {
            probe.registration().wake();
        }
        until("a wake", || probe.calls() > before);
    }
    assert!(probe.calls() <= 4000);
    assert!(probe.saw(Readiness::WAKE));
    group.close();
}

#[test]
fn timers_fire_once_and_never_early() {
    let group = group(1);
    let (ours, _peer) = pair();
    let (tell, told) = mpsc::channel();
    let probe = probe(ours)
        .on_ready(move |_, readiness, _| {
            if readiness.contains(Readiness::TIMER) {
                tell.send(Instant::now()).unwrap();
            }
            Progress::Drained
        })
        .register(&group.pick(), Interest::READ);
    let deadline = Instant::now() + Duration::from_millis(20);
    probe
        .registration()
        .set_timer(Some(deadline + Duration::from_secs(100)));
    probe.registration().set_timer(Some(deadline));
    assert!(told.recv_timeout(support::LIMIT).unwrap() >= deadline);
    assert!(told.recv_timeout(Duration::from_millis(25)).is_err());
    let handle = probe.registration().poller().clone();
    let (tell, told) = mpsc::channel();
    let cancelled = handle.schedule(deadline + Duration::from_secs(100), || unreachable!());
    assert!(handle.cancel(cancelled));
    assert!(!handle.cancel(cancelled));
    handle.schedule(Instant::now(), move || tell.send(()).unwrap());
    told.recv_timeout(support::LIMIT).unwrap();
    group.close();
}

#[test]
fn paused_readiness_is_remembered() {
    let group = group(1);
    let (ours, mut peer) = pair();
    let probe = probe(ours)
        .on_ready(|probe, _, _| {
            if probe.runs() == 0 {
                Progress::Pause
            } else {
                Progress::Drained
            }
        })
        .register(&group.pick(), Interest::READ);
    peer.write_all(b"x").unwrap();
    until("the first event", || probe.calls() == 1);
    peer.write_all(b"y").unwrap();
    probe.registration().wake();
    let (tell, told) = mpsc::channel();
    // Behind the wake in the queue, so the wake has been seen when this ran.
    probe
        .registration()
        .poller()
        .schedule(Instant::now(), move || tell.send(()).unwrap());
    told.recv_timeout(support::LIMIT).unwrap();
    assert_eq!(probe.calls(), 1);
    probe.runs.store(1, std::sync::atomic::Ordering::SeqCst);
    probe.registration().resume();
    until("redelivery", || probe.calls() == 2);
    assert_eq!(
        probe.seen.lock().unwrap()[1],
        Readiness::READABLE | Readiness::WAKE
    );
    group.close();
}

#[test]
fn a_run_that_blocks_without_a_word_loses_the_role() {
    let group = group(1);
    let (slow, mut slow_peer) = pair();
    let (fast, mut fast_peer) = pair();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let slow = probe(slow)
        .on_ready(|_, _, budget| {
            budget.request_run();
            Progress::Drained
        })
        .on_run(move |_| {
            let _ = released.lock().unwrap().recv();
            Progress::Drained
        })
        .register(&group.pick(), Interest::READ);
    let echo = fast.try_clone().unwrap();
    let _fast = probe(fast)
        .on_ready(move |_, _, _| {
            let mut bytes = [0; 64];
            while let Ok(n @ 1..) = (&echo).read(&mut bytes) {
                (&echo).write_all(&bytes[..n]).unwrap();
            }
            Progress::Drained
        })
        .register(&group.pick(), BOTH());
    slow_peer.write_all(b"go").unwrap();
    until("the slow run", || slow.runs() == 1);
    fast_peer.write_all(b"ping").unwrap();
    let mut back = [0; 4];
    fast_peer.read_exact(&mut back).unwrap();
    assert_eq!(group.stats().total().promotions, 1);
    drop(release);
    until("the slow run's end", || {
        group.stats().total().slow_runs == 1
    });
    group.close();
    assert_eq!(group.stats().workers.threads, 0);
}

#[test]
fn operators_are_dropped_after_close() {
    let group = group(2);
    let (ours, _peer) = pair();
    let operator = probe(ours).register(&group.pick(), Interest::READ);
    group.close();
    group.close();
    assert!(group.is_closed());
    assert_eq!(operator.detached(), 1);
    let weak = Arc::downgrade(&operator);
    drop(operator);
    assert!(weak.upgrade().is_none());
    let (ours, _peer) = pair();
    assert!(group.register(probe(ours).build(), Interest::READ).is_err());
}

#[test]
fn busy_polling_changes_nothing_but_time() {
    let group = PollerGroup::builder()
        .pollers(1)
        .busy_poll(Some(Duration::from_millis(2)))
        .build()
        .unwrap();
    let handle = group.pick();
    let (ours, mut peer) = pair();
    let reader = ours.try_clone().unwrap();
    let operator = probe(ours)
        .on_ready(move |_, readiness, _| {
            if readiness.contains(Readiness::READABLE) {
                let mut bytes = [0; 64];
                while let Ok(n @ 1..) = (&reader).read(&mut bytes) {
                    (&reader).write_all(&bytes[..n]).unwrap();
                }
            }
            Progress::Drained
        })
        .register(&handle, Interest::READ);
    for round in 0..100u8 {
        peer.write_all(&[round]).unwrap();
        let mut back = [0];
        peer.read_exact(&mut back).unwrap();
        assert_eq!(back, [round]);
        operator.registration().wake();
        let due = Instant::now() + Duration::from_micros(500);
        let (tell, told) = mpsc::channel();
        handle.schedule(due, move || tell.send(Instant::now()).unwrap());
        assert!(told.recv_timeout(support::LIMIT).unwrap() >= due);
    }
    until("a wake", || operator.saw(Readiness::WAKE));
    group.close();
}

/// Nothing to do: neither the poller nor the monitor moves.
#[test]
#[cfg(target_os = "linux")]
fn an_idle_group_does_nothing() {
    let group = PollerGroup::builder()
        .pollers(1)
        .name("quiet")
        .build()
        .unwrap();
    let (ours, mut peer) = pair();
    let operator = probe(ours)
        .on_ready(|_, _, budget| {
            budget.request_run();
            Progress::Drained
        })
        .register(&group.pick(), Interest::READ);
    // A run starts the monitor.
    peer.write_all(b"x").unwrap();
    until("the run", || operator.runs() == 1);
    let switches = || {
        std::fs::read_dir("/proc/self/task")
            .unwrap()
            .map(|task| task.unwrap().path())
            .filter(|task| {
                std::fs::read_to_string(task.join("comm"))
                    .is_ok_and(|name| name.starts_with("quiet"))
            })
            .flat_map(|task| std::fs::read_to_string(task.join("status")))
            .flat_map(|status| {
                status
                    .lines()
                    .filter(|line| line.starts_with("voluntary_ctxt_switches"))
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };
    assert!(switches().len() >= 2, "a poller and the monitor");
    until("rest", || {
        let before = (group.stats().total().turns, switches());
        std::thread::sleep(Duration::from_millis(25));
        before == (group.stats().total().turns, switches())
    });
    group.close();
}

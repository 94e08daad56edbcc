//! Timers of operators and scheduled closures: never early, once or not at all, and judged after
//! the events that came before them.
#![cfg(not(loom))]

mod support;

use std::{
    io::{Read, Write},
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use poller::{Interest, Progress, Readiness};
use support::{LIMIT, group, pair, probe, settle, until};

#[test]
fn many_timers_fire_once_each_and_never_early() {
    let group = group(2);
    let (tell, told) = mpsc::channel();
    let begin = Instant::now();
    let count = 400;
    let probes: Vec<_> = (0..count)
        .map(|index| {
            let tell = Mutex::new(tell.clone());
            let due = begin + Duration::from_micros(index * 137 % 50_000);
            let probe = probe(pair().0)
                .on_ready(move |_, readiness, _| {
                    if readiness.contains(Readiness::TIMER) {
                        tell.lock()
                            .unwrap()
                            .send((index, due, Instant::now()))
                            .unwrap();
                    }
                    Progress::Drained
                })
                .register(&group.pick(), Interest::HANGUP);
            // Further away first: the wheel has to be told of the earlier one.
            probe.registration().set_timer(Some(due + LIMIT));
            probe.registration().set_timer(Some(due));
            probe
        })
        .collect();
    let mut fired = vec![0; count as usize];
    for _ in 0..count {
        let (index, due, at) = told.recv_timeout(LIMIT).unwrap();
        assert!(at >= due, "{:?} early", due - at);
        fired[index as usize] += 1;
    }
    for probe in &probes {
        settle(probe.registration().poller());
    }
    assert!(told.try_recv().is_err());
    assert!(fired.iter().all(|&times| times == 1));
    assert_eq!(
        group.stats().total().timers,
        3 * count,
        "settling takes two each"
    );
    group.close();
}

#[test]
fn a_deadline_moved_away_lazily_is_kept() {
    let group = group(1);
    let probe = probe(pair().0).register(&group.pick(), Interest::HANGUP);
    let registration = probe.registration();
    let last = loop {
        let first = Instant::now() + Duration::from_millis(20);
        registration.set_timer(Some(first));
        settle(registration.poller());
        let mut last = first;
        for _ in 0..30 {
            last += Duration::from_millis(1);
            registration.set_timer(Some(last));
        }
        // Held up for so long that the first deadline passed: once more.
        if Instant::now() < first {
            break last;
        }
        registration.set_timer(None);
        settle(registration.poller());
        probe.forget();
    };
    until("the timer", || probe.saw(Readiness::TIMER));
    assert!(Instant::now() >= last);
    let later = loop {
        probe.forget();
        let deadline = Instant::now() + Duration::from_millis(10);
        registration.set_timer(Some(deadline));
        settle(registration.poller());
        registration.set_timer(None);
        if Instant::now() < deadline {
            break deadline + Duration::from_millis(5);
        }
        settle(registration.poller());
    };
    let (tell, told) = mpsc::channel();
    registration
        .poller()
        .schedule(later, move || tell.send(()).unwrap());
    told.recv_timeout(LIMIT).unwrap();
    assert_eq!(probe.calls(), 0, "a timer that was cleared");
    group.close();
}

#[test]
fn timers_set_in_callbacks_repeat() {
    let group = group(1);
    let last = Mutex::new(None::<Instant>);
    let probe = probe(pair().0)
        .on_ready(move |probe, readiness, budget| {
            let now = Instant::now();
            let mut last = last.lock().unwrap();
            if let (true, Some(due)) = (readiness.contains(Readiness::TIMER), *last) {
                assert!(now >= due);
            }
            if probe.calls() == 20 {
                return Progress::Detach;
            }
            let next = budget.now() + Duration::from_millis(2);
            *last = Some(next);
            budget.set_timer(Some(next));
            Progress::Drained
        })
        .register(&group.pick(), Interest::WRITE);
    until("twenty calls", || probe.detached() == 1);
    assert_eq!(probe.calls(), 20);
    assert_eq!(group.stats().total().panics, 0);
    group.close();
}

/// The poller is held up while a deadline passes and data arrives: the data comes first, and an
/// operator that moves its deadline because of it is not told that it is over.
#[test]
fn what_arrived_is_handled_before_a_timer_is_judged() {
    let group = group(1);
    let handle = group.pick();
    let gate = Arc::new(Barrier::new(2));
    let (ours, mut gate_peer) = pair();
    let (hold, io) = (gate.clone(), ours.try_clone().unwrap());
    let _gate = probe(ours)
        .on_ready(move |_, _, _| {
            while let Ok(1..) = (&io).read(&mut [0; 8]) {}
            hold.wait();
            hold.wait();
            Progress::Drained
        })
        .register(&handle, Interest::READ);
    for move_it in [true, false] {
        let (ours, mut peer) = pair();
        let idle = probe(ours)
            .on_ready(move |_, readiness, budget| {
                if readiness.contains(Readiness::READABLE) && move_it {
                    budget.set_timer(Some(budget.now() + LIMIT));
                }
                Progress::Drained
            })
            .register(&handle, Interest::READ);
        gate_peer.write_all(b"x").unwrap();
        gate.wait();
        let deadline = Instant::now() + Duration::from_millis(3);
        idle.registration().set_timer(Some(deadline));
        while Instant::now() < deadline + Duration::from_millis(5) {
            std::thread::yield_now();
        }
        peer.write_all(b"x").unwrap();
        gate.wait();
        until("the data", || idle.calls() > 0);
        settle(&handle);
        let seen = idle.seen.lock().unwrap().clone();
        if move_it {
            assert_eq!(seen, [Readiness::READABLE]);
        } else {
            assert_eq!(seen, [Readiness::READABLE, Readiness::TIMER]);
        }
        idle.registration().detach();
    }
    group.close();
}

#[test]
fn closures_are_run_or_cancelled_never_both() {
    let group = group(1);
    let handle = group.pick();
    let ran = Arc::new(AtomicUsize::new(0));
    let mut cancelled = 0;
    let count = 3000;
    for index in 0..count {
        let ran = ran.clone();
        let key = handle.schedule(
            Instant::now() + Duration::from_micros(index % 1500),
            move || {
                ran.fetch_add(1, Ordering::SeqCst);
            },
        );
        if index % 2 == 0 {
            std::thread::yield_now();
        }
        if index % 3 != 0 {
            cancelled += usize::from(handle.cancel(key));
            assert!(!handle.cancel(key));
        }
    }
    until("all of them", || {
        ran.load(Ordering::SeqCst) + cancelled == count as usize
    });
    settle(&handle);
    assert_eq!(ran.load(Ordering::SeqCst) + cancelled, count as usize);
    group.close();
}

#[test]
fn deadlines_of_all_sizes() {
    let group = group(1);
    let handle = group.pick();
    let now = Instant::now();
    let (tell, told) = mpsc::channel();
    for (name, deadline) in [
        (
            "past",
            now.checked_sub(Duration::from_secs(1)).unwrap_or(now),
        ),
        ("now", now),
        ("soon", now + Duration::from_nanos(1)),
    ] {
        let tell = tell.clone();
        handle.schedule(deadline, move || tell.send(name).unwrap());
    }
    for years in [1, 25, 150, 500] {
        let far = now + Duration::from_secs(years * 366 * 24 * 3600);
        handle.schedule(far, || unreachable!("years too early"));
    }
    let mut names: Vec<_> = (0..3).map(|_| told.recv_timeout(LIMIT).unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["now", "past", "soon"]);
    let turns = group.stats().total().turns;
    std::thread::sleep(Duration::from_millis(20));
    // A far deadline does not make the poller spin. (The sleep only gives it the chance to.)
    assert!(group.stats().total().turns < turns + 20);
    group.close();
    assert_eq!(group.stats().total().panics, 0);
}

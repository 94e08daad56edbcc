//! Batches shared among threads: runs that often wait, runs that compute for long.
#![cfg(not(loom))]

mod support;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use poller::{
    Interest, PollerGroup, PollerHandle, PollerStats, Progress, Readiness, before_blocking,
};
use support::{LIMIT, Probe, group, pair, probe, until};

/// Echoes in `run`, one run at a time, after doing `work`; an event that comes during a run makes
/// it go round again.
fn server(
    handle: &PollerHandle,
    work: impl Fn() + Send + Sync + 'static,
) -> (Arc<Probe>, UnixStream) {
    let (ours, peer) = pair();
    let io = ours.try_clone().unwrap();
    // 0 idle, 1 running, 2 running and asked again
    let state = Arc::new(AtomicUsize::new(0));
    let inside = AtomicBool::new(false);
    let asked = state.clone();
    let probe = probe(ours)
        .on_ready(move |_, readiness, budget| {
            if readiness.contains(Readiness::READABLE) {
                // One transition, so that a run that ends just now is not missed.
                let before = asked.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                    Some(if state == 0 { 1 } else { 2 })
                });
                if before == Ok(0) {
                    budget.request_run();
                }
            }
            Progress::Drained
        })
        .on_run(move |_| {
            assert!(!inside.swap(true, Ordering::AcqRel), "two runs at once");
            loop {
                let mut bytes = [0; 64];
                while let Ok(n @ 1..) = (&io).read(&mut bytes) {
                    work();
                    (&io).write_all(&bytes[..n]).unwrap();
                }
                inside.store(false, Ordering::Release);
                match state.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => return Progress::Drained,
                    Err(_) => state.store(1, Ordering::Release),
                }
                inside.store(true, Ordering::Release);
            }
        })
        .register(handle, Interest::READ);
    (probe, peer)
}

/// Keeps all peers busy until `done`: a round is one request each.
fn drive(peers: &[UnixStream], mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    for round in 0u32.. {
        for mut peer in peers {
            peer.write_all(&round.to_ne_bytes()).unwrap();
        }
        for mut peer in peers {
            let mut back = [0; 4];
            peer.read_exact(&mut back).unwrap();
            assert_eq!(back, round.to_ne_bytes());
        }
        if done() {
            return;
        }
        assert!(Instant::now() < deadline, "it never came to that");
    }
}

#[test]
fn runs_that_often_wait_get_help_and_nothing_is_lost() {
    /// Threads that were sent to share a batch, before runs wait seldom again.
    const HELPED: u64 = 10;
    let group = group(1);
    let handle = group.pick();
    let turn = Arc::new(AtomicUsize::new(0));
    let (probes, peers): (Vec<_>, Vec<_>) = (0..40)
        .map(|_| {
            let (turn, group) = (turn.clone(), group.clone());
            server(&handle, move || {
                // At first each run waits until it, or one beside it, is found, however busy the machine is;
                // not for ever, since one that is taken for a run that computes is not found.
                let before = group.stats().total().waits;
                let found = |_: &i32| {
                    let total = group.stats().total();
                    total.helpers > HELPED || total.waits > before
                };
                (0..100).take_while(|n| !found(n)).for_each(|_| {
                    thread::sleep(Duration::from_millis(1));
                });
                match turn.fetch_add(1, Ordering::Relaxed) % 11 {
                    0 => thread::sleep(Duration::from_millis(3)),
                    1 => {
                        before_blocking();
                        thread::sleep(Duration::from_millis(1));
                    }
                    _ => {}
                }
            })
        })
        .unzip();
    drive(&peers, || group.stats().total().helpers > HELPED);
    let mut rounds = 0;
    drive(&peers, || {
        rounds += 1;
        rounds == 100
    });
    let total = group.stats().total();
    assert_eq!(total.panics, 0);
    // They were found waiting, by the monitor or by threads that came for the rest of the batch.
    assert!(
        total.waits > 0 && total.handovers + total.promotions > 0,
        "{total:?}"
    );
    group.close();
    assert!(probes.iter().all(|probe| probe.detached() == 1));
    assert_eq!(group.stats().workers.threads, 0);
}

#[test]
fn long_batches_of_long_runs_get_help() {
    if thread::available_parallelism().map_or(1, usize::from) == 1 {
        return;
    }
    let group = group(1);
    let handle = group.pick();
    let together = Arc::new(AtomicUsize::new(0));
    let most = Arc::new(AtomicUsize::new(0));
    let (_probes, peers): (Vec<_>, Vec<_>) = (0..40)
        .map(|_| {
            let (together, most) = (together.clone(), most.clone());
            server(&handle, move || {
                let now = together.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(100) {
                    std::hint::spin_loop();
                }
                together.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .unzip();
    drive(&peers, || {
        most.load(Ordering::SeqCst) > 1 && group.stats().total().helpers > 0
    });
    assert_eq!(group.stats().total().panics, 0);
    group.close();
}

#[test]
fn short_runs_are_nobody_elses_business() {
    let group = group(1);
    let handle = group.pick();
    let (_probes, peers): (Vec<_>, Vec<_>) = (0..40).map(|_| server(&handle, || {})).unzip();
    let mut rounds = 0;
    drive(&peers, || {
        rounds += 1;
        rounds == 300
    });
    assert_eq!(group.stats().total().sharings, 0);
    group.close();
}

/// Operators that are woken at the same moment. The runs of some wait, without a word, until all of those do;
/// the others return, or compute for a time, and then those that wait do so until all have run. The monitor looks
/// twice a second: were each of them to be found by it, this would take minutes. Returns the peak of threads, too.
fn burst(waits: usize, returns: usize, compute: Duration) -> (PollerStats, usize) {
    let group = PollerGroup::builder()
        .pollers(1)
        .slow_after(Duration::from_millis(500))
        .build()
        .unwrap();
    let handle = group.pick();
    let arrived = Arc::new((Mutex::new(0), Condvar::new()));
    let computes = !compute.is_zero();
    let expected = if computes { waits + returns } else { waits };
    let operators: Vec<_> = (0..waits + returns)
        .map(|n| {
            let arrived = arrived.clone();
            let (ours, peer) = pair();
            let probe = probe(ours)
                .on_ready(|_, readiness, budget| {
                    if readiness.contains(Readiness::WAKE) {
                        budget.request_run();
                    }
                    Progress::Drained
                })
                .on_run(move |_| {
                    // They are mixed evenly.
                    let waits = n * waits % (waits + returns) < waits;
                    let begin = Instant::now();
                    while !waits && begin.elapsed() < compute {
                        std::hint::spin_loop();
                    }
                    if waits || computes {
                        let (count, changed) = &*arrived;
                        let mut count = count.lock().unwrap();
                        *count += 1;
                        changed.notify_all();
                        if waits {
                            let missing = |count: &mut usize| *count < expected;
                            let all = changed.wait_timeout_while(count, LIMIT, missing);
                            assert!(!all.unwrap().1.timed_out());
                        }
                    }
                    Progress::Drained
                })
                .register(&handle, Interest::READ);
            (probe, peer)
        })
        .collect();
    for (probe, _) in &operators {
        probe.registration().wake();
    }
    until("all runs", || {
        *arrived.0.lock().unwrap() == expected
            && operators.iter().all(|(probe, _)| probe.runs() == 1)
    });
    let stats = group.stats();
    group.close();
    // Those that run, and a few on their way.
    let most = waits + returns + 10;
    let threads = stats.workers.peak_threads;
    assert!((waits..=most).contains(&threads), "{:?}", stats.workers);
    (stats.total(), threads)
}

#[test]
fn a_burst_of_waits_takes_few_looks() {
    let (stats, _) = burst(300, 0, Duration::ZERO);
    assert!((1..=10).contains(&stats.promotions), "{stats:?}");
}

#[test]
fn a_burst_of_waits_among_others_takes_few_looks() {
    let (stats, _) = burst(200, 200, Duration::ZERO);
    assert!((1..=10).contains(&stats.promotions), "{stats:?}");
}

/// A run that is not back yet when another thread takes its core may compute. It is no proof of a burst, and no
/// reason for more threads.
#[test]
fn runs_that_compute_beside_one_that_waits_start_few_threads() {
    let (stats, threads) = burst(1, 150, Duration::from_millis(3));
    assert!(threads <= 30, "{threads}, {stats:?}");
}

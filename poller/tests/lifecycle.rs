//! Detaching, closing, panics: exactly one `on_detached`, whatever happens.
#![cfg(not(loom))]

mod support;

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    panic,
    sync::{Arc, Mutex, Once, mpsc},
    time::{Duration, Instant},
};

use poller::{
    Budget, Interest, Job, Operator, PollerGroup, Progress, Readiness, WorkerPool, before_blocking,
    is_polling_thread,
};
use support::{Probe, group, pair, probe, settle, until};

/// The panics of these tests are on purpose: their messages would only be noise.
fn quiet() {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let on_purpose = info.payload().is::<Bomb>()
                || info.payload().downcast_ref::<&str>() == Some(&"on purpose");
            if !on_purpose {
                usual(info);
            }
        }));
    });
}

/// A panic payload that panics again when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("on purpose");
    }
}

#[test]
fn detaching_from_inside_callbacks() {
    let group = group(1);
    let handle = group.pick();
    let ready = probe(pair().0)
        .on_ready(|probe, _, _| {
            probe.registration().detach();
            probe.registration().detach();
            // Too late for any of this.
            probe.registration().wake();
            Progress::Yield
        })
        .on_detached(|_| assert!(is_polling_thread()))
        .register(&handle, Interest::READ);
    let run = probe(pair().0)
        .on_ready(|_, _, budget| {
            budget.request_run();
            Progress::Drained
        })
        .on_run(|probe| {
            before_blocking();
            probe.registration().detach();
            Progress::Detach
        })
        .register(&handle, Interest::READ);
    for probe in [&ready, &run] {
        until("detached", || probe.detached() == 1);
    }
    settle(&handle);
    assert_eq!((ready.calls(), run.runs()), (1, 1));
    assert_eq!((ready.detached(), run.detached()), (1, 1));
    group.close();
}

#[test]
fn dropping_the_registration_detaches_and_the_operator_is_dropped() {
    let group = group(1);
    let (ours, mut peer) = pair();
    let operator = probe(ours).build();
    let weak = Arc::downgrade(&operator);
    let registration = group.register(operator, Interest::READ).unwrap();
    peer.write_all(b"x").unwrap();
    until("the event", || {
        weak.upgrade().is_some_and(|probe| probe.calls() == 1)
    });
    drop(registration);
    until("the drop", || weak.upgrade().is_none());
    // Its descriptor is closed: the peer sees the end of the stream, or a reset, because the byte
    // was not read.
    let still_open = |error: std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    peer.set_nonblocking(true).unwrap();
    until("the end", || !peer.read(&mut [0]).is_err_and(still_open));
    group.close();
}

#[test]
fn an_operator_that_owns_its_registration_goes_away() {
    let group = group(1);
    let (ours, _peer) = pair();
    let probe = probe(ours).register(&group.pick(), Interest::READ);
    let weak = Arc::downgrade(&probe);
    probe.registration().detach();
    drop(probe);
    until("the drop", || weak.upgrade().is_none());
    group.close();
}

#[test]
fn closing_from_inside_every_callback() {
    type Start =
        fn(&PollerGroup, Arc<Mutex<Option<PollerGroup>>>) -> Option<(Arc<Probe>, UnixStream)>;
    fn close(group: &Mutex<Option<PollerGroup>>) {
        let group = group.lock().unwrap().take();
        if let Some(group) = group {
            group.close();
            assert!(group.is_closed());
        }
    }
    let starts: [(&str, Start); 4] = [
        ("on_ready", |group, inner| {
            let (ours, peer) = pair();
            let probe = probe(ours).on_ready(move |_, _, _| {
                close(&inner);
                Progress::Drained
            });
            Some((probe.register(&group.pick(), Interest::WRITE), peer))
        }),
        ("run", |group, inner| {
            let (ours, peer) = pair();
            let probe = probe(ours)
                .on_ready(|_, _, budget| {
                    budget.request_run();
                    Progress::Drained
                })
                .on_run(move |_| {
                    close(&inner);
                    Progress::Drained
                });
            Some((probe.register(&group.pick(), Interest::WRITE), peer))
        }),
        ("on_detached", |group, inner| {
            let (ours, peer) = pair();
            let probe = probe(ours)
                .on_ready(|_, _, _| Progress::Detach)
                .on_detached(move |_| close(&inner));
            Some((probe.register(&group.pick(), Interest::WRITE), peer))
        }),
        ("closure", |group, inner| {
            group.pick().schedule(Instant::now(), move || close(&inner));
            None
        }),
    ];
    for (name, start) in starts {
        let group = group(2);
        let (ours, _peer) = pair();
        let bystander = probe(ours).register(&group.pick(), Interest::READ);
        let inner = Arc::new(Mutex::new(Some(group.clone())));
        let own = start(&group, inner);
        until(name, || group.is_closed());
        // From out here it waits.
        group.close();
        assert_eq!(group.stats().workers.threads, 0, "{name}");
        assert_eq!(bystander.detached(), 1, "{name}");
        if let Some((own, _)) = own {
            assert_eq!(own.detached(), 1, "{name}");
        }
    }
}

#[test]
fn close_waits_for_a_run_and_then_for_all_threads() {
    let group = group(1);
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (ours, _peer) = pair();
    let slow = probe(ours)
        .on_ready(|_, _, budget| {
            budget.request_run();
            Progress::Drained
        })
        .on_run(move |_| {
            let _ = released.lock().unwrap().recv();
            Progress::Yield
        })
        .register(&group.pick(), Interest::WRITE);
    until("the run", || slow.runs() == 1);
    let closer = std::thread::spawn({
        let group = group.clone();
        move || group.close()
    });
    // Told while the run still waits, which may be what the run waits for.
    until("the word", || slow.detached() == 1);
    assert!(!closer.is_finished());
    release.send(()).unwrap();
    closer.join().unwrap();
    assert_eq!(group.stats().workers.threads, 0);
    assert_eq!((slow.runs(), slow.detached()), (1, 1));
}

#[test]
fn a_run_asked_for_before_the_end_is_made_after_the_word() {
    let group = PollerGroup::builder()
        .pollers(1)
        .max_threads(1)
        .build()
        .unwrap();
    let poller = group.pick();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (ours, _peer) = pair();
    let slow = probe(ours)
        .on_ready(|_, _, budget| {
            budget.request_run();
            Progress::Drained
        })
        .on_run(move |_| {
            before_blocking();
            let _ = released.lock().unwrap().recv();
            Progress::Drained
        })
        .register(&poller, Interest::WRITE);
    until("the run", || slow.runs() == 1);
    // The only thread is taken: these are told, and their runs wait.
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let (ours, peer) = pair();
            let probe = probe(ours)
                .on_ready(|_, _, budget| {
                    budget.request_run();
                    Progress::Drained
                })
                .on_run(|probe| {
                    assert!(is_polling_thread());
                    assert_eq!(probe.detached(), 1, "the word comes first");
                    Progress::Yield
                })
                .register(&poller, Interest::WRITE);
            until("an event", || probe.calls() > 0);
            (probe, peer)
        })
        .collect();
    let closer = std::thread::spawn({
        let group = group.clone();
        move || group.close()
    });
    until("the close", || group.is_closed());
    assert!(waiting.iter().all(|(probe, _)| probe.runs() == 0));
    release.send(()).unwrap();
    closer.join().unwrap();
    for (probe, _) in &waiting {
        assert_eq!((probe.runs(), probe.detached()), (1, 1));
    }
    assert_eq!((slow.runs(), slow.detached()), (1, 1));
}

#[test]
fn a_group_dropped_is_closed() {
    let group = group(2);
    let (ours, _peer) = pair();
    let probe = probe(ours).register(&group.pick(), Interest::READ);
    let handle = group.pick();
    drop(group);
    until("the word", || probe.detached() == 1);
    let error = handle
        .register(probe_of_nothing(), Interest::READ)
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotConnected);
    // Nothing of this does anything any more, nor harm.
    probe.registration().wake();
    probe.registration().resume();
    probe.registration().set_timer(Some(Instant::now()));
    probe.registration().detach();
    let (tell, told) = mpsc::channel::<()>();
    let key = handle.schedule(Instant::now(), move || tell.send(()).unwrap());
    assert!(told.recv().is_err(), "the closure is dropped");
    assert!(!handle.cancel(key));
    assert_eq!(probe.detached(), 1);
}

fn probe_of_nothing() -> Arc<Probe> {
    probe(pair().0).build()
}

#[test]
fn scheduled_closures_are_dropped_at_close() {
    let group = group(1);
    let (tell, told) = mpsc::channel::<()>();
    group
        .pick()
        .schedule(Instant::now() + Duration::from_secs(3600), move || {
            tell.send(()).unwrap();
        });
    group.close();
    assert!(told.recv().is_err());
}

#[test]
fn closures_whose_drop_panics_end_no_poller() {
    quiet();
    let group = group(1);
    let handle = group.pick();
    let late = Instant::now() + Duration::from_secs(3600);
    let bomb = || {
        let bomb = Bomb;
        move || drop(bomb)
    };
    assert!(handle.cancel(handle.schedule(late, bomb())));
    for _ in 0..3 {
        handle.schedule(late, bomb());
    }
    group.close();
    // Dropped at once: there is no poller any more.
    handle.schedule(late, bomb());
    assert!(group.health().is_ok(), "an end in order");
    assert_eq!(group.stats().total().panics, 5);
}

/// An operator whose drop panics.
struct Spiteful {
    socket: UnixStream,
    _tell: mpsc::Sender<Bomb>,
}

impl Operator for Spiteful {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn on_ready(&self, _: Readiness, _: &mut Budget<'_>) -> Progress {
        Progress::Drained
    }
}

impl Drop for Spiteful {
    fn drop(&mut self) {
        drop(Bomb);
    }
}

#[test]
fn operators_whose_drop_panics_end_no_poller() {
    quiet();
    let group = group(1);
    let handle = group.pick();
    let (tell, told) = mpsc::channel();
    let register = || {
        let operator = Arc::new(Spiteful {
            socket: pair().0,
            _tell: tell.clone(),
        });
        handle.register(operator, Interest::READ).unwrap()
    };
    drop(register());
    until("the first is gone", || group.stats().total().panics == 1);
    let kept = register();
    drop(tell);
    group.close();
    assert!(told.recv().is_err(), "all of them are gone");
    assert!(group.health().is_ok(), "an end in order");
    assert_eq!(group.stats().total().panics, 2);
    drop(kept);
}

#[test]
fn a_panic_detaches_that_operator_only() {
    quiet();
    let group = group(1);
    let handle = group.pick();
    let ready = probe(pair().0)
        .on_ready(|_, _, _| panic!("on purpose"))
        .register(&handle, Interest::WRITE);
    let run = probe(pair().0)
        .on_ready(|_, _, budget| {
            budget.request_run();
            Progress::Drained
        })
        .on_run(|probe| {
            if probe.runs() == 1 {
                before_blocking();
            }
            panic::panic_any(Bomb)
        })
        .register(&handle, Interest::WRITE);
    let end = probe(pair().0)
        .on_ready(|_, _, _| Progress::Detach)
        .on_detached(|_| panic!("on purpose"))
        .register(&handle, Interest::WRITE);
    handle.schedule(Instant::now(), || panic!("on purpose"));
    for probe in [&ready, &run, &end] {
        until("detached", || probe.detached() == 1);
    }
    // Its peer's end may have made it run twice before it was detached.
    until("all counted", || {
        group.stats().total().panics == 3 + run.runs() as u64
    });
    let (ours, mut peer) = pair();
    let fine = probe(ours).register(&handle, Interest::READ);
    peer.write_all(b"x").unwrap();
    until("an event", || fine.saw(Readiness::READABLE));
    group.close();
    assert!(group.health().is_ok());
    for probe in [&ready, &run, &end, &fine] {
        assert_eq!(probe.detached(), 1);
    }
}

/// Panics of some operators in the middle of a batch, and what comes behind them in the same batch.
#[test]
fn a_panic_leaves_the_rest_of_the_batch_in_good_hands() {
    quiet();
    let group = group(1);
    let handle = group.pick();
    let operators: Vec<_> = (0..24)
        .map(|number| {
            let (ours, peer) = pair();
            let probe = probe(ours)
                .on_ready(move |_, _, budget| {
                    assert!(number % 4 != 0, "on purpose");
                    budget.request_run();
                    Progress::Drained
                })
                .on_run(move |_| {
                    if number % 8 == 1 {
                        before_blocking();
                    }
                    assert!(number % 4 != 1, "on purpose");
                    Progress::Drained
                })
                .register(&handle, Interest::READ);
            (probe, peer)
        })
        .collect();
    // The leader is held up until all of them have something to read.
    let (held, gate) = (mpsc::channel(), mpsc::channel::<()>());
    let (tell, hold) = (Mutex::new(held.0), Mutex::new(gate.1));
    let door = probe(pair().0)
        .on_ready(move |_, _, _| {
            tell.lock().unwrap().send(()).unwrap();
            let _ = hold.lock().unwrap().recv();
            Progress::Detach
        })
        .register(&handle, Interest::WRITE);
    held.1.recv().unwrap();
    for (_, peer) in &operators {
        (&*peer).write_all(b"x").unwrap();
    }
    drop(gate.0);
    for (number, (probe, _)) in operators.iter().enumerate() {
        match number % 4 {
            0 | 1 => until("detached", || probe.detached() == 1),
            _ => until("a run", || probe.runs() == 1),
        }
        assert_eq!((probe.calls(), probe.runs()), (1, (number % 4).min(1)));
    }
    until("the door's end", || door.detached() == 1);
    until("all counted", || group.stats().total().panics == 12);
    group.close();
    assert!(group.health().is_ok());
    assert!(operators.iter().all(|(probe, _)| probe.detached() == 1));
}

#[test]
fn a_name_with_a_zero_byte_starts_threads_too() {
    let group = PollerGroup::builder()
        .pollers(1)
        .name("a\0b")
        .build()
        .unwrap();
    group.close();
    let pool = WorkerPool::builder().name("a\0b").build();
    let (ran, runs) = mpsc::channel();
    let job = Name(ran);
    assert!(pool.submit(Arc::new(job)).is_ok());
    assert!(runs.recv().unwrap().starts_with("ab-"));
    pool.close();
}

/// Sends the name of the thread that it runs on.
struct Name(mpsc::Sender<String>);

impl Job for Name {
    fn run(self: Arc<Self>) {
        let name = std::thread::current().name().unwrap().to_owned();
        self.0.send(name).unwrap();
    }
}

#[test]
fn numbers_of_pollers_that_make_no_sense_are_refused() {
    for pollers in [0, 8193, 1 << 40, usize::MAX] {
        let error = PollerGroup::builder().pollers(pollers).build().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains(&pollers.to_string()));
    }
}

#[test]
fn the_largest_limits_are_none() {
    let group = PollerGroup::builder()
        .max_threads(usize::MAX)
        .keep_alive(Duration::MAX)
        .slow_after(Duration::MAX)
        .build()
        .unwrap();
    settle(&group.pick());
    group.close();
}

#[test]
fn the_global_group_is_one_and_stays() {
    let first = PollerGroup::global().unwrap();
    assert!(std::ptr::eq(first, PollerGroup::global().unwrap()));
    assert!(!first.is_closed());
    let (ours, mut peer) = pair();
    let probe = probe(ours).register(&first.pick(), Interest::READ);
    peer.write_all(b"x").unwrap();
    until("an event", || probe.calls() == 1);
}

#[test]
fn register_and_detach_from_many_threads() {
    let group = group(2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..300 {
                    let (ours, mut peer) = pair();
                    let probe = probe(ours).register(&group.pick(), Interest::READ);
                    peer.write_all(b"x").unwrap();
                    probe.registration().wake();
                    if round % 3 == 0 {
                        until("an event", || probe.calls() > 0);
                    }
                    probe.registration().detach();
                    until("detached", || probe.detached() == 1);
                }
            });
        }
    });
    assert_eq!(group.stats().total().registered, 0);
    group.close();
}

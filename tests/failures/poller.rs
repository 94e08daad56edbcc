//! Rows of docs/reliability.md about what pollers meet: sockets that cannot be watched, a selector
//! that breaks, a wake-up that is full. Descriptors are exchanged behind the library's back, so
//! every test has a process of its own.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Server, Transport, bounded, descriptors, echo,
    echo_frames, eventually, in_child, listener, settled_descriptors, settled_threads, threads,
};
use netpoll::{CloseReason, Connection, Dialer, Error, EventLoop, PollerGroup};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Instant,
};

const KINDS: [Kind; 5] = [
    Kind::Adaptive,
    Kind::Workers,
    Kind::OneWorker,
    Kind::Inline,
    Kind::Custom,
];

/// Runs `body` in a child process, where it may not hang.
#[track_caller]
fn alone(name: &str, body: impl FnOnce() + Send + 'static) {
    let what = name.to_owned();
    in_child(name, move || bounded(&what, body));
}

/// Makes the number `fd` stand for something that cannot be watched.
fn spoil(fd: RawFd) {
    let null = File::open("/dev/null").unwrap();
    // SAFETY: both are open, and the number stays its owner's.
    assert!(unsafe { libc::dup2(null.as_raw_fd(), fd) } >= 0);
}

/// Descriptors of this process that are an `anon_inode` of this kind, oldest first.
fn anonymous(kind: &str) -> Vec<RawFd> {
    let mut all: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let link = fs::read_link(entry.path()).ok()?;
            (link.to_str()? == format!("anon_inode:[{kind}]")).then_some(())?;
            entry.file_name().to_str()?.parse().ok()
        })
        .collect();
    all.sort_unstable();
    all
}

// ------------------------------------------------------------- 61: a socket cannot be watched

#[test]
fn row_061_a_socket_that_cannot_be_watched_ends_its_connection_only() {
    alone(
        "row_061_a_socket_that_cannot_be_watched_ends_its_connection_only",
        || {
            for kind in KINDS {
                for transport in [Transport::Tcp, Transport::Unix] {
                    unwatchable(Case::new(transport, kind));
                }
            }
        },
    );
}

fn unwatchable(case: Case) {
    let log = Log::new();
    let [l1, l2, l3, l4] = [(); 4].map(|()| log.clone());
    let count = AtomicUsize::new(0);
    let server = case.serve(
        Script::new()
            .prepare(move |conn| {
                if count.fetch_add(1, SeqCst) % 2 == 0 {
                    return Ok(());
                }
                let log = l4.clone();
                conn.on_close(move |_| log.push("close callback"));
                l1.push("prepare");
                spoil(conn.as_fd().as_raw_fd());
                Ok(())
            })
            .connect(move |_| {
                l2.push("connect");
                Ok(())
            })
            .request(echo_frames)
            .disconnect(move |_, _| l3.push("disconnect")),
    );
    let mut steady = server.connect();
    steady.ping(b"up");
    log.take();
    let before = descriptors();
    let event_loop = &server.event_loop;
    for round in 1..=5 {
        let victim = server.connect();
        eventually("its end", || event_loop.stats().closed == round * 2 - 1);
        // It was never open, so only its close callbacks are called.
        assert_eq!(log.take(), ["prepare", "close callback"]);
        drop(victim);
        let mut other = server.connect();
        other.ping(b"not me");
        drop(other);
        eventually("the other's end", || event_loop.stats().closed == round * 2);
        steady.ping(b"up");
        log.take();
    }
    settled_descriptors(before);
    assert_eq!(event_loop.stats().active, 1);
    drop(steady);
    server.stop();
}

#[test]
fn row_061_a_dialled_socket_that_cannot_be_watched_is_an_error() {
    alone(
        "row_061_a_dialled_socket_that_cannot_be_watched_is_an_error",
        || {
            let dialer = Dialer::new();
            // A file is no stream socket, which is found before anything is registered.
            let null = File::open("/dev/null").unwrap();
            assert!(dialer.adopt(null).is_err());
            let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
            server.connect().ping(b"x");
            let mut conn = server.dial();
            eventually("both", || server.event_loop.stats().connected == 2);
            let before = descriptors();
            // The registration is refused when the connection gets a handler.
            spoil(conn.as_fd().as_raw_fd());
            assert!(conn.try_fill(1).is_err());
            let handle = conn.handle();
            let attached = conn.attach(echo());
            if let Ok(handle) = attached {
                handle.close();
            }
            assert!(handle.done().wait_timeout(LIMIT).is_some(), "it never ends");
            settled_descriptors(before - 1);
            server.stop();
        },
    );
}

// ---------------------------------------------------------------- 63: a poller that cannot go on

/// Takes the selectors of the first poller away; it learns that when it is woken.
fn break_first_poller(before: &[RawFd]) {
    let own: Vec<RawFd> = anonymous("eventpoll")
        .into_iter()
        .filter(|fd| !before.contains(fd))
        .collect();
    for fd in own.iter().take(2) {
        spoil(*fd);
    }
}

#[test]
fn row_063_a_loop_whose_only_poller_dies_says_so() {
    alone("row_063_a_loop_whose_only_poller_dies_says_so", || {
        for kind in KINDS {
            let tasks = threads();
            let ends = Log::new();
            let log = ends.clone();
            let before = anonymous("eventpoll");
            let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
            let case = Case::new(Transport::Tcp, kind);
            let event_loop = case
                .builder()
                .pollers(group.clone())
                .build(
                    Script::new()
                        .request(echo_frames)
                        .disconnect(move |_, reason| log.push(reason)),
                )
                .unwrap();
            let listener = listener(case.transport);
            let address = listener.local_addr().unwrap();
            let serving = {
                let event_loop = event_loop.clone();
                let (sender, served) = mpsc::channel();
                thread::spawn(move || sender.send(event_loop.serve(listener)).unwrap());
                served
            };
            let mut peers: Vec<Peer> = (0..5).map(|_| Peer::connect(&address).unwrap()).collect();
            for peer in &mut peers {
                peer.ping(b"up");
            }
            assert!(group.health().is_ok());
            break_first_poller(&before);
            // Something that wakes it.
            group.pick().schedule(Instant::now(), || {});
            assert_eq!(ends.wait_len(5), [CloseReason::Poller; 5], "{kind:?}");
            for peer in &mut peers {
                peer.expect_gone();
            }
            let error = serving.recv_timeout(LIMIT).unwrap().unwrap_err();
            assert_eq!(
                Error::from_io(&error),
                Some(Error::Closed(CloseReason::Poller)),
                "{error}"
            );
            assert!(group.health().unwrap_err().to_string().contains("poller 0"));
            // What comes later fails and does not hang.
            assert!(
                Dialer::new()
                    .pollers(group.clone())
                    .dial_connection(address)
                    .is_err()
            );
            assert!(
                event_loop
                    .serve(crate::support::listener(case.transport))
                    .is_err()
            );
            assert_eq!(event_loop.shutdown_forced(LIMIT).unwrap(), 0);
            drop((event_loop, peers));
            group.close();
            settled_threads(tasks);
        }
    });
}

#[test]
fn row_063_the_other_pollers_of_a_loop_go_on() {
    alone("row_063_the_other_pollers_of_a_loop_go_on", || {
        for kind in KINDS {
            let ends = Log::new();
            let log = ends.clone();
            let before = anonymous("eventpoll");
            let group = PollerGroup::new(2, netpoll::Balance::RoundRobin).unwrap();
            let case = Case::new(Transport::Tcp, kind);
            // The first poller has the first listener, the second the second.
            let server = Server::start(
                case.transport,
                case.builder().pollers(group.clone()),
                Script::new()
                    .request(echo_frames)
                    .disconnect(move |_, reason| log.push(reason)),
            );
            let second = listener(case.transport);
            let address = second.local_addr().unwrap();
            server.event_loop.serve_in_background(second).unwrap();
            let mut peers: Vec<Peer> = (0..8).map(|_| Peer::connect(&address).unwrap()).collect();
            for peer in &mut peers {
                peer.ping(b"up");
            }
            break_first_poller(&before);
            group.handles()[0].schedule(Instant::now(), || {});
            assert_eq!(ends.wait_len(4), [CloseReason::Poller; 4], "{kind:?}");
            assert!(group.health().is_err());
            let mut alive = 0;
            for peer in &mut peers {
                match peer.call(b"who is left") {
                    Ok(reply) => {
                        assert_eq!(reply, b"who is left");
                        alive += 1;
                    }
                    Err(e) => assert_ne!(e.kind(), io::ErrorKind::WouldBlock, "it hangs"),
                }
            }
            assert_eq!(alive, 4);
            // New connections go to the poller that is left.
            for _ in 0..6 {
                Peer::connect(&address).unwrap().ping(b"new");
            }
            drop(peers);
            eventually("the ends", || server.event_loop.stats().active == 0);
            server.stop();
            group.close();
        }
    });
}

#[test]
fn row_063_callers_that_wait_hear_of_the_end_of_their_poller() {
    alone(
        "row_063_callers_that_wait_hear_of_the_end_of_their_poller",
        || {
            let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(Script::new());
            server.connect();
            let before = anonymous("eventpoll");
            let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
            let dialer = Dialer::new().pollers(group.clone());
            let mut conns: Vec<Connection> = (0..3)
                .map(|_| dialer.dial_connection(server.address.clone()).unwrap())
                .collect();
            let handles: Vec<_> = conns.iter().map(Connection::handle).collect();
            let waiting: Vec<_> = conns
                .drain(..)
                .map(|mut conn| thread::spawn(move || conn.fill(1).unwrap_err()))
                .collect();
            break_first_poller(&before);
            group.pick().schedule(Instant::now(), || {});
            for waiting in waiting {
                let error = waiting.join().unwrap();
                assert_eq!(
                    Error::from_io(&error),
                    Some(Error::Closed(CloseReason::Poller)),
                    "{error}"
                );
            }
            for handle in handles {
                assert!(handle.done().wait_timeout(LIMIT).unwrap().is_err());
            }
            group.close();
            server.stop();
        },
    );
}

#[test]
fn row_063_handlers_that_wait_hear_of_the_end_of_their_poller() {
    alone(
        "row_063_handlers_that_wait_hear_of_the_end_of_their_poller",
        || {
            for kind in [Kind::Adaptive, Kind::Workers, Kind::Custom] {
                for output in [false, true] {
                    let results = Log::new();
                    let begun = Log::new();
                    let (log, begin) = (results.clone(), begun.clone());
                    let before = anonymous("eventpoll");
                    let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
                    let case = Case::new(Transport::Tcp, kind);
                    let server = case.serve_with(
                        case.builder().pollers(group.clone()),
                        Script::new().request(move |conn| {
                            begin.push(());
                            let result = if output {
                                conn.write_bytes(vec![1; 24 << 20].into())
                                    .and_then(|()| conn.flush_and_wait())
                            } else {
                                conn.fill(1 << 20)
                            };
                            log.push(result.map_err(|e| Error::from_io(&e)));
                            Ok(())
                        }),
                    );
                    let mut peers: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
                    for peer in &mut peers {
                        peer.write_all(b"x").unwrap();
                    }
                    begun.wait_len(3);
                    break_first_poller(&before);
                    group.pick().schedule(Instant::now(), || {});
                    for result in results.wait_len(3) {
                        assert_eq!(
                            result,
                            Err(Some(Error::Closed(CloseReason::Poller))),
                            "{kind:?}, output: {output}"
                        );
                    }
                    assert_eq!(server.event_loop.shutdown_forced(LIMIT).unwrap(), 0);
                    group.close();
                }
            }
        },
    );
}

// ------------------------------------------------------------------------ 65: a full wake-up

#[test]
fn row_065_a_wake_up_whose_counter_is_full_still_wakes() {
    alone(
        "row_065_a_wake_up_whose_counter_is_full_still_wakes",
        || {
            let before = anonymous("eventfd");
            let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
            let wakers: Vec<RawFd> = anonymous("eventfd")
                .into_iter()
                .filter(|fd| !before.contains(fd))
                .collect();
            assert_eq!(wakers.len(), 1, "one for each poller");
            let event_loop = EventLoop::builder()
                .pollers(group.clone())
                .build(echo())
                .unwrap();
            let server = Server::serve(Transport::Tcp, event_loop);
            let mut peer = server.connect();
            let total = Arc::new(AtomicUsize::new(0));
            for round in 1..=200 {
                // As much as it holds: further writes of others would have to wait.
                let most = u64::MAX - 1;
                // SAFETY: the call reads eight bytes at the address, which is that of `most`.
                let written = unsafe { libc::write(wakers[0], (&raw const most).cast(), 8) };
                assert!(
                    written == 8 || io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
                );
                let sum = Arc::clone(&total);
                group.pick().schedule(Instant::now(), move || {
                    sum.fetch_add(1, SeqCst);
                });
                eventually("the closure", || total.load(SeqCst) == round);
            }
            peer.ping(b"fine");
            drop(peer);
            server.stop();
            group.close();
        },
    );
}

#[test]
fn row_064_whatever_is_asked_of_a_sleeping_poller_is_done() {
    bounded("posts", || {
        let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..4_u64)
            .map(|seed| {
                let (group, done) = (group.clone(), Arc::clone(&done));
                thread::spawn(move || {
                    let mut state = seed + 1;
                    for round in 1..=2000_usize {
                        let own = Arc::new(AtomicUsize::new(0));
                        let (told, sum) = (Arc::clone(&own), Arc::clone(&done));
                        group.pick().schedule(Instant::now(), move || {
                            told.store(1, SeqCst);
                            sum.fetch_add(1, SeqCst);
                        });
                        // Each waits for its own, so the poller falls asleep in between.
                        if round % 8 == 0 {
                            eventually("a closure", || own.load(SeqCst) == 1);
                        }
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        for _ in 0..state % 512 {
                            std::hint::spin_loop();
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        eventually("all", || done.load(SeqCst) == 8000);
        group.close();
        assert!(group.health().is_ok());
    });
}

//! Rows 1 to 14 of the fault matrix (`docs/reliability.md`): accepting.
//!
//! A plan of faults is for the whole process, so the tests take turns.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Transport, bounded, echo, echo_frames, eventually, every,
    frame, let_pass, listener, loopback, on_tcp, read_frame,
};
use netpoll::{
    Address, EventLoop, Listener, SocketOptions,
    fault::{Call, Fault, Plan},
    poller,
};
use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

const KINDS: [Kind; 3] = [Kind::Adaptive, Kind::Workers, Kind::Inline];

/// How often accepting failed with this number.
fn errors(events: &EventLoop, errno: i32) -> u64 {
    let stats = events.stats();
    let counts = stats.accept_errors.iter().filter(|e| e.0 == errno);
    counts.map(|e| e.1).sum()
}

#[test]
fn row_002_every_kind_of_shortage_is_paused_for_and_outlasted() {
    let _turn = crate::TURN.lock();
    let numbers = [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::ENOSR,
    ];
    on_tcp(&KINDS, move |case| {
        for errno in numbers {
            let server = case.serve(echo());
            let mut steady = server.connect();
            steady.ping(b"up");
            let begin = Instant::now();
            let plan = Plan::new(2).every(Call::Accept, 1, Fault::Errno(errno));
            let installed = plan.install();
            let mut outside = server.connect();
            outside.write_all(&frame(b"let me in")).unwrap();
            // It tries again by itself, and those inside notice nothing.
            eventually("a third try", || installed.calls(Call::Accept) >= 3);
            steady.ping(b"still up");
            let (tries, time) = (installed.calls(Call::Accept), begin.elapsed());
            let most = time.as_millis() / 100 + 2;
            assert!(u128::from(tries) <= most, "{tries} tries in {time:?}");
            assert!(errors(&server.event_loop, errno) >= 3);
            drop(installed);
            assert_eq!(read_frame(&mut outside).unwrap(), b"let me in");
            drop((steady, outside));
            server.stop();
        }
    });
}

#[test]
fn row_003_connections_lost_before_they_are_accepted_are_counted_and_passed_over() {
    let _turn = crate::TURN.lock();
    let numbers = [
        libc::ECONNABORTED,
        libc::ECONNRESET,
        libc::EPROTO,
        libc::ETIMEDOUT,
        libc::EPERM,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::ENOPROTOOPT,
        libc::ENONET,
    ];
    every(move |case| {
        let server = case.serve(echo());
        let mut steady = server.connect();
        steady.ping(b"up");
        let mut plan = Plan::new(3);
        for (number, errno) in (1..).zip(numbers) {
            plan = plan.from(Call::Accept, number, 1, Fault::Errno(errno));
        }
        let installed = plan.install();
        for _ in 0..3 {
            server.connect().ping(b"me too");
        }
        assert_eq!(installed.hits(Call::Accept), numbers.len() as u64);
        drop(installed);
        for errno in numbers {
            assert_eq!(errors(&server.event_loop, errno), 1, "{errno}, {case:?}");
        }
        steady.ping(b"still up");
        drop(steady);
        server.stop();
    });
}

#[test]
fn row_003_an_error_of_accept_that_stays_is_paused_for() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let server = case.serve(echo());
        server.connect().ping(b"up");
        let begin = Instant::now();
        let plan = Plan::new(3).every(Call::Accept, 1, Fault::Errno(libc::EPERM));
        let installed = plan.install();
        let mut outside = server.connect();
        outside.write_all(&frame(b"let me in")).unwrap();
        eventually("many tries", || installed.calls(Call::Accept) >= 200);
        let (tries, time) = (installed.calls(Call::Accept), begin.elapsed());
        // Batches of 64, with pauses of 100 ms in between.
        let most = (time.as_millis() / 100 + 2) * 65;
        assert!(u128::from(tries) <= most, "{tries} tries in {time:?}");
        drop(installed);
        assert_eq!(read_frame(&mut outside).unwrap(), b"let me in");
        drop(outside);
        server.stop();
    });
}

#[test]
fn row_005_a_listener_that_is_none_any_more_ends_alone() {
    let _turn = crate::TURN.lock();
    bounded("a listener ends alone", || {
        for errno in [libc::EINVAL, libc::EBADF, libc::ENOTSOCK] {
            let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
            server.connect().ping(b"up");
            let failing = Listener::bind((loopback(), 0)).unwrap();
            let address = failing.local_addr().unwrap();
            let plan = Plan::new(5).from(Call::Accept, 1, 1, Fault::Errno(errno));
            let installed = plan.install();
            // The registration itself makes it look, so the first call is its own.
            let error = server.event_loop.serve(failing).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno), "{error:?}");
            drop(installed);
            // Its descriptor is closed, not only forgotten.
            eventually("the port is free", || Peer::connect(&address).is_err());
            server.connect().ping(b"the other listener");
            server.stop();
        }
    });
}

#[test]
fn row_006_no_accept_is_tried_after_the_listener_was_closed_in_a_pause() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let plan = Plan::new(6).every(Call::Accept, 1, Fault::Errno(libc::EMFILE));
        let installed = plan.install();
        let server = case.serve(echo());
        let mut outside = server.connect();
        eventually("the pause", || installed.calls(Call::Accept) > 0);
        server.stop();
        let calls = installed.calls(Call::Accept);
        outside.expect_gone();
        // Longer than the pause.
        let_pass(Duration::from_millis(250));
        assert_eq!(installed.calls(Call::Accept), calls);
    });
}

#[test]
fn row_007_a_connection_whose_options_cannot_be_set_is_dropped_alone() {
    let _turn = crate::TURN.lock();
    bounded("options that cannot be set", || {
        for kind in KINDS {
            // Unix sockets do not inherit their listener's options: each needs calls of its own.
            let case = Case::new(Transport::Unix, kind);
            let told = Log::new();
            let log = told.clone();
            let server = case.serve_with(
                case.builder()
                    .socket(SocketOptions::new().recv_buffer(64 << 10)),
                Script::new().request(echo_frames).prepare(move |conn| {
                    log.push(conn.id());
                    Ok(())
                }),
            );
            let mut steady = server.connect();
            steady.ping(b"up");
            let plan = Plan::new(7).from(Call::SetOption, 1, 5, Fault::Errno(libc::EINVAL));
            let installed = plan.install();
            for _ in 0..5 {
                server.connect().expect_gone();
            }
            assert_eq!(installed.hits(Call::SetOption), 5);
            drop(installed);
            server.connect().ping(b"the next");
            steady.ping(b"still up");
            // No callback heard of the five.
            assert_eq!(told.len(), 2);
            drop(steady);
            server.stop();
        }
    });
}

#[test]
fn row_007_a_peer_that_is_gone_has_an_address_but_its_socket_may_have_none() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let asked = Log::new();
        let log = asked.clone();
        let server = case.serve(Script::new().request(echo_frames).prepare(move |conn| {
            let _ = conn.peer_addr().to_string();
            log.push(conn.local_addr().map_err(|error| error.kind()));
            Ok(())
        }));
        let plan = Plan::new(7).every(Call::Name, 1, Fault::Errno(libc::ENOTCONN));
        let installed = plan.install();
        server.connect().ping(b"fine");
        assert_eq!(asked.take(), [Err(io::ErrorKind::NotConnected)]);
        drop(installed);
        server.stop();
    });
}

#[test]
fn row_010_a_closed_listener_resets_its_own_queue_and_not_that_of_others_on_the_port() {
    let _turn = crate::TURN.lock();
    bounded("a shared port", || {
        let bind = |address: Address| {
            Listener::builder()
                .reuse_port(true)
                .bind(address)
                .expect("a shared port")
        };
        let staying = bind(([127, 0, 0, 1], 0).into());
        let address = staying.local_addr().unwrap();
        let leaving = bind(address.clone());
        // It takes one connection; all others that come to it wait in its queue.
        let stopped = EventLoop::builder()
            .pollers(1)
            .max_connections(1)
            .build(echo())
            .unwrap();
        stopped.serve_in_background(leaving).unwrap();
        let live = EventLoop::builder().pollers(1).build(echo()).unwrap();
        live.serve_in_background(staying).unwrap();

        let mut peers: Vec<Peer> = (0..64).map(|_| Peer::connect(&address).unwrap()).collect();
        eventually("one that is served", || stopped.stats().active == 1);
        stopped.stop_accepting();
        let answers: u64 = peers
            .iter_mut()
            .map(|peer| match peer.call(b"anybody?") {
                Ok(reply) => {
                    assert_eq!(reply, b"anybody?");
                    1
                }
                Err(error) => {
                    let gone = [
                        io::ErrorKind::ConnectionReset,
                        io::ErrorKind::BrokenPipe,
                        io::ErrorKind::UnexpectedEof,
                    ];
                    assert!(gone.contains(&error.kind()), "{error}");
                    0
                }
            })
            .sum();
        assert_eq!(stopped.stats().accepted, 1);
        assert_eq!(answers, live.stats().accepted + 1);
        assert!(answers < 64, "nobody waited in the queue that was closed");
        // All that come now get to the other.
        for _ in 0..8 {
            Peer::connect(&address).unwrap().ping(b"here");
        }
        drop(peers);
        stopped.shutdown(LIMIT).unwrap();
        live.shutdown(LIMIT).unwrap();
    });
}

#[test]
fn row_013_connections_that_fail_early_give_their_place_back() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let nth = Arc::new(AtomicUsize::new(0));
        let (prepare, connect, request) = (Arc::clone(&nth), Arc::clone(&nth), Arc::clone(&nth));
        let server = case.serve_with(
            case.builder().max_connections(1),
            Script::new()
                .prepare(move |_| match prepare.fetch_add(1, SeqCst) % 6 {
                    0 => Err(io::Error::other("refused")),
                    1 => panic!("a panic of on_prepare, as it should be"),
                    _ => Ok(()),
                })
                .connect(move |_| match connect.load(SeqCst) % 6 {
                    3 => Err(io::Error::other("no")),
                    4 => panic!("a panic of on_connect, as it should be"),
                    _ => Ok(()),
                })
                .request(move |conn| match request.load(SeqCst) % 6 {
                    5 => panic!("a panic of on_request, as it should be"),
                    _ => echo_frames(conn),
                }),
        );
        for _ in 0..5 {
            for _ in 0..5 {
                let mut peer = server.connect();
                // It may be gone before it is sent.
                let _ = peer.write_all(&frame(b"x"));
                peer.expect_gone();
            }
            server.connect().ping(b"the sixth");
        }
        let event_loop = server.event_loop.clone();
        server.stop();
        let stats = event_loop.stats();
        assert_eq!((stats.accepted, stats.active), (30, 0));
        assert_eq!(stats.closed, 30);
    });
}

#[test]
fn row_013_several_listeners_share_the_maximum() {
    let _turn = crate::TURN.lock();
    bounded("several listeners", || {
        let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (up, down, top) = (Arc::clone(&now), Arc::clone(&now), Arc::clone(&most));
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let server = case.serve_with(
            case.builder().pollers(4).max_connections(1),
            Script::new()
                .connect(move |_| {
                    top.fetch_max(up.fetch_add(1, SeqCst) + 1, SeqCst);
                    Ok(())
                })
                .request(echo_frames)
                .disconnect(move |_, _| {
                    down.fetch_sub(1, SeqCst);
                }),
        );
        let mut addresses = vec![server.address.clone()];
        for _ in 0..3 {
            let listener = listener(Transport::Tcp);
            addresses.push(listener.local_addr().unwrap());
            server.event_loop.serve_in_background(listener).unwrap();
        }
        let clients: Vec<_> = addresses
            .into_iter()
            .map(|address| {
                thread::spawn(move || {
                    for _ in 0..800 {
                        Peer::connect(&address).unwrap().ping(b"x");
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        assert_eq!(most.load(SeqCst), 1);
        server.stop();
    });
}

#[test]
fn row_013_accepting_runs_that_overlap_share_the_maximum() {
    let _turn = crate::TURN.lock();
    bounded("overlapping runs", || {
        let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (up, top) = (Arc::clone(&now), Arc::clone(&most));
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let server = case.serve_with(
            case.builder().pollers(1).max_connections(2),
            Script::new()
                .prepare(move |conn| {
                    top.fetch_max(up.fetch_add(1, SeqCst) + 1, SeqCst);
                    let down = Arc::clone(&up);
                    conn.on_close(move |_| {
                        down.fetch_sub(1, SeqCst);
                    });
                    // Whoever comes meanwhile is accepted by another run.
                    poller::before_blocking();
                    thread::sleep(Duration::from_micros(200));
                    Ok(())
                })
                .request(echo_frames),
        );
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let address = server.address.clone();
                thread::spawn(move || {
                    for _ in 0..300 {
                        Peer::connect(&address).unwrap().ping(b"x");
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        assert_eq!(most.load(SeqCst), 2);
        server.stop();
    });
}

#[test]
fn row_014_whoever_waits_in_the_queue_of_a_closing_listener_is_told() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let server = case.serve_with(case.builder().max_connections(1), echo());
        let mut first = server.connect();
        first.ping(b"accepted");
        let mut waiting: Vec<Peer> = (0..30).map(|_| server.connect()).collect();
        for peer in &mut waiting {
            peer.write_all(&frame(b"is anybody there?")).unwrap();
        }
        server.event_loop.stop_accepting();
        for mut peer in waiting {
            peer.expect_gone();
        }
        // It was accepted before, and is served on.
        first.ping(b"still");
        let event_loop = server.event_loop.clone();
        drop(first);
        server.stop();
        assert_eq!(event_loop.stats().accepted, 1);
    });
}

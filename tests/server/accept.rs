//! Accepting: shortages of descriptors, storms, refusals, listeners that fail.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Server, Transport, bounded, cpu_time, descriptors, echo,
    echo_frames, eventually, every, frame, in_child, let_pass, limit_descriptors, on_tcp,
    read_frame, settled_descriptors,
};
use netpoll::{Address, EventLoop, Listener};
use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// Takes every descriptor there is but `left`.
fn hoard(left: usize) -> Vec<File> {
    let mut hoarded = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        hoarded.push(file);
    }
    hoarded.truncate(hoarded.len() - left);
    hoarded
}

#[test]
fn a_shortage_of_descriptors_is_survived_again_and_again() {
    in_child(
        "a_shortage_of_descriptors_is_survived_again_and_again",
        || {
            for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
                for transport in [Transport::Tcp, Transport::Unix] {
                    shortages(Case::new(transport, kind));
                }
            }
        },
    );
}

fn unconnected(address: &Address) -> socket2::Socket {
    let domain = if address.is_unix() {
        socket2::Domain::UNIX
    } else {
        socket2::Domain::IPV4
    };
    socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap()
}

fn connect(socket: socket2::Socket, address: &Address) -> Peer {
    let peer = match (address.as_socket_addr(), address.as_path()) {
        (Some(ip), _) => {
            socket.connect(&ip.into()).unwrap();
            Peer::Tcp(socket.into())
        }
        (None, path) => {
            socket
                .connect(&socket2::SockAddr::unix(path.unwrap()).unwrap())
                .unwrap();
            Peer::Unix(socket.into())
        }
    };
    peer.set_limit(Some(LIMIT));
    peer
}

fn shortages(case: Case) {
    let server = case.serve(echo());
    let mut steady = server.connect();
    steady.ping(b"up");
    let before = limit_descriptors(descriptors() as u64 + 40);
    let errors = || -> u64 {
        let stats = server.event_loop.stats();
        stats
            .accept_errors
            .iter()
            .filter(|e| e.0 == libc::EMFILE)
            .map(|e| e.1)
            .sum()
    };
    for episode in 1..=3 {
        // Three clients have a descriptor, nobody on the server's side gets one.
        let seen = errors();
        let sockets: Vec<_> = (0..3).map(|_| unconnected(&server.address)).collect();
        let hoarded = hoard(0);
        let mut clients: Vec<Peer> = sockets
            .into_iter()
            .map(|socket| connect(socket, &server.address))
            .collect();
        for client in &mut clients {
            client.write_all(&frame(b"let me in")).unwrap();
        }
        eventually("the shortage is met", || errors() > seen);
        // It goes on for a while: others are served, it is tried again and no time is burnt.
        let (cpu, before, start) = (cpu_time(), errors(), Instant::now());
        while start.elapsed() < Duration::from_millis(500) || errors() == before {
            steady.ping(b"still up");
            // The shortage lasts.
            let_pass(Duration::from_millis(50));
            assert!(start.elapsed() < LIMIT, "it does not try any more");
        }
        let (used, tries) = (cpu_time() - cpu, errors() - before);
        let time = start.elapsed();
        assert!(
            used * 10 <= time,
            "{used:?} in {time:?} of shortage, {case:?}"
        );
        let most = time.as_millis() / 25;
        assert!(u128::from(tries) <= most, "{tries} accepts in {time:?}");
        drop(hoarded);
        for client in &mut clients {
            assert_eq!(
                read_frame(client).unwrap(),
                b"let me in",
                "episode {episode}"
            );
        }
        steady.ping(b"up");
        let event_loop = &server.event_loop;
        drop(clients);
        eventually("the ends", || event_loop.stats().active == 1);
    }
    limit_descriptors(before);
    drop(steady);
    server.stop();
}

#[test]
fn a_shutdown_in_a_shortage_ends() {
    in_child("a_shutdown_in_a_shortage_ends", || {
        for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
            let case = Case::new(Transport::Tcp, kind);
            let server = case.serve(echo());
            let mut steady = server.connect();
            steady.ping(b"up");
            let before = limit_descriptors(descriptors() as u64 + 20);
            let hoarded = hoard(1);
            let mut outside = server.connect();
            let event_loop = server.event_loop.clone();
            eventually("the shortage", || {
                !event_loop.stats().accept_errors.is_empty()
            });
            let address = server.address.clone();
            server.stop();
            // It waited in the backlog of a listener that is gone.
            outside.expect_gone();
            drop((outside, hoarded));
            limit_descriptors(before);
            // The retry does not come back on a number that somebody else has now.
            let other = std::net::TcpListener::bind(address.as_socket_addr().unwrap()).unwrap();
            let client = Peer::connect(&address).unwrap();
            let (accepted, _) = other.accept().unwrap();
            assert_eq!(
                accepted.peer_addr().unwrap(),
                match &client {
                    Peer::Tcp(stream) => stream.local_addr().unwrap(),
                    Peer::Unix(_) => unreachable!("a TCP case"),
                }
            );
            assert_eq!(event_loop.stats().active, 0);
        }
    });
}

#[test]
fn dials_in_a_shortage_fail_as_values_and_work_after_it() {
    in_child(
        "dials_in_a_shortage_fail_as_values_and_work_after_it",
        || {
            let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
            let pool = netpoll::Pool::builder(netpoll::Dialer::new().read_timeout(LIMIT))
                .max_total(1)
                .build()
                .unwrap();
            drop(pool.get(&server.address).unwrap().into_inner());
            let dialer = netpoll::Dialer::new();
            drop(dialer.dial_connection(server.address.clone()).unwrap());
            eventually("quiet", || server.event_loop.stats().active == 0);
            let before = limit_descriptors(descriptors() as u64 + 20);
            let hoarded = hoard(0);
            for _ in 0..3 {
                let error = dialer.dial_connection(server.address.clone()).unwrap_err();
                assert_eq!(raw_error(&error), Some(libc::EMFILE), "{error:?}");
                let error = pool.get(&server.address).unwrap_err();
                assert_eq!(raw_error(&error), Some(libc::EMFILE), "{error:?}");
            }
            assert!(EventLoop::builder().pollers(1).build(echo()).is_err());
            drop(hoarded);
            let event_loop = EventLoop::builder().pollers(1).build(echo()).unwrap();
            let mut conn = pool.get(&server.address).unwrap();
            conn.write_slice(&frame(b"x")).unwrap();
            conn.flush().unwrap();
            conn.skip(5).unwrap();
            drop(conn);
            event_loop.shutdown(LIMIT).unwrap();
            limit_descriptors(before);
        },
    );
}

/// The system's error number, also from inside an error with a context.
fn raw_error(error: &io::Error) -> Option<i32> {
    if let Some(raw) = error.raw_os_error() {
        return Some(raw);
    }
    let mut source = std::error::Error::source(error.get_ref()?);
    while let Some(inner) = source {
        if let Some(raw) = inner.downcast_ref::<io::Error>().and_then(raw_error) {
            return Some(raw);
        }
        source = inner.source();
    }
    None
}

#[test]
fn a_storm_of_connects_leaves_the_others_alone() {
    every(|case| {
        let server = case.serve(echo());
        let stop = Arc::new(AtomicBool::new(false));
        let storms: Vec<_> = (0..2)
            .map(|_| {
                let (address, stop) = (server.address.clone(), Arc::clone(&stop));
                thread::spawn(move || {
                    let mut count = 0;
                    while !stop.load(SeqCst) && count < 3000 {
                        drop(Peer::connect(&address).unwrap());
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let mut steady = server.connect();
        for _ in 0..100 {
            steady.ping(b"my turn");
        }
        stop.store(true, SeqCst);
        let count: u64 = storms.into_iter().map(|storm| storm.join().unwrap()).sum();
        let event_loop = &server.event_loop;
        eventually("all are seen", || event_loop.stats().closed == count);
        steady.ping(b"still");
        drop(steady);
        server.stop();
    });
}

#[test]
fn peers_that_are_gone_before_they_are_accepted_do_no_harm() {
    // The only poller is held while they come and go.
    on_tcp(&[Kind::Inline, Kind::Adaptive], |case| {
        let gate = crate::support::Gate::new();
        let _open = crate::support::OpenOnDrop(gate.clone());
        let held = gate.clone();
        let prepared = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&prepared);
        let server = case.serve(
            Script::new()
                .prepare(move |conn| {
                    if count.fetch_add(1, SeqCst) == 0 {
                        held.pass();
                    }
                    // All that one may ask of a connection whose peer is gone.
                    let _ = conn.local_addr();
                    let _ = conn.peer_addr();
                    Ok(())
                })
                .request(echo_frames),
        );
        let mut first = server.connect();
        gate.wait_arrived(1);
        for i in 0..60 {
            let peer = server.connect();
            if i % 2 == 0 {
                peer.reset();
            }
        }
        gate.open();
        first.ping(b"x");
        let mut last = server.connect();
        last.ping(b"y");
        let event_loop = &server.event_loop;
        eventually("the ends", || event_loop.stats().active == 2);
        drop((first, last));
        server.stop();
    });
}

#[test]
fn every_second_one_is_refused_and_nothing_is_left() {
    in_child("every_second_one_is_refused_and_nothing_is_left", || {
        for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
            let case = Case::new(Transport::Tcp, kind);
            let nth = AtomicUsize::new(0);
            let closes = Log::new();
            let log = closes.clone();
            let server = case.serve(Script::new().request(echo_frames).prepare(move |conn| {
                let log = log.clone();
                conn.on_close(move |_| log.push(()));
                if nth.fetch_add(1, SeqCst) % 2 == 0 {
                    return Err(io::Error::other("no"));
                }
                Ok(())
            }));
            server.connect().expect_gone();
            server.connect().ping(b"yes");
            eventually("quiet", || server.event_loop.stats().active == 0);
            let before = descriptors();
            for _ in 0..500 {
                server.connect().expect_gone();
                server.connect().ping(b"yes");
            }
            settled_descriptors(before);
            assert_eq!(closes.wait_len(1002).len(), 1002);
            server.stop();
        }
    });
}

#[test]
fn serve_tells_when_its_listener_fails() {
    bounded("listener fails", || {
        for kind in [Kind::Adaptive, Kind::Inline] {
            let event_loop = EventLoop::builder()
                .pollers(1)
                .dispatch(kind.dispatch())
                .build(echo())
                .unwrap();
            let listener = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
            let address = listener.local_addr().unwrap();
            // The same socket by another descriptor, to shut it behind the loop's back.
            let behind = listener.as_fd().try_clone_to_owned().unwrap();
            let server = event_loop.clone();
            let serving = thread::spawn(move || server.serve(listener));
            let mut peer = Peer::connect(&address).unwrap();
            peer.ping(b"up");
            // SAFETY: shutdown(2) touches no memory of ours.
            let result = unsafe { libc::shutdown(behind.as_raw_fd(), libc::SHUT_RDWR) };
            assert_eq!(result, 0);
            let error = serving.join().unwrap().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error:?}");
            // The loop and its connections live on, with another listener if one likes.
            peer.ping(b"still up");
            let other = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
            let address = other.local_addr().unwrap();
            event_loop.serve_in_background(other).unwrap();
            Peer::connect(&address).unwrap().ping(b"the other");
            drop(peer);
            event_loop.shutdown(LIMIT).unwrap();
        }
    });
}

#[test]
fn connections_are_spread_over_the_pollers() {
    bounded("spread", || {
        let names = Log::new();
        let log = names.clone();
        let event_loop = EventLoop::builder()
            .pollers(3)
            .dispatch(netpoll::Dispatch::Inline)
            .balance(netpoll::Balance::RoundRobin)
            .build(Script::new().request(echo_frames).connect(move |_| {
                log.push(thread::current().id());
                Ok(())
            }))
            .unwrap();
        let server = Server::serve(Transport::Tcp, event_loop);
        let mut peers: Vec<Peer> = (0..60).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.ping(b"x");
        }
        let mut counts = std::collections::HashMap::new();
        for id in names.wait_len(60) {
            *counts.entry(id).or_insert(0) += 1;
        }
        let mut counts: Vec<i32> = counts.into_values().collect();
        counts.sort_unstable();
        assert_eq!(counts.len(), 3, "{counts:?}");
        // The listener itself takes a turn in the round.
        assert!(counts[0] >= 18 && counts[2] <= 22, "{counts:?}");
        drop(peers);
        server.stop();
    });
}

#[test]
fn two_loops_may_share_a_port() {
    bounded("reuse_port", || {
        let first = Listener::builder()
            .reuse_port(true)
            .bind(([127, 0, 0, 1], 0))
            .unwrap();
        let address: Address = first.local_addr().unwrap();
        let second = Listener::builder()
            .reuse_port(true)
            .bind(address.clone())
            .unwrap();
        let loops: Vec<_> = [first, second]
            .into_iter()
            .map(|listener| {
                let event_loop = EventLoop::builder().pollers(1).build(echo()).unwrap();
                event_loop.serve_in_background(listener).unwrap();
                event_loop
            })
            .collect();
        let mut peers: Vec<Peer> = (0..64).map(|_| Peer::connect(&address).unwrap()).collect();
        for peer in &mut peers {
            peer.ping(b"x");
        }
        let counts: Vec<u64> = loops.iter().map(|l| l.stats().accepted).collect();
        assert_eq!(counts.iter().sum::<u64>(), 64);
        assert!(counts.iter().all(|n| *n > 0), "{counts:?}");
        drop(peers);
        for event_loop in loops {
            event_loop.shutdown(LIMIT).unwrap();
        }
    });
}

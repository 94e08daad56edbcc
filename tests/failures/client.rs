//! Rows of docs/reliability.md about dialling and pooled connections.

use crate::support::{
    Case, Gate, Kind, LIMIT, OpenOnDrop, Peer, Script, Transport, bounded, closed_port, decode,
    descriptors, echo, echo_frames, eventually, frame, in_child, limit_descriptors, only_test,
    read_frame, settled_descriptors,
};
use netpoll::{Address, Connection, Dialer, Error, EventLoop, Listener, Pool, handler_fn};
use socket2::SockRef;
use std::{
    fs::File,
    io::{self, Read, Write},
    mem::MaybeUninit,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    process::{Child, Stdio},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

const EACH: [Transport; 2] = [Transport::Tcp, Transport::Unix];

fn dialer() -> Dialer {
    Dialer::new()
        .connect_timeout(LIMIT)
        .read_timeout(LIMIT)
        .write_timeout(LIMIT)
}

fn call(conn: &mut Connection, body: &[u8]) -> io::Result<()> {
    let out = frame(body);
    conn.write_slice(&out)?;
    conn.flush()?;
    assert_eq!(conn.next(out.len())?, out, "somebody else's answer");
    Ok(())
}

// ------------------------------------------------------------------------------- 86-93: dialling

#[test]
fn row_086_dials_that_are_refused_leave_nothing() {
    in_child("row_086_dials_that_are_refused_leave_nothing", || {
        bounded("refused", || {
            let (_taken, closed) = closed_port();
            let dialer = dialer();
            assert!(dialer.dial_connection(closed).is_err());
            assert!(dialer.dial_with(closed, echo()).is_err());
            let before = descriptors();
            for round in 0..1000 {
                let error = if round % 2 == 0 {
                    dialer.dial_connection(closed).map(drop).unwrap_err()
                } else {
                    dialer.dial_with(closed, echo()).map(drop).unwrap_err()
                };
                assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
            }
            settled_descriptors(before);
            let stats = dialer.stats().unwrap();
            assert_eq!((stats.accepted, stats.active), (0, 0));
        });
    });
}

/// A listener whose queue is full: what dials it gets no answer.
fn mute() -> (TcpListener, Vec<Peer>, std::net::SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(0).unwrap();
    let listener: TcpListener = socket.into();
    let address = listener.local_addr().unwrap();
    let filler = Peer::connect(&address.into()).unwrap();
    (listener, vec![filler], address)
}

#[test]
fn row_088_an_answer_and_a_timeout_at_the_same_moment_are_one_outcome() {
    in_child(
        "row_088_an_answer_and_a_timeout_at_the_same_moment_are_one_outcome",
        || {
            bounded("race", || {
                // The queue is freed while dials wait for it: some connect, some give up.
                let (listener, filler, address) = mute();
                drop(filler);
                let stop = Arc::new(AtomicBool::new(false));
                let stopped = Arc::clone(&stop);
                let accepting = thread::spawn(move || {
                    let mut accepted = 0_usize;
                    listener.set_nonblocking(true).unwrap();
                    while !stopped.load(SeqCst) {
                        match listener.accept() {
                            Ok((mut socket, _)) => {
                                accepted += 1;
                                socket.set_nonblocking(false).unwrap();
                                // Whoever was told of a connection can use it.
                                let mut byte = [0];
                                while let Ok(1) = socket.read(&mut byte) {
                                    if socket.write_all(&byte).is_err() {
                                        break;
                                    }
                                }
                            }
                            Err(_) => thread::yield_now(),
                        }
                    }
                    accepted
                });
                let outcomes = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
                drop(dialer().dial_connection(address).unwrap());
                let before = descriptors();
                let dials: Vec<_> = (0..4_u64)
                    .map(|i| {
                        let outcomes = Arc::clone(&outcomes);
                        thread::spawn(move || {
                            for round in 0..25 {
                                let wait = Duration::from_micros(200 + 400 * ((i + round) % 5));
                                let dialer = Dialer::new().connect_timeout(wait);
                                match dialer.read_timeout(LIMIT).dial_connection(address) {
                                    Ok(mut conn) => {
                                        conn.write_u8(7).unwrap();
                                        conn.flush().unwrap();
                                        assert_eq!(conn.read_u8().unwrap(), 7);
                                        outcomes[0].fetch_add(1, SeqCst);
                                    }
                                    Err(e) => {
                                        assert_eq!(
                                            Error::from_io(&e),
                                            Some(Error::DialTimeout),
                                            "{e}"
                                        );
                                        outcomes[1].fetch_add(1, SeqCst);
                                    }
                                }
                            }
                        })
                    })
                    .collect();
                for dial in dials {
                    dial.join().unwrap();
                }
                stop.store(true, SeqCst);
                accepting.join().unwrap();
                let [connected, timed_out] = [&outcomes[0], &outcomes[1]].map(|n| n.load(SeqCst));
                println!("{connected} connected, {timed_out} timed out");
                assert_eq!(connected + timed_out, 100);
                // The listener is gone with its thread.
                settled_descriptors(before - 1);
            });
        },
    );
}

#[test]
fn row_087_dials_without_an_answer_leave_no_timer_and_no_descriptor() {
    in_child(
        "row_087_dials_without_an_answer_leave_no_timer_and_no_descriptor",
        || {
            bounded("black hole", || {
                let (_listener, _filler, address) = mute();
                let short = Dialer::new().connect_timeout(Duration::from_millis(2));
                // The first ones may still find room in the queue.
                while short.dial_connection(address).is_ok() {}
                // One that really waits: a thread keeps what it waits with.
                let long = short.clone().connect_timeout(Duration::from_millis(200));
                let _ = long.dial_connection(address);
                let before = descriptors();
                let mut timeouts = 0;
                for _ in 0..50 {
                    match short.dial_connection(address) {
                        Ok(conn) => drop(conn),
                        Err(e) => {
                            assert_eq!(Error::from_io(&e), Some(Error::DialTimeout), "{e}");
                            timeouts += 1;
                        }
                    }
                }
                assert!(timeouts > 0);
                settled_descriptors(before);
                assert_eq!(short.stats().unwrap().active, 0);
            });
        },
    );
}

// ------------------------------------------------------------------------------- 94-97: the pool

/// Whether the peer's end, or its reset, has come to this socket.
fn has_end(socket: &OwnedFd) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    match SockRef::from(socket).recv_with_flags(&mut byte, flags) {
        Ok(n) => n == 0,
        Err(e) => e.kind() != io::ErrorKind::WouldBlock,
    }
}

#[test]
fn row_094_fifty_connections_that_died_while_idle_are_no_error_to_anybody() {
    bounded("fifty", || {
        for transport in EACH {
            let case = Case::new(transport, Kind::Adaptive);
            let handles = crate::support::Log::new();
            let known = handles.clone();
            let server = case.serve(Script::new().request(echo_frames).connect(move |conn| {
                known.push(conn.handle());
                Ok(())
            }));
            let pool = Pool::builder(dialer()).max_idle(50).build().unwrap();
            let mut conns: Vec<_> = (0..50)
                .map(|_| pool.get(&server.address).unwrap())
                .collect();
            for conn in &mut conns {
                call(conn, b"up").unwrap();
            }
            let sockets: Vec<OwnedFd> = conns
                .iter()
                .map(|conn| conn.as_fd().try_clone_to_owned().unwrap())
                .collect();
            drop(conns);
            assert_eq!(pool.stats().idle, 50);
            // Half are closed, half reset; whoever has been told that it is over sees it.
            for (i, handle) in handles.wait_len(50).into_iter().enumerate() {
                if i % 2 == 0 {
                    handle.close();
                } else {
                    handle.abort();
                }
                assert!(handle.done().wait_timeout(LIMIT).is_some());
            }
            for socket in &sockets {
                eventually("the end has come", || has_end(socket));
            }
            let mut conns: Vec<_> = (0..50)
                .map(|_| pool.get(&server.address).unwrap())
                .collect();
            for conn in &mut conns {
                call(conn, b"again").unwrap();
            }
            drop(conns);
            // Some were closed by the pollers, which count them afterwards.
            eventually("all are counted", || pool.stats().discarded == 50);
            assert_eq!(pool.stats().dialled, 100);
            pool.close();
            server.stop();
        }
    });
}

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
fn row_096_a_pool_in_a_shortage_of_descriptors() {
    in_child("row_096_a_pool_in_a_shortage_of_descriptors", || {
        bounded("shortage", || {
            let case = Case::new(Transport::Tcp, Kind::Adaptive);
            let server = Arc::new(case.serve(echo()));
            let pool = Pool::builder(dialer())
                .max_total(8)
                .wait(LIMIT)
                .build()
                .unwrap();
            call(&mut pool.get(&server.address).unwrap(), b"up").unwrap();
            let before = descriptors();
            let limit = limit_descriptors(before as u64 + 60);
            let (ready, start) = (Arc::new(Barrier::new(17)), Arc::new(Barrier::new(17)));
            let done = Arc::new(AtomicUsize::new(0));
            let threads: Vec<_> = (0..16_u8)
                .map(|i| {
                    let (pool, server) = (pool.clone(), Arc::clone(&server));
                    let (ready, start) = (Arc::clone(&ready), Arc::clone(&start));
                    let done = Arc::clone(&done);
                    thread::spawn(move || {
                        // From here on the thread has the descriptors it waits with.
                        call(&mut pool.get(&server.address).unwrap(), &[i]).unwrap();
                        ready.wait();
                        start.wait();
                        let mut round = 0_u8;
                        // Answers may take longer than the time for them on a busy machine.
                        while round < 10 || done.load(SeqCst) == 0 {
                            match pool.get(&server.address) {
                                Ok(mut conn) => {
                                    // A connection that the server has no descriptor for stays in
                                    // its queue.
                                    conn.set_read_timeout(Some(Duration::from_millis(100)));
                                    // No answer of another thread's, whatever else happens.
                                    let answered = call(&mut conn, &[i, round]).is_ok();
                                    done.fetch_add(usize::from(answered), SeqCst);
                                    if !answered || round % 4 == 3 {
                                        conn.discard();
                                    }
                                }
                                // No descriptor for it, or none for the server.
                                Err(e) => assert!(!e.to_string().is_empty()),
                            }
                            if round % 5 == 4 {
                                pool.evict();
                            }
                            round = round.wrapping_add(1);
                        }
                    })
                })
                .collect();
            ready.wait();
            // Room for three pairs of sockets.
            let hoarded = hoard(6);
            start.wait();
            for thread in threads {
                thread.join().unwrap();
            }
            drop(hoarded);
            limit_descriptors(limit);
            let stats = pool.stats();
            assert_eq!(stats.in_use, 0);
            assert!(stats.peak <= 8, "peak {}", stats.peak);
            // And afterwards it works as before.
            let mut conn = pool.get(&server.address).unwrap();
            conn.set_read_timeout(Some(LIMIT));
            call(&mut conn, b"after").unwrap();
            drop(conn);
            pool.close();
            eventually("the ends", || server.event_loop.stats().active == 0);
            settled_descriptors(before);
        });
    });
}

const SERVED: &str = "NETPOLL_TEST_SERVED";

fn start_victim(name: &str, address: &str) -> (Child, Address) {
    let mut child = only_test(name)
        .env(SERVED, address)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = io::BufRead::lines(io::BufReader::new(child.stdout.take().unwrap()));
    let address = loop {
        let line = lines.next().expect("the child serves").unwrap();
        if let Some(address) = line.strip_prefix("serving ") {
            break address.parse().unwrap();
        }
    };
    (child, address)
}

#[test]
fn row_097_a_server_that_is_killed_and_started_again() {
    const NAME: &str = "row_097_a_server_that_is_killed_and_started_again";
    if let Ok(address) = std::env::var(SERVED) {
        let listener = Listener::bind(address.parse::<Address>().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let event_loop = EventLoop::new(echo()).unwrap();
        event_loop.serve_in_background(listener).unwrap();
        println!("\nserving {address}");
        // Until the parent kills it, or is gone.
        let _ = io::stdin().read(&mut [0]);
        return;
    }
    bounded("killed", || {
        let (mut child, address) = start_victim(NAME, "127.0.0.1:0");
        let pool = Pool::builder(dialer())
            .max_total(4)
            .max_idle(4)
            .wait(LIMIT)
            .build()
            .unwrap();
        for round in 0..5 {
            let mut conns: Vec<_> = (0..4).map(|_| pool.get(&address).unwrap()).collect();
            for conn in &mut conns {
                call(conn, b"up").unwrap();
            }
            let mut in_flight = conns.pop().unwrap();
            drop(conns);
            child.kill().unwrap();
            child.wait().unwrap();
            // Whoever is in the middle of a call hears of it.
            assert!(call(&mut in_flight, b"too late").is_err(), "round {round}");
            drop(in_flight);
            let error = pool.get(&address).map(drop).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
            let again;
            (child, again) = start_victim(NAME, &address.to_string());
            assert_eq!(again, address);
        }
        // The limits held all the time, and everybody is served again.
        let mut conns: Vec<_> = (0..4).map(|_| pool.get(&address).unwrap()).collect();
        for conn in &mut conns {
            call(conn, b"back").unwrap();
        }
        drop(conns);
        let stats = pool.stats();
        assert!(stats.peak <= 4);
        assert_eq!((stats.idle, stats.in_use), (4, 0));
        pool.close();
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn row_080_a_chain_of_calls_through_one_poller_and_one_loop() {
    // Each link of the chain is a handler of the same loop that waits for the next one.
    bounded("chain", || {
        for kind in [Kind::Adaptive, Kind::Workers, Kind::Custom] {
            let own: Arc<std::sync::OnceLock<Address>> = Arc::default();
            let address = Arc::clone(&own);
            let group = netpoll::PollerGroup::new(1, netpoll::Balance::default()).unwrap();
            let dialer = dialer().pollers(group.clone());
            let builder = EventLoop::builder()
                .pollers(group.clone())
                .dispatch(kind.dispatch());
            // Eight handlers wait at once; a fixed number of threads must be more than that.
            let depth = if kind == Kind::Custom { 6 } else { 8 };
            let server = crate::support::Server::start(
                Transport::Tcp,
                builder,
                handler_fn(move |conn| {
                    while let Some(mut request) = decode(conn)? {
                        let left = request.peek(5)?[4];
                        let mut trace = vec![left];
                        if left > 0 {
                            let mut next =
                                dialer.dial_connection(address.get().unwrap().clone())?;
                            next.write_slice(&frame(&[left - 1]))?;
                            next.flush()?;
                            let head = next.next(4)?;
                            let len = u32::from_be_bytes(head.try_into().unwrap()) as usize;
                            trace.extend_from_slice(next.next(len)?);
                        }
                        conn.write_slice(&frame(&trace))?;
                    }
                    conn.flush()
                }),
            );
            own.set(server.address.clone()).unwrap();
            let mut peer = server.connect();
            for _ in 0..5 {
                peer.write_all(&frame(&[depth])).unwrap();
                let expected: Vec<u8> = (0..=depth).rev().collect();
                assert_eq!(read_frame(&mut peer).unwrap(), expected, "{kind:?}");
            }
            drop(peer);
            server.stop();
            group.close();
        }
    });
}

#[test]
fn row_095_after_a_timeout_an_answer_is_nobody_elses() {
    bounded("late answer", || {
        for transport in EACH {
            let gate = Gate::new();
            let _open = OpenOnDrop(gate.clone());
            let held = gate.clone();
            let case = Case::new(transport, Kind::Adaptive);
            let server = case.serve(handler_fn(move |conn| {
                while let Some(frame) = decode(conn)? {
                    if frame.len() == 4 + 4 {
                        held.pass();
                    }
                    conn.append(frame)?;
                }
                conn.flush()
            }));
            let pool = Pool::new(dialer().read_timeout(Duration::from_millis(20)));
            let mut slow = pool.get(&server.address).unwrap();
            let error = call(&mut slow, b"slow").unwrap_err();
            assert_eq!(Error::from_io(&error), Some(Error::ReadTimeout));
            // Its answer is under way: the connection is of no use to others.
            drop(slow);
            let mut next = pool.get(&server.address).unwrap();
            gate.open();
            assert_eq!(pool.stats().rejected, 1, "{transport:?}");
            next.set_read_timeout(Some(LIMIT));
            call(&mut next, b"another").unwrap();
            drop(next);
            pool.close();
            server.stop();
        }
    });
}

//! Dialling: what is made, what fails how, and that nothing is left behind.

use crate::support::{
    Case, Gate, Kind, LIMIT, Log, Mute, OpenOnDrop, Peer, Script, Server, Transport, bounded,
    closed_port, descriptors, echo, echo_frames, eventually, every, frame, in_child, loopback,
    settled_descriptors, socket_pair,
};
use netpoll::{
    Address, CloseReason, Connection, ConnectionState, Dialer, Error, EventLoop, Listener,
    PollerGroup, SocketOptions, handler_fn,
};
use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpListener},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
    time::{Duration, Instant},
};

const SHORT: Duration = Duration::from_millis(60);

#[test]
fn a_dial_without_an_answer_times_out_and_not_early() {
    bounded("timeout", || {
        let mute = Mute::new();
        for _ in 0..3 {
            let before = Instant::now();
            let error = Dialer::new()
                .connect_timeout(SHORT)
                .dial_connection(mute.address)
                .expect_err("nobody answers");
            assert!(before.elapsed() >= SHORT, "after {:?}", before.elapsed());
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
            assert!(
                error.to_string().contains(&mute.address.to_string()),
                "{error}"
            );
        }
    });
}

#[test]
fn a_refused_dial_says_so_with_the_address() {
    bounded("refused", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = Dialer::new().dial_connection(address).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
        assert_eq!(Error::from_io(&error), None);
        let error = Dialer::new().dial_with(address, echo()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn parallel_dials_with_a_tiny_timeout_end_one_way_or_the_other() {
    every(|case| {
        let server = std::sync::Arc::new(case.serve(Script::new().connect(|conn| {
            conn.handle().close();
            Ok(())
        })));
        let dials: Vec<_> = (0..100)
            .map(|_| {
                let server = std::sync::Arc::clone(&server);
                thread::spawn(move || {
                    let dialer = Dialer::new().connect_timeout(Duration::from_millis(1));
                    match dialer.dial_connection(server.address.clone()) {
                        Ok(conn) => drop(conn),
                        Err(e) => assert_eq!(Error::from_io(&e), Some(Error::DialTimeout), "{e}"),
                    }
                })
            })
            .collect();
        for dial in dials {
            dial.join().unwrap();
        }
    });
}

#[test]
fn failed_dials_leave_no_descriptor_behind() {
    in_child("failed_dials_leave_no_descriptor_behind", || {
        let mute = Mute::new();
        let dialer = Dialer::new().connect_timeout(Duration::from_millis(5));
        assert!(dialer.dial_connection(mute.address).is_err());
        let (_taken, closed) = closed_port();
        let before = descriptors();
        for _ in 0..50 {
            assert!(dialer.dial_connection(mute.address).is_err());
            assert!(dialer.dial_connection(closed).is_err());
            assert!(dialer.dial_with(closed, echo()).is_err());
            assert!(
                dialer
                    .dial_connection("unix:/no/such/path".parse::<Address>().unwrap())
                    .is_err()
            );
        }
        settled_descriptors(before);
        assert_eq!(dialer.stats().unwrap().active, 0);
    });
}

#[test]
fn a_dial_that_ends_at_itself_is_an_error() {
    bounded("self-connect", || {
        // From a port to the same port, where nobody listens.
        let port = TcpListener::bind((loopback(), 0))
            .unwrap()
            .local_addr()
            .unwrap();
        let error = Dialer::new()
            .local_addr(port)
            .socket(SocketOptions::new().reuse_address(true))
            .connect_timeout(LIMIT)
            .dial_connection(port)
            .expect_err("it would talk to itself");
        assert_eq!(
            Error::from_io(&error),
            Some(Error::SelfConnect),
            "{error:?}"
        );
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_dial_comes_from_the_address_that_was_asked_for() {
    bounded("local", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let dialer = Dialer::new()
            .local_addr(([127, 0, 0, 1], 0))
            .read_timeout(LIMIT);
        let conn = dialer.dial_connection(server.address.clone()).unwrap();
        let local = conn.local_addr().unwrap().as_socket_addr().unwrap();
        assert!(local.ip().is_loopback() && local.port() != 0);
        let other = "[::1]:0".parse::<Address>().unwrap();
        let error = Dialer::new()
            .local_addr(other)
            .dial_connection(server.address.clone());
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    });
}

#[test]
fn a_host_name_is_resolved() {
    bounded("localhost", || {
        // Bound to the first address of the name, which is tried first as well.
        let listener = Listener::bind("localhost:0".parse::<Address>().unwrap()).unwrap();
        let bound = listener.local_addr().unwrap();
        let event_loop = EventLoop::new(echo()).unwrap();
        event_loop.serve_in_background(listener).unwrap();
        let address: Address = format!("localhost:{}", bound.port().unwrap())
            .parse()
            .unwrap();
        let mut conn = Dialer::new()
            .read_timeout(LIMIT)
            .dial_connection(address)
            .unwrap();
        assert_eq!(conn.peer_addr(), &bound, "the address that answered");
        conn.write_slice(&frame(b"x")).unwrap();
        conn.flush().unwrap();
        conn.skip(5).unwrap();
        drop(conn);
        event_loop.shutdown(LIMIT).unwrap();
    });
}

#[test]
fn a_dial_is_repeated_while_a_server_starts() {
    bounded("retries", || {
        let path = crate::support::fresh_path();
        let address = Address::from(path.as_path());
        let error = Dialer::new()
            .retries(3)
            .dial_connection(address.clone())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let to = address.clone();
        let dialling = thread::spawn(move || {
            Dialer::new()
                .retries(u32::MAX)
                .connect_timeout(LIMIT)
                .read_timeout(LIMIT)
                .dial_connection(to)
        });
        let event_loop = EventLoop::builder().pollers(1).build(echo()).unwrap();
        event_loop
            .serve_in_background(Listener::bind(address).unwrap())
            .unwrap();
        let mut conn = dialling.join().unwrap().unwrap();
        conn.write_slice(&frame(b"x")).unwrap();
        conn.flush().unwrap();
        conn.skip(5).unwrap();
        drop(conn);
        event_loop.shutdown(LIMIT).unwrap();
    });
}

#[test]
fn retries_end_with_the_timeout() {
    bounded("retries", || {
        let (_taken, closed) = closed_port();
        let dialer = Dialer::new().retries(u32::MAX).connect_timeout(SHORT);
        let error = dialer.dial_connection(closed).unwrap_err();
        assert!(
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::TimedOut
            ),
            "{error}"
        );
    });
}

#[test]
fn options_are_set_on_dialled_sockets() {
    bounded("options", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let options = SocketOptions::new()
            .keepalive(Duration::from_secs(61), Duration::from_secs(7), 4)
            .user_timeout(Duration::from_secs(33))
            .send_buffer(20_000);
        let conn = Dialer::new()
            .socket(options)
            .dial_connection(server.address.clone())
            .unwrap();
        let fd = conn.as_fd();
        let socket = socket2::SockRef::from(&fd);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(61)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(7)
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(33))
        );
        assert_eq!(socket.send_buffer_size().unwrap(), 40_000);
    });
}

#[test]
fn options_are_set_on_accepted_sockets() {
    bounded("options", || {
        let log = Log::new();
        let seen = log.clone();
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let options = SocketOptions::new()
            .keepalive(Duration::from_secs(61), Duration::from_secs(7), 4)
            .recv_buffer(20_000);
        let server = case.serve_with(
            case.builder().socket(options),
            Script::new().prepare(move |conn| {
                let fd = conn.as_fd();
                let socket = socket2::SockRef::from(&fd);
                seen.push((
                    socket.tcp_nodelay()?,
                    socket.tcp_keepalive_time()?,
                    socket.tcp_keepalive_retries()?,
                    socket.recv_buffer_size()?,
                ));
                Ok(())
            }),
        );
        let _peer = server.connect();
        assert_eq!(
            log.wait_len(1),
            [(true, Duration::from_secs(61), 4, 40_000)]
        );
    });
}

#[test]
fn a_handler_of_a_client_gets_the_whole_life_of_its_connection() {
    every(|case| {
        let server = case.serve(echo());
        let log = Log::new();
        let [l1, l2, l3, l4, l5] = [(); 5].map(|()| log.clone());
        let dialer = Dialer::new().dispatch(case.kind.dispatch());
        let handle = dialer
            .dial_with(
                server.address.clone(),
                Script::new()
                    .prepare(move |conn| {
                        let log = l5.clone();
                        conn.on_close(move |_| log.push("close callback"));
                        l1.push("prepare");
                        Ok(())
                    })
                    .connect(move |conn| {
                        l2.push("connect");
                        conn.write_slice(&frame(b"question"))?;
                        conn.flush()
                    })
                    .request(move |conn| {
                        if conn.try_next(12)?.is_none() {
                            return Ok(());
                        }
                        l3.push("answer");
                        conn.handle().close();
                        Ok(())
                    })
                    .disconnect(move |_, _| l4.push("disconnect")),
            )
            .unwrap();
        handle.done().wait().unwrap();
        // Close callbacks may come a moment later.
        assert_eq!(
            log.wait_len(5),
            [
                "prepare",
                "connect",
                "answer",
                "disconnect",
                "close callback"
            ]
        );
        eventually("the count", || dialer.stats().unwrap().closed == 1);
        let stats = dialer.stats().unwrap();
        assert_eq!((stats.accepted, stats.connected), (1, 1));
        server.stop();
    });
}

#[test]
fn a_client_handler_that_refuses_fails_the_dial() {
    every(|case| {
        let server = case.serve(Script::new());
        let error = Dialer::new()
            .dispatch(case.kind.dispatch())
            .dial_with(
                server.address.clone(),
                Script::new().prepare(|_| Err(io::Error::other("changed my mind"))),
            )
            .unwrap_err();
        assert_eq!(error.to_string(), "changed my mind");
        server.stop();
    });
}

#[test]
fn one_caller_waits_while_others_dial() {
    bounded("others", || {
        let mute = Mute::new();
        let to = mute.address;
        let stuck = thread::spawn(move || {
            Dialer::new()
                .connect_timeout(Duration::from_millis(400))
                .dial_connection(to)
                .is_err()
        });
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        for _ in 0..20 {
            let mut conn = server.dial();
            conn.write_slice(&frame(b"x")).unwrap();
            conn.flush().unwrap();
            conn.skip(5).unwrap();
        }
        assert!(stuck.join().unwrap());
    });
}

#[test]
fn a_dial_inside_a_handler_that_gets_no_answer_holds_nobody_up() {
    bounded("handler", || {
        let mute = Mute::new();
        let to = mute.address;
        let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let dialer = Dialer::new()
            .pollers(group.clone())
            .connect_timeout(Duration::from_millis(400));
        let server = Server::start(
            Transport::Tcp,
            EventLoop::builder().pollers(group.clone()),
            handler_fn(move |conn| {
                if conn.try_peek(5)?.is_some_and(|head| head[4] == b'd') {
                    assert!(dialer.dial_connection(to).is_err());
                }
                echo_frames(conn)
            }),
        );
        let mut stuck = server.connect();
        stuck.write_all(&frame(b"dial")).unwrap();
        let mut other = server.connect();
        for _ in 0..30 {
            other.ping(b"fine");
        }
        assert_eq!(crate::support::read_frame(&mut stuck).unwrap(), b"dial");
        drop((stuck, other));
        server.stop();
        group.close();
    });
}

#[test]
fn a_connection_outlives_its_dialer() {
    bounded("dialer", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let dialer = Dialer::new().read_timeout(LIMIT);
        let mut conn = dialer.dial_connection(server.address.clone()).unwrap();
        drop(dialer);
        conn.write_slice(&frame(b"x")).unwrap();
        conn.flush().unwrap();
        conn.skip(5).unwrap();
        drop(conn);
        server.stop();
    });
}

#[test]
fn connections_end_when_their_pollers_do() {
    bounded("pollers", || {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate);
        let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let dialer = Dialer::new().pollers(group.clone()).read_timeout(LIMIT);
        let handle = dialer.dial_with(server.address.clone(), echo()).unwrap();
        let mut own = dialer.dial_connection(server.address.clone()).unwrap();
        own.write_slice(&frame(b"x")).unwrap();
        own.flush().unwrap();
        own.skip(5).unwrap();
        eventually("both", || server.event_loop.stats().connected == 2);
        group.close();
        // Nobody would tell it anything any more: it is ended, with a reason.
        let error = handle.done().wait().unwrap_err();
        assert_eq!(
            Error::from_io(&error),
            Some(Error::Closed(CloseReason::Poller)),
            "{error:?}"
        );
        drop(own);
        eventually("both ends", || server.event_loop.stats().active == 0);
        assert!(dialer.dial_connection(server.address.clone()).is_err());
        server.stop();
    });
}

#[test]
fn a_peer_that_answers_byte_by_byte_is_a_peer() {
    bounded("slow", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut got = [0; 104];
            stream.read_exact(&mut got).unwrap();
            for byte in got {
                stream.write_all(&[byte]).unwrap();
            }
        });
        let mut conn = Dialer::new()
            .read_timeout(LIMIT)
            .dial_connection(address)
            .unwrap();
        let out = frame(&[3; 100]);
        conn.write_slice(&out).unwrap();
        conn.flush().unwrap();
        assert_eq!(conn.next(104).unwrap(), out);
        serving.join().unwrap();
    });
}

/// Where a connection of one's own comes from.
#[derive(Clone, Copy, Debug)]
enum Origin {
    Dialled,
    Adopted,
    /// Taken from the handler of a server.
    Taken,
}

/// A connection in its owner's hands, its peer, and the server that it was taken from.
fn owned(origin: Origin, idle_timeout: Option<Duration>) -> (Connection, Peer, Option<Server>) {
    let dialer = Dialer::new().read_timeout(LIMIT).write_timeout(LIMIT);
    let (mut conn, peer, server) = match origin {
        Origin::Dialled => {
            let (conn, peer) = socket_pair(|to| dialer.dial_connection(to));
            (conn, peer, None)
        }
        Origin::Adopted => {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let peer = Peer::Unix(theirs);
            peer.set_limit(Some(LIMIT));
            (dialer.adopt(ours).unwrap(), peer, None)
        }
        Origin::Taken => {
            let taken = Log::new();
            let given = taken.clone();
            let script = Script::new().connect(move |conn| {
                given.push(conn.hijack()?);
                Ok(())
            });
            let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(script);
            let peer = server.connect();
            eventually("it is taken", || taken.len() == 1);
            (taken.take().remove(0), peer, Some(server))
        }
    };
    conn.set_idle_timeout(idle_timeout);
    (conn, peer, server)
}

/// What the peer of `conn` sees, and its owner's handle and callbacks tell, while the owner does
/// nothing with it.
fn ends_while_idle(origin: Origin, how: &'static str) {
    let idle_timeout = (how == "idle").then(|| Duration::from_millis(50));
    let (mut conn, mut peer, server) = owned(origin, idle_timeout);
    let handle = conn.handle();
    let ends = Log::new();
    let log = ends.clone();
    conn.on_close(move |reason| log.push(reason));
    // What the owner has received stays its own.
    peer.write_all(b"before").unwrap();
    conn.fill(3).unwrap();
    let here = conn.available();
    conn.write_str("last words").unwrap();
    conn.flush().unwrap();
    let mut words = [0; 10];
    peer.read_exact(&mut words).unwrap();
    let tcp = !matches!(origin, Origin::Adopted);
    let mut forced = Ok(0);
    match how {
        "close" => handle.close(),
        "abort" => handle.abort(),
        "forced" => {
            forced = server
                .as_ref()
                .unwrap()
                .event_loop
                .shutdown_forced(Duration::ZERO)
        }
        "reset" => peer.try_clone().reset(),
        "fin" => peer.shutdown_write(),
        _ => {}
    }
    if how == "reset" {
        drop(peer);
    } else if how == "fin" {
        // Only the input has ended before; now everything.
        peer.expect_end();
    } else {
        match (how, tcp) {
            ("abort" | "forced", true) => {
                let end = peer.read(&mut [0]).expect_err("a reset");
                assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
            }
            _ => peer.expect_gone(),
        }
    }
    let done = handle.done().wait_timeout(LIMIT).expect("an end");
    let reason = ends.wait_len(1)[0];
    match how {
        "close" => assert_eq!(reason, CloseReason::Local),
        "abort" => assert_eq!(reason, CloseReason::Abort),
        "forced" => assert_eq!(reason, CloseReason::Shutdown),
        "idle" => assert_eq!(reason, CloseReason::IdleTimeout),
        "fin" => assert_eq!(reason, CloseReason::Peer),
        _ => assert!(
            matches!(reason, CloseReason::Error(_) | CloseReason::Peer),
            "{reason:?}"
        ),
    }
    assert_eq!(done.is_ok(), matches!(how, "close" | "abort"), "{done:?}");
    assert_eq!(forced.unwrap(), usize::from(how == "forced"));
    assert_eq!(handle.state(), ConnectionState::Disconnected);
    // The owner's value is of no use but for what it has.
    assert_eq!(conn.next(here).unwrap(), &b"before"[..here]);
    assert!(conn.fill(7).is_err());
    assert!(conn.write_str("x").and_then(|()| conn.flush()).is_err());
    assert!(conn.attach(echo()).is_err());
    assert_eq!(ends.len(), 1);
    if let Some(server) = server {
        server.stop();
    }
}

#[test]
fn a_connection_of_ones_own_ends_while_its_owner_is_idle() {
    for origin in [Origin::Dialled, Origin::Adopted, Origin::Taken] {
        for how in ["close", "abort", "idle", "reset"] {
            if how == "reset" && matches!(origin, Origin::Adopted) {
                continue;
            }
            bounded(&format!("{origin:?}, {how}"), move || {
                ends_while_idle(origin, how);
            });
        }
    }
    bounded("forced", || ends_while_idle(Origin::Taken, "forced"));
    for origin in [Origin::Dialled, Origin::Adopted] {
        bounded("fin", move || ends_while_idle(origin, "fin"));
    }
}

#[test]
fn an_owner_may_send_after_its_peer_has_ended() {
    bounded("half-close", || {
        let (mut conn, mut peer, _) = owned(Origin::Dialled, None);
        let handle = conn.handle();
        peer.write_all(b"all").unwrap();
        peer.shutdown_write();
        assert_eq!(conn.next(3).unwrap(), b"all");
        assert_eq!(conn.read(&mut [0; 1]).unwrap(), 0);
        conn.write_str("answer").unwrap();
        conn.flush().unwrap();
        // A promise, or the two halves, keep it open for as long as they live.
        let hold = handle.hold();
        assert!(
            handle
                .done()
                .wait_timeout(Duration::from_millis(1500))
                .is_none()
        );
        conn.write_str(" and more").unwrap();
        conn.flush().unwrap();
        let (reading, mut writing) = conn.into_split();
        drop(hold);
        assert!(
            handle
                .done()
                .wait_timeout(Duration::from_millis(1500))
                .is_none()
        );
        writing.write_str(" to the end").unwrap();
        writing.flush().unwrap();
        drop((reading, writing));
        assert_eq!(peer.rest().unwrap(), b"answer and more to the end");
    });
}

#[test]
fn an_owner_that_reads_no_more_goes_on_sending() {
    for origin in [Origin::Dialled, Origin::Adopted, Origin::Taken] {
        bounded(&format!("{origin:?}"), move || {
            let (mut conn, mut peer, _server) = owned(origin, None);
            conn.shutdown(Shutdown::Read).unwrap();
            assert_eq!(conn.read(&mut [0; 1]).unwrap(), 0);
            let done = conn.handle().done();
            assert!(done.wait_timeout(Duration::from_millis(1500)).is_none());
            conn.write_str("and more").unwrap();
            conn.flush().unwrap();
            drop(conn);
            assert_eq!(peer.rest().unwrap(), b"and more");
        });
    }
}

#[test]
fn a_write_that_is_given_up_is_the_end_of_an_own_connection() {
    bounded("write timeout", || {
        let dialer = Dialer::new().write_timeout(Duration::from_millis(30));
        let (mut conn, mut peer) = socket_pair(|to| dialer.dial_connection(to));
        let handle = conn.handle();
        conn.write_bytes(vec![0; 24 << 20].into()).unwrap();
        let error = conn.flush().unwrap_err();
        assert!(matches!(
            Error::from_io(&error),
            Some(Error::WriteTimeout { .. })
        ));
        let done = handle.done().wait_timeout(LIMIT).expect("an end");
        let reason = Some(Error::Closed(CloseReason::WriteTimeout));
        assert_eq!(Error::from_io(&done.unwrap_err()), reason);
        // What was cut does not look complete.
        assert!(peer.rest().is_err());
        let error = conn.write_str("x").unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::Poisoned));
    });
}

//! Dialling: what is made, what fails how, and that nothing is left behind.

mod support;

use netpoll::{
    Address, Dialer, Error, EventLoop, Listener, PollerGroup, SocketOptions, handler_fn,
};
use std::{
    io::{self, Read, Write},
    net::TcpListener,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};
use support::{
    Case, Gate, Kind, LIMIT, Log, Mute, OpenOnDrop, Script, Transport, bounded, closed_port,
    descriptors, echo, echo_frames, eventually, every, frame, in_child, loopback,
    settled_descriptors,
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
        let path = support::fresh_path();
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
        let event_loop = netpoll::EventLoop::builder()
            .pollers(1)
            .build(echo())
            .unwrap();
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
        let server = support::Server::start(
            Transport::Tcp,
            netpoll::EventLoop::builder().pollers(group.clone()),
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
        assert_eq!(support::read_frame(&mut stuck).unwrap(), b"dial");
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
            Some(Error::Closed(netpoll::CloseReason::Poller)),
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

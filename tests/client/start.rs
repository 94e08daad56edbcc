//! Dials that nothing waits for: started, completed by a poller, cancelled.

use crate::support::{
    Case, Gate, LIMIT, Log, OpenOnDrop, Peer, Script, Transport, bounded, closed_port, descriptors,
    eventually, every, fresh_path, in_child, one_thread, settled_descriptors, threads,
};
use netpoll::{
    Address, Bytes, CloseReason, Connection, ConnectionEvent, ConnectionHandle, ConnectionState,
    Dialer, Error, EventLoop, PollerGroup, event_fn, handler_fn,
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    fs,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

type Told = mpsc::Receiver<io::Result<Connection>>;

/// Starts a dial; what its callback gets.
#[track_caller]
fn started(dialer: &Dialer, address: &Address) -> (ConnectionHandle, Told) {
    let (tell, told) = mpsc::channel();
    let handle = dialer
        .start_connection(address.clone(), move |done| tell.send(done).unwrap())
        .unwrap();
    (handle, told)
}

#[track_caller]
fn result(told: &Told) -> io::Result<Connection> {
    told.recv_timeout(LIMIT).expect("the callback is called")
}

/// A listener whose backlog is full: a dial gets no answer until it accepts.
struct Hole {
    address: Address,
    listener: Socket,
    waiting: Vec<Socket>,
    path: Option<PathBuf>,
}

impl Hole {
    fn new(transport: Transport) -> Self {
        let (domain, at, path) = match transport {
            Transport::Tcp => {
                let any = std::net::SocketAddr::from((crate::support::loopback(), 0));
                (Domain::IPV4, SockAddr::from(any), None)
            }
            Transport::Unix => {
                let path = fresh_path();
                (Domain::UNIX, SockAddr::unix(&path).unwrap(), Some(path))
            }
        };
        let listener = Socket::new(domain, Type::STREAM, None).unwrap();
        listener.bind(&at).unwrap();
        listener.listen(0).unwrap();
        let at = listener.local_addr().unwrap();
        let waiting = (0..4)
            .map(|_| {
                let socket = Socket::new(domain, Type::STREAM.nonblocking(), None).unwrap();
                let _ = socket.connect(&at);
                socket
            })
            .collect();
        let address = match &path {
            None => Address::from(at.as_socket().unwrap()),
            Some(path) => Address::Unix(path.clone()),
        };
        Self {
            address,
            listener,
            waiting,
            path,
        }
    }

    /// Accepts until a peer has sent those bytes, and returns that one.
    fn accept(&mut self, expected: &[u8]) -> Peer {
        self.waiting.clear();
        let is_tcp = self.path.is_none();
        loop {
            let fd = OwnedFd::from(self.listener.accept().unwrap().0);
            let mut peer = if is_tcp {
                Peer::Tcp(fd.into())
            } else {
                Peer::Unix(fd.into())
            };
            peer.set_limit(Some(LIMIT));
            let mut got = vec![0; expected.len()];
            // Those that waited before have closed.
            if peer.read_exact(&mut got).is_ok() {
                assert_eq!(got, expected);
                return peer;
            }
        }
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path);
        }
    }
}

fn on_both(test: impl Fn(Transport) + Send + Sync + 'static) {
    let test = Arc::new(test);
    for transport in [Transport::Tcp, Transport::Unix] {
        let test = Arc::clone(&test);
        bounded(&format!("{transport:?}"), move || test(transport));
    }
}

/// Gives back what it gets.
fn parrot() -> impl netpoll::Handler {
    handler_fn(|conn| {
        let all = conn.slice(conn.available())?;
        conn.append(all)?;
        conn.flush()
    })
}

fn patient() -> Dialer {
    Dialer::new().read_timeout(LIMIT).write_timeout(LIMIT)
}

#[test]
fn a_started_dial_gives_the_connection_to_its_callback() {
    on_both(|transport| {
        let server =
            crate::support::Server::start(transport, EventLoop::builder().pollers(1), parrot());
        let dialer = patient();
        for _ in 0..20 {
            let (handle, told) = started(&dialer, &server.address);
            let mut conn = result(&told).unwrap();
            assert_eq!(conn.id(), handle.id());
            assert_eq!(conn.state(), ConnectionState::Connected);
            assert_eq!(handle.peer_addr(), &server.address);
            conn.write_str("hello").unwrap();
            conn.flush().unwrap();
            assert_eq!(conn.next(5).unwrap(), b"hello");
            drop(conn);
            handle.done().wait().unwrap();
        }
        assert_eq!(dialer.stats().unwrap().accepted, 20);
        eventually("all are gone", || dialer.stats().unwrap().active == 0);
        server.stop();
    });
}

#[test]
fn a_dial_is_connecting_until_the_peer_answers() {
    on_both(|transport| {
        let mut hole = Hole::new(transport);
        let (handle, told) = started(&patient(), &hole.address);
        assert_eq!(handle.state(), ConnectionState::Connecting);
        // What is sent now goes out later, in order.
        assert_eq!(handle.send_bytes(Bytes::from_static(b"ear")).unwrap(), 3);
        handle.send_bytes(Bytes::from_static(b"ly")).unwrap();
        assert_eq!(handle.stats().queued, 5);
        assert_eq!(handle.state(), ConnectionState::Connecting);
        assert!(told.try_recv().is_err());
        let mut peer = hole.accept(b"early");
        let mut conn = result(&told).unwrap();
        assert_eq!(handle.state(), ConnectionState::Connected);
        handle.flush().unwrap();
        peer.write_all(b"answer").unwrap();
        assert_eq!(conn.next(6).unwrap(), b"answer");
        assert_eq!(conn.stats().messages_out, 2);
        assert_eq!(conn.stats().lost_bytes, 0);
    });
}

#[test]
fn a_sender_waits_for_the_connect() {
    on_both(|transport| {
        let mut hole = Hole::new(transport);
        let (handle, told) = started(&patient(), &hole.address);
        handle.send_bytes(Bytes::from_static(b"sent")).unwrap();
        let flushing = crate::support::asleep_in(move || handle.flush());
        assert!(!flushing.is_finished());
        let peer = hole.accept(b"sent");
        flushing.join().unwrap().unwrap();
        drop((peer, result(&told).unwrap()));
        // One that comes to nothing ends the wait.
        let hole = Hole::new(transport);
        let (handle, told) = started(&patient(), &hole.address);
        handle.send_bytes(Bytes::from_static(b"lost")).unwrap();
        let flushing = {
            let handle = handle.clone();
            crate::support::asleep_in(move || handle.flush())
        };
        handle.abort();
        assert!(flushing.join().unwrap().is_err());
        result(&told).unwrap_err();
        handle.done().wait().unwrap();
        assert_eq!(handle.stats().lost_bytes, 4);
    });
}

#[test]
fn a_refused_dial_is_told_with_its_error() {
    bounded("refused", || {
        let (_closed, refusing) = closed_port();
        let nowhere = Address::Unix(fresh_path());
        for (address, kind) in [
            (Address::from(refusing), io::ErrorKind::ConnectionRefused),
            (nowhere, io::ErrorKind::NotFound),
        ] {
            let (handle, told) = started(&Dialer::new(), &address);
            let error = result(&told).unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(&address.to_string()), "{error}");
            let reason = CloseReason::Error(kind);
            let ended = handle.done().wait().unwrap_err();
            assert_eq!(Error::from_io(&ended), Some(Error::Closed(reason)));
            assert_eq!(handle.state(), ConnectionState::Disconnected);
            let (tell, called) = mpsc::channel();
            handle.on_close(move |reason| tell.send(reason).unwrap());
            assert_eq!(called.recv().unwrap(), reason);
            assert!(handle.send_bytes(Bytes::from_static(b"x")).is_err());
        }
    });
}

#[test]
fn a_dial_without_an_answer_ends_at_its_timeout() {
    on_both(|transport| {
        let hole = Hole::new(transport);
        let timeout = Duration::from_millis(60);
        let dialer = Dialer::new().connect_timeout(timeout);
        let start = Instant::now();
        let (handle, told) = started(&dialer, &hole.address);
        let error = result(&told).unwrap_err();
        assert!(start.elapsed() >= timeout);
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        let reason = CloseReason::Error(io::ErrorKind::TimedOut);
        let ended = handle.done().wait().unwrap_err();
        assert_eq!(Error::from_io(&ended), Some(Error::Closed(reason)));
        eventually("it is gone", || dialer.stats().unwrap().active == 0);
    });
}

#[test]
fn a_refused_dial_is_repeated_as_often_as_allowed() {
    bounded("retries", || {
        let (path, dialer) = (fresh_path(), Dialer::new().retries(u32::MAX));
        let (handle, told) = started(&dialer, &Address::Unix(path.clone()));
        let (other, nothing) = started(&dialer, &Address::Unix(fresh_path()));
        assert_eq!(handle.state(), ConnectionState::Connecting);
        assert!(told.try_recv().is_err());
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        result(&told).unwrap();
        fs::remove_file(path).unwrap();
        // One that would go on for ever ends all the same.
        other.close();
        let error = result(&nothing).unwrap_err();
        let closed = Error::Closed(CloseReason::Local);
        assert_eq!(Error::from_io(&error), Some(closed));
        let (_, told) = started(&Dialer::new().retries(3), &Address::Unix(fresh_path()));
        assert_eq!(result(&told).unwrap_err().kind(), io::ErrorKind::NotFound);
    });
}

#[test]
fn a_dial_is_cancelled_from_another_thread() {
    in_child("a_dial_is_cancelled_from_another_thread", || {
        let dialer = Dialer::new().connect_timeout(LIMIT);
        dialer.stats().unwrap();
        for transport in [Transport::Tcp, Transport::Unix] {
            for aborts in [false, true] {
                let hole = Hole::new(transport);
                let before = descriptors();
                let (handle, told) = started(&dialer, &hole.address);
                let (close, closed) = mpsc::channel();
                handle.on_close(move |reason| close.send(reason).unwrap());
                eventually("it connects", || descriptors() > before);
                let other = handle.clone();
                let cancel = thread::spawn(move || {
                    if aborts {
                        other.abort();
                    } else {
                        other.close();
                    }
                });
                cancel.join().unwrap();
                let error = result(&told).unwrap_err();
                let reason = if aborts {
                    CloseReason::Abort
                } else {
                    CloseReason::Local
                };
                assert_eq!(Error::from_io(&error), Some(Error::Closed(reason)));
                assert_eq!(closed.recv_timeout(LIMIT).unwrap(), reason);
                handle.done().wait().unwrap();
                settled_descriptors(before);
                assert!(told.recv_timeout(LIMIT).is_err(), "told once");
            }
        }
        eventually("all are gone", || dialer.stats().unwrap().active == 0);
    });
}

#[test]
fn cancels_at_any_moment_are_told_once() {
    on_both(|transport| {
        let server =
            crate::support::Server::start(transport, EventLoop::builder().pollers(1), parrot());
        let dialer = patient();
        for round in 0..200_u32 {
            let (handle, told) = started(&dialer, &server.address);
            for _ in 0..round % 50 {
                thread::yield_now();
            }
            if round % 2 == 0 {
                handle.abort();
            } else {
                handle.close();
            }
            // Before or after it was connected: then it is one that was closed.
            if let Ok(mut conn) = result(&told) {
                assert!(conn.fill(1).is_err());
            }
            handle.done().wait().unwrap();
            assert!(told.recv_timeout(LIMIT).is_err(), "told once");
        }
        eventually("all are gone", || dialer.stats().unwrap().active == 0);
        server.stop();
    });
}

#[test]
fn a_started_dial_with_a_handler_has_its_events_in_order() {
    every(|case| {
        let server = case.serve(parrot());
        let events = Log::new();
        let seen = events.clone();
        let dialer = Dialer::new()
            .pollers(one_thread())
            .dispatch(case.kind.dispatch());
        let handler = event_fn(move |conn, event| {
            seen.push((conn.id(), event, conn.state()));
            match event {
                ConnectionEvent::Established => {
                    conn.write_str("hello")?;
                    conn.flush()
                }
                ConnectionEvent::Readable if conn.try_fill(5)? => conn.skip(5),
                _ => Ok(()),
            }
        });
        let handle = dialer
            .start_with(server.address.clone(), handler, |error| panic!("{error}"))
            .unwrap();
        let is_readable = |(_, event, _): &(u64, ConnectionEvent, ConnectionState)| {
            *event == ConnectionEvent::Readable
        };
        events.wait("an answer", |all| all.iter().any(is_readable));
        handle.close();
        handle.done().wait().unwrap();
        let mut all = events.all();
        assert!(all.iter().all(|(id, ..)| *id == handle.id()));
        all.retain(|event| !is_readable(event));
        let all: Vec<_> = all
            .into_iter()
            .map(|(_, event, state)| (event, state))
            .collect();
        assert_eq!(
            all,
            [
                (ConnectionEvent::Connecting, ConnectionState::Connecting),
                (ConnectionEvent::Connected, ConnectionState::Connecting),
                (ConnectionEvent::Established, ConnectionState::Connected),
                (
                    ConnectionEvent::Closed(CloseReason::Local),
                    ConnectionState::Disconnecting
                ),
            ]
        );
        assert_eq!(dialer.stats().unwrap().panics, 0);
        server.stop();
    });
}

#[test]
fn a_failed_dial_with_a_handler_calls_none_of_its_callbacks() {
    every(|case| {
        let hole = Hole::new(case.transport);
        let dialer = Dialer::new()
            .connect_timeout(Duration::from_millis(30))
            .dispatch(case.kind.dispatch());
        let (tell, told) = mpsc::channel();
        let handler = event_fn(|_, event| panic!("{event:?}"));
        let handle = dialer
            .start_with(hole.address.clone(), handler, move |error| {
                tell.send(error).unwrap();
            })
            .unwrap();
        let error = told.recv_timeout(LIMIT).unwrap();
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        handle.done().wait().unwrap_err();
        let stats = dialer.stats().unwrap();
        assert_eq!((stats.panics, stats.connected, stats.accepted), (0, 0, 0));
    });
}

#[test]
fn on_prepare_may_refuse_a_started_dial() {
    on_both(|transport| {
        let server =
            crate::support::Server::start(transport, EventLoop::builder().pollers(1), parrot());
        let (tell, told) = mpsc::channel();
        let handler = Script::new()
            .prepare(|conn| {
                assert_eq!(conn.state(), ConnectionState::Connecting);
                Err(io::Error::other("not this one"))
            })
            .connect(|_| panic!("refused"));
        let handle = Dialer::new()
            .start_with(server.address.clone(), handler, move |error| {
                tell.send(error.to_string()).unwrap();
            })
            .unwrap();
        assert_eq!(told.recv_timeout(LIMIT).unwrap(), "not this one");
        let ended = handle.done().wait().unwrap_err();
        let refused = Error::Closed(CloseReason::Refused);
        assert_eq!(Error::from_io(&ended), Some(refused));
        server.stop();
    });
}

/// Answers what it is asked with what a server says that it dials for it.
fn relaying(backend: Address, dialer: Dialer) -> Script {
    Script::new().request(move |conn| {
        let asked = conn.slice(conn.available())?;
        let client = conn.handle();
        let to = client.clone();
        let handler = handler_fn(move |conn: &mut Connection| {
            let answer = conn.slice(conn.available())?;
            to.send(answer).map(drop)
        });
        let failed = move |_| client.abort();
        let backend = dialer.start_with(backend.clone(), handler, failed)?;
        backend.send(asked).map(drop)
    })
}

#[test]
fn a_handler_starts_dials_in_every_dispatch() {
    every(|case| {
        let backend = case.serve(parrot());
        let group = one_thread();
        let dialer = Dialer::new()
            .pollers(group.clone())
            .dispatch(case.kind.dispatch());
        // Its own poller is the one that completes the dial.
        let server = case.serve_with(
            EventLoop::builder()
                .pollers(group)
                .dispatch(case.kind.dispatch()),
            relaying(backend.address.clone(), dialer),
        );
        for n in 0..10_u32 {
            let mut peer = server.connect();
            peer.write_all(&n.to_be_bytes()).unwrap();
            let mut got = [0; 4];
            peer.read_exact(&mut got).unwrap();
            assert_eq!(u32::from_be_bytes(got), n);
        }
        server.stop();
        backend.stop();
    });
}

#[test]
fn dials_without_an_answer_hold_no_thread() {
    in_child("dials_without_an_answer_hold_no_thread", || {
        let group = PollerGroup::builder()
            .pollers(1)
            .max_threads(1)
            .build()
            .unwrap();
        let server = crate::support::Server::start(
            Transport::Tcp,
            EventLoop::builder().pollers(group.clone()),
            parrot(),
        );
        let hole = Hole::new(Transport::Tcp);
        let dialer = Dialer::new().pollers(group.clone());
        let mut peer = server.connect();
        peer.write_all(b"first").unwrap();
        peer.read_exact(&mut [0; 5]).unwrap();
        let before = (threads(), descriptors());
        let dials: Vec<_> = (0..100).map(|_| started(&dialer, &hole.address)).collect();
        eventually("all connect", || descriptors() >= before.1 + 100);
        assert!(threads() <= before.0 + 1, "{} threads", threads());
        peer.write_all(b"still").unwrap();
        peer.read_exact(&mut [0; 5]).unwrap();
        assert!(
            dials
                .iter()
                .all(|(dial, _)| dial.state() == ConnectionState::Connecting)
        );
        for (dial, told) in dials {
            dial.abort();
            result(&told).unwrap_err();
        }
        settled_descriptors(before.1);
        drop(peer);
        server.stop();
        group.close();
    });
}

#[test]
fn the_end_of_the_pollers_ends_a_dial() {
    on_both(|transport| {
        let hole = Hole::new(transport);
        let group = one_thread();
        let dialer = Dialer::new().pollers(group.clone());
        let (handle, told) = started(&dialer, &hole.address);
        // Others that are to begin at the same time.
        let others: Vec<_> = (0..20).map(|_| started(&dialer, &hole.address)).collect();
        group.close();
        for (handle, told) in others.into_iter().chain([(handle, told)]) {
            let error = result(&told).unwrap_err();
            assert!(
                matches!(
                    Error::from_io(&error),
                    Some(Error::Closed(CloseReason::Poller)) | None
                ),
                "{error}"
            );
            handle.done().wait().unwrap_err();
        }
        // From here on none begins.
        let (_, told) = started(&dialer, &hole.address);
        result(&told).unwrap_err();
    });
}

#[test]
fn a_panic_of_a_callback_ends_nothing_else() {
    on_both(|transport| {
        let server =
            crate::support::Server::start(transport, EventLoop::builder().pollers(1), parrot());
        let dialer = patient();
        let handle = dialer
            .start_connection(server.address.clone(), |_| panic!("on purpose"))
            .unwrap();
        // The connection was dropped in it.
        handle.done().wait().unwrap();
        eventually("it is counted", || dialer.stats().unwrap().panics == 1);
        let (_, told) = started(&dialer, &server.address);
        result(&told).unwrap();
        server.stop();
    });
}

#[test]
fn a_callback_may_wait() {
    on_both(|transport| {
        let server =
            crate::support::Server::start(transport, EventLoop::builder().pollers(1), parrot());
        let dialer = patient().pollers(one_thread());
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let (tell, told) = mpsc::channel();
        let inside = gate.clone();
        dialer
            .start_connection(server.address.clone(), move |conn| {
                let mut conn = conn.unwrap();
                inside.pass();
                conn.write_str("waited").unwrap();
                conn.flush().unwrap();
                tell.send(conn.read_string(6).unwrap()).unwrap();
            })
            .unwrap();
        gate.wait_arrived(1);
        // Others are dialled meanwhile.
        let (_, other) = started(&dialer, &server.address);
        result(&other).unwrap();
        gate.open();
        assert_eq!(told.recv_timeout(LIMIT).unwrap(), "waited");
        server.stop();
    });
}

#[test]
fn a_name_is_looked_up_without_holding_the_caller() {
    bounded("names", || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["localhost", "127.0.0.1"] {
            let address = Address::Host(host.into(), port);
            let (handle, told) = started(&patient(), &address);
            let mut conn = result(&told).unwrap();
            // As it was asked for.
            assert_eq!(handle.peer_addr(), &address);
            let (mut peer, _) = listener.accept().unwrap();
            peer.write_all(b"named").unwrap();
            assert_eq!(conn.next(5).unwrap(), b"named");
        }
        let nowhere = Address::Host("no such name".into(), port);
        let (_, told) = started(&Dialer::new(), &nowhere);
        let error = result(&told).unwrap_err();
        assert!(error.to_string().contains("no such name"), "{error}");
    });
}

/// A socket that is connecting to that address.
fn connecting(address: &Address) -> Socket {
    let to = address.as_socket_addr().unwrap();
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
    let _ = socket.connect(&to.into());
    socket
}

#[test]
fn a_socket_that_is_connecting_is_adopted() {
    bounded("adopt", || {
        let mut hole = Hole::new(Transport::Tcp);
        let socket = connecting(&hole.address);
        assert!(socket.peer_addr().is_err(), "it is still connecting");
        let address = hole.address.clone();
        let adopting = crate::support::asleep_in(move || {
            let conn = patient().adopt(socket);
            conn.and_then(|mut conn| {
                assert_eq!(conn.peer_addr(), &address);
                conn.write_str("adopted")?;
                conn.flush()?;
                Ok(conn)
            })
        });
        let peer = hole.accept(b"adopted");
        drop((adopting.join().unwrap().unwrap(), peer));

        let (_closed, refusing) = closed_port();
        let error = patient().adopt(connecting(&refusing.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);

        let hole = Hole::new(Transport::Tcp);
        let timeout = Duration::from_millis(40);
        let dialer = Dialer::new().connect_timeout(timeout);
        let start = Instant::now();
        let error = dialer.adopt(connecting(&hole.address)).unwrap_err();
        assert!(start.elapsed() >= timeout);
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
    });
}

#[test]
fn adopting_a_connecting_socket_holds_no_inline_handler() {
    bounded("inline", || {
        let case = Case::new(Transport::Tcp, crate::support::Kind::Inline);
        let hole = Hole::new(Transport::Tcp);
        let errors = Log::new();
        let (told, address) = (errors.clone(), hole.address.clone());
        let server = case.serve(Script::new().request(move |conn| {
            let error = Dialer::new().adopt(connecting(&address)).unwrap_err();
            told.push(Error::from_io(&error));
            conn.skip(conn.available())
        }));
        server.connect().write_all(b"x").unwrap();
        assert_eq!(errors.wait_len(1), [Some(Error::WouldDeadlock)]);
        server.stop();
    });
}

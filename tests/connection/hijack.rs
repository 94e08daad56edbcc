//! Connections that leave their handler: taken by a thread, given to another handler, adopted.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Transport, bounded, decode, echo, echo_frames,
    eventually, every, every_blocking, frame, in_child, pair, pattern, read_frame,
    settled_descriptors,
};
use netpoll::{
    CloseReason, Connection, ConnectionHandle, Dialer, Error, Handler, handler_fn, relay,
};
use std::{
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

/// A handler that gives its connection away at the first request or at once.
struct Giver {
    at_connect: bool,
    taken: Mutex<mpsc::Sender<Connection>>,
    log: Log<(u64, &'static str)>,
}

impl Handler for Giver {
    type State = u64;

    fn on_connect(&self, conn: &mut Connection) -> io::Result<u64> {
        let (id, log) = (conn.id(), self.log.clone());
        conn.on_close(move |_| log.push((id, "close callback")));
        if self.at_connect {
            self.taken.lock().unwrap().send(conn.hijack()?).unwrap();
        }
        Ok(id)
    }

    fn on_request(&self, conn: &mut Connection, id: &mut u64) -> io::Result<()> {
        self.log.push((*id, "request"));
        if !self.at_connect {
            self.taken.lock().unwrap().send(conn.hijack()?).unwrap();
            // Nothing can be done with what was taken.
            assert!(conn.write_slice(b"x").and_then(|()| conn.flush()).is_err());
            assert!(conn.fill(1).is_err());
            assert!(conn.hijack().is_err());
        }
        Ok(())
    }

    fn on_disconnect(&self, id: u64, _: CloseReason) {
        self.log.push((id, "disconnect"));
    }
}

fn giver(at_connect: bool) -> (Giver, mpsc::Receiver<Connection>, Log<(u64, &'static str)>) {
    let (sender, receiver) = mpsc::channel();
    let log = Log::new();
    (
        Giver {
            at_connect,
            taken: Mutex::new(sender),
            log: log.clone(),
        },
        receiver,
        log,
    )
}

#[test]
fn a_taken_connection_is_used_by_its_own_thread() {
    every(|case| {
        for at_connect in [false, true] {
            let (handler, taken, log) = giver(at_connect);
            let server = case.serve(handler);
            let mut peer = server.connect();
            peer.write_all(&frame(b"first")).unwrap();
            let mut conn = taken.recv_timeout(LIMIT).unwrap();
            let id = conn.id();
            let using = thread::spawn(move || {
                for _ in 0..50 {
                    let head = conn.next(4)?;
                    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
                    let body = conn.next_bytes(len as usize)?;
                    conn.write_slice(&len.to_be_bytes())?;
                    conn.write_bytes(body)?;
                    conn.flush()?;
                }
                assert!(conn.is_active());
                io::Result::Ok(conn)
            });
            assert_eq!(read_frame(&mut peer).unwrap(), b"first");
            for round in 1..50u64 {
                peer.ping(&pattern(round, round as usize * 100));
            }
            let conn = using.join().unwrap().unwrap();
            let begun = if at_connect {
                vec![]
            } else {
                vec![(id, "request")]
            };
            assert_eq!(log.all(), begun, "the handler is out of it");
            drop(conn);
            peer.expect_end();
            let mut all = begun;
            all.extend([(id, "disconnect"), (id, "close callback")]);
            assert_eq!(log.wait_len(all.len()), all);
            server.stop();
            assert_eq!(log.all(), all);
        }
    });
}

#[test]
fn a_connection_that_is_dropped_inside_its_callback_ends_after_it() {
    every(|case| {
        for at_connect in [false, true] {
            let log = Log::new();
            let [l1, l2, l3] = [(); 3].map(|()| log.clone());
            let drop_it = move |conn: &mut Connection| -> io::Result<()> {
                let log = l3.clone();
                conn.on_close(move |_| log.push("close callback"));
                let mut taken = conn.hijack()?;
                taken.write_str("bye")?;
                taken.flush()?;
                drop(taken);
                l1.push("callback returns");
                Ok(())
            };
            let script = Script::new().disconnect(move |_, _| l2.push("disconnect"));
            let script = if at_connect {
                script.connect(drop_it)
            } else {
                script.request(drop_it)
            };
            let server = case.serve(script);
            let mut peer = server.connect();
            peer.write_all(b"x").unwrap();
            assert_eq!(peer.rest().unwrap(), b"bye");
            assert_eq!(
                log.wait_len(3),
                ["callback returns", "disconnect", "close callback"]
            );
            server.stop();
            assert_eq!(log.len(), 3);
        }
    });
}

#[test]
fn a_taken_connection_keeps_what_was_received_and_written() {
    every(|case| {
        let (sender, taken) = mpsc::channel();
        let sender = Mutex::new(sender);
        let server = case.serve(handler_fn(move |conn| {
            if !conn.try_fill(10)? {
                return Ok(());
            }
            conn.skip(4)?;
            conn.write_str("written ")?;
            sender.lock().unwrap().send(conn.hijack()?).unwrap();
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"0123456789").unwrap();
        let mut conn = taken.recv_timeout(LIMIT).unwrap();
        assert_eq!(conn.next(6).unwrap(), b"456789");
        conn.write_str("and sent").unwrap();
        conn.close().unwrap();
        // Not flushed: dropped with the close.
        assert_eq!(peer.rest().unwrap(), b"");
        let mut peer = server.connect();
        peer.write_all(b"0123456789").unwrap();
        let mut conn = taken.recv_timeout(LIMIT).unwrap();
        conn.write_str("and sent").unwrap();
        conn.flush().unwrap();
        drop(conn);
        assert_eq!(peer.rest().unwrap(), b"written and sent");
        server.stop();
    });
}

#[test]
fn a_taken_connection_may_give_its_descriptor_away() {
    every(|case| {
        let (handler, taken, log) = giver(false);
        let server = case.serve(handler);
        let mut peer = server.connect();
        peer.write_all(b"hello").unwrap();
        let mut conn = taken.recv_timeout(LIMIT).unwrap();
        conn.fill(5).unwrap();
        let (fd, mut rest) = conn.detach().unwrap();
        assert_eq!(rest.next(5).unwrap(), b"hello");
        let all = log.wait_len(3);
        let events: Vec<_> = all.iter().map(|e| e.1).collect();
        assert_eq!(events, ["request", "disconnect", "close callback"]);
        match case.transport {
            Transport::Tcp => {
                let mut stream = std::net::TcpStream::from(fd);
                stream.set_nonblocking(false).unwrap();
                stream.write_all(b"on my own").unwrap();
            }
            Transport::Unix => {
                let mut stream = UnixStream::from(fd);
                stream.set_nonblocking(false).unwrap();
                stream.write_all(b"on my own").unwrap();
            }
        }
        assert_eq!(peer.rest().unwrap(), b"on my own");
        server.stop();
    });
}

#[test]
fn a_taken_connection_may_get_another_handler() {
    every(|case| {
        let (handler, taken, log) = giver(false);
        let server = case.serve(handler);
        for round in 0..20 {
            let mut peer = server.connect();
            peer.write_all(&frame(b"left for the next")).unwrap();
            let conn = taken.recv_timeout(LIMIT).unwrap();
            let ends = Log::new();
            let over = ends.clone();
            let second = Script::new()
                .request(echo_frames)
                .disconnect(move |_, reason| over.push(reason));
            let handle = conn.attach(second).unwrap();
            assert_eq!(read_frame(&mut peer).unwrap(), b"left for the next");
            peer.ping(b"and on");
            drop(peer);
            assert!(handle.done().wait().is_err());
            assert_eq!(ends.wait_len(1), [CloseReason::Peer]);
            let all = log.wait_len(3 * (round + 1));
            assert_eq!(all.len(), 3 * (round + 1));
        }
        server.stop();
    });
}

#[test]
fn a_connection_may_be_attached_again_inside_its_callback() {
    every(|case| {
        let server = case.serve(handler_fn(|conn| {
            let Some(first) = conn.try_next(7)? else {
                return Ok(());
            };
            assert_eq!(first, b"UPGRADE");
            conn.hijack()?.attach(echo()).map(drop)
        }));
        for _ in 0..30 {
            let mut peer = server.connect();
            peer.write_all(&[b"UPGRADE".as_slice(), &frame(b"left over")].concat())
                .unwrap();
            assert_eq!(read_frame(&mut peer).unwrap(), b"left over");
            peer.ping(b"more");
        }
        server.stop();
    });
}

#[test]
fn a_taken_connection_is_ended_through_its_handle_too() {
    every(|case| {
        for abort in [false, true] {
            let (handler, taken, log) = giver(true);
            let server = case.serve(handler);
            let mut peer = server.connect();
            let mut conn = taken.recv_timeout(LIMIT).unwrap();
            let handle = conn.handle();
            let waiting = thread::spawn(move || conn.fill(1).unwrap_err());
            if abort {
                handle.abort()
            } else {
                handle.close()
            }
            let error = waiting.join().unwrap();
            assert!(
                matches!(Error::from_io(&error), Some(Error::Closed(_))),
                "{error:?}"
            );
            handle.done().wait().unwrap();
            assert_eq!(log.wait_len(2).len(), 2);
            peer.expect_gone();
            server.stop();
        }
    });
}

#[test]
fn a_taken_connection_ends_after_its_peers_fin() {
    bounded("ends", || {
        let mut all = Vec::new();
        // Together: each takes a while.
        for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom] {
            for transport in [Transport::Tcp, Transport::Unix] {
                let (giver, taken, log) = giver(false);
                let server = Case::new(transport, kind).serve(giver);
                let mut peer = server.connect();
                peer.write_all(b"what the owner reads").unwrap();
                let mut owned = taken.recv_timeout(LIMIT).unwrap();
                owned.skip(20).unwrap();
                let promised = server.connect();
                promised.try_clone().write_all(b"!").unwrap();
                let mut holding = taken.recv_timeout(LIMIT).unwrap();
                holding.skip(1).unwrap();
                let hold = holding.handle().hold();
                drop(peer);
                promised.shutdown_write();
                all.push((server, owned, log, promised, holding, hold));
            }
        }
        for (server, owned, log, mut promised, mut holding, hold) in all {
            let ended = owned.handle().done().wait_timeout(LIMIT);
            assert!(ended.expect("the peer is gone").is_err());
            log.wait("its callbacks", |log| {
                log.contains(&(owned.id(), "close callback"))
            });
            assert!(holding.handle().done().poll().is_none(), "it is promised");
            holding.write_slice(b"late").unwrap();
            holding.flush().unwrap();
            drop((hold, holding));
            assert_eq!(promised.rest().unwrap(), b"late");
            drop((owned, promised));
            server.stop();
        }
    });
}

#[test]
fn a_loop_waits_for_the_connections_that_were_taken_from_it() {
    every(|case| {
        let (handler, taken, log) = giver(true);
        let server = case.serve(handler);
        let mut peer = server.connect();
        let mut conn = taken.recv_timeout(LIMIT).unwrap();
        let error = server
            .event_loop
            .shutdown(Duration::from_millis(20))
            .expect_err("somebody has a connection");
        assert_eq!(
            Error::from_io(&error),
            Some(Error::ShutdownIncomplete { remaining: 1 })
        );
        conn.write_str("still mine").unwrap();
        conn.flush().unwrap();
        drop(conn);
        server.event_loop.shutdown(LIMIT).unwrap();
        assert_eq!(peer.rest().unwrap(), b"still mine");
        assert_eq!(
            log.all().iter().map(|e| e.1).collect::<Vec<_>>(),
            ["disconnect", "close callback"]
        );
    });
}

#[test]
fn hijacking_outside_of_a_callback_is_an_error() {
    bounded("take", || {
        let (mut conn, mut peer) = pair();
        let error = conn.hijack().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        conn.write_str("unharmed").unwrap();
        conn.flush().unwrap();
        drop(conn);
        assert_eq!(peer.rest().unwrap(), b"unharmed");
    });
}

#[test]
fn taken_connections_race_with_their_peers_and_nothing_is_left() {
    in_child(
        "taken_connections_race_with_their_peers_and_nothing_is_left",
        || {
            for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom] {
                let case = Case::new(Transport::Tcp, kind);
                let (handler, taken, log) = giver(false);
                let server = case.serve(handler);
                let mut peer = server.connect();
                peer.write_all(b"x").unwrap();
                drop(taken.recv_timeout(LIMIT).unwrap());
                peer.expect_end();
                drop(peer);
                eventually("quiet", || server.event_loop.stats().active == 0);
                let before = crate::support::descriptors();
                let rounds = 150;
                for round in 0..rounds {
                    let mut peer = server.connect();
                    peer.write_all(b"x").unwrap();
                    match round % 4 {
                        0 => drop(peer),
                        1 => peer.reset(),
                        2 => {
                            peer.shutdown_write();
                            drop(taken.recv_timeout(LIMIT).unwrap());
                            peer.expect_gone();
                            continue;
                        }
                        _ => {
                            let conn = taken.recv_timeout(LIMIT).unwrap();
                            let handle = conn.handle();
                            let closing = thread::spawn(move || handle.close());
                            drop(conn);
                            closing.join().unwrap();
                            peer.expect_gone();
                            continue;
                        }
                    }
                    // Gone before or after it was taken.
                    if let Ok(conn) = taken.recv_timeout(LIMIT) {
                        drop(conn);
                    }
                }
                eventually("every end", || {
                    let all = log.all();
                    let count = |what| all.iter().filter(|e| e.1 == what).count();
                    count("disconnect") == rounds + 1 && count("close callback") == rounds + 1
                });
                settled_descriptors(before);
                server.stop();
            }
        },
    );
}

#[test]
fn a_dialled_connection_may_get_a_handler() {
    every(|case| {
        let server = case.serve(echo());
        let mut conn = server.dial();
        conn.write_slice(&frame(b"by hand")).unwrap();
        conn.flush().unwrap();
        assert_eq!(conn.next(11).unwrap(), frame(b"by hand"));
        // What is buffered is shown to the handler, and what comes later.
        conn.write_slice(&[frame(b"one"), frame(b"two")].concat())
            .unwrap();
        conn.flush().unwrap();
        conn.fill(7).unwrap();
        let log = Log::new();
        let [l1, l2] = [(); 2].map(|()| log.clone());
        let handle: ConnectionHandle = conn
            .attach(
                Script::new()
                    .connect(move |_| {
                        l1.push(b"connect".to_vec());
                        Ok(())
                    })
                    .request(move |conn| {
                        while let Some(mut frame) = decode(conn)? {
                            let n = frame.len();
                            l2.push(frame.read_vec(n)?[4..].to_vec());
                        }
                        Ok(())
                    }),
            )
            .unwrap();
        assert_eq!(
            log.wait_len(3),
            [b"connect".to_vec(), b"one".to_vec(), b"two".to_vec()]
        );
        handle.send_bytes(frame(b"three").into()).unwrap();
        assert_eq!(log.wait_len(4)[3], b"three");
        handle.close();
        handle.done().wait().unwrap();
        server.stop();
    });
}

#[test]
fn a_dialled_connection_whose_peer_is_gone_may_still_get_a_handler() {
    bounded("gone", || {
        let (conn, mut peer) = pair();
        peer.write_all(&frame(b"last words")).unwrap();
        drop(peer);
        eventually("the end is seen", || !conn.is_active());
        let log = Log::new();
        let [l1, l2] = [(); 2].map(|()| log.clone());
        let handle = conn
            .attach(
                Script::new()
                    .request(move |conn| {
                        while let Some(frame) = decode(conn)? {
                            l1.push(format!("{} bytes", frame.len()));
                        }
                        Ok(())
                    })
                    .disconnect(move |_, reason| l2.push(format!("{reason:?}"))),
            )
            .unwrap();
        assert!(handle.done().wait().is_err());
        assert_eq!(log.all(), ["14 bytes", "Peer"]);
    });
}

#[test]
fn a_handler_that_refuses_an_attached_connection_ends_it() {
    bounded("refuse", || {
        for panics in [false, true] {
            let (conn, mut peer) = pair();
            let closes = Log::new();
            let log = closes.clone();
            conn.on_close(move |reason| log.push(reason));
            let result = conn.attach(Script::new().prepare(move |_| {
                assert!(!panics, "as asked");
                Err(io::Error::other("no"))
            }));
            assert!(result.is_err());
            closes.wait_len(1);
            peer.expect_gone();
        }
    });
}

#[test]
fn a_socket_pair_is_adopted() {
    bounded("adopt", || {
        let (left, right) = UnixStream::pair().unwrap();
        let mut conn = Dialer::new().read_timeout(LIMIT).adopt(left).unwrap();
        let mut peer = Peer::Unix(right);
        peer.set_limit(Some(LIMIT));
        conn.write_str("hello").unwrap();
        conn.flush().unwrap();
        let mut got = [0; 5];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        peer.write_all(b"answer").unwrap();
        assert_eq!(conn.next(6).unwrap(), b"answer");
        let count = Arc::new(AtomicUsize::new(0));
        let calls = Arc::clone(&count);
        let handle = conn
            .attach(handler_fn(move |conn| {
                calls.fetch_add(1, SeqCst);
                echo_frames(conn)
            }))
            .unwrap();
        for round in 0..10 {
            peer.ping(&[round; 1000]);
        }
        assert!(count.load(SeqCst) >= 10);
        drop(peer);
        let _ = handle.done().wait();
        // Something that is no connected stream socket.
        let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        assert!(Dialer::new().adopt(file).is_err());
        let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
        assert_eq!(
            Dialer::new()
                .adopt(OwnedFd::from(datagram))
                .unwrap_err()
                .kind(),
            io::ErrorKind::InvalidInput
        );
    });
}

#[test]
fn two_connections_of_the_library_over_one_socket_pair() {
    every_blocking(|case| {
        if case.transport == Transport::Tcp {
            return;
        }
        let (left, right) = UnixStream::pair().unwrap();
        let dialer = Dialer::new()
            .dispatch(case.kind.dispatch())
            .read_timeout(LIMIT);
        let handle = dialer.adopt(left).unwrap().attach(echo()).unwrap();
        let mut conn = dialer.adopt(right).unwrap();
        for round in 0..200u64 {
            let out = frame(&pattern(round, 16 << 10));
            conn.write_slice(&out).unwrap();
            conn.flush().unwrap();
            assert!(conn.next(out.len()).unwrap() == out);
        }
        drop(conn);
        assert!(handle.done().wait().is_err());
    });
}

/// How a callback ends after it gave its connection away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Afterwards {
    Error,
    Panic,
}

impl Afterwards {
    fn happen(self) -> io::Result<()> {
        match self {
            Self::Error => Err(io::Error::other("too late")),
            Self::Panic => panic!("on purpose"),
        }
    }
}

/// A handler whose callback does something with its connection, taken out, and then fails.
fn failing(
    at_connect: bool,
    afterwards: Afterwards,
    log: &Log<&'static str>,
    give_away: impl Fn(Connection) -> io::Result<()> + Send + Sync + 'static,
) -> Script {
    let [l1, l2] = [(); 2].map(|()| log.clone());
    let callback = move |conn: &mut Connection| {
        let log = l1.clone();
        conn.on_close(move |_| log.push("close callback"));
        give_away(conn.hijack()?)?;
        afterwards.happen()
    };
    let script = Script::new().disconnect(move |_, _| l2.push("disconnect"));
    if at_connect {
        script.connect(callback)
    } else {
        script.request(callback)
    }
}

/// Under every dispatch, for callbacks that fail in both ways at both moments.
fn every_failure(test: impl Fn(Case, bool, Afterwards) + Send + Sync + 'static) {
    every(move |case| {
        for at_connect in [false, true] {
            for afterwards in [Afterwards::Error, Afterwards::Panic] {
                test(case, at_connect, afterwards);
            }
        }
    });
}

/// What is noted at the end: a failed `on_connect` has no state to give back.
fn ends(at_connect: bool) -> &'static [&'static str] {
    let all = &["disconnect", "close callback"];
    if at_connect { &all[1..] } else { all }
}

#[test]
fn a_callback_that_fails_leaves_its_taken_connection() {
    const MUCH: usize = 6 << 20;
    every_failure(|case, at_connect, afterwards| {
        for ending in ["drop", "abort", "close"] {
            let (log, taken) = (Log::new(), Log::new());
            let given = taken.clone();
            let server = case.serve(failing(at_connect, afterwards, &log, move |mut conn| {
                conn.write_bytes(vec![b'x'; MUCH].into())?;
                // A part of it is queued behind the full socket.
                assert!(!conn.try_flush()?);
                given.push(conn);
                Ok(())
            }));
            let mut peer = server.connect();
            peer.write_all(b"go").unwrap();
            eventually("it is taken", || taken.len() == 1);
            let mut conn = taken.take().remove(0);
            let handle = conn.handle();
            if afterwards == Afterwards::Panic {
                let event_loop = &server.event_loop;
                eventually("the panic", || event_loop.stats().panics == 1);
            }
            if ending == "abort" {
                conn.abort();
                peer.expect_gone();
            } else {
                let reading = thread::spawn(move || peer.rest().unwrap());
                handle.flush().unwrap();
                conn.write_str("and it is of use").unwrap();
                conn.flush().unwrap();
                if ending == "close" {
                    handle.close();
                }
                drop(conn);
                let got = reading.join().unwrap();
                assert_eq!(got.len(), MUCH + 16);
                assert!(got.ends_with(b"and it is of use"));
            }
            handle.done().wait().unwrap();
            assert_eq!(log.wait_len(ends(at_connect).len()), ends(at_connect));
            let event_loop = server.event_loop.clone();
            server.stop();
            assert_eq!(log.all(), ends(at_connect));
            assert_eq!(event_loop.stats().active, 0);
        }
    });
}

#[test]
fn a_callback_that_fails_leaves_an_attached_connection() {
    every_failure(|case, at_connect, afterwards| {
        let (log, next) = (Log::new(), Log::new());
        let noted = next.clone();
        let server = case.serve(failing(at_connect, afterwards, &log, move |conn| {
            let noted = noted.clone();
            let second = Script::new()
                .request(echo_frames)
                .disconnect(move |_, reason| noted.push(reason));
            conn.attach(second).map(drop)
        }));
        let mut peers: Vec<Peer> = (0..10).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.ping(b"to the next handler");
            peer.ping(b"and again");
        }
        drop(peers);
        assert_eq!(next.wait_len(10), [CloseReason::Peer; 10]);
        let each = ends(at_connect);
        log.wait_len(10 * each.len());
        let event_loop = server.event_loop.clone();
        server.stop();
        for what in each {
            assert_eq!(log.all().iter().filter(|noted| *noted == what).count(), 10);
        }
        assert_eq!(log.len(), 10 * each.len());
        assert_eq!(event_loop.stats().active, 0);
    });
}

#[test]
fn a_callback_that_fails_leaves_a_relayed_connection() {
    every_failure(|case, at_connect, afterwards| {
        let backend = case.serve(echo());
        let (log, outcomes) = (Log::new(), Log::new());
        let (address, noted) = (backend.address.clone(), outcomes.clone());
        let server = case.serve(failing(at_connect, afterwards, &log, move |conn| {
            let noted = noted.clone();
            // Dialling would wait, which an inline handler must not.
            let backend: OwnedFd = match address.as_socket_addr() {
                Some(ip) => std::net::TcpStream::connect(ip)?.into(),
                None => UnixStream::connect(address.as_path().expect("a path"))?.into(),
            };
            let relay = relay(conn, Dialer::new().adopt(backend)?)?;
            relay.on_end(move |outcome| noted.push(outcome.end));
            Ok(())
        }));
        let mut peers: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.ping(b"there and back");
            peer.ping(b"and again");
        }
        drop(peers);
        outcomes.wait_len(5);
        log.wait_len(5 * ends(at_connect).len());
        let event_loop = server.event_loop.clone();
        server.stop();
        assert_eq!(event_loop.stats().active, 0);
        backend.stop();
    });
}

#[test]
fn what_is_queued_when_a_connection_is_taken_goes_on() {
    const MUCH: usize = 6 << 20;
    every(|case| {
        let taken = Log::new();
        let given = taken.clone();
        let server = case.serve(Script::new().connect(move |conn| {
            conn.write_bytes(vec![b'x'; MUCH].into())?;
            assert!(!conn.try_flush()?);
            given.push(conn.hijack()?);
            Ok(())
        }));
        let mut peer = server.connect();
        eventually("it is taken", || taken.len() == 1);
        // The owner does nothing with it.
        let mut got = vec![0; MUCH];
        peer.read_exact(&mut got).unwrap();
        drop(taken.take());
        peer.expect_end();
        server.stop();
    });
}

#[test]
fn a_taken_connection_that_is_dropped_at_once_sends_what_is_queued() {
    // More than the socket takes.
    const SIZE: usize = 20_000_000;
    every(|case| {
        let builder = case.builder().linger(LIMIT, 256 << 10);
        let builder = builder.output_limit(2 * SIZE, netpoll::OnFull::Error);
        let script = Script::new().connect(|conn| {
            let mut taken = conn.hijack()?;
            taken.write_slice(&pattern(9, SIZE))?;
            assert!(!taken.try_flush()?, "the socket took all of it");
            Ok(())
        });
        let server = case.serve_with(builder, script);
        let mut peer = server.connect();
        assert!(peer.rest().expect("an end in order") == pattern(9, SIZE));
        server.stop();
    });
}

#[test]
fn a_connection_dropped_in_its_callback_ends_once() {
    // Its poller looks at it while its callback ends it.
    every_blocking(|case| {
        let (handles, ends) = (Log::new(), Log::new());
        let (given, other, ended) = (handles.clone(), handles.clone(), ends.clone());
        let script = Script::new()
            .connect(move |conn| {
                given.push(conn.handle());
                Ok(())
            })
            .request(|conn| conn.hijack().map(drop))
            .disconnect(move |_, _| {
                ended.push(());
                if let [first, second] = &other.all()[..] {
                    // The poller sees this before the timer.
                    first.abort();
                    let (sender, looked) = mpsc::channel();
                    let _timer = second.after(Duration::ZERO, move |_| sender.send(()).unwrap());
                    looked.recv_timeout(LIMIT).unwrap();
                }
            });
        let server = case.serve(script);
        let (mut peer, idle) = (server.connect(), server.connect());
        handles.wait_len(2);
        let first = handles.all()[0].clone();
        peer.write_all(b"go").unwrap();
        first.done().wait().ok();
        drop(handles.take());
        drop(idle);
        ends.wait_len(2);
        let event_loop = server.event_loop.clone();
        server.stop();
        let stats = event_loop.stats();
        assert_eq!((stats.accepted, stats.closed), (2, 2));
        assert_eq!(ends.len(), 2);
    });
}

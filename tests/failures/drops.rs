//! Values of the user that do things when they are dropped: payloads that were queued or sent, what
//! callbacks captured. No lock of the library may be held then, and a panic must not get far.

use crate::support::{
    Case, LIMIT, Log, Peer, Script, Server, echo_frames, every, frame, read_frame,
};
use netpoll::{
    Bytes, CloseReason, Connection, ConnectionEvent, ConnectionHandle, Decoder, Handler,
    LinkBuffer, OnFull, Reader, event_fn, framed,
};
use std::{
    error::Error,
    fmt,
    io::{self, Read, Write},
    panic::{AssertUnwindSafe, catch_unwind, panic_any},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

/// A payload that uses its own connection when it is dropped.
struct Meddler {
    bytes: Vec<u8>,
    handle: ConnectionHandle,
    drops: Log<()>,
}

impl AsRef<[u8]> for Meddler {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        let _ = self.handle.stats();
        let _ = self.handle.try_send(b"from a drop".as_slice().to_vec());
        self.handle.on_close(|_| {});
        let _ = self.handle.is_active();
        let _ = self.handle.done().poll();
        self.drops.push(());
    }
}

fn connected(case: Case) -> (Server, Peer, ConnectionHandle, Log<CloseReason>) {
    let (handles, ends) = (Log::new(), Log::new());
    let (known, ended) = (handles.clone(), ends.clone());
    let server = case.serve_with(
        case.builder().output_limit(2 * MUCH, OnFull::Error),
        Script::new()
            .connect(move |conn| {
                known.push(conn.handle());
                Ok(())
            })
            .request(echo_frames)
            .disconnect(move |_, reason| ended.push(reason)),
    );
    let (peer, handle) = server.connect_given(&handles);
    (server, peer, handle, ends)
}

#[test]
fn row_073_payloads_may_use_their_connection_when_they_are_dropped() {
    every(|case| {
        for abort in [false, true] {
            let (server, mut peer, handle, ends) = connected(case);
            let drops = Log::new();
            let meddler = |len| {
                Bytes::from_owner(Meddler {
                    bytes: vec![1; len],
                    handle: handle.clone(),
                    drops: drops.clone(),
                })
            };
            // The first fills the socket, the others are queued: large ones as they are, small
            // ones as copies.
            for len in [MUCH, 1, 100, 5_000, 100_000] {
                handle.send_bytes(meddler(len)).unwrap();
            }
            if abort {
                handle.abort();
                peer.expect_gone();
            } else {
                let mut all = vec![0; MUCH + 105_101];
                peer.read_exact(&mut all).unwrap();
            }
            drops.wait_len(5);
            handle.abort();
            ends.wait_len(1);
            server.stop();
            assert_eq!(drops.len(), 5);
        }
    });
}

/// A payload that panics when it is dropped.
struct Bomb(Vec<u8>, Log<()>);

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.1.push(());
        if !std::thread::panicking() {
            panic!("as asked");
        }
    }
}

/// The connection ends, with all of its callbacks, and the loop goes on.
#[track_caller]
fn contained(server: Server, handle: &ConnectionHandle, ends: &Log<CloseReason>) {
    let mut other = server.connect();
    other.ping(b"lives");
    assert!(handle.done().wait_timeout(LIMIT).is_some(), "it never ends");
    ends.wait_len(1);
    other.ping(b"still");
    drop(other);
    server.stop();
    assert_eq!(ends.len(), 2, "each of the two once");
}

#[test]
fn row_076_a_payload_that_panics_when_it_was_sent_by_the_poller() {
    every(|case| {
        let (server, mut peer, handle, ends) = connected(case);
        let drops = Log::new();
        let bomb = Bytes::from_owner(Bomb(vec![1; MUCH], drops.clone()));
        handle.send_bytes(bomb).unwrap();
        peer.read_exact(&mut vec![0; MUCH]).unwrap();
        drops.wait_len(1);
        handle.close();
        contained(server, &handle, &ends);
    });
}

#[test]
fn row_076_a_payload_that_panics_when_it_was_sent_at_once() {
    every(|case| {
        let (server, mut peer, handle, ends) = connected(case);
        let drops = Log::new();
        let bomb = Bytes::from_owner(Bomb(vec![1; 5000], drops.clone()));
        // It is the caller's own value: the panic may reach it.
        let _ = catch_unwind(AssertUnwindSafe(|| handle.send_bytes(bomb)));
        drops.wait_len(1);
        peer.read_exact(&mut vec![0; 5000]).unwrap();
        // Others' messages are not held up by it.
        if handle.is_active() {
            handle.send_bytes(Bytes::from_static(b"next")).unwrap();
            let mut next = [0; 4];
            peer.read_exact(&mut next).unwrap();
            assert_eq!(&next, b"next");
        }
        handle.close();
        contained(server, &handle, &ends);
    });
}

#[test]
fn row_076_a_payload_that_panics_when_an_abort_drops_it() {
    every(|case| {
        let (server, peer, handle, ends) = connected(case);
        let drops = Log::new();
        let bomb = Bytes::from_owner(Bomb(vec![1; MUCH], drops.clone()));
        handle.send_bytes(bomb).unwrap();
        let _ = catch_unwind(AssertUnwindSafe(|| handle.abort()));
        drops.wait_len(1);
        contained(server, &handle, &ends);
        drop(peer);
    });
}

#[test]
fn row_076_a_payload_that_panics_when_its_connection_is_reset() {
    every(|case| {
        let (server, peer, handle, ends) = connected(case);
        let drops = Log::new();
        let bomb = Bytes::from_owner(Bomb(vec![1; MUCH], drops.clone()));
        handle.send_bytes(bomb).unwrap();
        peer.reset();
        drops.wait_len(1);
        contained(server, &handle, &ends);
    });
}

/// A payload that panics whenever it is dropped, also on the way of another panic.
struct Firework(Bytes, Log<()>);

impl AsRef<[u8]> for Firework {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Firework {
    fn drop(&mut self) {
        self.1.push(());
        panic!("as asked");
    }
}

/// A message of three payloads, long ones that are linked and a short one.
fn fireworks(drops: &Log<()>) -> LinkBuffer {
    let mut chain = LinkBuffer::new();
    for len in [8192, 10, 8192] {
        let payload = Firework(vec![1; len].into(), drops.clone());
        // One that is copied panics at once.
        let _ = catch_unwind(AssertUnwindSafe(|| {
            chain.write_bytes(Bytes::from_owner(payload));
        }));
    }
    chain.flush();
    chain
}

/// What a handler does with several such payloads, and whether it ends its connection.
type Way = fn(&mut Connection, &Log<()>) -> io::Result<()>;

const WAYS: [(&str, Way); 9] = [
    ("unflushed at an error", |conn, drops| {
        conn.append(fireworks(drops))?;
        Err(io::Error::other("as asked"))
    }),
    ("unflushed at a panic", |conn, drops| {
        conn.append(fireworks(drops))?;
        panic!("as asked, too");
    }),
    ("unflushed when the peer leaves", |conn, drops| {
        conn.append(fireworks(drops))
    }),
    ("unflushed on a connection that was taken", |conn, drops| {
        let mut taken = conn.hijack()?;
        taken.append(fireworks(drops))?;
        drop(taken);
        Ok(())
    }),
    ("cut before it was flushed", |conn, drops| {
        conn.append(fireworks(drops))?;
        conn.malloc_ack(0)
    }),
    ("sent to a connection that has ended", |conn, drops| {
        conn.handle().abort();
        let sent = conn.handle().send(fireworks(drops));
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::NotConnected);
        Ok(())
    }),
    ("refused by a full queue", |conn, drops| {
        let handle = conn.handle();
        while handle.try_send(vec![0; 1 << 20]).is_ok() {}
        let sent = handle.try_send(fireworks(drops));
        assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
        handle.abort();
        Ok(())
    }),
    ("queued at an abort", |conn, drops| {
        let handle = conn.handle();
        while handle.stats().queued == 0 {
            handle.send(vec![0; 1 << 20])?;
        }
        handle.send(fireworks(drops))?;
        handle.abort();
        Ok(())
    }),
    ("dropped by a panic", |_, drops| {
        let _chain = fireworks(drops);
        panic!("as asked, too");
    }),
];

#[test]
fn row_076_payloads_that_panic_when_they_are_dropped_together() {
    every(|case| {
        for (what, way) in WAYS {
            let (drops, ends) = (Log::new(), Log::new());
            let (log, ended) = (drops.clone(), ends.clone());
            let server = case.serve_with(
                case.builder().output_limit(4 << 20, OnFull::Error),
                Script::new()
                    .request(move |conn| {
                        if conn.peek(1)? == b"!" {
                            conn.skip(1)?;
                            return way(conn, &log);
                        }
                        echo_frames(conn)
                    })
                    .disconnect(move |_, reason| ended.push(reason)),
            );
            let mut peer = server.connect();
            peer.write_all(b"!").unwrap();
            if what.ends_with("leaves") {
                peer.shutdown_write();
            }
            if !what.starts_with("cut") {
                ends.wait("the end", |ends| ends.len() == 1);
            }
            drops.wait("all payloads are dropped", |drops| drops.len() == 3);
            drop(peer);
            let mut other = server.connect();
            other.ping(what.as_bytes());
            drop(other);
            server.stop();
            assert_eq!((drops.len(), ends.len()), (3, 2), "{what}");
        }
    });
}

#[test]
fn row_076_payloads_that_panic_when_unflushed_output_is_compacted() {
    const LEN: usize = 8192;
    const PARTS: usize = 8;
    every(|case| {
        let drops = Log::new();
        let log = drops.clone();
        let server = case.serve(Script::new().request(move |conn| {
            if conn.peek(1)? != b"!" {
                return echo_frames(conn);
            }
            conn.skip(1)?;
            for _ in 0..PARTS {
                // A small part of a chunk, which the connection copies when it keeps it.
                let mut chunk = LinkBuffer::with_capacity(64 << 10);
                chunk.write_slice(&[1; 60_000]);
                chunk.flush();
                let part = chunk.next_bytes(60_000)?.slice(..LEN);
                conn.write_bytes(Bytes::from_owner(Firework(part, log.clone())))?;
            }
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"!").unwrap();
        // Where chunks lie is an estimate, so some of them may be sent as they are.
        drops.wait("the turn has ended", |drops| !drops.is_empty());
        peer.write_all(&frame(b"more")).unwrap();
        let mut output = vec![0; PARTS * LEN];
        peer.read_exact(&mut output).unwrap();
        assert_eq!(output, [1; PARTS * LEN]);
        assert_eq!(read_frame(&mut peer).unwrap(), b"more");
        drop(peer);
        server.stop();
        assert_eq!(drops.len(), PARTS);
    });
}

/// Throws another one like it when it is dropped, so many times.
struct Thrower(u32, Log<u32>);

impl Drop for Thrower {
    fn drop(&mut self) {
        self.1.push(self.0);
        if self.0 > 0 {
            panic_any(Self(self.0 - 1, self.1.clone()));
        }
    }
}

/// Where a callback panics.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Place {
    Prepare,
    Connect,
    Request,
    Wrote,
    Disconnect,
    CloseCallback,
    Timer,
}

#[test]
fn row_076_what_a_panic_throws_may_throw_when_it_is_dropped() {
    every(|case| {
        for place in [
            Place::Prepare,
            Place::Connect,
            Place::Request,
            Place::Wrote,
            Place::Disconnect,
            Place::CloseCallback,
            Place::Timer,
        ] {
            let (thrown, ends, first) = (Log::new(), Log::new(), Arc::new(AtomicBool::new(true)));
            let at = {
                let (thrown, first) = (thrown.clone(), Arc::clone(&first));
                move |here: Place| {
                    if here == place && first.swap(false, SeqCst) {
                        panic_any(Thrower(3, thrown.clone()));
                    }
                }
            };
            let (prepare, connect, request) = (at.clone(), at.clone(), at.clone());
            let (wrote, disconnect) = (at.clone(), at.clone());
            let ended = ends.clone();
            let server = case.serve(
                Script::new()
                    .prepare(move |conn| {
                        let (close, ended) = (at.clone(), ended.clone());
                        conn.on_close(move |_| close(Place::CloseCallback));
                        conn.on_close(move |_| ended.push(()));
                        prepare(Place::Prepare);
                        let timer = at.clone();
                        conn.handle()
                            .after(Duration::ZERO, move |_| timer(Place::Timer));
                        Ok(())
                    })
                    .connect(move |conn| {
                        connect(Place::Connect);
                        conn.handle().send(frame(b"hello")).map(drop)
                    })
                    .request(move |conn| {
                        request(Place::Request);
                        echo_frames(conn)
                    })
                    .wrote(move |_| wrote(Place::Wrote))
                    .disconnect(move |_, _| disconnect(Place::Disconnect)),
            );
            let mut peer = server.connect();
            let mut hello = [0; 9];
            if place > Place::Connect {
                peer.read_exact(&mut hello).unwrap();
            }
            let _ = peer.write_all(&frame(b"request"));
            if place == Place::Disconnect || place == Place::CloseCallback {
                drop(peer);
            }
            assert_eq!(thrown.wait_len(4), [3, 2, 1, 0], "{place:?}");
            let mut other = server.connect();
            other.read_exact(&mut hello).unwrap();
            other.ping(b"still served");
            drop(other);
            ends.wait_len(if matches!(place, Place::Wrote | Place::Timer) {
                1
            } else {
                2
            });
            let event_loop = server.event_loop.clone();
            drop(event_loop.shutdown_forced(LIMIT));
            assert_eq!(event_loop.stats().panics, 1, "{place:?}");
            assert_eq!(ends.wait_len(2).len(), 2, "{place:?}");
        }
    });
}

/// A handler with states, all of which panic when they are dropped.
struct Fragile(Log<&'static str>);
struct FragileState(Log<&'static str>);

impl Handler for Fragile {
    type State = FragileState;

    fn on_connect(&self, conn: &mut Connection) -> io::Result<FragileState> {
        let state = FragileState(self.0.clone());
        // What it captured is dropped with it, uncalled.
        let watch = FragileState(self.0.clone());
        let watched = conn.on_close(move |_| drop(watch));
        watched.remove();
        Ok(state)
    }

    fn on_request(&self, conn: &mut Connection, _: &mut FragileState) -> io::Result<()> {
        if conn.peek(1)? == b"!" {
            // Two handlers and two states from here on.
            conn.skip(1)?;
            return conn.set_handler(Self(self.0.clone()));
        }
        echo_frames(conn)
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        self.0.push("handler");
        panic!("as asked");
    }
}

impl Drop for FragileState {
    fn drop(&mut self) {
        self.0.push("state");
        panic!("as asked");
    }
}

#[test]
fn row_076_handlers_and_states_that_panic_when_they_are_dropped() {
    every(|case| {
        let drops = Log::new();
        let server = case.serve(Fragile(drops.clone()));
        for round in 1..=2 {
            let mut peer = server.connect();
            peer.ping(b"first");
            peer.write_all(b"!").unwrap();
            peer.ping(b"second");
            drop(peer);
            // Two of what was captured, two states, and the second handler.
            drops.wait_len(5 * round);
        }
        let event_loop = server.event_loop.clone();
        server.stop();
        assert_eq!(event_loop.stats().panics, 10, "{:?}", drops.take());
        drop(event_loop);
        drops.wait("the first handler is dropped", |drops| {
            drops.iter().filter(|drop| **drop == "handler").count() == 3
        });
    });
}

/// An error of a callback's, which panics when it is dropped.
#[derive(Debug)]
struct Failure(Log<()>);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("as asked")
    }
}

impl Error for Failure {}

impl Drop for Failure {
    fn drop(&mut self) {
        self.0.push(());
        panic!("as asked");
    }
}

#[test]
fn row_076_errors_that_panic_when_they_are_dropped() {
    every(|case| {
        for place in [Place::Prepare, Place::Connect, Place::Request] {
            let (drops, ends, first) = (Log::new(), Log::new(), Arc::new(AtomicBool::new(true)));
            let at = {
                let drops = drops.clone();
                move |here: Place| {
                    if here == place && first.swap(false, SeqCst) {
                        return Err(io::Error::other(Failure(drops.clone())));
                    }
                    Ok(())
                }
            };
            let (prepare, connect, request) = (at.clone(), at.clone(), at);
            let ended = ends.clone();
            let server = case.serve(
                Script::new()
                    .prepare(move |conn| {
                        let ended = ended.clone();
                        conn.on_close(move |reason| ended.push(reason));
                        prepare(Place::Prepare)
                    })
                    .connect(move |_| connect(Place::Connect))
                    .request(move |conn| {
                        request(Place::Request)?;
                        echo_frames(conn)
                    }),
            );
            let mut peer = server.connect();
            let _ = peer.write_all(&frame(b"request"));
            peer.expect_gone();
            let reason = match place {
                Place::Prepare => CloseReason::Refused,
                _ => CloseReason::HandlerError,
            };
            assert_eq!(ends.wait_len(1), [reason], "{place:?}");
            assert_eq!(drops.wait_len(1).len(), 1, "{place:?}");
            let mut other = server.connect();
            other.ping(b"still served");
            drop(other);
            ends.wait_len(2);
            let event_loop = server.event_loop.clone();
            server.stop();
            assert_eq!(event_loop.stats().panics, 1, "{place:?}");
        }
    });
}

#[test]
fn row_076_errors_of_last_events_that_panic_when_dropped() {
    every(|case| {
        let (drops, ends) = (Log::new(), Log::new());
        let (dropped, ended) = (drops.clone(), ends.clone());
        let server = case.serve(event_fn(move |_, event| match event {
            ConnectionEvent::Readable | ConnectionEvent::Error(_) => {
                Err(io::Error::other(Failure(dropped.clone())))
            }
            ConnectionEvent::Closed(reason) => {
                ended.push(reason);
                Ok(())
            }
            _ => Ok(()),
        }));
        let mut peer = server.connect();
        peer.write_all(b"!").unwrap();
        peer.expect_gone();
        assert_eq!(ends.wait_len(1), [CloseReason::HandlerError]);
        drops.wait_len(2);
        server.stop();
    });
}

/// Fails at once, and has its closure for errors panic with the error in hand.
#[derive(Clone)]
struct Failing(Log<()>);

impl Decoder for Failing {
    type Frame = ();

    fn decode(&mut self, _: &mut dyn Reader) -> io::Result<Option<()>> {
        Err(io::Error::other(Failure(self.0.clone())))
    }
}

#[test]
fn row_076_a_decoder_s_error_and_its_closure_both_panic() {
    every(|case| {
        let drops = Log::new();
        let handler = framed(Failing(drops.clone()), |_, ()| Ok(()))
            .on_error(|_, error| panic!("as asked: {error}"));
        let server = case.serve(handler);
        for round in 1..=2 {
            let mut peer = server.connect();
            peer.write_all(b"!").unwrap();
            peer.expect_gone();
            drops.wait_len(round);
        }
        server.stop();
    });
}

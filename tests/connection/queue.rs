//! The bounded queue of a connection: what waits, what a close does to it, what `done` says.

use crate::support::{
    Gate, Kind, LIMIT, Log, OpenOnDrop, Peer, Script, Server, asleep_in, bounded, every, giving,
    in_child, on_tcp, outlast, pair, pattern, soon,
};
use netpoll::{Bytes, CloseReason, ConnectionHandle, ConnectionState, Error, LinkBuffer, OnFull};
use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;
const SHORT: Duration = Duration::from_millis(30);
const HOUR: Duration = Duration::from_secs(3600);

/// A server, a peer that reads nothing, and the handle of their connection.
fn stalled(server: &Server, handles: &Log<ConnectionHandle>) -> (Peer, ConnectionHandle) {
    let (peer, handle) = server.connect_given(handles);
    handle.send_bytes(vec![0; MUCH].into()).unwrap();
    assert!(handle.stats().queued > 0, "the socket took all");
    (peer, handle)
}

#[test]
fn send_reports_what_was_accepted() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (mut peer, handle) = server.connect_given(&handles);
        let mut chain = LinkBuffer::new();
        chain.write_slice(b"one ");
        chain.append(LinkBuffer::from(Bytes::from(pattern(7, 10_000))));
        assert_eq!(handle.send(chain).unwrap(), 10_004);
        assert_eq!(handle.send_bytes(Bytes::new()).unwrap(), 0);
        assert_eq!(handle.try_send(Bytes::from_static(b"two")).unwrap(), 3);
        handle.flush().unwrap();
        let stats = handle.stats();
        assert_eq!((stats.bytes_out, stats.queued), (10_007, 0));
        assert_eq!(stats.messages_out, 2, "an empty message is none");
        let mut got = vec![0; 10_007];
        peer.read_exact(&mut got).unwrap();
        assert_eq!((&got[..4], &got[10_004..]), (&b"one "[..], &b"two"[..]));
        drop(peer);
        server.stop();
    });
}

#[test]
fn try_send_never_waits_whoever_else_sends() {
    // Room for one message that several want at the same moment. Whoever waited for it would
    // wait for no time at all, and say so.
    on_tcp(&[Kind::Adaptive], |case| {
        let handles = Log::new();
        let builder = case
            .builder()
            .output_limit(usize::MAX, OnFull::Block)
            .output_messages(1)
            .write_timeout(Duration::from_nanos(1));
        let server = case.serve_with(builder, giving(&handles));
        let (mut peer, handle) = server.connect_given(&handles);
        let done = Arc::new(AtomicUsize::new(0));
        let reading = thread::spawn(move || {
            let mut part = vec![0; 64 << 10];
            while peer.read(&mut part).unwrap() > 0 {}
        });
        let message = Bytes::from(vec![7; 64 << 10]);
        let senders: Vec<_> = (0..8)
            .map(|_| {
                let (handle, message, done) = (handle.clone(), message.clone(), done.clone());
                thread::spawn(move || {
                    // Others fill the queue between a look and the sending.
                    while done.load(SeqCst) < 10_000 {
                        match handle.try_send(message.clone()) {
                            Ok(_) => drop(done.fetch_add(1, SeqCst)),
                            Err(error) => {
                                let why = Error::from_io(&error);
                                assert!(matches!(why, Some(Error::OutputFull { .. })), "{error}");
                                thread::yield_now();
                            }
                        }
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.join().unwrap();
        }
        handle.close();
        reading.join().unwrap();
        server.stop();
    });
}

#[test]
fn each_policy_at_the_limit() {
    // A queue that is full, by bytes and by messages; a message of 100 bytes meets it.
    for (bytes, messages) in [(10_000, usize::MAX), (usize::MAX, 1)] {
        on_tcp(&[Kind::Adaptive, Kind::Inline], move |case| {
            let serve = |policy| {
                let handles = Log::new();
                let builder = case
                    .builder()
                    .output_limit(bytes, policy)
                    .output_messages(messages)
                    .write_timeout(SHORT);
                let server = case.serve_with(builder, giving(&handles));
                let (peer, handle) = stalled(&server, &handles);
                (server, peer, handle)
            };
            let message = || Bytes::from(vec![1; 100]);

            let (server, peer, handle) = serve(OnFull::Error);
            let queued = handle.stats().queued;
            let error = handle.send_bytes(message()).unwrap_err();
            let full = Error::from_io(&error);
            assert!(
                matches!(full, Some(Error::OutputFull { queued, .. }) if queued > 0),
                "{error:?}"
            );
            assert!(error.to_string().contains(&queued.to_string()), "{error}");
            assert!(
                handle.state() <= ConnectionState::Connected,
                "nothing else happened"
            );
            handle.abort();
            drop(peer);
            server.stop();

            let (server, peer, handle) = serve(OnFull::Block);
            let before = Instant::now();
            let error = handle.send_bytes(message()).unwrap_err();
            assert!(matches!(
                Error::from_io(&error),
                Some(Error::WriteTimeout { .. })
            ));
            assert!(before.elapsed() >= SHORT, "{:?}", before.elapsed());
            let error = handle.try_send(message()).unwrap_err();
            assert!(matches!(
                Error::from_io(&error),
                Some(Error::OutputFull { .. })
            ));
            assert!(handle.state() <= ConnectionState::Connected);
            handle.abort();
            drop(peer);
            server.stop();

            let (server, mut peer, handle) = serve(OnFull::Close);
            let error = handle.send_bytes(message()).unwrap_err();
            let closed = Error::Closed(CloseReason::OutputFull);
            assert_eq!(Error::from_io(&error), Some(closed));
            let result = handle.done().wait().unwrap_err();
            assert_eq!(Error::from_io(&result), Some(closed));
            peer.expect_gone();
            server.stop();
        });
    }
}

#[test]
fn flush_waits_for_what_was_queued_before_it() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (mut peer, handle) = stalled(&server, &handles);
        let flushed = Log::new();
        let (flushing, log) = (handle.clone(), flushed.clone());
        let waiting = thread::spawn(move || {
            flushing.flush().unwrap();
            log.push(flushing.stats().bytes_out);
        });
        // Half of it is not enough.
        let mut half = vec![0; MUCH / 2];
        peer.read_exact(&mut half).unwrap();
        assert!(flushed.len() == 0 || handle.stats().bytes_out >= MUCH as u64);
        peer.read_exact(&mut half).unwrap();
        assert!(flushed.wait_len(1)[0] >= MUCH as u64);
        waiting.join().unwrap();
        handle.flush().unwrap();
        drop(peer);
        server.stop();
    });
}

/// How long the slowest of ten blocked threads takes to return after `end`. What that returns is
/// dropped when they have.
fn blocked<T>(
    server: &Server,
    handles: &Log<ConnectionHandle>,
    end: impl Fn(&ConnectionHandle, Peer) -> T,
) -> (Duration, T) {
    let (peer, handle) = stalled(server, handles);
    let threads: Vec<_> = (0..10)
        .map(|i| {
            let handle = handle.clone();
            asleep_in(move || {
                let result = if i % 2 == 0 {
                    handle.send_bytes(vec![1; 100].into()).map(drop)
                } else {
                    handle.flush()
                };
                let error = result.unwrap_err();
                assert!(
                    matches!(Error::from_io(&error), Some(Error::Closed(_))),
                    "{error:?}"
                );
                Instant::now()
            })
        })
        .collect();
    let before = Instant::now();
    let rest = end(&handle, peer);
    let last = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .max()
        .unwrap();
    (last.saturating_duration_since(before), rest)
}

/// When all of them have to be back.
const PROMISED: Duration = Duration::from_millis(100);

#[test]
fn an_abort_returns_every_blocked_producer_and_flusher() {
    every(|case| {
        let handles = Log::new();
        let builder = case.builder().output_limit(10_000, OnFull::Block);
        let server = case.serve_with(builder, giving(&handles));
        soon("abort", 8, PROMISED, || {
            blocked(&server, &handles, |handle, peer| {
                handle.abort();
                drop(peer);
            })
            .0
        });
        server.stop();
    });
}

#[test]
fn a_close_returns_every_blocked_producer_and_flusher() {
    every(|case| {
        let handles = Log::new();
        // What is queued has all the time that a graceful close gives it.
        let builder = case
            .builder()
            .output_limit(10_000, OnFull::Block)
            .linger(LIMIT, MUCH);
        let server = case.serve_with(builder, giving(&handles));
        soon("close", 8, PROMISED, || {
            let (time, mut peer) = blocked(&server, &handles, |handle, peer| {
                handle.close();
                peer
            });
            // It is sent all the same.
            assert_eq!(peer.rest().unwrap().len(), MUCH);
            time
        });
        server.stop();
    });
}

#[test]
fn the_end_of_the_peer_returns_every_blocked_producer_and_flusher() {
    on_tcp(
        &[Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom],
        |case| {
            let handles = Log::new();
            let builder = case.builder().output_limit(10_000, OnFull::Block);
            let server = case.serve_with(builder, giving(&handles));
            soon("reset", 8, PROMISED, || {
                blocked(&server, &handles, |_, peer| peer.reset()).0
            });
            server.stop();
        },
    );
}

#[test]
fn done_has_one_result_for_everybody() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        for how in ["close", "abort", "peer"] {
            let (peer, handle) = server.connect_given(&handles);
            let done = handle.done();
            let early = done.poll();
            assert!(early.is_none(), "{how}: {early:?}, {:?}", handle.stats());
            let before = Instant::now();
            let early = done.wait_timeout(SHORT);
            assert!(early.is_none(), "{how}: {early:?}, {:?}", handle.stats());
            assert!(before.elapsed() >= SHORT);
            let waiting: Vec<_> = (0..3)
                .map(|i| {
                    let done = handle.done();
                    thread::spawn(move || match i {
                        0 => done.wait(),
                        _ => done.wait_timeout(LIMIT).expect("it ends"),
                    })
                })
                .collect();
            match how {
                "close" => (0..3).for_each(|_| handle.close()),
                "abort" => (0..3).for_each(|_| handle.abort()),
                _ => drop(peer),
            }
            // Ok if it was us, the error otherwise; and never another one.
            let expected = (how == "peer").then_some(Error::Closed(CloseReason::Peer));
            let seen = |result: std::io::Result<()>| result.err().map(|e| Error::from_io(&e));
            for waiting in waiting {
                assert_eq!(seen(waiting.join().unwrap()), expected.map(Some));
            }
            handle.abort();
            handle.close();
            for _ in 0..3 {
                assert_eq!(seen(done.poll().expect("it is over")), expected.map(Some));
                assert_eq!(
                    seen(done.wait_timeout(Duration::ZERO).expect("it is over")),
                    expected.map(Some)
                );
            }
            // From here on everything fails.
            for result in [
                handle.send_bytes(Bytes::from_static(b"x")),
                handle.send(LinkBuffer::from(Bytes::from_static(b"x"))),
                handle.try_send(Bytes::from_static(b"x")),
            ] {
                assert!(matches!(
                    Error::from_io(&result.unwrap_err()),
                    Some(Error::Closed(_))
                ));
            }
            assert_eq!(handle.state(), ConnectionState::Disconnected);
            assert!(!handle.is_active());
        }
        server.stop();
    });
}

#[test]
fn after_a_close_an_own_connection_neither_reads_nor_writes() {
    bounded("own", || {
        for abort in [false, true] {
            let (mut conn, mut peer) = pair();
            peer.write_all(b"here already").unwrap();
            conn.fill(5).unwrap();
            let handle = conn.handle();
            let done = handle.done();
            if abort {
                handle.abort();
            } else {
                handle.close();
            }
            assert!(conn.write_slice(b"x").is_err());
            assert!(conn.flush().is_err());
            assert!(conn.fill(100).is_err());
            drop(conn);
            done.wait_timeout(LIMIT).expect("it is over").unwrap();
            assert!(handle.send_bytes(Bytes::from_static(b"x")).is_err());
            drop(peer);
        }
    });
}

#[test]
fn timeouts_change_at_any_time() {
    bounded("timeouts", || {
        let (mut conn, mut peer) = pair();
        let late = |error: std::io::Error| Error::from_io(&error) == Some(Error::ReadTimeout);
        for round in 0..3 {
            // Short, then none, then short again; a call counts from its own start.
            conn.set_read_timeout(Some(SHORT));
            let before = Instant::now();
            assert!(late(conn.fill(1).unwrap_err()));
            assert!(before.elapsed() >= SHORT);
            conn.set_read_timeout(None);
            let reading = asleep_in(move || {
                assert_eq!(conn.next(1).unwrap(), [round]);
                conn
            });
            outlast(SHORT);
            peer.write_all(&[round]).unwrap();
            conn = reading.join().unwrap();
            conn.set_read_timeout(Some(HOUR));
            conn.set_read_deadline(Some(Instant::now()));
            assert!(late(conn.fill(1).unwrap_err()), "the deadline comes first");
            conn.set_read_timeout(Some(SHORT));
            assert!(late(conn.fill(1).unwrap_err()));
        }
        // With output waiting: the timeout of the call that waits counts.
        conn.set_write_timeout(None);
        let writing = asleep_in(move || {
            conn.write_bytes(vec![0; MUCH].into()).unwrap();
            conn.flush().unwrap();
            conn
        });
        outlast(SHORT);
        peer.read_exact(&mut vec![0; MUCH]).unwrap();
        conn = writing.join().unwrap();
        conn.set_write_timeout(Some(SHORT));
        conn.write_bytes(vec![0; MUCH].into()).unwrap();
        let before = Instant::now();
        let error = conn.flush().unwrap_err();
        assert!(matches!(
            Error::from_io(&error),
            Some(Error::WriteTimeout { .. })
        ));
        assert!(before.elapsed() >= SHORT);
        drop(peer);
    });
}

#[test]
fn every_handle_has_a_write_timeout_of_its_own() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let handles = Log::new();
        let builder = case.builder().output_limit(10_000, OnFull::Block);
        let server = case.serve_with(builder.write_timeout(HOUR), giving(&handles));
        let (mut peer, handle) = stalled(&server, &handles);
        let late = |error: std::io::Error| {
            matches!(Error::from_io(&error), Some(Error::WriteTimeout { .. }))
        };
        let hasty = handle.clone().with_write_timeout(Some(SHORT));
        let hastier = hasty.clone().with_write_timeout(Some(SHORT / 3));
        for (handle, timeout) in [(&hasty, SHORT), (&hastier, SHORT / 3)] {
            let before = Instant::now();
            assert!(late(handle.send_bytes(vec![1; 100].into()).unwrap_err()));
            assert!(before.elapsed() >= timeout);
        }
        // The others wait on; nothing of what was refused is sent.
        let patient = handle.clone();
        let sending = asleep_in(move || patient.send_bytes(vec![2; 100].into()).unwrap());
        let endless = hasty.clone().with_write_timeout(None);
        let flushing = asleep_in(move || endless.flush().unwrap());
        outlast(SHORT);
        let mut got = vec![9; MUCH + 100];
        peer.read_exact(&mut got).unwrap();
        assert!(got[..MUCH].iter().all(|byte| *byte == 0));
        assert_eq!(got[MUCH..], [2; 100]);
        assert_eq!(sending.join().unwrap(), 100);
        flushing.join().unwrap();
        // A flush that is given up is a cut, whoever's it was.
        handle.send_bytes(vec![0; MUCH].into()).unwrap();
        assert!(late(hasty.flush().unwrap_err()));
        let error = handle.send_bytes("x".into()).unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::Poisoned));
        handle.abort();
        drop(peer);
        server.stop();
    });
}

#[test]
fn timeouts_change_inside_a_handler() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let seen = Log::new();
        let log = seen.clone();
        let server = case.serve(Script::new().request(move |conn| {
            for timeout in [SHORT, SHORT / 3] {
                conn.set_read_timeout(Some(timeout));
                let before = Instant::now();
                let error = conn.fill(1000).unwrap_err();
                log.push((Error::from_io(&error), before.elapsed() >= timeout));
            }
            conn.set_read_timeout(None);
            let n = conn.available();
            conn.skip(n)
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        for event in seen.wait_len(2) {
            assert_eq!(event, (Some(Error::ReadTimeout), true));
        }
        drop(peer);
        server.stop();
    });
}

/// A payload whose drop waits at a gate: what was sent is dropped before it is counted.
struct Gated(Vec<u8>, Gate);

impl AsRef<[u8]> for Gated {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        self.1.pass();
    }
}

#[test]
fn the_figures_are_final_when_done_says_so() {
    // Alone: a payload in memory where a chunk of another test was looks like a part of it and is copied.
    in_child("the_figures_are_final_when_done_says_so", || {
        every(|case| {
            let (handles, ends) = (Log::new(), Log::new());
            let server = case.serve(giving(&handles));
            let (peer, handle) = server.connect_given(&handles);
            let noted = ends.clone();
            handle.on_close(move |reason| noted.push(reason));
            let gate = Gate::new();
            let _open = OpenOnDrop(gate.clone());
            let payload = Bytes::from_owner(Gated(vec![7; 8192], gate.clone()));
            let other = handle.clone();
            let sending = thread::spawn(move || other.send_bytes(payload));
            // The kernel has it, and not all of it is counted yet.
            gate.wait_arrived(1);
            assert!(handle.stats().bytes_out < 8192);
            handle.abort();
            ends.wait_len(1);
            assert!(handle.done().poll().is_none(), "{:?}", handle.stats());
            let waiting = handle.clone();
            let waiter = thread::spawn(move || {
                waiting.done().wait().unwrap();
                waiting.stats()
            });
            gate.open();
            let stats = waiter.join().unwrap();
            assert_eq!((stats.bytes_out, stats.lost_bytes), (8192, 0));
            assert!(handle.done().poll().is_some());
            let _ = sending.join().unwrap();
            drop(peer);
            server.stop();
        });
    });
}

#[test]
fn what_a_flusher_has_handed_over_is_not_lost() {
    const BODY: usize = 64 << 10;
    // Alone: a payload in memory where a chunk of another test was looks like a part of it and is copied.
    in_child("what_a_flusher_has_handed_over_is_not_lost", || {
        every(|case| {
            let handles = Log::new();
            let builder = case.builder().output_limit(2 * MUCH, OnFull::Error);
            let server = case.serve_with(builder, giving(&handles));
            let (mut peer, handle) = stalled(&server, &handles);
            let gate = Gate::new();
            let _open = OpenOnDrop(gate.clone());
            let payload = Bytes::from_owner(Gated(vec![7; BODY], gate.clone()));
            assert_eq!(handle.send_bytes(payload).unwrap(), BODY);
            let reader = thread::spawn(move || peer.read_to_end(&mut Vec::new()).map(drop));
            gate.wait_arrived(1);
            // Everything is sent; the flusher has yet to say so.
            handle.abort();
            gate.open();
            let _ = handle.done().wait();
            let stats = handle.stats();
            assert_eq!(
                (stats.bytes_out, stats.lost_bytes),
                ((MUCH + BODY) as u64, 0)
            );
            assert_eq!((stats.messages_out, stats.lost_messages), (2, 0));
            let _ = reader.join().unwrap();
            server.stop();
        });
    });
}

//! Bounds: connections, input, output, time.

use crate::support::{
    Case, Gate, Kind, LIMIT, Log, OpenOnDrop, Peer, Script, Server, Transport, asleep_in, bounded,
    echo, echo_frames, eventually, every, every_blocking, frame, giving, let_pass, on_tcp, outlast,
    pair, pattern, read_frame, socket_pair,
};
use netpoll::{Bytes, CloseReason, ConnectionHandle, Dialer, Error, OnFull, handler_fn};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;
const SHORT: Duration = Duration::from_millis(40);

fn reason(error: &io::Error) -> Option<Error> {
    Error::from_io(error)
}

// ------------------------------------------------------------------------------ connections

#[test]
fn more_than_max_connections_wait_outside() {
    every(|case| {
        let most = Arc::new(AtomicUsize::new(0));
        let now = Arc::new(AtomicUsize::new(0));
        let (up, down, top) = (Arc::clone(&now), Arc::clone(&now), Arc::clone(&most));
        let server = case.serve_with(
            case.builder().max_connections(3),
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
        let mut peers: Vec<Peer> = (0..12).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.write_all(&frame(b"mine")).unwrap();
        }
        // They are served in the order they came, as others leave.
        for mut peer in peers {
            assert_eq!(read_frame(&mut peer).unwrap(), b"mine");
            assert!(server.event_loop.stats().active <= 3);
        }
        let event_loop = server.event_loop.clone();
        server.stop();
        assert_eq!(event_loop.stats().accepted, 12);
        assert!(most.load(SeqCst) <= 3, "{} at once", most.load(SeqCst));
    });
}

#[test]
fn refused_connections_do_not_count_against_the_maximum() {
    every(|case| {
        let nth = AtomicUsize::new(0);
        let server = case.serve_with(
            case.builder().max_connections(2),
            Script::new().request(echo_frames).prepare(move |_| {
                if nth.fetch_add(1, SeqCst) % 2 == 0 {
                    return Err(io::Error::other("every second one"));
                }
                Ok(())
            }),
        );
        for _ in 0..10 {
            server.connect().expect_gone();
            server.connect().ping(b"fine");
        }
        let event_loop = server.event_loop.clone();
        server.stop();
        let stats = event_loop.stats();
        assert_eq!((stats.refused, stats.connected, stats.active), (10, 10, 0));
    });
}

#[test]
fn a_maximum_of_no_connections_is_an_error() {
    let error = netpoll::EventLoop::builder()
        .max_connections(0)
        .build(echo())
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    let error = netpoll::EventLoop::builder()
        .pollers(0)
        .build(echo())
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

// ------------------------------------------------------------------------------------ input

#[test]
fn a_blocked_handler_takes_no_more_than_its_share_of_input() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let handles = Log::new();
        let total = Arc::new(AtomicUsize::new(0));
        let (known, sum) = (handles.clone(), Arc::clone(&total));
        let server = case.serve_with(
            case.builder().input_limits(64 << 10, 1 << 20),
            Script::new()
                .connect(move |conn| {
                    known.push(conn.handle());
                    Ok(())
                })
                .request(move |conn| {
                    held.pass();
                    let n = conn.available();
                    conn.skip(n)?;
                    sum.fetch_add(n, SeqCst);
                    Ok(())
                }),
        );
        let mut peer = server.connect();
        let sent = peer.flood(256 << 20);
        assert!(sent < 32 << 20, "{sent} bytes went into the sockets");
        gate.wait_arrived(1);
        let handle: ConnectionHandle = handles.wait_len(1).remove(0);
        let received = handle.stats().bytes_in;
        assert!(received <= (64 << 10) * 2, "{received} bytes were received");
        // And it goes on once the handler does.
        gate.open();
        let body = vec![0; 32 << 20];
        peer.write_all(&body).unwrap();
        drop(peer);
        eventually("every byte", || total.load(SeqCst) == sent + body.len());
        server.stop();
    });
}

#[test]
fn asking_for_more_ends_at_the_input_limit() {
    every(|case| {
        let (errors, most) = (Log::new(), Arc::new(AtomicUsize::new(0)));
        let (log, high) = (errors.clone(), Arc::clone(&most));
        let server = case.serve_with(
            case.builder().input_limits(64 << 10, LIMITED),
            Script::new()
                .request(move |conn| {
                    loop {
                        let here = conn.available();
                        high.fetch_max(here, SeqCst);
                        assert_eq!(conn.peek(here)?.len(), here);
                        match conn.try_fill_more() {
                            Ok(true) => {}
                            Ok(false) => return Ok(()),
                            Err(error) => {
                                log.push(Error::from_io(&error));
                                return Err(error);
                            }
                        }
                    }
                })
                .disconnect(|_, reason| assert_eq!(reason, CloseReason::InputLimit)),
        );
        let mut peer = server.connect();
        // The server stops to receive somewhere.
        let _ = peer.write_all(&vec![0; 2 * LIMITED]);
        let error = errors.wait_len(1).remove(0);
        let Some(Error::InputLimit { wanted, limit }) = error else {
            panic!("{error:?}");
        };
        assert_eq!(limit, LIMITED, "{case:?}");
        // It was not cut before the limit, and hardly behind it.
        assert!(wanted > LIMITED && wanted <= LIMITED + (64 << 10) + 1);
        assert!(most.load(SeqCst) <= LIMITED + (64 << 10));
        drop(peer);
        server.stop();
    });
}

/// An input limit.
const LIMITED: usize = 3 << 20;

#[test]
fn a_handler_that_waits_for_a_whole_message_may_exceed_the_pause_mark() {
    every(|case| {
        let server = case.serve_with(case.builder().input_limits(4096, 4 << 20), echo_large());
        let mut peer = server.connect();
        let body = pattern(1, 3 << 20);
        let mut sender = peer.try_clone();
        let out = frame(&body);
        let sending = thread::spawn(move || sender.write_all(&out));
        assert!(read_frame(&mut peer).unwrap() == body);
        sending.join().unwrap().unwrap();
        drop(peer);
        server.stop();
    });
}

/// Echoes without waiting for the kernel to take it all.
fn echo_large() -> impl netpoll::Handler {
    handler_fn(|conn| {
        while let Some(frame) = crate::support::decode(conn)? {
            conn.append(frame)?;
            conn.try_flush()?;
        }
        Ok(())
    })
}

#[test]
fn a_message_above_the_input_limit_ends_its_connection() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve_with(
            case.builder().input_limits(4096, 10_000),
            Script::new()
                .request(echo_frames)
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut peer = server.connect();
        peer.ping(&[1; 9996]);
        // The largest length there is: nothing may be set aside for it.
        peer.write_all(&[0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3]).unwrap();
        peer.expect_gone();
        assert_eq!(ends.wait_len(1), [CloseReason::InputLimit]);
        let mut peer = server.connect();
        peer.write_all(&frame(&[2; 9997])[..100]).unwrap();
        peer.expect_gone();
        assert_eq!(ends.wait_len(2)[1], CloseReason::InputLimit);
        server.stop();
    });
}

#[test]
fn asking_for_more_than_the_input_limit_is_an_error_at_once() {
    bounded("input limit", || {
        let (mut conn, mut peer) =
            socket_pair(|to| Dialer::new().input_limits(1000, 2000).dial_connection(to));
        peer.write_all(&[3; 10]).unwrap();
        let limit = Some(Error::InputLimit {
            wanted: 2001,
            limit: 2000,
        });
        assert_eq!(reason(&conn.next(2001).unwrap_err()), limit);
        assert_eq!(reason(&conn.try_peek(2001).unwrap_err()), limit);
        assert_eq!(
            conn.fill(usize::MAX).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        // It is the call that failed, not the connection.
        assert_eq!(conn.next(10).unwrap(), [3; 10]);
        peer.write_all(&[4; 2000]).unwrap();
        assert_eq!(conn.next(2000).unwrap(), [4; 2000]);
    });
}

#[test]
fn a_line_above_the_input_limit_is_an_error() {
    bounded("line", || {
        let (mut conn, mut peer) =
            socket_pair(|to| Dialer::new().input_limits(1000, 5000).dial_connection(to));
        let feeding = thread::spawn(move || {
            let _ = peer.write_all(&[b'x'; 100_000]);
            peer
        });
        let error = conn.until(b'\n').unwrap_err();
        assert!(
            matches!(reason(&error), Some(Error::InputLimit { limit: 5000, .. })),
            "{error:?}"
        );
        drop(conn);
        drop(feeding.join().unwrap());
    });
}

#[test]
fn a_handler_that_never_reads_is_cut_at_the_pause_mark() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve_with(
            case.builder().input_limits(64 << 10, 1 << 20),
            Script::new()
                .request(|_| Ok(()))
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut peer = server.connect();
        let mut sent = 0;
        while peer.write(&[0; 4096]).is_ok() {
            sent += 4096;
            assert!(sent < 64 << 20, "{sent} bytes were taken");
        }
        assert_eq!(ends.wait_len(1), [CloseReason::InputLimit]);
        server.stop();
    });
}

// ----------------------------------------------------------------------------------- output

#[test]
fn a_peer_that_does_not_read_makes_send_fail_at_the_limit() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve_with(
            case.builder().output_limit(100_000, OnFull::Error),
            giving(&handles),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        let mut accepted = 0;
        let error = loop {
            match handle.send_bytes(vec![1; 10_000].into()) {
                Ok(n) => accepted += n,
                Err(error) => break error,
            }
            assert!(accepted < 64 << 20, "{accepted} bytes were taken");
            assert!(handle.stats().queued <= 100_000);
        };
        let Some(Error::OutputFull {
            queued,
            limit: 100_000,
        }) = reason(&error)
        else {
            panic!("{error:?}");
        };
        assert!(queued > 90_000 && queued <= 100_000, "{queued}");
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        assert!(handle.is_active());
        // What was accepted arrives, and there is room again.
        let mut got = vec![0; accepted];
        peer.read_exact(&mut got).unwrap();
        handle.flush().unwrap();
        handle.send_bytes(b"more".as_slice().into()).unwrap();
        let mut got = [0; 4];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"more");
        drop(peer);
        server.stop();
    });
}

#[test]
fn the_number_of_queued_messages_is_bounded_too() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve_with(case.builder().output_messages(5), giving(&handles));
        let (peer, handle) = server.connect_given(&handles);
        handle.send_bytes(vec![0; MUCH].into()).unwrap();
        assert!(handle.stats().queued > 0);
        let sent = (0..100)
            .take_while(|_| handle.send_bytes(b"x".as_slice().into()).is_ok())
            .count();
        assert!(sent <= 5, "{sent} messages behind the first");
        handle.abort();
        drop(peer);
        server.stop();
    });
}

#[test]
fn with_block_a_sender_waits_for_room() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve_with(
            case.builder().output_limit(100_000, OnFull::Block),
            giving(&handles),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        let sender = handle.clone();
        let sending = thread::spawn(move || {
            for i in 0..600u32 {
                let mut message = pattern(3, 49_996);
                message.extend_from_slice(&i.to_be_bytes());
                sender.send_bytes(message.into()).unwrap();
                assert!(sender.stats().queued <= 100_000);
            }
        });
        eventually("it waits", || handle.stats().queued > 50_000);
        // A sender that must not wait is told.
        let error = handle.try_send(vec![0; 100_000].as_slice()).unwrap_err();
        assert!(
            matches!(reason(&error), Some(Error::OutputFull { .. })),
            "{error:?}"
        );
        let mut message = vec![0; 50_000];
        for i in 0..600u32 {
            peer.read_exact(&mut message).unwrap();
            assert_eq!(message[49_996..], i.to_be_bytes());
            assert!(message[..49_996] == pattern(3, 49_996));
        }
        sending.join().unwrap();
        drop(peer);
        server.stop();
    });
}

#[test]
fn with_block_and_a_write_timeout_a_sender_gives_up() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve_with(
            case.builder()
                .output_limit(100_000, OnFull::Block)
                .write_timeout(SHORT),
            giving(&handles),
        );
        let (peer, handle) = server.connect_given(&handles);
        let error = loop {
            let before = Instant::now();
            if let Err(error) = handle.send_bytes(vec![0; 50_000].into()) {
                assert!(before.elapsed() >= SHORT, "after {:?}", before.elapsed());
                break error;
            }
        };
        assert!(
            matches!(reason(&error), Some(Error::WriteTimeout { .. })),
            "{error:?}"
        );
        handle.abort();
        drop(peer);
        server.stop();
    });
}

#[test]
fn with_block_an_inline_handler_is_told_that_it_would_wait() {
    on_tcp(&[Kind::Inline], |case| {
        let results = Log::new();
        let log = results.clone();
        let server = case.serve_with(
            case.builder().output_limit(100_000, OnFull::Block),
            Script::new().connect(move |conn| {
                let handle = conn.handle();
                loop {
                    if let Err(error) = handle.send_bytes(vec![0; 50_000].into()) {
                        log.push((error.kind(), reason(&error)));
                        return Ok(());
                    }
                }
            }),
        );
        let peer = server.connect();
        let expected = (io::ErrorKind::Deadlock, Some(Error::WouldDeadlock));
        assert_eq!(results.wait_len(1), [expected]);
        drop(peer);
        server.stop();
    });
}

#[test]
fn with_close_a_peer_that_does_not_read_is_cut_off() {
    every(|case| {
        let handles = Log::new();
        let ends = Log::new();
        let (log, over) = (handles.clone(), ends.clone());
        let server = case.serve_with(
            case.builder().output_limit(100_000, OnFull::Close),
            Script::new()
                .connect(move |conn| {
                    log.push(conn.handle());
                    Ok(())
                })
                .disconnect(move |_, reason| over.push(reason)),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        let error = loop {
            if let Err(error) = handle.send_bytes(vec![0; 10_000].into()) {
                break error;
            }
        };
        assert_eq!(reason(&error), Some(Error::Closed(CloseReason::OutputFull)));
        assert_eq!(ends.wait_len(1), [CloseReason::OutputFull]);
        peer.expect_gone();
        server.stop();
    });
}

#[test]
fn a_single_message_larger_than_the_limit_is_taken_when_nothing_is_queued() {
    every(|case| {
        let server = case.serve_with(
            case.builder().output_limit(1000, OnFull::Error),
            Script::new().connect(|conn| {
                conn.write_bytes(pattern(4, MUCH).into())?;
                conn.try_flush().map(|_| ())
            }),
        );
        let mut peer = server.connect();
        let mut got = vec![0; MUCH];
        peer.read_exact(&mut got).unwrap();
        assert!(got == pattern(4, MUCH));
        drop(peer);
        server.stop();
    });
}

// ------------------------------------------------------------------------------------- time

#[test]
fn a_read_timeout_consumes_nothing_and_is_not_early() {
    every_blocking(|case| {
        let log = Log::new();
        let seen = log.clone();
        let server = case.serve_with(
            case.builder().read_timeout(SHORT),
            handler_fn(move |conn| {
                let before = Instant::now();
                let error = conn.fill(10).unwrap_err();
                seen.push((before.elapsed(), reason(&error), conn.available()));
                conn.skip(conn.available())?;
                conn.write_str("late")?;
                conn.flush()
            }),
        );
        let mut peer = server.connect();
        peer.write_all(b"012").unwrap();
        let mut got = [0; 4];
        peer.read_exact(&mut got).unwrap();
        let (waited, error, available) = log.wait_len(1).remove(0);
        assert!(waited >= SHORT, "after {waited:?}");
        assert_eq!((error, available), (Some(Error::ReadTimeout), 3));
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_handler_that_passes_a_read_timeout_on_ends_its_connection() {
    every_blocking(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve_with(
            case.builder().read_timeout(SHORT),
            Script::new()
                .request(|conn| conn.fill(100))
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut peer = server.connect();
        peer.write_all(b"slow").unwrap();
        peer.expect_gone();
        assert_eq!(ends.wait_len(1), [CloseReason::ReadTimeout]);
        server.stop();
    });
}

#[test]
fn a_clients_read_timeout_and_deadline() {
    bounded("client", || {
        let (mut conn, mut peer) =
            socket_pair(|to| Dialer::new().read_timeout(SHORT).dial_connection(to));
        peer.write_all(b"012").unwrap();
        let before = Instant::now();
        let error = conn.next(4).unwrap_err();
        assert!(before.elapsed() >= SHORT);
        assert_eq!(
            (reason(&error), error.kind()),
            (Some(Error::ReadTimeout), io::ErrorKind::TimedOut)
        );
        assert_eq!(conn.available(), 3);
        // A deadline in the past fails only what has to wait.
        conn.set_read_deadline(Some(Instant::now()));
        assert_eq!(conn.next(3).unwrap(), b"012");
        assert_eq!(reason(&conn.fill(1).unwrap_err()), Some(Error::ReadTimeout));
        // Not even what is there in the kernel is lost to it.
        peer.write_all(b"345").unwrap();
        eventually("the bytes", || conn.fill(3).is_ok());
        assert_eq!(conn.next(3).unwrap(), b"345");
        let deadline = Instant::now() + SHORT;
        conn.set_read_deadline(Some(deadline));
        assert_eq!(reason(&conn.fill(1).unwrap_err()), Some(Error::ReadTimeout));
        assert!(Instant::now() >= deadline);
        // None at all: waits until the bytes come.
        conn.set_read_timeout(None);
        let reading = asleep_in(move || conn.read_u8().unwrap());
        outlast(SHORT);
        peer.write_all(b"6").unwrap();
        assert_eq!(reading.join().unwrap(), b'6');
    });
}

#[test]
fn a_trickle_makes_no_call_wait_longer_than_its_timeout() {
    // A byte now and then, and the end of the line long after the timeout.
    type Call = fn(&mut netpoll::Connection) -> io::Result<()>;
    let calls: [Call; 3] = [
        |conn| conn.until(b'\n').map(drop),
        |conn| conn.read_line(1000).map(drop),
        |conn| netpoll::Reader::until(conn, b'\n').map(drop),
    ];
    for call in calls {
        bounded("trickle", move || {
            let (mut conn, mut peer) = pair();
            conn.set_read_timeout(Some(SHORT));
            let over = Arc::new(AtomicBool::new(false));
            let ended = Arc::clone(&over);
            let feeding = thread::spawn(move || {
                let mut fed = Vec::new();
                while !ended.load(SeqCst) {
                    peer.write_all(b"x").unwrap();
                    fed.push(b'x');
                    let_pass(SHORT / 4);
                }
                peer.write_all(b"\n").unwrap();
                fed.push(b'\n');
                (peer, fed)
            });
            let before = Instant::now();
            let error = call(&mut conn).expect_err("it waited for all of the trickle");
            assert_eq!(reason(&error), Some(Error::ReadTimeout));
            assert!(before.elapsed() >= SHORT);
            over.store(true, SeqCst);
            // What came is there for the next call.
            conn.set_read_timeout(None);
            let (_peer, fed) = feeding.join().unwrap();
            assert_eq!(conn.until(b'\n').unwrap(), fed);
        });
    }
}

#[test]
fn a_read_timeout_that_races_with_the_last_byte_loses_nothing() {
    bounded("race", || {
        let (mut conn, mut peer) = pair();
        for round in 0..500u32 {
            let message = round.to_be_bytes();
            peer.write_all(&message[..3]).unwrap();
            conn.set_read_timeout(Some(Duration::from_micros(200)));
            let (last, mut sender) = (message[3], peer.try_clone());
            let feeding = thread::spawn(move || {
                thread::sleep(Duration::from_micros(u64::from(last) * 2));
                sender.write_all(&[last]).unwrap();
            });
            loop {
                match conn.next(4) {
                    Ok(got) => {
                        assert_eq!(got, message);
                        break;
                    }
                    Err(e) => assert_eq!(reason(&e), Some(Error::ReadTimeout)),
                }
            }
            feeding.join().unwrap();
        }
    });
}

#[test]
fn a_write_timeout_tells_what_was_sent_and_poisons_the_connection() {
    every_blocking(|case| {
        let results = Log::new();
        let log = results.clone();
        let ends = Log::new();
        let over = ends.clone();
        let server = case.serve_with(
            case.builder().write_timeout(SHORT).linger(SHORT, 256 << 10),
            Script::new()
                .connect(move |conn| {
                    conn.write_bytes(vec![1; MUCH].into())?;
                    let before = Instant::now();
                    let error = conn.flush_and_wait().unwrap_err();
                    log.push((before.elapsed(), reason(&error)));
                    // Nothing may follow a cut message.
                    let again = conn
                        .write_slice(b"x")
                        .and_then(|()| conn.flush())
                        .unwrap_err();
                    log.push((SHORT, reason(&again)));
                    let other = conn
                        .handle()
                        .send_bytes(b"x".as_slice().into())
                        .unwrap_err();
                    log.push((SHORT, reason(&other)));
                    Err(error)
                })
                .disconnect(move |_, reason| over.push(reason)),
        );
        let mut peer = server.connect();
        let results = results.wait_len(3);
        assert!(results[0].0 >= SHORT, "after {:?}", results[0].0);
        let Some(Error::WriteTimeout { sent, queued }) = results[0].1 else {
            panic!("{:?}", results[0].1);
        };
        assert_eq!(sent + queued, MUCH as u64);
        assert!(sent > 0 && queued > 0);
        assert_eq!(results[1].1, Some(Error::Poisoned));
        assert_eq!(results[2].1, Some(Error::Poisoned));
        // What the peer gets is what was said, and never a clean end.
        let mut got = Vec::new();
        let end = peer.read_to_end(&mut got);
        assert!(got.len() as u64 <= sent, "{} of {sent}", got.len());
        if case.transport == Transport::Tcp {
            assert_eq!(
                end.expect_err("a reset").kind(),
                io::ErrorKind::ConnectionReset
            );
        }
        server.stop();
        assert_eq!(ends.len(), 0, "on_connect failed");
    });
}

#[test]
fn a_write_deadline_in_the_past_fails_only_what_has_to_wait() {
    bounded("deadline", || {
        let (mut conn, mut peer) = pair();
        conn.set_write_deadline(Some(Instant::now()));
        conn.write_slice(b"fits").unwrap();
        conn.flush().unwrap();
        let mut got = [0; 4];
        peer.read_exact(&mut got).unwrap();
        conn.set_write_deadline(None);
        conn.write_slice(b"fits").unwrap();
        conn.flush().unwrap();
        let deadline = Instant::now() + SHORT;
        conn.set_write_deadline(Some(deadline));
        conn.write_bytes(vec![0; MUCH].into()).unwrap();
        let error = conn.flush().unwrap_err();
        assert!(Instant::now() >= deadline);
        assert!(
            matches!(reason(&error), Some(Error::WriteTimeout { .. })),
            "{error:?}"
        );
    });
}

#[test]
fn an_idle_connection_is_closed_and_not_early() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve_with(
            case.builder().idle_timeout(SHORT * 2),
            Script::new().disconnect(move |_, reason| log.push((Instant::now(), reason))),
        );
        let before = Instant::now();
        let mut peer = server.connect();
        peer.expect_end();
        let (at, reason) = ends.wait_len(1).remove(0);
        assert_eq!(reason, CloseReason::IdleTimeout);
        assert!(at - before >= SHORT * 2, "after {:?}", at - before);
        server.stop();
    });
}

#[test]
fn traffic_keeps_a_connection_from_being_idle() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let timeout = Duration::from_millis(200);
        let server = case.serve_with(
            case.builder().idle_timeout(timeout),
            Script::new()
                .request(echo_frames)
                .disconnect(move |_, r| log.push(r)),
        );
        let mut peer = server.connect();
        let start = Instant::now();
        let mut last = start;
        while start.elapsed() < timeout * 3 {
            if let Err(e) = peer.call(b"busy") {
                // On a machine that stops for so long the connection is rightly closed.
                let silence = last.elapsed();
                assert!(silence >= timeout, "{e} after a silence of {silence:?}");
                break;
            }
            last = Instant::now();
            thread::sleep(Duration::from_millis(5));
        }
        peer.expect_gone();
        assert_eq!(ends.wait_len(1), [CloseReason::IdleTimeout]);
        server.stop();
    });
}

#[test]
fn a_running_handler_is_not_idle() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let server = case.serve_with(
            case.builder().idle_timeout(SHORT),
            handler_fn(move |conn| {
                held.pass();
                echo_frames(conn)
            }),
        );
        let mut peer = server.connect();
        peer.write_all(&frame(b"long")).unwrap();
        gate.wait_arrived(1);
        outlast(SHORT * 2);
        gate.open();
        assert_eq!(read_frame(&mut peer).unwrap(), b"long");
        peer.expect_end();
        server.stop();
    });
}

#[test]
fn input_that_waits_for_a_busy_worker_keeps_its_connection() {
    // The only worker is busy for longer than the idle timeout; the other connection's request
    // came in time and is answered.
    on_tcp(&[Kind::OneWorker], |case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let server = case.serve_with(
            case.builder().idle_timeout(SHORT),
            handler_fn(move |conn| {
                held.pass();
                echo_frames(conn)
            }),
        );
        let mut first = server.connect();
        let mut second = server.connect();
        first.write_all(&frame(b"first")).unwrap();
        second.write_all(&frame(b"second")).unwrap();
        gate.wait_arrived(1);
        outlast(SHORT * 2);
        gate.open();
        assert_eq!(read_frame(&mut first).unwrap(), b"first");
        assert_eq!(read_frame(&mut second).unwrap(), b"second");
        drop((first, second));
        server.stop();
    });
}

#[test]
fn a_handler_sets_its_connections_own_idle_timeout() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let nth = AtomicUsize::new(0);
        let server = case.serve(
            Script::new()
                .connect(move |conn| {
                    // The first one may be idle for ever, the second not.
                    if nth.fetch_add(1, SeqCst) == 1 {
                        conn.set_idle_timeout(Some(SHORT));
                    }
                    Ok(())
                })
                .request(echo_frames)
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut first = server.connect();
        first.ping(b"up");
        let mut second = server.connect();
        second.expect_end();
        assert_eq!(ends.wait_len(1), [CloseReason::IdleTimeout]);
        first.ping(b"still up");
        drop(first);
        server.stop();
    });
}

#[test]
fn a_handler_may_take_the_idle_timeout_away() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let nth = AtomicUsize::new(0);
        let server = case.serve_with(
            case.builder().idle_timeout(SHORT),
            Script::new()
                .connect(move |conn| {
                    if nth.fetch_add(1, SeqCst) == 0 {
                        conn.set_idle_timeout(None);
                    }
                    Ok(())
                })
                .request(echo_frames)
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut first = server.connect();
        let connected = || server.event_loop.stats().connected == 1;
        eventually("the first", connected);
        // Several others come and go by their timeouts meanwhile.
        for round in 1..=3 {
            server.connect().expect_end();
            assert_eq!(ends.wait_len(round), vec![CloseReason::IdleTimeout; round]);
        }
        first.ping(b"still here");
        drop(first);
        server.stop();
    });
}

/// A server that begins with more output than the sockets hold.
fn with_much_output(case: Case, timeout: Duration, ends: &Log<CloseReason>) -> Server {
    let log = ends.clone();
    case.serve_with(
        case.builder().idle_timeout(timeout),
        Script::new()
            .connect(|conn| {
                conn.write_bytes(pattern(5, MUCH).into())?;
                conn.try_flush().map(|_| ())
            })
            .disconnect(move |_, reason| log.push(reason)),
    )
}

#[test]
fn a_peer_that_takes_no_output_is_idle() {
    every(|case| {
        let ends = Log::new();
        let server = with_much_output(case, SHORT, &ends);
        let mut peer = server.connect();
        assert_eq!(ends.wait_len(1), [CloseReason::IdleTimeout]);
        // What it gets is cut, and looks cut.
        peer.expect_gone();
        server.stop();
    });
}

#[test]
fn a_peer_that_reads_slowly_is_not_idle() {
    every(|case| {
        let timeout = Duration::from_millis(250);
        let ends = Log::new();
        let server = with_much_output(case, timeout, &ends);
        let mut peer = server.connect();
        let (start, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
        let (mut got, mut part) = (Vec::new(), vec![0; 128 << 10]);
        while start.elapsed() < timeout * 3 && got.len() < MUCH {
            let read = peer.read(&mut part);
            longest = longest.max(last.elapsed());
            last = Instant::now();
            match read {
                Ok(n) if n > 0 => got.extend_from_slice(&part[..n]),
                other => {
                    // On a machine that stops for so long the connection is rightly closed.
                    assert!(longest >= timeout, "{other:?}, read every {longest:?}");
                    break;
                }
            }
            thread::sleep(Duration::from_millis(10));
        }
        assert!(got == pattern(5, MUCH)[..got.len()]);
        drop(peer);
        server.stop();
    });
}

#[test]
fn messages_for_a_peer_that_takes_none_are_no_activity() {
    every(|case| {
        let (ends, handles) = (Log::new(), Log::new());
        let log = ends.clone();
        let server = case.serve_with(
            case.builder().idle_timeout(SHORT * 5),
            giving(&handles).disconnect(move |_, reason| log.push(reason)),
        );
        let much = Bytes::from(vec![5; MUCH]);
        let (mut peer, handle) = server.connect_given(&handles);
        // On a machine that is slow enough it is idle by now.
        let _ = handle.send_bytes(much);
        while ends.len() == 0 {
            // Refused when the queue is full, and at the end.
            let _ = handle.try_send(vec![1; 100]);
            thread::yield_now();
        }
        assert_eq!(ends.all(), [CloseReason::IdleTimeout]);
        peer.expect_gone();
        server.stop();
    });
}

#[test]
fn a_handler_that_waits_for_its_peer_is_idle() {
    every_blocking(|case| {
        for output in [false, true] {
            let (errors, ends) = (Log::new(), Log::new());
            let (error, log) = (errors.clone(), ends.clone());
            let server = case.serve_with(
                case.builder().idle_timeout(SHORT),
                Script::new()
                    .request(move |conn| {
                        let waited = if output {
                            conn.write_bytes(pattern(5, MUCH).into())?;
                            conn.flush_and_wait()
                        } else {
                            conn.next(10).map(drop)
                        };
                        let failed = waited.unwrap_err();
                        error.push(Error::from_io(&failed));
                        Err(failed)
                    })
                    .disconnect(move |_, reason| log.push(reason)),
            );
            let mut peer = server.connect();
            peer.write_all(b"x").unwrap();
            let idle = Error::Closed(CloseReason::IdleTimeout);
            assert_eq!(errors.wait_len(1), [Some(idle)]);
            assert_eq!(ends.wait_len(1), [CloseReason::IdleTimeout]);
            peer.expect_gone();
            server.stop();
        }
    });
}

#[test]
fn many_idle_connections_are_all_closed() {
    every(|case| {
        let server = case.serve_with(case.builder().idle_timeout(SHORT), echo());
        let mut peers: Vec<Peer> = (0..100).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.expect_end();
        }
        drop(peers);
        let event_loop = &server.event_loop;
        eventually("the end of all", || event_loop.stats().active == 0);
        assert_eq!(event_loop.stats().closed, 100);
        server.stop();
    });
}

#[test]
fn one_case_of_the_matrix_has_the_names_it_says() {
    // The support of all these tests: each dispatch is the one asked for.
    for kind in [
        Kind::Adaptive,
        Kind::Workers,
        Kind::OneWorker,
        Kind::Inline,
        Kind::Custom,
    ] {
        let names = Log::new();
        let log = names.clone();
        let server = Case::new(Transport::Tcp, kind).serve(handler_fn(move |conn| {
            log.push(thread::current().name().unwrap_or_default().to_owned());
            echo_frames(conn)
        }));
        server.connect().ping(b"x");
        let name = names.wait_len(1).remove(0);
        match kind {
            Kind::Workers | Kind::OneWorker => {
                assert!(name.starts_with("netpoll-worker"), "{name}")
            }
            Kind::Custom => assert_eq!(name, "custom-executor"),
            Kind::Adaptive | Kind::Inline => {
                assert!(
                    !name.starts_with("netpoll-worker") && name != "custom-executor",
                    "{name}"
                );
            }
        }
        let _ = LIMIT;
        server.stop();
    }
}

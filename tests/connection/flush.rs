//! What `flush` promises inside of callbacks and outside: no thread waits for a peer that does not read,
//! and an Ok outside means that the kernel has everything.

use crate::support::{
    Gate, Kind, Log, Peer, Script, asleep_in, bounded, eventually, every, every_blocking,
    limited_pair, on_tcp, pattern,
};
use netpoll::{
    Bytes, CloseReason, Connection, Dialer, Error, OnFull, PollerGroup, SocketOptions, handler_fn,
};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

/// Answers each byte of input with the same large piece of memory.
fn large_answers(answer: Bytes) -> impl Fn(&mut Connection) -> io::Result<()> {
    move |conn| {
        while conn.try_next(1)?.is_some() {
            conn.write_bytes(answer.clone())?;
        }
        conn.flush()
    }
}

#[test]
fn peers_that_do_not_read_hold_no_thread() {
    every(|case| {
        // Fewer threads than peers under every dispatch.
        let group = PollerGroup::builder()
            .pollers(1)
            .max_threads(4)
            .build()
            .unwrap();
        let answer = Bytes::from(pattern(1, 8 << 20));
        let server = case.serve_with(
            case.builder().pollers(group.clone()),
            handler_fn({
                let answer = large_answers(answer.clone());
                move |conn| match conn.try_peek(1)? {
                    Some(b"x") => answer(conn),
                    _ => crate::support::echo_frames(conn),
                }
            }),
        );
        let mut mute: Vec<Peer> = (0..100).map(|_| server.connect()).collect();
        for (done, peer) in mute.iter_mut().enumerate() {
            peer.write_all(b"x").unwrap();
            if done % 20 == 0 {
                server.connect().ping(b"others are answered");
            }
        }
        // Each of them has got the begin of its answer: the handler has run for all of them.
        for peer in &mut mute {
            peer.read_exact(&mut [0; 100]).unwrap();
        }
        server.connect().ping(b"and also then");
        assert!(group.stats().workers.peak_threads <= 4);
        // And each of them gets the rest.
        for mut peer in mute.drain(..3) {
            let mut got = vec![0; (8 << 20) - 100];
            peer.read_exact(&mut got).unwrap();
            assert!(got == answer[100..]);
        }
        drop(mute);
        server.stop();
        group.close();
    });
}

#[test]
fn a_connection_with_much_queued_is_not_read() {
    every(|case| {
        let handles = Log::new();
        let given = handles.clone();
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let answer = large_answers(pattern(2, MUCH).into());
        let server = case.serve(
            Script::new()
                .connect(move |conn| {
                    given.push(conn.handle());
                    Ok(())
                })
                .request(move |conn| {
                    count.fetch_add(1, SeqCst);
                    answer(conn)
                }),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        peer.write_all(b"1").unwrap();
        eventually("output is queued", || handle.stats().queued > 0);
        // What comes now is not received: the peer's and the kernel's buffers fill up.
        peer.write_all(b"2").unwrap();
        // Another connection of the same poller is served behind this one's event.
        for _ in 0..3 {
            let (mut other, _handle) = server.connect_given(&handles);
            other.write_all(b"3").unwrap();
            other.read_exact(&mut [0; 100]).unwrap();
        }
        assert_eq!(handle.stats().bytes_in, 1);
        assert_eq!(runs.load(SeqCst), 1 + 3);
        // Read to the end of the first answer, the connection goes on by itself.
        let mut got = vec![0; 2 * MUCH];
        peer.read_exact(&mut got).unwrap();
        assert!(got[..MUCH] == got[MUCH..]);
        assert_eq!(handle.stats().bytes_in, 2);
        drop(peer);
        server.stop();
    });
}

#[test]
fn input_that_was_received_waits_for_the_queue_too() {
    every(|case| {
        let handles = Log::new();
        let given = handles.clone();
        let seen = Log::new();
        let note = seen.clone();
        let answer: Bytes = pattern(3, MUCH).into();
        let server = case.serve(
            Script::new()
                .connect(move |conn| {
                    given.push(conn.handle());
                    Ok(())
                })
                // One message per run, and more of them lie there.
                .request(move |conn| {
                    note.push(conn.handle().stats().queued);
                    conn.skip(1)?;
                    conn.write_bytes(answer.clone())?;
                    conn.flush()
                }),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        peer.write_all(b"123").unwrap();
        eventually("output is queued", || handle.stats().queued > 0);
        let mut got = vec![0; 3 * MUCH];
        peer.read_exact(&mut got).unwrap();
        let queued = seen.wait_len(3);
        assert!(
            queued.iter().all(|&queued| queued <= 64 << 10),
            "{queued:?}"
        );
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_peer_that_never_reads_ends_by_the_write_timeout() {
    every(|case| {
        let ends = Log::new();
        let over = ends.clone();
        let answer = large_answers(pattern(4, MUCH).into());
        let server = case.serve_with(
            case.builder().write_timeout(Duration::from_millis(50)),
            Script::new()
                .request(answer)
                .disconnect(move |_, reason| over.push(reason)),
        );
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        assert_eq!(ends.wait_len(1), [CloseReason::WriteTimeout]);
        peer.expect_gone();
        server.stop();
    });
}

#[test]
fn a_peer_that_reads_slowly_is_not_ended_by_it() {
    every(|case| {
        let ends = Log::new();
        let over = ends.clone();
        let much = 256 << 10;
        let answer = large_answers(pattern(5, much).into());
        let server = case.serve_with(
            case.builder()
                .write_timeout(Duration::from_millis(200))
                .output_limit(1000, OnFull::Error)
                .socket(SocketOptions::new().send_buffer(4096)),
            Script::new()
                .request(answer)
                .disconnect(move |_, reason| over.push(reason)),
        );
        let mut peer = Peer::connect_small(&server.address).unwrap();
        peer.write_all(b"x").unwrap();
        let mut got = Vec::new();
        // The pauses are the load: several times the timeout in all, none of them as long as it.
        while got.len() < much {
            let mut piece = vec![0; 8192.min(much - got.len())];
            peer.read_exact(&mut piece).unwrap();
            got.extend(piece);
            thread::sleep(Duration::from_millis(20));
        }
        assert!(got == pattern(5, much));
        assert!(ends.all().is_empty());
        drop(peer);
        server.stop();
    });
}

#[test]
fn what_does_not_fit_the_limit_waits_for_room() {
    every_blocking(|case| {
        for on_full in [OnFull::Error, OnFull::Block] {
            let results = Log::new();
            let log = results.clone();
            let server = case.serve_with(
                case.builder().output_limit(100_000, on_full),
                Script::new().connect(move |conn| {
                    for i in 0..200 {
                        conn.write_bytes(pattern(i, 90_000).into())?;
                        let flushed = conn.flush();
                        let queued = conn.stats().queued;
                        log.push((flushed.is_ok(), queued));
                        flushed?;
                    }
                    Ok(())
                }),
            );
            let mut peer = server.connect();
            for i in 0..200 {
                let mut got = vec![0; 90_000];
                peer.read_exact(&mut got).unwrap();
                assert!(got == pattern(i, 90_000), "{i}");
            }
            for (ok, queued) in results.wait_len(200) {
                // The low mark of this limit is 25,000: with no more queued one message fits.
                assert!(ok && queued <= 25_000 + 90_000, "{queued}");
            }
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn a_policy_to_close_closes_in_a_callback_too() {
    every(|case| {
        let ends = Log::new();
        let over = ends.clone();
        let server = case.serve_with(
            case.builder().output_limit(100_000, OnFull::Close),
            Script::new()
                .request(|conn| {
                    loop {
                        conn.write_bytes(pattern(1, 90_000).into())?;
                        conn.flush()?;
                    }
                })
                .disconnect(move |_, reason| over.push(reason)),
        );
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        assert_eq!(ends.wait_len(1), [CloseReason::OutputFull]);
        peer.expect_gone();
        server.stop();
    });
}

#[test]
fn try_flush_never_waits_whatever_the_policy() {
    every(|case| {
        let results = Log::new();
        let log = results.clone();
        let server = case.serve_with(
            case.builder().output_limit(100_000, OnFull::Block),
            Script::new().connect(move |conn| {
                let error = loop {
                    conn.write_bytes(pattern(1, 90_000).into())?;
                    if let Err(error) = conn.try_flush() {
                        break error;
                    }
                };
                log.push((Error::from_io(&error), conn.malloc_len()));
                Ok(())
            }),
        );
        let peer = server.connect();
        let results = results.wait_len(1);
        assert!(
            matches!(results[0], (Some(Error::OutputFull { .. }), 90_000)),
            "{results:?}"
        );
        drop(peer);
        server.stop();
    });
}

#[test]
fn try_flush_says_whether_anything_is_queued() {
    bounded("try_flush", || {
        let (mut conn, mut peer) = limited_pair();
        conn.write_bytes(pattern(6, MUCH).into()).unwrap();
        assert!(!conn.try_flush().unwrap());
        // Nothing more was written, and it is still not out.
        assert!(!conn.try_flush().unwrap());
        let mut got = vec![0; MUCH];
        peer.read_exact(&mut got).unwrap();
        eventually("all is out", || conn.try_flush().unwrap());
    });
}

#[test]
fn an_owners_flush_is_never_ok_while_bytes_are_queued() {
    bounded("flush after try_flush", || {
        let (mut conn, mut peer) = limited_pair();
        conn.write_bytes(pattern(7, MUCH).into()).unwrap();
        assert!(!conn.try_flush().unwrap());
        conn.set_write_timeout(Some(Duration::from_millis(20)));
        let error = conn.flush_and_wait().unwrap_err();
        assert!(
            matches!(Error::from_io(&error), Some(Error::WriteTimeout { .. })),
            "{error}"
        );

        // The same with a peer that reads, for a flush and for one with more to write.
        let (mut conn, mut reading) = limited_pair();
        for more in [false, true] {
            conn.write_bytes(pattern(8, MUCH).into()).unwrap();
            assert!(!conn.try_flush().unwrap());
            if more {
                conn.write_slice(b"more").unwrap();
            }
            let flushing = asleep_in(move || {
                conn.flush().unwrap();
                assert_eq!(conn.stats().queued, 0);
                conn
            });
            let mut got = vec![0; MUCH + if more { 4 } else { 0 }];
            reading.read_exact(&mut got).unwrap();
            conn = flushing.join().unwrap();
        }
        drop(peer.read(&mut [0; 1]));
    });
}

#[test]
fn a_shutdown_sends_what_waits_and_answers_what_came() {
    every(|case| {
        let handles = Log::new();
        let given = handles.clone();
        let answer = large_answers(pattern(9, MUCH).into());
        let server = case.serve(
            Script::new()
                .connect(move |conn| {
                    given.push(conn.handle());
                    Ok(())
                })
                .request(answer),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        peer.write_all(b"1").unwrap();
        eventually("output is queued", || handle.stats().queued > 0);
        peer.write_all(b"2").unwrap();
        let event_loop = server.event_loop.clone();
        let ending = thread::spawn(move || event_loop.shutdown(crate::support::LIMIT));
        eventually("the shutdown begins", || {
            server.event_loop.is_shutting_down()
        });
        let got = peer.rest().unwrap();
        assert!(got.len() == 2 * MUCH, "{} bytes", got.len());
        ending.join().unwrap().unwrap();
    });
}

#[test]
fn a_reset_ends_a_connection_whose_output_waits() {
    on_tcp(
        &[Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom],
        |case| {
            let handles = Log::new();
            let given = handles.clone();
            let ends = Log::new();
            let over = ends.clone();
            let server = case.serve(
                Script::new()
                    .connect(move |conn| {
                        given.push(conn.handle());
                        Ok(())
                    })
                    .request(large_answers(pattern(9, MUCH).into()))
                    .disconnect(move |_, reason| over.push(reason)),
            );
            let (mut peer, handle) = server.connect_given(&handles);
            peer.write_all(b"1").unwrap();
            eventually("output is queued", || handle.stats().queued > 0);
            peer.reset();
            assert!(matches!(ends.wait_len(1)[0], CloseReason::Error(_)));
            server.stop();
        },
    );
}

#[test]
fn a_connection_taken_from_its_handler_flushes_and_waits() {
    every_blocking(|case| {
        let gate = Gate::new();
        let results = Log::new();
        let (log, hold) = (results.clone(), gate.clone());
        let server = case.serve(handler_fn(move |conn| {
            conn.skip(conn.available())?;
            let mut own = conn.hijack()?;
            let (log, hold) = (log.clone(), hold.clone());
            thread::spawn(move || {
                hold.pass();
                own.write_bytes(pattern(10, MUCH).into()).unwrap();
                own.flush().unwrap();
                log.push(own.stats().queued);
            });
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        gate.open();
        let mut got = vec![0; MUCH];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(results.wait_len(1), [0]);
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_handler_that_uses_try_flush_is_read_whatever_is_queued() {
    // Both ends queue more than their sockets hold: if neither read, both would wait for ever.
    on_tcp(
        &[Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom],
        |case| {
            let server = case.serve(handler_fn(|conn| {
                let all = conn.slice(conn.available())?;
                conn.append(all)?;
                conn.flush()
            }));
            let received = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&received);
            let handle = Dialer::new()
                .output_limit(2 * MUCH, OnFull::Error)
                .dial_with(
                    server.address.clone(),
                    Script::new()
                        .connect(|conn| {
                            conn.write_bytes(pattern(11, MUCH).into())?;
                            conn.try_flush().map(drop)
                        })
                        .request(move |conn| {
                            count.fetch_add(conn.available(), SeqCst);
                            conn.skip(conn.available())
                        }),
                )
                .unwrap();
            eventually("all came back", || received.load(SeqCst) == MUCH);
            handle.close();
            server.stop();
        },
    );
}

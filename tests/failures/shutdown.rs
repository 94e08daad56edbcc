//! Rows of docs/reliability.md about the end: requests that meet it, and what is called after it.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Server, Transport, bounded, decode, descriptors, echo,
    echo_frames, every, frame, in_child, listener, on_tcp, settled_descriptors, settled_threads,
    threads,
};
use netpoll::{
    CloseReason, Connection, ConnectionHandle, ConnectionState, Error, EventLoop, OnFull,
};
use std::{
    collections::HashSet,
    io::{self, Read, Write},
    sync::{
        Arc, Barrier, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

/// What became of a request that was sent around the time of the shutdown.
#[derive(Debug, PartialEq)]
enum Fate {
    Answered,
    /// An end without a byte: nobody has looked at it.
    Ended,
    /// A reset, or no connection in the first place.
    Refused,
}

fn fire(mut peer: Peer, id: u32) -> Fate {
    let request = frame(&id.to_be_bytes());
    if peer.write_all(&request).is_err() {
        return Fate::Refused;
    }
    let mut reply = Vec::new();
    match peer.read_to_end(&mut reply) {
        Ok(_) if reply.is_empty() => Fate::Ended,
        Ok(_) => {
            assert_eq!(reply, request, "a part of an answer");
            Fate::Answered
        }
        Err(e) => {
            assert_eq!(e.kind(), io::ErrorKind::ConnectionReset, "{e}");
            assert!(reply.is_empty() || reply == request, "a part of an answer");
            if reply.is_empty() {
                Fate::Refused
            } else {
                Fate::Answered
            }
        }
    }
}

#[test]
fn row_105_a_request_that_was_seen_is_answered_whenever_the_shutdown_comes() {
    every(|case| {
        const CLIENTS: u32 = 24;
        let mut fates = [0; 3];
        for round in 0..12_u32 {
            let seen = Arc::new(Mutex::new(HashSet::new()));
            let noted = Arc::clone(&seen);
            let server = case.serve(Script::new().request(move |conn| {
                while let Some(mut frame) = decode(conn)? {
                    let id = u32::from_be_bytes(frame.peek(8)?[4..].try_into().unwrap());
                    noted.lock().unwrap().insert(id);
                    conn.append(frame)?;
                }
                conn.flush()
            }));
            let start = Arc::new(Barrier::new(CLIENTS as usize + 1));
            let clients: Vec<_> = (0..CLIENTS)
                .map(|id| {
                    let peer = server.connect();
                    let start = Arc::clone(&start);
                    thread::spawn(move || {
                        start.wait();
                        for _ in 0..(id * 37 + round * 101) % 997 {
                            std::hint::spin_loop();
                        }
                        (id, fire(peer, id))
                    })
                })
                .collect();
            start.wait();
            server.event_loop.shutdown(LIMIT).unwrap();
            let seen = seen.lock().unwrap();
            for client in clients {
                let (id, fate) = client.join().unwrap();
                if seen.contains(&id) {
                    assert_eq!(fate, Fate::Answered, "request {id} was seen, {case:?}");
                } else {
                    assert_ne!(fate, Fate::Answered);
                }
                fates[fate as usize] += 1;
            }
        }
        println!("{case:?}: answered, ended, refused: {fates:?}");
    });
}

#[test]
fn row_107_a_shutdown_that_meets_a_start() {
    in_child("row_107_a_shutdown_that_meets_a_start", || {
        bounded("start and stop", || {
            let round = |kind: Kind| {
                let case = Case::new(Transport::Tcp, kind);
                let event_loop = case.builder().build(echo()).unwrap();
                let listener = listener(case.transport);
                let address = listener.local_addr().unwrap();
                let start = Barrier::new(4);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        start.wait();
                        // Served to the end, or too late.
                        if let Err(e) = event_loop.serve(listener) {
                            assert_eq!(Error::from_io(&e), Some(Error::ShuttingDown), "{e}");
                        }
                    });
                    scope.spawn(|| {
                        start.wait();
                        if let Ok(mut peer) = Peer::connect(&address) {
                            let _ = peer.write_all(&frame(b"x"));
                            let mut reply = Vec::new();
                            let _ = peer.read_to_end(&mut reply);
                            assert!(reply.is_empty() || reply == frame(b"x"));
                        }
                    });
                    scope.spawn(|| {
                        start.wait();
                        event_loop.stop_accepting();
                    });
                    start.wait();
                    event_loop.shutdown(LIMIT).unwrap();
                });
                assert!(event_loop.is_shutting_down());
                assert_eq!(event_loop.stats().active, 0);
                assert!(Peer::connect(&address).is_err(), "somebody listens");
            };
            for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
                round(kind);
            }
            let (fds, tasks) = (descriptors(), threads());
            for _ in 0..15 {
                for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
                    round(kind);
                }
            }
            settled_descriptors(fds);
            settled_threads(tasks);
        });
    });
}

#[test]
fn row_107_a_shutdown_inside_any_callback_begins_and_does_not_wait() {
    every(|case| {
        for at in [
            "prepare",
            "close callback of a refusal",
            "connect",
            "request",
            "written",
            "disconnect",
            "close callback",
        ] {
            println!("{case:?}: {at}");
            let slot: Arc<OnceLock<EventLoop>> = Arc::default();
            let (results, queues) = (Log::new(), Log::new());
            let queued = queues.clone();
            let stop = {
                let (slot, results) = (Arc::clone(&slot), results.clone());
                move |here: &str| {
                    if here == at {
                        let result = slot.get().unwrap().shutdown(Duration::from_secs(3));
                        results.push(result.map_err(|e| Error::from_io(&e)));
                    }
                }
            };
            let [s1, s2, s3, s4, s5, s6] = [(); 6].map(|()| stop.clone());
            let server = case.serve_with(
                case.builder().output_limit(2 * MUCH, OnFull::Error),
                Script::new()
                    .prepare(move |conn| {
                        s1("prepare");
                        let s6 = s6.clone();
                        let refused = at == "close callback of a refusal";
                        conn.on_close(move |_| s6(if refused { at } else { "close callback" }));
                        if refused {
                            return Err(io::Error::other("refused"));
                        }
                        Ok(())
                    })
                    .connect(move |conn| {
                        s2("connect");
                        if at == "written" {
                            conn.write_bytes(vec![1; MUCH].into())?;
                            queued.push(!conn.try_flush()?);
                        }
                        Ok(())
                    })
                    .request(move |conn| {
                        s3("request");
                        conn.skip(conn.available())
                    })
                    .wrote(move |_| s4("written"))
                    .disconnect(move |_, _| s5("disconnect")),
            );
            assert!(slot.set(server.event_loop.clone()).is_ok());
            let mut peer = server.connect();
            let _ = peer.write_all(b"x");
            if matches!(at, "disconnect" | "close callback") {
                peer.shutdown_write();
            }
            if at == "written" {
                // What goes at once, for a peer that reads all the time, is no completion.
                assert_eq!(queues.wait_len(1), [true]);
            }
            peer.expect_gone();
            assert_eq!(
                results.wait_len(1),
                [Err(Some(Error::WouldDeadlock))],
                "{at}, {case:?}"
            );
            server.event_loop.shutdown(LIMIT).unwrap();
        }
    });
}

#[test]
fn row_106_handlers_that_are_cut_off_get_all_their_callbacks() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let log = Log::new();
        let begun = Log::new();
        let [l1, l2] = [log.clone(), log.clone()];
        let begin = begun.clone();
        let server = case.serve(
            Script::new()
                .prepare(move |conn| {
                    let (log, id) = (l2.clone(), conn.id());
                    conn.on_close(move |reason| log.push((id, "close callback", reason)));
                    Ok(())
                })
                .request(move |conn| {
                    begin.push(());
                    conn.fill(1 << 20)
                })
                .disconnect(move |id, reason| l1.push((id, "disconnect", reason))),
        );
        let mut peers: Vec<Peer> = (0..6).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.write_all(b"half").unwrap();
        }
        begun.wait_len(6);
        let error = server.event_loop.shutdown(Duration::ZERO).unwrap_err();
        assert_eq!(
            Error::from_io(&error),
            Some(Error::ShutdownIncomplete { remaining: 6 })
        );
        assert_eq!(log.len(), 0, "they go on");
        assert_eq!(
            server
                .event_loop
                .shutdown_forced(Duration::from_millis(1))
                .unwrap(),
            6
        );
        // Everything has been called when it returns.
        let all = log.all();
        assert_eq!(all.len(), 12);
        for calls in all.iter().map(|&(id, ..)| id).collect::<HashSet<_>>() {
            let own: Vec<_> = all.iter().filter(|e| e.0 == calls).collect();
            assert_eq!(own[0].1, "disconnect");
            assert_eq!(own[1].1, "close callback");
            assert!(own.iter().all(|e| e.2 == CloseReason::Shutdown));
        }
        for peer in &mut peers {
            peer.expect_gone();
        }
    });
}

/// Every call that a handle has, after its connection's end.
fn all_fail(handle: &ConnectionHandle) {
    assert!(!handle.is_active());
    assert_eq!(handle.state(), ConnectionState::Disconnected);
    let closed = |result: io::Result<()>| {
        let error = Error::from_io(&result.unwrap_err());
        assert!(matches!(error, Some(Error::Closed(_))), "{error:?}");
    };
    closed(handle.send(vec![1; 10]).map(drop));
    closed(handle.send_bytes(vec![1; 10].into()).map(drop));
    closed(handle.try_send(vec![1; 10]).map(drop));
    assert!(handle.done().poll().is_some());
    assert!(handle.done().wait_timeout(Duration::ZERO).is_some());
    let _ = handle.done().wait();
    let _ = handle.stats();
    drop(handle.hold());
    handle.close();
    handle.abort();
    let told = Log::new();
    let log = told.clone();
    handle.on_close(move |_| log.push(()));
    assert_eq!(told.len(), 1, "a late callback is called at once");
}

#[test]
fn row_109_handles_that_outlive_their_loop() {
    every(|case| {
        let handles = Log::new();
        let known = handles.clone();
        let server = case.serve(Script::new().request(echo_frames).connect(move |conn| {
            known.push(conn.handle());
            Ok(())
        }));
        let mut peers: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.ping(b"x");
        }
        let Server { event_loop, .. } = &server;
        let event_loop = event_loop.clone();
        drop(server);
        drop(event_loop);
        for handle in handles.take() {
            all_fail(&handle);
        }
        for peer in &mut peers {
            peer.expect_gone();
        }
    });
}

#[test]
fn row_109_connections_that_were_taken_outlive_their_loop() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let taken: Log<Option<Connection>> = Log::new();
        let log = taken.clone();
        let listener = listener(case.transport);
        let address = listener.local_addr().unwrap();
        let event_loop = case
            .builder()
            .build(Script::new().request(move |conn| {
                log.push(Some(conn.hijack()?));
                Ok(())
            }))
            .unwrap();
        event_loop.serve_in_background(listener).unwrap();
        let mut peer = Peer::connect(&address).unwrap();
        peer.write_all(b"take me").unwrap();
        crate::support::eventually("it is taken", || taken.len() == 1);
        let mut conn = taken.take().remove(0).unwrap();
        // It waits for those that it gave away.
        let dropping = thread::spawn(move || drop(event_loop));
        // The loop's end is the connection's: what came before can still be read, nothing else.
        let handle = conn.handle();
        crate::support::eventually("the news", || !handle.is_active());
        assert!(conn.write_slice(b"x").is_err() || conn.flush().is_err());
        assert!(conn.fill(1000).is_err());
        drop(conn);
        dropping.join().unwrap();
        assert!(handle.done().wait_timeout(LIMIT).is_some());
        all_fail(&handle);
        peer.expect_gone();
    });
}

#[test]
fn row_109_a_loop_that_is_dropped_in_any_callback() {
    type Slot = Arc<Mutex<Option<EventLoop>>>;
    every(|case| {
        for at in [
            "prepare",
            "connect",
            "request",
            "disconnect",
            "close callback",
        ] {
            println!("{case:?}: {at}");
            let slot: Slot = Arc::default();
            let drops = Arc::new(AtomicUsize::new(0));
            let let_go = {
                let (slot, drops) = (Arc::clone(&slot), Arc::clone(&drops));
                move |here: &str| {
                    if here == at {
                        let own = slot.lock().unwrap().take();
                        drops.fetch_add(usize::from(own.is_some()), SeqCst);
                        drop(own);
                    }
                }
            };
            let [d1, d2, d3, d4, d5] = [(); 5].map(|()| let_go.clone());
            let ended = Log::new();
            let log = ended.clone();
            let event_loop = case
                .builder()
                .build(
                    Script::new()
                        .prepare(move |conn| {
                            let (d5, log) = (d5.clone(), log.clone());
                            conn.on_close(move |_| {
                                d5("close callback");
                                log.push(());
                            });
                            d1("prepare");
                            Ok(())
                        })
                        .connect(move |_| {
                            d2("connect");
                            Ok(())
                        })
                        .request(move |conn| {
                            d3("request");
                            echo_frames(conn)
                        })
                        .disconnect(move |_, _| d4("disconnect")),
                )
                .unwrap();
            let listener = listener(case.transport);
            let address = listener.local_addr().unwrap();
            *slot.lock().unwrap() = Some(event_loop.clone());
            event_loop.serve_in_background(listener).unwrap();
            // The callback drops the last one.
            drop(event_loop);
            let mut peer = Peer::connect(&address).unwrap();
            let _ = peer.write_all(&frame(b"x"));
            if matches!(at, "disconnect" | "close callback") {
                peer.shutdown_write();
            }
            peer.expect_gone();
            ended.wait_len(1);
            assert_eq!(drops.load(SeqCst), 1, "{at}, {case:?}");
        }
    });
}

//! Servers: echo, conversations, many connections, many listeners.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Server, Transport, bounded, decode, echo, echo_frames,
    eventually, every, every_blocking, frame, giving, loopback, pattern, read_frame,
};
use netpoll::{
    Address, CloseReason, Connection, ConnectionState, Dialer, EventLoop, Handler, Listener,
    OnFull, handler_fn,
};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

#[test]
fn echoes_frames_of_every_size() {
    every(|case| {
        let server = case.serve(echo());
        let mut peer = server.connect();
        for (seed, len) in [
            0, 1, 3, 63, 64, 511, 512, 4095, 4096, 16_384, 65_532, 65_536,
        ]
        .into_iter()
        .enumerate()
        {
            peer.ping(&pattern(seed as u64, len));
        }
        drop(peer);
        server.stop();
    });
}

#[test]
fn echoes_a_frame_larger_than_every_buffer() {
    every(|case| {
        // Inline handlers must not wait: they leave what does not fit to the poller.
        let server = case.serve(handler_fn(|conn| {
            while let Some(frame) = decode(conn)? {
                conn.append(frame)?;
                conn.try_flush()?;
            }
            Ok(())
        }));
        let body = pattern(7, 5 << 20);
        let mut peer = server.connect();
        let mut sender = peer.try_clone();
        let out = frame(&body);
        let sending = thread::spawn(move || sender.write_all(&out));
        let back = read_frame(&mut peer).unwrap();
        sending.join().unwrap().unwrap();
        assert!(back == body, "the echo differs");
        drop(peer);
        server.stop();
    });
}

#[test]
fn answers_pipelined_frames_in_order() {
    every(|case| {
        let server = case.serve(echo());
        let mut peer = server.connect();
        let mut out = Vec::new();
        for i in 0..1000u32 {
            out.extend_from_slice(&frame(&i.to_be_bytes()));
        }
        let mut sender = peer.try_clone();
        let sending = thread::spawn(move || sender.write_all(&out));
        for i in 0..1000u32 {
            assert_eq!(read_frame(&mut peer).unwrap(), i.to_be_bytes());
        }
        sending.join().unwrap().unwrap();
        drop(peer);
        server.stop();
    });
}

#[test]
fn sees_the_same_frames_however_the_bytes_are_cut() {
    every(|case| {
        let server = case.serve(echo());
        let mut peer = server.connect();
        let out = [frame(b"one"), frame(b""), frame(&pattern(1, 40))].concat();
        for cut in 1..out.len() {
            peer.write_all(&out[..cut]).unwrap();
            peer.write_all(&out[cut..]).unwrap();
            assert_eq!(read_frame(&mut peer).unwrap(), b"one");
            assert_eq!(read_frame(&mut peer).unwrap(), b"");
            assert_eq!(read_frame(&mut peer).unwrap(), pattern(1, 40));
        }
        for byte in &out {
            peer.write_all(std::slice::from_ref(byte)).unwrap();
        }
        assert_eq!(read_frame(&mut peer).unwrap(), b"one");
        assert_eq!(read_frame(&mut peer).unwrap(), b"");
        assert_eq!(read_frame(&mut peer).unwrap(), pattern(1, 40));
        drop(peer);
        server.stop();
    });
}

#[test]
fn the_librarys_own_client_gets_echoes() {
    every(|case| {
        let server = case.serve(echo());
        let mut conn = server.dial();
        for len in [0, 1, 100, 4096, 100_000] {
            let out = frame(&pattern(3, len));
            conn.write_slice(&out).unwrap();
            conn.flush().unwrap();
            assert!(
                conn.next(out.len()).unwrap() == out,
                "the echo of {len} bytes differs"
            );
        }
        assert!(conn.is_active());
        conn.close().unwrap();
        server.stop();
    });
}

#[test]
fn many_small_writes_arrive_in_full() {
    every(|case| {
        let total = Arc::new(AtomicUsize::new(0));
        let sum = Arc::clone(&total);
        let server = case.serve(handler_fn(move |conn| {
            let n = conn.available();
            conn.skip(n)?;
            sum.fetch_add(n, SeqCst);
            Ok(())
        }));
        let mut conn = server.dial();
        for _ in 0..10_000 {
            conn.write_slice(&[7; 256]).unwrap();
            conn.flush().unwrap();
        }
        eventually("all bytes", || total.load(SeqCst) >= 2_560_000);
        conn.close().unwrap();
        server.stop();
        assert_eq!(total.load(SeqCst), 2_560_000);
    });
}

#[test]
fn greets_from_on_connect_before_any_request() {
    every(|case| {
        let server = case.serve(
            Script::new()
                .connect(|conn| {
                    conn.write_str("hello")?;
                    conn.flush()
                })
                .request(echo_frames),
        );
        let mut peer = server.connect();
        let mut hello = [0; 5];
        peer.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
        peer.ping(b"after it");
        let mut conn = server.dial();
        assert_eq!(conn.read_string(5).unwrap(), "hello");
        drop((peer, conn));
        server.stop();
    });
}

#[test]
fn on_connect_may_hold_a_whole_conversation() {
    every_blocking(|case| {
        let rounds = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&rounds);
        let server = case.serve(Script::new().connect(move |conn| {
            loop {
                match conn.next(4) {
                    Ok(ping) => assert_eq!(ping, b"ping"),
                    Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                    Err(e) => return Err(e),
                }
                conn.write_str("pong")?;
                conn.flush()?;
                count.fetch_add(1, SeqCst);
            }
        }));
        let mut peer = server.connect();
        for _ in 0..1024 {
            peer.write_all(b"ping").unwrap();
            let mut pong = [0; 4];
            peer.read_exact(&mut pong).unwrap();
            assert_eq!(&pong, b"pong");
        }
        drop(peer);
        server.stop();
        assert_eq!(rounds.load(SeqCst), 1024);
    });
}

#[test]
fn a_request_may_wait_for_the_rest_of_its_message() {
    every_blocking(|case| {
        let server = case.serve(handler_fn(|conn| {
            let head = conn.next(4)?;
            let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let body = conn.next_bytes(len)?;
            conn.write_slice(&u32::try_from(len).unwrap().to_be_bytes())?;
            conn.write_bytes(body)?;
            conn.flush()
        }));
        let mut peer = server.connect();
        let out = frame(&pattern(9, 300));
        for cut in [1, 3, 4, 5, 100, 303] {
            peer.write_all(&out[..cut]).unwrap();
            // Another connection is served meanwhile, unless the only worker waits for ours.
            if case.kind != Kind::OneWorker {
                server.connect().ping(b"meanwhile");
            }
            peer.write_all(&out[cut..]).unwrap();
            assert_eq!(read_frame(&mut peer).unwrap(), pattern(9, 300));
        }
        drop(peer);
        server.stop();
    });
}

#[test]
fn keeps_a_state_for_each_connection() {
    struct Counter;
    impl Handler for Counter {
        type State = u32;
        fn on_connect(&self, _: &mut Connection) -> io::Result<u32> {
            Ok(0)
        }
        fn on_request(&self, conn: &mut Connection, count: &mut u32) -> io::Result<()> {
            while decode(conn)?.is_some() {
                *count += 1;
                conn.write_slice(&frame(&count.to_be_bytes()))?;
            }
            conn.flush()
        }
    }
    every(|case| {
        let server = case.serve(Counter);
        let mut peers: Vec<Peer> = (0..8).map(|_| server.connect()).collect();
        for round in 1..20u32 {
            for peer in &mut peers {
                assert_eq!(peer.call(b"next").unwrap(), round.to_be_bytes());
            }
        }
        drop(peers);
        server.stop();
    });
}

#[test]
fn an_error_of_the_handler_closes_its_connection_only() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve(
            Script::new()
                .request(|conn| {
                    while let Some(mut frame) = decode(conn)? {
                        if frame.peek(8)?[4..] == *b"fail" {
                            return Err(io::Error::other("as asked"));
                        }
                        conn.append(frame)?;
                    }
                    conn.flush()
                })
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut other = server.connect();
        other.ping(b"before");
        let mut peer = server.connect();
        peer.ping(b"fine");
        peer.write_all(&frame(b"fail")).unwrap();
        peer.expect_end();
        assert_eq!(ends.wait_len(1), [CloseReason::HandlerError]);
        other.ping(b"after");
        drop((peer, other));
        server.stop();
    });
}

#[test]
fn what_was_flushed_before_a_handlers_error_arrives() {
    every(|case| {
        let server = case.serve(handler_fn(|conn| {
            conn.skip(conn.available())?;
            conn.write_str("last words")?;
            conn.flush()?;
            Err(io::Error::other("the end"))
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        assert_eq!(peer.rest().unwrap(), b"last words");
        server.stop();
    });
}

#[test]
fn short_connections_lose_nothing() {
    every(|case| {
        let total = Arc::new(AtomicUsize::new(0));
        let sum = Arc::clone(&total);
        let server = Arc::new(case.serve(handler_fn(move |conn| {
            let n = conn.available();
            conn.skip(n)?;
            sum.fetch_add(n, SeqCst);
            Ok(())
        })));
        let clients: Vec<_> = (0..100)
            .map(|_| {
                let server = Arc::clone(&server);
                thread::spawn(move || {
                    let mut conn = server.dial();
                    conn.write_slice(&[1; 1024]).unwrap();
                    conn.flush().unwrap();
                    conn.close().unwrap();
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        eventually("all bytes", || total.load(SeqCst) == 102_400);
        let stats = server.event_loop.stats();
        assert_eq!(stats.accepted, 100);
    });
}

#[test]
fn every_byte_of_a_client_that_writes_and_closes_is_seen() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let total = Arc::new(AtomicUsize::new(0));
        let sum = Arc::clone(&total);
        let server = case.serve(
            Script::new()
                .request(move |conn| {
                    let n = conn.available();
                    conn.skip(n)?;
                    sum.fetch_add(n, SeqCst);
                    Ok(())
                })
                .disconnect(move |_, reason| log.push(reason)),
        );
        for len in [1, 5000, 70_000, 1 << 20, 3 << 20] {
            let before = total.load(SeqCst);
            let mut peer = server.connect();
            peer.write_all(&vec![1; len]).unwrap();
            drop(peer);
            // The callback of the end comes behind the last byte.
            let ended = ends.wait_len(1);
            ends.take();
            assert_eq!(ended, [CloseReason::Peer]);
            assert_eq!(total.load(SeqCst) - before, len);
        }
        server.stop();
    });
}

#[test]
fn many_connections_at_once_are_all_served() {
    every(|case| {
        let server = case.serve(echo());
        let mut peers: Vec<Peer> = (0..200).map(|_| server.connect()).collect();
        for round in 0..3u8 {
            for (i, peer) in peers.iter_mut().enumerate() {
                peer.write_all(&frame(&[round, i as u8])).unwrap();
            }
            for (i, peer) in peers.iter_mut().enumerate() {
                assert_eq!(read_frame(peer).unwrap(), [round, i as u8]);
            }
        }
        assert_eq!(server.event_loop.stats().active, 200);
        drop(peers);
        server.stop();
    });
}

#[test]
fn one_loop_serves_several_listeners_with_several_pollers() {
    bounded("listeners", || {
        let event_loop = EventLoop::builder().pollers(3).build(echo()).unwrap();
        let tcp = Server::serve(Transport::Tcp, event_loop.clone());
        let unix = Server::serve(Transport::Unix, event_loop.clone());
        let background = Listener::bind((loopback(), 0)).unwrap();
        let address = background.local_addr().unwrap();
        event_loop.serve_in_background(background).unwrap();
        let mut peers = Vec::new();
        for _ in 0..10 {
            peers.push(tcp.connect());
            peers.push(unix.connect());
            peers.push(Peer::connect(&address).unwrap());
        }
        for peer in &mut peers {
            peer.ping(b"to any of them");
        }
        assert_eq!(event_loop.stats().active, 30);
        drop(peers);
        event_loop.shutdown(LIMIT).unwrap();
        assert!(Peer::connect(&address).is_err(), "nobody listens any more");
    });
}

#[test]
fn a_handler_set_in_on_connect_sees_the_first_request() {
    every(|case| {
        let old = Arc::new(AtomicUsize::new(0));
        let calls = Arc::clone(&old);
        let server = case.serve(
            Script::new()
                .connect(|conn| conn.set_handler(echo()))
                .request(move |_| {
                    calls.fetch_add(1, SeqCst);
                    Ok(())
                }),
        );
        let mut peer = server.connect();
        peer.ping(b"first");
        peer.ping(b"second");
        drop(peer);
        server.stop();
        assert_eq!(old.load(SeqCst), 0, "calls of the replaced handler");
    });
}

#[test]
fn a_handler_set_in_on_request_sees_what_is_left() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve(
            Script::new()
                .request(|conn| {
                    let Some(first) = conn.try_next(7)? else {
                        return Ok(());
                    };
                    assert_eq!(first, b"UPGRADE");
                    conn.set_handler(echo())
                })
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut peer = server.connect();
        // The frame is in the buffer when the handler is replaced.
        peer.write_all(&[b"UPGRADE".as_slice(), &frame(b"left over")].concat())
            .unwrap();
        assert_eq!(read_frame(&mut peer).unwrap(), b"left over");
        peer.ping(b"more");
        drop(peer);
        assert_eq!(
            ends.wait_len(1),
            [CloseReason::Peer],
            "the first handler hears of the end"
        );
        server.stop();
    });
}

#[test]
fn set_handler_outside_of_a_callback_is_an_error() {
    let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
    let mut conn = server.dial();
    let error = conn.set_handler(echo()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
}

#[test]
fn a_connection_knows_its_ends_and_its_state() {
    every(|case| {
        let log = Log::new();
        let seen = log.clone();
        let server = case.serve(
            Script::new()
                .prepare(|conn| {
                    assert_eq!(conn.state(), ConnectionState::Connecting);
                    Ok(())
                })
                .connect(|conn| {
                    assert_eq!(conn.state(), ConnectionState::Connecting);
                    assert!(conn.is_active());
                    Ok(())
                })
                .request(move |conn| {
                    assert_eq!(conn.state(), ConnectionState::Connected);
                    seen.push((conn.local_addr()?, conn.peer_addr().clone()));
                    echo_frames(conn)
                }),
        );
        let mut conn = server.dial();
        assert_eq!(conn.peer_addr(), &server.address);
        assert_eq!(conn.state(), ConnectionState::Connected);
        conn.write_slice(&frame(b"x")).unwrap();
        conn.flush().unwrap();
        conn.skip(5).unwrap();
        let (local, peer) = log.wait_len(1).remove(0);
        assert_eq!(local, server.address);
        match case.transport {
            Transport::Tcp => assert_eq!(peer, conn.local_addr().unwrap()),
            Transport::Unix => assert_eq!(peer, Address::Unnamed),
        }
        conn.close().unwrap();
        server.stop();
    });
}

#[test]
fn a_connection_counts_what_it_moved() {
    every(|case| {
        let log = Log::new();
        let seen = log.clone();
        let server = case.serve(handler_fn(move |conn| {
            echo_frames(conn)?;
            seen.push(conn.stats());
            Ok(())
        }));
        let mut peer = server.connect();
        peer.ping(&[1; 96]);
        peer.ping(&[2; 196]);
        let stats = log.wait("the second", |all| all.iter().any(|s| s.bytes_out >= 300));
        let last = stats.last().unwrap();
        assert_eq!((last.bytes_in, last.bytes_out), (300, 300));
        assert_eq!((last.queued, last.lost_bytes, last.messages_out), (0, 0, 2));
        drop(peer);
        server.stop();
    });
}

#[test]
fn the_loop_counts_its_connections() {
    every(|case| {
        let server = case.serve(echo());
        let mut peers: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.ping(b"x");
        }
        let stats = server.event_loop.stats();
        assert_eq!((stats.active, stats.accepted, stats.connected), (5, 5, 5));
        assert_eq!((stats.closed, stats.disconnected, stats.panics), (0, 0, 0));
        drop(peers);
        let event_loop = server.event_loop.clone();
        eventually("the ends", || event_loop.stats().closed == 5);
        server.stop();
        let stats = event_loop.stats();
        assert_eq!((stats.active, stats.disconnected, stats.refused), (0, 5, 0));
    });
}

#[test]
fn other_threads_push_through_a_handle() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (mut peer, handle) = server.connect_given(&handles);
        for i in 0..100u32 {
            handle.send_bytes(frame(&i.to_be_bytes()).into()).unwrap();
        }
        for i in 0..100u32 {
            assert_eq!(read_frame(&mut peer).unwrap(), i.to_be_bytes());
        }
        handle.flush().unwrap();
        drop(peer);
        server.stop();
    });
}

#[test]
fn both_sides_may_talk_at_once() {
    // Client and server push 8 MiB at each other before either reads: nobody waits for ever.
    every_blocking(|case| {
        const TOTAL: usize = 8 << 20;
        let server = case.serve(Script::new().connect(|conn| {
            let handle = conn.handle();
            let (mut reader, mut writer) = conn.split();
            thread::scope(|scope| {
                let writing = scope.spawn(move || {
                    for chunk in pattern(1, TOTAL).chunks(64 << 10) {
                        writer.write_slice(chunk)?;
                        writer.flush()?;
                    }
                    io::Result::Ok(())
                });
                let mut got = Vec::new();
                while got.len() < TOTAL {
                    let mut part = [0; 64 << 10];
                    let n = reader.read(&mut part)?;
                    assert!(n > 0, "the end after {} bytes", got.len());
                    got.extend_from_slice(&part[..n]);
                }
                assert!(got == pattern(2, TOTAL), "the server's input differs");
                writing.join().unwrap()?;
                assert!(handle.is_active());
                io::Result::Ok(())
            })
        }));
        let (mut reader, mut writer) = server.dial().into_split();
        let writing = thread::spawn(move || {
            for chunk in pattern(2, TOTAL).chunks(64 << 10) {
                writer.write_slice(chunk).unwrap();
                writer.flush().unwrap();
            }
            writer
        });
        let mut got = vec![0; TOTAL];
        reader.read_exact(&mut got).unwrap();
        assert!(got == pattern(1, TOTAL), "the client's input differs");
        drop(writing.join().unwrap());
        drop(reader);
        server.stop();
    });
}

#[test]
fn a_client_with_a_handler_answers_its_server() {
    every(|case| {
        // The server opens with a question and closes when it has the answer.
        let answers = Log::new();
        let log = answers.clone();
        let server = case.serve(
            Script::new()
                .connect(|conn| {
                    conn.write_str("ping")?;
                    conn.flush()
                })
                .request(move |conn| {
                    let Some(answer) = conn.try_next(4)? else {
                        return Ok(());
                    };
                    log.push(answer.to_vec());
                    conn.handle().close();
                    Ok(())
                }),
        );
        let closed = Log::new();
        let ids = AtomicU64::new(0);
        for _ in 0..10 {
            let log = closed.clone();
            let handle = Dialer::new()
                .dispatch(case.kind.dispatch())
                .dial_with(
                    server.address.clone(),
                    handler_fn(|conn| {
                        let Some(question) = conn.try_next(4)? else {
                            return Ok(());
                        };
                        assert_eq!(question, b"ping");
                        conn.write_str("pong")?;
                        conn.flush()
                    }),
                )
                .unwrap();
            let id = ids.fetch_add(1, SeqCst);
            handle.on_close(move |reason| log.push((id, reason)));
        }
        let mut ends = closed.wait_len(10);
        ends.sort_by_key(|&(id, _)| id);
        let expected: Vec<_> = (0..10).map(|id| (id, CloseReason::Peer)).collect();
        assert_eq!(ends, expected);
        assert!(answers.wait_len(10).iter().all(|answer| answer == b"pong"));
        server.stop();
    });
}

#[test]
fn the_live_connections_of_a_loop_are_listed() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        assert!(server.event_loop.connections().is_empty());
        let mut peers: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
        let mut known: Vec<u64> = handles.wait_len(5).iter().map(|conn| conn.id()).collect();
        known.sort_unstable();
        let listed = || {
            let mut ids: Vec<u64> = server
                .event_loop
                .connections()
                .iter()
                .map(|conn| conn.id())
                .collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!(listed(), known);
        // One that is over is not, also while it lingers.
        let gone = handles.take().swap_remove(2);
        gone.close();
        gone.done().wait().unwrap();
        known.retain(|&id| id != gone.id());
        assert_eq!(listed(), known);
        // What is listed is of use.
        for conn in server.event_loop.connections() {
            conn.send_bytes("to all".into()).unwrap();
            conn.close();
        }
        let got = peers.iter_mut().filter(|peer| {
            let all = peer.try_clone().rest().unwrap();
            all == b"to all"
        });
        assert_eq!(got.count(), 4);
        server.stop();
    });
}

#[test]
fn a_broadcast_reaches_every_connection_that_can_take_it() {
    every(|case| {
        let handles = Log::new();
        let builder = case.builder().output_limit(64 << 20, OnFull::Block);
        let server = case.serve_with(builder.output_messages(1), giving(&handles));
        assert_eq!(server.event_loop.broadcast("without a peer".into()), 0);
        let mut peers: Vec<Peer> = (0..6).map(|_| server.connect()).collect();
        let connected = || server.event_loop.stats().connected == 6;
        eventually("all have connected", connected);
        // One does not read: its queue is full, and no broadcast waits for it.
        let full = handles.wait_len(6).remove(0);
        full.try_send(vec![0; 24 << 20]).unwrap();
        let message = pattern(3, 10_000);
        assert_eq!(server.event_loop.broadcast(message.clone().into()), 5);
        let mut told = 0;
        for peer in &mut peers {
            let mut got = vec![0; message.len()];
            peer.read_exact(&mut got).unwrap();
            told += usize::from(got == message);
        }
        assert_eq!(told, 5);
        full.abort();
        drop(peers);
        server.stop();
    });
}

//! Rows 36 to 54 of the fault matrix (`docs/reliability.md`): output.
//!
//! A plan of faults is for the whole process, so the tests take turns.

use crate::support::{
    Kind, LIMIT, Log, Peer, Script, bounded, echo_frames, eventually, every, frame, giving,
    in_child, let_pass, on_tcp, pair, pattern,
};
use netpoll::{
    Bytes, CloseReason, Connection, ConnectionHandle, Dialer, Error, LinkBuffer, PollerGroup,
    SocketOptions,
    fault::{Call, Fault, Plan},
    relay,
};
use std::{
    io::{self, IoSlice, Read, Write},
    thread,
    time::Duration,
};

const KINDS: [Kind; 3] = [Kind::Adaptive, Kind::Workers, Kind::Inline];

/// What one send of ours tries before it says that there is no memory.
const SHORTAGE: u64 = 4;

const NO_MEMORY: Fault = Fault::Errno(libc::ENOBUFS);

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

#[test]
fn row_036_sends_that_end_anywhere_keep_the_stream_exact() {
    let _turn = crate::TURN.lock();
    every(|case| {
        // Copied pieces, linked pieces, and both in one chain.
        let sent = pattern(36, 60_000);
        let sizes = [1, 5000, 17, 4096, 900, 20_000, 3, 8191];
        let source = Bytes::from(sent.clone());
        let asked = |peer_asks: u8| usize::from(peer_asks) * 1000;
        let server = case.serve(Script::new().request(move |conn| {
            let source = source.slice(..asked(conn.read_u8()?));
            let (mut at, mut message) = (0, LinkBuffer::new());
            for size in sizes.iter().cycle() {
                let end = source.len().min(at + size);
                message.write_bytes(source.slice(at..end));
                at = end;
                if at == source.len() {
                    break;
                }
                if size % 5 == 0 {
                    message.flush();
                    conn.handle().send(std::mem::take(&mut message))?;
                }
            }
            message.flush();
            conn.handle().send(message).map(drop)
        }));
        for (cap, thousands) in [(1, 2), (7, 12), (4097, 60)] {
            let mut peer = server.connect();
            let plan = Plan::new(36).every(Call::Send, 1, Fault::Short(cap));
            let installed = plan.install();
            peer.write_all(&[thousands]).unwrap();
            let mut got = vec![0; asked(thousands)];
            peer.read_exact(&mut got).unwrap();
            assert!(got == sent[..got.len()], "{cap} bytes a send, {case:?}");
            assert!(installed.hits(Call::Send) >= (got.len() / cap) as u64);
        }
        server.stop();
    });
}

#[test]
fn row_036_vectored_writes_that_end_anywhere_keep_the_stream_exact() {
    let _turn = crate::TURN.lock();
    bounded("vectored writes", || {
        for cap in [1, 7, 4097] {
            let (mut conn, mut peer) = pair();
            let sent = pattern(36, 30_000);
            let slices: Vec<IoSlice<'_>> = sent.chunks(1231).map(IoSlice::new).collect();
            let plan = Plan::new(36).every(Call::Send, 1, Fault::Short(cap));
            let installed = plan.this_thread().install();
            assert_eq!(conn.write_vectored(&slices).unwrap(), sent.len());
            drop(installed);
            let mut got = vec![0; sent.len()];
            peer.read_exact(&mut got).unwrap();
            assert!(got == sent, "{cap} bytes a send");
        }
    });
}

#[test]
fn row_040_a_reply_that_found_no_memory_survives_the_close_behind_it() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        // It does not wait for the end of the lingering.
        let server = case.serve_with(
            case.builder().linger(LIMIT * 10, 256 << 10),
            Script::new().request(|conn| {
                conn.skip(conn.available())?;
                let handle = conn.handle();
                handle.send(Bytes::from_static(b"reply"))?;
                handle.close();
                Ok(())
            }),
        );
        let mut peer = server.connect();
        let plan = Plan::new(40).from(Call::Send, 1, SHORTAGE, NO_MEMORY);
        let installed = plan.install();
        peer.write_all(b"?").unwrap();
        assert_eq!(peer.rest().unwrap(), b"reply", "{case:?}");
        assert_eq!(installed.hits(Call::Send), SHORTAGE);
        drop(installed);
        server.stop();
    });
}

#[test]
fn row_040_a_shortage_during_a_close_does_not_make_it_endless() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve_with(
            case.builder().linger(Duration::from_secs(1), 256 << 10),
            Script::new()
                .request(|conn| {
                    conn.skip(conn.available())?;
                    let handle = conn.handle();
                    handle.send(Bytes::from(vec![0; 8 << 20]))?;
                    handle.close();
                    Ok(())
                })
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut peer = Peer::connect_small(&server.address).unwrap();
        peer.write_all(b"?").unwrap();
        // The socket is full from here on, the rest is queued.
        peer.read_exact(&mut [0]).unwrap();
        let plan = Plan::new(40).from(Call::Send, 1, SHORTAGE, NO_MEMORY);
        let installed = plan.install();
        // Room, but no memory; then no room any more.
        let mut some = vec![0; 64 << 10];
        while installed.hits(Call::Send) < SHORTAGE && ends.len() == 0 {
            // On a busy machine the time of the close is up before there is memory again.
            if peer.read_exact(&mut some).is_err() {
                break;
            }
        }
        ends.wait_len(1);
        drop((installed, peer));
        server.stop();
    });
}

#[test]
fn row_040_a_shortage_is_over_soon_although_an_idle_timeout_runs() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let server = case.serve_with(
            case.builder().idle_timeout(LIMIT * 10),
            Script::new().request(echo_frames),
        );
        let mut peer = server.connect();
        // Found again at the second try.
        let plan = Plan::new(40).from(Call::Send, 1, SHORTAGE * 2, NO_MEMORY);
        let installed = plan.install();
        peer.ping(b"memory");
        assert_eq!(installed.hits(Call::Send), SHORTAGE * 2);
        drop(installed);
        server.stop();
    });
}

#[test]
fn row_040_an_idle_timeout_set_in_a_shortage_does_not_prolong_it() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let server = case.serve(Script::new().request(|conn| {
            conn.skip(conn.available())?;
            conn.handle().send(Bytes::from_static(b"reply"))?;
            conn.set_idle_timeout(Some(LIMIT * 10));
            Ok(())
        }));
        let mut peer = server.connect();
        let plan = Plan::new(40).from(Call::Send, 1, SHORTAGE, NO_MEMORY);
        let installed = plan.install();
        peer.write_all(b"?").unwrap();
        let mut reply = [0; 5];
        peer.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"reply");
        drop((installed, peer));
        server.stop();
    });
}

#[test]
fn row_043_sends_that_find_the_peer_gone_are_errors_of_their_connection() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let bystander = server.connect();
        handles.wait_len(1);
        for errno in [libc::EPIPE, libc::ECONNRESET, libc::ETIMEDOUT] {
            let peer = server.connect();
            let handle = handles.wait_len(2).remove(1);
            let plan = Plan::new(43).from(Call::Send, 1, 1, Fault::Errno(errno));
            let installed = plan.install();
            let kind = io::Error::from_raw_os_error(errno).kind();
            let error = handle.send(Bytes::from_static(b"x")).unwrap_err();
            let closed = Some(Error::Closed(CloseReason::Error(kind)));
            assert_eq!(Error::from_io(&error), closed, "{error:?}");
            assert_eq!(installed.hits(Call::Send), 1);
            // The second time nothing is tried.
            assert!(handle.send(Bytes::from_static(b"x")).is_err());
            assert_eq!(installed.calls(Call::Send), 1);
            let error = handle.done().wait().unwrap_err();
            assert_eq!(Error::from_io(&error), closed, "{error:?}");
            assert_eq!(handle.stats().lost_bytes, 1);
            drop((installed, peer));
            let bystanders = handles.take().remove(0);
            handles.push(bystanders);
        }
        eventually("their ends", || server.event_loop.stats().closed == 3);
        drop(bystander);
        server.stop();
    });
}

/// A connection adopted from a pair of TCP sockets, and the other end.
fn adopted() -> (Connection, Peer) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = Peer::connect(&listener.local_addr().unwrap().into()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (Dialer::new().adopt(ours).unwrap(), peer)
}

#[test]
fn row_044_a_relay_to_a_peer_that_is_gone_raises_no_signal() {
    let _turn = crate::TURN.lock();
    let name = "row_044_a_relay_to_a_peer_that_is_gone_raises_no_signal";
    in_child(name, || {
        // SAFETY: the default action is no function of ours; Rust's runtime set it to ignore.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        bounded("relays", || {
            for _ in 0..20 {
                let (a, mut client) = adopted();
                let (b, mut server) = adopted();
                let relay = relay(a, b).unwrap();
                let writer = thread::spawn(move || {
                    let bulk = vec![0; 1 << 20];
                    // Until the relay has passed the reset on.
                    while client.write_all(&bulk).is_ok() {}
                });
                server.read_exact(&mut vec![0; 100_000]).unwrap();
                server.reset();
                writer.join().unwrap();
                let ended = relay.wait_timeout(LIMIT).unwrap();
                assert!(ended.is_some(), "the relay goes on");
            }
        });
    });
}

#[test]
fn row_046_output_that_waits_and_output_that_is_gone_cost_no_turns() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let group = PollerGroup::builder().pollers(1).build().unwrap();
        let handles = Log::new();
        let server = case.serve_with(
            case.builder()
                .pollers(group.clone())
                .output_limit(2 * MUCH, netpoll::OnFull::Error),
            giving(&handles),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        let sent = pattern(46, MUCH);
        handle.send(Bytes::from(sent.clone())).unwrap();
        assert!(handle.stats().queued > 0, "it fits into the sockets");
        let rests = || {
            let quiet = || {
                let before = group.stats().total();
                let_pass(Duration::from_millis(50));
                let now = group.stats().total();
                now.turns - before.turns <= 1 && now.events == before.events
            };
            // What was on its way may still arrive.
            eventually("a quiet poller", || quiet() && quiet() && quiet());
        };
        rests();
        let mut got = vec![0; sent.len()];
        peer.read_exact(&mut got).unwrap();
        assert!(got == sent);
        eventually("all sent", || handle.stats().queued == 0);
        rests();
        drop(peer);
        server.stop();
        group.close();
    });
}

#[test]
fn row_047_a_flush_of_nothing_is_done_at_once() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let results = Log::new();
        let (log, handles) = (results.clone(), Log::new());
        let server = case.serve(giving(&handles).request(move |conn| {
            conn.skip(conn.available())?;
            log.push((conn.flush().is_ok(), conn.handle().flush().is_ok()));
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"?").unwrap();
        assert_eq!(results.wait_len(1), [(true, true)]);
        let handle = handles.wait_len(1).remove(0);
        assert!(handle.flush().is_ok());
        handle.close();
        peer.expect_end();
        let _ = handle.done().wait();
        // Nothing was left unsent, which is all that it is asked for.
        assert!(handle.flush().is_ok());
        assert!(handle.send(Bytes::from_static(b"x")).is_err());
        drop(peer);
        server.stop();
    });
}

#[test]
fn row_047_a_flush_that_races_with_a_close_returns() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let handles = Log::new();
        let server = case.serve_with(case.builder().linger(Duration::ZERO, 0), giving(&handles));
        for round in 0..100 {
            let (peer, handle) = server.connect_given(&handles);
            let message = Bytes::from(vec![0; if round % 2 == 0 { 8 << 20 } else { 10 }]);
            handle.send(message).unwrap();
            let flushers: Vec<_> = (0..3)
                .map(|_| {
                    let handle = handle.clone();
                    thread::spawn(move || handle.flush())
                })
                .collect();
            if round % 3 == 0 {
                handle.abort();
            } else {
                handle.close();
            }
            for flusher in flushers {
                if let Err(error) = flusher.join().unwrap() {
                    let reason = Error::from_io(&error);
                    assert!(
                        matches!(reason, Some(Error::Closed(_) | Error::Poisoned)),
                        "{error:?}"
                    );
                }
            }
            drop(peer);
        }
        // What their closes cut is none of the shutdown's.
        eventually("the ends", || server.event_loop.stats().active == 0);
        server.stop();
    });
}

#[test]
fn row_050_a_peer_that_never_reads_again_is_given_up_by_the_system_if_it_is_told_to() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let (handles, ends) = (Log::new(), Log::new());
        let log = ends.clone();
        let options = SocketOptions::new().user_timeout(Duration::from_millis(300));
        let server = case.serve_with(
            case.builder().socket(options),
            giving(&handles).disconnect(move |_, reason| log.push(reason)),
        );
        let _peer = Peer::connect_small(&server.address).unwrap();
        let handle = handles.wait_len(1).remove(0);
        // The whole of it is one message, which is taken whatever its size.
        let sent = handle.send(Bytes::from(vec![0; MUCH]));
        // The system's time may be up before the send has returned.
        let accepted = sent.is_ok();
        assert!(sent.and_then(|_| handle.flush()).is_err());
        let reason = ends.wait_len(1)[0];
        assert_eq!(reason, CloseReason::Error(io::ErrorKind::TimedOut));
        assert_eq!(handle.stats().queued, 0);
        assert!(!accepted || handle.stats().lost_bytes > 0);
        server.stop();
    });
}

/// Sends numbered frames until there is no more or sending fails; the bytes that were accepted.
fn send_numbered(handle: &ConnectionHandle, tag: u8) -> u64 {
    let mut accepted = 0;
    for number in 0..300_u32 {
        let mut body = vec![tag; 200 + 37 * (number as usize % 50)];
        body[1..5].copy_from_slice(&number.to_be_bytes());
        let message = Bytes::from(frame(&body));
        let len = message.len() as u64;
        if handle.send(message).is_err() {
            break;
        }
        accepted += len;
    }
    accepted
}

/// Checks that whole frames came, those of each sender in order; what is left of the last one.
fn check_numbered(mut bytes: &[u8]) -> &[u8] {
    let mut next = [0; 3];
    while let Some((head, rest)) = bytes.split_first_chunk() {
        let len = u32::from_be_bytes(*head) as usize;
        if rest.len() < len {
            break;
        }
        let (body, behind) = rest.split_at(len);
        let tag = body[0];
        let expected = &mut next[usize::from(tag)];
        assert_eq!(body[1..5], u32::to_be_bytes(*expected), "of {tag}");
        assert!(body[5..].iter().all(|byte| *byte == tag), "mixed");
        *expected += 1;
        bytes = behind;
    }
    bytes
}

#[test]
fn row_052_what_was_accepted_is_read_or_counted_whatever_fails() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        for seed in 0..16 {
            // One of: closed behind everything, closed in between, aborted, failed.
            let end = seed % 4;
            let plan = Plan::new(seed);
            let plan = match end {
                3 => plan.from(Call::Send, 20, 1, Fault::Errno(libc::ETIMEDOUT)),
                _ => plan,
            };
            let installed = plan
                .chance(Call::Send, 150, Fault::Errno(libc::EINTR))
                .chance(Call::Send, 150, NO_MEMORY)
                .chance(Call::Send, 600, Fault::Short(1500))
                .install();
            let handles = Log::new();
            let server = case.serve_with(case.builder().linger(LIMIT, 256 << 10), giving(&handles));
            let (mut peer, handle) = server.connect_given(&handles);
            let senders: Vec<_> = (0..3)
                .map(|tag| {
                    let handle = handle.clone();
                    thread::spawn(move || send_numbered(&handle, tag))
                })
                .collect();
            let reader = thread::spawn(move || {
                let mut all = Vec::new();
                // A reset is an end too.
                let _ = peer.read_to_end(&mut all);
                all
            });
            if end == 1 || end == 2 {
                eventually("half of it", || handle.stats().messages_out >= 400);
            }
            match end {
                1 => handle.close(),
                2 => handle.abort(),
                _ => {}
            }
            let accepted: u64 = senders.into_iter().map(|s| s.join().unwrap()).sum();
            if end == 0 {
                handle.close();
            }
            let ended = handle.done().wait_timeout(LIMIT);
            assert!(ended.is_some(), "seed {seed}: it never ends");
            let all = reader.join().unwrap();
            let stats = handle.stats();
            assert_eq!(stats.queued, 0);
            let known = stats.bytes_out + stats.lost_bytes;
            assert!(known >= accepted, "seed {seed}: {accepted}, {stats:?}");
            let rest = if end < 3 { check_numbered(&all) } else { &[] };
            if end == 0 {
                // Nothing is lost by a close.
                assert!(rest.is_empty(), "seed {seed}: a frame is cut");
                assert_eq!((all.len() as u64, stats.bytes_out), (accepted, accepted));
                assert_eq!(stats.lost_bytes, 0);
            }
            drop(installed);
            server.stop();
        }
    });
}

#[test]
fn row_053_an_output_that_failed_ends_its_connection_and_no_other() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles).request(echo_frames));
        let mut other = server.connect();
        other.ping(b"up");
        handles.take();
        let mut peer = Peer::connect_small(&server.address).unwrap();
        let handle = handles.wait_len(1).remove(0);
        handle.send(Bytes::from(vec![0; 8 << 20])).unwrap();
        assert!(handle.stats().queued > 0);
        // What waits is sent by the poller, and that fails.
        let plan = Plan::new(53).from(Call::Send, 1, 1, Fault::Errno(libc::ECONNRESET));
        let installed = plan.install();
        let mut some = vec![0; 256 << 10];
        while installed.hits(Call::Send) == 0 && peer.read_exact(&mut some).is_ok() {}
        let error = handle.done().wait().unwrap_err();
        let reset = CloseReason::Error(io::ErrorKind::ConnectionReset);
        assert_eq!(Error::from_io(&error), Some(Error::Closed(reset)));
        assert!(handle.stats().lost_bytes > 0);
        assert_eq!(handle.stats().queued, 0);
        drop(installed);
        other.ping(b"still up");
        drop((other, peer));
        server.stop();
    });
}

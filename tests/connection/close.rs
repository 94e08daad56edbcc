//! How connections end: half-close, graceful close, lingering, abort, detach.

use crate::support::{
    Case, Gate, Kind, LIMIT, Log, OpenOnDrop, Peer, Script, Transport, bounded, decode, echo,
    eventually, every, every_blocking, frame, giving, in_child, let_pass, on_tcp, pair, pattern,
    read_frame, settled_descriptors,
};
use netpoll::{
    CloseReason, Connection, ConnectionHandle, ConnectionState, Dialer, Error, Handler, Listener,
    PendingReply, SocketOptions, handler_fn,
};
use socket2::SockRef;
use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

// ------------------------------------------------------------------------------- half-close

#[test]
fn a_request_and_a_fin_together_get_their_reply() {
    every(|case| {
        let server = case.serve(echo());
        for i in 0..200u32 {
            let mut peer = server.connect();
            peer.write_all(&frame(&i.to_be_bytes())).unwrap();
            peer.shutdown_write();
            assert_eq!(peer.rest().unwrap(), frame(&i.to_be_bytes()));
        }
        server.stop();
    });
}

#[test]
fn several_requests_and_a_fin_together_get_their_replies() {
    every(|case| {
        let server = case.serve(echo());
        for count in [2usize, 10, 500] {
            let mut peer = server.connect();
            let out: Vec<u8> = (0..count).flat_map(|i| frame(&[i as u8; 20])).collect();
            peer.write_all(&out).unwrap();
            peer.shutdown_write();
            assert!(peer.rest().unwrap() == out, "replies to {count} requests");
        }
        server.stop();
    });
}

#[test]
fn a_reply_that_comes_after_the_fin_arrives() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve(
            Script::new()
                .request(move |conn| {
                    while let Some(frame) = decode(conn)? {
                        held.pass();
                        conn.append(frame)?;
                        conn.flush()?;
                    }
                    Ok(())
                })
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut peer = server.connect();
        peer.write_all(&frame(b"question")).unwrap();
        gate.wait_arrived(1);
        peer.shutdown_write();
        gate.open();
        assert_eq!(peer.rest().unwrap(), frame(b"question"));
        assert_eq!(ends.wait_len(1), [CloseReason::Peer]);
        server.stop();
    });
}

#[test]
fn a_large_reply_to_a_half_closed_peer_arrives_in_full() {
    every(|case| {
        let server = case.serve(handler_fn(|conn| {
            conn.skip(conn.available())?;
            conn.write_bytes(pattern(5, MUCH).into())?;
            conn.try_flush().map(|_| ())
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        peer.shutdown_write();
        assert!(
            peer.rest().unwrap() == pattern(5, MUCH),
            "the reply differs"
        );
        server.stop();
    });
}

#[test]
fn a_promised_reply_of_another_thread_is_waited_for() {
    every(|case| {
        let work = Log::new();
        let queue = work.clone();
        let server = case.serve(handler_fn(move |conn| {
            while let Some(frame) = decode(conn)? {
                let handle = conn.handle();
                queue.push((handle.hold(), handle, frame.len()));
            }
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(&frame(b"later")).unwrap();
        peer.shutdown_write();
        let deadline = Instant::now() + LIMIT;
        while work.len() == 0 {
            assert!(Instant::now() < deadline);
            thread::yield_now();
        }
        // The end has been seen for long when the reply comes.
        let clock = case.serve(echo());
        let mut ticks = clock.connect();
        for _ in 0..50 {
            ticks.ping(b"tick");
        }
        for (hold, handle, len) in work.take() {
            assert_eq!(handle.state(), ConnectionState::Connected);
            handle.send_bytes(vec![b'r'; len].into()).unwrap();
            drop(hold);
        }
        assert_eq!(peer.rest().unwrap(), vec![b'r'; 9]);
        server.stop();
        drop(ticks);
        clock.stop();
    });
}

/// A handler that takes a promise for each frame and fails at the one that is asked for.
fn promising(
    work: &Log<(PendingReply, ConnectionHandle)>,
    calls: &Log<u64>,
    fail: &'static str,
) -> impl Handler {
    let (work, calls) = (work.clone(), calls.clone());
    handler_fn(move |conn| {
        calls.push(conn.id());
        while let Some(frame) = decode(conn)? {
            let mut frame = frame;
            let last = frame.read_vec(frame.len())?.ends_with(b"bad");
            if last {
                match fail {
                    "panic" => panic!("on purpose"),
                    "limit" => conn.try_fill(usize::MAX).map(drop)?,
                    _ => return Err(io::Error::other("a bad frame after good ones")),
                }
            }
            let handle = conn.handle();
            work.push((handle.hold(), handle));
        }
        Ok(())
    })
}

#[test]
fn promised_replies_are_sent_although_the_handler_failed() {
    every(|case| {
        for fail in ["error", "panic", "limit"] {
            let (work, calls) = (Log::new(), Log::new());
            let server = case.serve(promising(&work, &calls, fail));
            let mut peer = server.connect();
            let together = [frame(b"good"), frame(b"good"), frame(b"bad")].concat();
            peer.write_all(&together).unwrap();
            eventually("both requests", || work.len() == 2);
            let promised = work.take();
            let failed = promised[0].1.id();
            let called = || calls.all().iter().filter(|&&id| id == failed).count();
            let before = called();
            // For this one the handler is not called any more.
            peer.write_all(&frame(b"good")).unwrap();
            eventually("they have arrived", || peer.unsent() == 0);
            // Time passes, for others too.
            let mut other = server.connect();
            for n in 1..=20 {
                other.write_all(&frame(b"good")).unwrap();
                eventually("the other's requests", || work.len() == n);
            }
            for (reply, (hold, handle)) in [b"first ", b"second"].into_iter().zip(promised) {
                assert_eq!(handle.state(), ConnectionState::Connected);
                handle.send_bytes(reply.as_slice().into()).unwrap();
                drop(hold);
            }
            assert_eq!(peer.rest().unwrap(), b"first second");
            assert_eq!(called(), before, "the handler that failed is called again");
            drop(work.take());
            drop(other);
            server.stop();
        }
    });
}

#[test]
fn a_failed_connection_that_owes_a_reply_can_be_ended() {
    every(|case| {
        for ending in ["close", "abort", "reset", "shutdown"] {
            let (work, calls) = (Log::new(), Log::new());
            let server = case.serve(promising(&work, &calls, "error"));
            let mut peer = server.connect();
            let together = [frame(b"good"), frame(b"bad")].concat();
            peer.write_all(&together).unwrap();
            eventually("the request", || work.len() == 1);
            let (hold, handle) = work.take().remove(0);
            match ending {
                "close" => handle.close(),
                "abort" => handle.abort(),
                "shutdown" => {
                    let forced = server.event_loop.shutdown_forced(Duration::ZERO);
                    assert_eq!(forced.unwrap(), 1);
                }
                _ if case.transport == Transport::Tcp => peer.reset(),
                _ => drop(peer),
            }
            // It may come before the handler has failed.
            let _ = handle.done().wait();
            // Its sender is told.
            assert!(handle.send_bytes("late".into()).is_err());
            drop(hold);
            server.stop();
        }
    });
}

#[test]
fn what_was_flushed_before_on_connect_fails_is_still_sent() {
    every(|case| {
        for panics in [false, true] {
            let server = case.serve(Script::new().connect(move |conn| {
                conn.write_bytes(vec![5; MUCH].into())?;
                conn.try_flush()?;
                assert!(!panics, "on purpose");
                Err(io::ErrorKind::InvalidData.into())
            }));
            let mut peer = server.connect();
            assert_eq!(peer.rest().unwrap().len(), MUCH);
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn with_half_open_the_handler_decides_about_the_end() {
    every(|case| {
        let handles = Log::new();
        let ends = Log::new();
        let [l1, l2] = [ends.clone(), ends.clone()];
        let server = case.serve_with(
            case.builder().half_open(true),
            giving(&handles)
                .request(move |conn| {
                    conn.skip(conn.available())?;
                    if conn.is_read_closed() {
                        l1.push("end seen");
                    }
                    Ok(())
                })
                .disconnect(move |_, reason| {
                    assert_eq!(reason, CloseReason::Local);
                    l2.push("over");
                }),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        peer.shutdown_write();
        ends.wait_for(&"end seen");
        let clock = case.serve(echo());
        let mut ticks = clock.connect();
        for _ in 0..50 {
            ticks.ping(b"tick");
        }
        assert_eq!(
            handle.state(),
            ConnectionState::Connected,
            "nobody closed it"
        );
        for i in 0..100u8 {
            handle.send_bytes(vec![i].into()).unwrap();
        }
        handle.close();
        assert_eq!(peer.rest().unwrap(), (0..100).collect::<Vec<u8>>());
        server.stop();
        assert_eq!(ends.all(), ["end seen", "over"]);
        drop(ticks);
        clock.stop();
    });
}

#[test]
fn a_half_closed_connection_that_stays_open_costs_nothing() {
    in_child(
        "a_half_closed_connection_that_stays_open_costs_nothing",
        || {
            for case in [
                Case::new(Transport::Tcp, Kind::Adaptive),
                Case::new(Transport::Unix, Kind::Adaptive),
                Case::new(Transport::Tcp, Kind::Workers),
                Case::new(Transport::Tcp, Kind::Inline),
            ] {
                let seen = Log::new();
                let log = seen.clone();
                let server = case.serve_with(
                    case.builder().half_open(true),
                    handler_fn(move |conn| {
                        log.push(conn.available());
                        Ok(())
                    }),
                );
                let mut peers: Vec<Peer> = (0..10).map(|_| server.connect()).collect();
                for peer in &mut peers {
                    peer.write_all(b"x").unwrap();
                    peer.shutdown_write();
                }
                eventually("the ends", || server.event_loop.stats().connected == 10);
                seen.wait_len(10);
                let before = crate::support::cpu_time();
                // What is measured is the lack of activity, so there is nothing to wait for.
                let_pass(Duration::from_millis(500));
                let used = crate::support::cpu_time() - before;
                assert!(
                    used <= Duration::from_millis(50),
                    "{used:?} of 500 ms in {case:?}"
                );
                assert!(seen.len() <= 20, "{} calls", seen.len());
            }
        },
    );
}

#[test]
fn shutdown_of_the_sending_side_leaves_the_other() {
    every_blocking(|case| {
        let server = case.serve(handler_fn(|conn| {
            let mut all = Vec::new();
            conn.read_to_end(&mut all)?;
            conn.write_slice(&(all.len() as u32).to_be_bytes())?;
            conn.flush()
        }));
        let mut conn = server.dial();
        conn.write_slice(&[1; 1000]).unwrap();
        conn.flush().unwrap();
        conn.shutdown(Shutdown::Write).unwrap();
        let error = conn.write_slice(b"more").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(conn.next(4).unwrap(), 1000u32.to_be_bytes());
        conn.close().unwrap();
        server.stop();
    });
}

#[test]
fn shutdown_of_the_sending_side_refuses_while_output_is_unsent() {
    bounded("shutdown", || {
        let (mut conn, mut peer) = pair();
        conn.write_slice(b"abc").unwrap();
        let error = conn.shutdown(Shutdown::Write).unwrap_err();
        assert!(matches!(
            Error::from_io(&error),
            Some(Error::OutputFull { queued: 3, .. })
        ));
        conn.flush().unwrap();
        conn.shutdown(Shutdown::Write).unwrap();
        assert_eq!(peer.rest().unwrap(), b"abc");
    });
}

#[test]
fn finishing_a_write_half_ends_the_output_only() {
    bounded("finish", || {
        let (conn, mut peer) = pair();
        let (mut reader, mut writer) = conn.into_split();
        writer.write_slice(b"the last").unwrap();
        writer.finish().unwrap();
        assert_eq!(peer.rest().unwrap(), b"the last");
        peer.write_all(b"answer").unwrap();
        assert_eq!(reader.next(6).unwrap(), b"answer");
        drop(reader);
        // Both halves are gone: so is the connection.
        peer.expect_gone();
    });
}

// --------------------------------------------------------------------------- graceful close

#[test]
fn close_sends_everything_that_was_flushed() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve(
            Script::new()
                .connect(|conn| {
                    conn.write_bytes(pattern(1, MUCH).into())?;
                    conn.try_flush()?;
                    conn.handle().close();
                    Ok(())
                })
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut peer = server.connect();
        assert!(
            peer.rest().unwrap() == pattern(1, MUCH),
            "what arrived differs"
        );
        assert_eq!(ends.wait_len(1), [CloseReason::Local]);
        server.stop();
    });
}

#[test]
fn a_dropped_connection_sends_everything_that_was_flushed() {
    bounded("drop", || {
        for close in [false, true] {
            let (mut conn, mut peer) = pair();
            conn.write_bytes(pattern(2, MUCH).into()).unwrap();
            let sent = conn.try_flush().unwrap();
            assert!(!sent, "it does not fit");
            if close {
                conn.close().unwrap();
            } else {
                drop(conn);
            }
            assert!(
                peer.rest().unwrap() == pattern(2, MUCH),
                "what arrived differs"
            );
        }
    });
}

#[test]
fn close_drops_what_was_not_flushed() {
    every(|case| {
        let server = case.serve(Script::new().connect(|conn| {
            conn.write_str("flushed")?;
            conn.flush()?;
            conn.write_str(" and not")?;
            conn.handle().close();
            Ok(())
        }));
        assert_eq!(server.connect().rest().unwrap(), b"flushed");
        server.stop();
    });
}

#[test]
fn close_with_unread_input_does_not_destroy_the_reply() {
    every(|case| {
        let reply = pattern(3, 500_000);
        let out = reply.clone();
        let server = case.serve(handler_fn(move |conn| {
            // One byte of ten is read.
            if !conn.try_fill(1)? {
                return Ok(());
            }
            conn.skip(1)?;
            conn.write_slice(&out)?;
            conn.try_flush()?;
            conn.handle().close();
            Ok(())
        }));
        for _ in 0..10 {
            let mut peer = Peer::connect_small(&server.address).unwrap();
            peer.write_all(b"0123456789").unwrap();
            let mut got = Vec::new();
            let end = peer.read_to_end(&mut got);
            assert!(
                got == reply,
                "{} bytes of the reply, then {end:?}",
                got.len()
            );
            end.unwrap();
        }
        server.stop();
    });
}

#[test]
fn close_with_unread_input_of_a_half_closed_peer_does_not_destroy_the_reply() {
    every(|case| {
        let reply = pattern(3, 500_000);
        let out = reply.clone();
        let server = case.serve(handler_fn(move |conn| {
            // One byte of many is read; most of them are still in the kernel.
            if !conn.try_fill(1)? {
                return Ok(());
            }
            conn.skip(1)?;
            conn.write_slice(&out)?;
            conn.try_flush()?;
            conn.handle().close();
            Ok(())
        }));
        for _ in 0..10 {
            let mut peer = Peer::connect_small(&server.address).unwrap();
            let mut sender = peer.try_clone();
            let sending = thread::spawn(move || {
                // More than is received in one go.
                let sent = sender.write_all(&[1; 150_000]);
                if sent.is_ok() {
                    sender.shutdown_write();
                }
            });
            let mut got = Vec::new();
            let end = peer.read_to_end(&mut got);
            assert!(
                got == reply,
                "{} bytes of the reply, then {end:?}",
                got.len()
            );
            end.unwrap();
            sending.join().unwrap();
        }
        server.stop();
    });
}

#[test]
fn close_with_unread_input_and_a_fin_does_not_destroy_the_reply() {
    // The client's own connection: request and FIN have come, nothing of them is read.
    bounded("own", || {
        for _ in 0..20 {
            let (mut conn, mut peer) = pair();
            peer.write_all(&[1; 50_000]).unwrap();
            peer.shutdown_write();
            eventually("the end is seen", || !conn.is_active());
            conn.write_slice(&pattern(3, 100_000)).unwrap();
            conn.try_flush().unwrap();
            drop(conn);
            // It reads late: what is on its way must survive that.
            let mut got = Vec::new();
            let end = peer.read_to_end(&mut got);
            assert!(
                got == pattern(3, 100_000),
                "{} bytes, then {end:?}",
                got.len()
            );
            end.unwrap();
        }
    });
}

#[test]
fn close_drains_input_that_comes_after_it() {
    // The peer goes on sending for a while after our close, then reads: the reply is there.
    every(|case| {
        let closed = Log::new();
        let log = closed.clone();
        let server = case.serve(handler_fn(move |conn| {
            conn.skip(conn.available())?;
            conn.write_slice(&pattern(4, 10_000))?;
            conn.flush()?;
            conn.handle().close();
            let log = log.clone();
            conn.on_close(move |_| log.push(()));
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"question").unwrap();
        closed.wait_len(1);
        for _ in 0..20 {
            peer.write_all(&[9; 1000]).unwrap();
        }
        let mut got = vec![0; 10_000];
        peer.read_exact(&mut got).unwrap();
        assert!(got == pattern(4, 10_000));
        peer.expect_end();
        server.stop();
    });
}

#[test]
fn close_lingers_no_longer_than_its_time() {
    // A peer that neither closes nor reads: the descriptor goes all the same.
    in_child("close_lingers_no_longer_than_its_time", || {
        for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
            let case = Case::new(Transport::Tcp, kind);
            let handles = Log::new();
            let builder = case.builder().linger(Duration::from_millis(50), 256 << 10);
            let server = case.serve_with(builder, giving(&handles));
            let peers: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
            for handle in handles.wait_len(5) {
                handle.close();
                handle.done().wait().unwrap();
            }
            let event_loop = &server.event_loop;
            eventually("the descriptors", || event_loop.stats().active == 0);
            drop(peers);
        }
    });
}

#[test]
fn close_gives_up_on_queued_output_at_the_end_of_its_time() {
    on_tcp(
        &[Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom],
        |case| {
            let builder = case.builder().linger(Duration::from_millis(50), 256 << 10);
            let handles = Log::new();
            let log = handles.clone();
            let server = case.serve_with(
                builder,
                Script::new().connect(move |conn| {
                    conn.write_bytes(vec![1; MUCH].into())?;
                    conn.try_flush()?;
                    log.push(conn.handle());
                    conn.handle().close();
                    Ok(())
                }),
            );
            let (mut peer, handle) = server.connect_given(&handles);
            // Nobody reads: the close cannot finish, but it ends.
            handle.done().wait().unwrap();
            let stats = handle.stats();
            assert_eq!(stats.bytes_out + stats.lost_bytes, MUCH as u64);
            assert!(stats.lost_bytes > 0);
            // A cut stream must not look complete.
            let mut got = Vec::new();
            let end = peer.read_to_end(&mut got).expect_err("a reset");
            assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
            assert!(got.len() < MUCH);
            server.stop();
        },
    );
}

#[test]
fn close_drains_no_more_than_its_bytes() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Inline], |case| {
        let handles = Log::new();
        let builder = case.builder().linger(LIMIT, 100_000);
        let server = case.serve_with(builder, giving(&handles));
        let (mut peer, handle) = server.connect_given(&handles);
        handle.close();
        handle.done().wait().unwrap();
        // It is cut long before the linger time: by then a write fails.
        let mut sent = 0;
        let end = loop {
            match peer.write(&[0; 10_000]) {
                Ok(n) => sent += n,
                Err(e) => break e,
            }
            assert!(sent < 100 << 20, "{sent} bytes were taken");
        };
        assert!(
            matches!(
                end.kind(),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ),
            "{end}"
        );
        eventually("the descriptor", || server.event_loop.stats().active == 0);
        server.stop();
    });
}

/// A handler that answers the first byte of a connection and closes it.
fn answer_and_close(answer: usize) -> impl Handler {
    handler_fn(move |conn| {
        conn.skip(conn.available())?;
        conn.write_bytes(vec![7; answer].into())?;
        conn.flush()?;
        conn.handle().close();
        Ok(())
    })
}

#[test]
fn input_beyond_the_bound_does_not_destroy_the_reply() {
    // Far more than is read and dropped comes behind the request, before the peer reads.
    const ANSWER: usize = 150_000;
    every(|case| {
        let options = SocketOptions::new().send_buffer(1 << 20);
        let builder = case.builder().socket(options).linger(LIMIT, 10_000);
        let server = case.serve_with(builder, answer_and_close(ANSWER));
        for round in 0..3 {
            let mut peer = Peer::connect_small(&server.address).unwrap();
            let mut sending = peer.try_clone();
            sending.write_all(b"?").unwrap();
            let more = thread::spawn(move || {
                // The rest stays in this kernel as soon as the server does not read any more.
                let _ = sending.write_all(&vec![1; 3 << 20]);
            });
            if case.transport == Transport::Tcp {
                let ended = || server.event_loop.stats().closed == round + 1;
                eventually("it only lingers", ended);
            }
            let mut got = vec![0; ANSWER];
            peer.read_exact(&mut got).unwrap();
            assert!(got == [7; ANSWER]);
            peer.expect_gone();
            more.join().unwrap();
            // Nothing is waited for once the reply is there.
            eventually("the descriptor", || server.event_loop.stats().active == 0);
        }
        assert_eq!(server.event_loop.stats().cut, 0);
        server.stop();
    });
}

#[test]
fn close_lingers_as_long_as_the_peer_takes_output() {
    const ANSWER: usize = 150_000;
    const LINGER: Duration = Duration::from_secs(1);
    on_tcp(&[Kind::Adaptive, Kind::Workers], |case| {
        let options = SocketOptions::new().send_buffer(1 << 20);
        let builder = case.builder().socket(options).linger(LINGER, 1 << 10);
        let server = case.serve_with(builder, answer_and_close(ANSWER));
        let mut peer = Peer::connect_small(&server.address).unwrap();
        peer.write_all(b"?").unwrap();
        eventually("it only lingers", || server.event_loop.stats().closed == 1);
        let start = Instant::now();
        let mut got = 0;
        while got < ANSWER {
            // Such a peer goes on sending, so a close before its time would be a reset.
            let _ = peer.write(&[1; 100]);
            got += peer.read(&mut [0; 4096]).unwrap();
            // It takes twice the time in all.
            while got < ANSWER && start.elapsed() < LINGER * 2 * got as u32 / ANSWER as u32 {
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(server.event_loop.stats().cut, 0);
        drop(peer);
        server.stop();
    });
}

/// A stream of its own option: its close waits for the peer, so long.
fn set_linger(fd: &impl AsFd, time: Duration) {
    SockRef::from(fd).set_linger(Some(time)).unwrap();
}

/// A listener whose accepted sockets have that option.
fn lingering_listener(how: &str) -> Listener {
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    match how {
        "shown" => {
            let address = plain.local_addr().unwrap();
            drop(plain);
            let listener = Listener::bind(address).unwrap();
            set_linger(&listener, LIMIT);
            listener
        }
        "std" => {
            set_linger(&plain, LIMIT);
            plain.into()
        }
        _ => {
            set_linger(&plain, LIMIT);
            Listener::try_from(OwnedFd::from(plain)).unwrap()
        }
    }
}

#[test]
fn no_socket_option_makes_a_close_wait() {
    for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom] {
        for how in ["handler", "std", "descriptor", "shown"] {
            bounded(&format!("{kind:?}, {how}"), move || {
                let handles = Log::new();
                let known = handles.clone();
                let script = Script::new().request(move |conn| {
                    let Some(frame) = decode(conn)? else {
                        return Ok(());
                    };
                    if how == "handler" {
                        set_linger(conn, LIMIT);
                    }
                    if frame.len() == 7 {
                        // More than the peer takes: an end in order, and one by a cut.
                        conn.write_bytes(vec![1; 100_000].into())?;
                        conn.flush()?;
                        conn.handle().close();
                        known.push(conn.handle());
                        return Ok(());
                    }
                    conn.append(frame)?;
                    conn.flush()
                });
                let builder = Case::new(Transport::Tcp, kind).builder();
                let event_loop = builder.linger(Duration::ZERO, 0).build(script).unwrap();
                let listener = if how == "handler" {
                    Listener::bind(([127, 0, 0, 1], 0)).unwrap()
                } else {
                    lingering_listener(how)
                };
                let address = listener.local_addr().unwrap();
                event_loop.serve_in_background(listener).unwrap();
                let mut ping = Peer::connect(&address).unwrap();
                ping.ping(b"a neighbour");
                let stuck: Vec<Peer> = (0..3)
                    .map(|_| {
                        let mut peer = Peer::connect_small(&address).unwrap();
                        peer.write_all(&frame(b"end")).unwrap();
                        peer
                    })
                    .collect();
                handles.wait_len(3);
                // Only these are left; with a close that waits it would take the time of the option.
                let start = Instant::now();
                eventually("the descriptors", || event_loop.stats().active == 1);
                ping.ping(b"a neighbour");
                assert!(start.elapsed() < LIMIT / 2, "a close has waited");
                for mut peer in stuck {
                    let got = peer.rest().unwrap();
                    assert_eq!(got.len(), 100_000, "the system delivers it all the same");
                }
                drop(ping);
                event_loop.shutdown(LIMIT).unwrap();
            });
        }
    }
}

#[test]
fn an_own_connections_drop_never_waits() {
    bounded("drop", || {
        let (dial, adopt) = (Dialer::new(), Dialer::new().linger(Duration::ZERO, 0));
        let dial = dial.linger(Duration::ZERO, 0);
        for adopted in [false, true] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut conn = if adopted {
                let stream = std::net::TcpStream::connect(address).unwrap();
                set_linger(&stream, LIMIT);
                adopt.adopt(stream).unwrap()
            } else {
                let conn = dial.dial_connection(address).unwrap();
                set_linger(&conn, LIMIT);
                conn
            };
            let (peer, _) = listener.accept().unwrap();
            let mut sent = 0;
            // Until the peer's system takes no more.
            while conn.stats().queued == 0 {
                conn.write_slice(&[1; 10_000]).unwrap();
                sent += 10_000;
                conn.try_flush().unwrap();
            }
            let start = Instant::now();
            conn.abort();
            assert!(
                start.elapsed() < LIMIT / 2,
                "the drop has waited for {sent} bytes"
            );
            drop(peer);
        }
    });
}

#[test]
fn a_detached_descriptor_keeps_its_options() {
    bounded("detach", || {
        let (conn, peer) = pair();
        set_linger(&conn, LIMIT);
        let handle = conn.handle();
        let (fd, _) = conn.detach().unwrap();
        let _ = handle.done().wait();
        let event = Instant::now();
        // The library's own descriptor is closed soon after.
        while event.elapsed() < Duration::from_millis(20) {
            assert_eq!(SockRef::from(&fd).linger().unwrap(), Some(LIMIT));
            thread::yield_now();
        }
        SockRef::from(&fd).set_linger(None).unwrap();
        drop(peer);
    });
}

#[test]
fn without_linger_the_descriptor_goes_at_once() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve_with(case.builder().linger(Duration::ZERO, 0), giving(&handles));
        let (mut peer, handle) = server.connect_given(&handles);
        handle.send_bytes(b"bye".as_slice().into()).unwrap();
        handle.close();
        assert_eq!(peer.rest().unwrap(), b"bye");
        eventually("the descriptor", || server.event_loop.stats().active == 0);
        drop(peer);
        server.stop();
    });
}

#[test]
fn the_fin_does_not_wait_for_the_handler() {
    // The peer sees the end although the handler that closed is still busy -- or at the latest
    // when it returns; what must not happen is that it never comes.
    every_blocking(|case| {
        let server = case.serve(handler_fn(|conn| {
            conn.skip(conn.available())?;
            conn.handle().close();
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        peer.expect_end();
        server.stop();
    });
}

// ------------------------------------------------------------------------------------ abort

#[test]
fn abort_is_a_reset() {
    on_tcp(
        &[Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom],
        |case| {
            let handles = Log::new();
            let server = case.serve(giving(&handles));
            let (mut peer, handle) = server.connect_given(&handles);
            handle.abort();
            handle.done().wait().unwrap();
            let end = peer.read(&mut [0]).expect_err("a reset");
            assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
            server.stop();
        },
    );
}

#[test]
fn the_reset_of_an_abort_does_not_wait_for_the_handler() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let (held, handles) = (gate.clone(), Log::new());
        let server = case.serve(giving(&handles).request(move |conn| {
            held.pass();
            let error = conn
                .write_str("late")
                .and_then(|()| conn.flush())
                .unwrap_err();
            assert_eq!(
                Error::from_io(&error),
                Some(Error::Closed(CloseReason::Abort))
            );
            Err(error)
        }));
        let (mut peer, handle) = server.connect_given(&handles);
        peer.write_all(b"x").unwrap();
        gate.wait_arrived(1);
        handle.abort();
        match case.transport {
            Transport::Tcp => {
                let end = peer.read(&mut [0]).expect_err("a reset");
                assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
            }
            Transport::Unix => peer.expect_gone(),
        }
        assert!(handle.done().poll().is_none(), "the handler runs");
        gate.open();
        handle.done().wait().unwrap();
        server.stop();
    });
}

#[test]
fn abort_of_an_own_connection_is_a_reset() {
    bounded("abort", || {
        let (conn, mut peer) = pair();
        let handle = conn.handle();
        conn.abort();
        handle.done().wait().unwrap();
        let end = peer.read(&mut [0]).expect_err("a reset");
        assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(handle.state(), ConnectionState::Disconnected);
    });
}

#[test]
fn abort_drops_and_counts_what_is_queued() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (peer, handle) = server.connect_given(&handles);
        handle.send_bytes(vec![0; MUCH].into()).unwrap();
        let queued = handle.stats().queued;
        assert!(queued > 0, "nobody reads");
        handle.abort();
        handle.done().wait().unwrap();
        let stats = handle.stats();
        assert_eq!(stats.queued, 0);
        assert_eq!((stats.bytes_out + stats.lost_bytes), MUCH as u64);
        assert_eq!(stats.lost_messages, 1);
        drop(peer);
        server.stop();
    });
}

#[test]
fn abort_overtakes_a_close_that_waits_for_its_output() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (peer, handle) = server.connect_given(&handles);
        handle.send_bytes(vec![0; MUCH].into()).unwrap();
        handle.close();
        assert!(
            handle
                .done()
                .wait_timeout(Duration::from_millis(20))
                .is_none()
        );
        assert_eq!(handle.state(), ConnectionState::Disconnecting);
        handle.abort();
        handle.done().wait().unwrap();
        drop(peer);
        server.stop();
    });
}

#[test]
fn close_and_abort_are_idempotent_from_any_number_of_threads() {
    every(|case| {
        let handles = Log::new();
        let closes = Arc::new(AtomicUsize::new(0));
        let server = case.serve(giving(&handles));
        for round in 0..30 {
            let (peer, handle) = server.connect_given(&handles);
            let count = Arc::clone(&closes);
            handle.on_close(move |_| {
                count.fetch_add(1, SeqCst);
            });
            thread::scope(|scope| {
                for i in 0..4 {
                    let handle = handle.clone();
                    scope.spawn(move || {
                        for _ in 0..10 {
                            if (round + i) % 3 == 0 {
                                handle.abort();
                            } else {
                                handle.close();
                            }
                        }
                    });
                }
            });
            let _ = handle.done().wait();
            handle.close();
            handle.abort();
            // It is over when the callbacks begin to run.
            eventually("the callback", || closes.load(SeqCst) == round + 1);
            drop(peer);
        }
        server.stop();
    });
}

// ---------------------------------------------------------------------------------- waiting

#[test]
fn close_ends_a_handlers_wait_for_input() {
    every_blocking(|case| {
        let handles = Log::new();
        let results = Log::new();
        let [l1, l2] = [(); 2].map(|()| results.clone());
        let known = handles.clone();
        let server = case.serve(
            Script::new()
                .request(move |conn| {
                    known.push(conn.handle());
                    let error = conn.fill(100).unwrap_err();
                    l1.push(format!("{:?}", Error::from_io(&error)));
                    Err(error)
                })
                .disconnect(move |_, reason| l2.push(format!("{reason:?}"))),
        );
        for abort in [false, true] {
            let mut peer = server.connect();
            peer.write_all(b"x").unwrap();
            let handle: ConnectionHandle = handles.wait_len(1).remove(0);
            handles.take();
            if abort {
                handle.abort();
            } else {
                handle.close();
            }
            let reason = if abort { "Abort" } else { "Local" };
            assert_eq!(
                results.wait_len(2),
                [format!("Some(Closed({reason}))"), reason.into()]
            );
            results.take();
            peer.expect_gone();
        }
        server.stop();
    });
}

#[test]
fn close_through_a_handle_ends_the_owners_wait_for_input() {
    bounded("close", || {
        for abort in [false, true] {
            let (mut conn, peer) = pair();
            let handle = conn.handle();
            let waiting = thread::spawn(move || conn.fill(1).unwrap_err());
            if abort {
                handle.abort();
            } else {
                handle.close();
            }
            let error = waiting.join().unwrap();
            let reason = if abort {
                CloseReason::Abort
            } else {
                CloseReason::Local
            };
            assert_eq!(Error::from_io(&error), Some(Error::Closed(reason)));
            assert_eq!(error.kind(), io::ErrorKind::NotConnected);
            drop(peer);
        }
    });
}

#[test]
fn done_tells_every_waiter_how_it_ended() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (peer, handle) = server.connect_given(&handles);
        let done = handle.done();
        assert!(done.poll().is_none());
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let done = done.clone();
                thread::spawn(move || done.wait())
            })
            .collect();
        drop(peer);
        for waiter in waiters {
            let error = waiter.join().unwrap().unwrap_err();
            assert_eq!(
                Error::from_io(&error),
                Some(Error::Closed(CloseReason::Peer))
            );
        }
        assert!(done.poll().is_some());
        assert!(handle.send_bytes(b"x".as_slice().into()).is_err());
        server.stop();
    });
}

#[test]
fn a_local_end_is_no_error_of_done() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        for abort in [false, true] {
            let (peer, handle) = server.connect_given(&handles);
            if abort {
                handle.abort();
            } else {
                handle.close();
            }
            handle.done().wait().unwrap();
            drop(peer);
        }
        server.stop();
    });
}

// ---------------------------------------------------------------------------------- reasons

#[test]
fn the_reason_of_an_end_is_the_first_cause() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let handles = Log::new();
        let server = case.serve(giving(&handles).disconnect(move |_, reason| log.push(reason)));
        let next = || {
            let (peer, handle) = server.connect_given(&handles);
            (peer, handle)
        };
        let over = || {
            let reason = ends.wait_len(1).remove(0);
            ends.take();
            reason
        };
        let (peer, _) = next();
        drop(peer);
        assert_eq!(over(), CloseReason::Peer);
        let (_peer, handle) = next();
        handle.close();
        handle.abort();
        assert_eq!(over(), CloseReason::Local);
        let (_peer, handle) = next();
        handle.abort();
        handle.close();
        assert_eq!(over(), CloseReason::Abort);
        if case.transport == Transport::Tcp {
            let (peer, _) = next();
            peer.reset();
            assert_eq!(over(), CloseReason::Error(io::ErrorKind::ConnectionReset));
        }
        server.stop();
    });
}

#[test]
fn data_before_a_reset_is_delivered_before_the_error() {
    on_tcp(
        &[Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom],
        |case| {
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
            for round in 0..100 {
                let len = 1 + round * 700;
                let before = total.load(SeqCst);
                let mut peer = server.connect();
                peer.write_all(&vec![1; len]).unwrap();
                // A reset may overtake what the other side's kernel has not taken yet.
                eventually("the bytes leave this side", || peer.unsent() == 0);
                peer.reset();
                let end = ends.wait_len(1).remove(0);
                ends.take();
                assert_eq!(end, CloseReason::Error(io::ErrorKind::ConnectionReset));
                assert_eq!(total.load(SeqCst) - before, len, "bytes before the reset");
            }
            server.stop();
        },
    );
}

#[test]
fn data_before_a_fin_reaches_a_reader_that_comes_late() {
    bounded("late reader", || {
        let (mut conn, mut peer) = pair();
        peer.write_all(&[1; 256]).unwrap();
        drop(peer);
        eventually("the poller sees the end", || !conn.is_active());
        assert_eq!(conn.next(256).unwrap(), [1; 256]);
        let error = conn.next(1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(
            Error::from_io(&error),
            Some(Error::PeerClosed {
                wanted: 1,
                available: 0
            })
        );
        assert_eq!(
            conn.read(&mut [0; 8]).unwrap(),
            0,
            "std's way to tell the end"
        );
    });
}

#[test]
fn an_idle_client_learns_of_the_peers_end_without_reading() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let closes = Log::new();
        let conn = server.dial();
        let log = closes.clone();
        conn.on_close(move |reason| log.push(reason));
        assert!(conn.is_active());
        handles.wait_len(1).remove(0).close();
        eventually("the end is noticed", || !conn.is_active());
        assert!(conn.is_read_closed() || conn.available() == 0);
        drop(conn);
        closes.wait_len(1);
        server.stop();
    });
}

#[test]
fn an_idle_client_whose_output_waited_learns_of_it() {
    const MUCH: usize = 8 << 20;
    bounded("output that waited", || {
        for transport in [Transport::Tcp, Transport::Unix] {
            let listener = std::os::unix::net::UnixListener::bind(crate::support::fresh_path());
            let tcp = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
            let (mut conn, mut peer): (Connection, Box<dyn Read + Send>) = match transport {
                Transport::Tcp => {
                    let conn = Dialer::new().dial_connection(tcp.local_addr().unwrap());
                    (conn.unwrap(), Box::new(tcp.accept().unwrap().0))
                }
                Transport::Unix => {
                    let listener = listener.unwrap();
                    let address = listener.local_addr().unwrap();
                    let path = address.as_pathname().unwrap().to_path_buf();
                    let conn = Dialer::new().dial_connection(path);
                    (conn.unwrap(), Box::new(listener.accept().unwrap().0))
                }
            };
            conn.write_bytes(vec![7; MUCH].into()).unwrap();
            assert!(!conn.try_flush().unwrap(), "the socket took all of it");
            // Its poller watches for room as well from here on.
            peer.read_exact(&mut vec![0; MUCH]).unwrap();
            conn.flush().unwrap();
            let closes = Log::new();
            let log = closes.clone();
            conn.on_close(move |reason| log.push(reason));
            assert!(conn.is_active());
            drop(peer);
            eventually("the end is noticed", || !conn.is_active());
            drop(conn);
            closes.wait_len(1);
        }
    });
}

// ----------------------------------------------------------------------------------- detach

#[test]
fn a_detached_descriptor_goes_on_with_what_was_received() {
    bounded("detach", || {
        let (mut conn, mut peer) = pair();
        peer.write_all(b"0123456789").unwrap();
        assert_eq!(conn.next(4).unwrap(), b"0123");
        conn.fill(6).unwrap();
        let closes = Log::new();
        let log = closes.clone();
        conn.on_close(move |reason| log.push(reason));
        let handle = conn.handle();
        let (fd, mut rest) = conn.detach().unwrap();
        assert_eq!(closes.all(), [CloseReason::Local]);
        assert_eq!(rest.next(6).unwrap(), b"456789");
        assert!(handle.send_bytes(b"x".as_slice().into()).is_err());
        let mut stream = std::net::TcpStream::from(fd);
        stream.set_nonblocking(false).unwrap();
        stream.write_all(b"still here").unwrap();
        let mut got = [0; 10];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"still here");
        peer.write_all(b"me too").unwrap();
        let mut got = [0; 6];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"me too");
        drop(stream);
        peer.expect_end();
    });
}

#[test]
fn detach_refuses_while_output_is_unsent() {
    bounded("detach", || {
        let (mut conn, mut peer) = pair();
        conn.write_slice(b"unsent").unwrap();
        let error = conn.detach().unwrap_err();
        assert!(matches!(
            Error::from_io(&error),
            Some(Error::OutputFull { queued: 6, .. })
        ));
        // The connection is closed then.
        peer.expect_gone();
    });
}

// -------------------------------------------------------------------------------- descriptors

#[test]
fn sockets_are_close_on_exec_and_non_blocking() {
    fn check(conn: &Connection) {
        let fd = conn.as_fd().as_raw_fd();
        // SAFETY: F_GETFD takes no further argument and touches no memory.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        // SAFETY: F_GETFL takes no further argument and touches no memory.
        let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
        assert_eq!(flags & libc::O_NONBLOCK, libc::O_NONBLOCK);
    }
    every(|case| {
        let server = case.serve(Script::new().prepare(|conn| {
            check(conn);
            Ok(())
        }));
        let conn = server.dial();
        check(&conn);
        drop(conn);
        server.stop();
    });
}

#[test]
fn a_child_process_inherits_no_socket() {
    in_child("a_child_process_inherits_no_socket", || {
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let mut peer = server.connect();
        let client = server.dial();
        let both = handles.wait_len(2);
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let path = format!("/proc/{}/fd", child.id());
        let sockets = || {
            std::fs::read_dir(&path)
                .unwrap()
                .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
                .filter(|to| to.to_string_lossy().starts_with("socket:"))
                .count()
        };
        // Between fork and exec it has them all.
        let comm = format!("/proc/{}/comm", child.id());
        eventually("the exec", || {
            std::fs::read_to_string(&comm).unwrap().trim() == "sleep"
        });
        let inherited = sockets();
        for handle in both {
            handle.close();
        }
        // The peer sees the end although the child lives.
        peer.expect_end();
        drop(client);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(inherited, 0);
    });
}

#[test]
fn connections_leave_no_descriptor_behind() {
    in_child("connections_leave_no_descriptor_behind", || {
        for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom] {
            let case = Case::new(Transport::Tcp, kind);
            let server = case.serve(echo());
            let mut steady = server.connect();
            steady.ping(b"up");
            let mut dialled = server.dial();
            dialled.write_slice(&frame(b"x")).unwrap();
            dialled.flush().unwrap();
            dialled.skip(5).unwrap();
            drop(dialled);
            eventually("the client's end", || server.event_loop.stats().active == 1);
            let before = crate::support::descriptors();
            for i in 0..200 {
                let mut peer = server.connect();
                match i % 5 {
                    0 => peer.ping(b"whole"),
                    1 => peer.write_all(&frame(b"partial")[..6]).unwrap(),
                    2 => peer.shutdown_write(),
                    3 => {
                        drop(server.dial());
                    }
                    _ => {
                        let mut conn = server.dial();
                        conn.write_slice(&frame(b"x")).unwrap();
                        conn.flush().unwrap();
                        conn.skip(5).unwrap();
                        conn.abort();
                    }
                }
                if i % 2 == 0 {
                    peer.reset();
                }
            }
            settled_descriptors(before);
            steady.ping(b"still up");
            drop(steady);
            server.stop();
        }
    });
}

#[test]
fn reused_descriptor_numbers_never_mix_connections_up() {
    // Two servers, many short dials in parallel: a message must reach the server it was for.
    every(|case| {
        let wrong = Arc::new(AtomicUsize::new(0));
        let right = Arc::new(AtomicUsize::new(0));
        let servers: Vec<_> = (0..2u8)
            .map(|own| {
                let (wrong, right) = (Arc::clone(&wrong), Arc::clone(&right));
                Arc::new(case.serve(handler_fn(move |conn| {
                    let Some(to) = conn.try_next(1)? else {
                        return Ok(());
                    };
                    let counter = if to[0] == own { &right } else { &wrong };
                    counter.fetch_add(1, SeqCst);
                    Ok(())
                })))
            })
            .collect();
        let dials: Vec<_> = (0..8usize)
            .map(|i| {
                let servers = servers.clone();
                thread::spawn(move || {
                    for round in 0..25 {
                        let to = (i + round) % 2;
                        let mut conn = servers[to].dial();
                        conn.write_slice(&[to as u8]).unwrap();
                        conn.flush().unwrap();
                        conn.close().unwrap();
                    }
                })
            })
            .collect();
        for dial in dials {
            dial.join().unwrap();
        }
        eventually("all messages", || {
            right.load(SeqCst) + wrong.load(SeqCst) == 200
        });
        assert_eq!(wrong.load(SeqCst), 0);
        for server in servers {
            Arc::into_inner(server).expect("the dials are over").stop();
        }
    });
}

#[test]
fn handles_do_not_keep_the_descriptor() {
    in_child("handles_do_not_keep_the_descriptor", || {
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        drop(server.connect());
        handles.wait_len(1);
        let event_loop = &server.event_loop;
        eventually("the first", || event_loop.stats().active == 0);
        let before = crate::support::descriptors();
        let peers: Vec<Peer> = (0..50).map(|_| server.connect()).collect();
        let kept = handles.wait_len(51);
        drop(peers);
        settled_descriptors(before);
        assert_eq!(kept.iter().filter(|handle| handle.is_active()).count(), 0);
    });
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn writes_race_with_close_without_a_panic() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        for round in 0..40 {
            let (mut peer, handle) = server.connect_given(&handles);
            let reader = thread::spawn(move || {
                let _ = io::copy(&mut peer, &mut io::sink());
            });
            thread::scope(|scope| {
                for _ in 0..2 {
                    let handle = handle.clone();
                    scope.spawn(move || {
                        loop {
                            if let Err(e) = handle.send_bytes(vec![1; 3000].into()) {
                                match Error::from_io(&e) {
                                    Some(Error::Closed(_)) => break,
                                    Some(Error::OutputFull { .. }) => thread::yield_now(),
                                    other => panic!("{other:?}: {e}"),
                                }
                            }
                        }
                    });
                }
                let handle = handle.clone();
                scope.spawn(move || {
                    eventually("some output", || handle.stats().bytes_out >= 10_000);
                    if round % 2 == 0 {
                        handle.close()
                    } else {
                        handle.abort()
                    }
                });
            });
            handle.done().wait().unwrap();
            let stats = handle.stats();
            assert_eq!(stats.queued, 0, "{stats:?}");
            assert_eq!(
                stats.bytes_out + stats.lost_bytes,
                stats.messages_out * 3000,
                "accepted messages are written or counted: {stats:?}"
            );
            reader.join().unwrap();
        }
        server.stop();
    });
}

#[test]
fn what_was_not_received_at_a_close_is_not_read() {
    bounded("reads", || {
        for reason in [CloseReason::Local, CloseReason::Abort] {
            let (mut conn, mut peer) = pair();
            peer.write_all(&[1; 100]).unwrap();
            conn.fill(100).unwrap();
            // As of a peer that never pauses: there is always more.
            peer.write_all(&[2; 4096]).unwrap();
            match reason {
                CloseReason::Abort => conn.handle().abort(),
                _ => conn.handle().close(),
            }
            let closed = Some(Error::Closed(reason));
            assert_eq!(conn.next(60).unwrap(), [1; 60], "it was here before");
            assert_eq!(Error::from_io(&conn.fill(100).unwrap_err()), closed);
            assert_eq!(Error::from_io(&conn.try_fill(100).unwrap_err()), closed);
            assert_eq!(conn.next(40).unwrap(), [1; 40]);
            assert_eq!(Error::from_io(&conn.next(1).unwrap_err()), closed);
            assert_eq!(Error::from_io(&conn.until(2).unwrap_err()), closed);
        }
    });
}

#[test]
fn reads_race_with_close_without_a_panic() {
    bounded("reads", || {
        for round in 0..100 {
            let (mut conn, mut peer) = pair();
            let handle = conn.handle();
            let feeding = thread::spawn(move || {
                loop {
                    if let Err(e) = peer.write(&[1; 4096]) {
                        break e;
                    }
                }
            });
            let reading = thread::spawn(move || {
                loop {
                    match conn.next(100) {
                        Ok(bytes) => assert_eq!(bytes, [1; 100]),
                        Err(e) => break e,
                    }
                }
            });
            eventually("some input", || handle.stats().bytes_in >= 20_000);
            if round % 2 == 0 {
                handle.close()
            } else {
                handle.abort()
            }
            let error = reading.join().unwrap();
            assert!(
                matches!(Error::from_io(&error), Some(Error::Closed(_))),
                "{error:?}"
            );
            // Nobody leaves a peer that goes on sending without an answer.
            let end = feeding.join().unwrap();
            assert!(
                matches!(
                    end.kind(),
                    io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
                ),
                "round {round}: {end}"
            );
        }
    });
}

#[test]
fn a_reset_storm_wears_nothing_out() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Inline], |case| {
        let server = case.serve(echo());
        let mut steady = server.connect();
        for i in 0..500usize {
            let mut peer = server.connect();
            if i % 3 == 0 {
                peer.write_all(&frame(b"partial")[..5]).unwrap();
            }
            peer.reset();
            if i % 10 == 0 {
                steady.ping(b"lives");
            }
        }
        let event_loop = &server.event_loop;
        eventually("the ends", || event_loop.stats().active == 1);
        drop(steady);
        server.stop();
    });
}

#[test]
fn a_broken_pipe_raises_no_signal() {
    in_child("a_broken_pipe_raises_no_signal", || {
        // SAFETY: the default action is no function of ours; Rust's runtime set it to ignore.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        let (mut conn, peer) = pair();
        peer.reset();
        eventually("an error", || {
            conn.write_slice(b"x").and_then(|()| conn.flush()).is_err()
        });
        assert!(conn.write_slice(b"x").and_then(|()| conn.flush()).is_err());
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(right);
        // The same without the library would have killed this process.
        assert!(
            SockRef::from(&left)
                .send_with_flags(b"x", libc::MSG_NOSIGNAL)
                .is_err()
        );
    });
}

#[test]
fn options_do_not_change_how_a_connection_ends() {
    on_tcp(&[Kind::Adaptive, Kind::Workers], |case| {
        let options = SocketOptions::new()
            .send_buffer(8192)
            .recv_buffer(8192)
            .nodelay(false);
        let server = case.serve_with(case.builder().socket(options), echo());
        let mut peer = server.connect();
        let body = pattern(8, 300_000);
        let mut sender = peer.try_clone();
        let out = frame(&body);
        let sending = thread::spawn(move || {
            sender.write_all(&out).unwrap();
            sender.shutdown_write();
        });
        assert!(read_frame(&mut peer).unwrap() == body);
        peer.expect_end();
        sending.join().unwrap();
        server.stop();
    });
}

#[test]
fn what_was_flushed_before_an_error_is_still_sent() {
    every(|case| {
        let server = case.serve(Script::new().request(|conn| {
            conn.skip(conn.available())?;
            conn.write_bytes(vec![5; MUCH].into())?;
            conn.try_flush()?;
            Err(io::ErrorKind::InvalidData.into())
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), MUCH);
        drop(peer);
        server.stop();
    });
}

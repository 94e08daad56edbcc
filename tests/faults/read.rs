//! Rows 15 to 35 of the fault matrix (`docs/reliability.md`): input.
//!
//! A plan of faults is for the whole process, so the tests take turns.

use crate::support::{
    Case, Gate, Kind, Log, OpenOnDrop, Peer, Script, Transport, bounded, decode, descriptors, echo,
    echo_frames, eventually, every, frame, in_child, on_tcp, pattern, read_frame,
    settled_descriptors,
};
use netpoll::{
    CloseReason,
    fault::{Call, Fault, Plan},
};
use std::{io::Write, net::Shutdown};

const KINDS: [Kind; 3] = [Kind::Adaptive, Kind::Workers, Kind::Inline];

/// How a peer leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Leave {
    HalfClose,
    Close,
    Reset,
}

impl Leave {
    /// What is left of the peer: to be kept until the test is over.
    fn take(self, peer: Peer) -> Option<Peer> {
        match self {
            Self::HalfClose => {
                peer.shutdown_write();
                Some(peer)
            }
            Self::Close => None,
            Self::Reset => {
                peer.reset();
                None
            }
        }
    }
}

/// What a handler saw of a connection.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    Bytes(Vec<u8>),
    End(CloseReason),
}

fn watched(log: &Log<Seen>) -> Script {
    let (seen, ended) = (log.clone(), log.clone());
    Script::new()
        .request(move |conn| {
            let bytes = conn.next(conn.available())?.to_vec();
            seen.push(Seen::Bytes(bytes));
            Ok(())
        })
        .disconnect(move |_, reason| ended.push(Seen::End(reason)))
}

/// All bytes that were seen, and the end, which must be the last thing.
fn summary(log: &Log<Seen>) -> (Vec<u8>, CloseReason) {
    let is_end = |seen: &Seen| matches!(seen, Seen::End(_));
    let mut events = log.wait("the end", |events| events.iter().any(is_end));
    let Some(Seen::End(reason)) = events.pop() else {
        panic!("something was seen behind the end: {events:?}");
    };
    let bytes = events.into_iter().flat_map(|event| match event {
        Seen::Bytes(bytes) => bytes,
        Seen::End(_) => panic!("two ends"),
    });
    (bytes.collect(), reason)
}

#[test]
fn row_015_every_byte_before_a_fin_is_seen_however_little_is_received_at_once() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let log = Log::new();
        let server = case.serve(watched(&log));
        let sent = pattern(15, 3000);
        for cap in [1, 7, 2999] {
            let plan = Plan::new(15).every(Call::Receive, 1, Fault::Short(cap));
            let installed = plan.install();
            let mut peer = server.connect();
            peer.write_all(&sent).unwrap();
            drop(peer);
            let (seen, reason) = summary(&log);
            assert!(seen == sent, "{} of {} bytes", seen.len(), sent.len());
            assert_eq!(reason, CloseReason::Peer);
            drop(installed);
            log.take();
        }
        server.stop();
    });
}

#[test]
fn row_016_every_byte_before_a_reset_is_seen_however_little_is_received_at_once() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let log = Log::new();
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let server = case.serve(watched(&log).connect(move |_| {
            held.pass();
            Ok(())
        }));
        let sent = pattern(16, 3000);
        let plan = Plan::new(16).every(Call::Receive, 1, Fault::Short(11));
        let installed = plan.install();
        let mut peer = server.connect();
        gate.wait_arrived(1);
        peer.write_all(&sent).unwrap();
        peer.reset();
        gate.open();
        let (seen, reason) = summary(&log);
        assert!(seen == sent, "{} of {} bytes", seen.len(), sent.len());
        assert!(matches!(reason, CloseReason::Error(_)), "{reason:?}");
        drop(installed);
        server.stop();
    });
}

#[test]
fn row_017_whatever_is_reported_together_the_bytes_come_first_and_the_end_once() {
    let _turn = crate::TURN.lock();
    every(|case| {
        for leave in [Leave::HalfClose, Leave::Close, Leave::Reset] {
            for size in [0, 5] {
                for (shut, early) in [(false, false), (true, false), (false, true), (true, true)] {
                    left_by(case, leave, size, shut, early);
                }
            }
        }
    });
}

/// `shut`: our sending side ends first. `early`: all of it happens before anybody looks.
fn left_by(case: Case, leave: Leave, size: usize, shut: bool, early: bool) {
    let log = Log::new();
    let gate = Gate::new();
    let _open = OpenOnDrop(gate.clone());
    let held = gate.clone();
    let server = case.serve(watched(&log).connect(move |conn| {
        if shut {
            conn.shutdown(Shutdown::Write)?;
        }
        if early {
            held.pass();
        }
        Ok(())
    }));
    let mut peer = server.connect();
    if early {
        gate.wait_arrived(1);
    } else {
        eventually("the connection", || {
            server.event_loop.stats().connected == 1
        });
    }
    let sent = pattern(17, size);
    peer.write_all(&sent).unwrap();
    let rest = leave.take(peer);
    gate.open();
    let (seen, reason) = summary(&log);
    let what = format!("{case:?}, {leave:?}, {size} bytes, shut {shut}, early {early}");
    // A unix socket has no reset: it is a close.
    let reset = leave == Leave::Reset && case.transport == Transport::Tcp;
    assert_eq!(seen, sent, "{what}");
    match reason {
        CloseReason::Peer if !reset => {}
        CloseReason::Error(_) if reset => {}
        other => panic!("{other:?} with {what}"),
    }
    drop(rest);
    server.stop();
}

#[test]
fn row_020_a_false_alarm_is_waited_out() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let server = case.serve(echo());
        let mut peer = server.connect();
        peer.ping(b"up");
        for times in 1..=3 {
            let plan = Plan::new(20).from(Call::Receive, 1, times, Fault::Errno(libc::EAGAIN));
            let installed = plan.install();
            // Each of these is announced and not found. The server may have looked once more for what the
            // last round brought, and have had a false alarm then.
            for hit in 1..=times {
                peer.write_all(&frame(&[hit as u8])).unwrap();
                eventually("the false alarm", || installed.hits(Call::Receive) >= hit);
            }
            peer.write_all(&frame(b"the last")).unwrap();
            for hit in 1..=times {
                assert_eq!(read_frame(&mut peer).unwrap(), [hit as u8]);
            }
            assert_eq!(read_frame(&mut peer).unwrap(), b"the last");
        }
        drop(peer);
        server.stop();
    });
}

#[test]
fn row_022_input_that_fills_a_buffer_to_the_last_byte_is_no_end() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let server = case.serve_with(
            case.builder().input_limits(128 << 10, 4 << 20),
            Script::new().request(|conn| {
                while let Some(frame) = decode(conn)? {
                    conn.append(frame)?;
                }
                // Inline handlers may not wait for room.
                conn.try_flush().map(drop)
            }),
        );
        let mut peer = server.connect();
        for edge in [4 << 10, 16 << 10, 64 << 10, 128 << 10, 1 << 20] {
            for size in [edge - 1, edge, edge + 1] {
                let body = pattern(22, size - 4);
                peer.ping(&body);
            }
        }
        peer.ping(b"no end so far");
        drop(peer);
        server.stop();
    });
}

#[test]
fn row_026_peers_that_leave_parts_of_messages_wear_nothing_out() {
    let _turn = crate::TURN.lock();
    in_child(
        "row_026_peers_that_leave_parts_of_messages_wear_nothing_out",
        || {
            bounded("parts of messages", || {
                for kind in KINDS {
                    for transport in [Transport::Tcp, Transport::Unix] {
                        leave_parts(Case::new(transport, kind));
                    }
                }
            });
        },
    );
}

fn leave_parts(case: Case) {
    let server = case.serve(echo());
    let mut steady = server.connect();
    steady.ping(b"up");
    let event_loop = &server.event_loop;
    eventually("quiet", || event_loop.stats().active == 1);
    let before = descriptors();
    let rounds = 300;
    for round in 0..rounds {
        let mut peer = server.connect();
        // A part of the length, or of the body.
        let part = &frame(&[7; 100])[..1 + round % 90];
        peer.write_all(part).unwrap();
        let leave = [Leave::HalfClose, Leave::Close, Leave::Reset][round % 3];
        if let Some(mut rest) = leave.take(peer) {
            rest.expect_gone();
        }
    }
    eventually("their ends", || {
        event_loop.stats().closed == rounds as u64 && event_loop.stats().active == 1
    });
    settled_descriptors(before);
    steady.ping(b"still up");
    drop(steady);
    server.stop();
}

#[test]
fn row_035_a_message_takes_one_receive() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let server = case.serve(echo());
        let mut peer = server.connect();
        for _ in 0..3 {
            peer.ping(b"the connection and its buffers are there");
        }
        // The plan does nothing but count.
        let counts = Plan::new(35).install();
        let messages = 50;
        for _ in 0..messages {
            // The echo comes behind the receive. Whether another one follows shows with the next message.
            peer.ping(b"whole");
        }
        let receives = counts.calls(Call::Receive);
        drop(counts);
        assert_eq!(receives, messages, "{case:?}");
        drop(peer);
        server.stop();
    });
}

#[test]
fn row_035_a_receive_that_a_tracer_cuts_loses_nothing() {
    let _turn = crate::TURN.lock();
    every(|case| {
        let raw = Script::new().request(|conn| {
            let n = conn.available();
            let all = conn.next_bytes(n)?;
            conn.write_bytes(all)?;
            conn.flush()
        });
        let server = case.serve(raw);
        let framed = case.serve(Script::new().request(echo_frames));
        let body = pattern(35, 700);
        let mut old = framed.connect();
        for _ in 0..40 {
            old.ping(&body);
        }
        {
            // From the first receive on, whatever the handler takes.
            let _cut = Plan::new(35)
                .every(Call::Receive, 1, Fault::Cut(7))
                .install();
            for server in [&server, &framed] {
                let mut peer = server.connect();
                for _ in 0..5 {
                    peer.ping(&body);
                }
            }
        }
        {
            // On a connection whose counts have always been right, in the middle of a message.
            let _cut = Plan::new(35)
                .every(Call::Receive, 3, Fault::Cut(100))
                .install();
            for _ in 0..40 {
                old.ping(&body);
            }
        }
        drop(old);
        server.stop();
        framed.stop();
    });
}

//! What all connections of a loop hold together, and what happens when that is too much.

use crate::support::{
    Case, Kind, Log, Peer, Script, Server, Transport, bounded, counting, echo, echo_frames,
    eventually, every, frame, giving, in_child, on_tcp, read_frame,
};
use netpoll::{
    CloseReason, Connection, ConnectionHandle, Error, EventLoop, EventLoopBuilder, OnFull,
    SocketOptions, handler_fn, linkbuffer::ChunkPool,
};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
};

const MIB: usize = 1 << 20;

/// Connections whose peers read nothing, in the order they were made.
struct Stalled {
    peers: Vec<Peer>,
    handles: Vec<ConnectionHandle>,
}

/// Ends a loop whose connections are over, cut or not.
fn stop(server: Server) {
    eventually("all are gone", || server.event_loop.stats().active == 0);
    server.stop();
}

impl Stalled {
    /// With sockets that take nothing more.
    fn new(server: &Server, handles: &Log<ConnectionHandle>, count: usize) -> Self {
        let (mut peers, mut stalled) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let peer = Peer::connect_small(&server.address).unwrap();
            let handle = handles.wait_len(1).remove(0);
            handles.take();
            while handle.stats().queued == 0 {
                handle.send_bytes(vec![0; 64 << 10].into()).unwrap();
            }
            peers.push(peer);
            stalled.push(handle);
        }
        Self {
            peers,
            handles: stalled,
        }
    }

    /// Queues that much for one of them.
    fn queue(&self, which: usize, bytes: usize) {
        let handle = &self.handles[which];
        for _ in 0..bytes / (64 << 10) {
            // The last one may be what ends it.
            let _ = handle.send_bytes(vec![1; 64 << 10].into());
        }
    }
}

fn limited(case: Case, limit: usize) -> EventLoopBuilder {
    // What a socket takes stays the same.
    case.builder()
        .socket(
            SocketOptions::new()
                .send_buffer(64 << 10)
                .recv_buffer(64 << 10),
        )
        .memory_limit(limit)
        .output_limit(usize::MAX, OnFull::Error)
}

fn ends(handles: &Log<ConnectionHandle>, ends: &Log<CloseReason>) -> Script {
    let log = ends.clone();
    giving(handles)
        .request(echo_frames)
        .disconnect(move |_, reason| log.push(reason))
}

#[test]
fn above_the_limit_the_largest_is_closed() {
    every(|case| {
        let (handles, reasons) = (Log::new(), Log::new());
        let server = case.serve_with(limited(case, 8 * MIB), ends(&handles, &reasons));
        let stalled = Stalled::new(&server, &handles, 8);
        for small in [0, 1, 2, 4, 5, 6, 7] {
            stalled.queue(small, MIB / 2);
        }
        stalled.queue(3, 3 * MIB);
        let held = server.event_loop.stats().held;
        assert!(held > 5 * MIB && held < 8 * MIB, "{held}");
        assert_eq!(reasons.len(), 0);
        stalled.queue(3, 3 * MIB);
        assert_eq!(reasons.wait_len(1), [CloseReason::Overload]);
        let over = stalled.handles[3].done().wait().unwrap_err();
        let overload = Error::Closed(CloseReason::Overload);
        assert_eq!(Error::from_io(&over), Some(overload));
        eventually("it is let go of", || {
            server.event_loop.stats().held < 5 * MIB
        });
        let stats = server.event_loop.stats();
        assert_eq!((stats.overloaded, reasons.len()), (1, 1), "and no other");
        server.connect().ping(b"others are served");
        for handle in &stalled.handles {
            handle.abort();
        }
        eventually("nothing is held", || server.event_loop.stats().held == 0);
        drop(stalled);
        stop(server);
    });
}

/// Waits for a message of this length and answers with as much.
fn answer_all(conn: &mut Connection, len: usize) -> io::Result<()> {
    conn.skip(len)?;
    conn.write_slice(b"done")?;
    conn.flush()
}

/// One connection has much queued, the message of another one comes. It is not read to the end before
/// there is memory.
fn read_when_there_is_memory(case: Case, request: fn(&mut Connection, usize) -> io::Result<()>) {
    const LEN: usize = 3 * MIB;
    let (handles, reasons) = (Log::new(), Log::new());
    let log = reasons.clone();
    let server = case.serve_with(
        limited(case, 8 * MIB),
        giving(&handles)
            .request(move |conn| match conn.peek(1)?[0] {
                b'+' => request(conn, LEN),
                _ => echo_frames(conn),
            })
            .disconnect(move |_, reason| log.push(reason)),
    );
    let mut stalled = Stalled::new(&server, &handles, 1);
    stalled.queue(0, 4 * MIB + MIB / 2);
    let (mut peer, handle) = server.connect_given(&handles);
    let answered = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&answered);
    let sending = thread::spawn(move || {
        peer.write_all(&[b'+'; LEN]).unwrap();
        let mut answer = [0; 4];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"done");
        done.store(true, SeqCst);
    });
    let event_loop = &server.event_loop;
    eventually("the mark is passed", || event_loop.stats().held > 6 * MIB);
    let mut other = server.connect();
    for _ in 0..300 {
        other.ping(b"others are served meanwhile");
    }
    let stats = event_loop.stats();
    assert!(!answered.load(SeqCst), "{:?}", handle.stats());
    assert!(handle.stats().bytes_in < LEN as u64);
    assert!(stats.held < 8 * MIB && stats.overloaded == 0, "{stats:?}");
    // The queue goes, and reading goes on.
    let (figures, peer) = (stalled.handles[0].stats(), &mut stalled.peers[0]);
    let sent = figures.bytes_out as usize + figures.queued;
    peer.read_exact(&mut vec![0; sent]).unwrap();
    sending.join().unwrap();
    drop((stalled, other));
    eventually("nothing is held", || event_loop.stats().held == 0);
    assert!(!reasons.all().contains(&CloseReason::Overload));
    stop(server);
}

#[test]
fn those_that_hold_most_are_read_when_there_is_memory() {
    every(|case| {
        read_when_there_is_memory(case, |conn, len| {
            if conn.try_fill(len)? {
                answer_all(conn, len)?;
            }
            Ok(())
        });
    });
}

#[test]
fn a_handler_that_waits_gets_its_input_when_there_is_memory() {
    // The only worker would be the one that waits.
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        read_when_there_is_memory(case, answer_all);
    });
}

/// Messages that are begun and never finished, of which the last ones are the largest.
#[test]
fn partial_messages_count_and_the_largest_are_closed() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Inline], |case| {
        let (handles, reasons) = (Log::new(), Log::new());
        let log = reasons.clone();
        let server = case.serve_with(
            limited(case, 4 * MIB),
            giving(&handles)
                .request(move |conn| match conn.try_fill(32 * MIB)? {
                    true => panic!("no peer sends that much"),
                    false => Ok(()),
                })
                .disconnect(move |id, reason| log.push((id, reason))),
        );
        let (mut peers, mut ids) = (Vec::new(), Vec::new());
        for i in 0..=6 {
            let (mut peer, handle) = server.connect_given(&handles);
            ids.push(handle.id());
            // Each is read as far as there is memory, which is not at once.
            peers.push(thread::spawn(move || {
                let sent = peer.write_all(&vec![0; 2000 + i * MIB / 2]);
                (peer, sent.is_ok())
            }));
        }
        // 10.5 MiB are wanted. The shortage does not end by itself, so the largest go.
        let ended = reasons.wait("one is closed", |ended| !ended.is_empty());
        assert!(
            ended
                .iter()
                .all(|(_, reason)| *reason == CloseReason::Overload)
        );
        eventually("the sum is below the mark", || {
            server.event_loop.stats().held < 3 * MIB
        });
        let ended = reasons.all();
        assert!(
            !ended.iter().any(|(id, _)| *id == ids[0]),
            "the smallest: {ended:?} of {ids:?}"
        );
        let (_smallest, sent) = peers.remove(0).join().unwrap();
        assert!(sent);
        server.connect();
        let left = server.event_loop.shutdown_forced(std::time::Duration::ZERO);
        assert!(left.is_ok(), "{left:?}");
        assert_eq!(server.event_loop.stats().held, 0);
        for peer in peers {
            drop(peer.join().unwrap());
        }
    });
}

#[test]
fn unflushed_output_that_stays_counts() {
    every(|case| {
        let server = case.serve_with(
            limited(case, 64 * MIB),
            handler_fn(|conn: &mut Connection| {
                let flush = conn.peek(1)? == b"!";
                conn.skip(conn.available())?;
                if flush {
                    return conn.flush();
                }
                conn.write_slice(&[7; 300 << 10])
            }),
        );
        let held = || server.event_loop.stats().held;
        let mut peer = server.connect();
        for round in 1..=3 {
            peer.write_all(b"x").unwrap();
            let least = round * (260 << 10);
            eventually("it is counted", || held() >= least);
        }
        peer.write_all(b"!").unwrap();
        peer.read_exact(&mut vec![0; 900 << 10]).unwrap();
        eventually("it is gone", || held() == 0);
        peer.write_all(b"x").unwrap();
        eventually("it is counted again", || held() > 0);
        drop(peer);
        eventually("it ended with its connection", || held() == 0);
        stop(server);
    });
}

#[test]
fn memory_stays_at_the_limit_however_many_want_more() {
    in_child("memory_stays_at_the_limit_however_many_want_more", || {
        const LIMIT: usize = 16 * MIB;
        let handles = Log::new();
        let case = Case::new(Transport::Unix, Kind::Adaptive);
        let server = case.serve_with(limited(case, LIMIT), giving(&handles));
        let live = || {
            ChunkPool::global().clear();
            counting::live()
        };
        let before = live();
        let stalled = Stalled::new(&server, &handles, 60);
        let mut most = 0;
        // 60 MiB in all.
        for round in 0..16 {
            for which in 0..stalled.handles.len() {
                // Of different sizes.
                stalled.queue(which, (64 << 10) * (1 + (which + round) % 2));
                most = most.max(live().saturating_sub(before));
            }
        }
        println!("{most} bytes at most, {:?}", server.event_loop.stats());
        assert!(most <= LIMIT / 4 * 5 + MIB, "{most} bytes");
        assert!(most >= LIMIT / 2, "{most} bytes: the limit was not reached");
        assert!(server.event_loop.stats().overloaded >= 5);
        drop(stalled);
        eventually("nothing is held", || server.event_loop.stats().held == 0);
        stop(server);
    });
}

#[test]
fn nothing_is_received_above_the_limit() {
    const LIMIT: usize = 48 * MIB;
    const PEERS: usize = 120;
    /// More than all may hold.
    const MESSAGE: usize = 64 * MIB;
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        for waits in [false, true] {
            let server = case.serve_with(
                limited(case, LIMIT).input_limits(MESSAGE, MESSAGE),
                handler_fn(move |conn| match waits {
                    true => conn.fill(MESSAGE),
                    false => conn.try_fill(MESSAGE).map(drop),
                }),
            );
            let writers: Vec<_> = (0..PEERS)
                .map(|_| {
                    let mut peer = server.connect();
                    thread::spawn(move || {
                        let part = vec![0; 256 << 10];
                        while peer.write_all(&part).is_ok() {}
                    })
                })
                .collect();
            let mut most = 0;
            eventually("some are closed", || {
                let stats = server.event_loop.stats();
                most = most.max(stats.held);
                stats.overloaded >= 8
            });
            // What threads receive at the same time comes on top, and room that a large message got before.
            assert!(most <= 2 * LIMIT, "{most} bytes, {waits}");
            drop(server);
            for writer in writers {
                writer.join().unwrap();
            }
        }
    });
}

#[test]
fn a_limit_of_nearly_nothing_is_refused_and_none_is_none() {
    bounded("limits", || {
        for bytes in [0, MIB - 1] {
            let error = EventLoop::builder()
                .memory_limit(bytes)
                .build(echo())
                .unwrap_err();
            assert!(matches!(
                Error::from_io(&error),
                Some(Error::Unsupported(_))
            ));
        }
        let handles = Log::new();
        let case = Case::new(Transport::Unix, Kind::Inline);
        let server = case.serve_with(limited(case, usize::MAX), giving(&handles));
        let stalled = Stalled::new(&server, &handles, 1);
        stalled.queue(0, 2 * MIB);
        assert_eq!(server.event_loop.stats().held, 0, "not counted");
        drop(stalled);
        stop(server);
    });
}

/// Requests of all sizes, answered, cut and left unfinished.
#[test]
fn what_was_charged_is_given_back_whatever_happens() {
    every(|case| {
        let server = case.serve_with(limited(case, 256 * MIB), echo());
        let mut peers: Vec<Peer> = (0..12).map(|_| server.connect()).collect();
        for (i, peer) in peers.iter_mut().enumerate() {
            for n in [1, 5000, 70_000, 600_000] {
                peer.ping(&vec![i as u8; n + i]);
            }
            let message = frame(&vec![1; 400_000]);
            match i % 4 {
                // A part stays, or comes to its end later.
                0 => peer.write_all(&message[..100_000 + i]).unwrap(),
                1 => {
                    peer.write_all(&message[..300_000]).unwrap();
                    peer.write_all(&message[300_000..]).unwrap();
                    assert_eq!(read_frame(peer).unwrap().len(), 400_000);
                }
                // Answers that are never read.
                2 => peer.write_all(&message).unwrap(),
                _ => {}
            }
        }
        eventually("something is held", || server.event_loop.stats().held > 0);
        drop(peers);
        eventually("nothing is held", || server.event_loop.stats().held == 0);
        stop(server);
    });
}

//! Rows of docs/reliability.md that several causes meet in: senders, closes, half-closed peers,
//! places for connections.
//!
//! A plan of faults is for the whole process, so the tests take turns.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Transport, bounded, eventually, every, frame, giving,
    in_child, on_tcp, pattern, read_frame, socket_pair,
};
use netpoll::{
    Bytes, CloseReason, Dialer, Error, PollerGroup,
    fault::{Call, Fault, Plan},
};
use std::{
    fs::{self, File},
    io::{IoSlice, Read, Write},
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const KINDS: [Kind; 3] = [Kind::Adaptive, Kind::Workers, Kind::Inline];

#[test]
fn row_018_a_peer_that_half_closed_and_reads_slowly_gets_everything() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let server = case.serve_with(
            // Shorter than the peer needs, longer than it ever pauses.
            case.builder().linger(Duration::from_millis(500), 256 << 10),
            Script::new().request(|conn| {
                conn.skip(conn.available())?;
                conn.handle().send(Bytes::from(vec![7; 4 << 20])).map(drop)
            }),
        );
        let mut peer = Peer::connect_small(&server.address).unwrap();
        peer.write_all(b"?").unwrap();
        peer.shutdown_write();
        let begin = Instant::now();
        let (mut got, mut some) = (0, vec![0; 32 << 10]);
        loop {
            match peer.read(&mut some).expect("the rest of the reply") {
                0 => break,
                n => got += n,
            }
            // Slow for twice the linger time.
            if begin.elapsed() < Duration::from_secs(1) {
                thread::sleep(Duration::from_millis(5));
            }
        }
        assert_eq!(got, 4 << 20);
        drop(peer);
        server.stop();
    });
}

#[test]
fn row_019_a_half_closed_peer_that_is_gone_later_is_noticed() {
    let _turn = crate::TURN.lock();
    every(|case| {
        for held in [false, true] {
            let (ends, holds) = (Log::new(), Log::new());
            let (log, promises) = (ends.clone(), holds.clone());
            let server = case.serve_with(
                case.builder().half_open(!held),
                Script::new()
                    .request(move |conn| {
                        if held {
                            promises.push(Arc::new(conn.handle().hold()));
                        }
                        conn.skip(conn.available())
                    })
                    .disconnect(move |_, reason| log.push(reason)),
            );
            let mut peer = server.connect();
            peer.write_all(b"?").unwrap();
            peer.shutdown_write();
            if held {
                holds.wait_len(1);
            } else {
                eventually("the connection", || {
                    server.event_loop.stats().connected == 1
                });
            }
            match case.transport {
                Transport::Tcp => peer.reset(),
                Transport::Unix => drop(peer),
            }
            ends.wait_len(1);
            drop(holds);
            server.stop();
        }
    });
}

#[test]
fn row_045_vectored_writes_and_other_senders_never_mix() {
    let _turn = crate::TURN.lock();
    bounded("vectored writes", || {
        let dialer = Dialer::new()
            .write_timeout(LIMIT)
            .output_limit(32 << 20, netpoll::OnFull::Error);
        let (mut conn, mut peer) = socket_pair(|to| dialer.dial_connection(to));
        let plan = Plan::new(45).every(Call::Send, 1, Fault::Short(1000));
        let installed = plan.install();
        let handle = conn.handle();
        let rounds = 700;
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let handle = handle.clone();
                thread::spawn(move || {
                    for _ in 0..rounds {
                        handle.send(Bytes::from(frame(&[1; 3000]))).unwrap();
                    }
                })
            })
            .collect();
        let writer = thread::spawn(move || {
            let message = frame(&[2; 5000]);
            let slices: Vec<IoSlice<'_>> = message.chunks(700).map(IoSlice::new).collect();
            for _ in 0..rounds {
                conn.write_vectored(&slices).unwrap();
            }
            conn
        });
        for number in 0..4 * rounds {
            let body = read_frame(&mut peer).unwrap();
            let expected = if body[0] == 1 {
                vec![1; 3000]
            } else {
                vec![2; 5000]
            };
            assert!(body == expected, "frame {number} is mixed");
        }
        for sender in senders {
            sender.join().unwrap();
        }
        drop((writer.join().unwrap(), installed));
    });
}

#[test]
fn row_048_a_send_that_comes_too_late_for_a_close_destroys_nothing() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let first = 200_000;
        for round in 0..300 {
            handles.take();
            let mut peer = Peer::connect_small(&server.address).unwrap();
            let handle = handles.wait_len(1).remove(0);
            // In the kernel's hands; the peer does not read yet.
            handle.send(Bytes::from(pattern(48, first))).unwrap();
            handle.flush().unwrap();
            let senders: Vec<_> = (0..2)
                .map(|_| {
                    let handle = handle.clone();
                    thread::spawn(move || {
                        let more = Bytes::from_static(b"more");
                        (0..)
                            .take_while(|_| handle.send(more.clone()).is_ok())
                            .count()
                    })
                })
                .collect();
            eventually("some more", || handle.stats().messages_out >= 3);
            handle.close();
            let more: usize = senders.into_iter().map(|s| s.join().unwrap()).sum();
            let got = peer.rest().expect("an orderly end");
            // One that was accepted behind the close may be lost; then it is counted.
            let accepted = first + 4 * more;
            let lost = handle.stats().lost_bytes as usize;
            assert!(
                got.len() <= accepted && got.len() + lost >= accepted,
                "round {round}: {} of {accepted}, {lost} lost",
                got.len()
            );
            assert_eq!((got.len() - first) % 4, 0, "a message is cut");
        }
        server.stop();
    });
}

#[test]
fn row_081_waiting_in_on_prepare_is_no_wait_for_ever() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        let results = Log::new();
        let log = results.clone();
        let server = case.serve(Script::new().prepare(move |conn| {
            let input = conn.next(5).map(drop);
            log.push(input.map_err(|error| Error::from_io(&error)));
            conn.write_bytes(Bytes::from(vec![0; 24 << 20]))?;
            let output = conn.flush_and_wait();
            log.push(output.map_err(|error| Error::from_io(&error)));
            Ok(())
        }));
        let mut peer = server.connect();
        let refused = Err(Some(Error::WouldDeadlock));
        assert_eq!(results.wait_len(2), [refused, refused]);
        // What was written is sent all the same.
        peer.read_exact(&mut vec![0; 24 << 20]).unwrap();
        drop(peer);
        server.stop();
    });
}

#[test]
fn row_043_nothing_follows_a_message_that_was_given_up() {
    let _turn = crate::TURN.lock();
    on_tcp(&KINDS, |case| {
        for seed in 0..100 {
            let handles = Log::new();
            let server = case.serve(giving(&handles));
            let (mut peer, handle) = server.connect_given(&handles);
            // An error that does not last, in the middle of somebody's message.
            let plan = Plan::new(seed)
                .from(Call::Send, 20 + seed % 7, 1, Fault::Errno(libc::EPERM))
                .every(Call::Send, 1, Fault::Short(700));
            let installed = plan.install();
            let senders: Vec<_> = (1..=3_u8)
                .map(|tag| {
                    let handle = handle.clone();
                    thread::spawn(move || {
                        let message = Bytes::from(frame(&[tag; 2000]));
                        while handle.send(message.clone()).is_ok() {}
                    })
                })
                .collect();
            for sender in senders {
                sender.join().unwrap();
            }
            let error = handle.done().wait().unwrap_err();
            let Some(Error::Closed(CloseReason::Error(_))) = Error::from_io(&error) else {
                panic!("{error:?}");
            };
            // Whole frames, then a part of one at most.
            let mut all = Vec::new();
            let _ = peer.read_to_end(&mut all);
            for message in all.chunks(2004) {
                let whole = frame(&[message.get(4).copied().unwrap_or(0); 2000]);
                assert!(whole.starts_with(message), "seed {seed}: mixed");
            }
            drop((installed, peer));
            server.stop();
        }
    });
}

/// Descriptors of selectors.
fn selectors() -> Vec<RawFd> {
    let link = |entry: &fs::DirEntry| fs::read_link(entry.path()).unwrap_or_default();
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter(|entry| link(entry).to_str() == Some("anon_inode:[eventpoll]"))
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

#[test]
fn row_063_a_handler_that_waits_for_input_hears_of_the_end_of_its_poller() {
    let name = "row_063_a_handler_that_waits_for_input_hears_of_the_end_of_its_poller";
    in_child(name, || {
        bounded(name, || {
            for kind in [Kind::Adaptive, Kind::Workers] {
                let case = Case::new(Transport::Tcp, kind);
                let errors = Log::new();
                let log = errors.clone();
                let before = selectors();
                let group = PollerGroup::builder().pollers(1).build().unwrap();
                let server = case.serve_with(
                    case.builder().pollers(group.clone()),
                    Script::new().request(move |conn| {
                        conn.skip(conn.available())?;
                        log.push(None);
                        // More than will ever come.
                        let error = conn.next(1000).map(drop).unwrap_err();
                        log.push(Error::from_io(&error));
                        Err(error)
                    }),
                );
                let mut peer = server.connect();
                peer.write_all(b"?").unwrap();
                errors.wait_len(1);
                let null = File::open("/dev/null").unwrap();
                for fd in selectors().into_iter().filter(|fd| !before.contains(fd)) {
                    // SAFETY: both are open, and the number stays its owner's.
                    assert!(unsafe { libc::dup2(null.as_raw_fd(), fd) } >= 0);
                }
                // Something that wakes it.
                group.pick().schedule(Instant::now(), || {});
                let closed = Some(Error::Closed(CloseReason::Poller));
                assert_eq!(errors.wait_len(2), [None, closed]);
                peer.expect_gone();
                server.stop();
                group.close();
            }
        });
    });
}

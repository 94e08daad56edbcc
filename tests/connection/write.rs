//! Writing: buffers, flushes, many senders, and what fails when.

use crate::support::{
    Case, Kind, Log, Peer, Script, Transport, bounded, eventually, every, every_blocking, frame,
    giving, limited_pair, on_tcp, pattern, read_frame,
};
use netpoll::{
    Bytes, CloseReason, Connection, Error, LinkBuffer, OnFull, SocketOptions, Writer, handler_fn,
};
use std::{
    io::{self, IoSlice, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

#[track_caller]
fn expect(peer: &mut Peer, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    peer.read_exact(&mut got).unwrap();
    assert!(
        got == expected,
        "{:?} instead of {:?}",
        &got[..got.len().min(60)],
        &expected[..expected.len().min(60)]
    );
}

#[test]
fn all_ways_to_write_keep_their_order() {
    bounded("order", || {
        let (mut conn, mut peer) = limited_pair();
        conn.write_slice(b"slice ").unwrap();
        conn.write_str("str ").unwrap();
        conn.write_u8(b'8').unwrap();
        conn.malloc(4).unwrap().copy_from_slice(b" m, ");
        conn.write_bytes(Bytes::from(pattern(1, 5000))).unwrap();
        conn.write_bytes(Bytes::from_static(b"short")).unwrap();
        let mut other = LinkBuffer::new();
        other.write_slice(b" other");
        other.flush();
        other.write_slice(b" unflushed");
        conn.append(other).unwrap();
        Write::write_all(&mut conn, b" std").unwrap();
        let len = conn.malloc_len();
        conn.flush().unwrap();
        assert_eq!(conn.malloc_len(), 0);
        let mut expected = b"slice str 8 m, ".to_vec();
        expected.extend(pattern(1, 5000));
        expected.extend(b"short other unflushed std");
        assert_eq!(len, expected.len());
        expect(&mut peer, &expected);
        assert_eq!(conn.stats().bytes_out, expected.len() as u64);
    });
}

#[test]
fn nothing_is_sent_before_a_flush() {
    bounded("flush", || {
        let (mut conn, mut peer) = limited_pair();
        conn.write_slice(b"held").unwrap();
        conn.write_bytes(Bytes::from(vec![1; 100_000])).unwrap();
        assert_eq!(conn.stats().bytes_out, 0);
        conn.malloc_ack(2).unwrap();
        assert_eq!(conn.malloc_len(), 2);
        conn.flush().unwrap();
        expect(&mut peer, b"he");
        // Nothing more comes: the next thing the peer sees is the next message.
        conn.write_slice(b"next").unwrap();
        conn.flush().unwrap();
        expect(&mut peer, b"next");
        // Flushes of nothing do nothing.
        conn.flush().unwrap();
        assert!(conn.try_flush().unwrap());
    });
}

#[test]
fn what_is_cut_away_is_not_sent() {
    bounded("malloc_ack", || {
        let (mut conn, mut peer) = limited_pair();
        let error = conn.malloc_ack(1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        for round in 0..10u8 {
            let room = conn.malloc(4 + 7168).unwrap();
            assert!(room.iter().all(|byte| *byte == 0), "room is zeroed");
            room.fill(round);
            conn.write_direct(Bytes::from(vec![100 + round; 7168]), 7168)
                .unwrap();
            conn.malloc_ack(4 + 7168).unwrap();
            conn.flush().unwrap();
            conn.malloc(4).unwrap().fill(200 + round);
            conn.flush().unwrap();
            let mut expected = vec![round; 4];
            expected.extend([100 + round; 7168]);
            expected.extend([200 + round; 4]);
            expect(&mut peer, &expected);
        }
    });
}

#[test]
fn write_direct_puts_bytes_in_between() {
    bounded("write_direct", || {
        let (mut conn, mut peer) = limited_pair();
        conn.malloc(32)
            .unwrap()
            .copy_from_slice(b"abcdefghijklmnopqrstuvwxyz012345");
        for (text, remain) in [
            ("<1>", 30),
            ("<2>", 29),
            ("<3>", 28),
            ("<4>", 27),
            ("<5>", 0),
        ] {
            conn.write_direct(Bytes::from_static(text.as_bytes()), remain)
                .unwrap();
        }
        assert_eq!(
            conn.write_direct(Bytes::from_static(b"x"), 1000)
                .unwrap_err()
                .kind(),
            io::ErrorKind::InvalidInput
        );
        conn.flush().unwrap();
        expect(
            &mut peer,
            b"ab<1>c<2>d<3>e<4>fghijklmnopqrstuvwxyz012345<5>",
        );
    });
}

#[test]
fn room_that_cannot_be_had_is_an_error() {
    bounded("room", || {
        let (mut conn, mut peer) = limited_pair();
        for n in [1 << 45, 1 << 60, isize::MAX as usize, usize::MAX] {
            let kinds = [
                conn.malloc(n).map(drop),
                Writer::malloc(&mut conn, n).map(drop),
                Writer::reserve_raw(&mut conn, n).map(drop),
            ]
            .map(|result| result.unwrap_err().kind());
            assert_eq!(kinds, [io::ErrorKind::OutOfMemory; 3], "{n}");
        }
        assert_eq!(conn.malloc_len(), 0);
        conn.write_str("fine").unwrap();
        conn.flush().unwrap();
        let mut got = [0; 4];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"fine");
    });
}

#[test]
fn a_slot_of_another_connection_is_an_error() {
    bounded("slots", || {
        let (mut right, _its_peer) = limited_pair();
        let (mut wrong, mut peer) = limited_pair();
        for round in 0..3 {
            let slots = [(); 2].map(|()| right.reserve_slot::<4>().unwrap());
            wrong.write_str("12345678").unwrap();
            let [first, second] = slots;
            let error = first.fill(&mut wrong, *b"XXXX").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{round}");
            let error = wrong.fill_slot(second, *b"XXXX").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{round}");
            wrong.flush().unwrap();
            let mut got = [0; 8];
            peer.read_exact(&mut got).unwrap();
            assert_eq!(&got, b"12345678");
            right.flush().unwrap();
        }
    });
}

#[test]
fn a_slot_is_filled_once_the_length_is_known() {
    bounded("slot", || {
        let (mut conn, mut peer) = limited_pair();
        for len in [0usize, 1, 100, 5000, 100_000] {
            let slot = conn.reserve_slot::<4>().unwrap();
            let before = conn.malloc_len();
            for part in pattern(2, len).chunks(777) {
                conn.write_slice(part).unwrap();
            }
            let body = conn.malloc_len() - before;
            conn.fill_slot(slot, u32::try_from(body).unwrap().to_be_bytes())
                .unwrap();
            conn.flush().unwrap();
            assert!(read_frame(&mut peer).unwrap() == pattern(2, len));
        }
    });
}

#[test]
fn several_slices_go_out_in_one_call() {
    bounded("write_vectored", || {
        let (mut conn, mut peer) = limited_pair();
        let (head, body) = (b"head".as_slice(), pattern(3, MUCH));
        let out = body.clone();
        let sending = thread::spawn(move || {
            let slices = [
                IoSlice::new(head),
                IoSlice::new(&[]),
                IoSlice::new(&out),
                IoSlice::new(b"tail"),
            ];
            let n = conn.write_vectored(&slices).unwrap();
            assert_eq!(n, 4 + MUCH + 4);
            // Behind what is unflushed, not before it.
            conn.write_str("first ").unwrap();
            conn.write_vectored(&[IoSlice::new(b"second")]).unwrap();
            assert_eq!(conn.write_vectored(&[]).unwrap(), 0);
            conn
        });
        expect(&mut peer, head);
        let mut got = vec![0; MUCH];
        peer.read_exact(&mut got).unwrap();
        assert!(got == body);
        expect(&mut peer, b"tailfirst second");
        drop(sending.join().unwrap());
    });
}

#[test]
fn a_flush_of_thousands_of_pieces_is_sent() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (mut peer, handle) = server.connect_given(&handles);
        let mut message = LinkBuffer::new();
        let mut expected = Vec::new();
        for i in 0..3000u64 {
            let piece = pattern(i, 4097);
            expected.extend_from_slice(&piece);
            message.write_bytes(piece.into());
        }
        message.flush();
        assert!(message.chunks().count() > 1024, "more than one call takes");
        let sender = handle;
        let sending = thread::spawn(move || sender.send(message));
        let mut got = vec![0; expected.len()];
        peer.read_exact(&mut got).unwrap();
        assert!(got == expected);
        assert_eq!(sending.join().unwrap().unwrap(), expected.len());
        drop(peer);
        server.stop();
    });
}

#[test]
fn flush_and_wait_returns_when_all_is_sent() {
    every_blocking(|case| {
        const PIECE: usize = 2 << 20;
        let results = Log::new();
        let log = results.clone();
        let server = case.serve(Script::new().connect(move |conn| {
            for i in 0..40u64 {
                conn.write_bytes(pattern(i, PIECE).into())?;
                let result = conn.flush_and_wait();
                log.push((result.is_ok(), conn.stats().bytes_out, conn.stats().queued));
                result?;
            }
            Ok(())
        }));
        let mut peer = server.connect();
        for i in 0..20u64 {
            expect(&mut peer, &pattern(i, PIECE));
        }
        // Gone while a flush waits: that one fails, all before were true.
        drop(peer);
        let all = results.wait("a failed flush", |all| all.iter().any(|(ok, ..)| !ok));
        for (i, (ok, sent, queued)) in all.iter().enumerate() {
            if *ok {
                assert!(
                    *sent >= ((i + 1) * PIECE) as u64,
                    "{sent} bytes after {} flushes",
                    i + 1
                );
                assert_eq!(*queued, 0);
            }
        }
        assert!(all.iter().filter(|(ok, ..)| *ok).count() >= 20);
        server.stop();
    });
}

#[test]
fn flush_of_a_handle_waits_for_what_was_sent_before() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (mut peer, handle) = server.connect_given(&handles);
        handle.flush().unwrap();
        handle.send_bytes(pattern(4, MUCH).into()).unwrap();
        let waiter = handle;
        let waiting = thread::spawn(move || {
            waiter
                .flush()
                .map(|()| (waiter.stats().bytes_out, waiter.stats().queued))
        });
        expect(&mut peer, &pattern(4, MUCH));
        let (sent, queued) = waiting.join().unwrap().unwrap();
        assert_eq!((sent, queued), (MUCH as u64, 0));
        drop(peer);
        server.stop();
    });
}

#[test]
fn many_senders_never_mix_and_each_keeps_its_order() {
    every(|case| {
        const SENDERS: u8 = 8;
        const EACH: u32 = 400;
        let handles = Log::new();
        let server = case.serve_with(
            case.builder()
                .socket(SocketOptions::new().send_buffer(8192)),
            giving(&handles),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        let threads: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let handle = handle.clone();
                thread::spawn(move || {
                    for i in 0..EACH {
                        let mut body = vec![sender; 5 + (i as usize * 37) % 3000];
                        body[1..5].copy_from_slice(&i.to_be_bytes());
                        let message = frame(&body);
                        if i % 3 == 0 {
                            let mut chain = LinkBuffer::new();
                            chain.write_slice(&message);
                            handle.send(chain).unwrap();
                        } else {
                            handle.send_bytes(message.into()).unwrap();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; SENDERS as usize];
        for _ in 0..u32::from(SENDERS) * EACH {
            let body = read_frame(&mut peer).unwrap();
            let (sender, i) = (
                body[0],
                u32::from_be_bytes([body[1], body[2], body[3], body[4]]),
            );
            assert!(
                body[5..].iter().all(|byte| *byte == sender),
                "messages are mixed"
            );
            assert_eq!(i, next[sender as usize], "order of sender {sender}");
            next[sender as usize] += 1;
        }
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(
            handle.stats().messages_out,
            u64::from(SENDERS) * u64::from(EACH)
        );
        drop(peer);
        server.stop();
    });
}

#[test]
fn the_handler_and_other_senders_never_mix() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles).request(|conn| {
            while let Some(frame) = crate::support::decode(conn)? {
                conn.append(frame)?;
                // Others may be sending: behind them nobody has to wait.
                conn.try_flush()?;
            }
            Ok(())
        }));
        let (mut peer, handle) = server.connect_given(&handles);
        let pushing = thread::spawn(move || {
            for i in 0..2000u32 {
                let mut body = vec![b'p'; 100];
                body[1..5].copy_from_slice(&i.to_be_bytes());
                handle.send_bytes(frame(&body).into()).unwrap();
            }
        });
        let mut sender = peer.try_clone();
        let asking = thread::spawn(move || {
            for i in 0..2000u32 {
                let mut body = vec![b'e'; 60];
                body[1..5].copy_from_slice(&i.to_be_bytes());
                sender.write_all(&frame(&body)).unwrap();
            }
        });
        let (mut pushed, mut echoed) = (0, 0);
        while pushed + echoed < 4000 {
            let body = read_frame(&mut peer).unwrap();
            let i = u32::from_be_bytes([body[1], body[2], body[3], body[4]]);
            let next = if body[0] == b'p' {
                &mut pushed
            } else {
                &mut echoed
            };
            assert_eq!(i, *next);
            *next += 1;
            assert!(body[5..].iter().all(|byte| *byte == body[0]));
        }
        pushing.join().unwrap();
        asking.join().unwrap();
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_close_ends_every_waiting_sender_and_flusher() {
    every(|case| {
        for abort in [false, true] {
            let handles = Log::new();
            let server = case.serve_with(
                case.builder()
                    .output_limit(10_000, OnFull::Block)
                    .linger(Duration::from_millis(50), 1 << 20),
                giving(&handles),
            );
            let (peer, handle) = server.connect_given(&handles);
            handle.send_bytes(vec![0; MUCH].into()).unwrap();
            let waiting = Arc::new(AtomicUsize::new(0));
            let threads: Vec<_> = (0..20)
                .map(|i| {
                    let (handle, waiting) = (handle.clone(), Arc::clone(&waiting));
                    thread::spawn(move || {
                        waiting.fetch_add(1, SeqCst);
                        if i % 2 == 0 {
                            handle.send_bytes(vec![1; 100].into()).map(drop)
                        } else {
                            handle.flush()
                        }
                    })
                })
                .collect();
            eventually("all have begun", || waiting.load(SeqCst) == 20);
            if abort {
                handle.abort()
            } else {
                handle.close()
            }
            for thread in threads {
                let error = thread.join().unwrap().unwrap_err();
                assert!(
                    matches!(Error::from_io(&error), Some(Error::Closed(_))),
                    "{error:?}"
                );
            }
            handle.done().wait().unwrap();
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn a_send_during_a_close_that_is_cut_says_closed() {
    every(|case| {
        for _ in 0..5 {
            let handles = Log::new();
            let server = case.serve_with(
                case.builder()
                    .output_limit(10_000, OnFull::Error)
                    .linger(Duration::from_millis(1), 1 << 20),
                giving(&handles),
            );
            let (peer, handle) = server.connect_given(&handles);
            handle.send_bytes(vec![0; MUCH].into()).unwrap();
            handle.close();
            let done = handle.done();
            while done.poll().is_none() {
                let error = handle.send_bytes(vec![1; 100].into()).unwrap_err();
                assert!(
                    matches!(
                        Error::from_io(&error),
                        Some(Error::Closed(CloseReason::Local))
                    ),
                    "{error:?}"
                );
            }
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn the_peers_end_ends_every_waiting_sender() {
    on_tcp(
        &[Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom],
        |case| {
            let handles = Log::new();
            let server = case.serve_with(
                case.builder().output_limit(10_000, OnFull::Block),
                giving(&handles),
            );
            let (peer, handle) = server.connect_given(&handles);
            handle.send_bytes(vec![0; MUCH].into()).unwrap();
            let threads: Vec<_> = (0..10)
                .map(|i| {
                    let handle = handle.clone();
                    thread::spawn(move || {
                        if i % 2 == 0 {
                            handle.send_bytes(vec![1; 100].into()).map(drop)
                        } else {
                            handle.flush()
                        }
                    })
                })
                .collect();
            peer.reset();
            for (i, thread) in threads.into_iter().enumerate() {
                let ended = thread.join().unwrap();
                assert!(ended.is_err(), "sender {i} of the ten");
            }
            assert!(handle.done().wait().is_err());
            // Nor does a flush that begins after the end say that everything was sent.
            assert!(handle.flush().is_err());
            server.stop();
        },
    );
}

#[test]
fn accepted_messages_are_written_or_counted() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        for round in 0..20 {
            let (mut peer, handle) = server.connect_given(&handles);
            let reading = thread::spawn(move || {
                let mut part = vec![0; 50_000];
                let mut total = 0u64;
                while total < 2_000_000 {
                    match peer.read(&mut part) {
                        Ok(0) | Err(_) => break,
                        Ok(n) => total += n as u64,
                    }
                }
                // Whoever stops here leaves output queued.
                total
            });
            let (mut accepted, mut told) = (0u64, 0);
            for _ in 0..300 {
                match handle.send_bytes(vec![0; 20_000].into()) {
                    Ok(n) => accepted += n as u64,
                    Err(e) => {
                        // The end came while this one was on its way: it may count as well.
                        if matches!(Error::from_io(&e), Some(Error::Closed(_))) {
                            told = 20_000;
                        }
                        break;
                    }
                }
                if round % 2 == 0 && accepted > 1_000_000 {
                    handle.abort();
                }
            }
            handle.abort();
            let _ = handle.done().wait();
            let stats = handle.stats();
            let counted = stats.bytes_out + stats.lost_bytes;
            assert!(
                counted == accepted || counted == accepted + told,
                "round {round}: {accepted} accepted, {told} told, {stats:?}"
            );
            assert_eq!(stats.queued, 0);
            let received = reading.join().unwrap();
            assert!(received <= stats.bytes_out);
        }
        server.stop();
    });
}

#[test]
fn a_closed_connection_takes_nothing() {
    // What every operation says after the end, in a callback that may still hold the connection.
    every(|case| {
        let errors = Log::new();
        let log = errors.clone();
        let server = case.serve(Script::new().connect(move |conn| {
            conn.handle().abort();
            let mut results: Vec<io::Result<()>> = vec![
                conn.malloc(1).map(drop),
                conn.malloc_ack(0),
                conn.write_slice(b"x"),
                conn.write_str("x"),
                conn.write_u8(1),
                conn.write_bytes(Bytes::from_static(b"x")),
                conn.write_direct(Bytes::from_static(b"x"), 0),
                conn.append(LinkBuffer::new()),
                conn.reserve_slot::<4>().map(drop),
                conn.write_vectored(&[IoSlice::new(b"x")]).map(drop),
                conn.flush(),
                conn.try_flush().map(drop),
                conn.handle().send_bytes(Bytes::from_static(b"x")).map(drop),
                conn.handle().try_send(Bytes::from_static(b"x")).map(drop),
                conn.fill(1),
                conn.try_fill(1).map(drop),
                conn.next(1).map(drop),
                conn.until(b'\n').map(drop),
                conn.read(&mut [0]).map(drop),
            ];
            for (i, result) in results.drain(..).enumerate() {
                log.push((i, result.err().map(|e| e.kind())));
            }
            Ok(())
        }));
        server.connect().expect_gone();
        for (i, kind) in errors.wait_len(19) {
            assert_eq!(kind, Some(io::ErrorKind::NotConnected), "operation {i}");
        }
        server.stop();
    });
}

#[test]
fn a_write_to_a_peer_that_is_gone_is_an_error() {
    bounded("gone", || {
        let (mut conn, peer) = limited_pair();
        peer.reset();
        let mut errors = 0;
        eventually("the errors", || {
            if let Err(e) = conn.write_slice(b"x").and_then(|()| conn.flush()) {
                assert!(
                    matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
                    ),
                    "{e:?}"
                );
                errors += 1;
            }
            errors == 3
        });
        assert!(!conn.is_active());
    });
}

#[test]
fn an_inline_handlers_flush_of_too_much_is_told_and_sent() {
    for transport in [Transport::Tcp, Transport::Unix] {
        let case = Case::new(transport, Kind::Inline);
        let results = Log::new();
        let log = results.clone();
        let server = case.serve(Script::new().connect(move |conn| {
            conn.write_bytes(pattern(7, MUCH).into())?;
            log.push(conn.flush_and_wait().err().and_then(|e| Error::from_io(&e)));
            Ok(())
        }));
        let mut peer = server.connect();
        assert_eq!(results.wait_len(1), [Some(Error::WouldDeadlock)]);
        expect(&mut peer, &pattern(7, MUCH));
        drop(peer);
        server.stop();
    }
}

#[test]
fn a_reader_that_is_slow_gets_everything() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve_with(
            case.builder()
                .socket(SocketOptions::new().send_buffer(4096)),
            giving(&handles),
        );
        let mut peer = Peer::connect_small(&server.address).unwrap();
        let handle = handles.wait_len(1).remove(0);
        let expected = pattern(8, 600_000);
        handle.send_bytes(expected.clone().into()).unwrap();
        handle.close();
        let mut got = Vec::new();
        let mut part = [0; 1000];
        loop {
            match peer.read(&mut part).unwrap() {
                0 => break,
                n => got.extend_from_slice(&part[..n]),
            }
        }
        assert!(got == expected, "{} bytes", got.len());
        server.stop();
    });
}

#[test]
fn codecs_write_a_connection_through_the_trait() {
    fn encode(writer: &mut dyn Writer, body: &[u8]) -> io::Result<()> {
        writer
            .malloc(4)?
            .copy_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
        writer.write_slice(body)?;
        writer.flush()
    }
    bounded("codec", || {
        let (mut conn, mut peer) = limited_pair();
        encode(&mut conn, b"whole").unwrap();
        assert_eq!(read_frame(&mut peer).unwrap(), b"whole");
        let (_, mut writer) = conn.split();
        encode(&mut writer, b"half").unwrap();
        assert_eq!(read_frame(&mut peer).unwrap(), b"half");
        let (reader, mut writer) = conn.into_split();
        encode(&mut writer, b"owned").unwrap();
        assert_eq!(read_frame(&mut peer).unwrap(), b"owned");
        let mut memory = LinkBuffer::new();
        encode(&mut memory, b"memory").unwrap();
        assert_eq!(memory.len(), 10);
        drop(reader);
    });
}

#[test]
fn output_of_one_connection_does_not_wait_for_another() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles).request(crate::support::echo_frames));
        // This one never reads and has output queued.
        let stuck = server.connect();
        let handle = handles.wait_len(1).remove(0);
        handle.send_bytes(vec![0; MUCH].into()).unwrap();
        let mut other = server.connect();
        for _ in 0..100 {
            other.ping(b"not held up");
        }
        assert!(handle.stats().queued > 0);
        handle.abort();
        drop((stuck, other));
        server.stop();
    });
}

/// A connection of which a handler may write no more than this before it flushes.
const UNFLUSHED: usize = 100_000;

type Write10k = fn(&mut Connection) -> io::Result<()>;

/// Each writes 10,000 bytes.
const WAYS: [(&str, Write10k); 12] = [
    ("write_slice", |conn| conn.write_slice(&[1; 10_000])),
    ("write_str", |conn| conn.write_str(&"x".repeat(10_000))),
    ("write_bytes", |conn| {
        conn.write_bytes(vec![1; 10_000].into())
    }),
    ("malloc", |conn| conn.malloc(10_000).map(drop)),
    ("append", |conn| conn.append(vec![1; 10_000].into())),
    ("append unflushed", |conn| {
        let mut other = LinkBuffer::new();
        other.write_slice(&[1; 10_000]);
        conn.append(other)
    }),
    ("write_direct", |conn| {
        let remain = conn.malloc_len().min(5);
        conn.write_direct(vec![1; 10_000].into(), remain)
    }),
    ("reserve_slot", |conn| {
        conn.reserve_slot::<10_000>().map(drop)
    }),
    ("forward", |conn| {
        conn.fill(10_000)?;
        conn.forward(10_000)
    }),
    ("Writer::write_slice", |conn| {
        Writer::write_slice(conn, &[1; 10_000])
    }),
    ("Writer::append", |conn| {
        Writer::append(conn, vec![1; 10_000].into())
    }),
    ("Writer::malloc", |conn| {
        Writer::malloc(conn, 10_000).map(drop)
    }),
];

#[test]
fn unflushed_output_is_bounded_by_the_output_limit() {
    on_tcp(&[Kind::Adaptive, Kind::Inline], |case| {
        for (what, write) in WAYS {
            let (seen, ends) = (Log::new(), Log::new());
            let (log, over) = (seen.clone(), ends.clone());
            let builder = case.builder().output_limit(UNFLUSHED, OnFull::Error);
            let server = case.serve_with(
                builder,
                Script::new()
                    .request(move |conn| {
                        if conn.try_fill(250_000)? {
                            for _ in 0..10 {
                                write(conn)?;
                            }
                            let error = write(conn).unwrap_err();
                            log.push((conn.malloc_len(), Error::from_io(&error)));
                            conn.flush()?;
                            write(conn)?;
                            for _ in 0..10 {
                                write(conn)?;
                            }
                        }
                        Ok(())
                    })
                    .disconnect(move |_, reason| over.push(reason)),
            );
            let mut peer = server.connect();
            peer.write_all(&vec![1; 250_000]).unwrap();
            let full = Error::OutputFull {
                queued: UNFLUSHED,
                limit: UNFLUSHED,
            };
            let (unflushed, error) = seen.wait_len(1)[0];
            assert_eq!((unflushed, error), (UNFLUSHED, Some(full)), "{what}");
            peer.read_exact(&mut vec![0; UNFLUSHED]).unwrap();
            // An error that a handler passes on is the reason of the end.
            assert_eq!(ends.wait_len(1), [CloseReason::OutputFull], "{what}");
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn one_piece_of_any_length_may_be_unflushed() {
    every(|case| {
        let builder = case.builder().output_limit(UNFLUSHED, OnFull::Error);
        let server = case.serve_with(
            builder,
            handler_fn(|conn: &mut Connection| {
                conn.skip(conn.available())?;
                conn.write_slice(&pattern(3, 10 * UNFLUSHED))?;
                let more = conn.write_u8(1).unwrap_err();
                assert!(matches!(
                    Error::from_io(&more),
                    Some(Error::OutputFull { .. })
                ));
                conn.flush()
            }),
        );
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        let mut got = vec![0; 10 * UNFLUSHED];
        peer.read_exact(&mut got).unwrap();
        assert!(got == pattern(3, 10 * UNFLUSHED));
        drop(peer);
        server.stop();
    });
}

#[test]
fn writing_as_to_a_file_flushes_at_the_limit() {
    const LEN: usize = 50 * UNFLUSHED;
    every_blocking(|case| {
        let builder = case.builder().output_limit(UNFLUSHED, OnFull::Error);
        let server = case.serve_with(
            builder,
            handler_fn(|conn: &mut Connection| {
                conn.skip(conn.available())?;
                let all = pattern(3, LEN);
                conn.write_all(&all[..LEN / 2])?;
                assert!(conn.malloc_len() <= UNFLUSHED);
                for part in all[LEN / 2..].chunks(7000) {
                    conn.write_all(part)?;
                    assert!(conn.malloc_len() <= UNFLUSHED);
                }
                assert!(conn.malloc_len() <= UNFLUSHED);
                conn.flush()
            }),
        );
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        let mut got = vec![0; LEN];
        peer.read_exact(&mut got).unwrap();
        assert!(got == pattern(3, LEN));
        drop(peer);
        server.stop();
    });
}

//! Reading: views, waiting, ends, lines, and what stays valid for how long.

use crate::support::{
    Case, Gate, Kind, LIMIT, Log, OpenOnDrop, Peer, Script, Transport, bounded, echo, eventually,
    every, every_blocking, frame, limited_pair, on_tcp, pair, pattern,
};
use netpoll::{Bytes, Connection, Dialer, Error, LinkBuffer, handler_fn};
use std::{
    io::{self, BufRead, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// A client of the library and its plain peer.
/// Runs a test with a connection that its caller owns, and with one in a handler.
#[track_caller]
fn both(test: impl Fn(&mut Connection, &mut Peer) + Send + Sync + Clone + 'static) {
    let own = test.clone();
    bounded("own connection", move || {
        let (mut conn, mut peer) = limited_pair();
        own(&mut conn, &mut peer);
    });
    // The handler's side meets its peer through a slot and does not return before the end.
    every_blocking(move |case| {
        let peers: Log<Peer> = Log::new();
        let over = Log::new();
        let (slot, log, test) = (peers.clone(), over.clone(), test.clone());
        let server = case.serve_with(
            case.builder().read_timeout(LIMIT).write_timeout(LIMIT),
            Script::new().connect(move |conn| {
                eventually("the peer", || slot.len() == 1);
                let mut peer = slot.take().remove(0);
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    test(conn, &mut peer);
                }));
                log.push(result.err().map(|panic| {
                    panic
                        .downcast_ref::<String>()
                        .cloned()
                        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                        .unwrap_or_default()
                }));
                Ok(())
            }),
        );
        peers.push(server.connect());
        if let Some(panic) = over.wait_len(1).remove(0) {
            panic!("in the handler: {panic}");
        }
        server.stop();
    });
}

#[test]
fn peek_consumes_nothing_and_next_does() {
    both(|conn, peer| {
        let all: Vec<u8> = (0..64).collect();
        peer.write_all(&all).unwrap();
        assert_eq!(conn.peek(16).unwrap(), &all[..16]);
        assert_eq!(conn.peek(64).unwrap(), &all[..]);
        let mut part = [0; 64];
        let n = conn.read(&mut part).unwrap();
        assert_eq!(&part[..n], &all[..n]);
        assert_eq!(n, 64);
        peer.write_all(&all).unwrap();
        assert_eq!(conn.next(10).unwrap(), &all[..10]);
        conn.skip(10).unwrap();
        assert_eq!(conn.read_u8().unwrap(), 20);
        assert_eq!(conn.read_vec(3).unwrap(), [21, 22, 23]);
        assert_eq!(conn.next_bytes(10).unwrap(), &all[24..34]);
        let mut slice = conn.slice(10).unwrap();
        assert_eq!(slice.next(10).unwrap(), &all[34..44]);
        assert_eq!(conn.available(), 20);
    });
}

#[test]
fn nothing_can_be_asked_for_at_any_time() {
    both(|conn, _| {
        assert_eq!(conn.peek(0).unwrap(), b"");
        assert_eq!(conn.next(0).unwrap(), b"");
        conn.skip(0).unwrap();
        conn.fill(0).unwrap();
        assert!(conn.try_fill(0).unwrap());
        assert_eq!(conn.next_bytes(0).unwrap(), b"".as_slice());
        assert_eq!(conn.slice(0).unwrap().len(), 0);
        assert_eq!(conn.read_vec(0).unwrap(), b"");
        assert_eq!(conn.read_string(0).unwrap(), "");
        assert_eq!(conn.read(&mut []).unwrap(), 0);
        assert_eq!(conn.available(), 0);
    });
}

#[test]
fn half_a_message_is_waited_for() {
    both(|conn, peer| {
        let message = pattern(1, 16 << 10);
        peer.write_all(&message[..8 << 10]).unwrap();
        conn.fill(8 << 10).unwrap();
        assert!(!conn.try_fill(16 << 10).unwrap());
        assert!(conn.try_peek(16 << 10).unwrap().is_none());
        assert!(conn.try_next(16 << 10).unwrap().is_none());
        assert!(conn.try_next_bytes(16 << 10).unwrap().is_none());
        assert!(conn.try_slice(16 << 10).unwrap().is_none());
        let (mut sender, rest) = (peer.try_clone(), message[8 << 10..].to_vec());
        let sending = thread::spawn(move || sender.write_all(&rest).unwrap());
        assert!(conn.next(16 << 10).unwrap() == message);
        sending.join().unwrap();
    });
}

#[test]
fn one_byte_at_a_time_makes_a_message() {
    both(|conn, peer| {
        let message = pattern(2, 300);
        let (mut sender, out) = (peer.try_clone(), message.clone());
        let sending = thread::spawn(move || {
            for byte in out {
                sender.write_all(&[byte]).unwrap();
            }
        });
        assert!(conn.next(300).unwrap() == message);
        sending.join().unwrap();
    });
}

#[test]
fn messages_of_all_sizes_arrive_unchanged() {
    both(|conn, peer| {
        // Large to small: no size may be stuck to.
        let mut len = 8 << 20;
        while len > 0 {
            let message = pattern(len as u64, len);
            let (mut sender, out) = (peer.try_clone(), message.clone());
            let sending = thread::spawn(move || sender.write_all(&out).unwrap());
            assert!(conn.next(len).unwrap() == message, "{len} bytes");
            sending.join().unwrap();
            len /= 4;
        }
    });
}

#[test]
fn a_very_large_message_arrives_unchanged() {
    bounded("64 MiB", || {
        let len = 64 << 20;
        let (mut conn, mut peer) = pair();
        let message = pattern(9, len);
        let out = message.clone();
        let sending = thread::spawn(move || peer.write_all(&out).unwrap());
        assert!(conn.next_bytes(len).unwrap() == message);
        sending.join().unwrap();
    });
}

#[test]
fn a_message_that_is_asked_for_lands_in_one_piece() {
    both(|conn, peer| {
        let len = 1 << 20;
        let message = pattern(3, len);
        let (mut sender, out) = (peer.try_clone(), message);
        let sending = thread::spawn(move || sender.write_all(&out).unwrap());
        // Asked for before most of it has come.
        conn.fill(len).unwrap();
        let slice = conn.slice(len).unwrap();
        let pieces = slice.chunks().count();
        assert!(pieces <= 4, "{pieces} pieces");
        let longest = slice.chunks().map(<[u8]>::len).max().unwrap();
        assert!(longest >= len / 2, "the longest piece has {longest} bytes");
        sending.join().unwrap();
    });
}

#[test]
fn views_stay_unchanged_when_the_connection_and_its_loop_are_gone() {
    every(|case| {
        const ROUNDS: usize = 200;
        let kept: Log<(Bytes, LinkBuffer)> = Log::new();
        let log = kept.clone();
        let server = case.serve(handler_fn(move |conn| {
            let Some(whole) = conn.try_slice(2000)? else {
                return Ok(());
            };
            let mut first = whole;
            let small = first.next_bytes(100)?;
            log.push((small, first));
            conn.handle().close();
            Ok(())
        }));
        for round in 0..ROUNDS {
            let mut peer = server.connect();
            peer.write_all(&pattern(round as u64 + 1, 2000)).unwrap();
            if round % 2 == 0 {
                peer.shutdown_write();
            }
            peer.expect_gone();
            if round % 20 == 0 {
                // Other connections use whatever memory is free.
                let noise = case.serve(echo());
                noise.connect().ping(&vec![0xEE; 30_000]);
                noise.stop();
            }
        }
        eventually("all", || kept.len() == ROUNDS);
        server.stop();
        let mut seen = Vec::new();
        for (small, mut rest) in kept.take() {
            let mut all = small.to_vec();
            all.extend_from_slice(&rest.read_vec(1900).unwrap());
            seen.push(all);
        }
        seen.sort();
        let mut expected: Vec<_> = (0..ROUNDS)
            .map(|round| pattern(round as u64 + 1, 2000))
            .collect();
        expected.sort();
        assert!(seen == expected, "a view has changed");
    });
}

#[test]
fn a_view_of_a_connection_that_is_dropped_stays() {
    bounded("views", || {
        let mut kept = Vec::new();
        for round in 0..300u64 {
            let (mut conn, mut peer) = limited_pair();
            peer.write_all(&pattern(round, 700)).unwrap();
            let bytes = conn.next_bytes(700).unwrap();
            if round % 2 == 0 {
                drop(peer);
            }
            drop(conn);
            kept.push((round, bytes));
        }
        for (round, bytes) in kept {
            assert!(bytes == pattern(round, 700), "round {round}");
        }
    });
}

#[test]
fn lines_are_found_however_they_are_cut() {
    both(|conn, peer| {
        const MESSAGES: usize = 2000;
        let (mut sender, mut message) = (peer.try_clone(), vec![b'x'; 1002]);
        message[500] = b'\n';
        message[1001] = b'\n';
        let sending = thread::spawn(move || {
            for _ in 0..MESSAGES {
                sender.write_all(&message).unwrap();
            }
            sender.write_all(&[b'y'; 100]).unwrap();
            sender.shutdown_write();
        });
        for _ in 0..2 * MESSAGES {
            let line = conn.until(b'\n').unwrap();
            assert_eq!((line.len(), line[500]), (501, b'\n'));
        }
        let error = conn.until(b'\n').unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        // What came before the end is still there.
        assert_eq!(conn.available(), 100);
        assert_eq!(conn.next(100).unwrap(), [b'y'; 100]);
        sending.join().unwrap();
    });
}

#[test]
fn try_until_asks_for_more_and_goes_on_where_it_was() {
    every(|case| {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let server = case.serve(handler_fn(move |conn| {
            count.fetch_add(1, SeqCst);
            while let Some(line) = conn.try_until(b'\n')? {
                let line = line.to_vec();
                conn.write_slice(&line)?;
            }
            conn.flush()
        }));
        let mut peer = server.connect();
        let mut reader = io::BufReader::new(peer.try_clone());
        let mut line = String::new();
        for text in ["a\n", "bc\n", "\n", "a longer one\n"] {
            for part in text.as_bytes() {
                peer.write_all(&[*part]).unwrap();
            }
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert_eq!(line, text);
        }
        peer.write_all(b"x\ny\nz").unwrap();
        peer.write_all(b"\n").unwrap();
        for text in ["x\n", "y\n", "z\n"] {
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert_eq!(line, text);
        }
        drop((peer, reader));
        server.stop();
    });
}

#[test]
fn read_line_takes_both_kinds_of_ends_and_bounds_the_length() {
    both(|conn, peer| {
        peer.write_all(b"one\r\ntwo\n\n\r\n0123456789abc\nlast")
            .unwrap();
        peer.shutdown_write();
        let mut texts = Vec::new();
        loop {
            let mut line = match conn.read_line(10) {
                Ok(line) => line,
                Err(e) => {
                    assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
                    break;
                }
            };
            let n = line.data.len();
            texts.push((line.data.read_string(n).unwrap(), line.is_prefix));
        }
        let expected = [
            ("one", false),
            ("two", false),
            ("", false),
            ("", false),
            ("0123456789", true),
            ("abc", false),
            ("last", false),
        ];
        let texts: Vec<_> = texts
            .iter()
            .map(|(text, prefix)| (text.as_str(), *prefix))
            .collect();
        assert_eq!(texts, expected);
    });
}

#[test]
fn data_before_the_end_wins() {
    both(|conn, peer| {
        let mut sender = peer.try_clone();
        let sending = thread::spawn(move || {
            sender.write_all(&[5; 256]).unwrap();
            sender.shutdown_write();
        });
        assert_eq!(conn.next(256).unwrap(), [5; 256]);
        sending.join().unwrap();
        let error = conn.next(1).unwrap_err();
        assert_eq!(
            Error::from_io(&error),
            Some(Error::PeerClosed {
                wanted: 1,
                available: 0
            })
        );
    });
}

#[test]
fn an_end_inside_a_message_leaves_what_came() {
    both(|conn, peer| {
        peer.write_all(b"0123456").unwrap();
        peer.shutdown_write();
        for _ in 0..3 {
            let error = conn.next(10).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(
                Error::from_io(&error),
                Some(Error::PeerClosed {
                    wanted: 10,
                    available: 7
                })
            );
        }
        assert!(conn.is_read_closed());
        assert!(!conn.is_active());
        assert_eq!(conn.next(7).unwrap(), b"0123456");
        assert_eq!(conn.read(&mut [0; 4]).unwrap(), 0);
        assert_eq!(
            conn.read(&mut [0; 4]).unwrap(),
            0,
            "the end does not go away"
        );
        // The other direction is open.
        conn.write_str("still").unwrap();
        conn.flush().unwrap();
        let mut got = [0; 5];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"still");
    });
}

#[test]
fn std_readers_work_on_a_connection() {
    both(|conn, peer| {
        let message = pattern(4, 200_000);
        let (mut sender, out) = (peer.try_clone(), message.clone());
        let sending = thread::spawn(move || {
            sender.write_all(&out).unwrap();
            sender.shutdown_write();
        });
        let mut head = [0; 1000];
        conn.read_exact(&mut head).unwrap();
        let mut all = head.to_vec();
        conn.read_to_end(&mut all).unwrap();
        assert!(all == message);
        sending.join().unwrap();
    });
}

#[test]
fn read_at_least_waits_for_the_least_and_takes_the_most() {
    both(|conn, peer| {
        peer.write_all(&[6; 5]).unwrap();
        let mut dst = [0; 10];
        assert_eq!(conn.read_at_least(&mut dst, 5).unwrap(), 5);
        assert_eq!(
            conn.read_at_least(&mut dst, 11).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        peer.write_all(&[7; 30]).unwrap();
        conn.fill(30).unwrap();
        assert_eq!(conn.read_at_least(&mut dst, 1).unwrap(), 10);
        assert_eq!(dst, [7; 10]);
        assert_eq!(conn.read_at_least(&mut dst, 0).unwrap(), 10);
        conn.skip(10).unwrap();
        peer.write_all(b"abc").unwrap();
        peer.shutdown_write();
        let error = conn.read_at_least(&mut dst, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(conn.read_at_least(&mut dst, 3).unwrap(), 3);
        assert_eq!(conn.read_at_least(&mut dst, 1).unwrap(), 0);
    });
}

#[test]
fn a_string_must_be_text() {
    both(|conn, peer| {
        peer.write_all("grüße".as_bytes()).unwrap();
        peer.write_all(&[0xFF, 0xFE]).unwrap();
        assert_eq!(conn.read_string("grüße".len()).unwrap(), "grüße");
        assert_eq!(
            conn.read_string(2).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    });
}

#[test]
fn codecs_read_a_connection_through_the_trait() {
    fn word(reader: &mut dyn netpoll::Reader) -> io::Result<Option<u32>> {
        let Some(bytes) = reader.try_next(4)? else {
            return Ok(None);
        };
        Ok(Some(u32::from_be_bytes([
            bytes[0], bytes[1], bytes[2], bytes[3],
        ])))
    }
    both(|conn, peer| {
        assert_eq!(word(conn).unwrap(), None);
        peer.write_all(&77u32.to_be_bytes()).unwrap();
        conn.fill(4).unwrap();
        assert_eq!(word(conn).unwrap(), Some(77));
        let (mut reader, _) = conn.split();
        assert_eq!(word(&mut reader).unwrap(), None);
    });
}

#[test]
fn the_halves_of_a_connection_work_in_two_threads() {
    bounded("halves", || {
        let (conn, mut peer) = limited_pair();
        let handle = conn.handle();
        let (mut reader, mut writer) = conn.into_split();
        let echoing = thread::spawn(move || {
            let mut got = vec![0; 1 << 20];
            peer.read_exact(&mut got).unwrap();
            peer.write_all(&got).unwrap();
            peer
        });
        let writing = thread::spawn(move || {
            writer.write_slice(&pattern(6, 1 << 20)).unwrap();
            writer.flush().unwrap();
            assert!(writer.handle().is_active());
        });
        assert!(reader.next(1 << 20).unwrap() == pattern(6, 1 << 20));
        writing.join().unwrap();
        // One half is dropped: the connection lives with the other.
        assert!(handle.is_active());
        let mut peer = echoing.join().unwrap();
        peer.write_all(b"more").unwrap();
        assert_eq!(reader.next(4).unwrap(), b"more");
        drop(reader);
        peer.expect_gone();
        handle.done().wait().unwrap();
    });
}

#[test]
fn the_mark_is_forgotten_when_the_handler_is_run() {
    // A first message asks for much; the next, smaller one is not held back by that.
    every(|case| {
        let server = case.serve(echo());
        let mut peer = server.connect();
        peer.ping(&pattern(1, 50_000));
        peer.ping(b"");
        peer.ping(b"x");
        let out = frame(&pattern(2, 10_000));
        peer.write_all(&out[..5000]).unwrap();
        peer.write_all(&out[5000..]).unwrap();
        assert!(crate::support::read_frame(&mut peer).unwrap() == out[4..]);
        peer.ping(b"y");
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_handler_may_mix_waiting_and_trying() {
    every_blocking(|case| {
        let server = case.serve(handler_fn(|conn| {
            // The length is tried for, the body waited for.
            while let Some(head) = conn.try_next(4)? {
                let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
                let body = conn.next_bytes(len)?;
                conn.write_slice(&(len as u32).to_be_bytes())?;
                conn.write_bytes(body)?;
                conn.flush()?;
            }
            Ok(())
        }));
        let mut peer = server.connect();
        for len in [0, 1, 5000, 70_000] {
            let out = frame(&pattern(5, len));
            for part in out.chunks(1 + out.len() / 3) {
                peer.write_all(part).unwrap();
            }
            assert!(crate::support::read_frame(&mut peer).unwrap() == out[4..]);
        }
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_short_message_behind_one_that_was_waited_for_is_seen_at_once() {
    every_blocking(|case| {
        let calls = Log::new();
        let log = calls.clone();
        let server = case.serve(handler_fn(move |conn| {
            // A message is 8 bytes, or 5 if it begins so.
            let len = if conn.peek(1)? == b"A" { 8 } else { 5 };
            log.push(len);
            let message = conn.next_bytes(len)?;
            conn.write_bytes(message)?;
            conn.flush()
        }));
        let mut peer = server.connect();
        for round in 1..=20 {
            peer.write_all(b"A123").unwrap();
            calls.wait_len(1);
            // The rest of it, and another one that is shorter.
            peer.write_all(b"4567B1234").unwrap();
            let mut both = [0; 13];
            peer.read_exact(&mut both).unwrap();
            assert_eq!(&both, b"A1234567B1234", "round {round}");
            assert_eq!(calls.take(), [8, 5]);
        }
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_wait_that_timed_out_leaves_no_mark() {
    every_blocking(|case| {
        let timeouts = Log::new();
        let log = timeouts.clone();
        let server = case.serve_with(
            case.builder().read_timeout(Duration::from_millis(20)),
            handler_fn(move |conn| {
                let error = conn.fill(100).unwrap_err();
                log.push(Error::from_io(&error));
                conn.skip(conn.available())
            }),
        );
        let mut peer = server.connect();
        for round in 1..=3 {
            peer.write_all(b"x").unwrap();
            assert_eq!(
                timeouts.wait_len(round)[round - 1],
                Some(Error::ReadTimeout)
            );
        }
        drop(peer);
        server.stop();
    });
}

#[test]
fn an_urgent_byte_does_no_harm() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Inline], |case| {
        let server = case.serve(echo());
        let mut peer = server.connect();
        peer.ping(b"before");
        socket2::SockRef::from(&peer)
            .send_out_of_band(b"!")
            .unwrap();
        peer.ping(b"after");
        drop(peer);
        server.stop();
    });
}

#[test]
fn an_inline_handler_is_told_that_it_would_wait() {
    for transport in [Transport::Tcp, Transport::Unix] {
        let case = Case::new(transport, Kind::Inline);
        let results = Log::new();
        let log = results.clone();
        let server = case.serve(handler_fn(move |conn| {
            let error = conn.fill(100).unwrap_err();
            log.push((error.kind(), Error::from_io(&error)));
            let done = conn.handle().done().wait().unwrap_err();
            log.push((done.kind(), Error::from_io(&done)));
            conn.skip(conn.available())?;
            let dial = Dialer::new()
                .dial_connection(([127, 0, 0, 1], 1))
                .unwrap_err();
            log.push((dial.kind(), Error::from_io(&dial)));
            conn.write_str("fine")?;
            conn.flush()
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        let mut got = [0; 4];
        peer.read_exact(&mut got).unwrap();
        let expected = (io::ErrorKind::Deadlock, Some(Error::WouldDeadlock));
        assert_eq!(results.wait_len(3), [expected; 3]);
        drop(peer);
        server.stop();
    }
}

#[test]
fn a_wait_ends_with_the_other_loops_end() {
    // A client waits for a server that is shut down.
    every(|case| {
        let server = case.serve(Script::new());
        let mut conn = server.dial();
        let waiting = thread::spawn(move || conn.fill(1).unwrap_err());
        let event_loop = server.event_loop.clone();
        eventually("it is accepted", || event_loop.stats().connected == 1);
        server.stop();
        assert_eq!(waiting.join().unwrap().kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn the_first_part_is_lent_as_it_lies() {
    both(|conn, peer| {
        peer.write_all(b"abc").unwrap();
        // Waits, as nothing is here yet.
        assert_eq!(conn.fill_buf().unwrap()[0], b'a');
        conn.fill(3).unwrap();
        assert_eq!(conn.fill_buf().unwrap(), b"abc");
        BufRead::consume(conn, 2);
        assert_eq!(
            conn.fill_buf().unwrap(),
            b"c",
            "what was not consumed stays"
        );
        // More of it, however it lies: nothing is lost or joined.
        peer.write_all(&[7; 100_000]).unwrap();
        conn.fill(100_001).unwrap();
        BufRead::consume(conn, 1);
        let (mut parts, mut all) = (0, 0);
        while conn.available() > 0 {
            let part = conn.fill_buf().unwrap();
            assert!(!part.is_empty() && part.iter().all(|&b| b == 7));
            let n = part.len();
            BufRead::consume(conn, n);
            (parts, all) = (parts + 1, all + n);
        }
        assert!(parts > 0 && all == 100_000);
        peer.write_all(b"rest").unwrap();
        peer.shutdown_write();
        conn.fill(4).unwrap();
        assert_eq!(conn.fill_buf().unwrap(), b"rest");
        BufRead::consume(conn, 4);
        for _ in 0..2 {
            assert_eq!(
                conn.fill_buf().unwrap(),
                b"",
                "the end, as often as one asks"
            );
        }
    });
}

#[test]
fn a_large_message_lies_in_one_piece_however_fast_it_comes() {
    const FRAMES: usize = 20;
    for len in [300 << 10, 1 << 20] {
        every_blocking(move |case| {
            let pieces = Log::new();
            let seen = pieces.clone();
            let server = case.serve(handler_fn(move |conn| {
                while let Some(head) = conn.try_peek(4)? {
                    let need =
                        4 + u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
                    if !conn.try_fill(need)? {
                        break;
                    }
                    seen.push(conn.fill_buf()?.len() >= need);
                    conn.skip(need)?;
                }
                Ok(())
            }));
            let mut peer = server.connect();
            let frame = frame(&pattern(5, len));
            for _ in 0..FRAMES {
                peer.write_all(&frame).unwrap();
            }
            assert_eq!(pieces.wait_len(FRAMES), [true; FRAMES]);
            drop(peer);
            server.stop();
        });
    }
}

#[test]
fn what_came_before_a_send_that_fails_is_read_first() {
    every(|case| {
        let (seen, gate) = (Log::new(), Gate::new());
        let _open = OpenOnDrop(gate.clone());
        let (log, at_gate) = (seen.clone(), gate.clone());
        let server = case.serve(Script::new().request(move |conn| {
            let bytes = conn.next(conn.available())?.to_vec();
            let first = bytes == b"first";
            log.push(bytes);
            if first {
                conn.write_str("never read")?;
                conn.flush()?;
                at_gate.pass();
                conn.write_str("to nobody")?;
                conn.flush().expect_err("the peer is gone");
            }
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"first").unwrap();
        gate.wait_arrived(1);
        // The handler has emptied the socket; now more comes, and the peer goes.
        peer.write_all(b"last").unwrap();
        drop(peer);
        gate.open();
        assert_eq!(seen.wait_len(2), [b"first".to_vec(), b"last".to_vec()]);
        server.stop();
    });
}

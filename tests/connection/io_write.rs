//! What is written through `io::Write` is sent soon, flushed or not.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Server, Transport, bounded, eventually, every,
    every_blocking, giving, limited_pair, on_tcp, pattern,
};
use netpoll::{CloseReason, Connection, Dialer, Error, LengthSlot, OnFull, handler_fn};
use std::{
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    net::Shutdown,
    panic,
    sync::Mutex,
    thread,
    time::Duration,
};

const BUFFER: usize = 64 << 10;
const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Unix];

/// A dialled connection and its peer, which is read by hand.
fn dialled(transport: Transport) -> (Server, Connection, Log<netpoll::ConnectionHandle>) {
    let handles = Log::new();
    let server = Case::new(transport, Kind::Adaptive).serve(giving(&handles));
    let conn = server.dial();
    (server, conn, handles)
}

/// Reads `n` bytes and checks that they are these ones over and over.
#[track_caller]
fn expect_repeated(peer: &mut Peer, piece: &[u8], n: usize) {
    let mut got = vec![0; piece.len()];
    let mut left = n;
    while left > 0 {
        let part = left.min(piece.len());
        peer.read_exact(&mut got[..part]).unwrap();
        assert!(got[..part] == piece[..part], "{left} bytes before the end");
        left -= part;
    }
}

#[track_caller]
fn expect(peer: &mut impl Read, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    peer.read_exact(&mut got).unwrap();
    assert!(got == expected, "{:?}", &got[..got.len().min(40)]);
}

#[test]
fn a_long_copy_collects_no_more_than_the_buffer() {
    const ALL: usize = 64 << 20;
    const PIECE: usize = BUFFER / 2;
    bounded("copy", || {
        let (mut conn, mut peer) = limited_pair();
        let reader = thread::spawn(move || expect_repeated(&mut peer, &pattern(1, PIECE), ALL));
        let piece = pattern(1, PIECE);
        for _ in 0..ALL / PIECE {
            conn.write_all(&piece).unwrap();
            assert!(conn.malloc_len() <= BUFFER, "{}", conn.malloc_len());
            assert_eq!(
                conn.stats().queued,
                0,
                "an owner's write waits for the kernel"
            );
        }
        let sent = conn.stats().bytes_out as usize;
        assert!(sent >= ALL - BUFFER, "{sent}");
        // No more sends than there were buffers full.
        assert!(conn.stats().messages_out <= (ALL / BUFFER) as u64);
        drop(conn);
        reader.join().unwrap();
    });
}

#[test]
fn handlers_copy_within_their_limits() {
    const ALL: usize = 6 << 20;
    const LIMIT_OUT: usize = 256 << 10;
    every_blocking(|case| {
        let most = Log::new();
        let seen = most.clone();
        let builder = case.builder().output_limit(LIMIT_OUT, OnFull::Error);
        let server = case.serve_with(
            builder,
            Script::new().connect(move |conn| {
                let (piece, handle) = (pattern(1, 8192), conn.handle());
                let mut held = 0;
                for _ in 0..ALL / piece.len() {
                    conn.write_all(&piece)?;
                    held = held.max(conn.malloc_len() + handle.stats().queued);
                }
                seen.push(held);
                Ok(())
            }),
        );
        let mut peer = server.connect();
        expect_repeated(&mut peer, &pattern(1, 8192), ALL);
        let held = most.wait_len(1)[0];
        assert!(held <= LIMIT_OUT + 3 * BUFFER, "{held} bytes were kept");
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_response_of_small_writes_is_sent_by_the_buffer() {
    every(|case| {
        let handles = Log::new();
        let given = handles.clone();
        let server = case.serve(Script::new().connect(move |conn| {
            given.push(conn.handle());
            for i in 0..20_000 {
                writeln!(conn, "{i:09}")?;
            }
            Ok(())
        }));
        let mut peer = BufReader::new(server.connect());
        for i in 0..20_000 {
            let mut line = String::new();
            peer.read_line(&mut line).unwrap();
            assert_eq!(line, format!("{i:09}\n"));
        }
        let stats = handles.wait_len(1)[0].stats();
        assert_eq!(stats.messages_out, 200_000_u64.div_ceil(BUFFER as u64));
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_small_message_is_one_send() {
    every(|case| {
        let handles = Log::new();
        let given = handles.clone();
        let server = case.serve(handler_fn(move |conn| {
            let mut question = [0; 8];
            let n = conn.read(&mut question)?;
            let before = conn.stats().messages_out;
            match question[0] {
                b'w' => {
                    conn.write_all(&question[..n])?;
                    conn.flush()?;
                }
                b'b' => {
                    let mut buffered = BufWriter::new(&mut *conn);
                    write!(buffered, "{}", question[0] as char)?;
                    buffered.flush()?;
                }
                _ => {
                    write!(conn, "{}{}", question[0] as char, 1)?;
                    write!(conn, "{}", 2)?;
                }
            }
            given.push((before, conn.handle()));
            Ok(())
        }));
        let mut peer = server.connect();
        for (i, (question, answer)) in [("w", "w"), ("b", "b"), ("m", "m12")].iter().enumerate() {
            peer.write_all(question.as_bytes()).unwrap();
            expect(&mut peer, answer.as_bytes());
            let (before, handle) = handles.wait_len(i + 1).remove(i);
            assert_eq!(handle.stats().messages_out, before + 1, "{question}");
        }
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_callback_sends_what_it_wrote_when_it_returns() {
    every(|case| {
        let server = case.serve(
            Script::new()
                .prepare(|conn| conn.write_all(b"prepared, "))
                .connect(|conn| conn.write_all(b"connected, "))
                .request(|conn| {
                    conn.skip(conn.available())?;
                    conn.write_all(b"answered, ")
                }),
        );
        let mut peer = server.connect();
        expect(&mut peer, b"prepared, connected, ");
        for _ in 0..3 {
            peer.write_all(b"?").unwrap();
            expect(&mut peer, b"answered, ");
        }
        drop(peer);
        server.stop();
    });
}

#[test]
fn an_error_behind_a_reply_does_not_lose_it() {
    every(|case| {
        let refusing = case.serve(Script::new().prepare(|conn| {
            conn.write_all(b"too many")?;
            Err(io::Error::other("no"))
        }));
        assert_eq!(refusing.connect().rest().unwrap(), b"too many");
        refusing.stop();
        let server = case.serve(Script::new().request(|conn| {
            conn.skip(conn.available())?;
            conn.write_all(b"400 Bad Request")?;
            Err(io::ErrorKind::InvalidData.into())
        }));
        let mut peer = server.connect();
        peer.write_all(b"?").unwrap();
        assert_eq!(peer.rest().unwrap(), b"400 Bad Request");
        server.stop();
        let server = case.serve(Script::new().request(|conn| {
            conn.skip(conn.available())?;
            conn.write_all(b"half of")?;
            panic::resume_unwind(Box::new("a handler's panic"))
        }));
        let mut peer = server.connect();
        peer.write_all(b"?").unwrap();
        assert_eq!(peer.rest().unwrap(), b"", "a panic sends nothing");
        server.stop();
    });
}

#[test]
fn what_a_callback_wrote_before_a_close_is_sent() {
    every(|case| {
        let server = case.serve(Script::new().request(|conn| {
            conn.skip(conn.available())?;
            conn.write_all(b"bye")?;
            conn.handle().close();
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"?").unwrap();
        assert_eq!(peer.rest().unwrap(), b"bye");
        server.stop();
    });
}

#[test]
fn an_owner_that_drops_or_closes_has_written_all() {
    for transport in BOTH {
        bounded(&format!("{transport:?}"), move || {
            let got = Log::new();
            let sink = got.clone();
            let server =
                Case::new(transport, Kind::Adaptive).serve(Script::new().request(move |conn| {
                    let n = conn.available();
                    sink.push(conn.read_vec(n)?);
                    Ok(())
                }));
            let ends: [fn(Connection); 5] = [
                drop,
                |conn| conn.close().unwrap(),
                |mut conn| conn.shutdown(Shutdown::Write).unwrap(),
                |conn| drop(conn.into_split()),
                |conn| drop(conn.detach().unwrap()),
            ];
            for (i, end) in ends.into_iter().enumerate() {
                let mut conn = server.dial();
                write!(conn, "end {i}").unwrap();
                assert_eq!(conn.stats().bytes_out, 0);
                end(conn);
                assert_eq!(got.wait_len(i + 1)[i], format!("end {i}").as_bytes());
            }
            let mut conn = server.dial();
            conn.write_all(b"aborted").unwrap();
            conn.abort();
            let mut conn = server.dial();
            conn.write_all(b"closed by another").unwrap();
            let handle = conn.handle();
            handle.close();
            drop(conn);
            assert!(handle.done().wait_timeout(LIMIT).is_some());
            server.stop();
            assert_eq!(got.take().len(), ends.len(), "what was cut arrived");
        });
    }
}

#[test]
fn more_than_the_socket_takes_is_sent_behind_a_drop() {
    for transport in BOTH {
        bounded(&format!("{transport:?}"), move || {
            let (server, mut conn, handles) = dialled(transport);
            let all = pattern(3, 7 << 20);
            conn.write_all(&all).unwrap();
            drop(conn);
            drop(handles.wait_len(1));
            // The server drops what it receives: its figures say how much that was.
            let handle = handles.take().remove(0);
            assert!(handle.done().wait_timeout(LIMIT).is_some());
            assert_eq!(handle.stats().bytes_in, all.len() as u64);
            server.stop();
        });
    }
}

/// Copies one half into the other.
fn echo_owned(conn: Connection) -> io::Result<u64> {
    let (mut r, mut w) = conn.into_split();
    io::copy(&mut r, &mut w)
}

#[track_caller]
fn expect_echo(server: &Server) {
    let mut peer = server.connect();
    // Each word is answered before the next is said, however short it is.
    for word in ["a", "few", "words"] {
        peer.write_all(word.as_bytes()).unwrap();
        expect(&mut peer, word.as_bytes());
    }
    let all = pattern(5, 3 << 20);
    let mut reader = peer.try_clone();
    let back = thread::spawn(move || reader.rest().unwrap());
    peer.write_all(&all).unwrap();
    peer.shutdown_write();
    assert!(back.join().unwrap() == all, "the end is lost");
}

#[test]
fn an_echo_by_copying_loses_nothing_and_holds_nothing_back() {
    every_blocking(|case| {
        let server = case.serve(Script::new().connect(|conn| {
            let (mut r, mut w) = conn.split();
            io::copy(&mut r, &mut w).map(drop)
        }));
        expect_echo(&server);
        server.stop();
        let server = case.serve(Script::new().connect(|conn| {
            let taken = conn.hijack()?;
            thread::spawn(move || echo_owned(taken));
            Ok(())
        }));
        expect_echo(&server);
        server.stop();
    });
}

#[test]
fn two_copies_make_a_proxy() {
    for transport in BOTH {
        bounded(&format!("{transport:?}"), move || {
            let case = Case::new(transport, Kind::Adaptive);
            let backend = case.serve(Script::new().connect(|conn| {
                let (mut r, mut w) = conn.split();
                io::copy(&mut r, &mut w).map(drop)
            }));
            let address = backend.address.clone();
            let server = case.serve(Script::new().connect(move |conn| {
                let (mut r, mut w) = conn.hijack()?.into_split();
                let (mut r2, mut w2) = Dialer::new().dial_connection(address.clone())?.into_split();
                thread::spawn(move || {
                    io::copy(&mut r, &mut w2)?;
                    w2.finish()
                });
                thread::spawn(move || {
                    io::copy(&mut r2, &mut w)?;
                    w.finish()
                });
                Ok(())
            }));
            expect_echo(&server);
            server.stop();
            backend.stop();
        });
    }
}

#[test]
fn a_reading_call_sends_before_it_waits() {
    let reads: [fn(&mut Connection) -> io::Result<()>; 8] = [
        |conn| conn.fill(1),
        |conn| conn.fill_more(),
        |conn| conn.peek(1).map(drop),
        |conn| conn.until(b'!').map(drop),
        |conn| conn.read_line(10).map(drop),
        |conn| conn.read_at_least(&mut [0], 1).map(drop),
        |conn| conn.read(&mut [0]).map(drop),
        |conn| conn.fill_buf().map(drop),
    ];
    on_tcp(&[Kind::Adaptive], move |case| {
        let server = case.serve(handler_fn(|conn| {
            if conn.try_until(b'?')?.is_some() {
                conn.write_all(b"yes!\n")?;
            }
            Ok(())
        }));
        let tries: [fn(&mut Connection) -> io::Result<bool>; 7] = [
            |conn| conn.try_fill(1),
            |conn| conn.try_fill_more(),
            |conn| Ok(conn.try_peek(1)?.is_some()),
            |conn| Ok(conn.try_next(1)?.is_some()),
            |conn| Ok(conn.try_until(b'!')?.is_some()),
            |conn| Ok(conn.try_next_bytes(1)?.is_some()),
            |conn| Ok(conn.try_slice(1)?.is_some()),
        ];
        for read in tries {
            let mut conn = server.dial();
            conn.write_all(b"and now?").unwrap();
            eventually("an answer", || read(&mut conn).unwrap());
            assert_eq!(conn.stats().messages_out, 1);
        }
        for read in reads {
            let mut conn = server.dial();
            conn.write_all(b"are you ").unwrap();
            conn.write_all(b"there?").unwrap();
            read(&mut conn).unwrap();
        }
        server.stop();
    });
    // A handler asks its own peer.
    every_blocking(|case| {
        let server = case.serve(Script::new().connect(|conn| {
            conn.write_all(b"name?")?;
            let name = conn.until(b'\n')?.to_vec();
            conn.write_all(&name)
        }));
        let mut peer = server.connect();
        expect(&mut peer, b"name?");
        peer.write_all(b"peer\n").unwrap();
        expect(&mut peer, b"peer\n");
        drop(peer);
        server.stop();
    });
}

#[test]
fn what_is_written_otherwise_waits_for_its_flush() {
    every(|case| {
        let server = case.serve(Script::new().request(|conn| {
            match conn.read_u8()? {
                // In front of what is streamed, and behind it.
                b'1' => {
                    conn.write_str("head ")?;
                    conn.write_all(b"body")?;
                    conn.write_str(" tail")?;
                }
                b'2' => conn.flush()?,
                // Behind room that was lent nothing goes by itself.
                b'3' => {
                    let slot = conn.reserve_slot::<2>()?;
                    conn.write_all(b" length")?;
                    conn.fill_slot(slot, *b"77")?;
                }
                b'4' => {
                    conn.malloc(3)?.copy_from_slice(b"own");
                    conn.write_all(&[b'.'; 2 * BUFFER])?;
                    conn.write_all(b" room")?;
                    assert_eq!(conn.malloc_len(), 2 * BUFFER + 8);
                    conn.malloc_ack(2)?;
                }
                // What is cut is not sent.
                b'5' => {
                    conn.write_all(b"kept and cut")?;
                    conn.malloc_ack(4)?;
                    conn.write_direct(netpoll::Bytes::from_static(b"-in-"), 2)?;
                }
                _ => {}
            }
            Ok(())
        }));
        let mut peer = server.connect();
        let mut ask = |what: &[u8], answer: &[u8]| {
            peer.write_all(what).unwrap();
            expect(&mut peer, answer);
        };
        ask(b"1", b"head body");
        ask(b"2", b" tail");
        ask(b"32", b"77 length");
        ask(b"42", b"ow");
        ask(b"5", b"ke-in-pt");
        drop(peer);
        server.stop();
        // At the end of a connection the same holds.
        let server = case.serve(Script::new().request(|conn| {
            conn.skip(conn.available())?;
            conn.write_all(b"sent")?;
            conn.write_str(" and not")?;
            conn.handle().close();
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"?").unwrap();
        assert_eq!(peer.rest().unwrap(), b"sent");
        server.stop();
    });
}

#[test]
fn a_slot_behind_what_is_sent_by_itself_is_still_found() {
    every(|case| {
        let open = Mutex::new(None::<LengthSlot<3>>);
        let server = case.serve(Script::new().request(move |conn| {
            conn.skip(conn.available())?;
            if let Some(slot) = open.lock().unwrap().take() {
                conn.fill_slot(slot, *b"mid")?;
                return conn.flush();
            }
            conn.write_all(b"first ")?;
            *open.lock().unwrap() = Some(conn.reserve_slot()?);
            conn.write_slice(b" end")
        }));
        let mut peer = server.connect();
        peer.write_all(b"?").unwrap();
        expect(&mut peer, b"first ");
        peer.write_all(b"?").unwrap();
        expect(&mut peer, b"mid end");
        drop(peer);
        server.stop();
    });
}

#[test]
fn the_buffer_is_an_option_and_of_one_connection() {
    every(|case| {
        let handles = Log::new();
        let given = handles.clone();
        let server = case.serve_with(
            case.builder().write_buffer(100),
            Script::new().connect(move |conn| {
                let mut sent = Vec::new();
                for size in [None, Some(0), Some(500), Some(usize::MAX)] {
                    if let Some(size) = size {
                        conn.set_write_buffer(size);
                    }
                    let before = conn.stats().messages_out;
                    for _ in 0..100 {
                        conn.write_all(&[7; 10])?;
                    }
                    conn.flush()?;
                    sent.push(conn.stats().messages_out - before);
                }
                given.push(sent);
                Ok(())
            }),
        );
        for i in 0..2 {
            let mut peer = server.connect();
            expect(&mut peer, &[7; 4000]);
            assert_eq!(handles.wait_len(i + 1)[i], [10, 100, 2, 1]);
        }
        server.stop();
    });
    bounded("dialer", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(Script::new());
        let dialer = Dialer::new().write_buffer(1000);
        let mut conn = dialer.dial_connection(server.address.clone()).unwrap();
        conn.write_all(&[1; 1000]).unwrap();
        assert_eq!(conn.stats().bytes_out, 0);
        conn.write_all(&[1; 10]).unwrap();
        assert_eq!((conn.stats().bytes_out, conn.malloc_len()), (1000, 10));
        drop(conn);
        server.stop();
    });
}

#[test]
fn a_write_that_has_to_send_fails_as_a_flush() {
    every(|case| {
        // The peer reads nothing: the queue fills, then the write timeout passes or, inline, nothing may wait.
        let ends = Log::new();
        let (seen, ended) = (ends.clone(), Log::new());
        let reasons = ended.clone();
        let builder = case
            .builder()
            .output_limit(256 << 10, OnFull::Error)
            .write_timeout(Duration::from_millis(50))
            .linger(Duration::from_millis(50), 0);
        let server = case.serve_with(
            builder,
            Script::new()
                .connect(|_| Ok(()))
                .request(move |conn| {
                    let error = io::copy(&mut io::repeat(1), conn).unwrap_err();
                    seen.push(Error::from_io(&error).unwrap());
                    Err(error)
                })
                .disconnect(move |_, reason| reasons.push(reason)),
        );
        let mut peer = server.connect();
        peer.write_all(b"?").unwrap();
        let error = ends.wait_len(1)[0];
        let reason = ended.wait_len(1)[0];
        if case.kind == Kind::Inline {
            assert_eq!(error, Error::WouldDeadlock);
            assert_eq!(reason, CloseReason::HandlerError);
        } else {
            assert!(matches!(error, Error::WriteTimeout { .. }), "{error}");
            assert_eq!(reason, CloseReason::WriteTimeout);
        }
        drop(peer);
        server.event_loop.shutdown_forced(LIMIT).unwrap();
    });
}

#[test]
fn a_copy_to_a_peer_that_does_not_read_waits() {
    const ALL: usize = 24 << 20;
    bounded("copy", || {
        let (mut from, mut source) = limited_pair();
        let (mut to, mut target) = limited_pair();
        let handle = to.handle();
        let copy = thread::spawn(move || {
            io::copy(&mut from, &mut to)?;
            to.close()
        });
        let writer = thread::spawn(move || {
            // Small pieces: the reader has read all that is here again and again.
            for piece in pattern(9, ALL).chunks(10_000) {
                source.write_all(piece).unwrap();
            }
        });
        eventually("the socket is full", || handle.stats().queued > 0);
        let (mut got, mut most) = (vec![0; ALL], 0);
        for part in got.chunks_mut(100_000) {
            most = most.max(handle.stats().queued);
            target.read_exact(part).unwrap();
        }
        assert!(got == pattern(9, ALL));
        assert!(most <= 3 * BUFFER, "{most} bytes were queued");
        target.expect_end();
        writer.join().unwrap();
        copy.join().unwrap().unwrap();
    });
}

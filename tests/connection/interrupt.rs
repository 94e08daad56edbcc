//! A wait is ended from another thread, and the connection goes on as if it had not been.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Transport, asleep_in, bounded, echo_frames, eventually,
    every, every_blocking, frame, pattern, read_frame,
};
use netpoll::{
    Address, Connection, ConnectionHandle, Dialer, Error, EventLoop, OnFull, Pool, handler_fn,
};
use socket2::SockRef;
use std::{
    io::{self, IoSlice, Read, Write},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

/// More than the sockets of a connection hold.
const MUCH: usize = 8 << 20;

fn is_interrupted(error: &io::Error) -> bool {
    Error::from_io(error) == Some(Error::Interrupted)
}

#[track_caller]
fn interrupted<T: std::fmt::Debug>(result: io::Result<T>) {
    let error = result.unwrap_err();
    assert!(is_interrupted(&error), "{error}");
    // `std::io` repeats calls that fail with this.
    assert_ne!(error.kind(), io::ErrorKind::Interrupted);
}

/// A connection of one's own whose calls end by themselves some time, and its peer.
fn pair_of(transport: Transport) -> (Connection, Peer) {
    let dialer = Dialer::new().read_timeout(LIMIT).write_timeout(LIMIT);
    pair_by(transport, &dialer)
}

fn pair_by(transport: Transport, dialer: &Dialer) -> (Connection, Peer) {
    match transport {
        Transport::Tcp => crate::support::socket_pair(|to| dialer.dial_connection(to)),
        Transport::Unix => {
            let path = crate::support::fresh_path();
            let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
            let conn = dialer.dial_connection(Address::Unix(path.clone())).unwrap();
            let peer = Peer::Unix(listener.accept().unwrap().0);
            peer.set_limit(Some(LIMIT));
            std::fs::remove_file(path).unwrap();
            (conn, peer)
        }
    }
}

fn on_both(test: impl Fn(Transport) + Send + Sync + 'static) {
    let test = Arc::new(test);
    for transport in [Transport::Tcp, Transport::Unix] {
        let test = Arc::clone(&test);
        bounded(&format!("{transport:?}"), move || test(transport));
    }
}

/// Calls and answers, until receives of this connection wait by themselves.
fn warm(conn: &mut Connection, peer: &mut Peer) {
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..12 {
                peer.read_exact(&mut [0]).unwrap();
                peer.write_all(b"a").unwrap();
            }
        });
        for _ in 0..12 {
            conn.write_slice(b"q").unwrap();
            conn.flush().unwrap();
            assert_eq!(conn.read_u8().unwrap(), b'a');
        }
    });
}

/// A call that waits for input, by number; `None` when there are no more.
fn reading_call(conn: &mut Connection, nth: usize) -> Option<io::Result<usize>> {
    let mut here = [0; 12];
    Some(match nth {
        0 => conn.fill(12).map(|()| 0),
        1 => conn.peek(12).map(<[u8]>::len),
        2 => conn.next(12).map(<[u8]>::len),
        3 => conn.skip(12).map(|()| 0),
        4 => conn.until(b'\n').map(<[u8]>::len),
        5 => conn.next_bytes(12).map(|bytes| bytes.len()),
        6 => conn.slice(12).map(|slice| slice.len()),
        7 => conn.read_string(12).map(|text| text.len()),
        8 => conn.read_vec(12).map(|bytes| bytes.len()),
        9 => conn.read_line(100).map(|line| line.data.len()),
        10 => conn.read_at_least(&mut here, 12),
        11 => conn.fill_more().map(|()| 0),
        12 => conn.forward(12).map(|()| 0),
        13 => {
            let (mut reading, _) = conn.split();
            reading.fill(12).map(|()| 0)
        }
        _ => return None,
    })
}

#[test]
fn a_read_is_interrupted_and_consumes_nothing() {
    on_both(|transport| {
        for warmed in [false, true] {
            let (mut conn, mut peer) = pair_of(transport);
            if warmed {
                warm(&mut conn, &mut peer);
            }
            let mut nth = 0;
            loop {
                let handle = conn.handle();
                peer.write_all(b"first ").unwrap();
                conn.fill(6).unwrap();
                let waiting = asleep_in(move || {
                    let called = reading_call(&mut conn, nth);
                    (conn, called)
                });
                handle.interrupt();
                let called;
                (conn, called) = waiting.join().unwrap();
                let Some(result) = called else { break };
                interrupted(result);
                assert!(!handle.clear_interrupts(), "{nth}: none is kept");
                assert_eq!(conn.available(), 6, "{nth}");
                peer.write_all(b"rest\r\n").unwrap();
                assert_eq!(conn.next(12).unwrap(), b"first rest\r\n", "{nth}");
                nth += 1;
            }
            assert_eq!(nth, 14);
            assert!(conn.is_active());
        }
    });
}

#[test]
fn std_reads_are_interrupted_and_not_repeated() {
    on_both(|transport| {
        let (conn, mut peer) = pair_of(transport);
        let handle = conn.handle();
        // `read_exact` calls `read` again after some errors.
        let waiting = asleep_in(move || {
            let mut conn = conn;
            let result = conn.read_exact(&mut [0; 4]);
            (conn, result)
        });
        handle.interrupt();
        let (mut conn, result) = waiting.join().unwrap();
        interrupted(result);
        peer.write_all(b"more").unwrap();
        let mut got = [0; 4];
        conn.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"more");
        let waiting = asleep_in(move || {
            let result = io::copy(&mut conn, &mut io::sink());
            (conn, result)
        });
        handle.interrupt();
        interrupted(waiting.join().unwrap().1);
    });
}

#[test]
fn one_that_comes_before_the_wait_is_kept_for_it() {
    on_both(|transport| {
        for warmed in [false, true] {
            let (mut conn, mut peer) = pair_of(transport);
            if warmed {
                warm(&mut conn, &mut peer);
            }
            let handle = conn.handle();
            handle.interrupt();
            handle.interrupt();
            // Calls that need not wait, or never do, have nothing to do with it.
            peer.write_all(b"abc").unwrap();
            eventually("input", || conn.try_fill(3).unwrap());
            assert_eq!(conn.next(3).unwrap(), b"abc");
            assert!(conn.try_next(1).unwrap().is_none());
            conn.write_slice(b"out").unwrap();
            conn.flush().unwrap();
            interrupted(conn.read_u8());
            // Once.
            peer.write_all(b"d").unwrap();
            assert_eq!(conn.read_u8().unwrap(), b'd');
            conn.set_read_timeout(Some(Duration::from_millis(1)));
            let late = conn.read_u8().unwrap_err();
            assert_eq!(Error::from_io(&late), Some(Error::ReadTimeout));
            // One of each direction, for that direction.
            handle.interrupt_writes();
            let late = conn.read_u8().unwrap_err();
            assert_eq!(Error::from_io(&late), Some(Error::ReadTimeout));
            assert!(handle.clear_interrupts());
            handle.interrupt_reads();
            interrupted(conn.read_u8());
            handle.interrupt();
            assert!(handle.clear_interrupts());
            let late = conn.read_u8().unwrap_err();
            assert_eq!(Error::from_io(&late), Some(Error::ReadTimeout));
        }
    });
}

/// Reads `count` bytes on a thread of its own.
fn reader(peer: &Peer, count: usize) -> thread::JoinHandle<Vec<u8>> {
    let mut peer = peer.try_clone();
    thread::spawn(move || {
        let mut got = vec![0; count];
        peer.read_exact(&mut got).unwrap();
        got
    })
}

#[test]
fn a_flush_is_interrupted_and_the_next_one_waits_for_the_rest() {
    on_both(|transport| {
        for waits in [false, true] {
            let (mut conn, peer) = pair_of(transport);
            let handle = conn.handle();
            let bytes = pattern(3, MUCH - 7);
            conn.write_slice(&bytes).unwrap();
            for _ in 0..3 {
                let waiting = asleep_in(move || {
                    let result = if waits {
                        conn.flush_and_wait()
                    } else {
                        conn.flush()
                    };
                    (conn, result)
                });
                handle.interrupt();
                let result;
                (conn, result) = waiting.join().unwrap();
                interrupted(result);
                assert_eq!(conn.malloc_len(), 0, "all of it was submitted");
                assert!(conn.stats().queued > 0);
                assert!(conn.is_active());
            }
            let reading = reader(&peer, bytes.len() + 3);
            conn.write_slice(b"end").unwrap();
            conn.flush().unwrap();
            assert_eq!(conn.stats().queued, 0);
            let got = reading.join().unwrap();
            assert!(got[..bytes.len()] == bytes && got.ends_with(b"end"));
            assert_eq!(conn.stats().lost_bytes, 0);
        }
    });
}

#[test]
fn what_is_queued_goes_out_without_another_flush() {
    on_both(|transport| {
        let (mut conn, peer) = pair_of(transport);
        let handle = conn.handle();
        let bytes = pattern(5, MUCH);
        conn.write_slice(&bytes).unwrap();
        let waiting = asleep_in(move || {
            let result = conn.flush();
            (conn, result)
        });
        handle.interrupt_writes();
        let (conn, result) = waiting.join().unwrap();
        interrupted(result);
        assert!(reader(&peer, bytes.len()).join().unwrap() == bytes);
        drop(conn);
    });
}

#[test]
fn a_vectored_write_that_is_taken_says_so() {
    on_both(|transport| {
        let (conn, peer) = pair_of(transport);
        let handle = conn.handle();
        let bytes = pattern(7, MUCH);
        let slices = bytes.clone();
        let waiting = asleep_in(move || {
            let mut conn = conn;
            let (a, b) = slices.split_at(slices.len() / 3);
            let written = conn.write_vectored(&[IoSlice::new(a), IoSlice::new(b)]);
            (conn, written)
        });
        handle.interrupt();
        let (mut conn, written) = waiting.join().unwrap();
        // An error would have its caller write all of it again.
        assert_eq!(written.unwrap(), bytes.len());
        interrupted(conn.flush());
        let reading = reader(&peer, bytes.len());
        conn.flush().unwrap();
        assert!(reading.join().unwrap() == bytes);
    });
}

#[test]
fn an_interrupted_write_has_taken_nothing() {
    on_both(|transport| {
        let (conn, peer) = pair_of(transport);
        let handle = conn.handle();
        let mut conn = Some(conn);
        let mut sent = Vec::new();
        for round in 0..3_u8 {
            let mut writer = conn.take().unwrap();
            let writing = asleep_in(move || {
                let mut taken = 0;
                // `write` sends by itself, and waits when nothing more fits.
                let error = loop {
                    match Write::write(&mut writer, &[round; 10_000]) {
                        Ok(n) => taken += n,
                        Err(error) => break error,
                    }
                };
                (writer, taken, error)
            });
            handle.interrupt();
            let (writer, taken, error) = writing.join().unwrap();
            assert!(is_interrupted(&error), "{error}");
            sent.extend(std::iter::repeat_n(round, taken));
            conn = Some(writer);
        }
        let mut conn = conn.unwrap();
        let reading = reader(&peer, sent.len() + 3);
        conn.write_str("end").unwrap();
        conn.flush().unwrap();
        let got = reading.join().unwrap();
        assert!(got[..sent.len()] == sent && got.ends_with(b"end"));
    });
}

#[test]
fn a_sender_that_waits_for_room_is_interrupted() {
    on_both(|transport| {
        let dialer = Dialer::new()
            .write_timeout(LIMIT)
            .output_limit(1 << 20, OnFull::Block);
        let (conn, peer) = pair_by(transport, &dialer);
        let handle = conn.handle();
        let bytes = pattern(1, MUCH);
        handle.send(bytes.clone()).unwrap();
        let other = handle.clone();
        let sending = asleep_in(move || other.send(vec![9; 1 << 20]));
        let other = handle.clone();
        let flushing = asleep_in(move || other.flush());
        // Not one of the calls.
        let done = handle.done();
        let ending = asleep_in(move || done.wait());
        handle.interrupt_reads();
        assert!(handle.clear_interrupts(), "kept for a read");
        assert!(!sending.is_finished() && !flushing.is_finished());
        handle.interrupt();
        interrupted(sending.join().unwrap());
        interrupted(flushing.join().unwrap());
        assert!(!handle.clear_interrupts());
        // The message was not accepted.
        let reading = reader(&peer, bytes.len() + 3);
        handle.send(b"end".to_vec()).unwrap();
        handle.flush().unwrap();
        let got = reading.join().unwrap();
        assert!(got[..bytes.len()] == bytes && got.ends_with(b"end"));
        assert!(!ending.is_finished());
        drop(conn);
        ending.join().unwrap().unwrap();
    });
}

#[test]
fn each_half_has_interrupts_of_its_own() {
    on_both(|transport| {
        let (conn, mut peer) = pair_of(transport);
        let handle = conn.handle();
        let (reading, writing) = conn.into_split();
        let bytes = pattern(2, MUCH);
        let output = bytes.clone();
        let write = asleep_in(move || {
            let mut writing = writing;
            writing.write_slice(&output).unwrap();
            let result = writing.flush();
            (writing, result)
        });
        let read = asleep_in(move || {
            let mut reading = reading;
            let result = reading.fill(2);
            (reading, result)
        });
        handle.interrupt_reads();
        let (mut reading, result) = read.join().unwrap();
        interrupted(result);
        assert!(!write.is_finished());
        let read = asleep_in(move || {
            let got = reading.fill(2);
            (reading, got)
        });
        handle.interrupt_writes();
        let (mut writing, result) = write.join().unwrap();
        interrupted(result);
        assert!(!read.is_finished());
        peer.write_all(b"in").unwrap();
        let (mut reading, result) = read.join().unwrap();
        result.unwrap();
        assert_eq!(reading.next(2).unwrap(), b"in");
        let all = reader(&peer, bytes.len());
        writing.flush().unwrap();
        assert!(all.join().unwrap() == bytes);
        // Both of them at once.
        let read = asleep_in(move || reading.fill(1));
        // The sockets hold more by now.
        writing.write_slice(&vec![0; 8 * MUCH]).unwrap();
        let write = asleep_in(move || writing.flush());
        handle.interrupt();
        interrupted(read.join().unwrap());
        interrupted(write.join().unwrap());
    });
}

#[test]
fn a_handler_that_waits_is_interrupted_and_goes_on() {
    every_blocking(|case| {
        let (handles, told) = (Log::new(), Log::new());
        let (given, tell) = (handles.clone(), told.clone());
        let server = case.serve(Script::new().request(move |conn| {
            given.push(conn.handle());
            // A message of nine bytes, and an answer that does not fit into the sockets.
            while let Err(error) = conn.fill(9) {
                if !is_interrupted(&error) {
                    return Err(error);
                }
                tell.push("read");
            }
            let message = conn.read_vec(9)?;
            conn.write_slice(&message)?;
            conn.write_bytes(vec![b'x'; MUCH - 9].into())?;
            while let Err(error) = conn.flush_and_wait() {
                if !is_interrupted(&error) {
                    return Err(error);
                }
                tell.push("write");
            }
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"some").unwrap();
        let handle: ConnectionHandle = handles.wait_len(1).remove(0);
        for n in 1..=3 {
            handle.interrupt();
            told.wait_len(n);
        }
        assert!(!handle.clear_interrupts());
        peer.write_all(b" more").unwrap();
        eventually("the answer is queued", || handle.stats().queued > 0);
        handle.interrupt();
        told.wait_len(4);
        let got = reader(&peer, MUCH).join().unwrap();
        assert!(got.starts_with(b"some more"));
        assert!(got[9..].iter().all(|byte| *byte == b'x'));
        assert_eq!(told.all(), ["read", "read", "read", "write"]);
        // Nothing has happened to the connection.
        peer.write_all(b"and again").unwrap();
        let got = reader(&peer, MUCH).join().unwrap();
        assert!(got.starts_with(b"and again"));
        server.stop();
    });
}

#[test]
fn a_handler_that_never_waits_sees_no_interrupt() {
    every(|case| {
        let handles = Log::new();
        let given = handles.clone();
        let server = case.serve(Script::new().request(move |conn| {
            given.push(conn.handle());
            echo_frames(conn)
        }));
        let mut peer = server.connect();
        for n in 1..50 {
            peer.write_all(&frame(b"a message")).unwrap();
            assert_eq!(read_frame(&mut peer).unwrap(), b"a message");
            handles.wait_len(n).last().unwrap().interrupt();
        }
        server.stop();
    });
}

#[test]
fn an_interrupt_is_not_for_the_next_user_of_a_pooled_connection() {
    on_both(|transport| {
        let server = crate::support::Server::start(
            transport,
            EventLoop::builder().pollers(1),
            handler_fn(echo_frames),
        );
        let pool = Pool::new(Dialer::new().read_timeout(LIMIT));
        let mut conn = pool.get(&server.address).unwrap();
        conn.handle().interrupt();
        drop(conn);
        conn = pool.get(&server.address).unwrap();
        assert_eq!(pool.stats().reused, 1);
        let handle = conn.handle();
        let waiting = asleep_in(move || {
            let result = conn.read_u8();
            (conn, result)
        });
        handle.interrupt();
        let (conn, result) = waiting.join().unwrap();
        interrupted(result);
        // What the call waited for may come later, so it is not kept.
        drop(conn);
        assert_eq!(pool.stats().idle, 0);
        pool.close();
        server.stop();
    });
}

#[test]
fn an_interrupt_of_a_connection_that_is_over_does_nothing() {
    on_both(|transport| {
        let (conn, peer) = pair_of(transport);
        let handle = conn.handle();
        drop((conn, peer));
        handle.done().wait().unwrap();
        handle.interrupt();
        assert!(!handle.clear_interrupts());
    });
}

fn interrupt_until(handle: &ConnectionHandle, over: &AtomicBool) {
    while !over.load(Ordering::Acquire) {
        handle.interrupt();
        thread::sleep(Duration::from_micros(300));
    }
}

/// Repeats a call for as long as it is interrupted, and counts that.
fn insist<T>(times: &mut u32, mut call: impl FnMut() -> io::Result<T>) -> T {
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) if is_interrupted(&error) => *times += 1,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn in_a_storm_of_interrupts_every_byte_arrives_once() {
    on_both(|transport| {
        let (mut conn, peer) = pair_of(transport);
        SockRef::from(&conn.as_fd())
            .set_send_buffer_size(16 << 10)
            .unwrap();
        let (handle, over) = (conn.handle(), AtomicBool::new(false));
        let bytes = pattern(11, 2 << 20);
        let mut echo = peer.try_clone();
        thread::scope(|scope| {
            scope.spawn(|| interrupt_until(&handle, &over));
            scope.spawn(|| {
                let mut piece = vec![0; 5000];
                loop {
                    match echo.read(&mut piece).unwrap() {
                        0 => return,
                        n => echo.write_all(&piece[..n]).unwrap(),
                    }
                }
            });
            // All of it, and more if few waits were interrupted.
            let (mut seen, mut left) = (0, bytes.len());
            for piece in bytes.chunks(100_000).cycle() {
                conn.write_slice(piece).unwrap();
                insist(&mut seen, || conn.flush());
                let got = insist(&mut seen, || conn.read_vec(piece.len()));
                assert!(got == piece);
                left = left.saturating_sub(piece.len());
                if left == 0 && seen > 10 {
                    break;
                }
            }
            over.store(true, Ordering::Release);
            assert_eq!(conn.available(), 0);
            drop(conn);
        });
    });
}

#[test]
fn a_wait_of_an_inline_handler_is_refused_all_the_same() {
    let case = Case::new(Transport::Tcp, Kind::Inline);
    bounded("inline", move || {
        let errors = Log::new();
        let told = errors.clone();
        let server = case.serve_with(
            case.builder(),
            Script::new().request(move |conn| {
                conn.handle().interrupt();
                let error = conn.fill(100).unwrap_err();
                told.push(Error::from_io(&error));
                Err(error)
            }),
        );
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        assert_eq!(errors.wait_len(1), [Some(Error::WouldDeadlock)]);
        peer.expect_gone();
        server.stop();
    });
}

//! A deadline for a whole message, of handlers that return while a part of it is missing.

use crate::support::{
    Case, LIMIT, Log, Peer, Script, Server, every, frame, let_pass, outlast, read_frame,
};
use netpoll::{
    CloseReason, Connection, ConnectionHandle, Dialer, Error, Handler, LengthField, framed,
    handler_fn,
};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

const TIME: Duration = Duration::from_millis(150);

fn later(time: Duration) -> Option<Instant> {
    Some(Instant::now() + time)
}

/// Answers each line with a `!`, without waiting for one.
fn lines(conn: &mut Connection) -> io::Result<()> {
    while conn.try_until(b'\n')?.is_some() {
        conn.write_str("!")?;
    }
    conn.flush()
}

/// Sends bytes as long as they are taken, and says whether that is over.
struct Drip {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drip {
    fn begin(peer: &Peer) -> Self {
        let (mut peer, stop) = (peer.try_clone(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let drip = move || {
            while !stopped.load(SeqCst) && peer.write_all(b"\0").is_ok() {
                thread::sleep(Duration::from_millis(3));
            }
        };
        Self {
            stop,
            thread: Some(thread::spawn(drip)),
        }
    }
}

impl Drop for Drip {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

#[track_caller]
fn expect_answer(peer: &mut Peer, what: &[u8]) {
    peer.write_all(what).unwrap();
    let mut answer = [0];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"!");
}

/// When each connection was connected and how it ended, as its own script says.
fn noting(
    ends: &Log<(Duration, CloseReason)>,
    connect: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    request: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
) -> Script {
    let (ends, begun) = (ends.clone(), Log::new());
    let noted = begun.clone();
    Script::new()
        .connect(move |conn| {
            noted.push(Instant::now());
            connect(conn)
        })
        .request(request)
        .disconnect(move |_, reason| ends.push((begun.wait_len(1)[0].elapsed(), reason)))
}

#[track_caller]
fn expect_late(ends: &Log<(Duration, CloseReason)>) {
    let (took, reason) = ends.wait_len(1)[0];
    assert_eq!(reason, CloseReason::ReadTimeout);
    assert!(took >= TIME, "{took:?} is early");
}

#[test]
fn a_trickle_does_not_move_a_deadline() {
    every(|case| {
        let ends = Log::new();
        let set = |conn: &mut Connection| {
            conn.set_read_deadline(later(TIME));
            Ok(())
        };
        let server = case.serve(noting(&ends, set, lines));
        let mut peer = server.connect();
        let drip = Drip::begin(&peer);
        expect_late(&ends);
        peer.expect_gone();
        drop(drip);
        server.stop();
    });
}

#[test]
fn a_deadline_set_when_a_message_begins_holds() {
    every(|case| {
        let (ends, begun) = (Log::new(), Log::new());
        let times = begun.clone();
        let log = ends.clone();
        let server = case.serve(
            Script::new()
                .request(move |conn| {
                    lines(conn)?;
                    if conn.available() > 0 && times.len() == 0 {
                        times.push(Instant::now());
                        conn.set_read_deadline(later(TIME));
                    }
                    Ok(())
                })
                .disconnect(move |_, reason| log.push((begun.wait_len(1)[0].elapsed(), reason))),
        );
        let mut peer = server.connect();
        // An idle connection has none.
        expect_answer(&mut peer, b"whole\n");
        outlast(TIME);
        expect_answer(&mut peer, b"whole\n");
        let drip = Drip::begin(&peer);
        expect_late(&ends);
        drop(drip);
        server.stop();
    });
}

#[test]
fn a_silent_peer_meets_no_deadline() {
    every(|case| {
        let ends = Log::new();
        let set = |conn: &mut Connection| {
            conn.set_read_deadline(later(TIME));
            Ok(())
        };
        let server = case.serve(noting(&ends, set, lines));
        let mut peer = server.connect();
        expect_late(&ends);
        peer.expect_end();
        server.stop();
    });
}

#[test]
fn a_deadline_that_was_met_is_over() {
    every(|case| {
        // Long enough for one message on a busy machine, or else the peer sees that it was not.
        const FIRST: Duration = Duration::from_millis(700);
        let server = case.serve(Script::new().request(lines).connect(|conn| {
            conn.set_read_deadline(later(FIRST));
            Ok(())
        }));
        let begun = Instant::now();
        let mut peer = server.connect();
        let met = peer
            .write_all(b"a line\n")
            .and_then(|()| peer.read_exact(&mut [0]));
        if met.is_err() || begun.elapsed() >= FIRST {
            assert!(begun.elapsed() >= FIRST, "ended early");
            return server.stop();
        }
        outlast(FIRST);
        expect_answer(&mut peer, b"another\n");
        peer.write_all(b"in two ").unwrap();
        expect_answer(&mut peer, b"parts\n");
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_deadline_can_be_taken_back_and_moved() {
    every(|case| {
        let server = case.serve(
            Script::new()
                .connect(|conn| {
                    conn.set_read_deadline(later(Duration::ZERO));
                    conn.set_read_deadline(None);
                    Ok(())
                })
                .request(|conn| {
                    // Due at once, if it were the last word.
                    conn.set_read_deadline(later(Duration::ZERO));
                    conn.set_read_deadline(later(LIMIT * 10));
                    lines(conn)
                }),
        );
        let mut peer = server.connect();
        outlast(Duration::from_millis(50));
        peer.write_all(b"a part").unwrap();
        outlast(Duration::from_millis(50));
        expect_answer(&mut peer, b" and the rest\n");
        drop(peer);
        server.stop();
    });
}

#[test]
fn an_alarm_that_is_set_goes_by_the_last_word() {
    every(|case| {
        const SOON: Duration = Duration::from_millis(500);
        let server = case.serve(
            Script::new()
                .connect(|conn| {
                    conn.set_read_deadline(later(SOON));
                    Ok(())
                })
                .request(|conn| {
                    conn.set_read_deadline(None);
                    lines(conn)
                }),
        );
        let begun = Instant::now();
        let mut peer = server.connect();
        let in_time = peer.write_all(b"a part").is_ok();
        outlast(SOON * 2);
        let answered = peer
            .write_all(b"\n")
            .and_then(|()| peer.read_exact(&mut [0]));
        if let Err(error) = answered {
            // The handler did not run for so long.
            assert!(!in_time || begun.elapsed() >= SOON * 3, "{error}");
        }
        drop(peer);
        server.stop();
    });
}

/// A server that answers frames, each of which may take [`TIME`], in every way a handler can read them.
fn framers(case: Case) -> Vec<Server> {
    let builder = || case.builder().message_timeout(TIME);
    let frames = || LengthField::new(4).max_frame(1 << 20);
    vec![
        case.serve_with(
            builder(),
            framed(frames(), |conn, _| conn.write_slice(&frame(b"!"))),
        ),
        case.serve_with(
            builder(),
            handler_fn(|conn| {
                while let Some(head) = conn.try_peek(4)? {
                    let n = u32::from_be_bytes(head.try_into().unwrap()) as usize;
                    if conn.try_next(4 + n)?.is_none() {
                        break;
                    }
                    conn.write_slice(&frame(b"!"))?;
                }
                conn.flush()
            }),
        ),
    ]
}

#[test]
fn every_message_has_its_own_time() {
    every(|case| {
        for server in framers(case) {
            let mut peer = server.connect();
            let begun = Instant::now();
            let mut late = false;
            // All of them take longer than one may.
            while begun.elapsed() < TIME * 2 && !late {
                let message = Instant::now();
                let (first, second) = (frame(b"hello"), frame(b"world"));
                let answers = peer
                    .write_all(&first[..6])
                    .and_then(|()| {
                        let_pass(TIME / 10);
                        // The begin of the next one comes with the end of this one.
                        peer.write_all(&[&first[6..], &second[..2]].concat())
                    })
                    .and_then(|()| read_frame(&mut peer))
                    .and_then(|_| peer.write_all(&second[2..]))
                    .and_then(|()| read_frame(&mut peer));
                if let Err(error) = answers {
                    assert!(
                        message.elapsed() >= TIME,
                        "{error} in {:?}",
                        message.elapsed()
                    );
                    late = true;
                }
            }
            if !late {
                // Between two messages it takes as long as it likes.
                outlast(TIME);
                assert_eq!(peer.call(b"again").unwrap(), b"!");
            }
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn a_message_that_trickles_in_ends_its_connection() {
    every(|case| {
        for server in framers(case) {
            let mut peer = server.connect();
            assert_eq!(peer.call(b"whole").unwrap(), b"!");
            let begun = Instant::now();
            peer.write_all(&100_000_u32.to_be_bytes()).unwrap();
            let drip = Drip::begin(&peer);
            peer.expect_gone();
            assert!(begun.elapsed() >= TIME, "{:?} is early", begun.elapsed());
            drop(drip);
            server.stop();
        }
    });
}

#[test]
fn a_part_holds_a_shutdown_no_longer_than_its_time() {
    every(|case| {
        let ends = Log::new();
        let builder = case.builder().read_timeout(None).message_timeout(TIME);
        let server = case.serve_with(builder, noting(&ends, |_| Ok(()), lines));
        let mut peer = server.connect();
        expect_answer(&mut peer, b"whole\n");
        let drip = Drip::begin(&peer);
        server.event_loop.shutdown(LIMIT).unwrap();
        let (_, reason) = ends.wait_len(1)[0];
        // The shutdown may come before the first byte.
        assert!(
            matches!(reason, CloseReason::ReadTimeout | CloseReason::Shutdown),
            "{reason}"
        );
        drop((drip, peer));
    });
}

/// Asks for a line, and says how the connection ended.
struct Asks {
    ends: Log<CloseReason>,
}

impl Handler for Asks {
    type State = ();

    fn on_connect(&self, conn: &mut Connection) -> io::Result<()> {
        conn.write_str("?")?;
        conn.flush()
    }

    fn on_request(&self, conn: &mut Connection, (): &mut ()) -> io::Result<()> {
        lines(conn)
    }

    fn on_disconnect(&self, (): (), reason: CloseReason) {
        self.ends.push(reason);
    }
}

#[test]
fn a_dialled_connection_with_a_handler_has_it_too() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(crate::support::giving(&handles));
        let ends = Log::new();
        let asks = Asks { ends: ends.clone() };
        let dialer = Dialer::new()
            .dispatch(case.kind.dispatch())
            .message_timeout(TIME);
        let conn: ConnectionHandle = dialer.dial_with(server.address.clone(), asks).unwrap();
        let other = handles.wait_len(1).remove(0);
        other.send(b"whole\n".to_vec()).unwrap();
        let begun = Instant::now();
        while conn.is_active() && begun.elapsed() < LIMIT {
            let _ = other.send(b"x".to_vec());
            thread::sleep(Duration::from_millis(3));
        }
        assert!(begun.elapsed() >= TIME);
        assert_eq!(ends.wait_len(1)[0], CloseReason::ReadTimeout);
        let ended = conn.done().wait().unwrap_err();
        assert_eq!(
            Error::from_io(&ended),
            Some(Error::Closed(CloseReason::ReadTimeout))
        );
        server.stop();
    });
}

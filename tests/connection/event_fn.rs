//! `event_fn`: which events come, in which order, and what errors and panics in it do.

use crate::support::{Case, Kind, LIMIT, Log, Server, Transport, bounded, eventually, every};
use netpoll::{
    CloseReason, Connection, ConnectionEvent, ConnectionState, Dialer, Error, Handler, event_fn,
    event_fn_with, handler_fn,
};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

const ADAPTIVE: Case = Case::new(Transport::Tcp, Kind::Adaptive);

/// Echoes what comes and notes every event with the state it finds.
fn noting(log: &Log<(ConnectionEvent, ConnectionState)>) -> impl Handler {
    let log = log.clone();
    event_fn(move |conn, event| {
        log.push((event, conn.state()));
        match event {
            ConnectionEvent::Readable => echo(conn),
            _ => Ok(()),
        }
    })
}

fn echo(conn: &mut Connection) -> io::Result<()> {
    let all = conn.slice(conn.available())?;
    conn.append(all)?;
    conn.flush()
}

/// A server that notes its events, of which one client got an echo and left.
fn one_call(case: Case, log: &Log<(ConnectionEvent, ConnectionState)>) -> Server {
    let server = case.serve(noting(log));
    let mut peer = server.connect();
    peer.write_all(b"one").unwrap();
    let mut reply = [0; 3];
    peer.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"one");
    server
}

fn is_closed(events: &[(ConnectionEvent, ConnectionState)]) -> bool {
    matches!(events.last(), Some((ConnectionEvent::Closed(_), _)))
}

#[test]
fn events_come_in_order_with_the_state_that_belongs_to_them() {
    every(|case| {
        let log = Log::new();
        let server = one_call(case, &log);
        let mut events = log.wait("the end", is_closed);
        // An answer that had to wait for room is reported as well.
        events.retain(|(event, _)| *event != ConnectionEvent::WriteComplete);
        assert_eq!(
            events,
            [
                (ConnectionEvent::Connecting, ConnectionState::Connecting),
                (ConnectionEvent::Connected, ConnectionState::Connecting),
                (ConnectionEvent::Established, ConnectionState::Connected),
                (ConnectionEvent::Readable, ConnectionState::Connected),
                (
                    ConnectionEvent::Closed(CloseReason::Peer),
                    ConnectionState::Disconnecting
                ),
            ]
        );
        server.stop();
        assert!(is_closed(&log.all()), "nothing comes after Closed");
    });
}

#[test]
fn an_answer_that_fits_at_once_is_no_completion() {
    every(|case| {
        let log = Log::new();
        let server = one_call(case, &log);
        let events = log.wait("the end", is_closed);
        let completions = events
            .iter()
            .filter(|(e, _)| *e == ConnectionEvent::WriteComplete);
        assert_eq!(completions.count(), 0);
        server.stop();
    });
}

#[test]
fn a_connection_that_nobody_writes_to_is_established_all_the_same() {
    every(|case| {
        let log = Log::new();
        let server = case.serve(noting(&log));
        let _peer = server.connect();
        log.wait_for(&(ConnectionEvent::Established, ConnectionState::Connected));
        server.stop();
        let events = log.all();
        assert_eq!(
            events[2..],
            [
                (ConnectionEvent::Established, ConnectionState::Connected),
                (
                    ConnectionEvent::Closed(CloseReason::Shutdown),
                    ConnectionState::Disconnecting
                ),
            ]
        );
    });
}

#[test]
fn a_dialled_connection_has_the_same_events() {
    bounded("a dialled connection", || {
        let server = ADAPTIVE.serve(handler_fn(echo));
        let log = Log::new();
        let noted = log.clone();
        let client = event_fn(move |conn, event| {
            noted.push(event);
            match event {
                ConnectionEvent::Established => {
                    conn.write_str("hi")?;
                    conn.flush()
                }
                ConnectionEvent::Readable if conn.available() >= 2 => {
                    assert_eq!(conn.next(2)?, b"hi");
                    conn.handle().close();
                    Ok(())
                }
                _ => Ok(()),
            }
        });
        Dialer::new()
            .connect_timeout(LIMIT)
            .dial_with(server.address.clone(), client)
            .unwrap();
        let ended =
            |events: &[ConnectionEvent]| matches!(events.last(), Some(ConnectionEvent::Closed(_)));
        let mut events = log.wait("the end", ended);
        events.dedup();
        assert_eq!(
            events,
            [
                ConnectionEvent::Connecting,
                ConnectionEvent::Connected,
                ConnectionEvent::Established,
                ConnectionEvent::Readable,
                ConnectionEvent::Closed(CloseReason::Local),
            ]
        );
        server.stop();
    });
}

#[test]
fn a_refused_connection_has_no_further_event() {
    every(|case| {
        let log = Log::new();
        let noted = log.clone();
        let server = case.serve(event_fn(move |_, event| {
            noted.push(event);
            Err(io::Error::other("no"))
        }));
        let mut peer = server.connect();
        peer.expect_gone();
        eventually("it is counted", || server.event_loop.stats().refused == 1);
        server.stop();
        assert_eq!(log.all(), [ConnectionEvent::Connecting]);
    });
}

#[test]
fn after_a_failed_connected_there_is_no_further_event() {
    every(|case| {
        let log = Log::new();
        let noted = log.clone();
        let server = case.serve(event_fn(move |_, event| {
            noted.push(event);
            match event {
                ConnectionEvent::Connected => Err(io::Error::other("no handshake")),
                _ => Ok(()),
            }
        }));
        let mut peer = server.connect();
        peer.expect_gone();
        server.stop();
        assert_eq!(
            log.all(),
            [ConnectionEvent::Connecting, ConnectionEvent::Connected]
        );
    });
}

/// What comes from `at` on if the closure fails there, for the first connection only.
fn end_after(
    case: Case,
    at: ConnectionEvent,
    fail: fn() -> io::Result<()>,
) -> Vec<ConnectionEvent> {
    let log = Log::new();
    let (noted, armed) = (log.clone(), AtomicBool::new(true));
    let server = case.serve(event_fn(move |conn, event| {
        noted.push(event);
        if event == at && armed.swap(false, Ordering::SeqCst) {
            return fail();
        }
        if event == ConnectionEvent::Readable {
            echo(conn)
        } else {
            Ok(())
        }
    }));
    let mut peer = server.connect();
    // It may be gone already.
    let _ = peer.write_all(b"x");
    peer.expect_gone();
    let ended = |all: &[ConnectionEvent]| matches!(all.last(), Some(ConnectionEvent::Closed(_)));
    let events = log.wait("the end", ended);

    let mut other = server.connect();
    other.write_all(b"y").unwrap();
    other.read_exact(&mut [0]).expect("other connections go on");
    drop(other);
    server.stop();
    let start = events
        .iter()
        .position(|event| *event == at)
        .expect("the failure");
    events[start..].to_vec()
}

#[test]
fn an_error_is_told_before_the_end_and_stays_with_its_connection() {
    every(|case| {
        for at in [ConnectionEvent::Established, ConnectionEvent::Readable] {
            let fail = || Err(io::Error::new(io::ErrorKind::AddrInUse, "mine"));
            assert_eq!(
                end_after(case, at, fail),
                [
                    at,
                    ConnectionEvent::Error(io::ErrorKind::AddrInUse),
                    ConnectionEvent::Closed(CloseReason::HandlerError)
                ]
            );
        }
    });
}

#[test]
fn a_panic_is_told_before_the_end_and_stays_with_its_connection() {
    every(|case| {
        for at in [ConnectionEvent::Established, ConnectionEvent::Readable] {
            assert_eq!(
                end_after(case, at, || panic!("a panic of this test")),
                [
                    at,
                    ConnectionEvent::Error(io::ErrorKind::Other),
                    ConnectionEvent::Closed(CloseReason::HandlerPanic)
                ]
            );
        }
    });
}

#[test]
fn a_panic_at_the_error_does_not_swallow_the_end() {
    every(|case| {
        let log = Log::new();
        let noted = log.clone();
        let server = case.serve(event_fn(move |_, event| {
            noted.push(event);
            match event {
                ConnectionEvent::Readable => Err(io::Error::other("first")),
                ConnectionEvent::Error(_) => panic!("a panic of this test"),
                ConnectionEvent::Closed(_) => Err(io::Error::other("last")),
                _ => Ok(()),
            }
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        peer.expect_gone();
        server.stop();
        assert_eq!(
            log.all()[3..],
            [
                ConnectionEvent::Readable,
                ConnectionEvent::Error(io::ErrorKind::Other),
                ConnectionEvent::Closed(CloseReason::HandlerError)
            ]
        );
    });
}

#[test]
fn a_reset_is_an_error_with_its_kind() {
    bounded("a reset", || {
        let log = Log::new();
        let server = ADAPTIVE.serve(noting(&log));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        peer.read_exact(&mut [0]).unwrap();
        peer.reset();
        let events = log.wait("the end", is_closed);
        let reset = io::ErrorKind::ConnectionReset;
        let last: Vec<_> = events[events.len() - 2..]
            .iter()
            .map(|(event, _)| *event)
            .collect();
        assert_eq!(
            last,
            [
                ConnectionEvent::Error(reset),
                ConnectionEvent::Closed(CloseReason::Error(reset))
            ]
        );
        server.stop();
    });
}

#[test]
fn input_that_ends_inside_a_message_is_an_error() {
    bounded("a cut message", || {
        let log = Log::new();
        let noted = log.clone();
        let server = ADAPTIVE.serve(event_fn(move |conn, event| {
            if event == ConnectionEvent::Readable {
                conn.try_next(10)?;
            } else {
                noted.push(event);
            }
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"short").unwrap();
        drop(peer);
        let events = log.wait_for(&ConnectionEvent::Closed(CloseReason::Peer));
        assert_eq!(
            events[3],
            ConnectionEvent::Error(io::ErrorKind::UnexpectedEof)
        );
        server.stop();
    });
}

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

#[test]
fn completed_writes_come_in_turn() {
    every(|case| {
        let (log, inside) = (Log::new(), AtomicUsize::new(0));
        let noted = log.clone();
        let server = case.serve(event_fn(move |conn, event| {
            assert_eq!(
                inside.fetch_add(1, Ordering::SeqCst),
                0,
                "events never overlap"
            );
            match event {
                ConnectionEvent::Readable => {
                    conn.skip(conn.available())?;
                    conn.write_bytes(vec![7; MUCH].into())?;
                    assert!(
                        !conn.try_flush()?,
                        "{MUCH} bytes do not fit into the sockets"
                    );
                }
                ConnectionEvent::WriteComplete if conn.stats().messages_out == 1 => {
                    assert_eq!(conn.stats().queued, 0);
                    conn.write_str("done")?;
                    // Not all of it may fit: then this event comes again.
                    conn.try_flush()?;
                }
                _ => {}
            }
            noted.push(event);
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"go").unwrap();
        log.wait_for(&ConnectionEvent::Readable);
        let mut all = vec![0; MUCH + 4];
        peer.read_exact(&mut all).unwrap();
        assert_eq!(&all[MUCH..], b"done");
        drop(peer);
        let events = log.wait("the end", |all| {
            matches!(all.last(), Some(ConnectionEvent::Closed(_)))
        });
        assert_eq!(
            events[3..5],
            [ConnectionEvent::Readable, ConnectionEvent::WriteComplete]
        );
        server.stop();
    });
}

#[test]
fn a_send_through_a_handle_is_told_too() {
    bounded("a send through a handle", || {
        let log = Log::new();
        let noted = log.clone();
        let server = ADAPTIVE.serve(event_fn(move |conn, event| {
            if event == ConnectionEvent::Established {
                let handle = conn.handle();
                std::thread::spawn(move || handle.send_bytes("from elsewhere".into()).unwrap());
            }
            noted.push(event);
            Ok(())
        }));
        let mut peer = server.connect();
        let mut text = [0; 14];
        peer.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"from elsewhere");
        log.wait_for(&ConnectionEvent::WriteComplete);
        drop(peer);
        server.stop();
    });
}

/// Counts how many of it are alive.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(alive: &Arc<AtomicUsize>) -> Self {
        alive.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(alive))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn a_value_lives_as_long_as_its_connection() {
    every(|case| {
        let alive = Arc::new(AtomicUsize::new(0));
        let (log, made) = (Log::new(), Arc::clone(&alive));
        let noted = log.clone();
        let server = case.serve(event_fn_with(
            move || (Counted::new(&made), Vec::new()),
            move |conn, (counted, seen), event| {
                // Whether the answer fits at once is another test's affair.
                if event != ConnectionEvent::WriteComplete {
                    seen.push(event);
                }
                match event {
                    ConnectionEvent::Readable => echo(conn)?,
                    ConnectionEvent::Closed(_) => {
                        assert!(counted.0.load(Ordering::SeqCst) > 0);
                        noted.push(seen.clone());
                    }
                    _ => {}
                }
                Ok(())
            },
        ));
        let mut peers = [server.connect(), server.connect(), server.connect()];
        for peer in &mut peers {
            peer.write_all(b"x").unwrap();
            peer.read_exact(&mut [0]).unwrap();
        }
        assert_eq!(alive.load(Ordering::SeqCst), 3);
        drop(peers);
        for seen in log.wait_len(3) {
            assert_eq!(
                seen,
                [
                    ConnectionEvent::Connecting,
                    ConnectionEvent::Connected,
                    ConnectionEvent::Established,
                    ConnectionEvent::Readable,
                    ConnectionEvent::Closed(CloseReason::Peer),
                ]
            );
        }
        server.stop();
        assert_eq!(alive.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_panic_while_making_the_value_refuses_the_connection() {
    bounded("a panic in make", || {
        let count = AtomicUsize::new(0);
        let server = ADAPTIVE.serve(event_fn_with(
            move || {
                assert!(
                    count.fetch_add(1, Ordering::SeqCst) > 0,
                    "the first one fails"
                )
            },
            |conn, (), event| {
                if event == ConnectionEvent::Readable {
                    echo(conn)
                } else {
                    Ok(())
                }
            },
        ));
        server.connect().expect_gone();
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        peer.read_exact(&mut [0]).unwrap();
        drop(peer);
        server.stop();
    });
}

/// Passes its callbacks on to another handler.
struct Wrapped<H>(H);

impl<H: Handler> Handler for Wrapped<H> {
    type State = H::State;

    fn on_connect(&self, conn: &mut Connection) -> io::Result<H::State> {
        self.0.on_connect(conn)
    }

    fn on_request(&self, conn: &mut Connection, state: &mut H::State) -> io::Result<()> {
        self.0.on_request(conn, state)
    }
}

#[test]
fn inside_another_handler_it_fails_loudly() {
    bounded("a wrapped event_fn", || {
        let log = Log::new();
        let noted = log.clone();
        struct Check<H>(H, Log<Option<Error>>);
        impl<H: Handler> Handler for Check<H> {
            type State = ();

            fn on_connect(&self, conn: &mut Connection) -> io::Result<()> {
                let error = self.0.on_connect(conn).err().expect("it is not supported");
                self.1.push(Error::from_io(&error));
                Ok(())
            }

            fn on_request(&self, _: &mut Connection, (): &mut ()) -> io::Result<()> {
                Ok(())
            }
        }
        let server = ADAPTIVE.serve(Check(Wrapped(event_fn(|_, _| Ok(()))), noted));
        let _peer = server.connect();
        assert!(matches!(log.wait_len(1)[0], Some(Error::Unsupported(_))));
        server.stop();
    });
}

#[test]
fn it_can_take_the_place_of_another_handler() {
    bounded("set_handler", || {
        let log = Log::new();
        let noted = log.clone();
        let server: Server = ADAPTIVE.serve(handler_fn(move |conn| {
            let noted = noted.clone();
            conn.skip(1)?;
            conn.set_handler(event_fn(move |conn, event| {
                noted.push(event);
                if event == ConnectionEvent::Readable {
                    echo(conn)
                } else {
                    Ok(())
                }
            }))
        }));
        let mut peer = server.connect();
        peer.write_all(b"-echo").unwrap();
        let mut text = [0; 4];
        peer.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"echo");
        drop(peer);
        let events = log.wait_for(&ConnectionEvent::Closed(CloseReason::Peer));
        assert_eq!(
            events[..3],
            [
                ConnectionEvent::Connected,
                ConnectionEvent::Established,
                ConnectionEvent::Readable
            ]
        );
        server.stop();
    });
}

//! What callbacks of one connection leave to each other, and what the last one knows.

use crate::support::{Case, Kind, LIMIT, Log, Script, Transport, bounded, eventually, every};
use netpoll::{
    Address, CloseReason, Connection, ConnectionHandle, Dialer, Handler, Pool, handler_fn,
};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

/// What a connection's `on_prepare` found out.
#[derive(Debug, PartialEq)]
struct Policy {
    id: u64,
    rights: Vec<&'static str>,
}

impl Policy {
    fn of(conn: &Connection) -> Self {
        Self {
            id: conn.id(),
            rights: vec!["read", "write"],
        }
    }
}

/// Answers with what it was left.
struct Prepared;

impl Handler for Prepared {
    type State = Policy;

    fn on_prepare(&self, conn: &mut Connection) -> io::Result<()> {
        conn.set_value("replaced");
        let policy = Policy::of(conn);
        conn.set_value(policy);
        Ok(())
    }

    fn on_connect(&self, conn: &mut Connection) -> io::Result<Policy> {
        assert_eq!(conn.take_value::<&str>(), None, "of another type");
        let policy = conn.take_value().expect("on_prepare left it");
        assert_eq!(conn.take_value::<Policy>(), None, "taken");
        Ok(policy)
    }

    fn on_request(&self, conn: &mut Connection, policy: &mut Policy) -> io::Result<()> {
        assert_eq!(*policy, Policy::of(conn));
        conn.skip(conn.available())?;
        conn.write_str(policy.rights[1])?;
        conn.flush()
    }
}

#[track_caller]
fn expect_write(peer: &mut (impl Read + Write)) {
    peer.write_all(b"?").unwrap();
    let mut answer = [0; 5];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"write");
}

#[test]
fn on_prepare_leaves_a_value_to_on_connect() {
    every(|case| {
        let server = case.serve(Prepared);
        let mut peers: Vec<_> = (0..5).map(|_| server.connect()).collect();
        for peer in &mut peers {
            expect_write(peer);
        }
        drop(peers);
        assert_eq!(server.event_loop.stats().panics, 0);
        server.stop();
    });
}

#[test]
fn a_dialled_handler_has_its_value_too() {
    every(|case| {
        let got = Log::new();
        let log = got.clone();
        let server = case.serve(handler_fn(move |conn| {
            log.push(conn.read_vec(conn.available())?);
            Ok(())
        }));
        let asking = |f: fn(&mut Connection) -> io::Result<()>| {
            Script::new().prepare(f).connect(|conn| {
                let what: String = conn.take_value().expect("it was left");
                conn.write_str(&what)?;
                conn.flush()
            })
        };
        let dialer = Dialer::new().dispatch(case.kind.dispatch());
        let set = asking(|conn| {
            conn.set_value("of a dial".to_owned());
            Ok(())
        });
        let first = dialer.dial_with(server.address.clone(), set).unwrap();
        assert_eq!(got.wait_len(1)[0], b"of a dial");
        // An owner leaves one to the handler it gives its connection to.
        let mut conn = server.dial();
        conn.set_value("of an owner".to_owned());
        let second = conn.attach(asking(|_| Ok(()))).unwrap();
        assert_eq!(got.wait_len(2)[1], b"of an owner");
        first.close();
        second.close();
        server.stop();
    });
}

#[test]
fn a_value_goes_with_its_connection() {
    every(|case| {
        let taken = Log::new();
        let (log, next) = (taken.clone(), taken.clone());
        let server = case.serve(
            Script::new()
                .connect(|conn| {
                    conn.set_value(7_u32);
                    Ok(())
                })
                .request(move |conn| {
                    match conn.read_u8()? {
                        b'h' => {
                            let mut taken = conn.hijack()?;
                            assert_eq!(conn.take_value::<u32>(), None, "it has gone with it");
                            log.push(taken.take_value::<u32>());
                        }
                        _ => {
                            let log = next.clone();
                            conn.set_handler(Script::new().connect(move |conn| {
                                log.push(conn.take_value::<u32>());
                                Ok(())
                            }))?;
                        }
                    }
                    Ok(())
                }),
        );
        let mut peer = server.connect();
        peer.write_all(b"h").unwrap();
        peer.expect_end();
        let mut peer = server.connect();
        peer.write_all(b"s").unwrap();
        assert_eq!(taken.wait_len(2), [Some(7), Some(7)]);
        drop(peer);
        server.stop();
    });
}

/// Counts its drops, and panics in them.
struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
        std::panic::resume_unwind(Box::new("the drop of a kept value"));
    }
}

#[test]
fn a_value_that_nobody_takes_is_dropped_at_the_end() {
    every(|case| {
        let drops = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&drops);
        let connections = AtomicUsize::new(0);
        let server = case.serve(Script::new().prepare(move |conn| {
            conn.set_value(Dropped(Arc::clone(&count)));
            // Every second one is refused.
            match connections.fetch_add(1, SeqCst) % 2 {
                0 => Ok(()),
                _ => Err(io::Error::other("refused")),
            }
        }));
        for i in 1..=6 {
            let peer = server.connect();
            peer.shutdown_write();
            eventually("it is dropped", || drops.load(SeqCst) == i);
        }
        eventually("they are counted", || server.event_loop.stats().panics == 6);
        server.stop();
    });
}

#[test]
fn a_pooled_connection_keeps_no_value() {
    bounded("pool", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(crate::support::echo());
        let pool = Pool::new(Dialer::new());
        let mut conn = pool.get(&server.address).unwrap();
        let first = conn.id();
        conn.set_value(1_u8);
        drop(conn);
        let mut conn = pool.get(&server.address).unwrap();
        assert_eq!((conn.id(), conn.take_value::<u8>()), (first, None));
        drop((conn, pool));
        server.stop();
    });
}

/// Says who came and who left.
struct Audit {
    came: Log<(u64, Address)>,
    left: Log<(u64, Address, u64, CloseReason)>,
    state: Log<u64>,
}

impl Handler for Audit {
    type State = u64;

    fn on_connect(&self, conn: &mut Connection) -> io::Result<u64> {
        self.came.push((conn.id(), conn.peer_addr().clone()));
        Ok(conn.id())
    }

    fn on_request(&self, conn: &mut Connection, _: &mut u64) -> io::Result<()> {
        match conn.read_u8()? {
            b'e' => Err(io::Error::other("an error")),
            b'p' => std::panic::resume_unwind(Box::new("a panic")),
            b'h' => conn.hijack().map(drop),
            b'c' => {
                conn.handle().close();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn on_disconnect_from(&self, conn: &ConnectionHandle, state: u64, reason: CloseReason) {
        assert!(conn.send(vec![1]).is_err(), "nothing is sent any more");
        let received = conn.stats().bytes_in;
        let peer = conn.peer_addr().clone();
        self.state.push(state);
        self.left.push((conn.id(), peer, received, reason));
    }

    fn on_disconnect(&self, _: u64, _: CloseReason) {
        unreachable!("the other one is implemented");
    }
}

#[test]
fn on_disconnect_from_knows_whose_end_it_is() {
    every(|case| {
        let (came, left, state) = (Log::new(), Log::new(), Log::new());
        let server = case.serve(Audit {
            came: came.clone(),
            left: left.clone(),
            state: state.clone(),
        });
        let ends = [
            ("x", CloseReason::Peer),
            ("e", CloseReason::HandlerError),
            ("p", CloseReason::HandlerPanic),
            ("h", CloseReason::Local),
            ("c", CloseReason::Local),
        ];
        for (i, (what, reason)) in ends.into_iter().enumerate() {
            let mut peer = server.connect();
            let (id, address) = came.wait_len(i + 1).remove(i);
            peer.write_all(what.as_bytes()).unwrap();
            if reason == CloseReason::Peer {
                peer.shutdown_write();
            }
            let end = left.wait_len(i + 1).remove(i);
            assert_eq!(end, (id, address.clone(), 1, reason), "{what}");
            assert_eq!(state.all()[i], id);
            if let crate::support::Peer::Tcp(stream) = &peer {
                let local = stream.local_addr().unwrap();
                assert_eq!(address.as_socket_addr(), Some(local));
            }
        }
        server.event_loop.shutdown(LIMIT).unwrap();
        assert_eq!(left.len(), ends.len(), "once each");
    });
}

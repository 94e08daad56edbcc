//! How soon waits end. The bounds are at least three times what an idle machine shows.

use crate::support::{
    Case, Kind, LIMIT, Log, Mute, Peer, asleep_in, bounded, echo, eventually, frame, giving,
    on_tcp, pair, soon,
};
use netpoll::{ConnectionHandle, Dialer, Error, OnFull, Pool, handler_fn};
use std::{
    io::{Read, Write},
    thread,
    time::{Duration, Instant},
};

const KINDS: [Kind; 4] = [Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom];
const BLOCKING: [Kind; 3] = [Kind::Adaptive, Kind::Workers, Kind::Custom];

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

#[test]
fn a_close_ends_a_handlers_wait_soon() {
    on_tcp(&BLOCKING, |case| {
        let begun = Log::new();
        let ended = Log::new();
        let (start, end) = (begun.clone(), ended.clone());
        let server = case.serve(handler_fn(move |conn| {
            start.push(conn.handle());
            let result = conn.fill(1000);
            end.push(Instant::now());
            result
        }));
        soon(
            "close of a reading handler",
            21,
            Duration::from_millis(5),
            || {
                let mut peer = server.connect();
                peer.write_all(b"x").unwrap();
                let handle: ConnectionHandle = begun.wait_len(1).remove(0);
                begun.take();
                let before = Instant::now();
                handle.close();
                let at = ended.wait_len(1).remove(0);
                ended.take();
                at - before
            },
        );
        server.stop();
    });
}

#[test]
fn a_close_ends_an_owners_wait_soon() {
    bounded("owner", || {
        for abort in [false, true] {
            soon(
                "close of a reading owner",
                21,
                Duration::from_millis(5),
                || {
                    let (mut conn, peer) = pair();
                    let handle = conn.handle();
                    let waiting = asleep_in(move || {
                        assert!(conn.fill(1).is_err());
                        Instant::now()
                    });
                    let before = Instant::now();
                    if abort {
                        handle.abort();
                    } else {
                        handle.close();
                    }
                    let at = waiting.join().unwrap();
                    drop(peer);
                    at - before
                },
            );
        }
    });
}

#[test]
fn a_close_ends_waiting_senders_and_flushers_soon() {
    on_tcp(&KINDS, |case| {
        let handles = Log::new();
        let builder = case.builder().output_limit(10_000, OnFull::Block);
        let server = case.serve_with(builder, giving(&handles));
        soon(
            "abort with 10 waiting",
            11,
            Duration::from_millis(100),
            || {
                let (peer, handle) = server.connect_given(&handles);
                handle.send_bytes(vec![0; MUCH].into()).unwrap();
                let waiting: Vec<_> = (0..10)
                    .map(|i| {
                        let handle = handle.clone();
                        asleep_in(move || {
                            let result = if i % 2 == 0 {
                                handle.send_bytes(vec![1; 100].into()).map(drop)
                            } else {
                                handle.flush()
                            };
                            assert!(result.is_err());
                            Instant::now()
                        })
                    })
                    .collect();
                let before = Instant::now();
                handle.abort();
                let last = waiting
                    .into_iter()
                    .map(|w| w.join().unwrap())
                    .max()
                    .unwrap();
                drop(peer);
                last - before
            },
        );
        server.stop();
    });
}

#[test]
fn a_forced_shutdown_ends_waits_soon() {
    on_tcp(&BLOCKING, |case| {
        soon("forced shutdown", 7, Duration::from_millis(350), || {
            let begun = Log::new();
            let start = begun.clone();
            let server = case.serve(handler_fn(move |conn| {
                start.push(());
                conn.fill(1000)
            }));
            let mut peers: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
            for peer in &mut peers {
                peer.write_all(b"x").unwrap();
            }
            begun.wait_len(3);
            let before = Instant::now();
            assert_eq!(
                server.event_loop.shutdown_forced(Duration::ZERO).unwrap(),
                3
            );
            before.elapsed()
        });
    });
}

#[test]
fn an_idle_loop_shuts_down_soon() {
    on_tcp(&KINDS, |case| {
        soon("shutdown", 9, Duration::from_millis(100), || {
            let server = case.serve(echo());
            let mut peers: Vec<Peer> = (0..10).map(|_| server.connect()).collect();
            for peer in &mut peers {
                peer.ping(b"x");
            }
            let event_loop = server.event_loop.clone();
            let before = Instant::now();
            let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
            for peer in &mut peers {
                peer.expect_end();
            }
            drop(peers);
            stopping.join().unwrap().unwrap();
            before.elapsed()
        });
    });
}

#[test]
fn timeouts_are_not_late() {
    bounded("own", || {
        let (mut conn, peer) = pair();
        let timeout = Duration::from_millis(30);
        conn.set_read_timeout(Some(timeout));
        soon(
            "read timeout of an owner",
            15,
            timeout + Duration::from_millis(30),
            || {
                let before = Instant::now();
                assert!(conn.fill(1).is_err());
                assert!(before.elapsed() >= timeout);
                before.elapsed()
            },
        );
        drop(peer);
    });
    on_tcp(&BLOCKING, |case| {
        let timeout = Duration::from_millis(30);
        let waits = Log::new();
        let log = waits.clone();
        let server = case.serve_with(
            case.builder().read_timeout(timeout),
            handler_fn(move |conn| {
                let before = Instant::now();
                let error = conn.fill(100).unwrap_err();
                assert_eq!(Error::from_io(&error), Some(Error::ReadTimeout));
                log.push(before.elapsed());
                conn.skip(conn.available())
            }),
        );
        let mut peer = server.connect();
        soon(
            "read timeout of a handler",
            15,
            timeout + Duration::from_millis(30),
            || {
                peer.write_all(b"x").unwrap();
                let waited = waits.wait_len(1).remove(0);
                waits.take();
                assert!(waited >= timeout);
                waited
            },
        );
        drop(peer);
        server.stop();
    });
    on_tcp(&KINDS, |case| {
        let timeout = Duration::from_millis(50);
        let server = case.serve_with(case.builder().idle_timeout(timeout), echo());
        // The idle clock begins anew with the end of the accept, a little after our start.
        soon(
            "idle timeout",
            9,
            timeout + Duration::from_millis(60),
            || {
                let before = Instant::now();
                server.connect().expect_end();
                assert!(before.elapsed() >= timeout);
                before.elapsed()
            },
        );
        server.stop();
    });
}

#[test]
fn a_dial_timeout_is_not_late() {
    bounded("dial", || {
        let mute = Mute::new();
        let timeout = Duration::from_millis(40);
        let dialer = Dialer::new().connect_timeout(timeout);
        soon(
            "dial timeout",
            9,
            timeout + Duration::from_millis(40),
            || {
                let before = Instant::now();
                let error = dialer.dial_connection(mute.address).unwrap_err();
                assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
                before.elapsed()
            },
        );
    });
}

#[test]
fn a_pool_hands_a_returned_connection_on_soon() {
    bounded("pool", || {
        let server = Case::new(crate::support::Transport::Tcp, Kind::Adaptive).serve(echo());
        let pool = Pool::builder(Dialer::new().read_timeout(LIMIT))
            .max_total(1)
            .wait(LIMIT)
            .build()
            .unwrap();
        soon("a place in the pool", 21, Duration::from_millis(5), || {
            let held = pool.get(&server.address).unwrap();
            let (other, address) = (pool.clone(), server.address.clone());
            let waiting = asleep_in(move || {
                let conn = other.get(&address).unwrap();
                let at = Instant::now();
                drop(conn);
                at
            });
            let before = Instant::now();
            drop(held);
            waiting.join().unwrap().saturating_duration_since(before)
        });
        pool.close();
    });
}

#[test]
fn others_are_served_soon_while_a_handler_computes() {
    /// How long it computes.
    const BUSY: Duration = Duration::from_millis(300);
    // A handler that neither waits nor returns: the poller goes to another thread.
    bounded("compute", || {
        let begun = Log::new();
        let begins = begun.clone();
        let case = Case::new(crate::support::Transport::Tcp, Kind::Adaptive);
        let server = case.serve(handler_fn(move |conn| {
            while let Some(mut request) = crate::support::decode(conn)? {
                if request.peek(5)?[4] == b'b' {
                    begins.push(());
                    let start = Instant::now();
                    while start.elapsed() < BUSY {
                        std::hint::spin_loop();
                    }
                }
                conn.append(request)?;
                conn.flush()?;
            }
            Ok(())
        }));
        let mut busy = server.connect();
        let mut other = server.connect();
        busy.ping(b".");
        other.ping(b".");
        soon("a ping beside a busy handler", 7, BUSY / 2, || {
            begun.take();
            busy.write_all(&frame(b"busy")).unwrap();
            begun.wait_len(1);
            let before = Instant::now();
            other.ping(b"fine");
            let waited = before.elapsed();
            assert_eq!(crate::support::read_frame(&mut busy).unwrap(), b"busy");
            waited
        });
        drop((busy, other));
        server.stop();
    });
}

#[test]
fn accepting_goes_on_soon_after_a_shortage() {
    crate::support::in_child("accepting_goes_on_soon_after_a_shortage", || {
        let server = Case::new(crate::support::Transport::Tcp, Kind::Adaptive).serve(echo());
        server.connect().ping(b"x");
        eventually("quiet", || server.event_loop.stats().active == 0);
        let before = crate::support::limit_descriptors(crate::support::descriptors() as u64 + 20);
        soon("after a shortage", 5, Duration::from_millis(350), || {
            let mut hoarded = Vec::new();
            while let Ok(file) = std::fs::File::open("/dev/null") {
                hoarded.push(file);
            }
            // One for the client.
            hoarded.pop();
            let seen: u64 = server
                .event_loop
                .stats()
                .accept_errors
                .iter()
                .map(|e| e.1)
                .sum();
            let mut client = server.connect();
            client.write_all(&frame(b"x")).unwrap();
            let errors = || -> u64 {
                server
                    .event_loop
                    .stats()
                    .accept_errors
                    .iter()
                    .map(|e| e.1)
                    .sum()
            };
            eventually("the shortage", || errors() > seen);
            let free = Instant::now();
            drop(hoarded);
            let mut reply = [0; 5];
            client.read_exact(&mut reply).unwrap();
            let waited = free.elapsed();
            drop(client);
            eventually("quiet", || server.event_loop.stats().active == 0);
            waited
        });
        crate::support::limit_descriptors(before);
    });
}

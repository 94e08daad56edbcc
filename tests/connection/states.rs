//! The state of a connection as others see it: four of them, and never backwards.

use crate::support::{
    Kind, LIMIT, Log, Mute, Script, bounded, cpu_time, echo, eventually, every, in_child, let_pass,
    limit_descriptors, on_tcp, pair,
};
use netpoll::{
    CloseReason, ConnectionEvent, ConnectionHandle, ConnectionState, Dialer, Error, EventLoop,
    OnFull, event_fn,
};
use std::{
    io::Write,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

/// Looks at the state as often as it can until the connection is over, and returns what it saw.
fn watch(handle: ConnectionHandle) -> JoinHandle<Vec<ConnectionState>> {
    let mut seen = vec![handle.state()];
    thread::spawn(move || {
        loop {
            let state = handle.state();
            if state != seen[seen.len() - 1] {
                seen.push(state);
            }
            if state == ConnectionState::Disconnected {
                return seen;
            }
            thread::yield_now();
        }
    })
}

#[track_caller]
fn forwards(seen: &[ConnectionState]) {
    assert!(seen.windows(2).all(|two| two[0] < two[1]), "{seen:?}");
}

#[test]
fn a_state_never_goes_backwards() {
    every(|case| {
        for round in 0..8 {
            let watching = Log::new();
            let watches = watching.clone();
            let server = case.serve(
                Script::new()
                    .prepare(move |conn| {
                        assert_eq!(conn.state(), ConnectionState::Connecting);
                        watches.push(Arc::new(std::sync::Mutex::new(Some(watch(conn.handle())))));
                        Ok(())
                    })
                    .request(move |conn| {
                        assert_eq!(conn.read_u8()?, b'x');
                        match round % 4 {
                            0 => conn.handle().close(),
                            1 => conn.handle().abort(),
                            2 => return Err(std::io::Error::other("on purpose")),
                            _ => {}
                        }
                        Ok(())
                    }),
            );
            let mut peer = server.connect();
            peer.write_all(b"x").unwrap();
            let watching = watching.wait_len(1).remove(0);
            if round % 4 != 3 {
                peer.expect_gone();
            }
            drop(peer);
            let seen = watching.lock().unwrap().take().unwrap().join().unwrap();
            forwards(&seen);
            assert_eq!(seen[0], ConnectionState::Connecting);
            assert_eq!(seen[seen.len() - 1], ConnectionState::Disconnected);
            server.stop();
        }
    });
}

#[test]
fn each_state_at_its_place() {
    every(|case| {
        let seen = Log::new();
        let [prepare, connect, wrote, end] = [(); 4].map(|()| seen.clone());
        let handles = Log::new();
        let given = handles.clone();
        let server = case.serve_with(
            case.builder().output_limit(usize::MAX, OnFull::Error),
            Script::new()
                .prepare(move |conn| {
                    prepare.push(("prepare", conn.state()));
                    Ok(())
                })
                .connect(move |conn| {
                    connect.push(("connect", conn.state()));
                    given.push(conn.handle());
                    Ok(())
                })
                .wrote(move |conn| wrote.push(("wrote", conn.state()))),
        );
        let (mut peer, handle) = server.connect_given(&handles);
        eventually("on_connect returns", || {
            handle.state() == ConnectionState::Connected
        });
        handle.send_bytes(vec![0; MUCH].into()).unwrap();
        handle.on_close({
            let handle = handle.clone();
            move |_| end.push(("closed", handle.state()))
        });
        // The peer reads nothing, so the close has to wait for its output.
        handle.close();
        assert_eq!(handle.state(), ConnectionState::Disconnecting);
        assert!(handle.send_bytes("late".into()).is_err());
        assert_eq!(peer.rest().unwrap().len(), MUCH);
        handle.done().wait().unwrap();
        assert_eq!(handle.state(), ConnectionState::Disconnected);
        let seen = seen.wait("the end", |all| {
            all.iter().any(|(what, _)| *what == "closed")
        });
        let at = |name| seen.iter().find(|(what, _)| *what == name).unwrap().1;
        assert_eq!(at("prepare"), ConnectionState::Connecting);
        assert_eq!(at("connect"), ConnectionState::Connecting);
        assert_eq!(at("closed"), ConnectionState::Disconnected);
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_connection_of_ones_own_is_connected_from_its_birth() {
    bounded("own", || {
        let (conn, peer) = pair();
        let handle = conn.handle();
        assert_eq!(conn.state(), ConnectionState::Connected);
        let watching = watch(handle.clone());
        handle.close();
        // Its poller may have ended it already.
        assert!(conn.state() >= ConnectionState::Disconnecting);
        drop(conn);
        assert_eq!(handle.state(), ConnectionState::Disconnected);
        forwards(&watching.join().unwrap());
        drop(peer);
    });
}

#[test]
fn a_refused_connection_skips_to_the_end() {
    every(|case| {
        let watching = Log::new();
        let log = watching.clone();
        let server = case.serve(Script::new().prepare(move |conn| {
            log.push(conn.handle());
            Err(std::io::Error::other("not you"))
        }));
        server.connect().expect_gone();
        let handle: ConnectionHandle = watching.wait_len(1).remove(0);
        let error = handle.done().wait().unwrap_err();
        assert_eq!(
            Error::from_io(&error),
            Some(Error::Closed(CloseReason::Refused))
        );
        assert_eq!(handle.state(), ConnectionState::Disconnected);
        server.stop();
    });
}

#[test]
fn events_and_states_agree_under_every_end() {
    on_tcp(
        &[Kind::Adaptive, Kind::Workers, Kind::Inline, Kind::Custom],
        |case| {
            for reset in [false, true] {
                let events = Log::new();
                let log = events.clone();
                let server = case.serve(event_fn(move |conn, event| {
                    log.push((event, conn.state()));
                    if event == ConnectionEvent::Readable {
                        conn.skip(conn.available())?;
                    }
                    Ok(())
                }));
                let mut peer = server.connect();
                peer.write_all(b"x").unwrap();
                events.wait("input", |all| {
                    all.iter().any(|(e, _)| *e == ConnectionEvent::Readable)
                });
                if reset {
                    peer.reset();
                } else {
                    drop(peer);
                }
                let events = events.wait("the end", |all| {
                    matches!(all.last(), Some((ConnectionEvent::Closed(_), _)))
                });
                let states: Vec<ConnectionState> = events.iter().map(|(_, state)| *state).collect();
                assert!(states.is_sorted(), "{events:?}");
                let fault = |(event, _): &&(ConnectionEvent, ConnectionState)| {
                    matches!(event, ConnectionEvent::Error(_))
                };
                assert_eq!(events.iter().filter(fault).count(), usize::from(reset));
                server.stop();
            }
        },
    );
}

#[test]
fn a_dial_that_gets_no_answer_ends_in_time_and_leaves_nothing() {
    bounded("connect timeout", || {
        let mute = Mute::new();
        let timeout = Duration::from_millis(30);
        let dialer = Dialer::new().connect_timeout(timeout);
        let events = Log::new();
        let log = events.clone();
        let before = std::time::Instant::now();
        let error = dialer
            .dial_with(
                mute.address,
                event_fn(move |_, event| {
                    log.push(event);
                    Ok(())
                }),
            )
            .unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        assert!(before.elapsed() >= timeout);
        assert_eq!(events.len(), 0, "there never was a connection");
        assert_eq!(dialer.stats().unwrap().active, 0);
    });
}

#[test]
fn ten_thousand_idle_connections_cost_no_time() {
    in_child("ten_thousand_idle_connections_cost_no_time", || {
        limit_descriptors(u64::MAX);
        // Both ends are in this process.
        let most = rlimit().saturating_sub(200) / 2;
        let count = most.min(10_000) as usize;
        println!("{count} connections");
        let path = crate::support::fresh_path();
        let listener = netpoll::Listener::bind(path.clone()).unwrap();
        let server = EventLoop::builder()
            .pollers(1)
            .idle_timeout(Duration::from_secs(600))
            .build(echo())
            .unwrap();
        server.serve_in_background(listener).unwrap();
        let peers: Vec<_> = (0..count)
            .map(|_| std::os::unix::net::UnixStream::connect(&path).unwrap())
            .collect();
        eventually("all are accepted", || {
            server.stats().connected == count as u64
        });
        // Whatever they began with is over.
        let measure = || {
            let before = cpu_time();
            let_pass(Duration::from_millis(500));
            cpu_time() - before
        };
        let best = (0..5).map(|_| measure()).min().unwrap();
        println!("{best:?} of processor time in 500 ms");
        assert!(
            best < Duration::from_millis(10),
            "{best:?} for {count} idle connections in 500 ms"
        );
        drop(peers);
        server.shutdown(LIMIT).unwrap();
    });
}

/// How many descriptors this process may have.
fn rlimit() -> u64 {
    let before = limit_descriptors(u64::MAX);
    limit_descriptors(before);
    before
}

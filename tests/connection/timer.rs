//! Timers of single connections.

use crate::support::{
    Kind, LIMIT, Log, Script, Server, Transport, bounded, echo, eventually, every, giving, on_tcp,
};
use netpoll::{CloseReason, ConnectionState, EventLoop};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_millis(20);
const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn a_timer_is_called_once_and_not_early() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (peer, handle) = server.connect_given(&handles);
        let calls = Log::new();
        let set = Instant::now();
        for delay in [SOON, SOON / 2, Duration::ZERO] {
            let calls = calls.clone();
            handle.after(delay, move |conn| {
                calls.push((delay, set.elapsed(), conn.id()));
            });
        }
        for (delay, waited, id) in calls.wait_len(3) {
            assert!(waited >= delay, "{waited:?} instead of {delay:?}");
            assert_eq!(id, handle.id());
        }
        // Those that come later are behind all that are due.
        let last = calls.clone();
        handle.after(SOON, move |conn| last.push((HOUR, HOUR, conn.id())));
        assert_eq!(calls.wait_len(4).len(), 4);
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_timer_is_set_in_any_callback() {
    every(|case| {
        let calls = Log::new();
        let log = [(); 3].map(|()| calls.clone());
        let [prepare, connect, request] = log;
        let script = Script::new()
            .prepare(move |conn| {
                let calls = prepare.clone();
                conn.handle()
                    .after(Duration::ZERO, move |_| calls.push("prepare"));
                Ok(())
            })
            .connect(move |conn| {
                let calls = connect.clone();
                conn.handle()
                    .after(Duration::ZERO, move |_| calls.push("connect"));
                Ok(())
            })
            .request(move |conn| {
                let calls = request.clone();
                conn.handle()
                    .after(Duration::ZERO, move |_| calls.push("request"));
                conn.skip(conn.available())
            });
        let server = case.serve(script);
        let mut peer = server.connect();
        std::io::Write::write_all(&mut peer, b"x").unwrap();
        let mut calls = calls.wait_len(3);
        calls.sort_unstable();
        assert_eq!(calls, ["connect", "prepare", "request"]);
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_timer_may_send_and_close() {
    every(|case| {
        let (handles, ends) = (Log::new(), Log::new());
        let over = ends.clone();
        let server = case.serve(giving(&handles).disconnect(move |_, reason| over.push(reason)));
        let mut peer = server.connect();
        handles.wait_len(1).remove(0).after(SOON, |conn| {
            conn.send_bytes("too late".into()).unwrap();
            conn.close();
        });
        assert_eq!(peer.rest().unwrap(), b"too late");
        assert_eq!(ends.wait_len(1), [CloseReason::Local]);
        server.stop();
    });
}

#[test]
fn a_cancelled_timer_is_dropped_uncalled() {
    bounded("cancel", || {
        let handles = Log::new();
        let server = Server::start(
            Transport::Tcp,
            EventLoop::builder().pollers(1),
            giving(&handles),
        );
        let (_peer, handle) = server.connect_given(&handles);
        let kept = Arc::new(());
        let inside = Arc::clone(&kept);
        let timer = handle.after(HOUR, move |_| drop(inside));
        assert_eq!(Arc::strong_count(&kept), 2);
        assert!(timer.cancel());
        assert_eq!(Arc::strong_count(&kept), 1, "the closure is gone at once");
        assert!(!timer.cancel(), "only once");

        // Each of many is either cancelled or called.
        let called = Arc::new(AtomicUsize::new(0));
        let timers: Vec<_> = (0..1000)
            .map(|i| {
                let called = Arc::clone(&called);
                handle.after(Duration::from_micros(i * 20), move |_| {
                    called.fetch_add(1, SeqCst);
                })
            })
            .collect();
        let cancelled = timers.iter().rev().filter(|timer| timer.cancel()).count();
        eventually("the rest is called", || {
            called.load(SeqCst) == 1000 - cancelled
        });
        server.stop();
        assert_eq!(called.load(SeqCst), 1000 - cancelled);
    });
}

#[test]
fn the_end_of_the_connection_is_the_end_of_its_timers() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let gone = server.connect();
        let handle = handles.wait_len(1).remove(0);
        let there = server.connect();
        let other = handles.wait_len(2).remove(1);
        let calls = Log::new();
        let (never, soon) = (calls.clone(), calls.clone());
        let state = handle.clone();
        handle.after(SOON, move |_| never.push(("gone", state.state())));
        other.after(SOON * 3, move |conn| soon.push(("there", conn.state())));
        drop(gone);
        // An error says that the peer ended it.
        let _ = handle.done().wait();
        let after = calls.wait("the other", |calls| {
            calls.contains(&("there", ConnectionState::Connected))
        });
        // The first was due long before; if the end came later than that it saw an open one.
        assert!(
            !after.contains(&("gone", ConnectionState::Disconnected)),
            "{after:?}"
        );
        handle.after(Duration::ZERO, |_| {
            panic!("a closed connection has no timers")
        });
        drop(there);
        server.stop();
    });
}

#[test]
fn a_timer_that_waits_holds_nobody_up() {
    on_tcp(&[Kind::Adaptive, Kind::Workers], |case| {
        let handles = Log::new();
        let seen = handles.clone();
        let server = case.serve(Script::new().request(move |conn| {
            seen.push(conn.handle());
            let all = conn.slice(conn.available())?;
            conn.append(all)?;
            conn.flush()
        }));
        let mut peer = server.connect();
        peer.ping(b"one");
        let gate = crate::support::Gate::new();
        let _open = crate::support::OpenOnDrop(gate.clone());
        let at_gate = gate.clone();
        handles.all()[0].after(Duration::ZERO, move |_| at_gate.pass());
        gate.wait_arrived(1);
        for _ in 0..20 {
            peer.ping(b"served");
        }
        gate.open();
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_panic_in_a_timer_is_contained() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve(giving(&handles));
        let (mut peer, handle) = server.connect_given(&handles);
        handle.after(Duration::ZERO, |_| panic!("on purpose"));
        let calls = Log::new();
        let called = calls.clone();
        eventually("the panic is counted", || {
            server.event_loop.stats().panics == 1
        });
        handle.after(Duration::ZERO, move |conn| {
            called.push(());
            conn.close();
        });
        calls.wait_len(1);
        peer.expect_end();
        server.stop();
    });
}

#[test]
fn extreme_times_are_no_trouble() {
    bounded("extremes", || {
        let server = Server::serve(Transport::Tcp, EventLoop::new(echo()).unwrap());
        let conn = server.dial();
        let handle = conn.handle();
        let calls = Log::new();
        let called = calls.clone();
        let far = handle.after(Duration::MAX, |_| unreachable!("after the end of time"));
        assert!(!far.cancel(), "it was never armed");
        let year = handle.after(HOUR * 24 * 366, |_| unreachable!("in a year"));
        handle.at(Instant::now() - SOON, move |_| called.push(()));
        calls.wait_len(1);
        assert!(year.cancel());
        drop(conn);
        server.stop();
    });
}

#[test]
fn many_timers_are_all_called() {
    bounded("many", || {
        let handles = Log::new();
        let server = Server::start(
            Transport::Tcp,
            EventLoop::builder().pollers(2),
            giving(&handles),
        );
        let _peers: Vec<_> = (0..10).map(|_| server.connect()).collect();
        let called = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = handles
            .wait_len(10)
            .into_iter()
            .map(|handle| {
                let called = Arc::clone(&called);
                thread::spawn(move || {
                    for i in 0..500 {
                        let called = Arc::clone(&called);
                        handle.after(Duration::from_micros(i * 37), move |_| {
                            called.fetch_add(1, SeqCst);
                        });
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let deadline = Instant::now() + LIMIT;
        while called.load(SeqCst) < 5000 {
            assert!(Instant::now() < deadline, "{called:?} of 5000");
            thread::sleep(Duration::from_millis(1));
        }
        server.stop();
    });
}

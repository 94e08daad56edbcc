//! Rows of docs/reliability.md about callbacks: those that block, panic, close or wait at the wrong
//! place.

use crate::support::{
    Case, Gate, Kind, LIMIT, Log, OpenOnDrop, Peer, Script, Server, Transport, bounded, echo,
    echo_frames, eventually, every, every_blocking, frame, in_child, on_tcp, read_frame, threads,
};
use netpoll::{
    Bytes, CloseReason, Connection, ConnectionHandle, Dialer, Dispatch, DispatchTask, Error,
    EventLoop, Executor, Handler, OnFull, PollerGroup, Pool, handler_fn,
};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

// ------------------------------------------------------------------- 68: callbacks that block

/// Holds the callback `at` of every connection but the first, and checks that the first is served.
fn held_in(at: &'static str) {
    on_tcp(
        &[Kind::Adaptive, Kind::Workers, Kind::Custom],
        move |case| {
            let gate = Gate::new();
            let _open = OpenOnDrop(gate.clone());
            let first = Arc::new(OnceLock::new());
            let pass = {
                let (gate, first) = (gate.clone(), Arc::clone(&first));
                move |here: &str, id: u64| {
                    if here == at && *first.get_or_init(|| id) != id {
                        gate.pass();
                    }
                }
            };
            let [p1, p2, p3, p4] = [(); 4].map(|()| pass.clone());
            let server = case.serve(
                Script::new()
                    .prepare(move |conn| {
                        let (p4, id) = (p4.clone(), conn.id());
                        conn.on_close(move |_| p4("close callback", id));
                        Ok(())
                    })
                    .connect(move |conn| {
                        p1("connect", conn.id());
                        Ok(())
                    })
                    .request(move |conn| {
                        p2("request", conn.id());
                        echo_frames(conn)
                    })
                    .disconnect(move |id, _| p3("disconnect", id)),
            );
            let mut steady = server.connect();
            steady.ping(b"up");
            let _ = first.set(1);
            let mut others: Vec<Peer> = (0..4).map(|_| server.connect()).collect();
            for other in &mut others {
                other.write_all(&frame(b"held")).unwrap();
            }
            if matches!(at, "disconnect" | "close callback") {
                for other in &mut others {
                    assert_eq!(read_frame(other).unwrap(), b"held");
                }
                others.clear();
            }
            gate.wait_arrived(4);
            for _ in 0..50 {
                steady.ping(b"not held");
            }
            gate.open();
            for other in &mut others {
                assert_eq!(read_frame(other).unwrap(), b"held");
            }
            drop((others, steady));
            server.stop();
        },
    );
}

#[test]
fn row_068_an_on_connect_that_blocks_holds_nobody_else_up() {
    held_in("connect");
}

#[test]
fn row_068_an_on_request_that_blocks_holds_nobody_else_up() {
    held_in("request");
}

#[test]
fn row_068_an_on_disconnect_that_blocks_holds_nobody_else_up() {
    held_in("disconnect");
}

#[test]
fn row_068_a_close_callback_that_blocks_holds_nobody_else_up() {
    held_in("close callback");
}

// --------------------------------------------------------- 69: closing where nobody expects it

#[test]
fn row_069_a_connection_may_be_closed_in_on_write_complete() {
    every(|case| {
        for abort in [false, true] {
            let log = Log::new();
            let [l1, l2, l3] = [(); 3].map(|()| log.clone());
            let left = Log::new();
            let full = left.clone();
            let server = case.serve(
                Script::new()
                    .prepare(move |conn| {
                        let log = l3.clone();
                        conn.on_close(move |_| log.push("close callback"));
                        Ok(())
                    })
                    .connect(move |conn| {
                        conn.write_bytes(vec![5; MUCH].into())?;
                        full.push(!conn.try_flush()?);
                        Ok(())
                    })
                    .wrote(move |conn| {
                        l1.push("written");
                        if abort {
                            conn.abort();
                        }
                        conn.close();
                    })
                    .disconnect(move |_, _| l2.push("disconnect")),
            );
            let mut peer = server.connect();
            assert_eq!(left.wait_len(1), [true], "nobody reads: not all of it fits");
            let mut got = vec![0; MUCH];
            // An abort may destroy what is on its way.
            let arrived = peer.read_exact(&mut got);
            assert!(abort || arrived.is_ok());
            peer.expect_gone();
            assert_eq!(log.wait_len(3), ["written", "disconnect", "close callback"]);
            server.stop();
            assert_eq!(log.len(), 3);
        }
    });
}

#[test]
fn row_069_a_connection_may_be_closed_in_a_scheduled_closure() {
    every(|case| {
        let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let ends = Log::new();
        let log = ends.clone();
        let handles = Log::new();
        let known = handles.clone();
        let server = case.serve_with(
            case.builder().pollers(group.clone()),
            Script::new()
                .connect(move |conn| {
                    known.push(conn.handle());
                    Ok(())
                })
                .request(echo_frames)
                .disconnect(move |_, reason| log.push(reason)),
        );
        for (round, abort) in [(1, false), (2, true)] {
            let mut peer = server.connect();
            peer.ping(b"x");
            let handle: ConnectionHandle = handles.wait_len(round).remove(round - 1);
            group.pick().schedule(Instant::now(), move || {
                if abort {
                    handle.abort();
                } else {
                    handle.close();
                }
            });
            peer.expect_gone();
            ends.wait_len(round);
        }
        assert_eq!(ends.all(), [CloseReason::Local, CloseReason::Abort]);
        server.stop();
        group.close();
    });
}

// --------------------------------------------------------------- 76: panics in less usual places

/// Panics when it is dropped, unless that would end the process.
struct Bomb(Log<()>);

impl Drop for Bomb {
    fn drop(&mut self) {
        self.0.push(());
        if !std::thread::panicking() {
            panic!("as asked");
        }
    }
}

#[test]
fn row_076_a_panic_in_the_drop_of_what_a_close_callback_holds() {
    every(|case| {
        let (drops, calls) = (Log::new(), Log::new());
        let (dropped, called) = (drops.clone(), calls.clone());
        let server = case.serve(
            Script::new()
                .connect(move |conn| {
                    let (bomb, called) = (Bomb(dropped.clone()), called.clone());
                    conn.on_close(move |_| drop(bomb));
                    conn.on_close(move |_| called.push(()));
                    Ok(())
                })
                .request(echo_frames),
        );
        for round in 1..=3 {
            let mut peer = server.connect();
            peer.ping(b"x");
            drop(peer);
            calls.wait_len(round);
        }
        let event_loop = server.event_loop.clone();
        server.stop();
        assert_eq!((drops.len(), event_loop.stats().panics), (3, 3));
    });
}

#[test]
fn row_076_a_panic_in_the_drop_of_a_handler_reaches_whoever_drops_the_loop_at_most() {
    struct Last(#[allow(dead_code)] Bomb);
    impl Handler for Last {
        type State = ();
        fn on_connect(&self, _: &mut Connection) -> io::Result<()> {
            Ok(())
        }
        fn on_request(&self, conn: &mut Connection, (): &mut ()) -> io::Result<()> {
            echo_frames(conn)
        }
    }
    every(|case| {
        let drops = Log::new();
        let server = case.serve(Last(Bomb(drops.clone())));
        let event_loop = server.event_loop.clone();
        server.connect().ping(b"x");
        server.stop();
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(event_loop)));
        drops.wait_len(1);
        drop(dropped);
        // Threads and the process are as before: the next loop works.
        let server = case.serve(echo());
        server.connect().ping(b"x");
        server.stop();
    });
}

#[test]
fn row_076_a_panic_in_a_scheduled_closure_is_that_closures_own() {
    bounded("closures", || {
        let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let builder = EventLoop::builder().pollers(group.clone());
        let server = Server::start(Transport::Tcp, builder, echo());
        let mut peer = server.connect();
        peer.ping(b"before");
        let fired = Log::new();
        for i in 0..10 {
            let fired = fired.clone();
            group.pick().schedule(Instant::now(), move || {
                fired.push(i);
                assert!(i % 2 == 0, "as asked");
            });
        }
        fired.wait_len(10);
        peer.ping(b"after");
        assert!(group.health().is_ok());
        eventually("the count", || group.stats().total().panics == 5);
        drop(peer);
        server.stop();
        group.close();
    });
}

/// Panics instead of taking every third task.
struct Unsteady(crate::support::Threads, AtomicUsize);

impl Executor for Unsteady {
    fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
        assert!(self.1.fetch_add(1, SeqCst) % 3 != 2, "as asked");
        self.0.execute(task)
    }
}

#[test]
fn row_076_an_executor_that_panics_ends_connections_and_nothing_else() {
    bounded("executor", || {
        let (opened, ended) = (Log::new(), Log::new());
        let (open, end) = (opened.clone(), ended.clone());
        let executor = Unsteady(crate::support::Threads::new(2), AtomicUsize::new(0));
        let builder = EventLoop::builder()
            .pollers(1)
            .dispatch(Dispatch::Custom(Arc::new(executor)));
        let server = Server::start(
            Transport::Tcp,
            builder,
            Script::new()
                .connect(move |_| {
                    open.push(());
                    Ok(())
                })
                .request(echo_frames)
                .disconnect(move |_, _| end.push(())),
        );
        let mut answered = 0;
        for n in 0..60 {
            let mut peer = server.connect();
            match peer.call(b"x") {
                Ok(reply) => {
                    assert_eq!(reply, b"x");
                    answered += 1;
                }
                Err(error) => assert!(
                    matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionReset
                            | io::ErrorKind::BrokenPipe
                            | io::ErrorKind::UnexpectedEof
                    ),
                    "connection {n} was neither answered nor ended: {error}; {:?}",
                    server.event_loop
                ),
            }
        }
        assert!(answered > 0, "none was served");
        assert!(answered < 60, "no executor has panicked");
        let event_loop = server.event_loop.clone();
        let stopped = event_loop.shutdown(LIMIT);
        let left: Vec<_> = event_loop.connections();
        let (stats, told) = (event_loop.stats(), (opened.len(), ended.len()));
        let state = format!("{stopped:?}, opened and ended {told:?}, left {left:?}, {stats:?}");
        assert!(stopped.is_ok(), "the loop drains: {state}");
        assert_eq!(told.0, told.1, "each end is told once: {state}");
        assert_eq!(stats.active, 0, "{state}");
        assert!(
            stats.panics > 0,
            "panics of the executor are counted: {state}"
        );
    });
}

// ------------------------------------------------------------ 81: waiting where one must not

#[test]
fn row_081_whatever_would_wait_on_a_pollers_thread_is_refused_at_once() {
    bounded("inline", || {
        let refused: Log<(&'static str, Option<Error>)> = Log::new();
        let log = refused.clone();
        let own: Arc<OnceLock<(EventLoop, netpoll::Address, Pool)>> = Arc::default();
        let known = Arc::clone(&own);
        let case = Case::new(Transport::Tcp, Kind::Inline);
        let server = case.serve_with(
            case.builder().output_limit(1000, OnFull::Block),
            handler_fn(move |conn| {
                if conn.available() == 0 {
                    return Ok(());
                }
                conn.skip(conn.available())?;
                let (event_loop, address, pool) = known.get().unwrap();
                let error = |result: io::Result<()>| result.err().and_then(|e| Error::from_io(&e));
                let note = |what, result| log.push((what, error(result)));
                note("fill", conn.fill(1 << 16));
                note("next", conn.next(1 << 16).map(drop));
                note("until", conn.until(b'\n').map(drop));
                note("done", conn.handle().done().wait());
                note(
                    "done, for a while",
                    conn.handle()
                        .done()
                        .wait_timeout(Duration::from_secs(60))
                        .unwrap_or(Ok(())),
                );
                note("shutdown", event_loop.shutdown(Duration::from_secs(60)));
                note(
                    "forced shutdown",
                    event_loop
                        .shutdown_forced(Duration::from_secs(60))
                        .map(drop),
                );
                note("place in a pool", pool.get(address).map(drop));
                conn.write_bytes(vec![1; MUCH].into())?;
                note("flush", conn.flush_and_wait());
                note(
                    "room",
                    conn.handle().send_bytes(vec![2; 2000].into()).map(drop),
                );
                note("flush of a handle", conn.handle().flush());
                Ok(())
            }),
        );
        let pool = Pool::builder(Dialer::new())
            .max_total(1)
            .wait(LIMIT)
            .build()
            .unwrap();
        let elsewhere = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let taken = pool.get(&elsewhere.address).unwrap();
        let _ = own.set((server.event_loop.clone(), elsewhere.address.clone(), pool));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        for (what, error) in refused.wait_len(11) {
            assert_eq!(error, Some(Error::WouldDeadlock), "{what}");
        }
        // The output was taken all the same, and the shutdown has begun.
        peer.read_exact(&mut vec![0; MUCH]).unwrap();
        peer.expect_end();
        drop(taken);
        server.stop();
        elsewhere.stop();
    });
}

// --------------------------------------------------------------------- 84: order under haste

#[test]
fn row_084_peers_that_leave_at_once_change_no_order() {
    every_blocking(|case| {
        let log = Log::new();
        let [l1, l2, l3, l4] = [(); 4].map(|()| log.clone());
        let server = case.serve(
            Script::new()
                .prepare(move |conn| {
                    l1.push((conn.id(), 1));
                    let (log, id) = (l4.clone(), conn.id());
                    conn.on_close(move |_| log.push((id, 4)));
                    Ok(())
                })
                .connect(move |conn| {
                    std::thread::sleep(Duration::from_millis(1));
                    l2.push((conn.id(), 2));
                    Ok(())
                })
                .disconnect(move |id, _| l3.push((id, 3))),
        );
        for i in 0..50 {
            let peer = server.connect();
            if i % 2 == 0 && case.transport == Transport::Tcp {
                peer.reset();
            }
        }
        // Those that were gone before they were accepted have no callbacks at all.
        let event_loop = &server.event_loop;
        eventually("the ends", || {
            let stats = event_loop.stats();
            stats.accepted > 0 && stats.closed == stats.accepted && stats.active == 0
        });
        let event_loop = server.event_loop.clone();
        server.stop();
        let all = log.all();
        let accepted = usize::try_from(event_loop.stats().accepted).unwrap();
        assert_eq!(all.len(), accepted * 4);
        let mut ids: Vec<u64> = all.iter().map(|&(id, _)| id).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let own: Vec<_> = all.iter().filter(|e| e.0 == id).map(|e| e.1).collect();
            assert_eq!(own, [1, 2, 3, 4]);
        }
    });
}

// ------------------------------------------------------------------- 85: no more threads

fn limit_memory(limit: &libc::rlimit) {
    // SAFETY: the call reads the structure it is given.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_AS, limit) };
    assert_eq!(result, 0);
}

/// Leaves this process less new memory than a thread's stack takes; what the limit was before.
fn no_room_for_threads() -> libc::rlimit {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call fills the structure it is given.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) };
    assert_eq!(result, 0);
    let pages: u64 = std::fs::read_to_string("/proc/self/statm")
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let tight = libc::rlimit {
        rlim_cur: pages * 4096 + (1 << 20),
        rlim_max: limit.rlim_max,
    };
    limit_memory(&tight);
    limit
}

#[test]
fn row_085_without_further_threads_those_that_run_serve() {
    in_child(
        "row_085_without_further_threads_those_that_run_serve",
        || {
            for kind in [Kind::Adaptive, Kind::Workers] {
                let gate = Gate::new();
                let _open = OpenOnDrop(gate.clone());
                let held = gate.clone();
                let case = Case::new(Transport::Tcp, kind);
                let server = case.serve(handler_fn(move |conn| {
                    if conn.try_peek(5)?.is_some_and(|head| head[4] == b'h') {
                        held.pass();
                    }
                    echo_frames(conn)
                }));
                let mut peers: Vec<Peer> = (0..6).map(|_| server.connect()).collect();
                for peer in &mut peers {
                    peer.ping(b"up");
                }
                let before = no_room_for_threads();
                let count = threads();
                for peer in &mut peers {
                    peer.write_all(&frame(b"held")).unwrap();
                }
                gate.wait_arrived(1);
                // Nobody can be found for the others; they wait, and nothing is lost.
                gate.open();
                for peer in &mut peers {
                    assert_eq!(read_frame(peer).unwrap(), b"held");
                }
                assert!(threads() <= count + 1, "the limit did not hold");
                limit_memory(&before);
                for peer in &mut peers {
                    peer.ping(b"after");
                }
                drop(peers);
                server.stop();
            }
        },
    );
}

#[test]
fn row_085_without_further_threads_a_handler_gets_the_input_it_waits_for() {
    in_child(
        "row_085_without_further_threads_a_handler_gets_the_input_it_waits_for",
        || {
            let begun = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&begun);
            let case = Case::new(Transport::Tcp, Kind::Adaptive);
            let server = case.serve(handler_fn(move |conn| {
                counted.fetch_add(1, SeqCst);
                let head = conn.peek(4)?;
                let length = 4 + u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
                conn.fill(length)?;
                conn.forward(length)?;
                conn.flush()
            }));
            let mut peers: Vec<Peer> = (0..6).map(|_| server.connect()).collect();
            for peer in &mut peers {
                peer.ping(b"up");
            }
            let before = no_room_for_threads();
            let count = threads();
            let whole = frame(b"held");
            let pings = begun.load(SeqCst);
            for peer in &mut peers {
                peer.write_all(&whole[..6]).unwrap();
            }
            // Whoever is served first holds a thread until the rest is there.
            eventually("a handler", || begun.load(SeqCst) > pings);
            for peer in &mut peers {
                peer.write_all(&whole[6..]).unwrap();
            }
            for peer in &mut peers {
                assert_eq!(read_frame(peer).unwrap(), b"held");
            }
            assert!(threads() <= count + 1, "the limit did not hold");
            limit_memory(&before);
            drop(peers);
            server.stop();
        },
    );
}

#[test]
fn row_079_with_every_thread_blocked_requests_wait_and_are_counted() {
    bounded("all blocked", || {
        const MOST: usize = 4;
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let group = PollerGroup::builder()
            .pollers(1)
            .max_threads(MOST)
            .build()
            .unwrap();
        let builder = EventLoop::builder().pollers(group.clone());
        let server = Server::start(
            Transport::Tcp,
            builder,
            handler_fn(move |conn| {
                if conn.try_peek(5)?.is_some() {
                    held.pass();
                }
                echo_frames(conn)
            }),
        );
        let mut peers: Vec<Peer> = (0..2 * MOST).map(|_| server.connect()).collect();
        for (i, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&frame(&[i as u8])).unwrap();
        }
        // As many as there may be threads are held, and it is told that there are no more.
        gate.wait_arrived(MOST);
        eventually("the figure", || group.stats().total().cap_hits > 0);
        gate.open();
        for (i, peer) in peers.iter_mut().enumerate() {
            assert_eq!(read_frame(peer).unwrap(), [i as u8]);
        }
        drop(peers);
        server.stop();
        group.close();
    });
}

#[test]
fn row_083_payloads_and_callbacks_that_hold_their_connection_are_let_go() {
    struct Holder(#[allow(dead_code)] ConnectionHandle, Vec<u8>, Log<()>);
    impl AsRef<[u8]> for Holder {
        fn as_ref(&self) -> &[u8] {
            &self.1
        }
    }
    impl Drop for Holder {
        fn drop(&mut self) {
            self.2.push(());
        }
    }
    every(|case| {
        let drops = Log::new();
        let dropped = drops.clone();
        let server = case.serve_with(
            case.builder().output_limit(1 << 30, OnFull::Error),
            Script::new().connect(move |conn| {
                let handle = conn.handle();
                let hold = || Holder(handle.clone(), vec![1; MUCH], dropped.clone());
                // Queued output that holds its own connection, and a callback that does.
                handle.send_bytes(Bytes::from_owner(hold()))?;
                let held = hold();
                conn.on_close(move |_| drop(held));
                Ok(())
            }),
        );
        let peers: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
        let event_loop = &server.event_loop;
        eventually("all", || event_loop.stats().connected == 5);
        // Nobody reads: the loop is ended by force.
        let forced = event_loop.shutdown_forced(Duration::ZERO).unwrap();
        assert!(forced <= 5);
        drops.wait_len(10);
        drop(peers);
    });
}

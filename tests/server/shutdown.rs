//! The end of a server: what is drained, what is waited for, what is left behind.

use crate::support::{
    Case, Gate, Kind, LIMIT, Log, OpenOnDrop, Peer, Script, Server, Transport, bounded, decode,
    descriptors, echo, echo_frames, eventually, every, every_blocking, frame, in_child, listener,
    on_tcp, read_frame, settled_descriptors, settled_threads, threads,
};
use netpoll::{
    Address, CloseReason, Connection, ConnectionHandle, Dispatch, DispatchTask, Error, EventLoop,
    EventLoopBuilder, Executor, OnFull, PollerGroup, SocketOptions, handler_fn,
};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

const KINDS: [Kind; 5] = [
    Kind::Adaptive,
    Kind::Workers,
    Kind::OneWorker,
    Kind::Inline,
    Kind::Custom,
];

fn incomplete(error: &io::Error) -> Option<usize> {
    match Error::from_io(error) {
        Some(Error::ShutdownIncomplete { remaining }) => Some(remaining),
        _ => None,
    }
}

#[test]
fn idle_connections_are_closed_at_once() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let server = case.serve(
            Script::new()
                .request(echo_frames)
                .disconnect(move |_, r| log.push(r)),
        );
        let mut peers: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.ping(b"x");
        }
        server.event_loop.shutdown(LIMIT).unwrap();
        // All callbacks have run when it returns.
        assert_eq!(ends.all(), [CloseReason::Shutdown; 20]);
        for peer in &mut peers {
            peer.expect_end();
        }
        assert_eq!(server.event_loop.stats().active, 0);
    });
}

#[test]
fn a_request_that_is_being_handled_is_answered() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let server = case.serve(handler_fn(move |conn| {
            while let Some(frame) = decode(conn)? {
                held.pass();
                conn.append(frame)?;
            }
            conn.flush()
        }));
        let mut peer = server.connect();
        peer.write_all(&frame(b"late")).unwrap();
        gate.wait_arrived(1);
        let event_loop = server.event_loop.clone();
        let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
        eventually("the drain", || server.event_loop.is_shutting_down());
        gate.open();
        assert_eq!(read_frame(&mut peer).unwrap(), b"late");
        peer.expect_end();
        stopping.join().unwrap().unwrap();
    });
}

#[test]
fn handlers_see_that_their_loop_shuts_down() {
    every(|case| {
        let (gate, seen) = (Gate::new(), Log::new());
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let [connected, requested] = [(); 2].map(|()| seen.clone());
        let script = Script::new().connect(move |conn| {
            connected.push(conn.is_shutting_down());
            Ok(())
        });
        let server = case.serve(script.request(move |conn| {
            while decode(conn)?.is_some() {
                requested.push(conn.is_shutting_down());
                held.pass();
                requested.push(conn.is_shutting_down());
                conn.write_slice(&frame(b"go elsewhere"))?;
            }
            conn.flush()
        }));
        let mut peer = server.connect();
        peer.write_all(&frame(b"where")).unwrap();
        gate.wait_arrived(1);
        let event_loop = server.event_loop.clone();
        let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
        eventually("the drain", || server.event_loop.is_shutting_down());
        gate.open();
        assert_eq!(read_frame(&mut peer).unwrap(), b"go elsewhere");
        peer.expect_end();
        stopping.join().unwrap().unwrap();
        assert_eq!(seen.all(), [false, false, true]);
    });
}

#[test]
fn a_taken_connection_is_its_owners_in_a_shutdown() {
    every(|case| {
        let taken = Log::new();
        let given = taken.clone();
        let server = case.serve(Script::new().connect(move |conn| {
            given.push(conn.hijack()?);
            Ok(())
        }));
        let mut peer = server.connect();
        eventually("it is taken", || taken.len() == 1);
        let mut conn: Connection = taken.take().remove(0);
        assert!(!conn.is_shutting_down());
        let left = server.event_loop.shutdown(Duration::ZERO).unwrap_err();
        assert_eq!(incomplete(&left), Some(1));
        assert!(conn.is_shutting_down());
        conn.write_str("bye").unwrap();
        conn.flush().unwrap();
        drop(conn);
        assert_eq!(peer.rest().unwrap(), b"bye");
        drop(peer);
        server.event_loop.shutdown(LIMIT).unwrap();
    });
}

#[test]
fn a_request_that_was_received_but_not_begun_is_answered() {
    // The only thread that may run handlers is busy; requests wait behind it when the loop
    // begins to drain.
    on_one_worker(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let server = case.serve(handler_fn(move |conn| {
            while let Some(frame) = decode(conn)? {
                held.pass();
                conn.append(frame)?;
            }
            conn.flush()
        }));
        let mut peers: Vec<Peer> = (0..10).map(|_| server.connect()).collect();
        let connected = || server.event_loop.stats().connected == 10;
        eventually("the connections", connected);
        for peer in &mut peers {
            peer.write_all(&frame(b"waits")).unwrap();
        }
        gate.wait_arrived(1);
        let event_loop = server.event_loop.clone();
        let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
        eventually("the drain", || server.event_loop.is_shutting_down());
        gate.open();
        for peer in &mut peers {
            assert_eq!(read_frame(peer).unwrap(), b"waits");
            peer.expect_end();
        }
        stopping.join().unwrap().unwrap();
    });
}

#[test]
fn a_request_that_has_just_arrived_is_answered() {
    every(|case| {
        for round in 0..15u8 {
            let server = case.serve(echo());
            let mut peers: Vec<Peer> = (0..4).map(|_| server.connect()).collect();
            for peer in &mut peers {
                peer.ping(b"up");
            }
            for peer in &mut peers {
                peer.write_all(&frame(&[round])).unwrap();
            }
            for peer in &peers {
                eventually("it has arrived", || peer.unsent() == 0);
            }
            let event_loop = server.event_loop.clone();
            let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
            for peer in &mut peers {
                assert_eq!(read_frame(peer).unwrap(), [round]);
                peer.expect_end();
            }
            drop(peers);
            stopping.join().unwrap().unwrap();
        }
    });
}

fn on_one_worker(test: impl Fn(Case) + Send + Sync + 'static) {
    on_tcp(&[Kind::OneWorker], test);
}

#[test]
fn at_the_deadline_the_number_left_is_told_and_they_go_on() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let server = case.serve(handler_fn(move |conn| {
            while let Some(frame) = decode(conn)? {
                held.pass();
                conn.append(frame)?;
            }
            conn.flush()
        }));
        let busy = if case.kind == Kind::OneWorker { 1 } else { 5 };
        let mut peers: Vec<Peer> = (0..busy).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.write_all(&frame(b"slow")).unwrap();
        }
        gate.wait_arrived(busy);
        let mut idle = server.connect();
        if case.kind != Kind::OneWorker {
            let connected = || server.event_loop.stats().connected == busy as u64 + 1;
            eventually("the idle one", connected);
        }
        let error = server
            .event_loop
            .shutdown(Duration::from_millis(50))
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let left = incomplete(&error).expect("how many are left");
        assert!(
            left >= busy && left <= busy + 1,
            "{left} left of {busy} busy ones"
        );
        gate.open();
        for peer in &mut peers {
            assert_eq!(read_frame(peer).unwrap(), b"slow");
        }
        server.event_loop.shutdown(LIMIT).unwrap();
        idle.expect_gone();
    });
}

#[test]
fn a_forced_shutdown_ends_handlers_that_wait_for_input() {
    every_blocking(|case| {
        let results = Log::new();
        let log = results.clone();
        let started = Log::new();
        let begun = started.clone();
        let server = case.serve(handler_fn(move |conn| {
            begun.push(());
            let result = conn.fill(1000);
            log.push(result.as_ref().err().and_then(Error::from_io));
            result
        }));
        let waiting = if case.kind == Kind::OneWorker { 1 } else { 4 };
        let mut peers: Vec<Peer> = (0..waiting).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.write_all(b"half a message").unwrap();
        }
        started.wait_len(waiting);
        let forced = server
            .event_loop
            .shutdown_forced(Duration::from_millis(20))
            .unwrap();
        assert_eq!(forced, waiting);
        for result in results.all() {
            assert_eq!(result, Some(Error::Closed(CloseReason::Shutdown)));
        }
        assert_eq!(results.len(), waiting);
        for peer in &mut peers {
            peer.expect_gone();
        }
    });
}

#[test]
fn a_forced_shutdown_ends_handlers_that_wait_for_output() {
    every_blocking(|case| {
        let results = Log::new();
        let log = results.clone();
        let handles = Log::new();
        let known = handles.clone();
        let server = case.serve(Script::new().connect(move |conn| {
            known.push(conn.handle());
            conn.write_bytes(vec![0; 24 << 20].into())?;
            let result = conn.flush_and_wait();
            log.push(result.as_ref().err().and_then(Error::from_io));
            result
        }));
        let (peer, handle) = server.connect_given(&handles);
        eventually("the flush waits", || handle.stats().queued > 0);
        assert_eq!(
            server
                .event_loop
                .shutdown_forced(Duration::from_millis(20))
                .unwrap(),
            1
        );
        assert_eq!(results.all(), [Some(Error::Closed(CloseReason::Shutdown))]);
        drop(peer);
    });
}

#[test]
fn a_forced_shutdown_that_finds_nothing_left_forces_nothing() {
    every(|case| {
        let server = case.serve(echo());
        server.connect().ping(b"x");
        assert_eq!(server.event_loop.shutdown_forced(LIMIT).unwrap(), 0);
    });
}

#[test]
fn a_shutdown_inside_a_callback_begins_and_does_not_wait() {
    every(|case| {
        let slot: Arc<std::sync::OnceLock<EventLoop>> = Arc::default();
        let own = Arc::clone(&slot);
        let results = Log::new();
        let log = results.clone();
        let server = case.serve(handler_fn(move |conn| {
            echo_frames(conn)?;
            let result = own.get().unwrap().shutdown(LIMIT);
            log.push(result.map_err(|e| Error::from_io(&e)));
            Ok(())
        }));
        assert!(slot.set(server.event_loop.clone()).is_ok());
        let mut peer = server.connect();
        peer.ping(b"the last");
        peer.expect_end();
        assert_eq!(results.wait_len(1), [Err(Some(Error::WouldDeadlock))]);
        server.event_loop.shutdown(LIMIT).unwrap();
    });
}

/// Serves and shuts its loop down at the first task, on the poller's thread.
struct Stopper {
    event_loop: std::sync::OnceLock<EventLoop>,
    result: Log<Result<(), Option<Error>>>,
    tasks: crate::support::Threads,
}

impl Executor for Stopper {
    fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
        let event_loop = self.event_loop.get().unwrap();
        if !event_loop.is_shutting_down() {
            let served = event_loop.serve(listener(Transport::Tcp));
            self.result.push(served.map_err(|e| Error::from_io(&e)));
            let result = event_loop.shutdown(LIMIT);
            self.result.push(result.map_err(|e| Error::from_io(&e)));
            let forced = event_loop.shutdown_forced(LIMIT);
            self.result
                .push(forced.map(drop).map_err(|e| Error::from_io(&e)));
        }
        self.tasks.execute(task)
    }
}

#[test]
fn a_shutdown_on_a_pollers_thread_begins_and_does_not_wait() {
    for transport in [Transport::Tcp, Transport::Unix] {
        bounded("on a poller", move || {
            let result = Log::new();
            let stopper = Arc::new(Stopper {
                event_loop: std::sync::OnceLock::new(),
                result: result.clone(),
                tasks: crate::support::Threads::new(2),
            });
            let dispatch = Dispatch::Custom(Arc::clone(&stopper) as Arc<dyn Executor>);
            let builder = EventLoop::builder().pollers(1).dispatch(dispatch);
            let event_loop = builder.build(echo()).unwrap();
            assert!(stopper.event_loop.set(event_loop.clone()).is_ok());
            let server = Server::serve(transport, event_loop);
            let mut peer = server.connect();
            let refused = Err(Some(Error::WouldDeadlock));
            assert_eq!(result.wait_len(3), [refused, refused, refused]);
            peer.expect_gone();
            server.event_loop.shutdown(LIMIT).unwrap();
        });
    }
}

#[test]
fn the_loop_is_shutting_down_before_others_hear_of_it() {
    every_blocking(|case| {
        // Accepting is held up in `on_prepare`, for which a stop waits a little.
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let (held, ends) = (gate.clone(), Log::new());
        let (slot, log) = (Arc::new(std::sync::OnceLock::new()), ends.clone());
        let own: Arc<std::sync::OnceLock<EventLoop>> = Arc::clone(&slot);
        let idle = Arc::new(AtomicBool::new(true));
        let first = Arc::clone(&idle);
        let script = Script::new()
            .request(echo_frames)
            .prepare(move |_| {
                if !first.swap(false, SeqCst) {
                    held.pass();
                }
                Ok(())
            })
            .disconnect(move |_, _| log.push(own.get().unwrap().is_shutting_down()));
        let server = case.serve(script);
        assert!(slot.set(server.event_loop.clone()).is_ok());
        let mut peer = server.connect();
        peer.ping(b"up");
        let _held_up = server.connect();
        gate.wait_arrived(1);
        let event_loop = server.event_loop.clone();
        let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
        // The idle connection does not wait for the accepting.
        peer.expect_end();
        assert_eq!(ends.wait_len(1), [true]);
        gate.open();
        stopping.join().unwrap().unwrap();
    });
}

#[test]
fn several_threads_may_shut_down_and_again_later() {
    every(|case| {
        let server = case.serve(echo());
        let peers: Vec<Peer> = (0..10).map(|_| server.connect()).collect();
        let stops: Vec<_> = (0..4)
            .map(|_| {
                let event_loop = server.event_loop.clone();
                thread::spawn(move || event_loop.shutdown(LIMIT))
            })
            .collect();
        for stop in stops {
            stop.join().unwrap().unwrap();
        }
        server.event_loop.shutdown(LIMIT).unwrap();
        server.event_loop.shutdown(Duration::ZERO).unwrap();
        drop(peers);
    });
}

#[test]
fn a_loop_that_was_never_served_shuts_down() {
    for kind in KINDS {
        let event_loop = EventLoop::builder().pollers(1).dispatch(kind.dispatch());
        let event_loop = event_loop.build(echo()).unwrap();
        event_loop.shutdown(LIMIT).unwrap();
        assert!(event_loop.is_shutting_down());
    }
}

#[test]
fn serve_returns_when_everything_is_over() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let event_loop = case
            .builder()
            .build(
                Script::new()
                    .request(move |conn| {
                        held.pass();
                        echo_frames(conn)
                    })
                    .disconnect(move |_, _| told.store(true, SeqCst)),
            )
            .unwrap();
        let listener = listener(case.transport);
        let address = listener.local_addr().unwrap();
        let server = event_loop.clone();
        let (sender, served) = mpsc::channel();
        let over_at_return = Arc::clone(&over);
        thread::spawn(move || {
            let result = server.serve(listener);
            sender.send((result, over_at_return.load(SeqCst))).unwrap();
        });
        let mut peer = Peer::connect(&address).unwrap();
        peer.write_all(&frame(b"held")).unwrap();
        gate.wait_arrived(1);
        let stopper = event_loop.clone();
        let stopping = thread::spawn(move || stopper.shutdown(LIMIT));
        eventually("the drain", || event_loop.is_shutting_down());
        assert!(
            served.try_recv().is_err(),
            "serve returned while a handler runs"
        );
        gate.open();
        assert_eq!(read_frame(&mut peer).unwrap(), b"held");
        stopping.join().unwrap().unwrap();
        let (result, over_at_return) = served.recv_timeout(LIMIT).unwrap();
        result.unwrap();
        assert!(over_at_return, "serve returned before on_disconnect");
    });
}

#[test]
fn after_a_shutdown_nothing_new_is_served() {
    every(|case| {
        let server = case.serve(echo());
        server.event_loop.shutdown(LIMIT).unwrap();
        assert!(Peer::connect(&server.address).is_err(), "somebody listens");
        let error = server
            .event_loop
            .serve(listener(case.transport))
            .unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::ShuttingDown));
        let error = server
            .event_loop
            .serve_in_background(listener(case.transport))
            .unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::ShuttingDown));
    });
}

#[test]
fn stop_accepting_leaves_connections_alone() {
    every(|case| {
        let server = case.serve(echo());
        let mut peer = server.connect();
        peer.ping(b"before");
        server.event_loop.stop_accepting();
        assert!(Peer::connect(&server.address).is_err(), "somebody listens");
        assert!(!server.event_loop.is_shutting_down());
        for _ in 0..10 {
            peer.ping(b"after");
        }
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_handler_sees_that_the_loop_drains() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let server = case.serve(handler_fn(move |conn| {
            conn.skip(conn.available())?;
            held.pass();
            let text = if conn.is_shutting_down() {
                "go away"
            } else {
                "stay"
            };
            conn.write_str(text)?;
            conn.flush()
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        gate.wait_arrived(1);
        let event_loop = server.event_loop.clone();
        let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
        eventually("the drain", || server.event_loop.is_shutting_down());
        gate.open();
        assert_eq!(peer.rest().unwrap(), b"go away");
        stopping.join().unwrap().unwrap();
    });
}

/// A server that answers the first byte of a connection with as much as its socket takes.
fn answering(case: Case, builder: EventLoopBuilder, answer: usize, waits: bool) -> Server {
    let options = SocketOptions::new().send_buffer(1 << 20);
    let script = Script::new().request(move |conn| {
        let first = conn.stats().bytes_out == 0;
        conn.skip(conn.available())?;
        if first {
            conn.write_bytes(vec![7; answer].into())?;
            if waits {
                // The handler is not called again before the queue is low.
                conn.flush()?;
            } else {
                conn.try_flush()?;
            }
        }
        Ok(())
    });
    case.serve_with(builder.socket(options), script)
}

/// A peer that has asked and reads nothing; the server has handed the whole answer to its kernel.
fn asking(server: &Server, answer: usize) -> Peer {
    let before = server.event_loop.stats().connected;
    let mut peer = Peer::connect_small(&server.address).unwrap();
    peer.write_all(b"?").unwrap();
    // One that is over already is not listed.
    let handed_over = |conn: &ConnectionHandle| conn.stats().bytes_out >= answer as u64;
    eventually("the answer is handed over", || {
        server.event_loop.stats().connected > before
            && server.event_loop.connections().iter().all(handed_over)
    });
    peer
}

#[test]
fn a_shutdown_waits_until_peers_have_their_answers() {
    const ANSWER: usize = 150_000;
    every(|case| {
        if case.transport == Transport::Unix {
            // What was sent is with the peer.
            return;
        }
        let server = answering(case, case.builder(), ANSWER, true);
        let mut quiet = asking(&server, ANSWER);
        let mut chatty = asking(&server, ANSWER);
        let event_loop = server.event_loop.clone();
        let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
        // It is over but for the bytes that are on their way.
        eventually("the ends", || server.event_loop.stats().closed == 2);
        let mut sending = chatty.try_clone();
        // More than lingering drops, until it is told that the connection is gone.
        let more = thread::spawn(move || while sending.write(&[1; 4096]).is_ok() {});
        let mut got = vec![0; ANSWER];
        chatty.read_exact(&mut got).unwrap();
        assert!(got == [7; ANSWER]);
        assert!(quiet.rest().unwrap() == [7; ANSWER]);
        // Both keep their sides open.
        stopping.join().unwrap().unwrap();
        more.join().unwrap();
        assert_eq!(server.event_loop.stats().cut, 0);
        drop((quiet, chatty));
    });
}

#[test]
fn a_shutdown_that_cuts_a_peer_says_so() {
    on_tcp(&KINDS, |case| {
        // In the kernel, in the queue for the larger part, and so that the handler waits for it.
        for (answer, waits) in [(150_000, true), (24 << 20, false), (24 << 20, true)] {
            for forced in [false, true] {
                let soon = Duration::from_millis(50);
                // The shutdown has begun before this has passed.
                let builder = case.builder().write_timeout(soon * 10);
                let builder = builder.linger(soon, 1 << 10);
                let builder = builder.output_limit(64 << 20, OnFull::Error);
                let server = answering(case, builder, answer, waits);
                let mut peer = asking(&server, 1);
                if forced {
                    assert_eq!(server.event_loop.shutdown_forced(LIMIT).unwrap(), 1);
                } else {
                    let error = server.event_loop.shutdown(LIMIT).unwrap_err();
                    let cut = Error::ShutdownCut { cut: 1 };
                    assert_eq!(Error::from_io(&error), Some(cut));
                }
                let stats = server.event_loop.stats();
                assert_eq!((stats.cut, stats.active), (1, 0));
                peer.expect_gone();
            }
        }
    });
}

#[test]
fn peers_without_their_answers_are_left_at_the_deadline() {
    const ANSWER: usize = 150_000;
    on_tcp(&KINDS, |case| {
        for forced in [false, true] {
            let builder = case.builder().linger(LIMIT, 1 << 10);
            let server = answering(case, builder, ANSWER, true);
            let mut peer = asking(&server, ANSWER);
            let grace = Duration::from_millis(50);
            if forced {
                assert_eq!(server.event_loop.shutdown_forced(grace).unwrap(), 1);
                assert_eq!(server.event_loop.stats().active, 0);
                let end = peer.rest().unwrap_err();
                assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
            } else {
                let error = server.event_loop.shutdown(grace).unwrap_err();
                assert_eq!(incomplete(&error), Some(1));
                assert_eq!(
                    server.event_loop.stats().closed,
                    1,
                    "all callbacks have run"
                );
                // It goes on, and so does the shutdown.
                assert_eq!(peer.rest().unwrap().len(), ANSWER);
                server.event_loop.shutdown(LIMIT).unwrap();
            }
        }
    });
}

#[test]
fn callbacks_that_do_not_return_are_reported() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let (held, ends) = (gate.clone(), Log::new());
        let log = ends.clone();
        let builder = case.builder().stuck_after(Duration::from_millis(50));
        let script = Script::new()
            .request(move |_| {
                held.pass();
                Ok(())
            })
            .disconnect(move |_, reason| log.push(reason));
        let event_loop = builder.build(script).unwrap();
        let listener = listener(case.transport);
        let address = listener.local_addr().unwrap();
        let serving = event_loop.clone();
        let served = thread::spawn(move || serving.serve(listener));
        let count = if case.kind == Kind::OneWorker { 1 } else { 4 };
        let mut peers: Vec<Peer> = (0..count)
            .map(|_| Peer::connect(&address).unwrap())
            .collect();
        for peer in &mut peers {
            peer.write_all(b"x").unwrap();
        }
        gate.wait_arrived(count);
        for _ in 0..2 {
            let error = event_loop.shutdown_forced(Duration::ZERO).unwrap_err();
            assert_eq!(incomplete(&error), Some(count));
        }
        // Their peers are served as if they had returned.
        for peer in &mut peers {
            peer.expect_gone();
        }
        let error = served.join().unwrap().unwrap_err();
        assert_eq!(incomplete(&error), Some(count));
        assert_eq!(ends.len(), 0);
        gate.open();
        assert_eq!(ends.wait_len(count), vec![CloseReason::Shutdown; count]);
        event_loop.shutdown(LIMIT).unwrap();
    });
}

#[test]
fn a_dropped_loop_does_not_wait_for_callbacks_that_are_stuck() {
    in_child(
        "a_dropped_loop_does_not_wait_for_callbacks_that_are_stuck",
        || {
            let before = threads();
            for kind in [Kind::Adaptive, Kind::Workers, Kind::OneWorker] {
                let case = Case::new(Transport::Tcp, kind);
                let gate = Gate::new();
                let _open = OpenOnDrop(gate.clone());
                let held = gate.clone();
                let listener = listener(case.transport);
                let address = listener.local_addr().unwrap();
                let builder = case.builder().stuck_after(Duration::from_millis(20));
                let event_loop = builder
                    .build(handler_fn(move |_| {
                        held.pass();
                        Ok(())
                    }))
                    .unwrap();
                event_loop.serve_in_background(listener).unwrap();
                let mut peer = Peer::connect(&address).unwrap();
                peer.write_all(b"x").unwrap();
                gate.wait_arrived(1);
                drop(event_loop);
                peer.expect_gone();
                assert!(threads() > before);
                gate.open();
                // The threads end with the callbacks.
                settled_threads(before);
            }
        },
    );
}

#[test]
fn idle_peers_are_let_go_while_every_thread_is_busy() {
    let one = |kind| match kind {
        Kind::Adaptive => EventLoop::builder().pollers(crate::support::one_thread()),
        Kind::Custom => {
            let executor = Dispatch::Custom(Arc::new(crate::support::Threads::new(1)));
            EventLoop::builder().pollers(1).dispatch(executor)
        }
        kind => EventLoop::builder().pollers(1).dispatch(kind.dispatch()),
    };
    for kind in [Kind::Adaptive, Kind::OneWorker, Kind::Custom] {
        for transport in [Transport::Tcp, Transport::Unix] {
            bounded(&format!("{kind:?}"), move || {
                let gate = Gate::new();
                let _open = OpenOnDrop(gate.clone());
                let (held, ends) = (gate.clone(), Log::new());
                let log = ends.clone();
                let script = Script::new()
                    .request(move |conn| {
                        while let Some(frame) = decode(conn)? {
                            if frame.len() > 5 {
                                held.pass();
                            }
                            conn.append(frame)?;
                        }
                        conn.flush()
                    })
                    .disconnect(move |_, reason| log.push(reason));
                let server = Server::start(transport, one(kind), script);
                let mut idle: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
                for peer in &mut idle {
                    peer.ping(b"x");
                }
                let mut busy = server.connect();
                busy.write_all(&frame(b"held")).unwrap();
                gate.wait_arrived(1);
                // This one has asked, and is answered when a thread is free.
                let mut asking = idle.pop().unwrap();
                asking.write_all(&frame(b"y")).unwrap();
                eventually("it has arrived", || asking.unsent() == 0);
                let event_loop = server.event_loop.clone();
                let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
                for peer in &mut idle {
                    peer.expect_end();
                }
                gate.open();
                assert_eq!(read_frame(&mut busy).unwrap(), b"held");
                assert_eq!(read_frame(&mut asking).unwrap(), b"y");
                stopping.join().unwrap().unwrap();
                assert_eq!(ends.all(), [CloseReason::Shutdown; 6]);
            });
        }
    }
}

#[test]
fn a_part_of_a_message_holds_a_shutdown_for_the_read_timeout() {
    every(|case| {
        let whole = frame(b"in two parts");
        let ends = Log::new();
        let log = ends.clone();
        let script = || {
            let log = log.clone();
            Script::new()
                .request(echo_frames)
                .disconnect(move |_, reason| log.push(reason))
        };
        // The rest never comes.
        let builder = case.builder().read_timeout(Duration::from_millis(50));
        let server = case.serve_with(builder, script());
        let mut peer = server.connect();
        peer.write_all(&whole[..6]).unwrap();
        let received = || server.event_loop.connections()[0].stats().bytes_in == 6;
        eventually("it is accepted", || {
            server.event_loop.stats().connected == 1
        });
        eventually("the part", received);
        server.event_loop.shutdown(LIMIT).unwrap();
        assert_eq!(ends.take(), [CloseReason::Shutdown]);
        peer.expect_end();
        // It comes in time, twice.
        let server = case.serve_with(case.builder().read_timeout(LIMIT), script());
        let mut peer = server.connect();
        peer.ping(b"up");
        peer.write_all(&whole[..6]).unwrap();
        let received = || server.event_loop.connections()[0].stats().bytes_in == 6 + 6;
        eventually("the part", received);
        let event_loop = server.event_loop.clone();
        let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
        eventually("the drain", || server.event_loop.is_shutting_down());
        peer.write_all(&[&whole[6..], &whole[..6]].concat())
            .unwrap();
        assert_eq!(read_frame(&mut peer).unwrap(), b"in two parts");
        peer.write_all(&whole[6..]).unwrap();
        assert_eq!(read_frame(&mut peer).unwrap(), b"in two parts");
        peer.expect_end();
        stopping.join().unwrap().unwrap();
    });
}

#[test]
fn queued_output_is_sent_before_the_end() {
    every(|case| {
        const MUCH: usize = 24 << 20;
        let queued = Log::new();
        let log = queued.clone();
        let server = case.serve(Script::new().connect(move |conn| {
            conn.write_bytes(vec![7; MUCH].into())?;
            log.push(!conn.try_flush()?);
            Ok(())
        }));
        let mut peer = server.connect();
        assert_eq!(queued.wait_len(1), [true]);
        let event_loop = server.event_loop.clone();
        let stopping = thread::spawn(move || event_loop.shutdown(LIMIT));
        eventually("the drain", || server.event_loop.is_shutting_down());
        assert_eq!(peer.rest().unwrap().len(), MUCH);
        stopping.join().unwrap().unwrap();
    });
}

#[test]
fn a_hold_keeps_a_connection_through_the_drain() {
    every(|case| {
        let holds = Log::new();
        let log = holds.clone();
        let server = case.serve(handler_fn(move |conn| {
            conn.skip(conn.available())?;
            let handle = conn.handle();
            log.push((handle.hold(), handle));
            Ok(())
        }));
        let mut peer = server.connect();
        peer.write_all(b"later").unwrap();
        eventually("the request", || holds.len() == 1);
        let error = server
            .event_loop
            .shutdown(Duration::from_millis(20))
            .unwrap_err();
        assert_eq!(incomplete(&error), Some(1));
        let (hold, handle) = holds.take().remove(0);
        handle.send_bytes(b"now".as_slice().into()).unwrap();
        drop(hold);
        server.event_loop.shutdown(LIMIT).unwrap();
        assert_eq!(peer.rest().unwrap(), b"now");
    });
}

#[test]
fn a_connection_that_arrives_during_the_drain_is_ended_too() {
    every(|case| {
        let server = case.serve(echo());
        let address = server.address.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let arriving = thread::spawn(move || {
            let mut peers = Vec::new();
            while !stopped.load(SeqCst) {
                match Peer::connect(&address) {
                    Ok(peer) => peers.push(peer),
                    Err(_) => break,
                }
                if peers.len() > 300 {
                    peers.clear();
                }
            }
            peers
        });
        eventually("some", || server.event_loop.stats().accepted > 20);
        server.event_loop.shutdown(LIMIT).unwrap();
        stop.store(true, SeqCst);
        for mut peer in arriving.join().unwrap() {
            // The kernel sends no reset to a connection that it was still making when the listener
            // closed. The first byte of such a peer is answered by one.
            let _ = peer.write_all(b"?");
            peer.expect_gone();
        }
        assert_eq!(server.event_loop.stats().active, 0);
    });
}

#[test]
fn a_dropped_loop_ends_its_connections() {
    every(|case| {
        let ends = Log::new();
        let log = ends.clone();
        let listener = listener(case.transport);
        let address = listener.local_addr().unwrap();
        let event_loop = case
            .builder()
            .build(
                Script::new()
                    .request(echo_frames)
                    .disconnect(move |_, r| log.push(r)),
            )
            .unwrap();
        event_loop.serve_in_background(listener).unwrap();
        let mut peer = Peer::connect(&address).unwrap();
        peer.ping(b"x");
        drop(event_loop);
        peer.expect_gone();
        assert_eq!(ends.all(), [CloseReason::Shutdown]);
        // Its poller may still be at the listener's end.
        eventually("the listener is closed", || {
            Peer::connect(&address).is_err()
        });
    });
}

#[test]
fn a_loop_may_be_dropped_inside_its_own_callback() {
    every(|case| {
        let slot: Arc<std::sync::Mutex<Option<EventLoop>>> = Arc::default();
        let own = Arc::clone(&slot);
        let ends = Log::new();
        let log = ends.clone();
        let listener = listener(case.transport);
        let address = listener.local_addr().unwrap();
        let event_loop = case
            .builder()
            .build(
                Script::new()
                    .request(move |conn| {
                        echo_frames(conn)?;
                        drop(own.lock().unwrap().take());
                        Ok(())
                    })
                    .disconnect(move |_, r| log.push(r)),
            )
            .unwrap();
        event_loop.serve_in_background(listener).unwrap();
        *slot.lock().unwrap() = Some(event_loop);
        let mut peer = Peer::connect(&address).unwrap();
        let _ = peer.write_all(&frame(b"x"));
        peer.expect_gone();
        ends.wait_len(1);
    });
}

#[test]
fn loops_may_share_a_group_of_pollers() {
    bounded("shared group", || {
        let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let make = || {
            EventLoop::builder()
                .pollers(group.clone())
                .build(echo())
                .unwrap()
        };
        let first = Server::serve(Transport::Tcp, make());
        let second = Server::serve(Transport::Unix, make());
        first.connect().ping(b"first");
        second.connect().ping(b"second");
        first.stop();
        // The group lives on for the other loop.
        second.connect().ping(b"still");
        second.stop();
        let third = Server::serve(Transport::Tcp, make());
        third.connect().ping(b"third");
        third.stop();
        group.close();
    });
}

#[test]
fn start_and_stop_leave_no_descriptor_and_no_thread() {
    in_child("start_and_stop_leave_no_descriptor_and_no_thread", || {
        let cycle = |kind: Kind, transport| {
            let case = Case::new(transport, kind);
            let server = case.serve_with(case.builder().pollers(2), echo());
            let mut peers: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
            for peer in &mut peers {
                peer.ping(b"x");
            }
            if transport == Transport::Tcp && kind == Kind::Adaptive {
                // These have to be cut off, which takes the shutdown a little longer.
                server.stop();
                for peer in &mut peers {
                    peer.expect_end();
                }
            } else {
                drop(peers);
                server.stop();
            }
        };
        for kind in KINDS {
            for transport in [Transport::Tcp, Transport::Unix] {
                cycle(kind, transport);
            }
        }
        let (fds, tasks) = (descriptors(), threads());
        for _ in 0..10 {
            for kind in KINDS {
                for transport in [Transport::Tcp, Transport::Unix] {
                    cycle(kind, transport);
                }
            }
            settled_descriptors(fds);
            settled_threads(tasks);
        }
    });
}

#[test]
fn forced_ends_and_drops_leave_no_descriptor_and_no_thread() {
    in_child(
        "forced_ends_and_drops_leave_no_descriptor_and_no_thread",
        || {
            let cycle = |kind: Kind, forced: bool| {
                let case = Case::new(Transport::Tcp, kind);
                let listener = listener(case.transport);
                let address = listener.local_addr().unwrap();
                let event_loop = case
                    .builder()
                    .build(handler_fn(|conn| conn.try_fill(1000).map(|_| ())))
                    .unwrap();
                event_loop.serve_in_background(listener).unwrap();
                let mut peers: Vec<Peer> =
                    (0..5).map(|_| Peer::connect(&address).unwrap()).collect();
                for peer in &mut peers {
                    peer.write_all(b"half").unwrap();
                }
                if forced {
                    // A callback that had not returned at once is reported; the end comes all the same.
                    if let Err(error) = event_loop.shutdown_forced(Duration::ZERO) {
                        let error = Error::from_io(&error);
                        assert!(matches!(error, Some(Error::ShutdownIncomplete { .. })));
                    }
                }
                drop(event_loop);
                for peer in &mut peers {
                    peer.expect_gone();
                }
            };
            for kind in KINDS {
                cycle(kind, true);
                cycle(kind, false);
            }
            let (fds, tasks) = (descriptors(), threads());
            for _ in 0..10 {
                for kind in KINDS {
                    cycle(kind, true);
                    cycle(kind, false);
                }
                settled_descriptors(fds);
                settled_threads(tasks);
            }
        },
    );
}

#[test]
fn a_shutdown_joins_the_threads_it_started() {
    in_child("a_shutdown_joins_the_threads_it_started", || {
        let before = threads();
        for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
            let case = Case::new(Transport::Tcp, kind);
            let server = case.serve_with(case.builder().pollers(3), echo());
            let mut peers: Vec<Peer> = (0..10).map(|_| server.connect()).collect();
            for peer in &mut peers {
                peer.ping(b"x");
            }
            assert!(threads() > before);
            server.stop();
            // Joined threads are gone from the table a moment later.
            settled_threads(before);
        }
    });
}

#[test]
fn a_server_changes_nothing_of_its_process() {
    fn traits() -> Vec<String> {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let kept = [
            "SigBlk",
            "SigIgn",
            "SigCgt",
            "Umask",
            "NoNewPrivs",
            "Cpus_allowed",
        ];
        status
            .lines()
            .filter(|line| kept.iter().any(|key| line.starts_with(key)))
            .chain(limits.lines())
            .map(str::to_owned)
            .collect()
    }
    in_child("a_server_changes_nothing_of_its_process", || {
        let before = traits();
        let directory = std::env::current_dir().unwrap();
        for kind in KINDS {
            for transport in [Transport::Tcp, Transport::Unix] {
                let server = Case::new(transport, kind).serve(echo());
                server.connect().ping(b"x");
                let mut conn = server.dial();
                conn.write_slice(&frame(b"x")).unwrap();
                conn.flush().unwrap();
                conn.skip(5).unwrap();
                assert_eq!(traits(), before, "while it runs");
                drop(conn);
                server.stop();
            }
        }
        assert_eq!(traits(), before);
        assert_eq!(std::env::current_dir().unwrap(), directory);
    });
}

#[test]
fn a_custom_executor_is_dropped_with_its_loop() {
    bounded("executor", || {
        let executor = Arc::new(crate::support::Threads::new(2));
        let weak = Arc::downgrade(&executor);
        let builder = EventLoop::builder()
            .pollers(1)
            .dispatch(Dispatch::Custom(executor));
        let server = Server::start(Transport::Tcp, builder, echo());
        server.connect().ping(b"x");
        let event_loop = server.event_loop.clone();
        server.stop();
        drop(event_loop);
        eventually("the executor goes", || weak.upgrade().is_none());
    });
}

#[test]
fn serve_with_an_address_in_use_fails_at_once() {
    let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
    let error = netpoll::Listener::bind(server.address.clone()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    assert!(
        error.to_string().contains(&server.address.to_string()),
        "{error}"
    );
    let address: Address = "1.2.3.4:1".parse().unwrap();
    assert!(netpoll::Listener::bind(address).is_err());
}

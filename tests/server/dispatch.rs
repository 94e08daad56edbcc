//! Where handlers run: blocked ones hold nobody up, chains through one poller and one worker end,
//! executors may refuse and drop.

use crate::support::{
    Case, Gate, Kind, LIMIT, Log, OpenOnDrop, Peer, Script, Server, Threads, Transport, bounded,
    decode, echo, echo_frames, eventually, every, frame, in_child, let_pass, on_tcp, read_frame,
};
use netpoll::{
    Address, CloseReason, Dialer, Dispatch, DispatchTask, Error, EventLoop, Executor, PollerGroup,
    handler_fn, poller,
};
use std::{
    io::{self, Read, Write},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

/// Echoes; a frame that begins with `b` waits at the gate first.
fn gated(gate: &Gate) -> impl netpoll::Handler {
    let gate = gate.clone();
    handler_fn(move |conn| {
        while let Some(mut frame) = decode(conn)? {
            if frame.len() > 4 && frame.peek(5)?[4] == b'b' {
                gate.pass();
            }
            conn.append(frame)?;
            conn.flush()?;
        }
        Ok(())
    })
}

#[test]
fn blocked_handlers_do_not_hold_others_up() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let server = case.serve(gated(&gate));
        let blocked = if case.kind == Kind::Custom { 7 } else { 12 };
        let mut stuck: Vec<Peer> = (0..blocked).map(|_| server.connect()).collect();
        for (i, peer) in stuck.iter_mut().enumerate() {
            peer.write_all(&frame(b"block")).unwrap();
            gate.wait_arrived(i + 1);
            // One poller, and it goes on with one more handler blocked.
            let mut other = server.connect();
            other.ping(b"fine");
            other.ping(b"again");
        }
        gate.open();
        for peer in &mut stuck {
            assert_eq!(read_frame(peer).unwrap(), b"block");
        }
        drop(stuck);
        server.stop();
    });
}

#[test]
fn many_blocked_handlers_are_all_run_at_once() {
    // Adaptive has no cap by itself: sixty-four wait at the same time on one poller.
    bounded("64", || {
        let case = Case::new(Transport::Unix, Kind::Adaptive);
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let server = case.serve(gated(&gate));
        let mut stuck: Vec<Peer> = (0..64).map(|_| server.connect()).collect();
        for peer in &mut stuck {
            peer.write_all(&frame(b"block")).unwrap();
        }
        gate.wait_arrived(64);
        server.connect().ping(b"fine");
        gate.open();
        for peer in &mut stuck {
            assert_eq!(read_frame(peer).unwrap(), b"block");
        }
        drop(stuck);
        server.stop();
    });
}

#[test]
fn connections_of_the_same_batch_go_on_when_the_first_handler_blocks() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        for round in 0..10 {
            let gate = Gate::new();
            let _open = OpenOnDrop(gate.clone());
            let server = case.serve(gated(&gate));
            let mut peers: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
            eventually("all are there", || {
                server.event_loop.stats().connected == 20
            });
            for (i, peer) in peers.iter_mut().enumerate() {
                let body: &[u8] = if i == round { b"block" } else { b"fine" };
                peer.write_all(&frame(body)).unwrap();
            }
            for (i, peer) in peers.iter_mut().enumerate() {
                if i != round {
                    assert_eq!(read_frame(peer).unwrap(), b"fine");
                }
            }
            gate.open();
            assert_eq!(read_frame(&mut peers[round]).unwrap(), b"block");
            drop(peers);
            server.stop();
        }
    });
}

#[test]
fn output_goes_on_while_handlers_block() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        const MUCH: usize = 24 << 20;
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let server = case.serve(Script::new().connect(move |conn| {
            conn.write_bytes(vec![1; MUCH].into())?;
            conn.try_flush()?;
            held.pass();
            Ok(())
        }));
        let mut peers: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
        gate.wait_arrived(3);
        for peer in &mut peers {
            peer.read_exact(&mut vec![0; MUCH]).unwrap();
        }
        gate.open();
        drop(peers);
        server.stop();
    });
}

#[test]
fn timers_go_on_while_handlers_block() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let builder = case.builder().idle_timeout(Duration::from_millis(50));
        let server = case.serve_with(builder, gated(&gate));
        let mut stuck = server.connect();
        stuck.write_all(&frame(b"block")).unwrap();
        gate.wait_arrived(1);
        // The idle one is closed although the first handler waits.
        server.connect().expect_end();
        gate.open();
        assert_eq!(read_frame(&mut stuck).unwrap(), b"block");
        drop(stuck);
        server.stop();
    });
}

#[test]
fn handlers_that_wait_for_their_own_input_do_not_hold_others_up() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let server = case.serve(handler_fn(|conn| {
            let head = conn.next(4)?;
            let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            let body = conn.next_bytes(len as usize)?;
            conn.write_slice(&len.to_be_bytes())?;
            conn.write_bytes(body)?;
            conn.flush()
        }));
        let mut slow: Vec<Peer> = (0..6).map(|_| server.connect()).collect();
        for peer in &mut slow {
            peer.write_all(&frame(b"half a message")[..9]).unwrap();
        }
        let mut other = server.connect();
        for _ in 0..50 {
            other.ping(b"fine");
        }
        for peer in &mut slow {
            peer.write_all(&frame(b"half a message")[9..]).unwrap();
            assert_eq!(read_frame(peer).unwrap(), b"half a message");
        }
        drop((slow, other));
        server.stop();
    });
}

/// So that a failed test does not compute for ever.
struct SetOnDrop(Arc<std::sync::atomic::AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// A server on one poller that has a single thread for everything.
fn on_one_thread(handler: impl netpoll::Handler) -> (Server, PollerGroup) {
    let group = PollerGroup::builder()
        .pollers(1)
        .max_threads(1)
        .build()
        .unwrap();
    let builder = EventLoop::builder().pollers(group.clone());
    (Server::start(Transport::Tcp, builder, handler), group)
}

#[test]
fn handlers_on_the_last_thread_get_the_input_they_wait_for() {
    bounded("input", || {
        let (server, group) = on_one_thread(handler_fn(|conn| {
            let head = conn.peek(4)?;
            let length = 4 + u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
            conn.fill(length)?;
            conn.forward(length)?;
            conn.flush()
        }));
        let mut halves = [server.connect(), server.connect()];
        let whole = frame(b"comes in parts");
        for cut in [2, 4, 9] {
            // Both wait for the one thread or for their second part, whoever gets the thread.
            for peer in &mut halves {
                peer.write_all(&whole[..cut]).unwrap();
            }
            eventually("a wait", || group.stats().total().stand_ins > 0);
            for peer in &mut halves {
                peer.write_all(&whole[cut..]).unwrap();
            }
            for peer in &mut halves {
                assert_eq!(read_frame(peer).unwrap(), b"comes in parts");
            }
        }
        assert_eq!(group.stats().workers.peak_threads, 1);
        drop(halves);
        server.stop();
        group.close();
    });
}

#[test]
fn handlers_on_the_last_thread_get_the_room_they_wait_for() {
    bounded("room", || {
        const MUCH: usize = 24 << 20;
        let flushed = Log::new();
        let done = flushed.clone();
        let (server, group) = on_one_thread(handler_fn(move |conn| {
            conn.skip(1)?;
            conn.write_bytes(vec![7; MUCH].into())?;
            let sent = conn.flush();
            done.push(sent.is_ok());
            sent
        }));
        let mut peer = server.connect();
        peer.write_all(b"x").unwrap();
        eventually("a wait", || group.stats().total().stand_ins > 0);
        let mut got = vec![0; MUCH];
        peer.read_exact(&mut got).unwrap();
        assert_eq!(flushed.wait_len(1), [true]);
        drop(peer);
        server.stop();
        group.close();
    });
}

#[test]
fn handlers_on_the_last_thread_learn_of_timeouts_and_of_the_end() {
    bounded("ends", || {
        let ends = Log::new();
        let seen = ends.clone();
        let (server, group) = on_one_thread(handler_fn(move |conn| {
            if conn.next(1)? == b"t" {
                conn.set_read_timeout(Some(Duration::from_millis(20)));
            }
            let error = conn.fill(1000).unwrap_err();
            seen.push(matches!(Error::from_io(&error), Some(Error::ReadTimeout)));
            Err(error)
        }));
        let mut peer = server.connect();
        peer.write_all(b"t").unwrap();
        assert_eq!(ends.wait_len(1), [true], "a timeout");
        let mut peer = server.connect();
        let looks = group.stats().total().stand_ins;
        peer.write_all(b"e").unwrap();
        eventually("a wait", || group.stats().total().stand_ins > looks);
        drop(peer);
        assert_eq!(ends.wait_len(2), [true, false]);
        server.stop();
        group.close();
    });
}

#[test]
fn handlers_that_compute_for_long_do_not_hold_others_up() {
    // No call of ours tells that it will take long.
    bounded("compute", || {
        let case = Case::new(Transport::Tcp, Kind::Adaptive);
        let busy = Arc::new(AtomicUsize::new(0));
        let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (count, ended) = (Arc::clone(&busy), Arc::clone(&over));
        let _end = SetOnDrop(Arc::clone(&over));
        let server = case.serve(handler_fn(move |conn| {
            while let Some(mut frame) = decode(conn)? {
                if frame.peek(5)?[4] == b'b' {
                    count.fetch_add(1, SeqCst);
                    while !ended.load(SeqCst) {
                        std::hint::spin_loop();
                    }
                }
                conn.append(frame)?;
                conn.flush()?;
            }
            Ok(())
        }));
        let mut stuck = server.connect();
        stuck.write_all(&frame(b"block")).unwrap();
        eventually("it computes", || busy.load(SeqCst) == 1);
        let mut other = server.connect();
        for _ in 0..20 {
            other.ping(b"fine");
        }
        over.store(true, SeqCst);
        assert_eq!(read_frame(&mut stuck).unwrap(), b"block");
        drop((stuck, other));
        server.stop();
    });
}

#[test]
fn handlers_that_sleep_now_and_then_leave_every_answer_right() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let nth = AtomicUsize::new(0);
        let server = Arc::new(case.serve(handler_fn(move |conn| {
            while let Some(frame) = decode(conn)? {
                if nth.fetch_add(1, SeqCst) % 50 == 0 {
                    thread::sleep(Duration::from_millis(3));
                }
                conn.append(frame)?;
                conn.flush()?;
            }
            Ok(())
        })));
        let clients: Vec<_> = (0..8u8)
            .map(|i| {
                let server = Arc::clone(&server);
                thread::spawn(move || {
                    let mut peer = server.connect();
                    for round in 0..100u8 {
                        peer.ping(&[i, round]);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().unwrap();
        }
    });
}

// ------------------------------------------------------------------------------------ chains

/// A server whose handler dials the server itself, to a depth that the request says.
fn chain(builder: netpoll::EventLoopBuilder, dialer: Dialer, transport: Transport) -> Server {
    let own: Arc<OnceLock<Address>> = Arc::default();
    let address = Arc::clone(&own);
    let server = Server::start(
        transport,
        builder,
        handler_fn(move |conn| {
            while let Some(depth) = conn.try_next(1)? {
                let depth = depth[0];
                let mut answer = 0;
                if depth > 0 {
                    let mut next = dialer.dial_connection(address.get().unwrap().clone())?;
                    next.write_u8(depth - 1)?;
                    next.flush()?;
                    answer = next.read_u8()? + 1;
                }
                conn.write_u8(answer)?;
                conn.flush()?;
            }
            Ok(())
        }),
    );
    own.set(server.address.clone()).unwrap();
    server
}

#[test]
fn a_handler_may_dial_its_own_loop_with_one_poller_and_one_worker() {
    for transport in [Transport::Tcp, Transport::Unix] {
        for kind in [Kind::Adaptive, Kind::OneWorker] {
            bounded(&format!("{transport:?} {kind:?}"), move || {
                let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
                let dialer = Dialer::new()
                    .pollers(group.clone())
                    .connect_timeout(LIMIT)
                    .read_timeout(LIMIT);
                let builder = EventLoop::builder()
                    .pollers(group.clone())
                    .dispatch(kind.dispatch());
                let server = chain(builder, dialer, transport);
                // With one worker the innermost call needs a second thread.
                let depth = if kind == Kind::OneWorker { 0 } else { 8 };
                let mut peer = server.connect();
                for _ in 0..5 {
                    peer.write_all(&[depth]).unwrap();
                    let mut answer = [0];
                    peer.read_exact(&mut answer).unwrap();
                    assert_eq!(answer, [depth]);
                }
                drop(peer);
                server.stop();
                group.close();
            });
        }
    }
}

#[test]
fn a_handler_on_the_only_worker_may_call_another_loop_of_the_same_poller() {
    for kind in [Kind::OneWorker, Kind::Adaptive, Kind::Custom] {
        bounded(&format!("{kind:?}"), move || {
            // The only worker is meant to be waited for, for as long as the machine takes.
            let group = PollerGroup::builder()
                .pollers(1)
                .overload_after(None)
                .build()
                .unwrap();
            let backend = Server::start(
                Transport::Tcp,
                EventLoop::builder()
                    .overload_after(None)
                    .pollers(group.clone())
                    .dispatch(Kind::OneWorker.dispatch()),
                echo(),
            );
            let address = backend.address.clone();
            let dialer = Dialer::new().pollers(group.clone()).read_timeout(LIMIT);
            let builder = EventLoop::builder()
                .pollers(group.clone())
                .dispatch(kind.dispatch());
            // Under Adaptive the group says it.
            let builder = match kind {
                Kind::Adaptive => builder,
                _ => builder.overload_after(None),
            };
            let proxy = Server::start(
                Transport::Tcp,
                builder,
                handler_fn(move |conn| {
                    while let Some(request) = decode(conn)? {
                        let len = request.len();
                        let mut next = dialer.dial_connection(address.clone())?;
                        next.append(request)?;
                        next.flush()?;
                        conn.append(next.slice(len)?)?;
                        conn.flush()?;
                    }
                    Ok(())
                }),
            );
            let mut peers: Vec<Peer> = (0..4).map(|_| proxy.connect()).collect();
            for round in 0..10u8 {
                for (i, peer) in peers.iter_mut().enumerate() {
                    peer.write_all(&frame(&[round, i as u8])).unwrap();
                }
                for (i, peer) in peers.iter_mut().enumerate() {
                    assert_eq!(read_frame(peer).unwrap(), [round, i as u8]);
                }
            }
            drop(peers);
            proxy.stop();
            backend.stop();
            group.close();
        });
    }
}

#[test]
fn dials_are_possible_in_every_callback() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let group = PollerGroup::new(1, netpoll::Balance::default()).unwrap();
        let backend = Server::start(
            Transport::Tcp,
            EventLoop::builder().pollers(group.clone()),
            echo(),
        );
        let dialer = Dialer::new().pollers(group.clone()).read_timeout(LIMIT);
        let done = Log::new();
        let call = {
            let (address, done) = (backend.address.clone(), done.clone());
            move |from: &'static str| -> io::Result<()> {
                let mut conn = dialer.dial_connection(address.clone())?;
                conn.write_slice(&frame(from.as_bytes()))?;
                conn.flush()?;
                assert_eq!(&conn.next(4 + from.len())?[4..], from.as_bytes());
                done.push(from);
                Ok(())
            }
        };
        let [c1, c2, c3, c4, c5] = [(); 5].map(|()| call.clone());
        let builder = EventLoop::builder()
            .pollers(group.clone())
            .dispatch(case.kind.dispatch());
        let server = case.serve_with(
            builder,
            Script::new()
                .prepare(move |conn| {
                    let c5 = c5.clone();
                    conn.on_close(move |_| c5("close callback").unwrap());
                    c1("prepare")
                })
                .connect(move |_| c2("connect"))
                .request(move |conn| {
                    c3("request")?;
                    echo_frames(conn)
                })
                .disconnect(move |_, _| c4("disconnect").unwrap()),
        );
        for round in 1..=5 {
            server.connect().ping(b"x");
            done.wait_len(round * 5);
        }
        let expected = [
            "prepare",
            "connect",
            "request",
            "disconnect",
            "close callback",
        ];
        for round in done.take().chunks(5) {
            assert_eq!(round, expected);
        }
        server.stop();
        backend.stop();
        group.close();
    });
}

#[test]
fn a_handler_may_start_and_stop_another_loop() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let server = case.serve(handler_fn(|conn| {
            while let Some(frame) = decode(conn)? {
                let inner = Case::new(Transport::Unix, Kind::Adaptive).serve(echo());
                inner.connect().ping(b"inside");
                // A callback must not wait for a loop, not even another's.
                let address = inner.address.clone();
                let event_loop = inner.event_loop.clone();
                thread::spawn(move || event_loop.shutdown(LIMIT))
                    .join()
                    .unwrap()?;
                assert!(Peer::connect(&address).is_err());
                conn.append(frame)?;
            }
            conn.flush()
        }));
        let mut peer = server.connect();
        peer.ping(b"one");
        peer.ping(b"two");
        drop(peer);
        server.stop();
    });
}

// ---------------------------------------------------------------------------------- fairness

#[test]
fn a_flood_does_not_starve_the_others() {
    every(|case| flood(case.transport, case.builder()));
}

#[test]
fn a_task_ends_when_its_connection_has_had_its_share() {
    const SHARE: usize = 16 << 10;
    struct Send(Mutex<mpsc::Sender<DispatchTask>>);
    impl Executor for Send {
        fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
            let sender = self.0.lock().unwrap();
            sender.send(task).map_err(|unsent| unsent.0)
        }
    }
    for transport in [Transport::Tcp, Transport::Unix] {
        bounded("share", move || {
            let gate = Gate::new();
            let _open = OpenOnDrop(gate.clone());
            let total = Arc::new(AtomicUsize::new(0));
            let (held, sum, taken) = (gate.clone(), Arc::clone(&total), Arc::clone(&total));
            let (sender, tasks) = mpsc::channel::<DispatchTask>();
            let runner = thread::spawn(move || {
                let mut most = 0;
                for task in tasks {
                    let before = taken.load(SeqCst);
                    task.run();
                    most = most.max(taken.load(SeqCst) - before);
                }
                most
            });
            let builder = EventLoop::builder()
                .pollers(1)
                .input_limits(SHARE, SHARE)
                .dispatch(Dispatch::Custom(Arc::new(Send(Mutex::new(sender)))));
            let server = Server::start(
                transport,
                builder,
                handler_fn(move |conn| {
                    held.pass();
                    sum.fetch_add(conn.available(), SeqCst);
                    conn.skip(conn.available())
                }),
            );
            let mut peer = server.connect();
            peer.write_all(b"x").unwrap();
            gate.wait_arrived(1);
            // All that the system takes is there before the handler goes on.
            let sent = 1 + peer.flood(usize::MAX);
            assert!(sent > 10 * SHARE);
            gate.open();
            eventually("all of it", || total.load(SeqCst) == sent);
            drop(peer);
            server.stop();
            // A receive brings more than the share, but not much.
            let most = runner.join().unwrap();
            assert!(most <= 8 * SHARE, "{most}");
        });
    }
}

#[test]
fn an_executor_may_refuse_whatever_comes_again() {
    /// Takes every second task.
    struct Now(Threads, AtomicUsize);
    impl Executor for Now {
        fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
            if self.1.fetch_add(1, SeqCst) % 2 == 0 {
                self.0.execute(task)
            } else {
                Err(task)
            }
        }
    }
    bounded("refuses", || {
        let executor = Now(Threads::new(1), AtomicUsize::new(0));
        let builder = EventLoop::builder()
            .pollers(1)
            .dispatch(Dispatch::Custom(Arc::new(executor)));
        flood(Transport::Tcp, builder);
    });
}

/// Two peers that send without a pause, and five that want answers.
fn flood(transport: Transport, builder: netpoll::EventLoopBuilder) {
    let total = Arc::new(AtomicUsize::new(0));
    let sum = Arc::clone(&total);
    // The first byte of a connection says what it is.
    let server = Server::start(
        transport,
        builder,
        handler_fn(move |conn| {
            if conn.stats().bytes_out == 0 && conn.try_peek(1)?.is_some_and(|b| b[0] == 0xFF) {
                let n = conn.available();
                sum.fetch_add(n, SeqCst);
                // All but the byte that marks it.
                return conn.skip(n - 1);
            }
            echo_frames(conn)
        }),
    );
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let floods: Vec<_> = (0..2)
        .map(|_| {
            let mut flood = server.connect();
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let chunk = vec![0xFF; 256 << 10];
                while !stop.load(SeqCst) {
                    flood.write_all(&chunk).unwrap();
                }
            })
        })
        .collect();
    eventually("the flood", || total.load(SeqCst) > 1 << 20);
    let mut peers: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
    for _ in 0..40 {
        for peer in &mut peers {
            peer.ping(b"my turn");
        }
    }
    stop.store(true, SeqCst);
    for flood in floods {
        flood.join().unwrap();
    }
    drop(peers);
    server.stop();
}

// ------------------------------------------------------------------- pollers that end beneath

#[test]
fn turns_that_wait_for_a_thread_when_their_poller_ends_are_made() {
    bounded("ends", || {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let held = gate.clone();
        let ends = Log::new();
        let log = ends.clone();
        let group = PollerGroup::builder()
            .pollers(1)
            .max_threads(1)
            .build()
            .unwrap();
        let server = Server::start(
            Transport::Tcp,
            EventLoop::builder().pollers(group.clone()),
            Script::new()
                .request(move |conn| {
                    if conn.peek(5)?[4] == b'b' {
                        held.pass();
                    }
                    echo_frames(conn)
                })
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut peers: Vec<Peer> = (0..5).map(|_| server.connect()).collect();
        eventually("all are there", || server.event_loop.stats().connected == 5);
        peers[0].write_all(&frame(b"block")).unwrap();
        gate.wait_arrived(1);
        for peer in &mut peers[1..] {
            peer.write_all(&frame(b"waits")).unwrap();
        }
        let told = group.stats().total().events;
        eventually("their turns", || group.stats().total().events >= told + 4);
        let closing = thread::spawn({
            let group = group.clone();
            move || group.close()
        });
        eventually("the close", || group.is_closed());
        gate.open();
        closing.join().unwrap();
        assert_eq!(ends.wait_len(5), [CloseReason::Poller; 5]);
        server.stop();
    });
}

#[test]
fn a_stream_ends_with_its_poller() {
    on_tcp(&[Kind::Adaptive, Kind::Workers, Kind::Custom], |case| {
        let group = PollerGroup::builder().pollers(1).build().unwrap();
        let (ends, total) = (Log::new(), Arc::new(AtomicUsize::new(0)));
        let (log, sum) = (ends.clone(), Arc::clone(&total));
        let server = case.serve_with(
            case.builder().pollers(group.clone()),
            Script::new()
                .request(move |conn| {
                    sum.fetch_add(conn.available(), SeqCst);
                    conn.skip(conn.available())
                })
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut peer = server.connect();
        let sending = thread::spawn(move || {
            let chunk = vec![0; 256 << 10];
            while peer.write_all(&chunk).is_ok() {}
        });
        eventually("the stream", || total.load(SeqCst) > 8 << 20);
        group.close();
        assert_eq!(ends.wait_len(1), [CloseReason::Poller]);
        sending.join().unwrap();
        server.stop();
    });
}

// --------------------------------------------------------------------------------- executors

#[test]
fn an_executor_that_refuses_leaves_the_task_to_the_loop() {
    struct Never(AtomicUsize);
    impl Executor for Never {
        fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
            self.0.fetch_add(1, SeqCst);
            Err(task)
        }
    }
    bounded("refuses", || {
        let executor = Arc::new(Never(AtomicUsize::new(0)));
        let dispatch = Dispatch::Custom(Arc::clone(&executor) as Arc<dyn Executor>);
        let builder = EventLoop::builder().pollers(1).dispatch(dispatch);
        let server = Server::start(Transport::Tcp, builder, echo());
        let mut peer = server.connect();
        for _ in 0..20 {
            peer.ping(b"all the same");
        }
        drop(peer);
        server.stop();
        // A turn that is still running sees the next message itself.
        assert!(executor.0.load(SeqCst) >= 1);
    });
}

#[test]
fn a_task_that_is_dropped_closes_its_connection_only() {
    struct Sometimes(AtomicUsize);
    impl Executor for Sometimes {
        fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
            // The third is the first request behind two connects.
            if self.0.fetch_add(1, SeqCst) == 2 {
                drop(task);
                return Ok(());
            }
            Err(task)
        }
    }
    bounded("drops", || {
        let ends = Log::new();
        let log = ends.clone();
        let executor = Arc::new(Sometimes(AtomicUsize::new(0)));
        let builder = EventLoop::builder()
            .pollers(1)
            .dispatch(Dispatch::Custom(executor));
        let server = Server::start(
            Transport::Tcp,
            builder,
            Script::new()
                .request(echo_frames)
                .disconnect(move |_, reason| log.push(reason)),
        );
        let mut victim = server.connect();
        eventually("one", || server.event_loop.stats().connected == 1);
        let mut other = server.connect();
        eventually("two", || server.event_loop.stats().connected == 2);
        victim.write_all(&frame(b"x")).unwrap();
        victim.expect_gone();
        assert_eq!(ends.wait_len(1), [CloseReason::HandlerError]);
        other.ping(b"fine");
        drop(other);
        server.stop();
    });
}

/// What an executor does with the next task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whim {
    Drop,
    Panic,
    /// Keeps it, and panics.
    KeepAndPanic,
    Keep,
    /// Has it run, and drops the one that was kept.
    Evict,
    /// Has it run, and gives back the one that was kept.
    Return,
    /// Runs it at once, on the thread that polls.
    Here,
}

/// Two threads, and a whim for the next task.
struct Whimsical {
    threads: Threads,
    next: Mutex<Option<Whim>>,
    kept: Mutex<Option<DispatchTask>>,
}

impl Executor for Whimsical {
    fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
        let next = self.next.lock().unwrap().take();
        let kept = || self.kept.lock().unwrap().take();
        match next {
            None => self.threads.execute(task)?,
            Some(Whim::Drop) => drop(task),
            Some(Whim::Panic) => panic!("as asked"),
            Some(Whim::KeepAndPanic) => {
                *self.kept.lock().unwrap() = Some(task);
                panic!("as asked");
            }
            Some(Whim::Keep) => *self.kept.lock().unwrap() = Some(task),
            Some(Whim::Evict) => {
                self.threads.execute(task)?;
                drop(kept());
            }
            Some(Whim::Return) => {
                self.threads.execute(task)?;
                return Err(kept().expect("one was kept"));
            }
            Some(Whim::Here) => task.run(),
        }
        Ok(())
    }
}

/// An executor, a loop with one poller, and what became of its connections.
fn whimsical(gate: &Gate) -> (Arc<Whimsical>, Server, Log<CloseReason>) {
    const SOON: Duration = Duration::from_millis(20);
    let executor = Arc::new(Whimsical {
        threads: Threads::new(2),
        next: Mutex::default(),
        kept: Mutex::default(),
    });
    let reasons = Log::new();
    let (log, held) = (reasons.clone(), gate.clone());
    let builder = EventLoop::builder()
        .pollers(1)
        .overload_after(SOON)
        .dispatch(Dispatch::Custom(Arc::clone(&executor) as Arc<dyn Executor>));
    let script = Script::new()
        .request(|conn| {
            while let Some(mut frame) = decode(conn)? {
                if frame.peek(5)?[4] == b'w' {
                    conn.fill(1)?;
                }
                conn.append(frame)?;
                conn.flush()?;
            }
            Ok(())
        })
        .disconnect(move |_, reason| {
            log.push(reason);
            if reason != CloseReason::Peer {
                assert!(!poller::is_polling_thread());
                held.pass();
            }
        });
    let server = Server::start(Transport::Tcp, builder, script);
    (executor, server, reasons)
}

/// Waits until no turn is under way that could see by itself what comes next.
fn at_rest(server: &Server) {
    eventually("no turn", || server.event_loop.stats().holding.is_empty());
}

#[test]
fn a_turn_that_is_dropped_while_polling_may_wait() {
    let whims = [
        Whim::Drop,
        Whim::Panic,
        Whim::Evict,
        Whim::Return,
        Whim::KeepAndPanic,
    ];
    for whim in whims {
        bounded(&format!("{whim:?}"), move || {
            let gate = Gate::new();
            let _open = OpenOnDrop(gate.clone());
            let (executor, server, reasons) = whimsical(&gate);
            let set = |whim| *executor.next.lock().unwrap() = Some(whim);
            let mut other = server.connect();
            other.ping(b"before");
            let mut victim = server.connect();
            victim.ping(b"before");
            let keeps = matches!(whim, Whim::Evict | Whim::Return);
            at_rest(&server);
            set(if keeps { Whim::Keep } else { whim });
            victim.write_all(&frame(b"x")).unwrap();
            if keeps || whim == Whim::KeepAndPanic {
                eventually("it is kept", || executor.kept.lock().unwrap().is_some());
            }
            if keeps {
                set(whim);
                other.ping(b"now");
            }
            if whim == Whim::KeepAndPanic {
                // Nothing has become of it yet.
                executor.kept.lock().unwrap().take().unwrap().run();
                assert_eq!(read_frame(&mut victim).unwrap(), b"x");
                victim.ping(b"after");
                assert_eq!(server.event_loop.stats().panics, 1);
            } else {
                victim.expect_gone();
                gate.wait_arrived(1);
                // Its end waits, and polling goes on.
                for _ in 0..10 {
                    other.ping(b"after");
                    server.connect().ping(b"new");
                }
                let told = reasons
                    .all()
                    .into_iter()
                    .filter(|r| *r != CloseReason::Peer);
                assert_eq!(told.collect::<Vec<_>>(), [CloseReason::HandlerError]);
                gate.open();
                assert_eq!(
                    server.event_loop.stats().panics,
                    u64::from(whim == Whim::Panic)
                );
            }
            drop((other, victim));
            server.stop();
        });
    }
}

#[test]
fn tasks_that_are_not_run_end_no_waits() {
    bounded("waits", || {
        let gate = Gate::new();
        gate.open();
        let (executor, server, _) = whimsical(&gate);
        let set = |whim| *executor.next.lock().unwrap() = Some(whim);
        for whim in [Whim::Drop, Whim::Panic, Whim::Evict, Whim::Return] {
            let mut victim = server.connect();
            victim.ping(b"before");
            let mut other = server.connect();
            other.ping(b"before");
            let keeps = matches!(whim, Whim::Evict | Whim::Return);
            at_rest(&server);
            set(if keeps { Whim::Keep } else { whim });
            victim.write_all(&frame(b"x")).unwrap();
            if keeps {
                eventually("it is kept", || executor.kept.lock().unwrap().is_some());
                set(whim);
                other.ping(b"now");
            }
            victim.expect_gone();
        }
        let mut peer = server.connect();
        peer.ping(b"before");
        at_rest(&server);
        set(Whim::Here);
        peer.ping(b"here");
        eventually("the others' ends", || server.event_loop.stats().active == 1);
        // All that was handed over has started or is gone: nothing waits for the thread of this handler.
        peer.write_all(&frame(b"wait")).unwrap();
        eventually("it waits", || {
            let holding = server.event_loop.stats().holding;
            holding.len() == 1 && holding[0].time >= Duration::from_millis(200)
        });
        peer.write_all(&frame(b"more")).unwrap();
        assert_eq!(read_frame(&mut peer).unwrap(), b"wait");
        assert_eq!(read_frame(&mut peer).unwrap(), b"more");
        assert_eq!(server.event_loop.stats().overloaded, 0);
        drop(peer);
        server.stop();
    });
}

#[test]
fn an_executor_may_keep_tasks_for_later() {
    struct Later(Mutex<Vec<DispatchTask>>);
    impl Executor for Later {
        fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
            self.0.lock().unwrap().push(task);
            Ok(())
        }
    }
    bounded("later", || {
        let executor = Arc::new(Later(Mutex::default()));
        let dispatch = Dispatch::Custom(Arc::clone(&executor) as Arc<dyn Executor>);
        let builder = EventLoop::builder().pollers(1).dispatch(dispatch);
        let server = Server::start(Transport::Tcp, builder, echo());
        let mut peer = server.connect();
        let run = || {
            eventually("a task", || !executor.0.lock().unwrap().is_empty());
            let tasks = std::mem::take(&mut *executor.0.lock().unwrap());
            // One connection has one task at most, whatever happened meanwhile.
            assert_eq!(tasks.len(), 1);
            for task in tasks {
                task.run();
            }
        };
        run();
        for byte in frame(b"one") {
            peer.write_all(&[byte]).unwrap();
        }
        peer.write_all(&frame(b"two")).unwrap();
        let deadline = std::time::Instant::now() + LIMIT;
        let mut replies = Vec::new();
        peer.set_limit(Some(Duration::from_millis(5)));
        while replies.len() < 14 {
            assert!(std::time::Instant::now() < deadline);
            let tasks = std::mem::take(&mut *executor.0.lock().unwrap());
            assert!(tasks.len() <= 1);
            tasks.into_iter().for_each(DispatchTask::run);
            let mut part = [0; 100];
            if let Ok(n) = peer.read(&mut part) {
                replies.extend_from_slice(&part[..n]);
            }
        }
        assert_eq!(replies, [frame(b"one"), frame(b"two")].concat());
        drop(peer);
        run();
        assert_eq!(server.event_loop.stats().closed, 1);
        server.stop();
    });
}

#[test]
fn workers_run_no_more_handlers_at_once_than_they_are() {
    bounded("max", || {
        let now = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let (at, top) = (Arc::clone(&now), Arc::clone(&most));
        let dispatch = Dispatch::Workers {
            max: 3,
            keep_alive: Duration::from_secs(1),
        };
        let server = Server::start(
            Transport::Tcp,
            EventLoop::builder().pollers(2).dispatch(dispatch),
            handler_fn(move |conn| {
                top.fetch_max(at.fetch_add(1, SeqCst) + 1, SeqCst);
                thread::sleep(Duration::from_millis(1));
                at.fetch_sub(1, SeqCst);
                echo_frames(conn)
            }),
        );
        let mut peers: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
        for _ in 0..5 {
            for peer in &mut peers {
                peer.write_all(&frame(b"x")).unwrap();
            }
            for peer in &mut peers {
                assert_eq!(read_frame(peer).unwrap(), b"x");
            }
        }
        assert!(most.load(SeqCst) <= 3, "{} at once", most.load(SeqCst));
        drop(peers);
        server.stop();
    });
}

#[test]
fn workers_without_a_thread_are_an_error() {
    let dispatch = Dispatch::Workers {
        max: 0,
        keep_alive: Duration::from_secs(1),
    };
    let error = EventLoop::builder()
        .dispatch(dispatch)
        .build(echo())
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    assert!(matches!(
        Error::from_io(&error),
        Some(Error::Unsupported(_))
    ));
}

#[test]
fn an_idle_server_uses_no_processor_time() {
    in_child("an_idle_server_uses_no_processor_time", || {
        for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
            let server = Case::new(Transport::Tcp, kind).serve(echo());
            let mut peers: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
            for peer in &mut peers {
                peer.ping(b"x");
                peer.write_all(&frame(b"partial")[..6]).unwrap();
            }
            eventually("the bytes", || server.event_loop.stats().connected == 20);
            // What is measured is the lack of activity, so there is nothing to wait for; what the
            // requests began may still end in the first rounds.
            let round = || {
                let before = crate::support::cpu_time();
                let_pass(Duration::from_millis(300));
                crate::support::cpu_time() - before
            };
            let least = (0..5).map(|_| round()).min().unwrap();
            assert!(
                least <= Duration::from_millis(10),
                "{least:?} of 300 ms with {kind:?}"
            );
        }
    });
}

#[test]
fn blocked_threads_leave_after_their_work() {
    in_child("blocked_threads_leave_after_their_work", || {
        let group = PollerGroup::builder()
            .pollers(1)
            .keep_alive(Duration::from_millis(50))
            .build()
            .unwrap();
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let builder = EventLoop::builder().pollers(group.clone());
        let server = Server::start(Transport::Tcp, builder, gated(&gate));
        server.connect().ping(b"x");
        let mut stuck: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
        for peer in &mut stuck {
            peer.write_all(&frame(b"block")).unwrap();
        }
        gate.wait_arrived(20);
        let many = crate::support::threads();
        assert!(many > 20, "{many} threads");
        gate.open();
        for peer in &mut stuck {
            assert_eq!(read_frame(peer).unwrap(), b"block");
        }
        crate::support::settled_threads(many - 18);
        server.connect().ping(b"still");
        drop(stuck);
        server.stop();
        group.close();
    });
}

#[test]
fn workers_without_work_leave() {
    in_child("workers_without_work_leave", || {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let dispatch = Dispatch::Workers {
            max: 10,
            keep_alive: Duration::from_millis(50),
        };
        let builder = EventLoop::builder().pollers(1).dispatch(dispatch);
        let server = Server::start(Transport::Tcp, builder, gated(&gate));
        let mut stuck: Vec<Peer> = (0..15).map(|_| server.connect()).collect();
        for peer in &mut stuck {
            peer.write_all(&frame(b"block")).unwrap();
        }
        gate.wait_arrived(10);
        assert_eq!(crate::support::handler_threads("netpoll-worker"), 10);
        gate.open();
        for peer in &mut stuck {
            assert_eq!(read_frame(peer).unwrap(), b"block");
        }
        eventually("they leave", || {
            crate::support::handler_threads("netpoll-worker") <= 1
        });
        // And come back when there is work.
        server.connect().ping(b"x");
        drop(stuck);
        server.stop();
        eventually("all are gone", || {
            crate::support::handler_threads("netpoll-worker") == 0
        });
    });
}

//! Every thread is taken: what goes on all the same.

use crate::support::{
    Gate, LIMIT, Log, OpenOnDrop, Peer, Script, Server, Threads, Transport, bounded, decode,
    eventually, frame, let_pass, read_frame,
};
use netpoll::{
    Address, CloseReason, Connection, ConnectionHandle, Dialer, Dispatch, DispatchTask, Error,
    EventLoop, EventLoopBuilder, Executor, Handler, LinkBuffer, OnFull, PollerGroup, Pool,
    RelayEnd, relay,
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

/// The most threads for handlers.
const MOST: usize = 3;
/// When turns are overdue, where they can be.
const SOON: Duration = Duration::from_millis(20);

/// Where handlers run in these tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On the threads of the pollers.
    Adaptive,
    /// As that, with as many pollers as threads.
    Pollers,
    Workers,
    Executor,
}

const PLACES: [Place; 4] = [
    Place::Adaptive,
    Place::Pollers,
    Place::Workers,
    Place::Executor,
];

/// A server whose handlers have [`MOST`] threads, and its pollers.
struct Capped {
    server: Server,
    group: PollerGroup,
}

impl Place {
    /// The threads of the pollers, and how to build a loop on them. Nothing is ever overdue.
    fn builder(self) -> (PollerGroup, EventLoopBuilder) {
        self.builder_with(None)
    }

    fn builder_with(self, overload_after: Option<Duration>) -> (PollerGroup, EventLoopBuilder) {
        let group = PollerGroup::builder()
            .pollers(if self == Self::Pollers { MOST } else { 1 })
            .max_threads(MOST)
            .overload_after(overload_after)
            .build()
            .unwrap();
        let dispatch = match self {
            Self::Adaptive | Self::Pollers => Dispatch::Adaptive,
            Self::Workers => Dispatch::Workers {
                max: MOST,
                keep_alive: Duration::from_secs(5),
            },
            Self::Executor => Dispatch::Custom(Arc::new(Threads::new(MOST))),
        };
        let builder = EventLoop::builder().pollers(group.clone());
        let builder = match self {
            Self::Workers | Self::Executor => builder.overload_after(overload_after),
            Self::Adaptive | Self::Pollers => builder,
        };
        (group, builder.dispatch(dispatch))
    }

    fn serve(self, transport: Transport, handler: impl Handler) -> Capped {
        let (group, builder) = self.builder();
        let server = Server::start(transport, builder, handler);
        Capped { server, group }
    }

    /// As [`serve`](Self::serve), and turns are overdue after a moment.
    fn serve_in_haste(
        self,
        transport: Transport,
        handler: impl Handler,
        change: impl FnOnce(EventLoopBuilder) -> EventLoopBuilder,
    ) -> Capped {
        let (group, builder) = self.builder_with(Some(SOON));
        let server = Server::start(transport, change(builder), handler);
        Capped { server, group }
    }
}

impl Capped {
    fn stop(self) {
        self.server.stop();
        self.group.close();
    }
}

/// Runs a test in every place, over TCP and unix sockets.
#[track_caller]
fn everywhere(test: impl Fn(Place, Transport) + Send + Sync + Copy + 'static) {
    for place in PLACES {
        for transport in [Transport::Tcp, Transport::Unix] {
            bounded(&format!("{place:?} {transport:?}"), move || {
                test(place, transport);
            });
        }
    }
}

/// Runs a test wherever the library has the threads.
#[track_caller]
fn on_our_threads(test: impl Fn(Place, Transport) + Send + Sync + Copy + 'static) {
    everywhere(move |place, transport| {
        if place != Place::Executor {
            test(place, transport);
        }
    });
}

/// Echoes; a frame that begins with `b` waits at the gate first, which is no wait in a call of ours.
fn gated(gate: &Gate) -> Script {
    let gate = gate.clone();
    Script::new().request(move |conn| {
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

/// As [`gated`], and gives the handles of its connections away.
fn giving_gated(gate: &Gate, handles: &Log<ConnectionHandle>) -> Script {
    let handles = handles.clone();
    gated(gate).connect(move |conn| {
        handles.push(conn.handle());
        Ok(())
    })
}

/// Twice as many peers as there are threads: the handlers of half of them take every thread.
fn take_every_thread(server: &Server, gate: &Gate) -> Vec<Peer> {
    let before = server.event_loop.stats().connected;
    let mut peers: Vec<Peer> = (0..2 * MOST).map(|_| server.connect()).collect();
    eventually("all are there", || {
        server.event_loop.stats().connected == before + 2 * MOST as u64
    });
    for peer in &mut peers {
        peer.write_all(&frame(b"block")).unwrap();
    }
    gate.wait_arrived(MOST);
    peers
}

/// Opens the gate: all are answered.
fn release(gate: &Gate, peers: Vec<Peer>) {
    gate.open();
    for mut peer in peers {
        assert_eq!(read_frame(&mut peer).unwrap(), b"block");
    }
}

#[test]
fn connections_are_accepted_while_every_thread_is_taken() {
    everywhere(|place, transport| {
        const MORE: usize = 200;
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let prepared = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&prepared);
        let capped = place.serve(
            transport,
            gated(&gate).prepare(move |_| {
                count.fetch_add(1, SeqCst);
                Ok(())
            }),
        );
        let server = &capped.server;
        let taken = take_every_thread(server, &gate);
        // More than the kernel keeps for a listener that does not accept.
        let mut more: Vec<Peer> = (0..MORE).map(|_| server.connect()).collect();
        let all = 2 * MOST + MORE;
        eventually("all of them", || prepared.load(SeqCst) == all);
        assert_eq!(server.event_loop.stats().accepted, all as u64);
        for peer in &mut more {
            peer.write_all(&frame(b"fine")).unwrap();
        }
        assert_eq!(gate.arrived(), MOST, "no other handler got a thread");
        release(&gate, taken);
        for peer in &mut more {
            assert_eq!(read_frame(peer).unwrap(), b"fine");
        }
        drop(more);
        capped.stop();
    });
}

#[test]
fn peers_that_leave_are_let_go_while_every_thread_is_taken() {
    on_our_threads(|place, transport| {
        const IDLE: usize = 200;
        let (gate, held) = (Gate::new(), Gate::new());
        let _open = (OpenOnDrop(gate.clone()), OpenOnDrop(held.clone()));
        let reasons = Log::new();
        let (log, end) = (reasons.clone(), held.clone());
        let first = AtomicUsize::new(0);
        let capped = place.serve(
            transport,
            gated(&gate).disconnect(move |_, reason| {
                // Two ends wait: others, and whom accepting is for, do not wait for them.
                if first.fetch_add(1, SeqCst) == IDLE {
                    end.pass();
                }
                log.push(reason);
            }),
        );
        let server = &capped.server;
        let idle: Vec<Peer> = (0..IDLE).map(|_| server.connect()).collect();
        let last: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
        eventually("all are there", || {
            server.event_loop.stats().connected == IDLE as u64 + 3
        });
        let taken = take_every_thread(server, &gate);
        drop(idle);
        for reason in reasons.wait_len(IDLE) {
            assert_eq!(reason, CloseReason::Peer);
        }
        let open = || server.event_loop.stats().active;
        eventually("their descriptors", || open() == 3 + 2 * MOST);
        // One that waits in its end holds up neither the other ends nor accepting.
        drop(last);
        held.wait_arrived(1);
        reasons.wait_len(IDLE + 2);
        let before = server.event_loop.stats().accepted;
        let more: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
        eventually("the others", || {
            server.event_loop.stats().accepted == before + 20
        });
        assert_eq!(gate.arrived(), MOST, "no other handler got a thread");
        held.open();
        release(&gate, taken);
        drop(more);
        capped.stop();
    });
}

#[test]
fn an_on_prepare_that_waits_holds_neither_others_nor_the_end_up() {
    everywhere(|place, transport| {
        let (gate, prepare) = (Gate::new(), Gate::new());
        let _open = (OpenOnDrop(gate.clone()), OpenOnDrop(prepare.clone()));
        let held = prepare.clone();
        let first = AtomicUsize::new(0);
        let capped = place.serve(
            transport,
            gated(&gate).prepare(move |_| {
                if first.fetch_add(1, SeqCst) == 2 * MOST {
                    held.pass();
                }
                Ok(())
            }),
        );
        let server = &capped.server;
        let taken = take_every_thread(server, &gate);
        let waits = server.connect();
        prepare.wait_arrived(1);
        let others: Vec<Peer> = (0..20).map(|_| server.connect()).collect();
        let all = (2 * MOST + 21) as u64;
        eventually("the others", || server.event_loop.stats().accepted == all);
        prepare.open();
        release(&gate, taken);
        eventually("all of them", || server.event_loop.stats().connected == all);
        drop((waits, others));
        capped.stop();
    });
}

#[test]
fn timers_go_on_while_every_thread_is_taken() {
    everywhere(|place, transport| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let handles = Log::new();
        let capped = place.serve(transport, giving_gated(&gate, &handles));
        let taken = take_every_thread(&capped.server, &gate);
        let (tell, told) = mpsc::channel();
        // Those that are there, and those that come while every thread is taken.
        for (n, handle) in handles.take().into_iter().enumerate() {
            let tell = tell.clone();
            let _ = handle.after(Duration::from_millis(n as u64), move |conn| {
                let _ = conn.after(Duration::from_millis(1), move |conn| {
                    tell.send(conn.send(frame(b"on time")).is_ok()).unwrap();
                });
            });
        }
        for _ in 0..2 * MOST {
            assert_eq!(told.recv_timeout(LIMIT), Ok(true));
        }
        gate.open();
        for mut peer in taken {
            assert_eq!(read_frame(&mut peer).unwrap(), b"on time");
            assert_eq!(read_frame(&mut peer).unwrap(), b"block");
        }
        capped.stop();
    });
}

#[test]
fn output_goes_on_while_every_thread_is_taken() {
    everywhere(|place, transport| {
        const MUCH: usize = 3 << 20;
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let handles = Log::new();
        let capped = place.serve(transport, giving_gated(&gate, &handles));
        let (mut slow, handle) = capped.server.connect_given(&handles);
        eventually("it is there", || {
            capped.server.event_loop.stats().connected == 1
        });
        handle.send(vec![7; MUCH]).unwrap();
        let taken = take_every_thread(&capped.server, &gate);
        slow.read_exact(&mut vec![0; MUCH]).unwrap();
        // Another thread's, meanwhile.
        handle.send(vec![8; MUCH]).unwrap();
        let flushing = thread::spawn(move || handle.flush());
        slow.read_exact(&mut vec![0; MUCH]).unwrap();
        flushing.join().unwrap().unwrap();
        release(&gate, taken);
        drop(slow);
        capped.stop();
    });
}

/// Two ends of a connection.
fn ends(transport: Transport) -> (OwnedFd, Peer) {
    let (near, far) = match transport {
        Transport::Unix => {
            let (near, far) = UnixStream::pair().unwrap();
            (near.into(), Peer::Unix(far))
        }
        Transport::Tcp => {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (listener.accept().unwrap().0.into(), Peer::Tcp(far))
        }
    };
    far.set_limit(Some(LIMIT));
    (near, far)
}

/// A connection on these pollers, and the other end as a plain peer.
fn own(group: &PollerGroup, transport: Transport) -> (Connection, Peer) {
    let (near, far) = ends(transport);
    let dialer = Dialer::new().pollers(group.clone());
    (dialer.adopt(near).unwrap(), far)
}

#[test]
fn relays_go_on_while_every_thread_is_taken() {
    everywhere(|place, transport| {
        const MUCH: usize = 4 << 20;
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let capped = place.serve(transport, gated(&gate));
        let (a, mut client) = own(&capped.group, transport);
        let (b, mut backend) = own(&capped.group, transport);
        let earlier = relay(a, b).unwrap();
        let taken = take_every_thread(&capped.server, &gate);
        // One that was there before, and one that begins now.
        for round in 0..2 {
            client.write_all(b"hello").unwrap();
            let mut five = [0; 5];
            backend.read_exact(&mut five).unwrap();
            assert_eq!(&five, b"hello");
            let sending = thread::spawn(move || {
                backend.write_all(&vec![7; MUCH]).unwrap();
                backend.shutdown_write();
                backend
            });
            let mut got = vec![0; MUCH];
            client.read_exact(&mut got).unwrap();
            client.expect_end();
            client.shutdown_write();
            sending.join().unwrap().expect_end();
            if round == 1 {
                break;
            }
            let outcome = earlier.wait_timeout(LIMIT).unwrap().expect("it ends");
            assert_eq!(outcome.end, RelayEnd::Finished);
            let (a, next_client) = own(&capped.group, transport);
            let (b, next_backend) = own(&capped.group, transport);
            relay(a, b).unwrap();
            (client, backend) = (next_client, next_backend);
        }
        release(&gate, taken);
        capped.stop();
    });
}

#[test]
fn relays_of_a_loop_go_on_while_its_threads_are_taken() {
    // The turns of a server's own connections that were joined by a relay.
    everywhere(|place, transport| {
        if place == Place::Executor {
            // It is the executor that says what runs when.
            return;
        }
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let (near, mut far) = ends(transport);
        let backend = Mutex::new(Some(near));
        let held = gate.clone();
        let (group, builder) = place.builder();
        let pollers = group.clone();
        let server = Server::start(
            transport,
            builder,
            Script::new().request(move |conn| {
                while let Some(mut frame) = decode(conn)? {
                    match frame.peek(5)?[4] {
                        b'b' => held.pass(),
                        b'r' => {
                            let near = backend.lock().unwrap().take().expect("one relay");
                            let other = Dialer::new().pollers(pollers.clone()).adopt(near)?;
                            let ours = conn.hijack()?;
                            return relay(ours, other).map(drop);
                        }
                        _ => {}
                    }
                    conn.append(frame)?;
                    conn.flush()?;
                }
                Ok(())
            }),
        );
        let mut client = server.connect();
        client.write_all(&frame(b"relay")).unwrap();
        client.write_all(b"hello").unwrap();
        let mut five = [0; 5];
        far.read_exact(&mut five).unwrap();
        let mut peers: Vec<Peer> = (0..2 * MOST).map(|_| server.connect()).collect();
        for peer in &mut peers {
            peer.write_all(&frame(b"block")).unwrap();
        }
        gate.wait_arrived(MOST);
        for _ in 0..20 {
            client.write_all(b"there").unwrap();
            far.read_exact(&mut five).unwrap();
            far.write_all(b"again").unwrap();
            client.read_exact(&mut five).unwrap();
            assert_eq!(&five, b"again");
        }
        release(&gate, peers);
        drop((client, far));
        Capped { server, group }.stop();
    });
}

// ------------------------------------------------------------------------ waits that are ended

/// What became of handlers that waited, and why their connections ended.
#[derive(Clone)]
struct Ends {
    errors: Log<Option<Error>>,
    reasons: Log<CloseReason>,
}

impl Ends {
    fn new() -> Self {
        Self {
            errors: Log::new(),
            reasons: Log::new(),
        }
    }

    /// A handler that echoes frames but for those that begin with `w`, on which it does what may wait.
    fn script(
        &self,
        waits: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Script {
        let (errors, reasons) = (self.errors.clone(), self.reasons.clone());
        Script::new()
            .request(move |conn| {
                while let Some(mut frame) = decode(conn)? {
                    if frame.len() > 4 && frame.peek(5)?[4] == b'w' {
                        let waited = waits(conn);
                        errors.push(waited.as_ref().err().and_then(Error::from_io));
                        waited?;
                    }
                    conn.append(frame)?;
                    conn.flush()?;
                }
                Ok(())
            })
            .disconnect(move |_, reason| reasons.push(reason))
    }

    /// Connections of handlers that had to end ended for that.
    fn expect_overload(&self) {
        let overloaded = |reason: &CloseReason| *reason == CloseReason::Overload;
        eventually("their reasons", || {
            self.reasons.all().into_iter().filter(overloaded).count() >= 7 * MOST
        });
    }

    /// Many more peers than there are threads have handlers wait, and others are answered meanwhile. The
    /// peers that had them wait.
    fn flood(&self, capped: &Capped) -> Vec<Peer> {
        let server = &capped.server;
        let mut others: Vec<Peer> = (0..4).map(|_| server.connect()).collect();
        let mut waiting: Vec<Peer> = (0..8 * MOST).map(|_| server.connect()).collect();
        for peer in &mut waiting {
            peer.write_all(&frame(b"wait")).unwrap();
        }
        for _ in 0..5 {
            for peer in &mut others {
                peer.ping(b"fine");
            }
        }
        // All but the last few had to end for others.
        let errors = self.errors.wait_len(7 * MOST);
        assert!(
            errors.iter().all(|error| *error == Some(Error::Overloaded)),
            "{errors:?}"
        );
        waiting
    }
}

#[test]
fn handlers_that_wait_for_input_end_for_those_that_have_some() {
    everywhere(|place, transport| {
        let ends = Ends::new();
        let script = ends.script(|conn| conn.fill(1000));
        let capped = place.serve_in_haste(transport, script, |builder| builder);
        let waiting = ends.flood(&capped);
        ends.expect_overload();
        let event_loop = &capped.server.event_loop;
        eventually("the figure", || {
            event_loop.stats().overloaded >= 7 * MOST as u64
        });
        // None of them is in the middle of a reply: an orderly end.
        for peer in &waiting {
            peer.set_limit(Some(Duration::from_millis(1)));
        }
        eventually("their ends", || {
            let ended = |peer: &&Peer| matches!(peer.try_clone().read(&mut [0]), Ok(0));
            waiting.iter().filter(ended).count() >= 7 * MOST
        });
        drop(waiting);
        capped.stop();
    });
}

#[test]
fn handlers_that_wait_for_the_kernel_end_for_others() {
    everywhere(|place, transport| {
        let ends = Ends::new();
        let script = ends.script(|conn| {
            conn.write_bytes(vec![1; 6 << 20].into())?;
            conn.flush_and_wait()
        });
        let capped = place.serve_in_haste(transport, script, |builder| builder);
        // They do not read.
        let waiting = ends.flood(&capped);
        ends.expect_overload();
        drop(waiting);
        // Output that is lost while the loop drains counts as cut.
        eventually("their ends", || {
            capped.server.event_loop.stats().active == 0
        });
        capped.stop();
    });
}

#[test]
fn handlers_that_wait_for_room_of_another_connection_end_for_others() {
    everywhere(|place, transport| {
        let (ends, handles) = (Ends::new(), Log::new());
        let (slow, told) = (Arc::new(Mutex::new(None)), handles.clone());
        let full: Arc<Mutex<Option<ConnectionHandle>>> = Arc::clone(&slow);
        let script = ends
            .script(move |_| {
                let full = full.lock().unwrap().clone().expect("the first one");
                full.send(vec![2; 1 << 20])?;
                full.flush()
            })
            .connect(move |conn| {
                told.push(conn.handle());
                Ok(())
            });
        let capped = place.serve_in_haste(transport, script, |builder| {
            builder.output_limit(1 << 20, OnFull::Block)
        });
        let server = &capped.server;
        let (peer, handle) = server.connect_given(&handles);
        while handle.stats().queued == 0 {
            handle.try_send(vec![1; 1 << 20]).unwrap();
        }
        *slow.lock().unwrap() = Some(handle.clone());
        let mut waiting: Vec<Peer> = (0..2 * MOST).map(|_| server.connect()).collect();
        for peer in &mut waiting {
            peer.write_all(&frame(b"wait")).unwrap();
        }
        let mut other = server.connect();
        other.ping(b"fine");
        // The one that does not read is closed, and with it all waits for it end.
        let error = handle.done().wait().unwrap_err();
        let closed = Error::Closed(CloseReason::Overload);
        assert_eq!(Error::from_io(&error), Some(closed));
        for error in ends.errors.wait_len(2 * MOST) {
            assert!(
                matches!(error, Some(Error::Overloaded | Error::Closed(_))),
                "{error:?}"
            );
        }
        assert!(ends.errors.all().contains(&Some(Error::Overloaded)));
        drop((peer, waiting, other));
        capped.stop();
    });
}

#[test]
fn handlers_that_wait_for_an_end_end_for_others() {
    everywhere(|place, transport| {
        let (ends, handles) = (Ends::new(), Log::<ConnectionHandle>::new());
        let (told, first) = (handles.clone(), handles.clone());
        let script = ends
            .script(move |_| first.all()[0].done().wait())
            .connect(move |conn| {
                told.push(conn.handle());
                Ok(())
            });
        let capped = place.serve_in_haste(transport, script, |builder| builder);
        let patient = capped.server.connect();
        handles.wait_len(1);
        let waiting = ends.flood(&capped);
        ends.expect_overload();
        // What they waited for is no concern of theirs.
        assert!(handles.all()[0].is_active());
        drop(patient);
        drop(waiting);
        capped.stop();
    });
}

/// Peers that are silent, until they are closed. Those that come later are closed at once.
#[derive(Clone)]
struct FarEnds(Arc<Mutex<Option<Vec<Peer>>>>);

impl FarEnds {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Vec::new()))))
    }

    fn keep(&self, peer: Peer) {
        if let Some(peers) = &mut *self.0.lock().unwrap() {
            peers.push(peer);
        }
    }

    fn close(&self) {
        self.0.lock().unwrap().take();
    }
}

#[test]
fn handlers_that_wait_for_a_relay_end_for_others() {
    everywhere(|place, transport| {
        let far_ends = FarEnds::new();
        let held = far_ends.clone();
        let ends = Ends::new();
        let script = ends.script(move |_| {
            let [a, b] = [0, 1].map(|_| {
                let (near, far) = ends_of(transport);
                held.keep(far);
                near
            });
            relay(a, b)?.wait().map(drop)
        });
        let capped = place.serve_in_haste(transport, script, |builder| builder);
        let waiting = ends.flood(&capped);
        ends.expect_overload();
        far_ends.close();
        drop(waiting);
        capped.stop();
    });
}

#[test]
fn handlers_that_wait_for_a_pool_end_for_others() {
    everywhere(|place, transport| {
        let backend = Server::start(transport, EventLoop::builder(), Script::new());
        let pool = Pool::builder(Dialer::new())
            .max_total(1)
            .wait(LIMIT)
            .build()
            .unwrap();
        let taken = pool.get(&backend.address).unwrap();
        let (ends, own, to) = (Ends::new(), pool.clone(), backend.address.clone());
        let script = ends.script(move |_| own.get(&to).map(drop));
        let capped = place.serve_in_haste(transport, script, |builder| builder);
        let waiting = ends.flood(&capped);
        ends.expect_overload();
        drop(taken);
        drop(waiting);
        capped.stop();
        pool.close();
        backend.stop();
    });
}

#[test]
fn handlers_that_wait_for_a_dial_end_for_others() {
    everywhere(|place, transport| {
        let hole = Hole::new(transport);
        let to = hole.address.clone();
        let dialer = Dialer::new();
        let ends = Ends::new();
        let script = ends.script(move |_| dialer.dial_connection(&to).map(drop));
        let capped = place.serve_in_haste(transport, script, |builder| builder);
        let waiting = ends.flood(&capped);
        ends.expect_overload();
        drop(waiting);
        // The last few go on waiting.
        drop(hole);
        capped.stop();
    });
}

/// A listener whose backlog is full: a dial gets no answer.
struct Hole {
    address: Address,
    _sockets: Vec<Socket>,
}

impl Hole {
    fn new(transport: Transport) -> Self {
        let (domain, at) = match transport {
            Transport::Tcp => {
                let any = std::net::SocketAddr::from((crate::support::loopback(), 0));
                (Domain::IPV4, SockAddr::from(any))
            }
            Transport::Unix => (
                Domain::UNIX,
                SockAddr::unix(crate::support::fresh_path()).unwrap(),
            ),
        };
        let listener = Socket::new(domain, Type::STREAM, None).unwrap();
        listener.bind(&at).unwrap();
        listener.listen(0).unwrap();
        let at = listener.local_addr().unwrap();
        let address = match at.as_socket() {
            Some(ip) => Address::from(ip),
            None => Address::Unix(at.as_pathname().unwrap().into()),
        };
        let mut sockets = vec![listener];
        sockets.extend((0..4).map(|_| {
            let socket = Socket::new(domain, Type::STREAM.nonblocking(), None).unwrap();
            let _ = socket.connect(&at);
            socket
        }));
        Self {
            address,
            _sockets: sockets,
        }
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        if let Address::Unix(path) = &self.address {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A connection of the default pollers.
fn ends_of(transport: Transport) -> (Connection, Peer) {
    let (near, far) = ends(transport);
    (Dialer::new().adopt(near).unwrap(), far)
}

#[test]
fn calls_of_handlers_end_for_others_and_handlers_may_say_so() {
    everywhere(|place, transport| {
        let far_ends = FarEnds::new();
        let held = far_ends.clone();
        let reasons = Log::new();
        let log = reasons.clone();
        let calls = Log::new();
        let noted = calls.clone();
        let script = Script::new()
            .request(move |conn| {
                while let Some(mut frame) = decode(conn)? {
                    if frame.peek(5)?[4] == b'w' {
                        let (mut backend, silent) = ends_of(transport);
                        held.keep(silent);
                        let error = backend.next(1).unwrap_err();
                        noted.push(Error::from_io(&error));
                        // That call has failed, and this connection has not.
                        assert!(!backend.is_active());
                        frame = LinkBuffer::from(crate::support::frame(b"busy"));
                    }
                    conn.append(frame)?;
                    conn.flush()?;
                }
                Ok(())
            })
            .disconnect(move |_, reason| log.push(reason));
        let capped = place.serve_in_haste(transport, script, |builder| builder);
        let server = &capped.server;
        let mut waiting: Vec<Peer> = (0..8 * MOST).map(|_| server.connect()).collect();
        for peer in &mut waiting {
            peer.write_all(&frame(b"wait")).unwrap();
        }
        let mut other = server.connect();
        other.ping(b"fine");
        for error in calls.wait_len(7 * MOST) {
            assert_eq!(error, Some(Error::Overloaded));
        }
        let answered = calls.len();
        for peer in &waiting {
            peer.set_limit(Some(Duration::from_millis(1)));
        }
        let mut got = vec![false; waiting.len()];
        eventually("the replies", || {
            for (got, peer) in got.iter_mut().zip(&waiting) {
                let mut reply = [0; 8];
                *got |= peer.try_clone().read_exact(&mut reply).is_ok() && reply[4..] == *b"busy";
            }
            got.iter().filter(|&&got| got).count() >= answered
        });
        assert!(reasons.all().is_empty());
        far_ends.close();
        drop((waiting, other));
        capped.stop();
    });
}

#[test]
fn without_a_limit_handlers_wait() {
    everywhere(|place, transport| {
        let ends = Ends::new();
        let capped = place.serve(transport, ends.script(|conn| conn.fill(1)));
        let mut waiting: Vec<Peer> = (0..MOST).map(|_| capped.server.connect()).collect();
        for peer in &mut waiting {
            peer.write_all(&frame(b"wait")).unwrap();
        }
        eventually("all have one", || {
            capped.server.event_loop.stats().holding.len() == MOST
        });
        let mut other = capped.server.connect();
        other.write_all(&frame(b"fine")).unwrap();
        let_pass(5 * SOON);
        assert_eq!(ends.errors.len(), 0);
        for peer in &mut waiting {
            peer.write_all(&frame(b"more")).unwrap();
            assert_eq!(read_frame(peer).unwrap(), b"wait");
            assert_eq!(read_frame(peer).unwrap(), b"more");
        }
        assert_eq!(read_frame(&mut other).unwrap(), b"fine");
        assert_eq!(capped.server.event_loop.stats().overloaded, 0);
        drop((waiting, other));
        capped.stop();
    });
}

#[test]
fn handlers_that_cannot_be_ended_are_named() {
    everywhere(|place, transport| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let handles = Log::new();
        let (group, builder) = place.builder_with(Some(SOON));
        let server = Server::start(transport, builder, giving_gated(&gate, &handles));
        let mut ids = Vec::new();
        let mut peers = Vec::new();
        for n in 0..MOST {
            let (mut peer, handle) = server.connect_given(&handles);
            peer.write_all(&frame(b"block")).unwrap();
            gate.wait_arrived(n + 1);
            ids.push(handle.id());
            peers.push(peer);
        }
        let mut other = server.connect();
        other.write_all(&frame(b"fine")).unwrap();
        eventually("all of them", || {
            let holding = server.event_loop.stats().holding;
            let mut named: Vec<u64> = holding.iter().map(|holding| holding.id).collect();
            named.sort_unstable();
            named == ids && holding.iter().all(|holding| holding.time >= SOON)
        });
        release(&gate, peers);
        assert_eq!(read_frame(&mut other).unwrap(), b"fine");
        eventually("none", || server.event_loop.stats().holding.is_empty());
        assert_eq!(server.event_loop.stats().overloaded, 0);
        drop(other);
        Capped { server, group }.stop();
    });
}

/// Two threads with a queue each; the test says which one gets the next tasks.
struct Lanes {
    lanes: [Threads; 2],
    next: AtomicUsize,
    given: AtomicUsize,
}

impl Lanes {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            lanes: [Threads::new(1), Threads::new(1)],
            next: AtomicUsize::new(0),
            given: AtomicUsize::new(0),
        })
    }
}

impl Executor for Lanes {
    fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
        self.lanes[self.next.load(SeqCst)].execute(task)?;
        self.given.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// A loop in haste with this executor.
fn with_executor(executor: Arc<dyn Executor>, script: Script) -> Server {
    with_executor_after(executor, Some(SOON), script)
}

fn with_executor_after(
    executor: Arc<dyn Executor>,
    overload_after: Option<Duration>,
    script: Script,
) -> Server {
    let builder = EventLoop::builder()
        .pollers(1)
        .overload_after(overload_after)
        .dispatch(Dispatch::Custom(executor));
    Server::start(Transport::Tcp, builder, script)
}

#[test]
fn a_task_that_is_behind_a_wait_is_begun_whatever_others_do() {
    bounded("lanes", || {
        let ends = Ends::new();
        let executor = Lanes::new();
        let server = with_executor(executor.clone(), ends.script(|conn| conn.fill(1)));
        let [mut waits, mut behind, mut other] = [0; 3].map(|_| server.connect());
        for peer in [&mut waits, &mut behind, &mut other] {
            peer.ping(b"before");
        }
        waits.write_all(&frame(b"wait")).unwrap();
        eventually("it waits", || server.event_loop.stats().holding.len() == 1);
        let given = executor.given.load(SeqCst);
        behind.write_all(&frame(b"fine")).unwrap();
        eventually("it is behind", || executor.given.load(SeqCst) > given);
        executor.next.store(1, SeqCst);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    other.ping(b"other");
                }
            });
            let reply = read_frame(&mut behind);
            done.store(true, SeqCst);
            assert_eq!(reply.unwrap(), b"fine");
        });
        assert_eq!(ends.reasons.wait_len(1), [CloseReason::Overload]);
        drop((waits, behind, other));
        server.stop();
    });
}

#[test]
fn loops_with_one_executor_share_its_threads() {
    bounded("two loops", || {
        let executor = Arc::new(Threads::new(MOST));
        let ends = Ends::new();
        // Its own turns have all the time there is.
        let script = ends.script(|conn| conn.fill(1));
        let first = with_executor_after(executor.clone(), None, script);
        let second = with_executor(executor, Ends::new().script(|_| Ok(())));
        let mut waiting: Vec<Peer> = (0..MOST).map(|_| first.connect()).collect();
        for peer in &mut waiting {
            peer.write_all(&frame(b"wait")).unwrap();
        }
        eventually("all have one", || {
            second.event_loop.stats().holding.len() == MOST
        });
        let mut other = second.connect();
        other.ping(b"fine");
        assert_eq!(ends.errors.wait_len(1)[0], Some(Error::Overloaded));
        assert_eq!(ends.reasons.wait_len(1)[0], CloseReason::Overload);
        // It counts where the connection is.
        assert!(first.event_loop.stats().overloaded > 0);
        assert_eq!(second.event_loop.stats().overloaded, 0);
        drop((waiting, other));
        first.stop();
        second.stop();
    });
}

#[test]
fn other_executors_have_nothing_to_do_with_it() {
    bounded("two executors", || {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let ends = Ends::new();
        let first = with_executor(
            Arc::new(Threads::new(MOST)),
            ends.script(|conn| conn.fill(1)),
        );
        let second = with_executor(Arc::new(Threads::new(MOST)), gated(&gate));
        let mut waiting = first.connect();
        waiting.write_all(&frame(b"wait")).unwrap();
        eventually("it waits", || first.event_loop.stats().holding.len() == 1);
        let taken = take_every_thread(&second, &gate);
        eventually("the rest is overdue", || {
            let holding = second.event_loop.stats().holding;
            holding.len() == MOST && holding.iter().all(|holding| holding.time > 10 * SOON)
        });
        assert_eq!(ends.errors.len(), 0);
        waiting.write_all(&frame(b"more")).unwrap();
        assert_eq!(read_frame(&mut waiting).unwrap(), b"wait");
        release(&gate, taken);
        drop(waiting);
        first.stop();
        second.stop();
    });
}

#[test]
fn a_group_has_its_own_limit() {
    let group = PollerGroup::builder().pollers(1).build().unwrap();
    for builder in [EventLoop::builder(), EventLoop::builder().pollers(group)] {
        let error = builder
            .overload_after(SOON)
            .build(Script::new())
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
    let own = EventLoop::builder().pollers(1).overload_after(None);
    own.build(Script::new()).unwrap();
}

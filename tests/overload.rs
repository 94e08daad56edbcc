//! Every thread is taken: what goes on all the same.

mod support;

use netpoll::{
    Builder, Connection, ConnectionHandle, Dialer, Dispatch, EventLoop, Handler, PollerGroup,
    RelayEnd, relay,
};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};
use support::{
    Gate, LIMIT, Log, OpenOnDrop, Peer, Script, Server, Threads, Transport, bounded, decode,
    eventually, frame, read_frame,
};

/// The most threads for handlers.
const MOST: usize = 3;

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
    /// The threads of the pollers, and how to build a loop on them.
    fn builder(self) -> (PollerGroup, Builder) {
        let group = PollerGroup::builder()
            .pollers(if self == Self::Pollers { MOST } else { 1 })
            .max_threads(MOST)
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
        (group, builder.dispatch(dispatch))
    }

    fn serve(self, transport: Transport, handler: impl Handler) -> Capped {
        let (group, builder) = self.builder();
        let server = Server::start(transport, builder, handler);
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
                let tell = tell.clone();
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

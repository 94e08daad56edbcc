//! Relays whose event loop shuts down: what is under way is passed on, what is idle ends.

use crate::support::{Gate, LIMIT, Log, OpenOnDrop, bounded, eventually, let_pass};
use netpoll::{
    Address, CloseReason, Connection, ConnectionEvent, Dialer, Dispatch, DispatchTask, Error,
    EventLoop, Executor, Relay, RelayEnd, RelayOutcome, RelayVerdict, event_fn,
};
use socket2::SockRef;
use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Longer than a relay waits before it takes silence for idleness.
const SILENCE: Duration = Duration::from_millis(250);

/// Before a relay takes silence for idleness.
const SOON: Duration = Duration::from_millis(50);

/// A proxy on a poller of its own in front of one backend, which the test plays.
struct Proxy {
    event_loop: EventLoop,
    address: SocketAddr,
    backend: TcpListener,
    ends: Log<RelayEnd>,
    outcomes: Arc<Mutex<Vec<RelayOutcome>>>,
}

impl Proxy {
    fn new() -> Self {
        Self::with(Relay::builder())
    }

    fn with(relay: netpoll::RelayBuilder) -> Self {
        Self::dialling(relay, Dialer::new())
    }

    fn dialling(relay: netpoll::RelayBuilder, dialer: Dialer) -> Self {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Address::from(backend.local_addr().unwrap());
        let ends = Log::new();
        let log = ends.clone();
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&outcomes);
        let event_loop = EventLoop::builder()
            .pollers(1)
            .build(event_fn(move |client: &mut Connection, event| {
                if event == ConnectionEvent::Connected {
                    let backend = dialer.dial_connection(to.clone())?;
                    let relay = relay.clone().start(client.hijack()?, backend)?;
                    let (log, kept) = (log.clone(), Arc::clone(&kept));
                    relay.on_end(move |outcome| {
                        let end = outcome.end;
                        kept.lock().unwrap().push(outcome);
                        log.push(end);
                    });
                }
                Ok(())
            }))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        event_loop.serve_in_background(listener).unwrap();
        Self {
            event_loop,
            address,
            backend,
            ends,
            outcomes,
        }
    }

    /// A client and the server behind the proxy.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.address).unwrap();
        let (server, _) = self.backend.accept().unwrap();
        for socket in [&client, &server] {
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket.set_write_timeout(Some(LIMIT)).unwrap();
        }
        (client, server)
    }

    /// Begins to shut down, and returns when that is known everywhere.
    fn shut_down(&self) -> JoinHandle<io::Result<()>> {
        let event_loop = self.event_loop.clone();
        let ending = thread::spawn(move || event_loop.shutdown(LIMIT));
        eventually("the drain", || self.event_loop.is_shutting_down());
        ending
    }
}

fn send(socket: &mut TcpStream, text: &[u8]) {
    socket.write_all(text).unwrap();
}

#[track_caller]
fn expect(socket: &mut TcpStream, text: &[u8]) {
    let mut got = vec![0; text.len()];
    socket.read_exact(&mut got).unwrap();
    assert_eq!(got, text);
}

#[track_caller]
fn expect_end(socket: &mut TcpStream) {
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).expect("an orderly end");
    assert!(rest.is_empty(), "{} bytes before the end", rest.len());
}

#[test]
fn an_idle_relay_ends_in_order() {
    bounded("idle", || {
        let proxy = Proxy::new();
        let (mut fresh, mut fresh_server) = proxy.connect();
        let (mut client, mut server) = proxy.connect();
        send(&mut client, b"question");
        expect(&mut server, b"question");
        send(&mut server, b"answer");
        expect(&mut client, b"answer");
        let ending = proxy.shut_down();
        for socket in [&mut fresh, &mut fresh_server, &mut client, &mut server] {
            expect_end(socket);
        }
        drop((client, server, fresh, fresh_server));
        ending.join().unwrap().unwrap();
        assert_eq!(proxy.ends.wait_len(2), [RelayEnd::Drained; 2]);
        for outcome in proxy.outcomes.lock().unwrap().iter() {
            let closed = RelayVerdict::Closed(CloseReason::Shutdown);
            assert_eq!((outcome.a_verdict, outcome.b_verdict), (closed, closed));
        }
    });
}

#[test]
fn a_request_under_way_gets_its_answer() {
    bounded("answer", || {
        // On a busy machine it may take some attempts to be quick.
        assert!((0..50).any(|_| asks_again_at_once()), "never in time");
    });
}

/// A client that asks again as soon as it has its answer is served, too. `false`: it was not soon.
fn asks_again_at_once() -> bool {
    let proxy = Proxy::new();
    let (mut client, mut server) = proxy.connect();
    send(&mut client, b"question");
    expect(&mut server, b"question");
    let ending = proxy.shut_down();
    let_pass(SILENCE);
    assert_eq!(proxy.ends.len(), 0, "the answer is still to come");
    let begin = Instant::now();
    send(&mut server, b"answer");
    expect(&mut client, b"answer");
    // The end may come first, or while it is sent.
    let sent = client.write_all(b"more").is_ok();
    let soon = sent && begin.elapsed() < SOON;
    if soon {
        expect(&mut server, b"more");
        let_pass(SILENCE);
        send(&mut server, b"less");
        expect(&mut client, b"less");
        expect_end(&mut client);
        expect_end(&mut server);
    }
    drop((client, server));
    ending.join().unwrap().unwrap();
    if soon {
        assert_eq!(proxy.ends.all(), [RelayEnd::Drained]);
    }
    soon
}

#[test]
fn a_half_closed_relay_is_not_over_before_both_ends() {
    bounded("half-closed", || {
        let proxy = Proxy::new();
        let (mut client, mut server) = proxy.connect();
        send(&mut client, b"everything?");
        client.shutdown(Shutdown::Write).unwrap();
        expect(&mut server, b"everything?");
        expect_end(&mut server);
        let ending = proxy.shut_down();
        for part in [b"one", b"two"] {
            let_pass(SILENCE);
            send(&mut server, part);
            expect(&mut client, part);
        }
        let_pass(SILENCE);
        assert_eq!(proxy.ends.len(), 0);
        drop(server);
        expect_end(&mut client);
        ending.join().unwrap().unwrap();
        assert_eq!(proxy.ends.all(), [RelayEnd::Finished]);
    });
}

#[test]
fn bulk_under_way_arrives_whole() {
    bounded("bulk", || {
        let proxy = Proxy::new();
        let (mut client, mut server) = proxy.connect();
        send(&mut client, b"all");
        expect(&mut server, b"all");
        // As much as goes into the sockets and the relay while the client does not read.
        let data: Vec<u8> = (0..64_000_000_u32).map(|i| (i ^ (i >> 9)) as u8).collect();
        server.set_write_timeout(Some(SILENCE)).unwrap();
        let mut sent = 0;
        while let Ok(n) = server.write(&data[sent..]) {
            sent += n;
        }
        assert!(sent < data.len(), "all of it fits");
        let ending = proxy.shut_down();
        let_pass(SILENCE);
        assert_eq!(proxy.ends.len(), 0, "it is still to be read");
        expect(&mut client, &data[..sent]);
        expect_end(&mut client);
        drop(client);
        expect_end(&mut server);
        ending.join().unwrap().unwrap();
        assert_eq!(proxy.ends.all(), [RelayEnd::Drained]);
    });
}

#[test]
fn what_is_left_at_the_deadline_is_cut() {
    bounded("deadline", || {
        let proxy = Proxy::new();
        let (mut client, mut server) = proxy.connect();
        send(&mut client, b"question");
        expect(&mut server, b"question");
        let error = proxy.event_loop.shutdown(SILENCE).unwrap_err();
        assert_eq!(
            Error::from_io(&error),
            Some(Error::ShutdownIncomplete { remaining: 1 })
        );
        assert_eq!(proxy.event_loop.shutdown_forced(Duration::ZERO).unwrap(), 1);
        for socket in [&mut client, &mut server] {
            let error = socket.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        let failed = RelayEnd::Failed(CloseReason::Shutdown);
        assert_eq!(proxy.ends.wait_len(1), [failed]);
    });
}

#[test]
fn a_kept_side_comes_back() {
    bounded("kept", || {
        let proxy = Proxy::with(Relay::builder().keep_b(true));
        let (mut client, mut server) = proxy.connect();
        send(&mut client, b"question");
        expect(&mut server, b"question");
        send(&mut server, b"answer");
        expect(&mut client, b"answer");
        let ending = proxy.shut_down();
        expect_end(&mut client);
        drop(client);
        ending.join().unwrap().unwrap();
        assert_eq!(proxy.ends.wait_len(1), [RelayEnd::Drained]);
        let mut outcome = proxy.outcomes.lock().unwrap().remove(0);
        assert_eq!(outcome.b_verdict, RelayVerdict::Sound);
        let mut kept = outcome.b.take().expect("it is open");
        kept.write_str("next").unwrap();
        kept.flush().unwrap();
        expect(&mut server, b"next");
    });
}

#[test]
fn two_clients_of_one_loop_that_are_joined_part_when_they_are_silent() {
    bounded("joined", || {
        let waiting = Mutex::new(None::<Connection>);
        let ends = Log::new();
        let log = ends.clone();
        let event_loop = EventLoop::builder()
            .pollers(1)
            .build(event_fn(move |conn: &mut Connection, event| {
                if event == ConnectionEvent::Connected {
                    let mut waiting = waiting.lock().unwrap();
                    match waiting.take() {
                        None => *waiting = Some(conn.hijack()?),
                        Some(other) => {
                            let log = log.clone();
                            let relay = netpoll::relay(other, conn.hijack()?)?;
                            relay.on_end(move |outcome| log.push(outcome.end));
                        }
                    }
                }
                Ok(())
            }))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        event_loop.serve_in_background(listener).unwrap();
        let mut pair = [(); 2].map(|()| {
            let socket = TcpStream::connect(address).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            socket
        });
        send(&mut pair[0], b"you");
        expect(&mut pair[1], b"you");
        send(&mut pair[1], b"me");
        expect(&mut pair[0], b"me");
        let ending = thread::spawn(move || event_loop.shutdown(LIMIT));
        for socket in &mut pair {
            expect_end(socket);
        }
        drop(pair);
        ending.join().unwrap().unwrap();
        assert_eq!(ends.wait_len(1), [RelayEnd::Drained]);
    });
}

#[test]
fn a_relay_that_begins_during_the_drain_ends_too() {
    bounded("begins", || {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Address::from(backend.local_addr().unwrap());
        let (begun, ends) = (Log::new(), Log::new());
        let (begin, end) = (begun.clone(), ends.clone());
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let at_gate = gate.clone();
        let event_loop = EventLoop::builder()
            .pollers(1)
            .build(event_fn(move |client: &mut Connection, event| {
                if event == ConnectionEvent::Connected {
                    begin.push(());
                    at_gate.pass();
                    let backend = Dialer::new().dial_connection(to.clone())?;
                    let end = end.clone();
                    netpoll::relay(client.hijack()?, backend)?
                        .on_end(move |outcome| end.push(outcome.end));
                }
                Ok(())
            }))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        event_loop.serve_in_background(listener).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        begun.wait_len(1);
        let ending = {
            let event_loop = event_loop.clone();
            thread::spawn(move || event_loop.shutdown(LIMIT))
        };
        eventually("the drain", || event_loop.is_shutting_down());
        gate.open();
        expect_end(&mut client);
        drop(client);
        ending.join().unwrap().unwrap();
        assert_eq!(ends.wait_len(1), [RelayEnd::Drained]);
    });
}

/// Runs tasks on threads of their own once its gate is open.
#[derive(Default)]
struct Held(Gate);

impl Executor for Held {
    fn execute(&self, task: DispatchTask) -> Result<(), DispatchTask> {
        let gate = self.0.clone();
        thread::spawn(move || {
            gate.pass();
            task.run();
        });
        Ok(())
    }
}

#[test]
fn a_shutdown_waits_for_the_other_side_and_what_is_called_at_the_end() {
    bounded("other side", || {
        let held = Held::default();
        let gate = held.0.clone();
        let _open = OpenOnDrop(gate.clone());
        let dialer = Dialer::new().dispatch(Dispatch::Custom(Arc::new(held)));
        let proxy = Proxy::dialling(Relay::builder(), dialer);
        let (client, _server) = proxy.connect();
        gate.wait_arrived(1);
        SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(client);
        eventually("the client's side is closed", || {
            proxy.event_loop.stats().closed == 1
        });
        let early = proxy.event_loop.shutdown(SOON).unwrap_err();
        let remaining = Error::ShutdownIncomplete { remaining: 1 };
        assert_eq!(Error::from_io(&early), Some(remaining));
        assert_eq!(proxy.ends.len(), 0);
        gate.open();
        proxy.event_loop.shutdown(LIMIT).unwrap();
        let ends = proxy.ends.all();
        assert!(matches!(ends[..], [RelayEnd::Failed(_)]), "{ends:?}");
    });
}

//! How relays are stopped, what they give back and how much they hold.

use crate::support::{
    Gate, LIMIT, Log, OpenOnDrop, bounded, eventually, in_child, let_pass, threads,
};
use netpoll::{
    Address, Balance, Connection, ConnectionEvent, Dialer, EventLoop, PollerGroup, Pool, Relay,
    RelayEnd, RelayVerdict, event_fn, relay,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// A pair of TCP sockets: ours as a connection, and the peer's.
fn pair() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(LIMIT)).unwrap();
    peer.set_write_timeout(Some(LIMIT)).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (Dialer::new().adopt(ours).unwrap(), peer)
}

fn pattern(len: usize) -> Arc<Vec<u8>> {
    Arc::new((0..len).map(|i| (i * 31 + i / 251) as u8).collect())
}

#[track_caller]
fn ping(from: &mut TcpStream, to: &mut TcpStream, text: &[u8]) {
    from.write_all(text).unwrap();
    let mut got = vec![0; text.len()];
    to.read_exact(&mut got).unwrap();
    assert_eq!(got, text);
}

#[test]
fn an_idle_relay_stops_in_time_and_leaves_both_sides_sound() {
    bounded("idle", || {
        let (a, mut client) = pair();
        let (b, mut server) = pair();
        let timeout = Duration::from_millis(300);
        let relay = Relay::builder().idle_timeout(timeout).start(a, b).unwrap();
        // Traffic in one direction is enough, however long it goes on.
        let begin = Instant::now();
        let mut before = begin;
        while begin.elapsed() < timeout * 3 {
            if before.elapsed() >= timeout / 2 {
                // The machine has no time for us: the relay may well have seen that as idleness.
                println!("not judged: {:?} without traffic", before.elapsed());
                return;
            }
            before = Instant::now();
            ping(&mut client, &mut server, b"busy");
            thread::sleep(Duration::from_millis(2));
        }
        let last = Instant::now();
        ping(&mut server, &mut client, b"last");
        let outcome = relay.wait_timeout(LIMIT).unwrap().expect("it ends");
        // Time is kept in milliseconds.
        assert!(last.elapsed() + Duration::from_millis(2) >= timeout);
        assert_eq!(outcome.end, RelayEnd::IdleTimeout);
        assert_eq!(
            (outcome.a_verdict, outcome.b_verdict),
            (RelayVerdict::Sound, RelayVerdict::Sound)
        );
        // Nothing was closed.
        let again = relay_again(outcome.a, outcome.b);
        ping(&mut client, &mut server, b"once more");
        again.interrupt();
    });
}

/// Waits until the relay has moved nothing for a while.
fn stands_still(relay: &Relay, mut look: impl FnMut()) {
    let mut before = (relay.moved().0, Instant::now());
    eventually("the relay stands still", || {
        look();
        let moved = relay.moved().0;
        if moved != before.0 {
            before = (moved, Instant::now());
        }
        before.1.elapsed() > Duration::from_millis(100)
    });
}

fn relay_again(a: Option<Connection>, b: Option<Connection>) -> Relay {
    relay(a.expect("a is open"), b.expect("b is open")).unwrap()
}

#[test]
fn what_is_in_flight_is_bounded_and_makes_both_sides_unsound() {
    bounded("bounded", || {
        let (a, client) = pair();
        let (b, mut server) = pair();
        let target = b.handle();
        let limit = 100_000;
        let limited = Relay::builder().in_flight(limit);
        // Far more than both sockets hold, to a peer that reads nothing.
        let data = pattern(30_000_000);
        let sent = Arc::clone(&data);
        let mut out = client.try_clone().unwrap();
        let writer = thread::spawn(move || out.write_all(&sent).unwrap());
        let mut most = 0;
        let (mut relay, mut outcome);
        // Until it was stopped at a moment when nothing more fitted anywhere.
        let mut sides = (Some(a), Some(b));
        let deadline = Instant::now() + LIMIT;
        loop {
            relay = limited
                .clone()
                .start(sides.0.unwrap(), sides.1.unwrap())
                .unwrap();
            stands_still(&relay, || most = most.max(target.stats().queued));
            relay.interrupt();
            outcome = relay.wait_timeout(LIMIT).unwrap().expect("it ends");
            assert_eq!(outcome.end, RelayEnd::Interrupted);
            let verdicts = (outcome.a_verdict, outcome.b_verdict);
            if verdicts == (RelayVerdict::UnreadInput, RelayVerdict::UnsentOutput) {
                break;
            }
            assert!(Instant::now() < deadline, "{verdicts:?}");
            sides = (outcome.a, outcome.b);
        }
        assert!(
            most <= limit + (64 << 10),
            "{most} bytes wait, {limit} and one receive are allowed"
        );
        // Unsound, but not cut: a further relay goes on where this one was stopped.
        let again = relay_again(outcome.a, outcome.b);
        let mut got = vec![0; data.len()];
        server.read_exact(&mut got).unwrap();
        assert!(got == *data);
        writer.join().unwrap();
        drop((client, server));
        again.wait_timeout(LIMIT).unwrap().expect("it ends");
    });
}

#[test]
fn a_half_closed_side_is_not_sound() {
    bounded("half-closed", || {
        let (a, client) = pair();
        let (b, mut server) = pair();
        let relay = relay(a, b).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
        relay.interrupt();
        let outcome = relay.wait_timeout(LIMIT).unwrap().expect("it ends");
        assert_eq!(
            (outcome.end, outcome.a_verdict, outcome.b_verdict),
            (
                RelayEnd::Interrupted,
                RelayVerdict::HalfClosed,
                RelayVerdict::HalfClosed
            )
        );
    });
}

#[test]
fn an_unsound_pooled_side_is_closed_and_a_sound_one_used_again() {
    bounded("pooled", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Address::from(listener.local_addr().unwrap());
        let pool = Pool::new(Dialer::new());
        // Interrupted while nothing is under way.
        let (a, mut client) = pair();
        let first = relay(a, pool.get(&to).unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(LIMIT)).unwrap();
        ping(&mut client, &mut server, b"x");
        first.interrupt();
        let outcome = first.wait_timeout(LIMIT).unwrap().expect("it ends");
        assert_eq!(outcome.b_verdict, RelayVerdict::Sound);
        assert!(outcome.b.is_none(), "the pool has it");
        assert_eq!(pool.stats().idle, 1);
        // The next relay gets the same one, and is stopped with half a request on it.
        let (a, mut client) = pair();
        let mut next = relay(a, pool.get(&to).unwrap()).unwrap();
        assert_eq!((pool.stats().dialled, pool.stats().reused), (1, 1));
        ping(&mut client, &mut server, b"y");
        let flood = thread::spawn(move || {
            // Ends with the relay's side.
            let _ = client.write_all(&vec![0; 30_000_000]);
        });
        let deadline = Instant::now() + LIMIT;
        let outcome = loop {
            stands_still(&next, || ());
            next.interrupt();
            let outcome = next.wait_timeout(LIMIT).unwrap().expect("it ends");
            if outcome.b_verdict == RelayVerdict::UnsentOutput {
                break outcome;
            }
            assert!(Instant::now() < deadline, "{outcome:?}");
            next = relay(outcome.a.unwrap(), pool.get(&to).unwrap()).unwrap();
        };
        assert!(outcome.b.is_none());
        assert_eq!((pool.stats().idle, pool.stats().in_use), (0, 0));
        drop(outcome);
        flood.join().unwrap();
    });
}

#[test]
fn a_kept_side_that_owes_an_answer_is_not_sound() {
    bounded("owes", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Address::from(listener.local_addr().unwrap());
        let pool = Pool::new(Dialer::new());
        for (answered, verdict) in [
            (true, RelayVerdict::Sound),
            (false, RelayVerdict::OwesAnswer),
        ] {
            let (a, mut client) = pair();
            let keeping = Relay::builder().keep_b(true);
            let relay = keeping.start(a, pool.get(&to).unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            server.set_read_timeout(Some(LIMIT)).unwrap();
            ping(&mut client, &mut server, b"question");
            if answered {
                ping(&mut server, &mut client, b"answer");
            }
            drop(client);
            let outcome = relay.wait_timeout(LIMIT).unwrap().expect("it ends");
            assert_eq!(
                (outcome.end, outcome.b_verdict),
                (RelayEnd::Released, verdict)
            );
            assert_eq!(pool.stats().idle, usize::from(answered));
            if answered {
                // For the next round: another connection.
                pool.get(&to).unwrap().discard();
            }
        }
    });
}

#[test]
fn a_transfer_survives_any_number_of_interrupts() {
    const SIZE: usize = 40_000_000;
    bounded("interrupts", || {
        let (a, mut client) = pair();
        let (b, mut server) = pair();
        let data = pattern(SIZE);
        // The end of each stream comes when the interrupts are over: no relay can be done before.
        let held_back = Gate::new();
        let _open = OpenOnDrop(held_back.clone());
        let writers = [&client, &server].map(|socket| {
            let (mut out, data, held_back) = (
                socket.try_clone().unwrap(),
                Arc::clone(&data),
                held_back.clone(),
            );
            thread::spawn(move || {
                out.write_all(&data[..SIZE - 1]).unwrap();
                held_back.pass();
                out.write_all(&data[SIZE - 1..]).unwrap();
                out.shutdown(Shutdown::Write).unwrap();
            })
        });
        let readers = [
            thread::spawn(move || {
                let mut got = Vec::new();
                server.read_to_end(&mut got).unwrap();
                got
            }),
            thread::spawn(move || {
                let mut got = Vec::new();
                client.read_to_end(&mut got).unwrap();
                got
            }),
        ];
        let mut sides = (a, b);
        let mut moved = (0, 0);
        for round in 0..15 {
            let relay = relay(sides.0, sides.1).unwrap();
            // At any moment, as far as the machine lets us choose one.
            let_pass(Duration::from_micros(500 + round * 350));
            relay.interrupt();
            let outcome = relay.wait_timeout(LIMIT).unwrap().expect("it ends");
            moved.0 += outcome.a_to_b;
            moved.1 += outcome.b_to_a;
            sides = (outcome.a.expect("a is open"), outcome.b.expect("b is open"));
        }
        let rest = relay(sides.0, sides.1).unwrap();
        held_back.open();
        for reader in readers {
            assert!(reader.join().unwrap() == *data);
        }
        for writer in writers {
            writer.join().unwrap();
        }
        let outcome = rest.wait_timeout(LIMIT).unwrap().expect("it ends");
        assert_eq!(outcome.end, RelayEnd::Finished);
        // What one relay had received and not passed on the next one found in its input.
        assert_eq!(
            (moved.0 + outcome.a_to_b, moved.1 + outcome.b_to_a),
            (SIZE as u64, SIZE as u64)
        );
    });
}

#[test]
fn relays_have_no_threads_of_their_own() {
    in_child("relays_have_no_threads_of_their_own", || {
        bounded("threads", || {
            let (a, mut client) = pair();
            let (b, mut server) = pair();
            let first = relay(a, b).unwrap();
            ping(&mut client, &mut server, b"warm");
            let before = threads();
            let mut all = Vec::new();
            for _ in 0..50 {
                let (a, client) = pair();
                let (b, server) = pair();
                all.push((client, server, relay(a, b).unwrap()));
            }
            for (client, server, _) in &mut all {
                ping(client, server, b"there");
                ping(server, client, b"back");
            }
            // The pollers may have taken another one meanwhile, but not one for each relay.
            let now = threads();
            assert!(now < before + 10, "{now} threads instead of {before}");
            drop((first, all));
        });
    });
}

/// A proxy to `backend` on pollers that others share.
fn proxy(
    pollers: &PollerGroup,
    backend: SocketAddr,
    ends: &Log<RelayEnd>,
) -> (EventLoop, SocketAddr) {
    let ends = ends.clone();
    let dialer = Dialer::new().pollers(pollers.clone());
    let event_loop = EventLoop::builder()
        .pollers(pollers.clone())
        .build(event_fn(move |client: &mut Connection, event| {
            if event == ConnectionEvent::Connected {
                let backend = dialer.dial_connection(Address::from(backend))?;
                let ends = ends.clone();
                relay(client.hijack()?, backend)?.on_end(move |outcome| ends.push(outcome.end));
            }
            Ok(())
        }))
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    event_loop.serve_in_background(listener).unwrap();
    (event_loop, address)
}

#[test]
fn a_chain_of_relays_works_with_one_poller_and_one_thread() {
    const HOPS: usize = 5;
    bounded("chain", || {
        let pollers = PollerGroup::builder()
            .pollers(1)
            .balance(Balance::RoundRobin)
            .max_threads(1)
            .build()
            .unwrap();
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let ends = Log::new();
        let mut next = backend.local_addr().unwrap();
        let mut proxies = Vec::new();
        for _ in 0..HOPS {
            let (event_loop, address) = proxy(&pollers, next, &ends);
            proxies.push(event_loop);
            next = address;
        }
        let mut clients = Vec::new();
        for _ in 0..4 {
            let client = TcpStream::connect(next).unwrap();
            let (server, _) = backend.accept().unwrap();
            for socket in [&client, &server] {
                socket.set_read_timeout(Some(LIMIT)).unwrap();
                socket.set_write_timeout(Some(LIMIT)).unwrap();
            }
            clients.push((client, server));
        }
        for (client, server) in &mut clients {
            for _ in 0..20 {
                ping(client, server, b"there");
                ping(server, client, b"and back");
            }
        }
        // Both ways at once, more than all buffers on the way hold.
        let data = pattern(6_000_000);
        let transfers: Vec<_> = clients
            .into_iter()
            .flat_map(|(client, server)| [client, server])
            .map(|mut socket| {
                let data = Arc::clone(&data);
                let mut out = socket.try_clone().unwrap();
                let sent = Arc::clone(&data);
                let writer = thread::spawn(move || {
                    out.write_all(&sent).unwrap();
                    out.shutdown(Shutdown::Write).unwrap();
                });
                thread::spawn(move || {
                    let mut got = Vec::new();
                    socket.read_to_end(&mut got).unwrap();
                    assert!(got == *data);
                    writer.join().unwrap();
                })
            })
            .collect();
        for transfer in transfers {
            transfer.join().unwrap();
        }
        assert_eq!(ends.wait_len(4 * HOPS), [RelayEnd::Finished; 4 * HOPS]);
        for event_loop in proxies {
            event_loop.shutdown(LIMIT).unwrap();
        }
        assert_eq!(
            pollers.stats().workers.threads,
            1,
            "nobody needed another one"
        );
        pollers.close();
    });
}

//! What an idle connection holds.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Transport, counting, echo_frames, eventually, frame, in_child,
    one_thread,
};
use netpoll::{Connection, Dialer, handler_fn};
use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

const CONNECTIONS: usize = 2000;
/// The promise: user memory of an idle connection.
const PROMISE: usize = 1024;
/// What it was when this was written, and a little more: above it is a step back.
const GUARD: usize = 530;

fn per_connection(what: &str, before: usize) -> usize {
    let each = counting::live().saturating_sub(before) / CONNECTIONS;
    println!("{what}: {each} bytes per connection");
    each
}

fn idle_servers(case: Case, most: usize) {
    let group = one_thread();
    let partial = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&partial);
    let server = case.serve_with(
        case.builder().pollers(group.clone()),
        handler_fn(move |conn| {
            if conn.available() == 5 {
                count.fetch_add(1, SeqCst);
            }
            echo_frames(conn)
        }),
    );
    // What the first ones bring along is not theirs alone: the thread's chunk, for one.
    for _ in 0..3 {
        server.connect().ping(&[1; 100]);
    }
    eventually("quiet", || server.event_loop.stats().active == 0);
    let mut peers: Vec<Peer> = Vec::with_capacity(CONNECTIONS);
    let before = counting::live();
    for _ in 0..CONNECTIONS {
        peers.push(server.connect());
    }
    eventually("all", || {
        server.event_loop.stats().connected as usize == CONNECTIONS + 3
    });
    let fresh = per_connection(&format!("{case:?} fresh"), before);
    assert!(
        fresh <= most,
        "{fresh} bytes per fresh connection, {case:?}"
    );

    let out = frame(&[7; 100]);
    let mut back = vec![0; out.len()];
    for peer in &mut peers {
        peer.write_all(&out).unwrap();
        peer.read_exact(&mut back).unwrap();
    }
    // The reply comes before the handler has returned.
    eventually("the last handler", || {
        counting::live().saturating_sub(before) / CONNECTIONS <= most
    });
    per_connection(&format!("{case:?} after a request"), before);

    for peer in &mut peers {
        peer.write_all(&out[..5]).unwrap();
    }
    eventually("all have seen them", || partial.load(SeqCst) == CONNECTIONS);
    // What the last handler returns to may take a moment.
    eventually("5 unread bytes hold little", || {
        counting::live().saturating_sub(before) / CONNECTIONS <= most + 512
    });
    per_connection(&format!("{case:?} with 5 unread bytes"), before);

    let idle = server.event_loop.clone();
    drop(peers);
    eventually("the ends", || idle.stats().active == 0);
    server.stop();
    group.close();
}

#[test]
fn an_idle_connection_of_a_server_holds_little() {
    in_child("an_idle_connection_of_a_server_holds_little", || {
        for kind in [Kind::Adaptive, Kind::OneWorker, Kind::Inline] {
            for transport in [Transport::Tcp, Transport::Unix] {
                idle_servers(Case::new(transport, kind), PROMISE);
            }
        }
    });
}

#[test]
fn an_idle_connection_of_a_server_holds_no_more_than_it_did() {
    in_child(
        "an_idle_connection_of_a_server_holds_no_more_than_it_did",
        || {
            idle_servers(Case::new(Transport::Tcp, Kind::Adaptive), GUARD);
        },
    );
}

/// Each of them was received into the thread's chunk: it must not keep that for itself.
#[test]
fn a_reply_that_waits_for_a_slow_peer_holds_little_more_than_itself() {
    in_child(
        "a_reply_that_waits_for_a_slow_peer_holds_little_more_than_itself",
        || {
            const PEERS: usize = 50;
            const REPLY: usize = 1500;
            let group = one_thread();
            let taken = Log::new();
            let log = taken.clone();
            let case = Case::new(Transport::Unix, Kind::Inline);
            let server = case.serve_with(
                case.builder().pollers(group.clone()),
                handler_fn(move |conn: &mut Connection| {
                    conn.forward(conn.available())?;
                    log.push(conn.try_flush()?);
                    Ok(())
                }),
            );
            // Peers that read nothing, until a reply does not go out.
            let mut rounds = 0;
            let mut fill = |peer: &mut Peer| {
                loop {
                    peer.write_all(&[7; REPLY]).unwrap();
                    rounds += 1;
                    if !taken.wait_len(rounds)[rounds - 1] {
                        return;
                    }
                }
            };
            let mut peers: Vec<Peer> = (0..PEERS).map(|_| server.connect()).collect();
            // The log has all the room it needs after the first ones.
            let (first, rest) = peers.split_at_mut(PEERS / 2);
            first.iter_mut().for_each(&mut fill);
            let before = counting::live();
            rest.iter_mut().for_each(&mut fill);
            let each = counting::live().saturating_sub(before) / rest.len();
            println!("{each} bytes for a waiting reply of {REPLY}");
            assert!(
                each <= 3 * REPLY,
                "{each} bytes for a waiting reply of {REPLY}"
            );
            drop(peers);
            server.stop();
            group.close();
        },
    );
}

/// More than is copied to a chunk of its size, and much less than the chunk it was received into.
#[test]
fn a_partial_message_holds_little_more_than_itself() {
    in_child("a_partial_message_holds_little_more_than_itself", || {
        const PEERS: usize = 60;
        const PART: usize = 5000;
        let group = one_thread();
        let seen = Log::new();
        let log = seen.clone();
        let case = Case::new(Transport::Unix, Kind::Inline);
        let server = case.serve_with(
            case.builder().pollers(group.clone()),
            handler_fn(move |conn: &mut Connection| {
                if conn.try_fill(2 * PART)? {
                    conn.forward(2 * PART)?;
                    return conn.flush();
                }
                log.push(conn.available());
                Ok(())
            }),
        );
        let mut peers: Vec<Peer> = (0..PEERS).map(|_| server.connect()).collect();
        let mut begun = 0;
        let mut begin = |peer: &mut Peer| {
            peer.write_all(&[1; PART]).unwrap();
            begun += 1;
            assert_eq!(seen.wait_len(begun)[begun - 1], PART);
        };
        let (first, rest) = peers.split_at_mut(PEERS / 2);
        first.iter_mut().for_each(&mut begin);
        let before = counting::live();
        rest.iter_mut().for_each(&mut begin);
        let each = counting::live().saturating_sub(before) / rest.len();
        println!("{each} bytes for {PART} of a message");
        assert!(each <= 3 * PART, "{each} bytes for {PART} of a message");
        // Each is continued where it was left.
        let mut back = [0; 2 * PART];
        for peer in &mut peers {
            peer.write_all(&[2; PART]).unwrap();
            peer.read_exact(&mut back).unwrap();
            assert_eq!(
                (&back[..PART], &back[PART..]),
                (&[1; PART][..], &[2; PART][..])
            );
        }
        drop(peers);
        server.stop();
        group.close();
    });
}

#[test]
fn an_idle_connection_of_a_client_holds_little() {
    in_child("an_idle_connection_of_a_client_holds_little", || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let dialer = Dialer::new().read_timeout(LIMIT);
        let call = |conn: &mut Connection, peer: &mut std::net::TcpStream| {
            conn.write_slice(b"question").unwrap();
            conn.flush().unwrap();
            let mut got = [0; 8];
            peer.read_exact(&mut got).unwrap();
            peer.write_all(b"answer").unwrap();
            assert_eq!(conn.next(6).unwrap(), b"answer");
        };
        for _ in 0..3 {
            let mut conn = dialer.dial_connection(address).unwrap();
            let (mut peer, _) = listener.accept().unwrap();
            call(&mut conn, &mut peer);
        }
        eventually("quiet", || dialer.stats().unwrap().active == 0);
        let mut peers = Vec::with_capacity(CONNECTIONS);
        let mut conns = Vec::with_capacity(CONNECTIONS);
        let before = counting::live();
        for _ in 0..CONNECTIONS {
            conns.push(dialer.dial_connection(address).unwrap());
            peers.push(listener.accept().unwrap().0);
        }
        let fresh = per_connection("dialled, fresh", before);
        assert!(fresh <= PROMISE, "{fresh} bytes per fresh connection");
        // A connection that its caller holds keeps its buffers until it is given to a pool.
        let pool = netpoll::Pool::builder(dialer.clone())
            .max_idle(CONNECTIONS)
            .build()
            .unwrap();
        drop((conns, peers));
        eventually("quiet", || dialer.stats().unwrap().active == 0);
        let address = netpoll::Address::from(address);
        let mut loans = Vec::with_capacity(CONNECTIONS);
        let mut peers = Vec::with_capacity(CONNECTIONS);
        let before = counting::live();
        for _ in 0..CONNECTIONS {
            let mut conn = pool.get(&address).unwrap();
            let (mut peer, _) = listener.accept().unwrap();
            call(&mut conn, &mut peer);
            loans.push(conn);
            peers.push(peer);
        }
        drop(loans);
        let kept = counting::live().saturating_sub(before) / CONNECTIONS;
        println!("in a pool, after a call: {kept} bytes per connection");
        assert_eq!(pool.stats().idle, CONNECTIONS);
        assert!(kept <= PROMISE, "{kept} bytes per connection in a pool");
    });
}

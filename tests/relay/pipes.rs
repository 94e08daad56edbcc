//! The kernel pipes of relays: taken for bulk, given back when nothing moves.

use crate::support::{LIMIT, Peer, Transport, bounded, eventually, in_child, pattern};
use netpoll::{Connection, Dialer, Relay, relay};
use std::{
    fs,
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Unix];

/// More than a relay and the sockets beside it hold.
const SIZE: usize = 60_000_000;

fn side(transport: Transport) -> (Connection, Peer) {
    let (ours, peer): (OwnedFd, _) = match transport {
        Transport::Tcp => {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let peer = Peer::connect(&listener.local_addr().unwrap().into()).unwrap();
            (listener.accept().unwrap().0.into(), peer)
        }
        Transport::Unix => {
            let (ours, peer) = UnixStream::pair().unwrap();
            (ours.into(), Peer::Unix(peer))
        }
    };
    peer.set_limit(Some(LIMIT));
    (Dialer::new().adopt(ours).unwrap(), peer)
}

/// Ends of pipes that this process has open.
fn pipes() -> usize {
    let is_pipe = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path());
        target.is_ok_and(|path| path.to_string_lossy().starts_with("pipe:"))
    };
    let entries = fs::read_dir("/proc/self/fd").unwrap();
    entries.flatten().map(is_pipe).filter(|&pipe| pipe).count()
}

/// Fills everything on the way and empties it.
fn move_bulk(relay: &Relay, from: &Peer, to: &Peer) {
    let mut out = from.try_clone();
    let writing = thread::spawn(move || out.write_all(&vec![7; SIZE / 4]).unwrap());
    stands_still(relay);
    to.try_clone().read_exact(&mut vec![0; SIZE / 4]).unwrap();
    writing.join().unwrap();
}

/// Whether there are more than `before` ends of pipes at some time during `work`.
fn takes_pipes(before: usize, work: impl FnOnce()) -> bool {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            loop {
                // They are kept for a while after the last byte.
                let seen = pipes() > before;
                if seen || over.load(Ordering::SeqCst) {
                    return seen;
                }
                thread::yield_now();
            }
        });
        work();
        over.store(true, Ordering::SeqCst);
        watching.join().unwrap()
    })
}

#[test]
fn idle_relays_hold_no_pipes() {
    in_child("idle_relays_hold_no_pipes", || {
        bounded("idle", || {
            let before = pipes();
            for transport in TRANSPORTS {
                let relays: Vec<_> = (0..5)
                    .map(|_| {
                        let ((a, client), (b, server)) = (side(transport), side(transport));
                        (relay(a, b).unwrap(), client, server)
                    })
                    .collect();
                for _ in 0..2 {
                    let taken = takes_pipes(before, || {
                        for (relay, client, server) in &relays {
                            move_bulk(relay, client, server);
                            move_bulk(relay, server, client);
                        }
                    });
                    // What a unix socket holds may come in pieces too small for a pipe.
                    let is_unix = transport == Transport::Unix;
                    assert!(taken || is_unix, "bulk goes through pipes");
                    eventually("the pipes are given back", || pipes() == before);
                    // Also when the relays are as good as before.
                }
            }
        });
    });
}

/// Waits until the relay moves nothing.
fn stands_still(relay: &Relay) {
    let mut before = (relay.moved(), Instant::now());
    eventually("the relay stands still", || {
        let moved = relay.moved();
        if moved != before.0 {
            before = (moved, Instant::now());
        }
        before.1.elapsed() > Duration::from_millis(20)
    });
}

#[test]
fn stalled_relays_hold_no_pipes_and_lose_nothing() {
    in_child("stalled_relays_hold_no_pipes_and_lose_nothing", || {
        bounded("stalled", || {
            let before = pipes();
            for transport in TRANSPORTS {
                let limit = 100_000;
                let mut stalled = Vec::new();
                for _ in 0..4 {
                    let ((a, client), (b, server)) = (side(transport), side(transport));
                    let target = b.handle();
                    let relay = Relay::builder().in_flight(limit).start(a, b).unwrap();
                    let writing = thread::spawn(move || {
                        let mut client = client;
                        client.write_all(&pattern(3, SIZE)).unwrap();
                        client.shutdown_write();
                        client
                    });
                    stalled.push((relay, server, writing, target));
                }
                for (relay, ..) in &stalled {
                    stands_still(relay);
                }
                eventually("the pipes are given back", || pipes() == before);
                for (relay, mut server, writing, target) in stalled {
                    let queued = target.stats().queued;
                    assert!(
                        queued <= limit + (64 << 10),
                        "{queued} bytes wait, {limit} and one receive are allowed"
                    );
                    let mut got = Vec::new();
                    server.read_to_end(&mut got).unwrap();
                    assert!(got == pattern(3, SIZE));
                    drop((server, writing.join().unwrap()));
                    relay.wait_timeout(LIMIT).unwrap().expect("it ends");
                }
            }
        });
    });
}

//! Values of the user that do things when they are dropped: payloads that were queued or sent, what
//! callbacks captured. No lock of the library may be held then, and a panic must not get far.

mod support;

use netpoll::{Bytes, CloseReason, ConnectionHandle, OnFull};
use std::{
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
};
use support::{Case, LIMIT, Log, Peer, Script, Server, echo_frames, every};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

/// A payload that uses its own connection when it is dropped.
struct Meddler {
    bytes: Vec<u8>,
    handle: ConnectionHandle,
    drops: Log<()>,
}

impl AsRef<[u8]> for Meddler {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Meddler {
    fn drop(&mut self) {
        let _ = self.handle.stats();
        let _ = self.handle.try_send(b"from a drop".as_slice().to_vec());
        self.handle.on_close(|_| {});
        let _ = self.handle.is_active();
        let _ = self.handle.done().poll();
        self.drops.push(());
    }
}

fn connected(case: Case) -> (Server, Peer, ConnectionHandle, Log<CloseReason>) {
    let (handles, ends) = (Log::new(), Log::new());
    let (known, ended) = (handles.clone(), ends.clone());
    let server = case.serve_with(
        case.builder().output_limit(2 * MUCH, OnFull::Error),
        Script::new()
            .connect(move |conn| {
                known.push(conn.handle());
                Ok(())
            })
            .request(echo_frames)
            .disconnect(move |_, reason| ended.push(reason)),
    );
    let (peer, handle) = server.connect_given(&handles);
    (server, peer, handle, ends)
}

#[test]
fn row_073_payloads_may_use_their_connection_when_they_are_dropped() {
    every(|case| {
        for abort in [false, true] {
            let (server, mut peer, handle, ends) = connected(case);
            let drops = Log::new();
            let meddler = |len| {
                Bytes::from_owner(Meddler {
                    bytes: vec![1; len],
                    handle: handle.clone(),
                    drops: drops.clone(),
                })
            };
            // The first fills the socket, the others are queued: large ones as they are, small
            // ones as copies.
            for len in [MUCH, 1, 100, 5_000, 100_000] {
                handle.send_bytes(meddler(len)).unwrap();
            }
            if abort {
                handle.abort();
                peer.expect_gone();
            } else {
                let mut all = vec![0; MUCH + 105_101];
                peer.read_exact(&mut all).unwrap();
            }
            drops.wait_len(5);
            handle.abort();
            ends.wait_len(1);
            server.stop();
            assert_eq!(drops.len(), 5);
        }
    });
}

/// A payload that panics when it is dropped.
struct Bomb(Vec<u8>, Log<()>);

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.1.push(());
        if !std::thread::panicking() {
            panic!("as asked");
        }
    }
}

/// The connection ends, with all of its callbacks, and the loop goes on.
#[track_caller]
fn contained(server: Server, handle: &ConnectionHandle, ends: &Log<CloseReason>) {
    let mut other = server.connect();
    other.ping(b"lives");
    assert!(handle.done().wait_timeout(LIMIT).is_some(), "it never ends");
    ends.wait_len(1);
    other.ping(b"still");
    drop(other);
    server.stop();
    assert_eq!(ends.len(), 2, "each of the two once");
}

#[test]
fn row_076_a_payload_that_panics_when_it_was_sent_by_the_poller() {
    every(|case| {
        let (server, mut peer, handle, ends) = connected(case);
        let drops = Log::new();
        let bomb = Bytes::from_owner(Bomb(vec![1; MUCH], drops.clone()));
        handle.send_bytes(bomb).unwrap();
        peer.read_exact(&mut vec![0; MUCH]).unwrap();
        drops.wait_len(1);
        handle.close();
        contained(server, &handle, &ends);
    });
}

#[test]
fn row_076_a_payload_that_panics_when_it_was_sent_at_once() {
    every(|case| {
        let (server, mut peer, handle, ends) = connected(case);
        let drops = Log::new();
        let bomb = Bytes::from_owner(Bomb(vec![1; 5000], drops.clone()));
        // It is the caller's own value: the panic may reach it.
        let _ = catch_unwind(AssertUnwindSafe(|| handle.send_bytes(bomb)));
        drops.wait_len(1);
        peer.read_exact(&mut vec![0; 5000]).unwrap();
        // Others' messages are not held up by it.
        if handle.is_active() {
            handle.send_bytes(Bytes::from_static(b"next")).unwrap();
            let mut next = [0; 4];
            peer.read_exact(&mut next).unwrap();
            assert_eq!(&next, b"next");
        }
        handle.close();
        contained(server, &handle, &ends);
    });
}

#[test]
fn row_076_a_payload_that_panics_when_an_abort_drops_it() {
    every(|case| {
        let (server, peer, handle, ends) = connected(case);
        let drops = Log::new();
        let bomb = Bytes::from_owner(Bomb(vec![1; MUCH], drops.clone()));
        handle.send_bytes(bomb).unwrap();
        let _ = catch_unwind(AssertUnwindSafe(|| handle.abort()));
        drops.wait_len(1);
        contained(server, &handle, &ends);
        drop(peer);
    });
}

#[test]
fn row_076_a_payload_that_panics_when_its_connection_is_reset() {
    every(|case| {
        let (server, peer, handle, ends) = connected(case);
        let drops = Log::new();
        let bomb = Bytes::from_owner(Bomb(vec![1; MUCH], drops.clone()));
        handle.send_bytes(bomb).unwrap();
        peer.reset();
        drops.wait_len(1);
        contained(server, &handle, &ends);
    });
}

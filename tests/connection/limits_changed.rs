//! Output limits that change while a connection lives.

use crate::support::{
    Case, LIMIT, Log, Peer, Server, asleep_in, bounded, eventually, every, giving, pattern,
};
use netpoll::{Address, CloseReason, ConnectionHandle, Dialer, Error, OnFull, Pool};
use std::{
    io::{self, Read, Write},
    net::TcpListener,
    os::unix::net::UnixStream,
};

/// More than the sockets between two peers hold.
const MUCH: usize = 24 << 20;

/// A connection whose peer reads nothing, with this policy for what does not fit.
fn stuffed(case: Case, on_full: OnFull) -> (Server, Peer, ConnectionHandle) {
    let handles = Log::new();
    let builder = case.builder().output_limit(MUCH * 2, on_full);
    let server = case.serve_with(builder, giving(&handles));
    let (peer, handle) = server.connect_given(&handles);
    handle.send(pattern(1, MUCH)).unwrap();
    assert!(handle.stats().queued > 1 << 20);
    (server, peer, handle)
}

#[track_caller]
fn expect_full(result: io::Result<usize>, expected: usize) {
    let error = result.expect_err("there is no room");
    let Some(Error::OutputFull { limit, .. }) = Error::from_io(&error) else {
        panic!("{error}")
    };
    assert_eq!(limit, expected);
}

#[test]
fn a_lower_limit_holds_at_once_and_a_higher_one_too() {
    every(|case| {
        let (server, mut peer, handle) = stuffed(case, OnFull::Error);
        handle.send(vec![2; 1000]).expect("the loop's limit");
        handle.set_output_limit(100_000, OnFull::Error);
        expect_full(handle.send(vec![2; 1000]), 100_000);
        expect_full(handle.try_send(vec![2; 1000]), 100_000);
        handle.set_output_limit(MUCH * 3, OnFull::Error);
        handle.send(vec![2; 1000]).expect("the higher limit");
        // What was queued while the limit was lower is there.
        let mut got = vec![0; MUCH + 2000];
        peer.read_exact(&mut got).unwrap();
        assert!(got[..MUCH] == pattern(1, MUCH)[..] && got[MUCH..] == [2; 2000]);
        server.stop();
    });
}

#[test]
fn a_limit_is_of_one_connection() {
    every(|case| {
        let handles = Log::new();
        let server = case.serve_with(
            case.builder().output_limit(MUCH * 2, OnFull::Error),
            giving(&handles),
        );
        let pair = [(); 2].map(|()| server.connect_given(&handles));
        pair[0].1.set_output_limit(1000, OnFull::Error);
        for (_, handle) in &pair {
            handle.send(pattern(1, MUCH)).expect("an empty queue");
        }
        expect_full(pair[0].1.send(vec![2; 1000]), 1000);
        pair[1].1.send(vec![2; 1000]).expect("the loop's limit");
        for (_, handle) in pair {
            handle.abort();
        }
        server.stop();
    });
}

#[test]
fn a_sender_that_waits_goes_on_when_the_limit_is_raised() {
    every(|case| {
        let (server, peer, handle) = stuffed(case, OnFull::Block);
        let patient = handle.clone().with_write_timeout(Some(LIMIT));
        handle.set_output_limit(100_000, OnFull::Block);
        let sending = asleep_in(move || patient.send(vec![2; 1000]));
        assert!(!sending.is_finished(), "there is no room");
        handle.set_output_limit(MUCH * 2, OnFull::Block);
        assert_eq!(sending.join().unwrap().unwrap(), 1000);
        drop(peer);
        handle.abort();
        server.stop();
    });
}

#[test]
fn the_policy_changes_with_the_limit() {
    every(|case| {
        let (server, peer, handle) = stuffed(case, OnFull::Block);
        handle.set_output_limit(100_000, OnFull::Close);
        let error = handle.send(vec![2; 1000]).unwrap_err();
        let closed = Error::Closed(CloseReason::OutputFull);
        assert_eq!(Error::from_io(&error), Some(closed));
        eventually("it ends", || handle.done().poll().is_some());
        drop(peer);
        server.stop();
    });
}

#[test]
fn messages_are_limited_as_bytes_are() {
    every(|case| {
        let (server, peer, handle) = stuffed(case, OnFull::Error);
        handle.set_output_messages(3);
        handle.send(vec![2; 1]).unwrap();
        handle.send(vec![2; 1]).unwrap();
        let error = handle.send(vec![2; 1]).unwrap_err();
        let full = Error::from_io(&error);
        assert!(matches!(full, Some(Error::OutputFull { .. })), "{error}");
        handle.set_output_messages(4);
        handle.send(vec![2; 1]).unwrap();
        drop(peer);
        handle.abort();
        server.stop();
    });
}

#[test]
fn a_handler_that_waits_for_its_output_goes_on_when_the_limit_is_raised() {
    every(|case| {
        let (runs, handles) = (Log::new(), Log::new());
        let log = runs.clone();
        let script = giving(&handles).request(move |conn| {
            conn.skip(conn.available())?;
            conn.write_slice(b"answer")?;
            conn.flush()?;
            log.push(());
            Ok(())
        });
        let server = case.serve(script);
        let (mut peer, handle) = server.connect_given(&handles);
        // A little behind a full socket: above a fourth of a small limit, below the mark of a large one.
        while handle.stats().queued < 15_000 {
            handle.send(vec![0; 1000]).unwrap();
        }
        handle.set_output_limit(40_000, OnFull::Error);
        peer.write_all(b"1").unwrap();
        runs.wait_len(1);
        peer.write_all(b"2").unwrap();
        // Had it been run for that, it would have been when the next connection is served.
        let mut other = server.connect();
        other.write_all(b"1").unwrap();
        other.read_exact(&mut [0; 6]).unwrap();
        runs.wait_len(2);
        assert_eq!(handle.stats().bytes_in, 1, "it is not read");
        handle.set_output_limit(8 << 20, OnFull::Error);
        runs.wait_len(3);
        assert_eq!(handle.stats().bytes_in, 2);
        handle.abort();
        server.stop();
    });
}

#[test]
fn a_connection_of_ones_own_has_limits_too() {
    bounded("own", || {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut conn = Dialer::new().adopt(ours).unwrap();
        conn.set_output_limit(1000, OnFull::Error);
        conn.write_slice(&pattern(1, MUCH)).unwrap();
        assert!(!conn.try_flush().unwrap(), "an empty queue takes one");
        conn.write_slice(b"more").unwrap();
        expect_full(conn.try_flush().map(usize::from), 1000);
        conn.set_output_limit(MUCH * 2, OnFull::Error);
        assert!(!conn.try_flush().unwrap());
        conn.abort();
    });
}

#[test]
fn a_pooled_connection_has_its_dialers_limits_again() {
    bounded("pooled", || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Address::from(listener.local_addr().unwrap());
        let pool = Pool::new(Dialer::new().output_limit(50_000, OnFull::Error));
        let mut first = pool.get(&to).unwrap();
        let (_peer, _) = listener.accept().unwrap();
        first.set_output_limit(1000, OnFull::Close);
        first.set_output_messages(1);
        drop(first);
        let mut next = pool.get(&to).unwrap();
        assert_eq!(pool.stats().reused, 1);
        next.write_slice(&pattern(1, MUCH)).unwrap();
        assert!(!next.try_flush().unwrap());
        next.write_slice(b"more").unwrap();
        expect_full(next.try_flush().map(usize::from), 50_000);
        next.discard();
    });
}

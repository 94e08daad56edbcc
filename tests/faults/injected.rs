//! Rows of docs/reliability.md that need an error of the system which no peer and no limit can
//! make: sockets that an administrator kills, networks that go away, ports that run out.
//!
//! A plan is for the whole process, so the tests take turns.

use crate::support::{
    Case, Kind, LIMIT, Log, Peer, Script, Transport, bounded, echo, echo_frames, eventually, frame,
    in_child, settled_descriptors,
};
use netpoll::{
    CloseReason, Dialer, Error,
    fault::{Call, Fault, Plan},
};
use std::io::{self, Read, Write};

const KINDS: [Kind; 3] = [Kind::Adaptive, Kind::Workers, Kind::Inline];

/// One call of the kind fails with `errno` in the middle of a conversation.
fn fails_once(call: Call, errno: i32) {
    let _turn = crate::TURN.lock();
    let kind = io::Error::from_raw_os_error(errno).kind();
    bounded(&format!("{call:?} {errno}"), move || {
        for dispatch in KINDS {
            let log = Log::new();
            let [l1, l2] = [log.clone(), log.clone()];
            let server = Case::new(Transport::Tcp, dispatch).serve(
                Script::new()
                    .prepare(move |conn| {
                        let log = l1.clone();
                        conn.on_close(move |reason| log.push(("close callback", reason)));
                        Ok(())
                    })
                    .request(echo_frames)
                    .disconnect(move |_, reason| l2.push(("disconnect", reason))),
            );
            let mut steady = server.connect();
            steady.ping(b"up");
            let mut victim = server.connect();
            victim.ping(b"up");
            {
                let installed = Plan::new(1).from(call, 1, 1, Fault::Errno(errno)).install();
                victim.write_all(&frame(b"the last")).unwrap();
                let mut rest = Vec::new();
                let _ = victim.read_to_end(&mut rest);
                assert!(rest.is_empty(), "{} bytes of an answer", rest.len());
                assert_eq!(
                    log.wait_len(2),
                    [
                        ("disconnect", CloseReason::Error(kind)),
                        ("close callback", CloseReason::Error(kind))
                    ],
                    "{dispatch:?}"
                );
                assert_eq!(installed.hits(call), 1);
            }
            steady.ping(b"not me");
            drop((victim, steady));
            server.stop();
        }
    });
}

#[test]
fn row_117_a_socket_that_is_killed_while_it_is_read() {
    fails_once(Call::Receive, libc::ECONNABORTED);
}

#[test]
fn row_117_a_socket_that_is_killed_while_it_is_written() {
    fails_once(Call::Send, libc::ECONNABORTED);
}

#[test]
fn row_098_a_peer_that_is_found_gone_while_its_connection_is_read() {
    // What keep-alive probes and the user timeout end with.
    fails_once(Call::Receive, libc::ETIMEDOUT);
    fails_once(Call::Receive, libc::EHOSTUNREACH);
}

#[test]
fn row_098_a_peer_that_is_found_gone_while_its_connection_is_written() {
    fails_once(Call::Send, libc::ETIMEDOUT);
    fails_once(Call::Send, libc::ENETUNREACH);
}

#[test]
fn row_092_without_a_free_port_a_dial_fails_and_does_not_spin() {
    let _turn = crate::TURN.lock();
    in_child(
        "row_092_without_a_free_port_a_dial_fails_and_does_not_spin",
        || {
            let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
            let dialer = Dialer::new().connect_timeout(LIMIT).retries(0);
            drop(dialer.dial_connection(server.address.clone()).unwrap());
            eventually("its end", || server.event_loop.stats().active == 0);
            let before = crate::support::descriptors();
            let installed = Plan::new(2)
                .every(Call::Connect, 1, Fault::Errno(libc::EADDRNOTAVAIL))
                .this_thread()
                .install();
            for round in 1..=50 {
                let error = dialer
                    .dial_connection(server.address.clone())
                    .map(drop)
                    .unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable, "{error}");
                assert!(error.to_string().contains(&server.address.to_string()));
                assert_eq!(installed.calls(Call::Connect), round, "it tried again");
            }
            drop(installed);
            settled_descriptors(before);
            drop(dialer.dial_connection(server.address.clone()).unwrap());
            server.stop();
        },
    );
}

#[test]
fn row_117_an_owner_hears_of_the_error_and_of_nothing_after_it() {
    let _turn = crate::TURN.lock();
    bounded("owner", || {
        let server = Case::new(Transport::Tcp, Kind::Adaptive).serve(echo());
        let mut conn = server.dial();
        conn.write_slice(&frame(b"up")).unwrap();
        conn.flush().unwrap();
        conn.skip(6).unwrap();
        {
            let _installed = Plan::new(3)
                .from(Call::Receive, 1, 1, Fault::Errno(libc::ECONNABORTED))
                .this_thread()
                .install();
            conn.write_slice(&frame(b"lost")).unwrap();
            conn.flush().unwrap();
            let error = conn.fill(8).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
        }
        // It stays over, although the socket would go on.
        for _ in 0..3 {
            let error = Error::from_io(&conn.fill(8).unwrap_err());
            assert!(matches!(error, Some(Error::Closed(_))), "{error:?}");
        }
        drop(conn);
        server.stop();
    });
}

#[test]
fn row_115_a_kernel_without_memory_makes_everything_slow_and_nothing_wrong() {
    let _turn = crate::TURN.lock();
    bounded("no memory", || {
        for dispatch in KINDS {
            let _installed = Plan::new(4)
                .chance(Call::Send, 300, Fault::Errno(libc::ENOBUFS))
                .chance(Call::Send, 50, Fault::Errno(libc::ENOMEM))
                .chance(Call::Accept, 200, Fault::Errno(libc::ENOMEM))
                .install();
            let server = Case::new(Transport::Tcp, dispatch).serve(echo());
            let mut peers: Vec<Peer> = (0..3).map(|_| server.connect()).collect();
            for round in 0..20_u8 {
                for peer in &mut peers {
                    peer.ping(&vec![round; 20_000]);
                }
            }
            drop(peers);
            server.stop();
        }
    });
}

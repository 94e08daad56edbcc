//! Every log event about a connection names its number.

use crate::support::{
    Log, Script, Server, Transport, bounded, eventually, in_child,
    lines::{keep, lines},
};
use netpoll::{CloseReason, ConnectionEvent, Delimited, EventLoop, event_fn, framed};
use std::{collections::BTreeSet, io::Write};
/// The number behind `connection `.
fn number(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("connection ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..end].parse().ok()
}

#[test]
fn every_line_about_a_connection_has_its_number() {
    in_child("every_line_about_a_connection_has_its_number", || {
        keep(tracing::Level::TRACE);
        bounded("log", || {
            let ids = Log::new();
            let (mut servers, mut peers) = (Vec::new(), Vec::new());
            let mut serve = |server: EventLoop, input: &[u8]| {
                let server = Server::serve(Transport::Tcp, server);
                let mut peer = server.connect();
                // One that is refused may be gone already.
                let _ = peer.write_all(input);
                servers.push(server);
                peers.push(peer);
            };
            // A handler's error, its panic, refusal, input that is cut, a frame that is too long, an
            // error after the end: everything there is a line for.
            let noted = |script: Script| {
                let ids = ids.clone();
                script.prepare(move |conn| {
                    ids.push(conn.id());
                    Ok(())
                })
            };
            let failing =
                noted(Script::new().request(|_| Err(std::io::Error::other("on purpose"))));
            serve(EventLoop::new(failing).unwrap(), b"x");
            let panicking = noted(Script::new().request(|_| panic!("on purpose")));
            serve(EventLoop::new(panicking).unwrap(), b"x");
            let log = ids.clone();
            let refusing = Script::new().prepare(move |conn| {
                log.push(conn.id());
                Err(std::io::Error::other("not you"))
            });
            serve(EventLoop::new(refusing).unwrap(), b"x");
            let closing = noted(Script::new().request(|conn| {
                conn.handle().close();
                Ok(())
            }));
            serve(EventLoop::new(closing).unwrap(), b"x");
            let log = ids.clone();
            let lines_only = framed(Delimited::lines(3), move |conn, _| {
                log.push(conn.id());
                Ok(())
            });
            serve(EventLoop::new(lines_only).unwrap(), b"ok\ntoo long\n");
            let log = ids.clone();
            let last = event_fn(move |conn, event| match event {
                ConnectionEvent::Connecting => {
                    log.push(conn.id());
                    Ok(())
                }
                ConnectionEvent::Closed(CloseReason::Local) => {
                    Err(std::io::Error::other("too late"))
                }
                ConnectionEvent::Readable => {
                    conn.handle().close();
                    Ok(())
                }
                _ => Ok(()),
            });
            serve(EventLoop::new(last).unwrap(), b"x");
            let ids: BTreeSet<u64> = ids.wait_len(6).into_iter().collect();
            assert_eq!(ids.len(), 6, "numbers are unique");
            // Every one of them is told about.
            eventually("all have ended", || {
                let told: BTreeSet<u64> = lines().iter().filter_map(|line| number(line)).collect();
                told.is_superset(&ids)
            });
            drop(peers);
            for server in servers {
                server.stop();
            }
            let lines = lines();
            for line in &lines {
                let known = number(line).is_some_and(|id| ids.contains(&id));
                let of_a_listener =
                    line.starts_with("accept: ") || line.starts_with("listening at ");
                assert!(known || of_a_listener, "{line:?}");
            }
            for part in [
                "on purpose",
                "panic in",
                "refused",
                "closed: ",
                "too late",
                "listening at 127.",
                "it has a handler",
            ] {
                assert!(
                    lines.iter().any(|line| line.contains(part)),
                    "{part}: {lines:?}"
                );
            }
        });
    });
}

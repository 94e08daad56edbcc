//! The begin and the end of connections in the log: who, from where, to where.

use crate::support::{
    LIMIT, Log, Script, bounded, closed_port, echo, eventually, in_child,
    lines::{keep, lines},
};
use netpoll::{Address, Dialer, EventLoop, Listener, handler_fn};
use std::sync::mpsc;

/// The line that begins so comes, and has these words.
fn told(begin: &str, words: &[&str]) {
    let is_it =
        |line: &String| line.starts_with(begin) && words.iter().all(|word| line.contains(word));
    eventually(&format!("{begin} {words:?}"), || lines().iter().any(is_it));
}

#[test]
fn bind_accept_dial_and_close_are_told_with_addresses() {
    in_child("bind_accept_dial_and_close_are_told_with_addresses", || {
        keep(tracing::Level::DEBUG);
        bounded("log", || {
            let (accepted, ids) = (Log::new(), Log::new());
            let (seen, ended) = (accepted.clone(), ids.clone());
            let server = EventLoop::new(
                Script::new()
                    .prepare(move |conn| {
                        seen.push((conn.id(), conn.peer_addr().to_string()));
                        Ok(())
                    })
                    .disconnect(move |id, _| ended.push(id)),
            )
            .unwrap();
            let listener = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
            let address = listener.local_addr().unwrap();
            let here = address.to_string();
            server.serve_in_background(listener).unwrap();
            told(&format!("listening at {here}"), &[]);

            let dialer = Dialer::new();
            let name = Address::Host("localhost".into(), address.as_socket_addr().unwrap().port());
            // A dial that waits, one by name, one with a handler, and both that are started.
            let own = dialer.dial_connection(address.clone()).unwrap();
            let local = own.local_addr().unwrap().to_string();
            let dialled = |id: u64, to: &str, from: &str| {
                let begin = format!("connection {id}: dialled {to}, {here} from ");
                told(&begin, &[from]);
            };
            dialled(own.id(), &here, &local);
            let named = dialer.dial_connection(name.clone()).unwrap();
            dialled(named.id(), &name.to_string(), "127.0.0.1:");
            let handled = dialer.dial_with(address.clone(), echo()).unwrap();
            dialled(handled.id(), &here, "127.0.0.1:");
            let (tell, started) = mpsc::channel();
            dialer
                .start_connection(address.clone(), move |conn| tell.send(conn).unwrap())
                .unwrap();
            let started = started.recv_timeout(LIMIT).unwrap().unwrap();
            let from = started.local_addr().unwrap().to_string();
            dialled(started.id(), &here, &from);
            let with = dialer
                .start_with(address, handler_fn(|_| Ok(())), |error| panic!("{error}"))
                .unwrap();
            dialled(with.id(), &here, "127.0.0.1:");

            // The other ends of the five.
            for (id, peer) in accepted.wait_len(5) {
                told(&format!("connection {id} from {peer}, here {here}"), &[]);
            }
            let ends = [own.id(), named.id(), handled.id(), started.id(), with.id()];
            drop((own, named, started));
            handled.close();
            with.abort();
            for id in ends.into_iter().chain(ids.wait_len(5)) {
                told(&format!("connection {id} closed: "), &[]);
            }

            // Dials that fail.
            let (_closed, refusing) = closed_port();
            dialer.dial_connection(refusing).unwrap_err();
            let words = [&*refusing.to_string(), "refused"];
            told("dial failed: ", &words);
            let failing = dialer.start_connection(refusing, drop).unwrap();
            let begin = format!("connection {}: dial failed: ", failing.id());
            told(&begin, &words);
            server.shutdown(LIMIT).unwrap();
        });
    });
}

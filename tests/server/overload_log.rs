//! The log says what the threads are taken by.

use crate::support::{
    Gate, Log, OpenOnDrop, Script, Server, Transport, bounded, echo_frames, eventually, frame,
    in_child,
    lines::{keep, lines},
    read_frame,
};
use netpoll::{EventLoop, PollerGroup};
use std::{io::Write, time::Duration};

#[test]
fn one_line_names_the_connections_that_have_the_threads() {
    in_child(
        "one_line_names_the_connections_that_have_the_threads",
        || {
            keep(tracing::Level::WARN);
            bounded("log", || {
                let gate = Gate::new();
                let _open = OpenOnDrop(gate.clone());
                let (ids, held) = (Log::new(), gate.clone());
                let told = ids.clone();
                let group = PollerGroup::builder()
                    .pollers(1)
                    .max_threads(2)
                    .overload_after(Duration::from_millis(10))
                    .build()
                    .unwrap();
                let server = Server::start(
                    Transport::Tcp,
                    EventLoop::builder().pollers(group.clone()),
                    Script::new().request(move |conn| {
                        if conn.peek(5)?[4] == b'b' {
                            told.push(conn.id());
                            held.pass();
                        }
                        echo_frames(conn)
                    }),
                );
                let mut peers = [server.connect(), server.connect(), server.connect()];
                for (n, peer) in peers[..2].iter_mut().enumerate() {
                    peer.write_all(&frame(b"block")).unwrap();
                    ids.wait_len(n + 1);
                }
                peers[2].write_all(&frame(b"fine")).unwrap();
                eventually("a line", || !lines().is_empty());
                let looks = group.stats().total().stand_ins;
                eventually("more looks", || {
                    group.stats().total().stand_ins > looks + 20
                });
                // Once in ten seconds.
                let lines = lines();
                assert_eq!(lines.len(), 1, "{lines:?}");
                for id in ids.all() {
                    let name = format!("connection {id} for ");
                    assert!(lines[0].contains(&name), "{name}: {lines:?}");
                }
                assert!(lines[0].contains("1 turns have waited"), "{lines:?}");
                gate.open();
                for peer in &mut peers {
                    read_frame(peer).unwrap();
                }
                drop(peers);
                server.stop();
                group.close();
            });
        },
    );
}

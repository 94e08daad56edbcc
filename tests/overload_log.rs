//! The log says what the threads are taken by.
#![cfg(feature = "tracing")]

mod support;

use netpoll::{EventLoop, PollerGroup};
use std::{
    fmt,
    io::Write,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use support::{
    Gate, Log, OpenOnDrop, Script, Server, Transport, bounded, echo_frames, eventually, frame,
    read_frame,
};
use tracing::{
    Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// Keeps the text of the warnings of this crate.
struct Warnings;

static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn lines() -> Vec<String> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "netpoll" && *metadata.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);

        impl Visit for Text {
            fn record_debug(&mut self, _: &Field, value: &dyn fmt::Debug) {
                self.0 = format!("{value:?}");
            }
        }

        let mut text = Text(String::new());
        event.record(&mut text);
        LINES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text.0);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[test]
fn one_line_names_the_connections_that_have_the_threads() {
    tracing::subscriber::set_global_default(Warnings).unwrap();
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
}

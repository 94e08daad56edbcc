//! Rows of docs/reliability.md about memory: allocations that fail, and what start and stop leave.

use crate::support::{
    Case, Kind, Log, Peer, Script, Transport, bounded, counting, echo, echo_frames, eventually,
    frame, in_child, settled_threads, threads,
};
use netpoll::{CloseReason, LinkBuffer, Writer};
use std::io::{self, Write};

/// Runs `body` in a child process, where it may not hang.
#[track_caller]
fn alone(name: &str, body: impl FnOnce() + Send + 'static) {
    let what = name.to_owned();
    in_child(name, move || bounded(&what, body));
}

const MIB: usize = 1 << 20;

#[test]
fn row_118_room_that_cannot_be_had_for_writing_is_an_error() {
    alone(
        "row_118_room_that_cannot_be_had_for_writing_is_an_error",
        || {
            let mut buffer = LinkBuffer::new();
            counting::refuse_above(8 * MIB);
            let writer: &mut dyn Writer = &mut buffer;
            let error = writer.malloc(32 * MIB).map(drop).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
            writer.malloc(MIB).unwrap()[0] = 7;
            counting::refuse_above(usize::MAX);
            assert_eq!(writer.malloc(32 * MIB).unwrap().len(), 32 * MIB);
            assert_eq!(counting::refused(), 1);
        },
    );
}

#[test]
fn row_108_memory_after_start_and_stop_is_as_before() {
    alone("row_108_memory_after_start_and_stop_is_as_before", || {
        let tasks = threads();
        let cycle = |kind: Kind, transport: Transport| {
            let case = Case::new(transport, kind);
            let server = case.serve_with(case.builder().pollers(2), echo());
            let mut peers: Vec<Peer> = (0..8).map(|_| server.connect()).collect();
            for (i, peer) in peers.iter_mut().enumerate() {
                peer.ping(&vec![i as u8; 100 << (i % 8)]);
            }
            // A partial message and an unread answer are left behind.
            peers[0].write_all(&[0, 0, 1, 0, 1, 2]).unwrap();
            let mut conn = server.dial();
            conn.write_slice(&frame(b"unread")).unwrap();
            conn.flush().unwrap();
            conn.fill(1).unwrap();
            drop(peers);
            drop(conn);
            let event_loop = &server.event_loop;
            eventually("the ends", || event_loop.stats().active == 0);
            server.stop();
        };
        let all = || {
            for kind in [
                Kind::Adaptive,
                Kind::Workers,
                Kind::OneWorker,
                Kind::Inline,
                Kind::Custom,
            ] {
                for transport in [Transport::Tcp, Transport::Unix] {
                    cycle(kind, transport);
                }
            }
            settled_threads(tasks + 2);
        };
        // What is made once per process, and the pool of chunks, comes with the first ones.
        for _ in 0..3 {
            all();
        }
        let before = counting::live();
        let mut least = usize::MAX;
        for _ in 0..10 {
            all();
            least = least.min(counting::live());
        }
        // Chunks that lie in the pool come and go; a leak would add up in every cycle.
        let most = before + 10 * 8 * 100;
        assert!(
            least <= most,
            "{least} bytes are alive after 100 cycles, {before} before"
        );
    });
}

#[test]
fn row_118_a_message_that_memory_cannot_hold_ends_its_connection_only() {
    alone(
        "row_118_a_message_that_memory_cannot_hold_ends_its_connection_only",
        || {
            for kind in [Kind::Adaptive, Kind::Workers, Kind::Inline] {
                let ends = Log::new();
                let log = ends.clone();
                let case = Case::new(Transport::Tcp, kind);
                let server = case.serve(
                    Script::new()
                        .request(echo_frames)
                        .disconnect(move |_, reason| log.push(reason)),
                );
                let mut steady = server.connect();
                steady.ping(&[1; 100_000]);
                let large = frame(&vec![3; 40 * MIB]);
                let mut peer = server.connect();
                counting::refuse_above(8 * MIB);
                let before = counting::refused();
                // Its end may come before the last byte was taken.
                let _ = peer.write_all(&large);
                let ended = ends.wait_len(1);
                counting::refuse_above(usize::MAX);
                assert!(counting::refused() > before, "nothing was refused");
                assert_eq!(
                    ended,
                    [CloseReason::Error(io::ErrorKind::OutOfMemory)],
                    "{kind:?}"
                );
                steady.ping(b"fine");
                drop((steady, peer));
                server.stop();
            }
        },
    );
}

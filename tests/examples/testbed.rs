//! `testbed_server`, opcode by opcode, over plain sockets.

use crate::bed::{
    DISPATCHES, assert_ended, assert_settled, figures_over, numbers, pattern, request, server,
};
use crate::support::{Server, eventually, figure, frame, fresh_path, noise};
use std::{
    thread,
    time::{Duration, Instant},
};

#[test]
#[ignore = "slow: ci/slow.sh"]
fn e_echoes_the_body_however_frames_are_cut() {
    for dispatch in DISPATCHES {
        let server = server(&["--dispatch", dispatch]);
        assert!(
            server.place.starts_with("tcp:127.0.0.1:"),
            "{}",
            server.place
        );
        let bodies: Vec<_> = [0, 1, 2, 300, 5000, 100_000]
            .into_iter()
            .map(noise)
            .collect();
        let requests = bodies
            .iter()
            .flat_map(|body| request(b'E', body))
            .collect::<Vec<_>>();
        let replies = bodies
            .iter()
            .flat_map(|body| frame(body))
            .collect::<Vec<_>>();
        for piece in [1, 3, 7, 4096, requests.len()] {
            let mut socket = server.connect();
            let (mut writer, pieces) = (socket.duplicate(), requests.chunks(piece));
            let came = thread::scope(|scope| {
                scope.spawn(move || pieces.for_each(|piece| writer.send(piece)));
                socket.receive(replies.len())
            });
            assert!(came == replies, "{dispatch}, pieces of {piece} bytes");
        }
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn s_sleeps_then_echoes() {
    for dispatch in DISPATCHES {
        let server = server(&["--dispatch", dispatch]);
        let mut socket = server.connect();
        let begin = Instant::now();
        socket.send(&request(b'E', b"before"));
        socket.send(&request(b'S', &numbers(&[50], b"slept")));
        socket.send(&request(b'E', b"after"));
        assert_eq!(socket.receive_frame(), b"before");
        assert_eq!(socket.receive_frame(), b"slept");
        assert!(begin.elapsed() >= Duration::from_millis(50), "{dispatch}");
        assert_eq!(socket.receive_frame(), b"after");
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn p_ends_its_connection_only_and_is_counted() {
    for dispatch in DISPATCHES {
        let server = server(&["--dispatch", dispatch]);
        let mut other = server.connect();
        for _ in 0..3 {
            let mut socket = server.connect();
            socket.send(&[request(b'E', b"before"), request(b'P', b"")].concat());
            assert_eq!(socket.receive_frame(), b"before");
            assert_ended(socket);
        }
        other.send(&request(b'E', b"alive"));
        assert_eq!(other.receive_frame(), b"alive");
        drop(other);
        assert_eq!(figure(&assert_settled(&server), "panics"), 3);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn c_replies_then_closes() {
    for dispatch in DISPATCHES {
        let server = server(&["--dispatch", dispatch]);
        for n in [0, 1, 70_000, 3_000_000] {
            let mut socket = server.connect();
            // What comes behind is not looked at any more, and must not destroy the reply.
            socket.send(&request(b'C', &numbers(&[n], b"")));
            socket.send(&request(b'E', &noise(1000)));
            let rest = socket.receive_rest();
            assert!(
                rest == frame(&pattern(n)),
                "{dispatch}: {} bytes",
                rest.len()
            );
        }
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn a_resets() {
    let server = server(&[]);
    let mut socket = server.connect();
    socket.send(&request(b'A', b""));
    let error = socket.try_receive_frame().expect_err("no reply");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_settled(&server);
    assert_eq!(server.terminate(), 0);
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn b_replies_with_the_pattern_in_any_number_of_pieces() {
    for dispatch in DISPATCHES {
        let server = server(&["--dispatch", dispatch]);
        let mut socket = server.connect();
        for (n, pieces) in [(0, 0), (0, 5), (1, 0), (10, 20), (1000, 7), (2_000_000, 3)] {
            socket.send(&request(b'B', &numbers(&[n, pieces], b"")));
            assert!(
                socket.receive_frame() == pattern(n),
                "{dispatch}: {n} in {pieces}"
            );
        }
        drop(socket);
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn q_says_nothing() {
    let server = server(&[]);
    let mut socket = server.connect();
    socket.send(&[request(b'Q', &noise(50_000)), request(b'E', b"next")].concat());
    assert_eq!(socket.receive_frame(), b"next");
    assert_eq!(server.terminate(), 0);
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn l_relays_a_call_to_itself_and_to_others() {
    for dispatch in DISPATCHES {
        let path = format!("unix:{}", fresh_path(".sock"));
        let other = Server::start("testbed_server", &["--listen", &path]);
        let server = server(&["--dispatch", dispatch]);
        let plain = server.place.trim_start_matches("tcp:").to_owned();
        for target in [&*server.place, &*plain, &*path] {
            let mut socket = server.connect();
            let inner = request(b'E', &noise(20_000));
            let call = [target.as_bytes(), &[0], &inner].concat();
            socket.send(&request(b'L', &call));
            assert!(
                socket.receive_frame() == noise(20_000),
                "{dispatch}, {target}"
            );
            // A relay of a relay.
            let call = [target.as_bytes(), &[0], &request(b'L', &call)].concat();
            socket.send(&request(b'L', &call));
            assert!(
                socket.receive_frame() == noise(20_000),
                "{dispatch}, {target} twice"
            );
        }
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
        assert_eq!(other.terminate(), 0);
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn l_to_nowhere_ends_the_connection() {
    let nobody = format!("unix:{}", fresh_path(".sock"));
    for dispatch in DISPATCHES {
        let server = server(&["--dispatch", dispatch]);
        for target in [&*nobody, "no address", ""] {
            let mut socket = server.connect();
            let call = [target.as_bytes(), &[0], &request(b'E', b"x")].concat();
            socket.send(&request(b'L', &call));
            assert_ended(socket);
        }
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn k_keeps_a_view_and_sends_its_checksum_after_the_end_of_input() {
    let server = server(&["--grace-ms", "60000"]);
    // The check value of this CRC, and a body of many chunks.
    let large = noise(300_000);
    let cases = [
        (&b"123456789"[..], 0xCBF4_3926),
        (&b""[..], 0),
        (&large[..], crc32(&large)),
    ];
    let mut sockets: Vec<_> = cases
        .iter()
        .map(|(body, _)| {
            let mut socket = server.connect();
            socket.send(&request(b'K', body));
            // Memory of the view must not be used for what comes later.
            socket.send(&request(b'Q', &vec![0xFF; 100_000]));
            socket.finish();
            socket
        })
        .collect();
    // Also while the server drains: the promised replies come first.
    let mut draining = server.connect();
    draining.send(&[request(b'K', b"123456789"), request(b'E', b"seen")].concat());
    assert_eq!(draining.receive_frame(), b"seen");
    assert_eq!(server.terminate(), 0);
    for (socket, (_, sum)) in sockets.iter_mut().zip(&cases) {
        assert_eq!(socket.receive_frame(), sum.to_be_bytes());
        assert_eq!(socket.receive_rest(), b"");
    }
    assert_eq!(draining.receive_frame(), 0xCBF4_3926_u32.to_be_bytes());
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xEDB8_8320
            } else {
                crc >> 1
            }
        })
    })
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn u_echoes_once_from_each_thread_and_nothing_is_mixed() {
    for dispatch in DISPATCHES {
        let server = server(&["--dispatch", dispatch]);
        let mut socket = server.connect();
        for (threads, size) in [(0, 10), (1, 0), (8, 100), (16, 200_000)] {
            let body = noise(size);
            socket.send(&request(b'U', &numbers(&[threads], &body)));
            let mut tags: Vec<_> = (0..threads)
                .map(|_| {
                    let reply = socket.receive_frame();
                    let (tag, echo) = reply.split_first_chunk().expect("a tag");
                    assert!(echo == body, "{dispatch}: an echo is not the body");
                    u32::from_be_bytes(*tag)
                })
                .collect();
            tags.sort_unstable();
            assert_eq!(tags, (0..threads).collect::<Vec<_>>());
        }
        // Also when the input has ended: the replies are promised.
        socket.send(&request(b'U', &numbers(&[4], b"end")));
        socket.finish();
        (0..4).for_each(|_| assert_eq!(socket.receive_frame()[4..], *b"end"));
        assert_eq!(socket.receive_rest(), b"");
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn t_tells_what_happened() {
    let server = server(&[]);
    let mut socket = server.connect();
    let first = figures_over(&mut socket);
    assert_eq!(
        first.split(':').count() - 1,
        13,
        "twelve figures and the errors by number: {first}"
    );
    for (name, expected) in [
        ("connections", 1),
        ("prepared", 1),
        ("connected", 1),
        ("disconnected", 0),
        ("closed", 0),
        ("order_violations", 0),
        ("panics", 0),
        ("bytes_in", 5),
        ("bytes_out", 0),
        ("buffered_in", 0),
        ("buffered_out", 0),
    ] {
        assert_eq!(figure(&first, name), expected, "{name} in {first}");
    }
    assert!(first.ends_with("\"accept_errors\":{}}"), "{first}");
    if cfg!(target_os = "linux") {
        assert!(figure(&first, "threads") > 0, "{first}");
    }
    // Half a frame waits in the input.
    let mut half = server.connect();
    half.send(&request(b'E', &noise(1000))[..500]);
    eventually("half a frame is buffered", || {
        figure(&figures_over(&mut socket), "buffered_in") == 500
    });
    let second = figures_over(&mut socket);
    assert!(
        figure(&second, "bytes_out") > first.len() as u64,
        "{second}"
    );
    drop((half, socket));
    assert_settled(&server);
    assert_eq!(server.terminate(), 0);
}

#[test]
#[ignore = "slow: ci/slow.sh"]
fn frames_that_mean_nothing_end_their_connection() {
    for dispatch in DISPATCHES {
        let server = server(&["--dispatch", dispatch]);
        for bad in [
            frame(b""),
            request(b'e', b"unknown"),
            request(0, b""),
            request(b'S', b"123"),
            request(b'B', &numbers(&[5], b"")),
            request(b'C', b""),
            request(b'U', &numbers(&[1_000_000], b"")),
            request(b'L', b"no end"),
            request(b'L', b"127.0.0.1:1\0"),
            request(
                b'L',
                &[&b"127.0.0.1:1\0"[..], &request(b'E', b"more than")[..8]].concat(),
            ),
        ] {
            let mut socket = server.connect();
            socket.send(&[request(b'E', b"good"), bad].concat());
            assert_eq!(socket.receive_frame(), b"good");
            assert_ended(socket);
        }
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

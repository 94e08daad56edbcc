//! `testbed_server`, opcode by opcode and option by option, over plain sockets.

#[path = "support/examples.rs"]
mod support;

use std::{
    fs,
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};
use support::{Server, Socket, eventually, figure, frame, fresh_path, noise, run, text};

const DISPATCHES: [&str; 3] = ["adaptive", "workers", "inline"];

fn server(options: &[&str]) -> Server {
    let args = [&["--listen", "tcp:127.0.0.1:0"], options].concat();
    Server::start("testbed_server", &args)
}

/// A frame with an opcode.
fn request(opcode: u8, body: &[u8]) -> Vec<u8> {
    frame(&[&[opcode], body].concat())
}

fn numbers(numbers: &[u32], rest: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    body.extend_from_slice(rest);
    body
}

fn pattern(n: u32) -> Vec<u8> {
    (0..u64::from(n))
        .map(|i| ((i * 31 + i / 256) % 256) as u8)
        .collect()
}

/// The server's figures, over a connection of their own.
fn figures(server: &Server) -> String {
    let mut socket = server.connect();
    figures_over(&mut socket)
}

fn figures_over(socket: &mut Socket) -> String {
    socket.send(&request(b'T', b""));
    text(&socket.receive_frame())
}

/// Waits until only the asking connection is left, and looks at the rest of the figures.
fn assert_settled(server: &Server) -> String {
    let mut socket = server.connect();
    let mut last = String::new();
    eventually("all other connections have ended", || {
        last = figures_over(&mut socket);
        figure(&last, "connections") == 1
    });
    assert_eq!(figure(&last, "order_violations"), 0, "{last}");
    let ended = figure(&last, "prepared") - 1;
    for name in ["disconnected", "closed"] {
        assert_eq!(figure(&last, name), ended, "{name} in {last}");
    }
    assert_eq!(figure(&last, "connected"), ended + 1, "{last}");
    assert_eq!(figure(&last, "buffered_in"), 0, "{last}");
    assert_eq!(figure(&last, "buffered_out"), 0, "{last}");
    last
}

/// The server must have ended the connection without another byte.
fn assert_ended(mut socket: Socket) {
    assert_eq!(socket.receive_rest(), b"");
}

#[test]
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
fn connections_go_on_while_handlers_sleep() {
    for dispatch in ["adaptive", "workers"] {
        let server = server(&["--dispatch", dispatch, "--grace-ms", "0", "--workers", "8"]);
        // One poller, and handlers that sleep for longer than this test may take.
        let asleep: Vec<_> = (0..4)
            .map(|_| {
                let mut socket = server.connect();
                socket.send(&request(b'E', b"awake"));
                assert_eq!(socket.receive_frame(), b"awake");
                socket.send(&request(b'S', &numbers(&[600_000], b"")));
                socket
            })
            .collect();
        let mut others: Vec<_> = (0..4).map(|_| server.connect()).collect();
        for _ in 0..100 {
            for other in &mut others {
                other.send(&request(b'E', b"awake"));
                assert_eq!(other.receive_frame(), b"awake", "{dispatch}");
            }
        }
        assert_eq!(server.terminate(), 3, "sleeping handlers are cut");
        asleep.into_iter().for_each(assert_ended);
    }
}

#[test]
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
fn q_says_nothing() {
    let server = server(&[]);
    let mut socket = server.connect();
    socket.send(&[request(b'Q', &noise(50_000)), request(b'E', b"next")].concat());
    assert_eq!(socket.receive_frame(), b"next");
    assert_eq!(server.terminate(), 0);
}

#[test]
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
    assert_eq!(server.terminate(), 0);
}

#[test]
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

#[test]
fn a_frame_longer_than_the_limit_ends_its_connection_and_no_other() {
    for dispatch in DISPATCHES {
        let server = server(&["--dispatch", dispatch, "--max-frame", "1000"]);
        let mut other = server.connect();
        let mut socket = server.connect();
        let longest = noise(999);
        socket.send(&request(b'E', &longest));
        assert_eq!(socket.receive_frame(), longest);
        socket.send(&1001_u32.to_be_bytes());
        assert_ended(socket);
        let mut socket = server.connect();
        socket.send(&u32::MAX.to_be_bytes());
        assert_ended(socket);
        other.send(&request(b'E', b"alive"));
        assert_eq!(other.receive_frame(), b"alive");
        drop(other);
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
fn idle_connections_are_closed() {
    let server = server(&["--idle-ms", "50"]);
    let mut idle = server.connect();
    idle.send(&request(b'E', b"x"));
    assert_eq!(idle.receive_frame(), b"x");
    assert_ended(idle);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn an_unfinished_frame_is_given_up_after_the_read_timeout() {
    for dispatch in ["adaptive", "workers"] {
        let server = server(&["--dispatch", dispatch, "--read-timeout-ms", "50"]);
        for part in [1, 4, 8] {
            let mut slow = server.connect();
            slow.send(
                &[
                    request(b'E', b"whole"),
                    request(b'E', b"never whole")[..part].to_vec(),
                ]
                .concat(),
            );
            assert_eq!(slow.receive_frame(), b"whole");
            assert_ended(slow);
        }
        // Between frames there is no such limit: this one was opened before.
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
fn a_peer_that_takes_no_output_is_given_up_after_the_write_timeout() {
    for dispatch in ["adaptive", "workers"] {
        let server = server(&["--dispatch", dispatch, "--write-timeout-ms", "50"]);
        let n = 64 << 20;
        let mut slow = server.connect();
        slow.send(&request(b'B', &numbers(&[n, 10], b"")));
        eventually("the slow connection is over", || {
            figure(&figures(&server), "disconnected") > 0
                && figure(&figures(&server), "buffered_out") == 0
        });
        // What it did get is right, but it is not all: the end says so.
        let came = slow.receive_rest();
        assert!(came.len() < n as usize);
        assert!(frame(&pattern(n))[..came.len()] == came);
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

/// Asks for replies of 64 KiB without reading until the server takes no more requests or ends
/// the connection; returns how many were asked for.
fn ask_without_reading(socket: &mut Socket, most: usize) -> usize {
    let call = request(b'B', &numbers(&[65_536, 1], b""));
    (0..most).take_while(|_| socket.try_send(&call)).count()
}

#[test]
fn a_full_queue_is_an_error_or_a_close_by_policy() {
    for dispatch in DISPATCHES {
        for policy in ["error", "close"] {
            let server = server(&[
                "--dispatch",
                dispatch,
                "--on-full",
                policy,
                "--write-high",
                "100000",
            ]);
            let mut slow = server.connect();
            ask_without_reading(&mut slow, 1000);
            eventually("the slow connection is over", || {
                figure(&figures(&server), "disconnected") > 0
            });
            drop(slow);
            assert_settled(&server);
            assert_eq!(server.terminate(), 0);
        }
    }
}

#[test]
fn a_full_queue_waits_by_policy_and_nothing_is_lost() {
    for dispatch in ["adaptive", "workers"] {
        let server = server(&[
            "--dispatch",
            dispatch,
            "--on-full",
            "block",
            "--write-high",
            "100000",
        ]);
        let mut slow = server.connect();
        let asked = ask_without_reading(&mut slow, 1000);
        assert_eq!(asked, 1000);
        let mut watcher = server.connect();
        for _ in 0..20 {
            // The bound, and the one message that an empty queue always takes.
            let queued = figure(&figures_over(&mut watcher), "buffered_out");
            assert!(queued <= 100_000 + 65_540, "{queued} bytes are queued");
        }
        let expected = pattern(65_536);
        for _ in 0..asked {
            assert!(slow.receive_frame() == expected);
        }
        drop((slow, watcher));
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
fn input_is_not_read_far_ahead_of_a_sleeping_handler() {
    let server = server(&["--read-high", "65536", "--grace-ms", "0"]);
    let mut busy = server.connect();
    busy.send(&request(b'S', &numbers(&[600_000], b"")));
    let mut writer = busy.duplicate();
    // Far more than the kernel and the limit hold: this can end only with the connection.
    let flood = thread::spawn(move || {
        let call = request(b'Q', &noise(1 << 20));
        (0..64).take_while(|_| writer.try_send(&call)).count()
    });
    let mut watcher = server.connect();
    for _ in 0..50 {
        let told = figures_over(&mut watcher);
        assert!(figure(&told, "buffered_in") <= 2 * 65_536, "{told}");
    }
    assert_eq!(server.terminate(), 3, "the sleeping handler is cut");
    assert!(flood.join().expect("the writer") < 64);
}

#[test]
fn connections_beyond_the_limit_wait_for_their_turn() {
    let server = server(&["--max-conns", "2"]);
    let (mut first, mut second) = (server.connect(), server.connect());
    for socket in [&mut first, &mut second] {
        socket.send(&request(b'E', b"in"));
        assert_eq!(socket.receive_frame(), b"in");
    }
    let mut third = server.connect();
    third.send(&request(b'E', b"third"));
    assert_eq!(figure(&figures_over(&mut first), "prepared"), 2);
    drop(second);
    assert_eq!(third.receive_frame(), b"third");
    assert_eq!(figure(&figures_over(&mut first), "connections"), 2);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn descriptors_run_out_and_come_back() {
    if !cfg!(target_os = "linux") {
        eprintln!("skipped: the error numbers are those of Linux");
        return;
    }
    let server = Server::start_with_files(32, "testbed_server", &["--listen", "tcp:127.0.0.1:0"]);
    let mut first = server.connect();
    figures_over(&mut first);
    let mut sockets: Vec<_> = (0..60).map(|_| server.connect()).collect();
    let mut told = String::new();
    eventually("accept runs out of descriptors", || {
        told = figures_over(&mut first);
        !told.ends_with("\"accept_errors\":{}}")
    });
    // EMFILE
    assert!(figure(&told, "24") > 0, "{told}");
    // Those that were accepted are served, and the others as places come free.
    for socket in sockets.drain(..) {
        let mut socket = socket;
        socket.send(&request(b'E', b"turn"));
        assert_eq!(socket.receive_frame(), b"turn");
    }
    drop(first);
    assert_settled(&server);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn sigusr1_and_the_end_write_the_figures() {
    let file = fresh_path(".json");
    let server = server(&["--stats-file", &file]);
    let mut socket = server.connect();
    socket.send(&request(b'E', b"x"));
    assert_eq!(socket.receive_frame(), b"x");
    assert!(!fs::exists(&file).expect("its directory"));
    server.signal("USR1");
    eventually("the file is there", || {
        fs::exists(&file).expect("its directory")
    });
    let written = fs::read_to_string(&file).expect("the file");
    assert_eq!(figure(&written, "connections"), 1, "{written}");
    assert_eq!(figure(&written, "bytes_in"), 6, "{written}");
    assert_eq!(figure(&written, "bytes_out"), 5, "{written}");
    assert_eq!(server.terminate(), 0);
    let written = fs::read_to_string(&file).expect("the file");
    assert_eq!(figure(&written, "connections"), 0, "{written}");
    assert_eq!(figure(&written, "closed"), 1, "{written}");
    fs::remove_file(&file).expect("the file");
}

/// Waits until the server has received this many bytes on all other connections.
fn wait_received(server: &Server, bytes: u64) {
    let mut watcher = server.connect();
    let mut asked = 0;
    eventually("the server has received it", || {
        asked += request(b'T', b"").len() as u64;
        figure(&figures_over(&mut watcher), "bytes_in") == bytes + asked
    });
}

#[test]
fn sigterm_lets_handlers_finish_in_time() {
    for dispatch in ["adaptive", "workers"] {
        let server = server(&["--dispatch", dispatch, "--grace-ms", "60000"]);
        let mut busy = server.connect();
        let call = request(b'S', &numbers(&[300], b"slept"));
        busy.send(&call);
        wait_received(&server, call.len() as u64);
        assert_eq!(server.terminate(), 0);
        assert_eq!(busy.receive_frame(), b"slept", "{dispatch}");
        assert_eq!(busy.receive_rest(), b"");
    }
}

#[test]
fn sigterm_cuts_what_takes_too_long() {
    for dispatch in ["adaptive", "workers"] {
        let server = server(&["--dispatch", dispatch, "--grace-ms", "0"]);
        let mut busy = server.connect();
        // Longer than the grace, not longer than the time callbacks get after the cut.
        let call = request(b'S', &numbers(&[1000], b"late"));
        busy.send(&call);
        wait_received(&server, call.len() as u64);
        assert_eq!(server.terminate(), 3, "{dispatch}");
        assert_ended(busy);
    }
}

#[test]
fn the_client_checks_every_opcode() {
    let server = server(&["--pollers", "2"]);
    for op in ["E", "S", "P", "C", "A", "B", "Q", "L", "U", "T"] {
        let output = run(
            "testbed_client",
            &[
                "--connect",
                &server.place,
                "--op",
                op,
                "--count",
                "40",
                "--concurrency",
                "4",
                "--pool",
                "3",
                "--size",
                "10000",
                "--ms",
                "1",
            ],
        );
        let line = text(&output.stdout);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{op}: {line} {}",
            text(&output.stderr)
        );
        assert_eq!(line.lines().count(), 1, "{op}: {line}");
        assert_eq!(figure(&line, "ok"), 40, "{op}: {line}");
        assert!(line.contains("\"errors\":{}"), "{op}: {line}");
        assert_eq!(figure(&line, "wrong_bytes"), 0, "{op}: {line}");
        assert!((1..=3).contains(&figure(&line, "max_open")), "{op}: {line}");
        assert!(line.contains("\"elapsed\":"), "{op}: {line}");
    }
    assert_settled(&server);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn the_client_names_errors_by_kind() {
    let nobody = format!("unix:{}", fresh_path(".sock"));
    let output = run("testbed_client", &["--connect", &nobody, "--count", "3"]);
    let line = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{line}");
    assert_eq!(
        (figure(&line, "ok"), figure(&line, "NotFound")),
        (0, 3),
        "{line}"
    );

    // It accepts and never says a word.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = silent.local_addr().expect("its address").to_string();
    let output = run(
        "testbed_client",
        &["--connect", &place, "--timeout-ms", "50"],
    );
    let line = text(&output.stdout);
    assert_eq!(
        (figure(&line, "ok"), figure(&line, "TimedOut")),
        (0, 1),
        "{line}"
    );
}

#[test]
fn the_client_finds_wrong_replies() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = listener.local_addr().expect("its address").to_string();
    let liar = thread::spawn(move || {
        let mut socket = Socket::Tcp(listener.accept().expect("the client").0);
        let mut body = socket.receive_frame();
        body.remove(0);
        body[5] ^= 0x10;
        body[6] ^= 0x10;
        socket.send(&frame(&body));
    });
    let output = run("testbed_client", &["--connect", &place, "--size", "100"]);
    let line = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert_eq!(
        (figure(&line, "ok"), figure(&line, "wrong_bytes")),
        (0, 2),
        "{line}"
    );
    liar.join().expect("the server");
}

#[test]
fn a_late_reply_is_never_taken_for_that_of_another_call() {
    let server = server(&[]);
    // One connection at most, replies later than the client waits: each call must get a
    // connection without the reply of the last one, so nothing is ever wrong.
    let output = run(
        "testbed_client",
        &[
            "--connect",
            &server.place,
            "--pool",
            "1",
            "--op",
            "S",
            "--ms",
            "60",
            "--timeout-ms",
            "20",
            "--count",
            "5",
        ],
    );
    let line = text(&output.stdout);
    assert_eq!(figure(&line, "wrong_bytes"), 0, "{line}");
    assert_eq!(
        (figure(&line, "ok"), figure(&line, "TimedOut")),
        (0, 5),
        "{line}"
    );
    assert_eq!(server.terminate(), 0);
}

#[test]
fn wrong_command_lines_are_refused_with_the_reason() {
    let place = ["--listen", "tcp:127.0.0.1:0"];
    for (args, reason) in [
        (&["--on-full", "drop"][..], "error, block or close"),
        (&["--workers", "0"], "--workers"),
        (&["--idle-ms", "-5"], "-5"),
        (&["--max-conns", "many"], "many"),
    ] {
        let output = run("testbed_server", &[&place, args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            text(&output.stderr).contains(reason),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
    for (args, reason) in [
        (&["--op", "X"][..], "one of E"),
        (&["--count", "x"], "--count"),
    ] {
        let output = run(
            "testbed_client",
            &[&["--connect", "tcp:127.0.0.1:1"], args].concat(),
        );
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            text(&output.stderr).contains(reason),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
}

//! `testbed_server`, option by option: limits, timeouts, policies, signals.

use crate::bed::{
    DISPATCHES, assert_ended, assert_settled, figures_over, numbers, pattern, request, server,
};
use crate::support::{Server, Socket, eventually, figure, frame, fresh_path, noise};
use std::{fs, thread};

#[test]
#[ignore = "slow: ci/slow.sh"]
fn connections_go_on_while_handlers_sleep() {
    for dispatch in ["adaptive", "workers"] {
        let server = server(&["--dispatch", dispatch, "--workers", "8"]);
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
        // Killed: the sleepers would take too long.
        drop(server);
        asleep.into_iter().for_each(assert_ended);
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
fn idle_connections_are_closed() {
    let server = server(&["--idle-ms", "50"]);
    assert_ended(server.connect());
    assert_eq!(server.terminate(), 0);
}

#[test]
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
fn a_peer_that_takes_no_output_is_given_up_after_the_write_timeout() {
    for dispatch in ["adaptive", "workers"] {
        let server = server(&["--dispatch", dispatch, "--write-timeout-ms", "50"]);
        let n = 64 << 20;
        let mut slow = server.connect();
        slow.send(&request(b'B', &numbers(&[n, 10], b"")));
        wait_disconnected(&server);
        // What it did get is right, but it is not all: the end says so.
        let came = slow.receive_rest();
        assert!(came.len() < n as usize);
        assert!(frame(&pattern(n))[..came.len()] == came);
        assert_settled(&server);
        assert_eq!(server.terminate(), 0);
    }
}

/// Waits until one connection is over; nobody else may come and go.
fn wait_disconnected(server: &Server) {
    let mut watcher = server.connect();
    eventually("the slow connection is over", || {
        let told = figures_over(&mut watcher);
        figure(&told, "disconnected") == 1 && figure(&told, "buffered_out") == 0
    });
}

/// Asks for replies of 64 KiB without reading until the server takes no more requests or ends
/// the connection; returns how many were asked for.
fn ask_without_reading(socket: &mut Socket, most: usize) -> usize {
    let call = request(b'B', &numbers(&[65_536, 1], b""));
    (0..most).take_while(|_| socket.try_send(&call)).count()
}

#[test]
#[ignore = "slow: ci/slow.sh"]
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
            wait_disconnected(&server);
            drop(slow);
            assert_settled(&server);
            assert_eq!(server.terminate(), 0);
        }
    }
}

#[test]
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
fn sigusr1_and_the_end_write_the_figures() {
    let file = fresh_path(".json");
    let server = server(&["--stats-file", &file]);
    let mut socket = server.connect();
    socket.send(&request(b'E', b"x"));
    assert_eq!(socket.receive_frame(), b"x");
    assert!(!fs::exists(&file).expect("its directory"));
    eventually("the file tells of the reply", || {
        server.signal("USR1");
        fs::read_to_string(&file).is_ok_and(|written| figure(&written, "bytes_out") == 5)
    });
    let written = fs::read_to_string(&file).expect("the file");
    assert_eq!(figure(&written, "connections"), 1, "{written}");
    assert_eq!(figure(&written, "bytes_in"), 6, "{written}");
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
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
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

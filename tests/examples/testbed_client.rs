//! `testbed_client`, against the server and against servers that lie or say nothing.

use crate::bed::{assert_settled, server};
use crate::support::{Socket, figure, frame, fresh_path, run, text};
use std::{net::TcpListener, thread};

#[test]
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
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
#[ignore = "slow: ci/slow.sh"]
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

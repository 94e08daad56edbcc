//! `rpc_server` and `rpc_client`, against each other and against plain sockets.

use crate::support::{Server, Socket, figure, frame, fresh_path, noise, run, text};
use std::{io::Write, net::TcpListener, sync::mpsc, thread};

const TCP: [&str; 2] = ["--listen", "127.0.0.1:0"];
const DISPATCHES: [&str; 3] = ["adaptive", "workers", "inline"];

fn server(dispatch: &str) -> Server {
    Server::start(
        "rpc_server",
        &["--listen", "127.0.0.1:0", "--dispatch", dispatch],
    )
}

#[test]
fn frames_come_back_in_order_however_they_are_cut() {
    for dispatch in DISPATCHES {
        let server = server(dispatch);
        let frames: Vec<_> = [0, 1, 3, 4, 5, 100, 4095, 4096, 70_000, 0, 7]
            .into_iter()
            .map(|size| frame(&noise(size)))
            .collect();
        let all = frames.concat();
        for piece in [1, 2, 5, 1000, all.len()] {
            let mut socket = server.connect();
            let mut writer = socket.duplicate();
            let pieces = all.chunks(piece);
            let came = thread::scope(|scope| {
                scope.spawn(move || pieces.for_each(|piece| writer.send(piece)));
                socket.receive(all.len())
            });
            assert!(came == all, "{dispatch}, pieces of {piece} bytes");
        }
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
fn what_is_sent_before_the_end_is_answered() {
    let server = server("adaptive");
    for round in 0..100 {
        let mut socket = server.connect();
        let frames = [frame(&noise(round)), frame(b"last")].concat();
        socket.send(&frames);
        socket.finish();
        assert_eq!(socket.receive_rest(), frames);
    }
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_cut_frame_does_not_take_the_whole_ones_with_it() {
    let server = server("adaptive");
    let whole = frame(b"whole");
    for cut in [1, 3, 4, 6] {
        let mut socket = server.connect();
        socket.send(&[&whole[..], &frame(b"cut")[..cut]].concat());
        socket.finish();
        assert_eq!(socket.receive_rest(), whole, "cut after {cut} bytes");
    }
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_frame_above_the_limit_ends_its_connection_and_no_other() {
    for dispatch in DISPATCHES {
        let server = server(dispatch);
        let mut other = server.connect();
        let mut socket = server.connect();
        socket.send(&frame(b"good"));
        assert_eq!(socket.receive_frame(), b"good");
        // 64 MiB in all are allowed.
        socket.send(&(64_u32 << 20).to_be_bytes());
        assert_eq!(socket.receive_rest(), b"", "{dispatch}");
        other.send(&frame(b"still here"));
        assert_eq!(other.receive_frame(), b"still here");
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
fn the_largest_frame_comes_back() {
    let server = server("adaptive");
    let mut socket = server.connect();
    let largest = frame(&noise((64 << 20) - 4));
    let mut writer = socket.duplicate();
    let came = thread::scope(|scope| {
        let largest = &largest;
        scope.spawn(move || writer.send(largest));
        socket.receive(largest.len())
    });
    assert!(came == largest);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn client_and_server_agree_under_every_dispatch() {
    for dispatch in DISPATCHES {
        let server = server(dispatch);
        for (connections, depth, size) in [(1, 1, 0), (3, 16, 64), (2, 8, 65_536)] {
            assert_agree(
                &server,
                &format!("--dispatch {dispatch} --pollers 2"),
                (connections, depth, size),
            );
        }
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
fn client_and_server_agree_over_a_unix_socket() {
    let place = format!("unix:{}", fresh_path(".sock"));
    let server = Server::start("rpc_server", &["--listen", &place, "--pollers", "2"]);
    assert_eq!(server.place, place);
    assert_agree(&server, "", (4, 4, 1000));
    assert_eq!(server.terminate(), 0);
}

/// Runs the client and looks at what it printed.
fn assert_agree(server: &Server, more: &str, (connections, depth, size): (u64, u64, u64)) {
    let flags = format!(
        "--connect {} --seconds 0.2 --connections {connections} --depth {depth} --size {size} \
         {more}",
        server.place
    );
    let output = run("rpc_client", &flags.split_whitespace().collect::<Vec<_>>());
    let (line, errors) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{line} {errors}");
    assert_eq!(line.lines().count(), 1, "{line}");
    // Each connection makes that many calls at least, whatever the time.
    let answers = figure(&line, "answers");
    assert!(answers >= connections * depth, "{line}");
    let calls = figure(&line, "calls");
    assert!(calls <= answers, "{line}");
    assert_eq!(figure(&line, "bytes"), calls * 2 * (size + 4), "{line}");
    assert_eq!(figure(&line, "wrong_bytes"), 0, "{line}");
    assert_eq!(figure(&line, "errors"), 0, "{line}");
}

#[test]
fn sigterm_answers_what_has_begun() {
    let server = server("adaptive");
    let mut busy = server.connect();
    let half = frame(b"half");
    busy.send(&[&frame(b"whole")[..], &half[..6]].concat());
    assert_eq!(busy.receive_frame(), b"whole");
    server.signal("TERM");
    // The other half may come after the signal.
    busy.send(&half[6..]);
    assert_eq!(busy.receive_frame(), b"half");
    assert_eq!(busy.receive_rest(), b"");
    assert_eq!(server.wait(), 0);
}

#[test]
fn sigterm_under_load_ends_with_0() {
    let server = server("adaptive");
    let (busy, is_busy) = mpsc::channel();
    let callers: Vec<_> = (0..4)
        .map(|caller| {
            let (mut socket, busy) = (server.connect(), busy.clone());
            thread::spawn(move || {
                for call in 0.. {
                    let body = format!("call {call} of {caller}").into_bytes();
                    if socket.write_all(&frame(&body)).is_err() {
                        return;
                    }
                    match socket.try_receive_frame() {
                        // Calls that were sent after the end are lost, but never answered wrong.
                        Ok(answer) => assert_eq!(answer, body),
                        Err(_) => return,
                    }
                    if call == 100 {
                        busy.send(()).expect("the test waits");
                    }
                }
            })
        })
        .collect();
    callers
        .iter()
        .for_each(|_| is_busy.recv().expect("a caller"));
    assert_eq!(server.terminate(), 0);
    callers
        .into_iter()
        .for_each(|caller| caller.join().expect("only right answers"));
}

#[test]
fn the_client_finds_wrong_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = listener.local_addr().expect("its address").to_string();
    let liar = thread::spawn(move || {
        let mut socket = Socket::Tcp(listener.accept().expect("the client").0);
        let mut body = socket.receive_frame();
        body[40] ^= 1;
        socket.send(&frame(&body));
        // It may go on asking: answered until it leaves.
        while let Ok(body) = socket.try_receive_frame() {
            if socket.write_all(&frame(&body)).is_err() {
                return;
            }
        }
    });
    let output = run("rpc_client", &["--connect", &place, "--seconds", "0.1"]);
    let line = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert_eq!(figure(&line, "wrong_bytes"), 1, "{line}");
    liar.join().expect("the server");
}

#[test]
fn the_client_finds_missing_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = listener.local_addr().expect("its address").to_string();
    let server = thread::spawn(move || {
        let mut socket = Socket::Tcp(listener.accept().expect("the client").0);
        let answer = frame(&socket.receive_frame());
        // One answer of two, then the end.
        socket.send(&answer);
        socket.receive_frame();
    });
    let output = run(
        "rpc_client",
        &["--connect", &place, "--depth", "2", "--seconds", "5"],
    );
    let line = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{line}");
    assert_eq!(
        figure(&line, "errors"),
        1,
        "{line} {}",
        text(&output.stderr)
    );
    server.join().expect("the server");
}

#[test]
fn a_refused_connection_is_an_error_that_names_the_address() {
    let path = format!("unix:{}", fresh_path(".sock"));
    let output = run("rpc_client", &["--connect", &path]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains(&path),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn wrong_command_lines_are_refused_with_the_reason() {
    for (args, reason) in [
        (&[][..], "--listen"),
        (&["--listen", "127.0.0.1:0", "--dispatch", "magic"], "magic"),
        (&["--listen", "127.0.0.1:0", "--pollers", "0"], "--pollers"),
        (
            &["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"],
            "twice",
        ),
        (&["--listen", "127.0.0.1:0", "--depth", "1"], "--depth"),
    ] {
        let output = run("rpc_server", args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            text(&output.stderr).contains(reason),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
    for (args, reason) in [
        (&[][..], "--connect"),
        (
            &["--connect", "127.0.0.1:1", "--seconds", "-1"],
            "--seconds",
        ),
        (
            &["--connect", "127.0.0.1:1", "--size", "5000000000"],
            "5000000000",
        ),
        (
            &["--connect", "127.0.0.1:1", "--connections", "0"],
            "--connections",
        ),
    ] {
        let output = run("rpc_client", args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            text(&output.stderr).contains(reason),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
    assert_eq!(run("rpc_server", &["--help"]).status.code(), Some(0));
    let server = Server::start("rpc_server", &TCP);
    assert_eq!(server.terminate(), 0);
}

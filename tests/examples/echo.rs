//! `echo_server`, driven by sockets, `nc`, `socat` and Python.

use crate::support::{Server, Socket, fresh_path, noise, output, program, run, text};
use std::{fs, net::TcpListener, os::unix::net::UnixStream, process::Command, thread};

const TCP: [&str; 2] = ["--listen", "127.0.0.1:0"];

#[test]
fn every_byte_comes_back_over_tcp() {
    let server = Server::start("echo_server", &TCP);
    let mut socket = server.connect();
    let data = noise(3 << 20);
    let mut writer = server.connect();
    // On a connection of its own at the same time: small pieces.
    for piece in data[..10_000].chunks(7) {
        writer.send(piece);
    }
    assert_echoed(&mut socket, &data);
    assert_eq!(writer.receive(10_000), data[..10_000]);
    socket.finish();
    assert_eq!(socket.receive_rest(), b"");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn every_byte_comes_back_over_a_unix_socket() {
    let path = fresh_path(".sock");
    let server = Server::start("echo_server", &["--listen", &format!("unix:{path}")]);
    assert_eq!(server.place, format!("unix:{path}"));
    let mut socket = server.connect();
    let data = noise(200_000);
    assert_echoed(&mut socket, &data);
    assert_eq!(server.terminate(), 0);
    assert!(
        !fs::exists(&path).expect("its directory"),
        "{path} is left behind"
    );
}

#[test]
fn what_came_with_the_end_of_input_comes_back() {
    let server = Server::start("echo_server", &TCP);
    for round in 0..50 {
        let mut socket = server.connect();
        let data = noise(1 + round * 997);
        socket.send(&data);
        socket.finish();
        assert_eq!(socket.receive_rest(), data);
    }
    assert_eq!(server.terminate(), 0);
}

#[test]
fn nc_talks_to_it() {
    let Some(nc) = program("nc") else { return };
    let help = output(Command::new(&nc).arg("-h"), b"");
    if !text(&help.stderr).contains("-N") && !text(&help.stdout).contains("-N") {
        eprintln!("skipped: this nc cannot close its sending side (-N)");
        return;
    }
    let server = Server::start("echo_server", &TCP);
    let answer = output(
        Command::new(&nc).args(["-N", "127.0.0.1", server.port()]),
        b"hello\n",
    );
    assert_eq!(text(&answer.stdout), "hello\n");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn socat_talks_to_it() {
    let Some(socat) = program("socat") else {
        return;
    };
    let server = Server::start("echo_server", &TCP);
    let data = noise(100_000);
    let to = format!("TCP:127.0.0.1:{}", server.port());
    // -t: how long it waits for the rest after the end of its input.
    let answer = output(Command::new(&socat).args(["-t60", "-", &to]), &data);
    assert!(
        answer.stdout == data,
        "{} bytes came back",
        answer.stdout.len()
    );
    assert_eq!(server.terminate(), 0);

    let path = fresh_path(".sock");
    let server = Server::start("echo_server", &["--listen", &format!("unix:{path}")]);
    let to = format!("UNIX-CONNECT:{path}");
    let answer = output(Command::new(&socat).args(["-t60", "-", &to]), &data);
    assert!(
        answer.stdout == data,
        "{} bytes came back",
        answer.stdout.len()
    );
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_python_socket_talks_to_it() {
    let Some(python) = program("python3") else {
        return;
    };
    let server = Server::start("echo_server", &TCP);
    let script = "
import socket, sys
s = socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=60)
for n in (1, 100, 70000):
    data = bytes(i % 251 for i in range(n))
    s.sendall(data)
    got = b''
    while len(got) < n:
        part = s.recv(n - len(got))
        assert part, 'the end after %d of %d bytes' % (len(got), n)
        got += part
    assert got == data
s.shutdown(socket.SHUT_WR)
assert s.recv(1) == b''
print('all came back')
";
    let answer = output(
        Command::new(&python).args(["-c", script, server.port()]),
        b"",
    );
    assert_eq!(
        text(&answer.stdout),
        "all came back\n",
        "{}",
        text(&answer.stderr)
    );
    assert_eq!(server.terminate(), 0);
}

#[test]
fn sigterm_closes_idle_connections_and_the_listener() {
    let path = fresh_path(".sock");
    let server = Server::start("echo_server", &["--listen", &format!("unix:{path}")]);
    let mut idle = server.connect();
    idle.send(b"x");
    assert_eq!(idle.receive(1), b"x");
    assert_eq!(server.terminate(), 0);
    assert_eq!(idle.receive_rest(), b"");
    UnixStream::connect(&path).expect_err("nobody listens any more");
}

#[test]
fn wrong_command_lines_are_refused_with_the_reason() {
    for (args, reason) in [
        (&["--listen", "nowhere"][..], "nowhere"),
        (&["--listen", "127.0.0.1:99999"], "99999"),
        (&["--listen"], "--listen"),
        (&["--lisden", "127.0.0.1:0"], "--lisden"),
        (&["7000"], "7000"),
        (&["--grace-ms", "soon"], "soon"),
    ] {
        let output = run("echo_server", args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            text(&output.stderr).contains(reason),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_port_in_use_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let place = taken.local_addr().expect("its address").to_string();
    let output = run("echo_server", &["--listen", &place]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains(&place),
        "{}",
        text(&output.stderr)
    );
}

/// Sends and receives at the same time, so that no buffer has to hold all of it.
fn assert_echoed(socket: &mut Socket, data: &[u8]) {
    let mut writer = socket.duplicate();
    let came = thread::scope(|scope| {
        scope.spawn(move || writer.send(data));
        socket.receive(data.len())
    });
    assert!(came == data, "what came back is not what was sent");
}

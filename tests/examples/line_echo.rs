//! The example `line_echo`, as a process of its own.

use crate::support::{Server, output, program, text};
use std::process::Command;

const SHORT: [&str; 4] = ["--listen", "127.0.0.1:0", "--max", "10"];

#[test]
fn lines_come_back() {
    let server = Server::start("line_echo", &SHORT);
    let mut socket = server.connect();
    socket.send(b"one\r\ntwo\n\nte");
    assert_eq!(socket.receive(9), b"one\ntwo\n\n");
    socket.send(b"n chars.\r\n");
    assert_eq!(socket.receive(11), b"ten chars.\n");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_line_that_is_too_long_is_answered_with_the_sizes() {
    let server = Server::start("line_echo", &SHORT);
    let mut socket = server.connect();
    socket.send(b"fine\nthis is too long\nunseen\n");
    assert_eq!(socket.receive(5), b"fine\n");
    let rest = socket.receive_rest();
    let error = text(&rest);
    assert!(
        error.starts_with("error: ") && error.ends_with('\n'),
        "{error:?}"
    );
    assert!(error.contains("11") && error.contains("10"), "{error:?}");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn nc_talks_to_it() {
    let Some(nc) = program("nc") else { return };
    let help = output(Command::new(&nc).arg("-h"), b"");
    if !text(&help.stderr).contains("-N") && !text(&help.stdout).contains("-N") {
        eprintln!("skipped: this nc has no -N");
        return;
    }
    let server = Server::start("line_echo", &["--listen", "127.0.0.1:0"]);
    let (host, port) = server.place.rsplit_once(':').expect("HOST:PORT");
    let reply = output(Command::new(nc).args(["-N", host, port]), b"one\r\ntwo\n");
    assert_eq!(text(&reply.stdout), "one\ntwo\n");
    assert_eq!(server.terminate(), 0);
}

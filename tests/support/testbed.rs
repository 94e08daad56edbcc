//! What the tests of the test bed have in common.

// Each test file uses a part of it.
#![allow(dead_code)]

use crate::support::{Server, Socket, eventually, figure, frame, text};

/// Every value of `--dispatch`.
pub(crate) const DISPATCHES: [&str; 3] = ["adaptive", "workers", "inline"];

/// A server on a free port of the loopback interface.
pub(crate) fn server(options: &[&str]) -> Server {
    let args = [&["--listen", "tcp:127.0.0.1:0"], options].concat();
    Server::start("testbed_server", &args)
}

/// A frame with an opcode.
pub(crate) fn request(opcode: u8, body: &[u8]) -> Vec<u8> {
    frame(&[&[opcode], body].concat())
}

/// Big-endian numbers, then the rest of a body.
pub(crate) fn numbers(numbers: &[u32], rest: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
    body.extend_from_slice(rest);
    body
}

/// The first `n` bytes of the pattern.
pub(crate) fn pattern(n: u32) -> Vec<u8> {
    (0..u64::from(n))
        .map(|i| ((i * 31 + i / 256) % 256) as u8)
        .collect()
}

/// The server's figures, over this connection.
pub(crate) fn figures_over(socket: &mut Socket) -> String {
    socket.send(&request(b'T', b""));
    text(&socket.receive_frame())
}

/// Waits until only the asking connection is left, and looks at the rest of the figures.
pub(crate) fn assert_settled(server: &Server) -> String {
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
pub(crate) fn assert_ended(mut socket: Socket) {
    assert_eq!(socket.receive_rest(), b"");
}

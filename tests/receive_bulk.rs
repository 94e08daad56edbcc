//! How much one receive takes: more where much comes at once.

mod support;

use netpoll::{Connection, handler_fn};
use std::{
    io::{BufRead, Write},
    sync::{Mutex, mpsc},
};
use support::{Case, Kind, Log, Peer, Transport, bounded};

/// More than a usual receive takes, and little enough to lie in a unix socket as a whole.
const BATCH: usize = 140 << 10;
const USUAL: usize = 64 << 10;

/// A server that stops before it looks for more when it is told to, and tells how the rest came.
struct Server {
    peer: Peer,
    go_on: mpsc::Sender<()>,
    pieces: Log<usize>,
    _server: support::Server,
}

impl Server {
    fn new() -> Self {
        let pieces = Log::new();
        let log = pieces.clone();
        let (go_on, told) = mpsc::channel();
        let told = Mutex::new(told);
        let case = Case::new(Transport::Unix, Kind::Inline);
        let server = case.serve(handler_fn(move |conn: &mut Connection| {
            while conn.available() > 0 {
                let piece = conn.fill_buf()?;
                let (len, stop) = (piece.len(), piece == b"stop");
                log.push(len);
                conn.skip(len)?;
                if stop {
                    told.lock().unwrap().recv().unwrap();
                }
            }
            Ok(())
        }));
        let peer = server.connect();
        Self {
            peer,
            go_on,
            pieces,
            _server: server,
        }
    }

    /// How `n` bytes come that all lie there when the server looks.
    fn pieces_of(&mut self, n: usize) -> Vec<usize> {
        let before = self.pieces.len();
        self.peer.write_all(b"stop").unwrap();
        self.pieces.wait_len(before + 1);
        self.peer.write_all(&vec![0; n]).unwrap();
        self.go_on.send(()).unwrap();
        let mut pieces = Vec::new();
        while pieces.iter().sum::<usize>() < n {
            let count = before + 2 + pieces.len();
            pieces = self.pieces.wait_len(count)[before + 1..].to_vec();
        }
        pieces
    }
}

#[test]
fn where_receives_are_filled_the_next_ones_take_more() {
    bounded("bulk", || {
        let mut server = Server::new();
        // The handler is asked first, for this may be the begin of a large message.
        assert_eq!(server.pieces_of(BATCH)[0], USUAL);
        assert_eq!(server.pieces_of(BATCH), [BATCH], "in one piece");
        assert_eq!(server.pieces_of(BATCH), [BATCH], "and so on");
        for _ in 0..10 {
            assert_eq!(server.pieces_of(1000), [1000]);
        }
        assert_eq!(server.pieces_of(BATCH)[0], USUAL, "as before");
        assert_eq!(server.pieces_of(BATCH), [BATCH]);
    });
}

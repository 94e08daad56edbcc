//! How much one receive takes: more where much comes at once.

use crate::support::{Case, Kind, LIMIT, Log, Peer, Transport, bounded, every, limited_pair};
use netpoll::{Connection, handler_fn};
use std::{
    io::{self, BufRead, Read, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

/// More than a usual receive takes, and little enough to lie in a unix socket as a whole.
const BATCH: usize = 140 << 10;
const USUAL: usize = 64 << 10;

/// A server that stops before it looks for more when it is told to, and tells how the rest came.
struct Server {
    peer: Peer,
    go_on: mpsc::Sender<()>,
    pieces: Log<usize>,
    _server: crate::support::Server,
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

/// A message of unknown length, and more than the kernel holds at once: it has to be asked for.
const LONG: usize = 6 << 20;
/// More steps than such a message has receives, and less than one for each KiB.
const STEPS: usize = LONG >> 11;

fn long_message() -> Vec<u8> {
    let mut message = vec![b'a'; LONG];
    message[LONG - 1] = b'\n';
    message
}

/// Ways to ask for more of what is here; `true`: it has come.
type Ask = fn(&mut Connection) -> io::Result<bool>;

const ASKS: [(&str, Ask); 5] = [
    ("a byte", |conn| conn.try_fill(conn.available() + 1)),
    ("eight bytes", |conn| conn.try_fill(conn.available() + 8)),
    ("more", Connection::try_fill_more),
    ("a byte, through the trait", |conn| {
        netpoll::Reader::try_peek(conn, conn.available() + 1).map(|more| more.is_some())
    }),
    ("more, through the trait", |conn| {
        let reader: &mut dyn netpoll::Reader = conn;
        reader.try_fill_more()
    }),
];

#[test]
fn a_message_of_unknown_length_comes_in_few_steps() {
    every(|case| {
        for (what, ask) in ASKS {
            let steps = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&steps);
            let server = case.serve(handler_fn(move |conn: &mut Connection| {
                loop {
                    count.fetch_add(1, SeqCst);
                    let here = conn.available();
                    if conn.peek(here)?.ends_with(b"\n") {
                        assert_eq!(here, LONG);
                        conn.skip(here)?;
                        conn.write_str("done")?;
                        return conn.flush();
                    }
                    if !ask(conn)? {
                        return Ok(());
                    }
                }
            }));
            let mut peer = server.connect();
            peer.write_all(&long_message()).unwrap();
            let mut done = [0; 4];
            peer.read_exact(&mut done).unwrap();
            let steps = steps.load(SeqCst);
            assert!(steps < STEPS, "{what}: {steps} steps");
            drop(peer);
            server.stop();
        }
    });
}

#[test]
fn a_wait_for_more_takes_what_comes() {
    bounded("own connection", || {
        let (mut conn, mut peer) = limited_pair();
        conn.set_read_timeout(Some(LIMIT));
        let writer = thread::spawn(move || {
            peer.write_all(&long_message()).unwrap();
            peer
        });
        let mut steps = 0;
        while conn.available() < LONG {
            let before = conn.available();
            conn.fill_more().unwrap();
            assert!(conn.available() > before);
            steps += 1;
        }
        assert!(steps < STEPS, "{steps} steps");
        drop(writer.join().unwrap());
        let error = conn.fill_more().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(conn.available(), LONG);
    });
}

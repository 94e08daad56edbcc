//! Framing over real connections: `framed`, decoders in handlers and in clients.

use crate::support::{
    Case, Gate, Kind, Log, OpenOnDrop, Peer, Script, Transport, bounded, eventually, every,
    every_blocking, frame, pattern, read_frame,
};
use netpoll::{
    CloseReason, Connection, ConnectionHandle, Decoder, Delimited, Encoder, Error, FixedLength,
    FrameError, Handler, LengthField, LinkBuffer, SocketOptions, framed, handler_fn,
};
use socket2::SockRef;
use std::{
    io::{self, Read, Write},
    sync::atomic::{AtomicUsize, Ordering},
    sync::{Arc, Mutex},
    thread,
};

const ADAPTIVE: Case = Case::new(Transport::Tcp, Kind::Adaptive);

/// Sends every frame back.
fn echo() -> impl Handler {
    let frames = LengthField::new(4);
    framed(frames.clone(), move |conn, body| frames.encode(conn, body))
}

/// Notes why the connection ended.
fn note_end(conn: &Connection, log: &Log<CloseReason>) {
    let log = log.clone();
    conn.on_close(move |reason| log.push(reason));
}

#[test]
fn frames_come_back_however_they_are_sent() {
    every(|case| {
        let server = case.serve(echo());
        let mut peer = server.connect();
        let bodies = [0, 1, 63, 64, 511, 512, 5000, 100_000].map(|n| pattern(n as u64, n));
        // One by one, all together, and in small pieces.
        for body in &bodies {
            peer.ping(body);
        }
        let all: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
        for size in [all.len(), 4096, 333] {
            let mut writer = peer.try_clone();
            let pieces: Vec<Vec<u8>> = all.chunks(size).map(<[u8]>::to_vec).collect();
            let writing = thread::spawn(move || {
                for piece in pieces {
                    writer.write_all(&piece).unwrap();
                }
            });
            for body in &bodies {
                assert!(
                    read_frame(&mut peer).unwrap() == *body,
                    "in pieces of {size}"
                );
            }
            writing.join().unwrap();
        }
        for byte in frame(b"byte by byte") {
            peer.write_all(&[byte]).unwrap();
        }
        assert_eq!(read_frame(&mut peer).unwrap(), b"byte by byte");
        drop(peer);
        server.stop();
    });
}

#[test]
fn answers_to_frames_that_came_together_are_flushed_together() {
    every(|case| {
        let log = Log::new();
        let noted = log.clone();
        let frames = LengthField::new(4);
        let server = case.serve(framed(frames.clone(), move |conn, body| {
            noted.push((conn.stats().messages_out, conn.malloc_len()));
            frames.encode(conn, body)
        }));
        let mut peer = server.connect();
        let many: Vec<u8> = (0..1000).flat_map(|_| frame(&[7; 20])).collect();
        peer.write_all(&many).unwrap();
        for _ in 0..1000 {
            assert_eq!(read_frame(&mut peer).unwrap(), [7; 20]);
        }
        let noted = log.take();
        assert_eq!(noted.len(), 1000);
        // 24 kB may arrive in some pieces, but not in hundreds.
        assert!(
            noted[999].0 < 100,
            "{} flushes for 1000 frames",
            noted[999].0
        );
        drop(peer);
        server.stop();
    });
}

#[test]
fn unflushed_answers_are_bounded() {
    bounded("unflushed answers", || {
        let most = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&most);
        let server = ADAPTIVE.serve(framed(FixedLength::new(1), move |conn, _| {
            seen.fetch_max(conn.malloc_len(), Ordering::Relaxed);
            conn.write_slice(&[1; 1000])
        }));
        let mut peer = server.connect();
        let mut writer = peer.try_clone();
        let writing = thread::spawn(move || writer.write_all(&[0; 5000]).unwrap());
        let mut all = vec![0; 5_000_000];
        peer.read_exact(&mut all).unwrap();
        writing.join().unwrap();
        let most = most.load(Ordering::Relaxed);
        assert!(most > 0 && most < (64 << 10) + 1000, "{most} bytes");
        drop(peer);
        server.stop();
    });
}

#[test]
fn a_frame_that_is_too_long_is_seen_and_ends_its_connection_only() {
    every(|case| {
        let (errors, ends) = (Log::new(), Log::new());
        let (seen, ended) = (errors.clone(), ends.clone());
        let frames = LengthField::new(4).max_frame(104);
        let encoder = frames.clone();
        let handler = framed(frames, move |conn, body| encoder.encode(conn, body));
        let server = case.serve(handler.on_error(move |conn, error| {
            note_end(conn, &ended);
            seen.push(FrameError::from_io(error));
            LengthField::new(4).encode_slice(conn, b"too long").unwrap();
        }));
        let mut other = server.connect();
        other.ping(b"before");
        let mut peer = server.connect();
        let bytes = [frame(&[1; 100]), frame(&[2; 101]), frame(b"never seen")].concat();
        peer.write_all(&bytes).unwrap();
        assert_eq!(
            read_frame(&mut peer).unwrap(),
            [1; 100],
            "what came before is answered"
        );
        assert_eq!(read_frame(&mut peer).unwrap(), b"too long");
        peer.expect_end();
        assert_eq!(
            errors.take(),
            [Some(FrameError::TooLong { len: 105, max: 104 })]
        );
        assert_eq!(ends.wait_len(1), [CloseReason::InputLimit]);
        other.ping(b"after");
        drop(other);
        server.stop();
        assert_eq!(
            errors.len(),
            0,
            "the other connection ended without an error"
        );
    });
}

#[test]
fn without_a_callback_an_error_just_ends_the_connection() {
    every(|case| {
        let server = case.serve(framed(Delimited::lines(10), |conn, line| {
            conn.write_slice(&line)?;
            conn.write_u8(b'.')
        }));
        let mut peer = server.connect();
        peer.write_all(b"one\ntwo\nthis is too long").unwrap();
        assert_eq!(peer.rest().unwrap(), b"one.two.");
        server.stop();
    });
}

#[test]
fn frames_before_the_end_of_input_are_answered() {
    every(|case| {
        let errors = Log::new();
        let seen = errors.clone();
        let frames = LengthField::new(4);
        let encoder = frames.clone();
        let handler = framed(frames, move |conn, body| encoder.encode(conn, body));
        let server = case.serve(handler.on_error(move |conn, error| {
            seen.push(Error::from_io(error));
            LengthField::new(4).encode_slice(conn, b"cut").unwrap();
        }));
        // A clean end is no error.
        let mut peer = server.connect();
        peer.write_all(&[frame(b"one"), frame(b"two")].concat())
            .unwrap();
        peer.shutdown_write();
        assert_eq!(
            peer.rest().unwrap(),
            [frame(b"one"), frame(b"two")].concat()
        );
        assert_eq!(errors.len(), 0);
        // An end inside a frame is one, after all whole frames.
        let mut peer = server.connect();
        peer.write_all(&[frame(b"one"), frame(b"two")[..6].to_vec()].concat())
            .unwrap();
        peer.shutdown_write();
        assert_eq!(
            peer.rest().unwrap(),
            [frame(b"one"), frame(b"cut")].concat()
        );
        assert_eq!(
            errors.take(),
            [Some(Error::PeerClosed {
                wanted: 7,
                available: 6
            })]
        );
        server.stop();
    });
}

#[test]
fn an_error_of_the_closure_sends_what_was_written_and_ends_the_connection() {
    every(|case| {
        let ends = Log::new();
        let ended = ends.clone();
        let server = case.serve(framed(
            Delimited::lines(100).frames_as::<String>(),
            move |conn, line| {
                conn.write_str(&line)?;
                if line == "bad" {
                    note_end(conn, &ended);
                    return Err(io::Error::other("bad line"));
                }
                Ok(())
            },
        ));
        let mut peer = server.connect();
        peer.write_all(b"good\nbad\nunseen\n").unwrap();
        assert_eq!(peer.rest().unwrap(), b"goodbad");
        assert_eq!(ends.wait_len(1), [CloseReason::HandlerError]);
        server.stop();
    });
}

#[test]
fn no_frame_follows_a_close() {
    every(|case| {
        for close in [ConnectionHandle::close, ConnectionHandle::abort] {
            let log = Log::new();
            let noted = log.clone();
            let server = case.serve(framed(FixedLength::new(1), move |conn, byte| {
                noted.push(byte[0]);
                if byte[0] == b'c' {
                    close(&conn.handle());
                }
                Ok(())
            }));
            let mut peer = server.connect();
            peer.write_all(b"abcdefgh").unwrap();
            peer.expect_gone();
            server.stop();
            assert_eq!(log.all(), b"abc");
        }
    });
}

#[test]
fn another_handler_gets_what_is_behind_the_frame() {
    every(|case| {
        let frames = LengthField::new(4);
        let server = case.serve(framed(Delimited::lines(100), move |conn, line| {
            conn.write_bytes(line.clone())?;
            if line != "upgrade" {
                return Ok(());
            }
            let encoder = frames.clone();
            conn.set_handler(framed(frames.clone(), move |conn, body| {
                encoder.encode(conn, body)
            }))
        }));
        let mut peer = server.connect();
        let bytes = [&b"a\nupgrade\r\n"[..], &frame(b"b\nc\n"), &frame(b"")].concat();
        peer.write_all(&bytes).unwrap();
        let mut reply = [0; 8];
        peer.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"aupgrade");
        assert_eq!(read_frame(&mut peer).unwrap(), b"b\nc\n");
        assert_eq!(read_frame(&mut peer).unwrap(), b"");
        drop(peer);
        server.stop();
    });
}

#[test]
fn whoever_takes_the_connection_gets_what_is_behind_the_frame() {
    every_blocking(|case| {
        let (lines, errors) = (Log::new(), Log::new());
        let (noted, seen) = (lines.clone(), errors.clone());
        let handler = framed(Delimited::lines(100), move |conn, line| {
            let noted = noted.clone();
            let mut taken = conn.hijack()?;
            thread::spawn(move || {
                noted.push(line);
                let mut rest = Delimited::lines(100);
                while let Some(line) = rest.read_frame(&mut taken).unwrap() {
                    noted.push(line);
                }
                taken.write_str("bye").unwrap();
                taken.flush().unwrap();
            });
            Ok(())
        });
        let server = case.serve(handler.on_error(move |_, error| seen.push(error.to_string())));
        let mut peer = server.connect();
        peer.write_all(b"one\ntwo\nth").unwrap();
        lines.wait_len(2);
        peer.write_all(b"ree\n").unwrap();
        peer.shutdown_write();
        assert_eq!(peer.rest().unwrap(), b"bye");
        assert_eq!(lines.take(), ["one", "two", "three"]);
        server.stop();
        assert_eq!(errors.take(), [""; 0]);
    });
}

#[test]
fn every_connection_has_its_own_decoder() {
    every(|case| {
        let server = case.serve(framed(Delimited::new("\r\n", 100), |conn, line| {
            conn.write_bytes(line)?;
            conn.write_u8(b'.')
        }));
        let mut peers = [server.connect(), server.connect()];
        for (i, byte) in b"hello\r\n".iter().enumerate() {
            for peer in &mut peers {
                peer.write_all(&[*byte]).unwrap();
                if i == 3 {
                    // The other one is in the middle of its line.
                    peer.write_all(b"--").unwrap();
                }
            }
        }
        for peer in &mut peers {
            let mut reply = [0; 8];
            peer.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"hell--o.");
        }
        drop(peers);
        server.stop();
    });
}

/// Counts how often it runs, and decodes what it can.
struct Counting<D> {
    decoder: D,
    runs: Arc<AtomicUsize>,
    frames: Log<Vec<u8>>,
    handles: Log<ConnectionHandle>,
}

impl<D> Handler for Counting<D>
where
    D: Decoder<Frame = Vec<u8>> + Clone + Send + Sync + 'static,
{
    type State = D;

    fn on_connect(&self, conn: &mut Connection) -> io::Result<D> {
        self.handles.push(conn.handle());
        Ok(self.decoder.clone())
    }

    fn on_request(&self, conn: &mut Connection, decoder: &mut D) -> io::Result<()> {
        self.runs.fetch_add(1, Ordering::SeqCst);
        while let Some(frame) = decoder.decode(conn)? {
            self.frames.push(frame);
        }
        Ok(())
    }
}

#[test]
fn a_handler_runs_when_the_frame_is_there() {
    fn runs<D>(case: Case, decoder: D, pieces: &[&[u8]], frame: &[u8]) -> usize
    where
        D: Decoder<Frame = Vec<u8>> + Clone + Send + Sync + 'static,
    {
        let (runs, frames, handles) = (Arc::default(), Log::new(), Log::new());
        let server = case.serve(Counting {
            decoder,
            runs: Arc::clone(&runs),
            frames: frames.clone(),
            handles: handles.clone(),
        });
        let (mut peer, handle) = server.connect_given(&handles);
        let mut sent = 0;
        for piece in pieces {
            peer.write_all(piece).unwrap();
            sent += piece.len() as u64;
            // Each piece arrives by itself.
            eventually("the piece arrives", || handle.stats().bytes_in == sent);
        }
        assert_eq!(frames.wait_len(1), [frame]);
        drop(peer);
        server.stop();
        runs.load(Ordering::SeqCst)
    }
    every(|case| {
        let pieces: [&[u8]; 6] = [b"\0\0\0\x14", b"1234", b"5678", b"90", b"123456789", b"0"];
        let body = b"12345678901234567890";
        // One run learns the length, the other finds the frame.
        assert_eq!(
            runs(case, LengthField::new(4).frames_as(), &pieces, body),
            2
        );
        // One run asks for all of it, the other finds it.
        let found = runs(case, FixedLength::new(20).frames_as(), &pieces[1..], body);
        assert_eq!(found, 2);
    });
}

#[test]
fn a_handler_may_take_one_frame_at_a_time() {
    every_blocking(|case| {
        let gate = Gate::new();
        let _open = OpenOnDrop(gate.clone());
        let (log, held) = (Log::new(), gate.clone());
        let noted = log.clone();
        let server = case.serve(Script::new().request(move |conn| {
            held.pass();
            if let Some(frame) = LengthField::new(4).decode(conn)? {
                noted.push(frame.len());
            }
            Ok(())
        }));
        let mut peer = server.connect();
        let bytes = [frame(&[1; 60_000]), frame(&[2; 10]), frame(&[3; 20])].concat();
        // The handler has seen a part of the first frame only, and receives the rest itself.
        peer.write_all(&bytes[..4]).unwrap();
        gate.wait_arrived(1);
        peer.write_all(&bytes[4..]).unwrap();
        gate.open();
        assert_eq!(log.wait_len(3), [60_000, 10, 20]);
        drop(peer);
        server.stop();
    });
}

/// Fills a socket with frames whenever it is asked to, without waiting.
struct Flood {
    peer: Peer,
    /// One frame after the other, and where in one of them the next byte is.
    frames: Vec<u8>,
    at: usize,
}

impl Flood {
    const FRAME: usize = 1005;

    fn new(peer: Peer) -> Self {
        let frames = frame(&[0; Self::FRAME - 4]).repeat(300);
        Self {
            peer,
            frames,
            at: 0,
        }
    }

    fn fill(&mut self) {
        let socket = SockRef::from(&self.peer);
        while let Ok(n) = socket.send_with_flags(&self.frames[self.at..], libc::MSG_DONTWAIT) {
            self.at = (self.at + n) % Self::FRAME;
        }
    }
}

/// A peer whose socket is full again with every frame that the handler takes: who goes on as long as
/// something comes never ends. The only thread serves another one nevertheless.
fn flood<H: Handler>(
    what: &str,
    handler: impl FnOnce(Arc<Mutex<Option<Flood>>>) -> H + Send + 'static,
) {
    bounded(what, || {
        let source: Arc<Mutex<Option<Flood>>> = Arc::default();
        let case = Case::new(Transport::Tcp, Kind::Inline);
        // So that more is there than one receive takes.
        let options = SocketOptions::new().recv_buffer(1 << 20);
        let server = case.serve_with(case.builder().socket(options), handler(Arc::clone(&source)));
        let mut peer = server.connect();
        peer.ping(b"ping");
        let mut flood = Flood::new(server.connect());
        flood.fill();
        *source.lock().unwrap() = Some(flood);
        for _ in 0..10 {
            peer.ping(b"ping");
        }
        *source.lock().unwrap() = None;
        drop(peer);
        server.stop();
    });
}

fn fill(source: &Mutex<Option<Flood>>) {
    if let Some(flood) = source.lock().unwrap().as_mut() {
        flood.fill();
    }
}

#[test]
fn a_peer_that_never_pauses_does_not_keep_the_thread() {
    flood("framed", |source| {
        framed(LengthField::new(4), move |conn, body| {
            if body == "ping" {
                return LengthField::new(4).encode(conn, body);
            }
            fill(&source);
            Ok(())
        })
    });
}

#[test]
fn a_loop_as_long_as_frames_come_does_not_keep_the_thread() {
    flood("a loop", |source| {
        handler_fn(move |conn| {
            while let Some(request) = crate::support::decode(conn)? {
                if request.len() == 8 {
                    conn.append(request)?;
                } else {
                    fill(&source);
                }
            }
            conn.flush()
        })
    });
}

#[test]
fn a_client_waits_for_frames() {
    every_blocking(|case| {
        let server = case.serve(framed(
            LengthField::new(2).frames_as::<LinkBuffer>(),
            |conn, body| {
                let frames = LengthField::new(2);
                // In two pieces, so that the client has to wait inside of a frame.
                frames.encode_with(conn, &mut |w| w.append(LinkBuffer::from(vec![7; 5000])))?;
                conn.flush()?;
                let len = body.len() as u16;
                conn.write_slice(&len.to_be_bytes())?;
                conn.flush()?;
                conn.append(body)?;
                conn.flush()
            },
        ));
        let mut conn = server.dial();
        let mut frames = LengthField::new(2);
        frames.encode_slice(&mut conn, b"hello").unwrap();
        conn.flush().unwrap();
        assert_eq!(
            frames.read_frame(&mut conn).unwrap().unwrap(),
            vec![7; 5000]
        );
        assert_eq!(frames.read_frame(&mut conn).unwrap().unwrap(), "hello");
        server.event_loop.shutdown(crate::support::LIMIT).unwrap();
        assert!(
            frames.read_frame(&mut conn).unwrap().is_none(),
            "the end between two frames"
        );
        server.stop();
    });
}

#[test]
fn a_client_sees_a_frame_that_is_cut() {
    bounded("a cut frame", || {
        let (mut conn, mut peer) =
            crate::support::socket_pair(|address| netpoll::Dialer::new().dial_connection(address));
        peer.write_all(b"whole\nhal").unwrap();
        drop(peer);
        let mut lines = Delimited::lines(100);
        assert_eq!(lines.read_frame(&mut conn).unwrap().unwrap(), "whole");
        let error = lines.read_frame(&mut conn).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let mut last = lines.clone().open_end(true);
        assert_eq!(last.read_frame(&mut conn).unwrap().unwrap(), "hal");
        assert!(last.read_frame(&mut conn).unwrap().is_none());
    });
}

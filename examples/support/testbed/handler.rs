//! What the server of the test bed does with each opcode.

use super::{
    Book,
    book::{Phase, Track},
    keeper::Keeper,
};
use crate::support::pattern;
use netpoll::{
    Address, Bytes, CloseReason, Connection, ConnectionHandle, Dialer, Handler, LinkBuffer,
};
use std::{io, str, sync::Arc, thread, time::Duration};

/// The most threads one request may ask for.
const MAX_THREADS: u32 = 4096;

/// When the handler may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    /// At all: not with inline dispatch.
    pub(crate) allowed: bool,
    /// For the rest of a frame, so that the read timeout judges it.
    pub(crate) for_input: bool,
    /// For a peer that does not read its replies: no further request is read, and the write timeout
    /// ends the connection. Otherwise replies are queued and the output limit ends it.
    pub(crate) for_output: bool,
}

/// The handler of the test bed.
#[derive(Debug)]
pub(crate) struct Testbed {
    book: Arc<Book>,
    dialer: Dialer,
    keeper: Keeper,
    waiting: Waiting,
}

/// What became of a request.
enum Outcome {
    Answered,
    /// The connection was closed on purpose.
    Closing,
}

impl Testbed {
    pub(crate) fn new(book: Arc<Book>, dialer: Dialer, waiting: Waiting) -> io::Result<Self> {
        Ok(Self {
            book,
            dialer,
            keeper: Keeper::start()?,
            waiting,
        })
    }

    /// Serves the frames that are here.
    fn serve(&self, conn: &mut Connection, track: &Track) -> io::Result<Outcome> {
        while conn.available() > 0 {
            let Some(frame) = self.frame(conn)? else {
                break;
            };
            track.consumed(frame.len());
            if let Outcome::Closing = self.answer(conn, frame)? {
                return Ok(Outcome::Closing);
            }
        }
        Ok(Outcome::Answered)
    }

    /// The next frame with its length, not copied; `None` until all of it is here.
    fn frame(&self, conn: &mut Connection) -> io::Result<Option<LinkBuffer>> {
        if self.waiting.for_input {
            let len = number(conn.peek(4)?);
            return conn.slice(4 + len as usize).map(Some);
        }
        match conn.try_peek(4)?.map(number) {
            Some(len) => conn.try_slice(4 + len as usize),
            None => Ok(None),
        }
    }

    fn answer(&self, conn: &mut Connection, mut frame: LinkBuffer) -> io::Result<Outcome> {
        frame.skip(4)?;
        let opcode = frame
            .read_u8()
            .map_err(|_| invalid("a frame without an opcode"))?;
        match opcode {
            b'E' => self.reply(conn, frame)?,
            b'S' => {
                let time = argument(&mut frame)?;
                thread::sleep(Duration::from_millis(time.into()));
                self.reply(conn, frame)?;
            }
            b'P' => panic!("a panic was asked for"),
            b'C' => {
                let n = argument(&mut frame)?;
                conn.write_slice(&n.to_be_bytes())?;
                pattern::write(conn, 0, n.into())?;
                self.flush(conn)?;
                conn.handle().close();
                return Ok(Outcome::Closing);
            }
            b'A' => {
                conn.handle().abort();
                return Ok(Outcome::Closing);
            }
            b'B' => {
                let (n, pieces) = (argument(&mut frame)?, argument(&mut frame)?);
                self.pattern_in_pieces(conn, n.into(), pieces.into())?;
            }
            b'Q' => {}
            b'L' => self.relay(conn, frame)?,
            b'K' => self.keeper.keep(frame, conn.handle())?,
            b'U' => {
                let threads = argument(&mut frame)?;
                let len = frame.len();
                echo_from_threads(&conn.handle(), threads, &frame.next_bytes(len)?)?;
            }
            b'T' => {
                let figures = LinkBuffer::from(self.book.json());
                self.reply(conn, figures)?;
            }
            other => return Err(invalid(format!("opcode {:?}", char::from(other)))),
        }
        Ok(Outcome::Answered)
    }

    /// Submits what was written.
    fn flush(&self, conn: &mut Connection) -> io::Result<()> {
        if self.waiting.for_output {
            conn.flush()
        } else {
            conn.try_flush().map(drop)
        }
    }

    /// Queues one reply behind those before it.
    fn reply(&self, conn: &mut Connection, body: LinkBuffer) -> io::Result<()> {
        conn.write_slice(&(body.len() as u32).to_be_bytes())?;
        conn.append(body)?;
        self.flush(conn)
    }

    /// A reply of `n` pattern bytes, given to the kernel in so many pieces.
    fn pattern_in_pieces(&self, conn: &mut Connection, n: u64, pieces: u64) -> io::Result<()> {
        conn.write_slice(&(n as u32).to_be_bytes())?;
        let pieces = pieces.clamp(1, n.max(1));
        let start = |piece: u64| (u128::from(n) * u128::from(piece) / u128::from(pieces)) as u64;
        for piece in 0..pieces {
            let (from, to) = (start(piece), start(piece + 1));
            pattern::write(conn, from, to - from)?;
            self.flush(conn)?;
        }
        Ok(())
    }

    /// Sends a frame on to another server and its reply back.
    fn relay(&self, conn: &mut Connection, mut frame: LinkBuffer) -> io::Result<()> {
        let address = match frame.try_until(0)? {
            Some(text) => str::from_utf8(&text[..text.len() - 1]).map_err(invalid)?,
            None => return Err(invalid("an address without an end")),
        };
        let address: Address = address.parse().map_err(invalid)?;
        let rest = frame.len();
        if rest < 4 || number(frame.peek(4)?) as usize != rest - 4 {
            return Err(invalid(format!("{rest} bytes to relay are not one frame")));
        }
        if self.waiting.allowed {
            conn.append(call(&self.dialer, address, frame)?)?;
            return self.flush(conn);
        }
        let (dialer, handle) = (self.dialer.clone(), conn.handle());
        let promise = handle.hold();
        thread::Builder::new()
            .spawn(move || {
                let sent = call(&dialer, address, frame).and_then(|answer| handle.send(answer));
                if let Err(error) = sent {
                    eprintln!("connection {}: relay: {error}", handle.id());
                    handle.close();
                }
                drop(promise);
            })
            .map(drop)
    }
}

impl Handler for Testbed {
    type State = Arc<Track>;

    fn on_prepare(&self, conn: &mut Connection) -> io::Result<()> {
        self.book.prepare(conn.handle());
        Ok(())
    }

    fn on_connect(&self, conn: &mut Connection) -> io::Result<Arc<Track>> {
        let track = self.book.find(conn.id())?;
        drop(
            self.book
                .enter(&track, &[Phase::Prepared], Phase::Connected),
        );
        Ok(track)
    }

    fn on_request(&self, conn: &mut Connection, track: &mut Arc<Track>) -> io::Result<()> {
        let _inside = self
            .book
            .enter(track, &[Phase::Connected], Phase::Connected);
        let served = self.serve(conn, track);
        if let Ok(Outcome::Closing) = served {
            return Ok(());
        }
        served.map(drop)
    }

    fn on_disconnect(&self, track: Arc<Track>, _: CloseReason) {
        drop(
            self.book
                .enter(&track, &[Phase::Connected], Phase::Disconnected),
        );
    }
}

/// Replies of a number from 0 on and the body, each from a thread of its own.
fn echo_from_threads(handle: &ConnectionHandle, threads: u32, body: &Bytes) -> io::Result<()> {
    if threads > MAX_THREADS {
        return Err(invalid(format!(
            "{threads} threads asked for, {MAX_THREADS} allowed"
        )));
    }
    for tag in 0..threads {
        let (handle, body) = (handle.clone(), body.clone());
        let promise = handle.hold();
        thread::Builder::new().spawn(move || {
            let mut reply = LinkBuffer::new();
            reply.write_slice(&(4 + body.len() as u32).to_be_bytes());
            reply.write_slice(&tag.to_be_bytes());
            reply.write_bytes(body);
            if let Err(error) = handle.send(reply) {
                eprintln!("connection {}: echo {tag} not sent: {error}", handle.id());
            }
            drop(promise);
        })?;
    }
    Ok(())
}

/// One call to another server: the reply with its length.
fn call(dialer: &Dialer, address: Address, frame: LinkBuffer) -> io::Result<LinkBuffer> {
    let mut conn = dialer.dial_connection(address)?;
    conn.append(frame)?;
    conn.flush()?;
    let len = number(conn.peek(4)?);
    conn.slice(4 + len as usize)
}

fn argument(frame: &mut LinkBuffer) -> io::Result<u32> {
    match frame.next(4) {
        Ok(bytes) => Ok(number(bytes)),
        Err(_) => Err(invalid("the opcode wants a number of 4 bytes")),
    }
}

/// The u32 at the start of at least four bytes.
fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

//! io_uring without a framework: one thread, multishot accept and receive into a pool of provided
//! buffers; a buffer that holds whole frames is sent back from where it lies.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::{TcpListener, TcpStream};

use slab::Slab;

use crate::frame::{self, Front, Kind};
use crate::sys::uring::{Completion, Lease, Piece, Ring};
use crate::work;

/// Buffers of the pool.
const BUFFERS: u16 = 1024;
/// Bytes of each buffer of the pool.
const SIZE: usize = 64 << 10;
/// Bytes waiting to be sent above which a connection is not received from, and below which it is
/// again.
const PAUSE: usize = 1 << 20;
const RESUME: usize = 256 << 10;

struct Connection {
    stream: TcpStream,
    /// Received and incomplete.
    input: Vec<u8>,
    /// Waiting for the send under way.
    outgoing: VecDeque<Piece>,
    /// Bytes waiting or being sent.
    queued: usize,
    sending: bool,
    receiving: bool,
    pausing: bool,
    ended: bool,
}

struct Server {
    ring: Ring,
    connections: Slab<Connection>,
}

/// Serves `listener` for ever.
pub(crate) fn serve(listener: TcpListener) -> io::Result<()> {
    let mut server = Server {
        ring: Ring::new(BUFFERS, SIZE)?,
        connections: Slab::new(),
    };
    server.ring.accept(&listener)?;
    let mut completions = Vec::with_capacity(4096);
    loop {
        server.ring.wait(&mut completions)?;
        for completion in completions.drain(..) {
            match completion {
                Completion::Accepted { stream, again } => {
                    if let Ok(stream) = stream {
                        server.add(stream)?;
                    }
                    if again {
                        server.ring.accept(&listener)?;
                    }
                }
                Completion::Received { key, data, again } => server.received(key, data, again)?,
                Completion::Sent {
                    key,
                    piece,
                    from,
                    sent,
                } => {
                    server.sent(key, piece, from, sent)?;
                }
            }
        }
    }
}

impl Server {
    fn add(&mut self, stream: TcpStream) -> io::Result<()> {
        let slot = self.connections.vacant_entry();
        self.ring.receive(&stream, slot.key())?;
        slot.insert(Connection {
            stream,
            input: Vec::new(),
            outgoing: VecDeque::new(),
            queued: 0,
            sending: false,
            receiving: true,
            pausing: false,
            ended: false,
        });
        Ok(())
    }

    fn received(
        &mut self,
        key: usize,
        data: io::Result<Option<Lease>>,
        again: bool,
    ) -> io::Result<()> {
        self.connections[key].receiving = !again;
        match data {
            Ok(Some(lease)) => self.data(key, lease)?,
            Ok(None) => self.connections[key].ended = true,
            Err(error) => match error.raw_os_error() {
                // Out of buffers, or paused: neither ends the connection.
                Some(libc::ENOBUFS | libc::ECANCELED) => {}
                _ => self.connections[key].ended = true,
            },
        }
        self.settle(key)
    }

    fn data(&mut self, key: usize, lease: Lease) -> io::Result<()> {
        let Self { ring, connections } = self;
        let connection = &mut connections[key];
        if connection.ended {
            ring.recycle(lease);
            return Ok(());
        }
        let bytes = ring.leased(&lease);
        if connection.input.is_empty() && frame::front(bytes) == Front::Echo(bytes.len()) {
            return connection.queue(ring, key, Piece::Leased(lease));
        }
        if let Front::Partial(need) = frame::front(&connection.input) {
            let room = need.max(bytes.len());
            connection
                .input
                .reserve(room.saturating_sub(connection.input.len()));
        }
        connection.input.extend_from_slice(bytes);
        ring.recycle(lease);
        connection.answer(ring, key)
    }

    fn sent(
        &mut self,
        key: usize,
        piece: Piece,
        from: usize,
        sent: io::Result<usize>,
    ) -> io::Result<()> {
        let Self { ring, connections } = self;
        let connection = &mut connections[key];
        connection.sending = false;
        let count = match sent {
            Ok(count) => count,
            Err(_) => {
                connection.ended = true;
                0
            }
        };
        connection.queued -= count;
        let (done, total) = (from + count, ring.bytes(&piece).len());
        if done < total && !connection.ended {
            connection.sending = true;
            return ring.send(&connection.stream, key, piece, done);
        }
        if let Piece::Leased(lease) = piece {
            ring.recycle(lease);
        }
        if let Some(next) = connection.outgoing.pop_front() {
            connection.sending = true;
            ring.send(&connection.stream, key, next, 0)?;
        }
        self.settle(key)
    }

    /// Drops a connection that has ended, pauses one whose peer does not read, resumes one whose
    /// peer has.
    fn settle(&mut self, key: usize) -> io::Result<()> {
        let Self { ring, connections } = self;
        let connection = &mut connections[key];
        if connection.ended {
            if !connection.sending && !connection.receiving {
                connections.remove(key);
            } else if connection.receiving && !connection.pausing {
                connection.pausing = true;
                ring.pause(key)?;
            }
        } else if connection.receiving && connection.queued > PAUSE && !connection.pausing {
            connection.pausing = true;
            ring.pause(key)?;
        } else if !connection.receiving && connection.queued < RESUME {
            connection.pausing = false;
            connection.receiving = true;
            ring.receive(&connection.stream, key)?;
        }
        Ok(())
    }
}

impl Connection {
    /// Answers the whole frames of `input`.
    fn answer(&mut self, ring: &mut Ring, key: usize) -> io::Result<()> {
        let mut used = 0;
        loop {
            let rest = &self.input[used..];
            match frame::front(rest) {
                Front::Echo(length) if used == 0 && length == rest.len() => {
                    let whole = Piece::Owned(mem::take(&mut self.input));
                    return self.queue(ring, key, whole);
                }
                Front::Echo(length) => {
                    let run = Piece::Owned(rest[..length].to_vec());
                    self.queue(ring, key, run)?;
                    used += length;
                }
                Front::Special(kind, length) => {
                    work::block_for(kind);
                    let reply = if kind == Kind::Sink {
                        &frame::ACK
                    } else {
                        &rest[..length]
                    };
                    let reply = Piece::Owned(reply.to_vec());
                    self.queue(ring, key, reply)?;
                    used += length;
                }
                Front::Partial(_) => break,
                Front::TooLong => {
                    self.ended = true;
                    break;
                }
            }
        }
        self.input.drain(..used);
        Ok(())
    }

    /// Sends `piece` once what was queued before is sent.
    fn queue(&mut self, ring: &mut Ring, key: usize, piece: Piece) -> io::Result<()> {
        self.queued += ring.bytes(&piece).len();
        if self.sending {
            self.outgoing.push_back(piece);
            return Ok(());
        }
        self.sending = true;
        ring.send(&self.stream, key, piece, 0)
    }
}

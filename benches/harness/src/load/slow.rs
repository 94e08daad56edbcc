//! Clients that ask without end and hardly read: what a server does with them shows on the others.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::Plan;
use crate::frame::{self, Kind};
use crate::net;

/// Payload bytes of their requests.
const SIZE: usize = 16 << 10;
/// Bytes each reads per turn.
const SIP: usize = 4 << 10;
/// Room in bytes for answers they have not read.
const ROOM: usize = 32 << 10;
/// Nanoseconds between turns.
const TURN: u64 = 10_000_000;

pub(super) struct SlowReaders {
    streams: Vec<(TcpStream, usize)>,
    request: Vec<u8>,
    due: u64,
}

impl SlowReaders {
    pub(super) fn new(plan: &Plan) -> io::Result<Self> {
        let congestion = plan.congestion.as_deref();
        let mut streams = Vec::with_capacity(plan.slow);
        for _ in 0..plan.slow {
            let stream = net::connect(plan.addr, congestion, Some(ROOM))?;
            net::reset_on_close(&stream)?;
            streams.push((stream, 0));
        }
        let due = if plan.slow == 0 { u64::MAX } else { 0 };
        Ok(Self {
            streams,
            request: frame::build(Kind::Echo, SIZE),
            due,
        })
    }

    /// When their next turn is, in nanoseconds.
    pub(super) fn due(&self) -> u64 {
        self.due
    }

    /// Has each ask for as much as its socket takes, and read a little.
    pub(super) fn act(&mut self, now: u64) -> io::Result<()> {
        if now < self.due {
            return Ok(());
        }
        self.due = now + TURN;
        let mut sip = [0; SIP];
        for (stream, phase) in &mut self.streams {
            // A few requests per turn fill any server's window soon, without keeping this thread.
            for _ in 0..8 {
                match stream.write(&self.request[*phase..]) {
                    Ok(sent) => *phase = (*phase + sent) % self.request.len(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            match stream.read(&mut sip) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

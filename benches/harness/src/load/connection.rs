//! One connection of the load generator: what it still has to send, what it waits for.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::frame::{self, HEADER, Kind};

/// The bytes all connections send from.
pub(super) struct Templates {
    /// Whole plain frames, one after the other.
    plain: Vec<u8>,
    /// One frame of the marked kind.
    marked: Vec<u8>,
    /// Bytes of one frame.
    pub(super) frame: usize,
    /// Bytes of one answer.
    pub(super) answer: usize,
    header: [u8; HEADER],
}

impl Templates {
    /// Frames of `kind` and of `marked` with `size` bytes of payload.
    pub(super) fn new(kind: Kind, marked: Kind, size: usize, depth: usize) -> Self {
        const ROOM: usize = 1 << 20;
        let one = frame::build(kind, size);
        let (frame, repeats) = (one.len(), depth.min(ROOM / one.len()).max(1));
        let header = if kind == Kind::Sink {
            frame::ACK
        } else {
            (size as u32).to_be_bytes()
        };
        Self {
            plain: one.repeat(repeats),
            marked: if size > 0 {
                frame::build(marked, size)
            } else {
                one
            },
            frame,
            answer: if kind == Kind::Sink {
                frame::ACK.len()
            } else {
                frame
            },
            header,
        }
    }
}

/// A connection that asks.
pub(super) struct Connection {
    stream: TcpStream,
    /// Bytes that may be sent now.
    unsent: usize,
    /// Where in a frame the next byte to send is.
    phase: usize,
    /// Bytes of the answer being received.
    received: usize,
    /// When the requests under way were sent, and how many at once.
    sent: VecDeque<(u64, u32)>,
    /// Bytes held back of a frame that is sent in two parts.
    held: usize,
    /// The request under way is marked.
    pub(super) marked: bool,
    /// It is sent from the marked template.
    special: bool,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            unsent: 0,
            phase: 0,
            received: 0,
            sent: VecDeque::new(),
            held: 0,
            marked: false,
            special: false,
        }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Asks for `count` plain answers.
    pub(super) fn ask(&mut self, templates: &Templates, count: u32, now: u64) -> io::Result<()> {
        (self.marked, self.special) = (false, false);
        self.sent.push_back((now, count));
        self.unsent += count as usize * templates.frame;
        self.send(templates)
    }

    /// Asks once with the marked frame.
    pub(super) fn ask_marked(&mut self, templates: &Templates, now: u64) -> io::Result<()> {
        (self.marked, self.special) = (true, true);
        self.sent.push_back((now, 1));
        self.unsent += templates.frame;
        self.send(templates)
    }

    /// Sends the first half of a plain request; [`Self::ask_rest`] sends the second.
    pub(super) fn ask_half(&mut self, templates: &Templates, now: u64) -> io::Result<()> {
        (self.marked, self.special) = (true, false);
        self.sent.push_back((now, 1));
        let half = templates.frame / 2;
        self.held = templates.frame - half;
        self.unsent += half;
        self.send(templates)
    }

    /// Sends what was held back.
    pub(super) fn ask_rest(&mut self, templates: &Templates) -> io::Result<()> {
        self.unsent += std::mem::take(&mut self.held);
        self.send(templates)
    }

    /// Sends as much as the socket takes.
    pub(super) fn send(&mut self, templates: &Templates) -> io::Result<()> {
        let source = if self.special {
            &templates.marked
        } else {
            &templates.plain
        };
        while self.unsent > 0 {
            let end = source.len().min(self.phase + self.unsent);
            match (&self.stream).write(&source[self.phase..end]) {
                Ok(sent) => {
                    self.unsent -= sent;
                    self.phase = (self.phase + sent) % templates.frame;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives once: how many answers that completed, and whether there may be more to receive.
    pub(super) fn receive(
        &mut self,
        templates: &Templates,
        scratch: &mut [u8],
    ) -> io::Result<(u32, bool)> {
        let received = match (&self.stream).read(scratch) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((0, false)),
            Err(error) => return Err(error),
        };
        let first = if self.received == 0 {
            0
        } else {
            templates.answer - self.received
        };
        let starts = (first..received).step_by(templates.answer);
        for header in starts.filter_map(|at| scratch[..received].get(at..at + HEADER)) {
            if header != templates.header {
                let text = format!(
                    "an answer begins with {header:?}, not {:?}",
                    templates.header
                );
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        self.received += received;
        let answers = self.received / templates.answer;
        self.received %= templates.answer;
        Ok((answers as u32, received == scratch.len()))
    }

    /// Takes `answers` from the requests under way: for each group, when it was sent and how many.
    pub(super) fn take(&mut self, mut answers: u32, mut each: impl FnMut(u64, u32)) {
        while answers > 0 {
            let Some(group) = self.sent.front_mut() else {
                unreachable!("{answers} answers to nothing");
            };
            let count = answers.min(group.1);
            each(group.0, count);
            answers -= count;
            group.1 -= count;
            if group.1 == 0 {
                self.sent.pop_front();
            }
        }
    }

    /// Requests under way.
    pub(super) fn under_way(&self) -> u32 {
        self.sent.iter().map(|group| group.1).sum()
    }
}

//! One non-blocking echo connection, for every server that is driven by readiness.
//!
//! An idle connection holds no buffer: it receives into scratch memory of its caller, and only an
//! incomplete frame or an answer the socket did not take is kept. A frame that is large compared
//! with the scratch memory is received straight into room of its own size and sent from there.
//! While an answer waits to be taken nothing more is read, so a slow reader costs one batch.

use std::io::{self, Read, Write};
use std::mem;
use std::os::fd::AsFd;

use crate::frame::{self, Front, Kind};
use crate::{sys, work};

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// For data.
    Readable,
    /// For room: an answer was not taken whole.
    Writable,
    /// For nothing: it has ended.
    Closed,
}

/// The receive buffer the connections of a thread share.
pub(crate) struct Scratch {
    buffer: Vec<u8>,
    receives: usize,
    carry: bool,
}

impl Scratch {
    /// A buffer of `bytes`. The rest of a frame that came in part is received behind the part, which
    /// is carried to the front of the buffer.
    pub(crate) fn carrying(bytes: usize) -> Self {
        Self {
            buffer: vec![0; bytes],
            receives: usize::MAX,
            carry: true,
        }
    }

    /// A buffer of `bytes`. A connection on which a frame came in part receives into memory of its
    /// own until a frame ends where a receive does.
    pub(crate) fn spilling(bytes: usize) -> Self {
        Self {
            carry: false,
            ..Self::carrying(bytes)
        }
    }

    /// Receives at most `receives` times from a connection in its turn.
    pub(crate) fn taking_turns(self, receives: usize) -> Self {
        Self { receives, ..self }
    }
}

/// An echo connection on a non-blocking socket.
pub(crate) struct Echo<S> {
    stream: S,
    /// Received and unanswered: an incomplete frame, or more while an answer waits for room.
    input: Vec<u8>,
    /// Answers the socket did not take.
    output: Vec<u8>,
    /// How much of `output` is sent.
    sent: usize,
    /// The peer has ended its side: receive until that is seen.
    ending: bool,
}

impl<S: Read + Write + AsFd> Echo<S> {
    /// A connection on `stream`, which must not block.
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            ending: false,
        }
    }

    /// The socket.
    pub(crate) fn stream(&self) -> &S {
        &self.stream
    }

    /// Tells that the peer was seen to end its side. An edge-triggered server has to say so, since the
    /// end is behind the data of the same report, and there will be no other.
    pub(crate) fn peer_ended(&mut self) {
        self.ending = true;
    }

    /// Sends what waits, then receives and answers until a receive leaves room, or the turn is over.
    /// Handlers run on this thread.
    pub(crate) fn progress(&mut self, scratch: &mut Scratch) -> Waits {
        self.try_progress(scratch).unwrap_or(Waits::Closed)
    }

    fn try_progress(&mut self, scratch: &mut Scratch) -> io::Result<Waits> {
        if !self.output.is_empty() {
            self.flush()?;
            if self.output.is_empty() {
                self.answer_input()?;
            }
        }
        for _ in 0..scratch.receives {
            if !self.output.is_empty() {
                return Ok(Waits::Writable);
            }
            match self.receive(scratch) {
                Ok(Received::Some) => {}
                Ok(Received::All) if self.ending => {}
                Ok(Received::All) => break,
                Ok(Received::End) => return Ok(Waits::Closed),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(if self.output.is_empty() {
            Waits::Readable
        } else {
            Waits::Writable
        })
    }

    fn receive(&mut self, scratch: &mut Scratch) -> io::Result<Received> {
        let carried = self.input.len();
        let large = match frame::front(&self.input) {
            Front::Partial(need) if carried > 0 => {
                !scratch.carry || need > scratch.buffer.len() / 2
            }
            _ => self.input.capacity() > scratch.buffer.len(),
        };
        if large {
            return self.receive_large(scratch.buffer.len());
        }
        let buffer = &mut scratch.buffer[..];
        buffer[..carried].copy_from_slice(&self.input);
        let room = buffer.len() - carried;
        let received = self.stream.read(&mut buffer[carried..])?;
        let data = &buffer[..carried + received];
        self.input.clear();
        let used = self.answer(data)?;
        self.keep(&data[used..]);
        Ok(Received::of(received, room))
    }

    /// Receives into the connection's own memory, which has room for the frame being received.
    fn receive_large(&mut self, least: usize) -> io::Result<Received> {
        let need = match frame::front(&self.input) {
            Front::Partial(need) => need.max(least),
            _ => least,
        };
        self.input
            .reserve_exact(need.saturating_sub(self.input.len()));
        let room = self.input.capacity() - self.input.len();
        let received = sys::recv_spare(&self.stream, &mut self.input)?;
        self.answer_input()?;
        Ok(Received::of(received, room))
    }

    fn answer_input(&mut self) -> io::Result<()> {
        if !self.input.is_empty() && frame::front(&self.input) == Front::Echo(self.input.len()) {
            mem::swap(&mut self.input, &mut self.output);
            return self.flush();
        }
        let mut input = mem::take(&mut self.input);
        let used = self.answer(&input)?;
        input.drain(..used);
        self.input = input;
        Ok(())
    }

    /// Answers the whole frames at the front of `data`, as long as the socket takes the answers, and
    /// returns how many bytes were used.
    fn answer(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut used = 0;
        while self.output.is_empty() {
            let rest = &data[used..];
            match frame::front(rest) {
                Front::Echo(length) => {
                    self.send(&rest[..length])?;
                    used += length;
                }
                Front::Special(kind, length) => {
                    work::block_for(kind);
                    self.send(if kind == Kind::Sink {
                        &frame::ACK
                    } else {
                        &rest[..length]
                    })?;
                    used += length;
                }
                Front::Partial(_) => break,
                Front::TooLong => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(used)
    }

    fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            return;
        }
        if let Front::Partial(need) = frame::front(rest) {
            self.input.reserve_exact(need.max(rest.len()));
        }
        self.input.extend_from_slice(rest);
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sent = match self.stream.write(bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.output.extend_from_slice(&bytes[sent..]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.sent < self.output.len() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.output.clear();
        self.sent = 0;
        Ok(())
    }
}

enum Received {
    /// The room was filled: there may be more.
    Some,
    /// Less than the room: that was all there is for now.
    All,
    /// The peer has ended its side.
    End,
}

impl Received {
    fn of(received: usize, room: usize) -> Self {
        match received {
            0 => Self::End,
            full if full == room => Self::Some,
            _ => Self::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::frame::build;

    fn pair() -> (UnixStream, Echo<UnixStream>) {
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        client.set_nonblocking(true).unwrap();
        (client, Echo::new(server))
    }

    /// Sends `data` in pieces of `step` bytes, driving the server whenever one side cannot go on,
    /// and returns as many answer bytes as are expected.
    fn exchange(data: &[u8], expected: usize, step: usize, scratch: &mut Scratch) -> Vec<u8> {
        let (mut client, mut server) = pair();
        let (mut at, mut answer, mut buffer) = (0, Vec::new(), vec![0; 5000]);
        while answer.len() < expected {
            if at < data.len() {
                let end = data.len().min(at.saturating_add(step));
                match client.write(&data[at..end]) {
                    Ok(sent) => at += sent,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            assert_ne!(server.progress(scratch), Waits::Closed);
            match client.read(&mut buffer) {
                Ok(received) => answer.extend_from_slice(&buffer[..received]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        answer
    }

    #[test]
    fn frames_of_all_sizes_come_back_however_they_are_cut() {
        let mut data = Vec::new();
        for size in [0, 1, 5, 700, 3000, 90_000, 17, 400_000, 2] {
            data.extend(build(Kind::Echo, size));
        }
        for (step, bytes) in [(usize::MAX, 4096), (977, 4096), (60_000, 65_536), (3, 512)] {
            let data = if step == 3 { &data[..3726] } else { &data[..] };
            for scratch in [Scratch::carrying(bytes), Scratch::spilling(bytes)] {
                let answer = exchange(data, data.len(), step, &mut scratch.taking_turns(3));
                assert!(answer == data, "step {step}, {bytes} bytes");
            }
        }
    }

    #[test]
    fn a_one_way_frame_is_answered_by_an_empty_one() {
        let mut data = build(Kind::Sink, 100_000);
        data.extend(build(Kind::Echo, 3));
        let answer = exchange(&data, 4 + 7, usize::MAX, &mut Scratch::carrying(4096));
        assert_eq!(answer[..4], frame::ACK);
        assert_eq!(answer[4..], build(Kind::Echo, 3));
    }

    #[test]
    fn an_overlong_frame_and_the_end_of_stream_close() {
        let (mut client, mut server) = pair();
        client.write_all(&[0xff; 4]).unwrap();
        assert_eq!(server.progress(&mut Scratch::carrying(64)), Waits::Closed);
        let (client, mut server) = pair();
        assert_eq!(server.progress(&mut Scratch::carrying(64)), Waits::Readable);
        drop(client);
        assert_eq!(server.progress(&mut Scratch::carrying(64)), Waits::Closed);
    }
}

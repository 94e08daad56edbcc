//! The loop of a server that reads and writes as if it had a thread of its own for each connection.

use std::io::{self, Read, Write};

use crate::frame::{self, Front, HEADER, Kind};

/// Bytes a connection's buffer has at first.
pub(crate) const FIRST: usize = 16 << 10;
/// Bytes a buffer grows to where data keeps filling it; beyond that it grows for large frames alone.
pub(crate) const GROWN: usize = 64 << 10;

/// Echoes until the peer ends its side. `work` does what a frame asks for.
pub(crate) fn echo(mut stream: impl Read + Write, work: impl Fn(Kind)) -> io::Result<()> {
    let mut buffer = vec![0; FIRST];
    let (mut start, mut end) = (0, 0);
    loop {
        let data = &buffer[start..end];
        match frame::front(data) {
            Front::Echo(length) => {
                stream.write_all(&data[..length])?;
                start += length;
            }
            Front::Special(kind, length) => {
                work(kind);
                stream.write_all(if kind == Kind::Sink {
                    &frame::ACK
                } else {
                    &data[..length]
                })?;
                start += length;
            }
            Front::TooLong => return Err(io::ErrorKind::InvalidData.into()),
            Front::Partial(need) => {
                make_room(&mut buffer, &mut start, &mut end, need);
                let received = stream.read(&mut buffer[end..])?;
                if received == 0 {
                    return Ok(());
                }
                end += received;
                if end == buffer.len() && end < GROWN {
                    buffer.resize(end * 2, 0);
                }
            }
        }
    }
}

/// Moves what is left to the front where `need` bytes would not fit, and grows where they still do
/// not.
fn make_room(buffer: &mut Vec<u8>, start: &mut usize, end: &mut usize, need: usize) {
    if start == end {
        (*start, *end) = (0, 0);
    } else if *start + need.max(2 * HEADER) > buffer.len() {
        buffer.copy_within(*start..*end, 0);
        (*start, *end) = (0, *end - *start);
    }
    if need > buffer.len() {
        buffer.resize(need, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::build;

    struct Wire<'a> {
        input: &'a [u8],
        step: usize,
        output: Vec<u8>,
    }

    impl Read for Wire<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.step.min(buffer.len());
            self.input.by_ref().take(length as u64).read(buffer)
        }
    }

    impl Write for Wire<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.output.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn frames_come_back_however_they_are_cut() {
        let mut input = Vec::new();
        for size in [0, 1, 500, 16_380, 70_000, 3, 200_000, 9] {
            input.extend(build(Kind::Echo, size));
        }
        for step in [1, 7, 4096, usize::MAX] {
            let mut wire = Wire {
                input: &input,
                step,
                output: Vec::new(),
            };
            echo(&mut wire, |_| ()).unwrap();
            assert!(wire.output == input, "step {step}");
        }
    }
}

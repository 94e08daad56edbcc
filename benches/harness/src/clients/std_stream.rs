//! Callers on blocking sockets of the standard library, each with its own.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use hdrhistogram::Histogram;

use super::tally::{Calls, together};
use super::{Gate, Job, Tally};
use crate::frame::{self, Front, Kind};

pub(super) fn run(job: &Job) -> io::Result<Tally> {
    let gate = Gate::new(job);
    gate.run(job, || {
        std::thread::scope(|scope| {
            let spawn = |_| scope.spawn(|| call(job, gate.caller()));
            let callers: Vec<_> = (0..job.callers).map(spawn).collect();
            together(callers.into_iter().map(|caller| {
                caller
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a caller has panicked")))
            }))
        })
    })
}

fn call(job: &Job, mut calls: Calls<'_>) -> io::Result<Histogram<u64>> {
    let mut stream = TcpStream::connect(job.addr)?;
    stream.set_nodelay(true)?;
    let request = frame::build(Kind::Echo, job.size);
    let mut buffer = vec![0; request.len().max(16 << 10)];
    while let Some(start) = calls.begin() {
        stream.write_all(&request)?;
        let mut filled = 0;
        while matches!(frame::front(&buffer[..filled]), Front::Partial(_)) {
            match stream.read(&mut buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                received => filled += received,
            }
        }
        calls.end(start);
    }
    Ok(calls.finish())
}

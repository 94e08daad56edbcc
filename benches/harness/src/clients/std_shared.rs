//! Callers that share one blocking socket: each writes under a lock, one thread reads and wakes the
//! caller whose number an answer bears.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::tally::{Calls, together};
use super::waiters::{self, Waiters};
use super::{Gate, Job, Tally};
use crate::frame::{self, Front, HEADER};

struct Shared {
    stream: TcpStream,
    writing: Mutex<()>,
    waiters: Waiters,
}

pub(super) fn run(job: &Job) -> io::Result<Tally> {
    let stream = TcpStream::connect(job.addr)?;
    stream.set_nodelay(true)?;
    let waiters = Waiters::new(job.callers);
    let shared = Shared {
        stream,
        writing: Mutex::new(()),
        waiters,
    };
    let gate = Gate::new(job);
    gate.run(job, || {
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let result = read(&shared);
                shared.waiters.fail();
                result
            });
            let (gate, shared) = (&gate, &shared);
            let spawn = |number| scope.spawn(move || call(job, shared, number, gate.caller()));
            let callers: Vec<_> = (0..job.callers).map(spawn).collect();
            let panicked = || io::Error::other("a caller has panicked");
            let ended = callers
                .into_iter()
                .map(|it| it.join().unwrap_or_else(|_| Err(panicked())));
            let latency = together(ended);
            shared.stream.shutdown(Shutdown::Both)?;
            reading.join().unwrap_or_else(|_| Err(panicked()))?;
            latency
        })
    })
}

fn call(
    job: &Job,
    shared: &Shared,
    number: usize,
    mut calls: Calls<'_>,
) -> io::Result<Histogram<u64>> {
    let request = waiters::request(job.size, number);
    while let Some(start) = calls.begin() {
        shared.waiters.prepare(number);
        {
            let _turn = shared.writing.lock();
            (&shared.stream).write_all(&request)?;
        }
        shared.waiters.wait(number)?;
        calls.end(start);
    }
    Ok(calls.finish())
}

/// Reads until the stream ends, waking a caller per answer.
fn read(shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    loop {
        let received = (&shared.stream).read(&mut buffer[filled..])?;
        if received == 0 {
            return Ok(());
        }
        filled += received;
        let whole = match frame::front(&buffer[..filled]) {
            Front::Echo(whole) => whole,
            Front::Partial(need) => {
                buffer.resize(buffer.len().max(need), 0);
                continue;
            }
            Front::Special(..) | Front::TooLong => return Err(io::ErrorKind::InvalidData.into()),
        };
        let mut frames = &buffer[..whole];
        while let Some((header, rest)) = frames.split_first_chunk::<HEADER>() {
            let number = waiters::number(frames).ok_or(io::ErrorKind::InvalidData)?;
            shared.waiters.answer(number)?;
            frames = &rest[u32::from_be_bytes(*header) as usize..];
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

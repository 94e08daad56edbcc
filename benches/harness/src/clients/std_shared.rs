//! Callers that share one blocking socket: each writes under a lock, one thread reads and wakes the
//! callers in the order they have asked.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::Thread;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use super::tally::{Calls, together};
use super::{Gate, Job, Tally};
use crate::frame::{self, Front, HEADER, Kind};

const WAITING: u8 = 0;
const ANSWERED: u8 = 1;
const FAILED: u8 = 2;

/// A caller that waits.
struct Waiter {
    state: AtomicU8,
    thread: Thread,
}

impl Waiter {
    fn wake(&self, state: u8) {
        self.state.store(state, Ordering::Release);
        self.thread.unpark();
    }
}

struct Shared {
    stream: TcpStream,
    /// Held while a request is written, so that waiters stand in the order of the requests.
    waiting: Mutex<VecDeque<Arc<Waiter>>>,
}

pub(super) fn run(job: &Job) -> io::Result<Tally> {
    let stream = TcpStream::connect(job.addr)?;
    stream.set_nodelay(true)?;
    let shared = Shared {
        stream,
        waiting: Mutex::new(VecDeque::new()),
    };
    let gate = Gate::new(job);
    gate.run(job, || {
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| read(&shared));
            let spawn = |_| scope.spawn(|| call(job, &shared, gate.caller()));
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

fn call(job: &Job, shared: &Shared, mut calls: Calls<'_>) -> io::Result<Histogram<u64>> {
    let request = frame::build(Kind::Echo, job.size);
    let state = AtomicU8::new(WAITING);
    let waiter = Arc::new(Waiter {
        state,
        thread: std::thread::current(),
    });
    while let Some(start) = calls.begin() {
        waiter.state.store(WAITING, Ordering::Relaxed);
        {
            let mut waiting = shared.waiting.lock();
            waiting.push_back(Arc::clone(&waiter));
            (&shared.stream).write_all(&request)?;
        }
        loop {
            match waiter.state.load(Ordering::Acquire) {
                WAITING => std::thread::park(),
                FAILED => return Err(io::ErrorKind::ConnectionAborted.into()),
                _ => break,
            }
        }
        calls.end(start);
    }
    Ok(calls.finish())
}

/// Reads until the stream ends, waking a caller per answer; those left over have failed.
fn read(shared: &Shared) -> io::Result<()> {
    let result = answers(shared);
    for waiter in shared.waiting.lock().drain(..) {
        waiter.wake(FAILED);
    }
    result
}

fn answers(shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    loop {
        let received = (&shared.stream).read(&mut buffer[filled..])?;
        if received == 0 {
            return Ok(());
        }
        filled += received;
        let whole = match frame::front(&buffer[..filled]) {
            Front::Echo(whole) | Front::Special(_, whole) => whole,
            Front::Partial(need) => {
                buffer.resize(buffer.len().max(need), 0);
                continue;
            }
            Front::TooLong => return Err(io::ErrorKind::InvalidData.into()),
        };
        for _ in 0..count(&buffer[..whole]) {
            let waiter = shared.waiting.lock().pop_front();
            waiter.ok_or(io::ErrorKind::InvalidData)?.wake(ANSWERED);
        }
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}

/// Frames in `data`, which ends where a frame does.
fn count(mut data: &[u8]) -> usize {
    let mut frames = 0;
    while let Some((header, rest)) = data.split_first_chunk::<HEADER>() {
        data = &rest[u32::from_be_bytes(*header) as usize..];
        frames += 1;
    }
    frames
}

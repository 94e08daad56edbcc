//! netpoll's clients: pooled calls that wait, and calls that share a connection.

use std::io;
use std::sync::Arc;

use hdrhistogram::Histogram;
use netpoll::{Address, Bytes, CloseReason, Connection, ConnectionHandle, Dialer, Handler, Pool};

use super::tally::{Calls, together};
use super::waiters::{self, NUMBERED, Waiters};
use super::{Gate, Job, Tally};
use crate::frame::{self, HEADER, Kind};

/// A connection from a pool for each call; on a shared connection answers are read by a poller.
pub(super) fn pooled(job: &Job) -> io::Result<Tally> {
    if job.shared {
        return shared(job);
    }
    let pool = Pool::builder(Dialer::new()).max_idle(job.callers).build()?;
    let address = Address::from(job.addr);
    on_threads(job, |_, calls| {
        let request = frame::build(Kind::Echo, job.size);
        repeat(calls, || exchange(&mut *pool.get(&address)?, &request))
    })
}

/// A connection per caller, kept for all its calls.
pub(super) fn held(job: &Job) -> io::Result<Tally> {
    on_threads(job, |_, calls| {
        let mut conn = Dialer::new().dial_connection(job.addr)?;
        let request = frame::build(Kind::Echo, job.size);
        repeat(calls, || exchange(&mut conn, &request))
    })
}

/// One call: on this thread, no poller takes part.
fn exchange(conn: &mut Connection, request: &[u8]) -> io::Result<()> {
    conn.write_slice(request)?;
    conn.flush()?;
    let head = conn
        .peek(HEADER)?
        .first_chunk::<HEADER>()
        .copied()
        .unwrap_or_default();
    conn.next(HEADER + u32::from_be_bytes(head) as usize)
        .map(drop)
}

fn shared(job: &Job) -> io::Result<Tally> {
    let waiters = Arc::new(Waiters::new(job.callers));
    let handle = Dialer::new().dial_with(job.addr, Answers(Arc::clone(&waiters)))?;
    let tally = on_threads(job, |number, calls| {
        call_shared(job, &handle, &waiters, number, calls)
    });
    handle.close();
    tally
}

fn call_shared(
    job: &Job,
    handle: &ConnectionHandle,
    waiters: &Waiters,
    number: usize,
    calls: Calls<'_>,
) -> io::Result<Histogram<u64>> {
    let request = Bytes::from(waiters::request(job.size, number));
    repeat(calls, || {
        waiters.prepare(number);
        handle.send_bytes(request.clone())?;
        waiters.wait(number)
    })
}

/// Wakes the callers whose answers arrive.
struct Answers(Arc<Waiters>);

impl Handler for Answers {
    type State = ();

    fn on_connect(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn on_request(&self, conn: &mut Connection, (): &mut ()) -> io::Result<()> {
        while let Some(front) = conn.try_peek(NUMBERED)? {
            let number = waiters::number(front).ok_or(io::ErrorKind::InvalidData)?;
            let head = front.first_chunk::<HEADER>().copied().unwrap_or_default();
            let frame = HEADER + u32::from_be_bytes(head) as usize;
            if !conn.try_fill(frame)? {
                break;
            }
            conn.skip(frame)?;
            self.0.answer(number)?;
        }
        Ok(())
    }

    fn on_disconnect(&self, (): (), _: CloseReason) {
        self.0.fail();
    }
}

/// Runs `call` again and again, as long as the record of the caller says.
fn repeat(
    mut calls: Calls<'_>,
    mut call: impl FnMut() -> io::Result<()>,
) -> io::Result<Histogram<u64>> {
    while let Some(start) = calls.begin() {
        call()?;
        calls.end(start);
    }
    Ok(calls.finish())
}

/// Runs `caller` on a thread for each, with its number.
fn on_threads(
    job: &Job,
    caller: impl Fn(usize, Calls<'_>) -> io::Result<Histogram<u64>> + Sync,
) -> io::Result<Tally> {
    let gate = Gate::new(job);
    gate.run(job, || {
        std::thread::scope(|scope| {
            let (gate, caller) = (&gate, &caller);
            let spawn = |number| scope.spawn(move || caller(number, gate.caller()));
            let callers: Vec<_> = (0..job.callers).map(spawn).collect();
            together(callers.into_iter().map(|one| {
                one.join()
                    .unwrap_or_else(|_| Err(io::Error::other("a caller has panicked")))
            }))
        })
    })
}

//! Callers as tasks of tokio's current-thread runtime.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};
use hdrhistogram::Histogram;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Builder;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};

use super::tally::{Calls, together};
use super::{Gate, Job, Tally, waiters};
use crate::frame::{self, Front, HEADER, Kind};

/// Bytes of a connection's receive buffer.
const BUFFER: usize = 64 << 10;

pub(super) fn run(job: &Job) -> io::Result<Tally> {
    // Tasks must not borrow; the process ends soon after.
    let gate: &'static Gate = Box::leak(Box::new(Gate::new(job)));
    gate.run(job, || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        LocalSet::new().block_on(&runtime, callers(job.clone(), gate))
    })
}

async fn callers(job: Job, gate: &'static Gate) -> io::Result<Histogram<u64>> {
    let mut tasks = JoinSet::new();
    if job.shared {
        let shared = Rc::new(Shared::connect(&job).await?);
        for number in 0..job.callers {
            let shared = Rc::clone(&shared);
            tasks.spawn_local(call_shared(job.clone(), shared, number, gate.caller()));
        }
    } else {
        for _ in 0..job.callers {
            tasks.spawn_local(call(job.clone(), gate.caller()));
        }
    }
    together(tasks.join_all().await)
}

async fn call(job: Job, mut calls: Calls<'static>) -> io::Result<Histogram<u64>> {
    let mut stream = TcpStream::connect(job.addr).await?;
    stream.set_nodelay(true)?;
    let request = frame::build(Kind::Echo, job.size);
    let mut buffer = BytesMut::with_capacity(BUFFER);
    while let Some(start) = calls.begin() {
        stream.write_all(&request).await?;
        while let Front::Partial(need) = frame::front(&buffer) {
            buffer.reserve(need - buffer.len());
            if stream.read_buf(&mut buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        buffer.clear();
        calls.end(start);
    }
    Ok(calls.finish())
}

/// Where the caller of each number waits.
type Waiting = Rc<RefCell<Vec<Option<oneshot::Sender<()>>>>>;

/// A connection many tasks call on.
struct Shared {
    requests: mpsc::UnboundedSender<Bytes>,
    waiting: Waiting,
}

impl Shared {
    async fn connect(job: &Job) -> io::Result<Self> {
        let stream = TcpStream::connect(job.addr).await?;
        stream.set_nodelay(true)?;
        let (reading, writing) = stream.into_split();
        let (requests, queued) = mpsc::unbounded_channel();
        let empty = (0..job.callers).map(|_| None).collect();
        let waiting = Rc::new(RefCell::new(empty));
        tokio::task::spawn_local(write(writing, queued));
        tokio::task::spawn_local(read(reading, Rc::clone(&waiting)));
        Ok(Self { requests, waiting })
    }
}

async fn call_shared(
    job: Job,
    shared: Rc<Shared>,
    number: usize,
    mut calls: Calls<'static>,
) -> io::Result<Histogram<u64>> {
    let request = Bytes::from(waiters::request(job.size, number));
    while let Some(start) = calls.begin() {
        let (answered, answer) = oneshot::channel();
        shared.waiting.borrow_mut()[number] = Some(answered);
        shared
            .requests
            .send(request.clone())
            .map_err(|_| io::ErrorKind::ConnectionAborted)?;
        answer.await.map_err(|_| io::ErrorKind::ConnectionAborted)?;
        calls.end(start);
    }
    Ok(calls.finish())
}

/// Writes what is queued, all there is at once.
async fn write(
    mut stream: OwnedWriteHalf,
    mut queued: mpsc::UnboundedReceiver<Bytes>,
) -> io::Result<()> {
    let mut requests = Vec::new();
    let mut buffer = BytesMut::with_capacity(BUFFER);
    while queued.recv_many(&mut requests, 64).await > 0 {
        for request in requests.drain(..) {
            buffer.extend_from_slice(&request);
        }
        stream.write_all(&buffer).await?;
        buffer.clear();
    }
    Ok(())
}

async fn read(mut stream: OwnedReadHalf, waiting: Waiting) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    while stream.read_buf(&mut buffer).await? > 0 {
        while let Some(header) = buffer.first_chunk::<HEADER>() {
            let frame = HEADER + u32::from_be_bytes(*header) as usize;
            if buffer.len() < frame {
                break;
            }
            let number = waiters::number(&buffer).ok_or(io::ErrorKind::InvalidData)?;
            buffer.advance(frame);
            let caller = waiting.borrow_mut().get_mut(number).and_then(Option::take);
            if let Some(caller) = caller {
                // A caller that has ended does not wait any more.
                let _ = caller.send(());
            }
        }
        buffer.reserve(BUFFER);
    }
    // Callers that still wait learn of the end by losing their channel.
    waiting.borrow_mut().clear();
    Ok(())
}

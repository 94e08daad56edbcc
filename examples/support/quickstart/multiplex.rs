//! A client whose calls share one connection.

use crate::codec;
use netpoll::{
    Address, CloseReason, Connection, ConnectionHandle, Dialer, Error, Handler, LinkBuffer,
};
use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// Any number of threads may call; clones share the connection.
#[derive(Clone)]
pub(crate) struct Multiplex {
    handle: ConnectionHandle,
    calls: Arc<Calls>,
}

/// Where one thread waits for its answers.
pub(crate) struct Caller {
    slot: Arc<Slot>,
}

/// The calls on their way, by id.
#[derive(Default)]
struct Calls {
    waiting: Mutex<Waiting>,
    next_id: AtomicU32,
}

#[derive(Default)]
struct Waiting {
    slots: HashMap<u32, Arc<Slot>>,
    /// The connection is over and nothing will be answered any more.
    over: Option<CloseReason>,
}

#[derive(Default)]
struct Slot {
    answer: Mutex<Option<Result<LinkBuffer, CloseReason>>>,
    came: Condvar,
}

impl Multiplex {
    /// Opens the connection; from then on a poller reads the answers.
    pub(crate) fn dial(dialer: &Dialer, address: &Address) -> io::Result<Self> {
        let calls = Arc::new(Calls::default());
        let handle = dialer.dial_with(address.clone(), Answers(Arc::clone(&calls)))?;
        Ok(Self { handle, calls })
    }

    pub(crate) fn caller(&self) -> Caller {
        Caller {
            slot: Arc::default(),
        }
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn call(
        &self,
        caller: &mut Caller,
        body: &netpoll::Bytes,
        timeout: Duration,
    ) -> io::Result<LinkBuffer> {
        let id = self.calls.next_id.fetch_add(1, Ordering::Relaxed);
        let mut request = LinkBuffer::new();
        codec::encode(&mut request, id, body)?;
        {
            let mut waiting = lock(&self.calls.waiting);
            if let Some(reason) = waiting.over {
                return Err(Error::Closed(reason).into());
            }
            waiting.slots.insert(id, Arc::clone(&caller.slot));
        }
        // From any thread; messages of several threads never mix.
        self.handle.send(request)?;
        caller.slot.wait(timeout).ok_or_else(|| {
            lock(&self.calls.waiting).slots.remove(&id);
            io::Error::new(io::ErrorKind::TimedOut, format!("no answer to call {id}"))
        })?
    }

    /// Closes the connection and waits for its end.
    pub(crate) fn close(&self) -> io::Result<()> {
        self.handle.close();
        self.handle.done().wait()
    }
}

/// Gives answers to those who wait for them.
struct Answers(Arc<Calls>);

impl Handler for Answers {
    type State = ();

    fn on_connect(&self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn on_request(&self, conn: &mut Connection, (): &mut ()) -> io::Result<()> {
        while let Some(len) = codec::frame_len(conn)? {
            let Some(mut frame) = conn.try_slice(len)? else {
                break;
            };
            let (_, id) = codec::head(frame.next(codec::HEAD)?);
            let slot = lock(&self.0.waiting).slots.remove(&id);
            match slot {
                Some(slot) => slot.give(Ok(frame)),
                None => return Err(io::Error::other(format!("nobody waits for answer {id}"))),
            }
        }
        Ok(())
    }

    fn on_disconnect(&self, (): (), reason: CloseReason) {
        let slots = {
            let mut waiting = lock(&self.0.waiting);
            waiting.over = Some(reason);
            std::mem::take(&mut waiting.slots)
        };
        slots.into_values().for_each(|slot| slot.give(Err(reason)));
    }
}

impl Slot {
    fn give(&self, answer: Result<LinkBuffer, CloseReason>) {
        *lock(&self.answer) = Some(answer);
        self.came.notify_one();
    }

    /// The answer, or `None` if it does not come in time.
    fn wait(&self, timeout: Duration) -> Option<io::Result<LinkBuffer>> {
        let deadline = Instant::now() + timeout;
        let mut answer = lock(&self.answer);
        loop {
            if let Some(answer) = answer.take() {
                return Some(answer.map_err(|reason| Error::Closed(reason).into()));
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let woken = self.came.wait_timeout(answer, left);
            answer = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! A client whose calls share one connection.
//!
//! Each call has an entry in one table from before its request is sent until its answer has come. A call that
//! is given up leaves its entry there, so its id is not used again while its answer can still come: that
//! answer is dropped and counted, and reaches no other call.

use crate::codec;
use netpoll::{
    Address, CloseReason, Connection, ConnectionHandle, Dialer, Error, Handler, LinkBuffer,
};
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// Any number of threads may call; clones share the connection.
#[derive(Clone)]
pub(crate) struct Multiplex {
    handle: ConnectionHandle,
    calls: Arc<Mutex<Calls>>,
}

/// The calls of one connection.
#[derive(Default)]
struct Calls {
    entries: HashMap<u32, Entry>,
    next_id: u32,
    given_up: usize,
    late: u64,
    /// The connection is over and no more answers come.
    over: Option<CloseReason>,
}

enum Entry {
    Waiting(Thread),
    Answered(LinkBuffer),
    /// The caller does not wait any more, and the answer can still come.
    GivenUp,
}

/// A server that owes so many answers that no call waits for is no longer asked.
const MOST_GIVEN_UP: usize = 10_000;

impl Multiplex {
    /// Opens the connection; from then on a poller reads the answers.
    pub(crate) fn dial(dialer: &Dialer, address: &Address) -> io::Result<Self> {
        let calls = Arc::new(Mutex::new(Calls::default()));
        let handle = dialer.dial_with(address.clone(), Answers(Arc::clone(&calls)))?;
        Ok(Self { handle, calls })
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn call(&self, body: &netpoll::Bytes, timeout: Duration) -> io::Result<LinkBuffer> {
        let begin = Instant::now();
        let id = lock(&self.calls).begin()?;
        let mut request = LinkBuffer::new();
        let sent = codec::encode(&mut request, id, body)
            // From any thread; messages of several threads never mix.
            .and_then(|()| self.handle.send(request));
        if let Err(error) = sent {
            lock(&self.calls).entries.remove(&id);
            return Err(error);
        }
        loop {
            let left = timeout.saturating_sub(begin.elapsed());
            if let Some(result) = lock(&self.calls).look(id, left.is_zero()) {
                return result;
            }
            // Whoever answers puts the answer into the table first, then ends this wait or the next.
            thread::park_timeout(left);
        }
    }

    /// Answers that came after their call was given up.
    pub(crate) fn late(&self) -> u64 {
        lock(&self.calls).late
    }

    /// Closes the connection and waits for its end.
    pub(crate) fn close(&self) -> io::Result<()> {
        self.handle.close();
        self.handle.done().wait()
    }

    #[cfg(test)]
    pub(crate) fn set_next_id(&self, id: u32) {
        lock(&self.calls).next_id = id;
    }
}

impl Calls {
    /// An entry for a call of this thread, under an id for which no answer is expected.
    fn begin(&mut self) -> io::Result<u32> {
        if let Some(reason) = self.over {
            return Err(Error::Closed(reason).into());
        }
        if self.given_up >= MOST_GIVEN_UP {
            let text = format!("{MOST_GIVEN_UP} calls have no answer: dial again");
            return Err(io::Error::other(text));
        }
        while self.entries.contains_key(&self.next_id) {
            self.next_id = self.next_id.wrapping_add(1);
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.entries.insert(id, Entry::Waiting(thread::current()));
        Ok(id)
    }

    /// What has become of a call; with `give_up` there is always a result.
    fn look(&mut self, id: u32, give_up: bool) -> Option<io::Result<LinkBuffer>> {
        match self.entries.remove(&id) {
            Some(Entry::Answered(answer)) => Some(Ok(answer)),
            _ if self.over.is_some() => self.over.map(|reason| Err(Error::Closed(reason).into())),
            _ if give_up => {
                self.entries.insert(id, Entry::GivenUp);
                self.given_up += 1;
                let text = format!("no answer to call {id} in time");
                Some(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
            }
            _ => {
                self.entries.insert(id, Entry::Waiting(thread::current()));
                None
            }
        }
    }

    fn answered(&mut self, id: u32, answer: LinkBuffer) -> io::Result<()> {
        match self.entries.remove(&id) {
            Some(Entry::Waiting(caller)) => {
                self.entries.insert(id, Entry::Answered(answer));
                caller.unpark();
            }
            Some(Entry::GivenUp) => {
                self.given_up -= 1;
                self.late += 1;
            }
            // One answer too many, or to a call that was never made: no answer can be trusted any more.
            Some(Entry::Answered(_)) | None => {
                return Err(io::Error::other(format!("an answer to no call: {id}")));
            }
        }
        Ok(())
    }
}

/// Puts answers where their callers look for them.
struct Answers(Arc<Mutex<Calls>>);

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
            lock(&self.0).answered(id, frame)?;
        }
        Ok(())
    }

    fn on_disconnect(&self, (): (), reason: CloseReason) {
        let mut calls = lock(&self.0);
        calls.over = Some(reason);
        for entry in calls.entries.values() {
            if let Entry::Waiting(caller) = entry {
                caller.unpark();
            }
        }
    }
}

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

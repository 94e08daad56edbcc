//! Handlers put together from closures, and a log of what happened.

use super::LIMIT;
use netpoll::{CloseReason, Connection, ConnectionHandle, Handler};
use std::{
    fmt::Debug,
    io,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Instant,
};

type OnConnection = Box<dyn Fn(&mut Connection) -> io::Result<()> + Send + Sync>;
type OnWrote = Box<dyn Fn(&ConnectionHandle) + Send + Sync>;
type OnEnd = Box<dyn Fn(u64, CloseReason) + Send + Sync>;

/// A handler whose state is the connection's number.
pub(crate) struct Script {
    prepare: OnConnection,
    connect: OnConnection,
    request: OnConnection,
    wrote: OnWrote,
    disconnect: OnEnd,
}

impl Script {
    /// Callbacks that do nothing; input is dropped.
    pub(crate) fn new() -> Self {
        Self {
            prepare: Box::new(|_| Ok(())),
            connect: Box::new(|_| Ok(())),
            request: Box::new(|conn| conn.skip(conn.available())),
            wrote: Box::new(|_| {}),
            disconnect: Box::new(|_, _| {}),
        }
    }

    pub(crate) fn prepare(
        mut self,
        f: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.prepare = Box::new(f);
        self
    }

    pub(crate) fn connect(
        mut self,
        f: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.connect = Box::new(f);
        self
    }

    pub(crate) fn request(
        mut self,
        f: impl Fn(&mut Connection) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.request = Box::new(f);
        self
    }

    pub(crate) fn wrote(mut self, f: impl Fn(&ConnectionHandle) + Send + Sync + 'static) -> Self {
        self.wrote = Box::new(f);
        self
    }

    pub(crate) fn disconnect(
        mut self,
        f: impl Fn(u64, CloseReason) + Send + Sync + 'static,
    ) -> Self {
        self.disconnect = Box::new(f);
        self
    }
}

impl Handler for Script {
    type State = u64;

    fn on_prepare(&self, conn: &mut Connection) -> io::Result<()> {
        (self.prepare)(conn)
    }

    fn on_connect(&self, conn: &mut Connection) -> io::Result<u64> {
        (self.connect)(conn)?;
        Ok(conn.id())
    }

    fn on_request(&self, conn: &mut Connection, id: &mut u64) -> io::Result<()> {
        assert_eq!(*id, conn.id(), "the state belongs to its connection");
        (self.request)(conn)
    }

    fn on_write_complete(&self, conn: &ConnectionHandle) {
        (self.wrote)(conn);
    }

    fn on_disconnect(&self, id: u64, reason: CloseReason) {
        (self.disconnect)(id, reason);
    }
}

/// A script that gives the handles of its connections away; see `Server::connect_given`.
pub(crate) fn giving(handles: &Log<ConnectionHandle>) -> Script {
    let handles = handles.clone();
    Script::new().connect(move |conn| {
        handles.push(conn.handle());
        Ok(())
    })
}

/// Events in the order they were noted, waited for by tests.
#[derive(Debug)]
pub(crate) struct Log<T> {
    inner: Arc<(Mutex<Vec<T>>, Condvar)>,
}

impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<T> Log<T> {
    pub(crate) fn new() -> Self {
        Self {
            inner: Arc::new((Mutex::new(Vec::new()), Condvar::new())),
        }
    }

    pub(crate) fn push(&self, event: T) {
        let (events, changed) = &*self.inner;
        events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
        changed.notify_all();
    }

    pub(crate) fn len(&self) -> usize {
        self.inner
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Takes out everything noted so far.
    pub(crate) fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.inner.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T: Clone + Debug> Log<T> {
    pub(crate) fn all(&self) -> Vec<T> {
        self.inner
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until `done` holds for the events so far, and returns them.
    #[track_caller]
    pub(crate) fn wait(&self, what: &str, done: impl Fn(&[T]) -> bool) -> Vec<T> {
        let (events, changed) = &*self.inner;
        let deadline = Instant::now() + LIMIT;
        let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
        while !done(&events) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited {LIMIT:?} for {what}; so far: {:?}",
                *events
            );
            events = changed.wait_timeout(events, left).unwrap().0;
        }
        events.clone()
    }

    #[track_caller]
    pub(crate) fn wait_len(&self, len: usize) -> Vec<T> {
        self.wait(&format!("{len} events"), |events| events.len() >= len)
    }
}

impl<T: Clone + Debug + PartialEq> Log<T> {
    #[track_caller]
    pub(crate) fn wait_for(&self, event: &T) -> Vec<T> {
        self.wait(&format!("{event:?}"), |events| events.contains(event))
    }
}

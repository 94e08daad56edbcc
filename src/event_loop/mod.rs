//! Servers: listeners, their connections, and an orderly end.

mod acceptor;
mod builder;
mod connections;
#[cfg(all(test, shuttle))]
mod models;
mod pauses;

pub use builder::{Builder, Pollers};
pub(crate) use connections::{Connections, Pending};

use crate::{
    connection::{DRAIN, in_callback},
    context::Context,
    error::{CloseReason, Error},
    handler::{Handler, Sessions},
    net::{Listener, SocketOptions},
    stats::Stats,
    sync::{Condvar, Mutex},
};
use acceptor::{Acceptor, Closed};
#[cfg(feature = "signals")]
use std::sync::Weak;
use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long connections that only linger may hold a shutdown up.
const LINGER_IN_SHUTDOWN: Duration = Duration::from_millis(200);
/// How long accepting that is under way may hold a stop up.
const ACCEPTING: Duration = Duration::from_secs(1);
/// How long a forced close waits for callbacks that are still running.
const FORCE: Duration = Duration::from_secs(5);

/// A server: serves any number of listeners with one handler.
///
/// Clones are the same loop. When the last one is dropped without [`shutdown`](Self::shutdown) it
/// stops accepting and aborts its connections. The drop waits for their callbacks, five seconds at
/// most; in a callback of its own, or on a poller's thread, it does not wait.
///
/// ```
/// use netpoll::{Dialer, EventLoop, Listener, handler_fn};
/// use std::{thread, time::Duration};
///
/// # fn main() -> std::io::Result<()> {
/// let echo = EventLoop::new(handler_fn(|conn| {
///     let all = conn.slice(conn.available())?;
///     conn.append(all)?;
///     conn.flush()
/// }))?;
/// let listener = Listener::bind("127.0.0.1:0".parse::<netpoll::Address>()?)?;
/// let address = listener.local_addr()?;
/// let server = echo.clone();
/// let serving = thread::spawn(move || server.serve(listener));
///
/// let mut conn = Dialer::new().dial_connection(address)?;
/// conn.write_str("hello")?;
/// conn.flush()?;
/// assert_eq!(conn.next(5)?, b"hello");
/// drop(conn);
///
/// echo.shutdown(Duration::from_secs(1))?;
/// serving.join().unwrap()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct EventLoop {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<Context>,
    sessions: Sessions,
    max_connections: usize,
    socket: SocketOptions,
    own_group: bool,
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Phase {
    stopping: bool,
    drained: bool,
    acceptors: Vec<Arc<Acceptor>>,
    /// Listeners that were stopped: whoever stops the loop waits until they are closed.
    closing: Vec<Arc<Closed>>,
    /// Who wants to know that a shutdown has begun.
    #[cfg(feature = "signals")]
    watchers: Vec<Weak<dyn DrainWatcher>>,
}

/// Who wants to know that the loop begins to drain.
#[cfg(feature = "signals")]
pub(crate) trait DrainWatcher: Send + Sync {
    /// Called once, at once and without a lock, on the thread that begins.
    fn drain_begins(&self);
}

impl EventLoop {
    /// A loop with default options: the process-wide pollers, [`Dispatch::Adaptive`](crate::Dispatch::Adaptive).
    ///
    /// # Errors
    ///
    /// What the system reports when the pollers cannot be started.
    pub fn new(handler: impl Handler) -> io::Result<Self> {
        Self::builder().build(handler)
    }

    /// A loop with options. Starts nothing before [`build`](Builder::build).
    pub fn builder() -> Builder {
        Builder::default()
    }

    fn start(
        context: Arc<Context>,
        sessions: Sessions,
        max_connections: usize,
        socket: SocketOptions,
        own_group: bool,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                context,
                sessions,
                max_connections,
                socket,
                own_group,
                phase: Mutex::new(Phase::default()),
                changed: Condvar::new(),
            }),
        }
    }

    /// Serves a listener until the loop has shut down; then every connection has ended and every
    /// callback has run. Blocks the caller, so it is not for callbacks. Several threads may serve
    /// several listeners.
    ///
    /// # Errors
    ///
    /// [`Error::ShuttingDown`] if the loop was shut down before, what made the listener unusable,
    /// or what the registration with a poller reports.
    pub fn serve(&self, listener: impl Into<Listener>) -> io::Result<()> {
        let acceptor = self.listen(listener.into())?;
        let result = acceptor.wait();
        self.forget(&acceptor);
        drop(acceptor);
        result?;
        let mut phase = self.inner.phase.lock();
        while !phase.drained {
            self.inner.changed.wait(&mut phase);
        }
        Ok(())
    }

    /// Starts to serve a listener and returns at once; the loop serves it until it shuts down.
    ///
    /// # Errors
    ///
    /// As [`Self::serve`], but errors of the listener later on are only logged.
    pub fn serve_in_background(&self, listener: impl Into<Listener>) -> io::Result<()> {
        self.listen(listener.into()).map(drop)
    }

    /// First step of a shutdown: closes the listeners. Connections go on. May be called again, and
    /// from several threads.
    ///
    /// Waits until the listeners are closed: for accepting that is under way (an `on_prepare`, for
    /// example), one second at most. In a callback it does not wait, and they are closed soon.
    pub fn stop_accepting(&self) {
        self.inner.stop_accepting();
    }

    /// Shuts the loop down: closes the listeners, closes connections as soon as nothing is in
    /// flight on them (at once if they are idle), and waits for all callbacks to end, at most
    /// `grace`.
    ///
    /// A request that was received before is answered if its handler ends in time. May be called
    /// again, and from several threads.
    ///
    /// # Errors
    ///
    /// [`Error::ShutdownIncomplete`] with the number of connections left after `grace`; they go
    /// on. [`Error::WouldDeadlock`] when called in a callback or on a poller's thread (in
    /// [`Executor::execute`](crate::Executor::execute), for example): the shutdown has begun, wait for
    /// it elsewhere.
    pub fn shutdown(&self, grace: Duration) -> io::Result<()> {
        let deadline = Instant::now().checked_add(grace);
        self.inner.drain(deadline);
        if must_not_wait() {
            return Err(Error::WouldDeadlock.into());
        }
        let remaining = self.inner.context.connections.wait_ended(deadline);
        if remaining > 0 {
            return Err(Error::ShutdownIncomplete { remaining }.into());
        }
        self.inner.finish();
        Ok(())
    }

    /// As [`Self::shutdown`], but aborts what is left after `grace` and returns how many
    /// connections that were. Waits a little longer for their callbacks.
    ///
    /// # Errors
    ///
    /// [`Error::ShutdownIncomplete`] if callbacks still run five seconds after they were asked to
    /// end; [`Error::WouldDeadlock`] as for [`Self::shutdown`].
    pub fn shutdown_forced(&self, grace: Duration) -> io::Result<usize> {
        match self.shutdown(grace) {
            Ok(()) => Ok(0),
            Err(error) => {
                let Some(Error::ShutdownIncomplete { remaining }) = Error::from_io(&error) else {
                    return Err(error);
                };
                self.inner.abort();
                let deadline = Instant::now().checked_add(FORCE);
                let left = self.inner.context.connections.wait_ended(deadline);
                if left > 0 {
                    return Err(Error::ShutdownIncomplete { remaining: left }.into());
                }
                self.inner.finish();
                Ok(remaining)
            }
        }
    }

    /// Whether a shutdown has begun: a handler may tell its peer to go elsewhere. A load; never
    /// waits.
    pub fn is_shutting_down(&self) -> bool {
        self.inner.context.is_draining()
    }

    /// Figures of this loop, which move on while they are read. Never waits for connections.
    pub fn stats(&self) -> Stats {
        self.inner.context.stats()
    }

    /// Tells `watcher` when a shutdown begins. The caller looks whether it has, afterwards.
    #[cfg(feature = "signals")]
    pub(crate) fn watch_drain(&self, watcher: Weak<dyn DrainWatcher>) {
        let watchers = &mut self.inner.phase.lock().watchers;
        watchers.retain(|watcher| watcher.strong_count() > 0);
        watchers.push(watcher);
    }

    fn listen(&self, listener: Listener) -> io::Result<Arc<Acceptor>> {
        let inner = &self.inner;
        let mut phase = inner.phase.lock();
        if phase.stopping {
            return Err(Error::ShuttingDown.into());
        }
        let acceptor = Acceptor::start(
            listener,
            &inner.socket,
            &inner.context,
            Arc::clone(&inner.sessions),
            inner.max_connections,
        )?;
        phase.acceptors.push(Arc::clone(&acceptor));
        Ok(acceptor)
    }

    fn forget(&self, acceptor: &Arc<Acceptor>) {
        self.inner
            .phase
            .lock()
            .acceptors
            .retain(|other| !Arc::ptr_eq(other, acceptor));
    }
}

impl Inner {
    fn stop_accepting(&self) {
        let closing = self.begin_to_stop();
        await_closed(&closing, None);
    }

    /// Has all listeners closed, and returns what tells when they are. Does not wait.
    fn begin_to_stop(&self) -> Vec<Arc<Closed>> {
        let (acceptors, closing) = {
            let mut phase = self.phase.lock();
            phase.stopping = true;
            let acceptors = std::mem::take(&mut phase.acceptors);
            for acceptor in &acceptors {
                // Said before anybody else can find nothing to stop and end the pollers.
                acceptor.say_stopped();
            }
            phase
                .closing
                .extend(acceptors.iter().map(|acceptor| acceptor.closed()));
            (acceptors, phase.closing.clone())
        };
        for acceptor in &acceptors {
            acceptor.stop();
        }
        closing
    }

    /// Asks every connection to end when nothing is in flight. Waits for the listeners, at most until
    /// `deadline`.
    fn drain(&self, deadline: Option<Instant>) {
        // First of all: everything that others can notice comes after it.
        self.context.drain();
        let closing = self.begin_to_stop();
        #[cfg(feature = "signals")]
        {
            let watchers = std::mem::take(&mut self.phase.lock().watchers);
            for watcher in watchers.iter().filter_map(Weak::upgrade) {
                watcher.drain_begins();
            }
        }
        // Connections that are accepted from here on find the loop draining.
        for shared in self.context.connections.snapshot() {
            shared.attend(DRAIN);
        }
        await_closed(&closing, deadline);
    }

    fn abort(&self) {
        for shared in self.context.connections.snapshot() {
            shared.abort_with(CloseReason::Shutdown);
        }
    }

    /// All callbacks have run: lets go of descriptors that linger and of the threads.
    fn finish(&self) {
        let connections = &self.context.connections;
        let deadline = Instant::now() + LINGER_IN_SHUTDOWN;
        if connections.wait_gone(Some(deadline)) > 0 {
            for shared in connections.snapshot() {
                if let Some(registration) = shared.registration() {
                    registration.detach();
                }
            }
            connections.wait_gone(Instant::now().checked_add(Duration::from_secs(1)));
        }
        self.context.runner.close();
        if self.own_group {
            self.context.group.close();
        }
        self.phase.lock().drained = true;
        self.changed.notify_all();
    }
}

/// Whether the calling thread runs a callback or leads a poller: what it would wait for could not come.
fn must_not_wait() -> bool {
    in_callback() || poller::must_not_block()
}

/// Waits for listeners to be closed, for accepting that is under way: not for long, and not past
/// `deadline`.
fn await_closed(closing: &[Arc<Closed>], deadline: Option<Instant>) {
    if must_not_wait() {
        return;
    }
    let latest = Instant::now() + ACCEPTING;
    let deadline = deadline.map_or(latest, |deadline| deadline.min(latest));
    for closed in closing {
        closed.wait(deadline);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.phase.lock().drained {
            return;
        }
        self.drain(None);
        self.abort();
        if must_not_wait() {
            // On one of our own threads nothing can be waited for.
            return;
        }
        self.context
            .connections
            .wait_ended(Some(Instant::now() + FORCE));
        self.finish();
    }
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop")
            .field("connections", &self.inner.context.connections)
            .field("phase", &*self.inner.phase.lock())
            .finish_non_exhaustive()
    }
}

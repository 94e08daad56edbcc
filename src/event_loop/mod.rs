//! Servers: listeners, their connections, and an orderly end.

mod acceptor;
mod builder;
mod connections;
#[cfg(all(test, shuttle))]
mod models;
mod pauses;

pub use builder::{EventLoopBuilder, Pollers};
pub(crate) use connections::{Connections, Pending};

use crate::{
    connection::{ConnectionHandle, ConnectionState, in_callback},
    context::Context,
    error::Error,
    handler::{Handler, Sessions},
    net::{Listener, SocketOptions},
    stats::Stats,
    sync::{Condvar, Mutex, Ordering},
    trace,
};
use acceptor::{Acceptor, Closed};
use bytes::Bytes;
#[cfg(feature = "signals")]
use std::sync::Weak;
use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long accepting that is under way may hold a stop up.
const ACCEPTING: Duration = Duration::from_secs(1);
/// How long the pollers have to look once more at connections that linger, and to let go of them.
const LAST_LOOK: Duration = Duration::from_millis(100);
/// Stuck connections that the log names.
const NAMED: usize = 8;

/// A server: serves any number of listeners with one handler.
///
/// Clones are the same loop. When the last one is dropped without [`shutdown`](Self::shutdown) it
/// stops accepting and aborts its connections. The drop waits for their callbacks as
/// [`shutdown_forced`](Self::shutdown_forced) does; in a callback of its own, or on a poller's thread, it
/// does not wait.
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
    /// How long a forced end waits for callbacks of which none returns.
    stuck_after: Duration,
    phase: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Phase {
    stopping: bool,
    drained: bool,
    /// How many connections had been cut when the drain began.
    cut_before: Option<u64>,
    /// A forced end found so many connections stuck in callbacks.
    stuck: Option<usize>,
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

    /// A loop with options. Starts nothing before [`build`](EventLoopBuilder::build).
    pub fn builder() -> EventLoopBuilder {
        EventLoopBuilder::default()
    }

    fn start(
        context: Arc<Context>,
        sessions: Sessions,
        max_connections: usize,
        socket: SocketOptions,
        own_group: bool,
        stuck_after: Duration,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                context,
                sessions,
                max_connections,
                socket,
                own_group,
                stuck_after,
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
    /// or what the registration with a poller reports; [`Error::ShutdownIncomplete`] if a
    /// [forced shutdown](Self::shutdown_forced) gave up on callbacks that do not return;
    /// [`Error::WouldDeadlock`] on a poller's thread that must not wait.
    pub fn serve(&self, listener: impl Into<Listener>) -> io::Result<()> {
        if poller::is_polling_thread() {
            return Err(Error::WouldDeadlock.into());
        }
        let acceptor = self.listen(listener.into())?;
        let result = acceptor.wait();
        self.forget(&acceptor);
        drop(acceptor);
        result?;
        let mut phase = self.inner.phase.lock();
        while !phase.drained {
            if let Some(remaining) = phase.stuck {
                return Err(Error::ShutdownIncomplete { remaining }.into());
            }
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
        if self.inner.check_own().is_err() {
            return;
        }
        self.inner.stop_accepting();
    }

    /// Shuts the loop down: closes the listeners, closes connections as soon as nothing is in
    /// flight on them (at once if they are idle), and waits until all callbacks have ended and the
    /// peers have got what was sent, at most `grace`.
    ///
    /// A request that was received before is answered if its handler ends in time. A message of which
    /// a part has come is waited for as long as the read timeout says. A peer that
    /// reads slowly gets everything, a peer that takes nothing for the
    /// [linger time](EventLoopBuilder::linger) is cut. May be called again, and from several threads.
    ///
    /// # Errors
    ///
    /// [`Error::ShutdownIncomplete`] with the number of connections left after `grace`; they go
    /// on. [`Error::ShutdownCut`] if the loop has ended, but peers were cut.
    /// [`Error::WouldDeadlock`] when called in a callback or on a poller's thread (in
    /// [`Executor::execute`](crate::Executor::execute), for example): the shutdown has begun, wait for
    /// it elsewhere.
    pub fn shutdown(&self, grace: Duration) -> io::Result<()> {
        self.inner.check_own()?;
        let deadline = Instant::now().checked_add(grace);
        self.inner.drain(deadline);
        if must_not_wait() {
            return Err(Error::WouldDeadlock.into());
        }
        let connections = &self.inner.context.connections;
        let mut remaining = connections.wait_ended(deadline);
        if remaining == 0 {
            remaining = connections.wait_gone(deadline);
        }
        if remaining > 0 && connections.wait_ended(deadline) == 0 {
            // Their peers may have got everything since the last look.
            for shared in connections.snapshot() {
                shared.wake_poller();
            }
            remaining = connections.wait_gone(Instant::now().checked_add(LAST_LOOK));
        }
        if remaining > 0 {
            return Err(Error::ShutdownIncomplete { remaining }.into());
        }
        self.inner.finish();
        match self.inner.cut() {
            0 => Ok(()),
            cut => Err(Error::ShutdownCut { cut }.into()),
        }
    }

    /// As [`Self::shutdown`], but aborts what is left after `grace`: peers see a reset then,
    /// whatever the handlers do. Returns how many connections were aborted or cut.
    ///
    /// Waits for the callbacks of those that were aborted, until none has returned for the time of
    /// [`EventLoopBuilder::stuck_after`]. Callbacks that are stuck are named in the log.
    ///
    /// # Errors
    ///
    /// [`Error::ShutdownIncomplete`] with the number of connections whose callbacks are stuck; their
    /// threads, and the loop's, end when these return. [`Error::WouldDeadlock`] as for
    /// [`Self::shutdown`].
    pub fn shutdown_forced(&self, grace: Duration) -> io::Result<usize> {
        let error = match self.shutdown(grace) {
            Ok(()) => return Ok(0),
            Err(error) => error,
        };
        match Error::from_io(&error) {
            Some(Error::ShutdownCut { cut }) => Ok(cut),
            Some(Error::ShutdownIncomplete { remaining }) => {
                self.inner.force()?;
                Ok(remaining + self.inner.cut())
            }
            _ => Err(error),
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

    /// Handles of the connections that are not over, in no particular order: a picture of this moment.
    /// Never waits.
    ///
    /// ```
    /// # use netpoll::{EventLoop, handler_fn};
    /// # fn main() -> std::io::Result<()> {
    /// # let server = EventLoop::new(handler_fn(|conn| conn.skip(conn.available())))?;
    /// let most = server.connections().into_iter().max_by_key(|conn| conn.stats().queued);
    /// if let Some(slow) = most {
    ///     println!("{} reads slowest", slow.peer_addr());
    /// }
    /// # server.shutdown(std::time::Duration::ZERO)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn connections(&self) -> Vec<ConnectionHandle> {
        let all = self.inner.context.connections.snapshot();
        let live = all.into_iter().filter(|shared| !shared.is_over());
        live.map(ConnectionHandle::new).collect()
    }

    /// Sends one message to every connection whose `on_connect` has returned and that is not over, as
    /// [`ConnectionHandle::try_send`] does: without waiting, and without a copy for each. Returns how
    /// many took it. A connection that cannot, because its queue is full for example, does not get it;
    /// to know which, send to [`connections`](Self::connections).
    ///
    /// ```
    /// # use netpoll::{EventLoop, handler_fn};
    /// # fn main() -> std::io::Result<()> {
    /// # let server = EventLoop::new(handler_fn(|conn| conn.skip(conn.available())))?;
    /// let told = server.broadcast("the server restarts at noon\n".into());
    /// # assert_eq!(told, 0);
    /// # server.shutdown(std::time::Duration::ZERO)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn broadcast(&self, message: Bytes) -> usize {
        let connections = self.connections().into_iter();
        let open = connections.filter(|conn| conn.state() == ConnectionState::Connected);
        open.filter(|conn| conn.try_send(message.clone()).is_ok())
            .count()
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
        let address = listener.local_addr();
        let acceptor = Acceptor::start(
            listener,
            &inner.socket,
            &inner.context,
            Arc::clone(&inner.sessions),
            inner.max_connections,
        )?;
        phase.acceptors.push(Arc::clone(&acceptor));
        if let Ok(address) = address {
            trace::debug!("listening at {address}");
        }
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
        {
            let cut = self.context.counters.cut.load(Ordering::Relaxed);
            self.phase.lock().cut_before.get_or_insert(cut);
        }
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
            shared.begin_drain();
        }
        await_closed(&closing, deadline);
    }

    fn abort(&self) {
        for shared in self.context.connections.snapshot() {
            shared.force();
        }
    }

    /// Aborts what is left and waits for callbacks as long as some return.
    fn force(&self) -> io::Result<()> {
        self.abort();
        let (remaining, stuck) = self.context.connections.wait_stuck(self.stuck_after);
        if remaining == 0 {
            self.finish();
            return Ok(());
        }
        trace::warn!("shutdown: callbacks of {remaining} connections do not return");
        for shared in stuck.iter().take(NAMED) {
            let (id, peer) = (shared.id, &shared.peer);
            trace::warn!("connection {id}: shutdown: a callback for {peer} does not return");
        }
        self.phase.lock().stuck = Some(remaining);
        self.changed.notify_all();
        let (context, own_group) = (Arc::clone(&self.context), self.own_group);
        self.context
            .connections
            .when_ended(Box::new(move || end_threads(&context, own_group)));
        Err(Error::ShutdownIncomplete { remaining }.into())
    }

    /// Connections that were cut since the drain began.
    fn cut(&self) -> usize {
        let before = self.phase.lock().cut_before.unwrap_or(0);
        let cut = self.context.counters.cut.load(Ordering::Relaxed);
        usize::try_from(cut.saturating_sub(before)).unwrap_or(usize::MAX)
    }

    /// All callbacks have run: lets go of the descriptors that are left and of the threads.
    fn finish(&self) {
        let connections = &self.context.connections;
        if connections.wait_gone(Instant::now().checked_add(ACCEPTING)) > 0 {
            for shared in connections.snapshot() {
                if let Some(registration) = shared.registration() {
                    registration.detach();
                }
            }
            connections.wait_gone(Instant::now().checked_add(ACCEPTING));
        }
        end_threads(&self.context, self.own_group);
        self.phase.lock().drained = true;
        self.changed.notify_all();
    }
}

/// Ends the threads that belong to a loop alone, when no callback runs on them any more.
fn end_threads(context: &Context, own_group: bool) {
    context.runner.close();
    if own_group {
        context.group.close();
    }
}

/// Whether the calling thread runs a callback or leads a poller: what it would wait for could not come.
fn must_not_wait() -> bool {
    in_callback() || poller::is_polling_thread()
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

impl Inner {
    /// In a process that was forked: closes the descriptors and does nothing else, for the loop is the
    /// other process's. Locks that were held at the fork stay so.
    fn leave_behind(&self) {
        if let Some(mut phase) = self.phase.try_lock() {
            for acceptor in phase.acceptors.drain(..) {
                acceptor.leave_behind();
            }
        }
        for shared in self.context.connections.leave_behind() {
            shared.leave_behind();
            // Its books are of no more use here.
            std::mem::forget(shared);
        }
    }

    /// The error of what a process that was forked cannot do.
    fn check_own(&self) -> io::Result<()> {
        if self.context.group.is_inherited() {
            let text =
                "this process was forked from the one that made the event loop: drop its copy";
            return Err(Error::Unsupported(text).into());
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.group.is_inherited() {
            return self.leave_behind();
        }
        if self.phase.lock().drained {
            return;
        }
        self.drain(None);
        if must_not_wait() {
            // On one of our own threads nothing can be waited for.
            return self.abort();
        }
        let _ = self.force();
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

//! Accepts connections of one listener, in bounded batches, through every kind of error.

use super::{
    connections::{Place, RoomCallback},
    pauses::Pauses,
};
use crate::{
    connection,
    context::Context,
    error::Error,
    foreign,
    handler::Sessions,
    net::{AcceptAction, Address, Listener, Socket, SocketOptions, classify},
    sync::{AtomicBool, Condvar, Mutex, Ordering},
    trace,
};
use poller::{Budget, Operator, Progress, Readiness, Registration};
use std::{
    fmt, io,
    os::fd::BorrowedFd,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

/// Accepts per turn; the other descriptors of the poller are served in between.
const BATCH: usize = 64;

/// One listener of an event loop.
pub(crate) struct Acceptor {
    this: Weak<Self>,
    listener: Listener,
    /// Options that accepted sockets do not inherit from the listener.
    options: Option<SocketOptions>,
    context: Arc<Context>,
    sessions: Sessions,
    max_connections: usize,
    registration: OnceLock<Registration>,
    /// No accepting before a timer or a callback says so.
    paused: AtomicBool,
    pauses: Mutex<Pauses>,
    /// A run was asked for and has not begun.
    due: AtomicBool,
    end: Mutex<End>,
    ended: Condvar,
    /// Declared last: it tells that the listener, dropped before it, is closed.
    closing: Closing,
}

/// Whether an acceptor's descriptor is closed.
#[derive(Debug, Default)]
pub(crate) struct Closed {
    closed: Mutex<bool>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Closing(Arc<Closed>);

impl Closed {
    /// Waits until it is, at most until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) {
        let mut closed = self.closed.lock();
        while !*closed {
            if self.changed.wait_until(&mut closed, deadline).timed_out() {
                return;
            }
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        *self.0.closed.lock() = true;
        self.0.changed.notify_all();
    }
}

#[derive(Debug, Default)]
struct End {
    stopped: bool,
    /// The listener is out of the poller: nothing is accepted any more.
    detached: bool,
    error: Option<io::Error>,
}

impl Acceptor {
    pub(crate) fn start(
        listener: Listener,
        options: &SocketOptions,
        context: &Arc<Context>,
        sessions: Sessions,
        max_connections: usize,
    ) -> io::Result<Arc<Self>> {
        let inherited = listener.inherit(options)?;
        let options = (!inherited).then(|| options.clone());
        let acceptor = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            listener,
            options,
            context: Arc::clone(context),
            sessions,
            max_connections,
            registration: OnceLock::new(),
            paused: AtomicBool::new(false),
            pauses: Mutex::new(Pauses::default()),
            due: AtomicBool::new(false),
            end: Mutex::new(End::default()),
            ended: Condvar::new(),
            closing: Closing::default(),
        });
        let operator = Arc::clone(&acceptor) as Arc<dyn Operator>;
        let registration = context.group.register(operator, poller::Interest::READ)?;
        // The first event may have run into a pause before the registration was known: a pause
        // needs it for its timer.
        acceptor.registration.get_or_init(|| registration).wake();
        Ok(acceptor)
    }

    /// Stops accepting. Connections in the kernel's backlog are reset when the listener closes.
    pub(crate) fn stop(&self) {
        self.say_stopped();
        if let Some(registration) = self.registration.get() {
            registration.detach();
        }
        self.ended.notify_all();
    }

    /// Lets go of the listener in a process that was forked.
    pub(crate) fn leave_behind(&self) {
        if let Some(registration) = self.registration.get() {
            registration.detach();
        }
    }

    /// What ends it from here on is no failure.
    pub(crate) fn say_stopped(&self) {
        self.end.lock().stopped = true;
    }

    /// Waits until the acceptor stopped for good: the error if it stopped by itself.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut end = self.end.lock();
        while !end.stopped && !end.detached {
            self.ended.wait(&mut end);
        }
        match end.error.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// What tells that the descriptor is closed; nobody can connect any more then.
    pub(crate) fn closed(&self) -> Arc<Closed> {
        Arc::clone(&self.closing.0)
    }

    /// One turn of accepting. Turns may overlap: while one waits in `on_prepare`, the next event
    /// of the listener begins another.
    fn accept_batch(&self) -> Progress {
        let mut failures = 0;
        for _ in 0..BATCH {
            let end = self.end.lock();
            if end.stopped || end.detached {
                return Progress::Drained;
            }
            drop(end);
            let Some(place) = self.reserve() else {
                return Progress::Drained;
            };
            match self.listener.accept() {
                Ok((socket, peer)) => {
                    failures = 0;
                    self.start_connection(place, socket, peer);
                }
                Err(error) => {
                    failures += 1;
                    if let Some(progress) = self.handle_error(error, failures == BATCH) {
                        return progress;
                    }
                }
            }
        }
        Progress::Yield
    }

    fn start_connection(&self, place: Place<'_>, socket: Socket, peer: Address) {
        if let Some(Err(error)) = self.options.as_ref().map(|options| options.apply(&socket)) {
            // The peer may be gone already; whatever it is, it is this connection's alone.
            trace::debug!("accept: options of a connection from {peer}: {error}");
            return;
        }
        let session = (self.sessions)();
        place.hand_over();
        // A refusal is the connection's own affair and has been logged and counted.
        if let Err(error) = connection::accepted(&self.context, socket, peer, session) {
            self.drop_refusal(error);
        }
    }

    /// The error of an `on_prepare` is a value of the user's.
    #[cold]
    fn drop_refusal(&self, error: io::Error) {
        let before = foreign::panics();
        foreign::drop_foreign(error);
        let panics = &self.context.counters.panics;
        panics.fetch_add(foreign::panics_since(before), Ordering::Relaxed);
    }

    /// A place for the next connection. At the limit further ones wait in the kernel's backlog.
    fn reserve(&self) -> Option<Place<'_>> {
        let who = std::ptr::from_ref(self).addr();
        let connections = &self.context.connections;
        connections.reserve(self.max_connections, who, || self.room_callback())
    }

    /// Makes the acceptor look again.
    fn room_callback(&self) -> RoomCallback {
        let acceptor = Weak::clone(&self.this);
        Box::new(move || {
            if let Some(registration) = acceptor
                .upgrade()
                .as_ref()
                .and_then(|acceptor| acceptor.registration.get())
            {
                registration.wake();
            }
        })
    }

    /// `lasting`: a whole turn has brought nothing but failures. What the turn does then, unless it
    /// goes on.
    fn handle_error(&self, error: io::Error, lasting: bool) -> Option<Progress> {
        let action = classify(&error);
        let action = if lasting { action.lasting() } else { action };
        if matches!(action, AcceptAction::Wait) {
            return Some(Progress::Drained);
        }
        if let Some(errno) = error.raw_os_error() {
            *self
                .context
                .counters
                .accept_errors
                .lock()
                .entry(errno)
                .or_insert(0) += 1;
        }
        match action {
            AcceptAction::Wait | AcceptAction::Retry => None,
            AcceptAction::Skip => {
                trace::debug!("accept: {error}; the connection was gone before it was accepted");
                None
            }
            AcceptAction::Pause(pause) => {
                self.pause(&error, pause);
                Some(Progress::Drained)
            }
            AcceptAction::Stop => {
                trace::error!("accept: {error}; this listener is given up");
                self.end.lock().error = Some(error);
                Some(Progress::Detach)
            }
        }
    }

    fn pause(&self, error: &io::Error, pause: Duration) {
        let now = Instant::now();
        self.paused.store(true, Ordering::Release);
        if let Some(registration) = self.registration.get() {
            registration.set_timer(now.checked_add(pause));
        }
        let line = self.pauses.lock().one_more(now);
        if let Some(silent) = line {
            trace::warn!(
                "accept: {error}; accepting again in {pause:?} ({silent} pauses were not logged \
                 since the last message)"
            );
        }
    }
}

impl Operator for Acceptor {
    fn fd(&self) -> BorrowedFd<'_> {
        self.listener.watched()
    }

    fn on_ready(&self, readiness: Readiness, budget: &mut Budget<'_>) -> Progress {
        if readiness.intersects(Readiness::TIMER | Readiness::WAKE) {
            self.paused.store(false, Ordering::Release);
        }
        // Where every thread is taken several events may come before the run begins.
        if !self.paused.load(Ordering::Acquire) && !self.due.swap(true, Ordering::AcqRel) {
            budget.request_run();
        }
        Progress::Drained
    }

    /// Those who connect do not wait for handlers. Only an `on_prepare` may wait here.
    fn is_brief(&self) -> bool {
        true
    }

    fn run(&self) -> Progress {
        self.due.swap(false, Ordering::AcqRel);
        self.accept_batch()
    }

    fn on_detached(&self) {
        let mut end = self.end.lock();
        if !end.stopped && end.error.is_none() {
            end.error = Some(Error::Closed(crate::CloseReason::Poller).into());
        }
        end.detached = true;
        self.ended.notify_all();
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("listener", &self.listener)
            .field("end", &*self.end.lock())
            .finish_non_exhaustive()
    }
}

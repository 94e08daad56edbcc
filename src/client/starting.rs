//! Dials that nothing waits for.
//!
//! A dial is a value that threads advance: one of the pollers' when a socket is writable or a time has come,
//! one that looked a name up, one that cancels. The thread that advances it takes the work out of its place, so
//! that no lock is held across system calls and user code; a thread that finds the place empty leaves a note,
//! and the thread that has the work looks again. The end, with its callback, belongs to a thread of the pollers that may wait.
//!
//! * The poller's hold on a socket ends ([`Watch`]) before the connection gets it, and when it loses.
//! * Timers are not set back: one that comes too early advances the dial for nothing. All are cancelled at
//!   the end.
//! * If the poller ends, what it held is dropped: that advances the dial as well ([`Call`]), to its end.

use super::Dialer;
use crate::{
    connection::{
        Attempt, Connection, Shared, not_opened, opened_for_handler, opened_for_owner, opening,
    },
    context::Context,
    error::{CloseReason, Error},
    foreign::Foreign,
    handler::Session,
    net::{Address, Addresses, Connecting, Dial, Socket, Step},
    sync::{AtomicBool, Mutex, Ordering},
    trace,
};
use poller::{
    Budget, Interest, Operator, PollerHandle, Progress, Readiness, Registration, TimerKey,
};
use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Weak},
    time::Instant,
};

pub(super) type Failed = Foreign<Box<dyn FnOnce(io::Error) + Send>>;
pub(super) type Opened = Foreign<Box<dyn FnOnce(io::Result<Connection>) + Send>>;

/// What becomes of the connection.
pub(super) enum Then {
    Handler(Box<dyn Session>, Failed),
    Owner(Opened),
}

/// A dial that is under way.
pub(super) struct Starting {
    this: Weak<Self>,
    shared: Arc<Shared>,
    dialer: Dialer,
    address: Address,
    deadline: Option<Instant>,
    poller: PollerHandle,
    /// The poller has ended.
    lost: AtomicBool,
    place: Mutex<Place>,
}

struct Place {
    /// Taken by the thread that advances the dial; for good by the one that ends it.
    work: Option<Box<Work>>,
    /// There may be something new.
    again: bool,
    found: Option<Addresses>,
}

struct Work {
    connecting: Connecting,
    watches: Vec<Watch>,
    timers: Vec<(Instant, TimerKey)>,
    /// Attempts that have failed.
    failures: u32,
    then: Then,
}

impl Starting {
    /// Begins, and returns at once: the first system call is a poller's.
    pub(super) fn start(
        context: &Arc<Context>,
        dialer: &Dialer,
        address: Address,
        then: Then,
    ) -> Arc<Shared> {
        let mut made = None;
        let shared = opening(context, address.clone(), |shared| {
            let starting = Arc::new_cyclic(|this| Self {
                this: Weak::clone(this),
                shared: Arc::clone(shared),
                deadline: dialer.deadline(),
                dialer: dialer.clone(),
                poller: context.group.pick(),
                lost: AtomicBool::new(false),
                place: Mutex::new(Place {
                    work: Some(Box::new(Work {
                        connecting: Connecting::new(address.clone()),
                        watches: Vec::new(),
                        timers: Vec::new(),
                        failures: 0,
                        then,
                    })),
                    again: false,
                    found: None,
                }),
                address,
            });
            made = Some(Arc::clone(&starting));
            starting
        });
        if let Some(starting) = made {
            starting.call_at(Instant::now());
        }
        shared
    }

    /// Does what can be done, and ends the dial if that is an end.
    fn advance(&self) {
        let Some(mut work) = self.take() else {
            return;
        };
        loop {
            match self.step(&mut work) {
                Ok(Step::Pending(at)) => {
                    let ready = self.watch(&mut work);
                    self.set_timer(&mut work, at);
                    if let Err(error) = ready {
                        return self.end(*work, Err(error));
                    }
                }
                Ok(Step::Connected(socket)) => return self.end(*work, Ok(socket)),
                Err(error) => return self.end(*work, Err(error)),
            }
            work = match self.put_back(work) {
                None => return,
                Some(work) => work,
            };
        }
    }

    fn take(&self) -> Option<Box<Work>> {
        let mut place = self.place.lock();
        place.again = place.work.is_none();
        place.work.take()
    }

    /// Gives the work back unless there is something new.
    fn put_back(&self, work: Box<Work>) -> Option<Box<Work>> {
        let mut place = self.place.lock();
        if std::mem::take(&mut place.again) {
            return Some(work);
        }
        place.work = Some(work);
        None
    }

    fn step(&self, work: &mut Work) -> io::Result<Step> {
        if self.shared.word.ended() {
            return Err(self.shared.closed_error());
        }
        if self.lost.load(Ordering::Acquire) {
            return Err(Error::Closed(CloseReason::Poller).into());
        }
        let found = self.place.lock().found.take();
        let found = found.map_or(Ok(()), |found| work.connecting.found(found));
        let this = Weak::clone(&self.this);
        let step = found.and_then(|()| {
            work.connecting.step(&self.dial(), move |addresses| {
                if let Some(this) = this.upgrade() {
                    this.place.lock().found = Some(addresses);
                    this.call_at(Instant::now());
                }
            })
        });
        match step {
            Err(error) if self.dialer.repeats(work.failures, &error) => {
                trace::debug!("connection {}: dial again: {error}", self.shared.id);
                work.failures += 1;
                work.connecting = Connecting::new(self.address.clone());
                // Behind what others have to do on this thread.
                Ok(Step::Pending(Some(Instant::now())))
            }
            step => step,
        }
    }

    fn dial(&self) -> Dial<'_> {
        self.dialer.dial(self.deadline)
    }

    /// Has the poller watch the sockets that are connecting, and no others.
    fn watch(&self, work: &mut Work) -> io::Result<()> {
        let Work {
            connecting,
            watches,
            ..
        } = work;
        watches.retain(|watch| {
            let mut sockets = connecting.sockets();
            sockets.any(|socket| Arc::ptr_eq(socket, &watch.probe.socket))
        });
        for socket in connecting.sockets() {
            let watched = |watch: &Watch| Arc::ptr_eq(socket, &watch.probe.socket);
            if watches.iter().any(watched) {
                continue;
            }
            let Some(starting) = self.this.upgrade() else {
                return Ok(());
            };
            let probe = Arc::new(Probe {
                socket: Arc::clone(socket),
                starting,
                is_given_up: AtomicBool::new(false),
            });
            let operator = Arc::clone(&probe) as Arc<dyn Operator>;
            let registration = self.poller.register(operator, Interest::WRITE)?;
            watches.push(Watch {
                probe,
                registration,
            });
        }
        Ok(())
    }

    fn set_timer(&self, work: &mut Work, at: Option<Instant>) {
        let now = Instant::now();
        work.timers.retain(|(at, _)| *at > now);
        let Some(at) = at else { return };
        if work.timers.iter().all(|(set, _)| *set > at) {
            let key = self.call_at(at);
            work.timers.push((at, key));
        }
    }

    /// Has a thread of the poller's advance the dial.
    fn call_at(&self, at: Instant) -> TimerKey {
        let call = Call(Some(Weak::clone(&self.this)));
        self.poller.schedule(at, move || call.make())
    }

    /// The end of the dial. The caller has its work, and keeps it.
    fn end(&self, work: Work, result: io::Result<Socket>) {
        let Work {
            connecting,
            watches,
            timers,
            then,
            ..
        } = work;
        drop((watches, connecting));
        for (_, key) in timers {
            self.poller.cancel(key);
        }
        let shared = &self.shared;
        let result = result.and_then(|socket| {
            if shared.word.ended() {
                return Err(shared.closed_error());
            }
            Ok(socket)
        });
        match (result, then) {
            (Ok(socket), then) => self.open(socket, then),
            (Err(error), Then::Handler(mut session, mut failed)) => {
                let reason = self.fail(&error);
                not_opened(shared, reason, || {
                    shared.contain("end of a session", || session.never_connected(reason));
                    shared.contain("drop of a session", || drop(session));
                    self.tell(|| failed.take().map(|failed| failed(error)));
                });
            }
            (Err(error), Then::Owner(mut opened)) => {
                let reason = self.fail(&error);
                not_opened(shared, reason, || {
                    self.tell(|| opened.take().map(|opened| opened(Err(error))));
                });
            }
        }
    }

    fn open(&self, socket: Socket, then: Then) {
        let shared = &self.shared;
        trace::debug!(
            "connection {}: dialled {}, {} from {}",
            shared.id,
            self.address,
            socket.peer_address().unwrap_or(Address::Unnamed),
            socket.local_address().unwrap_or(Address::Unnamed)
        );
        match then {
            Then::Handler(session, mut failed) => {
                if let Err(error) = opened_for_handler(shared, socket, session) {
                    self.tell(|| failed.take().map(|failed| failed(error)));
                }
            }
            Then::Owner(mut opened) => {
                let result = opened_for_owner(shared, socket);
                self.tell(|| opened.take().map(|opened| opened(result)));
            }
        }
    }

    /// Why the connection ends.
    fn fail(&self, error: &io::Error) -> CloseReason {
        trace::debug!("connection {}: dial failed: {error}", self.shared.id);
        match Error::from_io(error) {
            Some(Error::Closed(reason)) => reason,
            _ => CloseReason::Error(error.kind()),
        }
    }

    fn tell<T>(&self, callback: impl FnOnce() -> T) {
        self.shared.contain("callback of a dial", callback);
    }
}

impl Attempt for Starting {
    /// The sockets are closed by the calling thread, the rest is a poller's.
    fn cancel(self: Arc<Self>) {
        let Some(mut work) = self.take() else {
            return;
        };
        let watches = std::mem::take(&mut work.watches);
        let connecting = std::mem::replace(&mut work.connecting, Connecting::new(Address::Unnamed));
        drop((watches, connecting));
        // Whatever was new: the end is.
        let mut place = self.place.lock();
        place.work = Some(work);
        drop(place);
        self.call_at(Instant::now());
    }
}

/// A socket that the poller watches until this is dropped.
struct Watch {
    probe: Arc<Probe>,
    registration: Registration,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.probe.is_given_up.store(true, Ordering::Release);
        // The descriptor is to be closed now, and not when the poller comes to it.
        self.registration.detach_here();
    }
}

/// A socket that is connecting, as its poller sees it.
struct Probe {
    socket: Arc<Socket>,
    starting: Arc<Starting>,
    is_given_up: AtomicBool,
}

impl Operator for Probe {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn on_ready(&self, _: Readiness, budget: &mut Budget<'_>) -> Progress {
        if !self.is_given_up.load(Ordering::Acquire) {
            budget.request_run();
        }
        Progress::Drained
    }

    fn id(&self) -> u64 {
        self.starting.shared.id
    }

    fn run(&self) -> Progress {
        self.starting.advance();
        Progress::Drained
    }

    fn on_detached(&self) {
        if !self.is_given_up.load(Ordering::Acquire) {
            self.starting.lost.store(true, Ordering::Release);
            self.starting.advance();
        }
    }
}

/// Advances a dial, once: when it is made, or when it is dropped because the poller has ended.
struct Call(Option<Weak<Starting>>);

impl Call {
    fn make(mut self) {
        if let Some(starting) = self.0.take().and_then(|starting| starting.upgrade()) {
            starting.advance();
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(starting) = self.0.take().and_then(|starting| starting.upgrade()) {
            starting.lost.store(true, Ordering::Release);
            starting.advance();
        }
    }
}

//! What every holder of a connection shares: the poller, the owner of the callbacks, handles.
//!
//! An idle connection is little more than this, so every word counts, and every allocation:
//! `tests/memory/idle.rs` counts both.

use super::{
    alarms,
    aside::{Aside, Waiters, Waiting},
    operator::{ConnectionOperator, Wire},
    output::{Contain, Gate, Outbox, Sent, Sink},
    patience::Patience,
    process::Owner,
    state::{self, Word},
    wake::Bell,
};
use crate::{
    context::Context,
    error::{CloseReason, Error},
    foreign::Foreign,
    handler::Hooks,
    memory::HEAVY,
    net::{Address, Socket},
    sync::{AtomicBox, AtomicU32, AtomicU64, Mutex, MutexGuard, Ordering},
};
use poller::{Interest, Readiness, Registration, Waiter};
use std::{
    fmt,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// How long a wait without a bell may be before it looks up.
const SLICE: Duration = Duration::from_millis(25);

/// The part of a connection that outlives its owner: handles keep it, the socket they do not.
///
/// In this order, so that what every request touches lies together.
#[repr(C)]
pub(crate) struct Shared {
    pub(crate) word: Word,
    /// What the connection is charged for, in KiB, and whether it is [`HEAVY`]: see
    /// [`memory`](crate::memory).
    pub(crate) held: AtomicU32,
    /// When bytes last moved, by the coarse clock.
    pub(super) last_active: AtomicU64,
    /// Only who receives counts them.
    pub(crate) bytes_in: AtomicU64,
    pub(crate) context: Arc<Context>,
    /// Input side and callbacks while nobody runs them.
    pub(crate) owner: AtomicBox<Owner>,
    pub(crate) outbox: Outbox,
    pub(crate) aside: Mutex<Aside>,
    registration: OnceLock<Registration>,
    pub(crate) id: u64,
    pub(crate) peer: Address,
    /// Index in the context's table of live connections.
    key: u32,
    /// See [`alarms`].
    pub(super) idle_timeout: AtomicU32,
    /// Guards that promise later output: see `ConnectionHandle::hold`.
    pub(crate) holds: AtomicU32,
}

/// What a thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    Input,
    Output,
    /// The end of the connection. Such a wait is not interrupted.
    End,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    /// What was waited for is there.
    Ready,
    /// The deadline has passed.
    Late,
    /// Others need the thread: [`Error::Overloaded`](crate::Error::Overloaded).
    Ended,
    /// Another thread wants it to end: [`Error::Interrupted`](crate::Error::Interrupted).
    Interrupted,
}

impl Waited {
    fn in_time(ready: bool) -> Self {
        if ready { Self::Ready } else { Self::Late }
    }

    /// Why a read that was given up for no fault of the connection's fails.
    pub(super) fn read_error(self) -> Error {
        if self == Self::Interrupted {
            Error::Interrupted
        } else {
            Error::ReadTimeout
        }
    }
}

impl Waiter for Shared {
    fn wake(&self) {
        self.ring();
        self.notify_all();
    }
}

impl Contain for Shared {
    fn contain(&self, code: impl FnOnce()) -> bool {
        Self::contain(self, "drop of a payload", code).is_some()
    }

    fn charge(&self, delta: i32) {
        Self::charge(self, delta);
    }

    fn weigh(&self, delta: i32) {
        self.weigh_in(delta);
    }
}

/// The way to the peer.
pub(crate) struct Line<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) socket: &'a Socket,
}

impl Contain for Line<'_> {
    fn contain(&self, code: impl FnOnce()) -> bool {
        Contain::contain(self.shared, code)
    }

    fn charge(&self, delta: i32) {
        self.shared.charge(delta);
    }

    fn weigh(&self, delta: i32) {
        self.shared.weigh_in(delta);
    }
}

impl Sink for Line<'_> {
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.noted(self.socket.send_vectored(slices))
    }

    #[inline]
    fn send_one(&self, bytes: &[u8]) -> io::Result<usize> {
        self.noted(self.socket.send(bytes))
    }
}

impl Line<'_> {
    /// What the kernel takes is activity. An error of a send is why the connection ends. That is
    /// decided before the word says that something is wrong: whoever sees it there would have a less
    /// exact reason.
    #[inline]
    fn noted(&self, sent: io::Result<usize>) -> io::Result<usize> {
        match &sent {
            Ok(_) => self.shared.touch(),
            Err(error) => self.note(error),
        }
        sent
    }

    #[cold]
    fn note(&self, error: &io::Error) {
        if error.kind() != io::ErrorKind::WouldBlock {
            let reason = CloseReason::Error(error.kind());
            self.shared.aside.lock().decide(reason);
        }
    }
}

impl Shared {
    /// A connection with its socket.
    pub(crate) fn open(
        context: Arc<Context>,
        key: usize,
        id: u64,
        socket: Socket,
        peer: Address,
        bits: u32,
    ) -> Arc<Wire> {
        Self::unplugged(context, key, id, peer, bits).plug(socket)
    }

    /// A connection without a socket.
    ///
    /// # Panics
    ///
    /// From 2^32 connections in one context on: each has a descriptor, and those are 31 bits.
    pub(crate) fn unplugged(
        context: Arc<Context>,
        key: usize,
        id: u64,
        peer: Address,
        bits: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            word: Word::new(bits),
            holds: AtomicU32::new(0),
            key: u32::try_from(key).expect("more connections than descriptors"),
            idle_timeout: AtomicU32::new(alarms::steps(context.limits.idle_timeout)),
            held: AtomicU32::new(0),
            last_active: AtomicU64::new(poller::internal::coarse_millis()),
            id,
            peer,
            context,
            outbox: Outbox::default(),
            owner: AtomicBox::empty(),
            bytes_in: AtomicU64::new(0),
            aside: Mutex::default(),
            registration: OnceLock::new(),
        })
    }

    /// Gives the connection its socket.
    pub(super) fn plug(self: &Arc<Self>, socket: Socket) -> Arc<Wire> {
        let operator = ConnectionOperator::new(Arc::clone(self), socket);
        let wire = Arc::new(Wire::new(operator));
        #[cfg(netpoll_leaks)]
        wire.leak.belongs_to(self);
        self.aside.lock().wire = Some(Arc::clone(&wire));
        wire
    }

    /// Index in the context's table of live connections.
    pub(crate) fn key(&self) -> usize {
        self.key as usize
    }

    /// The socket, while the connection has one.
    pub(crate) fn socket(&self) -> Option<Arc<Wire>> {
        self.aside.lock().wire.clone()
    }

    pub(crate) fn drop_socket(&self) {
        let wire = self.aside.lock().wire.take();
        drop(wire);
    }

    pub(crate) fn set_registration(&self, registration: Registration) {
        let fresh = self.registration.set(registration).is_ok();
        debug_assert!(fresh, "a connection is registered once");
    }

    pub(crate) fn registration(&self) -> Option<&Registration> {
        self.registration.get()
    }

    pub(crate) fn hooks(&self) -> Foreign<Arc<dyn Hooks>> {
        self.aside.lock().hooks.clone()
    }

    pub(crate) fn set_hooks(&self, hooks: Option<Arc<dyn Hooks>>) {
        let hooks = hooks.map_or(Foreign::none(), Foreign::new);
        let old = std::mem::replace(&mut self.aside.lock().hooks, hooks);
        drop(old);
    }

    /// Whether no poller knows the connection yet, as in `on_prepare`: nothing would end a wait.
    pub(crate) fn is_unwatched(&self) -> bool {
        // Under shuttle the model plays the poller.
        !cfg!(shuttle) && self.registration().is_none() && !self.is_opening()
    }

    /// Asks the poller to look at this connection again.
    pub(crate) fn wake_poller(&self) {
        if let Some(registration) = self.registration.get() {
            registration.wake();
        }
    }

    /// Posts news for the owner and has the poller schedule it unless it runs anyway.
    pub(crate) fn attend(&self, bits: u32) {
        let before = self.word.set(bits | state::ATTEND);
        if before & (state::RUNNING | state::CLOSED) == 0 {
            self.wake_poller();
        }
    }

    // ---------------------------------------------------------------- sending

    /// Whether more than the low mark is queued.
    pub(super) fn is_above_low_mark(&self) -> bool {
        let queued = self.outbox.queued();
        queued > 0 && queued > self.output_limits().low_mark()
    }

    /// Whether the owner has to wait for the output queue to fall to its low mark. The flusher
    /// wakes the owner then; if the kernel takes nothing for the write timeout, the connection ends.
    #[cold]
    pub(super) fn gate(&self, patience: &Patience) -> bool {
        match self
            .outbox
            .gate(&self.word, self.output_limits().low_mark())
        {
            Gate::Open => return false,
            Gate::Shut => {}
            Gate::Closes => {
                if let Some(until) = patience.until(self.context.limits.write_timeout) {
                    self.stalls_at(until);
                }
            }
        }
        true
    }

    /// Wakes the owner that waits at the gate if the queue is at its low mark.
    pub(super) fn open_gate(&self) {
        let low = self.output_limits().low_mark();
        if self.outbox.open_gate(&self.word, low) {
            self.attend(0);
        }
    }

    pub(crate) fn line<'a>(&'a self, socket: &'a Socket) -> Line<'a> {
        Line {
            shared: self,
            socket,
        }
    }

    /// Drops what is queued: nothing is sent any more.
    pub(crate) fn discard_output(&self) {
        self.outbox.discard(&self.word, self);
        if self.word.has(state::GATED) {
            self.open_gate();
        }
    }

    /// Acts on what became of a flusher's turn; `Share` is left to the caller.
    #[inline]
    pub(crate) fn after_send(self: &Arc<Self>, sent: Sent) {
        if sent == Sent::All {
            // A close or a drain may have waited for just this, or threads.
            let bits = self.word.load();
            if bits & (state::CLOSE | state::DRAIN | state::WRITE_WAIT | state::GATED) == 0 {
                return;
            }
            if bits & (state::CLOSE | state::DRAIN) != 0 {
                self.attend(0);
            }
            if bits & state::GATED != 0 {
                self.open_gate();
            }
            return self.notify(For::Output);
        }
        self.after_part(sent);
    }

    #[cold]
    fn after_part(self: &Arc<Self>, sent: Sent) {
        if self.word.has(state::GATED) {
            self.open_gate();
        }
        match sent {
            Sent::All | Sent::Share => {}
            Sent::Parked => {
                if self.word.has(state::OWNED) {
                    self.watch_output();
                }
            }
            Sent::Starved => self.retry_output(),
            Sent::Failed(kind) => {
                self.fail(CloseReason::Error(kind));
            }
        }
        if !matches!(sent, Sent::Parked | Sent::Starved) {
            self.notify(For::Output);
        }
    }

    /// A connection held by the user is watched for hang-up only until output has to wait.
    pub(super) fn watch_output(&self) {
        let Some(registration) = self.registration.get() else {
            return;
        };
        if let Err(error) = registration.set_interest(Interest::WRITE | Interest::HANGUP) {
            self.fail(CloseReason::Error(error.kind()));
        }
    }

    /// The socket is of no more use: readers see what was received, writers an error.
    pub(crate) fn fail(&self, reason: CloseReason) {
        self.aside.lock().decide(reason);
        self.attend(state::BROKEN | state::PEER_CLOSED);
        if self.word.has(state::OWNED) {
            self.ring();
            self.wake_poller();
        }
        self.notify_all();
    }

    /// The end of a connection in its caller's hands is near: tells the pool that may keep it, on a thread
    /// of the poller's that may run user code. `false`: there is no pool.
    pub(super) fn tell_keeper(self: &Arc<Self>) -> bool {
        let hooks = self.hooks();
        let (true, Some(registration)) = (hooks.is_some(), self.registration()) else {
            return false;
        };
        let shared = Arc::clone(self);
        registration.poller().schedule(Instant::now(), move || {
            if !hooks.let_go(&shared) {
                shared.forget_keeper(&hooks);
                shared.wake_poller();
            }
        });
        true
    }

    /// Forgets those hooks, unless the connection has others meanwhile.
    fn forget_keeper(&self, keeper: &Arc<dyn Hooks>) {
        let mut aside = self.aside.lock();
        let is_kept = aside
            .hooks
            .get_mut()
            .is_some_and(|hooks| Arc::ptr_eq(hooks, keeper));
        let old = is_kept.then(|| std::mem::take(&mut aside.hooks));
        drop(aside);
        drop(old);
    }

    /// Whether nothing is read because memory is short. What a peer that is gone has left is read all the
    /// same: its end comes behind it.
    #[inline]
    pub(crate) fn is_heavy(&self) -> bool {
        let heavy = self.held.load(Ordering::Acquire) & HEAVY != 0;
        (heavy || self.context.memory.is_full())
            && !self.word.has(state::PEER_CLOSED | state::BROKEN)
            && self.stays_heavy()
    }

    /// The connection may be read again.
    pub(crate) fn lighten(&self) {
        if self.held.fetch_and(!HEAVY, Ordering::AcqRel) & HEAVY != 0 {
            self.attend(0);
            self.notify(For::Input);
        }
    }

    // ---------------------------------------------------------------- waiting

    /// Waits until `ready` is true, the deadline passes, the wait is interrupted, or others need the
    /// thread.
    ///
    /// `ready` is asked under the waiters' lock, after the wait bit was set: whoever changes
    /// what it looks at must do so before [`Self::notify`].
    pub(crate) fn wait(
        self: &Arc<Self>,
        what: For,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> bool,
    ) -> Waited {
        let wait = poller::begin_wait(Arc::clone(self) as Arc<dyn Waiter>);
        let waiting = self.waiting();
        let mut waiters = waiting.waiters.lock();
        self.register_waiter(&mut waiters, what);
        let begun = waiters.interrupts.rounds(what);
        let mut interrupted = !ready() && waiters.interrupts.take(what);
        let mut in_time = true;
        while !interrupted && !ready() {
            if !in_time || wait.was_ended() {
                break;
            }
            match deadline {
                None => waiting.changed.wait(&mut waiters),
                Some(deadline) => {
                    in_time = !waiting
                        .changed
                        .wait_until(&mut waiters, deadline)
                        .timed_out();
                }
            }
            interrupted = waiters.interrupts.has_ended(what, begun);
        }
        let done = in_time || ready();
        self.forget_waiter(&mut waiters, what);
        drop(waiters);
        if wait.finish() {
            Waited::Ended
        } else if interrupted {
            Waited::Interrupted
        } else {
            Waited::in_time(done)
        }
    }

    fn register_waiter(&self, waiters: &mut MutexGuard<'_, Waiters>, what: For) {
        let (count, bit) = waiters.of(what);
        *count += 1;
        self.word.set(bit);
    }

    fn forget_waiter(&self, waiters: &mut MutexGuard<'_, Waiters>, what: For) {
        let (count, bit) = waiters.of(what);
        *count -= 1;
        if !waiters.any(bit) {
            self.word.clear(bit);
        }
    }

    /// Wakes the threads that wait for `what`, if there are any.
    pub(crate) fn notify(&self, what: For) {
        let bit = match what {
            For::Input => state::READ_WAIT,
            For::Output | For::End => state::WRITE_WAIT,
        };
        if self.word.has(bit) {
            self.notify_all();
        }
    }

    pub(crate) fn notify_all(&self) {
        // Who makes it after this look sees what the caller did before.
        let waiting = self.aside.lock().waiting.clone();
        if let Some(waiting) = waiting {
            let waiters = waiting.waiters.lock();
            waiting.changed.notify_all();
            drop(waiters);
        }
    }

    fn waiting(&self) -> Arc<Waiting> {
        self.aside.lock().waiting()
    }

    /// Waits for input on the descriptor itself, until another thread ends the connection or interrupts
    /// the wait, others need this thread, or the deadline.
    pub(crate) fn wait_descriptor(
        self: &Arc<Self>,
        socket: &Socket,
        deadline: Option<Instant>,
    ) -> io::Result<Waited> {
        let wait = poller::begin_wait(Arc::clone(self) as Arc<dyn Waiter>);
        let (waiting, bell) = (self.waiting(), Bell::mine());
        let begun = {
            let mut waiters = waiting.waiters.lock();
            let taken = waiters.interrupts.take(For::Input);
            socket.set_interrupted(waiters.interrupts.has_kept_read());
            if taken {
                return Ok(Waited::Interrupted);
            }
            // A thread that ends the connection, or the wait, from here on sees the bell.
            waiters.bell.clone_from(&bell);
            waiters.polling = true;
            waiters.interrupts.rounds(For::Input)
        };
        let ready = match &bell {
            Some(bell) => self.wait_with(bell, &wait, socket.as_fd(), deadline),
            None => {
                let interrupted = || {
                    let mut waiters = waiting.waiters.lock();
                    waiters.interrupts.has_ended(For::Input, begun)
                };
                self.wait_in_slices(&wait, socket.as_fd(), deadline, interrupted)
            }
        };
        let interrupted = {
            let mut waiters = waiting.waiters.lock();
            waiters.bell = None;
            waiters.polling = false;
            waiters.interrupts.has_ended(For::Input, begun)
        };
        let ready = ready?;
        Ok(if wait.finish() {
            Waited::Ended
        } else if interrupted {
            Waited::Interrupted
        } else {
            Waited::in_time(ready)
        })
    }

    fn wait_with(
        &self,
        bell: &Arc<Bell>,
        wait: &poller::Waiting,
        fd: BorrowedFd<'_>,
        deadline: Option<Instant>,
    ) -> io::Result<bool> {
        let (ready, rung) = if self.is_wait_over(wait) {
            (Readiness::EMPTY, true)
        } else {
            poller::wait_ready_or(fd, Interest::READ, bell.as_fd(), deadline)?
        };
        if rung {
            bell.hush();
        }
        Ok(rung || !ready.is_empty())
    }

    /// Without a descriptor for a bell the wait looks up now and then.
    fn wait_in_slices(
        &self,
        wait: &poller::Waiting,
        fd: BorrowedFd<'_>,
        deadline: Option<Instant>,
        interrupted: impl Fn() -> bool,
    ) -> io::Result<bool> {
        loop {
            let slice = Instant::now() + SLICE;
            let until = deadline.map_or(slice, |deadline| deadline.min(slice));
            if !poller::wait_ready(fd, Interest::READ, Some(until))?.is_empty() {
                return Ok(true);
            }
            if self.is_wait_over(wait) || interrupted() {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(false);
            }
        }
    }

    fn is_wait_over(&self, wait: &poller::Waiting) -> bool {
        self.word.has(state::BROKEN) || self.word.ended() || wait.was_ended()
    }

    /// Ends a wait on the descriptor, if there is one.
    pub(crate) fn ring(&self) {
        let waiting = self.aside.lock().waiting.clone();
        let bell = waiting.and_then(|waiting| waiting.waiters.lock().bell.clone());
        if let Some(bell) = bell {
            bell.ring();
        }
    }
}

impl Waiters {
    fn of(&mut self, what: For) -> (&mut u32, u32) {
        match what {
            For::Input => (&mut self.reading, state::READ_WAIT),
            For::Output => (&mut self.writing, state::WRITE_WAIT),
            For::End => (&mut self.ending, state::WRITE_WAIT),
        }
    }

    /// Whether threads wait that the bit stands for.
    fn any(&self, bit: u32) -> bool {
        if bit == state::READ_WAIT {
            self.reading > 0
        } else {
            self.writing > 0 || self.ending > 0
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id)
            .field("peer", &self.peer)
            .field("state", &self.word)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::{client::Dialer, error::Error};
    use std::{
        io::Write,
        net::Shutdown,
        os::{fd::OwnedFd, unix::net::UnixStream},
    };

    #[test]
    fn a_close_by_the_peers_end_is_the_end_of_input() {
        let (ours, peer) = UnixStream::pair().unwrap();
        let mut conn = Dialer::new().adopt(OwnedFd::from(ours)).unwrap();
        (&peer).write_all(b"end").unwrap();
        conn.fill(3).unwrap();
        // As its poller does, which takes the owner's role only afterwards.
        conn.shared().close_with(CloseReason::Peer);
        for _ in 0..2 {
            let error = conn.fill(5).unwrap_err();
            let (wanted, available) = (5, 3);
            let end = Error::PeerClosed { wanted, available };
            assert_eq!(Error::from_io(&error), Some(end));
        }
        assert_eq!(conn.next(3).unwrap(), b"end");
        assert!(!conn.try_fill(1).unwrap());
    }

    #[test]
    fn a_send_that_fails_is_the_reason_before_anybody_sees_that_it_failed() {
        let (ours, _peer) = UnixStream::pair().unwrap();
        let conn = Dialer::new().adopt(OwnedFd::from(ours)).unwrap();
        let shared = conn.shared();
        let socket = shared.socket().unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let line = shared.line(&socket);
        let broken = Some(CloseReason::Error(io::ErrorKind::BrokenPipe));
        for sent in [line.send_one(b"x"), line.send(&[IoSlice::new(b"x"); 2])] {
            assert_eq!(sent.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            assert_eq!(shared.aside.lock().reason(), broken);
            assert!(!shared.word.has(state::BROKEN));
        }
    }
}

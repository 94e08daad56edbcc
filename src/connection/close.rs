//! How a connection ends: who decides why, who runs the callbacks, who lets go of the socket.
//!
//! The first reason wins. The end itself ([`conclude`]) is reached once, by the thread that has
//! the owner's role, and the role is never given back afterwards. It goes
//! `on_disconnect` -> `CLOSED` -> close callbacks -> FIN or reset -> descriptor.

use super::{
    aside::Callback,
    linger,
    process::{Inside, Owner, take_turn},
    queue::Loss,
    shared::{For, Shared, Waited},
    state::{self, ConnectionState},
};
use crate::{
    error::{CloseReason, Error},
    foreign::{self, Foreign},
    net::Socket,
    sync::Ordering,
    trace,
};
use poller::internal::Panicked;
use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt, io,
    net::Shutdown,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

impl Shared {
    /// Asks for a graceful close: what was flushed is sent, then FIN.
    pub(crate) fn close_with(&self, reason: CloseReason) {
        self.end_with(reason, state::CLOSE);
    }

    /// Asks for an immediate close: what is queued is dropped, the peer sees a reset.
    pub(crate) fn abort_with(&self, reason: CloseReason) {
        self.end_with(reason, state::ABORT);
    }

    fn end_with(&self, reason: CloseReason, bit: u32) {
        if self.context.group.is_inherited() {
            // The connection is another process's. Locks that were held at the fork stay so.
            return;
        }
        {
            let mut aside = self.aside.lock();
            if aside.over {
                return;
            }
            aside.decide(reason);
        }
        let before = self.word.set(bit);
        if before & (state::CLOSED | bit) == 0 {
            if bit == state::ABORT {
                self.discard_output();
                // The peer sees it at once, whatever callback is under way.
                if let Some(socket) = self.socket() {
                    self.reset(&socket);
                }
            }
            self.attend(0);
            if before & state::CONNECTED == 0 {
                self.cancel_opening();
            }
            if before & state::OWNED != 0 {
                self.ring();
                // The owner may do nothing with it: its poller ends it.
                self.wake_poller();
            }
        }
        self.notify_all();
    }

    /// A graceful close whose FIN does not wait for the owner's turn, if nothing is being sent. The
    /// caller has the owner's role.
    pub(super) fn end_output(&self, reason: CloseReason, socket: &Socket) {
        self.aside.lock().decide(reason);
        self.word.set(state::CLOSE);
        let whole = !self
            .word
            .has(state::POISONED | state::BROKEN | state::ABORT);
        if whole && self.word.try_hold_flush() {
            self.word.set(state::SEALED);
            if let Err(error) = socket.shutdown(Shutdown::Write) {
                trace::debug!("connection {}: the end of output: {error}", self.id);
            }
        }
    }

    /// Whether every read and write fails and the callbacks have been called or are being called.
    pub(crate) fn is_over(&self) -> bool {
        self.word.has(state::CLOSED)
    }

    /// The loop drains: the connection ends as soon as nothing is in flight.
    pub(crate) fn begin_drain(&self) {
        let before = self.word.set(state::DRAIN | state::ATTEND);
        // One that lingers waits for less from now on.
        if before & state::RUNNING == 0 || before & state::CLOSED != 0 {
            self.wake_poller();
        }
    }

    /// A forced shutdown: the connection ends now, and so does its lingering.
    pub(crate) fn force(&self) {
        self.abort_with(CloseReason::Shutdown);
        if self.word.set(state::ABORT) & state::CLOSED != 0 {
            self.wake_poller();
        }
    }

    /// Drops what the kernel has not sent; the peer sees a reset.
    pub(super) fn reset(&self, socket: &Socket) {
        if let Err(error) = socket.reset() {
            trace::debug!("connection {}: reset: {error}", self.id);
        }
    }

    /// Has `callback` called when the connection is over, at once if it is. Returns its number.
    fn on_close(self: &Arc<Self>, callback: Callback) -> u64 {
        // A plain counter: only the numbers of one connection are compared, which its lock orders. Loom
        // has no static atomics.
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let mut aside = self.aside.lock();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        if aside.over {
            drop(aside);
            Calling::call(self, callback);
        } else {
            aside.add_callback(number, callback);
            self.word.set(state::TAILORED);
        }
        number
    }

    /// Forgets what the last user of a pooled connection has set.
    pub(crate) fn renew(&self) {
        if self.word.has(state::TAILORED) {
            self.word.clear(state::TAILORED);
            let callbacks = {
                let mut aside = self.aside.lock();
                aside.set_output_limits(None);
                aside.take_callbacks()
            };
            self.clear_interrupts();
            // Dropping them is user code.
            for (_, callback) in callbacks {
                self.contain("drop of a close callback", move || drop(callback));
            }
        }
        self.reset_idle_timeout();
    }

    /// Calls the close callbacks, in the order in which they were added.
    fn call_back(&self) {
        let _calling = Calling::begin();
        loop {
            let callback = self.aside.lock().next_callback();
            match callback {
                Some(callback) => self.run_callback(callback),
                None => return,
            }
        }
    }

    fn run_callback(&self, mut callback: Callback) {
        let reason = self.aside.lock().reason().unwrap_or(CloseReason::Local);
        self.contain("close callback", || {
            if let Some(callback) = callback.take() {
                callback(reason);
            }
        });
    }

    /// Drops a close callback that has not been called.
    fn forget_callback(&self, number: u64) -> bool {
        let callback = self.aside.lock().remove_callback(number);
        let found = callback.is_some();
        self.contain("drop of a close callback", || drop(callback));
        found
    }

    /// Runs user code; a panic is counted, logged and turned into `None`.
    pub(crate) fn contain<T>(&self, what: &str, code: impl FnOnce() -> T) -> Option<T> {
        let _inside = Inside::enter();
        let before = foreign::panics();
        let result = self.caught(what, code);
        let dropped = foreign::panics_since(before);
        if dropped > 0 {
            self.count_panics(dropped);
        }
        result
    }

    /// Logs and drops the error of a callback, whose text and drop are the user's code.
    #[cold]
    pub(super) fn forget_error(&self, what: &str, error: io::Error) {
        self.contain("the error of a callback", || {
            let error = Foreign::new(error);
            trace::debug!("connection {}: {what}: {}", self.id, *error);
        });
    }

    /// As [`contain`](Self::contain), for a caller that has [entered](Inside) already.
    #[inline]
    pub(crate) fn caught<T>(&self, what: &str, code: impl FnOnce() -> T) -> Option<T> {
        poller::internal::contained(code)
            .map_err(|thrown| self.note_panic(what, thrown))
            .ok()
    }

    #[cold]
    fn note_panic(&self, what: &str, thrown: Panicked) {
        self.count_panics(1);
        let text = thrown.text();
        trace::error!("connection {}: panic in {what}: {text}", self.id);
        drop(thrown);
    }

    #[cold]
    fn count_panics(&self, n: u64) {
        self.context.counters.panics.fetch_add(n, Ordering::Relaxed);
    }

    /// The result that [`CloseWaiter`] gives: `None` while the connection is not over.
    fn outcome(&self) -> Option<io::Result<()>> {
        let mut aside = self.aside.lock();
        if !aside.over {
            return None;
        }
        // A flusher whom the end overtook still has to count what it holds; it says when it did.
        if !aside.settled {
            if self.word.load() & (state::FLUSHING | state::HELD) == state::FLUSHING {
                return None;
            }
            aside.settled = true;
        }
        let reason = aside.reason().unwrap_or(CloseReason::Local);
        Some(match reason {
            CloseReason::Local | CloseReason::Abort => Ok(()),
            other => Err(Error::Closed(other).into()),
        })
    }
}

/// Close callbacks that wait for the present one to return.
type Deferred = VecDeque<(Arc<Shared>, Callback)>;

thread_local! {
    /// `Some`: this thread calls close callbacks, and these are due when the present one has returned.
    static DUE: RefCell<Option<Deferred>> = const { RefCell::new(None) };
}

/// This thread calls close callbacks. Those that become due meanwhile, because a callback adds them, are
/// called by a loop, so that the stack does not grow with a chain of them.
pub(super) struct Calling {
    outermost: bool,
}

impl Calling {
    fn begin() -> Self {
        let begin = |due: &RefCell<Option<_>>| {
            let mut due = due.borrow_mut();
            let outermost = due.is_none();
            due.get_or_insert_default();
            outermost
        };
        Self {
            // A thread that ends has no memory of its own any more: it calls at once what is due.
            outermost: DUE.try_with(begin).unwrap_or(false),
        }
    }

    /// Whether the calling thread is inside of a close callback.
    pub(super) fn is_under_way() -> bool {
        DUE.try_with(|due| due.borrow().is_some()).unwrap_or(false)
    }

    /// Calls a callback of a connection that is over, after the one that this thread is inside of.
    fn call(shared: &Arc<Shared>, callback: Callback) {
        let mut callback = Some((Arc::clone(shared), callback));
        let defer = |due: &RefCell<Option<VecDeque<_>>>| {
            if let Some(due) = &mut *due.borrow_mut() {
                due.extend(callback.take());
            }
        };
        let _ = DUE.try_with(defer);
        if let Some((shared, callback)) = callback {
            let _calling = Self::begin();
            shared.run_callback(callback);
        }
    }

    /// The next callback that is due; after the last one this thread calls none.
    fn next() -> Option<(Arc<Shared>, Callback)> {
        DUE.with_borrow_mut(|due| {
            let next = due.as_mut().and_then(VecDeque::pop_front);
            if next.is_none() {
                *due = None;
            }
            next
        })
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        if self.outermost {
            while let Some((shared, callback)) = Self::next() {
                shared.run_callback(callback);
            }
        }
    }
}

/// The executor dropped a turn on a thread that polls: a thread that the poller gives for it makes the turn.
/// The caller has the owner's role.
#[cold]
pub(crate) fn pass_on_turn(shared: &Arc<Shared>) {
    shared.aside.lock().dropped = true;
    shared.word.set(state::ATTEND);
    if shared.word.release() & state::BROKEN == 0 {
        return shared.wake_poller();
    }
    // The poller may be gone.
    if shared.word.acquire() {
        take_turn(shared);
    }
}

/// Ends the connection. The caller has the owner's role and keeps it for good.
pub(crate) fn conclude(shared: &Arc<Shared>, owner: Box<Owner>, reason: CloseReason) {
    end(shared, owner, reason, false);
}

/// As [`conclude`]; a descriptor that does not linger is closed when this returns, unless a thread of its
/// poller's looks at it.
pub(super) fn conclude_here(shared: &Arc<Shared>, owner: Box<Owner>, reason: CloseReason) {
    end(shared, owner, reason, true);
}

fn end(shared: &Arc<Shared>, owner: Box<Owner>, reason: CloseReason, here: bool) {
    // Output that was cut must not look complete. What is lost from here on are whole messages
    // that came too late, and takes nothing from those before.
    let lost = shared.outbox.lost().bytes > 0;
    let cut = lost || shared.word.has(state::POISONED) || shared.is_short();
    if cut && was_given_up(shared, reason) {
        let counters = &shared.context.counters;
        counters.cut.fetch_add(1, Ordering::Relaxed);
    }
    // A value that the connection was taken out of knows nothing of the input's end.
    let end = owner.conn.rx.end.filter(|_| !owner.conn.is_taken());
    finish(shared, owner, reason);
    linger::let_go(shared, end, cut, here);
    shared.context.connections.ended(shared);
}

/// Whether output was lost because the peer took it too slowly: not by a failure, and not as asked.
fn was_given_up(shared: &Shared, reason: CloseReason) -> bool {
    let reason = shared.aside.lock().reason().unwrap_or(reason);
    match reason {
        CloseReason::Abort | CloseReason::Error(_) | CloseReason::Poller => false,
        CloseReason::Shutdown => !shared.word.has(state::ABORT),
        _ => true,
    }
}

/// The callbacks of the end; the socket stays.
pub(crate) fn finish(shared: &Arc<Shared>, mut owner: Box<Owner>, reason: CloseReason) {
    finish_with(shared, reason, |reason| {
        owner.disconnect(reason);
        move || drop(owner)
    });
}

/// As [`finish`]: `tell` says to the handler that it is over, and returns what drops what it has.
pub(super) fn finish_with<D: FnOnce()>(
    shared: &Arc<Shared>,
    reason: CloseReason,
    tell: impl FnOnce(CloseReason) -> D,
) {
    let reason = shared.aside.lock().decide(reason);
    shared.word.set(state::CLOSE);
    let loss = shared.outbox.lost();
    if loss != Loss::default() {
        trace::debug!(
            "connection {}: {} bytes in {} messages were not sent",
            shared.id,
            loss.bytes,
            loss.messages
        );
    }
    if reason == CloseReason::Overload {
        let counters = &shared.context.counters;
        counters.overloaded.fetch_add(1, Ordering::Relaxed);
    }
    let left = tell(reason);
    shared.word.set(state::CLOSED | state::CONNECTED);
    // What was queued too late to go out is counted as lost, not kept.
    shared.discard_output();
    // User code runs in the drops too; nothing is locked here.
    shared.contain("drop of connection state", left);
    shared.call_back();
    shared.contain("drop of handler", || shared.set_hooks(None));
    shared.notify_all();
    trace::debug!("connection {} closed: {reason}", shared.id);
}

/// A close callback that was added: see [`ConnectionHandle::on_close`](crate::ConnectionHandle::on_close).
/// Dropping it changes nothing; it keeps neither the connection nor the callback.
#[derive(Clone)]
pub struct CloseCallback {
    shared: Weak<Shared>,
    number: u64,
}

impl CloseCallback {
    pub(crate) fn add(
        shared: &Arc<Shared>,
        callback: impl FnOnce(CloseReason) + Send + 'static,
    ) -> Self {
        Self {
            shared: Arc::downgrade(shared),
            number: shared.on_close(Foreign::new(Box::new(callback))),
        }
    }

    /// Drops the callback uncalled. `false` if it has been called or is being called, or was removed
    /// before. Never waits.
    pub fn remove(&self) -> bool {
        let shared = self.shared.upgrade();
        shared.is_some_and(|shared| shared.forget_callback(self.number))
    }
}

impl fmt::Debug for CloseCallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CloseCallback").field(&self.number).finish()
    }
}

/// Tells when a connection is over, and how it ended.
///
/// Obtained from [`ConnectionHandle::done`](crate::ConnectionHandle::done); any number of
/// threads may wait. Once it has a result every read and write of the connection fails,
/// `on_disconnect` has returned, and what was sent or lost before is in the connection's figures;
/// close callbacks may still be running.
#[derive(Clone)]
pub struct CloseWaiter {
    pub(crate) shared: Arc<Shared>,
}

impl CloseWaiter {
    /// Waits until the connection is over.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] with the reason unless this side closed or aborted it;
    /// [`Error::Overloaded`] if the calling handler's thread was needed by others;
    /// [`Error::WouldDeadlock`] on a poller's thread that must not wait (inline dispatch).
    pub fn wait(&self) -> io::Result<()> {
        self.wait_until(None).unwrap_or(Ok(()))
    }

    /// Waits until the connection is over, at most `timeout`; `None` if it is still open then.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<io::Result<()>> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    /// The result if the connection is over. Never waits.
    pub fn poll(&self) -> Option<io::Result<()>> {
        self.shared.outcome()
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Option<io::Result<()>> {
        if let Some(result) = self.poll() {
            return Some(result);
        }
        if poller::is_polling_thread() {
            return Some(Err(Error::WouldDeadlock.into()));
        }
        let shared = &self.shared;
        match shared.wait(For::End, deadline, || shared.outcome().is_some()) {
            Waited::Ended => Some(Err(Error::Overloaded.into())),
            Waited::Ready | Waited::Late | Waited::Interrupted => self.poll(),
        }
    }
}

impl fmt::Debug for CloseWaiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let over = self.shared.word.state() == ConnectionState::Disconnected;
        f.debug_struct("CloseWaiter")
            .field("id", &self.shared.id)
            .field("over", &over)
            .finish()
    }
}

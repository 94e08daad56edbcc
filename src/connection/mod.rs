//! Connections: the type users hold and everything behind it.
//!
//! The way of a byte: `operator` (readiness becomes news) -> `process` (takes the owner's role)
//! -> `input` (receives) -> the handler -> `tx` (private output) -> `output` (to the kernel).

mod alarms;
mod aside;
mod close;
mod handle;
mod input;
mod interrupt;
mod limits;
mod linger;
#[cfg(all(test, loom))]
mod models;
mod opening;
mod operator;
mod output;
mod patience;
mod process;
mod queue;
mod reader;
#[cfg(all(test, shuttle))]
mod scenarios;
mod shared;
mod spare;
mod split;
mod start;
mod state;
mod streamed;
#[cfg(all(test, not(any(loom, shuttle))))]
mod transitions;
mod tx;
mod wake;
mod writer;

pub(crate) use close::pass_on_turn;
pub use close::{CloseCallback, CloseWaiter};
pub use handle::{ConnectionHandle, PendingReply};
pub use reader::TextLine;
pub use split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
pub use state::ConnectionState;

pub(crate) use alarms::COARSE;
pub(crate) use input::End;
pub(crate) use opening::{Attempt, not_opened, opened_for_handler, opened_for_owner, opening};
pub(crate) use operator::Wire;
pub(crate) use process::{in_callback, run, take_turn};
pub(crate) use shared::{For, Shared};
pub(crate) use start::{Remains, accepted, dialled};
pub(crate) use state::{
    ABORT, BRIEF, BROKEN, CLOSE, CLOSED, DRAIN, FLUSHING, HELD, HUNG_UP, PIPED, QUEUED, READABLE,
    RUNNING, WRITABLE, WROTE,
};
pub(crate) use wake::Bell;

use crate::{
    config::OnFull,
    error::{CloseReason, Error},
    foreign::Foreign,
    handler::{Handler, Session, sessions},
    net::{Address, Peek, Socket},
    stats::ConnectionStats,
    sync::Ordering,
    trace,
};
use bytes::Bytes;
use input::Rx;
use linkbuffer::{LengthSlot, LinkBuffer, RawLengthSlot, Writer};
use patience::Patience;
use reader::{reading, reading_traits};
use std::{
    any::Any,
    fmt,
    io::{self, IoSlice},
    net::Shutdown,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};
use tx::Tx;
use writer::{writing, writing_traits};

/// Shorter messages are copied when they are forwarded, see [`Connection::forward`].
const MAY_MOVE: usize = 512;

/// One connection, for whoever may read and write it now.
///
/// A handler gets `&mut Connection` in its callbacks; a dialled connection without a handler is
/// owned by the caller. Reading operations consume from what has arrived and receive more as
/// needed; writing operations collect output that one [`flush`](Self::flush) sends.
///
/// Operations without a prefix may wait, at most the read or write timeout; `try_` operations
/// never wait. In callbacks [`flush`](Self::flush) does not wait for the peer either. Borrowed views end
/// at the next call on the connection, which the compiler checks; owned ones
/// ([`next_bytes`](Self::next_bytes), [`slice`](Self::slice)) stay valid as long as they are kept.
///
/// Dropping an owned connection closes it gracefully.
///
/// # What was written through `io::Write`
///
/// The writing operations ([`write_slice`](Self::write_slice), [`malloc`](Self::malloc),
/// [`append`](Self::append) and so on) send nothing before a [`flush`](Self::flush); what was not flushed
/// when the connection ends is dropped. What is written through [`std::io::Write`] (`write_all`, `write!`,
/// [`std::io::copy`]) is sent soon, flushed or not:
///
/// * by the write that finds the [write buffer](crate::EventLoopBuilder::write_buffer) full (64 KiB), before it takes
///   more. It waits and fails as [`flush`](Self::flush) does;
/// * when the callback returns, with Ok or an error (not by a panic);
/// * before a reading call of this connection that may have to wait, and, if the connection is one's own,
///   by a `try_` call that finds too little;
/// * by the next write, where this thread has read through [`std::io::Read`] all that another connection,
///   or the other half of this one, has to read: so `io::copy` passes on what comes while it waits for more;
/// * when the connection is closed in order by its owner, dropped, or its sending side shut down.
///
/// It goes out with all that was written before it by the writing operations, whose bytes come first; what
/// was written behind it waits for its flush. Behind room that was lent (`malloc`, a slot) nothing is sent
/// before a flush, or before the output limit is reached: that room may still be filled in or cut.
pub struct Connection {
    pub(crate) rx: Rx,
    pub(crate) tx: Tx,
    /// Made when the first handler is replaced, or a value is kept.
    succession: Option<Box<Succession>>,
    /// Declared last: the connection is given up when everything else is gone.
    guard: Guard,
}

impl Connection {
    fn new(wire: &Arc<Wire>) -> Self {
        Self {
            rx: Rx::new(wire),
            tx: Tx::new(wire),
            succession: None,
            guard: Guard {
                wire: Some(Arc::clone(wire)),
            },
        }
    }

    reading!();
    writing!();

    /// The connection's number, unique in the process; it is in every log line about it.
    pub fn id(&self) -> u64 {
        self.rx.shared.id
    }

    /// Where the peer is: the address that answered, or, of a dial by name that was
    /// [started](crate::Dialer::start_connection), that name.
    pub fn peer_addr(&self) -> &Address {
        &self.rx.shared.peer
    }

    /// Our own address: one `getsockname(2)`.
    ///
    /// # Errors
    ///
    /// What the system reports.
    pub fn local_addr(&self) -> io::Result<Address> {
        self.rx.socket.local_address()
    }

    /// Where the connection is in its life.
    pub fn state(&self) -> ConnectionState {
        self.rx.shared.word.state()
    }

    /// Whether the connection is open and the peer has not closed its side, as far as is known:
    /// the poller notices a FIN or a reset while nobody reads. A load; never waits.
    ///
    /// A peer that vanished without a word is noticed by keepalive or the user timeout only, see
    /// [`SocketOptions`](crate::SocketOptions).
    pub fn is_active(&self) -> bool {
        self.rx.shared.is_active()
    }

    /// Whether the event loop of the connection shuts down: the time to tell the peer to go elsewhere.
    /// Never true for a connection of a dialer. A load; never waits.
    pub fn is_shutting_down(&self) -> bool {
        self.rx.shared.context.is_draining()
    }

    /// A handle for other threads.
    pub fn handle(&self) -> ConnectionHandle {
        ConnectionHandle::new(Arc::clone(&self.rx.shared))
    }

    /// Figures of this connection.
    pub fn stats(&self) -> ConnectionStats {
        self.rx.shared.stats()
    }

    /// Closes the connection once neither side sent or received anything for this long; `None`
    /// never does. Checked by the poller with a precision of its timer tick, and only after
    /// pending input was seen. See [`EventLoopBuilder::idle_timeout`](crate::EventLoopBuilder::idle_timeout). On a connection
    /// of one's own a call that waits fails then, with [`Error::Closed`], and so does the next call of an
    /// owner who does nothing with it.
    pub fn set_idle_timeout(&mut self, timeout: Option<Duration>) {
        self.rx.shared.set_idle_timeout(timeout);
    }

    /// Limits the bytes that may be queued behind a full socket from now on, and says what happens when
    /// that is reached, in the place of the loop's [`output_limit`](crate::EventLoopBuilder::output_limit) or the
    /// dialer's. What is queued already stays; callers that wait for room look again.
    ///
    /// ```no_run
    /// # use netpoll::{Connection, OnFull};
    /// # fn greet(conn: &mut Connection) -> std::io::Result<()> {
    /// // A viewer that cannot follow is dropped instead of slowed down.
    /// conn.set_output_limit(256 << 10, OnFull::Close);
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_output_limit(&mut self, bytes: usize, on_full: OnFull) {
        self.rx.shared.set_output_limits(|limits| {
            limits.bytes = bytes;
            limits.on_full = on_full;
        });
    }

    /// Limits the messages that may be queued behind a full socket from now on, in the place of the
    /// loop's [`output_messages`](crate::EventLoopBuilder::output_messages) or the dialer's.
    pub fn set_output_messages(&mut self, messages: usize) {
        self.rx
            .shared
            .set_output_limits(|limits| limits.messages = messages);
    }

    /// Keeps a value for a later callback of this connection, in the place of one that was kept before:
    /// what [`on_prepare`](Handler::on_prepare) found out for [`on_connect`](Handler::on_connect), which
    /// makes it, or what it needs of it, the connection's state. It may also be set before
    /// [`attach`](Self::attach), or for the next handler before [`set_handler`](Self::set_handler); it stays
    /// with the connection until it is [taken](Self::take_value), and is dropped at the end at the latest.
    ///
    /// ```
    /// use netpoll::{Connection, Handler};
    /// use std::io;
    ///
    /// struct Policy {
    ///     may_write: bool,
    /// }
    ///
    /// struct Service;
    ///
    /// impl Handler for Service {
    ///     type State = Policy;
    ///
    ///     fn on_prepare(&self, conn: &mut Connection) -> io::Result<()> {
    ///         let local = conn.peer_addr().as_path().is_some();
    ///         conn.set_value(Policy { may_write: local });
    ///         Ok(())
    ///     }
    ///
    ///     fn on_connect(&self, conn: &mut Connection) -> io::Result<Policy> {
    ///         conn.take_value().ok_or_else(|| io::Error::other("not prepared"))
    ///     }
    ///
    ///     fn on_request(&self, conn: &mut Connection, policy: &mut Policy) -> io::Result<()> {
    ///         # let _ = (conn, policy.may_write);
    ///         // ...
    ///         Ok(())
    ///     }
    /// }
    /// ```
    pub fn set_value<T: Any + Send>(&mut self, value: T) {
        let value: Box<dyn Any + Send> = Box::new(value);
        self.succession.get_or_insert_default().value = Foreign::new(value);
    }

    /// The value that was kept by [`set_value`](Self::set_value), if it is of this type; one of another type
    /// stays.
    pub fn take_value<T: Any + Send>(&mut self) -> Option<T> {
        let kept = &mut self.succession.as_mut()?.value;
        if !kept.get_mut()?.is::<T>() {
            return None;
        }
        let value = kept.take()?.downcast().ok()?;
        Some(*value)
    }

    /// Replaces the handler, from inside a callback. When the callback returns the new handler's
    /// `on_connect` makes its state, and it sees whatever is buffered. The old state is kept
    /// until the end and its `on_disconnect` is called then.
    ///
    /// To give a handler to a connection of your own use [`attach`](Self::attach).
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] outside of a callback.
    pub fn set_handler(&mut self, handler: impl Handler) -> io::Result<()> {
        if self.rx.shared.word.has(state::OWNED) {
            let text = "set_handler works in callbacks: attach a handler to your own connection";
            return Err(Error::Unsupported(text).into());
        }
        self.succession.get_or_insert_default().next = Some(sessions(handler)());
        Ok(())
    }

    /// Gives the connection to a handler and the pollers. Buffered data is seen by the handler.
    ///
    /// # Errors
    ///
    /// What `on_prepare` returns, [`Error::Closed`] on an ended connection, or what the system
    /// reports; the connection is closed then.
    pub fn attach(self, handler: impl Handler) -> io::Result<ConnectionHandle> {
        self.attach_session(sessions(handler)())
    }

    pub(crate) fn attach_session(self, session: Box<dyn Session>) -> io::Result<ConnectionHandle> {
        start::attach(self, session)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.rx.shared
    }

    /// Takes the connection out of its handler, from inside `on_connect` or `on_request`, with
    /// what was received and written: for an upgrade to another protocol, a relay, or a thread
    /// of its own. The handler's `on_disconnect` and the close callbacks run when the taken
    /// connection ends, and never before this callback has returned.
    ///
    /// Every further call on `self` fails, and the handler is not called for requests any more. What
    /// the callback returns, or a panic of it, does nothing to the taken connection.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] outside of these callbacks, [`Error::Closed`] on an ended
    /// connection, or what the system reports.
    pub fn hijack(&mut self) -> io::Result<Self> {
        start::hijack(self)
    }

    /// Whether the connection was taken out of this value.
    fn is_taken(&self) -> bool {
        self.guard.wire.is_none()
    }

    /// Shuts one or both directions down, as `shutdown(2)`. After `Write` the peer sees the end
    /// of our output while we may go on reading; flush first, what is queued or unflushed cannot
    /// be sent any more. What was written through [`std::io::Write`] is flushed by this.
    ///
    /// # Errors
    ///
    /// [`Error::OutputFull`] if output is still queued or unflushed, the errors of
    /// [`flush`](Self::flush), or what the system reports.
    pub fn shutdown(&mut self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.tx.send_streamed()?;
        }
        let unflushed = self.tx.pending();
        if how != Shutdown::Read && unflushed > 0 {
            return Err(Error::OutputFull {
                queued: unflushed,
                limit: 0,
            }
            .into());
        }
        self.rx.shared.shut_down(how)
    }

    /// Moves the next `n` bytes of input to the output, as `append(slice(n)?)` does, without a
    /// buffer in between: what an echo or a proxy does with a message. Waits as
    /// [`fill`](Self::fill) does; the bytes go out with the next [`flush`](Self::flush).
    ///
    /// Fewer than 512 bytes are copied, more are linked; messages that were received together are
    /// sent from one piece again.
    ///
    /// # Errors
    ///
    /// As [`fill`](Self::fill), or [`Error::Closed`] if nothing may be written any more.
    #[inline]
    pub fn forward(&mut self, n: usize) -> io::Result<()> {
        self.before(|rx| rx.len() >= n)?;
        self.rx.fill(n)?;
        self.tx.check()?;
        if n >= MAY_MOVE && self.tx.buffer.is_none() {
            // Nearly always a message is all there is, and its buffer becomes the output.
            self.tx.buffer = self.rx.give_up(n);
            if self.tx.buffer.is_some() {
                return Ok(());
            }
        }
        let output = self.tx.room_for_link(n)?;
        self.rx.buffer().forward(n, output)
    }

    /// The two directions as separate values for one thread at a time each.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (
            ReadHalf { rx: &mut self.rx },
            WriteHalf { tx: &mut self.tx },
        )
    }

    /// The two directions as owned values for two threads. The connection is closed when both
    /// are dropped.
    ///
    /// Both halves receive and send on the calling threads.
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        split::into_split(self)
    }

    /// Closes gracefully: what was flushed, or written through [`std::io::Write`], is sent, then FIN.
    /// Returns at once.
    ///
    /// # Errors
    ///
    /// None today.
    pub fn close(mut self) -> io::Result<()> {
        self.tx.send_last();
        self.rx.shared.close_with(CloseReason::Local);
        Ok(())
    }

    /// Closes at once: what is queued is dropped and the peer sees a reset.
    pub fn abort(self) {
        self.rx.shared.abort_with(CloseReason::Abort);
    }

    /// Takes the descriptor out of the library's hands, with what was received and not
    /// consumed. The descriptor is non-blocking. Close callbacks run with
    /// [`CloseReason::Local`].
    ///
    /// # Errors
    ///
    /// [`Error::OutputFull`] if output is still queued, [`Error::Closed`] on an ended connection,
    /// or what `fcntl(F_DUPFD_CLOEXEC)` reports.
    pub fn detach(self) -> io::Result<(OwnedFd, LinkBuffer)> {
        start::detach(self)
    }

    /// As [`ConnectionHandle::on_close`].
    pub fn on_close(&self, callback: impl FnOnce(CloseReason) + Send + 'static) -> CloseCallback {
        CloseCallback::add(&self.rx.shared, callback)
    }

    /// What the kernel has for us, without reading it.
    pub(crate) fn peek_state(&self) -> Peek {
        self.rx.socket.peek_state()
    }

    /// Output that the kernel has and the peer does not, if the system tells.
    pub(crate) fn unacknowledged(&self) -> Option<usize> {
        self.rx.socket.unacknowledged()
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn socket(&self) -> &Socket {
        &self.rx.socket
    }

    /// Whether the peer ended its side in order.
    pub(crate) fn has_eof(&self) -> bool {
        self.rx.end == Some(End::Eof)
    }

    /// Gives buffers back that an idle connection does not need.
    pub(crate) fn settle(&mut self) {
        self.rx.settle();
        self.tx.settle();
        self.rx.mark = 0;
    }

    /// What will be left of the connection when it is given up.
    pub(crate) fn remains(&self) -> Remains {
        Remains::of(&self.rx.socket)
    }

    /// Closes at once, without lingering; what is left if the descriptor is still open then.
    pub(crate) fn part(self) -> Option<Remains> {
        start::part(self)
    }

    /// Makes the connection as it was dialled, for another user. `false`: it cannot be had.
    pub(crate) fn renew(&mut self) -> bool {
        // Only timers that are set hold a weak reference.
        let is_free = |shared: &Arc<Shared>| {
            Arc::weak_count(shared) == 0 && shared.holds.load(Ordering::Acquire) == 0
        };
        if !self.is_sound() || !is_free(&self.rx.shared) {
            return false;
        }
        self.settle();
        self.rx.patience = Patience::default();
        self.tx.patience = Patience::default();
        if let Some(succession) = &mut self.succession {
            succession.value = Foreign::none();
        }
        self.rx.shared.renew();
        true
    }

    /// Whether nothing is under way in either direction, so that another user may take over.
    pub(crate) fn is_sound(&self) -> bool {
        let shared = &self.rx.shared;
        let queued = || {
            // Without these bits nothing is, and nobody need look.
            shared.word.has(QUEUED | FLUSHING) && shared.outbox.queued() > 0
        };
        shared.is_active()
            && !shared.word.has(state::POISONED | state::WRITE_SHUT)
            && self.rx.end.is_none()
            && !self.rx.owed
            && self.rx.len() == 0
            && self.tx.pending() == 0
            && !queued()
    }
}

reading_traits!(false, Connection);
writing_traits!(false, Connection);

/// The descriptor is non-blocking. Its options may be changed, but `SO_LINGER` makes no close wait: the
/// library takes a time other than zero back before it closes the descriptor.
impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // Whoever sees it may duplicate it: from here on its mode is not ours to change.
        self.rx.socket.show();
        if let Err(error) = self.rx.socket.keep_mode() {
            trace::debug!("connection {}: mode of the descriptor: {error}", self.id());
        }
        self.rx.socket.as_fd()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id())
            .field("peer", self.peer_addr())
            .field("state", &self.state())
            .field("available", &self.available())
            .field("unflushed", &self.malloc_len())
            .finish()
    }
}

/// Handlers that follow each other on one connection, and what one leaves to another.
#[derive(Default)]
struct Succession {
    /// Set by a callback, put in place when the callback returns.
    next: Option<Box<dyn Session>>,
    /// Sessions of replaced handlers; they hear of the end too.
    past: Vec<Box<dyn Session>>,
    /// Of the user's, for a later callback.
    value: Foreign<Box<dyn Any + Send>>,
}

impl Connection {
    fn has_next(&self) -> bool {
        self.succession
            .as_ref()
            .is_some_and(|succession| succession.next.is_some())
    }

    fn take_next(&mut self) -> Option<Box<dyn Session>> {
        self.succession.as_mut()?.next.take()
    }

    /// Moves what was kept to another value for the same connection.
    fn hand_value_to(&mut self, other: &mut Self) {
        let kept = self.succession.as_mut().map(|from| &mut from.value);
        if let Some(value) = kept.filter(|value| value.is_some()) {
            other.succession.get_or_insert_default().value = std::mem::take(value);
        }
    }

    fn retire(&mut self, session: Box<dyn Session>) {
        self.succession.get_or_insert_default().past.push(session);
    }

    fn take_past(&mut self) -> Vec<Box<dyn Session>> {
        self.succession
            .as_mut()
            .map_or_else(Vec::new, |succession| std::mem::take(&mut succession.past))
    }
}

/// Gives a connection up when the user drops it.
pub(crate) struct Guard {
    /// `None`: another value has taken the connection over.
    wire: Option<Arc<Wire>>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(wire) = &self.wire {
            start::abandon(wire);
        }
    }
}

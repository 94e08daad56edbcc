//! A connection as every other thread sees it: send, close, wait, watch.

#[cfg(doc)]
use crate::Error;

use super::{
    close::{CloseCallback, CloseWaiter},
    limits::{Manner, Sender},
    output::drop_output,
    patience::Patience,
    process::write_complete,
    shared::Shared,
    state::{self, ConnectionState},
};
use crate::{
    config::OnFull, error::CloseReason, net::Address, stats::ConnectionStats, sync::Ordering,
};
use bytes::Bytes;
use linkbuffer::LinkBuffer;
use std::{fmt, io, sync::Arc, time::Duration};

/// Sends to, watches and closes a connection from any thread.
///
/// A handle does not own the connection: it neither keeps it open nor keeps its descriptor.
/// Messages of several handles are never mixed, and the order in which one thread sends is kept.
/// Bytes that the kernel does not take at once wait in a bounded queue that the poller drains;
/// what happens when it is full is the loop's [`OnFull`](crate::OnFull) policy.
#[derive(Clone)]
pub struct ConnectionHandle {
    shared: Arc<Shared>,
    /// How long this handle's calls wait for room or for the kernel.
    patience: Patience,
    #[cfg(netpoll_leaks)]
    _leak: crate::leak::Tracked,
}

impl ConnectionHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            #[cfg(netpoll_leaks)]
            _leak: crate::leak::Tracked::of(crate::leak::Kind::Handle, &shared),
            patience: Patience::default(),
            shared,
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The connection's number, unique in the process; it is in every log line about it.
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// The same handle with a write timeout of its own for [`send`](Self::send) and
    /// [`flush`](Self::flush); it begins with that of the loop or the dialer. `None` waits as long
    /// as the connection lives. Clones have it too, other handles do not.
    ///
    /// ```no_run
    /// # use netpoll::ConnectionHandle;
    /// # use std::time::Duration;
    /// # fn hurry(handle: &ConnectionHandle) -> std::io::Result<()> {
    /// let patient = handle.clone().with_write_timeout(None);
    /// patient.send(vec![0; 1 << 20])?;
    /// let hasty = patient.with_write_timeout(Some(Duration::from_millis(100)));
    /// hasty.flush()
    /// # }
    /// ```
    #[must_use]
    pub fn with_write_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.patience.set_timeout(timeout);
        self
    }

    /// Where the peer is: the address that answered, or, of a dial by name that was
    /// [started](crate::Dialer::start_connection), that name.
    pub fn peer_addr(&self) -> &Address {
        &self.shared.peer
    }

    /// Where this end is, if the connection has a socket.
    pub(crate) fn local_addr(&self) -> Address {
        let socket = self.shared.socket();
        let local = socket.and_then(|socket| socket.local_address().ok());
        local.unwrap_or(Address::Unnamed)
    }

    /// Sends one message, or queues it behind what is being sent.
    ///
    /// Returns how many bytes were accepted: always the whole message. Accepted bytes are
    /// written in order, or counted in [`ConnectionStats::lost_bytes`] when the connection ends
    /// before. Waits only if the queue is full and the policy is
    /// [`OnFull::Block`](crate::OnFull::Block), at most the write timeout.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] on an ended connection, [`Error::OutputFull`] or [`Error::WriteTimeout`] by
    /// policy, [`Error::Interrupted`], [`Error::Poisoned`] after a message was cut. Nothing
    /// of the message was accepted then, unless the connection ended while it was being sent:
    /// what did not go out is counted as lost.
    pub fn send(&self, message: impl Into<LinkBuffer>) -> io::Result<usize> {
        self.post(message.into(), Manner::AsSet)
    }

    /// As [`Self::send`], but never waits, whatever the policy.
    ///
    /// # Errors
    ///
    /// As [`Self::send`]; a full queue is [`Error::OutputFull`] unless the policy is to close.
    pub fn try_send(&self, message: impl Into<LinkBuffer>) -> io::Result<usize> {
        self.post(message.into(), Manner::WithoutWait)
    }

    /// Sends bytes as one message: [`Self::send`] without building a buffer.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    pub fn send_bytes(&self, message: Bytes) -> io::Result<usize> {
        self.send(LinkBuffer::from(message))
    }

    /// Waits until the kernel has everything that was accepted before this call.
    ///
    /// # Errors
    ///
    /// [`Error::WriteTimeout`] when the write timeout passes first (the connection is poisoned
    /// then: what went out may end inside a message), [`Error::Closed`] when the connection ends
    /// first, [`Error::Interrupted`] (what was accepted is still sent), [`Error::WouldDeadlock`] on a
    /// poller's thread that must not wait.
    pub fn flush(&self) -> io::Result<()> {
        let mark = self.shared.outbox.mark();
        self.shared.wait_sent(mark, &self.patience)
    }

    /// Tells when the connection is over, and how it ended.
    pub fn done(&self) -> CloseWaiter {
        CloseWaiter {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Figures of this connection.
    pub fn stats(&self) -> ConnectionStats {
        self.shared.stats()
    }

    /// Where the connection is in its life.
    pub fn state(&self) -> ConnectionState {
        self.shared.word.state()
    }

    /// Whether the connection is open and the peer has not closed its side, as far as is known.
    /// A load; it costs nothing to ask before every use.
    pub fn is_active(&self) -> bool {
        self.shared.is_active()
    }

    /// Limits what may be queued behind a full socket from now on, as
    /// [`Connection::set_output_limit`](crate::Connection::set_output_limit).
    pub fn set_output_limit(&self, bytes: usize, on_full: OnFull) {
        self.shared.set_output_limits(|limits| {
            limits.bytes = bytes;
            limits.on_full = on_full;
        });
    }

    /// Limits the messages that may be queued behind a full socket from now on.
    pub fn set_output_messages(&self, messages: usize) {
        self.shared
            .set_output_limits(|limits| limits.messages = messages);
    }

    /// Closes gracefully: what was sent before goes out (at most the linger time), then FIN.
    /// Idempotent, returns at once, callable from any thread and any callback.
    pub fn close(&self) {
        self.shared.close_with(CloseReason::Local);
    }

    /// Closes at once: queued output is dropped and the peer sees a reset. Idempotent, returns
    /// at once, callable from any thread and any callback.
    pub fn abort(&self) {
        self.shared.abort_with(CloseReason::Abort);
    }

    /// Calls `callback` once when the connection is over, in the order of registration; at once
    /// on this thread if it is over already. One that is added inside of a close callback of a
    /// connection that is over is called when that callback has returned.
    ///
    /// What is returned can take the callback back. One that is added for each request is to be taken
    /// back at the request's end: it would be kept as long as the connection.
    ///
    /// ```
    /// use netpoll::Connection;
    /// use std::{io, sync::mpsc};
    ///
    /// fn ask(conn: &mut Connection, question: &str) -> io::Result<()> {
    ///     let (cancel, cancelled) = mpsc::channel();
    ///     let watch = conn.on_close(move |_| drop(cancel.send(())));
    ///     // A long piece of work that gives up when `cancelled` has a message.
    ///     # let _ = (cancelled, question);
    ///     watch.remove();
    ///     Ok(())
    /// }
    /// ```
    pub fn on_close(&self, callback: impl FnOnce(CloseReason) + Send + 'static) -> CloseCallback {
        CloseCallback::add(&self.shared, callback)
    }

    /// Promises output: until the guard is dropped a half-closed connection stays open for it,
    /// so does one whose handler failed (which is not called again), and a draining loop counts the
    /// connection as busy. What ends it all the same: [`close`](Self::close) and
    /// [`abort`](Self::abort), the idle timeout, a forced shutdown, and a peer that is gone; then
    /// [`send`](Self::send) says so.
    ///
    /// Take one in `on_request` before a reply is left to another thread.
    pub fn hold(&self) -> PendingReply {
        self.shared.holds.fetch_add(1, Ordering::AcqRel);
        PendingReply {
            #[cfg(netpoll_leaks)]
            _leak: crate::leak::Tracked::of(crate::leak::Kind::PendingReply, &self.shared),
            shared: Arc::clone(&self.shared),
        }
    }

    fn post(&self, mut message: LinkBuffer, manner: Manner) -> io::Result<usize> {
        message.flush();
        let posted = self.try_post(&mut message, manner);
        if posted.is_err() {
            drop_output(&*self.shared, &mut message);
        }
        posted
    }

    fn try_post(&self, message: &mut LinkBuffer, manner: Manner) -> io::Result<usize> {
        let len = message.len();
        self.shared.check_writable()?;
        if len == 0 {
            return Ok(0);
        }
        let Some(socket) = self.shared.socket() else {
            if !self.shared.is_opening() {
                return Err(self.shared.closed_error());
            }
            self.shared.submit_early(message, &self.patience, manner)?;
            return Ok(len);
        };
        if self
            .shared
            .submit(&socket, message, &self.patience, manner, Sender::Other)?
            .is_none()
        {
            write_complete(&self.shared);
        }
        Ok(len)
    }
}

impl fmt::Debug for ConnectionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shared, f)
    }
}

/// A promise of output: see [`ConnectionHandle::hold`].
#[must_use = "the promise ends when the guard is dropped"]
pub struct PendingReply {
    shared: Arc<Shared>,
    #[cfg(netpoll_leaks)]
    _leak: crate::leak::Tracked,
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        let before = self.shared.holds.fetch_sub(1, Ordering::AcqRel);
        let awaited = state::PEER_CLOSED | state::DRAIN | state::FAILED;
        if before == 1 && self.shared.word.has(awaited) {
            self.shared.attend(0);
            if self.shared.word.has(state::OWNED) {
                self.shared.wake_poller();
            }
        }
    }
}

impl fmt::Debug for PendingReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PendingReply")
            .field(&self.shared.id)
            .finish()
    }
}

impl Shared {
    pub(crate) fn is_active(&self) -> bool {
        let gone = state::PEER_CLOSED | state::BROKEN | state::CLOSE | state::ABORT | state::CLOSED;
        !self.word.has(gone)
    }

    /// Whether the owner of a connection whose peer has ended its side has said that it will still send.
    pub(crate) fn may_still_send(&self) -> bool {
        self.context.limits.half_open || self.holds.load(Ordering::Acquire) > 0
    }

    pub(crate) fn stats(&self) -> ConnectionStats {
        let lost = self.outbox.lost();
        ConnectionStats {
            bytes_in: self.bytes_in.load(Ordering::Relaxed),
            bytes_out: self.outbox.bytes_sent(),
            queued: self.outbox.queued(),
            messages_out: self.outbox.messages(),
            lost_bytes: lost.bytes,
            lost_messages: lost.messages,
            last_activity: self.last_activity(),
        }
    }
}

//! The sending side of a connection: private output until a flush, then the outbox.

use super::{
    limits::{Allowance, Manner, Sender},
    operator::Wire,
    output::{Mark, Sent, Sink, Straight, compact, drop_output},
    patience::Patience,
    queue::{Bound, Full},
    shared::{For, Shared, Waited},
    spare,
    state::{ABORT, BROKEN, CLOSE, CLOSED, OWNED, POISONED, WRITE_SHUT},
};
use crate::{
    config::OnFull,
    error::{CloseReason, Error},
    memory::Charge,
    net::Socket,
    sync::Ordering,
};
use linkbuffer::{LinkBuffer, netpoll_only::NetpollBuffer as _};
use std::{io, net::Shutdown, sync::Arc, time::Instant};

/// Output that was written and not flushed yet, and where it goes.
#[derive(Debug)]
pub(crate) struct Tx {
    pub(crate) shared: Arc<Shared>,
    pub(crate) socket: Arc<Wire>,
    pub(super) buffer: Option<Box<LinkBuffer>>,
    pub(crate) patience: Patience,
    /// How many of the unflushed bytes go out without a flush: they end with what was last written
    /// through `io::Write`.
    pub(super) streamed: usize,
    charge: Charge,
    /// Room was lent since the last flush: what is in it is not known to be complete, and it may be cut.
    pub(super) reserved: bool,
    /// A flush in a callback left more than the low mark in the queue: the owner waits until that
    /// is sent before it receives more and runs the handler again.
    pub(super) gated: bool,
    /// The connection was taken out of the value this belongs to.
    pub(super) spent: bool,
}

impl Tx {
    pub(crate) fn new(socket: &Arc<Wire>) -> Self {
        let shared = Arc::clone(&socket.shared);
        Self {
            shared,
            socket: Arc::clone(socket),
            buffer: None,
            patience: Patience::default(),
            streamed: 0,
            charge: Charge::default(),
            reserved: false,
            gated: false,
            spent: false,
        }
    }

    /// The output buffer, if the connection may still write.
    #[inline]
    pub(crate) fn buffer(&mut self) -> io::Result<&mut LinkBuffer> {
        self.check()?;
        Ok(self.buffer.get_or_insert_with(spare::output))
    }

    /// The output buffer with room for `n` more bytes, if the connection may still write.
    #[inline]
    pub(crate) fn room(&mut self, n: usize) -> io::Result<&mut LinkBuffer> {
        self.check()?;
        if n.saturating_add(self.pending()) > UNCHECKED {
            self.check_room(n)?;
        }
        Ok(self.buffer.get_or_insert_with(spare::output))
    }

    /// As [`Self::room`], for room that is lent: a slot, or what is filled in later.
    #[inline]
    pub(crate) fn lend(&mut self, n: usize) -> io::Result<&mut LinkBuffer> {
        self.room(n)?;
        self.reserved = true;
        Ok(self.raw_buffer())
    }

    /// As [`Self::room`] for bytes that are linked. Pieces of many chunks would keep them all alive.
    #[inline]
    pub(crate) fn room_for_link(&mut self, n: usize) -> io::Result<&mut LinkBuffer> {
        self.room(n)?;
        let buffer = self.buffer.get_or_insert_with(spare::output);
        if buffer.total_len() > 0 {
            // A fourth of the limit, in chunks that small messages are received into.
            let fourth = self.shared.context.limits.output.bytes / 4;
            if buffer.is_loose((fourth / spare::ROOM).clamp(1, LINKS)) {
                compact(&*self.shared, buffer);
            }
        }
        Ok(buffer)
    }

    /// Whether `n` more bytes fit.
    #[inline]
    pub(crate) fn has_room(&self, n: usize) -> bool {
        let all = n.saturating_add(self.pending());
        all <= UNCHECKED || all <= self.limit()
    }

    /// How much may be unflushed.
    pub(crate) fn limit(&self) -> usize {
        self.shared.output_limits().bytes.max(UNCHECKED)
    }

    /// The output limit holds before the flush too. As in the queue, one piece of any length has room.
    #[inline(never)]
    fn check_room(&mut self, n: usize) -> io::Result<()> {
        let (queued, limit) = (self.pending(), self.limit());
        if queued > 0 && queued.saturating_add(n) > limit {
            return Err(Error::OutputFull { queued, limit }.into());
        }
        if self.charge.is_behind(queued, &self.shared.context.memory) {
            self.weigh(queued);
        }
        Ok(())
    }

    fn weigh(&mut self, held: usize) {
        let delta = self.charge.follow(held);
        self.shared.weigh(delta);
    }

    /// The output buffer whatever the connection's state: for operations on what is there.
    pub(crate) fn raw_buffer(&mut self) -> &mut LinkBuffer {
        self.buffer.get_or_insert_with(spare::output)
    }

    /// Bytes written and not submitted: a refused flush leaves them here.
    pub(crate) fn pending(&self) -> usize {
        let buffer = self.buffer.as_ref();
        buffer.map_or(0, |buffer| buffer.len() + buffer.malloc_len())
    }

    /// Submits everything written so far. On a connection of the caller's own this waits until the
    /// kernel has it; in a callback it waits at most for room in the queue.
    #[inline]
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self.send_whole() {
            Straight::Sent => Ok(()),
            straight => self.flush_on(straight),
        }
    }

    /// Submits everything written so far and waits until the kernel has it, whatever was queued
    /// before included.
    pub(crate) fn flush_and_wait(&mut self) -> io::Result<()> {
        match self.send_whole() {
            Straight::Sent => Ok(()),
            straight => {
                self.submit_on(straight, Manner::Waits)?;
                self.wait_sent()
            }
        }
    }

    #[cold]
    fn flush_on(&mut self, straight: Straight) -> io::Result<()> {
        self.submit_on(straight, Manner::WithWait)?;
        self.wait_or_gate()
    }

    /// The second half of a flush: the caller of an own connection waits, a callback's connection is
    /// not run before the queue is low.
    pub(super) fn wait_or_gate(&mut self) -> io::Result<()> {
        if self.is_owned() {
            self.wait_sent()
        } else {
            self.gated |= self.shared.is_above_low_mark();
            Ok(())
        }
    }

    /// Waits until the kernel has everything that is queued now.
    fn wait_sent(&self) -> io::Result<()> {
        self.shared
            .wait_sent(self.shared.outbox.mark(), &self.patience)
    }

    /// Whether the connection belongs to the caller; otherwise this is one of its callbacks.
    pub(super) fn is_owned(&self) -> bool {
        self.shared.word.has(OWNED)
    }

    pub(super) fn sender(&self) -> Sender {
        if self.is_owned() {
            Sender::Other
        } else {
            Sender::Callback
        }
    }

    /// Sends the output if nothing stands in its way.
    #[inline(always)]
    fn send_whole(&mut self) -> Straight {
        let shared = &self.shared;
        let (Some(buffer), Some(calm), false) =
            (self.buffer.as_mut(), shared.word.calm(), self.spent)
        else {
            return Straight::No;
        };
        buffer.flush();
        self.reserved = false;
        let straight = if buffer.is_empty() {
            Straight::Sent
        } else {
            let line = shared.line(&self.socket);
            shared.outbox.send_whole(&shared.word, calm, &line, buffer)
        };
        if straight != Straight::No {
            self.streamed = 0;
        }
        straight
    }

    /// Sends what the kernel takes now, leaves the rest to the poller. `true`: the queue is empty.
    pub(crate) fn try_flush(&mut self) -> io::Result<bool> {
        let straight = self.send_whole();
        if straight == Straight::Sent {
            return Ok(true);
        }
        self.submit_on(straight, Manner::WithoutWait)?;
        Ok(self.shared.outbox.queued() == 0)
    }

    /// Goes on behind a straight send.
    fn submit_on(&mut self, straight: Straight, manner: Manner) -> io::Result<()> {
        match straight {
            Straight::Sent => return Ok(()),
            Straight::Turn(mark, sent) => {
                return self.shared.sent(&self.socket, mark, sent).map(drop);
            }
            Straight::No => {}
        }
        self.check()?;
        let sender = self.sender();
        let Some(buffer) = self.buffer.as_mut() else {
            return Ok(());
        };
        buffer.flush();
        self.reserved = false;
        if !buffer.is_empty() {
            self.shared
                .submit(&self.socket, buffer, &self.patience, manner, sender)?;
        }
        self.streamed = 0;
        Ok(())
    }

    /// Nothing can be written through this value any more.
    pub(crate) fn spend(&mut self) {
        self.spent = true;
    }

    #[inline]
    pub(super) fn check(&self) -> io::Result<()> {
        if self.spent {
            return Err(spent());
        }
        self.shared.check_writable()
    }

    /// Gives an empty buffer back to the thread. What stays unflushed keeps little more than itself.
    pub(crate) fn settle(&mut self) {
        let held = match self.buffer.take() {
            None => 0,
            Some(buffer) if buffer.total_len() == 0 => {
                spare::put_output(buffer);
                0
            }
            Some(mut buffer) => {
                compact(&*self.shared, &mut buffer);
                let held = buffer.pinned();
                self.buffer = Some(buffer);
                held
            }
        };
        self.weigh(held);
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        // A close from elsewhere ends the connection in front of what was not submitted.
        if self.has_streamed() && !self.shared.word.has(CLOSE) {
            self.send_last();
        }
        self.settle();
        // What is left was never submitted.
        if let Some(mut buffer) = self.buffer.take() {
            drop_output(&*self.shared, &mut buffer);
        }
        self.weigh(0);
    }
}

/// Less output than this is not looked at before it is flushed.
const UNCHECKED: usize = 4096;
/// From so many pieces on, at the latest, each one is looked at.
const LINKS: usize = 32;

#[cold]
fn spent() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the connection was taken: use the value that `hijack` returned",
    )
}

impl Shared {
    /// Why nothing may be written any more, as an error.
    #[inline]
    pub(crate) fn check_writable(&self) -> io::Result<()> {
        let bits = self.word.load();
        if bits & (ABORT | BROKEN | CLOSED | POISONED | WRITE_SHUT | CLOSE) == 0 {
            return Ok(());
        }
        self.why_not_writable(bits)
    }

    #[cold]
    fn why_not_writable(&self, bits: u32) -> io::Result<()> {
        if bits & POISONED != 0 {
            // A close whose time is up poisons as well. Its reason is decided before it does.
            let cut = match self.aside.lock().reason() {
                None => bits & CLOSED == 0,
                Some(reason) => reason == CloseReason::WriteTimeout,
            };
            if cut {
                return Err(Error::Poisoned.into());
            }
        }
        if bits & WRITE_SHUT != 0 && bits & (ABORT | BROKEN | CLOSED) == 0 {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the sending side was shut down: write before shutdown(Write)",
            ));
        }
        Err(self.closed_error())
    }

    /// The error of every call on an ended connection.
    pub(crate) fn closed_error(&self) -> io::Error {
        let reason = self.aside.lock().reason().unwrap_or(CloseReason::Local);
        Error::Closed(reason).into()
    }

    /// Sends a chain or queues it. `None` when the kernel has all of it. Waits for room if the
    /// connection's policy and the caller's manner say so.
    pub(crate) fn submit(
        self: &Arc<Self>,
        socket: &Socket,
        chain: &mut LinkBuffer,
        patience: &Patience,
        manner: Manner,
        sender: Sender,
    ) -> io::Result<Option<Mark>> {
        let line = self.line(socket);
        let allowance = || Allowance(self, sender);
        let (mark, sent) = self.submit_to(&line, chain, patience, manner, allowance)?;
        self.sent(socket, mark, sent)
    }

    /// As [`submit`](Self::submit), to whatever leads to the peer; what comes of the flusher's turn is the
    /// caller's to see to.
    pub(super) fn submit_to<'a>(
        self: &'a Arc<Self>,
        sink: &impl Sink,
        chain: &mut LinkBuffer,
        patience: &Patience,
        manner: Manner,
        allowance: impl Fn() -> Allowance<'a>,
    ) -> io::Result<(Mark, Sent)> {
        let len = chain.len();
        let mut until = None;
        loop {
            match self.outbox.send(&self.word, sink, chain, allowance()) {
                Ok(sent) => return Ok(sent),
                Err(Full(queued)) => {
                    let limits = self.output_limits();
                    let limit = limits.bytes;
                    match manner.on_full(limits.on_full) {
                        OnFull::Error => return Err(Error::OutputFull { queued, limit }.into()),
                        OnFull::Close => {
                            self.abort_with(CloseReason::OutputFull);
                            return Err(self.closed_error());
                        }
                        OnFull::Block => {
                            let until = *until.get_or_insert_with(|| {
                                patience.until(self.context.limits.write_timeout)
                            });
                            self.wait_output(until, || self.outbox.has_room(len, allowance()))?;
                            // A queue that was dropped has room too.
                            self.check_writable()?;
                        }
                    }
                }
            }
        }
    }

    /// The end of a flusher's turn. `None` when the kernel has all of what was before `mark`.
    fn sent(self: &Arc<Self>, socket: &Socket, mark: Mark, sent: Sent) -> io::Result<Option<Mark>> {
        match self.settle_send(socket, sent) {
            Sent::All => Ok(None),
            Sent::Parked | Sent::Starved | Sent::Share => Ok(Some(mark)),
            Sent::Failed(_) => Err(self.write_error()),
        }
    }

    /// Sends a chain or queues it, whatever is queued already: the caller keeps its own bound.
    pub(crate) fn push(self: &Arc<Self>, chain: &mut LinkBuffer) -> io::Result<()> {
        self.check_writable()?;
        let socket = self.socket().ok_or_else(|| self.closed_error())?;
        self.push_last(&socket, chain)
    }

    /// As [`push`](Self::push), also behind a close that has not come to its end.
    pub(super) fn push_last(
        self: &Arc<Self>,
        socket: &Socket,
        chain: &mut LinkBuffer,
    ) -> io::Result<()> {
        let unbounded = Bound {
            bytes: usize::MAX,
            messages: usize::MAX,
            low: 0,
        };
        let sent = match self
            .outbox
            .send(&self.word, &self.line(socket), chain, unbounded)
        {
            Ok((_, sent)) => sent,
            Err(Full(queued)) => {
                return Err(Error::OutputFull {
                    queued,
                    limit: usize::MAX,
                }
                .into());
            }
        };
        self.settle_send(socket, sent);
        if matches!(sent, Sent::Failed(_)) {
            Err(self.write_error())
        } else {
            Ok(())
        }
    }

    /// Sends what is queued.
    pub(crate) fn drive(self: &Arc<Self>, socket: &Socket) {
        let sent = self.outbox.drive(&self.word, &self.line(socket));
        self.settle_send(socket, sent);
    }

    /// Goes on until a flusher's turn has an end.
    #[inline]
    pub(super) fn settle_send(self: &Arc<Self>, socket: &Socket, mut sent: Sent) -> Sent {
        while sent == Sent::Share {
            sent = self.outbox.drive(&self.word, &self.line(socket));
        }
        self.after_send(sent);
        sent
    }

    /// `shutdown(2)`, refused while output is queued.
    pub(crate) fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            let queued = self.outbox.queued();
            if queued > 0 {
                return Err(Error::OutputFull { queued, limit: 0 }.into());
            }
            self.word.set(WRITE_SHUT);
        } else if self.word.has(OWNED) {
            // The system reports this as the peer's end, but the owner goes on sending.
            self.holds.fetch_add(1, Ordering::AcqRel);
        }
        match self.socket() {
            Some(socket) => socket.shutdown(how),
            None => Err(self.closed_error()),
        }
    }

    /// Waits until the kernel took everything up to `mark`; a timeout poisons the connection.
    pub(crate) fn wait_sent(self: &Arc<Self>, mark: Mark, patience: &Patience) -> io::Result<()> {
        if self.outbox.passed(mark) {
            return Ok(());
        }
        let waited = self.wait_output(patience.until(self.context.limits.write_timeout), || {
            self.outbox.passed(mark)
        });
        match &waited {
            Err(e) if matches!(Error::from_io(e), Some(Error::WriteTimeout { .. })) => {
                // What went out so far may end inside a message: nothing may follow it.
                self.word.set(POISONED);
                self.discard_output();
                self.notify(For::Output);
                if self.word.has(OWNED) {
                    // Of no more use, whatever its owner does: a handler's would end with its error.
                    self.abort_with(CloseReason::WriteTimeout);
                }
            }
            _ => {}
        }
        waited
    }

    fn wait_output(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> bool,
    ) -> io::Result<()> {
        if poller::is_polling_thread() || self.is_unwatched() {
            return Err(Error::WouldDeadlock.into());
        }
        // A close too: whoever waits is told at once, what was accepted is still sent.
        let over = ABORT | BROKEN | CLOSE | CLOSED | POISONED;
        // What was true when the wait ended counts: room may have been taken by others since.
        let mut was_ready = false;
        let waited = self.wait(For::Output, deadline, || {
            was_ready = ready();
            was_ready || self.word.has(over)
        });
        match waited {
            Waited::Ended => {
                // What is queued may have been sent in part, and the peer does not take the rest.
                self.abort_with(CloseReason::Overload);
                Err(Error::Overloaded.into())
            }
            Waited::Interrupted => Err(Error::Interrupted.into()),
            _ if was_ready => Ok(()),
            Waited::Ready => Err(self.write_error()),
            Waited::Late => {
                let (sent, queued) = (self.outbox.bytes_sent(), self.outbox.queued() as u64);
                Err(Error::WriteTimeout { sent, queued }.into())
            }
        }
    }

    fn write_error(&self) -> io::Error {
        self.check_writable()
            .err()
            .unwrap_or_else(|| self.closed_error())
    }
}

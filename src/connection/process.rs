//! Runs a connection's callbacks: one at a time, on whatever thread has the owner's role.
//!
//! The role is a bit of the state word; taking it means taking the [`Owner`] out of its slot.
//! A turn is: note the news, connect if that is still due, receive a bounded share, run the
//! handler if it has something to see, act on its result. It ends when there is no news left
//! (the role goes back in the same step that looks for news), when the share is used up
//! (`Progress::Yield`), or with the connection.
//!
//! The handler runs when
//! * bytes arrived since it last returned and its wake-up mark is reached, or
//! * it consumed something and left bytes that it has not asked more of, or
//! * the end of input has not been shown to it yet and unread bytes are left.
//!
//! So a handler that returns without consuming waits for more input and never spins.

use super::{
    Connection,
    close::conclude,
    handle::ConnectionHandle,
    input::End,
    shared::Shared,
    state::{
        ABORT, ATTEND, BEGIN, BRIEF, BROKEN, CLOSE, CONNECTED, DRAIN, FAILED, GONE, HUNG_UP,
        PEER_CLOSED, POISONED, READABLE, SEALED, URGENT, WROTE,
    },
};
use crate::{
    codec::FrameError,
    error::{CloseReason, Error},
    handler::Session,
    sync::Ordering,
};
use poller::Progress;
use std::{cell::Cell, io, sync::Arc};

/// What the role stands for: the connection and the callbacks' state.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) conn: Connection,
    session: Option<Box<dyn Session>>,
    /// The session is asked before anything is received.
    steered: bool,
    /// `on_connect` returned Ok.
    connected: bool,
    /// The handler was run with the end of input in sight.
    end_shown: bool,
    /// The loop drains and the kernel was asked once more.
    last_look: bool,
    /// A callback failed: nothing is received, and no callback called, until the end.
    failed: bool,
    /// The socket failed and the kernel was asked once more.
    broken_look: bool,
    /// A message is late and the kernel was asked once more.
    late_look: bool,
}

enum Turn {
    /// No more to do for now.
    Idle,
    /// There is more, others first.
    More,
    /// A callback gave the connection to the user.
    Taken,
    /// The end.
    Over(CloseReason),
}

/// What a callback left behind.
enum After {
    /// The same handler goes on.
    Same,
    /// A new handler was put in place and has connected.
    Replaced,
    /// The user has the connection.
    Taken,
}

/// How often the owner looks for news that came while it ran before others get their turn.
const TURNS: u32 = 16;

thread_local! {
    /// Callbacks of connections this thread is inside of.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
    /// This thread is inside of a handler's `on_write_complete`.
    static TELLING: Cell<bool> = const { Cell::new(false) };
}

/// Whether the current thread runs some connection's callback.
pub(crate) fn in_callback() -> bool {
    DEPTH.try_with(Cell::get).is_ok_and(|depth| depth > 0)
}

/// Whether this thread is inside of a handler's `on_write_complete`.
fn is_telling() -> bool {
    TELLING.try_with(Cell::get).unwrap_or(false)
}

fn tell(telling: bool) {
    let _ = TELLING.try_with(|cell| cell.set(telling));
}

/// Marks this thread as being inside of a callback.
pub(super) struct Inside;

impl Inside {
    pub(super) fn enter() -> Self {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() + 1));
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = DEPTH.try_with(|depth| depth.set(depth.get() - 1));
    }
}

/// Runs the owner until there is no news. The caller has the owner's role; on `Yield` it still
/// has it, otherwise it was given back or the connection is over.
pub(crate) fn run(shared: &Arc<Shared>) -> Progress {
    let _inside = Inside::enter();
    let mut turns = 0;
    loop {
        turns += 1;
        let Some(mut owner) = shared.owner.take() else {
            return Progress::Drained;
        };
        match owner.turn(shared) {
            Turn::Over(reason) => {
                conclude(shared, owner, reason);
                return Progress::Drained;
            }
            Turn::Taken => {
                owner.hand_over(shared);
                return Progress::Drained;
            }
            Turn::More => {
                // It waits for its next round without a chunk.
                owner.conn.rx.settle();
                owner.conn.tx.settle();
                shared.owner.put(owner);
                return Progress::Yield;
            }
            Turn::Idle => {
                owner.conn.rx.settle();
                owner.conn.tx.settle();
                shared.owner.put(owner);
                if shared.word.leave() {
                    return Progress::Drained;
                }
                if turns >= TURNS {
                    return Progress::Yield;
                }
            }
        }
    }
}

/// As [`run`], and the role is given back in any case. What is left to do then is another turn, which the
/// poller places behind those of others, wherever turns of this connection run.
pub(crate) fn take_turn(shared: &Arc<Shared>) {
    while run(shared) == Progress::Yield {
        shared.word.set(READABLE);
        if shared.word.release() & BROKEN == 0 {
            return shared.wake_poller();
        }
        // The poller may be gone, and there is little left to do on a broken connection.
        if !shared.word.acquire() {
            return;
        }
    }
}

/// Everything queued reached the kernel: tells the handler.
///
/// What a handler sends from inside of this call may be complete at once, and so on: that is
/// told in the owner's turn, so that neither the stack nor the thread belongs to such a chain.
pub(crate) fn write_complete(shared: &Arc<Shared>) {
    let hooks = shared.hooks();
    if !hooks.is_some() {
        return;
    }
    if hooks.in_turn() || is_telling() {
        shared.attend(WROTE);
    } else {
        let handle = ConnectionHandle::new(Arc::clone(shared));
        tell(true);
        shared.contain("on_write_complete", || hooks.write_complete(&handle));
        tell(false);
    }
}

impl Connection {
    /// Whether the callback that runs now gave the connection to another handler or owner.
    pub(crate) fn is_passed_on(&self) -> bool {
        self.is_taken() || self.has_next()
    }
}

impl Owner {
    pub(crate) fn new(conn: Connection, session: Option<Box<dyn Session>>) -> Self {
        let mut owner = Self {
            conn,
            // Without callbacks there is nothing to connect.
            connected: session.is_none(),
            steered: false,
            session,
            end_shown: false,
            last_look: false,
            failed: false,
            broken_look: false,
            late_look: false,
        };
        owner.note_session();
        owner
    }

    /// A session is in place.
    fn note_session(&mut self) {
        self.steered = self.session.as_ref().is_some_and(|s| s.steers_input());
        let word = &self.conn.rx.shared.word;
        // Only relays steer.
        if self.steered || self.session.is_none() {
            word.set(BRIEF);
        } else if word.has(BRIEF) {
            word.clear(BRIEF);
        }
    }

    /// Lets go of the descriptor and of nothing else.
    pub(super) fn leave_behind(self) {
        let Self { conn, session, .. } = self;
        std::mem::forget(session);
        drop(conn);
    }

    /// Runs `on_prepare` before anything polls the connection.
    pub(crate) fn prepare(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.conn.rx.shared);
        let Self { conn, session, .. } = self;
        let Some(session) = session else {
            return Ok(());
        };
        match shared.contain("on_prepare", || session.prepare(conn)) {
            Some(called) => {
                // No call may wait here.
                conn.tx.send_last();
                called
            }
            None => Err(Error::Closed(CloseReason::HandlerPanic).into()),
        }
    }

    /// Tells every session of the end, oldest first.
    pub(crate) fn disconnect(&mut self, reason: CloseReason) {
        let shared = Arc::clone(&self.conn.rx.shared);
        let connected = std::mem::take(&mut self.connected);
        let mut last = self.session.take();
        if let Some(session) = last.as_mut().filter(|_| !connected) {
            shared.contain("end of a session", || session.never_connected(reason));
        }
        let last = last.filter(|_| connected);
        let parked = shared.aside.lock().unpark();
        for mut session in parked.into_iter().chain(self.conn.take_past()).chain(last) {
            shared
                .context
                .counters
                .disconnected
                .fetch_add(1, Ordering::Relaxed);
            shared.contain("on_disconnect", || {
                session.disconnect(&mut self.conn, reason);
                drop(session);
            });
        }
    }

    fn turn(&mut self, shared: &Arc<Shared>) -> Turn {
        let news = shared.word.clear(READABLE | URGENT | ATTEND | WROTE);
        self.conn.rx.note(news);
        if news & BROKEN != 0 {
            // Input that came before the failure is still there to read, then comes the error.
            self.conn.rx.readable = true;
        }
        if self.failed {
            return self.wait_for_promises(shared);
        }
        let mut again = false;
        if !self.connected {
            if let Some(turn) = self.ending(shared) {
                return turn;
            }
            let called = self.connect(shared);
            match self.after_callback(shared, called) {
                Err(reason) => return self.fail(shared, reason),
                Ok(After::Taken) => return Turn::Taken,
                // What on_connect received and left counts as new.
                Ok(After::Same | After::Replaced) => again = self.conn.rx.len() > 0,
            }
        }
        if news & WROTE != 0 {
            let called = self.wrote(shared);
            match self.after_callback(shared, called) {
                Err(reason) => return self.fail(shared, reason),
                Ok(After::Taken) => return Turn::Taken,
                Ok(After::Same) => {}
                Ok(After::Replaced) => again = true,
            }
        }
        self.requests(shared, again)
    }

    fn wrote(&mut self, shared: &Arc<Shared>) -> Result<(), CloseReason> {
        tell(true);
        let result = self.call(shared, "on_write_complete", |s, c| s.wrote(c));
        tell(false);
        result
    }

    fn connect(&mut self, shared: &Arc<Shared>) -> Result<(), CloseReason> {
        self.call(shared, "on_connect", |session, conn| session.connect(conn))?;
        self.connected = true;
        shared.word.set(CONNECTED);
        shared
            .context
            .counters
            .connected
            .fetch_add(1, Ordering::Relaxed);
        self.call(shared, "on_connect", |session, conn| {
            session.established(conn)
        })
    }

    /// Receives and runs the handler as long as it has something new to see.
    fn requests(&mut self, shared: &Arc<Shared>, mut again: bool) -> Turn {
        let limits = &shared.context.limits;
        let mut received = false;
        loop {
            if let Some(turn) = self.ending(shared) {
                return turn;
            }
            // A peer that does not read its answers gets no further ones made.
            if self.conn.tx.gated {
                if shared.gate(&self.conn.tx.patience) {
                    // The handler is run for what lies here when the gate opens.
                    self.conn.rx.fresh |= again;
                    return Turn::Idle;
                }
                self.conn.tx.gated = false;
            }
            if !received {
                received = self.take_input(limits.pause_at);
            }
            let rx = &self.conn.rx;
            let available = rx.len();
            let enough = available >= rx.mark.max(1);
            let unseen_end = rx.end.is_some() && !self.end_shown;
            let run = (enough && (rx.fresh || again))
                || (unseen_end && (available > 0 || limits.half_open || self.wants_end()));
            if !run {
                if self.conn.rx.doubts(limits.pause_at) {
                    received = false;
                    continue;
                }
                return self.rest(shared, available);
            }
            let rx = &mut self.conn.rx;
            rx.fresh = false;
            rx.mark = 0;
            self.end_shown = rx.end.is_some();
            let called = self.call(shared, "on_request", |session, conn| session.request(conn));
            match self.after_callback(shared, called) {
                Err(reason) => return self.fail(shared, reason),
                Ok(After::Taken) => return Turn::Taken,
                Ok(After::Same) if self.has_answered_all(shared) => return Turn::Idle,
                Ok(After::Same) => again = self.progressed(available),
                Ok(After::Replaced) => again = true,
            }
        }
    }

    /// Receives one share of input; the mark may ask for more than that. `false`: none is wanted.
    fn take_input(&mut self, pause_at: usize) -> bool {
        let conn = &mut self.conn;
        if conn.shared().is_heavy() {
            return false;
        }
        let mut share = pause_at;
        if let Some(session) = self.session.as_mut().filter(|_| self.steered) {
            share = match session.input_share(pause_at) {
                0 => return false,
                _ if session.pump(conn) => return true,
                share => share,
            };
        }
        conn.rx.receive(share.max(conn.rx.mark));
        true
    }

    /// The usual end of a turn, seen at a glance: nothing is left, and nothing else is due. It is
    /// what [`Self::ending`] and [`Self::rest`] would find.
    #[inline]
    fn has_answered_all(&self, shared: &Shared) -> bool {
        let rx = &self.conn.rx;
        rx.len() == 0
            && !self.conn.tx.gated
            && !rx.readable
            && rx.end.is_none()
            && rx.patience.is_usual()
            && !shared.word.has(ABORT | CLOSE | BROKEN | DRAIN)
    }

    fn wants_end(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.wants_end())
    }

    /// Whether the handler consumed something and left bytes it has not asked more of.
    fn progressed(&self, before: usize) -> bool {
        let rx = &self.conn.rx;
        let left = rx.len();
        left > 0 && left < before && left >= rx.mark
    }

    /// What to do when the handler has nothing new to see.
    fn rest(&mut self, shared: &Arc<Shared>, available: usize) -> Turn {
        let limits = &shared.context.limits;
        let by = self.conn.rx.message_due();
        let rx = &self.conn.rx;
        match rx.end {
            Some(End::Failed(kind)) => return Turn::Over(CloseReason::Error(kind)),
            Some(End::Eof) => {
                let promised = shared.holds.load(Ordering::Acquire) > 0;
                if !promised && !limits.half_open {
                    return self.close(shared, CloseReason::Peer);
                }
                if shared.word.has(HUNG_UP) {
                    // There is nobody to keep it open for.
                    let error = self.conn.rx.socket.take_error().ok().flatten();
                    let reason = error.map_or(CloseReason::Peer, |e| CloseReason::Error(e.kind()));
                    return Turn::Over(reason);
                }
            }
            None => {}
        }
        // What is set from here on is news: the owner looks again.
        let bits = shared.word.load();
        if bits & BROKEN != 0 && (!rx.readable || rx.end.is_some()) {
            if rx.end.is_none() && !std::mem::replace(&mut self.broken_look, true) {
                // The failure may be younger than the last receive, and input older than the failure.
                self.conn.rx.readable = true;
                return Turn::More;
            }
            return Turn::Over(CloseReason::Error(io::ErrorKind::BrokenPipe));
        }
        // Asked anew: the callback or the pump may have changed its mind.
        let session = self.session.as_ref().filter(|_| self.steered);
        let wanted = || session.is_none_or(|s| s.input_share(limits.pause_at) > 0);
        if rx.readable && rx.end.is_none() && !shared.is_heavy() && wanted() {
            let paused = available >= limits.pause_at.max(rx.mark);
            return if paused {
                self.fail(shared, CloseReason::InputLimit)
            } else {
                Turn::More
            };
        }
        // What is not read for want of memory is not late.
        let handled = !self.steered && self.session.is_some();
        let by = by.filter(|_| handled && rx.end.is_none() && !shared.is_heavy());
        let late = by.is_some_and(|by| shared.message_is_late(rx.consumed(), by));
        let looked = std::mem::replace(&mut self.late_look, late);
        if late && looked {
            return self.fail(shared, CloseReason::ReadTimeout);
        }
        if late {
            // The rest may be in the kernel, and its event on its way.
            self.conn.rx.readable = true;
            self.conn.rx.urgent = true;
            return Turn::More;
        }
        if bits & DRAIN != 0 && shared.holds.load(Ordering::Acquire) == 0 {
            if available > 0 {
                return self.rest_of_message(shared);
            }
            if !std::mem::replace(&mut self.last_look, true) {
                // A request may be in the kernel whose event is still on its way.
                self.conn.rx.readable = true;
                self.conn.rx.urgent = true;
                return Turn::More;
            }
            return self.close(shared, CloseReason::Shutdown);
        }
        Turn::Idle
    }

    /// The loop drains and a part of a message is here: it is waited for as a reading call would.
    fn rest_of_message(&mut self, shared: &Arc<Shared>) -> Turn {
        let rx = &self.conn.rx;
        let usual = shared.context.limits.read_timeout;
        if shared.rest_is_late(rx.consumed(), || rx.patience.until(usual)) {
            return self.close(shared, CloseReason::Shutdown);
        }
        Turn::Idle
    }

    /// Whether nothing is under way, as far as can be seen without asking the kernel.
    pub(super) fn is_idle(&self) -> bool {
        let conn = &self.conn;
        self.connected
            && !self.failed
            && !self.steered
            && conn.rx.len() == 0
            && conn.rx.end.is_none()
            && conn.tx.pending() == 0
            && !conn.tx.gated
            && conn.rx.shared.holds.load(Ordering::Acquire) == 0
    }

    /// The end that was asked for from outside, if it is due.
    fn ending(&mut self, shared: &Arc<Shared>) -> Option<Turn> {
        let bits = shared.word.load();
        if bits & (ABORT | CLOSE) == 0 {
            return None;
        }
        if bits & ABORT != 0 {
            return self.asked_to_end(shared).map(Turn::Over);
        }
        let reason = shared.aside.lock().reason().unwrap_or(CloseReason::Local);
        Some(self.close(shared, reason))
    }

    fn asked_to_end(&self, shared: &Shared) -> Option<CloseReason> {
        shared
            .word
            .has(ABORT | CLOSE)
            .then(|| shared.aside.lock().reason().unwrap_or(CloseReason::Local))
    }

    /// A callback failed: the end, in order. What was flushed is still sent, and what other threads have
    /// promised to send.
    fn fail(&mut self, shared: &Arc<Shared>, reason: CloseReason) -> Turn {
        self.failed = true;
        shared.aside.lock().decide(reason);
        if self.steered {
            // A relay's own promises are given up at the end only.
            return self.close(shared, reason);
        }
        // From here on a promise that is kept is news.
        shared.word.set(FAILED);
        self.wait_for_promises(shared)
    }

    /// Closes when no promise of output is left, or its peer is gone.
    fn wait_for_promises(&mut self, shared: &Arc<Shared>) -> Turn {
        if let Some(turn) = self.ending(shared) {
            return turn;
        }
        let promised = shared.holds.load(Ordering::Acquire) > 0;
        if promised && !shared.word.has(BROKEN | HUNG_UP) {
            return Turn::Idle;
        }
        let reason = shared.aside.lock().reason();
        self.close(shared, reason.unwrap_or(CloseReason::HandlerError))
    }

    /// A graceful close: over as soon as queued output is gone or its time is up.
    fn close(&mut self, shared: &Arc<Shared>, reason: CloseReason) -> Turn {
        let reason = shared.aside.lock().decide(reason);
        shared.word.set(CLOSE);
        // Over only with the flusher's role, and for good: nobody is in the middle of a message
        // then, and nobody begins one. Whoever has the role now posts news when it is done.
        if shared.word.has(BROKEN | ABORT | SEALED) || shared.word.try_hold_flush() {
            return Turn::Over(reason);
        }
        match shared.close_is_due(&self.conn.rx.socket) {
            Some(true) => {
                // The queue may be cut inside a message: nothing may follow it.
                shared.word.set(POISONED);
                shared.discard_output();
                Turn::Over(reason)
            }
            Some(false) => Turn::Idle,
            // What drained before the close was visible posts no more news.
            None if shared.word.try_hold_flush() => Turn::Over(reason),
            None => Turn::Idle,
        }
    }

    /// Acts on what a callback left behind: puts in place what it asked for, a new handler or another
    /// owner. Who has the connection now need not care what became of the callback that gave it away.
    #[inline]
    fn after_callback(
        &mut self,
        shared: &Arc<Shared>,
        called: Result<(), CloseReason>,
    ) -> Result<After, CloseReason> {
        if self.conn.is_passed_on() {
            return self.succeed(shared, called);
        }
        called.map(|()| After::Same)
    }

    #[cold]
    fn succeed(
        &mut self,
        shared: &Arc<Shared>,
        mut called: Result<(), CloseReason>,
    ) -> Result<After, CloseReason> {
        let mut after = After::Same;
        loop {
            if self.conn.is_taken() {
                return Ok(After::Taken);
            }
            called?;
            let Some(next) = self.conn.take_next() else {
                return Ok(after);
            };
            after = After::Replaced;
            shared.set_hooks(next.hooks());
            if let Some(old) = self.session.replace(next) {
                self.conn.retire(old);
            }
            self.note_session();
            self.connected = false;
            called = self.connect(shared);
        }
    }

    /// A callback gave the connection to the user: its sessions wait for the end, and if that
    /// has come already it is due now.
    fn hand_over(mut self: Box<Self>, shared: &Arc<Shared>) {
        let connected = std::mem::take(&mut self.connected);
        let mut sessions = self.conn.take_past();
        sessions.extend(self.session.take().filter(|_| connected));
        sessions.retain(|session| !session.ends_when_taken());
        shared.aside.lock().park(sessions);
        let meanwhile = shared.word.end_callback();
        if meanwhile & GONE != 0 {
            self.note_session();
            super::start::give_up(shared, self);
        } else if meanwhile & BEGIN != 0 {
            super::start::begin(shared);
        } else if meanwhile & (CLOSE | ABORT | BROKEN | PEER_CLOSED) != 0 {
            // What ended it while the callback ran has been left to us.
            shared.wake_poller();
        }
    }

    /// Runs one callback. An error or a panic is the reason the connection ends.
    fn call(
        &mut self,
        shared: &Arc<Shared>,
        what: &str,
        callback: impl FnOnce(&mut dyn Session, &mut Connection) -> io::Result<()>,
    ) -> Result<(), CloseReason> {
        let Self { conn, session, .. } = self;
        let Some(session) = session else {
            return Ok(());
        };
        // The turn is inside of the connection's callbacks already.
        let mut called = shared.caught(what, || callback(&mut **session, conn));
        if conn.tx.has_streamed() {
            called = called.map(|result| conn.tx.end_callback(result));
        }
        match called {
            None => Err(CloseReason::HandlerPanic),
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => {
                let cut_short = Error::from_io(&error);
                if matches!(cut_short, Some(Error::PeerClosed { .. })) && conn.malloc_len() > 0 {
                    // The peer stopped in the middle of a message; replies to those before it
                    // are complete and still go out.
                    if let Err(error) = conn.try_flush() {
                        crate::trace::debug!("connection {}: last flush: {error}", shared.id);
                    }
                }
                let reason = self.judge(&error);
                shared.forget_error(what, error);
                Err(reason)
            }
        }
    }

    /// The reason behind a callback's error: what ended the connection anyway, or the handler.
    fn judge(&self, error: &io::Error) -> CloseReason {
        match Error::from_io(error) {
            Some(Error::Closed(reason)) => reason,
            Some(Error::PeerClosed { .. }) => CloseReason::Peer,
            Some(Error::ReadTimeout) => CloseReason::ReadTimeout,
            Some(Error::WriteTimeout { .. } | Error::Poisoned) => CloseReason::WriteTimeout,
            Some(Error::InputLimit { .. }) => CloseReason::InputLimit,
            Some(Error::OutputFull { .. }) => CloseReason::OutputFull,
            Some(Error::Overloaded) => CloseReason::Overload,
            _ => match (FrameError::from_io(error), self.conn.rx.end) {
                (_, Some(End::Failed(kind))) => CloseReason::Error(kind),
                (Some(FrameError::TooLong { .. }), _) => CloseReason::InputLimit,
                _ => CloseReason::HandlerError,
            },
        }
    }
}

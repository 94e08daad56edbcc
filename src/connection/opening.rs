//! A connection whose socket is still being made.
//!
//! It has everything but a socket: a number, a place in the table, handles, callbacks. The owner's role
//! belongs to the attempt, which either plugs a socket in or ends the connection. Until then what handles
//! send is queued, and a close through a handle is the attempt's affair ([`Attempt::cancel`]).

use super::{
    Connection,
    close::{conclude, finish_with},
    limits::{Allowance, Manner, Sender},
    operator::Wire,
    output::{Contain, Sink},
    patience::Patience,
    process::Owner,
    shared::Shared,
    start,
    state::{ATTEND, QUEUED, RUNNING},
};
use crate::{
    context::Context,
    error::CloseReason,
    handler::Session,
    net::{Address, Socket},
    sync::Ordering,
};
use linkbuffer::LinkBuffer;
use poller::Interest;
use std::{
    io::{self, IoSlice},
    sync::Arc,
};

/// What makes the socket.
pub(crate) trait Attempt: Send + Sync {
    /// The connection's end was asked for. Returns at once, calls no user code.
    fn cancel(self: Arc<Self>);
}

/// A connection to that address, which `attempt` is to make.
pub(crate) fn opening(
    context: &Arc<Context>,
    peer: Address,
    attempt: impl FnOnce(&Arc<Shared>) -> Arc<dyn Attempt>,
) -> Arc<Shared> {
    let shared = context.connections.insert_unplugged(|key| {
        Shared::unplugged(
            Arc::clone(context),
            key,
            start::next_id(),
            peer,
            RUNNING | ATTEND,
        )
    });
    let attempt = attempt(&shared);
    shared.aside.lock().set_attempt(Some(attempt));
    shared
}

/// The socket is there: what follows is as for [`accepted`](super::accepted). `Err` tells why the
/// connection is over.
pub(crate) fn opened_for_handler(
    shared: &Arc<Shared>,
    socket: Socket,
    session: Box<dyn Session>,
) -> io::Result<()> {
    start::go(plug(shared, socket), session).map(drop)
}

/// The socket is there: what follows is as for [`dialled`](super::dialled). `Err` tells why the connection
/// is over.
pub(crate) fn opened_for_owner(shared: &Arc<Shared>, socket: Socket) -> io::Result<Connection> {
    let wire = plug(shared, socket);
    let conn = Connection::new(&wire);
    let registered = start::register(wire, Interest::HANGUP);
    if registered.is_ok() && shared.word.give_to_owner() {
        if shared.word.has(QUEUED) {
            shared.watch_output();
        }
        if shared.context.limits.idle_timeout.is_some() {
            shared.arm();
        }
        return Ok(conn);
    }
    let (error, reason) = match registered {
        Err(error) => {
            let reason = CloseReason::Error(error.kind());
            (error, reason)
        }
        Ok(()) => (shared.closed_error(), CloseReason::Local),
    };
    conclude(shared, Box::new(Owner::new(conn, None)), reason);
    Err(error)
}

/// There is no socket and there will be none. `tell` says so, as `on_disconnect` says that a connection
/// has ended.
pub(crate) fn not_opened(shared: &Arc<Shared>, reason: CloseReason, tell: impl FnOnce()) {
    let attempt = shared.aside.lock().set_attempt(None);
    finish_with(shared, reason, |_| {
        tell();
        || ()
    });
    shared
        .context
        .counters
        .closed
        .fetch_add(1, Ordering::Relaxed);
    shared.context.connections.ended(shared);
    shared.context.connections.remove(shared);
    drop(attempt);
}

fn plug(shared: &Arc<Shared>, socket: Socket) -> Arc<Wire> {
    let counters = &shared.context.counters;
    counters.accepted.fetch_add(1, Ordering::Relaxed);
    let wire = shared.plug(socket);
    let attempt = shared.aside.lock().set_attempt(None);
    drop(attempt);
    shared.touch();
    wire
}

impl Shared {
    /// Whether the socket is still being made.
    pub(crate) fn is_opening(&self) -> bool {
        self.aside.lock().attempt().is_some()
    }

    /// Has the attempt end, if there is one.
    pub(super) fn cancel_opening(&self) {
        let attempt = self.aside.lock().attempt();
        if let Some(attempt) = attempt {
            attempt.cancel();
        }
    }

    /// Queues a chain for the socket that is still being made.
    pub(super) fn submit_early(
        self: &Arc<Self>,
        chain: &mut LinkBuffer,
        patience: &Patience,
        manner: Manner,
    ) -> io::Result<()> {
        let allowance = || Allowance(self, Sender::Other);
        self.submit_to(&Early(self), chain, patience, manner, allowance)?;
        // With a socket that came meanwhile the room in it may have been reported meanwhile as well.
        if let Some(socket) = self.socket() {
            self.drive(&socket);
        }
        Ok(())
    }
}

/// A way to the peer that is not there yet.
struct Early<'a>(&'a Shared);

impl Contain for Early<'_> {
    fn contain(&self, code: impl FnOnce()) -> bool {
        Contain::contain(self.0, code)
    }

    fn charge(&self, delta: i32) {
        self.0.charge(delta);
    }

    fn weigh(&self, delta: i32) {
        Contain::weigh(self.0, delta);
    }
}

impl Sink for Early<'_> {
    fn send(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

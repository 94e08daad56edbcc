//! How a connection comes to life, changes hands and is given up.

use super::{
    Connection,
    close::{Calling, conclude, conclude_here},
    handle::ConnectionHandle,
    input::End,
    operator::Wire,
    process::Owner,
    shared::Shared,
    state::{
        ABORT, ATTEND, BROKEN, BUSY, CLOSE, CLOSED, CONNECTED, DRAIN, OWNED, QUEUED, READABLE,
        RUNNING, WRITABLE,
    },
};
use crate::{
    context::Context,
    error::{CloseReason, Error},
    handler::Session,
    net::{Address, Socket},
    sync::Ordering,
    trace,
};
use linkbuffer::LinkBuffer;
use poller::Interest;
use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Weak},
};

pub(super) fn next_id() -> u64 {
    // A plain counter that orders nothing; loom has no static atomics.
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A connected socket with a handler: prepares it, then hands it to a poller. Its `on_connect`
/// runs wherever the dispatch runs callbacks.
///
/// # Errors
///
/// What `on_prepare` or the registration failed with; the connection is over then and its close
/// callbacks have run.
pub(crate) fn accepted(
    context: &Arc<Context>,
    socket: Socket,
    peer: Address,
    session: Box<dyn Session>,
) -> io::Result<ConnectionHandle> {
    go(insert(context, socket, peer, RUNNING | ATTEND), session)
}

/// As [`accepted`], from when the connection is in the table.
pub(super) fn go(wire: Arc<Wire>, session: Box<dyn Session>) -> io::Result<ConnectionHandle> {
    let shared = Arc::clone(&wire.shared);
    let context = &shared.context;
    let way = if context.is_client { "to" } else { "from" };
    trace::debug!(
        "connection {} {way} {}, here {}: it has a handler",
        shared.id,
        shared.peer,
        wire.local_address().unwrap_or(Address::Unnamed)
    );
    let hooks = session.hooks();
    let conn = Connection::new(&wire);
    let mut owner = Box::new(Owner::new(conn, Some(session)));
    if let Err(error) = owner.prepare() {
        context.counters.refused.fetch_add(1, Ordering::Relaxed);
        // Its text is the user's code.
        shared.contain("the error of on_prepare", || {
            trace::debug!("connection {} refused: {error}", shared.id);
        });
        conclude(&shared, owner, CloseReason::Refused);
        return Err(error);
    }
    if shared.word.ended() {
        let error = shared.closed_error();
        conclude(&shared, owner, CloseReason::Local);
        return Err(error);
    }
    shared.set_hooks(hooks);
    shared.owner.put(owner);
    if let Err(error) = register(wire, Interest::READ | Interest::WRITE) {
        let owner = shared.owner.take();
        if let Some(owner) = owner {
            conclude(&shared, owner, CloseReason::Error(error.kind()));
        }
        return Err(error);
    }
    let handle = ConnectionHandle::new(Arc::clone(&shared));
    begin(&shared);
    Ok(handle)
}

/// A connected socket for the caller's own use: the poller only watches for its end.
pub(crate) fn dialled(
    context: &Arc<Context>,
    socket: Socket,
    peer: Address,
) -> io::Result<Connection> {
    let wire = insert(context, socket, peer, RUNNING | OWNED | CONNECTED);
    let conn = Connection::new(&wire);
    trace::debug!(
        "connection {} to {}: its owner has it",
        conn.id(),
        conn.peer_addr()
    );
    register(wire, Interest::HANGUP)?;
    if context.limits.idle_timeout.is_some() {
        conn.shared().arm();
    }
    Ok(conn)
}

/// Gives a connection of the caller's to a handler.
pub(crate) fn attach(
    mut conn: Connection,
    session: Box<dyn Session>,
) -> io::Result<ConnectionHandle> {
    let shared = Arc::clone(&conn.rx.shared);
    if shared.word.ended() {
        return Err(shared.closed_error());
    }
    // Others work with the descriptor from here on, and some of their calls ask its mode.
    conn.rx.socket.keep_mode()?;
    let hooks = session.hooks();
    // What was received before counts as new to the handler.
    conn.rx.fresh = conn.rx.len() > 0;
    conn.rx.readable = true;
    let mut owner = Box::new(Owner::new(conn, Some(session)));
    owner.prepare()?;
    if !shared.word.hand_on() {
        // It has ended meanwhile.
        return Err(shared.closed_error());
    }
    shared.set_hooks(hooks);
    shared.set_short(false);
    shared.owner.put(owner);
    if let Some(registration) = shared.registration() {
        if let Err(error) = registration.set_interest(Interest::READ | Interest::WRITE) {
            let owner = shared.owner.take();
            if let Some(owner) = owner {
                conclude(&shared, owner, CloseReason::Error(error.kind()));
            }
            return Err(error);
        }
    }
    let handle = ConnectionHandle::new(Arc::clone(&shared));
    shared.word.set(ATTEND | READABLE | WRITABLE);
    if shared.word.may_begin() {
        begin(&shared);
    }
    Ok(handle)
}

/// Takes a connection out of its handler while a callback has it.
pub(crate) fn hijack(conn: &mut Connection) -> io::Result<Connection> {
    let shared = Arc::clone(&conn.rx.shared);
    if shared.word.ended() {
        return Err(shared.closed_error());
    }
    let elsewhere = conn.is_taken() || shared.word.has(OWNED);
    let Some(registration) = shared.registration().filter(|_| !elsewhere) else {
        let text = "hijack works in on_connect and on_request: it ends the handler's turn";
        return Err(Error::Unsupported(text).into());
    };
    registration.set_interest(Interest::HANGUP)?;
    // Hooks of a connection that has an owner are those of a pool.
    shared.set_hooks(None);
    if shared.word.set(OWNED | BUSY) & QUEUED != 0 {
        // What is queued from here on sees to it by itself.
        shared.watch_output();
    }
    // In the user's hands it keeps no chunk of the thread's.
    conn.rx.settle();
    let mut taken = Connection::new(&conn.rx.socket);
    std::mem::swap(&mut taken.rx, &mut conn.rx);
    std::mem::swap(&mut taken.tx, &mut conn.tx);
    conn.hand_value_to(&mut taken);
    conn.guard.wire = None;
    conn.rx.spend();
    conn.tx.spend();
    Ok(taken)
}

/// Takes the descriptor out.
pub(crate) fn detach(mut conn: Connection) -> io::Result<(OwnedFd, LinkBuffer)> {
    let shared = Arc::clone(&conn.rx.shared);
    shared.check_writable()?;
    conn.tx.send_streamed()?;
    let queued = shared.outbox.queued() + conn.tx.pending();
    if queued > 0 {
        return Err(Error::OutputFull { queued, limit: 0 }.into());
    }
    conn.rx.socket.keep_mode()?;
    let fd = conn.rx.socket.as_fd().try_clone_to_owned()?;
    // Inside of the callback that gave it away it ends when that returns.
    let inside = shared.word.has(BUSY);
    if !inside && !shared.word.take_back() {
        return Err(shared.closed_error());
    }
    conn.rx.socket.hand_out();
    let rest = conn.rx.take();
    // Without its socket the connection ends and leaves the descriptor's state alone.
    shared.drop_socket();
    if !inside {
        let owner = Owner::new(Connection::new(&conn.rx.socket), None);
        shared.aside.lock().decide(CloseReason::Local);
        give_up(&shared, Box::new(owner));
    }
    drop(conn);
    Ok((fd, rest))
}

/// The user let go of a connection of its own: a graceful close.
pub(crate) fn abandon(wire: &Arc<Wire>) {
    if let Some(owner) = take_back(wire) {
        give_up(&wire.shared, owner);
    }
}

/// Closes a connection of the caller's on the caller's thread and without lingering, so that its descriptor
/// is closed when this returns, unless another thread looks at the connection at this moment.
///
/// What the kernel has is still sent. Output that is queued is cut, which the peer sees by a reset.
pub(super) fn part(mut conn: Connection) -> Option<Remains> {
    conn.tx.send_last();
    let wire = conn.guard.wire.take()?;
    let remains = Remains::of(&wire);
    if let Some(mut owner) = take_back(&wire) {
        // As after the end of input: nothing is drained.
        owner.conn.rx.end = Some(End::Eof);
        if wire.shared.outbox.queued() > 0 {
            wire.shared.word.set(ABORT);
        }
        give_up(&wire.shared, owner);
    }
    drop((wire, conn));
    (!remains.is_nothing()).then_some(remains)
}

/// The owner of a connection that its user lets go of, if it is there to end it.
fn take_back(wire: &Arc<Wire>) -> Option<Box<Owner>> {
    let shared = &wire.shared;
    if shared.word.load() & (OWNED | CLOSED) != OWNED {
        return None;
    }
    if shared.context.group.is_inherited() {
        shared.leave_behind();
        return None;
    }
    shared.aside.lock().decide(CloseReason::Local);
    let owner = || Box::new(Owner::new(Connection::new(wire), None));
    shared.word.let_go().then(owner)
}

/// Ends a connection whose user let go of it: what is queued still goes out. The caller has the owner's
/// role.
pub(super) fn give_up(shared: &Arc<Shared>, owner: Box<Owner>) {
    let reason = shared.aside.lock().decide(CloseReason::Local);
    shared.word.set(CLOSE);
    if shared.is_short() {
        // An end in order would make what the peer got look complete.
        shared.word.set(ABORT);
        shared.discard_output();
    }
    let at_once = shared.outbox.queued() == 0 || shared.word.has(BROKEN | ABORT);
    // A close callback that drops a connection whose close callback drops a connection, and so on,
    // must not be a chain of calls.
    if at_once && !Calling::is_under_way() {
        return conclude_here(shared, owner, reason);
    }
    // Queued output still has to go, or others first: the poller owns the connection from here on.
    shared.owner.put(owner);
    let watched = shared
        .registration()
        .is_some_and(|r| r.set_interest(Interest::READ | Interest::WRITE).is_ok());
    if !watched {
        let owner = shared.owner.take();
        if let Some(owner) = owner {
            conclude(shared, owner, reason);
        }
        return;
    }
    shared.word.set(ATTEND | WRITABLE);
    begin(shared);
}

impl Shared {
    /// Takes a connection whose end is due out of its owner's hands; its calls fail from then on. The
    /// caller, who is the poller, has the owner's role then, and there is a turn to be run.
    pub(super) fn take_over(self: &Arc<Self>) -> bool {
        let Some(wire) = self.socket() else {
            return false;
        };
        if !self.word.take_back() {
            return false;
        }
        self.owner
            .put(Box::new(Owner::new(Connection::new(&wire), None)));
        if let Some(registration) = self.registration() {
            let interest = Interest::READ | Interest::WRITE;
            if let Err(error) = registration.set_interest(interest) {
                self.aside.lock().decide(CloseReason::Error(error.kind()));
                self.word.set(BROKEN);
            }
        }
        self.word.set(ATTEND | WRITABLE);
        true
    }

    /// Says whether the peer lacks something that it was to get. Unless more is sent its owner's close or
    /// drop of the connection is a reset then.
    pub(crate) fn set_short(&self, short: bool) {
        let messages = short.then(|| self.outbox.messages());
        self.aside.lock().set_short_after(messages);
    }

    /// Whether the peer lacks something, and nothing was sent since.
    pub(super) fn is_short(&self) -> bool {
        let after = self.aside.lock().short_after();
        after.is_some_and(|messages| messages == self.outbox.messages())
    }
}

impl Shared {
    /// Lets go of the descriptor in a process that was forked, and of nothing else: the connection is the
    /// other process's, which goes on with it. No callback is called, and no state of a handler is dropped.
    pub(crate) fn leave_behind(&self) {
        // A lock that was held at the fork stays so.
        let wire = self
            .aside
            .try_lock()
            .and_then(|mut aside| aside.wire.take());
        if let Some(registration) = self.registration() {
            registration.detach();
        }
        if let Some(owner) = self.owner.take() {
            owner.leave_behind();
        }
        drop(wire);
    }
}

/// What is left of a connection that was given up: nothing, once its descriptor is closed.
#[derive(Debug)]
pub(crate) struct Remains(Weak<Wire>);

impl Remains {
    pub(super) fn of(wire: &Arc<Wire>) -> Self {
        Self(Arc::downgrade(wire))
    }

    pub(crate) fn is_nothing(&self) -> bool {
        self.0.strong_count() == 0
    }
}

fn insert(context: &Arc<Context>, socket: Socket, peer: Address, bits: u32) -> Arc<Wire> {
    context.counters.accepted.fetch_add(1, Ordering::Relaxed);
    let wire = context
        .connections
        .insert(|key| Shared::open(Arc::clone(context), key, next_id(), socket, peer, bits));
    if context.is_draining() {
        wire.shared.word.set(DRAIN);
    }
    wire
}

pub(super) fn register(wire: Arc<Wire>, interest: Interest) -> io::Result<()> {
    if cfg!(shuttle) {
        // Models play the poller.
        return Ok(());
    }
    let shared = Arc::clone(&wire.shared);
    let registration = shared.context.group.register_entry(wire, interest)?;
    shared.set_registration(registration);
    Ok(())
}

/// Lets the poller schedule the owner for the first time.
///
/// A new registration reports a writable socket. If that came while the role was still ours
/// nobody acted on it, so the poller must be asked to look again.
pub(super) fn begin(shared: &Arc<Shared>) {
    shared.touch();
    shared.arm();
    if shared.word.release() & WRITABLE != 0 {
        shared.wake_poller();
    }
}

//! Connections kept for the next call.
//!
//! A pooled connection is handed out only if nothing speaks against it: the poller has not seen
//! its end, and a look without reading (`MSG_PEEK`) finds neither input that nobody asked for
//! nor an end that was not reported yet. It comes back only if nothing is under way on it, and without
//! what its user has set: timeouts, deadlines, close callbacks.
//!
//! What the pool closes it closes at once, on the thread that gives it up: the place counts as taken until
//! the descriptor is closed. A connection that ends while it is kept, and one that was kept for too long,
//! is closed on a poller's thread ([`Watch`], and the shelf's alarm).

use super::{
    Dialer,
    builder::PoolBuilder,
    shelf::{Keep, Options, Rest, Shelf, Slot, Wait},
};
use crate::{
    connection::{Connection, ConnectionHandle, Remains, Shared},
    handler::Hooks,
    net::{Address, Peek},
    sync::Mutex,
};
use poller::{PollerHandle, TimerKey};
use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

/// Reuses connections per address. Clones are the same pool; options are the
/// [builder's](PoolBuilder), and do not change later.
///
/// ```no_run
/// use netpoll::{Address, Dialer, Pool};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// let pool = Pool::builder(Dialer::new())
///     .max_total(32)
///     .wait(Duration::from_secs(1))
///     .build()?;
/// let server = "127.0.0.1:6379".parse::<Address>()?;
/// let mut conn = pool.get(&server)?;
/// conn.write_str("PING\r\n")?;
/// conn.flush()?;
/// conn.until(b'\n')?;
/// // Dropped here: the connection goes back, for its reply was read to the end.
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    dialer: Dialer,
    /// Boxed, so that a loan moves a pointer.
    shelf: Shelf<Address, Box<Connection>>,
    /// The shelf's alarm, if one is set.
    alarm: Mutex<Option<(PollerHandle, TimerKey)>>,
}

/// What a pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Connections kept for the next call, now.
    pub idle: usize,
    /// Connections handed out or being dialled, now.
    pub in_use: usize,
    /// Connections that are over and whose descriptor is about to be closed, now.
    pub closing: usize,
    /// Calls that wait for a connection, now.
    pub waiting: usize,
    /// Calls served with a kept connection.
    pub reused: u64,
    /// Calls that dialled.
    pub dialled: u64,
    /// Dials that failed.
    pub failed: u64,
    /// Kept connections that ended, or were found dead, dirty or too old.
    pub discarded: u64,
    /// Connections that did not come back to be kept: not sound, one more than are kept, or taken out
    /// for good ([`Pooled::discard`], [`Pooled::into_inner`]).
    pub rejected: u64,
    /// The most connections that existed at once.
    pub peak: usize,
}

impl Pool {
    /// A pool with the default options: 64 idle connections per address for at most 60 s, no limit on
    /// the total. The short form of `Pool::builder(dialer).build()`.
    pub fn new(dialer: Dialer) -> Self {
        Self::with_options(dialer, Options::default())
    }

    /// A pool with other options, that opens connections with `dialer`.
    pub fn builder(dialer: Dialer) -> PoolBuilder {
        PoolBuilder::new(dialer)
    }

    pub(super) fn with_options(dialer: Dialer, options: Options) -> Self {
        let inner = Arc::new_cyclic(|inner: &Weak<Inner>| {
            let inner = Weak::clone(inner);
            let alarm = move |after| {
                if let Some(pool) = inner.upgrade() {
                    pool.set_alarm(after);
                }
            };
            Inner {
                dialer,
                shelf: Shelf::new(options, Box::new(alarm)),
                alarm: Mutex::new(None),
            }
        });
        Self { inner }
    }

    /// A connection to `address`: a kept one if there is a sound one, otherwise a new one.
    ///
    /// When the total is reached it waits as long as [`PoolBuilder::wait`] says. Those who wait for an
    /// address are served in the order in which they came. While the thread of the first of them wakes up, a
    /// caller that runs may take what came back and return it, if loans are shorter than that: at most twelve
    /// such callers for each connection of the address, and then as many waiters are served as it has
    /// connections. Where loans are longer, as most calls are, what comes back is handed to the first waiter;
    /// whether that has changed is tried after 16 of them, then 32, up to 512.
    ///
    /// # Errors
    ///
    /// [`Error::PoolExhausted`](crate::Error::PoolExhausted) when the total is reached (after waiting, if that is on),
    /// [`Error::ShuttingDown`](crate::Error::ShuttingDown) after [`close`](Self::close),
    /// [`Error::WouldDeadlock`](crate::Error::WouldDeadlock) if it would wait on a poller's thread that
    /// must not, and what [`Dialer::dial_connection`] returns.
    pub fn get(&self, address: &Address) -> io::Result<Pooled> {
        self.get_or_dial(address, None)
    }

    /// As [`get`](Self::get), within `timeout`: it waits that long, whatever [`PoolBuilder::wait`] says,
    /// and what is left of it is for the dial if one is needed (the dialer's own timeout holds as well).
    /// `Duration::ZERO` takes a kept connection or fails.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get); [`Error::DialTimeout`](crate::Error::DialTimeout) if the time is over
    /// while it dials.
    pub fn get_timeout(&self, address: &Address, timeout: Duration) -> io::Result<Pooled> {
        // Further away than time goes is as good as never.
        self.get_or_dial(address, Some(Instant::now().checked_add(timeout)))
    }

    /// As [`get_timeout`](Self::get_timeout), until an instant: the deadline of a whole call, for
    /// example.
    ///
    /// # Errors
    ///
    /// As [`get_timeout`](Self::get_timeout).
    pub fn get_until(&self, address: &Address, deadline: Instant) -> io::Result<Pooled> {
        self.get_or_dial(address, Some(Some(deadline)))
    }

    fn get_or_dial(
        &self,
        address: &Address,
        deadline: Option<Option<Instant>>,
    ) -> io::Result<Pooled> {
        let wait = deadline.map_or(Wait::Usual, Wait::Until);
        let (slot, kept) = self.inner.shelf.checkout(address, wait)?;
        if let Some(conn) = kept {
            return Ok(self.lend(conn, slot));
        }
        // A place is reserved: it is given back if the dial fails or panics.
        let place = Place { pool: self, slot };
        match self.inner.dialer.dial_until(address, deadline.flatten()) {
            Ok(conn) => {
                self.inner.shelf.count(|stats| stats.dialled += 1);
                std::mem::forget(place);
                self.watch(&conn, slot);
                Ok(self.lend(Box::new(conn), slot))
            }
            Err(error) => {
                self.inner.shelf.count(|stats| stats.failed += 1);
                Err(error)
            }
        }
    }

    /// Figures of this pool.
    pub fn stats(&self) -> PoolStats {
        self.inner.shelf.stats()
    }

    /// Closes kept connections that are dead, dirty or too old; returns how many. Those that ended or
    /// are too old are closed without it; it finds those with unasked-for input as well.
    pub fn evict(&self) -> usize {
        self.inner.shelf.evict()
    }

    /// Closes the kept connections; those handed out are closed when they come back.
    pub fn close(&self) {
        self.inner.shelf.close();
    }

    fn lend(&self, conn: Box<Connection>, slot: Slot) -> Pooled {
        let lease = Lease {
            pool: self.clone(),
            slot,
            number: conn.id(),
            elsewhere: None,
            over: false,
        };
        Pooled {
            conn: Some(conn),
            lease: Some(lease),
        }
    }

    /// Has the pool told when the connection ends.
    fn watch(&self, conn: &Connection, slot: Slot) {
        let pool = Arc::downgrade(&self.inner);
        conn.shared()
            .set_hooks(Some(Arc::new(Watch { pool, slot })));
    }
}

impl Inner {
    /// Has the shelf's alarm come after that time, and no other. The shelf is locked.
    fn set_alarm(self: &Arc<Self>, after: u64) {
        let Ok(poller) = self.dialer.poller() else {
            // Without pollers there was no connection either.
            return;
        };
        let Some(at) = Instant::now().checked_add(Duration::from_millis(after)) else {
            return;
        };
        let pool = Arc::downgrade(self);
        let key = poller.schedule(at, move || {
            if let Some(pool) = pool.upgrade() {
                pool.shelf.see_to();
            }
        });
        let before = self.alarm.lock().replace((poller, key));
        if let Some((poller, key)) = before {
            poller.cancel(key);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some((poller, key)) = self.alarm.lock().take() {
            poller.cancel(key);
        }
        self.shelf.close();
    }
}

impl Keep for Box<Connection> {
    type Rest = Remains;

    fn is_usable(&self) -> bool {
        self.is_sound() && self.peek_state() == Peek::Empty
    }

    fn is_alive(&self) -> bool {
        self.is_active()
    }

    fn number(&self) -> u64 {
        self.as_ref().id()
    }

    fn close(self) -> Option<Remains> {
        (*self).part()
    }
}

impl Rest for Remains {
    fn is_gone(&self) -> bool {
        self.is_nothing()
    }
}

/// Tells the pool that a connection of its has ended. One that is on loan ends as any other connection of
/// its caller's, and does not come back.
struct Watch {
    pool: Weak<Inner>,
    slot: Slot,
}

impl Hooks for Watch {
    fn in_turn(&self) -> bool {
        false
    }

    fn write_complete(&self, _: &ConnectionHandle) {}

    fn let_go(&self, shared: &Shared) -> bool {
        let pool = self.pool.upgrade();
        pool.is_some_and(|pool| pool.shelf.evict_one(self.slot, shared.id))
    }
}

/// A place in the total that was reserved for a dial.
struct Place<'a> {
    pool: &'a Pool,
    slot: Slot,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pool.inner.shelf.give_back(self.slot, |_| {});
    }
}

/// A connection on loan: it goes back to its pool when dropped, unless it is closed, half read
/// or half written, or [discarded](Self::discard).
///
/// The next user gets it as it was dialled: timeouts and deadlines are the dialer's again, close callbacks
/// are dropped. Options that were set on the descriptor itself stay. One that ends on loan, by its peer, by a
/// handle or by an idle timeout, is over as any other of its user's, and does not come back. A
/// [handle](Connection::handle) that is kept for longer than the loan still acts on the connection, which
/// another user has then: let go of it first. With a [timer](ConnectionHandle::after) that is still set, or a
/// [`PendingReply`](crate::PendingReply), a connection is not kept.
pub struct Pooled {
    conn: Option<Box<Connection>>,
    lease: Option<Lease>,
}

/// A place in a pool's total, for a connection that may come back.
pub(crate) struct Lease {
    pool: Pool,
    slot: Slot,
    /// Of the connection.
    number: u64,
    /// The connection is somewhere else.
    elsewhere: Option<Remains>,
    /// The place was given back.
    over: bool,
}

impl Lease {
    /// Gives the connection back, or closes it if it is not sound.
    pub(crate) fn restore(mut self, mut conn: Box<Connection>) {
        if !self.is_for(&conn) {
            return;
        }
        if self.elsewhere.is_some() {
            self.pool.watch(&conn, self.slot);
        }
        if !conn.renew() {
            return self.discard(conn);
        }
        match self.pool.inner.shelf.put_back(self.slot, conn) {
            None => self.over = true,
            Some(conn) => self.discard(conn),
        }
    }

    /// Closes the connection.
    pub(crate) fn discard(mut self, conn: Box<Connection>) {
        if self.is_for(&conn) {
            self.over = true;
            let shelf = &self.pool.inner.shelf;
            shelf.discard(self.slot, conn, |stats| stats.rejected += 1);
        }
    }

    /// Whether that is the connection that was lent: through a mutable reference it can be exchanged for
    /// any other.
    fn is_for(&self, conn: &Connection) -> bool {
        conn.id() == self.number
    }
}

/// The connection does not come back.
impl Drop for Lease {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let shelf = &self.pool.inner.shelf;
        match self.elsewhere.take() {
            Some(rest) if !rest.is_nothing() => {
                shelf.expect(self.slot, rest, |stats| stats.rejected += 1);
            }
            _ => shelf.give_back(self.slot, |stats| stats.rejected += 1),
        }
    }
}

impl Pooled {
    /// Closes the connection instead of giving it back: at once. What was flushed is still sent by the
    /// kernel; output that is queued, and input that comes later, is not waited for.
    pub fn discard(mut self) {
        if let (Some(conn), Some(lease)) = (self.conn.take(), self.lease.take()) {
            lease.discard(conn);
        }
    }

    /// Takes the connection out of the pool for good: it does not count there any more.
    pub fn into_inner(mut self) -> Connection {
        let (conn, lease) = self.take();
        drop(lease);
        conn.shared().set_hooks(None);
        *conn
    }

    /// The connection and its way back.
    pub(crate) fn into_parts(mut self) -> (Connection, Lease) {
        let (conn, mut lease) = self.take();
        lease.elsewhere = Some(conn.remains());
        (*conn, lease)
    }

    fn take(&mut self) -> (Box<Connection>, Lease) {
        let parts = self.conn.take().zip(self.lease.take());
        parts.expect("a loan holds its connection until it is dropped")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let (Some(conn), Some(lease)) = (self.conn.take(), self.lease.take()) {
            // What a panic left behind is not to be trusted.
            if std::thread::panicking() {
                lease.discard(conn);
            } else {
                lease.restore(conn);
            }
        }
    }
}

impl Deref for Pooled {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.conn
            .as_ref()
            .expect("a loan holds its connection until it is dropped")
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut Connection {
        self.conn
            .as_mut()
            .expect("a loan holds its connection until it is dropped")
    }
}

impl fmt::Debug for Pooled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pooled").field(&self.conn).finish()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

//! Connections kept for the next call.
//!
//! A pooled connection is handed out only if nothing speaks against it: the poller has not seen
//! its end, and a look without reading (`MSG_PEEK`) finds neither input that nobody asked for
//! nor an end that was not reported yet. It comes back only if nothing is under way on it.

use super::{
    Dialer,
    shelf::{Keep, Options, Shelf, Slot},
};
use crate::{
    connection::Connection,
    net::{Address, Peek},
};
use std::{
    fmt, io,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

/// Reuses connections per address. Clones are the same pool.
///
/// ```no_run
/// use netpoll::{Address, Dialer, Pool};
///
/// # fn main() -> std::io::Result<()> {
/// let pool = Pool::new(Dialer::new()).max_total(32);
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
    shelf: Shelf<Address, Connection>,
}

/// What a pool has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Connections kept for the next call, now.
    pub idle: usize,
    /// Connections handed out or being dialled, now.
    pub in_use: usize,
    /// Calls served with a kept connection.
    pub reused: u64,
    /// Calls that dialled.
    pub dialled: u64,
    /// Dials that failed.
    pub failed: u64,
    /// Kept connections that were found dead, dirty or too old.
    pub discarded: u64,
    /// Connections that did not come back to be kept: not sound, one more than are kept, or taken out
    /// for good ([`Pooled::discard`], [`Pooled::into_inner`]).
    pub rejected: u64,
    /// The most connections that existed at once.
    pub peak: usize,
}

impl Pool {
    /// A pool that opens connections with `dialer`. Default: 64 idle connections per address for
    /// at most 60 s, no limit on the total.
    pub fn new(dialer: Dialer) -> Self {
        let options = Options {
            max_idle: 64,
            max_total: usize::MAX,
            idle_timeout: Some(Duration::from_secs(60)),
            wait: None,
        };
        Self {
            inner: Arc::new(Inner {
                dialer,
                shelf: Shelf::new(options),
            }),
        }
    }

    /// At most this many connections per address are kept for the next call.
    pub fn max_idle(self, max: usize) -> Self {
        self.option(|options| options.max_idle = max)
    }

    /// At most this many connections per address exist at once; callers beyond that wait or fail,
    /// see [`wait`](Self::wait).
    pub fn max_total(self, max: usize) -> Self {
        self.option(|options| options.max_total = max.max(1))
    }

    /// Connections that were kept for longer than this are not used again. Told by a clock with steps of
    /// up to 10 ms: at the end of its time one may be taken for too old by that much, and none is kept for
    /// a shorter time than that.
    pub fn idle_timeout(self, timeout: Duration) -> Self {
        self.option(|options| options.idle_timeout = Some(timeout))
    }

    /// How long [`get`](Self::get) waits for a connection to come back when the total is reached.
    /// Default: not at all.
    pub fn wait(self, timeout: Duration) -> Self {
        self.option(|options| options.wait = Some(timeout))
    }

    /// A connection to `address`: a kept one if there is a sound one, otherwise a new one.
    ///
    /// # Errors
    ///
    /// [`Error::PoolExhausted`](crate::Error::PoolExhausted) when the total is reached (after waiting, if that is on),
    /// [`Error::ShuttingDown`](crate::Error::ShuttingDown) after [`close`](Self::close), and what
    /// [`Dialer::dial_connection`] returns.
    pub fn get(&self, address: &Address) -> io::Result<Pooled> {
        let (slot, kept) = self.inner.shelf.checkout(address)?;
        if let Some(conn) = kept {
            return Ok(self.lend(conn, slot));
        }
        // A place is reserved: it is given back if the dial fails or panics.
        let place = Place { pool: self, slot };
        match self.inner.dialer.dial_connection(address.clone()) {
            Ok(conn) => {
                self.inner.shelf.count(|stats| stats.dialled += 1);
                std::mem::forget(place);
                Ok(self.lend(conn, slot))
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

    /// Closes kept connections that are dead, dirty or too old; returns how many. Needed only to
    /// give descriptors back early: no dead connection is ever handed out.
    pub fn evict(&self) -> usize {
        self.inner.shelf.evict()
    }

    /// Closes the kept connections; those handed out are closed when they come back.
    pub fn close(&self) {
        self.inner.shelf.close();
    }

    fn lend(&self, conn: Connection, slot: Slot) -> Pooled {
        let lease = Lease {
            pool: self.clone(),
            slot,
            used: false,
        };
        Pooled {
            conn: Some(conn),
            lease: Some(lease),
        }
    }

    fn option(self, change: impl FnOnce(&mut Options)) -> Self {
        self.inner.shelf.set(change);
        self
    }
}

impl Keep for Connection {
    fn is_usable(&self) -> bool {
        self.is_sound() && self.peek_state() == Peek::Empty
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
pub struct Pooled {
    conn: Option<Connection>,
    lease: Option<Lease>,
}

/// A place in a pool's total, for a connection that may come back.
pub(crate) struct Lease {
    pool: Pool,
    slot: Slot,
    used: bool,
}

impl Lease {
    /// Gives the connection back, or closes it if it is not sound.
    pub(crate) fn restore(mut self, mut conn: Connection) {
        if !conn.is_sound() {
            return;
        }
        conn.settle();
        let rejected = self.pool.inner.shelf.keep(self.slot, conn);
        self.used = rejected.is_none();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.used {
            self.pool
                .inner
                .shelf
                .give_back(self.slot, |stats| stats.rejected += 1);
        }
    }
}

impl Pooled {
    /// Closes the connection instead of giving it back.
    pub fn discard(mut self) {
        self.conn.take();
    }

    /// Takes the connection out of the pool for good.
    pub fn into_inner(self) -> Connection {
        self.into_parts().0
    }

    /// The connection and its way back.
    pub(crate) fn into_parts(mut self) -> (Connection, Lease) {
        let parts = self.conn.take().zip(self.lease.take());
        parts.expect("a loan holds its connection until it is dropped")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let (Some(conn), Some(lease)) = (self.conn.take(), self.lease.take()) {
            // What a panic left behind is not to be trusted.
            if !std::thread::panicking() {
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

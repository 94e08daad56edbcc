//! Connections kept for the next call.
//!
//! A pooled connection is handed out only if nothing speaks against it: the poller has not seen
//! its end, and a look without reading (`MSG_PEEK`) finds neither input that nobody asked for
//! nor an end that was not reported yet. It comes back only if nothing is under way on it.

use super::Dialer;
use crate::{
    connection::Connection,
    error::Error,
    net::{Address, Peek},
    sync::{Condvar, Mutex},
};
use std::{
    collections::HashMap,
    fmt, io,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::{Duration, Instant},
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
    options: Mutex<Options>,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Clone, Copy)]
struct Options {
    max_idle: usize,
    max_total: usize,
    idle_timeout: Option<Duration>,
    wait: Option<Duration>,
}

#[derive(Default)]
struct State {
    targets: HashMap<Address, Target>,
    stats: PoolStats,
    closed: bool,
}

#[derive(Default)]
struct Target {
    /// Most recently used last.
    idle: Vec<Idle>,
    /// Idle, handed out and being dialled.
    total: usize,
}

struct Idle {
    conn: Connection,
    since: Instant,
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
    /// Returned connections that were not sound enough to keep.
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
                options: Mutex::new(options),
                state: Mutex::new(State::default()),
                freed: Condvar::new(),
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

    /// Kept connections older than this are not used again.
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
    /// [`Error::PoolExhausted`] when the total is reached (after waiting, if that is on),
    /// [`Error::ShuttingDown`] after [`close`](Self::close), and what
    /// [`Dialer::dial_connection`] returns.
    pub fn get(&self, address: &Address) -> io::Result<Pooled> {
        let options = *self.inner.options.lock();
        match self.checkout(address, options)? {
            Some(conn) => Ok(self.lend(conn, address)),
            None => {
                // A place is reserved: it is given back if the dial fails or panics.
                let place = Place {
                    pool: self,
                    address,
                };
                let dialled = self.inner.dialer.dial_connection(address.clone());
                let mut state = self.inner.state.lock();
                match dialled {
                    Ok(conn) => {
                        state.stats.dialled += 1;
                        drop(state);
                        std::mem::forget(place);
                        Ok(self.lend(conn, address))
                    }
                    Err(error) => {
                        state.stats.failed += 1;
                        drop(state);
                        Err(error)
                    }
                }
            }
        }
    }

    /// Figures of this pool.
    pub fn stats(&self) -> PoolStats {
        let state = self.inner.state.lock();
        let idle = state.targets.values().map(|target| target.idle.len()).sum();
        let total: usize = state.targets.values().map(|target| target.total).sum();
        PoolStats {
            idle,
            in_use: total - idle,
            ..state.stats
        }
    }

    /// Closes kept connections that are dead, dirty or too old; returns how many. Needed only to
    /// give descriptors back early: no dead connection is ever handed out.
    pub fn evict(&self) -> usize {
        let options = *self.inner.options.lock();
        let now = Instant::now();
        let mut dead = Vec::new();
        let mut state = self.inner.state.lock();
        for target in state.targets.values_mut() {
            let (keep, drop): (Vec<_>, Vec<_>) = std::mem::take(&mut target.idle)
                .into_iter()
                .partition(|idle| idle.is_usable(options.idle_timeout, now));
            target.idle = keep;
            target.total -= drop.len();
            dead.extend(drop);
        }
        state.targets.retain(|_, target| target.total > 0);
        state.stats.discarded += dead.len() as u64;
        drop(state);
        self.inner.freed.notify_all();
        dead.len()
    }

    /// Closes the kept connections; those handed out are closed when they come back.
    pub fn close(&self) {
        let mut state = self.inner.state.lock();
        state.closed = true;
        let mut idle = Vec::new();
        for target in state.targets.values_mut() {
            target.total -= target.idle.len();
            idle.append(&mut target.idle);
        }
        drop(state);
        self.inner.freed.notify_all();
        drop(idle);
    }

    /// A usable kept connection, or `None` with a place reserved for a new one.
    fn checkout(&self, address: &Address, options: Options) -> io::Result<Option<Connection>> {
        let mut deadline = None;
        loop {
            let mut state = self.inner.state.lock();
            if state.closed {
                return Err(Error::ShuttingDown.into());
            }
            let target = state.target(address);
            if let Some(idle) = target.idle.pop() {
                // Looked at outside of the lock: it is a system call.
                drop(state);
                if idle.is_usable(options.idle_timeout, Instant::now()) {
                    self.inner.state.lock().stats.reused += 1;
                    return Ok(Some(idle.conn));
                }
                drop(idle);
                self.inner.give_back(address, |stats| stats.discarded += 1);
                continue;
            }
            if target.total < options.max_total {
                target.total += 1;
                let total: usize = state.targets.values().map(|target| target.total).sum();
                state.stats.peak = state.stats.peak.max(total);
                return Ok(None);
            }
            let Some(wait) = options.wait else {
                return Err(Error::PoolExhausted.into());
            };
            if poller::must_not_block() {
                return Err(Error::WouldDeadlock.into());
            }
            let until = *deadline.get_or_insert_with(|| Instant::now().checked_add(wait));
            // The role must be given away without our lock held.
            drop(state);
            poller::before_blocking();
            let mut state = self.inner.state.lock();
            let target = state.target(address);
            if !target.idle.is_empty() || target.total < options.max_total || state.closed {
                continue;
            }
            match until {
                None => self.inner.freed.wait(&mut state),
                Some(until) => {
                    let timed_out = self.inner.freed.wait_until(&mut state, until).timed_out();
                    let target = state.target(address);
                    if timed_out && target.idle.is_empty() && target.total >= options.max_total {
                        return Err(Error::PoolExhausted.into());
                    }
                }
            }
        }
    }

    fn lend(&self, conn: Connection, address: &Address) -> Pooled {
        let lease = Lease {
            pool: self.clone(),
            address: address.clone(),
            used: false,
        };
        Pooled {
            conn: Some(conn),
            lease: Some(lease),
        }
    }

    fn option(self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.inner.options.lock());
        self
    }
}

impl Inner {
    /// One connection less.
    fn give_back(&self, address: &Address, count: impl FnOnce(&mut PoolStats)) {
        let mut state = self.state.lock();
        if let Some(target) = state.targets.get_mut(address) {
            target.total -= 1;
            if target.total == 0 {
                state.targets.remove(address);
            }
        }
        count(&mut state.stats);
        drop(state);
        self.freed.notify_all();
    }

    /// Takes a connection back; returns it if it is not to be kept.
    fn keep(&self, address: &Address, conn: Connection) -> Option<Connection> {
        let options = *self.options.lock();
        let mut state = self.state.lock();
        if state.closed {
            return Some(conn);
        }
        let target = state.target(address);
        if target.idle.len() >= options.max_idle {
            return Some(conn);
        }
        target.idle.push(Idle {
            conn,
            since: Instant::now(),
        });
        drop(state);
        self.freed.notify_all();
        None
    }
}

impl State {
    fn target(&mut self, address: &Address) -> &mut Target {
        if !self.targets.contains_key(address) {
            self.targets.insert(address.clone(), Target::default());
        }
        self.targets.get_mut(address).expect("inserted above")
    }
}

impl Idle {
    fn is_usable(&self, timeout: Option<Duration>, now: Instant) -> bool {
        let young = timeout.is_none_or(|t| now.saturating_duration_since(self.since) < t);
        young && self.conn.is_sound() && self.conn.peek_state() == Peek::Empty
    }
}

/// A place in the total that was reserved for a dial.
struct Place<'a> {
    pool: &'a Pool,
    address: &'a Address,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.pool.inner.give_back(self.address, |_| {});
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
    address: Address,
    used: bool,
}

impl Lease {
    /// Gives the connection back, or closes it if it is not sound.
    pub(crate) fn restore(mut self, mut conn: Connection) {
        if !conn.is_sound() {
            return;
        }
        conn.settle();
        let rejected = self.pool.inner.keep(&self.address, conn);
        self.used = rejected.is_none();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.used {
            self.pool
                .inner
                .give_back(&self.address, |stats| stats.rejected += 1);
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

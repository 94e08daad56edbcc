//! The books of a pool: which connections are kept, how many exist, who waits for one.
//!
//! * Every connection that is kept, lent or being dialled is counted once in its target's `total`,
//!   which never passes the limit. Whoever takes a connection or a place must give it back:
//!   [`Shelf::keep`] or [`Shelf::give_back`].
//! * Whatever makes room or ends the pool is done under the lock and followed by a notification;
//!   a caller that waits looks under the same lock before every wait. No room goes unnoticed.
//! * A kept connection is looked at without the lock: only the one who took it out sees it.
//!
//! It knows nothing of sockets, so that loom and shuttle run it as it is (`models.rs`).

use super::pool::PoolStats;
use crate::{
    error::Error,
    sync::{Condvar, Mutex},
};
use std::{
    collections::HashMap,
    hash::Hash,
    io,
    time::{Duration, Instant},
};

/// What can be kept.
pub(super) trait Keep {
    /// Whether it is as good as new. May be a system call that does not wait.
    fn is_usable(&self) -> bool;
}

/// Values of type `C` by key.
pub(super) struct Shelf<K, C> {
    options: Mutex<Options>,
    state: Mutex<State<K, C>>,
    freed: Condvar,
}

/// What the pool's builder sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) max_idle: usize,
    pub(super) max_total: usize,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) wait: Option<Duration>,
}

struct State<K, C> {
    targets: HashMap<K, Target<C>>,
    stats: PoolStats,
    closed: bool,
}

struct Target<C> {
    /// Most recently used last.
    idle: Vec<Idle<C>>,
    /// Idle, handed out and being dialled.
    total: usize,
}

struct Idle<C> {
    value: C,
    since: Instant,
}

impl<K: Clone + Eq + Hash, C: Keep> Shelf<K, C> {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options: Mutex::new(options),
            state: Mutex::new(State {
                targets: HashMap::new(),
                stats: PoolStats::default(),
                closed: false,
            }),
            freed: Condvar::new(),
        }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.options.lock());
    }

    /// A usable kept value, or `None` with a place reserved for a new one. Waits for either as
    /// long as the options say.
    pub(super) fn checkout(&self, key: &K) -> io::Result<Option<C>> {
        let options = *self.options.lock();
        let mut deadline = None;
        loop {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Error::ShuttingDown.into());
            }
            let target = state.target(key);
            if let Some(idle) = target.idle.pop() {
                // Looked at outside of the lock: it is a system call.
                drop(state);
                if idle.is_usable(options.idle_timeout, Instant::now()) {
                    self.count(|stats| stats.reused += 1);
                    return Ok(Some(idle.value));
                }
                drop(idle);
                self.give_back(key, |stats| stats.discarded += 1);
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
            let mut state = self.state.lock();
            if state.has_room(key, options.max_total) {
                continue;
            }
            match until {
                None => self.freed.wait(&mut state),
                Some(until) => {
                    let timed_out = self.freed.wait_until(&mut state, until).timed_out();
                    if timed_out && !state.has_room(key, options.max_total) {
                        return Err(Error::PoolExhausted.into());
                    }
                }
            }
        }
    }

    /// Takes a value back; returns it if it is not to be kept. It is still counted then.
    pub(super) fn keep(&self, key: &K, value: C) -> Option<C> {
        let options = *self.options.lock();
        let mut state = self.state.lock();
        if state.closed {
            return Some(value);
        }
        let target = state.target(key);
        if target.idle.len() >= options.max_idle {
            return Some(value);
        }
        target.idle.push(Idle {
            value,
            since: Instant::now(),
        });
        drop(state);
        self.freed.notify_all();
        None
    }

    /// One connection less: it is gone, or was never made.
    pub(super) fn give_back(&self, key: &K, count: impl FnOnce(&mut PoolStats)) {
        self.release(key, 1, count);
    }

    fn release(&self, key: &K, connections: usize, count: impl FnOnce(&mut PoolStats)) {
        let mut state = self.state.lock();
        if let Some(target) = state.targets.get_mut(key) {
            target.total -= connections;
            if target.total == 0 {
                state.targets.remove(key);
            }
        }
        count(&mut state.stats);
        drop(state);
        self.freed.notify_all();
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut PoolStats)) {
        count(&mut self.state.lock().stats);
    }

    pub(super) fn stats(&self) -> PoolStats {
        let state = self.state.lock();
        let idle = state.targets.values().map(|target| target.idle.len()).sum();
        let total: usize = state.targets.values().map(|target| target.total).sum();
        PoolStats {
            idle,
            in_use: total - idle,
            ..state.stats
        }
    }

    /// Drops what is kept and not usable any more; how many that were.
    pub(super) fn evict(&self) -> usize {
        let options = *self.options.lock();
        let now = Instant::now();
        let mut dead = Vec::new();
        let mut state = self.state.lock();
        for (key, target) in &mut state.targets {
            let (keep, drop): (Vec<_>, Vec<_>) = std::mem::take(&mut target.idle)
                .into_iter()
                .partition(|idle| idle.is_usable(options.idle_timeout, now));
            target.idle = keep;
            if !drop.is_empty() {
                dead.push((key.clone(), drop));
            }
        }
        drop(state);
        let mut evicted = 0;
        for (key, idle) in dead {
            let count = idle.len();
            // Their places are free when they are gone, not before.
            drop(idle);
            self.release(&key, count, |stats| stats.discarded += count as u64);
            evicted += count;
        }
        evicted
    }

    /// Drops what is kept; from now on nothing is handed out and nothing is kept.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let mut idle = Vec::new();
        for target in state.targets.values_mut() {
            target.total -= target.idle.len();
            idle.append(&mut target.idle);
        }
        state.targets.retain(|_, target| target.total > 0);
        drop(state);
        self.freed.notify_all();
        drop(idle);
    }
}

impl<K: Clone + Eq + Hash, C> State<K, C> {
    fn target(&mut self, key: &K) -> &mut Target<C> {
        if !self.targets.contains_key(key) {
            self.targets.insert(key.clone(), Target::default());
        }
        self.targets.get_mut(key).expect("inserted above")
    }

    /// Whether a caller need not wait.
    fn has_room(&self, key: &K, max_total: usize) -> bool {
        self.closed
            || self
                .targets
                .get(key)
                .is_none_or(|target| !target.idle.is_empty() || target.total < max_total)
    }
}

impl<C> Default for Target<C> {
    fn default() -> Self {
        Self {
            idle: Vec::new(),
            total: 0,
        }
    }
}

impl<C: Keep> Idle<C> {
    fn is_usable(&self, timeout: Option<Duration>, now: Instant) -> bool {
        let young = timeout.is_none_or(|t| now.saturating_duration_since(self.since) < t);
        young && self.value.is_usable()
    }
}

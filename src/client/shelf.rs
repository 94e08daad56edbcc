//! The books of a pool: which connections are kept, how many exist, who waits for one.
//!
//! * Every connection that is kept, lent or being dialled is counted once in its target's `total`,
//!   which never passes the limit. Whoever takes a connection or a place must give it back:
//!   [`Shelf::keep`] or [`Shelf::give_back`].
//! * Whatever makes room or ends the pool is done under the lock and followed by a notification;
//!   a caller that waits looks under the same lock before every wait. No room goes unnoticed.
//! * A target has a slot as long as anything in it is counted. So whoever has a connection or a place
//!   finds the target again without its key.
//! * A kept connection is looked at without the lock: only the one who took it out sees it.
//!
//! It knows nothing of sockets, so that loom and shuttle run it as it is (`models.rs`).

use super::pool::PoolStats;
use crate::{
    connection::COARSE,
    error::Error,
    sync::{AtomicU64, Condvar, Mutex, Ordering},
};
use poller::coarse_millis;
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
    state: Mutex<State<K, C>>,
    freed: Condvar,
    /// Apart from the other figures, which are counted under the lock: it is the one of every call.
    reused: AtomicU64,
}

/// Where a key's values are. It stays true as long as one of them, or a place for one, is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(usize);

/// What the pool's builder sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) max_idle: usize,
    pub(super) max_total: usize,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) wait: Option<Duration>,
}

struct State<K, C> {
    options: Options,
    /// By slot; those without a key are free.
    targets: Vec<Target<K, C>>,
    slots: HashMap<K, Slot>,
    free: Vec<Slot>,
    /// The slot that was asked for last: most pools have one key, and to compare it is cheaper than to
    /// hash it.
    last: Slot,
    /// Of all targets.
    total: usize,
    stats: PoolStats,
    closed: bool,
}

struct Target<K, C> {
    key: Option<K>,
    /// Most recently used last.
    idle: Vec<Idle<C>>,
    /// Idle, handed out and being dialled.
    total: usize,
}

struct Idle<C> {
    value: C,
    /// In milliseconds of the coarse clock.
    since: u64,
}

impl<K: Clone + Eq + Hash, C: Keep> Shelf<K, C> {
    pub(super) fn new(options: Options) -> Self {
        Self {
            state: Mutex::new(State {
                options,
                targets: Vec::new(),
                slots: HashMap::new(),
                free: Vec::new(),
                last: Slot(0),
                total: 0,
                stats: PoolStats::default(),
                closed: false,
            }),
            freed: Condvar::new(),
            reused: AtomicU64::new(0),
        }
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.state.lock().options);
    }

    /// A usable kept value, or `None` with a place reserved for a new one; and where it belongs.
    /// Waits for either as long as the options say.
    pub(super) fn checkout(&self, key: &K) -> io::Result<(Slot, Option<C>)> {
        let mut deadline = None;
        loop {
            let mut state = self.state.lock();
            if state.closed {
                return Err(Error::ShuttingDown.into());
            }
            let options = state.options;
            let slot = state.slot(key);
            let target = &mut state.targets[slot.0];
            if let Some(idle) = target.idle.pop() {
                // Looked at outside of the lock: it is a system call.
                drop(state);
                if idle.is_usable(options.idle_timeout, coarse_millis()) {
                    self.reused.fetch_add(1, Ordering::Relaxed);
                    return Ok((slot, Some(idle.value)));
                }
                drop(idle);
                self.give_back(slot, |stats| stats.discarded += 1);
                continue;
            }
            if target.total < options.max_total {
                target.total += 1;
                state.total += 1;
                state.stats.peak = state.stats.peak.max(state.total);
                return Ok((slot, None));
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
    pub(super) fn keep(&self, slot: Slot, value: C) -> Option<C> {
        let mut state = self.state.lock();
        let kept = state.targets[slot.0].idle.len();
        if state.closed || kept >= state.options.max_idle {
            return Some(value);
        }
        state.targets[slot.0].idle.push(Idle {
            value,
            since: coarse_millis(),
        });
        drop(state);
        self.freed.notify_all();
        None
    }

    /// One connection less: it is gone, or was never made.
    pub(super) fn give_back(&self, slot: Slot, count: impl FnOnce(&mut PoolStats)) {
        self.release(slot, 1, count);
    }

    fn release(&self, slot: Slot, connections: usize, count: impl FnOnce(&mut PoolStats)) {
        let mut state = self.state.lock();
        state.take(slot, connections);
        count(&mut state.stats);
        drop(state);
        self.freed.notify_all();
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut PoolStats)) {
        count(&mut self.state.lock().stats);
    }

    pub(super) fn stats(&self) -> PoolStats {
        let state = self.state.lock();
        let idle = state.targets.iter().map(|target| target.idle.len()).sum();
        PoolStats {
            idle,
            in_use: state.total - idle,
            reused: self.reused.load(Ordering::Relaxed),
            ..state.stats
        }
    }

    /// Drops what is kept and not usable any more; how many that were.
    pub(super) fn evict(&self) -> usize {
        let now = coarse_millis();
        let mut dead = Vec::new();
        let mut state = self.state.lock();
        let idle_timeout = state.options.idle_timeout;
        for (index, target) in state.targets.iter_mut().enumerate() {
            let (keep, drop): (Vec<_>, Vec<_>) = std::mem::take(&mut target.idle)
                .into_iter()
                .partition(|idle| idle.is_usable(idle_timeout, now));
            target.idle = keep;
            if !drop.is_empty() {
                dead.push((Slot(index), drop));
            }
        }
        drop(state);
        let mut evicted = 0;
        for (slot, idle) in dead {
            let count = idle.len();
            // Their places are free when they are gone, not before.
            drop(idle);
            self.release(slot, count, |stats| stats.discarded += count as u64);
            evicted += count;
        }
        evicted
    }

    /// Drops what is kept; from now on nothing is handed out and nothing is kept.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let mut kept = Vec::new();
        for slot in (0..state.targets.len()).map(Slot) {
            let mut idle = std::mem::take(&mut state.targets[slot.0].idle);
            state.take(slot, idle.len());
            kept.append(&mut idle);
        }
        drop(state);
        self.freed.notify_all();
        drop(kept);
    }
}

impl<K: Clone + Eq + Hash, C> State<K, C> {
    /// Where `key`'s values are; made if there are none.
    fn slot(&mut self, key: &K) -> Slot {
        let last = self.targets.get(self.last.0);
        if !last.is_some_and(|last| last.key.as_ref() == Some(key)) {
            self.last = match self.slots.get(key) {
                Some(slot) => *slot,
                None => self.open(key),
            };
        }
        self.last
    }

    fn open(&mut self, key: &K) -> Slot {
        let target = Target {
            key: Some(key.clone()),
            idle: Vec::new(),
            total: 0,
        };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.targets[slot.0] = target;
                slot
            }
            None => {
                self.targets.push(target);
                Slot(self.targets.len() - 1)
            }
        };
        self.slots.insert(key.clone(), slot);
        slot
    }

    /// Counts less in a slot; the last one frees it.
    fn take(&mut self, slot: Slot, connections: usize) {
        self.total -= connections;
        let target = &mut self.targets[slot.0];
        target.total -= connections;
        if target.total > 0 {
            return;
        }
        if let Some(key) = target.key.take() {
            // Nothing is kept, for that would be counted.
            target.idle = Vec::new();
            self.slots.remove(&key);
            self.free.push(slot);
        }
    }

    /// Whether a caller need not wait.
    fn has_room(&self, key: &K, max_total: usize) -> bool {
        let target = self.slots.get(key).map(|slot| &self.targets[slot.0]);
        self.closed
            || target.is_none_or(|target| !target.idle.is_empty() || target.total < max_total)
    }
}

impl<C: Keep> Idle<C> {
    fn is_usable(&self, timeout: Option<Duration>, now: u64) -> bool {
        // The clock may have been behind when it came: rather too old than used too late.
        let age = Duration::from_millis(now.saturating_sub(self.since) + COARSE);
        timeout.is_none_or(|timeout| age < timeout) && self.value.is_usable()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    struct Sound(&'static str);

    impl Keep for Sound {
        fn is_usable(&self) -> bool {
            true
        }
    }

    fn shelf(idle_timeout: Option<Duration>) -> Shelf<&'static str, Sound> {
        Shelf::new(Options {
            max_idle: 2,
            max_total: 3,
            idle_timeout,
            wait: None,
        })
    }

    /// What is kept for `key`, taken out and put back.
    fn kept(shelf: &Shelf<&'static str, Sound>, key: &'static str) -> Option<&'static str> {
        let (slot, kept) = shelf.checkout(&key).unwrap();
        match kept {
            Some(Sound(name)) => {
                assert!(shelf.keep(slot, Sound(name)).is_none());
                Some(name)
            }
            None => {
                shelf.give_back(slot, |_| {});
                None
            }
        }
    }

    #[test]
    fn every_key_finds_its_own_whatever_came_and_went_between() {
        let shelf = shelf(None);
        let (a, _) = shelf.checkout(&"a").unwrap();
        let (b, _) = shelf.checkout(&"b").unwrap();
        let (c, _) = shelf.checkout(&"c").unwrap();
        assert!(a != b && b != c && a != c);
        assert!(shelf.keep(a, Sound("of a")).is_none());
        assert!(shelf.keep(c, Sound("of c")).is_none());
        // The slot of a key that has nothing any more goes to another key.
        shelf.give_back(b, |_| {});
        assert_eq!(kept(&shelf, "a"), Some("of a"));
        let (d, none) = shelf.checkout(&"d").unwrap();
        assert!(none.is_none());
        assert_eq!(d, b);
        assert_eq!(kept(&shelf, "b"), None);
        assert!(shelf.keep(d, Sound("of d")).is_none());
        for (key, value) in [("a", "of a"), ("c", "of c"), ("d", "of d"), ("d", "of d")] {
            assert_eq!(kept(&shelf, key), Some(value));
        }
        assert_eq!(kept(&shelf, "b"), None);
        let stats = shelf.stats();
        assert_eq!((stats.idle, stats.in_use, stats.peak), (3, 0, 4));
        assert_eq!(stats.reused, 5);
    }

    #[test]
    fn a_place_is_counted_until_it_is_given_back_even_after_the_close() {
        let shelf = shelf(None);
        let (slot, _) = shelf.checkout(&"a").unwrap();
        let (other, _) = shelf.checkout(&"a").unwrap();
        assert_eq!(slot, other);
        assert!(shelf.keep(slot, Sound("kept")).is_none());
        shelf.close();
        let stats = shelf.stats();
        assert_eq!((stats.idle, stats.in_use), (0, 1));
        assert!(shelf.keep(other, Sound("late")).is_some());
        shelf.give_back(other, |_| {});
        assert_eq!(shelf.stats().in_use, 0);
        assert!(shelf.checkout(&"a").is_err());
    }

    #[test]
    fn what_is_too_old_is_not_used_and_its_place_is_free() {
        let shelf = shelf(Some(Duration::from_millis(COARSE)));
        for _ in 0..5 {
            let (slot, kept) = shelf.checkout(&"a").unwrap();
            assert!(kept.is_none());
            assert!(shelf.keep(slot, Sound("old")).is_none());
        }
        assert_eq!(shelf.stats().discarded, 4);
        assert_eq!(shelf.evict(), 1);
        let stats = shelf.stats();
        assert_eq!((stats.idle, stats.in_use, stats.discarded), (0, 0, 5));
    }
}

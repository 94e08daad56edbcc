//! The live connections of a loop or dialer, and waiting for them to end.

use crate::{
    connection::{Shared, Wire},
    context::Context,
    memory::HEAVY,
    sync::{Condvar, Mutex, MutexGuard, Ordering},
};
use poller::PollerHandle;
use slab::Slab;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// Entries by which the table grows at least.
const GROWTH: usize = 64;

/// Called once when a connection is gone and another may take its place.
pub(crate) type RoomCallback = Box<dyn FnOnce() + Send>;

/// All connections until their descriptor is closed.
#[derive(Default)]
pub(crate) struct Connections {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Default)]
struct Table {
    entries: Slab<Entry>,
    /// Connections whose callbacks have not all run: entries, and what is pending.
    live: usize,
    /// Places kept for connections that are about to be inserted.
    reserved: usize,
    /// Who waits for room, by an address of theirs.
    room: Vec<(usize, RoomCallback)>,
    /// What is called when no callbacks are due any more.
    ended: Option<RoomCallback>,
    waiters: usize,
}

/// Room for a connection that is about to be accepted. It is given back when this is dropped.
pub(crate) struct Place<'a> {
    connections: &'a Connections,
    reserved: bool,
}

/// A connection that is over, but is part of something that is not: it counts as one whose callbacks
/// have not all run until this is dropped.
pub(crate) struct Pending {
    context: Arc<Context>,
}

impl Pending {
    /// To be called by a callback of the connection's. `None` if all have run.
    pub(crate) fn new(shared: &Shared) -> Option<Self> {
        let mut table = shared.context.connections.table.lock();
        let entry = table.entry(shared)?;
        // Still counted, but not by the entry.
        std::mem::take(&mut entry.live).then(|| Self {
            context: Arc::clone(&shared.context),
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let connections = &self.context.connections;
        let mut table = connections.table.lock();
        table.live -= 1;
        connections.notify(table);
    }
}

struct Entry {
    shared: Arc<Shared>,
    live: bool,
}

impl Connections {
    /// Adds the connection that `make` builds for the given key. It takes a place that was
    /// reserved, if any is.
    pub(crate) fn insert(&self, make: impl FnOnce(usize) -> Arc<Wire>) -> Arc<Wire> {
        self.add(make, |wire| &wire.shared)
    }

    /// As [`insert`](Self::insert), of a connection without a socket.
    pub(crate) fn insert_unplugged(&self, make: impl FnOnce(usize) -> Arc<Shared>) -> Arc<Shared> {
        self.add(make, |shared| shared)
    }

    fn add<T>(&self, make: impl FnOnce(usize) -> T, shared: impl FnOnce(&T) -> &Arc<Shared>) -> T {
        let mut table = self.table.lock();
        let entries = &mut table.entries;
        if entries.len() == entries.capacity() {
            // Grows by a fourth, where a vector of its own accord would double.
            entries.reserve_exact((entries.len() / 4).max(GROWTH));
        }
        let vacant = entries.vacant_entry();
        let made = make(vacant.key());
        vacant.insert(Entry {
            shared: Arc::clone(shared(&made)),
            live: true,
        });
        table.live += 1;
        table.reserved = table.reserved.saturating_sub(1);
        made
    }

    /// The callbacks of a connection have all run.
    pub(crate) fn ended(&self, shared: &Shared) {
        let mut table = self.table.lock();
        if let Some(entry) = table.entry(shared) {
            if std::mem::take(&mut entry.live) {
                table.live -= 1;
            }
        }
        self.notify(table);
    }

    /// The connection's descriptor is out of the poller.
    pub(crate) fn remove(&self, shared: &Shared) {
        let mut table = self.table.lock();
        if table.entry(shared).is_none() {
            return;
        }
        let entry = table.entries.remove(shared.key());
        if entry.live {
            table.live -= 1;
        }
        let room = std::mem::take(&mut table.room);
        self.notify(table);
        drop(entry);
        for (_, callback) in room {
            callback();
        }
    }

    /// All of them, taken out in a process that was forked; none if the lock was held at the fork.
    pub(crate) fn leave_behind(&self) -> Vec<Arc<Shared>> {
        let table = self.table.try_lock();
        table.map_or_else(Vec::new, |mut table| {
            table.entries.drain().map(|entry| entry.shared).collect()
        })
    }

    /// Connections that hold a descriptor.
    pub(crate) fn len(&self) -> usize {
        self.table.lock().entries.len()
    }

    /// All of them now.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Shared>> {
        self.table
            .lock()
            .entries
            .iter()
            .map(|(_, entry)| Arc::clone(&entry.shared))
            .collect()
    }

    /// The poller of one of them.
    pub(crate) fn some_poller(&self) -> Option<PollerHandle> {
        let table = self.table.lock();
        let mut all = table.entries.iter().map(|(_, entry)| &entry.shared);
        all.find_map(|shared| Some(shared.registration()?.poller().clone()))
    }

    /// Those that hold memory or are heavy, and how much they hold in KiB.
    pub(crate) fn holders(&self) -> Vec<(u32, Arc<Shared>)> {
        let table = self.table.lock();
        let all = table.entries.iter().map(|(_, entry)| &entry.shared);
        all.filter_map(|shared| {
            let held = shared.held.load(Ordering::Relaxed);
            (held > 0).then(|| (held & !HEAVY, Arc::clone(shared)))
        })
        .collect()
    }

    /// Keeps a place for one more connection. `None` if `max` is reached: then what `callback` makes
    /// is called when there may be a place. One callback at a time for each `who`.
    pub(crate) fn reserve(
        &self,
        max: usize,
        who: usize,
        callback: impl FnOnce() -> RoomCallback,
    ) -> Option<Place<'_>> {
        let limited = max < usize::MAX;
        if limited {
            let mut table = self.table.lock();
            if table.entries.len() + table.reserved >= max {
                if table.room.iter().all(|&(other, _)| other != who) {
                    table.room.push((who, callback()));
                }
                return None;
            }
            table.reserved += 1;
        }
        Some(Place {
            connections: self,
            reserved: limited,
        })
    }

    fn give_back(&self) {
        let mut table = self.table.lock();
        table.reserved -= 1;
        let room = std::mem::take(&mut table.room);
        drop(table);
        for (_, callback) in room {
            callback();
        }
    }

    /// Waits until no callbacks are due any more; how many connections are left at the deadline.
    pub(crate) fn wait_ended(&self, deadline: Option<Instant>) -> usize {
        self.wait(deadline, |table| table.live)
    }

    /// Waits until every descriptor is closed; how many are left at the deadline.
    pub(crate) fn wait_gone(&self, deadline: Option<Instant>) -> usize {
        self.wait(deadline, |table| table.entries.len())
    }

    /// Waits until no callbacks are due any more, or until none has ended for so long. How many
    /// connections are left then, and those whose callbacks they are.
    pub(crate) fn wait_stuck(&self, pause: Duration) -> (usize, Vec<Arc<Shared>>) {
        let mut table = self.table.lock();
        table.waiters += 1;
        let mut fewest = table.live;
        let mut until = Instant::now().checked_add(pause);
        while table.live > 0 {
            let timed_out = match until {
                None => {
                    self.changed.wait(&mut table);
                    false
                }
                Some(until) => self.changed.wait_until(&mut table, until).timed_out(),
            };
            if table.live < fewest {
                fewest = table.live;
                until = Instant::now().checked_add(pause);
            } else if timed_out {
                break;
            }
        }
        table.waiters -= 1;
        let live = table.entries.iter().filter(|(_, entry)| entry.live);
        let stuck = live.map(|(_, entry)| Arc::clone(&entry.shared)).collect();
        (table.live, stuck)
    }

    /// Calls `callback` when no callbacks of connections are due any more, at once if none are.
    pub(crate) fn when_ended(&self, callback: RoomCallback) {
        let mut table = self.table.lock();
        table.ended = Some(callback);
        self.notify(table);
    }

    fn wait(&self, deadline: Option<Instant>, left: impl Fn(&Table) -> usize) -> usize {
        let mut table = self.table.lock();
        table.waiters += 1;
        while left(&table) > 0 {
            match deadline {
                None => self.changed.wait(&mut table),
                Some(deadline) => {
                    if self.changed.wait_until(&mut table, deadline).timed_out() {
                        break;
                    }
                }
            }
        }
        table.waiters -= 1;
        left(&table)
    }

    /// Something has ended.
    fn notify(&self, mut table: MutexGuard<'_, Table>) {
        if table.waiters > 0 {
            self.changed.notify_all();
        }
        let ended = if table.live == 0 {
            table.ended.take()
        } else {
            None
        };
        drop(table);
        if let Some(callback) = ended {
            callback();
        }
    }
}

impl Place<'_> {
    /// The next connection that is inserted takes it.
    pub(crate) fn hand_over(mut self) {
        self.reserved = false;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.reserved {
            self.connections.give_back();
        }
    }
}

impl Table {
    /// The entry of this very connection; a key may have been given to another since.
    fn entry(&mut self, shared: &Shared) -> Option<&mut Entry> {
        self.entries
            .get_mut(shared.key())
            .filter(|entry| std::ptr::eq(Arc::as_ptr(&entry.shared), shared))
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::sync::AtomicUsize;

    #[test]
    fn reserved_places_count_until_they_are_given_back() {
        let connections = Connections::default();
        let called = Arc::new(AtomicUsize::new(0));
        let reserve = |who| {
            let called = Arc::clone(&called);
            connections.reserve(2, who, || {
                Box::new(move || {
                    called.fetch_add(1, Ordering::AcqRel);
                })
            })
        };
        let first = reserve(1).expect("a place");
        let second = reserve(2).expect("a place");
        // One callback for each, however often they ask.
        for who in [1, 2, 2, 1] {
            assert!(reserve(who).is_none());
        }
        assert_eq!(called.load(Ordering::Acquire), 0);
        drop(first);
        assert_eq!(called.load(Ordering::Acquire), 2);
        let third = reserve(1).expect("the place of the first");
        assert!(reserve(2).is_none());
        drop((second, third));
        assert_eq!(called.load(Ordering::Acquire), 3);
        assert_eq!(connections.len(), 0);
    }

    #[test]
    fn without_a_maximum_nothing_is_counted() {
        let connections = Connections::default();
        let places: Vec<_> = (0..100)
            .map(|who| connections.reserve(usize::MAX, who, || unreachable!("no limit")))
            .collect();
        assert!(places.iter().all(Option::is_some));
        assert_eq!(connections.table.lock().reserved, 0);
    }
}

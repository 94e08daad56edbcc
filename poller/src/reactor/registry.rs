//! The operators of one poller, found by token.
//!
//! A token is a slot index and the slot's generation. Taking an operator out bumps the
//! generation, so an event that was already on its way finds nothing, even if the slot is
//! taken again. The kernel side of a registration is changed under the same lock, so that a change of
//! interest can never hit a descriptor number that was closed and reused meanwhile.

use std::{io, sync::Arc};

use crate::{
    Interest,
    reactor::{
        entry::Entry,
        token::{GENERATION_MASK, INDEX_MASK, Token},
    },
    sync::{AtomicUsize, Mutex, Ordering},
    sys,
};

/// All operators of one poller.
pub(crate) struct Registry {
    table: Mutex<Table>,
    /// Occupied slots, readable without the lock.
    len: AtomicUsize,
}

struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// The kernel's side; absent once closed.
    selector: Option<sys::Control>,
}

/// One of the two words of a taken slot is free for a number in a vacant one.
enum Slot {
    Taken(Arc<Entry>),
    Vacant {
        /// Of the next token.
        generation: usize,
    },
}

/// A table grows by a part of itself: at most a fourth of it is unused. This many at least.
const GROWTH: usize = 64;

impl Registry {
    pub(crate) fn new(selector: sys::Control) -> Self {
        Self {
            table: Mutex::new(Table {
                slots: Vec::new(),
                free: Vec::new(),
                selector: Some(selector),
            }),
            len: AtomicUsize::new(0),
        }
    }

    /// How many operators are registered.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Puts the operator in and tells the kernel. On failure nothing stays behind.
    pub(crate) fn insert(&self, entry: &Arc<Entry>, interest: Interest) -> io::Result<()> {
        let mut guard = self.table.lock();
        let table = &mut *guard;
        let Some(selector) = &table.selector else {
            return Err(closed());
        };
        let index = match table.free.last() {
            Some(&index) => index,
            None if table.slots.len() > INDEX_MASK => {
                return Err(io::Error::other(format!(
                    "a poller holds at most {} operators; use more pollers",
                    INDEX_MASK + 1
                )));
            }
            None => table.slots.len(),
        };
        let generation = match table.slots.get(index) {
            Some(Slot::Vacant { generation }) => *generation,
            _ => 0,
        };
        let token = Token::new(index, generation);
        if !entry.state.set_token(token) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the entry was registered before; make a new one for each registration",
            ));
        }
        // The lock is held: an event that comes at once waits for the slot to be filled.
        if let Err(error) = selector.add(entry.operator.fd(), token.raw(), interest) {
            entry.state.clear_token();
            return Err(error);
        }
        let taken = Slot::Taken(Arc::clone(entry));
        if table.free.pop().is_some() {
            table.slots[index] = taken;
        } else {
            if table.slots.len() == table.slots.capacity() {
                let more = (table.slots.len() / 4).max(GROWTH);
                table.slots.reserve_exact(more);
            }
            table.slots.push(taken);
        }
        self.len.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Changes what the kernel reports; a level that is there already is reported again.
    pub(crate) fn modify(&self, token: Token, interest: Interest) -> io::Result<()> {
        let table = self.table.lock();
        match (table.find(token), &table.selector) {
            (Some(entry), Some(selector)) => {
                selector.modify(entry.operator.fd(), token.raw(), interest)
            }
            _ => Err(detached()),
        }
    }

    /// Takes the operator out of the table and of the kernel's list.
    pub(crate) fn remove(&self, token: Token) -> Option<Arc<Entry>> {
        let mut guard = self.table.lock();
        let table = &mut *guard;
        table.find(token)?;
        let vacant = Slot::Vacant {
            generation: token.generation().wrapping_add(1) & GENERATION_MASK,
        };
        let slot = &mut table.slots[token.index()];
        let Slot::Taken(entry) = std::mem::replace(slot, vacant) else {
            return None;
        };
        table.free.push(token.index());
        entry.state.detach();
        if let Some(selector) = &table.selector {
            selector.remove(entry.operator.fd());
        }
        self.len.fetch_sub(1, Ordering::Relaxed);
        Some(entry)
    }

    /// Looks up one token.
    /// Takes an operator out in a process that was forked, and leaves the system's registration alone: it
    /// is the other process's. Nothing if the lock was held at the fork, for good.
    pub(crate) fn abandon(&self, token: Token) -> Option<Arc<Entry>> {
        let mut table = self.table.try_lock()?;
        table.find(token)?;
        let vacant = Slot::Vacant {
            generation: token.generation(),
        };
        match std::mem::replace(&mut table.slots[token.index()], vacant) {
            Slot::Taken(entry) => Some(entry),
            Slot::Vacant { .. } => None,
        }
    }

    pub(crate) fn find(&self, token: Token) -> Option<Arc<Entry>> {
        self.table.lock().find(token).cloned()
    }

    /// Looks many tokens up under one lock; those that find nothing are left out. How many there were.
    pub(crate) fn resolve<T>(
        &self,
        tokens: impl Iterator<Item = (Token, T)>,
        mut found: impl FnMut(&Arc<Entry>, T),
    ) -> u64 {
        let table = self.table.lock();
        let mut count = 0;
        for (token, with) in tokens {
            count += 1;
            if let Some(entry) = table.find(token) {
                found(entry, with);
            }
        }
        count
    }

    /// Takes every operator out and refuses new ones.
    pub(crate) fn close(&self) -> Vec<Arc<Entry>> {
        let mut guard = self.table.lock();
        let table = &mut *guard;
        let selector = table.selector.take();
        let mut entries = Vec::with_capacity(self.len());
        for slot in table.slots.drain(..) {
            if let Slot::Taken(entry) = slot {
                entry.state.detach();
                if let Some(selector) = &selector {
                    selector.remove(entry.operator.fd());
                }
                entries.push(entry);
            }
        }
        table.free = Vec::new();
        self.len.store(0, Ordering::Relaxed);
        entries
    }
}

impl Table {
    fn find(&self, token: Token) -> Option<&Arc<Entry>> {
        match self.slots.get(token.index()) {
            Some(Slot::Taken(entry)) if entry.state.token() == token => Some(entry),
            _ => None,
        }
    }
}

/// The error of everything that needs an operator that is registered.
pub(crate) fn detached() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the operator is detached; register it again to change its interest",
    )
}

/// The error of everything that needs a poller that is there.
pub(crate) fn inherited() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the poller belongs to the process that this one was forked from; make a new group",
    )
}

pub(crate) fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the poller is closed; use another group",
    )
}

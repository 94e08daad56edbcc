//! The operators of one poller, found by token.
//!
//! A token is a slot index and the slot's generation. Taking an operator out bumps the
//! generation, so an event that was already on its way finds nothing, whoever sits in the slot
//! by then. The kernel side of a registration is changed under the same lock, so that a change of
//! interest can never hit a descriptor number that was closed and reused meanwhile.

use std::{io, sync::Arc};

use crate::{
    Interest, Operator, Readiness,
    control::Control,
    sync::{AtomicBool, AtomicU8, AtomicUsize, Mutex, Ordering},
    sys,
};

/// Names one registration for ever: index and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token(usize);

/// Bits of the index; the rest of a `usize` but for the highest bit is the generation.
const INDEX_BITS: u32 = if usize::BITS == 64 { 32 } else { 20 };
const INDEX_MASK: usize = (1 << INDEX_BITS) - 1;
const GENERATION_MASK: usize = usize::MAX >> (INDEX_BITS + 1);

impl Token {
    fn new(index: usize, generation: usize) -> Self {
        Self((generation & GENERATION_MASK) << INDEX_BITS | index)
    }

    fn index(self) -> usize {
        self.0 & INDEX_MASK
    }

    pub(crate) fn raw(self) -> usize {
        self.0
    }

    pub(crate) fn from_raw(raw: usize) -> Self {
        Self(raw)
    }
}

/// A registered operator.
pub(crate) struct Entry {
    pub(crate) operator: Arc<dyn Operator>,
    pub(crate) control: Arc<Control>,
    /// Out of the registry: deliver nothing any more.
    detached: AtomicBool,
    /// `on_detached` was called or is about to be.
    announced: AtomicBool,
    /// Paused: remember instead of delivering. Written by the role's holder only.
    paused: AtomicBool,
    /// Readiness bits that arrived while paused. Written by the role's holder only.
    remembered: AtomicU8,
}

impl Entry {
    pub(crate) fn is_detached(&self) -> bool {
        self.detached.load(Ordering::Acquire)
    }

    /// Whether the caller is the one to call `on_detached`.
    pub(crate) fn announce(&self) -> bool {
        !self.announced.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Delivers nothing from now on; `readiness` counts as not delivered.
    pub(crate) fn pause(&self, readiness: Readiness) {
        self.remember(readiness);
        self.paused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn remember(&self, readiness: Readiness) {
        self.remembered
            .fetch_or(readiness.bits(), Ordering::Relaxed);
    }

    /// Ends the pause and hands out what was remembered.
    pub(crate) fn resume(&self) -> Readiness {
        self.paused.store(false, Ordering::Relaxed);
        Readiness::from_bits(self.remembered.swap(0, Ordering::Relaxed))
    }
}

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

struct Slot {
    generation: usize,
    entry: Option<Arc<Entry>>,
}

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
    pub(crate) fn insert(
        &self,
        operator: Arc<dyn Operator>,
        interest: Interest,
    ) -> io::Result<Arc<Control>> {
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
        let generation = table.slots.get(index).map_or(0, |slot| slot.generation);
        let token = Token::new(index, generation);
        // The lock is held: an event that comes at once waits for the slot to be filled.
        selector.add(operator.fd(), token.raw(), interest)?;
        let control = Arc::new(Control::new(token));
        let entry = Arc::new(Entry {
            operator,
            control: control.clone(),
            detached: AtomicBool::new(false),
            announced: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            remembered: AtomicU8::new(0),
        });
        if table.free.pop().is_none() {
            table.slots.push(Slot {
                generation,
                entry: None,
            });
        }
        table.slots[index].entry = Some(entry);
        self.len.fetch_add(1, Ordering::Relaxed);
        Ok(control)
    }

    /// Changes what the kernel reports; a level that is there already is reported again.
    pub(crate) fn modify(&self, token: Token, interest: Interest) -> io::Result<()> {
        let table = self.table.lock();
        match (table.find(token), &table.selector) {
            (Some(entry), Some(selector)) => {
                selector.modify(entry.operator.fd(), token.raw(), interest)
            }
            _ => Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "the operator is detached; register it again to change its interest",
            )),
        }
    }

    /// Takes the operator out of the table and of the kernel's list.
    pub(crate) fn remove(&self, token: Token) -> Option<Arc<Entry>> {
        let mut guard = self.table.lock();
        let table = &mut *guard;
        table.find(token)?;
        let slot = &mut table.slots[token.index()];
        slot.generation = slot.generation.wrapping_add(1) & GENERATION_MASK;
        let entry = slot.entry.take()?;
        table.free.push(token.index());
        entry.detached.store(true, Ordering::Release);
        if let Some(selector) = &table.selector {
            selector.remove(entry.operator.fd());
        }
        self.len.fetch_sub(1, Ordering::Relaxed);
        Some(entry)
    }

    /// Looks up one token.
    pub(crate) fn find(&self, token: Token) -> Option<Arc<Entry>> {
        self.table.lock().find(token).cloned()
    }

    /// Looks many tokens up under one lock; those that find nothing are left out.
    pub(crate) fn resolve<T>(
        &self,
        tokens: impl Iterator<Item = (Token, T)>,
        mut found: impl FnMut(&Arc<Entry>, T),
    ) {
        let table = self.table.lock();
        for (token, with) in tokens {
            if let Some(entry) = table.find(token) {
                found(entry, with);
            }
        }
    }

    /// Takes every operator out and refuses new ones.
    pub(crate) fn close(&self) -> Vec<Arc<Entry>> {
        let mut guard = self.table.lock();
        let table = &mut *guard;
        let selector = table.selector.take();
        let mut entries = Vec::with_capacity(self.len());
        for slot in table.slots.drain(..) {
            if let Some(entry) = slot.entry {
                entry.detached.store(true, Ordering::Release);
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
        let slot = self.slots.get(token.index())?;
        if Token::new(token.index(), slot.generation) == token {
            slot.entry.as_ref()
        } else {
            None
        }
    }
}

/// The error of everything that needs a poller that is there.
pub(crate) fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the poller is closed; use another group",
    )
}

//! A list of live values, each with the place where it was made.

use std::{
    backtrace::Backtrace,
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// A kind of value that keeps memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A [`Bytes`](bytes::Bytes) that shares a chunk.
    View,
    /// A [`LinkBuffer`](crate::LinkBuffer)(crate::LinkBuffer) that shares chunks.
    Slice,
}

/// One value that is alive, and where it was made. `Display` writes all of it, with the backtrace.
#[derive(Clone)]
pub struct Leak<K = Kind> {
    kind: K,
    bytes: usize,
    pinned: usize,
    made: Instant,
    note: String,
    thread: Option<String>,
    backtrace: Arc<Backtrace>,
}

impl<K: Copy> Leak<K> {
    /// The kind of the value.
    pub fn kind(&self) -> K {
        self.kind
    }

    /// The bytes it shows; for a slice those it was made with. 0 for other values.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes it keeps from being used again: the size of the chunk, or of the first one of a
    /// slice. At least [`bytes`](Self::bytes), and just these for a chunk that came from elsewhere
    /// than a [`ChunkPool`](crate::ChunkPool).
    ///
    /// Several views of one chunk count it each.
    pub fn pinned(&self) -> usize {
        self.pinned
    }

    /// When it was made.
    pub fn made(&self) -> Instant {
        self.made
    }

    /// How long ago it was made.
    pub fn age(&self) -> Duration {
        self.made.elapsed()
    }

    /// A description; empty for memory.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// The name of the thread that made it, if it has one.
    pub fn thread(&self) -> Option<&str> {
        self.thread.as_deref()
    }

    /// Where it was made. Captured whatever `RUST_BACKTRACE` says; its first frames are those of
    /// this library. Names are looked up when it is written, which takes a while.
    pub fn backtrace(&self) -> &Backtrace {
        &self.backtrace
    }

    /// The same with another kind, for a library that has more kinds than this one.
    pub fn map_kind<L>(self, map: impl FnOnce(K) -> L) -> Leak<L> {
        Leak {
            kind: map(self.kind),
            bytes: self.bytes,
            pinned: self.pinned,
            made: self.made,
            note: self.note,
            thread: self.thread,
            backtrace: self.backtrace,
        }
    }
}

impl<K: fmt::Debug> Leak<K> {
    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)?;
        if self.pinned > 0 {
            write!(f, " of {} bytes, keeps {}", self.bytes, self.pinned)?;
        }
        if !self.note.is_empty() {
            write!(f, " {}", self.note)?;
        }
        let thread = self.thread.as_deref().unwrap_or("without a name");
        write!(f, ", made {:?} ago on thread {thread}", self.made.elapsed())
    }
}

impl<K: fmt::Debug> fmt::Display for Leak<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        write!(f, "\n{}", self.backtrace)
    }
}

impl<K: fmt::Debug> fmt::Debug for Leak<K> {
    /// Without the backtrace.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)
    }
}

/// A list of live values. Other libraries may keep one of their own.
#[derive(Debug)]
pub struct LeakRegistry<K: 'static> {
    alive: Mutex<BTreeMap<u64, Leak<K>>>,
    next: AtomicU64,
}

impl<K: Copy + 'static> LeakRegistry<K> {
    /// An empty list.
    pub const fn new() -> Self {
        Self {
            alive: Mutex::new(BTreeMap::new()),
            next: AtomicU64::new(0),
        }
    }

    /// Records a value until the guard is dropped.
    pub fn track(
        &'static self,
        kind: K,
        bytes: usize,
        pinned: usize,
        note: String,
    ) -> LeakGuard<K> {
        let leak = Leak {
            kind,
            bytes,
            pinned,
            made: Instant::now(),
            note,
            thread: thread::current().name().map(str::to_owned),
            backtrace: Arc::new(Backtrace::force_capture()),
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.alive.lock().insert(id, leak);
        LeakGuard { registry: self, id }
    }

    /// The values that are alive, oldest first.
    pub fn report(&self) -> Vec<Leak<K>> {
        self.alive.lock().values().cloned().collect()
    }
}

impl<K: Copy + 'static> Default for LeakRegistry<K> {
    fn default() -> Self {
        Self::new()
    }
}

/// Records one value until it is dropped.
#[must_use = "the value is recorded until the guard is dropped"]
pub struct LeakGuard<K: 'static> {
    registry: &'static LeakRegistry<K>,
    id: u64,
}

impl<K> LeakGuard<K> {
    /// Says more about the value.
    pub fn describe(&self, note: String) {
        if let Some(leak) = self.registry.alive.lock().get_mut(&self.id) {
            leak.note = note;
        }
    }
}

impl<K> Drop for LeakGuard<K> {
    fn drop(&mut self) {
        let leak = self.registry.alive.lock().remove(&self.id);
        // Its memory is freed without the lock.
        drop(leak);
    }
}

impl<K> fmt::Debug for LeakGuard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LeakGuard").field(&self.id).finish()
    }
}

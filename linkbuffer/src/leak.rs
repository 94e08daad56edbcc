//! Finding what keeps memory: every view and slice that is alive, and where it was made (compiled in with
//! `RUSTFLAGS="--cfg netpoll_leaks"`).
//!
//! A view of 600 bytes keeps the whole chunk alive that it was cut from, 64 KiB for what was received
//! in small pieces. Kept on purpose, in a cache say, that is what sharing means; kept by oversight it
//! is a leak that no profiler shows where it began, since chunks are allocated by whoever received.
//! So this records the place where the *view* was made.
//!
//! Recorded are views that share memory ([`next_bytes`](crate::LinkBuffer::next_bytes) of 512 bytes and
//! more) with all their clones and parts, and buffers made by [`slice`](crate::LinkBuffer::slice). A
//! slice counts until it is dropped or appended to another buffer. Copies pin nothing and are not
//! recorded, nor are views of memory that was linked instead of received: that is its owner's affair.
//!
//! For debug builds and tests: each recorded value captures a backtrace and takes a lock, and a view
//! of a chunk is no longer unique, which `Bytes::try_into_mut` notices. Nothing else changes.
//!
//! # Examples
//!
//! ```
//! use linkbuffer::{LinkBuffer, leak};
//!
//! let mut buf = LinkBuffer::new();
//! buf.write_slice(&[7; 1000]);
//! buf.flush();
//! let kept = buf.next_bytes(600)?;
//! drop(buf);
//!
//! let leaks = leak::report();
//! assert_eq!((leaks[0].bytes(), leaks[0].pinned()), (600, 4096));
//! println!("{}", leaks[0]); // with the backtrace of `next_bytes`
//!
//! drop(kept);
//! assert!(leak::report().is_empty());
//! # Ok::<(), std::io::Error>(())
//! ```

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

use bytes::Bytes;
use parking_lot::Mutex;

use crate::node::Node;
use crate::view::pinned;

/// What keeps memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A [`Bytes`] that shares a chunk.
    View,
    /// A [`LinkBuffer`](crate::LinkBuffer) that shares chunks.
    Slice,
}

/// Everything that is recorded and alive in this process, oldest first.
///
/// May be called from any thread, and takes a lock for as long as the list is copied.
pub fn report() -> Vec<Leak> {
    MEMORY.report()
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
    /// What it is.
    pub fn kind(&self) -> K {
        self.kind
    }

    /// The bytes it shows; for a slice those it was made with. 0 for what is no memory.
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

    /// What else is known about it; empty for memory.
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

/// A list of what is alive. Other libraries may keep one of their own.
#[doc(hidden)]
#[derive(Debug)]
pub struct Registry<K: 'static> {
    alive: Mutex<BTreeMap<u64, Leak<K>>>,
    next: AtomicU64,
}

impl<K: Copy + 'static> Registry<K> {
    pub const fn new() -> Self {
        Self {
            alive: Mutex::new(BTreeMap::new()),
            next: AtomicU64::new(0),
        }
    }

    /// Records a value until the guard is dropped.
    pub fn track(&'static self, kind: K, bytes: usize, pinned: usize, note: String) -> Guard<K> {
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
        Guard { registry: self, id }
    }

    pub fn report(&self) -> Vec<Leak<K>> {
        self.alive.lock().values().cloned().collect()
    }
}

impl<K: Copy + 'static> Default for Registry<K> {
    fn default() -> Self {
        Self::new()
    }
}

/// Stands for a value on a list.
#[doc(hidden)]
pub struct Guard<K: 'static> {
    registry: &'static Registry<K>,
    id: u64,
}

impl<K> Guard<K> {
    /// Says more about the value.
    pub fn describe(&self, note: String) {
        if let Some(leak) = self.registry.alive.lock().get_mut(&self.id) {
            leak.note = note;
        }
    }
}

impl<K> Drop for Guard<K> {
    fn drop(&mut self) {
        let leak = self.registry.alive.lock().remove(&self.id);
        // Its memory is freed without the lock.
        drop(leak);
    }
}

impl<K> fmt::Debug for Guard<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Guard").field(&self.id).finish()
    }
}

/// Makes a view of a node that was cut off, and records it.
pub(crate) fn view(node: Node) -> Bytes {
    let bytes = match node {
        Node::Owned(chunk, _) | Node::Exclusive(chunk) => chunk.freeze(),
        Node::Shared(bytes) => return bytes,
        Node::Extendable(mut bytes, n) => return bytes.split_to(n as usize),
        Node::Empty => return Bytes::new(),
    };
    let (len, pinned) = (bytes.len(), pinned(&bytes));
    Bytes::from_owner(View {
        bytes,
        _guard: MEMORY.track(Kind::View, len, pinned, String::new()),
    })
}

/// Records a slice of `len` bytes, whose first shared piece keeps `first` bytes alive.
pub(crate) fn slice(len: usize, first: usize) -> Guard<Kind> {
    MEMORY.track(Kind::Slice, len, len.max(first), String::new())
}

struct View {
    bytes: Bytes,
    _guard: Guard<Kind>,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

static MEMORY: Registry<Kind> = Registry::new();

//! The pool of chunks.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::BytesMut;
use crossbeam_queue::ArrayQueue;

use crate::allocation::probe;
use crate::chunk_table;
use crate::node_list::NodeList;
use crate::size_class::{CLASSES, Class};

/// Recycles the memory chunks behind [`LinkBuffer`](crate::LinkBuffer)s.
///
/// Chunks come in nine size classes, 4 KiB to 1 MiB, each twice the one before. A chunk given back
/// while views ([`Bytes`](bytes::Bytes)) still point into it is parked, and reused once the last
/// view is gone. The pool keeps at most [`retain`](Self::with_retain) bytes; the rest is
/// returned to the allocator. [`trim`](Self::trim) returns chunks that were not needed for a while.
///
/// The pool is a cheap handle: clones share the same chunks. All methods may be called from any
/// thread, none of them blocks.
///
/// # Examples
///
/// ```
/// use linkbuffer::{ChunkPool, LinkBuffer};
///
/// let pool = ChunkPool::with_retain(1 << 20);
/// let mut buf = LinkBuffer::with_pool(&pool);
/// buf.write_slice(b"hello");
/// drop(buf);
/// assert_eq!(pool.stats().retained, 4096);
/// ```
#[derive(Clone)]
pub struct ChunkPool {
    shared: Arc<Shared>,
}

/// Counters of a [`ChunkPool`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChunkStats {
    /// Chunks handed out that had been used before.
    pub reused: u64,
    /// Chunks handed out that had to be allocated.
    pub allocated: u64,
    /// Chunks given back and kept.
    pub returned: u64,
    /// Chunks given back and freed, because the pool was full.
    pub discarded: u64,
    /// Bytes of memory the pool keeps now, parked chunks included.
    pub retained: usize,
}

impl ChunkPool {
    /// A pool that keeps up to 8 MiB of unused chunks.
    pub fn new() -> Self {
        Self::with_retain(DEFAULT_RETAIN)
    }

    /// A pool that keeps up to `bytes` of unused chunks; with 0 it keeps none.
    pub fn with_retain(bytes: usize) -> Self {
        let slots = |class: Class| (bytes / class.size()).clamp(1, MAX_SLOTS);
        Self {
            shared: Arc::new(Shared {
                free: std::array::from_fn(|i| ArrayQueue::new(slots(Class(i as u8)))),
                parked: ArrayQueue::new(MAX_SLOTS),
                links: ArrayQueue::new(MAX_SLOTS),
                unneeded: std::array::from_fn(|_| AtomicUsize::new(0)),
                period: AtomicUsize::new(0),
                watch: OnceLock::new(),
                told: AtomicBool::new(false),
                retain: bytes,
                retained: AtomicUsize::new(0),
                reused: AtomicU64::new(0),
                allocated: AtomicU64::new(0),
                returned: AtomicU64::new(0),
                discarded: AtomicU64::new(0),
            }),
        }
    }

    /// The pool of every buffer that was not given one. It is made on first use.
    pub fn global() -> &'static Self {
        static GLOBAL: OnceLock<ChunkPool> = OnceLock::new();
        GLOBAL.get_or_init(Self::new)
    }

    /// An empty chunk with room for at least `size` bytes.
    ///
    /// Up to 1 MiB the room is the size class, a power of two; a larger chunk is allocated exactly
    /// and never pooled.
    ///
    /// # Panics
    ///
    /// If the allocator has no `size` bytes and they are more than 1 MiB.
    pub fn take(&self, size: usize) -> BytesMut {
        self.take_class(size).0
    }

    /// Gives a chunk back; its content is discarded.
    ///
    /// It is kept if nothing else points into its memory, if it is 4 KiB to 1 MiB large and if the
    /// pool is not full, and freed otherwise. A chunk that still has views is better given to
    /// [`reserve`](Self::reserve), which knows its size.
    pub fn put(&self, mut chunk: BytesMut) {
        chunk.clear();
        // The handle does not tell how large its allocation is, but an allocation can only be
        // reclaimed up to its size. Larger than every class: not ours to keep.
        if chunk.try_reclaim(Class::LARGEST.size() + 1) {
            return self.count(&self.shared.discarded);
        }
        for i in (0..CLASSES as u8).rev() {
            if chunk.try_reclaim(Class(i).size()) {
                return self.store(chunk, Class(i));
            }
        }
        self.count(&self.shared.discarded);
    }

    /// Makes sure that `chunk` has at least `spare` bytes of spare capacity, for a reader that fills a
    /// chunk and publishes the filled part with [`BytesMut::split`]. `size` is the size the chunk
    /// was taken with.
    ///
    /// If no view of the chunk is left, its memory is used again from the start, which is where it
    /// is most likely cached. Otherwise it is used on while it has the room. If it has not, it is
    /// parked until its views are gone, and replaced by another chunk of `size`. Bytes that are in
    /// the chunk and were not split off are moved along.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::{ChunkPool, LinkBuffer};
    /// const SIZE: usize = 64 << 10;
    /// let pool = ChunkPool::new();
    /// let mut chunk = pool.take(SIZE);
    /// let mut buf = LinkBuffer::with_pool(&pool);
    /// for _ in 0..1000 {
    ///     pool.reserve(&mut chunk, 4096, SIZE);
    ///     chunk.extend_from_slice(&[1; 1000]); // receive
    ///     buf.push_chunk(chunk.split());
    ///     buf.skip(1000)?;
    /// }
    /// assert_eq!(pool.stats().allocated, 1);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn reserve(&self, chunk: &mut BytesMut, spare: usize, size: usize) {
        let room = chunk.capacity() - chunk.len();
        if room >= size || (chunk.is_empty() && chunk.try_reclaim(size)) {
            return;
        }
        if room < spare {
            self.replace(chunk, spare, size);
        }
    }

    #[cold]
    fn replace(&self, chunk: &mut BytesMut, spare: usize, size: usize) {
        let need = chunk.len().saturating_add(spare).max(size);
        let mut fresh = self.take(need);
        fresh.extend_from_slice(chunk);
        self.give(std::mem::replace(chunk, fresh), Class::of(size));
    }

    /// Numbers since the pool was made.
    pub fn stats(&self) -> ChunkStats {
        let s = &*self.shared;
        ChunkStats {
            reused: s.reused.load(Ordering::Relaxed),
            allocated: s.allocated.load(Ordering::Relaxed),
            returned: s.returned.load(Ordering::Relaxed),
            discarded: s.discarded.load(Ordering::Relaxed),
            retained: s.retained.load(Ordering::Relaxed),
        }
    }

    /// Frees every chunk the pool keeps. Chunks in use are not affected.
    pub fn clear(&self) {
        for (i, queue) in self.shared.free.iter().enumerate() {
            while let Some(chunk) = queue.pop() {
                self.uncharge(Class(i as u8));
                free(chunk);
            }
        }
        while let Some(parked) = self.shared.parked.pop() {
            self.uncharge(parked.class);
            free(parked.chunk);
        }
        while self.shared.links.pop().is_some() {}
    }

    /// Frees the chunks that were not needed since the last call, and lets go of those that were parked
    /// before it and still have views. So unused chunks are freed by the second call at the latest.
    ///
    /// Call it now and then, every few seconds for example; [`watch`](Self::watch) tells when to begin.
    /// `netpoll` does so for the [global](Self::global) pool.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::{ChunkPool, LinkBuffer};
    /// let pool = ChunkPool::new();
    /// let chunks: Vec<_> = (0..10).map(|_| pool.take(64 << 10)).collect();
    /// chunks.into_iter().for_each(|chunk| pool.put(chunk));
    /// pool.trim();
    /// let chunk = pool.take(64 << 10);
    /// pool.put(chunk);
    /// pool.trim(); // one was needed
    /// assert_eq!(pool.stats().retained, 64 << 10);
    /// pool.trim();
    /// assert_eq!(pool.stats().retained, 0);
    /// ```
    pub fn trim(&self) {
        let shared = &*self.shared;
        let period = shared.period.fetch_add(1, Ordering::Relaxed);
        for _ in 0..shared.parked.len() {
            let Some(mut parked) = shared.parked.pop() else {
                break;
            };
            let class = parked.class;
            if parked.chunk.try_reclaim(class.size()) || parked.period != period {
                self.uncharge(class);
                free(parked.chunk);
            } else if shared.parked.push(parked).is_err() {
                self.uncharge(class);
            }
        }
        for (i, (free_ones, unneeded)) in shared.free.iter().zip(&shared.unneeded).enumerate() {
            for _ in 0..unneeded.swap(usize::MAX, Ordering::Relaxed) {
                let Some(chunk) = free_ones.pop() else { break };
                self.uncharge(Class(i as u8));
                free(chunk);
            }
            unneeded.fetch_min(free_ones.len(), Ordering::Relaxed);
        }
        shared.told.store(false, Ordering::SeqCst);
        if shared.retained.load(Ordering::SeqCst) > WATCH_THRESHOLD {
            self.tell();
        }
    }

    /// Has `call` called when the pool keeps more than 256 KiB and did not before, and by each
    /// [`trim`](Self::trim) after which it does: the callee schedules a later `trim`. The thread that gives
    /// a chunk back calls it, in the middle of that: it must not block, nor call `trim`.
    ///
    /// A pool has one watcher, the first. `false`: it had one before.
    pub fn watch(&self, call: impl Fn() + Send + Sync + 'static) -> bool {
        let is_first = self.shared.watch.set(Box::new(call)).is_ok();
        if is_first && self.shared.retained.load(Ordering::SeqCst) > WATCH_THRESHOLD {
            self.tell();
        }
        is_first
    }

    #[cold]
    fn tell(&self) {
        if let Some(watch) = self.shared.watch.get() {
            if !self.shared.told.swap(true, Ordering::SeqCst) {
                watch();
            }
        }
    }

    pub(crate) fn take_class(&self, size: usize) -> (BytesMut, Class) {
        let class = Class::of(size);
        if class == Class::UNPOOLED {
            self.count(&self.shared.allocated);
            return (allocate(size), class);
        }
        let free = &self.shared.free[class.0 as usize];
        let unneeded = &self.shared.unneeded[class.0 as usize];
        if let Some(chunk) = free.pop() {
            let left = free.len();
            if left < unneeded.load(Ordering::Relaxed) {
                unneeded.fetch_min(left, Ordering::Relaxed);
            }
            self.uncharge(class);
            self.count(&self.shared.reused);
            return (chunk, class);
        }
        unneeded.store(0, Ordering::Relaxed);
        if let Some(chunk) = self.unpark(class) {
            self.count(&self.shared.reused);
            return (chunk, class);
        }
        self.count(&self.shared.allocated);
        (allocate(class.size()), class)
    }

    /// Takes back the owning handle of a chunk.
    pub(crate) fn give(&self, mut chunk: BytesMut, class: Class) {
        if class == Class::UNPOOLED {
            return free(chunk);
        }
        chunk.clear();
        if chunk.try_reclaim(class.size()) {
            return self.store(chunk, class);
        }
        if self.charge(class) {
            let period = self.shared.period.load(Ordering::Relaxed);
            let parked = Parked {
                chunk,
                class,
                period,
            };
            match self.shared.parked.push(parked) {
                Ok(()) => return self.count(&self.shared.returned),
                Err(_) => self.uncharge(class),
            }
        }
        self.count(&self.shared.discarded);
    }

    pub(crate) fn take_node_list(&self) -> Box<NodeList> {
        self.shared.links.pop().unwrap_or_default()
    }

    /// `links` must be empty.
    pub(crate) fn give_node_list(&self, links: Box<NodeList>) {
        drop(self.shared.links.push(links));
    }

    /// Looks through a few parked chunks, the longest parked first.
    #[cold]
    fn unpark(&self, class: Class) -> Option<BytesMut> {
        for _ in 0..PROBES {
            let mut parked = self.shared.parked.pop()?;
            let its = parked.class;
            if parked.chunk.try_reclaim(its.size()) {
                self.uncharge(its);
                if its == class {
                    return Some(parked.chunk);
                }
                self.store(parked.chunk, its);
            } else if self.shared.parked.push(parked).is_err() {
                self.uncharge(its);
            }
        }
        None
    }

    /// Keeps a chunk that is reclaimed to its full size.
    fn store(&self, chunk: BytesMut, class: Class) {
        if self.charge(class) {
            match self.shared.free[class.0 as usize].push(chunk) {
                Ok(()) => return self.count(&self.shared.returned),
                Err(chunk) => {
                    self.uncharge(class);
                    free(chunk);
                }
            }
        } else {
            free(chunk);
        }
        self.count(&self.shared.discarded);
    }

    fn charge(&self, class: Class) -> bool {
        let size = class.size();
        let now = self.shared.retained.fetch_add(size, Ordering::SeqCst) + size;
        if now <= self.shared.retain {
            if now > WATCH_THRESHOLD && !self.shared.told.load(Ordering::SeqCst) {
                self.tell();
            }
            return true;
        }
        self.uncharge(class);
        false
    }

    fn uncharge(&self, class: Class) {
        self.shared
            .retained
            .fetch_sub(class.size(), Ordering::Relaxed);
    }

    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Default for ChunkPool {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ChunkPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkPool")
            .field("retain", &self.shared.retain)
            .field("stats", &self.stats())
            .finish()
    }
}

/// # Panics
///
/// If it is more than the allocator has. That can be contained, which an allocation that fails without
/// having been asked for cannot: it ends the process.
pub(crate) fn allocate(size: usize) -> BytesMut {
    if size > Class::LARGEST.size() {
        if let Err(error) = probe(size) {
            panic!("{error}");
        }
    }
    let chunk = BytesMut::with_capacity(size);
    chunk_table::insert(&chunk);
    chunk
}

/// Drops the owning handle of a chunk.
pub(crate) fn free(mut chunk: BytesMut) {
    chunk.clear();
    if let Some(size) = chunk_table::chunk_of(&chunk) {
        // Views that are left keep it alive, and known.
        if chunk.try_reclaim(size) {
            chunk_table::remove(&chunk);
        }
    }
}

struct Shared {
    /// Reclaimed chunks, by class.
    free: [ArrayQueue<BytesMut>; CLASSES],
    /// Chunks with views still alive.
    parked: ArrayQueue<Parked>,
    /// Node lists of buffers that were released.
    links: ArrayQueue<Box<NodeList>>,
    /// Free chunks that were there all the time since the last [`trim`](ChunkPool::trim), by class.
    unneeded: [AtomicUsize; CLASSES],
    /// Counts trims.
    period: AtomicUsize,
    watch: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// The watcher knows that there is something to trim.
    told: AtomicBool,
    retain: usize,
    retained: AtomicUsize,
    reused: AtomicU64,
    allocated: AtomicU64,
    returned: AtomicU64,
    discarded: AtomicU64,
}

struct Parked {
    chunk: BytesMut,
    class: Class,
    /// In which it was parked.
    period: usize,
}

const MAX_SLOTS: usize = 64;
const PROBES: usize = 4;
const DEFAULT_RETAIN: usize = 8 << 20;
/// Less is not worth a timer.
const WATCH_THRESHOLD: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_two() {
        for (size, class) in [
            (0, 4 << 10),
            (1, 4 << 10),
            (4096, 4 << 10),
            (4097, 8 << 10),
            (8192, 8 << 10),
            (65536, 64 << 10),
            (65537, 128 << 10),
            (1 << 20, 1 << 20),
        ] {
            assert_eq!(Class::of(size).size(), class, "{size}");
        }
        assert!(Class::of((1 << 20) + 1) == Class::UNPOOLED);
        assert!(Class::of(usize::MAX) == Class::UNPOOLED);
    }

    #[test]
    fn a_chunk_comes_back() {
        let pool = ChunkPool::new();
        let chunk = pool.take(5000);
        assert_eq!(chunk.capacity(), 8192);
        let at = chunk.as_ptr();
        pool.put(chunk);
        assert_eq!(pool.stats().retained, 8192);
        assert_eq!(pool.take(8192).as_ptr(), at);
        assert_eq!(pool.stats().retained, 0);
        assert_eq!((pool.stats().allocated, pool.stats().reused), (1, 1));
    }

    #[test]
    fn a_chunk_with_views_is_parked_until_they_are_gone() {
        let pool = ChunkPool::new();
        let mut chunk = pool.take(4096);
        chunk.extend_from_slice(&[7; 4096]);
        let at = chunk.as_ptr();
        let view = chunk.split().freeze();
        pool.reserve(&mut chunk, 1, 4096);
        assert_ne!(chunk.as_ptr(), at);
        let other = pool.take(4096);
        assert_ne!(other.as_ptr(), at, "still viewed");
        assert_eq!(view, vec![7; 4096]);
        drop(view);
        assert_eq!(pool.take(4096).as_ptr(), at);
    }

    #[test]
    fn renew_starts_over_when_no_view_is_left() {
        let pool = ChunkPool::new();
        let mut chunk = pool.take(4096);
        let at = chunk.as_ptr();
        for _ in 0..100 {
            pool.reserve(&mut chunk, 1000, 4096);
            assert!(chunk.capacity() >= 1000);
            chunk.extend_from_slice(&[1; 1000]);
            drop(chunk.split());
        }
        assert_eq!(pool.stats().allocated, 1);
        chunk.clear();
        pool.reserve(&mut chunk, 4096, 4096);
        assert_eq!(chunk.as_ptr(), at);
    }

    #[test]
    fn renew_moves_unpublished_bytes_along() {
        let pool = ChunkPool::new();
        let mut chunk = pool.take(4096);
        chunk.extend_from_slice(&[3; 4000]);
        pool.reserve(&mut chunk, 200, 4096);
        assert_eq!(chunk, vec![3; 4000]);
        assert!(chunk.capacity() >= 4200);
    }

    #[test]
    fn retention_is_bounded() {
        let pool = ChunkPool::with_retain(3 * 4096);
        let chunks: Vec<_> = (0..10).map(|_| pool.take(100)).collect();
        chunks.into_iter().for_each(|c| pool.put(c));
        let stats = pool.stats();
        assert_eq!(
            (stats.retained, stats.returned, stats.discarded),
            (3 * 4096, 3, 7)
        );
        pool.clear();
        assert_eq!(pool.stats().retained, 0);
        let none = ChunkPool::with_retain(0);
        none.put(none.take(1));
        assert_eq!((none.stats().retained, none.stats().discarded), (0, 1));
    }

    #[test]
    fn foreign_chunks_are_kept_by_what_they_hold() {
        let pool = ChunkPool::new();
        pool.put(BytesMut::with_capacity(100));
        pool.put(BytesMut::with_capacity(2 << 20));
        assert_eq!(pool.stats().retained, 0);
        pool.put(BytesMut::with_capacity(9000));
        assert_eq!(pool.stats().retained, 8192);
        assert!(pool.take(8192).capacity() >= 8192);
    }
}

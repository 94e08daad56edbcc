//! The chain: its nodes, offsets and lengths.
//!
//! Invariants, true between any two calls:
//! * `off <= front.len()`, and `off + len + pending` is the sum of the lengths of all nodes:
//!   consumed bytes of the front node, then readable bytes, then unflushed bytes.
//! * a chunk has at most one `Node::Owned` handle.
//! * nodes may be empty anywhere; an empty `Own` node at the end is the room for the next write.

use std::fmt;

use crate::chunk::ChunkPool;
use crate::discard::Discarded;
use crate::node::Node;
use crate::node_list::NodeList;

/// A queue of bytes, kept as a chain of chunks: written at the end, read at the front.
///
/// ```text
///            off          len (readable)             pending (unflushed)
///         |------->|---------------------------|----------------------------|
///         [ consumed | Own / Piece ] -> [ Shared ] -> [ Own      ... | spare ]
///           front node                    rest of the chain
/// ```
///
/// * **Reading** consumes at the front. [`peek`](Self::peek) and [`next`](Self::next) lend a
///   contiguous `&[u8]` that ends with the next call that changes the buffer, which the compiler
///   checks. [`next_bytes`](Self::next_bytes) and [`slice`](Self::slice) hand out owned views that
///   share the memory: they stay valid and unchanged until dropped, on any thread, also after the
///   buffer is gone.
/// * **Writing** appends at the end. Written bytes are not readable before
///   [`flush`](Self::flush); until then they can be cut ([`malloc_ack`](Self::malloc_ack)), filled
///   in later ([`LengthSlot`](crate::LengthSlot)) or have data inserted before them
///   ([`write_direct`](Self::write_direct)). Payloads of 4 KiB and more are linked, not copied.
/// * **A socket** sends from [`io_slices`](Self::io_slices) and [`consume`](Self::consume)s the
///   sent bytes, and receives by [`push_chunk`](Self::push_chunk) or into the chunk that
///   [`reserve_recv`](Self::reserve_recv) reserves.
///
/// Memory comes from a [`ChunkPool`] and goes back to it; in a steady state neither sending nor
/// receiving allocates. While all bytes are in one chunk, reading advances an offset and nothing else.
///
/// # Examples
///
/// ```
/// use linkbuffer::LinkBuffer;
///
/// # fn main() -> std::io::Result<()> {
/// let mut buf = LinkBuffer::new();
/// buf.write_slice(&5u32.to_be_bytes());
/// buf.write_str("hello");
/// buf.flush();
///
/// let len = u32::from_be_bytes(buf.next(4)?.try_into().unwrap());
/// let body = buf.next_bytes(len as usize)?;
/// drop(buf);
/// assert_eq!(body, "hello");
/// # Ok(())
/// # }
/// ```
///
/// A borrowed read ends with the next change of the buffer:
///
/// ```compile_fail,E0499
/// # let mut buf = linkbuffer::LinkBuffer::from(&b"abcdef"[..]);
/// let head = buf.next(3).unwrap();
/// buf.skip(1).unwrap(); // `buf` is still borrowed by `head`
/// println!("{head:?}");
/// ```
///
/// nor can it outlive the buffer:
///
/// ```compile_fail,E0505
/// # let mut buf = linkbuffer::LinkBuffer::from(&b"abcdef"[..]);
/// let head = buf.peek(3).unwrap();
/// drop(buf);
/// println!("{head:?}");
/// ```
pub struct LinkBuffer {
    pub(crate) front: Node,
    /// Consumed bytes of the front node.
    pub(crate) off: usize,
    /// Readable bytes.
    pub(crate) len: usize,
    /// Unflushed bytes.
    pub(crate) pending: usize,
    /// All nodes but the front one.
    pub(crate) rest: Option<Box<NodeList>>,
    pub(crate) pool: Option<ChunkPool>,
    /// Stream position of the end. Slots are located by it.
    pub(crate) written: u64,
    /// No slot made since the last flush ends behind this position; 0 if there is none.
    pub(crate) slot_top: u64,
    /// `written` when the content was last copied to a chunk of its own size.
    pub(crate) compacted: u64,
    #[cfg(netpoll_leaks)]
    pub(crate) leak: Option<crate::leak_registry::LeakGuard<crate::leak_registry::Kind>>,
}

impl LinkBuffer {
    /// An empty buffer. It holds no memory before something is written.
    pub const fn new() -> Self {
        Self {
            front: Node::Empty,
            off: 0,
            len: 0,
            pending: 0,
            rest: None,
            pool: None,
            written: 0,
            slot_top: 0,
            compacted: NEVER,
            #[cfg(netpoll_leaks)]
            leak: None,
        }
    }

    /// An empty buffer with room for `n` bytes in one chunk.
    ///
    /// # Panics
    ///
    /// If the allocator has no `n` bytes and they are more than 1 MiB.
    pub fn with_capacity(n: usize) -> Self {
        let mut buf = Self::new();
        if n > 0 {
            let (chunk, class) = buf.pool().take_class(n);
            buf.front = Node::Owned(chunk, class);
        }
        buf
    }

    /// An empty buffer that takes its memory from `pool` instead of [`ChunkPool::global`].
    pub fn with_pool(pool: &ChunkPool) -> Self {
        let mut buf = Self::new();
        buf.pool = Some(pool.clone());
        buf
    }

    /// Readable bytes. Bytes written or [appended](Self::append) and not flushed do not count: a bound
    /// on the whole content compares [`total_len`](Self::total_len).
    #[inline]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is readable; there may be unflushed bytes, which [`total_len`](Self::total_len)
    /// counts too.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes written and not flushed yet; [`len`](Self::len) does not count them.
    #[inline]
    pub const fn malloc_len(&self) -> usize {
        self.pending
    }

    /// Whether all readable bytes are contiguous, so that reading them copies nothing.
    #[inline]
    pub fn is_single_chunk(&self) -> bool {
        self.len == 0 || self.chunks().next().is_some_and(|c| c.len() == self.len)
    }

    /// Whether all memory behind this buffer is of chunks, so that dropping it runs no code of the
    /// owner of some [`Bytes`](bytes::Bytes). May be `false` without need.
    #[inline]
    pub(crate) fn owns_all_memory(&self) -> bool {
        matches!(
            self.front,
            Node::Owned(..) | Node::Exclusive(_) | Node::Empty
        ) && !self.has_rest()
    }

    /// Bytes of memory that this buffer covers: consumed, readable and unflushed bytes and spare
    /// room. Chunks of which only a part belongs to this buffer count with that part.
    pub fn memory_size(&self) -> usize {
        self.nodes().map(Node::capacity).sum()
    }

    /// Bytes that can be written or [received](Self::reserve_recv) behind the last byte in its chunk.
    #[inline]
    pub fn spare_capacity(&self) -> usize {
        self.rest
            .as_ref()
            .and_then(|links| links.nodes.back())
            .unwrap_or(&self.front)
            .spare()
    }

    /// The pool this buffer uses.
    #[inline]
    pub fn pool(&self) -> &ChunkPool {
        match &self.pool {
            Some(pool) => pool,
            None => ChunkPool::global(),
        }
    }

    /// Moves everything, readable and unflushed, into a new buffer and leaves this one empty, with
    /// the same pool. Open slots go with their bytes.
    pub fn take_all(&mut self) -> Self {
        let mut fresh = Self::new();
        fresh.pool.clone_from(&self.pool);
        // Slots that are open are not to be found here any more: positions begin anew.
        std::mem::replace(self, fresh)
    }

    /// The readable bytes, piece by piece, without copying. No piece is empty.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// # use bytes::Bytes;
    /// let mut buf = LinkBuffer::from(Bytes::from(vec![1; 5000]));
    /// buf.append(LinkBuffer::from(Bytes::from(vec![2; 6000])));
    /// buf.flush();
    /// let sizes: Vec<_> = buf.chunks().map(<[u8]>::len).collect();
    /// assert_eq!(sizes, [5000, 6000]);
    /// ```
    pub fn chunks(&self) -> Chunks<'_> {
        Chunks {
            buf: self,
            next: 0,
            left: self.len,
        }
    }

    /// Frees unneeded memory: chunks read to the end and, if the buffer is empty, the
    /// last chunk too. An empty buffer holds no chunk after this.
    ///
    /// Consumed chunks are dropped as reading goes on, so this is for the moment when a buffer
    /// falls idle.
    #[inline]
    pub fn release(&mut self) {
        match &mut self.front {
            // All of a received piece was handed out: the common case of an input buffer.
            Node::Exclusive(chunk)
                if chunk.capacity() == 0 && self.rest.is_none() && self.pending == 0 =>
            {
                self.front = Node::Empty;
                self.off = 0;
            }
            Node::Empty if self.rest.is_none() => {}
            _ => self.release_all(),
        }
    }

    #[inline(never)]
    fn release_all(&mut self) {
        self.drop_consumed();
        if self.len + self.pending > 0 {
            return;
        }
        if let Node::Owned(chunk, class) = std::mem::replace(&mut self.front, Node::Empty) {
            self.pool().give(chunk, class);
        }
        self.off = 0;
        if self.slot_top != 0 {
            self.end_slots();
        }
        self.free_node_list();
    }
}

impl Default for LinkBuffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for LinkBuffer {
    fn drop(&mut self) {
        let mut gone = Discarded::default();
        let front = std::mem::replace(&mut self.front, Node::Empty);
        gone.add(self.pool(), front);
        while let Some(node) = self.pop_rest() {
            gone.add(self.pool(), node);
        }
        self.free_node_list();
    }
}

impl fmt::Debug for LinkBuffer {
    /// Sizes, never contents: data of a connection does not belong in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkBuffer")
            .field("len", &self.len)
            .field("malloc_len", &self.pending)
            .field("nodes", &self.nodes().filter(|n| n.capacity() > 0).count())
            .field("memory_size", &self.memory_size())
            .finish()
    }
}

/// The readable bytes of a [`LinkBuffer`], piece by piece; see [`LinkBuffer::chunks`].
#[derive(Clone, Debug)]
#[must_use = "iterators are lazy"]
pub struct Chunks<'a> {
    buf: &'a LinkBuffer,
    /// Index of the next node.
    next: usize,
    left: usize,
}

impl<'a> Iterator for Chunks<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        while self.left > 0 {
            let bytes = match self.next {
                0 => &self.buf.front.as_slice()[self.buf.off..],
                i => self.buf.rest.as_ref()?.nodes.get(i - 1)?.as_slice(),
            };
            self.next += 1;
            let bytes = &bytes[..bytes.len().min(self.left)];
            self.left -= bytes.len();
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
        None
    }
}

pub(crate) const NEVER: u64 = u64::MAX;

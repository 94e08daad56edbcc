//! The writing side.

use bytes::{Bytes, BytesMut};

use crate::buffer::LinkBuffer;
use crate::node::Node;
use crate::nodes::MIN_TAIL;
use crate::size_class::Class;

impl LinkBuffer {
    /// `n` new bytes at the end, contiguous and zeroed, to be written in place.
    ///
    /// They are zeroed so that nothing that was in the memory before can leak out. The slice
    /// implements [`BufMut`](bytes::BufMut). `malloc(0)` is empty and allocates nothing.
    ///
    /// # Panics
    ///
    /// If the allocator has no `n` bytes and they are more than 1 MiB.
    /// [`Writer::malloc`](crate::Writer::malloc) returns an error instead.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::BufMut;
    /// # use linkbuffer::LinkBuffer;
    /// let mut buf = LinkBuffer::new();
    /// let mut head = buf.malloc(6);
    /// head.put_u16(7);
    /// head.put_u32(1);
    /// buf.flush();
    /// assert_eq!(buf, [0, 7, 0, 0, 0, 1]);
    /// ```
    #[inline]
    pub fn malloc(&mut self, n: usize) -> &mut [u8] {
        if n == 0 {
            return &mut [];
        }
        self.reserve(n);
        self.pending += n;
        self.written += n as u64;
        let tail = self.tail();
        let start = tail.len();
        tail.resize(start + n, 0);
        &mut tail[start..]
    }

    /// Appends a copy of `data`.
    ///
    /// # Panics
    ///
    /// If the allocator has no room for more than 1 MiB. [`Writer::write_slice`](crate::Writer::write_slice)
    /// returns an error instead.
    #[inline]
    pub fn write_slice(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        self.reserve(data.len());
        self.pending += data.len();
        self.written += data.len() as u64;
        self.tail().extend_from_slice(data);
    }

    /// Appends `data`: linked without a copy from 4 KiB on, copied if shorter.
    #[inline]
    pub fn write_bytes(&mut self, data: Bytes) {
        if data.len() < LINK_FROM {
            return self.write_slice(&data);
        }
        self.pending += data.len();
        self.written += data.len() as u64;
        self.link(Node::Shared(data));
    }

    /// Appends one byte.
    #[inline]
    pub fn write_u8(&mut self, byte: u8) {
        self.write_slice(&[byte]);
    }

    /// Appends the bytes of `text`.
    #[inline]
    pub fn write_str(&mut self, text: &str) {
        self.write_slice(text.as_bytes());
    }

    /// Appends everything in `other`, readable and unflushed, as unflushed bytes, without copying
    /// more than a few. Slots of `other` end. Until the next flush [`len`](Self::len) does not count these
    /// bytes; [`total_len`](Self::total_len) does.
    #[inline]
    pub fn append(&mut self, mut other: Self) {
        let n = other.len + other.pending;
        if n == 0 {
            return;
        }
        other.pending = 0;
        other.len = n;
        if n < SMALL_APPEND {
            other.chunks().for_each(|chunk| self.write_slice(chunk));
            return;
        }
        other.trim();
        self.pending += n;
        self.written += n as u64;
        let front = std::mem::replace(&mut other.front, Node::Empty);
        other.len = 0;
        if !other.has_rest() {
            self.link_behind(front);
            return;
        }
        let room = self.take_empty_tail();
        self.push_node(front);
        if let Some(links) = &mut other.rest {
            if !links.nodes.is_empty() {
                self.links().nodes.append(&mut links.nodes);
            }
        }
        self.put_tail(room);
    }

    /// Lets `f` append to a chunk with at least `room` bytes of spare capacity, for encoders that want
    /// a growable [`BufMut`](bytes::BufMut) and do not know their size in advance. Returns the result
    /// of `f`.
    ///
    /// `f` is given an empty `BytesMut`; its content afterwards is appended. More than `room`
    /// bytes are fine, but cost a copy.
    ///
    /// `LinkBuffer` itself cannot implement `BufMut`, which is an unsafe trait: this crate has no
    /// unsafe code.
    ///
    /// # Examples
    ///
    /// ```
    /// use bytes::BufMut;
    /// # use linkbuffer::LinkBuffer;
    /// let mut buf = LinkBuffer::new();
    /// buf.write_with(64, |out| {
    ///     out.put_u32(7);
    ///     out.put_slice(b"any length");
    /// });
    /// assert_eq!(buf.malloc_len(), 14);
    /// ```
    pub fn write_with<R>(&mut self, room: usize, f: impl FnOnce(&mut BytesMut) -> R) -> R {
        self.reserve(room);
        let tail = self.tail();
        let mut out = tail.split_off(tail.len());
        let result = f(&mut out);
        let n = out.len();
        self.pending += n;
        self.written += n as u64;
        if let Some(tail) = self.back_mut().as_mut() {
            if let Err(out) = tail.try_unsplit(out) {
                if n > 0 {
                    self.push_node(Node::Exclusive(out));
                }
            }
        }
        result
    }

    /// Makes everything written readable. Costs nothing; slots end.
    #[inline]
    pub fn flush(&mut self) {
        self.len += self.pending;
        self.pending = 0;
        if self.slot_top != 0 {
            self.end_slots();
        }
    }

    /// Makes the first `n` unflushed bytes readable, or all if there are fewer. Slots behind them stay
    /// open, those among them end.
    pub(crate) fn flush_first(&mut self, n: usize) {
        if n >= self.pending {
            return self.flush();
        }
        self.len += n;
        self.pending -= n;
    }

    // ---- the room for the next write

    /// Makes the last node an own one with room for `n` bytes.
    #[inline]
    pub(crate) fn reserve(&mut self, n: usize) {
        let back = self.back_mut();
        if !back.is_owned() || back.spare() < n {
            self.grow(n);
        }
    }

    /// The node that [`reserve`](Self::reserve) provided.
    #[inline]
    pub(crate) fn tail(&mut self) -> &mut BytesMut {
        match self.back_mut() {
            Node::Owned(chunk, _) => chunk,
            _ => unreachable!("reserve() comes first"),
        }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, n: usize) {
        if let Some(room) = self.take_empty_tail() {
            match self.enlarge(room, n) {
                Ok(room) => return self.push_node(room),
                Err(room) => self.discard(room),
            }
        }
        let room = match self.take_spare_before_tail(n) {
            Some(room) => room,
            None => {
                // Chunks grow with the queued bytes, so that a large batch has few of them.
                let queued = (self.len + self.pending).min(LARGE_BATCH);
                let (chunk, class) = self.pool().take_class(n.max(queued));
                Node::Owned(chunk, class)
            }
        };
        self.push_node(room);
    }

    /// Reclaims the chunk of an empty node, if that gives room for `n` bytes.
    pub(crate) fn enlarge(&self, mut room: Node, n: usize) -> Result<Node, Node> {
        if let Node::Owned(chunk, class) = &mut room {
            let fits = *class != Class::UNPOOLED && class.size() >= n;
            if chunk.capacity() >= n || (fits && chunk.try_reclaim(class.size())) {
                return Ok(room);
            }
        }
        Err(room)
    }

    /// The room behind the bytes of the node before a linked payload.
    fn take_spare_before_tail(&mut self, n: usize) -> Option<Node> {
        let count = self.rest.as_ref()?.nodes.len();
        if count == 0 {
            return None;
        }
        let before = match count {
            1 => &mut self.front,
            _ => &mut self.rest.as_mut()?.nodes[count - 2],
        };
        if !before.is_owned() || before.spare() < n.max(MIN_TAIL) {
            return None;
        }
        let len = before.len();
        Some(before.split_off(len))
    }
}

/// Payloads of this length are linked, shorter ones copied.
pub(crate) const LINK_FROM: usize = 4096;
/// Appended buffers shorter than this are copied.
const SMALL_APPEND: usize = 512;
/// Largest chunk that is taken ahead of need.
const LARGE_BATCH: usize = 64 << 10;

//! The writing side.

use std::cmp::Ordering;

use bytes::{Bytes, BytesMut};

use crate::buffer::{LEAST_ROOM, LinkBuffer, NEVER};
use crate::chunk::Class;
use crate::error::WriteError;
use crate::node::Node;
use crate::slot::Move;

impl LinkBuffer {
    /// `n` new bytes at the end, contiguous and zeroed, to be written in place.
    ///
    /// They are zeroed so that nothing that was in the memory before can leak out. The slice
    /// implements [`BufMut`](bytes::BufMut). `malloc(0)` is empty and allocates nothing.
    ///
    /// # Panics
    ///
    /// If `n` bytes cannot be had from the allocator. [`Writer::malloc`](crate::Writer::malloc)
    /// returns an error instead.
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

    /// Keeps the first `n` unflushed bytes and cuts off the rest.
    ///
    /// "Unflushed" is everything written since the last [`flush`](Self::flush), whatever call wrote
    /// it; [`malloc_len`](Self::malloc_len) is their number.
    ///
    /// # Panics
    ///
    /// If `n` is more than `malloc_len`; the text names both.
    /// [`Writer::malloc_ack`](crate::Writer::malloc_ack) returns an error instead.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// let mut buf = LinkBuffer::new();
    /// let room = buf.malloc(100);
    /// room[..3].copy_from_slice(b"abc");
    /// buf.malloc_ack(3);
    /// buf.flush();
    /// assert_eq!(buf, *b"abc");
    /// ```
    #[inline]
    #[track_caller]
    pub fn malloc_ack(&mut self, n: usize) {
        if let Err(e) = self.try_malloc_ack(n) {
            panic!("malloc_ack: {e}");
        }
    }

    /// Appends a copy of `data`.
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

    /// Inserts `data` before the last `remain` unflushed bytes.
    ///
    /// For serializers that allocate the space of a whole message and then find a large field in
    /// the middle. With `remain == 0` this is [`write_bytes`](Self::write_bytes). It may be mixed
    /// with all other writes.
    ///
    /// # Panics
    ///
    /// If `remain` is more than [`malloc_len`](Self::malloc_len); the text names both.
    /// [`Writer::write_direct`](crate::Writer::write_direct) returns an error instead.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// # use bytes::Bytes;
    /// let mut buf = LinkBuffer::new();
    /// buf.malloc(8).copy_from_slice(b"HEADtail");
    /// buf.write_direct(Bytes::from_static(b"--body--"), 4);
    /// buf.flush();
    /// assert_eq!(buf, *b"HEAD--body--tail");
    /// ```
    #[track_caller]
    pub fn write_direct(&mut self, data: Bytes, remain: usize) {
        if let Err(e) = self.try_write_direct(data, remain) {
            panic!("write_direct: {e}");
        }
    }

    /// Appends everything in `other`, readable and unflushed, as unflushed bytes, without copying
    /// more than a few. Slots of `other` end.
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
        let room = self.take_empty_tail();
        let front = std::mem::replace(&mut other.front, Node::VACANT);
        other.len = 0;
        self.push_node(front);
        if let Some(links) = &mut other.rest {
            if !links.nodes.is_empty() {
                self.links().nodes.append(&mut links.nodes);
            }
        }
        self.put_room(room);
    }

    /// Lets `f` append to a chunk with at least `room` bytes of spare room, for encoders that want
    /// a growable [`BufMut`](bytes::BufMut) and do not know their size in advance. Returns what `f`
    /// returns.
    ///
    /// `f` is given an empty `BytesMut`; what it holds afterwards is appended. More than `room`
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
                    self.push_node(Node::Piece(out));
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

    pub(crate) fn try_malloc_ack(&mut self, n: usize) -> Result<(), WriteError> {
        let Some(cut) = self.pending.checked_sub(n) else {
            return Err(WriteError::BeyondMalloc {
                wanted: n,
                malloc_len: self.pending,
            });
        };
        if cut == 0 {
            return Ok(());
        }
        self.pending = n;
        self.written -= cut as u64;
        self.record(Move::Cut(self.written));
        self.compacted = NEVER;
        let back = self.back_mut();
        let have = back.len();
        if cut <= have && back.is_own() {
            back.truncate(have - cut);
        } else {
            self.cut_nodes(cut);
        }
        Ok(())
    }

    /// Drops the last `cut` bytes where they are not all in one own node.
    #[cold]
    fn cut_nodes(&mut self, mut cut: usize) {
        let mut room = None;
        while cut > 0 {
            let back = self.back_mut();
            let have = back.len();
            if have > cut || !self.has_rest() {
                // The front node may begin with consumed bytes, which are not cut.
                let back = self.back_mut();
                back.truncate(have - cut);
                break;
            }
            cut -= have;
            if let Some(node) = self.rest.as_mut().and_then(|l| l.nodes.pop_back()) {
                match node {
                    Node::Own(mut chunk, class) if room.is_none() => {
                        chunk.clear();
                        room = Some(Node::Own(chunk, class));
                    }
                    node => self.discard(node),
                }
            }
        }
        self.put_room(room);
    }

    pub(crate) fn try_write_direct(
        &mut self,
        data: Bytes,
        remain: usize,
    ) -> Result<(), WriteError> {
        if remain > self.pending {
            return Err(WriteError::BeyondMalloc {
                wanted: remain,
                malloc_len: self.pending,
            });
        }
        let n = data.len();
        if remain == 0 {
            self.write_bytes(data);
        } else if n > 0 {
            self.record(Move::Insert {
                at: self.written - remain as u64,
                n: n as u64,
            });
            self.pending += n;
            self.written += n as u64;
            self.compacted = NEVER;
            self.insert(data, remain);
        }
        Ok(())
    }

    /// Puts `data` before the last `remain` bytes.
    fn insert(&mut self, data: Bytes, remain: usize) {
        let n = data.len();
        let back = self.back_mut();
        let have = back.len();
        if n + remain < LINK_FROM && have >= remain && back.spare() >= n {
            if let Some(tail) = back.as_mut() {
                let at = have - remain;
                tail.resize(have + n, 0);
                tail.copy_within(at..have, at + n);
                tail[at..at + n].copy_from_slice(&data);
                return;
            }
        }
        let data = Node::Shared(data);
        let mut left = remain;
        let nodes = &mut self.links().nodes;
        let mut i = nodes.len();
        while i > 0 {
            let size = nodes[i - 1].len();
            match left.cmp(&size) {
                Ordering::Less => {
                    let right = nodes[i - 1].split_off(size - left);
                    nodes.insert(i, right);
                    return nodes.insert(i, data);
                }
                Ordering::Equal => return nodes.insert(i - 1, data),
                Ordering::Greater => left -= size,
            }
            i -= 1;
        }
        let at = self.front.len() - left;
        let right = self.front.split_off(at);
        let nodes = &mut self.links().nodes;
        nodes.push_front(right);
        nodes.push_front(data);
    }

    // ---- the room for the next write

    /// Makes the last node an own one with room for `n` bytes.
    #[inline]
    pub(crate) fn reserve(&mut self, n: usize) {
        let back = self.back_mut();
        if !back.is_own() || back.spare() < n {
            self.grow(n);
        }
    }

    /// The node that [`reserve`](Self::reserve) provided.
    #[inline]
    pub(crate) fn tail(&mut self) -> &mut BytesMut {
        match self.back_mut() {
            Node::Own(chunk, _) => chunk,
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
        let room = match self.spare_of_last(n) {
            Some(room) => room,
            None => {
                // Chunks grow with what is queued, so that a large batch has few of them.
                let queued = (self.len + self.pending).min(LARGE_BATCH);
                let (chunk, class) = self.pool().take_class(n.max(queued));
                Node::Own(chunk, class)
            }
        };
        self.push_node(room);
    }

    /// Reclaims the chunk of an empty node, if that gives room for `n` bytes.
    pub(crate) fn enlarge(&self, mut room: Node, n: usize) -> Result<Node, Node> {
        if let Node::Own(chunk, class) = &mut room {
            let fits = *class != Class::UNPOOLED && class.size() >= n;
            if chunk.capacity() >= n || (fits && chunk.try_reclaim(class.size())) {
                return Ok(room);
            }
        }
        Err(room)
    }

    /// The room behind the bytes of the node before a linked payload.
    fn spare_of_last(&mut self, n: usize) -> Option<Node> {
        let count = self.rest.as_ref()?.nodes.len();
        if count == 0 {
            return None;
        }
        let before = match count {
            1 => &mut self.front,
            _ => &mut self.rest.as_mut()?.nodes[count - 2],
        };
        if !before.is_own() || before.spare() < n.max(LEAST_ROOM) {
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

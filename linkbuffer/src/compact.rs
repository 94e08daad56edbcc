//! Memory that a buffer keeps alive beyond its own bytes, and copying to release it.

use crate::buffer::{LinkBuffer, NEVER};
use crate::chunk;
use crate::discard::Discarded;
use crate::node::Node;
use crate::size_class::Class;

impl LinkBuffer {
    /// Bytes of memory that this buffer keeps alive, as far as that is known: pieces of chunks count
    /// with the chunk, once for pieces of one chunk that follow each other. Memory that was linked and
    /// did not come from a [`ChunkPool`](crate::ChunkPool) counts with its own length.
    ///
    /// Takes a time that depends on the number of pieces.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// let mut buf = LinkBuffer::with_capacity(64 << 10);
    /// buf.write_slice(&[7; 60_000]);
    /// buf.flush();
    /// let mut part = buf.slice(600)?;
    /// assert_eq!((part.len(), part.pinned()), (600, 64 << 10));
    /// part.compact();
    /// assert!(part.pinned() < 700);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn pinned(&self) -> usize {
        let (mut sum, mut last) = (0, (0, 0));
        for node in self.nodes() {
            let (at, pins) = (node.as_slice().as_ptr().addr(), node.pins());
            // Within the size of the chunk, so it is most likely the same.
            if pins != last.1 || at.abs_diff(last.0) >= pins {
                sum += pins;
            }
            last = (at, pins);
        }
        sum
    }

    /// Readable and unflushed bytes together: all that was put into this buffer and not consumed. This is
    /// the length for a bound on the content of a buffer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// let mut body = LinkBuffer::new();
    /// body.append(LinkBuffer::from("not flushed"));
    /// assert_eq!((body.len(), body.malloc_len(), body.total_len()), (0, 11, 11));
    /// ```
    #[inline]
    pub const fn total_len(&self) -> usize {
        self.len + self.pending
    }

    /// Copies pieces that keep more than an eighth more memory alive than their own length.
    ///
    /// A piece of a few bytes keeps the whole chunk alive that it was received in, 64 KiB as a rule.
    /// Call this on buffers that are kept for long, or when the rest of a message is not there yet and the
    /// buffer may have to wait. Up to 4 KiB become one chunk of their size. Nothing is copied a second
    /// time, and memory that did not come from a [`ChunkPool`](crate::ChunkPool) stays as it is if
    /// there are more than 4 KiB. An empty buffer is [released](Self::release).
    pub fn compact(&mut self) {
        let total = self.total_len();
        if total == 0 {
            return self.release();
        }
        self.drop_consumed();
        // Payloads that panic are dropped when everything is in its place.
        let mut copied = Discarded::default();
        if total > SMALL {
            self.copy_loose(total, &mut copied);
        } else if !self.is_compact() {
            self.copy_all(total, &mut copied);
            self.compacted = self.written;
        }
    }

    /// This buffer, [compacted](Self::compact): for data that outlives its connection or its request.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// # let mut input = LinkBuffer::from(vec![1; 1000]);
    /// let kept: LinkBuffer = input.slice(600)?.into_owned();
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn into_owned(mut self) -> Self {
        self.compact();
        self
    }

    /// Whether it may be worth to [compact](Self::compact) unflushed output before more is linked: it has
    /// so many pieces, or the last one is a small part of a large chunk. A look at the last piece, if there
    /// is more than one.
    #[inline]
    pub(crate) fn is_loose(&self, pieces: usize) -> bool {
        let Some(links) = &self.rest else {
            return false;
        };
        let Some(last) = links.nodes.iter().rev().find(|node| node.len() > 0) else {
            return false;
        };
        let is_part = |size| size > BULKY && size / 2 > last.len();
        links.nodes.len() >= pieces || last.chunk().is_some_and(is_part)
    }

    /// Bytes that the first chunk keeps alive beyond its unread bytes: consumed ones and spare capacity.
    pub(crate) fn excess(&self) -> usize {
        self.front.pins().saturating_sub(self.unread(0))
    }

    /// Appends a copy of everything in `other` as unflushed bytes, into chunks that are filled up and of
    /// which none is much larger than an eighth of the content: for output that waits.
    pub(crate) fn append_copy(&mut self, other: &Self) {
        let mut skip = other.off;
        for node in other.nodes() {
            let mut bytes = &node.as_slice()[std::mem::take(&mut skip)..];
            while !bytes.is_empty() {
                let back = self.back_mut();
                if !back.is_owned() || back.spare() == 0 {
                    let size = (self.total_len() / 8).min(MAX_COPY_CHUNK);
                    let (chunk, class) = self.pool().take_class(size);
                    self.push_node(Node::Owned(chunk, class));
                }
                let tail = self.tail();
                let (part, rest) = bytes.split_at(bytes.len().min(tail.capacity() - tail.len()));
                tail.extend_from_slice(part);
                self.pending += part.len();
                self.written += part.len() as u64;
                bytes = rest;
            }
        }
    }

    #[inline]
    pub(crate) fn is_compact(&self) -> bool {
        self.compacted == self.written
    }

    fn copy_all(&mut self, total: usize, copied: &mut Discarded) {
        let mut own = chunk::allocate(total.next_multiple_of(UNIT));
        own.extend_from_slice(&self.front.as_slice()[self.off..]);
        self.off = 0;
        let old = std::mem::replace(&mut self.front, Node::Owned(own, Class::UNPOOLED));
        copied.add(self.pool(), old);
        while let Some(node) = self.pop_rest() {
            if let Some(own) = self.front.as_mut() {
                own.extend_from_slice(node.as_slice());
            }
            copied.add(self.pool(), node);
        }
    }

    /// Copies the loose nodes among those that came since the last time.
    #[inline(never)]
    fn copy_loose(&mut self, total: usize, copied: &mut Discarded) {
        let fresh = match self.written.checked_sub(self.compacted) {
            Some(fresh) if self.compacted != NEVER => usize::try_from(fresh).unwrap_or(total),
            _ => total,
        };
        let count = 1 + self.rest.as_ref().map_or(0, |links| links.nodes.len());
        let (mut first, mut behind) = (count, 0);
        while first > 0 && behind < fresh {
            first -= 1;
            behind += self.unread(first);
        }
        let mut vacated = false;
        for i in first..count {
            if self.node_is_loose(i, count) {
                // Room for the loose ones that follow, or for a few of the same length.
                let following = if i + 1 < count {
                    let loose = (i + 1..count).take_while(|&k| self.node_is_loose(k, count));
                    loose.map(|k| self.unread(k)).sum()
                } else {
                    let len = self.unread(i);
                    (total / 16).min(GROWTH) / len * len
                };
                vacated |= self.copy_node(i, following, copied);
            }
        }
        if vacated {
            if let Some(links) = &mut self.rest {
                links.nodes.retain(|node| !matches!(node, Node::Empty));
            }
        }
        // More than half of the first chunk was consumed since: so each byte is copied once at most.
        if first > 0
            && self
                .front
                .chunk()
                .is_some_and(|size| size / 2 > self.unread(0))
        {
            self.copy_node(0, 0, copied);
        }
        // The last node is looked at again when it is not the last any more.
        let last = 1 + self.rest.as_ref().map_or(0, |links| links.nodes.len());
        let room = self.node_is_loose(last - 1, last + 1);
        let len = if room { self.unread(last - 1) } else { 0 };
        self.compacted = self.written.checked_sub(len as u64).unwrap_or(NEVER);
    }

    /// Moves node `i` into room behind the one before it, or into a chunk of its own with some room.
    /// `true`: the node is empty now.
    fn copy_node(&mut self, i: usize, room: usize, copied: &mut Discarded) -> bool {
        let consumed = self.node(i).len() - self.unread(i);
        let old = std::mem::replace(self.node_mut(i), Node::Empty);
        let bytes = &old.as_slice()[consumed..];
        if i == 0 {
            self.off = 0;
        }
        // Skips the nodes that were emptied before.
        let mut before = (0..i)
            .rev()
            .filter(|&k| !matches!(self.node(k), Node::Empty));
        let tail = before.next().filter(|&k| {
            let node = self.node(k);
            node.is_owned() && node.spare() >= bytes.len()
        });
        let vacated = if let Some(Node::Owned(tail, _)) = tail.map(|k| self.node_mut(k)) {
            tail.extend_from_slice(bytes);
            true
        } else {
            let mut own = chunk::allocate((bytes.len() + room).next_multiple_of(UNIT));
            own.extend_from_slice(bytes);
            *self.node_mut(i) = Node::Owned(own, Class::UNPOOLED);
            false
        };
        copied.add(self.pool(), old);
        vacated
    }

    /// Whether node `i` keeps more alive than it should. A little room for the next write at the very
    /// end is part of the content.
    fn node_is_loose(&self, i: usize, count: usize) -> bool {
        let (node, len) = (self.node(i), self.unread(i));
        let room = if i + 1 == count { node.spare() } else { 0 };
        len > 0 && node.chunk().unwrap_or(0) > len + len / 8 + room.min(self.total_len() / 8) + UNIT
    }

    fn unread(&self, i: usize) -> usize {
        self.node(i).len() - if i == 0 { self.off } else { 0 }
    }

    fn node(&self, i: usize) -> &Node {
        match (i, &self.rest) {
            (0, _) | (_, None) => &self.front,
            (i, Some(links)) => &links.nodes[i - 1],
        }
    }

    fn node_mut(&mut self, i: usize) -> &mut Node {
        match (i, &mut self.rest) {
            (0, _) | (_, None) => &mut self.front,
            (i, Some(links)) => &mut links.nodes[i - 1],
        }
    }
}

/// Largest content that becomes one chunk.
const SMALL: usize = 4096;
/// Chunks made here are a multiple of this.
const UNIT: usize = 64;
/// Chunks above this size are not for many messages.
const BULKY: usize = 256 << 10;
/// Most room for more that a chunk made here has.
const GROWTH: usize = 16 << 10;
/// Largest chunk that copies are collected in.
const MAX_COPY_CHUNK: usize = 64 << 10;

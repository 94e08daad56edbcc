//! The socket side: vectored sending and receiving in place.

use std::io::IoSlice;

use bytes::BytesMut;

use crate::buffer::{LinkBuffer, NEVER};
use crate::discard::Discarded;
use crate::error::ShortRead;
use crate::node::Node;
use crate::read::COPY_BELOW;
use crate::size_class::Class;

impl LinkBuffer {
    /// Points `out` at the readable bytes, in order, and returns how many entries it used.
    ///
    /// Entries behind that number are left as they were. If `out` is too short for all chunks it
    /// covers the first ones.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::io::{IoSlice, Write};
    /// # use linkbuffer::LinkBuffer;
    /// fn send(buf: &mut LinkBuffer, mut socket: impl Write) -> std::io::Result<()> {
    ///     while !buf.is_empty() {
    ///         let mut slices = [IoSlice::new(&[]); 16];
    ///         let used = buf.io_slices(&mut slices);
    ///         let sent = socket.write_vectored(&slices[..used])?;
    ///         buf.consume(sent);
    ///     }
    ///     Ok(())
    /// }
    /// # let mut out = Vec::new();
    /// # send(&mut LinkBuffer::from(&b"abc"[..]), &mut out).unwrap();
    /// # assert_eq!(out, b"abc");
    /// ```
    #[inline]
    pub fn io_slices<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let mut used = 0;
        for (entry, chunk) in out.iter_mut().zip(self.chunks()) {
            *entry = IoSlice::new(chunk);
            used += 1;
        }
        used
    }

    /// Consumes `n` readable bytes: those that were sent.
    ///
    /// # Panics
    ///
    /// If `n` is more than [`len`](Self::len); [`skip`](Self::skip) returns an error instead.
    #[inline]
    #[track_caller]
    pub fn consume(&mut self, n: usize) {
        if n > self.len {
            consume_too_much(n, self.len);
        }
        self.advance_by(n);
    }

    /// Appends a received piece as readable bytes, without copying (very short pieces apart).
    ///
    /// Pieces that follow each other in one chunk, as [`BytesMut::split`] cuts them, become one
    /// chunk again. Short pieces that do not are copied into a chunk of this buffer, so that a
    /// trickle of small packets neither makes a long chain nor pins many chunks.
    ///
    /// Unflushed bytes written before become readable too, as by [`flush`](Self::flush).
    #[inline]
    pub fn push_chunk(&mut self, piece: BytesMut) {
        let n = piece.len();
        if n == 0 {
            return;
        }
        if self.pending != 0 {
            self.flush();
        }
        self.written += n as u64;
        self.len += n;
        if self.len == n && !self.front.is_owned() {
            self.off = 0;
            // In place, then the old one is dropped: that order saves a move.
            match &mut self.front {
                Node::Exclusive(old) => drop(std::mem::replace(old, piece)),
                other => *other = Node::Exclusive(piece),
            }
        } else {
            self.push_piece(piece);
        }
    }

    /// Moves the received bytes out of `chunk`, which is empty afterwards and keeps its spare capacity.
    ///
    /// As `push_chunk(chunk.split())`, but fewer than 512 bytes are copied if this buffer has room
    /// of its own for them at its end, as one made [with a capacity](Self::with_capacity) has until
    /// it is released. Nothing points into the chunk then, and no reference is counted, which for
    /// a short message is most of the work.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// # use bytes::BytesMut;
    /// let mut buf = LinkBuffer::with_capacity(4096);
    /// let mut chunk = BytesMut::with_capacity(16 << 10);
    /// chunk.extend_from_slice(b"received");
    /// buf.push_filled(&mut chunk);
    /// assert_eq!((chunk.len(), chunk.capacity()), (0, 16 << 10));
    /// assert_eq!(buf, "received");
    /// ```
    #[inline]
    pub fn push_filled(&mut self, chunk: &mut BytesMut) {
        let n = chunk.len();
        if n > 0 && n < COPY_BELOW {
            if self.pending != 0 {
                self.flush();
            }
            if self.len == 0 && self.front.is_owned() && !self.has_rest() {
                self.reset_front();
            }
            if let Node::Owned(tail, _) = self.back_mut() {
                if tail.capacity() - tail.len() >= n {
                    tail.extend_from_slice(chunk);
                    chunk.clear();
                    self.len += n;
                    self.written += n as u64;
                    return;
                }
            }
        }
        self.push_chunk(chunk.split());
    }

    #[inline(never)]
    fn push_piece(&mut self, piece: BytesMut) {
        let n = piece.len();
        let piece = match self.last_filled().as_mut() {
            None => piece,
            Some(last) => match last.try_unsplit(piece) {
                Ok(()) => return,
                Err(piece) if n < COPY_BELOW && last.capacity() - last.len() >= n => {
                    return last.extend_from_slice(&piece);
                }
                Err(piece) => piece,
            },
        };
        self.link_piece(piece);
    }

    /// NodeList a piece that does not continue the last one.
    fn link_piece(&mut self, piece: BytesMut) {
        if piece.len() < COPY_BELOW && self.len > piece.len() {
            self.reserve(piece.len());
            self.tail().extend_from_slice(&piece);
        } else {
            self.link(Node::Exclusive(piece));
        }
    }

    /// The last node, not counting an empty one that is kept as room for the next write.
    #[inline]
    pub(crate) fn last_filled(&mut self) -> &mut Node {
        if let Some(links) = &mut self.rest {
            let is_room = links
                .nodes
                .back()
                .is_some_and(|n| n.is_owned() && n.len() == 0);
            let count = links.nodes.len() - usize::from(is_room);
            if count > 0 {
                return &mut links.nodes[count - 1];
            }
        }
        &mut self.front
    }

    /// Reserves capacity for a receive: returns an empty chunk with spare capacity. Its bytes continue the
    /// readable bytes without a gap once [`commit_recv`](Self::commit_recv) gets it back.
    ///
    /// With the room for the rest of a message of known length, the whole message ends up in one
    /// chunk and is never joined. Readable bytes are moved into a larger chunk for that, if
    /// necessary and if they are not much longer than `want`.
    ///
    /// The capacity is at least `want` bytes, up to 8 MiB. Above that it is reserved in steps of at
    /// least 64 KiB and grows with the received data, so that a length announced by a peer
    /// costs nothing. Unflushed bytes become readable, as by [`flush`](Self::flush).
    ///
    /// The chunk is a separate value: the buffer may be used meanwhile, even on another thread.
    /// Dropping the chunk instead of committing it loses spare capacity and nothing else.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// # fn recv(into: &mut bytes::BytesMut) { into.extend_from_slice(&[1; 4000]); }
    /// let mut buf = LinkBuffer::from(&[0, 0, 0x40, 0][..]); // the length of a body: 16 KiB
    /// while buf.len() < 4 + (16 << 10) {
    ///     let mut room = buf.reserve_recv(4 + (16 << 10) - buf.len());
    ///     recv(&mut room); // a socket would receive into `room.spare_capacity_mut()`
    ///     buf.commit_recv(room);
    /// }
    /// assert!(buf.is_single_chunk());
    /// ```
    pub fn reserve_recv(&mut self, want: usize) -> BytesMut {
        if self.pending != 0 {
            self.flush();
        }
        self.compacted = NEVER;
        let len = self.len;
        let split = self.has_rest();
        let back = self.back_mut();
        let elsewhere = split && back.len() < len;
        if back.spare() < enough(want) || (elsewhere && worth_moving(len, want)) {
            self.grow_tail(want.clamp(1, MAX_RESERVE.max(len)));
        }
        match self.back_mut().as_mut() {
            Some(tail) => tail.split_off(tail.len()),
            None => unreachable!("grow_tail made an own chunk"),
        }
    }

    /// As [`reserve_recv`](Self::reserve_recv), but a large chunk that cannot be had is an error.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`](std::io::ErrorKind::OutOfMemory); the buffer is as before.
    pub fn try_reserve_recv(&mut self, want: usize) -> std::io::Result<BytesMut> {
        let len = self.len + self.pending;
        let split = self.has_rest();
        let spare = self.back_mut().spare();
        if spare < enough(want) || split {
            // A chunk that grows may double its size.
            let most = 2 * len + want.clamp(1, MAX_RESERVE.max(len));
            if Class::of(most) == Class::UNPOOLED {
                crate::allocation::probe(most)?;
            }
        }
        Ok(self.reserve_recv(want))
    }

    /// Takes back the chunk of [`reserve_recv`](Self::reserve_recv), and makes the received
    /// bytes readable. Any chunk may be given here, like in [`push_chunk`](Self::push_chunk).
    pub fn commit_recv(&mut self, room: BytesMut) {
        let n = room.len();
        if n > 0 && self.pending != 0 {
            self.flush();
        }
        if n > 0 {
            self.written += n as u64;
            self.len += n;
        }
        let rejoined = match self.back_mut().as_mut() {
            Some(tail) => tail.try_unsplit(room),
            None => Err(room),
        };
        if let Err(room) = rejoined {
            if n > 0 {
                self.link_piece(room);
            }
        }
    }

    /// Puts everything in `other` in front of the readable bytes, as readable bytes, in a time
    /// that depends on the number of chunks: for output that could not be sent after all.
    ///
    /// Slots of this buffer stay valid, those of `other` end.
    pub fn push_front(&mut self, mut other: Self) {
        let n = other.len + other.pending;
        if n == 0 {
            return;
        }
        other.drop_consumed();
        self.trim();
        if self.total_len() == 0 {
            self.compacted = self.written;
        }
        if !other.is_compact() {
            self.compacted = NEVER;
        }
        self.len += n;
        let front = std::mem::replace(&mut other.front, Node::Empty);
        let old = std::mem::replace(&mut self.front, front);
        self.off = std::mem::take(&mut other.off);
        (other.len, other.pending) = (0, 0);
        if old.len() == 0 && !self.has_rest() && !other.has_rest() {
            return self.put_tail(old.is_owned().then_some(old));
        }
        let nodes = &mut self.links().nodes;
        if old.len() > 0 || old.is_owned() {
            nodes.push_front(old);
        }
        if let Some(links) = &mut other.rest {
            while let Some(node) = links.nodes.pop_back() {
                nodes.push_front(node);
            }
        }
    }

    /// Provides a last node with room for `want` bytes, and moves the readable bytes into it if that
    /// is worth it.
    #[cold]
    #[inline(never)]
    fn grow_tail(&mut self, want: usize) {
        if self.len > 0 && worth_moving(self.len, want) {
            return self.gather(want);
        }
        if let Some(room) = self.take_empty_tail() {
            match self.enlarge(room, want) {
                Ok(room) => return self.push_node(room),
                Err(room) => self.discard(room),
            }
        }
        let (chunk, class) = self.pool().take_class(want);
        self.push_node(Node::Owned(chunk, class));
    }

    /// Moves all readable bytes into one chunk with room for `want` more.
    fn gather(&mut self, want: usize) {
        let (mut chunk, class) = self.pool().take_class(self.len + want);
        for bytes in self.chunks() {
            chunk.extend_from_slice(bytes);
        }
        self.off = 0;
        let mut gone = Discarded::default();
        let front = std::mem::replace(&mut self.front, Node::Owned(chunk, class));
        gone.add(self.pool(), front);
        while let Some(node) = self.pop_rest() {
            gone.add(self.pool(), node);
        }
    }
}

#[cold]
#[track_caller]
fn consume_too_much(n: usize, len: usize) -> ! {
    panic!("consume: {}", ShortRead::new(n, len))
}

/// The room that is used as it is. One of many MiB is used up before it is enlarged, which may copy
/// its content.
fn enough(want: usize) -> usize {
    if want > MAX_RESERVE {
        MIN_RESERVE_STEP
    } else {
        want.max(1)
    }
}

/// Whether to move `len` bytes so that `want` more can follow them in one chunk. Reading the whole
/// in one piece would move all of it; but a few more bytes are no reason to move many.
fn worth_moving(len: usize, want: usize) -> bool {
    len / 4 <= want
}

/// Capacity reserved at once for a message of which only the length is known.
const MAX_RESERVE: usize = 8 << 20;
/// Least capacity reserved for a longer message.
const MIN_RESERVE_STEP: usize = 64 << 10;

//! Receiving into a chunk that stays with its buffer.

use std::mem;

use bytes::BytesMut;

use crate::buffer::LinkBuffer;
use crate::chunk_table;
use crate::node::Node;
use crate::nodes::MIN_KEPT_TAIL;
use crate::size_class::Class;

impl LinkBuffer {
    /// Calls `receive` with a chunk of this buffer; appended bytes become readable. Returns the result of
    /// `receive`.
    ///
    /// If the buffer is empty, `receive` gets a chunk of `size` bytes, reused between calls (kept up to
    /// 64 KiB). At least a quarter of it is free, even if views of earlier messages exist. A message that
    /// is consumed or [forwarded](Self::forward) before the next call changes no reference count.
    ///
    /// Where something is readable the room is the one behind it, so that both are in one piece: at least
    /// `size` bytes, as [`reserve_recv`](Self::reserve_recv) reserves them. Check [`spare_capacity`](Self::spare_capacity) first if
    /// the readable bytes must not move.
    ///
    /// Unflushed bytes become readable, as by [`flush`](Self::flush).
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// let mut buf = LinkBuffer::new();
    /// for _ in 0..3 {
    ///     // A socket would receive into `room.spare_capacity_mut()`.
    ///     let n = buf.recv_with(16 << 10, |room| {
    ///         room.extend_from_slice(b"request");
    ///         room.len()
    ///     });
    ///     assert_eq!(buf.next(n)?, b"request");
    /// }
    /// assert_eq!(buf.memory_size(), 16 << 10);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn recv_with<R>(&mut self, size: usize, receive: impl FnOnce(&mut BytesMut) -> R) -> R {
        if self.len + self.pending != 0 {
            return self.recv_behind(size, receive);
        }
        if !self.is_recv_chunk(size) {
            self.provide_recv_chunk(size);
        }
        self.off = 0;
        let guard = RecvGuard(self);
        match &mut guard.0.front {
            Node::Owned(chunk, _) => {
                chunk.clear();
                receive(chunk)
            }
            _ => unreachable!("room was made"),
        }
    }

    /// Whether this buffer is empty and has a chunk of `size` bytes for the next
    /// [`recv_with`](Self::recv_with), part of which may be in use by views.
    #[inline]
    pub(crate) fn has_recv_chunk(&self, size: usize) -> bool {
        matches!(self.front, Node::Owned(_, class) if class == Class::of(size))
            && self.len + self.pending == 0
            && !self.has_rest()
    }

    /// Takes the chunk out of an empty buffer, to be freed and not to go back to the pool. The result
    /// is empty, and without capacity if there was no such chunk.
    pub(crate) fn take_chunk(&mut self) -> BytesMut {
        if self.len + self.pending == 0 && !self.has_rest() {
            self.reset_front();
            if let Node::Owned(chunk, _) = &mut self.front {
                let chunk = mem::take(chunk);
                self.front = Node::Empty;
                chunk_table::remove(&chunk);
                return chunk;
            }
        }
        BytesMut::new()
    }

    /// Makes everything readable unflushed, as if it had just been written: a buffer that was received
    /// into becomes one for output, with all that is in it. `false`: nothing has happened, because this
    /// is more than one chunk, or shared memory.
    #[inline]
    pub(crate) fn make_unflushed(&mut self) -> bool {
        let whole = matches!(self.front, Node::Owned(..) | Node::Exclusive(_))
            && self.pending == 0
            && !self.has_rest();
        if whole {
            self.pending = mem::take(&mut self.len);
            // Behind every slot there was, so that none of them is taken for one of these bytes.
            self.written = self.written.max(self.slot_top) + 1 + self.pending as u64;
            self.slot_top = 0;
        }
        whole
    }

    /// As [`take_all`](Self::take_all), but room behind the last byte that is worth it stays here: for content
    /// that goes its own way while the next message is received. The taken buffer shares the chunk then.
    pub(crate) fn take_filled(&mut self) -> Self {
        let mut filled = self.take_all();
        let tail = filled.take_empty_tail().or_else(|| {
            let back = filled.back_mut();
            (back.is_owned() && back.spare() >= MIN_KEPT_TAIL).then(|| back.split_off(back.len()))
        });
        if let Some(room) = tail {
            self.front = room;
        }
        filled
    }

    #[cold]
    #[inline(never)]
    fn recv_behind<R>(&mut self, size: usize, receive: impl FnOnce(&mut BytesMut) -> R) -> R {
        let mut room = self.reserve_recv(size);
        let result = receive(&mut room);
        self.commit_recv(room);
        result
    }

    /// Whether the front node is all there is, and an own chunk with so much room if it starts over.
    #[inline]
    fn is_recv_chunk(&self, size: usize) -> bool {
        matches!(&self.front, Node::Owned(chunk, _) if chunk.capacity() >= size.max(1))
            && !self.has_rest()
    }

    #[cold]
    #[inline(never)]
    fn provide_recv_chunk(&mut self, size: usize) {
        self.drop_consumed();
        let size = size.max(1);
        if let Node::Owned(chunk, _) = &mut self.front {
            // Reclaims the whole chunk if no view of it is alive.
            if chunk.try_reclaim(size) || chunk.capacity() >= size.div_ceil(4) {
                return;
            }
        }
        let (chunk, class) = self.pool().take_class(size);
        let old = mem::replace(&mut self.front, Node::Owned(chunk, class));
        self.discard(old);
    }
}

/// Counts the received bytes, also if the receive panics.
struct RecvGuard<'a>(&'a mut LinkBuffer);

impl Drop for RecvGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        let buf = &mut *self.0;
        if let Node::Owned(chunk, _) = &buf.front {
            buf.len = chunk.len();
            buf.written += chunk.len() as u64;
        }
    }
}

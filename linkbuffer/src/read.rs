//! The reading side.

use std::{io, mem};

use bytes::{Bytes, BytesMut};

use crate::allocation::{out_of_memory, probe};
use crate::buffer::LinkBuffer;
use crate::error::ShortRead;
use crate::node::Node;
use crate::size_class::Class;

impl LinkBuffer {
    /// The next `n` bytes, contiguous, without consuming them.
    ///
    /// Copies only if the bytes lie in more than one chunk; they are joined then, once, so that
    /// peeking again costs nothing. `peek(0)` is the empty slice.
    ///
    /// # Errors
    ///
    /// [`ShortRead`] as `UnexpectedEof` if fewer than `n` bytes are readable. Nothing is allocated
    /// for a length that is not there.
    #[inline]
    pub fn peek(&mut self, n: usize) -> io::Result<&[u8]> {
        self.contiguous(n)?;
        Ok(&self.front.as_slice()[self.off..self.off + n])
    }

    /// The next `n` bytes, contiguous, consumed.
    ///
    /// The slice ends with the next call that changes the buffer. Copies as [`peek`](Self::peek)
    /// does.
    ///
    /// # Errors
    ///
    /// [`ShortRead`] as `UnexpectedEof` if fewer than `n` bytes are readable; none is consumed
    /// then.
    #[inline]
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self, n: usize) -> io::Result<&[u8]> {
        self.contiguous(n)?;
        let start = self.off;
        self.off += n;
        self.len -= n;
        Ok(&self.front.as_slice()[start..start + n])
    }

    /// Consumes `n` bytes without looking at them.
    ///
    /// # Errors
    ///
    /// [`ShortRead`] as `UnexpectedEof` if fewer than `n` bytes are readable; none is consumed
    /// then.
    #[inline]
    pub fn skip(&mut self, n: usize) -> io::Result<()> {
        self.check(n)?;
        self.advance_by(n);
        Ok(())
    }

    /// The next `n` bytes as an owned view.
    ///
    /// A view of a sixteenth of its chunk or more shares it, and keeps it alive; so does one of 512 bytes
    /// or more of memory that did not come from a [`ChunkPool`](crate::ChunkPool). Fewer bytes are
    /// copied, so a view keeps at most 16 times its length alive.
    /// Bytes that lie in several chunks are copied together. [`slice`](Self::slice) never copies.
    ///
    /// # Errors
    ///
    /// [`ShortRead`] as `UnexpectedEof` if fewer than `n` bytes are readable; none is consumed
    /// then.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// let mut buf = LinkBuffer::from(vec![7; 1000]);
    /// let body = buf.next_bytes(600)?;
    /// assert_eq!((body.len(), buf.len()), (600, 400));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn next_bytes(&mut self, n: usize) -> io::Result<Bytes> {
        self.check(n)?;
        let start = self.off;
        let front = self.front.as_slice();
        if front.len() - start < n {
            return self.view_across(n);
        }
        if n < COPY_BELOW {
            self.len -= n;
            self.off += n;
            return Ok(Bytes::copy_from_slice(&front[start..start + n]));
        }
        if self.front.is_large_for(&front[start..start + n]) {
            return self.copy_vec(n).map(Bytes::from);
        }
        self.len -= n;
        Ok(self.view_front(n))
    }

    /// The next `n` bytes as a buffer of its own, already readable. Never copies, whatever chunks
    /// the bytes lie in, and keeps those chunks alive.
    ///
    /// # Errors
    ///
    /// [`ShortRead`] as `UnexpectedEof` if fewer than `n` bytes are readable; none is consumed
    /// then.
    pub fn slice(&mut self, n: usize) -> io::Result<Self> {
        self.check(n)?;
        let mut out = Self::new();
        out.pool.clone_from(&self.pool);
        out.len = n;
        out.written = n as u64;
        let mut left = n;
        while left > 0 {
            if self.off == self.front.len() {
                self.drop_consumed();
            }
            let k = left.min(self.front.len() - self.off);
            let node = self.split_front(k);
            self.len -= k;
            out.push_node(node);
            left -= k;
        }
        #[cfg(netpoll_leaks)]
        out.track_slice();
        Ok(out)
    }

    /// One byte, consumed.
    ///
    /// # Errors
    ///
    /// [`ShortRead`] as `UnexpectedEof` if nothing is readable.
    #[inline]
    pub fn read_u8(&mut self) -> io::Result<u8> {
        self.next(1).map(|b| b[0])
    }

    /// The next `n` bytes, consumed and copied.
    ///
    /// # Errors
    ///
    /// [`ShortRead`] as `UnexpectedEof` if fewer than `n` bytes are readable; none is consumed
    /// then.
    pub fn read_vec(&mut self, n: usize) -> io::Result<Vec<u8>> {
        self.check(n)?;
        self.copy_vec(n)
    }

    #[inline]
    pub(crate) fn check(&self, n: usize) -> io::Result<()> {
        if n > self.len {
            Err(self.short(n))
        } else {
            Ok(())
        }
    }

    #[cold]
    fn short(&self, n: usize) -> io::Error {
        ShortRead::new(n, self.len).into()
    }

    /// Consumes `n` bytes, which are known to be readable.
    #[inline]
    pub(crate) fn advance_by(&mut self, n: usize) {
        self.len -= n;
        self.off += n;
        if self.len + self.pending == 0 && !self.has_rest() {
            self.reset_front();
        } else if self.off >= self.front.len() {
            self.drop_consumed();
        }
    }

    /// Makes the next `n` bytes lie in the front node.
    #[inline]
    fn contiguous(&mut self, n: usize) -> io::Result<()> {
        if n <= self.len && n <= self.front.len() - self.off {
            return Ok(());
        }
        self.contiguous_slow(n)
    }

    #[cold]
    #[inline(never)]
    fn contiguous_slow(&mut self, n: usize) -> io::Result<()> {
        self.check(n)?;
        self.join(n)
    }

    /// Copies the next `n` readable bytes together into the front node.
    fn join(&mut self, n: usize) -> io::Result<()> {
        self.drop_consumed();
        let mut have = self.front.len() - self.off;
        if have >= n {
            return Ok(());
        }
        if self.front.spare() < n - have {
            // Rounded up to a power of two: a series of ever longer peeks copies each byte a
            // bounded number of times.
            let mut room = n.checked_next_power_of_two().unwrap_or(n);
            if Class::of(room) == Class::UNPOOLED && probe(room).is_err() {
                probe(n)?;
                room = n;
            }
            let (mut chunk, class) = self.pool().take_class(room);
            chunk.extend_from_slice(&self.front.as_slice()[self.off..]);
            self.off = 0;
            let old = mem::replace(&mut self.front, Node::Owned(chunk, class));
            self.recycle(old);
        }
        while have < n {
            let (Some(links), Some(joined)) = (&mut self.rest, self.front.as_mut()) else {
                break;
            };
            let Some(node) = links.nodes.front_mut() else {
                break;
            };
            let k = node.len().min(n - have);
            joined.extend_from_slice(&node.as_slice()[..k]);
            have += k;
            if k < node.len() {
                node.advance(k);
            } else if let Some(node) = links.nodes.pop_front() {
                self.recycle(node);
            }
        }
        Ok(())
    }

    /// The next `n` bytes, which are readable but not all in the front node.
    #[cold]
    #[inline(never)]
    fn view_across(&mut self, n: usize) -> io::Result<Bytes> {
        self.drop_consumed();
        let view = self.front.as_slice()[self.off..].get(..n);
        if n < COPY_BELOW || view.is_none_or(|view| self.front.is_large_for(view)) {
            return self.copy_vec(n).map(Bytes::from);
        }
        self.len -= n;
        Ok(self.view_front(n))
    }

    /// Copies and consumes `n` bytes, which are readable.
    pub(crate) fn copy_vec(&mut self, n: usize) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        out.try_reserve_exact(n).map_err(|e| out_of_memory(n, &e))?;
        for chunk in self.chunks() {
            out.extend_from_slice(&chunk[..chunk.len().min(n - out.len())]);
            if out.len() == n {
                break;
            }
        }
        self.advance_by(n);
        Ok(out)
    }

    /// Cuts `n` bytes, which are there, off the front node. Lengths are the caller's business.
    fn view_front(&mut self, n: usize) -> Bytes {
        #[cfg(netpoll_leaks)]
        if !matches!(self.front, Node::Shared(_) | Node::Extendable(..)) {
            return crate::leak::view(self.split_front(n));
        }
        self.trim_front();
        match &mut self.front {
            Node::Exclusive(chunk) if chunk.len() == n => mem::take(chunk).freeze(),
            Node::Exclusive(chunk) => chunk.split_to(n).freeze(),
            Node::Owned(..) => self.split_owned(n).freeze(),
            shared => shared.split_shared(n),
        }
    }

    /// As [`view_front`](Self::view_front), but keeps the kind of the node.
    pub(crate) fn split_front(&mut self, n: usize) -> Node {
        self.trim_front();
        match &mut self.front {
            Node::Exclusive(chunk) if chunk.len() == n => Node::Exclusive(mem::take(chunk)),
            Node::Exclusive(chunk) => Node::Exclusive(chunk.split_to(n)),
            Node::Owned(..) => Node::Exclusive(self.split_owned(n)),
            shared => shared.split_extendable(n),
        }
    }

    /// Cuts `n` bytes off the front node, which is an own one. If all of it goes and there is no
    /// room worth keeping behind it, the chunk goes back to the pool, to wait for its views.
    fn split_owned(&mut self, n: usize) -> BytesMut {
        let Node::Owned(chunk, class) = &mut self.front else {
            return BytesMut::new();
        };
        if chunk.len() > n || chunk.capacity() - n >= MIN_KEPT_SPARE {
            return chunk.split_to(n);
        }
        if *class == Class::UNPOOLED {
            return mem::take(chunk);
        }
        let view = chunk.split_to(n);
        let owner = mem::replace(&mut self.front, Node::Empty);
        self.discard(owner);
        view
    }

    /// Records a slice, unless it has nothing to share.
    #[cfg(netpoll_leaks)]
    fn track_slice(&mut self) {
        let shares =
            |node: &&Node| !matches!(node, Node::Shared(_) | Node::Extendable(..) | Node::Empty);
        let first = self
            .nodes()
            .find(shares)
            .map(|node| crate::view::pinned(node.as_slice()));
        self.leak = first.map(|first| crate::leak::slice(self.len, first));
    }

    #[inline]
    fn trim_front(&mut self) {
        if self.off > 0 {
            self.front.advance(self.off);
            self.off = 0;
        }
    }
}

/// Shorter views are copied.
pub(crate) const COPY_BELOW: usize = 512;
/// Spare room that is kept when everything in front of it is handed out.
const MIN_KEPT_SPARE: usize = 512;

//! Changing unflushed bytes: cutting the end off, inserting before the end.

use std::cmp::Ordering;

use bytes::Bytes;

use crate::buffer::{LinkBuffer, NEVER};
use crate::discard::Discarded;
use crate::error::WriteError;
use crate::node::Node;
use crate::node_list::SlotShift;
use crate::write::LINK_FROM;

impl LinkBuffer {
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
        self.record(SlotShift::Cut(self.written));
        self.compacted = NEVER;
        let back = self.back_mut();
        let have = back.len();
        if cut <= have && back.is_owned() {
            back.truncate(have - cut);
        } else {
            self.cut_nodes(cut);
        }
        Ok(())
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
            self.record(SlotShift::Insert {
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

    /// Drops the last `cut` bytes where they are not all in one own node.
    #[cold]
    fn cut_nodes(&mut self, mut cut: usize) {
        let mut room = None;
        let mut gone = Discarded::default();
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
                    Node::Owned(mut chunk, class) if room.is_none() => {
                        chunk.clear();
                        room = Some(Node::Owned(chunk, class));
                    }
                    node => gone.add(self.pool(), node),
                }
            }
        }
        if self.total_len() == 0 {
            // The front node is empty, so its memory is not kept.
            self.off = 0;
            let front = std::mem::replace(&mut self.front, Node::Empty);
            gone.add(self.pool(), front);
        }
        self.put_tail(room);
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
}

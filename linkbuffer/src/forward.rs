//! From one buffer to another.

use std::{io, mem};

use bytes::Buf;

use crate::buffer::LinkBuffer;
use crate::node::Node;
use crate::read::COPY_BELOW;

impl LinkBuffer {
    /// Moves the next `n` bytes to the end of `to`, as unflushed bytes, like
    /// `to.append(self.slice(n)?)` without the buffer in between.
    ///
    /// Fewer than 512 bytes are copied, which is as cheap and pins nothing; more are linked. Messages
    /// that lie behind each other in one chunk, as those of one receive do, are one piece again: from
    /// the second on forwarding moves two numbers, however long the message, and a run of them is
    /// sent from one address. So short messages are linked too if at least 1 KiB lies behind them.
    ///
    /// # Errors
    ///
    /// [`ShortRead`](crate::ShortRead) as `UnexpectedEof` if fewer than `n` bytes are readable; none
    /// is moved then.
    ///
    /// # Examples
    ///
    /// ```
    /// # use linkbuffer::LinkBuffer;
    /// let mut input = LinkBuffer::from(vec![7; 3000]);
    /// let mut output = LinkBuffer::new();
    /// input.forward(1000, &mut output)?;
    /// input.forward(1000, &mut output)?;
    /// output.flush();
    /// assert_eq!((input.len(), output.len()), (1000, 2000));
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[inline]
    pub fn forward(&mut self, n: usize, to: &mut Self) -> io::Result<()> {
        if n == self.len && n >= COPY_BELOW && self.can_move_front_chunk(to) {
            self.move_front_chunk(to);
            return Ok(());
        }
        self.check(n)?;
        let Some(next) = self.front.as_slice()[self.off..].get(..n) else {
            self.forward_across(n, to);
            return Ok(());
        };
        if to.last_filled().extend_shared(next) {
            to.pending += n;
            to.written += n as u64;
            self.advance_by(n);
        } else if n < COPY_BELOW && self.front.len() - self.off < n + MIN_RUN_BEHIND {
            to.write_slice(next);
            self.advance_by(n);
        } else {
            self.forward_links(n, to);
        }
        Ok(())
    }

    /// Whether the buffer is one chunk that may replace the front node of `to`. An owned tail of `to` is
    /// replaced by an owned chunk only.
    #[inline]
    fn can_move_front_chunk(&self, to: &Self) -> bool {
        let fits = match self.front {
            Node::Owned(..) => true,
            Node::Exclusive(_) => !to.front.is_owned(),
            _ => false,
        };
        fits && self.pending == 0 && !self.has_rest() && to.len + to.pending == 0 && !to.has_rest()
    }

    /// The whole content is one chunk: moves the node.
    #[inline]
    fn move_front_chunk(&mut self, to: &mut Self) {
        mem::swap(&mut self.front, &mut to.front);
        to.off = mem::take(&mut self.off);
        to.pending = mem::take(&mut self.len);
        to.written += to.pending as u64;
        // The former front node of `to` is empty, but may keep a chunk.
        self.reset_front();
    }

    /// The bytes are not all in the front node.
    #[cold]
    #[inline(never)]
    fn forward_across(&mut self, n: usize, to: &mut Self) {
        if n < COPY_BELOW {
            self.forward_copies(n, to);
        } else {
            self.forward_links(n, to);
        }
    }

    fn forward_copies(&mut self, n: usize, to: &mut Self) {
        let mut left = n;
        for chunk in self.chunks() {
            let part = &chunk[..chunk.len().min(left)];
            to.write_slice(part);
            left -= part.len();
            if left == 0 {
                break;
            }
        }
        self.advance_by(n);
    }

    #[inline(never)]
    fn forward_links(&mut self, n: usize, to: &mut Self) {
        to.pending += n;
        to.written += n as u64;
        let mut left = n;
        while left > 0 {
            if self.off == self.front.len() {
                self.drop_consumed();
            }
            let k = left.min(self.front.len() - self.off);
            let node = self
                .begin_extendable(k)
                .unwrap_or_else(|| self.split_front(k));
            self.len -= k;
            left -= k;
            to.link_behind(node);
        }
    }

    /// The first `k` bytes of the front node as the begin of a run, if more lies behind them that
    /// may follow: messages received together are often sent together.
    fn begin_extendable(&mut self, k: usize) -> Option<Node> {
        // Unflushed bytes may still be cut or filled in.
        let all = self.front.len() - self.off == k || self.pending > 0;
        if cfg!(netpoll_leaks) || all {
            return None;
        }
        let len = u32::try_from(k).ok()?;
        u32::try_from(self.front.len()).ok()?;
        let (Node::Exclusive(piece) | Node::Owned(piece, _)) = &mut self.front else {
            return None;
        };
        let mut rest = piece.split().freeze();
        rest.advance(self.off);
        self.off = k;
        let old = mem::replace(&mut self.front, Node::Shared(rest.clone()));
        // Of an own chunk the room behind all this is left.
        self.put_tail(old.is_owned().then_some(old));
        Some(Node::Extendable(rest, len))
    }

    /// Puts a node to the end, joined with the last one if it continues it. Lengths are the
    /// caller's business.
    #[inline]
    pub(crate) fn link_behind(&mut self, node: Node) {
        if self.off == self.front.len() && !self.front.is_owned() && !self.has_rest() {
            self.off = 0;
            self.front = node;
            return;
        }
        let node = match node {
            Node::Exclusive(piece) => match self.last_filled() {
                Node::Exclusive(last) if !last.is_empty() => match last.try_unsplit(piece) {
                    Ok(()) => return,
                    Err(piece) => Node::Exclusive(piece),
                },
                _ => Node::Exclusive(piece),
            },
            other if self.last_filled().extend_shared(other.as_slice()) => return,
            other => other,
        };
        self.link(node);
    }
}

/// Bytes behind a short message from which a run of such messages is to be expected.
const MIN_RUN_BEHIND: usize = 1024;

#[cfg(all(test, not(netpoll_leaks)))]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn received(n: usize) -> (BytesMut, LinkBuffer) {
        let mut chunk = BytesMut::with_capacity(n + 100);
        chunk.extend((0..n).map(|i| (i * 31) as u8));
        let mut input = LinkBuffer::new();
        input.push_chunk(chunk.split());
        (chunk, input)
    }

    fn sizes(buf: &LinkBuffer) -> Vec<usize> {
        buf.chunks().map(<[u8]>::len).collect()
    }

    #[test]
    fn a_message_that_is_all_there_is_changes_hands() {
        let (mut chunk, mut input) = received(3000);
        let all = input.peek(3000).unwrap().to_vec();
        input.skip(1000).unwrap();
        let address = input.peek(1).unwrap().as_ptr();
        let mut out = LinkBuffer::new();
        input.forward(2000, &mut out).unwrap();
        assert_eq!((input.len(), out.len(), out.malloc_len()), (0, 0, 2000));
        out.flush();
        assert_eq!(out, all[1000..]);
        assert_eq!(out.peek(1).unwrap().as_ptr(), address, "not copied");
        drop(input);
        assert!(!chunk.try_reclaim(3100));
        out.skip(2000).unwrap();
        assert!(chunk.try_reclaim(3100), "nothing points there any more");

        // Neither unflushed bytes of the target nor its spare capacity are replaced.
        let (_chunk, mut input) = received(600);
        out.write_slice(b"first");
        input.forward(600, &mut out).unwrap();
        input.push_chunk(BytesMut::from(&all[..700]));
        input.forward(700, &mut out).unwrap();
        out.flush();
        assert_eq!(out.read_vec(5).unwrap(), b"first");
        assert_eq!(out.read_vec(600).unwrap(), all[..600]);
        assert_eq!(out, all[..700]);
        assert_eq!((input.len(), input.malloc_len()), (0, 0));
        input.write_slice(b"goes on");
        input.flush();
        assert_eq!(input, "goes on");
    }

    #[test]
    fn a_run_grows_only_by_what_lies_behind_it() {
        let (mut chunk, mut input) = received(9000);
        let all = input.peek(9000).unwrap().to_vec();
        let mut out = LinkBuffer::new();
        for n in [700, 64, 1, 2000] {
            input.forward(n, &mut out).unwrap();
        }
        out.flush();
        assert_eq!(sizes(&out), [2765]);
        // A message that is not passed on.
        input.skip(35).unwrap();
        for n in [100, 100] {
            input.forward(n, &mut out).unwrap();
        }
        out.flush();
        assert_eq!(sizes(&out), [2765, 200]);
        // Something else between two messages.
        out.write_slice(b"between");
        input.forward(600, &mut out).unwrap();
        out.flush();
        assert_eq!(sizes(&out), [2765, 200, 7, 600]);
        // To another buffer in between.
        let mut other = LinkBuffer::new();
        input.forward(500, &mut other).unwrap();
        input.forward(600, &mut out).unwrap();
        out.flush();
        assert_eq!(sizes(&out), [2765, 200, 7, 600, 600]);

        let left = input.len();
        let mut expected = all[..2765].to_vec();
        expected.extend_from_slice(&all[2800..3000]);
        expected.extend_from_slice(b"between");
        expected.extend_from_slice(&all[3000..3600]);
        expected.extend_from_slice(&all[4100..4700]);
        assert_eq!(out, expected);
        assert_eq!(input, all[9000 - left..]);
        drop((out, input));
        assert!(!chunk.try_reclaim(9100), "another buffer has 500 bytes");
        drop(other);
        assert!(chunk.try_reclaim(9100));
    }

    #[test]
    fn a_run_grows_while_its_front_is_sent() {
        let (_, mut input) = received(5000);
        let all = input.peek(5000).unwrap().to_vec();
        let mut out = LinkBuffer::new();
        let mut sent = Vec::new();
        while !input.is_empty() {
            input.forward(input.len().min(100), &mut out).unwrap();
            out.flush();
            let part = out.next(60.min(out.len())).unwrap();
            sent.extend_from_slice(part);
        }
        assert_eq!(out.chunks().count(), 1);
        sent.extend_from_slice(out.peek(out.len()).unwrap());
        assert_eq!(sent, all);
    }

    #[test]
    fn few_bytes_pin_nothing() {
        let (mut chunk, mut input) = received(64 + MIN_RUN_BEHIND - 1);
        let mut out = LinkBuffer::new();
        input.forward(64, &mut out).unwrap();
        input.skip(MIN_RUN_BEHIND - 1).unwrap();
        drop(input);
        assert!(chunk.try_reclaim(1000), "copied");
        assert_eq!(out.malloc_len(), 64);

        let (mut chunk, mut input) = received(64 + MIN_RUN_BEHIND);
        input.forward(64, &mut out).unwrap();
        drop(input);
        assert!(!chunk.try_reclaim(1000), "linked");
    }

    #[test]
    fn a_run_is_read_cut_and_shared_as_any_bytes() {
        let (_, mut input) = received(8000);
        let all = input.peek(8000).unwrap().to_vec();
        let run = |input: &mut LinkBuffer| {
            let mut out = LinkBuffer::new();
            input.forward(600, &mut out).unwrap();
            input.forward(400, &mut out).unwrap();
            out.flush();
            out
        };
        let mut a = run(&mut input);
        let whole = a.next_bytes(1000).unwrap();
        let mut b = run(&mut input);
        let (first, second) = (b.next_bytes(600).unwrap(), b.slice(400).unwrap());
        let mut c = run(&mut input);
        c.write_slice(b"x");
        c.flush();
        let joined = c.peek(1001).unwrap().to_vec();
        let mut d = LinkBuffer::new();
        input.forward(1000, &mut d).unwrap();
        d.malloc_ack(700);
        d.flush();
        assert_eq!(whole, all[..1000]);
        assert_eq!((&first[..], second.len()), (&all[1000..1600], 400));
        assert_eq!(second, all[1600..2000]);
        assert_eq!((&joined[..1000], joined[1000]), (&all[2000..3000], b'x'));
        assert_eq!(d, all[3000..3700]);
        // The cut bytes do not come back: the next bytes are other ones.
        input.forward(100, &mut d).unwrap();
        d.flush();
        assert_eq!(d.len(), 800);
        let both = d.peek(800).unwrap();
        assert_eq!(
            (&both[..700], &both[700..]),
            (&all[3000..3700], &all[4000..4100])
        );
    }
}

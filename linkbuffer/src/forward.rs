//! From one buffer to another.

use std::io;

use crate::buffer::LinkBuffer;
use crate::node::Node;
use crate::read::COPY_BELOW;

impl LinkBuffer {
    /// Moves the next `n` bytes to the end of `to`, as unflushed bytes: what
    /// `to.append(self.slice(n)?)` does, without a buffer in between.
    ///
    /// Fewer than 512 bytes are copied, which is as cheap and pins nothing; more are linked. Pieces
    /// that lie behind each other in one chunk, such as the messages of one receive, become one
    /// piece again, so that a run of them is sent from one address.
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
        self.check(n)?;
        if n >= COPY_BELOW {
            self.forward_links(n, to);
        } else if self.front.len() - self.off >= n {
            to.write_slice(&self.front.as_slice()[self.off..self.off + n]);
            self.advance_by(n);
        } else {
            self.forward_copies(n, to);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
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

    fn forward_links(&mut self, n: usize, to: &mut Self) {
        to.pending += n;
        to.written += n as u64;
        let mut left = n;
        while left > 0 {
            if self.off == self.front.len() {
                self.settle();
            }
            let k = left.min(self.front.len() - self.off);
            let node = self.split_front(k);
            self.len -= k;
            left -= k;
            to.link_behind(node);
        }
    }

    /// Puts a node to the end, joined with the last one if it continues it. Lengths are the
    /// caller's business.
    #[inline]
    pub(crate) fn link_behind(&mut self, node: Node) {
        if self.off == self.front.len() && !self.front.is_own() && !self.has_rest() {
            self.off = 0;
            self.front = node;
            return;
        }
        let node = match node {
            Node::Piece(piece) => match self.last_filled() {
                Node::Piece(last) if !last.is_empty() => match last.try_unsplit(piece) {
                    Ok(()) => return,
                    Err(piece) => Node::Piece(piece),
                },
                _ => Node::Piece(piece),
            },
            other => other,
        };
        self.link(node);
    }
}

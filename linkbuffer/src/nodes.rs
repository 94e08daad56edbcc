//! Adding and dropping nodes. Consumed nodes are dropped; one may be kept for the next write.

use crate::buffer::LinkBuffer;
use crate::discard::Discarded;
use crate::node::Node;
use crate::node_list::NodeList;

impl LinkBuffer {
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.front).chain(self.rest.iter().flat_map(|l| &l.nodes))
    }

    #[inline]
    pub(crate) fn has_rest(&self) -> bool {
        self.rest.as_ref().is_some_and(|l| !l.nodes.is_empty())
    }

    #[inline]
    pub(crate) fn back_mut(&mut self) -> &mut Node {
        if let Some(links) = &mut self.rest {
            if let Some(node) = links.nodes.back_mut() {
                return node;
            }
        }
        &mut self.front
    }

    /// Whether the last node can take a short write.
    #[inline]
    fn has_tail(&mut self) -> bool {
        let back = self.back_mut();
        back.is_owned() && back.spare() >= MIN_TAIL
    }

    #[inline]
    pub(crate) fn pop_rest(&mut self) -> Option<Node> {
        self.rest.as_mut().and_then(|l| l.nodes.pop_front())
    }

    pub(crate) fn links(&mut self) -> &mut NodeList {
        if self.rest.is_none() {
            self.rest = Some(self.pool().take_node_list());
        }
        self.rest.as_mut().expect("just set")
    }

    pub(crate) fn free_node_list(&mut self) {
        if let Some(mut links) = self.rest.take() {
            if links.nodes.capacity() <= MAX_KEPT_NODES && links.shifts.capacity() <= MAX_KEPT_NODES
            {
                links.nodes.clear();
                links.shifts.clear();
                self.pool().give_node_list(links);
            }
        }
    }

    /// Drops the nodes at the front that are read to the end. If nothing is left, the front node
    /// starts over.
    pub(crate) fn drop_consumed(&mut self) {
        if self.len + self.pending == 0 {
            return self.reset();
        }
        loop {
            let n = self.front.len();
            if self.off < n {
                return;
            }
            let Some(next) = self.pop_rest() else { return };
            self.off -= n;
            let old = std::mem::replace(&mut self.front, next);
            self.recycle(old);
        }
    }

    /// Everything is read to the end: keeps one own node as room for the next write, the front one
    /// if possible.
    fn reset(&mut self) {
        // A panic of a payload's drop resumes after all nodes are in place.
        let mut gone = Discarded::default();
        if self.has_rest() {
            let keep = matches!(&self.front, Node::Owned(chunk, class)
                if class.is_kept() && chunk.capacity() >= MIN_KEPT_TAIL);
            while let Some(node) = self.pop_rest() {
                let needless = if keep {
                    node
                } else {
                    std::mem::replace(&mut self.front, node)
                };
                gone.add(self.pool(), needless);
            }
        }
        self.reset_front();
    }

    /// Starts the front node over, the only one there is; it is read to the end.
    #[inline]
    pub(crate) fn reset_front(&mut self) {
        self.off = 0;
        match &mut self.front {
            // Bytes before the handle's own region may be part of views; those in it are not.
            Node::Owned(chunk, class) if class.is_kept() => chunk.clear(),
            Node::Empty => {}
            _ => self.clear_front(),
        }
    }

    #[inline(never)]
    fn clear_front(&mut self) {
        let old = std::mem::replace(&mut self.front, Node::Empty);
        self.discard(old);
    }

    /// A node that was read to the end: its chunk becomes the room for the next write if there is
    /// none.
    pub(crate) fn recycle(&mut self, node: Node) {
        let Node::Owned(mut chunk, class) = node else {
            return;
        };
        if class.is_kept() && chunk.capacity() >= MIN_KEPT_TAIL && !self.has_tail() {
            chunk.clear();
            self.links().nodes.push_back(Node::Owned(chunk, class));
        } else {
            self.pool().give(chunk, class);
        }
    }

    /// A node that is not needed any more.
    pub(crate) fn discard(&mut self, node: Node) {
        if let Node::Owned(chunk, class) = node {
            self.pool().give(chunk, class);
        }
    }

    /// Takes away the empty node at the end that is kept for the next write.
    pub(crate) fn take_empty_tail(&mut self) -> Option<Node> {
        if self.has_rest() {
            let back = self.back_mut();
            if back.is_owned() && back.len() == 0 {
                return self.rest.as_mut().and_then(|l| l.nodes.pop_back());
            }
            return None;
        }
        if let Node::Owned(chunk, _) = &mut self.front {
            if self.off == chunk.len() {
                self.off = 0;
                chunk.clear();
                return Some(std::mem::replace(&mut self.front, Node::Empty));
            }
        }
        None
    }

    /// Appends a node. Lengths are the caller's business.
    pub(crate) fn push_node(&mut self, node: Node) {
        if self.off == self.front.len() && !self.has_rest() {
            self.off = 0;
            let old = std::mem::replace(&mut self.front, node);
            self.discard(old);
        } else {
            self.links().nodes.push_back(node);
        }
    }

    /// Appends a node, and keeps the room for the next write behind it.
    pub(crate) fn link(&mut self, node: Node) {
        let room = self.take_empty_tail();
        self.push_node(node);
        self.put_tail(room);
    }

    /// Puts the room for the next write back at the end, unless there is some already.
    pub(crate) fn put_tail(&mut self, room: Option<Node>) {
        if let Some(room) = room {
            if self.has_tail() {
                self.discard(room);
            } else {
                self.links().nodes.push_back(room);
            }
        }
    }

    /// Drops consumed bytes for good, so that nodes can be moved about.
    pub(crate) fn trim(&mut self) {
        self.drop_consumed();
        if self.off > 0 {
            self.front.advance(self.off);
            self.off = 0;
        }
    }
}

/// Longest node list worth keeping.
const MAX_KEPT_NODES: usize = 256;
/// Smallest rest of a chunk worth keeping as room for the next write.
pub(crate) const MIN_KEPT_TAIL: usize = 1024;
/// Least room worth a node of its own.
pub(crate) const MIN_TAIL: usize = 64;

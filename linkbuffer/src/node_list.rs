//! The nodes behind the front one, and the shifts of open slots.

use std::collections::VecDeque;

use crate::node::Node;

/// The part of a buffer that is needed only with more than one node.
#[derive(Default)]
pub(crate) struct NodeList {
    pub(crate) nodes: VecDeque<Node>,
    /// Changes of the positions of open slots since the last flush.
    pub(crate) shifts: Vec<SlotShift>,
}

/// Something that changed the position of slots.
#[derive(Clone, Copy)]
pub(crate) enum SlotShift {
    /// Everything from this position on was cut away.
    Cut(u64),
    /// `n` bytes were inserted at `at`.
    Insert { at: u64, n: u64 },
}

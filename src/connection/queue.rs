//! What waits behind a full socket, under its lock: bytes, where messages end, what was lost.

use super::{
    output::Contain,
    state::{QUEUED, Word},
};
use crate::{foreign, memory::Charge};
use linkbuffer::{LinkBuffer, netpoll_only::NetpollBuffer as _};
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Bytes nobody is sending yet.
    pub(super) chain: Option<Box<LinkBuffer>>,
    /// Queue offset behind the last accepted byte.
    pub(super) accepted: i64,
    /// Queue offset behind the last byte the sink took.
    pub(super) sent: i64,
    /// Messages that were queued.
    pub(super) messages: u64,
    /// Offsets behind each queued message, oldest first.
    pub(super) ends: VecDeque<i64>,
    /// Bytes and messages that were accepted and then dropped.
    pub(super) lost: Loss,
    charge: Charge,
}

/// Accepted output that will never be sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) bytes: usize,
    pub(crate) messages: usize,
    /// A queue of at most so many bytes takes one message of any length.
    pub(crate) low: usize,
}

/// The queue has no room; the bytes that wait in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full(pub(crate) usize);

impl Drop for Queue {
    fn drop(&mut self) {
        // Usually the end of the connection has taken it.
        foreign::drop_foreign(self.chain.take());
    }
}

impl Queue {
    pub(super) fn bytes(&self) -> usize {
        let lost = self.lost.bytes as i64;
        usize::try_from(self.accepted - self.sent - lost).unwrap_or(0)
    }

    /// Bytes of memory that the queue keeps alive, within an eighth.
    fn held(&self) -> usize {
        let excess = self.chain.as_ref().map_or(0, |chain| chain.excess());
        let besides = excess + self.ends.len() * MESSAGE;
        self.bytes() + besides.saturating_sub(UNCOUNTED)
    }

    pub(super) fn recount(&mut self, guard: &impl Contain) -> i32 {
        let held = self.held();
        let delta = self.charge.follow(held);
        if delta != 0 {
            guard.charge(delta);
        }
        delta
    }

    pub(super) fn room(&self, len: usize, bound: Bound) -> Result<(), Full> {
        let queued = self.bytes();
        let fits =
            self.held().saturating_add(len) <= bound.bytes && self.ends.len() < bound.messages;
        if fits || queued <= bound.low {
            Ok(())
        } else {
            Err(Full(queued))
        }
    }

    /// Lets go of what many messages or bytes needed.
    pub(super) fn fall_empty(&mut self) {
        if self.ends.capacity() > KEPT_ENDS {
            self.ends = VecDeque::new();
        }
        if let Some(chain) = &mut self.chain {
            chain.release();
        }
    }

    pub(super) fn progress(&mut self, n: usize) {
        self.sent += n as i64;
        while self.ends.front().is_some_and(|&end| end <= self.sent) {
            self.ends.pop_front();
        }
    }

    pub(super) fn put_back(&mut self, chain: &mut LinkBuffer) {
        let rest = chain.take_filled();
        self.chain.get_or_insert_default().push_front(rest);
    }

    pub(super) fn discard(&mut self, word: &Word, role: u32) -> Option<Box<LinkBuffer>> {
        let chain = self.chain.take();
        let len = chain.as_ref().map_or(0, |chain| chain.len());
        // Messages before the chain are in a flusher's hands, who may still send all of them.
        let start = self.accepted - self.lost.bytes as i64 - len as i64;
        let kept = self.ends.partition_point(|&end| end <= start);
        self.lost.bytes += len as u64;
        self.lost.messages += (self.ends.len() - kept) as u64;
        self.ends.truncate(kept);
        word.clear(QUEUED | role);
        chain
    }
}

/// What the queue holds for a message besides its bytes.
const MESSAGE: usize = 2 * size_of::<i64>();
/// So much of what the queue holds besides bytes does not count, lest small limits be a matter of chunks.
const UNCOUNTED: usize = 8 << 10;
/// Ends of messages for which an empty queue keeps room.
const KEPT_ENDS: usize = 64;

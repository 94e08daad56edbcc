//! Buffers between two requests: a connection without data holds none, it takes one from the
//! thread that runs it.
//!
//! What a thread keeps is bounded by its kind and not by its connections: a few buffers of about 100
//! bytes, chunks of [`ROOM`] for input in two of them at most, the chunk of the last output and [`TAIL`] in
//! the others: with what it receives into, no more than 600 KiB.

// Boxes, because a connection keeps one word and not a whole buffer.
#![allow(clippy::vec_box)]

use linkbuffer::{LinkBuffer, netpoll_only::NetpollBuffer as _};
use std::{
    cell::{Cell, RefCell},
    thread::LocalKey,
};

/// The chunk of an input buffer: what small messages are received into.
pub(crate) const ROOM: usize = 64 << 10;
/// The largest chunk of a buffer that is not the one a thread used last.
const TAIL: usize = 4 << 10;
/// Buffers a thread keeps; more than this many connections at work on one thread is rare.
const KEPT: usize = 16;

/// Empty buffers of a thread. However many they are, no more than two have a chunk for input.
struct Spare {
    /// The one that was used last.
    last: Cell<Option<Box<LinkBuffer>>>,
    /// The other one with such a chunk: for handlers that pass on a message and receive the next one
    /// before their turn ends.
    second: Cell<Option<Box<LinkBuffer>>>,
    /// Those for callbacks within callbacks.
    others: RefCell<Vec<Box<LinkBuffer>>>,
}

thread_local! {
    static INPUT: Spare = const { Spare::new() };
    static OUTPUT: Spare = const { Spare::new() };
}

/// An empty buffer for what is received, with a chunk for it as a rule.
pub(crate) fn input() -> Box<LinkBuffer> {
    Spare::take(&INPUT)
}

/// An empty buffer without a chunk.
pub(crate) fn plain() -> Box<LinkBuffer> {
    INPUT
        .try_with(|spare| spare.others.borrow_mut().pop())
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// An empty buffer for output, with the tail chunk of its last user.
pub(crate) fn output() -> Box<LinkBuffer> {
    Spare::take(&OUTPUT)
}

/// Gives an empty input buffer a chunk again, if the thread has one for it.
#[cold]
#[inline(never)]
pub(crate) fn refit(buffer: &mut Box<LinkBuffer>) {
    if buffer.has_recv_chunk(ROOM) {
        return;
    }
    let mut before = std::mem::replace(buffer, input());
    // It may have the rest of a chunk in which a large message was received.
    before.release();
    Spare::add(&OUTPUT, before);
}

/// Keeps an empty input buffer, and its chunk if the next receive can use it.
#[inline]
pub(crate) fn put_input(mut buffer: Box<LinkBuffer>) {
    debug_assert!(buffer.is_empty());
    if buffer.has_recv_chunk(ROOM) {
        Spare::put(&INPUT, buffer);
    } else {
        buffer.release();
        Spare::add(&INPUT, buffer);
    }
}

/// Keeps an empty output buffer. One with the chunk of a message that was received and sent on as it was
/// becomes the next input buffer, and the other way round.
#[inline]
pub(crate) fn put_output(buffer: Box<LinkBuffer>) {
    debug_assert!(buffer.is_empty() && buffer.malloc_len() == 0);
    if buffer.has_recv_chunk(ROOM) {
        let input = INPUT.try_with(|spare| spare.last.replace(Some(buffer)));
        match input {
            Ok(Some(input)) if input.has_recv_chunk(ROOM) => Spare::add(&INPUT, input),
            Ok(Some(input)) => Spare::put(&OUTPUT, input),
            _ => {}
        }
    } else {
        Spare::put(&OUTPUT, buffer);
    }
}

impl Spare {
    const fn new() -> Self {
        Self {
            last: Cell::new(None),
            second: Cell::new(None),
            others: RefCell::new(Vec::new()),
        }
    }

    #[inline]
    fn take(of: &'static LocalKey<Self>) -> Box<LinkBuffer> {
        // A thread that ends has none.
        of.try_with(|spare| spare.last.take().or_else(|| spare.another()))
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// Keeps a buffer as the one that was used last.
    #[inline]
    fn put(of: &'static LocalKey<Self>, buffer: Box<LinkBuffer>) {
        let _ = of.try_with(|spare| {
            if let Some(before) = spare.last.replace(Some(buffer)) {
                spare.keep(before);
            }
        });
    }

    /// Keeps a buffer that is no better than the others.
    #[inline]
    fn add(of: &'static LocalKey<Self>, buffer: Box<LinkBuffer>) {
        let _ = of.try_with(|spare| match spare.last.take() {
            None => spare.last.set(Some(buffer)),
            last => {
                spare.last.set(last);
                spare.keep(buffer);
            }
        });
    }

    #[cold]
    fn another(&self) -> Option<Box<LinkBuffer>> {
        let second = self.second.take();
        second.or_else(|| self.others.borrow_mut().pop())
    }

    #[cold]
    fn keep(&self, mut buffer: Box<LinkBuffer>) {
        if buffer.has_recv_chunk(ROOM) {
            let Some(before) = self.second.replace(Some(buffer)) else {
                return;
            };
            buffer = before;
            buffer.release();
        }
        let mut others = self.others.borrow_mut();
        if buffer.memory_size() > TAIL {
            buffer.release();
        }
        if others.len() < KEPT {
            others.push(buffer);
        }
    }
}

impl Drop for Spare {
    /// With its thread the memory goes: a pool would keep as much as there ever were threads.
    fn drop(&mut self) {
        let kept = [self.last.take(), self.second.take()];
        for mut buffer in kept.into_iter().flatten().chain(self.others.take()) {
            drop(buffer.take_chunk());
        }
    }
}

//! Buffers between two requests: a connection without data holds none, it takes one from the
//! thread that runs it.

// Boxes, because a connection keeps one word and not a whole buffer.
#![allow(clippy::vec_box)]

use linkbuffer::LinkBuffer;
use std::{
    cell::{Cell, RefCell},
    thread::LocalKey,
};

/// The chunk that the last input buffer keeps: what small messages are received into.
pub(crate) const ROOM: usize = 64 << 10;
/// Buffers a thread keeps; more than this many connections at work on one thread is rare.
const KEPT: usize = 16;

/// Empty buffers: the one that was used last, and others for callbacks within callbacks.
struct Spare {
    last: Cell<Option<Box<LinkBuffer>>>,
    others: RefCell<Vec<Box<LinkBuffer>>>,
}

thread_local! {
    static INPUT: Spare = const { Spare::new() };
    static OUTPUT: Spare = const { Spare::new() };
}

/// An empty buffer for received chunks.
pub(crate) fn input() -> Box<LinkBuffer> {
    Spare::take(&INPUT)
}

/// An empty buffer for output, with the tail chunk of its last user.
pub(crate) fn output() -> Box<LinkBuffer> {
    Spare::take(&OUTPUT)
}

/// Keeps an empty input buffer, and its chunk if the next receive can use it.
#[inline]
pub(crate) fn put_input(mut buffer: Box<LinkBuffer>) {
    debug_assert!(buffer.is_empty());
    if !buffer.keeps(ROOM) {
        buffer.release();
    }
    Spare::put(&INPUT, buffer);
}

/// Keeps an empty output buffer. The chunk of a message that was received and sent on as it was goes
/// back to where messages are received.
#[inline]
pub(crate) fn put_output(mut buffer: Box<LinkBuffer>) {
    debug_assert!(buffer.is_empty() && buffer.malloc_len() == 0);
    if buffer.keeps(ROOM) {
        return_room(&mut buffer);
    }
    Spare::put(&OUTPUT, buffer);
}

#[inline]
fn return_room(output: &mut LinkBuffer) {
    let returned = INPUT.try_with(|spare| {
        let Some(mut input) = spare.last.take() else {
            return false;
        };
        let returned = !input.keeps(ROOM) && input.swap_room(output);
        spare.last.set(Some(input));
        returned
    });
    if !returned.unwrap_or(false) {
        output.release();
    }
}

impl Spare {
    const fn new() -> Self {
        Self {
            last: Cell::new(None),
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

    #[inline]
    fn put(of: &'static LocalKey<Self>, buffer: Box<LinkBuffer>) {
        let _ = of.try_with(|spare| {
            if let Some(before) = spare.last.replace(Some(buffer)) {
                spare.keep(before);
            }
        });
    }

    #[cold]
    fn another(&self) -> Option<Box<LinkBuffer>> {
        self.others.borrow_mut().pop()
    }

    #[cold]
    fn keep(&self, mut buffer: Box<LinkBuffer>) {
        // A thread has one chunk, not as many as it has buffers.
        buffer.release();
        let mut others = self.others.borrow_mut();
        if others.len() < KEPT {
            others.push(buffer);
        }
    }
}

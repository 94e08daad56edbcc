//! Buffers between two requests: a connection without data holds none, it takes one from the
//! thread that runs it.

// Boxes, because a connection keeps one word and not a whole buffer.
#![allow(clippy::vec_box)]

use linkbuffer::LinkBuffer;
use std::cell::RefCell;

/// Buffers a thread keeps; more than this many connections at work on one thread is rare.
const KEPT: usize = 16;

thread_local! {
    static INPUT: RefCell<Vec<Box<LinkBuffer>>> = const { RefCell::new(Vec::new()) };
    static OUTPUT: RefCell<Vec<Box<LinkBuffer>>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer for received chunks.
pub(crate) fn input() -> Box<LinkBuffer> {
    INPUT
        .try_with(|kept| kept.borrow_mut().pop())
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// An empty buffer for output, with the tail chunk of its last user.
pub(crate) fn output() -> Box<LinkBuffer> {
    OUTPUT
        .try_with(|kept| kept.borrow_mut().pop())
        .ok()
        .flatten()
        .unwrap_or_default()
}

/// Keeps an empty input buffer.
pub(crate) fn put_input(mut buffer: Box<LinkBuffer>) {
    debug_assert!(buffer.is_empty());
    buffer.release();
    let _ = INPUT.try_with(|kept| keep(&mut kept.borrow_mut(), buffer));
}

/// Keeps an empty output buffer.
pub(crate) fn put_output(buffer: Box<LinkBuffer>) {
    debug_assert!(buffer.is_empty() && buffer.malloc_len() == 0);
    let _ = OUTPUT.try_with(|kept| keep(&mut kept.borrow_mut(), buffer));
}

fn keep(kept: &mut Vec<Box<LinkBuffer>>, buffer: Box<LinkBuffer>) {
    if kept.len() < KEPT {
        kept.push(buffer);
    }
}

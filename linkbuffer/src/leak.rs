//! Finding the values that keep memory: every view and slice that is alive, and where it was made (compiled in with
//! `RUSTFLAGS="--cfg netpoll_leaks"`).
//!
//! A view of 600 bytes keeps its whole chunk alive, 64 KiB for messages received in small pieces. A
//! heap profiler shows only where the chunk was allocated: in a receive. This module records where
//! the *view* was made.
//!
//! Recorded are views that share memory ([`next_bytes`](crate::LinkBuffer::next_bytes) of 512 bytes and
//! more) with all their clones and parts, and buffers made by [`slice`](crate::LinkBuffer::slice). A
//! slice counts until it is dropped or appended to another buffer. Copies pin nothing and are not
//! recorded, nor are views of memory that was linked instead of received: their owner accounts for that memory.
//!
//! For debug builds and tests: each recorded value captures a backtrace and takes a lock, and a view
//! of a chunk is no longer unique, which `Bytes::try_into_mut` notices. Nothing else changes.
//!
//! # Examples
//!
//! ```
//! use linkbuffer::{LinkBuffer, leak};
//!
//! let mut buf = LinkBuffer::new();
//! buf.write_slice(&[7; 1000]);
//! buf.flush();
//! let kept = buf.next_bytes(600)?;
//! drop(buf);
//!
//! let leaks = leak::report();
//! assert_eq!((leaks[0].bytes(), leaks[0].pinned()), (600, 4096));
//! println!("{}", leaks[0]); // with the backtrace of `next_bytes`
//!
//! drop(kept);
//! assert!(leak::report().is_empty());
//! # Ok::<(), std::io::Error>(())
//! ```

use bytes::Bytes;

pub use crate::leak_registry::{Kind, Leak};
use crate::leak_registry::{LeakGuard, LeakRegistry};
use crate::node::Node;
use crate::view::pinned;

/// Everything that is recorded and alive in this process, oldest first.
///
/// May be called from any thread, and takes a lock for as long as the list is copied.
pub fn report() -> Vec<Leak> {
    MEMORY.report()
}

/// Makes a view of a node that was cut off, and records it.
pub(crate) fn view(node: Node) -> Bytes {
    let bytes = match node {
        Node::Owned(chunk, _) | Node::Exclusive(chunk) => chunk.freeze(),
        Node::Shared(bytes) => return bytes,
        Node::Extendable(mut bytes, n) => return bytes.split_to(n as usize),
        Node::Empty => return Bytes::new(),
    };
    let (len, pinned) = (bytes.len(), pinned(&bytes));
    Bytes::from_owner(View {
        bytes,
        _guard: MEMORY.track(Kind::View, len, pinned, String::new()),
    })
}

/// Records a slice of `len` bytes. Its first shared piece keeps `first` bytes alive.
pub(crate) fn slice(len: usize, first: usize) -> LeakGuard<Kind> {
    MEMORY.track(Kind::Slice, len, len.max(first), String::new())
}

struct View {
    bytes: Bytes,
    _guard: LeakGuard<Kind>,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

static MEMORY: LeakRegistry<Kind> = LeakRegistry::new();

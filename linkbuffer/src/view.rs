//! Memory that a single view keeps alive.

use bytes::Bytes;

use crate::chunk_table;

/// Bytes of memory that a view keeps alive: the size of the chunk it is part of. Memory that did not
/// come from a [`ChunkPool`](crate::ChunkPool) counts with its own length.
///
/// # Examples
///
/// ```
/// use linkbuffer::{LinkBuffer, compact, pinned};
///
/// let mut buf = LinkBuffer::with_capacity(64 << 10);
/// buf.write_slice(&[7; 60_000]);
/// buf.flush();
/// let part = buf.next_bytes(10_000)?;
/// assert_eq!(pinned(&part), 64 << 10);
/// assert_eq!(pinned(&compact(part)), 10_000);
/// # Ok::<(), std::io::Error>(())
/// ```
#[inline]
pub fn pinned(view: &[u8]) -> usize {
    chunk_table::chunk_of(view).unwrap_or(0).max(view.len())
}

/// The same bytes, copied if the view keeps more than an eighth more alive than itself: for a view that
/// is kept for long, in a cache for example. [`LinkBuffer::compact`](crate::LinkBuffer::compact) is the same for a buffer.
#[must_use]
pub fn compact(view: Bytes) -> Bytes {
    if pinned(&view) > view.len() + view.len() / 8 {
        let own = Bytes::copy_from_slice(&view);
        chunk_table::remove_overlapping(&own);
        own
    } else {
        view
    }
}

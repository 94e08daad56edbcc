//! Operations that only the `netpoll` crate uses. They may change in any release.

use bytes::BytesMut;

use crate::buffer::LinkBuffer;

#[cfg(netpoll_leaks)]
pub use crate::leak_registry::{LeakGuard, LeakRegistry};

/// The part of [`LinkBuffer`] that `netpoll` needs beyond its public methods.
pub trait NetpollBuffer {
    /// Whether the buffer is empty and owns a chunk of `size` bytes for the next `recv_with`.
    fn has_recv_chunk(&self, size: usize) -> bool;

    /// Takes the chunk out of an empty buffer, to be freed. Empty and without capacity if there is none.
    fn take_chunk(&mut self) -> BytesMut;

    /// Makes everything readable unflushed. `false`, and no change, if the buffer is not one chunk of its own.
    fn make_unflushed(&mut self) -> bool;

    /// Whether all memory is of chunks, so that dropping the buffer runs no code of a `Bytes` owner.
    fn owns_all_memory(&self) -> bool;

    /// Appends a copy of everything in `other` as unflushed bytes.
    fn append_copy(&mut self, other: &LinkBuffer);

    /// Bytes that the first chunk keeps alive beyond its unread bytes.
    fn excess(&self) -> usize;

    /// Whether unflushed output has `pieces` pieces, or ends with a small part of a large chunk.
    fn is_loose(&self, pieces: usize) -> bool;

    /// As `take_all`, but spare capacity behind the last byte stays in this buffer.
    fn take_filled(&mut self) -> LinkBuffer;

    /// Makes the first `n` unflushed bytes readable. Slots behind them stay open.
    fn flush_first(&mut self, n: usize);
}

impl NetpollBuffer for LinkBuffer {
    #[inline]
    fn has_recv_chunk(&self, size: usize) -> bool {
        Self::has_recv_chunk(self, size)
    }

    #[inline]
    fn take_chunk(&mut self) -> BytesMut {
        Self::take_chunk(self)
    }

    #[inline]
    fn make_unflushed(&mut self) -> bool {
        Self::make_unflushed(self)
    }

    #[inline]
    fn owns_all_memory(&self) -> bool {
        Self::owns_all_memory(self)
    }

    #[inline]
    fn append_copy(&mut self, other: &LinkBuffer) {
        Self::append_copy(self, other);
    }

    #[inline]
    fn excess(&self) -> usize {
        Self::excess(self)
    }

    #[inline]
    fn is_loose(&self, pieces: usize) -> bool {
        Self::is_loose(self, pieces)
    }

    #[inline]
    fn take_filled(&mut self) -> LinkBuffer {
        Self::take_filled(self)
    }

    #[inline]
    fn flush_first(&mut self, n: usize) {
        Self::flush_first(self, n);
    }
}

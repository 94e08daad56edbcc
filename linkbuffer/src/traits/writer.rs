//! Writing, to wherever the bytes go.

use std::io;

use bytes::Bytes;

use crate::allocation::probe;
use crate::buffer::LinkBuffer;
use crate::size_class::Class;
use crate::slot::{LengthSlot, RawLengthSlot};

/// A sink of bytes: a [`LinkBuffer`], a connection, an [`IoWriter`](crate::IoWriter).
///
/// Nothing goes out before [`flush`](Self::flush). The trait is object-safe; length prefixes are
/// written through [`LengthSlot::reserve`] and [`LengthSlot::fill`], which take any writer.
///
/// # Examples
///
/// ```
/// use linkbuffer::bytes::Bytes;
/// use linkbuffer::{LinkBuffer, Writer};
///
/// fn encode(w: &mut dyn Writer, body: Bytes) -> std::io::Result<()> {
///     w.write_slice(&(body.len() as u32).to_be_bytes())?;
///     w.write_bytes(body)?;
///     w.flush()
/// }
///
/// # fn main() -> std::io::Result<()> {
/// let mut buf = LinkBuffer::new();
/// encode(&mut buf, Bytes::from_static(b"hi"))?;
/// assert_eq!(buf, *b"\0\0\0\x02hi");
/// # Ok(())
/// # }
/// ```
pub trait Writer {
    /// `n` new bytes, contiguous and zeroed, to be written in place; see [`LinkBuffer::malloc`].
    ///
    /// # Errors
    ///
    /// `OutOfMemory` if the allocator has no `n` bytes. Other errors are those of the sink.
    fn malloc(&mut self, n: usize) -> io::Result<&mut [u8]>;

    /// Keeps the first `n` unflushed bytes; see [`LinkBuffer::malloc_ack`].
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `n` is more than [`malloc_len`](Self::malloc_len).
    fn malloc_ack(&mut self, n: usize) -> io::Result<()>;

    /// Appends a copy of `data`.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` if the allocator has no room for more than 1 MiB. Other errors are those of the sink.
    fn write_slice(&mut self, data: &[u8]) -> io::Result<()>;

    /// Appends `data`, linked from 4 KiB on; see [`LinkBuffer::write_bytes`].
    ///
    /// # Errors
    ///
    /// Those of the sink; none for a [`LinkBuffer`].
    fn write_bytes(&mut self, data: Bytes) -> io::Result<()>;

    /// Inserts `data` before the last `remain` unflushed bytes; see [`LinkBuffer::write_direct`].
    ///
    /// # Errors
    ///
    /// `InvalidInput` if `remain` is more than [`malloc_len`](Self::malloc_len).
    fn write_direct(&mut self, data: Bytes, remain: usize) -> io::Result<()>;

    /// Appends everything in `other`, readable and unflushed; see [`LinkBuffer::append`].
    ///
    /// # Errors
    ///
    /// Those of the sink; none for a [`LinkBuffer`].
    fn append(&mut self, other: LinkBuffer) -> io::Result<()>;

    /// Reserves `len` bytes to be filled in later; [`LengthSlot::reserve`] is the typed form.
    ///
    /// # Errors
    ///
    /// Those of [`malloc`](Self::malloc).
    fn reserve_raw(&mut self, len: usize) -> io::Result<RawLengthSlot>;

    /// Fills reserved bytes; [`LengthSlot::fill`] is the typed form.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the slot is gone or `data` has another length; see [`LengthSlot`].
    fn fill_raw(&mut self, slot: RawLengthSlot, data: &[u8]) -> io::Result<()>;

    /// Bytes written and not flushed yet.
    fn malloc_len(&self) -> usize;

    /// Publishes the written bytes: makes them readable, or sends them.
    ///
    /// # Errors
    ///
    /// Those of the sink; none for a [`LinkBuffer`].
    fn flush(&mut self) -> io::Result<()>;

    /// Appends one byte.
    ///
    /// # Errors
    ///
    /// Those of [`write_slice`](Self::write_slice).
    fn write_u8(&mut self, byte: u8) -> io::Result<()> {
        self.write_slice(&[byte])
    }

    /// Appends the bytes of `text`.
    ///
    /// # Errors
    ///
    /// Those of [`write_slice`](Self::write_slice).
    fn write_str(&mut self, text: &str) -> io::Result<()> {
        self.write_slice(text.as_bytes())
    }

    /// [`LengthSlot::reserve`] as a method, where the writer's type is known.
    ///
    /// # Errors
    ///
    /// Those of [`malloc`](Self::malloc).
    fn reserve_slot<const N: usize>(&mut self) -> io::Result<LengthSlot<N>>
    where
        Self: Sized,
    {
        LengthSlot::reserve(self)
    }

    /// [`LengthSlot::fill`] as a method, where the writer's type is known.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if the slot is gone; see [`LengthSlot`].
    fn fill_slot<const N: usize>(&mut self, slot: LengthSlot<N>, data: [u8; N]) -> io::Result<()>
    where
        Self: Sized,
    {
        slot.fill(self, data)
    }
}

impl<const N: usize> LengthSlot<N> {
    /// Reserves `N` bytes in any writer.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn reserve<W: Writer + ?Sized>(w: &mut W) -> io::Result<Self> {
        w.reserve_raw(N).map(Self)
    }

    /// Fills the reserved bytes. `w` must be the writer that made the slot; for another one it is gone.
    ///
    /// # Errors
    ///
    /// [`WriteError::SlotGone`](crate::WriteError::SlotGone) as `InvalidInput`, and those of the writer.
    pub fn fill<W: Writer + ?Sized>(self, w: &mut W, data: [u8; N]) -> io::Result<()> {
        w.fill_raw(self.0, &data)
    }
}

impl Writer for LinkBuffer {
    fn malloc(&mut self, n: usize) -> io::Result<&mut [u8]> {
        self.check_capacity(n)?;
        Ok(Self::malloc(self, n))
    }

    #[inline]
    fn malloc_ack(&mut self, n: usize) -> io::Result<()> {
        Ok(self.try_malloc_ack(n)?)
    }

    #[inline]
    fn write_slice(&mut self, data: &[u8]) -> io::Result<()> {
        self.check_capacity(data.len())?;
        Self::write_slice(self, data);
        Ok(())
    }

    #[inline]
    fn write_bytes(&mut self, data: Bytes) -> io::Result<()> {
        Self::write_bytes(self, data);
        Ok(())
    }

    fn write_direct(&mut self, data: Bytes, remain: usize) -> io::Result<()> {
        Ok(self.try_write_direct(data, remain)?)
    }

    fn append(&mut self, other: LinkBuffer) -> io::Result<()> {
        Self::append(self, other);
        Ok(())
    }

    fn reserve_raw(&mut self, len: usize) -> io::Result<RawLengthSlot> {
        self.check_capacity(len)?;
        Ok(Self::reserve_raw(self, len))
    }

    fn fill_raw(&mut self, slot: RawLengthSlot, data: &[u8]) -> io::Result<()> {
        Ok(Self::fill_raw(self, slot, data)?)
    }

    #[inline]
    fn malloc_len(&self) -> usize {
        self.pending
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        Self::flush(self);
        Ok(())
    }
}

impl LinkBuffer {
    /// Asks the allocator for a large chunk in a way that may fail, where the caller can be told.
    #[inline]
    fn check_capacity(&mut self, n: usize) -> io::Result<()> {
        if n <= Class::LARGEST.size() {
            return Ok(());
        }
        self.check_unpooled(n)
    }

    #[cold]
    fn check_unpooled(&mut self, n: usize) -> io::Result<()> {
        if self.back_mut().spare() >= n {
            return Ok(());
        }
        probe(n)
    }
}

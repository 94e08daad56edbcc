//! Placeholders: bytes reserved before their value is known.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::buffer::LinkBuffer;
use crate::error::WriteError;
use crate::node::Node;
use crate::node_list::SlotShift;

/// `N` bytes that were reserved in a buffer and are still to be filled in: a length prefix, a
/// checksum.
///
/// A slot belongs to its bytes, not to a distance: data appended behind it, inserted before it
/// ([`write_direct`](LinkBuffer::write_direct)) or put in front of the buffer
/// ([`push_front`](LinkBuffer::push_front)) does not mislead it. It ends when its buffer is
/// flushed, when [`malloc_ack`](LinkBuffer::malloc_ack) cuts it away, and when `write_direct`
/// inserts data in the middle of it; filling it after that is an error. Until it is filled its bytes are zero. For any other buffer than the one it was reserved in a
/// slot is gone too: positions of different buffers have nothing in common.
///
/// # Examples
///
/// ```
/// use linkbuffer::LinkBuffer;
///
/// # fn main() -> Result<(), linkbuffer::WriteError> {
/// let mut buf = LinkBuffer::new();
/// let prefix = buf.reserve_slot::<4>();
/// buf.write_str("the body");
/// let len = buf.malloc_len() as u32 - 4;
/// buf.fill_slot(prefix, len.to_be_bytes())?;
/// buf.flush();
/// assert_eq!(buf, b"\0\0\0\x08the body"[..]);
/// # Ok(())
/// # }
/// ```
///
/// Through a trait object:
///
/// ```
/// use linkbuffer::{LengthSlot, Writer};
///
/// fn encode(w: &mut dyn Writer, body: &str) -> std::io::Result<()> {
///     let prefix = LengthSlot::<4>::reserve(w)?;
///     w.write_str(body)?;
///     prefix.fill(w, (body.len() as u32).to_be_bytes())
/// }
/// # let mut buf = linkbuffer::LinkBuffer::new();
/// # encode(&mut buf, "x").unwrap();
/// # buf.flush();
/// # assert_eq!(buf, b"\0\0\0\x01x"[..]);
/// ```
#[derive(Debug)]
#[must_use = "the reserved bytes stay zero until the slot is filled"]
pub struct LengthSlot<const N: usize>(pub(crate) RawLengthSlot);

/// A [`LengthSlot`] whose size is not part of its type, for [`Writer`](crate::Writer) implementations.
#[derive(Debug)]
#[must_use = "the reserved bytes stay zero until the slot is filled"]
pub struct RawLengthSlot {
    /// Stream position of the first byte when the slot was made.
    at: u64,
    len: usize,
    /// Number of shifts recorded before the slot was made.
    stamp: usize,
}

impl<const N: usize> LengthSlot<N> {
    /// Forgets the size.
    pub fn into_raw(self) -> RawLengthSlot {
        self.0
    }
}

impl RawLengthSlot {
    /// Bytes reserved.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slot has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl LinkBuffer {
    /// Writes `N` zero bytes, contiguous, to be filled in later.
    #[inline]
    pub fn reserve_slot<const N: usize>(&mut self) -> LengthSlot<N> {
        self.write_slice(&[0; N]);
        LengthSlot(self.last_as_slot(N))
    }

    /// Fills in the bytes that were reserved.
    ///
    /// # Errors
    ///
    /// [`WriteError::SlotGone`] if the buffer was flushed, `malloc_ack` cut the slot away, `write_direct`
    /// inserted data inside it, or the slot belongs to another buffer; see [`LengthSlot`].
    #[inline]
    pub fn fill_slot<const N: usize>(
        &mut self,
        slot: LengthSlot<N>,
        data: [u8; N],
    ) -> Result<(), WriteError> {
        let bytes = self.slot_bytes(&slot.0);
        let bytes = bytes.and_then(|bytes| bytes.first_chunk_mut());
        *bytes.ok_or(WriteError::SlotGone { len: N })? = data;
        Ok(())
    }

    /// [`reserve_slot`](Self::reserve_slot) with a size known at run time.
    #[inline]
    pub fn reserve_raw(&mut self, len: usize) -> RawLengthSlot {
        self.malloc(len);
        self.last_as_slot(len)
    }

    /// Makes a slot of the last `len` bytes.
    #[inline]
    fn last_as_slot(&mut self, len: usize) -> RawLengthSlot {
        if self.written < OWN_POSITIONS {
            self.written += own_positions();
        }
        self.slot_top = self.slot_top.max(self.written);
        let stamp = self.rest.as_ref().map_or(0, |l| l.shifts.len());
        RawLengthSlot {
            at: self.written - len as u64,
            len,
            stamp,
        }
    }

    /// [`fill_slot`](Self::fill_slot) with a size known at run time.
    ///
    /// # Errors
    ///
    /// [`WriteError::SlotGone`], and [`WriteError::SlotSize`] if `data` is not as long as the slot.
    pub fn fill_raw(&mut self, slot: RawLengthSlot, data: &[u8]) -> Result<(), WriteError> {
        let len = slot.len;
        if data.len() != len {
            return Err(WriteError::SlotSize {
                given: data.len(),
                len,
            });
        }
        let bytes = self.slot_bytes(&slot).ok_or(WriteError::SlotGone { len })?;
        bytes.copy_from_slice(data);
        Ok(())
    }

    /// The bytes of a slot, if they are still there.
    #[inline]
    fn slot_bytes(&mut self, slot: &RawLengthSlot) -> Option<&mut [u8]> {
        let at = self.locate(slot)?;
        let mut left = (self.written - at) as usize;
        // Slots are recent: search from the end.
        if let Some(links) = &mut self.rest {
            for node in links.nodes.iter_mut().rev() {
                if left <= node.len() {
                    return within(node, left, slot.len);
                }
                left -= node.len();
            }
        }
        within(&mut self.front, left, slot.len)
    }

    /// Where the slot's bytes are now, as a position in the stream.
    #[inline]
    fn locate(&self, slot: &RawLengthSlot) -> Option<u64> {
        let at = match &self.rest {
            Some(links) if links.shifts.len() > slot.stamp => follow(&links.shifts, slot)?,
            _ => slot.at,
        };
        let flushed = self.written - self.pending as u64;
        (at >= flushed && at + slot.len as u64 <= self.written).then_some(at)
    }

    /// Remembers a change that may concern slots still open.
    #[inline]
    pub(crate) fn record(&mut self, m: SlotShift) {
        let from = match m {
            SlotShift::Cut(floor) => floor,
            SlotShift::Insert { at, .. } => at,
        };
        if from < self.slot_top {
            self.record_shift(m);
        }
    }

    #[cold]
    fn record_shift(&mut self, m: SlotShift) {
        self.links().shifts.push(m);
        if let SlotShift::Insert { n, .. } = m {
            self.slot_top += n;
        }
    }

    /// The end of every slot that is open: their bytes are published.
    #[inline]
    pub(crate) fn end_slots(&mut self) {
        // Nothing is unflushed. Positions go on behind every slot there was, so that none of them
        // can be taken for one of the bytes to come.
        self.written = self.written.max(self.slot_top) + 1;
        self.slot_top = 0;
        if let Some(links) = &mut self.rest {
            links.shifts.clear();
        }
    }
}

/// Positions of a buffer that has made slots are from here on, and before it made the first below.
const OWN_POSITIONS: u64 = 1 << 62;

/// Where the positions of a buffer begin when it makes its first slot: far away from those of any other,
/// so that a slot is not found in a buffer that did not make it. They are scattered over so much that two
/// buffers of a TiB each would overlap once in a million times.
#[cold]
fn own_positions() -> u64 {
    // A thread takes many numbers at once: buffers may be made for single messages.
    const BLOCK: u64 = 1 << 20;
    static BLOCKS: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static NEXT: Cell<u64> = const { Cell::new(0) };
    }
    let block = || BLOCKS.fetch_add(1, Ordering::Relaxed) * BLOCK;
    let number = NEXT.try_with(|next| {
        let number = match next.get() {
            used_up if used_up % BLOCK == 0 => block(),
            number => number,
        };
        next.set(number + 1);
        number
    });
    // The mixing function of splitmix64: different numbers stay different.
    let mut mixed = number
        .unwrap_or_else(|_| block())
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    OWN_POSITIONS | (mixed ^ (mixed >> 31)) >> 2
}

/// `len` bytes that begin `left` bytes before the end of the node.
#[inline]
fn within(node: &mut Node, left: usize, len: usize) -> Option<&mut [u8]> {
    let start = node.len().checked_sub(left)?;
    node.as_mut()?.get_mut(start..start + len)
}

/// Where a slot is after all that happened since it was made.
#[cold]
fn follow(shifts: &[SlotShift], slot: &RawLengthSlot) -> Option<u64> {
    let len = slot.len as u64;
    let mut at = slot.at;
    for m in &shifts[slot.stamp..] {
        match *m {
            SlotShift::Cut(floor) if at + len > floor => return None,
            SlotShift::Insert { at: p, n } if p <= at => at += n,
            SlotShift::Insert { at: p, .. } if p < at + len => return None,
            _ => {}
        }
    }
    Some(at)
}

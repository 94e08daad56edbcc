//! Any sequence of operations on a chain gives what it gives on a flat queue of bytes, and what was
//! cut off stays as it was, whatever happens to the chain afterwards.
#![no_main]

use arbitrary::Arbitrary;
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use linkbuffer::{ChunkPool, LinkBuffer, RawLengthSlot};
use std::io::IoSlice;

#[derive(Arbitrary, Debug)]
enum Op {
    WriteSlice(Size),
    WriteBytes(Size),
    Malloc(Size),
    /// Keeps this share of what is not flushed, in 255ths.
    Ack(u8),
    Direct(Size, u8),
    Append {
        readable: Size,
        pending: Size,
    },
    AppendFrom {
        readable: Size,
        pending: Size,
    },
    Reserve(u8),
    Fill(u8),
    Flush,
    Peek(Size),
    Next(Size),
    NextBytes(Size),
    Slice(Size),
    Skip(Size),
    Until(u8),
    IndexOf(u8, Size),
    Send {
        slices: u8,
        part: u8,
    },
    PushChunk(Size),
    PushFrom(Size),
    Landing(Size),
    Landed(u8),
    DropLanding,
    PushFront(Size),
    Compact,
    Release,
    Take,
    TooMuch,
    DropViews,
}

/// Sizes around the thresholds: 512 bytes (copied or shared), 4 KiB (linked), a chunk.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Size {
    Tiny(u8),
    Small(u16),
    Large(u8),
}

impl Size {
    fn get(self) -> usize {
        match self {
            Self::Tiny(n) => n.into(),
            Self::Small(n) => usize::from(n % 6000),
            Self::Large(n) => usize::from(n) * 200,
        }
    }
}

/// An unflushed byte, and the slot it belongs to while that is open.
#[derive(Clone, Copy)]
struct Cell {
    byte: u8,
    slot: Option<usize>,
}

struct World {
    buf: LinkBuffer,
    pool: ChunkPool,
    readable: Vec<u8>,
    pending: Vec<Cell>,
    slots: Vec<(usize, RawLengthSlot)>,
    views: Vec<(Bytes, Vec<u8>)>,
    ropes: Vec<(LinkBuffer, Vec<u8>)>,
    chunk: BytesMut,
    room: Option<BytesMut>,
    slots_made: usize,
    counter: u8,
}

const CHUNK: usize = 16 << 10;

impl World {
    fn new() -> Self {
        let pool = ChunkPool::with_retain(1 << 20);
        Self {
            buf: LinkBuffer::with_pool(&pool),
            readable: Vec::new(),
            pending: Vec::new(),
            slots: Vec::new(),
            views: Vec::new(),
            ropes: Vec::new(),
            chunk: pool.take(CHUNK),
            pool,
            room: None,
            slots_made: 0,
            counter: 0,
        }
    }

    fn data(&mut self, n: usize) -> Vec<u8> {
        self.counter = self.counter.wrapping_add(37);
        let seed = usize::from(self.counter);
        (0..n).map(|i| (seed + i * 7 + (i >> 8)) as u8).collect()
    }

    fn write(&mut self, data: &[u8]) {
        self.pending
            .extend(data.iter().map(|&byte| Cell { byte, slot: None }));
    }

    fn other(&mut self, readable: Size, pending: Size) -> (LinkBuffer, Vec<u8>) {
        let mut other = LinkBuffer::with_pool(&self.pool);
        let mut all = self.data(readable.get());
        other.write_slice(&all[..all.len() / 2]);
        other.write_bytes(Bytes::copy_from_slice(&all[all.len() / 2..]));
        other.flush();
        let behind = self.data(pending.get());
        other.write_slice(&behind);
        all.extend(behind);
        (other, all)
    }

    fn publish(&mut self) {
        self.readable.extend(self.pending.drain(..).map(|c| c.byte));
    }

    /// Bytes that were received: what is unflushed before them becomes readable too.
    fn receive(&mut self, data: Vec<u8>) {
        if !data.is_empty() {
            self.publish();
            self.readable.extend(data);
        }
    }

    fn drain(&mut self, n: usize) -> Vec<u8> {
        self.readable.drain(..n).collect()
    }

    fn apply(&mut self, op: &Op) {
        let len = self.readable.len();
        match *op {
            Op::WriteSlice(n) => {
                let d = self.data(n.get());
                self.buf.write_slice(&d);
                self.write(&d);
            }
            Op::WriteBytes(n) => {
                let d = self.data(n.get());
                self.buf.write_bytes(Bytes::from(d.clone()));
                self.write(&d);
            }
            Op::Malloc(n) => {
                let d = self.data(n.get());
                let room = self.buf.malloc(d.len());
                assert!(
                    room.len() == d.len() && room.iter().all(|&b| b == 0),
                    "zeroed"
                );
                room.copy_from_slice(&d);
                self.write(&d);
            }
            Op::Ack(share) => {
                let keep = self.pending.len() * usize::from(share) / 255;
                self.buf.malloc_ack(keep);
                self.pending.truncate(keep);
            }
            Op::Direct(n, share) => {
                let d = self.data(n.get());
                let remain = self.pending.len() * usize::from(share) / 255;
                self.buf.write_direct(Bytes::from(d.clone()), remain);
                let at = self.pending.len() - remain;
                let cells = d.iter().map(|&byte| Cell { byte, slot: None });
                self.pending.splice(at..at, cells);
            }
            Op::Append { readable, pending } => {
                let (other, all) = self.other(readable, pending);
                self.buf.append(other);
                self.write(&all);
            }
            Op::AppendFrom { readable, pending } => {
                let (other, all) = self.other(readable, pending);
                self.buf.append(other);
                self.write(&all);
            }
            Op::Reserve(n) => {
                let slot = self.buf.reserve_raw(usize::from(n % 9));
                let id = self.slots_made;
                self.slots_made += 1;
                let cell = Cell {
                    byte: 0,
                    slot: Some(id),
                };
                self.pending.extend(std::iter::repeat_n(cell, slot.len()));
                self.slots.push((id, slot));
            }
            Op::Fill(i) => {
                if self.slots.is_empty() {
                    return;
                }
                let (id, slot) = self.slots.swap_remove(usize::from(i) % self.slots.len());
                let n = slot.len();
                let d = self.data(n);
                let filled = self.buf.fill_raw(slot, &d);
                let start = self.pending.iter().position(|c| c.slot == Some(id));
                let whole = start
                    .and_then(|s| self.pending.get_mut(s..s + n))
                    .filter(|cells| cells.iter().all(|c| c.slot == Some(id)));
                if let (Some(cells), true) = (whole, n > 0) {
                    assert_eq!(filled, Ok(()));
                    for (cell, byte) in cells.iter_mut().zip(d) {
                        *cell = Cell { byte, slot: None };
                    }
                } else if n > 0 {
                    assert!(filled.is_err(), "slot {id} is gone");
                }
            }
            Op::Flush => {
                self.buf.flush();
                self.publish();
            }
            Op::Peek(n) => {
                let n = n.get().min(len);
                assert_eq!(self.buf.peek(n).unwrap(), &self.readable[..n]);
            }
            Op::Next(n) => {
                let d = self.drain(n.get().min(len));
                assert_eq!(self.buf.next(d.len()).unwrap(), d);
            }
            Op::NextBytes(n) => {
                let d = self.drain(n.get().min(len));
                let view = self.buf.next_bytes(d.len()).unwrap();
                assert_eq!(view, d);
                self.views.push((view, d));
            }
            Op::Slice(n) => {
                let d = self.drain(n.get().min(len));
                self.ropes.push((self.buf.slice(d.len()).unwrap(), d));
            }
            Op::Skip(n) => {
                let d = self.drain(n.get().min(len));
                self.buf.skip(d.len()).unwrap();
            }
            Op::Until(byte) => {
                let found = self.readable.iter().position(|&b| b == byte);
                let line = found.map(|at| self.drain(at + 1));
                assert_eq!(self.buf.try_until(byte).unwrap(), line.as_deref());
            }
            Op::IndexOf(byte, from) => {
                let from = from.get();
                let found = self.readable.iter().skip(from).position(|&b| b == byte);
                assert_eq!(self.buf.index_of(byte, from), found.map(|at| from + at));
            }
            Op::Send { slices, part } => {
                let mut out = vec![IoSlice::new(&[]); usize::from(slices) + 1];
                let count = self.buf.io_slices(&mut out);
                let flat: Vec<u8> = out[..count]
                    .iter()
                    .flat_map(|s| s.iter().copied())
                    .collect();
                assert!(self.readable.starts_with(&flat));
                assert!(len == 0 || !flat.is_empty());
                let sent = flat.len() * usize::from(part) / 255;
                self.drain(sent);
                self.buf.consume(sent);
            }
            Op::PushChunk(n) => {
                let d = self.data(n.get());
                self.buf.push_chunk(BytesMut::from(&d[..]));
                self.receive(d);
            }
            Op::PushFrom(n) => {
                let d = self.data(n.get().min(CHUNK));
                self.pool.reserve(&mut self.chunk, d.len(), CHUNK);
                self.chunk.extend_from_slice(&d);
                self.buf.push_filled(&mut self.chunk);
                assert!(self.chunk.is_empty());
                self.receive(d);
            }
            Op::Landing(want) => {
                if self.room.is_none() {
                    let room = self.buf.reserve_recv(want.get());
                    assert!(room.is_empty() && room.capacity() >= want.get());
                    self.room = Some(room);
                    self.publish();
                }
            }
            Op::Landed(share) => {
                if let Some(mut room) = self.room.take() {
                    let d = self.data(room.capacity() * usize::from(share) / 255);
                    room.extend_from_slice(&d);
                    self.buf.commit_recv(room);
                    self.receive(d);
                }
            }
            Op::DropLanding => self.room = None,
            Op::PushFront(n) => {
                let (other, all) = self.other(n, Size::Tiny(0));
                self.buf.push_front(other);
                self.readable.splice(..0, all);
            }
            Op::Compact => self.buf.compact(),
            Op::Release => self.buf.release(),
            Op::Take => {
                let taken = self.buf.take_all();
                let d = self.drain(len);
                assert_eq!(taken.malloc_len(), self.pending.len());
                self.pending.clear();
                self.ropes.push((taken, d));
            }
            Op::TooMuch => {
                assert!(self.buf.peek(len + 1).is_err());
                assert!(self.buf.next(usize::MAX).is_err());
                assert!(self.buf.next_bytes(len + 1).is_err());
                assert!(self.buf.slice(usize::MAX).is_err());
                assert!(self.buf.skip(len + 1).is_err());
            }
            Op::DropViews => {
                self.views.truncate(self.views.len() / 2);
                self.ropes.clear();
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.buf.len(), self.readable.len());
        assert_eq!(self.buf.malloc_len(), self.pending.len());
        let total: usize = self.buf.chunks().map(<[u8]>::len).sum();
        assert_eq!(total, self.readable.len());
    }

    fn finish(&mut self) {
        for (view, d) in &self.views {
            assert_eq!(view, d);
        }
        for (rope, d) in &self.ropes {
            assert_eq!(*rope, d[..]);
        }
        self.buf.flush();
        self.publish();
        assert_eq!(self.buf, self.readable[..]);
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let mut world = World::new();
    for op in ops.iter().take(200) {
        world.apply(op);
        world.check();
        if world.readable.len() + world.pending.len() > 1 << 20 {
            break;
        }
    }
    world.finish();
});

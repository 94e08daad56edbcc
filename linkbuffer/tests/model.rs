//! Random sequences of all operations against a flat model, with views alive all the time.

use std::collections::VecDeque;
use std::io::{BufRead, IoSlice, Read, Write};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use linkbuffer::netpoll_only::NetpollBuffer as _;
use linkbuffer::{ChunkPool, LinkBuffer, RawLengthSlot, Reader, Writer};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[derive(Clone, Debug)]
enum Op {
    WriteSlice(usize),
    WriteBytes(usize),
    WriteWith {
        room: usize,
        n: usize,
    },
    WriteU8,
    IoWrite(usize),
    Extend(usize),
    Malloc(usize),
    Ack(f64),
    Direct {
        n: usize,
        remain: f64,
    },
    Append {
        readable: usize,
        pending: usize,
        parts: usize,
    },
    ForwardIn {
        first: usize,
        second: usize,
    },
    ForwardOut(usize),
    Reserve(usize),
    Fill(usize),
    Flush,
    Peek(usize),
    Next(usize),
    NextBytes(usize),
    Slice(usize),
    Skip(usize),
    ReadVec(usize),
    IoRead(usize),
    FillBuf(f64),
    Send {
        slices: usize,
        part: f64,
    },
    Until(u8),
    ReadLine(usize),
    TooMuch(usize),
    PushPiece(usize),
    PushFrom(usize),
    PushForeign(usize),
    ReceiveWith {
        room: usize,
        n: usize,
    },
    Landing(usize),
    Landed(f64),
    DropLanding,
    Compact,
    Release,
    Take,
    TakeFilled,
    Unflush,
    PushFront {
        n: usize,
        parts: usize,
    },
    TryNext(usize),
    DropViews,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => 0usize..10,
        3 => 0usize..700,
        2 => 500usize..5000,
        1 => 4000usize..30_000,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let share = || 0.0..=1.0f64;
    prop_oneof![
        3 => size().prop_map(Op::WriteSlice),
        3 => size().prop_map(Op::WriteBytes),
        1 => (size(), size()).prop_map(|(room, n)| Op::WriteWith { room, n }),
        1 => Just(Op::WriteU8),
        1 => size().prop_map(Op::IoWrite),
        1 => size().prop_map(Op::Extend),
        2 => size().prop_map(Op::Malloc),
        2 => share().prop_map(Op::Ack),
        3 => (size(), share()).prop_map(|(n, remain)| Op::Direct { n, remain }),
        1 => (size(), size(), 1usize..4)
            .prop_map(|(readable, pending, parts)| Op::Append { readable, pending, parts }),
        2 => (size(), size()).prop_map(|(first, second)| Op::ForwardIn { first, second }),
        2 => size().prop_map(Op::ForwardOut),
        2 => (0usize..9).prop_map(Op::Reserve),
        3 => any::<usize>().prop_map(Op::Fill),
        3 => Just(Op::Flush),
        2 => size().prop_map(Op::Peek),
        2 => size().prop_map(Op::Next),
        3 => size().prop_map(Op::NextBytes),
        2 => size().prop_map(Op::Slice),
        2 => size().prop_map(Op::Skip),
        1 => size().prop_map(Op::ReadVec),
        1 => size().prop_map(Op::IoRead),
        1 => share().prop_map(Op::FillBuf),
        2 => (1usize..20, share()).prop_map(|(slices, part)| Op::Send { slices, part }),
        1 => any::<u8>().prop_map(Op::Until),
        1 => (0usize..300).prop_map(Op::ReadLine),
        1 => size().prop_map(Op::TooMuch),
        3 => size().prop_map(Op::PushPiece),
        3 => size().prop_map(Op::PushFrom),
        1 => size().prop_map(Op::PushForeign),
        3 => (size(), size()).prop_map(|(room, n)| Op::ReceiveWith { room, n }),
        2 => size().prop_map(Op::Landing),
        3 => share().prop_map(Op::Landed),
        1 => Just(Op::DropLanding),
        1 => Just(Op::Compact),
        1 => Just(Op::Release),
        1 => Just(Op::Take),
        1 => Just(Op::TakeFilled),
        1 => Just(Op::Unflush),
        1 => (size(), 1usize..4).prop_map(|(n, parts)| Op::PushFront { n, parts }),
        1 => size().prop_map(Op::TryNext),
        1 => Just(Op::DropViews),
    ]
}

/// An unflushed byte, and the slot it belongs to while that is open.
#[derive(Clone, Copy)]
struct Cell {
    byte: u8,
    slot: Option<usize>,
}

struct Model {
    buf: LinkBuffer,
    readable: VecDeque<u8>,
    pending: Vec<Cell>,
    slots: Vec<(usize, RawLengthSlot)>,
    slots_made: usize,
    /// Owned views with what they must contain for ever.
    views: Vec<(Bytes, Vec<u8>)>,
    ropes: Vec<(LinkBuffer, Vec<u8>)>,
    room: Option<BytesMut>,
    chunk: BytesMut,
    pool: ChunkPool,
    counter: u32,
}

const CHUNK: usize = 16 << 10;

impl Model {
    fn new() -> Self {
        let pool = ChunkPool::with_retain(1 << 20);
        Self {
            buf: LinkBuffer::with_pool(&pool),
            readable: VecDeque::new(),
            pending: Vec::new(),
            slots: Vec::new(),
            slots_made: 0,
            views: Vec::new(),
            ropes: Vec::new(),
            room: None,
            chunk: pool.take(CHUNK),
            pool,
            counter: 0,
        }
    }

    /// Bytes that differ from those around them and before them.
    fn data(&mut self, n: usize) -> Vec<u8> {
        self.counter = self
            .counter
            .wrapping_mul(747_796_405)
            .wrapping_add(2_891_336_453);
        let seed = self.counter;
        (0..n as u32)
            .map(|i| (seed.wrapping_add(i).wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect()
    }

    fn write(&mut self, data: &[u8]) {
        self.pending
            .extend(data.iter().map(|&byte| Cell { byte, slot: None }));
    }

    fn publish(&mut self) {
        self.readable.extend(self.pending.drain(..).map(|c| c.byte));
    }

    fn drain(&mut self, n: usize) -> Vec<u8> {
        self.readable.drain(..n).collect()
    }

    fn first(&self, n: usize) -> Vec<u8> {
        self.readable.iter().take(n).copied().collect()
    }

    fn built(&mut self, readable: usize, pending: usize, parts: usize) -> (LinkBuffer, Vec<u8>) {
        let mut buf = LinkBuffer::with_pool(&self.pool);
        let mut all = Vec::new();
        let skipped = self.data(readable / 3);
        buf.write_slice(&skipped);
        for i in 0..parts {
            let data = self.data(readable / parts);
            all.extend_from_slice(&data);
            if i % 2 == 0 {
                buf.write_bytes(Bytes::from(data));
            } else {
                buf.write_slice(&data);
            }
        }
        buf.flush();
        buf.skip(skipped.len()).unwrap();
        let data = self.data(pending);
        all.extend_from_slice(&data);
        buf.write_slice(&data);
        (buf, all)
    }

    fn apply(&mut self, op: Op) {
        let len = self.readable.len();
        match op {
            Op::WriteSlice(n) => {
                let d = self.data(n);
                self.buf.write_slice(&d);
                self.write(&d);
            }
            Op::WriteBytes(n) => {
                let d = self.data(n);
                self.buf.write_bytes(Bytes::from(d.clone()));
                self.write(&d);
            }
            Op::WriteWith { room, n } => {
                let d = self.data(n);
                let n = self.buf.write_with(room, |out| {
                    assert!(out.is_empty() && out.capacity() >= room);
                    out.put_slice(&d);
                    out.len()
                });
                assert_eq!(n, d.len());
                self.write(&d);
            }
            Op::WriteU8 => {
                self.buf.write_u8(b'\n');
                self.write(b"\n");
            }
            Op::IoWrite(n) => {
                let d = self.data(n);
                let (a, b) = d.split_at(n / 2);
                let both = [IoSlice::new(a), IoSlice::new(b)];
                assert_eq!(self.buf.write_vectored(&both).unwrap(), n);
                self.write(&d);
            }
            Op::Extend(n) => {
                let d = self.data(n);
                self.buf.extend(d.iter());
                self.write(&d);
            }
            Op::Malloc(n) => {
                let d = self.data(n);
                let room = self.buf.malloc(n);
                assert_eq!(room, vec![0; n], "zeroed");
                room.copy_from_slice(&d);
                self.write(&d);
            }
            Op::Ack(keep) => {
                let keep = (self.pending.len() as f64 * keep) as usize;
                self.buf.malloc_ack(keep);
                self.pending.truncate(keep);
            }
            Op::Direct { n, remain } => {
                let d = self.data(n);
                let remain = (self.pending.len() as f64 * remain) as usize;
                self.buf.write_direct(Bytes::from(d.clone()), remain);
                let at = self.pending.len() - remain;
                let cells = d.iter().map(|&byte| Cell { byte, slot: None });
                self.pending.splice(at..at, cells);
            }
            Op::Append {
                readable,
                pending,
                parts,
            } => {
                let (other, all) = self.built(readable, pending, parts);
                self.buf.append(other);
                self.write(&all);
            }
            Op::ForwardIn { first, second } => {
                // Two messages of one receive, and the begin of a third.
                let all = self.data(first + second + 10);
                let mut input = LinkBuffer::new();
                input.push_chunk(BytesMut::from(&all[..]));
                input.forward(first, &mut self.buf).unwrap();
                input.forward(second, &mut self.buf).unwrap();
                assert_eq!(input.len(), 10);
                self.write(&all[..first + second]);
            }
            Op::ForwardOut(n) => {
                let d = self.drain(n.min(len));
                let mut out = LinkBuffer::new();
                self.buf.forward(d.len() / 2, &mut out).unwrap();
                self.buf.forward(d.len() - d.len() / 2, &mut out).unwrap();
                assert_eq!(out.malloc_len(), d.len());
                out.flush();
                let view = out.next_bytes(d.len()).unwrap();
                assert_eq!(view, d);
                self.views.push((view, d));
            }
            Op::Reserve(n) => {
                let slot = self.buf.reserve_raw(n);
                assert_eq!(slot.len(), n);
                let id = Some(self.slots_made);
                self.pending
                    .extend((0..n).map(|_| Cell { byte: 0, slot: id }));
                self.slots.push((self.slots_made, slot));
                self.slots_made += 1;
            }
            Op::Fill(i) if !self.slots.is_empty() => {
                let (id, slot) = self.slots.swap_remove(i % self.slots.len());
                let n = slot.len();
                let d = self.data(n);
                let start = self.pending.iter().position(|c| c.slot == Some(id));
                let cells = start.and_then(|s| self.pending.get_mut(s..s + n));
                let whole = cells.filter(|c| c.iter().all(|c| c.slot == Some(id)));
                let filled = self.buf.fill_raw(slot, &d);
                if n == 0 {
                    // Without bytes it makes no difference whether the slot is still there.
                } else if let Some(cells) = whole {
                    assert_eq!(filled, Ok(()));
                    for (cell, byte) in cells.iter_mut().zip(d) {
                        *cell = Cell { byte, slot: None };
                    }
                } else {
                    assert!(filled.is_err(), "slot {id} is gone");
                }
            }
            Op::Fill(_) => {}
            Op::Flush => {
                self.buf.flush();
                self.publish();
            }
            Op::Peek(n) => {
                let d = self.first(n);
                assert_eq!(self.buf.peek(d.len()).unwrap(), d);
            }
            Op::Next(n) => {
                let d = self.drain(n.min(len));
                assert_eq!(self.buf.next(d.len()).unwrap(), d);
            }
            Op::NextBytes(n) => {
                let d = self.drain(n.min(len));
                let view = self.buf.next_bytes(d.len()).unwrap();
                assert_eq!(view, d);
                self.views.push((view, d));
            }
            Op::Slice(n) => {
                let d = self.drain(n.min(len));
                let rope = self.buf.slice(d.len()).unwrap();
                assert_eq!(rope, d);
                self.ropes.push((rope, d));
            }
            Op::Skip(n) => {
                let d = self.drain(n.min(len));
                self.buf.skip(d.len()).unwrap();
            }
            Op::ReadVec(n) => {
                let d = self.drain(n.min(len));
                assert_eq!(self.buf.read_vec(d.len()).unwrap(), d);
            }
            Op::IoRead(n) => {
                let mut out = vec![0; n];
                let got = self.buf.read(&mut out).unwrap();
                assert_eq!(got, n.min(len));
                assert_eq!(out[..got], self.drain(got));
            }
            Op::FillBuf(part) => {
                let d = self.buf.fill_buf().unwrap().to_vec();
                assert_eq!(d.is_empty(), len == 0);
                let n = (d.len() as f64 * part) as usize;
                BufRead::consume(&mut self.buf, n);
                assert_eq!(d[..n], self.drain(n));
            }
            Op::Send { slices, part } => {
                let mut out = vec![IoSlice::new(&[]); slices];
                let used = self.buf.io_slices(&mut out);
                let all: Vec<u8> = out[..used].iter().flat_map(|s| s.to_vec()).collect();
                assert!(used == slices || all.len() == len);
                assert!(out[..used].iter().all(|s| !s.is_empty()));
                let n = (all.len() as f64 * part) as usize;
                self.buf.consume(n);
                assert_eq!(all, self.first(all.len()));
                self.drain(n);
            }
            Op::Until(delim) => {
                let at = self.readable.iter().position(|&b| b == delim);
                assert_eq!(self.buf.index_of(delim, 0), at);
                let d = at.map(|i| self.drain(i + 1));
                assert_eq!(self.buf.try_until(delim).unwrap(), d.as_deref());
            }
            Op::ReadLine(max) => {
                let at = self.readable.iter().position(|&b| b == b'\n');
                let line = self.buf.read_line_string(max);
                match at {
                    None => assert!(line.is_err()),
                    Some(at) => {
                        let mut text = self.first(at);
                        if text.last() == Some(&b'\r') {
                            text.pop();
                        }
                        match String::from_utf8(text) {
                            Ok(text) if text.len() <= max => {
                                assert_eq!(line.unwrap(), text);
                                self.drain(at + 1);
                            }
                            _ => assert_eq!(
                                line.unwrap_err().kind(),
                                std::io::ErrorKind::InvalidData
                            ),
                        }
                    }
                }
            }
            Op::TooMuch(n) => {
                let n = len + 1 + n;
                assert!(self.buf.peek(n).is_err());
                assert!(self.buf.next(usize::MAX).is_err());
                assert!(self.buf.next_bytes(n).is_err());
                assert!(self.buf.slice(n).is_err());
                assert!(self.buf.skip(n).is_err());
                assert!(self.buf.read_vec(u32::MAX as usize).is_err());
                let more = self.pending.len() + 1;
                assert!(Writer::malloc_ack(&mut self.buf, more).is_err());
                assert!(
                    Writer::write_direct(&mut self.buf, Bytes::from_static(b"x"), more).is_err()
                );
            }
            Op::PushPiece(n) => {
                let d = self.data(n);
                self.pool.reserve(&mut self.chunk, n.min(CHUNK), CHUNK);
                self.chunk.extend_from_slice(&d);
                self.buf.push_chunk(self.chunk.split());
                if n > 0 {
                    self.publish();
                    self.readable.extend(d);
                }
            }
            Op::PushFrom(n) => {
                let d = self.data(n);
                self.pool.reserve(&mut self.chunk, n.min(CHUNK), CHUNK);
                self.chunk.extend_from_slice(&d);
                self.buf.push_filled(&mut self.chunk);
                assert!(self.chunk.is_empty());
                if n > 0 {
                    self.publish();
                    self.readable.extend(d);
                }
            }
            Op::PushForeign(n) => {
                let d = self.data(n);
                self.buf.push_chunk(BytesMut::from(&d[..]));
                if n > 0 {
                    self.publish();
                    self.readable.extend(d);
                }
            }
            Op::ReceiveWith { room: size, n } => {
                let mut d = self.data(n);
                let least = if self.readable.is_empty() && self.pending.is_empty() {
                    size.div_ceil(4).max(1)
                } else {
                    size
                };
                let taken = self.buf.recv_with(size, |room| {
                    assert!(room.is_empty() && room.capacity() >= least);
                    d.truncate(room.capacity());
                    room.extend_from_slice(&d);
                    d.len()
                });
                assert_eq!(taken, d.len());
                self.publish();
                self.readable.extend(d);
            }
            Op::Landing(want) => {
                if self.room.is_none() {
                    let room = self.buf.reserve_recv(want);
                    assert!(room.is_empty() && room.capacity() >= want);
                    self.room = Some(room);
                    self.publish();
                }
            }
            Op::Landed(part) => {
                if let Some(mut room) = self.room.take() {
                    let n = (room.capacity() as f64 * part) as usize;
                    let d = self.data(n);
                    room.extend_from_slice(&d);
                    self.buf.commit_recv(room);
                    if n > 0 {
                        self.publish();
                        self.readable.extend(d);
                    }
                }
            }
            Op::DropLanding => self.room = None,
            Op::Compact => self.buf.compact(),
            Op::Release => {
                self.buf.release();
                if self.readable.is_empty() && self.pending.is_empty() {
                    assert_eq!(self.buf.memory_size(), 0);
                }
            }
            Op::Take => {
                let taken = LinkBuffer::take_all(&mut self.buf);
                assert_eq!(
                    (
                        self.buf.len(),
                        self.buf.malloc_len(),
                        self.buf.memory_size()
                    ),
                    (0, 0, 0)
                );
                self.buf = taken;
            }
            Op::TakeFilled => {
                let filled = self.buf.take_filled();
                assert_eq!((self.buf.len(), self.buf.malloc_len()), (0, 0));
                assert_eq!(
                    self.buf.spare_capacity(),
                    self.buf.memory_size(),
                    "nothing but room"
                );
                if self.pending.is_empty() {
                    self.buf.push_front(filled);
                } else {
                    self.buf = filled;
                }
            }
            Op::Unflush => {
                if self.buf.make_unflushed() {
                    // No slot of before is found again.
                    self.publish();
                    let again = self.readable.drain(..);
                    self.pending
                        .extend(again.map(|byte| Cell { byte, slot: None }));
                }
            }
            Op::PushFront { n, parts } => {
                let (other, all) = self.built(n, n / 5, parts);
                self.buf.push_front(other);
                all.into_iter()
                    .rev()
                    .for_each(|b| self.readable.push_front(b));
            }
            Op::TryNext(n) => {
                let reader: &mut dyn Reader = &mut self.buf;
                assert_eq!(reader.available(), len);
                match reader.try_next(n).unwrap() {
                    Some(d) => assert_eq!(d, self.readable.drain(..n).collect::<Vec<_>>()),
                    None => assert!(n > len),
                }
            }
            Op::DropViews => {
                self.views.clear();
                self.ropes.clear();
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.buf.len(), self.readable.len());
        assert_eq!(Buf::remaining(&self.buf), self.readable.len());
        assert_eq!(self.buf.malloc_len(), self.pending.len());
        assert_eq!(
            self.buf.chunks().map(<[u8]>::len).sum::<usize>(),
            self.buf.len()
        );
        assert!(self.buf.memory_size() >= self.buf.len() + self.buf.malloc_len());
        for (view, content) in &self.views {
            assert_eq!(view, content);
        }
        for (rope, content) in &self.ropes {
            assert_eq!(rope, content);
        }
    }

    /// Everything, unflushed bytes too, is what it should be; then the views, without the buffer.
    fn finish(mut self) {
        self.buf.flush();
        self.publish();
        let all: Vec<u8> = self.readable.iter().copied().collect();
        assert_eq!(self.buf, all);
        let mut out = Vec::new();
        self.buf.read_to_end(&mut out).unwrap();
        assert_eq!(out, all);
        self.buf.release();
        assert_eq!(self.buf.memory_size(), 0);
        drop((self.buf, self.chunk, self.pool));
        for (view, content) in self.views {
            assert_eq!(view, content);
        }
        for (mut rope, content) in self.ropes {
            assert_eq!(rope.next(content.len()).unwrap(), content);
        }
    }
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|n| n.parse().ok());
    let seed = std::env::var("PROPTEST_RNG_SEED")
        .ok()
        .and_then(|n| n.parse().ok());
    ProptestConfig {
        cases: cases.unwrap_or(120),
        rng_seed: RngSeed::Fixed(seed.unwrap_or(0x6c62_7566)),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn all_operations_agree_with_a_flat_model(ops in prop::collection::vec(op(), 1..150)) {
        let mut model = Model::new();
        for op in ops {
            model.apply(op);
            model.check();
        }
        model.finish();
    }
}

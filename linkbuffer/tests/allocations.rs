//! In a steady state a message costs no allocation, neither received nor sent.

#![cfg(not(netpoll_leaks))]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::hint::black_box;
use std::io::IoSlice;

use bytes::{Bytes, BytesMut};
use linkbuffer::{ChunkPool, LengthSlot, LinkBuffer};

/// Counts the allocations of each thread by itself, so that tests do not disturb one another.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    ALLOCATIONS.with(|n| n.set(n.get() + 1));
}

// SAFETY: every call is passed on to the system allocator unchanged; the counter is a plain
// thread-local without destructor, so counting neither allocates nor fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises about `layout` hold here too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` or `realloc` above, which are the system's.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const WARM_UP: usize = 3000;
const MESSAGES: usize = 2000;
const SIZES: [usize; 4] = [64, 1 << 10, 4 << 10, 16 << 10];

/// Allocations of `MESSAGES` calls, after some that may allocate.
fn allocations(mut message: impl FnMut()) -> usize {
    (0..WARM_UP).for_each(|_| message());
    let before = ALLOCATIONS.with(Cell::get);
    (0..MESSAGES).for_each(|_| message());
    ALLOCATIONS.with(Cell::get) - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), MESSAGES);
}

/// Takes one message, a length of four bytes and a body, out of a buffer.
fn decode(buf: &mut LinkBuffer) -> Option<Bytes> {
    let len = u32::from_be_bytes(buf.peek(4).ok()?.try_into().unwrap()) as usize;
    if len < 512 {
        // Short ones are read in place; an owned copy of one is an allocation.
        black_box(buf.next(4 + len).ok()?);
        return Some(Bytes::new());
    }
    let mut frame = buf.next_bytes(4 + len).ok()?;
    Some(frame.split_off(4))
}

/// A poller's receive chunk: filled in pieces of what a message has left.
struct Source {
    pool: ChunkPool,
    chunk: BytesMut,
    message: Vec<u8>,
}

impl Source {
    const CHUNK: usize = 64 << 10;

    fn new(body: usize) -> Self {
        let pool = ChunkPool::new();
        let mut message = (body as u32).to_be_bytes().to_vec();
        message.resize(4 + body, 1);
        Self {
            chunk: pool.take(Self::CHUNK),
            pool,
            message,
        }
    }

    /// Views of less than a sixteenth of their chunk are copies, with an allocation for the bytes and one
    /// for sharing them when the head is cut off. Those of less than 512 bytes are decoded in place here.
    fn copies(body: usize) -> usize {
        if (512..Self::CHUNK / 16).contains(&(4 + body)) {
            2 * MESSAGES
        } else {
            0
        }
    }

    fn receive(&mut self, buf: &mut LinkBuffer, packet: usize) {
        for part in self.message.chunks(packet) {
            self.pool.reserve(&mut self.chunk, part.len(), Self::CHUNK);
            self.chunk.extend_from_slice(part);
            buf.push_chunk(self.chunk.split());
        }
    }
}

#[test]
fn receiving_a_message_in_one_piece() {
    for body in SIZES {
        let mut source = Source::new(body);
        let mut buf = LinkBuffer::with_pool(&source.pool);
        let n = allocations(|| {
            source.receive(&mut buf, usize::MAX);
            decode(&mut buf).expect("complete");
        });
        assert_eq!(n, Source::copies(body), "{body} bytes");
    }
}

#[test]
fn receiving_a_message_in_packets() {
    for body in SIZES {
        let mut source = Source::new(body);
        let mut buf = LinkBuffer::with_pool(&source.pool);
        let n = allocations(|| {
            source.receive(&mut buf, 1448);
            decode(&mut buf).expect("complete");
        });
        // What straddles the end of a chunk is joined, and the copy is the view's own.
        let straddling = (MESSAGES * (body + 4)).div_ceil(Source::CHUNK) * 2;
        let most = straddling + Source::copies(body);
        assert!(n <= most, "{body} bytes: {n} allocations");
    }
}

#[test]
fn receiving_while_views_of_the_last_messages_live_on() {
    for body in [1 << 10, 4 << 10, 16 << 10] {
        let mut source = Source::new(body);
        let mut buf = LinkBuffer::with_pool(&source.pool);
        let mut views = VecDeque::with_capacity(32);
        let n = allocations(|| {
            source.receive(&mut buf, usize::MAX);
            views.push_back(decode(&mut buf).expect("complete"));
            if views.len() > 16 {
                views.pop_front();
            }
        });
        assert_eq!(n, Source::copies(body), "{body} bytes");
    }
}

#[test]
fn receiving_into_the_room_a_buffer_lends() {
    for body in [4 << 10, 16 << 10, 64 << 10, 200 << 10] {
        let source = Source::new(body);
        let mut buf = LinkBuffer::with_pool(&source.pool);
        let n = allocations(|| {
            let mut left = &source.message[..];
            while !left.is_empty() {
                let mut room = buf.reserve_recv(left.len());
                let (part, rest) = left.split_at(left.len().min(30_000));
                room.extend_from_slice(part);
                buf.commit_recv(room);
                left = rest;
            }
            assert!(buf.is_single_chunk());
            assert_eq!(decode(&mut buf).expect("complete").len(), body);
        });
        assert_eq!(n, 0, "{body} bytes");
    }
}

#[test]
fn receiving_with_an_idle_buffer_in_between() {
    let mut source = Source::new(4 << 10);
    let mut buf = LinkBuffer::with_pool(&source.pool);
    let n = allocations(|| {
        let mut room = buf.reserve_recv(source.message.len());
        room.extend_from_slice(&source.message);
        buf.commit_recv(room);
        decode(&mut buf).expect("complete");
        buf.release();
        assert_eq!(buf.memory_size(), 0);
        source.receive(&mut buf, usize::MAX);
        decode(&mut buf).expect("complete");
        buf.release();
    });
    assert_eq!(n, Source::copies(4 << 10));
}

fn send(buf: &mut LinkBuffer, at_most: usize) {
    while !buf.is_empty() {
        let mut slices = [IoSlice::new(&[]); 8];
        let used = buf.io_slices(&mut slices);
        let n: usize = slices[..used].iter().map(|s| s.len()).sum();
        buf.consume(n.min(at_most));
    }
}

/// A length prefix filled in afterwards, a header and a body.
fn encode(buf: &mut LinkBuffer, body: &Bytes) {
    let prefix: LengthSlot<4> = buf.reserve_slot();
    buf.malloc(16).fill(1);
    buf.write_bytes(body.clone());
    let len = buf.malloc_len() as u32 - 4;
    buf.fill_slot(prefix, len.to_be_bytes()).unwrap();
    buf.flush();
}

fn bodies() -> impl Iterator<Item = Bytes> {
    SIZES
        .into_iter()
        .chain([64 << 10])
        .map(|n| Bytes::from(vec![1; n]))
}

#[test]
fn sending_a_message_from_one_buffer() {
    for body in bodies() {
        for at_most in [usize::MAX, 3000] {
            let mut buf = LinkBuffer::with_pool(&ChunkPool::new());
            let n = allocations(|| {
                encode(&mut buf, &body);
                send(&mut buf, at_most);
            });
            assert_eq!(n, 0, "{} bytes, {at_most} at once", body.len());
        }
    }
}

#[test]
fn sending_a_batch() {
    for body in bodies() {
        let mut buf = LinkBuffer::with_pool(&ChunkPool::new());
        let n = allocations(|| {
            (0..10).for_each(|_| encode(&mut buf, &body));
            send(&mut buf, 5000);
        });
        assert_eq!(n, 0, "{} bytes", body.len());
    }
}

#[test]
fn sending_what_was_taken_out_of_the_buffer() {
    for body in bodies() {
        let mut buf = LinkBuffer::with_pool(&ChunkPool::new());
        let mut queue = LinkBuffer::with_pool(buf.pool());
        let n = allocations(|| {
            encode(&mut buf, &body);
            queue.append(LinkBuffer::take_all(&mut buf));
            queue.flush();
            send(&mut queue, usize::MAX);
        });
        assert_eq!(n, 0, "{} bytes", body.len());
    }
}

#[test]
fn sending_with_a_new_buffer_for_each_message() {
    for body in bodies() {
        let pool = ChunkPool::new();
        let n = allocations(|| {
            let mut buf = LinkBuffer::with_pool(&pool);
            encode(&mut buf, &body);
            send(&mut buf, usize::MAX);
        });
        assert_eq!(n, 0, "{} bytes", body.len());
    }
}

#[test]
fn sending_with_insertions_and_cuts() {
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_pool(&pool);
    let body = Bytes::from(vec![1; 8000]);
    let n = allocations(|| {
        let prefix: LengthSlot<4> = buf.reserve_slot();
        buf.malloc(1000).fill(2);
        buf.write_direct(body.clone(), 500);
        buf.write_direct(Bytes::from_static(b"short"), 100);
        buf.malloc_ack(8800);
        buf.fill_slot(prefix, [1; 4]).unwrap();
        buf.flush();
        send(&mut buf, usize::MAX);
    });
    assert_eq!(n, 0);
}

#[test]
fn echoing_a_body_without_copying() {
    let mut source = Source::new(16 << 10);
    let mut input = LinkBuffer::with_pool(&source.pool);
    let mut output = LinkBuffer::with_pool(&source.pool);
    let n = allocations(|| {
        source.receive(&mut input, usize::MAX);
        let body = decode(&mut input).expect("complete");
        encode(&mut output, &body);
        drop(body);
        send(&mut output, 10_000);
    });
    assert_eq!(n, 0);
}

#[test]
fn lengths_that_are_not_there_allocate_nothing() {
    let mut buf = LinkBuffer::from(&b"\xff\xff\xff\xff"[..]);
    let before = ALLOCATIONS.with(Cell::get);
    for n in [5, u32::MAX as usize, usize::MAX] {
        assert!(!linkbuffer::Reader::try_fill(&mut buf, n).unwrap());
        assert!(
            linkbuffer::Reader::try_next_bytes(&mut buf, n)
                .unwrap()
                .is_none()
        );
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    let room = buf.reserve_recv(usize::MAX);
    assert!(room.capacity() <= 9 << 20, "{}", room.capacity());
}

#[test]
fn a_long_list_of_chunks_is_not_kept_for_the_next_buffer() {
    let pool = ChunkPool::new();
    let body = Bytes::from(vec![1; 5000]);
    for (chunks, kept) in [(200, true), (2000, false)] {
        let build = || {
            let before = ALLOCATIONS.with(Cell::get);
            let mut buf = LinkBuffer::with_pool(&pool);
            (0..chunks).for_each(|_| buf.write_bytes(body.clone()));
            ALLOCATIONS.with(Cell::get) - before
        };
        build();
        assert_eq!(build() == 0, kept, "{chunks} chunks");
    }
}

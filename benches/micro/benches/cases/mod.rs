//! The work that is measured: one call of `step` is one message.
//!
//! A message is a header of 16 bytes, which begins with the length of the body, and a body. What
//! the kernel would do when receiving, copying the message into user memory, is done by every
//! candidate in the same way. What it would do when sending is left out for all of them.

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use linkbuffer::{ChunkPool, LinkBuffer};

pub(crate) const SIZES: [usize; 6] = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10];
const HEADER: usize = 16;

/// One message per call.
pub(crate) type Step = Box<dyn FnMut()>;

/// A way to do the work; the first of a list is ours, the second the obvious alternative.
pub(crate) struct Candidate {
    pub(crate) name: &'static str,
    pub(crate) step: Step,
}

fn candidate(name: &'static str, step: impl FnMut() + 'static) -> Candidate {
    Candidate {
        name,
        step: Box::new(step),
    }
}

fn message(body: usize) -> Vec<u8> {
    let mut all = (body as u32).to_be_bytes().to_vec();
    all.resize(HEADER + body, 7);
    all
}

fn length(head: &[u8]) -> usize {
    u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize
}

/// Receives a message and ends up with its body, owned.
pub(crate) fn receive_owned(body: usize) -> Vec<Candidate> {
    vec![
        candidate("linkbuffer", link_receive(body, true)),
        candidate("BytesMut, body copied out", {
            let wire = message(body);
            let mut buf = BytesMut::with_capacity(64 << 10);
            move || {
                buf.extend_from_slice(&wire);
                let n = length(&buf);
                let body = Bytes::copy_from_slice(&buf[HEADER..HEADER + n]);
                buf.advance(HEADER + n);
                black_box(body);
            }
        }),
        candidate("BytesMut, split off", {
            let wire = message(body);
            let mut buf = BytesMut::with_capacity(64 << 10);
            move || {
                buf.extend_from_slice(&wire);
                let n = length(&buf);
                buf.advance(HEADER);
                black_box(buf.split_to(n).freeze());
            }
        }),
        candidate("`VecDeque<u8>`", vec_deque_receive(body)),
    ]
}

/// Receives a message and looks at its body where it is.
pub(crate) fn receive_borrowed(body: usize) -> Vec<Candidate> {
    vec![
        candidate("linkbuffer", link_receive(body, false)),
        candidate("BytesMut, body borrowed", {
            let wire = message(body);
            let mut buf = BytesMut::with_capacity(64 << 10);
            move || {
                buf.extend_from_slice(&wire);
                let n = length(&buf);
                black_box(&buf[HEADER..HEADER + n]);
                buf.advance(HEADER + n);
            }
        }),
    ]
}

/// The whole way of a received message: a poller's chunk, the buffer of a connection, a codec.
fn link_receive(body: usize, owned: bool) -> Step {
    const CHUNK: usize = 64 << 10;
    let wire = message(body);
    let pool = ChunkPool::new();
    let mut buf = LinkBuffer::with_capacity(4096);
    if wire.len() > CHUNK / 2 {
        // A long message: the rest of it is received into room that the buffer lends.
        return Box::new(move || {
            let mut room = buf.reserve_recv(wire.len());
            room.extend_from_slice(&wire);
            buf.commit_recv(room);
            link_decode(&mut buf, owned);
        });
    }
    let mut chunk = pool.take(CHUNK);
    Box::new(move || {
        pool.reserve(&mut chunk, wire.len(), CHUNK);
        chunk.extend_from_slice(&wire);
        buf.push_filled(&mut chunk);
        link_decode(&mut buf, owned);
    })
}

#[inline]
fn link_decode(buf: &mut LinkBuffer, owned: bool) {
    let n = length(buf.peek(HEADER).expect("complete"));
    if owned {
        buf.skip(HEADER).expect("complete");
        black_box(buf.next_bytes(n).expect("complete"));
    } else {
        black_box(&buf.next(HEADER + n).expect("complete")[HEADER..]);
    }
}

fn vec_deque_receive(body: usize) -> impl FnMut() {
    let wire = message(body);
    let mut buf = VecDeque::with_capacity(64 << 10);
    move || {
        buf.extend(&wire);
        let mut head = [0; HEADER];
        head.iter_mut()
            .zip(buf.drain(..HEADER))
            .for_each(|(to, from)| *to = from);
        let n = length(&head);
        black_box(buf.drain(..n).collect::<Vec<u8>>());
    }
}

/// Writes a header and a body, and points a vectored write at them.
pub(crate) fn send(body: usize) -> Vec<Candidate> {
    let payload = Bytes::from(vec![7; body]);
    let head = [1; HEADER];
    vec![
        candidate("linkbuffer", {
            let payload = payload.clone();
            let mut buf = LinkBuffer::with_pool(&ChunkPool::new());
            move || {
                buf.write_slice(black_box(&head));
                buf.write_bytes(payload.clone());
                buf.flush();
                let mut slices = [IoSlice::new(&[]); 4];
                let used = buf.io_slices(&mut slices);
                black_box(&slices[..used]);
                let n = buf.len();
                buf.consume(n);
            }
        }),
        candidate("BytesMut, copied together", {
            let payload = payload.clone();
            let mut buf = BytesMut::with_capacity(128 << 10);
            move || {
                buf.extend_from_slice(black_box(&head));
                buf.extend_from_slice(&payload.clone());
                black_box(&[IoSlice::new(&buf)]);
                buf.clear();
            }
        }),
        candidate("linkedbytes", {
            let payload = payload.clone();
            let mut buf = linkedbytes::LinkedBytes::with_capacity(8 << 10);
            move || {
                buf.bytes_mut().extend_from_slice(black_box(&head));
                buf.insert(payload.clone());
                let mut slices = [IoSlice::new(&[]); 4];
                let mut used = 0;
                for node in buf.iter_list() {
                    slices[used] = IoSlice::new(node.as_ref());
                    used += 1;
                }
                slices[used] = IoSlice::new(buf.bytes());
                black_box(&slices[..=used]);
                buf.reset();
            }
        }),
        candidate("`VecDeque<u8>`", {
            let mut buf = VecDeque::with_capacity(128 << 10);
            move || {
                buf.extend(black_box(&head));
                buf.extend(&payload.clone()[..]);
                let (a, b) = buf.as_slices();
                black_box(&[IoSlice::new(a), IoSlice::new(b)]);
                buf.clear();
            }
        }),
    ]
}

/// The same with the header's length filled in at the end, and the queue handed over.
pub(crate) fn send_with_slot(body: usize) -> Vec<Candidate> {
    let payload = Bytes::from(vec![7; body]);
    vec![
        candidate("linkbuffer", {
            let payload = payload.clone();
            let mut buf = LinkBuffer::with_pool(&ChunkPool::new());
            move || {
                let prefix = buf.reserve_slot::<4>();
                buf.malloc(HEADER - 4).fill(black_box(1));
                buf.write_bytes(payload.clone());
                let n = buf.malloc_len() - HEADER;
                buf.fill_slot(prefix, (n as u32).to_be_bytes()).unwrap();
                buf.flush();
                let mut slices = [IoSlice::new(&[]); 4];
                let used = buf.io_slices(&mut slices);
                black_box(&slices[..used]);
                let n = buf.len();
                buf.consume(n);
            }
        }),
        candidate("BytesMut, copied together", {
            let mut buf = BytesMut::with_capacity(128 << 10);
            move || {
                buf.resize(4, 0);
                buf.resize(HEADER, black_box(1));
                buf.extend_from_slice(&payload.clone());
                let n = buf.len() - HEADER;
                buf[..4].copy_from_slice(&(n as u32).to_be_bytes());
                black_box(&[IoSlice::new(&buf)]);
                buf.clear();
            }
        }),
    ]
}

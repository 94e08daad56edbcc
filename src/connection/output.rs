//! The way out: direct sends, what did not fit, and who may hand bytes to the kernel.
//!
//! One thread at a time holds the flusher's role (`FLUSHING`). It sends its own bytes without a
//! copy and without a lock, then everything others queued meanwhile, in one vectored send. When
//! the socket is full the rest goes to the front of the queue and the role is free until the
//! poller reports room. Whoever queues something while nobody flushes takes the role itself, so
//! queued bytes are never forgotten:
//!
//! * a message is pushed and `QUEUED` is set under the queue's lock;
//! * the flusher looks at the queue and gives the role back under the same lock;
//! * a full socket parks the queue only in the step that also sees that `WRITABLE` was not
//!   reported in between.
//!
//! What waits is bounded by the memory it keeps alive. So a few bytes are copied into the queue, and what
//! would keep more of a chunk alive than itself is copied out of it before; a message counts
//! some bytes more than it has.
//!
//! Progress is counted in queue offsets. A directly sent rest that must be queued *before*
//! what is there already moves the `sent` mark back, so offsets that others wait for stay true.

use super::{
    queue::{Bound, Full, Loss, Queue},
    state::{ABORT, BROKEN, CLOSED, FLUSHING, GATED, POISONED, QUEUED, WRITABLE, Word},
};
use crate::{
    net::is_shortage,
    sync::{AtomicU64, Mutex, Ordering},
};
use bytes::Buf;
use linkbuffer::{LinkBuffer, netpoll_only::NetpollBuffer as _};
use std::io::{self, IoSlice};

/// Nothing is sent any more.
const OVER: u32 = ABORT | BROKEN | POISONED | CLOSED;
/// Scatter lists longer than this are sent in several calls.
const SLICES: usize = 64;
/// The most one poller turn sends for one connection before others get theirs.
const TURN_BYTES: u64 = 1 << 20;

/// Messages shorter than this are copied into the queue.
const COPIED: usize = 4096;
/// What the queue asks of its connection.
pub(crate) trait Contain {
    /// Runs what may drop a payload of the user's, whose own drop may panic. `false`: it did.
    ///
    /// No lock is held around it, for the payload may use its connection.
    fn contain(&self, code: impl FnOnce()) -> bool;

    /// The queue keeps so many KiB more, or less: noted under its lock.
    fn charge(&self, delta: i32) {
        let _ = delta;
    }

    /// The same, without a lock: there may be something to do about it.
    fn weigh(&self, delta: i32) {
        let _ = delta;
    }
}

/// Where the flusher's bytes go: a socket, or a script in tests.
pub(crate) trait Sink: Contain {
    /// Hands over what it can; `WouldBlock` when the sink is full.
    fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// The same for a single slice.
    fn send_one(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send(&[IoSlice::new(bytes)])
    }
}

/// What became of a turn of the flusher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Nothing is left.
    All,
    /// The sink is full, the poller continues.
    Parked,
    /// The sink had no memory; it must be tried again after a pause, no edge will come.
    Starved,
    /// The turn's share is used up; somebody must call [`Outbox::drive`] again.
    Share,
    /// The sink failed or sending is over; the queue was dropped.
    Failed(io::ErrorKind),
}

/// The queued output of one connection.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Made when something is queued for the first time: most connections never need it.
    queue: Mutex<Option<Box<Queue>>>,
    /// Bytes the sink took: only the flusher counts them.
    bytes: AtomicU64,
    /// Messages that went past the queue: only the flusher counts them.
    direct: AtomicU64,
}

/// What became of a [straight send](Outbox::send_whole).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Straight {
    /// All is sent, and nobody asked for anything meanwhile.
    Sent,
    /// A turn of the flusher, as of [`Outbox::send`].
    Turn(Mark, Sent),
    /// Nothing has happened: the way is not straight.
    No,
}

/// Whether the owner may go on although output is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// At most the low mark is queued.
    Open,
    /// The owner waits from now on.
    Closes,
    /// The owner has been waiting already.
    Shut,
}

/// Tells how much may wait when that matters: most messages are sent without.
pub(crate) trait Bounds {
    fn bound(&self) -> Bound;
}

impl Bounds for Bound {
    fn bound(&self) -> Bound {
        *self
    }
}

/// A place in the queue: everything before it has been sent once `sent` has passed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mark(i64);

impl Outbox {
    /// Sends `chain` (its flushed bytes), or queues it behind others.
    ///
    /// Returns where the chain ends in the queue, and what became of the flusher's turn
    /// (`Parked` too when another thread is the flusher). The chain is left empty unless the
    /// queue is full.
    #[inline]
    pub(crate) fn send(
        &self,
        word: &Word,
        sink: &impl Sink,
        chain: &mut LinkBuffer,
        bounds: impl Bounds,
    ) -> Result<(Mark, Sent), Full> {
        if word.try_flush_first() {
            add(&self.direct, 1);
            return Ok(self.direct(word, sink, chain, None));
        }
        let (mark, flusher) = self.enqueue(word, sink, chain, bounds.bound())?;
        let sent = if flusher {
            self.flush(word, sink)
        } else {
            match self.unless_over(word, sink, Sent::Parked) {
                // Another flusher had sent it before the end.
                Sent::Failed(_) if self.passed(mark) => Sent::Parked,
                sent => sent,
            }
        };
        Ok((mark, sent))
    }

    /// The straight way of nearly every reply: it is one piece, nothing else goes on, and the sink
    /// takes all of it. `calm` are the bits that [`Word::calm`] has seen.
    #[inline(always)]
    pub(crate) fn send_whole(
        &self,
        word: &Word,
        calm: u32,
        sink: &impl Sink,
        chain: &mut LinkBuffer,
    ) -> Straight {
        let piece = Buf::chunk(chain);
        let len = piece.len();
        if len != chain.len() || !chain.owns_all_memory() || !word.begin_calm(calm) {
            return Straight::No;
        }
        add(&self.direct, 1);
        let first = sink.send_one(piece);
        if matches!(first, Ok(n) if n == len) {
            chain.consume(len);
            add(&self.bytes, len);
            if word.end_calm(calm) {
                return Straight::Sent;
            }
            return self.not_straight(word, sink, chain, None);
        }
        self.not_straight(word, sink, chain, Some(first))
    }

    #[cold]
    fn not_straight(
        &self,
        word: &Word,
        sink: &impl Sink,
        chain: &mut LinkBuffer,
        first: Option<io::Result<usize>>,
    ) -> Straight {
        let (mark, sent) = self.direct(word, sink, chain, first);
        Straight::Turn(mark, sent)
    }

    /// Sends the caller's own slices in one call to the sink, as one message, if nothing is before
    /// them; otherwise `None`, and nothing has happened. What the sink did not take is copied and
    /// sent or queued before anybody else's turn. Returns what [`send`](Self::send) does.
    pub(crate) fn send_slices(
        &self,
        word: &Word,
        sink: &impl Sink,
        slices: &[IoSlice<'_>],
    ) -> Option<(Mark, Sent)> {
        if !word.try_flush_first() {
            return None;
        }
        if word.has(OVER) {
            let end = Sent::Failed(io::ErrorKind::NotConnected);
            return Some((Mark(i64::MIN), self.fail(word, sink, end)));
        }
        add(&self.direct, 1);
        let taken = match sink.send(slices) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(e) => {
                let end = Sent::Failed(e.kind());
                return Some((Mark(i64::MIN), self.fail(word, sink, end)));
            }
        };
        add(&self.bytes, taken);
        let mut rest = LinkBuffer::new();
        let mut skip = taken;
        for slice in slices {
            rest.write_slice(&slice[skip.min(slice.len())..]);
            skip = skip.saturating_sub(slice.len());
        }
        rest.flush();
        Some(self.direct(word, sink, &mut rest, None))
    }

    /// Sends what is queued if nobody does: for the poller when the sink has room again.
    pub(crate) fn drive(&self, word: &Word, sink: &impl Sink) -> Sent {
        if !word.has(QUEUED) {
            return Sent::All;
        }
        if !word.try_flush() {
            return Sent::Parked;
        }
        self.flush(word, sink)
    }

    /// Where the queue ends now.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.queue.lock().as_ref().map_or(0, |queue| queue.accepted))
    }

    /// Whether everything before `mark` was sent.
    pub(crate) fn passed(&self, mark: Mark) -> bool {
        self.queue.lock().as_ref().map_or(0, |queue| queue.sent) >= mark.0
    }

    /// Bytes that were accepted but not sent yet, those being sent right now included.
    pub(crate) fn queued(&self) -> usize {
        self.queue.lock().as_ref().map_or(0, |queue| queue.bytes())
    }

    /// Whether `len` more bytes as one message have room.
    pub(crate) fn has_room(&self, len: usize, bounds: impl Bounds) -> bool {
        let bound = bounds.bound();
        self.queue
            .lock()
            .as_ref()
            .is_none_or(|queue| queue.room(len, bound).is_ok())
    }

    /// Has the owner wait while more than `low` bytes are queued: then it must not go on before
    /// [`open_gate`](Self::open_gate) says so.
    pub(crate) fn gate(&self, word: &Word, low: usize) -> Gate {
        if self.queued() <= low {
            return Gate::Open;
        }
        // The bit is set before the second look. The flusher looks at the bit after it counted, under
        // the queue's lock, what it sent. So one of the two sees what the other did.
        let before = word.set(GATED);
        if self.queued() <= low {
            word.clear(GATED);
            Gate::Open
        } else if before & GATED == 0 {
            Gate::Closes
        } else {
            Gate::Shut
        }
    }

    /// The flusher has sent or dropped something: whether the owner waits at the gate and may go on.
    pub(crate) fn open_gate(&self, word: &Word, low: usize) -> bool {
        self.queued() <= low && word.clear(GATED) & GATED != 0
    }

    /// Counts output that was moved past the queue by the flusher.
    pub(crate) fn count(&self, n: usize) {
        add(&self.bytes, n);
    }

    /// Bytes the sink took.
    pub(crate) fn bytes_sent(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Messages accepted, queued or sent directly.
    pub(crate) fn messages(&self) -> u64 {
        let queued = self.queue.lock().as_ref().map_or(0, |q| q.messages);
        self.direct.load(Ordering::Relaxed) + queued
    }

    /// What was accepted and dropped.
    pub(crate) fn lost(&self) -> Loss {
        self.queue
            .lock()
            .as_ref()
            .map_or_else(Loss::default, |queue| queue.lost)
    }

    /// Drops what is queued because sending is over. What a flusher holds right now it drops
    /// itself when it sees the word.
    pub(crate) fn discard(&self, word: &Word, guard: &impl Contain) {
        let discarded = self
            .queue
            .lock()
            .as_mut()
            .map(|queue| (queue.discard(word, 0), queue.recount(guard)));
        if let Some((chain, delta)) = discarded {
            if let Some(mut chain) = chain {
                drop_output(guard, &mut chain);
            }
            weigh(guard, delta);
        }
    }

    /// The rest of a direct send, whose `first` call may have been made.
    fn direct(
        &self,
        word: &Word,
        sink: &impl Sink,
        chain: &mut LinkBuffer,
        first: Option<io::Result<usize>>,
    ) -> (Mark, Sent) {
        let end = self.transmit(word, sink, chain, &mut 0, first);
        if end == Sent::All {
            // The common end: nothing was queued behind us.
            if word.give_back_flush() {
                return (Mark(i64::MIN), Sent::All);
            }
            return (Mark(i64::MIN), self.flush(word, sink));
        }
        self.keep(word, sink, chain, end)
    }

    /// Queues what is left of a direct send, before everything that is queued already.
    #[cold]
    fn keep(
        &self,
        word: &Word,
        sink: &impl Sink,
        chain: &mut LinkBuffer,
        end: Sent,
    ) -> (Mark, Sent) {
        compact(sink, chain);
        let mut locked = self.queue.lock();
        let queue = locked.get_or_insert_default();
        let mark = Mark(queue.sent);
        queue.sent -= chain.len() as i64;
        queue.ends.push_front(mark.0);
        queue.put_back(chain);
        word.set(QUEUED);
        let delta = queue.recount(sink);
        drop(locked);
        weigh(sink, delta);
        let sent = match end {
            Sent::Parked => self.park(word, sink),
            Sent::Starved => self.starve(word, sink),
            other => self.fail(word, sink, other),
        };
        (mark, sent)
    }

    fn enqueue(
        &self,
        word: &Word,
        guard: &impl Contain,
        chain: &mut LinkBuffer,
        bound: Bound,
    ) -> Result<(Mark, bool), Full> {
        let short = chain.len() < COPIED;
        if !short {
            compact(guard, chain);
        }
        let mut locked = self.queue.lock();
        let queue = locked.get_or_insert_default();
        queue.room(chain.len(), bound)?;
        queue.messages += 1;
        queue.accepted += chain.len() as i64;
        let end = queue.accepted;
        queue.ends.push_back(end);
        let mut tail = queue.chain.take().unwrap_or_default();
        if short {
            tail.append_copy(chain);
        } else {
            tail.append(chain.take_filled());
        }
        tail.flush();
        queue.chain = Some(tail);
        let flusher = word.queue_and_try_flush();
        let delta = queue.recount(guard);
        drop(locked);
        weigh(guard, delta);
        // Empty unless it was copied. Its payloads are dropped without the lock.
        let left = chain.len();
        consume(guard, chain, left);
        Ok((Mark(end), flusher))
    }

    /// Sends the queue until it is empty, the sink is full or the share is used up. The caller
    /// holds the role; it is given back on every way out.
    fn flush(&self, word: &Word, sink: &impl Sink) -> Sent {
        let mut share = 0;
        loop {
            let taken = {
                let mut locked = self.queue.lock();
                let queue = locked.get_or_insert_default();
                match queue.chain.take() {
                    Some(chain) if !chain.is_empty() => Some(chain),
                    empty => {
                        queue.chain = empty;
                        queue.fall_empty();
                        word.clear(QUEUED | FLUSHING);
                        None
                    }
                }
            };
            let Some(mut chain) = taken else {
                return Sent::All;
            };
            let len = chain.len();
            let end = self.transmit(word, sink, &mut chain, &mut share, None);
            if !chain.is_empty() {
                compact(sink, &mut chain);
            }
            let mut locked = self.queue.lock();
            let queue = locked.get_or_insert_default();
            queue.progress(len - chain.len());
            if !chain.is_empty() {
                queue.put_back(&mut chain);
            }
            let delta = queue.recount(sink);
            drop(locked);
            weigh(sink, delta);
            match end {
                Sent::All if share >= TURN_BYTES => {
                    word.clear(FLUSHING);
                    return Sent::Share;
                }
                Sent::All => {}
                Sent::Parked => return self.park(word, sink),
                Sent::Starved => return self.starve(word, sink),
                other => return self.fail(word, sink, other),
            }
        }
    }

    /// Gives the role back with bytes still queued, unless room was reported meanwhile.
    fn park(&self, word: &Word, sink: &impl Sink) -> Sent {
        if word.park_flush() {
            return self.unless_over(word, sink, Sent::Parked);
        }
        word.clear(WRITABLE);
        self.flush(word, sink)
    }

    fn starve(&self, word: &Word, guard: &impl Contain) -> Sent {
        word.clear(FLUSHING);
        self.unless_over(word, guard, Sent::Starved)
    }

    /// Whoever ends the connection sets a bit, then drops the queue. What was put back behind
    /// that is dropped here: the bit is looked at after the bytes were put back.
    fn unless_over(&self, word: &Word, guard: &impl Contain, sent: Sent) -> Sent {
        if !word.has(OVER) {
            return sent;
        }
        self.discard(word, guard);
        Sent::Failed(io::ErrorKind::NotConnected)
    }

    /// Sending is over: said before the role is free, so that no message follows a cut one.
    fn fail(&self, word: &Word, guard: &impl Contain, end: Sent) -> Sent {
        word.set(BROKEN);
        let mut locked = self.queue.lock();
        let queue = locked.get_or_insert_default();
        let (chain, delta) = (queue.discard(word, FLUSHING), queue.recount(guard));
        drop(locked);
        if let Some(mut chain) = chain {
            drop_output(guard, &mut chain);
        }
        weigh(guard, delta);
        end
    }

    /// The send loop, without any lock; `first` is the result of a send that was made already.
    fn transmit(
        &self,
        word: &Word,
        sink: &impl Sink,
        chain: &mut LinkBuffer,
        share: &mut u64,
        mut first: Option<io::Result<usize>>,
    ) -> Sent {
        let mut full_before = false;
        while !chain.is_empty() {
            if first.is_none() && word.has(OVER) {
                return Sent::Failed(io::ErrorKind::NotConnected);
            }
            match first.take().unwrap_or_else(|| hand_over(sink, chain)) {
                Ok(n) => {
                    consume(sink, chain, n);
                    add(&self.bytes, n);
                    *share += n as u64;
                    full_before = false;
                }
                Err(e) if is_shortage(&e) => return Sent::Starved,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if full_before {
                        return Sent::Parked;
                    }
                    // Old news of room is used up; try once more so that only an edge that
                    // comes from now on counts.
                    full_before = true;
                    word.clear(WRITABLE);
                }
                Err(e) => return Sent::Failed(e.kind()),
            }
        }
        Sent::All
    }
}

/// Adds to a figure that only the caller writes, at least for the moment.
#[inline]
pub(crate) fn add(figure: &AtomicU64, n: usize) {
    let before = figure.load(Ordering::Relaxed);
    figure.store(before + n as u64, Ordering::Relaxed);
}

/// Consumes what was sent. A payload that panics when it is dropped is no reason to lose the rest.
fn consume(guard: &impl Contain, chain: &mut LinkBuffer, mut n: usize) {
    if chain.owns_all_memory() {
        return chain.consume(n);
    }
    // Called again it goes on behind the payload that panicked.
    while !guard.contain(|| chain.consume(std::mem::take(&mut n))) {}
}

fn weigh(guard: &impl Contain, delta: i32) {
    if delta != 0 {
        guard.weigh(delta);
    }
}

/// Copies what would keep more memory alive than itself. A payload that panics when it is dropped has been
/// copied by then.
pub(super) fn compact(guard: &impl Contain, chain: &mut LinkBuffer) {
    guard.contain(|| chain.compact());
}

/// Drops what will not be sent, payload by payload.
pub(crate) fn drop_output(guard: &impl Contain, chain: &mut LinkBuffer) {
    chain.flush();
    let n = chain.len();
    consume(guard, chain, n);
}

/// One vectored send of what is at the front of the chain.
fn hand_over(sink: &impl Sink, chain: &LinkBuffer) -> io::Result<usize> {
    // One chunk needs no list.
    let first = Buf::chunk(chain);
    if first.len() == chain.len() {
        return sink.send_one(first);
    }
    let mut slices = [IoSlice::new(&[]); SLICES];
    let count = chain.io_slices(&mut slices);
    sink.send(&slices[..count])
}

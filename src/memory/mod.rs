//! What the connections of one loop hold together, and what happens when that is too much.
//!
//! Counted is what stays: input that stays unread when a turn ends or a handler waits, output that is
//! not flushed then, output behind a full socket. A request that comes and goes within its turn is not
//! counted, and costs no atomic operation.
//!
//! Each part of a connection that can hold memory has a [`Charge`], which follows what is held in steps
//! of an eighth. The changes add up in the connection (`Shared::held`) and in the loop's [`Memory`]. The
//! thread whose charge takes the sum over a mark looks at all connections, one thread at a time:
//!
//! * above the mark of three fourths the connections that hold most become [`HEAVY`], which means that
//!   they are not read, so many of them that what the others hold fits into the room that is left;
//! * above the limit the largest are aborted until the sum is a sixteenth below it. What they hold counts
//!   until it is gone, and while the sum is above the limit every connection that is to be read becomes heavy
//!   by itself: no thread adds to it, whatever the one that looks is doing;
//! * below the limit again, those become light that fit into the room. (A handler that never returns keeps
//!   what its aborted connection holds, and at the limit it keeps the others from being read.)
//! * below eleven sixteenths none is heavy any more.
//!
//! Connections that are not read cannot finish what they have begun, so a shortage might last. If it does for
//! five seconds, the largest are aborted until none has to be heavy.
//!
//! Between two looks the sum grows by a sixty-fourth of the limit, so their number is small however much
//! goes on.

#[cfg(not(any(loom, shuttle)))]
mod chunks;
mod system;

#[cfg(not(any(loom, shuttle)))]
pub(crate) use chunks::Trimming;
pub(crate) use system::half_of_what_there_is;

use crate::{
    connection::{ABORT, Shared},
    context::Context,
    error::CloseReason,
    sync::{AtomicBool, AtomicUsize, Ordering},
    trace,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The sum of one loop, in KiB.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    total: AtomicUsize,
    /// At this sum the connections are looked at.
    next_look: AtomicUsize,
    /// Some connection may be heavy.
    heavy: AtomicBool,
    /// Connections became heavy because the sum was above the limit.
    crowded: AtomicBool,
    /// A thread looks.
    looking: AtomicBool,
}

impl Memory {
    /// `usize::MAX` bytes are no limit.
    pub(crate) fn new(bytes: usize) -> Self {
        let limit = if bytes == usize::MAX {
            usize::MAX
        } else {
            bytes >> KIB
        };
        Self {
            limit,
            total: AtomicUsize::new(0),
            next_look: AtomicUsize::new(mark(limit)),
            heavy: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            looking: AtomicBool::new(false),
        }
    }

    /// Bytes held now, within an eighth.
    pub(crate) fn held(&self) -> usize {
        self.total() << KIB
    }

    /// Whether there is no limit, so that nothing need be counted.
    pub(crate) fn is_endless(&self) -> bool {
        self.limit == usize::MAX
    }

    /// What is taken off may come before what was put on: then the sum is below zero for a moment.
    fn total(&self) -> usize {
        usize::try_from(self.total.load(Ordering::SeqCst) as isize).unwrap_or(0)
    }

    /// Adds a change. `true`: the connections must be looked at.
    fn add(&self, delta: i32) -> bool {
        self.total.fetch_add(delta as usize, Ordering::SeqCst);
        if delta < 0
            && self.next_look.load(Ordering::SeqCst) > self.limit
            && self.total() < self.limit
        {
            // Those that were closed are gone.
            self.next_look.store(self.limit, Ordering::SeqCst);
        }
        self.is_due()
    }

    fn is_due(&self) -> bool {
        let total = self.total();
        total >= self.next_look.load(Ordering::SeqCst)
            || (total < low(self.limit) && self.heavy.load(Ordering::SeqCst))
            || (total < self.limit && self.crowded.load(Ordering::SeqCst))
    }

    /// Whether the sum is at the limit, so that nothing may be received.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.total() >= self.limit
    }

    /// Bytes that may be added.
    pub(crate) fn room(&self) -> usize {
        if self.is_endless() {
            return usize::MAX;
        }
        self.limit.saturating_sub(self.total()) << KIB
    }

    /// In KiB: what grows within a turn is charged in steps of this.
    fn step(&self) -> usize {
        if self.total() < mark(self.limit) {
            STEP
        } else {
            SCARCE_STEP
        }
    }
}

/// What one part of a connection is charged for, in KiB.
#[derive(Debug, Default)]
pub(crate) struct Charge(u32);

impl Charge {
    /// Follows what is held. Returns the change, 0 if it is not worth one.
    #[inline]
    pub(crate) fn follow(&mut self, bytes: usize) -> i32 {
        let now = u32::try_from(bytes >> KIB).unwrap_or(MOST).min(MOST);
        let step = self.0 / 8;
        if now != 0 && now.abs_diff(self.0) <= step {
            return 0;
        }
        let delta = now as i32 - self.0 as i32;
        self.0 = now;
        delta
    }

    /// Whether so many bytes are much more than what is charged.
    #[inline]
    pub(crate) fn is_behind(&self, bytes: usize, memory: &Memory) -> bool {
        let more = (bytes >> KIB).saturating_sub(self.0 as usize);
        more > SCARCE_STEP && more > memory.step()
    }
}

impl Shared {
    /// Adds a change of what this connection holds. No lock may be held.
    #[inline]
    pub(crate) fn weigh(&self, delta: i32) {
        if delta != 0 {
            self.charge(delta);
            self.weigh_in(delta);
        }
    }

    /// The part of [`weigh`](Self::weigh) that is about this connection. Changes of one part of it come
    /// in their order, so the sum is never below zero: a lock may be held.
    #[inline]
    pub(crate) fn charge(&self, delta: i32) {
        if !self.context.memory.is_endless() {
            self.held.fetch_add(delta as u32, Ordering::AcqRel);
        }
    }

    /// The part that is about the loop. No lock may be held.
    #[cold]
    pub(crate) fn weigh_in(&self, delta: i32) {
        let memory = &self.context.memory;
        if memory.is_endless() {
            return;
        }
        let look = memory.add(delta);
        let held = self.held.load(Ordering::Acquire);
        if delta < 0 && held & HEAVY != 0 && held & !HEAVY < LIGHT {
            self.lighten();
        }
        if look {
            self.context.relieve();
        }
    }

    /// Whether a connection that is heavy, or found the memory full, is not read now. It is heavy then, so
    /// that [`lighten`](Self::lighten) finds it.
    #[cold]
    pub(crate) fn stays_heavy(&self) -> bool {
        if self.held.fetch_or(HEAVY, Ordering::SeqCst) & HEAVY != 0 {
            return true;
        }
        let memory = &self.context.memory;
        memory.crowded.store(true, Ordering::SeqCst);
        // A thread that takes something off from here on sees that, and looks.
        let full = memory.is_full();
        if !full {
            self.held.fetch_and(!HEAVY, Ordering::SeqCst);
        }
        full
    }
}

impl Context {
    /// Does what the sum asks for, unless another thread is at it, which looks again then.
    fn relieve(self: &Arc<Self>) {
        let memory = &self.memory;
        while memory.is_due() && !memory.looking.swap(true, Ordering::SeqCst) {
            self.look();
            memory.looking.store(false, Ordering::SeqCst);
        }
    }

    fn look(self: &Arc<Self>) {
        let memory = &self.memory;
        let limit = memory.limit;
        memory.crowded.store(false, Ordering::SeqCst);
        let mut all = self.connections.holders();
        let total = memory.total();
        if total < low(limit) {
            memory.heavy.store(false, Ordering::SeqCst);
            memory.next_look.store(mark(limit), Ordering::SeqCst);
            all.iter().for_each(|(_, shared)| shared.lighten());
            return;
        }
        let left = total.saturating_sub(sort(&mut all));
        if left > limit {
            close_largest(&mut all, left, limit - limit / 16);
        }
        if total > mark(limit) {
            if !memory.heavy.swap(true, Ordering::SeqCst) {
                self.end_shortage_later();
            }
            pause_largest(&all, limit.saturating_sub(total));
            if total >= limit {
                memory.crowded.store(true, Ordering::SeqCst);
            }
        }
        let next = total + (limit / 64).max(1);
        let next = if total < limit { next.min(limit) } else { next };
        memory
            .next_look
            .store(next.max(mark(limit)), Ordering::SeqCst);
    }
}

impl Context {
    fn end_shortage_later(self: &Arc<Self>) {
        let Some(poller) = self.connections.some_poller() else {
            return;
        };
        let context = Arc::downgrade(self);
        poller.schedule(Instant::now() + SHORTAGE, move || {
            if let Some(context) = context.upgrade() {
                context.end_shortage();
            }
        });
    }

    /// Connections have been heavy for long: closes the largest unless another thread looks.
    fn end_shortage(self: &Arc<Self>) {
        let memory = &self.memory;
        let most = low(memory.limit) - 1;
        if memory.heavy.load(Ordering::SeqCst) && !memory.looking.swap(true, Ordering::SeqCst) {
            let mut all = self.connections.holders();
            let left = memory.total().saturating_sub(sort(&mut all));
            if left > most {
                close_largest(&mut all, left, most);
            }
            memory.looking.store(false, Ordering::SeqCst);
        }
        self.relieve();
        if memory.heavy.load(Ordering::SeqCst) {
            self.end_shortage_later();
        }
    }
}

/// Puts them in the order of what they hold, without those that are aborted and on their way out. Returns
/// what these hold.
fn sort(all: &mut Vec<(u32, Arc<Shared>)>) -> usize {
    let ending = all.iter().filter(|(_, shared)| shared.word.has(ABORT));
    let ending = ending.map(|&(held, _)| held as usize).sum();
    all.retain(|(_, shared)| !shared.word.has(ABORT));
    all.sort_unstable_by_key(|&(held, _)| held);
    ending
}

/// Aborts the largest until the sum is not above that. Returns the sum then.
fn close_largest(all: &mut Vec<(u32, Arc<Shared>)>, mut left: usize, most: usize) -> usize {
    let mut closed = 0;
    while left > most {
        let Some((held, shared)) = all.pop() else {
            break;
        };
        left = left.saturating_sub(held as usize);
        closed += 1;
        shared.abort_with(CloseReason::Overload);
    }
    trace::warn!(
        "memory limit: {closed} connections that held most were closed, {left} KiB are left"
    );
    left
}

/// Of connections in the order of what they hold: the last ones become heavy, so that what the first
/// ones hold fits into this room. So they may hold twice as much before the limit is reached. Without room
/// all become heavy.
fn pause_largest(all: &[(u32, Arc<Shared>)], room: usize) {
    let mut light = 0;
    for (held, shared) in all {
        light += *held as usize;
        if light > room || room == 0 {
            shared.held.fetch_or(HEAVY, Ordering::AcqRel);
        } else {
            shared.lighten();
        }
    }
}

fn mark(limit: usize) -> usize {
    limit / 4 * 3
}

fn low(limit: usize) -> usize {
    limit / 16 * 11
}

/// In what a connection holds: it is one of those that hold most, and not read.
pub(crate) const HEAVY: u32 = 1 << 31;

/// How long connections may be heavy before the largest are closed for it.
const SHORTAGE: Duration = Duration::from_secs(5);

const KIB: u32 = 10;
/// A charge is no more than that, half a TiB, so that all charges of a connection fit.
const MOST: u32 = 1 << 29;
/// In KiB: what grows within a turn is charged in steps of this.
const STEP: usize = 256;
/// The same where memory is scarce.
const SCARCE_STEP: usize = 32;
/// In KiB: a connection that holds less is not heavy.
const LIGHT: u32 = 64;

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn a_charge_follows_in_steps_of_an_eighth() {
        let mut charge = Charge::default();
        assert_eq!(charge.follow(1023), 0);
        assert_eq!(charge.follow(1024), 1);
        assert_eq!(charge.follow(800 << 10), 799);
        assert_eq!(charge.follow(900 << 10), 0);
        assert_eq!(charge.follow(700 << 10), 0);
        assert_eq!(charge.follow(901 << 10), 101);
        let (plenty, scarce) = (Memory::new(1 << 30), Memory::new(1 << 20));
        scarce.add(800);
        assert!(!charge.is_behind(1100 << 10, &plenty) && charge.is_behind(1200 << 10, &plenty));
        assert!(!charge.is_behind(930 << 10, &scarce) && charge.is_behind(940 << 10, &scarce));
        assert_eq!(charge.follow(1), -901);
        assert_eq!(charge.follow(0), 0);
        assert_eq!(charge.follow(usize::MAX), 1 << 29);
        assert_eq!(charge.follow(0), -(1 << 29));
    }

    #[test]
    fn a_look_is_due_above_the_mark_and_when_little_is_left() {
        let memory = Memory::new(1 << 20);
        assert!(!memory.add(700) && memory.add(70) && memory.is_due());
        memory.next_look.store(900, Ordering::SeqCst);
        memory.heavy.store(true, Ordering::SeqCst);
        assert!(!memory.add(30) && !memory.add(-40) && !memory.is_due());
        assert!(memory.add(-60) && memory.is_due());
        assert_eq!(memory.held(), 700 << 10);
        assert!(Memory::new(usize::MAX).is_endless());
    }

    #[test]
    fn what_is_taken_off_before_it_was_put_on_is_nothing() {
        let memory = Memory::new(1 << 20);
        assert!(!memory.add(-800));
        assert_eq!(memory.held(), 0);
        assert!(!memory.add(800));
        assert_eq!(memory.held(), 0);
    }
}

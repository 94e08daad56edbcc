//! Timers: a hierarchical wheel driven by the poller's wait timeout.
//!
//! One tick is 2^20 ns (1.05 ms). Deadlines are rounded up to ticks and the clock down, so a timer
//! is never early, and late by at most one tick plus the wait's own rounding. Seven levels of 64
//! slots reach 146 years; anything later is moved to the end of that range and looked at again
//! then. Putting in and firing cost a few instructions per level crossed; an empty slot costs
//! nothing, because each level keeps a bit set of its occupied slots.

use std::time::{Duration, Instant};

const TICK_SHIFT: u32 = 20;
const LEVELS: usize = 7;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// The furthest distance the wheel can hold: one slot less than a revolution of the top level,
/// so that nothing is ever put into a present slot.
const REACH: u64 = (SLOTS as u64 - 1) << (SLOT_BITS * (LEVELS as u32 - 1));
/// A slot's memory above this is given back after firing.
const KEEP_CAPACITY: usize = 256;

/// Ticks since a fixed instant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self {
            base: Instant::now(),
        }
    }

    /// The first tick that is not before `deadline`.
    pub(crate) fn tick_after(&self, deadline: Instant) -> u64 {
        let nanos = deadline.saturating_duration_since(self.base).as_nanos();
        // The largest value is taken by "never".
        u64::try_from((nanos + (1 << TICK_SHIFT) - 1) >> TICK_SHIFT)
            .unwrap_or(u64::MAX)
            .min(u64::MAX - 1)
    }

    /// The last tick that is not after `now`.
    pub(crate) fn tick_before(&self, now: Instant) -> u64 {
        let nanos = now.saturating_duration_since(self.base).as_nanos();
        u64::try_from(nanos >> TICK_SHIFT).unwrap_or(u64::MAX - 1)
    }

    /// How long from `now` until `tick` begins; zero if it did.
    pub(crate) fn until(&self, tick: u64, now: Instant) -> Duration {
        let at = Duration::from_nanos(tick.min(u64::MAX >> TICK_SHIFT) << TICK_SHIFT);
        at.saturating_sub(now.saturating_duration_since(self.base))
    }
}

/// The wheel: items of type `T`, each with the tick it waits for.
#[derive(Debug)]
pub(crate) struct Wheel<T> {
    levels: Vec<Level<T>>,
    /// Everything up to and including this tick has fired.
    elapsed: u64,
    len: usize,
}

#[derive(Debug)]
struct Level<T> {
    occupied: u64,
    slots: Vec<Vec<(u64, T)>>,
}

impl<T> Wheel<T> {
    pub(crate) fn new() -> Self {
        let level = || Level {
            occupied: 0,
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
        };
        Self {
            levels: (0..LEVELS).map(|_| level()).collect(),
            elapsed: 0,
            len: 0,
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Has `item` fire at `tick`, or at the next tick if that has passed.
    pub(crate) fn insert(&mut self, tick: u64, item: T) {
        self.len += 1;
        self.place(tick, item);
    }

    /// The tick at which the wheel has something to do; items fire then or are moved closer.
    pub(crate) fn next(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        for (number, level) in self.levels.iter().enumerate() {
            if level.occupied == 0 {
                continue;
            }
            let shift = SLOT_BITS * number as u32;
            let here = (self.elapsed >> shift) as u32 & (SLOTS as u32 - 1);
            // The present slot of a level holds nothing that is still to come: look at the rest
            // of the revolution.
            let distance = level.occupied.rotate_right(here).trailing_zeros() as u64;
            return Some(((self.elapsed >> shift) + distance) << shift);
        }
        None
    }

    /// Moves on to `now` and hands out what is due, each item with the tick it waited for.
    pub(crate) fn advance(&mut self, now: u64, mut due: impl FnMut(u64, T)) {
        while let Some(at) = self.next() {
            if at > now {
                break;
            }
            self.elapsed = self.elapsed.max(at);
            for number in 0..LEVELS {
                let shift = SLOT_BITS * number as u32;
                // A level's slot is entered only when all lower levels are at their start.
                if number > 0 && at & ((1 << shift) - 1) != 0 {
                    break;
                }
                let slot = (at >> shift) as usize & (SLOTS - 1);
                let level = &mut self.levels[number];
                if level.occupied & (1 << slot) == 0 {
                    continue;
                }
                level.occupied &= !(1 << slot);
                let mut items = std::mem::take(&mut level.slots[slot]);
                for (tick, item) in items.drain(..) {
                    if tick <= self.elapsed {
                        self.len -= 1;
                        due(tick, item);
                    } else {
                        self.place(tick, item);
                    }
                }
                let home = &mut self.levels[number].slots[slot];
                if home.capacity() == 0 && items.capacity() <= KEEP_CAPACITY {
                    *home = items;
                }
            }
        }
        self.elapsed = self.elapsed.max(now);
    }

    fn place(&mut self, tick: u64, item: T) {
        // Not in the present slot of any level: that has been dealt with.
        let at = tick.clamp(self.elapsed + 1, self.elapsed.saturating_add(REACH));
        let number = ((63 - ((self.elapsed ^ at) | (SLOTS as u64 - 1)).leading_zeros())
            / SLOT_BITS)
            .min(LEVELS as u32 - 1);
        let slot = (at >> (SLOT_BITS * number)) as usize & (SLOTS - 1);
        let level = &mut self.levels[number as usize];
        level.occupied |= 1 << slot;
        level.slots[slot].push((tick, item));
    }
}

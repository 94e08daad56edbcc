//! Timers: a hierarchical wheel driven by the poller's wait timeout.
//!
//! One tick is 2^20 ns (1.05 ms). Deadlines are rounded up to ticks and the clock down, so a timer
//! is never early, and late by at most one tick plus the wait's own rounding. Seven levels of 64
//! slots reach 146 years; anything later is moved to the end of that range and looked at again
//! then. Putting in and firing cost a few instructions per level crossed; an empty slot costs
//! nothing, because each level keeps a bit set of its occupied slots.

const LEVELS: usize = 7;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// The furthest distance the wheel can hold: one slot less than a revolution of the top level,
/// so that nothing is ever put into a present slot.
const REACH: u64 = (SLOTS as u64 - 1) << (SLOT_BITS * (LEVELS as u32 - 1));
/// A slot's memory above this is given back after firing.
const KEEP_CAPACITY: usize = 256;

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
        // Not in the present slot of any level: that has been dealt with.
        self.place(self.elapsed + 1, tick, item);
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

    /// Moves on to `now` and hands out at most `most` of what is due, each item with the tick it
    /// waited for. `false`: more is due, and [`next`](Self::next) is not after `now`.
    pub(crate) fn advance(
        &mut self,
        now: u64,
        mut most: usize,
        mut due: impl FnMut(u64, T),
    ) -> bool {
        while let Some(at) = self.next() {
            if at > now {
                break;
            }
            self.elapsed = self.elapsed.max(at);
            // A level's slot is entered only when all lower levels are at their start.
            let entered = (at.trailing_zeros() / SLOT_BITS).min(LEVELS as u32 - 1);
            for number in (1..=entered).rev() {
                self.lower(number);
            }
            let slot = at as usize & (SLOTS - 1);
            let Level { occupied, slots } = &mut self.levels[0];
            let items = &mut slots[slot];
            let now_due = items.len().min(most);
            for (tick, item) in items.drain(items.len() - now_due..) {
                due(tick, item);
            }
            self.len -= now_due;
            most -= now_due;
            if !items.is_empty() {
                return false;
            }
            *occupied &= !(1 << slot);
            if items.capacity() > KEEP_CAPACITY {
                *items = Vec::new();
            }
        }
        self.elapsed = self.elapsed.max(now);
        true
    }

    /// Moves what is in a level's present slot to where it belongs by now: a lower level, in the
    /// end the present slot of the lowest.
    fn lower(&mut self, number: u32) {
        let slot = (self.elapsed >> (SLOT_BITS * number)) as usize & (SLOTS - 1);
        let level = &mut self.levels[number as usize];
        if level.occupied & (1 << slot) == 0 {
            return;
        }
        level.occupied &= !(1 << slot);
        let mut items = std::mem::take(&mut level.slots[slot]);
        for (tick, item) in items.drain(..) {
            self.place(self.elapsed, tick, item);
        }
        let home = &mut self.levels[number as usize].slots[slot];
        if home.capacity() == 0 && items.capacity() <= KEEP_CAPACITY {
            *home = items;
        }
    }

    fn place(&mut self, earliest: u64, tick: u64, item: T) {
        let at = tick.clamp(earliest, self.elapsed.saturating_add(REACH));
        let number = ((63 - ((self.elapsed ^ at) | (SLOTS as u64 - 1)).leading_zeros())
            / SLOT_BITS)
            .min(LEVELS as u32 - 1);
        let slot = (at >> (SLOT_BITS * number)) as usize & (SLOTS - 1);
        let level = &mut self.levels[number as usize];
        level.occupied |= 1 << slot;
        let items = &mut level.slots[slot];
        if items.len() == items.capacity() && items.len() >= KEEP_CAPACITY {
            // Thousands of idle connections wait in one slot: little room for more.
            items.reserve_exact(items.len() / 8);
        }
        items.push((tick, item));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A small generator: the tests are the same every time.
    fn numbers(mut state: u64) -> impl FnMut(u64) -> u64 {
        move |below| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        }
    }

    #[test]
    fn fires_exactly_what_a_sorted_map_would() {
        let mut random = numbers(7);
        for distance in [10, 100, 5000, 300_000, 1 << 30, 1 << 40] {
            let mut wheel = Wheel::new();
            let mut model: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            let mut now = random(1 << 40);
            wheel.advance(now, 9, |_, _: u64| unreachable!("nothing was put in"));
            for id in 0..3000 {
                if random(3) > 0 {
                    let tick = now + 1 + random(distance);
                    wheel.insert(tick, id);
                    model.entry(tick).or_default().push(id);
                }
                if random(4) == 0 {
                    now += random(distance / 5 + 2);
                    let mut fired = Vec::new();
                    // However few at a time.
                    let most = 1 + random(20) as usize;
                    while !wheel.advance(now, most, |tick, id| fired.push((tick, id))) {
                        assert!(wheel.next().is_some_and(|next| next <= now));
                    }
                    let later = model.split_off(&(now + 1));
                    let mut expected: Vec<_> = std::mem::replace(&mut model, later)
                        .into_iter()
                        .flat_map(|(tick, ids)| ids.into_iter().map(move |id| (tick, id)))
                        .collect();
                    fired.sort_unstable();
                    expected.sort_unstable();
                    assert_eq!(fired, expected);
                }
                // What the wheel says next is never later than the first deadline.
                match (wheel.next(), model.first_key_value()) {
                    (None, None) => {}
                    (Some(next), Some((&first, _))) => assert!(now < next && next <= first),
                    (next, first) => panic!("{next:?} but {first:?}"),
                }
            }
            assert_eq!(wheel.is_empty(), model.is_empty());
        }
    }

    #[test]
    fn what_is_over_fires_at_the_next_advance() {
        let mut wheel = Wheel::new();
        wheel.advance(1000, 9, |_, _: char| {});
        wheel.insert(3, 'a');
        wheel.insert(1000, 'b');
        let mut fired = Vec::new();
        wheel.advance(1001, 9, |_, item| fired.push(item));
        assert_eq!(fired, ['a', 'b']);
    }

    #[test]
    fn the_end_of_time_is_kept_and_not_reached() {
        let mut wheel = Wheel::new();
        for start in [0, 1, REACH - 1, REACH, 3 * REACH + 12_345] {
            wheel.advance(start, 9, |_, ()| unreachable!("years too early"));
            wheel.insert(u64::MAX - 1, ());
            wheel.insert(start + 2 * REACH, ());
            assert!(wheel.next().is_some_and(|next| next > start));
            let mut fired = 0;
            wheel.advance(start + 2 * REACH - 1, 9, |_, ()| fired += 1);
            assert_eq!(fired, 0);
            wheel.advance(start + 2 * REACH, 9, |_, ()| fired += 1);
            assert_eq!(fired, 1);
            wheel = Wheel::new();
        }
    }
}

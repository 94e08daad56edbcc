//! Which poller of a group gets a new operator.

use crate::sync::{AtomicUsize, Ordering};

/// How a group spreads operators over its pollers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any, by a fast generator that needs no seed of the caller's.
    Random,
    /// The poller with the fewest operators; ties are taken in turn.
    LeastRegistered,
}

/// The state of a [`Balance`].
#[derive(Debug)]
pub(crate) struct Picker {
    balance: Balance,
    turn: AtomicUsize,
}

impl Picker {
    pub(crate) fn new(balance: Balance) -> Self {
        Self {
            balance,
            turn: AtomicUsize::new(0),
        }
    }

    /// An index below `len`; `registered` tells how many operators an index has.
    pub(crate) fn pick(&self, len: usize, registered: impl Fn(usize) -> usize) -> usize {
        debug_assert!(len > 0);
        if len == 1 {
            return 0;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match self.balance {
            Balance::RoundRobin => turn % len,
            Balance::Random => random_pick(turn as u64) as usize % len,
            Balance::LeastRegistered => (0..len)
                .map(|step| turn.wrapping_add(step) % len)
                .min_by_key(|&index| registered(index))
                .unwrap_or(0),
        }
    }
}

/// SplitMix64: consecutive counters become independent looking numbers.
fn random_pick(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn counts(balance: Balance, len: usize, picks: usize) -> Vec<usize> {
        let picker = Picker::new(balance);
        let mut counts = vec![0; len];
        for _ in 0..picks {
            let index = picker.pick(len, |index| counts[index]);
            counts[index] += 1;
        }
        counts
    }

    #[test]
    fn round_robin_is_exact() {
        assert_eq!(counts(Balance::RoundRobin, 3, 300), [100, 100, 100]);
    }

    #[test]
    fn least_registered_fills_the_gap_first() {
        assert_eq!(
            counts(Balance::LeastRegistered, 3, 301).iter().max(),
            Some(&101)
        );
        let picker = Picker::new(Balance::LeastRegistered);
        for _ in 0..10 {
            assert_eq!(picker.pick(3, |index| [5, 2, 9][index]), 1);
        }
    }

    #[test]
    fn random_reaches_everyone_roughly_equally() {
        let counts = counts(Balance::Random, 4, 40_000);
        assert!(
            counts.iter().all(|&n| (9_000..11_000).contains(&n)),
            "{counts:?}"
        );
        let picker = Picker::new(Balance::Random);
        let first: Vec<_> = (0..8).map(|_| picker.pick(4, |_| 0)).collect();
        assert_ne!(first, [0, 1, 2, 3, 0, 1, 2, 3]);
    }
}

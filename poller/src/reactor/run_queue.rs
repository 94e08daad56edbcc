//! What is left to do of a poll cycle: a queue that is filled at one time and emptied at another.

/// First in, first out. Two stacks, of which the one that is taken from is the other one reversed: that
/// happens once per filling, and both ends cost less than those of a ring.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    /// The next last.
    front: Vec<T>,
    /// The latest last; comes after all of `front`.
    back: Vec<T>,
}

impl<T> Queue<T> {
    /// Puts one behind all others.
    #[inline]
    pub(crate) fn push(&mut self, item: T) {
        self.back.push(item);
    }

    /// Takes the first.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.front.is_empty() {
            self.refill();
        }
        self.front.pop()
    }

    #[inline(never)]
    fn refill(&mut self) {
        std::mem::swap(&mut self.front, &mut self.back);
        self.front.reverse();
    }

    /// Whether nothing is there.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.front.is_empty() && self.back.is_empty()
    }

    /// How many there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.front.len() + self.back.len()
    }

    /// Moves all of `other` behind what is here.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.back.extend(other.front.drain(..).rev());
        self.back.append(&mut other.back);
    }

    /// Gives back memory for more than so many.
    pub(crate) fn shrink_to(&mut self, most: usize) {
        self.front.shrink_to(most);
        self.back.shrink_to(most);
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            front: Vec::new(),
            back: Vec::new(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    #[test]
    fn order_is_that_of_a_ring() {
        let (mut queue, mut other) = (Queue::default(), Queue::default());
        let mut ring = VecDeque::new();
        let mut random = 7_u64;
        for item in 0..10_000 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            match random >> 61 {
                0..=2 => {
                    queue.push(item);
                    ring.push_back(item);
                }
                3 => {
                    // What is moved is in both halves.
                    (0..6).for_each(|more| other.push(item + more));
                    assert_eq!(other.pop(), Some(item));
                    other.push(item + 6);
                    queue.append(&mut other);
                    assert!(other.is_empty());
                    ring.extend(item + 1..item + 7);
                }
                4 => queue.shrink_to(10),
                _ => assert_eq!(queue.pop(), ring.pop_front()),
            }
            assert_eq!(queue.len(), ring.len());
            assert_eq!(queue.is_empty(), ring.is_empty());
        }
        assert!(std::iter::from_fn(|| queue.pop()).eq(ring), "and the rest");
    }
}

//! The callers that wait for a connection of one target, and how often a caller that does not wait may go
//! first.
//!
//! * Waiters are served in the order in which they came. Of what is ready (kept connections, and free places
//!   for new ones) the first waiter has the first, the second the second, and so on.
//! * A waiter for which something is ready has been called, unless it was handed that. It is on its way then,
//!   which takes as long as it takes to wake a thread.
//! * Meanwhile a caller that runs may take a kept connection and bring it back: no thread changes for that.
//!   [`passes`] callers may do so. After these, and when a called waiter comes, as many waiters are served by
//!   hand as there are connections, before the next caller may go first.
//! * That pays where a loan is shorter than a wake-up. Where fewer than [`worth`] callers went first before a
//!   called waiter came for nothing, a loan takes longer: the next connections are handed over, and twice as
//!   many each time, before it is tried again. So loans of others fill the time in which a waiter wakes up, and
//!   a waiter may have to be woken a second time.
//!
//! The shelf's lock guards it.

use crate::sync::{Condvar, Mutex};
use poller::Waiter;
use std::{collections::VecDeque, sync::Arc};

pub(super) struct Queue<C> {
    /// Longest first.
    waiting: VecDeque<Waiting<C>>,
    /// Callers that went first since the last waiter was served.
    passed: usize,
    /// Waiters that are to be served by hand before a caller may go first again.
    by_hand: u32,
    /// As many the next time.
    next_by_hand: u32,
}

/// What a target has.
#[derive(Clone, Copy)]
pub(super) struct Stock {
    /// Kept connections and free places.
    pub(super) ready: usize,
    /// All connections.
    pub(super) total: usize,
}

struct Waiting<C> {
    seat: Arc<Seat<C>>,
    called: bool,
}

/// Where a caller waits.
pub(super) struct Seat<C> {
    pub(super) news: Mutex<News<C>>,
    pub(super) changed: Condvar,
}

pub(super) struct News<C> {
    pub(super) given: Option<C>,
    /// There was something for it, and may be still.
    pub(super) called: bool,
}

/// Whose is what becomes ready.
pub(super) enum Turn<C> {
    /// Of no waiter.
    Free,
    /// It is kept for a waiter that is on its way.
    Called,
    /// It is kept for this one, which is to be woken when the lock is released.
    Call(Arc<Seat<C>>),
    /// It is to be handed to this one, which waits no longer, and to wake it then.
    Hand(Arc<Seat<C>>),
}

/// What a waiter finds.
pub(super) enum Arrival {
    /// There is something for it, and it waits no longer.
    Served,
    /// It was given something before.
    Given,
    /// Nothing is there.
    Early,
    /// Nothing is there, and it waits no longer.
    Left,
}

impl<C> Queue<C> {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            passed: 0,
            by_hand: 0,
            next_by_hand: FIRST_BY_HAND,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A caller waits, behind all others.
    pub(super) fn join(&mut self) -> Arc<Seat<C>> {
        let seat = Arc::new(Seat {
            news: Mutex::new(News {
                given: None,
                called: false,
            }),
            changed: Condvar::new(),
        });
        self.waiting.push_back(Waiting {
            seat: Arc::clone(&seat),
            called: false,
        });
        seat
    }

    /// Whether a caller that does not wait may have something, and notes that it has it.
    #[inline]
    pub(super) fn pass(&mut self, stock: Stock) -> bool {
        if stock.ready > self.waiting.len() {
            return true;
        }
        let may = stock.ready > 0 && self.is_open(stock);
        self.passed += usize::from(may);
        may
    }

    /// Callers may go first.
    fn is_open(&self, stock: Stock) -> bool {
        self.by_hand == 0 && self.passed < passes(stock.total)
    }

    /// Whose turn it is when one more becomes ready; `may_keep` says whether it can wait for its waiter.
    #[inline]
    pub(super) fn turn(&mut self, stock: Stock, may_keep: bool) -> Turn<C> {
        if !(may_keep && self.is_open(stock)) {
            let next = self.waiting.remove(stock.ready);
            return next.map_or(Turn::Free, |next| {
                self.served(stock);
                Turn::Hand(next.seat)
            });
        }
        let Some(next) = self.waiting.get_mut(stock.ready) else {
            return Turn::Free;
        };
        if next.called {
            return Turn::Called;
        }
        next.called = true;
        next.seat.news.lock().called = true;
        Turn::Call(Arc::clone(&next.seat))
    }

    /// A waiter looks for what it was called for, or for anything if it does not stay.
    pub(super) fn arrive(&mut self, seat: &Arc<Seat<C>>, stock: Stock, stays: bool) -> Arrival {
        let is_it = |waiting: &Waiting<C>| Arc::ptr_eq(&waiting.seat, seat);
        let Some(place) = self.waiting.iter().position(is_it) else {
            return Arrival::Given;
        };
        if place < stock.ready {
            self.waiting.remove(place);
            self.served(stock);
            return Arrival::Served;
        }
        if std::mem::take(&mut self.waiting[place].called) {
            self.was_vain(stock);
        }
        if stays {
            return Arrival::Early;
        }
        // All that is ready is of those before it.
        self.waiting.remove(place);
        Arrival::Left
    }

    /// A waiter was called, and others have taken what it was called for.
    fn was_vain(&mut self, stock: Stock) {
        if self.by_hand > 0 {
            // It is not the first to come for nothing.
            return;
        }
        if self.passed < worth(stock.total) {
            self.by_hand = self.next_by_hand;
            self.next_by_hand = (self.next_by_hand * 2).min(MOST_BY_HAND);
        } else {
            self.by_hand = round(stock);
        }
    }

    fn served(&mut self, stock: Stock) {
        if self.passed >= worth(stock.total) {
            self.next_by_hand = FIRST_BY_HAND;
        }
        if self.by_hand == 0 && self.passed > 0 {
            self.by_hand = round(stock);
        }
        self.passed = 0;
        self.by_hand = self.by_hand.saturating_sub(1);
    }

    /// All of them wait no longer.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Arc<Seat<C>>> {
        self.waiting.drain(..).map(|waiting| waiting.seat)
    }
}

impl<C> Seat<C> {
    /// The shelf is locked, so a caller whose time is up finds it here or leaves before.
    pub(super) fn give(&self, given: C) {
        self.news.lock().given = Some(given);
    }

    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }
}

impl<C: Send + 'static> Waiter for Seat<C> {
    fn wake(&self) {
        let news = self.news.lock();
        self.changed.notify_all();
        drop(news);
    }
}

/// How many callers may go first before waiters are served, if there are so many connections.
pub(super) fn passes(total: usize) -> usize {
    total.max(1).saturating_mul(PASSES_EACH)
}

/// How many waiters are served then.
fn round(stock: Stock) -> u32 {
    u32::try_from(stock.total.max(1)).unwrap_or(u32::MAX)
}

/// How many must have gone first for a loan to be shorter than a wake-up: each connection came and went.
fn worth(total: usize) -> usize {
    total.max(2)
}

// Few in models, so that they see the end of it.
const IN_MODELS: bool = cfg!(any(loom, shuttle));
const PASSES_EACH: usize = if IN_MODELS { 2 } else { 12 };
/// How many are served by hand after it did not pay, at first and at most.
const FIRST_BY_HAND: u32 = if IN_MODELS { 1 } else { 16 };
const MOST_BY_HAND: u32 = if IN_MODELS { 2 } else { 512 };

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// One connection, which is kept.
    const KEPT: Stock = Stock { ready: 1, total: 1 };
    /// One connection, which is lent.
    const LENT: Stock = Stock { ready: 0, total: 1 };

    fn queue(waiters: usize) -> (Queue<()>, Vec<Arc<Seat<()>>>) {
        let mut queue = Queue::new();
        let seats = (0..waiters).map(|_| queue.join()).collect();
        (queue, seats)
    }

    /// A connection comes back and others take it `first` times before the waiter comes. Whether there was
    /// nothing for it.
    fn is_late(queue: &mut Queue<()>, seat: &Arc<Seat<()>>, first: usize) -> bool {
        assert!(matches!(queue.turn(LENT, true), Turn::Call(its) if Arc::ptr_eq(&its, seat)));
        for n in 0..first {
            assert!(queue.pass(KEPT), "{n} of {first}");
            if n + 1 < first {
                assert!(
                    matches!(queue.turn(LENT, true), Turn::Called),
                    "one call is enough"
                );
            }
        }
        matches!(queue.arrive(seat, LENT, true), Arrival::Early)
    }

    /// How many are handed what comes back, before one is called.
    fn by_hand(queue: &mut Queue<()>) -> usize {
        let mut count = 0;
        loop {
            assert!(!queue.pass(LENT));
            match queue.turn(LENT, true) {
                Turn::Hand(_) => count += 1,
                _ => return count,
            }
        }
    }

    #[test]
    fn what_comes_back_next_is_of_a_waiter_called_in_vain() {
        for first in 1..=passes(1) {
            let (mut queue, seats) = queue(100);
            assert!(is_late(&mut queue, &seats[0], first));
            // No caller goes first now.
            assert!(!queue.pass(KEPT));
            assert!(
                matches!(queue.turn(LENT, true), Turn::Hand(seat) if Arc::ptr_eq(&seat, &seats[0]))
            );
        }
    }

    #[test]
    fn callers_go_first_so_often_and_not_once_more() {
        for total in [1, 2, 4, 64] {
            let (mut queue, seats) = queue(100);
            let handed = |queue: &mut Queue<()>, stock| {
                assert!(!queue.pass(stock));
                matches!(queue.turn(stock, true), Turn::Hand(_))
            };
            let (kept, lent) = (Stock { ready: 1, total }, Stock { ready: 0, total });
            assert!(matches!(queue.turn(lent, true), Turn::Call(_)));
            assert!((0..12 * total).all(|_| queue.pass(kept)));
            assert!(!queue.pass(kept));
            // It is on its way still, and finds it in its hands.
            assert!(
                matches!(queue.turn(lent, true), Turn::Hand(seat) if Arc::ptr_eq(&seat, &seats[0]))
            );
            assert!(matches!(
                queue.arrive(&seats[0], lent, true),
                Arrival::Given
            ));
            // With it as many are served as there are connections.
            assert!((1..total).all(|_| handed(&mut queue, lent)));
            assert!(queue.pass(kept));
        }
    }

    #[test]
    fn where_loans_are_long_waiters_are_served_by_hand() {
        let (mut queue, mut seats) = queue(3000);
        for times in [16, 32, 64, 128, 256, 512, 512] {
            assert!(is_late(&mut queue, &seats[0], 1));
            let mut count = 0;
            while matches!(queue.turn(LENT, false), Turn::Hand(_)) {
                seats.remove(0);
                count += 1;
                if count == times {
                    break;
                }
                assert!(!queue.pass(KEPT));
            }
            assert_eq!(count, times);
        }
        // Where they have become short, it is so for one.
        assert!(is_late(&mut queue, &seats[0], 2));
        assert_eq!(by_hand(&mut queue), 1);
        seats.remove(0);
        assert!(matches!(
            queue.arrive(&seats[0], KEPT, true),
            Arrival::Served
        ));
        seats.remove(0);
        assert!(is_late(&mut queue, &seats[0], 1));
        assert_eq!(by_hand(&mut queue), 16, "from the begin");
    }

    #[test]
    fn what_is_ready_is_of_the_first_by_their_places() {
        let (mut queue, seats) = queue(3);
        let stock = |ready| Stock { ready, total: 4 };
        for (ready, seat) in seats.iter().enumerate() {
            assert!(
                matches!(queue.turn(stock(ready), true), Turn::Call(its) if Arc::ptr_eq(&its, seat))
            );
        }
        assert!(matches!(queue.turn(stock(3), true), Turn::Free));
        // A caller has what is over, and passes by none.
        assert!(queue.pass(stock(4)));
        assert_eq!(queue.passed, 0);
        assert!(queue.pass(stock(3)));
        assert_eq!(queue.passed, 1);
        // The last is the one without.
        assert!(matches!(
            queue.arrive(&seats[2], stock(2), false),
            Arrival::Left
        ));
        assert!(matches!(
            queue.arrive(&seats[1], stock(2), true),
            Arrival::Served
        ));
        assert!(matches!(
            queue.arrive(&seats[0], stock(1), true),
            Arrival::Served
        ));
    }
}

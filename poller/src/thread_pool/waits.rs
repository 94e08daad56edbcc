//! Waits of pool threads that the pool may end.
//!
//! A call that is about to wait registers with [`begin_wait`]. If every thread of its pool is busy and work has
//! waited for too long, the waits that began first are ended.
//!
//! 1. Pool: sets the mark of the wait, under the lock of the list.
//! 2. Pool: calls [`Waiter::wake`], without the lock.
//! 3. Waiting thread: reads the mark before it sleeps, under the protection of its own wake-up.
//! 4. Waiting thread: removes its wait and reads the mark a last time.
//!
//! Invariant: the mark alone decides whether the wait was ended, so both threads agree. The wake-up follows the
//! mark, so a thread that sleeps does not miss it.
//!
//! Only a call that really waits is registered.

use std::{cell::RefCell, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use crate::{leadership::thread_context::before_blocking, sync::Mutex, sys::MonotonicNanos};

/// The object of a wait, as the thread that ends the wait sees it.
pub trait Waiter: Send + Sync + 'static {
    /// Has the waiting thread look at [`Waiting::was_ended`]. Called on another thread, without locks;
    /// may come late, when the wait is over. Must not block.
    fn wake(&self);
}

/// A registered wait; it is over when this is dropped.
#[must_use = "the wait is over when this is dropped"]
pub struct Waiting {
    /// `None` outside of pools: the wait cannot be ended.
    place: Option<(Arc<Waits>, u64)>,
}

/// The waits of one pool's threads.
pub(crate) struct Waits {
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    /// By number, so the ones that began first come first.
    waits: BTreeMap<u64, Wait>,
    next: u64,
    /// How many were ended since `ending_since`.
    ending: usize,
    ending_since: Option<MonotonicNanos>,
    ended: u64,
}

struct Wait {
    since: MonotonicNanos,
    on: Arc<dyn Waiter>,
    ended: bool,
}

thread_local! {
    /// Those of the pool that the thread belongs to.
    static OWN: RefCell<Option<Arc<Waits>>> = const { RefCell::new(None) };
}

/// As [`before_blocking`], for a wait that can be ended before its time.
///
/// On a thread of a [`WorkerPool`](crate::WorkerPool), those of a [`PollerGroup`](crate::PollerGroup)
/// included, the pool may end the wait when others need the thread
/// ([`WorkerPoolBuilder::overload_after`](crate::WorkerPoolBuilder::overload_after)): `on` is woken then,
/// and [`Waiting::was_ended`] is true.
pub fn begin_wait(on: Arc<dyn Waiter>) -> Waiting {
    before_blocking();
    let waits = OWN.try_with(|own| own.borrow().clone()).ok().flatten();
    Waiting {
        place: waits.map(|waits| {
            let number = waits.begin(on, MonotonicNanos::now());
            (waits, number)
        }),
    }
}

/// The calling thread belongs to the pool with these waits; to which it belonged before.
pub(crate) fn set_current(waits: Option<Arc<Waits>>) -> Option<Arc<Waits>> {
    OWN.try_with(|own| own.replace(waits)).ok().flatten()
}

impl Waiting {
    /// Whether others need the thread: the call is to return soon, with an error.
    pub fn was_ended(&self) -> bool {
        self.place
            .as_ref()
            .is_some_and(|(waits, number)| waits.is_ended(*number))
    }

    /// Whether the thread is one of a pool, which may end the wait.
    pub fn may_be_ended(&self) -> bool {
        self.place.is_some()
    }

    /// The wait is over; whether it was ended.
    pub fn finish(mut self) -> bool {
        self.leave()
    }

    fn leave(&mut self) -> bool {
        self.place
            .take()
            .is_some_and(|(waits, number)| waits.leave(number))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting")
            .field("was_ended", &self.was_ended())
            .finish()
    }
}

impl Waits {
    pub(crate) fn new() -> Self {
        Self {
            list: Mutex::new(List::default()),
        }
    }

    pub(crate) fn begin(&self, on: Arc<dyn Waiter>, since: MonotonicNanos) -> u64 {
        let mut list = self.list.lock();
        let number = list.next;
        list.next += 1;
        list.waits.insert(
            number,
            Wait {
                since,
                on,
                ended: false,
            },
        );
        number
    }

    pub(crate) fn is_ended(&self, number: u64) -> bool {
        let list = self.list.lock();
        list.waits.get(&number).is_some_and(|wait| wait.ended)
    }

    pub(crate) fn leave(&self, number: u64) -> bool {
        let wait = self.list.lock().waits.remove(&number);
        // What was waited on is dropped without the lock.
        wait.is_some_and(|wait| wait.ended)
    }

    /// Ends as many waits as work is overdue, the longest first; how many those were. A wait that is not as
    /// old as `pause` is left alone, and a thread whose wait was ended is given that time to take up the
    /// work, so no more than `overdue` are ended in it.
    pub(crate) fn end(&self, overdue: usize, now: MonotonicNanos, pause: Duration) -> usize {
        let mut list = self.list.lock();
        if list.ending_since.is_none_or(|since| since + pause <= now) {
            list.ending_since = Some(now);
            list.ending = 0;
        }
        let wanted = overdue.saturating_sub(list.ending);
        let ended: Vec<_> = list
            .waits
            .values_mut()
            .take_while(|wait| wait.since + pause <= now)
            .filter(|wait| !wait.ended)
            .take(wanted)
            .map(|wait| {
                wait.ended = true;
                wait.on.clone()
            })
            .collect();
        list.ending += ended.len();
        list.ended += ended.len() as u64;
        drop(list);
        for on in &ended {
            on.wake();
        }
        ended.len()
    }

    /// How many were ended so far.
    pub(crate) fn ended(&self) -> u64 {
        self.list.lock().ended
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::sync::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Waiter for Woken {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    const PAUSE: Duration = Duration::from_millis(10);

    #[test]
    fn the_longest_waits_are_ended_and_no_more_than_are_needed() {
        let (waits, on) = (Waits::new(), Arc::new(Woken::default()));
        let begin = MonotonicNanos::now();
        let numbers: Vec<u64> = (0..5)
            .map(|n| waits.begin(on.clone(), begin + PAUSE * n))
            .collect();
        let ended = || -> Vec<bool> { numbers.iter().map(|&n| waits.is_ended(n)).collect() };
        assert_eq!(waits.end(1, begin, PAUSE), 0, "none has waited for long");
        let now = begin + PAUSE * 3;
        assert_eq!(waits.end(2, now, PAUSE), 2);
        assert_eq!(ended(), [true, true, false, false, false]);
        assert_eq!(
            waits.end(2, now + PAUSE / 2, PAUSE),
            0,
            "two are on their way"
        );
        assert_eq!(waits.end(3, now + PAUSE / 2, PAUSE), 1);
        assert_eq!(
            waits.end(9, now + PAUSE, PAUSE),
            1,
            "the last began just now"
        );
        assert_eq!(ended(), [true, true, true, true, false]);
        assert_eq!(on.0.load(Ordering::SeqCst), 4);
        assert_eq!(waits.ended(), 4);
        assert!(waits.leave(numbers[0]) && !waits.leave(numbers[4]));
        assert!(!waits.leave(numbers[0]), "gone");
        assert_eq!(waits.end(9, now + PAUSE * 9, PAUSE), 0);
    }

    #[test]
    fn outside_of_pools_waits_are_never_ended() {
        let on = Arc::new(Woken::default());
        let waiting = begin_wait(on.clone());
        assert!(!waiting.was_ended() && !waiting.may_be_ended());
        assert!(!waiting.finish());
        assert_eq!(Arc::strong_count(&on), 1);
    }

    #[test]
    fn a_wait_belongs_to_the_pool_of_its_thread() {
        let (waits, on) = (Arc::new(Waits::new()), Arc::new(Woken::default()));
        set_current(Some(waits.clone()));
        let waiting = begin_wait(on.clone());
        assert_eq!(waits.end(1, MonotonicNanos::now() + PAUSE, PAUSE), 1);
        assert!(waiting.was_ended() && waiting.finish());
        drop(begin_wait(on.clone()));
        assert_eq!(waits.end(1, MonotonicNanos::now() + PAUSE * 9, PAUSE), 0);
        set_current(None);
        assert_eq!(Arc::strong_count(&on), 1);
    }
}

//! The pool's real books under loom (few threads, every interleaving up to the bound) and under
//! shuttle (many threads, random interleavings).

#[cfg(loom)]
use super::queue::passes;
use super::shelf::{Keep, Options, Rest, Shelf, Slot, Wait};
use crate::{
    error::Error,
    sync::{AtomicBool, AtomicUsize, Mutex, Ordering, thread},
};
use std::{io, sync::Arc, time::Duration};

/// A pool of made-up connections that counts how many there are.
struct Books {
    shelf: Shelf<u8, Fake>,
    exist: [Arc<AtomicUsize>; 2],
    max: usize,
}

struct Fake {
    usable: Arc<AtomicBool>,
    /// When it came back.
    was_dead: bool,
    number: u64,
    exist: Existence,
}

/// Counts as a connection until it is dropped.
struct Existence(Arc<AtomicUsize>);

/// Another thread looks at a connection that was closed: it exists until then.
struct Left(Arc<Mutex<Option<Existence>>>);

impl Keep for Fake {
    type Rest = Left;

    fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }

    fn is_alive(&self) -> bool {
        self.is_usable()
    }

    fn number(&self) -> u64 {
        self.number
    }

    fn close(self) -> Option<Left> {
        if self.number != LINGERS {
            return None;
        }
        Some(Left(Arc::new(Mutex::new(Some(self.exist)))))
    }
}

impl Rest for Left {
    /// Gone when it is asked for the second time.
    fn is_gone(&self) -> bool {
        self.0.lock().take().is_none()
    }
}

impl Drop for Existence {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Orders nothing, so the models need not see it.
fn next_number() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(LINGERS + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The number of a connection whose descriptor is open for a moment after its close.
const LINGERS: u64 = 7;

/// What happens to a connection, or instead of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It comes back sound.
    Returned,
    /// It comes back sound and dies while it is kept.
    Dies,
    /// It is dead when it comes back.
    Dead,
    /// It comes back unsound.
    Rejected,
    /// As [`Self::Rejected`], and its descriptor is not closed at once.
    Lingers,
    /// It cannot be dialled, if it has to be.
    Refused,
}

impl Books {
    fn new(max_total: usize, max_idle: usize) -> Arc<Self> {
        Arc::new(Self {
            shelf: Shelf::new(
                Options {
                    max_idle,
                    max_total,
                    idle_timeout: None,
                    wait: Some(Duration::from_secs(3600)),
                },
                // The models call what it would.
                Box::new(|_| {}),
            ),
            exist: [Arc::default(), Arc::default()],
            max: max_total,
        })
    }

    /// What `Pool::get` and the drop of what it returned do.
    fn call(&self, key: u8, fate: Fate) -> io::Result<()> {
        let (slot, kept) = self.shelf.checkout(&key, Wait::Usual)?;
        let fake = match kept {
            Some(kept) => kept,
            None if fate == Fate::Refused => {
                self.shelf.give_back(slot, |stats| stats.failed += 1);
                return Ok(());
            }
            None => self.dial(key),
        };
        assert!(!fake.was_dead, "a dead connection was handed out");
        self.restore(slot, fake, fate);
        Ok(())
    }

    fn dial(&self, key: u8) -> Fake {
        let exist = &self.exist[usize::from(key)];
        let before = exist.fetch_add(1, Ordering::AcqRel);
        assert!(before < self.max, "more connections than the limit");
        self.shelf.count(|stats| stats.dialled += 1);
        Fake {
            usable: Arc::new(AtomicBool::new(true)),
            was_dead: false,
            number: next_number(),
            exist: Existence(Arc::clone(exist)),
        }
    }

    fn restore(&self, slot: Slot, mut fake: Fake, fate: Fate) {
        let usable = Arc::clone(&fake.usable);
        if fate == Fate::Dead {
            fake.was_dead = true;
            usable.store(false, Ordering::Release);
        }
        if fate == Fate::Lingers {
            fake.number = LINGERS;
        }
        let number = fake.number;
        let rejected = match fate {
            Fate::Rejected | Fate::Lingers => Some(fake),
            _ => self.shelf.put_back(slot, fake),
        };
        if let Some(fake) = rejected {
            self.shelf.discard(slot, fake, |stats| stats.rejected += 1);
        }
        if fate == Fate::Dies {
            // As the poller does: first it is known, then it is said.
            usable.store(false, Ordering::Release);
            self.shelf.evict_one(slot, number);
        }
    }

    /// What the alarm does.
    fn settle(&self) {
        while self.shelf.stats().closing > 0 {
            self.shelf.see_to();
            thread::yield_now();
        }
    }

    /// Nobody has anything on loan: everything that exists is kept, and counted.
    fn check(&self) {
        self.settle();
        let stats = self.shelf.stats();
        assert_eq!(
            (stats.in_use, stats.waiting, stats.closing),
            (0, 0, 0),
            "{stats:?}"
        );
        let exist: usize = self.exist.iter().map(|n| n.load(Ordering::Acquire)).sum();
        assert_eq!(stats.idle, exist, "{stats:?}");
    }
}

fn is_shutting_down(result: &io::Result<()>) -> bool {
    let error = result.as_ref().err().and_then(Error::from_io);
    matches!(error, Some(Error::ShuttingDown))
}

#[cfg(loom)]
mod loom_models {
    use super::*;

    /// Two callers, one place: the second gets the connection or the place of the first.
    fn one_place(first: Fate, second: Fate) {
        loom::model(move || {
            let books = Books::new(1, 1);
            let other = Arc::clone(&books);
            let caller = thread::spawn(move || other.call(0, first).unwrap());
            books.call(0, second).unwrap();
            caller.join().unwrap();
            books.check();
            let stats = books.shelf.stats();
            assert_eq!(stats.reused + stats.dialled + stats.failed, 2);
            assert_eq!(stats.peak, 1);
        });
    }

    #[test]
    fn loom_a_waiting_caller_gets_what_comes_back() {
        one_place(Fate::Returned, Fate::Returned);
    }

    #[test]
    fn loom_a_waiting_caller_gets_the_place_of_a_refused_dial() {
        one_place(Fate::Refused, Fate::Returned);
    }

    #[test]
    fn loom_a_waiting_caller_gets_the_place_of_a_dead_or_rejected_one() {
        one_place(Fate::Dies, Fate::Returned);
        one_place(Fate::Dead, Fate::Returned);
        one_place(Fate::Rejected, Fate::Returned);
    }

    #[test]
    fn loom_a_waiting_caller_gets_a_place_whose_descriptor_is_closed_late() {
        loom::model(|| {
            let books = Books::new(1, 1);
            books.call(0, Fate::Lingers).unwrap();
            let other = Arc::clone(&books);
            let caller = thread::spawn(move || other.call(0, Fate::Returned).unwrap());
            // Twice, so that it is gone then.
            books.shelf.see_to();
            books.shelf.see_to();
            caller.join().unwrap();
            books.check();
            assert_eq!(books.shelf.stats().dialled, 2);
        });
    }

    #[test]
    fn loom_those_who_wait_are_served_in_their_order() {
        loom::model(|| {
            let books = Books::new(1, 1);
            let (slot, _) = books.shelf.checkout(&0, Wait::Usual).unwrap();
            let lent = books.dial(0);
            let served = Arc::new(Mutex::new(Vec::new()));
            let other = (Arc::clone(&books), Arc::clone(&served));
            let first = thread::spawn(move || {
                let (books, served) = other;
                let (slot, kept) = books.shelf.checkout(&0, Wait::Usual).unwrap();
                served.lock().push(1);
                books.restore(slot, kept.expect("the one that was lent"), Fate::Returned);
            });
            while books.shelf.stats().waiting == 0 {
                thread::yield_now();
            }
            let second = Arc::clone(&books);
            let log = Arc::clone(&served);
            let second = thread::spawn(move || {
                let (slot, kept) = second.shelf.checkout(&0, Wait::Usual).unwrap();
                log.lock().push(2);
                second.restore(slot, kept.expect("the same one"), Fate::Returned);
            });
            while books.shelf.stats().waiting == 1 {
                thread::yield_now();
            }
            books.restore(slot, lent, Fate::Returned);
            first.join().unwrap();
            second.join().unwrap();
            books.check();
            assert_eq!(*served.lock(), [1, 2]);
        });
    }

    #[test]
    fn loom_later_calls_go_first_as_often_as_promised() {
        loom::model(|| {
            let books = Books::new(1, 1);
            let (slot, _) = books.shelf.checkout(&0, Wait::Usual).unwrap();
            let mut lent = books.dial(0);
            let served = Arc::new(AtomicBool::new(false));
            let (other, is_served) = (Arc::clone(&books), Arc::clone(&served));
            let waiter = thread::spawn(move || {
                let (slot, kept) = other.shelf.checkout(&0, Wait::Usual).unwrap();
                is_served.store(true, Ordering::Release);
                other.restore(slot, kept.expect("the one that was lent"), Fate::Returned);
            });
            while books.shelf.stats().waiting == 0 {
                thread::yield_now();
            }
            let mut first = 0;
            loop {
                books.restore(slot, lent, Fate::Returned);
                let (_, kept) = books.shelf.checkout(&0, Wait::Usual).unwrap();
                lent = kept.expect("the same one");
                if served.load(Ordering::Acquire) {
                    break;
                }
                first += 1;
                assert!(first <= passes(1), "more callers go first than promised");
            }
            books.restore(slot, lent, Fate::Returned);
            waiter.join().unwrap();
            books.check();
        });
    }

    #[test]
    fn loom_a_caller_whose_time_is_up_takes_what_it_was_given_or_nothing() {
        in_no_time(Fate::Returned);
        in_no_time(Fate::Rejected);
    }

    fn in_no_time(fate: Fate) {
        loom::model(move || {
            let books = Books::new(1, 1);
            let (slot, _) = books.shelf.checkout(&0, Wait::Usual).unwrap();
            let lent = books.dial(0);
            let other = Arc::clone(&books);
            let caller = thread::spawn(move || {
                if let Some((slot, kept)) = other.shelf.checkout_in_no_time(&0) {
                    let fake = kept.unwrap_or_else(|| other.dial(0));
                    other.restore(slot, fake, Fate::Returned);
                }
            });
            books.restore(slot, lent, fate);
            caller.join().unwrap();
            books.check();
        });
    }

    #[test]
    fn loom_close_ends_a_wait_and_what_comes_back_later() {
        loom::model(|| {
            let books = Books::new(1, 1);
            let (slot, kept) = books.shelf.checkout(&0, Wait::Usual).unwrap();
            assert!(kept.is_none());
            let lent = books.dial(0);
            let other = Arc::clone(&books);
            let caller = thread::spawn(move || other.call(0, Fate::Returned));
            books.shelf.close();
            books.restore(slot, lent, Fate::Returned);
            assert!(is_shutting_down(&caller.join().unwrap()));
            books.check();
            assert_eq!(books.shelf.stats().idle, 0);
        });
    }

    #[test]
    fn loom_eviction_and_a_caller_do_not_both_take_one() {
        loom::model(|| {
            let books = Books::new(1, 1);
            let (slot, _) = books.shelf.checkout(&0, Wait::Usual).unwrap();
            let fake = books.dial(0);
            let (usable, number) = (Arc::clone(&fake.usable), fake.number);
            assert!(books.shelf.put_back(slot, fake).is_none());
            usable.store(false, Ordering::Release);
            let other = Arc::clone(&books);
            let evictor = thread::spawn(move || other.shelf.evict_one(slot, number));
            books.call(0, Fate::Returned).unwrap();
            evictor.join().unwrap();
            books.check();
            let stats = books.shelf.stats();
            assert_eq!(stats.discarded, 1, "once, by whom ever");
            assert_eq!((stats.dialled, stats.idle), (2, 1));
        });
    }
}

#[cfg(shuttle)]
mod shuttle_models {
    use super::*;
    use shuttle::rand::{Rng, thread_rng};

    fn any_fate() -> Fate {
        let fates = [
            Fate::Returned,
            Fate::Dies,
            Fate::Dead,
            Fate::Rejected,
            Fate::Lingers,
            Fate::Refused,
        ];
        fates[thread_rng().gen_range(0..fates.len())]
    }

    fn callers(books: &Arc<Books>, threads: u8, calls: usize) -> Vec<thread::JoinHandle<usize>> {
        (0..threads)
            .map(|n| {
                let books = Arc::clone(books);
                thread::spawn(move || {
                    (0..calls)
                        .map(|_| books.call(n % 2, any_fate()))
                        .filter(|result| {
                            assert!(result.is_ok() || is_shutting_down(result), "{result:?}");
                            result.is_ok()
                        })
                        .count()
                })
            })
            .collect()
    }

    #[test]
    fn shuttle_many_callers_share_few_connections() {
        crate::sync::check_schedules(|| {
            let books = Books::new(2, 2);
            let callers = callers(&books, 6, 3);
            // Plays the alarm, and a caller of `evict`.
            let (other, over) = (Arc::clone(&books), Arc::new(AtomicBool::new(false)));
            let is_over = Arc::clone(&over);
            let evictor = thread::spawn(move || {
                while !is_over.load(Ordering::Acquire) {
                    other.shelf.see_to();
                    other.shelf.evict();
                    thread::yield_now();
                }
            });
            let served: usize = callers.into_iter().map(|t| t.join().unwrap()).sum();
            over.store(true, Ordering::Release);
            evictor.join().unwrap();
            assert_eq!(served, 18);
            books.check();
            let stats = books.shelf.stats();
            assert_eq!(stats.reused + stats.dialled + stats.failed, 18);
            assert_eq!(
                stats.dialled,
                stats.idle as u64 + stats.discarded + stats.rejected
            );
            assert!(stats.peak <= 4, "{stats:?}");
        });
    }

    #[test]
    fn shuttle_close_reaches_every_caller() {
        crate::sync::check_schedules(|| {
            let books = Books::new(1, 1);
            let callers = callers(&books, 5, 3);
            books.shelf.close();
            books.settle();
            // Nobody is left waiting, nothing is kept.
            let served: usize = callers.into_iter().map(|t| t.join().unwrap()).sum();
            assert!(served <= 15);
            books.check();
            assert_eq!(books.shelf.stats().idle, 0);
            assert!(is_shutting_down(&books.call(0, Fate::Returned)));
        });
    }
}

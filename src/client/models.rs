//! The pool's real books under loom (few threads, every interleaving up to the bound) and under
//! shuttle (many threads, random interleavings).

use super::shelf::{Keep, Options, Shelf, Slot};
use crate::{
    error::Error,
    sync::{AtomicBool, AtomicUsize, Ordering, thread},
};
use std::{io, sync::Arc, time::Duration};

/// A pool of made-up connections that counts how many there are.
struct Books {
    shelf: Shelf<u8, Fake>,
    exist: [Arc<AtomicUsize>; 2],
    max: usize,
}

struct Fake {
    usable: AtomicBool,
    exist: Arc<AtomicUsize>,
}

impl Keep for Fake {
    fn is_usable(&self) -> bool {
        self.usable.load(Ordering::Acquire)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.exist.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What happens to a connection, or instead of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It comes back sound.
    Returned,
    /// It comes back sound and dies while it is kept.
    Dies,
    /// It comes back unsound.
    Rejected,
    /// It cannot be dialled, if it has to be.
    Refused,
}

impl Books {
    fn new(max_total: usize, max_idle: usize) -> Arc<Self> {
        Arc::new(Self {
            shelf: Shelf::new(Options {
                max_idle,
                max_total,
                idle_timeout: None,
                wait: Some(Duration::from_secs(3600)),
            }),
            exist: [Arc::default(), Arc::default()],
            max: max_total,
        })
    }

    /// What `Pool::get` and the drop of what it returned do.
    fn call(&self, key: u8, fate: Fate) -> io::Result<()> {
        let (slot, kept) = self.shelf.checkout(&key)?;
        let fake = match kept {
            Some(kept) => kept,
            None if fate == Fate::Refused => {
                self.shelf.give_back(slot, |stats| stats.failed += 1);
                return Ok(());
            }
            None => self.dial(key),
        };
        assert!(fake.is_usable(), "a dead connection was handed out");
        self.restore(slot, fake, fate);
        Ok(())
    }

    fn dial(&self, key: u8) -> Fake {
        let exist = &self.exist[usize::from(key)];
        let before = exist.fetch_add(1, Ordering::AcqRel);
        assert!(before < self.max, "more connections than the limit");
        self.shelf.count(|stats| stats.dialled += 1);
        Fake {
            usable: AtomicBool::new(true),
            exist: Arc::clone(exist),
        }
    }

    fn restore(&self, slot: Slot, fake: Fake, fate: Fate) {
        if fate == Fate::Dies {
            fake.usable.store(false, Ordering::Release);
        }
        let rejected = if fate == Fate::Rejected {
            Some(fake)
        } else {
            self.shelf.keep(slot, fake)
        };
        if rejected.is_some() {
            drop(rejected);
            self.shelf.give_back(slot, |stats| stats.rejected += 1);
        }
    }

    /// Nobody has anything on loan: everything that exists is kept, and counted.
    fn check(&self) {
        let stats = self.shelf.stats();
        assert_eq!(stats.in_use, 0, "{stats:?}");
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
        one_place(Fate::Rejected, Fate::Returned);
    }

    #[test]
    fn loom_close_ends_a_wait_and_what_comes_back_later() {
        loom::model(|| {
            let books = Books::new(1, 1);
            let (slot, kept) = books.shelf.checkout(&0).unwrap();
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
            books.call(0, Fate::Dies).unwrap();
            let other = Arc::clone(&books);
            let evictor = thread::spawn(move || other.shelf.evict() as u64);
            books.call(0, Fate::Returned).unwrap();
            let evicted = evictor.join().unwrap();
            books.check();
            let stats = books.shelf.stats();
            assert!(evicted <= 1);
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
        [Fate::Returned, Fate::Dies, Fate::Rejected, Fate::Refused][thread_rng().gen_range(0..4)]
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
            let evictor = Arc::clone(&books);
            let evictor = thread::spawn(move || {
                for _ in 0..3 {
                    evictor.shelf.evict();
                    thread::yield_now();
                }
            });
            let served: usize = callers.into_iter().map(|t| t.join().unwrap()).sum();
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
            // Nobody is left waiting, nothing is kept.
            let served: usize = callers.into_iter().map(|t| t.join().unwrap()).sum();
            assert!(served <= 15);
            books.check();
            assert_eq!(books.shelf.stats().idle, 0);
            assert!(is_shutting_down(&books.call(0, Fate::Returned)));
        });
    }
}

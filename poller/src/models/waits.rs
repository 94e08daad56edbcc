//! Waits that the pool ends: the pool and the waiting call agree, and no wake-up is lost.

use std::{sync::Arc, time::Duration};

use crate::{
    sync::{AtomicUsize, Condvar, Mutex, Ordering, thread},
    sys::MonotonicNanos,
    thread_pool::waits::{Waiter, Waits},
};

/// What is waited for, in the way of a connection.
#[derive(Default)]
struct Thing {
    ready: Mutex<bool>,
    changed: Condvar,
    waits: Arc<List>,
}

struct List(Waits);

impl Default for List {
    fn default() -> Self {
        Self(Waits::new())
    }
}

impl Waiter for Thing {
    fn wake(&self) {
        let ready = self.ready.lock();
        self.changed.notify_all();
        drop(ready);
    }
}

impl Thing {
    /// Whether the wait was ended.
    fn wait(&self, number: u64) -> bool {
        let mut ready = self.ready.lock();
        while !*ready && !self.waits.0.is_ended(number) {
            self.changed.wait(&mut ready);
        }
        drop(ready);
        self.waits.0.leave(number)
    }

    fn make_ready(&self) {
        *self.ready.lock() = true;
        self.changed.notify_all();
    }

    fn end(&self, at_most: usize) -> usize {
        self.waits.0.end(at_most, at(1), Duration::ZERO)
    }
}

fn at(time: u64) -> MonotonicNanos {
    MonotonicNanos::from_bits(time)
}

#[test]
fn loom_a_wait_that_is_ended_is_over() {
    loom::model(|| {
        let thing = Arc::new(Thing::default());
        let number = thing.waits.0.begin(thing.clone(), at(0));
        let waiting = thread::spawn({
            let thing = thing.clone();
            move || thing.wait(number)
        });
        assert_eq!(thing.end(1), 1);
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn loom_whoever_ends_a_wait_and_the_call_agree() {
    loom::model(|| {
        let thing = Arc::new(Thing::default());
        let number = thing.waits.0.begin(thing.clone(), at(0));
        let ended = Arc::new(AtomicUsize::new(0));
        let ending = thread::spawn({
            let (thing, ended) = (thing.clone(), ended.clone());
            move || ended.store(thing.end(2), Ordering::Relaxed)
        });
        let readying = thread::spawn({
            let thing = thing.clone();
            move || thing.make_ready()
        });
        let was_ended = thing.wait(number);
        ending.join().unwrap();
        readying.join().unwrap();
        assert_eq!(was_ended, ended.load(Ordering::Relaxed) == 1);
        assert_eq!(thing.end(1), 0, "it has left");
    });
}

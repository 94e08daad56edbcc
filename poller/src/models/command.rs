//! The command queue: no push goes unnoticed by a poller that sleeps or is about to.

use std::sync::Arc;

use crate::{
    reactor::command::CommandQueue,
    sync::{AtomicUsize, Condvar, Mutex, Ordering, thread},
    sys::Wake,
};

/// An eventfd: a wake makes the current or the next wait return.
#[derive(Default)]
struct Eventfd {
    raised: Mutex<bool>,
    changed: Condvar,
    writes: AtomicUsize,
}

impl Eventfd {
    fn wait(&self) {
        let mut raised = self.raised.lock();
        while !*raised {
            self.changed.wait(&mut raised);
        }
        *raised = false;
    }
}

struct Waker(Arc<Eventfd>);

impl Wake for Waker {
    fn wake(&self) {
        self.0.writes.fetch_add(1, Ordering::Relaxed);
        *self.0.raised.lock() = true;
        self.0.changed.notify_one();
    }
}

/// The leader's side: sleeps whenever it may, until `count` commands came.
fn collect(queue: &CommandQueue<u32, Waker>, eventfd: &Eventfd, count: usize) -> Vec<u32> {
    let mut all = Vec::new();
    let mut batch = Vec::new();
    while all.len() < count {
        if queue.fall_asleep() {
            eventfd.wait();
        }
        queue.drain(&mut batch);
        all.append(&mut batch);
    }
    all
}

#[test]
fn loom_every_push_reaches_a_sleeping_poller() {
    loom::model(|| {
        let eventfd = Arc::new(Eventfd::default());
        let queue = Arc::new(CommandQueue::new(Waker(eventfd.clone())));
        let pushers: Vec<_> = [[1, 2], [11, 12]]
            .into_iter()
            .map(|items| {
                let queue = queue.clone();
                thread::spawn(move || {
                    items
                        .into_iter()
                        .filter(|&n| queue.push(n) == Ok(true))
                        .count()
                })
            })
            .collect();
        let all = collect(&queue, &eventfd, 4);
        let woken: usize = pushers
            .into_iter()
            .map(|pusher| pusher.join().unwrap())
            .sum();
        assert_eq!(woken, eventfd.writes.load(Ordering::Relaxed));
        // One thread's order is kept.
        let own = |range: std::ops::Range<u32>| {
            all.iter()
                .copied()
                .filter(|n| range.contains(n))
                .collect::<Vec<_>>()
        };
        assert_eq!(own(0..10), [1, 2]);
        assert_eq!(own(10..20), [11, 12]);
    });
}

#[test]
fn loom_a_closing_queue_takes_or_refuses_but_never_swallows() {
    loom::model(|| {
        let eventfd = Arc::new(Eventfd::default());
        let queue = Arc::new(CommandQueue::new(Waker(eventfd.clone())));
        let pusher = thread::spawn({
            let queue = queue.clone();
            move || {
                [1, 2]
                    .into_iter()
                    .filter(|&n| queue.push(n).is_err())
                    .count()
            }
        });
        let mut batch = Vec::new();
        queue.drain(&mut batch);
        let left = queue.close();
        let refused = pusher.join().unwrap();
        assert_eq!(batch.len() + left.len() + refused, 2);
        assert!(!queue.fall_asleep());
        assert_eq!(queue.push(3), Err(3));
    });
}

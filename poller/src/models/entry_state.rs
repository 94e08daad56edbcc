//! Wakes and timers: nothing asked for is forgotten, nothing fires twice.

use std::sync::Arc;

use crate::{
    reactor::entry_state::{Fired, PendingFlag, TimerState},
    sync::{AtomicUsize, Ordering, thread},
};

/// Two threads leave something and wake; the server looks after each request queued. What was left
/// before a coalesced wake is seen.
#[test]
fn loom_a_coalesced_wake_delivers_what_came_before_it() {
    loom::model(|| {
        let wake = Arc::new(PendingFlag::new());
        let left = Arc::new(AtomicUsize::new(0));
        let queue = Arc::new(AtomicUsize::new(0));
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (wake, left, queue) = (wake.clone(), left.clone(), queue.clone());
                thread::spawn(move || {
                    left.fetch_add(1, Ordering::Relaxed);
                    if wake.try_set() {
                        queue.fetch_add(1, Ordering::Release);
                    }
                })
            })
            .collect();
        let mut seen = 0;
        let mut look = || {
            if queue.load(Ordering::Acquire) > 0 {
                queue.fetch_sub(1, Ordering::AcqRel);
                wake.clear();
                seen = left.load(Ordering::Relaxed);
            }
        };
        look();
        for waker in wakers {
            waker.join().unwrap();
        }
        // Whatever is queued now is served; afterwards everything must have been seen, although the
        // last look may have been the one that raced the wakers.
        look();
        look();
        assert_eq!(queue.load(Ordering::Relaxed), 0);
        assert_eq!(seen, 2);
    });
}

/// A deadline is moved while the wheel looks. It fires once, or the wheel knows when to look next.
#[test]
fn loom_a_timer_set_anew_while_it_fires_is_not_forgotten() {
    for new in [Some(4), Some(9), None] {
        loom::model(move || {
            let timer = Arc::new(TimerState::new());
            assert!(timer.set(Some(5)));
            assert_eq!(timer.arm(), Some(5));
            let setter = thread::spawn({
                let timer = timer.clone();
                move || timer.set(new)
            });
            let fired = timer.fire(5);
            let command = setter.join().unwrap();
            let armed = match fired {
                Fired::NotYet(Some(tick)) => Some(tick),
                _ => None,
            };
            let armed = if command {
                timer.arm().or(armed)
            } else {
                armed
            };
            match (fired, new, armed) {
                // The old deadline fired before it was cleared, or the new one, early as it is.
                (Fired::Due, None | Some(4), None) => {}
                (_, Some(new), Some(armed)) => assert!(armed <= new),
                (Fired::NotYet(_), None, None) => {}
                other => panic!("{other:?}"),
            }
        });
    }
}

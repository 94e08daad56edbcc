//! Jobs for threads that are not ours: each is seen by the monitor before it rests, or calls it.

use std::time::Duration;

use crate::{ExecutorQueue, ExecutorThreads, sync::thread, sys::MonotonicNanos};

fn at(time: u64) -> MonotonicNanos {
    MonotonicNanos::from_bits(time)
}

#[test]
fn loom_a_job_is_seen_or_calls() {
    loom::model(|| {
        let queue = ExecutorQueue::new(&ExecutorThreads::default(), Some(Duration::from_nanos(10)));
        let (first, calls) = queue.count();
        assert!(calls);
        let submitting = thread::spawn({
            let queue = queue.clone();
            move || queue.count()
        });
        // It may be open still, or closed already, where the second job looks.
        assert!(queue.watched().backlog(at(1)).waits);
        queue.withdraw(first);
        let seen = queue.watched().backlog(at(2)).waits;
        let rests = queue.watched().rest();
        let (second, calls) = submitting.join().unwrap();
        assert!(
            calls || seen || !rests,
            "it is neither seen nor does it call"
        );
        if rests {
            queue.withdraw(second);
            assert!(queue.watched().rest());
        }
        let after = queue.watched().backlog(at(100));
        assert_eq!(after.waits, !rests);
        if !rests {
            queue.withdraw(second);
        }
        assert!(
            !queue.watched().backlog(at(200)).waits,
            "none is counted twice"
        );
    });
}

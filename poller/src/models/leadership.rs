//! The leadership: never lost, never left behind by a runner that waits, watched whenever it must be.

use std::{sync::Arc, time::Duration};

use crate::{
    leadership::{Leadership, LocalSlot, ShareTerms},
    sync::{AtomicUsize, Condvar, Mutex, Ordering, thread},
    sys::MonotonicNanos,
};

/// The reactor of these models: counts those who hold it.
struct Reactor {
    holders: Arc<AtomicUsize>,
}

impl Reactor {
    fn take(&self) {
        assert_eq!(
            self.holders.fetch_add(1, Ordering::SeqCst),
            0,
            "two leaders"
        );
    }

    fn leave(&self) {
        self.holders.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A leadership whose first leader is the caller, its reactor, and the leader's local slot: one release was made and
/// reacquired, so that the next one is in the local slot.
fn led() -> (Arc<Leadership<Reactor>>, Box<Reactor>, LocalSlot<Reactor>) {
    let leadership = Arc::new(Leadership::new(
        Box::new(Reactor {
            holders: Arc::default(),
        }),
        Duration::from_millis(1),
    ));
    let reactor = leadership.claim().expect("the first leader is wanted");
    reactor.take();
    let local_slot = LocalSlot::new(1);
    let number = release(&leadership, &local_slot, reactor);
    let reactor = leadership
        .reacquire(&local_slot, number)
        .expect("nobody else is there");
    reactor.take();
    (leadership, reactor, local_slot)
}

fn release(
    leadership: &Leadership<Reactor>,
    local_slot: &LocalSlot<Reactor>,
    reactor: Box<Reactor>,
) -> u64 {
    reactor.leave();
    leadership
        .release(
            local_slot,
            reactor,
            ShareTerms::EXCLUSIVE,
            0,
            MonotonicNanos::now(),
        )
        .number
}

/// What a thread does when its run returned.
fn back(
    leadership: &Leadership<Reactor>,
    local_slot: &LocalSlot<Reactor>,
    number: u64,
) -> Option<Box<Reactor>> {
    leadership
        .reacquire(local_slot, number)
        .or_else(|| leadership.try_resume_leading(number, false))
}

/// A promoted thread.
fn accept(leadership: &Leadership<Reactor>) -> Option<Box<Reactor>> {
    let reactor = leadership.claim()?;
    reactor.take();
    Some(reactor)
}

#[test]
fn loom_a_waiting_runner_is_replaced_once() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        let number = release(&leadership, &local_slot, reactor);
        // The runner says that it waits, the monitor finds out at the same time.
        let askers: Vec<_> = (0..2)
            .map(|_| {
                let leadership = leadership.clone();
                thread::spawn(move || {
                    leadership
                        .request_handoff(number)
                        .then(|| accept(&leadership).is_some())
                })
            })
            .collect();
        let sent: Vec<_> = askers
            .into_iter()
            .filter_map(|asker| asker.join().unwrap())
            .collect();
        assert_eq!(sent, [true], "one thread is sent and becomes the leader");
        assert!(back(&leadership, &local_slot, number).is_none());
    });
}

#[test]
fn loom_a_late_promotion_does_not_miss_the_next_waiting_run() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        let first = release(&leadership, &local_slot, reactor);
        // The monitor suspects the first run, which ends just now.
        let monitor = thread::spawn({
            let leadership = leadership.clone();
            move || {
                leadership
                    .request_handoff(first)
                    .then(|| accept(&leadership).is_some())
                    .unwrap_or(false)
            }
        });
        let mut leads = false;
        if let Some(reactor) = back(&leadership, &local_slot, first) {
            reactor.take();
            let second = release(&leadership, &local_slot, reactor);
            // This run waits for ever, after saying so.
            leads = leadership
                .request_handoff(second)
                .then(|| accept(&leadership).is_some())
                .unwrap_or(false);
        }
        let monitor_leads = monitor.join().unwrap();
        assert!(
            leads ^ monitor_leads,
            "exactly one thread took over: {leads} {monitor_leads}"
        );
    });
}

#[test]
fn loom_a_returning_runner_replaces_a_promotion_that_does_not_arrive() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        let first = release(&leadership, &local_slot, reactor);
        assert!(leadership.request_handoff(first));
        // The promoted thread leads, and its own run waits; the thread sent for that is queued
        // behind a full pool.
        let promoted = thread::spawn({
            let leadership = leadership.clone();
            move || {
                let reactor = accept(&leadership)?;
                let second = release(&leadership, &LocalSlot::new(2), reactor);
                assert!(leadership.request_handoff(second));
                Some(second)
            }
        });
        let returned = back(&leadership, &local_slot, first);
        if let Some(reactor) = &returned {
            reactor.take();
        }
        let waiting = promoted.join().unwrap();
        match (returned, waiting) {
            // The runner was back before, or after, the second run began to wait: it leads.
            (Some(reactor), _) => {
                drop(reactor);
                assert!(accept(&leadership).is_none());
            }
            // It was back in between and has left: the queued thread will lead.
            (None, Some(_)) => assert!(accept(&leadership).is_some()),
            (None, None) => panic!("the role is lost"),
        }
    });
}

/// The monitor borrows the reactor while the promoted thread arrives after all and the run returns.
#[test]
fn loom_a_core_that_is_lent_is_lost_to_nobody() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        let first = release(&leadership, &local_slot, reactor);
        assert!(leadership.request_handoff(first));
        let promoted = thread::spawn({
            let leadership = leadership.clone();
            move || accept(&leadership).is_some()
        });
        let monitor = thread::spawn({
            let leadership = leadership.clone();
            move || {
                let reactor = leadership.borrow()?;
                reactor.take();
                reactor.leave();
                Some(leadership.return_borrowed(reactor))
            }
        });
        let returned = back(&leadership, &local_slot, first)
            .inspect(|reactor| reactor.take())
            .is_some();
        let promoted = promoted.join().unwrap();
        match monitor.join().unwrap() {
            // Who was under way came during the loan: another is sent.
            Some(true) => {
                assert!(!promoted);
                assert!(returned ^ accept(&leadership).is_some());
            }
            lent => assert!(returned ^ promoted, "{returned} {promoted} {lent:?}"),
        }
    });
}

#[test]
fn loom_no_deposit_goes_unwatched() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        leadership.resume_monitor();
        let (seen, called) = (2, Arc::new((Mutex::new(false), Condvar::new())));
        let monitor = thread::spawn({
            let (leadership, called) = (leadership.clone(), called.clone());
            move || {
                if leadership.try_stop_monitor(seen) {
                    let mut there = called.0.lock();
                    while !*there {
                        called.1.wait(&mut there);
                    }
                }
                // Awake: sees the release, or will look again.
            }
        });
        reactor.leave();
        let needs_monitor = leadership
            .release(
                &local_slot,
                reactor,
                ShareTerms::EXCLUSIVE,
                0,
                MonotonicNanos::now(),
            )
            .needs_monitor;
        if needs_monitor {
            *called.0.lock() = true;
            called.1.notify_one();
        }
        monitor.join().unwrap();
    });
}

#[test]
fn loom_promotion_races_reclaim_and_nobody_leads_twice() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        let number = release(&leadership, &local_slot, reactor);
        let promoted = thread::spawn({
            let leadership = leadership.clone();
            move || {
                if leadership.request_any_handoff() {
                    accept(&leadership)
                } else {
                    None
                }
            }
        });
        let reclaimed = back(&leadership, &local_slot, number);
        if let Some(reactor) = &reclaimed {
            reactor.take();
        }
        let promoted = promoted.join().unwrap();
        assert!(reclaimed.is_some() ^ promoted.is_some());
    });
}

/// The sides of a shared batch: a thread that looks for the reactor while the leader releases it and
/// then waits for ever. The thread that counted as helper has to get the reactor.
#[test]
fn loom_a_shared_deposit_finds_its_next_leader() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        let now = MonotonicNanos::now();
        // The batch is shared already, so that there is something to look for.
        reactor.leave();
        let first = leadership
            .release(&local_slot, reactor, ShareTerms::shared(1), 0, now)
            .number;
        let reactor = back(&leadership, &local_slot, first).expect("nobody is there yet");
        let looker = thread::spawn({
            let leadership = leadership.clone();
            move || {
                if !leadership.begin_steal() {
                    return false;
                }
                let reactor = leadership
                    .try_steal(false)
                    .or_else(|| leadership.try_steal(true));
                reactor.inspect(|reactor| reactor.take()).is_some()
            }
        });
        let release = leadership.release(&local_slot, reactor, ShareTerms::shared(1), 0, now);
        let mut sent = false;
        if release.needs_helpers && leadership.request_helpers(release.number, now) > 0 {
            sent = accept(&leadership).is_some();
        }
        let found = looker.join().unwrap();
        assert!(found ^ sent, "found: {found}, sent: {sent}, {release:?}");
    });
}

/// A run that returns from detached counts as cover until the moment it looks for the reactor itself.
#[test]
fn loom_a_returning_run_takes_the_deposit_it_covered() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        let now = MonotonicNanos::now();
        reactor.leave();
        let first = leadership
            .release(&local_slot, reactor, ShareTerms::shared(1), 0, now)
            .number;
        assert!(leadership.request_helpers(first, now) > 0);
        let reactor = accept(&leadership).expect("shared");
        // The first run is detached and ends now, while the second begins to wait.
        let returning = thread::spawn({
            let leadership = leadership.clone();
            move || {
                let reactor = back(&leadership, &local_slot, first).or_else(|| {
                    if leadership.begin_steal() {
                        leadership.try_steal(true)
                    } else {
                        None
                    }
                });
                reactor.inspect(|reactor| reactor.take()).is_some()
            }
        });
        reactor.leave();
        let second = leadership.release(&LocalSlot::new(2), reactor, ShareTerms::shared(1), 0, now);
        let mut sent = false;
        if second.needs_helpers && leadership.request_helpers(second.number, now) > 0 {
            sent = accept(&leadership).is_some();
        }
        let took = returning.join().unwrap();
        assert!(took ^ sent, "took: {took}, sent: {sent}, {second:?}");
    });
}

/// Others look at the local slot while its owner, whose runs are short, releases and reclaims: each time the
/// owner has its reactor back, and the monitor sees no release of the past where there is none.
#[test]
fn loom_a_look_at_the_seat_takes_nothing_from_its_owner() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        leadership.resume_monitor();
        let monitor = thread::spawn({
            let leadership = leadership.clone();
            move || {
                let before = leadership
                    .snapshot()
                    .map_or(0, |observation| observation.number);
                assert!(!leadership.request_handoff(2), "that run is over");
                let after = leadership.snapshot();
                assert!(after.is_none_or(|observation| observation.number >= before));
            }
        });
        let mut reactor = reactor;
        for number in 3..=4 {
            assert_eq!(release(&leadership, &local_slot, reactor), number);
            reactor = leadership
                .reacquire(&local_slot, number)
                .expect("nobody wants it");
            reactor.take();
        }
        monitor.join().unwrap();
    });
}

/// The run whose reactor was taken returns while the new leader releases in its own local slot.
#[test]
fn loom_a_seat_is_out_of_reach_of_the_last_leader() {
    loom::model(|| {
        let (leadership, reactor, local_slot) = led();
        let first = release(&leadership, &local_slot, reactor);
        assert!(leadership.request_handoff(first));
        let promoted = thread::spawn({
            let leadership = leadership.clone();
            move || {
                let Some(mut reactor) = accept(&leadership) else {
                    return false;
                };
                let local_slot = LocalSlot::new(2);
                for _ in 0..2 {
                    let number = release(&leadership, &local_slot, reactor);
                    reactor = leadership
                        .reacquire(&local_slot, number)
                        .expect("nobody wants it");
                    reactor.take();
                }
                reactor.leave();
                true
            }
        });
        let returned = back(&leadership, &local_slot, first);
        if let Some(reactor) = &returned {
            reactor.take();
        }
        assert!(promoted.join().unwrap() ^ returned.is_some());
    });
}

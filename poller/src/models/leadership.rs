//! The role: never lost, never left behind by a runner that waits, watched whenever it must be.

use std::{sync::Arc, time::Duration};

use crate::{
    leadership::{Role, Seat, Terms},
    sync::{AtomicUsize, Condvar, Mutex, Ordering, thread},
    sys::Moment,
};

/// The core of these models: counts those who hold it.
struct Core {
    holders: Arc<AtomicUsize>,
}

impl Core {
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

/// A role whose first leader is the caller, its core, and the leader's seat: one deposit was made and
/// reclaimed, so that the next one is in the seat.
fn led() -> (Arc<Role<Core>>, Box<Core>, Seat<Core>) {
    let role = Arc::new(Role::new(
        Box::new(Core {
            holders: Arc::default(),
        }),
        Duration::from_millis(1),
    ));
    let core = role.accept().expect("the first leader is wanted");
    core.take();
    let seat = Seat::new(1);
    let number = deposit(&role, &seat, core);
    let core = role.reclaim(&seat, number).expect("nobody else is there");
    core.take();
    (role, core, seat)
}

fn deposit(role: &Role<Core>, seat: &Seat<Core>, core: Box<Core>) -> u64 {
    core.leave();
    role.deposit(seat, core, Terms::ALONE, 0, Moment::now())
        .number
}

/// What a thread does when its run returned.
fn back(role: &Role<Core>, seat: &Seat<Core>, number: u64) -> Option<Box<Core>> {
    role.reclaim(seat, number)
        .or_else(|| role.rejoin(number, false))
}

/// A promoted thread.
fn accept(role: &Role<Core>) -> Option<Box<Core>> {
    let core = role.accept()?;
    core.take();
    Some(core)
}

#[test]
fn loom_a_waiting_runner_is_replaced_once() {
    loom::model(|| {
        let (role, core, seat) = led();
        let number = deposit(&role, &seat, core);
        // The runner says that it waits, the monitor finds out at the same time.
        let askers: Vec<_> = (0..2)
            .map(|_| {
                let role = role.clone();
                thread::spawn(move || role.want(number).then(|| accept(&role).is_some()))
            })
            .collect();
        let sent: Vec<_> = askers
            .into_iter()
            .filter_map(|asker| asker.join().unwrap())
            .collect();
        assert_eq!(sent, [true], "one thread is sent and becomes the leader");
        assert!(back(&role, &seat, number).is_none());
    });
}

#[test]
fn loom_a_late_promotion_does_not_miss_the_next_waiting_run() {
    loom::model(|| {
        let (role, core, seat) = led();
        let first = deposit(&role, &seat, core);
        // The monitor suspects the first run, which ends just now.
        let monitor = thread::spawn({
            let role = role.clone();
            move || {
                role.want(first)
                    .then(|| accept(&role).is_some())
                    .unwrap_or(false)
            }
        });
        let mut leads = false;
        if let Some(core) = back(&role, &seat, first) {
            core.take();
            let second = deposit(&role, &seat, core);
            // This run waits for ever, after saying so.
            leads = role
                .want(second)
                .then(|| accept(&role).is_some())
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
        let (role, core, seat) = led();
        let first = deposit(&role, &seat, core);
        assert!(role.want(first));
        // The promoted thread leads, and its own run waits; the thread sent for that is queued
        // behind a full pool.
        let promoted = thread::spawn({
            let role = role.clone();
            move || {
                let core = accept(&role)?;
                let second = deposit(&role, &Seat::new(2), core);
                assert!(role.want(second));
                Some(second)
            }
        });
        let returned = back(&role, &seat, first);
        if let Some(core) = &returned {
            core.take();
        }
        let waiting = promoted.join().unwrap();
        match (returned, waiting) {
            // The runner was back before, or after, the second run began to wait: it leads.
            (Some(core), _) => {
                drop(core);
                assert!(accept(&role).is_none());
            }
            // It was back in between and has left: the queued thread will lead.
            (None, Some(_)) => assert!(accept(&role).is_some()),
            (None, None) => panic!("the role is lost"),
        }
    });
}

/// The monitor borrows the core while the promoted thread arrives after all and the run returns.
#[test]
fn loom_a_core_that_is_lent_is_lost_to_nobody() {
    loom::model(|| {
        let (role, core, seat) = led();
        let first = deposit(&role, &seat, core);
        assert!(role.want(first));
        let promoted = thread::spawn({
            let role = role.clone();
            move || accept(&role).is_some()
        });
        let monitor = thread::spawn({
            let role = role.clone();
            move || {
                let core = role.lend()?;
                core.take();
                core.leave();
                Some(role.put_back(core))
            }
        });
        let returned = back(&role, &seat, first)
            .inspect(|core| core.take())
            .is_some();
        let promoted = promoted.join().unwrap();
        match monitor.join().unwrap() {
            // Who was under way came during the loan: another is sent.
            Some(true) => {
                assert!(!promoted);
                assert!(returned ^ accept(&role).is_some());
            }
            lent => assert!(returned ^ promoted, "{returned} {promoted} {lent:?}"),
        }
    });
}

#[test]
fn loom_no_deposit_goes_unwatched() {
    loom::model(|| {
        let (role, core, seat) = led();
        role.watch();
        let (seen, called) = (2, Arc::new((Mutex::new(false), Condvar::new())));
        let monitor = thread::spawn({
            let (role, called) = (role.clone(), called.clone());
            move || {
                if role.unwatch(seen) {
                    let mut there = called.0.lock();
                    while !*there {
                        called.1.wait(&mut there);
                    }
                }
                // Awake: sees the deposit, or will look again.
            }
        });
        core.leave();
        let unwatched = role
            .deposit(&seat, core, Terms::ALONE, 0, Moment::now())
            .unwatched;
        if unwatched {
            *called.0.lock() = true;
            called.1.notify_one();
        }
        monitor.join().unwrap();
    });
}

#[test]
fn loom_promotion_races_reclaim_and_nobody_leads_twice() {
    loom::model(|| {
        let (role, core, seat) = led();
        let number = deposit(&role, &seat, core);
        let promoted = thread::spawn({
            let role = role.clone();
            move || {
                if role.want_any() { accept(&role) } else { None }
            }
        });
        let reclaimed = back(&role, &seat, number);
        if let Some(core) = &reclaimed {
            core.take();
        }
        let promoted = promoted.join().unwrap();
        assert!(reclaimed.is_some() ^ promoted.is_some());
    });
}

/// The sides of a shared batch: a thread that looks for the core while the leader deposits it and
/// then waits for ever. Whoever counted as cover has to end up with the core.
#[test]
fn loom_a_shared_deposit_finds_its_next_leader() {
    loom::model(|| {
        let (role, core, seat) = led();
        let now = Moment::now();
        // The batch is shared already, so that there is something to look for.
        core.leave();
        let first = role.deposit(&seat, core, Terms::shared(1), 0, now).number;
        let core = back(&role, &seat, first).expect("nobody is there yet");
        let looker = thread::spawn({
            let role = role.clone();
            move || {
                if !role.look() {
                    return false;
                }
                let core = role.find(false).or_else(|| role.find(true));
                core.inspect(|core| core.take()).is_some()
            }
        });
        let deposit = role.deposit(&seat, core, Terms::shared(1), 0, now);
        let mut sent = false;
        if deposit.uncovered && role.want_help(deposit.number, now) > 0 {
            sent = accept(&role).is_some();
        }
        let found = looker.join().unwrap();
        assert!(found ^ sent, "found: {found}, sent: {sent}, {deposit:?}");
    });
}

/// A run that returns from abroad counts as cover until the moment it looks for the core itself.
#[test]
fn loom_a_returning_run_takes_the_deposit_it_covered() {
    loom::model(|| {
        let (role, core, seat) = led();
        let now = Moment::now();
        core.leave();
        let first = role.deposit(&seat, core, Terms::shared(1), 0, now).number;
        assert!(role.want_help(first, now) > 0);
        let core = accept(&role).expect("shared");
        // The first run is abroad and ends now, while the second begins to wait.
        let returning = thread::spawn({
            let role = role.clone();
            move || {
                let core = back(&role, &seat, first)
                    .or_else(|| if role.look() { role.find(true) } else { None });
                core.inspect(|core| core.take()).is_some()
            }
        });
        core.leave();
        let second = role.deposit(&Seat::new(2), core, Terms::shared(1), 0, now);
        let mut sent = false;
        if second.uncovered && role.want_help(second.number, now) > 0 {
            sent = accept(&role).is_some();
        }
        let took = returning.join().unwrap();
        assert!(took ^ sent, "took: {took}, sent: {sent}, {second:?}");
    });
}

/// Others look at the seat while its owner, whose runs are short, deposits and reclaims: each time the
/// owner has its core back, and the monitor sees no deposit of the past where there is none.
#[test]
fn loom_a_look_at_the_seat_takes_nothing_from_its_owner() {
    loom::model(|| {
        let (role, core, seat) = led();
        role.watch();
        let monitor = thread::spawn({
            let role = role.clone();
            move || {
                let before = role.observe().map_or(0, |sight| sight.number);
                assert!(!role.want(2), "that run is over");
                let after = role.observe();
                assert!(after.is_none_or(|sight| sight.number >= before));
            }
        });
        let mut core = core;
        for number in 3..=4 {
            assert_eq!(deposit(&role, &seat, core), number);
            core = role.reclaim(&seat, number).expect("nobody wants it");
            core.take();
        }
        monitor.join().unwrap();
    });
}

/// The run whose core was taken returns while the new leader deposits in its own seat.
#[test]
fn loom_a_seat_is_out_of_reach_of_the_last_leader() {
    loom::model(|| {
        let (role, core, seat) = led();
        let first = deposit(&role, &seat, core);
        assert!(role.want(first));
        let promoted = thread::spawn({
            let role = role.clone();
            move || {
                let Some(mut core) = accept(&role) else {
                    return false;
                };
                let seat = Seat::new(2);
                for _ in 0..2 {
                    let number = deposit(&role, &seat, core);
                    core = role.reclaim(&seat, number).expect("nobody wants it");
                    core.take();
                }
                core.leave();
                true
            }
        });
        let returned = back(&role, &seat, first);
        if let Some(core) = &returned {
            core.take();
        }
        assert!(promoted.join().unwrap() ^ returned.is_some());
    });
}

//! One operator that always has more to do does not keep the others waiting, and operators are
//! spread as the balance says.
#![cfg(not(loom))]

mod support;

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use poller::{Balance, Interest, PollerGroup, Progress};
use support::{Probe, group, pair, probe, until};

/// What the hot operator does in each round to give its neighbour something to do.
type Stir = fn(&Probe, &UnixStream);

/// A hot operator never drains and stirs its quiet neighbour in every round. Between two calls of
/// the neighbour there may be only a few of the hot one.
fn hot_and_quiet(stir: Stir, run: bool) {
    let group = group(1);
    let handle = group.pick();
    let (ours, peer) = pair();
    peer.set_nonblocking(true).unwrap();
    let io = ours.try_clone().unwrap();
    let gap = Arc::new(AtomicUsize::new(0));
    let quiet = probe(ours)
        .on_ready({
            let gap = gap.clone();
            move |_, _, _| {
                gap.store(0, Ordering::SeqCst);
                while let Ok(1..) = (&io).read(&mut [0; 64]) {}
                Progress::Drained
            }
        })
        .register(&handle, Interest::READ);
    let widest = Arc::new(AtomicUsize::new(0));
    let rounds = 2000;
    let round = {
        let (quiet, widest) = (quiet.clone(), widest.clone());
        move |count: usize| {
            widest.fetch_max(gap.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            stir(&quiet, &peer);
            if count < rounds {
                Progress::Yield
            } else {
                Progress::Detach
            }
        }
    };
    let hot = probe(pair().0);
    let hot = if run {
        hot.on_ready(|_, _, budget| {
            budget.request_run();
            Progress::Drained
        })
        .on_run(move |hot| round(hot.runs()))
    } else {
        hot.on_ready(move |hot, _, _| round(hot.calls()))
    };
    let hot = hot.register(&handle, Interest::WRITE);
    until("the end", || hot.detached() == 1);
    let widest = widest.load(Ordering::SeqCst);
    assert!(widest <= 3, "{widest} calls of the hot one in a row");
    assert!(quiet.calls() >= rounds / 4);
    group.close();
}

#[test]
fn a_hot_operator_does_not_starve_wakes() {
    hot_and_quiet(|quiet, _| quiet.registration().wake(), false);
}

#[test]
fn a_hot_operator_does_not_starve_events() {
    hot_and_quiet(|_, mut peer| drop(peer.write(b"x")), false);
}

#[test]
fn a_run_that_yields_does_not_starve_the_others() {
    hot_and_quiet(|quiet, _| quiet.registration().wake(), true);
}

fn spread(balance: Balance) -> Vec<usize> {
    let group = PollerGroup::new(3, balance).unwrap();
    let registrations: Vec<_> = (0..60)
        .map(|_| {
            group
                .register(probe(pair().0).build(), Interest::READ)
                .unwrap()
        })
        .collect();
    let counts = group
        .stats()
        .pollers
        .iter()
        .map(|poller| poller.registered)
        .collect();
    drop(registrations);
    group.close();
    counts
}

#[test]
fn balances_spread_operators() {
    assert_eq!(spread(Balance::RoundRobin), [20, 20, 20]);
    assert_eq!(spread(Balance::LeastRegistered), [20, 20, 20]);
    let random = spread(Balance::Random);
    assert_eq!(random.iter().sum::<usize>(), 60);
    assert!(random.iter().all(|&count| count >= 5), "{random:?}");
}

#[test]
fn least_registered_fills_up_what_was_emptied() {
    let group = PollerGroup::new(3, Balance::LeastRegistered).unwrap();
    let register = || {
        let registration = group
            .register(probe(pair().0).build(), Interest::READ)
            .unwrap();
        (registration.poller().index(), registration)
    };
    let all: Vec<_> = (0..30).map(|_| register()).collect();
    let (gone, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|(index, _)| *index == 1);
    assert_eq!((gone.len(), kept.len()), (10, 20));
    drop(gone);
    let fresh: Vec<_> = (0..10).map(|_| register()).collect();
    assert!(fresh.iter().all(|(index, _)| *index == 1));
    group.close();
}

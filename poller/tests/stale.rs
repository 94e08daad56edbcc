//! An event never reaches anybody but the operator it was meant for.
#![cfg(all(not(loom), target_os = "linux"))]

mod support;

use std::{
    io::{Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Barrier, Mutex, OnceLock, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use poller::{Budget, Interest, Operator, Progress, Readiness, Registration};
use support::{Probe, group, pair, probe, settle, until};

/// Sits on another operator's descriptor number, which has become a different socket.
struct Successor {
    place: Arc<Probe>,
    calls: AtomicUsize,
    registration: OnceLock<Registration>,
}

/// A successor and its peer.
type Next = (Arc<Successor>, UnixStream);

impl Operator for Successor {
    fn fd(&self) -> BorrowedFd<'_> {
        self.place.fd.as_fd()
    }

    fn on_ready(&self, _: Readiness, _: &mut Budget<'_>) -> Progress {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Progress::Drained
    }
}

/// Two sockets become ready in one batch. The first one served detaches the second, puts another
/// socket in the place of its descriptor and registers that: same number, same slot. The second
/// event must reach nobody.
#[test]
fn a_descriptor_replaced_within_a_batch_gets_no_old_event() {
    let group = group(1);
    let handle = group.pick();
    let gate = Arc::new(Barrier::new(2));
    let (ours, mut gate_peer) = pair();
    let (hold, io) = (gate.clone(), ours.try_clone().unwrap());
    let _gate = probe(ours)
        .on_ready(move |_, _, _| {
            while let Ok(1..) = (&io).read(&mut [0; 8]) {}
            hold.wait();
            hold.wait();
            Progress::Drained
        })
        .register(&handle, Interest::READ);

    for _ in 0..300 {
        let pair_of_probes: Arc<OnceLock<[Weak<Probe>; 2]>> = Arc::default();
        let successor: Arc<Mutex<Option<Next>>> = Arc::default();
        let make = |own: usize| {
            let (ours, peer) = pair();
            let (probes, successor) = (pair_of_probes.clone(), successor.clone());
            let poller = handle.clone();
            let probe = probe(ours)
                .on_ready(move |_, _, _| {
                    let other = &probes.get().unwrap()[1 - own].upgrade().unwrap();
                    other.registration().detach();
                    let (fresh, fresh_peer) = pair();
                    // SAFETY: both are open; the number stays the other probe's.
                    let moved = unsafe { libc::dup2(fresh.as_raw_fd(), other.fd.as_raw_fd()) };
                    assert!(moved >= 0);
                    let next = Arc::new(Successor {
                        place: other.clone(),
                        calls: AtomicUsize::new(0),
                        registration: OnceLock::new(),
                    });
                    let registration = poller.register(next.clone(), Interest::READ).unwrap();
                    next.registration.set(registration).unwrap();
                    *successor.lock().unwrap() = Some((next, fresh_peer));
                    Progress::Drained
                })
                .register(&handle, Interest::READ);
            (probe, peer)
        };
        let (first, mut first_peer) = make(0);
        let (second, mut second_peer) = make(1);
        assert!(
            pair_of_probes
                .set([&first, &second].map(Arc::downgrade))
                .is_ok()
        );
        gate_peer.write_all(b"x").unwrap();
        gate.wait();
        first_peer.write_all(b"x").unwrap();
        second_peer.write_all(b"x").unwrap();
        gate.wait();
        until("one of the two", || first.calls() + second.calls() > 0);
        settle(&handle);
        assert_eq!(
            first.calls() + second.calls(),
            1,
            "only one of the two is served"
        );
        let (next, mut fresh_peer) = successor.lock().unwrap().take().unwrap();
        assert_eq!(
            next.calls.load(Ordering::SeqCst),
            0,
            "an old event reached the successor"
        );
        fresh_peer.write_all(b"x").unwrap();
        until("its own event", || next.calls.load(Ordering::SeqCst) == 1);
        next.registration.get().unwrap().detach();
        first.registration().detach();
        second.registration().detach();
        settle(&handle);
    }
    group.close();
}

/// Slots are used again and again, and every operator sees its own bytes only.
#[test]
fn churn_never_mixes_operators_up() {
    let group = group(1);
    let handle = group.pick();
    let wrong = Arc::new(AtomicUsize::new(0));
    for round in 0..2000u32 {
        let (ours, mut peer) = pair();
        let wrong = wrong.clone();
        let io = ours.try_clone().unwrap();
        let probe = probe(ours)
            .on_ready(move |_, _, _| {
                let mut bytes = [0; 4];
                if let Ok(4) = (&io).read(&mut bytes) {
                    if bytes != round.to_ne_bytes() {
                        wrong.fetch_add(1, Ordering::SeqCst);
                    }
                } else {
                    wrong.fetch_add(1, Ordering::SeqCst);
                }
                Progress::Drained
            })
            .register(&handle, Interest::READ);
        peer.write_all(&round.to_ne_bytes()).unwrap();
        if round % 2 == 0 {
            until("its event", || probe.calls() == 1);
        }
        probe.registration().detach();
    }
    settle(&handle);
    assert_eq!(wrong.load(Ordering::SeqCst), 0);
    group.close();
}

//! A poller whose system object breaks says so, detaches everything, and the others go on. One
//! test, because it tampers with the process's descriptors, and one for a mistake that is loud.
#![cfg(all(not(loom), target_os = "linux"))]

mod support;

use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use poller::{Budget, Interest, Operator, PollerGroup, Progress, Readiness};
use support::{pair, probe, until};

fn epolls() -> Vec<RawFd> {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let link = fs::read_link(entry.path()).ok()?;
            (link.to_str()? == "anon_inode:[eventpoll]").then_some(())?;
            entry.file_name().to_str()?.parse().ok()
        })
        .collect()
}

/// The tests of this file take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Its `fd` panics once it is registered.
struct Broken(UnixStream, AtomicUsize);

impl Operator for Broken {
    fn fd(&self) -> BorrowedFd<'_> {
        assert_eq!(self.1.fetch_add(1, Ordering::SeqCst), 0, "on purpose");
        self.0.as_fd()
    }

    fn on_ready(&self, _: Readiness, _: &mut Budget<'_>) -> Progress {
        Progress::Detach
    }
}

#[test]
fn a_panic_outside_of_callbacks_is_not_silent_either() {
    let _turn = TURN.lock();
    let group = PollerGroup::builder().pollers(2).build().unwrap();
    let [first, second] = [0, 1].map(|index| group.handles()[index].clone());
    let (ours, mut peer) = pair();
    let doomed = probe(pair().0).register(&first, Interest::READ);
    let lucky = probe(ours).register(&second, Interest::READ);
    let broken = Arc::new(Broken(pair().0, AtomicUsize::new(0)));
    let registration = first.register(broken, Interest::WRITE).unwrap();
    until("the word", || doomed.detached() == 1);
    assert!(group.health().is_err());
    peer.write_all(b"x").unwrap();
    until("an event of the other poller", || lucky.calls() == 1);
    drop(registration);
    group.close();
    assert_eq!((doomed.detached(), lucky.detached()), (1, 1));
    assert_eq!(group.stats().workers.threads, 0);
}

#[test]
fn a_poller_that_dies_is_not_silent() {
    let _turn = TURN.lock();
    let group = PollerGroup::builder().pollers(2).build().unwrap();
    let [first, second] = [0, 1].map(|index| group.handles()[index].clone());
    let doomed: Vec<_> = (0..5)
        .map(|_| probe(pair().0).register(&first, Interest::READ))
        .collect();
    let (ours, mut peer) = pair();
    let lucky = probe(ours).register(&second, Interest::READ);
    assert!(group.health().is_ok());

    // The first poller's descriptors are the oldest; both its handles to the epoll become
    // something that cannot be waited on.
    let mut fds = epolls();
    fds.sort_unstable();
    let null = File::open("/dev/null").unwrap();
    for fd in &fds[..2] {
        // SAFETY: both are open, and the number stays its owner's.
        assert!(unsafe { libc::dup2(null.as_raw_fd(), *fd) } >= 0);
    }
    doomed[0].registration().wake();

    for probe in &doomed {
        until("the word", || probe.detached() == 1);
    }
    let error = group.health().unwrap_err();
    assert!(error.to_string().contains("poller 0"), "{error}");
    assert_eq!(first.stats().registered, 0);
    assert!(
        first
            .register(probe(pair().0).build(), Interest::READ)
            .is_err()
    );

    peer.write_all(b"x").unwrap();
    until("an event of the other poller", || lucky.calls() == 1);
    for _ in 0..4 {
        assert_eq!(group.pick().index(), 1, "new operators go to the living");
    }
    group.close();
    assert_eq!(group.stats().total().panics, 0);
    assert!(doomed.iter().all(|probe| probe.detached() == 1));
    assert_eq!(lucky.detached(), 1);
    assert!(group.health().is_err());
}

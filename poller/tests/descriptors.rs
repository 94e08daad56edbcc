//! What the system reports about real descriptors, and the flags it arrives as.
#![cfg(all(not(loom), target_os = "linux"))]

mod support;

use std::{
    fs::File,
    io::{self, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use poller::{Interest, Progress, Readiness, wait_ready};
use support::{group, pair, probe, settle, until};

fn eventfd() -> OwnedFd {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[test]
fn eventfd_edges_come_one_by_one() {
    let group = group(1);
    let fd = eventfd();
    let mut writer = File::from(fd.try_clone().unwrap());
    let probe = probe(fd).register(&group.pick(), Interest::READ);
    for count in 1..=50 {
        writer.write_all(&1u64.to_ne_bytes()).unwrap();
        until("an edge", || probe.calls() == count);
    }
    settle(probe.registration().poller());
    assert_eq!(probe.calls(), 50, "nothing without a write");
    assert_eq!(probe.all(), Readiness::READABLE);
    // The same level again, as an edge.
    probe.registration().set_interest(Interest::READ).unwrap();
    until("the edge re-armed", || probe.calls() == 51);
    group.close();
}

#[test]
fn a_pipe_tells_which_end_is_gone() {
    let group = group(1);
    let (reader, writer) = io::pipe().unwrap();
    let read = probe(reader).register(&group.pick(), Interest::READ);
    drop(writer);
    until("hang-up", || read.saw(Readiness::READ_CLOSED));

    let (reader, writer) = io::pipe().unwrap();
    let write = probe(writer).register(&group.pick(), Interest::WRITE);
    until("writable", || write.saw(Readiness::WRITABLE));
    assert!(
        !write
            .all()
            .intersects(Readiness::WRITE_CLOSED | Readiness::ERROR)
    );
    drop(reader);
    until("broken", || {
        write.saw(Readiness::WRITE_CLOSED | Readiness::ERROR)
    });
    group.close();
}

#[test]
fn half_close_is_not_a_hang_up() {
    let group = group(1);
    let (ours, mut peer) = pair();
    let mut writer = ours.try_clone().unwrap();
    let probe = probe(ours).register(&group.pick(), Interest::READ | Interest::WRITE);
    peer.shutdown(Shutdown::Write).unwrap();
    until("end of stream", || {
        probe.saw(Readiness::READABLE | Readiness::READ_CLOSED)
    });
    assert!(!probe.all().contains(Readiness::WRITE_CLOSED));
    writer.write_all(b"late").unwrap();
    let mut back = [0; 4];
    peer.read_exact(&mut back).unwrap();
    drop(peer);
    until("hang-up", || {
        probe.saw(Readiness::READ_CLOSED | Readiness::WRITE_CLOSED)
    });
    group.close();
}

#[test]
fn hangup_interest_is_blind_to_data() {
    let group = group(1);
    let (ours, mut peer) = pair();
    let probe = probe(ours).register(&group.pick(), Interest::HANGUP);
    peer.write_all(b"not of interest").unwrap();
    settle(probe.registration().poller());
    assert_eq!(probe.calls(), 0);
    peer.shutdown(Shutdown::Write).unwrap();
    until("half-close", || probe.calls() == 1);
    assert_eq!(probe.all(), Readiness::READ_CLOSED);
    drop(peer);
    until("hang-up", || {
        probe.saw(Readiness::READ_CLOSED | Readiness::WRITE_CLOSED)
    });
    group.close();
}

#[test]
fn interest_can_be_changed_to_and_fro() {
    let group = group(1);
    let (ours, mut peer) = pair();
    let probe = probe(ours).register(&group.pick(), Interest::HANGUP);
    peer.write_all(b"early").unwrap();
    settle(probe.registration().poller());
    assert_eq!(probe.calls(), 0);
    probe.registration().set_interest(Interest::READ).unwrap();
    until("what was there already", || probe.saw(Readiness::READABLE));
    probe.registration().set_interest(Interest::HANGUP).unwrap();
    settle(probe.registration().poller());
    probe.forget();
    peer.write_all(b"more").unwrap();
    settle(probe.registration().poller());
    assert_eq!(probe.calls(), 0);
    probe.registration().detach();
    let error = probe
        .registration()
        .set_interest(Interest::READ)
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    group.close();
}

#[test]
fn what_cannot_be_watched_leaves_nothing_behind() {
    let group = group(1);
    let handle = group.pick();
    let file = File::open("/proc/self/exe").unwrap();
    let error = handle
        .register(probe(file).build(), Interest::READ)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let (ours, _peer) = pair();
    let first = probe(ours).register(&handle, Interest::READ);
    // The very same descriptor a second time.
    struct Same(std::sync::Arc<support::Probe>);
    impl poller::Operator for Same {
        fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
            self.0.fd.as_fd()
        }
        fn on_ready(&self, _: Readiness, _: &mut poller::Budget<'_>) -> Progress {
            unreachable!("was never registered")
        }
        fn on_detached(&self) {
            unreachable!("was never registered")
        }
    }
    let again = std::sync::Arc::new(Same(first.clone()));
    let error = handle.register(again.clone(), Interest::READ).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::sync::Arc::strong_count(&again), 1);
    assert_eq!(handle.stats().registered, 1);
    first.registration().detach();
    assert_eq!(handle.stats().registered, 0);
    group.close();
}

#[test]
fn a_descriptor_closed_behind_the_pollers_back_is_still_cleaned_up() {
    let group = group(1);
    let (ours, _peer) = pair();
    let probe = probe(ours).register(&group.pick(), Interest::READ);
    // Another file takes the number, so that nobody else's is hit when the operator closes it.
    let other = File::open("/dev/null").unwrap();
    // SAFETY: both descriptors are open; the number stays the operator's.
    assert!(unsafe { libc::dup2(other.as_raw_fd(), probe.fd.as_raw_fd()) } >= 0);
    probe.registration().detach();
    until("detached", || probe.detached() == 1);
    assert_eq!(group.stats().total().registered, 0);
    group.close();
}

#[test]
fn wait_ready_waits_for_what_is_asked() {
    let (a, mut b) = UnixStream::pair().unwrap();
    let ready = wait_ready(a.as_fd(), Interest::READ | Interest::WRITE, None).unwrap();
    assert_eq!(ready, Readiness::WRITABLE);
    let begin = Instant::now();
    let deadline = begin + Duration::from_millis(15);
    assert!(
        wait_ready(a.as_fd(), Interest::READ, Some(deadline))
            .unwrap()
            .is_empty()
    );
    assert!(Instant::now() >= deadline);
    // A deadline that has passed asks once.
    assert!(
        wait_ready(a.as_fd(), Interest::READ, Some(begin))
            .unwrap()
            .is_empty()
    );
    b.write_all(b"x").unwrap();
    assert_eq!(
        wait_ready(a.as_fd(), Interest::READ, Some(begin)).unwrap(),
        Readiness::READABLE
    );
    assert!(
        wait_ready(a.as_fd(), Interest::HANGUP, Some(begin))
            .unwrap()
            .is_empty()
    );
    b.shutdown(Shutdown::Write).unwrap();
    let far = Instant::now() + Duration::from_secs(30 * 24 * 3600);
    assert_eq!(
        wait_ready(a.as_fd(), Interest::HANGUP, Some(far)).unwrap(),
        Readiness::READ_CLOSED
    );
    drop(b);
    let ready = wait_ready(a.as_fd(), Interest::HANGUP, None).unwrap();
    assert!(ready.contains(Readiness::READ_CLOSED | Readiness::WRITE_CLOSED));
}

#[test]
fn thousands_ready_at_once_are_all_served() {
    let group = group(1);
    let handle = group.pick();
    let count = 1500;
    let gate = std::sync::Arc::new(std::sync::Barrier::new(2));
    let (ours, mut peer) = pair();
    let hold = gate.clone();
    let _blocker = probe(ours)
        .on_ready(move |_, _, _| {
            hold.wait();
            hold.wait();
            Progress::Drained
        })
        .register(&handle, Interest::READ);
    let probes: Vec<_> = (0..count)
        .map(|_| {
            let fd = eventfd();
            let writer = File::from(fd.try_clone().unwrap());
            (probe(fd).register(&handle, Interest::READ), writer)
        })
        .collect();
    for round in 1..=3 {
        // All become ready while the leader is held up, more than one wait takes at first.
        peer.write_all(b"x").unwrap();
        gate.wait();
        for (_, writer) in &probes {
            (&*writer).write_all(&1u64.to_ne_bytes()).unwrap();
        }
        gate.wait();
        for (probe, _) in &probes {
            until("every event", || probe.calls() == round);
        }
    }
    group.close();
}

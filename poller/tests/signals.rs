//! A storm of signals without `SA_RESTART` changes nothing: waits are retried, nothing is lost.
#![cfg(all(not(loom), target_os = "linux"))]

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    mem,
    os::fd::AsFd,
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use poller::{Interest, Progress, Readiness, wait_ready};
use support::{group, pair, probe};

static STORM: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    STORM.fetch_add(1, Ordering::Relaxed);
}

fn storm(microseconds: libc::suseconds_t) {
    let period = libc::timeval {
        tv_sec: 0,
        tv_usec: microseconds,
    };
    let timer = libc::itimerval {
        it_interval: period,
        it_value: period,
    };
    // SAFETY: the value lives for the call, and the previous one is not asked for.
    let result = unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, ptr::null_mut()) };
    assert_eq!(result, 0);
}

#[test]
fn interrupted_waits_are_retried() {
    // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = count as extern "C" fn(libc::c_int) as usize;
    // SAFETY: the handler only touches an atomic; the previous action is not asked for.
    let result = unsafe { libc::sigaction(libc::SIGALRM, &action, ptr::null_mut()) };
    assert_eq!(result, 0);
    storm(500);

    let group = group(1);
    let handle = group.pick();
    let (ours, peer) = pair();
    let io = ours.try_clone().unwrap();
    let _probe = probe(ours)
        .on_ready(move |_, _, _| {
            let mut bytes = [0; 64];
            loop {
                match (&io).read(&mut bytes) {
                    Ok(n @ 1..) => (&io).write_all(&bytes[..n]).unwrap(),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    _ => return Progress::Drained,
                }
            }
        })
        .register(&handle, Interest::READ);
    let begin = Instant::now();
    let mut rounds = 0;
    while STORM.load(Ordering::Relaxed) < 200 {
        (&peer).write_all(b"ping").unwrap();
        let ready = wait_ready(peer.as_fd(), Interest::READ, Some(begin + support::LIMIT)).unwrap();
        assert!(ready.contains(Readiness::READABLE));
        let mut back = [0; 4];
        (&peer).read_exact(&mut back).unwrap();
        assert_eq!(&back, b"ping");
        rounds += 1;
    }
    assert!(rounds > 0);
    let (tell, told) = std::sync::mpsc::channel();
    let due = Instant::now() + Duration::from_millis(30);
    handle.schedule(due, move || tell.send(Instant::now()).unwrap());
    let before = STORM.load(Ordering::Relaxed);
    assert!(
        told.recv().unwrap() >= due,
        "interrupted waits do not make a timer early"
    );
    assert!(STORM.load(Ordering::Relaxed) > before);
    // And a wait for nothing ends at its deadline, not at a signal.
    let deadline = Instant::now() + Duration::from_millis(20);
    assert!(
        wait_ready(peer.as_fd(), Interest::READ, Some(deadline))
            .unwrap()
            .is_empty()
    );
    assert!(Instant::now() >= deadline);
    storm(0);
    group.close();
    assert!(group.health().is_ok());
}

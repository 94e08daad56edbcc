//! How soon things happen, on a machine that may be busy with others.

use super::{Case, Kind, Transport, asleep_in, echo};
use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// How many batches of rounds are looked at.
const BATCHES: usize = 6;

/// A quarter of the rounds must take `most` or less: far more than an idle machine needs.
///
/// What is late by design, such as a wait that only looks up now and then, is late in every batch. So is
/// everything on a machine that has no time for this process. From the second batch on that is measured as
/// well, by a plain thread that is woken and computes for a tenth of `most`: a batch in which this takes more
/// than a quarter of `most` says nothing about the library.
#[track_caller]
pub(crate) fn soon(what: &str, rounds: usize, most: Duration, mut round: impl FnMut() -> Duration) {
    let mut slow = 0;
    for batch in 0..BATCHES {
        let (mut times, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            times.push(round());
            if batch > 0 {
                plain.push(plain_thread(most / 10));
            }
        }
        times.sort();
        plain.sort();
        let quarter = times[rounds / 4];
        println!("{what}: a quarter within {quarter:?} of {most:?}; a plain thread: {plain:?}");
        if quarter <= most {
            return;
        }
        slow += usize::from(batch > 0 && plain[rounds * 3 / 4] <= most / 4);
        assert!(slow < 2, "{what}: {quarter:?} is more than {most:?}");
    }
    println!("{what}: not judged, the machine is too busy");
}

/// Returns when a connection that is idle from now on has been closed for it after `time`. What began before
/// has had that time, on a machine that may have stopped meanwhile as well.
pub(crate) fn outlast(time: Duration) {
    let case = Case::new(Transport::Tcp, Kind::Inline);
    let server = case.serve_with(case.builder().idle_timeout(time), echo());
    server.connect().expect_end();
    server.stop();
}

/// Lets time pass. Only for what must not happen in it, what something costs in it, or how fast a peer is:
/// everything else is waited for with [`eventually`](super::eventually).
pub(crate) fn let_pass(time: Duration) {
    thread::sleep(time);
}

/// From the moment a sleeping thread is woken until it has computed for so long.
fn plain_thread(work: Duration) -> Duration {
    let (wake, woken) = mpsc::channel();
    let thread = asleep_in(move || {
        woken.recv().unwrap();
        let begin = thread_time();
        while thread_time() - begin < work {
            std::hint::spin_loop();
        }
        Instant::now()
    });
    let before = Instant::now();
    wake.send(()).unwrap();
    thread.join().unwrap().saturating_duration_since(before)
}

/// Processor time of the calling thread.
fn thread_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the structure it is given.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

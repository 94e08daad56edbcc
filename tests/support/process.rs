//! Tests that need a process of their own, and what a process holds.

use super::{LIMIT, eventually};
use std::{
    env, fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const CHILD: &str = "NETPOLL_TEST_CHILD";

/// Runs `body` alone in a child process: this test binary again, with only the test `name`.
///
/// `name` is the whole path of the calling test.
#[track_caller]
pub(crate) fn in_child(name: &str, body: impl FnOnce()) {
    if env::var(CHILD).as_deref() == Ok(name) {
        body();
        return;
    }
    let output = Command::new(env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, name)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "child of {name}: {}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "{name} is no test of this binary:\n{out}");
}

/// Open descriptors of this process.
pub(crate) fn descriptors() -> usize {
    // The directory being read is one of them.
    fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// Threads of this process.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// Threads whose name begins so.
pub(crate) fn handler_threads(prefix: &str) -> usize {
    fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with(prefix))
        .count()
}

/// Waits until no more than `most` descriptors are open.
#[track_caller]
pub(crate) fn settled_descriptors(most: usize) {
    let deadline = Instant::now() + LIMIT;
    while descriptors() > most {
        if Instant::now() > deadline {
            let open: Vec<_> = fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
                .collect();
            panic!("{} descriptors instead of {most}: {open:?}", open.len());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until no more than `most` threads run.
#[track_caller]
pub(crate) fn settled_threads(most: usize) {
    eventually(&format!("{most} threads"), || threads() <= most);
}

/// Processor time this process has used.
pub(crate) fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    // The name may hold spaces; behind it come state, then numbers: 12 and 13 are utime, stime.
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

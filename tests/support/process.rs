//! Tests that need a process of their own, and what a process holds.

use super::{LIMIT, eventually};
use std::{
    env, fs,
    panic::Location,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

const CHILD: &str = "NETPOLL_TEST_CHILD";

/// The whole path of the test `name` in the file that calls: one module per file.
#[track_caller]
pub(crate) fn test_path(name: &str) -> String {
    let file = Path::new(Location::caller().file());
    let module = file.file_stem().unwrap().to_str().unwrap();
    format!("{module}::{name}")
}

/// This test program again, with only the test `name` of the calling file, in this thread.
#[track_caller]
pub(crate) fn only_test(name: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([
        &test_path(name),
        "--exact",
        "--include-ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command
}

/// Runs `body` alone in a child process: this test program again, with only the test `name`, which calls this.
#[track_caller]
pub(crate) fn in_child(name: &str, body: impl FnOnce()) {
    let path = test_path(name);
    if env::var(CHILD).as_deref() == Ok(&path) {
        body();
        return;
    }
    let output = only_test(name)
        .env(CHILD, &path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "child of {path}: {}\n{out}\n{err}",
        output.status
    );
    println!("{out}");
    assert!(
        out.contains("1 passed"),
        "{path} is no test of this program:\n{out}"
    );
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

/// Runs `call` on a thread of its own. Returns when that thread sleeps in it, or has come back.
#[track_caller]
pub(crate) fn asleep_in<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let (tell, told) = mpsc::channel();
    let thread = thread::spawn(move || {
        tell.send(fs::read_link("/proc/thread-self").unwrap())
            .unwrap();
        call()
    });
    let task = Path::new("/proc").join(told.recv_timeout(LIMIT).unwrap());
    let mut before = None;
    eventually("the thread sleeps", || {
        let now = sleep_of(&task);
        // The same sleep as a millisecond ago: no lock that somebody holds for a moment.
        let still = now.is_some() && now == before;
        before = now;
        still || thread.is_finished()
    });
    thread
}

/// Which sleep a thread is in, counted from its start; `None` if it is awake or gone.
fn sleep_of(task: &Path) -> Option<u64> {
    let status = fs::read_to_string(task.join("status")).ok()?;
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name));
    if !field("State:")?.trim_start().starts_with('S') {
        return None;
    }
    field("voluntary_ctxt_switches:")?.trim().parse().ok()
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

/// Processor time this process has used. Needs no descriptor.
pub(crate) fn cpu_time() -> Duration {
    // SAFETY: plain integers, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the call fills the structure it is given.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    assert_eq!(result, 0);
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.unsigned_abs())
            + Duration::from_micros(t.tv_usec.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Sets how many descriptors this process may have; what it was before.
pub(crate) fn limit_descriptors(most: u64) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the call fills the structure it is given.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(result, 0);
    let before = limit.rlim_cur;
    limit.rlim_cur = most.min(limit.rlim_max);
    // SAFETY: the call reads the structure it is given.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(result, 0);
    before
}

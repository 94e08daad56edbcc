//! The only module with `unsafe`: the few calls of the kernel that no safe crate offers.
//!
//! Invariants every block below relies on:
//! * an [`Epoll`] owns its descriptor, and the kernel forgets a registered descriptor when its
//!   last copy is closed, so a registration never outlives the socket it was made for;
//! * structures handed to the kernel are plain data, fully initialised, and borrowed for the length
//!   of the call alone;
//! * process ids given to [`signal`] and [`cpu_time`] name children that were not reaped yet, so the
//!   id cannot have been given to another process.

mod epoll;
mod process;
#[cfg(feature = "peers")]
pub(crate) mod uring;

use std::io;
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

pub(crate) use epoll::{Epoll, Events, READ, READ_WRITE_EDGE, WRITE};
pub(crate) use process::{heap_in_use, set_fd_limit};

/// What [`signal`] sends to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// Stop running until [`Signal::Continue`].
    Stop,
    /// Run again.
    Continue,
    /// End, leaving tools that watch the process the time to report.
    Terminate,
}

/// Sends `signal` to the child `pid`.
pub(crate) fn signal(pid: u32, signal: Signal) -> io::Result<()> {
    let number = match signal {
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
        Signal::Terminate => libc::SIGTERM,
    };
    // SAFETY: kill takes two integers; by the module's invariants `pid` is a child of ours.
    check(unsafe { libc::kill(pid as libc::pid_t, number) }).map(drop)
}

/// CPU time, user and system, that the child `pid` has used: all threads, also ended ones.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a live integer the call may write to.
    let rc = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) };
    if rc != 0 {
        return Err(io::Error::from_raw_os_error(rc));
    }
    clock_now(clock)
}

/// CPU time, user and system, that this process has used.
pub(crate) fn own_cpu_time() -> io::Result<Duration> {
    clock_now(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// How often threads of this process have waited, also ended ones.
pub(crate) fn own_waits() -> io::Result<u64> {
    // SAFETY: rusage is a structure of integers, for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: `usage` is a live rusage the call may write to.
    check(unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) })?;
    Ok(usage.ru_nvcsw as u64)
}

fn clock_now(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a live timespec the call may write to.
    check(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Restricts the calling thread, and the threads and children it starts later, to `cores`.
pub(crate) fn set_affinity(cores: &[usize]) -> io::Result<()> {
    // SAFETY: cpu_set_t is an array of integers, for which all zeroes is a value (the empty set).
    let mut set: libc::cpu_set_t = unsafe { MaybeUninit::zeroed().assume_init() };
    for &core in cores {
        assert!(
            core < libc::CPU_SETSIZE as usize,
            "core {core} is beyond what a set can name"
        );
        // SAFETY: the bit lies inside the set, as checked above.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: `set` is a live cpu_set_t of the size given; 0 names the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size, &raw const set) }).map(drop)
}

/// The cores the calling thread may run on.
pub(crate) fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: cpu_set_t is an array of integers, for which all zeroes is a value (the empty set).
    let mut set: libc::cpu_set_t = unsafe { MaybeUninit::zeroed().assume_init() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: `set` is a live cpu_set_t of the size given; 0 names the calling thread.
    check(unsafe { libc::sched_getaffinity(0, size, &raw mut set) })?;
    // SAFETY: every core asked for lies inside the set.
    let is_allowed = |core: &usize| unsafe { libc::CPU_ISSET(*core, &set) };
    Ok((0..libc::CPU_SETSIZE as usize).filter(is_allowed).collect())
}

/// Asks the kernel to kill this process when the thread that started it ends.
pub(crate) fn die_with_parent() -> io::Result<()> {
    // SAFETY: this prctl takes integers only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }).map(drop)
}

/// Raises the limit of open descriptors as far as is allowed and returns it.
pub(crate) fn raise_fd_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a live rlimit the call may write to.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a live, initialised rlimit.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    Ok(limit.rlim_cur)
}

/// Accepts one connection as a non-blocking socket, in one call.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    const FLAGS: libc::c_int = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let (addr, length) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the listener is open; no address is asked for, which null pointers say.
    let fd = check(unsafe { libc::accept4(raw(listener), addr, length, FLAGS) })?;
    // SAFETY: the kernel has just opened `fd` for us; nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fd.into())
}

/// Receives once into the spare capacity of `buffer` and returns the bytes received.
///
/// There must be spare capacity: with none the answer would be 0, which means end of stream.
pub(crate) fn recv_spare(socket: &impl AsFd, buffer: &mut Vec<u8>) -> io::Result<usize> {
    let spare = buffer.spare_capacity_mut();
    assert!(!spare.is_empty(), "receiving into a full buffer");
    let received = socket2::SockRef::from(socket).recv(spare)?;
    let length = buffer.len() + received;
    // SAFETY: recv has initialised the first `received` bytes of the spare capacity.
    unsafe { buffer.set_len(length) };
    Ok(received)
}

/// Turns an owned descriptor into a type that can only be made from a raw one.
#[cfg(feature = "peers")]
pub(crate) fn adopt<T: FromRawFd>(fd: impl Into<OwnedFd>) -> T {
    let raw = std::os::fd::IntoRawFd::into_raw_fd(fd.into());
    // SAFETY: the descriptor is open and owned by nobody else, since it was just given up.
    unsafe { T::from_raw_fd(raw) }
}

/// Lets the program that replaces this one keep the descriptor, under the same number.
pub(crate) fn inherit(fd: &impl AsFd) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, which takes integers only.
    check(unsafe { libc::fcntl(raw(fd), libc::F_SETFD, 0) }).map(drop)
}

/// The raw number of a descriptor, for calls that want one.
fn raw(fd: &impl AsFd) -> libc::c_int {
    fd.as_fd().as_raw_fd()
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_clock_advances_with_work() {
        let before = own_cpu_time().unwrap();
        let mut sum = 0u64;
        for i in 0..2_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(i));
        }
        assert!(own_cpu_time().unwrap() > before, "{sum}");
    }

    #[test]
    fn a_thread_may_be_put_on_one_core() {
        let on_one = || {
            let core = allowed_cores().unwrap()[0];
            set_affinity(&[core]).unwrap();
            assert_eq!(allowed_cores().unwrap(), [core]);
        };
        std::thread::spawn(on_one).join().unwrap();
    }

    #[test]
    fn a_childs_clock_is_readable() {
        assert!(cpu_time(std::process::id()).unwrap() > Duration::ZERO);
    }

    #[test]
    fn spare_capacity_receives_what_was_sent() {
        use std::io::Write;
        let (mut a, b) = std::os::unix::net::UnixStream::pair().unwrap();
        a.write_all(b"hello").unwrap();
        let mut buffer = Vec::with_capacity(16);
        buffer.push(b'>');
        assert_eq!(recv_spare(&b, &mut buffer).unwrap(), 5);
        assert_eq!(buffer, b">hello");
    }
}

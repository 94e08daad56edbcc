//! Helpers of this module's tests.

use std::{
    fs, io,
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use poller::{Interest, wait_ready};

use super::stream::Socket;

/// A directory that is removed at the end of the test.
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "np-{}-{}",
            process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A connected pair: one end ours, one of `std`.
pub(super) fn tcp_pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let theirs = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (ours, _) = listener.accept().unwrap();
    (Socket::from_fd(ours.into()).unwrap(), theirs)
}

pub(super) fn unix_pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Socket::from_fd(ours.into()).unwrap(), theirs)
}

/// Waits until something can be read, end of stream and errors included.
pub(super) fn wait_readable(socket: &impl AsFd) {
    let deadline = Some(Instant::now() + Duration::from_secs(30));
    let ready = wait_ready(socket.as_fd(), Interest::READ, deadline).unwrap();
    assert!(!ready.is_empty(), "nothing came in 30 s");
}

/// Whether the system calls the descriptor non-blocking and close-on-exec.
pub(super) fn is_prepared(fd: &impl AsFd) -> bool {
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let info = fs::read_to_string(path).unwrap();
    let flags = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .map(|flags| i32::from_str_radix(flags.trim(), 8).unwrap())
        .unwrap();
    let wanted = libc::O_NONBLOCK | libc::O_CLOEXEC;
    flags & wanted == wanted
}

/// Far enough away that reaching it means failure.
pub(super) fn far() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(30))
}

/// Whether this machine has IPv6 on its loopback.
pub(super) fn has_ipv6() -> bool {
    TcpListener::bind("[::1]:0").is_ok()
}

/// The error of a call that must not succeed.
pub(super) fn failure<T>(result: io::Result<T>) -> io::Error {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(error) => error,
    }
}

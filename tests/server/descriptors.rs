//! Descriptors: none is left behind by what fails, none is seen by child processes.
//!
//! The tests count the descriptors of the whole process, so each has one of its own.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    os::unix::net::UnixListener,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::support::in_child;
use netpoll::{Address, Dialer, Error, Listener};

/// Sockets of this process.
fn sockets() -> Vec<PathBuf> {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        // A descriptor may be gone by the time it is looked at: the one that reads the directory.
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .collect()
}

/// Waits until as many sockets are open as before; closed connections linger for a moment.
fn settle(count: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while sockets().len() != count {
        assert!(
            Instant::now() < deadline,
            "{} sockets, not {count}",
            sockets().len()
        );
        thread::sleep(Duration::from_millis(1));
    }
}

/// A port that is bound by somebody who does not listen.
fn closed_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

#[test]
fn dials_that_fail_leave_nothing_behind() {
    in_child("dials_that_fail_leave_nothing_behind", || {
        let start = sockets().len();
        let dialer = Dialer::new().connect_timeout(Duration::from_millis(20));
        // On a busy machine it may take longer than that to be refused.
        let patient = Dialer::new().connect_timeout(Duration::from_secs(30));
        let (bound, closed) = closed_port();
        // Starts what the first dial starts.
        assert!(dialer.dial_connection(closed).is_err());
        assert!(patient.dial_connection(closed).is_err());

        // A listener that answers no more: its queue is full.
        let hole = Listener::builder()
            .backlog(0)
            .bind(([127, 0, 0, 1], 0))
            .unwrap();
        let address = hole.local_addr().unwrap();
        let mut waiting = Vec::new();
        let mut timeouts = 0;
        while timeouts == 0 {
            assert!(waiting.len() < 16, "16 connections in a backlog of 0");
            match dialer.dial_connection(&address) {
                Ok(connection) => waiting.push(connection),
                Err(_) => timeouts += 1,
            }
        }

        let before = sockets().len();
        for _ in 0..1000 {
            let error = patient.dial_connection(closed).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
        for _ in 0..10 {
            let error = dialer.dial_connection(&address).unwrap_err();
            assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        }
        for _ in 0..100 {
            let path = Address::Unix("/nonexistent/socket".into());
            assert!(dialer.dial_connection(path).is_err());
        }
        assert_eq!(sockets().len(), before);
        drop((waiting, hole, bound));
        settle(start);
    });
}

#[test]
fn binds_that_fail_leave_nothing_behind() {
    in_child("binds_that_fail_leave_nothing_behind", || {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let path = std::env::temp_dir().join(format!("np-fds-{}", std::process::id()));
        let live = UnixListener::bind(&path).unwrap();
        let before = sockets().len();
        for _ in 0..100 {
            assert!(Listener::bind(address).is_err());
        }
        assert!(Listener::bind(path.as_path()).is_err());
        // Takes the path over from one that is gone, and removes it at the end.
        drop(live);
        let listener = Listener::bind(path.as_path()).unwrap();
        drop(listener);
        assert!(!path.exists());
        // The live one counted before.
        assert_eq!(sockets().len(), before - 1);
    });
}

#[test]
fn a_child_process_sees_no_socket() {
    in_child("a_child_process_sees_no_socket", || {
        let start = sockets().len();
        let listener = Listener::bind(([127, 0, 0, 1], 0)).unwrap();
        let dialer = Dialer::new();
        let connection = dialer
            .dial_connection(listener.local_addr().unwrap())
            .unwrap();
        let from_std = Listener::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let fd = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let from_fd = Listener::try_from(fd).unwrap();
        assert_eq!(sockets().len(), start + 4);

        let output = Command::new("ls")
            .args(["-l", "/proc/self/fd"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("pipe:"), "{text}");
        assert!(!text.contains("socket:"), "{text}");
        drop((listener, connection, from_std, from_fd));
        settle(start);
    });
}

//! Rows of docs/reliability.md about unix sockets: servers that were killed, places where nothing
//! may be made.

use crate::support::{LIMIT, Peer, bounded, echo, fresh_path, in_child, only_test};
use netpoll::{Address, Dialer, EventLoop, Listener};
use std::{
    fs,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Stdio},
};

const SERVED: &str = "NETPOLL_TEST_SERVED";

/// Starts this test binary again as a server at `path`; what it says once it has tried.
fn start(name: &str, path: &str) -> (Child, String) {
    let mut child = only_test(name)
        .env(SERVED, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = loop {
        let line = lines.next().expect("the child says something").unwrap();
        if let Some(said) = line.strip_prefix("server: ") {
            break said.to_owned();
        }
    };
    (child, said)
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn row_111_a_killed_servers_path_is_taken_over_and_a_living_ones_is_not() {
    const NAME: &str = "row_111_a_killed_servers_path_is_taken_over_and_a_living_ones_is_not";
    if let Ok(path) = std::env::var(SERVED) {
        match Listener::bind(PathBuf::from(path)) {
            Ok(listener) => {
                let event_loop = EventLoop::new(echo()).unwrap();
                event_loop.serve_in_background(listener).unwrap();
                println!("\nserver: serving");
                // Until the parent kills it, or is gone.
                let _ = io::stdin().read(&mut [0]);
            }
            Err(error) => println!("\nserver: {:?}", error.kind()),
        }
        return;
    }
    bounded("killed", || {
        let path = fresh_path();
        let text = path.to_str().unwrap();
        let address = Address::from(path.as_path());
        for round in 0..5_u8 {
            let (child, said) = start(NAME, text);
            assert_eq!(said, "serving", "round {round}");
            let mut peer = Peer::connect(&address).unwrap();
            peer.ping(&[round]);
            // It lives: nobody gets its place, and it notices nothing.
            let (other, said) = start(NAME, text);
            assert_eq!(said, "AddrInUse");
            kill(other);
            peer.ping(&[round]);
            kill(child);
            peer.expect_gone();
            // The file is still there, and nobody answers.
            assert!(path.exists());
            let error = Dialer::new().dial_connection(address.clone()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        }
        fs::remove_file(&path).unwrap();
    });
}

#[test]
fn row_112_where_nothing_may_be_made_is_an_error_that_names_the_path() {
    in_child(
        "row_112_where_nothing_may_be_made_is_an_error_that_names_the_path",
        || {
            let directory = fresh_path().with_extension("d");
            fs::create_dir(&directory).unwrap();
            let path = directory.join("s");
            let serving = Listener::bind(path.as_path()).unwrap();
            let other = directory.join("other");
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o000)).unwrap();
            // The administrator may do everything, so this process stops being that for a while.
            // SAFETY: a call without arguments that touches no memory.
            let user = unsafe { libc::geteuid() };
            if user == 0 {
                // SAFETY: as above.
                assert_eq!(unsafe { libc::seteuid(65_534) }, 0);
            }
            let bound = Listener::bind(other.as_path());
            let dialled = Dialer::new()
                .connect_timeout(LIMIT)
                .dial_connection(Address::from(path.as_path()));
            if user == 0 {
                // SAFETY: as above; the real user is still the administrator.
                assert_eq!(unsafe { libc::seteuid(0) }, 0);
            }
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
            for (error, at) in [(bound.map(drop), &other), (dialled.map(drop), &path)] {
                let error = error.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
                assert!(error.to_string().contains(at.to_str().unwrap()), "{error}");
            }
            // What was there is untouched, and nothing was added.
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
            drop(serving);
            assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
            fs::remove_dir(&directory).unwrap();
        },
    );
}

//! A process that forks: its child drops what it got a copy of, and changes nothing for the parent.

use crate::support::{LIMIT, descriptors, echo, eventually, frame, fresh_path, in_child};
use netpoll::{Address, Connection, Dialer, Error, EventLoop, Listener, Pool};
use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

/// Forks, calls `child` in the child, and waits for its end: what it returned, if it did not panic.
fn fork(child: impl FnOnce() -> u8) -> Option<u8> {
    // SAFETY: the child has this thread only; what it calls takes no lock that another thread may have
    // held, but by `try_lock`, and it ends without running anything else.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", io::Error::last_os_error());
    if pid == 0 {
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(255);
        // SAFETY: ends the process.
        unsafe { libc::_exit(code.into()) };
    }
    let mut status = 0;
    eventually("the child ends", || {
        // SAFETY: `status` is a live local variable.
        let ended = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) };
        ended == pid
    });
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status) as u8);
    code.filter(|code| *code != 255)
}

fn call(conn: &mut Connection, body: &[u8]) {
    let out = frame(body);
    conn.write_slice(&out).unwrap();
    conn.flush().unwrap();
    assert_eq!(conn.next(out.len()).unwrap(), out);
}

#[test]
fn a_child_that_drops_its_copies_changes_nothing() {
    in_child("a_child_that_drops_its_copies_changes_nothing", || {
        let path = fresh_path();
        let mut event_loop = EventLoop::builder().pollers(2).build(echo()).unwrap();
        let mut addresses = Vec::new();
        for address in [
            Address::from(([127, 0, 0, 1], 0)),
            Address::Unix(path.clone()),
        ] {
            let listener = Listener::bind(address).unwrap();
            addresses.push(listener.local_addr().unwrap());
            event_loop.serve_in_background(listener).unwrap();
        }
        let dialer = Dialer::new().connect_timeout(LIMIT).read_timeout(LIMIT);
        let mut pool = Pool::new(dialer.clone());
        let mut own: Vec<_> = addresses
            .iter()
            .map(|address| dialer.dial_connection(address.clone()).unwrap())
            .collect();
        for conn in &mut own {
            call(conn, b"before");
        }
        for address in &addresses {
            call(&mut pool.get(address).unwrap(), b"before");
        }
        for round in 0..3 {
            let before = descriptors();
            let mut handles: Vec<_> = own.iter().map(Connection::handle).collect();
            handles.extend(event_loop.connections());
            let mut copies = Some((own, pool, event_loop));
            let code = fork(|| {
                let (own, pool, event_loop) = copies.take().unwrap();
                let refused = event_loop.shutdown(Duration::ZERO).unwrap_err();
                assert!(matches!(
                    Error::from_io(&refused),
                    Some(Error::Unsupported(_))
                ));
                assert!(dialer.dial_connection(addresses[0].clone()).is_err());
                for handle in handles.drain(..) {
                    handle.close();
                    handle.abort();
                }
                drop((own, pool, event_loop));
                // Two listeners, two connections of its own, two in the pool, and what served these
                // four; but one that a thread of the parent worked with at the fork stays open.
                u8::from(descriptors() + 5 > before)
            });
            assert_eq!(code, Some(0), "round {round}");
            (own, pool, event_loop) = copies.take().unwrap();
            for conn in &mut own {
                assert!(conn.is_active());
                call(conn, b"after");
            }
            for address in &addresses {
                call(&mut pool.get(address).unwrap(), b"after");
                call(
                    &mut dialer.dial_connection(address.clone()).unwrap(),
                    b"new",
                );
            }
            assert_eq!(pool.stats().dialled, 2, "those that were kept still are");
            assert!(path.exists());
        }
        drop((own, pool));
        event_loop.shutdown(LIMIT).unwrap();
        assert!(!path.exists());
    });
}

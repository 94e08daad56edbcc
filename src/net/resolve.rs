//! Host names to addresses, by a deadline.
//!
//! The system's resolver blocks and cannot be interrupted. Where there is a deadline it runs on a
//! thread of its own, which is left behind if it is late.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use crate::{
    error::{Error, InvalidAddress},
    sync::{Condvar, Mutex},
};

/// The addresses of `host`, at least one, in the order of preference the system has for them.
///
/// Blocks, at most until `deadline`; a host that is an IP address is not looked up.
///
/// # Errors
///
/// What the system's resolver reports, [`Error::DialTimeout`] when the deadline passes,
/// [`InvalidAddress::NoSuchHost`].
pub(super) fn resolve(
    host: &str,
    port: u16,
    deadline: Option<Instant>,
) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    poller::before_blocking();
    let host: Box<str> = host.into();
    let addresses = match deadline {
        None => look_up(&host, port),
        Some(deadline) => match in_time(deadline, &RESOLVERS, move || look_up(&host, port)) {
            Ok(result) => result,
            Err(look_up) => look_up(),
        },
    }?;
    if addresses.is_empty() {
        return Err(Error::InvalidAddress(InvalidAddress::NoSuchHost).into());
    }
    Ok(addresses)
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (host, port).to_socket_addrs().map(Iterator::collect)
}

/// Runs `work` on a thread of its own and waits for it until `deadline`. Gives `work` back if
/// there are too many such threads already, or no further one can be had.
fn in_time<T, F>(
    deadline: Instant,
    running: &'static AtomicUsize,
    work: F,
) -> Result<io::Result<T>, F>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    if running.fetch_add(1, Ordering::Relaxed) >= MAX_RESOLVERS {
        running.fetch_sub(1, Ordering::Relaxed);
        return Err(work);
    }
    let task = Arc::new(Task {
        work: Mutex::new(Some(work)),
        result: Mutex::new(None),
        done: Condvar::new(),
    });
    let theirs = Arc::clone(&task);
    let spawned = thread::Builder::new()
        .name("netpoll-resolve".into())
        .spawn(move || {
            theirs.run();
            running.fetch_sub(1, Ordering::Relaxed);
        });
    if spawned.is_err() {
        running.fetch_sub(1, Ordering::Relaxed);
        let work = task.work.lock().take();
        return match work {
            Some(work) => Err(work),
            // Without a thread nobody else takes it.
            None => Ok(Err(io::ErrorKind::Other.into())),
        };
    }
    let mut result = task.result.lock();
    while result.is_none() {
        if task.done.wait_until(&mut result, deadline).timed_out() && result.is_none() {
            return Ok(Err(Error::DialTimeout.into()));
        }
    }
    Ok(result
        .take()
        .unwrap_or_else(|| Err(Error::DialTimeout.into())))
}

struct Task<T, F> {
    work: Mutex<Option<F>>,
    result: Mutex<Option<io::Result<T>>>,
    done: Condvar,
}

impl<T, F: FnOnce() -> io::Result<T>> Task<T, F> {
    fn run(&self) {
        let Some(work) = self.work.lock().take() else {
            return;
        };
        let result = work();
        *self.result.lock() = Some(result);
        self.done.notify_one();
    }
}

/// Look-ups on threads of their own, late ones included.
static RESOLVERS: AtomicUsize = AtomicUsize::new(0);
const MAX_RESOLVERS: usize = 64;

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn addresses_are_not_looked_up() {
        let past = Some(Instant::now());
        assert_eq!(
            resolve("127.0.0.1", 80, past).unwrap(),
            [SocketAddr::from(([127, 0, 0, 1], 80))]
        );
        assert_eq!(
            resolve("::1", 80, past).unwrap(),
            ["[::1]:80".parse().unwrap()]
        );
    }

    #[test]
    fn names_have_addresses_with_and_without_a_deadline() {
        for deadline in [None, Some(soon())] {
            let addresses = resolve("localhost", 80, deadline).unwrap();
            assert!(!addresses.is_empty());
            for address in addresses {
                assert!(address.ip().is_loopback(), "{address}");
                assert_eq!(address.port(), 80);
            }
        }
    }

    #[test]
    fn a_late_resolver_is_left_behind() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        let (release, wait) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        let result = in_time(
            Instant::now() + Duration::from_millis(5),
            &RUNNING,
            move || {
                let _ = wait.recv();
                let _ = ended.send(());
                Ok(1)
            },
        );
        let error = result.ok().unwrap().unwrap_err();
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        assert_eq!(RUNNING.load(Ordering::Relaxed), 1);
        drop(release);
        end.recv().unwrap();
    }

    #[test]
    fn work_comes_back_when_there_are_too_many_threads() {
        static RUNNING: AtomicUsize = AtomicUsize::new(MAX_RESOLVERS);
        let work = in_time(soon(), &RUNNING, || Ok(5)).err().unwrap();
        assert_eq!(work().unwrap(), 5);
        assert_eq!(RUNNING.load(Ordering::Relaxed), MAX_RESOLVERS);
    }

    #[test]
    fn results_and_errors_come_through() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        assert_eq!(
            in_time(soon(), &RUNNING, || Ok(3)).ok().unwrap().unwrap(),
            3
        );
        let error: io::Result<()> = in_time(soon(), &RUNNING, || {
            Err(io::ErrorKind::PermissionDenied.into())
        })
        .ok()
        .unwrap();
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}

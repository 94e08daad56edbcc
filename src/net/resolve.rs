//! Host names to addresses, by a deadline.
//!
//! The system's resolver blocks and cannot be interrupted. Where there is a deadline, or where others may need
//! the caller's thread, it runs on a thread of its own, of which there are [`MAX_RESOLVERS`] at most; one that is late is left behind. Look-ups
//! beyond that wait in a queue for a thread, and whatever they wait for, their callers wait until the
//! deadline, or until others need their threads, and no longer.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{Arc, LazyLock},
    thread,
    time::Instant,
};

use poller::Waiter;

use super::endable::LooksUp;
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
/// [`Error::Overloaded`] if the calling handler's thread was needed by others,
/// [`InvalidAddress::NoSuchHost`], or that no thread can be had.
pub(super) fn resolve(
    host: &str,
    port: u16,
    deadline: Option<Instant>,
) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let addresses = if deadline.is_none() && !poller::begin_wait(Arc::new(LooksUp)).may_be_ended() {
        look_up(host, port)
    } else {
        let host: Box<str> = host.into();
        RESOLVERS.in_time(deadline, move || look_up(&host, port))
    }?;
    some(addresses)
}

/// What a look-up has found: at least one address.
pub(crate) type Addresses = io::Result<Vec<SocketAddr>>;

/// As [`resolve`], but returns at once: a thread for look-ups calls `found` with the result. Where all of
/// them hang, it is called when one is free.
///
/// # Errors
///
/// That no thread can be had. `found` is not called then.
pub(super) fn resolve_then(
    host: &str,
    port: u16,
    found: impl FnOnce(Addresses) + Send + 'static,
) -> io::Result<()> {
    let host: Box<str> = host.into();
    let work = move || {
        found(look_up(&host, port).and_then(some));
        // No thread waits for the task's own result.
        Ok(Vec::new())
    };
    RESOLVERS.submit(&Task::new(work))
}

/// What was found, unless that is nothing.
fn some(addresses: Vec<SocketAddr>) -> Addresses {
    if addresses.is_empty() {
        return Err(Error::InvalidAddress(InvalidAddress::NoSuchHost).into());
    }
    Ok(addresses)
}

fn look_up(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (host, port).to_socket_addrs().map(Iterator::collect)
}

type Work<T> = Box<dyn FnOnce() -> io::Result<T> + Send>;

/// The threads that look names up, late ones included, and what waits for one of them.
struct Resolvers<T> {
    state: Arc<Mutex<State<T>>>,
    max: usize,
}

struct State<T> {
    queue: VecDeque<Arc<Task<T>>>,
    threads: usize,
}

struct Task<T> {
    work: Mutex<Option<Work<T>>>,
    result: Mutex<Option<io::Result<T>>>,
    done: Condvar,
}

impl<T> Task<T> {
    fn new(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            work: Mutex::new(Some(Box::new(work))),
            result: Mutex::new(None),
            done: Condvar::new(),
        })
    }
}

impl<T: Send + 'static> Waiter for Task<T> {
    fn wake(&self) {
        // Its thread has looked at the mark, and sleeps, or has yet to look.
        drop(self.result.lock());
        self.done.notify_one();
    }
}

impl<T: Send + 'static> Resolvers<T> {
    fn new(max: usize) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                queue: VecDeque::new(),
                threads: 0,
            })),
            max,
        }
    }

    /// Runs `work` on a thread of its own and waits for it until `deadline`, or until others need the
    /// calling thread.
    fn in_time(
        &self,
        deadline: impl Into<Option<Instant>>,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let deadline = deadline.into();
        let task = Task::new(work);
        let waiting = poller::begin_wait(Arc::clone(&task) as Arc<dyn Waiter>);
        self.submit(&task)?;
        let mut in_time = true;
        let mut result = task.result.lock();
        let error = loop {
            if let Some(result) = result.take() {
                return result;
            }
            if waiting.was_ended() {
                break Error::Overloaded;
            }
            if !in_time {
                break Error::DialTimeout;
            }
            match deadline {
                None => task.done.wait(&mut result),
                Some(deadline) => {
                    in_time = !task.done.wait_until(&mut result, deadline).timed_out();
                }
            }
        };
        drop(result);
        // In the queue it would be run for nothing.
        let mut state = self.state.lock();
        state.queue.retain(|other| !Arc::ptr_eq(other, &task));
        drop(state);
        Err(error.into())
    }

    fn submit(&self, task: &Arc<Task<T>>) -> io::Result<()> {
        {
            let mut state = self.state.lock();
            state.queue.push_back(Arc::clone(task));
            if state.threads >= self.max {
                return Ok(());
            }
            state.threads += 1;
        }
        let state = Arc::clone(&self.state);
        let started = thread::Builder::new()
            .name("netpoll-resolve".into())
            .spawn(move || State::work(&state));
        let Err(error) = started else { return Ok(()) };
        let mut state = self.state.lock();
        state.threads -= 1;
        if state.threads > 0 {
            // Those there are serve it.
            return Ok(());
        }
        let before = state.queue.len();
        state.queue.retain(|other| !Arc::ptr_eq(other, task));
        if state.queue.len() == before {
            // Another thread has taken it meanwhile.
            return Ok(());
        }
        // Its kind would say "try again", which the callers of a dial do not expect.
        let text = format!("no thread for a name look-up: {error}");
        Err(io::Error::other(text))
    }
}

impl<T> State<T> {
    /// A thread: runs what is in the queue, then ends.
    fn work(state: &Mutex<Self>) {
        loop {
            let task = {
                let mut state = state.lock();
                let Some(task) = state.queue.pop_front() else {
                    state.threads -= 1;
                    return;
                };
                task
            };
            let work = task.work.lock().take();
            if let Some(work) = work {
                let result = work();
                *task.result.lock() = Some(result);
                task.done.notify_one();
            }
        }
    }
}

static RESOLVERS: LazyLock<Resolvers<Vec<SocketAddr>>> =
    LazyLock::new(|| Resolvers::new(MAX_RESOLVERS));
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

    /// Has a thread hang in a look-up, whose caller has given up, until the sender is dropped.
    fn hang(resolvers: &Resolvers<i32>) -> mpsc::Sender<()> {
        loop {
            let (release, wait) = mpsc::channel::<()>();
            let (begin, begun) = mpsc::channel();
            let deadline = Instant::now() + Duration::from_millis(5);
            let result = resolvers.in_time(deadline, move || {
                let _ = begin.send(());
                let _ = wait.recv();
                Ok(0)
            });
            assert!(Instant::now() >= deadline);
            let error = result.unwrap_err();
            assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
            // One that no thread took in time was taken out of the queue.
            if begun.recv().is_ok() {
                return release;
            }
        }
    }

    #[test]
    fn a_late_resolver_is_left_behind() {
        let resolvers = Resolvers::new(2);
        let release = hang(&resolvers);
        assert!(resolvers.state.lock().threads >= 1);
        drop(release);
        assert_eq!(resolvers.in_time(soon(), || Ok(1)).unwrap(), 1);
    }

    #[test]
    fn behind_hanging_look_ups_the_deadline_is_kept_and_a_free_thread_is_used() {
        let resolvers = Resolvers::new(2);
        let mut releases = vec![hang(&resolvers), hang(&resolvers)];
        for _ in 0..3 {
            let deadline = Instant::now() + Duration::from_millis(10);
            let late = resolvers.in_time(deadline, || panic!("run for nothing"));
            let error = late.unwrap_err();
            assert!(Instant::now() >= deadline);
            assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        }
        // One that waits is served by the first thread that is free again.
        thread::scope(|scope| {
            let waiting = scope.spawn(|| resolvers.in_time(soon(), || Ok(7)));
            releases.pop();
            assert_eq!(waiting.join().unwrap().unwrap(), 7);
        });
        let state = resolvers.state.lock();
        assert!(state.threads <= 2 && state.queue.is_empty());
    }

    /// A job that looks a name up; the look-up hangs until `release` is dropped.
    struct Asks {
        resolvers: Resolvers<i32>,
        tell: mpsc::Sender<Option<Error>>,
        release: Mutex<Option<mpsc::Receiver<()>>>,
    }

    impl poller::Job for Asks {
        fn run(self: Arc<Self>) {
            let release = self.release.lock().take();
            let result = self.resolvers.in_time(None, move || {
                if let Some(release) = release {
                    let _ = release.recv();
                }
                Ok(0)
            });
            let error = result.err().and_then(|error| Error::from_io(&error));
            self.tell.send(error).unwrap();
        }
    }

    #[test]
    fn a_look_up_ends_for_those_that_need_its_thread() {
        let group = poller::PollerGroup::builder().pollers(1).build().unwrap();
        let pool = poller::WorkerPool::builder()
            .max_threads(1)
            .overload_after(Duration::from_millis(20))
            .build();
        group.look_after(&pool);
        let (tell, told) = mpsc::channel();
        let job = |release| {
            Arc::new(Asks {
                resolvers: Resolvers::new(1),
                tell: tell.clone(),
                release: Mutex::new(release),
            })
        };
        let (hold, release) = mpsc::channel();
        assert!(pool.submit(job(Some(release))).is_ok());
        assert!(pool.submit(job(None)).is_ok());
        let limit = Duration::from_secs(60);
        assert_eq!(told.recv_timeout(limit), Ok(Some(Error::Overloaded)));
        assert_eq!(told.recv_timeout(limit), Ok(None));
        drop(hold);
        pool.close();
        group.close();
    }

    #[test]
    fn results_and_errors_come_through() {
        let resolvers = Resolvers::new(1);
        assert_eq!(resolvers.in_time(soon(), || Ok(3)).unwrap(), 3);
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        let error = resolvers.in_time(soon(), denied).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }
}

//! Draining an event loop when the process is asked to end.
//!
//! Signals are handled through `signal-hook`, which shares them with its other users in the
//! process: its handler writes a byte into a socket pair, and a thread of ours waits for that.
//!
//! `signal-hook` never takes its handler off a signal again. So that a signal has its old effect
//! once nobody drains on it any more, an action stays behind that plays the default one while
//! [`taken`] counts no guard for the signal. A handler that was there before is called by
//! `signal-hook` all the time.

use crate::{
    connection::in_callback,
    error::Error,
    event_loop::{DrainWatcher, EventLoop},
    sync::{Condvar, Mutex},
    trace,
};
use signal_hook::{
    SigId,
    consts::FORBIDDEN,
    flag::register_conditional_default,
    low_level::{pipe, unregister},
};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    ffi::c_int,
    fmt,
    io::{self, Read},
    mem::MaybeUninit,
    os::unix::net::UnixStream,
    ptr,
    // What a signal handler looks at must be the real thing, whatever the rest is checked with.
    sync::atomic::{AtomicBool, Ordering},
    sync::{Arc, OnceLock, Weak},
    thread,
    time::Duration,
};

pub use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// Shuts `event_loop` down when one of `signals` arrives.
///
/// * The **first** signal drains: the listeners are closed, idle connections too, a request that
///   was received is answered if its handler ends within `grace`. What is left then is aborted,
///   with all its callbacks run.
/// * A **second** one (of any of these signals) aborts at once.
/// * More are ignored.
///
/// Returns at once; a thread of its own, `netpoll-signals`, waits for the signals. The result is
/// [waited for](SignalGuard::wait) on the guard. Dropping the guard gives the
/// signals their former effect back; a drain that has begun goes on. The guard keeps the loop
/// alive. Several loops may drain on the same signals.
///
/// Nothing in this crate touches signals unless this is called. Then the process-wide handlers
/// of `signals` are `signal-hook`'s, which calls those that were installed before as well.
///
/// # Errors
///
/// `InvalidInput` if `signals` is empty or holds one that cannot be handled, such as `SIGKILL`;
/// what the system reports if a handler, a socket pair or a thread cannot be made.
///
/// # Examples
///
/// ```no_run
/// use netpoll::{EventLoop, Listener, SIGINT, SIGTERM, handler_fn, shutdown_on};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// let server = EventLoop::new(handler_fn(|conn| conn.skip(conn.available())))?;
/// let signals = shutdown_on(&server, &[SIGINT, SIGTERM], Duration::from_secs(30))?;
/// server.serve(Listener::bind(([0, 0, 0, 0], 7000))?)?;
/// match signals.wait()? {
///     0 => println!("all connections ended in time"),
///     cut => println!("{cut} connections were cut"),
/// }
/// # Ok(())
/// # }
/// ```
pub fn shutdown_on(
    event_loop: &EventLoop,
    signals: &[c_int],
    grace: Duration,
) -> io::Result<SignalGuard> {
    if signals.is_empty() {
        let text = "shutdown_on without a signal: name at least one";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let (reader, writer) = UnixStream::pair()?;
    let reader = Arc::new(reader);
    let watch = Arc::new(Watch {
        event_loop: event_loop.clone(),
        grace,
        progress: Mutex::new(Progress::default()),
        changed: Condvar::new(),
    });
    let watcher: Weak<dyn DrainWatcher> = Arc::downgrade(&watch) as _;
    event_loop.watch_drain(watcher);
    // From here on its drop undoes what was done.
    let mut guard = SignalGuard {
        watch: Arc::clone(&watch),
        handled: Vec::new(),
        watcher: None,
        _reader: Arc::clone(&reader),
    };
    for &signal in signals {
        if guard.handled.iter().all(|handled| handled.signal != signal) {
            guard.handled.push(Handled::new(signal, &writer)?);
        }
    }
    let watcher = thread::Builder::new().name("netpoll-signals".into());
    guard.watcher = Some(watcher.spawn(move || watch.run(&reader))?);
    Ok(guard)
}

/// An event loop that is shut down by signals: see [`shutdown_on`].
#[must_use = "the signals have their former effect back when this is dropped"]
pub struct SignalGuard {
    watch: Arc<Watch>,
    handled: Vec<Handled>,
    watcher: Option<thread::JoinHandle<()>>,
    /// Outlives the handlers that write to the other end.
    _reader: Arc<UnixStream>,
}

impl SignalGuard {
    /// Waits for a signal and for the shutdown that it begins. Returns how many connections were
    /// cut because they had not ended within the grace period, or by the second signal.
    ///
    /// If the loop was shut down without a signal this waits for that, at most the grace period,
    /// and returns 0.
    ///
    /// # Errors
    ///
    /// [`Error::ShutdownIncomplete`] if callbacks still run some seconds after everything was
    /// aborted, or if a shutdown without a signal takes longer than the grace period;
    /// [`Error::WouldDeadlock`] in a callback.
    pub fn wait(&self) -> io::Result<usize> {
        if in_callback() || poller::is_polling_thread() {
            return Err(Error::WouldDeadlock.into());
        }
        let watch = &self.watch;
        poller::before_blocking();
        let mut progress = watch.progress.lock();
        loop {
            if let Some(result) = progress.result() {
                return result;
            }
            if progress.signals == 0 && watch.event_loop.is_shutting_down() {
                drop(progress);
                let result = watch.event_loop.shutdown(watch.grace);
                progress = watch.progress.lock();
                if progress.signals == 0 {
                    return match result.as_ref().map_err(Error::from_io) {
                        Err(Some(Error::ShutdownCut { cut })) => Ok(cut),
                        _ => result.map(|()| 0),
                    };
                }
                continue;
            }
            // Woken by the results, and when a shutdown begins without a signal.
            watch.changed.wait(&mut progress);
        }
    }

    /// The result if there is one: see [`wait`](Self::wait). Never waits.
    pub fn poll(&self) -> Option<io::Result<usize>> {
        self.watch.progress.lock().result()
    }
}

impl Drop for SignalGuard {
    fn drop(&mut self) {
        self.handled.clear();
        // The watcher ends now that nobody can write to it, unless it is in a forced shutdown.
        let progress = self.watch.progress.lock();
        let ends = progress.signals == 0 || progress.result().is_some();
        drop(progress);
        if let Some(watcher) = self.watcher.take().filter(|_| ends) {
            let _ = watcher.join();
        }
    }
}

impl fmt::Debug for SignalGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalGuard")
            .field(
                "signals",
                &self.handled.iter().map(|h| h.signal).collect::<Vec<_>>(),
            )
            .field("progress", &*self.watch.progress.lock())
            .finish_non_exhaustive()
    }
}

/// What guard, watcher and drain share.
struct Watch {
    event_loop: EventLoop,
    grace: Duration,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    signals: u32,
    drained: Option<io::Result<usize>>,
    forced: Option<io::Result<usize>>,
}

impl Progress {
    fn result(&self) -> Option<io::Result<usize>> {
        if self.signals < 2 {
            return self.drained.as_ref().map(copy);
        }
        // Both may have seen the same connections at the end of the grace period.
        let cut = match &self.drained {
            Some(Ok(cut)) => *cut,
            _ => 0,
        };
        self.forced
            .as_ref()
            .map(|forced| copy(forced).map(|n| n.max(cut)))
    }
}

impl DrainWatcher for Watch {
    fn drain_begins(&self) {
        // Whoever looked before is woken, whoever comes later sees it.
        drop(self.progress.lock());
        self.changed.notify_all();
    }
}

impl Watch {
    /// The watcher's thread: counts signals until nobody can send any more.
    fn run(self: Arc<Self>, mut pipe: &UnixStream) {
        let mut byte = [0];
        loop {
            match pipe.read(&mut byte) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return trace::error!("no more signals are noticed: {e}"),
            }
            let signals = {
                let mut progress = self.progress.lock();
                progress.signals = progress.signals.saturating_add(1);
                progress.signals
            };
            match signals {
                1 => self.drain(),
                2 => self.force(),
                _ => {}
            }
        }
    }

    /// Drains on a thread of its own, so that a second signal is noticed.
    fn drain(self: &Arc<Self>) {
        trace::info!("a signal came: shutting down within {:?}", self.grace);
        let this = Arc::clone(self);
        let drain = move || {
            let result = this.event_loop.shutdown_forced(this.grace);
            this.progress.lock().drained = Some(result);
            this.changed.notify_all();
        };
        let thread = thread::Builder::new().name("netpoll-drain".into());
        if let Err(error) = thread.spawn(drain) {
            // Without a thread nobody could tell how much time is left: force it.
            trace::error!("no thread to drain on: {error}");
            let result = self.event_loop.shutdown_forced(Duration::ZERO);
            self.progress.lock().drained = Some(result);
            self.changed.notify_all();
        }
    }

    fn force(&self) {
        trace::info!("a second signal came: closing what is left");
        let result = self.event_loop.shutdown_forced(Duration::ZERO);
        self.progress.lock().forced = Some(result);
        self.changed.notify_all();
    }
}

/// A result to be given out again.
fn copy(result: &io::Result<usize>) -> io::Result<usize> {
    match result {
        Ok(cut) => Ok(*cut),
        Err(error) => Err(Error::from_io(error).map_or_else(
            || io::Error::new(error.kind(), error.to_string()),
            Into::into,
        )),
    }
}

/// One signal that writes to a watcher.
struct Handled {
    signal: c_int,
    id: SigId,
}

impl Handled {
    fn new(signal: c_int, watcher: &UnixStream) -> io::Result<Self> {
        if FORBIDDEN.contains(&signal) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("signal {signal} cannot be handled: choose SIGTERM or SIGINT"),
            ));
        }
        let watcher = watcher.try_clone()?;
        let mut all = taken().lock();
        let taken = match all.entry(signal) {
            Entry::Occupied(taken) => taken.into_mut(),
            Entry::Vacant(place) => place.insert(Taken::new(signal)?),
        };
        let id = pipe::register(signal, watcher)?;
        taken.guards += 1;
        taken.free.store(false, Ordering::SeqCst);
        Ok(Self { signal, id })
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        let mut taken = taken().lock();
        if let Some(taken) = taken.get_mut(&self.signal) {
            taken.guards -= 1;
            // First, so that no signal falls in between and is lost.
            taken.free.store(taken.guards == 0, Ordering::SeqCst);
        }
        unregister(self.id);
    }
}

/// A signal that had a guard at some time.
struct Taken {
    guards: usize,
    /// No guard wants the signal, so it has its default effect if it had that before.
    free: Arc<AtomicBool>,
}

/// All signals that had a guard at some time.
fn taken() -> &'static Mutex<BTreeMap<c_int, Taken>> {
    static TAKEN: OnceLock<Mutex<BTreeMap<c_int, Taken>>> = OnceLock::new();
    TAKEN.get_or_init(Mutex::default)
}

impl Taken {
    fn new(signal: c_int) -> io::Result<Self> {
        let free = Arc::new(AtomicBool::new(true));
        if is_default(signal)? {
            register_conditional_default(signal, Arc::clone(&free))?;
        }
        Ok(Self { guards: 0, free })
    }
}

/// Whether the process has neither a handler for the signal nor ignores it.
fn is_default(signal: c_int) -> io::Result<bool> {
    let mut now = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action the call only writes the present one to `now`, which is large
    // enough for it and ours alone.
    #[allow(unsafe_code)]
    let failed = unsafe { libc::sigaction(signal, ptr::null(), now.as_mut_ptr()) } != 0;
    if failed {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has written the whole structure.
    #[allow(unsafe_code)]
    let now = unsafe { now.assume_init() };
    Ok(now.sa_sigaction == libc::SIG_DFL)
}

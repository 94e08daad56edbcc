//! Keeps count of callbacks and checks their order from outside of the library.

use netpoll::{ConnectionHandle, EventLoop};
use std::{
    collections::HashMap,
    fmt::Write as _,
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

/// Which callback of a connection came last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    New,
    Prepared,
    Connected,
    Disconnected,
    Closed,
}

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct Track {
    handle: ConnectionHandle,
    phase: AtomicU8,
    /// A callback is running.
    busy: AtomicBool,
    /// Bytes the handler took out of the input.
    consumed: AtomicU64,
}

/// The books of a server.
#[derive(Debug, Default)]
pub(crate) struct Book {
    prepared: AtomicU64,
    connected: AtomicU64,
    disconnected: AtomicU64,
    closed: AtomicU64,
    violations: AtomicU64,
    open: Mutex<Open>,
    server: OnceLock<EventLoop>,
}

/// Connections whose close callback has not run, and what the others did in all.
#[derive(Debug, Default)]
struct Open {
    tracks: HashMap<u64, Arc<Track>>,
    past_in: u64,
    past_out: u64,
}

/// A callback is running until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    track: &'a Track,
}

impl Book {
    /// The server whose figures go into the books too.
    pub(crate) fn watch(&self, server: &EventLoop) {
        let _ = self.server.set(server.clone());
    }

    /// The first callback of a connection.
    pub(crate) fn prepare(self: &Arc<Self>, handle: ConnectionHandle) {
        let id = handle.id();
        let track = Arc::new(Track {
            handle: handle.clone(),
            phase: AtomicU8::new(Phase::New as u8),
            busy: AtomicBool::new(false),
            consumed: AtomicU64::new(0),
        });
        if self.open().tracks.insert(id, Arc::clone(&track)).is_some() {
            self.violation("on_prepare came twice");
        }
        drop(self.enter(&track, &[Phase::New], Phase::Prepared));
        let book = Arc::clone(self);
        handle.on_close(move |_| book.close(&track));
    }

    /// The track of a connection that was prepared.
    pub(crate) fn find(&self, id: u64) -> io::Result<Arc<Track>> {
        let found = self.open().tracks.get(&id).cloned();
        found.ok_or_else(|| {
            self.violation("on_connect came without on_prepare");
            io::Error::other("on_connect came without on_prepare")
        })
    }

    /// Notes that a callback begins which may come after `allowed` and leads to `next`.
    pub(crate) fn enter<'a>(&self, track: &'a Track, allowed: &[Phase], next: Phase) -> Inside<'a> {
        if track.busy.swap(true, Ordering::SeqCst) {
            self.violation("two callbacks at once");
        }
        let before = track.phase.swap(next as u8, Ordering::SeqCst);
        if !allowed.iter().any(|&phase| phase as u8 == before) {
            self.violation("a callback out of order");
        }
        match next {
            Phase::New => None,
            Phase::Prepared => Some(&self.prepared),
            Phase::Connected if before == next as u8 => None,
            Phase::Connected => Some(&self.connected),
            Phase::Disconnected => Some(&self.disconnected),
            Phase::Closed => Some(&self.closed),
        }
        .map(|count| count.fetch_add(1, Ordering::SeqCst));
        Inside { track }
    }

    fn close(&self, track: &Track) {
        drop(self.enter(
            track,
            &[Phase::Prepared, Phase::Disconnected],
            Phase::Closed,
        ));
        let mut open = self.open();
        let stats = track.handle.stats();
        open.past_in += stats.bytes_in;
        open.past_out += stats.bytes_out;
        if open.tracks.remove(&track.handle.id()).is_none() {
            self.violation("the close callback came twice");
        }
    }

    fn violation(&self, what: &str) {
        self.violations.fetch_add(1, Ordering::SeqCst);
        eprintln!("order violated: {what}");
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All figures as one line of JSON.
    pub(crate) fn json(&self) -> String {
        let open = self.open();
        let (mut bytes_in, mut bytes_out) = (open.past_in, open.past_out);
        let (mut buffered_in, mut buffered_out) = (0, 0);
        for track in open.tracks.values() {
            // What is consumed was received before: in this order the difference is no less
            // than zero.
            let consumed = track.consumed.load(Ordering::SeqCst);
            let stats = track.handle.stats();
            bytes_in += stats.bytes_in;
            bytes_out += stats.bytes_out;
            buffered_in += stats.bytes_in.saturating_sub(consumed);
            buffered_out += stats.queued as u64;
        }
        let connections = open.tracks.len();
        drop(open);

        let stats = self.server.get().map(EventLoop::stats).unwrap_or_default();
        let count = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        let mut errors = String::new();
        for (errno, times) in &stats.accept_errors {
            let comma = if errors.is_empty() { "" } else { "," };
            let _ = write!(errors, "{comma}\"{errno}\":{times}");
        }
        format!(
            "{{\"connections\":{connections},\"prepared\":{},\"connected\":{},\
             \"disconnected\":{},\"closed\":{},\"order_violations\":{},\"panics\":{},\
             \"bytes_in\":{bytes_in},\"bytes_out\":{bytes_out},\"buffered_in\":{buffered_in},\
             \"buffered_out\":{buffered_out},\"threads\":{},\"accept_errors\":{{{errors}}}}}",
            count(&self.prepared),
            count(&self.connected),
            count(&self.disconnected),
            count(&self.closed),
            count(&self.violations),
            stats.panics,
            threads(),
        )
    }

    /// Writes the figures to a file that appears whole.
    pub(crate) fn write(&self, path: &Path) {
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let written = fs::write(&new, self.json() + "\n").and_then(|()| fs::rename(&new, path));
        if let Err(error) = written {
            eprintln!("{}: {error}", path.display());
        }
    }
}

impl Track {
    /// The handler took `n` bytes out of the input.
    pub(crate) fn consumed(&self, n: usize) {
        self.consumed.fetch_add(n as u64, Ordering::SeqCst);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.track.busy.store(false, Ordering::SeqCst);
    }
}

/// Threads of this process; 0 where the system does not tell.
fn threads() -> usize {
    fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

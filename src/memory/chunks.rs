//! Gives chunks back to the allocator that are not used any more.
//!
//! The pool says when it keeps much. Then a poller of some loop or dialer [trims](ChunkPool::trim) it, every
//! [`PERIOD`] for as long as it does: after a peak what was not used in a whole period is freed. A pool that
//! keeps little has no timer.

use crate::sync::{AtomicU64, Mutex, Ordering};
use linkbuffer::ChunkPool;
use poller::{PollerGroup, PollerHandle};
use std::time::{Duration, Instant};

/// How often chunks that were not needed are freed.
const PERIOD: Duration = Duration::from_secs(2);

/// One poller of each loop and each dialer that there is.
static POLLERS: Mutex<Vec<(u64, PollerHandle)>> = Mutex::new(Vec::new());
/// Numbers entries of that, and trims.
static NEXT: AtomicU64 = AtomicU64::new(1);
/// The trim that will happen. An earlier one that is still to come does nothing.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// A loop's or a dialer's part in this: its pollers may do it.
#[derive(Debug)]
pub(crate) struct Trimming(u64);

impl Trimming {
    pub(crate) fn by(group: &PollerGroup) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut is_first = false;
        if let Some(poller) = group.handles().first() {
            let mut pollers = POLLERS.lock();
            is_first = pollers.iter().all(|(_, poller)| poller.is_inherited());
            pollers.push((id, poller.clone()));
        }
        let pool = ChunkPool::global();
        if !pool.watch(trim_later) && is_first {
            // What it said meanwhile was in vain.
            pool.trim();
        }
        Self(id)
    }
}

impl Drop for Trimming {
    fn drop(&mut self) {
        if take_out(self.0) {
            // No poller is left for it.
            ChunkPool::global().clear();
        }
    }
}

/// `true`: it was the last one.
fn take_out(id: u64) -> bool {
    let mut pollers = POLLERS.lock();
    let Some(i) = pollers.iter().position(|&(its, _)| its == id) else {
        return false;
    };
    let poller = pollers.swap_remove(i);
    let is_last = pollers.is_empty();
    drop(pollers);
    drop(poller);
    is_last
}

/// Called wherever a chunk is given back.
fn trim_later() {
    let pollers = POLLERS.lock();
    // Those that a child process has from its parent do nothing.
    let first = pollers.iter().find(|(_, poller)| !poller.is_inherited());
    let first = first.cloned();
    drop(pollers);
    if let Some((id, poller)) = first {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        LATEST.store(number, Ordering::SeqCst);
        let due = Due {
            number,
            of: Some(id),
        };
        poller.schedule(Instant::now() + PERIOD, move || due.trim());
    }
}

/// A trim that a poller is to do.
struct Due {
    number: u64,
    /// Whose poller that is, until it does.
    of: Option<u64>,
}

impl Due {
    fn trim(mut self) {
        self.of = None;
        if LATEST.load(Ordering::SeqCst) == self.number {
            ChunkPool::global().trim();
        }
    }
}

impl Drop for Due {
    /// The poller is closed: another one does it.
    fn drop(&mut self) {
        let Some(id) = self.of.take() else { return };
        if take_out(id) {
            ChunkPool::global().clear();
        } else if LATEST.load(Ordering::SeqCst) == self.number {
            trim_later();
        }
    }
}

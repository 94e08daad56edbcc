//! The end of a relay whose event loop drains.
//!
//! A relay knows no protocol, so it has to guess when nothing is under way: no bytes in our hands,
//! none moved for a while, and no answer owed. Each side is kept open by a hold. When the relay is
//! quiet the draining side's hold is dropped; then its connection ends as every draining one
//! does, after it asked the kernel once more for input. If there is some the hold is taken again.

use super::Core;
use crate::{connection::DRAIN, sync::Ordering};
use std::time::{Duration, Instant};

/// Nothing moved for so long: nothing is under way.
const QUIET: Duration = Duration::from_millis(100);
/// How soon to look again at a relay that is at work at the moment.
const AGAIN: Duration = Duration::from_millis(20);

impl Core {
    /// The loop of side `index` drains.
    pub(super) fn begin_drain(&self, index: usize) {
        if !self.lanes[index].draining.swap(true, Ordering::AcqRel) {
            self.watch_drain(index, Duration::ZERO);
        }
    }

    /// Side `index` received something: if it was let go it is needed again.
    pub(super) fn hold_again(&self, index: usize) {
        if self.lanes[index].hold_again() {
            self.watch_drain(index, QUIET);
        }
    }

    /// Looks after `pause` whether the relay is quiet, and not before it can be.
    fn watch_drain(&self, index: usize, pause: Duration) {
        let Some(registration) = self.lanes[index].shared.registration() else {
            return;
        };
        let now = Instant::now();
        let moved_at = Duration::from_millis(self.moved_at.load(Ordering::Relaxed));
        let due = match self.epoch.checked_add(moved_at + QUIET) {
            Some(quiet) => quiet.max(now + pause),
            None => now + pause,
        };
        let this = self.this.get().cloned().unwrap_or_default();
        registration.poller().schedule(due, move || {
            let Some(core) = this.upgrade() else { return };
            if core.progress.lock().end.is_some() {
                return;
            }
            if core.is_quiet(index) {
                core.lanes[index].let_go();
            } else {
                core.watch_drain(index, AGAIN);
            }
        });
    }

    fn is_quiet(&self, index: usize) -> bool {
        let moved_at = self.moved_at.load(Ordering::Relaxed);
        let still = self.now().saturating_sub(moved_at) >= QUIET.as_millis() as u64;
        still && !self.owes_an_answer(index) && !self.lanes.iter().any(super::Lane::is_busy)
    }

    /// Whether the peer of draining side `index` sent last. If both sides drain nobody knows which
    /// of them asks.
    fn owes_an_answer(&self, index: usize) -> bool {
        let asks = self.lanes[index].moved() > 0;
        let last = self.last.load(Ordering::Acquire) as usize == index;
        asks && last && !self.lanes[1 - index].shared.word.has(DRAIN)
    }
}

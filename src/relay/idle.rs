//! Relays on which nothing moves.
//!
//! What passes through is noted as it passes. What a kernel has taken moves unseen: it reports room late,
//! when a third of a send buffer is free on Linux. So as long as there is such output the sockets are asked
//! what has become of it, often enough that an idle relay ends at most an eighth of its timeout late.

use super::{Core, RelayEnd, side::Lane};
use crate::{connection::COARSE, sync::Ordering};
use std::time::{Duration, Instant};

/// How often output that is under way is asked for within the timeout.
const LOOKS: u32 = 8;
/// Not more often than timers are looked at.
const SHORTEST: Duration = Duration::from_millis(10);

impl Core {
    /// Looks again when the idle timeout may have passed.
    pub(super) fn watch_idleness(&self) {
        let Some(timeout) = self.idle_timeout else {
            return;
        };
        let Some(registration) = self.lanes[0].shared.registration() else {
            return;
        };
        let now = Instant::now();
        let moved_at = Duration::from_millis(self.moved_at.load(Ordering::Relaxed));
        let due = self
            .epoch
            .checked_add(moved_at)
            .and_then(|at| at.checked_add(timeout));
        let soon = self
            .note_outgoing()
            .then(|| now.checked_add(SHORTEST.max(timeout / LOOKS)))
            .flatten();
        let Some(due) = due.into_iter().chain(soon).min() else {
            return;
        };
        let this = self.this.get().cloned().unwrap_or_default();
        registration.poller().schedule(due.max(now), move || {
            if let Some(core) = this.upgrade() {
                core.look_for_idleness(timeout);
            }
        });
    }

    fn look_for_idleness(&self, timeout: Duration) {
        if self.progress.lock().end.is_some() {
            return;
        }
        self.note_outgoing();
        let moved_at = u128::from(self.moved_at.load(Ordering::Relaxed));
        if self.epoch.elapsed().as_millis() >= moved_at + timeout.as_millis() {
            // Input that waits to be read is not idleness.
            if !self.lanes.iter().any(Lane::has_news) {
                return self.stop(RelayEnd::IdleTimeout);
            }
            self.renew();
        }
        self.watch_idleness();
    }

    /// Notes whether the sides' output has moved since the last time. `true`: some is under way.
    fn note_outgoing(&self) -> bool {
        let mut under_way = false;
        for lane in &self.lanes {
            let Some(socket) = lane.shared.socket() else {
                continue;
            };
            let present = lane.outgoing(&socket);
            under_way |= present.is_under_way() || lane.shared.outbox.queued() > 0;
            let before = std::mem::replace(&mut *lane.seen.lock(), present);
            if before != present {
                let ago = socket.since_acknowledged().unwrap_or_default();
                let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
                let at = self.now().saturating_sub(ago.saturating_sub(COARSE));
                self.moved_at.fetch_max(at, Ordering::Relaxed);
            }
        }
        under_way
    }
}

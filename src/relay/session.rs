//! The callbacks of one side of a relay.

#[cfg(target_os = "linux")]
use super::kernel::KernelPath;
use super::{Core, RelayEnd, side::Returned};
use crate::{
    connection::{
        ABORT, BROKEN, CLOSE, CLOSED, Connection, ConnectionHandle, DRAIN, FLUSHING, HELD, QUEUED,
    },
    error::CloseReason,
    handler::{Hooks, Session},
    sync::Ordering,
};
use std::{fmt, io, net::Shutdown, sync::Arc, thread};

/// Bytes received before they are passed on.
const SHARE: usize = 64 << 10;
/// Receives of a last look: a peer that never pauses is not waited for.
const LAST_RECEIVES: usize = 1024;

pub(super) struct RelaySession {
    core: Arc<Core>,
    index: usize,
    #[cfg(target_os = "linux")]
    kernel: KernelPath,
}

impl RelaySession {
    pub(super) fn new(core: &Arc<Core>, index: usize) -> Self {
        Self {
            core: Arc::clone(core),
            index,
            #[cfg(target_os = "linux")]
            kernel: KernelPath::default(),
        }
    }

    /// Nothing goes past our memory any more.
    fn leave_kernel(&mut self) {
        #[cfg(target_os = "linux")]
        {
            let lanes = &self.core.lanes;
            self.kernel
                .leave(&lanes[self.index], &lanes[1 - self.index].shared);
        }
    }

    /// The other side has ended and this one is to be kept: what it had sent before is passed on, and the
    /// relay is over.
    fn look_a_last_time(&mut self, conn: &mut Connection) -> io::Result<()> {
        if self.index == 0 || !self.core.leaving.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.leave_kernel();
        let lane = &self.core.lanes[self.index];
        for _ in 0..LAST_RECEIVES {
            if lane.paused.load(Ordering::SeqCst) {
                // Goes on when the other side has room.
                return Ok(());
            }
            conn.rx.readable = true;
            conn.rx.receive(SHARE);
            if conn.available() == 0 || lane.is_deaf() {
                break;
            }
            self.core.forward(self.index, conn)?;
        }
        self.core.stop(RelayEnd::Released);
        self.give_back(conn).map(drop)
    }

    /// Gives the connection back if the relay was interrupted.
    fn give_back(&mut self, conn: &mut Connection) -> io::Result<bool> {
        if !self.core.gives_back(self.index) {
            return Ok(false);
        }
        self.leave_kernel();
        let taken = conn.hijack()?;
        self.core.lanes[self.index].release();
        self.core
            .settle(self.index, Returned::Open(Box::new(taken)));
        Ok(true)
    }
}

impl Session for RelaySession {
    fn prepare(&mut self, _: &mut Connection) -> io::Result<()> {
        Ok(())
    }

    fn connect(&mut self, _: &mut Connection) -> io::Result<()> {
        if self.core.lanes[self.index].shared.outbox.queued() == 0 {
            // It may have drained before this side was told of that.
            self.core.drained(self.index);
        }
        Ok(())
    }

    fn request(&mut self, conn: &mut Connection) -> io::Result<()> {
        if self.give_back(conn)? {
            return Ok(());
        }
        let lane = &self.core.lanes[self.index];
        if lane.is_deaf() {
            lane.drop_input(conn);
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        self.kernel.note(conn.available());
        self.core.forward(self.index, conn)?;
        self.look_a_last_time(conn)
    }

    fn steers_input(&self) -> bool {
        true
    }

    #[cfg(target_os = "linux")]
    fn pump(&mut self, conn: &mut Connection) -> bool {
        !self.core.gives_back(self.index) && self.kernel.pump(&self.core, self.index, conn)
    }

    fn wrote(&mut self, conn: &mut Connection) -> io::Result<()> {
        if self.core.lanes[self.index].shared.outbox.queued() == 0 {
            self.core.drained(self.index);
        }
        if self.give_back(conn)? {
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        self.kernel.retire_if_still(&self.core, self.index);
        self.look_a_last_time(conn)
    }

    fn disconnect(&mut self, conn: &mut Connection, reason: CloseReason) {
        self.core.look_for_end(self.index, conn);
        let cut = self.core.is_cut(self.index);
        self.never_connected(reason);
        if cut {
            // With an end in order what it got would look complete.
            conn.shared().abort_with(reason);
        }
    }

    fn never_connected(&mut self, reason: CloseReason) {
        self.leave_kernel();
        self.core.lanes[self.index].release();
        self.core.settle(self.index, Returned::Closed(reason));
    }

    fn hooks(&self) -> Option<Arc<dyn Hooks>> {
        Some(Arc::new(RelayHooks {
            core: Arc::clone(&self.core),
            index: self.index,
        }))
    }

    /// Asked in every turn, also in the one that a drain begins with.
    fn input_share(&self, _: usize) -> usize {
        let lane = &self.core.lanes[self.index];
        if lane.shared.word.has(DRAIN) {
            self.core.begin_drain(self.index);
        }
        if lane.shared.word.has(BROKEN) {
            // What was queued for this side is dropped.
            self.core.resume(1 - self.index);
        }
        // What is not wanted is read only where that leads to an end.
        let unwanted = lane.is_deaf() && !lane.is_broken();
        let paused = lane.paused.load(Ordering::Acquire) && !lane.is_deaf();
        if paused || unwanted { 0 } else { SHARE }
    }

    fn ends_when_taken(&self) -> bool {
        true
    }

    fn wants_end(&self) -> bool {
        true
    }
}

impl fmt::Debug for RelaySession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelaySession")
            .field("side", &self.index)
            .finish_non_exhaustive()
    }
}

/// Output of one side drained: the other may go on.
struct RelayHooks {
    core: Arc<Core>,
    index: usize,
}

impl Hooks for RelayHooks {
    fn in_turn(&self) -> bool {
        false
    }

    fn write_complete(&self, _: &ConnectionHandle) {
        self.core.renew();
        self.core.drained(self.index);
    }
}

impl Core {
    /// Passes on what side `index` received.
    fn forward(&self, index: usize, conn: &mut Connection) -> io::Result<()> {
        let (from, to) = (&self.lanes[index], &self.lanes[1 - index]);
        let n = conn.available();
        if n > 0 {
            self.received(index);
            // Straight from where it was received: what the kernel does not take now is linked
            // into the other side's queue.
            if let Err(error) = to.shared.push(conn.rx.buffer()) {
                if !to.shared.word.has(BROKEN | ABORT | CLOSE | CLOSED) {
                    return Err(error);
                }
                // The other side ends by itself, and this one when it has all that came from there.
                from.deafen();
                from.drop_input(conn);
                return Ok(());
            }
            from.count(n);
            self.renew_at(to.shared.last_active());
            self.pause_if_full(index);
        }
        self.look_for_end(index, conn);
        Ok(())
    }

    /// Side `index` is not read any more if too much waits at the other one.
    pub(super) fn pause_if_full(&self, index: usize) {
        let (from, to) = (&self.lanes[index], &self.lanes[1 - index].shared);
        if to.word.has(QUEUED) && to.outbox.queued() > self.in_flight {
            from.paused.store(true, Ordering::SeqCst);
            // It may have drained before the pause was visible.
            if to.outbox.queued() <= self.in_flight {
                from.paused.store(false, Ordering::SeqCst);
            }
        }
    }

    /// Passes the end of side `index` on if it is there.
    fn look_for_end(&self, index: usize, conn: &Connection) {
        let from = &self.lanes[index];
        if !conn.has_eof() || from.ended.load(Ordering::SeqCst) {
            return;
        }
        if index == 0 && self.keep_b {
            if !self.leaving.swap(true, Ordering::SeqCst) {
                self.lanes[1].poke();
            }
            return;
        }
        // A send that is under way may have taken a reset away, which looks like an end here then.
        // To a socket that is gone it fails at once, and the failure is noted.
        while self.sends_to(index) && !from.shared.word.has(BROKEN) && from.is_gone() {
            thread::yield_now();
        }
        if !from.was_reset() {
            from.ended.store(true, Ordering::SeqCst);
            self.hold_again(index);
            self.pass_end_on(index);
        }
    }

    /// Whether a call is under way that may take an error from the socket of side `index`.
    fn sends_to(&self, index: usize) -> bool {
        let role = self.lanes[index].shared.word.load() & (FLUSHING | HELD);
        role == FLUSHING || self.lanes[1 - index].piping.load(Ordering::SeqCst)
    }

    /// Side `index` has nothing queued any more.
    fn drained(&self, index: usize) {
        let other = 1 - index;
        self.resume(other);
        self.pass_end_on(other);
    }

    /// Side `index` may be read again.
    fn resume(&self, index: usize) {
        if self.lanes[index].paused.swap(false, Ordering::SeqCst) {
            self.lanes[index].poke();
        }
    }

    /// Ends the output of the side opposite `index` if its input has ended and all of it is on
    /// its way.
    pub(super) fn pass_end_on(&self, index: usize) {
        let (from, to) = (&self.lanes[index], &self.lanes[1 - index]);
        if !from.ended.load(Ordering::SeqCst) || to.shared.outbox.queued() > 0 {
            return;
        }
        if !from.passed_on.swap(true, Ordering::SeqCst) {
            // An error means that the other side is gone, which it reports itself.
            let _ = to.shared.shut_down(Shutdown::Write);
            self.finish_if_done();
        }
    }
}

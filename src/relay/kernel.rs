//! The kernel-side path of one direction: socket to pipe to socket, past our memory.
//!
//! Worth its system calls only for bulk: a direction takes it after a run of full receives and
//! leaves it after a few small ones, or when nothing moved for a while, with what is in the pipe: idle
//! and stalled relays hold no descriptors but their sockets'. While bytes are in the pipe the direction
//! holds the flusher's role of its target, so that nothing overtakes them.

use super::{Core, side::Lane};
use crate::{
    connection::{ABORT, CLOSE, CLOSED, Connection, End, FLUSHING, HELD, PIPED, Shared, WRITABLE},
    error::CloseReason,
    net::{Socket, splice},
    sync::Ordering,
};
use linkbuffer::LinkBuffer;
use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Full receives in a row that make a direction bulk.
const BULK: u32 = 8;
/// Small turns in a row that end it.
const QUIET: u32 = 4;
/// How long a pipe is kept although nothing moves.
const STILL: Duration = Duration::from_millis(500);
/// What counts as small.
const SMALL: usize = 64 << 10;
/// The most one turn moves.
const TURN: usize = 1 << 20;

/// Decides when a direction goes through the kernel, and takes it there.
#[derive(Debug, Default)]
pub(super) struct KernelPath {
    streak: u32,
    quiet: u32,
    refused: bool,
    pipe: Option<splice::Pipe>,
    /// The flusher's role of the target is ours.
    role: bool,
}

impl KernelPath {
    /// A receive through memory brought `n` bytes.
    pub(super) fn note(&mut self, n: usize) {
        self.streak = if n >= SMALL { self.streak + 1 } else { 0 };
    }

    /// Moves input of side `index` if this is the way it goes. `false`: through memory.
    pub(super) fn pump(&mut self, core: &Core, index: usize, conn: &mut Connection) -> bool {
        let idle = !self.role && self.pipe.is_none();
        if core.lanes[index].is_deaf() || (idle && (self.refused || self.streak < BULK)) {
            return false;
        }
        let target = Arc::clone(&core.lanes[1 - index].shared);
        let Some(socket) = target.socket() else {
            return false;
        };
        let entered = self.enter(&target, conn);
        if self.pipe.is_some() {
            core.watch_pipe(index);
        }
        if !entered {
            return false;
        }
        let Some(moved) = self.turn(core, index, conn, &target, &socket) else {
            self.give_role_back(&target, &socket);
            self.begin_anew();
            return false;
        };
        if self.pipe.as_ref().is_none_or(|pipe| pipe.filled() == 0) {
            self.give_role_back(&target, &socket);
            self.quiet = if moved < SMALL { self.quiet + 1 } else { 0 };
            if self.quiet >= QUIET {
                self.begin_anew();
            }
        }
        true
    }

    /// If nothing has moved for a while: goes on through memory, with what is in the pipe.
    pub(super) fn retire_if_still(&mut self, core: &Core, index: usize) {
        let lane = &core.lanes[index];
        if !lane.still.swap(false, Ordering::AcqRel) {
            return;
        }
        lane.watched.store(false, Ordering::Release);
        self.leave(lane, &core.lanes[1 - index].shared);
        self.begin_anew();
        lane.paused.store(false, Ordering::SeqCst);
        core.pause_if_full(index);
    }

    fn begin_anew(&mut self) {
        *self = Self {
            refused: self.refused,
            ..Self::default()
        };
    }

    /// The direction is over or given back: what is in the pipe is queued on the target.
    pub(super) fn leave(&mut self, lane: &Lane, target: &Arc<Shared>) {
        let rest = self.pipe.take().map(splice::Pipe::into_bytes);
        let held = std::mem::take(&mut self.role);
        if held {
            target.word.clear(FLUSHING | HELD | PIPED);
        }
        match rest {
            Some(Ok(bytes)) if !bytes.is_empty() => {
                let n = bytes.len();
                // A target that is gone reports that itself.
                if target.push(&mut LinkBuffer::from(bytes)).is_ok() {
                    lane.count(n);
                } else {
                    lane.dropped.store(true, Ordering::Release);
                }
            }
            Some(Err(error)) => target.abort_with(CloseReason::Error(error.kind())),
            _ => {}
        }
        if let Some(socket) = target.socket().filter(|_| held) {
            target.drive(&socket);
        }
    }

    fn enter(&mut self, target: &Shared, conn: &Connection) -> bool {
        if self.role {
            return true;
        }
        if self.pipe.is_none() {
            if self.refused || self.streak < BULK || conn.available() > 0 {
                return false;
            }
            match splice::Pipe::new() {
                Ok(pipe) if splice::is_safe() => self.pipe = Some(pipe),
                _ => {
                    self.refused = true;
                    return false;
                }
            }
        }
        // Something is queued before us: in its order, through memory.
        self.role = target.word.try_hold_flush();
        self.role
    }

    /// Moves what it can. `None`: the pipe is empty, and memory is the only way on.
    fn turn(
        &mut self,
        core: &Core,
        index: usize,
        conn: &mut Connection,
        target: &Arc<Shared>,
        socket: &Socket,
    ) -> Option<usize> {
        let lane = &core.lanes[index];
        let Some(pipe) = &mut self.pipe else {
            return Some(0);
        };
        let mut moved = 0;
        loop {
            let mut full_before = false;
            while pipe.filled() > 0 {
                lane.piping.store(true, Ordering::SeqCst);
                let drained = pipe.drain(socket);
                if let Some(error) = failure(&drained) {
                    lane.deafen();
                    target.fail(CloseReason::Error(error));
                }
                lane.piping.store(false, Ordering::SeqCst);
                match drained {
                    Ok(n) => {
                        lane.count(n);
                        target.outbox.count(n);
                        target.touch();
                        core.renew();
                        full_before = false;
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock && !full_before => {
                        // Only an edge that comes from now on counts.
                        full_before = true;
                        target.word.clear(WRITABLE);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        lane.paused.store(true, Ordering::SeqCst);
                        if target.word.set(PIPED) & WRITABLE == 0 {
                            return Some(moved);
                        }
                        target.word.clear(PIPED);
                        lane.paused.store(false, Ordering::SeqCst);
                        full_before = false;
                    }
                    Err(_) => return Some(moved),
                }
            }
            if target.word.has(ABORT | CLOSE | CLOSED) {
                // It is being closed, and takes what is under way.
                lane.deafen();
                return Some(moved);
            }
            if !conn.rx.readable || moved >= TURN {
                return Some(moved);
            }
            match pipe.fill(conn.socket(), core.in_flight.max(SMALL)) {
                Ok(0) => conn.rx.finish(End::Eof),
                Ok(n) => {
                    core.received(index);
                    core.renew();
                    conn.rx.count(n);
                    moved += n;
                }
                // A receive goes past urgent data, `splice(2)` never does.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && conn.rx.urgent => return None,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => conn.rx.readable = false,
                Err(e) => conn.rx.finish(End::Failed(e.kind())),
            }
        }
    }

    fn give_role_back(&mut self, target: &Arc<Shared>, socket: &Socket) {
        if std::mem::take(&mut self.role) {
            if !target.word.give_back_flush() {
                target.word.clear(FLUSHING | HELD);
            }
            // Others may have queued meanwhile, or wait for the role to end the connection.
            target.drive(socket);
        }
    }
}

impl Core {
    /// Has side `index` give up its pipe when nothing has moved for a while.
    fn watch_pipe(&self, index: usize) {
        if !self.lanes[index].watched.swap(true, Ordering::AcqRel) {
            self.watch_pipe_from(index, self.lanes[index].moved());
        }
    }

    fn watch_pipe_from(&self, index: usize, before: u64) {
        let lane = &self.lanes[index];
        let Some(registration) = lane.shared.registration() else {
            return;
        };
        let this = self.this.get().cloned().unwrap_or_default();
        registration
            .poller()
            .schedule(Instant::now() + STILL, move || {
                let Some(core) = this.upgrade() else { return };
                let moved = core.lanes[index].moved();
                if moved == before {
                    core.lanes[index].still.store(true, Ordering::Release);
                    core.lanes[index].poke();
                } else {
                    core.watch_pipe_from(index, moved);
                }
            });
    }
}

/// What a send failed with, if it did.
fn failure(sent: &io::Result<usize>) -> Option<io::ErrorKind> {
    let kind = sent.as_ref().err()?.kind();
    (kind != io::ErrorKind::WouldBlock).then_some(kind)
}

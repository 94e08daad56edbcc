//! What is left of a connection after its end: its socket, until the peer has our last bytes.
//!
//! After a graceful close the peer may still be sending. Closing the descriptor now would answer that
//! with a reset, which may destroy our last bytes on their way (measured: 12 KiB of 500 KB arrived). So
//! the operator stays for a while (`LINGER`), reads and drops what comes, and closes
//!
//! * when the peer's FIN is there: nothing is unread then, so the close resets nothing;
//! * when the time is up. It begins anew as long as the peer acknowledges output;
//! * when the peer has acknowledged everything, if its event loop drains, or if more came than is
//!   dropped: from there on nothing is read, so that the peer has to stop, and its input costs nothing.
//!
//! No event tells of an acknowledgement, so those who wait for one look again and again, after pauses
//! that grow.

use super::{
    input::End,
    operator::ConnectionOperator,
    shared::Shared,
    state::{self, ABORT, BRIEF},
};
use crate::{net::Socket, sync::Ordering, trace};
use poller::{Interest, Progress, Readiness};
use std::{io, net::Shutdown, sync::Arc};

/// Receives of unwanted input in one turn.
const READS: usize = 16;

/// What the operator of a lingering connection finds in its socket.
enum Found {
    /// The peer's end, or that the connection has failed.
    End,
    /// Nothing at the moment.
    Nothing,
    /// So much that others have their turn first.
    Much,
    /// More than is dropped.
    TooMuch,
}

/// Lets go of the socket: at once, or after lingering. `cut`: what the peer has got must not look
/// complete. `here`: a descriptor that is closed at once is closed on the caller's thread.
pub(super) fn let_go(shared: &Arc<Shared>, end: Option<End>, cut: bool, here: bool) {
    let registration = shared.registration();
    let farewell = shared
        .socket()
        .map(|socket| say_farewell(shared, &socket, end, cut));
    shared.drop_socket();
    // Counted between the FIN and the moment others may see that the connection is gone.
    shared
        .context
        .counters
        .closed
        .fetch_add(1, Ordering::Relaxed);
    let linger = shared.context.limits.linger;
    if let (Some(true), Some(registration), false) = (farewell, registration, linger.is_zero()) {
        shared.begin_to_linger();
        shared.word.set(state::LINGER);
        let watched = if shared.word.has(BRIEF) {
            registration.set_interest(Interest::READ | Interest::HANGUP)
        } else {
            Ok(())
        };
        if watched.is_ok() {
            // The edge for what is already there was used up: have the operator look.
            registration.wake();
            return;
        }
    }
    match registration {
        Some(registration) if here => registration.detach_here(),
        Some(registration) => registration.detach(),
        None => shared.context.connections.remove(shared),
    }
}

/// Ends our output: with FIN, or with a reset. Whether input may still come that has to be drained.
fn say_farewell(shared: &Shared, socket: &Socket, end: Option<End>, cut: bool) -> bool {
    let bits = shared.word.load();
    if bits & ABORT != 0 || cut {
        // There is no reset of a unix socket, but one that is closed with input unread looks like it.
        if socket.is_tcp() {
            shared.reset(socket);
        }
        return false;
    }
    end.is_none() && bits & state::BROKEN == 0 && socket.shutdown(Shutdown::Write).is_ok()
}

impl ConnectionOperator {
    /// Something happened to a connection that lingers.
    pub(super) fn linger(&self, bits: u32, readiness: Readiness) -> Progress {
        let shared = &self.shared;
        if bits & ABORT != 0 {
            // A shutdown does not wait any longer.
            shared.reset(self);
            return Progress::Detach;
        }
        let found = self.drain();
        if matches!(found, Found::End) || readiness.contains(Readiness::ERROR) {
            return Progress::Detach;
        }
        let waits_for_peer = matches!(found, Found::TooMuch) || shared.context.is_draining();
        if waits_for_peer && self.has_delivered() {
            if matches!(found, Found::TooMuch) {
                // The close would do it, but its owner may keep the socket.
                shared.reset(self);
            }
            return Progress::Detach;
        }
        if shared.close_is_due(self) == Some(true) {
            if !self.has_delivered() {
                trace::debug!("connection {}: its peer has not got everything", shared.id);
                shared.context.counters.cut.fetch_add(1, Ordering::Relaxed);
            }
            return Progress::Detach;
        }
        shared.look_again(waits_for_peer, readiness.contains(Readiness::TIMER));
        match found {
            Found::Much => Progress::Yield,
            _ => Progress::Drained,
        }
    }

    /// Whether the peer's system has all our output, and the end of it. A unix socket's output is in
    /// the peer's queue as soon as it is sent.
    fn has_delivered(&self) -> bool {
        !self.is_tcp() || self.unacknowledged() == Some(0)
    }

    /// Reads and drops what is there.
    fn drain(&self) -> Found {
        let limit = self.shared.context.limits.linger_bytes;
        let mut waste = [0; 4096];
        for _ in 0..READS {
            let drained = self.drained.load(Ordering::Relaxed);
            if drained as usize > limit || drained == u32::MAX {
                return Found::TooMuch;
            }
            match self.recv(&mut waste) {
                Ok(0) => return Found::End,
                Ok(n) => {
                    // Only the poller counts.
                    let drained = drained.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
                    self.drained.store(drained, Ordering::Relaxed);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Found::Nothing,
                Err(_) => return Found::End,
            }
        }
        Found::Much
    }
}

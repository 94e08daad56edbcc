//! The end of a relay of which one side has failed.
//!
//! By then the failed side was read to its end, and what came from it is with the other one. That one
//! gets all of it, then the end if the failed side had ended its output in order, and then the failure:
//! a reset, or an orderly close after an orderly end to a peer that sends no more. After an orderly end it
//! has time to end its own stream. A reset destroys what
//! is still on its way, so it waits until the peer has acknowledged everything.
//!
//! Acknowledgements are no events, so they are asked for. As long as there are some the side has time; a
//! peer that takes nothing for the linger time of its connection is reset.

use super::{Core, RelayEnd, side::Outgoing};
use crate::{
    connection::{ABORT, BROKEN, CLOSE, CLOSED, DRAIN, HUNG_UP},
    error::CloseReason,
    net::{Peek, Socket},
    sync::Ordering,
    trace,
};
use std::{
    net::Shutdown,
    time::{Duration, Instant},
};

/// The first pause between two looks at a side, and the longest.
const SOON: Duration = Duration::from_millis(2);
const LATER: Duration = Duration::from_millis(40);

/// Receives after which no more of a peer's input is dropped: it should have come to an end.
const MOST_UNREAD: usize = 4096;

/// A side that is to end when it has everything.
struct Parting {
    index: usize,
    reason: CloseReason,
    seen: Outgoing,
    since: Instant,
    pause: Duration,
}

impl Core {
    /// The other side failed for that reason: side `index` ends when it has everything.
    pub(super) fn part(&self, index: usize, reason: CloseReason) {
        let lane = &self.lanes[index];
        lane.deafen();
        let Some(socket) = lane.shared.socket() else {
            return;
        };
        self.go_on_parting(Parting {
            index,
            reason,
            seen: lane.outgoing(&socket),
            since: Instant::now(),
            pause: SOON,
        });
    }

    fn go_on_parting(&self, mut parting: Parting) {
        let lane = &self.lanes[parting.index];
        let word = &lane.shared.word;
        if word.has(ABORT | CLOSE | CLOSED) {
            // It ends anyway.
            return;
        }
        let Some(socket) = lane.shared.socket() else {
            return;
        };
        if word.has(BROKEN | HUNG_UP) {
            if !word.has(BROKEN) && self.is_delivered(parting.index, &socket) {
                self.finish_if_complete(&parting, socket.peek_state());
            }
            return lane.shared.abort_with(parting.reason);
        }
        let delivered = self.is_delivered(parting.index, &socket);
        if delivered && !self.may_end(&parting, &socket) {
            return self.let_part(&parting, &socket);
        }
        let (present, now) = (lane.outgoing(&socket), Instant::now());
        if present != parting.seen {
            parting.seen = present;
            parting.since = now;
        }
        let Some(registration) = lane.shared.registration() else {
            return;
        };
        if now.duration_since(parting.since) >= lane.shared.context.limits.linger {
            if delivered {
                return self.let_part(&parting, &socket);
            }
            return lane.shared.abort_with(parting.reason);
        }
        let due = now + parting.pause;
        parting.pause = (parting.pause * 2).min(LATER);
        let this = self.this.get().cloned().unwrap_or_default();
        registration.poller().schedule(due, move || {
            if let Some(core) = this.upgrade() {
                core.go_on_parting(parting);
            }
        });
    }

    /// Whether the peer of side `index` has everything, the end of the other side's output included.
    fn is_delivered(&self, index: usize, socket: &Socket) -> bool {
        let lane = &self.lanes[index];
        if lane.shared.outbox.queued() > 0 {
            return false;
        }
        self.pass_end_on(1 - index);
        // What a unix socket has taken is with its peer, whatever becomes of this end.
        !socket.is_tcp() || socket.unacknowledged().unwrap_or(0) == 0
    }

    fn let_part(&self, parting: &Parting, socket: &Socket) {
        let lane = &self.lanes[parting.index];
        let in_order = self.lanes[1 - parting.index].ended.load(Ordering::SeqCst);
        self.finish_if_complete(parting, socket.peek_state());
        if in_order && !socket.is_tcp() {
            turn_away(socket);
        }
        let more = socket.peek_state() == Peek::Data;
        // Without knowledge of what is acknowledged a reset might destroy something.
        let unknown = socket.is_tcp() && socket.unacknowledged().is_none();
        if (in_order && !more) || (unknown && lane.shared.outbox.bytes_sent() > 0) {
            lane.shared.close_with(parting.reason);
        } else {
            lane.shared.abort_with(parting.reason);
        }
    }

    /// Whether the peer of the side that parts has sent nothing since, and may yet end its stream. A unix
    /// socket tells a close from the end of a stream, TCP does not: so the close of a peer that had ended
    /// in order is a failure only if there is more for it, or no end for the linger time.
    fn may_end(&self, parting: &Parting, socket: &Socket) -> bool {
        let (lane, gone) = (&self.lanes[parting.index], &self.lanes[1 - parting.index]);
        parting.reason == CloseReason::Peer
            && gone.is_done()
            && !lane.has_lost(gone)
            && !lane.shared.word.has(DRAIN)
            && socket.peek_state() == Peek::Empty
    }

    /// The side that parts has everything, and its input is in that state.
    fn finish_if_complete(&self, parting: &Parting, input: Peek) {
        let (lane, gone) = (&self.lanes[parting.index], &self.lanes[1 - parting.index]);
        if parting.reason == CloseReason::Peer
            && gone.is_done()
            && input == Peek::Eof
            && !lane.has_lost(gone)
        {
            self.progress.lock().end = Some(RelayEnd::Finished);
        }
    }

    /// Whether side `index`, which ends now, will not get something that the other one has sent.
    pub(super) fn is_cut(&self, index: usize) -> bool {
        if !matches!(self.progress.lock().end, None | Some(RelayEnd::Failed(_))) {
            return false;
        }
        let other = &self.lanes[1 - index];
        let unread = || {
            let socket = other.shared.socket();
            socket.is_some_and(|socket| socket.peek_state() == Peek::Data)
        };
        !other.is_done() && (other.is_deaf() || other.paused.load(Ordering::SeqCst) || unread())
    }
}

/// Takes no more from the peer of a unix socket and drops what has come. Input that is unread when such a
/// socket is closed would be an error at the peer in the place of the end, which it may not have seen.
fn turn_away(socket: &Socket) {
    if let Err(error) = socket.shutdown(Shutdown::Both) {
        trace::debug!("relay: shutdown: {error}");
    }
    let mut waste = [0; 4096];
    for _ in 0..MOST_UNREAD {
        match socket.recv(&mut waste) {
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
}

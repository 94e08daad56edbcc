//! The life of a connection in one atomic word.
//!
//! Every transition is one read-modify-write of the word, so two threads that race always agree
//! on who did what first. The bits are roles (somebody holds them), news (set by whoever learned
//! something, cleared by the owner before it looks) and facts (set once, never cleared).
//!
//! * **Roles.** `RUNNING`: the owner of the input side and of the callbacks; `FLUSHING`: the one
//!   thread that hands bytes to the kernel.
//! * **News.** `READABLE` and `ATTEND` oblige the owner to look again, `URGENT` says how closely;
//!   `WRITABLE` obliges the flusher to try again.
//! * **Facts.** Everything else. A fact that changes what callers see (`CLOSE`, `ABORT`,
//!   `CLOSED`) is therefore monotonic, and [`Word::state`] never goes backwards.

use crate::sync::{AtomicU32, Ordering};
use std::fmt;

/// Where a connection is in its life. It never goes backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Accepted or dialled, `on_connect` has not returned yet.
    Connecting,
    /// Open in at least one direction.
    Connected,
    /// A close was asked for; queued output may still be on its way to the kernel.
    Disconnecting,
    /// Every read and write fails, all callbacks have been called or are being called.
    Disconnected,
}

/// Input or an end of input may be waiting in the kernel.
pub(crate) const READABLE: u32 = 1;
/// The socket became writable since the flusher last found it full.
pub(crate) const WRITABLE: u32 = 1 << 1;
/// Something other than input asks the owner to run: connect, close, drain, a new handler.
pub(crate) const ATTEND: u32 = 1 << 2;
/// The owner is scheduled, running, or held by the user.
pub(crate) const RUNNING: u32 = 1 << 3;
/// Somebody is handing bytes to the kernel.
pub(crate) const FLUSHING: u32 = 1 << 4;
/// Output is queued behind the flusher.
pub(crate) const QUEUED: u32 = 1 << 5;
/// `on_connect` returned (or the connection has no handler).
pub(crate) const CONNECTED: u32 = 1 << 6;
/// The peer closed its sending side.
pub(crate) const PEER_CLOSED: u32 = 1 << 7;
/// The socket failed or hung up in both directions.
pub(crate) const BROKEN: u32 = 1 << 8;
/// A graceful close was asked for.
pub(crate) const CLOSE: u32 = 1 << 9;
/// An immediate close was asked for; queued output is dropped.
pub(crate) const ABORT: u32 = 1 << 10;
/// The event loop drains: close as soon as nothing is in flight.
pub(crate) const DRAIN: u32 = 1 << 11;
/// A message was cut in the middle; nothing more may be sent.
pub(crate) const POISONED: u32 = 1 << 12;
/// The end: reads and writes fail.
pub(crate) const CLOSED: u32 = 1 << 13;
/// The sending side was shut down by us.
pub(crate) const WRITE_SHUT: u32 = 1 << 14;
/// Only input that nobody wants is still being read, so that no reset destroys our last bytes.
pub(crate) const LINGER: u32 = 1 << 15;
/// A thread waits for input on the condition variable.
pub(crate) const READ_WAIT: u32 = 1 << 16;
/// Threads wait for output to make progress on the condition variable.
pub(crate) const WRITE_WAIT: u32 = 1 << 17;
/// Everything queued reached the kernel and the handler wants to hear of it in its own turn.
pub(crate) const WROTE: u32 = 1 << 18;
/// The user holds the connection; the poller must not read for it.
pub(crate) const OWNED: u32 = 1 << 19;

/// The callback that gave the connection to the user has not returned yet.
pub(crate) const BUSY: u32 = 1 << 20;
/// The user let go of the connection while that callback was still running.
pub(crate) const GONE: u32 = 1 << 21;

/// The user gave the connection to another handler while that callback was still running.
pub(crate) const BEGIN: u32 = 1 << 22;

/// A relay waits for room in the socket on behalf of another connection.
pub(crate) const PIPED: u32 = 1 << 23;

/// The peer takes no output any more: a reset, or it closed both directions.
pub(crate) const HUNG_UP: u32 = 1 << 24;

/// The flusher's role is held for longer than one turn: by a relay, which counts as it goes, or for
/// good by whoever ended the connection. Nobody has to wait for it to be given back.
pub(crate) const HELD: u32 = 1 << 25;

/// With `READABLE`, and taken with it: there was urgent data among the input, before which a receive ends
/// although more is behind it.
pub(crate) const URGENT: u32 = 1 << 26;

/// The owner neither receives nor runs the handler until the output queue is at its low mark.
pub(crate) const GATED: u32 = 1 << 27;

/// A callback failed. Only output that other threads have promised is still waited for.
pub(crate) const FAILED: u32 = 1 << 28;

/// Turns run no handler: there is none, or it is a relay. They are brief, whatever handlers do.
pub(crate) const BRIEF: u32 = 1 << 29;

/// The output has ended in order, with FIN: the flusher's role is held for good.
pub(crate) const SEALED: u32 = 1 << 30;

/// Close callbacks were added, output limits other than the loop's or the dialer's, or an interrupt.
pub(crate) const TAILORED: u32 = 1 << 31;

const NEWS: u32 = READABLE | ATTEND;
const ENDED: u32 = CLOSE | ABORT | CLOSED;
/// Somebody has the owner's role or waits for news, or they are for nobody any more.
const NOT_AT_REST: u32 = RUNNING | OWNED | QUEUED | READ_WAIT | PIPED | LINGER | CLOSED;
/// Somebody sends, waits for the end of a send, or nothing may be sent any more.
const NOT_CALM: u32 =
    FLUSHING | QUEUED | WRITE_WAIT | DRAIN | ENDED | BROKEN | POISONED | WRITE_SHUT;

/// The atomic word of one connection.
pub(crate) struct Word(AtomicU32);

impl Word {
    pub(crate) fn new(bits: u32) -> Self {
        Self(AtomicU32::new(bits))
    }

    pub(crate) fn load(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn has(&self, bits: u32) -> bool {
        self.load() & bits != 0
    }

    /// Sets bits, returns what was there before.
    pub(crate) fn set(&self, bits: u32) -> u32 {
        self.0.fetch_or(bits, Ordering::AcqRel)
    }

    /// Clears bits, returns what was there before.
    pub(crate) fn clear(&self, bits: u32) -> u32 {
        self.0.fetch_and(!bits, Ordering::AcqRel)
    }

    /// Takes the owner's role if there is news and nobody has it.
    pub(crate) fn acquire(&self) -> bool {
        self.update(|bits| (bits & NEWS != 0 && bits & RUNNING == 0).then_some(bits | RUNNING))
            .is_ok()
    }

    /// Sets bits and takes the owner's role, in one step, if that leaves news for a free role.
    /// Returns the bits before and whether the role was taken.
    pub(crate) fn post(&self, news: u32) -> (u32, bool) {
        let mut taken = false;
        let before = self
            .update(|bits| {
                let next = bits | news;
                taken = next & NEWS != 0 && next & RUNNING == 0;
                Some(if taken { next | RUNNING } else { next })
            })
            .unwrap_or_else(|bits| bits);
        (before, taken)
    }

    /// As [`post`](Self::post) of news that oblige the owner, if nobody has its role, nobody waits
    /// for such news and the bits still are the given ones. `false`: nothing has happened.
    #[inline]
    pub(crate) fn begin_turn(&self, bits: u32, news: u32) -> bool {
        bits & NOT_AT_REST == 0 && self.swap(bits, bits | news | RUNNING)
    }

    /// A connection that was being made is its owner's from now on. `false`: its end was asked for.
    pub(crate) fn give_to_owner(&self) -> bool {
        self.update(|bits| (bits & ENDED == 0).then_some((bits | OWNED | CONNECTED) & !ATTEND))
            .is_ok()
    }

    /// Gives the owner's role back unless there is news. `false`: keep running.
    pub(crate) fn leave(&self) -> bool {
        self.update(|bits| (bits & NEWS == 0).then_some(bits & !RUNNING))
            .is_ok()
    }

    /// Gives the owner's role back although there may be news; whoever sees it next takes it.
    /// Returns the bits before.
    pub(crate) fn release(&self) -> u32 {
        self.clear(RUNNING)
    }

    /// The bits, if a message can be sent without anything else to see to.
    #[inline]
    pub(crate) fn calm(&self) -> Option<u32> {
        let bits = self.0.load(Ordering::Relaxed);
        (bits & NOT_CALM == 0).then_some(bits)
    }

    /// Takes the flusher's role if the bits still are the `calm` ones.
    #[inline]
    pub(crate) fn begin_calm(&self, calm: u32) -> bool {
        self.swap(calm, calm | FLUSHING)
    }

    /// Gives the flusher's role back if nothing has happened since [`Self::begin_calm`]. `false`:
    /// it is still ours.
    #[inline]
    pub(crate) fn end_calm(&self, calm: u32) -> bool {
        self.swap(calm | FLUSHING, calm)
    }

    #[inline]
    fn swap(&self, from: u32, to: u32) -> bool {
        self.0
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    /// Takes the flusher's role if it is free.
    pub(crate) fn try_flush(&self) -> bool {
        self.set(FLUSHING) & FLUSHING == 0
    }

    /// Takes the flusher's role only if it is free and nothing is queued before us.
    pub(crate) fn try_flush_first(&self) -> bool {
        self.update(|bits| (bits & (FLUSHING | QUEUED) == 0).then_some(bits | FLUSHING))
            .is_ok()
    }

    /// As [`try_flush_first`](Self::try_flush_first), to keep the role for longer than a turn.
    pub(crate) fn try_hold_flush(&self) -> bool {
        self.update(|bits| (bits & (FLUSHING | QUEUED) == 0).then_some(bits | FLUSHING | HELD))
            .is_ok()
    }

    /// Gives the flusher's role back if nothing was queued meanwhile. `false`: it is still ours.
    pub(crate) fn give_back_flush(&self) -> bool {
        self.update(|bits| (bits & QUEUED == 0).then_some(bits & !(FLUSHING | HELD)))
            .is_ok()
    }

    /// Gives the flusher's role back unless room was reported meanwhile. `false`: still ours.
    pub(crate) fn park_flush(&self) -> bool {
        self.update(|bits| (bits & WRITABLE == 0).then_some(bits & !FLUSHING))
            .is_ok()
    }

    /// Notes that output is queued; takes the flusher's role if nobody has it and nothing waits
    /// for room.
    pub(crate) fn queue_and_try_flush(&self) -> bool {
        let mut taken = false;
        let done = self.update(|bits| {
            taken = bits & (FLUSHING | QUEUED) == 0;
            Some(bits | QUEUED | if taken { FLUSHING } else { 0 })
        });
        done.is_ok() && taken
    }

    /// The user lets go. `false`: a callback is still running and ends the connection when it
    /// returns, or the connection was taken back.
    pub(crate) fn let_go(&self) -> bool {
        !self.defer(GONE) && self.take_back()
    }

    /// Takes the connection out of the user's hands: of those who want it one gets it, with the owner's
    /// role. `false`: it is not there any more, or the callback that gave it away still runs.
    pub(crate) fn take_back(&self) -> bool {
        self.update(|bits| (bits & (OWNED | BUSY) == OWNED).then_some(bits & !OWNED))
            .is_ok()
    }

    /// As [`take_back`](Self::take_back), for a new handler, and also while that callback runs.
    pub(crate) fn hand_on(&self) -> bool {
        self.update(|bits| (bits & OWNED != 0).then_some(bits & !OWNED))
            .is_ok()
    }

    /// A new handler may begin. `false`: a callback is still running and has it begin when it
    /// returns.
    pub(crate) fn may_begin(&self) -> bool {
        !self.defer(BEGIN)
    }

    /// The callback that gave the connection away has returned. Returns the bits before; if the user has
    /// let go of it meanwhile ([`GONE`]), only the caller has the owner's role.
    pub(crate) fn end_callback(&self) -> u32 {
        let after = |bits| {
            let left = if bits & GONE != 0 { OWNED } else { 0 };
            Some(bits & !(BUSY | BEGIN | left))
        };
        self.update(after).unwrap_or_else(|bits| bits)
    }

    fn defer(&self, bit: u32) -> bool {
        self.update(|bits| (bits & BUSY != 0).then_some(bits | bit))
            .is_ok()
    }

    pub(crate) fn ended(&self) -> bool {
        self.has(ENDED)
    }

    pub(crate) fn state(&self) -> ConnectionState {
        let bits = self.load();
        if bits & CLOSED != 0 {
            ConnectionState::Disconnected
        } else if bits & ENDED != 0 {
            ConnectionState::Disconnecting
        } else if bits & CONNECTED != 0 {
            ConnectionState::Connected
        } else {
            ConnectionState::Connecting
        }
    }

    /// One read-modify-write, retried while others interfere: `Ok(before)` if `next` gave a
    /// value, `Err(bits)` if it declined.
    fn update(&self, mut next: impl FnMut(u32) -> Option<u32>) -> Result<u32, u32> {
        let mut bits = self.0.load(Ordering::Relaxed);
        loop {
            let Some(to) = next(bits) else {
                return Err(bits);
            };
            match self
                .0
                .compare_exchange_weak(bits, to, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(before) => return Ok(before),
                Err(now) => bits = now,
            }
        }
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 32] = [
            "READABLE",
            "WRITABLE",
            "ATTEND",
            "RUNNING",
            "FLUSHING",
            "QUEUED",
            "CONNECTED",
            "PEER_CLOSED",
            "BROKEN",
            "CLOSE",
            "ABORT",
            "DRAIN",
            "POISONED",
            "CLOSED",
            "WRITE_SHUT",
            "LINGER",
            "READ_WAIT",
            "WRITE_WAIT",
            "WROTE",
            "OWNED",
            "BUSY",
            "GONE",
            "BEGIN",
            "PIPED",
            "HUNG_UP",
            "HELD",
            "URGENT",
            "GATED",
            "FAILED",
            "BRIEF",
            "SEALED",
            "TAILORED",
        ];
        let bits = self.load();
        let names = NAMES
            .iter()
            .enumerate()
            .filter(|(i, _)| bits & (1 << i) != 0)
            .map(|(_, n)| n);
        f.debug_set().entries(names).finish()
    }
}

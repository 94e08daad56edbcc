//! Ends waits of a connection's calls without ending the connection.
//!
//! An interrupt is for the calls that wait at that moment. If none does it is kept, and the next call that
//! would wait takes it instead: a thread that has looked whether it is to go on, and is about to wait, is
//! reached as well as one that waits.
//!
//! All of this is behind the lock of the waiters, which a call takes only when it waits. A receive that
//! waits by itself (`net/waiting.rs`) does not take it; it ends with its slice, and its wait goes on in the
//! poll, which does.

use super::{
    handle::ConnectionHandle,
    shared::{For, Shared},
    state::{CLOSED, TAILORED},
};

/// Which calls an interrupt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    Reads,
    Writes,
    All,
}

/// The interrupts of one connection.
#[derive(Debug, Default)]
pub(super) struct Interrupts {
    reads: Side,
    writes: Side,
    /// Kept for the next call of either direction.
    kept: bool,
}

#[derive(Debug, Default)]
struct Side {
    /// How often calls that waited were interrupted: a call that finds another number than it began with
    /// is one of them.
    rounds: u32,
    /// Kept for the next call that would wait.
    kept: bool,
}

impl Interrupts {
    fn side(&mut self, what: For) -> Option<&mut Side> {
        match what {
            For::Input => Some(&mut self.reads),
            For::Output => Some(&mut self.writes),
            For::End => None,
        }
    }

    /// What [`Self::has_ended`] is to be asked with.
    pub(super) fn rounds(&mut self, what: For) -> u32 {
        self.side(what).map_or(0, |side| side.rounds)
    }

    /// Whether a wait that began at that number was interrupted.
    pub(super) fn has_ended(&mut self, what: For, begun: u32) -> bool {
        self.rounds(what) != begun
    }

    /// Takes what is kept for a call that would wait now.
    pub(super) fn take(&mut self, what: For) -> bool {
        let Some(side) = self.side(what) else {
            return false;
        };
        std::mem::take(&mut side.kept) || std::mem::take(&mut self.kept)
    }

    /// A call was interrupted that has something else to say to its caller: the next one says it.
    pub(super) fn keep(&mut self, what: For) {
        if let Some(side) = self.side(what) {
            side.kept = true;
        }
    }

    /// Whether one is kept for a call that would wait for input.
    pub(super) fn has_kept_read(&self) -> bool {
        self.reads.kept || self.kept
    }

    fn has_kept(&self) -> bool {
        self.has_kept_read() || self.writes.kept
    }

    /// Interrupts those who wait, `reading` and `writing` saying whether any do; `inside` that a receive
    /// waits by itself. An interrupt that ends no call is kept.
    fn interrupt(&mut self, calls: Calls, reading: bool, writing: bool, inside: bool) {
        let reads = calls != Calls::Writes;
        let writes = calls != Calls::Reads;
        if reads && reading {
            self.reads.rounds = self.reads.rounds.wrapping_add(1);
        }
        if writes && writing {
            self.writes.rounds = self.writes.rounds.wrapping_add(1);
        }
        match calls {
            Calls::Reads => self.reads.kept |= !reading,
            Calls::Writes => self.writes.kept |= !writing,
            Calls::All if inside && !reading => self.reads.kept = true,
            Calls::All => self.kept |= !reading && !writing,
        }
    }

    fn clear(&mut self) -> bool {
        let had = self.has_kept();
        self.reads.kept = false;
        self.writes.kept = false;
        self.kept = false;
        had
    }
}

impl ConnectionHandle {
    /// Ends the calls that wait on this connection, in any thread, and leaves the connection as it is: each
    /// of them returns [`Error::Interrupted`](crate::Error::Interrupted), having consumed nothing, and the
    /// next call goes on where it was.
    ///
    /// If no call waits at this moment the next one that would wait, for input or for output, returns that
    /// error instead. So a thread that looks at a flag before it waits cannot miss it, and one that saw the
    /// flag anyway may be told once more, at its next wait. Where that would be a surprise
    /// [`clear_interrupts`](Self::clear_interrupts) takes it back. Several interrupts that no call has seen
    /// are one. Calls that need not wait, and `try_` calls, neither see nor use an interrupt.
    ///
    /// A call that waits for input: reading calls of a [`Connection`](crate::Connection) and its halves, the
    /// caller's own or a handler's. For output: flushes, and what waits for room in the queue
    /// ([`OnFull::Block`](crate::OnFull::Block)), [`send`](Self::send) and [`flush`](Self::flush) of handles
    /// included. Where the two directions belong to different threads,
    /// [`interrupt_reads`](Self::interrupt_reads) and [`interrupt_writes`](Self::interrupt_writes) are for
    /// one of them. [`CloseWaiter::wait`](crate::CloseWaiter::wait) and a [`Relay`](crate::Relay), which has an
    /// [interrupt](crate::Relay::interrupt) of its own, are not interrupted.
    ///
    /// What an interrupted flush had submitted stays in the queue and is sent, and the next flush waits for
    /// it. A write that had given all of its bytes to the queue is done, and says so; then it is the flush
    /// behind it that is interrupted.
    ///
    /// Returns at once; callable from any thread and any callback. A call that has waited for less than
    /// 20 ms may go on until then. Does nothing on a connection that is over.
    ///
    /// ```
    /// # use netpoll::{Dialer, Error};
    /// # use std::{os::{fd::OwnedFd, unix::net::UnixStream}, thread};
    /// # fn main() -> std::io::Result<()> {
    /// # let (ours, _peer) = UnixStream::pair()?;
    /// # let mut conn = Dialer::new().adopt(OwnedFd::from(ours))?;
    /// let handle = conn.handle();
    /// let reader = thread::spawn(move || {
    ///     // Waits, until there is something else to do.
    ///     let error = conn.fill(1).unwrap_err();
    ///     assert_eq!(Error::from_io(&error), Some(Error::Interrupted));
    ///     conn
    /// });
    /// handle.interrupt();
    /// assert!(reader.join().unwrap().is_active());
    /// # Ok(())
    /// # }
    /// ```
    pub fn interrupt(&self) {
        self.shared().interrupt(Calls::All);
    }

    /// As [`interrupt`](Self::interrupt), of calls that wait for input only.
    pub fn interrupt_reads(&self) {
        self.shared().interrupt(Calls::Reads);
    }

    /// As [`interrupt`](Self::interrupt), of calls that wait for output only.
    pub fn interrupt_writes(&self) {
        self.shared().interrupt(Calls::Writes);
    }

    /// Takes interrupts back that no call has seen. Whether there were any.
    pub fn clear_interrupts(&self) -> bool {
        self.shared().clear_interrupts()
    }
}

impl Shared {
    fn interrupt(&self, calls: Calls) {
        if self.word.has(CLOSED) {
            return;
        }
        let (waiting, wire) = {
            let mut aside = self.aside.lock();
            (aside.waiting(), aside.wire.clone())
        };
        let bell = {
            let mut waiters = waiting.waiters.lock();
            let reading = waiters.reading > 0 || waiters.polling;
            let writing = waiters.writing > 0;
            let inside = wire.as_ref().is_some_and(|wire| wire.is_inside());
            let interrupts = &mut waiters.interrupts;
            interrupts.interrupt(calls, reading, writing, inside);
            if interrupts.has_kept() {
                // The next user of a pooled connection must not get this.
                self.word.set(TAILORED);
            }
            if let Some(wire) = &wire {
                wire.set_interrupted(interrupts.has_kept_read());
            }
            waiting.changed.notify_all();
            (calls != Calls::Writes)
                .then(|| waiters.bell.clone())
                .flatten()
        };
        if let Some(bell) = bell {
            bell.ring();
        }
    }

    /// Forgets interrupts that no call has seen.
    pub(super) fn clear_interrupts(&self) -> bool {
        let waiting = self.aside.lock().waiting.clone();
        waiting.is_some_and(|waiting| waiting.waiters.lock().interrupts.clear())
    }

    /// The next call that would wait for that is interrupted, in the place of one that was.
    pub(super) fn keep_interrupt(&self, what: For) {
        let waiting = self.aside.lock().waiting();
        waiting.waiters.lock().interrupts.keep(what);
        self.word.set(TAILORED);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_told_and_nothing_is_kept() {
        let mut interrupts = Interrupts::default();
        for calls in [Calls::All, Calls::Reads] {
            let begun = interrupts.rounds(For::Input);
            let other = interrupts.rounds(For::Output);
            interrupts.interrupt(calls, true, false, false);
            assert!(interrupts.has_ended(For::Input, begun));
            assert!(!interrupts.has_ended(For::Output, other));
            assert!(!interrupts.has_kept());
        }
        let begun = interrupts.rounds(For::Output);
        interrupts.interrupt(Calls::Writes, false, true, false);
        assert!(interrupts.has_ended(For::Output, begun));
        assert!(!interrupts.has_kept());
    }

    #[test]
    fn one_that_nobody_waits_for_is_kept_once_for_the_next_call() {
        let mut interrupts = Interrupts::default();
        interrupts.interrupt(Calls::All, false, false, false);
        interrupts.interrupt(Calls::All, false, false, false);
        assert!(!interrupts.take(For::End));
        assert!(interrupts.take(For::Output));
        assert!(!interrupts.take(For::Input) && !interrupts.take(For::Output));
        interrupts.interrupt(Calls::Reads, false, true, false);
        assert!(!interrupts.take(For::Output));
        assert!(interrupts.take(For::Input));
        interrupts.interrupt(Calls::Writes, true, false, false);
        assert!(!interrupts.take(For::Input));
        assert!(interrupts.clear());
        assert!(!interrupts.clear() && !interrupts.take(For::Output));
    }

    #[test]
    fn a_receive_that_waits_by_itself_is_told_later() {
        let mut interrupts = Interrupts::default();
        for writing in [false, true] {
            interrupts.interrupt(Calls::All, false, writing, true);
            assert!(interrupts.has_kept_read());
            assert!(!interrupts.take(For::Output));
            assert!(interrupts.take(For::Input));
        }
    }
}

//! Precise timers of one connection.
//!
//! An idle timeout is checked lazily and costs a connection next to nothing. A timer of this kind
//! is an entry of its own in the poller's wheel, for the few connections that need one.

use crate::connection::{ConnectionHandle, ConnectionState, Shared};
use poller::{PollerHandle, TimerKey};
use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

impl ConnectionHandle {
    /// Calls `then` once, `delay` from now, unless the connection is over by then or the timer
    /// was [cancelled](TimerHandle::cancel).
    ///
    /// Never early, and late by one tick of the poller (1 ms) at most while its threads get
    /// processor time. `then` runs on a thread of the pollers and may wait; it may run beside the
    /// connection's other callbacks, so it has the handle and not the connection. A panic in it is
    /// contained and counted as a handler's.
    ///
    /// The timer goes on when the returned value is dropped. It keeps `then` until its time, also
    /// if the connection ends before, but it does not keep the connection. Any number of timers
    /// may be set; setting and cancelling cost the same however many there are.
    ///
    /// # Examples
    ///
    /// Closes connections that have not logged in within ten seconds:
    ///
    /// ```
    /// use netpoll::{CloseReason, Connection, Handler, TimerHandle};
    /// use std::{io, time::Duration};
    ///
    /// struct Login;
    ///
    /// impl Handler for Login {
    ///     type State = Option<TimerHandle>;
    ///
    ///     fn on_connect(&self, conn: &mut Connection) -> io::Result<Option<TimerHandle>> {
    ///         Ok(Some(conn.handle().after(Duration::from_secs(10), |conn| conn.close())))
    ///     }
    ///
    ///     fn on_request(&self, conn: &mut Connection, login: &mut Option<TimerHandle>) -> io::Result<()> {
    ///         let Some(line) = conn.try_until(b'\n')? else {
    ///             return Ok(());
    ///         };
    ///         if &line[..] == b"password\n" {
    ///             if let Some(timer) = login.take() {
    ///                 timer.cancel();
    ///             }
    ///         }
    ///         Ok(())
    ///     }
    /// }
    /// ```
    pub fn after(&self, delay: Duration, then: impl FnOnce(&Self) + Send + 'static) -> TimerHandle {
        match Instant::now().checked_add(delay) {
            Some(at) => self.at(at, then),
            // Further away than time goes.
            None => TimerHandle { armed: None },
        }
    }

    /// As [`after`](Self::after), at an instant; one that has passed is due at once.
    pub fn at(&self, deadline: Instant, then: impl FnOnce(&Self) + Send + 'static) -> TimerHandle {
        let shared = self.done().shared;
        let poller = match shared.registration() {
            Some(registration) => registration.poller().clone(),
            // Not polled yet (`on_prepare`): any of the pollers will do.
            None => {
                let all = shared.context.group.handles();
                all[shared.key() % all.len()].clone()
            }
        };
        let connection = Arc::downgrade(&shared);
        let key = poller.schedule(deadline, move || fire(&connection, then));
        TimerHandle {
            armed: Some((poller, key)),
        }
    }
}

/// The time has come: calls the closure if the connection is still there.
fn fire(connection: &Weak<Shared>, then: impl FnOnce(&ConnectionHandle)) {
    let Some(shared) = connection.upgrade() else {
        return;
    };
    if shared.word.state() < ConnectionState::Disconnected {
        let handle = ConnectionHandle::new(Arc::clone(&shared));
        shared.contain("timer", || then(&handle));
    }
}

/// A timer of a connection: see [`ConnectionHandle::after`]. Dropping it changes nothing.
pub struct TimerHandle {
    /// `None` for a time so far away that it never comes.
    armed: Option<(PollerHandle, TimerKey)>,
}

impl TimerHandle {
    /// Drops the timer and what it was to call. `false` if that has been called, is being called
    /// or is about to be, or if the pollers have ended. Never waits.
    pub fn cancel(&self) -> bool {
        match &self.armed {
            Some((poller, key)) => poller.cancel(*key),
            None => false,
        }
    }
}

impl fmt::Debug for TimerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimerHandle")
            .field("key", &self.armed.as_ref().map(|(_, key)| key))
            .finish()
    }
}

//! How long the calls of one direction wait, and handlers between their calls.

use super::{alarms::By, input::Rx};
use std::time::{Duration, Instant};

/// A timeout for each call, or one moment for all of them. One word, because every connection has it
/// twice, and because most wait as long as their loop or dialer says, which is what it says at first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patience {
    own: Option<Box<Own>>,
}

#[derive(Clone, Debug)]
struct Own {
    /// Nanoseconds, [`FOR_EVER`] for none, [`USUAL`] for that of the loop or dialer.
    timeout: u64,
    deadline: Option<Instant>,
    /// How much of the input had been consumed when the deadline was set: it is for what comes next.
    since: u64,
    /// That was consumed as a whole.
    met: bool,
}

const FOR_EVER: u64 = u64::MAX;
const USUAL: u64 = u64::MAX - 1;

impl Patience {
    /// Each call waits this long, whatever was said before.
    pub(crate) fn set_timeout(&mut self, timeout: Option<Duration>) {
        let own = self.own();
        own.timeout = timeout
            .and_then(|timeout| u64::try_from(timeout.as_nanos()).ok())
            .filter(|&nanos| nanos < USUAL)
            .unwrap_or(FOR_EVER);
        own.deadline = None;
    }

    /// Each call waits until then, and no longer for a time of its own.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.set_deadline_at(deadline, 0);
    }

    /// The same for input of which so much has been consumed.
    pub(crate) fn set_deadline_at(&mut self, deadline: Option<Instant>, consumed: u64) {
        if deadline.is_some() || self.own.is_some() {
            let own = self.own();
            own.deadline = deadline;
            own.since = consumed;
            own.met = false;
        }
    }

    /// Whether all is as the loop or dialer says.
    #[inline]
    pub(crate) fn is_usual(&self) -> bool {
        self.own.is_none()
    }

    /// The deadline of the message that a handler waits for between its calls, of which so much is here: the
    /// first since the deadline was set, and what came with it.
    pub(crate) fn awaited(&mut self, consumed: u64, here: usize) -> Option<Instant> {
        let own = self.own.as_deref_mut()?;
        own.met |= consumed > own.since && here == 0;
        own.deadline.filter(|_| !own.met)
    }

    /// When a call that begins to wait now gives up; `usual` is the timeout of the loop or dialer.
    pub(crate) fn until(&self, usual: Option<Duration>) -> Option<Instant> {
        let timeout = match self.own.as_deref() {
            Some(Own {
                deadline: Some(deadline),
                ..
            }) => return Some(*deadline),
            None | Some(Own { timeout: USUAL, .. }) => usual?,
            Some(Own {
                timeout: FOR_EVER, ..
            }) => return None,
            Some(Own { timeout, .. }) => Duration::from_nanos(*timeout),
        };
        Instant::now().checked_add(timeout)
    }

    fn own(&mut self) -> &mut Own {
        self.own.get_or_insert_with(|| {
            Box::new(Own {
                timeout: USUAL,
                deadline: None,
                since: 0,
                met: false,
            })
        })
    }
}

impl Rx {
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) {
        let consumed = self.consumed();
        self.patience.set_deadline_at(deadline, consumed);
    }

    /// When the message is late that a handler waits for between its calls.
    pub(super) fn message_due(&mut self) -> Option<By> {
        let (consumed, here) = (self.consumed(), self.len());
        if let Some(at) = self.patience.awaited(consumed, here) {
            return Some(By::Deadline(at));
        }
        let timeout = self.shared.context.limits.message_timeout?;
        (here > 0).then_some(By::Timeout(timeout))
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Whether that is so long from now, to the minute.
    fn is_in(until: Option<Instant>, time: Duration) -> bool {
        let now = Instant::now();
        until.is_some_and(|at| at <= now + time && at + Duration::from_secs(60) > now + time)
    }

    #[test]
    fn what_was_said_last_counts_and_without_a_word_the_usual() {
        let mut patience = Patience::default();
        assert_eq!(patience.until(None), None);
        assert!(is_in(patience.until(Some(HOUR)), HOUR));
        patience.set_timeout(Some(2 * HOUR));
        assert!(is_in(patience.until(Some(HOUR)), 2 * HOUR));
        patience.set_timeout(None);
        assert_eq!(patience.until(Some(HOUR)), None);
        patience.set_timeout(Some(Duration::MAX));
        assert_eq!(patience.until(Some(HOUR)), None);
        let at = Instant::now();
        patience.set_deadline(Some(at));
        assert_eq!(patience.until(Some(HOUR)), Some(at));
        patience.set_deadline(None);
        assert_eq!(patience.until(Some(HOUR)), None, "the timeout is back");
        patience.set_deadline(Some(at));
        patience.set_timeout(Some(HOUR));
        assert!(is_in(patience.until(None), HOUR), "the deadline is gone");
    }

    #[test]
    fn a_deadline_that_is_taken_back_leaves_the_usual_timeout() {
        let mut patience = Patience::default();
        patience.set_deadline(None);
        assert!(patience.own.is_none());
        patience.set_deadline(Some(Instant::now()));
        patience.set_deadline(None);
        assert!(is_in(patience.until(Some(HOUR)), HOUR));
    }
}

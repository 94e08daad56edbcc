//! The options of a pool.

use super::{Dialer, pool::Pool, shelf::Options};
use std::{fmt, io, time::Duration};

/// Builds a [`Pool`].
///
/// ```no_run
/// use netpoll::{Dialer, Pool};
/// use std::time::Duration;
///
/// # fn main() -> std::io::Result<()> {
/// let pool = Pool::builder(Dialer::new())
///     .max_total(32)
///     .max_idle(8)
///     .idle_timeout(Duration::from_secs(30))
///     .wait(Duration::from_secs(1))
///     .build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct PoolBuilder {
    dialer: Dialer,
    max_idle: Option<usize>,
    max_total: Option<usize>,
    idle_timeout: Option<Duration>,
    wait: Option<Duration>,
}

impl PoolBuilder {
    pub(super) fn new(dialer: Dialer) -> Self {
        Self {
            dialer,
            max_idle: None,
            max_total: None,
            idle_timeout: None,
            wait: None,
        }
    }

    /// At most this many connections per address are kept for the next call; 64 by default.
    pub fn max_idle(mut self, max: usize) -> Self {
        self.max_idle = Some(max);
        self
    }

    /// At most this many connections per address exist at once, those that are being dialled or closed
    /// included; callers beyond that wait or fail, see [`wait`](Self::wait). No limit by default.
    pub fn max_total(mut self, max: usize) -> Self {
        self.max_total = Some(max);
        self
    }

    /// Connections that were kept for longer than this are not used again; they are closed within a
    /// sixteenth of that time (10 ms at least, 1 s at most). 60 s by default.
    ///
    /// Told by a clock with steps of up to 10 ms: at the end of its time one may be taken for too old by
    /// that much, and none is kept for a shorter time than that.
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// How long [`Pool::get`] waits for a connection to come back when the total is reached.
    /// Default: not at all. [`Pool::get_timeout`] has a time of its own.
    pub fn wait(mut self, timeout: Duration) -> Self {
        self.wait = Some(timeout);
        self
    }

    /// The pool.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for options that cannot hold: a total of 0, an idle timeout of 0, or more kept
    /// connections than the total allows.
    pub fn build(self) -> io::Result<Pool> {
        if self.max_total == Some(0) {
            return Err(invalid(
                "max_total(0) lets no connection exist: give at least 1, or leave it out".into(),
            ));
        }
        if self.idle_timeout == Some(Duration::ZERO) {
            return Err(invalid(
                "idle_timeout(0) keeps no connection: say max_idle(0), or give a time".into(),
            ));
        }
        if let (Some(idle), Some(total)) = (self.max_idle, self.max_total) {
            if idle > total {
                return Err(invalid(format!(
                    "max_idle({idle}) is above max_total({total}): no more are kept than may exist"
                )));
            }
        }
        let usual = Options::default();
        let options = Options {
            max_idle: self.max_idle.unwrap_or(usual.max_idle),
            max_total: self.max_total.unwrap_or(usual.max_total),
            idle_timeout: self.idle_timeout.or(usual.idle_timeout),
            wait: self.wait.or(usual.wait),
        };
        Ok(Pool::with_options(self.dialer, options))
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuilder")
            .field("max_idle", &self.max_idle)
            .field("max_total", &self.max_total)
            .field("idle_timeout", &self.idle_timeout)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

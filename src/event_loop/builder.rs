//! Options of an event loop.

use super::EventLoop;
use crate::{
    config::{Limits, OnFull},
    context::Context,
    dispatch::{Dispatch, Runner},
    error::Error,
    handler::{Handler, sessions},
    memory::half_of_what_there_is,
    net::SocketOptions,
};
use poller::{Balance, PollerGroup};
use std::{fmt, io, sync::Arc, time::Duration};

/// How long none of the callbacks that a forced end waits for returns before they count as stuck.
const STUCK_AFTER: Duration = Duration::from_millis(500);
/// A memory limit of less would be about single connections.
const LEAST_MEMORY: usize = 1 << 20;

/// Builds an [`EventLoop`]. Every option has a default that suits a server of small requests.
#[derive(Debug)]
#[must_use = "a builder does nothing before `build`"]
pub struct EventLoopBuilder {
    pollers: Pollers,
    balance: Option<Balance>,
    dispatch: Dispatch,
    max_connections: Option<usize>,
    memory_limit: Option<usize>,
    socket: SocketOptions,
    limits: Limits,
    stuck_after: Option<Duration>,
    overload_after: Option<Option<Duration>>,
}

/// How long calls of handlers wait unless the builder is told otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

impl Default for EventLoopBuilder {
    fn default() -> Self {
        Self {
            pollers: Pollers::default(),
            balance: None,
            dispatch: Dispatch::default(),
            max_connections: None,
            memory_limit: None,
            socket: SocketOptions::default(),
            limits: Limits {
                read_timeout: Some(PATIENCE),
                write_timeout: Some(PATIENCE),
                ..Limits::default()
            },
            stuck_after: None,
            overload_after: None,
        }
    }
}

/// Which pollers a loop uses: a group, or a number of its own.
#[derive(Clone, Default)]
pub struct Pollers(Choice);

#[derive(Clone, Default)]
enum Choice {
    #[default]
    Shared,
    Own(usize),
    Group(PollerGroup),
}

impl From<PollerGroup> for Pollers {
    fn from(group: PollerGroup) -> Self {
        Self(Choice::Group(group))
    }
}

impl From<usize> for Pollers {
    fn from(pollers: usize) -> Self {
        Self(Choice::Own(pollers))
    }
}

impl fmt::Debug for Pollers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Choice::Shared => f.write_str("shared"),
            Choice::Own(n) => write!(f, "{n} of its own"),
            Choice::Group(_) => f.write_str("a group"),
        }
    }
}

impl Pollers {
    /// The group, and whether it belongs to the loop alone.
    fn group(self, balance: Option<Balance>, limits: &Limits) -> io::Result<(PollerGroup, bool)> {
        if balance.is_some() && !matches!(self.0, Choice::Own(_)) {
            let text = "balance is for pollers of the loop's own, pollers(n): a group has its own";
            return Err(Error::Unsupported(text).into());
        }
        match self.0 {
            Choice::Shared => Ok((PollerGroup::global()?.clone(), false)),
            Choice::Group(group) => Ok((group, false)),
            Choice::Own(n) => {
                let builder = PollerGroup::builder()
                    .pollers(n)
                    .balance(balance.unwrap_or_default());
                let group = builder.overload_after(limits.overload_after).build()?;
                Ok((group, true))
            }
        }
    }
}

impl EventLoopBuilder {
    /// The pollers: a [`PollerGroup`] shared with others, or a number of pollers of the loop's
    /// own that end with it. Default: the process-wide group.
    pub fn pollers(mut self, pollers: impl Into<Pollers>) -> Self {
        self.pollers = pollers.into();
        self
    }

    /// How connections are spread over the loop's own pollers. Without any, [`build`](Self::build) returns
    /// an error: a shared group has its balance already.
    pub fn balance(mut self, balance: Balance) -> Self {
        self.balance = Some(balance);
        self
    }

    /// Where callbacks run. Default: [`Dispatch::Adaptive`].
    pub fn dispatch(mut self, dispatch: Dispatch) -> Self {
        self.dispatch = dispatch;
        self
    }

    /// At most this many connections at once, over all listeners of the loop; more wait in the
    /// kernel's backlog. A connection counts from before its `on_prepare` until its descriptor is
    /// closed. Default: no limit but the descriptors.
    pub fn max_connections(mut self, max: usize) -> Self {
        self.max_connections = Some(max);
        self
    }

    /// How long one reading call that waits may wait; `None`: as long as the connection lives. Default:
    /// 30 s. Of all connections of the loop, those that a callback [took
    /// out](crate::Connection::hijack) included.
    pub fn read_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.limits.read_timeout = timeout.into();
        self
    }

    /// How long one flush or blocked send may wait; `None`: as long as the connection lives. Default:
    /// 30 s. Of all connections of the loop and their handles.
    pub fn write_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.limits.write_timeout = timeout.into();
        self
    }

    /// Closes connections that neither sent nor received anything for this long, whatever is queued and
    /// whoever waits for it: a byte is sent when the kernel takes it. A handler that computes is not
    /// idle, one that waits for its peer is. Default (and `None`): never.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.limits.idle_timeout = timeout.into();
        self
    }

    /// How long the rest of a message may take whose begin a handler has seen and left unread: as handlers do
    /// that read with `try_` calls, and [`framed`](crate::framed) ones. Bytes that trickle in do not prolong
    /// it. Then the connection ends with [`CloseReason::ReadTimeout`](crate::CloseReason::ReadTimeout). A
    /// message begins where the handler has consumed everything before it. One that is here when the handler
    /// first looks costs nothing. Default (and `None`): as long as it takes.
    ///
    /// Handlers that wait for the rest inside of their calls are limited by
    /// [`read_timeout`](Self::read_timeout), and by [`Connection::set_read_deadline`] for all calls together.
    ///
    /// [`Connection::set_read_deadline`]: crate::Connection::set_read_deadline
    pub fn message_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.limits.message_timeout = timeout.into();
        self
    }

    /// When all threads are taken and turns have waited for one for this long, waits of handlers inside of
    /// calls of this crate are ended with [`Error::Overloaded`], the longest first, and what they waited on
    /// is closed with [`CloseReason::Overload`](crate::CloseReason::Overload). `None`: never. Default:
    /// 100 ms. Waits that began within the last tenth of this time are left alone.
    ///
    /// It is an option of the loop's own [pollers](Self::pollers), of [`Dispatch::Workers`] and of
    /// [`Dispatch::Custom`], where turns count that the executor has not begun, and what waits of handlers that
    /// it runs, those of other loops with the same executor included. A
    /// [`PollerGroup`] that is shared with others has
    /// [one of its own](poller::PollerGroupBuilder::overload_after).
    pub fn overload_after(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.overload_after = Some(time.into());
        self
    }

    /// Input bounds in bytes. No more than `pause_at` is received ahead of the handler (default
    /// 1 MiB; the rest stays in the kernel and slows the peer down), and a single request for
    /// more than `max` (default 64 MiB) is an error. Neither may be zero, nor `pause_at` exceed `max`.
    pub fn input_limits(mut self, pause_at: usize, max: usize) -> Self {
        self.limits.pause_at = pause_at;
        self.limits.max_input = max;
        self
    }

    /// Output bound in bytes queued behind a full socket (default 8 MiB), and what happens when
    /// it is reached. One message is always accepted by an empty queue.
    pub fn output_limit(mut self, bytes: usize, on_full: OnFull) -> Self {
        self.limits.output.bytes = bytes;
        self.limits.output.on_full = on_full;
        self
    }

    /// Output bound in messages queued behind a full socket. Default: none.
    pub fn output_messages(mut self, messages: usize) -> Self {
        self.limits.output.messages = messages;
        self
    }

    /// From how many unflushed bytes on [`std::io::Write::write`] on a connection sends them before it
    /// takes more (default 64 KiB), so that a long response made of small writes costs one system call
    /// for so many bytes. 0 sends before each write; `usize::MAX` waits for the output limit. See
    /// [`Connection`](crate::Connection#what-was-written-through-iowrite).
    pub fn write_buffer(mut self, bytes: usize) -> Self {
        self.limits.output.write_buffer = bytes;
        self
    }

    /// How many bytes of input and output all connections may hold together: what stays unread when a
    /// turn ends or a handler waits, what is not flushed then, and what is queued. Default: half of the
    /// memory that the process may use, which is its control group's limit or the machine's memory
    /// where that is less; no limit where the system does not tell. `usize::MAX` is no limit. Each loop
    /// has a limit of its own. Views that handlers keep, and the kernel's buffers, do not count.
    ///
    /// Above three fourths the connections that hold most are not read until the sum has fallen; a
    /// handler that waits for one of them waits as long as its timeout. Above the limit those that hold
    /// most are closed, with [`CloseReason::Overload`](crate::CloseReason::Overload), until the sum is a
    /// sixteenth below it. They are also closed if others have not been read for five seconds. [`Stats::held`](crate::Stats::held) tells the sum and
    /// [`Stats::overloaded`](crate::Stats::overloaded) how many were closed.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// After a close: for how long the peer may take nothing of the output before it is cut, and how many
    /// unwanted bytes are read and dropped meanwhile; more stay with the peer. One that reads slowly gets
    /// everything as long as it reads. Default 5 s and 256 KiB; zero closes at once.
    pub fn linger(mut self, time: Duration, bytes: usize) -> Self {
        self.limits.linger = time;
        self.limits.linger_bytes = bytes;
        self
    }

    /// A forced end of the loop waits for callbacks of connections as long as some return, and reports
    /// those that are left when none has returned for this long. Default 500 ms.
    pub fn stuck_after(mut self, time: Duration) -> Self {
        self.stuck_after = Some(time);
        self
    }

    /// Leaves a connection open when the peer ends its side, until the handler closes it.
    /// Default off: it is closed once the handler has returned, queued output is sent and no
    /// [`PendingReply`](crate::PendingReply) promises more.
    pub fn half_open(mut self, on: bool) -> Self {
        self.limits.half_open = on;
        self
    }

    /// Socket options of accepted connections.
    pub fn socket(mut self, options: SocketOptions) -> Self {
        self.socket = options;
        self
    }

    /// Starts the pollers if need be and makes the loop.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for zero pollers and for more than 8192, what the system reports when a poller or a thread cannot
    /// be made, [`Error::Unsupported`] for options that contradict each other.
    pub fn build(self, handler: impl Handler) -> io::Result<EventLoop> {
        if self.max_connections == Some(0) {
            return Err(Error::Unsupported("max_connections needs at least 1").into());
        }
        if self.memory_limit.is_some_and(|bytes| bytes < LEAST_MEMORY) {
            return Err(Error::Unsupported("memory_limit needs at least 1 MiB").into());
        }
        let mut limits = self.limits;
        limits.memory = self.memory_limit.unwrap_or_else(half_of_what_there_is);
        limits.check()?;
        if let Some(overload_after) = self.overload_after {
            let own = matches!(self.pollers.0, Choice::Own(_));
            let elsewhere = matches!(
                self.dispatch,
                Dispatch::Workers { .. } | Dispatch::Custom(_)
            );
            if !own && !elsewhere {
                let text = "overload_after is for pollers of the loop's own, pollers(n): a group has \
                            its own";
                return Err(Error::Unsupported(text).into());
            }
            limits.overload_after = overload_after;
        }
        let (group, own_group) = self.pollers.group(self.balance, &limits)?;
        let runner = Runner::new(self.dispatch, limits.overload_after)?;
        let context = Arc::new(Context::new(limits, runner, group));
        let max = self.max_connections.unwrap_or(usize::MAX);
        Ok(EventLoop::start(
            context,
            sessions(handler),
            max,
            self.socket,
            own_group,
            self.stuck_after.unwrap_or(STUCK_AFTER),
        ))
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn calls_of_servers_end_and_those_of_dialers_wait() {
        let limits = EventLoopBuilder::default().limits;
        assert_eq!(limits.read_timeout, Some(Duration::from_secs(30)));
        assert_eq!(limits.write_timeout, Some(Duration::from_secs(30)));
        assert_eq!(limits.idle_timeout, None);
        let second = Duration::from_secs(1);
        let limits = EventLoopBuilder::default()
            .read_timeout(None)
            .write_timeout(second)
            .idle_timeout(Some(second))
            .limits;
        assert_eq!(limits.read_timeout, None);
        assert_eq!(limits.write_timeout, Some(second));
        assert_eq!(limits.idle_timeout, Some(second));
        let dialled = Limits::default();
        assert_eq!((dialled.read_timeout, dialled.write_timeout), (None, None));
    }
}

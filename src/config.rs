//! What a connection is allowed to hold and how long it may wait: one copy per loop or dialer.

use crate::error::Error;
use std::{io, time::Duration};

/// What happens when a connection's output queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnFull {
    /// The call that would overfill it fails with [`Error::OutputFull`](crate::Error::OutputFull);
    /// nothing of the message is accepted.
    #[default]
    Error,
    /// The call waits for room, at most the write timeout.
    Block,
    /// The connection is closed at once with
    /// [`CloseReason::OutputFull`](crate::CloseReason::OutputFull), as an
    /// [`abort`](crate::ConnectionHandle::abort).
    Close,
}

/// The limits a connection starts with.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) read_timeout: Option<Duration>,
    pub(crate) write_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    /// How long the rest of a message may take that a handler has returned without.
    pub(crate) message_timeout: Option<Duration>,
    /// How long turns wait for one of the loop's own threads before waits are ended for them.
    pub(crate) overload_after: Option<Duration>,
    /// No more is read on the connection's behalf while this many bytes are unread.
    pub(crate) pause_at: usize,
    /// A single request for more than this many bytes is an error.
    pub(crate) max_input: usize,
    pub(crate) output: OutputLimits,
    /// How long a closed connection may take to hand over its last bytes and to drain its input.
    pub(crate) linger: Duration,
    /// How much unwanted input is read after a close before it is cut.
    pub(crate) linger_bytes: usize,
    /// Whether the end of input leaves the connection open until the handler closes it.
    pub(crate) half_open: bool,
    /// Input and output that all connections may hold together; `usize::MAX` for no limit.
    pub(crate) memory: usize,
}

/// What may be queued behind a full socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutputLimits {
    pub(crate) bytes: usize,
    pub(crate) messages: usize,
    pub(crate) on_full: OnFull,
    /// From so many unflushed bytes on a write through `io::Write` sends them first.
    pub(crate) write_buffer: usize,
}

/// What `io::Write` collects before it sends.
const WRITE_BUFFER: usize = 64 << 10;

/// The low mark of an output queue, unless a fourth of its limit is less.
const LOW_MARK: usize = 64 << 10;

impl Limits {
    /// What does not hold together.
    pub(crate) fn check(&self) -> io::Result<()> {
        let what = if self.pause_at == 0 || self.max_input == 0 {
            "input_limits of zero: a connection needs room for at least one byte"
        } else if self.pause_at > self.max_input {
            "input_limits(pause_at, max) with more ahead than at most: pause_at must not exceed max"
        } else {
            return Ok(());
        };
        Err(Error::Unsupported(what).into())
    }
}

impl OutputLimits {
    /// While more bytes than this are queued a connection is not read and its handler not run.
    pub(crate) fn low_mark(&self) -> usize {
        (self.bytes / 4).min(LOW_MARK)
    }
}

impl Default for OutputLimits {
    fn default() -> Self {
        Self {
            bytes: 8 << 20,
            messages: usize::MAX,
            on_full: OnFull::Error,
            write_buffer: WRITE_BUFFER,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read_timeout: None,
            write_timeout: None,
            idle_timeout: None,
            message_timeout: None,
            overload_after: Some(Duration::from_millis(100)),
            pause_at: 1 << 20,
            max_input: 64 << 20,
            output: OutputLimits::default(),
            linger: Duration::from_secs(5),
            linger_bytes: 256 << 10,
            half_open: false,
            memory: usize::MAX,
        }
    }
}

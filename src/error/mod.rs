//! What can go wrong, as values that can be matched on.
//!
//! Calls return [`std::io::Result`], so that they mix with everything that reads and writes.
//! Where the failure is this crate's own decision (a limit, a timeout, a closed connection) the
//! `io::Error` carries an [`Error`], which [`Error::from_io`] takes out again.

mod address;
mod context;
mod reason;
#[cfg(test)]
mod tests;

pub use address::InvalidAddress;
pub(crate) use context::with_context;
pub use reason::CloseReason;

use context::Context;
use std::{fmt, io};

/// An error decided by this crate rather than reported by the system.
///
/// It is `Copy`, says in its text what to do about it, and turns into an [`io::Error`] of the
/// kind named at each variant.
///
/// # Examples
///
/// ```
/// use std::io;
/// use netpoll::Error;
///
/// let error = io::Error::from(Error::ReadTimeout);
/// assert_eq!(error.kind(), io::ErrorKind::TimedOut);
/// assert_eq!(Error::from_io(&error), Some(Error::ReadTimeout));
/// ```
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The connection has ended. Kind: `NotConnected` if this side ended it, `BrokenPipe` if
    /// the peer did, else the kind the system reported.
    Closed(CloseReason),
    /// The peer ended its stream before as many bytes came as were asked for; what did come is
    /// still readable. Kind: `UnexpectedEof`.
    PeerClosed {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// The read timeout passed; nothing was consumed. Kind: `TimedOut`.
    ReadTimeout,
    /// The write timeout passed. Kind: `TimedOut`.
    WriteTimeout {
        /// Bytes of this call, and of what was queued before it, that the system took.
        sent: u64,
        /// Bytes that were left.
        queued: u64,
    },
    /// No connection was made in time. Kind: `TimedOut`.
    DialTimeout,
    /// More input was asked for than the connection may hold. Kind: `InvalidData`.
    InputLimit {
        /// Bytes asked for.
        wanted: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The output queue has no room for the message, or the unflushed output for what was to be written;
    /// nothing of it was taken. Kind: `QuotaExceeded`.
    OutputFull {
        /// Bytes waiting in the queue, or for the flush.
        queued: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// An earlier write was cut inside a message, so nothing more can be sent.
    /// Kind: `BrokenPipe`.
    Poisoned,
    /// Others needed the thread: when all threads are taken and work has waited for one for too long, the
    /// longest wait inside a call of this crate ends with this, and what it waited on is closed.
    /// Kind: `ResourceBusy`.
    Overloaded,
    /// Another thread ended this wait with
    /// [`ConnectionHandle::interrupt`](crate::ConnectionHandle::interrupt); nothing was consumed, and the
    /// connection goes on. Kind: `Other`, because the standard library repeats a call that fails with
    /// `Interrupted`, and others one that fails with `WouldBlock`.
    Interrupted,
    /// The pool has its maximum of connections in use. Kind: `ResourceBusy`.
    PoolExhausted,
    /// The event loop or pool is shutting down and takes nothing new. Kind: `NotConnected`.
    ShuttingDown,
    /// The time given to a shutdown passed. Kind: `TimedOut`.
    ShutdownIncomplete {
        /// Connections that are still open.
        remaining: usize,
    },
    /// An event loop has shut down, but closed connections before their peers had everything that
    /// was sent, because they took nothing of it for too long. Kind: `TimedOut`.
    ShutdownCut {
        /// Connections that were cut.
        cut: usize,
    },
    /// The call would wait on a thread that must not: a poller's, with inline dispatch.
    /// Kind: `Deadlock`.
    WouldDeadlock,
    /// The connection was made to itself. Kind: `ConnectionRefused`.
    SelfConnect,
    /// What was asked for does not exist here; the text says what. Kind: `Unsupported`.
    Unsupported(&'static str),
    /// An address cannot be used. Kind: `InvalidInput`.
    InvalidAddress(InvalidAddress),
}

impl Error {
    /// The error of this crate that `error` carries, if it carries one.
    ///
    /// Errors that were given a context, such as the address of a failed dial, are looked
    /// through.
    pub fn from_io(error: &io::Error) -> Option<Self> {
        let inner = error.get_ref()?;
        if let Some(found) = inner.downcast_ref::<Self>() {
            return Some(*found);
        }
        Self::from_io(&inner.downcast_ref::<Context>()?.source)
    }

    /// Whether time ran out: a read, a write, a dial or a shutdown.
    pub const fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::ReadTimeout
                | Self::WriteTimeout { .. }
                | Self::DialTimeout
                | Self::ShutdownIncomplete { .. }
                | Self::ShutdownCut { .. }
        )
    }

    /// Whether the connection is of no more use for what was tried: it ended, the peer ended
    /// its stream, its output was cut, or others needed the thread.
    pub const fn is_closed(&self) -> bool {
        matches!(
            self,
            Self::Closed(_) | Self::PeerClosed { .. } | Self::Poisoned | Self::Overloaded
        )
    }

    /// The kind of the [`io::Error`] this turns into.
    pub const fn kind(&self) -> io::ErrorKind {
        use io::ErrorKind;
        match self {
            Self::Closed(reason) => match reason {
                CloseReason::Peer => ErrorKind::BrokenPipe,
                // Callers take these two for "try again", which would never end.
                CloseReason::Error(ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    ErrorKind::NotConnected
                }
                CloseReason::Error(kind) => *kind,
                _ => ErrorKind::NotConnected,
            },
            Self::PeerClosed { .. } => ErrorKind::UnexpectedEof,
            Self::ReadTimeout
            | Self::WriteTimeout { .. }
            | Self::DialTimeout
            | Self::ShutdownIncomplete { .. }
            | Self::ShutdownCut { .. } => ErrorKind::TimedOut,
            Self::InputLimit { .. } => ErrorKind::InvalidData,
            Self::OutputFull { .. } => ErrorKind::QuotaExceeded,
            Self::Poisoned => ErrorKind::BrokenPipe,
            Self::Overloaded | Self::PoolExhausted => ErrorKind::ResourceBusy,
            Self::Interrupted => ErrorKind::Other,
            Self::ShuttingDown => ErrorKind::NotConnected,
            Self::WouldDeadlock => ErrorKind::Deadlock,
            Self::SelfConnect => ErrorKind::ConnectionRefused,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::InvalidAddress(_) => ErrorKind::InvalidInput,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(reason) => write!(f, "the connection has ended: {reason}"),
            Self::PeerClosed { wanted, available } => write!(
                f,
                "the peer ended its stream: {wanted} bytes wanted, {available} came"
            ),
            Self::ReadTimeout => {
                f.write_str("the read timeout passed, nothing was consumed: read again or close")
            }
            Self::WriteTimeout { sent, queued } => write!(
                f,
                "the write timeout passed with {sent} bytes sent and {queued} left: close the \
                 connection"
            ),
            Self::DialTimeout => f.write_str("no connection was made in time"),
            Self::InputLimit { wanted, limit } => write!(
                f,
                "{wanted} bytes of input wanted but {limit} allowed: raise the input limit or \
                 close the connection"
            ),
            Self::OutputFull { queued, limit } => write!(
                f,
                "{queued} of {limit} bytes of output wait and what was to follow does not fit: flush, \
                 send it later, or raise the output limit"
            ),
            Self::Poisoned => {
                f.write_str("an earlier write was cut inside a message: close the connection")
            }
            Self::Overloaded => f.write_str(
                "all threads were taken and others waited for one, so this wait was ended: close the \
                 connection; shorter timeouts or more threads make it rarer",
            ),
            Self::Interrupted => f.write_str(
                "another thread has interrupted this wait, nothing was consumed: look what it wants, and \
                 call again",
            ),
            Self::PoolExhausted => f.write_str(
                "all connections of the pool are in use: return one or raise its maximum",
            ),
            Self::ShuttingDown => f.write_str("shutting down, nothing new is taken"),
            Self::ShutdownIncomplete { remaining } => write!(
                f,
                "the shutdown deadline passed with {remaining} connections open: wait again or \
                 force them closed"
            ),
            Self::ShutdownCut { cut } => write!(
                f,
                "the loop has shut down, but {cut} connections were cut before their peers had \
                 everything: raise the linger time or the write timeout"
            ),
            Self::WouldDeadlock => f.write_str(
                "this call would wait on a poller's thread: use the try_ form, or a dispatch that \
                 may block",
            ),
            Self::SelfConnect => f.write_str(
                "connected to itself, so nobody listens there: dial again once a server does",
            ),
            Self::Unsupported(what) => write!(f, "not supported: {what}"),
            Self::InvalidAddress(why) => write!(f, "unusable address: {why}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error)
    }
}

impl From<CloseReason> for Error {
    fn from(reason: CloseReason) -> Self {
        Self::Closed(reason)
    }
}

impl From<InvalidAddress> for Error {
    fn from(why: InvalidAddress) -> Self {
        Self::InvalidAddress(why)
    }
}

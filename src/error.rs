//! What can go wrong, as values that can be matched on.
//!
//! Calls return [`std::io::Result`], so that they mix with everything that reads and writes.
//! Where the failure is this crate's own decision (a limit, a timeout, a closed connection) the
//! `io::Error` carries an [`Error`], which [`Error::from_io`] takes out again.

use std::{fmt, io};

/// Why a connection ended.
///
/// The first cause wins: a connection whose idle timeout fires and whose peer then resets it
/// ended with [`CloseReason::IdleTimeout`].
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer ended its stream (FIN) and everything it sent was read.
    Peer,
    /// This side closed the connection.
    Local,
    /// This side aborted the connection: unsent output was dropped, the peer sees a reset.
    Abort,
    /// The system reported an error of this kind, `ConnectionReset` for example.
    Error(io::ErrorKind),
    /// Nothing was read or written for the idle timeout.
    IdleTimeout,
    /// A read timeout passed and the handler gave the connection up for it.
    ReadTimeout,
    /// A write timeout passed; the peer may have got a part of a message.
    WriteTimeout,
    /// The event loop or the pool that owned the connection was shut down.
    Shutdown,
    /// A callback returned an error of its own.
    HandlerError,
    /// A callback panicked.
    HandlerPanic,
    /// `on_prepare` refused the connection.
    Refused,
    /// The output limit was reached and the policy is to close.
    OutputFull,
    /// The peer sent, or a callback asked for, more than the input limit allows.
    InputLimit,
    /// The poller that watched the connection failed.
    Poller,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Peer => "the peer closed it",
            Self::Local => "this side closed it",
            Self::Abort => "this side aborted it",
            Self::Error(kind) => return write!(f, "the system reported: {kind}"),
            Self::IdleTimeout => "it was idle for too long",
            Self::ReadTimeout => "the peer sent too slowly",
            Self::WriteTimeout => "the peer took output too slowly",
            Self::Shutdown => "its event loop or pool was shut down",
            Self::HandlerError => "its handler returned an error",
            Self::HandlerPanic => "its handler panicked",
            Self::Refused => "on_prepare refused it",
            Self::OutputFull => "its output queue was full",
            Self::InputLimit => "its input was over the limit",
            Self::Poller => "its poller failed",
        };
        f.write_str(text)
    }
}

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
    /// The output queue has no room for the message; nothing of it was taken.
    /// Kind: `QuotaExceeded`.
    OutputFull {
        /// Bytes waiting in the queue.
        queued: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// An earlier write was cut inside a message, so nothing more can be sent.
    /// Kind: `BrokenPipe`.
    Poisoned,
    /// The pool has its maximum of connections in use. Kind: `ResourceBusy`.
    PoolExhausted,
    /// The event loop or pool is shutting down and takes nothing new. Kind: `NotConnected`.
    ShuttingDown,
    /// The time given to a shutdown passed. Kind: `TimedOut`.
    ShutdownIncomplete {
        /// Connections that are still open.
        remaining: usize,
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
    /// The queue the message was meant for is closed. Kind: `BrokenPipe`.
    QueueClosed,
}

/// What is wrong with an address.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidAddress {
    /// There is no text at all.
    Empty,
    /// A host without `:PORT`.
    NoPort,
    /// The port is not a number from 0 to 65535.
    BadPort,
    /// A port without a host.
    NoHost,
    /// The host is no host name: it has white space, a slash, a control character, or is longer
    /// than 255 bytes.
    BadHost,
    /// An IPv6 address that is not in brackets, or brackets around something else.
    BadBrackets,
    /// A unix path longer than this many bytes.
    PathTooLong {
        /// The most the system takes.
        limit: usize,
    },
    /// A zero byte inside a unix path.
    ZeroInPath,
    /// Abstract names exist on Linux only.
    NoAbstractNames,
    /// The address names nothing one could connect or bind to.
    Unnamed,
    /// The host name has no address.
    NoSuchHost,
    /// The local and the remote address are of different families.
    FamilyMismatch,
}

impl fmt::Display for InvalidAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Empty => "it is empty, write HOST:PORT or unix:/PATH",
            Self::NoPort => "the port is missing, write HOST:PORT",
            Self::BadPort => "the port must be a number from 0 to 65535",
            Self::NoHost => "the host is missing, write 0.0.0.0:PORT or [::]:PORT for all",
            Self::BadHost => "this is no host name",
            Self::BadBrackets => "an IPv6 address is written as [ADDRESS]:PORT",
            Self::PathTooLong { limit } => {
                return write!(f, "a unix path may have {limit} bytes, use a shorter one");
            }
            Self::ZeroInPath => "a unix path cannot contain a zero byte",
            Self::NoAbstractNames => "abstract unix names exist on Linux only, use a path",
            Self::Unnamed => "an unnamed socket cannot be reached, use a path",
            Self::NoSuchHost => "the host name has no address",
            Self::FamilyMismatch => "local and remote address must be of one family",
        };
        f.write_str(text)
    }
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
        )
    }

    /// Whether the connection is of no more use for what was tried: it ended, the peer ended
    /// its stream, or its output was cut.
    pub const fn is_closed(&self) -> bool {
        matches!(
            self,
            Self::Closed(_) | Self::PeerClosed { .. } | Self::Poisoned
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
            | Self::ShutdownIncomplete { .. } => ErrorKind::TimedOut,
            Self::InputLimit { .. } => ErrorKind::InvalidData,
            Self::OutputFull { .. } => ErrorKind::QuotaExceeded,
            Self::Poisoned | Self::QueueClosed => ErrorKind::BrokenPipe,
            Self::PoolExhausted => ErrorKind::ResourceBusy,
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
                "{queued} of {limit} bytes of output are queued and the message does not fit: \
                 send it later, or raise the output limit"
            ),
            Self::Poisoned => {
                f.write_str("an earlier write was cut inside a message: close the connection")
            }
            Self::PoolExhausted => f.write_str(
                "all connections of the pool are in use: return one or raise its maximum",
            ),
            Self::ShuttingDown => f.write_str("shutting down, nothing new is taken"),
            Self::ShutdownIncomplete { remaining } => write!(
                f,
                "the shutdown deadline passed with {remaining} connections open: wait again or \
                 force them closed"
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
            Self::QueueClosed => f.write_str("the queue is closed: the message was not taken"),
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

/// An error with what was being tried, an address for example: `bind 127.0.0.1:80: permission
/// denied`. Its kind is that of `source`.
pub(crate) fn with_context(what: impl Into<Box<str>>, source: io::Error) -> io::Error {
    let kind = source.kind();
    io::Error::new(
        kind,
        Context {
            what: what.into(),
            source,
        },
    )
}

#[derive(Debug)]
struct Context {
    what: Box<str>,
    source: io::Error,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.source)
    }
}

impl std::error::Error for Context {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Error> {
        vec![
            Error::Closed(CloseReason::Peer),
            Error::Closed(CloseReason::Local),
            Error::Closed(CloseReason::Error(io::ErrorKind::ConnectionReset)),
            Error::PeerClosed {
                wanted: 8,
                available: 3,
            },
            Error::ReadTimeout,
            Error::WriteTimeout {
                sent: 41,
                queued: 17,
            },
            Error::DialTimeout,
            Error::InputLimit {
                wanted: 100,
                limit: 64,
            },
            Error::OutputFull {
                queued: 60,
                limit: 64,
            },
            Error::Poisoned,
            Error::PoolExhausted,
            Error::ShuttingDown,
            Error::ShutdownIncomplete { remaining: 12 },
            Error::WouldDeadlock,
            Error::SelfConnect,
            Error::Unsupported("abstract names"),
            Error::InvalidAddress(InvalidAddress::NoPort),
            Error::QueueClosed,
        ]
    }

    #[test]
    fn errors_survive_the_way_through_io_error() {
        for error in all() {
            let io = io::Error::from(error);
            assert_eq!(io.kind(), error.kind(), "{error:?}");
            assert_eq!(Error::from_io(&io), Some(error));
            assert_eq!(io.to_string(), error.to_string());
        }
    }

    #[test]
    fn no_error_asks_to_be_tried_again_in_a_loop() {
        let mut errors = all();
        for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted] {
            errors.push(Error::Closed(CloseReason::Error(kind)));
        }
        for error in errors {
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{error:?}");
            assert_ne!(error.kind(), io::ErrorKind::Interrupted, "{error:?}");
        }
    }

    #[test]
    fn kinds_are_the_documented_ones() {
        use io::ErrorKind;
        let expected = [
            (Error::Closed(CloseReason::Local), ErrorKind::NotConnected),
            (Error::Closed(CloseReason::Abort), ErrorKind::NotConnected),
            (
                Error::Closed(CloseReason::Shutdown),
                ErrorKind::NotConnected,
            ),
            (Error::Closed(CloseReason::Peer), ErrorKind::BrokenPipe),
            (
                Error::Closed(CloseReason::Error(ErrorKind::ConnectionReset)),
                ErrorKind::ConnectionReset,
            ),
            (Error::ReadTimeout, ErrorKind::TimedOut),
            (Error::DialTimeout, ErrorKind::TimedOut),
            (Error::WouldDeadlock, ErrorKind::Deadlock),
            (Error::SelfConnect, ErrorKind::ConnectionRefused),
            (Error::PoolExhausted, ErrorKind::ResourceBusy),
        ];
        for (error, kind) in expected {
            assert_eq!(error.kind(), kind, "{error:?}");
        }
    }

    #[test]
    fn texts_name_the_values() {
        let text = Error::WriteTimeout {
            sent: 41,
            queued: 17,
        }
        .to_string();
        assert!(text.contains("41") && text.contains("17"), "{text}");
        let text = Error::InputLimit {
            wanted: 100,
            limit: 64,
        }
        .to_string();
        assert!(text.contains("100") && text.contains("64"), "{text}");
        let text = Error::Closed(CloseReason::Error(io::ErrorKind::ConnectionReset)).to_string();
        assert!(text.contains("reset"), "{text}");
    }

    #[test]
    fn a_context_keeps_kind_error_and_source() {
        let error = with_context("dial 10.0.0.1:80", Error::DialTimeout.into());
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(Error::from_io(&error), Some(Error::DialTimeout));
        assert!(error.to_string().starts_with("dial 10.0.0.1:80: "));
        let twice = with_context("outer", error);
        assert_eq!(Error::from_io(&twice), Some(Error::DialTimeout));
        assert!(twice.get_ref().and_then(|e| e.source()).is_some());

        let system = io::Error::from_raw_os_error(libc::ECONNREFUSED);
        let error = with_context("dial", system);
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(Error::from_io(&error), None);
    }

    #[test]
    fn foreign_errors_carry_nothing_of_ours() {
        assert_eq!(Error::from_io(&io::ErrorKind::TimedOut.into()), None);
        assert_eq!(Error::from_io(&io::Error::other("text")), None);
    }

    #[test]
    fn helpers_sort_the_variants() {
        let timeouts = all().into_iter().filter(Error::is_timeout).count();
        assert_eq!(timeouts, 4);
        let closed = all().into_iter().filter(Error::is_closed).count();
        assert_eq!(closed, 5);
        for error in all() {
            assert_eq!(
                error.is_timeout(),
                error.kind() == io::ErrorKind::TimedOut,
                "{error:?}"
            );
        }
    }

    #[test]
    fn close_reasons_have_distinct_texts() {
        let reasons = [
            CloseReason::Peer,
            CloseReason::Local,
            CloseReason::Abort,
            CloseReason::Error(io::ErrorKind::ConnectionReset),
            CloseReason::IdleTimeout,
            CloseReason::ReadTimeout,
            CloseReason::WriteTimeout,
            CloseReason::Shutdown,
            CloseReason::HandlerError,
            CloseReason::HandlerPanic,
            CloseReason::Refused,
            CloseReason::OutputFull,
            CloseReason::InputLimit,
            CloseReason::Poller,
        ];
        let texts: std::collections::HashSet<_> = reasons.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), reasons.len());
    }
}

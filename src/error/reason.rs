//! Why a connection ended.

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
    /// The server had too much to do: others needed the thread that waited for this connection.
    Overload,
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
            Self::Overload => "the server was overloaded",
            Self::Poller => "its poller failed",
        };
        f.write_str(text)
    }
}

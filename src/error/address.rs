//! What is wrong with an address.

use std::fmt;

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

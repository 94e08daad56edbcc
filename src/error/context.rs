//! What was being tried when an error came.

use std::{fmt, io};

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
pub(super) struct Context {
    what: Box<str>,
    pub(super) source: io::Error,
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

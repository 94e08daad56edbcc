//! The flags of an event as a [`Readiness`].

use crate::operator::readiness::Readiness;

/// The flags of one event as a set.
pub(super) fn collect(event: &impl Flags) -> Readiness {
    let usual =
        Readiness::READABLE.when(event.readable()) | Readiness::WRITABLE.when(event.writable());
    // Four questions of which each takes several instructions; asked together it is a few in all.
    if event.error() || event.read_closed() || event.write_closed() || event.priority() {
        usual
            | Readiness::PRIORITY.when(event.priority())
            | Readiness::READ_CLOSED.when(event.read_closed())
            | Readiness::WRITE_CLOSED.when(event.write_closed())
            | Readiness::ERROR.when(event.error())
    } else {
        usual
    }
}

/// The flags of one event, as `mio` tells them. A trait so that scripted events can be fed in.
pub(super) trait Flags {
    fn readable(&self) -> bool;
    fn writable(&self) -> bool;
    fn read_closed(&self) -> bool;
    fn write_closed(&self) -> bool;
    fn error(&self) -> bool;
    fn priority(&self) -> bool;
}

impl Flags for mio::event::Event {
    fn readable(&self) -> bool {
        self.is_readable()
    }
    fn writable(&self) -> bool {
        self.is_writable()
    }
    fn read_closed(&self) -> bool {
        self.is_read_closed()
    }
    fn write_closed(&self) -> bool {
        self.is_write_closed()
    }
    fn error(&self) -> bool {
        self.is_error()
    }
    fn priority(&self) -> bool {
        self.is_priority()
    }
}

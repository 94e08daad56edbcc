#![doc = include_str!("../docs/guide/leaks.md")]

use crate::connection::Shared;
use linkbuffer::netpoll_only::{LeakGuard, LeakRegistry};
use std::fmt;

/// What is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A [`Bytes`](crate::Bytes) that shares a chunk: see [`linkbuffer::leak`].
    View,
    /// A [`LinkBuffer`](crate::LinkBuffer) that shares chunks.
    Slice,
    /// A connection whose descriptor is open: accepted, dialled or adopted, in whosoever hands. Made
    /// where it was accepted or dialled.
    Connection,
    /// A [`ConnectionHandle`](crate::ConnectionHandle), each clone by itself. It keeps no descriptor,
    /// but the shared part of its connection, also when that is over.
    Handle,
    /// A [`PendingReply`](crate::PendingReply): as long as it lives a half-closed connection stays open and a drain
    /// waits.
    PendingReply,
}

/// One value that is alive, and where it was made. `Display` writes all of it, with the backtrace.
pub type Leak = linkbuffer::leak::Leak<Kind>;

/// Everything that is recorded and alive in this process, oldest first.
///
/// May be called from any thread, and takes locks for as long as the lists are copied. Connections
/// that a poller is just closing may still be there.
pub fn report() -> Vec<Leak> {
    let memory = linkbuffer::leak::report().into_iter();
    let mut leaks: Vec<Leak> = memory
        .map(|leak| {
            leak.map_kind(|kind| match kind {
                linkbuffer::leak::Kind::View => Kind::View,
                _ => Kind::Slice,
            })
        })
        .chain(ALIVE.report())
        .collect();
    leaks.sort_by_key(Leak::made);
    leaks
}

/// Records a value of a connection until it is dropped; a clone is a value of its own.
pub(crate) struct Tracked {
    kind: Kind,
    note: String,
    guard: LeakGuard<Kind>,
}

impl Tracked {
    /// A descriptor, of a connection that is not known yet.
    pub(crate) fn descriptor() -> Self {
        Self::new(Kind::Connection, String::new())
    }

    pub(crate) fn of(kind: Kind, shared: &Shared) -> Self {
        Self::new(kind, note(shared))
    }

    /// Says whose descriptor it is.
    pub(crate) fn belongs_to(&self, shared: &Shared) {
        self.guard.describe(note(shared));
    }

    fn new(kind: Kind, note: String) -> Self {
        Self {
            kind,
            guard: ALIVE.track(kind, 0, 0, note.clone()),
            note,
        }
    }
}

impl Clone for Tracked {
    fn clone(&self) -> Self {
        Self::new(self.kind, self.note.clone())
    }
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

fn note(shared: &Shared) -> String {
    format!("of connection #{} with {}", shared.id, shared.peer)
}

static ALIVE: LeakRegistry<Kind> = LeakRegistry::new();

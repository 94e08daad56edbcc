//! Keeps views of request bodies for a while, then answers with their checksums.

use crate::support::crc::Crc32;
use netpoll::{ConnectionHandle, LinkBuffer, PendingReply};
use std::{
    io,
    sync::mpsc::{self, Sender},
    thread,
    time::{Duration, Instant},
};

/// How long a view is kept.
const KEEP: Duration = Duration::from_secs(5);

/// A thread that keeps views, and the way to it.
#[derive(Debug)]
pub(crate) struct Keeper {
    views: Sender<Kept>,
}

/// A view and where its answer goes.
#[derive(Debug)]
struct Kept {
    due: Instant,
    view: LinkBuffer,
    to: ConnectionHandle,
    /// The connection counts as busy until the answer is on its way.
    promise: PendingReply,
}

impl Keeper {
    pub(crate) fn start() -> io::Result<Self> {
        let (views, kept) = mpsc::channel::<Kept>();
        thread::Builder::new()
            .name("keeper".to_owned())
            .spawn(move || {
                // All are kept for the same time, so they become due in the order they come in.
                for kept in kept {
                    thread::sleep(kept.due.saturating_duration_since(Instant::now()));
                    kept.answer();
                }
            })?;
        Ok(Self { views })
    }

    /// Keeps `view` for five seconds, then sends its checksum to the connection.
    pub(crate) fn keep(&self, view: LinkBuffer, to: ConnectionHandle) -> io::Result<()> {
        let promise = to.hold();
        let kept = Kept {
            due: Instant::now() + KEEP,
            view,
            to,
            promise,
        };
        self.views
            .send(kept)
            .map_err(|_| io::Error::other("the keeper's thread has ended"))
    }
}

impl Kept {
    fn answer(self) {
        let Self {
            view, to, promise, ..
        } = self;
        let sum = view.chunks().fold(Crc32::new(), Crc32::add).value();
        let mut reply = LinkBuffer::new();
        reply.write_slice(&4_u32.to_be_bytes());
        reply.write_slice(&sum.to_be_bytes());
        if let Err(error) = to.send(reply) {
            eprintln!("connection {}: checksum not sent: {error}", to.id());
        }
        drop(promise);
    }
}

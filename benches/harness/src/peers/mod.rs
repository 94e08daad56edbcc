//! The servers that are compared, each on a stack of its own, all answering the frame of
//! [`crate::frame`].
//!
//! Every peer is given a listening socket set up alike, receives a frame whole before it answers,
//! sends one answer per run of plain frames that came together, and goes on when a connection fails.

mod blocking;
#[cfg(feature = "peers")]
mod compio;
mod echo;
mod handoff;
#[cfg(feature = "peers")]
mod may;
mod mio;
#[cfg(feature = "peers")]
mod monoio;
mod ours;
mod raw_epoll;
#[cfg(feature = "peers")]
mod raw_uring;
mod threads;
#[cfg(feature = "peers")]
mod tokio;

use std::io;
use std::net::TcpListener;

/// A server that can be started by name.
#[derive(Debug)]
pub(crate) struct Peer {
    /// The name used on the command line and in reports.
    pub(crate) name: &'static str,
    /// How it is built: threads, buffers.
    pub(crate) design: &'static str,
    /// What a handler that sleeps or computes does to it.
    pub(crate) handlers: &'static str,
    /// Serves for ever.
    pub(crate) serve: fn(TcpListener) -> io::Result<()>,
}

/// The peer all others are measured against.
pub(crate) const REFERENCE: &str = "raw-epoll";
/// The same server once more: how far it strays from the reference is the noise of a run.
pub(crate) const SECOND: &str = "raw-epoll-2";

const BLOCKS_LOOP: &str = "block the one thread";

/// All peers, in the order of the reports.
pub(crate) static ALL: &[Peer] = &[
    Peer {
        name: REFERENCE,
        design: "one thread, level-triggered epoll, a 64 KiB receive buffer shared by all connections; \
            a connection on which a frame came in part has its own until a frame ends with a receive",
        handlers: BLOCKS_LOOP,
        serve: raw_epoll::spilling,
    },
    Peer {
        name: SECOND,
        design: "the reference once more; its distance is the noise",
        handlers: BLOCKS_LOOP,
        serve: raw_epoll::spilling,
    },
    Peer {
        name: "raw-epoll-carry",
        design: "the same loop with a 256 KiB receive buffer, to whose front partial frames are \
            carried: nearer to the limit where requests are pipelined",
        handlers: BLOCKS_LOOP,
        serve: raw_epoll::carrying,
    },
    Peer {
        name: "raw-epoll-threaded",
        design: "the reference in a process with a second thread, which sleeps for good: what every \
            server with threads pays in each call",
        handlers: BLOCKS_LOOP,
        serve: raw_epoll::threaded,
    },
    #[cfg(feature = "peers")]
    Peer {
        name: "raw-uring",
        design: "one thread, io_uring: multishot accept and receive, 1024 provided buffers of 64 KiB",
        handlers: BLOCKS_LOOP,
        serve: raw_uring::serve,
    },
    Peer {
        name: "handoff",
        design: "one polling thread (edge-triggered epoll), 64 workers behind a crossbeam channel, \
            a 64 KiB receive buffer per worker",
        handlers: "block a worker",
        serve: handoff::serve,
    },
    Peer {
        name: "threads",
        design: "a thread per connection (64 KiB stacks), a buffer of 16 KiB each that grows to \
            64 KiB where data fills it",
        handlers: "block the connection's thread",
        serve: threads::serve,
    },
    Peer {
        name: "mio",
        design: "one thread, edge-triggered, a receive that leaves room ends a turn, one 256 KiB \
            receive buffer shared by all connections",
        handlers: BLOCKS_LOOP,
        serve: mio::serve,
    },
    #[cfg(feature = "peers")]
    Peer {
        name: "tokio-mt",
        design: "multi-thread runtime, a worker per core, a task and a 64 KiB BytesMut per connection",
        handlers: "sleep on tokio's timer; compute in the task",
        serve: tokio::multi_thread,
    },
    #[cfg(feature = "peers")]
    Peer {
        name: "tokio-blocking",
        design: "as tokio-mt",
        handlers: "are blocking code in spawn_blocking, sleeping and computing alike",
        serve: tokio::multi_thread_blocking,
    },
    #[cfg(feature = "peers")]
    Peer {
        name: "tokio-16",
        design: "as tokio-mt with 16 workers",
        handlers: "are blocking code in the task: block a worker",
        serve: tokio::sixteen,
    },
    #[cfg(all(feature = "peers", tokio_unstable))]
    Peer {
        name: "tokio-16-eager",
        design: "as tokio-16 with tokio's eager driver hand-off, which is unstable there",
        handlers: "are blocking code in the task: block a worker",
        serve: tokio::sixteen_eager,
    },
    #[cfg(feature = "peers")]
    Peer {
        name: "tokio-ct",
        design: "current-thread runtime, a task and a 64 KiB BytesMut per connection",
        handlers: "sleep on tokio's timer; compute in the task",
        serve: tokio::current_thread,
    },
    #[cfg(feature = "peers")]
    Peer {
        name: "monoio-uring",
        design: "one thread on io_uring, a task and an owned 64 KiB buffer per connection",
        handlers: "sleep on monoio's timer; compute in the task",
        serve: monoio::uring,
    },
    #[cfg(feature = "peers")]
    Peer {
        name: "monoio-legacy",
        design: "one thread on epoll, a task and an owned 64 KiB buffer per connection",
        handlers: "sleep on monoio's timer; compute in the task",
        serve: monoio::legacy,
    },
    #[cfg(feature = "peers")]
    Peer {
        name: "compio",
        design: "one thread on io_uring, a task and an owned 64 KiB buffer per connection",
        handlers: "sleep on compio's timer; compute in the task",
        serve: compio::serve,
    },
    #[cfg(feature = "peers")]
    Peer {
        name: "may",
        design: "a worker per core, a coroutine (32 KiB stack) per connection, buffers as threads",
        handlers: "sleep on may's timer; compute in the coroutine",
        serve: may::serve,
    },
    Peer {
        name: "netpoll",
        design: "netpoll with default options: Adaptive, one poller per four cores; zero-copy echo by \
            forward",
        handlers: "block the thread that polls, which hands its poller over",
        serve: ours::adaptive,
    },
    Peer {
        name: "netpoll-guide",
        design: "netpoll with the handler that README shows: try_peek, try_slice, append, one flush",
        handlers: "block the thread that polls, which hands its poller over",
        serve: ours::guide,
    },
    Peer {
        name: "netpoll-next",
        design: "netpoll with a handler that waits for each frame with peek and slice",
        handlers: "block the thread that polls, which hands its poller over",
        serve: ours::waiting,
    },
    Peer {
        name: "netpoll-fill",
        design: "as netpoll, but a handler waits in `fill` for the rest of a frame that came in part",
        handlers: "block the thread that polls, which hands its poller over",
        serve: ours::filling,
    },
    Peer {
        name: "netpoll-frames",
        design: "as netpoll, but the handler takes one frame after the other by peek and forward, \
            where the others look at all that lie in one piece",
        handlers: "block the thread that polls, which hands its poller over",
        serve: ours::frames,
    },
    Peer {
        name: "netpoll-busy",
        design: "as netpoll, with one poller that looks for events for 100 us before it sleeps",
        handlers: "block the thread that polls, which hands its poller over",
        serve: ours::busy,
    },
    Peer {
        name: "netpoll-workers",
        design: "netpoll, one poller, handlers on up to 64 workers",
        handlers: "block a worker",
        serve: ours::workers,
    },
    Peer {
        name: "netpoll-workers-512",
        design: "as netpoll-workers with up to 512 workers: as many threads as netpoll may start",
        handlers: "block a worker",
        serve: ours::many_workers,
    },
    Peer {
        name: "netpoll-inline",
        design: "netpoll, one poller, handlers on its thread",
        handlers: BLOCKS_LOOP,
        serve: ours::inline,
    },
];

/// The peer called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Peer> {
    ALL.iter().find(|peer| peer.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_unique() {
        for peer in ALL {
            let found = find(peer.name).unwrap();
            assert!(std::ptr::eq(found, peer), "{} is there twice", peer.name);
        }
        assert!(find(REFERENCE).is_some() && find(SECOND).is_some());
        assert!(find("nobody").is_none());
    }
}

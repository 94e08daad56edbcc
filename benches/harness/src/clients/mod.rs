//! The clients that are compared: callers that ask and wait for the answer, each in a process of its
//! own, all against the reference server.

mod ours;
mod raw;
mod std_shared;
mod std_stream;
mod tally;
#[cfg(feature = "peers")]
mod tokio;
mod waiters;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tally::Gate;
pub(crate) use tally::Tally;

/// What callers do.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Where the server listens.
    pub(crate) addr: SocketAddr,
    /// Callers, each with one call under way.
    pub(crate) callers: usize,
    /// All callers share one connection; otherwise each has one for the time of a call.
    pub(crate) shared: bool,
    /// Payload bytes of a call.
    pub(crate) size: usize,
    /// How long to call before anything is recorded.
    pub(crate) warmup: Duration,
    /// How long to record.
    pub(crate) measure: Duration,
    /// End after so many calls instead, without warm-up.
    pub(crate) requests: Option<u64>,
}

/// A client that can be started by name.
#[derive(Debug)]
pub(crate) struct Client {
    /// The name used on the command line and in reports.
    pub(crate) name: &'static str,
    /// How it is built.
    pub(crate) design: &'static str,
    /// Whether it knows callers that share a connection.
    pub(crate) shares: bool,
    run: fn(&Job) -> io::Result<Tally>,
}

impl Client {
    /// Does `job` and returns what was seen.
    pub(crate) fn run(&self, job: &Job) -> io::Result<Tally> {
        (self.run)(job)
    }
}

/// The client all others are measured against.
pub(crate) const REFERENCE: &str = "std";
/// The same client once more, for the noise.
pub(crate) const SECOND: &str = "std-2";

const STD: &str = "TcpStream of the standard library, a reused buffer per caller; callers that share a \
    connection wait for a thread that reads";

/// All clients, in the order of the reports.
pub(crate) static ALL: &[Client] = &[
    Client {
        name: REFERENCE,
        design: STD,
        shares: true,
        run: std_client,
    },
    Client {
        name: SECOND,
        design: "the reference once more; its distance is the noise",
        shares: true,
        run: std_client,
    },
    Client {
        name: "raw",
        design: "a raw epoll loop on one thread: no callers wait, so it is a floor, not a peer",
        shares: true,
        run: raw::run,
    },
    #[cfg(feature = "peers")]
    Client {
        name: "tokio-ct",
        design: "current-thread runtime, a task per caller; callers that share a connection use a \
            writing and a reading task and oneshot channels",
        shares: true,
        run: tokio::run,
    },
    Client {
        name: "netpoll",
        design: "netpoll: a connection from a pool for each call; on a shared connection the callers \
            send by its handle and wait for a poller that reads",
        shares: true,
        run: ours::pooled,
    },
    Client {
        name: "netpoll-held",
        design: "netpoll: a connection per caller, kept for all its calls",
        shares: false,
        run: ours::held,
    },
];

fn std_client(job: &Job) -> io::Result<Tally> {
    if job.shared {
        std_shared::run(job)
    } else {
        std_stream::run(job)
    }
}

/// The client called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Client> {
    ALL.iter().find(|client| client.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_unique() {
        for client in ALL {
            let found = find(client.name).unwrap();
            assert!(
                std::ptr::eq(found, client),
                "{} is there twice",
                client.name
            );
        }
        assert!(find("nobody").is_none());
    }
}

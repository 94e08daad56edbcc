//! The proxies that are compared: each joins every client to a connection of its own to the same
//! echo server, which is another process.
//!
//! All are given a listening socket set up alike. Their connections to the backend keep the system's
//! congestion control, since HAProxy offers no choice there.

mod haproxy;
mod ours;
#[cfg(feature = "peers")]
mod tokio;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use crate::peers;

/// A proxy that can be started by name.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// The name used on the command line and in reports.
    pub(crate) name: &'static str,
    /// How it is built: threads, buffers.
    pub(crate) design: &'static str,
    /// The program it needs, which is not ours.
    pub(crate) program: Option<&'static str>,
    /// Takes connections for ever, each with one of its own to the address given.
    pub(crate) serve: fn(TcpListener, SocketAddr) -> io::Result<()>,
}

impl Proxy {
    /// Why it cannot be started here, if so.
    pub(crate) fn missing(&self) -> Option<String> {
        let program = self.program?;
        version(program)
            .is_none()
            .then(|| format!("{program} is not installed"))
    }
}

/// The proxy all others are measured against.
pub(crate) const REFERENCE: &str = "haproxy";
/// The same proxy once more: how far it strays from the reference is the noise of a run.
pub(crate) const SECOND: &str = "haproxy-2";

/// All proxies, in the order of the reports.
pub(crate) static ALL: &[Proxy] = &[
    Proxy {
        name: "direct",
        design: "no proxy: the raw epoll loop itself, which is the backend of all others",
        program: None,
        serve: |listener, _| match peers::find(peers::REFERENCE) {
            Some(peer) => (peer.serve)(listener),
            None => Err(io::ErrorKind::NotFound.into()),
        },
    },
    Proxy {
        name: REFERENCE,
        design: "HAProxy in TCP mode, one thread, no log, otherwise its defaults (buffers of 16 KiB)",
        program: Some(haproxy::PROGRAM),
        serve: haproxy::copying,
    },
    Proxy {
        name: SECOND,
        design: "the reference once more; its distance is the noise",
        program: Some(haproxy::PROGRAM),
        serve: haproxy::copying,
    },
    Proxy {
        name: "haproxy-splice",
        design: "the same with `option splice-request` and `splice-response`: bulk through kernel \
            pipes both ways (`splice-auto` was seen to take none here)",
        program: Some(haproxy::PROGRAM),
        serve: haproxy::splicing,
    },
    #[cfg(feature = "peers")]
    Proxy {
        name: "tokio-copy-ct",
        design: "current-thread runtime, a task per client with copy_bidirectional, 64 KiB each way",
        program: None,
        serve: tokio::current_thread,
    },
    #[cfg(feature = "peers")]
    Proxy {
        name: "tokio-copy-mt",
        design: "the same on the multi-thread runtime, a worker per core",
        program: None,
        serve: tokio::multi_thread,
    },
    Proxy {
        name: "netpoll-relay",
        design: "netpoll's relay to connections from a pool, default options: one poller per four \
            cores for both sides",
        program: None,
        serve: ours::together,
    },
    Proxy {
        name: "netpoll-relay-apart",
        design: "the same, but the clients have a poller of their own and the backends' another",
        program: None,
        serve: ours::apart,
    },
];

/// The proxy called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Proxy> {
    ALL.iter().find(|proxy| proxy.name == name)
}

/// The version a program says it has with `-v`; `None` when it cannot be started.
pub(crate) fn version(program: &str) -> Option<String> {
    let mut ask = Command::new(program);
    let output = ask.arg("-v").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = text.split_whitespace();
    words.find(|word| *word == "version");
    output
        .status
        .success()
        .then(|| words.next().unwrap_or("of some version").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_unique() {
        for proxy in ALL {
            let found = find(proxy.name).unwrap();
            assert!(std::ptr::eq(found, proxy), "{} is there twice", proxy.name);
            assert!(peers::find(proxy.name).is_none(), "{}", proxy.name);
        }
        assert!(find(REFERENCE).is_some() && find(SECOND).is_some());
    }

    #[test]
    fn what_is_not_installed_is_missing() {
        let proxy = Proxy {
            name: "nobody",
            design: "",
            program: Some("netpoll-bench-no-such-program"),
            serve: ALL[0].serve,
        };
        assert!(proxy.missing().unwrap().contains("no-such-program"));
        assert_eq!(ALL[0].missing(), None);
    }
}

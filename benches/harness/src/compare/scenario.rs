//! The scenarios: what is asked of every server.

use super::callers::Calling;
use crate::frame::Kind;
use crate::load::{Mark, Marked};
use crate::{clients, peers, proxies};

/// Where a server and the load generator run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// The server on core 0, the load generator on core 1.
    Pinned,
    /// Both wherever the system puts them.
    Free,
}

impl Mode {
    /// The name used in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Free => "free",
        }
    }
}

/// One load, by name.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// The name used on the command line and in results.
    pub(crate) name: String,
    /// Scenarios that are shown in one table.
    pub(crate) group: &'static str,
    /// What it does, for the report.
    pub(crate) about: String,
    /// What is done.
    pub(crate) what: What,
    /// The modes it is run in unless the command line says otherwise.
    pub(crate) modes: &'static [Mode],
    /// The modes it is run in by `--quick`.
    pub(crate) quick: &'static [Mode],
}

impl Scenario {
    /// The servers or clients it is about, in the order of the reports.
    pub(crate) fn contestants(&self) -> Vec<&'static str> {
        match self.what {
            What::Call(_) => clients::ALL.iter().map(|client| client.name).collect(),
            What::Proxied(_) => proxies::ALL.iter().map(|proxy| proxy.name).collect(),
            What::Load(_) | What::Idle { .. } => peers::ALL.iter().map(|peer| peer.name).collect(),
        }
    }

    /// The one of them that ratios are formed with, and its second copy.
    pub(crate) fn reference(&self) -> (&'static str, &'static str) {
        match self.what {
            What::Call(_) => (clients::REFERENCE, clients::SECOND),
            What::Proxied(_) => (proxies::REFERENCE, proxies::SECOND),
            What::Load(_) | What::Idle { .. } => (peers::REFERENCE, peers::SECOND),
        }
    }
}

/// The kinds of scenarios.
#[derive(Clone, Debug)]
pub(crate) enum What {
    /// A load on a server that goes on running.
    Load(Shape),
    /// A load on the reference server through a proxy that goes on running.
    Proxied(Shape),
    /// Connections that stay silent, on a server just started.
    Idle {
        /// How many.
        connections: usize,
    },
    /// Clients that call the reference server and wait.
    Call(Calling),
}

/// A load without the times and the address.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) connections: usize,
    pub(crate) active: usize,
    pub(crate) slow: usize,
    pub(crate) depth: usize,
    pub(crate) size: usize,
    pub(crate) kind: Kind,
    pub(crate) mark: Option<Mark>,
    pub(crate) churn: bool,
}

impl Shape {
    /// Ping-pong on `connections` connections with `size` bytes of payload.
    fn ping_pong(connections: usize, size: usize) -> Self {
        Self {
            connections,
            active: connections,
            slow: 0,
            depth: 1,
            size,
            kind: Kind::Echo,
            mark: None,
            churn: false,
        }
    }

    fn marked(connections: usize, share: f64, what: Marked) -> Self {
        Self {
            mark: Some(Mark { share, what }),
            ..Self::ping_pong(connections, 1 << 10)
        }
    }
}

const BOTH: &[Mode] = &[Mode::Pinned, Mode::Free];
const PINNED: &[Mode] = &[Mode::Pinned];
const FREE: &[Mode] = &[Mode::Free];
const NONE: &[Mode] = &[];

/// The connections of the ping-pong scenarios.
pub(crate) const CONNECTIONS: [usize; 5] = [1, 10, 100, 1_000, 10_000];
/// The payloads of the ping-pong scenarios, in bytes.
pub(crate) const SIZES: [usize; 4] = [64, 1 << 10, 4 << 10, 16 << 10];

/// All scenarios, in the order of the reports.
pub(crate) fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    ping_pong(&mut all);
    pipelined_and_large(&mut all);
    connections(&mut all);
    handlers(&mut all);
    proxied(&mut all);
    calls(&mut all);
    all
}

fn ping_pong(all: &mut Vec<Scenario>) {
    for size in SIZES {
        for connections in CONNECTIONS {
            let (modes, quick) = match (connections, size) {
                (100, 1024) => (BOTH, BOTH),
                (1 | 1_000, 1024) => (BOTH, PINNED),
                (100, 16_384) => (PINNED, PINNED),
                (_, 1024) => (BOTH, NONE),
                _ => (PINNED, NONE),
            };
            let size_name = bytes(size);
            all.push(Scenario {
                name: format!("pp-{connections}-{size_name}"),
                group: "Ping-pong",
                about: format!("{connections} connections, {size_name} each way, one at a time"),
                what: What::Load(Shape::ping_pong(connections, size)),
                modes,
                quick,
            });
        }
    }
}

fn pipelined_and_large(all: &mut Vec<Scenario>) {
    let mut add = |name: &str, about: &str, shape: Shape, quick| {
        all.push(Scenario {
            name: name.into(),
            group: "Pipelined and large",
            about: about.into(),
            what: What::Load(shape),
            modes: BOTH,
            quick,
        });
    };
    let mux = |size| Shape {
        depth: 100,
        ..Shape::ping_pong(4, size)
    };
    add(
        "mux-64",
        "4 connections, 100 requests under way on each, 64 B",
        mux(64),
        NONE,
    );
    add(
        "mux-1k",
        "4 connections, 100 requests under way on each, 1k",
        mux(1024),
        PINNED,
    );
    let big = Shape::ping_pong(2, 1 << 20);
    let sink = Shape {
        kind: Kind::Sink,
        depth: 2,
        ..Shape::ping_pong(2, 1 << 20)
    };
    add(
        "echo-1m",
        "2 connections, 1 MiB each way, one at a time",
        big,
        PINNED,
    );
    let about = "2 connections, 1 MiB one way, 2 under way on each, answered by an empty frame";
    add("sink-1m", about, sink, NONE);
}

fn connections(all: &mut Vec<Scenario>) {
    let mut add = |name: &str, about: &str, what: What, modes, quick| {
        let (name, about) = (name.into(), about.into());
        all.push(Scenario {
            name,
            group: "Connections",
            about,
            what,
            modes,
            quick,
        });
    };
    let churn = Shape {
        churn: true,
        ..Shape::ping_pong(10, 64)
    };
    add(
        "churn",
        "connect, 64 B echo, close; 10 at a time",
        What::Load(churn),
        BOTH,
        PINNED,
    );
    let quiet = Shape {
        active: 200,
        ..Shape::ping_pong(1_000, 1 << 10)
    };
    let about = "1,000 connections, 800 of them silent, 200 ping-pong 1k";
    add("quiet-80", about, What::Load(quiet), BOTH, NONE);
    let slow = Shape {
        slow: 8,
        ..Shape::ping_pong(100, 1 << 10)
    };
    let about =
        "100 connections ping-pong 1k, beside 8 that ask for 16k without end and hardly read";
    add("slow-reader", about, What::Load(slow), BOTH, PINNED);
    let idle = |connections| What::Idle { connections };
    add(
        "idle-10000",
        "10,000 silent connections",
        idle(10_000),
        PINNED,
        NONE,
    );
    add(
        "idle-1000",
        "1,000 silent connections",
        idle(1_000),
        NONE,
        PINNED,
    );
}

fn handlers(all: &mut Vec<Scenario>) {
    let mut add = |name: &str, about: &str, shape: Shape, modes, quick| {
        all.push(Scenario {
            name: name.into(),
            group: "Handlers that wait or compute",
            about: format!("ping-pong 1k, {about}"),
            what: What::Load(shape),
            modes,
            quick,
        });
    };
    let sleep = |connections, share| Shape::marked(connections, share, Marked::Asks(Kind::Sleep));
    let (hundred, thousand) = ("100 connections", "1,000 connections");
    let about =
        |connections, share| format!("{connections}, {share} % of the handlers sleep 10 ms");
    add(
        "sleep-0.02-100",
        &about(hundred, "0.02"),
        sleep(100, 0.0002),
        FREE,
        NONE,
    );
    add(
        "sleep-0.02-1000",
        &about(thousand, "0.02"),
        sleep(1000, 0.0002),
        FREE,
        NONE,
    );
    add(
        "sleep-1-100",
        &about(hundred, "1"),
        sleep(100, 0.01),
        BOTH,
        FREE,
    );
    add(
        "sleep-1-1000",
        &about(thousand, "1"),
        sleep(1000, 0.01),
        FREE,
        NONE,
    );
    add(
        "sleep-10-100",
        &about(hundred, "10"),
        sleep(100, 0.1),
        FREE,
        NONE,
    );
    add(
        "sleep-10-1000",
        &about(thousand, "10"),
        sleep(1000, 0.1),
        FREE,
        NONE,
    );
    let compute = |connections| Shape {
        kind: Kind::Compute,
        ..Shape::ping_pong(connections, 1 << 10)
    };
    add(
        "compute-100",
        "100 connections, every handler computes 50 us",
        compute(100),
        BOTH,
        FREE,
    );
    add(
        "compute-1000",
        "1,000 connections, every handler computes 50 us",
        compute(1000),
        FREE,
        NONE,
    );
    let split = Shape::marked(100, 0.01, Marked::Split);
    let about = "100 connections, 1 % of the frames sent in halves 10 ms apart";
    add("split-1-100", about, split, BOTH, FREE);
}

fn proxied(all: &mut Vec<Scenario>) {
    let mut add = |name: &str, about: &str, shape, quick| {
        all.push(Scenario {
            name: name.into(),
            group: "Proxies",
            about: format!("through a proxy: {about}"),
            what: What::Proxied(shape),
            modes: BOTH,
            quick,
        });
    };
    add(
        "proxy-100-1k",
        "100 connections, 1k each way, one at a time",
        Shape::ping_pong(100, 1 << 10),
        FREE,
    );
    add(
        "proxy-1m",
        "2 connections, 1 MiB each way, one at a time",
        Shape::ping_pong(2, 1 << 20),
        FREE,
    );
}

fn calls(all: &mut Vec<Scenario>) {
    let mut add = |name: &str, about: &str, callers, shared, quick| {
        all.push(Scenario {
            name: name.into(),
            group: "Clients",
            about: format!("calls of 1k to the reference server, {about}"),
            what: What::Call(Calling { callers, shared }),
            modes: BOTH,
            quick,
        });
    };
    add("call-1", "one caller", 1, false, PINNED);
    add("call-8", "8 callers, a connection each", 8, false, NONE);
    add(
        "call-shared-8",
        "8 callers on one connection",
        8,
        true,
        NONE,
    );
    add(
        "call-shared-64",
        "64 callers on one connection",
        64,
        true,
        NONE,
    );
}

/// Whether `name` is meant by `filter`: itself, or the beginning of a name up to a dash.
pub(crate) fn matches(name: &str, filter: &str) -> bool {
    name.strip_prefix(filter)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// A short name for a number of bytes.
fn bytes(size: usize) -> String {
    if size >= 1024 {
        format!("{}k", size >> 10)
    } else {
        size.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_filters_choose_by_prefix() {
        let mut names: Vec<_> = all().into_iter().map(|scenario| scenario.name).collect();
        let count = names.len();
        assert!(names.iter().filter(|name| matches(name, "pp")).count() == 20);
        assert!(names.iter().filter(|name| matches(name, "pp-10")).count() == 4);
        assert!(matches("mux-1k", "mux-1k") && !matches("mux-1k", "mux-1"));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

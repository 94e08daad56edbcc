//! The targets, one a line.

use super::Against::{self, Best, Nothing, Own};
use super::Side::{self, AtLeast, AtMost};
use super::Target;
use crate::results::metric;

const OURS: &str = "netpoll";
const OUR_WORKERS: Against = Best(&["netpoll-workers"]);
const OUR_INLINE: Against = Best(&["netpoll-inline"]);
const OUR_OTHERS: Against = Best(&["netpoll-inline", "netpoll-workers"]);
/// The servers that hand blocking handlers to other threads.
const HAND_OFFS: Against = Best(&["handoff", "tokio-blocking", "netpoll-workers"]);
const TOKIO: Against = Best(&["tokio-mt", "tokio-ct"]);
/// HAProxy as it copies and as it splices.
const HAPROXY: Against = Best(&["haproxy", "haproxy-splice"]);
const HUNDRED: Against = Own("pp-100-1k");

/// A limit of the CPU per request in units of the reference's.
pub(super) const fn cpu(mode: &'static str, scenario: &'static str, limit: f64) -> Target {
    of(
        mode,
        scenario,
        metric::CPU,
        Against::Reference,
        AtMost,
        limit,
    )
}

/// A limit of any figure.
pub(super) const fn of(
    mode: &'static str,
    scenario: &'static str,
    figure: &'static str,
    against: Against,
    side: Side,
    limit: f64,
) -> Target {
    Target {
        who: OURS,
        mode,
        scenario,
        figure,
        against,
        side,
        limit,
    }
}

/// The same for a variant of ours.
const fn variant(who: &'static str, target: Target) -> Target {
    Target { who, ..target }
}

/// What a relay of ours may use beside HAProxy.
const fn proxy(mode: &'static str, scenario: &'static str, figure: &'static str) -> Target {
    variant(
        "netpoll-relay",
        of(mode, scenario, figure, HAPROXY, AtMost, 1.0),
    )
}

#[rustfmt::skip]
pub(super) const TARGETS: &[Target] = &[
    cpu("pinned", "pp-1-1k", 1.10),
    cpu("free", "pp-1-1k", 1.10),
    variant("netpoll-busy", of("pinned", "pp-1-1k", metric::P50, Against::Reference, AtMost, 1.0)),
    cpu("pinned", "pp-10-1k", 1.10),
    cpu("free", "pp-10-1k", 1.10),
    cpu("pinned", "pp-100-1k", 1.10),
    cpu("free", "pp-100-1k", 1.10),
    cpu("pinned", "pp-1000-1k", 1.15),
    cpu("free", "pp-1000-1k", 1.15),
    of("pinned", "pp-10000-1k", metric::CPU, HUNDRED, AtMost, 1.3),
    of("free", "pp-10000-1k", metric::CPU, HUNDRED, AtMost, 1.3),
    cpu("pinned", "pp-100-16k", 1.10),
    cpu("pinned", "mux-64", 1.2),
    cpu("free", "mux-64", 1.2),
    cpu("pinned", "mux-1k", 0.9),
    cpu("free", "mux-1k", 0.9),
    cpu("pinned", "echo-1m", 1.1),
    cpu("free", "echo-1m", 1.1),
    cpu("pinned", "sink-1m", 1.1),
    cpu("free", "sink-1m", 1.1),
    cpu("pinned", "churn", 1.1),
    cpu("free", "churn", 1.1),
    of("counted", "pp-100-1k", metric::INSTRUCTIONS, TOKIO, AtMost, 1.0),
    of("counted", "pp-100-1k", metric::SYSCALLS, Nothing, AtMost, 2.1),
    of("counted", "pp-100-1k", metric::ALLOCATIONS, Nothing, AtMost, 0.005),
    of("counted", "pp-100-1k", metric::COPIES, Nothing, AtMost, 10.0),
    of("free", "sleep-0.02-100", metric::CPU, HUNDRED, AtMost, 1.1),
    of("free", "sleep-0.02-100", metric::VOLUNTARY, Nothing, AtMost, 0.05),
    of("free", "sleep-1-100", metric::RATE, HAND_OFFS, AtLeast, 0.95),
    of("free", "sleep-1-100", metric::P99, HAND_OFFS, AtMost, 1.1),
    of("free", "sleep-1-1000", metric::RATE, HAND_OFFS, AtLeast, 0.95),
    of("free", "sleep-1-1000", metric::P99, HAND_OFFS, AtMost, 1.1),
    of("free", "sleep-10-100", metric::RATE, OUR_WORKERS, AtLeast, 1.0),
    of("free", "sleep-10-100", metric::P99, OUR_WORKERS, AtMost, 1.0),
    of("free", "sleep-10-1000", metric::RATE, OUR_WORKERS, AtLeast, 1.0),
    of("free", "sleep-10-1000", metric::P99, OUR_WORKERS, AtMost, 1.0),
    of("free", "compute-100", metric::RATE, OUR_INLINE, AtLeast, 1.6),
    variant("netpoll-fill", of("pinned", "split-1-100", metric::P99, HUNDRED, AtMost, 1.0)),
    variant("netpoll-fill", of("free", "split-1-100", metric::P99, HUNDRED, AtMost, 1.0)),
    of("pinned", "pp-100-1k", metric::CPU, OUR_OTHERS, AtMost, 1.0),
    of("pinned", "pp-1000-1k", metric::CPU, OUR_OTHERS, AtMost, 1.0),
    of("pinned", "sleep-1-100", metric::RATE, OUR_OTHERS, AtLeast, 1.0),
    of("pinned", "compute-100", metric::RATE, OUR_OTHERS, AtLeast, 1.0),
    of("pinned", "idle-10000", metric::BYTES_CONNECTED, Nothing, AtMost, 600.0),
    of("pinned", "idle-10000", metric::BYTES_USED, Nothing, AtMost, 600.0),
    of("pinned", "idle-10000", metric::IDLE_CPU, Nothing, AtMost, 0.001),
    proxy("pinned", "proxy-100-1k", metric::CPU),
    proxy("free", "proxy-100-1k", metric::CPU),
    proxy("pinned", "proxy-1m", metric::CPU_MIB),
    proxy("free", "proxy-1m", metric::CPU_MIB),
    cpu("pinned", "call-1", 1.10),
    cpu("free", "call-1", 1.10),
    of("counted", "call-1", metric::SYSCALLS, Nothing, AtMost, 3.0),
];

//! One measurement of one server that goes on running.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::procfs;
use super::scenario::Shape;
use super::server::Server;
use crate::load::{self, Moment, Outcome, Plan};
use crate::results::metric;
use crate::sys;

/// How long to run a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Before anything is recorded.
    pub(crate) warmup: Duration,
    /// Recorded.
    pub(crate) measure: Duration,
}

/// The plan of `shape` against `server`.
pub(crate) fn plan(shape: &Shape, server: &Server, congestion: Option<&str>, times: Times) -> Plan {
    Plan {
        addr: server.addr(),
        congestion: congestion.map(Into::into),
        connections: shape.connections,
        active: shape.active,
        slow: shape.slow,
        depth: shape.depth,
        size: shape.size,
        kind: shape.kind,
        mark: shape.mark,
        churn: shape.churn,
        warmup: times.warmup,
        measure: times.measure,
        requests: None,
    }
}

/// Runs `plan` against `server`, which must be running, and returns the figures; `backend` is the
/// server behind it if it is a proxy.
pub(crate) fn measure(
    plan: &Plan,
    server: &Server,
    backend: Option<&Server>,
) -> io::Result<BTreeMap<String, f64>> {
    let mut watch = Watch {
        pid: server.pid(),
        backend: backend.map(Server::pid),
        before: None,
        after: None,
    };
    let outcome = load::run(plan, &mut |moment| watch.look(moment))?;
    let (Some(before), Some(after)) = (watch.before, watch.after) else {
        return Err(io::Error::other("the load has not begun or not ended"));
    };
    figures(plan, &outcome, &before?, &after?)
}

struct Watch {
    pid: u32,
    backend: Option<u32>,
    before: Option<io::Result<Look>>,
    after: Option<io::Result<Look>>,
}

struct Look {
    clocks: Clocks,
    switches: std::collections::HashMap<u32, procfs::Switches>,
    memory: u64,
    threads: u64,
}

/// What has been used since the beginning.
#[derive(Default)]
struct Clocks {
    cpu: Duration,
    backend: Option<Duration>,
    /// Of the whole machine, in seconds.
    busy: f64,
}

impl Watch {
    fn look(&mut self, moment: Moment) {
        // The clocks are read nearest to the recording: looking at many threads takes time itself.
        match moment {
            Moment::Begin => {
                let rest = Look::take(self.pid);
                self.before = Some(rest.and_then(|look| {
                    let clocks = self.clocks()?;
                    Ok(Look { clocks, ..look })
                }));
            }
            Moment::End => {
                let clocks = self.clocks();
                self.after = Some(clocks.and_then(|clocks| {
                    let look = Look::take(self.pid)?;
                    Ok(Look { clocks, ..look })
                }));
            }
        }
    }

    fn clocks(&self) -> io::Result<Clocks> {
        Ok(Clocks {
            cpu: sys::cpu_time(self.pid)?,
            backend: self.backend.map(sys::cpu_time).transpose()?,
            busy: procfs::busy_seconds()?,
        })
    }
}

impl Look {
    fn take(pid: u32) -> io::Result<Self> {
        Ok(Self {
            clocks: Clocks::default(),
            switches: procfs::switches(pid)?,
            memory: procfs::anonymous_bytes(pid)?,
            threads: procfs::threads(pid)?,
        })
    }
}

/// Payloads of so many bytes and more make a load bulk: its CPU is told per MiB, too.
const BULK: usize = 1 << 20;

fn figures(
    plan: &Plan,
    outcome: &Outcome,
    before: &Look,
    after: &Look,
) -> io::Result<BTreeMap<String, f64>> {
    if outcome.requests == 0 {
        return Err(io::Error::other("no answer arrived while recording"));
    }
    let requests = outcome.requests as f64;
    let seconds = outcome.elapsed.as_secs_f64();
    let cpu = (after.clocks.cpu - before.clocks.cpu).as_secs_f64();
    let backend = match (before.clocks.backend, after.clocks.backend) {
        (Some(before), Some(after)) => (after - before).as_secs_f64(),
        _ => 0.0,
    };
    let busy = after.clocks.busy - before.clocks.busy;
    let generator = outcome.generator.as_secs_f64();
    let switches = procfs::switches_between(&before.switches, &after.switches);
    let mut figures = BTreeMap::new();
    let mut set = |name: &str, value: f64| figures.insert(name.to_owned(), value);
    set(metric::RATE, requests / seconds);
    let at = |quantile| outcome.latency.value_at_quantile(quantile) as f64 / 1e3;
    if !outcome.latency.is_empty() {
        set(metric::P50, at(0.5));
        set(metric::P99, at(0.99));
        set(metric::P999, at(0.999));
    }
    let at = |quantile| outcome.marked.value_at_quantile(quantile) as f64 / 1e3;
    if !outcome.marked.is_empty() {
        set(metric::MARKED_P50, at(0.5));
        set(metric::MARKED_P99, at(0.99));
    }
    set(metric::CPU, cpu * 1e6 / requests);
    if plan.size >= BULK {
        let moved = requests * plan.bytes_per_request() as f64;
        set(metric::CPU_MIB, cpu * 1e6 / (moved / f64::from(1 << 20)));
    }
    set(metric::CORES, cpu / seconds);
    set(metric::VOLUNTARY, switches.voluntary as f64 / requests);
    set(metric::INVOLUNTARY, switches.involuntary as f64 / requests);
    set(metric::GENERATOR, generator / seconds);
    if after.clocks.backend.is_some() {
        set(metric::BACKEND, backend / seconds);
    }
    set(
        metric::FOREIGN,
        ((busy - cpu - backend - generator) / seconds).max(0.0),
    );
    set(metric::MEMORY, after.memory as f64 / f64::from(1 << 20));
    set(metric::THREADS, after.threads as f64);
    Ok(figures)
}

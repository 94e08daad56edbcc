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

/// Runs `plan` against `server`, which must be running, and returns the figures.
pub(crate) fn measure(plan: &Plan, server: &Server) -> io::Result<BTreeMap<String, f64>> {
    let mut watch = Watch {
        pid: server.pid(),
        before: None,
        after: None,
    };
    let outcome = load::run(plan, &mut |moment| watch.look(moment))?;
    let (Some(before), Some(after)) = (watch.before, watch.after) else {
        return Err(io::Error::other("the load has not begun or not ended"));
    };
    figures(&outcome, &before?, &after?)
}

struct Watch {
    pid: u32,
    before: Option<io::Result<Look>>,
    after: Option<io::Result<Look>>,
}

struct Look {
    cpu: Duration,
    switches: std::collections::HashMap<u32, procfs::Switches>,
    busy: f64,
    memory: u64,
    threads: u64,
}

impl Watch {
    fn look(&mut self, moment: Moment) {
        // The clock is read nearest to the recording: looking at many threads takes time itself.
        match moment {
            Moment::Begin => {
                let rest = Look::take(self.pid);
                self.before = Some(rest.and_then(|look| look.with_clocks(self.pid)));
            }
            Moment::End => {
                let clocks = Look::clocks(self.pid);
                self.after = Some(clocks.and_then(|(cpu, busy)| {
                    Ok(Look {
                        cpu,
                        busy,
                        ..Look::take(self.pid)?
                    })
                }));
            }
        }
    }
}

impl Look {
    fn take(pid: u32) -> io::Result<Self> {
        Ok(Self {
            cpu: Duration::ZERO,
            switches: procfs::switches(pid)?,
            busy: 0.0,
            memory: procfs::anonymous_bytes(pid)?,
            threads: procfs::threads(pid)?,
        })
    }

    fn clocks(pid: u32) -> io::Result<(Duration, f64)> {
        Ok((sys::cpu_time(pid)?, procfs::busy_seconds()?))
    }

    fn with_clocks(self, pid: u32) -> io::Result<Self> {
        let (cpu, busy) = Self::clocks(pid)?;
        Ok(Self { cpu, busy, ..self })
    }
}

fn figures(outcome: &Outcome, before: &Look, after: &Look) -> io::Result<BTreeMap<String, f64>> {
    if outcome.requests == 0 {
        return Err(io::Error::other("no answer arrived while recording"));
    }
    let requests = outcome.requests as f64;
    let seconds = outcome.elapsed.as_secs_f64();
    let cpu = (after.cpu - before.cpu).as_secs_f64();
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
    set(metric::CORES, cpu / seconds);
    set(metric::VOLUNTARY, switches.voluntary as f64 / requests);
    set(metric::INVOLUNTARY, switches.involuntary as f64 / requests);
    set(metric::GENERATOR, generator / seconds);
    set(
        metric::FOREIGN,
        ((after.busy - before.busy - cpu - generator) / seconds).max(0.0),
    );
    set(metric::MEMORY, after.memory as f64 / f64::from(1 << 20));
    set(metric::THREADS, after.threads as f64);
    Ok(figures)
}

//! The load generator as a client.

use std::io;

use super::{Job, Tally};
use crate::load::{self, Plan};

pub(super) fn run(job: &Job) -> io::Result<Tally> {
    let (connections, depth) = if job.shared {
        (1, job.callers)
    } else {
        (job.callers, 1)
    };
    let plan = Plan {
        connections,
        depth,
        size: job.size,
        warmup: job.warmup,
        measure: job.measure,
        requests: job.requests,
        ..Plan::new(job.addr)
    };
    let outcome = load::run(&plan, &mut |_| ())?;
    Ok(Tally {
        calls: outcome.requests,
        elapsed: outcome.elapsed,
        latency: outcome.latency,
        cpu: outcome.generator,
        waits: None,
    })
}

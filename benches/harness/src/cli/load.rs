//! `load`: the load generator alone, against any server of the frame.

use std::time::Duration;

use lexopt::Arg::Long;
use lexopt::ValueExt;
use serde_json::json;

use super::{Failure, address};
use crate::frame::Kind;
use crate::load::{self, Mark, Marked, Outcome, Plan};
use crate::sys;

const HELP: &str = "\
load --connect ADDR [options]

  --connect ADDR        the server
  --connections N       connections opened (1)
  --active N            how many of them ask (all)
  --slow N              further connections that ask without end and hardly read (0)
  --depth N             requests under way on each connection (1)
  --size BYTES          payload of a request (64)
  --kind KIND           echo, sink (one way), sleep or compute (echo)
  --sleep SHARE         share of requests, 0 to 1, whose handler sleeps 10 ms
  --compute SHARE       share of requests whose handler computes 50 us
  --split SHARE         share of requests sent in two parts, 10 ms apart
  --churn               connect, ask once, close, and again
  --seconds S           how long to record (1)
  --warmup S            how long to run before (0.1)
  --requests N          end after N answers instead
  --congestion NAME     congestion control of every socket
  --core N              run on this core alone
  --verify              check first that every byte comes back
  --json                print one JSON object
";

pub(super) fn run(mut args: lexopt::Parser) -> Result<(), Failure> {
    let mut plan = Plan::new(([127, 0, 0, 1], 0).into());
    let (mut connect, mut json, mut verify) = (None, false, false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("connect") => connect = Some(address(&mut args)?),
            Long("connections") => plan.connections = args.value()?.parse()?,
            Long("active") => plan.active = args.value()?.parse()?,
            Long("slow") => plan.slow = args.value()?.parse()?,
            Long("depth") => plan.depth = args.value()?.parse()?,
            Long("size") => plan.size = args.value()?.parse()?,
            Long("kind") => plan.kind = kind(&args.value()?.string()?)?,
            Long("sleep") => plan.mark = mark(&mut args, Marked::Asks(Kind::Sleep))?,
            Long("compute") => plan.mark = mark(&mut args, Marked::Asks(Kind::Compute))?,
            Long("split") => plan.mark = mark(&mut args, Marked::Split)?,
            Long("churn") => plan.churn = true,
            Long("seconds") => plan.measure = seconds(&mut args)?,
            Long("warmup") => plan.warmup = seconds(&mut args)?,
            Long("requests") => plan.requests = Some(args.value()?.parse()?),
            Long("congestion") => plan.congestion = Some(args.value()?.string()?),
            Long("core") => sys::set_affinity(&[args.value()?.parse()?])?,
            Long("verify") => verify = true,
            Long("json") => json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    plan.addr = connect.ok_or("load needs --connect ADDR")?;
    sys::raise_fd_limit()?;
    if verify {
        load::verify(plan.addr)?;
    }
    let outcome = load::run(&plan, &mut |_| ())?;
    if json {
        println!("{}", as_json(&outcome));
    } else {
        print(&outcome);
    }
    Ok(())
}

fn kind(name: &str) -> Result<Kind, Failure> {
    match name {
        "echo" => Ok(Kind::Echo),
        "sink" => Ok(Kind::Sink),
        "sleep" => Ok(Kind::Sleep),
        "compute" => Ok(Kind::Compute),
        other => Err(format!("no kind {other:?}: echo, sink, sleep or compute").into()),
    }
}

fn mark(args: &mut lexopt::Parser, what: Marked) -> Result<Option<Mark>, Failure> {
    let share: f64 = args.value()?.parse()?;
    if !(0.0..=1.0).contains(&share) {
        return Err(format!("a share lies between 0 and 1, not at {share}").into());
    }
    Ok(Some(Mark { share, what }))
}

/// The value of an option in seconds, fractions allowed.
pub(super) fn seconds(args: &mut lexopt::Parser) -> Result<Duration, Failure> {
    let seconds: f64 = args.value()?.parse()?;
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| format!("{seconds} seconds: {error}").into())
}

fn as_json(outcome: &Outcome) -> serde_json::Value {
    let latency = |histogram: &hdrhistogram::Histogram<u64>| {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        json!({
            "count": histogram.len(),
            "p50_us": at(0.5),
            "p99_us": at(0.99),
            "p999_us": at(0.999),
            "max_us": histogram.max() as f64 / 1e3,
        })
    };
    json!({
        "requests": outcome.requests,
        "seconds": outcome.elapsed.as_secs_f64(),
        "requests_per_second": outcome.requests as f64 / outcome.elapsed.as_secs_f64(),
        "latency": latency(&outcome.latency),
        "marked": latency(&outcome.marked),
        "generator_cpu_seconds": outcome.generator.as_secs_f64(),
    })
}

fn print(outcome: &Outcome) {
    let seconds = outcome.elapsed.as_secs_f64();
    println!(
        "{} requests in {seconds:.3} s: {:.0}/s, generator {:.0} % of a core",
        outcome.requests,
        outcome.requests as f64 / seconds,
        outcome.generator.as_secs_f64() / seconds * 100.0,
    );
    for (name, histogram) in [("latency", &outcome.latency), ("marked", &outcome.marked)] {
        if !histogram.is_empty() {
            let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
            let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
            println!("{name}: p50 {p50:.1} us, p99 {p99:.1} us, p99.9 {p999:.1} us");
        }
    }
}

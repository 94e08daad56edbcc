//! `burst`: how long others wait when many handlers begin to sleep at once.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use lexopt::Arg::Long;
use lexopt::ValueExt;
use serde_json::json;

use super::Failure;
use crate::compare::procfs;
use crate::compare::server::{Server, Settings};
use crate::frame::{self, Kind};
use crate::load::{self, Plan};
use crate::stats;
use crate::{net, peers, sys, work};

const HELP: &str = "\
burst [options]

Many connections send a request at the same moment whose handler sleeps 1 s. Measures the longest wait of others,
who go on asking. Each measurement has a server of its own, as fresh as the first burst finds one; the peers come
in turn within a round.

  --peers NAMES   the servers, separated by commas (netpoll,netpoll-workers-512)
  --sleepers N    connections whose handlers sleep (400)
  --others N      connections whose latency is measured, one request at a time (10)
  --rounds N      measurements of each server (9)
  --warm          a burst before the one that is measured, so that threads are there already
  --json          print one JSON object

`list` names the peers.
";

/// From the start of the load to the burst.
const CALM: Duration = Duration::from_millis(300);

struct Options {
    sleepers: usize,
    others: usize,
    warm: bool,
}

/// What was seen of one burst.
struct Seen {
    /// The longest wait of the others while the sleepers sleep, in seconds.
    longest: f64,
    /// The same for when they return.
    after: f64,
    /// Their 99th percentile.
    p99: f64,
    /// From the burst to the last sleeper's answer.
    last: f64,
    threads: u64,
}

pub(super) fn run(mut args: lexopt::Parser) -> Result<(), Failure> {
    let mut names = vec!["netpoll".to_owned(), "netpoll-workers-512".to_owned()];
    let mut options = Options {
        sleepers: 400,
        others: 10,
        warm: false,
    };
    let (mut rounds, mut as_json) = (9, false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("peers") => {
                let text = args.value()?.string()?;
                names = text.split(',').map(|name| name.trim().to_owned()).collect();
            }
            Long("sleepers") => options.sleepers = args.value()?.parse()?,
            Long("others") => options.others = args.value()?.parse()?,
            Long("rounds") => rounds = args.value()?.parse::<usize>()?.max(1),
            Long("warm") => options.warm = true,
            Long("json") => as_json = true,
            other => return Err(other.unexpected().into()),
        }
    }
    if let Some(name) = names.iter().find(|name| peers::find(name).is_none()) {
        return Err(format!("no peer {name:?}; `list` names them").into());
    }
    sys::raise_fd_limit()?;
    let settings = Settings {
        program: std::env::current_exe()?,
        congestion: None,
        steps: work::calibrate(),
        core: None,
        backend: None,
        under: Vec::new(),
    };
    let mut seen: Vec<Vec<Seen>> = names.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        // Each is the first as often as the others.
        for place in 0..names.len() {
            let which = (round + place) % names.len();
            let server = Server::start(&names[which], &settings)?;
            seen[which].push(measure(&server, &options)?);
        }
    }
    report(&names, &seen, as_json);
    Ok(())
}

fn measure(server: &Server, options: &Options) -> Result<Seen, Failure> {
    let (addr, count) = (server.addr(), options.sleepers);
    let mut sleepers = connect(addr, count)?;
    if options.warm {
        burst(&mut sleepers)?;
    }
    let mut plan = Plan::new(addr);
    plan.connections = options.others;
    plan.warmup = CALM / 3;
    plan.measure = work::REST;
    let pid = server.pid();
    let burst = thread::spawn(move || -> io::Result<(Duration, u64)> {
        thread::sleep(CALM);
        let begin = Instant::now();
        burst(&mut sleepers)?;
        Ok((begin.elapsed(), procfs::threads(pid)?))
    });
    // Recording ends before the first handler can have returned, then goes on.
    let outcome = load::run(&plan, &mut |_| ())?;
    plan.measure = 3 * CALM;
    plan.warmup = Duration::ZERO;
    let after = load::run(&plan, &mut |_| ())?;
    let (last, threads) = burst.join().map_err(|_| "the burst panicked")??;
    Ok(Seen {
        longest: outcome.latency.max() as f64 / 1e9,
        after: after.latency.max() as f64 / 1e9,
        p99: outcome.latency.value_at_quantile(0.99) as f64 / 1e9,
        last: last.as_secs_f64(),
        threads,
    })
}

fn connect(addr: SocketAddr, count: usize) -> io::Result<Vec<TcpStream>> {
    let one = |_| {
        let stream = net::connect(addr, None, None)?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        net::reset_on_close(&stream)?;
        Ok(stream)
    };
    (0..count).map(one).collect()
}

/// Sends all requests, then waits for all answers.
fn burst(sleepers: &mut [TcpStream]) -> io::Result<()> {
    let request = frame::build(Kind::Rest, 64);
    for stream in &mut *sleepers {
        stream.write_all(&request)?;
    }
    let mut answer = vec![0; request.len()];
    for stream in sleepers {
        stream.read_exact(&mut answer)?;
    }
    Ok(())
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    stats::median(values).map_or(f64::NAN, |median| median.value)
}

fn report(names: &[String], seen: &[Vec<Seen>], as_json: bool) {
    let column = |seen: &[Seen], of: fn(&Seen) -> f64| seen.iter().map(of).collect::<Vec<_>>();
    for (name, seen) in names.iter().zip(seen) {
        let longest = column(seen, |seen| seen.longest * 1e3);
        let after = median(column(seen, |seen| seen.after * 1e3));
        let p99 = median(column(seen, |seen| seen.p99 * 1e3));
        let last = median(column(seen, |seen| seen.last * 1e3));
        let threads = seen.iter().map(|seen| seen.threads).max();
        if as_json {
            println!(
                "{}",
                json!({
                    "peer": name, "longest_ms": longest, "longest_after_ms": after, "p99_ms": p99, "last_ms": last,
                    "threads": threads,
                })
            );
            continue;
        }
        let least = longest.iter().copied().fold(f64::INFINITY, f64::min);
        let most = longest.iter().copied().fold(0.0, f64::max);
        println!(
            "{name:20} longest wait {:7.1} ms ({least:.1} to {most:.1}), p99 {p99:6.1} ms, when they return \
             {after:6.1} ms; last sleeper after {last:6.0} ms, {} threads",
            median(longest.iter().copied()),
            threads.unwrap_or(0),
        );
    }
}

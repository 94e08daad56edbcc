//! Runs servers in turn under the same loads, and clients in turn against the same server.
//!
//! All servers of a mode are started once. Within a round every scenario is run against every
//! server, one after the other while all others are stopped, and the order rotates from round to
//! round, so that what disturbs the machine for a while falls on all alike. Ratios are formed within
//! a round.

pub(crate) mod callers;
mod calls;
mod counts;
pub(crate) mod environment;
mod idle;
mod instruments;
mod loads;
mod point;
pub(crate) mod procfs;
mod progress;
mod run;
pub(crate) mod scenario;
pub(crate) mod server;

use std::io;
use std::time::{Duration, Instant};

use self::point::Times;
use self::progress::Progress;
use self::run::Run;
use self::scenario::{Mode, Scenario, What};
use crate::clients::Client;
use crate::peers::Peer;
use crate::proxies::{self, Proxy};
use crate::results::Results;
use crate::{sys, work};

/// What to compare, and how long.
#[derive(Debug)]
pub(crate) struct Options {
    /// The scenarios, each with the modes it is run in.
    pub(crate) scenarios: Vec<(Scenario, Vec<Mode>)>,
    /// The servers; the reference is one of them.
    pub(crate) peers: Vec<&'static Peer>,
    /// The clients; the reference is one of them.
    pub(crate) clients: Vec<&'static Client>,
    /// The proxies; the reference is one of them.
    pub(crate) proxies: Vec<&'static Proxy>,
    /// Names those of them that are wanted in a mode and a scenario; all when `None`.
    pub(crate) needed: Option<fn(&str, &str) -> Vec<&'static str>>,
    /// How often each is measured in every scenario.
    pub(crate) rounds: usize,
    /// How long each time; `None` for what fits into `limit`.
    pub(crate) seconds: Option<f64>,
    /// End after this time, with what there is.
    pub(crate) limit: Option<Duration>,
    /// Congestion control of every socket; the system's own when `None`.
    pub(crate) congestion: Option<String>,
    /// Measure again, a few times, while others keep more than so many cores busy.
    pub(crate) calm: Option<f64>,
    /// Count system calls and instructions too.
    pub(crate) count: bool,
}

impl Options {
    /// Whether `who` is measured in `scenario`.
    fn takes(&self, mode: &str, scenario: &str, who: &str) -> bool {
        self.needed
            .is_none_or(|needed| needed(mode, scenario).contains(&who))
    }

    /// Those of its contestants that are measured in `scenario`.
    fn taken(&self, mode: &str, scenario: &Scenario) -> Vec<&'static str> {
        let mut names: Vec<&str> = match scenario.what {
            What::Load(_) | What::Idle { .. } => self.peers.iter().map(|one| one.name).collect(),
            What::Proxied(_) => self.proxies.iter().map(|one| one.name).collect(),
            What::Call(_) => self.clients.iter().map(|one| one.name).collect(),
        };
        names.retain(|name| self.takes(mode, &scenario.name, name));
        names
    }
}

/// The congestion control used where the command line names none: the one most systems have.
pub(crate) fn usual_congestion() -> Option<String> {
    environment::has_congestion("cubic").then(|| "cubic".into())
}

/// Time in seconds a sample needs beside its load: connecting, closing, looking.
const OVERHEAD: f64 = 0.06;
/// Time in seconds one server needs for a scenario of silent connections.
const IDLE: f64 = 2.0;

/// Runs the comparison.
pub(crate) fn run(options: &Options) -> io::Result<Results> {
    let started = Instant::now();
    sys::raise_fd_limit()?;
    let cores = sys::allowed_cores()?;
    let mut results = Results {
        environment: environment::describe(cores.len()),
        ..Results::default()
    };
    let samples = samples(options);
    let seconds = options.seconds.unwrap_or_else(|| fitting(options, samples));
    let environment = &mut results.environment;
    let congestion = options.congestion.clone();
    let is_proxied = |(scenario, _): &(Scenario, _)| matches!(scenario.what, What::Proxied(_));
    if options.scenarios.iter().any(is_proxied) {
        let known = |proxy: &&Proxy| proxy.program.map(|name| (name, proxies::version(name)));
        let mut versions: Vec<String> = options
            .proxies
            .iter()
            .filter_map(known)
            .filter_map(|(name, version)| Some(format!("{name} {}", version?)))
            .collect();
        versions.dedup();
        environment.versions.extend(versions);
    }
    environment.congestion = congestion.unwrap_or_else(environment::default_congestion);
    environment.runs = vec![format!("{} rounds of {seconds:.2} s each", options.rounds)];
    let mut run = Run {
        options,
        results,
        progress: Progress::new(samples),
        times: Times {
            warmup: Duration::from_secs_f64((seconds / 3.0).clamp(0.03, 0.2)),
            measure: Duration::from_secs_f64(seconds),
        },
        deadline: options.limit.map(|limit| started + limit),
        program: std::env::current_exe()?,
        steps: work::calibrate(),
        cores,
    };
    let each = (run.times.warmup + run.times.measure).as_secs_f64() + OVERHEAD;
    let minutes = (samples as f64 * each + silent(options) as f64 * (IDLE - each)) / 60.0;
    run.progress.say(&format!(
        "{samples} samples of {seconds:.2} s, about {minutes:.0} minutes without counts"
    ));
    for mode in [Mode::Pinned, Mode::Free] {
        run.mode(mode)?;
    }
    if options.count {
        run.counts()?;
    }
    run.progress.finish();
    let mut results = run.results;
    results
        .environment
        .load_average
        .push(environment::load_average());
    Ok(results)
}

/// Samples of a whole run.
fn samples(options: &Options) -> usize {
    let all = options.scenarios.iter().flat_map(|(scenario, modes)| {
        let rounds = match scenario.what {
            What::Idle { .. } => 1,
            _ => options.rounds,
        };
        let each = move |mode: &Mode| rounds * options.taken(mode.name(), scenario).len();
        modes.iter().map(each)
    });
    all.sum()
}

/// Those of them that are silent connections.
fn silent(options: &Options) -> usize {
    let all = options.scenarios.iter().map(|(scenario, modes)| {
        let is_idle = matches!(scenario.what, What::Idle { .. });
        let of = |mode: &Mode| options.taken(mode.name(), scenario).len();
        modes.iter().map(of).sum::<usize>() * usize::from(is_idle)
    });
    all.sum()
}

/// Seconds per sample that let the run end within its limit, or a usual length without one.
fn fitting(options: &Options, samples: usize) -> f64 {
    let Some(limit) = options.limit else {
        return 0.5;
    };
    let fixed = silent(options) as f64 * IDLE;
    let budget = limit.as_secs_f64() * 0.8 - fixed;
    // A third is added for the warm-up.
    ((budget / samples.max(1) as f64 - OVERHEAD) / 1.34).clamp(0.03, 0.25)
}

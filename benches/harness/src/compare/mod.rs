//! Runs servers in turn under the same loads.
//!
//! All servers of a mode are started once. Within a round every scenario is run against every
//! server, one after the other while all others are stopped, and the order rotates from round to
//! round, so that what disturbs the machine for a while falls on all alike. Ratios are formed within
//! a round.

mod environment;
mod idle;
mod instruments;
mod point;
mod procfs;
mod progress;
pub(crate) mod scenario;
mod server;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::instruments::Tool;
use self::point::Times;
use self::progress::Progress;
use self::scenario::{Mode, Scenario, What};
use self::server::{Server, Settings};
use crate::load;
use crate::peers::Peer;
use crate::results::{Failed, Results, Sample, metric};
use crate::{sys, work};

/// What to compare, and how long.
#[derive(Debug)]
pub(crate) struct Options {
    /// The scenarios, each with the modes it is run in.
    pub(crate) scenarios: Vec<(Scenario, Vec<Mode>)>,
    /// The servers; the reference is one of them.
    pub(crate) peers: Vec<&'static Peer>,
    /// How often every server is measured in every scenario.
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

/// The congestion control used where the command line names none: the one most systems have.
pub(crate) fn usual_congestion() -> Option<String> {
    environment::has_congestion("cubic").then(|| "cubic".into())
}

/// How often a measurement is repeated for the sake of calm.
const ATTEMPTS: usize = 5;
/// Time a sample needs beside its load: connecting, closing, looking.
const OVERHEAD: f64 = 0.06;
/// Time one server needs for a scenario of silent connections.
const IDLE: f64 = 2.0;

/// Runs the comparison.
pub(crate) fn run(options: &Options) -> io::Result<Results> {
    let started = Instant::now();
    sys::raise_fd_limit()?;
    let cores = std::thread::available_parallelism()?.get();
    let mut results = Results {
        environment: environment::describe(cores),
        ..Results::default()
    };
    let samples = samples(options);
    let seconds = options.seconds.unwrap_or_else(|| fitting(options, samples));
    let environment = &mut results.environment;
    let congestion = options.congestion.clone();
    environment.congestion = congestion.unwrap_or_else(environment::default_congestion);
    environment.rounds = options.rounds;
    environment.seconds_per_sample = seconds;
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
    for mode in [Mode::Pinned, Mode::Free] {
        run.mode(mode)?;
    }
    if options.count {
        run.counts()?;
    }
    run.progress.finish();
    run.results
        .environment
        .load_average
        .push(environment::load_average());
    Ok(run.results)
}

/// Samples of a whole run.
fn samples(options: &Options) -> usize {
    let of = |(scenario, modes): &(Scenario, Vec<Mode>)| {
        let rounds = if is_idle(scenario) { 1 } else { options.rounds };
        modes.len() * rounds * options.peers.len()
    };
    options.scenarios.iter().map(of).sum()
}

fn is_idle(scenario: &Scenario) -> bool {
    matches!(scenario.what, What::Idle { .. })
}

/// Seconds per sample that let the run end within its limit, or a usual length without one.
fn fitting(options: &Options, samples: usize) -> f64 {
    let Some(limit) = options.limit else {
        return 0.5;
    };
    let idle = options
        .scenarios
        .iter()
        .filter(|(scenario, _)| is_idle(scenario))
        .count();
    let fixed = (idle * options.peers.len()) as f64 * IDLE;
    let budget = limit.as_secs_f64() * 0.8 - fixed;
    // A third is added for the warm-up.
    ((budget / samples.max(1) as f64 - OVERHEAD) / 1.34).clamp(0.03, 0.25)
}

struct Run<'a> {
    options: &'a Options,
    results: Results,
    progress: Progress,
    times: Times,
    deadline: Option<Instant>,
    program: PathBuf,
    steps: u64,
    cores: usize,
}

/// A server between its measurements.
struct Contestant {
    peer: &'static Peer,
    server: Server,
    /// Descriptors it has open without connections.
    descriptors: usize,
}

impl Run<'_> {
    fn mode(&mut self, mode: Mode) -> io::Result<()> {
        let chosen: Vec<&Scenario> = self
            .options
            .scenarios
            .iter()
            .filter(|(_, modes)| modes.contains(&mode))
            .map(|(scenario, _)| scenario)
            .collect();
        let (silent, loads): (Vec<&Scenario>, Vec<&Scenario>) =
            chosen.into_iter().partition(|scenario| is_idle(scenario));
        self.place(mode)?;
        if !loads.is_empty() {
            self.loads(mode, &loads)?;
        }
        for scenario in silent {
            self.silent(mode, scenario);
        }
        Ok(())
    }

    /// Puts this thread where the load generator belongs.
    fn place(&self, mode: Mode) -> io::Result<()> {
        match mode {
            Mode::Pinned => sys::set_affinity(&[1.min(self.cores - 1)]),
            Mode::Free => sys::set_affinity(&(0..self.cores).collect::<Vec<_>>()),
        }
    }

    fn settings(&self, mode: Mode) -> Settings {
        Settings {
            program: self.program.clone(),
            congestion: self.options.congestion.clone(),
            steps: self.steps,
            mode,
            under: Vec::new(),
        }
    }

    fn is_late(&self) -> bool {
        self.deadline
            .is_some_and(|deadline| Instant::now() > deadline)
    }

    fn loads(&mut self, mode: Mode, scenarios: &[&Scenario]) -> io::Result<()> {
        let mut contestants = Vec::new();
        for peer in &self.options.peers {
            self.progress.doing(&format!("starting {}", peer.name));
            match self.contestant(peer, mode) {
                Ok(contestant) => contestants.push(contestant),
                Err(error) => self.failed(mode, "start", peer.name, 0, &error),
            }
        }
        for round in 0..self.options.rounds {
            for (at, scenario) in scenarios.iter().enumerate() {
                for turn in 0..contestants.len() {
                    if self.is_late() {
                        self.progress.say("the time is up: the rest is left out");
                        return Ok(());
                    }
                    let place = (turn + round + at) % contestants.len();
                    self.sample(mode, scenario, round, &mut contestants[place])?;
                    self.progress.done();
                }
            }
            self.progress.say(&format!(
                "{} round {} of {} done",
                mode.name(),
                round + 1,
                self.options.rounds
            ));
        }
        Ok(())
    }

    /// A server that was started, checked, and stopped until its turn.
    fn contestant(&self, peer: &'static Peer, mode: Mode) -> io::Result<Contestant> {
        let server = Server::start(peer.name, &self.settings(mode))?;
        load::verify(server.addr())?;
        std::thread::sleep(Duration::from_millis(5));
        let descriptors = procfs::descriptors(server.pid())?;
        server.pause()?;
        Ok(Contestant {
            peer,
            server,
            descriptors,
        })
    }

    fn sample(
        &mut self,
        mode: Mode,
        scenario: &Scenario,
        round: usize,
        contestant: &mut Contestant,
    ) -> io::Result<()> {
        let peer = contestant.peer;
        self.progress
            .doing(&format!("{} {} {}", mode.name(), scenario.name, peer.name));
        match self.figures(scenario, contestant) {
            Ok(figures) => self.keep(mode, scenario, peer, round, figures),
            Err(error) => {
                self.failed(mode, &scenario.name, peer.name, round, &error);
                *contestant = self.contestant(peer, mode)?;
            }
        }
        Ok(())
    }

    /// One measurement, repeated while the machine is not calm.
    fn figures(
        &self,
        scenario: &Scenario,
        contestant: &Contestant,
    ) -> io::Result<BTreeMap<String, f64>> {
        let What::Load(shape) = &scenario.what else {
            return Err(io::Error::other(
                "silent connections are measured on a server of their own",
            ));
        };
        let server = &contestant.server;
        let congestion = self.options.congestion.as_deref();
        let plan = point::plan(shape, server, congestion, self.times);
        let mut calmest: Option<BTreeMap<String, f64>> = None;
        for _ in 0..ATTEMPTS {
            server.resume()?;
            let figures = point::measure(&plan, server)?;
            if !server.settle(contestant.descriptors)? {
                self.progress.say(&format!(
                    "{} still has connections of {} open",
                    contestant.peer.name, scenario.name
                ));
            }
            server.pause()?;
            let foreign = |figures: &BTreeMap<String, f64>| {
                figures.get(metric::FOREIGN).copied().unwrap_or(0.0)
            };
            if calmest
                .as_ref()
                .is_none_or(|best| foreign(&figures) < foreign(best))
            {
                calmest = Some(figures);
            }
            let now = calmest.as_ref().map_or(0.0, foreign);
            if self.options.calm.is_none_or(|limit| now <= limit) {
                break;
            }
        }
        calmest.ok_or_else(|| io::Error::other("nothing was measured"))
    }

    fn silent(&mut self, mode: Mode, scenario: &Scenario) {
        let What::Idle { connections } = scenario.what else {
            return;
        };
        for peer in &self.options.peers {
            if self.is_late() {
                self.progress.say("the time is up: the rest is left out");
                return;
            }
            self.progress
                .doing(&format!("{} {} {}", mode.name(), scenario.name, peer.name));
            match idle::measure(peer.name, &self.settings(mode), connections) {
                Ok(figures) => self.keep(mode, scenario, peer, 0, figures),
                Err(error) => self.failed(mode, &scenario.name, peer.name, 0, &error),
            }
            self.progress.done();
        }
    }

    /// Counts under the tools that are present, for one and for a hundred connections.
    fn counts(&mut self) -> io::Result<()> {
        self.place(Mode::Pinned)?;
        let settings = self.settings(Mode::Pinned);
        let chosen = scenario::all()
            .into_iter()
            .filter_map(|scenario| match scenario.what {
                What::Load(shape) if scenario.name == "pp-1-1k" => {
                    Some((scenario.name, shape, true))
                }
                What::Load(shape) if scenario.name == "pp-100-1k" => {
                    Some((scenario.name, shape, false))
                }
                _ => None,
            });
        for (name, shape, calls_only) in chosen {
            for tool in [Tool::Strace, Tool::Callgrind] {
                if !tool.is_present() {
                    self.progress
                        .say(&format!("{tool:?} is not installed: not counted"));
                    continue;
                }
                if calls_only && tool == Tool::Callgrind {
                    continue;
                }
                for peer in &self.options.peers {
                    self.progress
                        .doing(&format!("{tool:?} {name} {}", peer.name));
                    match instruments::count(tool, peer.name, &shape, &settings) {
                        Ok(counts) => self.keep_counts(tool, &name, peer, counts),
                        Err(error) => {
                            self.failed(
                                Mode::Pinned,
                                &name,
                                &format!("{tool:?} {}", peer.name),
                                0,
                                &error,
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn keep_counts(
        &mut self,
        tool: Tool,
        scenario: &str,
        peer: &Peer,
        counts: BTreeMap<String, f64>,
    ) {
        let figures = match tool {
            Tool::Strace => {
                let total = counts.values().sum();
                self.results
                    .calls
                    .insert(format!("{scenario} {}", peer.name), counts);
                BTreeMap::from([(metric::SYSCALLS.to_owned(), total)])
            }
            Tool::Callgrind => [
                (instruments::TOTAL, metric::INSTRUCTIONS),
                (instruments::ALLOCATOR, metric::ALLOCATIONS),
            ]
            .into_iter()
            .filter_map(|(from, to)| Some((to.to_owned(), *counts.get(from)?)))
            .collect(),
        };
        self.results.samples.push(Sample {
            mode: "counted".into(),
            scenario: scenario.into(),
            peer: peer.name.into(),
            round: 0,
            figures,
        });
    }

    fn keep(
        &mut self,
        mode: Mode,
        scenario: &Scenario,
        peer: &Peer,
        round: usize,
        figures: BTreeMap<String, f64>,
    ) {
        self.results.samples.push(Sample {
            mode: mode.name().into(),
            scenario: scenario.name.clone(),
            peer: peer.name.into(),
            round,
            figures,
        });
    }

    fn failed(&mut self, mode: Mode, scenario: &str, peer: &str, round: usize, error: &io::Error) {
        self.progress
            .say(&format!("{} {scenario} {peer}: {error}", mode.name()));
        self.results.failed.push(Failed {
            mode: mode.name().into(),
            scenario: scenario.into(),
            peer: peer.into(),
            round,
            reason: error.to_string(),
        });
    }
}
